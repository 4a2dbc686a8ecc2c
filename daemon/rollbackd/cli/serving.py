"""Running the daemon, checking its configuration, its tokens."""

from pathlib import Path

import click

from rollbackd.app.configuration import load_configuration, load_hooks
from rollbackd.app.daemon import serve as run_daemon
from rollbackd.app.local import ROLES, drop_token, guarding, make_token, reading
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, TERMINAL, Manual
from rollbackd.cli.output import OUTCOME_ICONS, console, json_option, safe, show_json, table
from rollbackd.workflow.readiness import check_readiness


@click.command(
    cls=Manual,
    changes="The store; and, as far as 'policy.mode' lets it, whatever 'rollbackd rollback' changes.",
    examples=(
        ("In the foreground, to see how it does:", "rollbackd --config rollbackd.toml serve"),
        ("As a service:", "systemctl enable --now rollbackd"),
    ),
    exits={0: "SIGTERM came, and what was under way is finished"},
    environment={
        **CONFIGURATION,
        "CREDENTIALS_DIRECTORY": "where systemd put the credentials that 'file:' names without a folder",
    },
)
@click.pass_obj
@asynchronous
async def serve(config: Path) -> None:
    """Run the daemon until SIGTERM; a step that is under way is finished first.

    A run that was under way when the last daemon ended is taken up: each remaining step is looked at before it is done.
    """
    await run_daemon(config)


@click.command(
    cls=Manual,
    changes="Nothing. It asks the databases, interpreters and programs that the configuration names.",
    examples=(
        ("Before the daemon is started or restarted:", "rollbackd --config rollbackd.toml check-config"),
        ("In CI, where no database is in reach:", "rollbackd --config rollbackd.toml check-config --offline"),
    ),
    exits={
        0: "it can work; warnings are named",
        1: "something that is needed isn't there, or may not be done",
    },
    environment={**CONFIGURATION, **TERMINAL},
)
@click.option(
    "--offline", is_flag=True, help="Look at the files alone; ask no database, interpreter or program."
)
@json_option
@click.pass_obj
@asynchronous
async def check_config(config: Path, offline: bool, as_json: bool) -> int:
    """Name every problem of the configuration, by its path, and what the configured roles may do.

    The decision matrix is proved: every combination of facts is tried.
    """
    configuration = load_configuration(config)
    hooks = load_hooks(configuration)
    if offline and as_json:
        show_json({target.name: [] for target in configuration.settings.targets})
        return 0
    if offline:
        click.echo(
            f"{config}: {len(configuration.settings.targets)} targets, {len(hooks)} hooks, the matrix is proved"
        )
        return 0
    found = {}
    async with guarding(configuration) as guarded:
        for name, one in guarded.items():
            found[name] = await check_readiness(one)
    failed = any(f.outcome == "failed" for findings in found.values() for f in findings)
    if as_json:
        show_json(
            {
                name: [{"check": f.check, "outcome": f.outcome, "text": f.text} for f in fs]
                for name, fs in found.items()
            }
        )
        return int(failed)
    out = console()
    out.print(
        f"{safe(config)}: {len(found)} targets, {len(hooks)} hooks, {len(configuration.matrix.rows)} matrix rows proved"
    )
    for name, findings in found.items():
        out.print(f"[bold]{safe(name)}[/]")
        for finding in findings:
            out.print(f"  {OUTCOME_ICONS[finding.outcome]} {finding.check}: {safe(finding.text)}")
    return int(failed)


@click.group()
def tokens() -> None:
    """Make, revoke and list API tokens.

    Each of the commands below has a page of its own: 'rollbackd tokens COMMAND --help'.
    """


@tokens.command(
    "create",
    cls=Manual,
    changes="The store has one more token, as its digest.",
    examples=(
        (
            "For a CD job, which may ask for rollbacks and use the gate:",
            "rollbackd tokens create ci --role operate",
        ),
        ("For a person who may approve:", "rollbackd tokens create ann --role read --role approve"),
    ),
    exits={1: "there is a token of this name, or the name can't be one"},
    environment=CONFIGURATION,
)
@click.argument("name")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    required=True,
    help="May be given several times.",
)
@json_option
@click.pass_obj
@asynchronous
async def create_token(config: Path, name: str, roles: tuple[str, ...], as_json: bool) -> None:
    """Make a token and print it, once: only its digest is kept."""
    token = await make_token(config, name, roles)
    if as_json:
        show_json({"name": name, "roles": list(roles), "token": token})
        return
    click.echo(token)


@tokens.command(
    "revoke",
    cls=Manual,
    changes="The token is unknown from now on. What was asked for with it stays.",
    examples=(("Somebody has left:", "rollbackd tokens revoke ann"),),
    exits={1: "there is no such token"},
    environment=CONFIGURATION,
)
@click.argument("name", shell_complete=completing.tokens)
@json_option
@click.pass_obj
@asynchronous
async def revoke_token(config: Path, name: str, as_json: bool) -> None:
    """Revoke a token; from then on it is unknown."""
    await drop_token(config, name)
    if as_json:
        show_json({"name": name, "revoked": True})
        return
    click.echo(f"{name} is revoked")


@tokens.command(
    "list",
    cls=Manual,
    changes="Nothing: it only reads.",
    examples=(("Who may ask what?", "rollbackd tokens list"),),
    environment={**CONFIGURATION, **TERMINAL},
)
@json_option
@click.pass_obj
@asynchronous
async def list_tokens(config: Path, as_json: bool) -> None:
    """List tokens; never their secrets."""
    async with reading(config) as (_, store, _):
        known = await store.tokens()
    if as_json:
        show_json(
            [
                {
                    "name": t.name,
                    "roles": t.role.split(","),
                    "created_at": t.created_at,
                    "revoked_at": t.revoked_at,
                }
                for t in known
            ]
        )
        return
    listed = table("name", "roles", "created", "revoked")
    for token in known:
        revoked = f"{token.revoked_at:%F %T}" if token.revoked_at else ""
        listed.add_row(safe(token.name), token.role, f"{token.created_at:%F %T}", revoked)
    console().print(listed)
