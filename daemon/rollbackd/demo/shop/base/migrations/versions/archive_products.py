"""Products can leave the shop without leaving the orders

Revision ID: archive_products
Revises: merge_reviews_and_stock
Create Date: 2026-09-14 14:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "archive_products"
down_revision = "merge_reviews_and_stock"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("products", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_products_offered", "products", ["title"], postgresql_where=sa.text("archived_at IS NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_products_offered", table_name="products")
    op.drop_column("products", "archived_at")
