"""Commands that read the store: what is happening, what happened, why."""

from pathlib import Path
from typing import Any

import click
import msgspec

from rollbackd.app.clock import SystemClock
from rollbackd.app.local import reading
from rollbackd.cli.main import asynchronous
from rollbackd.cli.output import age, coloured, console, heads, safe, show_json, show_run, table
from rollbackd.core.planning.steps import step_text
from rollbackd.core.records import StoredDecision
from rollbackd.core.report import to_markdown
from rollbackd.errors import NotFoundError
from rollbackd.workflow.runs import describe_run

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("target", required=False)
@json_option
@click.pass_obj
@asynchronous
async def status(config: Path, target: str | None, as_json: bool) -> None:
    """Show every target: what is watched, what runs, what waits for a person."""
    found: list[dict[str, Any]] = []
    async with reading(config) as (configuration, store, _):
        watched = {d.target: d for d in await store.watched_deployments()}
        now = SystemClock().now()
        pauses = {p.target: p for p in await store.pauses() if p.holds(now)}
        for settings in configuration.settings.targets:
            if target not in (None, settings.name):
                continue
            runs = await store.runs(settings.name, 1)
            document = await store.latest_document(settings.name)
            deployment, pause = watched.get(settings.name), pauses.get(settings.name) or pauses.get("*")
            steps = []
            if runs:
                journal = await store.journal_of(runs[0].id)
                last = {record.step: record.phase for record in journal}
                steps = [
                    {"text": step_text(step), "phase": str(last.get(number, "waiting"))}
                    for number, step in enumerate(runs[0].plan.steps)
                ]
            found.append(
                {
                    "name": settings.name,
                    "service": settings.service,
                    "environment": settings.environment,
                    "mode": str(settings.mode),
                    "heads": list(document.heads) if document else None,
                    "documented_at": document.taken_at.isoformat() if document else None,
                    "watching": msgspec.to_builtins(deployment) if deployment else None,
                    "price_text": deployment.price.text() if deployment and deployment.price else "",
                    "paused": msgspec.to_builtins(pause) if pause else None,
                    "run": describe_run(runs[0]) if runs else None,
                    "steps": steps,
                }
            )
    if target is not None and not found:
        raise NotFoundError(f"there is no target {target}")
    if as_json:
        show_json(found)
        return
    out = console()
    for one in found:
        at = "not documented yet"
        if one["heads"] is not None:
            at = f"{heads(one['heads'])}, documented {age(one['documented_at'])} ago"
        out.print(f"[bold]{safe(one['name'])}[/]  {safe(one['environment'])}  {one['mode']}  at {safe(at)}")
        if one["paused"]:
            until = f" until {one['paused']['until'][:16]} UTC" if one["paused"]["until"] else ""
            out.print(
                f"  [yellow]paused{until} by {safe(one['paused']['who'])}: {safe(one['paused']['why'])}[/]"
            )
        if one["watching"]:
            since = age(one["watching"]["started_at"])
            out.print(f"  watching {safe(one['watching']['version'] or one['watching']['id'])}, for {since}")
            if one["price_text"]:
                out.print(f"  {safe(one['price_text'])}")
        run = one["run"]
        if run and run["state"] in ("running", "awaiting_approval", "held", "planned"):
            out.print("  ", end="")
            show_run(out, run)
            for step in one["steps"]:
                out.print(f"    {step['phase']:<8} {safe(step['text'])}")
        elif run:
            out.print(f"  last run {safe(run['id'])} {coloured(run['state'])}, {age(run['finished_at'])} ago")


@click.command()
@click.argument("target", required=False)
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True)
@json_option
@click.pass_obj
@asynchronous
async def history(config: Path, target: str | None, limit: int, as_json: bool) -> None:
    """List runs and decisions, newest first: when, what, who, why."""
    async with reading(config) as (_, store, _):
        runs = await store.runs(target, limit)
        decisions = await store.decisions(target, limit)
    rows: list[dict[str, Any]] = [
        {
            "at": run.created_at,
            "id": run.id,
            "target": run.target,
            "what": f"{run.plan.way_back} {heads(list(run.plan.from_heads))} → {heads(list(run.plan.to_heads))}",
            "state": str(run.state),
            "who": run.requested_by,
            "why": run.reason,
        }
        for run in runs
    ]
    rows += [
        {
            "at": stored.at,
            "id": stored.id,
            "target": stored.target,
            "what": str(stored.decision.action),
            "state": stored.outcome,
            "who": "rollbackd",
            "why": f"{stored.decision.row}: {stored.decision.why}",
        }
        for stored in decisions
    ]
    rows.sort(key=lambda row: row["at"], reverse=True)
    if as_json:
        show_json(rows[:limit])
        return
    listed = table("when", "id", "target", "what", "outcome", "who", "why")
    for row in rows[:limit]:
        cells = [safe(row[name]) for name in ("id", "target", "what", "state", "who", "why")]
        listed.add_row(f"{row['at']:%m-%d %H:%M:%S}", *cells)
    console().print(listed)


@click.command()
@click.argument("id_")
@json_option
@click.pass_obj
@asynchronous
async def explain(config: Path, id_: str, as_json: bool) -> None:
    """Explain a decision (or the one behind a run): facts, reasons, row, gates, what was set aside."""
    async with reading(config) as (_, store, _):
        stored = await store.decision(id_)
        run = await store.run(id_)
        if stored is None and run is not None and run.decision:
            stored = await store.decision(run.decision)
    if stored is None:
        raise NotFoundError(
            f"{id_} was asked for by {run.requested_by}: {run.reason}"
            if run
            else f"there is no decision or run {id_}"
        )
    if as_json:
        document = msgspec.to_builtins(stored)
        document["inputs"] = msgspec.json.decode(stored.inputs_json)
        document.pop("inputs_json")
        show_json(document)
        return
    _explain(stored)


def _explain(stored: StoredDecision) -> None:
    out = console()
    decision = stored.decision
    out.print(f"[bold]{decision.action}[/] by row [bold]{safe(decision.row)}[/]: {safe(decision.why)}")
    out.print(
        f"  {safe(stored.id)}, {stored.at:%F %T} UTC, {safe(stored.outcome)}{' ' + stored.run if stored.run else ''}"
    )
    for name, value in msgspec.to_builtins(decision.facts).items():
        out.print(f"  {name:<12} {value:<16} {safe(decision.reasons.get(name, ''))}")
    for text in decision.set_aside:
        out.print(f"  set aside: {safe(text)}")
    for gate in decision.gates:
        out.print(f"  gate {gate.gate:<10} {gate.state:<13} {safe(gate.reason)}")


@click.command()
@click.argument("run")
@click.option(
    "--format", "format_", type=click.Choice(["md", "html", "json"]), default="md", show_default=True
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
@click.pass_obj
@asynchronous
async def report(config: Path, run: str, format_: str, output: Path | None) -> None:
    """Write a run's report."""
    async with reading(config) as (_, _, reporting):
        if format_ == "html":
            text = await reporting.page(run)
        elif format_ == "md":
            text = to_markdown(await reporting.report(run))
        else:
            text = msgspec.json.format(msgspec.json.encode(await reporting.report(run)), indent=2).decode()
    if output is None:
        click.echo(text)
        return
    output.write_text(text, encoding="utf-8")
    click.echo(f"written to {output}")
