"""Dashboards and rules: plain files that Grafana takes, with queries that parse and name what is exposed; alerts that fire
when they should and lead into the runbook. What the queries show is tests/end_to_end/test_dashboards.py's.

The rules for dashboards are those of Grafana's dashboard-linter that apply, and reasons where one doesn't.
"""

import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.conftest import RequireProgram

from rollbackd.adapters.metrics import Metrics
from rollbackd.app.configuration import load_configuration
from rollbackd.core.run import UNFINISHED
from rollbackd.resources import resource

ROOT = Path(__file__).resolve().parent.parent.parent
GRAFANA = ROOT / "grafana"
RULES = resource("grafana", "rules", "rollbackd.rules.yml")
RULE_TESTS = resource("grafana", "rules", "rollbackd.rules.test.yml")
SOURCE = "${datasource}"
# What Prometheus adds, and what its alerts have.
SCRAPED = {"job", "instance", "version", "alertname", "alertstate", "severity"}
VARIABLES = {
    "$__rate_interval": "5m", "$__range_s": "21600", "$__range": "6h", "$__interval": "1m",
    "$job": ".+", "$instance": ".+", "$target": ".+", "$environment": ".+",
}  # fmt: skip
SELECTOR = re.compile(r"\b((?:rollbackd|process)_\w+)(?:\{([^}]*)\})?")
NAME = re.compile(r"\b(?:target:)?(?:rollbackd_|process_|up\b|ALERTS\b)[\w:]*")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
# What current Grafana draws these with is another panel.
AGED = {"graph", "singlestat", "table-old", "grafana-singlestat-panel", "grafana-piechart-panel"}
DASHBOARDS = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(GRAFANA.glob("dashboards/*.json"))
}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that isn't a row, those of collapsed rows too."""
    for one in dashboard["panels"]:
        yield from (
            one["panels"] if one["type"] == "row" and one["panels"] else [one] if one["type"] != "row" else []
        )


PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, one in DASHBOARDS.items()
    for panel in panels(one)
]


def dashboard_queries() -> list[str]:
    """The queries of every panel, annotation and variable, variables replaced by what Grafana could put there."""
    queries = []
    for dashboard in DASHBOARDS.values():
        queries += [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
        queries += [mark["expr"] for mark in dashboard["annotations"]["list"]]
        queries += [
            re.sub(r"label_values\((.*), \w+\)", r"\1", variable["query"]["query"])
            for variable in dashboard["templating"]["list"]
            if variable["type"] == "query"
        ]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    return sorted(set(queries))


def rules() -> list[dict[str, str]]:
    """Each rule's keys; of YAML as these files write it."""
    found = []
    text = re.sub(r"^ *#.*\n", "", RULES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for block in re.split(r"^ +- (?=alert: |record: )", text, flags=re.MULTILINE)[1:]:
        one = dict(re.findall(r"^ *(\w+): (?!>)(\S.*)$", block, re.MULTILINE))
        folded = re.search(r"expr: >\n((?: {10,}.*\n)+)", block)
        one["expr"] = " ".join(folded[1].split()) if folded else one["expr"]
        found.append({key: value.strip('"') for key, value in one.items()})
    return found


ALERTS = [pytest.param(rule, id=rule["alert"]) for rule in rules() if "alert" in rule]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


CONFIGURATION = load_configuration(resource("config", "rollbackd.toml"))
GUARDED = CONFIGURATION.settings.targets[0]


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """The metrics of the example's target and the shipped matrix, with all that is absent at first."""
    rows = {row.name: str(row.action) for row in CONFIGURATION.matrix.rows}
    metrics = Metrics((GUARDED,), ("rollbackd", "github"), rows)
    priced = {
        "way_back": "stop_writes", "verdict": "reversible", "total_s": 1.0, "lock_s": 0.1, "rows_lost": 0,
        "rows_only_new": 4, "growth": 1.0, "cheap_until_s": 1.0, "blockers": [],
    }  # fmt: skip
    metrics.listen("way_back_priced", {"target": GUARDED.name, **priced})
    metrics.listen("step_progressed", {"target": GUARDED.name, "kind": "back_up", "done": 1, "total": 2})
    metrics.set_backup(GUARDED.name, (1.0, 2, 4))
    metrics.set_queues(0, 1, datetime.now(UTC))
    metrics.set_runs([(GUARDED.name, state, datetime.now(UTC)) for state in UNFINISHED])
    return metrics


@pytest.fixture(scope="module")
def label_values(metrics: Metrics) -> dict[str, dict[str, set[str]]]:
    """What is exposed: sample name to label to values."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(metrics.text()[0].decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def run(*command: str | Path, text: str | None = None) -> str:
    """A program's output; its failure is the test's."""
    done = subprocess.run(
        command, input=text, cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- what is asked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", [*dashboard_queries(), *(rule["expr"] for rule in rules())])
def test_a_query_names_metrics_labels_and_values_that_exist(
    query: str, label_values: dict[str, dict[str, set[str]]]
) -> None:
    """A panel that can never show anything, or an alert that can never fire, is a fault."""
    assert "$" not in query, "a variable that the dashboard doesn't have"
    recorded = set(re.findall(r"\btarget:\w+:\w+", query))
    assert recorded <= RECORDED
    for name, matchers in SELECTOR.findall(re.sub(r"\btarget:\w+:\w+", "", query)):
        assert name in label_values, f"nothing exposes {name}"
        for label, operator, value in MATCHER.findall(matchers):
            if label in SCRAPED:
                continue
            assert label in label_values[name], f"{name} has no label {label}"
            matching = {v for v in label_values[name][label] if re.fullmatch(value, v)}
            assert matching, f"{name} never has {label}{operator}{value!r}"
    known = SCRAPED.union(*(labels for labels in label_values.values()))
    for grouped in re.findall(r"\b(?:by|on|without) \(([^)]+)\)", query):
        assert set(grouped.replace(" ", "").split(",")) <= known


def test_every_query_of_the_dashboards_parses(require_program: RequireProgram, tmp_path: Path) -> None:
    """Prometheus itself reads them, as recording rules."""
    written = [{"record": f"query:{n}", "expr": query} for n, query in enumerate(dashboard_queries())]
    file = tmp_path / "queries.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": written}]}), encoding="utf-8")

    assert f"{len(written)} rules found" in run(require_program("promtool"), "check", "rules", file)


def test_every_metric_is_looked_at(label_values: dict[str, dict[str, set[str]]]) -> None:
    """What is measured is shown on a dashboard, or told of by an alert."""
    expanded = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    shown = {name for query in expanded for name, _ in SELECTOR.findall(query)}
    families = {
        re.sub(r"_(bucket|sum|count)$", "", name) for name in label_values if name.startswith("rollbackd_")
    }
    unshown = {name for name in families if not any(one.startswith(name) for one in shown)}

    assert unshown == set()


# -- the dashboards --------------------------------------------------------------------------------------------------------


def test_the_files_are_those_that_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make dashboards` was run, and nobody edited them by hand."""
    monkeypatch.syspath_prepend(str(GRAFANA))
    script = runpy.run_path(str(GRAFANA / "dashboards.py"))
    files = {path.name: path.read_text(encoding="utf-8") for path in (GRAFANA / "dashboards").iterdir()}

    assert files == script["written"]()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_one_that_current_grafana_takes(name: str) -> None:
    """Its frame: an own uid, a schema of Grafana 11 or newer, not to be edited where it is provisioned."""
    dashboard = DASHBOARDS[name]

    assert dashboard["uid"] == name.removesuffix(".json")
    assert len(dashboard["uid"]) <= 40
    assert dashboard["schemaVersion"] >= 40
    assert dashboard["editable"] is False
    assert "__inputs" not in dashboard
    assert "id" not in dashboard
    assert dashboard["tags"] == ["rollbackd"]
    assert {"from", "to"} == set(dashboard["time"])


def test_no_two_dashboards_have_the_same_uid_or_title() -> None:
    """Grafana would replace one by the other."""
    assert len({one["uid"] for one in DASHBOARDS.values()}) == len(DASHBOARDS) == 3
    assert len({one["title"] for one in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_its_variables(name: str) -> None:
    """Data source, job, instance, environment, target, and where the console is; all of several, asked anew with the time."""
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}

    assert list(variables) == ["datasource", "job", "instance", "environment", "target", "console_url"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["console_url"]["type"] == "textbox"
    for variable in list(variables.values())[1:5]:
        assert variable["datasource"]["uid"] == SOURCE
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2
        assert variable["label"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_their_own_ids_and_places(name: str) -> None:
    """Ids are unique and panels don't overlap, nor stick out of the 24 columns."""
    dashboard = DASHBOARDS[name]
    ids = [panel["id"] for row in dashboard["panels"] for panel in (row, *row.get("panels", ()))]
    places = [
        panel["gridPos"]
        for panel in (*panels(dashboard), *(p for p in dashboard["panels"] if p["type"] == "row"))
    ]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(ids) == len(set(ids))
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_can_be_read_without_its_maker(panel: dict[str, Any]) -> None:
    """A current kind, title, description, unit, legend; the data source that was chosen; a way to the console."""
    defaults = panel["fieldConfig"]["defaults"]

    assert panel["type"] not in AGED
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": SOURCE}
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == SOURCE
        assert target["legendFormat"]
    assert len(defaults["links"]) == 1
    assert re.fullmatch(r"\$\{console_url\}/(|runs|decisions|deliveries)", defaults["links"][0]["url"])


@pytest.mark.parametrize("panel", PANELS)
def test_a_panels_queries_are_about_what_was_chosen(
    panel: dict[str, Any], label_values: dict[str, dict[str, set[str]]]
) -> None:
    """Each selector heeds job and instance, and target and environment where it has them. Recorded series have no instance;
    alerts are shown whatever they are about.
    """
    for target in panel["targets"]:
        selectors = re.findall(r"([\w:]+)\{([^}]*)\}", target["expr"])
        assert len(selectors) == len(NAME.findall(re.sub(r"\{[^}]*\}", "", target["expr"])))
        for name, matchers in selectors:
            chosen = {label for label, _, value in MATCHER.findall(matchers) if value == f"${label}"}
            wanted = {"job", "instance", *({"target", "environment"} & set(label_values.get(name, ())))}
            if name in RECORDED:
                wanted = {"job", "target", "environment"}
            assert chosen == ({"job"} if name == "ALERTS" else wanted), name


@pytest.mark.parametrize("panel", PANELS)
def test_counters_are_shown_as_what_was_added(panel: dict[str, Any]) -> None:
    """Within rate or increase, over a window that Grafana chooses."""
    for target in panel["targets"]:
        query = target["expr"]
        for found in re.finditer(r"\w+_(?:total|bucket)\{[^}]*\}", query):
            before, after = query[: found.start()], query[found.end() :]
            assert re.search(r"\b(rate|increase)\($", before), found[0]
            assert re.match(r"\[\$__(rate_interval|interval|range)\]", after), found[0]
        for window in re.findall(r"\brate\([^\[]*\[([^\]]*)\]", query):
            assert window == "$__rate_interval"


def test_exemplars_lead_to_the_console_and_the_report() -> None:
    """The provisioned data source knows where the run or deployment behind an exemplar is."""
    text = resource("grafana", "provisioning", "datasources", "prometheus.yml").read_text(encoding="utf-8")
    urls = re.findall(r"url: (\S*\$\$\{__value\.raw\}\S*)", text)

    assert {re.sub(r"https?://[^/]*", "", url) for url in urls} == {
        "/runs/$${__value.raw}", "/runs/$${__value.raw}/report", "/deployments/$${__value.raw}",
    }  # fmt: skip
    assert set(re.findall(r"- name: (\w+)\n", text)) == {"Prometheus", "run", "deployment"}


def test_dashboards_are_annotated_with_deployments_and_rollbacks() -> None:
    """On each of them, and linked with each other and the console."""
    for dashboard in DASHBOARDS.values():
        assert [mark["name"] for mark in dashboard["annotations"]["list"]] == ["Deployments", "Rollbacks"]
        assert all(mark["datasource"]["uid"] == SOURCE for mark in dashboard["annotations"]["list"])
        assert [link["type"] for link in dashboard["links"]] == ["dashboards", "link"]


# -- the alerts ------------------------------------------------------------------------------------------------------------


def test_the_alerts_are_valid_and_fire_when_they_should(require_program: RequireProgram) -> None:
    """promtool checks the rules and runs their tests."""
    promtool = require_program("promtool")

    assert f"{len(rules())} rules found" in run(promtool, "check", "rules", RULES)
    assert "SUCCESS" in run(promtool, "test", "rules", RULE_TESTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_to_fire_and_to_stay_quiet(alert: dict[str, str]) -> None:
    """At least once each; and one that counts is tested with the first increment of a counter that was there at zero."""
    text = RULE_TESTS.read_text(encoding="utf-8")
    of_this = re.findall(rf"- alertname: {alert['alert']}\n +eval_time: \w+\n +exp_alerts:(.*)\n", text)

    assert " []" in of_this
    assert "" in of_this
    for counter in re.findall(r"increase\(\s*(\w+_total)", alert["expr"]):
        series = re.findall(rf"series: '{counter}\{{.*\n +values: \"(.*)\"", text)
        assert any(re.match(r"0 0 1", values) for values in series), f"no test begins {counter} at 0 0 1"


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_what_and_where_to_read_on(alert: dict[str, str]) -> None:
    """Severity, summary, description; its `runbook_url` is a section that is there, and that section names the alert."""
    runbook = (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    sections = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): body
        for title, body in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", runbook, re.MULTILINE)
    }
    path, _, anchor = alert["runbook_url"].partition("#")

    assert alert["severity"] in ("critical", "warning")
    assert alert["summary"]
    assert alert["description"].endswith(".")
    assert path == "RUNBOOK.md"
    assert anchor in sections
    assert f"`{alert['alert']}`" in sections[anchor]


def test_the_exposition_is_clean(metrics: Metrics, require_program: RequireProgram) -> None:
    """`promtool check metrics` has nothing to say about names, help and units."""
    body, _ = metrics.text()

    assert run(require_program("promtool"), "check", "metrics", text=body.decode()) == ""
