"""Evidence: somebody else's claims (signals) and our own readings (measurements), as stored."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from rollbackd.core.events import Category, Severity


class Quality(StrEnum):
    """How good a reading is. Anything but `ok` says nothing about health."""

    OK = "ok"
    STALE = "stale"
    NO_DATA = "no_data"
    ERROR = "error"


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as last heard of; `resolved_at` is None while it fires."""

    source: str
    key: str
    name: str
    category: Category
    severity: Severity
    started_at: datetime
    resolved_at: datetime | None = None
    reason: str = ""
    url: str = ""
    delivery: str = ""

    def fires(self, now: datetime) -> bool:
        """Whether it fires at `now`; Alertmanager may announce an end that lies ahead."""
        return self.resolved_at is None or self.resolved_at > now


class Source(StrEnum):
    """Where a measurement comes from."""

    PROBE = "probe"
    PROMETHEUS = "prometheus"


class Level(StrEnum):
    """How a metric's value stands to its limits."""

    NORMAL = "normal"
    DEGRADED = "degraded"
    CRITICAL = "critical"


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """A value from which on a metric is at `level`: above `value`, or below it where `is_below`."""

    level: Level
    value: float
    is_below: bool = False

    def is_passed(self, value: float) -> bool:
        """Whether a value is beyond it."""
        return value < self.value if self.is_below else value > self.value

    def text(self) -> str:
        """As `critical above 2`."""
        return f"{self.level} {'below' if self.is_below else 'above'} {self.value:.6g}"


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of one probe or metric. `healthy` (a probe's) and `level` (a metric's) are None unless the quality is ok.

    A metric's has the query as it was asked, and the limits that its value was compared with; `before` is the value before
    the deploy, where limits are multiples of it.
    """

    name: str
    at: datetime
    quality: Quality
    source: Source = Source.PROBE
    healthy: bool | None = None
    level: Level | None = None
    value: float | None = None
    detail: str = ""
    query: str = ""
    limits: tuple[Limit, ...] = ()
    before: float | None = None

    @property
    def is_good(self) -> bool | None:
        """Whether it speaks for the release; None where it says nothing."""
        return self.healthy if self.level is None else self.level is Level.NORMAL

    def limit(self, level: Level) -> float | None:
        """The value from which on it is at that level, None where there is none."""
        return next((limit.value for limit in self.limits if limit.level is level), None)


class ProbeState(StrEnum):
    """What a run of measurements amounts to."""

    HEALTHY = "healthy"
    FAILING = "failing"
    UNSETTLED = "unsettled"
    NO_DATA = "no_data"


class ProbeRule(msgspec.Struct, frozen=True, kw_only=True):
    """How many readings in a row settle a probe, and after how many seconds a reading is stale."""

    name: str
    failures: int
    successes: int
    stale_after_s: float


def judge_probe(rule: ProbeRule, measurements: list[Measurement], now: datetime) -> ProbeState:
    """Conclude from measurements, oldest first; only a streak of usable readings settles anything.

    An answer that isn't healthy and a target that refuses the connection are both readings with quality ok; quality
    error means that we couldn't measure, and neither passes nor fails.
    """
    usable = [m for m in measurements if m.quality is Quality.OK and m.healthy is not None]
    if not usable or now - usable[-1].at > timedelta(seconds=rule.stale_after_s):
        return ProbeState.NO_DATA
    streak = 0
    for measurement in reversed(usable):
        if measurement.healthy != usable[-1].healthy:
            break
        streak += 1
    if usable[-1].healthy:
        return ProbeState.HEALTHY if streak >= rule.successes else ProbeState.UNSETTLED
    return ProbeState.FAILING if streak >= rule.failures else ProbeState.UNSETTLED
