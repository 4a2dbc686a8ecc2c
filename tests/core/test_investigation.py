"""What an investigation found, as a person reads it in a terminal."""

from datetime import UTC, datetime, timedelta

from rollbackd.core.evidence import Level, Limit
from rollbackd.core.investigation import (
    Activity,
    Change,
    Investigation,
    MetricSeries,
    OpenTransaction,
    Point,
    Statement,
    WaitingSession,
    investigation_lines,
    series_text,
    sparkline,
)

T0 = datetime(2026, 11, 22, 10, tzinfo=UTC)


def points(*values: float) -> tuple[Point, ...]:
    """One a minute, the first five minutes before the deploy."""
    return tuple(Point(T0 + timedelta(minutes=n - 5), value) for n, value in enumerate(values))


def test_values_become_bars_from_the_lowest_to_the_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([3, 3, 3]) == "▁▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 9, 9], width=2) == "▁█"
    assert len(sparkline(list(range(1000)))) == 60


def test_a_series_shows_where_the_deploy_began_and_its_limits() -> None:
    series = MetricSeries(
        name="p95",
        category="performance",
        query="q",
        points=points(1, 1, 1, 1, 1, 8, 8),
        limits=(Limit(level=Level.DEGRADED, value=2.0), Limit(level=Level.CRITICAL, value=4.0)),
    )
    assert series_text(series, T0) == (
        "p95: ▁▁▁▁▁┃██ from 1 to 8, highest 8, degraded above 2, critical above 4"
    )
    assert (
        series_text(MetricSeries(name="p95", category="", query="", missing="timed out"), T0)
        == "p95: timed out"
    )


def test_everything_that_was_found_is_a_line_and_what_was_not_seen_as_well() -> None:
    found = Investigation(
        decision="decision-1",
        deployment="deployment-1",
        target="shop",
        at=T0 + timedelta(minutes=2),
        deployed_at=T0,
        series=(MetricSeries(name="p95", category="performance", query="q", points=points(1, 2)),),
        activity=Activity(
            source="pg_stat_statements",
            statements=(Statement(sql="SELECT " + "x" * 300, calls=12, mean_s=0.25, total_s=3.0),),
            waiting=(
                WaitingSession(
                    pid=7, waits_s=4, wants="RowShareLock on t", sql="SELECT ?", holder_pid=8, holder="shop as app, active",
                    holder_sql="UPDATE t",
                ),
            ),
            transactions=(OpenTransaction(pid=8, who="shop as app", state="active", open_s=61, sql="UPDATE t"),),
            missing=("2 sessions hide",),
        ),
        change=Change(
            release_from="1.0",
            release_to="2.0",
            heads_before=("a",),
            heads_now=("b",),
            revisions=("b add orders",),
            difference=("+ table public.orders", "~ column public.customers.name", "- index public.i"),
            missing=("the rest",),
        ),
    )  # fmt: skip
    lines = investigation_lines(found)
    assert lines[0] == "collected at 2026-11-22 10:02:00 UTC; ┃ is the start of the deploy, 10:00:00 UTC"
    assert "changed: release 1.0 → 2.0; revision a → b (b add orders)" in lines
    assert "  tables: public.orders, public.customers" in lines
    statement = next(line for line in lines if "SELECT x" in line)
    assert statement.startswith("  250.0 ms each, 12 times: SELECT ")
    assert len(statement) < 200
    assert (
        "  7 waits 4 s for RowShareLock on t (SELECT ?); held by 8, shop as app, active (UPDATE t)" in lines
    )
    assert "  8, shop as app: active for 61 s (UPDATE t)" in lines
    assert lines[-2:] == ["not seen: 2 sessions hide", "not seen: the rest"]
