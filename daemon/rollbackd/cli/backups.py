"""Backups: listed, proved again, pruned."""

from pathlib import Path

import click
import msgspec

from rollbackd.app.local import guarding, reading, running_daemon, working
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, TERMINAL, Manual
from rollbackd.cli.output import console, json_option, safe, show_json, table
from rollbackd.core import wording
from rollbackd.errors import NotFoundError
from rollbackd.ports import Progress

PRUNE_TIMEOUT_S = 600.0


@click.group()
def backups() -> None:
    """List, verify and prune backups.

    Each of the commands below has a page of its own: 'rollbackd backups COMMAND --help'.
    """


@backups.command(
    "list",
    cls=Manual,
    changes="Nothing: it only reads.",
    examples=(
        ("Of every target:", "rollbackd backups list"),
        (
            "Where one's newest proved backup lies:",
            "rollbackd backups list shop --json | jq -r '[.[] | select(.level >= 4)][0].location'",
        ),
    ),
    environment={**CONFIGURATION, **TERMINAL},
)
@click.argument("target", required=False, shell_complete=completing.targets)
@json_option
@click.pass_obj
@asynchronous
async def list_backups(config: Path, target: str | None, as_json: bool) -> None:
    """List backups, newest first, with proof level, size and place."""
    async with reading(config) as (_, store, _):
        known = [b for b in await store.backups(target, 500) if b.removed_at is None]
    if as_json:
        show_json(msgspec.to_builtins(known))
        return
    listed = table("taken", "id", "target", "purpose", "level", "size", "place")
    for b in known:
        cells = [b.id, b.target, b.purpose, f"L{b.level}", wording.size(b.size_bytes), b.location]
        listed.add_row(f"{b.created_at:%F %T}", *(safe(cell) for cell in cells))
    console().print(listed)


@backups.command(
    "verify",
    cls=Manual,
    changes="A database in scratch, which it makes and drops. Neither the backup nor the guarded database.",
    examples=(
        (
            "Does it still restore, with every row?",
            "rollbackd backups verify backup-20261122T221510-5e6f7a8b",
        ),
        (
            "Are its files whole? (quicker)",
            "rollbackd backups verify backup-20261122T221510-5e6f7a8b --level 2",
        ),
    ),
    exits={1: "it isn't whole, doesn't restore, or isn't there"},
    environment=CONFIGURATION,
)
@click.argument("backup", shell_complete=completing.backups)
@click.option(
    "--level",
    type=click.IntRange(2, 4),
    default=4,
    show_default=True,
    help="2 reads every file, 4 restores it and compares the counts.",
)
@json_option
@click.pass_obj
@asynchronous
async def verify_backup(config: Path, backup: str, level: int, as_json: bool) -> None:
    """Prove a backup anew: its digests, and at level 4 a restore into scratch with the counts compared.

    What was proved once may have rotted since.
    """
    async with reading(config) as (configuration, store, _):
        store_id = store.store_id
        known = next((b for b in await store.backups(None, 1000) if b.id == backup), None)
    if known is None:
        raise NotFoundError(f"there is no backup {backup}; 'rollbackd backups list' names them")

    async def unheard(_: Progress) -> None:
        return

    async with guarding(configuration, store_id) as guarded:
        port = guarded[known.target].backups
        # From nothing: what was proved once may have rotted since.
        unproved = (
            known if known.location.startswith("reference:") else msgspec.structs.replace(known, level=0)
        )
        timeout_s = guarded[known.target].settings.backup.proof_timeout
        proved = await port.prove(unproved, level=level, timeout_s=timeout_s, on_progress=unheard)
    if as_json:
        show_json(msgspec.to_builtins(proved))
        return
    click.echo(f"{proved.id}: whole, proved to L{proved.level}")


@backups.command(
    "prune",
    cls=Manual,
    changes="Removes backups from disk, of every target. What an unfinished run uses stays.",
    examples=(("Make room now, instead of with the daemon's housekeeping:", "rollbackd backups prune"),),
)
@json_option
@click.pass_obj
@asynchronous
async def prune_backups(config: Path, as_json: bool) -> None:
    """Remove the backups that the retention no longer keeps, of every target."""
    client = await running_daemon(config)
    if client is not None:
        removed = (await client.ask("POST", "/api/v1/backups/prune", timeout_s=PRUNE_TIMEOUT_S))["removed"]
    else:
        async with working(config) as parts:
            removed = [backup.id for backup in await parts.operations.prune_backups()]
    if as_json:
        show_json({"removed": removed})
        return
    click.echo(f"{len(removed)} removed" + "".join(f"\n  {name}" for name in removed))
