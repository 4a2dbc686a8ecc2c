"""What happened when, from the deploy to the end of its run: the facts behind the picture in the report. Times are UTC."""

from datetime import datetime
from itertools import zip_longest

import msgspec

from rollbackd.core.evidence import Level, Measurement, Signal
from rollbackd.core.planning.steps import step_text
from rollbackd.core.records import Approval, Deployment, Run, StepRecord, StoredDecision
from rollbackd.core.run import StepPhase


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at once; `kind` is deploy, decision or word (a person's)."""

    at: datetime
    kind: str
    text: str


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that lasted; `kind` is release, signal, step or waiting. Without `ended_at` it goes on.

    `outcome` is a step's: done, failed, held or under way.
    """

    began_at: datetime
    ended_at: datetime | None
    kind: str
    text: str
    outcome: str = ""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One reading: `healthy` is None where it says nothing about health, `value` None where there is no number."""

    at: datetime
    healthy: bool | None
    value: float | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """The readings of one probe or query, oldest first, with what they are held against where that is a number."""

    name: str
    readings: tuple[Reading, ...]
    degraded: float | None = None
    critical: float | None = None
    baseline: float | None = None

    @property
    def is_drawn(self) -> bool:
        """Whether its numbers are held against one, and make a line; else each reading is good, bad or nothing."""
        is_judged = self.degraded is not None or self.critical is not None
        return is_judged and sum(reading.value is not None for reading in self.readings) > 1


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in one picture."""

    moments: tuple[Moment, ...] = ()
    spans: tuple[Span, ...] = ()
    series: tuple[Series, ...] = ()

    def steps(self) -> "Timeline":
        """The run alone: its steps, and who was waited for."""
        return Timeline(spans=tuple(span for span in self.spans if span.kind in ("step", "waiting")))

    def bounds(self, now: datetime) -> tuple[datetime, datetime] | None:
        """From the first to the last thing in it; None where there is none. What goes on ends `now`."""
        times = [moment.at for moment in self.moments]
        times += [reading.at for series in self.series for reading in series.readings]
        for span in self.spans:
            times += [span.began_at, span.ended_at or now]
        return (min(times), max(times)) if times else None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What a timeline is made of, as the store has it; signals and measurements are those of the deployment."""

    run: Run
    journal: tuple[StepRecord, ...] = ()
    approvals: tuple[Approval, ...] = ()
    deployment: Deployment | None = None
    decision: StoredDecision | None = None
    signals: tuple[Signal, ...] = ()
    measurements: tuple[Measurement, ...] = ()


def timeline_of(evidence: Evidence) -> Timeline:
    """The timeline of a run and of the deployment that it takes back."""
    run = evidence.run
    moments = [
        Moment(at=word.at, kind="word", text=f"{word.actor} {'approved' if word.granted else 'denied'}")
        for word in evidence.approvals
    ]
    if evidence.decision is not None:
        decision = evidence.decision
        moments.append(
            Moment(
                at=decision.at,
                kind="decision",
                text=f"{decision.decision.action} by row {decision.decision.row}",
            )
        )
    spans = [*_waiting(run, evidence.journal), *_steps(run, evidence.journal)]
    if evidence.deployment is not None:
        moments += _deploy(evidence.deployment)
    spans += [
        Span(began_at=s.started_at, ended_at=s.resolved_at, kind="signal", text=f"{s.name} ({s.severity})")
        for s in evidence.signals
        # What ended before the run, or began after it, isn't this run's story.
        if s.started_at <= (run.finished_at or s.started_at)
    ]
    return Timeline(
        moments=tuple(sorted(moments, key=lambda moment: moment.at)),
        spans=tuple(sorted(spans, key=lambda span: span.began_at)),
        series=series_of(evidence.measurements),
    )


def series_of(measurements: tuple[Measurement, ...]) -> tuple[Series, ...]:
    """The readings by probe or query, in the order in which each was first taken."""
    found: dict[str, list[Measurement]] = {}
    for one in measurements:
        found.setdefault(one.name, []).append(one)
    return tuple(_series(name, taken) for name, taken in found.items())


def _series(name: str, taken: list[Measurement]) -> Series:
    # Limits that are multiples of the value before the deploy are known once that is.
    judged = next((one for one in reversed(taken) if one.limits), taken[-1])
    return Series(
        name=name,
        readings=tuple(Reading(at=one.at, healthy=one.is_good, value=one.value) for one in taken),
        degraded=judged.limit(Level.DEGRADED),
        critical=judged.limit(Level.CRITICAL),
        baseline=judged.before,
    )


def _deploy(deployment: Deployment) -> list[Moment]:
    version = deployment.version or "a release"
    moments = [Moment(at=deployment.started_at, kind="deploy", text=f"deploy of {version} began")]
    if deployment.succeeded_at is not None:
        moments.append(Moment(at=deployment.succeeded_at, kind="deploy", text=f"{version} was deployed"))
    return moments


def _steps(run: Run, journal: tuple[StepRecord, ...]) -> list[Span]:
    """Each attempt at a step, from its intent to its outcome."""
    spans: list[Span] = []
    began: dict[int, StepRecord] = {}
    for record in journal:
        if record.phase is StepPhase.INTENT:
            began[record.step] = record
            continue
        begun = began.pop(record.step, record)
        spans.append(
            Span(
                began_at=begun.at,
                ended_at=record.at,
                kind="step",
                text=step_text(run.plan.steps[record.step]),
                outcome=str(record.phase),
            )
        )
    # A run that is over, or waits for a person, has nothing under way.
    over = run.finished_at
    spans += [
        Span(
            began_at=record.at,
            ended_at=over,
            kind="step",
            text=step_text(run.plan.steps[step]),
            outcome="under way" if over is None else "unknown",
        )
        for step, record in began.items()
    ]
    return spans


def _waiting(run: Run, journal: tuple[StepRecord, ...]) -> list[Span]:
    """When a person was waited for: at the beginning for an approval, and wherever the run was held."""
    spans = []
    if run.approval_reasons:
        ended = run.started_at or run.finished_at
        spans.append(
            Span(began_at=run.created_at, ended_at=ended, kind="waiting", text="waiting for an approval")
        )
    for held, following in zip_longest(journal, journal[1:]):
        if held.phase is StepPhase.HELD:
            ended = following.at if following is not None else run.finished_at
            spans.append(Span(began_at=held.at, ended_at=ended, kind="waiting", text="held for a person"))
    return spans
