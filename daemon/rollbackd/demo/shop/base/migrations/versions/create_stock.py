"""How many of each product are there, and since when

Revision ID: create_stock
Revises: fill_order_totals
Create Date: 2026-07-13 10:05:00

"""

import sqlalchemy as sa
from alembic import op

revision = "create_stock"
down_revision = "fill_order_totals"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "stock",
        sa.Column("product_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("on_hand", sa.Integer, server_default="0", nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name="fk_stock_product"),
    )
    op.execute(
        """
        CREATE FUNCTION stock_counted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.counted_at := now();
            RETURN NEW;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER stock_counted BEFORE UPDATE OF on_hand ON stock
            FOR EACH ROW EXECUTE FUNCTION stock_counted()
        """
    )


def downgrade() -> None:
    op.drop_table("stock")
    op.execute("DROP FUNCTION stock_counted()")
