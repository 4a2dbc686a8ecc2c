"""Made-up values: what each row shows, what each type gets, what is read out of a check."""

import re
from decimal import Decimal

import pytest

from rollbackd.core.made_up import (
    Face,
    Kind,
    Literals,
    candidates,
    literals_of,
    made_up,
    matching,
    number_for,
    of_length,
    tame,
    wide,
    wish,
)

TEXT = Kind(name="text")
SIMPLE = [
    "int2", "int4", "int8", "numeric", "float4", "float8", "text", "varchar", "bpchar", "name", "bytea", "date", "time",
    "timetz", "timestamp", "timestamptz", "interval", "uuid", "json", "jsonb", "inet", "cidr", "macaddr", "macaddr8", "varbit",
    "money", "point", "line", "lseg", "box", "path", "polygon", "circle", "tsvector", "tsquery", "xml", "pg_lsn", "oid",
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "nullable", "has_default", "faces"),
    [
        (3, False, False, "vvv"),
        (3, True, False, "vvn"),  # two values that can be the same, and a NULL
        (3, False, True, "vvd"),
        (4, True, True, "vdnv"),
        (6, True, False, "vvnvvn"),
        (2, True, False, "vn"),
        (2, False, True, "vd"),
        (2, True, True, "vn"),
    ],
)
def test_the_faces_of_a_column_over_the_rows(
    rows: int, nullable: bool, has_default: bool, faces: str
) -> None:
    wishes = [wish(row, rows, nullable=nullable, has_default=has_default) for row in range(rows)]
    assert "".join(w.face.value[0] for w in wishes) == faces
    values = [w.turn for w in wishes if w.face is Face.VALUE]
    assert values == list(range(len(values)))


@pytest.mark.parametrize(
    ("kind", "place", "numbers"),
    [
        (TEXT, None, [0, 0, 1, 1]),  # pairs
        (Kind(name="bool"), None, [0, 1, 2, 3]),  # all that there are
        (TEXT, (0, 1), [0, 1, 2, 3]),
        (TEXT, (0, 2), [0, 1, 1, 2]),
        (TEXT, (1, 2), [0, 0, 1, 1]),
    ],
)
def test_the_numbers_of_a_column_over_the_rows(
    kind: Kind, place: tuple[int, int] | None, numbers: list[int]
) -> None:
    assert [number_for(row, row, kind, place) for row in range(4)] == numbers


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_rows_differ_in_each_unique_index_however_many_columns_it_has(width: int) -> None:
    rows = [tuple(number_for(row, 0, TEXT, (place, width)) for place in range(width)) for row in range(20)]
    assert len(set(rows)) == 20


@pytest.mark.parametrize("name", SIMPLE)
def test_different_numbers_give_different_values(name: str) -> None:
    values = [made_up(Kind(name=name), number) for number in range(100)]
    assert None not in values
    assert len(set(values)) == 100


@pytest.mark.parametrize(
    ("kind", "number", "value"),
    [
        (Kind(name="int2"), 0, "512"),
        (Kind(name="int4"), wide(1), "131075"),
        (Kind(name="int8"), 0, "8589934592"),
        (Kind(name="int8"), tame(0), "1"),
        (Kind(name="int8"), 2, "-2"),
        (Kind(name="numeric", limit=6, scale=2), 0, "9999.99"),
        (Kind(name="numeric", limit=6, scale=2), 1, "1.25"),
        (Kind(name="numeric", limit=2, scale=4), 0, "0.0099"),
        (Kind(name="numeric", limit=3, scale=-2), 0, "99900"),
        (Kind(name="varchar", limit=7), 0, "0äÉß ñ~"),
        (Kind(name="varchar", limit=1), 37, "1"),
        (Kind(name="bit", limit=4), 4, "0101"),
        (Kind(name="bool"), 1, "false"),
        (Kind(name="timestamp"), 1, "2024-03-01 13:37:43.123456"),
        (Kind(name="enum", labels=("a", "b", "c")), 0, "a"),
        (Kind(name="enum", labels=("a", "b", "c")), 1, "c"),  # the last before the others
        (Kind(name="enum", labels=("a", "b", "c")), 2, "b"),
        (Kind(name="enum", labels=("a",)), 1, "a"),
        (Kind(name="enum"), 0, None),
        (Kind(name="array", parts=(Kind(name="int2"),)), 1, '{"1"}'),
        (Kind(name="array", parts=(Kind(name="int2"),)), 2, '{"-2",NULL}'),
        (Kind(name="array", parts=(Kind(name="box"),), delimiter=";"), 0, '{"(0.5,3),(0,0)";"(1.5,3),(0,0)"}'),
        (Kind(name="array", parts=(Kind(name="geography"),)), 0, None),
        (Kind(name="range", parts=(Kind(name="int4"),)), 3, '["6","7")'),
        (Kind(name="multirange", parts=(Kind(name="int4"),)), 1, '{["4","5"),["6","7")}'),
        (Kind(name="range", parts=(Kind(name="inet"),)), 3, "empty"),
        (Kind(name="composite", parts=(Kind(name="int4"), Kind(name="geography"), TEXT)), 1, '("1",,"1 Größe~ Grö")'),
        (Kind(name="geography"), 0, None),
    ],
)  # fmt: skip
def test_the_value_of_a_number(kind: Kind, number: int, value: str | None) -> None:
    assert made_up(kind, number) == value


def test_a_text_fills_its_limit_and_without_one_is_longer_than_any_usual_limit() -> None:
    for limit in (1, 2, 3, 10, 255, 5000):
        for number in (0, 3, 3_000):
            text = made_up(Kind(name="varchar", limit=limit), number) or ""
            assert len(text) == limit
            assert not text.endswith(" ")
    assert len(made_up(TEXT, 0) or "") > 255
    assert len(made_up(TEXT, 1) or "") < 20


def test_ranges_follow_each_other_without_overlap() -> None:
    ends: list[tuple[str, ...]] = []
    for number in range(5):
        text = made_up(Kind(name="range", parts=(Kind(name="timestamp"),)), number) or ""
        ends.append(tuple(re.findall(r'"([^"]+)"', text)))
    flat = [end for pair in ends for end in pair]
    assert flat == sorted(set(flat))


@pytest.mark.parametrize(
    ("expression", "texts", "numbers"),
    [
        ("(age > 18)", (), ("18",)),
        ("((n >= '-5'::integer) AND (n <= 7.25))", ("-5",), ("7.25", "-5")),
        ("(state = ANY (ARRAY['new'::text, 'it''s'::text]))", ("new", "it's"), ()),
        ('(length("col 12") <= 40)', (), ("40",)),  # no number inside of a name
        ("(col7 > int4(3))", (), ("3",)),
        ("(a <> '1e999999')", ("1e999999",), ()),
        ("(a <> 'NaN')", ("NaN",), ()),
    ],
)
def test_the_literals_of_an_expression(
    expression: str, texts: tuple[str, ...], numbers: tuple[str, ...]
) -> None:
    assert literals_of(expression) == Literals(texts, tuple(Decimal(n) for n in numbers))


@pytest.mark.parametrize(
    ("kind", "expression", "wanted"),
    [
        (Kind(name="int4"), "x > 5", "6"),
        (Kind(name="int4"), "x < 5", "4"),
        (Kind(name="int4"), "x > 10 AND x < 20", "15"),
        (Kind(name="numeric", limit=4, scale=3), "x > 0 AND x < 0.002", "0.001"),
        (TEXT, "x = 'new'", "new"),
        (Kind(name="date"), "x > '2031-05-05'::date", "2031-05-06"),
        (Kind(name="timestamptz"), "x >= '2031-05-05 00:00:00+00'", "2031-05-05 00:00:00+00:00"),
        (Kind(name="array", parts=(TEXT,)), "x <@ ARRAY['a', 'b']", '{"a","b"}'),
        (Kind(name="jsonb"), "x ? 'size'", '{"size": "x"}'),
        (Kind(name="inet"), "x = '10.0.0.1'", "10.0.0.1"),
    ],
)
def test_candidates_follow_from_literals(kind: Kind, expression: str, wanted: str) -> None:
    found = candidates(kind, literals_of(expression))
    assert wanted in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("length", [0, 1, 4, 60])
def test_there_are_candidates_of_each_length_that_a_check_speaks_of(length: int) -> None:
    found = candidates(TEXT, literals_of(f"length(x) = {length}"))
    assert {len(text) for text in found} >= {length, length + 1}
    assert any(len(text) == length and text == text.upper() for text in found)


def test_candidates_keep_to_the_types_limits() -> None:
    hints = literals_of("x > 70000 AND y = 'a long text' AND length(z) > 20")
    assert all(len(text) <= 4 for text in candidates(Kind(name="varchar", limit=4), hints))
    assert all(-(2**15) <= int(text) < 2**15 for text in candidates(Kind(name="int2"), hints))
    assert all(abs(Decimal(text)) < 100 for text in candidates(Kind(name="numeric", limit=4, scale=2), hints))


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[A-Z]{2,3}-\d{4}$",
        r"^[^@\s]+@[^@]+\.[a-z]{2,}$",
        r"^(inv|ord(er)?)_[0-9a-f]+$",
        r"^\+?[0-9 ]{5,}$",
        r"^[\w.-]{0,3}$",
        r"^(?:a|b)*?c{2}.$",
        r"^[]x]y\.$",
        r"^$",
    ],
)
def test_a_text_matches_the_pattern_that_it_was_made_for(pattern: str) -> None:
    for number in range(5):
        text = matching(pattern, number)
        assert text is not None
        assert re.search(pattern, text), text


@pytest.mark.parametrize("pattern", [r"(?=a)b", r"(a)\1", "[a", "(a", "a)", "a\\", r"\bx"])
def test_a_pattern_that_is_not_understood_has_no_text(pattern: str) -> None:
    assert matching(pattern, 0) is None


def test_patterns_choose_by_number() -> None:
    assert {matching("^(one|two|three)$", number) for number in range(3)} == {"one", "two", "three"}
    assert len({matching("^[a-z]{3}$", number) for number in range(10)}) == 10


def test_a_text_of_a_length_begins_with_its_number() -> None:
    assert of_length(35, 3, "x") == "zxx"
    assert of_length(36, 3, "x") == "10x"
    assert of_length(36 * 36, 2, "x") == "00"
    assert of_length(5, 0) == ""
