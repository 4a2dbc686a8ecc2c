"""Every query of every dashboard, asked of a real Prometheus that scraped a real daemon through a story in which everything
happens that they show: a delivery refused, a deploy kept, a deploy gone bad and rolled back once a person approved, rows
brought back, a run held and resumed.
"""

import json
import math
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.conftest import RequireProgram
from tests.end_to_end.ground import OLD, Ground, Health, Project, new_database, wait_until
from tests.end_to_end.scraping import Prometheus, prometheus_on

from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.resources import resource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.xdist_group("dashboards")]

DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(resource("grafana", "dashboards", "rollbackd-now.json").parent.glob("*.json"))
}
RULES = resource("grafana", "rules", "rollbackd.rules.yml")
# What Grafana puts in a variable's place when everything is chosen, and into its own for a story of a minute or two.
CHOSEN = {
    "$__rate_interval": "15s", "$__interval": "15s", "$__range_s": "120", "$__range": "120s",
    "$job": ".+", "$instance": ".+", "$environment": ".+", "$target": ".+",
}  # fmt: skip
BROKEN, HALF_DONE = "2.0", "3.0"


def with_values(query: str) -> str:
    for variable, value in CHOSEN.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


def queries_of_panels() -> list[Any]:
    """Of annotations too."""
    found = {}
    for name, dashboard in DASHBOARDS.items():
        for row in dashboard["panels"]:
            for panel in (row, *row.get("panels", ())):
                for target in panel.get("targets", ()):
                    found[f"{name}: {panel['title']} {target['refId']}"] = target["expr"]
        for mark in dashboard["annotations"]["list"]:
            found[f"{name}: annotation {mark['name']}"] = mark["expr"]
    return [pytest.param(query, id=label) for label, query in found.items()]


def queries_of_variables() -> list[Any]:
    return [
        pytest.param(variable["query"]["query"], id=f"{name}: {variable['name']}")
        for name, dashboard in DASHBOARDS.items()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ]


def recorded_series() -> list[str]:
    return re.findall(r"- record: (\S+)", RULES.read_text(encoding="utf-8"))


# -- the story -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Customers; then a column; then a table whose backup takes a moment."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.revision(
        "customers",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 250000) n\")",
        "op.drop_table('customers')",
    )
    project.revision(
        "nickname",
        "op.add_column('customers', sa.Column('nickname', sa.Text))",
        "op.drop_column('customers', 'nickname')",
    )
    project.revision(
        "visits",
        "op.execute('CREATE TABLE visits (id int PRIMARY KEY, page text)')",
        "op.drop_table('visits')",
    )
    return project


@pytest.fixture(scope="module")
def prometheus(
    server: EmbeddedPostgres,
    health: Health,
    project: Project,
    tmp_path_factory: pytest.TempPathFactory,
    require_program: RequireProgram,
) -> Iterator[Prometheus]:
    """Prometheus once the story is told."""
    program = require_program("prometheus")
    require_program("promtool")
    folder = tmp_path_factory.mktemp("dashboards")
    with new_database(server) as database:
        ground = Ground(folder, server, project, health, database)
        try:
            project.alembic(ground.url(), "upgrade", "customers")
            ground.runs_version(OLD)
            ground.configure(policy={"approval_required": True, "bake_time": "5s", "cool_down": "0s"})
            ground.start()
            with prometheus_on(program, RULES, folder, ground.port()) as watching:
                tell(ground, watching)
                yield watching
        finally:
            ground.stop()
            ground.clean()


def tell(ground: Ground, prometheus: Prometheus) -> None:
    """What happens; each part waits until Prometheus has seen it."""

    def seen(query: str) -> None:
        prometheus.wait(query, ground.words)

    forged = urllib.request.Request(f"http://127.0.0.1:{ground.port()}/hooks/rollbackd", data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(forged, timeout=10)

    # Kept: it lives through its bake time.
    committed_at = (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    said = {"version": "1.1", "previous_version": OLD, "deployment": "ci-1.1"}
    assert ground.send("deploy.started", committed_at=committed_at, **said) == 202
    ground.deploy("nickname", "1.1")
    seen('rollbackd_deployments_total{outcome="kept"} == 1')

    # Somebody changes the schema by hand; the next deploy finds that, goes bad, waits for its approval, goes back.
    ground.query("CREATE INDEX by_hand ON customers (name)")
    (ground.service / "broken").write_text(BROKEN)
    ground.deploy("visits", BROKEN)
    ground.query("INSERT INTO visits SELECT n, 'page ' || n FROM generate_series(1, 50) n")
    ground.send("signal.firing", category="errors", severity="critical", name="Errors")
    seen('rollbackd_runs_unfinished{state="awaiting_approval"} == 1 and on () (sum(rollbackd_way_back) == 1)')
    run = ground.run()
    assert ground.ask("POST", f"/api/v1/runs/{run['id']}/approve", {"reason": "seen, go"})[0] == 200
    seen('rollbackd_deployments_total{outcome="rolled_back"} == 1')

    ground.send("signal.resolved", category="errors", severity="critical", name="Errors")

    # A migration stops inside a revision: held, until a person undid it.
    said = {"version": HALF_DONE, "previous_version": BROKEN, "deployment": "ci-3.0"}
    assert ground.send("migration.started", **said) == 202

    def documented() -> bool:
        newest = ground.ask("GET", "/api/v1/deployments")[1][0]
        return bool(newest["version"] == HALF_DONE and newest["heads_before"])

    wait_until(documented, ground.words)
    ground.query("CREATE TABLE half_done (id int)")
    assert ground.send("migration.failed", reason="lost its connection", **said) == 202
    seen('ALERTS{alertname="RollbackdRunHeld", alertstate="firing"}')
    ground.query("DROP TABLE half_done")
    assert ground.ask("POST", f"/api/v1/runs/{ground.run()['id']}/resume")[0] == 200
    seen('rollbackd_run_wait_seconds_count{reason="held"} == 1')
    seen('rollbackd_deployments_watched == 0 and on () rollbackd_deployments_total{outcome="abandoned"} == 1')

    # Mended, and the rows brought back.
    ground.project.alembic(ground.url(), "upgrade", "head")
    assert ground.ask("POST", f"/api/v1/runs/{run['id']}/restore")[0] == 200
    seen(
        "rollbackd_rows_restored_total == 50 and on () (sum(increase(rollbackd_rows_restored_total[15s])) > 0)"
    )


# -- what it shows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", queries_of_panels())
def test_a_query_of_a_dashboard_shows_something(query: str, prometheus: Prometheus) -> None:
    """It is understood, has samples at some time of the story, and not only NaN."""
    samples = prometheus.over_time(with_values(query))

    assert samples, f"{query} is empty"
    assert not all(map(math.isnan, samples)), f"{query} is NaN throughout"
    assert not any(map(math.isinf, samples))


@pytest.mark.parametrize("query", queries_of_variables())
def test_a_variable_has_values(query: str, prometheus: Prometheus) -> None:
    """As Grafana asks for them: the values of a label among the series that match."""
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
    answer = prometheus.ask(f"label/{label}/values", **{"match[]": with_values(selector)})

    assert answer["status"] == "success"
    assert answer["data"]


@pytest.mark.parametrize("name", recorded_series())
def test_a_recorded_series_has_values(name: str, prometheus: Prometheus) -> None:
    """The recording rules find what they record."""
    assert any(not math.isnan(sample) for sample in prometheus.over_time(name))


def test_the_four_figures_are_those_of_the_story(prometheus: Prometheus) -> None:
    """Three deployments, two of which went wrong; two hours from the commit; seconds to restore."""
    by_title = {panel["title"]: panel for panel in DASHBOARDS["rollbackd-dora"]["panels"]}

    def figure(title: str) -> float:
        query = by_title[title]["targets"][0]["expr"].replace("$__range", "1h").replace("1h_s", "3600")
        return float(prometheus.now(with_values(query))[0]["value"][1])

    assert figure("Change failure rate") == pytest.approx(2 / 3, abs=0.01)
    assert 3600 < figure("Lead time for changes, median") < 14400
    assert 0 < figure("Time to restore, median") < 300
    assert figure("Deployment frequency") > 0


def test_an_exemplar_names_the_run(prometheus: Prometheus) -> None:
    """Prometheus asks for OpenMetrics by itself, and so gets the run behind each observation."""
    answer = prometheus.ask(
        "query_exemplars",
        query="rollbackd_run_duration_seconds_bucket",
        start=prometheus.since,
        end=datetime.now(UTC).timestamp(),
    )

    runs = {one["labels"]["run"] for series in answer["data"] for one in series["exemplars"]}
    assert runs
    assert all(run.startswith("run-") for run in runs)


def test_every_link_leads_to_a_page_of_the_console(prometheus: Prometheus) -> None:
    """Of panels, rows of tables and exemplars. Whoever isn't signed in is asked to, and isn't told that there is no such page."""
    provisioned = resource("grafana", "provisioning", "datasources", "prometheus.yml").read_text(
        encoding="utf-8"
    )
    paths = set(re.findall(r"url: http://127\.0\.0\.1:8765(/\S+)", provisioned))
    for dashboard in DASHBOARDS.values():
        paths |= set(re.findall(r'"\$\{console_url\}(/[^"]*)"', json.dumps(dashboard)))
    daemon = prometheus.ask("targets")["data"]["activeTargets"][0]["scrapeUrl"].removesuffix("/metrics")

    def status(path: str) -> int:
        try:
            with urllib.request.urlopen(
                daemon + re.sub(r"\$+\{.*?\}", "some-id", path), timeout=10
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert {"/", "/runs", "/runs/$${__value.raw}/report", "/targets/${__value.raw}"} <= paths
    assert [path for path in sorted(paths) if status(path) == 404] == []
    assert status("/nosuch") == 404


def test_the_daemons_own_text_is_clean(prometheus: Prometheus, require_program: RequireProgram) -> None:
    """After all that, `promtool check metrics` has nothing to say; and the strict parser of OpenMetrics takes the other format."""
    target = prometheus.ask("targets")["data"]["activeTargets"][0]["scrapeUrl"]

    def text(accept: str) -> str:
        with urllib.request.urlopen(
            urllib.request.Request(target, headers={"Accept": accept}), timeout=30
        ) as answer:
            assert answer.headers.get_content_type() == accept
            return str(answer.read().decode())

    done = subprocess.run(
        [require_program("promtool"), "check", "metrics"],
        input=text("text/plain"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    families = {
        family.name for family in text_string_to_metric_families(text("application/openmetrics-text"))
    }

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert "rollbackd_run_duration_seconds" in families


def test_the_rules_are_evaluated_without_a_fault(prometheus: Prometheus) -> None:
    """Every rule of the shipped file, on what a real daemon exposes."""
    groups = prometheus.ask("rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert len(rules) == len(re.findall(r"- (?:alert|record): ", RULES.read_text(encoding="utf-8")))
    assert {rule["health"] for rule in rules} == {"ok"}
    assert Path(groups[0]["file"]).name == "rules.yml"
