"""The plan: which way back, which steps, in which order, in which groups, and what speaks against it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.planning.estimating import ARCHIVE_BYTES_A_SECOND
from rollbackd.core.planning.inputs import Findings, Means, PlanTimes
from rollbackd.core.planning.laying_out import plan_downgrade, plan_hold, plan_redeploy, with_recovery
from rollbackd.core.planning.plan import Estimate, Plan, PlannedRevision, Rehearsed, WayBack
from rollbackd.core.planning.revisions import planned_revision
from rollbackd.core.planning.steps import (
    STEP_KINDS,
    CopyAhead,
    Downgrade,
    Drain,
    ProveBackup,
    RecoverLost,
    StartApplication,
    Step,
    step_text,
)
from rollbackd.core.planning.weighing import choose_way
from rollbackd.core.reading import DowngradeBody, ReadRevision
from rollbackd.core.rehearsal import (
    Depth,
    Failure,
    RanStatement,
    Rehearsal,
    RehearsedRevision,
    WrittenTable,
)
from rollbackd.core.revisions import Revision, RevisionGraph
from rollbackd.core.risks import Obstacle, RiskKind, Risks, RowsAtRisk
from rollbackd.core.schema import SchemaDifference, TableName
from rollbackd.core.verdicts import OldRelease, Verdict

GRAPH = RevisionGraph(
    tuple(
        Revision(id=f"r{n}", down=(f"r{n - 1}",) if n > 1 else (), title=f"change {n}") for n in range(1, 7)
    )
)
PATH = GRAPH.path_down(("r6",), ("r1",))
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
T, U = TableName("s", "t"), TableName("public", "u")
WORKS, UNKNOWN = OldRelease(works=True), OldRelease(works=None, why=("nobody tried",))
BROKEN = OldRelease(works=False, why=("it lacks table public.x",))
GENTLE = {
    "ways": (WayBack.LEAVE_SCHEMA, WayBack.RELEASE_FIRST, WayBack.STOP_WRITES),
    "tolerates_stamp": True,
}


def read(**of: Any) -> dict[str, ReadRevision]:
    """r6 to r2 drop an index each, but for what is named."""
    usual = {f"r{n}": ReadRevision(id=f"r{n}", statements=("DROP INDEX i",)) for n in range(6, 1, -1)}
    return usual | {name: ReadRevision(id=name, **changed) for name, changed in of.items()}


def rehearsed(scripts: dict[str, ReadRevision], **changed: Any) -> Rehearsal:
    """A rehearsal with every row that executed what was read, a tenth of a second each."""
    usual: dict[str, Any] = {
        "difference": SchemaDifference(added=("index i",)),
        "depth": Depth.FULL,
        "from_heads": ("r6",),
        "to_heads": ("r1",),
        "heads": ("r1",),
        "revisions": tuple(ran(r, statements=scripts[r].statements) for r in PATH.revisions),
    }
    return Rehearsal(**(usual | changed))


def ran(revision: str, statements: tuple[str, ...] = ("DROP INDEX i",), **changed: Any) -> RehearsedRevision:
    usual: dict[str, Any] = {
        "id": revision,
        "seconds": 0.1,
        "statements": tuple(RanStatement(sql=s, seconds=0.1) for s in statements),
    }
    return RehearsedRevision(**(usual | changed))


def plan(
    revisions: dict[str, ReadRevision],
    times: PlanTimes = TIMES,
    *,
    found: dict[str, Any] | None = None,
    **of: Any,
) -> Plan:
    """A plan over a rehearsal that passed; `found` changes the findings, the rest the means and releases."""
    releases = {"release_from": "2.0", "release_to": "1.0"}
    means: dict[str, Any] = {
        "stops_application": True,
        "starts_application": True,
        "has_probes": True,
        "has_backup": True,
    }
    findings = {"read": revisions, "rehearsal": rehearsed(revisions), "scripts_sha256": "abc"} | (found or {})
    return plan_downgrade(
        "shop",
        GRAPH,
        PATH,
        Findings(**findings),
        Means(**(means | {name: value for name, value in of.items() if name not in releases})),
        times,
        **(releases | {name: value for name, value in of.items() if name in releases}),
    )


def item(**changed: Any) -> ArchiveItem:
    usual: dict[str, Any] = {"revision": "r6", "kind": ArchiveKind.TABLE, "table": T, "key": ("id",)}
    return ArchiveItem(**(usual | changed))


def kinds(planned: Plan) -> list[str]:
    return [step.kind for step in planned.steps]


def groups(planned: Plan) -> list[Downgrade]:
    return [step for step in planned.steps if isinstance(step, Downgrade)]


LOSSY = {"r3": {"statements": ("DROP TABLE s.t", "ALTER TABLE u DROP COLUMN c", "DELETE FROM u")}}
KEPT = (
    item(revision="r3"),
    item(revision="r3", kind=ArchiveKind.COLUMN, table=U, column="c"),
    item(revision="r3", kind=ArchiveKind.ROWS, table=U),
)
COUNTED = Risks(
    at_risk=(
        RowsAtRisk(revision="r3", kind=RiskKind.DROPPED_TABLE, table=T, rows=1204),
        RowsAtRisk(revision="r3", kind=RiskKind.DROPPED_COLUMN, table=U, column="c", rows=0),
        RowsAtRisk(revision="r3", kind=RiskKind.DELETED, table=U, rows=1, at_most=True),
    )
)
LOSS = {"archive": KEPT, "risks": COUNTED, "lossy_tables": ("public.u", "s.t")}


def test_a_full_plan_takes_its_steps_in_the_order_of_the_design() -> None:
    planned = plan(read(**LOSSY), found=LOSS)
    assert kinds(planned) == [
        "validate_before",
        "back_up",
        "prove_backup",
        "stop_application",
        "downgrade",
        "validate_database",
        "start_application",
        "validate_application",
        "confirm",
    ]
    assert set(kinds(planned)) <= set(STEP_KINDS)
    assert (planned.way_back, planned.downgrades, planned.stops_writes) == (WayBack.STOP_WRITES, True, True)
    # As counted: what is empty isn't lost.
    assert planned.loses == ("1,204 rows of s.t go", "at most 1 row of public.u is deleted")
    assert planned.rows_lost == 1205
    assert planned.verdict is Verdict.LOSES_DATA
    assert planned.lossy_tables == ("public.u", "s.t")
    assert planned.archive == KEPT
    assert planned.blockers == planned.warnings == ()


@pytest.mark.parametrize(
    ("changed", "absent"),
    [
        ({"has_backup": False}, {"back_up", "prove_backup"}),
        ({"stops_application": False}, {"stop_application"}),
        ({"starts_application": False}, {"start_application", "validate_application"}),
        ({"has_probes": False}, {"validate_application"}),
    ],
)
def test_what_is_not_configured_is_not_planned(changed: dict[str, Any], absent: set[str]) -> None:
    usual, less = plan(read(**LOSSY), found=LOSS), plan(read(**LOSSY), found=LOSS, **changed)
    assert set(kinds(usual)) - set(kinds(less)) == absent
    # What goes is archived by the downgrade itself, whatever else is configured.
    assert less.archive == KEPT


def test_rows_are_kept_only_where_some_are_lost() -> None:
    planned = plan(read())
    assert planned.loses == planned.lossy_tables == planned.archive == ()
    assert planned.verdict is Verdict.REVERSIBLE


def test_without_a_rehearsal_what_is_lost_is_said_as_it_was_read() -> None:
    planned = plan(read(**LOSSY), found={"rehearsal": None, "archive": KEPT})
    assert planned.loses == ("every row of s.t", "the values of u.c", "rows deleted from u")
    assert planned.verdict is Verdict.UNKNOWN
    assert planned.archive == KEPT
    assert planned.rehearsed == Rehearsed(unknown="no rehearsal was made")
    assert planned.estimate == Estimate(total_s=-1, lock_s=-1)
    assert "r3: what it does isn't fully known: it wasn't rehearsed; every row of s.t" in planned.warnings[3]


def test_a_rehearsal_that_could_not_be_made_says_why() -> None:
    planned = plan(
        read(), found={"rehearsal": rehearsed(read(), heads=(), revisions=(), unknown="no scratch")}
    )
    assert (planned.rehearsed.passed, planned.rehearsed.unknown) == (False, "no scratch")
    assert all("it couldn't be rehearsed: no scratch" in warning for warning in planned.warnings)
    assert planned.verdict is Verdict.UNKNOWN
    assert planned.blockers == ()


def test_a_plan_keeps_what_its_rehearsal_showed() -> None:
    shown = rehearsed(
        read(),
        difference=SchemaDifference(added=("index i",), removed=("table t",)),
        rows=7,
        seconds=1.5,
        keeps_owners=True,
    )
    planned = plan(read(), found={"rehearsal": shown, "expected_document": "rehearsed-1", "fingerprint": "f"})
    assert planned.rehearsed == Rehearsed(
        depth="full",
        passed=True,
        seconds=1.5,
        rows=7,
        difference=("+ index i", "- table t"),
        expected_document="rehearsed-1",
        keeps_owners=True,
    )
    assert planned.fingerprint == "f"


def test_a_plan_shows_the_statements_that_were_executed_and_not_those_that_were_rendered() -> None:
    shown = rehearsed(read(), revisions=tuple(ran(r, statements=("DROP INDEX j",)) for r in PATH.revisions))
    assert {s for r in plan(read(), found={"rehearsal": shown}).revisions for s in r.statements} == {
        "DROP INDEX j"
    }


def test_what_ended_its_transaction_in_the_rehearsal_stands_alone() -> None:
    of = {r: ran(r, transactional=r != "r4") for r in PATH.revisions}
    planned = plan(read(), found={"rehearsal": rehearsed(read(), revisions=tuple(of.values()))})
    assert [g.revisions for g in groups(planned)] == [("r6", "r5"), ("r4",), ("r3", "r2")]
    assert groups(planned)[1].alone_because == "it ended its transaction when it was rehearsed"


# -- the way back ---------------------------------------------------------------------------------------------------------

LEAVE, FIRST, STOP = WayBack.LEAVE_SCHEMA, WayBack.RELEASE_FIRST, WayBack.STOP_WRITES


@pytest.mark.parametrize(
    ("ways", "old_release", "changed", "chosen", "why"),
    [
        # The preferred one of those that fit.
        ((LEAVE, FIRST, STOP), WORKS, {}, LEAVE, ["works on the present schema, as rehearsed"]),
        ((FIRST, LEAVE, STOP), WORKS, {}, FIRST, ["works on the present schema, as rehearsed"]),
        ((STOP, LEAVE), WORKS, {}, STOP, []),
        ((FIRST, STOP), WORKS, {}, FIRST, ["as rehearsed"]),
        # The old release doesn't work, or nobody knows.
        ((LEAVE, FIRST, STOP), BROKEN, {}, STOP, ["not leave_schema: the old release may not work on this schema (it lacks table public.x)", "not release_first"]),
        ((LEAVE, STOP), UNKNOWN, {}, STOP, ["(nobody tried)"]),
        ((LEAVE, STOP), OldRelease(works=None), {}, STOP, ["(nobody knows)"]),
        # It can't be put back by us; it may not start over the new stamp.
        ((LEAVE, FIRST, STOP), WORKS, {"starts_application": False}, STOP, ["no command is declared that puts", "no command"]),
        ((LEAVE, FIRST, STOP), WORKS, {"tolerates_stamp": False}, STOP, ["'deployment.tolerates_unknown_stamp'", "stamp"]),
        # Nothing that was allowed fits.
        ((LEAVE, FIRST), BROKEN, {}, None, ["not leave_schema", "not release_first"]),
        ((), WORKS, {}, None, []),
    ],
)  # fmt: skip
def test_the_first_allowed_way_that_fits_is_taken_and_the_others_say_why_not(
    ways: tuple[WayBack, ...],
    old_release: OldRelease,
    changed: dict[str, Any],
    chosen: WayBack | None,
    why: list[str],
) -> None:
    means = Means(**({"starts_application": True, "tolerates_stamp": True, "ways": ways} | changed))
    found, said = choose_way(means, old_release)
    assert found is chosen
    assert len(said) == len(why)
    assert all(part in sentence for part, sentence in zip(why, said, strict=True)), said


def test_a_way_that_the_policy_does_not_allow_is_never_taken() -> None:
    planned = plan(read(), ways=(LEAVE, FIRST), found={"old_release": BROKEN})
    assert any("the policy allows leave_schema, release_first alone" in text for text in planned.blockers)


def test_of_a_works_not_only_the_first_three_reasons_are_told() -> None:
    _, (said,) = choose_way(Means(ways=(LEAVE, STOP)), OldRelease(works=False, why=("a", "b", "c", "d")))
    assert "(a; b; c)" in said


def test_leaving_the_schema_puts_the_old_release_back_and_touches_no_table() -> None:
    planned = plan(read(**LOSSY), found=LOSS | {"old_release": WORKS}, **GENTLE)
    assert planned.way_back is LEAVE
    assert kinds(planned) == ["validate_before", "start_application", "validate_application", "confirm"]
    assert not planned.downgrades
    assert not planned.stops_writes
    assert planned.from_heads == planned.to_heads == ("r6",)
    assert planned.revisions == planned.loses == planned.lossy_tables == planned.archive == ()
    assert (planned.verdict, planned.rows_lost) == (Verdict.REVERSIBLE, 0)
    assert planned.blockers == planned.warnings == ()
    assert not any(step.past_return for step in planned.steps)
    assert [s.version for s in planned.steps if isinstance(s, StartApplication)] == ["1.0"]


def test_leaving_the_schema_is_not_blocked_by_a_downgrade_that_nobody_makes() -> None:
    of = {"r3": {"downgrade": DowngradeBody.RAISES}}
    planned = plan(read(**of), found={"old_release": WORKS}, **GENTLE)
    assert (planned.way_back, planned.blockers) == (LEAVE, ())
    assert plan(read(**of), found={"old_release": BROKEN}, **GENTLE).blockers != ()


def test_leaving_the_schema_needs_to_know_which_release_to_put_back() -> None:
    planned = plan(read(), found={"old_release": WORKS}, release_to="", **GENTLE)
    assert "nobody said which release ran before" in planned.blockers[0]


def test_release_first_puts_the_old_release_back_and_drains_before_anything_is_changed() -> None:
    planned = plan(
        read(**LOSSY),
        found=LOSS | {"old_release": WORKS},
        **(GENTLE | {"ways": (FIRST, STOP), "application": "shop-"}),
    )
    assert kinds(planned) == [
        "validate_before",
        "back_up",
        "prove_backup",
        "start_application",
        "drain",
        "downgrade",
        "validate_database",
        "validate_application",
        "confirm",
    ]
    assert not planned.stops_writes
    assert [s.application for s in planned.steps if isinstance(s, Drain)] == ["shop-"]
    first = kinds(planned).index("downgrade")
    assert [step.past_return for step in planned.steps] == [False] * first + [True] * 4
    assert planned.warnings == ()


@pytest.mark.parametrize("can", [True, False])
def test_the_proof_rehearses_where_the_backup_can_be_restored_for_it(can: bool) -> None:
    (proof,) = [s for s in plan(read(), can_rehearse_on_backup=can).steps if isinstance(s, ProveBackup)]
    assert (proof.rehearses, proof.level) == (can, 4)


# -- time and locks -------------------------------------------------------------------------------------------------------

SECOND = ARCHIVE_BYTES_A_SECOND


@pytest.mark.parametrize(
    ("kept", "size", "ahead"),
    [
        (item(), 5 * SECOND + 1, True),
        # Within the budget of five seconds.
        (item(), 5 * SECOND, False),
        # A column is taken to be half of its table.
        (item(kind=ArchiveKind.COLUMN, column="c"), 10 * SECOND + 2, True),
        (item(kind=ArchiveKind.COLUMN, column="c"), 10 * SECOND, False),
        # What changed since can't be told without a key; changed rows aren't there yet.
        (item(key=()), 50 * SECOND, False),
        (item(kind=ArchiveKind.ROWS), 50 * SECOND, False),
        (item(kind=ArchiveKind.NARROWED, column="c", new_type="integer"), 50 * SECOND, False),
        # What a later revision meets may not be there yet under that name.
        (item(revision="r5"), 50 * SECOND, False),
        # An unknown size is no reason.
        (item(table=U), 50 * SECOND, False),
    ],
)
def test_what_takes_longer_than_the_lock_budget_is_copied_ahead(
    kept: ArchiveItem, size: int, ahead: bool
) -> None:
    planned = plan(read(), found={"archive": (kept,), "sizes": {T: size}})
    assert [s.items for s in planned.steps if isinstance(s, CopyAhead)] == ([(kept,)] if ahead else [])
    # It is kept in any case, and what isn't copied ahead is archived under the lock.
    assert planned.archive == (kept,)
    expected = 0.0 if ahead or kept.table == U else size / SECOND / (2 if kept.column else 1)
    assert planned.estimate.archive_s == pytest.approx(expected, abs=0.001)
    assert planned.estimate.lock_s == pytest.approx(expected + 0.5, abs=0.001)


def test_the_lock_budget_is_the_targets() -> None:
    found = {"archive": (item(),), "sizes": {T: 3 * SECOND}}
    assert "copy_ahead" not in kinds(plan(read(), found=found))
    copied = plan(read(), found=found, lock_budget_s=2.0)
    # Before the application is stopped: that is what it is for.
    assert kinds(copied)[2:5] == ["prove_backup", "copy_ahead", "stop_application"]


@pytest.mark.parametrize(
    ("depth", "expected_s"), [(Depth.FULL, 0.5), (Depth.SCHEMA, 2.5), (Depth.SAMPLE, 2.5)]
)
def test_what_a_copy_without_all_rows_could_not_time_is_told_from_the_size(
    depth: Depth, expected_s: float
) -> None:
    revisions = tuple(ran(r, rewritten=(T,)) for r in PATH.revisions)
    shown = rehearsed(read(), depth=depth, revisions=revisions)
    planned = plan(read(), found={"rehearsal": shown, "sizes": {T: 2 * SECOND, U: SECOND}})
    assert planned.estimate.lock_s == expected_s
    # Dump, proof and the look beside it read everything; the watch afterwards keeps nobody waiting.
    assert planned.estimate.total_s == expected_s + 3 * 3


def test_values_without_a_key_are_warned_of() -> None:
    kept = (item(key=()), item(kind=ArchiveKind.COLUMN, table=U, column="c", key=()))
    (warning,) = plan(read(), found={"archive": kept}).warnings
    assert warning.startswith("public.u: no key")


def test_without_a_time_to_confirm_nothing_is_watched() -> None:
    assert "confirm" not in kinds(plan(read(), msgspec.structs.replace(TIMES, confirm_s=0)))


def test_everything_from_the_first_downgrade_on_is_past_the_point_of_no_return_and_nothing_before() -> None:
    planned = plan(
        read(r4={"statements": ("DROP INDEX CONCURRENTLY i",), "stands_alone": "index"}, **LOSSY), found=LOSS
    )
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
    planned = plan(read(**of), found={"one_transaction_each": one_transaction_each})
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
    revisions = read(**(quiet | {"r4": {"statements": statements, "failed": failed}}))
    planned = plan(revisions, found={"rehearsal": None})
    assert [g.changes_schema for g in groups(planned)] == [changes]


@pytest.mark.parametrize("differs", [True, False])
def test_whether_a_change_of_the_schema_is_expected_is_known_where_it_was_rehearsed(differs: bool) -> None:
    """What a statement says is one thing; that the same table is made again is another."""
    revisions = read(r4={"statements": ("DROP TABLE t", "CREATE TABLE t (c int)")})
    difference = SchemaDifference(removed=("table public.t",)) if differs else SchemaDifference()
    planned = plan(revisions, found={"rehearsal": rehearsed(revisions, difference=difference)})
    assert [g.changes_schema for g in groups(planned)] == [differs]


def test_of_several_groups_a_rehearsal_cannot_tell_which_one_changes_the_schema() -> None:
    of = read(r4=ALONE, r2={"statements": ("DELETE FROM t",)}, r3={"statements": ("DELETE FROM t",)})
    assert [g.changes_schema for g in groups(plan(of))] == [True, True, False]
    nothing = rehearsed(of, difference=SchemaDifference())
    assert [g.changes_schema for g in groups(plan(of, found={"rehearsal": nothing}))] == [False] * 3


def test_what_the_rehearsal_wrote_changes_rows_whatever_could_be_read() -> None:
    def changes_data(revisions: tuple[RehearsedRevision, ...]) -> list[bool]:
        shown = rehearsed(read(), revisions=revisions)
        return [g.changes_data for g in groups(plan(read(), found={"rehearsal": shown}))]

    assert changes_data(tuple(ran(r) for r in PATH.revisions)) == [False]
    written = WrittenTable(table=T, today=T, updated=1)
    assert changes_data(tuple(ran(r, written=(written,)) for r in PATH.revisions)) == [True]


def test_tables_that_the_way_back_renames_are_named_twice() -> None:
    shown = rehearsed(read(), renamed=((T, U),))
    assert plan(read(), found={"rehearsal": shown}).renamed == {"s.t": "public.u"}


def test_a_publication_of_every_table_is_warned_of_where_something_is_archived() -> None:
    found = {"publications": ("everything",)}
    assert plan(read(), found=found).warnings == ()
    (warning,) = plan(read(), found=found | {"archive": (item(),)}).warnings
    assert warning.startswith("everything publishes every table, archives included")


@pytest.mark.parametrize(
    "of", [{"failed": "TypeError: no rows"}, {"statements": ("DO $$ BEGIN DELETE FROM t; END $$",)}]
)
def test_what_cannot_be_read_is_announced_as_an_unknown_loss_unless_it_was_rehearsed(
    of: dict[str, Any],
) -> None:
    planned = plan(read(r4=of), found={"rehearsal": None})
    assert planned.loses == ("unknown: r4 can't be read without running it",)
    assert [r.id for r in planned.revisions if r.unread] == ["r4"]
    assert planned.warnings[2].startswith(
        "r4: what it does isn't fully known: it wasn't rehearsed; unknown ("
    )
    shown = plan(read(r4=of))
    assert shown.loses == shown.warnings == ()
    assert shown.verdict is Verdict.REVERSIBLE


def test_what_a_rehearsal_without_rows_cannot_tell_is_an_unknown_loss() -> None:
    revisions = tuple(ran(r, read=(T,) if r == "r4" else ()) for r in PATH.revisions)
    shown = rehearsed(read(), depth=Depth.SCHEMA, revisions=revisions)
    planned = plan(read(), found={"rehearsal": shown})
    assert planned.loses == ("unknown: it reads or writes rows of s.t, and was rehearsed without any",)
    assert planned.warnings[0].startswith("r4: what it does isn't fully known: it reads or writes rows")
    assert planned.blockers == ()


@pytest.mark.parametrize(
    "body", [DowngradeBody.RAISES, DowngradeBody.ASKS, DowngradeBody.MISSING, DowngradeBody.EMPTY]
)
def test_a_revision_that_cannot_be_taken_off_blocks_the_plan(body: DowngradeBody) -> None:
    planned = plan(
        read(r3={"downgrade": body}, r5={"downgrade": DowngradeBody.RAISES}), found={"rehearsal": None}
    )
    assert [blocker.split()[0] for blocker in planned.blockers] == ["r5", "r3"]
    assert planned.verdict is Verdict.IRREVERSIBLE


def test_what_failed_in_the_rehearsal_blocks_the_plan_and_what_comes_after_isnt_known() -> None:
    shown = rehearsed(
        read(),
        heads=("r5",),
        revisions=(ran("r6"),),
        failure=Failure(revision="r5", reason="column c contains null values"),
    )
    planned = plan(read(), found={"rehearsal": shown})
    assert planned.blockers == ("r5 will fail: column c contains null values",)
    assert [r.verdict for r in planned.revisions] == [
        Verdict.REVERSIBLE,
        Verdict.WILL_FAIL,
        *[Verdict.UNKNOWN] * 3,
    ]
    assert all("it comes after r5" in warning for warning in planned.warnings)
    assert planned.rehearsed.failure == "r5: column c contains null values"
    assert planned.estimate == Estimate()


def test_rows_that_are_surely_in_the_way_block_the_plan() -> None:
    obstacle = Obstacle(
        revision="r4", rule="not_null", name="c", table=U, columns=("c",), rows=3, sample=("7",)
    )
    planned = plan(
        read(),
        found={"rehearsal": rehearsed(read(), depth=Depth.SCHEMA), "risks": Risks(obstacles=(obstacle,))},
    )
    assert planned.blockers == (
        "r4 will fail: public.u(c): 3 rows hold NULL, which NOT NULL refuses, such as 7",
    )
    assert [r.obstacles for r in planned.revisions if r.obstacles] == [(obstacle,)]


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
    downgrades = [
        s for s in plan(read(), found={"never_transactional": True}).steps if isinstance(s, Downgrade)
    ]
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


def recovering(brings_back: bool = True) -> Plan:
    recovery = RecoverLost(
        timeout_s=9, backup="backup-1", revisions=("r6",), from_heads=("r5",), to_heads=("r6",)
    )
    return with_recovery(plan(read(**LOSSY), found=LOSS), recovery, brings_back=brings_back, times=TIMES)


def test_what_a_migration_took_away_is_recovered_before_the_stop_and_brought_back_after_the_checks() -> None:
    assert kinds(recovering())[2:8] == [
        "prove_backup",
        "recover_lost",
        "stop_application",
        "downgrade",
        "validate_database",
        "bring_back",
    ]


@pytest.mark.parametrize("brings_back", [True, False])
def test_recovering_what_is_lost_changes_nothing_and_bringing_it_back_comes_after_the_downgrade(
    brings_back: bool,
) -> None:
    planned = recovering(brings_back)
    first = kinds(planned).index("downgrade")
    expected = [False] * first + [True] * (len(planned.steps) - first)
    assert [step.past_return for step in planned.steps] == expected
    assert planned.sha256() != plan(read(**LOSSY), found=LOSS).sha256()


def test_what_a_migration_took_away_waits_in_the_archive_where_a_person_is_to_bring_it_back() -> None:
    assert "recover_lost" in kinds(recovering(brings_back=False))
    assert "bring_back" not in kinds(recovering(brings_back=False))


def gentle() -> Plan:
    return plan(read(), found={"old_release": WORKS}, **GENTLE)


def heavy() -> Plan:
    """Release first, with something that is copied ahead and something that stands alone."""
    found = LOSS | {"archive": (item(),), "sizes": {T: 50 * SECOND}, "old_release": WORKS}
    return plan(read(r4=ALONE, **LOSSY), found=found, **(GENTLE | {"ways": (FIRST,)}), application="shop")


@pytest.mark.parametrize(
    "planned",
    [plan(read(r4=ALONE, **LOSSY), found=LOSS), heavy(), gentle(), redeploy(), hold(), recovering()],
    ids=lambda p: p.way_back,
)
def test_a_plan_comes_back_from_the_store_equal_and_with_an_equal_digest(planned: Plan) -> None:
    stored = msgspec.json.encode(planned)
    back = msgspec.json.decode(stored, type=Plan)
    assert back == planned
    assert back.sha256() == planned.sha256()
    assert [type(step) for step in back.steps] == [type(step) for step in planned.steps]


def counted(rows: int) -> Risks:
    return Risks(at_risk=(RowsAtRisk(revision="r3", kind=RiskKind.DROPPED_TABLE, table=T, rows=rows),))


def test_the_digest_tells_plans_apart() -> None:
    shown = rehearsed(read())
    other = rehearsed(read(), revisions=tuple(ran(r, statements=("DROP INDEX j",)) for r in PATH.revisions))
    digests = [
        p.sha256()
        for p in (
            plan(read()),
            plan(read(r4=ALONE)),
            plan(read(), release_to="0.9"),
            # Another way, another verdict, something else to keep, something else to run, on something else.
            gentle(),
            plan(read(), found={"risks": counted(1)}),
            plan(read(), found={"archive": (item(),)}),
            plan(read(), found={"archive": (item(),), "sizes": {T: 50 * SECOND}}),
            plan(read(), found={"rehearsal": other}),
            plan(read(), found={"fingerprint": "other"}),
            plan(read(), found={"scripts_sha256": "other"}),
            # Not rehearsed, or rehearsed with less.
            plan(read(), found={"rehearsal": None}),
            plan(read(), found={"rehearsal": msgspec.structs.replace(shown, depth=Depth.SCHEMA)}),
        )
    ]
    assert len(set(digests)) == len(digests)


def test_the_digest_stays_when_rows_come_and_machines_are_slow() -> None:
    def at(rows: int, seconds: float, size: int) -> Plan:
        revisions = tuple(ran(r, seconds=seconds) for r in PATH.revisions)
        shown = rehearsed(read(), rows=rows, seconds=seconds, revisions=revisions)
        found = {"rehearsal": shown, "risks": counted(rows), "archive": (item(),), "sizes": {T: size}}
        return plan(read(), found=found)

    now, later = at(1204, 0.1, SECOND), at(1244, 0.2, 2 * SECOND)
    assert now.loses != later.loses
    assert now.estimate != later.estimate
    assert now.sha256() == later.sha256()


def test_every_step_says_itself_in_a_line() -> None:
    steps: list[Step] = [
        *plan(read(r4=ALONE, **LOSSY), found=LOSS, can_rehearse_on_backup=True).steps,
        *heavy().steps,
        *hold().steps,
        *recovering().steps,
    ]
    assert {step.kind for step in steps} == set(STEP_KINDS)
    lines = [step_text(step) for step in steps]
    assert "stop 2.0" in lines
    assert "prove the backup to L4, and rehearse the downgrade on the restored copy" in lines
    assert "prove the backup to L4" in lines
    assert "copy s.t into the archive ahead of the lock" in lines
    assert "recover what the migration took away, from backup-1" in lines
    assert "bring back what the migration took away" in lines
    assert "wait until the sessions of the replaced release are gone" in lines
    assert "archive, and downgrade r4 by itself (it works on an index concurrently), to r3" in lines
    assert all("\n" not in line for line in lines)
