"""`rollbackd`: the group of commands, and the one place where errors become exit codes."""

import asyncio
import functools
import io
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from rollbackd import __version__
from rollbackd.errors import ConfigurationError, RollbackdError

PROGRAM = "rollbackd"
# What the shell's completion script sets.
COMPLETE_VARIABLE = "_ROLLBACKD_COMPLETE"
# As a shell names the end of a process by SIGPIPE: whoever read the output has gone.
READER_GONE = 141
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# Command to the module that holds it, so that `rollbackd --version` doesn't wait for all of them.
COMMANDS = {
    "serve": "serving",
    "check-config": "serving",
    "reload": "serving",
    "tokens": "serving",
    "demo": "demo",
    "status": "reading",
    "history": "reading",
    "explain": "reading",
    "report": "reading",
    "plan": "rolling_back",
    "rehearse": "rolling_back",
    "rollback": "rolling_back",
    "approve": "settling",
    "deny": "settling",
    "resume": "settling",
    "abandon": "settling",
    "gate": "acting",
    "pause": "acting",
    "unpause": "acting",
    "restore": "archives",
    "archives": "archives",
    "backups": "backups",
    "verify-migrations": "verifying",
    "completion": "completion",
}


class Commands(click.Group):
    """Loads a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the day: what runs, what is read, what is done."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each command with the whole first sentence of its help."""
        with formatter.section("Commands"):
            found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
            formatter.write_dl([(name, _first_sentence(command)) for name, command in found if command])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """By name alone: a shell mustn't wait until every command's module is loaded."""
        named = [CompletionItem(name) for name in COMMANDS if name.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)

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


def _first_sentence(command: click.Command) -> str:
    first = " ".join((command.help or "").partition("\n\n")[0].split())
    sentence, stop, _ = first.partition(". ")
    return sentence + stop.strip()


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

    'rollbackd COMMAND --help' has examples, exit codes and what each command changes. Commands that read open the store
    read-only; commands that change something ask the running daemon, or, when none runs, do it themselves under its lock.
    --json prints documents with stable keys; what isn't a terminal gets plain, whole lines.

    Exit codes: 0 done, 1 refused or failed, 2 usage, 3 held for a person, 4 awaiting approval, 78 bad configuration. Besides,
    130 after Ctrl-C (but a watch, which ends that way, has 0), and 141 when whoever read the output has gone.

    Environment: ROLLBACKD_CONFIG the configuration file; ROLLBACKD_URL and ROLLBACKD_TOKEN a daemon elsewhere and a token
    for it; NO_COLOR no colours.
    """
    ctx.obj = config.absolute()


def asynchronous(command: Callable[..., Coroutine[Any, Any, int | None]]) -> Callable[..., None]:
    """Run an async command to its end; what it returns is the exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            code = asyncio.run(command(*args, **kwargs)) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left in the buffer would raise once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = READER_GONE
        sys.exit(code)

    return run


def main() -> None:
    """Run a command. An error of ours is one sentence on stderr and its class's exit code; any other is a fault."""
    # A terminal or a log that can't show an arrow gets a question mark, and the command goes on.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        commands.main(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, standalone_mode=False)
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
