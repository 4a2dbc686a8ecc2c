"""The course of a run: where each step of its plan stands, folded from the journal, with waiting told apart from work."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from itertools import pairwise

import msgspec

from rollbackd.core.planning.plan import Plan
from rollbackd.core.planning.steps import Step, step_text
from rollbackd.core.records import StepRecord
from rollbackd.core.run import StepPhase

# Steps that do nothing but wait: for sessions to end, for probes, for a while to pass, for a person.
WAITING_KINDS = frozenset({"drain", "validate_application", "confirm", "await_person"})


class StepStands(StrEnum):
    """Where one step stands."""

    NOT_BEGUN = "not_begun"
    UNDER_WAY = "under_way"
    DONE = "done"
    FAILED = "failed"
    HELD = "held"
    UNDONE = "undone"


class StepCourse(msgspec.Struct, frozen=True, kw_only=True):
    """One step and how it went.

    `ended_at` is None while it is under way. `idle_s` is the time between one attempt's failure (or hold) and the next
    attempt; `waits` marks a step that does nothing but wait, so that all of its time is waiting.
    """

    number: int
    kind: str
    text: str
    stands: StepStands
    waits: bool
    began_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    idle_s: float = 0.0
    note: str = ""

    def took_s(self, now: datetime) -> float:
        """From its first look until it ended, or until now; 0 where it hasn't begun."""
        return 0.0 if self.began_at is None else ((self.ended_at or now) - self.began_at).total_seconds()

    def waited_s(self, now: datetime) -> float:
        """How much of that was waiting."""
        return self.took_s(now) if self.waits else self.idle_s


def course_of(plan: Plan, journal: Sequence[StepRecord]) -> tuple[StepCourse, ...]:
    """Where each step stands by a run's journal, oldest record first."""
    by_step: dict[int, list[StepRecord]] = {}
    for record in journal:
        by_step.setdefault(record.step, []).append(record)
    return tuple(_step(number, step, by_step.get(number, [])) for number, step in enumerate(plan.steps))


def _step(number: int, step: Step, records: list[StepRecord]) -> StepCourse:
    course = StepCourse(
        number=number,
        kind=step.kind,
        text=step_text(step),
        stands=StepStands.NOT_BEGUN,
        waits=step.kind in WAITING_KINDS,
    )
    if not records:
        return course
    last = records[-1]
    under_way = last.phase is StepPhase.INTENT
    return msgspec.structs.replace(
        course,
        stands=StepStands.UNDER_WAY if under_way else StepStands(last.phase.value),
        began_at=records[0].at,
        ended_at=None if under_way else last.at,
        attempts=max(record.attempt for record in records),
        idle_s=_idle_s(records),
        note=_note(last),
    )


def _idle_s(records: list[StepRecord]) -> float:
    """What lay between the end of one attempt and the start of the next."""
    return sum(
        (after.at - before.at).total_seconds()
        for before, after in pairwise(records)
        if before.phase is not StepPhase.INTENT and after.phase is StepPhase.INTENT
    )


def _note(last: StepRecord) -> str:
    """What the last record has to say for a person: a statement, an error, what was taken over or found."""
    if last.evidence.get("reused"):
        return f"took over {last.evidence['backup']}"
    if last.evidence.get("found"):
        return "was found done"
    return str(last.evidence.get("statement") or last.evidence.get("error") or "")
