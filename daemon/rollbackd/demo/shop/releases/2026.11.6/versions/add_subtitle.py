"""Products have a second line

Revision ID: add_subtitle
Revises: archive_products
Create Date: 2026-11-21 09:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "add_subtitle"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "products",
        sa.Column("subtitle", sa.Text, nullable=True, comment="The secound line, below the title"),
    )


def downgrade() -> None:
    op.drop_column("products", "subtitle")
