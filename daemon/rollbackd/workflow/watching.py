"""Watching one deployment from its start to the end of its bake time: documents, measures, and asks for a decision."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from rollbackd.core.assess import Evidence
from rollbackd.core.events import Category
from rollbackd.core.evidence import Signal
from rollbackd.core.price import price_of
from rollbackd.core.records import Deployment, StateDocument
from rollbackd.core.schema import SchemaDifference, compare_schemas
from rollbackd.errors import RollbackdError
from rollbackd.ports import Clock
from rollbackd.workflow.deployments import Deployments
from rollbackd.workflow.documenting import document_state, schema_difference
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.measuring import Measuring
from rollbackd.workflow.planning import Planner
from rollbackd.workflow.recovering import taken_by_migration
from rollbackd.workflow.targets import Targets

LOOK_EVERY_S = 1.0
DEPLOYMENTS_LOOKED_AT = 20
PRICE_EVERY_S = 30.0
T = TypeVar("T")
log = structlog.get_logger()

# Decides on the evidence; True when the deployment is no longer to be watched.
Decide = Callable[[Deployment, Evidence], Awaitable[bool]]


class Watch:
    """One deployment being watched. `nudge` it when something was heard of it."""

    def __init__(
        self,
        deployment_id: str,
        target: str,
        targets: Targets,
        deployments: Deployments,
        clock: Clock,
        happenings: Happenings,
        decide: Decide,
    ) -> None:
        self._deployments = deployments
        self._id = deployment_id
        self._targets = targets
        self.target = target
        self._store = deployments.store
        self._clock = clock
        self._happenings = happenings
        self._decide = decide
        self._nudged = asyncio.Event()
        self._measuring = Measuring(
            deployment_id, target, targets, self._store, clock, happenings, on_reading=self._nudged.set
        )
        self._planned_for: tuple[str, ...] | None = None
        self._price_due = 0.0
        self._readying: asyncio.Task[None] | None = None
        self._recovering: asyncio.Task[None] | None = None
        self._taken_at: tuple[str, ...] | None = None
        self._taken: dict[str, int] | None = None
        self.prepared = asyncio.Event()

    @property
    def _guarded(self) -> Guarded:
        """The target; the same throughout one look, and as it is configured by then in the next."""
        return self._targets[self.target]

    @property
    def _planner(self) -> Planner:
        return self._targets.planners[self.target]

    async def _in_use(self, work: Awaitable[T]) -> T:
        with self._targets.using(self.target):
            return await work

    def nudge(self) -> None:
        """Look again now."""
        self._nudged.set()

    async def run(self) -> None:
        """Watch until the decision says that it is over. A fault of the moment is logged and the watch goes on."""
        try:
            with self._targets.keeping(self.target):
                await self._run()
        finally:
            begun = {task for task in (self._readying, self._recovering) if task is not None}
            for task in begun:
                task.cancel()
            if begun:
                await asyncio.wait(begun)
            await self._measuring.stop()

    async def _run(self) -> None:
        while not self.prepared.is_set():
            try:
                await self._in_use(self._prepare())
                self.prepared.set()
            except Exception as error:  # noqa: BLE001 - whatever it is
                # Else the deployment would go unwatched, and whoever waits at the gate would wait for ever.
                log.warning("watch_failed", deployment=self._id, target=self.target, error=str(error))
                await asyncio.sleep(LOOK_EVERY_S)
        failures = 0
        while True:
            self._nudged.clear()
            try:
                if await self._in_use(self._look()):
                    return
                if failures:
                    log.info("watch_recovered", deployment=self._id, target=self.target, failures=failures)
                    failures = 0
            except RollbackdError as error:
                failures += 1
                log.warning("watch_failed", deployment=self._id, target=self._guarded.name, error=str(error))
            except Exception:
                failures += 1
                log.error("watch_faulted", deployment=self._id, target=self._guarded.name, exc_info=True)
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    # -- preparing ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Document the state, keep the scripts, have a worker ready: the way back before it is needed."""
        await self._measuring.restore()
        deployment = await self._deployment()
        if deployment.heads_before is None:
            try:
                await self._document_before(deployment)
            except RollbackdError as error:
                log.warning(
                    "documenting_failed", deployment=self._id, target=self._guarded.name, error=str(error)
                )
        await self._keep_scripts()

    async def _document_before(self, deployment: Deployment) -> None:
        """Documented now is called "before" only if nothing says that the database had moved already (events come late)."""
        earlier = await self._store.latest_document(self._guarded.name, deployment.started_at)
        now = await document_state(self._guarded, self._store, self._clock)
        before: StateDocument = now
        if earlier is not None and earlier.heads == now.heads and earlier.fingerprint != now.fingerprint:
            self._happenings.tell(
                "schema_drifted",
                deployment=self._id,
                target=self._guarded.name,
                since=earlier.taken_at.isoformat(),
                difference=compare_schemas(earlier.schema, now.schema).summary(),
            )
        if earlier is not None and set(earlier.heads) != set(now.heads):
            # The revision moved since then, by this deploy if it is the only one: what an earlier one moved is not ours.
            others = [
                d
                for d in await self._store.deployments(self.target, DEPLOYMENTS_LOOKED_AT)
                if d.id != deployment.id and (d.ended_at is None or d.ended_at > earlier.taken_at)
            ]
            before = now if others else earlier
        await self._deployments.change(
            self._id,
            lambda d: msgspec.structs.replace(d, heads_before=before.heads, before_document=before.id),
        )
        self._happenings.tell(
            "state_documented",
            deployment=self._id,
            target=self._guarded.name,
            heads=list(before.heads),
            late=before is not now,
            tables=len(now.counts),
            rows=sum(count.rows for count in now.counts),
        )

    async def _keep_scripts(self) -> None:
        try:
            if self._guarded.settings.migrations.prestart:
                await self._guarded.worker.prestart()
            digest = await self._guarded.worker.keep_scripts()
        except (RollbackdError, OSError) as error:
            log.warning("scripts_not_kept", deployment=self._id, target=self._guarded.name, error=str(error))
            return
        await self._deployments.change(self._id, lambda d: msgspec.structs.replace(d, scripts_sha256=digest))

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _look(self) -> bool:
        await self._measuring.measure(await self._deployment())
        deployment = await self._deployment()
        if deployment.ended_at is not None:
            return True
        if deployment.heads_before is None:
            # It couldn't be documented at first; what moved since then is told by the document before.
            with contextlib.suppress(RollbackdError):
                await self._document_before(deployment)
            deployment = await self._deployment()
        evidence = await self._gather(deployment)
        self._keep_way_back_ready(deployment, evidence)
        return await self._decide(deployment, evidence)

    async def _gather(self, deployment: Deployment) -> Evidence:
        heads_now: tuple[str, ...] | None
        unknown: tuple[str, ...] = ()
        try:
            heads_now = await self._guarded.database.heads()
        except RollbackdError as error:
            log.warning("heads_unreadable", target=self._guarded.name, error=str(error))
            heads_now = None
        if (
            heads_now is not None
            and deployment.heads_before is not None
            and set(heads_now) != set(deployment.heads_before)
        ):
            unknown = await self._unknown_heads(heads_now, deployment)
        settings = self._guarded.settings
        signals = await self._store.signals(settings.service, settings.environment, deployment.started_at)
        return Evidence(
            started_at=deployment.started_at,
            succeeded_at=deployment.succeeded_at,
            bake_time_s=settings.policy.bake_time,
            start_grace_s=settings.policy.start_grace,
            deploy=deployment.deploy,
            migration=deployment.migration,
            heads_before=deployment.heads_before,
            heads_now=heads_now,
            heads_expected=deployment.heads_expected,
            heads_now_unknown_to_scripts=unknown,
            schema_changed=await self._schema_changed(deployment, heads_now),
            signals=tuple(signals),
            names_firing_elsewhere=await self._firing_where_nothing_was_deployed(),
            probes=self._measuring.probe_states(deployment),
            probes_failing_before=self._measuring.probes_failing_before(deployment),
            taken_by_migration=self._taken_by_migration(deployment, signals, heads_now),
            metrics=self._measuring.metrics(deployment),
            investigated_until=deployment.investigating.until if deployment.investigating else None,
            slow_becomes_critical=settings.policy.after_investigation == "roll_back",
        )

    def _taken_by_migration(
        self, deployment: Deployment, signals: list[Signal], heads_now: tuple[str, ...] | None
    ) -> dict[str, int] | None:
        """What the migration takes away; found out once somebody misses rows, in a task of its own. None until then."""
        missed = any(s.category is Category.DATA_LOSS and s.fires(self._clock.now()) for s in signals)
        if not missed or not heads_now or set(heads_now) == set(deployment.heads_before or ()):
            return None
        if self._taken_at != heads_now:
            self._taken_at, self._taken = heads_now, None
            if self._recovering is not None:
                self._recovering.cancel()
            self._recovering = asyncio.create_task(self._in_use(self._find_taken(deployment, heads_now)))
        return self._taken

    async def _find_taken(self, deployment: Deployment, heads_now: tuple[str, ...]) -> None:
        try:
            graph, _, _ = await self._planner.graph(deployment.scripts_sha256)
            self._taken = await taken_by_migration(self._guarded, self._store, deployment, graph, heads_now)
        except RollbackdError as error:
            log.warning("loss_not_measured", deployment=self._id, target=self.target, error=str(error))
        except Exception:
            log.error("loss_measuring_faulted", deployment=self._id, target=self.target, exc_info=True)
        self.nudge()

    async def _unknown_heads(self, heads: tuple[str, ...], deployment: Deployment) -> tuple[str, ...]:
        graph, _, _ = await self._planner.graph(deployment.scripts_sha256)
        return tuple(head for head in heads if head not in graph)

    async def _schema_changed(self, deployment: Deployment, heads_now: tuple[str, ...] | None) -> bool | None:
        """Only asked when it matters: a failure with the stamp where it was."""
        said_failed = "failed" in (deployment.migration, deployment.deploy)
        if not said_failed or heads_now is None or deployment.heads_before is None:
            return None
        if set(heads_now) != set(deployment.heads_before):
            return None
        difference = await self._difference(deployment)
        return None if difference is None else not difference.is_empty()

    async def _difference(self, deployment: Deployment) -> SchemaDifference | None:
        before = await self._store.document(deployment.before_document)
        if before is None:
            return None
        # A migration that is being undone may still hold its locks and its half-done catalog.
        if not await self._guarded.database.wait_for_migration_lock(10):
            return None
        try:
            return await schema_difference(self._guarded, before)
        except RollbackdError as error:
            log.warning("schema_unreadable", target=self._guarded.name, error=str(error))
            return None

    async def _firing_where_nothing_was_deployed(self) -> frozenset[str]:
        settings = self._guarded.settings
        elsewhere = await self._store.firing_elsewhere(settings.service, settings.environment)
        deployed = {d.service for d in await self._store.watched_deployments()}
        return frozenset(
            name for name, services in elsewhere.items() if any(s not in deployed for s in services)
        )

    def _keep_way_back_ready(self, deployment: Deployment, evidence: Evidence) -> None:
        """Once the revision has moved, plan and rehearse the way back, and keep its price up to date.

        In a task of its own: a rehearsal takes as long as it takes, and the looking goes on meanwhile.
        """
        now, before = evidence.heads_now, evidence.heads_before
        if now is None or before is None or set(now) == set(before):
            return
        if self._readying is not None and not self._readying.done():
            return
        moment = self._clock.now().timestamp()
        moved = now != self._planned_for
        if moved or moment >= self._price_due:
            self._price_due = moment + PRICE_EVERY_S
            self._planned_for = now
            self._readying = asyncio.create_task(
                self._in_use(self._ready_way_back(deployment, before, moved=moved))
            )

    async def _ready_way_back(self, deployment: Deployment, before: tuple[str, ...], *, moved: bool) -> None:
        try:
            if moved:
                # On record, so that the next deploy knows what this one moved.
                await document_state(self._guarded, self._store, self._clock, count=False)
                await self._keep_scripts()
            plan = await self._planner.downgrade(
                before,
                release_from=deployment.version,
                release_to=deployment.previous_version,
                kept_scripts=(await self._deployment()).scripts_sha256,
                wants_downgrade=False,
                fresh=not moved,
            )
        except RollbackdError as error:
            log.warning("no_way_back", deployment=self._id, target=self._guarded.name, error=str(error))
            self._happenings.tell("way_back_missed", deployment=self._id, target=self._guarded.name)
            return
        except Exception:
            log.error("way_back_faulted", deployment=self._id, target=self._guarded.name, exc_info=True)
            self._happenings.tell("way_back_missed", deployment=self._id, target=self._guarded.name)
            return
        budget_s = self._guarded.settings.archive.lock_budget
        known = await self._deployment()
        price = price_of(plan, self._clock.now(), known.price, budget_s)
        await self._deployments.change(self._id, lambda d: msgspec.structs.replace(d, price=price))
        self._happenings.tell(
            "way_back_priced",
            deployment=self._id,
            target=self._guarded.name,
            environment=self._guarded.settings.environment,
            way_back=str(price.way_back),
            verdict=str(price.verdict),
            total_s=price.total_s,
            lock_s=price.lock_s,
            rows_lost=price.rows_lost,
            rows_only_new=price.rows_only_new,
            growth=price.growth,
            cheap_until_s=price.cheap_until.timestamp() if price.cheap_until is not None else None,
            blockers=list(price.blockers),
            text=price.text(),
        )

    async def _deployment(self) -> Deployment:
        found = await self._store.deployment(self._id)
        assert found is not None, "a watch is started for a recorded deployment only"
        return found

    def _wait_s(self) -> float:
        return max(0.05, min(LOOK_EVERY_S, self._measuring.next_in_s()))
