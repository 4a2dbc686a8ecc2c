"""The states of a run, and that an effect happens exactly once whenever the engine is killed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from rollbackd.core.run import (
    FINISHED,
    PASSAGES,
    UNFINISHED,
    Next,
    Observation,
    Passage,
    RunState,
    StepPhase,
    check_passage,
    next_for_step,
    time_in_states,
)
from rollbackd.errors import RefusedError

S = RunState
ALLOWED = {
    (S.PLANNED, S.AWAITING_APPROVAL),
    (S.PLANNED, S.RUNNING),
    (S.AWAITING_APPROVAL, S.RUNNING),
    (S.AWAITING_APPROVAL, S.DENIED),
    (S.AWAITING_APPROVAL, S.EXPIRED),
    (S.RUNNING, S.SUCCEEDED),
    (S.RUNNING, S.FAILED),
    (S.RUNNING, S.HELD),
    (S.HELD, S.RUNNING),
    (S.HELD, S.ABANDONED),
}


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED))
def test_the_design_s_passages_are_allowed(before: RunState, after: RunState) -> None:
    check_passage(before, after)


@pytest.mark.parametrize(("before", "after"), sorted(set(itertools.product(S, S)) - ALLOWED))
def test_every_other_passage_is_refused_with_what_is_possible(before: RunState, after: RunState) -> None:
    with pytest.raises(RefusedError) as refused:
        check_passage(before, after)
    assert f"the run is {before}, so it can't become {after}" in str(refused.value)
    assert str(refused.value).endswith(", ".join(sorted(PASSAGES[before])) or "nothing, it is finished")


def test_held_is_unfinished_and_finished_states_lead_nowhere() -> None:
    assert {S.SUCCEEDED, S.FAILED, S.DENIED, S.EXPIRED, S.ABANDONED} == FINISHED
    assert {S.PLANNED, S.AWAITING_APPROVAL, S.RUNNING, S.HELD} == UNFINISHED


@pytest.mark.parametrize(
    ("journal", "seen", "does"),
    [
        # Done is done, whatever the world looks like now.
        *((StepPhase.DONE, seen, Next.SKIP) for seen in Observation),
        # The world says that it happened: never again, whatever the journal says.
        *((p, Observation.DONE, Next.RECORD_DONE) for p in [None, *StepPhase] if p is not StepPhase.DONE),
        # The world says that it didn't.
        *((p, Observation.NOT_DONE, Next.PERFORM) for p in [None, *StepPhase] if p is not StepPhase.DONE),
        # The world can't say: a person has to.
        *((p, Observation.UNKNOWABLE, Next.HOLD) for p in [None, *StepPhase] if p is not StepPhase.DONE),
    ],
)
def test_what_the_engine_does_follows_from_journal_and_world(
    journal: StepPhase | None, seen: Observation, does: Next
) -> None:
    assert next_for_step(journal, seen) is does


class Killed(Exception):
    """The process is gone."""


class World:
    """What outlives the engine: the journal and the effects; it can be told to kill the engine at its nth point."""

    def __init__(self, observable: tuple[bool, ...], kill_at: set[int]) -> None:
        self.observable = observable
        self.journal: dict[int, StepPhase] = {}
        self.effects = [0] * len(observable)
        self.points = 0
        self.kill_at = kill_at

    def point(self) -> None:
        self.points += 1
        if self.points in self.kill_at:
            raise Killed

    def look(self, step: int) -> Observation:
        if not self.observable[step]:
            # What was never begun didn't happen; of what was begun nobody can tell.
            return Observation.UNKNOWABLE if step in self.journal else Observation.NOT_DONE
        return Observation.DONE if self.effects[step] else Observation.NOT_DONE


def run_once(world: World) -> bool:
    """The engine's loop, as the design has it; whether every step is done (False: held)."""
    for step in range(len(world.observable)):
        world.point()  # before the intent
        match next_for_step(world.journal.get(step), world.look(step)):
            case Next.SKIP:
                continue
            case Next.HOLD:
                world.journal[step] = StepPhase.HELD
                return False
            case Next.PERFORM:
                world.journal[step] = StepPhase.INTENT
                world.point()  # after the intent
                world.effects[step] += 1
                world.point()  # after the effect
            case Next.RECORD_DONE:
                pass
        world.journal[step] = StepPhase.DONE
        world.point()  # after the outcome
    return True


def run_until_settled(world: World, engine: Callable[[World], bool]) -> bool:
    while True:
        try:
            return engine(world)
        except Killed:
            continue


@pytest.mark.parametrize("observable", list(itertools.product([True, False], repeat=3)))
def test_wherever_the_engine_is_killed_each_effect_happens_once_or_the_run_is_held(
    observable: tuple[bool, ...],
) -> None:
    unharmed = World(observable, set())
    assert run_until_settled(unharmed, run_once)
    held = 0
    # Killed at any one point, and at any second point after the restart.
    for first, second in itertools.combinations_with_replacement(range(1, 3 * unharmed.points), 2):
        world = World(observable, {first, second})
        done = run_until_settled(world, run_once)
        if done:
            assert world.effects == [1, 1, 1]
        else:
            held += 1
            stopped_at = next(s for s, phase in sorted(world.journal.items()) if phase is StepPhase.HELD)
            assert not observable[stopped_at], "what can be observed never needs a person"
            assert all(count <= 1 for count in world.effects)
            assert world.effects[stopped_at + 1 :] == [0] * (2 - stopped_at), (
                "nothing goes on past a held step"
            )
        if all(observable):
            assert done
    assert bool(held) == (not all(observable))


def test_the_simulation_would_notice_an_engine_that_repeats_after_an_intent() -> None:
    def careless(world: World) -> bool:
        for step in range(len(world.observable)):
            if world.journal.get(step) is not StepPhase.DONE:
                world.journal[step] = StepPhase.INTENT
                world.effects[step] += 1
                world.point()
                world.journal[step] = StepPhase.DONE
        return True

    world = World((False, False, False), {1})
    assert run_until_settled(world, careless)
    assert world.effects == [2, 1, 1]


def test_time_in_states_is_told_apart_and_added_up() -> None:
    """A run that waited for its approval, was held and resumed: the machine's time and the people's."""
    began = datetime(2026, 11, 22, 10, tzinfo=UTC)
    states = [
        (0, RunState.AWAITING_APPROVAL),
        (60, RunState.RUNNING),
        (75, RunState.HELD),
        (675, RunState.RUNNING),
        (680, RunState.SUCCEEDED),
    ]
    passages = [Passage(after=state, at=began + timedelta(seconds=s)) for s, state in states]

    assert time_in_states(passages) == {
        RunState.AWAITING_APPROVAL: 60.0,
        RunState.RUNNING: 20.0,
        RunState.HELD: 600.0,
    }
    assert time_in_states(passages[:1]) == time_in_states([]) == {}


def test_a_clock_that_was_set_back_takes_no_time_away() -> None:
    now = datetime(2026, 11, 22, 10, tzinfo=UTC)
    passages = [
        Passage(after=RunState.RUNNING, at=now),
        Passage(after=RunState.SUCCEEDED, at=now - timedelta(seconds=5)),
    ]

    assert time_in_states(passages) == {RunState.RUNNING: 0.0}
