"""Reviews are read by a person before they are shown

Revision ID: moderate_reviews
Revises: create_reviews
Create Date: 2026-07-20 16:45:00

"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "moderate_reviews"
down_revision = "create_reviews"
branch_labels = None
depends_on = None

review_state = postgresql.ENUM(name="review_state", create_type=False)


def upgrade() -> None:
    op.execute("CREATE TYPE review_state AS ENUM ('waiting', 'shown', 'rejected')")
    op.add_column("reviews", sa.Column("state", review_state, server_default="waiting", nullable=False))
    op.create_index("ix_reviews_waiting", "reviews", ["id"], postgresql_where=sa.text("state = 'waiting'"))


def downgrade() -> None:
    op.drop_index("ix_reviews_waiting", table_name="reviews")
    op.drop_column("reviews", "state")
    op.execute("DROP TYPE review_state")
