"""What happened, newest first: runs and decisions as rows of one shape, and as a dense table."""

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from rollbackd.cli.output import GAP, STATE_STYLES, columns, heads, safe
from rollbackd.core.records import Run, StoredDecision
from rollbackd.core.wording import took

COLUMNS = ("when", "what", "target", "way", "from → to", "outcome", "took", "id", "who", "why")
# Narrower than this a reason says nothing.
LEAST_WHY = 24
# The columns of the first of several lines: up to how long it took, or without its way where that doesn't fit.
TOOK = COLUMNS.index("took") + 1
BESIDES_WAY = (0, 1, 2, 5, 6)
OUTCOME_STYLES = {**STATE_STYLES, "refused": "yellow", "denied": "yellow", "expired": "yellow"}
Row = dict[str, Any]


def history_rows(runs: list[Run], decisions: list[StoredDecision], limit: int) -> list[Row]:
    """Runs and decisions in one shape, newest first."""
    rows = [*map(_run_row, runs), *map(_decision_row, decisions)]
    return sorted(rows, key=lambda row: row["at"], reverse=True)[:limit]


def show_history(out: Console, rows: list[Row], *, is_terminal: bool) -> None:
    """One line for each where there is room, else two or three. A pipe gets whole lines."""
    cells = [_cells(row) for row in rows]
    if not is_terminal:
        for text in columns([COLUMNS, *cells]):
            out.print(safe(text))
        return
    widths = [max(map(cell_len, column)) for column in zip(COLUMNS, *cells, strict=True)]
    if _length(widths[:-1]) + LEAST_WHY <= out.width:
        _print(out, COLUMNS, widths, header=True)
        for line in cells:
            _print(out, line, widths)
        return
    shown = BESIDES_WAY if _length(widths[:TOOK]) > out.width else tuple(range(TOOK))
    _print(out, [COLUMNS[at] for at in shown], [widths[at] for at in shown], header=True)
    for line in cells:
        _print(out, [line[at] for at in shown], [widths[at] for at in shown])
        _, _, _, way, path, _, _, id_, who, why = line
        if shown is BESIDES_WAY:
            out.print(Text(f"  {id_}  {way}  {path}".rstrip()), overflow="fold")
            out.print(Text(f"  {who}: {why}", "dim"), no_wrap=True, overflow="ellipsis")
        else:
            out.print(Text(f"  {id_}  ").append(f"{who}: {why}", "dim"), no_wrap=True, overflow="ellipsis")


def _length(widths: list[int]) -> int:
    return sum(widths) + GAP * len(widths)


def _print(out: Console, cells: Sequence[str], widths: Sequence[int], *, header: bool = False) -> None:
    """One line of aligned cells; what there is no room for is cut at its end, where the reason stands."""
    line = Text(style="bold" if header else "")
    for cell, width in zip(cells, widths, strict=True):
        line.append(set_cell_size(cell, width), OUTCOME_STYLES.get(cell, "")).append(" " * GAP)
    line.rstrip()
    out.print(line, no_wrap=True, overflow="ellipsis")


def _cells(row: Row) -> tuple[str, ...]:
    outcome, _, rest = row["outcome"].partition(": ")
    path = f"{heads(row['from_heads'])} → {heads(row['to_heads'])}" if row["kind"] == "run" else ""
    lasted = took(row["took_s"]) if row["took_s"] is not None else ""
    why = " ".join(f"{row['why']}{f' ({rest})' if rest else ''}".split())
    return (
        f"{row['at']:%m-%d %H:%M:%S}",
        row["kind"],
        row["target"],
        row["way"],
        path,
        outcome,
        lasted,
        row["id"],
        row["who"],
        why,
    )


def _run_row(run: Run) -> Row:
    ends = run.finished_at, run.started_at
    took_s = (ends[0] - ends[1]).total_seconds() if ends[0] and ends[1] else None
    return {
        "at": run.created_at,
        "kind": "run",
        "id": run.id,
        "target": run.target,
        "way": str(run.plan.way_back),
        "from_heads": list(run.plan.from_heads),
        "to_heads": list(run.plan.to_heads),
        "outcome": str(run.state),
        "took_s": took_s,
        "who": run.requested_by,
        "why": run.reason,
        "run": run.id,
        "decision": run.decision,
    }


def _decision_row(stored: StoredDecision) -> Row:
    return {
        "at": stored.at,
        "kind": "decision",
        "id": stored.id,
        "target": stored.target,
        "way": str(stored.decision.action),
        "from_heads": [],
        "to_heads": [],
        "outcome": stored.outcome,
        "took_s": None,
        "who": "rollbackd",
        "why": f"{stored.decision.row}: {stored.decision.why}",
        "run": stored.run,
        "decision": stored.id,
    }
