"""Following a run: until it needs nobody or somebody else, over a daemon that is away, and for whoever has stopped reading."""

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rich.console import Console
from tests.cli.test_views import JOURNAL, a_run, document

from rollbackd.cli import following
from rollbackd.core.run import RunState
from rollbackd.errors import TransientError

ENDED = document(a_run(RunState.SUCCEEDED), JOURNAL[:2])
GOING = document(a_run(), JOURNAL[:1])


def seen(*looks: dict[str, Any] | Exception) -> Callable[[], Awaitable[dict[str, Any]]]:
    """One after another, each what a look finds."""
    left = list(looks)

    async def look() -> dict[str, Any]:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    return look


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0)


async def test_each_record_is_told_once_and_a_daemon_that_is_away_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it says of itself goes to stderr, once."""
    away = TransientError("no daemon answers")
    run = await following.follow(seen(GOING, away, away, GOING, ENDED), Console(), quiet=False)
    assert run is ENDED
    out, err = capsys.readouterr()
    assert [line.split()[2] for line in out.splitlines()] == ["run", "intent", "done"]
    assert err.splitlines() == ["rollbackd: no daemon answers; waiting for it"]


async def test_a_daemon_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it said last."""
    monkeypatch.setattr(following, "DAEMON_PATIENCE_S", -1)
    with pytest.raises(TransientError, match="no daemon answers"):
        await following.follow(seen(GOING, TransientError("no daemon answers")), Console(), quiet=True)


async def test_a_run_at_which_nobody_is_at_work_is_not_waited_for() -> None:
    """It is looked at once more, after it was known that nobody is."""
    run = await following.follow(seen(GOING), Console(), quiet=True, is_at_work=lambda: False)
    assert run is GOING


async def test_a_run_goes_on_when_whoever_read_its_lines_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `rollbackd rollback … | head -1`: the reader's end of the pipe is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    unread = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", unread)
    run = await following.follow(seen(GOING, GOING, ENDED), Console(stderr=True), quiet=False)
    assert run is ENDED
    with pytest.raises(BrokenPipeError):
        unread.close()
