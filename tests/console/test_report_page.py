"""The report as a page: whole by itself, whatever others wrote is text, and the picture says what the words say."""

import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from rollbackd.console.drawing import draw_timeline
from rollbackd.console.report_page import report_page
from rollbackd.core.checks import Finding, Outcome
from rollbackd.core.evidence import Level, Limit, Measurement, Quality, Source
from rollbackd.core.records import TableCount
from rollbackd.core.report import (
    NextStep,
    Report,
    ReportArchive,
    ReportBackup,
    ReportRehearsal,
    ReportRevision,
    ReportStep,
)
from rollbackd.core.timeline import Moment, Reading, Series, Span, Timeline, series_of
from rollbackd.core.wording import ago, size, took

BEGAN = datetime(2026, 11, 22, 10, tzinfo=UTC)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'></pre></style>&amp;{{ 7*7 }}"


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def a_report(text: str = "words", **changed: Any) -> Report:
    """A report in which every text is this one."""
    step = ReportStep(
        number=0,
        text=text,
        kind="downgrade",
        outcome="done",
        began_at=at(0),
        ended_at=at(2),
        attempts=2,
        note=text,
    )
    report = Report(
        run=text, target=text, service=text, environment=text, status="succeeded", statement=text, written_at=at(99),
        date=at(0), reason=text, executed_by=text, approved_by=(text,), writes_stopped_by=text, incident=text,
        method="stop_writes", from_heads=(text,), to_heads=(text,), release_from=text, release_to=text,
        revisions=(ReportRevision(id=text, title=text, effects=(text,), statements=(text,), unread=text, verdict="will_fail", why=(text,)),),
        counts_before=(TableCount(table=text, rows=1200, exact=True),), counts_after=(),
        backups=(ReportBackup(id=text, purpose="rollback", location=text, level=4, size_bytes=5_000_000, rows=3, commands=(text,)),),
        steps=(step,), log=(text,), findings=(Finding(check=text, outcome=Outcome.WARNED, text=text, details=(text,)),),
        loses=(text,), rehearsal=ReportRehearsal(depth="full", passed=True, text=text, difference=(text,)),
        archives=(ReportArchive(kind="column", table=text, column=text, place=text, rows=7, revision=text),),
        archives_unreadable="", restore_script=text, price=text, decision={"row": text, "why": text, "errors": text},
        next_steps=(NextStep(text=text, done=True), NextStep(text=text, done=False)),
        timeline=Timeline(
            moments=(Moment(at=at(0), kind="deploy", text=text), Moment(at=at(5), kind="decision", text=text)),
            spans=(Span(began_at=at(1), ended_at=None, kind="signal", text=text), Span(began_at=at(2), ended_at=at(9), kind="step", text=text, outcome="done")),
            series=(Series(name=text, readings=(Reading(at=at(1), healthy=True, value=1.0), Reading(at=at(2), healthy=False, value=9.0)), critical=5.0),),
        ),
    )  # fmt: skip
    return msgspec.structs.replace(report, **changed)


class Elements(HTMLParser):
    """Every element with its attributes, and all that is only text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_whatever_others_wrote_is_text() -> None:
    seen = Elements(report_page(a_report(EVIL)))
    tags = {tag for tag, _ in seen.found}
    assert not tags & {"script", "img", "iframe", "object", "form"}
    assert not [name for _, attributes in seen.found for name in attributes if name.startswith("on")]
    assert seen.text.count(EVIL) > 30


def test_nothing_is_fetched_and_nothing_runs() -> None:
    page = report_page(a_report())
    assert re.findall(r"(?:https?:)?//[\w.]+", page) == []
    links = [a for _, attributes in Elements(page).found for a in ("href", "src") if attributes.get(a)]
    assert links == ["href"], "the empty icon alone"
    assert "default-src 'none'" in page


def test_it_says_what_the_markdown_says() -> None:
    text = " ".join(Elements(report_page(a_report())).text.split())
    for said in ("Rolled back and validated: words, words → words", "1,200", "not counted", "not yet", "L4", "5.0 MB",
                 "rollbackd restore words --dry-run", "(2 attempts)", "Done: words", "will fail"):  # fmt: skip
        assert said in text, said


@pytest.mark.parametrize("status", ["held", "awaiting_approval", "failed", "running", "denied"])
def test_a_run_that_did_nothing_yet_has_a_page_too(status: str) -> None:
    page = report_page(
        a_report(status=status, steps=(), findings=(), backups=(), archives=(), revisions=(), log=(), loses=(), decision={},
                 counts_before=(), timeline=Timeline())
    )  # fmt: skip
    assert "<svg" not in page
    assert "No backup was taken in this run." in page


# -- the picture ------------------------------------------------------------------------------------------------------------


def bars(picture: str) -> list[tuple[str, float, float]]:
    """Each bar's style, where it begins and ends."""
    found = re.findall(r'<rect class="([\w -]+)" x="([\d.]+)" y="\d+" width="([\d.]+)"', picture)
    return [(style, float(x), float(x) + float(width)) for style, x, width in found]


def test_bars_stand_in_time_one_after_another_and_what_goes_on_reaches_now() -> None:
    timeline = Timeline(
        spans=(
            Span(began_at=at(0), ended_at=at(10), kind="waiting", text="waiting for an approval"),
            Span(began_at=at(10), ended_at=at(20), kind="step", text="back up", outcome="done"),
            Span(began_at=at(20), ended_at=None, kind="step", text="downgrade", outcome="under way"),
        )
    )
    waiting, done, going = bars(draw_timeline(timeline, at(40), "the run"))
    assert (waiting[0], done[0], going[0]) == ("waiting", "step done", "step under-way")
    assert waiting[2] == pytest.approx(done[1], abs=0.2)
    assert going[2] - going[1] == pytest.approx(2 * (done[2] - done[1]), abs=0.2)


def test_numbers_that_are_held_against_one_make_a_line_and_others_dots() -> None:
    readings = (Reading(at=at(0), healthy=True, value=1.0), Reading(at=at(9), healthy=False, value=8.0))
    judged = draw_timeline(
        Timeline(series=(Series(name="p95", readings=readings, critical=5.0),)), at(9), "x"
    )
    assert "<polyline" in judged
    assert "critical: 5" in judged
    dots = draw_timeline(Timeline(series=(Series(name="health", readings=readings),)), at(9), "x")
    assert "<polyline" not in dots
    assert dots.count('class="good"') == dots.count('class="bad"') == 1


def test_an_empty_timeline_draws_nothing() -> None:
    assert draw_timeline(Timeline(), at(0), "x") == ""


def test_one_moment_is_drawn_though_no_time_passes() -> None:
    assert "<path" in draw_timeline(
        Timeline(moments=(Moment(at=at(0), kind="word", text="ann approved"),)), at(0), "x"
    )


def test_readings_are_told_apart_by_probe() -> None:
    taken = [
        Measurement(name=p, at=at(n), quality=Quality.OK, healthy=n > 0) for p in ("a", "b") for n in range(3)
    ]
    assert [(s.name, len(s.readings)) for s in series_of(tuple(taken))] == [("a", 3), ("b", 3)]


# -- words ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.08, "80 ms"), (4.24, "4.2 s"), (42, "42 s"), (60, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (90_000, "1 d 1 h")],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert took(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "just now"),
        (1.2, "1 s ago"),
        (59.7, "1 min ago"),
        (200, "3 min ago"),
        (8000, "2 h ago"),
        (-300, "in 5 min"),
    ],
)
def test_ages_are_in_their_largest_unit(seconds: float, words: str) -> None:
    assert ago(BEGAN, at(seconds)) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1400, "1.4 kB"), (5e6, "5.0 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes(amount: float, words: str) -> None:
    assert size(amount) == words


def test_a_metric_is_held_against_its_limits_and_a_probe_against_nothing() -> None:
    """The newest limits: those that are multiples of the value before the deploy aren't known before it is."""
    limits = (Limit(level=Level.DEGRADED, value=1.5), Limit(level=Level.CRITICAL, value=3.0))
    values = [
        (0.5, None, ()),
        (1.0, Level.NORMAL, limits),
        (2.0, Level.DEGRADED, limits),
        (4.0, Level.CRITICAL, limits),
    ]
    taken = [
        Measurement(
            name="p95", at=at(n), quality=Quality.OK, source=Source.PROMETHEUS, value=value, level=level, limits=given,
            before=1.0 if given else None,
        )
        for n, (value, level, given) in enumerate(values)
    ]  # fmt: skip
    (series,) = series_of(tuple(taken))
    assert (series.degraded, series.critical, series.baseline) == (1.5, 3.0, 1.0)
    assert [reading.healthy for reading in series.readings] == [None, True, False, False]
    assert series.is_drawn
    drawn = draw_timeline(Timeline(series=(series,)), at(9), "x")
    assert "<title>critical: 3</title>" in drawn
