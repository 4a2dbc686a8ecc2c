"""Rows of tables that point to one another in a circle, or to themselves: they come back in a single statement.

Foreign keys are checked at its end, so that none has to be deferred, and no column to be filled in later, which triggers
and checks would see.
"""

from collections.abc import Iterator

from rollbackd.core.archives import KeptConstraint
from rollbackd.core.restoring.inserting import count_left, taken_by_others
from rollbackd.core.restoring.missing import MissingRows
from rollbackd.core.restoring.sql import literal
from rollbackd.core.restoring.steps import Counts, RestoreStep, lock_table, place_of


def insert_together(members: list[MissingRows]) -> Iterator[RestoreStep]:
    """Insert rows together with those that they point to; who lacks a parent takes along all that point to him.

    Each member's rows that aren't there are numbered. Lost are those that lack a parent, or whose unique value somebody
    else has, and then whoever points to one that is lost.
    """
    for one in members:
        if not one.entry.key:
            yield lock_table(one.entry, one.table)
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
            says=f"Insert the rows of {place_of(members[0].entry)} that aren't there, with those that they point to.",
            sql=together,
            counts=Counts.RESTORED,
        )
    else:
        # Several entries and one statement: each one's number is read from a setting afterwards.
        names = [f"rollbackd.restored_{one.entry.id}" for one in members]
        noted = (
            f"set_config({literal(name)}, {count}::text, true)"
            for name, count in zip(names, done, strict=True)
        )
        places = ", ".join(dict.fromkeys(place_of(one.entry) for one in members))
        yield RestoreStep(
            entry=members[0].entry.id,
            says=f"Insert the rows of {places} that aren't there, all at once as they point to one another.",
            sql=f"{together}, {', '.join(noted)}",
        )
        for one, name in zip(members, names, strict=True):
            yield RestoreStep(
                entry=one.entry.id,
                says=f"The rows of {place_of(one.entry)} that were inserted by it.",
                sql=f"SELECT current_setting({literal(name)})::bigint",
                counts=Counts.RESTORED,
            )
    for one in members:
        yield from count_left(one, circular=True)


def _numbered(members: list[MissingRows], number: int) -> str:
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


def _lost(members: list[MissingRows], number: int) -> Iterator[str]:
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
    for query in taken_by_others(one, f"rollbackd_{number}"):
        yield f"SELECT {number}, u.rollbackd_member FROM ({query}) u"


def _links(members: list[MissingRows], number: int) -> Iterator[str]:
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


def _coming(members: list[MissingRows], key: KeptConstraint) -> list[int]:
    """The members among whose rows a foreign key's parent may be."""
    return [
        number
        for number, one in enumerate(members)
        if one.table.table == key.other and set(key.other_columns) <= set(one.kept.names())
    ]
