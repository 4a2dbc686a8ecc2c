"""The whole workflow on a real SQLite store, with the fakes at its ports."""

import asyncio
import hashlib
import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.workflow.fakes import (
    NEW,
    OLD,
    FakeAnnouncer,
    FakeApplication,
    FakeArchives,
    FakeBackups,
    FakeClock,
    FakeDatabase,
    FakeMetrics,
    FakeProber,
    FakeRehearsals,
    FakeWorker,
    World,
)

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.console.report_page import report_page
from rollbackd.core.events import Event
from rollbackd.core.matrix import load_matrix
from rollbackd.core.records import Delivery, Deployment, Run, StoredDecision
from rollbackd.core.run import UNFINISHED, StepPhase
from rollbackd.resources import resource
from rollbackd.settings import (
    Backup,
    Command,
    Database,
    DeploymentCommands,
    Duration,
    Metric,
    Migrations,
    Policy,
    Probe,
    Scratch,
    Target,
)
from rollbackd.workflow.deciding import Deciding
from rollbackd.workflow.engine import Engine
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.operations import Operations
from rollbackd.workflow.pipeline import Pipeline
from rollbackd.workflow.planning import Planner
from rollbackd.workflow.pulse import Pulse
from rollbackd.workflow.reporting import Reporting
from rollbackd.workflow.runs import Runs
from rollbackd.workflow.targets import Targets

PATIENCE_S = 30.0
COMMAND = Command(command=("do",), done_when=("look",))


def a_target(
    name: str = "shop",
    environment: str = "staging",
    probes: tuple[Probe, ...] = (),
    metrics: tuple[Metric, ...] = (),
    **policy: Any,
) -> Target:
    values: dict[str, Any] = {
        "confirm_for": Duration(0), "watch_after_rollback": Duration(0), "cool_down": Duration(0),
        "start_grace": Duration(60), "bake_time": Duration(600), "max_rollbacks_a_day": 99,
    }  # fmt: skip
    return Target(
        name=name, service="shop", environment=environment, probes=probes, metrics=metrics,
        database=Database(url="postgresql://u@h/shop"), migrations=Migrations(directory="/m", python=("python",)),
        backup=Backup(directory="/b", reuse_within=Duration(60)), policy=Policy(**{**values, **policy}),
        deployment=DeploymentCommands(stop=COMMAND, start=COMMAND), scratch=Scratch(same_server=True),
    )  # fmt: skip


@dataclass
class Rig:
    store: SqliteStore
    targets: tuple[Target, ...] = (a_target(),)
    world: World = field(default_factory=World)
    clock: FakeClock = field(default_factory=FakeClock)
    announcer: FakeAnnouncer = field(default_factory=FakeAnnouncer)

    def __post_init__(self) -> None:
        self.told: list[tuple[str, dict[str, object]]] = []
        self.happenings = Happenings()
        self.happenings.listen(lambda name, fields: self.told.append((name, fields)))
        self.guarded: Targets = self.guard_all()
        self.task: asyncio.Task[None] | None = None
        self.sent = 0
        self.wire()

    def guard_all(self) -> Targets:
        return Targets(
            [self.guard(target) for target in self.targets], lambda one: Planner(one, self.store, self.clock), self.happenings,
        )  # fmt: skip

    def guard(self, target: Target) -> Guarded:
        world = self.world
        return Guarded(
            settings=target, database_key="db", database=FakeDatabase(world), worker=FakeWorker(world),
            backups=FakeBackups(world, self.clock), application=FakeApplication(world), prober=FakeProber(world),
            rehearsals=FakeRehearsals(world), archives=FakeArchives(world),
            metrics=FakeMetrics(world) if target.metrics else None,
        )  # fmt: skip

    def wire(self) -> None:
        """The parts anew, as after a restart."""
        path = resource("config", "decision-matrix.toml")
        matrix = load_matrix(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
        store, clock, guarded, happenings = self.store, self.clock, self.guarded, self.happenings
        planners = guarded.planners
        self.pulse = Pulse(time.monotonic)
        self.engine = Engine(store, clock, guarded, happenings)
        self.runs = Runs(store, clock, self.engine, guarded, self.announcer, happenings)
        self.operations = Operations(store, clock, guarded, planners, self.runs, happenings)
        self.deciding = Deciding(
            matrix, store, clock, guarded, planners, self.runs, self.announcer, happenings
        )
        self.pipeline = Pipeline(
            store, clock, guarded, self.deciding, self.operations, happenings, self.pulse
        )
        self.reporting = Reporting(store, clock, guarded, report_page)

    async def start(self) -> None:
        await self.engine.recover()
        await self.runs.recover()
        self.task = asyncio.create_task(self.pipeline.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.pipeline.stop()
        await self.engine.stop()

    async def send(self, kind: str, *, settle: bool = True, **fields: Any) -> str:
        """Record an event as the intake does; its outcome once it was settled."""
        self.sent += 1
        event = Event(**{"kind": kind, "service": "shop", "environment": "staging", **fields})
        text = json.dumps([self.sent, kind]).encode()
        delivery = Delivery(
            id=f"delivery-{self.sent}", hook="cd", identity=str(self.sent), body_sha256=hashlib.sha256(text).hexdigest(),
            headers={}, body=text, received_at=self.clock.now(), events=(event,),
        )  # fmt: skip
        await self.store.accept(delivery)
        self.pipeline.wake()
        if not settle:
            return ""
        found = await self.until(lambda: self.outcome(delivery.id))
        return str(found)

    async def outcome(self, delivery: str) -> str:
        for known in await self.store.recent_deliveries(50):
            if known["id"] == delivery:
                return str(known["outcome"])
        return ""

    async def until(self, happened: Callable[[], Any]) -> Any:
        """Poll until it is true; what it was."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_S
        while True:
            found = happened()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert loop.time() < until, f"didn't happen; told: {[(n, f) for n, f in self.told][-8:]}"
            await asyncio.sleep(0.01)

    async def deploy(self, *, migrates: bool = True) -> Deployment:
        """A deploy that was announced, migrated and succeeded."""
        await self.send("deploy.started", deployment="4711", version=NEW, previous_version=OLD)
        deployment: Deployment = await self.until(self.watched)
        if migrates:
            self.world.upgrade()
        await self.send("deploy.succeeded", deployment="4711")
        return deployment

    async def watched(self) -> Deployment | None:
        found = await self.store.watched_deployments()
        return found[0] if found and found[0].heads_before is not None else None

    async def deployment(self) -> Deployment:
        return (await self.store.deployments(None, 1))[0]

    async def run(self) -> Run | None:
        found = await self.store.runs(None, 1)
        return found[0] if found else None

    async def ended_run(self) -> Run:
        async def look() -> Run | None:
            run = await self.run()
            return run if run is not None and (run.state not in UNFINISHED or run.state == "held") else None

        found: Run = await self.until(look)
        return found

    async def decision(self, row: str) -> StoredDecision:
        async def look() -> StoredDecision | None:
            found = await self.store.decisions(None, 50)
            return next((d for d in found if d.decision.row == row), None)

        found: StoredDecision = await self.until(look)
        return found

    async def phases(self, run: Run) -> list[tuple[str, str]]:
        return [
            (run.plan.steps[r.step].kind, str(StepPhase(r.phase)))
            for r in await self.store.journal_of(run.id)
        ]


async def open_store(folder: Path) -> SqliteStore:
    return await SqliteStore.open_writing(folder / "store")
