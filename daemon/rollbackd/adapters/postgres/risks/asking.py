"""Asking the database: one short, read-only transaction a query, within what is left of the time."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

PLANNING_S = 2.0
"""What asking the planner may take beyond the budget, in all."""
CATALOG_S = 10.0
"""What each catalog query may take, whatever the budget."""

_LOST_CONNECTION = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)
_DOES_NOT_FIT = (
    asyncpg.UndefinedFunctionError,
    asyncpg.CannotCoerceError,
    asyncpg.DatatypeMismatchError,
)


class UnknownError(Exception):
    """Why something couldn't be counted."""


class OutOfTimeError(UnknownError):
    """The time for counting is used up."""

    def __init__(self) -> None:
        super().__init__("the time for counting is used up")


class RefusedError(UnknownError):
    """A value made the query fail."""


class DoesNotFitError(UnknownError):
    """The types have no such cast or comparison."""


class Asking:
    """Asks one thing after another, each read only, with a timeout of what is left until a moment of `time.monotonic()`.

    Raises:
        UnknownError: it couldn't be found out, for the reason that the message gives.
        asyncpg.PostgresError: the connection is lost.
    """

    def __init__(self, connection: asyncpg.Connection, until: float) -> None:
        self._connection = connection
        self._until = until
        self._estimates_until = until + PLANNING_S
        self._lock_s = max(0.2, (until - time.monotonic()) / 5)
        self._aside_s = max(0.2, (until - time.monotonic()) / 10)

    async def rows(self, query: str, *arguments: object, aside: bool = False) -> list[asyncpg.Record]:
        """The rows of a query, within the budget; what is asked `aside` may take a small part of it only."""
        left_s = self._until - time.monotonic()
        left_s = min(left_s, self._aside_s) if aside else left_s
        async with self._short(left_s):
            found: list[asyncpg.Record] = await self._connection.fetch(query, *arguments, timeout=left_s + 1)
            return found

    async def catalog_rows(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """The rows of a catalog query, which are needed even to say what is unknown."""
        async with self._short(CATALOG_S):
            found: list[asyncpg.Record] = await self._connection.fetch(
                query, *arguments, timeout=CATALOG_S + 1
            )
            return found

    async def estimate(self, query: str) -> int:
        """How many rows the planner thinks that a query has."""
        left_s = min(self._estimates_until - time.monotonic(), PLANNING_S / 4)
        async with self._short(left_s):
            plan = await self._connection.fetchval(f"EXPLAIN (FORMAT JSON) {query}", timeout=left_s + 1)
        return int(json.loads(plan)[0]["Plan"]["Plan Rows"])

    async def type_of(self, query: str) -> int:
        """The OID of the type of a query's only column; the query isn't run."""
        left_s = self._until - time.monotonic()
        async with self._short(left_s):
            statement = await self._connection.prepare(query, timeout=left_s + 1)
            return int(statement.get_attributes()[0].type.oid)

    @asynccontextmanager
    async def _short(self, left_s: float) -> AsyncIterator[None]:
        if left_s <= 0:
            raise OutOfTimeError
        inside = self._connection.is_in_transaction()
        # Rolled back, also as a savepoint: the tables' locks are given back at once.
        transaction = self._connection.transaction(readonly=not inside)
        await transaction.start()
        try:
            # Without row_security a hidden row is an error, and not a row that nobody counts.
            await self._connection.execute(
                "SET LOCAL transaction_read_only = on; SET LOCAL row_security = off;"
                f" SET LOCAL statement_timeout = '{max(1, int(left_s * 1000))}ms';"
                f" SET LOCAL lock_timeout = '{max(1, int(min(left_s, self._lock_s) * 1000))}ms'"
            )
            yield
        except _LOST_CONNECTION:
            raise
        except (asyncpg.QueryCanceledError, TimeoutError):
            raise OutOfTimeError from None
        except asyncpg.LockNotAvailableError:
            raise UnknownError("another session holds a lock on it") from None
        except asyncpg.UndefinedTableError as error:
            raise UnknownError(f"it isn't there: {error}") from None
        except _DOES_NOT_FIT as error:
            raise DoesNotFitError(str(error)) from None
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise RefusedError(str(error)) from None
        except asyncpg.PostgresError as error:
            raise UnknownError(str(error)) from None
        finally:
            if not self._connection.is_closed():
                await transaction.rollback()
