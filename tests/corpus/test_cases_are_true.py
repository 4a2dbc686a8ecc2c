"""What the corpus says is true: each case is built and taken back by plain Alembic, and the database is looked at."""

import json

import psycopg
import pytest
from tests.corpus.build import BuiltCase
from tests.corpus.case import Case
from tests.corpus.conftest import BuildCase
from tests.corpus.everything import CASES
from tests.corpus.rows import lost_between

from rollbackd.core.schema import compare_schemas

pytestmark = pytest.mark.slow

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
SUCCEEDS = {"reversible", "reversible_with_loss", "unknown"}


def standing(built: BuiltCase, *, heads_before: tuple[str, ...], unchanged: bool) -> str:
    """Where the database stands, from its version table and catalog alone."""
    heads = built.heads()
    if heads == heads_before:
        return "from" if unchanged else "neither"
    is_clean = built.schema() == built.schemas.get(heads)
    if heads == built.case.expect.heads_after and built.case.expect.outcome == "to":
        return "to"
    return "intermediate" if is_clean else "neither"


@each_case
def test_plain_alembic_ends_where_the_case_says(case: Case, build_case: BuildCase) -> None:
    """The outcome, the heads, what is gone and what is lost are as stated; and the way up again, where there is one."""
    built, expect = build_case(case), case.expect
    heads, schema, before = built.heads(), built.schema(), built.contents()
    if expect.outcome == "not_run":
        assert heads == expect.heads_after
        return
    assert all(built.has(name) for name in expect.gone_after)
    if case.concurrent:
        built.stage.run(built.database, case.concurrent)
        before = built.contents()

    said = built.downgrade()

    schema_after, after = built.schema(), built.contents()
    unchanged = schema_after == schema and after.rows == before.rows
    assert standing(built, heads_before=heads, unchanged=unchanged) == expect.outcome, said.text
    assert built.heads() == expect.heads_after, said.text
    assert [name for name in expect.gone_after if built.has(name)] == []
    assert [name for name in expect.there_after if not built.has(name)] == []
    assert (expect.outcome == "to") == (set(expect.verdict.values()) <= SUCCEEDS)
    for revision, verdict in expect.verdict.items():
        if verdict == "will_fail" and not said.claims_success:
            assert expect.why[revision].lower() in said.text.lower()
    lost = lost_between(before, after, expect.moved, built.recast)
    # Values that one revision drops before another drops their table are said on their own.
    for name in expect.lost.keys() - lost.keys():
        table, _, column = name.rpartition(".")
        if table in lost:
            lost[name] = sum(json.loads(row)[column] is not None for row in before.rows[table])
    if expect.outcome != "neither":
        assert lost == dict(expect.lost)
    if expect.outcome != "to":
        return
    assert said.claims_success
    assert ("reversible_with_loss" in expect.verdict.values()) == bool(expect.lost) or expect.why
    drift = compare_schemas(built.schemas[expect.heads_after], schema_after).lines()
    assert any(expect.drift in line for line in drift) if expect.drift else drift == []

    again = built.upgrade(*case.at.split(","))

    assert again.claims_success == (not expect.upgrade_fails), again.text
    assert expect.upgrade_fails in again.text
    assert not (expect.restored and expect.upgrade_fails)
    if expect.restored:
        assert built.heads() == heads
        # What is still missing is for `rollbackd restore`, and was said before; where nothing is lost, nothing is missing.
        missing = lost_between(before, built.contents(), {}, built.recast)
        assert all(any(f"{name}.".startswith(f"{table}.") for name in expect.lost) for table in missing)


def test_forced_row_security_hides_rows_from_who_migrates(build_case: BuildCase) -> None:
    """Why that case must not be run: its role sees one row of three, and an error where it asks to see all or nothing."""
    built = build_case(next(case for case in CASES if case.name == "row_security_forced_upon_the_owner"))
    with psycopg.connect(built.url(None), autocommit=True) as connection:
        assert connection.execute("SELECT count(secret) FROM customer").fetchall() == [(1,)]
        connection.execute("SET row_security = off")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            connection.execute("SELECT count(secret) FROM customer")


def test_every_case_is_said_once_and_reaches_what_it_names() -> None:
    """Names are unique, verdicts name revisions of the case, and each reason belongs to a verdict that needs one."""
    assert len({case.name for case in CASES}) == len(CASES) >= 64
    for case in CASES:
        expect, ids = case.expect, {revision.id for revision in case.revisions}
        assert expect.verdict.keys() <= ids, case.name
        assert expect.alone <= ids, case.name
        need_a_reason = {
            r for r, v in expect.verdict.items() if v in ("irreversible", "will_fail", "unknown")
        }
        assert expect.why.keys() == need_a_reason, case.name
        assert expect.refused or expect.verdict, case.name
        assert case.about.endswith("?" if "?" in case.about else "."), case.name
