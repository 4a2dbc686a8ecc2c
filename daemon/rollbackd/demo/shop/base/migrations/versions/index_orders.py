"""Find the latest orders, and the orders of a customer

Revision ID: index_orders
Revises: create_order_lines
Create Date: 2026-04-21 15:20:00

"""

from alembic import op

revision = "index_orders"
down_revision = "create_order_lines"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_orders_placed_at", "orders", ["placed_at"])
    op.create_index("ix_orders_customer_id", "orders", ["customer_id"])


def downgrade() -> None:
    op.drop_index("ix_orders_customer_id", table_name="orders")
    op.drop_index("ix_orders_placed_at", table_name="orders")
