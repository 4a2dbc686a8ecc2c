"""Writing a row: attempts with ever other values, each in a savepoint, until the database takes one."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

import asyncpg

from rollbackd.adapters.postgres.rows.session import UnfitError, raise_if_lost, said, server_value
from rollbackd.adapters.postgres.rows.shapes import Cell, Left, Mood, Shape
from rollbackd.adapters.postgres.rows.tables import Table
from rollbackd.core.schema import quoted

MOST_ATTEMPTS = 24
"""Attempts at one row. An error that names no constraint costs three: varying the values seldom mends it."""

Write = Callable[[Mapping[str, Cell]], Awaitable[None]]
"""Writes a row of such cells, by column; raises `UnfitError` or what the database says."""


class Writing:
    """Writes rows over one connection, within a transaction of the caller's."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def attempts(
        self,
        shape: Shape,
        row: int,
        write: Write,
        *,
        asked: Mapping[str, Cell] | None = None,
        valued: bool = False,
    ) -> str:
        """Try until a row is taken; the reason why none was, or nothing.

        `row` is its number, `asked` names values that it should have, and with `valued` it has no NULL and no default.
        """
        steps: dict[str, int] = {}
        misses: Counter[tuple[str, ...]] = Counter()
        tried = set()
        reason = ""
        attempt = 0
        while attempt < MOST_ATTEMPTS:
            cells = shape.cells(row, Mood.at(attempt), steps, asked, valued)
            blamed: tuple[str, ...] = ()
            attempt += 1
            if (same := tuple(cells.items())) not in tried:
                tried.add(same)
                try:
                    async with self._connection.transaction():
                        await write(cells)
                except asyncpg.QueryCanceledError as error:
                    return said(error)
                except (asyncpg.PostgresError, UnfitError) as error:
                    raise_if_lost(self._connection, error)
                    reason = said(error)
                    blamed = shape.table.constraints.get(getattr(error, "constraint_name", "") or "", ())
                    attempt += 0 if blamed else 2
                else:
                    return ""
            misses[blamed] += 1
            for place, name in enumerate(blamed or shape.table.columns):
                # The columns of one constraint are turned like the wheels of a counter, so that all pairs are met.
                turned = misses[blamed] >> 2 * place & 3 if 1 < len(blamed) <= 3 else misses[blamed]
                steps[name] = turned
        return reason

    def inserting(self, table: Table, fixed: Mapping[str, str]) -> Write:
        """Inserts a row that holds `fixed` whatever else is tried."""

        async def write(cells: Mapping[str, Cell]) -> None:
            full: dict[str, Cell] = {**cells, **fixed}
            await self._resolve_own(table, full)
            given = [(table.columns[name], cell) for name, cell in full.items() if cell is not Left.DEFAULT]
            texts = [cell for _, cell in given]
            names = ", ".join(quoted(column.name) for column, _ in given)
            values = ", ".join(f"CAST(${n}::text AS {c.type_sql})" for n, (c, _) in enumerate(given, 1))
            statement = (
                f"INSERT INTO {table.name.sql()} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"
                if given
                else f"INSERT INTO {table.name.sql()} DEFAULT VALUES"
            )
            if await self._connection.execute(statement, *texts) == "INSERT 0 0":
                raise UnfitError("the insert left no row: a trigger or a rule took it")

        return write

    def updating(self, table: Table, names: Sequence[str]) -> Write:
        """Updates the first row in which all these columns are NULL."""

        async def write(cells: Mapping[str, Cell]) -> None:
            given = [(table.columns[name], cells[name]) for name in names if isinstance(cells[name], str)]
            if not given:
                raise UnfitError("nothing is possible but NULL")
            values = ", ".join(
                f"{quoted(column.name)} = CAST(${n}::text AS {column.type_sql})"
                for n, (column, _) in enumerate(given, 1)
            )
            empty = " AND ".join(f"{quoted(name)} IS NULL" for name in names)
            only = "" if table.partitioned else "ONLY "
            await self._connection.execute(
                f"UPDATE {only}{table.name.sql()} SET {values} WHERE (tableoid, ctid) ="
                f" (SELECT tableoid, ctid FROM {table.source()} WHERE {empty} ORDER BY tableoid, ctid LIMIT 1)",
                *(cell for _, cell in given),
            )

        return write

    async def _resolve_own(self, table: Table, cells: dict[str, Cell]) -> None:
        """A row that must refer to some row, and is the first, refers to itself."""
        own = [name for name, cell in cells.items() if cell is Left.OWN]
        for key in table.keys:
            if key.parent != table.name or not set(key.columns) & set(own):
                continue
            for name, target in zip(key.columns, key.parent_columns, strict=True):
                if cells.get(target, Left.DEFAULT) is Left.DEFAULT:
                    cells[target] = await server_value(self._connection, table, target)
                if name in own:
                    cells[name] = cells[target]
