"""The daemon as its own process: what it answers, how it stops, what it doesn't load, and what survives it."""

import base64
import gzip
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.app.test_configuration import DAEMON, GOOD

KEY = b"k" * 32
PATIENCE_S = 30.0
NEVER_AT_REST = {"jinja2", "sqlglot", "alembic.command", "psycopg", "hypothesis", "pytest", "rollbackd.demo"}


class Daemon:
    """A child process, and how to talk to it."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str] | None = None,
        program: list[str] | None = None,
        part: str = "serve",
    ) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(DAEMON), **(environment or {})}
        self.program = program or [sys.executable, "-m", "rollbackd", "--config"]
        self.config = folder / "rollbackd.toml"
        (folder / "key").touch(mode=0o600)
        (folder / "key").write_text("whsec_" + base64.b64encode(KEY).decode())
        text = GOOD.replace('directory = "store"', 'directory = "store"\n[logging]\nformat = "json"')
        self.config.write_text(text + f'[hooks.rollbackd]\nsecrets = ["file:{folder}/key"]\n')
        self.port = 0
        self.began = time.monotonic()
        self.log = folder / "log"
        self.process = self.spawn(part)
        self.started_s = 0.0

    def spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self.program, str(self.config), *arguments],
                env=self.environment, stderr=log, stdout=log, cwd=self.folder,
            )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def wait(self) -> "Daemon":
        until = time.monotonic() + PATIENCE_S
        while not self.port:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            self.port = next(
                (
                    x["port"]
                    for x in self.lines()
                    if x["event"] == "daemon_started" and x["pid"] == self.process.pid
                ),
                0,
            )
            time.sleep(0.02)
        self.started_s = time.monotonic() - self.began
        return self

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, name: str, *, timeout_s: float = 10) -> int:
        event = {"kind": "deploy.failed", "service": "other", "environment": "staging", "deployment": name}
        body, at = json.dumps(event).encode(), str(int(time.time()))
        signature = hmac.new(KEY, b".".join((name.encode(), at.encode(), body)), hashlib.sha256).digest()
        headers = {
            "webhook-id": name, "webhook-timestamp": at, "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }  # fmt: skip
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/hooks/rollbackd", body, headers)
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return int(answer.status)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Daemon]]:
    made: list[Daemon] = []

    def starting() -> Daemon:
        made.append(Daemon(tmp_path))
        return made[-1].wait()

    yield starting
    for daemon in made:
        if daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait()


def test_it_answers_what_machines_ask_and_needs_no_database_for_that(start: Callable[[], Daemon]) -> None:
    daemon = start()
    assert json.loads(daemon.get("/livez")[1])["alive"] is True
    status, text = daemon.get("/readyz")
    assert (status, json.loads(text)) == (200, {"ready": True, "problems": []})
    status, text = daemon.get("/metrics")
    assert status == 200
    assert 'rollbackd_deliveries_total{hook="rollbackd",outcome="accepted"} 0.0' in text
    paths = json.loads(daemon.get("/openapi.json")[1])["paths"]
    assert {"/hooks/{name}", "/livez", "/api/v1/runs/{id}/approve"} <= set(paths)
    assert daemon.get("/nosuch")[0] == 404
    assert daemon.started_s < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_it_is_told_to_with_exit_0_and_leaves_no_socket(
    start: Callable[[], Daemon], number: int
) -> None:
    daemon = start()
    assert (daemon.folder / "store" / "rollbackd.sock").exists()
    assert daemon.stop(number) == 0
    assert not (daemon.folder / "store" / "rollbackd.sock").exists()
    assert daemon.lines()[-1]["event"] == "daemon_stopped"


def test_a_second_daemon_on_the_same_store_is_refused_and_the_first_goes_on(
    start: Callable[[], Daemon],
) -> None:
    daemon = start()
    second = daemon.spawn("serve")
    assert second.wait(PATIENCE_S) == 1
    assert "another rollbackd has the store" in daemon.log.read_text()
    assert daemon.get("/livez")[0] == 200
    assert (daemon.folder / "store" / "rollbackd.sock").exists()


def test_what_was_accepted_survives_a_kill_and_totals_go_on(start: Callable[[], Daemon]) -> None:
    daemon = start()
    assert [daemon.post("one"), daemon.post("two"), daemon.post("two")] == [202, 202, 200]
    assert daemon.stop() == 0
    again = start()
    assert 'rollbackd_deliveries_total{hook="rollbackd",outcome="accepted"} 2.0' in again.get("/metrics")[1]
    assert again.post("one") == 200
    assert again.post("three") == 202
    again.stop(signal.SIGKILL)
    third = start()
    assert [third.post("one"), third.post("three")] == [200, 200]


def test_what_a_scrape_has_shown_is_not_forgotten_by_a_kill(start: Callable[[], Daemon]) -> None:
    """Prometheus would take a total that is smaller for one that began anew, and all of it for new events."""
    accepted = 'rollbackd_deliveries_total{hook="rollbackd",outcome="accepted"}'
    daemon = start()
    for name in ("one", "two", "three"):
        daemon.post(name)
    assert f"{accepted} 3.0" in daemon.get("/metrics")[1]
    daemon.stop(signal.SIGKILL)

    assert f"{accepted} 3.0" in start().get("/metrics")[1]


def test_a_daemon_at_rest_commits_nothing_however_often_it_is_scraped(start: Callable[[], Daemon]) -> None:
    """What scrapes themselves bring about is nothing to save."""
    daemon = start()
    daemon.post("one")

    def commits() -> str:
        text = daemon.get("/metrics")[1]
        return next(
            x for x in text.splitlines() if x.startswith("rollbackd_store_commit_duration_seconds_count")
        )

    # What the start brings about is done at some time; one that commits for each scrape would never come to rest.
    until = time.monotonic() + PATIENCE_S
    while len({commits() for _ in range(5)}) > 1:
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        (
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_metrics_come_in_the_format_that_is_asked_for_and_compressed(
    start: Callable[[], Daemon], accept: str, found: str
) -> None:
    daemon = start()
    url = f"http://127.0.0.1:{daemon.port}/metrics"
    request = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"] == found
        assert answer.headers["Content-Encoding"] == "gzip"
        text = gzip.decompress(answer.read()).decode()

    assert text.endswith("# EOF\n") == accept.startswith("application/openmetrics")


def test_a_dead_daemons_socket_is_in_nobodys_way(start: Callable[[], Daemon]) -> None:
    start().stop(signal.SIGKILL)
    daemon = start()
    made = subprocess.run(
        [sys.executable, "-m", "rollbackd", "--config", str(daemon.config), "tokens", "create", "ann", "--role", "read"],
        env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    request = urllib.request.Request(
        f"http://127.0.0.1:{daemon.port}/api/v1/targets",
        headers={"Authorization": f"Bearer {made.stdout.strip()}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.loads(answer.read())[0]["name"] == "shop"
    assert made.stdout.strip() not in daemon.log.read_text()


def test_an_idle_daemon_stays_within_its_memory(start: Callable[[], Daemon]) -> None:
    daemon = start()
    time.sleep(1)
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    resident_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    print(f"idle: {resident_kb / 1024:.1f} MB resident, started in {daemon.started_s:.2f} s")
    assert resident_kb < 100 * 1024


def test_what_the_idle_daemon_does_not_need_is_not_loaded() -> None:
    code = "import sys; from rollbackd.app import daemon; print(sorted(m for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert loaded & NEVER_AT_REST == set()
