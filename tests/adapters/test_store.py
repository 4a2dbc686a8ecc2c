"""The embedded store: what it took is on disk, once, whatever happens to the process."""

import asyncio
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import rollbackd
from rollbackd.adapters.store import schema, tables
from rollbackd.adapters.store.sqlite import DATABASE, SqliteStore
from rollbackd.core.events import Event, EventKind
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.core.investigation import Activity, Change, Investigation, MetricSeries, Point
from rollbackd.core.planning.plan import Plan
from rollbackd.core.records import Delivery, DocumentedHeads, LogLine, Run, StateDocument, StepRecord
from rollbackd.core.run import RunState, StepPhase
from rollbackd.core.schema import Schema
from rollbackd.errors import NotFoundError, RefusedError, StoreUnavailableError

pytestmark = [pytest.mark.xdist_group("adapters-backup"), pytest.mark.timeout(60)]

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open_writing(tmp_path / "store")
    yield opened
    await opened.close()


def delivery(name: str, *, body: bytes = b"{}", events: int = 1, at: datetime = NOW) -> Delivery:
    event = Event(kind=EventKind.DEPLOY_STARTED, service="shop", environment="staging", deployment=name)
    return Delivery(
        id=f"id-{name}", hook="rollbackd", identity=name, body_sha256=body.hex(), headers={"a": "b"}, body=body, received_at=at,
        events=(event,) * events, ignored_because="" if events else "a ping",
    )  # fmt: skip


def run(name: str, key: str = "db-1", state: RunState = RunState.PLANNED) -> Run:
    return Run(
        id=name, target="shop", database_key=key, deployment="", decision="", plan=PLAN, plan_sha256="", state=state,
        trigger="person", requested_by="ann", reason="", incident="", created_at=NOW,
    )  # fmt: skip


def a_plan() -> Plan:
    """Any plan: required fields are filled by their types' plainest values."""
    plain: dict[type, Any] = {str: "", int: 0, float: 0.0, bool: False}
    fields = {}
    for field in msgspec.structs.fields(Plan):
        if not field.required:
            continue
        kind = field.type
        if isinstance(kind, type) and issubclass(kind, str) and kind is not str:
            fields[field.encode_name] = next(iter(kind))  # an enum
        else:
            fields[field.encode_name] = plain.get(kind, [])
    return msgspec.convert(fields, Plan)


PLAN = a_plan()


def rows(store_folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store_folder / DATABASE) as connection:
        return connection.execute(query).fetchall()


# -- schema -------------------------------------------------------------------------------------------------------------


async def test_the_migrated_schema_is_that_of_the_tables_and_its_head_the_scripts_head(
    store: SqliteStore, tmp_path: Path
) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'store' / DATABASE}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
        assert context.get_current_heads() == (schema.HEAD,)
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


async def test_the_tables_would_show_a_column_that_no_migration_makes(
    store: SqliteStore, tmp_path: Path
) -> None:
    metadata = sqlalchemy.MetaData()
    for table in tables.metadata.tables.values():
        table.to_metadata(metadata)
    metadata.tables["run"].append_column(sqlalchemy.Column("forgotten", sqlalchemy.String))
    with sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'store' / DATABASE}").connect() as connection:
        assert len(compare_metadata(MigrationContext.configure(connection), metadata)) == 1


async def test_a_store_of_a_newer_rollbackd_is_refused_and_not_kept_locked(tmp_path: Path) -> None:
    await (await SqliteStore.open_writing(tmp_path)).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"schema 9999, and this rollbackd knows"):
            await SqliteStore.open_writing(tmp_path)


async def test_a_rehearsed_state_is_kept_and_never_taken_for_one_that_was_seen(store: SqliteStore) -> None:
    def document(name: str, minutes: int, *, rehearsed: bool = False) -> StateDocument:
        return StateDocument(
            id=name, target="shop", taken_at=NOW + timedelta(minutes=minutes), heads=(name,), fingerprint="f",
            counts=(), schema=Schema({"table t": name}), rehearsed=rehearsed,
        )  # fmt: skip

    seen, expected = document("seen", 0), document("expected", 5, rehearsed=True)
    await store.save_document(seen)
    await store.save_document(expected)
    assert await store.document("expected") == expected
    assert await store.latest_document("shop") == seen
    assert await store.latest_document("shop", NOW + timedelta(minutes=9)) == seen
    # Found again, it is the same one.
    await store.save_document(document("expected", 9, rehearsed=True))
    assert await store.latest_document("shop") == seen
    assert await store.latest_heads("shop") == DocumentedHeads(heads=("seen",), taken_at=NOW)
    assert await store.latest_heads("billing") is None


# -- deliveries ---------------------------------------------------------------------------------------------------------


async def test_the_same_delivery_again_gets_the_first_answer_and_another_body_is_a_conflict(
    store: SqliteStore,
) -> None:
    first = await store.accept(delivery("a", events=2))
    again = await store.accept(msgspec.structs.replace(delivery("a", events=2), id="other"))
    forged = await store.accept(msgspec.structs.replace(delivery("a", body=b"[]"), id="third"))
    assert (first.id, first.is_new, first.conflict) == ("id-a", True, False)
    assert (again.id, again.is_new, again.conflict) == ("id-a", False, False)
    assert (forged.id, forged.is_new, forged.conflict) == ("id-a", False, True)
    retried = await store.accept(delivery("a", events=2))
    assert (retried.id, retried.is_new) == ("id-a", False)
    assert [e.event.deployment for e in await store.next_events(10)] == ["a", "a"]


async def test_events_come_in_order_until_they_are_settled(store: SqliteStore) -> None:
    for name in "abc":
        await store.accept(delivery(name))
    waiting = await store.next_events(2)
    assert [e.event.deployment for e in waiting] == ["a", "b"]
    assert waiting[0].received_at == NOW
    await store.settle_events({waiting[0].seq: "opened deployment d1"}, NOW)
    await store.settle_events({}, NOW)
    assert [e.event.deployment for e in await store.next_events(9)] == ["b", "c"]
    await store.accept(delivery("ping", events=0))
    recent = await store.recent_deliveries(10)
    assert [(d["id"], d["outcome"], d["ignored_because"]) for d in recent] == [
        ("id-ping", "", "a ping"), ("id-c", "", ""), ("id-b", "", ""), ("id-a", "opened deployment d1", ""),
    ]  # fmt: skip


async def test_deliveries_that_come_together_share_commits_and_each_is_answered_for_itself(
    store: SqliteStore,
) -> None:
    commits = 0
    assert store._writer is not None
    original = store._writer._commit

    def counted(*arguments: Any) -> Any:
        nonlocal commits
        commits += 1
        return original(*arguments)

    store._writer._commit = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*[store.accept(delivery(str(i % 300))) for i in range(600)])
    assert sum(a.is_new for a in answers) == 300
    assert {a.id for a in answers} == {f"id-{i}" for i in range(300)}
    assert commits < 30
    assert len(await store.next_events(999)) == 300


async def test_work_that_fails_does_not_hurt_what_shares_its_commit(store: SqliteStore) -> None:
    await store.add_run(run("run-1"))
    answers = await asyncio.gather(
        store.accept(delivery("a")), store.add_run(run("run-2")), store.accept(delivery("b")),
        store.journal(StepRecord(run="nowhere", step=1, attempt=1, phase=StepPhase.INTENT, at=NOW), 0), store.add_totals({"x": 1}),
        return_exceptions=True,
    )  # fmt: skip
    assert isinstance(answers[1], RefusedError)
    assert isinstance(answers[3], NotFoundError)
    assert [e.event.deployment for e in await store.next_events(9)] == ["a", "b"]
    assert await store.totals() == {"x": 1}
    assert [r.id for r in await store.runs(None, 9)] == ["run-1"]


# -- runs ---------------------------------------------------------------------------------------------------------------


async def test_one_database_has_one_unfinished_run(store: SqliteStore) -> None:
    await store.add_run(run("run-1"))
    with pytest.raises(RefusedError, match="unfinished run already: run-1, which is planned"):
        await store.add_run(run("run-2"))
    await store.add_run(run("run-3", "db-2"))
    await store.move_run("run-1", RunState.PLANNED, RunState.RUNNING, NOW)
    await store.move_run("run-1", RunState.RUNNING, RunState.HELD, NOW, statement="stands between")
    with pytest.raises(RefusedError, match="which is held"):
        await store.add_run(run("run-2"))
    moved = await store.move_run("run-1", RunState.HELD, RunState.ABANDONED, NOW)
    assert (moved.finished_at, moved.statement) == (NOW, "stands between")
    await store.add_run(run("run-2"))
    assert [r.id for r in await store.unfinished_runs()] == ["run-3", "run-2"] or [
        r.id for r in await store.unfinished_runs()
    ] == ["run-2", "run-3"]


async def test_a_run_moves_from_the_state_it_is_in_and_by_the_table_alone(store: SqliteStore) -> None:
    await store.add_run(run("run-1"))
    await store.move_run("run-1", RunState.PLANNED, RunState.RUNNING, NOW)
    with pytest.raises(RefusedError, match="run-1 is running, not planned"):
        await store.move_run("run-1", RunState.PLANNED, RunState.RUNNING, NOW)
    await store.move_run("run-1", RunState.RUNNING, RunState.SUCCEEDED, NOW)
    with pytest.raises(Exception, match="succeeded"):
        await store.move_run("run-1", RunState.SUCCEEDED, RunState.RUNNING, NOW)


async def test_whoever_lost_the_lease_can_neither_journal_nor_move(store: SqliteStore) -> None:
    await store.add_run(run("run-1"))
    with pytest.raises(RefusedError, match="nothing to execute"):
        await store.take_lease("run-1")
    await store.move_run("run-1", RunState.PLANNED, RunState.RUNNING, NOW)
    first = await store.take_lease("run-1")
    record = StepRecord(run="run-1", step=1, attempt=1, phase=StepPhase.INTENT, at=NOW, evidence={"rows": 3})
    await store.journal(record, first)
    second = await store.take_lease("run-1")
    assert second == first + 1
    with pytest.raises(RefusedError, match="taken over"):
        await store.journal(record, first)
    with pytest.raises(RefusedError, match="taken over"):
        await store.move_run("run-1", RunState.RUNNING, RunState.FAILED, NOW, fence=first)
    await store.move_run("run-1", RunState.RUNNING, RunState.FAILED, NOW, fence=second)
    assert await store.journal_of("run-1") == [record]


async def test_the_newest_readings_until_a_time_are_had_though_many_came_later(store: SqliteStore) -> None:
    readings = [
        Measurement(name="p", at=NOW + timedelta(seconds=n), quality=Quality.OK, healthy=True)
        for n in range(9)
    ]
    await store.save_measurements("d", readings)
    assert await store.measurements("d", 2, NOW + timedelta(seconds=3)) == readings[2:4]
    assert await store.measurements("d", 2) == readings[7:]


async def test_runs_are_found_by_target_state_and_time_the_newest_first(store: SqliteStore) -> None:
    for hours, state in enumerate((RunState.SUCCEEDED, RunState.FAILED, RunState.HELD)):
        old = run(f"run-{hours}", key=f"db-{hours}", state=state)
        await store.add_run(msgspec.structs.replace(old, created_at=NOW - timedelta(hours=hours)))

    async def found(**chosen: Any) -> list[str]:
        return [known.id for known in await store.runs(chosen.pop("target", None), 9, **chosen)]

    assert await found() == ["run-0", "run-1", "run-2"]
    assert await found(states=(RunState.FAILED, RunState.HELD)) == ["run-1", "run-2"]
    assert await found(since=NOW - timedelta(minutes=90)) == ["run-0", "run-1"]
    assert await found(states=(RunState.HELD,), since=NOW - timedelta(minutes=90)) == []
    assert await found(target="billing") == []


async def test_the_last_line_of_a_runs_log_is_had_without_the_others(store: SqliteStore) -> None:
    assert await store.last_log_line("run-1") is None
    lines = [
        LogLine(run=name, step=1, at=NOW, text=text)
        for name, text in (("run-1", "a"), ("run-1", "b"), ("run-2", "c"))
    ]
    await store.log(lines)
    assert await store.last_log_line("run-1") == lines[1]


async def test_nothing_to_save_is_nothing_saved(store: SqliteStore, tmp_path: Path) -> None:
    await store.save_measurements("d", [])
    await store.log([])
    await store.log([LogLine(run="r", step=1, at=NOW, text="x")])
    assert rows(
        tmp_path / "store", "SELECT (SELECT count(*) FROM measurement), (SELECT count(*) FROM log)"
    ) == [(0, 1)]


# -- opening ------------------------------------------------------------------------------------------------------------


async def test_a_second_writer_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    first = await SqliteStore.open_writing(tmp_path)
    with pytest.raises(RefusedError, match="another rollbackd has the store"):
        await SqliteStore.open_writing(tmp_path)
    await first.close()
    second = await SqliteStore.open_writing(tmp_path)
    assert second.store_id == first.store_id
    assert len(second.store_id) == 16
    await second.close()


async def test_a_reader_beside_the_writer_sees_what_was_committed_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "odd ?#%20 name"
    with pytest.raises(NotFoundError, match="no store"):
        await SqliteStore.open_reading(folder)
    writer = await SqliteStore.open_writing(folder)
    reader = await SqliteStore.open_reading(folder)
    await writer.accept(delivery("a"))
    assert len(await reader.next_events(9)) == 1
    with pytest.raises(StoreUnavailableError, match="reading only"):
        await reader.accept(delivery("b"))
    await reader.close()
    await writer.close()
    assert [p.stat().st_mode & 0o077 for p in (folder, folder / DATABASE)] == [0, 0]


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = await SqliteStore.open_writing(tmp_path)
    await store.close()
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.accept(delivery("a"))
    with pytest.raises(StoreUnavailableError, match="closed"):
        await store.next_events(1)


async def test_a_folder_that_cannot_be_written_and_a_file_that_is_no_store_are_unavailable(
    tmp_path: Path,
) -> None:
    with pytest.raises(StoreUnavailableError, match="can't be written"):
        await SqliteStore.open_writing(Path("/proc/rollbackd"))
    (tmp_path / DATABASE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreUnavailableError, match="can't be opened"):
        await SqliteStore.open_writing(tmp_path)


async def test_a_full_disk_refuses_what_it_cannot_keep_and_takes_more_when_there_is_room(
    store: SqliteStore,
) -> None:
    await store.accept(delivery("before"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, before[1]))
    try:
        answers = await asyncio.gather(
            *[store.accept(delivery(f"big-{i}", body=b"x" * 100_000)) for i in range(12)],
            return_exceptions=True,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused = [a for a in answers if isinstance(a, BaseException)]
    assert refused
    assert {type(a) for a in refused} == {StoreUnavailableError}
    await store.accept(delivery("after"))
    kept = {e.event.deployment for e in await store.next_events(99)}
    taken = {a.id.removeprefix("id-") for a in answers if not isinstance(a, BaseException)}
    assert kept == {"before", "after", *taken}


async def test_more_than_may_wait_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open_writing(tmp_path, most_waiting=5)
    answers = await asyncio.gather(
        *[store.accept(delivery(str(i))) for i in range(50)], return_exceptions=True
    )
    refused = [a for a in answers if isinstance(a, StoreUnavailableError)]
    assert 0 < len(refused) <= 45
    assert len(await store.next_events(99)) == 50 - len(refused)
    await store.close()


WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.core.events import Event, EventKind
from rollbackd.core.records import Delivery

async def main(folder, prefix):
    store = await SqliteStore.open_writing(Path(folder))
    async def send(lane):
        for i in range(1_000_000):
            name = f"{prefix}-{lane}-{i}"
            event = Event(kind=EventKind.DEPLOY_STARTED, service="s", environment="e", deployment=name)
            await store.accept(Delivery(id=name, hook="h", identity=name, body_sha256="", headers={}, body=b"x" * 500,
                received_at=datetime.now(UTC), events=(event,)))
            print(name, flush=True)
    await asyncio.gather(*[send(lane) for lane in range(8)])

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    folder = tmp_path / "store"
    acknowledged: set[str] = set()
    for number in range(20):
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(folder), str(number), stdout=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(Path(rollbackd.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert child.stdout is not None
        lines = [await asyncio.wait_for(child.stdout.readline(), 20) for _ in range(3 + number * 7)]
        child.send_signal(signal.SIGKILL)
        lines += (await child.stdout.read()).splitlines(keepends=True)
        await child.wait()
        acknowledged |= {line.decode().strip() for line in lines if line.endswith(b"\n")}
    assert len(acknowledged) > 20 * 30
    store = await SqliteStore.open_writing(folder)
    events = await store.next_events(1_000_000)
    await store.close()
    found = [e.event.deployment for e in events]
    assert len(found) == len(set(found))
    assert acknowledged <= set(found)
    assert rows(folder, "PRAGMA integrity_check") == [("ok",)]


# -- totals and upkeep --------------------------------------------------------------------------------------------------


async def test_totals_add_up_and_survive_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        store = await SqliteStore.open_writing(tmp_path)
        await asyncio.gather(*[store.add_totals({"a": 1, "b": 0.5}) for _ in range(10)])
        await store.close()
    reader = await SqliteStore.open_reading(tmp_path)
    assert await reader.totals() == {"a": 20, "b": 10}
    await reader.close()


async def test_pruning_removes_what_is_old_and_settled_and_keeps_what_waits(
    store: SqliteStore, tmp_path: Path
) -> None:
    old = NOW - timedelta(days=40)
    for name, events, at in (("settled", 1, old), ("waits", 2, old), ("ping", 0, old), ("young", 0, NOW)):
        await store.accept(delivery(name, events=events, at=at))
    seqs = [e.seq for e in await store.next_events(9)]
    await store.settle_events({seqs[0]: "done", seqs[1]: "done"}, old)
    readings = [Measurement(name="p", at=at, quality=Quality.OK, healthy=True) for at in (old, NOW)]
    await store.save_measurements("d", readings)
    horizon = NOW - timedelta(days=30)
    assert await store.prune(horizon, horizon) == {"deliveries": 2, "measurements": 1}
    assert {d["id"] for d in await store.recent_deliveries(9)} == {"id-waits", "id-young"}
    assert [e.event.deployment for e in await store.next_events(9)] == ["waits"]
    assert await store.measurements("d", 9) == readings[1:]
    assert rows(tmp_path / "store", "SELECT count(*) FROM event WHERE delivery = 'id-settled'") == [(0,)]


async def test_since_when_a_run_is_in_its_state_and_the_states_that_it_came_into(store: SqliteStore) -> None:
    """Of one that hasn't moved yet, since it was recorded; one that is finished isn't among the unfinished."""
    await store.add_run(run("moved"))
    await store.add_run(run("new", "db-2"))
    await store.add_run(run("done", "db-3"))
    later = NOW + timedelta(minutes=5)
    await store.move_run("moved", RunState.PLANNED, RunState.AWAITING_APPROVAL, NOW + timedelta(minutes=1))
    await store.move_run("moved", RunState.AWAITING_APPROVAL, RunState.RUNNING, later)
    await store.move_run("done", RunState.PLANNED, RunState.RUNNING, NOW)
    await store.move_run("done", RunState.RUNNING, RunState.SUCCEEDED, NOW)

    assert sorted(await store.unfinished_since()) == [("shop", "planned", NOW), ("shop", "running", later)]
    passages = await store.passages("moved")
    assert [p.after for p in passages] == [RunState.AWAITING_APPROVAL, RunState.RUNNING]
    assert passages[-1].at == later


async def test_events_that_wait_are_counted_with_the_age_of_the_oldest(store: SqliteStore) -> None:
    assert await store.pending_events() == (0, None)
    await store.accept(delivery("one", at=NOW, events=2))
    await store.accept(delivery("two", body=b"[]", at=NOW + timedelta(seconds=9)))
    assert await store.pending_events() == (3, NOW)
    await store.settle_events({event.seq: "done" for event in (await store.next_events(9))[:2]}, NOW)
    assert await store.pending_events() == (1, NOW + timedelta(seconds=9))


async def test_each_commit_is_told_with_its_time_and_what_could_not_be_committed(tmp_path: Path) -> None:
    """A store that can't be written says how many records that cost."""
    commits: list[tuple[float, int]] = []
    store = await SqliteStore.open_writing(
        tmp_path / "store", on_commit=lambda seconds, failed: commits.append((seconds, failed))
    )
    try:
        await store.accept(delivery("one"))
        with sqlite3.connect(tmp_path / "store" / DATABASE) as other:
            other.execute("ALTER TABLE total RENAME TO gone")
        with pytest.raises(StoreUnavailableError):
            await store.add_totals({"a": 1.0})
    finally:
        await store.close()

    assert [failed for _, failed in commits] == [0, 1]
    assert all(seconds > 0 for seconds, _ in commits)


async def test_what_was_investigated_is_found_by_its_decision_and_by_its_deployment(
    store: SqliteStore,
) -> None:
    def found(decision: str, at: datetime) -> Investigation:
        change = Change(release_from="1", release_to="2", heads_before=("a",), heads_now=("b",))
        series = MetricSeries(name="p95", category="performance", query="q", points=(Point(at, 1.5),))
        return Investigation(
            decision=decision, deployment="deploy-1", target="shop", at=at, deployed_at=NOW, series=(series,),
            activity=Activity(missing=("all of it",)), change=change,
        )  # fmt: skip

    newer, older = found("decision-2", NOW + timedelta(minutes=5)), found("decision-1", NOW)
    for one in (newer, older):
        await store.save_investigation(one)
    assert await store.investigations("deploy-1") == [older, newer]
    assert await store.investigation("decision-2") == newer
    assert await store.investigation("decision-3") is None
    assert await store.investigations("deploy-2") == []
