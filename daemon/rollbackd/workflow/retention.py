"""Retention: which backups may go. One that an unfinished run refers to never does."""

from collections.abc import Mapping

from rollbackd.core.records import BackupRecord
from rollbackd.ports import Store
from rollbackd.workflow.guarded import Guarded

LOOKED_AT = 1_000


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
