"""What would have changed the answer: one fact, or one gate, at a time."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest
from tests.core.test_matrix import facts

from rollbackd.core.facts import FACT_VALUES, Facts, every_combination
from rollbackd.core.gates import Gate, GateFinding, GateState
from rollbackd.core.matrix import Action, Matrix, load_matrix
from rollbackd.core.what_if import OneGate, gate_way, nearest_turns

SHIPPED = Path(__file__).parents[2] / "config" / "decision-matrix.toml"
MET, OPENS, PERSON, REFUSED = GateState.MET, GateState.OPENS, GateState.NEEDS_PERSON, GateState.REFUSED


@pytest.fixture(scope="module")
def shipped() -> Matrix:
    return load_matrix(tomllib.loads(SHIPPED.read_text()), str(SHIPPED))


def found(**states: GateState) -> tuple[GateFinding, ...]:
    return tuple(GateFinding(gate=Gate(name), state=state, reason="why") for name, state in states.items())


# -- facts -------------------------------------------------------------------------------------------------------------


def test_a_release_that_fails_after_a_good_migration_would_be_kept_if_it_were_healthy(
    shipped: Matrix,
) -> None:
    """The fact that the decision hangs on turns it; those that no row asks for then don't."""
    turns = nearest_turns(shipped, facts(application="failing"))
    application = turns["application"]
    assert application is not None
    assert (application.value, application.action, application.row) == (
        "healthy",
        Action.KEEP,
        "still-watching",
    )
    assert turns["errors"] is None
    assert turns["watch"] is None


def test_a_value_that_leads_to_another_action_comes_before_a_nearer_one_that_leads_to_another_row(
    shipped: Matrix,
) -> None:
    """Slowness: degraded is nearer and another action; of a healthy release at the end only another row is left."""
    slow = nearest_turns(shipped, facts(performance="critical"))["performance"]
    assert slow is not None
    assert (slow.value, slow.action) == ("degraded", Action.INVESTIGATE)
    over = nearest_turns(shipped, facts(watch="over"))["watch"]
    assert over is not None
    assert (over.value, over.action, over.row) == ("baking", Action.KEEP, "still-watching")


def test_of_two_values_that_are_as_near_the_earlier_one_is_told() -> None:
    """`degraded` has a neighbour on each side, and both would turn it."""
    matrix = load_matrix(
        {
            "row": [
                {"name": "slow", "action": "investigate", "why": "w", "when": {"performance": "degraded"}},
                {"name": "worst", "action": "fix_forward", "why": "w", "when": {"performance": "critical"}},
                {"name": "rest", "action": "keep", "why": "w"},
            ]
        },
        "m.toml",
    )
    turn = nearest_turns(matrix, facts(performance="degraded"))["performance"]
    assert turn is not None
    assert turn.value == "normal"


def test_every_turn_is_what_the_matrix_says_and_none_means_that_no_value_changes_anything(
    shipped: Matrix,
) -> None:
    """Over every 17th of the 2,016 combinations, each value of each fact tried by hand."""
    for now in every_combination()[::17]:
        row = shipped.first_match(now)
        for fact, turn in nearest_turns(shipped, now).items():
            others = {
                value: shipped.first_match(msgspec.convert({**msgspec.to_builtins(now), fact: value}, Facts))
                for value in FACT_VALUES[fact]
                if value != getattr(now, fact)
            }
            if turn is None:
                assert {other.name for other in others.values()} <= {row.name}
                continue
            assert others[turn.value].name == turn.row != row.name
            if turn.action is row.action:
                assert {other.action for other in others.values()} == {row.action}


# -- gates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "verdict", "in_the_way", "single"),
    [
        ({"mode": MET, "backup": OPENS}, MET, [], []),
        ({"mode": REFUSED, "backup": OPENS}, REFUSED, ["mode"], [("mode", MET)]),
        # Two that refuse: neither helps alone.
        ({"mode": REFUSED, "pause": REFUSED}, REFUSED, ["mode", "pause"], []),
        # One that refuses, and then somebody would have been asked.
        ({"approval": PERSON, "plan": REFUSED}, REFUSED, ["plan", "approval"], [("plan", PERSON)]),
        ({"approval": PERSON}, PERSON, ["approval"], [("approval", MET)]),
        ({"approval": PERSON, "lock": PERSON}, PERSON, ["approval", "lock"], []),
    ],
    ids=["none in the way", "one refuses", "two refuse", "refused, then asked", "one asks", "two ask"],
)
def test_a_single_gate_is_named_where_it_would_have_brought_the_run_a_stage_further(
    states: dict[str, GateState],
    verdict: GateState,
    in_the_way: list[str],
    single: list[tuple[str, GateState]],
) -> None:
    """Refused, then asking a person, then going ahead."""
    way = gate_way(found(**states))
    assert way.verdict is verdict
    assert [finding.gate for finding in way.in_the_way] == in_the_way
    assert way.single == tuple(OneGate(gate=Gate(gate), leads_to=leads_to) for gate, leads_to in single)
