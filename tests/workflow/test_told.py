"""What the workflow tells whoever listens, as far as metrics hang on it."""

from datetime import timedelta
from typing import Any

import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.core.events import Event, EventKind
from rollbackd.core.run import RunState
from rollbackd.errors import PermanentError
from rollbackd.settings import Duration, Probe


async def told(rig: Rig, name: str, **fields: Any) -> dict[str, Any]:
    """The first happening of that name that has these fields, once it happened."""

    def look() -> dict[str, Any] | None:
        return next((f for n, f in rig.told if n == name and fields.items() <= f.items()), None)

    return dict(await rig.until(look))


async def goes_bad(rig: Rig, category: str = "errors") -> None:
    rig.clock.advance(1)
    await rig.send("signal.firing", category=category, severity="critical", name=f"{category} alert")


# -- time ------------------------------------------------------------------------------------------------------------------


async def test_a_run_that_was_approved_tells_how_long_people_and_machine_took(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(approval_required=True))
    await rig.deploy()
    await goes_bad(rig)
    run = await rig.until(rig.run)
    await told(rig, "run_moved", after="awaiting_approval")
    rig.clock.advance(300)
    await rig.operations.approve(run.id, "ann")

    spent = (await told(rig, "run_ended", state="succeeded"))["spent"]
    assert set(spent) == {"awaiting_approval", "running"}
    assert 300 <= spent["awaiting_approval"] < 310
    assert 0 < spent["running"] < 10


async def test_a_run_that_was_denied_tells_of_its_end_and_took_no_time_at_work(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(approval_required=True))
    await rig.deploy()
    await goes_bad(rig)
    run = await rig.until(rig.run)
    await told(rig, "run_moved", after="awaiting_approval")
    rig.clock.advance(60)
    await rig.operations.deny(run.id, "ann")

    moved = await told(rig, "run_moved", after="denied")
    assert moved["trigger"] == "automatic"
    assert set(moved["spent"]) == {"awaiting_approval"}
    assert (await told(rig, "deployment_ended"))["restore_s"] is None


async def test_time_to_restore_counts_from_when_the_matrix_first_found_something_wrong(
    make_rig: MakeRig,
) -> None:
    """Waiting for the same facts to last, and for a person, is time that the service was bad."""
    rig = await make_rig(a_target(approval_required=True, confirm_for=Duration(40)))
    await rig.deploy()
    await goes_bad(rig)

    async def seen() -> bool:
        return (await rig.deployment()).failing_since is not None

    await rig.until(seen)
    rig.clock.advance(41)
    run = await rig.until(rig.run)
    rig.clock.advance(100)
    await rig.operations.approve(run.id, "ann")

    ended = await told(rig, "deployment_ended", outcome="rolled_back")
    assert 141 <= ended["restore_s"] < 160
    assert ended["lead_s"] is None


async def test_what_got_well_by_itself_is_not_failing_any_more(make_rig: MakeRig) -> None:
    rig = await make_rig(a_target(confirm_for=Duration(9_999)))
    await rig.deploy()
    await goes_bad(rig)

    async def failing() -> bool:
        return (await rig.deployment()).failing_since is not None

    await rig.until(failing)
    rig.clock.advance(1)
    await rig.send("signal.resolved", category="errors", severity="critical", name="errors alert")

    async def well() -> bool:
        return not await failing()

    await rig.until(well)


async def test_a_rollback_that_a_person_asked_for_restores_from_when_it_was_asked(rig: Rig) -> None:
    deployment = await rig.deploy()
    assert deployment.failing_since is None
    await rig.operations.roll_back("shop", to="a", reason="customers call", requested_by="ann")

    ended = await told(rig, "deployment_ended", outcome="rolled_back")
    assert 0 <= ended["restore_s"] < 10


async def test_lead_time_is_told_of_what_was_kept_and_whose_commit_is_known(make_rig: MakeRig) -> None:
    probe = Probe(
        name="health", url="http://h", interval=Duration(0.01), timeout=Duration(9_999), successes=2
    )
    rig = await make_rig(a_target(probes=(probe,), bake_time=Duration(30)))
    rig.clock.step_s = 0.01
    committed_at = rig.clock.at - timedelta(hours=3)
    await rig.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD)
    await rig.until(rig.watched)
    rig.world.upgrade()
    await rig.send("deploy.succeeded", deployment="4711", committed_at=committed_at)
    # Two good readings of the new release, then its bake time is over.
    read = len([n for n, _ in rig.told if n == "measurement_taken"])
    await rig.until(lambda: len([n for n, _ in rig.told if n == "measurement_taken"]) >= read + 4)
    rig.clock.advance(31)

    ended = await told(rig, "deployment_ended", outcome="kept")
    # Until it ran, not until its bake time was over.
    assert 3 * 3600 <= ended["lead_s"] < 3 * 3600 + 20
    assert ended["restore_s"] is None


# -- where the database stands -----------------------------------------------------------------------------------------------


async def test_a_downgrade_that_was_done_stands_at_to(rig: Rig) -> None:
    await rig.deploy()
    await goes_bad(rig)
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    await told(rig, "downgrade_settled", standing="to")
    ended = await told(rig, "step_recorded", kind="validate_database", phase="done")
    assert ended["findings"]["revision"] == "passed"


async def test_a_downgrade_that_failed_and_changed_nothing_stands_at_from(rig: Rig) -> None:
    def fail() -> None:
        raise PermanentError("syntax error")

    await rig.deploy()
    rig.world.mishaps = [fail]
    await goes_bad(rig)
    assert (await rig.ended_run()).state is RunState.FAILED
    await told(rig, "downgrade_settled", standing="from")
    assert [f["standing"] for n, f in rig.told if n == "downgrade_settled"] == ["from"]


async def test_a_downgrade_that_ended_in_between_stands_at_neither(rig: Rig) -> None:
    await rig.deploy()
    rig.world.mishaps = [lambda: rig.world.tables.discard("b")]
    await goes_bad(rig)
    assert (await rig.ended_run()).state is RunState.HELD
    await told(rig, "downgrade_settled", standing="neither")
    assert [f["standing"] for n, f in rig.told if n == "downgrade_settled"] == ["neither"]


async def test_a_schema_that_changed_between_two_deployments_has_drifted(rig: Rig) -> None:
    """Of one whose revision moved too, nobody can say that."""
    first = await rig.deploy(migrates=False)
    await rig.send("deploy.started", deployment="4712", version="3.0", previous_version=NEW)

    async def superseded() -> bool:
        newest = await rig.deployment()
        return newest.id != first.id and newest.heads_before is not None

    await rig.until(superseded)
    assert not [f for n, f in rig.told if n == "schema_drifted"]
    rig.world.tables.add("by_hand")
    await rig.send("deploy.started", deployment="4713", version="4.0", previous_version="3.0")

    drifted = await told(rig, "schema_drifted")
    assert "by_hand" in drifted["difference"]


# -- events ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ({"kind": "deploy.started", "deployment": "1", "version": NEW}, "taken"),
        ({"kind": "deploy.started", "deployment": "1", "version": NEW, "service": "other"}, "unguarded"),
        ({"kind": "rollback.requested", "to_revision": "nosuch", "reason": "x"}, "refused"),
    ],
)
async def test_an_event_is_told_with_what_came_of_it(rig: Rig, event: dict[str, Any], result: str) -> None:
    outcome = await rig.send(**event)
    settled = await told(rig, "event_settled")
    assert (settled["kind"], settled["result"], settled["outcome"]) == (event["kind"], result, outcome)


async def test_a_signal_is_evidence_of_each_target_that_it_is_about(rig: Rig) -> None:
    await goes_bad(rig)
    assert (await told(rig, "signal_noted"))["target"] == "shop"


async def test_the_gate_tells_its_answer_and_how_far_its_backup_is(rig: Rig) -> None:
    event = Event(kind=EventKind.DEPLOY_STARTED, service="shop", environment="staging", version=NEW)

    answer = await rig.operations.gate("shop", event, rig.pipeline)
    assert (await told(rig, "gate_answered"))["verdict"] == answer.verdict
    await told(rig, "backup_ended", target="shop")
