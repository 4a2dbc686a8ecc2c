"""Backups: listed, proved again, pruned."""

from pathlib import Path

import click
import msgspec

from rollbackd.app.local import guarding, reading, running_daemon, working
from rollbackd.cli.main import asynchronous
from rollbackd.cli.output import console, safe, show_json, table
from rollbackd.errors import NotFoundError
from rollbackd.ports import Progress

PRUNE_TIMEOUT_S = 600.0


@click.group()
def backups() -> None:
    """List, verify and prune backups."""


@backups.command("list")
@click.argument("target", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
        size = f"{b.size_bytes / 1e6:.1f} MB"
        cells = [b.id, b.target, b.purpose, f"L{b.level}", size, b.location]
        listed.add_row(f"{b.created_at:%F %T}", *(safe(cell) for cell in cells))
    console().print(listed)


@backups.command("verify")
@click.argument("backup")
@click.option("--level", type=click.IntRange(2, 4), default=4, show_default=True)
@click.pass_obj
@asynchronous
async def verify_backup(config: Path, backup: str, level: int) -> None:
    """Prove a backup anew: its digests, and at level 4 a restore into scratch with the counts compared."""
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
    click.echo(f"{proved.id}: whole, proved to L{proved.level}")


@backups.command("prune")
@click.pass_obj
@asynchronous
async def prune_backups(config: Path) -> None:
    """Remove what the retention no longer keeps."""
    client = await running_daemon(config)
    if client is not None:
        removed = (await client.ask("POST", "/api/v1/backups/prune", timeout_s=PRUNE_TIMEOUT_S))["removed"]
    else:
        async with working(config) as parts:
            removed = [backup.id for backup in await parts.operations.prune_backups()]
    click.echo(f"{len(removed)} removed" + "".join(f"\n  {name}" for name in removed))
