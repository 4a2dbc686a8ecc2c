"""Prometheus metrics: a listener to what happens. Children are created at start, totals go on after a restart.

Labels are target, environment and closed enums alone. What there isn't (a backup, a price while nothing is watched) is
absent: a number in its place would have to be explained to every query.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import product
from typing import Any, TypeVar

from prometheus_client import ProcessCollector
from prometheus_client.core import InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rollbackd import __version__
from rollbackd.adapters.metric_families import SEPARATOR, Counter, Family, Gauge, Histogram, Labels, Total
from rollbackd.adapters.metric_text import MetricText
from rollbackd.core.checks import Outcome
from rollbackd.core.events import EventKind, EventResult
from rollbackd.core.evidence import Quality
from rollbackd.core.planning.plan import WAYS
from rollbackd.core.planning.steps import STEP_KINDS
from rollbackd.core.run import FINISHED, UNFINISHED, RunState, StepPhase
from rollbackd.core.standing import Standing
from rollbackd.core.verdicts import Verdict
from rollbackd.settings import Target

DELIVERY_OUTCOMES = ("accepted", "duplicate", "ignored")
REFUSALS = (
    "unknown_hook", "no_signature", "malformed_signature", "wrong_signature", "no_token", "wrong_token",
    "malformed_timestamp", "stale_timestamp", "future_timestamp", "too_large", "encoded", "slow", "malformed",
    "conflict", "store_unavailable",
)  # fmt: skip
# Of a hook that isn't configured.
UNKNOWN_HOOK = "unknown"
# Where evidence comes from, with what its readings can be. An alert is somebody's word: it is there or it isn't.
PROBE, ALERT = "probe", "alert"
EVIDENCE = (
    *((source, str(quality)) for source in (PROBE, "prometheus") for quality in Quality),
    (ALERT, str(Quality.OK)),
)
DEPLOYMENT_OUTCOMES = (
    "kept", "rolled_back", "rollback_failed", "rollback_denied", "rollback_expired", "abandoned", "superseded",
    "investigate", "fix_forward",
)  # fmt: skip
GATE_VERDICTS = ("go", "warn", "stop")
TRIGGERS = ("automatic", "manual")
# What a run can wait for a person for.
WAITS = {"approval": RunState.AWAITING_APPROVAL, "held": RunState.HELD}
STANDINGS = (*Standing, "unknown")
# Where a schema was found to differ: between two deployments, or after a downgrade from the documented or rehearsed one.
DRIFTS = {"schema": "documented", "rehearsed_schema": "rehearsed"}
AT_REST = "at_rest"
CHECKS = (
    "revision", "rehearsed_schema", "schema", "archive", "row_counts", "checksums", "orphans", "invalid_indexes",
    "sequences", "own", "other",
)  # fmt: skip
# The price of going back: metric, its help, the happening's field, whether -1 stands for unknown there.
PRICE = (
    ("duration_seconds", "How long going back would take, as rehearsed.", "total_s", True),
    ("lock_seconds", "How long its locks would keep others out.", "lock_s", True),
    ("rows_lost", "Rows and values that would be gone for good.", "rows_lost", True),
    ("rows_only_new", "Rows and values that only the new schema has a place for.", "rows_only_new", True),
    ("growth_per_minute", "How many more of these there are a minute.", "growth", False),
    (
        "cheap_until_timestamp_seconds",
        "When its lock outgrows the budget, at this pace; absent where it doesn't.",
        "cheap_until_s",
        False,
    ),
)
EVERYTHING = "*"
MINUTES_AND_HOURS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
STEP_SECONDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
DAYS = (900.0, 3600.0, 14400.0, 43200.0, 86400.0, 172800.0, 604800.0, 1209600.0, 2592000.0)
COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BY_DAEMON: Labels = ()
BY_HOOK: Labels = ("hook",)
BY_ENVIRONMENT: Labels = ("environment",)
BY_TARGET: Labels = ("target", "environment")

Fields = dict[str, object]
Words = tuple[Labels, ...]
AnyFamily = TypeVar("AnyFamily", bound=Family[Any])
NO_WORDS: Words = ((),)


def every(*closed: Iterable[str]) -> Words:
    """Every combination of closed words, one for each label."""
    return tuple(tuple(map(str, words)) for words in product(*closed))


class Build(Collector):
    """What runs."""

    def collect(self) -> Iterable[Metric]:
        """One sample, which is 1."""
        told = {"version": __version__, "python": platform.python_version()}
        return [InfoMetricFamily("rollbackd_build", "The version that runs.", told)]


class Metrics:
    """Counts what happens. What was counted is saved by `take_unsaved`, and shown by `text`."""

    def __init__(self, targets: tuple[Target, ...], hooks: tuple[str, ...], rows: Mapping[str, str]) -> None:
        self._unsaved: dict[str, float] = {}
        self._families: list[Family[Any]] = []
        self._children: dict[str, tuple[Labels, Words]] = {}
        self._make_daemons()
        self._make_targets()
        self._make_way_back()
        self._environment: dict[str, str] = {}
        self._stale_backups: set[str] = set()
        self.expect(targets, hooks, rows)
        self.set_reload(ok=True, at=time.time())
        self._text = MetricText(self._families, (Build(), ProcessCollector(registry=None)))

    # -- what there is -------------------------------------------------------------------------------------------------

    def _counter(
        self,
        name: str,
        text: str,
        by: Labels,
        more: Labels = (),
        words: Words = NO_WORDS,
        *,
        kept: bool = True,
    ) -> Counter:
        return self._add(
            Counter(f"rollbackd_{name}", text, (*by, *more), self._unsaved if kept else None), by, words
        )

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], by: Labels, more: Labels = (), words: Words = NO_WORDS,
        *, kept: bool = True,
    ) -> Histogram:  # fmt: skip
        unsaved = self._unsaved if kept else None
        return self._add(Histogram(f"rollbackd_{name}", text, (*by, *more), buckets, unsaved), by, words)

    def _gauge(
        self,
        name: str,
        text: str,
        by: Labels,
        more: Labels = (),
        words: Words = NO_WORDS,
        *,
        optional: bool = False,
    ) -> Gauge:
        return self._add(Gauge(f"rollbackd_{name}", text, (*by, *more), optional=optional), by, words)

    def _add(self, family: AnyFamily, by: Labels, words: Words) -> AnyFamily:
        """Have a family whose children are, for each target (or hook, …) that is configured, each of these words."""
        self._families.append(family)
        self._children[family.name] = (by, words)
        return family

    def _make_daemons(self) -> None:
        self._reload = self._gauge(
            "configuration_last_reload_successful",
            "Whether the last reading of the configuration succeeded.",
            BY_DAEMON,
        )
        self._reloaded_at = self._gauge(
            "configuration_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was read.",
            BY_DAEMON,
        )
        self._deliveries = self._counter(
            "deliveries", "Deliveries that were recorded, by what came of them.",
            BY_HOOK, ("outcome",), every(DELIVERY_OUTCOMES),
        )  # fmt: skip
        self._refusals = self._counter(
            "deliveries_refused", "Deliveries that were refused, by reason.", BY_HOOK, ("reason",), every(REFUSALS)
        )  # fmt: skip
        self._events = self._counter(
            "events", "Events that were acted on, by what came of them.",
            BY_DAEMON, ("kind", "result"), every(EventKind, EventResult),
        )  # fmt: skip
        self._pending = self._gauge(
            "events_pending", "Recorded events that nothing was done about yet.", BY_DAEMON
        )
        self._oldest_pending = self._gauge(
            "events_oldest_pending_timestamp_seconds",
            "When the oldest of these was received; absent where none is.",
            BY_DAEMON,
            optional=True,
        )
        self._queue = self._gauge("store_queue_length", "Records that wait to be committed.", BY_DAEMON)
        # These two begin anew with each process: saving them would be a commit, and so on for ever.
        self._commits = self._histogram(
            "store_commit_duration_seconds", "How long the store's commits took.", COMMIT_SECONDS, BY_DAEMON, kept=False
        )  # fmt: skip
        self._commit_failures = self._counter(
            "store_commit_failures", "Records that couldn't be committed.", BY_DAEMON, kept=False
        )
        # By environment and not by target: 14 kinds of steps with their buckets are 180 series each.
        self._steps = self._histogram(
            "step_duration_seconds", "How long steps took that were done.",
            STEP_SECONDS, BY_ENVIRONMENT, ("step",), every(STEP_KINDS),
        )  # fmt: skip
        self._failures = self._counter(
            "step_failures", "Attempts at steps that failed.", BY_ENVIRONMENT, ("step",), every(STEP_KINDS)
        )
        self._checks = self._counter(
            "checks", "Checks that were made after downgrades, by what they found.",
            BY_ENVIRONMENT, ("check", "outcome"), every(CHECKS, Outcome),
        )  # fmt: skip

    def _make_targets(self) -> None:
        self._evidence = self._counter(
            "evidence", "Readings and alerts, by where they come from and their quality.",
            BY_TARGET, ("source", "quality"), EVIDENCE,
        )  # fmt: skip
        self._gates = self._counter(
            "gate_answers", "Answers to CD jobs that asked whether they may deploy.",
            BY_TARGET, ("verdict",), every(GATE_VERDICTS),
        )  # fmt: skip
        self._started = self._counter("deployments_started", "Deployments that began.", BY_TARGET)
        self._deployments = self._counter(
            "deployments", "Deployments that ended, by outcome.", BY_TARGET, ("outcome",), every(DEPLOYMENT_OUTCOMES)
        )  # fmt: skip
        self._watched = self._gauge(
            "deployments_watched", "Whether a deployment is being watched.", BY_TARGET
        )
        self._lead = self._histogram(
            "deployment_lead_time_seconds",
            "From the commit, where the CD system says when, until the release that was kept ran.",
            DAYS,
            BY_TARGET,
        )
        self._restore = self._histogram(
            "deployment_restore_time_seconds",
            "From a deployment's failure until it was rolled back.",
            MINUTES_AND_HOURS,
            BY_TARGET,
        )
        # Its words are the rows of the matrix that is in force.
        self._decisions = self._counter(
            "decisions", "Decisions, by row and action.", BY_TARGET, ("row", "action")
        )
        self._runs = self._counter(
            "runs", "Runs that ended, by trigger and outcome.",
            BY_TARGET, ("trigger", "outcome"), every(TRIGGERS, sorted(FINISHED)),
        )  # fmt: skip
        self._holds = self._counter("run_holds", "How often runs were held for a person.", BY_TARGET)
        self._durations = self._histogram(
            "run_duration_seconds",
            "How long runs were at work, without the time that they waited for a person.",
            MINUTES_AND_HOURS,
            BY_TARGET,
        )
        self._waits = self._histogram(
            "run_wait_seconds", "How long runs waited for a person.",
            MINUTES_AND_HOURS, BY_TARGET, ("reason",), every(WAITS),
        )  # fmt: skip
        self._unfinished = self._gauge(
            "runs_unfinished", "Runs that aren't finished, by state.",
            BY_TARGET, ("state",), every(sorted(UNFINISHED)),
        )  # fmt: skip
        self._since = self._gauge(
            "run_state_since_timestamp_seconds",
            "Since when the unfinished run is in its state; absent where there is none.",
            BY_TARGET, ("state",), every(sorted(UNFINISHED)), optional=True,
        )  # fmt: skip
        self._progress = self._gauge(
            "step_progress_ratio", "How far the step that is under way is; absent where none says.",
            BY_TARGET, ("step",), every(STEP_KINDS), optional=True,
        )  # fmt: skip
        self._downgrades = self._counter(
            "downgrades", "Where databases stood after downgrades.", BY_TARGET, ("standing",), every(STANDINGS)
        )  # fmt: skip
        self._drifts = self._counter(
            "schema_drifts", "How often a schema wasn't the documented or rehearsed one.",
            BY_TARGET, ("found",), every((AT_REST, *DRIFTS.values())),
        )  # fmt: skip
        self._restored = self._counter(
            "rows_restored", "Rows and values that were brought back out of archives.", BY_TARGET
        )
        self._backup_time = self._gauge(
            "backup_last_success_timestamp_seconds", "When the newest proved backup was taken.", BY_TARGET, optional=True
        )  # fmt: skip
        self._backup_size = self._gauge(
            "backup_last_size_bytes", "Size of the newest proved backup.", BY_TARGET, optional=True
        )
        self._backup_level = self._gauge(
            "backup_last_proof_level", "Proof level of the newest proved backup.", BY_TARGET, optional=True
        )
        self._paused = self._gauge("automation_paused", "Whether a person paused automation.", BY_TARGET)

    def _make_way_back(self) -> None:
        self._price = {
            field: self._gauge(f"way_back_{name}", text, BY_TARGET, optional=True)
            for name, text, field, _ in PRICE
        }
        self._way = self._gauge(
            "way_back", "The way back that is ready (1) while a deployment is watched.",
            BY_TARGET, ("way",), every(WAYS),
        )  # fmt: skip
        self._verdict = self._gauge(
            "way_back_verdict", "What the way back that is ready will do (1).", BY_TARGET, ("verdict",), every(Verdict)
        )  # fmt: skip
        self._blocked = self._gauge(
            "way_back_blocked",
            "Whether the deployment that is watched can't be rolled back as things stand.",
            BY_TARGET,
        )

    def expect(self, targets: tuple[Target, ...], hooks: tuple[str, ...], rows: Mapping[str, str]) -> None:
        """Have the children that can exist with this configuration; `rows` are the matrix's, each with its action.

        What is new begins at zero, or where it was left; what isn't configured any more isn't shown.
        """
        self._environment = {t.name: t.environment for t in targets}
        self._stale_backups = set(self._environment)
        configured: dict[Labels, list[Labels]] = {
            BY_DAEMON: [()],
            BY_HOOK: [(hook,) for hook in (*hooks, UNKNOWN_HOOK)],
            BY_ENVIRONMENT: [(environment,) for environment in sorted(set(self._environment.values()))],
            BY_TARGET: list(self._environment.items()),
        }
        for family in self._families:
            by, words = self._children[family.name]
            if family is self._decisions:
                words = tuple(rows.items())
            family.expect([(*first, *more) for first in configured[by] for more in words])

    # -- what is shown -------------------------------------------------------------------------------------------------

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition in the format that an Accept header asks for, and its content type.

        OpenMetrics has exemplars: the run or the deployment behind an observation.
        """
        return self._text.write(accept)

    # -- totals --------------------------------------------------------------------------------------------------------

    def restore(self, totals: Mapping[str, float]) -> None:
        """Go on from what was counted before the last restart."""
        families = {family.name: family for family in self._families if isinstance(family, Total)}
        for key, amount in totals.items():
            name, *parts = key.split(SEPARATOR)
            if name in families:
                families[name].restore(tuple(parts), amount)

    def take_unsaved(self) -> dict[str, float]:
        """What was counted since the last call, by the store's keys."""
        taken = dict(self._unsaved)
        self._unsaved.clear()
        return taken

    def put_back(self, amounts: Mapping[str, float]) -> None:
        """It couldn't be saved: it is the next call's."""
        for key, amount in amounts.items():
            self._unsaved[key] = self._unsaved.get(key, 0.0) + amount

    # -- what is looked at every few seconds ---------------------------------------------------------------------------

    def set_reload(self, ok: bool, at: float) -> None:
        """Note that the configuration was read (anew), or was refused and the one before is in force.

        Args:
            at: seconds since 1970.
        """
        self._reload.set((), float(ok))
        if ok:
            self._reloaded_at.set((), at)

    def set_queues(self, waiting: int, pending: int, oldest: datetime | None) -> None:
        """Set how many records wait for a commit, how many events for somebody who acts, and since when the oldest does."""
        self._queue.set((), waiting)
        self._pending.set((), pending)
        self._oldest_pending.set((), oldest.timestamp() if oldest is not None else None)

    def set_runs(self, unfinished: Iterable[tuple[str, str, datetime]]) -> None:
        """Set the runs that aren't finished: target, state, and since when it is in it."""
        counts: dict[Labels, int] = {}
        since: dict[Labels, float] = {}
        for target, state, at in unfinished:
            labels = (target, self._environment.get(target, ""), state)
            counts[labels] = counts.get(labels, 0) + 1
            since[labels] = min(since.get(labels, at.timestamp()), at.timestamp())
        for child in list(self._unfinished.values):
            self._unfinished.set(child, counts.get(child, 0))
            self._since.set(child, since.get(child))

    def set_watched(self, targets: set[str]) -> None:
        """Set which targets have a watched deployment."""
        for target, environment in self._environment.items():
            self._watched.set((target, environment), float(target in targets))
            if target not in targets:
                self._set_price(target, environment, {})

    def set_paused(self, targets: set[str]) -> None:
        """Set whose automation is paused; `*` stands for all."""
        for target, environment in self._environment.items():
            self._paused.set((target, environment), float(target in targets or EVERYTHING in targets))

    def take_stale_backups(self) -> set[str]:
        """The targets whose backups may have changed since the last call."""
        stale, self._stale_backups = self._stale_backups, set()
        return stale

    def set_backup(self, target: str, newest: tuple[float, int, int] | None) -> None:
        """Set the newest proved backup of a target: seconds since 1970, bytes, proof level; None where there is none."""
        labels = (target, self._environment.get(target, ""))
        taken_at_s, size_bytes, level = newest or (None, None, None)
        self._backup_time.set(labels, taken_at_s)
        self._backup_size.set(labels, size_bytes)
        self._backup_level.set(labels, level)

    def commit_ended(self, seconds: float, failed: int) -> None:
        """The store committed what waited; so many records of it couldn't be."""
        self._commits.observe((), seconds)
        if failed:
            self._commit_failures.add((), failed)

    # -- what happens --------------------------------------------------------------------------------------------------

    def listen(self, name: str, fields: Fields) -> None:
        """Be told that something happened."""
        counted = self._TOLD.get(name)
        if counted is not None:
            counted(self, fields)

    def _of(self, fields: Fields) -> tuple[str, str]:
        target = str(fields["target"])
        return target, self._environment.get(target, "")

    def _set_price(self, target: str, environment: str, fields: Mapping[str, object]) -> None:
        """The price of going back; without fields there is nothing to go back from."""
        for _, _, field, has_unknown in PRICE:
            value = fields.get(field)
            amount = float(value) if isinstance(value, (int, float)) else None
            if has_unknown and amount is not None and amount < 0:
                amount = None
            self._price[field].set((target, environment), amount)
        for way in WAYS:
            self._way.set((target, environment, way), float(way == fields.get("way_back")))
        for verdict in Verdict:
            self._verdict.set((target, environment, verdict), float(verdict == fields.get("verdict")))
        self._blocked.set((target, environment), float(bool(fields.get("blockers"))))

    def _priced(self, fields: Fields) -> None:
        self._set_price(*self._of(fields), fields)

    def _missed(self, fields: Fields) -> None:
        self._set_price(*self._of(fields), {"blockers": True})

    def _delivery(self, fields: Fields) -> None:
        self._deliveries.add((str(fields["hook"]), str(fields["outcome"])))

    def _refusal(self, fields: Fields) -> None:
        self._refusals.add((str(fields["hook"]), str(fields["reason"])))

    def _event(self, fields: Fields) -> None:
        self._events.add((str(fields["kind"]), str(fields["result"])))

    def _measurement(self, fields: Fields) -> None:
        self._evidence.add((*self._of(fields), str(fields.get("source", PROBE)), str(fields["quality"])))

    def _signal(self, fields: Fields) -> None:
        self._evidence.add((*self._of(fields), ALERT, str(Quality.OK)))

    def _gate(self, fields: Fields) -> None:
        self._gates.add((*self._of(fields), str(fields["verdict"])))

    def _began(self, fields: Fields) -> None:
        self._started.add(self._of(fields))
        self._watched.set(self._of(fields), 1.0)

    def _deployment(self, fields: Fields) -> None:
        labels = self._of(fields)
        example = {"deployment": str(fields["deployment"])}
        self._deployments.add((*labels, str(fields["outcome"])))
        self._watched.set(labels, 0.0)
        self._set_price(*labels, {})
        for histogram, field in ((self._lead, "lead_s"), (self._restore, "restore_s")):
            seconds = fields.get(field)
            if isinstance(seconds, float):
                histogram.observe(labels, seconds, example)

    def _decision(self, fields: Fields) -> None:
        self._decisions.add((*self._of(fields), str(fields["row"]), str(fields["action"])))

    def _run(self, fields: Fields) -> None:
        labels = self._of(fields)
        self._clear_progress(labels)
        if fields["state"] == RunState.HELD:
            self._holds.add(labels)
        else:
            self._ended(labels, fields, str(fields["state"]))

    def _moved(self, fields: Fields) -> None:
        """The ends that a person or the clock brings about; the engine tells of its own."""
        if fields["after"] in FINISHED:
            self._ended(self._of(fields), fields, str(fields["after"]))

    def _ended(self, labels: tuple[str, str], fields: Fields, outcome: str) -> None:
        self._runs.add((*labels, str(fields["trigger"]), outcome))
        spent, example = fields["spent"], {"run": str(fields["run"])}
        if not isinstance(spent, dict):
            return
        if RunState.RUNNING in spent:
            self._durations.observe(labels, spent[RunState.RUNNING], example)
        for reason, state in WAITS.items():
            if state in spent:
                self._waits.observe((*labels, reason), spent[state], example)

    def _step(self, fields: Fields) -> None:
        target, environment = self._of(fields)
        kind, phase = str(fields["kind"]), fields["phase"]
        if phase != StepPhase.INTENT:
            self._clear_progress((target, environment))
        if phase == StepPhase.FAILED:
            self._failures.add((environment, kind))
        if phase == StepPhase.DONE:
            if isinstance(fields["seconds"], float) and fields["seconds"] > 0:
                self._steps.observe((environment, kind), fields["seconds"], {"run": str(fields["run"])})
            self._stale_backups.add(target)
        found = fields.get("findings")
        if (
            kind == "validate_database"
            and phase in (StepPhase.DONE, StepPhase.HELD)
            and isinstance(found, dict)
        ):
            self._checked(target, environment, found)

    def _checked(self, target: str, environment: str, found: Mapping[str, str]) -> None:
        for check, outcome in found.items():
            closed = "own" if check.startswith("own:") else check if check in CHECKS else "other"
            self._checks.add((environment, closed, outcome))
            if check in DRIFTS and outcome in (Outcome.WARNED, Outcome.FAILED):
                self._drifts.add((target, environment, DRIFTS[check]))

    def _progressed(self, fields: Fields) -> None:
        """A target takes one step at a time: with the next one, the one before is over."""
        self._clear_progress(self._of(fields))
        done, total = fields["done"], fields["total"]
        if isinstance(done, (int, float)) and isinstance(total, (int, float)) and total > 0:
            self._progress.set((*self._of(fields), str(fields["kind"])), min(done / total, 1.0))

    def _clear_progress(self, target: tuple[str, str]) -> None:
        for kind in STEP_KINDS:
            self._progress.set((*target, kind), None)

    def _backup(self, fields: Fields) -> None:
        self._clear_progress(self._of(fields))
        self._stale_backups.add(str(fields["target"]))

    def _pruned(self, _: Fields) -> None:
        self._stale_backups = set(self._environment)

    def _stood(self, fields: Fields) -> None:
        self._downgrades.add((*self._of(fields), str(fields["standing"])))

    def _drifted(self, fields: Fields) -> None:
        self._drifts.add((*self._of(fields), AT_REST))

    def _bring_back(self, fields: Fields) -> None:
        if isinstance(fields["restored"], int) and fields["restored"]:
            self._restored.add(self._of(fields), fields["restored"])

    def _configured(self, _: Fields) -> None:
        self.set_reload(ok=True, at=time.time())

    def _misconfigured(self, _: Fields) -> None:
        self.set_reload(ok=False, at=time.time())

    _TOLD: Mapping[str, Callable[["Metrics", Fields], None]] = {
        "delivery_answered": _delivery,
        "delivery_refused": _refusal,
        "event_settled": _event,
        "measurement_taken": _measurement,
        "signal_noted": _signal,
        "gate_answered": _gate,
        "deployment_started": _began,
        "deployment_ended": _deployment,
        "decision_made": _decision,
        "run_ended": _run,
        "run_moved": _moved,
        "step_recorded": _step,
        "step_progressed": _progressed,
        "backup_progressed": _progressed,
        "backup_ended": _backup,
        "backups_pruned": _pruned,
        "downgrade_settled": _stood,
        "schema_drifted": _drifted,
        "way_back_priced": _priced,
        "way_back_missed": _missed,
        "data_restored": _bring_back,
        "configuration_reloaded": _configured,
        "configuration_refused": _misconfigured,
    }
