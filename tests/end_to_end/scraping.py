"""A real Prometheus that scrapes a daemon every second and evaluates the shipped rules as often."""

import contextlib
import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.end_to_end.ground import wait_until

CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: rollbackd
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class Prometheus:
    """Asked by its own API."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.since = time.time()

    def ask(self, path: str, **parameters: Any) -> dict[str, Any]:
        """The whole answer; of a refused query too."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            return dict(json.load(error))

    def is_ready(self) -> bool:
        """It listens before it has read its rules, and answers 503 until then."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    def now(self, query: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        answer = self.ask("query", query=query)
        assert answer["status"] == "success", f"{query}: {answer}"
        return list(answer["data"]["result"])

    def wait(self, query: str, words: Callable[[], object]) -> None:
        """Until the query has a result."""
        wait_until(lambda: self.now(query), lambda: f"{query} stays empty\n{words()}")

    def over_time(self, query: str) -> list[float]:
        """Every sample of a query at each second since the start, up to the newest.

        Raises:
            AssertionError: when Prometheus refuses it.
        """
        answer = self.ask("query_range", query=query, start=self.since, end=time.time() + 1, step="1")
        assert answer["status"] == "success", f"{query}: {answer}"
        return [float(value) for series in answer["data"]["result"] for _, value in series["values"]]


@contextlib.contextmanager
def prometheus_on(program: Path, rules: Path, folder: Path, port: int) -> Iterator[Prometheus]:
    """Scrapes that port until the end."""
    hurried = folder / "rules.yml"
    hurried.write_text(re.sub(r"interval: 1h", "interval: 1s", rules.read_text()))
    (folder / "prometheus.yml").write_text(CONFIGURATION.format(rules=hurried, port=port))
    log = folder / "prometheus.log"
    argv = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        "--web.listen-address=127.0.0.1:0",
        "--enable-feature=exemplar-storage",
    ]
    with log.open("wb") as words:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words)
    try:

        def port_of() -> int:
            assert process.poll() is None, log.read_text()
            found = re.search(r'"?Listening on"? address=127\.0\.0\.1:(\d+)', log.read_text())
            return int(found[1]) if found else 0

        started = Prometheus(wait_until(port_of, log.read_text))
        wait_until(started.is_ready, log.read_text)
        started.wait('up{job="rollbackd"} == 1', log.read_text)
        yield started
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
