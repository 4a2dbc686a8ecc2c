"""Projects as others have them: their own interpreter, which holds nothing of ours, and every kind of env.py."""

import fcntl
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import ENV_PY, NEW, OLD, Ground, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGES = ("alembic", "sqlalchemy", "psycopg[binary]", "asyncpg", "greenlet")
ASYNC_ENV_PY = """
import asyncio
import os

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine


def do_run_migrations(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def run_async_migrations():
    connectable = create_async_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
    async with connectable.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await connectable.dispose()


asyncio.run(run_async_migrations())
"""
CONFIGURE = "context.configure(connection=connection"


@pytest.fixture(scope="session")
def foreign_python() -> str:
    """The interpreter of an environment with Alembic and drivers and without rollbackd; kept for later sessions."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.gettempdir()) / f"rollbackd-foreign-{os.getuid()}-{version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    python = folder / "bin" / "python"
    # Test processes that run at the same time make it once.
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".complete").exists():
            venv.create(folder, with_pip=False, symlinks=True, clear=False)
            install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *PACKAGES]
            subprocess.run(install, check=True, timeout=240)
            (folder / ".complete").touch()
    return str(python)


@pytest.fixture
def project(foreign_python: str, tmp_path: Path) -> Project:
    """One revision, `first`: a table of customers."""
    return first_revision(Project(tmp_path / "project", foreign_python))


def first_revision(project: Project) -> Project:
    project.revision(
        "first",
        "op.create_table('customers', sa.Column('id', sa.Integer, primary_key=True), sa.Column('name', sa.Text))\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 500) n\")",
        "op.drop_table('customers')",
    )
    return project


def add_column(project: Project, name: str, **more: Any) -> None:
    """A revision of this name that adds a column of this name to customers."""
    project.revision(
        name,
        f"op.add_column('customers', sa.Column('{name}', sa.Text))",
        f"op.drop_column('customers', '{name}')",
        **more,
    )


def columns(ground: Ground) -> list[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'customers' ORDER BY 1"
    return [row[0] for row in ground.query(query)]


def rollback(ground: Ground, to: str) -> subprocess.CompletedProcess[str]:
    return ground.rollbackd("rollback", "shop", "--to", to, "--reason", "why", "--release", OLD, "--yes")


def test_the_environment_holds_nothing_of_ours(foreign_python: str) -> None:
    """What follows proves nothing unless the project's interpreter has Alembic and lacks rollbackd."""
    script = "import importlib.util as u; print([n for n in ('alembic', 'rollbackd') if u.find_spec(n)])"
    found = subprocess.run([foreign_python, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['alembic']"


@pytest.mark.parametrize(
    ("env_py", "driver"), [(ENV_PY, "psycopg"), (ASYNC_ENV_PY, "asyncpg")], ids=["sync", "async"]
)
def test_a_bad_deploy_is_rolled_back_by_itself(
    make_ground: MakeGround, foreign_python: str, tmp_path: Path, env_py: str, driver: str
) -> None:
    """From the gate over the deploy and a failing probe to the old release on the old schema, with every row."""
    project = first_revision(Project(tmp_path / "project", foreign_python, driver))
    project.env_py(env_py)
    add_column(project, "nickname")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    customers = ground.rows("customers")
    ground.start()

    (ground.service / "broken").write_text(NEW)
    ground.deploy()
    assert ground.heads() == ["nickname"]
    ground.query("INSERT INTO customers VALUES (501, 'new', 'newcomer')")

    run = ground.ended_run()
    assert (run["state"], run["trigger"]) == ("succeeded", "automatic"), run["statement"]
    assert ground.heads() == ["first"]
    assert ground.rows("customers") == [*customers, (501, "new")]
    assert ground.running() == OLD
    assert ground.commands() == ["stop", f"start {OLD}"]
    (decision,) = [d for d in ground.ask("GET", "/api/v1/decisions")[1] if d["run"] == run["id"]]
    assert decision["decision"]["row"] == "application-fails-after-good-migration"


def test_a_merge_is_taken_off_by_naming_the_heads_that_remain(
    make_ground: MakeGround, project: Project
) -> None:
    """`-1` could mean either parent, and is refused; with the named heads the merge comes off and both branches stay."""
    add_column(project, "left")
    add_column(project, "right", down="first")
    project.revision("merged", "pass", "pass", down=("left", "right"))
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")

    refused = rollback(ground, "-1")
    assert refused.returncode == 1
    assert "-1 is ambiguous: merged merges left, right; say --to left,right" in refused.stderr
    assert ground.heads() == ["merged"]

    done = rollback(ground, "left,right")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ground.heads() == ["left", "right"]
    assert columns(ground) == ["id", "left", "name", "right"]


def test_one_branch_is_rolled_back_across_a_merge(make_ground: MakeGround, project: Project) -> None:
    """To the head of one branch alone: the merge and the other branch are taken off."""
    add_column(project, "left")
    add_column(project, "right", down="first")
    project.revision("merged", "pass", "pass", down=("left", "right"))
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")
    refused = rollback(ground, "left")
    assert refused.returncode == 1
    assert "leaves the heads left, right" in refused.stderr
    done = rollback(ground, "first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ground.heads() == ["first"]
    assert columns(ground) == ["id", "name"]


@pytest.fixture
def each_in_its_transaction(project: Project) -> Project:
    """An env.py with `transaction_per_migration=True`."""
    project.env_py(ENV_PY.replace(CONFIGURE, f"{CONFIGURE}, transaction_per_migration=True"))
    return project


def test_transaction_per_migration_is_one_step_for_each_revision(
    make_ground: MakeGround, each_in_its_transaction: Project
) -> None:
    """What may be committed one by one is journalled one by one."""
    project = each_in_its_transaction
    add_column(project, "nickname")
    add_column(project, "tier")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")
    ground.start()
    ground.ask_rollback("first")
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert [s["revisions"] for s in run["steps"] if s["kind"] == "downgrade"] == [["tier"], ["nickname"]]
    assert ground.heads() == ["first"]
    assert columns(ground) == ["id", "name"]


def test_a_failure_between_two_transactions_is_held_and_says_where_the_database_stands(
    make_ground: MakeGround, each_in_its_transaction: Project
) -> None:
    """The first revision came off for good, the second didn't: a person has to say how to go on."""
    project = each_in_its_transaction
    # No copy shows it: what fails is something of the guarded database itself.
    only_there = "SELECT 1 / starts_with(current_database(), 'rollbackd')::int"
    project.revision("stubborn", "pass", f'op.execute("{only_there}")')
    add_column(project, "tier")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")
    done = rollback(ground, "first")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the database was downgraded, and then archive, and downgrade stubborn" in done.stdout
    assert "division by zero" in done.stdout
    assert ground.heads() == ["stubborn"]
    assert ground.running() == ""


def test_a_failure_that_the_rehearsal_shows_is_refused_with_nothing_changed(
    make_ground: MakeGround, each_in_its_transaction: Project
) -> None:
    """Without it the first revision would have come off for good."""
    project = each_in_its_transaction
    project.revision("stubborn", "pass", "op.execute('SELECT 1 / 0')")
    add_column(project, "tier")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")
    before = ground.world()
    done = rollback(ground, "first")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stubborn will fail" in done.stderr
    assert "division by zero" in done.stderr
    assert ground.world() == before


def test_a_version_table_of_another_name_in_another_schema(make_ground: MakeGround, project: Project) -> None:
    """Configured it is used; a configuration that names another one is found by check-config."""
    table = 'version_table="shop_version", version_table_schema="ops"'
    project.env_py(ENV_PY.replace(CONFIGURE, f"{CONFIGURE}, {table}"))
    add_column(project, "nickname")
    ground = make_ground(project)
    ground.query("CREATE SCHEMA ops")
    project.alembic(ground.url(), "upgrade", "head")

    checked = ground.rollbackd("check-config")
    assert checked.returncode == 1
    assert "env.py uses the version table shop_version: set 'migrations.version_table'" in checked.stdout

    ground.configure(migrations={"version_table": "shop_version", "version_table_schema": "ops"})
    checked = ground.rollbackd("check-config")
    assert checked.returncode == 0, checked.stdout
    done = rollback(ground, "first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ground.heads("ops.shop_version") == ["first"]
    assert columns(ground) == ["id", "name"]
