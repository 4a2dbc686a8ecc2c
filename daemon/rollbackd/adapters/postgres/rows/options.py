"""What each column of a table may take just now: the rows that it may refer to, the values that its checks let through."""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import asyncpg

from rollbackd.adapters.postgres.rows.session import UnfitError, raise_if_lost, server_value
from rollbackd.adapters.postgres.rows.shapes import Block, Cell, Left, Shape
from rollbackd.adapters.postgres.rows.tables import Check, Column, ForeignKey, Table
from rollbackd.core.made_up import Literals, candidates, literals_of, made_up, tame
from rollbackd.core.schema import TableName, quoted

_MOST_COMBINATIONS = 4096
_MOST_PARENTS = 50


class Options:
    """Finds out the options of one table after another, from the rows that are there and from those that are promised."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        tables: Mapping[TableName, Table],
        limited: Mapping[str, tuple[str, ...]],
        rows: int,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._limited = limited
        self._rows = rows
        self._promised: dict[TableName, list[dict[str, str]]] = {}

    async def shape(self, table: Table, circular: Collection[str] = ()) -> Shape:
        """What the table's columns may take now.

        The foreign keys named in `circular` may refer to rows that come later in the transaction.

        Raises:
            UnfitError: some of them can take nothing.
        """
        free = {column.name: column for column in table.free()}
        units = [await self._references(table, keys, circular) for keys in _sharing_columns(table.keys)]
        referring = {name for unit in units for name in unit.columns}
        checks = [check for check in table.checks if check.columns and set(check.columns) <= free.keys()]
        checked = {name for check in checks for name in check.columns}
        loose = []
        for name, column in free.items():
            if name in referring:
                continue
            if name in checked or column.type_sql in self._limited:
                hints = literals_of(*(check.expression for check in checks if name in check.columns))
                units.append(self._alone(column, hints))
            else:
                loose.append(column)
        blocks: list[Block] = []
        for joined, having in _connected(units, checks):
            blocks += await self._solved(table, joined, having) if having else joined
        for block in blocks:
            if not block.options:
                raise UnfitError(await self._why_nothing(table, block))
        return Shape(table=table, loose=tuple(loose), blocks=tuple(blocks), rows=self._rows)

    def take_promised(self, table: TableName) -> dict[str, str]:
        """The values that the next row of the table has to hold, as others refer to it already."""
        promised = self._promised.get(table, [])
        return promised.pop(0) if promised else {}

    def forget_promised(self) -> None:
        """What was promised is there, or was rolled back."""
        self._promised.clear()

    async def _why_nothing(self, table: Table, block: Block) -> str:
        for key in table.keys:
            if set(key.columns) <= set(block.columns) and table.required(key):
                parent = self._tables[key.parent]
                if not await self._connection.fetchval(f"SELECT EXISTS (SELECT FROM {parent.source()})"):
                    return f"there is nothing to refer to in {key.parent.text()}"
        checks = [c.name for c in table.checks if set(c.columns) & set(block.columns)]
        if checks:
            return f"nothing that was made up passes {', '.join(checks)}"
        types = ", ".join(f"{name} {table.columns[name].type_sql}" for name in block.columns)
        return f"no value is known for {types}"

    def _alone(self, column: Column, hints: Literals) -> Block:
        texts: list[Cell] = list(self._limited.get(column.type_sql, candidates(column.kind, hints)))
        besides: list[Cell] = [None] if column.nullable else []
        besides += [Left.DEFAULT] if column.default else []
        # Near the front: where many columns are checked together, only the first few are tried.
        texts[1:1] = besides
        return Block(columns=(column.name,), options=tuple((text,) for text in texts), refers=False)

    async def _references(self, table: Table, keys: Sequence[ForeignKey], circular: Collection[str]) -> Block:
        """The rows that may be referred to, for foreign keys that share columns: those that agree."""
        columns = tuple(dict.fromkeys(name for key in keys for name in key.columns))
        shared = Counter(name for key in keys for name in key.columns)
        choices: list[list[dict[str, Cell]]] = []
        for key in keys:
            found = await self._parents(table, key, circular)
            if not table.required(key):
                nullable = [name for name in key.columns if table.columns[name].nullable]
                alone = [name for name in nullable if shared[name] == 1] if not key.full else nullable
                found[1:1] = [dict.fromkeys(alone or nullable)]
            choices.append(found if len(keys) == 1 else found[:12])
        options: dict[tuple[Cell, ...], None] = {}
        for combination in itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS):
            cells: dict[str, Cell] = {}
            if all(
                cells.setdefault(name, cell) == cell
                for choice in combination
                for name, cell in choice.items()
            ):
                for name in columns:
                    if name not in cells:
                        only = self._limited.get(table.columns[name].type_sql)
                        cells[name] = only[0] if only else made_up(table.columns[name].kind, tame(0))
                options[tuple(cells[name] for name in columns)] = None
        return Block(columns=columns, options=tuple(options)[:_MOST_PARENTS], refers=True)

    async def _parents(
        self, table: Table, key: ForeignKey, circular: Collection[str]
    ) -> list[dict[str, Cell]]:
        parent = self._tables[key.parent]
        names = [quoted(name) for name in key.parent_columns]
        query = (
            f"SELECT {', '.join(f'{name}::text' for name in names)} FROM {parent.source()}"
            f" WHERE {' AND '.join(f'{name} IS NOT NULL' for name in names)}"
            f" ORDER BY {', '.join(names)} LIMIT {_MOST_PARENTS}"
        )
        found = [dict(zip(key.columns, row, strict=True)) for row in await self._connection.fetch(query)]
        if found or not table.required(key):
            return found
        if key.parent == table.name:
            return [dict.fromkeys(key.columns, Left.OWN)]
        if key.name in circular:
            promised = await self._promise(parent, key.parent_columns)
            return [
                {name: keys[target] for name, target in zip(key.columns, key.parent_columns, strict=True)}
                for keys in promised
            ]
        return []

    async def _promise(self, parent: Table, columns: Sequence[str]) -> list[dict[str, str]]:
        """Keys of rows that will be there at the end of the transaction: in a circle one has to come first."""
        promised = self._promised.setdefault(parent.name, [])
        while len(promised) < self._rows:
            promised.append({})
        for number, keys in enumerate(promised):
            for name in columns:
                column = parent.columns[name]
                if name not in keys:
                    made = None if column.server else made_up(column.kind, number)
                    keys[name] = made or await server_value(self._connection, parent, name) or ""
        return [dict(keys) for keys in promised]

    async def _solved(self, table: Table, units: Sequence[Block], checks: Sequence[Check]) -> list[Block]:
        """The combinations that pass the checks, found out by the database; the units as they are if it can't say."""
        own = any(Left.OWN in option for unit in units for option in unit.options)
        most = int(_MOST_COMBINATIONS ** (1 / len(units)))
        if own or most < 2:
            return list(units)
        options = [unit.options[:most] for unit in units]
        parameters = [
            await self._texts(table, name, [option[c] for option in options[u]])
            for u, unit in enumerate(units)
            for c, name in enumerate(unit.columns)
        ]
        try:
            async with self._connection.transaction():
                found = await self._connection.fetch(_combining(table, units, checks), *parameters)
        except asyncpg.PostgresError as error:
            raise_if_lost(self._connection, error)
            return list(units)  # a function that raises, a candidate that isn't one: attempts will tell
        passing = tuple(
            tuple(itertools.chain.from_iterable(options[u][n - 1] for u, n in enumerate(row)))
            for row in found
        )
        return [
            Block(
                columns=tuple(name for unit in units for name in unit.columns),
                options=passing,
                refers=all(unit.refers for unit in units),
            )
        ]

    async def _texts(self, table: Table, name: str, cells: Sequence[Cell]) -> list[str | None]:
        return [
            await server_value(self._connection, table, name) if isinstance(cell, Left) else cell
            for cell in cells
        ]


def _combining(table: Table, units: Sequence[Block], checks: Sequence[Check]) -> str:
    """The query for the combinations that pass: a number of each unit's options. It takes an array for each column."""
    numbers, values, sources = [], [], []
    first = 1
    for u, unit in enumerate(units):
        fields = [f"c{c}" for c in range(len(unit.columns))]
        for field, name in zip(fields, unit.columns, strict=True):
            values.append(f"CAST(u{u}.{field} AS {table.columns[name].type_sql}) AS {quoted(name)}")
        numbers.append(f'u{u}.n::int AS "rollbackd {u}"')
        arrays = ", ".join(f"${first + c}::text[]" for c in range(len(fields)))
        sources.append(f"unnest({arrays}) WITH ORDINALITY AS u{u}({', '.join(fields)}, n)")
        first += len(fields)
    columns = ", ".join(f's."rollbackd {u}"' for u in range(len(units)))
    conditions = " AND ".join(f"({check.expression}) IS NOT FALSE" for check in checks)
    return (
        f"SELECT {columns} FROM (SELECT {', '.join(numbers)}, {', '.join(values)} FROM {', '.join(sources)}) s"
        f" WHERE {conditions} ORDER BY {columns}"
    )


def _sharing_columns(keys: Sequence[ForeignKey]) -> list[list[ForeignKey]]:
    groups: list[list[ForeignKey]] = []
    for key in keys:
        meets = [g for g in groups if any(set(key.columns) & set(other.columns) for other in g)]
        groups = [g for g in groups if g not in meets]
        groups.append([*itertools.chain.from_iterable(meets), key])
    return groups


def _connected(units: Sequence[Block], checks: Sequence[Check]) -> list[tuple[list[Block], list[Check]]]:
    """Units that some check speaks of together, with these checks."""
    groups: list[tuple[list[Block], list[Check]]] = [([unit], []) for unit in units]
    for check in checks:
        meets = [g for g in groups if any(set(check.columns) & set(unit.columns) for unit in g[0])]
        groups = [g for g in groups if all(g is not met for met in meets)]
        joined = [unit for met in meets for unit in met[0]]
        groups.append((joined, [*(c for met in meets for c in met[1]), check]))
    return groups
