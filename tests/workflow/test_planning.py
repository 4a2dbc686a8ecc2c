"""Planning and rehearsing: how deep it goes, what is kept for next time, and what a plan is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from tests.workflow.conftest import MakeRig
from tests.workflow.fakes import KEPT, OLD, B
from tests.workflow.rig import Rig, a_target

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.gates import Gate, GateState
from rollbackd.core.planning.plan import Plan
from rollbackd.core.reading import ReadRevision
from rollbackd.core.rehearsal import Depth, Failure, NewRule, Rehearsal, RehearsedRevision, Way
from rollbackd.core.risks import Obstacle, Risks
from rollbackd.core.schema import Schema, TableName
from rollbackd.core.verdicts import Verdict
from rollbackd.core.verification import Verified
from rollbackd.errors import TransientError
from rollbackd.settings import Rehearsing, Scratch, Target
from rollbackd.workflow.planning import Planner
from rollbackd.workflow.rehearsing import read_items, rehearse

A = TableName("public", "a")
WAY = Way(revisions=("b",), from_heads=("b",), to_heads=("a",))
BIG = 10**12
USES_ROWS = {"revisions": (RehearsedRevision(id="b", seconds=0.1, read=(A,)),)}
IN_THE_WAY = Risks(
    obstacles=(Obstacle(revision="b", rule="not_null", name="c", table=A, columns=("c",), rows=2),)
)


def rehearsing(**settings: Any) -> Target:
    return msgspec.structs.replace(a_target(), rehearsal=Rehearsing(**settings))


async def a_rig(make_rig: MakeRig, target: Target | None = None) -> Rig:
    rig = await make_rig(target or a_target(), running=False)
    rig.world.upgrade()
    return rig


def planner(rig: Rig) -> Planner:
    return Planner(rig.guarded["shop"], rig.store, rig.clock)


async def plan(planner_: Planner, **options: Any) -> Plan:
    return await planner_.downgrade(("a",), **({"release_from": "2", "release_to": OLD} | options))


def depths(rig: Rig) -> list[Depth]:
    return [depth for depth, _ in rig.world.rehearsed]


# -- how deep -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "size", "shown", "counted", "expected"),
    [
        # Everything, where that is small.
        ("auto", 100, {}, Risks(), [Depth.FULL]),
        ("auto", 100, USES_ROWS, IN_THE_WAY, [Depth.FULL]),
        # Else the schema, and rows where the schema alone can't tell.
        ("auto", 101, {}, Risks(), [Depth.SCHEMA]),
        ("auto", 101, USES_ROWS, Risks(), [Depth.SCHEMA, Depth.SAMPLE]),
        ("auto", 101, {}, IN_THE_WAY, [Depth.SCHEMA, Depth.SAMPLE]),
        # What fails without rows fails with them.
        ("auto", 101, {"failure": Failure(revision="b", reason="no")}, IN_THE_WAY, [Depth.SCHEMA]),
        # As it is said.
        ("full", BIG, USES_ROWS, IN_THE_WAY, [Depth.FULL]),
        ("schema", 100, USES_ROWS, IN_THE_WAY, [Depth.SCHEMA]),
        ("sample", 100, {}, Risks(), [Depth.SCHEMA, Depth.SAMPLE]),
        ("none", 100, USES_ROWS, IN_THE_WAY, []),
    ],
)
async def test_a_rehearsal_goes_as_deep_as_it_has_to(
    make_rig: MakeRig,
    monkeypatch: pytest.MonkeyPatch,
    depth: Any,
    size: int,
    shown: dict[str, Any],
    counted: Risks,
    expected: list[Depth],
) -> None:
    rig = await a_rig(make_rig, rehearsing(depth=depth, full_up_to=100))
    guarded = rig.guarded["shop"]
    rig.world.shown = shown

    async def size_bytes() -> int:
        return size

    async def risks(rehearsal: Rehearsal, budget_s: float) -> Risks:
        return counted

    monkeypatch.setattr(guarded.rehearsals, "size_bytes", size_bytes)
    monkeypatch.setattr(guarded.database, "risks", risks)
    found = await rehearse(guarded, WAY, "fingerprint")
    assert depths(rig) == expected
    if expected:
        assert found.rehearsal is not None
        # The deepest, with what was counted on the database itself.
        assert (found.rehearsal.depth, found.risks) == (expected[-1], counted)
    else:
        assert found.rehearsal is None


async def test_without_a_scratch_server_nothing_is_rehearsed_and_a_person_answers_for_it(
    make_rig: MakeRig,
) -> None:
    rig = await a_rig(make_rig, msgspec.structs.replace(a_target(), scratch=Scratch()))
    planned, gates = await rig.operations.plan("shop", to="-1", release=OLD)
    assert rig.world.rehearsed == []
    assert planned.verdict is Verdict.UNKNOWN
    assert planned.rehearsed.unknown == "no rehearsal was made"
    # As far as it could be read it is archived all the same.
    assert [(i.kind, i.table.name, i.key) for i in planned.archive] == [(ArchiveKind.TABLE, "b", ("id",))]
    asked = {finding.gate: finding for finding in gates}
    assert asked[Gate.REHEARSAL].state is GateState.NEEDS_PERSON
    assert asked[Gate.DATA_LOSS].state is GateState.NEEDS_PERSON


async def test_a_scratch_server_that_is_not_there_is_said_and_breaks_nothing(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await a_rig(make_rig)

    async def size_bytes() -> int:
        raise TransientError("no route to scratch")

    monkeypatch.setattr(rig.guarded["shop"].rehearsals, "size_bytes", size_bytes)
    planned = await plan(planner(rig))
    assert planned.rehearsed.unknown == "no route to scratch"
    assert planned.verdict is Verdict.UNKNOWN


async def test_a_sample_that_could_not_be_taken_leaves_what_the_schema_showed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await a_rig(make_rig, rehearsing(depth="sample"))
    rehearsals = rig.guarded["shop"].rehearsals
    really = rehearsals.rehearse

    async def without_a_sample(way: Way, *, depth: Depth, **options: Any) -> Rehearsal:
        shown = await really(way, depth=depth, **options)
        return msgspec.structs.replace(shown, unknown="too large") if depth is Depth.SAMPLE else shown

    monkeypatch.setattr(rehearsals, "rehearse", without_a_sample)
    found = await rehearse(rig.guarded["shop"], WAY, "fingerprint")
    assert found.rehearsal is not None
    assert (found.rehearsal.depth, found.rehearsal.unknown) == (Depth.SCHEMA, "")


def rule(kind: str, *columns: str, **changed: Any) -> NewRule:
    usual = {"kind": kind, "name": "n", "table": A, "today": A, "columns": columns, "definition": ""}
    return NewRule(**(usual | changed))


async def test_a_sample_is_asked_to_hold_the_rows_that_are_in_the_way(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await a_rig(make_rig, rehearsing(depth="sample"))
    rules = (
        rule("not_null", 'c"d'),
        rule("unique", "x", "y"),
        # Neither there today, nor told by columns.
        rule("not_null", ""),
        rule("unique", "x", ""),
        rule("not_null", "c", today=None),
        rule("check", "c"),
    )
    rig.world.shown = {"revisions": (RehearsedRevision(id="b", seconds=0.1, new_rules=rules),)}
    asked: list[Mapping[TableName, Sequence[str]] | None] = []
    rehearsals = rig.guarded["shop"].rehearsals
    really = rehearsals.rehearse

    async def listen(way: Way, *, wanted: Any = None, **options: Any) -> Rehearsal:
        asked.append(wanted)
        return await really(way, wanted=wanted, **options)

    monkeypatch.setattr(rehearsals, "rehearse", listen)
    await rehearse(rig.guarded["shop"], WAY, "fingerprint")
    repeated = '("x", "y") IN (SELECT "x", "y" FROM "public"."a" GROUP BY "x", "y" HAVING count(*) > 1)'
    assert asked == [None, {A: ['"c""d" IS NULL', repeated]}]


# -- what is kept for next time ---------------------------------------------------------------------------------------------


async def test_a_plan_that_is_ready_is_given_again_and_one_that_has_to_be_fresh_counts_anew(
    make_rig: MakeRig,
) -> None:
    rig = await a_rig(make_rig)
    ours = planner(rig)
    first = await plan(ours)
    rig.world.rows = 40
    assert await plan(ours) is first
    fresh = await plan(ours, fresh=True)
    assert (first.rows_lost, fresh.rows_lost) == (3, 40)
    # The same scripts on the same schema: that needs no second rehearsal, and is no other plan.
    assert depths(rig) == [Depth.FULL]
    assert fresh.sha256() == first.sha256()


@pytest.mark.parametrize("what", ["schema", "scripts", "release", "wants_downgrade"])
async def test_whatever_a_plan_was_made_of_makes_a_new_one_when_it_changes(
    make_rig: MakeRig, what: str
) -> None:
    rig = await a_rig(make_rig)
    ours = planner(rig)
    first = await plan(ours)
    options: dict[str, Any] = {}
    match what:
        case "schema":
            rig.world.tables.add("new")
            options = {"fresh": True}
        case "scripts":
            rig.world.scripts = "scripts-2"
        case "release":
            options = {"release_to": "0"}
        case _:
            options = {"wants_downgrade": False}
    again = await plan(ours, **options)
    assert again is not first
    assert depths(rig) == [Depth.FULL] * (2 if what in ("schema", "scripts") else 1)


async def test_rows_that_came_into_the_way_since_make_a_rehearsal_old(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await a_rig(make_rig)
    ours, counted = planner(rig), [Risks()]

    async def risks(rehearsal: Rehearsal, budget_s: float) -> Risks:
        return counted[-1]

    monkeypatch.setattr(rig.guarded["shop"].database, "risks", risks)
    await plan(ours)
    await plan(ours, fresh=True)
    assert depths(rig) == [Depth.FULL]
    counted.append(IN_THE_WAY)
    await plan(ours, fresh=True)
    assert depths(rig) == [Depth.FULL] * 2
    # The same ones again are no news.
    await plan(ours, fresh=True)
    assert depths(rig) == [Depth.FULL] * 2


async def test_a_rehearsal_that_failed_is_made_again(make_rig: MakeRig) -> None:
    rig = await a_rig(make_rig)
    ours = planner(rig)
    rig.world.shown = {"failure": Failure(revision="b", reason="no space")}
    failed = await plan(ours)
    assert failed.blockers == ("b will fail: no space",)
    rig.world.shown = {}
    assert (await plan(ours, fresh=True)).blockers == ()
    assert depths(rig) == [Depth.FULL] * 2


# -- what a plan is made of -------------------------------------------------------------------------------------------------


async def test_a_plan_knows_the_schema_it_was_found_on_and_the_one_it_leads_to(make_rig: MakeRig) -> None:
    rig = await a_rig(make_rig)
    planned = await plan(planner(rig))
    assert planned.fingerprint == (await rig.guarded["shop"].database.schema()).fingerprint()
    expected = await rig.store.document(planned.rehearsed.expected_document)
    assert expected is not None
    assert (expected.schema, expected.heads, expected.rehearsed) == (Schema({"table a": "..."}), ("a",), True)
    # It was never seen in the database, and is no state of it.
    assert await rig.store.latest_document("shop") is None
    assert planned.archive == (KEPT,)


async def test_an_irreversible_revision_is_not_rehearsed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await a_rig(make_rig)

    async def read(revisions: tuple[str, ...]) -> dict[str, ReadRevision]:
        return {"b": msgspec.convert({"id": "b", "downgrade": "raises"}, ReadRevision)}

    monkeypatch.setattr(rig.guarded["shop"].worker, "read", read)
    planned = await plan(planner(rig))
    assert planned.verdict is Verdict.IRREVERSIBLE
    assert rig.world.rehearsed == []


def read(*statements: str) -> dict[str, ReadRevision]:
    return {"r": ReadRevision(id="r", statements=statements)}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DROP TABLE t", [("table", "a", "", ("id",)), ("table", "b", "", ())]),
        ("DELETE FROM t", [("rows", "a", "", ("id",)), ("rows", "b", "", ())]),
        ("UPDATE t SET c = 1", [("rows", "a", "", ("id",)), ("rows", "b", "", ())]),
        ("TRUNCATE t", [("rows", "a", "", ("id",)), ("rows", "b", "", ())]),
        ("ALTER TABLE t DROP COLUMN c", [("column", "a", "c", ("id",)), ("column", "b", "c", ())]),
        ("ALTER TABLE t ALTER c TYPE int", [("narrowed", "a", "c", ("id",)), ("narrowed", "b", "c", ())]),
        # A key that goes with the column is none.
        ("ALTER TABLE t DROP COLUMN id", [("column", "a", "id", ()), ("column", "b", "id", ())]),
        # Nothing that is known of, and a table that nobody finds.
        ("DO $$ x $$", []),
        ("DROP TABLE other", []),
        ("CREATE TABLE t (id int)", []),
    ],
)
def test_without_a_rehearsal_what_was_read_is_archived(
    statement: str, expected: list[tuple[str, str, str, tuple[str, ...]]]
) -> None:
    items = read_items(read(statement, statement), {"t": (A, B)}, {A: ("id",)})
    assert items == tuple(
        ArchiveItem(
            revision="r",
            kind=ArchiveKind(kind),
            table=TableName("public", table),
            column=column,
            key=key,
        )
        for kind, table, column, key in expected
    )


# -- standing still -----------------------------------------------------------------------------------------------------------


async def test_who_is_held_inside_a_revision_is_shown_what_its_downgrade_executed_when_the_gate_tried_it(
    make_rig: MakeRig,
) -> None:
    rig = await make_rig(a_target(), running=False)
    planning = planner(rig)
    rendered = (await planning.hold(("a",), "it stopped")).revisions[0].statements
    rig.world.verified = (Verified(revision="b", statements=("DROP TABLE executed",)),)
    await planning.verify_pending()
    assert (await planning.hold(("a",), "it stopped")).revisions[0].statements == ("DROP TABLE executed",)
    # Of other scripts it says nothing.
    rig.world.scripts = "others"
    assert (await planning.hold(("a",), "it stopped")).revisions[0].statements == rendered


# -- the price --------------------------------------------------------------------------------------------------------------


async def test_a_watched_deployment_has_a_price_that_is_kept_up_to_date(rig: Rig) -> None:
    await rig.deploy()

    async def priced() -> Any:
        return (await rig.deployment()).price

    price = await rig.until(priced)
    assert (price.rows_only_new, price.growth, price.verdict) == (3, 0.0, Verdict.LOSES_DATA)
    assert price.rehearsed == "full"
    rig.world.rows = 43
    rig.clock.advance(60)

    async def dearer() -> Any:
        found = await priced()
        return found if found.rows_only_new == 43 else None

    price = await rig.until(dearer)
    assert price.growth == pytest.approx(40, abs=0.1)

    def told() -> list[dict[str, object]]:
        return [fields for name, fields in rig.told if name == "way_back_priced"]

    await rig.until(lambda: len(told()) == 2)
    assert [fields["rows_only_new"] for fields in told()] == [3, 43]
    assert told()[-1]["text"] == price.text()
    # Counted again, and not rehearsed again.
    assert depths(rig) == [Depth.FULL]
