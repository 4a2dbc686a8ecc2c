"""Writes the dashboards beside it, as plain files: `make dashboards`. What a panel asks stands here; what every panel has
in common is said once.

In a query, `@` stands for the variables that choose the target, `#` for those that choose the daemon.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Panel = dict[str, Any]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
DAEMON = 'job=~"$job", instance=~"$instance"'
TARGET = f'{DAEMON}, environment=~"$environment", target=~"$target"'
ENVIRONMENT = f'{DAEMON}, environment=~"$environment"'
# Recorded series have lost the instance.
RECORDED = 'job=~"$job", environment=~"$environment", target=~"$target"'
CONSOLE = [{"title": "Console", "url": "${console_url}/", "targetBlank": True}]
COLUMNS = 24
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


# -- Panels ----------------------------------------------------------------------------------------------------------------


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
    defaults = {"unit": more.get("unit", "short"), "links": CONSOLE, **more.get("defaults", {})}
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
    hidden: Sequence[str] = (),
    overrides: Sequence[dict[str, Any]] = (),
) -> Panel:
    """One row for each combination of labels; columns are name, query, unit. An empty unit hides the value: the query is
    there for its labels.
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
    organize = {"excludeByName": {**excluded, **dict.fromkeys(hidden, True)}, "renameByName": rename}
    return panel(
        "table",
        title,
        description,
        queries,
        size,
        overrides=[*units, *overrides],
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


# -- Dashboards ------------------------------------------------------------------------------------------------------------


def dashboard(
    uid: str,
    title: str,
    description: str,
    rows: Sequence[tuple[str, bool, Sequence[Panel]]],
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


def laid_out(rows: Sequence[tuple[str, bool, Sequence[Panel]]]) -> list[Panel]:
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


# -- Now: one screen for who is on call ------------------------------------------------------------------------------------


def now() -> dict[str, Any]:
    watched = "max by (target, environment) (rollbackd_deployments_watched{@}) == 1"
    people = [
        stat(
            "Runs held",
            "Stopped, waiting for a person: nothing more is done on these databases. RUNBOOK.md, “A run is held”.",
            'sum(rollbackd_runs_unfinished{@, state="held"})',
            steps=((None, GREEN), (1, RED)),
        ),
        stat(
            "Runs awaiting approval",
            "Somebody else than who asked has to say yes. RUNBOOK.md, “An approval is waiting”.",
            'sum(rollbackd_runs_unfinished{@, state="awaiting_approval"})',
            steps=((None, GREEN), (1, YELLOW)),
        ),
        stat(
            "Longest wait for a person",
            "How long the run that has waited longest, for an approval or held, has done so by now; 0 where none waits.",
            'max(time() - rollbackd_run_state_since_timestamp_seconds{@, state=~"held|awaiting_approval"}) or vector(0)',
            unit="s",
            steps=((None, GREEN), (60, YELLOW), (900, RED)),
        ),
        stat(
            "Alerts",
            "rollbackd's alerts that fire, whatever target they are about.",
            'count(ALERTS{job=~"$job", alertname=~"Rollbackd.+", alertstate="firing"}) or vector(0)',
            steps=((None, GREEN), (1, RED)),
        ),
        stat(
            "Deployments watched",
            "From their start to the end of their bake time.",
            "sum(rollbackd_deployments_watched{@})",
        ),
        stat(
            "Automation paused",
            "Targets that rollbackd rolls nothing back on by itself until somebody lifts the pause.",
            "sum(rollbackd_automation_paused{@})",
            steps=((None, GREEN), (1, YELLOW)),
        ),
    ]
    price = [
        table(
            "The price of going back",
            "Each deployment that is watched: the way back that is ready, what it will do, and what it costs right now. An"
            " empty cell is unknown.",
            [
                ("Watched", watched, ""),
                ("Way", "max by (target, environment, way) (rollbackd_way_back{@} == 1)", ""),
                ("Verdict", "max by (target, environment, verdict) (rollbackd_way_back_verdict{@} == 1)", ""),
                ("Takes", "max by (target, environment) (rollbackd_way_back_duration_seconds{@})", "s"),
                ("Lock", "max by (target, environment) (rollbackd_way_back_lock_seconds{@})", "s"),
                ("Rows lost", "max by (target, environment) (rollbackd_way_back_rows_lost{@})", "short"),
                ("Only new", "max by (target, environment) (rollbackd_way_back_rows_only_new{@})", "short"),
                (
                    "More a minute",
                    "max by (target, environment) (rollbackd_way_back_growth_per_minute{@})",
                    "short",
                ),
                (
                    "Blocked",
                    f"max by (target, environment) (rollbackd_way_back_blocked{{@}}) and on (target, environment) {watched}",
                    "bool_yes_no",
                ),
                (
                    "Backup's age",
                    "max by (target, environment) (target:rollbackd_backup_age:seconds{@@})"
                    f" and on (target, environment) {watched}",
                    "s",
                ),
            ],
            size=(24, 7),
        ),
        lines(
            "Rows only the new schema holds",
            "What has no place in the old schema. It is archived before it goes, and brought back by `rollbackd restore`.",
            query("max by (target) (rollbackd_way_back_rows_only_new{@})", "{{target}}"),
            size=(12, 7),
        ),
        lines(
            "Time and lock of going back",
            "As rehearsed. A lock that nears the policy's budget is told before: RUNBOOK.md, “There is no way back, or it gets"
            " dear”.",
            query("max by (target) (rollbackd_way_back_duration_seconds{@})", "{{target}} takes"),
            query("max by (target) (rollbackd_way_back_lock_seconds{@})", "{{target}} lock"),
            unit="s",
            size=(12, 7),
        ),
    ]
    runs = [
        table(
            "Runs that aren't finished",
            "What each run waits for or does, and for how long: held waits for whoever is on call, awaiting_approval for an"
            " approver. The console has its statement.",
            [
                (
                    "For",
                    "max by (target, environment, state) (time() - rollbackd_run_state_since_timestamp_seconds{@})",
                    "s",
                )
            ],
            size=(10, 6),
        ),
        panel(
            "bargauge",
            "Step under way",
            "How far backup, proof and copying are, in runs and at the gate.",
            [query("max by (target, step) (rollbackd_step_progress_ratio{@})", "{{target}} {{step}}")],
            (6, 6),
            unit="percentunit",
            defaults={"min": 0, "max": 1, "thresholds": thresholds((None, BLUE)), "noValue": "none"},
            options={
                "displayMode": "basic",
                "orientation": "horizontal",
                "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
            },
        ),
        table(
            "Alerts that fire",
            "Each leads to a section of RUNBOOK.md by its runbook_url.",
            [
                (
                    "Firing",
                    'max by (alertname, severity, target, environment) (ALERTS{job=~"$job", alertname=~"Rollbackd.+",'
                    ' alertstate="firing"})',
                    "",
                )
            ],
            size=(8, 6),
        ),
    ]
    evidence = [
        lines(
            "Readings that say something",
            "Share of the last five minutes' readings with quality ok. What is missing never decides: below a half a person is"
            " asked.",
            query(
                "min by (target, source) (target:rollbackd_evidence_ok:ratio_rate5m{@@})",
                "{{target}} {{source}}",
            ),
            unit="percentunit",
            size=(8, 7),
            highest=1,
        ),
        lines(
            "Evidence",
            "Readings and alerts, by where they come from and their quality.",
            query(
                "sum by (source, quality) (rate(rollbackd_evidence_total{@}[$__rate_interval])) > 0",
                "{{source}} {{quality}}",
            ),
            unit="reqps",
            size=(8, 7),
        ),
        table(
            "Newest proved backups, oldest first",
            "Taken when a deploy asks the gate and in each run, not by the clock. Level 4 was restored and counted.",
            [
                (
                    "Age",
                    "topk(20, max by (target, environment) (target:rollbackd_backup_age:seconds{@@}))",
                    "s",
                ),
                ("Size", "max by (target, environment) (rollbackd_backup_last_size_bytes{@})", "bytes"),
                ("Level", "max by (target, environment) (rollbackd_backup_last_proof_level{@})", "short"),
            ],
            size=(8, 7),
        ),
    ]
    return dashboard(
        "rollbackd-now",
        "rollbackd: now",
        "For whoever is on call: what waits for whom, what is watched, what going back costs, and whether we can see.",
        [
            ("Who is waited for", False, people),
            ("What is watched", False, price),
            ("What runs", False, runs),
            ("Whether we can see", False, evidence),
            ("The daemon", True, daemon()),
        ],
        since="now-1h",
        refresh="10s",
    )


def daemon() -> list[Panel]:
    return [
        stat(
            "Daemons that answer",
            "Scrapes that succeed; without one, deploys aren't watched and the gate stops them.",
            "sum(up{#})",
            steps=((None, RED), (1, GREEN)),
        ),
        stat(
            "Configuration read",
            "1 while the last reading succeeded; 0 means that the one before is in force.",
            "min(rollbackd_configuration_last_reload_successful{#})",
            steps=((None, RED), (1, GREEN)),
        ),
        stat(
            "Configuration's age",
            "Since the configuration that is in force was read.",
            "min(time() - rollbackd_configuration_last_reload_success_timestamp_seconds{#})",
            unit="s",
        ),
        stat(
            "Events waiting",
            "Recorded, and nothing done about them yet.",
            "sum(rollbackd_events_pending{#})",
            steps=((None, GREEN), (500, YELLOW)),
        ),
        stat(
            "Oldest of them",
            "How long it has waited; 0 where none waits.",
            "max(time() - rollbackd_events_oldest_pending_timestamp_seconds{#}) or vector(0)",
            unit="s",
            steps=((None, GREEN), (30, YELLOW), (120, RED)),
        ),
        stat(
            "Version",
            "Of the daemons that were chosen: how many different ones run.",
            "count(count by (version) (rollbackd_build_info{#}))",
            steps=((None, GREEN), (2, YELLOW)),
        ),
        lines(
            "Deliveries",
            "What senders posted, by hook and what came of it.",
            query(
                "sum by (hook, outcome) (increase(rollbackd_deliveries_total{#}[$__rate_interval])) > 0",
                "{{hook}} {{outcome}}",
            ),
            bars=True,
            size=(8, 7),
        ),
        lines(
            "Deliveries refused",
            "By hook and reason; store_unavailable means 503. RUNBOOK.md, “Deliveries are refused”.",
            query(
                "sum by (hook, reason) (increase(rollbackd_deliveries_refused_total{#}[$__rate_interval])) > 0",
                "{{hook}} {{reason}}",
            ),
            bars=True,
            size=(8, 7),
        ),
        lines(
            "Events",
            "What deliveries meant, by kind and what came of it; unguarded: no target has this service and environment.",
            query(
                "sum by (kind, result) (increase(rollbackd_events_total{#}[$__rate_interval])) > 0",
                "{{kind}} {{result}}",
            ),
            bars=True,
            size=(8, 7),
        ),
        lines(
            "Commits of the store",
            "One commit is one fsync that many records share.",
            *quantiles("rollbackd_store_commit_duration_seconds", chosen="#"),
            unit="s",
            size=(8, 7),
        ),
        lines(
            "Records waiting for a commit, and lost to a full disk",
            "A queue that grows: the disk is too slow. Failures: RUNBOOK.md, “The store is full or can't be written”.",
            query("sum(rollbackd_store_queue_length{#})", "waiting"),
            query("sum(increase(rollbackd_store_commit_failures_total{#}[$__rate_interval]))", "failed"),
            size=(8, 7),
        ),
        lines(
            "Memory of the daemon",
            "Resident; the workers and pg_dump are processes of their own.",
            query("sum by (instance) (process_resident_memory_bytes{#})", "{{instance}}"),
            unit="bytes",
            size=(4, 7),
        ),
        lines(
            "Processor time",
            "Seconds a second.",
            query("sum by (instance) (rate(process_cpu_seconds_total{#}[$__rate_interval]))", "{{instance}}"),
            unit="percentunit",
            size=(4, 7),
        ),
    ]


# -- What happened ---------------------------------------------------------------------------------------------------------


def happened(title: str, description: str, metric: str, by: str, **more: Any) -> Panel:
    """How often something happened, as bars; what didn't isn't drawn."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    expression = f"sum by ({by}) (increase({metric}{{@}}[$__rate_interval])) > 0"
    return lines(title, description, query(expression, legend), bars=True, **more)


def activity() -> dict[str, Any]:
    deployments = [
        happened(
            "Deployments that ended",
            "By outcome, when their watch ended.",
            "rollbackd_deployments_total",
            "outcome",
        ),
        happened(
            "Deployments that began",
            "By target.",
            "rollbackd_deployments_started_total",
            "target",
            size=(6, 8),
        ),
        happened(
            "Answers of the gate",
            "To CD jobs that asked whether they may deploy: go, warn (go, and read why), stop.",
            "rollbackd_gate_answers_total",
            "verdict",
            size=(6, 8),
        ),
    ]
    decisions = [
        happened(
            "Decisions by action", "Of the decision matrix; `rollbackd explain` has the facts and gates of each.",
            "rollbackd_decisions_total", "action",
        ),
        table(
            "Decisions by row of the matrix",
            "In the time that is chosen. config/decision-matrix.toml says when a row matches.",
            [
                (
                    "Decisions",
                    "sum by (target, environment, row, action) (increase(rollbackd_decisions_total{@}[$__range])) > 0",
                    "short",
                )
            ],
            size=(12, 8),
        ),
    ]  # fmt: skip
    rollbacks = [
        happened(
            "Runs that ended",
            "By who asked for them, and outcome.",
            "rollbackd_runs_total",
            "trigger, outcome",
        ),
        happened(
            "Where databases stood after downgrades",
            "to: as wanted. from: unchanged. neither, unknown: held, and a person has to look.",
            "rollbackd_downgrades_total",
            "standing",
            size=(6, 8),
        ),
        happened(
            "Runs held",
            "How often a run was stopped for a person.",
            "rollbackd_run_holds_total",
            "target",
            size=(6, 8),
        ),
        lines(
            "Time at work",
            "Of runs, without the time that they waited for a person. An exemplar leads to its run.",
            *quantiles("rollbackd_run_duration_seconds"),
            unit="s",
        ),
        lines(
            "Time that people took",
            "Of runs that waited, for an approval or held.",
            *quantiles("rollbackd_run_wait_seconds", "reason"),
            unit="s",
        ),
        lines(
            "Time of steps",
            "The slowest twentieth, for each kind of step; of all targets of the environments chosen.",
            quantiles("rollbackd_step_duration_seconds", "step", ENVIRONMENT)[1],
            unit="s",
        ),
        lines(
            "Attempts at steps that failed",
            "A transient fault is tried again; of all targets of the environments chosen.",
            query(
                'sum by (step) (increase(rollbackd_step_failures_total{#, environment=~"$environment"}[$__rate_interval]))',
                "{{step}}",
            ),
            bars=True,
        ),
    ]
    schemas = [
        lines(
            "Checks after downgrades",
            "By what they found; of all targets of the environments chosen. A failed one holds the run.",
            query(
                'sum by (check, outcome) (increase(rollbackd_checks_total{#, environment=~"$environment"}[$__rate_interval]))'
                " > 0",
                "{{check}} {{outcome}}",
            ),
            bars=True,
            size=(10, 8),
        ),
        happened(
            "Schemas that weren't as on record",
            "at_rest: changed between two deployments. documented, rehearsed: differs from that after a downgrade. RUNBOOK.md,"
            " “A schema has drifted”.",
            "rollbackd_schema_drifts_total",
            "target, found",
            size=(7, 8),
        ),
        happened(
            "Rows and values brought back",
            "Out of archives, by `rollbackd restore` or in a run.",
            "rollbackd_rows_restored_total",
            "target",
            size=(7, 8),
        ),
    ]
    return dashboard(
        "rollbackd-activity",
        "rollbackd: deployments, decisions, rollbacks",
        "What happened, and how long it took. What is behind a bar is in the console and the reports.",
        [
            ("Deployments", False, deployments),
            ("Decisions", False, decisions),
            ("Rollbacks", False, rollbacks),
            ("Schemas and rows", False, schemas),
        ],
        since="now-24h",
        refresh="1m",
    )


# -- DORA ------------------------------------------------------------------------------------------------------------------

FAILED = 'outcome!~"kept|superseded"'


def dora() -> dict[str, Any]:
    def median(metric: str, by: str = "") -> str:
        grouped = f"le, {by}" if by else "le"
        return f"histogram_quantile(0.5, sum by ({grouped}) (increase({metric}_bucket{{@}}[$__range])))"

    def failures(by: str = "") -> str:
        grouped = f" by ({by})" if by else ""
        return (
            f"sum{grouped} (increase(rollbackd_deployments_total{{@, {FAILED}}}[$__range]))"
            f" / (sum{grouped} (increase(rollbackd_deployments_total{{@}}[$__range])) > 0)"
        )

    def a_day(by: str = "") -> str:
        grouped = f" by ({by})" if by else ""
        return f"sum{grouped} (increase(rollbackd_deployments_total{{@}}[$__range])) / ($__range_s / 86400)"

    lead, restore = "rollbackd_deployment_lead_time_seconds", "rollbackd_deployment_restore_time_seconds"
    figures = [
        stat(
            "Deployment frequency",
            "Deployments a day, in the time that is chosen; each counts when its watch ends.",
            a_day(), width=6, instant=True,
        ),
        stat(
            "Lead time for changes, median",
            "From the commit to the running release, of deployments that were kept and whose CD system says `committed_at`.",
            median(lead), unit="s", width=6, instant=True,
        ),
        stat(
            "Change failure rate",
            "Share of deployments that were rolled back, had to be, or needed a fix. What a newer one replaced before its time"
            " was over counts as a deployment and not as a failure.",
            failures(), unit="percentunit", steps=((None, GREEN), (0.15, YELLOW), (0.3, RED)), width=6, instant=True,
        ),
        stat(
            "Time to restore, median",
            "From when the matrix first found something wrong until the rollback was done. What was mended otherwise isn't"
            " known here.",
            median(restore), unit="s", width=6, instant=True,
        ),
    ]  # fmt: skip
    each = [
        table(
            "The four figures by target",
            "In the time that is chosen; an empty cell: nothing is known.",
            [
                ("Deployments a day", a_day("target, environment"), "short"),
                ("Lead time", median(lead, "target, environment") + " >= 0", "s"),
                ("Failure rate", failures("target, environment"), "percentunit"),
                ("Time to restore", median(restore, "target, environment") + " >= 0", "s"),
            ],
            size=(24, 8),
        ),
    ]
    trends = [
        lines(
            "Deployments",
            "A day, by outcome.",
            query(
                "sum by (outcome) (increase(rollbackd_deployments_total{@}[$__interval])) > 0", "{{outcome}}"
            ),
            bars=True,
            interval="1d",
        ),
        lines(
            "Change failure rate, of the last 30 days each",
            "From the hourly recording rules.",
            query(
                "sum(sum_over_time(target:rollbackd_change_failures:increase1h{@@}[30d]))"
                " / (sum(sum_over_time(target:rollbackd_deployments:increase1h{@@}[30d])) > 0)",
                "failures",
            ),
            unit="percentunit",
            highest=1,
        ),
        lines(
            "Lead time for changes",
            "Of the deployments of each day. An exemplar leads to its deployment.",
            *quantiles(lead, added="increase", window="$__interval"),
            unit="s",
            interval="1d",
        ),
        lines(
            "Time to restore",
            "Of the rollbacks of each day. An exemplar leads to its deployment.",
            *quantiles(restore, added="increase", window="$__interval"),
            unit="s",
            interval="1d",
        ),
    ]
    return dashboard(
        "rollbackd-dora",
        "rollbackd: DORA",
        "How often, how fast, how often it goes wrong, and how fast that is mended: the four figures of dora.dev.",
        [("The four figures", False, figures), ("By target", False, each), ("Trends", False, trends)],
        since="now-30d",
        refresh="",
    )


FILES = {"rollbackd-now.json": now, "rollbackd-activity.json": activity, "rollbackd-dora.json": dora}


def written() -> dict[str, str]:
    """File name to what stands in it."""
    return {name: json.dumps(make(), indent=2, ensure_ascii=False) + "\n" for name, make in FILES.items()}


def main() -> int:
    """Write them."""
    folder = Path(__file__).parent / "dashboards"
    for name, text in written().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
