"""The daemon: starts the parts in order, keeps house, and stops them in order."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog

from rollbackd import __version__
from rollbackd.adapters.metrics import Metrics
from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.adapters.worker.alembic import prune_kept
from rollbackd.app.composition import Parts, compose, socket_path, store_directory
from rollbackd.app.configuration import Configuration, LoadedHooks, load_configuration, load_parts_of
from rollbackd.app.logs import set_up_logs
from rollbackd.app.metering import Exposition, refresh
from rollbackd.console.pages import Pages
from rollbackd.console.routes import Console
from rollbackd.errors import RollbackdError
from rollbackd.intake.api import Api
from rollbackd.intake.connections import read_body
from rollbackd.intake.deliveries import Deliveries
from rollbackd.intake.identity import identify
from rollbackd.intake.server import HttpServer
from rollbackd.workflow.callers import Sessions
from rollbackd.workflow.documenting import document_state
from rollbackd.workflow.happenings import Happenings, Listener
from rollbackd.workflow.retention import prune_archives

KEEP_HOUSE_EVERY_S = 5.0
PRUNE_EVERY_S = 3600.0
DOCUMENT_AT_ONCE = 4
# Scripts of releases that are kept: of each target's newest deployments, and as many more altogether.
KEPT_RELEASES = 10
MOST_KEPT_SCRIPTS = 200
log = structlog.get_logger()


async def serve(
    path: Path, *, listener: Listener | None = None, on_ready: Callable[[int], None] | None = None
) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    Args:
        listener: told everything that happens, before the metrics are.
        on_ready: called with the TCP port once everything listens.

    Raises:
        ConfigurationError: before anything is started, with every problem.
        RefusedError: when the store or the address is taken.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    configuration = load_configuration(path)
    hooks = load_parts_of(configuration)
    settings = configuration.settings
    set_up_logs(settings.logging)
    rows = {row.name: str(row.action) for row in configuration.matrix.rows}
    metrics = Metrics(settings.targets, tuple(hooks), rows)
    store = await SqliteStore.open_writing(
        store_directory(configuration),
        most_waiting=settings.server.max_waiting_deliveries,
        on_commit=metrics.commit_ended,
    )
    happenings = Happenings()
    if listener is not None:
        happenings.listen(listener)
    metrics.restore(await store.totals())
    exposition = Exposition(metrics, store)
    happenings.listen(metrics.listen)
    parts = compose(configuration, store, happenings)
    server, console = _listening(configuration, parts, hooks, exposition, stopping)
    tasks: list[asyncio.Task[None]] = []
    try:
        await parts.engine.recover()
        await parts.runs.recover()
        tasks = [
            asyncio.create_task(parts.pipeline.run(), name="pipeline"),
            asyncio.create_task(_keep_house(parts, metrics, exposition), name="house"),
            asyncio.create_task(_document_all(parts), name="documenting"),
        ]
        await server.start()
        log.info(
            "daemon_started",
            version=__version__,
            port=server.port,
            targets=len(settings.targets),
            pid=os.getpid(),
        )
        notify_systemd("READY=1")
        if on_ready is not None:
            on_ready(server.port)
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait([stopped, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        stopping.set()
        log.info("daemon_stopping")
        notify_systemd("STOPPING=1")
        console.close()
        await server.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await parts.pipeline.stop()
        await parts.engine.stop()
        await exposition.save()
        await parts.close()
        log.info("daemon_stopped")


def _listening(
    configuration: Configuration,
    parts: Parts,
    hooks: LoadedHooks,
    exposition: Exposition,
    stopping: asyncio.Event,
) -> tuple[HttpServer, Console]:
    """What the outside talks to: hooks, API and console behind one server."""
    settings, store, clock = configuration.settings, parts.store, parts.clock
    deliveries = Deliveries(
        hooks, store, clock, parts.happenings, parts.pipeline.wake, settings.server.max_body_bytes
    )
    sessions = Sessions(store, clock)
    api = Api(settings, store, parts.operations, parts.reporting, parts.pipeline, clock, sessions)
    console = Console(
        Pages(settings, store, parts.operations, parts.reporting, clock),
        parts.operations,
        parts.reporting,
        sessions,
        lambda request: identify(request, store, sessions),
        read_body,
    )
    server = HttpServer(
        settings.server,
        deliveries,
        [*api.routes(), *console.routes()],
        exposition.text,
        partial(_problems, store, stopping),
        socket_path(configuration),
    )
    return server, console


def notify_systemd(state: str) -> None:
    """Tell systemd how we are, where it listens (sd_notify(3)); elsewhere nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        notifier.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


async def _problems(store: SqliteStore, stopping: asyncio.Event) -> list[str]:
    """Why it isn't ready."""
    if stopping.is_set():
        return ["stopping"]
    try:
        await store.pauses()
    except RollbackdError as error:
        return [str(error)]
    return []


async def _document_all(parts: Parts) -> None:
    """Document every target once, and sweep what a crash left, a few at a time."""
    turns = asyncio.Semaphore(DOCUMENT_AT_ONCE)

    async def one(name: str) -> None:
        guarded = parts.guarded[name]
        async with turns:
            try:
                swept = await guarded.backups.sweep()
                if swept:
                    log.info("leftovers_swept", target=name, names=swept)
                await document_state(guarded, parts.store, parts.clock)
            except RollbackdError as error:
                log.warning("documenting_failed", target=name, error=str(error))
            finally:
                watched = any(d.target == name for d in await parts.store.watched_deployments())
                if not watched:
                    await guarded.database.close()

    await asyncio.gather(*(one(name) for name in parts.guarded))


async def _keep_house(parts: Parts, metrics: Metrics, exposition: Exposition) -> None:
    """Totals to disk, gauges, expired approvals, retention."""
    pruned_at = float("-inf")
    loop = asyncio.get_running_loop()
    while True:
        try:
            await parts.runs.expire()
            await parts.runs.take_up()
            await refresh(parts, metrics)
            await exposition.save()
            if loop.time() - pruned_at >= PRUNE_EVERY_S:
                pruned_at = loop.time()
                await _prune(parts)
        except RollbackdError as error:
            log.warning("housekeeping_failed", error=str(error))
        except Exception:
            log.error("housekeeping_faulted", exc_info=True)
        await asyncio.sleep(KEEP_HOUSE_EVERY_S)


async def _prune(parts: Parts) -> None:
    now, settings = parts.clock.now(), parts.configuration.settings.store
    pruned = await parts.store.prune(
        now - timedelta(seconds=settings.keep_deliveries), now - timedelta(seconds=settings.keep_measurements)
    )
    removed = await parts.operations.prune_backups()
    dropped = await prune_archives(parts.store, parts.clock, parts.guarded)
    in_use = {run.plan.scripts_sha256 for run in await parts.store.unfinished_runs()}
    in_use |= {d.scripts_sha256 for d in await parts.store.watched_deployments()}
    for name in parts.guarded:
        in_use |= {d.scripts_sha256 for d in await parts.store.deployments(name, KEPT_RELEASES)}
    scripts = await asyncio.to_thread(
        prune_kept, store_directory(parts.configuration) / "scripts", in_use, MOST_KEPT_SCRIPTS
    )
    archives = sum(len(gone) for gone in dropped.values())
    log.info("pruned", backups=len(removed), archives=archives, scripts=len(scripts), **pruned)
