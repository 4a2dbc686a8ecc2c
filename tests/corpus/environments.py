"""The env.py files of the corpus, as people have them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One env.py, what lies beside it, and what the target's `migrations` section has to say for it."""

    env_py: str
    address: str = "@URL@"
    """What the ini file says as sqlalchemy.url."""
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    own_process: bool = False
    """Whether plain Alembic needs a process of its own here: for modules loaded by name, a folder, or a command line."""


PLAIN = """\
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config


def run_migrations_online():
    connectable = engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with connectable.connect() as connection:
        context.configure(connection=connection, target_metadata=None)
        with context.begin_transaction():
            context.run_migrations()


run_migrations_online()
"""

# Engines of one's own, for env.py files that differ in nothing else.
BY_ENGINE = """\
{imports}
from alembic import context
from sqlalchemy import create_engine, pool

{engine}

with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""

ASYNC = """\
import asyncio

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

config = context.config


def do_run_migrations(connection):
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


async def run_async_migrations():
    connectable = async_engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    async with connectable.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await connectable.dispose()


asyncio.run(run_async_migrations())
"""

# As in Alembic's cookbook: one history, applied to each tenant's schema, each with its version table.
TENANTS = """\
from alembic import context
from sqlalchemy import create_engine, pool, text

engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)

for tenant in ("tenant_a", "tenant_b"):
    with engine.connect() as connection:
        connection.execute(text(f"SET search_path TO {tenant}"))
        connection.commit()
        connection.dialect.default_schema_name = tenant
        context.configure(connection=connection, version_table_schema=tenant)
        with context.begin_transaction():
            context.run_migrations()
"""

SHOP_SETTINGS = """\
import os

DATABASE_URL = "postgresql+psycopg://{}:{}@{}:{}/{}".format(
    *(os.environ[f"SHOP_DB_{part}"] for part in ("USER", "PASSWORD", "HOST", "PORT", "NAME"))
)
"""

NOWHERE = "postgresql+psycopg://nobody@nowhere.invalid/nothing"

ENVIRONMENTS = {
    # The generic template. Nothing commits after `begin_transaction()` is through, so a revision that commits by itself
    # takes the stamp along.
    "plain": Environment(env_py=PLAIN),
    "no_commit": Environment(env_py=PLAIN),
    "own_begin": Environment(env_py=PLAIN.replace("connectable.connect()", "connectable.begin()")),
    "per_migration": Environment(
        env_py=PLAIN.replace("target_metadata=None", "transaction_per_migration=True")
    ),
    "autocommit": Environment(env_py=PLAIN.replace("NullPool\n", 'NullPool, isolation_level="AUTOCOMMIT"\n')),
    "version_table": Environment(
        env_py=PLAIN.replace("target_metadata=None", 'version_table="moves", version_table_schema="meta"'),
        settings={"version_table": "moves", "version_table_schema": "meta"},
    ),
    "search_path": Environment(
        env_py=PLAIN.replace("NullPool\n", 'NullPool, connect_args={"options": "-c search_path=shop"}\n'),
        settings={"version_table_schema": "shop"},
    ),
    "async": Environment(env_py=ASYNC, settings={"driver": "asyncpg"}),
    "tenants": Environment(env_py=TENANTS, settings={"version_table_schema": "tenant_a"}),
    "option": Environment(env_py=PLAIN, address=NOWHERE, settings={"url": "option"}),
    "settings": Environment(
        own_process=True,
        address=NOWHERE,
        env_py=BY_ENGINE.format(
            imports="from shop.settings import DATABASE_URL\n",
            engine="engine = create_engine(DATABASE_URL, poolclass=pool.NullPool)",
        ),
        files={"shop/__init__.py": "", "shop/settings.py": SHOP_SETTINGS},
        settings={
            "environment": {
                "SHOP_DB_USER": "@USER@",
                "SHOP_DB_PASSWORD": "@PASSWORD@",
                "SHOP_DB_HOST": "@HOST@",
                "SHOP_DB_PORT": "@PORT@",
                "SHOP_DB_NAME": "@DATABASE@",
            }
        },
    ),
    "environment": Environment(
        address=NOWHERE,
        env_py=BY_ENGINE.format(
            imports="import os\n",
            engine='engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)',
        ),
        settings={"url": "environment:DATABASE_URL"},
    ),
    # It connects by itself, to wherever the environment says: that can be led elsewhere.
    "creator": Environment(
        address=NOWHERE,
        env_py=BY_ENGINE.format(
            imports="import os\n\nimport psycopg\n",
            engine="def connect():\n"
            '    return psycopg.connect(os.environ["DATABASE_URL"].replace("+psycopg", ""))\n\n\n'
            'engine = create_engine("postgresql+psycopg://", creator=connect)',
        ),
        settings={"url": "environment:DATABASE_URL"},
    ),
    # The same with an address that is written down: a rehearsal must not follow it.
    "own_creator": Environment(
        address=NOWHERE,
        env_py=BY_ENGINE.format(
            imports="import psycopg\n",
            engine='engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect("@LIBPQ@"))',
        ),
    ),
    # Beside Alembic's connection it opens one with the driver, and writes.
    "raw_driver": Environment(
        env_py="import psycopg\n\n"
        'with psycopg.connect("@LIBPQ@") as other:\n'
        "    other.execute(\"INSERT INTO visit (who) VALUES ('env.py')\")\n\n" + PLAIN
    ),
    # Asks a program for the address, as one asks a vault.
    "subprocess": Environment(
        own_process=True,
        address=NOWHERE,
        env_py=BY_ENGINE.format(
            imports="import subprocess\nimport sys\n",
            engine='said = subprocess.run([sys.executable, "address.py"], stdout=subprocess.PIPE, text=True, check=True)\n'
            "engine = create_engine(said.stdout.strip(), poolclass=pool.NullPool)",
        ),
        files={"address.py": 'print("@URL@")\n'},
    ),
    "x_argument": Environment(
        own_process=True,
        address="postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/nowhere",
        env_py=BY_ENGINE.format(
            imports="",
            engine='database = context.get_x_argument(as_dictionary=True)["database"]\n'
            'url = context.config.get_main_option("sqlalchemy.url")\n'
            'engine = create_engine(url.replace("/nowhere", f"/{database}"), poolclass=pool.NullPool)',
        ),
        settings={"x": ("database=@DATABASE@",)},
    ),
}
