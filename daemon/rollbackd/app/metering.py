"""Metrics between store and server: their totals to disk, their gauges from the store, their text to whoever scrapes."""

import asyncio

import structlog

from rollbackd.adapters.metrics import Metrics
from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.app.composition import Parts
from rollbackd.errors import RollbackdError

BACKUPS_LOOKED_AT = 10
PROVED_FROM_LEVEL = 2
SAVED_WITHIN_S = 1.0
log = structlog.get_logger()


class Exposition:
    """Writes the metrics out, one scrape at a time and beside the event loop.

    What a scrape shows was saved right before: a total that was seen and lost in a crash would be smaller after the restart,
    and Prometheus would take it for a counter that began anew, and all of it for new events.
    """

    def __init__(self, metrics: Metrics, store: SqliteStore) -> None:
        self._metrics = metrics
        self._store = store
        self._saving = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._begun: set[asyncio.Task[None]] = set()

    async def text(self, accept: str) -> tuple[bytes, str]:
        """The exposition for this Accept header, and its content type. A store that is slow or down is waited for only shortly."""
        saving = asyncio.create_task(self.save())
        self._begun.add(saving)
        saving.add_done_callback(self._begun.discard)
        await asyncio.wait({saving}, timeout=SAVED_WITHIN_S)
        async with self._writing:
            return await asyncio.to_thread(self._metrics.text, accept)

    async def save(self) -> None:
        """Add what was counted since the last time to the store's totals; what can't be saved is kept for the next time."""
        async with self._saving:
            amounts = self._metrics.take_unsaved()
            if not amounts:
                return
            try:
                await self._store.add_totals(amounts)
            except RollbackdError as error:
                self._metrics.put_back(amounts)
                log.warning("totals_not_saved", error=str(error))


async def refresh(parts: Parts, metrics: Metrics) -> None:
    """Set the gauges that follow from what is on record."""
    store = parts.store
    pending, oldest = await store.pending_events()
    metrics.set_queues(store.waiting(), pending, oldest)
    metrics.set_runs(await store.unfinished_since())
    metrics.set_watched({d.target for d in await store.watched_deployments()})
    now = parts.clock.now()
    metrics.set_paused({pause.target for pause in await store.pauses() if pause.holds(now)})
    for name in metrics.take_stale_backups():
        known = await store.backups(name, BACKUPS_LOOKED_AT)
        proved = [b for b in known if b.level >= PROVED_FROM_LEVEL and b.removed_at is None]
        newest = proved[0] if proved else None
        metrics.set_backup(
            name,
            (newest.created_at.timestamp(), newest.size_bytes, newest.level) if newest is not None else None,
        )
