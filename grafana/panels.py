"""What every panel has in common, for dashboards.py: data source, links to the console, colours, and the variables in its
queries. There, `@` stands for those that choose the target, `@@` for the same of a recorded series, `#` for the daemon's.
"""

from collections.abc import Sequence
from typing import Any

Panel = dict[str, Any]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
DAEMON = 'job=~"$job", instance=~"$instance"'
TARGET = f'{DAEMON}, environment=~"$environment", target=~"$target"'
ENVIRONMENT = f'{DAEMON}, environment=~"$environment"'
# Recorded series have lost the instance.
RECORDED = 'job=~"$job", environment=~"$environment", target=~"$target"'
# The console's page where what a metric counts is listed, by the beginning of its name; else its overview.
PAGES = {
    "rollbackd_run": "runs",
    "rollbackd_downgrades": "runs",
    "rollbackd_decisions": "decisions",
    "rollbackd_deliveries": "deliveries",
    "rollbackd_events": "deliveries",
}
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
OUTCOMES = {
    "kept": GREEN,
    "succeeded": GREEN,
    "taken": GREEN,
    "passed": GREEN,
    "ok": GREEN,
    "go": GREEN,
    "to": GREEN,
    "rolled_back": YELLOW,
    "warn": YELLOW,
    "warned": YELLOW,
    "from": YELLOW,
    "rollback_failed": RED,
    "failed": RED,
    "neither": RED,
    "stop": RED,
    "error": RED,
}


def query(expression: str, legend: str = "", **more: Any) -> dict[str, Any]:
    expression = expression.replace("@@", RECORDED).replace("@", TARGET).replace("#", DAEMON)
    return {"expr": " ".join(expression.split()), "legendFormat": legend or "__auto", **more}


def panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[dict[str, Any]],
    size: tuple[int, int],
    **more: Any,
) -> Panel:
    """`size` is width (of 24) and height; `more` are unit, defaults, overrides, options and transformations."""
    targets = [{"refId": chr(ord("A") + n), "datasource": DATASOURCE, **q} for n, q in enumerate(queries)]
    page = next((page for begin, page in PAGES.items() if begin in queries[0]["expr"]), "")
    links = [console(page.capitalize() or "Console", page)]
    defaults = {"unit": more.get("unit", "short"), "links": links, **more.get("defaults", {})}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": defaults, "overrides": list(more.get("overrides", ()))},
        "options": more.get("options", {}),
        "targets": targets,
        "transformations": list(more.get("transformations", ())),
    }


def console(title: str, page: str) -> dict[str, Any]:
    return {"title": title, "url": f"${{console_url}}/{page}", "targetBlank": True}


def thresholds(*steps: tuple[float | None, str]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def stat(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = "short",
    steps: tuple[tuple[float | None, str], ...] = ((None, BLUE),),
    width: int = 4,
    instant: bool = False,
) -> Panel:
    """One number, the last one. `instant` where the query spans the whole range by itself."""
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return panel(
        "stat",
        title,
        description,
        [query(expression, title, instant=instant, range=not instant)],
        (width, 4),
        unit=unit,
        defaults={"thresholds": thresholds(*steps), "noValue": "none"},
        options={
            "reduceOptions": reduce,
            "colorMode": "value",
            "graphMode": "none" if instant else "area",
            "textMode": "value",
        },
    )


def lines(
    title: str,
    description: str,
    *queries: dict[str, Any],
    unit: str = "short",
    size: tuple[int, int] = (12, 8),
    bars: bool = False,
    interval: str = "",
    highest: float | None = None,
) -> Panel:
    """Series over time; bars are stacked, and have the colours of what they say."""
    custom = {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if bars else 10,
        "lineWidth": 1,
        "showPoints": "auto" if not bars else "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if bars else "none", "group": "A"},
    }
    made = panel(
        "timeseries",
        title,
        description,
        queries,
        size,
        unit=unit,
        defaults={
            "custom": custom,
            "color": {"mode": "palette-classic"},
            "min": 0,
            **({"max": highest} if highest else {}),
        },
        overrides=[colored(name, color) for name, color in OUTCOMES.items()] if bars else [],
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )
    return {**made, "interval": interval} if interval else made


def table(
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, str]],
    *,
    size: tuple[int, int] = (24, 8),
) -> Panel:
    """One row for each combination of labels; columns are name, query, unit. An empty unit hides the value: the query is
    there for its labels. A target leads to its page in the console.
    """
    queries = [
        query(expression, name, instant=True, range=False, format="table") for name, expression, _ in columns
    ]
    values = {
        f"Value #{chr(ord('A') + n)}" if len(columns) > 1 else "Value": c for n, c in enumerate(columns)
    }
    rename = {field: name for field, (name, _, unit) in values.items() if unit}
    units = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]}
        for name, _, unit in columns
        if unit
    ]
    excluded = {"Time": True, **{field: True for field, (_, _, unit) in values.items() if not unit}}
    page = {"id": "links", "value": [console("${__value.text}", "targets/${__value.raw}")]}
    leading = {"matcher": {"id": "byName", "options": "target"}, "properties": [page]}
    organize = {"excludeByName": excluded, "renameByName": rename}
    return panel(
        "table",
        title,
        description,
        queries,
        size,
        overrides=[*units, leading],
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=[{"id": "merge", "options": {}}, {"id": "organize", "options": organize}],
    )


def colored(name: str, color: str) -> dict[str, Any]:
    fixed = {"id": "color", "value": {"mode": "fixed", "fixedColor": color}}
    return {"matcher": {"id": "byRegexp", "options": f"/(^|.* ){name}$/"}, "properties": [fixed]}


def quantiles(
    metric: str, by: str = "", chosen: str = "@", added: str = "rate", window: str = "$__rate_interval"
) -> list[dict[str, Any]]:
    """Median and 95th percentile of a histogram, with its exemplars: each leads to its run or deployment."""
    grouped, legend = (f"le, {by}", f"{{{{{by}}}}} ") if by else ("le", "")
    return [
        query(
            f"histogram_quantile({share}, sum by ({grouped}) ({added}({metric}_bucket{{{chosen}}}[{window}])))",
            f"{legend}{name}",
            exemplar=True,
        )
        for share, name in ((0.5, "median"), (0.95, "p95"))
    ]
