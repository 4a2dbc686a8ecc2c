"""The order of rows to insert: parents before children, and those that point to one another together."""

from collections.abc import Iterable, Iterator, Mapping

from rollbackd.core.archives import ArchiveEntry, ArchiveKind
from rollbackd.core.restoring.missing import KeptRows, MissingRows
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.schema import TableName


def parents_first(
    ready: Iterable[tuple[ArchiveEntry, PresentTable]], version: int
) -> Iterator[tuple[list[MissingRows], bool]]:
    """The rows to insert, in groups: those of one entry, or of all that have to be worked out and inserted together."""
    missing = []
    for entry, table in ready:
        if entry.kind is ArchiveKind.TABLE:
            missing.append(MissingRows(entry=entry, table=table, kept=KeptRows.whole(entry, table, version)))
        elif entry.kind is ArchiveKind.ROWS:
            missing.append(
                MissingRows(entry=entry, table=table, kept=KeptRows.deleted(entry, table, version))
            )
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
