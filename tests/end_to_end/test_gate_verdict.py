"""The gate tries the migrations that are about to go on, on a copy, and says go, warn or stop."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import OLD, Ground, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("gate-verdict")]

GATE = ("gate", "shop", "--version", "2.0", "--previous-version", OLD, "--deployment", "ci-1")


def new_project(folder: Path) -> Project:
    project = Project(folder)
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'c ' || n, n || '@example.org' FROM generate_series(1, 9) n\")",
        "op.drop_table('customers')",
    )
    return project


@pytest.fixture
def at_first(make_ground: MakeGround) -> Callable[..., Ground]:
    """The database at `first`, the later revisions in the folder and about to go on, a daemon that knows it."""

    def make(project: Project, **sections: Any) -> Ground:
        ground = make_ground(project)
        project.alembic(ground.url(), "upgrade", "first")
        ground.runs_version(OLD)
        ground.configure(**sections)
        ground.start()
        return ground

    return make


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture
def sinful(tmp_path: Path) -> Project:
    """After a good revision one that can't be taken off, and one whose downgrade fails over rows of today."""
    project = new_project(tmp_path / "project")
    project.revision("good", "op.create_index('by_name', 'customers', ['name'])", "op.drop_index('by_name')")
    project.revision("sin", "op.execute('CREATE TABLE s (id int)')", "pass")
    project.revision(
        "clash",
        "op.execute(\"UPDATE customers SET name = 'the same'\")",
        "op.create_unique_constraint('one_name', 'customers', ['name'])",
    )
    return project


def test_migrations_that_come_off_again_may_go_on(at_first: Callable[..., Ground], tmp_path: Path) -> None:
    """Even those that real rows fit and made-up ones wouldn't: go, with what was tried, and a proved backup."""
    project = new_project(tmp_path / "project")
    project.revision(
        "stricter",
        "op.alter_column('customers', 'email', nullable=False)\n"
        "op.create_unique_constraint('one_name', 'customers', ['name'])",
        "op.drop_constraint('one_name', 'customers')\nop.alter_column('customers', 'email', nullable=True)",
    )
    project.revision("more", "op.execute('CREATE TABLE m (id int)')", "op.drop_table('m')")
    ground = at_first(project)
    before = ground.world()
    done = ground.rollbackd(*GATE, "--json")
    assert done.returncode == 0, done.stdout
    said = answer(done)
    assert (said["go"], said["verdict"], said["reasons"]) == (True, "go", [])
    assert {m["revision"]: [f["fault"] for f in m["found"]] for m in said["migrations"]} == {
        "stricter": [],
        "more": ["loses_data"],
    }
    # What each downgrade executed, for who may have to run it by hand.
    ran = {m["revision"]: " ".join(m["statements"]) for m in said["migrations"]}
    assert "DROP CONSTRAINT one_name" in ran["stricter"]
    assert "DROP TABLE m" in ran["more"]
    assert said["heads"] == ["first"]
    assert said["backup"]["level"] == 4
    assert ground.world() == before
    # Nothing is pending after the deploy, and the gate says go to that as well.
    project.alembic(ground.url(), "upgrade", "head")
    again = answer(ground.rollbackd(*GATE, "--deployment", "ci-2", "--json"))
    assert (again["verdict"], again["migrations"], again["heads"]) == ("go", [], ["more"])


def test_by_default_the_gate_warns_and_names_each_fault(
    at_first: Callable[..., Ground], sinful: Project
) -> None:
    """Go all the same, with exit code 0; each reason begins with the revision."""
    ground = at_first(sinful)
    done = ground.rollbackd(*GATE, "--json")
    assert done.returncode == 0
    said = answer(done)
    assert (said["go"], said["verdict"]) == (True, "warn")
    sin, clash = said["reasons"]
    assert sin.startswith("sin: sin is silently irreversible")
    assert clash.startswith("clash: can't be taken off: ")
    assert "one_name" in clash
    assert [m["revision"] for m in said["migrations"]] == ["good", "sin", "clash"]
    assert len(ground.backups("gate")) == 1
    shown = ground.rollbackd(*GATE)
    assert shown.returncode == 0
    assert shown.stdout.startswith("go: at first, backup ")
    assert "  ! sin: sin is silently irreversible" in shown.stdout


def test_a_strict_policy_stops_the_deploy_before_a_backup_is_wasted_on_it(
    at_first: Callable[..., Ground], sinful: Project
) -> None:
    """Exit code 1, the reasons, nothing changed; without the sins the same gate lets it pass."""
    ground = at_first(sinful, policy={"unsafe_migrations": "stop"})
    before = ground.world()
    done = ground.rollbackd(*GATE, "--json")
    assert done.returncode == 1
    said = answer(done)
    assert (said["go"], said["verdict"], said["backup"]) == (False, "stop", {})
    assert said["reasons"][0].startswith("sin: sin is silently irreversible")
    assert said["heads"] == ["first"]
    assert ground.backups() == []
    assert ground.world() == before
    shown = ground.rollbackd(*GATE)
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (1, "stop")

    versions = sinful.folder / "migrations" / "versions"
    for name in ("sin", "clash"):
        (versions / f"{name}.py").unlink()
    mended = answer(ground.rollbackd(*GATE, "--json"))
    assert (mended["go"], mended["verdict"]) == (True, "go")


def test_who_doesnt_want_to_know_isnt_told(at_first: Callable[..., Ground], sinful: Project) -> None:
    """`unsafe_migrations = "go"` tries nothing and says nothing."""
    ground = at_first(sinful, policy={"unsafe_migrations": "go"})
    said = answer(ground.rollbackd(*GATE, "--json"))
    assert (said["go"], said["verdict"], said["reasons"], said["migrations"]) == (True, "go", [], [])


@pytest.mark.parametrize(("policy", "go", "verdict"), [("warn", True, "warn"), ("stop", False, "stop")])
def test_what_cant_be_tried_isnt_known_to_be_safe(
    at_first: Callable[..., Ground], sinful: Project, policy: str, go: bool, verdict: str
) -> None:
    """A scratch server that is down clears nothing: it is a warning, and the strictest policy stops for it."""
    ground = at_first(
        sinful,
        policy={"unsafe_migrations": policy, "backup_level": 2},
        scratch={"url": "postgresql://nobody@127.0.0.1:1/postgres"},
    )
    done = ground.rollbackd(*GATE, "--json")
    assert done.returncode == (0 if go else 1)
    said = answer(done)
    assert (said["go"], said["verdict"], said["migrations"]) == (go, verdict, [])
    assert said["reasons"][0].startswith("the pending migrations couldn't be tried: ")
    assert "127.0.0.1:1" in said["reasons"][0]


def test_an_upgrade_that_fails_on_todays_rows_is_foretold(
    at_first: Callable[..., Ground], tmp_path: Path
) -> None:
    """The copy holds the rows of production: the deploy would fail, and the gate says so before it."""
    project = new_project(tmp_path / "project")
    project.revision(
        "doomed",
        "op.execute('ALTER TABLE customers ADD CONSTRAINT few CHECK (id < 5)')",
        "op.drop_constraint('few', 'customers')",
    )
    project.revision("above", "op.execute('CREATE TABLE m (id int)')", "op.drop_table('m')")
    ground = at_first(project, policy={"unsafe_migrations": "stop"})
    done = ground.rollbackd(*GATE, "--json")
    assert done.returncode == 1
    (reason, *_) = answer(done)["reasons"]
    assert reason.startswith("doomed: can't be put on: ")
    assert "few" in reason
