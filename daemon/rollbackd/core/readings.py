"""What a metric's values mean: reducing a range to one number, limits, and what several readings in a row amount to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from rollbackd.core.events import Category
from rollbackd.core.evidence import Level, Limit, Measurement, Quality

_WORSE = (Level.NORMAL, Level.DEGRADED, Level.CRITICAL)


class Reduction(StrEnum):
    """How the values of a range become one."""

    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    P95 = "p95"
    LAST = "last"


class MetricState(StrEnum):
    """What a run of readings amounts to."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    CRITICAL = "critical"
    UNSETTLED = "unsettled"
    NO_DATA = "no_data"


class MetricEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One metric as assessment sees it: its state now, its state before the deploy, and its newest reading in words."""

    name: str
    category: Category
    state: MetricState
    before: MetricState
    reading: str = ""

    @property
    def cannot_tell(self) -> bool:
        """Whether its readings say nothing, or not the same often enough."""
        return self.state not in _SETTLED

    def counts_as(self) -> Level | None:
        """The level that this deploy can have caused; None where the metric can't tell, or is no worse than before."""
        if self.cannot_tell:
            return None
        now = Level(self.state.value)
        was = Level(self.before.value) if self.before in _SETTLED else Level.NORMAL
        return now if now is Level.NORMAL or _WORSE.index(now) > _WORSE.index(was) else None

    def text(self) -> str:
        """As `p95 (critical): 2.31; critical above 2`."""
        said = f"{self.name} ({self.state}){': ' + self.reading if self.reading else ''}"
        if self.before is MetricState.NO_DATA and not self.cannot_tell:
            return f"{said}; what it was before the deploy isn't known"
        return said


_SETTLED = (MetricState.NORMAL, MetricState.DEGRADED, MetricState.CRITICAL)


def reduce_values(values: Sequence[float], how: Reduction) -> float | None:
    """One number of a range's values, oldest first; None where none of them is a number."""
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers:
        return None
    match how:
        case Reduction.MEAN:
            return math.fsum(numbers) / len(numbers)
        case Reduction.MAX:
            return max(numbers)
        case Reduction.MIN:
            return min(numbers)
        case Reduction.P95:
            # Nearest rank: always a value that was measured.
            return sorted(numbers)[math.ceil(0.95 * len(numbers)) - 1]
        case Reduction.LAST:
            return numbers[-1]


def limits_of(
    values: Mapping[Level, float], *, is_below: bool, at_least: float | None, before: float | None
) -> tuple[Limit, ...] | None:
    """The limits that a value is compared with: as configured, or with `before` so many times that value.

    Returns:
        The limits, or None where the value before the deploy is no measure: three times nothing is nothing, so that 0 is one
        only together with `at_least`, which no limit (above which it is bad) goes below.
    """
    if before is not None and (before < 0 or (before == 0 and at_least is None)):
        return None
    times = 1.0 if before is None else before
    return tuple(
        Limit(
            level=level,
            value=value * times if is_below else _at_least(value * times, at_least),
            is_below=is_below,
        )
        for level, value in values.items()
    )


def _at_least(value: float, least: float | None) -> float:
    return value if least is None else max(value, least)


def level_of(value: float, limits: Iterable[Limit]) -> Level:
    """The worst level whose limit is passed."""
    passed = [limit.level for limit in limits if limit.is_passed(value)]
    return max(passed, key=_WORSE.index, default=Level.NORMAL)


def judge_metric(
    readings: Sequence[Measurement], settles: int, stale_after_s: float, now: datetime
) -> MetricState:
    """Conclude from readings, oldest first: so many in a row settle it, at the mildest level among them.

    A reading that isn't ok neither counts nor breaks a row; when the newest good one is too old, nobody knows.
    """
    usable = [r for r in readings if r.quality is Quality.OK and r.level is not None]
    if not usable or now - usable[-1].at > timedelta(seconds=stale_after_s):
        return MetricState.NO_DATA
    row = [_WORSE.index(r.level) for r in usable[-settles:] if r.level is not None]
    if len(row) < settles or (min(row) == 0 and max(row) > 0):
        return MetricState.UNSETTLED
    return MetricState(_WORSE[min(row)].value)


def reading_text(reading: Measurement) -> str:
    """A metric's reading as a person reads it: the number with its limits, or why there is none."""
    number = "" if reading.value is None else f"{reading.value:.4g}"
    if reading.quality is not Quality.OK:
        return ", ".join(part for part in (str(reading.quality), number, reading.detail) if part)
    limits = ", ".join(limit.text() for limit in reading.limits)
    before = f", {reading.before:.4g} before the deploy" if reading.before is not None else ""
    return f"{number}{before}; {limits}"
