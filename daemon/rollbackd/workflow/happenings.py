"""What happens inside, told once: the same event goes to the log and to whoever listens (metrics, live views)."""

from collections.abc import Callable

import structlog

Listener = Callable[[str, dict[str, object]], None]
log = structlog.get_logger()
QUIET = frozenset(
    {
        "measurement_taken", "signal_noted", "step_progressed", "backup_progressed", "statement_executed", "event_settled",
    }
)  # fmt: skip


class Happenings:
    """Tells listeners, in the order in which they asked to be told."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Be told everything from now on. A listener must neither block nor raise."""
        self._listeners.append(listener)

    def tell(self, name: str, **fields: object) -> None:
        """Tell that something happened; the name is in the past tense."""
        (log.debug if name in QUIET else log.info)(name, **fields)
        for listener in self._listeners:
            listener(name, fields)
