"""Copies a bounded sample of rows, closed under foreign keys, into a scratch database of the same schema.

Rows are named by their place in the source's table while its one snapshot lasts, so that tables need no key. Each read
is a savepoint that is rolled back: the table's lock is given back at once, the snapshot stays.
"""

import io
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg
import structlog

from rollbackd.core.schema import TableName, quoted
from rollbackd.errors import TransientError

READ_TIMEOUT_S = 15.0
LOCK_TIMEOUT_S = 2.0
MOST_WANTED_ROWS = 100
"""For each condition, where `rows_per_table` doesn't allow more."""
_ROWS_A_READ = 1_000
_SEQUENCES_A_READ = 200

# Text must mean the same on both sides, whatever the roles' own settings say.
_SAME_TEXT = (
    "SET LOCAL DateStyle = 'ISO, YMD'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL extra_float_digits = 3;"
    " SET LOCAL bytea_output = 'hex'; SET LOCAL TimeZone = 'UTC'; SET LOCAL lc_monetary = 'C';"
    " SET LOCAL xmloption = 'content'; SET LOCAL row_security = off"
)

_log = structlog.get_logger(__name__)


async def copy_sample(
    source: asyncpg.Connection,
    scratch: asyncpg.Connection,
    *,
    rows_per_table: int,
    most_bytes: int,
    wanted: Mapping[TableName, Sequence[str]],
) -> int:
    """Copy a sample of every user table, with each row that a foreign key of a copied row points to.

    First come the version table, whole, and a bounded number of rows for each condition in `wanted`, then up to
    `rows_per_table` of each table, the smallest first, until their text comes to `most_bytes`. A row whose parents can't be read or don't
    fit is left out. All or nothing gets into `scratch`; `source` is read in one snapshot and must not be in a
    transaction.

    Returns:
        How many rows were copied.

    Raises:
        TransientError: a table was rewritten meanwhile, and the sample would have holes.
    """
    async with source.transaction(isolation="repeatable_read", readonly=True):
        await source.execute(_SAME_TEXT)
        async with scratch.transaction():
            await scratch.execute(_SAME_TEXT)
            sample = _Sample(source, await _read_layout(source, scratch), most_bytes)
            await _choose(sample, rows_per_table, wanted)
            copied = await _load(sample, source, scratch)
            await _set_sequences(source, scratch)
    return copied


class _Leaf(NamedTuple):
    """A table that holds rows itself: an ordinary one, or a partition; `unit` is the top of its partitions, or itself."""

    oid: int
    name: TableName
    unit: int
    pages: int
    columns: tuple[str, ...]
    is_version_table: bool


class _Key(NamedTuple):
    """A foreign key between two units; the columns are in pairs."""

    name: str
    child_table: TableName
    child: int
    parent: int
    parent_sql: str
    child_columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    equals: tuple[str, ...]
    deferrable: bool


class _Layout(NamedTuple):
    """The tables that both databases have, and the foreign keys among them."""

    leaves: dict[int, _Leaf]
    keys: tuple[_Key, ...]


class _Row(NamedTuple):
    """A row by its place: the OID of its table and its ctid."""

    leaf: int
    ctid: str


_LEAVES = """
SELECT c.oid, n.nspname, c.relname, coalesce(pg_partition_root(c.oid)::oid, c.oid), c.relpages,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              AND a.attgenerated = '' ORDER BY a.attnum),
       (SELECT count(*) = 1 AND bool_and(a.attname = 'version_num' AND a.atttypid = 'varchar'::regtype)
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.relpages, 2, 3
"""
_KEYS = """
SELECT k.conname, n.nspname, c.relname, coalesce(pg_partition_root(k.conrelid)::oid, k.conrelid),
       coalesce(pg_partition_root(k.confrelid)::oid, k.confrelid),
       CASE p.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || format('%I.%I', pn.nspname, p.relname),
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY o(n, i)
               JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = o.n ORDER BY o.i),
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY o(n, i)
               JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = o.n ORDER BY o.i),
       ARRAY(SELECT format('OPERATOR(%I.%s)', opn.nspname, op.oprname) FROM unnest(k.conpfeqop) WITH ORDINALITY o(n, i)
               JOIN pg_operator op ON op.oid = o.n JOIN pg_namespace opn ON opn.oid = op.oprnamespace ORDER BY o.i),
       k.condeferrable
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0
 ORDER BY k.oid
"""
# Triggers that a copied row would set off; those of foreign keys are PostgreSQL's own.
_TRIGGERS = """
SELECT n.nspname, c.relname, g.tgname, g.tgenabled::text FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT g.tgisinternal AND g.tgenabled::text = ANY($1) AND c.relkind IN ('r', 'p')
   AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'
 ORDER BY g.tgparentid DESC, g.oid
"""
_SEQUENCES = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^(pg_|information_schema$|rollbackd)' ORDER BY 1, 2
"""


async def _read_layout(source: asyncpg.Connection, scratch: asyncpg.Connection) -> _Layout:
    there = {TableName(row[1], row[2]) for row in await scratch.fetch(_LEAVES)}
    leaves = {
        row[0]: _Leaf(row[0], TableName(row[1], row[2]), row[3], row[4], tuple(row[5]), row[6])
        for row in await source.fetch(_LEAVES)
    }
    keys = [
        _Key(
            name=row[0],
            child_table=TableName(row[1], row[2]),
            child=row[3],
            parent=row[4],
            parent_sql=row[5],
            child_columns=tuple(row[6]),
            parent_columns=tuple(row[7]),
            equals=tuple(row[8]),
            deferrable=row[9],
        )
        for row in await source.fetch(_KEYS)
    ]
    return _Layout({oid: leaf for oid, leaf in leaves.items() if leaf.name in there}, tuple(keys))


class _UnreadableError(Exception):
    """A table that the closure needs can't be read."""


class _TooLargeError(Exception):
    """The rows and what they refer to don't fit into what is left."""


class _Sample:
    """The rows that were chosen so far, and the room that is left."""

    def __init__(self, source: asyncpg.Connection, layout: _Layout, most_bytes: int) -> None:
        self.source = source
        self.layout = layout
        self.chosen: dict[_Row, int] = {}
        self.left_bytes = most_bytes
        self._keys: dict[int, list[_Key]] = {}
        for key in layout.keys:
            self._keys.setdefault(key.child, []).append(key)

    async def roots(self, leaf: _Leaf, condition: str, limit: int | None) -> dict[_Row, int]:
        """Rows of one table with the size of their text; empty where it can't be read."""
        where = f" WHERE ({condition})" if condition else ""
        most = f" LIMIT {limit}" if limit is not None else ""
        # The table's own name as the alias, as conditions may use it.
        alias = quoted(leaf.name.name)
        query = f"SELECT tableoid, ctid, rollbackd_size FROM (SELECT {alias}.tableoid, {alias}.ctid,"
        query += f" {self._size(alias)} AS rollbackd_size FROM ONLY {leaf.name.sql()} AS {alias}{where}{most}) AS r"
        try:
            return self._rows(await self._read(query))
        except _UnreadableError as problem:
            _log.warning("sample_skipped", table=leaf.name.text(), condition=condition, reason=str(problem))
            return {}

    async def take(self, roots: dict[_Row, int]) -> None:
        """Choose as many of these rows as fit with all that they refer to."""
        waiting = [{row: size for row, size in roots.items() if row not in self.chosen}]
        while waiting:
            batch = waiting.pop()
            if not batch:
                continue
            try:
                closed = await self._closure(batch)
            except _UnreadableError as problem:
                # Rows without such a reference may be had all the same.
                if len(batch) == 1:
                    _log.debug("sample_row_skipped", reason=str(problem))
                    continue
            except _TooLargeError:
                if len(batch) == 1:
                    continue
            else:
                self.chosen |= closed
                self.left_bytes -= sum(closed.values())
                continue
            rows = list(batch.items())
            waiting += [dict(rows[len(rows) // 2 :]), dict(rows[: len(rows) // 2])]

    def choose_whole(self, rows: dict[_Row, int]) -> None:
        """Choose rows whatever they take."""
        self.chosen |= rows
        self.left_bytes -= sum(rows.values())

    async def _closure(self, roots: dict[_Row, int]) -> dict[_Row, int]:
        """These rows and all that they refer to, without what is chosen already."""
        found = {row: size for row, size in roots.items() if row not in self.chosen}
        waiting = list(found)
        while waiting:
            if sum(found.values()) > self.left_bytes:
                raise _TooLargeError
            by_leaf: dict[int, list[str]] = {}
            for row in waiting:
                by_leaf.setdefault(row.leaf, []).append(row.ctid)
            waiting = []
            for oid, ctids in by_leaf.items():
                for key in self._keys.get(self.layout.leaves[oid].unit, ()):
                    parents = await self._parents(self.layout.leaves[oid], key, ctids)
                    new = {row: size for row, size in parents.items() if row not in found}
                    found |= {row: size for row, size in new.items() if row not in self.chosen}
                    waiting += [row for row in new if row not in self.chosen]
        return found

    async def _parents(self, leaf: _Leaf, key: _Key, ctids: list[str]) -> dict[_Row, int]:
        # The key's own operators, which needn't be in the search path.
        same = " AND ".join(
            f"parent.{quoted(p)} {equals} child.{quoted(c)}"
            for p, equals, c in zip(key.parent_columns, key.equals, key.child_columns, strict=True)
        )
        found: dict[_Row, int] = {}
        for part in _parts(ctids):
            query = (
                f"SELECT parent.tableoid, parent.ctid, {self._size('parent')} FROM {key.parent_sql} AS parent"
            )
            query += f" WHERE EXISTS (SELECT FROM ONLY {leaf.name.sql()} AS child"
            query += f" WHERE child.ctid = ANY({_tids(part)}) AND {same})"
            found |= self._rows(await self._read(query))
        return found

    def _rows(self, rows: Iterable[asyncpg.Record]) -> dict[_Row, int]:
        found = {_Row(row[0], "({},{})".format(*row[1])): int(row[2]) for row in rows}
        return {row: size for row, size in found.items() if row.leaf in self.layout.leaves}

    @staticmethod
    def _size(alias: str) -> str:
        # The row as text is what travels; a row that is large in the table isn't written out to see how large.
        large = "CASE WHEN pg_column_size({0}.*) > 1000000 THEN pg_column_size({0}.*) ELSE octet_length(({0}.*)::text) END"
        return large.format(alias)

    async def _read(self, query: str) -> list[asyncpg.Record]:
        async with _reading(self.source):
            found: list[asyncpg.Record] = await self.source.fetch(query, timeout=READ_TIMEOUT_S)
            return found


@asynccontextmanager
async def _reading(source: asyncpg.Connection) -> AsyncIterator[None]:
    """One short read within the snapshot; its locks are given back whatever happens.

    Raises:
        _UnreadableError: the table is gone, locked, too slow or not ours to read.
    """
    savepoint = source.transaction()
    await savepoint.start()
    try:
        await source.execute(
            f"SET LOCAL statement_timeout = '{READ_TIMEOUT_S * 1000:.0f}ms';"
            f" SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S * 1000:.0f}ms'"
        )
        yield
    except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError):
        raise
    except (asyncpg.PostgresError, TimeoutError) as problem:
        raise _UnreadableError(str(problem) or "it took too long") from None
    finally:
        if not source.is_closed():
            await savepoint.rollback()


async def _choose(sample: _Sample, rows_per_table: int, wanted: Mapping[TableName, Sequence[str]]) -> None:
    leaves = sample.layout.leaves
    by_unit: dict[int, list[_Leaf]] = {}
    for leaf in leaves.values():
        by_unit.setdefault(leaf.unit, []).append(leaf)
        if leaf.is_version_table:
            sample.choose_whole(await sample.roots(leaf, "", None))
    units = await _unit_names(sample)
    for name, conditions in wanted.items():
        for condition in conditions:
            # A partitioned table stands for its partitions, and one of them for itself.
            limit = max(rows_per_table, MOST_WANTED_ROWS)
            for leaf in leaves.values():
                if limit > 0 and name in (leaf.name, units.get(leaf.unit)):
                    found = await sample.roots(leaf, condition, limit)
                    limit -= len(found)
                    await sample.take(found)
    for parts in sorted(by_unit.values(), key=lambda p: sum(leaf.pages for leaf in p)):
        limit = rows_per_table
        for number, leaf in enumerate(parts):
            if sample.left_bytes <= 0:
                return
            # Each partition gets its share; what one has not is left to the next.
            found = await sample.roots(leaf, "", -(-limit // (len(parts) - number)))
            limit -= len(found)
            await sample.take(found)


async def _unit_names(sample: _Sample) -> dict[int, TableName]:
    units = list({leaf.unit for leaf in sample.layout.leaves.values()})
    query = "SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    rows = await sample.source.fetch(f"{query} WHERE c.oid = ANY($1::oid[])", units)
    return {row[0]: TableName(row[1], row[2]) for row in rows}


async def _load(sample: _Sample, source: asyncpg.Connection, scratch: asyncpg.Connection) -> int:
    by_leaf: dict[int, list[str]] = {}
    for row in sample.chosen:
        by_leaf.setdefault(row.leaf, []).append(row.ctid)
    leaves = [sample.layout.leaves[oid] for oid in by_leaf]
    replica = await _can_be_replica(scratch)
    # As a replica, only triggers fire that say so; otherwise all do that aren't for replicas alone.
    fires = ["A", "R"] if replica else ["O", "A"]
    triggers = await scratch.fetch(_TRIGGERS, fires)
    for schema, table, trigger, _ in triggers:
        await scratch.execute(
            f"ALTER TABLE ONLY {TableName(schema, table).sql()} DISABLE TRIGGER {quoted(trigger)}"
        )
    deferred: list[_Key] = []
    if replica:
        await scratch.execute("SET LOCAL session_replication_role = replica")
    else:
        leaves, deferred = _in_order(leaves, sample.layout.keys)
        for key in deferred:
            await scratch.execute(
                f"ALTER TABLE {key.child_table.sql()} ALTER CONSTRAINT {quoted(key.name)} DEFERRABLE INITIALLY DEFERRED"
            )
        await scratch.execute("SET CONSTRAINTS ALL DEFERRED")
    copied = 0
    for leaf in leaves:
        if leaf.is_version_table:
            await scratch.execute(f"DELETE FROM {leaf.name.sql()}")
        copied += await _copy_table(source, scratch, leaf, by_leaf[leaf.oid])
    if replica:
        await scratch.execute("SET LOCAL session_replication_role = origin")
    else:
        # Constraints can't be altered, nor triggers enabled, while checks of theirs are waiting.
        await scratch.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for key in deferred:
            await scratch.execute(
                f"ALTER TABLE {key.child_table.sql()} ALTER CONSTRAINT {quoted(key.name)} NOT DEFERRABLE"
            )
    again = {"A": "ENABLE ALWAYS", "R": "ENABLE REPLICA", "O": "ENABLE"}
    for schema, table, trigger, enabled in triggers:
        name = TableName(schema, table).sql()
        await scratch.execute(f"ALTER TABLE ONLY {name} {again[enabled]} TRIGGER {quoted(trigger)}")
    return copied


async def _can_be_replica(scratch: asyncpg.Connection) -> bool:
    savepoint = scratch.transaction()
    await savepoint.start()
    try:
        await scratch.execute("SET LOCAL session_replication_role = replica")
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await savepoint.rollback()
    return True


def _in_order(leaves: list[_Leaf], keys: Sequence[_Key]) -> tuple[list[_Leaf], list[_Key]]:
    """Parents before children, and the keys of circles, whose checks have to wait until all rows are there."""
    waiting = {leaf.unit for leaf in leaves}
    needs = {unit: {k.parent for k in keys if k.child == unit} & waiting - {unit} for unit in waiting}
    order: list[int] = []
    while waiting:
        ready = [unit for unit in waiting if not needs[unit] & waiting]
        # In a circle any may begin; the one that waits for the fewest leaves the fewest keys open.
        ready = ready or [min(waiting, key=lambda unit: len(needs[unit] & waiting))]
        order += ready
        waiting -= set(ready)
    place = {unit: number for number, unit in enumerate(order)}
    # Rows of one partition may point to rows of the next, and both are loaded one after the other.
    parts = {unit: sum(leaf.unit == unit for leaf in leaves) for unit in place}
    open_keys = [
        key
        for key in keys
        if key.child in place
        and key.parent in place
        and not key.deferrable
        and (place[key.parent] > place[key.child] or (key.parent == key.child and parts[key.child] > 1))
    ]
    return sorted(leaves, key=lambda leaf: place[leaf.unit]), open_keys


async def _copy_table(
    source: asyncpg.Connection, scratch: asyncpg.Connection, leaf: _Leaf, ctids: list[str]
) -> int:
    if not leaf.columns:
        await scratch.execute(f"INSERT INTO {leaf.name.sql()} SELECT FROM generate_series(1, {len(ctids)})")
        return len(ctids)
    columns = ", ".join(quoted(column) for column in leaf.columns)

    async def pieces() -> AsyncIterator[bytes]:
        for part in _parts(ctids):
            read = io.BytesIO()
            query = f"SELECT {columns} FROM ONLY {leaf.name.sql()} WHERE ctid = ANY({_tids(part)})"
            async with _reading(source):
                # Without a search path, names in values (regclass and the like) are written in full.
                await source.execute("SET LOCAL search_path = pg_catalog")
                # As text and not binary, which carries OIDs of types that are others on the other side.
                await source.copy_from_query(query, output=read, format="text", timeout=READ_TIMEOUT_S)
            yield read.getvalue()

    try:
        status = await scratch.copy_to_table(
            leaf.name.name, schema_name=leaf.name.schema, columns=leaf.columns, source=pieces(), format="text"
        )
    except _UnreadableError as problem:
        raise TransientError(f"{leaf.name.text()} changed while its sample was copied: {problem}") from None
    copied = int(status.rpartition(" ")[2])
    if copied != len(ctids):
        # Written anew since (VACUUM FULL, ALTER TABLE), so that the rows aren't where they were.
        raise TransientError(
            f"{leaf.name.text()} was rewritten while its sample was copied: {copied} of {len(ctids)} rows were found;"
            " try again when no migration runs"
        )
    return copied


async def _set_sequences(source: asyncpg.Connection, scratch: asyncpg.Connection) -> None:
    there = {TableName(*row) for row in await scratch.fetch(_SEQUENCES)}
    names = [name for name in (TableName(*row) for row in await source.fetch(_SEQUENCES)) if name in there]
    for first in range(0, len(names), _SEQUENCES_A_READ):
        part = names[first : first + _SEQUENCES_A_READ]
        try:
            values = await _sequence_values(source, part)
        except _UnreadableError:
            values = {}
            for name in part:
                try:
                    values |= await _sequence_values(source, [name])
                except _UnreadableError as problem:
                    _log.warning("sample_sequence_skipped", sequence=name.text(), reason=str(problem))
        await scratch.executemany(
            "SELECT setval($1::text::regclass, $2, $3)",
            [(name.sql(), last, called) for name, (last, called) in values.items()],
        )


async def _sequence_values(
    source: asyncpg.Connection, names: list[TableName]
) -> dict[TableName, tuple[int, bool]]:
    query = " UNION ALL ".join(
        f"SELECT {number}, last_value, is_called FROM {name.sql()}" for number, name in enumerate(names)
    )
    async with _reading(source):
        return {names[row[0]]: (row[1], row[2]) for row in await source.fetch(query)}


def _parts(ctids: list[str]) -> list[list[str]]:
    return [ctids[first : first + _ROWS_A_READ] for first in range(0, len(ctids), _ROWS_A_READ)]


def _tids(ctids: list[str]) -> str:
    return "'{" + ",".join(f'"{ctid}"' for ctid in ctids) + "}'::tid[]"
