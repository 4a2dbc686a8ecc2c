"""What a rehearsed way back would cost today's rows, counted on a real database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from tests.adapters.conftest import Role, Stage

from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.risks.measuring import measure_risks
from rollbackd.core.rehearsal import (
    ChangedColumn,
    Depth,
    GoneColumn,
    GoneTable,
    NewRule,
    RanStatement,
    Rehearsal,
    RehearsedRevision,
    WrittenTable,
)
from rollbackd.core.risks import Obstacle, RiskKind, Risks, RowsAtRisk
from rollbackd.core.schema import Schema, TableName

T = TableName("public", "t")
P = TableName("public", "p")
Measure = Callable[..., Awaitable[Risks]]


def rehearsal(*revisions: RehearsedRevision, depth: Depth = Depth.SCHEMA, **more: Any) -> Rehearsal:
    return Rehearsal(depth=depth, from_heads=("r9",), to_heads=("r0",), revisions=revisions, **more)


def revision(name: str = "r1", **parts: Any) -> RehearsedRevision:
    return RehearsedRevision(id=name, seconds=0.1, **parts)


def gone_column(column: str, table: TableName = T) -> GoneColumn:
    return GoneColumn(table=table, column=column, today=table, today_column=column)


def changed(
    new_type: str, using: str = "", *, column: str = "v", table: TableName = T, **more: Any
) -> ChangedColumn:
    fields = {"today": table, "today_column": column, **more}
    return ChangedColumn(
        table=table, column=column, old_type="", new_type=new_type, keeps_values=False, using=using, **fields
    )


def rule(
    kind: str, columns: tuple[str, ...], definition: str = "", table: TableName = T, **more: Any
) -> NewRule:
    return NewRule(
        kind=kind,
        name=f"{kind}_rule",
        table=table,
        today=table,
        columns=columns,
        definition=definition,
        **more,
    )


def ran(sql: str, *writes: TableName, reads: tuple[TableName, ...] = ()) -> RanStatement:
    return RanStatement(sql=sql, seconds=0.0, writes=writes, reads=reads)


def writing(*statements: RanStatement, name: str = "r1", **parts: Any) -> RehearsedRevision:
    tables = dict.fromkeys(table for statement in statements for table in statement.writes)
    written = tuple(WrittenTable(table=table, today=table) for table in tables)
    return revision(name, statements=statements, written=written, **parts)


def only(risks: Risks) -> RowsAtRisk:
    (risk,) = risks.at_risk
    return risk


def obstacle(risks: Risks) -> Obstacle:
    (found,) = risks.obstacles
    return found


@pytest.fixture
async def measure(stage: Stage) -> AsyncIterator[Measure]:
    """Makes a database out of statements and measures a rehearsal on it."""
    made: list[asyncpg.Connection] = []

    async def measured(
        statements: list[str],
        found: Rehearsal | RehearsedRevision,
        *,
        budget_s: float = 20.0,
        role: Role | None = None,
        **more: Any,
    ) -> Risks:
        database = stage.database(*statements)
        role = role or stage.superuser
        connection = await connect(Place.of(stage.url(database, role), role.secret), 10)
        made.append(connection)
        value = found if isinstance(found, Rehearsal) else rehearsal(found)
        return await measure_risks(connection, value, budget_s=budget_s, **more)

    yield measured
    for connection in made:
        await connection.close()


ROWS = [
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT n, NULLIF(n, 3)::text FROM generate_series(1, 10) n",
]


# What goes.


async def test_the_rows_of_a_dropped_table_are_counted_under_the_name_that_it_has_today(
    measure: Measure,
) -> None:
    old = TableName("public", "old_name")
    found = await measure(ROWS, revision(gone_tables=(GoneTable(table=old, today=T),)))
    assert only(found) == RowsAtRisk(revision="r1", kind=RiskKind.DROPPED_TABLE, table=T, rows=10)


async def test_what_the_way_back_made_itself_and_drops_again_costs_nothing(measure: Measure) -> None:
    new = GoneColumn(table=T, column="x", today=None, today_column="")
    found = await measure(ROWS, revision(gone_tables=(GoneTable(table=T, today=None),), gone_columns=(new,)))
    assert found.at_risk == ()


async def test_partitions_are_counted_once_and_through_their_parent(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (5)",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (5) TO (100)",
        "INSERT INTO t SELECT n, 'x' FROM generate_series(1, 10) n",
    ]
    tables = tuple(
        GoneTable(table=TableName("public", n), today=TableName("public", n)) for n in ("t1", "t", "t2")
    )
    found = await measure(statements, revision(gone_tables=tables))
    assert (only(found).table, only(found).rows) == (T, 10)


async def test_tables_that_inherit_are_counted_for_themselves(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int)", "CREATE TABLE c () INHERITS (t)",
        "INSERT INTO t VALUES (1), (2)", "INSERT INTO c VALUES (3)",
    ]  # fmt: skip
    tables = tuple(GoneTable(table=TableName("public", n), today=TableName("public", n)) for n in ("t", "c"))
    found = await measure(statements, revision(gone_tables=tables))
    assert [risk.rows for risk in found.at_risk] == [2, 1]


async def test_only_the_values_of_a_dropped_column_count_and_not_its_nulls(measure: Measure) -> None:
    found = await measure(ROWS, revision(gone_columns=(gone_column("v"),)))
    assert (only(found).rows, only(found).sample) == (9, ("id=1", "id=2", "id=4"))


async def test_a_composite_value_that_holds_a_null_is_still_a_value(measure: Measure) -> None:
    statements = [
        "CREATE TYPE pair AS (a int, b int)", "CREATE TABLE t (id int, v pair)",
        "INSERT INTO t VALUES (1, (1, NULL)), (2, (NULL, NULL)), (3, NULL)",
    ]  # fmt: skip
    found = await measure(statements, revision(gone_columns=(gone_column("v"),)))
    assert only(found).rows == 2


async def test_a_generated_column_loses_nothing(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int, v int GENERATED ALWAYS AS (id * 2) STORED)",
        "INSERT INTO t VALUES (1)",
    ]
    found = await measure(statements, revision(gone_columns=(gone_column("v"),)))
    assert found.at_risk == ()


async def test_a_column_of_a_table_that_goes_with_it_is_covered_by_the_table(measure: Measure) -> None:
    both = revision("r1", gone_columns=(gone_column("v"),), gone_tables=(GoneTable(table=T, today=T),))
    assert only(await measure(ROWS, rehearsal(both))).kind is RiskKind.DROPPED_TABLE


async def test_a_column_that_goes_before_its_table_is_a_loss_of_its_own_revision(measure: Measure) -> None:
    found = await measure(
        ROWS,
        rehearsal(
            revision("r2", gone_columns=(gone_column("v"),)),
            revision("r1", gone_tables=(GoneTable(table=T, today=T),)),
        ),
    )
    assert [(risk.revision, risk.kind) for risk in found.at_risk] == [
        ("r2", RiskKind.DROPPED_COLUMN),
        ("r1", RiskKind.DROPPED_TABLE),
    ]


async def test_names_may_hold_quotes_dots_percent_signs_and_any_letter(measure: Measure) -> None:
    table = TableName('a."b', "tä.%s{}$1")
    column = "c\"o.l%(x)s'"
    sql = table.sql()
    quoted_column = '"' + column.replace('"', '""') + '"'
    statements = [
        'CREATE SCHEMA "a.""b"',
        f'CREATE TABLE {sql} ("k%" int PRIMARY KEY, {quoted_column} text)',
        f"INSERT INTO {sql} VALUES (1, 'long'), (2, NULL)",
    ]
    named = revision(
        gone_columns=(gone_column(column, table),),
        changed_columns=(changed("character varying(2)", column=column, table=table),),
        new_rules=(rule("not_null", (column,), table=table), rule("unique", (column,), table=table)),
    )
    found = await measure(statements, named)
    assert [(risk.rows, risk.sample) for risk in found.at_risk] == [(1, ("k%=1",)), (1, ("k%=1",))]
    assert [(o.rule, o.rows, o.sample) for o in found.obstacles] == [
        ("cast", 1, ("k%=1",)),
        ("not_null", 1, ("k%=2",)),
    ]


# What changes its type.

NARROWED = [
    # values of v, their type, the old type, USING: (changed or refused, refused)
    ("'abcdef'), ('abc  '), ('ab'), (NULL", "text", "character varying(3)", "", (2, 1)),
    ("'abcdef'), ('abc'", "text", "character varying(3)", "v::varchar(3)", (1, 0)),
    ("'abcdef'), ('ab'", "varchar(9)", "character(3)", "", (1, 1)),
    ("1.234), (1.50), (99.999), (1000), ('NaN'", "numeric", "numeric(5,2)", "", (3, 1)),
    ("1.5), (2), (3000000000", "numeric", "integer", "", (2, 1)),
    ("2147483647), (2147483648), (-2147483649), (-2147483648", "bigint", "integer", "", (2, 2)),
    ("40000), (1", "integer", "smallint", "", (1, 1)),
    ("0.1), (0.5), (1e300", "double precision", "real", "", (2, 1)),
    ("'17'), ('007'), ('x'), (''", "text", "integer", "v::integer", (3, 2)),
    ("'17'), (''), ('x'", "text", "integer", "NULLIF(btrim(v), '')::integer", (2, 1)),
    ("'1'), ('3000000000'", "text", "integer", "v::bigint", (1, 1)),
    ("'2024-01-01 00:00'), ('2024-01-01 12:30'", "timestamp", "date", "", (1, 0)),
    ("'2024-01-01'), ('tomorrowish'", "text", "date", "(v)::date", (1, 1)),
    ("B'101'), (B'1'", "bit varying", "bit(3)", "", (1, 1)),
    ("'{\"b\": 1, \"a\": 2}'), ('[1]'", "json", "jsonb", "", (1, 0)),
    ("'{}'), ('no'", "text", "jsonb", "v::jsonb", (1, 1)),
    ("12), (7000", "integer", "character varying(3)", "", (1, 1)),
    # Neither read nor checked beforehand: those that fail are found by trying.
    ("0), (5), (10), (0", "integer", "integer", "10 / v", (4, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("values", "today", "old", "using", "expected"), NARROWED)
async def test_values_that_a_narrower_type_changes_or_refuses_are_counted_as_postgresql_does(
    measure: Measure, stage: Stage, values: str, today: str, old: str, using: str, expected: tuple[int, int]
) -> None:
    statements = [
        f"CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v {today})",
        f"INSERT INTO t (v) VALUES ({values})",
    ]
    found = await measure(statements, revision(changed_columns=(changed(old, using),)))
    refused = obstacle(found).rows if found.obstacles else 0
    assert (only(found).rows, refused) == expected
    assert len(obstacle(found).sample if refused else only(found).sample) == min(3, refused or expected[0])
    # The real thing fails where, and only where, an obstacle was found.
    alter = f"ALTER TABLE t ALTER v TYPE {old}" + (f" USING {using}" if using else "")
    if refused:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each type has its own
            stage.run(stage.database(*statements), alter)
    else:
        stage.run(stage.database(*statements), alter)


async def test_rows_whose_cast_fails_are_found_by_trying_parts_of_a_larger_table(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "INSERT INTO t SELECT n, CASE WHEN n IN (77, 5000) THEN 0 ELSE n END FROM generate_series(1, 6000) n",
    ]
    found = await measure(statements, revision(changed_columns=(changed("integer", "v / v * v"),)))
    assert (obstacle(found).rows, obstacle(found).sample) == (2, ("id=77", "id=5000"))
    assert only(found).rows == 2


async def test_a_column_that_is_named_otherwise_today_is_cast_under_both_names(measure: Measure) -> None:
    statements = ["CREATE TABLE t (id int PRIMARY KEY, now text)", "INSERT INTO t VALUES (1, 'x'), (2, '5')"]
    change = changed("integer", "v::integer", today_column="now")
    found = await measure(statements, revision(changed_columns=(change,)))
    assert (only(found).column, only(found).rows, obstacle(found).sample) == ("now", 1, ("id=1",))


ENUM = [
    "CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s new')",
    "CREATE TABLE t (id int PRIMARY KEY, v mood)",
    "INSERT INTO t VALUES (1, 'sad'), (2, 'it''s new'), (3, NULL)",
]


async def test_rows_that_use_a_label_which_the_old_enum_lacks_are_an_obstacle(measure: Measure) -> None:
    change = changed("mood", "v::text::mood", labels=("it's new",))
    found = await measure(ENUM, revision(changed_columns=(change,)))
    assert (only(found).rows, obstacle(found).rule, obstacle(found).sample) == (1, "enum_label", ("id=2",))
    assert obstacle(found).certain


async def test_an_expression_that_may_map_a_lost_label_makes_the_obstacle_uncertain(measure: Measure) -> None:
    using = "(CASE v::text WHEN 'it''s new' THEN 'ok' ELSE v::text END)::mood"
    change = changed("mood", using, labels=("it's new",))
    found = await measure(ENUM, revision(changed_columns=(change,)))
    assert (only(found).rows, obstacle(found).certain) == (1, False)


async def test_a_type_that_is_not_there_today_is_unknown_and_stops_nothing_else(measure: Measure) -> None:
    found = await measure(
        ROWS, revision(changed_columns=(changed("nowhere"),), gone_columns=(gone_column("v"),))
    )
    gone, narrowed = found.at_risk
    assert gone.rows == 9
    assert narrowed.rows == -1
    assert "nowhere" in narrowed.unknown
    assert "nowhere" in obstacle(found).unknown


# What is written.


async def test_a_full_rehearsal_says_exactly_what_is_written(measure: Measure) -> None:
    written = (WrittenTable(table=T, today=T, inserted=7, updated=3, deleted=2),)
    found = await measure(ROWS, rehearsal(revision(written=written), depth=Depth.FULL))
    assert [(r.kind, r.rows, r.exact, r.at_most) for r in found.at_risk] == [
        (RiskKind.UPDATED, 3, True, False),
        (RiskKind.DELETED, 2, True, False),
    ]


COUNTED = [
    ("UPDATE t SET v = 'x' WHERE id > 7", RiskKind.UPDATED, 3),
    ("UPDATE public.t AS a SET v = 'x' FROM p WHERE a.id = p.t_id", RiskKind.UPDATED, 2),
    ("UPDATE t SET v = 'x' WHERE v LIKE '1%%'", RiskKind.UPDATED, 2),
    ("UPDATE t SET v = 'x' WHERE id %% 5 = 0", RiskKind.UPDATED, 2),
    ("DELETE FROM t WHERE id IN (SELECT t_id FROM p)", RiskKind.DELETED, 2),
    ("DELETE FROM ONLY t USING p WHERE t.id = p.t_id AND p.t_id = 1", RiskKind.DELETED, 1),
    ("WITH few AS (SELECT min(t_id) AS n FROM p) DELETE FROM t USING few WHERE id = few.n", RiskKind.DELETED, 1),
    ("DELETE FROM T", RiskKind.DELETED, 10),
    ("TRUNCATE TABLE t", RiskKind.DELETED, 10),
    ("UPDATE t SET v = 'x' WHERE id > 100", RiskKind.UPDATED, 0),
]  # fmt: skip
WITH_P = [*ROWS, "CREATE TABLE p (t_id int)", "INSERT INTO p VALUES (1), (1), (2), (NULL)"]


@pytest.mark.parametrize(("sql", "kind", "rows"), COUNTED)
async def test_a_plain_statement_is_turned_into_a_count_of_the_rows_that_it_matches(
    measure: Measure, sql: str, kind: RiskKind, rows: int
) -> None:
    found = await measure(WITH_P, writing(ran(sql, T, reads=(P,))))
    risk = only(found)
    assert (risk.kind, risk.table, risk.rows, risk.exact, risk.at_most) == (kind, T, rows, True, False)


BOUNDED = [
    "UPDATE t SET v = %(v)s WHERE id = %(id)s",
    "UPDATE t SET v = 'x' WHERE id = $1",
    "UPDATE t SET v = 'x' WHERE id = %s",
    "UPDATE t SET v = 'x' WHERE id = :id",
    "UPDATE t SET v = 'x' WHERE my_function(id)",
    "UPDATE t SET v = 'x' WHERE not_a_column = 1",
    "UPDATE t SET v = 'x' WHERE v = '10%%'",
    "UPDATE t SET v = 'x' WHERE id = 1; UPDATE t SET v = 'y' WHERE id = 2",
    "INSERT INTO t VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = 'x'",
]


@pytest.mark.parametrize("sql", BOUNDED)
async def test_a_statement_that_cannot_be_counted_is_bounded_by_the_rows_of_its_table(
    measure: Measure, sql: str
) -> None:
    found = await measure(ROWS, writing(ran(sql, T)))
    assert (only(found).kind, only(found).rows, only(found).at_most) == (RiskKind.UPDATED, 10, True)


async def test_counting_a_statement_changes_no_row(measure: Measure, stage: Stage) -> None:
    database = stage.database(*WITH_P)
    role = stage.superuser
    connection = await connect(Place.of(stage.url(database, role), role.secret), 10)
    statements = [ran(sql, T, reads=(P,)) for sql, _, _ in COUNTED]
    await measure_risks(connection, rehearsal(writing(*statements)), budget_s=10)
    await connection.close()
    assert stage.run(database, "SELECT count(*), count(*) FILTER (WHERE v = 'x') FROM t") == [(10, 0)]


async def test_a_statement_that_cannot_be_read_is_unknown_and_not_nothing(measure: Measure) -> None:
    found = await measure(ROWS, writing(ran("DO $$ BEGIN DELETE FROM t; END $$", T)))
    assert only(found).rows == -1
    assert "can't be read" in only(found).unknown


async def test_a_table_that_is_only_filled_has_nothing_at_risk(measure: Measure) -> None:
    found = await measure(ROWS, writing(ran("INSERT INTO t SELECT 99, 'x'", T)))
    assert found.at_risk == ()


async def test_an_unread_statement_after_an_insert_may_have_written_the_same_table(measure: Measure) -> None:
    statements = (ran("INSERT INTO t SELECT 99, 'x'", T), ran("DO $$ BEGIN DELETE FROM t; END $$"))
    assert only(await measure(ROWS, writing(*statements))).rows == -1


async def test_rows_written_where_no_statement_names_the_table_are_unknown(measure: Measure) -> None:
    written = (WrittenTable(table=T, today=T, deleted=1),)
    found = await measure(ROWS, rehearsal(revision(written=written), depth=Depth.SAMPLE))
    assert (only(found).kind, only(found).rows) == (RiskKind.DELETED, -1)


async def test_filling_a_column_that_the_way_back_has_made_overwrites_nothing(measure: Measure) -> None:
    statements = (ran("ALTER TABLE t ADD COLUMN old text", T), ran("UPDATE t SET old = v", T))
    found = await measure(ROWS, writing(*statements))
    assert [risk.rows for risk in found.at_risk if risk.rows] == []


async def test_a_column_that_was_renamed_on_the_way_is_not_taken_for_a_new_one(measure: Measure) -> None:
    statements = (ran("ALTER TABLE t RENAME COLUMN v TO old", T), ran("UPDATE t SET old = 'x'", T))
    found = await measure(ROWS, writing(*statements))
    assert only(found).rows == 10


async def test_several_statements_on_one_table_add_up_to_a_bound(measure: Measure) -> None:
    statements = (ran("UPDATE t SET v = 'x' WHERE id < 3", T), ran("UPDATE t SET v = 'y' WHERE id < 5", T))
    risk = only(await measure(ROWS, writing(*statements)))
    assert (risk.rows, risk.at_most) == (6, True)


async def test_a_statement_that_looks_at_what_an_earlier_one_set_is_bounded_by_the_table(
    measure: Measure,
) -> None:
    first = writing(ran("UPDATE t SET v = 'x' WHERE id < 3", T), name="r2")
    second = writing(ran("DELETE FROM t WHERE v = 'x'", T), name="r1")
    found = await measure(ROWS, rehearsal(first, second))
    assert [(r.revision, r.rows, r.at_most) for r in found.at_risk] == [("r2", 2, False), ("r1", 10, True)]


CASCADE = [
    *ROWS,
    "CREATE TABLE child (id int PRIMARY KEY, t_id int REFERENCES t ON DELETE CASCADE)",
    "CREATE TABLE grandchild (child_id int REFERENCES child ON DELETE SET NULL)",
    "CREATE TABLE stranger (t_id int REFERENCES t)",
    "INSERT INTO child VALUES (1, 1), (2, 2)",
    "INSERT INTO grandchild VALUES (1), (NULL), (2)",
]


async def test_a_delete_that_cascades_bounds_what_goes_from_the_tables_below(measure: Measure) -> None:
    found = await measure(CASCADE, writing(ran("DELETE FROM t WHERE id = 1", T)))
    assert [(r.kind, r.table.name, r.rows, r.at_most) for r in found.at_risk] == [
        (RiskKind.DELETED, "t", 1, False),
        (RiskKind.DELETED, "child", 2, True),
        (RiskKind.UPDATED, "grandchild", 3, True),
    ]


async def test_a_delete_of_no_row_cascades_to_nothing(measure: Measure) -> None:
    found = await measure(CASCADE, writing(ran("DELETE FROM t WHERE id = 100", T)))
    assert [(r.table.name, r.rows) for r in found.at_risk] == [("t", 0)]


async def test_truncate_cascade_empties_whatever_refers_to_the_table(measure: Measure) -> None:
    found = await measure(CASCADE, writing(ran("TRUNCATE t CASCADE", T)))
    assert {(r.kind, r.table.name, r.rows, r.at_most) for r in found.at_risk} == {
        (RiskKind.DELETED, "t", 10, False),
        (RiskKind.DELETED, "child", 2, False),
        (RiskKind.DELETED, "grandchild", 3, False),
    }


async def test_a_delete_that_cascades_within_its_own_table_is_bounded_by_it(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY, up int REFERENCES t ON DELETE CASCADE)",
        "INSERT INTO t VALUES (1, NULL), (2, 1), (3, 2)",
    ]
    risk = only(await measure(statements, writing(ran("DELETE FROM t WHERE id = 1", T))))
    assert (risk.rows, risk.at_most) == (3, True)


# What has to hold from then on.


async def test_rows_with_null_stand_in_the_way_of_not_null(measure: Measure) -> None:
    found = obstacle(await measure(ROWS, revision(new_rules=(rule("not_null", ("v",)),))))
    assert (found.rule, found.rows, found.sample, found.certain) == ("not_null", 1, ("id=3",), True)


async def test_an_obstacle_is_uncertain_where_the_same_way_back_writes_the_table_first(
    measure: Measure,
) -> None:
    mends = writing(ran("UPDATE t SET v = 'x' WHERE v IS NULL", T), name="r2")
    breaks = revision(new_rules=(rule("not_null", ("v",)),))
    assert not obstacle(await measure(ROWS, rehearsal(mends, breaks))).certain
    assert obstacle(await measure(ROWS, rehearsal(breaks, mends))).certain


async def test_a_rule_that_all_rows_pass_is_no_obstacle(measure: Measure) -> None:
    rules = (rule("not_null", ("id",)), rule("unique", ("id",)), rule("check", ("id",), "CHECK ((id > 0))"))
    assert (await measure(ROWS, revision(new_rules=rules))).obstacles == ()


async def test_a_rule_that_is_not_validated_looks_at_no_row(measure: Measure) -> None:
    found = await measure(ROWS, revision(new_rules=(rule("check", ("id",), "CHECK ((id < 0)) NOT VALID"),)))
    assert found.obstacles == ()


async def test_a_column_that_comes_back_without_a_default_needs_a_value_in_every_row(
    measure: Measure,
) -> None:
    found = obstacle(await measure(ROWS, revision(new_rules=(rule("not_null", ("",)),))))
    assert (found.rule, found.rows) == ("no_default", 10)
    empty = ["CREATE TABLE t (id int)"]
    assert (await measure(empty, revision(new_rules=(rule("not_null", ("",)),)))).obstacles == ()


REPEATED = [
    "CREATE TABLE t (id int PRIMARY KEY, a int, b text)",
    "INSERT INTO t VALUES (1, 1, 'x'), (2, 1, 'x'), (3, 1, 'X'), (4, NULL, 'y'), (5, NULL, 'y'), (6, 2, 'z')",
]
UNIQUE = [
    (rule("unique", ("a",), "UNIQUE (a)"), 3, ("id=1", "id=2", "id=3")),
    (rule("unique", ("a", "b"), "UNIQUE (a, b)"), 2, ("id=1", "id=2")),
    (rule("unique", ("a", "b"), "UNIQUE NULLS NOT DISTINCT (a, b)", nulls_not_distinct=True), 4, ("id=1", "id=2", "id=4")),
    (rule("unique", ("a",), "CREATE UNIQUE INDEX i ON public.t USING btree (a) WHERE (id > 2)", predicate="(id > 2)"), 0, ()),
    (rule("unique", ("b",), "CREATE UNIQUE INDEX i ON public.t USING btree (b) WHERE (a = 1)", predicate="(a = 1)"), 2, ("id=1", "id=2")),
    (rule("unique", ("",), "CREATE UNIQUE INDEX i ON public.t USING btree (lower(b))"), 5, ("id=1", "id=2", "id=3")),
]  # fmt: skip


@pytest.mark.parametrize(("unique", "rows", "sample"), UNIQUE)
async def test_rows_that_share_a_value_stand_in_the_way_of_uniqueness(
    measure: Measure, unique: NewRule, rows: int, sample: tuple[str, ...]
) -> None:
    found = await measure(REPEATED, revision(new_rules=(unique,)))
    assert [(o.rows, o.sample) for o in found.obstacles] == ([(rows, sample)] if rows else [])


ORPHANS = [
    "CREATE TABLE p (x int, y int, PRIMARY KEY (x, y))",
    "INSERT INTO p VALUES (1, 1)",
    "CREATE TABLE t (a int, b int, c int, d int, PRIMARY KEY (a, b))",
    "INSERT INTO t VALUES (1, 1, 1, 1), (1, 2, 1, 2), (1, 3, NULL, 9), (1, 4, NULL, NULL)",
]


@pytest.mark.parametrize(
    ("definition", "sample"),
    [
        ("FOREIGN KEY (c, d) REFERENCES p(x, y)", ("(a=1, b=2)",)),
        ("FOREIGN KEY (c, d) REFERENCES p(x, y) MATCH FULL", ("(a=1, b=2)", "(a=1, b=3)")),
    ],
)
async def test_rows_that_point_to_nothing_stand_in_the_way_of_a_foreign_key(
    measure: Measure, definition: str, sample: tuple[str, ...]
) -> None:
    key = rule("foreign_key", ("c", "d"), definition, other=P, other_columns=("x", "y"))
    found = obstacle(await measure(ORPHANS, revision(new_rules=(key,))))
    assert (found.rows, found.sample) == (len(sample), sample)


async def test_a_foreign_key_may_point_into_its_own_table(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY, up int)",
        "INSERT INTO t VALUES (1, NULL), (2, 1), (3, 9)",
    ]
    key = rule("foreign_key", ("up",), "FOREIGN KEY (up) REFERENCES t(id)", other=T, other_columns=("id",))
    assert obstacle(await measure(statements, revision(new_rules=(key,)))).sample == ("id=3",)


async def test_a_foreign_key_to_a_table_that_is_not_there_today_is_unknown(measure: Measure) -> None:
    key = rule("foreign_key", ("v",), "FOREIGN KEY (v) REFERENCES p(x)", other=P, other_columns=("x",))
    found = obstacle(await measure(ROWS, revision(new_rules=(key,))))
    assert (found.rows, "public.p" in found.unknown) == (-1, True)


async def test_a_foreign_key_on_a_new_column_that_starts_empty_is_no_obstacle(measure: Measure) -> None:
    key = rule("foreign_key", ("",), "FOREIGN KEY (owner) REFERENCES p(x)", other=P, other_columns=("x",))
    statements = [*ROWS, "CREATE TABLE p (x int PRIMARY KEY)"]
    for definition, obstacles in (("integer", 0), ("integer default 5", 1)):
        expected = Schema({"column public.t.owner": definition})
        found = await measure(statements, rehearsal(revision(new_rules=(key,)), expected=expected))
        assert len(found.obstacles) == obstacles


async def test_a_check_is_broken_by_rows_for_which_it_is_false_and_not_by_null(measure: Measure) -> None:
    statements = [
        "CREATE TABLE t (id int PRIMARY KEY, v int)",
        "INSERT INTO t VALUES (1, -1), (2, NULL), (3, 5)",
    ]
    check = rule("check", ("v",), "CHECK (((v > 0) AND (v <> 100))) NO INHERIT")
    assert obstacle(await measure(statements, revision(new_rules=(check,)))).sample == ("id=1",)


async def test_a_check_is_read_with_the_names_that_its_columns_have_today(measure: Measure) -> None:
    statements = ["CREATE TABLE t (id int PRIMARY KEY, now int)", "INSERT INTO t VALUES (1, -1), (2, 5)"]
    check = rule("check", ("now", "id"), "CHECK (((before > 0) AND (id > 0)))")
    assert obstacle(await measure(statements, revision(new_rules=(check,)))).sample == ("id=1",)


async def test_a_rule_of_an_unknown_kind_is_said_to_be_unknown(measure: Measure) -> None:
    found = obstacle(
        await measure(ROWS, revision(new_rules=(rule("exclude", ("v",), "EXCLUDE (v WITH =)"),)))
    )
    assert (found.rows, "exclude" in found.unknown) == (-1, True)


# Budgets and errors.

EVERYTHING = revision(
    gone_columns=(gone_column("v"),),
    changed_columns=(changed("character varying(1)"),),
    new_rules=(rule("not_null", ("v",)),),
)


async def test_without_time_counts_are_the_planners_and_rules_are_unknown(measure: Measure) -> None:
    found = await measure([*ROWS, "ANALYZE t"], EVERYTHING, budget_s=0.0)
    assert [(r.rows, r.exact, r.at_most) for r in found.at_risk] == [(9, False, False), (9, False, True)]
    assert all(o.rows == -1 and "time" in o.unknown for o in found.obstacles)
    assert len(found.obstacles) == 2


async def test_small_tables_are_counted_before_a_large_one_uses_up_the_time(measure: Measure) -> None:
    statements = [
        "CREATE TABLE big (id int)",
        "INSERT INTO big SELECT generate_series(1, 4000000)",
        "ANALYZE big",
        *ROWS,
        "ANALYZE t",
        # So that the large one takes far longer than the budget, and this isn't short for the small one.
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET max_parallel_workers_per_gather = 0', current_database()); END $$",
    ]
    big = TableName("public", "big")
    tables = (GoneTable(table=big, today=big), GoneTable(table=T, today=T))
    first, second = (await measure(statements, revision(gone_tables=tables), budget_s=0.1)).at_risk
    assert (first.table, first.exact) == (big, False)
    assert 3_900_000 < first.rows < 4_100_000
    assert (second.table, second.rows, second.exact) == (T, 10, True)


async def test_a_locked_table_costs_a_part_of_the_time_only_and_is_estimated_or_unknown(
    measure: Measure, stage: Stage
) -> None:
    database = stage.database(*ROWS, "CREATE TABLE p (id int)", "INSERT INTO p VALUES (1)", "VACUUM ANALYZE")
    role = stage.superuser
    place = Place.of(stage.url(database, role), role.secret)
    locking, counting = await connect(place, 10), await connect(place, 10)
    transaction = locking.transaction()
    await transaction.start()
    await locking.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
    tables = (GoneTable(table=T, today=T), GoneTable(table=P, today=P))
    found = await measure_risks(counting, rehearsal(revision(gone_tables=tables)), budget_s=2)
    await transaction.rollback()
    locked, free = found.at_risk
    assert (locked.rows, "lock" in locked.unknown) == (-1, True)
    assert free.rows == 1
    assert found.seconds < 1.5
    await locking.close()
    await counting.close()


async def test_a_table_that_vanished_meanwhile_is_unknown_and_stops_nothing_else(measure: Measure) -> None:
    lost = TableName("public", "lost")
    found = await measure(
        ROWS,
        revision(
            gone_tables=(GoneTable(table=lost, today=lost),),
            gone_columns=(gone_column("x", lost), gone_column("v"), gone_column("vanished")),
            changed_columns=(changed("integer", table=lost),),
            new_rules=(rule("not_null", ("x",), table=lost),),
            written=(WrittenTable(table=lost, today=lost),),
        ),
    )
    by_place = {(risk.table.name, risk.column, risk.kind): risk.rows for risk in found.at_risk}
    assert by_place.pop(("t", "v", RiskKind.DROPPED_COLUMN)) == 9
    assert set(by_place.values()) == {-1}
    assert all("lost" in o.unknown for o in found.obstacles)
    assert len(found.obstacles) == 2


async def test_rows_that_row_security_hides_make_a_count_unknown_and_never_short(
    measure: Measure, stage: Stage
) -> None:
    role = stage.role()
    statements = [
        *ROWS,
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY few ON t USING (id < 3)",
        f"GRANT SELECT ON t TO {role.name}",
    ]
    risk = only(await measure(statements, revision(gone_tables=(GoneTable(table=T, today=T),)), role=role))
    assert (risk.rows, "row-level security" in risk.unknown) == (-1, True)


async def test_within_an_open_transaction_its_snapshot_is_counted_and_no_lock_stays(stage: Stage) -> None:
    database = stage.database(*ROWS)
    role = stage.superuser
    connection = await connect(Place.of(stage.url(database, role), role.secret), 10)
    async with connection.transaction():
        await connection.execute("CREATE TABLE kept (id int)")
        found = await measure_risks(connection, rehearsal(EVERYTHING), budget_s=5)
        assert [risk.rows for risk in found.at_risk] == [9, 1]
        held = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND pid = pg_backend_pid()"
        assert await connection.fetchval(held) == 0
        await connection.execute("INSERT INTO kept VALUES (1)")
    assert await connection.fetchval("SELECT count(*) FROM kept") == 1
    await connection.close()


async def test_a_lost_connection_is_an_error_and_not_a_list_of_unknowns(stage: Stage) -> None:
    database = stage.database(*ROWS)
    role = stage.superuser
    connection = await connect(Place.of(stage.url(database, role), role.secret), 10)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    stage.run("postgres", f"SELECT pg_terminate_backend({pid})")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await measure_risks(connection, rehearsal(EVERYTHING), budget_s=5)
