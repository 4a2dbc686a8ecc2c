"""Keep each order's total, and fill it for the orders there are

Revision ID: fill_order_totals
Revises: index_orders
Create Date: 2026-05-11 11:11:00

"""

import sqlalchemy as sa
from alembic import op

revision = "fill_order_totals"
down_revision = "index_orders"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("total_cents", sa.BigInteger, nullable=True))
    op.execute(
        """
        UPDATE orders
           SET total_cents = coalesce(
               (SELECT sum(quantity::bigint * price_cents) FROM order_lines WHERE order_id = orders.id), 0)
        """
    )
    op.alter_column("orders", "total_cents", nullable=False, server_default="0")


def downgrade() -> None:
    op.drop_column("orders", "total_cents")
