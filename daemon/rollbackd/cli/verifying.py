"""`verify-migrations`: is every migration reversible, and what does its way back cost? For CI and before a commit."""

import json
import os
import shlex
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec

from rollbackd.app.verifying import Folder, verify_migrations
from rollbackd.cli import completing
from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import CONFIGURATION, Manual
from rollbackd.core.verification import (
    FAILING,
    Fault,
    Verification,
    Verified,
    baseline_of,
    to_github,
    to_text,
)
from rollbackd.errors import RefusedError, UsageError

EMBEDDED = "embedded"
FORMATS = ("auto", "text", "json", "github")


@click.command(
    "verify-migrations",
    cls=Manual,
    changes="Databases in scratch, which it makes and drops; the file of --baseline with --write-baseline. A configured target's"
    " database is only read.",
    examples=(
        (
            "In the project's folder, with its interpreter active:",
            "rollbackd verify-migrations --python python3 --url environment:DATABASE_URL",
        ),
        ("Only what is new on this branch:", "rollbackd verify-migrations --from a1b2c3d4e5f6"),
        ("Old faults don't count:", "rollbackd verify-migrations --baseline .rollbackd-baseline.json"),
    ),
    exits={1: "a migration has a fault that counts"},
    environment={**CONFIGURATION, "GITHUB_ACTIONS": "when it is true, --format auto writes annotations"},
)
@click.argument("target", required=False, shell_complete=completing.targets)
@click.option(
    "--directory", default="", help="The folder with alembic.ini, where no target is configured. [default: .]"
)
@click.option("--ini", default="alembic.ini", show_default=True, help="Alembic's ini file in it.")
@click.option(
    "--python",
    default="python3",
    show_default=True,
    help="The interpreter (or command) that has the project's packages.",
)
@click.option("-x", "x", multiple=True, help="Passed on as alembic's -x.")
@click.option(
    "--url",
    default="own",
    show_default=True,
    help="How env.py comes by its database: own, option or environment:NAME.",
)
@click.option(
    "--version-table", default="alembic_version", show_default=True, help="The table that holds the stamp."
)
@click.option("--version-table-schema", default="", help="Its schema, where it isn't the default one.")
@click.option(
    "--scratch",
    default=EMBEDDED,
    show_default=True,
    help="A server to make scratch databases on: postgresql://user@host:port/database, or embedded.",
)
@click.option("--scratch-password", default="", help="Its password by reference: env:NAME or file:/path.")
@click.option(
    "--from", "start", default="", help="Verify what comes above this revision (the heads with commas)."
)
@click.option(
    "--rows", default=3, show_default=True, type=click.IntRange(0, 1000), help="Made-up rows a table."
)
@click.option(
    "--baseline",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file of old faults that don't count.",
)
@click.option("--write-baseline", is_flag=True, help="Write what is found to the baseline file, and succeed.")
@click.option(
    "--allow",
    multiple=True,
    type=click.Choice([f.value for f in FAILING]),
    help="A fault that doesn't count.",
)
@click.option(
    "--forbid-loss", is_flag=True, help="Let it count when a downgrade takes away what the upgrade brought."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="auto",
    show_default=True,
    help="auto is github in GitHub's CI, else text.",
)
@click.pass_obj
@asynchronous
async def verify_migrations_command(
    config: Path,
    target: str | None,
    directory: str,
    ini: str,
    python: str,
    x: tuple[str, ...],
    url: str,
    version_table: str,
    version_table_schema: str,
    scratch: str,
    scratch_password: str,
    start: str,
    rows: int,
    baseline: Path | None,
    write_baseline: bool,
    allow: tuple[str, ...],
    forbid_loss: bool,
    form: str,
) -> int:
    """Put every migration on, take it off and put it on again, over made-up rows, on scratch.

    Says of each: reversible, what it takes away, irreversible, fails (why), or doesn't return to its schema (the difference).
    Exits with 1 when one has a fault that counts.
    """
    # A CI job that is cancelled gets SIGTERM: like Ctrl-C, it must leave no database on a server that outlives the job.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    if target and directory:
        raise UsageError("give a configured target or --directory, not both")
    if write_baseline and baseline is None:
        raise UsageError("--write-baseline needs --baseline FILE")
    accepted = _read_baseline(baseline) if baseline is not None and not write_baseline else {}
    if form == "auto":
        form = "github" if os.environ.get("GITHUB_ACTIONS") == "true" else "text"

    def told(one: Verified) -> None:
        if form == "text" and sys.stderr.isatty():
            click.echo(f"  {one.revision} ({one.seconds:.1f} s)", err=True)

    with ExitStack() as stack:
        what: Folder | tuple[Path, str]
        if target:
            what = (config, target)
        else:
            what = Folder(
                directory=directory or ".",
                ini=ini,
                python=tuple(shlex.split(python)),
                x=x,
                url=url,
                version_table=version_table,
                version_table_schema=version_table_schema,
                **_server(scratch, scratch_password, stack),
            )
        kept = stack.enter_context(tempfile.TemporaryDirectory(prefix="rollbackd-verify-"))
        found = await verify_migrations(what, start=start, made_up_rows=rows, told=told, kept=Path(kept))
    allowed = {Fault(fault) for fault in allow}
    failing = tuple(f for f in (tuple(Fault) if forbid_loss else FAILING) if f not in allowed)
    found = msgspec.structs.replace(found, accepted=accepted, failing=failing)
    if write_baseline and baseline is not None:
        baseline.write_text(json.dumps(baseline_of(found.verified), indent=2) + "\n", encoding="utf-8")
        click.echo(f"{len(baseline_of(found.verified))} revisions with faults written to {baseline}")
        return 0
    _show(found, form)
    return 0 if found.passes() else 1


def _server(scratch: str, password: str, stack: ExitStack) -> dict[str, str]:
    """Where scratch is; an embedded server lives as long as the check."""
    if scratch != EMBEDDED:
        return {"scratch": scratch, "scratch_password": password}
    from rollbackd.demo.postgres import EmbeddedPostgres, EmbeddedPostgresUnavailable

    try:
        server = stack.enter_context(EmbeddedPostgres.start())
    except EmbeddedPostgresUnavailable as error:
        raise RefusedError(f"{error}; or give a server with --scratch") from None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rollbackd-verify-")))
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(server.password, encoding="utf-8")
    return {
        "scratch": f"postgresql://{server.user}@{server.host}:{server.port}/postgres",
        "scratch_password": f"file:{secret}",
        "binaries": str(server.bin_directory),
    }


def _show(found: Verification, form: str) -> None:
    if form == "json":
        document: dict[str, Any] = msgspec.to_builtins(found)
        document["passes"] = found.passes()
        click.echo(json.dumps(document, indent=2))
        return
    if form == "github" and (annotations := to_github(found)):
        click.echo(annotations)
    click.echo(to_text(found))


def _read_baseline(path: Path) -> dict[str, tuple[Fault, ...]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {revision: tuple(Fault(fault) for fault in faults) for revision, faults in document.items()}
    except FileNotFoundError:
        raise UsageError(f"{path} isn't there: make it with --write-baseline") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(f"{path} is no baseline ({error}): make it anew with --write-baseline") from None
