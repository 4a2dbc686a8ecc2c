"""What would keep others out for too long is copied before the lock: a whole run, one that fails, one that is killed."""

import signal
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from tests.end_to_end.ground import NEW, OLD, Ground, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# A lock is waited for this long at a time, and a second more.
LONGER_THAN_ONE_TRY_S = 4.0
STEPS = [
    "validate_before",
    "back_up",
    "prove_backup",
    "copy_ahead",
    "stop_application",
    "downgrade",
    "validate_database",
    "start_application",
    "validate_application",
    "confirm",
]


@pytest.fixture
def hurried_shop(shop: Ground) -> Ground:
    """Nobody may be kept out for longer than a millisecond; `visits` is dropped first, `customers.nickname` next."""
    shop.configure(archive={"lock_budget": "1ms"}, migrations={"lock_timeout": "500ms", "lock_attempts": 1})
    return shop


def archives(ground: Ground) -> dict[str, list[tuple[Any, ...]]]:
    """What is kept, by table and column."""
    entries = ground.query(
        "SELECT table_name, column_name, archive, row_count FROM rollbackd_archive.entries ORDER BY id"
    )
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table, column, archive, rows in entries:
        place = ".".join(filter(None, (table, column)))
        assert place not in found, f"{place} was kept twice"
        found[place] = ground.rows(f'rollbackd_archive."{archive}"')
        assert len(found[place]) == rows
    return found


def traces(ground: Ground) -> list[tuple[str, ...]]:
    """Triggers, functions and tables of a copy, beside the archives that are listed."""
    listed = ""
    if ground.query("SELECT to_regclass('rollbackd_archive.entries') IS NOT NULL") == [(True,)]:
        listed = (
            " AND c.relname <> 'entries' AND c.relname NOT IN (SELECT archive FROM rollbackd_archive.entries)"
        )
    return ground.query(
        "SELECT tgname::text FROM pg_trigger WHERE tgname ~ '^rollbackd' UNION ALL SELECT proname::text FROM pg_proc"
        " WHERE pronamespace = to_regnamespace('rollbackd_archive') UNION ALL SELECT c.relname::text FROM pg_class c"
        f" WHERE c.relnamespace = to_regnamespace('rollbackd_archive') AND c.relkind = 'r'{listed}"
    )


def evidence(run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """What the journal says of the step's outcome, each time that it had one."""
    return [
        r["evidence"]
        for r in run["journal"]
        if run["steps"][r["step"]]["kind"] == kind and r["phase"] in ("done", "undone")
    ]


def test_what_takes_longer_than_the_lock_budget_is_copied_before_the_release_is_stopped(
    hurried_shop: Ground,
) -> None:
    """And what is written between the copy and the downgrade is in the archive as well, once."""
    ground = hurried_shop
    visits = ground.rows("visits")
    nicknames = ground.rows("customers", "id, nickname")
    ground.start()

    def write_while_it_is_copied() -> None:
        copying = "SELECT count(*) FROM pg_trigger WHERE tgname ~ '^rollbackd'"
        wait_until(lambda: ground.query(copying)[0][0], "a copy is begun")
        with suppress(psycopg.errors.UndefinedTable):
            ground.query("INSERT INTO visits VALUES (1000000, 'late')")
            written.append("insert")
            ground.query("DELETE FROM visits WHERE id = 1")
            written.append("delete")

    written: list[str] = []
    writing = threading.Thread(target=write_while_it_is_copied)
    writing.start()
    ground.ask_rollback("customers")
    run = ground.ended_run()
    writing.join()

    assert run["state"] == "succeeded", run["statement"]
    assert [step["kind"] for step in run["steps"]] == STEPS
    (copied,) = evidence(run, "copy_ahead")
    assert [(c["table"]["name"], c["copied"]) for c in copied["copied"]] == [("visits", True)]
    assert written == ["insert", "delete"], "the release ran on while its table was copied"
    assert archives(ground) == {
        "visits": [*visits[1:], (1_000_000, "late")],
        "customers.nickname": nicknames,
    }
    assert traces(ground) == []
    assert ground.running() == OLD
    assert ground.heads() == ["customers"]


def test_a_run_that_fails_throws_its_copy_away_with_its_triggers(hurried_shop: Ground) -> None:
    """Somebody holds the table when the downgrade wants it, and after: nothing was changed, and nothing of ours stays."""
    ground = hurried_shop
    before = ground.rows("visits")
    ground.start()
    said = {"version": NEW, "previous_version": OLD, "deployment": "ci-1"}
    assert ground.send("deploy.succeeded", **said) == 202
    wait_until(lambda: ground.ask("GET", "/api/v1/deployments")[1], "the deployment is known")
    ground.ask_rollback("customers")
    wait_until(lambda: traces(ground), "a copy is begun")
    with psycopg.connect(ground.server.url(ground.database)) as reader:
        reader.execute("SELECT count(*) FROM visits")
        wait_until(lambda: ground.commands() == ["stop", f"start {NEW}"], "the release is started again")
        until = time.monotonic() + LONGER_THAN_ONE_TRY_S
        disarmed = "SELECT prosrc = 'BEGIN RETURN NULL; END' FROM pg_proc WHERE pronamespace = to_regnamespace('rollbackd_archive')"
        wait_until(lambda: ground.query(disarmed) == [(True,)], "nothing is logged any more")
        ground.query("INSERT INTO visits VALUES (1000000, 'meanwhile')")
        time.sleep(max(0.0, until - time.monotonic()))
    run = ground.ended_run()

    assert run["state"] == "failed", run["statement"]
    (copied, *_, discarded) = evidence(run, "copy_ahead")
    assert copied["copied"]
    assert discarded == {"discarded": ["public.visits"]}
    assert traces(ground) == []
    assert ground.query("SELECT to_regnamespace('rollbackd_archive') IS NULL") == [(True,)]
    assert ground.rows("visits") == [*before, (1_000_000, "meanwhile")]
    assert ground.heads() == ["visits"]
    assert ground.running() == NEW


def killed_at(ground: Ground, point: dict[str, Any]) -> None:
    """A daemon that kills itself at this point of the run; without one it is killed while it copies."""
    daemon = ground.start(point or None)
    with suppress(OSError):
        ground.ask_rollback("customers")
    if not point:
        wait_until(lambda: traces(ground), "a copy is begun")
        daemon.kill()
    wait_until(lambda: daemon.poll() is not None, f"the daemon reaches {point}")
    assert daemon.returncode == -signal.SIGKILL, ground.words()


@pytest.mark.parametrize(
    "point",
    [{}, {"moment": "unrecorded", "kind": "copy_ahead"}, {"moment": "done", "kind": "copy_ahead"}],
    ids=lambda point: point.get("moment", "midst"),
)
def test_a_daemon_that_is_killed_while_it_copies_ahead_ends_the_run_after_its_restart(
    hurried_shop: Ground, point: dict[str, Any]
) -> None:
    """What the dead one copied is thrown away or carried on; what was written meanwhile is kept, and all of it once."""
    ground = hurried_shop
    if not point:
        # Enough for a copy that isn't through before it is looked at.
        ground.query("INSERT INTO visits SELECT n, 'page ' || n FROM generate_series(20001, 200000) n")
    visits = ground.rows("visits")
    nicknames = ground.rows("customers", "id, nickname")
    killed_at(ground, point)
    assert traces(ground), "the dead one left a copy and its triggers"
    assert ground.heads() == ["visits"]
    if not point:
        (copy,) = ground.query(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('rollbackd_archive')"
            " AND relname ~ '^table_visits_[0-9a-f]+$' AND relkind = 'r'"
        )
        assert ground.query(f"SELECT count(*) FROM rollbackd_archive.{copy[0]}")[0][0] < len(visits)
    ground.query("UPDATE visits SET page = 'between' WHERE id = 7")
    ground.query("DELETE FROM visits WHERE id = 8")
    ground.start()
    run = ground.ended_run()

    assert run["state"] == "succeeded", run["statement"]
    assert archives(ground) == {
        "visits": [(i, "between" if i == 7 else page) for i, page in visits if i != 8],
        "customers.nickname": nicknames,
    }
    assert traces(ground) == []
    assert ground.running() == OLD
    assert len(evidence(run, "copy_ahead")) == 1
