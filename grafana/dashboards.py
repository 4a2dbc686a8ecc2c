"""What the dashboards ask. `make dashboards` writes them beside it, as plain files.

In a query, `@` stands for the variables that choose the target, `@@` for the same of a recorded series, `#` for those that
choose the daemon.
"""

import json
import sys
from pathlib import Path
from typing import Any

from frame import dashboard
from panels import (
    BLUE,
    ENVIRONMENT,
    GREEN,
    RED,
    YELLOW,
    Panel,
    lines,
    panel,
    quantiles,
    query,
    stat,
    table,
    thresholds,
)

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
