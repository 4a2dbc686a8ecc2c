"""The real clock: the system's time, and ids that sort by it and that a person can read out."""

import secrets
from datetime import UTC, datetime


class SystemClock:
    """Fulfils `ports.Clock`."""

    def now(self) -> datetime:
        """The time, aware, in UTC."""
        return datetime.now(UTC)

    def new_id(self, prefix: str) -> str:
        """Such as `run-20261122T221503-9f3c21`: when, and enough chance that two never meet."""
        return f"{prefix}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
