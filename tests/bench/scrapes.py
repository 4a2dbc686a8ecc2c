"""A scrape of a daemon with a thousand targets at rest: time, size, memory, and what everybody else waits meanwhile."""

import gzip
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from figures import compared, figure
from ground import PYTHON, secret
from prometheus_client import CollectorRegistry, Counter, generate_latest

HERE = Path(__file__).parent
TARGETS = 1_000
PEER = "prometheus-client's own counters, as many series, in a process that does nothing else"
# What Prometheus sends.
HEADERS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "Accept-Encoding": "gzip"}
MEGABYTE = 1_000_000


def scrapes(rounds: int) -> None:
    """Each round is a daemon of its own: its first scrape has everything to write, the later ones find it written."""
    first, later, livez, memory, before = [], [], [], [], []
    plain = b""
    packed = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="rollbackd-bench-") as name:
            process, port = _start(Path(name))
            try:
                before.append(_resident_bytes(process.pid) / MEGABYTE)
                with _Pinging(port) as pinging:
                    first.append(_scrape(port)[0])
                livez.append(max(pinging.times))
                for _ in range(5):
                    seconds, body = _scrape(port)
                    later.append(seconds)
                plain, packed = gzip.decompress(body), len(body)
                memory.append(_resident_bytes(process.pid) / MEGABYTE)
            finally:
                process.terminate()
                process.wait(60)
    series = sum(not line.startswith(b"#") for line in plain.splitlines())
    peer = _peer(series, rounds)
    said = {"targets": TARGETS, "series": series}
    compared("scrape of 1,000 targets, the first after a start", first, "s", PEER, peer, **said)
    compared("scrape of 1,000 targets at rest", later, "s", PEER, peer, **said)
    figure("longest GET /livez while the first is written", livez, "s", aim=1.0)
    figure(
        "size of a scrape of 1,000 targets", [len(plain) / MEGABYTE], "MB", packed=round(packed / MEGABYTE, 3)
    )
    figure(
        "resident memory of a daemon with 1,000 targets at rest, scraped", memory, "MB", aim=200,
        before_the_first_scrape=round(statistics.median(before), 1),
    )  # fmt: skip


def _start(folder: Path) -> tuple["subprocess.Popen[str]", int]:
    """A daemon whose targets can't be reached: what they cost at rest doesn't hang on a server."""
    (folder / "project" / "migrations" / "versions").mkdir(parents=True)
    (folder / "project" / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    secret(folder / "key", "whsec_" + "a" * 44)
    head = f"""
[server]
listen = "127.0.0.1:0"
[store]
directory = "{folder}/store"
[logging]
level = "error"
[hooks.rollbackd]
secrets = ["file:{folder}/key"]
"""
    targets = "".join(
        f"""
[[targets]]
name = "target-{number:04}"
service = "service-{number:04}"
environment = "{("staging", "production")[number % 2]}"
database.url = "postgresql://bench@127.0.0.1:1/bench{number}"
migrations = {{ directory = "{folder}/project", python = ["{PYTHON}"], url = "environment:URL" }}
scratch.same_server = true
backup.directory = "{folder}/backups"
"""
        for number in range(TARGETS)
    )
    (folder / "rollbackd.toml").write_text(head + targets)
    argv = [
        PYTHON,
        str(HERE / "timed_daemon.py"),
        str(folder / "rollbackd.toml"),
        str(folder / "times.jsonl"),
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the daemon didn't start")
    _until_at_rest(process.pid)
    return process, int(json.loads(line))


def _until_at_rest(pid: int) -> None:
    """Until it has tried to document every target, and uses next to no processor."""
    used = _processor_s(pid)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(2)
        now = _processor_s(pid)
        if now - used < 0.2:
            return
        used = now
    raise RuntimeError("it never came to rest")


def _scrape(port: int) -> tuple[float, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=HEADERS)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return time.monotonic() - began, body


class _Pinging:
    """Asks /livez again and again."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/livez"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ping)
        self.times: list[float] = []

    def __enter__(self) -> "_Pinging":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ping(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            with urllib.request.urlopen(self._url, timeout=60) as answer:
                answer.read()
            self.times.append(time.monotonic() - began)
            time.sleep(0.01)


def _peer(series: int, rounds: int) -> list[float]:
    registry = CollectorRegistry()
    counter = Counter("peer", "As many.", ("target", "environment", "outcome", "kind"), registry=registry)
    for number in range(series // 2):  # each has a sample of when it was created
        counter.labels(f"target-{number % TARGETS:04}", "staging", f"outcome_{number // TARGETS}", "kind")
    times = []
    for _ in range(rounds):
        began = time.monotonic()
        generate_latest(registry)
        times.append(time.monotonic() - began)
    return times


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
