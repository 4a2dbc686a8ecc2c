"""Rows that were changed: a column gets its old value back where it still holds the new one."""

from collections.abc import Iterable, Iterator

import msgspec

from rollbackd.core.archives import (
    NEW_VALUE,
    OLD_VALUE,
    ROW,
    ArchiveEntry,
    ArchiveKind,
    KeptColumn,
    KeptConstraint,
)
from rollbackd.core.restoring.archived import fields_of, writable_columns
from rollbackd.core.restoring.lives import lives_of
from rollbackd.core.restoring.present import PresentColumn, PresentTable
from rollbackd.core.restoring.sql import equal, field_of, identity_of, if_valid, round_trip, text_of
from rollbackd.core.restoring.steps import Counts, RestoreStep, lock_table, place_of
from rollbackd.core.schema import quoted


def restore_changed(
    entry: ArchiveEntry, table: PresentTable, version: int, dropped: frozenset[str]
) -> Iterator[RestoreStep]:
    """Each changed column gets its old value back if it still holds the new one."""
    pairs = writable_columns(entry, table)
    columns = [now for _, now in pairs]
    settable = [(kept, now) for kept, now in pairs if now.identity != "always"]
    if not settable:
        return
    values = _Values(version=version, orphaned=_orphaned(table, columns))
    if entry.key:
        changes, match = _changes_by_key(entry), _has_key("a.n", entry, columns)
    else:
        yield lock_table(entry, table)
        # A column that went in the same revision is empty yet: it is told by the old values that return here.
        changes = _changes_by_values(entry, table, [now for now in columns if now.name not in dropped])
        match = "t.tableoid = b.x AND t.ctid = b.y"
    sets = ", ".join(
        f"{quoted(now.name)} = CASE WHEN {values.may_return(kept, now)} THEN {field_of('a.o', now.name)}::{now.type}"
        f" ELSE t.{quoted(now.name)} END"
        for kept, now in settable
    )
    still = " OR ".join(f"({values.may_return(kept, now)})" for kept, now in settable)
    yield RestoreStep(
        entry=entry.id,
        says=f"Give the changed rows of {place_of(entry)} their old values back, where they still hold the new ones.",
        sql=(
            f"WITH done AS (UPDATE {table.rows()} t SET {sets} FROM {changes} WHERE {match} AND ({still})"
            " RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    if entry.key:
        newer = " OR ".join(
            f"({values.changed(now)} AND NOT {values.holds(kept, now, 'o')})" for kept, now in settable
        )
        yield from _count_unrestored(entry, table, columns, newer)


def _count_unrestored(
    entry: ArchiveEntry, table: PresentTable, columns: list[PresentColumn], newer: str
) -> Iterator[RestoreStep]:
    """Count, once values were given back, the rows that hold newer ones, at their new key or their old, and those gone."""
    target, changes, place = f"{table.rows()} t", _changes_by_key(entry), place_of(entry)
    match, old_match = _has_key("a.n", entry, columns), _has_key("a.o", entry, columns)
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


class _Values(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on one value of a row `t` and of its change `a`, whose old side is the document `o` and whose new one `n`.

    `orphaned` are columns that return together or not at all, and when they may not.
    """

    version: int
    orphaned: list[tuple[set[str], str]]

    def changed(self, now: PresentColumn) -> str:
        """The two sides differ."""
        return f"{field_of('a.o', now.name)} IS DISTINCT FROM {field_of('a.n', now.name)}"

    def holds(self, kept: KeptColumn, now: PresentColumn, side: str) -> str:
        """The value is still the one of that side, written as its present type writes it."""
        present, text = text_of(f"t.{quoted(now.name)}"), field_of(f"a.{side}", now.name)
        if kept.type == now.type:
            return f"{present} IS NOT DISTINCT FROM {text}"
        again = if_valid(text, now.type, text_of(f"{text}::{now.type}"), text, self.version)
        return f"{present} IS NOT DISTINCT FROM {again}"

    def may_return(self, kept: KeptColumn, now: PresentColumn) -> str:
        """The old value can be given back: nothing newer is there, its type takes it, and its parent is there."""
        fits = (
            [] if kept.type == now.type else [round_trip(field_of("a.o", now.name), now.type, self.version)]
        )
        heeded = [f"NOT {lacks}" for names, lacks in self.orphaned if now.name in names]
        return " AND ".join([self.changed(now), self.holds(kept, now, "n"), *fits, *heeded])


def _changes_by_key(entry: ArchiveEntry) -> str:
    """The changes as FROM takes them; of those that ended at the same key the last one counts."""
    group = ", ".join(field_of("e." + NEW_VALUE, name) for name in entry.key)
    return (
        f"(SELECT DISTINCT ON ({group}) e.{OLD_VALUE} AS o, e.{NEW_VALUE} AS n FROM {lives_of(entry)} e"
        f" WHERE e.{NEW_VALUE} IS NOT NULL ORDER BY {group}, e.{ROW} DESC) a"
    )


def _changes_by_values(entry: ArchiveEntry, table: PresentTable, telling: list[PresentColumn]) -> str:
    """The changes, each joined with a row `b` that has its new values.

    Rows that are alike are as good as one another: the n-th change takes the n-th of them.
    """
    new = fields_of("e." + NEW_VALUE, telling)
    identity = identity_of("s", [c.name for c in telling])
    return (
        f"(SELECT e.{OLD_VALUE} AS o, e.{NEW_VALUE} AS n, {new} AS i, row_number() OVER (PARTITION BY {new} ORDER BY e.{ROW} DESC)"
        f" AS r FROM {lives_of(entry)} e WHERE e.{NEW_VALUE} IS NOT NULL) a"
        f" JOIN (SELECT s.tableoid AS x, s.ctid AS y, {identity} AS i,"
        f" row_number() OVER (PARTITION BY {identity} ORDER BY s.tableoid, s.ctid) AS r FROM {table.rows()} s) b"
        " ON b.i = a.i AND b.r = a.r"
    )


def _has_key(document: str, entry: ArchiveEntry, columns: list[PresentColumn]) -> str:
    """A row `t` has the key that the document says."""
    return " AND ".join(
        equal(f"t.{quoted(now.name)}", f"{field_of(document, now.name)}::{now.type}", now)
        for now in columns
        if now.name in entry.key
    )


def dropped_with(entry: ArchiveEntry, entries: Iterable[ArchiveEntry]) -> frozenset[str]:
    """The columns that the same revision took from the same table: their values come back by entries of their own."""
    return frozenset(
        other.column
        for other in entries
        if other.kind is ArchiveKind.COLUMN
        and (other.run, other.revision, other.table) == (entry.run, entry.revision, entry.table)
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
    changed = " OR ".join(f"{field_of('a.o', n)} IS DISTINCT FROM {field_of('a.n', n)}" for n in key.columns)
    given = " AND ".join(f"{field_of('a.o', name)} IS NOT NULL" for name in key.columns)
    match = " AND ".join(
        equal(f"p.{quoted(other)}", f"{field_of('a.o', own)}::{by_name[own].type}", by_name[own])
        for own, other in zip(key.columns, key.other_columns, strict=True)
    )
    return f"(({changed}) AND {given} AND NOT EXISTS (SELECT 1 FROM {key.other.sql()} p WHERE {match}))"
