"""What became of a row from the first statement that touched it to the last."""

from rollbackd.core.archives import NEW_VALUE, OLD_VALUE, ROW, ArchiveEntry
from rollbackd.core.restoring.archived import archive_of
from rollbackd.core.restoring.sql import array_of, field_of

# Beside a changed row's new values, under a name that no column can have: which statement it was.
STATEMENT = ""


def lives_of(entry: ArchiveEntry) -> str:
    """What the statements made of each row from first to last: its old values, and the new ones unless it was removed.

    A change goes on where the last one before it ended: at the same key, or the same values where there is none. To tell
    so, each value is a stack: whoever comes to have it is put on it, whoever had it is taken off. What one statement
    changes it changes at once, so that all leave before any arrive. An archive that doesn't say which statement it was
    (an older one) is followed only where the key stayed.
    """
    names = entry.key or tuple(column.name for column in entry.definition.columns)
    start = array_of(field_of(f"d.{OLD_VALUE}", name) for name in names)
    end = array_of(field_of(f"d.{NEW_VALUE}", name) for name in names)
    statement = field_of(f"d.{NEW_VALUE}", STATEMENT)
    # A row that is removed and made anew with its key is that row still.
    stays = f"CASE WHEN d.{NEW_VALUE} IS NOT NULL THEN {end}{f' ELSE {start}' if entry.key else ''} END"
    going = f"PARTITION BY v ORDER BY moment, way, {ROW} ROWS UNBOUNDED PRECEDING"
    return (
        f"(WITH RECURSIVE changes AS (SELECT d.*, {start} AS before, {stays} AS after, d.{NEW_VALUE} IS NULL"
        f" OR {statement} IS NOT NULL OR {start} = {end} AS follows, CASE WHEN {statement} IS NULL THEN d.{ROW}"
        f" ELSE min(d.{ROW}) OVER (PARTITION BY {statement}) END AS moment FROM {archive_of(entry)} d),"
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
