"""The price of going back: what it says now, how it grows, and until when it is cheap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rollbackd.core.planning.plan import Estimate, Plan, PlannedRevision, Rehearsed, WayBack
from rollbackd.core.price import Price, price_of
from rollbackd.core.risks import RiskKind, RowsAtRisk
from rollbackd.core.schema import TableName
from rollbackd.core.verdicts import OldRelease, Verdict

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
T = TableName("public", "t")


def at_risk(kind: RiskKind, rows: int) -> RowsAtRisk:
    return RowsAtRisk(revision="r", kind=kind, table=T, rows=rows)


def revision(*risks: RowsAtRisk, verdict: Verdict = Verdict.LOSES_DATA) -> PlannedRevision:
    return PlannedRevision(
        id="r",
        title="",
        statements=(),
        unread="",
        effects=(),
        stands_alone="",
        source_sha256="",
        verdict=verdict,
        at_risk=risks,
    )


def plan(*risks: RowsAtRisk, verdict: Verdict = Verdict.LOSES_DATA, **changed: Any) -> Plan:
    usual: dict[str, Any] = {
        "target": "shop",
        "way_back": WayBack.STOP_WRITES,
        "from_heads": ("r",),
        "to_heads": (),
        "revisions": (revision(*risks, verdict=verdict),),
        "loses": (),
        "lossy_tables": (),
        "blockers": (),
        "warnings": (),
        "release_from": "2",
        "release_to": "1",
        "scripts_sha256": "",
        "steps": (),
        "rehearsed": Rehearsed(depth="full", passed=True),
        "old_release": OldRelease(works=True),
        "estimate": Estimate(total_s=14.0, lock_s=0.08, archive_s=0.02),
    }
    return Plan(**(usual | changed))


def rows(amount: int) -> Plan:
    return plan(at_risk(RiskKind.DROPPED_TABLE, amount))


def priced(
    planned: Plan, previous: Price | None = None, *, at: datetime = NOW, budget_s: float = 5.0
) -> Price:
    return price_of(planned, at, previous, budget_s)


def test_the_first_price_knows_no_growth_and_is_where_growth_is_told_from() -> None:
    price = priced(rows(1204))
    assert (price.rows_only_new, price.growth, price.cheap_until) == (1204, 0.0, None)
    assert (price.first_at, price.first_rows) == (NOW, 1204)
    assert (price.total_s, price.lock_s, price.rehearsed) == (14.0, 0.08, "full")
    assert price.text() == (
        "back now: 14 s, 80 ms of lock, 0 rows lost, the old release works on this schema;"
        " 1,204 rows only the new schema holds"
    )


def test_growth_is_told_from_the_first_price_whatever_lies_between() -> None:
    first = priced(rows(1000))
    between = priced(rows(1400), first, at=NOW + timedelta(minutes=5))
    assert between.growth == 80.0
    last = priced(rows(1400), between, at=NOW + timedelta(minutes=10))
    assert last.growth == 40.0
    assert (last.first_at, last.first_rows) == (NOW, 1000)
    assert "1,400 rows only the new schema holds, 40 more a minute" in last.text()


@pytest.mark.parametrize(
    ("before", "now", "minutes", "growth", "says"),
    [
        (100, 100, 10, 0.0, "holds"),
        # Rows that went are no growth to be told of.
        (100, 50, 10, -5.0, "holds"),
        # Less than one in two minutes.
        (100, 104, 10, 0.4, "holds"),
        (100, 105, 10, 0.5, "holds, 0 more a minute"),
        (100, 116, 10, 1.6, "holds, 2 more a minute"),
        # Priced twice in a moment.
        (100, 200, 0, 0.0, "holds"),
    ],
)
def test_how_growth_is_said(before: int, now: int, minutes: float, growth: float, says: str) -> None:
    price = priced(rows(now), priced(rows(before)), at=NOW + timedelta(minutes=minutes))
    assert price.growth == growth
    assert price.text().endswith(says)


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (RiskKind.DROPPED_TABLE, True),
        (RiskKind.DROPPED_COLUMN, True),
        # These the old schema has a place for.
        (RiskKind.NARROWED, False),
        (RiskKind.UPDATED, False),
        (RiskKind.DELETED, False),
    ],
)
def test_rows_that_only_the_new_schema_holds_are_those_of_what_is_dropped(
    kind: RiskKind, counts: bool
) -> None:
    assert priced(plan(at_risk(kind, 7))).rows_only_new == (7 if counts else 0)


def test_what_nobody_could_count_takes_nothing_off_the_rest() -> None:
    risks = (at_risk(RiskKind.DROPPED_TABLE, -1), at_risk(RiskKind.DROPPED_COLUMN, 5))
    assert priced(plan(*risks)).rows_only_new == 5


@pytest.mark.parametrize(
    ("verdict", "lost"),
    [
        # What is known is archived before it goes.
        (Verdict.REVERSIBLE, 0),
        (Verdict.LOSES_DATA, 0),
        # What isn't known can't be.
        (Verdict.UNKNOWN, -1),
        (Verdict.WILL_FAIL, -1),
    ],
)
def test_lost_for_good_is_only_what_cannot_be_archived(verdict: Verdict, lost: int) -> None:
    price = priced(plan(at_risk(RiskKind.DROPPED_TABLE, 7), verdict=verdict))
    assert (price.rows_lost, price.verdict) == (lost, verdict)
    assert f"{lost if lost >= 0 else 'nobody knows how many'} rows lost" in price.text()


@pytest.mark.parametrize(
    ("works", "says"),
    [(True, "release works on"), (False, "release doesn't work on"), (None, "release may not work on")],
)
def test_the_price_says_whether_the_old_release_works(works: bool | None, says: str) -> None:
    price = priced(plan(old_release=OldRelease(works=works, why=("because",))))
    assert says in price.text()
    assert (price.old_release_works, price.old_release_why) == (works, ("because",))


def test_a_way_back_that_leaves_the_schema_costs_nothing_of_it() -> None:
    assert priced(plan(way_back=WayBack.LEAVE_SCHEMA)).text() == (
        "back now: no table is touched, the old release works on this schema"
    )


def test_a_blocked_way_back_has_no_price_but_the_reason() -> None:
    assert priced(plan(blockers=("r will fail", "more"))).text() == (
        "no way back as things stand: r will fail"
    )


def test_what_was_not_rehearsed_has_no_known_time() -> None:
    price = priced(plan(rehearsed=Rehearsed(depth="full", failure="r: no"), estimate=Estimate()))
    assert price.rehearsed == ""
    assert "back now: unknown time, unknown of lock" in price.text()


def test_a_long_lock_is_said_in_seconds() -> None:
    assert "12.5 s of lock" in priced(plan(estimate=Estimate(total_s=60, lock_s=12.5))).text()


# 1,000 rows take 1 s to archive, so that a row takes 1 ms; the lock is 2 s.
SLOW = {"estimate": Estimate(total_s=20.0, lock_s=2.0, archive_s=1.0)}


@pytest.mark.parametrize(
    ("before", "budget_s", "minutes"),
    [
        # 40 rows more a minute are 0.04 s more of lock: 3 s are left for 75 minutes.
        (600, 5.0, 75),
        # Over already: not a minute.
        (600, 2.0, 0),
        (600, 1.0, 0),
        # Nothing grows, or it shrinks.
        (1000, 5.0, None),
        (1400, 5.0, None),
        # So slowly that it is longer than a week.
        (999, 5.0, None),
    ],
)
def test_it_is_cheap_until_the_lock_outgrows_its_budget(
    before: int, budget_s: float, minutes: int | None
) -> None:
    first = priced(rows(before), at=NOW - timedelta(minutes=10))
    price = priced(plan(at_risk(RiskKind.DROPPED_TABLE, 1000), **SLOW), first, budget_s=budget_s)
    assert price.cheap_until == (None if minutes is None else NOW + timedelta(minutes=minutes))
    assert ("; cheap until 11:15 UTC" in price.text()) == (minutes == 75)


def test_where_archiving_takes_no_time_nothing_makes_it_dearer() -> None:
    first = priced(rows(600), at=NOW - timedelta(minutes=10))
    quick = {"estimate": Estimate(total_s=20.0, lock_s=2.0, archive_s=0.0)}
    assert priced(plan(at_risk(RiskKind.DROPPED_TABLE, 1000), **quick), first).cheap_until is None
