"""What a migration took away: found by running it again on the backup from before it, and taken into the archive."""

from rollbackd.core.planning.steps import RecoverLost
from rollbackd.core.records import BackupRecord, Deployment
from rollbackd.core.rehearsal import Way
from rollbackd.core.revisions import RevisionGraph
from rollbackd.errors import RefusedError, RollbackdError
from rollbackd.ports import Progress, RestoredCopy, Store
from rollbackd.workflow.guarded import Guarded

GATE_BACKUP = "gate"
LOOKED_AT = 50


def lost_label(run: str) -> str:
    """Under which name the archive keeps what the migration took away, apart from what the downgrade does."""
    return f"{run}:lost"


async def backup_before(store: Store, deployment: Deployment) -> BackupRecord | None:
    """The newest whole backup that the gate took where the deployment began."""
    if deployment.heads_before is None:
        return None
    for known in await store.backups(deployment.target, LOOKED_AT):
        usable = known.removed_at is None and not known.location.startswith("reference:")
        if usable and known.purpose == GATE_BACKUP and set(known.heads) == set(deployment.heads_before):
            return known
    return None


async def recovery_of(
    guarded: Guarded, store: Store, deployment: Deployment, graph: RevisionGraph, heads_now: tuple[str, ...]
) -> RecoverLost:
    """The step that recovers what this deployment's migration took away.

    Raises:
        RefusedError: when there is no backup from before it.
    """
    backup = await backup_before(store, deployment)
    if backup is None or deployment.heads_before is None:
        raise RefusedError(
            "no backup from right before the migration is there (the gate takes it): what it took away can't be recovered"
        )
    return RecoverLost(
        timeout_s=guarded.settings.backup.proof_timeout,
        backup=backup.id,
        revisions=graph.order_up(deployment.heads_before, heads_now),
        from_heads=deployment.heads_before,
        to_heads=heads_now,
    )


async def recover(
    guarded: Guarded, store: Store, step: RecoverLost, *, kept_scripts: str, label: str = ""
) -> dict[str, int]:
    """Restore the backup into scratch and run the migration again on it; what it takes away, by table.

    With `label` that is taken into the guarded database's archive under this name; without it is only counted.
    """
    backup = next((b for b in await store.backups(guarded.name, 1000) if b.id == step.backup), None)
    if backup is None or backup.removed_at is not None:
        raise RefusedError(f"the backup {step.backup} isn't there any more")
    found: list[dict[str, int]] = []

    async def replay(copy: RestoredCopy) -> None:
        way = Way(
            direction="up",
            revisions=step.revisions,
            from_heads=step.from_heads,
            to_heads=step.to_heads,
            kept_scripts=kept_scripts,
        )
        await guarded.rehearsals.replay(copy, way)
        found.append(await guarded.rehearsals.taken(copy))
        if label:
            await guarded.archives.adopt(label, copy)

    await guarded.backups.prove(
        backup, level=4, timeout_s=step.timeout_s, on_progress=_unheard, on_restored=replay
    )
    return found[0] if found else {}


async def taken_by_migration(
    guarded: Guarded, store: Store, deployment: Deployment, graph: RevisionGraph, heads_now: tuple[str, ...]
) -> dict[str, int] | None:
    """What the migration takes away, by table; None where that can't be told."""
    try:
        step = await recovery_of(guarded, store, deployment, graph, heads_now)
        kept = deployment.scripts_sha256 if any(head not in graph for head in heads_now) else ""
        return await recover(guarded, store, step, kept_scripts=kept)
    except RollbackdError:
        return None


async def _unheard(progress: Progress) -> None:
    """Nobody listens to the progress."""
