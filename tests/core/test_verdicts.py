"""Verdicts: what taking each revision off will do, and whether the old release works on the present schema."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollbackd.core.reading import DowngradeBody, ReadRevision
from rollbackd.core.rehearsal import (
    Depth,
    Failure,
    GoneColumn,
    GoneTable,
    Rehearsal,
    RehearsedRevision,
    WrittenTable,
)
from rollbackd.core.risks import OWNERSHIP, Obstacle, RiskKind, Risks, RowsAtRisk
from rollbackd.core.schema import SchemaDifference, TableName
from rollbackd.core.verdicts import Verdict, judge_old_release, judge_revisions

T, U = TableName("public", "t"), TableName("public", "u")
V = Verdict
WRITES = WrittenTable(table=T, today=T, deleted=3)


def ran(revision: str = "r", **changed: Any) -> RehearsedRevision:
    return RehearsedRevision(id=revision, seconds=0.1, **changed)


def rehearsal(*revisions: RehearsedRevision, **changed: Any) -> Rehearsal:
    usual: dict[str, Any] = {
        "depth": Depth.FULL,
        "from_heads": ("r",),
        "to_heads": ("q",),
        "heads": ("q",),
        "revisions": revisions or (ran(),),
    }
    return Rehearsal(**(usual | changed))


def lost(rows: int, **changed: Any) -> RowsAtRisk:
    return RowsAtRisk(
        **({"revision": "r", "kind": RiskKind.DROPPED_TABLE, "table": T, "rows": rows} | changed)
    )


def obstacle(rows: int, **changed: Any) -> Obstacle:
    usual = {"revision": "r", "rule": "not_null", "name": "c", "table": T, "columns": ("c",), "rows": rows}
    return Obstacle(**(usual | changed))


def risks(*at_risk: RowsAtRisk, obstacles: tuple[Obstacle, ...] = ()) -> Risks:
    return Risks(at_risk=at_risk, obstacles=obstacles)


SCHEMA, SAMPLE, FULL = Depth.SCHEMA, Depth.SAMPLE, Depth.FULL
FAILED = Failure(revision="r", reason="column c contains null values")
IN_THE_WAY = risks(obstacles=(obstacle(2),))
PERHAPS = risks(obstacles=(obstacle(2, certain=False),))
FOREIGN = risks(obstacles=(Obstacle(revision="r", rule=OWNERSHIP, name="ann", table=T),))
UNCOUNTED = risks(obstacles=(obstacle(-1, unknown="out of time"),))


@pytest.mark.parametrize(
    ("read", "rehearsed", "found", "verdict", "says"),
    [
        # Rehearsed to the end, and nothing goes.
        ({}, rehearsal(), risks(), V.REVERSIBLE, ""),
        ({}, rehearsal(depth=SAMPLE), risks(), V.REVERSIBLE, ""),
        ({}, rehearsal(depth=SCHEMA), risks(), V.REVERSIBLE, ""),
        ({"statements": ("DO $$ BEGIN NULL; END $$",)}, rehearsal(), risks(), V.REVERSIBLE, ""),
        # What would go is empty today.
        ({}, rehearsal(), risks(lost(0)), V.REVERSIBLE, ""),
        # Something goes.
        ({}, rehearsal(), risks(lost(2)), V.LOSES_DATA, "2 rows of public.t go"),
        ({}, rehearsal(depth=SCHEMA), risks(lost(2)), V.LOSES_DATA, "2 rows of public.t go"),
        # Nobody knows how much, and so whether all of it can be kept.
        ({}, rehearsal(), risks(lost(-1, unknown="no time")), V.UNKNOWN, "an unknown number"),
        ({}, rehearsal(), risks(lost(2), lost(-1, unknown="no time")), V.UNKNOWN, "2 rows of public.t go; an unknown"),
        # The copy is ours; what belongs to somebody else there may not be altered in earnest.
        ({}, rehearsal(), FOREIGN, V.WILL_FAIL, "public.t belongs to ann, and the role that migrates may not alter it"),
        # Of another revision's doing.
        ({}, rehearsal(), risks(lost(2, revision="x")), V.REVERSIBLE, ""),
        # It can't be taken off, whatever was rehearsed.
        ({"downgrade": DowngradeBody.RAISES}, rehearsal(), risks(lost(2)), V.IRREVERSIBLE, "declared irreversible"),
        ({"downgrade": DowngradeBody.RAISES}, None, risks(), V.IRREVERSIBLE, "declared irreversible"),
        ({"downgrade": DowngradeBody.EMPTY}, rehearsal(), risks(), V.IRREVERSIBLE, "silently irreversible"),
        ({"downgrade": DowngradeBody.EMPTY, "upgrade_is_empty": True}, rehearsal(), risks(), V.REVERSIBLE, ""),
        # It failed on the copy.
        ({}, rehearsal(revisions=(), heads=("r",), failure=FAILED), risks(), V.WILL_FAIL, "null values"),
        # It ran, and the version table doesn't show it.
        ({}, rehearsal(heads=("r",)), risks(), V.WILL_FAIL, "says r instead of q: the stamp is lost"),
        ({}, rehearsal(heads=()), risks(), V.WILL_FAIL, "says base instead of q: the stamp is lost"),
        # Never reached.
        ({}, rehearsal(ran("x")), risks(), V.UNKNOWN, "the rehearsal didn't reach it"),
        # Rows in the way: a copy with all of them would have met them.
        ({}, rehearsal(depth=SCHEMA), IN_THE_WAY, V.WILL_FAIL, "2 rows hold NULL"),
        ({}, rehearsal(depth=SAMPLE), IN_THE_WAY, V.WILL_FAIL, "2 rows hold NULL"),
        ({}, rehearsal(depth=FULL), IN_THE_WAY, V.REVERSIBLE, ""),
        # The way back may mend them first, and a sample that holds some of them has shown that it does.
        ({}, rehearsal(depth=SCHEMA), PERHAPS, V.UNKNOWN, "2 rows hold NULL"),
        ({}, rehearsal(depth=SAMPLE), PERHAPS, V.REVERSIBLE, ""),
        ({}, rehearsal(depth=SCHEMA), UNCOUNTED, V.UNKNOWN, "couldn't be counted (out of time)"),
        ({}, rehearsal(depth=SCHEMA), risks(obstacles=(obstacle(0),)), V.REVERSIBLE, ""),
        ({}, rehearsal(depth=SCHEMA), risks(obstacles=(obstacle(2, revision="x"),)), V.REVERSIBLE, ""),
        # What surely fails outweighs what may.
        ({}, rehearsal(depth=SCHEMA), risks(obstacles=(obstacle(1, certain=False), obstacle(2))), V.WILL_FAIL, "2 rows"),
        # An empty copy proves little of what works on rows.
        ({}, rehearsal(ran(written=(WRITES,)), depth=SCHEMA), risks(lost(1)), V.UNKNOWN, "rows of public.t, and was rehearsed without any"),
        ({}, rehearsal(ran(read=(U, T)), depth=SCHEMA), risks(), V.UNKNOWN, "rows of public.t, public.u, and was"),
        ({}, rehearsal(ran(written=(WRITES,)), depth=SAMPLE), risks(lost(1)), V.LOSES_DATA, "1 row of public.t goes"),
        ({}, rehearsal(ran(read=(T,)), depth=FULL), risks(), V.REVERSIBLE, ""),
        # Nothing was rehearsed: a reading says what is lost, and never that nothing can go wrong.
        ({}, None, risks(), V.UNKNOWN, "it wasn't rehearsed"),
        ({"statements": ("DROP TABLE t",)}, None, risks(), V.UNKNOWN, "it wasn't rehearsed; every row of t"),
        ({"statements": ("DO $$ x $$",)}, None, risks(), V.UNKNOWN, "it wasn't rehearsed; unknown ("),
        ({}, rehearsal(heads=(), revisions=(), unknown="no scratch"), risks(), V.UNKNOWN, "it couldn't be rehearsed: no scratch"),
    ],
)  # fmt: skip
def test_each_revision_is_judged_by_the_best_that_is_known_of_it(
    read: dict[str, Any], rehearsed: Rehearsal | None, found: Risks, verdict: Verdict, says: str
) -> None:
    judged = judge_revisions(("r",), {"r": ReadRevision(id="r", **read)}, rehearsed, found)["r"]
    assert judged.verdict is verdict
    assert says in "; ".join(judged.why)
    assert bool(judged.why) == (verdict is not V.REVERSIBLE)


READ = {name: ReadRevision(id=name) for name in ("c", "b", "a")}


def test_nothing_is_known_of_what_comes_after_a_failure() -> None:
    failed = rehearsal(
        ran("c"), heads=("b",), failure=Failure(revision="b", reason="no such table"), to_heads=()
    )
    judged = judge_revisions(("c", "b", "a"), READ, failed, risks(lost(1, revision="c")))
    assert {name: one.verdict for name, one in judged.items()} == {
        "c": V.LOSES_DATA,
        "b": V.WILL_FAIL,
        "a": V.UNKNOWN,
    }
    assert judged["a"].why == ("it comes after b, which can't be taken off",)


def test_nothing_is_known_of_what_comes_after_an_irreversible_one_but_that_it_is_irreversible_too() -> None:
    raises = {"downgrade": DowngradeBody.RAISES}
    read = READ | {name: ReadRevision(id=name, **raises) for name in ("c", "a")}
    judged = judge_revisions(("c", "b", "a"), read, None, risks())
    assert [one.verdict for one in judged.values()] == [V.IRREVERSIBLE, V.UNKNOWN, V.IRREVERSIBLE]
    assert "after c" in judged["b"].why[0]


def test_a_lost_stamp_puts_the_first_of_the_path_in_doubt_and_with_it_the_rest() -> None:
    stamped = rehearsal(ran("c"), ran("b"), ran("a"), heads=("b",), to_heads=())
    judged = judge_revisions(("c", "b", "a"), READ, stamped, risks())
    assert [one.verdict for one in judged.values()] == [V.WILL_FAIL, V.UNKNOWN, V.UNKNOWN]
    assert "says b instead of base" in judged["c"].why[0]


def test_verdicts_are_in_the_order_from_best_to_worst() -> None:
    assert list(Verdict) == [V.REVERSIBLE, V.LOSES_DATA, V.UNKNOWN, V.WILL_FAIL, V.IRREVERSIBLE]


# -- the old release ------------------------------------------------------------------------------------------------------


def difference(*lines: str) -> SchemaDifference:
    found: dict[str, list[str]] = {"+": [], "-": [], "~": []}
    for line in lines:
        found[line[0]].append(line[2:])
    return SchemaDifference(added=tuple(found["+"]), removed=tuple(found["-"]), changed=tuple(found["~"]))


def gone(**changed: Any) -> GoneColumn:
    return GoneColumn(**({"table": T, "column": "c", "today": T, "today_column": "c"} | changed))


@pytest.mark.parametrize(
    ("lines", "of_revision", "against"),
    [
        # What the downgrade only takes away the old release can live with.
        ([], {}, []),
        (["- table public.n", "- column public.n.id", "- index public.n_i"], {}, []),
        (["- column public.t.c"], {"gone_columns": (gone(),)}, []),
        (["+ index public.i", "~ index public.j"], {}, []),
        (["+ constraint public.t t_check"], {}, []),
        (["+ owner of table public.t", "~ comment on table public.t"], {}, []),
        # What it adds the old release lacks now.
        (["+ table public.o", "+ column public.o.id"], {}, ["it lacks table public.o", "it lacks column public.o.id"]),
        (["+ view public.v", "+ function public.f()"], {}, ["it lacks view public.v", "it lacks function public.f()"]),
        # What it changes isn't as the old release knows it.
        (["~ column public.t.c"], {}, ["column public.t.c isn't as it knows it"]),
        # A rule that goes is one that the old release's writes may break.
        (["- constraint public.t.t_check"], {"gone_constraints": ("public.t.t_check",)}, ["its writes may break constraint public.t.t_check"]),
        # … unless all that it is about is a column that the old release doesn't know.
        (["- constraint public.t.t_check"], {}, []),
        (["- trigger public.t.audit"], {}, ["its writes may break trigger public.t.audit"]),
        # … unless it goes with a table that the old release doesn't know.
        (["- table public.t", "- constraint public.t.t_check"], {"gone_tables": (GoneTable(table=T, today=T),)}, []),
        ([], {"gone_unique_indexes": ("t_c_key",)}, ["its writes may break the unique index t_c_key"]),
        # Its inserts don't name a column that it doesn't know.
        ([], {"gone_columns": (gone(required=True),)}, ["its inserts leave public.t.c empty, which is NOT NULL without a default"]),
        # Rows that are rewritten on the way back are rows that it may not read.
        ([], {"written": (WRITES,)}, ["rows of public.t are rewritten on the way back"]),
        ([], {"written": (WrittenTable(table=T, today=T, inserted=3, may_lose=False),)}, []),
    ],
)  # fmt: skip
def test_the_old_release_can_live_with_what_the_downgrade_only_takes_away(
    lines: list[str], of_revision: dict[str, Any], against: list[str]
) -> None:
    found = judge_old_release(rehearsal(ran(**of_revision), difference=difference(*lines)))
    assert found.why == tuple(against)
    assert found.works is (not against)


@pytest.mark.parametrize(
    "rehearsed",
    [
        None,
        rehearsal(unknown="no scratch"),
        rehearsal(failure=FAILED),
        rehearsal(heads=("r",)),
    ],
)
def test_without_a_rehearsal_that_passed_nobody_knows_whether_the_old_release_works(
    rehearsed: Rehearsal | None,
) -> None:
    assert judge_old_release(rehearsed).works is None


def test_a_reason_against_the_old_release_is_told_once() -> None:
    twice = rehearsal(ran("r", written=(WRITES,)), ran("q", written=(WRITES,)))
    assert judge_old_release(msgspec.structs.replace(twice)).why == (
        "rows of public.t are rewritten on the way back",
    )
