"""What a metric's values mean: levels, rows of readings, and what counts against a deploy."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from rollbackd.core.events import Category
from rollbackd.core.evidence import Level, Limit, Measurement, Quality, Source
from rollbackd.core.readings import (
    MetricEvidence,
    MetricState,
    Reduction,
    judge_metric,
    level_of,
    limits_of,
    reduce_values,
)

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
ABOVE = {Level.DEGRADED: 1.5, Level.CRITICAL: 3.0}


@pytest.mark.parametrize(
    ("how", "value"),
    [
        (Reduction.MEAN, 10.5),
        (Reduction.MAX, 20.0),
        (Reduction.MIN, 1.0),
        (Reduction.P95, 19.0),
        (Reduction.LAST, 20.0),
    ],
)
def test_a_range_becomes_one_number(how: Reduction, value: float) -> None:
    values = [float(n) for n in range(1, 21)]
    assert reduce_values(values, how) == value
    assert reduce_values([math.nan, *values, math.inf, math.nan], how) == value
    assert reduce_values([], how) is None
    assert reduce_values([math.nan], how) is None


def limits(
    before: float | None = None, at_least: float | None = None, *, below: bool = False
) -> list[float] | None:
    values = {Level.DEGRADED: 0.5, Level.CRITICAL: 0.25} if below else ABOVE
    found = limits_of(values, is_below=below, at_least=at_least, before=before)
    return None if found is None else [limit.value for limit in found]


def test_limits_are_as_configured_or_multiples_of_what_was_before() -> None:
    assert limits() == [1.5, 3.0]
    assert limits(before=2.0) == [3.0, 6.0]
    assert limits(before=2.0, below=True) == [1.0, 0.5]
    assert limits(before=0.01, at_least=0.02) == [0.02, 0.03]
    # Three times nothing is nothing: it is a limit only together with a least value.
    assert limits(before=0.0) is None
    assert limits(before=0.0, at_least=0.1) == [0.1, 0.1]
    assert limits(before=-1.0, at_least=0.1) is None


def test_a_value_is_at_the_worst_level_whose_limit_it_is_past_and_a_limit_itself_is_not() -> None:
    above = limits_of(ABOVE, is_below=False, at_least=None, before=None) or ()
    assert [level_of(v, above) for v in (1.5, 1.6, 3.0, 3.1)] == [
        "normal",
        "degraded",
        "degraded",
        "critical",
    ]
    below = limits_of({Level.DEGRADED: 5, Level.CRITICAL: 1}, is_below=True, at_least=None, before=None) or ()
    assert [level_of(v, below) for v in (5, 4, 1, 0)] == ["normal", "degraded", "degraded", "critical"]
    assert Limit(level=Level.CRITICAL, value=2.0).text() == "critical above 2"


def readings(text: str) -> list[Measurement]:
    """One a second, the last one now: n, d and c are levels; s, 0 and e are stale, no data and errors."""
    levels = {"n": Level.NORMAL, "d": Level.DEGRADED, "c": Level.CRITICAL}
    qualities = {"s": Quality.STALE, "0": Quality.NO_DATA, "e": Quality.ERROR}
    return [
        Measurement(
            name="m",
            at=NOW - timedelta(seconds=len(text) - 1 - number),
            quality=qualities.get(letter, Quality.OK),
            source=Source.PROMETHEUS,
            level=levels.get(letter),
        )
        for number, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("", MetricState.NO_DATA),
        ("nn", MetricState.UNSETTLED),
        ("nnn", MetricState.NORMAL),
        ("ccc", MetricState.CRITICAL),
        # The mildest of the row is sure.
        ("cdc", MetricState.DEGRADED),
        ("ncc", MetricState.UNSETTLED),
        ("cccn", MetricState.UNSETTLED),
        ("cccnnn", MetricState.NORMAL),
        # What isn't ok neither counts nor breaks a row.
        ("ce0sec", MetricState.UNSETTLED),
        ("ce0scec", MetricState.CRITICAL),
        ("e0se0s", MetricState.NO_DATA),
        # The newest good one is too old.
        ("ccceeeeeee", MetricState.NO_DATA),
    ],
)
def test_so_many_readings_in_a_row_settle_it(text: str, state: MetricState) -> None:
    assert judge_metric(readings(text), 3, 6.0, NOW) is state


@pytest.mark.parametrize(
    ("now", "before", "counts"),
    [
        ("normal", "normal", "normal"),
        ("critical", "normal", "critical"),
        ("degraded", "no_data", "degraded"),
        ("degraded", "unsettled", "degraded"),
        # Worse than before counts; as bad as before doesn't.
        ("critical", "degraded", "critical"),
        ("critical", "critical", None),
        ("degraded", "degraded", None),
        ("degraded", "critical", None),
        ("normal", "critical", "normal"),
        ("unsettled", "normal", None),
        ("no_data", "normal", None),
    ],
)
def test_only_what_is_worse_than_before_counts(now: str, before: str, counts: str | None) -> None:
    metric = MetricEvidence(
        name="m", category=Category.PERFORMANCE, state=MetricState(now), before=MetricState(before)
    )
    assert metric.counts_as() == counts
    assert metric.cannot_tell is (now in ("unsettled", "no_data"))


def test_a_metric_says_when_nobody_knows_what_it_was_before() -> None:
    said = {
        before: MetricEvidence(
            name="m", category=Category.ERRORS, state=MetricState.CRITICAL, before=before, reading="5"
        ).text()
        for before in (MetricState.NORMAL, MetricState.NO_DATA)
    }
    assert said[MetricState.NORMAL] == "m (critical): 5"
    assert said[MetricState.NO_DATA] == "m (critical): 5; what it was before the deploy isn't known"
