"""What a CD job or a person asks of the automation: may this deploy start, stop by yourself, go on."""

from pathlib import Path

import click
import msgspec

from rollbackd.app.local import me, running_daemon, working
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, DAEMON, Manual
from rollbackd.cli.output import heads, json_option, show_json
from rollbackd.errors import RefusedError, UsageError
from rollbackd.settings import parse_duration

# A gate waits for a dump and its proof.
GATE_TIMEOUT_S = 6 * 3600.0
QUIET = {**CONFIGURATION, **DAEMON}


@click.command(
    cls=Manual,
    changes="A deployment is watched from now on; the state is documented and a backup taken. Pending migrations are tried on a"
    " copy in scratch. The guarded database is only read.",
    examples=(
        (
            "In the CD job, before it migrates:",
            "rollbackd gate shop --version 2026.11.3 --previous-version 2026.11.2 --deployment 4711",
        ),
        ("Why not?", "rollbackd gate shop --version 2026.11.3 --json | jq -r '.reasons[]'"),
    ),
    exits={0: "go", 1: "stop, or no daemon runs"},
    environment=QUIET,
)
@click.argument("target", shell_complete=completing.targets)
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
    """May this deploy start? Waits until the state is documented and a backup is taken and proved.

    The migrations that are about to go on are tried on a copy first; 'policy.unsafe_migrations' says what a fault means. It
    needs a running daemon, which watches the deploy from here on.
    """
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
            click.echo(f"  ! {reason}" if answer["go"] else f"  {reason}")
    return 0 if answer["go"] else 1


@click.command(
    cls=Manual,
    changes="rollbackd starts no run by itself. What people ask for, what runs, and approvals go on.",
    examples=(
        ("Every target, for two hours:", 'rollbackd pause --reason "load test" --for 2h'),
        ("One, until it is lifted:", 'rollbackd pause shop --reason "looking into it"'),
    ),
    environment=QUIET,
)
@click.argument("target", default="*", shell_complete=completing.targets)
@click.option("--reason", required=True, help="People will ask.")
@click.option("--for", "for_", default="", help="Such as 2h; without it, until unpaused.")
@json_option
@click.pass_obj
@asynchronous
async def pause(config: Path, target: str, reason: str, for_: str, as_json: bool) -> None:
    """Stop all automation of a target, or of all.

    What a person asks for still works. To stop a run that is under way, see the runbook.
    """
    try:
        for_s = parse_duration(for_) if for_ else None
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    client = await running_daemon(config)
    if client is not None:
        asked = {"target": target, "reason": reason, "for_s": for_s}
        made = await client.ask("POST", "/api/v1/pause", asked)
    else:
        async with working(config) as parts:
            made = msgspec.to_builtins(await parts.operations.pause(target, me(), reason, for_s))
    if as_json:
        show_json(made)
        return
    click.echo(f"automation of {'every target' if target == '*' else target} is paused")


@click.command(
    cls=Manual,
    changes="rollbackd may start runs by itself again, as far as 'policy.mode' lets it.",
    examples=(
        ("Every target that was paused at once:", "rollbackd unpause"),
        ("One:", "rollbackd unpause shop"),
    ),
    environment=QUIET,
)
@click.argument("target", default="*", shell_complete=completing.targets)
@json_option
@click.pass_obj
@asynchronous
async def unpause(config: Path, target: str, as_json: bool) -> None:
    """Let automation go on, of a target or of all.

    A pause of one target and a pause of all are lifted each by itself.
    """
    client = await running_daemon(config)
    if client is not None:
        lifted = (await client.ask("POST", "/api/v1/unpause", {"target": target}))["lifted"]
    else:
        async with working(config) as parts:
            lifted = await parts.operations.unpause(target, me())
    if as_json:
        show_json({"target": target, "lifted": lifted})
        return
    click.echo("automation goes on" if lifted else "nothing was paused")
