"""Whoever writes while a downgrade takes away what he writes to loses nothing: what was committed is kept."""

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.end_to_end.ground import Project, new_database

from rollbackd.adapters.postgres.archives import PostgresArchives
from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.adapters.rehearsal.rehearsals import TargetRehearsals
from rollbackd.adapters.worker.alembic import AlembicWorker
from rollbackd.core.archives import ArchiveItem
from rollbackd.core.rehearsal import Depth, Way
from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.ports import DowngradeResult, Progress
from rollbackd.settings import Database, Migrations, Scratch, SecretReference, Target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROWS = 50_000
WRITERS = 4
# How long they write before anything is done, and between a copy and the downgrade.
ALONE_S = 0.5
RUN = "run-0001"

# What the downgrade of r2 takes away, and by what error a writer learns of it.
COLUMN = (
    "op.add_column('customer', sa.Column('phone', sa.Text))\n"
    f"op.execute(\"INSERT INTO customer SELECT n, 'p' || n FROM generate_series(1, {ROWS}) n\")",
    "op.drop_column('customer', 'phone')",
)
TABLE = (
    "op.drop_table('customer')\n"
    "op.execute('CREATE TABLE customer (id int PRIMARY KEY, phone text)')\n"
    f"op.execute(\"INSERT INTO customer SELECT n, 'p' || n FROM generate_series(1, {ROWS}) n\")",
    "op.drop_table('customer')",
)


class Writer(threading.Thread):
    """Writes to rows of its own until it is told that they are gone; `rows` are those whose commit it saw."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.rows: dict[int, str | None] = {n: f"p{n}" for n in range(1, ROWS + 1) if n % WRITERS == number}
        self.next_id = ROWS + number
        self.sample: list[int] = []
        self.random = random.Random(number)
        self.commits = 0
        self.last_commit = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                while True:
                    written = dict(self.rows)
                    # Most transactions write one row; some write several, so that the lock has to wait for their end.
                    for _ in range(self.random.choice((1, 1, 1, 2, 6))):
                        self.write(connection, written)
                    if self.random.random() < 0.1:
                        connection.rollback()
                        continue
                    connection.commit()
                    self.rows = written
                    self.commits += 1
                    self.last_commit = time.monotonic()
        except psycopg.Error as error:
            self.error = error

    def write(self, connection: psycopg.Connection[Any], rows: dict[int, str | None]) -> None:
        some = self.random.choice([*self.sample, self.next_id])
        value = f"w-{uuid.uuid4().hex[:8]}"
        match self.random.choice(
            ("insert", "insert", "update", "update", "empty", "delete", "move", "upsert")
        ):
            case "insert":
                connection.execute("INSERT INTO customer (id, phone) VALUES (%s, %s)", (self.new_id(), value))
                rows[self.next_id] = value
            case "upsert":
                connection.execute(
                    "INSERT INTO customer (id, phone) VALUES (%s, %s)"
                    " ON CONFLICT (id) DO UPDATE SET phone = excluded.phone",
                    (some, value),
                )
                rows[some] = value
            case "update":
                done = connection.execute("UPDATE customer SET phone = %s WHERE id = %s", (value, some))
                if done.rowcount:
                    rows[some] = value
            case "empty":
                done = connection.execute("UPDATE customer SET phone = NULL WHERE id = %s", (some,))
                if done.rowcount:
                    rows[some] = None
            case "delete":
                # In the column's case the row's value has to be named, or nobody would tell the writer of the drop.
                connection.execute("DELETE FROM customer WHERE id = %s AND phone IS NOT NULL", (some,))
                if rows.get(some) is not None:
                    del rows[some]
            case "move":
                done = connection.execute(
                    "UPDATE customer SET id = %s WHERE id = %s RETURNING phone", (self.new_id(), some)
                )
                if done.rowcount:
                    rows[self.next_id] = rows.pop(some)

    def new_id(self) -> int:
        self.next_id += WRITERS
        return self.next_id

    def begin(self) -> None:
        # Written to again and again, so that values are overwritten, and rows go and come back.
        self.sample = self.random.sample(sorted(self.rows), 200)
        self.start()


class Scene:
    """A database at r2, its target, and what the daemon has to go back with."""

    def __init__(
        self, server: EmbeddedPostgres, folder: Path, database: str, revision: tuple[str, str]
    ) -> None:
        self.server = server
        self.database = database
        project = Project(folder / "project")
        project.revision("r1", "op.execute('CREATE TABLE customer (id int PRIMARY KEY)')", "pass")
        project.revision("r2", *revision)
        project.alembic(server.url(database, driver="psycopg"), "upgrade", "head")
        password = folder / "password"
        password.write_text(server.password)
        password.chmod(0o600)
        secret = SecretReference(f"file:{password}")
        self.target = Target(
            name="shop",
            service="shop",
            environment="staging",
            database=Database(
                url=f"postgresql://{server.user}@{server.host}:{server.port}/{database}",
                password=secret,
                binaries=str(server.bin_directory),
            ),
            migrations=Migrations(
                directory=str(project.folder), python=(project.python,), url="environment:DATABASE_URL"
            ),
            scratch=Scratch(same_server=True),
        )
        self.kept = folder / "kept"
        self.archives = PostgresArchives(self.target)
        self.role = f"writer_{uuid.uuid4().hex[:8]}"
        self.query(f"CREATE ROLE {self.role} LOGIN PASSWORD 'pw'")
        self.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON customer TO {self.role}")

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.server.url(self.database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.query(f"DROP OWNED BY {self.role}")
        self.query(f"DROP ROLE {self.role}")

    async def rehearsed(self) -> tuple[ArchiveItem, ...]:
        """What a rehearsal says is to be kept."""
        rehearsals = TargetRehearsals(self.target, self.kept, "store1")
        try:
            way = Way(revisions=("r2",), from_heads=("r2",), to_heads=("r1",))
            found = await rehearsals.rehearse(way, depth=Depth.SCHEMA, fingerprint="any")
        finally:
            await rehearsals.close()
        assert found.passed, found
        return found.archive

    async def downgrade(self, worker: AlembicWorker, archive: tuple[ArchiveItem, ...]) -> DowngradeResult:
        reader = PostgresReader(self.target)

        async def unheard(_: str) -> None:
            """What is executed is of no interest here."""

        try:
            return await worker.downgrade(
                ("r2",),
                ("r2",),
                ("r1",),
                run=RUN,
                identity=await reader.identity(),
                scripts_sha256=(await worker.describe()).scripts_sha256,
                archive=archive,
                timeout_s=60,
                on_log=unheard,
            )
        finally:
            await reader.close()

    @contextmanager
    def written_to(self) -> Iterator[list[Writer]]:
        """While writers write; each has learnt in the end that what it writes to is gone."""
        url = self.server.url(self.database, user=self.role, password="pw")
        writers = [Writer(url, number) for number in range(WRITERS)]
        for writer in writers:
            writer.begin()
        time.sleep(ALONE_S)
        yield writers
        for writer in writers:
            writer.join(10)
            assert not writer.is_alive(), "it writes on, to what?"

    def archived(self) -> list[tuple[int, str | None]]:
        ((archive, rows),) = self.query("SELECT archive, row_count FROM rollbackd_archive.entries")
        found = self.query(f'SELECT id, phone FROM rollbackd_archive."{archive}" ORDER BY id')
        assert len(found) == rows
        return [(id_, phone) for id_, phone in found]


@pytest.fixture
def make_scene(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Callable[[tuple[str, str]], Scene]]:
    with new_database(server) as database:
        made: list[Scene] = []

        def make(revision: tuple[str, str]) -> Scene:
            made.append(Scene(server, tmp_path, database, revision))
            return made[-1]

        yield make
        for scene in made:
            scene.close()


@pytest.mark.parametrize("ahead", [False, True], ids=["under the lock", "copied ahead"])
@pytest.mark.parametrize(
    ("revision", "gone"),
    [(COLUMN, psycopg.errors.UndefinedColumn), (TABLE, psycopg.errors.UndefinedTable)],
    ids=["a column", "a table"],
)
async def test_no_value_that_a_writer_saw_committed_is_missing_after_a_downgrade_under_its_hands(
    make_scene: Callable[[tuple[str, str]], Scene],
    revision: tuple[str, str],
    gone: type[psycopg.Error],
    ahead: bool,
) -> None:
    """Every acknowledged value is in the archive, unless a later acknowledged write took it away; and nothing else is."""
    scene = make_scene(revision)
    (item,) = await scene.rehearsed()
    assert item.key == ("id",)
    worker = AlembicWorker(scene.target, scene.kept)
    copied: list[float] = []
    try:
        await worker.prestart()
        with scene.written_to() as writers:
            if ahead:

                async def on_progress(progress: Progress) -> None:
                    copied.append(progress.done)

                before = sum(writer.commits for writer in writers)
                (item,) = await scene.archives.copy_ahead(RUN, (item,), on_progress)
                assert item.copied
                assert sum(writer.commits for writer in writers) > before, "a copy ahead keeps nobody out"
                await asyncio.sleep(ALONE_S)
            began = time.monotonic()
            result = await scene.downgrade(worker, (item,))
    finally:
        await worker.close()

    for writer in writers:
        assert type(writer.error) is gone, writer.error
        assert writer.commits > 20
        assert writer.last_commit > began, "it was writing when the downgrade began"
    committed = {id_: phone for writer in writers for id_, phone in writer.rows.items()}
    kept = (
        committed
        if gone is psycopg.errors.UndefinedTable
        else {i: p for i, p in committed.items() if p is not None}
    )
    assert scene.archived() == sorted(kept.items())
    assert result.kept[0]["rows"] == len(kept)
    assert (len(copied) > 1) is ahead
    if gone is psycopg.errors.UndefinedColumn:
        assert scene.query("SELECT id FROM customer ORDER BY id") == [(id_,) for id_ in sorted(committed)]
    await scene.archives.finish(RUN)
    assert scene.query(
        "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^rollbackd' UNION ALL SELECT count(*) FROM pg_proc"
        " WHERE pronamespace = 'rollbackd_archive'::regnamespace"
    ) == [(0,), (0,)]
