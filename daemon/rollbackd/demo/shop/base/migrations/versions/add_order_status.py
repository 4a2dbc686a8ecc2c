"""Where an order stands

Revision ID: add_order_status
Revises: create_orders
Create Date: 2026-03-17 13:02:00

"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "add_order_status"
down_revision = "create_orders"
branch_labels = None
depends_on = None

order_status = postgresql.ENUM(name="order_status", create_type=False)


def upgrade() -> None:
    op.execute("CREATE TYPE order_status AS ENUM ('placed', 'paid', 'shipped', 'cancelled')")
    op.add_column("orders", sa.Column("status", order_status, server_default="placed", nullable=False))


def downgrade() -> None:
    op.drop_column("orders", "status")
    op.execute("DROP TYPE order_status")
