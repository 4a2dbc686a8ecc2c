"""How long the way back takes and keeps others out, and what is copied ahead so that it isn't too long."""

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.planning.inputs import Findings, Means
from rollbackd.core.planning.plan import Estimate, PlannedRevision
from rollbackd.core.rehearsal import Depth
from rollbackd.core.schema import TableName

# What a server copies into an archive under the lock, in bytes a second: a modest disk's.
ARCHIVE_BYTES_A_SECOND = 100_000_000


def estimate_times(
    revisions: tuple[PlannedRevision, ...],
    findings: Findings,
    ahead: tuple[ArchiveItem, ...],
) -> Estimate:
    """From the rehearsal's own times where it had every row; else from the sizes of what is rewritten and archived.

    The watch at the end isn't in it: the old release serves again by then.
    """
    rehearsal = findings.rehearsal
    if rehearsal is None or not rehearsal.passed:
        return Estimate()
    under_lock = [item for item in findings.archive if item not in ahead]
    archive_s = sum(_archive_seconds(item, findings.sizes) for item in under_lock)
    run_s = sum(max(revision.seconds, 0.0) for revision in revisions)
    if rehearsal.depth is not Depth.FULL:
        rewritten = {table for revision in revisions for table in revision.rewritten}
        run_s += sum(findings.sizes.get(table, 0) for table in rewritten) / ARCHIVE_BYTES_A_SECOND
    whole = sum(findings.sizes.values()) / ARCHIVE_BYTES_A_SECOND
    return Estimate(
        total_s=round(run_s + archive_s + whole * 3, 3),
        lock_s=round(run_s + archive_s, 3),
        archive_s=round(archive_s, 3),
    )


def copied_ahead(findings: Findings, means: Means) -> tuple[ArchiveItem, ...]:
    """What would keep the lock longer than the budget, and can be copied before: tables and columns with a key.

    Only of the first revision: what a later one meets isn't there yet under that name.
    """
    first = next(iter(findings.read), "")
    return tuple(
        item
        for item in findings.archive
        if item.kind in (ArchiveKind.TABLE, ArchiveKind.COLUMN)
        and item.key
        and item.revision == first
        and _archive_seconds(item, findings.sizes) > means.lock_budget_s
    )


def _archive_seconds(item: ArchiveItem, sizes: dict[TableName, int]) -> float:
    share = 1.0 if item.kind in (ArchiveKind.TABLE, ArchiveKind.ROWS) else 0.5
    return sizes.get(item.table, 0) * share / ARCHIVE_BYTES_A_SECOND
