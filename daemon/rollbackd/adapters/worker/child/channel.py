"""The way out of the worker: JSON lines to the parent, and what user code prints."""

from __future__ import annotations

import io
import json
import os
import threading
from typing import Any


class Channel:
    """JSON lines to the parent. A parent that died is ignored: what was begun is finished, and the database tells."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        data = (json.dumps(message, default=str) + "\n").encode()
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BrokenPipeError:
                    return


class Words(io.RawIOBase):
    """What user code prints, on its way to stderr; a parent that died must not fail a migration that prints."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data: Any) -> int:
        left = bytes(data)
        try:
            while left:
                left = left[os.write(2, left) :]
        except OSError:
            pass
        return len(data)
