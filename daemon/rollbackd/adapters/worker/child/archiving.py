"""Keeping what a downgrade takes away, in tables beside it, on the connection and in the transaction of the downgrade.

No statement here has a percent sign or a parameter: drivers differ in what they make of either.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Dict, Iterator

from .faults import Refused
from .marks import ARCHIVE_SCHEMA, MARKER

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Item = Dict[str, Any]
Column = Dict[str, Any]

ROW = "rollbackd_row"
OLD_VALUE = "rollbackd_old"
NEW_VALUE = "rollbackd_new"
# Beside the columns' values, a changed row's new ones say under this name, which no column can have, what statement it was.
STATEMENT = ""
# The same as in core/archives.py, which can't be imported here.
SETUP = (
    f"CREATE SCHEMA IF NOT EXISTS {ARCHIVE_SCHEMA}",
    f"""\
CREATE TABLE IF NOT EXISTS {ARCHIVE_SCHEMA}.entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text NOT NULL,
    revision text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('table', 'column', 'narrowed', 'rows')),
    table_schema text NOT NULL,
    table_name text NOT NULL,
    column_name text NOT NULL DEFAULT '',
    key_columns text[] NOT NULL DEFAULT '{{}}',
    archive text NOT NULL UNIQUE,
    row_count bigint NOT NULL,
    definition jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    restored_at timestamptz
)""",
)
TEAR_DOWN = (f"DROP TABLE {ARCHIVE_SCHEMA}.entries", f"DROP SCHEMA {ARCHIVE_SCHEMA}")
# What the text of a value depends on, and how it is fixed. Names are never looked up where somebody could put his own.
TEXT_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
}


class Archiving:
    """Keeps what each revision takes away: `before` and `after` stand on either side of its downgrade()."""

    def __init__(self, connection: Connection, run: str, items: list[Item]) -> None:
        self._connection = connection
        self._run = run
        self._items = items
        self._kept: dict[str, list[_Kept]] = {}
        self._may_vanish = False
        # Whether a statement that runs now is ours and not the migration's.
        self.working = False

    def before(self, revision: str, locks: bool) -> None:
        """Keep what can be copied, and set triggers for what its statements will remove or change.

        With `locks` this is the transaction of the step, and no write comes between copy and downgrade. Without, the
        caller commits; what other sessions write in between is theirs. The triggers heed this session alone, as a
        downgrade may commit in its midst whatever it was asked for.
        """
        items = [item for item in self._items if item["revision"] == revision]
        kept: list[_Kept] = []
        self._kept[revision] = kept
        if not items:
            return
        with self._settled(local=locks):
            if locks:
                self._lock(items)
            # Looked up under the lock: what stood there before may have been replaced while we waited.
            for item, table in self._standing(items):
                made = self._keep(item, table)
                if made is not None:
                    kept.append(made)

    def after(self, revision: str) -> list[dict[str, Any]]:
        """End what `before` began; what was kept, in the order in which it was kept.

        Raises:
            Refused: when rows may have been changed unseen; the step has to be undone, where it can be.
        """
        kept = self._kept.pop(revision, [])
        if not kept and not self._may_vanish:
            return []
        switched: list[_Kept] = []
        with self._settled(local=self._in_transaction()):
            for one in kept:
                if one.item["kind"] == "rows":
                    now = self._triggers(one.archive)
                    if any(now.get(name, state) != state for name, state in one.triggers.items()):
                        switched.append(one)
                    self._run_sql(f"DROP FUNCTION IF EXISTS {archived(one.archive)}() CASCADE")
                    one.rows = int(self._value(f"SELECT count(*) FROM {archived(one.archive)}"))
                    self._settle(one)
                elif one.item["kind"] == "narrowed":
                    self._compare(one)
                    self._settle(one)
            if self._may_vanish and self._value(nothing_is_kept()):
                for statement in TEAR_DOWN:
                    self._run_sql(statement)
                self._may_vanish = False
        if switched:
            raise Refused(
                f"revision {revision} switches the triggers of {_text(switched[0].item)} off and on, so that rows which it"
                " changes in between can't be kept: use SET LOCAL session_replication_role = replica instead"
            )
        return [one.report() for one in kept if one.rows]

    # -- looking --------------------------------------------------------------------------------------------------------

    def _lock(self, items: list[Item]) -> None:
        level = self._value("SELECT current_setting('transaction_isolation')")
        if level != "read committed":
            raise Refused(
                f"env.py migrates in a transaction of the level {level}, which can't see what others wrote before the"
                " tables were locked, so nothing can be archived safely: nothing was changed; use READ COMMITTED"
            )
        names = sorted({(item["table"]["schema"], item["table"]["name"]) for item in items})
        there = [name for name in names if self._table(*name) is not None]
        if there:
            tables = ", ".join(f"{quoted(schema)}.{quoted(table)}" for schema, table in there)
            self._run_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")

    def _standing(self, items: list[Item]) -> Iterator[tuple[Item, Item]]:
        """Each item with its table; a partition is left out where a table above it is kept in the same way."""
        tables: dict[tuple[str, str], Item | None] = {}
        for item in items:
            name = (item["table"]["schema"], item["table"]["name"])
            tables.setdefault(name, self._table(*name))
        covered = {
            (item["kind"], item["column"], table["oid"])
            for item in items
            for table in [tables[(item["table"]["schema"], item["table"]["name"])]]
            if table is not None
        }
        for item in items:
            table = tables[(item["table"]["schema"], item["table"]["name"])]
            if table is None:
                self._require_kept(item, "isn't there")
            elif item["column"] and item["column"] not in [c["name"] for c in table["columns"]]:
                self._require_kept(item, f"has no column {item['column']}")
            elif not any((item["kind"], item["column"], oid) in covered for oid in table["above"]):
                missing = [k for k in item["key"] if k not in [c["name"] for c in table["columns"]]]
                if missing:
                    raise Refused(
                        f"{_text(item)} has no column {missing[0]} to key its archive by: nothing was changed; plan anew"
                    )
                yield item, table

    def _require_kept(self, item: Item, why: str) -> None:
        """An earlier try of the same run, one that couldn't be undone, may have kept it and taken it away already."""
        if self._value(f"SELECT to_regclass('{ARCHIVE_SCHEMA}.entries') IS NOT NULL") and self._value(
            f"SELECT EXISTS (SELECT 1 FROM {ARCHIVE_SCHEMA}.entries WHERE run = {literal(self._run)}"
            f" AND revision = {literal(item['revision'])} AND kind = {literal(item['kind'])}"
            f" AND table_schema = {literal(item['table']['schema'])} AND table_name = {literal(item['table']['name'])}"
            f" AND column_name = {literal(item['column'])})"
        ):
            return
        raise Refused(f"{_text(item)} is to be archived and {why}: nothing was changed; plan anew")

    def _table(self, schema: str, name: str) -> Item | None:
        found = self._value(describe_table(schema, name))
        return None if found is None else dict(json.loads(found))

    # -- keeping --------------------------------------------------------------------------------------------------------

    def _keep(self, item: Item, table: Item) -> _Kept | None:
        kind = item["kind"]
        if item.get("copied"):
            return self._merge(item, table)
        if kind == "table" and not self._value(f"SELECT EXISTS (SELECT 1 FROM {source(table)})"):
            return None
        if kind in ("column", "narrowed") and self._value(
            f"SELECT to_regnamespace('{ARCHIVE_SCHEMA}') IS NULL"
            " AND NOT has_database_privilege(current_database(), 'CREATE')"
        ):
            there = f" WHERE t.{quoted(item['column'])} IS DISTINCT FROM NULL"
            if not self._value(f"SELECT EXISTS (SELECT 1 FROM {source(table)} t{there})"):
                return None
        self._set_up(table)
        archive = self._free_name(item)
        made = _Kept(item, table, archive)
        if kind == "rows":
            self._run_sql(
                f"CREATE TABLE {archived(archive)} ({ROW} bigint GENERATED ALWAYS AS IDENTITY,"
                f" {OLD_VALUE} jsonb NOT NULL, {NEW_VALUE} jsonb)"
            )
            session = int(self._value("SELECT pg_backend_pid()"))
            for statement in watch_rows(table, archive, self._run, session):
                self._run_sql(statement)
            made.triggers = self._triggers(archive)
        else:
            made.rows = self._copied_rows(
                archive, f"CREATE TABLE {archived(archive)} AS {copy_query(item, table)}"
            )
            if not made.rows:
                self._run_sql(f"DROP TABLE {archived(archive)}")
                return None
        for statement in self._ownership(table, archive):
            self._run_sql(statement)
        made.entry = int(self._value(insert_entry(self._run, item, table, archive, made.rows)))
        return made

    def _merge(self, item: Item, table: Item) -> _Kept | None:
        """Bring what the daemon copied ahead up to date, under the lock."""
        archive = archive_name(self._run, item)
        log = log_name(archive)
        ready = self._value(
            f"SELECT to_regclass({literal(archived(archive, plain=True))}) IS NOT NULL AND"
            f" to_regclass({literal(archived(log, plain=True))}) IS NOT NULL AND EXISTS (SELECT 1 FROM pg_trigger g"
            f" JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace"
            f" WHERE g.tgrelid = {table['oid']} AND n.nspname = '{ARCHIVE_SCHEMA}' AND p.proname = {literal(log)}"
            " AND g.tgenabled <> 'D')"
        )
        if not ready:
            raise Refused(
                f"what was copied ahead of {_text(item)} isn't complete any more: nothing was changed; plan anew"
            )
        for statement in merge_log(item, table, archive):
            self._run_sql(statement)
        self._run_sql(f"DROP FUNCTION {archived(log)}() CASCADE")
        self._run_sql(f"DROP TABLE {archived(log)}")
        made = _Kept(item, table, archive)
        made.rows = int(self._value(f"SELECT count(*) FROM {archived(archive)}"))
        if not made.rows and item["kind"] != "narrowed":
            self._run_sql(f"DROP TABLE {archived(archive)}")
            self._may_vanish = True
            return None
        made.entry = int(self._value(insert_entry(self._run, item, table, archive, made.rows)))
        return made

    def _compare(self, one: _Kept) -> None:
        """Of a column whose type changed, keep the values that really did."""
        found = self._value(
            describe_oid(one.table["oid"])
        )  # still the same table, whatever it is called by now
        now = json.loads(found) if found else self._table(one.table["schema"], one.table["name"])
        if now is not None:
            statement = compare_query(one.item, one.table, now, one.archive)
            if statement:
                narrowed = one.archive[:55] + "_changed"
                self._run_sql(f"CREATE TABLE {archived(narrowed)} AS {statement}")
                self._run_sql(f"DROP TABLE {archived(one.archive)}")
                self._run_sql(f"ALTER TABLE {archived(narrowed)} RENAME TO {quoted(one.archive)}")
                for more in self._ownership(one.table, one.archive):
                    self._run_sql(more)
        one.rows = int(self._value(f"SELECT count(*) FROM {archived(one.archive)}"))

    def _settle(self, one: _Kept) -> None:
        if one.rows:
            self._run_sql(
                f"UPDATE {ARCHIVE_SCHEMA}.entries SET row_count = {one.rows} WHERE id = {one.entry}"
            )
        else:
            self._run_sql(f"DROP TABLE {archived(one.archive)}")
            self._run_sql(f"DELETE FROM {ARCHIVE_SCHEMA}.entries WHERE id = {one.entry}")

    def _set_up(self, table: Item) -> None:
        if self._value(f"SELECT to_regclass('{ARCHIVE_SCHEMA}.entries') IS NOT NULL"):
            return
        self._may_vanish = bool(self._value(f"SELECT to_regnamespace('{ARCHIVE_SCHEMA}') IS NULL"))
        may = self._may_vanish and self._value(may_give(table))
        for statement in SETUP:
            self._run_sql(statement)
        if may:
            owner = quoted(table["owner"])
            self._run_sql(f"ALTER SCHEMA {ARCHIVE_SCHEMA} OWNER TO {owner}")
            self._run_sql(f"ALTER TABLE {ARCHIVE_SCHEMA}.entries OWNER TO {owner}")
        self._run_sql(f"REVOKE ALL ON {ARCHIVE_SCHEMA}.entries FROM PUBLIC")

    def _triggers(self, archive: str) -> dict[str, str]:
        """Our triggers by table and name, and whether they are switched on; ALTER TABLE … TRIGGER ALL reaches them too."""
        found = self._value(
            "SELECT json_object_agg(g.tgrelid::bigint || ' ' || g.tgname, g.tgenabled::text)::text FROM pg_trigger g"
            f" JOIN pg_proc p ON p.oid = g.tgfoid WHERE p.pronamespace = '{ARCHIVE_SCHEMA}'::regnamespace"
            f" AND p.proname = {literal(archive)}"
        )
        return dict(json.loads(found or "{}"))

    def _ownership(self, table: Item, archive: str) -> Iterator[str]:
        yield f"COMMENT ON TABLE {archived(archive)} IS {literal(mark(self._run))}"
        yield f"REVOKE ALL ON {archived(archive)} FROM PUBLIC"
        # A table without any identity can't be updated or deleted from while everything is published.
        if self._value("SELECT EXISTS (SELECT 1 FROM pg_publication WHERE puballtables)"):
            yield f"ALTER TABLE {archived(archive)} REPLICA IDENTITY FULL"
        if self._value(lacks_room(table)):
            yield f"GRANT USAGE, CREATE ON SCHEMA {ARCHIVE_SCHEMA} TO {quoted(table['owner'])}"
        if self._value(may_own(table)):
            yield f"ALTER TABLE {archived(archive)} OWNER TO {quoted(table['owner'])}"

    def _free_name(self, item: Item) -> str:
        """An earlier try of the same run that couldn't be undone keeps what it kept."""
        for number in range(1, 100):
            name = archive_name(self._run, item, number)
            if self._value(f"SELECT to_regclass({literal(archived(name, plain=True))}) IS NULL"):
                return name
        raise Refused(
            f"a hundred archives of {_text(item)} lie in {ARCHIVE_SCHEMA}: look what goes on there first"
        )

    # -- running --------------------------------------------------------------------------------------------------------

    def _run_sql(self, statement: str) -> Any:
        assert "%" not in statement, "drivers take a percent sign for a placeholder"
        return self._connection.exec_driver_sql(statement)

    def _value(self, statement: str) -> Any:
        return self._run_sql(statement).scalar()

    def _copied_rows(self, archive: str, statement: str) -> int:
        """What the driver counted; what it counted as none or couldn't count is looked at."""
        rows = int(self._run_sql(statement).rowcount)
        return rows if rows > 0 else int(self._value(f"SELECT count(*) FROM {archived(archive)}"))

    def _in_transaction(self) -> bool:
        """Whether a transaction stands open on the server: only then does a setting end with it."""
        set_now = "SELECT set_config('rollbackd.probe', 'set', true)"
        self._run_sql(set_now)
        return bool(self._value("SELECT current_setting('rollbackd.probe', true) = 'set'"))

    @contextmanager
    def _settled(self, local: bool) -> Iterator[None]:
        """Text comes out the same whatever the session was set to; its settings are put back afterwards."""
        scope = "true" if local else "false"
        names = list(TEXT_SETTINGS)
        columns = ", ".join(f"current_setting({literal(name)})" for name in names)
        old = dict(zip(names, self._run_sql(f"SELECT {columns}").one()))

        def put(settings: dict[str, str]) -> None:
            calls = (f"set_config({literal(n)}, {literal(v)}, {scope})" for n, v in settings.items())
            self._run_sql(f"SELECT {', '.join(calls)}")

        self.working = True
        try:
            put(TEXT_SETTINGS)
            yield
            put(old)
        except BaseException:
            if not local:
                # The first error is the one to tell.
                with suppress(Exception):
                    put(old)
            raise
        finally:
            self.working = False


class _Kept:
    """One item while its revision runs."""

    def __init__(self, item: Item, table: Item, archive: str) -> None:
        self.item = item
        self.table = table
        self.archive = archive
        self.entry = 0
        self.rows = 0
        self.triggers: dict[str, str] = {}

    def report(self) -> dict[str, Any]:
        return {
            "kind": self.item["kind"],
            "table": self.item["table"],
            "column": self.item["column"],
            "archive": self.archive,
            "rows": self.rows,
        }


# -- names and values ---------------------------------------------------------------------------------------------------


def literal(text: str) -> str:
    """A string as SQL takes it, without a percent sign, whatever the session's settings."""
    escaped = text.replace("\\", "\\\\").replace("'", "''").replace("%", "\\045")
    return f"E'{escaped}'"


def quoted(name: str) -> str:
    """An identifier as SQL takes it, without a percent sign."""
    escaped = name.replace('"', '""')
    if "%" not in name:
        return f'"{escaped}"'
    escaped = escaped.replace("\\", "\\\\").replace("%", "\\0025")
    return f'U&"{escaped}"'


def archived(name: str, plain: bool = False) -> str:
    """A table of the archive's schema; its names are plain ASCII."""
    return f"{ARCHIVE_SCHEMA}.{name}" if plain else f"{ARCHIVE_SCHEMA}.{quoted(name)}"


def archive_name(run: str, item: Item, number: int = 1) -> str:
    """A name of at most 63 bytes that no other item of any run has, and that a person can still read."""
    parts = (
        run,
        item["revision"],
        item["kind"],
        item["table"]["schema"],
        item["table"]["name"],
        item["column"],
    )
    digest = hashlib.sha256(json.dumps([*parts, number]).encode()).hexdigest()[:16]
    words = "_".join(p for p in (item["kind"], item["table"]["name"], item["column"]) if p)
    return f"{re.sub(r'[^a-z0-9]+', '_', words.lower())[:37].strip('_')}_{digest}"


def mark(run: str) -> str:
    """The comment by which everything that a run made in the archive's schema is found again."""
    return f"{MARKER} archived by {run}"


def log_name(archive: str) -> str:
    """The log of changes since a table was copied ahead, and the function that writes it."""
    return f"{archive[:-17][:33]}_log{archive[-17:]}"


def source(table: Item) -> str:
    """A table's own rows: those of a partitioned table lie in its partitions, those of heirs are theirs."""
    only = "" if table["kind"] == "p" else "ONLY "
    return f"{only}{quoted(table['schema'])}.{quoted(table['name'])}"


def text_of(value: str) -> str:
    """The text that the value's type gives it; a cast to text could be anybody's. A composite of NULLs isn't NULL."""
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def kept_columns(item: Item, table: Item) -> list[Column]:
    """The columns of an archive that come from the table, without the value itself for one column's archive."""
    if item["kind"] == "table":
        return list(table["columns"])
    if item["key"]:
        by_name = {column["name"]: column for column in table["columns"]}
        return [by_name[name] for name in item["key"]]
    return [column for column in table["columns"] if column["name"] != item["column"]]


def _kept_value(column: Column) -> str:
    name = quoted(column["name"])
    value = f"t.{name}"
    if column["as_text"]:
        return f'({text_of(value)}) COLLATE pg_catalog."default" AS {name}'
    return f'{value} COLLATE pg_catalog."default" AS {name}' if column["own_collation"] else value


def copy_query(item: Item, table: Item, join: str = "", where: str = "") -> str:
    """The query that an archive is made of; `join` and `where` restrict it to some rows."""
    parts = [_kept_value(column) for column in kept_columns(item, table)]
    conditions = [where] if where else []
    if not item["key"]:
        parts.insert(0, f"row_number() OVER () AS {ROW}")
    if item["kind"] == "column":
        parts.append(_kept_value(_column(table, item["column"])))
        conditions.append(f"t.{quoted(item['column'])} IS DISTINCT FROM NULL")
    elif item["kind"] == "narrowed":
        parts.append(
            f'({text_of("t." + quoted(item["column"]))}) COLLATE pg_catalog."default" AS {OLD_VALUE}'
        )
        parts.append(f"NULL::text AS {NEW_VALUE}")
    end = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {', '.join(parts)} FROM {source(table)} t{join}{end}"


def compare_query(item: Item, then: Item, now: Item, archive: str) -> str:
    """The kept values of a column that differ from what it holds now; empty where it isn't there any more."""
    numbers = {column["number"]: column for column in now["columns"]}
    same_table = now["oid"] == then["oid"]

    def today(name: str) -> Column | None:
        column = numbers.get(_column(then, name)["number"]) if same_table else None
        by_name = [c for c in now["columns"] if c["name"] == name]
        return column or (by_name[0] if by_name else None)

    value = today(item["column"])
    beside = [(column, today(column["name"])) for column in kept_columns(item, then)]
    if value is None or (item["key"] and any(present is None for _, present in beside)):
        return ""
    new = text_of(f"t.{quoted(value['name'])}")
    if item["key"]:
        kept = ", ".join(f"a.{quoted(column['name'])}" for column, _ in beside)
        match = " AND ".join(
            f"a.{quoted(column['name'])} = {text_of('t.' + quoted(present['name']))}"
            if column["as_text"]
            else f"a.{quoted(column['name'])} = t.{quoted(present['name'])}"
            for column, present in beside
            if present is not None
        )
        return (
            f'SELECT {kept}, a.{OLD_VALUE}, ({new}) COLLATE pg_catalog."default" AS {NEW_VALUE}'
            f" FROM {archived(archive)} a LEFT JOIN {source(now)} t ON {match}"
            f" WHERE a.{OLD_VALUE} IS DISTINCT FROM ({new})"
        )
    # Without a key a row is told by all its other values; rows that are alike in them are compared as a set.
    # A generated one may follow from the value itself.
    pairs = [
        (column, present) for column, present in beside if present is not None and not column["generated"]
    ]
    kept = ", ".join(f"o.{quoted(column['name'])}" for column, _ in beside)
    old_id = ", ".join(
        f"a.{quoted(c['name'])}" if c["as_text"] else text_of(f"a.{quoted(c['name'])}") for c, _ in pairs
    )
    new_id = ", ".join(text_of(f"t.{quoted(present['name'])}") for _, present in pairs)
    frame = f"OVER (PARTITION BY ARRAY[{old_id}]::text[] ORDER BY a.{OLD_VALUE} ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"
    return (
        f"SELECT o.{ROW}, {kept + ', ' if kept else ''}o.{OLD_VALUE},"
        f" CASE WHEN cardinality(n.rollbackd_values) = 1 AND cardinality(o.rollbackd_values) = 1"
        f' THEN n.rollbackd_values[1] COLLATE pg_catalog."default" END AS {NEW_VALUE}'
        f" FROM (SELECT a.*, ARRAY[{old_id}]::text[] AS rollbackd_id,"
        f" array_agg(a.{OLD_VALUE}) {frame} AS rollbackd_values FROM {archived(archive)} a) o"
        f" LEFT JOIN (SELECT ARRAY[{new_id}]::text[] AS rollbackd_id,"
        f" array_agg({new} ORDER BY {new}) AS rollbackd_values FROM {source(now)} t GROUP BY 1) n"
        " ON n.rollbackd_id = o.rollbackd_id WHERE o.rollbackd_values IS DISTINCT FROM n.rollbackd_values"
    )


# -- watching -----------------------------------------------------------------------------------------------------------


def _function(name: str, body: str, run: str) -> Iterator[str]:
    """A trigger function with its owner's rights: whoever writes the table has none in the archive's schema."""
    settings = " ".join(f"SET {setting} = {_setting(value)}" for setting, value in TEXT_SETTINGS.items())
    yield (
        f"CREATE OR REPLACE FUNCTION {archived(name)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {settings}"
        f" AS {literal(body)}"
    )
    yield f"REVOKE ALL ON FUNCTION {archived(name)}() FROM PUBLIC"
    yield f"COMMENT ON FUNCTION {archived(name)}() IS {literal(mark(run))}"


def _setting(value: str) -> str:
    return ", ".join(literal(part.strip()) for part in value.split(","))


def _field_of(record: str, column: Column) -> str:
    """PL/pgSQL knows no U&"" in a record's field. The function's body is a literal, in which percent signs are escaped."""
    escaped = column["name"].replace('"', '""')
    return f'{record}."{escaped}"'


def _moving(archive: str) -> str:
    """The setting that says, while an UPDATE of a partitioned table is under way, what row has just left its partition."""
    return f"rollbackd.moving_{archive[-16:]}_"


# The row that was taken out of another partition right before is the one that comes in here, if this is an UPDATE.
_BEFORE_A_MOVE = """\
    IF TG_LEVEL = 'STATEMENT' AND TG_OP = 'UPDATE' THEN
        PERFORM set_config(moving, CASE TG_WHEN WHEN 'BEFORE' THEN 'none' ELSE '' END, true);
        RETURN NULL;
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        IF TG_OP = 'INSERT' AND split_part(current_setting(moving, true), ' ', 1) NOT IN ('', 'none', TG_RELID::text) THEN
            place := split_part(current_setting(moving, true), ' ', 2)::tid;
        END IF;
        IF current_setting(moving, true) <> '' THEN
            PERFORM set_config(moving, 'none', true);
        END IF;
        IF TG_OP = 'INSERT' AND place IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
"""


def watch_rows(table: Item, archive: str, run: str, session: int) -> Iterator[str]:
    """Triggers that keep each row which a statement of this session removes or changes.

    Columns may be renamed, dropped or retyped before the statement comes, so each is found again by its number when
    its name fails; what the archive knows it by stays the name that it had at first. What the revision itself adds
    isn't lost, so it isn't kept.

    A row that an UPDATE moves to another partition comes as a DELETE there and an INSERT here, one right after the other;
    it is kept as the change that it is.
    """
    moves = table["kind"] == "p"
    columns = table["columns"]
    names = ", ".join(literal(column["name"]) for column in columns)
    numbers = ", ".join(str(column["number"]) for column in columns)
    old = ", ".join(text_of(_field_of("OLD", column)) for column in columns)
    new = ", ".join(text_of(_field_of("NEW", column)) for column in columns)
    target = archived(archive)
    statement = "concat(NEW.xmin, ':', NEW.cmin)"
    new_row = f"jsonb_object(names || {literal(STATEMENT)}::text, new_values || {statement})"
    body = f"""\
DECLARE
    names text[] := ARRAY[{names}]::text[];
    old_values text[];
    new_values text[];
    expressions text;
    found_by_name boolean := false;
    moving text := '{_moving(archive)}' || pg_trigger_depth();
    place tid;
BEGIN
{_BEFORE_A_MOVE if moves else ""}\
    IF TG_OP <> 'TRUNCATE' THEN
        BEGIN
            IF TG_OP <> 'INSERT' THEN
                old_values := ARRAY[{old}]::text[];
            END IF;
            IF TG_OP <> 'DELETE' THEN
                new_values := ARRAY[{new}]::text[];
            END IF;
            found_by_name := true;
        EXCEPTION WHEN undefined_column OR datatype_mismatch THEN
            found_by_name := false;
        END;
    END IF;
    IF NOT found_by_name THEN
        SELECT array_agg(k.name ORDER BY k.number), string_agg('CASE WHEN ($1).' || quote_ident(a.attname)
            || ' IS DISTINCT FROM NULL THEN concat(($1).' || quote_ident(a.attname) || ') END', ', ' ORDER BY k.number)
          INTO names, expressions
          FROM unnest(names, ARRAY[{numbers}]::int[]) k(name, number)
          JOIN pg_attribute a ON a.attrelid = {table["oid"]} AND a.attnum = k.number AND NOT a.attisdropped;
        IF names IS NULL THEN
            RETURN NULL;
        END IF;
        IF TG_OP = 'TRUNCATE' THEN
            EXECUTE 'INSERT INTO {ARCHIVE_SCHEMA}.{archive} ({OLD_VALUE}) SELECT jsonb_object($1, ARRAY['
                || replace(expressions, '($1).', 't.') || ']::text[]) FROM ONLY ' || TG_RELID::regclass || ' t'
                USING names;
            RETURN NULL;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            EXECUTE 'SELECT ARRAY[' || expressions || ']::text[]' INTO old_values USING OLD;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            EXECUTE 'SELECT ARRAY[' || expressions || ']::text[]' INTO new_values USING NEW;
        END IF;
    END IF;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO {target} ({OLD_VALUE}) VALUES (jsonb_object(names, old_values)) RETURNING ctid INTO place;
        IF current_setting(moving, true) <> '' THEN
            PERFORM set_config(moving, concat(TG_RELID, ' ', place), true);
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        UPDATE {target} SET {NEW_VALUE} = {new_row} WHERE ctid = place;
    ELSIF old_values IS DISTINCT FROM new_values THEN
        INSERT INTO {target} ({OLD_VALUE}, {NEW_VALUE}) VALUES (jsonb_object(names, old_values), {new_row});
    END IF;
    RETURN NULL;
END"""
    yield from _function(archive, body, run)
    when = f" WHEN (pg_backend_pid() = {session})"
    trigger = quoted(f"rollbackd_{archive[-16:]}")
    place = f"{quoted(table['schema'])}.{quoted(table['name'])}"
    events = "INSERT OR UPDATE OR DELETE" if moves else "UPDATE OR DELETE"
    yield f"CREATE TRIGGER {trigger} AFTER {events} ON {place} FOR EACH ROW{when} EXECUTE FUNCTION {archived(archive)}()"
    # A migration that switches triggers off to be quick means the application's, by session_replication_role.
    yield f"ALTER TABLE {place} ENABLE ALWAYS TRIGGER {trigger}"
    # Whichever of them an UPDATE names may move rows between those below it.
    partitioned = [table, *(p["table"] for p in table["partitions"] if p["partition_key"])] if moves else []
    for one in partitioned:
        place = f"{quoted(one['schema'])}.{quoted(one['name'])}"
        for moment in ("BEFORE", "AFTER"):
            around = quoted(f"rollbackd_{archive[-16:]}_{moment.lower()}")
            yield (
                f"CREATE TRIGGER {around} {moment} UPDATE ON {place} FOR EACH STATEMENT{when}"
                f" EXECUTE FUNCTION {archived(archive)}()"
            )
            yield f"ALTER TABLE {place} ENABLE ALWAYS TRIGGER {around}"
    emptied = quoted(f"rollbackd_{archive[-16:]}_truncate")
    for leaf in table["leaves"]:
        place = f"{quoted(leaf['schema'])}.{quoted(leaf['name'])}"
        yield (
            f"CREATE TRIGGER {emptied} BEFORE TRUNCATE ON {place} FOR EACH STATEMENT{when}"
            f" EXECUTE FUNCTION {archived(archive)}()"
        )
        yield f"ALTER TABLE {place} ENABLE ALWAYS TRIGGER {emptied}"


def watch_changes(item: Item, table: Item, archive: str, run: str) -> Iterator[str]:
    """A log of the keys that are written from now on, and the triggers that fill it; one of NULLs says: emptied."""
    log = log_name(archive)
    columns = kept_columns(item, table)
    keys = ", ".join(_kept_value(column) for column in columns)
    yield f"CREATE TABLE {archived(log)} AS SELECT {keys} FROM {source(table)} t WHERE false"
    yield f"COMMENT ON TABLE {archived(log)} IS {literal(mark(run))}"

    def row(record: str) -> str:
        values = (_field_of(record, column) for column in columns)
        return ", ".join(text_of(v) if c["as_text"] else v for c, v in zip(columns, values))

    body = f"""\
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO {archived(log)} VALUES ({", ".join("NULL" for _ in columns)});
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO {archived(log)} VALUES ({row("OLD")});
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO {archived(log)} VALUES ({row("NEW")});
    END IF;
    RETURN NULL;
END"""
    yield from _function(log, body, run)
    place = f"{quoted(table['schema'])}.{quoted(table['name'])}"
    trigger = quoted(f"rollbackd_{archive[-16:]}")
    yield (
        f"CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE ON {place} FOR EACH ROW"
        f" EXECUTE FUNCTION {archived(log)}()"
    )
    yield f"ALTER TABLE {place} ENABLE ALWAYS TRIGGER {trigger}"
    emptied = quoted(f"rollbackd_{archive[-16:]}_truncate")
    for leaf in table["leaves"]:
        place = f"{quoted(leaf['schema'])}.{quoted(leaf['name'])}"
        yield (
            f"CREATE TRIGGER {emptied} AFTER TRUNCATE ON {place} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {archived(log)}()"
        )
        yield f"ALTER TABLE {place} ENABLE ALWAYS TRIGGER {emptied}"


def merge_log(item: Item, table: Item, archive: str) -> Iterator[str]:
    """Copy what was written since anew. What the application itself removed goes from the archive too."""
    log = archived(log_name(archive))
    columns = kept_columns({**item, "kind": "column"}, table)
    names = [quoted(column["name"]) for column in columns]
    emptied = f"EXISTS (SELECT 1 FROM {log} WHERE {names[0]} IS NULL)"
    changed = f"(SELECT DISTINCT {', '.join(names)} FROM {log} WHERE {names[0]} IS NOT NULL) l"
    in_archive = " AND ".join(f"a.{name} = l.{name}" for name in names)
    in_table = " AND ".join(
        f"{text_of('t.' + name) if column['as_text'] else 't.' + name} = l.{name}"
        for name, column in zip(names, columns)
    )
    targets = [quoted(column["name"]) for column in kept_columns(item, table)]
    if item["kind"] == "column":
        targets.append(quoted(item["column"]))
    elif item["kind"] == "narrowed":
        targets += [OLD_VALUE, NEW_VALUE]
    into = f"INSERT INTO {archived(archive)} ({', '.join(targets)})"
    yield f"ANALYZE {log}"
    yield f"DELETE FROM {archived(archive)} a USING {changed} WHERE {in_archive} AND NOT {emptied}"
    yield f"{into} {copy_query(item, table, join=f' JOIN {changed} ON {in_table}', where=f'NOT {emptied}')}"
    yield f"DELETE FROM {archived(archive)} WHERE {emptied}"
    yield f"{into} {copy_query(item, table, where=emptied)}"


# -- the catalog --------------------------------------------------------------------------------------------------------


def nothing_is_kept() -> str:
    """Whether nothing is left in the archive's schema but the empty list of what is there."""
    return (
        f"SELECT NOT EXISTS (SELECT 1 FROM {ARCHIVE_SCHEMA}.entries) AND NOT EXISTS (SELECT 1 FROM pg_class c"
        f" WHERE c.relnamespace = '{ARCHIVE_SCHEMA}'::regnamespace AND c.relkind NOT IN ('i', 'S', 't')"
        f" AND c.relname <> 'entries')"
        f" AND NOT EXISTS (SELECT 1 FROM pg_proc p WHERE p.pronamespace = '{ARCHIVE_SCHEMA}'::regnamespace)"
    )


def may_give(table: Item) -> str:
    """Whether this role may give something to the table's owner."""
    return (
        f"SELECT current_user <> {literal(table['owner'])}"
        f" AND pg_has_role(current_user, {table['owner_oid']}::oid, 'MEMBER')"
    )


def may_own(table: Item) -> str:
    """Whether this role may give an archive to the table's owner."""
    return (
        f"{may_give(table)} AND has_schema_privilege({table['owner_oid']}::oid, '{ARCHIVE_SCHEMA}', 'CREATE')"
    )


def lacks_room(table: Item) -> str:
    """Whether the table's owner may not own anything in the archive's schema, and this role can change that."""
    return (
        f"SELECT current_user <> {literal(table['owner'])} AND pg_has_role(current_user, n.nspowner, 'USAGE')"
        f" AND NOT has_schema_privilege({table['owner_oid']}::oid, n.oid, 'CREATE')"
        f" FROM pg_namespace n WHERE n.nspname = '{ARCHIVE_SCHEMA}'"
    )


def describe_table(schema: str, name: str) -> str:
    """A query for everything about a table, as JSON text; no row where it isn't there."""
    return _describe(f"n.nspname = {literal(schema)} AND c.relname = {literal(name)}")


def describe_oid(oid: int) -> str:
    """The same for a table whose name may have changed."""
    return _describe(f"c.oid = {oid}")


def _describe(which: str) -> str:
    return _DESCRIBE.replace("WHICH", which)


def insert_entry(run: str, item: Item, table: Item, archive: str, rows: int) -> str:
    """The statement that says what is kept; it gives the entry's id."""
    key = ", ".join(literal(name) for name in item["key"])
    return (
        f"INSERT INTO {ARCHIVE_SCHEMA}.entries (run, revision, kind, table_schema, table_name, column_name, key_columns,"
        f" archive, row_count, definition) VALUES ({literal(run)}, {literal(item['revision'])}, {literal(item['kind'])},"
        f" {literal(item['table']['schema'])}, {literal(item['table']['name'])}, {literal(item['column'])},"
        f" ARRAY[{key}]::text[], {literal(archive)}, {rows}, {literal(json.dumps(definition(item, table)))}::jsonb)"
        " RETURNING id"
    )


def definition(item: Item, table: Item) -> dict[str, Any]:
    """The KeptDefinition of core/archives.py, as builtins: the table, or what concerns the kept column of it."""
    kind = item["kind"]
    columns = list(table["columns"])
    constraints, indexes, sequences = table["constraints"], table["indexes"], table["sequences"]
    if kind in ("column", "narrowed"):
        name = item["column"]
        columns = [*kept_columns(item, table), _column(table, name)]
        constraints = [c for c in constraints if name in c["columns"]]
        indexes = [i for i in indexes if name in i["columns"]]
        sequences = [s for s in sequences if s["column"] == name]
    fields = (
        "name", "type", "as_text", "not_null", "default", "identity", "generated", "collation", "comment", "grants",
    )  # fmt: skip
    return {
        "columns": [{field: column[field] for field in fields} for column in columns],
        "today": item.get("today"),
        "renamed": item.get("renamed", []),
        "constraints": constraints,
        "indexes": [index["definition"] for index in indexes],
        "sequences": sequences,
        **{
            f: table[f] for f in ("owner", "grants", "comment", "partition_of", "partition_key", "partitions")
        },
    }


def _column(table: Item, name: str) -> Column:
    return next(dict(column) for column in table["columns"] if column["name"] == name)


def _text(item: Item) -> str:
    column = f".{item['column']}" if item["column"] else ""
    return f"{item['table']['schema']}.{item['table']['name']}{column}"


def _names(relation: str, numbers: str) -> str:
    return (
        f"coalesce((SELECT json_agg(ka.attname ORDER BY o.i) FROM unnest({numbers}) WITH ORDINALITY o(n, i)"
        f" JOIN pg_attribute ka ON ka.attrelid = {relation} AND ka.attnum = o.n), '[]')"
    )


def _grants(acl: str, what: str) -> str:
    return (
        f"coalesce((SELECT json_agg('GRANT ' || x.privilege_type || {what} || ' TO '"
        " || CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END"
        f" || CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) FROM aclexplode({acl}) x), '[]')"
    )


_PLACE = "quote_ident(n.nspname) || '.' || quote_ident(c.relname)"
_DESCRIBE = f"""\
SELECT json_build_object(
  'oid', c.oid::bigint, 'kind', c.relkind::text, 'schema', n.nspname, 'name', c.relname,
  'owner', pg_get_userbyid(c.relowner), 'owner_oid', c.relowner::bigint,
  'comment', coalesce(obj_description(c.oid, 'pg_class'), ''),
  'grants', {_grants("c.relacl", f"' ON ' || {_PLACE}")},
  'partition_key', coalesce(pg_get_partkeydef(c.oid), ''),
  'partition_of', coalesce((SELECT quote_ident(pn.nspname) || '.' || quote_ident(p.relname) || ' '
      || pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhparent
      JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE h.inhrelid = c.oid AND c.relispartition), ''),
  'above', coalesce((WITH RECURSIVE above(oid) AS (SELECT h.inhparent FROM pg_inherits h WHERE h.inhrelid = c.oid AND c.relispartition
      UNION ALL SELECT h.inhparent FROM above a JOIN pg_inherits h ON h.inhrelid = a.oid)
      SELECT json_agg(oid::bigint) FROM above), '[]'),
  'partitions', coalesce((WITH RECURSIVE below(oid) AS (SELECT c.oid WHERE c.relkind = 'p'
      UNION ALL SELECT h.inhrelid FROM below b JOIN pg_class bc ON bc.oid = b.oid AND bc.relkind = 'p'
      JOIN pg_inherits h ON h.inhparent = b.oid)
      SELECT json_agg(json_build_object('table', json_build_object('schema', bn.nspname, 'name', bc.relname),
          'bound', pg_get_expr(bc.relpartbound, bc.oid), 'partition_key', coalesce(pg_get_partkeydef(bc.oid), ''))
          ORDER BY bn.nspname, bc.relname)
      FROM below b JOIN pg_class bc ON bc.oid = b.oid JOIN pg_namespace bn ON bn.oid = bc.relnamespace
      WHERE b.oid <> c.oid), '[]'),
  'leaves', coalesce((WITH RECURSIVE below(oid) AS (SELECT c.oid
      UNION ALL SELECT h.inhrelid FROM below b JOIN pg_class bc ON bc.oid = b.oid AND bc.relkind = 'p'
      JOIN pg_inherits h ON h.inhparent = b.oid)
      SELECT json_agg(json_build_object('schema', bn.nspname, 'name', bc.relname) ORDER BY bn.nspname, bc.relname)
      FROM below b JOIN pg_class bc ON bc.oid = b.oid JOIN pg_namespace bn ON bn.oid = bc.relnamespace
      WHERE bc.relkind = 'r'), '[]'),
  'columns', coalesce((SELECT json_agg(json_build_object(
      'name', a.attname, 'number', a.attnum, 'type', format_type(a.atttypid, a.atttypmod),
      'as_text', t.oid >= 16384 OR t.typnamespace <> 'pg_catalog'::regnamespace,
      'own_collation', coalesce(l.oid >= 16384 OR l.collnamespace <> 'pg_catalog'::regnamespace, false),
      'not_null', a.attnotnull,
      'filled', CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END,
      'default', CASE WHEN a.attgenerated = '' THEN coalesce(pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END,
      'generated', CASE WHEN a.attgenerated <> '' THEN coalesce(pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END,
      'identity', CASE a.attidentity WHEN 'a' THEN 'always' WHEN 'd' THEN 'by default' ELSE '' END,
      'collation', CASE WHEN a.attcollation <> t.typcollation
          THEN coalesce(quote_ident(ln.nspname) || '.' || quote_ident(l.collname), '') ELSE '' END,
      'comment', coalesce(col_description(c.oid, a.attnum), ''),
      'grants', {_grants("a.attacl", f"' (' || quote_ident(a.attname) || ') ON ' || {_PLACE}")}) ORDER BY a.attnum)
      FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN pg_namespace ln ON ln.oid = l.collnamespace
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
  'constraints', coalesce((SELECT json_agg(json_build_object('name', k.conname, 'kind', CASE k.contype
      WHEN 'p' THEN 'primary_key' WHEN 'u' THEN 'unique' WHEN 'f' THEN 'foreign_key' WHEN 'x' THEN 'exclude' ELSE 'check' END,
      'definition', pg_get_constraintdef(k.oid), 'columns', {_names("k.conrelid", "k.conkey")},
      'other', CASE WHEN k.confrelid <> 0 THEN (SELECT json_build_object('schema', fn.nspname, 'name', f.relname)
          FROM pg_class f JOIN pg_namespace fn ON fn.oid = f.relnamespace WHERE f.oid = k.confrelid) END,
      'other_columns', {_names("k.confrelid", "k.confkey")}) ORDER BY k.contype, k.conname)
      FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('p', 'u', 'f', 'c', 'x')
      AND NOT EXISTS (SELECT 1 FROM pg_constraint o WHERE o.oid = k.conparentid AND o.conrelid = k.conrelid)), '[]'),
  'uniques', coalesce((SELECT json_agg(json_build_object(
      'parts', (SELECT json_agg(json_build_object('sql', pg_get_indexdef(i.indexrelid, g, false),
          'column', coalesce((SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = i.indkey[g - 1]), ''))
          ORDER BY g) FROM generate_series(1, i.indnkeyatts::int) g),
      'where', coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
      'nulls_equal', strpos(pg_get_indexdef(i.indexrelid), ' NULLS NOT DISTINCT') > 0,
      'columns', coalesce((SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid
          AND a.attnum > 0 AND (a.attnum = ANY (i.indkey) OR EXISTS (SELECT 1 FROM pg_depend d
          WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass
          AND d.refobjid = c.oid AND d.refobjsubid = a.attnum))), '[]')) ORDER BY i.indexrelid)
      FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid), '[]'),
  'indexes', coalesce((SELECT json_agg(json_build_object('definition', pg_get_indexdef(i.indexrelid),
      'columns', {_names("i.indrelid", "i.indkey::int2[]")}) ORDER BY i.indexrelid)
      FROM pg_index i WHERE i.indrelid = c.oid
      AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = c.oid)), '[]'),
  'sequences', coalesce((SELECT json_agg(json_build_object(
      'sequence', json_build_object('schema', sn.nspname, 'name', s.relname), 'column', a.attname,
      'last_value', coalesce(pg_sequence_last_value(s.oid), 0),
      'increment', (SELECT q.seqincrement FROM pg_sequence q WHERE q.seqrelid = s.oid)) ORDER BY sn.nspname, s.relname)
      FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace
      JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
      WHERE d.classid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.deptype IN ('a', 'i')), '[]')
)::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND WHICH"""
