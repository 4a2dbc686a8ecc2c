"""Reviews and stock come together

Revision ID: merge_reviews_and_stock
Revises: moderate_reviews, create_stock
Create Date: 2026-08-03 09:12:00

"""

revision = "merge_reviews_and_stock"
down_revision = ("moderate_reviews", "create_stock")
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass


def downgrade() -> None:
    pass
