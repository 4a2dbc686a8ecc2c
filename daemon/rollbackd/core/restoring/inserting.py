"""Inserting missing rows whose parents are there, and counting those that had to be left."""

from collections.abc import Iterator

from rollbackd.core.restoring.missing import MissingRows
from rollbackd.core.restoring.present import PresentColumn, PresentUnique
from rollbackd.core.restoring.sql import identity_of, text_of
from rollbackd.core.restoring.steps import Counts, RestoreStep, lock_table, place_of

NOT_TAKEN = "left: another row holds a value that must be unique, or a trigger keeps them out"


def insert_missing(missing: MissingRows) -> Iterator[RestoreStep]:
    """Insert the rows that aren't there and whose parents are."""
    if not missing.entry.key:
        yield lock_table(missing.entry, missing.table)
    yield RestoreStep(
        entry=missing.entry.id,
        says=f"Insert the rows of {place_of(missing.entry)} that aren't there.",
        sql=_insertion(missing),
        counts=Counts.RESTORED,
    )
    yield from count_left(missing)


def insert_again(missing: MissingRows) -> RestoreStep:
    """Values that return set off the application's triggers, which may remove what was just inserted.

    Without a key a row whose values returned meanwhile can't be told from one that is gone: those are left alone.
    """
    return RestoreStep(
        entry=missing.entry.id,
        says=f"Insert the rows of {place_of(missing.entry)} again that a trigger removed as values returned.",
        sql=_insertion(missing),
    )


def _insertion(missing: MissingRows) -> str:
    there = [
        f"(NOT ({missing.points(k, 'a')}) OR {missing.parent_is_there(k, 'a')})" for k in missing.parents()
    ]
    return (
        f"WITH done AS ({missing.insert(missing.source, ' AND '.join([missing.absent, *there]))})"
        " SELECT count(*) FROM done"
    )


def count_left(missing: MissingRows, circular: bool = False) -> Iterator[RestoreStep]:
    """Count, once they are inserted, the rows that couldn't be, and those that are there with newer values."""
    entry, table, place = missing.entry, missing.table, place_of(missing.entry)
    if missing.kept.unfit:
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the rows of {place} with values that the present types don't take.",
            sql=missing.kept.unfit,
            counts=Counts.LEFT,
            reason="left: the present types don't hold their values as they were",
        )
    taken = taken_by_others(missing, "rollbackd_left") if circular else []
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
        differs = f"{identity_of('a', missing.kept.names())} IS DISTINCT FROM {identity_of('t', missing.kept.names())}"
        match = missing.same_key("t", "a")
        yield RestoreStep(
            entry=entry.id,
            says=f"Count the rows of {place} that are there with newer values.",
            sql=f"SELECT count(*) FROM {missing.source} JOIN {table.rows()} t ON {match} WHERE {differs}",
            counts=Counts.LEFT,
            reason="left: the row is there with newer values",
        )


def taken_by_others(missing: MissingRows, numbered: str) -> Iterator[str]:
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
        left, right = text_of(left), text_of(right)
    return f"{left} IS NOT DISTINCT FROM {right}" if unique.nulls_equal else f"{left} = {right}"
