"""The states of a run and the passages between them, as one table; and what the journal says of a step."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

import msgspec

from rollbackd.errors import RefusedError


class RunState(StrEnum):
    """Where a run stands. `held` is unfinished: a person has to settle it."""

    PLANNED = "planned"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    HELD = "held"
    DENIED = "denied"
    EXPIRED = "expired"
    ABANDONED = "abandoned"


PASSAGES: dict[RunState, frozenset[RunState]] = {
    RunState.PLANNED: frozenset({RunState.AWAITING_APPROVAL, RunState.RUNNING}),
    RunState.AWAITING_APPROVAL: frozenset({RunState.RUNNING, RunState.DENIED, RunState.EXPIRED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.HELD}),
    RunState.HELD: frozenset({RunState.RUNNING, RunState.ABANDONED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.DENIED: frozenset(),
    RunState.EXPIRED: frozenset(),
    RunState.ABANDONED: frozenset(),
}
FINISHED = frozenset(state for state, onward in PASSAGES.items() if not onward)
UNFINISHED = frozenset(RunState) - FINISHED


def check_passage(before: RunState, after: RunState) -> None:
    """Refuse a passage that the table doesn't have.

    Raises:
        RefusedError: naming where the run stands and what is possible from there.
    """
    if after not in PASSAGES[before]:
        possible = ", ".join(sorted(PASSAGES[before])) or "nothing, it is finished"
        raise RefusedError(f"the run is {before}, so it can't become {after}; from there: {possible}")


class Passage(msgspec.Struct, frozen=True, kw_only=True):
    """That a run came into a state, and when."""

    after: RunState
    at: datetime


def time_in_states(passages: Sequence[Passage]) -> dict[RunState, float]:
    """How many seconds a run spent in each state that it has left; `passages` oldest first.

    Time in `running` is the machine's, in `awaiting_approval` and `held` a person's.
    """
    spent: dict[RunState, float] = {}
    for entered, left in pairwise(passages):
        seconds = (left.at - entered.at).total_seconds()
        spent[entered.after] = spent.get(entered.after, 0.0) + max(seconds, 0.0)
    return spent


class StepPhase(StrEnum):
    """What the journal records of a step. A row is never changed: the latest one speaks."""

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    HELD = "held"
    UNDONE = "undone"


class Observation(StrEnum):
    """What a look at the world says about a step."""

    DONE = "done"
    NOT_DONE = "not_done"
    UNKNOWABLE = "unknowable"


class Next(StrEnum):
    """What the engine does with a step, given the journal and a look at the world."""

    SKIP = "skip"
    PERFORM = "perform"
    RECORD_DONE = "record_done"
    HOLD = "hold"


def next_for_step(last_phase: StepPhase | None, seen: Observation) -> Next:
    """The engine's one rule. A step with an intent and no outcome may have happened: only the world can say.

    Never PERFORM unless the world says that it did not happen.
    """
    if last_phase is StepPhase.DONE:
        return Next.SKIP
    if seen is Observation.DONE:
        return Next.RECORD_DONE
    if seen is Observation.NOT_DONE:
        return Next.PERFORM
    return Next.HOLD
