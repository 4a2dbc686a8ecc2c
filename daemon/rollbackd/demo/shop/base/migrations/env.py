import os
from logging.config import fileConfig

from alembic import context
from sqlalchemy import create_engine, make_url, pool

config = context.config

if config.config_file_name is not None:
    fileConfig(config.config_file_name)

target_metadata = None

url = make_url(os.environ["SHOP_DATABASE_URL"]).set(drivername="postgresql+psycopg")
transaction_per_migration = config.get_main_option("transaction_per_migration", "false") == "true"


def run_migrations_offline() -> None:
    """Write the migrations' SQL to standard output, without a database."""
    context.configure(
        url=url,
        target_metadata=target_metadata,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
        transaction_per_migration=transaction_per_migration,
    )

    with context.begin_transaction():
        context.run_migrations()


def run_migrations_online() -> None:
    """Run the migrations on the shop's database."""
    connectable = create_engine(url, poolclass=pool.NullPool)

    with connectable.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=target_metadata,
            transaction_per_migration=transaction_per_migration,
        )

        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_migrations_offline()
else:
    run_migrations_online()
