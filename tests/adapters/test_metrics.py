"""What is exposed, when it is absent, and what survives: the listener told what the workflow tells."""

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from tests.workflow.rig import a_target

from rollbackd.adapters.metric_text import OPENMETRICS, PLAIN, form_for
from rollbackd.adapters.metrics import Metrics
from rollbackd.core.run import RunState

HOOKS = ("rollbackd",)
ROWS = {"kept-its-promise": "keep", "production-errors": "roll_back"}
SHOP = {"target": "shop", "environment": "staging"}
WHO_SCRAPES = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
PRICE: dict[str, Any] = {
    "target": "shop", "way_back": "stop_writes", "verdict": "reversible", "total_s": 14.0, "lock_s": 0.08, "rows_lost": 0,
    "rows_only_new": 1204, "growth": 40.0, "cheap_until_s": None, "blockers": [],
}  # fmt: skip


def a_metrics(*targets: str) -> Metrics:
    return Metrics(tuple(a_target(name) for name in targets or ("shop",)), HOOKS, ROWS)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Of ours: sample name and labels to value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_plain(metrics.text()[0].decode())
        for sample in family.samples
        if sample.name.startswith("rollbackd_")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"rollbackd_{name}", frozenset(labels.items())))


def end_of_a_run(state: RunState = RunState.SUCCEEDED, **spent: float) -> dict[str, object]:
    return {"run": "run-1", "target": "shop", "trigger": "automatic", "state": str(state), "spent": spent}


# -- what is there ---------------------------------------------------------------------------------------------------------


def test_every_child_of_a_counter_is_there_from_the_start_at_zero() -> None:
    """So that increase() sees the first one: whatever happens later changes values and adds no series of a total."""
    metrics = a_metrics()
    before = samples(metrics)
    metrics.listen("run_ended", end_of_a_run(running=3.0, held=60.0, awaiting_approval=9.0))
    metrics.listen("run_moved", {**end_of_a_run(), "after": "denied", "spent": {"awaiting_approval": 4.0}})
    metrics.listen("delivery_refused", {"hook": "unknown", "reason": "unknown_hook"})
    metrics.listen("decision_made", {"target": "shop", "row": "production-errors", "action": "roll_back"})
    metrics.listen("downgrade_settled", {"target": "shop", "standing": "neither"})
    metrics.listen("event_settled", {"kind": "deploy.started", "result": "unguarded"})
    metrics.listen("signal_noted", {"target": "shop"})
    metrics.listen("measurement_taken", {"target": "shop", "source": "prometheus", "quality": "no_data"})
    metrics.listen("measurement_taken", {"target": "shop", "quality": "error"})
    metrics.listen("schema_drifted", {"target": "shop"})
    after = samples(metrics)

    totals = {key for key in after if key[0].endswith(("_total", "_bucket", "_count", "_sum"))}
    assert totals <= set(before)
    assert {before[key] for key in totals} == {0.0}
    assert sum(after[key] for key in totals if key[0].endswith("_total")) == 10


def test_labels_are_target_environment_and_closed_words_alone() -> None:
    """No revision, version, id or name of a person."""
    names = {label for _, labels in samples(a_metrics()) for label, _ in labels}

    assert names == {
        "target", "environment", "hook", "outcome", "reason", "kind", "result", "source", "quality", "verdict", "row",
        "action", "trigger", "state", "standing", "found", "step", "check", "way", "le", "version", "python",
    }  # fmt: skip


def test_what_there_is_not_is_absent_and_no_number_stands_for_it() -> None:
    """No backup, no price, no run that waits, no event that waits: no series. Unknown isn't -1."""
    metrics = a_metrics()
    assert value(metrics, "backup_last_success_timestamp_seconds", **SHOP) is None
    assert value(metrics, "way_back_duration_seconds", **SHOP) is None
    assert value(metrics, "run_state_since_timestamp_seconds", state="held", **SHOP) is None
    assert value(metrics, "events_oldest_pending_timestamp_seconds") is None

    metrics.listen("way_back_priced", {**PRICE, "lock_s": -1.0})
    assert value(metrics, "way_back_duration_seconds", **SHOP) == 14.0
    assert value(metrics, "way_back_lock_seconds", **SHOP) is None
    assert value(metrics, "way_back_cheap_until_timestamp_seconds", **SHOP) is None
    assert value(metrics, "way_back", way="stop_writes", **SHOP) == 1

    metrics.set_watched(set())
    assert value(metrics, "way_back_duration_seconds", **SHOP) is None
    assert value(metrics, "way_back", way="stop_writes", **SHOP) == 0


def test_a_way_back_that_could_not_be_planned_is_blocked_and_has_no_price() -> None:
    metrics = a_metrics()
    metrics.listen("way_back_priced", PRICE)
    metrics.listen("way_back_missed", {"target": "shop"})
    assert value(metrics, "way_back_blocked", **SHOP) == 1
    assert value(metrics, "way_back_rows_only_new", **SHOP) is None

    metrics.listen("deployment_ended", {"target": "shop", "deployment": "deploy-1", "outcome": "kept"})
    assert value(metrics, "way_back_blocked", **SHOP) == 0


def test_a_run_shows_since_when_it_waits() -> None:
    metrics = a_metrics()
    at = datetime(2026, 11, 22, 10, tzinfo=UTC)
    metrics.set_runs([("shop", "held", at), ("gone", "running", at)])
    assert value(metrics, "runs_unfinished", state="held", **SHOP) == 1
    assert value(metrics, "run_state_since_timestamp_seconds", state="held", **SHOP) == at.timestamp()

    metrics.set_runs([])
    assert value(metrics, "runs_unfinished", state="held", **SHOP) == 0
    assert value(metrics, "run_state_since_timestamp_seconds", state="held", **SHOP) is None


def test_peoples_time_and_the_machines_are_told_apart() -> None:
    metrics = a_metrics()
    metrics.listen("run_ended", end_of_a_run(RunState.HELD, running=2.0))
    assert value(metrics, "run_holds_total", **SHOP) == 1
    assert value(metrics, "run_duration_seconds_count", **SHOP) == 0

    metrics.listen("run_ended", end_of_a_run(running=5.0, held=600.0))
    assert value(metrics, "run_duration_seconds_sum", **SHOP) == 5.0
    assert value(metrics, "run_wait_seconds_sum", reason="held", **SHOP) == 600.0
    assert value(metrics, "run_wait_seconds_count", reason="approval", **SHOP) == 0
    assert value(metrics, "runs_total", trigger="automatic", outcome="succeeded", **SHOP) == 1


def test_how_far_a_backup_is_goes_away_with_its_step() -> None:
    metrics = a_metrics()
    metrics.listen("backup_progressed", {"target": "shop", "kind": "back_up", "done": 30.0, "total": 120.0})
    assert value(metrics, "step_progress_ratio", step="back_up", **SHOP) == 0.25
    metrics.listen("backup_progressed", {"target": "shop", "kind": "prove_backup", "done": 5.0, "total": 5.0})
    assert value(metrics, "step_progress_ratio", step="back_up", **SHOP) is None
    assert value(metrics, "step_progress_ratio", step="prove_backup", **SHOP) == 1.0
    metrics.listen("backup_ended", {"target": "shop"})
    assert value(metrics, "step_progress_ratio", step="prove_backup", **SHOP) is None
    metrics.listen("step_progressed", {"target": "shop", "kind": "copy_ahead", "done": 5, "total": 0})
    assert value(metrics, "step_progress_ratio", step="copy_ahead", **SHOP) is None


def test_a_configuration_that_is_refused_leaves_the_time_of_the_one_in_force() -> None:
    """By the happening or by hand, as whoever reloads prefers."""
    metrics = a_metrics()
    metrics.set_reload(ok=True, at=1000.0)
    metrics.listen("configuration_refused", {})
    assert value(metrics, "configuration_last_reload_successful") == 0
    assert value(metrics, "configuration_last_reload_success_timestamp_seconds") == 1000.0
    metrics.listen("configuration_reloaded", {})
    assert value(metrics, "configuration_last_reload_successful") == 1
    assert (value(metrics, "configuration_last_reload_success_timestamp_seconds") or 0) > 1000.0


def test_checks_after_a_downgrade_are_counted_by_closed_names() -> None:
    """A check of one's own has a name of one's own, which is no label."""
    metrics = a_metrics()
    found = {
        "own:no_orders_without_lines": "failed",
        "schema": "warned",
        "rehearsed_schema": "passed",
        "new": "passed",
    }
    told = {"run": "run-1", "target": "shop", "kind": "validate_database", "seconds": 1.5, "findings": found}
    metrics.listen("step_recorded", {**told, "phase": "failed"})
    metrics.listen("step_recorded", {**told, "phase": "held"})
    checks = {"environment": "staging", "outcome": "failed"}
    assert value(metrics, "checks_total", check="own", **checks) == 1
    assert value(metrics, "schema_drifts_total", found="documented", **SHOP) == 1
    assert value(metrics, "schema_drifts_total", found="rehearsed", **SHOP) == 0
    assert value(metrics, "step_failures_total", environment="staging", step="validate_database") == 1


# -- what survives ---------------------------------------------------------------------------------------------------------


def test_totals_and_distributions_go_on_after_a_restart() -> None:
    before = a_metrics()
    before.listen("run_ended", end_of_a_run(running=7.0))
    before.listen("run_ended", end_of_a_run(running=70.0))
    before.listen("delivery_answered", {"hook": "rollbackd", "outcome": "accepted"})
    saved = before.take_unsaved()
    assert before.take_unsaved() == {}

    after = a_metrics()
    after.restore(saved)
    after.listen("run_ended", end_of_a_run(running=7.0))
    assert value(after, "deliveries_total", hook="rollbackd", outcome="accepted") == 1
    assert value(after, "run_duration_seconds_sum", **SHOP) == 84.0
    assert value(after, "run_duration_seconds_bucket", le="5.0", **SHOP) == 0
    assert value(after, "run_duration_seconds_bucket", le="15.0", **SHOP) == 2
    assert value(after, "run_duration_seconds_bucket", le="+Inf", **SHOP) == 3
    assert after.take_unsaved() != {}


def test_what_could_not_be_saved_is_saved_the_next_time() -> None:
    metrics = a_metrics()
    metrics.listen("delivery_answered", {"hook": "rollbackd", "outcome": "accepted"})
    taken = metrics.take_unsaved()
    metrics.listen("delivery_answered", {"hook": "rollbackd", "outcome": "accepted"})
    metrics.put_back(taken)

    assert list(metrics.take_unsaved().values()) == [2.0]


def test_a_commit_of_the_store_is_nothing_to_save() -> None:
    """Else each save would be a commit that has to be saved, and a daemon at rest would never rest."""
    metrics = a_metrics()
    metrics.commit_ended(0.004, failed=2)

    assert metrics.take_unsaved() == {}
    assert value(metrics, "store_commit_duration_seconds_count") == 1
    assert value(metrics, "store_commit_failures_total") == 2


def test_another_configuration_has_other_children_and_a_target_that_returns_goes_on() -> None:
    metrics = a_metrics("shop", "books")
    metrics.listen("schema_drifted", {"target": "shop"})
    metrics.set_backup("shop", (1.0, 2, 4))

    metrics.expect((a_target("books"), a_target("new")), ("rollbackd", "github"), ROWS)
    targets = {dict(labels).get("target") for _, labels in samples(metrics)}
    assert targets == {None, "books", "new"}
    assert value(metrics, "deliveries_total", hook="github", outcome="accepted") == 0

    metrics.expect((a_target("shop"),), HOOKS, ROWS)
    assert value(metrics, "schema_drifts_total", found="at_rest", **SHOP) == 1
    assert metrics.take_stale_backups() == {"shop"}


def test_a_total_of_a_target_that_is_not_configured_is_kept_for_its_return() -> None:
    saved = a_metrics()
    saved.listen("schema_drifted", {"target": "shop"})
    metrics = a_metrics("books")
    metrics.restore({**saved.take_unsaved(), "rollbackd_of_another_version\x1fx": 3.0})
    assert value(metrics, "schema_drifts_total", found="at_rest", **SHOP) is None

    metrics.expect((a_target("shop"),), HOOKS, ROWS)
    assert value(metrics, "schema_drifts_total", found="at_rest", **SHOP) == 1


# -- the text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/plain", PLAIN),
        (WHO_SCRAPES, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0", PLAIN),
        ("application/openmetrics-text; q=0.1, text/plain", PLAIN),
        ("application/openmetrics-text;q=high, text/plain;q=0.1", PLAIN),
        (";;,,=;q=", PLAIN),
    ],
)
def test_the_format_is_the_one_that_was_asked_for(accept: str, form: object) -> None:
    assert form_for(accept) is form


def test_openmetrics_has_the_run_behind_an_observation_and_the_plain_format_has_not() -> None:
    metrics = a_metrics()
    metrics.listen("run_ended", end_of_a_run(running=7.0))
    text, content_type = metrics.text(WHO_SCRAPES)
    examples = [
        (sample.labels["le"], sample.exemplar.labels, sample.exemplar.value)
        for family in parse_openmetrics(text.decode())
        for sample in family.samples
        if sample.exemplar is not None
    ]

    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert text.endswith(b"# EOF\n")
    assert text.count(b"# EOF") == 1
    assert examples == [("15.0", {"run": "run-1"}, 7.0)]
    assert b"run-1" not in metrics.text()[0]


def test_what_has_changed_since_the_last_scrape_is_in_the_next() -> None:
    """Each in the other format than the one before, too."""
    metrics = a_metrics()
    for number in range(1, 4):
        metrics.listen("schema_drifted", {"target": "shop"})
        line = f'found="at_rest",target="shop"}} {number}.0'
        assert line in metrics.text()[0].decode()
        assert line in metrics.text(WHO_SCRAPES)[0].decode()
        assert line in metrics.text(WHO_SCRAPES)[0].decode()
