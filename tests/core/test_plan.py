"""The plan: which steps, in which order, in which groups, and what speaks against it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollbackd.core.plan import (
    STEP_KINDS,
    Downgrade,
    Plan,
    PlannedRevision,
    PlanTimes,
    Preserve,
    StartApplication,
    Step,
    WayBack,
    plan_downgrade,
    plan_hold,
    plan_redeploy,
    planned_revision,
    step_text,
)
from rollbackd.core.reading import DowngradeBody, ReadRevision
from rollbackd.core.revisions import Revision, RevisionGraph

GRAPH = RevisionGraph(
    tuple(
        Revision(id=f"r{n}", down=(f"r{n - 1}",) if n > 1 else (), title=f"change {n}") for n in range(1, 7)
    )
)
TIMES = PlanTimes(
    look_s=10,
    backup_s=600,
    proof_s=700,
    command_s=60,
    downgrade_s=300,
    lock_attempts=4,
    application_s=120,
    confirm_s=30,
    backup_reuse_s=900,
    backup_level=4,
)


def read(**of: Any) -> dict[str, ReadRevision]:
    """r2 to r6 drop an index each, but for what is named."""
    usual = {f"r{n}": ReadRevision(id=f"r{n}", statements=("DROP INDEX i",)) for n in range(1, 7)}
    return usual | {name: ReadRevision(id=name, **changed) for name, changed in of.items()}


def plan(revisions: dict[str, ReadRevision], times: PlanTimes = TIMES, **changed: Any) -> Plan:
    usual: dict[str, Any] = {
        "release_from": "2.0",
        "release_to": "1.0",
        "scripts_sha256": "abc",
        "stops_application": True,
        "starts_application": True,
        "has_probes": True,
        "has_backup": True,
        "one_transaction_each": False,
    }
    path = GRAPH.path_down(("r6",), ("r1",))
    return plan_downgrade("shop", GRAPH, path, revisions, times, **(usual | changed))


def kinds(planned: Plan) -> list[str]:
    return [step.kind for step in planned.steps]


def groups(planned: Plan) -> list[Downgrade]:
    return [step for step in planned.steps if isinstance(step, Downgrade)]


LOSSY = {"r3": {"statements": ("DROP TABLE s.t", "ALTER TABLE u DROP COLUMN c", "DELETE FROM u")}}


def test_a_full_plan_takes_its_steps_in_the_order_of_the_design() -> None:
    planned = plan(read(**LOSSY))
    assert kinds(planned) == [
        "validate_before",
        "back_up",
        "prove_backup",
        "stop_application",
        "preserve",
        "downgrade",
        "validate_database",
        "start_application",
        "validate_application",
        "confirm",
    ]
    assert set(kinds(planned)) <= set(STEP_KINDS)
    assert (planned.way_back, planned.downgrades, planned.stops_writes) == (WayBack.STOP_WRITES, True, True)
    assert planned.loses == ("every row of s.t", "the values of u.c", "rows deleted from u")
    assert planned.lossy_tables == ("s.t", "u")
    assert planned.blockers == planned.warnings == ()
    (preserve,) = [s for s in planned.steps if isinstance(s, Preserve)]
    assert preserve.tables == ("s.t", "u")


@pytest.mark.parametrize(
    ("changed", "absent"),
    [
        ({"has_backup": False}, {"back_up", "prove_backup", "preserve"}),
        # Rows that are still written to can't be kept by a dump.
        ({"stops_application": False}, {"stop_application", "preserve"}),
        ({"starts_application": False}, {"start_application", "validate_application"}),
        ({"has_probes": False}, {"validate_application"}),
    ],
)
def test_what_is_not_configured_is_not_planned(changed: dict[str, Any], absent: set[str]) -> None:
    assert set(kinds(plan(read(**LOSSY)))) - set(kinds(plan(read(**LOSSY), **changed))) == absent


def test_rows_are_kept_only_where_some_are_lost() -> None:
    planned = plan(read())
    assert "preserve" not in kinds(planned)
    assert planned.loses == planned.lossy_tables == ()


def test_without_a_time_to_confirm_nothing_is_watched() -> None:
    assert "confirm" not in kinds(plan(read(), msgspec.structs.replace(TIMES, confirm_s=0)))


def test_everything_from_the_first_downgrade_on_is_past_the_point_of_no_return_and_nothing_before() -> None:
    planned = plan(read(r4={"statements": ("DROP INDEX CONCURRENTLY i",), "stands_alone": "index"}, **LOSSY))
    first = kinds(planned).index("downgrade")
    assert [step.past_return for step in planned.steps] == [False] * first + [True] * (
        len(planned.steps) - first
    )


ALONE = {"statements": ("DROP INDEX CONCURRENTLY i",), "stands_alone": "it works on an index concurrently"}


@pytest.mark.parametrize(
    ("of", "one_transaction_each", "expected"),
    [
        # Neighbours share a transaction.
        ({}, False, [("r6", "r5", "r4", "r3", "r2")]),
        # What can't be in any stands alone, in the middle, at the ends, beside another one.
        ({"r4": ALONE}, False, [("r6", "r5"), ("r4",), ("r3", "r2")]),
        ({"r6": ALONE, "r2": ALONE}, False, [("r6",), ("r5", "r4", "r3"), ("r2",)]),
        ({"r5": ALONE, "r4": ALONE}, False, [("r6",), ("r5",), ("r4",), ("r3", "r2")]),
        # env.py commits after each.
        ({}, True, [("r6",), ("r5",), ("r4",), ("r3",), ("r2",)]),
        ({"r4": ALONE}, True, [("r6",), ("r5",), ("r4",), ("r3",), ("r2",)]),
    ],
)
def test_revisions_are_grouped_by_transaction(
    of: dict[str, Any], one_transaction_each: bool, expected: list[tuple[str, ...]]
) -> None:
    planned = plan(read(**of), one_transaction_each=one_transaction_each)
    found = groups(planned)
    assert [g.revisions for g in found] == expected
    # Each begins where the one before ended, and the last one ends where the plan does.
    assert [g.from_heads for g in found] == [("r6",), *(g.to_heads for g in found[:-1])]
    assert found[-1].to_heads == planned.to_heads == ("r1",)
    for group in found:
        alone = group.revisions[0] in of
        assert group.alone_because == (ALONE["stands_alone"] if alone else "")
        # A step that may have committed half of itself isn't tried again.
        assert group.attempts == (1 if alone else 4)
    assert sum("can't share a transaction" in warning for warning in planned.warnings) == len(of)


@pytest.mark.parametrize(
    ("statements", "failed", "changes"),
    [
        (("DROP TABLE t",), "", True),
        (("SELECT 1", "ALTER TABLE t ADD COLUMN c int"), "", True),
        (("CREATE UNIQUE INDEX CONCURRENTLY i ON t (c)",), "", True),
        # Rows alone, and nothing.
        (("DELETE FROM t",), "", False),
        ((), "", False),
        # Perhaps there is nothing to do.
        (("DROP TABLE IF EXISTS t",), "", False),
        (("CREATE INDEX IF NOT EXISTS i ON t (c)",), "", False),
        # Nothing that a fingerprint shows.
        (("ALTER SEQUENCE s RESTART WITH 1",), "", False),
        # What can't be read promises nothing.
        (("DROP TABLE t", "DO $$ x $$"), "", False),
        (("DROP TABLE t",), "TypeError: no rows", False),
    ],
)
def test_a_change_of_the_schema_is_expected_only_where_it_is_sure(
    statements: tuple[str, ...], failed: str, changes: bool
) -> None:
    quiet = {f"r{n}": {"statements": ("DELETE FROM t",)} for n in range(2, 7)}
    planned = plan(read(**(quiet | {"r4": {"statements": statements, "failed": failed}})))
    assert [g.changes_schema for g in groups(planned)] == [changes]


@pytest.mark.parametrize(
    "of", [{"failed": "TypeError: no rows"}, {"statements": ("DO $$ BEGIN DELETE FROM t; END $$",)}]
)
def test_what_cannot_be_read_is_announced_as_an_unknown_loss(of: dict[str, Any]) -> None:
    planned = plan(read(r4=of))
    assert planned.loses == ("unknown: r4 can't be read without running it",)
    assert [r.id for r in planned.revisions if r.unread] == ["r4"]
    assert planned.warnings[0].startswith("r4: what it does can't be read without running it (")


@pytest.mark.parametrize(
    "body", [DowngradeBody.RAISES, DowngradeBody.ASKS, DowngradeBody.MISSING, DowngradeBody.EMPTY]
)
def test_a_revision_that_cannot_be_taken_off_blocks_the_plan(body: DowngradeBody) -> None:
    planned = plan(read(r3={"downgrade": body}, r5={"downgrade": DowngradeBody.RAISES}))
    assert [blocker.split()[0] for blocker in planned.blockers] == ["r5", "r3"]


def test_an_unknown_old_release_blocks_the_plan_only_where_the_plan_would_start_it() -> None:
    assert "nobody said which release ran before" in plan(read(), release_to="").blockers[0]
    by_hand = plan(read(), release_to="", starts_application=False, stops_application=False)
    assert by_hand.blockers == ()
    assert "which release to start" in plan(read(), release_to="", stops_application=False).blockers[0]


def test_a_plan_that_would_leave_the_application_stopped_is_blocked() -> None:
    assert "none starts it" in plan(read(), starts_application=False).blockers[0]


def test_a_running_release_that_nobody_named_is_warned_of() -> None:
    assert any("which release runs now" in text for text in plan(read(), release_from="").warnings)


def test_where_nothing_can_be_undone_each_revision_stands_alone() -> None:
    downgrades = [s for s in plan(read(), never_transactional=True).steps if isinstance(s, Downgrade)]
    assert all(s.alone_because == "env.py's connection commits each statement" for s in downgrades)
    assert [s.attempts for s in downgrades] == [1] * len(downgrades)


def test_where_nothing_stops_the_application_whoever_approves_is_warned() -> None:
    assert "whoever approves says that nothing writes" in plan(read(), stops_application=False).warnings[0]


def redeploy(**changed: Any) -> Plan:
    usual: dict[str, Any] = {
        "release_from": "2.0",
        "release_to": "1.0",
        "starts_application": True,
        "has_probes": True,
    }
    return plan_redeploy("shop", ("r6",), TIMES, **(usual | changed))


def test_a_redeploy_leaves_the_database_alone() -> None:
    planned = redeploy()
    assert kinds(planned) == ["validate_before", "start_application", "validate_application", "confirm"]
    assert not planned.downgrades
    assert not planned.stops_writes
    assert planned.from_heads == planned.to_heads == ("r6",)
    assert not any(step.past_return for step in planned.steps)
    assert planned.blockers == ()
    assert [s.version for s in planned.steps if isinstance(s, StartApplication)] == ["1.0"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"starts_application": False}, "no command is declared that starts a release"),
        ({"release_to": ""}, "nobody said which release ran before"),
    ],
)
def test_a_redeploy_that_cannot_be_done_is_blocked(changed: dict[str, Any], says: str) -> None:
    (blocker,) = redeploy(**changed).blockers
    assert says in blocker


def hold() -> Plan:
    revisions: tuple[PlannedRevision, ...] = (planned_revision(GRAPH, read()["r6"]),)
    return plan_hold("shop", ("r5",), ("r6",), revisions, "neither old nor new", TIMES, "abc")


def test_holding_is_one_step_that_changes_nothing() -> None:
    planned = hold()
    assert kinds(planned) == ["await_person"]
    assert not planned.downgrades
    assert planned.revisions[0].title == "change 6"


@pytest.mark.parametrize(
    "planned", [plan(read(r4=ALONE, **LOSSY)), redeploy(), hold()], ids=lambda p: p.way_back
)
def test_a_plan_comes_back_from_the_store_equal_and_with_an_equal_digest(planned: Plan) -> None:
    stored = msgspec.json.encode(planned)
    back = msgspec.json.decode(stored, type=Plan)
    assert back == planned
    assert back.sha256() == planned.sha256()
    assert [type(step) for step in back.steps] == [type(step) for step in planned.steps]


def test_the_digest_tells_plans_apart() -> None:
    digests = {plan(read()).sha256(), plan(read(r4=ALONE)).sha256(), plan(read(), release_to="0.9").sha256()}
    assert len(digests) == 3


def test_every_step_says_itself_in_a_line() -> None:
    steps: list[Step] = [*plan(read(r4=ALONE, **LOSSY)).steps, *hold().steps]
    assert {step.kind for step in steps} == set(STEP_KINDS)
    lines = [step_text(step) for step in steps]
    assert "stop 2.0" in lines
    assert "keep the rows of s.t, u in a proved dump, now that nothing writes" in lines
    assert "downgrade r4 by itself (it works on an index concurrently), to r3" in lines
    assert all("\n" not in line for line in lines)
