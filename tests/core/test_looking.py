"""Schemas, checks, and where a database stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbackd.core.checks import Finding, Outcome, worst
from rollbackd.core.schema import Schema, SchemaDifference, TableName, compare_schemas
from rollbackd.core.standing import Standing, where_it_stands

OBJECTS = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=6)


def test_a_difference_names_what_came_went_and_changed_in_order() -> None:
    before = Schema({"table a": "1", "table b": "1", "index z": "1", "index y": "1"})
    after = Schema({"table a": "2", "table b": "1", "table d": "1", "table c": "1"})
    difference = compare_schemas(before, after)
    assert difference.lines() == ["+ table c", "+ table d", "- index y", "- index z", "~ table a"]
    assert difference.summary() == "+ table c, + table d, - index y, - index z and 1 more"
    assert difference.summary(most=5) == "+ table c, + table d, - index y, - index z, ~ table a"


@given(OBJECTS, OBJECTS)
def test_the_fingerprint_is_the_same_exactly_when_nothing_differs(
    left: dict[str, str], right: dict[str, str]
) -> None:
    difference = compare_schemas(Schema(left), Schema(right))
    assert difference.is_empty() == (left == right)
    if "\0" not in "".join([*left, *left.values(), *right, *right.values()]):
        assert (Schema(left).fingerprint() == Schema(right).fingerprint()) == (left == right)


def test_the_fingerprint_heeds_no_order() -> None:
    objects = {"table a": "1", "table b": "2"}
    assert Schema(objects).fingerprint() == Schema(dict(reversed(objects.items()))).fingerprint()


def test_without_owners_a_schema_equals_its_copy_on_another_server() -> None:
    objects = {"table public.t": "1", "comment on table public.t": "hi"}
    owned = {"owner of table public.t": "ann", "grants on table public.t": "bob=r/ann"}
    assert Schema(objects | owned).without_owners() == Schema(objects)
    assert compare_schemas(Schema(objects), Schema(objects | owned)).added == (
        "grants on table public.t",
        "owner of table public.t",
    )


@pytest.mark.parametrize(
    ("table", "text", "sql"),
    [
        (TableName("public", "orders"), "public.orders", '"public"."orders"'),
        (TableName("public", "Orders"), 'public."Orders"', '"public"."Orders"'),
        # A dot, a quote and a space in a name can't end it.
        (TableName("a.b", 'c"d e'), '"a.b"."c""d e"', '"a.b"."c""d e"'),
    ],
)
def test_a_table_is_named_for_people_and_for_statements(table: TableName, text: str, sql: str) -> None:
    assert (table.text(), table.sql()) == (text, sql)


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        # Nothing checked is nothing known.
        ([], Outcome.UNKNOWN),
        ([Outcome.PASSED, Outcome.PASSED], Outcome.PASSED),
        ([Outcome.PASSED, Outcome.WARNED], Outcome.WARNED),
        # What couldn't be checked weighs more than a warning and less than a failure.
        ([Outcome.WARNED, Outcome.UNKNOWN], Outcome.UNKNOWN),
        ([Outcome.FAILED, Outcome.UNKNOWN, Outcome.PASSED], Outcome.FAILED),
    ],
)
def test_the_worst_check_wins(outcomes: list[Outcome], verdict: Outcome) -> None:
    assert worst(tuple(Finding(check="c", outcome=o, text="t") for o in outcomes)) is verdict


SAME, OTHER = SchemaDifference(), SchemaDifference(removed=("column public.a.b",))


@pytest.mark.parametrize(
    ("now", "difference", "expects_change", "standing", "says"),
    [
        # Where it should be, with the change, without one to expect, and where nothing was documented.
        (("a",), OTHER, True, Standing.TO, "the database is at a, as wanted"),
        (("a",), SAME, False, Standing.TO, "as wanted"),
        (("a",), OTHER, False, Standing.TO, "as wanted"),
        (("a",), None, True, Standing.TO, "as wanted"),
        # The stamp moved alone.
        (("a",), SAME, True, Standing.NEITHER, "the stamp moved and the downgrade's changes are missing"),
        # Where it was, whole.
        (("b", "c"), SAME, True, Standing.FROM, "unchanged"),
        (("c", "b"), SAME, False, Standing.FROM, "the database is at b + c, unchanged"),
        # The stamp stayed alone: a lost stamp.
        (("b", "c"), OTHER, True, Standing.NEITHER, "the schema has changed: - column public.a.b"),
        # Nobody can say.
        (("b", "c"), None, True, Standing.NEITHER, "nobody can say that it is whole"),
        # Somewhere else.
        (("b",), OTHER, True, Standing.NEITHER, "the version table says b, which is neither b + c nor a"),
        ((), OTHER, True, Standing.NEITHER, "the version table says base, which is neither"),
    ],
)
def test_where_a_database_stands_is_judged_by_version_table_and_catalog(
    now: tuple[str, ...],
    difference: SchemaDifference | None,
    expects_change: bool,
    standing: Standing,
    says: str,
) -> None:
    found = where_it_stands(now, ("b", "c"), ("a",), difference, expects_change=expects_change)
    assert found.standing is standing
    assert says in found.statement
