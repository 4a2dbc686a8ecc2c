"""Metrics while a deployment is watched: what they decide, what they never decide, and what is collected meanwhile."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.console.report_page import report_page
from rollbackd.core.evidence import Level, Quality, Source
from rollbackd.core.investigation import Investigation
from rollbackd.core.records import Deployment
from rollbackd.core.report import to_markdown
from rollbackd.core.run import RunState
from rollbackd.errors import TransientError
from rollbackd.settings import Duration, Metric

# By the tests' clock, which goes on by a microsecond whenever it is looked at.
TICK = Duration(0.000_005)


def a_metric(**more: Any) -> Metric:
    usual: dict[str, Any] = {
        "name": "p95",
        "query": 'p95{service="$service",version="$version"}',
        "degraded": 2.0,
        "critical": 4.0,
        "readings": 3,
        "interval": TICK,
    }
    return Metric(**(usual | more))


async def deployed(make_rig: MakeRig, *metrics: Metric, migrates: bool = True, **policy: Any) -> Rig:
    rig = await make_rig(a_target(metrics=metrics or (a_metric(),), **policy))
    await rig.deploy(migrates=migrates)
    return rig


async def settle(rig: Rig) -> None:
    """Let enough readings be taken to settle anything, and the watch look at them."""
    deployment = await rig.deployment()

    async def taken() -> int:
        since = deployment.succeeded_at or deployment.started_at
        return sum(m.at >= since for m in await rig.store.measurements(deployment.id, 9_999))

    wanted = await taken() + 5

    async def enough() -> bool:
        return await taken() >= wanted

    await rig.until(enough)
    await asyncio.sleep(0.1)


async def investigated(rig: Rig) -> Investigation:
    async def look() -> Investigation | None:
        found = await rig.store.investigations((await rig.deployment()).id)
        return found[-1] if found else None

    found: Investigation = await rig.until(look)
    return found


async def slow(rig: Rig) -> Deployment:
    """The deployment, once its investigation has a deadline."""

    async def look() -> Deployment | None:
        deployment = await rig.deployment()
        return deployment if deployment.investigating is not None else None

    found: Deployment = await rig.until(look)
    return found


async def ended(rig: Rig) -> Deployment:
    async def look() -> Deployment | None:
        deployment = await rig.deployment()
        return deployment if deployment.ended_at is not None else None

    found: Deployment = await rig.until(look)
    return found


async def reasons(rig: Rig, row: str) -> dict[str, str]:
    return (await rig.decision(row)).decision.reasons


# The stale time of a reading is a few intervals, which are nothing here: a clock that hardly moves.
@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollbackd.workflow.measuring._stale_after_s", lambda _: 99_999.0)


async def test_critical_after_a_migration_rolls_back_and_the_report_has_what_was_seen(
    make_rig: MakeRig,
) -> None:
    rig = await deployed(make_rig)
    rig.world.number = 5.0
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    assert rig.world.heads == ("a",)
    said = (await reasons(rig, "performance-critical"))["performance"]
    assert said == "p95 (critical): 5; degraded above 2, critical above 4"
    found = await investigated(rig)
    assert found.decision == run.decision
    report = await rig.reporting.report(run.id)
    assert report.investigations == (found,)
    for text in (to_markdown(report), report_page(report)):
        assert "Investigation" in text
        assert "p95: ▁┃█ from 1 to 5, highest 5, degraded above 2, critical above 4" in text
        assert "4.0 s so far: SELECT ?" in text
    readings = [m for m in await rig.store.measurements(run.deployment, 500) if m.value == 5.0]
    assert {(m.source, m.quality, m.level, m.query) for m in readings} == {
        (Source.PROMETHEUS, Quality.OK, Level.CRITICAL, f'p95{{service="shop",version="{NEW}"}}')
    }
    assert [limit.value for limit in readings[0].limits] == [2.0, 4.0]


async def test_degraded_is_investigated_and_cleared_when_it_passes_and_again_when_it_returns(
    make_rig: MakeRig,
) -> None:
    rig = await deployed(make_rig)
    rig.world.number = 3.0
    found = await investigated(rig)
    deployment = await slow(rig)
    assert deployment.investigating is not None
    assert deployment.investigating.decision == found.decision
    assert deployment.investigating.until - deployment.investigating.since == timedelta(minutes=15)
    assert [p.value for p in found.series[0].points] == [1.0, 3.0]
    assert [limit.text() for limit in found.series[0].limits] == ["degraded above 2", "critical above 4"]
    assert found.activity.statements[0].sql == "SELECT ?"
    assert (found.change.release_from, found.change.release_to) == (OLD, NEW)
    assert found.change.revisions == ("b add b",)
    assert found.change.tables() == ()
    assert found.change.difference == ("+ table b",)
    await settle(rig)
    assert await rig.run() is None
    assert len(await rig.store.investigations(deployment.id)) == 1, "once for each decision"
    (told,) = [fields for name, fields in rig.announcer.announced if name == "investigation_collected"]
    assert told["decision"] == found.decision
    assert "  4.0 s so far: SELECT ?" in str(told["found"])

    rig.world.number = 1.0

    def cleared() -> list[object]:
        return [f["decision"] for name, f in rig.announcer.announced if name == "investigation_cleared"]

    assert await rig.until(cleared) == [found.decision]
    assert (await rig.deployment()).investigating is None

    rig.world.number = 3.0

    async def again() -> bool:
        return len(await rig.store.investigations(deployment.id)) == 2

    await rig.until(again)


async def test_what_is_still_degraded_at_the_deadline_asks_a_person_once_and_the_bake_time_waits_for_it(
    make_rig: MakeRig,
) -> None:
    rig = await deployed(make_rig, bake_time=Duration(60), investigate_for=Duration(600))
    rig.world.number = 3.0
    await investigated(rig)
    rig.clock.advance(120)
    await settle(rig)
    deployment = await rig.deployment()
    assert deployment.ended_at is None, "its bake time is over, its investigation isn't"
    rig.clock.advance(600)
    assert (await ended(rig)).outcome == "investigate"
    assert await rig.run() is None
    outcomes = [d.outcome for d in await rig.store.decisions(None, 50)]
    assert [o.split(":")[0] for o in outcomes] == ["escalated", "recorded"]
    said = [f["outcome"] for name, f in rig.announcer.announced if name == "decision_made"]
    assert said[-1] == outcomes[0]
    assert "a person has to decide" in outcomes[0]


async def test_what_is_still_degraded_at_the_deadline_goes_back_where_the_policy_says_so(
    make_rig: MakeRig,
) -> None:
    rig = await deployed(make_rig, investigate_for=Duration(300), after_investigation="roll_back")
    rig.world.number = 3.0
    await investigated(rig)
    await settle(rig)
    assert await rig.run() is None
    rig.clock.advance(300)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    said = (await reasons(rig, "performance-critical"))["performance"]
    assert "p95 (degraded): 3;" in said
    assert "still so when its investigation ended" in said


async def test_critical_where_no_revision_moved_is_investigated_and_touches_nothing(
    make_rig: MakeRig,
) -> None:
    rig = await deployed(make_rig, migrates=False)
    rig.world.number = 9.0
    await investigated(rig)
    await settle(rig)
    assert await rig.run() is None


@pytest.mark.parametrize(
    ("number", "fault", "said"),
    [
        (None, "", "p95 (no_data): no_data, the result is empty"),
        (9.0, "Prometheus is gone", "p95 (no_data): error, what was so before the deploy can't be read"),
    ],
)
async def test_no_data_never_rolls_back_and_never_passes(
    make_rig: MakeRig, number: float | None, fault: str, said: str
) -> None:
    rig = await make_rig(a_target(metrics=(a_metric(),)))
    rig.world.number, rig.world.metrics_fault = number, fault
    await rig.deploy()
    await settle(rig)
    assert await rig.run() is None
    rig.clock.advance(9_999)
    assert (await ended(rig)).outcome == "investigate"
    stored = await rig.decision("no-data-at-the-end-of-the-bake-time")
    assert stored.decision.facts.performance == "unknown"
    assert said in stored.decision.reasons["performance"]
    assert await rig.run() is None


async def test_what_was_over_its_limit_before_the_deploy_is_listed_and_set_aside(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(metrics=(a_metric(),)))
    rig.world.number_before = rig.world.number = 5.0
    deployment = await rig.deploy()
    await settle(rig)
    assert await rig.run() is None
    before = [at for _, at in rig.world.asked if at < deployment.started_at]
    assert before == [deployment.started_at - timedelta(seconds=60 + n * TICK) for n in (2, 1, 0)], (
        "as many readings as settle it, once"
    )
    rig.clock.advance(9_999)
    await ended(rig)
    stored = (await rig.store.decisions(None, 1))[0]
    assert stored.decision.facts.performance == "normal"
    assert stored.decision.set_aside == ("metric p95: was critical before the deploy already",)


async def test_what_was_degraded_before_and_is_critical_now_counts(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(metrics=(a_metric(),)))
    rig.world.number_before, rig.world.number = 3.0, 5.0
    await rig.deploy()
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_what_nobody_knows_of_before_counts_and_says_so(make_rig: MakeRig) -> None:
    """A service that is new, or a query by version, has nothing before its deploy."""
    rig = await make_rig(a_target(metrics=(a_metric(),)))
    rig.world.number_before, rig.world.number = None, 5.0
    await rig.deploy()
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    said = (await reasons(rig, "performance-critical"))["performance"]
    assert said.endswith("; what it was before the deploy isn't known")


async def test_limits_can_be_multiples_of_the_value_before_the_deploy(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(metrics=(a_metric(degraded=1.5, critical=3.0, times_before=True),)))
    rig.world.number_before, rig.world.number = 10.0, 12.0
    await rig.deploy()
    await settle(rig)
    assert await rig.store.decisions(None, 50) == []
    rig.world.number = 31.0
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    said = (await reasons(rig, "performance-critical"))["performance"]
    assert said == "p95 (critical): 31, 10 before the deploy; degraded above 15, critical above 30"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (None, "its limits are multiples of the value before the deploy, and there is none"),
        (0.0, "its limits are multiples of 0, the value before the deploy: set 'at_least'"),
    ],
)
async def test_a_multiple_of_what_is_not_there_decides_nothing(
    make_rig: MakeRig, before: float | None, said: str
) -> None:
    rig = await make_rig(a_target(metrics=(a_metric(degraded=1.5, critical=3.0, times_before=True),)))
    rig.world.number_before, rig.world.number = before, 50.0
    deployment = await rig.deploy()
    await settle(rig)
    assert await rig.run() is None
    newest = (await rig.store.measurements(deployment.id, 500))[-1]
    assert (newest.quality, newest.level, newest.value) == (Quality.NO_DATA, None, 50.0)
    assert newest.detail == said


async def test_a_metric_of_errors_fires_and_rolls_back(make_rig: MakeRig) -> None:
    rig = await deployed(make_rig, a_metric(name="errors", category="errors", degraded=None, critical=4.0))
    rig.world.number = 5.0
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    stored = await rig.decision("production-errors-after-deploy")
    assert stored.decision.reasons["errors"] == "errors (critical): 5; critical above 4"


async def test_a_restart_goes_on_with_the_readings_and_the_deadline(make_rig: MakeRig) -> None:
    # Few enough readings that those of before are still among the newest.
    rig = await deployed(make_rig, a_metric(interval=Duration(0.000_05)))
    rig.world.number = 3.0
    before = (await slow(rig)).investigating
    await rig.stop()
    asked = len([at for _, at in rig.world.asked if at < (await rig.deployment()).started_at])
    rig.wire()
    await rig.start()
    await settle(rig)
    assert (await rig.deployment()).investigating == before
    assert asked == len([at for _, at in rig.world.asked if at < (await rig.deployment()).started_at])


async def test_a_database_that_does_not_answer_is_named_in_the_investigation(make_rig: MakeRig) -> None:
    rig = await deployed(make_rig)
    rig.world.number = 3.0
    await slow(rig)
    rig.world.number = 1.0

    async def cleared() -> bool:
        return (await rig.deployment()).investigating is None

    await rig.until(cleared)
    rig.world.number = 3.0
    rig.world.database_fault = TransientError("nobody listens")
    deployment = await rig.deployment()

    async def again() -> bool:
        return len(await rig.store.investigations(deployment.id)) == 2

    await rig.until(again)
    found = (await rig.store.investigations(deployment.id))[-1]
    assert found.activity.missing == ("nobody listens",)
    assert found.change.missing == ("what the migration changed: nobody listens",)
