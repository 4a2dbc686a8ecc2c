"""The course of a run: where each step stands by the journal, and what of its time was waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rollbackd.core.course import StepStands, course_of
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.planning.steps import BackUp, Confirm, ValidateBefore
from rollbackd.core.records import StepRecord
from rollbackd.core.run import StepPhase

BEGAN = datetime(2026, 11, 22, 10, tzinfo=UTC)
INTENT, DONE, FAILED, HELD, UNDONE = (
    StepPhase.INTENT,
    StepPhase.DONE,
    StepPhase.FAILED,
    StepPhase.HELD,
    StepPhase.UNDONE,
)
PLAN = Plan(
    target="shop",
    way_back=WayBack.STOP_WRITES,
    from_heads=("b",),
    to_heads=("a",),
    revisions=(),
    loses=(),
    lossy_tables=(),
    blockers=(),
    warnings=(),
    release_from="2",
    release_to="1",
    scripts_sha256="",
    steps=(
        ValidateBefore(timeout_s=1, from_heads=("b",)),
        BackUp(timeout_s=1, reuse_within_s=0),
        Confirm(timeout_s=1, heads=("a",), for_s=5),
    ),
)


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def record(step: int, phase: StepPhase, moment_s: float, *, attempt: int = 1, **evidence: Any) -> StepRecord:
    return StepRecord(
        run="run-1", step=step, attempt=attempt, phase=phase, at=at(moment_s), evidence=evidence
    )


def test_a_run_that_has_not_begun_has_every_step_ahead() -> None:
    """With its text, and no time."""
    course = course_of(PLAN, [])
    assert [step.stands for step in course] == [StepStands.NOT_BEGUN] * 3
    assert course[1].text == "back up the whole database"
    assert (course[1].took_s(at(99)), course[1].waited_s(at(99))) == (0.0, 0.0)


def test_what_is_under_way_has_no_end_and_takes_until_now() -> None:
    """The step before it is done."""
    first, second, third = course_of(PLAN, [record(0, INTENT, 0), record(0, DONE, 2), record(1, INTENT, 2)])
    assert (first.stands, first.took_s(at(60)), first.attempts) == (StepStands.DONE, 2.0, 1)
    assert (second.stands, second.ended_at, second.took_s(at(12))) == (StepStands.UNDER_WAY, None, 10.0)
    assert third.stands is StepStands.NOT_BEGUN


def test_the_time_between_attempts_is_waiting_and_the_attempts_are_work() -> None:
    """Failed after 3 s, tried again 7 s later, done 5 s after that."""
    journal = [
        record(1, INTENT, 0),
        record(1, FAILED, 3, error="locked"),
        record(1, INTENT, 10, attempt=2),
        record(1, DONE, 15, attempt=2),
    ]
    step = course_of(PLAN, journal)[1]
    assert (step.took_s(at(99)), step.waited_s(at(99)), step.attempts) == (15.0, 7.0, 2)
    assert step.note == ""


def test_a_hold_that_was_resumed_was_waiting() -> None:
    """From the hold to the next intent."""
    journal = [record(1, INTENT, 0), record(1, HELD, 1), record(1, INTENT, 61), record(1, DONE, 62)]
    assert course_of(PLAN, journal)[1].waited_s(at(99)) == 60.0


def test_a_step_that_does_nothing_but_wait_waited_all_along() -> None:
    """Such as watching the version table."""
    step = course_of(PLAN, [record(2, INTENT, 0)])[2]
    assert step.waits
    assert step.waited_s(at(4)) == 4.0


@pytest.mark.parametrize(
    ("phase", "evidence", "note"),
    [
        (FAILED, {"error": "no space left"}, "no space left"),
        (HELD, {"statement": "neither old nor new"}, "neither old nor new"),
        (DONE, {"reused": True, "backup": "backup-1"}, "took over backup-1"),
        (DONE, {"found": True}, "was found done"),
        (UNDONE, {"because": "the run was interrupted"}, ""),
    ],
)
def test_the_last_record_says_what_a_person_should_know(
    phase: StepPhase, evidence: dict[str, Any], note: str
) -> None:
    """An error, a statement, or that nothing had to be done."""
    step = course_of(PLAN, [record(1, INTENT, 0), record(1, phase, 1, **evidence)])[1]
    assert (step.stands, step.note) == (StepStands(phase.value), note)
