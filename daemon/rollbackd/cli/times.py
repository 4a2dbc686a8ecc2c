"""Times and progress as commands show them: ISO texts of documents in, the words of `core/wording.py` out."""

from datetime import UTC, datetime
from typing import Any

from rollbackd.core import wording


def utc_now() -> datetime:
    """The time, for ages."""
    return datetime.now(UTC)


def ago(moment: str | None, now: datetime) -> str:
    """How long ago an ISO time was: `3 min ago`; empty where there is none."""
    return wording.ago(datetime.fromisoformat(moment), now) if moment else ""


def seconds_since(moment: str, now: datetime) -> float:
    """Seconds from an ISO time until now; negative where it lies ahead."""
    return (now - datetime.fromisoformat(moment)).total_seconds()


def clock(moment: str | datetime) -> str:
    """The time of day, in UTC and saying so."""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return f"{at.astimezone(UTC):%H:%M:%S} UTC"


def share(progress: dict[str, Any]) -> float | None:
    """How much is done, from 0 to 1; None where nobody knows of how much."""
    return min(progress["done"] / progress["total"], 1.0) if progress["total"] > 0 else None


def amount(progress: dict[str, Any]) -> str:
    """How far a long act has come: `1.2 GB of 3.4 GB`, `40,000 of 65,000 rows`; without a total what is done alone."""
    if progress["unit"] == "bytes":
        total = f" of {wording.size(progress['total'])}" if progress["total"] > 0 else ""
        return f"{wording.size(progress['done'])}{total}"
    total = f" of {progress['total']:,.0f}" if progress["total"] > 0 else ""
    return f"{progress['done']:,.0f}{total} {progress['unit']}"
