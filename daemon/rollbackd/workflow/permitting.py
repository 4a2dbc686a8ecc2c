"""Asking the gates: gathers what they read (plan, policy, pauses, freezes, past runs) and lets the core judge."""

from datetime import datetime, timedelta

from rollbackd.core.gates import Ask, Freeze, Gate, GateFinding, GateState, PastRun, judge_gates
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.run import FINISHED, RunState
from rollbackd.core.verdicts import Verdict
from rollbackd.ports import Clock, Store
from rollbackd.workflow.guarded import Guarded


async def judge(
    plan: Plan, guarded: Guarded, store: Store, clock: Clock, *, by_person: bool, incident: str
) -> tuple[GateFinding, ...]:
    """Judge every gate for this plan, now."""
    now = clock.now()
    runs = [run for run in await store.runs(guarded.name, 50) if run.created_at > now - timedelta(days=2)]
    counted = [
        run
        for run in runs
        if run.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.ABANDONED, RunState.HELD)
    ]
    pauses = [p for p in await store.pauses() if p.target in ("*", guarded.name)]
    ask = Ask(
        by_person=by_person,
        blockers=plan.blockers,
        loses_data=plan.loses,
        loss_is_archived=plan.verdict in (Verdict.REVERSIBLE, Verdict.LOSES_DATA),
        from_heads=plan.from_heads,
        downgrades=plan.downgrades,
        stops_writes=plan.stops_writes,
        drains=plan.way_back is WayBack.RELEASE_FIRST,
        rehearsed=_rehearsed(plan),
        not_rehearsed_because=plan.rehearsed.unknown or plan.rehearsed.failure,
        lock_s=plan.estimate.lock_s,
        backup_reachable_level=guarded.backups.reachable_level(),
        incident=incident,
        pauses=tuple(pauses),
        freezes=tuple(
            Freeze(since=datetime.fromisoformat(f.since), until=datetime.fromisoformat(f.until), why=f.why)
            for f in guarded.settings.policy.freeze
        ),
        past_runs=tuple(
            PastRun(
                run=run.id,
                created_at=run.created_at,
                trigger=run.trigger,
                rolled_back_from=run.plan.from_heads,
                succeeded=run.state is RunState.SUCCEEDED,
            )
            for run in reversed(counted)
            if run.state in FINISHED or run.state is RunState.HELD
        ),
    )
    findings = judge_gates(guarded.gate_policy(), ask, now)
    if _approved_in_advance(plan, guarded):
        findings = tuple(_waive(finding) for finding in findings)
    return findings


def _rehearsed(plan: Plan) -> str:
    """With what it was rehearsed; empty where it wasn't, or didn't pass."""
    if not plan.rehearsed.passed:
        return ""
    return {
        "schema": "on the schema alone",
        "sample": f"with a sample of {plan.rehearsed.rows:,} rows",
        "full": "with every row",
    }[plan.rehearsed.depth]


def _approved_in_advance(plan: Plan, guarded: Guarded) -> bool:
    """The class that a policy may approve beforehand: rehearsed, nothing is lost, and locks last less than a second."""
    harmless = plan.verdict is Verdict.REVERSIBLE and not plan.loses
    quick = not plan.downgrades or (plan.rehearsed.passed and 0 <= plan.estimate.lock_s < 1)
    return guarded.settings.policy.approve_in_advance and harmless and quick


def _waive(finding: GateFinding) -> GateFinding:
    if finding.gate is not Gate.APPROVAL or finding.state is not GateState.NEEDS_PERSON:
        return finding
    return GateFinding(
        gate=finding.gate, state=GateState.MET, reason="approved in advance: rehearsed, and nothing is lost"
    )
