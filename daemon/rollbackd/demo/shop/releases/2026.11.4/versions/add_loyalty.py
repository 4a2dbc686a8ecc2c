"""Customers collect points and rise in tiers

Revision ID: add_loyalty
Revises: archive_products
Create Date: 2026-11-20 10:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "add_loyalty"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("customers", sa.Column("loyalty_tier", sa.Text, server_default="none", nullable=False))
    op.create_index("ix_customers_loyalty_tier", "customers", ["loyalty_tier"])
    op.create_table(
        "loyalty_events",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("customer_id", sa.BigInteger, nullable=False),
        sa.Column("points", sa.BigInteger, nullable=False),
        sa.Column("happened_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["customer_id"], ["customers.id"], name="fk_loyalty_events_customer"),
    )


def downgrade() -> None:
    op.drop_table("loyalty_events")
    op.drop_index("ix_customers_loyalty_tier", table_name="customers")
    op.drop_column("customers", "loyalty_tier")
