"""Help like a manual's page: besides what a command does and takes, what it changes, examples, exit codes, environment."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

# Every command reads the configuration and may be used wrongly.
COMMON_EXITS = {
    0: "done",
    1: "refused, failed, or not there; one sentence on stderr says why",
    2: "wrong usage",
    78: "the configuration can't work; every problem is named, with its path",
}
# What a command that follows a run exits with.
RUN_EXITS = {
    0: "the run succeeded",
    1: "refused, or the run failed; the database is unchanged",
    3: "the run is held: a person is needed",
    4: "the run awaits somebody's approval",
}
CONFIGURATION = {"ROLLBACKD_CONFIG": "the configuration file, where --config isn't given"}
DAEMON = {
    "ROLLBACKD_URL": "the address of a daemon elsewhere",
    "ROLLBACKD_TOKEN": "an API token for it; without one this machine's daemon is asked, by its Unix socket",
}
TERMINAL = {"NO_COLOR": "when it is set, nothing is coloured"}
ALL = {**CONFIGURATION, **DAEMON, **TERMINAL}


class Manual(click.Command):
    """A command with the sections of a manual's page.

    Args:
        changes: what it changes in the world, in a sentence or two.
        examples: what somebody would use it for, and the command line that does it.
        exits: exit codes that mean something else than usual, or are special to it.
        environment: the variables that it heeds.
    """

    def __init__(
        self,
        *args: Any,
        changes: str,
        examples: Sequence[tuple[str, str]],
        exits: Mapping[int, str] | None = None,
        environment: Mapping[str, str] = ALL,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.changes = changes
        self.examples = tuple(examples)
        self.exits = dict(sorted({**COMMON_EXITS, **(exits or {})}.items()))
        self.environment = dict(environment)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The sections after the options."""
        with formatter.section("Changes"):
            formatter.write_text(self.changes)
        with formatter.section("Examples"):
            for number, (purpose, command) in enumerate(self.examples):
                if number:
                    formatter.write_paragraph()
                formatter.write_text(f"# {purpose}")
                # Never folded: an example is there to be copied.
                formatter.write(f"{'':>{formatter.current_indent}}{command}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in self.exits.items()])
        if self.environment:
            with formatter.section("Environment"):
                formatter.write_dl(list(self.environment.items()))
