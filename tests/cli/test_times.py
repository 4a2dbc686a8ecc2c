"""Times and progress as commands show them."""

from datetime import UTC, datetime, timedelta

import pytest

from rollbackd.cli.times import ago, amount, clock, share
from rollbackd.core.wording import about, took

NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (9.4, "9 s"),
        (59.4, "59 s"),
        (192, "3 min"),
        (3840, "1 h"),
        (86400 * 2 + 7200, "2 d"),
    ],
)
def test_about_how_long_has_one_unit(seconds: float, text: str) -> None:
    """Where `took` has two."""
    assert about(seconds) == text
    assert took(192) == "3 min 12 s"


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2026-11-22T09:57:00Z", "3 min ago"),
        ("2026-11-22T09:57:00+00:00", "3 min ago"),
        ("2026-11-22T10:57:00+01:00", "3 min ago"),
        ("2026-11-22T09:59:59.5Z", "just now"),
        (None, ""),
    ],
)
def test_an_age_is_told_of_whatever_iso_time_a_document_has(moment: str | None, text: str) -> None:
    """As msgspec writes it, and as Python does."""
    assert ago(moment, NOW) == text


def test_a_time_of_day_is_in_utc_and_says_so() -> None:
    """Whatever zone it comes in."""
    assert clock("2026-11-22T11:00:05+01:00") == "10:00:05 UTC"
    assert clock(NOW + timedelta(seconds=5)) == "10:00:05 UTC"


@pytest.mark.parametrize(
    ("progress", "text", "part"),
    [
        ({"done": 1.2e9, "total": 3.4e9, "unit": "bytes"}, "1.2 GB of 3.4 GB", 1.2 / 3.4),
        ({"done": 40_000, "total": 65_000, "unit": "rows"}, "40,000 of 65,000 rows", 40 / 65),
        ({"done": 4_500_000, "total": 0, "unit": "bytes"}, "4.5 MB", None),
        # A dump may grow past what the database was thought to weigh.
        ({"done": 12, "total": 10, "unit": "rows"}, "12 of 10 rows", 1.0),
    ],
)
def test_progress_says_how_much_of_how_much(
    progress: dict[str, float], text: str, part: float | None
) -> None:
    """Without a total, what is done alone."""
    assert amount(progress) == text
    assert share(progress) == (pytest.approx(part) if part is not None else None)
