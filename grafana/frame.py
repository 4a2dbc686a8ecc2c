"""What every dashboard has in common, for dashboards.py: variables, annotations, links, and where its panels stand."""

from collections.abc import Sequence
from typing import Any

from panels import BLUE, DAEMON, DATASOURCE, RED, Panel, query

COLUMNS = 24
Row = tuple[str, bool, Sequence[Panel]]


def dashboard(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[Row],
    *,
    since: str,
    refresh: str,
) -> dict[str, Any]:
    """Rows are title, whether it is collapsed, panels; panels follow each other from left to right."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["rollbackd"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": refresh,
        "time": {"from": since, "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables()},
        "annotations": {"list": annotations()},
        "links": [
            {
                "type": "dashboards", "title": "rollbackd", "tags": ["rollbackd"], "asDropdown": False,
                "includeVars": True, "keepTime": False, "targetBlank": False, "icon": "external link", "tooltip": "",
                "url": "",
            },
            {
                "type": "link", "title": "Console", "url": "${console_url}/", "icon": "external link", "tags": [],
                "tooltip": "What is watched, what runs, what waits for a person", "asDropdown": False,
                "includeVars": False, "keepTime": False, "targetBlank": True,
            },
        ],
        "panels": laid_out(rows),
    }  # fmt: skip


def laid_out(rows: Sequence[Row]) -> list[Panel]:
    found: list[Panel] = []
    number, y = 0, 0
    for title, collapsed, panels in rows:
        number += 1
        row: Panel = {
            "id": number, "type": "row", "title": title, "collapsed": collapsed, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        }  # fmt: skip
        found.append(row)
        y += 1
        x = height = 0
        for one in panels:
            number += 1
            if x + one["gridPos"]["w"] > COLUMNS:
                x, y, height = 0, y + height, 0
            placed = {"id": number, **one, "gridPos": {"x": x, "y": y, **one["gridPos"]}}
            (row["panels"] if collapsed else found).append(placed)
            x += one["gridPos"]["w"]
            height = max(height, one["gridPos"]["h"])
        y += height
    return found


def variables() -> list[dict[str, Any]]:
    def labels(name: str, label: str, metric: str) -> dict[str, Any]:
        text = f"label_values({metric}, {name})"
        return {
            "name": name, "label": label, "type": "query", "datasource": DATASOURCE,
            "query": {"query": text, "refId": name}, "definition": text, "refresh": 2, "sort": 1,
            "multi": True, "includeAll": True, "allValue": ".+", "current": {"text": "All", "value": "$__all"},
        }  # fmt: skip

    watched = f"rollbackd_deployments_watched{{{DAEMON}}}"
    chosen = f'rollbackd_deployments_watched{{{DAEMON}, environment=~"$environment"}}'
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
        labels("job", "Job", "rollbackd_build_info"),
        labels("instance", "Instance", 'rollbackd_build_info{job=~"$job"}'),
        labels("environment", "Environment", watched),
        labels("target", "Target", chosen),
        {
            "name": "console_url", "label": "Console", "type": "textbox", "query": "http://127.0.0.1:8765",
            "description": "Where the daemon's console is, as your browser reaches it.",
            "current": {"text": "http://127.0.0.1:8765", "value": "http://127.0.0.1:8765"},
        },
    ]  # fmt: skip


def annotations() -> list[dict[str, Any]]:
    def mark(name: str, color: str, expression: str, title: str, text: str) -> dict[str, Any]:
        return {
            "name": name, "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": color,
            "expr": query(expression)["expr"], "step": "60s",
            "titleFormat": title, "textFormat": text, "tagKeys": "environment,target,outcome", "useValueForTime": False,
        }  # fmt: skip

    return [
        mark(
            "Deployments", BLUE,
            "sum by (target, environment) (increase(rollbackd_deployments_started_total{@}[$__rate_interval])) > 0",
            "Deployment of {{target}}", "A deploy to {{environment}} began.",
        ),
        mark(
            "Rollbacks", RED,
            "sum by (target, environment, outcome) (increase(rollbackd_runs_total{@}[$__rate_interval])) > 0",
            "Rollback of {{target}}: {{outcome}}", "A run in {{environment}} ended.",
        ),
    ]  # fmt: skip
