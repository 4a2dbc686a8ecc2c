"""A daemon that is killed at any point of a run, and started again, finishes the run or holds it: never twice, never half."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, new_database, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# Every kind of step, in order, and how long after its intent it is in the midst of its work.
STEPS = {
    "validate_before": 0.005,
    "back_up": 0.1,
    "prove_backup": 0.15,
    "stop_application": 0.1,
    "preserve": 0.25,
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
PRESERVED = [("nickname", 300), ("visits", 200)]


def name_of(point: dict[str, Any]) -> str:
    moment = "midst" if point.get("delay_s") else point["moment"]
    return "-".join(filter(None, (moment, point.get("kind", ""))))


def kill_at(ground: Ground, point: dict[str, Any], to: str = "customers") -> None:
    """Ask for a rollback from a daemon that kills itself at this point, and see it die of just that."""
    daemon = ground.start(point)
    try:
        ground.ask_rollback(to)
    except OSError:
        pass  # it died before it could answer
    wait_until(lambda: daemon.poll() is not None, f"the daemon reaches {point}")
    assert daemon.returncode == -signal.SIGKILL, ground.words()


def kept_rows(ground: Ground, table: str) -> list[str]:
    """The rows of a table that the kept dump holds, as pg_restore writes them."""
    (kept,) = ground.backups("preserve")
    argv = [ground.server.bin_directory / "pg_restore", "--data-only", f"--table={table}", "--file=-", kept / "tables.dump"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    copied = text.partition("FROM stdin;\n")[2].partition("\\.\n")[0]
    return sorted(copied.splitlines())


def phases(run: dict[str, Any], kind: str) -> list[str]:
    """What the journal says of the step of this kind."""
    return [r["phase"] for r in run["journal"] if run["steps"][r["step"]]["kind"] == kind]


@pytest.mark.parametrize("point", POINTS, ids=name_of)
def test_a_killed_daemon_finishes_the_run_after_its_restart(shop: Ground, point: dict[str, Any]) -> None:
    """Whatever the moment of the kill: one downgrade, every row right, all that it destroyed kept, nothing left over."""
    customers = shop.rows("customers", "id, name")
    nicknames = sorted(f"{id_}\t{name}\t{nick}" for id_, name, nick in shop.rows("customers"))
    visits = sorted(f"{id_}\t{page}" for id_, page in shop.rows("visits"))
    kill_at(shop, point)

    shop.start()
    run = shop.ended_run()

    assert run["state"] == "succeeded", run["statement"]
    assert shop.heads() == ["customers"]
    assert shop.rows("customers") == customers
    assert shop.rows("downgrades", "attempt, revision") == [(1, "visits"), (2, "nickname")]
    assert shop.query("SELECT last_value FROM attempts") == [(2,)]
    assert kept_rows(shop, "customers") == nicknames
    assert kept_rows(shop, "visits") == visits
    assert shop.running() == OLD
    assert all(phases(run, kind).count("done") == 1 for kind in STEPS)
    assert len(shop.backups("rollback")) == 1
    wait_until(lambda: not shop.leftovers(), shop.leftovers)


@pytest.mark.parametrize("kind", STEPS)
def test_the_midst_of_a_step_is_hit(shop: Ground, kind: str) -> None:
    """The delays above are right: the process dies with the step begun and its outcome not on record."""
    kill_at(shop, {"moment": "intent", "kind": kind, "delay_s": STEPS[kind]})
    history = json.loads(shop.rollbackd("status", "--json").stdout)[0]["steps"]
    assert [s["phase"] for s in history if s["phase"] not in ("done", "waiting")] == ["intent"]
