"""One run as a person follows it: a tree of its steps on a terminal, a line for each change elsewhere.

Both take the document of `workflow/overview.py` (`GET /api/v1/runs/{id}` has the same).
"""

from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from rollbackd.cli.output import coloured, heads, safe
from rollbackd.cli.times import amount, clock, seconds_since, share
from rollbackd.core.wording import about, took

# Beyond this the eye loses the line between a step and its time.
WIDEST = 110
BAR_WIDTH = 24
# Waiting that is too short to be told apart.
LEAST_TOLD_S = 0.5
ICONS = {
    "not_begun": ("·", "dim"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "held": ("■", "bold red"),
    "undone": ("↩", "yellow"),
}
WAITING_ICON = ("◔", "yellow")
STILL_ICON = ("▸", "cyan")


def run_tree(run: dict[str, Any], now: datetime, *, moves: bool = True) -> RenderableType:
    """A run with each of its steps; with `moves` the step under way has a spinner, for a view that is redrawn."""
    tree = Tree(_header(run, now), guide_style="dim")
    if waits := _waits_for(run, now):
        head, *below = (Text.from_markup(text) for text in waits)
        tree.add(Group(head, *(_under(text) for text in below)))
    for step in run["course"]:
        tree.add(_step(run, step, moves=moves))
    return Constrain(tree, WIDEST)


def journal_lines(run: dict[str, Any], shown: int) -> list[str]:
    """What the journal says from its record number `shown` on, a line for each."""
    return [_journal_line(run, record) for record in run["journal"][shown:]]


def progress_line(run: dict[str, Any], now: datetime) -> str:
    """How far the step under way has come; empty where nobody knows."""
    step = step_under_way(run)
    if step is None or not run["progress"]:
        return ""
    return f"{clock(now)}  {'going':<7} {step['text']}: {_amount(run['progress'])}"


def step_under_way(run: dict[str, Any]) -> dict[str, Any] | None:
    """The step that is being taken, where one is."""
    found: dict[str, Any] | None = next((s for s in run["course"] if s["stands"] == "under_way"), None)
    return found


def run_lines(run: dict[str, Any], now: datetime) -> list[str]:
    """A run's steps as plain lines of markup, for a pipe."""
    lines = _waits_for(run, now)
    for step in run["course"]:
        time = _time(step)
        note = f": {safe(step['note'])}" if step["note"] else ""
        going = f", {safe(_amount(run['progress']))}" if _goes(run, step) and run["progress"] else ""
        word = step["stands"].replace("_", " ")
        lines.append(f"{word:<9} {safe(step['text'])}{f'  {time}' if time else ''}{going}{note}")
    return lines


def _header(run: dict[str, Any], now: datetime) -> Text:
    """Two lines: which run it is and how it stands, then its way."""
    way = f"{heads(run['from_heads'])} → {heads(run['to_heads'])}"
    return Text.from_markup(
        f"[bold]{safe(run['id'])}[/]  {coloured(run['state'])}  {safe(run['target'])}\n"
        f"{safe(way)}  {run['way_back']}  [dim]{_whole_time(run, now)}[/]"
    )


def _whole_time(run: dict[str, Any], now: datetime) -> str:
    """How long it has been at work, what of it was waiting, and how long it waited before it began."""
    end = now if run["finished_at"] is None else datetime.fromisoformat(run["finished_at"])
    began = run["started_at"]
    if began is None:
        return f"asked for {about(seconds_since(run['created_at'], end))} ago"
    held_for = ""
    if run["state"] == "held":
        stopped = max((step["ended_at"] for step in run["course"] if step["ended_at"]), default=began)
        held_for = f"held for {about(seconds_since(stopped, now))}"
        end = datetime.fromisoformat(stopped)
    waited = sum(step["waited_s"] for step in run["course"])
    told = [
        f"{took(seconds_since(began, end))}{f' ({took(waited)} waiting)' if waited >= LEAST_TOLD_S else ''}"
    ]
    if run["approval_reasons"]:
        told.append(f"approved after {took(seconds_since(run['created_at'], datetime.fromisoformat(began)))}")
    if held_for:
        told.append(held_for)
    return ", ".join(told)


def _waits_for(run: dict[str, Any], now: datetime) -> list[str]:
    """For whom a run waits, why, and what they can do, as markup; each command stands by itself, to be copied."""
    if run["state"] == "awaiting_approval":
        until = ""
        if run["expires_at"]:
            left = about(-seconds_since(run["expires_at"], now))
            until = f", for another {left}, until {clock(run['expires_at'])}"
        return [
            f"[yellow]◔ waits for somebody else than {safe(run['requested_by'])} to approve it{until}[/]",
            *(f"[yellow]{safe(reason)}[/]" for reason in run["approval_reasons"]),
            *(f"rollbackd {command} {run['id']}" for command in ("report", "approve", "deny")),
        ]
    if run["state"] == "held":
        return [
            "[yellow]◔ waits for a person; look at the report, then resume or abandon it[/]",
            *(f"rollbackd {command} {run['id']}" for command in ("report", "resume", "abandon")),
        ]
    return []


def _goes(run: dict[str, Any], step: dict[str, Any]) -> bool:
    return bool(run["state"] == "running" and step["stands"] == "under_way")


def _step(run: dict[str, Any], step: dict[str, Any], *, moves: bool) -> RenderableType:
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(width=1, no_wrap=True)
    line.add_column(ratio=1, overflow="fold")
    line.add_column(justify="right", no_wrap=True)
    style = "dim" if step["stands"] == "not_begun" else ""
    line.add_row(_icon(run, step, moves=moves), Text(step["text"], style=style), Text(_time(step), "dim"))
    below: list[RenderableType] = []
    if step["note"]:
        below.append(_under(Text(step["note"], "red" if step["stands"] in ("failed", "held") else "dim")))
    if _goes(run, step):
        if run["progress"]:
            below.append(_bar(run["progress"]))
        if statement := _last_statement(run, step):
            below.append(_under(Text(statement, "dim", no_wrap=True, overflow="ellipsis")))
    return Group(line, *below) if below else line


def _icon(run: dict[str, Any], step: dict[str, Any], *, moves: bool) -> RenderableType:
    if step["stands"] != "under_way":
        return Text(*ICONS[step["stands"]])
    if step["waits"]:
        return Text(*WAITING_ICON)
    # A run that isn't running takes no step: what was under way when it stopped stands still.
    return Spinner("dots", style="cyan") if moves and _goes(run, step) else Text(*STILL_ICON)


def _time(step: dict[str, Any]) -> str:
    """What a step took; waiting is told apart from work."""
    if step["began_at"] is None:
        return ""
    waited = step["waited_s"]
    if step["waits"]:
        return f"waited {took(waited)}"
    return f"{took(step['took_s'])}{f', {took(waited)} waiting' if waited >= LEAST_TOLD_S else ''}"


def _bar(progress: dict[str, Any]) -> RenderableType:
    line = Table.grid(padding=(0, 1, 0, 0))
    line.add_column(width=1)
    part = share(progress)
    bar = ProgressBar(total=1.0, completed=part, width=BAR_WIDTH) if part is not None else ""
    line.add_row("", bar, Text(_amount(progress), "cyan"))
    return line


def _amount(progress: dict[str, Any]) -> str:
    part = share(progress)
    return f"{part:.0%}, {amount(progress)}" if part is not None else amount(progress)


def _under(text: Text) -> RenderableType:
    """What belongs to the step above, beneath its text."""
    line = Table.grid(expand=True, padding=(0, 1, 0, 0))
    line.add_column(width=1)
    line.add_column(ratio=1, overflow="fold" if not text.no_wrap else "ellipsis", no_wrap=bool(text.no_wrap))
    line.add_row("", text)
    return line


def _last_statement(run: dict[str, Any], step: dict[str, Any]) -> str:
    line = run["last_line"]
    return " ".join(line["text"].split()) if line and line["step"] == step["number"] else ""


def _journal_line(run: dict[str, Any], record: dict[str, Any]) -> str:
    evidence = record["evidence"]
    text = f"{clock(record['at'])}  {record['phase']:<7} {run['step_texts'][record['step']]}"
    if record["phase"] == "done" and "seconds" in evidence:
        text += f"  {took(evidence['seconds'])}"
    said = evidence.get("statement") or evidence.get("error") or evidence.get("because") or ""
    if evidence.get("reused"):
        said = f"took over {evidence['backup']}"
    elif evidence.get("found"):
        said = "was found done"
    return f"{text}: {said}" if said else text
