"""Counts on a database what a rehearsed way back would cost its rows, and which of them would make it fail.

Every query is a short transaction of its own (a savepoint where one is open), so that no snapshot and no lock is held
over many tables. What goes wrong with one of them is said in its answer and stops no other.
"""

import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import asyncpg
import msgspec

from rollbackd.core.rehearsal import (
    ChangedColumn,
    Depth,
    GoneColumn,
    GoneTable,
    NewRule,
    Rehearsal,
    RehearsedRevision,
    WrittenTable,
)
from rollbackd.core.risk_queries import (
    RowWrite,
    cast_chain,
    checked_expression,
    key_terms,
    literal,
    looks_at_rows,
    read_writes,
    refused_when,
    renamed_columns,
)
from rollbackd.core.risks import Obstacle, RiskKind, Risks, RowsAtRisk
from rollbackd.core.schema import TableName, quoted

PLANNING_S = 2.0
"""What asking the planner may take beyond the budget, in all."""
CATALOG_S = 10.0
MOST_TRIES = 2_000
"""How often a cast that fails somewhere is tried on a part of the table, to find the rows that fail."""
_PG_INPUT_IS_VALID = 160_000
_LONGEST_KEY = 60
_INSERTS = re.compile(r"\b(?:INSERT|COPY|MERGE)\b", re.IGNORECASE)

_Item = TypeVar("_Item", GoneTable, GoneColumn, ChangedColumn, NewRule)

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


async def measure_risks(
    connection: asyncpg.Connection, rehearsal: Rehearsal, *, budget_s: float, samples: int = 3
) -> Risks:
    """Count what the way back would destroy, change or stumble over, the smallest tables first.

    Whatever `budget_s` seconds don't suffice for is the planner's estimate, or unknown where it is about a rule. Only a
    lost connection is an error.
    """
    started = time.monotonic()
    asking = _Asking(connection, started + budget_s)
    try:
        catalog = await _read_catalog(asking, rehearsal)
    except _UnknownError as problem:
        catalog = _Catalog({}, (), 0, str(problem))
    measuring = _Measuring(asking, rehearsal, catalog, samples)
    questions = measuring.questions()
    answers: dict[int, list[RowsAtRisk | Obstacle]] = {}
    for number, question in sorted(enumerate(questions), key=lambda q: (q[1].pages, q[0])):
        answers[number] = await question.ask()
    found = [answer for number in range(len(questions)) for answer in answers[number]]
    return Risks(
        at_risk=tuple(a for a in found if isinstance(a, RowsAtRisk)),
        obstacles=tuple(a for a in found if isinstance(a, Obstacle) and a.rows != 0),
        seconds=time.monotonic() - started,
    )


class _UnknownError(Exception):
    """Why something couldn't be counted."""


class _OutOfTimeError(_UnknownError):
    def __init__(self) -> None:
        super().__init__("the time for counting is used up")


class _RefusedError(_UnknownError):
    """A value made the query fail."""


class _DoesNotFitError(_UnknownError):
    """The types have no such cast or comparison."""


class _Asking:
    """Asks one thing after another, each read only, with a timeout of what is left."""

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
            raise _OutOfTimeError
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
            raise _OutOfTimeError from None
        except asyncpg.LockNotAvailableError:
            raise _UnknownError("another session holds a lock on it") from None
        except asyncpg.UndefinedTableError as error:
            raise _UnknownError(f"it isn't there: {error}") from None
        except _DOES_NOT_FIT as error:
            raise _DoesNotFitError(str(error)) from None
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise _RefusedError(str(error)) from None
        except asyncpg.PostgresError as error:
            raise _UnknownError(str(error)) from None
        finally:
            if not self._connection.is_closed():
                await transaction.rollback()


class _Column(NamedTuple):
    type: str
    category: str
    generated: bool


class _Table(NamedTuple):
    """A table as it is today; `above` are the partitioned tables that it is a part of."""

    name: TableName
    oid: int
    kind: str
    pages: int
    key: tuple[str, ...]
    above: frozenset[TableName]
    triggers: bool
    columns: dict[str, _Column]

    def rows(self, alias: str = "counted", renamed: Mapping[str, str] | None = None) -> str:
        """`FROM …`, under an alias; `renamed` are names to add for some columns (name to add: today's)."""
        # ONLY: tables that inherit are listed for themselves. A partitioned table has no rows but its partitions'.
        place = f"{'' if self.kind == 'p' else 'ONLY '}{self.name.sql()}"
        if not renamed:
            return f"FROM {place} AS {quoted(alias)}"
        more = ", ".join(f"{quoted(now)} AS {quoted(name)}" for name, now in renamed.items())
        return f"FROM (SELECT *, {more} FROM {place}) AS {quoted(alias)}"


class _Reference(NamedTuple):
    """A foreign key from `child` to `parent`, with what it does when a parent goes (`c` cascades, …)."""

    child: TableName
    parent: TableName
    on_delete: str
    on_update: str
    parent_columns: frozenset[str]
    child_columns: tuple[str, ...]


class _Catalog(NamedTuple):
    tables: dict[TableName, _Table]
    references: tuple[_Reference, ...]
    server_version: int
    problem: str = ""

    def missing(self, table: TableName) -> str:
        return self.problem or f"{table.text()} isn't there any more"


class _Question(NamedTuple):
    pages: int
    ask: Callable[[], Awaitable[list[RowsAtRisk | Obstacle]]]


_TABLES = """
SELECT n.nspname, c.relname, c.oid, c.relkind::text,
       coalesce((SELECT sum(greatest(l.relpages, 0)) FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid),
                c.relpages)::bigint,
       ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(n, i)
               JOIN pg_attribute a ON a.attnum = k.n
              WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid ORDER BY k.i),
       ARRAY(SELECT an.nspname::text FROM pg_partition_ancestors(c.oid) p(o) JOIN pg_class ac ON ac.oid = p.o
               JOIN pg_namespace an ON an.oid = ac.relnamespace WHERE p.o <> c.oid ORDER BY p.o),
       ARRAY(SELECT ac.relname::text FROM pg_partition_ancestors(c.oid) p(o) JOIN pg_class ac ON ac.oid = p.o
              WHERE p.o <> c.oid ORDER BY p.o),
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f', 'm')
   AND (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_COLUMNS = """
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), t.typcategory::text, a.attgenerated <> ''
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""
_REFERENCES = """
SELECT cn.nspname, c.relname, pn.nspname, p.relname, k.confdeltype::text, k.confupdtype::text,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.confrelid AND a.attnum = ANY(k.confkey)),
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey))
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0
"""


async def _read_catalog(asking: _Asking, rehearsal: Rehearsal) -> _Catalog:
    """Everything that is known about the tables in question, read at once."""
    wanted: set[TableName] = set()
    written: set[TableName] = set()
    for revision in rehearsal.revisions:
        every: list[GoneTable | GoneColumn | ChangedColumn | NewRule] = [
            *revision.gone_tables,
            *revision.gone_columns,
            *revision.changed_columns,
            *revision.new_rules,
        ]
        wanted |= {item.today for item in every if item.today is not None}
        wanted |= {rule.other for rule in revision.new_rules if rule.other is not None}
        written |= {item.today for item in revision.written if item.today is not None}
    version = int((await asking.catalog_rows("SELECT current_setting('server_version_num')::int"))[0][0])
    references: tuple[_Reference, ...] = ()
    if written:
        references = tuple(
            _Reference(TableName(r[0], r[1]), TableName(r[2], r[3]), r[4], r[5], frozenset(r[6]), tuple(r[7]))
            for r in await asking.catalog_rows(_REFERENCES)
        )
        wanted |= {reference.child for reference in references}
    names = sorted(wanted | written)
    found = await asking.catalog_rows(_TABLES, [t.schema for t in names], [t.name for t in names])
    columns: dict[int, dict[str, _Column]] = {row[2]: {} for row in found}
    for oid, name, type_, category, generated in await asking.catalog_rows(_COLUMNS, list(columns)):
        columns[oid][name] = _Column(type_, category, generated)
    tables = {}
    for schema, name, oid, kind, pages, key, above_schemas, above, triggers in found:
        table = TableName(schema, name)
        parents = frozenset(TableName(*pair) for pair in zip(above_schemas, above, strict=True))
        tables[table] = _Table(table, oid, kind, pages, tuple(key), parents, triggers, columns[oid])
    return _Catalog(tables, references, version)


class _Measuring:
    """The questions that a rehearsal raises, and how each is answered."""

    def __init__(self, asking: _Asking, rehearsal: Rehearsal, catalog: _Catalog, samples: int) -> None:
        self._asking = asking
        self._rehearsal = rehearsal
        self._catalog = catalog
        self._samples = samples
        self._timelines: dict[int, list[RowWrite]] = {}

    def questions(self) -> list[_Question]:
        """All questions, in the order of the way back."""
        found: list[_Question] = []
        for number, revision in enumerate(self._rehearsal.revisions):
            gone = {table.today for table in revision.gone_tables}
            found += [
                self._question(table.today, partial(self._gone_table, revision, table))
                for table in self._without_parts(revision.gone_tables, lambda t: "")
            ]
            found += [
                self._question(column.today, partial(self._gone_column, revision, column))
                for column in self._without_parts(revision.gone_columns, lambda c: c.today_column)
                if column.today_column and not self._is_covered(column.today, gone)
            ]
            found += [
                self._question(changed.today, partial(self._changed_column, number, changed))
                for changed in self._without_parts(revision.changed_columns, lambda c: c.today_column)
                if changed.today_column and not changed.keeps_values
            ]
            found += [
                self._question(written.today, partial(self._written, number, written))
                for written in revision.written
                if written.today is not None
            ]
            found += [
                self._question(rule.today, partial(self._new_rule, number, rule))
                for rule in self._without_parts(
                    revision.new_rules, lambda r: (r.kind, r.columns, r.definition)
                )
                if looks_at_rows(rule.definition)
            ]
        return found

    def _question(
        self, today: TableName | None, ask: Callable[[], Awaitable[list[RowsAtRisk | Obstacle]]]
    ) -> _Question:
        table = self._catalog.tables.get(today) if today else None
        return _Question(table.pages if table else 0, ask)

    def _without_parts(self, items: tuple[_Item, ...], what: Callable[[_Item], object]) -> list[_Item]:
        """Those that concern a table of today, without partitions whose parent is listed for the same."""
        listed = {(item.today, what(item)) for item in items}
        found = []
        for item in items:
            table = self._catalog.tables.get(item.today) if item.today else None
            above = table.above if table else frozenset()
            if item.today is not None and not any((parent, what(item)) in listed for parent in above):
                found.append(item)
        return found

    def _is_covered(self, today: TableName | None, gone: set[TableName | None]) -> bool:
        table = self._catalog.tables.get(today) if today else None
        return today in gone or bool(table and table.above & gone)

    def _is_written(self, number: int, *tables: TableName | None) -> bool:
        """Whether the way back writes one of these tables before it comes to the end of this revision."""
        names = {name for name in tables if name is not None}
        return any(
            written.table in names or written.today in names
            for revision in self._rehearsal.revisions[: number + 1]
            for written in revision.written
        )

    # What goes.

    async def _gone_table(self, revision: RehearsedRevision, gone: GoneTable) -> list[RowsAtRisk | Obstacle]:
        assert gone.today is not None
        risk = RowsAtRisk(revision=revision.id, kind=RiskKind.DROPPED_TABLE, table=gone.today)
        table = self._catalog.tables.get(gone.today)
        if table is None:
            return [_unknown(risk, self._catalog.missing(gone.today))]
        return [await self._count(risk, table.rows())]

    async def _gone_column(
        self, revision: RehearsedRevision, gone: GoneColumn
    ) -> list[RowsAtRisk | Obstacle]:
        assert gone.today is not None
        risk = RowsAtRisk(
            revision=revision.id, kind=RiskKind.DROPPED_COLUMN, table=gone.today, column=gone.today_column
        )
        table = self._catalog.tables.get(gone.today)
        if table is None:
            return [_unknown(risk, self._catalog.missing(gone.today))]
        column = table.columns.get(gone.today_column)
        if column is None:
            return [_unknown(risk, f"{gone.today.text()} has no such column any more")]
        if column.generated:
            return []  # made from other columns, and so no loss
        # Not IS NOT NULL, which is false for a row value that has a NULL in it.
        return [
            await self._count(risk, table.rows(), f"{quoted(gone.today_column)} IS DISTINCT FROM NULL", table)
        ]

    # What changes its type.

    async def _changed_column(self, number: int, changed: ChangedColumn) -> list[RowsAtRisk | Obstacle]:
        assert changed.today is not None
        revision = self._rehearsal.revisions[number]
        risk = RowsAtRisk(
            revision=revision.id, kind=RiskKind.NARROWED, table=changed.today, column=changed.today_column
        )
        obstacle = Obstacle(
            revision=revision.id,
            rule="enum_label" if changed.labels else "cast",
            name=changed.new_type,
            table=changed.today,
            columns=(changed.today_column,),
            certain=not self._is_written(number, changed.today, changed.table),
        )
        table = self._catalog.tables.get(changed.today)
        column = table.columns.get(changed.today_column) if table else None
        if table is None or column is None:
            return _both_unknown(risk, obstacle, self._catalog.missing(changed.today))
        try:
            if changed.labels:
                return await self._lost_labels(risk, obstacle, changed, table, column)
            return await self._narrowed(risk, obstacle, changed, table, column)
        except _OutOfTimeError as problem:
            value = f"{quoted(changed.today_column)} IS DISTINCT FROM NULL"
            return [
                await self._estimate(risk, f"{table.rows()} WHERE {value}", at_most=True),
                msgspec.structs.replace(obstacle, unknown=str(problem)),
            ]
        except _UnknownError as problem:
            return _both_unknown(risk, obstacle, str(problem))

    async def _lost_labels(
        self, risk: RowsAtRisk, obstacle: Obstacle, changed: ChangedColumn, table: _Table, column: _Column
    ) -> list[RowsAtRisk | Obstacle]:
        labels = f"ARRAY[{', '.join(literal(label) for label in changed.labels)}]::text[]"
        name = quoted(changed.today_column)
        uses = f"{name}::text[] && {labels}" if column.category == "A" else f"{name}::text = ANY({labels})"
        rows = int((await self._asking.rows(f"SELECT count(*) {table.rows()} WHERE {uses}"))[0][0])
        sample = await self._sample(table, table.rows(), uses) if rows else ()
        inner, chain = cast_chain(changed.using) if changed.using else (name, ())
        plain = _is_name(inner, changed) and bool(chain or not changed.using)
        return [
            msgspec.structs.replace(risk, rows=rows, sample=sample),
            # An expression that isn't just a cast may give those rows another label.
            msgspec.structs.replace(obstacle, rows=rows, sample=sample, certain=obstacle.certain and plain),
        ]

    async def _narrowed(
        self, risk: RowsAtRisk, obstacle: Obstacle, changed: ChangedColumn, table: _Table, column: _Column
    ) -> list[RowsAtRisk | Obstacle]:
        renamed = {changed.column: changed.today_column} if changed.column != changed.today_column else {}
        rows = table.rows(changed.table.name, renamed)
        name = quoted(changed.today_column)
        inner, chain = cast_chain(changed.using) if changed.using else (name, ())
        refusals: list[str] = []
        value = inner
        for number, type_ in enumerate((*chain, changed.new_type)):
            assigned = number == len(chain)
            refusals.append(
                await self._refusal(value, rows, type_, column if value == name else None, assigned)
            )
            value = f"CAST(({value}) AS {type_})"
        # As an assignment it refuses what this explicit cast would cut; those values have been sorted out before.
        refused = "".join(f" WHEN {r} THEN true" for r in refusals if r)
        refused = f"CASE{refused} ELSE false END" if refused else "false"
        there = f"{name} IS DISTINCT FROM NULL"
        comparisons = (
            f"({value})::{column.type} IS DISTINCT FROM {name}",
            f"({value})::{column.type}::text IS DISTINCT FROM {name}::text",
            f"({value})::text IS DISTINCT FROM {name}::text",
        )
        for number, differs in enumerate(comparisons):
            # CASE, so that no value is cast that would make the query fail.
            changes = f"CASE WHEN {refused} THEN true ELSE {differs} END"
            query = f"SELECT count(*) FILTER (WHERE {refused}), count(*) FILTER (WHERE {changes})"
            try:
                row = (await self._asking.rows(f"{query} {rows} WHERE {there}"))[0]
            except _DoesNotFitError:
                if number == len(comparisons) - 1:
                    raise
                continue
            except _RefusedError as problem:
                if await self._converts(f"({value})", refused, f"{rows} WHERE {there}"):
                    continue  # it is only the way back to the present type that fails
                changes = f"CASE WHEN {refused} THEN true ELSE {comparisons[-1]} END"
                query = f"SELECT count(*) FILTER (WHERE {refused}), count(*) FILTER (WHERE {changes})"
                rows = "" if renamed or table.kind != "r" else rows
                return await self._search(risk, obstacle, table, (query, rows, there), str(problem))
            return [
                msgspec.structs.replace(
                    risk,
                    rows=row[1],
                    sample=await self._sample(table, rows, f"{there} AND {changes}") if row[1] else (),
                ),
                msgspec.structs.replace(
                    obstacle,
                    rows=row[0],
                    sample=await self._sample(table, rows, f"{there} AND {refused}") if row[0] else (),
                ),
            ]
        raise AssertionError("the last comparison either counts or raises")

    async def _converts(self, value: str, refused: str, rows: str) -> bool:
        made = f"count(CASE WHEN {refused} THEN NULL ELSE {value} END)"
        try:
            await self._asking.rows(f"SELECT {made} {rows}")
        except _RefusedError:
            return False
        return True

    async def _refusal(
        self, value: str, rows: str, target: str, column: _Column | None, assigned: bool
    ) -> str:
        if column is not None:
            category, source = column.category, column.type
        else:
            oid = await self._asking.type_of(f"SELECT {value} {rows}")
            category, source = (
                await self._asking.rows(
                    "SELECT typcategory::text, format_type(oid, NULL) FROM pg_type WHERE oid = $1", oid
                )
            )[0]
        checks_input = self._catalog.server_version >= _PG_INPUT_IS_VALID
        return refused_when(value, category, source, target, assigned=assigned, checks_input=checks_input)

    async def _search(
        self,
        risk: RowsAtRisk,
        obstacle: Obstacle,
        table: _Table,
        parts_of_query: tuple[str, str, str],
        problem: str,
    ) -> list[RowsAtRisk | Obstacle]:
        """Find the values that fail by trying parts of the table, halved until they are single rows."""
        query, rows, there = parts_of_query
        at_least = f"at least one value is refused: {problem}"
        if not rows:
            return _both_unknown(risk, obstacle, at_least)
        size = "SELECT pg_relation_size($1::oid) / current_setting('block_size')::bigint"
        blocks = (await self._asking.rows(size, table.oid))[0][0]
        refused: list[str] = []
        counted = [0, 0]
        # A part is a range of blocks or, as text, one row.
        parts: list[tuple[int, int] | str] = [(0, int(blocks))]
        for tries in range(MOST_TRIES + 1):
            if not parts:
                break
            if tries == MOST_TRIES:
                at_least = f"at least {len(refused) or 'one'} of its values are refused: {problem}"
                return _both_unknown(risk, obstacle, at_least)
            part = parts.pop()
            where = f"ctid = '{part}'" if isinstance(part, str) else _in_blocks(*part)
            try:
                row = (await self._asking.rows(f"{query} {rows} WHERE {there} AND {where}"))[0]
                counted = [counted[0] + row[0], counted[1] + row[1]]
            except _RefusedError:
                if isinstance(part, str):
                    refused.append(part)
                elif part[1] - part[0] > 1:
                    middle = (part[0] + part[1]) // 2
                    parts += [(middle, part[1]), (part[0], middle)]
                else:
                    found = await self._asking.rows(f"SELECT ctid::text {rows} WHERE {there} AND {where}")
                    parts += [row[0] for row in found]
        sample = await self._sample(table, rows, f"ctid = ANY({literal(_array(refused))}::tid[])")
        number = len(refused) + counted[0]
        return [
            msgspec.structs.replace(risk, rows=len(refused) + counted[1], sample=sample),
            msgspec.structs.replace(obstacle, rows=number, sample=sample),
        ]

    # What is written.

    async def _written(self, number: int, written: WrittenTable) -> list[RowsAtRisk | Obstacle]:
        assert written.today is not None
        revision = self._rehearsal.revisions[number]
        found: list[RowsAtRisk | Obstacle] = []
        if self._rehearsal.depth is Depth.FULL:
            for kind, rows in ((RiskKind.UPDATED, written.updated), (RiskKind.DELETED, written.deleted)):
                if rows:
                    found.append(RowsAtRisk(revision=revision.id, kind=kind, table=written.today, rows=rows))
            return found
        table = self._catalog.tables.get(written.today)
        if table is None:
            risk = RowsAtRisk(revision=revision.id, kind=RiskKind.DELETED, table=written.today)
            return [_unknown(risk, self._catalog.missing(written.today))]
        writes, unread = self._writes_of(number, written)
        if not writes and not unread and self._is_reached(number, written.today):
            return []  # the table whose rows refer to it, or are referred to, brings the answer along
        if not writes and not unread and not self._is_inserted_only(number, written):
            unread = "no statement names it, so a trigger or a function does it"
        if unread:
            kind = RiskKind.UPDATED if written.updated and not written.deleted else RiskKind.DELETED
            found.append(_unknown(RowsAtRisk(revision=revision.id, kind=kind, table=written.today), unread))
        for kind in (RiskKind.UPDATED, RiskKind.DELETED):
            of_kind = [(place, write) for place, write in writes if write.kind is kind]
            if of_kind:
                risk = RowsAtRisk(revision=revision.id, kind=kind, table=written.today)
                counted = await self._count_writes(risk, table, number, of_kind)
                found += await self._carried_on(counted, [write for _, write in of_kind])
        return found

    def _timeline(self, number: int) -> list[RowWrite]:
        """What a revision does to rows, in order; an INSERT is a write that sets nothing, an unread one may set all."""
        if number not in self._timelines:
            revision = self._rehearsal.revisions[number]
            every: list[WrittenTable | GoneColumn | ChangedColumn | NewRule] = [
                *revision.written,
                *revision.gone_columns,
                *revision.changed_columns,
                *revision.new_rules,
            ]
            names = {item.table: item.today for item in every if item.today is not None}
            found: list[RowWrite] = []
            locked: set[TableName] = set()
            for statement in revision.statements:
                read = read_writes(statement, names)
                locked.update(statement.writes)
                if read is None:
                    # It may also write what an earlier statement had locked before it.
                    why = f"“{_shortened(statement.sql)}” can't be read"
                    found += [RowWrite(RiskKind.UPDATED, t, None, unread=why) for t in sorted(locked)]
                elif read:
                    found += read
                elif _INSERTS.search(statement.sql):
                    found += [RowWrite(RiskKind.UPDATED, t, inserts=True) for t in statement.writes]
            self._timelines[number] = found
        return self._timelines[number]

    def _writes_of(self, number: int, written: WrittenTable) -> tuple[list[tuple[int, RowWrite]], str]:
        """What a revision overwrites or deletes in a table, with the place in its timeline; and what can't be read."""
        own = [(p, w) for p, w in enumerate(self._timeline(number)) if w.table == written.table]
        unread = [write.unread for _, write in own if write.unread]
        return [(p, w) for p, w in own if not w.unread and not w.inserts], unread[0] if unread else ""

    def _is_inserted_only(self, number: int, written: WrittenTable) -> bool:
        """Whether all that is known to happen to the table's rows is that new ones come."""
        if written.updated or written.deleted:
            return False
        return bool(written.inserted) or any(
            write.inserts for write in self._timeline(number) if write.table == written.table
        )

    async def _count_writes(
        self, risk: RowsAtRisk, table: _Table, number: int, writes: list[tuple[int, RowWrite]]
    ) -> RowsAtRisk:
        """Add up what one table's statements match; several may match the same row, so their sum is a bound."""
        earlier = [write for revision in range(number) for write in self._timeline(revision)]
        parts: list[RowsAtRisk] = []
        for place, write in writes:
            before = earlier + self._timeline(number)[:place]
            if self._sets_new_columns_only(write, table):
                parts.append(msgspec.structs.replace(risk, rows=0))
                continue
            itself = self._handed_on(risk.table, write).get(risk.table) is risk.kind and not write.truncates
            if write.uncounted or itself or any(_may_move(old, write) for old in before):
                return await self._bound(risk, table)
            rows = write.rows
            if write.joined:
                # A row that is joined with several others is written once.
                rows = f"FROM (SELECT DISTINCT {write.alias}.tableoid, {write.alias}.ctid {rows}) AS matched"
            part = await self._count(risk, rows, prefix=write.prefix)
            if part.rows < 0 and part.unknown != str(_OutOfTimeError()):
                return await self._bound(risk, table)
            if part.rows > 0:
                sample = await self._sample(table, write.rows, "", alias=write.alias, prefix=write.prefix)
                part = msgspec.structs.replace(part, sample=sample)
            parts.append(part)
        for part in parts:
            if part.rows < 0 or len(parts) == 1:
                return part
        return msgspec.structs.replace(
            risk,
            rows=sum(part.rows for part in parts),
            exact=all(part.exact for part in parts),
            at_most=sum(part.rows > 0 for part in parts) > 1,
            sample=tuple(dict.fromkeys(key for part in parts for key in part.sample))[: self._samples],
        )

    async def _bound(self, risk: RowsAtRisk, table: _Table) -> RowsAtRisk:
        counted = await self._count(risk, table.rows())
        return msgspec.structs.replace(counted, at_most=counted.rows > 0)

    def _sets_new_columns_only(self, write: RowWrite, table: _Table) -> bool:
        """Whether an UPDATE fills only columns that aren't there today, so that no value of today is overwritten."""
        if write.kind is not RiskKind.UPDATED or not write.assigned or table.triggers:
            return False
        # A column of another name may be one of today's that was renamed on the way.
        renames = any(
            "rename" in statement.sql.lower()
            for revision in self._rehearsal.revisions
            for statement in revision.statements
        )
        return not renames and not write.assigned & table.columns.keys()

    def _is_reached(self, number: int, today: TableName) -> bool:
        """Whether foreign keys hand another table's write on to this one."""
        return any(
            today in self._handed_on(written.today, write)
            for written in self._rehearsal.revisions[number].written
            if written.today is not None and written.today != today
            for _, write in self._writes_of(number, written)[0]
        )

    def _handed_on(self, start: TableName, write: RowWrite) -> dict[TableName, RiskKind]:
        """The tables that foreign keys hand a write on to, and what happens to their rows."""
        found: dict[TableName, RiskKind] = {}
        waiting = [(start, write.kind, write.assigned)]
        while waiting:
            parent, kind, assigned = waiting.pop()
            table = self._catalog.tables.get(parent)
            names = {parent, *(table.above if table else ())}
            for reference in self._catalog.references:
                if reference.parent not in names:
                    continue
                touched = _touched(reference, kind, assigned, write)
                if touched is None or found.get(reference.child) in (touched, RiskKind.DELETED):
                    continue
                found[reference.child] = touched
                waiting.append((reference.child, touched, frozenset(reference.child_columns)))
        return found

    async def _carried_on(self, counted: RowsAtRisk, writes: list[RowWrite]) -> list[RowsAtRisk | Obstacle]:
        """What was counted, and the bounds for tables whose rows go or change because a foreign key says so."""
        found: list[RowsAtRisk | Obstacle] = [counted]
        if counted.rows == 0:
            return found
        reached: dict[TableName, RiskKind] = {}
        emptied = all(write.truncates for write in writes)
        for write in writes:
            for table, kind in self._handed_on(counted.table, write).items():
                if reached.get(table) is not RiskKind.DELETED:
                    reached[table] = kind
        for name, kind in sorted(reached.items()):
            if (name, kind) == (counted.table, counted.kind):
                continue
            risk = RowsAtRisk(revision=counted.revision, kind=kind, table=name)
            child = self._catalog.tables.get(name)
            if child is None:
                found.append(_unknown(risk, self._catalog.missing(name)))
                continue
            part = await self._count(risk, child.rows())
            if part.rows:
                found.append(msgspec.structs.replace(part, at_most=part.rows > 0 and not emptied))
        return found

    # What has to hold from then on.

    async def _new_rule(self, number: int, rule: NewRule) -> list[RowsAtRisk | Obstacle]:
        assert rule.today is not None
        absent = "" in rule.columns
        certain = not self._is_written(number, rule.today, rule.table, rule.other)
        obstacle = Obstacle(
            revision=self._rehearsal.revisions[number].id,
            rule="no_default" if rule.kind == "not_null" and absent else rule.kind,
            name=rule.name,
            table=rule.today,
            columns=tuple(column for column in rule.columns if column),
            certain=certain,
        )
        table = self._catalog.tables.get(rule.today)
        try:
            if table is None:
                raise _UnknownError(self._catalog.missing(rule.today))
            if absent and rule.kind != "not_null":
                return [await self._rule_on_new_column(obstacle, rule, table, certain)]
            rows, where, count = self._broken_by(rule, table)
            broken = await self._asking.rows(count or f"SELECT count(*) {rows} WHERE {where}")
            sample: tuple[str, ...] = ()
            if broken[0][0] and obstacle.rule != "no_default":
                sample = await self._sample(table, rows, where)
            return [msgspec.structs.replace(obstacle, rows=int(broken[0][0]), sample=sample)]
        except _UnknownError as problem:
            return [msgspec.structs.replace(obstacle, unknown=str(problem))]

    def _broken_by(self, rule: NewRule, table: _Table) -> tuple[str, str, str]:
        """The rows that break a rule: `FROM …`, their condition, and another way to count them where that is cheaper."""
        rows = table.rows(rule.table.name, renamed_columns(rule))
        columns = [quoted(column) for column in rule.columns if column]
        alias = quoted(rule.table.name)
        match rule.kind:
            case "not_null":
                absent = "" in rule.columns
                return (
                    rows,
                    "true" if absent else " OR ".join(f"{c} IS NOT DISTINCT FROM NULL" for c in columns),
                    "",
                )
            case "unique":
                return self._repeated(rule, rows, columns)
            case "foreign_key" if rule.other is not None:
                other = self._catalog.tables.get(rule.other)
                if other is None:
                    raise _UnknownError(f"{rule.other.text()}, which it points to, isn't there today")
                pairs = zip(rule.other_columns, columns, strict=True)
                there = " AND ".join(f"{alias}.{column} IS NOT NULL" for column in columns)
                match_ = " AND ".join(f"pointed_to.{quoted(o)} = {alias}.{c}" for o, c in pairs)
                orphan = f"NOT EXISTS (SELECT FROM {other.rows('pointed_to')[5:]} WHERE {match_})"
                broken = f"{there} AND {orphan}"
                if "MATCH FULL" in rule.definition.upper() and len(columns) > 1:
                    nulls = f"num_nulls({', '.join(f'{alias}.{c}' for c in columns)})"
                    broken = f"({broken}) OR ({nulls} > 0 AND {nulls} < {len(columns)})"
                return rows, f"({broken})", ""
            case "check":
                condition = checked_expression(rule.definition)
                if condition is None:
                    raise _UnknownError(f"its definition can't be read: {rule.definition}")
                # A row for which the condition is NULL passes.
                return rows, f"NOT ({condition})", ""
        raise _UnknownError(f"a rule of the kind {rule.kind} can't be counted")

    def _repeated(self, rule: NewRule, rows: str, columns: list[str]) -> tuple[str, str, str]:
        counts_nulls = rule.nulls_not_distinct or "NULLS NOT DISTINCT" in rule.definition.upper()
        conditions = [f"({rule.predicate})"] if rule.predicate else []
        if not counts_nulls:
            conditions += [f"{column} IS NOT NULL" for column in columns]
        where = " AND ".join(conditions) or "true"
        terms = ", ".join(columns)
        groups = f"SELECT {terms} {rows} WHERE {where} GROUP BY {terms} HAVING count(*) > 1"
        names = [f"rollbackd_{number}" for number in range(len(columns))]
        same = " AND ".join(
            f"repeated.{name} IS NOT DISTINCT FROM {column}"
            if counts_nulls
            else f"repeated.{name} = {column}"
            for name, column in zip(names, columns, strict=True)
        )
        # Each row of a group is counted: any of them might be the one that is wrong.
        count = (
            f"SELECT coalesce(sum(rollbackd_n), 0)::bigint FROM (SELECT count(*) AS rollbackd_n {rows}"
            f" WHERE {where} GROUP BY {terms} HAVING count(*) > 1) AS repeated"
        )
        return (
            rows,
            f"{where} AND EXISTS (SELECT FROM ({groups}) AS repeated({', '.join(names)}) WHERE {same})",
            count,
        )

    async def _rule_on_new_column(
        self, obstacle: Obstacle, rule: NewRule, table: _Table, certain: bool
    ) -> Obstacle:
        """A rule about something that is no column of today: an expression, or a column that the way back makes."""
        terms = key_terms(rule.definition)
        if rule.kind == "unique" and len(terms) == len(rule.columns):
            values = [
                quoted(column) if column else f"({term})"
                for column, term in zip(rule.columns, terms, strict=True)
            ]
            try:
                rows, where, count = self._repeated(rule, table.rows(rule.table.name), values)
                broken = int((await self._asking.rows(count))[0][0])
                sample = await self._sample(table, rows, where) if broken else ()
                return msgspec.structs.replace(obstacle, rows=broken, sample=sample)
            except _OutOfTimeError:
                raise
            except _UnknownError:
                pass  # not an expression of today's columns
        # One row can't repeat another one's value, and none breaks no rule at all.
        most = 1 if rule.kind == "unique" else 0
        if len(await self._asking.rows(f"SELECT {table.rows()} LIMIT {most + 1}")) <= most:
            return msgspec.structs.replace(obstacle, rows=0)
        if rule.kind == "foreign_key" and certain and self._starts_empty(rule, terms):
            return msgspec.structs.replace(obstacle, rows=0)
        return msgspec.structs.replace(
            obstacle, certain=False, unknown="it is about a column that isn't there today"
        )

    def _starts_empty(self, rule: NewRule, terms: tuple[str, ...]) -> bool:
        """Whether a column that the way back makes holds NULL in every row, which a foreign key lets pass."""
        for column, term in zip(rule.columns, terms, strict=False):
            if column:
                continue
            for table in (rule.table.text(), f"{rule.table.schema}.{quoted(rule.table.name)}"):
                definition = self._rehearsal.expected.objects.get(f"column {table}.{term}")
                if definition is not None and not any(f" {word} " in f" {definition} " for word in _FILLS):
                    return "MATCH FULL" not in rule.definition.upper()
        return False

    # Counting, estimating, naming.

    async def _count(
        self, risk: RowsAtRisk, rows: str, where: str = "", table: _Table | None = None, prefix: str = ""
    ) -> RowsAtRisk:
        condition = f" WHERE {where}" if where else ""
        try:
            number = int((await self._asking.rows(f"{prefix}SELECT count(*) {rows}{condition}"))[0][0])
        except _OutOfTimeError:
            return await self._estimate(risk, f"{rows}{condition}", prefix=prefix)
        except _UnknownError as problem:
            return _unknown(risk, str(problem))
        sample = await self._sample(table, rows, where) if table and number else ()
        return msgspec.structs.replace(risk, rows=number, sample=sample)

    async def _estimate(
        self, risk: RowsAtRisk, rows: str, *, at_most: bool = False, prefix: str = ""
    ) -> RowsAtRisk:
        try:
            number = await self._asking.estimate(f"{prefix}SELECT {rows}")
        except _UnknownError as problem:
            return _unknown(risk, str(problem))
        return msgspec.structs.replace(risk, rows=number, exact=False, at_most=at_most)

    async def _sample(
        self, table: _Table, rows: str, where: str, *, alias: str = "", prefix: str = ""
    ) -> tuple[str, ...]:
        """A few primary keys as text; none where the table has no primary key or no time is left."""
        if not table.key or self._samples <= 0:
            return ()
        columns = [f"{alias}.{quoted(column)}" if alias else quoted(column) for column in table.key]
        numbers = ", ".join(str(number + 1) for number in range(len(columns)))
        condition = f" WHERE {where}" if where else ""
        keys = (
            f"SELECT DISTINCT {', '.join(columns)} {rows}{condition} ORDER BY {numbers} LIMIT {self._samples}"
        )
        names = [f"k{number}" for number in range(len(columns))]
        texts = ", ".join(f"{name}::text" for name in names)
        try:
            found = await self._asking.rows(
                f"{prefix}SELECT {texts} FROM ({keys}) AS keys({', '.join(names)})", aside=True
            )
        except _UnknownError:
            return ()
        return tuple(_key_text(table.key, row) for row in found)


_FILLS = ("default", "identity", "generated", "not null")


def _unknown(risk: RowsAtRisk, why: str) -> RowsAtRisk:
    return msgspec.structs.replace(risk, rows=-1, unknown=why)


def _both_unknown(risk: RowsAtRisk, obstacle: Obstacle, why: str) -> list[RowsAtRisk | Obstacle]:
    return [_unknown(risk, why), msgspec.structs.replace(obstacle, unknown=why)]


def _touched(
    reference: _Reference, kind: RiskKind, assigned: frozenset[str] | None, write: RowWrite
) -> RiskKind | None:
    """What happens to the rows that refer to a written one."""
    if write.truncates:
        return RiskKind.DELETED if write.empties else None
    if kind is RiskKind.DELETED:
        return {"c": RiskKind.DELETED, "n": RiskKind.UPDATED, "d": RiskKind.UPDATED}.get(reference.on_delete)
    moves = assigned is None or bool(assigned & reference.parent_columns)
    return RiskKind.UPDATED if moves and reference.on_update in ("c", "n", "d") else None


def _may_move(earlier: RowWrite, write: RowWrite) -> bool:
    """Whether an earlier statement may change which rows of today a later one matches."""
    if earlier.table != write.table and earlier.table not in write.others:
        return False
    if earlier.table in write.others:
        return True
    if earlier.kind is RiskKind.DELETED:
        return False  # rows that are gone can only be fewer
    return earlier.assigned is None or bool(earlier.assigned & write.mentioned)


def _is_name(expression: str, changed: ChangedColumn) -> bool:
    plain = expression.rpartition(".")[2].strip('"')
    return plain in (changed.column, changed.today_column)


def _in_blocks(first: int, end: int) -> str:
    return f"ctid >= '({first},0)' AND ctid < '({end},0)'"


def _array(texts: Iterable[str]) -> str:
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"


def _key_text(names: tuple[str, ...], values: Iterable[Any]) -> str:
    pairs = []
    for name, value in zip(names, values, strict=True):
        text = str(value)
        pairs.append(f"{name}={text if len(text) <= _LONGEST_KEY else text[: _LONGEST_KEY - 1] + '…'}")
    return pairs[0] if len(pairs) == 1 else f"({', '.join(pairs)})"


def _shortened(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= 60 else line[:59] + "…"
