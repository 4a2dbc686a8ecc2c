"""What customers say about products

Revision ID: create_reviews
Revises: fill_order_totals
Create Date: 2026-07-06 09:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "create_reviews"
down_revision = "fill_order_totals"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reviews",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("customer_id", sa.BigInteger, nullable=False),
        sa.Column("stars", sa.SmallInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=True),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name="fk_reviews_product"),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="fk_reviews_customer"),
        sa.CheckConstraint("stars BETWEEN 1 AND 5", name="ck_reviews_stars"),
    )


def downgrade() -> None:
    op.drop_table("reviews")
