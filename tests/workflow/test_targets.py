"""Targets that change while everything goes on: between two uses, and never under anybody's hands."""

import asyncio

import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.core.gates import Mode
from rollbackd.core.records import Deployment
from rollbackd.core.run import RunState
from rollbackd.errors import NotFoundError, RefusedError
from rollbackd.settings import Duration, Probe, Target

SLOWER = a_target(cool_down=Duration(7))


def bring_in(rig: Rig, *targets: Target) -> tuple[list[str], list[str]]:
    return rig.guarded.bring_in(targets, rig.guard)


def told(rig: Rig, prefix: str = "target_") -> list[str]:
    return [name for name, _ in rig.told if name.startswith(prefix)]


async def test_a_target_that_nobody_uses_changes_at_once_and_the_old_one_is_closed(make_rig: MakeRig) -> None:
    rig = await make_rig(running=False)
    before, planner = rig.guarded["shop"], rig.guarded.planners["shop"]
    assert bring_in(rig, SLOWER) == (["shop"], [])
    assert rig.guarded["shop"].settings is SLOWER
    assert rig.guarded["shop"].worker is not before.worker
    assert rig.guarded.planners["shop"] is not planner
    assert told(rig) == ["target_changed"]
    await rig.until(lambda: rig.world.calls == ["close worker", "close database"])


async def test_what_has_not_changed_is_left_alone(rig: Rig) -> None:
    before = rig.guarded["shop"]
    assert bring_in(rig, a_target()) == ([], [])
    assert rig.guarded["shop"] is before
    assert rig.world.calls == []


async def test_a_target_in_use_changes_when_the_last_use_is_over(make_rig: MakeRig) -> None:
    rig = await make_rig(running=False)
    with rig.guarded.using("shop") as first:
        with rig.guarded.using("shop"):
            assert bring_in(rig, SLOWER) == (["shop"], ["shop"])
        assert rig.guarded["shop"] is first
        await asyncio.sleep(0)
        assert rig.world.calls == []
    assert rig.guarded["shop"].settings is SLOWER
    await rig.until(lambda: "close database" in rig.world.calls)


async def test_a_change_that_is_taken_back_before_it_came_is_none(make_rig: MakeRig) -> None:
    rig = await make_rig(running=False)
    with rig.guarded.using("shop") as first:
        bring_in(rig, SLOWER)
        assert bring_in(rig, a_target()) == ([], [])
    assert rig.guarded["shop"] is first


async def test_targets_come_and_go_and_keep_the_order_of_the_configuration(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target("one"), a_target("two"), running=False)
    seen = rig.guarded.values()
    assert bring_in(rig, a_target("three"), a_target("two")) == (["one", "three"], [])
    assert list(rig.guarded) == ["three", "two"]
    assert [one.name for one in seen] == ["one", "two"]
    assert sorted(told(rig)) == ["target_added", "target_removed"]
    assert sorted(rig.guarded.planners) == ["three", "two"]
    with pytest.raises(NotFoundError, match="there is no target one; configured are three, two"):
        await rig.operations.plan("one", to="-1")


async def test_a_watched_deployment_is_judged_by_the_new_policy_from_its_next_look_on(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(a_target(mode=Mode.SHADOW))
    deployment = await rig.deploy()
    await rig.send("signal.firing", category="errors", severity="critical", name="OrdersFailing")
    decided = await rig.decision("production-errors-after-deploy")
    assert "shadow" in decided.outcome
    assert rig.pipeline.watched() == 1
    bring_in(rig, a_target(mode=Mode.AUTOMATIC))
    run = await rig.ended_run()
    assert (run.state, run.deployment) == (RunState.SUCCEEDED, deployment.id)
    assert run.trigger == "automatic"


async def test_a_run_under_way_keeps_its_target_until_it_ends(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make_rig()
    rig.world.upgrade()
    before = rig.guarded["shop"]
    entered, goes_on = asyncio.Event(), asyncio.Event()
    stop = before.application.stop

    async def slow_stop() -> None:
        entered.set()
        await goes_on.wait()
        await stop()

    monkeypatch.setattr(before.application, "stop", slow_stop)
    await rig.operations.roll_back("shop", to="-1", reason="x", requested_by="ann", release=OLD)
    await entered.wait()
    assert bring_in(rig, SLOWER) == (["shop"], ["shop"])
    # Taken out and put back meanwhile: neither cuts it.
    assert bring_in(rig) == (["shop"], ["shop"])
    assert bring_in(rig, SLOWER) == (["shop"], ["shop"])
    assert "close worker" not in rig.world.calls
    goes_on.set()
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    await rig.until(lambda: rig.guarded["shop"].settings is SLOWER)
    await rig.until(lambda: rig.world.calls[-2:] == ["close worker", "close database"])
    done = [call for call in rig.world.calls if call in ("stop", "downgrade", f"start {OLD}")]
    assert done == ["stop", "downgrade", f"start {OLD}"]


async def test_a_run_that_waits_for_a_person_goes_on_with_the_new_target(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(approval_required=True))
    rig.world.upgrade()
    run = await rig.operations.roll_back("shop", to="-1", reason="x", requested_by="ann", release=OLD)
    assert run.state is RunState.AWAITING_APPROVAL
    assert bring_in(rig, a_target(approval_required=True, cool_down=Duration(7))) == (["shop"], [])
    await rig.operations.approve(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_a_run_of_a_target_that_was_taken_out_is_not_begun(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(approval_required=True))
    rig.world.upgrade()
    run = await rig.operations.roll_back("shop", to="-1", reason="x", requested_by="ann", release=OLD)
    bring_in(rig)
    with pytest.raises(RefusedError, match="shop is no longer configured"):
        await rig.operations.approve(run.id, "bob")
    known = await rig.store.run(run.id)
    assert known is not None
    assert known.state is RunState.AWAITING_APPROVAL
    await rig.operations.deny(run.id, "bob")


async def test_a_target_that_was_taken_out_stays_while_it_is_watched_and_nothing_new_begins(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig()
    await rig.deploy(migrates=False)
    assert bring_in(rig) == (["shop"], ["shop"])
    assert rig.guarded.is_leaving("shop")
    said = await rig.send("deploy.started", deployment="4712", version="3.0", previous_version=NEW)
    assert "was taken out of the configuration" in said
    watched = await rig.store.watched_deployments()
    assert [d.sender_id for d in watched] == ["4711"]
    rig.clock.advance(10_000)
    await rig.until(lambda: "shop" not in rig.guarded)
    ended: Deployment = await rig.deployment()
    assert ended.outcome == "investigate"
    assert "no target guards shop" in await rig.send("deploy.started", deployment="4713", version="3.1")


async def test_a_target_that_comes_back_has_its_deployment_watched_again(make_rig: MakeRig) -> None:
    rig = await make_rig()
    deployment = await rig.deploy(migrates=False)
    await rig.stop()
    bring_in(rig)
    rig.wire()
    await rig.start()
    assert rig.pipeline.watched() == 0
    bring_in(rig, a_target())
    await rig.pipeline.take_up()
    assert rig.pipeline.watched() == 1
    rig.clock.advance(10_000)
    ended = await rig.until(lambda: over(rig))
    assert ended.id == deployment.id


async def over(rig: Rig) -> Deployment | None:
    found = await rig.deployment()
    return found if found.ended_at is not None else None


async def test_new_probes_are_measured_and_a_probe_that_is_gone_is_not_missed(make_rig: MakeRig) -> None:
    probe = Probe(name="health", url="http://h/health", interval=Duration(0.02))
    rig = await make_rig()
    await rig.deploy(migrates=False)
    bring_in(rig, a_target(probes=(probe,)))
    await rig.until(
        lambda: any(n == "measurement_taken" and f["measurement"] == "health" for n, f in rig.told)
    )
    bring_in(rig, a_target())
    rig.clock.advance(10_000)
    assert (await rig.until(lambda: over(rig))).outcome == "investigate"


async def test_a_target_at_rest_is_not_closed_while_somebody_plans_on_it(make_rig: MakeRig) -> None:
    rig = await make_rig()
    await rig.deploy(migrates=False)
    with rig.guarded.using("shop"):
        rig.clock.advance(10_000)
        await rig.until(lambda: over(rig))
        await rig.until(lambda: rig.pipeline.watched() == 0)
        await asyncio.sleep(0.05)
        assert "close worker" not in rig.world.calls
