"""What systemd is told, when the watchdog isn't fed any more, and what the unit allows."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.app.service_manager import ServiceManager
from tests.app.test_daemon import Daemon
from tests.conftest import RequireProgram

from rollbackd.app.systemd import Systemd
from rollbackd.resources import resource

STUCK = Path(__file__).with_name("stuck_daemon.py")
WATCHDOG_S = 1.2
FED_EVERY_S = WATCHDOG_S / 4
MOST_EXPOSED = 1.4
StartStuck = Callable[[str], tuple[Daemon, ServiceManager]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartStuck]:
    made: list[tuple[Daemon, ServiceManager]] = []

    def starting(part: str) -> tuple[Daemon, ServiceManager]:
        manager = ServiceManager(tmp_path, WATCHDOG_S)
        daemon = Daemon(tmp_path, manager.environment, [sys.executable, str(STUCK)], part)
        made.append((daemon, manager))
        return daemon.wait(), manager

    yield starting
    for daemon, manager in made:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()
        manager.close()


def test_systemd_is_told_of_start_reload_and_stop_in_this_order(start: StartStuck) -> None:
    daemon, manager = start("nothing")
    manager.hear_until("READY=1")
    assert manager.hear_until("STATUS=")[-1] == "STATUS=1 targets, 0 deployments watched, 0 runs unfinished"
    before = time.monotonic_ns() // 1000
    daemon.process.send_signal(signal.SIGHUP)
    manager.hear_until("RELOADING=1")
    at = int(manager.hear_until("MONOTONIC_USEC=")[-1].partition("=")[2])
    assert before <= at <= time.monotonic_ns() // 1000
    manager.hear_until("READY=1")
    daemon.process.send_signal(signal.SIGTERM)
    manager.hear_until("STOPPING=1")
    manager.hear_until("EXTEND_TIMEOUT_USEC=60000000")
    assert daemon.process.wait(30) == 0


def test_a_refused_reload_ends_as_well_and_the_status_says_so(start: StartStuck) -> None:
    daemon, manager = start("nothing")
    manager.hear_until("READY=1")
    daemon.config.write_text("nonsense = 1\n" + daemon.config.read_text())
    daemon.process.send_signal(signal.SIGHUP)
    manager.hear_until("RELOADING=1")
    manager.hear_until("READY=1")
    refused = manager.hear_until("STATUS=1 targets, 0 deployments watched, 0 runs unfinished; the")[-1]
    assert refused.endswith("the configuration on disk was refused, see the log")


def test_a_daemon_at_work_goes_on_feeding(start: StartStuck) -> None:
    daemon, manager = start("nothing")
    for number in range(4):
        manager.hear_until("WATCHDOG=1")
        assert daemon.post(f"event-{number}") == 202


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("pipeline", "the pipeline should have been heard of"),
        ("house", "the house should have been heard of"),
        ("store", "the store didn't answer within"),
    ],
)
def test_a_part_that_is_stuck_stops_the_feeding_though_the_daemon_still_answers(
    start: StartStuck, part: str, says: str
) -> None:
    daemon, manager = start(part)
    manager.hear_until("WATCHDOG=1")
    assert daemon.post("one") == 202
    starves(manager)
    assert daemon.get("/livez")[0] == 200
    said = [line for line in daemon.lines() if line["event"] == "watchdog_not_fed"]
    assert any(says in text for text in said[0]["because"])


def test_a_loop_that_stands_still_stops_the_feeding_and_its_end_shows_where(start: StartStuck) -> None:
    daemon, manager = start("loop")
    manager.hear_until("WATCHDOG=1")
    with pytest.raises(OSError, match="timed out"):
        daemon.post("one", timeout_s=1)
    starves(manager)
    # As systemd does.
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(30) == -signal.SIGABRT
    assert re.search(
        r'Current thread .*\n  File ".*stuck_daemon.py", line \d+ in hear', daemon.log.read_text()
    )


def starves(manager: ServiceManager) -> None:
    """Nothing is fed for longer than the watchdog waits, once what was under way is told."""
    until = time.monotonic() + 30
    fed_at = time.monotonic()
    while time.monotonic() - fed_at < 2 * WATCHDOG_S:
        assert time.monotonic() < until, "it is fed for ever"
        manager.told.clear()
        if manager.hear(FED_EVERY_S) and "WATCHDOG=1" in manager.told:
            fed_at = time.monotonic()


def test_a_watchdog_that_is_meant_for_another_process_is_not_ours() -> None:
    told = {"WATCHDOG_USEC": "1000000"}
    assert Systemd(told).watchdog_s == 1.0
    assert Systemd({**told, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 1.0
    assert Systemd({**told, "WATCHDOG_PID": "1"}).watchdog_s == 0.0
    assert Systemd({"WATCHDOG_USEC": "soon"}).watchdog_s == 0.0


def test_a_service_manager_that_is_gone_stops_nothing(tmp_path: Path) -> None:
    Systemd({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_an_abstract_address_is_told_too() -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0rollbackd-test-{os.getpid()}")
        manager.settimeout(5)
        Systemd({"NOTIFY_SOCKET": f"@rollbackd-test-{os.getpid()}"}).ready()
        assert manager.recv(100) == b"READY=1"


# -- the unit ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The shipped unit, its program being one that is there."""
    path = tmp_path / "rollbackd.service"
    text = resource("systemd", "rollbackd.service").read_text(encoding="utf-8")
    path.write_text(text.replace("/opt/rollbackd/bin/rollbackd", sys.executable))
    return path


def test_the_unit_is_what_systemd_understands(unit: Path, require_program: RequireProgram) -> None:
    done = analyze(require_program, "verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_exposed_as_little_as_a_daemon_that_dumps_and_migrates_can_be(
    unit: Path, require_program: RequireProgram
) -> None:
    done = analyze(
        require_program, "security", "--offline=true", f"--threshold={MOST_EXPOSED * 10:.0f}", str(unit)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Overall exposure level for rollbackd.service: ([\d.]+)", done.stdout)
    assert found is not None
    assert float(found[1]) <= MOST_EXPOSED


def analyze(require_program: RequireProgram, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = require_program("systemd-analyze")
    return subprocess.run(
        [str(program), "--no-pager", *arguments], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
