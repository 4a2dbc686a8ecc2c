"""Prometheus metrics: a listener to what happens. Children are created at start, totals go on after a restart.

Labels are target, environment and closed enums alone.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rollbackd import __version__
from rollbackd.core.evidence import Quality
from rollbackd.core.planning.plan import WAYS
from rollbackd.core.planning.steps import STEP_KINDS
from rollbackd.core.run import FINISHED, RunState, StepPhase
from rollbackd.core.verdicts import Verdict
from rollbackd.settings import Target

DELIVERY_OUTCOMES = ("accepted", "duplicate", "ignored")
REFUSALS = (
    "unknown_hook", "no_signature", "malformed_signature", "wrong_signature", "no_token", "wrong_token",
    "malformed_timestamp", "stale_timestamp", "future_timestamp", "too_large", "encoded", "slow", "malformed",
    "conflict", "store_unavailable",
)  # fmt: skip
DEPLOYMENT_OUTCOMES = (
    "kept", "rolled_back", "rollback_failed", "rollback_denied", "rollback_expired", "abandoned", "superseded",
    "investigate", "fix_forward",
)  # fmt: skip
# The price of going back; -1 where nobody knows.
WAY_BACK = {
    "duration_seconds": "How long going back would take, as rehearsed (-1: unknown).",
    "lock_seconds": "How long its locks would keep others out (-1: unknown).",
    "rows_lost": "Rows and values that would be gone for good (-1: unknown).",
    "rows_only_new": "Rows and values that only the new schema has a place for.",
    "growth_per_minute": "How many more of these there are a minute.",
}
TRIGGERS = ("automatic", "manual")
SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)


class Metrics:
    """Counts what happens. `flush` hands over what was added since, so that totals can be kept in the store."""

    def __init__(self, targets: tuple[Target, ...], hooks: tuple[str, ...], rows: Mapping[str, str]) -> None:
        self._rows = rows
        self.registry = CollectorRegistry()
        self._environment = {t.name: t.environment for t in targets}
        self._unsaved: dict[str, float] = {}
        make = self._counter
        self._deliveries = make(
            "rollbackd_deliveries",
            "Deliveries that were recorded, by what came of them.",
            ("hook", "outcome"),
        )
        self._refusals = make(
            "rollbackd_deliveries_refused", "Deliveries that were refused, by reason.", ("hook", "reason")
        )
        self._measurements = make(
            "rollbackd_measurements", "Readings of probes, by quality.", ("target", "environment", "quality")
        )
        self._deployments = make(
            "rollbackd_deployments",
            "Deployments that ended, by outcome.",
            ("target", "environment", "outcome"),
        )
        self._decisions = make(
            "rollbackd_decisions", "Decisions, by row and action.", ("target", "environment", "row", "action")
        )
        self._runs = make(
            "rollbackd_runs",
            "Runs that ended, by trigger and state.",
            ("target", "environment", "trigger", "state"),
        )
        self._failures = make(
            "rollbackd_step_failures", "Attempts at steps that failed.", ("target", "environment", "step")
        )
        self._steps = Histogram(
            "rollbackd_step_duration_seconds", "How long steps took that were done.", ("target", "environment", "step"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._durations = Histogram(
            "rollbackd_run_duration_seconds", "From a run's first step to its end.", ("target", "environment"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._waits = Histogram(
            "rollbackd_approval_wait_seconds", "How long runs waited for a person's word.", ("target", "environment"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._unfinished = Gauge(
            "rollbackd_runs_unfinished", "Runs that aren't finished, by state.", ("target", "environment", "state"),
            registry=self.registry,
        )  # fmt: skip
        self._watched = Gauge(
            "rollbackd_deployments_watched", "Whether a deployment is being watched.", ("target", "environment"),
            registry=self.registry,
        )  # fmt: skip
        self._backup_time = Gauge(
            "rollbackd_backup_last_success_timestamp_seconds", "When the newest proved backup was taken.",
            ("target", "environment"), registry=self.registry,
        )  # fmt: skip
        self._backup_size = Gauge(
            "rollbackd_backup_last_size_bytes", "Size of the newest proved backup.", ("target", "environment"),
            registry=self.registry,
        )  # fmt: skip
        self._backup_level = Gauge(
            "rollbackd_backup_last_proof_level", "Proof level of the newest proved backup.", ("target", "environment"),
            registry=self.registry,
        )  # fmt: skip
        self._price = {
            name: Gauge(f"rollbackd_way_back_{name}", text, ("target", "environment"), registry=self.registry)
            for name, text in WAY_BACK.items()
        }
        self._way = Gauge(
            "rollbackd_way_back", "The way back that is ready (1) while a deployment is watched.",
            ("target", "environment", "way"), registry=self.registry,
        )  # fmt: skip
        self._verdict = Gauge(
            "rollbackd_way_back_verdict", "What the way back that is ready will do (1).",
            ("target", "environment", "verdict"), registry=self.registry,
        )  # fmt: skip
        self._restored = make(
            "rollbackd_rows_restored",
            "Rows and values that were brought back out of archives.",
            ("target", "environment"),
        )
        self.queue = Gauge(
            "rollbackd_store_queue_length", "Records that wait to be committed.", registry=self.registry
        )
        Info("rollbackd_build", "The version that runs.", registry=self.registry).info(
            {"version": __version__}
        )
        self._create_children(hooks)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _create_children(self, hooks: tuple[str, ...]) -> None:
        for hook in (*hooks, "unknown"):
            for outcome in DELIVERY_OUTCOMES:
                self._deliveries.labels(hook, outcome)
            for reason in REFUSALS:
                self._refusals.labels(hook, reason)
        for target, environment in self._environment.items():
            for quality in Quality:
                self._measurements.labels(target, environment, quality)
            for outcome in DEPLOYMENT_OUTCOMES:
                self._deployments.labels(target, environment, outcome)
            for row, action in self._rows.items():
                self._decisions.labels(target, environment, row, action)
            for state in RunState:
                if state in FINISHED or state is RunState.HELD:
                    for trigger in TRIGGERS:
                        self._runs.labels(target, environment, trigger, state)
                if state not in FINISHED:
                    self._unfinished.labels(target, environment, state)
            for kind in STEP_KINDS:
                self._failures.labels(target, environment, kind)
                self._steps.labels(target, environment, kind)
            self._restored.labels(target, environment)
            for way in WAYS:
                self._way.labels(target, environment, way)
            for verdict in Verdict:
                self._verdict.labels(target, environment, verdict)
            for metric in (
                *self._price.values(),
                self._durations,
                self._waits,
                self._watched,
                self._backup_time,
                self._backup_size,
                self._backup_level,
            ):
                metric.labels(target, environment)

    def listen(self, name: str, fields: dict[str, object]) -> None:
        """Be told that something happened."""
        counted = self._TOLD.get(name)
        if counted is not None:
            counted(self, fields)

    def text(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def restore(self, totals: Mapping[str, float]) -> None:
        """Go on from what was counted before the last restart."""
        counters = {c._name: c for c in self._counters()}
        for key, amount in totals.items():
            name, *labels = key.split("\x1f")
            counter = counters.get(name)
            # A label value that no longer exists (a renamed target) isn't brought back.
            if counter is not None and tuple(labels) in counter._metrics:
                counter.labels(*labels).inc(amount)

    def flush(self) -> dict[str, float]:
        """What was counted since the last call."""
        unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def set_runs(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set how many runs are in each unfinished state: (target, state) to number."""
        for target, environment in self._environment.items():
            for state in RunState:
                if state not in FINISHED:
                    self._unfinished.labels(target, environment, state).set(counts.get((target, state), 0))

    def set_watched(self, targets: set[str]) -> None:
        """Set which targets have a watched deployment."""
        for target, environment in self._environment.items():
            self._watched.labels(target, environment).set(target in targets)
            if target not in targets:
                self._set_price(target, environment, {})

    def set_backup(self, target: str, taken_at_s: float, size_bytes: int, level: int) -> None:
        """Set the newest proved backup of a target."""
        environment = self._environment.get(target)
        if environment is not None:
            self._backup_time.labels(target, environment).set(taken_at_s)
            self._backup_size.labels(target, environment).set(size_bytes)
            self._backup_level.labels(target, environment).set(level)

    def _set_price(self, target: str, environment: str, fields: Mapping[str, object]) -> None:
        """The price of going back; without fields there is nothing to go back from."""
        for name, gauge in self._price.items():
            amount = fields.get(name.removesuffix("_seconds").removesuffix("_per_minute"), 0.0)
            gauge.labels(target, environment).set(amount if isinstance(amount, (int, float)) else 0.0)
        for way in WAYS:
            self._way.labels(target, environment, way).set(way == fields.get("way_back"))
        for verdict in Verdict:
            self._verdict.labels(target, environment, verdict).set(verdict == fields.get("verdict"))

    def _priced(self, fields: dict[str, object]) -> None:
        named = {**fields, "duration": fields["total_s"], "lock": fields["lock_s"]}
        self._set_price(*self._of(fields), named)

    def _configured(self, fields: dict[str, object]) -> None:
        """A target that is new, or has another environment: its children are there from now on."""
        self._forget(fields)
        self._environment[str(fields["target"])] = str(fields["environment"])
        self._create_children(())

    def _forget(self, fields: dict[str, object]) -> None:
        """A target that is gone: its gauges would stand still for ever. What was counted of it stays counted."""
        if self._environment.pop(str(fields["target"]), None) is None:
            return
        for gauge in (*self._price.values(), self._unfinished, self._watched, self._way, self._verdict,
                      self._backup_time, self._backup_size, self._backup_level):  # fmt: skip
            gauge.remove_by_labels({"target": str(fields["target"])})

    def _bring_back(self, fields: dict[str, object]) -> None:
        labels, amount = self._of(fields), fields["restored"]
        if isinstance(amount, int) and amount:
            self._restored.labels(*labels).inc(amount)
            key = "\x1f".join((self._restored._name, *labels))
            self._unsaved[key] = self._unsaved.get(key, 0.0) + amount

    def _counters(self) -> tuple[Counter, ...]:
        return (
            self._deliveries, self._refusals, self._measurements, self._deployments, self._decisions, self._runs, self._failures,
            self._restored,
        )  # fmt: skip

    def _count(self, counter: Counter, *labels: str) -> None:
        counter.labels(*labels).inc()
        key = "\x1f".join((counter._name, *labels))
        self._unsaved[key] = self._unsaved.get(key, 0.0) + 1

    def _of(self, fields: dict[str, object]) -> tuple[str, str]:
        target = str(fields["target"])
        return target, self._environment.get(target, "")

    def _delivery(self, fields: dict[str, object]) -> None:
        self._count(self._deliveries, str(fields["hook"]), str(fields["outcome"]))

    def _refusal(self, fields: dict[str, object]) -> None:
        self._count(self._refusals, str(fields["hook"]), str(fields["reason"]))

    def _measurement(self, fields: dict[str, object]) -> None:
        self._count(self._measurements, *self._of(fields), str(fields["quality"]))

    def _deployment(self, fields: dict[str, object]) -> None:
        self._count(self._deployments, *self._of(fields), str(fields["outcome"]))

    def _decision(self, fields: dict[str, object]) -> None:
        self._count(self._decisions, *self._of(fields), str(fields["row"]), str(fields["action"]))

    def _run(self, fields: dict[str, object]) -> None:
        self._count(self._runs, *self._of(fields), str(fields["trigger"]), str(fields["state"]))
        if isinstance(fields["seconds"], float):
            self._durations.labels(*self._of(fields)).observe(fields["seconds"])

    def _step(self, fields: dict[str, object]) -> None:
        labels = (*self._of(fields), str(fields["kind"]))
        if fields["phase"] == StepPhase.FAILED:
            self._count(self._failures, *labels)
        elif fields["phase"] == StepPhase.DONE and isinstance(fields["seconds"], float):
            self._steps.labels(*labels).observe(fields["seconds"])

    def _approval(self, fields: dict[str, object]) -> None:
        if isinstance(fields["waited_seconds"], float):
            self._waits.labels(*self._of(fields)).observe(fields["waited_seconds"])

    _TOLD: Mapping[str, Callable[["Metrics", dict[str, object]], None]] = {
        "delivery_answered": _delivery,
        "delivery_refused": _refusal,
        "measurement_taken": _measurement,
        "deployment_ended": _deployment,
        "decision_made": _decision,
        "run_ended": _run,
        "step_recorded": _step,
        "approval_given": _approval,
        "way_back_priced": _priced,
        "data_restored": _bring_back,
        "target_added": _configured,
        "target_changed": _configured,
        "target_removed": _forget,
    }
