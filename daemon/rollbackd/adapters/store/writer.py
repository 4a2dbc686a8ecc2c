"""The one writer: a thread that takes everything that waits, does it in one transaction and commits once.

A commit is an fsync. Sharing it is what lets many deliveries a second be durable on a slow disk.
"""

import asyncio
import itertools
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from rollbackd.errors import StoreUnavailableError

MOST_IN_ONE_COMMIT = 512
Work = Callable[[Connection], Any]
# Work for many items at once; one result for each item, in order.
WorkTogether = Callable[[Connection, list[Any]], list[Any]]
Waiting = tuple[WorkTogether, Any, "asyncio.Future[Any]"]
OnCommit = Callable[[float, int], None]


class Writer:
    """Runs work in order. Work must not keep state of its own: a batch that fails is rolled back and done one by one."""

    def __init__(self, engine: Engine, most_waiting: int, on_commit: OnCommit | None = None) -> None:
        self._engine = engine
        self.most_waiting = most_waiting
        self._on_commit = on_commit
        self._waiting: deque[Waiting] = deque()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._idle = True
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def waiting(self) -> int:
        """How much waits to be committed."""
        return len(self._waiting)

    async def do(self, work: Work) -> Any:
        """Do this work in a transaction; committed to disk when this returns.

        Raises:
            StoreUnavailableError: when too much waits, or the disk doesn't take it.
        """
        return await self.do_together(_alone, work)

    async def do_together(self, work: WorkTogether, item: Any) -> Any:
        """The same for work that takes all items that wait for it one after another at once; see `do`."""
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        if len(self._waiting) >= self.most_waiting:
            raise StoreUnavailableError(f"{self.most_waiting} records wait to be written already")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((work, item, future))
        if self._idle:
            self._idle = False
            self._wake.put(True)
        return await future

    async def close(self) -> None:
        """Finish what waits, then end the thread."""
        self._closed = True
        self._wake.put(False)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        with self._engine.connect() as connection:
            while self._wake.get():
                self._commit_all(connection)
                # Between the last look and this call more may have come; the loop's thread looks again.
                self._loop.call_soon_threadsafe(self._rest)
            self._commit_all(connection)

    def _commit_all(self, connection: Connection) -> None:
        while batch := self._take():
            began = time.monotonic()
            results = self._commit_together(connection, batch)
            self._loop.call_soon_threadsafe(self._resolve, batch, results, time.monotonic() - began)

    def _resolve(self, batch: list[Waiting], results: list[Any], seconds: float) -> None:
        unavailable = 0
        for (_, _, future), result in zip(batch, results, strict=True):
            unavailable += isinstance(result, StoreUnavailableError)
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        if self._on_commit is not None:
            self._on_commit(seconds, unavailable)

    def _rest(self) -> None:
        if self._waiting:
            self._wake.put(True)
        else:
            self._idle = True

    def _take(self) -> list[Waiting]:
        batch: list[Waiting] = []
        while self._waiting and len(batch) < MOST_IN_ONE_COMMIT:
            batch.append(self._waiting.popleft())
        return batch

    def _commit_together(self, connection: Connection, batch: list[Waiting]) -> list[Any]:
        try:
            return self._commit(connection, batch)
        except Exception:  # noqa: BLE001 - any fault: find whose it is by doing each alone
            return [self._commit_alone(connection, one) for one in batch]

    def _commit(self, connection: Connection, batch: list[Waiting]) -> list[Any]:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            results: list[Any] = []
            for work, group in itertools.groupby(batch, key=lambda waiting: waiting[0]):
                results += work(connection, [item for _, item, _ in group])
            connection.exec_driver_sql("COMMIT")
        except BaseException:
            self._roll_back(connection)
            raise
        return results

    def _commit_alone(self, connection: Connection, one: Waiting) -> Any:
        try:
            return self._commit(connection, [one])[0]
        except (OperationalError, sqlite3.OperationalError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            return StoreUnavailableError(f"the store can't be written: {reason}")
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            return error

    def _roll_back(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        if isinstance(driver, sqlite3.Connection) and driver.in_transaction:
            driver.execute("ROLLBACK")


def _alone(connection: Connection, items: list[Work]) -> list[Any]:
    return [work(connection) for work in items]
