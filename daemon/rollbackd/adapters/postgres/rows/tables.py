"""The tables of a scratch database, read from the catalog: what each asks of a row."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from rollbackd.adapters.postgres.rows.column_types import KnownType, known_type, read_types
from rollbackd.core.made_up import Kind
from rollbackd.core.schema import TableName, quoted


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """A column, and what it takes without us."""

    name: str
    type_sql: str
    known: KnownType
    nullable: bool
    default: str
    """As an expression; empty for none."""
    server: str
    """The expression behind a value that is left to the server (a sequence); `generated` for computed ones."""
    place: tuple[int, int] | None
    """Position in a unique index, of how many."""

    @property
    def kind(self) -> Kind:
        """The shape behind its type."""
        return self.known.kind


class Check(msgspec.Struct, frozen=True):
    """A condition that each row must meet, and the columns that it speaks of."""

    name: str
    columns: tuple[str, ...]
    expression: str


class ForeignKey(msgspec.Struct, frozen=True, kw_only=True):
    """A foreign key; `full` where it is MATCH FULL."""

    name: str
    sql_name: str
    columns: tuple[str, ...]
    parent: TableName
    parent_columns: tuple[str, ...]
    deferrable: bool
    full: bool


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table, with all that may refuse a row."""

    name: TableName
    partitioned: bool
    columns: dict[str, Column]
    checks: tuple[Check, ...]
    keys: tuple[ForeignKey, ...]
    constraints: dict[str, tuple[str, ...]]
    """Columns by the constraint's or unique index's name, as errors give it."""
    wanted: bool
    """False for tables that are only referred to."""

    def source(self) -> str:
        """For FROM: inheriting tables have their own rows, partitions haven't."""
        return self.name.sql() if self.partitioned else f"ONLY {self.name.sql()}"

    def free(self) -> list[Column]:
        """Columns that take values from us."""
        return [c for c in self.columns.values() if not c.server]

    def required(self, key: ForeignKey) -> bool:
        """Whether each row must refer to one."""
        nullable = [self.columns[c].nullable for c in key.columns]
        return not (all(nullable) if key.full else any(nullable))


_USER_TABLES = """
SELECT c.oid::bigint AS oid, n.nspname, c.relname, c.relkind::text AS kind
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'
   AND NOT EXISTS (SELECT 1 FROM pg_depend x
                    WHERE x.classid = 'pg_class'::regclass AND x.objid = c.oid AND x.deptype = 'e')
 ORDER BY 2, 3
"""

_COLUMNS = """
SELECT a.attrelid::bigint AS table, a.attname AS name, a.attnum::int AS number, a.atttypid::bigint AS type,
       a.atttypmod AS modifier, format_type(a.atttypid, a.atttypmod) AS type_sql, a.attnotnull AS not_null,
       a.attidentity::text AS identity, a.attgenerated::text AS generated, pg_get_expr(d.adbin, d.adrelid) AS default,
       CASE WHEN a.attidentity <> '' THEN pg_get_serial_sequence(a.attrelid::regclass::text, a.attname) END AS sequence
  FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = ANY($1::bigint[]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 3
"""

_CONSTRAINTS = """
SELECT k.conrelid::bigint AS table, k.conname AS name, k.contype::text AS type, k.conkey::int[] AS columns,
       k.confrelid::bigint AS parent, k.confkey::int[] AS parent_columns, k.condeferrable AS deferrable,
       k.confmatchtype = 'f' AS full, pg_get_expr(k.conbin, k.conrelid) AS expression
  FROM pg_constraint k
 WHERE k.conrelid = ANY($1::bigint[]::oid[]) AND k.contype IN ('c', 'f', 'p', 'u', 'x') ORDER BY 1, 2
"""

# The columns of an expression, or of an index's predicate, are in pg_depend.
_UNIQUE_INDEXES = """
SELECT i.indrelid::bigint AS table, c.relname AS name, i.indkey::int[] AS columns, i.indnkeyatts::int AS width,
       ARRAY(SELECT DISTINCT d.refobjsubid FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
                AND d.refobjid = i.indrelid AND d.refobjsubid > 0 ORDER BY 1) AS used
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = ANY($1::bigint[]::oid[]) AND (i.indisunique OR i.indisexclusion)
 ORDER BY 1, i.indisprimary DESC, 2
"""

_PARTITIONS = """
WITH RECURSIVE below(root, oid, leaf) AS (
    SELECT c.oid, c.oid, false FROM pg_class c WHERE c.oid = ANY($1::bigint[]::oid[]) AND c.relkind = 'p'
    UNION ALL
    SELECT b.root, i.inhrelid, c.relkind <> 'p' FROM below b JOIN pg_inherits i ON i.inhparent = b.oid
      JOIN pg_class c ON c.oid = i.inhrelid
)
SELECT root::bigint AS table, coalesce(string_agg('(' || pg_get_partition_constraintdef(oid) || ')', ' OR ' ORDER BY oid)
       FILTER (WHERE leaf), '') AS expression, count(*) FILTER (WHERE leaf) AS leaves
  FROM below GROUP BY 1 ORDER BY 1
"""


class _Read(msgspec.Struct, frozen=True, kw_only=True):
    """The catalog's rows; tables by OID."""

    tables: list[Any]
    parts: dict[str, dict[int, list[Any]]]
    """`columns`, `constraints`, `indexes` and `partitions`, each by table."""
    types: dict[int, Any]
    names: dict[int, TableName]
    columns: dict[int, dict[int, str]]
    """Names by their numbers."""


async def read_tables(connection: asyncpg.Connection, skip: frozenset[TableName]) -> dict[TableName, Table]:
    """Every user table, with those that are to be skipped: others may refer to them."""
    read = await _read(connection)
    return {
        (name := read.names[row["oid"]]): _table(read, row, wanted=name not in skip) for row in read.tables
    }


async def _read(connection: asyncpg.Connection) -> _Read:
    async with connection.transaction(readonly=True):
        # An empty search_path makes PostgreSQL qualify every name it writes.
        await connection.execute("SET LOCAL search_path = ''")
        tables = await connection.fetch(_USER_TABLES)
        oids = [row["oid"] for row in tables]
        parts = {
            part: _grouped(await connection.fetch(query, oids))
            for part, query in (
                ("columns", _COLUMNS),
                ("constraints", _CONSTRAINTS),
                ("indexes", _UNIQUE_INDEXES),
                ("partitions", _PARTITIONS),
            )
        }
        used = {row["type"] for rows in parts["columns"].values() for row in rows}
        types = await read_types(connection, used)
    return _Read(
        tables=tables,
        parts=parts,
        types=types,
        names={row["oid"]: TableName(row["nspname"], row["relname"]) for row in tables},
        columns={oid: {row["number"]: row["name"] for row in rows} for oid, rows in parts["columns"].items()},
    )


def _table(read: _Read, row: Any, *, wanted: bool) -> Table:
    oid, name = row["oid"], read.names[row["oid"]]
    parts = {part: rows.get(oid, []) for part, rows in read.parts.items()}
    columns = read.columns.get(oid, {})
    unique = [(i["name"], _index_columns(i, columns)) for i in parts["indexes"]]
    constraints = {
        k["name"]: tuple(columns[n] for n in k["columns"] or () if n in columns) for k in parts["constraints"]
    }
    keys = _foreign_keys(read, name, parts["constraints"], constraints)
    return Table(
        name=name,
        partitioned=row["kind"] == "p",
        columns={
            c["name"]: _column(c, read.types, unique, any(c["name"] in k.columns for k in keys))
            for c in parts["columns"]
        },
        checks=(
            *_checks(parts["constraints"], constraints),
            *_partition_check(parts["partitions"], columns),
        ),
        keys=keys,
        constraints={**dict(unique), **constraints},
        wanted=wanted,
    )


def _foreign_keys(
    read: _Read, table: TableName, rows: Iterable[Any], constraints: Mapping[str, tuple[str, ...]]
) -> tuple[ForeignKey, ...]:
    return tuple(
        ForeignKey(
            name=k["name"],
            sql_name=f"{quoted(table.schema)}.{quoted(k['name'])}",
            columns=constraints[k["name"]],
            parent=read.names[k["parent"]],
            parent_columns=tuple(read.columns[k["parent"]][n] for n in k["parent_columns"]),
            deferrable=k["deferrable"],
            full=k["full"],
        )
        for k in rows
        # A partition may be referred to directly; it is left to the attempts.
        if k["type"] == "f" and k["parent"] in read.names
    )


def _grouped(rows: Iterable[Any]) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row["table"]].append(row)
    return grouped


def _index_columns(index: Any, columns: Mapping[int, str]) -> tuple[str, ...]:
    numbers = index["columns"][: index["width"]]
    if 0 in numbers:
        numbers = [*numbers, *index["used"]]
    return tuple(dict.fromkeys(columns[n] for n in numbers if n in columns))


def _checks(rows: Iterable[Any], constraints: Mapping[str, tuple[str, ...]]) -> list[Check]:
    return [Check(k["name"], constraints[k["name"]], k["expression"]) for k in rows if k["type"] == "c"]


def _partition_check(rows: Sequence[Any], columns: Mapping[int, str]) -> list[Check]:
    """That some partition takes the row, said as one more check."""
    if not rows or not rows[0]["leaves"] or not rows[0]["expression"]:
        return []
    expression = rows[0]["expression"]
    bare = re.sub(r"'(?:[^']|'')*'", " ", expression)
    named = tuple(
        name
        for name in columns.values()
        if quoted(name) in bare or re.search(rf"(?<![\w.\"]){re.escape(name)}(?![\w(\".])", bare)
    )
    return [Check("partition", named, expression)]


def _column(
    row: Any, types: Mapping[int, Any], unique: Sequence[tuple[str, tuple[str, ...]]], refers: bool
) -> Column:
    known = known_type(types, row["type"], row["modifier"])
    default = row["default"] or ""
    server = ""
    if row["identity"]:
        server = f"nextval({literal(row['sequence'] or '')}::regclass)"
    elif row["generated"]:
        server = "generated"
    elif "nextval(" in default:
        server = default
    if refers and server != "generated":
        server = ""  # a sequence wouldn't meet the rows that are there
    places = [(columns.index(row["name"]), len(columns)) for _, columns in unique if row["name"] in columns]
    return Column(
        name=row["name"],
        type_sql=row["type_sql"],
        known=known,
        nullable=not row["not_null"] and not known.not_null,
        default="" if default.startswith("NULL::") else default,
        server=server,
        place=min(places, key=lambda place: place[1], default=None),
    )


def literal(text: str) -> str:
    """Text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"
