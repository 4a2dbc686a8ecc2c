"""Every command's help is a manual's page, and every command that shows something shows it as JSON too."""

import re
import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from rollbackd.cli.main import COMMANDS, commands
from rollbackd.cli.manual import Manual

# The one prints a shell's script, the other runs until it is ended.
SHOW_NOTHING = {"serve", "completion"}
SECTIONS = ("Options:", "Changes:", "Examples:", "Exit codes:", "Environment:")


def walk() -> Iterator[tuple[str, click.Command]]:
    """Each command by its full name; a group's are each their own."""
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", inner) for below, inner in command.commands.items())
        else:
            yield name, command


EVERY = dict(walk())


def examples_of(command: Manual) -> list[list[str]]:
    """The command lines of ours in a command's examples, also those inside of another's."""
    lines = [line for _, line in command.examples]
    return [
        shlex.split(found.strip())
        for line in lines
        for found in re.findall(r"(?<![\w/.])rollbackd ((?:\"[^\"]*\"|[^|>)])*)", line)
    ]


@pytest.mark.parametrize("name", EVERY)
def test_each_command_has_the_sections_of_a_manuals_page(name: str) -> None:
    """What it does, what it changes, examples, exit codes, environment; and every option says what it is for."""
    command = EVERY[name]
    assert isinstance(command, Manual)
    shown = CliRunner().invoke(commands, [*name.split(), "--help"])
    assert shown.exit_code == 0
    places = [shown.output.index(f"\n{section}\n") for section in SECTIONS]
    assert places == sorted(places)
    assert {0, 1, 2, 78} <= set(command.exits)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.opts} says nothing"


@pytest.mark.parametrize("name", EVERY)
def test_each_example_is_a_command_line_that_is_understood(name: str) -> None:
    """Its command, options and values are there; and one of a command's examples is of that command."""
    command = EVERY[name]
    assert isinstance(command, Manual)
    shown = CliRunner().invoke(commands, [*name.split(), "--help"]).output
    understood = set()
    for words in examples_of(command):
        context = commands.make_context("rollbackd", list(words), resilient_parsing=False)
        used, inner, rest = commands.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        if isinstance(inner, click.Group):
            context = inner.make_context(used, rest, parent=context)
            below, inner, rest = inner.resolve_command(context, [*context._protected_args, *context.args])
            used = f"{used} {below}"
        assert inner is not None
        inner.make_context(used, rest, parent=context)
        understood.add(used)
    assert name in understood
    for _, line in command.examples:
        assert f"  {line}\n" in shown, "an example is never folded"


@pytest.mark.parametrize("name", sorted(set(EVERY) - SHOW_NOTHING))
def test_what_is_shown_can_be_had_as_json(name: str) -> None:
    """By --json, or as one of the formats."""
    options = {opt: p for p in EVERY[name].params if isinstance(p, click.Option) for opt in p.opts}
    formats = options.get("--format")
    as_format = (
        formats is not None and isinstance(formats.type, click.Choice) and "json" in formats.type.choices
    )
    assert "--json" in options or as_format


def test_the_list_of_commands_says_what_each_does_and_cuts_nothing() -> None:
    """The first sentence of each, whole, in a narrow terminal too."""
    shown = " ".join(CliRunner().invoke(commands, ["--help"], terminal_width=80).output.split())
    for name in COMMANDS:
        command = commands.get_command(click.Context(commands), name)
        assert command is not None
        assert command.help is not None
        first = " ".join(command.help.partition("\n\n")[0].split()).partition(". ")[0]
        assert f"{name} {first}" in shown
