"""Rehearsals on a real PostgreSQL: the real downgrade on a copy, and nothing on the target, whatever env.py tries."""

import asyncio
import contextlib
import http.server
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.adapters.conftest import ENV_PY, PYTHON, Project, Stage

from rollbackd.adapters.backup.scratch import IN_USE, mark, scratch_database, sweep_scratch
from rollbackd.adapters.postgres.archives import PostgresArchives
from rollbackd.adapters.postgres.connection import Place
from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.adapters.rehearsal.rehearsals import TargetRehearsals
from rollbackd.adapters.worker.alembic import PLACEHOLDER, AlembicWorker, ScratchPlace
from rollbackd.core.rehearsal import Depth, Rehearsal, Way
from rollbackd.core.schema import TableName
from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.errors import PermanentError, RefusedError
from rollbackd.settings import Database, Rehearsing, Scratch, SecretReference
from rollbackd.workflow.rehearsing import Rehearsed
from rollbackd.workflow.rehearsing import rehearse as rehearse_as_deep_as_needed

pytestmark = [pytest.mark.xdist_group("adapters-rehearsal"), pytest.mark.timeout(90)]

# The guard's copy lives as long as its module: it belongs to another store, so that nobody counts it as his own.
STORE, GUARD_STORE = "store1", "guard1"
CUSTOMER, INVOICE = TableName("public", "customer"), TableName("public", "invoice")


class Stagehand:
    """Rehearses ways of one project, on one set of rehearsals as the daemon has it."""

    def __init__(self, stage: Stage, project: Project, folder: Path, **sections: Any) -> None:
        sections = {"migrations": project.migrations(), **sections}
        self.stage = stage
        self.project = project
        self.target = stage.target(project.database, **sections)
        self.rehearsals = TargetRehearsals(self.target, folder / "kept", STORE)
        self.reader = PostgresReader(stage.target(project.database))

    async def rehearse(
        self,
        revisions: str = "r3",
        to: str = "r2",
        depth: Depth = Depth.SCHEMA,
        wanted: Any = None,
        fingerprint: str = "",
    ) -> Rehearsal:
        way = Way(
            revisions=tuple(revisions.split()),
            from_heads=await self.reader.heads(),
            to_heads=tuple(to.split()),
        )
        known = fingerprint or (await self.reader.schema()).fingerprint()
        return await self.rehearsals.rehearse(way, depth=depth, fingerprint=known, wanted=wanted)

    def scratch_databases(self) -> list[str]:
        query = "SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd_scratch%' AND datname NOT LIKE '%_guard1_%' ORDER BY oid"
        return [row[0] for row in self.stage.run("postgres", query)]

    async def close(self) -> None:
        await self.rehearsals.close()
        await self.reader.close()


Hire = Callable[..., Stagehand]


@pytest.fixture
async def hire(stage: Stage, tmp_path: Path) -> AsyncIterator[Hire]:
    """Makes a stagehand for a project, whose copies are gone after the test."""
    made: list[Stagehand] = []

    def make(project: Project, **sections: Any) -> Stagehand:
        made.append(Stagehand(stage, project, tmp_path, **sections))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def downgrading(project: Project, downgrade: str, upgrade: str = "pass", head: str = "") -> None:
    """A fourth revision, r4, that is upgraded to."""
    project.revision("r4", upgrade, downgrade, head=head)
    project.upgrade(project.database)


# -- what a rehearsal is -----------------------------------------------------------------------------------------------


async def test_a_rehearsal_shows_what_each_revision_takes_away_and_changes_nothing_on_the_target(
    project: Project, hire: Hire, stage: Stage
) -> None:
    stage.run(project.database, "INSERT INTO customer VALUES (1, 'Ann', 'ann@example.org')")
    hand = hire(project)
    found = await hand.rehearse("r3 r2", "r1", Depth.FULL)
    assert found.failure is None
    assert found.unknown == ""
    assert found.passed
    assert [r.id for r in found.revisions] == ["r3", "r2"]
    assert [t.table for t in found.revisions[0].gone_tables] == [INVOICE]
    assert [(c.table, c.column, c.today_column) for c in found.revisions[1].gone_columns] == [
        (CUSTOMER, "email", "email")
    ]
    assert found.revisions[1].locks[0].mode == "AccessExclusiveLock"
    assert [i.kind for i in found.archive] == ["table", "column"]
    assert found.archive[1].key == ("id",)
    assert "- table public.invoice" in found.difference.lines()
    assert project.heads() == ["r3"]
    assert project.columns("customer") == ["email", "id", "name"]
    assert hand.scratch_databases() == []


async def test_a_schema_rehearsal_runs_on_a_copy_without_rows_that_is_stamped_like_the_target(
    project: Project, hire: Hire, stage: Stage
) -> None:
    stage.run(project.database, "INSERT INTO customer VALUES (1, 'Ann', NULL)")
    downgrading(project, "op.execute('DELETE FROM customer')")
    found = await hire(project).rehearse("r4 r3", "r2")
    assert found.passed
    assert found.heads == ("r2",)
    assert found.rows == 0
    assert found.keeps_owners
    (written,) = found.revisions[0].written
    assert (written.table, written.deleted, written.may_lose) == (CUSTOMER, 0, True)


MANY = "INSERT INTO customer SELECT n, 'n' || n, 'e' || n FROM generate_series(1, 500) n"


@pytest.mark.parametrize(
    ("spoil", "downgrade", "sqlstate"),
    [
        (
            "UPDATE customer SET email = NULL WHERE id IN (321, 499)",
            "op.alter_column('customer', 'email', nullable=False)",
            "23502",
        ),
        (
            "UPDATE customer SET email = 'twice' WHERE id IN (322, 498)",
            "op.create_unique_constraint('uq_email', 'customer', ['email'])",
            "23505",
        ),
    ],
    ids=["a NULL", "a duplicate"],
)
async def test_a_sample_of_one_row_a_table_holds_the_very_rows_that_break_a_new_rule(
    project: Project, hire: Hire, stage: Stage, spoil: str, downgrade: str, sqlstate: str
) -> None:
    """The schema alone passes; the sample that is taken because of it fails as the whole would."""
    stage.run(project.database, MANY, spoil)
    downgrading(project, downgrade)
    hand = hire(project, rehearsal=Rehearsing(depth="auto", full_up_to=0, sample_rows=1))
    assert (await hand.rehearse("r4", "r3")).passed, "no row, no offence"

    guarded: Any = SimpleNamespace(
        can_rehearse=True, settings=hand.target, rehearsals=hand.rehearsals, database=hand.reader
    )
    way = Way(revisions=("r4",), from_heads=("r4",), to_heads=("r3",))
    fingerprint = (await hand.reader.schema()).fingerprint()
    result: Rehearsed = await rehearse_as_deep_as_needed(guarded, way, fingerprint)
    assert result.rehearsal is not None
    assert result.rehearsal.depth is Depth.SAMPLE
    assert 3 <= result.rehearsal.rows < 50, "the sample is small and holds what is in the way"
    assert result.rehearsal.failure is not None
    assert result.rehearsal.failure.sqlstate == sqlstate
    assert [o.rows for o in result.risks.obstacles] == [2]
    assert project.heads() == ["r4"]


async def test_a_full_rehearsal_meets_every_row(project: Project, hire: Hire, stage: Stage) -> None:
    stage.run(project.database, MANY)
    downgrading(project, "op.execute(\"UPDATE customer SET name = 'x' WHERE id > 100\")")
    found = await hire(project).rehearse("r4", "r3", Depth.FULL)
    assert found.passed
    assert found.rows == -1
    assert [(w.table, w.updated) for w in found.revisions[0].written] == [(CUSTOMER, 400)]
    assert stage.run(project.database, "SELECT count(*) FROM customer WHERE name = 'x'") == [(0,)]


async def test_a_failure_names_its_revision_its_statement_and_the_sqlstate(
    project: Project, hire: Hire
) -> None:
    downgrading(project, "op.execute('SELECT 1')\nop.execute('DROP TABLE nowhere')\nop.execute('SELECT 2')")
    found = await hire(project).rehearse("r4 r3", "r2")
    assert found.failure is not None
    assert (found.failure.revision, found.failure.sqlstate) == ("r4", "42P01")
    assert found.failure.statement == "DROP TABLE nowhere"
    assert '"nowhere" does not exist' in found.failure.reason
    assert found.unknown == ""
    assert not found.passed
    assert found.heads == ("r4",)


async def test_a_stamp_that_is_lost_is_no_success(project: Project, hire: Hire) -> None:
    """The migration commits by itself, and the generic env.py takes the stamp back: Alembic reports success."""
    downgrading(project, "op.get_bind().commit()\nop.drop_table('extra')", "op.create_table('extra')")
    found = await hire(project).rehearse("r4", "r3")
    assert found.failure is None
    assert found.unknown == ""
    assert found.heads == ("r4",)
    assert not found.passed


async def test_timeouts_of_statements_and_locks_are_those_of_the_downgrade(
    project: Project, hire: Hire
) -> None:
    downgrading(project, "op.execute('SELECT pg_sleep(20)')")
    slow = hire(project, migrations=project.migrations(statement_timeout=0.3))
    found = await slow.rehearse("r4", "r3")
    assert found.failure is not None
    assert (found.failure.sqlstate, found.failure.statement) == ("57014", "SELECT pg_sleep(20)")

    project.revision(
        "r4",
        "pass",
        "other = op.get_bind().engine.connect()\n"
        "other.execute(sa.text('LOCK TABLE customer'))\n"
        "op.drop_column('customer', 'email')",
        down="'r3'",
    )
    queueing = hire(project, migrations=project.migrations(lock_timeout=0.3))
    found = await queueing.rehearse("r4", "r3")
    assert found.failure is not None
    assert found.failure.sqlstate == "55P03"


async def test_an_extension_that_scratch_lacks_is_said_in_one_sentence(
    project: Project, hire: Hire, stage: Stage
) -> None:
    rename = "UPDATE pg_extension SET extname = 'postgis' WHERE extname = 'vector'"
    stage.run(project.database, "CREATE EXTENSION vector", rename)
    found = await hire(project).rehearse()
    assert found.unknown.startswith("scratch can't take a copy: ")
    assert found.unknown.endswith('extension "postgis" is not available')
    assert "\n" not in found.unknown
    assert not found.passed


# -- owners ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_roles", [True, False], ids=["where the roles are", "not where they aren't"])
async def test_a_copy_keeps_owners_and_grants_where_scratch_has_the_roles(
    project: Project, hire: Hire, stage: Stage, has_roles: bool
) -> None:
    owner, reader, scratch = stage.role(), stage.role(), stage.role("CREATEDB")
    stage.run(
        project.database,
        f"ALTER TABLE customer OWNER TO {owner.name}",
        f"GRANT SELECT ON invoice TO {reader.name}",
    )
    if has_roles:
        stage.run("postgres", f"GRANT postgres TO {scratch.name}", f"ALTER ROLE {scratch.name} SUPERUSER")
    downgrading(
        project,
        "who = op.get_bind().scalar(sa.text(\"SELECT tableowner FROM pg_tables WHERE tablename = 'customer'\"))\n"
        "op.execute(f\"COMMENT ON TABLE customer IS 'of {who}'\")",
    )
    elsewhere = Scratch(url=stage.url("postgres", scratch), password=scratch.secret)
    found = await hire(project, scratch=elsewhere).rehearse("r4", "r3")
    assert found.unknown == ""
    assert found.passed
    assert found.keeps_owners is has_roles
    lines = "\n".join(map(str, found.expected.objects.values()))
    assert (reader.name in lines) is has_roles
    statements = [s.sql for s in found.revisions[0].statements]
    assert f"COMMENT ON TABLE customer IS 'of {(owner if has_roles else scratch).name}'" in statements
    stage.run("postgres", f"REVOKE postgres FROM {scratch.name}")


# -- the child's end, and what is left ------------------------------------------------------------------------------------


async def test_a_rehearsal_that_hangs_is_ended_in_time_and_the_next_one_is_made(
    project: Project, hire: Hire, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    head = f"import os, pathlib, time\ntold = pathlib.Path({str(told)!r})"
    downgrading(project, "told.write_text(str(os.getpid()))\ntime.sleep(60)", head=head)
    hand = hire(project, rehearsal=Rehearsing(timeout=2.5))
    await hand.rehearsals.prepare((await hand.reader.schema()).fingerprint(), ("r4",))
    warm = hand.scratch_databases()
    found = await hand.rehearse("r4", "r3")
    assert "took longer than 2.5 s for 'rehearse' and was ended" in found.unknown
    assert found.seconds < 6
    assert not Path(f"/proc/{told.read_text()}").exists()
    assert hand.scratch_databases() == warm

    project.revision("r4", "pass", "pass", down="'r3'")
    assert (await hand.rehearse("r4", "r3")).passed


async def test_a_child_that_is_killed_leaves_nothing_known_and_nothing_behind(
    project: Project, hire: Hire
) -> None:
    downgrading(project, "os.kill(os.getpid(), signal.SIGKILL)", head="import os, signal")
    hand = hire(project)
    found = await hand.rehearse("r4", "r3", Depth.FULL)
    assert "was killed by signal 9" in found.unknown
    assert not found.passed
    assert hand.scratch_databases() == []


REHEARSING = """
import asyncio, pickle, sys
from pathlib import Path
from rollbackd.adapters.rehearsal.rehearsals import TargetRehearsals
from rollbackd.core.rehearsal import Depth, Way
target = pickle.loads((Path(sys.argv[1]) / "target").read_bytes())
way = Way(revisions=("r4",), from_heads=("r4",), to_heads=("r3",))
rehearsals = TargetRehearsals(target, Path(sys.argv[1]), sys.argv[2])
asyncio.run(rehearsals.rehearse(way, depth=Depth.FULL, fingerprint="f"))
"""


async def test_what_a_killed_daemon_leaves_in_scratch_is_swept_and_nobody_elses(
    project: Project, hire: Hire, tmp_path: Path
) -> None:
    downgrading(project, "op.execute('SELECT pg_sleep(60)')")
    hand = hire(project)
    (tmp_path / "target").write_bytes(pickle.dumps(hand.target))
    daemon = subprocess.Popen(  # noqa: ASYNC220 - killed, not waited for
        [sys.executable, "-c", REHEARSING, str(tmp_path), STORE],
        stderr=subprocess.DEVNULL,
    )
    sleeping = "SELECT datname FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%'"
    try:
        (orphan,) = await until(lambda: [row[0] for row in hand.stage.run("postgres", sleeping)])
    finally:
        daemon.kill()
        daemon.wait()
    left = hand.scratch_databases()
    assert orphan in left
    theirs = "rollbackd_scratch_another_1"
    hand.stage.run("postgres", f"CREATE DATABASE {theirs}")
    hand.stage.run("postgres", f"COMMENT ON DATABASE {theirs} IS '{mark('another')}'")
    try:
        assert sorted(await sweep_scratch(hand.target, STORE)) == sorted(left)
        assert hand.scratch_databases() == [theirs]
        assert hand.stage.run("postgres", sleeping) == []
    finally:
        hand.stage.run("postgres", f"DROP DATABASE {theirs}")
    assert project.heads() == ["r4"]


async def until(look: Callable[[], Any]) -> Any:
    """Look until there is something, for twenty seconds."""
    for _ in range(400):
        if found := look():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came")


# -- turns, and the copy that is kept --------------------------------------------------------------------------------------


async def test_rehearsals_of_one_target_take_turns_and_share_one_copy_of_the_schema(
    project: Project, hire: Hire
) -> None:
    downgrading(project, "op.execute('SELECT pg_sleep(0.4)')")
    hand = hire(project)
    fingerprint = (await hand.reader.schema()).fingerprint()
    at_once: list[int] = []
    warm: set[str] = set()

    async def watch() -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rollbackd rehearsal'"
        while True:
            at_once.append((await asyncio.to_thread(hand.stage.run, "postgres", query))[0][0])
            warm.add((await asyncio.to_thread(hand.scratch_databases) or [""])[0])
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    found = await asyncio.gather(*(hand.rehearse("r4", "r3", fingerprint=fingerprint) for _ in range(3)))
    watching.cancel()
    assert [one.passed for one in found] == [True, True, True]
    assert max(at_once) == 1
    assert len(warm - {""}) == 1
    assert len(hand.scratch_databases()) == 1
    await hand.rehearsals.close()
    assert hand.scratch_databases() == []


async def test_the_kept_copy_serves_the_same_schema_and_is_made_anew_for_another(
    project: Project, hire: Hire, stage: Stage
) -> None:
    hand = hire(project)
    first = await hand.rehearse()
    (kept,) = hand.scratch_databases()
    again = await hand.rehearse()
    assert hand.scratch_databases() == [kept]
    assert first.expected.fingerprint() == again.expected.fingerprint()

    stage.run(project.database, "CREATE TABLE later (id int)")
    other = await hand.rehearse()
    (anew,) = hand.scratch_databases()
    assert anew != kept
    assert any("later" in name for name in other.expected.objects)
    assert not any("later" in name for name in again.expected.objects)
    assert {anew} == {name for name in IN_USE if GUARD_STORE not in name}


async def test_an_engine_that_the_application_keeps_is_led_to_each_new_copy(
    project: Project, hire: Hire
) -> None:
    """Its module is loaded once in the child, and its pool holds a connection to the copy of the rehearsal before."""
    url = hire(project).target.database.url.replace("postgresql", "postgresql+psycopg")
    (project.folder / "shop_engine.py").write_text(
        f"from sqlalchemy import create_engine\nengine = create_engine({url!r})\nloaded = []\n"
    )
    kept = "from shop_engine import engine, loaded\nloaded.append(1)\nassert len(loaded) < 2 or engine.pool.checkedin()"
    project.env_py(by_engine("engine", kept))
    hand = hire(project)
    for _ in range(3):
        found = await hand.rehearse()
        assert found.unknown == ""
        assert found.passed, found.failure


async def test_a_prepared_rehearsal_has_its_copy_and_its_child_already(
    project: Project, hire: Hire, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = hire(project)
    fingerprint = (await hand.reader.schema()).fingerprint()
    await hand.rehearsals.prepare(fingerprint, ("r3",))
    (kept,) = hand.scratch_databases()

    async def start(*_: Any) -> Any:
        raise AssertionError("a child was started though one was waiting")

    monkeypatch.setattr("rollbackd.adapters.worker.process.WorkerProcess.start", start)
    found = await hand.rehearse(fingerprint=fingerprint)
    assert found.passed, found.unknown
    assert hand.scratch_databases() == [kept]
    assert found.seconds < 1.5


# -- by what env.py comes by its URL ----------------------------------------------------------------------------------------


# These share one database and one copy, and so a worker of their own.
together = pytest.mark.xdist_group("adapters-rehearsal-guard")


class Guard:
    """One project on a database whose every connection the server logs, and rehearsals as another role than the target's."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.runner = asyncio.Runner()
        self.owner = stage.role()
        self.scratch = stage.role("CREATEDB")
        self.project = Project(stage, folder / "project")
        for name, table in (("r1", "customer"), ("r2", "invoice")):
            self.project.revision(
                name,
                f"op.create_table('{table}', sa.Column('id', sa.Integer, primary_key=True))",
                f"op.drop_table('{table}')",
            )
        self.project.upgrade()
        self.database = self.project.database
        stage.run(
            self.database,
            "INSERT INTO customer VALUES (1)",
            "INSERT INTO invoice SELECT generate_series(1, 5)",
            *(
                f"ALTER TABLE {t} OWNER TO {self.owner.name}"
                for t in ("customer", "invoice", "alembic_version")
            ),
        )
        self.modules = 0
        self.dsn = stage.server.url(self.database, user=self.owner.name, password=self.owner.password)
        self.fingerprint = "always the same"
        self.rehearsals: TargetRehearsals | None = None
        self._kept: TargetRehearsals | None = None
        self._listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        self.elsewhere = self._listener.server_address[1]
        self.called: list[Any] = []
        self._listener.verify_request = lambda request, address: bool(self.called.append(address))  # type: ignore[method-assign]
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, driver: str = "psycopg") -> str:
        return self.dsn.replace("postgresql", f"postgresql+{driver}")

    def secret(self, name: str, text: str) -> SecretReference:
        path = self.folder / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        return SecretReference(f"file:{path}")

    def fill(self, text: str) -> str:
        """The target's address, role and password in the place of words."""
        server = self.stage.server
        words = {
            "@DSN@": self.dsn,
            "@HOST@": server.host,
            "@PORT@": str(server.port),
            "@DATABASE@": self.database,
            "@USER@": self.owner.name,
            "@PASSWORD@": self.owner.password,
            "@ELSEWHERE@": str(self.elsewhere),
            "@PSQL@": str(server.bin_directory / "psql"),
            "@FOLDER@": str(self.folder),
        }
        for word, value in words.items():
            text = text.replace(word, value)
        return text

    def rehearse(
        self,
        env_py: str,
        *,
        ini: str = "postgresql+psycopg://nobody@nowhere.invalid/x",
        downgrade: str = "",
        **more: Any,
    ) -> Rehearsal:
        """Rehearse r2 with this env.py; the copy of the schema is made once for all."""
        self.project.ini(self.fill(ini))
        self.project.env_py(self.fill(env_py))
        self.project.revision(
            "r2", "pass", self.fill(downgrade) + "\nop.drop_table('invoice')", down="'r1'", head=""
        )
        pass_secrets = more.pop("pass_secrets", ())
        target = self.stage.target(
            self.database,
            migrations=self.project.migrations(**more),
            scratch=Scratch(
                url=self.stage.url("postgres", self.scratch),
                password=self.scratch.secret,
                pass_secrets=pass_secrets,
            ),
            database=Database(
                url=self.stage.url(self.database, self.owner),
                password=self.owner.secret,
                binaries=str(self.stage.server.bin_directory),
                backup_user=self.stage.superuser.name,
                backup_password=self.stage.superuser.secret,
            ),
        )
        rehearsals = TargetRehearsals(target, self.folder / "kept", GUARD_STORE)
        if self._kept is None:
            self._kept = rehearsals
        else:
            # Only the migrations' settings differ: the copy is the same.
            rehearsals._copies = self._kept._copies
        way = Way(revisions=("r2",), from_heads=("r2",), to_heads=("r1",))
        try:
            return self.runner.run(rehearsals.rehearse(way, depth=Depth.SCHEMA, fingerprint=self.fingerprint))
        finally:
            if rehearsals._worker is not None:
                self.runner.run(rehearsals._worker.close())

    def state(self) -> tuple[Any, ...]:
        """What the target holds, and all that was ever inserted or changed in it."""
        run = self.stage.run
        return (
            run(self.database, "SELECT * FROM customer ORDER BY 1"),
            run(self.database, "SELECT * FROM invoice ORDER BY 1"),
            run(self.database, "SELECT * FROM alembic_version"),
            run(
                self.database,
                "SELECT oid::bigint, relname, relfilenode::bigint FROM pg_class WHERE oid >= 16384 ORDER BY 1",
            ),
        )

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Nothing in the target is another than before, and nobody but the daemon and pg_dump has connected to it."""
        before = self.state()
        log = self.stage.server.directory / "server.log"
        since = log.stat().st_size
        yield
        with log.open("rb") as file:
            file.seek(since)
            lines = file.read().decode().splitlines()
        reached = [
            line
            for line in lines
            if (
                f"database={self.database}" in line or f'"{self.database}"' in line or self.owner.name in line
            )
            and "application_name=rollbackd" not in line
            and "application_name=pg_dump" not in line
            and "identity=" not in line
        ]
        assert reached == []
        assert self.called == []
        assert self.state() == before

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        if self._kept is not None:
            self.runner.run(self._kept.close())
        self.runner.close()


@pytest.fixture(scope="module")
def guard(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    folder = tmp_path_factory.mktemp("guard")
    stage = Stage(server, folder)
    stage.run("postgres", "ALTER SYSTEM SET log_connections = on", "SELECT pg_reload_conf()")
    made = Guard(stage, folder)
    yield made
    made.close()
    stage.run("postgres", "ALTER SYSTEM RESET log_connections", "SELECT pg_reload_conf()")
    stage.clean()


BY_ENGINE = """
import os
from alembic import context
from sqlalchemy import create_engine, event, pool
{before}
engine = {engine}
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
ASYNC = """
import asyncio, os
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine
{before}
def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = {engine}
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()

asyncio.run(main())
"""
SETTINGS = """
import os
DATABASE_URL = "postgresql+psycopg://{}:{}@{}:{}/{}".format(
    *(os.environ[f"SHOP_DB_{part}"] for part in ("USER", "PASSWORD", "HOST", "PORT", "NAME"))
)
"""


def by_engine(engine: str, before: str = "") -> str:
    return BY_ENGINE.format(engine=engine, before=before)


def by_async_engine(engine: str, before: str = "") -> str:
    return ASYNC.format(engine=engine, before=before)


def has(module: str) -> bool:
    """Whether the interpreter that runs the migrations has it."""
    return (
        subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    )


def needs(module: str) -> Any:
    return pytest.mark.skipif(not has(module), reason=f"{PYTHON} has no {module}")


WAYS = {
    "the ini file": {"env_py": ENV_PY, "ini": "postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@"},
    "the option that rollbackd sets": {"env_py": ENV_PY, "url": "option"},
    "-x": {
        "env_py": by_engine('create_engine(context.get_x_argument(as_dictionary=True)["url"])'),
        "x": ("url=postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@",),
    },
    "an environment variable": {
        "env_py": by_engine('create_engine(os.environ["DATABASE_URL"])'),
        "url": "environment:DATABASE_URL",
    },
    "a secret that is a URL": {
        "env_py": by_engine('create_engine(os.environ["SHOP_URL"])'),
        "secret_environment": {"SHOP_URL": "postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@"},
    },
    "a secret that is libpq's URL, and a creator": {
        "env_py": by_engine(
            'create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["SHOP_URL"]))',
            "import psycopg",
        ),
        "secret_environment": {"SHOP_URL": "postgresql://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@"},
    },
    "the application's settings": {
        "env_py": by_engine("create_engine(DATABASE_URL)", "from shop_settings import DATABASE_URL"),
        "environment": {
            "SHOP_DB_USER": "@USER@",
            "SHOP_DB_HOST": "@HOST@",
            "SHOP_DB_PORT": "@PORT@",
            "SHOP_DB_NAME": "@DATABASE@",
        },
        "secret_environment": {"SHOP_DB_PASSWORD": "@PASSWORD@"},
    },
    "an asynchronous engine on asyncpg": {
        "env_py": by_async_engine('create_async_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)'),
        "url": "environment:DATABASE_URL",
        "driver": "asyncpg",
    },
    "an asynchronous engine on psycopg, written down": {
        "env_py": by_async_engine(
            'create_async_engine("postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@")'
        ),
    },
    "psycopg2": {
        "env_py": by_engine('create_engine("postgresql+psycopg2://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@")')
    },
    "pg8000": {
        "env_py": by_engine('create_engine("postgresql+pg8000://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@")')
    },
    # As in SQLAlchemy's own recipe for tokens that a cloud makes.
    "a token that a listener asks for": {
        "env_py": by_engine(
            "engine",
            'engine = create_engine("postgresql+psycopg://@USER@@@HOST@:@PORT@/@DATABASE@")\n'
            '@event.listens_for(engine, "do_connect")\n'
            "def token(dialect, record, arguments, parameters):\n"
            '    parameters.update(password="@PASSWORD@", host="@HOST@", dbname="@DATABASE@", user="@USER@")',
        ),
    },
}  # fmt: skip


@together
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=needs(way)) if way.isidentifier() else way for way in WAYS]
)
def test_however_env_py_comes_by_its_url_it_is_led_to_scratch(guard: Guard, way: str) -> None:
    given: dict[str, Any] = {
        name: guard.fill(value) if isinstance(value, str) and name != "env_py" else value
        for name, value in WAYS[way].items()
    }
    given["x"] = tuple(map(guard.fill, given.get("x", ())))
    given["environment"] = {n: guard.fill(v) for n, v in given.get("environment", {}).items()}
    given["secret_environment"] = {
        n: guard.secret(n, guard.fill(v)) for n, v in given.get("secret_environment", {}).items()
    }
    (guard.project.folder / "shop_settings.py").write_text(SETTINGS)
    with guard.untouched():
        found = guard.rehearse(**given)
    assert found.unknown == ""
    assert found.passed, found.failure
    assert [t.table for t in found.revisions[0].gone_tables] == [INVOICE]


# -- escapes ----------------------------------------------------------------------------------------------------------------

CONNECTION = "it opens a connection of its own, to @DATABASE@ at @HOST@:@PORT@"
PROCESS = "it starts a process of its own"
WRITE = "INSERT INTO customer VALUES (666)"
RAW = f'psycopg.connect("@DSN@", autocommit=True).execute("{WRITE}")'
# What runs in a process of its own.
CODE = f"import psycopg; {RAW}"
PLAIN_INI = "postgresql+psycopg://@USER@:@PASSWORD@@@HOST@:@PORT@/@DATABASE@"

# By what is tried: in env.py (`env_py`), before the generic one (`before`) or in a downgrade (`downgrade`); the sentence.
ESCAPES: dict[str, dict[str, str]] = {
    "creator": {
        "env_py": by_engine(
            'create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect("@DSN@"))', "import psycopg"
        ),
        "says": CONNECTION,
    },
    "async_creator": {
        "env_py": by_async_engine(
            'create_async_engine("postgresql+asyncpg://", async_creator=connect)',
            'import asyncpg\nasync def connect():\n    return await asyncpg.connect("@DSN@")',
        ),
        "says": CONNECTION,
    },
    "async_creator_fn": {
        "env_py": by_async_engine(
            'create_async_engine("postgresql+asyncpg://", connect_args={"async_creator_fn": connect})',
            'import asyncpg\nasync def connect(*_, **__):\n    return await asyncpg.connect("@DSN@")',
        ),
        "says": "it opens its connections by a function of its own (async_creator_fn)",
    },
    "pool": {
        "env_py": by_engine(
            'create_engine("postgresql+psycopg://", pool=pool.QueuePool(lambda: psycopg.connect("@DSN@")))',
            "import psycopg",
        ),
        "says": CONNECTION,
    },
    "another database by its parts": {
        "before": 'import psycopg\npsycopg.connect(host="@HOST@", port=@PORT@, dbname="@DATABASE@", user="@USER@",'
        ' password="@PASSWORD@")',
        "says": CONNECTION,
    },
    "conninfo by its name": {"before": 'import psycopg\npsycopg.connect(conninfo="@DSN@")', "says": CONNECTION},
    "the scratch database's name on another server": {
        "env_py": by_engine(
            'create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(elsewhere))',
            'import psycopg\nelsewhere = os.environ["DATABASE_URL"].replace("+psycopg", "")'
            '.replace(":@PORT@/", ":@ELSEWHERE@/")',
        ),
        "url": "environment:DATABASE_URL",
        "says": ":@ELSEWHERE@",
    },
    "the scratch database's name at another address": {
        "env_py": by_engine(
            'create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(here, hostaddr="127.0.0.2"))',
            'import psycopg\nhere = os.environ["DATABASE_URL"].replace("+psycopg", "")',
        ),
        "url": "environment:DATABASE_URL",
        "says": "it opens a connection of its own, to rollbackd_scratch_",
    },
    "psycopg in env.py": {"before": f"import psycopg\n{RAW}", "says": CONNECTION},
    "psycopg's class": {
        "before": f'from psycopg import Connection\nConnection.connect("@DSN@", autocommit=True).execute("{WRITE}")',
        "says": CONNECTION,
    },
    "psycopg, asynchronous": {
        "before": 'import asyncio, psycopg\nasyncio.run(psycopg.AsyncConnection.connect("@DSN@"))',
        "says": CONNECTION,
    },
    "psycopg in a downgrade": {"downgrade": f"import psycopg\n{RAW}", "says": CONNECTION},
    "psycopg, and nobody minds that it fails": {
        "downgrade": f"import psycopg\ntry:\n    {RAW}\nexcept:\n    pass",
        "says": CONNECTION,
    },
    "asyncpg": {
        "before": 'import asyncio, asyncpg\nasyncio.run(asyncpg.connect("@DSN@"))',
        "says": CONNECTION,
    },
    "asyncpg's own module": {
        "before": "import asyncio\nfrom asyncpg.connection import connect\n"
        'asyncio.run(connect("@DSN@"))',
        "says": CONNECTION,
    },
    "asyncpg's pool": {
        "before": "import asyncio\nfrom asyncpg.pool import create_pool\n"
        'async def main():\n    await create_pool("@DSN@", min_size=1)\nasyncio.run(main())',
        "says": CONNECTION,
    },
    "asyncpg in a downgrade": {
        "downgrade": "import asyncio, asyncpg\nasync def write():\n"
        f'    await (await asyncpg.connect(dsn="@DSN@")).execute("{WRITE}")\nasyncio.run(write())',
        "says": CONNECTION,
    },
    "psql": {
        "before": f'import subprocess\nsubprocess.run(["@PSQL@", "@DSN@", "-c", "{WRITE}"])',
        "says": PROCESS,
    },
    "python": {
        "downgrade": f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', '''{CODE}'''])",
        "says": PROCESS,
    },
    "os.system": {"before": f"""import os\nos.system('@PSQL@ @DSN@ -c "{WRITE}"')""", "says": PROCESS},
    "os.fork": {
        "before": f"import os, psycopg\nif not os.fork():\n    {RAW}\n    os._exit(0)\nos.wait()",
        "says": PROCESS,
    },
    "os.posix_spawn": {
        "before": f'import os\nos.posix_spawn("@PSQL@", ["psql", "@DSN@", "-c", "{WRITE}"], dict(os.environ))',
        "says": PROCESS,
    },
    "multiprocessing": {
        "before": "import sys\nsys.path.insert(0, '@FOLDER@')\nimport multiprocessing, writing\n"
        "if context.config is not None:\n"
        "    process = multiprocessing.get_context('spawn').Process(target=writing.write)\n"
        "    process.start()\n    process.join()",
        "says": PROCESS,
    },
    "a socket": {
        "downgrade": 'import socket\nsocket.create_connection(("127.0.0.1", @ELSEWHERE@)).sendall(b"x")',
        "says": "it connects to 127.0.0.1:@ELSEWHERE@",
    },
    "a Unix socket": {
        "before": 'import socket\nsocket.socket(socket.AF_UNIX).connect("@FOLDER@/there.sock")',
        "says": "it connects to @FOLDER@/there.sock",
    },
    "HTTP": {
        "downgrade": 'import urllib.request\nurllib.request.urlopen("http://127.0.0.1:@ELSEWHERE@/")',
        "says": "it connects to 127.0.0.1:@ELSEWHERE@",
    },
    "another kind of database": {
        "downgrade": 'sa.create_engine("sqlite://").connect()',
        "says": "it connects to sqlite besides PostgreSQL",
    },
    "psycopg2": {
        "before": f'import psycopg2\npsycopg2.connect("@DSN@").cursor().execute("{WRITE}")',
        "says": CONNECTION,
    },
    "pg8000": {
        "before": 'import pg8000.native\npg8000.native.Connection("@USER@", password="@PASSWORD@", host="@HOST@",'
        f' port=@PORT@, database="@DATABASE@").run("{WRITE}")',
        "says": CONNECTION,
    },
}  # fmt: skip


@together
@pytest.mark.parametrize(
    "escape", [pytest.param(e, marks=needs(e)) if e in ("psycopg2", "pg8000") else e for e in ESCAPES]
)
def test_whatever_else_the_migration_reaches_for_is_refused_by_name_and_reaches_nothing(
    guard: Guard, escape: str
) -> None:
    """What it would do in earnest can't be known then: neither passed nor failed, but unknown, and why."""
    tried = ESCAPES[escape]
    (guard.folder / "writing.py").write_text(guard.fill(f"import psycopg\ndef write():\n    {RAW}\n"))
    env_py = tried.get("env_py") or f"from alembic import context\n{tried.get('before', '')}\n{ENV_PY}"
    with guard.untouched():
        found = guard.rehearse(
            env_py, ini=PLAIN_INI, downgrade=tried.get("downgrade", ""), url=tried.get("url", "own")
        )
    assert guard.fill(tried["says"]) in found.unknown
    assert "\n" not in found.unknown
    assert guard.owner.password not in found.unknown
    assert found.failure is None
    assert not found.passed
    if escape != "psycopg, and nobody minds that it fails":
        where = "r2_.py:" if "downgrade" in tried else "env.py:"
        assert f"(at {where}" in found.unknown


@together
def test_what_a_thread_of_its_own_is_refused_does_not_spoil_the_rehearsal(guard: Guard) -> None:
    """Telemetry that is loaded with the application goes nowhere, and the migration itself is as it is in earnest."""
    telling = (
        "import threading, urllib.request\n"
        'telling = threading.Thread(target=urllib.request.urlopen, args=("http://127.0.0.1:@ELSEWHERE@/",))\n'
        "threading.excepthook = lambda *_: None\ntelling.start()\ntelling.join()\n"
    )
    with guard.untouched():
        found = guard.rehearse(telling + ENV_PY, ini=PLAIN_INI)
    assert found.passed, found.unknown


# -- the mark, and the child's environment --------------------------------------------------------------------------------


@together
@pytest.mark.parametrize("comment", ["", mark("another")], ids=["no mark", "another store's mark"])
def test_a_database_that_does_not_show_the_mark_stops_env_py_before_anything_runs(
    guard: Guard, comment: str
) -> None:
    """A database of the right name that isn't ours: scratch moved, or its name lives on another server, too."""
    stage, project = guard.stage, guard.project
    twin = stage.database(owner=guard.scratch.name)
    if comment:
        stage.run("postgres", f"COMMENT ON DATABASE {twin} IS '{comment}'")
    stage.run(twin, "CREATE TABLE alembic_version (version_num text)", "INSERT INTO alembic_version VALUES ('r2')",
              "CREATE TABLE invoice (id int)", f"ALTER TABLE invoice OWNER TO {guard.scratch.name}")  # fmt: skip
    ran = guard.folder / "ran"
    project.env_py(ENV_PY)
    project.ini(guard.url())
    project.revision("r2", "pass", f"open({str(ran)!r}, 'w')\nop.drop_table('invoice')", down="'r1'")
    target = stage.target(guard.database, migrations=project.migrations())
    place = Place.of(stage.url(twin, guard.scratch), guard.scratch.secret)
    worker = AlembicWorker(target, guard.folder / "kept", ScratchPlace(place=place, mark=mark(GUARD_STORE)))
    way = Way(revisions=("r2",), from_heads=("r2",), to_heads=("r1",))

    async def rehearse() -> None:
        try:
            await worker.rehearse(way, timeout_s=20)
        finally:
            await worker.close()

    with guard.untouched(), pytest.raises(RefusedError) as refused:
        guard.runner.run(rehearse())
    assert str(refused.value) == (
        f"env.py connects to {twin}, which isn't the scratch database of this rehearsal: nothing was run"
    )
    assert not ran.exists()
    assert stage.run(twin, "SELECT version_num FROM alembic_version") == [("r2",)]
    assert stage.run(twin, "SELECT to_regclass('invoice') IS NOT NULL") == [(True,)]


TELLING = f"""
import json, os
with open("environment.json", "w") as file:
    json.dump(dict(os.environ), file)
{ENV_PY}
"""


@together
def test_the_child_holds_no_password_but_the_scratch_databases(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the target's, however it is given, nor the daemon's own environment; other secrets where they are needed."""
    password = guard.owner.password
    monkeypatch.setenv("PGPASSWORD", password)
    monkeypatch.setenv("ROLLBACKD_SECRET", password)
    found = guard.rehearse(
        TELLING,
        ini="",
        url="option",
        environment={
            "PLAIN": "shop",
            "PLAIN_URL": guard.url(),
            "PLAIN_PASSWORD": password,
        },
        secret_environment={
            "SECRET_URL": guard.secret("s1", guard.url("asyncpg")),
            "SECRET_PASSWORD": guard.secret("s2", password),
            "API_KEY": guard.secret("s3", "key-1"),
            "LICENCE": guard.secret("s4", "key-2"),
        },
        pass_secrets=("LICENCE",),
    )
    assert found.passed, found.unknown
    told = json.loads((guard.project.folder / "environment.json").read_text())
    assert not [name for name, value in told.items() if password in value]
    assert "PGPASSWORD" not in told
    assert told["PLAIN"] == "shop"
    assert told["PLAIN_PASSWORD"] == told["SECRET_PASSWORD"] == guard.scratch.password
    for name, driver in (("PLAIN_URL", "psycopg"), ("SECRET_URL", "asyncpg")):
        assert told[name].startswith(f"postgresql+{driver}://{guard.scratch.name}:{guard.scratch.password}@")
        assert "/rollbackd_scratch_" in told[name]
    assert told["API_KEY"] == PLACEHOLDER
    assert told["LICENCE"] == "key-2"


# -- replaying what took rows away ----------------------------------------------------------------------------------------


class Replay:
    """A database at r1 with five customers, restored in scratch; r2 is the migration that took something away."""

    def __init__(self, stage: Stage, project: Project, folder: Path, upgrade: str) -> None:
        self.stage = stage
        project.revision(
            "r1",
            "op.execute('CREATE TABLE customer (id int PRIMARY KEY, name text, email text, age int)')\n"
            "op.execute(\"INSERT INTO customer SELECT n, 'n' || n, NULLIF('e' || n, 'e5'), n FROM generate_series(1, 5) n\")\n"
            "op.execute('CREATE TABLE kept (id int PRIMARY KEY)')\n"
            "op.execute('INSERT INTO kept VALUES (1)')",
            "pass",
        )
        project.upgrade()
        project.revision("r2", upgrade, "pass")
        self.target = stage.target(project.database, migrations=project.migrations())
        self.project = project
        self.rehearsals = TargetRehearsals(self.target, folder / "kept", STORE)

    async def run(self, look: Callable[[Place, Rehearsal], Awaitable[None]]) -> None:
        way = Way(direction="up", revisions=("r2",), from_heads=("r1",), to_heads=("r2",))
        try:
            async with scratch_database(self.target, STORE, self.project.database) as copy:
                await look(copy, await self.rehearsals.replay(copy, way))
        finally:
            await self.rehearsals.close()

    async def taken(self) -> dict[str, int]:
        found: dict[str, int] = {}

        async def look(copy: Place, ran: Rehearsal) -> None:
            assert ran.passed, ran.failure
            found.update(await self.rehearsals.taken(copy))

        await self.run(look)
        assert self.project.heads() == ["r1"]
        return found


@pytest.mark.parametrize(
    ("upgrade", "taken"),
    [
        ("op.execute('DELETE FROM customer WHERE id < 3')", 2),
        # Two values that were there are others now; what was filled in or left as it was is no loss.
        ("op.execute(\"UPDATE customer SET email = 'new' WHERE id > 2\")", 2),
        ("op.execute('UPDATE customer SET name = name')", 0),
        ("op.execute('TRUNCATE customer')", 5),
        ("op.drop_column('customer', 'email')", 4),
        ("op.drop_column('customer', 'email')\nop.execute('DELETE FROM customer WHERE id = 1')", 5),
        ("op.drop_table('customer')", 5),
        ("op.alter_column('customer', 'name', type_=sa.String(1), postgresql_using='left(name, 1)')", 5),
        ("op.add_column('customer', sa.Column('more', sa.Text))\nop.execute('UPDATE customer SET more = name')", 0),
        ("op.execute(\"INSERT INTO customer VALUES (1, 'x', 'x', 0) ON CONFLICT (id) DO UPDATE SET name = 'x'\")", 1),
    ],
    ids=[
        "deleted", "overwritten", "written unchanged", "emptied", "a dropped column", "a dropped column and a deleted row",
        "a dropped table", "cut short", "only added to", "overwritten by an insert",
    ],
)  # fmt: skip
async def test_a_replay_says_how_much_a_migration_takes_away_by_table(
    stage: Stage, bare_project: Project, tmp_path: Path, upgrade: str, taken: int
) -> None:
    found = await Replay(stage, bare_project, tmp_path, upgrade).taken()
    assert {table: rows for table, rows in found.items() if rows} == (
        {"public.customer": taken} if taken else {}
    )


async def test_what_a_replay_kept_is_brought_back_into_the_target(
    stage: Stage, bare_project: Project, tmp_path: Path
) -> None:
    """The migration ran on the target, too; from the copy's archive come the values that it took away, and no others."""
    upgrade = (
        "op.execute('DELETE FROM customer WHERE id = 1')\n"
        "op.execute(\"UPDATE customer SET name = 'gone' WHERE id = 2\")"
    )
    replay = Replay(stage, bare_project, tmp_path, upgrade)
    before = stage.run(bare_project.database, "SELECT * FROM customer ORDER BY id")
    archives = PostgresArchives(replay.target)

    async def look(copy: Place, ran: Rehearsal) -> None:
        assert {(k["kind"], k["rows"]) for k in ran.kept} == {("rows", 2)}
        bare_project.upgrade(bare_project.database)
        stage.run(bare_project.database, "INSERT INTO customer VALUES (6, 'later', NULL, 6)")
        assert await archives.adopt("run-1 lost", copy) == 2

    await replay.run(look)
    await archives.restore("run-1 lost", dry_run=False)
    assert stage.run(bare_project.database, "SELECT * FROM customer ORDER BY id") == [
        *before,
        (6, "later", None, 6),
    ]


async def test_a_migration_that_cannot_be_replayed_is_named_with_its_reason(
    stage: Stage, bare_project: Project, tmp_path: Path
) -> None:
    replay = Replay(stage, bare_project, tmp_path, "op.execute('DROP TABLE nowhere')")

    async def look(*_: Any) -> None:
        raise AssertionError("it was replayed")

    with pytest.raises(
        PermanentError, match=r'the migration can\'t be run again on the backup: r2: .*"nowhere"'
    ):
        await replay.run(look)
