"""Completing tables once all have rows: values for columns that are empty, and rows that show what the others don't."""

from collections.abc import Mapping, Sequence

import asyncpg

from rollbackd.adapters.postgres.rows.options import Options
from rollbackd.adapters.postgres.rows.session import UnfitError, checked_transaction, raise_if_lost, said
from rollbackd.adapters.postgres.rows.shapes import Cell, Shape
from rollbackd.adapters.postgres.rows.showing import Account, Show, Shown, survey
from rollbackd.adapters.postgres.rows.tables import Table
from rollbackd.adapters.postgres.rows.writing import Writing
from rollbackd.core.made_up import made_up, wide
from rollbackd.core.schema import TableName, quoted

MOST_EXTRA = 4
"""Rows a table gets beyond those asked for, where those can't show everything (NULL, a default, two that are the same)."""


class Completing:
    """Completes one table after another, and keeps their accounts up to date."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        options: Options,
        accounts: Mapping[TableName, Account],
        rows: int,
    ) -> None:
        self._connection = connection
        self._options = options
        self._writing = Writing(connection)
        self._accounts = accounts
        self._rows = rows

    async def complete(self, table: Table) -> None:
        """Have the table's rows show what they don't yet. A column that stays without any value is named in its account."""
        account = self._accounts[table.name]
        if account.reasons and not account.added:
            return
        before = (account.rows, account.added, account.reasons)
        try:
            async with checked_transaction(self._connection):
                await self._survey(table)
                if account.rows < self._rows and not account.reasons:
                    account.reasons = ("rows that went in aren't there: a rule or a trigger moved them",)
                    account.added = min(account.added, account.rows)
                if account.rows and account.lacking:
                    await self._show_more(table)
        except (UnfitError, asyncpg.PostgresError) as error:
            raise_if_lost(self._connection, error)
            account.rows, account.added, account.reasons = before
            account.reasons = (*account.reasons, said(error))

    async def _show_more(self, table: Table) -> None:
        account = self._accounts[table.name]
        try:
            shape = await self._options.shape(table)
        except UnfitError:
            return  # rows of somebody else's, who knew better what to put there
        reason = await self._fill_columns(shape)
        if account.rows >= self._rows:
            await self._add_extra_rows(table)
        if still := self._empty(shape):
            account.reasons = (*account.reasons, f"no value could be given to {', '.join(still)}: {reason}")

    def _empty(self, shape: Shape) -> list[str]:
        """Columns that are NULL in all rows and needn't be."""
        lacking = self._accounts[shape.table.name].lacking
        return [each.column for each in lacking if each.what is Show.VALUE and shape.values_of(each.column)]

    async def _fill_columns(self, shape: Shape) -> str:
        """Give columns that are NULL in all rows values, in all rows but the last; the first reason why one wasn't."""
        empty = self._empty(shape)
        if not empty:
            return ""
        reasons = []
        for number in range(max(1, min(self._accounts[shape.table.name].rows, self._rows) - 1)):
            # All at once, and one by one if that doesn't do.
            for names in (empty, *([name] for name in empty if len(empty) > 1)):
                write = self._writing.updating(shape.table, names)
                reason = await self._writing.attempts(shape, number, write, valued=True)
                if not reason and names is empty:
                    break
                reasons.append(reason)
        await self._survey(shape.table)
        return next((reason for reason in reasons if reason), "")

    async def _add_extra_rows(self, table: Table) -> None:
        account = self._accounts[table.name]
        for _ in range(MOST_EXTRA):
            shape = await self._options.shape(table)
            asked = await self._asked(shape, account.lacking)
            if not asked:
                return
            rows, before = account.rows, account.lacking
            try:
                async with self._connection.transaction():
                    write = self._writing.inserting(table, {})
                    reason = await self._writing.attempts(shape, rows, write, asked=asked)
                    await self._survey(table)
                    if reason or len(account.lacking) >= len(before):
                        raise UnfitError(reason)  # a row that shows nothing new goes again
            except UnfitError:
                account.rows, account.lacking = rows, before
                return
            account.added += 1

    async def _asked(self, shape: Shape, lacking: Sequence[Shown]) -> dict[str, Cell]:
        """For each column that lacks some sight, the value that would show it."""
        row = self._accounts[shape.table.name].rows
        asked: dict[str, Cell] = {}
        for each in lacking:
            column = shape.table.columns[each.column]
            if each.column in asked:
                continue
            match each.what:
                case Show.VALUE:
                    if values := shape.values_of(each.column):
                        asked[each.column] = values[0]
                case Show.NULL:
                    asked[each.column] = None
                case Show.LABEL:
                    asked[each.column] = each.label
                case Show.WIDE:
                    asked[each.column] = made_up(column.kind, wide(row))
                case Show.SHARED:
                    name = quoted(each.column)
                    text = await self._connection.fetchval(
                        f"SELECT min({name}::text) FROM {shape.table.source()}"
                    )
                    if text is not None:
                        asked[each.column] = text
        return asked

    async def _survey(self, table: Table) -> None:
        await survey(self._connection, table, self._accounts[table.name], self._rows)
