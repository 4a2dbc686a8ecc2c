"""Orders have a priority, and people can leave notes on them

Revision ID: add_priority
Revises: archive_products
Create Date: 2026-11-20 09:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "add_priority"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("priority", sa.Integer, server_default="0", nullable=False))
    op.create_index("ix_orders_priority", "orders", ["priority"])
    op.create_table(
        "order_notes",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("order_id", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_order_notes_order", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("order_notes")
    op.drop_index("ix_orders_priority", table_name="orders")
    op.drop_column("orders", "priority")
