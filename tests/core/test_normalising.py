"""Statements are shown without what they were run with: no literal of whatever form is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbackd.core.normalising import LONGEST, normalise

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT * FROM t WHERE a = 'hunter2' AND b = 17", "SELECT * FROM t WHERE a = ? AND b = ?"),
        ("SELECT 'it''s hunter2', x", "SELECT ?, x"),
        (r"SELECT E'it\'s hunter2', x", "SELECT ?, x"),
        (r"SELECT e'a\\', hunter", "SELECT ?, hunter"),
        ("SELECT $$hunter2 $ x$$, $tag$ a $$ hunter2 $tag$, y", "SELECT ?, ?, y"),
        ("SELECT B'101', x'1F', N'hunter2', U&'\\0068unter2' FROM t", "SELECT ?, ?, ?, ? …"),
        ('SELECT 1.5e-3, .5, 0x1F, 1_000, a1, "col 2", $1', 'SELECT ?, ?, ?, ?, a1, "col 2", $1'),
        ("SELECT a -- hunter2\n FROM /* hunter2 */ t", "SELECT a FROM t"),
        ("SELECT /* a /* hunter2 */ hunter2 */ b", "SELECT …"),
        # Cut off, as pg_stat_activity cuts its texts.
        ("SELECT 'hunter2", "SELECT ?"),
        ("SELECT E'hunter2\\", "SELECT ?"),
        ("SELECT $x$hunter2", "SELECT ?"),
        ("SELECT /* hunter2", "SELECT"),
        # A backslash in a plain string may hide its end, as the server is set: nothing behind it is shown.
        ("SELECT 'a\\', 'hunter2', hunter2 FROM t", "SELECT ? …"),
        ("ALTER ROLE r PASSWORD 'hunter2'", "ALTER ROLE r PASSWORD ?"),
        ("SET a.b TO 'x'; COPY t FROM '/f' (DELIMITER ',')", "SET a.b TO ?; COPY t FROM ? (DELIMITER ?)"),
        ("SELECT type'hunter2', a[1]::int4, f(-2)", "SELECT type?, a[?]::int4, f(-?)"),
        ("", ""),
    ],
)
def test_literals_and_comments_are_left_out(sql: str, shown: str) -> None:
    assert normalise(sql) == shown


@given(st.text(alphabet="ab1'\\$\"-/*E \n", max_size=20), st.text(alphabet="ab1'\\$\"-/*E \n", max_size=20))
def test_a_quoted_secret_is_never_shown_whatever_stands_around_it(before: str, after: str) -> None:
    """Around it are pieces that open and close everything there is; inside a string of its own it doesn't show.

    The text before is made whole, as the server would not have taken it otherwise.
    """
    whole = "SELECT " + "".join(character for character in before if character not in "'\\$\"-/*E")
    literal = "'" + SECRET + after.replace("\\", "").replace("'", "''") + "'"
    for sql in (f"{whole} {literal} FROM t", f"{whole} $q${SECRET}{after.replace('$', '')}$q$ FROM t"):
        assert SECRET not in normalise(sql)
        assert normalise(sql).endswith("? FROM t")


def test_a_long_statement_is_cut() -> None:
    assert len(normalise("SELECT " + "a, " * LONGEST)) == LONGEST
