"""The migration worker on real Alembic projects and a real PostgreSQL."""

import ast
import asyncio
import os
import re
import shutil
import signal
import sys
import time
import venv
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

import rollbackd
from rollbackd.adapters.worker.child.marks import LOCK_KEY
from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.schema import TableName
from rollbackd.errors import PermanentError, RefusedError, RollbackdError, TransientError
from rollbackd.settings import Duration, SecretReference

pytestmark = [pytest.mark.xdist_group("adapters-worker"), pytest.mark.timeout(60)]

Downgrade = Callable[..., Awaitable[Any]]


@pytest.fixture
def downgrade(make_reader: Any) -> Downgrade:
    """Downgrades with the identity that the reader finds; `lines` collects the log."""

    async def run(
        worker: Any,
        database: str,
        revisions: tuple[str, ...] = ("r3",),
        from_heads: tuple[str, ...] = ("r3",),
        to_heads: tuple[str, ...] = ("r2",),
        *,
        lines: list[str] | None = None,
        timeout_s: float = 20,
        guarded: str = "",
        role: Any = None,
        scripts_sha256: str = "",
        archive: tuple[ArchiveItem, ...] = (),
    ) -> Any:
        identity = await make_reader(guarded or database, role).identity()

        async def on_log(text: str) -> None:
            if lines is not None:
                lines.append(text)

        return await worker.downgrade(
            revisions,
            from_heads,
            to_heads,
            run="run-1",
            identity=identity,
            scripts_sha256=scripts_sha256 or (await worker.describe()).scripts_sha256,
            archive=archive,
            timeout_s=timeout_s,
            on_log=on_log,
        )

    return run


def tables(stage: Any, database: str) -> set[str]:
    return {
        row[0]
        for row in stage.run(
            database,
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
        )
    }


# -- describing and reading ---------------------------------------------------------------------------------------------


async def test_describing_gives_the_graph_the_digest_and_the_versions(
    bare_project: Any, make_worker: Any
) -> None:
    bare_project.revision("a1", "pass", "pass")
    bare_project.revision("b1", "pass", "pass", down="'a1'", head="branch_labels = ('blue',)")
    bare_project.revision("c1", "pass", "pass", down="'a1'", head="depends_on = 'b1'")
    bare_project.revision("m1", "pass", "pass", down="('b1', 'c1')")
    bare_project.ini()
    described = await make_worker(bare_project).describe()
    found = {r.id: r for r in described.revisions}
    assert {r: found[r].down for r in found} == {"a1": (), "b1": ("a1",), "c1": ("a1",), "m1": ("b1", "c1")}
    assert found["c1"].depends_on == ("b1",)
    assert found["b1"].branch_labels == ("blue",)
    assert found["a1"].title == "a1"
    assert len(described.scripts_sha256) == 64
    assert bare_project.migrations().python[0] in described.python
    assert re.match(r"\d+\.\d+", described.alembic)
    assert re.match(r"\d+\.\d+", described.sqlalchemy)


async def test_reading_tells_what_each_downgrade_is_without_a_database(
    bare_project: Any, make_worker: Any
) -> None:
    revision = bare_project.revision
    revision(
        "w",
        "op.create_table('t', sa.Column('id', sa.Integer))",
        "op.drop_table('t')\nop.drop_column('u', 'c', schema='s')",
    )
    revision("e", "op.execute('SELECT 1')", "pass")
    revision("n", "pass", '"""Nothing to do."""')
    revision("r", "pass", "raise NotImplementedError('one way')")
    revision("q", "pass", "helper()", head="def helper():\n    input('sure?')\n")
    revision("a", "pass", "with op.get_context().autocommit_block():\n    op.execute('SELECT 1')")
    revision("c", "pass", "op.execute('DROP INDEX CONCURRENTLY i')")
    revision("x", "pass", "import sys\nsys.exit(3)")
    revision("b", "pass", "op.get_bind().execute(sa.text('SELECT 1')).scalar_one()")
    bare_project.ini()
    read = await make_worker(bare_project).read(tuple("wenrqacxb"))
    assert {k: v.downgrade.value for k, v in read.items()} == {
        "w": "written", "e": "empty", "n": "empty", "r": "raises", "q": "asks", "a": "written", "c": "written",
        "x": "written", "b": "written",
    }  # fmt: skip
    assert [s.split()[:2] for s in read["w"].statements] == [["DROP", "TABLE"], ["ALTER", "TABLE"]]
    assert [(c.name, c.table, c.column) for c in read["w"].calls] == [
        ("drop_table", "t", ""),
        ("drop_column", "s.u", "c"),
    ]
    assert (read["e"].upgrade_is_empty, read["n"].upgrade_is_empty) == (False, True)
    assert "autocommit_block" in read["a"].stands_alone
    assert "concurrently" in read["c"].stands_alone
    assert read["w"].stands_alone == ""
    assert read["x"].failed
    assert read["b"].failed


async def test_a_revision_without_a_script_is_refused_by_name(project: Any, make_worker: Any) -> None:
    with pytest.raises(RefusedError, match="revision zzz has no script here"):
        await make_worker(project).read(("zzz",))


async def test_a_script_that_cannot_be_imported_is_refused_with_its_place(
    bare_project: Any, make_worker: Any
) -> None:
    bare_project.revision("r1", "pass", "pass", head="import no_such_module_anywhere")
    bare_project.ini()
    with pytest.raises(RefusedError, match=r"no_such_module_anywhere.*r1_\.py"):
        await make_worker(bare_project).describe()


async def test_a_folder_of_scripts_named_alembic_does_not_hide_the_package(
    bare_project: Any, make_worker: Any
) -> None:
    (bare_project.folder / "alembic").mkdir()
    (bare_project.folder / "alembic" / "__init__.py").write_text("raise RuntimeError('not me')")
    bare_project.revision("r1", "pass", "pass")
    bare_project.ini()
    assert [r.id for r in (await make_worker(bare_project).describe()).revisions] == ["r1"]


# -- running env.py -----------------------------------------------------------------------------------------------------


async def test_the_environment_is_what_env_py_shows_and_nothing_is_migrated(
    project: Any, make_worker: Any
) -> None:
    seen = await make_worker(project).environment()
    assert (seen.heads, seen.version_table, seen.version_table_schema) == (("r3",), "alembic_version", "")
    assert (seen.transaction_per_migration, seen.driver) == (False, "psycopg")
    assert project.heads() == ["r3"]


async def test_asking_for_the_environment_of_an_empty_database_makes_no_version_table(
    project: Any, make_worker: Any, stage: Any
) -> None:
    empty = stage.database()
    project.ini(stage.server.url(empty, driver="psycopg"))
    assert (await make_worker(project).environment()).heads == ()
    assert tables(stage, empty) == set()


async def test_a_downgrade_takes_off_the_revisions_and_streams_each_statement(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    lines: list[str] = []
    result = await downgrade(
        make_worker(project), project.database, ("r3", "r2"), ("r3",), ("r1",), lines=lines
    )
    assert project.heads() == ["r1"]
    assert project.columns("customer") == ["id", "name"]
    text = "\n".join(lines)
    assert text.index("-- downgrade r3") < text.index("DROP TABLE invoice") < text.index("-- downgrade r2")
    assert "ALTER TABLE customer DROP COLUMN email" in text
    assert "UPDATE alembic_version" in text
    assert result.marker
    assert result.statements >= 4


async def test_a_downgrade_to_base_empties_the_version_table(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    await downgrade(make_worker(project), project.database, ("r3", "r2", "r1"), ("r3",), ())
    assert project.heads() == []
    assert tables(stage, project.database) == {"alembic_version"}


@pytest.mark.parametrize("way", ["option", "environment:SHOP_URL"])
async def test_env_py_is_given_the_url_as_configured(
    way: str, project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    role = stage.role("SUPERUSER")
    project.ini()
    if way != "option":
        text = (project.scripts / "env.py").read_text()
        project.env_py(
            text.replace(
                "config = context.config\n",
                "import os\nconfig = context.config\nconfig.set_main_option('sqlalchemy.url', os.environ['SHOP_URL'])\n",
            )
        )
    worker = make_worker(project, role, url=way)
    await downgrade(worker, project.database)
    assert project.heads() == ["r2"]


ASYNC_ENV = """
import asyncio

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

config = context.config


def do_run_migrations(connection):
    context.configure(connection=connection, target_metadata=None)
    with context.begin_transaction():
        context.run_migrations()


async def run_async_migrations():
    connectable = async_engine_from_config(
        config.get_section(config.config_ini_section, {}), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    async with connectable.connect() as connection:
        await connection.run_sync(do_run_migrations)
    await connectable.dispose()


asyncio.run(run_async_migrations())
"""


async def test_an_async_env_py_with_asyncpg_is_met_on_its_own_connection(
    project: Any, make_worker: Any, downgrade: Any, stage: Any, async_python: str
) -> None:
    project.env_py(ASYNC_ENV)
    project.ini()
    worker = make_worker(project, url="option", driver="asyncpg", python=(async_python,))
    assert (await worker.environment()).driver == "asyncpg"
    lines: list[str] = []
    result = await downgrade(worker, project.database, ("r3", "r2"), ("r3",), ("r1",), lines=lines)
    assert result.marker
    assert any("DROP TABLE invoice" in line for line in lines)
    assert project.heads() == ["r1"]
    impatient = make_worker(
        project, url="option", driver="asyncpg", python=(async_python,), lock_timeout=Duration(0.3)
    )
    with psycopg.connect(stage.server.url(project.database)) as other:
        other.execute("LOCK TABLE customer IN ACCESS SHARE MODE")
        with pytest.raises(TransientError, match="lock"):
            await downgrade(impatient, project.database, ("r1",), ("r1",), ())
    assert project.heads() == ["r1"]


async def test_an_env_py_that_prints_cannot_touch_the_protocol(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    text = (project.scripts / "env.py").read_text()
    project.env_py(
        "import os, sys\nprint('{\"id\": 2, \"type\": \"result\"}')\nos.write(1, b'raw')\nassert sys.stdin.read() == ''\n"
        + text
    )
    await downgrade(make_worker(project), project.database)
    assert project.heads() == ["r2"]


async def test_an_env_py_that_begins_its_own_transaction_commits_version_and_marker_together(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    text = (project.scripts / "env.py").read_text()
    project.env_py(text.replace("connectable.connect()", "connectable.begin()"))
    result = await downgrade(make_worker(project), project.database)
    assert project.heads() == ["r2"]
    assert result.marker
    assert "run-1" in project.comment()


async def test_an_env_py_with_a_pool_of_its_own_leaves_no_lock_and_no_session_behind(
    project: Any, make_worker: Any, downgrade: Any, make_reader: Any, stage: Any
) -> None:
    text = (project.scripts / "env.py").read_text()
    (project.folder / "shop_db.py").write_text("from sqlalchemy import create_engine\nengines = []\n")
    project.env_py(
        text.replace(
            "with connectable", "import shop_db; shop_db.engines.append(connectable)\n    with connectable"
        ).replace("poolclass=pool.NullPool", "pool_size=1")
    )
    await downgrade(make_worker(project), project.database)
    assert await make_reader(project.database).wait_for_migration_lock(2)
    assert stage.run(
        project.database, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rollbackd run%'"
    ) == [(0,)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("input('go on?')", r"asks a question \(input\(\) at env\.py:2\)"),
        ("raise RuntimeError('no settings')", r"RuntimeError: no settings \(at env\.py:2\)"),
        ("import sys; sys.exit(4)", r"sys\.exit\(\) at env\.py:2"),
    ],
)
async def test_an_env_py_that_cannot_run_unattended_is_refused_with_its_place(
    line: str, expected: str, project: Any, make_worker: Any, downgrade: Any
) -> None:
    project.env_py("# settings\n" + line + "\n")
    with pytest.raises(RefusedError, match=expected):
        await make_worker(project).environment()
    with pytest.raises(RefusedError, match=expected):
        await downgrade(make_worker(project), project.database)
    assert project.heads() == ["r3"]


async def test_an_env_py_that_never_migrates_is_refused(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    project.env_py((project.scripts / "env.py").read_text().replace("context.run_migrations()", "pass"))
    with pytest.raises(RefusedError, match=r"never called context\.run_migrations"):
        await make_worker(project).environment()
    with pytest.raises(RefusedError, match="nothing was migrated"):
        await downgrade(make_worker(project), project.database)


async def test_an_env_py_that_connects_to_another_database_changes_neither(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    other = stage.database()
    with pytest.raises(RefusedError, match="another server or name") as refused:
        await downgrade(make_worker(project), project.database, guarded=other)
    assert "nothing was changed" in str(refused.value)
    assert project.heads() == ["r3"]
    assert project.comment() is None


async def test_an_env_py_that_connects_to_sqlite_is_refused(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    project.ini("sqlite:///shop.sqlite")
    with pytest.raises(RefusedError, match="sqlite; only PostgreSQL"):
        await make_worker(project).environment()
    with pytest.raises(RefusedError, match="sqlite; only PostgreSQL"):
        await downgrade(make_worker(project), project.database)


# -- interpreters -------------------------------------------------------------------------------------------------------


async def test_an_interpreter_without_alembic_is_refused_by_name(
    project: Any, make_worker: Any, tmp_path: Path
) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    with pytest.raises(
        RefusedError, match=r"bare/bin/python can't import alembic: 'migrations\.python' \(or --python\)"
    ):
        await make_worker(project, python=(str(tmp_path / "bare" / "bin" / "python"),)).describe()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("/no/such/python",), "can't be started"),
        (("cat",), "ended with exit code|doesn't answer"),
        (("sh", "-c", "echo hello; sleep 5"), "doesn't answer as the migration worker"),
        (("sh", "-c", "echo '\"text\"'; sleep 5"), "doesn't answer as the migration worker"),
        (("sh", "-c", "echo no such image >&2; exit 125"), "exit code 125.*no such image"),
        (("sh", "-c", "yes"), "doesn't answer as the migration worker"),
    ],
)
async def test_a_command_that_is_no_python_is_refused_in_one_sentence(
    command: tuple[str, ...], expected: str, project: Any, make_worker: Any
) -> None:
    with pytest.raises(RefusedError, match=expected) as refused:
        await make_worker(project, python=command, start_timeout=Duration(10)).describe()
    assert "\n" not in str(refused.value)


async def test_a_command_that_says_nothing_is_ended_in_time(project: Any, make_worker: Any) -> None:
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"longer than 0\.5 s"):
        await make_worker(project, python=("sh", "-c", "sleep 30"), start_timeout=Duration(0.5)).describe()
    assert time.monotonic() - began < 5


# -- the marker ---------------------------------------------------------------------------------------------------------


async def test_the_marker_stands_beside_a_comment_that_was_there(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    stage.run(
        project.database,
        "COMMENT ON TABLE alembic_version IS E'owned by the ''shop'' team\\nrollbackd: run-0 took off r4'",
    )
    await downgrade(make_worker(project), project.database, ("r3", "r2"), ("r3",), ("r1",))
    assert project.comment() == "owned by the 'shop' team\nrollbackd: run-1 took off r2"


async def test_a_role_that_does_not_own_the_version_table_downgrades_without_a_marker(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    role = stage.role()
    stage.run(
        project.database,
        f"GRANT ALL ON alembic_version TO {role.name}", f"GRANT ALL ON SCHEMA public TO {role.name}",
        f"ALTER TABLE invoice OWNER TO {role.name}",
    )  # fmt: skip
    result = await downgrade(make_worker(project, role, url="option"), project.database, role=role)
    assert not result.marker
    assert project.heads() == ["r2"]
    assert project.comment() is None


async def test_an_ordinary_role_downgrades_where_nobody_may_ask_for_the_system_identifier(
    project: Any, make_worker: Any, downgrade: Any, make_reader: Any, stage: Any
) -> None:
    role = stage.role()
    stage.run(
        project.database,
        f"ALTER TABLE alembic_version OWNER TO {role.name}", f"ALTER TABLE invoice OWNER TO {role.name}",
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC",
    )  # fmt: skip
    identity = await make_reader(project.database, role).identity()
    assert identity.system_identifier.startswith("started ")
    assert identity == await make_reader(project.database, role).identity()
    result = await downgrade(make_worker(project, role, url="option"), project.database, role=role)
    assert result.marker
    assert project.heads() == ["r2"]


async def test_where_only_the_reader_may_ask_for_the_system_identifier_the_grant_is_named(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    role = stage.role()
    stage.run(project.database, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    with pytest.raises(RefusedError, match=r"grant EXECUTE"):
        await downgrade(make_worker(project, role, url="option"), project.database)
    assert project.heads() == ["r3"]


# -- failing ------------------------------------------------------------------------------------------------------------


async def test_a_lock_not_had_in_time_is_transient_and_nothing_is_changed(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    with psycopg.connect(stage.server.url(project.database)) as other:
        other.execute("SELECT count(*) FROM customer")
        with pytest.raises(TransientError, match="lock timeout"):
            await downgrade(
                make_worker(project, lock_timeout=Duration(0.3)),
                project.database,
                ("r3", "r2"),
                ("r3",),
                ("r1",),
            )
    assert project.heads() == ["r3"]
    assert "invoice" in tables(stage, project.database)


async def test_while_another_session_holds_the_migration_lock_the_worker_waits_and_gives_up(
    project: Any, make_worker: Any, downgrade: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollbackd.adapters.worker.alembic.LOCK_WAIT_S", 0.5)
    with psycopg.connect(stage.server.url(project.database), autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        with pytest.raises(TransientError, match="another rollbackd session migrates"):
            await downgrade(make_worker(project), project.database)
    assert project.heads() == ["r3"]


async def test_when_the_second_of_two_revisions_fails_both_are_undone(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    project.revision(
        "r2",
        "op.add_column('customer', sa.Column('email', sa.Text))",
        "op.drop_column('customer', 'nonsense')",
        down="'r1'",
    )
    with pytest.raises(PermanentError, match=r'column "nonsense".*SQLSTATE 42703'):
        await downgrade(make_worker(project), project.database, ("r3", "r2"), ("r3",), ("r1",))
    assert project.heads() == ["r3"]
    assert "invoice" in tables(stage, project.database)
    assert project.comment() is None


async def test_with_a_transaction_per_migration_what_came_before_the_failure_stays(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    text = (project.scripts / "env.py").read_text()
    project.env_py(
        text.replace("target_metadata=None", "target_metadata=None, transaction_per_migration=True")
    )
    project.revision(
        "r2",
        "op.add_column('customer', sa.Column('email', sa.Text))",
        "op.drop_column('customer', 'nonsense')",
        down="'r1'",
    )
    worker = make_worker(project)
    assert (await worker.environment()).transaction_per_migration
    with pytest.raises(PermanentError):
        await downgrade(worker, project.database, ("r3", "r2"), ("r3",), ("r1",))
    assert project.heads() == ["r2"]
    assert "invoice" not in tables(stage, project.database)
    assert project.comment() == "rollbackd: run-1 took off r3"


async def test_an_autocommit_block_runs_under_the_migration_lock(
    bare_project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    project = bare_project
    project.revision(
        "r1",
        "op.execute('CREATE TABLE t (i int)')\nop.execute('CREATE INDEX i ON t (i)')",
        "op.drop_table('t')",
    )
    held = "assert op.get_bind().scalar(sa.text(\"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()\")) == 1"
    project.revision(
        "r2",
        "pass",
        f"with op.get_context().autocommit_block():\n    op.execute('DROP INDEX CONCURRENTLY i')\n    {held}",
    )
    project.upgrade()
    result = await downgrade(make_worker(project), project.database, ("r2",), ("r2",), ("r1",))
    assert project.heads() == ["r1"]
    assert result.marker
    assert stage.run(project.database, "SELECT count(*) FROM pg_class WHERE relname = 'i'") == [(0,)]


async def test_heads_other_than_the_plans_are_refused(
    project: Any, make_worker: Any, downgrade: Any, stage: Any
) -> None:
    with pytest.raises(
        RefusedError, match="the version table says r3, the plan begins at r2: nothing was changed"
    ):
        await downgrade(make_worker(project), project.database, ("r2",), ("r2",), ("r1",))
    assert project.columns("customer") == ["email", "id", "name"]
    empty = stage.database()
    text = (project.scripts / "env.py").read_text()
    project.env_py(
        text.replace("target_metadata=None", "target_metadata=None, transaction_per_migration=True")
    )
    project.ini(stage.server.url(empty, driver="psycopg"))
    with pytest.raises(RefusedError, match="the version table says base"):
        await downgrade(make_worker(project), empty)
    assert tables(stage, empty) == set()


async def test_no_error_of_a_worker_holds_a_secret(
    project: Any, make_worker: Any, stage: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush:hush@hush/hush")
    secret.chmod(0o600)
    role = type(stage.superuser)("postgres", "", SecretReference(f"file:{secret}"))
    project.ini()
    errors: list[RollbackdError] = []
    for line in (
        "",
        "raise RuntimeError(str(config.get_main_option('sqlalchemy.url')))",
        "import os; os.write(2, config.get_main_option('sqlalchemy.url').encode()); os._exit(7)",
        "import sqlalchemy; sqlalchemy.create_engine('nonsense+' + config.get_main_option('sqlalchemy.url'))",
    ):
        text = project.scripts.joinpath("env.py").read_text()
        project.env_py(text.replace("config = context.config\n", f"config = context.config\n{line}\n"))
        with pytest.raises(RollbackdError) as failed:
            await make_worker(
                project, role, url="option", secret_environment={"TOKEN": SecretReference(f"file:{secret}")}
            ).environment()
        project.env_py(text)
        errors.append(failed.value)
    assert len({str(error) for error in errors}) == 4
    for error in errors:
        assert "hush" not in str(error), error
        assert "\n" not in str(error)


# -- killing ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_project(bare_project: Any) -> Any:
    bare_project.revision("r1", "op.execute('CREATE TABLE t (i int)')", "op.drop_table('t')")
    bare_project.revision(
        "r2", "op.execute('CREATE TABLE u (i int)')", "op.drop_table('u')\nop.execute('SELECT pg_sleep(4)')"
    )
    bare_project.upgrade()
    return bare_project


async def test_a_child_killed_in_a_statement_leaves_the_database_where_it_was_and_no_backend(
    slow_project: Any, make_worker: Any, downgrade: Any, make_reader: Any, stage: Any
) -> None:
    project, worker = slow_project, make_worker(slow_project)
    await worker.prestart()
    child = worker._ready._process.pid
    lines: list[str] = []
    asked = asyncio.create_task(downgrade(worker, project.database, ("r2",), ("r2",), ("r1",), lines=lines))
    while not any("pg_sleep" in line for line in lines):  # noqa: ASYNC110 - told by another process
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    reader = make_reader(project.database)
    assert not await reader.wait_for_migration_lock(0)
    killed = time.monotonic()
    os.kill(child, signal.SIGKILL)
    with pytest.raises(TransientError, match="killed by signal 9"):
        await asked
    assert await reader.wait_for_migration_lock(3)
    assert time.monotonic() - killed < 2.5
    assert project.heads() == ["r2"]
    assert tables(stage, project.database) == {"alembic_version", "t", "u"}


PARENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.adapters.worker.alembic import AlembicWorker
from rollbackd.settings import Database, Migrations, SecretReference, Target

async def main(folder, url, secret):
    target = Target(name="shop", service="shop", environment="staging",
        database=Database(url=url, password=SecretReference("file:" + secret)),
        migrations=Migrations(directory=folder, python=(sys.executable,)))
    identity = await PostgresReader(target).identity()
    async def on_log(text):
        print(text, flush=True)
    worker = AlembicWorker(target, Path(folder) / "kept")
    scripts = (await worker.describe()).scripts_sha256
    await worker.downgrade(("r2",), ("r2",), ("r1",), run="run-9", identity=identity,
        scripts_sha256=scripts, archive=(), timeout_s=30, on_log=on_log)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_child_whose_parent_is_killed_finishes_what_it_began(
    slow_project: Any, make_reader: Any, stage: Any, tmp_path: Path
) -> None:
    project = slow_project
    noisy = "op.drop_table('u')\nop.execute('SELECT pg_sleep(1)')\nimport sys\nprint('x' * 300000)\nprint('y', file=sys.stderr)"
    project.revision("r2", "pass", noisy, down="'r1'")
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(project.folder), stage.url(project.database), stage.superuser.secret.removeprefix("file:"),
        stdout=asyncio.subprocess.PIPE, env={"PYTHONPATH": str(Path(rollbackd.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert parent.stdout is not None
    while b"pg_sleep" not in (line := await asyncio.wait_for(parent.stdout.readline(), 20)):
        assert line, "the parent ended early"
    parent.kill()
    await parent.wait()
    reader = make_reader(project.database)
    assert not await reader.wait_for_migration_lock(0)
    assert await reader.wait_for_migration_lock(10)
    assert project.heads() == ["r1"]
    assert project.comment() == "rollbackd: run-9 took off r2"
    assert tables(stage, project.database) == {"alembic_version", "t"}


async def test_a_downgrade_that_takes_too_long_is_ended_with_its_child(
    slow_project: Any, make_worker: Any, downgrade: Any, make_reader: Any
) -> None:
    with pytest.raises(TransientError, match="longer than 1 s for 'downgrade'"):
        await downgrade(
            make_worker(slow_project), slow_project.database, ("r2",), ("r2",), ("r1",), timeout_s=1
        )
    assert await make_reader(slow_project.database).wait_for_migration_lock(3)
    assert slow_project.heads() == ["r2"]


async def test_a_log_that_cannot_be_kept_ends_the_downgrade_instead_of_leaving_it_unheard(
    slow_project: Any, make_worker: Any, make_reader: Any
) -> None:
    async def on_log(text: str) -> None:
        if "DROP TABLE" in text:
            raise TransientError("the store is full")

    reader = make_reader(slow_project.database)
    worker = make_worker(slow_project)
    identity, scripts = await reader.identity(), (await worker.describe()).scripts_sha256
    with pytest.raises(TransientError, match="the store is full"):
        await worker.downgrade(
            ("r2",),
            ("r2",),
            ("r1",),
            run="run-1",
            identity=identity,
            scripts_sha256=scripts,
            archive=(),
            timeout_s=20,
            on_log=on_log,
        )
    assert await reader.wait_for_migration_lock(3)
    assert slow_project.heads() == ["r2"]


# -- keeping scripts ----------------------------------------------------------------------------------------------------


async def test_a_waiting_child_is_thrown_away_when_a_script_changes(project: Any, make_worker: Any) -> None:
    worker = make_worker(project)
    await worker.prestart()
    first = await worker.describe()
    child = worker._ready
    assert await worker.describe() is first
    assert worker._ready is child
    project.revision("r4", "pass", "pass")
    second = await worker.describe()
    assert worker._ready is not child
    assert not child.is_alive
    assert {r.id for r in second.revisions} == {"r1", "r2", "r3", "r4"}
    assert second.scripts_sha256 != first.scripts_sha256


async def test_a_waiting_child_is_thrown_away_when_the_release_folder_moves(
    project: Any, make_worker: Any, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    live.symlink_to(project.folder)
    worker = make_worker(project, directory=str(live))
    await worker.prestart()
    child = worker._ready
    shutil.copytree(project.folder, tmp_path / "next")
    live.unlink()
    live.symlink_to(tmp_path / "next")
    await worker.prestart()
    assert worker._ready is not child


async def test_a_downgrade_works_from_kept_scripts_when_the_live_folder_lost_the_revision(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    worker = make_worker(project)
    kept = await worker.keep_scripts()
    assert kept == (await worker.describe()).scripts_sha256
    assert await worker.keep_scripts() == kept
    (project.scripts / "versions" / "r3_.py").unlink()
    assert "r3" not in {r.id for r in (await worker.describe()).revisions}
    worker.use_scripts(kept)
    described = await worker.describe()
    assert described.scripts_sha256 == kept
    assert "r3" in {r.id for r in described.revisions}
    await downgrade(worker, project.database)
    assert project.heads() == ["r2"]
    worker.use_scripts("")
    assert "r3" not in {r.id for r in (await worker.describe()).revisions}


async def test_version_folders_outside_the_script_folder_are_kept_too(
    project: Any, make_worker: Any, downgrade: Any
) -> None:
    outside = project.folder / "billing"
    outside.mkdir()
    project.revision(
        "b1", "op.execute('CREATE TABLE bill (i int)')", "op.drop_table('bill')", folder=str(outside)
    )
    (outside / "rates.csv").write_text("1,2\n")
    url = project.stage.server.url(project.database, driver="psycopg")
    places = (
        "version_locations = %(here)s/migrations/versions:%(here)s/billing\nversion_path_separator = os\n"
    )
    project.ini(url, places)
    project.stage.run(
        project.database, "CREATE TABLE bill (i int)", "UPDATE alembic_version SET version_num = 'b1'"
    )
    worker = make_worker(project)
    kept = await worker.keep_scripts()
    for path in [*outside.iterdir(), *(project.scripts / "versions").glob("*.py")]:
        if path.is_file():
            path.unlink()
    worker.use_scripts(kept)
    described = await worker.describe()
    assert ({r.id for r in described.revisions}, described.scripts_sha256) == ({"r1", "r2", "r3", "b1"}, kept)
    await downgrade(worker, project.database, ("b1",), ("b1",), ("r3",))
    assert project.heads() == ["r3"]


async def test_kept_scripts_that_were_changed_are_not_used(
    project: Any, make_worker: Any, tmp_path: Path
) -> None:
    worker = make_worker(project)
    kept = await worker.keep_scripts()
    (tmp_path / "kept" / kept / "env.py").write_text("print('mine')")
    worker.use_scripts(kept)
    with pytest.raises(RefusedError, match="were changed since"):
        await worker.describe()
    with pytest.raises(RefusedError, match="aren't kept"):
        worker.use_scripts("0" * 64)


async def test_whoever_asks_while_a_downgrade_runs_gets_a_child_of_its_own(
    slow_project: Any, make_worker: Any, downgrade: Any
) -> None:
    worker, lines = make_worker(slow_project), []
    slow_project.revision("r2", "pass", "op.drop_table('u')\nop.execute('SELECT pg_sleep(5)')", down="'r1'")
    asked = asyncio.create_task(
        downgrade(worker, slow_project.database, ("r2",), ("r2",), ("r1",), lines=lines)
    )
    while not lines:  # noqa: ASYNC110 - told by another process
        await asyncio.sleep(0.02)
    answers = await asyncio.gather(
        worker.describe(), worker.read(("r2",)), worker.describe(), worker.prestart()
    )
    assert len(answers[0].revisions) == 2
    assert not asked.done()
    assert (await asked).marker
    assert slow_project.heads() == ["r1"]
    assert worker._ready.is_alive


def test_the_child_is_of_a_python_as_old_as_alembics_own_floor_and_imports_nothing_of_ours() -> None:
    folder = Path(rollbackd.__file__).with_name("adapters") / "worker" / "child"
    nodes = [
        node
        for source in folder.glob("*.py")
        for node in ast.walk(ast.parse(source.read_text(), feature_version=(3, 8)))
    ]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    roots = {name.partition(".")[0] for name in imported}
    assert roots - set(sys.stdlib_module_names) == {"alembic", "sqlalchemy"}


# -- what planning must never do, and what running must never miss ---------------------------------------------------------


@pytest.mark.parametrize(
    "escape",
    [
        # SQLAlchemy, whatever driver.
        "__import__('sqlalchemy').create_engine({url!r}).connect().exec_driver_sql('DROP TABLE customer')",
        # libpq, below Python.
        "__import__('psycopg').connect({libpq!r}).execute('DROP TABLE customer')",
        # Another process.
        "__import__('subprocess').run(['true'])",
        # A plain socket.
        "__import__('socket').create_connection(('127.0.0.1', 9))",
    ],
)
async def test_reading_a_downgrade_that_reaches_out_by_itself_reaches_nothing(
    stage: Any, bare_project: Any, make_worker: Any, escape: str
) -> None:
    """Planning touches nothing, whatever the migration's code opens."""
    bare_project.revision("r1", "op.execute('CREATE TABLE customer (id int)')", "pass")
    bare_project.upgrade()
    url = stage.server.url(bare_project.database, driver="psycopg")
    libpq = stage.server.url(bare_project.database)
    bare_project.revision("r2", "pass", escape.format(url=url, libpq=libpq))
    read = (await make_worker(bare_project).read(("r2",)))["r2"]
    assert "opens a connection or a process of its own" in read.failed
    assert "customer" in tables(stage, bare_project.database)


async def test_a_downgrade_that_asks_whether_it_is_rendered_is_unread(
    bare_project: Any, make_worker: Any
) -> None:
    """What it renders would say nothing of what it runs."""
    bare_project.revision("r1", "pass", "op.get_context().as_sql or op.execute('DELETE FROM customer')")
    bare_project.upgrade()
    read = (await make_worker(bare_project).read(("r1",)))["r1"]
    assert "something else when it is only rendered" in read.failed
    assert read.statements == ()


async def test_scripts_that_are_not_the_planned_ones_do_not_run(
    stage: Any, project: Any, make_worker: Any, downgrade: Downgrade
) -> None:
    with pytest.raises(RefusedError, match="changed since the plan"):
        await downgrade(make_worker(project), project.database, scripts_sha256="0" * 64)
    assert project.heads() == ["r3"]


# -- archives in the downgrade's own transaction ----------------------------------------------------------------------------

INVOICE = ArchiveItem(
    revision="r3", kind=ArchiveKind.TABLE, table=TableName("public", "invoice"), key=("id",)
)
EMAIL = ArchiveItem(
    revision="r2", kind=ArchiveKind.COLUMN, table=TableName("public", "customer"), column="email", key=("id",)
)


def archived(stage: Any, database: str) -> list[tuple[Any, ...]]:
    """What the archive says it holds: run, revision, kind, rows; nothing where there is no archive."""
    there = stage.run(database, "SELECT to_regclass('rollbackd_archive.entries')")[0][0]
    query = "SELECT run, revision, kind, row_count FROM rollbackd_archive.entries ORDER BY id"
    return list(stage.run(database, query)) if there else []


@pytest.fixture
def filled(project: Any, stage: Any) -> Any:
    stage.run(
        project.database,
        "INSERT INTO invoice VALUES (1), (2)",
        "INSERT INTO customer VALUES (1, 'ann', 'ann@x'), (2, 'bob', NULL)",
    )
    return project


async def test_what_a_downgrade_destroys_is_archived_before_each_revision_and_told(
    stage: Any, filled: Any, make_worker: Any, downgrade: Downgrade
) -> None:
    result = await downgrade(
        make_worker(filled), filled.database, ("r3", "r2"), ("r3",), ("r1",), archive=(INVOICE, EMAIL)
    )
    assert filled.heads() == ["r1"]
    assert archived(stage, filled.database) == [("run-1", "r3", "table", 2), ("run-1", "r2", "column", 1)]
    assert [(kept["kind"], kept["column"], kept["rows"]) for kept in result.kept] == [
        ("table", "", 2),
        ("column", "email", 1),
    ]
    (place,) = stage.run(
        filled.database, "SELECT archive FROM rollbackd_archive.entries WHERE kind = 'table'"
    )[0]
    assert stage.run(filled.database, f'SELECT id FROM rollbackd_archive."{place}" ORDER BY 1') == [
        (1,),
        (2,),
    ]


async def test_only_what_belongs_to_the_revisions_that_are_taken_off_is_archived(
    stage: Any, filled: Any, make_worker: Any, downgrade: Downgrade
) -> None:
    await downgrade(make_worker(filled), filled.database, archive=(INVOICE, EMAIL))
    assert archived(stage, filled.database) == [("run-1", "r3", "table", 2)]


async def test_a_downgrade_that_fails_leaves_neither_archive_nor_change(
    stage: Any, filled: Any, make_worker: Any, downgrade: Downgrade
) -> None:
    filled.revision(
        "r2", "op.add_column('customer', sa.Column('email', sa.Text))",
        "op.drop_column('customer', 'email')\nop.execute('SELECT 1/0')", down="'r1'",
    )  # fmt: skip
    with pytest.raises(PermanentError, match="division by zero"):
        await downgrade(
            make_worker(filled), filled.database, ("r3", "r2"), ("r3",), ("r1",), archive=(INVOICE, EMAIL)
        )
    assert filled.heads() == ["r3"]
    assert archived(stage, filled.database) == []
    assert stage.run(filled.database, "SELECT count(*) FROM invoice") == [(2,)]
    assert "email" in filled.columns("customer")


async def test_a_child_killed_between_archive_and_commit_leaves_neither(
    slow_project: Any, make_worker: Any, downgrade: Downgrade, make_reader: Any, stage: Any
) -> None:
    project, worker = slow_project, make_worker(slow_project)
    stage.run(project.database, "INSERT INTO u VALUES (1), (2), (3)")
    await worker.prestart()
    child = worker._ready._process.pid
    lines: list[str] = []
    item = ArchiveItem(revision="r2", kind=ArchiveKind.TABLE, table=TableName("public", "u"))
    asked = asyncio.create_task(
        downgrade(worker, project.database, ("r2",), ("r2",), ("r1",), lines=lines, archive=(item,))
    )
    # The archive is made and the table dropped by then, in a transaction that nobody else sees.
    while not any("pg_sleep" in line for line in lines):  # noqa: ASYNC110 - told by another process
        await asyncio.sleep(0.02)
    assert any("DROP TABLE" in line for line in lines)
    assert archived(stage, project.database) == []
    os.kill(child, signal.SIGKILL)
    with pytest.raises(TransientError, match="killed by signal 9"):
        await asked
    assert await make_reader(project.database).wait_for_migration_lock(3)
    assert project.heads() == ["r2"]
    assert archived(stage, project.database) == []
    assert stage.run(project.database, "SELECT count(*) FROM u") == [(3,)]


async def test_a_row_that_is_written_while_the_downgrade_waits_for_the_table_is_archived_too(
    stage: Any, filled: Any, make_worker: Any, downgrade: Downgrade
) -> None:
    """The table is locked before it is copied: no write slips between copy and drop."""
    with psycopg.connect(stage.server.url(filled.database)) as writer:
        writer.execute("INSERT INTO invoice VALUES (3)")
        asked = asyncio.create_task(downgrade(make_worker(filled), filled.database, archive=(INVOICE,)))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while stage.run(filled.database, waiting) == [(0,)]:
            assert not asked.done()
            await asyncio.sleep(0.02)
        writer.commit()
        await asked
    assert archived(stage, filled.database) == [("run-1", "r3", "table", 3)]


# -- the stamp alone --------------------------------------------------------------------------------------------------------


async def stamp(worker: Any, reader: Any, revisions: tuple[str, ...], *heads: tuple[str, ...]) -> None:
    await worker.stamp(revisions, *heads, run="run-1", identity=await reader.identity())


async def test_a_stamp_is_moved_and_no_revision_is_run(
    stage: Any, filled: Any, make_worker: Any, make_reader: Any
) -> None:
    reader = make_reader(filled.database)
    await stamp(make_worker(filled), reader, ("r3", "r2"), ("r3",), ("r1",))
    assert filled.heads() == ["r1"]
    assert stage.run(filled.database, "SELECT count(*) FROM invoice") == [(2,)]
    assert "email" in filled.columns("customer")
    assert filled.comment() == "rollbackd: run-1 took off r2"
    # The lock went with the session.
    assert await reader.wait_for_migration_lock(3)


async def test_a_stamp_is_moved_to_base_as_well(
    stage: Any, filled: Any, make_worker: Any, make_reader: Any
) -> None:
    await stamp(make_worker(filled), make_reader(filled.database), ("r3", "r2", "r1"), ("r3",), ())
    assert filled.heads() == []
    assert "customer" in tables(stage, filled.database)


async def test_a_stamp_that_is_elsewhere_than_was_seen_is_not_moved(
    filled: Any, make_worker: Any, make_reader: Any
) -> None:
    with pytest.raises(RefusedError, match="the version table says r3, the plan begins at r2"):
        await stamp(make_worker(filled), make_reader(filled.database), ("r2",), ("r2",), ("r1",))
    assert filled.heads() == ["r3"]


async def test_the_stamp_of_another_database_is_not_moved(
    stage: Any, filled: Any, make_worker: Any, make_reader: Any
) -> None:
    other = make_reader(stage.database())
    with pytest.raises(RefusedError, match="of another server or name than the guarded"):
        await stamp(make_worker(filled), other, ("r3",), ("r3",), ("r2",))
    assert filled.heads() == ["r3"]


async def test_a_stamp_is_not_moved_under_somebody_who_migrates(
    stage: Any, filled: Any, make_worker: Any, make_reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollbackd.adapters.worker.alembic.LOCK_WAIT_S", 0.3)
    with psycopg.connect(stage.server.url(filled.database), autocommit=True) as other:
        other.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        with pytest.raises(TransientError, match="another rollbackd session migrates"):
            await stamp(make_worker(filled), make_reader(filled.database), ("r3",), ("r3",), ("r2",))
    assert filled.heads() == ["r3"]


async def test_env_py_shows_its_search_path_and_whether_it_commits_each_statement(
    project: Any, make_worker: Any
) -> None:
    shown = await make_worker(project).environment()
    assert (shown.search_path, shown.commits_each_statement) == (("public",), False)
