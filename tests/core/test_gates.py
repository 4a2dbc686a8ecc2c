"""Gates: every state of every gate, and what they amount to together."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rollbackd.core.gates import (
    Ask,
    DataLossPolicy,
    Freeze,
    Gate,
    GateFinding,
    GatePolicy,
    GateState,
    Mode,
    PastRun,
    Pause,
    judge_gates,
    verdict,
)

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
G, S = Gate, GateState


def ago(**amount: float) -> datetime:
    return NOW - timedelta(**amount)


def policy(**changed: Any) -> GatePolicy:
    usual: dict[str, Any] = {
        "mode": Mode.AUTOMATIC,
        "approval_required": False,
        "incident_required": False,
        "data_loss": DataLossPolicy.ARCHIVED,
        "backup_level": 3,
        "cool_down_s": 1800.0,
        "max_rollbacks_a_day": 3,
    }
    return GatePolicy(**(usual | changed))


def ask(**changed: Any) -> Ask:
    usual: dict[str, Any] = {
        "by_person": False,
        "blockers": (),
        "loses_data": (),
        "loss_is_archived": True,
        "rehearsed": "with every row",
        "lock_s": 0.1,
        "from_heads": ("b", "c"),
        "downgrades": True,
        "stops_writes": True,
        "backup_reachable_level": 4,
        "incident": "INC-1",
    }
    return Ask(**(usual | changed))


def past(**changed: Any) -> PastRun:
    usual: dict[str, Any] = {
        "run": "run-1",
        "created_at": ago(hours=12),
        "trigger": "automatic",
        "rolled_back_from": ("x",),
        "succeeded": True,
    }
    return PastRun(**(usual | changed))


def pause(**changed: Any) -> Pause:
    return Pause(**({"target": "*", "who": "ann", "why": "load test", "since": ago(hours=1)} | changed))


def freeze(since: datetime, until: datetime) -> Freeze:
    return Freeze(since=since, until=until, why="sales day")


LOSS = {"loses_data": ("every row of t",)}
SECOND = {"past_runs": (past(rolled_back_from=("c", "b")),)}


@pytest.mark.parametrize(
    ("gate", "of_policy", "of_ask", "state", "says"),
    [
        (G.MODE, {}, {}, S.MET, "mode is automatic"),
        (G.MODE, {"mode": Mode.SHADOW}, {}, S.REFUSED, "in shadow"),
        (G.MODE, {"mode": Mode.APPROVAL}, {}, S.MET, "mode is approval"),
        # Shadow binds rollbackd, not a person.
        (G.MODE, {"mode": Mode.SHADOW}, {"by_person": True}, S.MET, "by a person"),
        (G.PAUSE, {}, {}, S.MET, "isn't paused"),
        (
            G.PAUSE,
            {},
            {"pauses": (pause(),)},
            S.REFUSED,
            "ann paused automation until it is lifted: load test",
        ),
        (
            G.PAUSE,
            {},
            {"pauses": (pause(until=NOW + timedelta(hours=1)),)},
            S.REFUSED,
            "until 2026-11-22 11:00 UTC",
        ),
        # Ends to the second; a second pause beside an ended one still holds.
        (G.PAUSE, {}, {"pauses": (pause(until=NOW),)}, S.MET, "isn't paused"),
        (G.PAUSE, {}, {"pauses": (pause(until=NOW), pause(who="bob"))}, S.REFUSED, "bob"),
        (G.PAUSE, {}, {"pauses": (pause(),), "by_person": True}, S.MET, "stops automation only"),
        (G.FREEZE, {}, {}, S.MET, "no freeze"),
        (G.FREEZE, {}, {"freezes": (freeze(NOW, NOW + timedelta(hours=1)),)}, S.NEEDS_PERSON, "sales day"),
        (G.FREEZE, {}, {"freezes": (freeze(ago(hours=1), NOW),)}, S.MET, "no freeze"),
        (
            G.FREEZE,
            {},
            {"freezes": (freeze(NOW + timedelta(seconds=1), NOW + timedelta(hours=1)),)},
            S.MET,
            "no freeze",
        ),
        (G.PLAN, {}, {}, S.MET, "nothing in the plan"),
        # A fault of the plan isn't lifted by a person either.
        (
            G.PLAN,
            {},
            {"blockers": ("x is irreversible", "y too"), "by_person": True},
            S.REFUSED,
            "x is irreversible; y too",
        ),
        (G.BACKUP, {}, {"backup_reachable_level": 3}, S.OPENS, "proved to L3"),
        (
            G.BACKUP,
            {},
            {"backup_reachable_level": 2, "by_person": True},
            S.REFUSED,
            "asks for a backup of L3; this configuration reaches L2",
        ),
        (G.DATA_LOSS, {}, {}, S.MET, "destroys no rows"),
        (
            G.DATA_LOSS,
            {},
            LOSS,
            S.OPENS,
            "every row of t; archived first, in the same transaction",
        ),
        (
            G.DATA_LOSS,
            {},
            LOSS | {"loss_is_archived": False},
            S.NEEDS_PERSON,
            "not all of it is known well enough to be archived",
        ),
        # A person's word doesn't make it known; it is asked for all the same.
        (
            G.DATA_LOSS,
            {},
            LOSS | {"loss_is_archived": False, "by_person": True},
            S.NEEDS_PERSON,
            "needs a rehearsal that passes",
        ),
        (
            G.DATA_LOSS,
            {"data_loss": DataLossPolicy.REFUSE},
            LOSS | {"loss_is_archived": False},
            S.REFUSED,
            "refuses any loss",
        ),
        (G.DATA_LOSS, {"data_loss": DataLossPolicy.ASK}, LOSS, S.NEEDS_PERSON, "asks a person"),
        (
            G.DATA_LOSS,
            {"data_loss": DataLossPolicy.REFUSE},
            LOSS | {"by_person": True},
            S.REFUSED,
            "refuses any loss",
        ),
        (G.REHEARSAL, {}, {}, S.MET, "rehearsed on scratch, with every row: it passed"),
        (
            G.REHEARSAL,
            {},
            {"rehearsed": "", "not_rehearsed_because": "no scratch"},
            S.NEEDS_PERSON,
            "isn't rehearsed (no scratch): a person must answer for it",
        ),
        (G.LOCK, {}, {}, S.MET, "about 0.1 s of lock; the policy's budget is 5 s"),
        # Whoever is stopped waits for no lock.
        (G.LOCK, {}, {"lock_s": 60.0}, S.MET, "the application is stopped"),
        (G.LOCK, {}, {"lock_s": -1.0}, S.MET, "nobody knows how long"),
        (G.LOCK, {}, {"lock_s": 5.0, "stops_writes": False}, S.MET, "about 5.0 s"),
        (G.LOCK, {}, {"lock_s": 5.1, "stops_writes": False}, S.NEEDS_PERSON, "about 5.1 s"),
        (G.LOCK, {"lock_budget_s": 6.0}, {"lock_s": 5.1, "stops_writes": False}, S.MET, "budget is 6 s"),
        (G.LOCK, {}, {"lock_s": 5.1, "stops_writes": False, "drains": True}, S.NEEDS_PERSON, "5.1 s"),
        (G.LOCK, {}, {"lock_s": -1.0, "stops_writes": False}, S.NEEDS_PERSON, "nobody knows how long"),
        (G.WRITES, {}, {}, S.OPENS, "stops the application"),
        (G.WRITES, {}, {"stops_writes": False, "drains": True}, S.OPENS, "the new one is drained"),
        (G.WRITES, {}, {"stops_writes": False}, S.NEEDS_PERSON, "a person must say that nothing writes"),
        (G.INCIDENT, {}, {}, S.MET, "incident INC-1"),
        (G.INCIDENT, {}, {"incident": ""}, S.MET, "needs none"),
        # Automation in production is possible, and never without a record.
        (G.INCIDENT, {"incident_required": True}, {"incident": ""}, S.OPENS, "opens its own record"),
        (G.ONCE, {}, {}, S.MET, "first automatic action"),
        (G.ONCE, {}, SECOND, S.NEEDS_PERSON, "run-1 rolled this revision back already"),
        (G.ONCE, {}, SECOND | {"by_person": True}, S.MET, "first automatic"),
        (G.ONCE, {}, SECOND | {"downgrades": False}, S.MET, "first automatic"),
        # Another revision, and a person's run.
        (G.ONCE, {}, {"past_runs": (past(rolled_back_from=("b",)),)}, S.MET, "first automatic"),
        (
            G.ONCE,
            {},
            {"past_runs": (past(rolled_back_from=("b", "c"), trigger="person"),)},
            S.MET,
            "first automatic",
        ),
        (G.COOL_DOWN, {}, {}, S.MET, "no other run"),
        (
            G.COOL_DOWN,
            {},
            {"past_runs": (past(created_at=ago(minutes=29)),)},
            S.NEEDS_PERSON,
            "less than 1800 s ago",
        ),
        (G.COOL_DOWN, {}, {"past_runs": (past(created_at=ago(minutes=30)),)}, S.MET, "no other run"),
        (
            G.COOL_DOWN,
            {},
            {"past_runs": (past(created_at=ago(minutes=1)),), "by_person": True},
            S.MET,
            "no other run",
        ),
        (G.BREAKER, {}, {"past_runs": (past(),) * 2}, S.MET, "2 of 3 runs"),
        (
            G.BREAKER,
            {},
            {"past_runs": (past(),) * 3},
            S.NEEDS_PERSON,
            "3 runs in 24 hours; the breaker opens at 3",
        ),
        (G.BREAKER, {}, {"past_runs": (past(created_at=ago(days=1)),) * 3}, S.MET, "0 of 3 runs"),
        (G.BREAKER, {}, {"past_runs": (past(),) * 3, "by_person": True}, S.MET, "3 of 3 runs"),
        (G.APPROVAL, {}, {}, S.MET, "asks for none"),
        (G.APPROVAL, {"mode": Mode.APPROVAL}, {}, S.NEEDS_PERSON, "mode is approval"),
        (G.APPROVAL, {"mode": Mode.APPROVAL}, {"by_person": True}, S.MET, "asks for none"),
        # Four eyes hold for a person too.
        (
            G.APPROVAL,
            {"approval_required": True},
            {"by_person": True},
            S.NEEDS_PERSON,
            "somebody else than who asked",
        ),
    ],
)
def test_each_gate_says_its_state_and_why(
    gate: Gate, of_policy: dict[str, Any], of_ask: dict[str, Any], state: GateState, says: str
) -> None:
    findings = judge_gates(policy(**of_policy), ask(**of_ask), NOW)
    (found,) = [f for f in findings if f.gate is gate]
    assert found.state is state
    assert says in found.reason


def test_every_gate_is_reported_once_met_or_not() -> None:
    gates = [f.gate for f in judge_gates(policy(), ask(), NOW)]
    assert sorted(gates) == sorted(Gate)


def test_what_does_not_downgrade_needs_no_backup_no_rehearsal_and_no_stop() -> None:
    gates = {f.gate for f in judge_gates(policy(), ask(downgrades=False), NOW)}
    assert set(Gate) - gates == {G.REHEARSAL, G.BACKUP, G.DATA_LOSS, G.LOCK, G.WRITES}


@pytest.mark.parametrize("states", list(itertools.combinations_with_replacement(GateState, 3)))
def test_the_worst_state_wins(states: tuple[GateState, ...]) -> None:
    findings = tuple(GateFinding(gate=G.MODE, state=s, reason="r") for s in states)
    expected = S.REFUSED if S.REFUSED in states else S.NEEDS_PERSON if S.NEEDS_PERSON in states else S.MET
    assert verdict(findings) is expected


def test_an_automatic_rollback_with_a_rehearsal_a_declared_stop_and_a_backup_goes_ahead() -> None:
    assert verdict(judge_gates(policy(), ask(**LOSS), NOW)) is S.MET


def test_an_automatic_rollback_that_drains_goes_ahead_as_well() -> None:
    drained = ask(**LOSS, stops_writes=False, drains=True)
    assert verdict(judge_gates(policy(), drained, NOW)) is S.MET


@pytest.mark.parametrize(
    "lacking",
    [
        {"rehearsed": "", "not_rehearsed_because": "no scratch"},
        LOSS | {"loss_is_archived": False},
        {"lock_s": 6.0, "stops_writes": False, "drains": True},
        {"stops_writes": False},
    ],
)
def test_whatever_is_not_known_beforehand_is_for_a_person(lacking: dict[str, Any]) -> None:
    assert verdict(judge_gates(policy(), ask(**lacking), NOW)) is S.NEEDS_PERSON
