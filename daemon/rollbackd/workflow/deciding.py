"""From evidence to what is done about it: assess, match the matrix, wait until it is ripe, plan, ask the gates, run."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from rollbackd.core.assess import Evidence, assess, heads_text
from rollbackd.core.decision import Decision, decide, is_ripe
from rollbackd.core.facts import Performance, Watch
from rollbackd.core.gates import Gate, GateFinding, GateState, verdict
from rollbackd.core.matrix import DOWNGRADING, Action, Matrix, Row
from rollbackd.core.planning.laying_out import with_recovery
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.records import Deployment, Investigating, Run, StoredDecision
from rollbackd.core.run import FINISHED, UNFINISHED, RunState
from rollbackd.errors import RollbackdError
from rollbackd.ports import Announcer, Clock, Store
from rollbackd.workflow import permitting
from rollbackd.workflow.deployments import Deployments
from rollbackd.workflow.documenting import document_state
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.investigating import Investigations
from rollbackd.workflow.planning import Planner
from rollbackd.workflow.recovering import recovery_of
from rollbackd.workflow.runs import AUTOMATIC, MANUAL, OURSELVES, Runs
from rollbackd.workflow.targets import Targets

KEPT = "kept"
ROLLED_BACK = "rolled_back"
SLOW = (Performance.DEGRADED, Performance.CRITICAL)
ENDED_BY_RUN = {
    RunState.SUCCEEDED: ROLLED_BACK,
    RunState.FAILED: "rollback_failed",
    RunState.DENIED: "rollback_denied",
    RunState.EXPIRED: "rollback_expired",
    RunState.ABANDONED: "abandoned",
}


class Deciding:
    """Decides for watched deployments. What was decided last, and since when a row matches, is kept by deployment."""

    def __init__(  # noqa: PLR0913, PLR0917 - wired in one place, each part a port or a neighbour
        self,
        matrix: Matrix,
        store: Store,
        clock: Clock,
        guarded: Targets,
        planners: Mapping[str, Planner],
        runs: Runs,
        announcer: Announcer,
        happenings: Happenings,
    ) -> None:
        # Exchanged by a new configuration; the next decision reads it.
        self.matrix = matrix
        self._store = store
        self._clock = clock
        self._guarded = guarded
        self._planners = planners
        self._runs = runs
        self._announcer = announcer
        self._happenings = happenings
        self._matching: dict[str, tuple[str, datetime]] = {}
        self._said: dict[str, tuple[bytes, StoredDecision]] = {}
        self._investigations = Investigations(store, clock, guarded, announcer, happenings)
        self.deployments = Deployments(store)

    async def stop(self) -> None:
        """End what is being collected."""
        await self._investigations.stop()

    async def consider(self, deployment: Deployment, evidence: Evidence) -> bool:
        """Decide on this evidence; True when the deployment is no longer to be watched."""
        if await self._has_run(deployment):
            return await self._end_with_its_run(deployment)
        now = self._clock.now()
        assessment = assess(evidence, now)
        decision, row = decide(self.matrix, assessment)
        since = self._since(deployment, row, now)
        await self._note_failing(deployment, row, now)
        if deployment.investigating is not None and assessment.facts.performance is Performance.NORMAL:
            await self._clear(deployment, deployment.investigating, now)
        is_over = assessment.facts.watch is Watch.OVER
        if row.action is Action.KEEP and not is_over:
            return False
        guarded = self._guarded[deployment.target]
        if not is_ripe(row, since, guarded.settings.policy.confirm_for, now):
            return False
        if row.action in DOWNGRADING or row.action is Action.REDEPLOY_ONLY or row.hold:
            await self._act(deployment, evidence, decision, guarded)
            if is_over and not await self._has_run(deployment):
                # Refused, and its time is over: a person has been told, and nothing acts on it days later.
                await self._end(deployment, str(Action.INVESTIGATE))
                return True
            return False
        stored = await self._say(deployment, evidence, decision, _recorded(deployment, decision, now))
        if _is_investigated(decision) and deployment.investigating is None:
            # Watched until its deadline from now on, even if the bake time is over.
            await self._open_investigation(deployment, stored)
            return False
        if is_over:
            await self._end(deployment, KEPT if row.action is Action.KEEP else str(row.action))
        return is_over

    def _since(self, deployment: Deployment, row: Row, now: datetime) -> datetime:
        """When this row began to match without a break."""
        name, since = self._matching.get(deployment.id, ("", now))
        if name != row.name:
            since = now
            self._matching[deployment.id] = (row.name, now)
        return since

    async def _note_failing(self, deployment: Deployment, row: Row, now: datetime) -> None:
        """Since when something is wrong with it, for the time that it took to restore the service."""
        fails = row.action is not Action.KEEP
        if fails != (deployment.failing_since is not None):
            since = now if fails else None
            await self.deployments.change(
                deployment.id, lambda d: msgspec.structs.replace(d, failing_since=since)
            )

    async def _act(
        self, deployment: Deployment, evidence: Evidence, decision: Decision, guarded: Guarded
    ) -> bool:
        reason = f"{decision.row}: {decision.why}"
        for other in await self._store.unfinished_runs():
            if other.database_key == guarded.database_key:
                # Another target's, or one asked for by hand: one at a time on a database.
                waits = f"refused: {other.id} is {other.state} on this database: settle it first"
                await self._say(deployment, evidence, decision, waits)
                return False
        try:
            plan = await self._plan(deployment, evidence, decision, guarded)
        except RollbackdError as error:
            finding = GateFinding(gate=Gate.PLAN, state=GateState.REFUSED, reason=str(error))
            refused = msgspec.structs.replace(decision, gates=(finding,))
            await self._say(deployment, evidence, refused, f"refused: {error}")
            return False
        incident = deployment.incident
        gates = await permitting.judge(
            plan, guarded, self._store, self._clock, by_person=False, incident=incident
        )
        if decision.hold:
            # Standing still changes nothing: only the modes and pauses that silence automation apply.
            gates = tuple(g for g in gates if g.gate in (Gate.MODE, Gate.PAUSE))
        decision = msgspec.structs.replace(decision, gates=gates)
        if verdict(gates) is GateState.REFUSED:
            because = "; ".join(f.reason for f in gates if f.state is GateState.REFUSED)
            await self._say(deployment, evidence, decision, f"refused: {because}")
            return False
        incident = await self._runs.incident_for(guarded, incident, reason, OURSELVES)
        stored = await self._say(deployment, evidence, decision, "acting")
        try:
            run = await self._runs.ask_for(
                plan,
                gates,
                trigger=AUTOMATIC,
                requested_by=OURSELVES,
                reason=reason,
                incident=incident,
                deployment=deployment.id,
                decision=stored.id,
            )
        except RollbackdError as error:
            await self._store.save_decision(msgspec.structs.replace(stored, outcome=f"refused: {error}"))
            return False
        await self._store.save_decision(msgspec.structs.replace(stored, outcome="run", run=run.id))
        await self.deployments.change(deployment.id, lambda d: msgspec.structs.replace(d, incident=incident))
        return False

    async def _plan(
        self, deployment: Deployment, evidence: Evidence, decision: Decision, guarded: Guarded
    ) -> Plan:
        planner = self._planners[guarded.name]
        if decision.hold:
            before = evidence.heads_before or ()
            statement = (
                f"{decision.reasons['migration']}. Neither the old nor the new release fits this schema; rollbackd does nothing"
                f" more. The downgrade's statements are in the plan: bring the schema to {heads_text(before)} by hand, then"
                " resume; it is looked at again"
            )
            return await planner.hold(before, statement, deployment.scripts_sha256)
        if decision.action is Action.REDEPLOY_ONLY:
            return await planner.redeploy(
                release_from=deployment.version, release_to=deployment.previous_version
            )
        restores = decision.action is Action.ROLL_BACK_AND_RESTORE
        plan = await planner.downgrade(
            evidence.heads_before or (),
            release_from=deployment.version,
            release_to=deployment.previous_version,
            kept_scripts=deployment.scripts_sha256,
            wants_downgrade=restores,
        )
        if not restores:
            return plan
        graph, _, heads = await planner.graph(deployment.scripts_sha256)
        recovery = await recovery_of(guarded, self._store, deployment, graph, heads)
        return with_recovery(
            plan, recovery, brings_back=guarded.settings.brings_back, times=guarded.plan_times()
        )

    async def _say(
        self, deployment: Deployment, evidence: Evidence, decision: Decision, outcome: str
    ) -> StoredDecision:
        """Record and announce a decision; the very same one is said once."""
        stored = StoredDecision(
            id=self._clock.new_id("decision"),
            target=deployment.target,
            deployment=deployment.id,
            at=self._clock.now(),
            decision=decision,
            inputs_json=msgspec.json.encode(evidence, order="deterministic"),
            outcome=outcome,
        )
        # That a loss turns out to be the migration's doing, or not to be, is news under the same row.
        signature = f"{decision.row}\0{decision.facts.data}\0{outcome}".encode()
        said = self._said.get(deployment.id)
        if said is not None and said[0] == signature:
            return said[1]
        await self._store.save_decision(stored)
        self._said[deployment.id] = (signature, stored)
        if decision.facts.performance in SLOW or _asks_a_person(decision):
            self._investigations.begin(deployment, stored)
        guarded = self._guarded[deployment.target]
        self._happenings.tell(
            "decision_made",
            decision=stored.id,
            target=deployment.target,
            environment=guarded.settings.environment,
            row=decision.row,
            action=str(decision.action),
            outcome=outcome,
        )
        if decision.action is not Action.KEEP:
            fields: dict[str, object] = {
                "decision": stored.id,
                "target": deployment.target,
                "action": str(decision.action),
                "row": decision.row,
                "why": decision.why,
                "reasons": decision.reasons,
                "outcome": outcome,
                "next_steps": list(decision.next_steps),
            }
            await self._announcer.announce("decision_made", fields)
        if _asks_a_person(decision):
            await self._runs.incident_for(
                guarded, deployment.incident, f"{decision.row}: {decision.why}", OURSELVES
            )
        return stored

    async def _open_investigation(self, deployment: Deployment, stored: StoredDecision) -> None:
        """It became slow: from now on there is a deadline."""
        policy = self._guarded[deployment.target].settings.policy
        opened = Investigating(
            decision=stored.id, since=stored.at, until=stored.at + timedelta(seconds=policy.investigate_for)
        )
        await self.deployments.change(
            deployment.id, lambda d: msgspec.structs.replace(d, investigating=opened)
        )

    async def _clear(self, deployment: Deployment, investigating: Investigating, now: datetime) -> None:
        """It is no longer slow. Should it become so again, that is news."""
        await self.deployments.change(deployment.id, lambda d: msgspec.structs.replace(d, investigating=None))
        self._said.pop(deployment.id, None)
        fields: dict[str, object] = {
            "decision": investigating.decision,
            "deployment": deployment.id,
            "target": deployment.target,
            "seconds": (now - investigating.since).total_seconds(),
        }
        self._happenings.tell("investigation_cleared", **fields)
        await self._announcer.announce("investigation_cleared", fields)

    async def _has_run(self, deployment: Deployment) -> bool:
        return await self._newest_run(deployment) is not None

    async def _newest_run(self, deployment: Deployment) -> Run | None:
        """The run that this deployment's fate hangs on: unfinished, ours, or one by hand that brought it back."""
        for run in await self._store.runs(deployment.target, 20):
            by_hand_in_vain = run.trigger == MANUAL and run.state in FINISHED - {RunState.SUCCEEDED}
            if run.deployment == deployment.id and not by_hand_in_vain:
                return run
        return None

    async def _end_with_its_run(self, deployment: Deployment) -> bool:
        newest = await self._newest_run(deployment)
        assert newest is not None, "asked for only where there is one"
        if newest.state in UNFINISHED:
            return False
        held = newest.plan.way_back is WayBack.HOLD and newest.state is RunState.SUCCEEDED
        await self._end(
            deployment, "abandoned" if held else ENDED_BY_RUN[newest.state], asked_at=newest.created_at
        )
        return True

    def forget(self, deployment_id: str) -> None:
        """A deployment is over: nothing has to be remembered of it."""
        self._matching.pop(deployment_id, None)
        self._said.pop(deployment_id, None)

    async def _end(self, deployment: Deployment, outcome: str, asked_at: datetime | None = None) -> None:
        """End it; `asked_at` is when somebody asked for the run that ended it."""
        self.forget(deployment.id)
        known = await self._store.deployment(deployment.id)
        if known is None or known.ended_at is not None:
            # Superseded while this was decided: it has its outcome.
            return
        now = self._clock.now()
        await self.deployments.change(
            deployment.id,
            lambda d: (
                msgspec.structs.replace(d, ended_at=now, outcome=outcome, investigating=None)
                if d.ended_at is None
                else d
            ),
        )
        guarded = self._guarded[deployment.target]
        self._happenings.tell(
            "deployment_ended",
            deployment=deployment.id,
            target=deployment.target,
            environment=guarded.settings.environment,
            outcome=outcome,
            lead_s=_lead_s(known, now) if outcome == KEPT else None,
            restore_s=_restore_s(known, now, asked_at) if outcome == ROLLED_BACK else None,
        )
        try:
            await document_state(guarded, self._store, self._clock)
        except RollbackdError as error:
            self._happenings.tell("documenting_failed", target=deployment.target, error=str(error))


def _lead_s(deployment: Deployment, ended_at: datetime) -> float | None:
    """Seconds from the commit until the release ran; None where nobody said when it was committed."""
    if deployment.committed_at is None:
        return None
    ran_at = deployment.succeeded_at or ended_at
    return max((ran_at - deployment.committed_at).total_seconds(), 0.0)


def _restore_s(deployment: Deployment, ended_at: datetime, asked_at: datetime | None) -> float | None:
    """Seconds from the failure, as far as it was seen, or else from when the rollback was asked for."""
    since = deployment.failing_since or asked_at
    return max((ended_at - since).total_seconds(), 0.0) if since is not None else None


def _asks_a_person(decision: Decision) -> bool:
    return decision.action is Action.INVESTIGATE and not decision.hold


def _is_investigated(decision: Decision) -> bool:
    """Whether it has a deadline: what is slow may pass or become worse, other things wait for a person however long."""
    return _asks_a_person(decision) and decision.facts.performance in SLOW


def _recorded(deployment: Deployment, decision: Decision, now: datetime) -> str:
    """What came of a decision that nothing is done about. What is still slow at the end of its investigation asks a person."""
    investigating = deployment.investigating
    if not _is_investigated(decision) or investigating is None or now < investigating.until:
        return "recorded"
    return f"escalated: still so when its investigation ended at {investigating.until:%H:%M:%S} UTC; a person has to decide"
