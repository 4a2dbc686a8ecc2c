"""What would have changed the answer: one fact at a time through the matrix, one gate at a time through the gates."""

import msgspec

from rollbackd.core.facts import FACT_VALUES, Facts
from rollbackd.core.gates import Gate, GateFinding, GateState, verdict
from rollbackd.core.matrix import Action, Matrix, Row


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One fact with another value, all others as they were, and what the matrix says then."""

    fact: str
    value: str
    row: str
    action: Action
    at_once: bool


class OneGate(msgspec.Struct, frozen=True, kw_only=True):
    """A gate that is in the way alone, and what comes when it is met.

    `leads_to` is `met` where the run would then go ahead by itself, `needs_person` where it would then ask for approval.
    """

    gate: Gate
    leads_to: GateState


class GateWay(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between a decision and its run: the gates in the way, worst first, and each that would do by itself."""

    verdict: GateState
    in_the_way: tuple[GateFinding, ...]
    single: tuple[OneGate, ...]


def nearest_turns(matrix: Matrix, facts: Facts) -> dict[str, Turn | None]:
    """For each fact the nearest other value that leads to another action, or else to another row; None where none does.

    Near is by the order in which `core/facts.py` lists a fact's values, the earlier one first where two are as near.
    """
    now = matrix.first_match(facts)
    return {fact: _nearest(matrix, facts, fact, now) for fact in FACT_VALUES}


def gate_way(findings: tuple[GateFinding, ...]) -> GateWay:
    """Which gates are in the way, and which of them, met alone, would bring the run a stage further.

    A stage is refused, then asking a person, then going ahead: where two gates refuse, no single one helps.
    """
    whole = verdict(findings)
    worst_first = (GateState.REFUSED, GateState.NEEDS_PERSON)
    in_the_way = tuple(f for state in worst_first for f in findings if f.state is state)
    single = tuple(
        OneGate(gate=finding.gate, leads_to=without)
        for finding in in_the_way
        if (without := verdict(tuple(f for f in findings if f is not finding))) is not whole
    )
    return GateWay(verdict=whole, in_the_way=in_the_way, single=single)


def _nearest(matrix: Matrix, facts: Facts, fact: str, now: Row) -> Turn | None:
    values = FACT_VALUES[fact]
    stands = values.index(getattr(facts, fact))
    # sorted() is stable, so of two values that are as near the earlier one comes first.
    others = sorted((v for v in values if v != values[stands]), key=lambda v: abs(values.index(v) - stands))
    turns = [_turned(matrix, facts, fact, value) for value in others]
    other_action = next((turn for turn in turns if turn.action is not now.action), None)
    return other_action or next((turn for turn in turns if turn.row != now.name), None)


def _turned(matrix: Matrix, facts: Facts, fact: str, value: str) -> Turn:
    turned = msgspec.convert({**msgspec.to_builtins(facts), fact: value}, Facts)
    row = matrix.first_match(turned)
    return Turn(fact=fact, value=value, row=row.name, action=row.action, at_once=row.at_once)
