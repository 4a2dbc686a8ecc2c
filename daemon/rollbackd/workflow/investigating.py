"""Investigating a deployment that became slow: what the target's metrics, its database and the deploy itself show."""

import asyncio
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec
import structlog

from rollbackd.core.evidence import Limit
from rollbackd.core.investigation import (
    Activity,
    Change,
    Investigation,
    MetricSeries,
    investigation_lines,
)
from rollbackd.core.records import Deployment, StoredDecision
from rollbackd.errors import RollbackdError
from rollbackd.ports import Announcer, Clock, Store
from rollbackd.settings import Metric
from rollbackd.workflow.documenting import schema_difference
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.measuring import MEASUREMENTS_LOOKED_AT, query_of
from rollbackd.workflow.targets import Targets

COLLECT_TIMEOUT_S = 30.0
# How much of the time before the deploy is shown, at least and at most; as much as there is since it, in between.
SHORTEST_BEFORE_S, LONGEST_BEFORE_S = 600.0, 3600.0
MOST_POINTS = 240
MOST_DIFFERENCES = 50
log = structlog.get_logger()
T = TypeVar("T")


class Investigations:
    """Collects once for each decision, in a task of its own: nobody waits for it, and it ends in bounded time."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        targets: Targets,
        announcer: Announcer,
        happenings: Happenings,
    ) -> None:
        self._store = store
        self._clock = clock
        self._targets = targets
        self._announcer = announcer
        self._happenings = happenings
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, deployment: Deployment, stored: StoredDecision) -> None:
        """Collect for this decision."""
        task = asyncio.create_task(self._investigate(deployment, stored), name=f"investigate {stored.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End what is being collected."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _investigate(self, deployment: Deployment, stored: StoredDecision) -> None:
        with self._targets.using(deployment.target) as guarded:
            await self._collect(guarded, deployment, stored)

    async def _collect(self, guarded: Guarded, deployment: Deployment, stored: StoredDecision) -> None:
        now = self._clock.now()
        try:
            series, activity, change = await asyncio.gather(
                self._series(guarded, deployment, now),
                _within(_activity(guarded), Activity(missing=("the database: it took too long",))),
                self._change(guarded, deployment),
            )
            found = Investigation(
                decision=stored.id,
                deployment=deployment.id,
                target=deployment.target,
                at=now,
                deployed_at=deployment.started_at,
                series=series,
                activity=activity,
                change=change,
            )
            await self._store.save_investigation(found)
        except RollbackdError as error:
            log.warning("investigation_failed", decision=stored.id, target=guarded.name, error=str(error))
            return
        except Exception:
            log.error("investigation_faulted", decision=stored.id, target=guarded.name, exc_info=True)
            return
        self._happenings.tell(
            "investigation_collected",
            decision=stored.id,
            deployment=deployment.id,
            target=guarded.name,
            series=len(series),
            statements=len(activity.statements),
            waiting=len(activity.waiting),
            transactions=len(activity.transactions),
            missing=len(activity.missing) + len(change.missing),
        )
        await self._announcer.announce(
            "investigation_collected",
            {
                "decision": stored.id,
                "deployment": deployment.id,
                "target": guarded.name,
                "found": investigation_lines(found),
            },
        )

    async def _series(
        self, guarded: Guarded, deployment: Deployment, now: datetime
    ) -> tuple[MetricSeries, ...]:
        since_s = (now - deployment.started_at).total_seconds()
        before_s = min(max(since_s, SHORTEST_BEFORE_S), LONGEST_BEFORE_S)
        since = deployment.started_at - timedelta(seconds=before_s)
        # As the readings had them: a limit may be a multiple of what was so before the deploy.
        measured = await self._store.measurements(deployment.id, MEASUREMENTS_LOOKED_AT)
        limits = {m.name: m.limits for m in measured if m.limits}
        return tuple(
            await asyncio.gather(
                *(
                    _within(
                        _one_series(guarded, metric, deployment, limits.get(metric.name, ()), (since, now)),
                        MetricSeries(
                            name=metric.name, category=metric.category, query="", missing="it took too long"
                        ),
                    )
                    for metric in guarded.settings.metrics
                )
            )
        )

    async def _change(self, guarded: Guarded, deployment: Deployment) -> Change:
        """What the deploy changed, as far as it can be read in time."""
        known = Change(
            release_from=deployment.previous_version,
            release_to=deployment.version,
            heads_before=deployment.heads_before or (),
            heads_now=(),
            missing=("what the migration changed: it took too long",),
        )
        return await _within(self._read_change(guarded, deployment, known), known)

    async def _read_change(self, guarded: Guarded, deployment: Deployment, known: Change) -> Change:
        missing: list[str] = []
        revisions: tuple[str, ...] = ()
        difference: list[str] = []
        try:
            heads = await guarded.database.heads()
            before = await self._store.document(deployment.before_document)
            if before is None:
                missing.append("what the migration touched: the schema before it isn't documented")
            else:
                difference = (await schema_difference(guarded, before)).lines()
            if set(heads) != set(known.heads_before) and not await self._is_run(deployment):
                revisions = await self._put_on(guarded, deployment, known.heads_before)
        except RollbackdError as error:
            return msgspec.structs.replace(known, missing=(f"what the migration changed: {error}",))
        if len(difference) > MOST_DIFFERENCES:
            missing.append(f"{len(difference) - MOST_DIFFERENCES} more differences of the schema")
        return msgspec.structs.replace(
            known,
            heads_now=heads,
            revisions=revisions,
            difference=tuple(difference[:MOST_DIFFERENCES]),
            missing=tuple(missing),
        )

    async def _is_run(self, deployment: Deployment) -> bool:
        """Whether a run is under way, to whose worker nothing else must be asked; its plan names the revisions."""
        return any(run.target == deployment.target for run in await self._store.unfinished_runs())

    async def _put_on(
        self, guarded: Guarded, deployment: Deployment, before: tuple[str, ...]
    ) -> tuple[str, ...]:
        """The revisions between the heads before and those of now, with their titles, in the order of the scripts."""
        graph, _, heads = await self._targets.planners[guarded.name].graph(deployment.scripts_sha256)
        new = graph.closure(heads) - graph.closure(tuple(head for head in before if head in graph))
        return tuple(f"{graph[id_].id} {graph[id_].title}".strip() for id_ in graph.ids() if id_ in new)


async def _activity(guarded: Guarded) -> Activity:
    try:
        return await guarded.database.activity()
    except RollbackdError as error:
        return Activity(missing=(str(error),))


async def _one_series(
    guarded: Guarded,
    metric: Metric,
    deployment: Deployment,
    limits: tuple[Limit, ...],
    between: tuple[datetime, datetime],
) -> MetricSeries:
    """A metric's series; where it can't be had, why."""
    since, now = between
    query = query_of(metric, guarded.settings, deployment)
    found = MetricSeries(name=metric.name, category=metric.category, query=query, limits=limits)
    if guarded.metrics is None:
        return msgspec.structs.replace(found, missing="no Prometheus is configured")
    step_s = max(1.0, metric.interval, (now - since).total_seconds() / MOST_POINTS)
    try:
        points = await guarded.metrics.series(query, since, now, step_s)
    except RollbackdError as error:
        return msgspec.structs.replace(found, missing=str(error))
    return msgspec.structs.replace(found, points=points, missing="" if points else "no data")


async def _within(made: Awaitable[T], otherwise: T) -> T:
    """What is made, or else `otherwise` where it takes too long."""
    try:
        async with asyncio.timeout(COLLECT_TIMEOUT_S):
            return await made
    except TimeoutError:
        return otherwise
