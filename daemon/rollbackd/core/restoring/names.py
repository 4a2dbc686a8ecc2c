"""Names: what the archived table and columns are called now, as later revisions may have renamed them."""

from collections.abc import Mapping

import msgspec

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.schema import TableName


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
