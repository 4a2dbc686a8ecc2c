"""Who is late: a part that promised to be heard of and wasn't."""

from tests.workflow.conftest import MakeRig

from rollbackd.workflow import pipeline
from rollbackd.workflow.pulse import Pulse


def test_a_part_is_late_when_its_promise_is_over_and_not_before() -> None:
    now = [100.0]
    pulse = Pulse(lambda: now[0])
    assert pulse.late() == []
    pulse.promise("pipeline", 30)
    pulse.promise("house", 5)
    now[0] = 105.0
    assert pulse.late() == []
    now[0] = 112.0
    assert pulse.late() == ["the house should have been heard of 7 s ago"]
    pulse.promise("house", 5)
    assert pulse.late() == []


async def test_a_pipeline_at_work_keeps_its_promises_and_one_that_is_stuck_breaks_them(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(running=False)
    now = [0.0]
    rig.pulse._monotonic = lambda: now[0]  # type: ignore[method-assign]
    await rig.start()
    await rig.send("deploy.failed", deployment="4711")
    assert rig.pulse.late() == []
    now[0] = pipeline.UPKEEP_EVERY_S + pipeline.SLACK_S + 1
    assert [text.split()[1] for text in rig.pulse.late()] == ["pipeline"]
    await rig.send("deploy.failed", deployment="4712")
    assert rig.pulse.late() == []
