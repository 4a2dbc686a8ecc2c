"""Backups with the real pg_dump and pg_restore: taken, proved, damaged, cut short, swept, pruned."""

import asyncio
import contextlib
import json
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

import rollbackd
from rollbackd.adapters.backup import pg_tools
from rollbackd.adapters.backup.backups import TargetBackups
from rollbackd.adapters.backup.files import PARTIAL
from rollbackd.adapters.postgres.connection import connect
from rollbackd.core.checks import Outcome
from rollbackd.demo.postgres import EmbeddedPostgres, find_install
from rollbackd.errors import PermanentError, RollbackdError, TransientError
from rollbackd.ports import Progress
from rollbackd.settings import Backup, Database, Duration, Scratch, SecretReference

pytestmark = [pytest.mark.xdist_group("adapters-backup"), pytest.mark.timeout(90)]

STORE = "5707e1d"
SHOP = (
    "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('r3')",
    "CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TABLE customer (id serial PRIMARY KEY, name text, mood mood NOT NULL DEFAULT 'ok')",
    "CREATE TABLE invoice (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customer)",
    "INSERT INTO customer (name) SELECT 'n' || i FROM generate_series(1, 300) i", "INSERT INTO invoice (customer) SELECT i FROM generate_series(1, 200) i",
)  # fmt: skip


async def no_progress(progress: Progress) -> None:
    """Nobody looks."""


@pytest.fixture
def make(stage: Any, clock: Any) -> Callable[..., TargetBackups]:
    def build(database: str, role: Any = None, /, **sections: Any) -> TargetBackups:
        return TargetBackups(stage.target(database, role, **sections), STORE, clock)

    return build


async def take(backups: TargetBackups, *, timeout_s: float = 30) -> Any:
    return await backups.take("run-1", "rollback", timeout_s=timeout_s, on_progress=no_progress)


async def prove(backups: TargetBackups, backup: Any, level: int = 4, on_restored: Any = None) -> Any:
    return await backups.prove(
        backup, level=level, timeout_s=30, on_progress=no_progress, on_restored=on_restored
    )


def root(stage: Any) -> Path:
    return Path(stage.folder) / "backups" / "shop"


def scratches(stage: Any) -> list[str]:
    return [
        row[0]
        for row in stage.run(
            "postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd_scratch%'"
        )
    ]


def binaries(stage: Any, folder: Path, **wrapped: str) -> str:
    """A folder of PostgreSQL's programs in which some are replaced by shell scripts; `$REAL` is the real one."""
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        real = stage.server.bin_directory / name
        script = folder / name
        script.write_text(f"#!/bin/sh\nREAL={real}\n" + wrapped.get(name, 'exec "$REAL" "$@"') + "\n")
        script.chmod(0o755)
    return str(folder)


def database_section(stage: Any, database: str, folder: str, role: Any = None) -> Database:
    role = role or stage.superuser
    return Database(url=stage.url(database, role), password=role.secret, binaries=folder)


# -- taking and proving -------------------------------------------------------------------------------------------------


async def test_a_backup_taken_while_rows_come_in_is_proved_with_the_counts_of_its_own_snapshot(
    stage: Any, make: Any
) -> None:
    database = stage.database(*SHOP)
    backups = make(database)
    stop = asyncio.Event()

    async def write() -> None:
        connection = await psycopg.AsyncConnection.connect(stage.server.url(database), autocommit=True)
        async with connection:
            while not stop.is_set():
                await connection.execute("INSERT INTO customer (name) SELECT 'w' FROM generate_series(1, 20)")
                await asyncio.sleep(0.002)

    writer = asyncio.create_task(write())
    await asyncio.sleep(0.1)
    seen: list[Progress] = []

    async def on_progress(progress: Progress) -> None:
        seen.append(progress)

    backup = await backups.take("run-1", "rollback", timeout_s=30, on_progress=on_progress)
    stop.set()
    await writer
    counts = {c.table: c.rows for c in backup.counts}
    ((now,),) = stage.run(database, "SELECT count(*) FROM customer")
    assert 300 < counts["public.customer"] < now
    assert (backup.level, backup.heads, counts["public.invoice"]) == (1, ("r3",), 200)
    assert seen
    assert seen[0].unit == "bytes"
    proved = await prove(backups, backup)
    assert proved.level == 4
    assert scratches(stage) == []
    assert sorted(p.name for p in Path(proved.location).iterdir()) == [
        "database.dump",
        "manifest.json",
        "proof.json",
    ]
    assert await backups.find("run-1", "rollback") == proved
    assert await backups.find("run-1", "other") is None
    assert Path(proved.location).stat().st_mode & 0o077 == 0


async def test_a_backup_holds_every_table_whatever_its_name_with_enums_keys_and_rows_and_is_proved(
    stage: Any, make: Any
) -> None:
    odd = 'we"ird Ta.ble*'
    quoted = odd.replace('"', '""')
    database = stage.database(
        *SHOP, f'CREATE TABLE "{quoted}" (m mood[])', f'INSERT INTO "{quoted}" VALUES (\'{{ok}}\')',
        "CREATE TABLE part (i int, m mood) PARTITION BY LIST (i)", "CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)", "INSERT INTO part VALUES (1, 'sad')",
        "CREATE SCHEMA billing", "CREATE TABLE billing.rate (r int)",
    )  # fmt: skip
    backups = make(database)
    backup = await take(backups)
    counts = {c.table: c.rows for c in backup.counts}
    assert counts.items() >= {
        "public.customer": 300, "public.invoice": 200, f"public.{odd}": 1, "public.part_1": 1, "billing.rate": 0,
    }.items()  # fmt: skip
    assert (await prove(backups, backup)).level == 4
    create, *commands = backups.restore_commands(backup)
    beside = create.rpartition(" ")[2]
    assert beside.startswith(f"{database}_")
    stage.run("postgres", f"CREATE DATABASE {beside}")
    for command in commands:
        program, *arguments = command.replace(" --dbname", " --no-password --dbname").split(" ")
        environment = {"PGPASSWORD": stage.server.password, "PATH": str(stage.server.bin_directory)}
        process = await asyncio.create_subprocess_exec(
            str(stage.server.bin_directory / program), *arguments, env=environment
        )
        assert await process.wait() == 0
    assert stage.run(beside, "SELECT count(*), min(mood) FROM customer") == [(300, "ok")]
    assert stage.run(beside, f'SELECT m::text FROM "{quoted}"') == [("{ok}",)]
    assert stage.run(beside, "SELECT i, m::text FROM part") == [(1, "sad")]
    stage.run("postgres", f"DROP DATABASE {beside}")


# -- lending the restored copy out --------------------------------------------------------------------------------------


async def test_the_restored_copy_is_lent_out_once_it_was_counted_and_is_gone_afterwards(
    stage: Any, make: Any
) -> None:
    backups = make(stage.database(*SHOP))
    backup = await take(backups)
    lent: list[Any] = []

    async def look(copy: Any) -> None:
        lent.append(copy)
        assert scratches(stage) == [copy.database]
        assert copy.database in copy.text()
        # Whatever is done to it says nothing of the backup any more.
        stage.run(copy.database, "DELETE FROM invoice", "DROP TABLE customer CASCADE")

    proved = await prove(backups, backup, on_restored=look)
    assert (proved.level, len(lent)) == (4, 1)
    assert scratches(stage) == []
    assert await backups.find("run-1", "rollback") == proved
    # A copy is lent of what is proved already, too.
    assert (await prove(backups, proved, on_restored=look)).level == 4
    assert len(lent) == 2


async def test_a_backup_that_is_short_is_lent_to_nobody(stage: Any, make: Any) -> None:
    backups = make(stage.database(*SHOP))
    backup = await take(backups)
    short = msgspec.structs.replace(
        backup, counts=tuple(msgspec.structs.replace(c, rows=c.rows + 1) for c in backup.counts)
    )

    async def never(copy: Any) -> None:
        raise AssertionError("it was lent out")

    with pytest.raises(PermanentError, match="is short"):
        await prove(backups, short, on_restored=never)
    # Nor is one that is only read.
    assert (await prove(backups, backup, 2, on_restored=never)).level == 2
    assert scratches(stage) == []


async def test_a_borrower_that_fails_leaves_no_scratch_behind_and_no_proof(stage: Any, make: Any) -> None:
    backups = make(stage.database(*SHOP))
    backup = await take(backups)

    async def fail(copy: Any) -> None:
        raise PermanentError("no space left")

    with pytest.raises(PermanentError, match="no space left"):
        await prove(backups, backup, on_restored=fail)
    assert scratches(stage) == []
    found = await backups.find("run-1", "rollback")
    assert found is not None
    assert found.level < 4
    assert (await prove(backups, found)).level == 4


async def test_counts_cut_short_by_their_budget_leave_the_dump_whole_and_the_proof_below_l4(
    stage: Any, make: Any
) -> None:
    big = "CREATE TABLE big AS SELECT generate_series(1, 20000) i"
    database = stage.database(*SHOP, big, "ANALYZE")
    folder = str(stage.folder / "backups")
    backups = make(database, backup=Backup(directory=folder, count_budget=Duration(0.4)))
    with psycopg.connect(stage.server.url(database)) as other:
        # The count of `big` waits for this lock until the budget is spent; the dump then finds it gone.
        other.execute("LOCK TABLE big")
        taking = asyncio.create_task(take(backups))
        await asyncio.sleep(1)
    backup = await taking
    exact = {c.table: c.exact for c in backup.counts}
    assert (exact["public.invoice"], exact["public.big"]) == (True, False)
    with pytest.raises(PermanentError, match=r"proved to L3 and no further: 1 tables, such as public\.big"):
        await prove(backups, backup)
    found = await backups.find("run-1", "rollback")
    assert found is not None
    assert found.level == 3


# -- failing dumps ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_file_larger_than(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_dump_that_the_disk_does_not_take_leaves_no_backup(stage: Any, make: Any) -> None:
    database = stage.database("CREATE TABLE t AS SELECT md5(i::text) m FROM generate_series(1, 60000) i")
    backups = make(database)
    with no_file_larger_than(300_000), pytest.raises(PermanentError, match="pg_dump") as failed:
        await take(backups)
    assert "\n" not in str(failed.value)
    assert list(root(stage).iterdir()) == []
    assert (await take(backups)).size_bytes > 300_000


async def test_a_dump_that_fails_after_writing_everything_leaves_no_backup(
    stage: Any, clock: Any, tmp_path: Path
) -> None:
    database = stage.database(*SHOP)
    failing = '"$REAL" "$@" || exit 9\ncase "$1" in --version) exit 0;; esac\necho "pg_dump: error: the very last" >&2; exit 1'
    folder = binaries(stage, tmp_path / "bin", pg_dump=failing)
    backups = with_binaries(stage, database, folder, clock)
    with pytest.raises(PermanentError, match="pg_dump ended with exit code 1: pg_dump: error: the very last"):
        await take(backups)
    assert list(root(stage).iterdir()) == []
    assert await backups.find("run-1", "rollback") is None


def with_binaries(stage: Any, database: str, folder: str, clock: Any, role: Any = None) -> TargetBackups:
    target = msgspec.structs.replace(
        stage.target(database, role), database=database_section(stage, database, folder, role)
    )
    return TargetBackups(target, STORE, clock)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
async def test_a_backup_that_was_damaged_is_not_whole_and_not_proved(
    damage: str, stage: Any, make: Any
) -> None:
    backups = make(stage.database(*SHOP))
    backup = await take(backups)
    assert await backups.is_whole(backup)
    dump = Path(backup.location) / "database.dump"
    data = bytearray(dump.read_bytes())
    if damage == "truncated":
        dump.write_bytes(data[:-100])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        dump.write_bytes(data)
    elif damage == "missing":
        dump.unlink()
    else:
        (dump.parent / "manifest.json").write_text("{")
    assert not await backups.is_whole(backup)
    with pytest.raises(PermanentError, match="isn't whole any more"):
        await prove(backups, backup)
    with pytest.raises(PermanentError, match="isn't whole any more"):
        await prove(backups, msgspec.structs.replace(backup, level=4))


async def test_a_proof_that_finds_other_rows_or_heads_than_the_snapshot_held_refuses(
    stage: Any, make: Any
) -> None:
    backups = make(stage.database(*SHOP))
    backup = await take(backups)
    more = tuple(
        msgspec.structs.replace(c, rows=c.rows + 1) if c.table == "public.invoice" else c
        for c in backup.counts
    )
    with pytest.raises(
        PermanentError,
        match=r"short: public\.invoice held 201 rows in the snapshot, the restored copy has 200",
    ):
        await prove(backups, msgspec.structs.replace(backup, counts=more))
    with pytest.raises(PermanentError, match="taken at r4, and the restored copy stands at r3"):
        await prove(backups, msgspec.structs.replace(backup, heads=("r4",)))
    assert scratches(stage) == []
    assert not (Path(backup.location) / "proof.json").exists()


async def test_a_restore_that_fails_is_no_proof(stage: Any, make: Any, tmp_path: Path, clock: Any) -> None:
    database = stage.database(*SHOP)
    backup = await take(make(database))
    lying = 'case "$*" in *--dbname*) echo "pg_restore: error: oh" >&2; exit 1;; esac\nexec "$REAL" "$@"'
    backups = with_binaries(stage, database, binaries(stage, tmp_path / "bin", pg_restore=lying), clock)
    with pytest.raises(PermanentError, match="pg_restore ended with exit code 1"):
        await prove(backups, backup)
    assert scratches(stage) == []
    assert (await prove(backups, backup, level=2)).level == 2


@pytest.mark.slow
async def test_a_pg_dump_older_than_the_server_is_refused_in_one_sentence(stage: Any, clock: Any) -> None:
    with EmbeddedPostgres.start(major=18) as newer:
        secret = stage.folder / "newer"
        secret.write_text(newer.password)
        secret.chmod(0o600)
        section = Database(
            url=f"postgresql://postgres@{newer.host}:{newer.port}/postgres",
            password=SecretReference(f"file:{secret}"),
            binaries=str(find_install(16) / "bin"),
        )
        backups = TargetBackups(
            msgspec.structs.replace(stage.target("postgres"), database=section), STORE, clock
        )
        with pytest.raises(
            PermanentError, match="pg_dump is of version 16, older than the server's 18"
        ) as refused:
            await take(backups)
        found = {f.check: f for f in await backups.readiness()}
        new = msgspec.structs.replace(section, binaries=str(find_install(18) / "bin"))
        assert (
            await prove(
                b := TargetBackups(
                    msgspec.structs.replace(stage.target("postgres"), database=new), STORE, clock
                ),
                await take(b),
            )
        ).level == 4
    assert "\n" not in str(refused.value)
    assert found["backup.tools"].outcome is Outcome.FAILED


# -- roles --------------------------------------------------------------------------------------------------------------


async def test_a_role_that_may_not_create_databases_is_told_so(stage: Any, make: Any) -> None:
    role = stage.role()
    database = stage.database(*SHOP, f"GRANT pg_read_all_data TO {role.name}")
    backups = make(database, role)
    backup = await take(backups)
    with pytest.raises(PermanentError, match=f"ALTER ROLE {role.name} CREATEDB"):
        await prove(backups, backup)
    assert (await prove(backups, backup, level=2)).level == 2
    found = {f.check: f for f in await backups.readiness()}
    assert (found["backup.scratch"].outcome, found["backup.role"].outcome) == (Outcome.FAILED, Outcome.PASSED)


async def test_a_role_from_which_rows_are_hidden_takes_no_short_backup(stage: Any, make: Any) -> None:
    role, blind = stage.role("CREATEDB"), stage.role()
    database = stage.database(
        *SHOP, f"GRANT pg_read_all_data TO {role.name}", "ALTER TABLE invoice ENABLE ROW LEVEL SECURITY"
    )
    with pytest.raises(PermanentError, match="BYPASSRLS"):
        await take(make(database, role))
    with pytest.raises(PermanentError, match="pg_read_all_data"):
        await take(make(database, blind))
    found = {f.check: f for f in await make(database, role).readiness()}
    assert found["backup.role"].outcome is Outcome.FAILED
    stage.run("postgres", f"ALTER ROLE {role.name} BYPASSRLS")
    backups = make(database, role)
    assert (await prove(backups, await take(backups))).level == 4


async def test_no_password_is_in_argv_environment_manifest_or_what_is_left(
    stage: Any, tmp_path: Path, clock: Any
) -> None:
    role = stage.role("SUPERUSER")
    database = stage.database(*SHOP)
    look = 'tr "\\0" "\\n" < /proc/$$/environ >> {0}; echo "$@" >> {0}; ls -l "$PGPASSFILE" >> {0} 2>/dev/null; exec "$REAL" "$@"'.format(
        tmp_path / "seen"
    )
    backups = with_binaries(
        stage, database, binaries(stage, tmp_path / "bin", pg_dump=look, pg_restore=look), clock, role
    )
    backup = await prove(backups, await take(backups))
    seen = (tmp_path / "seen").read_text()
    assert "--snapshot" in seen
    assert "PGPASSFILE=" in seen
    assert "-rw------- " in seen
    left = [path.read_bytes() for path in Path(stage.folder, "backups").rglob("*") if path.is_file()]
    for text in (
        seen.encode(),
        *left,
        repr(backup).encode(),
        *(c.encode() for c in backups.restore_commands(backup)),
    ):
        assert role.password.encode() not in text


# -- making way ---------------------------------------------------------------------------------------------------------


async def test_a_dump_makes_way_for_an_alter_that_waits_for_it_even_unseen_by_an_ordinary_role(
    stage: Any, tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollbackd.adapters.backup.backups.YIELD_AFTER_S", 0.5)
    role = stage.role()
    database = stage.database(
        *SHOP,
        f"GRANT pg_read_all_data TO {role.name}",
        "CREATE TABLE wide AS SELECT md5(i::text) r FROM generate_series(1, 60000) i",
    )
    # A dump onto a disk that takes no more: pg_dump stands still in the middle, its locks taken.
    slow = (
        'for a in "$@"; do case "$a" in --file=*) f="${a#--file=}"; mkfifo "$f.fifo"; set -- "$@" "--file=$f.fifo";'
        ' (head -c 9000 > "$f"; sleep 20) < "$f.fifo" & ;; esac; done; exec "$REAL" "$@"'
    )
    backups = with_binaries(stage, database, binaries(stage, tmp_path / "bin", pg_dump=slow), clock, role)
    taking = asyncio.create_task(take(backups))
    while not stage.run(database, "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'COPY public.wide %'"):
        await asyncio.sleep(0.05)
        assert not taking.done()
    connection = await psycopg.AsyncConnection.connect(stage.server.url(database), autocommit=True)
    async with connection:
        began = time.monotonic()
        await connection.execute("ALTER TABLE wide ADD COLUMN x int")
        waited = time.monotonic() - began
    with pytest.raises(TransientError, match="the dump made way"):
        await taking
    assert waited < 5
    assert list(root(stage).iterdir()) == []


async def test_counting_before_a_dump_makes_way_too_and_keeps_no_lock_on_what_is_counted(
    stage: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollbackd.adapters.backup.backups.YIELD_AFTER_S", 0.3)
    database = stage.database(
        "CREATE TABLE a (i int)",
        "CREATE TABLE big AS SELECT generate_series(1, 2000) i",
        "CREATE FUNCTION slow() RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); RETURN true; END'",
    )
    # A table that is slow to count: its policy sleeps for each row.
    role = stage.role()
    stage.run(
        database,
        "ALTER TABLE big ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON big USING (slow())",
        f"GRANT pg_read_all_data TO {role.name}",
    )
    backups = make(database, role)

    async def connect_under_policies(place: Any, timeout_s: float, settings: Any = None) -> Any:
        return await connect(place, timeout_s, {**(settings or {}), "row_security": "on"})

    monkeypatch.setattr("rollbackd.adapters.backup.backups.connect", connect_under_policies)
    taking = asyncio.create_task(take(backups))
    held = "SELECT relation::regclass::text FROM pg_locks WHERE relation IN ('a'::regclass, 'big'::regclass) AND granted"
    while stage.run(database, held) != [("big",)]:
        await asyncio.sleep(0.02)
        assert not taking.done()
    connection = await psycopg.AsyncConnection.connect(stage.server.url(database), autocommit=True)
    async with connection:
        await connection.execute("SET lock_timeout = '3s'")
        await connection.execute("ALTER TABLE big ADD COLUMN x int")
    with pytest.raises(TransientError, match="the dump made way"):
        await taking


async def test_a_dump_that_waits_for_a_locked_table_gives_up_and_may_be_tried_again(
    stage: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollbackd.adapters.backup.backups.LOCK_WAIT_MS", 300)
    database = stage.database(*SHOP)
    backups = make(
        database, backup=Backup(directory=str(stage.folder / "backups"), count_budget=Duration(0.5))
    )
    with psycopg.connect(stage.server.url(database)) as other:
        other.execute("LOCK TABLE customer")
        with pytest.raises(TransientError):
            await take(backups)
    assert (await take(backups)).level == 1


async def test_a_dump_that_takes_too_long_is_ended_with_all_it_started(
    stage: Any, tmp_path: Path, clock: Any
) -> None:
    database = stage.database(*SHOP)
    hanging = 'case "$1" in --version) exec "$REAL" "$@";; esac\nsleep 300 & echo $! > {}; wait'.format(
        tmp_path / "pid"
    )
    backups = with_binaries(stage, database, binaries(stage, tmp_path / "bin", pg_dump=hanging), clock)
    with pytest.raises(TransientError, match=r"pg_dump took longer than 0\.7 s"):
        await take(backups, timeout_s=0.7)
    assert list(root(stage).iterdir()) == []
    pid = int((tmp_path / "pid").read_text())
    await asyncio.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


# -- killing and sweeping -----------------------------------------------------------------------------------------------

PARENT = """
import asyncio, sys, msgspec
from datetime import UTC, datetime
from rollbackd.adapters.backup.backups import TargetBackups
from rollbackd.settings import Target, SecretReference, Backup, Database, Migrations

class Clock:
    def now(self): return datetime.now(UTC)
    def new_id(self, prefix): return prefix + "-killed"

async def main(url, secret, binaries, folder):
    target = Target(name="shop", service="shop", environment="staging",
        database=Database(url=url, password=SecretReference("file:" + secret), binaries=binaries),
        migrations=Migrations(directory="/", python=("x",)), backup=Backup(directory=folder))
    async def on_progress(progress): pass
    await TargetBackups(target, "s", Clock()).take("run-1", "rollback", timeout_s=60, on_progress=on_progress)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_dump_whose_parent_was_killed_never_becomes_a_backup_and_is_swept_when_its_orphan_ended(
    stage: Any, make: Any, tmp_path: Path
) -> None:
    database = stage.database(*SHOP)
    lasting = f'case "$1" in --version) exec "$REAL" "$@";; esac\n"$REAL" "$@"; touch {tmp_path}/dumped; while [ ! -e {tmp_path}/end ]; do sleep 0.05; done'
    folder = binaries(stage, tmp_path / "bin", pg_dump=lasting)
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stage.url(database), stage.superuser.secret.removeprefix("file:"), folder, str(stage.folder / "backups"),
        env={"PYTHONPATH": str(Path(rollbackd.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    while not (tmp_path / "dumped").exists():
        await asyncio.sleep(0.05)
        assert parent.returncode is None
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    backups = make(database)
    partial = root(stage) / f"{PARTIAL}backup-killed"
    try:
        assert pg_tools.is_in_use(partial)
        assert await backups.sweep() == []
        assert (partial / "database.dump").stat().st_size > 0
    finally:
        (tmp_path / "end").touch()
    while pg_tools.is_in_use(partial):  # noqa: ASYNC110 - told by another process
        await asyncio.sleep(0.05)
    assert await backups.find("run-1", "rollback") is None
    assert await backups.sweep() == [partial.name]
    assert list(root(stage).iterdir()) == []


async def test_a_sweep_leaves_a_dump_alone_that_is_still_being_counted(stage: Any, make: Any) -> None:
    database = stage.database(*SHOP)
    backups = make(database, backup=Backup(directory=str(stage.folder / "backups")))
    with psycopg.connect(stage.server.url(database)) as other:
        other.execute("LOCK TABLE customer")
        taking = asyncio.create_task(take(backups))
        while not root(stage).is_dir() or not list(root(stage).glob("*/.lock")):  # noqa: ASYNC110 - told by files
            await asyncio.sleep(0.02)
        assert await backups.sweep() == []
    assert (await taking).level == 1


async def test_sweeping_drops_scratch_databases_with_our_own_mark_alone(stage: Any, make: Any) -> None:
    database = stage.database(*SHOP)
    names = [
        "rollbackd_scratch_ours",
        "rollbackd_scratch_theirs",
        "rollbackd_scratch_unmarked",
        "rollbackdXscratch_marked",
    ]
    for name, comment in zip(
        names,
        [
            f"rollbackd scratch of {STORE}: may be dropped",
            "rollbackd scratch of other: may be dropped",
            "",
            f"rollbackd scratch of {STORE}: may be dropped",
        ],
        strict=True,
    ):
        stage.run("postgres", f'CREATE DATABASE "{name}"', f"COMMENT ON DATABASE \"{name}\" IS '{comment}'")
    try:
        assert await make(database).sweep() == ["rollbackd_scratch_ours"]
        left = [
            row[0]
            for row in stage.run(
                "postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd%' ORDER BY 1"
            )
        ]
        assert left == sorted(names[1:])
    finally:
        for name in names:
            stage.run("postgres", f'DROP DATABASE IF EXISTS "{name}"')


async def test_pruning_keeps_what_is_young_and_the_newest_and_removes_nothing_outside_its_folder(
    stage: Any, make: Any, clock: Any, tmp_path: Path
) -> None:
    database = stage.database("CREATE TABLE t (i int)")
    backups = make(
        database,
        backup=Backup(
            directory=str(stage.folder / "backups"),
            keep=Duration(100),
            keep_at_least=1,
        ),
    )
    taken = []
    for _ in range(3):
        taken.append(await take(backups))
        clock.pass_by(1)
    old, newer, newest = taken
    outside = tmp_path / "outside"
    shutil.copytree(old.location, outside)
    link = root(stage) / "backup-link"
    link.symlink_to(outside)
    records = [
        msgspec.structs.replace(old, id=f"x{i}", location=str(place))
        for i, place in enumerate(
            [outside, link, root(stage) / "..", root(stage) / ".." / ".." / ".." / "outside"]
        )
    ]
    assert await backups.prune([old, newer, newest, *records]) == []
    clock.pass_by(101)
    removed = await backups.prune([old, newer, newest, *records])
    # The newest stays, however old it is.
    assert {b.id for b in removed} == {old.id, newer.id}
    assert all(b.removed_at == clock.now() for b in removed)
    assert await backups.prune([newest, *records]) == []
    assert [Path(b.location).exists() for b in (old, newer, newest)] == [False, False, True]
    assert (outside / "manifest.json").exists()
    assert link.is_symlink()
    # What somebody else removed is noted as removed.
    shutil.rmtree(newest.location)
    assert [
        b.id
        for b in await make(
            database,
            backup=Backup(directory=str(stage.folder / "backups"), keep=Duration(100), keep_at_least=0),
        ).prune([newest])
    ] == [newest.id]


# -- references ---------------------------------------------------------------------------------------------------------


def by_command(stage: Any, database: str, clock: Any, script: str) -> TargetBackups:
    return TargetBackups(stage.target(database, backup=Backup(command=("sh", "-c", script))), STORE, clock)


async def test_a_backup_by_command_is_its_reference_at_its_own_level(stage: Any, clock: Any) -> None:
    database = stage.database(*SHOP)
    script = 'echo "{\\"reference\\": \\"snap-$ROLLBACKD_TARGET-$ROLLBACKD_RUN\\", \\"level\\": 3, \\"size_bytes\\": 7}"'
    backups = by_command(stage, database, clock, script)
    backup = await take(backups)
    assert (backup.location, backup.level, backup.size_bytes, backup.heads) == (
        "reference:snap-shop-run-1",
        3,
        7,
        ("r3",),
    )
    assert await prove(backups, backup, level=3) == backup
    with pytest.raises(PermanentError, match="of L3 by its own word; L4 is asked for"):
        await prove(backups, backup, level=4)
    assert await backups.is_whole(backup)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo done", "must print"), ("echo '[1]'", "must print"), ("echo '{\"reference\": \"x\"}'", "must print"),
        ('echo \'{"reference": "x", "level": 9}\'', "must print"), ("echo no space >&2; exit 1", "exit code 1: no space"),
    ],
)  # fmt: skip
async def test_a_command_that_fails_or_does_not_say_what_it_took_is_no_backup(
    script: str, expected: str, stage: Any, clock: Any
) -> None:
    with pytest.raises(RollbackdError, match=expected):
        await take(by_command(stage, stage.database(), clock, script))


def test_the_reachable_level_follows_from_the_configuration(stage: Any, clock: Any) -> None:
    def level(**sections: Any) -> int:
        return TargetBackups(stage.target("x", **sections), STORE, clock).reachable_level()

    assert level() == 4
    assert level(scratch=Scratch()) == 2
    assert level(backup=Backup()) == 0
    assert level(backup=Backup(command=("x",))) == 5


async def test_without_a_scratch_server_a_backup_is_proved_by_reading_alone(stage: Any, make: Any) -> None:
    backups = make(stage.database(*SHOP), scratch=Scratch())
    backup = await take(backups)
    assert (await prove(backups, backup, level=2)).level == 2
    with pytest.raises(PermanentError, match="no scratch server is configured"):
        await prove(backups, backup)
    assert json.loads((Path(backup.location) / "proof.json").read_text())["level"] == 2
