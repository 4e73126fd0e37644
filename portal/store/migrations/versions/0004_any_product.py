"""Any product behind it: external solutions, keys that rotate themselves, rates of their own, idempotent requests,
verifiers.

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

from portal.store.database import Moment

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    with op.batch_alter_table("solution", schema=None) as batch_op:
        batch_op.add_column(sa.Column("is_external", sa.Boolean(), server_default=sa.false(), nullable=False))
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        batch_op.add_column(sa.Column("self_rotate", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("rate_per_minute", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("rate_per_second", sa.Integer(), nullable=True))
    op.create_table(
        "idempotent_request",
        sa.Column("member_id", sa.Integer(), nullable=False),
        sa.Column("environment", sa.String(length=4), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("environment IN ('live', 'test')", name=op.f("ck_idempotent_request_environment")),
        sa.ForeignKeyConstraint(["member_id"], ["member.id"], name=op.f("fk_idempotent_request_member_id")),
        sa.PrimaryKeyConstraint("member_id", "environment", "idempotency_key", name=op.f("pk_idempotent_request")),
    )
    with op.batch_alter_table("idempotent_request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotent_request_at"), ["at"], unique=False)
    op.create_table(
        "verifier",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("public_id", sa.String(length=40), nullable=False),
        sa.Column("workspace_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("pepper_id", sa.String(length=20), nullable=False),
        sa.Column("last_four", sa.String(length=4), nullable=False),
        sa.Column("form_id", sa.String(length=40), nullable=True),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("created_by_id", sa.Integer(), nullable=False),
        sa.Column("revoked_at", Moment(), nullable=True),
        sa.Column("revoked_by_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["created_by_id"], ["member.id"], name=op.f("fk_verifier_created_by_id")),
        sa.ForeignKeyConstraint(["revoked_by_id"], ["member.id"], name=op.f("fk_verifier_revoked_by_id")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspace.id"], name=op.f("fk_verifier_workspace_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_verifier")),
        sa.UniqueConstraint("digest", name=op.f("uq_verifier_digest")),
        sa.UniqueConstraint("form_id", name=op.f("uq_verifier_form_id")),
        sa.UniqueConstraint("public_id", name=op.f("uq_verifier_public_id")),
    )
    with op.batch_alter_table("verifier", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_verifier_workspace_id"), ["workspace_id"], unique=False)


def downgrade() -> None:
    """Take it back."""
    op.drop_table("verifier")
    op.drop_table("idempotent_request")
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        for column in ("rate_per_second", "rate_per_minute", "self_rotate"):
            batch_op.drop_column(column)
    with op.batch_alter_table("solution", schema=None) as batch_op:
        batch_op.drop_column("is_external")
