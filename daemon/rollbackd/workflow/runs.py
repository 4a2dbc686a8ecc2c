"""Runs as people and policies ask for them: asked for, approved, denied, resumed, abandoned. The engine executes them."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import msgspec
import structlog

from rollbackd.core.gates import GateFinding, GateState
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.planning.steps import CopyAhead
from rollbackd.core.records import Approval, Incident, Run
from rollbackd.core.run import FINISHED, RunState
from rollbackd.errors import NotFoundError, RefusedError, RollbackdError
from rollbackd.ports import Announcer, Clock, Progress, Store
from rollbackd.workflow.engine import Engine
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.timing import time_spent

AUTOMATIC = "automatic"
MANUAL = "manual"
OURSELVES = "rollbackd"
log = structlog.get_logger()


class Runs:
    """The life of runs."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        engine: Engine,
        guarded: Mapping[str, Guarded],
        announcer: Announcer,
        happenings: Happenings,
    ) -> None:
        self._store = store
        self._clock = clock
        self._engine = engine
        self._guarded = guarded
        self._announcer = announcer
        self._happenings = happenings
        # Held here so that they aren't collected before they are done.
        self._announcing: set[asyncio.Task[None]] = set()
        self._followed: set[str] = set()

    def progress(self, run_id: str) -> Progress | None:
        """How far the step under way has come, where it says so."""
        return self._engine.progress.get(run_id)

    async def ask_for(  # noqa: PLR0913 - what a run's record says, each by its name
        self,
        plan: Plan,
        gates: tuple[GateFinding, ...],
        *,
        trigger: str,
        requested_by: str,
        reason: str,
        incident: str = "",
        deployment: str = "",
        decision: str = "",
    ) -> Run:
        """Store the plan as a run; start it, or let it wait for an approval.

        Raises:
            RefusedError: when a gate refuses, or the database has an unfinished run.
        """
        refused = [finding for finding in gates if finding.state is GateState.REFUSED]
        if refused:
            raise RefusedError("; ".join(f"{finding.gate}: {finding.reason}" for finding in refused))
        guarded = self._guarded[plan.target]
        now = self._clock.now()
        waits = tuple(f"{f.gate}: {f.reason}" for f in gates if f.state is GateState.NEEDS_PERSON)
        run = Run(
            id=self._clock.new_id("run"),
            target=plan.target,
            database_key=guarded.database_key,
            deployment=deployment,
            decision=decision,
            plan=plan,
            plan_sha256=plan.sha256(),
            state=RunState.PLANNED,
            trigger=trigger,
            requested_by=requested_by,
            reason=reason,
            incident=incident,
            created_at=now,
            expires_at=now + timedelta(seconds=guarded.settings.policy.approval_expires) if waits else None,
            approval_reasons=waits,
        )
        await self._store.add_run(run)
        self._happenings.tell(
            "run_planned",
            run=run.id,
            target=run.target,
            environment=guarded.settings.environment,
            trigger=trigger,
            way_back=str(plan.way_back),
            waits=bool(waits),
        )
        return await self._go_on(run)

    async def recover(self) -> None:
        """Settle what a crash left between the store's record and the first step."""
        for run in await self._store.unfinished_runs():
            if run.target not in self._guarded:
                log.error("run_without_target", run=run.id, target=run.target, state=str(run.state))
            elif run.state is RunState.PLANNED:
                await self._go_on(run)
            elif run.state is RunState.RUNNING:
                self._start(run)
        await self.expire()

    async def take_up(self) -> None:
        """Go on with runs that stopped because the store couldn't be written."""
        for run in await self._engine.recover():
            self._start(run)

    async def _go_on(self, run: Run) -> Run:
        if run.approval_reasons:
            moved = await self._move(run, RunState.AWAITING_APPROVAL)
            await self._announcer.announce(
                "approval_asked",
                {
                    "run": run.id,
                    "target": run.target,
                    "reason": run.reason,
                    "because": list(run.approval_reasons),
                },
            )
            return moved
        moved = await self._move(run, RunState.RUNNING)
        self._start(moved)
        return moved

    def _start(self, run: Run) -> None:
        task = self._engine.start(run)
        if run.id not in self._followed:
            self._followed.add(run.id)
            task.add_done_callback(self._ended)
            task.add_done_callback(lambda _: self._followed.discard(run.id))

    def _ended(self, task: "asyncio.Task[Run]") -> None:
        if task.cancelled() or task.exception() is not None:
            return
        run = task.result()
        if run.state is RunState.RUNNING:
            return
        fields: dict[str, object] = {
            "run": run.id,
            "target": run.target,
            "state": str(run.state),
            "reason": run.reason,
            "statement": run.statement,
        }
        announcing = asyncio.create_task(self._announcer.announce(f"run_{run.state}", fields))
        self._announcing.add(announcing)
        announcing.add_done_callback(self._announcing.discard)

    async def approve(self, run_id: str, actor: str, *, plan_sha256: str = "", reason: str = "") -> Run:
        """Somebody else than who asked says yes to this very plan.

        Raises:
            RefusedError: when the run doesn't wait, the approval came too late, from the requester, or for another plan.
        """
        run = await self._waiting(run_id)
        self._require_target(run)
        # A hook asks as `hook:cd` and approves as `hook:cd:ann`: one key, so one identity.
        if actor == run.requested_by or actor.startswith(f"{run.requested_by}:"):
            raise RefusedError(f"{actor} asked for {run_id}, so somebody else has to approve it")
        if plan_sha256 and plan_sha256 != run.plan_sha256:
            raise RefusedError(
                f"the approval is for another plan than that of {run_id}: look at the plan again"
            )
        await self._record_word(run, actor, granted=True, reason=reason)
        if not run.plan.stops_writes and run.plan.downgrades:
            await self._store.set_writes_stopped(run_id, actor)
        moved = await self._move(run, RunState.RUNNING)
        self._start(moved)
        return moved

    async def deny(self, run_id: str, actor: str, *, reason: str = "") -> Run:
        """Somebody says no; the run is finished without a step taken."""
        run = await self._waiting(run_id)
        await self._record_word(run, actor, granted=False, reason=reason)
        return await self._move(
            run, RunState.DENIED, statement=f"denied by {actor}: {reason or 'no reason given'}"
        )

    async def resume(self, run_id: str, actor: str, *, stamp: bool = False) -> Run:
        """Go on with a held run: every remaining step is looked at again first.

        With `stamp` the stamp that a downgrade lost is moved before that, if the schema is the one that the rehearsal led to.
        """
        run = await self._named(run_id)
        self._require_target(run)
        if stamp:
            if run.state is not RunState.HELD:
                raise RefusedError(f"{run_id} is {run.state}; only the stamp of a held run is moved")
            await self._engine.move_stamp(run, actor)
        moved = await self._move(
            run, RunState.RUNNING, expected=RunState.HELD, statement=f"resumed by {actor}"
        )
        self._happenings.tell("run_resumed", run=run.id, target=run.target, after="hold", actor=actor)
        self._start(moved)
        return moved

    async def abandon(self, run_id: str, actor: str, *, reason: str = "") -> Run:
        """Let a held run go: a person has taken over, and rollbackd does nothing more about it."""
        run = await self._named(run_id)
        statement = (
            f"abandoned by {actor}: {reason or 'no reason given'}. It was held because: {run.statement}"
        )
        moved = await self._move(run, RunState.ABANDONED, expected=RunState.HELD, statement=statement)
        await self._throw_away_copies(run)
        return moved

    async def _throw_away_copies(self, run: Run) -> None:
        """What was copied ahead comes to nothing, and its triggers would log every write for ever."""
        guarded = self._guarded.get(run.target)
        if guarded is None or not any(isinstance(step, CopyAhead) for step in run.plan.steps):
            return
        try:
            await guarded.archives.discard(run.id)
        except RollbackdError as error:
            log.warning("copies_not_thrown_away", run=run.id, target=run.target, error=str(error))

    async def expire(self) -> list[Run]:
        """End the runs whose approval didn't come in time."""
        now = self._clock.now()
        late = [
            run
            for run in await self._store.unfinished_runs()
            if run.state is RunState.AWAITING_APPROVAL
            and run.expires_at is not None
            and run.expires_at <= now
        ]
        return [
            await self._move(run, RunState.EXPIRED, statement="nobody approved it in time") for run in late
        ]

    async def incident_for(self, guarded: Guarded, given: str, reason: str, opened_by: str) -> str:
        """The incident record that a run refers to: the one given, an open one, or one of our own if the policy asks."""
        if given:
            known = await self._store.open_incident(guarded.name)
            if known is None or known.reference != given:
                await self._open_incident(guarded, given, reason, opened_by)
            return given
        known = await self._store.open_incident(guarded.name)
        if known is not None:
            return known.reference or known.id
        if not guarded.settings.incident_required:
            return ""
        return (await self._open_incident(guarded, "", reason, OURSELVES)).id

    async def _open_incident(self, guarded: Guarded, reference: str, reason: str, opened_by: str) -> Incident:
        incident = Incident(
            id=self._clock.new_id("incident"),
            target=guarded.name,
            opened_at=self._clock.now(),
            opened_by=opened_by,
            reference=reference,
            reason=reason,
        )
        await self._store.save_incident(incident)
        self._happenings.tell("incident_opened", incident=incident.id, target=guarded.name, reason=reason)
        return incident

    async def _record_word(self, run: Run, actor: str, *, granted: bool, reason: str) -> None:
        word = Approval(
            run=run.id,
            actor=actor,
            plan_sha256=run.plan_sha256,
            granted=granted,
            at=self._clock.now(),
            reason=reason,
        )
        await self._store.save_approval(word)
        waited = (self._clock.now() - run.created_at).total_seconds()
        self._happenings.tell(
            "approval_given",
            run=run.id,
            target=run.target,
            actor=actor,
            granted=granted,
            waited_seconds=waited,
        )

    async def _waiting(self, run_id: str) -> Run:
        run = await self._named(run_id)
        if run.state is not RunState.AWAITING_APPROVAL:
            raise RefusedError(
                f"{run_id} is {run.state}; only a run that awaits approval can be approved or denied"
            )
        if run.expires_at is not None and run.expires_at <= self._clock.now():
            await self.expire()
            raise RefusedError(
                f"the time to approve {run_id} ended at {run.expires_at:%F %T} UTC: ask for it anew"
            )
        return run

    async def _named(self, run_id: str) -> Run:
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}; 'rollbackd history' lists them")
        return run

    def _require_target(self, run: Run) -> None:
        if run.target not in self._guarded:
            raise RefusedError(
                f"{run.target} is no longer configured, so nothing of {run.id} can be done: put it back into the"
                " configuration and reload, or deny or abandon the run"
            )

    def _environment_of(self, run: Run) -> str:
        """Empty for a target that is no longer configured: its runs can still be denied, abandoned and expire."""
        guarded = self._guarded.get(run.target)
        return guarded.settings.environment if guarded is not None else ""

    async def _move(
        self, run: Run, after: RunState, *, expected: RunState | None = None, statement: str = ""
    ) -> Run:
        moved = await self._store.move_run(
            run.id, expected or run.state, after, self._clock.now(), statement=statement
        )
        self._happenings.tell(
            "run_moved",
            run=run.id,
            target=run.target,
            environment=self._environment_of(run),
            trigger=run.trigger,
            before=str(expected or run.state),
            after=str(after),
            spent=await time_spent(self._store, run.id) if after in FINISHED else {},
        )
        return moved


def describe_run(run: Run) -> dict[str, object]:
    """A run for people and machines, without the plan's statements."""
    return {
        "id": run.id,
        "target": run.target,
        "state": str(run.state),
        "way_back": str(run.plan.way_back),
        "from_heads": list(run.plan.from_heads),
        "to_heads": list(run.plan.to_heads),
        "trigger": run.trigger,
        "requested_by": run.requested_by,
        "reason": run.reason,
        "incident": run.incident,
        "deployment": run.deployment,
        "decision": run.decision,
        "created_at": run.created_at.isoformat(),
        "started_at": run.started_at.isoformat() if run.started_at else None,
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "expires_at": run.expires_at.isoformat() if run.expires_at else None,
        "approval_reasons": list(run.approval_reasons),
        "plan_sha256": run.plan_sha256,
        "statement": run.statement,
        "steps": [msgspec.to_builtins(step) for step in run.plan.steps],
        "holds": run.plan.way_back is WayBack.HOLD,
    }
