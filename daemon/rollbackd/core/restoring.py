"""Bringing archived data back: from what is kept and what stands there now to SQL, which overwrites nothing newer.

Rows come first, parents before children; then the values inside of rows, the last change first. Rows of tables that point
to one another in a circle, or to themselves, come back in a single statement: foreign keys are checked at its end, so
that none has to be deferred, and no column to be filled in later, which triggers and checks would see. Each statement
gives one number first. The same statements are run by the daemon and written out as a script.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

import msgspec

from rollbackd.core.archives import (
    ENTRIES,
    NEW_VALUE,
    OLD_VALUE,
    ROW,
    SCHEMA,
    ArchiveEntry,
    ArchiveKind,
    KeptColumn,
    KeptConstraint,
    KeptSequence,
)
from rollbackd.core.schema import TableName, quoted

# As they were when the archive was filled: a value's text depends on them.
TEXT_SETTINGS = {
    "search_path": "pg_catalog, pg_temp",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "row_security": "off",
}
ALREADY_THERE = "everything that is kept is there already"
NOT_TAKEN = "left: another row holds a value that must be unique, or a trigger keeps them out"
# Beside a changed row's new values, under a name that no column can have: which statement it was.
STATEMENT = ""
# The first version that can be asked whether a text is a value of a type; before it, asking is trying.
ASKS_TYPES = 160000


class PresentColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column as it is now; `filled` is the value that rows got which were there before it.

    Values of a type that isn't PostgreSQL's own (`as_text`) are compared as text: no other operator is sure to be found.
    """

    name: str
    type: str
    as_text: bool = False
    default: str = ""
    identity: str = ""
    generated: str = ""
    filled: str | None = None


class UniquePart(msgspec.Struct, frozen=True, kw_only=True):
    """What a unique index compares: an expression, and the column's name where it is nothing but a column."""

    sql: str
    column: str = ""


class PresentUnique(msgspec.Struct, frozen=True, kw_only=True):
    """A unique index as it is now; `columns` are all that it needs of a row, for its condition (`where`) too."""

    parts: tuple[UniquePart, ...]
    columns: tuple[str, ...]
    where: str = ""
    nulls_equal: bool = False


class PresentTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table as it is now; `kind` is `p` for a partitioned one and `r` for any other."""

    schema: str
    name: str
    kind: str
    columns: tuple[PresentColumn, ...]
    constraints: tuple[KeptConstraint, ...] = ()
    sequences: tuple[KeptSequence, ...] = ()
    uniques: tuple[PresentUnique, ...] = ()

    @property
    def table(self) -> TableName:
        """Its name."""
        return TableName(self.schema, self.name)

    def column(self, name: str) -> PresentColumn | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)

    def parents(self) -> tuple[KeptConstraint, ...]:
        """Its foreign keys."""
        return tuple(c for c in self.constraints if c.kind == "foreign_key" and c.other is not None)

    def defers_uniqueness(self) -> bool:
        """Whether something unique is only checked later, which ON CONFLICT doesn't take."""
        kinds = ("primary_key", "unique", "exclude")
        return any(
            c.kind in kinds and re.search(r"(?<!NOT )DEFERRABLE", c.definition) for c in self.constraints
        )

    def rows(self) -> str:
        """Its own rows, as FROM and UPDATE take them: heirs' rows are kept as their own table's."""
        return self.table.sql() if self.kind == "p" else f"ONLY {self.table.sql()}"


class Counts(StrEnum):
    """What the number that a statement gives says."""

    NOTHING = "nothing"
    RESTORED = "restored"
    LEFT = "left"
    MISSING = "missing"


class RestoreStep(msgspec.Struct, frozen=True, kw_only=True):
    """One statement. `says` tells a person what it does, `reason` why what it counts wasn't brought back.

    `repeatable` is False for a statement whose effect no rollback undoes; a dry run leaves it out.
    """

    entry: int
    says: str
    sql: str
    counts: Counts = Counts.NOTHING
    reason: str = ""
    repeatable: bool = True


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The statements in their order, and the entries that can't be brought back now, each with its reason."""

    steps: tuple[RestoreStep, ...]
    left: dict[int, str]


class RestoredEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one entry: rows or values `restored`, `left` as they are, or without a row to go to (`missing`)."""

    id: int
    kind: ArchiveKind
    table: TableName
    column: str
    archive: str
    archived: int
    restored: int = 0
    left: int = 0
    missing: int = 0
    reasons: tuple[str, ...] = ()

    def text(self) -> str:
        """The outcome in a line."""
        place = f"{self.table.text()}.{self.column}" if self.column else self.table.text()
        rest = "".join(f"; {reason}" for reason in self.reasons)
        return f"{place} ({self.kind}): {self.restored:,} of {self.archived:,} restored{rest}"


class RestoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore did, or with `dry_run` would do; the statements are those that were run."""

    run: str
    dry_run: bool
    entries: tuple[RestoredEntry, ...] = ()
    statements: tuple[str, ...] = ()

    @property
    def restored(self) -> int:
        """Rows and values that were brought back."""
        return sum(entry.restored for entry in self.entries)


def as_called_now(entry: ArchiveEntry, present: Mapping[TableName, PresentTable]) -> ArchiveEntry:
    """The entry under the names that its table and columns have now: later revisions may have renamed them, and have again.

    Names of today win, as something else may have the older name by now. What of `definition.renamed` is in force stays
    there, for reading the archive, which has the names of its time.
    """
    today = entry.definition.today
    table = (present.get(today) if today is not None else None) or present.get(entry.table)
    if table is None:
        return entry
    names = _names_in_force(entry, table)

    def called(name: str) -> str:
        return names.get(name, name)

    definition = msgspec.structs.replace(
        entry.definition,
        columns=tuple(msgspec.structs.replace(c, name=called(c.name)) for c in entry.definition.columns),
        sequences=tuple(
            msgspec.structs.replace(s, column=called(s.column)) for s in entry.definition.sequences
        ),
        renamed=tuple(names.items()),
    )
    return msgspec.structs.replace(
        entry,
        table=table.table,
        column=called(entry.column),
        key=tuple(called(name) for name in entry.key),
        definition=definition,
    )


def plan_restore(
    entries: Iterable[ArchiveEntry], present: Mapping[TableName, PresentTable], server_version: int
) -> RestorePlan:
    """What to run to bring these entries, as they are called now, back into the tables as they are now."""
    backwards = sorted(entries, key=lambda entry: -entry.id)
    left = {e.id: reason for e in backwards if (reason := _obstacle(e, present.get(e.table)))}
    ready = [(e, present[e.table]) for e in backwards if e.id not in left]
    steps: list[RestoreStep] = []
    for missing, together in _parents_first(ready, server_version):
        steps += _circle(missing) if together else _missing_rows(missing[0])
    for entry, table in ready:
        if entry.kind is ArchiveKind.ROWS:
            steps += _changed_rows(entry, table, server_version, _dropped_with(entry, backwards))
        elif entry.kind is ArchiveKind.COLUMN:
            steps += _column(entry, table, server_version)
        elif entry.kind is ArchiveKind.NARROWED:
            steps += _narrowed(entry, table, server_version)
    if any(entry.kind is not ArchiveKind.TABLE for entry, _ in ready):
        for missing, together in _parents_first(ready, server_version):
            if missing[0].entry.key and not together:
                steps.append(_once_more(missing[0]))
    if ready:
        steps.append(_check_now(ready[0][0]))
    steps += _sequences(ready)
    return RestorePlan(steps=tuple(steps), left=left)


def mark_restored(plan: RestorePlan, entries: Iterable[ArchiveEntry]) -> str:
    """The statement that notes when the entries were brought back; empty where none could be."""
    ids = sorted(entry.id for entry in entries if entry.id not in plan.left)
    if not ids:
        return ""
    numbers = ", ".join(str(number) for number in ids)
    return f"UPDATE {ENTRIES.sql()} SET restored_at = now() WHERE id IN ({numbers})"


def restore_script(run: str, entries: Iterable[ArchiveEntry], plan: RestorePlan) -> str:
    """The plan as a script for psql: one transaction, and each statement with what it does."""
    entries = tuple(entries)
    lines = [
        f"-- Brings back what the run {_comment(run)} archived. Nothing newer is overwritten; it may be run again.",
        "BEGIN;",
        *(
            f"SET LOCAL {name} = {_setting(value)};"
            for name, value in TEXT_SETTINGS.items()
            if name != "search_path"
        ),
        # Everything here is named in full; the application's triggers look where they always do.
        "SELECT set_config('search_path', 'pg_catalog, ' || current_setting('search_path'), true);",
    ]
    for entry in entries:
        if entry.id in plan.left:
            lines += ["", f"-- Left: {_place(entry)} ({entry.kind}): {_comment(plan.left[entry.id])}"]
    for step in plan.steps:
        lines += ["", f"-- {_comment(step.says)}", f"{step.sql};"]
    marked = mark_restored(plan, entries)
    if marked:
        lines += ["", "-- Note that they were brought back.", f"{marked};"]
    return "\n".join([*lines, "", "COMMIT;", ""])


def report(
    run: str,
    entries: Iterable[ArchiveEntry],
    plan: RestorePlan,
    counted: Iterable[tuple[RestoreStep, int]],
    *,
    dry_run: bool,
) -> RestoreReport:
    """What came of it, from the number that each statement gave."""
    numbers = tuple(counted)
    outcomes = []
    for entry in sorted(entries, key=lambda e: -e.id):
        own = [(step, number) for step, number in numbers if step.entry == entry.id]
        total = {kind: sum(n for step, n in own if step.counts is kind) for kind in Counts}
        reasons = [f"{n:,} {step.reason}" for step, n in own if step.reason and n]
        if entry.id in plan.left:
            reasons = [plan.left[entry.id]]
            total[Counts.LEFT] = entry.rows
        elif not total[Counts.RESTORED] and not reasons:
            reasons = [ALREADY_THERE]
        outcomes.append(
            RestoredEntry(
                id=entry.id,
                kind=entry.kind,
                table=entry.table,
                column=entry.column,
                archive=entry.archive,
                archived=entry.rows,
                restored=total[Counts.RESTORED],
                left=total[Counts.LEFT],
                missing=total[Counts.MISSING],
                reasons=tuple(reasons),
            )
        )
    statements = tuple(step.sql for step, _ in numbers)
    return RestoreReport(run=run, dry_run=dry_run, entries=tuple(outcomes), statements=statements)


# -- what can be brought back -------------------------------------------------------------------------------------------


def _names_in_force(entry: ArchiveEntry, table: PresentTable) -> dict[str, str]:
    """The columns of the archive that the table has under another name, and that name.

    They are all renamed again or none is, unless the upgrade stands in between.
    """
    kept = [column.name for column in entry.definition.columns]
    names = {old: new for old, new in entry.definition.renamed if old in kept}
    if any(table.column(new) is None for new in names.values()):
        if all(table.column(old) is not None for old in names):
            return {}
        names = {o: n for o, n in names.items() if table.column(o) is None and table.column(n) is not None}
    # A column that the way back itself made may have the name; then nothing tells the two apart.
    together = {names.get(name, name) for name in kept}
    return names if len(together) == len(kept) else {}


def _obstacle(entry: ArchiveEntry, table: PresentTable | None) -> str:
    if table is None:
        return f"the table {entry.table.text()} isn't there: apply the fixed migration first"
    if entry.kind is ArchiveKind.ROWS and not entry.key and entry.restored_at is not None:
        return f"brought back already, on {entry.restored_at:%Y-%m-%d %H:%M}, and no key tells whether it changed since"
    if entry.kind in (ArchiveKind.TABLE, ArchiveKind.ROWS):
        needed = [column.name for column in entry.definition.columns if not column.generated]
    else:
        needed = [*entry.key, entry.column]
    missing = [name for name in needed if table.column(name) is None]
    if missing:
        names = f"{'columns' if len(missing) > 1 else 'column'} {', '.join(missing)}"
        return f"{entry.table.text()} has no {names}: apply the fixed migration first"
    return ""


def _parents_first(
    ready: Iterable[tuple[ArchiveEntry, PresentTable]], version: int
) -> Iterator[tuple[list["_Missing"], bool]]:
    """The rows to insert, in groups: those of one entry, or of all that have to be worked out and inserted together."""
    missing = []
    for entry, table in ready:
        if entry.kind is ArchiveKind.TABLE:
            missing.append(_Missing(entry=entry, table=table, kept=_Kept.whole(entry, table, version)))
        elif entry.kind is ArchiveKind.ROWS:
            missing.append(_Missing(entry=entry, table=table, kept=_Kept.deleted(entry, table, version)))
    tables = {one.table.table: one.table for one in missing}
    parents = {
        name: {c.other for c in table.parents() if c.other in tables} for name, table in tables.items()
    }
    above = {name: _reached(name, parents) for name in tables}
    # A table that hangs below another reaches all that the other does and itself; in a circle they reach the same.
    for reached in sorted(set(above.values()), key=lambda names: (len(names), sorted(names))):
        group = [one for one in missing if above[one.table.table] == reached]
        names = {one.table.table for one in group}
        together = len(names) > 1 or any(name in parents[name] for name in names)
        if together or any(one.table.defers_uniqueness() for one in group):
            yield group, True
        else:
            yield from (([one], False) for one in group)


def _reached(name: TableName, parents: Mapping[TableName, set[TableName]]) -> frozenset[TableName]:
    """A table and all that it hangs below by foreign keys, at whatever depth."""
    reached, ahead = {name}, [name]
    while ahead:
        further = parents[ahead.pop()] - reached
        reached |= further
        ahead += further
    return frozenset(reached)


# -- rows ---------------------------------------------------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Whole rows of an archive: a query of them, with a column for each that can be written, typed as it is now.

    `unfit` counts those that the present types wouldn't give back as they were; the query leaves them out.
    """

    query: str
    columns: tuple[PresentColumn, ...]
    unfit: str = ""

    @classmethod
    def whole(cls, entry: ArchiveEntry, table: PresentTable, version: int) -> "_Kept":
        """The rows of a dropped table."""
        pairs = _common(entry, table)
        values = [f"{_typed(kept, now)} AS {quoted(now.name)}" for kept, now in pairs]
        takes = [condition for kept, now in pairs for condition in _unfit(kept, now, version)]
        return cls._of(entry, pairs, values, takes, f"{_archive(entry)} a")

    @classmethod
    def deleted(cls, entry: ArchiveEntry, table: PresentTable, version: int) -> "_Kept":
        """Rows as they were before the first statement that touched them, where one removed them in the end."""
        pairs = _common(entry, table)
        fields = [(kept, now, _field(f"a.{OLD_VALUE}", now.name)) for kept, now in pairs]
        values = [f"{field}::{now.type} AS {quoted(now.name)}" for _, now, field in fields]
        takes = [
            _round_trip(field, now.type, version) for kept, now, field in fields if kept.type != now.type
        ]
        # Of several rows that had the same key one after the other the first is the one that was there before.
        key = ", ".join(_field(f"l.{OLD_VALUE}", name) for name in entry.key)
        first = f"SELECT DISTINCT ON ({key}) l.*" if key else "SELECT l.*"
        order = f" ORDER BY {key}, l.{ROW}" if key else ""
        rows = f"({first} FROM {_lives(entry)} l WHERE l.{NEW_VALUE} IS NULL{order}) a"
        return cls._of(entry, pairs, values, takes, rows)

    @classmethod
    def _of(
        cls,
        entry: ArchiveEntry,
        pairs: list[tuple[KeptColumn, PresentColumn]],
        values: list[str],
        takes: list[str],
        rows: str,
    ) -> "_Kept":
        order = [] if entry.key else [f"a.{ROW}"]
        condition = " AND ".join(takes) or "true"
        return cls(
            query=f"SELECT {', '.join([*values, *order])} FROM {rows} WHERE {condition}",
            columns=tuple(now for _, now in pairs),
            unfit=f"SELECT count(*) FROM {rows} WHERE NOT ({condition})" if takes else "",
        )

    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    def equal(self, name: str, left: str, right: str) -> str:
        """A comparison of two values of a column."""
        return next(_equal(left, right, column) for column in self.columns if column.name == name)


class _Missing(msgspec.Struct, frozen=True, kw_only=True):
    """The kept rows of an entry that aren't in its table: `source` is what `absent` picks them from, each as `a`."""

    entry: ArchiveEntry
    table: PresentTable
    kept: _Kept

    @property
    def source(self) -> str:
        """The kept rows; without a key each is numbered among those that are alike, and has how many are there."""
        if self.entry.key:
            return f"({self.kept.query}) a"
        own, present = _identity("a", self.kept.names()), _identity("t", self.kept.names())
        return (
            f"(SELECT a.*, {own} AS rollbackd_id, row_number() OVER (PARTITION BY {own} ORDER BY a.{ROW})"
            f" AS rollbackd_n FROM ({self.kept.query}) a) a LEFT JOIN (SELECT {present} AS rollbackd_id,"
            f" count(*) AS rollbackd_n FROM {self.table.rows()} t GROUP BY 1) p ON p.rollbackd_id = a.rollbackd_id"
        )

    @property
    def absent(self) -> str:
        """The condition by which a row isn't there."""
        if self.entry.key:
            return f"NOT EXISTS (SELECT 1 FROM {self.table.rows()} t WHERE {self.same_key('t', 'a')})"
        return "a.rollbackd_n > coalesce(p.rollbackd_n, 0)"

    def same_key(self, left: str, right: str) -> str:
        """Two rows of the table are the same one."""
        return " AND ".join(
            self.kept.equal(name, f"{left}.{quoted(name)}", f"{right}.{quoted(name)}")
            for name in self.entry.key
        )

    def parents(self) -> list[KeptConstraint]:
        """The foreign keys that the kept rows have values for."""
        return [key for key in self.table.parents() if set(key.columns) <= set(self.kept.names())]

    def points(self, key: KeptConstraint, alias: str) -> str:
        """A row has a value for the key."""
        return " AND ".join(f"{alias}.{quoted(name)} IS NOT NULL" for name in key.columns)

    def parent(self, key: KeptConstraint, alias: str) -> str:
        """A row's parent is `p`."""
        pairs = zip(key.columns, key.other_columns, strict=True)
        return " AND ".join(self.kept.equal(n, f"p.{quoted(o)}", f"{alias}.{quoted(n)}") for n, o in pairs)

    def parent_is_there(self, key: KeptConstraint, alias: str) -> str:
        """A row's parent is in its table now."""
        assert key.other is not None, "a foreign key points to a table"
        return f"EXISTS (SELECT 1 FROM {key.other.sql()} p WHERE {self.parent(key, alias)})"

    def insert(self, source: str, where: str) -> str:
        """The statement that inserts them, or those of a source that has the same columns."""
        columns = ", ".join(quoted(name) for name in self.kept.names())
        values = ", ".join(f"a.{quoted(name)}" for name in self.kept.names())
        overriding = " OVERRIDING SYSTEM VALUE" if any(c.identity for c in self.table.columns) else ""
        conflict = "" if self.table.defers_uniqueness() else " ON CONFLICT DO NOTHING"
        return (
            f"INSERT INTO {self.table.table.sql()} ({columns}){overriding} SELECT {values} FROM {source}"
            f" WHERE {where}{conflict} RETURNING 1"
        )


def _missing_rows(missing: _Missing) -> Iterator[RestoreStep]:
    """Insert the rows that aren't there and whose parents are."""
    if not missing.entry.key:
        yield _lock(missing.entry, missing.table)
    yield RestoreStep(
        entry=missing.entry.id,
        says=f"Insert the rows of {_place(missing.entry)} that aren't there.",
        sql=_insert_missing(missing),
        counts=Counts.RESTORED,
    )
    yield from _left_rows(missing)


def _insert_missing(missing: _Missing) -> str:
    there = [
        f"(NOT ({missing.points(k, 'a')}) OR {missing.parent_is_there(k, 'a')})" for k in missing.parents()
    ]
    return (
        f"WITH done AS ({missing.insert(missing.source, ' AND '.join([missing.absent, *there]))})"
        " SELECT count(*) FROM done"
    )


def _once_more(missing: _Missing) -> RestoreStep:
    """Values that return set off the application's triggers, which may remove what was just inserted.

    Without a key a row whose values returned meanwhile can't be told from one that is gone: those are left alone.
    """
    return RestoreStep(
        entry=missing.entry.id,
        says=f"Insert the rows of {_place(missing.entry)} again that a trigger removed as values returned.",
        sql=_insert_missing(missing),
    )


def _left_rows(missing: _Missing, circular: bool = False) -> Iterator[RestoreStep]:
    """Count, once they are inserted, the rows that couldn't be, and those that are there with newer values."""
    entry, table, place = missing.entry, missing.table, _place(missing.entry)
    if missing.kept.unfit:
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the rows of {place} with values that the present types don't take.",
            sql=missing.kept.unfit,
            counts=Counts.LEFT,
            reason="left: the present types don't hold their values as they were",
        )
    taken = _taken(missing, "rollbackd_left") if circular else []
    rest = (
        f"WITH rollbackd_left AS MATERIALIZED (SELECT a.*, row_number() OVER () AS rollbackd_member"
        f" FROM {missing.source} WHERE {missing.absent}) SELECT count(*) FROM rollbackd_left c"
    )
    free = f"c.rollbackd_member NOT IN ({' UNION ALL '.join(taken)})" if taken else "true"
    lacks = " OR ".join(
        f"({missing.points(key, 'c')} AND NOT {missing.parent_is_there(key, 'c')})"
        for key in missing.parents()
    )
    if lacks:
        names = ", ".join(sorted({key.other.text() for key in missing.parents() if key.other is not None}))
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the rows of {place} whose parent in {names} is missing.",
            sql=f"{rest} WHERE {free} AND ({lacks})",
            counts=Counts.LEFT,
            reason=f"left: the row of {names} that they point to isn't there",
        )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the rows of {place} that couldn't be inserted.",
        sql=f"{rest} WHERE NOT ({free} AND ({lacks}))" if lacks else rest,
        counts=Counts.LEFT,
        reason=NOT_TAKEN,
    )
    if entry.key:
        differs = (
            f"{_identity('a', missing.kept.names())} IS DISTINCT FROM {_identity('t', missing.kept.names())}"
        )
        match = missing.same_key("t", "a")
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the rows of {place} that are there with newer values.",
            sql=f"SELECT count(*) FROM {missing.source} JOIN {table.rows()} t ON {match} WHERE {differs}",
            counts=Counts.LEFT,
            reason="left: the row is there with newer values",
        )


# -- rows that point to one another in a circle -------------------------------------------------------------------------


def _circle(members: list[_Missing]) -> Iterator[RestoreStep]:
    """Insert rows together with those that they point to; who lacks a parent takes along all that point to him.

    Each member's rows that aren't there are numbered. Lost are those that lack a parent, or whose unique value somebody
    else has, and then whoever points to one that is lost.
    """
    for one in members:
        if not one.entry.key:
            yield _lock(one.entry, one.table)
    parts = [_numbered(members, number) for number in range(len(members))]
    nobody = "SELECT 0 AS child, 0::bigint AS member WHERE false"
    lost = [nobody, *(query for number in range(len(members)) for query in _lost(members, number))]
    links = [query for number in range(len(members)) for query in _links(members, number)]
    if links:
        parts.append(f"rollbackd_links AS MATERIALIZED ({' UNION ALL '.join(links)})")
        lost = [
            f"({' UNION ALL '.join(lost)})",
            "SELECT k.child, k.member FROM rollbackd_lost l JOIN rollbackd_links k"
            " ON k.parent = l.child AND k.parent_member = l.member",
        ]
    parts.append(f"rollbackd_lost (child, member) AS ({' UNION '.join(lost)})")
    for number, one in enumerate(members):
        found = (
            "NOT EXISTS (SELECT 1 FROM rollbackd_lost l"
            f" WHERE l.child = {number} AND l.member = a.rollbackd_member)"
        )
        parts.append(f"rollbackd_done_{number} AS ({one.insert(f'rollbackd_{number} a', found)})")
    done = [f"(SELECT count(*) FROM rollbackd_done_{number})" for number in range(len(members))]
    together = f"WITH RECURSIVE {', '.join(parts)} SELECT {' + '.join(done)}"
    if len(members) == 1:
        yield RestoreStep(
            entry=members[0].entry.id,
            says=f"Insert the rows of {_place(members[0].entry)} that aren't there, with those that they point to.",
            sql=together,
            counts=Counts.RESTORED,
        )
    else:
        # Several entries and one statement: each one's number is read from a setting afterwards.
        names = [f"rollbackd.restored_{one.entry.id}" for one in members]
        noted = (
            f"set_config({_literal(name)}, {count}::text, true)"
            for name, count in zip(names, done, strict=True)
        )
        places = ", ".join(dict.fromkeys(_place(one.entry) for one in members))
        yield RestoreStep(
            entry=members[0].entry.id,
            says=f"Insert the rows of {places} that aren't there, all at once as they point to one another.",
            sql=f"{together}, {', '.join(noted)}",
        )
        for one, name in zip(members, names, strict=True):
            yield RestoreStep(
                entry=one.entry.id,
                says=f"The rows of {_place(one.entry)} that were inserted by it.",
                sql=f"SELECT current_setting({_literal(name)})::bigint",
                counts=Counts.RESTORED,
            )
    for one in members:
        yield from _left_rows(one, circular=True)


def _numbered(members: list[_Missing], number: int) -> str:
    """A member's rows that aren't there, numbered; of a row that several entries keep the last version counts."""
    one = members[number]
    where = [one.absent]
    for earlier, other in enumerate(members[:number]):
        if other.table.table != one.table.table:
            continue
        if one.entry.key and set(one.entry.key) <= set(other.kept.names()):
            where.append(f"NOT EXISTS (SELECT 1 FROM rollbackd_{earlier} b WHERE {one.same_key('b', 'a')})")
        elif not one.entry.key and not other.entry.key:
            where.append(
                "a.rollbackd_n > coalesce(p.rollbackd_n, 0)"
                f" + (SELECT count(*) FROM rollbackd_{earlier} b WHERE b.rollbackd_id = a.rollbackd_id)"
            )
    return (
        f"rollbackd_{number} AS MATERIALIZED (SELECT a.*, row_number() OVER () AS rollbackd_member"
        f" FROM {one.source} WHERE {' AND '.join(where)})"
    )


def _coming(members: list[_Missing], key: KeptConstraint) -> list[int]:
    """The members among whose rows a foreign key's parent may be."""
    return [
        number
        for number, one in enumerate(members)
        if one.table.table == key.other and set(key.other_columns) <= set(one.kept.names())
    ]


def _lost(members: list[_Missing], number: int) -> Iterator[str]:
    """Queries of a member's rows that can't be inserted whatever becomes of the others."""
    one = members[number]
    for key in one.parents():
        nowhere = [f"NOT {one.parent_is_there(key, 'c')}"]
        nowhere += [
            f"NOT EXISTS (SELECT 1 FROM rollbackd_{other} p WHERE {one.parent(key, 'c')})"
            for other in _coming(members, key)
        ]
        yield (
            f"SELECT {number}, c.rollbackd_member FROM rollbackd_{number} c"
            f" WHERE {one.points(key, 'c')} AND {' AND '.join(nowhere)}"
        )
    for query in _taken(one, f"rollbackd_{number}"):
        yield f"SELECT {number}, u.rollbackd_member FROM ({query}) u"


def _links(members: list[_Missing], number: int) -> Iterator[str]:
    """Queries that say which of a member's rows need which others, because these aren't there yet."""
    one = members[number]
    for key in one.parents():
        for other in _coming(members, key):
            yield (
                f"SELECT {number} AS child, c.rollbackd_member AS member, {other} AS parent,"
                f" p.rollbackd_member AS parent_member FROM rollbackd_{number} c"
                f" JOIN rollbackd_{other} p ON {one.parent(key, 'c')}"
                f" WHERE {one.points(key, 'c')} AND NOT {one.parent_is_there(key, 'c')}"
            )


def _taken(missing: _Missing, numbered: str) -> Iterator[str]:
    """Queries of the numbers of rows whose value in a unique index another row holds by now."""
    for unique in missing.table.uniques:
        if not set(unique.columns) <= set(missing.kept.names()):
            continue
        values = ", ".join(f"({part.sql}) AS rollbackd_u{n}" for n, part in enumerate(unique.parts))
        where = f" WHERE {unique.where}" if unique.where else ""
        same = " AND ".join(
            _same_unique(unique, missing.table.column(part.column), f"c.rollbackd_u{n}", f"t.rollbackd_u{n}")
            for n, part in enumerate(unique.parts)
        )
        yield (
            f"SELECT c.rollbackd_member FROM (SELECT {values}, rollbackd_member FROM {numbered}{where}) c"
            f" JOIN (SELECT {values} FROM {missing.table.rows()}{where}) t ON {same}"
        )


def _same_unique(unique: PresentUnique, column: PresentColumn | None, left: str, right: str) -> str:
    """Of an expression it isn't known whether its type's operator is found, so its text is compared."""
    if column is None or column.as_text:
        left, right = _text(left), _text(right)
    return f"{left} IS NOT DISTINCT FROM {right}" if unique.nulls_equal else f"{left} = {right}"


# -- rows that were changed ---------------------------------------------------------------------------------------------


def _lives(entry: ArchiveEntry) -> str:
    """What the statements made of each row from first to last: its old values, and the new ones unless it was removed.

    A change goes on where the last one before it ended: at the same key, or the same values where there is none. To tell
    so, each value is a stack: whoever comes to have it is put on it, whoever had it is taken off. What one statement
    changes it changes at once, so that all leave before any arrive. An archive that doesn't say which statement it was
    (an older one) is followed only where the key stayed.
    """
    names = entry.key or tuple(column.name for column in entry.definition.columns)
    start = _array(_field(f"d.{OLD_VALUE}", name) for name in names)
    end = _array(_field(f"d.{NEW_VALUE}", name) for name in names)
    statement = _field(f"d.{NEW_VALUE}", STATEMENT)
    # A row that is removed and made anew with its key is that row still.
    stays = f"CASE WHEN d.{NEW_VALUE} IS NOT NULL THEN {end}{f' ELSE {start}' if entry.key else ''} END"
    going = f"PARTITION BY v ORDER BY moment, way, {ROW} ROWS UNBOUNDED PRECEDING"
    return (
        f"(WITH RECURSIVE changes AS (SELECT d.*, {start} AS before, {stays} AS after, d.{NEW_VALUE} IS NULL"
        f" OR {statement} IS NOT NULL OR {start} = {end} AS follows, CASE WHEN {statement} IS NULL THEN d.{ROW}"
        f" ELSE min(d.{ROW}) OVER (PARTITION BY {statement}) END AS moment FROM {_archive(entry)} d),"
        f" ways AS (SELECT {ROW}, before AS v, -1 AS way, moment FROM changes WHERE follows"
        f" UNION ALL SELECT {ROW}, after, 1, moment FROM changes WHERE after IS NOT NULL),"
        f" sums AS (SELECT *, sum(way) OVER ({going}) AS height FROM ways),"
        f" heights AS (SELECT *, height - least(0, min(height) OVER ({going})) + CASE way WHEN 1 THEN 0 ELSE 1 END"
        " AS level FROM sums),"
        f" pairs AS (SELECT {ROW}, way, lag({ROW}) OVER same AS previous, lag(way) OVER same AS previous_way FROM heights"
        f" WINDOW same AS (PARTITION BY v, level ORDER BY moment, way, {ROW})),"
        f" following AS (SELECT {ROW}, previous FROM pairs WHERE way = -1 AND previous_way = 1),"
        f" lives AS (SELECT c.{ROW} AS first, c.{ROW} AS last FROM changes c"
        f" WHERE NOT EXISTS (SELECT 1 FROM following f WHERE f.{ROW} = c.{ROW})"
        f" UNION ALL SELECT l.first, f.{ROW} FROM lives l JOIN following f ON f.previous = l.last)"
        f" SELECT b.{ROW}, b.{OLD_VALUE}, e.{NEW_VALUE} FROM lives l JOIN changes b ON b.{ROW} = l.first"
        f" JOIN changes e ON e.{ROW} = l.last WHERE NOT EXISTS (SELECT 1 FROM following f WHERE f.previous = l.last))"
    )


def _dropped_with(entry: ArchiveEntry, entries: Iterable[ArchiveEntry]) -> frozenset[str]:
    """The columns that the same revision took from the same table: their values come back by entries of their own."""
    return frozenset(
        other.column
        for other in entries
        if other.kind is ArchiveKind.COLUMN
        and (other.run, other.revision, other.table) == (entry.run, entry.revision, entry.table)
    )


def _changed_rows(
    entry: ArchiveEntry, table: PresentTable, version: int, dropped: frozenset[str]
) -> Iterator[RestoreStep]:
    """Each changed column gets its old value back if it still holds the new one."""
    pairs = _common(entry, table)
    columns = [now for _, now in pairs]
    settable = [(kept, now) for kept, now in pairs if now.identity != "always"]
    place = _place(entry)
    if not settable:
        return

    orphaned = _orphaned(table, columns)

    def changed(now: PresentColumn) -> str:
        return f"{_field('a.o', now.name)} IS DISTINCT FROM {_field('a.n', now.name)}"

    def holds(kept: KeptColumn, now: PresentColumn, which: str) -> str:
        """The value is still the one of that side, written as its present type writes it."""
        present, text = _text(f"t.{quoted(now.name)}"), _field(f"a.{which}", now.name)
        if kept.type == now.type:
            return f"{present} IS NOT DISTINCT FROM {text}"
        again = _if_valid(text, now.type, _text(f"{text}::{now.type}"), text, version)
        return f"{present} IS NOT DISTINCT FROM {again}"

    def may_return(kept: KeptColumn, now: PresentColumn) -> str:
        fits = [] if kept.type == now.type else [_round_trip(_field("a.o", now.name), now.type, version)]
        heeded = [f"NOT {lacks}" for names, lacks in orphaned if now.name in names]
        return " AND ".join([changed(now), holds(kept, now, "n"), *fits, *heeded])

    if entry.key:
        group = ", ".join(_field("e." + NEW_VALUE, name) for name in entry.key)
        changes = (
            f"(SELECT DISTINCT ON ({group}) e.{OLD_VALUE} AS o, e.{NEW_VALUE} AS n FROM {_lives(entry)} e"
            f" WHERE e.{NEW_VALUE} IS NOT NULL ORDER BY {group}, e.{ROW} DESC) a"
        )
        match = " AND ".join(
            _equal(f"t.{quoted(now.name)}", f"{_field('a.n', now.name)}::{now.type}", now)
            for now in columns
            if now.name in entry.key
        )
        target, more = f"{table.rows()} t", ""
    else:
        # Rows that are alike are as good as one another: the n-th change takes the n-th of them.
        yield _lock(entry, table)
        # A column that went in the same revision is empty yet: it is told by the old values that return here.
        telling = [now for now in columns if now.name not in dropped]
        new = _fields("e." + NEW_VALUE, telling)
        changes = (
            f"(SELECT e.{OLD_VALUE} AS o, e.{NEW_VALUE} AS n, {new} AS i, row_number() OVER (PARTITION BY {new} ORDER BY e.{ROW} DESC)"
            f" AS r FROM {_lives(entry)} e WHERE e.{NEW_VALUE} IS NOT NULL) a"
        )
        identity = _identity("s", [c.name for c in telling])
        more = (
            f" JOIN (SELECT s.tableoid AS x, s.ctid AS y, {identity} AS i,"
            f" row_number() OVER (PARTITION BY {identity} ORDER BY s.tableoid, s.ctid) AS r FROM {table.rows()} s) b"
            " ON b.i = a.i AND b.r = a.r"
        )
        match = "t.tableoid = b.x AND t.ctid = b.y"
        target = f"{table.rows()} t"
    sets = ", ".join(
        f"{quoted(now.name)} = CASE WHEN {may_return(kept, now)} THEN {_field('a.o', now.name)}::{now.type}"
        f" ELSE t.{quoted(now.name)} END"
        for kept, now in settable
    )
    still = " OR ".join(f"({may_return(kept, now)})" for kept, now in settable)
    yield RestoreStep(
        entry=entry.id,
        says=f"Give the changed rows of {place} their old values back, where they still hold the new ones.",
        sql=(
            f"WITH done AS (UPDATE {target} SET {sets} FROM {changes}{more} WHERE {match} AND ({still})"
            " RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    if not entry.key:
        return
    old_match = " AND ".join(
        _equal(f"t.{quoted(now.name)}", f"{_field('a.o', now.name)}::{now.type}", now)
        for now in columns
        if now.name in entry.key
    )
    newer = " OR ".join(f"({changed(now)} AND NOT {holds(kept, now, 'o')})" for kept, now in settable)
    went_back = f"NOT EXISTS (SELECT 1 FROM {target} WHERE {match})"
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the changed rows of {place} that hold newer values.",
        sql=(
            f"SELECT (SELECT count(*) FROM {changes} JOIN {target} ON {match} WHERE {newer})"
            f" + (SELECT count(*) FROM {changes} JOIN {target} ON {old_match} WHERE {went_back} AND ({newer}))"
        ),
        counts=Counts.LEFT,
        reason="left: they hold newer values, or point to a row that isn't there",
    )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the changed rows of {place} that aren't there any more.",
        sql=(
            f"SELECT count(*) FROM {changes} WHERE NOT EXISTS (SELECT 1 FROM {target} WHERE {match})"
            f" AND NOT EXISTS (SELECT 1 FROM {target} WHERE {old_match})"
        ),
        counts=Counts.MISSING,
        reason="aren't there any more",
    )


def _orphaned(table: PresentTable, columns: list[PresentColumn]) -> list[tuple[set[str], str]]:
    """Columns that return together or not at all, as foreign keys share them, and when a parent of theirs is missing."""
    groups: list[tuple[set[str], list[str]]] = []
    for key in table.parents():
        if not _known(key, columns):
            continue
        sharing = [group for group in groups if group[0] & set(key.columns)]
        groups = [group for group in groups if not group[0] & set(key.columns)]
        names = set(key.columns).union(*(group[0] for group in sharing))
        lacks = [condition for group in sharing for condition in group[1]]
        groups.append((names, [*lacks, _lacks_old_parent(key, columns)]))
    return [(names, f"({' OR '.join(lacks)})") for names, lacks in groups]


def _known(key: KeptConstraint, columns: list[PresentColumn]) -> bool:
    return set(key.columns) <= {column.name for column in columns}


def _lacks_old_parent(key: KeptConstraint, columns: list[PresentColumn]) -> str:
    assert key.other is not None, "a foreign key points to a table"
    by_name = {column.name: column for column in columns}
    changed = " OR ".join(f"{_field('a.o', n)} IS DISTINCT FROM {_field('a.n', n)}" for n in key.columns)
    given = " AND ".join(f"{_field('a.o', name)} IS NOT NULL" for name in key.columns)
    match = " AND ".join(
        _equal(f"p.{quoted(other)}", f"{_field('a.o', own)}::{by_name[own].type}", by_name[own])
        for own, other in zip(key.columns, key.other_columns, strict=True)
    )
    return f"(({changed}) AND {given} AND NOT EXISTS (SELECT 1 FROM {key.other.sql()} p WHERE {match}))"


# -- values -------------------------------------------------------------------------------------------------------------


def _column(entry: ArchiveEntry, table: PresentTable, version: int) -> Iterator[RestoreStep]:
    """Put the values of a dropped column back where none, or only the default, has come since."""
    kept = next(c for c in entry.definition.columns if c.name == entry.column)
    now = table.column(entry.column)
    assert now is not None, "the plan holds no entry whose column isn't there"
    if kept.generated or now.generated:
        return  # the expression gives the value again
    value = _typed(kept, now)
    name = quoted(now.name)
    open_values = [f"t.{name} IS NOT DISTINCT FROM NULL"]
    if now.filled is not None:
        open_values.append(f"{_text('t.' + name)} = {_literal(now.filled)}")
    if is_constant(now.default):
        open_values.append(f"{_text('t.' + name)} = {_text(f'({now.default})::{now.type}')}")
    free = f"({' OR '.join(open_values)})"
    unfit = _unfit(kept, now, version)
    fits = "".join(f" AND {condition}" for condition in unfit)
    place = _place(entry)
    if not entry.key:
        yield from _column_without_key(entry, table, value, free, fits)
        return
    match = _match(entry, table)
    differs = f"{_text('t.' + name)} IS DISTINCT FROM {_archived_text(kept)}"
    yield RestoreStep(
        entry=entry.id,
        says=f"Put the values of {place} back where the row has none, or just the default.",
        sql=(
            f"WITH done AS (UPDATE {table.rows()} t SET {name} = {value} FROM {_archive(entry)} a"
            f" WHERE {match} AND {differs} AND {free}{fits} RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    if unfit:
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the values of {place} that its present type doesn't take.",
            sql=(
                f"SELECT count(*) FROM {_archive(entry)} a JOIN {table.rows()} t ON {match}"
                f" WHERE {differs} AND {free} AND NOT ({' AND '.join(unfit)})"
            ),
            counts=Counts.LEFT,
            reason=f"left: the present type {now.type} doesn't hold them as they were",
        )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the rows that hold a newer value of {place}.",
        sql=(
            f"SELECT count(*) FROM {_archive(entry)} a JOIN {table.rows()} t ON {match}"
            f" WHERE {differs} AND NOT {free}"
        ),
        counts=Counts.LEFT,
        reason="left: they hold a newer value",
    )
    yield _gone(entry, table, match)


def _column_without_key(
    entry: ArchiveEntry, table: PresentTable, value: str, free: str, fits: str
) -> Iterator[RestoreStep]:
    """Rows that are alike in all other columns are as good as one another: what counts is how many hold a value."""
    kept = next(c for c in entry.definition.columns if c.name == entry.column)
    beside = _beside(entry, table)
    name = quoted(entry.column)
    in_archive = _array(_archived_text(c) for c in beside)
    in_table = _identity("t", [c.name for c in beside])
    own = _archived_text(kept)
    needed = (
        f"(SELECT w.i, w.v, w.value, row_number() OVER (PARTITION BY w.i ORDER BY w.{ROW}) AS r FROM"
        f" (SELECT {in_archive} AS i, {own} AS v, {value} AS value, a.{ROW},"
        f" row_number() OVER (PARTITION BY {in_archive}, {own} ORDER BY a.{ROW}) AS k FROM {_archive(entry)} a"
        f" WHERE true{fits}) w"
        f" LEFT JOIN (SELECT {in_table} AS i, {_text('t.' + name)} AS v, count(*) AS k FROM {table.rows()} t GROUP BY 1, 2) h"
        " ON h.i = w.i AND h.v = w.v WHERE w.k > coalesce(h.k, 0)) a"
    )
    candidates = (
        f"(SELECT t.tableoid AS x, t.ctid AS y, {in_table} AS i,"
        f" row_number() OVER (PARTITION BY {in_table} ORDER BY t.tableoid, t.ctid) AS r FROM {table.rows()} t WHERE {free}) b"
    )
    place = _place(entry)
    yield _lock(entry, table)
    yield RestoreStep(
        entry=entry.id,
        says=f"Put the values of {place} back into rows that are the same otherwise and have none, or just the default.",
        sql=(
            f"WITH done AS (UPDATE {table.rows()} t SET {name} = a.value FROM {needed} JOIN {candidates}"
            " ON b.i = a.i AND b.r = a.r WHERE t.tableoid = b.x AND t.ctid = b.y RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the values of {place} without a row that is the same otherwise.",
        sql=f"SELECT count(*) FROM {needed}",
        counts=Counts.MISSING,
        reason="have no row that is the same otherwise and free for the value",
    )


def _narrowed(entry: ArchiveEntry, table: PresentTable, version: int) -> Iterator[RestoreStep]:
    """The old value comes back where the column still holds what the change of type made of it."""
    kept = next(c for c in entry.definition.columns if c.name == entry.column)
    now = table.column(entry.column)
    assert now is not None, "the plan holds no entry whose column isn't there"
    if now.generated:
        return
    name, place = quoted(now.name), _place(entry)
    present, old, new = _text(f"t.{name}"), f"a.{OLD_VALUE}", f"a.{NEW_VALUE}"
    # The fixed migration has changed the type once more, and with it the text.
    again = _if_valid(new, now.type, _text(f"({new})::{now.type}"), "NULL", version)
    still = f"({present} IS NOT DISTINCT FROM {new} OR {present} = {again})"
    takes = "true" if kept.type == now.type else _round_trip(old, now.type, version)
    if entry.key:
        source, match = f"{_archive(entry)} a", _match(entry, table)
    else:
        yield _lock(entry, table)
        beside = _beside(entry, table)
        in_archive = _array(_archived_text(c) for c in beside)
        in_table = _identity("s", [c.name for c in beside])
        source = (
            f"(SELECT a.*, {in_archive} AS i, count(*) OVER (PARTITION BY {in_archive}) AS k FROM {_archive(entry)} a) a"
            f" JOIN (SELECT s.tableoid AS x, s.ctid AS y, {in_table} AS i, count(*) OVER (PARTITION BY {in_table}) AS k"
            f" FROM {table.rows()} s) b ON b.i = a.i AND b.k = 1 AND a.k = 1"
        )
        match = "t.tableoid = b.x AND t.ctid = b.y"
    yield RestoreStep(
        entry=entry.id,
        says=f"Give {place} its old values back where it holds what the change of type made of them.",
        sql=(
            f"WITH done AS (UPDATE {table.rows()} t SET {name} = ({old})::{now.type} FROM {source} WHERE {match}"
            f" AND {present} IS DISTINCT FROM {old} AND {still} AND {takes} RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    same = _if_valid(old, now.type, _text(f"({old})::{now.type}"), old, version)
    differs = f"{present} IS DISTINCT FROM {same}"
    if takes != "true":
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the values of {place} that its present type doesn't take.",
            sql=f"SELECT count(*) FROM {source} JOIN {table.rows()} t ON {match} WHERE NOT {takes} AND {still}",
            counts=Counts.LEFT,
            reason=f"left: the present type {now.type} doesn't hold them as they were",
        )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the rows that hold a newer value of {place}.",
        sql=f"SELECT count(*) FROM {source} JOIN {table.rows()} t ON {match} WHERE {differs} AND NOT {still}",
        counts=Counts.LEFT,
        reason="left: they hold a newer value",
    )
    if entry.key:
        yield _gone(entry, table, match)
    else:
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the values of {place} whose row can't be told.",
            sql=(
                f"SELECT count(*) FROM {_archive(entry)} c WHERE NOT EXISTS"
                f" (SELECT 1 FROM {source} WHERE a.{ROW} = c.{ROW})"
            ),
            counts=Counts.MISSING,
            reason="have no row, or several, that is the same otherwise",
        )


def _gone(entry: ArchiveEntry, table: PresentTable, match: str) -> RestoreStep:
    return RestoreStep(
        entry=entry.id,
        says=f"Count the values of {_place(entry)} whose row isn't there any more.",
        sql=(
            f"SELECT count(*) FROM {_archive(entry)} a WHERE NOT EXISTS"
            f" (SELECT 1 FROM {table.rows()} t WHERE {match})"
        ),
        counts=Counts.MISSING,
        reason="have no row any more",
    )


def _sequences(ready: list[tuple[ArchiveEntry, PresentTable]]) -> Iterator[RestoreStep]:
    """No sequence may give a value again that came back with a row; none goes backwards."""
    done: set[TableName] = set()
    for entry, table in ready:
        for sequence in table.sequences:
            if sequence.sequence in done or sequence.increment <= 0:
                continue
            done.add(sequence.sequence)
            last = max(
                (
                    kept.last_value
                    for other, its_table in ready
                    if its_table.table == table.table
                    for kept in other.definition.sequences
                    if kept.column == sequence.column
                ),
                default=0,
            )
            name = sequence.sequence.sql()
            highest = (
                f"greatest((SELECT max({quoted(sequence.column)})::bigint FROM {table.table.sql()}), {last})"
            )
            yield RestoreStep(
                entry=entry.id,
                says=f"Bring the sequence {sequence.sequence.text()} up to the highest value that is there.",
                sql=(
                    f"SELECT setval({_literal(name)}::regclass, m.highest) FROM {name} s, (SELECT {highest} AS highest) m"
                    " WHERE m.highest > s.last_value OR m.highest = s.last_value AND m.highest > 0 AND NOT s.is_called"
                ),
                repeatable=False,
            )


# -- pieces of SQL ------------------------------------------------------------------------------------------------------


def is_constant(default: str) -> bool:
    """Whether a default is the same for every row and at every time: no function has a say in it."""
    if not default:
        return False
    bare = re.sub(r"'(?:[^']|'')*'", "''", default)
    bare = re.sub(r"\(\d+(?:,\s*-?\d+)?\)", "", bare)
    while bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1]
    keyword = re.search(r"\b(current_|localtime|session_user|user\b)", bare, re.IGNORECASE)
    return "(" not in bare and keyword is None


def _common(entry: ArchiveEntry, table: PresentTable) -> list[tuple[KeptColumn, PresentColumn]]:
    """The columns of the archive and of the table that can be written."""
    pairs = ((kept, table.column(kept.name)) for kept in entry.definition.columns)
    return [(kept, now) for kept, now in pairs if now is not None and not now.generated]


def _beside(entry: ArchiveEntry, table: PresentTable) -> list[KeptColumn]:
    """The columns that tell a row where no key does; one that is generated may follow from the value itself."""
    return [kept for kept, _ in _common(entry, table) if kept.name != entry.column]


def _typed(kept: KeptColumn, now: PresentColumn) -> str:
    value = f"a.{quoted(kept.name)}"
    if not kept.as_text and kept.type == now.type:
        return value
    return f"({_archived_text(kept)})::{now.type}"


def _archived_text(kept: KeptColumn) -> str:
    value = f"a.{quoted(kept.name)}"
    return value if kept.as_text else _text(value)


def _unfit(kept: KeptColumn, now: PresentColumn, version: int) -> list[str]:
    """A condition for values that the present type gives back as they were; none where it is the same type."""
    return [] if kept.type == now.type else [_round_trip(_archived_text(kept), now.type, version)]


def _round_trip(text: str, type_name: str, version: int) -> str:
    again = _text(f"({text})::{type_name}")
    return f"({text} IS NULL OR {_if_valid(text, type_name, f'{again} = {text}', 'false', version)})"


def _if_valid(text: str, type_name: str, then: str, otherwise: str, version: int) -> str:
    if version < ASKS_TYPES:
        return f"({then})"
    return f"CASE WHEN pg_input_is_valid({text}, {_literal(type_name)}) THEN {then} ELSE {otherwise} END"


def _match(entry: ArchiveEntry, table: PresentTable) -> str:
    """The archive's key is the row's, compared as what the table has, so that its index serves."""
    kept = {column.name: column for column in entry.definition.columns}
    parts = []
    for name in entry.key:
        now = table.column(name)
        assert now is not None, "the plan holds no entry whose key isn't there"
        own = _archived_text(kept[name]) if now.as_text else _typed(kept[name], now)
        parts.append(_equal(f"t.{quoted(name)}", own, now))
    return " AND ".join(parts)


def _equal(left: str, right: str, column: PresentColumn) -> str:
    return f"{_text(left)} = {_text(right)}" if column.as_text else f"{left} = {right}"


def _field(document: str, name: str) -> str:
    return f"({document} ->> {_literal(name)})"


def _fields(document: str, columns: Iterable[PresentColumn]) -> str:
    """What was kept of a row as text, as the present types write it."""
    return _array(_text(f"({_field(document, c.name)})::{c.type}") for c in columns)


def _identity(alias: str, names: Iterable[str]) -> str:
    """A row as an array of its values' texts, which compares as wholes and with NULLs alike."""
    return _array(_text(f"{alias}.{quoted(name)}") for name in names)


def _array(values: Iterable[str]) -> str:
    return f"ARRAY[{', '.join(values)}]::text[]"


def _text(value: str) -> str:
    """As the archive has it: the text that the type itself gives. A composite of NULLs isn't NULL."""
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def _literal(text: str) -> str:
    if "\\" in text:
        return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


def _setting(value: str) -> str:
    return ", ".join(_literal(part.strip()) for part in value.split(","))


def _archive(entry: ArchiveEntry) -> str:
    """The archive as FROM takes it, its columns under the names in force."""
    archive = TableName(SCHEMA, entry.archive).sql()
    names = {new: old for old, new in entry.definition.renamed}
    if not names:
        return archive
    if entry.kind is ArchiveKind.ROWS:
        pairs = ", ".join(f"({_literal(old)}, {_literal(new)})" for new, old in names.items())

        def renamed(document: str) -> str:
            return (
                f"(SELECT jsonb_object_agg(coalesce(n.new, d.key), d.value) FROM jsonb_each({document}) d"
                f" LEFT JOIN (VALUES {pairs}) n(old, new) ON n.old = d.key) AS {document}"
            )

        return f"(SELECT {ROW}, {renamed(OLD_VALUE)}, {renamed(NEW_VALUE)} FROM {archive})"
    narrowed = entry.kind is ArchiveKind.NARROWED
    own = [ROW] if not entry.key else []
    own += [OLD_VALUE, NEW_VALUE] if narrowed else []
    kept = [c.name for c in entry.definition.columns if not (narrowed and c.name == entry.column)]
    columns = [f"{quoted(names.get(name, name))} AS {quoted(name)}" for name in kept]
    return f"(SELECT {', '.join([*own, *columns])} FROM {archive})"


def _place(entry: ArchiveEntry) -> str:
    column = f".{entry.column}" if entry.column else ""
    return f"{entry.table.text()}{column}"


def _comment(text: str) -> str:
    return " ".join(text.split())


def _check_now(entry: ArchiveEntry) -> RestoreStep:
    return RestoreStep(
        entry=entry.id,
        says="Check now what is deferred to the transaction's end: a dry run has no other.",
        sql="SET CONSTRAINTS ALL IMMEDIATE",
    )


def _lock(entry: ArchiveEntry, table: PresentTable) -> RestoreStep:
    return RestoreStep(
        entry=entry.id,
        says=f"Without a key rows are told by counting them, and nobody may write {table.table.text()} meanwhile.",
        sql=f"LOCK TABLE {table.table.sql()} IN SHARE ROW EXCLUSIVE MODE",
    )
