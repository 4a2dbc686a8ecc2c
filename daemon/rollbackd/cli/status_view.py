"""Every target as a person looks at it: what is watched, its price of going back, what runs, what waits for whom.

What is unfinished comes first. Takes the documents of `workflow/overview.py` (`GET /api/v1/targets` has the same).
"""

from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from rollbackd.cli.output import Line, coloured, heads, indented, safe
from rollbackd.cli.run_view import run_lines, run_tree, step_under_way
from rollbackd.cli.times import ago, clock, seconds_since, share
from rollbackd.core.wording import about, counted

UNFINISHED = ("running", "awaiting_approval", "held", "planned")
QUALITY_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]?[/]"}
# On a pipe a step's progress is told in parts of so much.
TOLD_PART = 0.1
# The last in the order of urgency.
AT_REST = 5
Document = dict[str, Any]


def by_urgency(found: list[Document]) -> list[Document]:
    """What waits for a person, then what runs, then what is watched, then the others, each in the configuration's order."""
    return sorted(found, key=_urgency)


def _urgency(one: Document) -> int:
    states = {"held": 0, "awaiting_approval": 1, "running": 2, "planned": 2}
    others = 3 if one["watching"] else 4 if one["paused"] else AT_REST
    return states.get(one["run"]["state"], others) if one["run"] else others


def screen(
    found: list[Document],
    now: datetime,
    *,
    by_daemon: bool,
    moves: bool = True,
    most_at_rest: int | None = None,
) -> RenderableType:
    """The whole view for a terminal; with `moves` one that is redrawn, with at most so many targets at rest."""
    parts: list[RenderableType] = [Text.from_markup(summary(found, now, by_daemon=by_daemon)), Text()]
    shown = by_urgency(found)
    busy = sum(_urgency(one) < AT_REST for one in found)
    hidden = 0 if most_at_rest is None else max(len(shown) - busy - most_at_rest, 0)
    for one in shown[: len(shown) - hidden]:
        parts += [indented(line) for line in target_lines(one, now)]
        if one["run"] and one["run"]["state"] in UNFINISHED:
            parts.append(Padding(run_tree({**one, **one["run"]}, now, moves=moves), (0, 0, 0, 2)))
    if hidden:
        parts.append(Text(f"and {hidden} more at rest; 'rollbackd status' lists them all", "dim"))
    return Group(*parts)


def summary(found: list[Document], now: datetime, *, by_daemon: bool) -> str:
    """How many of what there is, as markup; and whether anybody is at work on it."""
    states = [one["run"]["state"] for one in found if one["run"]]
    waiting = states.count("held") + states.count("awaiting_approval")
    counts = [
        counted(len(found), "target"),
        f"{sum(one['watching'] is not None for one in found)} watched",
        f"{states.count('running')} running",
        f"[bold yellow]{waiting} waiting for a person[/]" if waiting else "nothing waits for a person",
    ]
    told = f"[bold]{clock(now)}[/]  {' · '.join(counts)}"
    return told if by_daemon else f"{told}\n[bold yellow]! no daemon answers: this is what the store says[/]"


def target_lines(one: Document, now: datetime) -> list[Line]:
    """A target without the steps of its run."""
    at = "not documented yet"
    if one["heads"] is not None:
        at = f"{heads(one['heads'])}, documented {ago(one['documented_at'], now)}"
    lines = [
        Line(0, f"[bold]{safe(one['name'])}[/]  {safe(one['environment'])}  {one['mode']}  at {safe(at)}")
    ]
    if one["paused"]:
        since = ago(one["paused"]["since"], now)
        lines.append(Line(2, f"[yellow]{safe(_paused(one['paused']))}, {since}[/]", "[yellow]‖[/]"))
    if one["watching"]:
        lines += _watching(one, now)
    run = one["run"]
    if run and run["state"] not in UNFINISHED:
        way = f"{heads(run['from_heads'])} → {heads(run['to_heads'])}"
        ended = f"{coloured(run['state'])}, {ago(run['finished_at'], now)}: {safe(way)}"
        mark = "[green]✓[/]" if run["state"] == "succeeded" else "[red]✗[/]"
        lines.append(Line(2, f"last run {safe(run['id'])} {ended}", mark))
    return lines


def unfinished_lines(one: Document, now: datetime) -> list[Line]:
    """A target's unfinished run as plain lines, for a pipe; none where there is none."""
    run = one["run"]
    if not run or run["state"] not in UNFINISHED:
        return []
    way = f"{heads(run['from_heads'])} → {heads(run['to_heads'])}"
    head = f"{safe(run['id'])}  {coloured(run['state'])}  {safe(run['target'])}  {safe(way)}  {safe(run['reason'])}"
    statement = [Line(4, safe(run["statement"]))] if run["statement"] else []
    return [Line(2, head), *statement, *(Line(4, line) for line in run_lines({**one, **run}, now))]


def _watching(one: Document, now: datetime) -> list[Line]:
    watching = one["watching"]
    began = about(seconds_since(watching["started_at"], now))
    stage = "the deploy is under way"
    if watching["succeeded_at"]:
        left_s = one["bake_time_s"] - seconds_since(watching["succeeded_at"], now)
        stage = f"{about(left_s)} of its bake time left" if left_s > 0 else "its bake time is over"
    name = safe(watching["version"] or watching["id"])
    lines = [Line(2, f"watching {name} for {began}; {stage}", "[cyan]◉[/]")]
    if one["price_text"]:
        lines.append(Line(2, safe(one["price_text"]), "↩"))
    for probe in one["probes"]:
        said = f"{probe['said']}, {ago(probe['at'], now)}"
        lines.append(
            Line(2, safe(f"{_kind(probe)} {probe['name']}: {said}"), QUALITY_MARKS[probe["is_good"]])
        )
    if watching["investigating"]:
        slow = watching["investigating"]
        until = datetime.fromisoformat(slow["until"])
        text = f"slow for {about(seconds_since(slow['since'], now))}, investigated until {until:%H:%M} UTC"
        lines.append(Line(2, f"{text}: rollbackd explain {safe(slow['decision'])}", "[yellow]![/]"))
    stored = one["decision"]
    # What led to a run is told with the run.
    if stored and not stored["run"]:
        outcome = f"{_decided(stored)}, {ago(stored['at'], now)}; rollbackd explain {stored['id']}"
        lines.append(Line(2, safe(outcome), "[yellow]![/]"))
    return lines


def _decided(stored: Document) -> str:
    decision = stored["decision"]
    return f"{decision['action']} by row {decision['row']}: {stored['outcome']}"


def _paused(pause: Document) -> str:
    until = f" until {pause['until'][:16].replace('T', ' ')} UTC" if pause["until"] else ""
    return f"paused{until} by {pause['who']}: {pause['why']}"


# -- changes -----------------------------------------------------------------------------------------------------------

Marks = dict[tuple[str, str], str]
# Whatever else is gone went with these, or with a run that ended.
TOLD_WHEN_GONE = ("pause", "watching")


def marks(found: list[Document]) -> Marks:
    """What a person wants to be told when it changes, by target and subject; nothing in it changes with the time alone."""
    return {(one["name"], subject): text for one in found for subject, text in _marks(one).items()}


def stale_marks(found: list[Document]) -> Marks:
    """Those that aren't news to whoever begins to watch: the steps of runs that have ended."""
    ended = [one for one in found if one["run"] and one["run"]["state"] not in UNFINISHED]
    return {(one["name"], subject): text for one in ended for subject, text in _step_marks(one).items()}


def changes(before: Marks, after: Marks) -> list[str]:
    """A line for each mark that is new, otherwise than before, or gone."""
    told = [
        f"{target}  {subject.split()[0]:<9} {text}"
        for (target, subject), text in after.items()
        if before.get((target, subject)) != text
    ]
    gone = [
        f"{target}  {subject:<9} no longer"
        for target, subject in before
        if subject in TOLD_WHEN_GONE and (target, subject) not in after
    ]
    return told + gone


def _kind(reading: Document) -> str:
    return "metric" if reading["source"] == "prometheus" else "probe"


def _marks(one: Document) -> dict[str, str]:
    found = {
        "state": f"{one['environment']}, {one['mode']}, at {heads(one['heads']) if one['heads'] is not None else 'nobody knows where'}"
    }
    if one["paused"]:
        found["pause"] = _paused(one["paused"])
    if one["watching"]:
        watching = one["watching"]
        stage = "baking" if watching["succeeded_at"] else "the deploy is under way"
        found["watching"] = f"{watching['version'] or watching['id']}, {stage}"
    if one["price_text"]:
        found["price"] = one["price_text"]
    for probe in one["probes"]:
        state = {True: "healthy", False: "failing", None: probe["quality"]}[probe["healthy"]]
        found[f"{_kind(probe)} {probe['name']}"] = f"{probe['name']}: {probe['level'] or state}"
    if one["decision"]:
        found["decision"] = _decided(one["decision"])
    if one["run"]:
        found |= _run_marks(one)
    return found


def _run_marks(one: Document) -> dict[str, str]:
    """The run and each of its steps, in the order in which they came about."""
    run = one["run"]
    statement = f": {run['statement']}" if run["statement"] else ""
    state = {"run": f"{run['id']} {run['state']}{statement}"}
    if run["state"] not in UNFINISHED:
        return {**_step_marks(one), **state}
    found = {**state, **_step_marks(one)}
    part = share(one["progress"]) if step_under_way(one) is not None and one["progress"] else None
    if part is not None:
        found["progress"] = f"{int(part / TOLD_PART) * TOLD_PART:.0%}"
    return found


def _step_marks(one: Document) -> dict[str, str]:
    of = len(one["course"])
    return {
        f"step {one['run']['id']} {step['number']}": (
            f"{step['number'] + 1} of {of}, {step['text']}: {step['stands'].replace('_', ' ')}"
            + (f", {step['note']}" if step["note"] else "")
        )
        for step in one["course"]
        if step["stands"] != "not_begun"
    }
