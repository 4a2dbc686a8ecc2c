"""What the figures of the way back stand on: one server, Alembic projects, and the daemon's own parts wired to them."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.app.composition import Parts, compose, store_directory
from rollbackd.app.configuration import load_configuration
from rollbackd.app.logs import set_up_logs
from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.settings import Logging
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.planning import Planner

PYTHON = sys.executable
TARGET = "bench"
ALEMBIC = "alembic downgrade -1 as a process"
# Room for the large tables; no background work that would fall on one side of a comparison alone.
SERVER = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",
    "maintenance_work_mem": "256MB",
}
ENV_PY = """
import os
from alembic import context
from sqlalchemy import create_engine, pool
engine = create_engine(os.environ.get("BENCH_URL", {url!r}), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
from alembic import op
revision, down_revision, branch_labels, depends_on = {this!r}, {down!r}, None, None
def upgrade():
    op.execute({up!r})
def downgrade():
    op.execute({back!r})
"""


def secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


@dataclass
class Project:
    """Alembic scripts, each the child of the one before."""

    folder: Path
    revisions: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.revisions[-1]

    def write(self, revisions: Iterable[tuple[str, str, str]]) -> "Project":
        """Write these revisions: id, the statement up, the statement back."""
        versions = self.folder / "migrations" / "versions"
        versions.mkdir(parents=True)
        (self.folder / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
        self.knows("")
        for this, up, back in revisions:
            down = self.revisions[-1] if self.revisions else None
            (versions / f"{this}.py").write_text(REVISION.format(this=this, down=down, up=up, back=back))
            self.revisions.append(this)
        return self

    def knows(self, url: str) -> None:
        """Let env.py know its database by itself, where nobody tells it another one."""
        (self.folder / "migrations" / "env.py").write_text(ENV_PY.format(url=url))


@dataclass
class Wired:
    """The daemon's parts for one database, as its composition root wires them."""

    parts: Parts
    guarded: Guarded
    planner: Planner


class Ground:
    """A server of the bench's own and a folder; gone at the end."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres) -> None:
        self.folder = folder
        self.postgres = postgres
        self._numbers = iter(range(10_000))
        secret(folder / "password", postgres.password)

    @classmethod
    @asynccontextmanager
    async def stand(cls) -> AsyncIterator["Ground"]:
        """Start the server, end it whatever happens."""
        set_up_logs(Logging(level="error"))
        postgres = await asyncio.to_thread(EmbeddedPostgres.start, settings=SERVER)
        try:
            with tempfile.TemporaryDirectory(prefix="rollbackd-bench-") as name:
                yield cls(Path(name), postgres)
        finally:
            await asyncio.to_thread(postgres.stop)

    def project(self, revisions: Iterable[tuple[str, str, str]]) -> Project:
        return Project(self.folder / f"project-{next(self._numbers)}").write(revisions)

    def sql(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in its own transaction; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(self.postgres.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def database(self, *statements: str, head: str = "") -> str:
        """A database made by these statements, stamped with this head."""
        name = f"bench_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name}")
        self.sql(name, *statements)
        if head:
            self.stamp(name, head)
        return name

    def stamp(self, database: str, head: str) -> None:
        self.sql(
            database,
            "CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY)",
            "TRUNCATE alembic_version",
            f"INSERT INTO alembic_version VALUES ('{head}')",
        )

    def clone(self, database: str) -> str:
        """A copy of a database that nobody is connected to."""
        name = f"bench_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {database} STRATEGY file_copy")
        return name

    def drop(self, database: str) -> None:
        self.sql("postgres", f"DROP DATABASE {database} WITH (FORCE)")

    @asynccontextmanager
    async def wired(
        self,
        database: str,
        project: Project,
        *,
        url: str = "environment:BENCH_URL",
        compression: str = "none",
    ) -> AsyncIterator[Wired]:
        """The daemon's parts for this database, which is rehearsed as a schema; `url` says how env.py comes by it."""
        path = self.folder / f"{database}-{next(self._numbers)}.toml"
        path.write_text(self._configuration(database, project, path.with_suffix(""), url, compression))
        configuration = load_configuration(path)
        store = await SqliteStore.open_writing(store_directory(configuration))
        parts = compose(configuration, store, Happenings())
        try:
            guarded = parts.guarded[TARGET]
            yield Wired(parts, guarded, Planner(guarded, store, parts.clock))
        finally:
            await parts.close()

    def _configuration(
        self, database: str, project: Project, folder: Path, url: str, compression: str
    ) -> str:
        postgres = self.postgres
        return f"""
[store]
directory = "{folder}"
[[targets]]
name = "{TARGET}"
service = "{TARGET}"
environment = "staging"
[targets.database]
url = "postgresql://{postgres.user}@{postgres.host}:{postgres.port}/{database}"
password = "file:{self.folder}/password"
binaries = "{postgres.bin_directory}"
[targets.migrations]
directory = "{project.folder}"
python = ["{PYTHON}"]
url = "{url}"
[targets.scratch]
same_server = true
[targets.backup]
directory = "{folder}/backups"
compression = "{compression}"
[targets.rehearsal]
depth = "schema"
"""

    async def alembic(self, project: Project, database: str, *argv: str) -> float:
        """Run Alembic as a process; the seconds it took."""
        environment = {**os.environ, "BENCH_URL": self.postgres.url(database, driver="psycopg")}
        return await self.process([PYTHON, "-m", "alembic", *argv], environment, project.folder)

    async def process(self, argv: list[str], environment: dict[str, str], cwd: Path) -> float:
        """Run a process to its end; the seconds it took."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=cwd, env=environment, stderr=asyncio.subprocess.PIPE
        )
        words = (await process.communicate())[1].decode()
        if process.returncode != 0:
            raise RuntimeError(f"{argv} failed: {words[-500:]}")
        return time.monotonic() - began
