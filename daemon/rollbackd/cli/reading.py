"""Commands that read: what is happening, what happened, why."""

import asyncio
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import click
import msgspec

from rollbackd.app.local import reading
from rollbackd.cli import completing
from rollbackd.cli.explanation_view import explanation, show_explanation, show_investigation
from rollbackd.cli.history_view import history_rows, show_history
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import ALL, CONFIGURATION, TERMINAL, Manual
from rollbackd.cli.output import console, is_terminal, json_option, plain, show_json
from rollbackd.cli.status_view import by_urgency, screen, summary, target_lines, unfinished_lines
from rollbackd.cli.times import utc_now
from rollbackd.cli.watching import Sight, watch
from rollbackd.core.report import to_markdown
from rollbackd.core.run import RunState
from rollbackd.errors import NotFoundError, UsageError
from rollbackd.settings import parse_duration

NOTHING = "Nothing: it only reads."


@click.command(
    cls=Manual,
    changes=NOTHING,
    examples=(
        ("Everything at once, and what waits for whom:", "rollbackd status"),
        ("One target, redrawn in place until Ctrl-C:", "rollbackd status shop --watch"),
        ("A line for each change, into a log:", "rollbackd status --watch >> status.log"),
        (
            "The runs that a person has to settle:",
            """rollbackd status --json | jq '.[].run | select(.state == "held")'""",
        ),
    ),
    exits={
        0: "done; a watch that Ctrl-C ends is done too, as that is how it ends",
        1: "there is no such target, or no store yet",
    },
    environment=ALL,
)
@click.argument("target", required=False, shell_complete=completing.targets)
@click.option(
    "--watch",
    "watches",
    is_flag=True,
    help="Go on looking until Ctrl-C; on a pipe, print a line for each change.",
)
@json_option
@click.pass_obj
@asynchronous
async def status(config: Path, target: str | None, watches: bool, as_json: bool) -> None:
    """Show every target: what is watched and its price of going back, what runs, what waits for whom.

    What waits for a person comes first. The running daemon is asked, as it alone knows how far the step under way has come;
    where none runs, the store is read. With --watch and --json, the whole document is one line, printed at each change.
    """
    sight, out = Sight(config, target), console()
    if watches:
        # Ctrl-C is how a watch ends, and nothing failed.
        with suppress(asyncio.CancelledError):
            await watch(sight, out, as_json=as_json)
        return
    found, by_daemon = await sight.look()
    now = utc_now()
    if as_json:
        show_json(found)
    elif is_terminal():
        out.print(screen(found, now, by_daemon=by_daemon, moves=False))
    else:
        out.print(summary(found, now, by_daemon=by_daemon))
        for one in by_urgency(found):
            for line in (*target_lines(one, now), *unfinished_lines(one, now)):
                out.print(plain(line))


@click.command(
    cls=Manual,
    changes=NOTHING,
    examples=(
        ("What happened to one target since yesterday:", "rollbackd history shop --since 24h"),
        ("Runs that a person had to settle, or has to:", "rollbackd history --state held --state abandoned"),
        (
            "The newest run that failed:",
            "rollbackd history shop --state failed --limit 1 --json | jq -r '.[0].id'",
        ),
    ),
    environment={**CONFIGURATION, **TERMINAL},
)
@click.argument("target", required=False, shell_complete=completing.targets)
@click.option(
    "--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many, the newest first."
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in RunState]),
    help="Runs in this state alone, and no decisions; may be given several times.",
)
@click.option(
    "--since", default="", help="From then on: a duration such as 2h, or a time such as 2026-11-22T10:00Z."
)
@json_option
@click.pass_obj
@asynchronous
async def history(
    config: Path, target: str | None, limit: int, states: tuple[str, ...], since: str, as_json: bool
) -> None:
    """List runs and decisions, newest first: when, what, way, from and to, outcome, how long, who, why.

    Times are UTC. Where a line doesn't fit the terminal, each entry has three: what it was, its id and its way, who and why.
    """
    begin = _since(since) if since else None
    async with reading(config) as (_, store, _):
        runs = await store.runs(target, limit, states=tuple(map(RunState, states)), since=begin)
        decisions = [] if states else await store.decisions(target, limit, since=begin)
    rows = history_rows(runs, decisions, limit)
    if as_json:
        show_json(rows)
        return
    show_history(console(), rows, is_terminal=is_terminal())


def _since(text: str) -> datetime:
    """The time that a duration or an ISO time names."""
    try:
        return utc_now() - timedelta(seconds=parse_duration(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since: {text!r} is neither a duration such as 2h nor a time such as 2026-11-22T10:00Z"
        ) from None
    if moment.tzinfo is None:
        raise UsageError(f"--since: {text!r} needs a zone, such as {text}Z")
    return moment


@click.command(
    cls=Manual,
    changes=NOTHING,
    examples=(
        ("Why was this rolled back (or not)?", "rollbackd explain decision-20261122T221503-9f3c21aa"),
        ("The decision behind a run:", "rollbackd explain run-20261122T221509-1b2c3d4e"),
        ("Every input, byte for byte:", "rollbackd explain run-20261122T221509-1b2c3d4e --json"),
    ),
    exits={1: "there is no such decision or run, or a person asked for the run"},
    environment={**CONFIGURATION, **TERMINAL},
)
@click.argument("id_", metavar="ID", shell_complete=completing.runs_and_decisions)
@json_option
@click.pass_obj
@asynchronous
async def explain(config: Path, id_: str, as_json: bool) -> None:
    """Explain a decision, or the one behind a run: facts, numbers, row, gates, and what would have changed the answer.

    For each fact the nearest other value is named that would have led to another action; for the gates, which one, met alone,
    would have let it run. Thresholds are today's.
    """
    async with reading(config) as (configuration, store, _):
        stored = await store.decision(id_)
        run = await store.run(id_)
        if stored is None and run is not None and run.decision:
            stored = await store.decision(run.decision)
        investigation = await store.investigation(stored.id) if stored is not None else None
    if stored is None:
        raise NotFoundError(
            f"{id_} was asked for by {run.requested_by}: {run.reason}"
            if run
            else f"there is no decision or run {id_}; 'rollbackd history' lists them"
        )
    target = configuration.settings.target(stored.target)
    found = explanation(stored, configuration.matrix, target, investigation)
    if as_json:
        show_json(found)
        return
    show_explanation(console(), found, utc_now())
    if investigation is not None:
        show_investigation(console(), investigation)


@click.command(
    cls=Manual,
    changes="Nothing, but for the file of --output.",
    examples=(
        (
            "For the incident's page:",
            "rollbackd report run-20261122T221509-1b2c3d4e --format html --output report.html",
        ),
        ("For a program:", "rollbackd report run-20261122T221509-1b2c3d4e --format json | jq .findings"),
    ),
    exits={1: "there is no such run"},
    environment=CONFIGURATION,
)
@click.argument("run", shell_complete=completing.runs)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["md", "html", "json"]),
    default="md",
    show_default=True,
    help="How it is written.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
@click.pass_obj
@asynchronous
async def report(config: Path, run: str, format_: str, output: Path | None) -> None:
    """Write a run's report: what was done and why, every statement that ran, backups, archives, what is left to do.

    It may be written at any time; of a run that isn't finished it says how far that has come.
    """
    async with reading(config) as (_, _, reporting):
        if format_ == "html":
            text = await reporting.page(run)
        elif format_ == "md":
            text = to_markdown(await reporting.report(run))
        else:
            text = msgspec.json.format(msgspec.json.encode(await reporting.report(run)), indent=2).decode()
    if output is None:
        click.echo(text)
        return
    output.write_text(text, encoding="utf-8")
    click.echo(f"written to {output}")
