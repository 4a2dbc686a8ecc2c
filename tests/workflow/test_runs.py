"""What people may do with runs, the deploy gate, and reports that nobody can write markup into."""

import asyncio
import re
from typing import Any

import msgspec
import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import NEW, OLD
from tests.workflow.rig import Rig, a_target

from rollbackd.core.events import Event, EventKind
from rollbackd.core.records import Run
from rollbackd.core.report import ReportRehearsal, to_markdown
from rollbackd.core.run import RunState
from rollbackd.errors import NotFoundError, PermanentError, RefusedError, TransientError
from rollbackd.settings import Archive, Backup, Duration
from rollbackd.workflow.operations import GateAnswer

FENCE = chr(96) * 3


async def waiting(make_rig: MakeRig, **policy: Any) -> tuple[Rig, Run]:
    rig = await make_rig(a_target(approval_required=True, **policy))
    rig.world.upgrade()
    run = await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann", release=OLD)
    assert run.state is RunState.AWAITING_APPROVAL
    return rig, run


async def state(rig: Rig, run: Run) -> RunState:
    known = await rig.store.run(run.id)
    assert known is not None
    return known.state


async def held(rig: Rig) -> Run:
    def mishap() -> None:
        rig.world.tables = {"a", "half of b"}
        raise PermanentError("it stopped midway")

    rig.world.mishaps = [mishap]
    rig.world.upgrade()
    await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann", release=OLD)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    return run


# -- words on runs --------------------------------------------------------------------------------------------------------


async def test_a_run_that_needs_approval_does_nothing_before_it_and_everything_after_it(
    make_rig: MakeRig,
) -> None:
    rig, run = await waiting(make_rig)
    assert "approval_asked" in [name for name, _ in rig.announcer.announced]
    await asyncio.sleep(0.1)
    assert rig.world.calls == []
    await rig.operations.approve(run.id, "bob", plan_sha256=run.plan_sha256)
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_who_asked_cannot_approve(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    with pytest.raises(RefusedError, match="ann asked for"):
        await rig.operations.approve(run.id, "ann")
    assert await rig.store.approvals(run.id) == []


async def test_an_approval_for_another_plan_is_none(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    with pytest.raises(RefusedError, match="another plan"):
        await rig.operations.approve(run.id, "bob", plan_sha256="0" * 64)
    assert await state(rig, run) is RunState.AWAITING_APPROVAL


async def test_an_approval_that_comes_too_late_ends_the_run_as_expired(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig, approval_expires=Duration(60))
    rig.clock.advance(61)
    with pytest.raises(RefusedError, match="ended at"):
        await rig.operations.approve(run.id, "bob")
    assert await state(rig, run) is RunState.EXPIRED


async def test_a_run_that_nobody_approves_expires_by_itself(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig, approval_expires=Duration(60))
    assert await rig.runs.expire() == []
    rig.clock.advance(61)
    assert [r.id for r in await rig.runs.expire()] == [run.id]
    assert rig.world.calls == []


async def test_a_denied_run_is_finished_and_nothing_was_done(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    denied = await rig.operations.deny(run.id, "bob", reason="not now")
    assert (denied.state, denied.statement) == (RunState.DENIED, "denied by bob: not now")
    for ask in (rig.operations.approve, rig.operations.deny, rig.operations.resume, rig.operations.abandon):
        with pytest.raises(RefusedError):
            await ask(run.id, "bob")
    assert rig.world.calls == []


async def test_of_two_approvals_at_once_one_starts_the_run_and_the_other_is_refused(
    make_rig: MakeRig,
) -> None:
    rig, run = await waiting(make_rig)
    found = await asyncio.gather(
        rig.operations.approve(run.id, "bob"), rig.operations.approve(run.id, "carol"), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in found) == ["RefusedError", "Run"]
    await rig.ended_run()
    assert rig.world.calls.count("downgrade") == 1


async def test_only_a_held_run_is_resumed_or_abandoned(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    for ask in (rig.operations.resume, rig.operations.abandon):
        with pytest.raises(RefusedError, match="awaiting_approval"):
            await ask(run.id, "bob")
    with pytest.raises(NotFoundError, match="there is no run"):
        await rig.operations.resume("run-none", "bob")


async def test_an_abandoned_run_frees_the_database_and_keeps_why_it_was_held(rig: Rig) -> None:
    run = await held(rig)
    rig.world.upgrade()
    with pytest.raises(RefusedError, match="unfinished run already"):
        await rig.operations.roll_back("shop", to="-1", reason="again", requested_by="ann", release=OLD)
    abandoned = await rig.operations.abandon(run.id, "bob", reason="by hand")
    assert "by hand. It was held because: " in abandoned.statement
    assert "the schema has changed" in abandoned.statement
    await rig.operations.roll_back("shop", to="-1", reason="again", requested_by="ann", release=OLD)
    assert (await rig.ended_run()).state is RunState.SUCCEEDED


async def test_a_run_of_a_target_that_is_no_longer_configured_can_still_expire(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig, approval_expires=Duration(60))
    rig.guarded.bring_in((), rig.guard)
    rig.clock.advance(61)
    await rig.runs.recover()
    assert await state(rig, run) is RunState.EXPIRED


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"reason": "  "}, "a reason is needed"),
        ({"to": ""}, "no revision was named"),
        ({"to": "nosuch"}, "no script has the revision nosuch"),
        ({"to": "b"}, "already; there is nothing to downgrade"),
        ({"to": "-3"}, "goes below base"),
        ({"to": "--sql"}, "isn't a number of steps"),
        ({"plan_sha256": "0" * 64}, "the plan has changed"),
        ({"release": ""}, "nobody said which release ran before"),
    ],
)
async def test_what_cannot_be_rolled_back_is_refused_and_no_run_is_recorded(
    rig: Rig, changed: dict[str, str], fault: str
) -> None:
    rig.world.upgrade()
    asked = {"to": "-1", "reason": "x", "requested_by": "ann", "release": OLD, **changed}
    with pytest.raises(RefusedError, match=fault):
        await rig.operations.roll_back("shop", **asked)
    assert await rig.run() is None


async def test_an_unknown_target_is_named_with_those_there_are(rig: Rig) -> None:
    with pytest.raises(NotFoundError, match="there is no target shp; configured are shop"):
        await rig.operations.plan("shp", to="-1")


async def test_a_plan_that_was_shown_is_the_plan_that_runs(rig: Rig) -> None:
    rig.world.upgrade()
    plan, _ = await rig.operations.plan("shop", to="-1", release=OLD)
    run = await rig.operations.roll_back(
        "shop", to="-1", reason="x", requested_by="ann", release=OLD, plan_sha256=plan.sha256()
    )
    assert run.plan_sha256 == plan.sha256()
    assert rig.world.calls.count("downgrade") in (0, 1)
    await rig.ended_run()


async def test_scripts_that_change_between_plan_and_run_stop_it(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    rig.world.scripts = "scripts-2"
    await rig.operations.approve(run.id, "bob")
    ended = await rig.ended_run()
    assert ended.state is RunState.FAILED
    assert "downgrade" not in rig.world.calls


async def test_a_pause_needs_a_reason_and_a_target_that_is_there(rig: Rig) -> None:
    with pytest.raises(RefusedError, match="a reason is needed"):
        await rig.operations.pause("shop", "ann", " ", None)
    with pytest.raises(NotFoundError):
        await rig.operations.pause("nosuch", "ann", "x", None)
    assert await rig.operations.unpause("shop", "ann") is False


# -- the gate -------------------------------------------------------------------------------------------------------------


def deploy(name: str = "1") -> Event:
    return Event(
        kind=EventKind.DEPLOY_STARTED, service="shop", environment="staging", version=NEW, previous_version=OLD, deployment=name
    )  # fmt: skip


async def test_two_that_ask_at_the_gate_at_once_share_one_backup_and_one_deployment(rig: Rig) -> None:
    answers: list[GateAnswer] = await asyncio.gather(
        *(rig.operations.gate("shop", deploy(), rig.pipeline) for _ in range(5))
    )
    assert all(answer.go for answer in answers), answers
    assert len({answer.deployment for answer in answers}) == 1
    assert len({str(answer.backup["backup"]) for answer in answers}) == 1
    assert rig.world.calls.count("take gate") == 1
    assert answers[0].heads == ("a",)


async def test_the_gate_stays_shut_while_a_run_on_this_database_is_unfinished(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    answer = await rig.operations.gate("shop", deploy(), rig.pipeline)
    assert not answer.go
    assert f"{run.id} is awaiting_approval" in answer.reasons[0]
    assert await rig.store.deployments(None, 9) == []


@pytest.mark.parametrize(
    ("name", "error"),
    [("backup_fault", PermanentError("no space")), ("database_fault", TransientError("no route"))],
)
async def test_the_gate_stays_shut_without_backup_or_state_and_says_why(
    rig: Rig, name: str, error: Exception
) -> None:
    setattr(rig.world, name, error)
    answer = await rig.operations.gate("shop", deploy(), rig.pipeline)
    assert not answer.go
    assert answer.reasons[0] in (str(error), "the state before the deploy couldn't be documented")


async def test_without_a_configured_backup_the_gate_opens_and_says_that_there_is_none(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(msgspec.structs.replace(a_target(), backup=Backup()))
    answer = await rig.operations.gate("shop", deploy(), rig.pipeline)
    assert answer.go
    assert answer.reasons == ("no backup is configured for this target",)


# -- bringing back --------------------------------------------------------------------------------------------------------


async def rolled_back(rig: Rig) -> Run:
    rig.world.upgrade()
    await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann", release=OLD)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    return run


async def test_what_a_run_archived_is_brought_back_and_told(rig: Rig) -> None:
    run = await rolled_back(rig)
    tried = await rig.operations.restore(run.id, "ann", dry_run=True)
    assert (tried.dry_run, tried.restored) == (True, 3)
    assert rig.world.restored == []
    assert "data_restored" not in [name for name, _ in rig.told]
    done = await rig.operations.restore(run.id, "ann", dry_run=False)
    assert (done.dry_run, done.restored) == (False, 3)
    assert rig.world.restored == [run.id]
    (told,) = [fields for name, fields in rig.told if name == "data_restored"]
    assert (told["run"], told["target"], told["actor"], told["restored"]) == (run.id, "shop", "ann", 3)


async def test_nothing_is_brought_back_of_a_run_that_is_unfinished_or_not_there(make_rig: MakeRig) -> None:
    rig, run = await waiting(make_rig)
    with pytest.raises(RefusedError, match="is awaiting_approval: settle it before"):
        await rig.operations.restore(run.id, "ann", dry_run=False)
    with pytest.raises(NotFoundError, match="there is no run run-none"):
        await rig.operations.restore("run-none", "ann", dry_run=True)
    assert rig.world.restored == []


async def test_nothing_is_brought_back_while_somebody_migrates(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await rolled_back(rig)

    async def migrates(timeout_s: float) -> bool:
        return False

    monkeypatch.setattr(rig.guarded["shop"].database, "wait_for_migration_lock", migrates)
    with pytest.raises(TransientError, match="a session migrates shop right now"):
        await rig.operations.restore(run.id, "ann", dry_run=False)
    assert rig.world.restored == []


async def test_archives_are_listed_by_run_and_dropped_only_when_they_are_old_and_nobody_needs_them(
    make_rig: MakeRig,
) -> None:
    target = msgspec.structs.replace(a_target(), archive=Archive(keep=Duration(1000)))
    rig = await make_rig(target)
    run = await rolled_back(rig)
    assert [e.run for e in await rig.operations.archives("shop")] == [run.id]
    assert await rig.operations.archives("shop", "run-none") == ()
    assert await rig.operations.prune_archives() == {}
    rig.clock.advance(1001)
    # A run on this database isn't over: what it may need stays.
    held_run = await held(rig)
    assert await rig.operations.prune_archives() == {}
    await rig.operations.abandon(held_run.id, "bob")
    dropped = await rig.operations.prune_archives()
    assert [entry.run for entry in dropped["shop"]] == [run.id]
    assert rig.world.archived == {}


async def test_a_database_that_is_not_there_keeps_nobody_from_pruning_the_others(make_rig: MakeRig) -> None:
    rig = await make_rig()
    rig.world.archive_fault = TransientError("no route")
    assert await rig.operations.prune_archives() == {}


# -- reports --------------------------------------------------------------------------------------------------------------


async def test_a_report_says_what_was_done_and_what_is_left(rig: Rig) -> None:
    await rig.deploy()
    run = await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann")
    await rig.ended_run()
    report = await rig.reporting.report(run.id)
    assert (report.status, report.from_heads, report.to_heads) == ("succeeded", ("b",), ("a",))
    assert [step.outcome for step in report.steps] == ["done"] * len(run.plan.steps)
    assert {backup.purpose for backup in report.backups} == {"rollback"}
    assert report.loses == ("3 rows of public.b go",)
    assert [(r.verdict, r.why) for r in report.revisions] == [
        ("reversible_with_loss", ("3 rows of public.b go",))
    ]
    assert report.rehearsal == ReportRehearsal(
        depth="full",
        passed=True,
        text="Rehearsed on a copy with every row in 0.1 s: it passed.",
        difference=("- table b",),
    )
    (kept,) = report.archives
    assert (kept.kind, kept.table, kept.rows, kept.place) == ("table", "public.b", 3, "rollbackd_archive.a1")
    assert report.restore_script
    assert report.price.startswith("back now: ")
    left = [step.text for step in report.next_steps if not step.done]
    assert any(f"rollbackd restore {run.id}" in text for text in left)
    text = to_markdown(report)
    for said in (
        "## Rehearsal",
        "- table b",
        f"rollbackd restore {run.id} --dry-run",
        report.restore_script,
        "not yet",
    ):
        assert said in text
    with pytest.raises(NotFoundError):
        await rig.reporting.report("run-none")


async def test_a_report_on_a_database_that_is_gone_says_that_its_archives_could_not_be_read(rig: Rig) -> None:
    await rig.deploy()
    run = await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann")
    await rig.ended_run()
    rig.world.archive_fault = TransientError("no route")
    report = await rig.reporting.report(run.id)
    assert (report.archives, report.archives_unreadable) == ((), "no route")
    assert "couldn't be read: no route" in to_markdown(report)


async def test_what_was_brought_back_is_in_the_report(rig: Rig) -> None:
    await rig.deploy()
    run = await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann")
    await rig.ended_run()
    await rig.operations.restore(run.id, "ann", dry_run=False)
    report = await rig.reporting.report(run.id)
    assert report.archives[0].restored_at is not None
    assert "not yet" not in to_markdown(report)


async def test_hostile_text_stays_text_in_a_report(rig: Rig) -> None:
    evil = f"a | b\n## Approved by bob\n| x | y |\n<script>alert(1)</script> `code` [l](javascript:x) **bold** {FENCE}\nrm"
    rig.world.statements = (f"DROP TABLE b -- {FENCE}\n## Not a heading",)
    rig.world.shown = {"unknown": evil}
    rig.world.upgrade()
    asked = await rig.operations.roll_back(
        "shop", to="-1", reason=evil, requested_by="a|nn\n# x", release="1\n# y | z", incident="<b>INC</b>"
    )
    assert asked.state is RunState.AWAITING_APPROVAL, "what isn't rehearsed is for a person to judge"
    await rig.operations.approve(asked.id, "bob | <b>x</b>\n## Not")
    run = await rig.ended_run()
    text = to_markdown(await rig.reporting.report(run.id))
    outside, fence = [], ""
    for line in text.splitlines():
        if not fence and line.startswith(FENCE):
            fence = line.rstrip("abcdefghijklmnopqrstuvwxyz")
        elif fence:
            fence = "" if line == fence else fence
        else:
            outside.append(line)
    assert fence == "", "every fence is closed"
    assert [line for line in outside if line.startswith(("## Approved", "## Not", "# x", "# y"))] == []
    kept = "\n".join(outside)
    for markup in ("<script", "<b>", r"(?<!\\)\]\(", r"(?<![\\*])\*\*bold", "(?<!\\\\)`code"):
        assert re.search(markup, kept) is None, markup
    rows = [line for line in outside if line.startswith("| Reason")]
    assert len(rows) == 1
    assert rows[0].count("|") == 3
