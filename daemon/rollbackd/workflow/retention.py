"""Retention: which backups and archives may go. What an unfinished run refers to never does."""

from collections.abc import Mapping
from datetime import timedelta

import structlog

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.records import BackupRecord
from rollbackd.errors import RollbackdError
from rollbackd.ports import Clock, Store
from rollbackd.workflow.guarded import Guarded

LOOKED_AT = 1_000
log = structlog.get_logger()


async def prune_backups(store: Store, guarded: Mapping[str, Guarded]) -> list[BackupRecord]:
    """Remove what the targets' retention no longer keeps; returns what was removed."""
    in_use = {
        str(record.evidence.get("backup"))
        for run in await store.unfinished_runs()
        for record in await store.journal_of(run.id)
    }
    removed: list[BackupRecord] = []
    for one in guarded.values():
        known = [
            b for b in await store.backups(one.name, LOOKED_AT) if b.removed_at is None and b.id not in in_use
        ]
        for gone in await one.backups.prune(known):
            await store.save_backup(gone)
            removed.append(gone)
    return removed


async def prune_archives(
    store: Store, clock: Clock, guarded: Mapping[str, Guarded]
) -> dict[str, tuple[ArchiveEntry, ...]]:
    """Drop what the targets' retention no longer keeps; a database that can't be reached is left for the next time."""
    busy = {run.target for run in await store.unfinished_runs()}
    dropped: dict[str, tuple[ArchiveEntry, ...]] = {}
    for name, one in guarded.items():
        # A target without a run has no archive, and needn't be asked.
        if name in busy or not await store.runs(name, 1):
            continue
        before = clock.now() - timedelta(seconds=one.settings.archive.keep)
        try:
            gone = await one.archives.prune(before)
        except RollbackdError as error:
            log.warning("archives_not_pruned", target=name, error=str(error))
            continue
        if gone:
            dropped[name] = gone
    return dropped
