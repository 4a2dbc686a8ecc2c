"""The decision matrix: what refuses to load, and what the shipped one does in each scenario."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from rollbackd.core.facts import (
    Application,
    Bug,
    Data,
    Errors,
    Facts,
    Migration,
    Performance,
    Watch,
    every_combination,
)
from rollbackd.core.matrix import DOWNGRADING, MOVED_AND_KNOWN, Action, Matrix, load_matrix
from rollbackd.errors import ConfigurationError

SHIPPED = Path(__file__).parents[2] / "config" / "decision-matrix.toml"
LAST = {"name": "last", "action": "keep", "why": "nothing speaks against it"}


@pytest.fixture(scope="module")
def shipped() -> Matrix:
    return load_matrix(tomllib.loads(SHIPPED.read_text()), str(SHIPPED))


def facts(**changed: str) -> Facts:
    """A healthy deployment in its bake time, but for what is named."""
    usual = {
        "migration": "applied",
        "errors": "none",
        "performance": "normal",
        "bug": "none",
        "data": "intact",
        "application": "healthy",
        "watch": "baking",
    } | changed
    return Facts(
        migration=Migration(usual["migration"]),
        errors=Errors(usual["errors"]),
        performance=Performance(usual["performance"]),
        bug=Bug(usual["bug"]),
        data=Data(usual["data"]),
        application=Application(usual["application"]),
        watch=Watch(usual["watch"]),
    )


def row(name: str, action: str = "keep", **more: Any) -> dict[str, Any]:
    return {"name": name, "action": action, "why": "because", **more}


def problems_of(*rows: Any, **more: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as raised:
        load_matrix({"row": list(rows), **more}, "m.toml")
    return raised.value.problems


# -- proof ------------------------------------------------------------------------------------------------------------


def test_there_are_4032_combinations_of_facts_each_once() -> None:
    combinations = every_combination()
    assert len(combinations) == len({str(c) for c in combinations}) == 4032


def test_a_gap_is_refused_with_their_number_and_an_example() -> None:
    (problem,) = problems_of(row("a", when={"watch": "baking"}))
    assert "2016 combinations of facts match no row" in problem
    assert "watch=over" in problem


def test_an_empty_matrix_is_all_gap() -> None:
    assert "4032 combinations" in problems_of()[0]


@pytest.mark.parametrize(
    ("shadowing", "shadowed"),
    [
        # The same condition twice.
        ({"bug": "reported"}, {"bug": "reported"}),
        # A narrower one below a wider one.
        ({"bug": "reported"}, {"bug": "reported", "watch": "over"}),
        # All values of a fact named together are as wide as not naming it.
        ({"watch": ["baking", "over"]}, {"bug": "reported"}),
        # No value at all, and no alternative at all.
        ({"bug": "reported"}, {"watch": []}),
        ({"bug": "reported"}, []),
    ],
)
def test_a_row_that_can_never_match_is_refused(shadowing: Any, shadowed: Any) -> None:
    found = problems_of(row("first", when=shadowing), row("second", when=shadowed), LAST)
    assert any("'second' can never match" in problem for problem in found)


def test_an_alternative_that_can_never_match_is_refused_even_though_its_row_can() -> None:
    rows = [
        row("first", when={"bug": "reported"}),
        row("second", when=[{"watch": "over"}, {"bug": "reported", "watch": "baking"}]),
    ]
    (problem,) = problems_of(*rows, LAST)
    assert "'second', alternative 2, can never match" in problem


def test_of_several_alternatives_one_is_enough() -> None:
    matrix = load_matrix(
        {"row": [row("either", when=[{"bug": "reported"}, {"data": "loss_reported"}]), LAST]}, "m.toml"
    )
    assert matrix.first_match(facts(bug="reported")).name == "either"
    assert matrix.first_match(facts(data="loss_reported")).name == "either"
    assert matrix.first_match(facts()).name == "last"


@pytest.mark.parametrize("action", ["roll_back", "roll_back_with_deployment"])
@pytest.mark.parametrize("migration", [m.value for m in Migration if m not in MOVED_AND_KNOWN])
def test_no_row_may_downgrade_unless_a_revision_moved_and_is_known(action: str, migration: str) -> None:
    (problem,) = problems_of(row("eager", action, when={"migration": ["applied", migration]}), LAST)
    assert f"'eager' would downgrade with migration={migration}" in problem


@pytest.mark.parametrize("migration", sorted(m.value for m in MOVED_AND_KNOWN))
def test_a_row_may_downgrade_what_moved_and_is_known(migration: str) -> None:
    matrix = load_matrix({"row": [row("right", "roll_back", when={"migration": migration}), LAST]}, "m.toml")
    assert matrix.first_match(facts(migration=migration)).name == "right"


def test_a_downgrading_row_is_judged_by_what_reaches_it_and_not_by_what_it_names() -> None:
    taken = row(
        "taken", "investigate", when={"migration": [m.value for m in Migration if m not in MOVED_AND_KNOWN]}
    )
    load_matrix({"row": [taken, row("rest", "roll_back")]}, "m.toml")


def test_every_typo_is_reported_at_once() -> None:
    found = problems_of(
        row("a", when={"errrors": "firing", "watch": ["overr", "baking"]}),
        row("b", "rollback"),
        row("c", colour="red"),
        {"name": "d", "action": "keep"},
        row("e", hold=True),
        row("f", "roll_back_and_restore", when={"migration": "applied"}),
        row(
            "f2",
            "roll_back_and_restore",
            when={"migration": "applied", "data": ["loss_confirmed", "loss_reported"]},
        ),
        row("g", when=[{"bug": "minor"}]),
        LAST,
        LAST,
        rows=[],
    )
    expected = [
        "unknown key 'rows'",
        "row 'a': no fact 'errrors'; the facts are migration, errors,",
        "row 'a': watch is never 'overr'; it is one of baking, over",
        "row 2: Invalid enum value 'rollback'",
        "row 3: Object contains unknown field `colour`",
        "row 4: Object missing required field `why`",
        "row 'e': hold goes with action",
        "row 'f': roll_back_and_restore brings back what the migration took away",
        "row 'f2': roll_back_and_restore brings back what the migration took away",
        "row 'g': bug is never 'minor'; it is one of none, reported",
        "2 rows are named 'last'",
    ]
    assert len(found) == len(expected)
    for text in expected:
        assert any(text in problem for problem in found), text
    assert all(problem.startswith("m.toml: ") for problem in found)


def test_gap_shadow_and_unsafe_row_are_reported_at_once() -> None:
    found = problems_of(
        row("wide", "roll_back", when={"watch": "over"}),
        row("narrow", when={"watch": "over", "bug": "reported"}),
    )
    assert [
        word for p in found for word in ("match no row", "never match", "would downgrade") if word in p
    ] == [
        "match no row",
        "never match",
        "would downgrade",
    ]


def test_single_brackets_around_row_are_explained() -> None:
    with pytest.raises(ConfigurationError, match="two brackets"):
        load_matrix({"row": row("a")}, "m.toml")


# -- the shipped matrix -----------------------------------------------------------------------------------------------


def test_the_shipped_matrix_proves_and_has_these_rows(shipped: Matrix) -> None:
    assert sorted(r.name for r in shipped.rows) == sorted(
        {
            "migration-failed-inside-a-revision",
            "migration-failed-midway",
            "migration-failed-clean",
            "data-loss-by-the-migration",
            "data-loss-reported",
            "application-fails-after-good-migration",
            "application-fails-nothing-moved",
            "production-errors-after-deploy",
            "production-errors-nothing-moved",
            "performance-critical",
            "performance-degraded",
            "minor-bug-in-the-migration",
            "failing-but-where-the-database-stands-is-unknown",
            "no-data-at-the-end-of-the-bake-time",
            "healthy-at-the-end-of-the-bake-time",
            "still-watching",
        }
    )


@pytest.mark.parametrize(
    ("found", "name", "action"),
    [
        # The scenarios of the design, section 5.
        ({"migration": "failed_clean"}, "migration-failed-clean", "redeploy_only"),
        ({"migration": "failed_midway"}, "migration-failed-midway", "roll_back"),
        ({"migration": "failed_inside"}, "migration-failed-inside-a-revision", "investigate"),
        ({"errors": "firing"}, "production-errors-after-deploy", "roll_back"),
        ({"performance": "degraded"}, "performance-degraded", "investigate"),
        ({"performance": "critical"}, "performance-critical", "roll_back"),
        ({"bug": "reported"}, "minor-bug-in-the-migration", "fix_forward"),
        ({"data": "loss_confirmed"}, "data-loss-by-the-migration", "roll_back_and_restore"),
        # A claim alone is none of the migration's doing.
        ({"data": "loss_reported"}, "data-loss-reported", "investigate"),
        ({"data": "loss_not_by_migration"}, "data-loss-reported", "investigate"),
        ({"data": "loss_not_by_migration", "errors": "firing"}, "data-loss-reported", "investigate"),
        (
            {"data": "loss_confirmed", "migration": "failed_midway"},
            "data-loss-by-the-migration",
            "roll_back_and_restore",
        ),
        # Where it stands isn't known, or nothing is on: nothing to take off.
        ({"data": "loss_confirmed", "migration": "unknown"}, "data-loss-reported", "investigate"),
        ({"data": "loss_confirmed", "migration": "not_moved"}, "data-loss-reported", "investigate"),
        (
            {"data": "loss_confirmed", "migration": "failed_inside"},
            "migration-failed-inside-a-revision",
            "investigate",
        ),
        ({"application": "failing"}, "application-fails-after-good-migration", "roll_back_with_deployment"),
        # A deploy that moved no revision never leads to a downgrade.
        (
            {"migration": "not_moved", "application": "failing"},
            "application-fails-nothing-moved",
            "redeploy_only",
        ),
        ({"migration": "not_moved", "errors": "firing"}, "production-errors-nothing-moved", "redeploy_only"),
        ({"migration": "not_moved", "performance": "critical"}, "performance-degraded", "investigate"),
        # Nobody knows the revision, or it is on its way.
        (
            {"migration": "unknown", "application": "failing"},
            "failing-but-where-the-database-stands-is-unknown",
            "investigate",
        ),
        (
            {"migration": "running", "errors": "firing"},
            "failing-but-where-the-database-stands-is-unknown",
            "investigate",
        ),
        ({"migration": "unknown", "performance": "critical"}, "performance-degraded", "investigate"),
        # No data decides nothing while it bakes, and doesn't pass at the end.
        ({"application": "unknown"}, "still-watching", "keep"),
        ({"migration": "unknown"}, "still-watching", "keep"),
        ({"application": "unknown", "watch": "over"}, "no-data-at-the-end-of-the-bake-time", "investigate"),
        ({"migration": "unknown", "watch": "over"}, "no-data-at-the-end-of-the-bake-time", "investigate"),
        ({"migration": "running", "watch": "over"}, "no-data-at-the-end-of-the-bake-time", "investigate"),
        # All is well.
        ({}, "still-watching", "keep"),
        ({"watch": "over"}, "healthy-at-the-end-of-the-bake-time", "keep"),
        ({"watch": "over", "migration": "not_moved"}, "healthy-at-the-end-of-the-bake-time", "keep"),
        # Several at once: the worse news decides.
        ({"bug": "reported", "errors": "firing"}, "production-errors-after-deploy", "roll_back"),
        (
            {"bug": "reported", "application": "failing"},
            "application-fails-after-good-migration",
            "roll_back_with_deployment",
        ),
        ({"bug": "reported", "performance": "critical"}, "performance-critical", "roll_back"),
        ({"bug": "reported", "performance": "degraded"}, "performance-degraded", "investigate"),
        (
            {"performance": "unknown", "watch": "over"},
            "no-data-at-the-end-of-the-bake-time",
            "investigate",
        ),
        (
            {"errors": "unknown", "watch": "over"},
            "no-data-at-the-end-of-the-bake-time",
            "investigate",
        ),
        ({"errors": "unknown", "performance": "unknown"}, "still-watching", "keep"),
        ({"performance": "degraded", "errors": "firing"}, "production-errors-after-deploy", "roll_back"),
        (
            {"performance": "critical", "migration": "unknown", "errors": "firing"},
            "failing-but-where-the-database-stands-is-unknown",
            "investigate",
        ),
        # Lost rows come before every rollback: it could destroy what is left of them.
        ({"data": "loss_reported", "errors": "firing"}, "data-loss-reported", "investigate"),
        ({"data": "loss_reported", "migration": "failed_midway"}, "data-loss-reported", "investigate"),
        # But nothing comes before a schema that is neither old nor new.
        (
            {"data": "loss_reported", "migration": "failed_inside"},
            "migration-failed-inside-a-revision",
            "investigate",
        ),
    ],
)
def test_in_this_scenario_this_row_of_the_shipped_matrix_decides(
    shipped: Matrix, found: dict[str, str], name: str, action: str
) -> None:
    decided = shipped.first_match(facts(**found))
    assert (decided.name, decided.action) == (name, action)


def test_the_shipped_matrix_changes_nothing_where_it_should_not_in_any_combination(shipped: Matrix) -> None:
    for combination in every_combination():
        action = shipped.first_match(combination).action
        speaks_against = (
            combination.errors is Errors.FIRING,
            combination.performance in (Performance.DEGRADED, Performance.CRITICAL),
            combination.application is Application.FAILING,
            combination.migration in (Migration.FAILED_CLEAN, Migration.FAILED_MIDWAY),
            combination.data is Data.LOSS_CONFIRMED,
        )
        if action in DOWNGRADING:
            assert combination.migration in MOVED_AND_KNOWN
            # A downgrade may destroy what is left of rows that somebody misses; unless it brings back what was taken.
            restores = action is Action.ROLL_BACK_AND_RESTORE
            assert combination.data is (Data.LOSS_CONFIRMED if restores else Data.INTACT)
        if action in DOWNGRADING or action is Action.REDEPLOY_ONLY:
            assert any(speaks_against), "no data and rumours alone never act"
        if action is Action.KEEP:
            assert not any(speaks_against)
            unsettled = (
                combination.application is Application.UNKNOWN
                or combination.errors is Errors.UNKNOWN
                or combination.performance is Performance.UNKNOWN
                or combination.migration in (Migration.UNKNOWN, Migration.RUNNING)
            )
            assert combination.watch is Watch.BAKING or not unsettled, "no data never passes"


def test_which_rows_of_the_shipped_matrix_do_not_wait_and_which_hold(shipped: Matrix) -> None:
    assert {r.name for r in shipped.rows if r.at_once} == {
        "migration-failed-inside-a-revision",
        "migration-failed-midway",
        "migration-failed-clean",
        "data-loss-by-the-migration",
        "data-loss-reported",
    }
    assert {r.name for r in shipped.rows if r.hold} == {"migration-failed-inside-a-revision"}


def test_every_row_of_the_shipped_matrix_says_why_and_what_to_do_next(shipped: Matrix) -> None:
    for shipped_row in shipped.rows:
        assert len(shipped_row.why.split()) > 8
        assert shipped_row.action is Action.KEEP or shipped_row.next_steps
