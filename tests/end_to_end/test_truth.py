"""Only the database is believed: downgrades that behave otherwise in earnest than they did in the rehearsal.

The scripts look at a file beside them, `whim`, and never do so in scratch: what no rehearsal can foresee.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import ENV_PY, NEW, OLD, Ground, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("truth")]

# What comes before the column is dropped, and what comes after.
LOSE_THE_STAMP = "----\nop.get_bind().commit()"
COMMIT_AND_FAIL = "op.get_bind().commit()\nraise RuntimeError('a whim')\n----"
FAIL = "raise RuntimeError('a whim')\n----"
DELETE_ORDERS = "----\nop.execute('DELETE FROM orders WHERE id <= 3')"
ROLLBACK = ("rollback", "shop", "--reason", "why", "--release", OLD, "--yes")


class Whimsical:
    """A project whose downgrades do, in earnest alone, what `whim` says."""

    def __init__(self, folder: Path) -> None:
        self.project = project = Project(folder)
        self.whim = folder / "whim.py"
        # Run as text, so that no reading sees it either.
        whim = (
            f"import pathlib\nwhim = pathlib.Path({str(self.whim)!r})\n"
            "earnest = not op.get_bind().exec_driver_sql('SELECT current_database()').scalar().startswith('rollbackd')\n"
            "whim = whim.read_text() if earnest and whim.exists() else ''\n"
        )
        project.revision(
            "first",
            "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
            "op.execute('CREATE TABLE orders (id int PRIMARY KEY)')\n"
            "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 50) n\")\n"
            "op.execute('INSERT INTO orders SELECT generate_series(1, 20)')",
            "op.drop_table('orders')\nop.drop_table('customers')",
        )
        project.revision(
            "second",
            "op.add_column('customers', sa.Column('nickname', sa.Text))",
            f"{whim}"
            "exec(whim.partition('----')[0], {'op': op})\n"
            "op.drop_column('customers', 'nickname')\n"
            "exec(whim.partition('----')[2], {'op': op})",
        )
        project.revision(
            "third", "op.execute('CREATE TABLE visits (id int PRIMARY KEY)')", "op.drop_table('visits')"
        )


@pytest.fixture
def whimsical(tmp_path: Path) -> Whimsical:
    return Whimsical(tmp_path / "project")


@pytest.fixture
def at(make_ground: MakeGround, whimsical: Whimsical) -> Callable[..., Ground]:
    """The database at a revision, the new release running."""

    def make(revision: str, **sections: Any) -> Ground:
        ground = make_ground(whimsical.project)
        whimsical.project.alembic(ground.url(), "upgrade", revision)
        ground.query("UPDATE customers SET nickname = 'nick ' || id WHERE id <= 10")
        ground.configure(**sections)
        return ground

    return make


def held(ground: Ground, *argv: str) -> dict[str, Any]:
    """Roll back to `first`; it must end held."""
    done = ground.rollbackd(*ROLLBACK, "--to", "first", *argv, "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    run: dict[str, Any] = json.loads(done.stdout)
    assert run["state"] == "held"
    return run


def columns(ground: Ground) -> list[str]:
    found = ground.query(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'customers' ORDER BY 1"
    )
    return [row[0] for row in found]


def test_a_lost_stamp_is_moved_when_a_person_says_so_and_the_catalog_is_as_rehearsed(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """Alembic reports success, the column is gone, the stamp isn't moved: held; guarded; then moved and on it goes."""
    ground = at("second")
    whimsical.whim.write_text(LOSE_THE_STAMP)
    run = held(ground)
    assert ground.heads() == ["second"]
    assert columns(ground) == ["id", "name"]
    assert "the stamp is still second" in run["statement"]
    assert f"rollbackd resume {run['id']} --stamp" in run["statement"]
    assert ground.running() == ""

    # The same answer however often one looks.
    again = ground.rollbackd("resume", run["id"], "--json")
    assert (again.returncode, json.loads(again.stdout)["state"]) == (3, "held")
    assert ground.heads() == ["second"]

    ground.query("CREATE INDEX in_the_way ON customers (name)")
    refused = ground.rollbackd("resume", run["id"], "--stamp")
    assert refused.returncode == 1
    assert "the stamp isn't moved: the database is at second, and its schema isn't exactly" in refused.stderr
    assert ground.heads() == ["second"]
    ground.query("DROP INDEX in_the_way")

    done = ground.rollbackd("resume", run["id"], "--stamp", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["state"] == "succeeded"
    assert ground.heads() == ["first"]
    assert ground.running() == OLD
    assert len(ground.rows("customers")) == 50
    over = ground.rollbackd("resume", run["id"], "--stamp")
    assert over.returncode == 1
    assert f"{run['id']} is succeeded; only the stamp of a held run is moved" in over.stderr
    # What the downgrade took away was archived in its transaction, and comes back.
    whimsical.project.alembic(ground.url(), "upgrade", "second")
    assert json.loads(ground.rollbackd("restore", run["id"], "--yes", "--json").stdout)["restored"] == 10


def test_without_a_rehearsal_no_stamp_is_moved_and_a_person_settles_it(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """Nothing says what the catalog should be: --stamp is refused; stamped by hand, the run goes on."""
    ground = at("second", rehearsal={"depth": "none"})
    whimsical.whim.write_text(LOSE_THE_STAMP)
    ground.start()
    token = ground.rollbackd("tokens", "create", "ann", "--role", "operate").stdout.strip()
    asked = {"target": "shop", "to": "first", "reason": "why", "release": OLD}
    status, run = ground.ask("POST", "/api/v1/rollbacks", asked, token=token)
    assert (status, run["state"]) == (200, "awaiting_approval"), run
    assert any("the way back isn't rehearsed" in why for why in run["approval_reasons"])
    assert ground.rollbackd("approve", run["id"], "--plan", run["plan_sha256"]).returncode == 3
    run = ground.ended_run()
    assert run["state"] == "held"
    assert "the schema has changed" in run["statement"]
    assert "--stamp" not in run["statement"]
    refused = ground.rollbackd("resume", run["id"], "--stamp")
    assert refused.returncode == 1
    assert "the stamp isn't moved" in refused.stderr
    assert ground.heads() == ["second"]

    ground.query("UPDATE alembic_version SET version_num = 'first'")
    assert ground.rollbackd("resume", run["id"]).returncode == 0
    assert ground.run()["state"] == "succeeded"
    assert ground.running() == OLD


def test_a_stop_between_two_revisions_is_named_and_can_be_gone_on_from(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """Of two in one transaction the first was committed all the same: held, said which; abandoned, and asked for anew."""
    ground = at("third")
    whimsical.whim.write_text(COMMIT_AND_FAIL)
    run = held(ground)
    assert ground.heads() == ["second"]
    assert (
        "the version table says second: of third, second, third came off and the rest didn't"
        in run["statement"]
    )
    assert "abandon this run and ask for a rollback to first anew" in run["statement"]
    assert columns(ground) == ["id", "name", "nickname"]

    refused = ground.rollbackd(*ROLLBACK, "--to", "first")
    assert refused.returncode == 1
    assert ground.rollbackd("abandon", run["id"], "--reason", "on from here").returncode == 0
    whimsical.whim.unlink()
    ground.runs_version(NEW)
    done = ground.rollbackd(*ROLLBACK, "--to", "first", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert ground.heads() == ["first"]
    assert columns(ground) == ["id", "name"]


def test_a_failure_after_a_committed_revision_says_where_the_database_stands(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """env.py commits each revision: the first is off, the second fails; the cause is mended, and the run goes on."""
    whimsical.project.env_py(
        ENV_PY.replace("connection=connection", "connection=connection, transaction_per_migration=True")
    )
    ground = at("third")
    whimsical.whim.write_text(FAIL)
    run = held(ground)
    assert ground.heads() == ["second"]
    assert "a whim" in run["statement"]
    assert "It stands at second, whole" in run["statement"]
    assert "'rollbackd resume'" in run["statement"]
    whimsical.whim.unlink()
    assert ground.rollbackd("resume", run["id"]).returncode == 0
    assert ground.heads() == ["first"]
    assert columns(ground) == ["id", "name"]
    assert ground.running() == OLD


def test_rows_gone_from_a_table_outside_the_plan_fail_the_validation(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """Stamp and schema are right, and it is held all the same: the old release isn't started over missing rows."""
    ground = at("second")
    whimsical.whim.write_text(DELETE_ORDERS)
    run = held(ground)
    assert ground.heads() == ["first"]
    assert "the downgrade was done, and what is there now doesn't pass" in run["statement"]
    assert "public.orders" in str(run["statement"]) + ground.rollbackd("report", run["id"]).stdout
    assert ground.running() == ""
    assert len(ground.rows("orders")) == 17
    (backup,) = ground.backups("rollback")
    assert backup.name in ground.rollbackd("report", run["id"]).stdout


def test_a_schema_that_changed_since_the_plan_isnt_touched(
    at: Callable[..., Ground], whimsical: Whimsical
) -> None:
    """Planned, rehearsed, and then somebody made an index: refused before anything is stopped."""
    ground = at("second", policy={"approval_required": True})
    ground.start()
    token = ground.rollbackd("tokens", "create", "ann", "--role", "operate").stdout.strip()
    asked = {"target": "shop", "to": "first", "reason": "why", "release": OLD}
    status, run = ground.ask("POST", "/api/v1/rollbacks", asked, token=token)
    assert (status, run["state"]) == (200, "awaiting_approval"), run
    ground.query("CREATE INDEX by_name ON customers (name)")
    before = ground.world()
    assert ground.rollbackd("approve", run["id"], "--plan", run["plan_sha256"]).returncode == 1
    run = ground.ended_run()
    assert run["state"] == "failed"
    assert (
        "the schema has changed since the way back was planned and rehearsed: plan anew" in run["statement"]
    )
    assert ground.world() == before
    assert ground.running() == NEW
    assert ground.backups("rollback") == []
