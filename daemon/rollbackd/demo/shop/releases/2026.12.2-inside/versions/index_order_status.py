"""Find the orders to be shipped, and let no order cost nothing

Revision ID: index_order_status
Revises: archive_products
Create Date: 2026-12-03 09:00:00

"""

from alembic import op

revision = "index_order_status"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_orders_status_placed_at", "orders", ["status", "placed_at"], postgresql_concurrently=True
        )
    op.create_check_constraint("ck_orders_total_positive", "orders", "total_cents > 0")


def downgrade() -> None:
    op.drop_constraint("ck_orders_total_positive", "orders", type_="check")
    with op.get_context().autocommit_block():
        op.drop_index("ix_orders_status_placed_at", table_name="orders", postgresql_concurrently=True)
