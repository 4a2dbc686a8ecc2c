"""Quantities as people read them: ages, durations, sizes. One way for terminal, pages and reports."""

from datetime import datetime


def took(seconds: float) -> str:
    """A duration: `80 ms`, `4.2 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def about(seconds: float) -> str:
    """A duration in its largest unit: `0 s`, `40 s`, `3 min`."""
    words = took(seconds if seconds >= 10 else round(seconds)) if seconds >= 0.5 else "0 s"
    return " ".join(words.replace(".0 s", " s").split(" ")[:2])


def ago(at: datetime, now: datetime) -> str:
    """How long ago something was, in its largest unit: `just now`, `40 s ago`, `3 min ago`; `in 5 min` for what comes."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    return f"{about(seconds)} ago" if seconds > 0 else f"in {about(-seconds)}"


def counted(number: int, thing: str) -> str:
    """How many of a thing there are: `1 target`, `1,000 targets`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def size(size_bytes: float) -> str:
    """Bytes in units of 1,000: `512 bytes`, `1.4 MB`."""
    amount, units = float(size_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "bytes" else f"{amount:.1f} {units[0]}"


def moment(at: datetime) -> str:
    """A time in full: `2026-11-22 10:00:00 UTC`."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
