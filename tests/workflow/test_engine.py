"""The engine: what it does when a step fails, when the world isn't as it should be, and when it loses the run."""

import asyncio
import sqlite3
from collections.abc import Callable

import msgspec
import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import KEPT, NEW, OLD, B, World
from tests.workflow.rig import Rig, a_target

from rollbackd.core.planning.estimating import ARCHIVE_BYTES_A_SECOND
from rollbackd.core.records import LogLine, Run, StepRecord
from rollbackd.core.rehearsal import Depth, Failure
from rollbackd.core.run import RunState, StepPhase
from rollbackd.errors import (
    PermanentError,
    RefusedError,
    RollbackdError,
    StoreUnavailableError,
    TransientError,
)
from rollbackd.workflow.engine import Engine


def fails(error: Exception) -> Callable[[], None]:
    def mishap() -> None:
        raise error

    return mishap


async def ask(rig: Rig) -> Run:
    """A rollback asked for by hand, of a deployment that went before."""
    await rig.deploy()
    return await rig.operations.roll_back("shop", to="-1", reason="it is bad", requested_by="ann")


async def test_a_run_that_meets_no_trouble_takes_every_step_once_and_puts_the_old_release_back(
    rig: Rig,
) -> None:
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    assert rig.world.heads == ("a",)
    assert rig.world.running == OLD
    phases = await rig.phases(run)
    assert all(phases.count((step.kind, "done")) == 1 for step in run.plan.steps)
    # Archived in the downgrade itself, and the archive looked after once it is there.
    assert rig.world.archived == {run.id: run.plan.archive}
    assert run.plan.archive == (KEPT,)
    calls = [
        c for c in rig.world.calls if c in ("take rollback", "stop", "downgrade", "finish", f"start {OLD}")
    ]
    assert calls == ["take rollback", "stop", "downgrade", "finish", f"start {OLD}"]


async def test_a_transient_fault_is_tried_again_after_another_look(rig: Rig) -> None:
    rig.world.mishaps = [fails(TransientError("lock not had"))]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    assert rig.world.calls.count("downgrade") == 2
    assert ("downgrade", "failed") in await rig.phases(run)


async def test_a_transient_fault_after_the_deed_was_done_does_not_repeat_the_deed(rig: Rig) -> None:
    def mishap() -> None:
        rig.world.downgrade()
        raise TransientError("the connection was lost at the commit")

    rig.world.mishaps = [mishap]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    assert rig.world.calls.count("downgrade") == 1


@pytest.mark.parametrize("error", [PermanentError("no such column"), ValueError("a fault of ours")])
async def test_a_permanent_fault_is_not_tried_again(rig: Rig, error: Exception) -> None:
    rig.world.mishaps = [fails(error)]
    await ask(rig)
    run = await rig.ended_run()
    assert rig.world.calls.count("downgrade") == 1
    assert run.state is (RunState.FAILED if isinstance(error, RollbackdError) else RunState.HELD)
    assert str(error) in run.statement


async def test_a_downgrade_that_failed_and_left_the_database_unchanged_starts_the_application_again(
    rig: Rig,
) -> None:
    rig.world.mishaps = [fails(PermanentError("no such column"))]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.FAILED
    assert "The database is unchanged" in run.statement
    assert rig.world.running == NEW
    assert ("stop_application", "undone") in await rig.phases(run)


async def test_a_failed_backup_ends_the_run_with_nothing_stopped(rig: Rig) -> None:
    rig.world.backup_fault = PermanentError("the disk is full")
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.FAILED
    assert "stop" not in rig.world.calls
    assert rig.world.heads == ("b",)


async def test_an_application_that_cannot_be_started_again_makes_the_run_held(rig: Rig) -> None:
    rig.world.mishaps = [fails(PermanentError("no such column"))]
    rig.world.start_fault = PermanentError("exit 1")
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert "taking back" in run.statement


async def test_a_fault_after_the_downgrade_makes_the_run_held_and_takes_nothing_back(rig: Rig) -> None:
    rig.world.start_fault = PermanentError("exit 1")
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert "the database was downgraded" in run.statement
    assert f"start {NEW}" not in rig.world.calls


def half_done(world: World) -> Callable[[], None]:
    def mishap() -> None:
        world.tables = {"a", "half of b"}
        raise PermanentError("the second statement failed")

    return mishap


async def test_a_database_that_is_neither_here_nor_there_makes_the_run_held_until_a_person_has_settled_it(
    rig: Rig,
) -> None:
    rig.world.mishaps = [half_done(rig.world)]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert "the schema has changed" in run.statement
    await rig.operations.resume(run.id, "bob")
    held_again = await rig.ended_run()
    assert held_again.state is RunState.HELD
    assert rig.world.calls.count("downgrade") == 1
    rig.world.downgrade()
    await rig.operations.resume(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert rig.world.calls.count("downgrade") == 1


async def lose_the_stamp(rig: Rig) -> Run:
    """A downgrade that did all it had to, and whose stamp didn't move."""

    def mishap() -> None:
        rig.world.tables = {"a"}

    rig.world.mishaps = [mishap]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    return run


async def test_a_lost_stamp_is_told_from_a_half_done_downgrade_and_moved_on_a_persons_word(rig: Rig) -> None:
    run = await lose_the_stamp(rig)
    assert "the stamp is lost, the changes are not" in run.statement
    assert f"'rollbackd resume {run.id} --stamp'" in run.statement
    # Without that word nothing is moved.
    await rig.operations.resume(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.HELD
    assert rig.world.heads == ("b",)
    await rig.operations.resume(run.id, "bob", stamp=True)
    ended = await rig.ended_run()
    assert ended.state is RunState.SUCCEEDED
    assert rig.world.heads == ("a",)
    assert [rig.world.calls.count(c) for c in ("downgrade", "stamp")] == [1, 1]
    stamped = [r for r in await rig.store.journal_of(run.id) if "stamped" in r.evidence]
    assert [(r.evidence["stamped"], r.evidence["stamped_by"]) for r in stamped] == [(["a"], "bob")]


async def test_the_stamp_is_moved_only_over_exactly_the_rehearsed_schema(rig: Rig) -> None:
    run = await lose_the_stamp(rig)
    rig.world.tables.add("somebody's")
    with pytest.raises(RefusedError, match="isn't exactly the one that the rehearsal of a led to"):
        await rig.operations.resume(run.id, "bob", stamp=True)
    assert rig.world.heads == ("b",)
    assert "stamp" not in rig.world.calls
    assert (await rig.ended_run()).state is RunState.HELD


async def test_no_stamp_is_moved_for_a_run_that_lost_none(rig: Rig) -> None:
    rig.world.start_fault = PermanentError("exit 1")
    run = await ask(rig)
    assert (await rig.ended_run()).state is RunState.HELD
    with pytest.raises(RefusedError, match="no stamp can be lost"):
        await rig.operations.resume(run.id, "bob", stamp=True)
    rig.world.start_fault = None
    await rig.operations.resume(run.id, "bob")
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    with pytest.raises(RefusedError, match="only the stamp of a held run"):
        await rig.operations.resume(run.id, "bob", stamp=True)
    assert "stamp" not in rig.world.calls


async def test_a_downgrade_that_was_not_rehearsed_has_no_stamp_that_could_be_known_to_be_lost(
    rig: Rig,
) -> None:
    rig.world.shown = {"unknown": "no scratch"}

    def mishap() -> None:
        rig.world.tables = {"a"}

    rig.world.mishaps = [mishap]
    run = await ask(rig)
    assert run.state is RunState.AWAITING_APPROVAL
    await rig.operations.approve(run.id, "bob")
    held = await rig.ended_run()
    assert held.state is RunState.HELD
    assert "the stamp is lost" not in held.statement
    with pytest.raises(RefusedError, match="the stamp isn't moved"):
        await rig.operations.resume(run.id, "bob", stamp=True)


async def test_a_stamp_that_moved_without_its_schema_is_not_believed(rig: Rig) -> None:
    def mishap() -> None:
        rig.world.heads = ("a",)

    rig.world.mishaps = [mishap]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert "changes are missing" in run.statement


async def test_a_backup_that_is_gone_before_the_downgrade_stops_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = rig.guarded["shop"].application
    stop = application.stop

    async def stop_and_lose_the_backup() -> None:
        await stop()
        rig.world.backups.clear()

    monkeypatch.setattr(application, "stop", stop_and_lose_the_backup)
    monkeypatch.setattr(rig.world, "statements", ("ALTER TABLE a ADD COLUMN c int",))
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.FAILED
    assert "the backup isn't whole" in run.statement
    assert "downgrade" not in rig.world.calls


# -- the last rehearsal -----------------------------------------------------------------------------------------------------


async def test_the_restored_backup_is_rehearsed_on_with_what_the_plan_archives(rig: Rig) -> None:
    await ask(rig)
    run = await rig.ended_run()
    depth, way = rig.world.rehearsed[-1]
    assert depth is Depth.FULL
    assert (way.revisions, way.from_heads, way.to_heads, way.archive) == (
        ("b",),
        ("b",),
        ("a",),
        run.plan.archive,
    )
    (proved,) = [r.evidence for r in await rig.store.journal_of(run.id) if "rehearsed" in r.evidence]
    assert proved["rehearsed"] == {"passed": True, "unknown": "", "seconds": 0.1}


@pytest.mark.parametrize(
    ("shown", "says"),
    [
        (
            {"failure": Failure(revision="b", reason="b is needed by c")},
            "the downgrade of b fails: b is needed by c",
        ),
        ({"heads": ("b",)}, "the downgrade ends at b instead of a"),
        ({"unknown": "the disk is full"}, "couldn't be rehearsed on the restored backup: the disk is full"),
    ],
)
async def test_what_the_last_rehearsal_shows_to_fail_is_not_tried_in_earnest(
    make_rig: MakeRig, shown: dict[str, object], says: str
) -> None:
    rig = await make_rig(a_target(approval_required=True))
    run = await ask(rig)
    # The rows that are in the way came after the plan was made.
    rig.world.shown = shown
    await rig.operations.approve(run.id, "bob")
    ended = await rig.ended_run()
    assert ended.state is RunState.FAILED
    assert says in ended.statement
    assert [c for c in rig.world.calls if c in ("stop", "downgrade")] == []
    assert rig.world.heads == ("b",)


async def test_a_schema_that_changed_since_it_was_rehearsed_stops_the_run_before_anything_is_done(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(a_target(approval_required=True))
    run = await ask(rig)
    rig.world.tables.add("made_by_hand")
    await rig.operations.approve(run.id, "bob")
    ended = await rig.ended_run()
    assert ended.state is RunState.FAILED
    assert "the schema has changed since the way back was planned and rehearsed" in ended.statement
    assert [c for c in rig.world.calls if c in ("take rollback", "stop", "downgrade")] == []


async def test_a_schema_that_is_not_the_rehearsed_one_afterwards_is_held(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mishap() -> None:
        rig.world.downgrade()
        rig.world.tables.add("left_behind")

    rig.world.mishaps = [mishap]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.HELD
    assert (
        "rehearsed_schema: differs from the one that the rehearsal led to: + table left_behind"
        in run.statement
    )
    assert [c for c in rig.world.calls if c.startswith("start")] == []


# -- the other ways back ----------------------------------------------------------------------------------------------------


async def gentle(make_rig: MakeRig, *ways: str) -> Rig:
    """A target whose old release takes a stamp that it doesn't know."""
    target = a_target(ways_back=ways)
    tolerant = msgspec.structs.replace(target.deployment, tolerates_unknown_stamp=True)
    rig = await make_rig(msgspec.structs.replace(target, deployment=tolerant))
    rig.world.rows = 0
    return rig


async def test_leaving_the_schema_starts_the_old_release_and_touches_no_table(make_rig: MakeRig) -> None:
    rig = await gentle(make_rig, "leave_schema", "stop_writes")
    await rig.deploy()
    await rig.send("signal.firing", category="errors", name="errors alert", severity="critical")
    run = await rig.ended_run()
    assert (run.state, run.plan.way_back) == (RunState.SUCCEEDED, "leave_schema")
    assert rig.world.running == OLD
    assert (rig.world.heads, rig.world.tables) == (("b",), {"a", "b"})
    assert [c for c in rig.world.calls if c in ("stop", "downgrade", "take rollback")] == []


async def test_who_wants_the_downgrade_itself_is_not_served_by_leaving_the_schema(make_rig: MakeRig) -> None:
    rig = await gentle(make_rig, "leave_schema", "release_first")
    await ask(rig)
    run = await rig.ended_run()
    assert (run.state, run.plan.way_back) == (RunState.SUCCEEDED, "release_first")
    assert rig.world.heads == ("a",)
    calls = [c for c in rig.world.calls if c in ("take rollback", "stop", "downgrade", f"start {OLD}")]
    assert calls == ["take rollback", f"start {OLD}", "downgrade"]


async def test_nothing_is_downgraded_under_sessions_of_the_replaced_release(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await gentle(make_rig, "release_first")
    rig.clock.step_s = 10
    rig.world.sessions = ("pid 7 (shop, pool), since 10:00",)
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.FAILED
    assert "1 sessions of the replaced release are still there (pid 7" in run.statement
    assert "downgrade" not in rig.world.calls
    # The old release was put back, and works on both schemas: it stays.
    assert (rig.world.running, rig.world.heads) == (OLD, ("b",))


async def test_the_sessions_that_count_are_those_from_before_the_old_release_was_put_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await gentle(make_rig, "release_first")
    asked: list[tuple[str, object]] = []

    async def sessions(application: str, before: object) -> tuple[str, ...]:
        asked.append((application, before))
        return ()

    monkeypatch.setattr(rig.guarded["shop"].database, "sessions", sessions)
    await ask(rig)
    run = await rig.ended_run()
    (started,) = [
        r.at
        for r in await rig.store.journal_of(run.id)
        if (run.plan.steps[r.step].kind, r.phase) == ("start_application", StepPhase.INTENT)
    ]
    assert set(asked) == {("", started)}


# -- what is copied ahead -----------------------------------------------------------------------------------------------


async def test_what_takes_long_is_copied_ahead_and_only_brought_up_to_date_under_the_lock(rig: Rig) -> None:
    rig.world.sizes = {B: 100 * ARCHIVE_BYTES_A_SECOND}
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    calls = [c for c in rig.world.calls if c in ("discard", "copy ahead", "stop", "downgrade")]
    # What a maker who died may have left is thrown away first.
    assert calls == ["discard", "copy ahead", "stop", "downgrade"]
    assert [item.copied for item in rig.world.archived[run.id]] == [True]


async def test_what_was_copied_ahead_is_thrown_away_where_nothing_is_downgraded(rig: Rig) -> None:
    rig.world.sizes = {B: 100 * ARCHIVE_BYTES_A_SECOND}
    rig.world.mishaps = [fails(PermanentError("no such column"))]
    await ask(rig)
    run = await rig.ended_run()
    assert run.state is RunState.FAILED
    assert rig.world.calls.index("discard", rig.world.calls.index("copy ahead")) > 0
    assert {("copy_ahead", "undone"), ("stop_application", "undone")} <= set(await rig.phases(run))
    assert rig.world.archived == {}


async def test_a_copy_that_was_cut_is_thrown_away_and_made_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.world.sizes = {B: 100 * ARCHIVE_BYTES_A_SECOND}
    archives, entered = rig.guarded["shop"].archives, asyncio.Event()
    copy = archives.copy_ahead

    async def takes_forever(*args: object) -> object:
        entered.set()
        return await asyncio.sleep(3600)

    monkeypatch.setattr(archives, "copy_ahead", takes_forever)
    await ask(rig)
    await entered.wait()
    # The daemon stops, and doesn't wait for hours.
    await asyncio.wait_for(rig.stop(), 5)
    monkeypatch.setattr(archives, "copy_ahead", copy)
    rig.wire()
    await rig.start()
    run = await rig.ended_run()
    assert run.state is RunState.SUCCEEDED
    calls = [c for c in rig.world.calls if c in ("discard", "copy ahead", "downgrade")]
    assert calls == ["discard", "discard", "copy ahead", "downgrade"]


# -- the journal and the lease --------------------------------------------------------------------------------------------


class Broken:
    """The store's journal, failing while it is told to."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, after: str) -> None:
        self.is_broken = False
        self._journal = rig.store.journal
        self._rig, self._after = rig, after
        monkeypatch.setattr(rig.store, "journal", self.journal)

    async def journal(self, record: StepRecord, fence: int) -> None:
        if self.is_broken:
            raise StoreUnavailableError("the disk is full")
        await self._journal(record, fence)
        run = await self._rig.store.run(record.run)
        assert run is not None
        if (run.plan.steps[record.step].kind, record.phase) == (self._after, StepPhase.DONE):
            self.is_broken = True


async def test_a_store_that_fails_in_the_middle_stops_the_run_without_another_act_and_the_run_goes_on_later(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(rig, monkeypatch, "stop_application")
    run = await ask(rig)
    await rig.until(lambda: broken.is_broken and not rig.engine.executes(run.id))
    assert rig.world.running == "", "nothing may be started again: nobody could record that it was"
    assert "downgrade" not in rig.world.calls
    known = await rig.store.run(run.id)
    assert known is not None
    assert known.state is RunState.RUNNING
    broken.is_broken = False
    monkeypatch.setattr(rig.store, "journal", broken._journal)
    await rig.runs.take_up()
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert rig.world.calls.count("stop") == 1
    await rig.until(lambda: "run_succeeded" in [name for name, _ in rig.announcer.announced])


async def test_an_engine_that_lost_the_run_neither_writes_nor_acts_any_more(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = rig.guarded["shop"].application
    stop = application.stop

    async def stop_while_another_takes_over() -> None:
        await stop()
        await rig.store.take_lease(run.id)

    monkeypatch.setattr(application, "stop", stop_while_another_takes_over)
    run = await ask(rig)
    await rig.until(lambda: "stop" in rig.world.calls and not rig.engine.executes(run.id))
    assert [c for c in rig.world.calls if c.startswith(("start", "downgrade"))] == []
    known = await rig.store.run(run.id)
    assert known is not None
    assert known.state is RunState.RUNNING
    assert ("stop_application", "done") not in await rig.phases(known)


async def test_a_fenced_engine_does_not_take_back_what_the_other_needs(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = rig.guarded["shop"].application
    looked = application.is_stopped

    async def fail_to_look_once_it_is_stopped() -> bool:
        if rig.world.running == "":
            await rig.store.take_lease(run.id)
            raise PermanentError("the look failed")
        return await looked()

    monkeypatch.setattr(application, "is_stopped", fail_to_look_once_it_is_stopped)
    run = await ask(rig)
    await rig.until(lambda: "stop" in rig.world.calls and not rig.engine.executes(run.id))
    assert [c for c in rig.world.calls if c.startswith("start")] == []


async def test_a_fenced_engine_that_fails_before_it_has_begun_a_step_takes_nothing_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = rig.guarded["shop"].database
    wait = database.wait_for_migration_lock

    async def fail_to_look_for_the_downgrade(timeout_s: float) -> bool:
        if rig.world.running == "":
            await rig.store.take_lease(run.id)
            raise PermanentError("the locks can't be read")
        return await wait(timeout_s)

    monkeypatch.setattr(database, "wait_for_migration_lock", fail_to_look_for_the_downgrade)
    run = await ask(rig)
    await rig.until(lambda: "stop" in rig.world.calls and not rig.engine.executes(run.id))
    assert [c for c in rig.world.calls if c.startswith("start")] == []
    assert ("downgrade", "intent") not in await rig.phases(run)
    assert (await rig.store.unfinished_runs())[0].state is RunState.RUNNING


async def test_a_second_engine_on_the_same_run_stops_the_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()
    backups = rig.guarded["shop"].backups
    take = backups.take

    async def slowly(*args: object, **options: object) -> object:
        entered.set()
        await go_on.wait()
        return await take(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(backups, "take", slowly)
    run = await ask(rig)
    await entered.wait()
    second = Engine(rig.store, rig.clock, rig.guarded, rig.happenings)
    monkeypatch.setattr(backups, "take", take)
    finished = await second.start(run)
    assert finished.state is RunState.SUCCEEDED
    go_on.set()
    await rig.until(lambda: not rig.engine.executes(run.id))
    assert rig.world.calls.count("downgrade") == 1
    assert rig.world.running == OLD


async def test_a_log_line_that_cannot_be_stored_does_not_stop_a_migration_halfway(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(lines: list[LogLine]) -> None:
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(rig.store, "log", full)
    await ask(rig)
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert rig.world.calls.count("downgrade") == 1


async def test_a_run_that_is_held_or_finished_is_not_executed_whoever_asks(rig: Rig) -> None:
    rig.world.mishaps = [lambda: rig.world.tables.add("half_done")]
    held = await ask(rig)
    await rig.until(lambda: not rig.engine.executes(held.id))
    before = list(rig.world.calls)
    assert (await rig.ended_run()).state is RunState.HELD
    stale = msgspec.structs.replace(held, state=RunState.RUNNING)
    assert (await rig.engine.start(stale)).state is RunState.HELD
    assert rig.world.calls == before


@pytest.mark.parametrize("kind", ["back_up", "stop_application", "downgrade", "start_application"])
async def test_a_restart_goes_on_with_the_stored_plan_and_repeats_nothing(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rig = await make_rig()
    broken = Broken(rig, monkeypatch, kind)
    run = await ask(rig)
    await rig.until(lambda: broken.is_broken and not rig.engine.executes(run.id))
    await rig.stop()
    monkeypatch.setattr(rig.store, "journal", broken._journal)
    rig.wire()
    await rig.start()
    assert (await rig.ended_run()).state is RunState.SUCCEEDED
    assert [rig.world.calls.count(c) for c in ("take rollback", "stop", "downgrade", f"start {OLD}")] == [
        1,
        1,
        1,
        1,
    ]
    await rig.until(lambda: "run_succeeded" in [name for name, _ in rig.announcer.announced])


async def test_a_run_of_a_target_that_is_no_longer_configured_leaves_the_others_alone(
    make_rig: MakeRig, tmp_path: object
) -> None:
    rig = await make_rig()
    rig.guarded["shop"].application.world.mishaps = [half_done(rig.world)]  # type: ignore[attr-defined]
    run = await ask(rig)
    await rig.ended_run()
    await rig.stop()
    with sqlite3.connect(str(tmp_path) + "/store/rollbackd.sqlite") as connection:
        connection.execute(
            'UPDATE run SET body = CAST(replace(body, \'"state":"held"\', \'"state":"running"\') AS BLOB)'
        )
    rig.guarded.bring_in((), rig.guard)
    rig.wire()
    await rig.start()
    assert [r.state for r in await rig.store.unfinished_runs()] == [RunState.RUNNING]
    assert not rig.engine.executes(run.id)
