"""What people watch, gathered: every target with its deployment, probes, decision and run."""

import json

import pytest
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig

from rollbackd.errors import NotFoundError
from rollbackd.ports import Progress
from rollbackd.settings import Settings
from rollbackd.workflow.overview import Overview


def overview(rig: Rig, progress: dict[str, Progress] | None = None) -> Overview:
    settings = Settings(targets=tuple(one.settings for one in rig.guarded.values()))
    return Overview(lambda: settings.targets, rig.store, rig.clock, (progress or {}).get)


async def test_a_target_at_rest_has_every_key_and_nothing_in_it(rig: Rig) -> None:
    """Its shape is the same before anything happened."""
    (shop,) = await overview(rig).targets()
    assert (shop["name"], shop["heads"], shop["run"], shop["course"]) == ("shop", None, None, [])
    with pytest.raises(NotFoundError, match="there is no target billing; configured are shop"):
        await overview(rig).targets("billing")


async def test_a_watched_deployment_has_its_newest_readings_and_its_run_every_step(rig: Rig) -> None:
    """All of it plain JSON; how far the step under way has come is told while the run is at work alone."""
    empty = set((await overview(rig).targets())[0])
    await rig.deploy()
    (watched,) = await overview(rig).targets("shop")
    assert watched["watching"]["version"] == NEW
    assert watched["heads"] is not None
    run = await rig.operations.roll_back("shop", to="a", reason="why", requested_by="ann", release=OLD)
    going = Progress(done=1, total=2, unit="rows")
    ended = await rig.ended_run()
    assert ended.state == "succeeded", ended.statement
    (after,) = await overview(rig, {run.id: going}).targets()
    assert set(after) == empty
    assert {step["stands"] for step in after["course"]} == {"done"}
    assert after["progress"] is None
    found = await overview(rig).run(run.id)
    assert [step["text"] for step in found["course"]] == found["step_texts"]
    assert json.loads(json.dumps(after))["course"] == after["course"]
    assert json.loads(json.dumps(found))["course"] == found["course"]
    with pytest.raises(NotFoundError, match="there is no run run-0"):
        await overview(rig).run("run-0")
