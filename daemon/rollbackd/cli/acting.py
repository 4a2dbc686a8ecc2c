"""Commands that change something: through the running daemon, or, when none runs, by themselves under its lock."""

import asyncio
import os
import pwd
from pathlib import Path
from typing import Any

import click
import msgspec

from rollbackd.app.local import DaemonClient, running_daemon, working
from rollbackd.cli.main import asynchronous
from rollbackd.cli.output import (
    console,
    exit_code,
    heads,
    show_json,
    show_plan,
    show_rehearsal,
    show_run,
)
from rollbackd.core.planning.steps import step_text
from rollbackd.core.records import Run
from rollbackd.core.rehearsal import Depth
from rollbackd.errors import RefusedError, UsageError
from rollbackd.settings import parse_duration
from rollbackd.workflow.rehearsing import describe_rehearsal
from rollbackd.workflow.runs import describe_run

POLL_S = 0.3
PLAN_TIMEOUT_S = 300.0
# A gate waits for a dump and its proof.
GATE_TIMEOUT_S = 6 * 3600.0
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
release_option = click.option(
    "--release", default="", help="The release to put back. [default: the one before the last deploy]"
)


def me() -> str:
    """Who asks, as the record names them."""
    # Not getpass: that believes the environment, and this name stands for a person.
    return f"local:{pwd.getpwuid(os.getuid()).pw_name}"


@click.command()
@click.argument("target")
@click.option(
    "--to", default="-1", show_default=True, help="An id, the wanted heads with commas, -N or base."
)
@release_option
@click.option("--sql", is_flag=True, help="Print the downgrade's statements alone.")
@json_option
@click.pass_obj
@asynchronous
async def plan(config: Path, target: str, to: str, release: str, sql: bool, as_json: bool) -> int:
    """Show the way back: steps, loss, SQL, what speaks against it. Changes nothing."""
    document = await _plan(config, target, to, release)
    if as_json:
        show_json(document)
    elif sql:
        _show_sql(document)
    else:
        show_plan(console(), document)
    return 1 if document["plan"]["blockers"] else 0


@click.command()
@click.argument("target")
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
    """Run the real downgrade on a copy in scratch, and show all that it did. Never touches the target."""
    client = await running_daemon(config)
    if client is not None:
        asked = {"to": to, **({"depth": depth} if depth else {})}
        document: dict[str, Any] = await client.ask(
            "POST", f"/api/v1/targets/{target}/rehearse", asked, timeout_s=GATE_TIMEOUT_S
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


@click.command()
@click.argument("target")
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
    """Roll back now: plan, checklist, backup, proof, downgrade, checks. Exits with the outcome."""
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
        if not no_wait:
            run = await _follow(client, run["id"], quiet=as_json)
    else:
        run = await _run_here(config, asked, quiet=as_json)
    if as_json:
        show_json(run)
    else:
        show_run(out, run)
        out.print(f"report: rollbackd report {run['id']}")
    return exit_code(run["state"])


@click.command()
@click.argument("run")
@click.option("--reason", default="")
@click.option(
    "--plan", "plan_sha256", default="", help="The plan's digest; an approval for another plan is refused."
)
@json_option
@click.pass_obj
@asynchronous
async def approve(config: Path, run: str, reason: str, plan_sha256: str, as_json: bool) -> int:
    """Say yes to a run that awaits approval; never to one's own. Follows it to its end."""
    body = {"reason": reason, "plan_sha256": plan_sha256}
    return await _word(config, run, "approve", body, as_json=as_json, follows=True)


@click.command()
@click.argument("run")
@click.option("--reason", default="")
@json_option
@click.pass_obj
@asynchronous
async def deny(config: Path, run: str, reason: str, as_json: bool) -> int:
    """Say no to a run that awaits approval."""
    await _word(config, run, "deny", {"reason": reason}, as_json=as_json, follows=False)
    return 0


@click.command()
@click.argument("run")
@click.option(
    "--stamp",
    is_flag=True,
    help="Move a lost stamp first, if the schema is exactly the one that the rehearsal led to.",
)
@json_option
@click.pass_obj
@asynchronous
async def resume(config: Path, run: str, stamp: bool, as_json: bool) -> int:
    """Go on with a held run: each remaining step is looked at again first."""
    return await _word(config, run, "resume", {"stamp": stamp}, as_json=as_json, follows=True)


@click.command()
@click.argument("run")
@click.option("--reason", default="")
@json_option
@click.pass_obj
@asynchronous
async def abandon(config: Path, run: str, reason: str, as_json: bool) -> int:
    """Let a held run go: you have taken over."""
    await _word(config, run, "abandon", {"reason": reason}, as_json=as_json, follows=False)
    return 0


@click.command()
@click.argument("target")
@click.option("--version", default="", help="The release that is about to be deployed.")
@click.option("--previous-version", default="", help="The one that runs now.")
@click.option("--deployment", default="", help="The CD system's id of the deploy.")
@click.option("--to-revision", default="", help="The revision that the deploy migrates to.")
@json_option
@click.pass_obj
@asynchronous
async def gate(
    config: Path,
    target: str,
    version: str,
    previous_version: str,
    deployment: str,
    to_revision: str,
    as_json: bool,
) -> int:
    """May this deploy start? Waits until the state is documented and a backup is taken and proved. Exits 0 for go."""
    client = await running_daemon(config)
    if client is None:
        raise RefusedError("no daemon runs, so nobody would watch the deploy: start 'rollbackd serve'")
    body = {
        "version": version,
        "previous_version": previous_version,
        "deployment": deployment,
        "to_revision": to_revision,
    }
    answer = await client.ask("POST", f"/api/v1/targets/{target}/gate", body, timeout_s=GATE_TIMEOUT_S)
    if as_json:
        show_json(answer)
    else:
        backup = answer["backup"]
        proved = f", backup {backup['backup']} proved to L{backup['level']}" if backup else ""
        click.echo(f"go: at {heads(answer['heads'])}{proved}" if answer["go"] else "stop")
        for reason in answer["reasons"]:
            click.echo(f"  {reason}")
    return 0 if answer["go"] else 1


@click.command()
@click.argument("target", default="*")
@click.option("--reason", required=True, help="People will ask.")
@click.option("--for", "for_", default="", help="Such as 2h; without it, until unpaused.")
@click.pass_obj
@asynchronous
async def pause(config: Path, target: str, reason: str, for_: str) -> None:
    """Stop all automation of a target, or of all. What a person asks for still works."""
    try:
        for_s = parse_duration(for_) if for_ else None
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    client = await running_daemon(config)
    if client is not None:
        await client.ask("POST", "/api/v1/pause", {"target": target, "reason": reason, "for_s": for_s})
    else:
        async with working(config) as parts:
            await parts.operations.pause(target, me(), reason, for_s)
    click.echo(f"automation of {'every target' if target == '*' else target} is paused")


@click.command()
@click.argument("target", default="*")
@click.pass_obj
@asynchronous
async def unpause(config: Path, target: str) -> None:
    """Let automation go on."""
    client = await running_daemon(config)
    if client is not None:
        lifted = (await client.ask("POST", "/api/v1/unpause", {"target": target}))["lifted"]
    else:
        async with working(config) as parts:
            lifted = await parts.operations.unpause(target, me())
    click.echo("automation goes on" if lifted else "nothing was paused")


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


async def _run_here(config: Path, asked: dict[str, str], *, quiet: bool) -> dict[str, Any]:
    def show(name: str, fields: dict[str, object]) -> None:
        if name == "step_recorded" and not quiet:
            click.echo(f"{fields['phase']:<7} {fields['kind']}")

    async with working(config, show) as parts:
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
        return describe_run(await _to_end(parts, run))


async def _to_end(parts: Any, run: Run) -> Run:
    """Execute a running run here, to its end. Ctrl-C lets the step that is under way finish, as SIGTERM does in the daemon."""
    if run.state != "running":
        return run
    try:
        ended: Run = await asyncio.shield(parts.engine.start(run))
    except asyncio.CancelledError:
        click.echo(
            f"rollbackd: the step under way is being finished; 'rollbackd serve' goes on with {run.id}",
            err=True,
        )
        raise
    return ended


async def _word(
    config: Path, run: str, word: str, body: dict[str, Any], *, as_json: bool, follows: bool
) -> int:
    client = await running_daemon(config)
    if client is not None:
        found = await client.ask("POST", f"/api/v1/runs/{run}/{word}", body)
        if follows:
            found = await _follow(client, run, quiet=as_json)
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
            found = describe_run(await _to_end(parts, await asked))
    if as_json:
        show_json(found)
    else:
        show_run(console(), found)
    return exit_code(found["state"])


async def _follow(client: DaemonClient, run_id: str, *, quiet: bool) -> dict[str, Any]:
    """Show each step as it goes, until the run needs nobody or somebody else."""
    shown = 0
    while True:
        run: dict[str, Any] = await client.ask("GET", f"/api/v1/runs/{run_id}")
        for record in run["journal"][shown:]:
            if not quiet:
                click.echo(f"{record['phase']:<7} {run['step_texts'][record['step']]}")
        shown = len(run["journal"])
        if run["state"] not in ("running", "planned"):
            return run
        await asyncio.sleep(POLL_S)
