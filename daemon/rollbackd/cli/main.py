"""`rollbackd`: the group of commands, and the one place where errors become exit codes."""

import asyncio
import functools
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from rollbackd import __version__
from rollbackd.errors import ConfigurationError, RollbackdError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Command to the module that holds it, so that `rollbackd --version` doesn't wait for all of them.
COMMANDS = {
    "serve": "serving",
    "check-config": "serving",
    "tokens": "serving",
    "demo": "demo",
    "status": "reading",
    "history": "reading",
    "explain": "reading",
    "report": "reading",
    "plan": "acting",
    "rehearse": "acting",
    "rollback": "acting",
    "approve": "acting",
    "deny": "acting",
    "resume": "acting",
    "abandon": "acting",
    "gate": "acting",
    "pause": "acting",
    "unpause": "acting",
    "restore": "archives",
    "archives": "archives",
    "backups": "backups",
    "verify-migrations": "verifying",
}


class Commands(click.Group):
    """Loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the day: what runs, what is read, what is done."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        import importlib

        loaded = importlib.import_module(f"rollbackd.cli.{module}")
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(loaded, f"{name}_command", None) or getattr(loaded, name)
        return found


@click.command(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="rollbackd")
@click.option(
    "--config",
    "config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=lambda: Path(os.environ.get("ROLLBACKD_CONFIG", "/etc/rollbackd/rollbackd.toml")),
    help="The configuration file. [default: $ROLLBACKD_CONFIG, else /etc/rollbackd/rollbackd.toml]",
)
@click.pass_context
def commands(ctx: click.Context, config: Path) -> None:
    """Rolls back bad Alembic deploys without losing a row.

    Exit codes: 0 done, 1 refused or failed, 2 usage, 3 held for a person, 4 awaiting approval, 78 bad configuration.
    """
    ctx.obj = config.absolute()


def asynchronous(command: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """Run an async command to its end; what it returns is the exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        sys.exit(asyncio.run(command(*args, **kwargs)) or 0)

    return run


def main() -> None:
    """Run a command. An error of ours is one sentence on stderr and its class's exit code; any other is a fault."""
    try:
        commands.main(standalone_mode=False)
    except ConfigurationError as error:
        for problem in error.problems:
            click.echo(f"rollbackd: {problem}", err=True)
        sys.exit(error.exit_code)
    except RollbackdError as error:
        click.echo(f"rollbackd: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("rollbackd: stopped", err=True)
        sys.exit(130)
