"""The report as one HTML file: nothing is fetched, nothing runs, and it prints."""

from rollbackd.console.drawing import draw_timeline
from rollbackd.console.rendering import render
from rollbackd.core.investigation import investigation_lines
from rollbackd.core.report import Report, verdict_line
from rollbackd.core.timeline import Span


def report_page(report: Report) -> str:
    """The whole report as one self-contained page."""
    now, timeline = report.written_at, report.timeline
    return render(
        "report.html",
        report=report,
        verdict=verdict_line(report),
        investigation=[line for newest in report.investigations[-1:] for line in investigation_lines(newest)],
        after={count.table: count for count in report.counts_after},
        told=sorted(
            [*timeline.moments, *(span for span in timeline.spans if span.kind in ("signal", "waiting"))],
            key=lambda one: one.began_at if isinstance(one, Span) else one.at,
        ),
        whole=draw_timeline(timeline, now, "From the deploy to the end of the run"),
        steps=draw_timeline(timeline.steps(), now, "The run, step by step"),
    )
