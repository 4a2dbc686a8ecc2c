"""Whether the parts that everything hangs on still go on: each says when it will be heard of again.

Whoever feeds a watchdog asks `late` first. A part that is stuck can't make a new promise, whatever it is stuck in; a timer
that feeds by itself would go on.
"""

from collections.abc import Callable


class Pulse:
    """Promises by part. `monotonic` tells the time in seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._due: dict[str, float] = {}

    def promise(self, part: str, within_s: float) -> None:
        """The part goes on, and will say so again within this time."""
        self._due[part] = self._monotonic() + within_s

    def late(self) -> list[str]:
        """A sentence for each part that broke its promise."""
        now = self._monotonic()
        return [
            f"the {part} should have been heard of {now - due:.0f} s ago"
            for part, due in self._due.items()
            if due < now
        ]
