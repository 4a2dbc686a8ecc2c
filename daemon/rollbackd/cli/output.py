"""How commands show things: rich on a terminal, plain lines otherwise, JSON where asked."""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from rollbackd.core.run import RunState

EXIT_CODES = {
    RunState.SUCCEEDED: 0,
    RunState.HELD: 3,
    RunState.AWAITING_APPROVAL: 4,
}
# Wide enough that no line is folded where a program reads it.
PIPE_WIDTH = 2_000
# Between two columns.
GAP = 2


class Line(NamedTuple):
    """How far it is indented, its markup, and the mark before it."""

    indent: int
    markup: str
    mark: str = ""


STATE_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "awaiting_approval": "yellow",
    "held": "bold red",
    "failed": "red",
}
GATE_ICONS = {
    "met": ("✓", "green"),
    "opens": ("○", ""),
    "needs_person": ("◔", "yellow"),
    "refused": ("✗", "red"),
}
OUTCOME_ICONS = {
    "passed": "✓",
    "done": "✓",
    "warned": "!",
    "unknown": "?",
    "failed": "✗",
    "held": "■",
    "met": "✓",
}


def console() -> Console:
    """Standard output. Colours only on a terminal; long lines are never cut when it isn't one."""
    if is_terminal():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=PIPE_WIDTH)


def is_terminal() -> bool:
    """Whether a person reads the standard output as it comes."""
    return sys.stdout.isatty()


def is_live(out: Console) -> bool:
    """Whether something can be redrawn in place there."""
    return is_terminal() and out.is_terminal and not out.is_dumb_terminal


def show_json(document: Any) -> None:
    """Print a document as JSON."""
    click.echo(json.dumps(document, indent=2, default=str))


def put(out: Console, indent: int, markup: str, mark: str = "") -> None:
    """Print an indented line, after a mark where it has one; what is folded stands under its beginning."""
    line = Line(indent, markup, mark)
    out.print(indented(line) if is_terminal() else plain(line))


def indented(line: Line) -> RenderableType:
    """A line for a terminal."""
    made = Table.grid(padding=(0, 1, 0, 0))
    if line.mark:
        made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    made.add_row(*([line.mark] if line.mark else []), line.markup)
    return Padding(made, (0, 0, 0, line.indent), expand=False)


def plain(line: Line) -> str:
    """A line for a pipe, whole."""
    return f"{' ' * line.indent}{f'{line.mark} ' if line.mark else ''}{line.markup}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines, for a pipe."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * GAP).join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def exit_code(state: str) -> int:
    """A run's state as an exit code; a run that goes on by itself is done as far as asking goes."""
    return EXIT_CODES.get(RunState(state), 0 if state in ("running", "planned") else 1)


def coloured(state: str) -> str:
    """A state in its colour."""
    style = STATE_STYLES.get(state, "")
    return f"[{style}]{state}[/]" if style else state


def safe(text: object) -> str:
    """Text that can't be markup."""
    return escape(str(text))


def table(*columns: str) -> Table:
    """A table without frames, for terminals and pipes alike."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Ids must be whole to be copied; what there is no room for is cut at the end of the reasons.
        is_long = column in ("why", "place")
        made.add_column(column, no_wrap=True, overflow="ellipsis" if is_long else "fold")
    return made


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show_end(out: Console, run: dict[str, Any], *, was_shown: bool) -> None:
    """How a run stands once nobody follows it any more; what its tree, if that `was_shown`, has said already isn't repeated."""
    if not was_shown:
        way = f"{heads(run['from_heads'])} → {heads(run['to_heads'])}"
        put(
            out,
            0,
            f"{safe(run['id'])}  {coloured(run['state'])}  {safe(run['target'])}  {safe(way)}  {safe(run['reason'])}",
        )
    notes = [step["note"] for step in run["course"]] if was_shown else []
    if run["statement"] and run["statement"] not in notes:
        put(out, 2, safe(run["statement"]))
    if was_shown:
        return
    for text in run["approval_reasons"] if run["state"] == "awaiting_approval" else ():
        put(out, 2, f"[yellow]{safe(text)}[/]")


def heads(found: list[str]) -> str:
    """Heads as a person reads them."""
    return " + ".join(found) or "base"
