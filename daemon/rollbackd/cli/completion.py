"""`rollbackd completion`: the script that teaches a shell to complete commands, options, targets and ids."""

import click
from click.shell_completion import get_completion_class

from rollbackd.cli.main import COMPLETE_VARIABLE, PROGRAM, commands
from rollbackd.cli.manual import Manual

SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Manual,
    changes="Nothing. It prints a script; what you do with it is yours.",
    examples=(
        ("Bash (4.4 or newer), in ~/.bashrc:", 'eval "$(rollbackd completion bash)"'),
        ("Zsh, in ~/.zshrc after compinit:", 'eval "$(rollbackd completion zsh)"'),
        ("Fish:", "rollbackd completion fish > ~/.config/fish/completions/rollbackd.fish"),
    ),
    environment={"ROLLBACKD_CONFIG": "the configuration whose targets, runs and backups are completed"},
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, target names and ids in your shell.

    Targets are read from the configuration and ids from the store, each time; neither a daemon nor a database is asked. What
    can't be read isn't completed.
    """
    made = get_completion_class(shell)
    assert made is not None, "each of SHELLS is one of click's"
    # Without source(): that runs bash to look at its version, and this may be printed for another machine.
    script = made(commands, {}, PROGRAM, COMPLETE_VARIABLE)
    click.echo(script.source_template % script.source_vars())
