"""Which revisions are taken off together, in one transaction."""

import msgspec

from rollbackd.core.planning.inputs import PlanTimes
from rollbackd.core.planning.plan import PlannedRevision
from rollbackd.core.planning.revisions import changes_data, changes_schema
from rollbackd.core.planning.steps import Downgrade
from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.revisions import Path


def group_revisions(
    path: Path, revisions: tuple[PlannedRevision, ...], times: PlanTimes, one_transaction_each: bool
) -> list[Downgrade]:
    """Neighbours that can share a transaction go together, all or none, unless env.py commits after each."""
    groups: list[Downgrade] = []
    waiting: list[int] = []
    before = path.from_heads

    def close(alone: str = "") -> None:
        nonlocal before, waiting
        if not waiting:
            return
        members = [revisions[i] for i in waiting]
        after = path.heads_after[waiting[-1]]
        groups.append(
            Downgrade(
                timeout_s=times.downgrade_s,
                attempts=1 if alone else times.lock_attempts,
                past_return=True,
                revisions=tuple(m.id for m in members),
                from_heads=before,
                to_heads=after,
                changes_schema=any(changes_schema(m) for m in members),
                changes_data=any(changes_data(m) for m in members),
                alone_because=alone,
            )
        )
        before, waiting = after, []

    for index, revision in enumerate(revisions):
        if revision.stands_alone:
            close()
            waiting = [index]
            close(revision.stands_alone)
        else:
            waiting.append(index)
            if one_transaction_each:
                close()
    close()
    return groups


def as_rehearsed(groups: list[Downgrade], rehearsal: Rehearsal | None) -> list[Downgrade]:
    """The groups with what the rehearsal knows better than a reading: whether the catalog is another one afterwards."""
    if rehearsal is None or not rehearsal.passed:
        return groups
    differs = not rehearsal.difference.is_empty()
    return [
        msgspec.structs.replace(g, changes_schema=differs and (len(groups) == 1 or g.changes_schema))
        for g in groups
    ]
