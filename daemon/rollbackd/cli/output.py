"""How commands show things: rich on a terminal, plain lines otherwise, JSON where asked."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rollbackd.core.run import RunState

EXIT_CODES = {
    RunState.SUCCEEDED: 0,
    RunState.HELD: 3,
    RunState.AWAITING_APPROVAL: 4,
}
# Wide enough that no line is folded where a program reads it.
PIPE_WIDTH = 2_000
STATE_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "awaiting_approval": "yellow",
    "held": "bold red",
    "failed": "red",
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
    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, soft_wrap=True, width=PIPE_WIDTH)


def show_json(document: Any) -> None:
    """Print a document as JSON."""
    click.echo(json.dumps(document, indent=2, default=str))


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


VERDICTS = {
    "reversible": ("green", "✓ reversible"),
    "reversible_with_loss": ("yellow", "✓ reversible with loss"),
    "unknown": ("yellow", "? unknown"),
    "will_fail": ("red", "✗ will fail"),
    "irreversible": ("red", "✗ irreversible"),
}


def show_plan(out: Console, document: dict[str, Any]) -> None:
    """A plan so that ten seconds suffice: the way, the price, each revision's verdict, what speaks against it, the steps."""
    plan = document["plan"]
    before, after = heads(plan["from_heads"]), heads(plan["to_heads"])
    out.print(
        f"[bold]{safe(plan['target'])}[/]: {safe(before)} → {safe(after)}, way back [bold]{plan['way_back']}[/]"
    )
    out.print(f"  {_price(plan)}")
    out.print(f"  {_rehearsed(plan['rehearsed'])}")
    if plan["release_from"] or plan["release_to"]:
        out.print(
            f"  release  {safe(plan['release_from'] or 'not said')} → {safe(plan['release_to'] or 'not said')}"
        )
    for revision in plan["revisions"]:
        colour, words = VERDICTS[revision["verdict"]]
        out.print(f"  [{colour}]{words}[/]  {safe(revision['id'])}  {safe(revision['title'])}")
        for why in revision["why"]:
            out.print(f"      {safe(why)}")
        locks = ", ".join(
            f"{_name(lock['table'])} {lock['mode'].removesuffix('Lock')}" for lock in revision["locks"]
        )
        if locks:
            out.print(f"      locks {safe(locks)}")
        if revision["rewritten"]:
            out.print(f"      rewrites {safe(', '.join(_name(t) for t in revision['rewritten']))}")
    for text in plan["loses"]:
        out.print(f"  [yellow]{safe(text)}[/]")
    if not plan["loses"]:
        out.print("  destroys no rows or values that are known of")
    elif plan["archive"] and plan["rehearsed"]["passed"]:
        out.print("  archived first, in the same transaction; 'rollbackd restore RUN' brings it back")
    for text in plan["way_why"]:
        out.print(f"  {safe(text)}")
    for text in plan["blockers"]:
        out.print(f"  [red]✗ {safe(text)}[/]")
    for text in plan["warnings"]:
        out.print(f"  [yellow]! {safe(text)}[/]")
    out.print("  steps")
    for number, text in enumerate(document["step_texts"], 1):
        out.print(f"  {number:>4}  {safe(text)}")
    for finding in document["gates"]:
        if finding["state"] in ("refused", "needs_person"):
            colour = "red" if finding["state"] == "refused" else "yellow"
            out.print(f"  [{colour}]gate {finding['gate']}: {finding['state']}: {safe(finding['reason'])}[/]")


def show_rehearsal(out: Console, document: dict[str, Any]) -> None:
    """What a rehearsal showed: each revision with its time, statements and locks, then what changed in the catalog."""
    if document.get("unknown"):
        out.print(f"[yellow]couldn't be rehearsed[/]: {safe(document['unknown'])}")
        return
    for revision in document["revisions"]:
        alone = "" if revision["transactional"] else ", ended its transaction by itself"
        out.print(f"[green]✓[/] {safe(revision['id'])}  {revision['seconds'] * 1000:,.0f} ms{alone}")
        for statement in revision["statements"]:
            touched = ", ".join(_name(t) for t in statement["writes"])
            on = f"  [dim]{safe(touched)}[/]" if touched else ""
            out.print(f"    {statement['seconds'] * 1000:>7,.1f} ms  {safe(statement['sql'])}{on}")
        locks = ", ".join(
            f"{_name(lock['table'])} {lock['mode'].removesuffix('Lock')}" for lock in revision["locks"]
        )
        if locks:
            out.print(f"    locks {safe(locks)}")
        if revision["rewritten"]:
            out.print(f"    rewrites {safe(', '.join(_name(t) for t in revision['rewritten']))}")
    if document["failure"]:
        failure = document["failure"]
        out.print(f"[red]✗[/] {safe(failure['revision'])}  {safe(failure['reason'])}")
        if failure["statement"]:
            out.print(f"    in {safe(failure['statement'])}")
    for text in document["at_risk"]:
        out.print(f"  [yellow]{safe(text)}[/]")
    for text in document["obstacles"]:
        out.print(f"  [red]{safe(text)}[/]")
    for line in document["difference"]:
        out.print(f"  {safe(line)}")
    colour, words = ("green", "passed") if document["passed"] else ("red", "failed")
    out.print(
        f"[{colour}]{words}[/] on a copy ({document['depth']}) in {document['seconds']:.1f} s; the target wasn't touched"
    )


def _name(table_name: dict[str, str]) -> str:
    return f"{table_name['schema']}.{table_name['name']}"


def _price(plan: dict[str, Any]) -> str:
    estimate = plan["estimate"]
    if plan["way_back"] == "leave_schema":
        return "price    the old release alone: no table is touched"
    total = f"about {estimate['total_s']:.0f} s" if estimate["total_s"] >= 0 else "unknown time"
    lock = (
        f"{max(estimate['lock_s'], 0.001) * 1000:,.0f} ms of lock"
        if estimate["lock_s"] >= 0
        else "unknown locks"
    )
    works = {True: "works", False: "doesn't work"}.get(plan["old_release"]["works"], "may not work")
    return f"price    {total}, {lock}; the old release {works} on the present schema"


def _rehearsed(rehearsed: dict[str, Any]) -> str:
    if rehearsed["passed"]:
        depth = {"schema": "on the schema alone", "sample": f"with {rehearsed['rows']:,} sampled rows"}
        return f"[green]rehearsed[/] {depth.get(rehearsed['depth'], 'with every row')}, in {rehearsed['seconds']:.1f} s: it passed"
    if rehearsed["failure"]:
        return f"[red]rehearsed[/] and it failed: {safe(rehearsed['failure'])}"
    return f"[yellow]not rehearsed[/]: {safe(rehearsed['unknown'] or 'nothing asked for it')}"


def show_run(out: Console, run: dict[str, Any]) -> None:
    """A run in one line, its statement below."""
    way = f"{heads(run['from_heads'])} → {heads(run['to_heads'])}"
    out.print(
        f"{safe(run['id'])}  {coloured(run['state'])}  {safe(run['target'])}  {safe(way)}  {safe(run['reason'])}"
    )
    if run["statement"]:
        out.print(f"  {safe(run['statement'])}")
    for text in run["approval_reasons"] if run["state"] == "awaiting_approval" else ():
        out.print(f"  [yellow]{safe(text)}[/]")


def heads(found: list[str]) -> str:
    """Heads as a person reads them."""
    return " + ".join(found) or "base"


def age(text: str | None) -> str:
    """How long ago, in one unit."""
    if not text:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
