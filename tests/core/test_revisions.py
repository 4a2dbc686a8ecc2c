"""What a person may type for a revision, and the way down to it."""

from __future__ import annotations

import pytest

from rollbackd.core.revisions import Revision, RevisionGraph
from rollbackd.errors import RefusedError


def graph(*lines: tuple[str, str] | tuple[str, str, str]) -> RevisionGraph:
    """Lines of (id, parents, dependencies), ids parted by blanks."""
    return RevisionGraph(
        tuple(
            Revision(
                id=line[0],
                down=tuple(line[1].split()),
                depends_on=tuple(line[2].split()) if len(line) > 2 else (),
                branch_labels=("billing",) if line[0] == "x1" else (),
            )
            for line in lines
        )
    )


# a1 ─ b1 ─┬─ m1 ─ n1        x1 ─ x2 is a branch of its own
#      c1 ─┘
HISTORY = graph(
    ("a1", ""), ("b1", "a1"), ("c1", "a1"), ("m1", "b1 c1"), ("n1", "m1"), ("x1", ""), ("x2", "x1")
)


@pytest.mark.parametrize(
    ("current", "asked", "heads"),
    [
        # An id, the beginning of one, and blanks around it.
        (("n1",), "m1", ("m1",)),
        (("n1",), " m ", ("m1",)),
        # base, on one branch and on two.
        (("n1",), "base", ()),
        (("n1", "x2"), "base", ()),
        # Steps, until below the first revision.
        (("n1",), "-1", ("m1",)),
        (("x2",), "-1", ("x1",)),
        (("x2",), "-2", ()),
        # The heads that remain, in any order and said twice.
        (("n1",), "c1,b1", ("b1", "c1")),
        (("n1",), "b1, c1, b1", ("b1", "c1")),
        # Below both parents of a merge there is nothing ambiguous.
        (("n1",), "a1", ("a1",)),
        # Another branch is named to be kept.
        (("n1", "x2"), "m1,x2", ("m1", "x2")),
        (("n1", "x2"), "m1,x1", ("m1", "x1")),
        # Equal is resolved; that there is nothing to do is for path_down to say.
        (("n1",), "n1", ("n1",)),
    ],
)
def test_what_is_typed_resolves_to_the_heads_that_are_meant(
    current: tuple[str, ...], asked: str, heads: tuple[str, ...]
) -> None:
    assert HISTORY.resolve(asked, current) == heads


@pytest.mark.parametrize(
    ("current", "asked", "says"),
    [
        # Nothing, and nothing known.
        (("n1",), "  ", "no revision was named"),
        (("n1",), "zzz", "no script has the revision zzz; the newest here are n1, x2"),
        (("n1",), "m1,", "no revision was named between two commas"),
        # The beginning of two.
        (("x2",), "x", "x is the beginning of x1, x2: write out which is meant"),
        # Steps that mean more than one thing, or nothing.
        (("m1",), "-1", "-1 is ambiguous: m1 merges b1, c1; say --to b1,c1"),
        (("n1",), "-2", "-2 is ambiguous: m1 merges b1, c1"),
        (("n1", "x2"), "-1", "-1 is ambiguous: the heads are n1, x2"),
        (("x2",), "-3", "-3 goes below base"),
        (("x2",), "-0", "-0 isn't a number of steps"),
        (("x2",), "-one", "-one isn't a number of steps"),
        # Relative to a branch, and a branch.
        (("x2",), "billing@-1", "billing@-1 is relative to a branch"),
        (("x2",), "billing", "billing is a branch label"),
        # Above, and beside.
        (("b1",), "n1", "n1 lies ahead of b1: that would be an upgrade"),
        (("n1",), "x1", "x1 isn't below n1: it lies on another branch"),
        # One side of a merge leaves the other one, which has to be said.
        (("n1",), "b1", "leaves the heads b1, c1: say --to b1,c1"),
        (("n1", "x2"), "m1", "leaves the heads m1, x2: say --to m1,x2"),
        # Two of which one stands on the other.
        (("n1",), "a1,b1", "leaves the heads b1"),
        # The stamp of a release whose scripts aren't here.
        (("gone",), "a1", "revision gone has no script here: bring back the release that holds it"),
        (("gone",), "-1", "revision gone has no script here"),
    ],
)
def test_what_is_unclear_is_refused_in_a_sentence(current: tuple[str, ...], asked: str, says: str) -> None:
    with pytest.raises(RefusedError) as refused:
        HISTORY.resolve(asked, current)
    assert says in str(refused.value)


def test_the_way_down_takes_children_before_parents_and_says_the_heads_after_each() -> None:
    path = HISTORY.path_down(("n1", "x2"), ("a1",))
    assert path.revisions == ("x2", "x1", "n1", "m1", "c1", "b1")
    assert path.heads_after == (("n1", "x1"), ("n1",), ("m1",), ("b1", "c1"), ("b1",), ("a1",))
    assert (path.from_heads, path.to_heads) == (("n1", "x2"), ("a1",))


def test_the_way_to_base_ends_with_an_empty_version_table() -> None:
    path = HISTORY.path_down(("x2",), ())
    assert path.revisions == ("x2", "x1")
    assert path.to_heads == path.heads_after[-1] == ()


def test_a_dependency_comes_back_as_a_head_and_is_taken_off_only_when_asked_for() -> None:
    depending = graph(("a1", ""), ("d1", ""), ("b1", "a1", "d1"))
    assert depending.heads() == ("b1",)
    assert depending.path_down(("b1",), ("a1", "d1")).heads_after == (("a1", "d1"),)
    assert depending.path_down(("b1",), ("a1",)).revisions[0] == "b1"


def test_a_redundant_row_that_alembic_leaves_is_in_the_path() -> None:
    """b2 names b1 and a1 as parents and b1 stands on a1: Alembic's table keeps a1 beside b1 if another head is there."""
    redundant = graph(("a1", ""), ("b1", "", "a1"), ("b2", "b1", "a1"), ("o1", ""))
    assert redundant.path_down(("b2",), ("b1",)).to_heads == ("b1",)
    odd = graph(("a1", ""), ("b1", "", "a1"), ("c1", "", "a1 b1"), ("o1", ""))
    assert odd.path_down(("c1", "o1"), ("b1", "o1")).to_heads == ("a1", "b1", "o1")


@pytest.mark.parametrize(
    ("current", "wanted", "says"),
    [
        (("n1",), ("n1",), "the database is at n1 already"),
        ((), (), "the database is at base already"),
        (("b1",), ("m1",), "m1 lies ahead of b1"),
        (("b1",), ("c1",), "c1 isn't below b1: it lies on another branch"),
        ((), ("a1",), "a1 isn't below base"),
        (("n1",), ("a1", "b1"), "a1, b1 can't all be heads: one stands on another"),
        (("gone",), ("a1",), "revision gone has no script here"),
        (("n1",), ("gone",), "revision gone has no script here"),
    ],
)
def test_where_there_is_no_way_down_it_is_said_why(
    current: tuple[str, ...], wanted: tuple[str, ...], says: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        HISTORY.path_down(current, wanted)
    assert says in str(refused.value)


def test_the_same_path_comes_out_whatever_the_order_of_the_scripts() -> None:
    reversed_scripts = RevisionGraph(tuple(HISTORY[r] for r in reversed(HISTORY.ids())))
    assert reversed_scripts.path_down(("n1", "x2"), ()) == HISTORY.path_down(("x2", "n1"), ())
    assert "a1" in HISTORY
    assert "zz" not in HISTORY
