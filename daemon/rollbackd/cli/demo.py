"""`rollbackd demo`: the whole story on an embedded PostgreSQL."""

import click

from rollbackd.cli.main import asynchronous
from rollbackd.cli.manual import TERMINAL, Manual

NAMES = (
    "application-fails",
    "production-errors",
    "production-approval",
    "migration-failed-clean",
    "migration-failed-midway",
    "migration-failed-inside",
    "minor-bug",
    "data-loss",
    "nothing-moved",
)


@click.command(
    cls=Manual,
    changes="A folder in the temporary folder with everything in it, which it removes. Nothing else.",
    examples=(
        ("One story:", "rollbackd demo"),
        ("A migration that stops in the midst:", "rollbackd demo --scenario migration-failed-midway"),
        ("All of them, for a program:", "rollbackd demo --all --json > demo.json"),
    ),
    exits={1: "a claim didn't hold, or there is no embedded PostgreSQL for this machine"},
    environment=TERMINAL,
)
@click.option(
    "--scenario", type=click.Choice(NAMES), default=NAMES[0], show_default=True, help="Which story."
)
@click.option("--all", "everything", is_flag=True, help="Every scenario, one after another.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; the story goes to stderr.")
@asynchronous
async def demo(scenario: str, everything: bool, as_json: bool) -> int:
    """Watch a bad deploy being caught, decided on, backed up, rolled back, validated and reported, for real.

    Needs nothing but this installation with its extra "demo". Exits 0 only if every claim was checked and held.
    """
    from rollbackd.demo.story import tell

    return await tell(list(NAMES) if everything else [scenario], as_json=as_json)
