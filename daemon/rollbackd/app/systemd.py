"""What we tell systemd, where it listens: sd_notify(3), and a watchdog that only a daemon at work feeds.

Elsewhere ($NOTIFY_SOCKET isn't set) nothing happens. Everything here is understood by systemd 252 and later.
"""

import asyncio
import os
import socket
import time
from collections.abc import Mapping

import structlog

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.errors import StoreUnavailableError
from rollbackd.workflow.pulse import Pulse

FEEDS_IN_TIME = 4
EXTEND_EVERY_S = 10.0
EXTEND_BY_S = 60.0
# The receiver is PID 1; if it doesn't take a datagram for so long, waiting longer would only stop us too.
SEND_WITHIN_S = 1.0
log = structlog.get_logger()


class Systemd:
    """The service manager that started us, if one did."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._status = ""
        meant_for = environment.get("WATCHDOG_PID", "")
        usec = environment.get("WATCHDOG_USEC", "") if meant_for in ("", str(os.getpid())) else ""
        # Seconds within which a watchdog wants to be fed; 0 where there is none.
        self.watchdog_s = int(usec) / 1e6 if usec.isdecimal() else 0.0

    def ready(self) -> None:
        """Everything listens; or what was to be reloaded is settled."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The configuration is being read anew; `ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Nothing new is taken."""
        self._tell("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent when it changes."""
        if text != self._status:
            self._status = text
            self._tell(f"STATUS={text}")

    def feed(self) -> None:
        """Keep the watchdog from ending us."""
        self._tell("WATCHDOG=1")

    async def extend_until(self, done: "asyncio.Task[None]", why: str) -> None:
        """Ask for more time than TimeoutStopSec, again and again, until this is done."""
        while not done.done():
            self.status(why)
            self._tell(f"EXTEND_TIMEOUT_USEC={int(EXTEND_BY_S * 1e6)}", "WATCHDOG=1")
            await asyncio.wait([done], timeout=EXTEND_EVERY_S)

    async def feed_while_at_work(self, pulse: Pulse, store: SqliteStore) -> None:
        """Feed the watchdog as long as every part is heard of in time and the store answers; until cancelled."""
        if not self.watchdog_s:
            return
        every_s = self.watchdog_s / FEEDS_IN_TIME
        while True:
            late = pulse.late()
            if not await _answers(store, every_s):
                late.append(f"the store didn't answer within {every_s:g} s")
            if late:
                log.error("watchdog_not_fed", because=late)
            else:
                self.feed()
            await asyncio.sleep(every_s)

    def _tell(self, *assignments: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
                notifier.settimeout(SEND_WITHIN_S)
                notifier.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            log.warning("systemd_not_told", error=str(error))


async def _answers(store: SqliteStore, within_s: float) -> bool:
    """A store that says that it can't be written has answered: a restart would not mend a full disk."""
    try:
        async with asyncio.timeout(within_s):
            await store.answers()
    except StoreUnavailableError:
        return True
    except TimeoutError:
        return False
    return True
