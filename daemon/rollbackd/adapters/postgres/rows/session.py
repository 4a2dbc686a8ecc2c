"""The session in the scratch database: its transactions, what its errors say, and what the server gives by itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from rollbackd.adapters.postgres.rows.tables import ForeignKey, Table

STATEMENT_TIMEOUT = "10s"
"""Where the connection has none: a trigger of the user's may never end."""


class UnfitError(Exception):
    """A table that takes no row of ours; the message is the reason."""


@asynccontextmanager
async def checked_transaction(
    connection: asyncpg.Connection, deferred: Sequence[ForeignKey] = ()
) -> AsyncIterator[None]:
    """A transaction whose constraints are checked at each statement, so that the savepoint of a row meets its faults.

    Those in `deferred` are checked at its end.
    """
    async with connection.transaction():
        names = ", ".join(key.sql_name for key in deferred)
        await connection.execute(
            "SET CONSTRAINTS ALL IMMEDIATE;"
            + (f"SET CONSTRAINTS {names} DEFERRED;" if names else "")
            + f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT}', true)"
            " WHERE current_setting('statement_timeout') = '0'"
        )
        yield
        if names:
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")


async def server_value(connection: asyncpg.Connection, table: Table, name: str) -> str | None:
    """What the server would give the column by itself, as text.

    Raises:
        UnfitError: the column is generated, and so known only once its row is there.
        asyncpg.PostgresError: the expression fails.
    """
    column = table.columns[name]
    expression = column.server or column.default or "NULL"
    if expression == "generated":
        raise UnfitError(f"the generated column {name} is referred to before it is there")
    text: str | None = await connection.fetchval(f"SELECT CAST({expression} AS {column.type_sql})::text")
    return text


def raise_if_lost(connection: asyncpg.Connection, error: Exception) -> None:
    """Raise the error where the connection is lost, as that is no property of the schema."""
    if connection.is_closed():
        raise error


def said(error: BaseException) -> str:
    """The first line of what an error says, or else its class."""
    return str(error).partition("\n")[0] or type(error).__name__
