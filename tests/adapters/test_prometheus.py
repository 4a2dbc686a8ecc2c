"""Asking a Prometheus: a real one for what it answers, and a server of ours for how an answer can fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.conftest import RequireProgram
from tests.prometheus import Exposition, RealPrometheus, scraping

from rollbackd.adapters.prometheus import MOST_ANSWER_BYTES, PrometheusReader
from rollbackd.core.checks import Outcome
from rollbackd.core.evidence import Quality
from rollbackd.core.promql import PLACEHOLDERS, fill_in
from rollbackd.errors import PermanentError, TransientError
from rollbackd.ports import MetricReading
from rollbackd.settings import Duration, Metric, Prometheus, SecretReference

pytestmark = [pytest.mark.xdist_group("adapters-prometheus"), pytest.mark.timeout(60)]

NUMBERS = """
latency_seconds{service="shop"} 0.25
hits_total{service="shop",code="200"} 120
hits_total{service="shop",code="500"} 3
odd{service="a\\"b\\\\c"} 7
nothing NaN
"""
GOING = 'goes_away{service="shop"} 5\n'
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


def metric(query: str = "q", **more: Any) -> Metric:
    return Metric(name="m", query=query, critical=1.0, **more)


# -- a real one -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> Iterator[Exposition]:
    shown = Exposition(NUMBERS + GOING)
    yield shown
    shown.stop()


@pytest.fixture(scope="module")
def prometheus(
    require_program: RequireProgram, page: Exposition, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealPrometheus]:
    program = require_program("prometheus")
    running = RealPrometheus(
        program, tmp_path_factory.mktemp("prometheus"), scraping(page.address, interval="200ms")
    )
    try:
        running.wait_for("count_over_time(goes_away[10s]) >= 5")
        yield running
    finally:
        running.stop()


@pytest.fixture
async def read(prometheus: RealPrometheus) -> AsyncIterator[Callable[..., Awaitable[MetricReading]]]:
    reader = PrometheusReader(Prometheus(url=prometheus.url))

    async def take(query: str, at: datetime | None = None, **more: Any) -> MetricReading:
        return await reader.read(metric(query, **more), query, at or datetime.now(UTC))

    yield take
    await reader.close()


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ("latency_seconds", 0.25),
        ("scalar(latency_seconds)", 0.25),
        ("sum(hits_total)", 123),
        ('sum(hits_total{code=~"5.."}) / sum(hits_total)', 3 / 123),
        ("vector(4)", 4),
        ("41 + 1", 42),
        # No such series yet, and a fresh one beside it.
        ("(sum(no_such_series) or vector(0)) / sum(hits_total)", 0),
    ],
)
async def test_a_scalar_and_one_element_are_a_number(read: Any, query: str, value: float) -> None:
    reading = await read(query)
    assert (reading.quality, reading.detail) == (Quality.OK, "")
    assert reading.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("no_such_series", "the result is empty"),
        ("nothing", "NaN, which is no number"),
        ("1 / 0", "+Inf, which is no number"),
        ("0 / 0", "NaN, which is no number"),
    ],
)
async def test_nothing_and_what_is_no_number_are_no_data(read: Any, query: str, said: str) -> None:
    reading = await read(query)
    assert (reading.quality, reading.value) == (Quality.NO_DATA, None)
    assert said in reading.detail


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("hits_total", "gives 2 elements ({__name__="),
        ("hits_total", "aggregate it, as with sum() or max()"),
        ("hits_total[5m]", "gives 2 elements"),
        ("latency_seconds[5m]", "answered a range"),
        ('"text"', "answered a string"),
        ("sum(latency_seconds", "400: invalid parameter"),
        ("rate(latency_seconds)", "400: invalid parameter"),
    ],
)
async def test_what_is_no_single_number_is_an_error_that_says_so(read: Any, query: str, said: str) -> None:
    reading = await read(query)
    assert (reading.quality, reading.value) == (Quality.ERROR, None)
    assert said in reading.detail


async def test_the_same_is_asked_for_a_moment_before(read: Any) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert (await read("latency_seconds")).quality is Quality.OK
    assert (await read("latency_seconds", an_hour_ago)).quality is Quality.NO_DATA
    assert (await read("time()", an_hour_ago)).value == pytest.approx(an_hour_ago.timestamp(), abs=0.01)


async def test_a_range_is_reduced_as_asked(read: Any) -> None:
    window = {"window": Duration(10), "step": Duration(1)}
    at = datetime.fromtimestamp(datetime.now(UTC).timestamp() // 60 * 60 + 30, UTC)
    # Seconds of the minute from 20 to 30.
    query = "time() % 60"
    found = {
        how: (await read(query, at, reduce=how, **window)).value
        for how in ("mean", "max", "min", "p95", "last")
    }
    assert found == {"mean": 25.0, "max": 30.0, "min": 20.0, "p95": 30.0, "last": 30.0}
    nothing = await read("no_such_series", **window)
    assert (nothing.quality, nothing.detail) == (Quality.NO_DATA, "no number in the last 10 s")
    several = await read("hits_total", **window)
    assert "gives 2 elements" in several.detail


async def test_a_sample_that_is_too_old_is_stale_even_behind_a_rate(
    read: Any, page: Exposition, prometheus: RealPrometheus
) -> None:
    """Prometheus puts the time of the question on an answer: the samples' own time is asked for beside it."""
    ahead = datetime.now(UTC) + timedelta(seconds=90)
    old = await read("max_over_time(latency_seconds[5m])", ahead, stale_after=Duration(60))
    assert (old.quality, old.value) == (Quality.STALE, 0.25)
    assert old.detail.endswith("s old, and may be 60 s")
    assert (await read("latency_seconds", ahead, stale_after=Duration(120))).quality is Quality.OK
    assert (await read("latency_seconds", ahead, stale_after=Duration(0))).quality is Quality.OK

    assert (await read("max_over_time(goes_away[5m])")).quality is Quality.OK
    page.text = NUMBERS
    await asyncio.to_thread(prometheus.wait_for, "absent(goes_away)")
    gone = await read("max_over_time(goes_away[5m])")
    assert (gone.quality, gone.value) == (Quality.STALE, 5)
    assert gone.detail == "none of the series that it reads goes on"


async def test_what_is_escaped_reaches_the_series_that_is_meant(read: Any) -> None:
    values = dict.fromkeys(PLACEHOLDERS, 'a"b\\c')
    for template in ('odd{service="$service"}', "odd{service='$service'}", 'odd{service=~"x|${service}"}'):
        assert (await read(fill_in(template, values))).value == 7


async def test_a_series_has_its_points_and_an_empty_one_none(prometheus: RealPrometheus) -> None:
    reader = PrometheusReader(Prometheus(url=prometheus.url))
    until = datetime.fromtimestamp(int(datetime.now(UTC).timestamp()), UTC)
    points = await reader.series("time()", until - timedelta(seconds=4), until, 2)
    assert [point.value for point in points] == [
        until.timestamp() - 4,
        until.timestamp() - 2,
        until.timestamp(),
    ]
    assert points[-1].at == until
    assert await reader.series("no_such_series", until - timedelta(seconds=4), until, 2) == ()
    with pytest.raises(PermanentError, match="2 elements"):
        await reader.series("hits_total", until - timedelta(seconds=4), until, 2)
    await reader.close()


async def test_check_config_tells_a_query_that_works_from_one_without_data_and_one_that_fails(
    prometheus: RealPrometheus, unused_tcp_port: int
) -> None:
    reader = PrometheusReader(Prometheus(url=prometheus.url))
    now = datetime.now(UTC)
    good = await reader.finding(metric(), "latency_seconds", now)
    assert (good.check, good.outcome, good.text) == ("metric m", Outcome.PASSED, "is 0.25 now")
    empty = await reader.finding(metric(), "no_such_series", now)
    assert (empty.outcome, empty.text) == (
        Outcome.WARNED,
        "its query is understood, but the result is empty (no_data)",
    )
    bad = await reader.finding(metric(), "sum(", now)
    assert bad.outcome is Outcome.FAILED
    assert "parse error" in bad.text
    await reader.close()
    nobody = PrometheusReader(Prometheus(url=f"http://127.0.0.1:{unused_tcp_port}"))
    lost = await nobody.finding(metric(), "up", now)
    assert lost.outcome is Outcome.FAILED
    assert "can't be asked" in lost.text
    await nobody.close()


# -- one that fails ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def failing() -> AsyncIterator[TestServer]:
    """Answers as the first part of the path says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        match request.match_info["how"]:
            case "slow":
                await asyncio.sleep(5)
            case "503":
                return web.Response(status=503, text="<html>busy</html>")
            case "503json":
                document = {
                    "status": "error",
                    "errorType": "timeout",
                    "error": "query timed out\nin expression",
                }
                return web.json_response(document, status=503)
            case "401":
                return web.Response(status=401, text="who are you?")
            case "moved":
                raise web.HTTPFound("http://127.0.0.1:1/elsewhere")
            case "bad":
                return web.Response(text='{"status": "success", "data": ', content_type="application/json")
            case "odd":
                data = {"resultType": "vector", "result": [{"value": "soon"}]}
                return web.json_response({"status": "success", "data": data})
            case "word":
                data = {"resultType": "scalar", "result": [1, "many"]}
                return web.json_response({"status": "success", "data": data})
            case "partial" | "remarked":
                warning = "PromQL info: x" if request.match_info["how"] == "remarked" else "store 3 is away"
                data = {"resultType": "scalar", "result": [1, "4"]}
                return web.json_response({"status": "success", "data": data, "warnings": [warning]})
            case "huge":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(2 * MOST_ANSWER_BYTES // 65_536):
                    await response.write(b" " * 65_536)
                return response
            case "cut":
                assert request.transport is not None
                request.transport.close()
            case "token":
                given = request.headers.get("Authorization", "")
                value = "1" if given == "Bearer s3cret" and form["timeout"] == "0.5s" else "0"
                data = {"resultType": "scalar", "result": [1, value]}
                return web.json_response({"status": "success", "data": data})
        return web.Response()

    application = web.Application()
    application.router.add_post("/{how}/api/v1/{what}", answer)
    server = TestServer(application)
    await server.start_server()
    yield server
    await server.close()


async def ask(server: TestServer, how: str, **more: Any) -> MetricReading:
    reader = PrometheusReader(Prometheus(url=str(server.make_url(f"/{how}/")), timeout=Duration(0.5), **more))
    try:
        return await reader.read(metric(), "1", NOW)
    finally:
        await reader.close()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("slow", "didn't answer within 0.5 s"),
        ("503", "answered 503, without Prometheus's JSON"),
        ("503json", "answered 503: query timed out in expression"),
        ("401", "answered 401"),
        ("moved", "302"),
        ("bad", "something that isn't Prometheus's JSON"),
        ("odd", "a result that can't be understood"),
        ("word", "'many', which is no number"),
        ("partial", "doubts its answer: store 3 is away"),
        ("huge", "more than 4 MiB"),
        ("cut", "can't be asked"),
    ],
)
async def test_an_answer_that_fails_is_a_reading_of_quality_error_that_says_how(
    failing: TestServer, how: str, said: str
) -> None:
    reading = await ask(failing, how)
    assert (reading.quality, reading.value) == (Quality.ERROR, None)
    assert said in reading.detail
    assert "\n" not in reading.detail


async def test_a_remark_on_a_query_is_no_doubt(failing: TestServer) -> None:
    assert (await ask(failing, "remarked")).value == 4


async def test_a_token_is_sent_and_one_that_is_gone_is_an_error_without_it(
    failing: TestServer, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    token = SecretReference(f"file:{secret}")
    assert (await ask(failing, "token", token=token)).value == 1
    secret.unlink()
    reading = await ask(failing, "token", token=token)
    assert reading.quality is Quality.ERROR
    assert "token for Prometheus can't be read" in reading.detail


async def test_a_series_that_can_not_be_had_is_raised(failing: TestServer, unused_tcp_port: int) -> None:
    reader = PrometheusReader(Prometheus(url=f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(TransientError, match="can't be asked"):
        await reader.series("up", NOW - timedelta(minutes=1), NOW, 15)
    await reader.close()
