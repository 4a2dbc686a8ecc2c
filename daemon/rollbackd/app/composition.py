"""Wiring: from a configuration to the parts, each knowing only the ports it was given."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from rollbackd.adapters.announcements import WebhookAnnouncer
from rollbackd.adapters.backup.backups import TargetBackups
from rollbackd.adapters.commands import CommandApplication
from rollbackd.adapters.postgres.archives import PostgresArchives
from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.adapters.probes import HttpProber
from rollbackd.adapters.prometheus import PrometheusReader
from rollbackd.adapters.rehearsal.rehearsals import TargetRehearsals
from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.adapters.worker.alembic import AlembicWorker
from rollbackd.app.clock import SystemClock
from rollbackd.app.configuration import SOCKET_NAME, Configuration
from rollbackd.app.report_files import ReportFiles
from rollbackd.console.report_page import report_page
from rollbackd.settings import Target
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

# Beside the store: the reports of runs that are over.
REPORTS = "reports"


@dataclass
class Parts:
    """Everything that was wired. The parts stay; `configuration` is the one in force, and a reload exchanges it."""

    configuration: Configuration
    store: SqliteStore
    clock: SystemClock
    happenings: Happenings
    guarded: Targets
    announcer: WebhookAnnouncer
    engine: Engine
    runs: Runs
    operations: Operations
    deciding: Deciding
    pipeline: Pipeline
    pulse: Pulse
    reporting: Reporting
    report_files: ReportFiles
    prober: HttpProber

    async def close(self) -> None:
        """Close what holds connections or children; the store last."""
        await self.report_files.finish()
        await self.guarded.close()
        await self.prober.close()
        await self.store.close()


def store_directory(configuration: Configuration) -> Path:
    """Where the store is; a relative folder is beside the configuration."""
    return configuration.folder / configuration.settings.store.directory


def socket_path(configuration: Configuration) -> Path:
    """Where the daemon listens for local people."""
    return store_directory(configuration) / SOCKET_NAME


def guard_all(configuration: Configuration, prober: HttpProber, store_id: str = "") -> dict[str, Guarded]:
    """Every target with its ports; nothing is connected yet."""
    wire = wiring(configuration, prober, store_id)
    return {target.name: wire(target) for target in configuration.settings.targets}


def wiring(configuration: Configuration, prober: HttpProber, store_id: str) -> Callable[[Target], Guarded]:
    """What makes a target's ports."""
    kept = store_directory(configuration) / "scripts"

    def wire(target: Target) -> Guarded:
        return _guard(target, store_id, SystemClock(), prober, kept)

    return wire


def compose(configuration: Configuration, store: SqliteStore, happenings: Happenings) -> Parts:
    """Wire everything. Nothing is started and nothing is asked yet."""
    settings = configuration.settings
    clock = SystemClock()
    prober = HttpProber()
    pulse = Pulse(time.monotonic)
    wired = guard_all(configuration, prober, store.store_id)
    guarded = Targets(wired.values(), lambda one: Planner(one, store, clock), happenings)
    planners = guarded.planners
    announcer = WebhookAnnouncer(settings.notify)
    engine = Engine(store, clock, guarded, happenings)
    runs = Runs(store, clock, engine, guarded, announcer, happenings)
    operations = Operations(store, clock, guarded, planners, runs, happenings)
    deciding = Deciding(configuration.matrix, store, clock, guarded, planners, runs, announcer, happenings)
    reporting = Reporting(store, clock, guarded, report_page)
    report_files = ReportFiles(reporting, store_directory(configuration) / REPORTS)
    happenings.listen(report_files.listen)
    pipeline = Pipeline(store, clock, guarded, deciding, operations, happenings, pulse)
    return Parts(
        configuration=configuration,
        store=store,
        clock=clock,
        happenings=happenings,
        guarded=guarded,
        announcer=announcer,
        engine=engine,
        runs=runs,
        operations=operations,
        deciding=deciding,
        pipeline=pipeline,
        pulse=pulse,
        reporting=reporting,
        report_files=report_files,
        prober=prober,
    )


def _database_key(url: URL) -> str:
    """One key for one database. Names for one host can't all be known; the lock in the database itself is the last word."""
    host = str(url.query.get("host", "")) or url.host or "localhost"
    here = host in ("localhost", "127.0.0.1", "::1")
    return f"{'localhost' if here else host.lower()}:{url.port or 5432}/{url.database}"


def _guard(target: Target, store_id: str, clock: SystemClock, prober: HttpProber, kept: Path) -> Guarded:
    url = make_url(target.database.url)
    return Guarded(
        settings=target,
        database_key=_database_key(url),
        database=PostgresReader(target),
        worker=AlembicWorker(target, kept),
        backups=TargetBackups(target, store_id, clock),
        rehearsals=TargetRehearsals(target, kept, store_id),
        archives=PostgresArchives(target),
        application=CommandApplication(target.deployment),
        prober=prober,
        metrics=PrometheusReader(target.prometheus) if target.prometheus and target.metrics else None,
    )
