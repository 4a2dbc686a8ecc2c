"""From evidence to facts: what is looked at, what is set aside, and what stays unknown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from rollbackd.core.assess import Assessment, DeployWord, Evidence, assess, heads_text
from rollbackd.core.events import Category, Severity
from rollbackd.core.evidence import Measurement, ProbeRule, ProbeState, Quality, Signal, judge_probe
from rollbackd.core.facts import Application, Bug, Data, Errors, Migration, Performance, Watch
from rollbackd.core.readings import MetricEvidence, MetricState

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
W = DeployWord
OLD, MID, NEW = ("a1",), ("b1",), ("c1",)


def at(minutes: float) -> datetime:
    return T0 + timedelta(minutes=minutes)


def evidence(**changed: Any) -> Evidence:
    """A deploy that migrated a1 to c1 and succeeded after a minute; its probe is healthy."""
    usual: dict[str, Any] = {
        "started_at": T0,
        "succeeded_at": at(1),
        "bake_time_s": 900.0,
        "start_grace_s": 300.0,
        "deploy": W.SUCCEEDED,
        "migration": W.SUCCEEDED,
        "heads_before": OLD,
        "heads_now": NEW,
        "heads_expected": NEW,
        "schema_changed": True,
        "probes": {"web": ProbeState.HEALTHY},
    }
    return Evidence(**(usual | changed))


def signal(category: Category, severity: Severity = Severity.WARNING, **changed: Any) -> Signal:
    usual: dict[str, Any] = {"source": "prom", "key": "k", "name": "Alert", "started_at": at(2)}
    return Signal(category=category, severity=severity, **(usual | changed))


def changes(found: Assessment) -> dict[str, str]:
    """The facts that aren't those of a healthy deployment in its bake time."""
    healthy = msgspec.to_builtins(assess(evidence(), at(5)).facts)
    return {k: v for k, v in msgspec.to_builtins(found.facts).items() if v != healthy[k]}


def test_a_deploy_that_went_well_is_applied_healthy_and_baking() -> None:
    found = assess(evidence(), at(5))
    assert msgspec.to_builtins(found.facts) == {
        "migration": Migration.APPLIED,
        "errors": Errors.NONE,
        "performance": Performance.NORMAL,
        "bug": Bug.NONE,
        "data": Data.INTACT,
        "application": Application.HEALTHY,
        "watch": Watch.BAKING,
    }
    assert found.reasons["migration"] == "moved from a1 to c1"
    assert found.set_aside == ()
    assert set(found.reasons) == set(found.facts.__struct_fields__)
    assert all(found.reasons.values())


FAILED: dict[str, Any] = {"migration": W.FAILED, "deploy": W.FAILED, "succeeded_at": None}


@pytest.mark.parametrize(
    ("changed", "migration", "says"),
    [
        # The migration failed: undone whole, midway, inside a revision.
        (FAILED | {"heads_now": OLD, "schema_changed": False}, Migration.FAILED_CLEAN, "undone whole"),
        (FAILED | {"heads_now": MID}, Migration.FAILED_MIDWAY, "failed after b1; it began at a1"),
        (FAILED | {"heads_now": OLD}, Migration.FAILED_INSIDE, "no longer that of a1"),
        # It says that it failed and is there all the same.
        (FAILED, Migration.FAILED_MIDWAY, "failed after it had moved from a1 to c1"),
        # The deploy failed and nobody spoke of the migration: the database is asked.
        (FAILED | {"migration": W.NOTHING}, Migration.APPLIED, "moved from a1 to c1"),
        (FAILED | {"migration": W.NOTHING, "heads_now": MID}, Migration.FAILED_MIDWAY, "short of c1"),
        (
            FAILED | {"migration": W.NOTHING, "heads_now": OLD, "schema_changed": False},
            Migration.NOT_MOVED,
            "before it moved",
        ),
        (
            FAILED | {"migration": W.NOTHING, "heads_now": OLD},
            Migration.FAILED_INSIDE,
            "no longer that of a1",
        ),
        # Success is believed from the database alone.
        ({"heads_now": OLD, "schema_changed": False}, Migration.NOT_MOVED, "still at a1"),
        # Under way, by its own word or by where it is going.
        ({"migration": W.STARTED, "heads_now": OLD}, Migration.RUNNING, "still at a1"),
        ({"migration": W.STARTED, "heads_now": MID}, Migration.RUNNING, "now at b1"),
        ({"migration": W.NOTHING, "heads_now": MID}, Migration.RUNNING, "on the way to c1, now at b1"),
        # Nobody said where it was going.
        (
            {"migration": W.NOTHING, "heads_expected": (), "heads_now": MID},
            Migration.APPLIED,
            "moved from a1 to b1",
        ),
        # The order of heads means nothing.
        ({"heads_now": ("y", "x"), "heads_expected": ("x", "y")}, Migration.APPLIED, "to x + y"),
        # What can't be known is unknown.
        ({"heads_now": None}, Migration.UNKNOWN, "can't be read"),
        ({"heads_before": None}, Migration.UNKNOWN, "isn't documented; now c1"),
        ({"heads_now_unknown_to_scripts": NEW}, Migration.UNKNOWN, "names c1, which no kept script knows"),
        (FAILED | {"heads_now": OLD, "schema_changed": None}, Migration.UNKNOWN, "isn't documented"),
        (FAILED | {"heads_now": None}, Migration.UNKNOWN, "can't be read"),
    ],
)
def test_where_the_migration_stands_is_read_from_the_database(
    changed: dict[str, Any], migration: Migration, says: str
) -> None:
    found = assess(evidence(**changed), at(5))
    assert found.facts.migration is migration
    assert says in found.reasons["migration"]


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        (signal(Category.ERRORS), {"errors": "firing"}),
        (signal(Category.AVAILABILITY, Severity.CRITICAL), {"errors": "firing"}),
        (signal(Category.PERFORMANCE), {"performance": "degraded"}),
        (signal(Category.PERFORMANCE, Severity.CRITICAL), {"performance": "critical"}),
        # What somebody reports counts whatever its severity.
        (signal(Category.BUG, Severity.INFO), {"bug": "reported"}),
        (signal(Category.DATA_LOSS, Severity.INFO), {"data": "loss_reported"}),
        # An alert for information is no error.
        (signal(Category.ERRORS, Severity.INFO), {}),
        (signal(Category.PERFORMANCE, Severity.INFO), {}),
        # Over, over just now, and announced to be over later.
        (signal(Category.ERRORS, resolved_at=at(3)), {}),
        (signal(Category.ERRORS, resolved_at=at(5)), {}),
        (signal(Category.ERRORS, resolved_at=at(6)), {"errors": "firing"}),
        # Began with the deploy, to the second.
        (signal(Category.ERRORS, started_at=T0), {"errors": "firing"}),
    ],
)
def test_a_signal_changes_the_fact_of_its_category_and_no_other(
    found: Signal, changed: dict[str, str]
) -> None:
    assessment = assess(evidence(signals=(found,)), at(5))
    assert changes(assessment) == changed
    assert assessment.set_aside == ()
    for fact in changed:
        assert assessment.reasons[fact].startswith("Alert (")


@pytest.mark.parametrize("category", list(Category))
def test_what_fired_before_the_deploy_is_named_and_set_aside(category: Category) -> None:
    before = signal(category, Severity.CRITICAL, started_at=T0 - timedelta(seconds=1))
    assessment = assess(evidence(signals=(before,)), at(5))
    assert changes(assessment) == {}
    assert assessment.set_aside == ("signal Alert: fired before the deploy, since 09:59:59",)


@pytest.mark.parametrize("category", list(Category))
def test_what_fires_where_nothing_was_deployed_is_named_and_set_aside(category: Category) -> None:
    found = evidence(signals=(signal(category),), names_firing_elsewhere=frozenset({"Alert"}))
    assessment = assess(found, at(5))
    assert changes(assessment) == {}
    assert assessment.set_aside == ("signal Alert: fires as well where nothing was deployed",)


def test_of_several_slow_signals_the_worst_counts_and_all_are_named() -> None:
    slow = tuple(signal(Category.PERFORMANCE, severity, name=severity.value) for severity in Severity)
    assessment = assess(evidence(signals=slow), at(5))
    assert assessment.facts.performance is Performance.CRITICAL
    assert "warning (warning)" in assessment.reasons["performance"]
    assert "critical (critical)" in assessment.reasons["performance"]


P = ProbeState


@pytest.mark.parametrize(
    ("changed", "application", "says"),
    [
        ({"probes": {"web": P.HEALTHY, "db": P.HEALTHY}}, Application.HEALTHY, "healthy: db, web"),
        ({"probes": {"web": P.HEALTHY, "db": P.FAILING}}, Application.FAILING, "failing: db"),
        ({"probes": {"web": P.FAILING, "db": P.NO_DATA}}, Application.FAILING, "failing: web"),
        # Missing or unsettled data neither passes nor fails.
        ({"probes": {}}, Application.UNKNOWN, "no probe that could tell"),
        ({"probes": {"web": P.HEALTHY, "db": P.NO_DATA}}, Application.UNKNOWN, "not settled: db no_data"),
        ({"probes": {"web": P.UNSETTLED}}, Application.UNKNOWN, "not settled: web unsettled"),
        # A probe that failed before the deploy says nothing, not even once it is well.
        (
            {"probes": {"web": P.FAILING}, "probes_failing_before": frozenset({"web"})},
            Application.UNKNOWN,
            "no probe",
        ),
        (
            {"probes": {"web": P.HEALTHY}, "probes_failing_before": frozenset({"web"})},
            Application.UNKNOWN,
            "no probe",
        ),
        # While the deploy goes on, the old release goes down and the new one comes up.
        (
            {"succeeded_at": None, "deploy": W.STARTED, "probes": {"web": P.FAILING}},
            Application.UNKNOWN,
            "hasn't finished",
        ),
        # Unless that takes longer than the grace.
        (
            {"succeeded_at": None, "deploy": W.STARTED, "probes": {"web": P.FAILING}, "start_grace_s": 60.0},
            Application.FAILING,
            "failing: web",
        ),
        # The CD system says so; not where it is the migration that failed.
        ({"deploy": W.FAILED}, Application.FAILING, "the CD system says"),
        (
            FAILED | {"migration": W.NOTHING, "heads_now": OLD, "schema_changed": False},
            Application.FAILING,
            "the CD system says",
        ),
        (FAILED | {"heads_now": MID}, Application.UNKNOWN, "hasn't finished"),
        # What isn't known of the migration doesn't make the application fail.
        (FAILED | {"heads_now": None}, Application.UNKNOWN, "hasn't finished"),
    ],
)
def test_whether_the_application_works_is_settled_by_probes_and_the_cd_system(
    changed: dict[str, Any], application: Application, says: str
) -> None:
    found = assess(evidence(**changed), at(4))
    assert found.facts.application is application
    assert says in found.reasons["application"]


def test_a_probe_that_failed_before_is_named_and_set_aside() -> None:
    found = evidence(probes={"web": P.FAILING, "db": P.HEALTHY}, probes_failing_before=frozenset({"web"}))
    assessment = assess(found, at(5))
    assert assessment.facts.application is Application.HEALTHY
    assert assessment.set_aside == ("probe web: failed before the deploy already",)


@pytest.mark.parametrize(
    ("changed", "minutes", "watch"),
    [
        # Counted from the success.
        ({}, 15.9, Watch.BAKING),
        ({}, 16, Watch.OVER),
        # From the end of the grace where nobody said that it succeeded.
        ({"succeeded_at": None, "deploy": W.STARTED}, 19.9, Watch.BAKING),
        ({"succeeded_at": None, "deploy": W.STARTED}, 20, Watch.OVER),
        # A migration that is under way is waited for, a day long.
        ({"succeeded_at": None, "deploy": W.STARTED, "migration": W.STARTED}, 600, Watch.BAKING),
        ({"succeeded_at": None, "deploy": W.STARTED, "migration": W.STARTED}, 1441, Watch.OVER),
    ],
)
def test_the_bake_time_ends_to_the_second(changed: dict[str, Any], minutes: float, watch: Watch) -> None:
    assert assess(evidence(**changed), at(minutes)).facts.watch is watch


def test_the_same_evidence_gives_the_same_assessment_byte_for_byte() -> None:
    found = evidence(
        signals=(signal(Category.ERRORS), signal(Category.BUG, started_at=T0 - timedelta(hours=1))),
        probes={"b": P.FAILING, "a": P.FAILING},
        probes_failing_before=frozenset({"x", "y", "b"}),
    )
    encoded = {msgspec.json.encode(assess(found, at(5)), order="deterministic") for _ in range(20)}
    assert len(encoded) == 1


def test_heads_are_written_in_order_and_an_empty_table_is_base() -> None:
    assert heads_text(("b", "a")) == "a + b"
    assert heads_text([]) == "base"


# -- probes -----------------------------------------------------------------------------------------------------------

RULE = ProbeRule(name="web", failures=3, successes=2, stale_after_s=60)
READINGS = {
    "+": (Quality.OK, True),
    "-": (Quality.OK, False),
    "?": (Quality.OK, None),
    "e": (Quality.ERROR, None),
    "n": (Quality.NO_DATA, None),
    "s": (Quality.STALE, None),
}


@pytest.mark.parametrize(
    ("readings", "age_s", "state"),
    [
        # Nothing, nothing usable, nothing recent.
        ("", 0, P.NO_DATA),
        ("ens", 0, P.NO_DATA),
        ("+++", 61, P.NO_DATA),
        ("---", 61, P.NO_DATA),
        ("+++", 60, P.HEALTHY),
        # A streak settles it, one short of it doesn't.
        ("--", 0, P.UNSETTLED),
        ("---", 0, P.FAILING),
        ("+", 0, P.UNSETTLED),
        ("++", 0, P.HEALTHY),
        # A streak that was broken counts from the break.
        ("---+", 0, P.UNSETTLED),
        ("---++", 0, P.HEALTHY),
        ("++--", 0, P.UNSETTLED),
        ("--+--", 0, P.UNSETTLED),
        ("+---", 0, P.FAILING),
        # A reading that couldn't be made neither breaks a streak nor adds to it.
        ("--e", 0, P.UNSETTLED),
        ("--e-", 0, P.FAILING),
        ("+n+", 0, P.HEALTHY),
        # One that came without a verdict neither: no data never fails anything.
        ("???", 0, P.NO_DATA),
        ("--?", 0, P.UNSETTLED),
    ],
)
def test_only_a_streak_of_usable_readings_settles_a_probe(
    readings: str, age_s: float, state: ProbeState
) -> None:
    measurements = [
        Measurement(name="web", at=T0 - timedelta(seconds=len(readings) - 1 - i), quality=q, healthy=h)
        for i, (q, h) in enumerate(READINGS[r] for r in readings)
    ]
    assert judge_probe(RULE, measurements, T0 + timedelta(seconds=age_s)) is state


def test_a_probe_whose_last_usable_reading_is_old_has_no_data_however_many_errors_came_since() -> None:
    measurements = [Measurement(name="web", at=T0, quality=Quality.OK, healthy=False)] * 3 + [
        Measurement(name="web", at=T0 + timedelta(seconds=s), quality=Quality.ERROR) for s in range(0, 90, 10)
    ]
    assert judge_probe(RULE, measurements, T0 + timedelta(seconds=90)) is P.NO_DATA


@pytest.mark.parametrize(
    ("taken", "data", "says"),
    [
        # Nobody ran it again, or it couldn't be.
        (None, Data.LOSS_REPORTED, "what the migration takes away isn't known"),
        ({}, Data.LOSS_NOT_BY_MIGRATION, "takes nothing away"),
        ({"public.t": 0}, Data.LOSS_NOT_BY_MIGRATION, "takes nothing away"),
        (
            {"public.u": 3, "public.t": 1204, "public.v": 0},
            Data.LOSS_CONFIRMED,
            "takes away 1,204 of public.t, 3 of public.u",
        ),
    ],
)
def test_lost_rows_are_the_migrations_doing_only_where_it_takes_some_when_it_is_run_again(
    taken: dict[str, int] | None, data: Data, says: str
) -> None:
    reported = evidence(signals=(signal(Category.DATA_LOSS),), taken_by_migration=taken)
    found = assess(reported, at(5))
    assert found.facts.data is data
    assert found.reasons["data"].startswith("Alert")
    assert says in found.reasons["data"]
    # Without a claim nothing is lost: taking rows away may be what the migration is for.
    unreported = assess(evidence(taken_by_migration=taken), at(5))
    assert (unreported.facts.data, unreported.reasons["data"]) == (Data.INTACT, "nobody reported lost rows")


# -- metrics ---------------------------------------------------------------------------------------------------------------


def metric(state: str, category: Category = Category.PERFORMANCE, before: str = "normal") -> MetricEvidence:
    return MetricEvidence(
        name="m", category=category, state=MetricState(state), before=MetricState(before), reading="5"
    )


@pytest.mark.parametrize(
    ("metrics", "changed"),
    [
        ([metric("normal")], {}),
        ([metric("degraded")], {"performance": "degraded"}),
        ([metric("critical")], {"performance": "critical"}),
        # The worst wins, and what is known comes before what isn't.
        ([metric("degraded"), metric("critical"), metric("no_data")], {"performance": "critical"}),
        ([metric("no_data")], {"performance": "unknown"}),
        ([metric("unsettled"), metric("normal")], {"performance": "unknown"}),
        ([metric("critical", Category.ERRORS)], {"errors": "firing"}),
        ([metric("critical", Category.AVAILABILITY)], {"errors": "firing"}),
        ([metric("no_data", Category.AVAILABILITY)], {"errors": "unknown"}),
        ([metric("normal", Category.ERRORS), metric("degraded")], {"performance": "degraded"}),
        # As bad before the deploy already.
        ([metric("critical", before="critical")], {}),
        ([metric("critical", before="degraded")], {"performance": "critical"}),
    ],
)
def test_metrics_speak_for_their_category_and_only_where_they_are_worse_than_before(
    metrics: list[MetricEvidence], changed: dict[str, str]
) -> None:
    assert changes(assess(evidence(metrics=tuple(metrics)), at(5))) == changed


def test_alerts_and_metrics_are_named_together() -> None:
    both = evidence(
        metrics=(metric("degraded"), metric("critical", before="critical")),
        signals=(signal(Category.PERFORMANCE),),
    )
    found = assess(both, at(5))
    assert found.facts.performance is Performance.DEGRADED
    assert found.reasons["performance"] == "Alert (warning) from prom, since 10:02:00 UTC; m (degraded): 5"
    assert found.set_aside == ("metric m: was critical before the deploy already",)


def test_a_metric_that_can_not_tell_says_why() -> None:
    found = assess(evidence(metrics=(metric("no_data", Category.ERRORS), metric("unsettled"))), at(5))
    assert found.reasons["errors"] == "can't tell: m (no_data): 5"
    assert found.reasons["performance"] == "can't tell: m (unsettled): 5"


@pytest.mark.parametrize(
    ("minutes", "becomes_critical", "performance"),
    [
        (10, True, Performance.DEGRADED),
        (20, True, Performance.CRITICAL),
        (20, False, Performance.DEGRADED),
    ],
)
def test_what_is_still_degraded_at_the_deadline_is_critical_where_the_policy_says_so(
    minutes: float, becomes_critical: bool, performance: Performance
) -> None:
    slow = evidence(
        metrics=(metric("degraded"),), investigated_until=at(20), slow_becomes_critical=becomes_critical
    )
    assert assess(slow, at(minutes)).facts.performance is performance


def test_the_watch_goes_on_until_the_end_of_an_investigation() -> None:
    """The bake time ends at 16 minutes."""
    slow = evidence(metrics=(metric("degraded"),), investigated_until=at(20))
    found = [assess(slow, at(minutes)) for minutes in (15, 17, 20)]
    assert [f.facts.watch for f in found] == [Watch.BAKING, Watch.BAKING, Watch.OVER]
    assert found[1].reasons["watch"] == "under investigation until 10:20:00 UTC"
