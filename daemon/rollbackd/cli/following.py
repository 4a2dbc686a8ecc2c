"""Following a run to where it needs nobody or somebody else: a live tree on a terminal, a line for each change elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import click
from rich.console import Console
from rich.live import Live

from rollbackd.app.clock import SystemClock
from rollbackd.app.local import DaemonClient
from rollbackd.cli.output import is_live
from rollbackd.cli.run_view import journal_lines, progress_line, run_tree
from rollbackd.cli.times import clock, utc_now
from rollbackd.core.records import Run
from rollbackd.errors import StoreUnavailableError, TransientError
from rollbackd.workflow.overview import Overview

if TYPE_CHECKING:
    from rollbackd.app.composition import Parts

POLL_S = 0.3
# A daemon that is being restarted goes on with its runs: whoever follows one waits that long for it.
DAEMON_PATIENCE_S = 60.0
# On a pipe, how often the progress of a long step is told.
PROGRESS_EVERY_S = 15.0
REDRAWN_A_SECOND = 8
GOING = ("running", "planned")
Look = Callable[[], Awaitable[dict[str, Any]]]


class Shown(Protocol):
    """Where a run is shown while it goes on."""

    def show(self, run: dict[str, Any]) -> None:
        """The run as it is now."""

    def note(self, text: str) -> None:
        """Something that isn't about the run itself."""


async def follow(
    look: Look, out: Console, *, quiet: bool, is_at_work: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Show a run until it needs nobody or somebody else, or until nobody is at work on it; how it stands then.

    Raises:
        TransientError: when the daemon hasn't answered for a minute; the run goes on when it is started again.
    """
    if quiet:
        return await _until_it_rests(look, Nothing(), is_at_work)
    if not is_live(out):
        return await _until_it_rests(look, Lines(), is_at_work)
    with Live(console=out, refresh_per_second=REDRAWN_A_SECOND) as live:
        tree = LiveTree(live)
        run = await _until_it_rests(look, tree, is_at_work)
        tree.end(run)
    return run


async def follow_here(parts: "Parts", run: Run, out: Console, *, quiet: bool) -> dict[str, Any]:
    """Execute a running run here, to its end. Ctrl-C lets the step that is under way finish, as SIGTERM does in the daemon."""
    overview = Overview(
        lambda: parts.configuration.settings.targets, parts.store, SystemClock(), parts.operations.progress
    )
    try:
        return await follow(
            lambda: overview.run(run.id), out, quiet=quiet, is_at_work=lambda: parts.engine.executes(run.id)
        )
    except asyncio.CancelledError:
        click.echo(
            f"rollbackd: the step under way is being finished; 'rollbackd serve' goes on with {run.id}",
            err=True,
        )
        raise


async def follow_in_daemon(client: DaemonClient, run_id: str, out: Console, *, quiet: bool) -> dict[str, Any]:
    """Show a run that the daemon executes; Ctrl-C ends the showing alone."""
    try:
        return await follow(lambda: client.ask("GET", f"/api/v1/runs/{run_id}"), out, quiet=quiet)
    except asyncio.CancelledError:
        click.echo(
            f"rollbackd: {run_id} goes on in the daemon; 'rollbackd status --watch' shows it", err=True
        )
        raise


async def _until_it_rests(look: Look, shown: Shown, is_at_work: Callable[[], bool]) -> dict[str, Any]:
    clock_s = asyncio.get_running_loop().time
    answered = clock_s()
    while True:
        # Asked first: what ended in between is then seen as it ended.
        at_work = is_at_work()
        try:
            run = await look()
        except (TransientError, StoreUnavailableError) as error:
            if clock_s() - answered > DAEMON_PATIENCE_S:
                raise
            shown.note(f"{error}; waiting for it")
        else:
            answered = clock_s()
            shown.show(run)
            if run["state"] not in GOING or not at_work:
                return run
        await asyncio.sleep(POLL_S)


class Nothing:
    """For whoever reads the outcome alone."""

    def show(self, run: dict[str, Any]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class Lines:
    """A line for each record of the journal, and now and then one for the progress.

    When nobody reads any more it falls silent: a run isn't stopped because of that.
    """

    def __init__(self) -> None:
        self._records = 0
        self._began = False
        self._note = ""
        self._is_heard = True
        self._told_progress = utc_now()

    def show(self, run: dict[str, Any]) -> None:
        """What is new."""
        now = utc_now()
        self._note = ""
        if not self._began:
            self._began = True
            self._tell(f"{clock(now)}  {'run':<7} {run['id']}")
        for line in journal_lines(run, self._records):
            self._tell(line)
            self._told_progress = now
        self._records = len(run["journal"])
        if (now - self._told_progress).total_seconds() >= PROGRESS_EVERY_S:
            self._told_progress = now
            if line := progress_line(run, now):
                self._tell(line)

    def note(self, text: str) -> None:
        """Once, however often it is said."""
        if text != self._note:
            self._note = text
            click.echo(f"rollbackd: {text}", err=True)

    def _tell(self, line: str) -> None:
        if self._is_heard:
            try:
                click.echo(line)
            except BrokenPipeError:
                self._is_heard = False


class LiveTree:
    """The run's tree, redrawn in place."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, run: dict[str, Any]) -> None:
        """As it is now."""
        self._live.update(run_tree(run, utc_now()))

    def note(self, text: str) -> None:
        """In place of the tree, until it can be drawn again."""
        self._live.update(f"rollbackd: {text}")

    def end(self, run: dict[str, Any]) -> None:
        """As it stays on the screen."""
        self._live.update(run_tree(run, utc_now(), moves=False), refresh=True)
