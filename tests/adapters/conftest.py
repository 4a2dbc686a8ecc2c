"""One embedded server for the session, a fresh database for each test, and small real Alembic projects."""

import importlib.util
import itertools
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import alembic.command
import alembic.config
import psycopg
import pytest

from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.adapters.worker.alembic import AlembicWorker
from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.settings import Backup, Database, Migrations, Scratch, SecretReference, Target

# The interpreter that runs the projects' migrations; another one tries the worker with other versions of Alembic.
PYTHON = os.environ.get("ROLLBACKD_TEST_TARGET_PYTHON", sys.executable)

ENV_PY = """
from logging.config import fileConfig

from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config


def run_migrations_online():
    connectable = engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with connectable.connect() as connection:
        context.configure(connection=connection, target_metadata=None)
        with context.begin_transaction():
            context.run_migrations()


run_migrations_online()
"""

SCRIPTS = {
    "r1": ("op.create_table('customer', sa.Column('id', sa.Integer, primary_key=True), sa.Column('name', sa.Text))",
           "op.drop_table('customer')"),
    "r2": ("op.add_column('customer', sa.Column('email', sa.Text))", "op.drop_column('customer', 'email')"),
    "r3": ("op.create_table('invoice', sa.Column('id', sa.Integer, primary_key=True))", "op.drop_table('invoice')"),
}  # fmt: skip


class Role:
    """A login role with a password, and the file that the password lies in."""

    def __init__(self, name: str, password: str, secret: SecretReference) -> None:
        self.name = name
        self.password = password
        self.secret = secret


class Stage:
    """What tests of one server share: databases, roles, targets."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._made: list[str] = []
        self._roles: list[str] = []
        secret = folder / "superuser"
        secret.write_text(server.password)
        secret.chmod(0o600)
        self.superuser = Role(server.user, server.password, SecretReference(f"file:{secret}"))

    def run(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in its own transaction; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(self.server.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def database(self, *statements: str, owner: str = "") -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run("postgres", f"CREATE DATABASE {name}" + (f" OWNER {owner}" if owner else ""))
        self._made.append(name)
        if statements:
            self.run(name, *statements)
        return name

    def role(self, attributes: str = "") -> Role:
        name = f"role_{uuid.uuid4().hex[:8]}"
        password = f"pw-{uuid.uuid4().hex}"
        self.run("postgres", f"CREATE ROLE {name} LOGIN PASSWORD '{password}' {attributes}")
        self._roles.append(name)
        secret = self.folder / name
        secret.write_text(password + "\n")
        secret.chmod(0o600)
        return Role(name, password, SecretReference(f"file:{secret}"))

    def url(self, database: str, role: Role | None = None) -> str:
        """Without a password, as the configuration wants it."""
        user = (role or self.superuser).name
        return f"postgresql://{user}@{self.server.host}:{self.server.port}/{database}"

    def target(self, database: str, role: Role | None = None, /, **sections: Any) -> Target:
        role = role or self.superuser
        settings: dict[str, Any] = {
            "database": Database(
                url=self.url(database, role), password=role.secret, binaries=str(self.server.bin_directory)
            ),
            "migrations": Migrations(directory="/nowhere", python=(sys.executable,)),
            "scratch": Scratch(same_server=True),
            "backup": Backup(directory=str(self.folder / "backups")),
        }
        return Target(name="shop", service="shop", environment="staging", **{**settings, **sections})

    def clean(self) -> None:
        for name in self._made:
            self.run("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for name in self._roles:
            for statement in (f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}"):
                self.run("postgres", statement)


class Project:
    """A small Alembic project on disk, of the generic template; its database is upgraded to the head."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.scripts = folder / "migrations"
        (self.scripts / "versions").mkdir(parents=True)
        self.env_py(ENV_PY)
        self.database = ""
        self.last = "None"

    def ini(self, url: str = "", more: str = "") -> None:
        escaped = url.replace("%", "%%")
        text = f"[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = os\nsqlalchemy.url = {escaped}\n{more}"
        (self.folder / "alembic.ini").write_text(text)

    def env_py(self, text: str) -> None:
        (self.scripts / "env.py").write_text(dedent(text))

    def revision(
        self,
        name: str,
        upgrade: str,
        downgrade: str,
        *,
        down: str | None = None,
        head: str = "",
        folder: str = "",
    ) -> Path:
        place = self.scripts / "versions" if not folder else Path(folder)
        path = place / f"{name}_.py"
        path.write_text(
            f'"""{name}"""\nfrom alembic import op\nimport sqlalchemy as sa\n{dedent(head)}\n'
            f"revision = {name!r}\ndown_revision = {self.last if down is None else down}\n\n\n"
            f"def upgrade():\n{indent(dedent(upgrade), '    ')}\n\n\ndef downgrade():\n{indent(dedent(downgrade), '    ')}\n"
        )
        self.last = repr(name)
        return path

    def upgrade(self, database: str = "") -> None:
        """Make the database and bring it to the head, with the env.py that stands here now."""
        self.database = database or self.stage.database()
        self.ini(self.stage.server.url(self.database, driver="psycopg"))
        alembic.command.upgrade(alembic.config.Config(str(self.folder / "alembic.ini")), "head")

    def migrations(self, **more: Any) -> Migrations:
        return Migrations(**{"directory": str(self.folder), "python": (PYTHON,), **more})

    def heads(self) -> list[str]:
        return [
            row[0]
            for row in self.stage.run(self.database, "SELECT version_num FROM alembic_version ORDER BY 1")
        ]

    def columns(self, table: str) -> list[str]:
        query = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' ORDER BY 1"
        return [row[0] for row in self.stage.run(self.database, query)]

    def comment(self) -> str | None:
        found: str | None = self.stage.run(
            self.database, "SELECT obj_description('alembic_version'::regclass)"
        )[0][0]
        return found


class SteppingClock:
    """Fulfils `ports.Clock`: a time that tests set, ids in order."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 22, 10, tzinfo=UTC)
        self._numbers = itertools.count(1)

    def now(self) -> datetime:
        return self.time

    def pass_by(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)

    def new_id(self, prefix: str) -> str:
        return f"{prefix}-{next(self._numbers):04}"


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(
        settings={"max_prepared_transactions": "5", "track_activities": "on"}
    ) as running:
        yield running


@pytest.fixture
def stage(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "stage"
    folder.mkdir()
    made = Stage(server, folder)
    yield made
    made.clean()


@pytest.fixture
def bare_project(stage: Stage, tmp_path: Path) -> Project:
    """A project without revisions and without a database."""
    return Project(stage, tmp_path / "project")


@pytest.fixture
def project(bare_project: Project) -> Project:
    """r1 makes `customer`, r2 adds `customer.email`, r3 makes `invoice`; the database stands at r3."""
    for name, (upgrade, downgrade) in SCRIPTS.items():
        bare_project.revision(name, upgrade, downgrade)
    bare_project.upgrade()
    return bare_project


@pytest.fixture
def clock() -> SteppingClock:
    return SteppingClock()


WorkerMaker = Callable[..., AlembicWorker]


@pytest.fixture
async def make_worker(stage: Stage, tmp_path: Path) -> AsyncIterator[WorkerMaker]:
    """Makes workers for a project; `role` connects, `python`, `url` and the like go to its `migrations` section."""
    made: list[AlembicWorker] = []

    def make(project: Project, role: Role | None = None, **more: Any) -> AlembicWorker:
        target = stage.target(project.database, role, migrations=project.migrations(**more))
        worker = AlembicWorker(target, tmp_path / "kept")
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.close()


@pytest.fixture
async def make_reader(stage: Stage) -> AsyncIterator[Callable[..., PostgresReader]]:
    """Makes readers of a database, closed after the test."""
    made: list[PostgresReader] = []

    def make(database: str, role: Role | None = None, /, **sections: Any) -> PostgresReader:
        reader = PostgresReader(stage.target(database, role, **sections))
        made.append(reader)
        return reader

    yield make
    for reader in made:
        await reader.close()


@pytest.fixture(scope="session")
def async_python() -> str:
    """An interpreter with SQLAlchemy's async extra: this one where it has greenlet, or the one that is named."""
    named = os.environ.get("ROLLBACKD_TEST_ASYNC_PYTHON", "")
    if named:
        return named
    if importlib.util.find_spec("greenlet") is None:
        missing = "an async env.py needs greenlet, which isn't installed here"
        if os.environ.get("ROLLBACKD_REQUIRE_ALL") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return sys.executable
