"""Going back: planned, rehearsed, done. Through the running daemon, or, when none runs, here under its lock."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from rollbackd.app.local import me, running_daemon, working
from rollbackd.cli import completing
from rollbackd.cli.following import follow_here, follow_in_daemon
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import ALL, RUN_EXITS, Manual
from rollbackd.cli.output import console, exit_code, is_live, json_option, show_end, show_json
from rollbackd.cli.plan_view import show_plan, show_rehearsal
from rollbackd.core.planning.steps import step_text
from rollbackd.core.rehearsal import Depth
from rollbackd.errors import RefusedError
from rollbackd.workflow.rehearsing import describe_rehearsal

PLAN_TIMEOUT_S = 300.0
# A rehearsal may copy the whole database.
REHEARSAL_TIMEOUT_S = 6 * 3600.0
release_option = click.option(
    "--release", default="", help="The release to put back. [default: the one before the last deploy]"
)


@click.command(
    cls=Manual,
    changes="Nothing. It reads the guarded database, and rehearses on a copy in scratch where no rehearsal is at hand.",
    examples=(
        ("What would going back one revision cost?", "rollbackd plan shop"),
        ("The statements alone, for a review:", "rollbackd plan shop --to a1b2c3d4e5f6 --sql"),
        (
            "Which gates would stop it?",
            "rollbackd plan shop --json | jq '.gates[] | select(.state != \"met\")'",
        ),
    ),
    exits={1: "something in the plan speaks against it, or it can't be planned"},
)
@click.argument("target", shell_complete=completing.targets)
@click.option(
    "--to", default="-1", show_default=True, help="An id, the wanted heads with commas, -N or base."
)
@release_option
@click.option("--sql", is_flag=True, help="Print the downgrade's statements alone.")
@json_option
@click.pass_obj
@asynchronous
async def plan(config: Path, target: str, to: str, release: str, sql: bool, as_json: bool) -> int:
    """Show the way back: verdicts, loss, locks, time, steps, SQL, and what speaks against it.

    Nothing is done: 'rollbackd rollback' makes the same plan, shows it and asks.
    """
    document = await _plan(config, target, to, release)
    if as_json:
        show_json(document)
    elif sql:
        _show_sql(document)
    else:
        show_plan(console(), document)
    return 1 if document["plan"]["blockers"] else 0


@click.command(
    cls=Manual,
    changes="A copy in scratch, which it makes and drops. The guarded database is only read.",
    examples=(
        ("Does the last migration come off?", "rollbackd rehearse shop"),
        ("On every row, back to one revision:", "rollbackd rehearse shop --to a1b2c3d4e5f6 --depth full"),
    ),
    exits={1: "the downgrade failed on the copy, or couldn't be rehearsed"},
)
@click.argument("target", shell_complete=completing.targets)
@click.option(
    "--to", default="-1", show_default=True, help="An id, the wanted heads with commas, -N or base."
)
@click.option(
    "--depth",
    type=click.Choice(["schema", "sample", "full"]),
    help="What the copy holds. [default: as the configuration says]",
)
@json_option
@click.pass_obj
@asynchronous
async def rehearse(config: Path, target: str, to: str, depth: str | None, as_json: bool) -> int:
    """Run the real downgrade on a copy in scratch, and show all that it did.

    It is your env.py, unmodified, that runs, with credentials for the copy alone: each statement, its time and locks, and what
    the catalog says has changed.
    """
    client = await running_daemon(config)
    if client is not None:
        asked = {"to": to, **({"depth": depth} if depth else {})}
        document: dict[str, Any] = await client.ask(
            "POST", f"/api/v1/targets/{target}/rehearse", asked, timeout_s=REHEARSAL_TIMEOUT_S
        )
    else:
        async with working(config) as parts:
            found = await parts.operations.rehearse(target, to=to, depth=Depth(depth) if depth else None)
            document = msgspec.to_builtins(describe_rehearsal(found))
    if as_json:
        show_json(document)
    else:
        show_rehearsal(console(), document)
    return 0 if document["passed"] else 1


@click.command(
    cls=Manual,
    changes="The guarded database's schema and version table, by its own downgrade; an archive inside it; a backup beside it; a"
    " scratch copy; the application, by the commands that 'deployment' declares. With --sql nothing.",
    examples=(
        ("What would it run?", 'rollbackd rollback shop --to a1b2c3d4e5f6 --reason "checkout is down" --sql'),
        (
            "Go back, answering the checklist:",
            'rollbackd rollback shop --to a1b2c3d4e5f6 --reason "checkout is down"',
        ),
        (
            "Out of a script, for an incident:",
            'rollbackd rollback shop --to -1 --reason "INC-42: errors" --incident INC-42 --yes',
        ),
        (
            "Ask for it, and follow it elsewhere:",
            'rollbackd rollback shop --to -1 --reason "errors" --yes --no-wait',
        ),
    ),
    exits=RUN_EXITS,
    environment=ALL,
)
@click.argument("target", shell_complete=completing.targets)
@click.option("--to", required=True, help="An id, the wanted heads with commas, -N or base.")
@click.option("--reason", required=True, help="Why; it stands in the report.")
@click.option("--incident", default="", help="The incident record this belongs to.")
@release_option
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--sql", is_flag=True, help="Dry run: print the downgrade's statements and do nothing.")
@click.option(
    "--no-wait", is_flag=True, help="Return as soon as the run is recorded (needs a running daemon)."
)
@json_option
@click.pass_obj
@asynchronous
async def rollback(
    config: Path,
    target: str,
    to: str,
    reason: str,
    incident: str,
    release: str,
    yes: bool,
    sql: bool,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Roll back now: plan, checklist, backup, proof, downgrade, checks. Exits with the outcome.

    It shows the plan, asks what a person must have thought of (not with --yes), and follows the run: each step with its time,
    what of it was waiting, its progress and the last statement. On a pipe each change is a line.

    Ctrl-C ends the following with 130. Where a daemon runs, the run goes on in it; without one the step under way is finished,
    and 'rollbackd serve' goes on with the rest.
    """
    document = await _plan(config, target, to, release)
    if sql:
        _show_sql(document)
        return 0
    out = console()
    if not as_json:
        show_plan(out, document)
    refused = [f"{g['gate']}: {g['reason']}" for g in document["gates"] if g["state"] == "refused"]
    if refused:
        raise RefusedError("; ".join(refused))
    if not yes:
        _checklist(document, target)
    asked = {
        "target": target,
        "to": to,
        "reason": reason,
        "incident": incident,
        "release": release,
        "plan_sha256": document["plan_sha256"],
    }
    client = await running_daemon(config)
    if client is not None:
        run = await client.ask("POST", "/api/v1/rollbacks", asked, timeout_s=PLAN_TIMEOUT_S)
        if no_wait:
            run = await client.ask("GET", f"/api/v1/runs/{run['id']}")
        else:
            run = await follow_in_daemon(client, run["id"], out, quiet=as_json)
    else:
        run = await _run_here(config, asked, out, quiet=as_json)
    if as_json:
        show_json(run)
    else:
        show_end(out, run, was_shown=is_live(out) and not no_wait)
        out.print(f"report: rollbackd report {run['id']}")
    return exit_code(run["state"])


# -- how -----------------------------------------------------------------------------------------------------------------


async def _plan(config: Path, target: str, to: str, release: str) -> dict[str, Any]:
    client = await running_daemon(config)
    if client is not None:
        body = {"to": to, "release": release}
        answer: dict[str, Any] = await client.ask(
            "POST", f"/api/v1/targets/{target}/plan", body, timeout_s=PLAN_TIMEOUT_S
        )
        return answer
    async with working(config) as parts:
        made, gates = await parts.operations.plan(target, to=to, release=release)
    return {
        "plan": msgspec.to_builtins(made),
        "plan_sha256": made.sha256(),
        "gates": msgspec.to_builtins(gates),
        "step_texts": [step_text(step) for step in made.steps],
    }


def _show_sql(document: dict[str, Any]) -> None:
    for revision in document["plan"]["revisions"]:
        click.echo(f"-- downgrade {revision['id']} ({revision['title']})")
        if revision["unread"]:
            click.echo(f"-- can't be rendered without running it: {revision['unread']}")
        for statement in revision["statements"]:
            click.echo(f"{statement};")


def _checklist(document: dict[str, Any], target: str) -> None:
    """What a person must have thought of; each point is answered by itself."""
    plan_ = document["plan"]
    points = ["Have you told the people who use it?"]
    if plan_["loses"]:
        how = "it is archived first" if plan_["archive"] else "nothing but the backup will have it"
        points.append(f"Are you sure that what it destroys may go ({how})?")
    if plan_["way_back"] == "stop_writes" and not any(
        s["kind"] == "stop_application" for s in plan_["steps"]
    ):
        points.append("Is the application stopped, so that nothing writes?")
    if any(revision["verdict"] == "unknown" for revision in plan_["revisions"]):
        points.append("Have you read the downgrades of which rollbackd can't say what they will do?")
    try:
        for point in points:
            if not click.confirm(point):
                raise RefusedError("nothing was done")
        if click.prompt(f"Type the target's name to go on ({target})") != target:
            raise RefusedError("the name doesn't fit; nothing was done")
    except click.Abort:
        raise RefusedError("nobody answered, so nothing was done; --yes goes on without questions") from None


async def _run_here(config: Path, asked: dict[str, str], out: Console, *, quiet: bool) -> dict[str, Any]:
    async with working(config) as parts:
        await parts.engine.recover()
        run = await parts.operations.roll_back(
            asked["target"],
            to=asked["to"],
            reason=asked["reason"],
            requested_by=me(),
            incident=asked["incident"],
            release=asked["release"],
            plan_sha256=asked["plan_sha256"],
        )
        return await follow_here(parts, run, out, quiet=quiet)
