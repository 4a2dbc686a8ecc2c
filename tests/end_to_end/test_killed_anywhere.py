"""A daemon that is killed at any point of a run, and started again, finishes the run or holds it: never twice, never half."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import OLD, Ground, Project, environment, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Every kind of step, in order, and how long after its intent it is in the midst of its work.
STEPS = {
    "validate_before": 0.005,
    "back_up": 0.04,
    "prove_backup": 0.12,
    "stop_application": 0.1,
    "downgrade": 0.02,
    "validate_database": 0.005,
    "start_application": 0.1,
    "validate_application": 0.3,
    "confirm": 0.2,
}
POINTS = (
    [{"moment": "planned"}, {"moment": "running"}]
    + [{"moment": "intent", "kind": kind} for kind in STEPS]
    + [{"moment": "intent", "kind": kind, "delay_s": delay_s} for kind, delay_s in STEPS.items()]
    + [{"moment": "unrecorded", "kind": kind} for kind in STEPS]
    + [{"moment": "done", "kind": kind} for kind in STEPS]
)


def name_of(point: dict[str, Any]) -> str:
    moment = "midst" if point.get("delay_s") else point["moment"]
    return "-".join(filter(None, (moment, point.get("kind", ""))))


def kill_at(ground: Ground, point: dict[str, Any]) -> datetime:
    """Ask for a rollback from a daemon that kills itself at this point; when it had died of just that."""
    daemon = ground.start(point)
    with suppress(OSError):  # it may die before it can answer
        ground.ask_rollback("customers")
    wait_until(lambda: daemon.poll() is not None, f"the daemon reaches {point}")
    assert daemon.returncode == -signal.SIGKILL, ground.words()
    return datetime.now(UTC)


def archived(ground: Ground, table: str) -> list[tuple[Any, ...]]:
    """The rows of the one archive that was made of a table; nothing where there is none."""
    if ground.query("SELECT to_regclass('rollbackd_archive.entries')") == [(None,)]:
        return []
    named = f"SELECT archive FROM rollbackd_archive.entries WHERE table_name = '{table}'"
    archives = [name for (name,) in ground.query(named)]
    assert len(archives) < 2, "what goes once is archived once"
    return ground.rows(f'rollbackd_archive."{archives[0]}"') if archives else []


def unfinished_archives(ground: Ground) -> list[Any]:
    """Tables of the archive that no entry names, and triggers of ours that were left behind."""
    return [
        *ground.query(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = to_regnamespace('rollbackd_archive')"
            " AND relname <> 'entries' AND relname NOT IN (SELECT archive FROM rollbackd_archive.entries)"
            if ground.query("SELECT to_regclass('rollbackd_archive.entries')") != [(None,)]
            else "SELECT 1 WHERE false"
        ),
        *ground.query("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'rollbackd%'"),
    ]


def phases(run: dict[str, Any], kind: str) -> list[str]:
    """What the journal says of the step of this kind."""
    return [r["phase"] for r in run["journal"] if run["steps"][r["step"]]["kind"] == kind]


def times(run: dict[str, Any], kind: str) -> tuple[datetime, datetime]:
    """When the step of this kind was first begun and when its outcome was recorded."""
    found = [r["at"] for r in run["journal"] if run["steps"][r["step"]]["kind"] == kind]
    return datetime.fromisoformat(found[0]), datetime.fromisoformat(found[-1])


@pytest.mark.parametrize("point", POINTS, ids=name_of)
def test_a_killed_daemon_finishes_the_run_after_its_restart(shop: Ground, point: dict[str, Any]) -> None:
    """Whatever the moment of the kill: one downgrade, every row right, all that it destroyed kept, nothing left over."""
    customers = shop.rows("customers", "id, name")
    nicknames = shop.rows("customers", "id, nickname")
    visits = shop.rows("visits")

    killed_at = kill_at(shop, point)
    shop.start()
    run = shop.ended_run()

    assert run["state"] == "succeeded", run["statement"]
    assert shop.heads() == ["customers"]
    assert shop.rows("customers") == customers
    assert shop.rows("downgrades", "attempt, revision") == [(1, "visits"), (2, "nickname")]
    assert shop.query("SELECT last_value FROM attempts") == [(2,)]
    # The archive came with the downgrade, once: neither is there without the other.
    assert archived(shop, "customers") == nicknames
    assert archived(shop, "visits") == visits
    assert unfinished_archives(shop) == []
    assert shop.running() == OLD
    # What was stopped may have run while nobody watched: stopping is looked at again before a downgrade.
    done = {kind: phases(run, kind).count("done") - phases(run, kind).count("undone") for kind in STEPS}
    assert done == dict.fromkeys(STEPS, 1)
    assert len(shop.backups("rollback")) == 1
    if point["moment"] in ("intent", "unrecorded"):
        first, last = times(run, point["kind"])
        assert first < killed_at < last, f"the kill was to come amidst the step: {run['journal']}"
    wait_until(lambda: not shop.leftovers(), shop.leftovers)


@pytest.fixture
def sleepy_shop(make_ground: MakeGround, tmp_path: Path) -> Ground:
    """The newest revision's downgrade takes a second, in the midst of its one transaction."""
    project = small_project(tmp_path / "project")
    project.revision(
        "sleepy",
        "op.add_column('customers', sa.Column('nickname', sa.Text))\n"
        "op.execute(\"UPDATE customers SET nickname = 'Countess'\")",
        NOTE + "op.execute('SELECT pg_sleep(1)')\nop.drop_column('customers', 'nickname')",
    )
    return migrated(make_ground(project))


@pytest.fixture
def half_committing_shop(make_ground: MakeGround, tmp_path: Path) -> Ground:
    """The newest revision's downgrade commits the first of its changes, takes a second, and makes the other."""
    project = small_project(tmp_path / "project")
    project.revision(
        "halves",
        "op.create_index('ix_name', 'customers', ['name'])\n"
        "op.add_column('customers', sa.Column('nickname', sa.Text))",
        NOTE
        + "with op.get_context().autocommit_block():\n    op.execute('DROP INDEX CONCURRENTLY ix_name')\n"
        "op.execute('SELECT pg_sleep(1)')\nop.drop_column('customers', 'nickname')",
    )
    return migrated(make_ground(project))


NOTE = "op.execute(\"SELECT nextval('attempts')\")\n"
ASLEEP = {"moment": "statement", "text": "pg_sleep", "delay_s": 0.3}


def small_project(folder: Path) -> Project:
    project = Project(folder)
    project.revision(
        "customers",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers VALUES (1, 'Ada')\")\n"
        "op.execute('CREATE SEQUENCE attempts')",
        "op.drop_table('customers')",
    )
    return project


def migrated(ground: Ground) -> Ground:
    ground.project.alembic(ground.url(), "upgrade", "head")
    return ground


def migrating(ground: Ground) -> bool:
    """Whether a session of the migration worker is still there."""
    named = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rollbackd run-%'"
    return bool(ground.query(named))


def attempts(ground: Ground) -> int:
    """How often the downgrade was begun; a sequence remembers what a transaction that was undone did to it."""
    called, last = ground.query("SELECT is_called, last_value FROM attempts")[0]
    return int(last) if called else 0


def test_a_downgrade_that_outlives_its_daemon_is_waited_for_and_not_run_again(sleepy_shop: Ground) -> None:
    """The worker finishes what it began; the next daemon waits for its lock and finds the database at the target."""
    kill_at(sleepy_shop, ASLEEP)
    sleepy_shop.start()
    run = sleepy_shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert attempts(sleepy_shop) == 1
    (found,) = [r["evidence"] for r in run["journal"] if r["evidence"].get("standing")]
    assert (found["found"], found["standing"]) == (True, "to")
    assert sleepy_shop.rows("customers") == [(1, "Ada")]
    assert archived(sleepy_shop, "customers") == [(1, "Countess")]


def test_a_downgrade_that_died_with_its_daemon_is_undone_by_the_database_and_run_once_more(
    sleepy_shop: Ground,
) -> None:
    """Nothing of it was committed, so it is begun anew, and only one is ever committed."""
    kill_at(sleepy_shop, {**ASLEEP, "alone": False})
    # By then the archive was made, and the transaction that it was made in is gone: neither archive nor change.
    wait_until(lambda: not migrating(sleepy_shop), "the backend notices that its client is dead")
    assert archived(sleepy_shop, "customers") == []
    assert sleepy_shop.heads() == ["sleepy"]
    assert sleepy_shop.rows("customers") == [(1, "Ada", "Countess")]
    sleepy_shop.start()
    run = sleepy_shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    # Begun as often as an intent is on record: for the one that died, and once more (or again, where a lock was missed).
    tried = phases(run, "downgrade")
    assert attempts(sleepy_shop) == tried.count("intent") >= 2
    assert (tried.count("done"), tried[-1]) == (1, "done")
    assert sleepy_shop.heads() == ["customers"]
    assert sleepy_shop.rows("customers") == [(1, "Ada")]
    assert archived(sleepy_shop, "customers") == [(1, "Countess")]
    assert unfinished_archives(sleepy_shop) == []


def test_what_was_archived_by_a_run_that_was_killed_can_be_brought_back(sleepy_shop: Ground) -> None:
    """Once the fixed migration is in, what the run's one downgrade took away comes back, and only once."""
    kill_at(sleepy_shop, {**ASLEEP, "alone": False})
    sleepy_shop.start()
    run = sleepy_shop.ended_run()
    sleepy_shop.project.alembic(sleepy_shop.url(), "upgrade", "customers")
    sleepy_shop.query("ALTER TABLE customers ADD COLUMN nickname text")
    for restored in (1, 0):
        done = sleepy_shop.rollbackd("restore", run["id"], "--yes", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["restored"] == restored
        assert sleepy_shop.rows("customers") == [(1, "Ada", "Countess")]


def test_a_downgrade_that_died_between_its_commits_is_held_and_never_run_again(
    half_committing_shop: Ground,
) -> None:
    """Neither old nor new: it says what stands where, a resume changes nothing, and a person's own hands settle it."""
    ground = half_committing_shop
    kill_at(ground, {**ASLEEP, "alone": False})
    ground.start()
    run = ground.ended_run()
    assert run["state"] == "held"
    assert "the stamp is still halves, but the schema has changed" in run["statement"]
    assert "ix_name" in run["statement"]
    assert ground.running() == "", "neither release fits this schema"

    resumed = ground.rollbackd("resume", run["id"])
    assert resumed.returncode == 3
    assert attempts(ground) == 1
    assert ground.heads() == ["halves"]

    ground.query("ALTER TABLE customers DROP COLUMN nickname")
    ground.query("UPDATE alembic_version SET version_num = 'customers'")
    resumed = ground.rollbackd("resume", run["id"])
    assert resumed.returncode == 0, resumed.stderr
    assert attempts(ground) == 1
    assert ground.running() == OLD


def test_a_downgrade_between_its_commits_that_outlives_its_daemon_is_found_done(
    half_committing_shop: Ground,
) -> None:
    """While the worker is half through, the next daemon waits for it and doesn't call it neither."""
    kill_at(half_committing_shop, ASLEEP)
    half_committing_shop.start()
    run = half_committing_shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert attempts(half_committing_shop) == 1


def test_a_second_kill_on_the_way_changes_nothing(shop: Ground) -> None:
    """The daemon that goes on is killed too, one step later, and again; the third restart finishes."""
    kill_at(shop, {"moment": "unrecorded", "kind": "back_up"})
    for kind in ("stop_application", "downgrade", "start_application"):
        daemon = shop.start({"moment": "unrecorded", "kind": kind})
        wait_until(lambda d=daemon: d.poll() is not None, f"the daemon dies at {kind}")
    shop.start()
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert shop.rows("downgrades", "attempt, revision") == [(1, "visits"), (2, "nickname")]
    assert len(shop.backups("rollback")) == 1
    assert len(archived(shop, "visits")) == 20_000
    assert unfinished_archives(shop) == []
    assert shop.commands() == ["stop", f"start {OLD}"]


def test_a_killed_command_is_finished_by_the_daemon(shop: Ground) -> None:
    """A rollback that was made without a daemon, and killed with its terminal, is taken up by the next daemon."""
    argv = ["rollback", "shop", "--to", "customers", "--reason", "why", "--release", OLD, "--yes"]
    command = [sys.executable, "-m", "rollbackd", "--config", str(shop.config), *argv]
    here = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_until(lambda: shop.commands() == ["stop"], "the service is being stopped")
    here.kill()
    here.wait()
    assert shop.heads() == ["visits"]
    shop.start()
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert shop.rows("downgrades", "attempt, revision") == [(1, "visits"), (2, "nickname")]


def test_a_scratch_database_that_was_never_marked_is_swept_by_its_name(shop: Ground) -> None:
    """Whoever is killed right after CREATE DATABASE couldn't mark it; another store's is left alone."""
    shop.start()
    shop.stop()
    with closing(sqlite3.connect(shop.folder / "store" / "rollbackd.sqlite")) as store:
        (store_id,) = store.execute("SELECT value FROM meta WHERE name = 'store_id'").fetchone()
    ours, theirs = f"rollbackd_scratch_{store_id}_1", "rollbackd_scratch_0123456789abcdef_1"
    for name in (ours, theirs):
        shop.query(f"CREATE DATABASE {name}")
    shop.start()
    wait_until(lambda: ours not in shop.scratch_databases(), shop.scratch_databases)
    assert shop.scratch_databases() == [theirs]
