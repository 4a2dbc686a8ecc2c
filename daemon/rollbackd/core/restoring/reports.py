"""What came of a restore: an outcome for each entry, out of the numbers that the statements gave."""

from collections.abc import Iterable

import msgspec

from rollbackd.core.archives import ArchiveEntry, ArchiveKind
from rollbackd.core.restoring.steps import Counts, RestorePlan, RestoreStep
from rollbackd.core.schema import TableName

ALREADY_THERE = "everything that is kept is there already"


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
    """What a restore did, or with `dry_run` would do; the statements are those that were run, `script` does the same by psql."""

    run: str
    dry_run: bool
    entries: tuple[RestoredEntry, ...] = ()
    statements: tuple[str, ...] = ()
    script: str = ""

    @property
    def restored(self) -> int:
        """Rows and values that were brought back."""
        return sum(entry.restored for entry in self.entries)


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
