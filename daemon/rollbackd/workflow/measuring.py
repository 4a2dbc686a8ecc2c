"""Our own readings of one watched deployment: probes and metrics, taken when they are due, kept, and judged."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec
import structlog

from rollbackd.core.events import Category
from rollbackd.core.evidence import (
    Level,
    Measurement,
    ProbeRule,
    ProbeState,
    Quality,
    Source,
    judge_probe,
)
from rollbackd.core.promql import fill_in
from rollbackd.core.readings import (
    MetricEvidence,
    MetricState,
    judge_metric,
    level_of,
    limits_of,
    reading_text,
)
from rollbackd.core.records import Deployment
from rollbackd.errors import RollbackdError
from rollbackd.ports import Clock, MetricReader, Store
from rollbackd.settings import Metric, Probe, Target
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.targets import Targets

STALE_INTERVALS = 4
MEASUREMENTS_LOOKED_AT = 500
log = structlog.get_logger()


class Measuring:
    """Takes the readings of one deployment. `on_reading` is called when metrics have answered, which they do in their own time:
    a Prometheus that hangs holds up no probe.
    """

    def __init__(
        self,
        deployment_id: str,
        target: str,
        targets: Targets,
        store: Store,
        clock: Clock,
        happenings: Happenings,
        *,
        on_reading: Callable[[], None],
    ) -> None:
        self._id = deployment_id
        self._target = target
        self._targets = targets
        self._store = store
        self._clock = clock
        self._happenings = happenings
        self._on_reading = on_reading
        self._readings: dict[str, list[Measurement]] = {}
        self._before: dict[str, list[Measurement]] = {}
        self._due: dict[str, float] = {}
        self._asking: asyncio.Task[None] | None = None

    @property
    def _guarded(self) -> Guarded:
        """The target as it is configured now."""
        return self._targets[self._target]

    @property
    def _probes(self) -> tuple[Probe, ...]:
        return self._guarded.settings.probes

    @property
    def _metrics(self) -> tuple[Metric, ...]:
        return self._guarded.settings.metrics

    async def restore(self) -> None:
        """Take up what was read before a restart."""
        self._readings = {}
        for measurement in await self._store.measurements(self._id, MEASUREMENTS_LOOKED_AT):
            self._readings.setdefault(measurement.name, []).append(measurement)

    async def measure(self, deployment: Deployment) -> None:
        """Take the readings that are due: of probes now, of metrics in a task of their own."""
        now = self._clock.now()
        probes = [p for p in self._probes if self._due.get(p.name, 0.0) <= now.timestamp()]
        if self._asking is None or self._asking.done():
            metrics = [m for m in self._metrics if self._due.get(m.name, 0.0) <= now.timestamp()]
            if metrics:
                self._put_off(metrics, now)
                self._asking = asyncio.create_task(self._ask(metrics, deployment))
        if probes:
            self._put_off(probes, now)
            await self._keep(
                await asyncio.gather(*(self._guarded.prober.measure(probe, now) for probe in probes))
            )

    def next_in_s(self) -> float:
        """How long until the next reading is due, in seconds; metrics that are being asked call by themselves."""
        asks = self._asking is not None and not self._asking.done()
        due = [self._due.get(probe.name, 0.0) for probe in self._probes]
        due += [self._due.get(metric.name, 0.0) for metric in self._metrics if not asks]
        return min(due, default=float("inf")) - self._clock.now().timestamp()

    async def stop(self) -> None:
        """End what is asked."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    # -- metrics ------------------------------------------------------------------------------------------------------

    async def _ask(self, metrics: list[Metric], deployment: Deployment) -> None:
        try:
            with self._targets.using(self._target) as guarded:
                reader = guarded.metrics
                assert reader is not None, "metrics without a server are refused by the configuration"
                await self._keep(await asyncio.gather(*(self._read(reader, m, deployment) for m in metrics)))
        except RollbackdError as error:
            log.warning("measuring_failed", deployment=self._id, target=self._target, error=str(error))
        except Exception:
            log.error("measuring_faulted", deployment=self._id, target=self._target, exc_info=True)
        self._on_reading()

    async def _read(self, reader: MetricReader, metric: Metric, deployment: Deployment) -> Measurement:
        """One reading, once it is known what was so before the deploy."""
        query = query_of(metric, self._guarded.settings, deployment)
        before = self._readings_before(metric, deployment)
        if not before:
            before = await self._read_before(reader, metric, query, deployment)
            if before[-1].quality is Quality.ERROR:
                # Asked again with the next reading. Until then nobody knows what this deploy has to do with it.
                detail = f"what was so before the deploy can't be read: {before[-1].detail}"
                return msgspec.structs.replace(before[-1], at=self._clock.now(), detail=detail)
            await self._keep(before)
            self._before[metric.name] = before
        reading = await _read_at(reader, metric, query, self._clock.now())
        return (
            _judged(metric, reading, _value_before(before))
            if metric.times_before
            else _judged(metric, reading)
        )

    async def _read_before(
        self, reader: MetricReader, metric: Metric, query: str, deployment: Deployment
    ) -> list[Measurement]:
        """As many readings as settle it, all from before the start of the deploy, oldest first; fewer after an error."""
        newest = deployment.started_at - timedelta(seconds=metric.before)
        found: list[Measurement] = []
        for number in reversed(range(metric.readings)):
            at = newest - timedelta(seconds=metric.interval * number)
            reading = await _read_at(reader, metric, query, at)
            found.append(reading if metric.times_before else _judged(metric, reading))
            if reading.quality is Quality.ERROR:
                break
        return found

    def _readings_before(self, metric: Metric, deployment: Deployment) -> list[Measurement]:
        """Those of moments before the deploy; after a restart, out of the store."""
        if metric.name not in self._before:
            known = [m for m in self._readings.get(metric.name, ()) if m.at < deployment.started_at]
            if len(known) < metric.readings:
                return []
            self._before[metric.name] = known
        return self._before[metric.name]

    def metrics(self, deployment: Deployment) -> tuple[MetricEvidence, ...]:
        """Each metric judged on readings since the new release runs; before that, on those since the start."""
        since = deployment.succeeded_at or deployment.started_at
        now = self._clock.now()
        found = []
        for metric in self._metrics:
            readings = [m for m in self._readings.get(metric.name, ()) if m.at >= since]
            found.append(
                MetricEvidence(
                    name=metric.name,
                    category=Category(metric.category),
                    state=judge_metric(readings, metric.readings, _stale_after_s(metric), now),
                    before=self._state_before(metric, deployment),
                    reading=reading_text(readings[-1]) if readings else "not read yet",
                )
            )
        return tuple(found)

    def _state_before(self, metric: Metric, deployment: Deployment) -> MetricState:
        """Limits that are multiples of what it was weren't passed then, by what they are."""
        before = self._readings_before(metric, deployment)
        if not before:
            return MetricState.NO_DATA
        if metric.times_before:
            return MetricState.NO_DATA if _value_before(before) is None else MetricState.NORMAL
        return judge_metric(before, metric.readings, _stale_after_s(metric), before[-1].at)

    # -- probes -------------------------------------------------------------------------------------------------------

    def probe_states(self, deployment: Deployment) -> dict[str, ProbeState]:
        """Judged on readings since the new release runs; before that, on all."""
        since = deployment.succeeded_at or deployment.started_at
        return {
            probe.name: judge_probe(
                _rule(probe),
                [m for m in self._readings.get(probe.name, ()) if m.at >= since],
                self._clock.now(),
            )
            for probe in self._probes
        }

    def probes_failing_before(self, deployment: Deployment) -> frozenset[str]:
        """Probes whose very first readings, taken while the old release still ran, were bad throughout."""
        if deployment.succeeded_at is None:
            return frozenset()
        failing = set()
        for probe in self._probes:
            before = [m for m in self._readings.get(probe.name, ()) if m.at < deployment.succeeded_at]
            judged_at = before[-1].at if before else self._clock.now()
            if judge_probe(_rule(probe), before, judged_at) is ProbeState.FAILING:
                failing.add(probe.name)
        # A migration that needs a stop makes probes fail as well: only what failed from the first reading on counts.
        return frozenset(
            n for n in failing if _failed_from_the_start(self._readings[n], deployment.succeeded_at)
        )

    # -- both ---------------------------------------------------------------------------------------------------------

    def _put_off(self, due: list[Probe] | list[Metric], now: datetime) -> None:
        for one in due:
            self._due[one.name] = now.timestamp() + one.interval

    async def _keep(self, readings: list[Measurement]) -> None:
        for reading in readings:
            kept = self._readings.setdefault(reading.name, [])
            kept.append(reading)
            del kept[:-MEASUREMENTS_LOOKED_AT]
            self._happenings.tell(
                "measurement_taken",
                target=self._guarded.name,
                measurement=reading.name,
                source=str(reading.source),
                quality=str(reading.quality),
            )
        await self._store.save_measurements(self._id, readings)


def query_of(metric: Metric, target: Target, deployment: Deployment | None) -> str:
    """A metric's query for a deployment, or with no versions in it."""
    return fill_in(
        metric.query,
        {
            "target": target.name,
            "service": target.service,
            "environment": target.environment,
            "version": deployment.version if deployment else "",
            "previous_version": deployment.previous_version if deployment else "",
        },
    )


async def _read_at(reader: MetricReader, metric: Metric, query: str, at: datetime) -> Measurement:
    reading = await reader.read(metric, query, at)
    return Measurement(
        name=metric.name,
        at=at,
        quality=reading.quality,
        source=Source.PROMETHEUS,
        value=reading.value,
        detail=reading.detail,
        query=query,
    )


def _judged(metric: Metric, reading: Measurement, before: float | None = None) -> Measurement:
    """The reading with its limits and its level; a limit that is a multiple of what isn't known tells nothing."""
    if reading.quality is not Quality.OK or reading.value is None:
        return reading
    if metric.times_before and before is None:
        detail = "its limits are multiples of the value before the deploy, and there is none"
        return msgspec.structs.replace(reading, quality=Quality.NO_DATA, detail=detail)
    values = {Level.DEGRADED: metric.degraded, Level.CRITICAL: metric.critical}
    limits = limits_of(
        {level: value for level, value in values.items() if value is not None},
        is_below=metric.side == "below",
        at_least=metric.at_least,
        before=before,
    )
    if limits is None:
        detail = f"its limits are multiples of {before:g}, the value before the deploy: set 'at_least'"
        return msgspec.structs.replace(reading, quality=Quality.NO_DATA, detail=detail)
    level = level_of(reading.value, limits)
    return msgspec.structs.replace(reading, level=level, limits=limits, before=before)


def _value_before(before: list[Measurement]) -> float | None:
    """The mean of what it was, so that one odd moment is no measure; None where there was nothing."""
    values = [m.value for m in before if m.quality is Quality.OK and m.value is not None]
    return sum(values) / len(values) if values else None


def _stale_after_s(metric: Metric) -> float:
    return float(metric.interval * STALE_INTERVALS + metric.interval)


def _rule(probe: Probe) -> ProbeRule:
    stale_after_s = probe.interval * STALE_INTERVALS + probe.timeout
    return ProbeRule(
        name=probe.name, failures=probe.failures, successes=probe.successes, stale_after_s=stale_after_s
    )


def _failed_from_the_start(readings: list[Measurement], until: datetime) -> bool:
    usable = [m for m in readings if m.at < until and m.healthy is not None]
    return bool(usable) and not any(m.healthy for m in usable)
