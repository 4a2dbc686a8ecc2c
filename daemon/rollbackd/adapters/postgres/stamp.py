"""Alembic's version table in a database: the guarded one, a copy of it, a restored backup."""

from collections.abc import Iterable

import asyncpg

from rollbackd.core.schema import quoted
from rollbackd.settings import Migrations


def version_table_sql(migrations: Migrations) -> str:
    """The version table's name, quoted; without a schema where the search path finds it."""
    table, schema = quoted(migrations.version_table), migrations.version_table_schema
    return f"{quoted(schema)}.{table}" if schema else table


async def read_heads(connection: asyncpg.Connection, version_table: str) -> tuple[str, ...]:
    """The rows of the version table, sorted; empty where the table isn't there yet.

    Raises:
        asyncpg.PostgresError: when it can't be read.
    """
    if await connection.fetchval("SELECT to_regclass($1)", version_table) is None:
        return ()
    rows = await connection.fetch(f"SELECT version_num FROM {version_table} ORDER BY 1")
    return tuple(row[0] for row in rows)


async def write_heads(connection: asyncpg.Connection, version_table: str, heads: Iterable[str]) -> None:
    """Stamp a database whose version table is empty.

    Raises:
        asyncpg.PostgresError: when it can't be written.
    """
    await connection.executemany(f"INSERT INTO {version_table} VALUES ($1)", [(head,) for head in heads])
