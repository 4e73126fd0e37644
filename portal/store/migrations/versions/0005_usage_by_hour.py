"""Usage by hour: old counts are found without reading all of them.

Revision: 0005, after 0004
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_index("ix_usage_hour", "usage", ["hour"])


def downgrade() -> None:
    """Take it back."""
    op.drop_index("ix_usage_hour", table_name="usage")
