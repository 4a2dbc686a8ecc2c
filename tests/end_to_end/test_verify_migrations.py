"""`verify-migrations` as a CI job runs it: a folder, an interpreter, a scratch server, and every kind of sinful revision."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.end_to_end.ground import PATIENCE_S, Project, environment, wait_until

from rollbackd.demo.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("verify-migrations")]

CUSTOMERS = (
    "op.execute('CREATE TABLE customers (id serial PRIMARY KEY, name text NOT NULL, email text, age int)')"
)
OWN_ENV_PY = """
from alembic import context
from sqlalchemy import create_engine, pool

connectable = create_engine("postgresql+psycopg://nobody@nowhere.invalid/production", poolclass=pool.NullPool)
with connectable.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


def databases(server: EmbeddedPostgres) -> list[str]:
    """Scratch databases on the server."""
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        found = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd%'")
        return [row[0] for row in found.fetchall()]


@pytest.fixture
def clean_server(server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """The server, on which whatever is verified leaves nothing."""
    assert databases(server) == []
    yield server
    left = databases(server)
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        for name in left:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    assert left == []


def command(server: EmbeddedPostgres, project: Project, *argv: str, url: str) -> list[str]:
    place = f"postgresql://{server.user}@{server.host}:{server.port}/postgres"
    return [
        *(sys.executable, "-m", "rollbackd", "verify-migrations", "--directory", str(project.folder)),
        *("--python", sys.executable, "--url", url),
        *("--scratch", place, "--scratch-password", "env:SCRATCH_PASSWORD", *argv),
    ]


def verify(
    server: EmbeddedPostgres,
    project: Project,
    *argv: str,
    url: str = "environment:DATABASE_URL",
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Verify a project on a given server, its password by reference."""
    return subprocess.run(
        command(server, project, *argv, url=url),
        env={**environment(), "GITHUB_ACTIONS": "", "SCRATCH_PASSWORD": server.password, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def found_in(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """Each revision's faults and the sentence of each, out of a JSON answer."""
    assert done.stderr == ""
    document = json.loads(done.stdout)
    return {
        one["revision"]: {found["fault"]: found["text"] for found in one["found"]}
        for one in document["verified"]
    }


def without_downgrade(project: Project, name: str, upgrade: str) -> None:
    """A revision whose file has no downgrade() at all."""
    below = project.last
    (project.folder / "migrations" / "versions" / f"{name}.py").write_text(
        f'"""{name}"""\nfrom alembic import op\n\nrevision = {name!r}\ndown_revision = {below!r}\n\n\n'
        f"def upgrade():\n    {upgrade}\n"
    )
    project.last = name


# -- what each kind of revision is told ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sins(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One history with every kind of revision, verified once: the whole document."""
    project = Project(tmp_path_factory.mktemp("sins"))
    project.revision("customers", CUSTOMERS, "op.drop_table('customers')")
    # Right above the table: what it changes must be there without another revision's help.
    project.revision(
        "rows",
        "op.execute('ALTER TABLE customers ADD COLUMN shout text')\n"
        "op.execute('UPDATE customers SET email = upper(email)')",
        "op.drop_column('customers', 'shout')\nop.execute('UPDATE customers SET email = lower(email)')",
    )
    project.revision("index", "op.create_index('by_name', 'customers', ['name'])", "op.drop_index('by_name')")
    project.revision(
        "in_autocommit",
        "with op.get_context().autocommit_block():\n"
        "    op.execute('CREATE INDEX CONCURRENTLY by_email ON customers (email)')",
        "with op.get_context().autocommit_block():\n    op.execute('DROP INDEX CONCURRENTLY by_email')",
    )
    project.revision(
        "raises",
        "op.execute('CREATE TABLE a (id int)')",
        "raise NotImplementedError('there is no way back')",
    )
    project.revision("passes", "op.execute('CREATE TABLE b (id int)')", "pass")
    without_downgrade(project, "missing", "op.execute('CREATE TABLE c (id int)')")
    project.revision(
        "stricter",
        "op.alter_column('customers', 'email', nullable=False)\n"
        "op.create_unique_constraint('one_name', 'customers', ['name'])",
        "op.drop_constraint('one_name', 'customers')\nop.alter_column('customers', 'email', nullable=True)",
    )
    project.revision(
        "not_null",
        "op.alter_column('customers', 'email', nullable=True)",
        "op.alter_column('customers', 'email', nullable=False)",
    )
    project.revision(
        "unique",
        "op.execute('CREATE TABLE tags (id serial PRIMARY KEY, tag text)')",
        "op.execute('CREATE UNIQUE INDEX one_tag ON tags (tag)')\nop.drop_table('tags')",
    )
    project.revision(
        "enum",
        "op.create_table('parcels', sa.Column('id', sa.Integer, primary_key=True),"
        " sa.Column('state', sa.Enum('sent', 'lost', name='parcel_state')))",
        "op.drop_table('parcels')",
    )
    project.revision(
        "other_index",
        "op.execute('DROP INDEX by_name')",
        "op.create_index('by_name', 'customers', ['email'])",
    )
    project.revision(
        "narrow",
        "op.alter_column('customers', 'age', type_=sa.BigInteger)",
        "op.alter_column('customers', 'age', type_=sa.Integer)",
    )
    project.revision(
        "fails_without_rows_too",
        "op.execute('CREATE TABLE d (id int)')",
        "op.execute('DROP TABLE d')\nop.execute('DROP TABLE nowhere')",
    )
    project.revision("last", "op.execute('CREATE VIEW names AS SELECT name FROM customers')", "op.execute('DROP VIEW names')")  # fmt: skip
    done = verify(server, project, "--format", "json")
    assert done.returncode == 1, done.stderr
    assert databases(server) == []
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize(
    ("revision", "faults", "words"),
    [
        ("customers", {"loses_data"}, "takes away table public.customers"),
        ("index", set(), ""),
        ("in_autocommit", set(), ""),
        ("raises", {"irreversible"}, "declared irreversible"),
        ("passes", {"irreversible"}, "silently irreversible"),
        ("missing", {"irreversible"}, "missing has no downgrade()"),
        ("stricter", set(), ""),
        ("not_null", {"downgrade_fails"}, "contains null values"),
        ("unique", {"downgrade_fails"}, "could not create unique index"),
        ("enum", {"drifts", "loses_data", "reapply_fails"}, 'type "parcel_state" already exists'),
        ("other_index", {"drifts"}, "~ index public.by_name"),
        ("rows", {"changes_rows", "loses_data"}, "public.customers: "),
        ("fails_without_rows_too", {"downgrade_fails"}, "nowhere"),
        ("last", set(), ""),
    ],
)
def test_each_revision_is_told_what_is_wrong_with_it(
    sins: dict[str, Any], revision: str, faults: set[str], words: str
) -> None:
    """Up, rows, down, up again: and where one can't be taken off or put on, the ones above it are verified all the same."""
    (one,) = [one for one in sins["verified"] if one["revision"] == revision]
    assert {found["fault"] for found in one["found"]} == faults
    assert words in " | ".join(found["text"] for found in one["found"])


def test_every_revision_is_verified_once_in_order_and_names_where_its_downgrade_stands(
    sins: dict[str, Any],
) -> None:
    """For the annotations of a CI system; made-up rows are counted."""
    names = [one["revision"] for one in sins["verified"]]
    assert names == list(dict.fromkeys(names))
    assert (names[0], names[-1], len(names)) == ("customers", "last", 15)
    index = sins["verified"][2]
    assert index["path"] == "migrations/versions/index.py"
    assert index["title"] == "index"
    assert index["line"] == 13
    assert sins["verified"][0]["rows"] >= 3
    assert sins["stopped"] == ""
    assert sins["passes"] is False


def test_rows_that_are_made_up_dont_stand_in_the_way_of_an_upgrade(sins: dict[str, Any]) -> None:
    """A column that becomes NOT NULL and one that becomes unique: real rows may fit, made-up ones needn't."""
    (stricter,) = [one for one in sins["verified"] if one["revision"] == "stricter"]
    assert stricter["found"] == []
    assert stricter["rows"] > 0


def test_a_value_beyond_the_old_type_makes_a_narrowing_downgrade_fail(sins: dict[str, Any]) -> None:
    """Made-up rows fill the new type: a bigint that no integer holds."""
    (narrow,) = [one for one in sins["verified"] if one["revision"] == "narrow"]
    assert [found["fault"] for found in narrow["found"]] == ["downgrade_fails"]
    assert "integer out of range" in narrow["found"][0]["text"]


# -- how Alembic is driven -------------------------------------------------------------------------------------------------


def small(folder: Path) -> Project:
    """Two revisions: a table, and an index on it. Both are reversible; the first takes its table away."""
    project = Project(folder)
    project.revision("customers", CUSTOMERS, "op.drop_table('customers')")
    project.revision("index", "op.create_index('by_name', 'customers', ['name'])", "op.drop_index('by_name')")
    return project


@pytest.mark.slow
def test_a_lost_stamp_is_told_and_those_above_it_are_verified(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Its downgrade commits by itself: Alembic reports success, the table is gone, the version table says it is there."""
    project = Project(tmp_path / "project")
    project.revision("lost", CUSTOMERS, "op.drop_table('customers')\nop.get_bind().commit()")
    project.revision("above", "op.execute('CREATE TABLE y (id int)')", "op.drop_table('y')")
    done = verify(clean_server, project, "--format", "json")
    assert done.returncode == 1
    found = found_in(done)
    assert found["lost"] == {"stamp_lost": "reports success, and the version table says lost instead of base"}
    assert set(found["above"]) == {"loses_data"}


def test_an_upgrade_that_loses_its_stamp_isnt_taken_for_one_that_is_on(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """It commits by itself, and nobody commits the stamp: that is no fault of its downgrade."""
    project = Project(tmp_path / "project")
    project.revision("lost", CUSTOMERS + "\nop.get_bind().commit()", "op.drop_table('customers')")
    done = verify(clean_server, project, "--format", "json")
    assert done.returncode == 1
    assert found_in(done)["lost"] == {
        "upgrade_fails": "can't be put on: Alembic reports success, and the version table says base"
    }
    assert json.loads(done.stdout)["stopped"].startswith("lost can't be put on")


@pytest.mark.slow
def test_branches_and_a_merge_are_verified_each_on_what_it_stands_on(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Two children of one revision, and a merge that does nothing and may: its downgrade splits the stamp again."""
    project = small(tmp_path / "project")
    project.revision("left", "op.execute('CREATE TABLE l (id int)')", "op.drop_table('l')", down="customers")
    project.revision("merge", "pass", "pass", down=("index", "left"))
    project.revision("after", "op.execute('CREATE TABLE z (id int)')", "op.drop_table('z')")
    done = verify(clean_server, project, "--format", "json")
    found = found_in(done)
    assert done.returncode == 0, done.stdout
    assert list(found) in (
        ["customers", "index", "left", "merge", "after"],
        ["customers", "left", "index", "merge", "after"],
    )
    assert found["merge"] == found["index"] == {}
    assert set(found["left"]) == {"loses_data"}


@pytest.mark.slow
def test_two_heads_that_nobody_merged_are_verified_both(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Taking one off leaves the other."""
    project = small(tmp_path / "project")
    project.revision("other", "op.execute('CREATE TABLE o (id int)')", "op.drop_table('o')", down="customers")
    found = found_in(verify(clean_server, project, "--format", "json"))
    assert set(found) == {"customers", "index", "other"}
    assert found["index"] == {}


def test_env_py_may_know_its_database_itself_and_another_one_is_used(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Whatever URL stands in env.py, the connection goes to scratch: CI has no other database, and none is touched."""
    project = small(tmp_path / "project")
    project.env_py(OWN_ENV_PY)
    done = verify(clean_server, project, url="own")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 revisions verified in" in done.stdout


def test_an_x_argument_and_another_ini_file_are_passed_on(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """As `alembic -c other.ini -x tenant=a` would."""
    project = small(tmp_path / "project")
    (project.folder / "alembic.ini").rename(project.folder / "other.ini")
    project.revision(
        "tenant",
        "from alembic import context\n"
        "op.execute('CREATE TABLE ' + context.get_x_argument(as_dictionary=True)['tenant'] + ' (id int)')",
        "from alembic import context\nop.drop_table(context.get_x_argument(as_dictionary=True)['tenant'])",
    )
    done = verify(clean_server, project, "--ini", "other.ini", "-x", "tenant=a", "--format", "json")
    assert "public.a" in found_in(done)["tenant"]["loses_data"]


@pytest.mark.slow
def test_without_a_server_an_embedded_one_is_started_and_ended(tmp_path: Path) -> None:
    """The default: no server, no password, no configuration file."""
    project = small(tmp_path / "project")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rollbackd", "verify-migrations"),
            *("--python", sys.executable, "--url", "environment:DATABASE_URL"),
        ],
        cwd=project.folder,
        env={**environment(), "GITHUB_ACTIONS": "", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ index  index: reversible" in done.stdout.splitlines()
    assert list(tmp_path.iterdir()) == [project.folder]


# -- what counts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sinful(tmp_path: Path) -> Project:
    """A reversible revision, and one whose downgrade does nothing."""
    project = small(tmp_path / "project")
    project.revision("sin", "op.execute('CREATE TABLE s (id int)')", "pass")
    return project


@pytest.mark.slow
def test_what_a_baseline_knows_doesnt_count_and_what_is_new_does(
    clean_server: EmbeddedPostgres, sinful: Project, tmp_path: Path
) -> None:
    """Old sins are told and forgiven; a revision that comes after, or another fault of the same one, fails."""
    baseline = tmp_path / "baseline.json"
    written = verify(clean_server, sinful, "--baseline", str(baseline), "--write-baseline")
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout == f"1 revisions with faults written to {baseline}\n"
    assert json.loads(baseline.read_text()) == {"sin": ["irreversible"]}

    known = verify(clean_server, sinful, "--baseline", str(baseline))
    assert known.returncode == 0
    assert "(in the baseline)" in known.stdout
    assert "0 with faults that count" in known.stdout

    sinful.revision("new_sin", "op.execute('CREATE TABLE n (id int)')", "pass")
    new = verify(clean_server, sinful, "--baseline", str(baseline))
    assert new.returncode == 1
    assert "1 with faults that count" in new.stdout
    assert "✗ new_sin" in new.stdout
    assert "✗ sin" not in new.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "isn't there: make it with --write-baseline"),
        ("[]", "is no baseline"),
        ("{", "is no baseline"),
        ('{"sin": ["laziness"]}', "is no baseline"),
    ],
    ids=["missing", "a list", "no JSON", "an unknown fault"],
)
def test_a_baseline_that_cant_be_read_is_wrong_usage(
    clean_server: EmbeddedPostgres, sinful: Project, tmp_path: Path, text: str | None, says: str
) -> None:
    """Said before anything is verified."""
    baseline = tmp_path / "baseline.json"
    if text is not None:
        baseline.write_text(text)
    done = verify(clean_server, sinful, "--baseline", str(baseline))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert str(baseline) in line
    assert says in line


@pytest.mark.slow
def test_a_fault_may_be_allowed_and_a_loss_forbidden(clean_server: EmbeddedPostgres, sinful: Project) -> None:
    """--allow takes one kind of fault off the list, --forbid-loss puts loss on it."""
    allowed = verify(clean_server, sinful, "--allow", "irreversible")
    assert allowed.returncode == 0
    assert "sin is silently irreversible" in allowed.stdout
    forbidden = verify(clean_server, sinful, "--allow", "irreversible", "--forbid-loss")
    assert forbidden.returncode == 1
    assert "✗ customers" in forbidden.stdout
    assert "✓ sin" in forbidden.stdout


def test_only_what_comes_above_a_revision_is_verified_when_it_is_named(
    clean_server: EmbeddedPostgres, sinful: Project
) -> None:
    """--from: what is below is put on, and not judged. At the head there is nothing to do, and that passes."""
    found = found_in(verify(clean_server, sinful, "--from", "index", "--format", "json"))
    assert list(found) == ["sin"]
    nothing = verify(clean_server, sinful, "--from", "sin")
    assert nothing.returncode == 0
    assert "0 revisions verified" in nothing.stdout


# -- how it is told --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_github_gets_annotations_at_the_downgrade(clean_server: EmbeddedPostgres, sinful: Project) -> None:
    """By --format, or by itself in GitHub's CI; the list of all revisions follows."""
    for argv, variables in ((("--format", "github"), {}), ((), {"GITHUB_ACTIONS": "true"})):
        done = verify(clean_server, sinful, *argv, **variables)
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        (error,) = [line for line in lines if line.startswith("::error")]
        assert error.startswith(
            "::error file=migrations/versions/sin.py,line=13,title=sin%3A irreversible::sin is silently irreversible: "
        )
        assert any(line.startswith("::notice file=migrations/versions/customers.py") for line in lines)
        assert "✓ index  index: reversible" in lines


def test_as_text_a_fault_stands_below_its_revision(clean_server: EmbeddedPostgres, sinful: Project) -> None:
    """A mark, the id, the title, the faults in words; one sentence each below."""
    lines = verify(clean_server, sinful).stdout.splitlines()
    at = lines.index("✗ sin  sin: irreversible")
    assert lines[at + 1].startswith("    sin is silently irreversible")
    assert lines[-1].startswith("3 revisions verified in")
    assert lines[-1].endswith("s, 1 with faults that count")


# -- bad input -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_revision_that_cant_be_put_on_stops_it_and_it_says_so(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Nothing above it can be verified; that isn't passed over in silence."""
    project = small(tmp_path / "project")
    project.revision("broken", "op.execute('CREATE TABLE customers (id int)')", "pass")
    project.revision("above", "op.execute('CREATE TABLE y (id int)')", "op.drop_table('y')")
    done = verify(clean_server, project, "--format", "json")
    assert done.returncode == 1
    found = found_in(done)
    assert list(found) == ["customers", "index", "broken"]
    assert 'relation "customers" already exists' in found["broken"]["upgrade_fails"]
    stopped = json.loads(done.stdout)["stopped"]
    assert stopped == "broken can't be put on, so nothing above it can be verified"
    # Not even where that fault is allowed: what wasn't verified hasn't passed.
    allowed = verify(clean_server, project, "--allow", "upgrade_fails")
    assert allowed.returncode == 1
    assert "✗ stopped: broken can't be put on" in allowed.stdout


@pytest.mark.slow
def test_what_isnt_there_is_refused_in_a_sentence(clean_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """A folder without alembic.ini, an interpreter without Alembic or none at all, a revision that nobody knows."""
    project = small(tmp_path / "project")
    bare = tmp_path / "bare"
    bare.mkdir()
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    for argv, words in (
        (("--directory", str(tmp_path / "nowhere")), "nowhere"),
        (("--directory", str(bare)), "alembic.ini"),
        (("--python", str(venv / "bin" / "python")), "alembic"),
        (("--python", str(tmp_path / "no-python")), "no-python"),
        (("--from", "unheard"), "unheard"),
        (("--from", "index,unheard"), "unheard"),
    ):
        done = verify(clean_server, project, *argv)
        assert (done.returncode, done.stdout) == (1, ""), argv
        (line,) = done.stderr.splitlines()
        assert line.startswith("rollbackd: ")
        assert words in line, argv


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--scratch", "mysql://root@localhost/x"), 2, "no scratch server"),
        (("--scratch-password", "hunter2"), 2, "--scratch-password: a secret is given by reference"),
        (("--scratch-password", "env:NOBODY_SET_THIS"), 78, "NOBODY_SET_THIS"),
        (("--scratch", "postgresql://nobody@127.0.0.1:1/x"), 1, "127.0.0.1:1"),
        (("--rows", "-1"), 2, "--rows"),
        (("--allow", "loses_data"), 2, "--allow"),
        (("--write-baseline",), 2, "--write-baseline needs --baseline FILE"),
        (("shop",), 2, "not both"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_call_that_cant_work_is_refused_in_a_sentence(
    clean_server: EmbeddedPostgres, tmp_path: Path, argv: tuple[str, ...], code: int, words: str
) -> None:
    """What was wrong, on stderr; never a traceback, never the secret."""
    done = verify(clean_server, small(tmp_path / "project"), *argv)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_role_that_may_not_make_databases_is_told_what_it_lacks(
    clean_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """In one sentence, with the statement that mends it."""
    server = clean_server
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE powerless LOGIN PASSWORD 'pw'")
        try:
            scratch = f"postgresql://powerless@{server.host}:{server.port}/postgres"
            done = verify(server, small(tmp_path / "project"), "--scratch", scratch, SCRATCH_PASSWORD="pw")
        finally:
            connection.execute("DROP ROLE powerless")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "may not create scratch databases" in line
    assert "ALTER ROLE powerless CREATEDB" in line


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_nothing_behind(
    clean_server: EmbeddedPostgres, tmp_path: Path, sign: signal.Signals
) -> None:
    """In the midst of a revision: the scratch database goes, and so does the child that ran it."""
    project = small(tmp_path / "project")
    pid = tmp_path / "pid"
    project.revision(
        "sleepy",
        f"import os, pathlib\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\nop.execute('SELECT pg_sleep(30)')",
        "op.execute('SELECT 1')",
    )
    checking = subprocess.Popen(
        command(clean_server, project, url="environment:DATABASE_URL"),
        env={**environment(), "SCRATCH_PASSWORD": clean_server.password},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: pid.exists() and pid.read_text(), "the sleepy revision is being put on")
        assert len(databases(clean_server)) == 1
        began = time.monotonic()
        checking.send_signal(sign)
        said = checking.communicate(timeout=60)[1]
        assert time.monotonic() - began < 15
        assert (checking.returncode, said.strip()) == (130, "rollbackd: stopped")
    finally:
        checking.kill()
    wait_until(lambda: not databases(clean_server), lambda: databases(clean_server))
    with pytest.raises(ProcessLookupError), contextlib.suppress(PermissionError):
        os.kill(int(pid.read_text()), 0)


# -- a configured target ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_configured_targets_migrations_are_verified_with_its_own_settings(
    clean_server: EmbeddedPostgres, sinful: Project, make_ground: Any
) -> None:
    """The target by name, out of its configuration file; its database isn't touched, and it needs a scratch server."""
    ground = make_ground(sinful)
    done = ground.rollbackd("verify-migrations", "shop")
    assert done.returncode == 1
    assert "✗ sin  sin: irreversible" in done.stdout.splitlines()
    assert ground.query("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []
    # A backup could then be proved no further than L2.
    ground.configure(scratch={"same_server": False}, policy={"backup_level": 2})
    refused = ground.rollbackd("verify-migrations", "shop")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "shop has no scratch server" in refused.stderr
    unknown = ground.rollbackd("verify-migrations", "nobody")
    assert unknown.returncode == 1
    assert "there is no target nobody; configured are shop" in unknown.stderr
