"""Every order has a delivery window

Revision ID: require_delivery_window
Revises: add_delivery_window
Create Date: 2026-12-02 09:30:00

"""

from alembic import op

revision = "require_delivery_window"
down_revision = "add_delivery_window"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("orders", "delivery_window", nullable=False)


def downgrade() -> None:
    op.alter_column("orders", "delivery_window", nullable=True)
