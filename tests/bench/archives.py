"""Archiving what a downgrade takes away, beside `CREATE TABLE AS` of the same rows, and how long it keeps others out."""

import threading
import time
from typing import Any

import psycopg
import sqlalchemy
from figures import compared, figure
from ground import Ground, Project, Wired

from rollbackd.adapters.worker.child.archiving import Archiving
from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.schema import TableName
from rollbackd.ports import Progress

# Rows, and how often each is measured; ten million are copied ahead as a table alone.
SIZES = ((1_000_000, 5), (10_000_000, 3))
AIM = 1.1
TABLE = ArchiveItem(revision="table", kind=ArchiveKind.TABLE, table=TableName("public", "t"), key=("id",))
COLUMN = ArchiveItem(
    revision="column", kind=ArchiveKind.COLUMN, table=TableName("public", "t"), column="v", key=("id",)
)
ALONE = {"table": "SELECT * FROM t", "column": "SELECT id, v FROM t WHERE v IS NOT NULL"}
# The first one is never run: it is what the column's downgrade leads to.
REVISIONS = (
    ("first", "SELECT 1", "SELECT 1"),
    ("column", "ALTER TABLE t ADD v bigint", "ALTER TABLE t DROP v"),
    ("table", "CREATE TABLE t (id bigint PRIMARY KEY, w int, v bigint)", "DROP TABLE t"),
)
READ = "SELECT w FROM t WHERE id = 7"
WRITE = "UPDATE t SET w = w + 1 WHERE id = (SELECT 1 + (random() * 900000)::int)"


async def archives(rounds: int) -> None:
    """What is kept, for both sizes; `rounds` is the most that the smaller one is measured."""
    async with Ground.stand() as ground:
        project = ground.project(REVISIONS)
        for rows, most in SIZES:
            database = ground.database(
                "CREATE TABLE t (id bigint, w int, v bigint)",
                f"INSERT INTO t SELECT g, 0, g * 3 FROM generate_series(1, {rows}) g",
                "ALTER TABLE t ADD PRIMARY KEY (id)",
                "VACUUM (FREEZE, ANALYZE) t",
            )
            for item in (TABLE, COLUMN):
                _beside_create_table_as(ground, database, item, rows, min(rounds, most))
                await _lock_time(ground, project, database, item, rows)
            await _lock_time(ground, project, database, TABLE, rows, ahead=True)
            if rows <= SIZES[0][0]:
                await _lock_time(ground, project, database, COLUMN, rows, ahead=True)
            ground.drop(database)


def _beside_create_table_as(ground: Ground, database: str, item: ArchiveItem, rows: int, rounds: int) -> None:
    kind = str(item.kind)
    builtins: dict[str, Any] = {
        "revision": item.revision, "kind": kind, "table": {"schema": "public", "name": "t"},
        "column": item.column, "key": list(item.key), "copied": False,
    }  # fmt: skip
    engine = sqlalchemy.create_engine(ground.postgres.url(database, driver="psycopg"))
    kept, alone = [], []
    for _ in range(rounds):
        ground.sql(database, "CHECKPOINT")
        began = time.monotonic()
        with engine.begin() as connection:
            archiving = Archiving(connection, "bench", [builtins])
            archiving.before(item.revision, locks=True)
            archiving.after(item.revision)
        kept.append(time.monotonic() - began)
        ground.sql(database, "DROP SCHEMA rollbackd_archive CASCADE", "CHECKPOINT")
        began = time.monotonic()
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE TABLE beside AS {ALONE[kind]}")
        alone.append(time.monotonic() - began)
        ground.sql(database, "DROP TABLE beside")
    engine.dispose()
    name = f"archive of a dropped {kind}, {rows:,} rows"
    compared(name, kept, "s", "CREATE TABLE AS alone", alone, aim_ratio=AIM)


async def _lock_time(
    ground: Ground, project: Project, pristine: str, item: ArchiveItem, rows: int, *, ahead: bool = False
) -> None:
    """Run the real downgrade by the worker while others read and write; the longest that one of them waited."""
    database = ground.clone(pristine)
    ground.stamp(database, item.revision)
    what = f"a dropped {item.kind}, {rows:,} rows"
    async with ground.wired(database, project) as wired:
        await wired.guarded.worker.prestart()
        with (
            _Other(ground.postgres.url(database), READ) as reader,
            _Other(ground.postgres.url(database), WRITE) as writer,
        ):
            if ahead:
                began = time.monotonic()
                (item,) = await wired.guarded.archives.copy_ahead("bench", (item,), _nobody)
                figure(f"copying ahead of {what}", [time.monotonic() - began], "s")
                figure(
                    f"longest wait of a reader while copying ahead of {what}", [reader.longest_since()], "s"
                )
                figure(
                    f"longest wait of a writer while copying ahead of {what}", [writer.longest_since()], "s"
                )
                what = f"{what}, copied ahead"
            seconds = await _downgrade(wired, project, item)
            reads, writes = reader.longest_since(), writer.longest_since()
    figure(f"lock time, reader, {what}", [reads], "s", downgrade_s=round(seconds, 3))
    figure(f"lock time, writer, {what}", [writes], "s", downgrade_s=round(seconds, 3))
    ground.drop(database)


async def _downgrade(wired: Wired, project: Project, item: ArchiveItem) -> float:
    guarded = wired.guarded
    target = project.revisions[project.revisions.index(item.revision) - 1]
    result = await guarded.worker.downgrade(
        (item.revision,),
        (item.revision,),
        (target,),
        run="bench",
        identity=await guarded.database.identity(),
        scripts_sha256=(await guarded.worker.describe()).scripts_sha256,
        archive=(item,),
        timeout_s=300,
        on_log=_silence,
    )
    if not result.kept:
        raise RuntimeError("nothing was archived")
    return result.seconds


class _Other:
    """Somebody else's session, which runs one statement again and again; notes how long each took."""

    def __init__(self, url: str, statement: str) -> None:
        self._url = url
        self._statement = statement
        self._stopping = threading.Event()
        self._longest = 0.0
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "_Other":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def longest_since(self) -> float:
        """The longest wait since it was last asked."""
        began = self._began
        while began is not None and self._began == began:
            time.sleep(0.001)
        longest, self._longest = self._longest, 0.0
        return longest

    def _run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stopping.wait(0.002):
                began = self._began = time.monotonic()
                try:
                    connection.execute(self._statement)
                except psycopg.errors.UndefinedTable:
                    # The table went while it waited: that was the wait.
                    self._stopping.set()
                self._longest = max(self._longest, time.monotonic() - began)
                self._began = None


async def _nobody(_: Progress) -> None:
    """Nobody looks at the progress."""


async def _silence(_: str) -> None:
    """Nobody reads the log."""
