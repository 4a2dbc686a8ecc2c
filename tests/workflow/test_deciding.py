"""From evidence to what is done: each scenario of the matrix ends as its row says, and what speaks against is heeded."""

import asyncio
from typing import Any

import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.core.events import Category, Severity
from rollbackd.core.evidence import Signal
from rollbackd.core.gates import Mode
from rollbackd.core.matrix import Action
from rollbackd.core.run import RunState
from rollbackd.errors import PermanentError, TransientError
from rollbackd.settings import Duration, Probe

PROBE = Probe(
    name="health", url="http://h", interval=Duration(0.01), timeout=Duration(9_999), failures=2, successes=2
)


async def signal(rig: Rig, category: str, severity: str = "critical", **fields: Any) -> str:
    rig.clock.advance(1)
    return await rig.send(
        "signal.firing", category=category, severity=severity, name=f"{category} alert", **fields
    )


async def settle(rig: Rig) -> None:
    """Let the watch look a few times."""
    await asyncio.sleep(0.3)


# -- the rows -------------------------------------------------------------------------------------------------------------


async def test_production_errors_after_a_migration_roll_it_back(rig: Rig) -> None:
    deployment = await rig.deploy()
    await signal(rig, "errors")
    run = await rig.ended_run()
    assert (run.state, run.trigger, run.deployment) == (RunState.SUCCEEDED, "automatic", deployment.id)
    assert rig.world.heads == ("a",)
    stored = await rig.decision("production-errors-after-deploy")
    assert (stored.outcome, stored.run) == ("run", run.id)

    async def ended() -> bool:
        return (await rig.deployment()).outcome == "rolled_back"

    await rig.until(ended)


async def test_errors_after_a_deploy_that_moved_no_revision_put_the_old_release_back_and_touch_no_table(
    rig: Rig,
) -> None:
    await rig.deploy(migrates=False)
    await signal(rig, "errors")
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    assert run.plan.way_back == "redeploy_only"
    assert rig.world.running == OLD
    assert "downgrade" not in rig.world.calls
    assert not any(call.startswith("take") for call in rig.world.calls)


async def test_a_migration_that_failed_and_was_undone_leaves_nothing_to_downgrade(rig: Rig) -> None:
    await rig.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD)
    await rig.until(rig.watched)
    await rig.send("migration.failed", deployment="4711", reason="no such column")
    run = await rig.ended_run()
    assert run.plan.way_back == "redeploy_only"
    assert (await rig.decision("migration-failed-clean")).decision.action is Action.REDEPLOY_ONLY
    assert "downgrade" not in rig.world.calls


async def test_a_migration_that_failed_midway_is_taken_off_at_once(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(confirm_for=Duration(9_999)))
    await rig.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD, to_revision="c")
    await rig.until(rig.watched)
    rig.world.upgrade()
    await rig.send("migration.failed", deployment="4711")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    await rig.decision("migration-failed-midway")
    assert rig.world.heads == ("a",)


async def test_a_migration_that_stopped_inside_a_revision_is_held_at_once_and_nothing_is_tried(
    rig: Rig,
) -> None:
    await rig.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD)
    await rig.until(rig.watched)
    rig.world.tables.add("b")
    await rig.send("migration.failed", deployment="4711")
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert "the schema is no longer that of a" in run.statement
    assert [c for c in rig.world.calls if c in ("downgrade", "stop")] == []
    assert run.plan.revisions[0].statements == rig.world.statements
    rig.world.tables.discard("b")
    await rig.operations.resume(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_an_application_that_fails_after_a_good_migration_goes_back_with_it(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(probes=(PROBE,)))
    rig.clock.step_s = 0.01
    await rig.deploy()
    await settle(rig)
    rig.world.healthy = False
    run = await rig.until(rig.run)
    await rig.until(lambda: "stop" in rig.world.calls)
    rig.world.healthy = True
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert (await rig.decision("application-fails-after-good-migration")).run == run.id


async def test_critical_slowness_rolls_back_and_lesser_slowness_asks_a_person(rig: Rig) -> None:
    await rig.deploy()
    await signal(rig, "performance", "warning")
    stored = await rig.decision("performance-degraded")
    assert (stored.decision.action, stored.outcome) == (Action.INVESTIGATE, "recorded")
    assert await rig.run() is None
    await signal(rig, "performance", "critical")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("category", "row", "action"),
    [
        ("bug", "minor-bug-in-the-migration", Action.FIX_FORWARD),
        ("data_loss", "data-loss-reported", Action.INVESTIGATE),
    ],
)
async def test_what_asks_for_a_person_is_recorded_and_announced_and_changes_nothing(
    rig: Rig, category: str, row: str, action: Action
) -> None:
    await rig.deploy()
    await signal(rig, category)
    assert (await rig.decision(row)).decision.action is action
    # It is recorded first and announced then.
    await rig.until(lambda: ("decision_made", row) in [(n, f.get("row")) for n, f in rig.announcer.announced])
    await settle(rig)
    assert await rig.run() is None
    assert rig.world.heads == ("b",)


async def test_a_deployment_that_stays_healthy_is_kept_at_the_end_of_its_bake_time(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(probes=(PROBE,)))
    rig.clock.step_s = 0.01
    await rig.deploy()
    await settle(rig)
    rig.clock.advance(700)
    await rig.until(lambda: any(n == "deployment_ended" for n, _ in rig.told))
    assert (await rig.deployment()).outcome == "kept"
    assert rig.world.heads == ("b",)


# -- what speaks against --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [{"mode": Mode.SHADOW}, {}], ids=["shadow", "paused"])
async def test_automation_that_is_silenced_says_once_what_it_would_do_and_does_nothing(
    make_rig: MakeRig, policy: dict[str, Any]
) -> None:
    rig = await make_rig(a_target(**policy))
    if not policy:
        await rig.operations.pause("*", "ann", "a fair", None)
    await rig.deploy()
    await signal(rig, "errors")
    stored = await rig.decision("production-errors-after-deploy")
    assert stored.outcome.startswith("refused: ")
    await settle(rig)
    assert await rig.run() is None
    said = [
        d for d in await rig.store.decisions(None, 50) if d.decision.row == "production-errors-after-deploy"
    ]
    assert len(said) == 1
    if not policy:
        await rig.operations.unpause("*", "ann")
        assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_a_plan_that_is_refused_is_said_once(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.send("deploy.started", deployment="4711", version=NEW)
    await rig.until(rig.watched)
    rig.world.upgrade()
    await rig.send("deploy.succeeded", deployment="4711")
    await signal(rig, "errors")
    stored = await rig.decision("production-errors-after-deploy")
    assert "nobody said which release ran before" in stored.outcome
    await settle(rig)
    assert len(await rig.store.decisions(None, 50)) == 1
    assert await rig.run() is None


async def test_a_database_with_an_unfinished_run_is_left_alone_and_that_is_said_once(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(a_target(), a_target(name="other", environment="live", approval_required=True))
    rig.world.upgrade()
    await rig.operations.roll_back("other", to="-1", reason="x", requested_by="ann", release=OLD)
    rig.world.downgrade()
    await rig.deploy()
    await signal(rig, "errors")
    stored = await rig.decision("production-errors-after-deploy")
    assert "is awaiting_approval on this database" in stored.outcome
    await settle(rig)
    assert len(await rig.store.decisions("shop", 50)) == 1
    assert len(await rig.store.runs(None, 50)) == 1


async def test_a_row_that_wants_confirmation_waits_until_it_has_matched_long_enough(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(a_target(confirm_for=Duration(30)))
    await rig.deploy()
    await signal(rig, "errors")
    await settle(rig)
    assert await rig.run() is None
    rig.clock.advance(31)
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_a_signal_that_ends_before_it_is_confirmed_rolls_nothing_back(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(confirm_for=Duration(30)))
    await rig.deploy()
    await signal(rig, "errors")
    await settle(rig)
    await rig.send("signal.resolved", category="errors", name="errors alert")
    rig.clock.advance(31)
    await settle(rig)
    assert await rig.run() is None
    assert rig.world.heads == ("b",)


async def test_what_fired_before_the_deploy_is_named_and_set_aside(rig: Rig) -> None:
    await signal(rig, "errors")
    rig.clock.advance(1)
    await rig.deploy()
    await signal(rig, "bug")
    stored = await rig.decision("minor-bug-in-the-migration")
    assert "errors alert: fired before the deploy" in " ".join(stored.decision.set_aside)
    assert await rig.run() is None


async def test_what_fires_as_well_where_nothing_was_deployed_is_set_aside(rig: Rig) -> None:
    elsewhere = Signal(
        source="cd", key="errors alert", name="errors alert", category=Category.ERRORS, severity=Severity.CRITICAL,
        started_at=rig.clock.now(),
    )  # fmt: skip
    await rig.store.save_signal("billing", "staging", elsewhere)
    await rig.deploy()
    await signal(rig, "errors")
    await signal(rig, "bug")
    stored = await rig.decision("minor-bug-in-the-migration")
    assert "fires as well where nothing was deployed" in " ".join(stored.decision.set_aside)


async def test_no_data_never_rolls_back_and_never_passes(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(probes=(PROBE,)))
    rig.clock.step_s = 0.01
    rig.world.healthy = None
    await rig.deploy()
    await settle(rig)
    assert await rig.run() is None
    rig.clock.advance(700)
    assert (await rig.decision("no-data-at-the-end-of-the-bake-time")).decision.action is Action.INVESTIGATE
    assert (await rig.deployment()).outcome != "kept"


async def test_a_database_that_cannot_be_read_decides_nothing(rig: Rig) -> None:
    await rig.deploy()
    rig.world.database_fault = TransientError("no route")
    await signal(rig, "errors")
    stored = await rig.decision("failing-but-where-the-database-stands-is-unknown")
    assert stored.decision.action is Action.INVESTIGATE
    assert await rig.run() is None


async def test_production_gets_an_incident_record_and_waits_for_an_approval(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(environment="production", mode=Mode.AUTOMATIC))
    for kind in ("deploy.started", "deploy.succeeded"):
        await rig.send(kind, environment="production", deployment="1", version=NEW, previous_version=OLD)
        await rig.until(rig.watched)
        rig.world.upgrade()
    await signal(rig, "errors", environment="production")

    async def waiting() -> bool:
        run = await rig.run()
        return run is not None and run.state is RunState.AWAITING_APPROVAL

    await rig.until(waiting)
    run = await rig.run()
    assert run is not None
    assert run.incident
    incident = await rig.store.incident(run.incident)
    assert incident is not None
    assert incident.opened_by == "rollbackd"
    assert "downgrade" not in rig.world.calls
    await rig.operations.approve(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_one_rollback_for_one_deployment_however_long_the_alert_goes_on(rig: Rig) -> None:
    await rig.deploy()
    await signal(rig, "errors")
    await rig.ended_run()
    await settle(rig)
    assert len(await rig.store.runs(None, 50)) == 1
    assert rig.world.calls.count("downgrade") == 1


async def test_a_rollback_that_failed_is_not_tried_again_by_itself(rig: Rig) -> None:
    def mishap() -> None:
        raise PermanentError("no such column")

    rig.world.mishaps = [mishap] * 9
    await rig.deploy()
    await signal(rig, "errors")
    assert (await rig.ended_run()).state is RunState.FAILED
    await settle(rig)
    assert len(await rig.store.runs(None, 50)) == 1
    assert (await rig.deployment()).outcome == "rollback_failed"
