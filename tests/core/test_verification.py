"""What a verification says: which rows changed, which schema drifted, what counts, and how a CI system is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbackd.core.rehearsal import ChangedColumn, GoneColumn, GoneTable, RehearsedRevision
from rollbackd.core.schema import SchemaDifference, TableName
from rollbackd.core.verification import (
    FAILING,
    Fault,
    Found,
    Verification,
    Verified,
    baseline_of,
    changed_rows,
    drift,
    lost_data,
    to_github,
    to_text,
)

T, OTHER = TableName("public", "t"), TableName("public", "Other")


def found(fault: Fault, text: str = "why") -> Found:
    return Found(fault=fault, text=text)


def verified(revision: str, *faults: Fault, path: str = "versions/a.py", text: str = "why") -> Verified:
    return Verified(
        revision=revision,
        title=f"title of {revision}",
        path=path,
        line=7,
        found=tuple(found(fault, text) for fault in faults),
    )


# -- rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "details"),
    [
        ({T: ("(1,a)", "(2,b)")}, {T: ("(1,a)", "(2,b)")}, None),
        ({T: ("(1,a)", "(2,b)")}, {T: ("(2,b)", "(1,a)", "(3,c)")}, None),  # another order, and one made up since
        ({T: ("(1,a)", "(2,b)")}, {T: ("(1,a)", "(2,B)")}, ("public.t: 1 of 2 rows are changed or gone",)),
        ({T: ("(1,a)", "(2,b)")}, {T: ()}, ("public.t: 2 of 2 rows are changed or gone",)),
        ({T: ("(1,a)",)}, {}, ("public.t: 1 of 1 rows are changed or gone",)),  # the table itself is gone
        ({T: ("(a)", "(a)")}, {T: ("(a)",)}, ("public.t: 1 of 2 rows are changed or gone",)),  # each twin counts
        ({T: ("(a)",)}, {T: ("(a)", "(a)")}, None),
        ({T: ()}, {}, None),
        ({}, {T: ("(a)",)}, None),
        (
            {T: ("(a)",), OTHER: ("(b)", "(c)")},
            {T: (), OTHER: ("(b)",)},
            (
                'public."Other": 1 of 2 rows are changed or gone',
                "public.t: 1 of 1 rows are changed or gone",
            ),
        ),
    ],
)  # fmt: skip
def test_a_row_that_was_there_must_be_there_again_as_it_was(
    before: dict[TableName, tuple[str, ...]],
    after: dict[TableName, tuple[str, ...]],
    details: tuple[str, ...] | None,
) -> None:
    """By its text, as often as it was there; in which order, and what came since, doesn't matter."""
    fault = changed_rows(before, after)
    assert (fault.details if fault is not None else None) == details
    if fault is not None:
        assert fault.fault is Fault.CHANGES_ROWS
        assert all(detail in fault.text for detail in fault.details)


rows = st.lists(st.sampled_from(["(a)", "(b)", "(c)"]), max_size=6)


@given(rows, rows)
def test_rows_that_came_since_never_hide_one_that_is_gone(kept: list[str], new: list[str]) -> None:
    """Whatever is added, what was there counts by itself."""
    assert changed_rows({T: tuple(kept)}, {T: tuple(new + kept)}) is None
    gone = changed_rows({T: (*kept, "(gone)")}, {T: tuple(new + kept)})
    assert gone is not None
    assert gone.details == (f"public.t: 1 of {len(kept) + 1} rows are changed or gone",)


# -- schema and loss -------------------------------------------------------------------------------------------------------


def test_a_schema_that_is_another_one_afterwards_drifts() -> None:
    """The sentence names the first differences, the details all of them."""
    assert drift(SchemaDifference()) is None
    fault = drift(
        SchemaDifference(added=("type public.mood",), changed=tuple(f"table public.t{n}" for n in range(9)))
    )
    assert fault is not None
    assert fault.fault is Fault.DRIFTS
    assert fault.text.startswith(
        "doesn't return to the schema that was there: + type public.mood, ~ table public.t0"
    )
    assert fault.text.endswith("and 6 more")
    assert len(fault.details) == 10


def test_what_only_the_new_schema_holds_is_named_and_what_is_computed_isnt() -> None:
    """Tables, columns, and values that the old type can't hold."""
    column = GoneColumn(table=T, column="c", today=T, today_column="c")
    ran = RehearsedRevision(
        id="r",
        seconds=0.1,
        gone_tables=(GoneTable(table=OTHER, today=OTHER),),
        gone_columns=(column, GoneColumn(table=T, column="g", today=T, today_column="g", generated=True)),
        changed_columns=(
            ChangedColumn(table=T, column="n", today=T, today_column="n", old_type="bigint", new_type="integer", keeps_values=False),
            ChangedColumn(table=T, column="m", today=T, today_column="m", old_type="integer", new_type="bigint", keeps_values=True),
        ),
    )  # fmt: skip
    fault = lost_data(ran)
    assert fault is not None
    assert fault.fault is Fault.LOSES_DATA
    assert fault.details == (
        'table public."Other"',
        "column public.t.c",
        "values of public.t.n that integer can't hold",
    )
    assert lost_data(RehearsedRevision(id="r", seconds=0.1)) is None


# -- what counts -----------------------------------------------------------------------------------------------------------


def test_every_fault_counts_but_loss_which_is_in_a_downgrades_nature() -> None:
    """Unless somebody says otherwise, either way."""
    assert set(FAILING) == set(Fault) - {Fault.LOSES_DATA}
    lossy = Verification(verified=(verified("a", Fault.LOSES_DATA),))
    assert lossy.passes()
    assert not Verification(verified=lossy.verified, failing=tuple(Fault)).passes()
    drifting = Verification(verified=(verified("a", Fault.DRIFTS),))
    assert not drifting.passes()
    assert Verification(verified=drifting.verified, failing=(Fault.IRREVERSIBLE,)).passes()


def test_what_wasnt_verified_hasnt_passed() -> None:
    """However good the rest is."""
    assert Verification(verified=(verified("a"),)).passes()
    assert not Verification(verified=(verified("a"),), stopped="b can't be put on").passes()


def test_a_baseline_forgives_the_faults_that_it_names_of_the_revision_that_it_names() -> None:
    """Another fault of the same revision, and the same fault of another one, count."""
    known = {"old": (Fault.DRIFTS,)}
    seen = (verified("old", Fault.DRIFTS, Fault.IRREVERSIBLE), verified("new", Fault.DRIFTS))
    failures = Verification(verified=seen, accepted=known).failures()
    assert [(revision.revision, fault.fault) for revision, fault in failures] == [
        ("old", Fault.IRREVERSIBLE),
        ("new", Fault.DRIFTS),
    ]
    assert Verification(verified=seen[:1], accepted={"old": (Fault.DRIFTS, Fault.IRREVERSIBLE)}).passes()


def test_a_baseline_that_was_just_written_forgives_all_there_is_and_holds_no_loss() -> None:
    """Written as JSON and read again: the very same verification passes."""
    seen = (
        verified("a", Fault.IRREVERSIBLE, Fault.DRIFTS),
        verified("b", Fault.LOSES_DATA),
        verified("c"),
        verified("d", Fault.CHANGES_ROWS, Fault.LOSES_DATA),
    )
    written = json.loads(json.dumps(baseline_of(seen)))
    assert written == {"a": ["drifts", "irreversible"], "d": ["changes_rows"]}
    accepted = {revision: tuple(Fault(fault) for fault in faults) for revision, faults in written.items()}
    assert not Verification(verified=seen).passes()
    assert Verification(verified=seen, accepted=accepted).passes()


# -- how it is told --------------------------------------------------------------------------------------------------------


def test_as_text_each_revision_has_a_line_and_each_fault_a_sentence() -> None:
    """A cross only where something counts; the last line sums up."""
    told = to_text(
        Verification(
            verified=(
                verified("a"),
                verified("b", Fault.LOSES_DATA, text="takes away table public.t"),
                verified("c", Fault.DOWNGRADE_FAILS, Fault.DRIFTS),
                verified("d", Fault.DRIFTS),
            ),
            accepted={"d": (Fault.DRIFTS,)},
            seconds=1.25,
            stopped="e can't be put on",
        )
    )
    assert told.splitlines() == [
        "✓ a  title of a: reversible",
        "✓ b  title of b: loses data",
        "    takes away table public.t",
        "✗ c  title of c: downgrade fails, drifts",
        "    why",
        "    why",
        "✓ d  title of d: drifts",
        "    why (in the baseline)",
        "✗ stopped: e can't be put on",
        "4 revisions verified in 1.2 s, 1 with faults that count",
    ]


def test_github_gets_an_error_for_what_counts_and_a_notice_for_the_rest() -> None:
    """One line a fault, none for a revision without; where the path isn't known, without a place."""
    told = to_github(
        Verification(
            verified=(
                verified("a"),
                verified("b", Fault.LOSES_DATA, Fault.DRIFTS),
                verified("c", Fault.IRREVERSIBLE, path=""),
            ),
            accepted={"c": (Fault.IRREVERSIBLE,)},
            stopped="d can't be put on",
        )
    )
    assert told.splitlines() == [
        "::notice file=versions/a.py,line=7,title=b%3A loses_data::why",
        "::error file=versions/a.py,line=7,title=b%3A drifts::why",
        "::notice title=c%3A irreversible::why",
        "::error title=verify-migrations stopped::d can't be put on",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("100% sure", "100%25 sure"),
        ("one\ntwo\r\nthree", "one%0Atwo%0D%0Athree"),
        ("%0A isn't a newline", "%250A isn't a newline"),
        ("a: b, c", "a: b, c"),
        ("::error::forged", "::error::forged"),
    ],
)
def test_github_annotations_escape_what_would_end_or_forge_one(text: str, escaped: str) -> None:
    """Percent signs first, then line ends; what a database says stays in its one line."""
    seen = Verification(verified=(verified("a", Fault.DRIFTS, text=text),), stopped=text)
    fault, stopped = to_github(seen).split("\n")
    assert fault == f"::error file=versions/a.py,line=7,title=a%3A drifts::{escaped}"
    assert stopped == f"::error title=verify-migrations stopped::{escaped}"


def test_github_properties_escape_commas_and_colons_too() -> None:
    """A path may hold them, and they part one property from the next."""
    seen = Verification(verified=(verified("a", Fault.DRIFTS, path="ver,sions/a:b 100%\n.py"),))
    assert to_github(seen) == ("::error file=ver%2Csions/a%3Ab 100%25%0A.py,line=7,title=a%3A drifts::why")


@given(st.text(max_size=12), st.text(max_size=12))
def test_whatever_is_said_is_one_annotation_each(text: str, path: str) -> None:
    """A runner reads line by line, and properties up to the first `::`."""
    seen = Verification(verified=(verified("a", Fault.DRIFTS, path=path, text=text),))
    told = to_github(seen)
    assert "\n" not in told
    assert "\r" not in told
    head, _, data = told.removeprefix("::error ").partition("::")
    assert head.count(",") == (2 if path else 0)
    assert data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%") == text
