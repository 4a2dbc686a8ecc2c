"""`rollbackd demo` tells the truth: every scenario's claims hold, nothing is left running, and a false claim fails it."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.ground import DAEMON, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROLLED_BACK = ("all ", "tables and columns are those from before the deploy", "the report says succeeded")
# By `rollbackd restore`, once the fixed migration is in.
BROUGHT_BACK = ("what the downgrade took away is back: ", "bringing it back twice does nothing more")
# For each scenario the row that decides, and beginnings of what must have been checked.
SCENARIOS = {
    "application-fails": ("application-fails-after-good-migration", (*ROLLED_BACK, *BROUGHT_BACK)),
    "production-errors": ("production-errors-after-deploy", (*ROLLED_BACK, *BROUGHT_BACK)),
    "production-approval": (
        "application-fails-after-good-migration",
        (
            *ROLLED_BACK,
            *BROUGHT_BACK,
            "alice, who may operate and not approve, is refused",
            "the report names who approved",
        ),
    ),
    "migration-failed-clean": ("migration-failed-clean", (*ROLLED_BACK, "no downgrade was run")),
    "migration-failed-midway": ("migration-failed-midway", ROLLED_BACK),
    "migration-failed-inside": (
        "migration-failed-inside-a-revision",
        (*ROLLED_BACK, "the run is held and names what differs", "the inverse statements are shown"),
    ),
    "minor-bug": ("minor-bug-in-the-migration", ("the action is fix_forward", "no run was made")),
    "data-loss": (
        "data-loss-by-the-migration",
        (
            *ROLLED_BACK,
            "the migration, run again on the backup, was seen to delete them",
            "what the customer withdrew stays withdrawn",
        ),
    ),
    "nothing-moved": ("application-fails-nothing-moved", (*ROLLED_BACK, "no downgrade was run")),
}


def tell(daemon: Path, folder: Path, *argv: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the demo of this source folder; also the mark that every process of it carries in its environment."""
    mark = f"demo-{uuid.uuid4().hex}"
    done = subprocess.run(
        [sys.executable, "-m", "rollbackd", "demo", "--json", *argv],
        env={**environment(), "PYTHONPATH": str(daemon), "TMPDIR": str(folder), "DEMO_MARK": mark},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done, mark


def processes_with(text: str) -> list[str]:
    """Command lines of processes that hold this text in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if text.encode() in line + (entry / "environ").read_bytes():
                    found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """All scenarios, told once: the result, the folder for temporary files, the processes' mark."""
    folder = tmp_path_factory.mktemp("demo")
    done, mark = tell(DAEMON, folder, "--all")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), folder, mark


@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_claim_of_a_scenario_was_checked(told: tuple[dict[str, Any], Path, str], name: str) -> None:
    """The decision is the one that the design's table names, and what was promised was looked at."""
    row, expected = SCENARIOS[name]
    (found,) = [s for s in told[0]["scenarios"] if s["scenario"] == name]
    assert any(claim.startswith(f"row {row} decided") for claim in found["claims"])
    missing = [text for text in expected if not any(claim.startswith(text) for claim in found["claims"])]
    assert missing == []


@pytest.mark.xdist_group("demo")
def test_all_scenarios_are_told_and_nothing_is_left_over(told: tuple[dict[str, Any], Path, str]) -> None:
    """No process of the demo lives on, and of its files only the reports, which it names, are kept."""
    result, folder, mark = told
    assert result["ok"]
    assert [s["scenario"] for s in result["scenarios"]] == list(SCENARIOS)
    assert processes_with(mark) == []
    assert processes_with(str(folder)) == []
    (kept,) = folder.iterdir()
    reports = {s["report"] for s in result["scenarios"] if s["report"]}
    assert {str(path) for path in kept.iterdir()} == reports
    assert len(reports) == len(SCENARIOS) - 1, "a fix forward has no run, and so no report"


@pytest.mark.xdist_group("demo")
def test_a_claim_that_isnt_so_fails_the_demo(tmp_path: Path) -> None:
    """A downgrade that spoils values without losing a row: the demo says which claim fails, exits 1 and clears away."""
    checkout = tmp_path / "checkout"
    shutil.copytree(DAEMON, checkout / "daemon", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("hooks", "config"):
        shutil.copytree(DAEMON.parent / folder, checkout / folder)
    script = checkout / "daemon/rollbackd/demo/shop/releases/2026.11.4/versions/add_loyalty.py"
    spoilt = script.read_text().replace(
        'op.drop_table("loyalty_events")',
        'op.drop_table("loyalty_events")\n    op.execute("UPDATE orders SET total_cents = total_cents + 1 WHERE id = 1")',
    )
    script.write_text(spoilt)
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    done, mark = tell(checkout / "daemon", temporary, "--scenario", "application-fails")

    assert done.returncode == 1
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert not result["ok"]
    assert "this is not so: all " in result["fault"]
    assert "rows are equal, row by row" in result["fault"]
    assert processes_with(mark) == []
