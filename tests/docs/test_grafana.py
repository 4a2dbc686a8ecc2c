"""Dashboard and alerts name metrics that exist, by labels and values that they have, in queries that parse."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from tests.conftest import RequireProgram

from rollbackd.adapters.metrics import Metrics
from rollbackd.app.configuration import load_configuration
from rollbackd.resources import resource

ROOT = Path(__file__).resolve().parent.parent.parent
DASHBOARD = resource("grafana", "dashboards", "rollbackd.json")
RULES = resource("grafana", "rules", "rollbackd.rules.yml")
RULE_TESTS = resource("grafana", "rules", "rollbackd.rules.test.yml")
SCRAPED = {"job", "instance"}
VARIABLES = {"$__rate_interval": "5m", "$__range": "6h", "$job": ".*", "$target": ".*", "$environment": ".*"}
SELECTOR = re.compile(r"\b(rollbackd_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """The metrics of the example's target and the shipped matrix."""
    configuration = load_configuration(resource("config", "rollbackd.toml"))
    rows = {row.name: str(row.action) for row in configuration.matrix.rows}
    return Metrics(configuration.settings.targets, ("rollbackd", "github"), rows)


@pytest.fixture(scope="module")
def label_values(metrics: Metrics) -> dict[str, dict[str, set[str]]]:
    """What is exposed from the start: sample name to label to values."""
    found: dict[str, dict[str, set[str]]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return found


def dashboard_queries() -> list[str]:
    """The queries of every panel, variables replaced by what Grafana could put there."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    for variable, value in VARIABLES.items():
        queries = [query.replace(variable, value) for query in queries]
    return queries


def rule_queries() -> list[str]:
    """The expressions of the alerts."""
    text = RULES.read_text(encoding="utf-8")
    found = re.findall(r"^ +expr: (>\n(?: {10,}.*\n)+|.*\n)", text, re.MULTILINE)
    return [" ".join(expression.lstrip(">").split()) for expression in found]


def run(*command: str | Path, text: str | None = None) -> str:
    """A program's output; its failure is the test's."""
    done = subprocess.run(
        command, input=text, cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("query", [*dashboard_queries(), *rule_queries()])
def test_a_query_names_metrics_labels_and_values_that_exist(
    query: str, label_values: dict[str, dict[str, set[str]]]
) -> None:
    """A panel that can never show anything, or an alert that can never fire, is a fault."""
    assert "$" not in query, "a variable that the dashboard doesn't have"
    for name, matchers in SELECTOR.findall(query):
        assert name in label_values, f"nothing exposes {name}"
        for label, operator, value in MATCHER.findall(matchers):
            if label in SCRAPED:
                continue
            assert label in label_values[name], f"{name} has no label {label}"
            if value == ".*":
                continue
            matching = {v for v in label_values[name][label] if re.fullmatch(value, v)}
            assert matching, f"{name} never has {label}{operator}{value!r}"
    known = SCRAPED.union(*(labels for labels in label_values.values()))
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert set(grouped.replace(" ", "").split(",")) <= known


def test_every_query_of_the_dashboard_parses(require_program: RequireProgram, tmp_path: Path) -> None:
    """Prometheus itself reads them, as recording rules."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(dashboard_queries())]
    file = tmp_path / "queries.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")

    assert f"{len(rules)} rules found" in run(require_program("promtool"), "check", "rules", file)


def test_every_metric_is_on_the_dashboard(label_values: dict[str, dict[str, set[str]]]) -> None:
    """What is measured is shown."""
    shown = {name for query in dashboard_queries() for name, _ in SELECTOR.findall(query)}
    families = {
        re.sub(r"_(bucket|sum|count|created)$", "", name) for name in label_values if "_created" not in name
    }
    unshown = {name for name in families if not any(one.startswith(name) for one in shown)}

    assert unshown == set()


def test_the_dashboard_has_its_variables_and_no_panel_twice() -> None:
    """Data source, job, environment and target can be chosen; ids are unique and panels don't overlap."""
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {variable["name"] for variable in document["templating"]["list"]}
    ids = [panel["id"] for panel in document["panels"]]
    taken = [
        (x, y)
        for panel in document["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert variables == {"datasource", "job", "environment", "target"}
    assert len(ids) == len(set(ids))
    assert len(taken) == len(set(taken))


def test_the_alerts_are_valid_and_fire_when_they_should(require_program: RequireProgram) -> None:
    """promtool checks the rules and runs their tests; every alert has one."""
    promtool = require_program("promtool")
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8")))
    tested = set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text(encoding="utf-8")))

    assert f"{len(rule_queries())} rules found" in run(promtool, "check", "rules", RULES)
    assert "SUCCESS" in run(promtool, "test", "rules", RULE_TESTS)
    assert alerts == tested
    assert len(rule_queries()) == len(alerts)


def test_every_alert_leads_into_the_runbook() -> None:
    """Its `runbook` is a section that is there, and that section names the alert."""
    runbook = (ROOT / "RUNBOOK.md").read_text(encoding="utf-8")
    sections = {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): body
        for title, body in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", runbook, re.MULTILINE)
    }
    text = RULES.read_text(encoding="utf-8")
    led = re.findall(r"- alert: (\w+)(?:(?!- alert).*\n)*? +runbook: \"RUNBOOK\.md#([\w-]+)\"", text)

    assert len(led) == len(rule_queries())
    for alert, anchor in led:
        assert anchor in sections, f"{alert} leads to #{anchor}"
        assert alert in sections[anchor], f"#{anchor} doesn't name {alert}"


def test_the_exposition_is_clean(metrics: Metrics, require_program: RequireProgram) -> None:
    """`promtool check metrics` has nothing to say about names, help and units."""
    body, _ = metrics.text()

    assert run(require_program("promtool"), "check", "metrics", text=body.decode()) == ""
