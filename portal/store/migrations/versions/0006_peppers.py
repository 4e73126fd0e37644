"""Peppers: what tells whether a secret is the one that stored keys were hashed under.

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "pepper",
        sa.Column("id", sa.String(length=20), nullable=False),
        sa.Column("proof", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pepper"),
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_table("pepper")
