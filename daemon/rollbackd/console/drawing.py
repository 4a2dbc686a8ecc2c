"""Pictures of a timeline as SVG: what happened when, without a script. Everything drawn is also on the page in words."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from markupsafe import Markup

from rollbackd.core.timeline import Moment, Series, Span, Timeline
from rollbackd.core.wording import took

WIDTH, LABELS, LANE, CHART = 960, 230, 26, 84
MOST_SPANS = 40
_TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 604800)
_SHAPES = {
    "deploy": "M-6,5 L0,-6 L6,5 Z",
    "decision": "M0,-7 L7,0 L0,7 L-7,0 Z",
    "word": "M-5,-5 H5 V5 H-5 Z",
}


def draw_timeline(timeline: Timeline, now: datetime, title: str) -> Markup:
    """The picture, as wide as its place; empty where there is nothing to draw.

    Args:
        now: the end of what goes on.
        title: what a screen reader says of it.
    """
    bounds = timeline.bounds(now)
    if bounds is None:
        return Markup("")
    axis = _Axis(*bounds)
    drawn: list[Markup] = []
    top = 8
    for moment_lane in _moment_lanes(timeline.moments):
        drawn.append(_moments(moment_lane, axis, top))
        top += LANE
    for span in timeline.spans[:MOST_SPANS]:
        drawn.append(_span(span, axis, top, now))
        top += LANE
    if (left_out := len(timeline.spans) - MOST_SPANS) > 0:
        drawn.append(_label(f"and {left_out} more, in the lists below", top + LANE / 2 + 4))
        top += LANE
    for series in timeline.series:
        if series.is_drawn:
            drawn.append(_chart(series, axis, top))
            top += CHART
        else:
            drawn.append(_dots(series, axis, top))
            top += LANE
    decisions = [m for m in timeline.moments if m.kind == "decision"]
    rules = [
        Markup('<line class="decided" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(axis.x(m.at), top)
        for m in decisions
    ]
    return Markup('<svg class="timeline" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        WIDTH, top + 26, title, axis.draw(top), Markup("").join(rules), Markup("").join(drawn)
    )


class _Axis:
    """Where a time is, in pixels."""

    def __init__(self, began: datetime, ended: datetime) -> None:
        self._began = began
        self._seconds = max((ended - began).total_seconds(), 1.0)
        self._room = WIDTH - LABELS - 12

    def x(self, at: datetime) -> float:
        share = (at - self._began).total_seconds() / self._seconds
        return LABELS + self._room * min(max(share, 0.0), 1.0)

    def draw(self, height: int) -> Markup:
        """Rules and times below, at round numbers."""
        every = next((tick for tick in _TICKS_S if self._seconds / tick <= 6), _TICKS_S[-1])
        first = -(-self._began.timestamp() // every) * every
        drawn = []
        at = datetime.fromtimestamp(first, self._began.tzinfo)
        ended = self._began + timedelta(seconds=self._seconds)
        form = "%H:%M:%S" if every < 60 else "%H:%M" if every < 86400 else "%d %b"
        while at <= ended:
            drawn.append(
                Markup(
                    '<line class="tick" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>'
                    '<text class="time" x="{0:.1f}" y="{2}" text-anchor="middle">{3}</text>'
                ).format(self.x(at), height, height + 18, at.strftime(form))
            )
            at += timedelta(seconds=every)
        return Markup("").join(drawn)


def _moment_lanes(moments: Iterable[Moment]) -> list[list[Moment]]:
    """One lane for each kind, in a fixed order."""
    listed = list(moments)
    lanes = [[m for m in listed if m.kind == kind] for kind in _SHAPES]
    return [lane for lane in lanes if lane]


def _label(text: str, y: float) -> Markup:
    short = text if len(text) <= 34 else f"{text[:33]}…"
    return Markup('<text class="label" x="0" y="{}">{}</text>').format(y, short)


def _moments(moments: list[Moment], axis: _Axis, top: int) -> Markup:
    middle = top + LANE / 2
    marks = Markup("").join(
        Markup('<path class="{}" transform="translate({:.1f} {})" d="{}"><title>{}</title></path>').format(
            m.kind, axis.x(m.at), middle, _SHAPES[m.kind], f"{m.at:%H:%M:%S} {m.text}"
        )
        for m in moments
    )
    return _label("; ".join(dict.fromkeys(m.text for m in moments)), middle + 4) + marks


def _span(span: Span, axis: _Axis, top: int, now: datetime) -> Markup:
    ended = span.ended_at or now
    left = axis.x(span.began_at)
    width = max(axis.x(ended) - left, 3.0)
    words = took((ended - span.began_at).total_seconds())
    style = f"{span.kind} {span.outcome.replace(' ', '-')}".strip()
    box = Markup(
        '<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="3"><title>{}</title></rect>'
    ).format(style, left, top + 5, width, LANE - 10, f"{span.text}: {words} {span.outcome}")
    # Beside the bar, on the side that has room.
    right = left + width
    place = (right + 5, "start") if right < WIDTH - 90 else (left - 5, "end")
    note = Markup('<text class="note" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
        place[0], top + LANE / 2 + 4, place[1], words
    )
    return _label(span.text, top + LANE / 2 + 4) + box + note


def _dots(series: Series, axis: _Axis, top: int) -> Markup:
    middle = top + LANE / 2
    marks = Markup("").join(
        Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="3"/>').format(
            {True: "good", False: "bad", None: "none"}[r.healthy], axis.x(r.at), middle
        )
        for r in series.readings
    )
    return _label(series.name, middle + 4) + marks


def _chart(series: Series, axis: _Axis, top: int) -> Markup:
    """A line for the values, one for each threshold, and a dot where a reading was bad or none."""
    values = [r.value for r in series.readings if r.value is not None]
    lines = {"critical": series.critical, "degraded": series.degraded, "baseline": series.baseline}
    highest = max([*values, *(v for v in lines.values() if v is not None)])
    lowest = min([0.0, *values])
    spread = (highest - lowest) or 1.0
    height = CHART - 20

    def y(value: float) -> float:
        return top + 10 + height * (1 - (value - lowest) / spread)

    drawn = [_label(series.name, top + CHART / 2)]
    for name, value in lines.items():
        if value is not None:
            drawn.append(
                Markup(
                    '<line class="{0}" x1="{1}" x2="{2}" y1="{3:.1f}" y2="{3:.1f}"><title>{4}</title></line>'
                ).format(name, LABELS, WIDTH - 12, y(value), f"{name}: {value:g}")
            )
    points = " ".join(f"{axis.x(r.at):.1f},{y(r.value):.1f}" for r in series.readings if r.value is not None)
    drawn.append(Markup('<polyline class="values" points="{}"/>').format(points))
    drawn += [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
            "bad" if r.healthy is False else "none",
            axis.x(r.at),
            y(r.value if r.value is not None else lowest),
        )
        for r in series.readings
        if not r.healthy
    ]
    drawn.append(
        Markup('<text class="note" x="{}" y="{:.1f}" text-anchor="end">{:.3g}</text>').format(
            LABELS - 4, y(highest) + 4, highest
        )
    )
    return Markup("").join(drawn)
