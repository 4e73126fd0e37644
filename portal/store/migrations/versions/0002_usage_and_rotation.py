"""Usage, rotation, notices and preferences.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

from portal.store.database import Moment

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "usage_batch",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_batch")),
    )
    with op.batch_alter_table("usage_batch", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_batch_at"), ["at"], unique=False)

    op.create_table(
        "first_request",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.Column("method", sa.String(length=10), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_first_request_key_id")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_first_request")),
    )
    op.create_table(
        "refused_request",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("required", sa.String(length=80), nullable=False),
        sa.Column("method", sa.String(length=10), nullable=False),
        sa.Column("path", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("client", sa.String(length=60), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_refused_request_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refused_request")),
        sa.UniqueConstraint("request_id", name=op.f("uq_refused_request_request_id")),
    )
    with op.batch_alter_table("refused_request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_refused_request_at"), ["at"], unique=False)
        batch_op.create_index("ix_refused_request_key_id_id", ["key_id", "id"], unique=False)

    op.create_table(
        "usage",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("scope", sa.String(length=50), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("client", sa.String(length=60), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Moment(), nullable=False),
        sa.Column("last_at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_usage_key_id")),
        sa.PrimaryKeyConstraint("key_id", "hour", "outcome", "scope", "address", "client", name=op.f("pk_usage")),
    )
    op.create_table(
        "key_caller",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("client", sa.String(length=60), nullable=False),
        sa.Column("scope", sa.String(length=50), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", Moment(), nullable=False),
        sa.Column("last_at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_key_caller_key_id")),
        sa.PrimaryKeyConstraint("key_id", "address", "client", "scope", name=op.f("pk_key_caller")),
    )
    op.drop_index("uq_api_key_name_in_use", "api_key")
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replaces_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("rotated_at", Moment(), nullable=True))
        batch_op.add_column(sa.Column("retires_at", Moment(), nullable=True))
        batch_op.create_unique_constraint(batch_op.f("uq_api_key_replaces_id"), ["replaces_id"])
        batch_op.create_foreign_key(batch_op.f("fk_api_key_replaces_id"), "api_key", ["replaces_id"], ["id"])
    _index_names_in_use("revoked_at IS NULL AND retires_at IS NULL")
    op.create_index("ix_api_key_member_id", "api_key", ["member_id"])
    op.create_index("ix_audit_event_target_id_id", "audit_event", ["target_id", "id"])
    op.create_index("ix_audit_event_actor_id_id", "audit_event", ["actor_id", "id"])
    op.create_table(
        "expiry_notice",
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_expiry_notice_key_id")),
        sa.PrimaryKeyConstraint("key_id", "days", name=op.f("pk_expiry_notice")),
    )
    op.create_table(
        "outgoing_mail",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("public_id", sa.String(length=40), nullable=False),
        sa.Column("recipient", sa.String(length=254), nullable=False),
        sa.Column("subject", sa.String(length=200), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("claimed_at", Moment(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outgoing_mail")),
        sa.UniqueConstraint("public_id", name=op.f("uq_outgoing_mail_public_id")),
    )
    with op.batch_alter_table("account", schema=None) as batch_op:
        batch_op.add_column(sa.Column("time_zone", sa.String(length=64), server_default="UTC", nullable=False))
        batch_op.add_column(sa.Column("clock", sa.String(length=2), server_default="24", nullable=False))
        batch_op.add_column(sa.Column("theme", sa.String(length=10), server_default="system", nullable=False))
        batch_op.add_column(sa.Column("page_rows", sa.Integer(), server_default="25", nullable=False))
        batch_op.add_column(sa.Column("has_shortcuts", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("account", schema=None) as batch_op:
        for column in ("has_shortcuts", "page_rows", "theme", "clock", "time_zone"):
            batch_op.drop_column(column)
    op.drop_table("outgoing_mail")
    op.drop_table("expiry_notice")
    op.drop_index("ix_audit_event_actor_id_id", "audit_event")
    op.drop_index("ix_audit_event_target_id_id", "audit_event")
    op.drop_index("ix_api_key_member_id", "api_key")
    op.drop_index("uq_api_key_name_in_use", "api_key")
    with op.batch_alter_table("api_key", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_api_key_replaces_id"), type_="foreignkey")
        batch_op.drop_constraint(batch_op.f("uq_api_key_replaces_id"), type_="unique")
        batch_op.drop_column("retires_at")
        batch_op.drop_column("rotated_at")
        batch_op.drop_column("replaces_id")
    _index_names_in_use("revoked_at IS NULL")

    op.drop_table("key_caller")
    op.drop_table("usage")
    with op.batch_alter_table("refused_request", schema=None) as batch_op:
        batch_op.drop_index("ix_refused_request_key_id_id")
        batch_op.drop_index(batch_op.f("ix_refused_request_at"))

    op.drop_table("refused_request")
    op.drop_table("first_request")
    with op.batch_alter_table("usage_batch", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_usage_batch_at"))

    op.drop_table("usage_batch")


def _index_names_in_use(condition: str) -> None:
    where = sa.text(condition)
    op.create_index(
        "uq_api_key_name_in_use",
        "api_key",
        ["member_id", "name_folded"],
        unique=True,
        sqlite_where=where,
        postgresql_where=where,
    )
