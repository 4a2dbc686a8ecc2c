"""What the budgets promise, measured: one JSON line a figure.

A floor or a peer is measured in the same run, so that the ratio can be quoted and the value need not be. Values are
medians; `spread` is the distance between the quartiles, in the value's unit.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from archives import archives
from backups import backups
from figures import compared, figure
from ground import ALEMBIC, ENV_PY, PYTHON, REVISION, secret
from scrapes import scrapes
from way_back import way_back

from console import console

CONNECTIONS = (1, 16, 64)
WARM_UP_S = 0.7
HERE = Path(__file__).parent


# -- deliveries ----------------------------------------------------------------------------------------------------------


def deliveries(seconds: float, rounds: int) -> None:
    """Durable signed deliveries a second beside a bare aiohttp handler, in turns, so that noise hits both alike."""
    with tempfile.TemporaryDirectory(prefix="rollbackd-bench-") as folder:
        key = secrets.token_bytes(32)
        with (
            _Server([PYTHON, str(HERE / "bare_server.py")]) as bare,
            _Server(
                [PYTHON, str(HERE / "receiving_server.py"), folder, base64.b64encode(key).decode()]
            ) as ours,
        ):
            for connections in CONNECTIONS:
                mine, theirs = [], []
                for _ in range(rounds):
                    theirs.append(_load(bare.port, connections, seconds, key))
                    mine.append(_load(ours.port, connections, seconds, key))
                compared(
                    f"durable signed deliveries at {connections} connections", mine, "1/s",
                    "a bare aiohttp handler that answers 202 at once", theirs,
                )  # fmt: skip


def _load(port: int, connections: int, seconds: float, key: bytes) -> float:
    """Answers 202 a second, asked for by a process of its own."""
    argv = [
        PYTHON,
        str(HERE / "load.py"),
        str(port),
        str(connections),
        str(seconds),
        str(WARM_UP_S),
        base64.b64encode(key).decode(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=seconds + 60)
    return float(done.stdout)


class _Server:
    """A server of the bench's own, as a child that prints its port."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self.port = 0

    def __enter__(self) -> "_Server":
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


# -- from a signal to the downgrade ----------------------------------------------------------------------------------------


async def signal_to_downgrade(rounds: int) -> None:
    """From a failing signal's arrival to the downgrade's first statement and its end, beside `alembic` as a process.

    The backup is apart: one that was proved before is taken over, and the lossless downgrade needs no preserving.
    """
    from rollbackd.demo.postgres import EmbeddedPostgres

    postgres = await asyncio.to_thread(EmbeddedPostgres.start)
    try:
        with tempfile.TemporaryDirectory(prefix="rollbackd-bench-") as name:
            folder = Path(name)
            rig = Rig(folder, postgres)
            await rig.set_up()
            try:
                for prestart in (True, False):
                    await rig.start_daemon(prestart=prestart)
                    # The first one takes the backup that the others take over.
                    await rig.one_rollback()
                    times, alembic = [], []
                    for _ in range(rounds):
                        # In turns, so that noise hits both alike. Nothing is watched in between.
                        alembic.append(await rig.bare_alembic())
                        times.append(await rig.one_rollback())
                    await rig.stop_daemon()
                    worker = "a pre-started worker" if prestart else "a worker that planning started"
                    _say(times, alembic, worker)
            finally:
                await rig.stop_daemon()
    finally:
        await asyncio.to_thread(postgres.stop)


# Up to the downgrade, in this order.
STEPS = ("validate_before", "back_up", "prove_backup", "stop_application", "downgrade")


def _say(times: list[dict[str, float]], alembic: list[float], worker: str) -> None:
    """The figures of one kind of daemon; each round's times count from the signal's arrival."""

    def until(name: str, since: str = "") -> list[float]:
        return [noted[name] - (noted[since] if since else 0.0) for noted in times]

    steps = {
        f"{step}_s": round(statistics.median(until(f"{step}_done", f"{before}_done")), 5)
        for before, step in pairwise(STEPS)
    }
    first = {"validate_before_s": round(statistics.median(until("validate_before_done", "decision_made")), 5)}
    figure(f"signal to durable answer, with {worker}", until("answered"), "s")
    compared(f"signal to decision, with {worker}", until("decision_made"), "s", ALEMBIC, alembic)
    statement = until("first_statement")
    compared(f"signal to the downgrade's first statement, with {worker}", statement, "s", ALEMBIC, alembic)
    compared(f"signal to the downgrade's end, with {worker}", until("downgrade_done"), "s", ALEMBIC, alembic)
    compared(
        f"decision to the downgrade's end, with {worker}", until("downgrade_done", "decision_made"), "s",
        ALEMBIC, alembic, aim_ratio=0.1, of_which={**first, **steps},
    )  # fmt: skip


class Rig:
    """A small database, a hundred revisions, a daemon as a process of its own with a listener that notes times."""

    def __init__(self, folder: Path, postgres: Any) -> None:
        self.folder = folder
        self.postgres = postgres
        self.url = postgres.url("bench", driver="psycopg")
        self.key = secrets.token_bytes(32)
        self.daemon: asyncio.subprocess.Process | None = None
        self.port = 0
        self.count = 0

    async def set_up(self) -> None:
        """Make the database and the scripts."""
        versions = self.folder / "project" / "migrations" / "versions"
        versions.mkdir(parents=True)
        (self.folder / "project" / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
        (self.folder / "project" / "migrations" / "env.py").write_text(ENV_PY.format(url=""))
        down = None
        for number in range(100):
            this = f"r{number:03}"
            up = f"CREATE INDEX i{number} ON t (id)" if number else "CREATE TABLE t (id bigint PRIMARY KEY)"
            back = f"DROP INDEX i{number}" if number else "DROP TABLE t"
            (versions / f"{this}.py").write_text(REVISION.format(this=this, down=down, up=up, back=back))
            down = this
        await self.sql("postgres", "CREATE DATABASE bench")
        await self.alembic("upgrade", "head")
        await self.sql("bench", "INSERT INTO t SELECT generate_series(1, 1000)")
        secret(self.folder / "key", "whsec_" + base64.b64encode(self.key).decode())
        secret(self.folder / "password", self.postgres.password)

    async def sql(self, database: str, statement: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.postgres.url(database))
        await connection.execute(statement)
        await connection.close()

    async def alembic(self, *argv: str) -> float:
        """Run Alembic as a process; returns the seconds it took."""
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            PYTHON, "-m", "alembic", *argv, cwd=self.folder / "project",
            env={**os.environ, "BENCH_URL": self.url}, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if await process.wait() != 0:
            raise RuntimeError(f"alembic {argv} failed")
        return time.monotonic() - began

    async def bare_alembic(self) -> float:
        """One downgrade by hand, and up again."""
        seconds = await self.alembic("downgrade", "-1")
        await self.alembic("upgrade", "head")
        return seconds

    async def start_daemon(self, *, prestart: bool) -> None:
        """Start the daemon with its times noted in a file, and take the backup that the runs take over."""
        (self.folder / "rollbackd.toml").write_text(f"""
[server]
listen = "127.0.0.1:0"
[store]
directory = "{self.folder}/store-{prestart}"
[logging]
level = "error"
[hooks.rollbackd]
secrets = ["file:{self.folder}/key"]
[[targets]]
name = "bench"
service = "bench"
environment = "staging"
[targets.database]
url = "postgresql://{self.postgres.user}@{self.postgres.host}:{self.postgres.port}/bench"
password = "file:{self.folder}/password"
binaries = "{self.postgres.bin_directory}"
[targets.migrations]
directory = "{self.folder}/project"
python = ["{PYTHON}"]
url = "environment:BENCH_URL"
prestart = {str(prestart).lower()}
[targets.scratch]
same_server = true
[targets.backup]
directory = "{self.folder}/backups-{prestart}"
reuse_within = "1h"
[targets.policy]
mode = "automatic"
confirm_for = "0s"
cool_down = "0s"
max_rollbacks_a_day = 1000
watch_after_rollback = "0s"
[targets.deployment]
stop = {{ command = ["true"], done_when = ["true"] }}
start = {{ command = ["true"], done_when = ["true"] }}
""")
        self.times = self.folder / "times.jsonl"
        self.times.write_text("")
        argv = [PYTHON, str(HERE / "timed_daemon.py"), str(self.folder / "rollbackd.toml"), str(self.times)]
        self.daemon = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert self.daemon.stdout is not None
        self.port = int(await self.daemon.stdout.readline())

    async def stop_daemon(self) -> None:
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.terminate()
            await self.daemon.wait()
        self.daemon = None

    async def one_rollback(self) -> dict[str, float]:
        """Deploy one more revision, signal a failure, and note when what happened."""
        import aiohttp

        self.count += 1
        version = f"v{self.count}"
        revision = f"x{self.count}"
        script = REVISION.format(
            this=revision, down="r099", up="CREATE INDEX extra ON t (id)", back="DROP INDEX extra"
        )
        path = self.folder / "project" / "migrations" / "versions" / f"{revision}.py"
        async with aiohttp.ClientSession() as session:
            said = {"version": version, "previous_version": "v0", "deployment": version}
            await self.send(session, kind="deploy.started", **said)
            await self.seen("state_documented", said)
            path.write_text(script)
            priced = self.happened("way_back_priced")
            await self.alembic("upgrade", "head")
            await self.send(session, kind="deploy.succeeded", **said)
            # The watch sees the revision move, and plans and rehearses the way back.
            await self.seen("way_back_priced", said, priced + 1)
            before = self.times.stat().st_size
            fields = {
                "category": "errors",
                "severity": "critical",
                "name": f"errors-{version}",
                "key": version,
            }
            began = time.monotonic()
            await self.send(session, kind="signal.firing", **fields)
            answered = time.monotonic() - began
            noted: dict[str, float] = {}
            deadline = time.monotonic() + 60
            while "run_ended" not in noted and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
                lines = self.times.read_text()[before:].splitlines()
                for line in lines:
                    happened = json.loads(line)
                    noted.setdefault(happened["name"], happened["at"])
            await self.seen("deployment_ended", said)
        path.unlink()
        return {"answered": answered, **{name: at - began for name, at in noted.items()}}

    def happened(self, name: str) -> int:
        """How often something happened."""
        return sum(json.loads(line)["name"] == name for line in self.times.read_text().splitlines())

    async def seen(self, name: str, said: dict[str, str], times: int | None = None) -> None:
        """Wait until something happened this often: as often as there were deployments, if nothing else is said."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.happened(name) >= (times or max(self.happened("deployment_started"), 1)):
                return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"{name} didn't happen for {said['version']}")

    async def send(self, session: Any, **event: Any) -> None:
        body = json.dumps({"service": "bench", "environment": "staging", **event}).encode()
        message, now = f"msg_{secrets.token_hex(8)}", str(int(time.time()))
        signed = f"{message}.{now}.".encode() + body
        signature = base64.b64encode(hmac.digest(self.key, signed, hashlib.sha256)).decode()
        headers = {"webhook-id": message, "webhook-timestamp": now, "webhook-signature": f"v1,{signature}"}
        async with session.post(
            f"http://127.0.0.1:{self.port}/hooks/rollbackd", data=body, headers=headers
        ) as answer:
            if answer.status != 202:
                raise RuntimeError(f"{event['kind']} was answered {answer.status}: {await answer.text()}")


def main() -> None:
    """Measure everything, or the groups that are named."""
    groups: dict[str, Callable[[Any], object]] = {
        "deliveries": lambda options: deliveries(options.seconds, options.rounds),
        "rollback": lambda options: asyncio.run(signal_to_downgrade(options.rounds)),
        "way_back": lambda options: asyncio.run(way_back(options.rounds)),
        "archives": lambda options: asyncio.run(archives(options.rounds)),
        "backups": lambda options: asyncio.run(backups(options.rounds)),
        "console": lambda options: console(options.rounds),
        "scrapes": lambda options: scrapes(min(options.rounds, 3)),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", nargs="*", help=f"{', '.join(groups)}; without any, all of them")
    parser.add_argument("--seconds", type=float, default=3.0, help="of load at each point")
    parser.add_argument(
        "--rounds", type=int, default=5, help="at most; what takes long is measured less often"
    )
    options = parser.parse_args()
    if unknown := set(options.group) - set(groups):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(groups)}")
    for name in options.group or groups:
        groups[name](options)


if __name__ == "__main__":
    main()
