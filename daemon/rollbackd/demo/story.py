"""Telling the story: sets the stage, tells the scenarios one after another, clears away, and sums up."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.tree import Tree

from rollbackd.demo.postgres import EmbeddedPostgresUnavailable
from rollbackd.demo.scenarios import SCENARIOS, Scenario, Show, Telling, describe_result
from rollbackd.demo.stage import Stage
from rollbackd.errors import RefusedError, RollbackdError

ICONS = {
    "stage": "▸",
    "claim": "✓",
    "step:intent": "…",
    "step:done": "■",
    "step:failed": "✗",
    "step:held": "!",
    "step:undone": "↩",
}
STYLES = {"claim": "green", "step:failed": "red", "step:held": "bold yellow", "stage": "cyan"}


async def tell(names: list[str], *, as_json: bool) -> int:
    """Tell these scenarios. Returns 0 only if every claim was checked and held, and nothing was left running."""
    scenarios = [SCENARIOS[name] for name in names]
    console = Console(stderr=as_json, highlight=False)
    began = time.monotonic()
    console.print(f"Setting the stage: an embedded PostgreSQL, {len(scenarios)} shop(s), the daemon")
    try:
        stage = await Stage.set_up({scenario.name: scenario.environment for scenario in scenarios})
    except EmbeddedPostgresUnavailable as error:
        raise RefusedError(str(error)) from None
    console.print(f"  ready after {time.monotonic() - began:.1f} s")
    results: list[dict[str, Any]] = []
    fault = ""
    try:
        for scenario in scenarios:
            result = await _tell_one(stage, scenario, console)
            results.append(result)
    except RollbackdError as error:
        fault = str(error)
        log = (stage.folder / "daemon.log").read_text(encoding="utf-8").splitlines()[-15:]
        console.print("\n".join(escape(line) for line in log))
    finally:
        await stage.clear_away()
    left = stage.processes_left()
    if left and not fault:
        fault = f"processes are left running: {left}"
    seconds = time.monotonic() - began
    if as_json:
        sys.stdout.write(
            json.dumps({"ok": not fault, "fault": fault, "seconds": round(seconds, 2), "scenarios": results})
            + "\n"
        )
    if fault:
        console.print(f"[red]✗ {escape(fault)}[/]")
        return 1
    checked = sum(len(result["claims"]) for result in results)
    console.print(
        f"\n[bold green]{len(results)} scenario(s), {checked} claims checked, {seconds:.0f} s; nothing is left running[/]"
    )
    for result in results:
        if result["report"]:
            console.print(f"  report of {result['scenario']}: {result['report']}", soft_wrap=True)
    return 0


async def _tell_one(stage: Stage, scenario: Scenario, console: Console) -> dict[str, Any]:
    began = time.monotonic()
    with _shown(console, scenario, began) as show:
        telling = Telling(stage=stage, shop=stage.shops[scenario.name], show=show)
        await scenario.tell(telling)
        await stage.shopctl(telling.shop, "stop")
    return describe_result(telling, scenario, time.monotonic() - began)


@contextlib.contextmanager
def _shown(console: Console, scenario: Scenario, began: float) -> Iterator[Show]:
    """A live tree on a terminal; plain lines, as they come, otherwise."""
    title = f"[bold]{scenario.name}[/]: {escape(scenario.summary)}"
    if not console.is_terminal:
        console.print(f"\n{title}")

        def line(kind: str, text: str) -> None:
            console.print(
                f"  {time.monotonic() - began:6.2f} s  {ICONS[kind]} {escape(text)}", soft_wrap=True
            )

        yield line
        return
    tree = Tree(title, guide_style="dim")
    waiting: dict[str, Tree] = {}

    def grow(kind: str, text: str) -> None:
        style = STYLES.get(kind, "")
        stamp = f"[dim]{time.monotonic() - began:6.2f} s[/]"
        step = text.rpartition(" (")[0] if kind == "step:done" and text.endswith("s)") else text
        label = f"{stamp}  {ICONS[kind]} [{style or 'default'}]{escape(text)}[/]"
        branch = waiting.pop(step, None) if kind.startswith("step:") else None
        if branch is not None:
            branch.label = label
        else:
            branch = tree.add(label)
        if kind == "step:intent":
            waiting[step] = branch

    with Live(tree, console=console, refresh_per_second=8, vertical_overflow="visible"):
        yield grow
