"""A plan and a rehearsal as a person reads them before anything is done."""

from typing import Any

from rich.console import Console

from rollbackd.cli.output import heads, put, safe

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
    put(
        out,
        0,
        f"[bold]{safe(plan['target'])}[/]: {safe(before)} → {safe(after)}, way back [bold]{plan['way_back']}[/]",
    )
    put(out, 2, _price(plan))
    put(out, 2, _rehearsed(plan["rehearsed"]))
    if plan["release_from"] or plan["release_to"]:
        put(
            out,
            2,
            f"release  {safe(plan['release_from'] or 'not said')} → {safe(plan['release_to'] or 'not said')}",
        )
    for revision in plan["revisions"]:
        colour, words = VERDICTS[revision["verdict"]]
        put(out, 2, f"[{colour}]{words}[/]  {safe(revision['id'])}  {safe(revision['title'])}")
        for why in revision["why"]:
            put(out, 6, safe(why))
        locks = ", ".join(
            f"{_name(lock['table'])} {lock['mode'].removesuffix('Lock')}" for lock in revision["locks"]
        )
        if locks:
            put(out, 6, f"locks {safe(locks)}")
        if revision["rewritten"]:
            put(out, 6, f"rewrites {safe(', '.join(_name(t) for t in revision['rewritten']))}")
    for text in plan["loses"]:
        put(out, 2, f"[yellow]{safe(text)}[/]")
    if not plan["loses"]:
        put(out, 2, "destroys no rows or values that are known of")
    elif plan["archive"] and plan["rehearsed"]["passed"]:
        put(out, 2, "archived first, in the same transaction; 'rollbackd restore RUN' brings it back")
    for text in plan["way_why"]:
        put(out, 2, safe(text))
    for text in plan["blockers"]:
        put(out, 2, f"[red]✗ {safe(text)}[/]")
    for text in plan["warnings"]:
        put(out, 2, f"[yellow]! {safe(text)}[/]")
    put(out, 2, "steps")
    for number, text in enumerate(document["step_texts"], 1):
        put(out, 2, f"{number:>4}  {safe(text)}")
    for finding in document["gates"]:
        if finding["state"] in ("refused", "needs_person"):
            colour = "red" if finding["state"] == "refused" else "yellow"
            put(
                out,
                2,
                f"[{colour}]gate {finding['gate']}: {finding['state']}: {safe(finding['reason'])}[/]",
            )


def show_rehearsal(out: Console, document: dict[str, Any]) -> None:
    """What a rehearsal showed: each revision with its time, statements and locks, then what changed in the catalog."""
    if document.get("unknown"):
        put(out, 0, f"[yellow]couldn't be rehearsed[/]: {safe(document['unknown'])}")
        return
    for revision in document["revisions"]:
        alone = "" if revision["transactional"] else ", ended its transaction by itself"
        put(out, 0, f"[green]✓[/] {safe(revision['id'])}  {revision['seconds'] * 1000:,.0f} ms{alone}")
        for statement in revision["statements"]:
            touched = ", ".join(_name(t) for t in statement["writes"])
            on = f"  [dim]{safe(touched)}[/]" if touched else ""
            put(out, 4, f"{statement['seconds'] * 1000:>7,.1f} ms  {safe(statement['sql'])}{on}")
        locks = ", ".join(
            f"{_name(lock['table'])} {lock['mode'].removesuffix('Lock')}" for lock in revision["locks"]
        )
        if locks:
            put(out, 4, f"locks {safe(locks)}")
        if revision["rewritten"]:
            put(out, 4, f"rewrites {safe(', '.join(_name(t) for t in revision['rewritten']))}")
    if document["failure"]:
        failure = document["failure"]
        put(out, 0, f"[red]✗[/] {safe(failure['revision'])}  {safe(failure['reason'])}")
        if failure["statement"]:
            put(out, 4, f"in {safe(failure['statement'])}")
    for text in document["at_risk"]:
        put(out, 2, f"[yellow]{safe(text)}[/]")
    for text in document["obstacles"]:
        put(out, 2, f"[red]{safe(text)}[/]")
    for line in document["difference"]:
        put(out, 2, safe(line))
    colour, words = ("green", "passed") if document["passed"] else ("red", "failed")
    put(
        out,
        0,
        f"[{colour}]{words}[/] on a copy ({document['depth']}) in {document['seconds']:.1f} s; the target wasn't touched",
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
