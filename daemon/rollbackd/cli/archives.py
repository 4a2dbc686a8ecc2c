"""Archives: listed, pruned, and brought back."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from rollbackd.app.local import me, running_daemon, working
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import Manual
from rollbackd.cli.output import console, json_option, safe, show_json, table
from rollbackd.errors import RefusedError
from rollbackd.workflow.bringing_back import describe_archive, describe_restore

# Bringing back millions of rows takes its time.
RESTORE_TIMEOUT_S = 4 * 3600.0
PRUNE_TIMEOUT_S = 600.0


@click.command(
    cls=Manual,
    changes="Rows and values of the guarded database that are missing there: they are inserted, in one transaction. Nothing newer is"
    " overwritten. With --dry-run or --sql nothing.",
    examples=(
        ("What would come back?", "rollbackd restore run-20261122T221509-1b2c3d4e --dry-run"),
        ("Bring it back, once the fixed migration is in:", "rollbackd restore run-20261122T221509-1b2c3d4e"),
        ("The same by hand:", 'rollbackd restore run-20261122T221509-1b2c3d4e --sql | psql "$DATABASE"'),
    ),
    exits={1: "the run keeps nothing, isn't finished, or its database can't be reached"},
)
@click.argument("run", shell_complete=completing.finished_runs)
@click.option(
    "--dry-run", is_flag=True, help="Do it in a transaction that is rolled back, and say what it would do."
)
@click.option(
    "--sql", is_flag=True, help="Print it as a script for psql, in one transaction (implies --dry-run)."
)
@click.option(
    "--lost", is_flag=True, help="What the migration itself had taken away, as the run recovered it."
)
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@click.pass_obj
@asynchronous
async def restore(
    config: Path, run: str, dry_run: bool, sql: bool, lost: bool, yes: bool, as_json: bool
) -> int:
    """Bring back what a run archived, once the fixed migration is in.

    It shows what it would do and asks (not with --yes). Overwrites nothing newer; may be repeated.
    """
    if sql or dry_run or not yes:
        found = await _restore(config, run, dry_run=True, lost=lost)
        if sql:
            click.echo(found["script"], nl=False)
            return 0
        if not as_json:
            _show(found)
        elif dry_run:
            show_json(found)
        if dry_run:
            return 0
        if not found["restored"]:
            if as_json:
                show_json(found)
            else:
                kept_back = found["left"] or found["missing"]
                click.echo(
                    "nothing can be brought back as things stand: the reasons are above"
                    if kept_back
                    else "nothing is left to bring back"
                )
            return 0
        _ask(found["restored"])
    found = await _restore(config, run, dry_run=False, lost=lost)
    if as_json:
        show_json(found)
    else:
        _show(found)
    return 0


def _ask(restored: int) -> None:
    try:
        if not click.confirm(f"Bring back {restored:,} rows and values?", err=True):
            raise RefusedError("nothing was done")
    except click.Abort:
        raise RefusedError("nobody answered, so nothing was done; --yes goes on without questions") from None


async def _restore(config: Path, run: str, *, dry_run: bool, lost: bool) -> dict[str, Any]:
    client = await running_daemon(config)
    if client is not None:
        path = f"/api/v1/runs/{run}/restore"
        found: dict[str, Any] = await client.ask(
            "POST", path, {"dry_run": dry_run, "lost": lost}, timeout_s=RESTORE_TIMEOUT_S
        )
        return found
    async with working(config) as parts:
        return describe_restore(await parts.operations.restore(run, me(), dry_run=dry_run, lost=lost))


def _show(found: dict[str, Any]) -> None:
    out = console()
    verb = "would be brought back" if found["dry_run"] else "brought back"
    out.print(
        f"{found['restored']:,} rows and values {verb}, {found['left']:,} left, {found['missing']:,} without a row to go to"
    )
    for entry in found["entries"]:
        out.print(f"  {safe(entry['text'])}")


@click.group()
def archives() -> None:
    """List and prune what downgrades kept inside the guarded databases.

    Each of the commands below has a page of its own: 'rollbackd archives COMMAND --help'.
    """


@archives.command(
    "list",
    cls=Manual,
    changes="Nothing: it reads the guarded database.",
    examples=(
        ("Everything that is kept of one target:", "rollbackd archives list shop"),
        ("What one run kept:", "rollbackd archives list shop --run run-20261122T221509-1b2c3d4e"),
    ),
)
@click.argument("target", shell_complete=completing.targets)
@click.option("--run", default="", help="Of this run alone.", shell_complete=completing.runs)
@json_option
@click.pass_obj
@asynchronous
async def list_archives(config: Path, target: str, run: str, as_json: bool) -> None:
    """List a target's archives, newest first: what of which table, how many rows, and whether it was brought back."""
    client = await running_daemon(config)
    if client is not None:
        found = await client.ask("GET", f"/api/v1/targets/{target}/archives?run={run}")
    else:
        async with working(config) as parts:
            found = [describe_archive(entry) for entry in await parts.operations.archives(target, run)]
    if as_json:
        show_json(found)
        return
    listed = table("made", "run", "kind", "of", "rows", "brought back", "place")
    for entry in sorted(found, key=lambda e: e["made_at"], reverse=True):
        of = f"{entry['table']}.{entry['column']}" if entry["column"] else entry["table"]
        back = _moment(entry["restored_at"]) if entry["restored_at"] else "not yet"
        cells = (entry["run"], entry["kind"], of, f"{entry['rows']:,}", back, entry["place"])
        listed.add_row(_moment(entry["made_at"]), *(safe(cell) for cell in cells))
    console().print(listed)


def _moment(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%F %T}"


@archives.command(
    "prune",
    cls=Manual,
    changes="Drops tables of the schema rollbackd_archive in the guarded databases. What they held is then in backups alone.",
    examples=(
        (
            "Drop what is older than archive.keep now, instead of with the daemon's housekeeping:",
            "rollbackd archives prune",
        ),
    ),
)
@json_option
@click.pass_obj
@asynchronous
async def prune_archives(config: Path, as_json: bool) -> None:
    """Drop the archives that 'archive.keep' no longer keeps, of every target."""
    client = await running_daemon(config)
    if client is not None:
        dropped = await client.ask("POST", "/api/v1/archives/prune", timeout_s=PRUNE_TIMEOUT_S)
    else:
        async with working(config) as parts:
            found = await parts.operations.prune_archives()
            dropped = {name: [describe_archive(entry) for entry in gone] for name, gone in found.items()}
    if as_json:
        show_json(dropped)
        return
    total = sum(len(gone) for gone in dropped.values())
    click.echo(f"{total} dropped")
    for name, gone in dropped.items():
        for entry in gone:
            click.echo(f"  {name}: {entry['place']} ({entry['rows']} rows of {entry['table']})")
