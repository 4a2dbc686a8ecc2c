"""The console's pages with 10,000 deployments in the store: the time to the first byte, and its 99th percentile."""

import asyncio
import http.client
import os
import statistics
import subprocess
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from figures import figure
from ground import PYTHON

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.planning.steps import Confirm
from rollbackd.core.records import Deployment, Run
from rollbackd.core.run import RunState
from rollbackd.workflow.callers import create_token

HERE = Path(__file__).parent
DEPLOYMENTS, TARGETS, MEASURED = 10_000, 100, 400
TARGET = """
[[targets]]
name = "target-{number}"
service = "service-{number}"
environment = "staging"
database = {{ url = "postgresql://nobody@127.0.0.1:1/none" }}
migrations = {{ directory = "{folder}", python = ["python3"] }}
scratch = {{ same_server = true }}
backup = {{ directory = "{folder}/backups" }}
probes = [{{ name = "health", url = "http://127.0.0.1:1/" }}]
"""


def console(rounds: int) -> None:
    """One line a page: medians and 99th percentiles of the time to the first byte, in seconds."""
    with tempfile.TemporaryDirectory(prefix="rollbackd-bench-") as name:
        folder = Path(name)
        token = asyncio.run(_fill(folder))
        path = folder / "rollbackd.toml"
        path.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\n[store]\ndirectory = "{folder}/store"\n[logging]\nlevel = "error"\n'
            + "".join(TARGET.format(number=n, folder=folder) for n in range(TARGETS))
        )
        daemon = subprocess.Popen(
            [PYTHON, str(HERE / "port_daemon.py"), str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert daemon.stdout is not None
            port = int(daemon.stdout.readline())
            pages = {
                "the overview of 100 targets": "/",
                "a target": "/targets/target-7",
                "a deployment with 400 readings": f"/deployments/deploy-{DEPLOYMENTS - 1:05}",
                "the newest runs": "/runs",
                "a run": f"/runs/run-{DEPLOYMENTS - 2:05}",
            }
            for said, page in pages.items():
                times, size = _first_bytes(port, page, token, rounds * 60)
                figure(
                    f"console, {said}, {DEPLOYMENTS:,} deployments in the store: first byte",
                    times,
                    "s",
                    p99=round(statistics.quantiles(times, n=100)[98], 5),
                    bytes=size,
                )
        finally:
            daemon.terminate()
            daemon.wait(30)


def _first_bytes(port: int, page: str, token: str, times: int) -> tuple[list[float], int]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    taken, size = [], 0
    for number in range(times + 5):
        began = time.perf_counter()
        connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        first = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{page} was answered {answer.status}")
        size = len(answer.read())
        # The first ones load what an idle daemon doesn't need.
        if number >= 5:
            taken.append(first)
    connection.close()
    return taken, size


async def _fill(folder: Path) -> str:
    """Deployments over some months, every second with a run; a token that may read."""
    store = await SqliteStore.open_writing(folder / "store")
    began = datetime.now(UTC) - timedelta(days=200)
    plan = Plan(
        target="", way_back=WayBack.REDEPLOY_ONLY, from_heads=("b",), to_heads=("a",), revisions=(), loses=(),
        lossy_tables=(), blockers=(), warnings=(), release_from="2", release_to="1", scripts_sha256="",
        steps=(Confirm(timeout_s=10.0, heads=("a",), for_s=1.0),),
    )  # fmt: skip
    for first in range(0, DEPLOYMENTS, 200):
        await asyncio.gather(*(_add(store, plan, n, began) for n in range(first, first + 200)))
    readings = [
        Measurement(
            name="health",
            at=began + timedelta(seconds=n),
            quality=Quality.OK,
            healthy=n % 7 > 0,
            value=200.0,
        )
        for n in range(MEASURED)
    ]
    await store.save_measurements(f"deploy-{DEPLOYMENTS - 1:05}", readings)
    token = await create_token(store, "reader", ("read",), datetime.now(UTC))
    await store.close()
    os.sync()
    return token


async def _add(store: SqliteStore, plan: Plan, number: int, began: datetime) -> None:
    at = began + timedelta(minutes=25 * number)
    deployment = Deployment(
        id=f"deploy-{number:05}", target=f"target-{number % TARGETS}", sender_id=str(number), version=f"1.{number}",
        previous_version=f"1.{number - 1}", started_at=at, ended_at=at + timedelta(minutes=20), outcome="kept",
    )  # fmt: skip
    await store.save_deployment(deployment)
    if number % 2 == 0:
        await store.add_run(
            Run(
                id=f"run-{number:05}",
                target=deployment.target,
                database_key=f"db-{number}",
                deployment=deployment.id,
                decision="",
                plan=msgspec.structs.replace(plan, target=deployment.target),
                plan_sha256="0" * 64,
                state=RunState.SUCCEEDED,
                trigger="automatic",
                requested_by="rollbackd",
                reason="it was bad",
                incident="",
                created_at=at,
                started_at=at,
                finished_at=at + timedelta(minutes=1),
            )
        )
