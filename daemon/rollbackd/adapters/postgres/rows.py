"""Made-up rows for a scratch database, so that what a migration does to rows shows where there are none.

Which values there are is core's (`rollbackd.core.made_up`); here the catalog says what a table asks for, and the
database has the last word: whatever is tried is tried in a savepoint.
"""

import enum
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec

from rollbackd.core.made_up import (
    Face,
    Kind,
    Literals,
    candidates,
    guesses,
    is_small,
    literals_of,
    made_up,
    number_for,
    tame,
    wide,
    wish,
)
from rollbackd.core.schema import TableName, quoted

MOST_ATTEMPTS = 24
"""Attempts at one row. An error that names no constraint costs three: varying the values seldom mends it."""

MOST_EXTRA = 4
"""Rows a table gets beyond `rows`, where those can't show everything (NULL, a default, two that are the same)."""

STATEMENT_TIMEOUT = "10s"
"""Where the connection has none: a trigger of the user's may never end."""

_MOST_COMBINATIONS = 4096
_MOST_PARENTS = 50


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
    what its columns may hold (NULL, a label, a text as long as allowed, the same value twice) gets up to `MOST_EXTRA`
    more. Tables that can't be filled say why; only a lost connection raises. Called outside of a transaction.
    """
    filling = _Filling(connection, await _read_catalog(connection, skip), rows)
    await filling.look_at_types()
    return await filling.fill()


# --- The catalog ------------------------------------------------------------------------------------------------------


class _Column(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type_sql: str
    known: "_Known"
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


class _Check(msgspec.Struct, frozen=True):
    name: str
    columns: tuple[str, ...]
    expression: str


class _ForeignKey(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    sql_name: str
    columns: tuple[str, ...]
    parent: TableName
    parent_columns: tuple[str, ...]
    deferrable: bool
    full: bool


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    name: TableName
    partitioned: bool
    columns: dict[str, _Column]
    checks: tuple[_Check, ...]
    keys: tuple[_ForeignKey, ...]
    constraints: dict[str, tuple[str, ...]]
    """Columns by the constraint's or unique index's name, as errors give it."""
    wanted: bool
    """False for tables that are only referred to."""

    def source(self) -> str:
        """For FROM: inheriting tables have their own rows, partitions haven't."""
        return self.name.sql() if self.partitioned else f"ONLY {self.name.sql()}"

    def free(self) -> list[_Column]:
        """Columns that take values from us."""
        return [c for c in self.columns.values() if not c.server]

    def required(self, key: _ForeignKey) -> bool:
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

_TYPES = """
SELECT t.oid::bigint AS oid, t.typname AS name, t.typtype::text AS type, t.typcategory::text AS category,
       t.typelem::bigint AS element, t.typlen AS length, t.typbasetype::bigint AS base, format_type(t.typbasetype, t.typtypmod) AS base_sql, t.typtypmod AS modifier,
       t.typnotnull AS not_null, t.typdelim::text AS delimiter,
       (SELECT r.rngsubtype::bigint FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS range_of,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
       ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
              WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY k.conname) AS checks,
       ARRAY(SELECT a.atttypid::bigint FROM pg_attribute a
              WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS attributes,
       ARRAY(SELECT a.atttypmod FROM pg_attribute a
              WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS modifiers
  FROM pg_type t WHERE t.oid = ANY($1::bigint[]::oid[])
"""


async def _read_catalog(
    connection: asyncpg.Connection, skip: frozenset[TableName]
) -> dict[TableName, _Table]:
    """Every user table, with those that are to be skipped: others may refer to them."""
    async with connection.transaction(readonly=True):
        # An empty search_path makes PostgreSQL qualify every name it writes.
        await connection.execute("SET LOCAL search_path = ''")
        tables = await connection.fetch(_USER_TABLES)
        oids = [row["oid"] for row in tables]
        by_table = {
            part: _grouped(await connection.fetch(query, oids))
            for part, query in (
                ("columns", _COLUMNS),
                ("constraints", _CONSTRAINTS),
                ("indexes", _UNIQUE_INDEXES),
                ("partitions", _PARTITIONS),
            )
        }
        used = {row["type"] for rows in by_table["columns"].values() for row in rows}
        types = await _read_types(connection, used)
    names = {row["oid"]: TableName(row["nspname"], row["relname"]) for row in tables}
    numbered = {
        oid: {row["number"]: row["name"] for row in rows} for oid, rows in by_table["columns"].items()
    }
    found: dict[TableName, _Table] = {}
    for row in tables:
        oid, name = row["oid"], names[row["oid"]]
        parts = {part: rows.get(oid, []) for part, rows in by_table.items()}
        columns = numbered.get(oid, {})
        unique = [(i["name"], _index_columns(i, columns)) for i in parts["indexes"]]
        constraints = {
            k["name"]: tuple(columns[n] for n in k["columns"] or () if n in columns)
            for k in parts["constraints"]
        }
        keys = [
            _ForeignKey(
                name=k["name"],
                sql_name=f"{quoted(name.schema)}.{quoted(k['name'])}",
                columns=constraints[k["name"]],
                parent=names[k["parent"]],
                parent_columns=tuple(numbered[k["parent"]][n] for n in k["parent_columns"]),
                deferrable=k["deferrable"],
                full=k["full"],
            )
            for k in parts["constraints"]
            # A partition may be referred to directly; it is left to the attempts.
            if k["type"] == "f" and k["parent"] in names
        ]
        found[name] = _Table(
            name=name,
            partitioned=row["kind"] == "p",
            columns={
                c["name"]: _column(c, types, unique, any(c["name"] in k.columns for k in keys))
                for c in parts["columns"]
            },
            checks=(
                *_checks(parts["constraints"], constraints),
                *_partition_check(parts["partitions"], columns),
            ),
            keys=tuple(keys),
            constraints={**dict(unique), **constraints},
            wanted=name not in skip,
        )
    return found


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


def _checks(rows: Iterable[Any], constraints: Mapping[str, tuple[str, ...]]) -> list[_Check]:
    return [_Check(k["name"], constraints[k["name"]], k["expression"]) for k in rows if k["type"] == "c"]


def _partition_check(rows: Sequence[Any], columns: Mapping[int, str]) -> list[_Check]:
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
    return [_Check("partition", named, expression)]


def _column(
    row: Any, types: Mapping[int, Any], unique: Sequence[tuple[str, tuple[str, ...]]], refers: bool
) -> _Column:
    known = _known(types, row["type"], row["modifier"])
    default = row["default"] or ""
    server = ""
    if row["identity"]:
        server = f"nextval({_literal(row['sequence'] or '')}::regclass)"
    elif row["generated"]:
        server = "generated"
    elif "nextval(" in default:
        server = default
    if refers and server != "generated":
        server = ""  # a sequence wouldn't meet the rows that are there
    places = [(columns.index(row["name"]), len(columns)) for _, columns in unique if row["name"] in columns]
    return _Column(
        name=row["name"],
        type_sql=row["type_sql"],
        known=known,
        nullable=not row["not_null"] and not known.not_null,
        default="" if default.startswith("NULL::") else default,
        server=server,
        place=min(places, key=lambda place: place[1], default=None),
    )


async def _read_types(connection: asyncpg.Connection, wanted: set[int]) -> dict[int, Any]:
    """These types and all that they are made of."""
    known: dict[int, Any] = {}
    while missing := sorted(wanted - known.keys()):
        for row in await connection.fetch(_TYPES, missing):
            known[row["oid"]] = row
            parts = (row["element"], row["base"], row["range_of"], *row["attributes"])
            wanted = wanted | {oid for oid in parts if oid}
        wanted &= wanted - (set(missing) - known.keys())
    return known


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """A type, domains looked through: the shape behind them, their checks, their NOT NULL, what they are based on."""

    kind: Kind
    checks: tuple[str, ...] = ()
    not_null: bool = False
    base_sql: str = ""


def _known(types: Mapping[int, Any], oid: int, modifier: int) -> _Known:
    row = types.get(oid)
    if row is None:
        return _Known(kind=Kind(name="unknown"))
    match row["type"]:
        case "d":
            base = _known(types, row["base"], row["modifier"])
            return _Known(
                kind=base.kind,
                checks=(*base.checks, *row["checks"]),
                not_null=base.not_null or row["not_null"],
                base_sql=base.base_sql or row["base_sql"],
            )
        case "e":
            return _Known(kind=Kind(name="enum", labels=tuple(row["labels"])))
        case "c":
            parts = zip(row["attributes"], row["modifiers"], strict=True)
            return _Known(
                kind=Kind(name="composite", parts=tuple(_known(types, o, m).kind for o, m in parts))
            )
        case "r" | "m":
            name = "range" if row["type"] == "r" else "multirange"
            return _Known(kind=Kind(name=name, parts=(_known(types, row["range_of"], -1).kind,)))
    if row["category"] == "A" and row["element"] and row["length"] == -1:
        element = _known(types, row["element"], modifier).kind
        delimiter = types[row["element"]]["delimiter"] if row["element"] in types else ","
        return _Known(kind=Kind(name="array", parts=(element,), delimiter=delimiter))
    return _Known(kind=_limited(row["name"], modifier))


def _limited(name: str, modifier: int) -> Kind:
    if modifier >= 0 and name in ("varchar", "bpchar"):
        return Kind(name=name, limit=modifier - 4)
    if modifier >= 0 and name in ("bit", "varbit", "vector", "halfvec"):
        return Kind(name=name, limit=modifier)
    if modifier >= 0 and name == "numeric":
        packed = modifier - 4
        return Kind(name=name, limit=packed >> 16 & 0xFFFF, scale=((packed & 0x7FF) ^ 1024) - 1024)
    return Kind(name=name)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# --- The order of tables ----------------------------------------------------------------------------------------------


def _groups(tables: Mapping[TableName, _Table]) -> list[list[_Table]]:
    """Tables in the order in which they can be filled; those that refer to each other in a circle stand together."""
    parents = {name: sorted({k.parent for k in table.keys} - {name}) for name, table in tables.items()}
    children: dict[TableName, list[TableName]] = defaultdict(list)
    for name in sorted(parents):
        for parent in parents[name]:
            children[parent].append(name)
    # Kosaraju: leaving order on one graph, then what is reachable on the reversed one.
    seen: set[TableName] = set()
    left: list[TableName] = []
    for name in sorted(parents):
        left += _leaving_order(name, children, seen)
    placed: set[TableName] = set()
    members = [_leaving_order(name, parents, placed) for name in reversed(left)]
    return [[tables[name] for name in sorted(group)] for group in members if group]


def _leaving_order(
    start: TableName, graph: Mapping[TableName, Sequence[TableName]], seen: set[TableName]
) -> list[TableName]:
    """Depth first, without recursion: chains of foreign keys may be longer than Python's stack."""
    if start in seen:
        return []
    seen.add(start)
    left = []
    stack = [(start, iter(graph.get(start, ())))]
    while stack:
        name, following = stack[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(graph.get(other, ()))))
                break
        else:
            left.append(name)
            stack.pop()
    return left


# --- What goes into a row ---------------------------------------------------------------------------------------------


class _Left(enum.Enum):
    """What isn't a value: left to the column's default; the row's own key."""

    DEFAULT = "default"
    OWN = "own"


_Cell = str | _Left | None


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    """Columns whose values only go together, and what is possible for them."""

    columns: tuple[str, ...]
    options: tuple[tuple[_Cell, ...], ...]
    refers: bool
    """Whether it holds a foreign key: several rows may well refer to the same one."""
    own: dict[str, str] = {}
    """Column to the column of the same row that it refers to."""


class _Mood(enum.IntEnum):
    """How a row is tried, the most telling way first."""

    AS_WISHED = 0
    TAME = 1
    ONLY_VALUES = 2
    SPARSE = 3

    @classmethod
    def at(cls, attempt: int) -> "_Mood":
        return cls(0 if attempt < 8 else 1 if attempt < 16 else 2 if attempt < 20 else 3)


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A table with what its columns may take just now."""

    table: _Table
    loose: tuple[_Column, ...]
    blocks: tuple[_Block, ...]
    rows: int

    def cells(
        self,
        row: int,
        mood: _Mood = _Mood.AS_WISHED,
        steps: Mapping[str, int] | None = None,
        asked: Mapping[str, _Cell] | None = None,
        valued: bool = False,
    ) -> dict[str, _Cell]:
        """Row number `row`. `steps` moves columns on from what was refused, `asked` names values for some."""
        steps, asked = steps or {}, asked or {}
        if mood > _Mood.TAME:
            asked = {}
        faces = {c.name: self._face(c, row, mood, valued) for c in self.table.free()}
        found: dict[str, _Cell] = {}
        for column in self.loose:
            face, turn = faces[column.name]
            if column.name in asked:
                found[column.name] = asked[column.name]
            elif face is Face.NULL:
                found[column.name] = None
            elif face is Face.DEFAULT:
                found[column.name] = _Left.DEFAULT
            else:
                number = self._number(column, row, turn, steps.get(column.name, 0))
                found[column.name] = made_up(column.kind, number if mood is _Mood.AS_WISHED else tame(number))
        for block in self.blocks:
            found.update(zip(block.columns, self._chosen(block, row, faces, steps, asked), strict=True))
        return found

    def _face(self, column: _Column, row: int, mood: _Mood, valued: bool) -> tuple[Face, int]:
        wished = wish(row, self.rows, nullable=column.nullable, has_default=bool(column.default))
        if valued or mood is _Mood.ONLY_VALUES:
            return Face.VALUE, row
        if mood is _Mood.SPARSE and (column.default or column.nullable):
            return Face.DEFAULT if column.default else Face.NULL, row
        return wished.face, wished.turn

    def _number(self, column: _Column, row: int, turn: int, step: int) -> int:
        if not step:
            return number_for(row, turn, column.kind, column.place)
        return (row if column.place else turn // 2) + step

    def _chosen(
        self,
        block: _Block,
        row: int,
        faces: Mapping[str, tuple[Face, int]],
        steps: Mapping[str, int],
        asked: Mapping[str, _Cell],
    ) -> tuple[_Cell, ...]:
        def score(option: tuple[_Cell, ...]) -> int:
            points = 0
            for name, cell in zip(block.columns, option, strict=True):
                if name in asked:
                    points += 3 * (cell == asked[name])
                points += _shows(cell) is faces[name][0]
            return points

        scores = [score(option) for option in block.options]
        highest = max(scores)
        best = [o for o, s in zip(block.options, scores, strict=True) if s == highest]
        placed = [self.table.columns[name] for name in block.columns if self.table.columns[name].place]
        turn = min(faces[name][1] for name in block.columns)
        if len(placed) == 1:
            number = number_for(row, turn, placed[0].kind, placed[0].place)
        elif placed:
            number = row
        else:
            number = turn // 2 if block.refers or len(best) > 8 else turn
        step = max(steps.get(name, 0) for name in block.columns)
        if step:
            number = (row if placed else number) + step
        # Neighbours among combinations share most of their values; a stride goes to different ones.
        stride = 1 if len(block.columns) == 1 or block.refers else _coprime(len(best))
        return best[number * stride % len(best)]


def _shows(cell: _Cell) -> Face:
    if cell is None:
        return Face.NULL
    return Face.DEFAULT if cell is _Left.DEFAULT else Face.VALUE


def _coprime(length: int) -> int:
    """About the golden section of a length, with no divisor in common, so that steps of it meet every place."""
    return next((n for n in range(max(1, length * 618 // 1000), length) if math.gcd(n, length) == 1), 1)


# --- What rows show ---------------------------------------------------------------------------------------------------


class _Show(enum.StrEnum):
    """What a column's rows should show between them."""

    VALUE = "value"
    NULL = "null"
    LABEL = "label"
    WIDE = "wide"
    SHARED = "shared"


class _Shown(msgspec.Struct, frozen=True):
    """One such thing, and the aggregate that is above zero where it is shown."""

    column: str
    what: _Show
    aggregate: str
    label: str = ""


def _to_show(table: _Table, rows: int) -> list[_Shown]:
    """The reasons why a downgrade fails over rows: each is something that the schema allows and the older one may not."""
    bound = {name for check in table.checks for name in check.columns}
    bound |= {name for key in table.keys for name in key.columns}
    found = []
    for column in table.free():
        name, sql = column.name, quoted(column.name)
        found.append(_Shown(name, _Show.VALUE, f"count({sql})"))
        if column.nullable:
            found.append(_Shown(name, _Show.NULL, f"count(*) - count({sql})"))
        for label in _labels(column.kind, rows):
            literal = _literal(label)
            found.append(_Shown(name, _Show.LABEL, f"count(*) FILTER (WHERE {sql}::text = {literal})", label))
        beyond = _beyond(column.kind, sql)
        if beyond and name not in bound and not column.known.base_sql:
            found.append(_Shown(name, _Show.WIDE, f"count(*) FILTER (WHERE {beyond})"))
        if column.place is None and not is_small(column.kind):
            found.append(_Shown(name, _Show.SHARED, f"count({sql}) - count(DISTINCT {sql}::text)"))
    return found


def _labels(kind: Kind, rows: int) -> tuple[str, ...]:
    if kind.name == "bool":
        return ("true", "false")
    if len(kind.labels) <= rows:
        return kind.labels
    return tuple(dict.fromkeys((kind.labels[0], kind.labels[-1])))


def _beyond(kind: Kind, sql: str) -> str:
    """The condition that a value fills its type; empty where that has no meaning."""
    match kind.name:
        case "int4":
            return f"{sql} NOT BETWEEN -32768 AND 32767"
        case "int8":
            return f"{sql} NOT BETWEEN -2147483648 AND 2147483647"
        case "varchar" | "bpchar" if kind.limit is not None:
            return f"length({sql}) >= {kind.limit}"
        case "text" | "varchar":
            return f"length({sql}) > 255"
        case "numeric" if kind.limit is not None:
            return f"abs({sql}) >= 10::numeric ^ {kind.limit - kind.scale - 1}"
    return ""


# --- Filling ----------------------------------------------------------------------------------------------------------


class _Unfit(Exception):
    """A table that takes no row of ours; the message is the reason."""


class _Account(msgspec.Struct):
    """A table's numbers while it is being filled."""

    rows: int = 0
    added: int = 0
    lacking: tuple[_Shown, ...] = ()
    reasons: tuple[str, ...] = ()


_Write = Callable[[Mapping[str, _Cell]], Awaitable[None]]


class _Filling:
    """One call of `fill_tables`."""

    def __init__(self, connection: asyncpg.Connection, tables: dict[TableName, _Table], rows: int) -> None:
        self._connection = connection
        self._tables = tables
        self._rows = rows
        self._accounts = {name: _Account() for name, table in tables.items() if table.wanted}
        # By type: the only texts that it takes. Types that take whatever is made up for them aren't here.
        self._only: dict[str, tuple[str, ...]] = {}
        self._promised: dict[TableName, list[dict[str, str]]] = {}

    async def fill(self) -> tuple[Filled, ...]:
        """Parents first; then what only works when all have rows."""
        groups = [[t for t in group if t.wanted] for group in _groups(self._tables)]
        for group in groups:
            await self._fill_group(group)
        for table in itertools.chain.from_iterable(groups):
            await self._complete(table)
        return tuple(
            Filled(table=name, rows=a.rows, added=a.added, reason="; ".join(a.reasons))
            for name, a in sorted(self._accounts.items())
        )

    async def look_at_types(self) -> None:
        """Try what is made up for each type: a server may lack XML, a domain or an extension has its own mind."""
        columns = {c.type_sql: c for t in self._tables.values() if t.wanted for c in t.free()}
        plain: dict[str, list[str]] = {}
        for type_sql, column in sorted(columns.items()):
            texts = [text for n in range(3) if (text := made_up(column.kind, n)) is not None]
            if column.known.checks:
                self._only[type_sql] = await self._passing(column)
            elif texts:
                plain[type_sql] = texts
            else:
                self._only[type_sql] = await self._taken(type_sql, guesses())
        if not await self._casts(plain):
            for type_sql, texts in plain.items():
                if not await self._casts({type_sql: texts}):
                    self._only[type_sql] = await self._taken(
                        type_sql, candidates(columns[type_sql].kind, Literals())
                    )

    async def _passing(self, column: _Column) -> tuple[str, ...]:
        """The candidates that a domain's checks let through."""
        texts = candidates(column.kind, literals_of(*column.known.checks))
        conditions = " AND ".join(
            f"({check.removeprefix('CHECK ').removesuffix(' NOT VALID')}) IS NOT FALSE"
            for check in column.known.checks
        )
        # VALUE isn't a reserved word: in a query it is the column of that name.
        query = (
            f"SELECT s.n FROM (SELECT u.n, CAST(u.c AS {column.known.base_sql}) AS value"
            f" FROM unnest($1::text[]) WITH ORDINALITY AS u(c, n)) s WHERE {conditions} ORDER BY 1"
        )
        try:
            async with self._connection.transaction():
                return tuple(texts[row[0] - 1] for row in await self._connection.fetch(query, list(texts)))
        except asyncpg.PostgresError as error:
            self._raise_if_lost(error)
            return await self._taken(column.type_sql, texts[:40])

    async def _taken(self, type_sql: str, texts: Sequence[str]) -> tuple[str, ...]:
        return tuple([text for text in texts if await self._casts({type_sql: [text]})])

    async def _casts(self, texts: Mapping[str, Sequence[str]]) -> bool:
        """Whether each type takes each of its texts."""
        pairs = [(type_sql, text) for type_sql, some in texts.items() for text in some]
        if not pairs:
            return True
        casts = " OR ".join(
            f"CAST(${n}::text AS {type_sql}) IS NULL" for n, (type_sql, _) in enumerate(pairs, 1)
        )
        try:
            async with self._connection.transaction():
                await self._connection.fetchval(f"SELECT {casts}", *(text for _, text in pairs))
        except asyncpg.PostgresError as error:
            self._raise_if_lost(error)
            return False
        return True

    def _raise_if_lost(self, error: Exception) -> None:
        """A lost connection is no property of the schema."""
        if self._connection.is_closed():
            raise error

    @asynccontextmanager
    async def _transaction(self, deferred: Sequence[_ForeignKey] = ()) -> AsyncIterator[None]:
        """Constraints are checked at each statement, so that the savepoint of a row meets its faults."""
        async with self._connection.transaction():
            names = ", ".join(key.sql_name for key in deferred)
            await self._connection.execute(
                "SET CONSTRAINTS ALL IMMEDIATE;"
                + (f"SET CONSTRAINTS {names} DEFERRED;" if names else "")
                + f"SELECT set_config('statement_timeout', '{STATEMENT_TIMEOUT}', true)"
                " WHERE current_setting('statement_timeout') = '0'"
            )
            yield
            if names:
                await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")

    # Pass one: rows.

    async def _fill_group(self, group: Sequence[_Table]) -> None:
        short = []
        for table in group:
            account = self._accounts[table.name]
            try:
                await self._survey(table)
            except asyncpg.PostgresError as error:
                self._raise_if_lost(error)
                account.reasons = (_said(error),)
                continue
            if account.rows < self._rows:
                short.append(table)
        if not short:
            return
        names = {table.name for table in short}
        circular = [
            key
            for table in short
            for key in table.keys
            if key.deferrable and key.parent in names - {table.name} and table.required(key)
        ]
        try:
            async with self._transaction(circular):
                for table in _within_a_circle(short):
                    await self._insert_rows(table, {key.name for key in circular})
        except asyncpg.PostgresError as error:
            self._raise_if_lost(error)
            for table in short:
                account = self._accounts[table.name]
                account.rows, account.added = account.rows - account.added, 0
                account.reasons = (*account.reasons, _said(error))
        self._promised.clear()

    async def _insert_rows(self, table: _Table, circular: set[str]) -> None:
        account = self._accounts[table.name]
        refers_to_itself = any(key.parent == table.name for key in table.keys)
        shape: _Shape | None = None
        try:
            while account.rows < self._rows:
                if shape is None or refers_to_itself:
                    shape = await self._shape(table, circular)
                promised = self._promised.get(table.name, [])
                fixed = promised.pop(0) if promised else {}
                reason = await self._attempts(shape, account.rows, self._inserting(table, fixed))
                if reason:
                    raise _Unfit(reason)
                account.rows += 1
                account.added += 1
        except _Unfit as unfit:
            account.reasons = (str(unfit),)

    async def _attempts(
        self,
        shape: _Shape,
        row: int,
        write: _Write,
        *,
        asked: Mapping[str, _Cell] | None = None,
        valued: bool = False,
    ) -> str:
        """Try until a row is taken; the reason why none was, or nothing."""
        steps: dict[str, int] = {}
        misses: Counter[tuple[str, ...]] = Counter()
        tried = set()
        reason = ""
        attempt = 0
        while attempt < MOST_ATTEMPTS:
            cells = shape.cells(row, _Mood.at(attempt), steps, asked, valued)
            blamed: tuple[str, ...] = ()
            attempt += 1
            if (same := tuple(cells.items())) not in tried:
                tried.add(same)
                try:
                    async with self._connection.transaction():
                        await write(cells)
                except asyncpg.QueryCanceledError as error:
                    return _said(error)
                except (asyncpg.PostgresError, _Unfit) as error:
                    self._raise_if_lost(error)
                    reason = _said(error)
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

    def _inserting(self, table: _Table, fixed: Mapping[str, str]) -> _Write:
        async def write(cells: Mapping[str, _Cell]) -> None:
            full: dict[str, _Cell] = {**cells, **fixed}
            await self._resolve_own(table, full)
            given = [(table.columns[name], cell) for name, cell in full.items() if cell is not _Left.DEFAULT]
            texts = [cell for _, cell in given]
            names = ", ".join(quoted(column.name) for column, _ in given)
            values = ", ".join(f"CAST(${n}::text AS {c.type_sql})" for n, (c, _) in enumerate(given, 1))
            statement = (
                f"INSERT INTO {table.name.sql()} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"
                if given
                else f"INSERT INTO {table.name.sql()} DEFAULT VALUES"
            )
            if await self._connection.execute(statement, *texts) == "INSERT 0 0":
                raise _Unfit("the insert left no row: a trigger or a rule took it")

        return write

    async def _resolve_own(self, table: _Table, cells: dict[str, _Cell]) -> None:
        """A row that must refer to some row, and is the first, refers to itself."""
        own = [name for name, cell in cells.items() if cell is _Left.OWN]
        for key in table.keys:
            if key.parent != table.name or not set(key.columns) & set(own):
                continue
            for name, target in zip(key.columns, key.parent_columns, strict=True):
                if cells.get(target, _Left.DEFAULT) is _Left.DEFAULT:
                    cells[target] = await self._from_server(table, target)
                if name in own:
                    cells[name] = cells[target]

    async def _from_server(self, table: _Table, name: str) -> str | None:
        """What the server would give the column by itself."""
        column = table.columns[name]
        expression = column.server or column.default or "NULL"
        if expression == "generated":
            raise _Unfit(f"the generated column {name} is referred to before it is there")
        text: str | None = await self._connection.fetchval(
            f"SELECT CAST({expression} AS {column.type_sql})::text"
        )
        return text

    # What is possible.

    async def _shape(self, table: _Table, circular: set[str]) -> _Shape:
        free = {column.name: column for column in table.free()}
        units = [await self._references(table, keys, circular) for keys in _sharing_columns(table.keys)]
        referring = {name for unit in units for name in unit.columns}
        checks = [check for check in table.checks if check.columns and set(check.columns) <= free.keys()]
        checked = {name for check in checks for name in check.columns}
        loose = []
        for name, column in free.items():
            if name in referring:
                continue
            if name in checked or column.type_sql in self._only:
                hints = literals_of(*(check.expression for check in checks if name in check.columns))
                units.append(self._alone(column, hints))
            else:
                loose.append(column)
        blocks: list[_Block] = []
        for joined, having in _connected(units, checks):
            blocks += await self._solved(table, joined, having) if having else joined
        for block in blocks:
            if not block.options:
                raise _Unfit(await self._why_nothing(table, block))
        return _Shape(table=table, loose=tuple(loose), blocks=tuple(blocks), rows=self._rows)

    async def _why_nothing(self, table: _Table, block: _Block) -> str:
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

    def _alone(self, column: _Column, hints: Literals) -> _Block:
        texts: list[_Cell] = list(self._only.get(column.type_sql, candidates(column.kind, hints)))
        besides: list[_Cell] = [None] if column.nullable else []
        besides += [_Left.DEFAULT] if column.default else []
        # Near the front: where many columns are checked together, only the first few are tried.
        texts[1:1] = besides
        return _Block(columns=(column.name,), options=tuple((text,) for text in texts), refers=False)

    async def _references(self, table: _Table, keys: Sequence[_ForeignKey], circular: set[str]) -> _Block:
        """The rows that may be referred to, for foreign keys that share columns: those that agree."""
        columns = tuple(dict.fromkeys(name for key in keys for name in key.columns))
        shared = Counter(name for key in keys for name in key.columns)
        choices: list[list[dict[str, _Cell]]] = []
        for key in keys:
            found = await self._parents(table, key, circular)
            if not table.required(key):
                nullable = [name for name in key.columns if table.columns[name].nullable]
                alone = [name for name in nullable if shared[name] == 1] if not key.full else nullable
                found[1:1] = [dict.fromkeys(alone or nullable)]
            choices.append(found if len(keys) == 1 else found[:12])
        options: dict[tuple[_Cell, ...], None] = {}
        for combination in itertools.islice(itertools.product(*choices), _MOST_COMBINATIONS):
            cells: dict[str, _Cell] = {}
            if all(
                cells.setdefault(name, cell) == cell
                for choice in combination
                for name, cell in choice.items()
            ):
                for name in columns:
                    if name not in cells:
                        only = self._only.get(table.columns[name].type_sql)
                        cells[name] = only[0] if only else made_up(table.columns[name].kind, tame(0))
                options[tuple(cells[name] for name in columns)] = None
        return _Block(columns=columns, options=tuple(options)[:_MOST_PARENTS], refers=True)

    async def _parents(self, table: _Table, key: _ForeignKey, circular: set[str]) -> list[dict[str, _Cell]]:
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
            return [dict.fromkeys(key.columns, _Left.OWN)]
        if key.name in circular:
            promised = await self._promise(parent, key.parent_columns)
            return [
                {name: keys[target] for name, target in zip(key.columns, key.parent_columns, strict=True)}
                for keys in promised
            ]
        return []

    async def _promise(self, parent: _Table, columns: Sequence[str]) -> list[dict[str, str]]:
        """Keys of rows that will be there at the end of the transaction: in a circle one has to come first."""
        promised = self._promised.setdefault(parent.name, [])
        while len(promised) < self._rows:
            promised.append({})
        for number, keys in enumerate(promised):
            for name in columns:
                column = parent.columns[name]
                if name not in keys:
                    made = None if column.server else made_up(column.kind, number)
                    keys[name] = made or await self._from_server(parent, name) or ""
        return [dict(keys) for keys in promised]

    async def _solved(self, table: _Table, units: Sequence[_Block], checks: Sequence[_Check]) -> list[_Block]:
        """The combinations that pass the checks, found out by the database; the units as they are if it can't say."""
        own = any(_Left.OWN in option for unit in units for option in unit.options)
        most = int(_MOST_COMBINATIONS ** (1 / len(units)))
        if own or most < 2:
            return list(units)
        options = [unit.options[:most] for unit in units]
        parameters: list[list[str | None]] = []
        numbers, values, sources = [], [], []
        for u, unit in enumerate(units):
            fields = []
            for c, name in enumerate(unit.columns):
                cells = [option[c] for option in options[u]]
                parameters.append(
                    [
                        await self._from_server(table, name) if isinstance(cell, _Left) else cell
                        for cell in cells
                    ]
                )
                fields.append(f"c{c}")
                values.append(f"CAST(u{u}.c{c} AS {table.columns[name].type_sql}) AS {quoted(name)}")
            numbers.append(f'u{u}.n::int AS "rollbackd {u}"')
            first = len(parameters) - len(fields) + 1
            arrays = ", ".join(f"${first + i}::text[]" for i in range(len(fields)))
            sources.append(f"unnest({arrays}) WITH ORDINALITY AS u{u}({', '.join(fields)}, n)")
        columns = ", ".join(f's."rollbackd {u}"' for u in range(len(units)))
        conditions = " AND ".join(f"({check.expression}) IS NOT FALSE" for check in checks)
        query = (
            f"SELECT {columns} FROM (SELECT {', '.join(numbers)}, {', '.join(values)} FROM {', '.join(sources)}) s"
            f" WHERE {conditions} ORDER BY {columns}"
        )
        try:
            async with self._connection.transaction():
                found = await self._connection.fetch(query, *parameters)
        except asyncpg.PostgresError as error:
            self._raise_if_lost(error)
            return list(units)  # a function that raises, a candidate that isn't one: attempts will tell
        passing = tuple(
            tuple(itertools.chain.from_iterable(options[u][n - 1] for u, n in enumerate(row)))
            for row in found
        )
        return [
            _Block(
                columns=tuple(name for unit in units for name in unit.columns),
                options=passing,
                refers=all(unit.refers for unit in units),
            )
        ]

    # Pass two: what the rows don't show yet.

    async def _survey(self, table: _Table) -> None:
        """Count, and see what isn't shown."""
        shown = _to_show(table, self._rows)
        aggregates = ", ".join(each.aggregate for each in shown)
        row = await self._connection.fetchrow(
            f"SELECT count(*), ARRAY[{aggregates}]::bigint[] FROM {table.source()}"
        )
        account = self._accounts[table.name]
        account.rows = row[0]
        account.lacking = tuple(each for each, count in zip(shown, row[1], strict=True) if not count)

    async def _complete(self, table: _Table) -> None:
        account = self._accounts[table.name]
        if account.reasons and not account.added:
            return
        before = (account.rows, account.added, account.reasons)
        try:
            async with self._transaction():
                await self._survey(table)
                if account.rows < self._rows and not account.reasons:
                    account.reasons = ("rows that went in aren't there: a rule or a trigger moved them",)
                    account.added = min(account.added, account.rows)
                if account.rows and account.lacking:
                    await self._show_more(table)
        except (_Unfit, asyncpg.PostgresError) as error:
            self._raise_if_lost(error)
            account.rows, account.added, account.reasons = before
            account.reasons = (*account.reasons, _said(error))

    async def _show_more(self, table: _Table) -> None:
        account = self._accounts[table.name]
        try:
            shape = await self._shape(table, set())
        except _Unfit:
            return  # rows of somebody else's, who knew better what to put there
        reason = await self._fill_columns(shape)
        if account.rows >= self._rows:
            await self._add_extra_rows(table)
        if still := self._empty(shape):
            account.reasons = (*account.reasons, f"no value could be given to {', '.join(still)}: {reason}")

    def _empty(self, shape: _Shape) -> list[str]:
        """Columns that are NULL in all rows and needn't be."""
        lacking = self._accounts[shape.table.name].lacking
        return [
            each.column for each in lacking if each.what is _Show.VALUE and _values_of(shape, each.column)
        ]

    async def _fill_columns(self, shape: _Shape) -> str:
        """Give columns that are NULL in all rows values, in all rows but the last; the first reason why one wasn't."""
        empty = self._empty(shape)
        if not empty:
            return ""
        reasons = []
        for number in range(max(1, min(self._accounts[shape.table.name].rows, self._rows) - 1)):
            # All at once, and one by one if that doesn't do.
            for names in (empty, *([name] for name in empty if len(empty) > 1)):
                write = self._updating(shape.table, names)
                reason = await self._attempts(shape, number, write, valued=True)
                if not reason and names is empty:
                    break
                reasons.append(reason)
        await self._survey(shape.table)
        return next((reason for reason in reasons if reason), "")

    def _updating(self, table: _Table, names: Sequence[str]) -> _Write:
        """Updates the first row in which all these columns are NULL."""

        async def write(cells: Mapping[str, _Cell]) -> None:
            given = [(table.columns[name], cells[name]) for name in names if isinstance(cells[name], str)]
            if not given:
                raise _Unfit("nothing is possible but NULL")
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

    async def _add_extra_rows(self, table: _Table) -> None:
        account = self._accounts[table.name]
        for _ in range(MOST_EXTRA):
            shape = await self._shape(table, set())
            asked = await self._asked(shape, account.lacking)
            if not asked:
                return
            rows, before = account.rows, account.lacking
            try:
                async with self._connection.transaction():
                    write = self._inserting(table, {})
                    reason = await self._attempts(shape, rows, write, asked=asked)
                    await self._survey(table)
                    if reason or len(account.lacking) >= len(before):
                        raise _Unfit(reason)  # a row that shows nothing new goes again
            except _Unfit:
                account.rows, account.lacking = rows, before
                return
            account.added += 1

    async def _asked(self, shape: _Shape, lacking: Sequence[_Shown]) -> dict[str, _Cell]:
        """For each column that lacks some sight, the value that would show it."""
        row = self._accounts[shape.table.name].rows
        asked: dict[str, _Cell] = {}
        for each in lacking:
            column = shape.table.columns[each.column]
            if each.column in asked:
                continue
            match each.what:
                case _Show.VALUE:
                    if values := _values_of(shape, each.column):
                        asked[each.column] = values[0]
                case _Show.NULL:
                    asked[each.column] = None
                case _Show.LABEL:
                    asked[each.column] = each.label
                case _Show.WIDE:
                    asked[each.column] = made_up(column.kind, wide(row))
                case _Show.SHARED:
                    name = quoted(each.column)
                    text = await self._connection.fetchval(
                        f"SELECT min({name}::text) FROM {shape.table.source()}"
                    )
                    if text is not None:
                        asked[each.column] = text
        return asked


def _said(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _values_of(shape: _Shape, name: str) -> list[str]:
    """What the column could hold but NULL."""
    for column in shape.loose:
        if column.name == name:
            return [made_up(column.kind, tame(0)) or ""]
    return [
        cell
        for block in shape.blocks
        if name in block.columns
        for option in block.options
        if isinstance(cell := option[block.columns.index(name)], str)
    ]


def _within_a_circle(tables: Sequence[_Table]) -> list[_Table]:
    """Each time the table that asks for the fewest of the others."""
    left = list(tables)
    ordered = []
    while left:
        names = {table.name for table in left}
        best = min(
            left, key=lambda t: (sum(t.required(k) for k in t.keys if k.parent in names - {t.name}), t.name)
        )
        left.remove(best)
        ordered.append(best)
    return ordered


def _sharing_columns(keys: Sequence[_ForeignKey]) -> list[list[_ForeignKey]]:
    groups: list[list[_ForeignKey]] = []
    for key in keys:
        meets = [g for g in groups if any(set(key.columns) & set(other.columns) for other in g)]
        groups = [g for g in groups if g not in meets]
        groups.append([*itertools.chain.from_iterable(meets), key])
    return groups


def _connected(units: Sequence[_Block], checks: Sequence[_Check]) -> list[tuple[list[_Block], list[_Check]]]:
    """Units that some check speaks of together, with these checks."""
    groups: list[tuple[list[_Block], list[_Check]]] = [([unit], []) for unit in units]
    for check in checks:
        meets = [g for g in groups if any(set(check.columns) & set(unit.columns) for unit in g[0])]
        groups = [g for g in groups if all(g is not met for met in meets)]
        joined = [unit for met in meets for unit in met[0]]
        groups.append((joined, [*(c for met in meets for c in met[1]), check]))
    return groups
