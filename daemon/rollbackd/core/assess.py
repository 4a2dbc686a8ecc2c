"""From evidence to facts. Looked at, not estimated; what can't be known is said to be unknown."""

from datetime import datetime, timedelta
from enum import StrEnum

import msgspec

from rollbackd.core.events import Category, Severity
from rollbackd.core.evidence import Level, ProbeState, Signal
from rollbackd.core.facts import Application, Bug, Data, Errors, Facts, Migration, Performance, Watch
from rollbackd.core.readings import MetricEvidence

# A migration that began and of whose end nobody spoke for so long is no longer waited for.
LONGEST_MIGRATION_S = 86_400.0


class DeployWord(StrEnum):
    """What the CD system last said about the deploy or its migration."""

    NOTHING = "nothing"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one assessment looks at.

    `heads_before` and `heads_now` are the rows of the version table, None where they aren't known.
    `schema_changed` compares the catalog now with the documented one at `heads_before`, None where either is missing.
    `heads_expected` is where the release wanted to go, empty where nobody said.
    `names_firing_elsewhere` are signals that fire for services where nothing was deployed.
    `taken_by_migration` are the rows and values that the migration takes away when it is run again on the backup from before
    it, by table; None while nobody knows.
    `investigated_until` is the deadline of the investigation that is open; with `slow_becomes_critical` what is still
    degraded then is taken for critical.
    """

    started_at: datetime
    succeeded_at: datetime | None = None
    bake_time_s: float
    start_grace_s: float
    deploy: DeployWord
    migration: DeployWord
    heads_before: tuple[str, ...] | None = None
    heads_now: tuple[str, ...] | None = None
    heads_expected: tuple[str, ...] = ()
    heads_now_unknown_to_scripts: tuple[str, ...] = ()
    schema_changed: bool | None = None
    signals: tuple[Signal, ...] = ()
    names_firing_elsewhere: frozenset[str] = frozenset()
    probes: dict[str, ProbeState] = {}
    probes_failing_before: frozenset[str] = frozenset()
    taken_by_migration: dict[str, int] | None = None
    metrics: tuple[MetricEvidence, ...] = ()
    investigated_until: datetime | None = None
    slow_becomes_critical: bool = False


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """The facts, why each is what it is, and the evidence that was set aside with its reason."""

    facts: Facts
    reasons: dict[str, str]
    set_aside: tuple[str, ...]


def assess(evidence: Evidence, now: datetime) -> Assessment:
    """Conclude the facts from the evidence as of `now`."""
    attributed, set_aside = _attribute(evidence, now)
    migration, migration_reason = _migration(evidence)
    application, application_reason, probes_set_aside = _application(evidence, migration, now)
    errors, errors_reason = _errors(attributed, evidence.metrics)
    performance, performance_reason = _performance(attributed, evidence, now)
    bugs = [s for s in attributed if s.category is Category.BUG]
    losses = [s for s in attributed if s.category is Category.DATA_LOSS]
    data, data_reason = _data(losses, evidence.taken_by_migration)
    watch, watch_reason = _watch(evidence, now)
    facts = Facts(
        migration=migration,
        errors=errors,
        performance=performance,
        bug=Bug.REPORTED if bugs else Bug.NONE,
        data=data,
        application=application,
        watch=watch,
    )
    reasons = {
        "migration": migration_reason,
        "errors": errors_reason,
        "performance": performance_reason,
        "bug": _named(bugs, "nobody reported a bug in the migration"),
        "data": data_reason,
        "application": application_reason,
        "watch": watch_reason,
    }
    set_aside += probes_set_aside + _metrics_set_aside(evidence.metrics)
    return Assessment(facts=facts, reasons=reasons, set_aside=tuple(set_aside))


def _attribute(evidence: Evidence, now: datetime) -> tuple[list[Signal], list[str]]:
    """Keep the signals that this deploy can have caused; name the others with the reason."""
    attributed: list[Signal] = []
    set_aside: list[str] = []
    for signal in evidence.signals:
        if not signal.fires(now):
            continue
        if signal.started_at < evidence.started_at:
            set_aside.append(
                f"signal {signal.name}: fired before the deploy, since {signal.started_at:%H:%M:%S}"
            )
        elif signal.name in evidence.names_firing_elsewhere:
            set_aside.append(f"signal {signal.name}: fires as well where nothing was deployed")
        else:
            attributed.append(signal)
    return attributed, set_aside


def _errors(signals: list[Signal], metrics: tuple[MetricEvidence, ...]) -> tuple[Errors, str]:
    """Errors and unavailability: alerts, and metrics that are past their limit."""
    of = (Category.ERRORS, Category.AVAILABILITY)
    alerts = [s for s in signals if s.category in of and s.severity is not Severity.INFO]
    bad, untold = _metrics_of(metrics, of)
    if alerts or bad:
        return Errors.FIRING, _said(alerts, bad)
    if untold:
        return Errors.UNKNOWN, f"can't tell: {_texts(untold)}"
    return Errors.NONE, "no error signal began after the deploy"


def _performance(signals: list[Signal], evidence: Evidence, now: datetime) -> tuple[Performance, str]:
    """The worst of alerts and metrics. What stays degraded through its investigation is critical where the policy says so."""
    alerts = [s for s in signals if s.category is Category.PERFORMANCE and s.severity is not Severity.INFO]
    bad, untold = _metrics_of(evidence.metrics, (Category.PERFORMANCE,))
    if alerts or bad:
        said = _said(alerts, bad)
        if any(s.severity is Severity.CRITICAL for s in alerts) or any(
            m.counts_as() is Level.CRITICAL for m in bad
        ):
            return Performance.CRITICAL, said
        deadline = evidence.investigated_until
        if evidence.slow_becomes_critical and deadline is not None and now >= deadline:
            return (
                Performance.CRITICAL,
                f"{said}; still so when its investigation ended at {deadline:%H:%M:%S} UTC, which the policy takes for critical",
            )
        return Performance.DEGRADED, said
    if untold:
        return Performance.UNKNOWN, f"can't tell: {_texts(untold)}"
    return Performance.NORMAL, "no performance signal began after the deploy"


def _metrics_of(
    metrics: tuple[MetricEvidence, ...], of: tuple[Category, ...]
) -> tuple[list[MetricEvidence], list[MetricEvidence]]:
    """Those of these categories that speak against the deploy, and those that can't tell."""
    ours = [m for m in metrics if m.category in of]
    bad = [m for m in ours if m.counts_as() in (Level.DEGRADED, Level.CRITICAL)]
    return bad, [m for m in ours if m.cannot_tell]


def _metrics_set_aside(metrics: tuple[MetricEvidence, ...]) -> list[str]:
    return [
        f"metric {m.name}: was {m.before} before the deploy already"
        for m in metrics
        if not m.cannot_tell and m.counts_as() is None
    ]


def _migration(evidence: Evidence) -> tuple[Migration, str]:
    before, now = evidence.heads_before, evidence.heads_now
    if now is None:
        return Migration.UNKNOWN, "the version table can't be read"
    if before is None:
        return Migration.UNKNOWN, f"the revision before the deploy isn't documented; now {heads_text(now)}"
    failed = DeployWord.FAILED in (evidence.migration, evidence.deploy)
    failed_migration = evidence.migration is DeployWord.FAILED
    if evidence.heads_now_unknown_to_scripts:
        unknown = ", ".join(evidence.heads_now_unknown_to_scripts)
        return Migration.UNKNOWN, f"the version table names {unknown}, which no kept script knows"
    if set(now) == set(before):
        return _unmoved(evidence, failed, before)
    if evidence.heads_expected and set(now) == set(evidence.heads_expected):
        moved = f"moved from {heads_text(before)} to {heads_text(now)}"
        if failed_migration:
            return Migration.FAILED_MIDWAY, f"the migration failed after it had {moved}"
        return Migration.APPLIED, moved
    if failed_migration:
        return (
            Migration.FAILED_MIDWAY,
            f"the migration failed after {heads_text(now)}; it began at {heads_text(before)}",
        )
    if evidence.migration is DeployWord.STARTED:
        return Migration.RUNNING, f"the migration is under way, now at {heads_text(now)}"
    if evidence.heads_expected and evidence.migration is not DeployWord.SUCCEEDED:
        if failed:
            return (
                Migration.FAILED_MIDWAY,
                f"the deploy failed with the database at {heads_text(now)}, short of {heads_text(evidence.heads_expected)}",
            )
        return (
            Migration.RUNNING,
            f"on the way to {heads_text(evidence.heads_expected)}, now at {heads_text(now)}",
        )
    return Migration.APPLIED, f"moved from {heads_text(before)} to {heads_text(now)}"


def _unmoved(evidence: Evidence, failed: bool, before: tuple[str, ...]) -> tuple[Migration, str]:
    at = heads_text(before)
    if not failed:
        if evidence.migration is DeployWord.STARTED:
            return Migration.RUNNING, f"the migration is under way, still at {at}"
        return Migration.NOT_MOVED, f"the deploy moved no revision; still at {at}"
    if evidence.schema_changed is None:
        return Migration.UNKNOWN, f"failed with the stamp at {at}, and the schema before it isn't documented"
    if evidence.schema_changed:
        return (
            Migration.FAILED_INSIDE,
            f"failed with the stamp at {at}, but the schema is no longer that of {at}",
        )
    if evidence.migration is DeployWord.FAILED:
        return (
            Migration.FAILED_CLEAN,
            f"the migration failed and was undone whole; stamp and schema are those of {at}",
        )
    return Migration.NOT_MOVED, f"the deploy failed before it moved a revision; still at {at}"


def _application(
    evidence: Evidence, migration: Migration, now: datetime
) -> tuple[Application, str, list[str]]:
    set_aside = [
        f"probe {name}: failed before the deploy already"
        for name, state in evidence.probes.items()
        if state is ProbeState.FAILING and name in evidence.probes_failing_before
    ]
    if evidence.deploy is DeployWord.FAILED and migration in (Migration.APPLIED, Migration.NOT_MOVED):
        return Application.FAILING, "the CD system says that the deploy failed", set_aside
    grace_ends = evidence.started_at + timedelta(seconds=evidence.start_grace_s)
    if evidence.succeeded_at is None and now < grace_ends:
        return Application.UNKNOWN, "the deploy hasn't finished", set_aside
    counted = {n: s for n, s in evidence.probes.items() if n not in evidence.probes_failing_before}
    failing = sorted(n for n, s in counted.items() if s is ProbeState.FAILING)
    if failing:
        return Application.FAILING, f"failing: {', '.join(failing)}", set_aside
    if counted and all(s is ProbeState.HEALTHY for s in counted.values()):
        return Application.HEALTHY, f"healthy: {', '.join(sorted(counted))}", set_aside
    if not counted:
        return Application.UNKNOWN, "no probe that could tell", set_aside
    unsettled = sorted(f"{n} {s}" for n, s in counted.items() if s is not ProbeState.HEALTHY)
    return Application.UNKNOWN, f"not settled: {', '.join(unsettled)}", set_aside


def _data(losses: list[Signal], taken: dict[str, int] | None) -> tuple[Data, str]:
    """A report alone is no loss: it becomes one where the migration itself takes rows away."""
    if not losses:
        return Data.INTACT, "nobody reported lost rows"
    named = _named(losses, "")
    if taken is None:
        return Data.LOSS_REPORTED, f"{named}; what the migration takes away isn't known"
    if not any(taken.values()):
        return (
            Data.LOSS_NOT_BY_MIGRATION,
            f"{named}; the migration, run again on the backup from before it, takes nothing away",
        )
    tables = ", ".join(f"{rows:,} of {table}" for table, rows in sorted(taken.items()) if rows)
    return (
        Data.LOSS_CONFIRMED,
        f"{named}; the migration, run again on the backup from before it, takes away {tables}",
    )


def _watch(evidence: Evidence, now: datetime) -> tuple[Watch, str]:
    longest = evidence.started_at + timedelta(seconds=LONGEST_MIGRATION_S)
    if evidence.deploy is DeployWord.STARTED and evidence.migration is DeployWord.STARTED and now < longest:
        return Watch.BAKING, "the migration is under way"
    counted_from = evidence.succeeded_at or evidence.started_at + timedelta(seconds=evidence.start_grace_s)
    ends = counted_from + timedelta(seconds=evidence.bake_time_s)
    if now < ends:
        return Watch.BAKING, f"in its bake time until {ends:%H:%M:%S} UTC"
    if evidence.investigated_until is not None and now < evidence.investigated_until:
        return Watch.BAKING, f"under investigation until {evidence.investigated_until:%H:%M:%S} UTC"
    return Watch.OVER, f"the bake time ended at {ends:%H:%M:%S} UTC"


def _named(signals: list[Signal], otherwise: str) -> str:
    if not signals:
        return otherwise
    return "; ".join(
        f"{s.name} ({s.severity}) from {s.source}, since {s.started_at:%H:%M:%S} UTC" for s in signals
    )


def _said(signals: list[Signal], metrics: list[MetricEvidence]) -> str:
    alerts = [_named(signals, "")] if signals else []
    return "; ".join([*alerts, *([_texts(metrics)] if metrics else [])])


def _texts(metrics: list[MetricEvidence]) -> str:
    return "; ".join(m.text() for m in metrics)


def heads_text(heads: tuple[str, ...] | list[str]) -> str:
    """Heads as a person reads them; an empty version table is `base`."""
    return " + ".join(sorted(heads)) or "base"
