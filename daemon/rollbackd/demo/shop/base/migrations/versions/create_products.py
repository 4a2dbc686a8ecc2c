"""The products

Revision ID: create_products
Revises: create_customers
Create Date: 2026-03-02 10:40:00

"""

import sqlalchemy as sa
from alembic import op

revision = "create_products"
down_revision = "create_customers"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "products",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("price_cents", sa.Integer, nullable=False),
        sa.UniqueConstraint("sku", name="uq_products_sku"),
        sa.CheckConstraint("price_cents > 0", name="ck_products_price_positive"),
    )


def downgrade() -> None:
    op.drop_table("products")
