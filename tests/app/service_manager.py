"""systemd's end of sd_notify(3): a datagram socket that the daemon tells things."""

import socket
import time
from pathlib import Path

PATIENCE_S = 30.0


class ServiceManager:
    """What was told, in order. `environment` is what systemd would set."""

    def __init__(self, folder: Path, watchdog_s: float = 0.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self.environment = {"NOTIFY_SOCKET": str(folder / "notify")}
        if watchdog_s:
            self.environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self.told: list[str] = []

    def close(self) -> None:
        self._socket.close()

    def hear(self, within_s: float) -> bool:
        """Wait for the next datagram; False when none came in time."""
        self._socket.settimeout(within_s)
        try:
            self.told += self._socket.recv(65_536).decode().splitlines()
        except (TimeoutError, BlockingIOError):
            return False
        return True

    def hear_until(self, wanted: str) -> list[str]:
        """Everything that was told up to and with an assignment that begins so; forgets it."""
        until = time.monotonic() + PATIENCE_S
        while not any(line.startswith(wanted) for line in self.told):
            assert time.monotonic() < until, f"no {wanted} among {self.told}"
            self.hear(0.2)
        at = next(i for i, line in enumerate(self.told) if line.startswith(wanted))
        heard, self.told = self.told[: at + 1], self.told[at + 1 :]
        return heard
