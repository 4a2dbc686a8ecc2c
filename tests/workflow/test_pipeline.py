"""The pipeline: events as they come, late, twice, in the wrong order, for nobody, or for what is gone."""

import asyncio

import msgspec
import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.core.assess import DeployWord
from rollbackd.core.gates import Mode
from rollbackd.core.records import Deployment, Run
from rollbackd.core.run import RunState
from rollbackd.core.schema import Schema
from rollbackd.errors import StoreUnavailableError, TransientError


async def test_an_event_for_nobody_is_settled_with_that_outcome(rig: Rig) -> None:
    assert await rig.send("deploy.failed", service="other") == "no target guards other in staging"
    assert await rig.send("deploy.failed", environment="live") == "no target guards shop in live"
    assert await rig.store.next_events(10) == []


async def test_an_announced_deploy_is_watched_with_the_state_before_it_documented(rig: Rig) -> None:
    outcome = await rig.send("deploy.started", deployment="1", version=NEW, previous_version=OLD)
    deployment = await rig.until(rig.watched)
    assert outcome.endswith(f"noted for {deployment.id}")
    assert deployment.heads_before == ("a",)
    document = await rig.store.document(deployment.before_document)
    assert document is not None
    assert [count.rows for count in document.counts] == [3]


async def test_news_of_a_deploy_that_comes_after_its_migration_takes_the_state_documented_before(
    rig: Rig,
) -> None:
    from rollbackd.workflow.documenting import document_state

    earlier = await document_state(rig.guarded["shop"], rig.store, rig.clock)
    rig.clock.advance(60)
    rig.world.upgrade()
    await rig.send("deploy.started", deployment="1", version=NEW, previous_version=OLD)
    deployment = await rig.until(rig.watched)
    assert deployment.heads_before == ("a",)
    assert deployment.before_document == earlier.id


async def test_a_success_without_a_start_begins_a_deployment_and_one_without_a_name_does_not(
    rig: Rig,
) -> None:
    outcome = await rig.send("deploy.succeeded", deployment="9", version=NEW)
    assert "noted for" in outcome
    assert (await rig.deployment()).deploy is DeployWord.SUCCEEDED
    await rig.send("deploy.started", deployment="9", version=NEW)
    assert len(await rig.store.deployments(None, 9)) == 1


async def test_a_success_that_names_nothing_is_not_taken_for_a_deployment(rig: Rig) -> None:
    assert "that nobody announced" in await rig.send("deploy.succeeded")
    assert await rig.store.deployments(None, 9) == []


async def test_a_new_deploy_supersedes_the_one_before_and_its_watch_leaves_the_new_ones_connection_alone(
    rig: Rig,
) -> None:
    await rig.send("deploy.started", deployment="1", version="1")
    first = await rig.until(rig.watched)
    await rig.send("deploy.started", deployment="2", version="2")

    async def superseded() -> bool:
        known = await rig.store.deployment(first.id)
        return known is not None and known.outcome == "superseded" and rig.pipeline.watched() == 1

    rig.world.calls.clear()
    await rig.until(superseded)
    await asyncio.sleep(0.2)
    assert [d.version for d in await rig.store.watched_deployments()] == ["2"]
    assert "close database" not in rig.world.calls
    assert "close worker" not in rig.world.calls


async def test_words_that_come_in_the_wrong_order_are_all_kept(rig: Rig) -> None:
    for kind in ("migration.applied", "deploy.succeeded", "migration.started", "deploy.started"):
        await rig.send(kind, deployment="1", version=NEW, previous_version=OLD)
    [deployment] = await rig.store.deployments(None, 9)
    assert (deployment.migration, deployment.deploy) == (DeployWord.SUCCEEDED, DeployWord.SUCCEEDED)


async def test_what_the_watch_learns_and_what_the_sender_says_at_the_same_time_are_both_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()
    save = rig.store.save_deployment

    async def slowly(deployment: Deployment) -> None:
        if deployment.heads_before is not None and deployment.succeeded_at is None:
            release.set()
            await asyncio.sleep(0.2)
        await save(deployment)

    monkeypatch.setattr(rig.store, "save_deployment", slowly)
    await rig.send("deploy.started", deployment="1", version=NEW)
    await release.wait()
    await rig.send("deploy.succeeded", deployment="1")

    async def settled() -> bool:
        known = await rig.deployment()
        return known.heads_before is not None and known.scripts_sha256 != ""

    await rig.until(settled)
    assert (await rig.deployment()).succeeded_at is not None


async def test_each_event_is_settled_once(rig: Rig) -> None:
    for _ in range(3):
        await rig.send("deploy.started", deployment="1", version=NEW)
        rig.pipeline.wake()
    await asyncio.sleep(0.1)
    assert [name for name, _ in rig.told].count("event_settled") == 3
    assert len(await rig.store.deployments(None, 9)) == 1


async def test_a_restart_takes_up_what_was_left_and_watches_on(make_rig: MakeRig) -> None:
    rig = await make_rig(running=False)
    await rig.send("deploy.started", deployment="1", version=NEW, previous_version=OLD, settle=False)
    await rig.start()
    deployment = await rig.until(rig.watched)
    await rig.stop()
    rig.world.upgrade()
    await rig.send("deploy.succeeded", deployment="1", settle=False)
    rig.clock.advance(1)
    await rig.send("signal.firing", category="errors", severity="critical", name="E", settle=False)
    rig.wire()
    await rig.start()
    run = await rig.ended_run()
    assert (run.state, run.deployment) == (RunState.SUCCEEDED, deployment.id)


async def test_an_event_that_meets_a_fault_of_ours_does_not_stop_the_next_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def faulty(environment: str, service: str, *_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(rig.store, "save_signal", faulty)
        outcome = await rig.send("signal.firing", category="bug", severity="info", name="x")
    assert outcome.startswith("fault: ZeroDivisionError")
    assert "noted" in await rig.send("signal.firing", category="bug", severity="info", name="x")


async def test_a_store_that_fails_for_a_moment_loses_no_event(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollbackd.workflow import pipeline

    monkeypatch.setattr(pipeline, "STORE_RETRY_S", 0.05)
    rig = await make_rig()
    save = rig.store.save_deployment
    failed: list[int] = []

    async def failing(deployment: Deployment) -> None:
        if len(failed) < 3:
            failed.append(1)
            raise StoreUnavailableError("the disk is full")
        await save(deployment)

    monkeypatch.setattr(rig.store, "save_deployment", failing)
    await rig.send("deploy.started", deployment="1", version=NEW)
    assert (await rig.until(rig.watched)).heads_before == ("a",)


async def test_a_store_that_fails_while_the_state_is_documented_leaves_nobody_waiting_at_the_gate_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurements = rig.store.measurements

    async def unreadable(*_: object) -> list[object]:
        monkeypatch.setattr(rig.store, "measurements", measurements)
        raise StoreUnavailableError("the store can't be read")

    monkeypatch.setattr(rig.store, "measurements", unreadable)
    await rig.send("deploy.started", deployment="1", version=NEW)
    async with asyncio.timeout(5):
        await rig.pipeline.prepared((await rig.deployment()).id)
    assert (await rig.deployment()).heads_before == ("a",)


async def test_a_deployment_of_a_target_that_is_no_longer_configured_is_in_nobodys_way(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(running=False)
    await rig.store.save_deployment(
        Deployment(
            id="d", target="gone", sender_id="", version="1", previous_version="", started_at=rig.clock.now()
        )
    )
    await rig.start()
    await rig.send("deploy.started", deployment="1", version=NEW)
    assert rig.task is not None
    assert not rig.task.done()


async def test_a_target_at_rest_holds_neither_connection_nor_worker(rig: Rig) -> None:
    await rig.deploy()
    rig.clock.advance(2_000)
    await rig.until(lambda: "close database" in rig.world.calls and "close worker" in rig.world.calls)


async def test_who_still_uses_a_target_when_its_watch_ends_is_waited_for(rig: Rig) -> None:
    await rig.deploy()
    with rig.guarded.using("shop"):
        rig.clock.advance(2_000)
        await rig.until(lambda: any(name == "deployment_ended" for name, _ in rig.told))
        await asyncio.sleep(0.1)
        assert "close worker" not in rig.world.calls
    await rig.until(lambda: "close database" in rig.world.calls and "close worker" in rig.world.calls)


async def test_a_rollback_can_be_asked_for_by_an_event(rig: Rig) -> None:
    await rig.deploy()
    outcome = await rig.send("rollback.requested", to_revision="a", reason="it is bad")
    run = await rig.ended_run()
    assert f"{run.id} was asked for" in outcome
    assert (run.state, run.requested_by, run.trigger) == (RunState.SUCCEEDED, "hook:cd", "automatic")


async def test_a_rollback_asked_for_by_an_event_passes_the_gates_of_automation(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(mode=Mode.SHADOW))
    await rig.deploy()
    assert "shadow" in await rig.send("rollback.requested", to_revision="a", reason="it is bad")
    assert await rig.run() is None


async def test_a_deploy_inside_the_bake_time_of_its_predecessor_is_not_blamed_for_its_migration(
    rig: Rig,
) -> None:
    first = await rig.deploy()
    assert first.heads_before == ("a",)
    rig.clock.advance(5)
    await rig.send("deploy.started", deployment="4712", version="3.0", previous_version=NEW)

    async def second() -> Deployment | None:
        found = await rig.watched()
        return found if found is not None and found.sender_id == "4712" else None

    hotfix: Deployment = await rig.until(second)
    assert hotfix.heads_before == ("b",)


async def test_an_alert_that_is_sent_again_began_when_it_began(rig: Rig) -> None:
    alert = {"category": "errors", "severity": "critical", "name": "OrdersFailing"}
    began = rig.clock.now()
    await rig.send("signal.firing", **alert)
    rig.clock.advance(3600)
    await rig.send("signal.firing", **alert)
    known = await rig.store.signals("shop", "staging", began)
    assert [(s.started_at - began).total_seconds() < 1 for s in known] == [True]


async def test_a_pipeline_that_is_run_again_with_the_same_id_is_watched_anew(rig: Rig) -> None:
    first = await rig.deploy(migrates=False)
    ended = msgspec.structs.replace(await rig.deployment(), ended_at=rig.clock.now(), outcome="kept")
    await rig.store.save_deployment(ended)
    await rig.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD)
    again = await rig.until(rig.watched)
    assert again.id != first.id


async def waiting(make_rig: MakeRig, asked_by: str) -> tuple[Rig, Run]:
    rig = await make_rig(a_target(approval_required=True))
    rig.world.upgrade()
    run = await rig.operations.roll_back("shop", to="-1", reason="x", requested_by=asked_by, release=OLD)
    assert run.state is RunState.AWAITING_APPROVAL
    return rig, run


async def test_an_approval_by_event_starts_the_run_in_its_actors_name(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig, "ann")
    assert "approved by hook:cd:bob" in await rig.send("approval.granted", run=run.id, actor="bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert [a.actor for a in await rig.store.approvals(run.id)] == ["hook:cd:bob"]


async def test_the_hook_that_asked_cannot_approve_under_a_name_of_its_own_making(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig, "hook:cd")
    assert "somebody else has to approve" in await rig.send("approval.granted", run=run.id, actor="bob")
    known = await rig.store.run(run.id)
    assert known is not None
    assert known.state is RunState.AWAITING_APPROVAL


async def test_an_approval_for_another_targets_run_is_none(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(approval_required=True), a_target(name="other", environment="live"))
    rig.world.upgrade()
    run = await rig.operations.roll_back("shop", to="-1", reason="x", requested_by="ann", release=OLD)
    outcome = await rig.send("approval.granted", environment="live", run=run.id, actor="bob")
    assert outcome == f"other: {run.id} is no run of it"
    known = await rig.store.run(run.id)
    assert known is not None
    assert known.state is RunState.AWAITING_APPROVAL


async def test_an_approval_counts_once_where_two_targets_share_a_service(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(name="first", approval_required=True), a_target(name="second"))
    rig.world.upgrade()
    run = await rig.operations.roll_back("first", to="-1", reason="x", requested_by="ann", release=OLD)
    outcome = await rig.send("approval.granted", run=run.id, actor="bob")
    assert outcome == f"{run.id} approved by hook:cd:bob; second: {run.id} is no run of it"


async def test_incidents_open_and_close_with_their_events(rig: Rig) -> None:
    await rig.send("incident.opened", key="INC-7", reason="orders fail")
    known = await rig.store.open_incident("shop")
    assert known is not None
    assert (known.reference, known.opened_by) == ("INC-7", "hook:cd")
    await rig.send("incident.closed", key="INC-7")
    assert await rig.store.open_incident("shop") is None


async def test_a_schema_that_cannot_be_read_leaves_a_failed_migration_unknown(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.send("deploy.started", deployment="1", version=NEW, previous_version=OLD)
    await rig.until(rig.watched)

    async def unreadable() -> Schema:
        raise TransientError("no route")

    monkeypatch.setattr(rig.guarded["shop"].database, "schema", unreadable)
    await rig.send("migration.failed", deployment="1")
    await asyncio.sleep(0.2)
    assert await rig.run() is None
    assert rig.task is not None
    assert not rig.task.done()


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("deploy.failed", {"deployment": "888", "version": "8.8"}),
        ("migration.failed", {"deployment": "888"}),
        ("deploy.failed", {"version": "8.8"}),
    ],
)
async def test_a_failure_of_another_deployment_says_nothing_about_the_one_being_watched(
    rig: Rig, kind: str, named: dict[str, str]
) -> None:
    await rig.deploy()
    outcome = await rig.send(kind, **named)
    assert "no deployment that is known here" in outcome
    known = await rig.deployment()
    assert (known.sender_id, known.deploy, known.migration) == (
        "4711",
        DeployWord.SUCCEEDED,
        DeployWord.NOTHING,
    )
    assert len(await rig.store.deployments("shop", 10)) == 1
