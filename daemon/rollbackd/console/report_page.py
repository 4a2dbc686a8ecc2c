"""The report as one HTML file: nothing is fetched, nothing runs, and it prints."""

from rollbackd.console.drawing import draw_timeline
from rollbackd.console.rendering import render
from rollbackd.core.investigation import investigation_lines
from rollbackd.core.report import Report, verdict_line


def report_page(report: Report) -> str:
    """The whole report as one self-contained page."""
    now = report.written_at
    return render(
        "report.html",
        report=report,
        verdict=verdict_line(report),
        investigation=[line for newest in report.investigations[-1:] for line in investigation_lines(newest)],
        after={count.table: count for count in report.counts_after},
        whole=draw_timeline(report.timeline, now, "From the deploy to the end of the run"),
        steps=draw_timeline(report.timeline.steps(), now, "The run, step by step"),
    )
