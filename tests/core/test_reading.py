"""Reading SQL: every statement is understood, known to be harmless, or said to be unread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollbackd.core.reading import (
    DowngradeBody,
    Effect,
    EffectKind,
    ReadRevision,
    SourceCall,
    irreversible,
    read_effects,
)
from rollbackd.core.statements import read_using

K = EffectKind


def effects(*statements: str) -> list[str]:
    found = read_effects(ReadRevision(id="r1", statements=statements))
    return [f"{e.kind} {e.table}{'.' + e.column if e.column else ''}".strip() for e in found]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        # Tables: one, several, with quotes, capitals, a schema and letters beyond ASCII.
        ("DROP TABLE orders", ["drop_table orders"]),
        ("DROP TABLE a, s.b", ["drop_table a", "drop_table s.b"]),
        ('DROP TABLE IF EXISTS "My Schema"."Tä"', ["drop_table My Schema.Tä"]),
        # What isn't quoted is folded, as the catalog has it; what is quoted isn't.
        ("DROP TABLE Orders", ["drop_table orders"]),
        ('DROP TABLE "Orders"', ["drop_table Orders"]),
        # CASCADE takes inheriting tables along, and nobody knows from here which.
        ("DROP TABLE a CASCADE", ["drop_table a", "unread"]),
        # A dot inside a name can't be told from a schema.
        ('DROP TABLE "a.b"', ["unread"]),
        # Columns: one, several, without the word COLUMN, among other actions.
        ("ALTER TABLE a DROP COLUMN b", ["drop_column a.b"]),
        ("ALTER TABLE a DROP b", ["drop_column a.b"]),
        (
            "ALTER TABLE IF EXISTS ONLY s.a DROP COLUMN IF EXISTS b CASCADE, DROP c",
            ["drop_column s.a.b", "drop_column s.a.c"],
        ),
        ('ALTER TABLE a ADD x int, DROP COLUMN "B c"', ["drop_column a.B c"]),
        ("ALTER TABLE a DROP CONSTRAINT c, DROP COLUMN d", ["drop_column a.d"]),
        # Types.
        ("ALTER TABLE a ALTER COLUMN b TYPE varchar(3)", ["change_type a.b"]),
        (
            "ALTER TABLE a ALTER b SET DATA TYPE int USING b::int, ALTER c TYPE text",
            ["change_type a.b", "change_type a.c"],
        ),
        # Rows, also from within a CTE, a MERGE or an upsert.
        ("DELETE FROM s.a USING b WHERE a.x = b.x", ["delete s.a"]),
        ("WITH g AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM g", ["delete a"]),
        ("WITH u AS (UPDATE a SET x = 1 RETURNING *) SELECT * FROM u", ["update a.x"]),
        ("UPDATE ONLY s.a AS x SET b = y.b, c = 2 FROM y WHERE x.i = y.i", ["update s.a.b", "update s.a.c"]),
        ("UPDATE a SET (b, C) = (SELECT 1, 2)", ["update a.b", "update a.c"]),
        ("UPDATE a SET tags[1] = 3", ["update a.tags"]),
        ("UPDATE a SET composite.field = 3", ["update a.composite"]),
        ("INSERT INTO a VALUES (1) ON CONFLICT (i) DO UPDATE SET b = excluded.b", ["update a.b"]),
        ("INSERT INTO a (i) VALUES (1) ON CONFLICT (i) DO UPDATE SET b = 1", ["update a.b"]),
        ("MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN DELETE", ["delete a"]),
        ("MERGE INTO a USING b ON a.i = b.i WHEN MATCHED THEN UPDATE SET x = 1", ["update a.x"]),
        ("TRUNCATE TABLE a, s.b", ["truncate a", "truncate s.b"]),
        ("TRUNCATE a CASCADE", ["truncate a", "unread"]),
        # Several statements in one string: each is read, whatever the first one is.
        ("GRANT SELECT ON a TO b; DROP TABLE c", ["drop_table c"]),
        ("ALTER TYPE x ADD VALUE 'a'; DELETE FROM b", ["delete b"]),
        ("SET x = 1; DO $$ BEGIN DELETE FROM a; END $$", ["unread"]),
        ("COMMENT ON COLUMN a.b IS NULL; DROP TABLE c", ["unread"]),
        # A semicolon in a string or a name parts nothing.
        ("DELETE FROM a WHERE x = ';'", ["delete a"]),
        ('DROP TABLE "a;b"', ["drop_table a;b"]),
        # A comment before it hides nothing.
        ("-- tidy up\nDELETE FROM a", ["delete a"]),
    ],
)
def test_what_a_statement_destroys_is_read_from_it(statement: str, expected: list[str]) -> None:
    assert effects(statement) == expected


@pytest.mark.parametrize(
    "statement",
    [
        # Code in the database may do anything.
        "DO $$ BEGIN DELETE FROM a; END $$",
        "CALL tidy_up()",
        "SELECT tidy_up()",
        "SELECT * FROM tidy_up()",
        "SELECT mine.upper('a')",
        "SELECT lo_unlink(3)",
        "SELECT query_to_xml('DELETE FROM x', true, true, '')",
        "CREATE TABLE a AS SELECT tidy_up()",
        "EXECUTE prepared",
        "PREPARE x AS DELETE FROM a",
        "EXPLAIN ANALYZE DELETE FROM a",
        "CREATE RULE r AS ON INSERT TO a DO ALSO DELETE FROM b",
        # Takes along what it doesn't name.
        "DROP TYPE mood CASCADE",
        "DROP DOMAIN d CASCADE",
        "DROP VIEW v CASCADE",
        "DROP FUNCTION f() CASCADE",
        "DROP SCHEMA s CASCADE",
        "DROP EXTENSION postgis",
        "DROP OWNED BY somebody",
        "DROP DATABASE d",
        "ALTER TYPE t DROP ATTRIBUTE x",
        # Rows that a dump of tables doesn't keep.
        "DROP MATERIALIZED VIEW mv",
        "REFRESH MATERIALIZED VIEW mv WITH NO DATA",
        "DROP FOREIGN TABLE ft",
        "ALTER FOREIGN TABLE ft DROP COLUMN c",
        # Rows that are out of sight, or lost with the next crash.
        "ALTER TABLE a DETACH PARTITION b",
        "ALTER TABLE a SET UNLOGGED",
        # Names mean other tables from here on.
        "SET search_path TO x, y",
        "SET LOCAL search_path = 'x'",
        "SET SCHEMA 'x'",
        "RESET search_path",
        "SELECT pg_catalog.set_config('search_path', '', false)",
        # A list of actions of which one isn't harmless, in a statement that isn't parsed.
        "ALTER TABLE a OWNER TO x, DROP COLUMN c",
        "ALTER TABLE a ALTER b SET STATISTICS 3, DROP c",
        # Files and other servers.
        "COPY (DELETE FROM a RETURNING *) TO STDOUT",
        "COPY a FROM '/tmp/x'",
        # Undoes what came before.
        "ROLLBACK",
        # No SQL, or not all of it.
        "gibberish here",
        "SELECT FROM WHERE ((",
        "DROP",
        "ALTER TABLE",
        "DROP COLUMN x",
        "ALTER TABLE a DROP PARTITION b",
    ],
)
def test_what_is_neither_understood_nor_known_to_be_harmless_is_unread(statement: str) -> None:
    (effect,) = read_effects(ReadRevision(id="r1", statements=(statement,)))
    assert effect.kind is K.UNREAD
    assert effect.detail == " ".join(statement.split())
    assert effect.text() == f"unknown ({effect.detail})"


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE a DROP CONSTRAINT c",
        'ALTER TABLE "A" DROP CONSTRAINT IF EXISTS "C" CASCADE',
        "ALTER TABLE a ADD COLUMN b int DEFAULT 0 NOT NULL",
        "ALTER TABLE a ADD CONSTRAINT x FOREIGN KEY (b) REFERENCES c (d) ON DELETE CASCADE NOT VALID",
        "ALTER TABLE a ADD CHECK (b > 0)",
        "ALTER TABLE a ALTER COLUMN b SET NOT NULL",
        "ALTER TABLE a ALTER COLUMN b DROP DEFAULT",
        "ALTER TABLE a ALTER COLUMN b DROP EXPRESSION",
        "ALTER TABLE a RENAME COLUMN b TO c",
        "ALTER TABLE s.a RENAME TO b",
        "ALTER TABLE a OWNER TO x",
        "ALTER TABLE a ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE a VALIDATE CONSTRAINT c",
        "ALTER TYPE mood ADD VALUE 'sad'",
        "ALTER TYPE mood RENAME TO mood_old",
        "ALTER SEQUENCE s RESTART WITH 1",
        "ALTER INDEX i RENAME TO j",
        "DROP TYPE IF EXISTS s.mood",
        "DROP INDEX CONCURRENTLY IF EXISTS i",
        "DROP INDEX a, b",
        "DROP VIEW v",
        "DROP FUNCTION f(int)",
        "DROP DOMAIN d",
        "DROP POLICY p ON t",
        "DROP TRIGGER t ON a",
        "CREATE TABLE a (b int) PARTITION BY RANGE (b)",
        "CREATE TABLE p PARTITION OF a FOR VALUES IN (1)",
        "CREATE UNIQUE INDEX CONCURRENTLY i ON a (lower(b))",
        "CREATE TYPE mood AS ENUM ('a')",
        "CREATE OR REPLACE VIEW v AS SELECT mine() FROM a",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $b$ BEGIN DELETE FROM x; RETURN NEW; END; $b$",
        "INSERT INTO a SELECT * FROM b ON CONFLICT DO NOTHING",
        "SELECT setval('s', (SELECT max(id) FROM t))",
        "SELECT pg_catalog.setval('s', 1)",
        "COMMENT ON TABLE a IS 'DROP COLUMN; DELETE FROM b'",
        "COMMENT ON COLUMN a.b IS NULL",
        "GRANT SELECT ON a TO b",
        "SET lock_timeout = '1s'",
        "SET LOCAL statement_timeout TO 0",
        "LOCK TABLE a",
        # What autocommit_block renders.
        "COMMIT",
        "BEGIN",
        "-- a comment alone",
    ],
)
def test_what_destroys_no_row_has_no_effect(statement: str) -> None:
    assert effects(statement) == []


@given(st.text(alphabet="abc DROPTABLEdeleteFROM;,()'\"$-*/\n.=1ä", max_size=60))
def test_reading_never_fails_whatever_the_text(text: str) -> None:
    for effect in read_effects(ReadRevision(id="r1", statements=(text,))):
        assert effect.kind is K.UNREAD or effect.table


@given(
    before=st.sampled_from(
        ["", "/* x */ ", "GRANT SELECT ON a TO b; ", "SELECT 1; ", "ALTER TYPE t ADD VALUE 'x'; "]
    ),
    after=st.sampled_from(["", ";", "; COMMIT", " -- done"]),
    destroying=st.sampled_from(
        [
            "DROP TABLE t",
            "DELETE FROM t",
            "TRUNCATE t",
            "DO $$ x $$",
            "ALTER TABLE t DROP c",
            "VACUUM; CALL p()",
        ]
    ),
)
def test_nothing_around_a_destroying_statement_hides_it(before: str, after: str, destroying: str) -> None:
    assert effects(before + destroying + after)


def test_an_effect_is_named_once_and_in_order() -> None:
    assert effects("DELETE FROM b", "DELETE FROM a", "DELETE FROM b") == ["delete b", "delete a"]


def test_where_statements_cannot_be_rendered_the_calls_in_the_source_are_read_and_the_rest_is_unknown() -> (
    None
):
    calls = (
        SourceCall(name="drop_table", table="s.a"),
        SourceCall(name="drop_column", table="b", column="c"),
        SourceCall(name="create_table", table="d"),
    )
    assert read_effects(ReadRevision(id="r1", failed="AttributeError: no rows", calls=calls)) == (
        Effect(revision="r1", kind=K.DROP_TABLE, table="s.a"),
        Effect(revision="r1", kind=K.DROP_COLUMN, table="b", column="c"),
        Effect(revision="r1", kind=K.UNREAD, detail="AttributeError: no rows"),
    )


@pytest.mark.parametrize(
    ("statement", "using"),
    [
        ("ALTER TABLE t ALTER COLUMN c TYPE bigint USING c * 2", "c * 2"),
        ("ALTER TABLE t ALTER c TYPE bigint USING c * 2", "c * 2"),
        ('ALTER TABLE ONLY s."t" ALTER "c" SET DATA TYPE int USING c::int', "CAST(c AS INT)"),
        ("ALTER TABLE T ALTER C TYPE int USING length(C)", "LENGTH(C)"),
        # Among other actions, and of another column, table or statement.
        ("ALTER TABLE t ADD COLUMN x int, ALTER c TYPE int USING 1, ALTER d TYPE int USING 2", "1"),
        ("ALTER TABLE t ALTER d TYPE int USING 2", ""),
        ('ALTER TABLE "T" ALTER c TYPE int USING 2', ""),
        ("ALTER TABLE u ALTER c TYPE int USING 2; ALTER TABLE t ALTER c TYPE int USING 3", "3"),
        # None, and none that can be read.
        ("ALTER TABLE t ALTER c TYPE int", ""),
        ("DELETE FROM t USING u WHERE t.c = u.c", ""),
        ("DO $$ using $$", ""),
        ("ALTER TABLE t ALTER c TYPE int USING ((", ""),
    ],
)
def test_the_expression_of_a_change_of_type_is_read(statement: str, using: str) -> None:
    assert read_using(statement, "t", "c") == using


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (K.DROP_TABLE, "every row of t.c"),
        (K.DROP_COLUMN, "the values of t.c"),
        (K.CHANGE_TYPE, "values of t.c that its old type can't hold"),
        (K.DELETE, "rows deleted from t.c"),
        (K.UPDATE, "values overwritten in t.c"),
        (K.TRUNCATE, "every row of t.c"),
        (K.UNREAD, "unknown (why)"),
    ],
)
def test_every_kind_of_effect_says_itself_in_words(kind: EffectKind, text: str) -> None:
    assert Effect(revision="r", kind=kind, table="t", column="c", detail="why").text() == text


@pytest.mark.parametrize(
    ("body", "upgrade_is_empty", "says"),
    [
        (DowngradeBody.WRITTEN, False, ""),
        (DowngradeBody.RAISES, False, "declared irreversible"),
        (DowngradeBody.RAISES, True, "declared irreversible"),
        (DowngradeBody.ASKS, False, "asks a question"),
        (DowngradeBody.MISSING, False, "has no downgrade()"),
        (DowngradeBody.EMPTY, False, "silently irreversible"),
        # A merge point does nothing both ways.
        (DowngradeBody.EMPTY, True, ""),
    ],
)
def test_a_downgrade_that_cannot_be_run_is_told_from_one_that_can(
    body: DowngradeBody, upgrade_is_empty: bool, says: str
) -> None:
    reason = irreversible(ReadRevision(id="r1", downgrade=body, upgrade_is_empty=upgrade_is_empty))
    assert says in reason
    assert bool(reason) == bool(says)
    assert not reason or reason.startswith("r1 ")
