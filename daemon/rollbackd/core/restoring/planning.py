"""Planning: what can be brought back now, and the statements that do so, in their order.

Rows come first, parents before children; then the values inside of rows, the last change first. What triggers removed
meanwhile is inserted once more, and sequences come last. The same statements are run by the daemon and written out as a
script.
"""

from collections.abc import Iterable, Mapping

from rollbackd.core.archives import ENTRIES, ArchiveEntry, ArchiveKind
from rollbackd.core.restoring.changed import dropped_with, restore_changed
from rollbackd.core.restoring.circles import insert_together
from rollbackd.core.restoring.inserting import insert_again, insert_missing
from rollbackd.core.restoring.order import parents_first
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.restoring.sequences import bring_up_sequences
from rollbackd.core.restoring.steps import RestorePlan, RestoreStep
from rollbackd.core.restoring.values import restore_column, restore_narrowed
from rollbackd.core.schema import TableName


def plan_restore(
    entries: Iterable[ArchiveEntry], present: Mapping[TableName, PresentTable], server_version: int
) -> RestorePlan:
    """What to run to bring these entries, as they are called now, back into the tables as they are now."""
    backwards = sorted(entries, key=lambda entry: -entry.id)
    left = {e.id: reason for e in backwards if (reason := _obstacle(e, present.get(e.table)))}
    ready = [(e, present[e.table]) for e in backwards if e.id not in left]
    steps: list[RestoreStep] = []
    for missing, together in parents_first(ready, server_version):
        steps += insert_together(missing) if together else insert_missing(missing[0])
    for entry, table in ready:
        if entry.kind is ArchiveKind.ROWS:
            steps += restore_changed(entry, table, server_version, dropped_with(entry, backwards))
        elif entry.kind is ArchiveKind.COLUMN:
            steps += restore_column(entry, table, server_version)
        elif entry.kind is ArchiveKind.NARROWED:
            steps += restore_narrowed(entry, table, server_version)
    if any(entry.kind is not ArchiveKind.TABLE for entry, _ in ready):
        for missing, together in parents_first(ready, server_version):
            if missing[0].entry.key and not together:
                steps.append(insert_again(missing[0]))
    if ready:
        steps.append(_check_now(ready[0][0]))
    steps += bring_up_sequences(ready)
    return RestorePlan(steps=tuple(steps), left=left)


def mark_restored(plan: RestorePlan, entries: Iterable[ArchiveEntry]) -> str:
    """The statement that notes when the entries were brought back; empty where none could be."""
    ids = sorted(entry.id for entry in entries if entry.id not in plan.left)
    if not ids:
        return ""
    numbers = ", ".join(str(number) for number in ids)
    return f"UPDATE {ENTRIES.sql()} SET restored_at = now() WHERE id IN ({numbers})"


def _obstacle(entry: ArchiveEntry, table: PresentTable | None) -> str:
    """Why an entry can't be brought back now; empty if it can."""
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


def _check_now(entry: ArchiveEntry) -> RestoreStep:
    return RestoreStep(
        entry=entry.id,
        says="Check now what is deferred to the transaction's end: a dry run has no other.",
        sql="SET CONSTRAINTS ALL IMMEDIATE",
    )
