"""A command in a pseudo-terminal of a known size: what it writes, as it comes, and what it leaves on the screen."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

from tests.end_to_end.ground import PATIENCE_S, environment

# What rich writes before it draws a frame over the last one.
REDRAWN = re.compile(r"\r?\x1b\[2K(?:\x1b\[1A\x1b\[2K)+")
SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")
COLOURS = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;\d[;\d]*|9[0-7])(?:;\d+)*m")


class Terminal:
    """One command of ours, started; read until it ends, or until something is seen."""

    def __init__(self, config: Path, *argv: str, columns: int = 80, rows: int = 50, **extra: str) -> None:
        command = [sys.executable, "-m", "rollbackd", "--config", str(config), *argv]
        env = {**environment(), "TERM": "xterm-256color", **extra}
        if "NO_COLOR" not in extra:
            env.pop("NO_COLOR", None)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            # Whoever runs the tests in the background ignores Ctrl-C; this terminal's person doesn't.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(command[0], command, env)
        self._ended = False
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.raw = ""
        self._bytes = b""

    def until(self, seen: str) -> None:
        """Read until this was written."""
        end = time.monotonic() + PATIENCE_S
        while seen not in self.raw:
            assert time.monotonic() < end, f"{seen!r} isn't written: {self.raw[-2000:]}"
            assert self._read(), f"it ended before it wrote {seen!r}: {self.raw[-2000:]}"

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal sends it."""
        os.write(self._terminal, b"\x03")

    def end(self) -> int:
        """Read what is left; the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, f"it doesn't end: {self.raw[-2000:]}"
        return self._reap()

    def kill(self) -> None:
        """End it, if it hasn't ended; for tests that fail."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> int:
        self._ended = True
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def frames(self) -> int:
        """How often something was drawn over what was there."""
        return len(REDRAWN.findall(self.raw))

    def left(self) -> list[str]:
        """The lines of the last frame, and what came after it."""
        return SEQUENCES.sub("", REDRAWN.split(self.raw)[-1]).split("\n")

    def colours(self) -> list[str]:
        """Every sequence that sets a colour."""
        return COLOURS.findall(self.raw)

    def _read(self) -> bool:
        if not select.select([self._terminal], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._terminal, 65536)
        except OSError:
            # How Linux tells that the other side of a pseudo-terminal is closed.
            return False
        self._bytes += data
        self.raw = self._bytes.decode(errors="ignore")
        return bool(data)
