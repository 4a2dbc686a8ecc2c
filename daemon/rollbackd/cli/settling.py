"""A person's word on a run: approve, deny, resume, abandon."""

from pathlib import Path
from typing import Any

import click

from rollbackd.app.local import me, running_daemon, working
from rollbackd.cli import completing
from rollbackd.cli.following import follow_here, follow_in_daemon
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, DAEMON, RUN_EXITS, Manual
from rollbackd.cli.output import console, exit_code, is_live, json_option, show_end, show_json

QUIET = {**CONFIGURATION, **DAEMON}
SETTLED_BY_A_RUN = "What the run's remaining steps change: see 'rollbackd rollback --help'."


@click.command(
    cls=Manual,
    changes=f"The run goes ahead. {SETTLED_BY_A_RUN}",
    examples=(
        ("Say yes, once you have read the report:", "rollbackd approve run-20261122T221509-1b2c3d4e"),
        (
            "To this very plan and to no other:",
            "rollbackd approve run-20261122T221509-1b2c3d4e --plan 9f86d081884c7d65",
        ),
    ),
    exits={
        **RUN_EXITS,
        1: "the run doesn't wait, you asked for it yourself, it is too late; or the run failed",
    },
)
@click.argument("run", shell_complete=completing.runs_to_approve)
@click.option("--reason", default="", help="Why; it stands in the report.")
@click.option(
    "--plan", "plan_sha256", default="", help="The plan's digest; an approval for another plan is refused."
)
@json_option
@click.pass_obj
@asynchronous
async def approve(config: Path, run: str, reason: str, plan_sha256: str, as_json: bool) -> int:
    """Say yes to a run that awaits approval, and follow it to its end.

    Nobody approves what they asked for. The yes is to the plan as it was shown: --plan holds you to its digest.
    """
    body = {"reason": reason, "plan_sha256": plan_sha256}
    return await _word(config, run, "approve", body, as_json=as_json, follows=True)


@click.command(
    cls=Manual,
    changes="The run ends as 'denied'. The database isn't touched.",
    examples=(
        ("Say no, and why:", 'rollbackd deny run-20261122T221509-1b2c3d4e --reason "the fix is going out"'),
    ),
    exits={1: "the run doesn't wait for anybody"},
    environment=QUIET,
)
@click.argument("run", shell_complete=completing.runs_to_approve)
@click.option("--reason", default="", help="Why; it stands in the report.")
@json_option
@click.pass_obj
@asynchronous
async def deny(config: Path, run: str, reason: str, as_json: bool) -> int:
    """Say no to a run that awaits approval.

    Whoever asked for it may do so too.
    """
    await _word(config, run, "deny", {"reason": reason}, as_json=as_json, follows=False)
    return 0


@click.command(
    cls=Manual,
    changes=f"{SETTLED_BY_A_RUN} With --stamp the version table first, and only if the schema is exactly the rehearsed one.",
    examples=(
        ("You have mended what it was held for:", "rollbackd resume run-20261122T221509-1b2c3d4e"),
        ("The stamp is lost, the changes are not:", "rollbackd resume run-20261122T221509-1b2c3d4e --stamp"),
    ),
    exits={**RUN_EXITS, 1: "the run isn't held, or the stamp isn't moved; or the run failed"},
)
@click.argument("run", shell_complete=completing.held_runs)
@click.option(
    "--stamp",
    is_flag=True,
    help="Move a lost stamp first, if the schema is exactly the one that the rehearsal led to.",
)
@json_option
@click.pass_obj
@asynchronous
async def resume(config: Path, run: str, stamp: bool, as_json: bool) -> int:
    """Go on with a held run, and follow it.

    Nothing is repeated blindly: each remaining step is looked at first, and is done only where the world says that it hasn't
    happened.
    """
    return await _word(config, run, "resume", {"stamp": stamp}, as_json=as_json, follows=True)


@click.command(
    cls=Manual,
    changes="The run ends as 'abandoned', and its database is free for another. Nothing is started, stopped or taken back, but"
    " for what was copied ahead into the archive.",
    examples=(
        (
            "You have settled it by hand:",
            'rollbackd abandon run-20261122T221509-1b2c3d4e --reason "done by hand"',
        ),
    ),
    exits={1: "the run isn't held"},
    environment=QUIET,
)
@click.argument("run", shell_complete=completing.held_runs)
@click.option("--reason", default="", help="Why; it stands in the report.")
@json_option
@click.pass_obj
@asynchronous
async def abandon(config: Path, run: str, reason: str, as_json: bool) -> int:
    """Let a held run go: you have taken over.

    What it stopped stays stopped. See where the database stands first: 'rollbackd report RUN'.
    """
    await _word(config, run, "abandon", {"reason": reason}, as_json=as_json, follows=False)
    return 0


async def _word(
    config: Path, run: str, word: str, body: dict[str, Any], *, as_json: bool, follows: bool
) -> int:
    out = console()
    client = await running_daemon(config)
    if client is not None:
        await client.ask("POST", f"/api/v1/runs/{run}/{word}", body)
        if follows:
            found = await follow_in_daemon(client, run, out, quiet=as_json)
        else:
            found = await client.ask("GET", f"/api/v1/runs/{run}")
    else:
        async with working(config) as parts:
            operations = parts.operations
            match word:
                case "approve":
                    asked = operations.approve(
                        run, me(), plan_sha256=body["plan_sha256"], reason=body["reason"]
                    )
                case "deny":
                    asked = operations.deny(run, me(), reason=body["reason"])
                case "resume":
                    asked = operations.resume(run, me(), stamp=bool(body["stamp"]))
                case _:
                    asked = operations.abandon(run, me(), reason=body["reason"])
            moved = await asked
            found = await follow_here(parts, moved, out, quiet=as_json or not follows)
    if as_json:
        show_json(found)
    else:
        show_end(out, found, was_shown=is_live(out) and follows)
    return exit_code(found["state"])
