"""What was ordered

Revision ID: create_order_lines
Revises: add_order_status
Create Date: 2026-03-18 09:30:00

"""

import sqlalchemy as sa
from alembic import op

revision = "create_order_lines"
down_revision = "add_order_status"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "order_lines",
        sa.Column("order_id", sa.BigInteger, nullable=False),
        sa.Column("line_number", sa.SmallInteger, nullable=False),
        sa.Column("product_id", sa.BigInteger, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("price_cents", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("order_id", "line_number", name="order_lines_pkey"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"], name="fk_order_lines_order", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name="fk_order_lines_product"),
        sa.CheckConstraint("quantity > 0", name="ck_order_lines_quantity_positive"),
    )


def downgrade() -> None:
    op.drop_table("order_lines")
