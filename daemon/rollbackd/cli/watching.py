"""`status --watch`: looks again and again, through the daemon or at the store; redrawn in place, or a line for each change."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from rollbackd.app.clock import SystemClock
from rollbackd.app.local import DaemonClient, named_daemon, reading
from rollbackd.cli.output import is_live
from rollbackd.cli.status_view import Marks, changes, marks, screen, stale_marks
from rollbackd.cli.times import clock, utc_now
from rollbackd.errors import StoreUnavailableError, TransientError
from rollbackd.workflow.overview import Overview, nobody_knows

LOOK_EVERY_S = 1.0
# A daemon that doesn't answer by then is shown as the store says.
LOOK_TIMEOUT_S = 10.0
# However many targets there are, looking takes at most this part of the time.
LARGEST_SHARE = 0.2
REDRAWN_A_SECOND = 4
# What a run that is watched leaves no room for, in targets at rest.
LINES_OF_ONE_RUN = 8
Found = list[dict[str, Any]]


class Sight:
    """Where the status comes from: the daemon that answers, or the store of the one that doesn't."""

    def __init__(self, config: Path, target: str | None) -> None:
        self._config = config
        self._target = target
        self._client: DaemonClient = named_daemon(config)

    async def look(self) -> tuple[Found, bool]:
        """Every target's document, and whether a daemon gave it.

        Raises:
            NotFoundError: when there is no such target.
            TransientError: when a daemon elsewhere doesn't answer; its store can't be read from here.
        """
        chosen = f"?target={quote(self._target)}" if self._target is not None else ""
        try:
            found: Found = await self._client.ask("GET", f"/api/v1/targets{chosen}", timeout_s=LOOK_TIMEOUT_S)
        except TransientError:
            if self._client.is_remote:
                raise
        else:
            return found, True
        async with reading(self._config) as (configuration, store, _):
            overview = Overview(lambda: configuration.settings.targets, store, SystemClock(), nobody_knows)
            return await overview.targets(self._target), False


async def watch(sight: Sight, out: Console, *, as_json: bool) -> None:
    """Look until somebody ends it."""
    if as_json or not is_live(out):
        await _tell_changes(sight, as_json=as_json)
    else:
        await _redraw(sight, out)


async def _redraw(sight: Sight, out: Console) -> None:
    """On the terminal's other screen, so that a smaller window doesn't leave pieces behind; the last view stays."""
    found, by_daemon = await sight.look()
    loop = asyncio.get_running_loop()

    def view() -> RenderableType:
        # A target at rest takes two lines, and what is busy comes first: what doesn't fit is said.
        at_rest = max(out.height // 2 - LINES_OF_ONE_RUN, 1)
        return screen(found, utc_now(), by_daemon=by_daemon, most_at_rest=at_rest)

    try:
        with Live(view(), console=out, screen=True, refresh_per_second=REDRAWN_A_SECOND) as live:
            while True:
                began = loop.time()
                try:
                    found, by_daemon = await sight.look()
                    live.update(view())
                except (TransientError, StoreUnavailableError) as error:
                    live.update(Text(f"rollbackd: {error}; the last look is shown when you end this"))
                await asyncio.sleep(_pause_s(loop.time() - began))
    finally:
        out.print(screen(found, utc_now(), by_daemon=by_daemon, moves=False))


async def _tell_changes(sight: Sight, *, as_json: bool) -> None:
    before: Marks | None = None
    by_daemon_before, unreachable = True, ""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            found, by_daemon = await sight.look()
        except (TransientError, StoreUnavailableError) as error:
            if str(error) != unreachable:
                unreachable = str(error)
                click.echo(f"rollbackd: {unreachable}", err=True)
            await asyncio.sleep(LOOK_EVERY_S)
            continue
        if by_daemon != by_daemon_before or unreachable:
            by_daemon_before, unreachable = by_daemon, ""
            word = "the daemon answers" if by_daemon else "no daemon answers: this is what the store says"
            click.echo(f"rollbackd: {word}", err=True)
        after = marks(found)
        told = changes(stale_marks(found) if before is None else before, after)
        if as_json and told:
            click.echo(json.dumps(found, default=str))
        elif told:
            now = clock(utc_now())
            click.echo("\n".join(f"{now}  {line}" for line in told))
        before = after
        await asyncio.sleep(_pause_s(loop.time() - began))


def _pause_s(looking_s: float) -> float:
    return max(LOOK_EVERY_S, looking_s / LARGEST_SHARE)
