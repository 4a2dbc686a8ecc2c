"""The pipeline: takes recorded events one after another and brings each to bear. What it does is recorded with the event."""

import asyncio
import contextlib

import msgspec
import structlog

from rollbackd.core.assess import DeployWord
from rollbackd.core.events import Category, Event, EventKind, EventResult, Severity
from rollbackd.core.evidence import Signal
from rollbackd.core.records import Deployment, Incident, QueuedEvent
from rollbackd.errors import RefusedError, RollbackdError, StoreUnavailableError
from rollbackd.ports import Clock, Store
from rollbackd.workflow.deciding import Deciding
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.operations import Operations
from rollbackd.workflow.pulse import Pulse
from rollbackd.workflow.targets import Targets
from rollbackd.workflow.watching import Watch

AT_ONCE = 500
CROWD = 10
CROWD_PAUSE_S = 0.05
UPKEEP_EVERY_S = 30.0
PREPARED_WITHIN_S = 300.0
STORE_RETRY_S = 2.0
# What the pipeline promises to the watchdog. An event that asks for a rollback has its way back planned and rehearsed before
# it is settled, and these have deadlines of their own; everything else is a few commits.
PIPELINE = "pipeline"
SLACK_S = 60.0
REST_AFTER_S = 0.5
LONGEST_EVENT_S = 2 * 3600.0
# What begins a deployment that nobody announced: the start, or a success whose start was missed. A failure of something
# unknown says nothing about what is being watched.
BEGINNINGS = frozenset(
    {
        EventKind.DEPLOY_STARTED,
        EventKind.DEPLOY_SUCCEEDED,
        EventKind.MIGRATION_STARTED,
        EventKind.MIGRATION_APPLIED,
    }
)
# Asking for these a second time would ask for something new.
NEVER_TWICE = frozenset({EventKind.ROLLBACK_REQUESTED, EventKind.INCIDENT_OPENED})
# The label by which a CD system names the digest of the image that it deploys.
IMAGE_LABEL = "image"
log = structlog.get_logger()


class Pipeline:
    """One task reads the queue; each watched deployment has a task of its own, so that no target slows another."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        guarded: Targets,
        deciding: Deciding,
        operations: Operations,
        happenings: Happenings,
        pulse: Pulse,
    ) -> None:
        self._store = store
        self._clock = clock
        self._guarded = guarded
        self._deciding = deciding
        self._operations = operations
        self._happenings = happenings
        self._pulse = pulse
        self._wake = asyncio.Event()
        self._watches: dict[str, tuple[Watch, asyncio.Task[None]]] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._beginning: dict[str, asyncio.Lock] = {}

    def wake(self) -> None:
        """Something was recorded."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled: first what was left, then what comes."""
        await self.take_up()
        while True:
            self._pulse.promise(PIPELINE, UPKEEP_EVERY_S + SLACK_S)
            self._wake.clear()
            try:
                await self._take_all()
            except StoreUnavailableError as error:
                log.error("store_unavailable", error=str(error))
                await asyncio.sleep(STORE_RETRY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(UPKEEP_EVERY_S):
                    await self._wake.wait()

    async def take_up(self) -> None:
        """Watch every deployment that isn't over."""
        for deployment in await self._store.watched_deployments():
            if deployment.target in self._guarded:
                self._watch(deployment)
            else:
                log.warning("deployment_unwatched", deployment=deployment.id, target=deployment.target)

    async def stop(self) -> None:
        """End the watches; they are taken up again by the next start."""
        tasks = [task for _, task in self._watches.values()] + list(self._requests)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._deciding.stop()

    async def prepared(self, deployment_id: str) -> None:
        """Wait until the state before this deployment is documented and its scripts are kept."""
        known = self._watches.get(deployment_id)
        if known is None:
            raise RefusedError(f"{deployment_id} is no longer watched")
        try:
            async with asyncio.timeout(PREPARED_WITHIN_S):
                await known[0].prepared.wait()
        except TimeoutError:
            raise RefusedError(
                f"the state before {deployment_id} wasn't documented within {PREPARED_WITHIN_S:g} s; see the daemon's log"
            ) from None

    def watched(self) -> int:
        """How many deployments are watched."""
        return len(self._watches)

    async def _take_all(self) -> None:
        while events := await self._store.next_events(AT_ONCE):
            outcomes: dict[int, str] = {}
            for queued in events:
                asked = queued.event.kind is EventKind.ROLLBACK_REQUESTED
                self._pulse.promise(PIPELINE, LONGEST_EVENT_S if asked else SLACK_S)
                result = EventResult.TAKEN
                try:
                    targets = self._targets_of(queued.event)
                    outcome = await self._take(queued, targets)
                    if not targets:
                        result = EventResult.UNGUARDED
                except StoreUnavailableError:
                    raise
                except RollbackdError as error:
                    result, outcome = EventResult.REFUSED, f"refused: {error}"
                except Exception as error:
                    # A fault of ours with one event must not stop all others, now and after every start.
                    log.error("event_faulted", delivery=queued.delivery, exc_info=True)
                    result = EventResult.FAULTED
                    outcome = f"fault: {type(error).__name__}; the daemon's log has the details"
                outcomes[queued.seq] = outcome
                self._happenings.tell(
                    "event_settled",
                    kind=str(queued.event.kind),
                    hook=queued.hook,
                    outcome=outcome,
                    result=str(result),
                )
                if queued.event.kind in NEVER_TWICE:
                    await self._settle(outcomes)
            self._pulse.promise(PIPELINE, SLACK_S)
            await self._settle(outcomes)
            if len(events) >= CROWD:
                # Under load, many at once cost little more than one, and receiving goes first.
                await asyncio.sleep(CROWD_PAUSE_S)

    async def _settle(self, outcomes: dict[int, str]) -> None:
        """Note what was done, in one commit. What a crash leaves unsettled is taken again, which changes nothing."""
        if outcomes:
            await self._store.settle_events(outcomes, self._clock.now())
            outcomes.clear()

    def _targets_of(self, event: Event) -> list[Guarded]:
        return [
            g
            for g in self._guarded.values()
            if g.settings.service == event.service and g.settings.environment == event.environment
        ]

    async def _take(self, queued: QueuedEvent, targets: list[Guarded]) -> str:
        """Bring an event to bear on each target that it is about.

        Raises:
            RefusedError: when every one of them refuses it; else the outcome says which did.
        """
        event = queued.event
        if event.kind in (EventKind.SIGNAL_FIRING, EventKind.SIGNAL_RESOLVED):
            await self._signal(queued, targets)
        if not targets:
            return f"no target guards {event.service or 'an unnamed service'} in {event.environment or 'an unnamed environment'}"
        outcomes, refused = [], []
        for guarded in targets:
            if guarded.name not in self._guarded:
                continue
            try:
                with self._guarded.using(guarded.name) as now:
                    outcomes.append(await self._bring_to_bear(queued, now))
            except StoreUnavailableError:
                raise
            except RollbackdError as error:
                refused.append(f"{guarded.name}: {error}")
        if not outcomes:
            raise RefusedError("; ".join(refused))
        return "; ".join([*outcomes, *(f"refused: {one}" for one in refused)])

    async def _bring_to_bear(self, queued: QueuedEvent, guarded: Guarded) -> str:
        event = queued.event
        match event.kind:
            case EventKind.SIGNAL_FIRING | EventKind.SIGNAL_RESOLVED:
                self._happenings.tell(
                    "signal_noted", target=guarded.name, kind=str(event.kind), signal=event.name
                )
                deployment = await self._newest_watched(guarded)
                if deployment is None:
                    return f"{guarded.name}: noted; no deployment is being watched"
                self._watch(deployment).nudge()
                return f"{guarded.name}: noted for {deployment.id}"
            case EventKind.INCIDENT_OPENED | EventKind.INCIDENT_CLOSED:
                return await self._incident(queued, guarded)
            case EventKind.APPROVAL_GRANTED | EventKind.APPROVAL_DENIED:
                return await self._approval(event, guarded, f"hook:{queued.hook}:{event.actor}")
            case EventKind.ROLLBACK_REQUESTED:
                return await self._request_rollback(queued, guarded)
            case _:
                return await self._deploy(queued, guarded)

    # -- deployments ---------------------------------------------------------------------------------------------------

    async def _deploy(self, queued: QueuedEvent, guarded: Guarded) -> str:
        event = queued.event
        nameless = not event.deployment and not event.version
        if (
            nameless
            and event.kind is EventKind.DEPLOY_SUCCEEDED
            and await self._newest_watched(guarded) is None
        ):
            return f"{guarded.name}: a deploy succeeded that nobody announced, with neither version nor id"
        if event.kind not in BEGINNINGS and await self._find(event, guarded) is None:
            named = event.deployment or event.version or "no name"
            return f"{guarded.name}: {event.kind} of {named}, which is no deployment that is known here"
        deployment = await self.find_or_begin(event, guarded, queued)
        changed = await self._deciding.deployments.change(
            deployment.id, lambda known: _with_word(known, event, queued)
        )
        self._watch(changed).nudge()
        return f"{guarded.name}: {event.kind} noted for {changed.id}"

    async def find_or_begin(
        self, event: Event, guarded: Guarded, queued: QueuedEvent | None = None
    ) -> Deployment:
        """The deployment that an event is about; a new one where none is. The gate and the queue ask at the same time."""
        async with self._beginning.setdefault(guarded.name, asyncio.Lock()):
            return await self._find(event, guarded) or await self._begin(event, guarded, queued)

    async def _begin(self, event: Event, guarded: Guarded, queued: QueuedEvent | None) -> Deployment:
        """Start watching a new deployment. An older one of the target that is still watched ends as superseded."""
        if self._guarded.is_leaving(guarded.name):
            raise RefusedError(
                f"{guarded.name} was taken out of the configuration; what is under way is finished, and nothing new begins"
            )
        for older in await self._store.watched_deployments():
            if older.target == guarded.name:
                ended_at = self._clock.now()
                await self._deciding.deployments.change(
                    older.id,
                    lambda known: msgspec.structs.replace(
                        known,
                        ended_at=ended_at,  # noqa: B023 - called at once
                        outcome="superseded",
                        investigating=None,
                    ),
                )
                self._deciding.forget(older.id)
                self._happenings.tell(
                    "deployment_ended",
                    deployment=older.id,
                    target=guarded.name,
                    environment=guarded.settings.environment,
                    outcome="superseded",
                )
        now = queued.received_at if queued is not None else self._clock.now()
        # A sender's clock may be ahead; a deployment can't begin after we heard of it.
        started = min(event.occurred_at, now) if event.occurred_at is not None else now
        deployment = Deployment(
            id=self._clock.new_id("deploy"),
            target=guarded.name,
            service=guarded.settings.service,
            sender_id=event.deployment,
            version=event.version,
            previous_version=event.previous_version,
            started_at=started,
            heads_expected=(event.to_revision,) if event.to_revision else (),
            url=event.url,
            image=event.labels.get(IMAGE_LABEL, ""),
            committed_at=event.committed_at,
        )
        await self._store.save_deployment(deployment)
        self._happenings.tell(
            "deployment_started",
            deployment=deployment.id,
            target=guarded.name,
            environment=guarded.settings.environment,
            version=event.version,
        )
        self._watch(deployment)
        return deployment

    async def _find(self, event: Event, guarded: Guarded) -> Deployment | None:
        """The deployment that an event is about. One that names another than those known is never taken for one of them.

        By the sender's id (or by version, where the one being watched has no id), else by version, else the one watched.
        """
        recent = await self._store.deployments(guarded.name, 20)
        watched = [d for d in recent if d.ended_at is None]
        if event.deployment:
            found = [d for d in recent if d.sender_id == event.deployment]
            if event.kind is EventKind.DEPLOY_STARTED:
                # One that ended is over: the same id again is a pipeline that was run again.
                found = [d for d in found if d.ended_at is None]
            nameless = [d for d in watched if not d.sender_id and d.version and d.version == event.version]
            return next(iter(found or nameless), None)
        if event.version:
            return next((d for d in watched if d.version == event.version), None)
        return watched[0] if watched else None

    async def _newest_watched(self, guarded: Guarded) -> Deployment | None:
        watched = [d for d in await self._store.watched_deployments() if d.target == guarded.name]
        return watched[-1] if watched else None

    def _watch(self, deployment: Deployment) -> Watch:
        known = self._watches.get(deployment.id)
        if known is not None:
            return known[0]
        watch = Watch(
            deployment.id,
            deployment.target,
            self._guarded,
            self._deciding.deployments,
            self._clock,
            self._happenings,
            self._deciding.consider,
        )
        if deployment.ended_at is not None:
            return watch
        task = asyncio.create_task(watch.run(), name=f"watch {deployment.id}")
        self._watches[deployment.id] = (watch, task)
        task.add_done_callback(lambda done: self._watch_ended(deployment, done))
        return watch

    def _watch_ended(self, deployment: Deployment, task: asyncio.Task[None]) -> None:
        self._watches.pop(deployment.id, None)
        if not task.cancelled() and task.exception() is not None:
            log.error(
                "watch_died", deployment=deployment.id, target=deployment.target, exc_info=task.exception()
            )
        guarded = self._guarded.get(deployment.target)
        if guarded is not None and not self._is_watched(guarded.name):
            closing = asyncio.create_task(self._let_rest(guarded))
            self._requests.add(closing)
            closing.add_done_callback(self._requests.discard)

    def _is_watched(self, name: str) -> bool:
        return any(watch.target == name for watch, _ in self._watches.values())

    async def _let_rest(self, guarded: Guarded) -> None:
        """A target at rest costs nothing: no connection, no waiting worker. Who still uses it, an investigation say, is waited
        for.
        """
        while self._guarded.in_use(guarded.name):  # noqa: ASYNC110 - rare, and short
            await asyncio.sleep(REST_AFTER_S)
        unfinished = any(run.target == guarded.name for run in await self._store.unfinished_runs())
        in_use = self._guarded.in_use(guarded.name) or self._is_watched(guarded.name)
        if not unfinished and not in_use:
            await guarded.worker.close()
            await guarded.database.close()

    # -- everything else ------------------------------------------------------------------------------------------------

    async def _signal(self, queued: QueuedEvent, targets: list[Guarded]) -> None:
        event = queued.event
        service = targets[0].settings.service if targets else event.service
        at = event.occurred_at or queued.received_at
        key = event.key or event.name
        resolved = at if event.kind is EventKind.SIGNAL_RESOLVED else None
        known = [
            s
            for s in await self._store.signals(service, event.environment, at)
            if s.source == queued.hook and s.key == key
        ]
        # One that fires still and is sent again began when it began.
        still = [s for s in known if resolved is not None or s.resolved_at is None]
        started = min(still[0].started_at, at) if still else at
        signal = Signal(
            source=queued.hook,
            key=key,
            name=event.name,
            category=event.category or Category.ERRORS,
            severity=event.severity or Severity.WARNING,
            started_at=started,
            resolved_at=resolved,
            reason=event.reason,
            url=event.url,
            delivery=queued.delivery,
        )
        await self._store.save_signal(service, event.environment, signal)

    async def _incident(self, queued: QueuedEvent, guarded: Guarded) -> str:
        event = queued.event
        known = await self._store.open_incident(guarded.name)
        if event.kind is EventKind.INCIDENT_CLOSED:
            if known is None:
                return f"{guarded.name}: no incident is open"
            await self._store.save_incident(msgspec.structs.replace(known, closed_at=self._clock.now()))
            return f"{guarded.name}: {known.id} closed"
        incident = Incident(
            id=self._clock.new_id("incident"),
            target=guarded.name,
            opened_at=event.occurred_at or queued.received_at,
            opened_by=f"hook:{queued.hook}",
            reference=event.key or event.name or event.url,
            reason=event.reason,
        )
        await self._store.save_incident(incident)
        return f"{guarded.name}: {incident.id} opened"

    async def _approval(self, event: Event, guarded: Guarded, actor: str) -> str:
        run = await self._store.run(event.run)
        if run is None or run.target != guarded.name:
            return f"{guarded.name}: {event.run} is no run of it"
        if event.kind is EventKind.APPROVAL_GRANTED:
            await self._operations.approve(event.run, actor, reason=event.reason)
            return f"{event.run} approved by {actor}"
        await self._operations.deny(event.run, actor, reason=event.reason)
        return f"{event.run} denied by {actor}"

    async def _request_rollback(self, queued: QueuedEvent, guarded: Guarded) -> str:
        """Ask for a rollback, as automation: whoever holds a hook's key is no person. Settled once the run is recorded."""
        event = queued.event
        run = await self._operations.roll_back(
            guarded.name,
            to=event.to_revision,
            reason=event.reason,
            requested_by=f"hook:{queued.hook}",
            release=event.previous_version,
            by_person=False,
        )
        return f"{guarded.name}: {run.id} was asked for and is {run.state}"


def _with_word(deployment: Deployment, event: Event, queued: QueuedEvent) -> Deployment:
    """The deployment with what the CD system now says of it. A late word never overrides a later one."""
    at = event.occurred_at or queued.received_at
    changes: dict[str, object] = {}
    match event.kind:
        case EventKind.DEPLOY_SUCCEEDED:
            changes = {"deploy": DeployWord.SUCCEEDED, "succeeded_at": deployment.succeeded_at or at}
        case EventKind.DEPLOY_FAILED:
            changes = {"deploy": DeployWord.FAILED}
        case EventKind.MIGRATION_STARTED if deployment.migration is DeployWord.NOTHING:
            changes = {"migration": DeployWord.STARTED}
        case EventKind.MIGRATION_APPLIED:
            changes = {"migration": DeployWord.SUCCEEDED}
        case EventKind.MIGRATION_FAILED:
            changes = {"migration": DeployWord.FAILED, "migration_reason": event.reason}
    if event.to_revision and not deployment.heads_expected:
        changes["heads_expected"] = (event.to_revision,)
    if event.previous_version and not deployment.previous_version:
        changes["previous_version"] = event.previous_version
    if event.version and not deployment.version:
        changes["version"] = event.version
    if event.committed_at is not None and deployment.committed_at is None:
        changes["committed_at"] = event.committed_at
    return msgspec.structs.replace(deployment, **changes)
