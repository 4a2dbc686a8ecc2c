"""The daemon: starts the parts in order, keeps house, reloads when it is told to, and stops the parts in order."""

import asyncio
import faulthandler
import os
import signal
from collections.abc import Callable
from datetime import timedelta
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
from rollbackd.app.reloading import Reloaded, Reloading
from rollbackd.app.systemd import Systemd
from rollbackd.console.pages import Pages
from rollbackd.console.routes import Console
from rollbackd.errors import ConfigurationError, RollbackdError
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
# How late the house may be before the watchdog isn't fed any more: it only reads and writes the store.
HOUSE_SLACK_S = 60.0
PRUNE_EVERY_S = 3600.0
DOCUMENT_AT_ONCE = 4
# Scripts of releases that are kept: of each target's newest deployments, and as many more altogether.
KEPT_RELEASES = 10
MOST_KEPT_SCRIPTS = 200
log = structlog.get_logger()


async def serve(
    path: Path, *, listener: Listener | None = None, on_ready: Callable[[int], None] | None = None
) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration anew.

    Args:
        listener: told everything that happens, before the metrics are.
        on_ready: called with the TCP port once everything listens.

    Raises:
        ConfigurationError: before anything is started, with every problem.
        RefusedError: when the store or the address is taken.
    """
    # A watchdog ends a stuck daemon with SIGABRT: where each thread stood is then in the log.
    faulthandler.enable(file=2)
    stopping, hung_up = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    configuration = load_configuration(path)
    hooks = load_parts_of(configuration)
    settings = configuration.settings
    set_up_logs(settings.logging)
    metrics = Metrics(settings.targets, tuple(hooks), _rows(configuration))
    store = await SqliteStore.open_writing(
        store_directory(configuration),
        most_waiting=settings.server.max_waiting_deliveries,
        on_commit=metrics.commit_ended,
    )
    happenings = Happenings()
    if listener is not None:
        happenings.listen(listener)
    metrics.restore(await store.totals())
    happenings.listen(metrics.listen)
    running = Running(path, configuration, hooks, store, metrics, happenings, stopping)
    try:
        await running.start(hung_up)
        if on_ready is not None:
            on_ready(running.server.port)
        await running.until_stopped()
    finally:
        await running.stop()


class Running:
    """A daemon of composed parts: what it does from its start to its end."""

    def __init__(
        self,
        path: Path,
        configuration: Configuration,
        hooks: LoadedHooks,
        store: SqliteStore,
        metrics: Metrics,
        happenings: Happenings,
        stopping: asyncio.Event,
    ) -> None:
        self._stopping = stopping
        self._metrics = metrics
        self._exposition = Exposition(metrics, store)
        self._systemd = Systemd(os.environ)
        self._tasks: list[asyncio.Task[None]] = []
        self._parts = parts = compose(configuration, store, happenings)
        self._documenting = Documenting(parts)
        happenings.listen(self._documenting.listen)
        deliveries = Deliveries(hooks, store, parts.clock, happenings, parts.pipeline.wake)
        sessions = Sessions(store, parts.clock)
        api = Api(
            parts.guarded,
            store,
            parts.operations,
            parts.reporting,
            parts.pipeline,
            parts.clock,
            sessions,
            self.reload,
        )
        self._console = Console(
            Pages(parts.guarded, store, parts.operations, parts.reporting, parts.clock),
            parts.operations,
            parts.reporting,
            sessions,
            lambda request: identify(request, store, sessions),
            read_body,
        )
        self.server = HttpServer(
            configuration.settings.server,
            deliveries,
            [*api.routes(), *self._console.routes()],
            self._exposition.text,
            self._problems,
            socket_path(configuration),
        )
        self._reloading = Reloading(path, parts, hooks, deliveries, self.server.limits)

    async def start(self, hung_up: asyncio.Event) -> None:
        """Go on with what was left, then listen."""
        parts = self._parts
        await parts.engine.recover()
        await parts.runs.recover()
        work = {
            "pipeline": parts.pipeline.run(),
            "house": _keep_house(parts, self._metrics, self._exposition, self._systemd, self._reloading),
            "pruning": _prune_hourly(parts),
            "watchdog": self._systemd.feed_while_at_work(parts.pulse, parts.store),
        }
        self._tasks = [asyncio.create_task(doing, name=name) for name, doing in work.items()]
        self._documenting.begin(list(parts.guarded), sweep=True)
        await self.server.start()
        self._tasks.append(asyncio.create_task(self._reload_when_told(hung_up), name="reloading"))
        log.info(
            "daemon_started",
            version=__version__,
            port=self.server.port,
            targets=len(parts.guarded),
            pid=os.getpid(),
        )
        self._systemd.ready()

    async def until_stopped(self) -> None:
        """Return when it is told to stop; a pipeline that died raises why."""
        stopped = asyncio.create_task(self._stopping.wait())
        pipeline = self._tasks[0]
        await asyncio.wait([stopped, pipeline], return_when=asyncio.FIRST_COMPLETED)
        if pipeline.done():
            pipeline.result()

    async def stop(self) -> None:
        """Take nothing more, finish what must not be cut, and close everything; the store last."""
        parts, systemd = self._parts, self._systemd
        self._stopping.set()
        log.info("daemon_stopping")
        systemd.stopping()
        self._console.close()
        await self.server.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._documenting.stop()
        await parts.pipeline.stop()
        # A step that changes something is never cut: more time is asked for as long as it takes; it has a deadline of its own.
        await systemd.extend_until(
            asyncio.create_task(parts.engine.stop()), "stopping: the step that is under way is finished first"
        )
        await self._exposition.save()
        await parts.close()
        log.info("daemon_stopped")

    async def reload(self) -> Reloaded:
        """Bring the configuration on disk into force; see `Reloading`."""
        self._systemd.reloading()
        try:
            reloaded = await self._reloading.reload()
            configuration = self._parts.configuration
            self._metrics.expect(
                configuration.settings.targets, tuple(self._reloading.hooks), _rows(configuration)
            )
            return reloaded
        finally:
            self._systemd.ready()

    async def _reload_when_told(self, hung_up: asyncio.Event) -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            try:
                await self.reload()
            except ConfigurationError:
                # Every problem is in the log, and what was in force still is.
                continue
            except Exception:
                log.error("reload_faulted", exc_info=True)

    async def _problems(self) -> list[str]:
        """Why it isn't ready."""
        if self._stopping.is_set():
            return ["stopping"]
        try:
            await self._parts.store.pauses()
        except RollbackdError as error:
            return [str(error)]
        return self._parts.pulse.late()


def _rows(configuration: Configuration) -> dict[str, str]:
    """The matrix's rows, each with its action."""
    return {row.name: str(row.action) for row in configuration.matrix.rows}


class Documenting:
    """Documents targets, a few at a time: all at the start, later those that are configured anew."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._turns = asyncio.Semaphore(DOCUMENT_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, names: list[str], *, sweep: bool = False) -> None:
        """Begin with these, in the background. What a crash left is swept at the start alone: later, it may be in use."""
        for name in names:
            task = asyncio.create_task(self._document(name, sweep=sweep), name=f"documenting {name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def listen(self, name: str, fields: dict[str, object]) -> None:
        """Hear of targets that were added or changed."""
        if name in ("target_added", "target_changed"):
            self.begin([str(fields["target"])])

    async def stop(self) -> None:
        """Cut what is under way; it only reads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _document(self, name: str, *, sweep: bool) -> None:
        parts = self._parts
        async with self._turns:
            if name not in parts.guarded:
                return
            with parts.guarded.using(name) as guarded:
                try:
                    if sweep and (swept := await guarded.backups.sweep()):
                        log.info("leftovers_swept", target=name, names=swept)
                    await document_state(guarded, parts.store, parts.clock)
                except RollbackdError as error:
                    log.warning("documenting_failed", target=name, error=str(error))
                finally:
                    watched = any(d.target == name for d in await parts.store.watched_deployments())
                    if not watched:
                        await guarded.database.close()


async def _keep_house(
    parts: Parts, metrics: Metrics, exposition: Exposition, systemd: Systemd, reloading: Reloading
) -> None:
    """Totals to disk, gauges, expired approvals, what systemd shows."""
    while True:
        parts.pulse.promise("house", KEEP_HOUSE_EVERY_S + HOUSE_SLACK_S)
        try:
            await parts.runs.expire()
            await parts.runs.take_up()
            await refresh(parts, metrics)
            await exposition.save()
            unfinished = len(await parts.store.unfinished_runs())
            refused = "; the configuration on disk was refused, see the log" if reloading.refused else ""
            systemd.status(
                f"{len(parts.guarded)} targets, {parts.pipeline.watched()} deployments watched, {unfinished} runs unfinished{refused}"
            )
        except RollbackdError as error:
            log.warning("housekeeping_failed", error=str(error))
        except Exception:
            log.error("housekeeping_faulted", exc_info=True)
        await asyncio.sleep(KEEP_HOUSE_EVERY_S)


async def _prune_hourly(parts: Parts) -> None:
    """Retention, apart from the house: a target that is slow to answer keeps nothing else waiting."""
    while True:
        try:
            await _prune(parts)
        except RollbackdError as error:
            log.warning("pruning_failed", error=str(error))
        except Exception:
            log.error("pruning_faulted", exc_info=True)
        await asyncio.sleep(PRUNE_EVERY_S)


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
