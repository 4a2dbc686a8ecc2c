"""One customer for each e-mail address

Revision ID: unique_customer_email
Revises: archive_products
Create Date: 2026-12-01 09:00:00

"""

import sqlalchemy as sa
from alembic import op

revision = "unique_customer_email"
down_revision = "archive_products"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "customers", sa.Column("email_verified", sa.Boolean, server_default=sa.false(), nullable=False)
    )
    op.create_unique_constraint("uq_customers_email", "customers", ["email"])


def downgrade() -> None:
    op.drop_constraint("uq_customers_email", "customers", type_="unique")
    op.drop_column("customers", "email_verified")
