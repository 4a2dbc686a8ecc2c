"""Asking a Prometheus: one number as of a moment, or a series over a stretch of time.

The HTTP API's version 1 (prometheus.io/docs/prometheus/latest/querying/api), of which Thanos, Mimir and VictoriaMetrics
answer the same part. Queries go as POST, because they may be longer than a URL.
"""

import json
import math
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec

from rollbackd.adapters.connecting import why_unreachable
from rollbackd.adapters.secrets import read_secret
from rollbackd.core.checks import Finding, Outcome
from rollbackd.core.evidence import Quality
from rollbackd.core.investigation import Point
from rollbackd.core.promql import freshness
from rollbackd.core.readings import reduce_values
from rollbackd.errors import ConfigurationError, PermanentError, RollbackdError, TransientError
from rollbackd.ports import MetricReading
from rollbackd.settings import Metric, Prometheus

MOST_ANSWER_BYTES = 4 * 1024 * 1024
MOST_ELEMENTS_NAMED = 3
LONGEST_REASON = 300
# Remarks on the style of a query, which some versions send among the warnings.
HARMLESS = "PromQL info"


class PrometheusReader:
    """Fulfils `ports.MetricReader`. Redirects aren't followed: the token is for the configured server alone."""

    def __init__(self, settings: Prometheus) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def read(self, metric: Metric, query: str, at: datetime) -> MetricReading:
        """One number as of `at`, with its quality."""
        try:
            value, untold = await self._value(metric, query, at)
            if untold:
                return MetricReading(quality=Quality.NO_DATA, detail=untold)
            too_old = await self._too_old(metric, query, at)
        except RollbackdError as error:
            return MetricReading(quality=Quality.ERROR, detail=str(error))
        quality = Quality.STALE if too_old else Quality.OK
        return MetricReading(quality=quality, value=value, detail=too_old)

    async def series(self, query: str, since: datetime, until: datetime, step_s: float) -> tuple[Point, ...]:
        """The values of a query at each step; where there is none, there is no point."""
        result = await self._ask(
            "query_range",
            {"query": query, "start": _seconds(since), "end": _seconds(until), "step": f"{step_s:g}"},
        )
        if not isinstance(result, list):
            raise PermanentError("Prometheus answered no series to a range")
        if not result:
            return ()
        element = _only(result)
        points = (_point(pair) for pair in element.values)
        return tuple(Point(at=at, value=value) for at, value in points if math.isfinite(value))

    async def finding(self, metric: Metric, query: str, at: datetime) -> Finding:
        """What check-config says of a metric: that its query is one, gives one number, and has data today."""
        name = f"metric {metric.name}"
        reading = await self.read(metric, query, at)
        if reading.quality is Quality.ERROR:
            return Finding(check=name, outcome=Outcome.FAILED, text=reading.detail)
        if reading.quality is not Quality.OK:
            text = f"its query is understood, but {reading.detail or 'gives nothing'} ({reading.quality})"
            return Finding(check=name, outcome=Outcome.WARNED, text=text)
        return Finding(check=name, outcome=Outcome.PASSED, text=f"is {reading.value:.6g} now")

    async def close(self) -> None:
        """Close the client."""
        if self._session is not None:
            await self._session.close()

    async def _value(self, metric: Metric, query: str, at: datetime) -> tuple[float | None, str]:
        """The number, or why there is none."""
        if metric.window:
            since = at - timedelta(seconds=metric.window)
            points = await self.series(query, since, at, metric.step)
            value = reduce_values([point.value for point in points], metric.reduce)
            return value, "" if value is not None else f"no number in the last {metric.window:g} s"
        result = await self._ask("query", {"query": query, "time": _seconds(at)})
        if isinstance(result, list):
            if not result:
                return None, "the result is empty"
            pair = _only(result).value
        else:
            pair = result.value
        if pair is None:
            raise PermanentError("Prometheus answered a range; leave out the [...] at the query's end")
        _, value = _point(pair)
        return (value, "") if math.isfinite(value) else (None, f"the result is {pair[1]}, which is no number")

    async def _too_old(self, metric: Metric, query: str, at: datetime) -> str:
        """Why the samples behind a value are too old; empty where they aren't."""
        asked = freshness(query) if metric.stale_after else ""
        if not asked:
            return ""
        result = await self._ask("query", {"query": asked, "time": _seconds(at)})
        if not isinstance(result, list):
            raise PermanentError("Prometheus answered no vector when it was asked for the newest sample")
        pair = _only(result).value if result else None
        if pair is None:
            return "none of the series that it reads goes on"
        age_s = at.timestamp() - _point(pair)[1]
        if age_s <= metric.stale_after:
            return ""
        return f"its newest sample is {age_s:.0f} s old, and may be {metric.stale_after:g} s"

    async def _ask(self, what: str, parameters: dict[str, str]) -> "list[_Element] | _Scalar":
        """Ask, and read the answer strictly.

        Raises:
            TransientError: where it can't be reached, takes too long, or says that it can't answer now.
            PermanentError: where it refuses the question, or answers what can't be understood.
        """
        timeout_s = float(self._settings.timeout)
        try:
            async with self._open().post(
                f"{self._url}/api/v1/{what}",
                data={**parameters, "timeout": f"{timeout_s:g}s"},
                headers=self._headers(),
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
            ) as response:
                body = await _read(response.content)
        except TimeoutError:
            raise TransientError(f"Prometheus at {self._url} didn't answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientError(
                f"Prometheus at {self._url} can't be asked: {_short(why_unreachable(error))}"
            ) from None
        return _result(response.status, body)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # Connections are closed after each answer, as this is asked every few seconds at most.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), trust_env=False
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self._settings.token is not None:
            try:
                headers["Authorization"] = f"Bearer {read_secret(self._settings.token)}"
            except ConfigurationError as error:
                raise PermanentError(f"the token for Prometheus can't be read: {error}") from None
        return headers


_Pair = tuple[float, str]


class _Element(msgspec.Struct, frozen=True):
    """One element of a vector (`value`) or a matrix (`values`)."""

    metric: dict[str, str] = {}
    value: _Pair | None = None
    values: tuple[_Pair, ...] = ()


class _Scalar(msgspec.Struct, frozen=True):
    value: _Pair | None


class _Data(msgspec.Struct, frozen=True, rename="camel"):
    result_type: str
    result: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True, rename="camel"):
    status: str
    data: _Data | None = None
    error_type: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()


def _result(status: int, body: bytes) -> "list[_Element] | _Scalar":
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        kind = PermanentError if status < 500 else TransientError
        what = (
            "something that isn't Prometheus's JSON"
            if status == 200
            else f"{status}, without Prometheus's JSON"
        )
        raise kind(f"Prometheus answered {what}") from None
    if answer.status != "success" or answer.data is None or status != 200:
        kind = PermanentError if status < 500 else TransientError
        raise kind(
            f"Prometheus answered {status}: {_short(answer.error or answer.error_type or 'no reason given')}"
        )
    warnings = [text for text in answer.warnings if not text.startswith(HARMLESS)]
    if warnings:
        # Thanos and remote reads say so where a part of the series is missing: the number may be any.
        raise TransientError(f"Prometheus doubts its answer: {_short('; '.join(warnings))}")
    try:
        match answer.data.result_type:
            case "scalar":
                return _Scalar(msgspec.json.decode(answer.data.result, type=_Pair))
            case "vector" | "matrix":
                return msgspec.json.decode(answer.data.result, type=list[_Element])
            case other:
                raise PermanentError(f"Prometheus answered a {_short(other)}, and a number is needed")
    except msgspec.MsgspecError:
        raise PermanentError("Prometheus answered a result that can't be understood") from None


def _only(elements: list[_Element]) -> _Element:
    if len(elements) > 1:
        named = ", ".join(_labels(element) for element in elements[:MOST_ELEMENTS_NAMED])
        more = ", …" if len(elements) > MOST_ELEMENTS_NAMED else ""
        raise PermanentError(
            f"the query gives {len(elements)} elements ({_short(named + more)}), and one number is needed: aggregate it,"
            " as with sum() or max()"
        )
    return elements[0]


def _labels(element: _Element) -> str:
    return "{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in element.metric.items()) + "}"


def _point(pair: _Pair) -> tuple[datetime, float]:
    try:
        return datetime.fromtimestamp(pair[0], UTC), float(pair[1])
    except (ValueError, OverflowError, OSError):
        raise PermanentError(f"Prometheus answered {_short(repr(pair[1]))}, which is no number") from None


def _seconds(at: datetime) -> str:
    return f"{at.timestamp():.3f}"


def _short(text: str) -> str:
    """Somebody else's words on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


async def _read(content: aiohttp.StreamReader) -> bytes:
    found = bytearray()
    async for chunk in content.iter_any():
        found += chunk
        if len(found) > MOST_ANSWER_BYTES:
            raise PermanentError(
                f"Prometheus answers more than {MOST_ANSWER_BYTES // 1024**2} MiB: aggregate the query"
            )
    return bytes(found)
