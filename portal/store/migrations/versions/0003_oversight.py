"""Oversight: the audit log's hash chain, counts of refusals, review marks, policy, password resets.

Revision: 0003, after 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from portal.rules.chain import BEGINNING, link
from portal.store.database import Moment

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "audit_head",
        sa.Column("chain", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_head")),
    )
    op.create_table(
        "refusal_count",
        sa.Column("chain", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("who", sa.String(length=45), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("hour", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("told", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("chain", "who", "action", "hour", name=op.f("pk_refusal_count")),
    )
    op.create_table(
        "key_review",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("finding", sa.String(length=20), nullable=False),
        sa.Column("note", sa.String(length=140), nullable=False),
        sa.Column("by_id", sa.Integer(), nullable=False),
        sa.Column("at", Moment(), nullable=False),
        sa.Column("until", Moment(), nullable=False),
        sa.ForeignKeyConstraint(["by_id"], ["member.id"], name=op.f("fk_key_review_by_id")),
        sa.ForeignKeyConstraint(["key_id"], ["api_key.id"], name=op.f("fk_key_review_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_review")),
    )
    with op.batch_alter_table("key_review", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_key_review_key_id"), ["key_id"], unique=False)
    op.create_table(
        "password_reset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("created_at", Moment(), nullable=False),
        sa.Column("expires_at", Moment(), nullable=False),
        sa.Column("used_at", Moment(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_password_reset_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_reset")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_password_reset_token_hash")),
    )
    with op.batch_alter_table("password_reset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_password_reset_account_id"), ["account_id"], unique=False)
    with op.batch_alter_table("workspace", schema=None) as batch_op:
        batch_op.add_column(sa.Column("max_key_days", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("admins_own_live", sa.Boolean(), server_default=sa.true(), nullable=False))
    with op.batch_alter_table("access", schema=None) as batch_op:
        batch_op.add_column(sa.Column("granted_by_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("granted_at", Moment(), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_access_granted_by_id"), "member", ["granted_by_id"], ["id"])
    with op.batch_alter_table("invitation", schema=None) as batch_op:
        batch_op.add_column(sa.Column("access", sa.JSON(), server_default="{}", nullable=False))
        batch_op.add_column(sa.Column("invited_by_id", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("withdrawn_at", Moment(), nullable=True))
        batch_op.create_foreign_key(batch_op.f("fk_invitation_invited_by_id"), "member", ["invited_by_id"], ["id"])
        batch_op.create_index(batch_op.f("ix_invitation_workspace_id"), ["workspace_id"], unique=False)
    with op.batch_alter_table("invitation", schema=None) as batch_op:
        batch_op.alter_column("access", server_default=None)
    with op.batch_alter_table("refused_request", schema=None) as batch_op:
        batch_op.add_column(sa.Column("held", sa.Text(), server_default="", nullable=False))
    with op.batch_alter_table("refused_request", schema=None) as batch_op:
        batch_op.alter_column("held", server_default=None)
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.add_column(sa.Column("chain", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("seq", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("hash", sa.LargeBinary(length=32), nullable=True))
    _chain_what_stands()
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.alter_column("chain", existing_type=sa.Integer(), nullable=False)
        batch_op.alter_column("seq", existing_type=sa.Integer(), nullable=False)
        batch_op.alter_column("hash", existing_type=sa.LargeBinary(length=32), nullable=False)
        batch_op.create_unique_constraint(batch_op.f("uq_audit_event_chain_seq"), ["chain", "seq"])


def _chain_what_stands() -> None:
    """Put the rows that there are into their chains, oldest first."""
    connection = op.get_bind()
    events = sa.Table(
        "audit_event", sa.MetaData(), sa.Column("at", Moment()), sa.Column("details", sa.JSON()),
        autoload_with=connection,
    )  # fmt: skip
    heads: dict[int, tuple[int, bytes]] = {0: (0, BEGINNING)}
    for row in connection.execute(sa.select(events).order_by(events.c.id)).mappings().all():
        content: dict[str, Any] = {name: value for name, value in row.items() if name not in ("id", "hash")}
        chain = content["workspace_id"] or 0
        seq, previous = heads.get(chain, (0, BEGINNING))
        content |= {"chain": chain, "seq": seq + 1}
        made = link(previous, content)
        heads[chain] = (seq + 1, made)
        values = {"chain": chain, "seq": seq + 1, "hash": made}
        connection.execute(events.update().where(events.c.id == row["id"]).values(values))
    head_table = sa.table("audit_head", sa.column("chain"), sa.column("seq"), sa.column("hash"))
    op.bulk_insert(head_table, [{"chain": chain, "seq": seq, "hash": made} for chain, (seq, made) in heads.items()])


def downgrade() -> None:
    """Take it back."""
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_audit_event_chain_seq"), type_="unique")
        for column in ("hash", "seq", "chain"):
            batch_op.drop_column(column)
    with op.batch_alter_table("refused_request", schema=None) as batch_op:
        batch_op.drop_column("held")
    with op.batch_alter_table("invitation", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_invitation_workspace_id"))
        batch_op.drop_constraint(batch_op.f("fk_invitation_invited_by_id"), type_="foreignkey")
        for column in ("withdrawn_at", "invited_by_id", "access"):
            batch_op.drop_column(column)
    with op.batch_alter_table("access", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_access_granted_by_id"), type_="foreignkey")
        batch_op.drop_column("granted_at")
        batch_op.drop_column("granted_by_id")
    with op.batch_alter_table("workspace", schema=None) as batch_op:
        batch_op.drop_column("admins_own_live")
        batch_op.drop_column("max_key_days")
    for table in ("password_reset", "key_review", "refusal_count", "audit_head"):
        op.drop_table(table)
