"""A real Prometheus and Alertmanager for tests: on free ports of loopback, ended by whoever started them."""

import json
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
POLL_S = 0.05


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Exposition:
    """A page of numbers to be scraped; `text` is what stands on it."""

    def __init__(self, text: str = "") -> None:
        self.text = text
        exposition = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(exposition.text.encode())

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class RealProgram:
    """A server of the Prometheus family: on a port of loopback, ready when it says so at /-/ready."""

    def __init__(self, argv: list[str], folder: Path, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                assert time.monotonic() < until, self.log.read_text()[-2000:]
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it; may be called again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class RealPrometheus(RealProgram):
    """Prometheus with a configuration of the test's; `config` is prometheus.yml as JSON, which is YAML."""

    def __init__(self, program: Path, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        argv = [str(program), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
        super().__init__([*argv, f"--web.listen-address=127.0.0.1:{port}"], folder, port)

    def ask(self, query: str) -> list[Any]:
        """The elements of a query's result now."""
        body = urllib.parse.urlencode({"query": query}).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/query", body, timeout=PATIENCE_S) as answer:
            found: list[Any] = json.load(answer)["data"]["result"]
            return found

    def wait_for(self, query: str) -> None:
        """Wait until a query has a result."""
        until = time.monotonic() + PATIENCE_S
        while not self.ask(query):
            assert time.monotonic() < until, f"no result of {query}"
            time.sleep(POLL_S)


class RealAlertmanager(RealProgram):
    """Alertmanager with a configuration of the test's, without its cluster."""

    def __init__(self, program: Path, folder: Path, config: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "alertmanager.yml").write_text(json.dumps(config))
        port = free_port()
        argv = [
            str(program),
            "--config.file=alertmanager.yml",
            "--storage.path=data",
            "--cluster.listen-address=",
        ]
        super().__init__([*argv, f"--web.listen-address=127.0.0.1:{port}"], folder, port)


def scraping(
    *addresses: str, interval: str = "1s", labels: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A prometheus.yml that scrapes these."""
    targets = {"targets": list(addresses), "labels": labels or {}}
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": [{"job_name": "shop", "static_configs": [targets]}],
        **more,
    }
