"""Running the daemon, checking its configuration, its tokens."""

from pathlib import Path

import click

from rollbackd.app.configuration import load_configuration, load_hooks
from rollbackd.app.daemon import serve as run_daemon
from rollbackd.app.local import ROLES, drop_token, guarding, make_token, reading
from rollbackd.cli.main import asynchronous
from rollbackd.cli.output import OUTCOME_ICONS, console, safe, show_json, table
from rollbackd.workflow.readiness import check_readiness


@click.command()
@click.pass_obj
@asynchronous
async def serve(config: Path) -> None:
    """Run the daemon until SIGTERM; a step that is under way is finished first."""
    await run_daemon(config)


@click.command()
@click.option(
    "--offline", is_flag=True, help="Look at the files alone; ask no database, interpreter or program."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
@asynchronous
async def check_config(config: Path, offline: bool, as_json: bool) -> int:
    """Name every problem of the configuration, by its path, and what the configured roles may do."""
    configuration = load_configuration(config)
    hooks = load_hooks(configuration)
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
    """Make, revoke and list API tokens."""


@tokens.command("create")
@click.argument("name")
@click.option(
    "--role",
    "roles",
    type=click.Choice(ROLES),
    multiple=True,
    required=True,
    help="May be given several times.",
)
@click.pass_obj
@asynchronous
async def create_token(config: Path, name: str, roles: tuple[str, ...]) -> None:
    """Make a token and print it, once: only its digest is kept."""
    click.echo(await make_token(config, name, roles))


@tokens.command("revoke")
@click.argument("name")
@click.pass_obj
@asynchronous
async def revoke_token(config: Path, name: str) -> None:
    """Revoke a token; from then on it is unknown."""
    await drop_token(config, name)
    click.echo(f"{name} is revoked")


@tokens.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
