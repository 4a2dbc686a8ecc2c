"""A new configuration while everything goes on: read as a whole, judged as a whole, and brought into force at one moment.

The parts stay and share live values; there is no second set of them. Everything is read and proved first, beside the daemon's
work; where anything is wrong, nothing changes. What comes into force then does so without an await in between: hooks, matrix,
limits, logging and announcements at once, each target between two uses of it (`workflow/targets.py`).
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from rollbackd.app.composition import Parts, store_directory, wiring
from rollbackd.app.configuration import Configuration, LoadedHooks, load_configuration, load_parts_of
from rollbackd.app.logs import set_up_logs
from rollbackd.errors import ConfigurationError, StoreUnavailableError
from rollbackd.intake.connections import Limits
from rollbackd.intake.deliveries import Deliveries

LEAVING = (
    "is out of the configuration; it stays until what is under way on it is done and its deployment is over"
)
WAITING = "keeps its configuration until what is under way on it is done"
log = structlog.get_logger()


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload changed: paths of sections, and targets by name that change later, each with the reason."""

    changed: tuple[str, ...]
    waiting: dict[str, str] = {}


class Reloading:
    """Reloads, one at a time. `refused` says whether the configuration on disk was refused the last
    time, `hooks` are those in force."""

    def __init__(
        self, path: Path, parts: Parts, hooks: LoadedHooks, deliveries: Deliveries, limits: Limits
    ) -> None:
        self._path = path
        self._parts = parts
        self.hooks = hooks
        self._deliveries = deliveries
        self._limits = limits
        self._turn = asyncio.Lock()
        self.refused = False

    async def reload(self) -> Reloaded:
        """Read configuration, hooks, matrix and secrets anew, and bring them into force.

        Raises:
            ConfigurationError: with every problem; what was in force stays in force.
        """
        async with self._turn:
            reload_id = self._parts.clock.new_id("reload")
            try:
                configuration, hooks = await asyncio.to_thread(_read, self._path)
                _refuse_what_needs_a_restart(self._parts.configuration, configuration)
            except ConfigurationError as error:
                self.refused = True
                for problem in error.problems:
                    where, _, what = problem.partition(": ")
                    log.error("configuration_problem", reload=reload_id, path=where, problem=what)
                self._parts.happenings.tell(
                    "configuration_refused", reload=reload_id, problems=len(error.problems)
                )
                raise
            self.refused = False
            reloaded = self._bring_into_force(configuration, hooks)
            self._parts.happenings.tell(
                "configuration_reloaded",
                reload=reload_id,
                changed=list(reloaded.changed),
                waiting=list(reloaded.waiting),
            )
            try:
                # A target that has come back may have a deployment that nobody watches.
                await self._parts.pipeline.take_up()
            except StoreUnavailableError as error:
                log.warning("watches_not_taken_up", reload=reload_id, error=str(error))
            return reloaded

    def _bring_into_force(self, configuration: Configuration, hooks: LoadedHooks) -> Reloaded:
        """At one moment: nothing here waits for anything."""
        parts, settings = self._parts, configuration.settings
        changed = _changed_sections(parts.configuration, configuration, self.hooks, hooks)
        set_up_logs(settings.logging)
        self._deliveries.hooks = self.hooks = hooks
        self._limits.max_body_bytes = settings.server.max_body_bytes
        self._limits.max_connections = settings.server.max_connections
        parts.store.allow_waiting(settings.server.max_waiting_deliveries)
        parts.announcer.settings = settings.notify
        parts.deciding.matrix = configuration.matrix
        parts.configuration = configuration
        wire = wiring(configuration, parts.prober, parts.store.store_id)
        targets, waiting = parts.guarded.bring_in(settings.targets, wire)
        return Reloaded(
            changed=(*changed, *(f"targets.{name}" for name in targets)),
            waiting={name: LEAVING if parts.guarded.is_leaving(name) else WAITING for name in waiting},
        )


def _read(path: Path) -> tuple[Configuration, LoadedHooks]:
    configuration = load_configuration(path)
    return configuration, load_parts_of(configuration)


def _refuse_what_needs_a_restart(before: Configuration, after: Configuration) -> None:
    problems = []
    fixed: dict[str, Callable[[Configuration], object]] = {
        "server.listen": lambda c: c.settings.server.listen,
        "store.directory": store_directory,
    }
    for path, value_in in fixed.items():
        if value_in(before) != value_in(after):
            problems.append(
                f"{path}: is {value_in(before)}, and can't become {value_in(after)} while rollbackd runs: restart it, or"
                " put the old value back; until then nothing of the new configuration is in force"
            )
    if problems:
        raise ConfigurationError(problems)


def _changed_sections(
    before: Configuration, after: Configuration, hooks_before: LoadedHooks, hooks: LoadedHooks
) -> list[str]:
    """Paths of what differs, targets aside."""
    changed = [
        name
        for name in ("server", "store", "logging", "notify", "prometheus")
        if getattr(before.settings, name) != getattr(after.settings, name)
    ]
    if before.matrix != after.matrix:
        changed.append("matrix")
    for name in sorted({*hooks_before, *hooks}):
        old, new = hooks_before.get(name), hooks.get(name)
        # A hook is compared by its file, and its keys by what they are: a key that was rotated in place is a change.
        if old is None or new is None or (old[0].file, old[1]) != (new[0].file, new[1]):
            changed.append(f"hooks.{name}")
    return changed
