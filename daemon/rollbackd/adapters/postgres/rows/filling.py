"""Filling the tables of a scratch database: the way in, and the pass that gives each table its rows."""

import itertools
from collections.abc import Collection, Mapping, Sequence

import asyncpg
import msgspec

from rollbackd.adapters.postgres.rows.completing import Completing
from rollbackd.adapters.postgres.rows.options import Options
from rollbackd.adapters.postgres.rows.order import in_groups, within_a_circle
from rollbackd.adapters.postgres.rows.session import UnfitError, checked_transaction, raise_if_lost, said
from rollbackd.adapters.postgres.rows.shapes import Shape
from rollbackd.adapters.postgres.rows.showing import Account, survey
from rollbackd.adapters.postgres.rows.tables import ForeignKey, Table, read_tables
from rollbackd.adapters.postgres.rows.texts import limited_texts
from rollbackd.adapters.postgres.rows.writing import Writing
from rollbackd.core.schema import TableName


class Filled(msgspec.Struct, frozen=True, kw_only=True):
    """One table after `fill_tables`."""

    table: TableName
    rows: int
    """There now."""
    added: int
    reason: str = ""
    """Why there are fewer rows than wanted, or a column without any value; empty if all is well."""


async def fill_tables(
    connection: asyncpg.Connection, *, rows: int = 3, skip: frozenset[TableName] = frozenset()
) -> tuple[Filled, ...]:
    """See to it that every user table holds at least `rows` rows; sorted by table.

    Rows that are there stay. A column that is NULL in all of them gets values in some, and a table whose rows don't show
    what its columns may hold (NULL, a label, a text as long as allowed, the same value twice) gets a few more
    (`completing.MOST_EXTRA`). Tables that can't be filled say why; only a lost connection raises. Called outside of a
    transaction.
    """
    tables = await read_tables(connection, skip)
    limited = await limited_texts(connection, tables.values())
    return await _Filling(connection, tables, limited, rows).fill()


class _Filling:
    """One call of `fill_tables`."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        tables: Mapping[TableName, Table],
        limited: Mapping[str, tuple[str, ...]],
        rows: int,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._rows = rows
        self._accounts = {name: Account() for name, table in tables.items() if table.wanted}
        self._options = Options(connection, tables, limited, rows)
        self._writing = Writing(connection)

    async def fill(self) -> tuple[Filled, ...]:
        """Parents first; then what only works when all have rows."""
        groups = [[t for t in group if t.wanted] for group in in_groups(self._tables)]
        for group in groups:
            await self._fill_group(group)
        completing = Completing(self._connection, self._options, self._accounts, self._rows)
        for table in itertools.chain.from_iterable(groups):
            await completing.complete(table)
        return tuple(
            Filled(table=name, rows=a.rows, added=a.added, reason="; ".join(a.reasons))
            for name, a in sorted(self._accounts.items())
        )

    async def _fill_group(self, group: Sequence[Table]) -> None:
        short = [table for table in group if await self._is_short(table)]
        if not short:
            return
        circular = _circular(short)
        try:
            async with checked_transaction(self._connection, circular):
                for table in within_a_circle(short):
                    await self._insert_rows(table, {key.name for key in circular})
        except asyncpg.PostgresError as error:
            raise_if_lost(self._connection, error)
            for table in short:
                account = self._accounts[table.name]
                account.rows, account.added = account.rows - account.added, 0
                account.reasons = (*account.reasons, said(error))
        self._options.forget_promised()

    async def _is_short(self, table: Table) -> bool:
        """Whether the table lacks rows; one that can't be read gets none."""
        account = self._accounts[table.name]
        try:
            await survey(self._connection, table, account, self._rows)
        except asyncpg.PostgresError as error:
            raise_if_lost(self._connection, error)
            account.reasons = (said(error),)
            return False
        return account.rows < self._rows

    async def _insert_rows(self, table: Table, circular: Collection[str]) -> None:
        account = self._accounts[table.name]
        refers_to_itself = any(key.parent == table.name for key in table.keys)
        shape: Shape | None = None
        try:
            while account.rows < self._rows:
                if shape is None or refers_to_itself:
                    shape = await self._options.shape(table, circular)
                fixed = self._options.take_promised(table.name)
                reason = await self._writing.attempts(
                    shape, account.rows, self._writing.inserting(table, fixed)
                )
                if reason:
                    raise UnfitError(reason)
                account.rows += 1
                account.added += 1
        except UnfitError as unfit:
            account.reasons = (str(unfit),)


def _circular(tables: Sequence[Table]) -> list[ForeignKey]:
    """The foreign keys among tables in a circle that can wait for the end of the transaction, and have to."""
    names = {table.name for table in tables}
    return [
        key
        for table in tables
        for key in table.keys
        if key.deferrable and key.parent in names - {table.name} and table.required(key)
    ]
