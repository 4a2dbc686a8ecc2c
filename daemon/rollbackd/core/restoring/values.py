"""Values of columns: of those that were dropped, and of those that a change of type narrowed."""

import re
from collections.abc import Iterator

from rollbackd.core.archives import NEW_VALUE, OLD_VALUE, ROW, ArchiveEntry
from rollbackd.core.restoring.archived import (
    archive_of,
    archived_text,
    fit_conditions,
    match_by_key,
    telling_columns,
    typed,
)
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.restoring.sql import array_of, identity_of, if_valid, literal, round_trip, text_of
from rollbackd.core.restoring.steps import Counts, RestoreStep, lock_table, place_of
from rollbackd.core.schema import quoted


def restore_column(entry: ArchiveEntry, table: PresentTable, version: int) -> Iterator[RestoreStep]:
    """Put the values of a dropped column back where none, or only the default, has come since."""
    kept = next(c for c in entry.definition.columns if c.name == entry.column)
    now = table.column(entry.column)
    assert now is not None, "the plan holds no entry whose column isn't there"
    if kept.generated or now.generated:
        return  # the expression gives the value again
    value = typed(kept, now)
    name = quoted(now.name)
    open_values = [f"t.{name} IS NOT DISTINCT FROM NULL"]
    if now.filled is not None:
        open_values.append(f"{text_of('t.' + name)} = {literal(now.filled)}")
    if is_constant(now.default):
        open_values.append(f"{text_of('t.' + name)} = {text_of(f'({now.default})::{now.type}')}")
    free = f"({' OR '.join(open_values)})"
    unfit = fit_conditions(kept, now, version)
    fits = "".join(f" AND {condition}" for condition in unfit)
    place = place_of(entry)
    if not entry.key:
        yield from _column_without_key(entry, table, value, free, fits)
        return
    match = match_by_key(entry, table)
    differs = f"{text_of('t.' + name)} IS DISTINCT FROM {archived_text(kept)}"
    yield RestoreStep(
        entry=entry.id,
        says=f"Put the values of {place} back where the row has none, or just the default.",
        sql=(
            f"WITH done AS (UPDATE {table.rows()} t SET {name} = {value} FROM {archive_of(entry)} a"
            f" WHERE {match} AND {differs} AND {free}{fits} RETURNING 1) SELECT count(*) FROM done"
        ),
        counts=Counts.RESTORED,
    )
    if unfit:
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the values of {place} that its present type doesn't take.",
            sql=(
                f"SELECT count(*) FROM {archive_of(entry)} a JOIN {table.rows()} t ON {match}"
                f" WHERE {differs} AND {free} AND NOT ({' AND '.join(unfit)})"
            ),
            counts=Counts.LEFT,
            reason=f"left: the present type {now.type} doesn't hold them as they were",
        )
    yield RestoreStep(
        entry=entry.id,
        says=f"Count the rows that hold a newer value of {place}.",
        sql=(
            f"SELECT count(*) FROM {archive_of(entry)} a JOIN {table.rows()} t ON {match}"
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
    beside = telling_columns(entry, table)
    name = quoted(entry.column)
    in_archive = array_of(archived_text(c) for c in beside)
    in_table = identity_of("t", [c.name for c in beside])
    own = archived_text(kept)
    needed = (
        f"(SELECT w.i, w.v, w.value, row_number() OVER (PARTITION BY w.i ORDER BY w.{ROW}) AS r FROM"
        f" (SELECT {in_archive} AS i, {own} AS v, {value} AS value, a.{ROW},"
        f" row_number() OVER (PARTITION BY {in_archive}, {own} ORDER BY a.{ROW}) AS k FROM {archive_of(entry)} a"
        f" WHERE true{fits}) w"
        f" LEFT JOIN (SELECT {in_table} AS i, {text_of('t.' + name)} AS v, count(*) AS k FROM {table.rows()} t GROUP BY 1, 2) h"
        " ON h.i = w.i AND h.v = w.v WHERE w.k > coalesce(h.k, 0)) a"
    )
    candidates = (
        f"(SELECT t.tableoid AS x, t.ctid AS y, {in_table} AS i,"
        f" row_number() OVER (PARTITION BY {in_table} ORDER BY t.tableoid, t.ctid) AS r FROM {table.rows()} t WHERE {free}) b"
    )
    place = place_of(entry)
    yield lock_table(entry, table)
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


def restore_narrowed(entry: ArchiveEntry, table: PresentTable, version: int) -> Iterator[RestoreStep]:
    """The old value comes back where the column still holds what the change of type made of it."""
    kept = next(c for c in entry.definition.columns if c.name == entry.column)
    now = table.column(entry.column)
    assert now is not None, "the plan holds no entry whose column isn't there"
    if now.generated:
        return
    name, place = quoted(now.name), place_of(entry)
    present, old, new = text_of(f"t.{name}"), f"a.{OLD_VALUE}", f"a.{NEW_VALUE}"
    # The fixed migration has changed the type once more, and with it the text.
    again = if_valid(new, now.type, text_of(f"({new})::{now.type}"), "NULL", version)
    still = f"({present} IS NOT DISTINCT FROM {new} OR {present} = {again})"
    takes = "true" if kept.type == now.type else round_trip(old, now.type, version)
    if entry.key:
        source, match = f"{archive_of(entry)} a", match_by_key(entry, table)
    else:
        yield lock_table(entry, table)
        beside = telling_columns(entry, table)
        in_archive = array_of(archived_text(c) for c in beside)
        in_table = identity_of("s", [c.name for c in beside])
        source = (
            f"(SELECT a.*, {in_archive} AS i, count(*) OVER (PARTITION BY {in_archive}) AS k FROM {archive_of(entry)} a) a"
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
    same = if_valid(old, now.type, text_of(f"({old})::{now.type}"), old, version)
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
                f"SELECT count(*) FROM {archive_of(entry)} c WHERE NOT EXISTS"
                f" (SELECT 1 FROM {source} WHERE a.{ROW} = c.{ROW})"
            ),
            counts=Counts.MISSING,
            reason="have no row, or several, that is the same otherwise",
        )


def _gone(entry: ArchiveEntry, table: PresentTable, match: str) -> RestoreStep:
    return RestoreStep(
        entry=entry.id,
        says=f"Count the values of {place_of(entry)} whose row isn't there any more.",
        sql=(
            f"SELECT count(*) FROM {archive_of(entry)} a WHERE NOT EXISTS"
            f" (SELECT 1 FROM {table.rows()} t WHERE {match})"
        ),
        counts=Counts.MISSING,
        reason="have no row any more",
    )
