"""When an order may be delivered

Revision ID: add_delivery_window
Revises: archive_products
Create Date: 2026-12-02 09:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "add_delivery_window"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "delivery_windows",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("from_hour", sa.SmallInteger, nullable=False),
        sa.Column("to_hour", sa.SmallInteger, nullable=False),
    )
    op.execute("INSERT INTO delivery_windows VALUES ('morning', 8, 12), ('evening', 17, 21)")
    op.add_column("orders", sa.Column("delivery_window", sa.Text, nullable=True))
    op.create_foreign_key(
        "fk_orders_delivery_window", "orders", "delivery_windows", ["delivery_window"], ["name"]
    )


def downgrade() -> None:
    op.drop_constraint("fk_orders_delivery_window", "orders", type_="foreignkey")
    op.drop_column("orders", "delivery_window")
    op.drop_table("delivery_windows")
