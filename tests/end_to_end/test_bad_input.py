"""What can't work stops before anything is changed, and says in one sentence what was found and what to do."""

import os
import re
import shlex
import subprocess
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import ENV_PY, NEW, OLD, Ground, Project, wait_until

from rollbackd.demo.postgres import EmbeddedPostgres

pytestmark = pytest.mark.timeout(180)

ENGINE = "connectable = create_engine"
CUSTOMERS = (
    "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text)')\n"
    "op.execute(\"INSERT INTO customers VALUES (1, 'Ada')\")"
)
ADD_NICKNAME = (
    "op.add_column('customers', sa.Column('nickname', sa.Text))",
    "op.drop_column('customers', 'nickname')",
)


def two_revisions(folder: Path) -> Project:
    """`first` makes customers, `second` adds nickname."""
    project = Project(folder / "project")
    project.revision("first", CUSTOMERS, "op.drop_table('customers')")
    project.revision("second", *ADD_NICKNAME)
    return project


@pytest.fixture
def small(make_ground: MakeGround, tmp_path: Path) -> Ground:
    """A ground with a project of its own, so that a test may spoil it."""
    ground = make_ground(two_revisions(tmp_path))
    ground.project.alembic(ground.url(), "upgrade", "head")
    return ground


def refused(ground: Ground, *, to: str = "first") -> str:
    """The sentence with which a rollback is refused; the world is afterwards as it was, and the service runs."""
    before = ground.world()
    done = roll_back(ground, to)
    assert ground.world() == before
    assert ground.running() == NEW
    assert done.returncode == 1, done.stdout + done.stderr
    return sentence(done)


def refused_though_approved(ground: Ground, why: str) -> str:
    """What can't be rehearsed waits for a person, who is told why; an approval doesn't mend it, and changes nothing.

    Returns the sentence with which the run ends.
    """
    before = ground.world()
    ground.start()
    run = ask_as(ground, tokens(ground)("alice"))
    (reason,) = [text for text in run["approval_reasons"] if text.startswith("rehearsal: ")]
    assert why in reason
    assert ground.world() == before
    assert ground.rollbackd("approve", run["id"]).returncode == 1
    ended = ground.ended_run()
    assert ended["state"] == "failed"
    assert ground.world() == before
    assert ground.running() == NEW
    return str(ended["statement"])


def roll_back(ground: Ground, to: str) -> subprocess.CompletedProcess[str]:
    return ground.rollbackd(
        "rollback", "shop", "--to", to, "--reason", "checkout is down", "--release", OLD, "--yes"
    )


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said of its failure, as one line: on stderr, or below the run that it shows."""
    assert "Traceback" not in done.stderr
    said = [line.strip() for line in done.stderr.splitlines() if line.startswith("rollbackd: ")]
    said += re.findall(r"^run-\S+  failed .*\n(.*)", done.stdout, re.MULTILINE)
    assert len(said) == 1, done.stdout + done.stderr
    return said[0].removeprefix("rollbackd: ").strip()


# -- the project's own interpreter and env.py --------------------------------------------------------------------------


def test_an_interpreter_without_alembic(small: Ground, tmp_path: Path) -> None:
    """The interpreter and the missing package are named, and the setting that names another."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    small.configure(migrations={"python": [str(tmp_path / "bare" / "bin" / "python")]})
    said = refused(small)
    assert "bare/bin/python can't import alembic" in said
    assert "'migrations.python'" in said


def test_an_env_py_that_raises(small: Ground) -> None:
    """The error is told with the place where it was raised."""
    small.project.env_py("raise KeyError('SHOP_SECRET isn\\'t set')\n" + ENV_PY)
    said = refused(small)
    assert "KeyError" in said
    assert "SHOP_SECRET" in said
    assert "env.py:1" in said


def test_an_env_py_whose_variable_nobody_sets(small: Ground) -> None:
    """The most frequent first mistake: the error names the setting that hands the database's URL over."""
    small.configure(migrations={"url": "own"})
    said = refused(small)
    assert "KeyError: 'DATABASE_URL' (at env.py:" in said
    assert """set 'migrations.url' (or --url) to "environment:DATABASE_URL\"""" in said


def test_an_env_py_that_asks_a_question(small: Ground) -> None:
    """Nobody is there to answer: it says where the question stands."""
    small.project.env_py(
        "import sys\nif not sys.argv[0].endswith('alembic'):\n    input('Really? ')\n" + ENV_PY
    )
    said = refused(small)
    assert "asks a question (input() at env.py:3)" in said
    assert "can't run unattended" in said


def test_a_downgrade_that_asks_a_question(small: Ground) -> None:
    """It is read before anything runs."""
    small.project.revision("third", "pass", "if input('Drop it? ') == 'y':\n    op.drop_table('customers')")
    small.project.alembic(small.url(), "upgrade", "head")
    said = refused(small, to="second")
    assert "third" in said
    assert "question" in said


def test_an_env_py_that_prints(small: Ground) -> None:
    """What user code prints, in whatever way, isn't taken for the worker's words: the rollback simply works."""
    loud = 'import os\nprint(\'{"id": 1, "type": "result"}\')\nos.write(1, b\'raw\')\n'
    small.project.env_py(loud + ENV_PY)
    done = roll_back(small, "first")
    assert done.returncode == 0, done.stdout + done.stderr
    assert small.heads() == ["first"]
    assert small.running() == OLD


def test_an_env_py_that_starts_a_program_of_its_own(small: Ground) -> None:
    """Nobody knows where that would reach from a rehearsal, so there is none; in earnest, approved, it simply works."""
    small.project.env_py("import os\nos.system('echo from a shell')\n" + ENV_PY)
    small.start()
    before = small.world()
    run = ask_as(small, tokens(small)("alice"))
    assert any("it starts a process of its own (at env.py:2)" in text for text in run["approval_reasons"])
    assert small.world() == before
    done = small.rollbackd("approve", run["id"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert small.heads() == ["first"]
    assert small.running() == OLD


# -- the server, the tools, the roles, the disk ------------------------------------------------------------------------


def test_a_database_that_is_down(small: Ground, server: EmbeddedPostgres) -> None:
    """A server that was stopped: its address is named, and the service runs on."""
    with EmbeddedPostgres.start() as other:
        url = f"postgresql://{other.user}@{other.host}:{other.port}/postgres"
        small.configure(database={"url": url})
    done = roll_back(small, "first")
    assert done.returncode == 1
    assert f"{other.host}:{other.port}" in sentence(done)
    assert small.running() == NEW
    assert small.commands() == []


def test_a_pg_dump_older_than_the_server(
    make_ground: MakeGround, server: EmbeddedPostgres, newer_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Server 18, pg_dump 16: both versions are named, and the setting that names another folder."""
    ground = make_ground(two_revisions(tmp_path), on=newer_server)
    ground.project.alembic(ground.url(), "upgrade", "head")
    ground.configure(database={"binaries": str(server.bin_directory)})
    said = refused_though_approved(ground, "pg_dump is older than the server: set 'database.binaries'")
    assert "pg_dump is of version 16, older than the server's 18" in said
    assert "'database.binaries'" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of this size."""
    made: list[Path] = []

    def make(size: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a small file system")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def tools_with(folder: Path, real: Path, before_pg_dump: str) -> str:
    """PostgreSQL's own programs, where a shell command comes before the dump of a backup (and of no rehearsal)."""
    folder.mkdir()
    for name in ("pg_dump", "pg_restore"):
        before = f'case "$*" in *--snapshot=*) {before_pg_dump};; esac\n' if name == "pg_dump" else ""
        (folder / name).write_text(f'#!/bin/sh\n{before}exec {shlex.quote(str(real / name))} "$@"\n')
        (folder / name).chmod(0o755)
    return str(folder)


def test_a_disk_that_is_too_small(small: Ground, small_disk: Callable[[str], Path]) -> None:
    """It is seen before a dump is begun: the free space and the database's size are told, and what would help."""
    disk = small_disk("64k")
    small.configure(backup={"directory": str(disk)})
    said = refused(small)
    assert f" kB free at {disk}, the database takes " in said
    assert "set 'backup.directory' elsewhere" in said


def test_a_disk_that_becomes_full_during_the_dump(
    small: Ground, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    """The run fails with nothing changed, and what was written in part is removed."""
    disk = small_disk("16m")
    fill = f"cat /dev/zero > {disk}/filler 2> /dev/null"
    small.configure(
        backup={"directory": str(disk / "backups")},
        database={"binaries": tools_with(tmp_path / "tools", small.server.bin_directory, fill)},
    )
    said = refused(small)
    assert "No space left on device" in said
    assert "The database is unchanged" in said
    assert small.commands() == []


def test_a_dump_that_was_cut_short_while_pg_dump_reported_success(small: Ground, tmp_path: Path) -> None:
    """A limit on the size of files that pg_dump doesn't notice: the proof does."""
    limit = "ulimit -f 1; trap '' XFSZ"
    small.configure(database={"binaries": tools_with(tmp_path / "tools", small.server.bin_directory, limit)})
    said = refused(small)
    assert said.startswith(
        "prove the backup to L4, and rehearse the downgrade on the restored copy: pg_restore ended with exit code 1"
    )
    assert said.endswith("The database is unchanged")


def test_a_role_that_may_not_create_scratch_databases(small: Ground) -> None:
    """The statement that would give the right is told."""
    owner, password = small.role("", "GRANT ALL ON DATABASE " + small.database + " TO {role}", *OWNERSHIP)
    small.configure(database={"url": small.place(owner), "password": password})
    said = refused_though_approved(small, f"ALTER ROLE {owner} CREATEDB, or give another role in 'scratch'")
    assert f"ALTER ROLE {owner} CREATEDB" in said
    assert "'scratch'" in said


def test_a_role_from_which_rows_are_hidden(small: Ground) -> None:
    """A backup that row security makes short would look whole: the tables are named."""
    role, password = small.role("CREATEDB", "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    small.query("ALTER TABLE customers ENABLE ROW LEVEL SECURITY")
    small.configure(database={"url": small.place(role), "password": password})
    said = refused_though_approved(small, "would be affected by row-level security policy for table")
    assert "row security hides rows of public.customers" in said
    assert "BYPASSRLS" in said


OWNERSHIP = (
    "ALTER TABLE alembic_version OWNER TO {role}",
    "ALTER TABLE customers OWNER TO {role}",
)


# -- revisions ---------------------------------------------------------------------------------------------------------


def test_a_stamp_that_no_script_knows(small: Ground) -> None:
    """Never stamped over; the way out is told."""
    small.query("UPDATE alembic_version SET version_num = 'gone'")
    said = refused(small)
    assert "revision gone has no script here" in said
    assert "bring back the release that holds it" in said


@pytest.mark.parametrize(
    ("to", "found"),
    [
        ("nowhere", "no script has the revision nowhere; the newest here are second"),
        ("second", "the database is at second already"),
        ("-7", "-7 goes below base"),
        ("-0", "-0 isn't a number of steps"),
        ("", "no revision was named"),
    ],
)
def test_a_target_that_isnt_below(small: Ground, to: str, found: str) -> None:
    """Unknown, equal, beyond the beginning, or nothing at all."""
    assert found in refused(small, to=to)


def test_a_target_that_lies_ahead(small: Ground) -> None:
    """That would be an upgrade."""
    small.project.revision("third", "pass", "op.execute('SELECT 1')")
    said = refused(small, to="third")
    assert "third lies ahead of second: that would be an upgrade" in said


def test_minus_one_with_several_heads(small: Ground) -> None:
    """It is ambiguous, and the heads are named."""
    small.project.revision(
        "other",
        "op.create_table('other', sa.Column('id', sa.Integer))",
        "op.drop_table('other')",
        down="first",
    )
    small.project.alembic(small.url(), "upgrade", "heads")
    said = refused(small, to="-1")
    assert "-1 is ambiguous: the heads are other, second" in said


@pytest.mark.parametrize(
    ("upgrade", "downgrade", "found"),
    [
        ("op.drop_column('customers', 'name')", "raise NotImplementedError('no way back')", "raises"),
        ("op.drop_column('customers', 'name')", "pass", "empty"),
    ],
    ids=["raise", "silent pass"],
)
def test_an_irreversible_revision(small: Ground, upgrade: str, downgrade: str, found: str) -> None:
    """One that says so, and one that does nothing where its upgrade did something."""
    small.project.revision("third", upgrade, downgrade)
    small.project.alembic(small.url(), "upgrade", "head")
    said = refused(small, to="second")
    assert "third" in said
    assert "downgrade" in said, found


# -- the data ----------------------------------------------------------------------------------------------------------


def numbered(ground: Ground, downgrade: str) -> Ground:
    """A table whose sequence was never moved on past the rows that were put in by number."""
    ground.project.revision("third", "pass", downgrade)
    ground.query("CREATE TABLE numbered (id serial PRIMARY KEY)")
    ground.query("INSERT INTO numbered SELECT generate_series(1, 10)")
    ground.project.alembic(ground.url(), "upgrade", "head")
    return ground


def test_a_fault_that_was_there_before_is_named_and_set_aside(small: Ground) -> None:
    """A sequence behind its column is not the downgrade's doing: a warning in the report, and no reason to hold."""
    numbered(small, "op.execute('SELECT 1')")
    done = roll_back(small, "second")
    assert done.returncode == 0, done.stdout
    run = re.findall(r"^(run-\S+)", done.stdout, re.MULTILINE)[-1]
    assert (
        "1 sequences are behind their columns, as before the downgrade"
        in small.rollbackd("report", run).stdout
    )


def test_a_fault_that_a_downgrade_brings_is_held(small: Ground) -> None:
    """The same fault on another table, made by the downgrade, is its doing."""
    numbered(small, "op.execute(\"SELECT setval('other_id_seq', 1)\")")
    small.query("CREATE TABLE other (id serial PRIMARY KEY)")
    small.query("INSERT INTO other SELECT nextval('other_id_seq') FROM generate_series(1, 10)")
    done = roll_back(small, "second")
    assert done.returncode == 3
    assert "sequences: 2 sequences are behind their columns" in done.stdout


# -- approvals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def production(small: Ground) -> Ground:
    """Production, with its daemon: an approval is needed."""
    small.configure(environment="production")
    small.start()
    return small


def tokens(ground: Ground) -> Callable[[str], str]:
    """Makes a token of all roles for somebody."""
    return lambda name: ground.rollbackd(
        "tokens", "create", name, "--role", "operate", "--role", "approve"
    ).stdout.strip()


def ask_as(ground: Ground, token: str) -> dict[str, Any]:
    body = {"target": "shop", "to": "first", "reason": "checkout is down", "release": OLD}
    status, run = ground.ask("POST", "/api/v1/rollbacks", body, token=token)
    assert status == 200, run
    assert run["state"] == "awaiting_approval"
    return dict(run)


def test_production_waits_for_an_approval(production: Ground) -> None:
    """Exit code 4, an incident record of our own, and nothing changed."""
    before = production.world()
    done = roll_back(production, "first")
    assert done.returncode == 4, done.stderr
    assert "awaiting_approval" in done.stdout
    assert production.run()["incident"].startswith("incident-")
    assert production.world() == before


def test_an_approval_by_the_requester(production: Ground) -> None:
    """Two pairs of eyes: whoever asked can't approve, whatever roles the token has; somebody else can."""
    token = tokens(production)
    alice, bob = token("alice"), token("bob")
    run = ask_as(production, alice)
    status, said = production.ask("POST", f"/api/v1/runs/{run['id']}/approve", token=alice)
    assert status == 409
    assert "alice asked for" in said["error"]
    assert "somebody else has to approve it" in said["error"]
    assert production.heads() == ["second"]

    assert production.ask("POST", f"/api/v1/runs/{run['id']}/approve", token=bob)[0] == 200
    assert production.ended_run()["state"] == "succeeded"


def test_an_approval_for_another_plan(production: Ground) -> None:
    """An approval is bound to the plan that was looked at."""
    token = tokens(production)
    run = ask_as(production, token("alice"))
    word = {"plan_sha256": "0" * 64}
    status, said = production.ask("POST", f"/api/v1/runs/{run['id']}/approve", word, token=token("bob"))
    assert status == 409
    assert "for another plan" in said["error"]
    assert production.run()["state"] == "awaiting_approval"
    assert production.heads() == ["second"]


def test_an_approval_after_its_time(small: Ground) -> None:
    """The run expires; a late word changes nothing and is told to ask anew."""
    small.configure(environment="production", policy={"approval_expires": "1ms"})
    small.start()
    token = tokens(small)
    bob = token("bob")
    run = ask_as(small, token("alice"))
    before = small.world()
    status, said = small.ask("POST", f"/api/v1/runs/{run['id']}/approve", token=bob)
    assert status == 409
    assert "ask for it anew" in said["error"] or "is expired" in said["error"]
    assert small.run()["state"] == "expired"
    assert small.world() == before


def test_a_second_rollback_while_one_is_unfinished(production: Ground) -> None:
    """One unfinished run for each database: the other is refused and names it."""
    run = ask_as(production, tokens(production)("alice"))
    status, said = production.ask_rollback("first")
    assert status == 409
    assert run["id"] in said["error"]
    assert len(production.ask("GET", "/api/v1/runs")[1]) == 1


def test_shadow_only_says_what_it_would_do(small: Ground) -> None:
    """A bad deploy of a target in shadow is decided on and recorded, and nothing is done."""
    small.project.revision(
        "third",
        "op.add_column('customers', sa.Column('tier', sa.Text))",
        "op.drop_column('customers', 'tier')",
    )
    small.configure(policy={"mode": "shadow"})
    small.runs_version(OLD)
    small.start()
    (small.service / "broken").write_text(NEW)
    small.deploy()
    before = small.world()

    def decided() -> list[dict[str, Any]]:
        return [d for d in small.ask("GET", "/api/v1/decisions")[1] if d["decision"]["action"] != "keep"]

    decision = wait_until(decided, small.words)[0]
    assert decision["decision"]["action"] == "roll_back_with_deployment"
    assert "shadow" in decision["outcome"]
    assert small.ask("GET", "/api/v1/runs")[1] == []
    assert small.world() == before
