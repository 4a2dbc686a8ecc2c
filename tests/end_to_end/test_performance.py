"""An application that becomes slow after a deploy, with Debian's own Prometheus and Alertmanager."""

import contextlib
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import RequireProgram
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until
from tests.prometheus import RealAlertmanager, RealPrometheus, scraping

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("performance")]

# Far from the limits, so that a busy machine isn't taken for a slow release.
QUICK_S, DEGRADED_S, CRITICAL_S = 0.005, 0.25, 1.0
DEGRADED_FROM_S, CRITICAL_FROM_S = 0.12, 0.6
MEAN = (
    'sum(rate(shop_request_seconds_sum{service="$service", environment="$environment"}[3s]))'
    ' / sum(rate(shop_request_seconds_count{service="$service", environment="$environment"}[3s]))'
)
METRIC = {
    "name": "latency",
    "query": MEAN,
    "degraded": DEGRADED_FROM_S,
    "critical": CRITICAL_FROM_S,
    "readings": 2,
    "interval": "500ms",
    "stale_after": "5s",
    "before": "1s",
}


class SlowShop:
    """Answers orders, slower with the new release where `pace_s` says so, and shows at /metrics how long it took.

    Somebody orders all the time.
    """

    def __init__(self) -> None:
        self.ground: Ground | None = None
        self.pace_s = QUICK_S
        self.count, self.seconds = 0, 0.0
        self.is_open = True
        shop = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = shop.metrics() if self.path == "/metrics" else shop.order()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.threads = [
            threading.Thread(target=self.server.serve_forever, args=(0.05,)),
            threading.Thread(target=self.keep_ordering),
        ]
        for thread in self.threads:
            thread.start()

    def order(self) -> str:
        began = time.monotonic()
        version = self.ground.running() if self.ground else ""
        time.sleep(self.pace_s if version == NEW else QUICK_S)
        if version:
            self.count, self.seconds = self.count + 1, self.seconds + time.monotonic() - began
        return version

    def metrics(self) -> str:
        return f"shop_request_seconds_count {self.count}\nshop_request_seconds_sum {self.seconds}\n"

    def keep_ordering(self) -> None:
        while self.is_open:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{self.address}/orders", timeout=10),
            ):
                time.sleep(0.02)

    def close(self) -> None:
        self.is_open = False
        self.threads[1].join()
        self.server.shutdown()
        self.threads[0].join()
        self.server.server_close()


@pytest.fixture
def slow_shop() -> Iterator[SlowShop]:
    shop = SlowShop()
    yield shop
    shop.close()


@pytest.fixture
def ground(make_ground: MakeGround, slow_shop: SlowShop, tmp_path: Path) -> Ground:
    """A shop at its first revision with the old release running; the second adds a table."""
    project = Project(tmp_path / "project")
    project.revision(
        "first", "op.execute('CREATE TABLE orders (id int PRIMARY KEY)')", "op.drop_table('orders')"
    )
    project.revision(
        "notes", "op.execute('CREATE TABLE notes (id int PRIMARY KEY)')", "op.drop_table('notes')"
    )
    made = make_ground(project)
    project.alembic(made.url(), "upgrade", "first")
    made.runs_version(OLD)
    slow_shop.ground = made
    return made


LABELS = {"service": "shop", "environment": "staging"}


@pytest.fixture
def prometheus(
    require_program: RequireProgram, slow_shop: SlowShop, tmp_path: Path
) -> Iterator[RealPrometheus]:
    running = RealPrometheus(
        require_program("prometheus"),
        tmp_path / "prometheus",
        scraping(slow_shop.address, interval="500ms", labels=LABELS),
    )
    yield running
    running.stop()


def measured_by(prometheus: RealPrometheus, ground: Ground, **policy: Any) -> None:
    """Configure it, once there is something to be read from before."""
    ground.sections["prometheus"] = {"url": prometheus.url, "timeout": "2s"}
    ground.configure(metrics=[METRIC], policy=policy)
    prometheus.wait_for("rate(shop_request_seconds_count[3s]) > 0")
    # As many readings as settle it are asked for, from before the deploy.
    prometheus.wait_for("count_over_time(shop_request_seconds_count[1m]) > 6")


def deployment_of(ground: Ground) -> dict[str, Any]:
    newest = ground.ask("GET", "/api/v1/deployments?limit=1")[1][0]
    return dict(ground.ask("GET", f"/api/v1/deployments/{newest['id']}")[1])


def test_an_application_that_slows_down_is_investigated_then_critical_then_rolled_back(
    ground: Ground, slow_shop: SlowShop, prometheus: RealPrometheus
) -> None:
    measured_by(prometheus, ground)
    checked = ground.rollbackd("check-config")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "✓ metric latency: is 0.0" in checked.stdout
    ground.start()
    ground.deploy()
    wait_until(
        lambda: len([m for m in deployment_of(ground)["measurements"] if m["level"] == "normal"]) > 3,
        ground.words,
    )
    assert deployment_of(ground)["decisions"] == []

    slow_shop.pace_s = DEGRADED_S
    deployment = wait_until(lambda: (d := deployment_of(ground))["investigations"] and d, ground.words)
    (investigation,) = deployment["investigations"]
    assert deployment["investigating"]["decision"] == investigation["decision"]
    (series,) = investigation["series"]
    assert 'service="shop"' in series["query"]
    began = deployment["started_at"]
    before = [value for at, value in series["points"] if at < began]
    after = [value for at, value in series["points"] if at > began]
    assert before
    assert max(before) < DEGRADED_FROM_S < max(after)
    assert investigation["change"]["revisions"] == ["notes notes"]
    assert "+ table public.notes" in investigation["change"]["difference"]
    explained = ground.rollbackd("explain", investigation["decision"])
    assert explained.returncode == 0
    assert "performance-degraded" in explained.stdout
    assert "metric latency: degraded, before the deploy normal; 0.2" in explained.stdout
    assert "┃" in explained.stdout
    assert "degraded above 0.12, critical above 0.6" in explained.stdout
    assert "tables: public.notes" in explained.stdout
    as_json = json.loads(ground.rollbackd("explain", investigation["decision"], "--json").stdout)
    assert as_json["investigation"] == investigation
    assert f"UTC: rollbackd explain {investigation['decision']}" in ground.rollbackd("status").stdout
    assert ground.run() == {}
    assert ground.heads() == ["notes"]

    slow_shop.pace_s = CRITICAL_S
    run = ground.ended_run()
    assert (run["state"], run["trigger"]) == ("succeeded", "automatic")
    assert run["reason"].startswith("performance-critical")
    assert ground.heads() == ["first"]
    assert ground.running() == OLD
    report = ground.rollbackd("report", run["id"]).stdout
    assert "## Investigation" in report
    assert "latency: " in report
    document = json.loads(ground.rollbackd("report", run["id"], "--format", "json").stdout)
    assert document["investigations"][0] == investigation
    assert document["investigations"][-1]["decision"] == run["decision"]
    taken = re.search(
        r'rollbackd_evidence_total{.*quality="ok",source="prometheus".*} (\S+)',
        ground.ask("GET", "/metrics")[1],
    )
    assert taken is not None
    assert float(taken[1]) > 10


def test_an_application_whose_prometheus_dies_is_not_rolled_back_and_the_end_says_so(
    ground: Ground, slow_shop: SlowShop, prometheus: RealPrometheus
) -> None:
    measured_by(prometheus, ground, bake_time="3s")
    ground.start()
    ground.deploy()
    prometheus.stop()
    slow_shop.pace_s = CRITICAL_S
    wait_until(lambda: deployment_of(ground)["ended_at"], ground.words)
    deployment = deployment_of(ground)
    assert deployment["outcome"] == "investigate"
    (decision,) = [d["decision"] for d in deployment["decisions"]]
    assert decision["row"] == "no-data-at-the-end-of-the-bake-time"
    assert decision["facts"]["performance"] == "unknown"
    assert "can't tell: latency (no_data): error, Prometheus at" in decision["reasons"]["performance"]
    assert ground.run() == {}
    assert (ground.heads(), ground.running()) == (["notes"], NEW)
    lost = wait_until(lambda: deployment_of(ground)["investigations"], ground.words)[0]
    assert lost["series"][0]["points"] == []
    assert "can't be asked" in lost["series"][0]["missing"]
    checked = ground.rollbackd("check-config")
    assert checked.returncode == 1
    assert "✗ metric latency: Prometheus at" in checked.stdout


def test_an_alert_that_prometheus_raises_and_alertmanager_sends_rolls_back(
    ground: Ground, slow_shop: SlowShop, require_program: RequireProgram, tmp_path: Path
) -> None:
    """The other way that slowness is told: by somebody's alert, through the real senders."""
    programs = require_program("prometheus"), require_program("prometheus-alertmanager", "alertmanager")
    token = ground.secret("alertmanager-token", "a-bearer-token-of-the-alertmanager")
    ground.sections["hooks"] = {"alertmanager": {"secrets": [token]}}
    ground.configure()
    ground.start()
    webhook = {
        "url": f"http://127.0.0.1:{ground.port()}/hooks/alertmanager",
        "send_resolved": True,
        "http_config": {"authorization": {"credentials_file": token.removeprefix("file:")}},
    }
    route = {"receiver": "rollbackd", "group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h"}
    rule = {
        "alert": "OrdersSlow",
        "expr": f"rate(shop_request_seconds_sum[3s]) / rate(shop_request_seconds_count[3s]) > {CRITICAL_FROM_S}",
        "labels": {**LABELS, "category": "performance", "severity": "critical"},
        "annotations": {"summary": "orders take {{ $value }} s"},
    }
    with contextlib.ExitStack() as ends:
        alertmanager = RealAlertmanager(
            programs[1],
            tmp_path / "alertmanager",
            {"route": route, "receivers": [{"name": "rollbackd", "webhook_configs": [webhook]}]},
        )
        ends.callback(alertmanager.stop)
        rules = tmp_path / "rules.yml"
        rules.write_text(json.dumps({"groups": [{"name": "shop", "rules": [rule]}]}))
        notified = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]}
        config = scraping(
            slow_shop.address, interval="500ms", labels=LABELS, rule_files=[str(rules)], alerting=notified
        )
        ends.callback(RealPrometheus(programs[0], tmp_path / "prometheus", config).stop)
        ground.deploy()
        slow_shop.pace_s = CRITICAL_S
        run = ground.ended_run()
    assert run["state"] == "succeeded"
    assert ground.heads() == ["first"]
    decision = ground.ask("GET", "/api/v1/decisions")[1][0]["decision"]
    assert decision["row"] == "performance-critical"
    assert "OrdersSlow (critical) from alertmanager" in decision["reasons"]["performance"]
