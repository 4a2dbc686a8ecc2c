"""The price of going back, as it stands while a deployment is watched: people decide in time when they see it."""

from datetime import datetime, timedelta

import msgspec

from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.risks import RiskKind
from rollbackd.core.verdicts import Verdict

_ONLY_NEW = (RiskKind.DROPPED_TABLE, RiskKind.DROPPED_COLUMN)


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """What going back would cost right now.

    Times are seconds (-1: nobody knows). `rows_lost` is what would be gone for good: what isn't archived (-1: nobody knows). `rows_only_new`
    are rows and values that only the new schema has a place for, `growth` how many more there are a minute.
    `cheap_until` is when its lock outgrows the budget at this pace; None where it doesn't.
    """

    at: datetime
    way_back: WayBack
    verdict: Verdict
    rehearsed: str
    total_s: float
    lock_s: float
    rows_lost: int
    rows_only_new: int
    growth: float = 0.0
    old_release_works: bool | None = None
    old_release_why: tuple[str, ...] = ()
    cheap_until: datetime | None = None
    blockers: tuple[str, ...] = ()
    first_at: datetime | None = None
    first_rows: int = 0

    def text(self) -> str:
        """The price in one line."""
        if self.blockers:
            return f"no way back as things stand: {self.blockers[0]}"
        works = {True: "works", False: "doesn't work", None: "may not work"}[self.old_release_works]
        if self.way_back is WayBack.LEAVE_SCHEMA:
            return "back now: no table is touched, the old release works on this schema"
        lost = f"{self.rows_lost:,}" if self.rows_lost >= 0 else "nobody knows how many"
        total = f"{self.total_s:.0f} s" if self.total_s >= 0 else "unknown time"
        lock = _short(self.lock_s) if self.lock_s >= 0 else "unknown"
        growth = f", {self.growth:,.0f} more a minute" if self.growth >= 0.5 else ""
        until = f"; cheap until {self.cheap_until:%H:%M} UTC" if self.cheap_until else ""
        return (
            f"back now: {total}, {lock} of lock, {lost} rows lost, the old release {works} on this schema;"
            f" {self.rows_only_new:,} rows only the new schema holds{growth}{until}"
        )


def price_of(plan: Plan, now: datetime, previous: Price | None, lock_budget_s: float) -> Price:
    """The price that this plan names; the growth is told from the first price of the deployment."""
    risks = [risk for revision in plan.revisions for risk in revision.at_risk]
    only_new = sum(max(risk.rows, 0) for risk in risks if risk.kind in _ONLY_NEW)
    known = plan.verdict in (Verdict.REVERSIBLE, Verdict.LOSES_DATA)
    # What is counted is archived before it goes; what isn't known can't be.
    lost = 0 if known else -1
    first_at, first_rows = now, only_new
    growth = 0.0
    if previous is not None and previous.first_at is not None:
        first_at, first_rows = previous.first_at, previous.first_rows
        minutes = (now - first_at).total_seconds() / 60
        growth = (only_new - first_rows) / minutes if minutes > 0 else 0.0
    return Price(
        at=now,
        way_back=plan.way_back,
        verdict=plan.verdict,
        rehearsed=plan.rehearsed.depth if plan.rehearsed.passed else "",
        total_s=plan.estimate.total_s,
        lock_s=plan.estimate.lock_s,
        rows_lost=lost,
        rows_only_new=only_new,
        growth=round(growth, 1),
        old_release_works=plan.old_release.works,
        old_release_why=plan.old_release.why,
        cheap_until=_cheap_until(plan, now, only_new, growth, lock_budget_s),
        blockers=plan.blockers,
        first_at=first_at,
        first_rows=first_rows,
    )


def _cheap_until(
    plan: Plan, now: datetime, rows: int, growth: float, lock_budget_s: float
) -> datetime | None:
    if rows <= 0 or growth <= 0 or plan.estimate.archive_s <= 0:
        return None
    seconds_a_row = plan.estimate.archive_s / rows
    left_s = lock_budget_s - plan.estimate.lock_s
    if left_s <= 0:
        return now
    minutes = left_s / (seconds_a_row * growth)
    return now + timedelta(minutes=minutes) if minutes < 7 * 24 * 60 else None


def _short(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
