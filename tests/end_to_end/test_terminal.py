"""What a person sees in a real terminal, and what a program gets on a pipe, while something happens."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.cells import cell_len
from tests.end_to_end.ground import OLD, Ground, environment, wait_until
from tests.end_to_end.terminal import Terminal

pytestmark = pytest.mark.timeout(180)

ROLLBACK = (
    "rollback",
    "shop",
    "--to",
    "customers",
    "--reason",
    "checkout is down",
    "--release",
    OLD,
    "--yes",
)
RUN = re.compile(r"run-\d{8}T\d{6}-[0-9a-f]{8}")


Piped = Callable[..., "subprocess.Popen[str]"]
InTerminal = Callable[..., Terminal]


@pytest.fixture
def piped(shop: Ground) -> Iterator[Piped]:
    """Starts a command of ours on a pipe; none is left running."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "rollbackd", "--config", str(shop.config), *argv]
        made = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(made)
        return made

    yield start
    for one in started:
        one.kill()
        one.communicate()


@pytest.fixture
def in_terminal(shop: Ground) -> Iterator[InTerminal]:
    """Starts a command of ours in a terminal; none is left running."""
    started: list[Terminal] = []

    def start(*argv: str, columns: int = 80, **extra: str) -> Terminal:
        started.append(Terminal(shop.config, *argv, columns=columns, **extra))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def ended(watch: "subprocess.Popen[str]") -> list[str]:
    """What it printed, once it is interrupted; that is how it ends, so it exits with 0."""
    watch.send_signal(signal.SIGINT)
    out, err = watch.communicate(timeout=30)
    assert (watch.returncode, err) == (0, "")
    return out.splitlines()


def test_a_rollback_is_a_tree_on_a_terminal_and_a_line_for_each_change_on_a_pipe(
    shop: Ground, piped: Piped, in_terminal: InTerminal
) -> None:
    """The same run, watched in three ways: followed at 80 columns, by `status --watch` on a pipe, and as JSON lines."""
    shop.start()
    lines, documents = piped("status", "--watch"), piped("status", "--watch", "--json")
    for watch in (lines, documents):
        assert watch.stdout is not None
        watch.stdout.readline()
    followed = in_terminal(*ROLLBACK, columns=80)
    assert followed.end() == 0, followed.raw
    assert followed.frames() > 5
    left = followed.left()
    assert all(cell_len(line) <= 80 for line in left)
    run = RUN.findall(left[0])[0]
    assert left[0].startswith(f"{run}  succeeded  shop")
    steps = [line for line in left if line.startswith(("├──", "└──"))]
    assert len(steps) == 9
    assert all(line[4] == "✓" for line in steps)
    # Times stand under one another; those that only waited say so.
    assert {cell_len(line.rstrip()) for line in steps} <= {79, 80}
    assert all("waited" in line for line in steps[-2:])
    assert f"report: rollbackd report {run}" in left

    wait_until(
        lambda: json.loads(shop.rollbackd("status", "--json").stdout)[0]["run"]["state"] == "succeeded",
        "ended",
    )
    coloured, plain = in_terminal("status"), in_terminal("status", NO_COLOR="1")
    assert (coloured.end(), plain.end()) == (0, 0)
    assert coloured.colours()
    assert not plain.colours()
    assert run in "".join(plain.left())

    told = [line.split(None, 4) for line in ended(lines)]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", words[0]) and words[1:3] == ["UTC", "shop"] for words in told)
    done = [words[4] for words in told if words[3] == "step" and words[4].endswith(": done")]
    assert [text.partition(" of 9, ")[0] for text in done] == [str(number) for number in range(1, 10)]
    assert [words[4] for words in told if words[3] == "run"][-1] == f"{run} succeeded"
    last: list[dict[str, Any]] = json.loads(ended(documents)[-1])
    assert (last[0]["name"], last[0]["run"]["id"], last[0]["run"]["state"]) == ("shop", run, "succeeded")


def test_a_watch_is_redrawn_in_place_and_goes_on_when_the_daemon_goes(
    shop: Ground, in_terminal: InTerminal
) -> None:
    """On the terminal's other screen; Ctrl-C ends it with 0, and the last view stays. The held run says what to do."""
    shop.configure(checks=[{"name": "never", "sql": "SELECT name FROM customers LIMIT 1"}])
    held = json.loads(shop.rollbackd(*ROLLBACK, "--json").stdout)
    shop.start()
    watch = in_terminal("status", "--watch", columns=80)
    watch.until("waiting for a person")
    assert "\x1b[?1049h" in watch.raw, "the terminal's other screen"
    assert "no daemon answers" not in watch.raw
    shop.stop()
    watch.until("no daemon answers")
    watch.interrupt()
    assert watch.end() == 0
    stays = watch.raw.split("\x1b[?1049l")[-1]
    for command in ("report", "resume", "abandon"):
        assert f"rollbackd {command} {held['id']}" in stays, "each is whole, to be copied"
    assert held["course"][5]["stands"] == "held"
    assert "own:never" in stays


def test_following_can_be_left_and_the_run_goes_on_in_the_daemon(
    shop: Ground, in_terminal: InTerminal
) -> None:
    """Ctrl-C ends the following alone, with 130, and says where the run is to be seen."""
    shop.configure(deployment={"environment": {"MOMENT_S": "2"}})
    shop.start()
    followed = in_terminal(*ROLLBACK)
    followed.until("stop the application")
    wait_until(lambda: shop.commands() == ["stop"], shop.words)
    followed.interrupt()
    assert followed.end() == 130
    assert "goes on in the daemon" in followed.raw
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]


def test_whoever_stops_reading_ends_a_watch_quietly(shop: Ground, piped: Piped) -> None:
    """As in `rollbackd status --watch | head -1`: no traceback."""
    shop.start()
    watch = piped("status", "--watch")
    assert watch.stdout is not None
    assert watch.stdout.readline()
    watch.stdout.close()
    shop.rollbackd("pause", "shop", "--reason", "so that there is something to tell")
    assert watch.wait(30) == 141
    assert watch.stderr is not None
    assert watch.stderr.read() == ""
    # Nothing is left to be read when the fixture looks.
    watch.stdout = None
