"""The orders of customers

Revision ID: create_orders
Revises: create_products
Create Date: 2026-03-03 08:55:00

"""

import sqlalchemy as sa
from alembic import op

revision = "create_orders"
down_revision = "create_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("customer_id", sa.BigInteger, nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="fk_orders_customer"),
    )


def downgrade() -> None:
    op.drop_table("orders")
