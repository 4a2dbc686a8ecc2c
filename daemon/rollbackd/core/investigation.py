"""What an investigation collects about a deployment that has become slow, and how a person reads it in a terminal."""

import itertools
from collections.abc import Sequence
from datetime import datetime

import msgspec

from rollbackd.core.evidence import Limit

_BARS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 60
LONGEST_SHOWN = 160


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One value of a series."""

    at: datetime
    value: float


class MetricSeries(msgspec.Struct, frozen=True, kw_only=True):
    """A metric around the start of the deploy, oldest first; `missing` is why there are no points."""

    name: str
    category: str
    query: str
    points: tuple[Point, ...] = ()
    limits: tuple[Limit, ...] = ()
    missing: str = ""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement of the guarded database, its literals left out. Of pg_stat_statements `calls` and the means since its last
    reset; of a session that runs now `calls` is 0 and both times are how long it has run so far.
    """

    sql: str
    calls: int
    mean_s: float
    total_s: float


class WaitingSession(msgspec.Struct, frozen=True, kw_only=True):
    """A session that waits for a lock, and one that holds it: a row for each holder."""

    pid: int
    waits_s: float
    wants: str
    sql: str
    holder_pid: int
    holder: str
    holder_sql: str


class OpenTransaction(msgspec.Struct, frozen=True, kw_only=True):
    """A transaction that has been open for long; `who` is its application and role, `sql` its newest statement."""

    pid: int
    who: str
    state: str
    open_s: float
    sql: str


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What the guarded database is busy with. `source` is where the statements come from: pg_stat_statements or
    pg_stat_activity. `missing` says what couldn't be seen, and why.
    """

    source: str = ""
    statements: tuple[Statement, ...] = ()
    waiting: tuple[WaitingSession, ...] = ()
    transactions: tuple[OpenTransaction, ...] = ()
    missing: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What the deploy changed: the release, the revisions it put on (`id title`), and the objects that differ since."""

    release_from: str
    release_to: str
    heads_before: tuple[str, ...]
    heads_now: tuple[str, ...]
    revisions: tuple[str, ...] = ()
    difference: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def tables(self) -> tuple[str, ...]:
        """The tables among the objects that differ, as `schema.table`."""
        found: dict[str, None] = {}
        for line in self.difference:
            kind, _, name = line[2:].partition(" ")
            parts = name.split(".")
            if kind in ("table", "column") and len(parts) > 1:
                found[".".join(parts[:2])] = None
        return tuple(found)


class Investigation(msgspec.Struct, frozen=True, kw_only=True):
    """What was collected for one decision, at one moment."""

    decision: str
    deployment: str
    target: str
    at: datetime
    deployed_at: datetime
    series: tuple[MetricSeries, ...]
    activity: Activity
    change: Change


def sparkline(values: Sequence[float], width: int = SPARKLINE_WIDTH) -> str:
    """Values as a line of bars, from the lowest to the highest of them; what is longer than `width` is averaged."""
    if not values:
        return ""
    shown = min(width, len(values))
    edges = [len(values) * n // shown for n in range(shown + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * shown
    return "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)


def series_text(series: MetricSeries, deployed_at: datetime) -> str:
    """A series in one line: its bars with a bar where the deploy began, where it was, and where it is."""
    if not series.points:
        return f"{series.name}: {series.missing or 'no points'}"
    # One scale for both sides, so that a step shows as one.
    bars = sparkline([point.value for point in series.points])
    before = sum(point.at < deployed_at for point in series.points) * len(bars) // len(series.points)
    values = [point.value for point in series.points]
    limits = "".join(f", {limit.text()}" for limit in series.limits)
    return (
        f"{series.name}: {bars[:before]}┃{bars[before:]} from {values[0]:.4g} to {values[-1]:.4g},"
        f" highest {max(values):.4g}{limits}"
    )


def investigation_lines(found: Investigation) -> list[str]:
    """All of it as lines of plain text."""
    change, activity = found.change, found.activity
    lines = [f"collected at {found.at:%F %T} UTC; ┃ is the start of the deploy, {found.deployed_at:%T} UTC"]
    lines += [f"  {series_text(series, found.deployed_at)}" for series in found.series]
    release = f"{change.release_from or 'not said'} → {change.release_to or 'not said'}"
    now = " + ".join(change.heads_now) or ("unknown" if change.missing else "base")
    heads = f"{' + '.join(change.heads_before) or 'base'} → {now}"
    revisions = f" ({', '.join(change.revisions)})" if change.revisions else ""
    lines.append(f"changed: release {release}; revision {heads}{revisions}")
    if change.tables():
        lines.append(f"  tables: {', '.join(change.tables())}")
    if activity.statements:
        lines.append(f"slowest statements, by {activity.source}:")
        lines += [f"  {statement_text(statement)}" for statement in activity.statements]
    if activity.waiting:
        lines.append("waiting for locks:")
        lines += [f"  {waiting_text(session)}" for session in activity.waiting]
    if activity.transactions:
        lines.append("long transactions:")
        lines += [f"  {transaction_text(transaction)}" for transaction in activity.transactions]
    if not (activity.waiting or activity.transactions or activity.missing):
        lines.append("nothing waits for a lock, and no transaction is open for long")
    lines += [f"not seen: {text}" for text in (*activity.missing, *change.missing)]
    return lines


def statement_text(statement: Statement) -> str:
    """A statement with its times."""
    if not statement.calls:
        return f"{statement.mean_s:,.1f} s so far: {_cut(statement.sql)}"
    return f"{statement.mean_s * 1000:,.1f} ms each, {statement.calls:,} times: {_cut(statement.sql)}"


def waiting_text(session: WaitingSession) -> str:
    """Who waits for what, and for whom."""
    return (
        f"{session.pid} waits {session.waits_s:,.0f} s for {session.wants} ({_cut(session.sql)}); held by"
        f" {session.holder_pid}, {session.holder} ({_cut(session.holder_sql)})"
    )


def transaction_text(transaction: OpenTransaction) -> str:
    """How long whose transaction is open, and what it ran last."""
    return (
        f"{transaction.pid}, {transaction.who}: {transaction.state} for {transaction.open_s:,.0f} s"
        f" ({_cut(transaction.sql)})"
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
