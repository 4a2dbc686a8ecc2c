"""A sample of rows in a scratch database: bounded, closed under foreign keys, and true to every value."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg
import pytest
from tests.adapters.conftest import Role, Stage

from rollbackd.adapters.postgres import sampling
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.sampling import copy_sample
from rollbackd.core.schema import TableName
from rollbackd.errors import TransientError

MEGABYTE = 1_000_000


class Pair:
    """A guarded database and a scratch one with the same schema."""

    def __init__(self, stage: Stage, source: str, scratch: str) -> None:
        self._stage = stage
        self.source = source
        self.scratch = scratch

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._stage.run(self.scratch, query)

    def column(self, query: str) -> list[Any]:
        return [row[0] for row in self.rows(query)]


Sample = Callable[..., Awaitable[tuple[int, Pair]]]


@pytest.fixture
async def sample(stage: Stage) -> AsyncIterator[Sample]:
    """Makes both databases from DDL, fills one, and copies a sample into the other."""
    made: list[asyncpg.Connection] = []

    async def sampled(  # noqa: PLR0917
        schema: list[str],
        rows: list[str],
        rows_per_table: int = 100,
        most_bytes: int = MEGABYTE,
        wanted: Mapping[TableName, Sequence[str]] | None = None,
        role: Role | None = None,
        source_role: Role | None = None,
        in_scratch: list[str] | None = None,
    ) -> tuple[int, Pair]:
        role = role or stage.superuser
        source = stage.database(*schema, *rows)
        scratch = stage.database(owner=role.name)
        if role is not stage.superuser:
            schema = [f"SET ROLE {role.name}; {statement}" for statement in schema]
        stage.run(scratch, *schema, *(in_scratch or []))
        source_role = source_role or stage.superuser
        reading = await connect(Place.of(stage.url(source, source_role), source_role.secret), 10)
        writing = await connect(Place.of(stage.url(scratch, role), role.secret), 10)
        made.extend([reading, writing])
        copied = await copy_sample(
            reading, writing, rows_per_table=rows_per_table, most_bytes=most_bytes, wanted=wanted or {}
        )
        assert not reading.is_in_transaction()
        return copied, Pair(stage, source, scratch)

    yield sampled
    for connection in made:
        await connection.close()


def public(name: str) -> TableName:
    return TableName("public", name)


CUSTOMERS = [
    "CREATE TABLE invoice (id int PRIMARY KEY, customer_id int NOT NULL)",
    "CREATE TABLE customer (id int PRIMARY KEY, name text)",
    "ALTER TABLE invoice ADD FOREIGN KEY (customer_id) REFERENCES customer",
]
FILLED = [
    "INSERT INTO customer SELECT n, 'c' || n FROM generate_series(1, 1000) n",
    "INSERT INTO invoice SELECT n, 1001 - n FROM generate_series(1, 1000) n",
    "VACUUM ANALYZE",
]


async def test_the_rows_that_a_copied_row_points_to_come_along(sample: Sample) -> None:
    copied, pair = await sample(CUSTOMERS, FILLED, rows_per_table=3)
    assert pair.column("SELECT customer_id FROM invoice ORDER BY 1") == [998, 999, 1000]
    assert pair.column("SELECT id FROM customer ORDER BY 1") == [1, 2, 3, 998, 999, 1000]
    assert copied == 9


async def test_rows_that_are_wanted_come_beside_the_first_ones(sample: Sample) -> None:
    wanted = {
        public("invoice"): ["id = 500", "customer_id = 400 AND invoice.id > 0"],
        public("nowhere"): ["true"],
    }
    _, pair = await sample(CUSTOMERS, FILLED, rows_per_table=1, wanted=wanted)
    assert pair.column("SELECT id FROM invoice ORDER BY 1") == [1, 500, 601]
    assert pair.column("SELECT id FROM customer ORDER BY 1") == [1, 400, 501, 1000]


async def test_a_condition_that_fails_costs_only_its_own_rows(sample: Sample) -> None:
    wanted = {public("invoice"): ["1 / (id - id) = 1", "no_such_column = 1", "id = 500"]}
    _, pair = await sample(CUSTOMERS, FILLED, rows_per_table=1, wanted=wanted)
    assert pair.column("SELECT id FROM invoice ORDER BY 1") == [1, 500]


CIRCLE = [
    "CREATE TABLE a (x int, y text, b_id int, up_x int, up_y text, PRIMARY KEY (x, y), FOREIGN KEY (up_x, up_y) REFERENCES a)",
    "CREATE TABLE b (id int PRIMARY KEY, a_x int NOT NULL, a_y text NOT NULL, FOREIGN KEY (a_x, a_y) REFERENCES a)",
    "ALTER TABLE a ADD CONSTRAINT to_b FOREIGN KEY (b_id) REFERENCES b",
]
CIRCLE_FILLED = [
    "INSERT INTO a SELECT n, 'y''' || n, NULL, CASE WHEN n < 9 THEN n + 1 END, CASE WHEN n < 9 THEN 'y''' || n + 1 END"
    " FROM generate_series(9, 1, -1) n",
    "INSERT INTO b SELECT n, n, 'y''' || n FROM generate_series(1, 9) n",
    "UPDATE a SET b_id = 10 - x",
    "VACUUM FULL",
]


async def test_composite_keys_self_references_and_circles_are_closed(sample: Sample) -> None:
    _, pair = await sample(CIRCLE, CIRCLE_FILLED, rows_per_table=0, wanted={public("a"): ["x = 8"]})
    # a8 needs b2 and a9, b2 needs a2, which needs a3 and so on; a9 needs b1, and that needs a1.
    assert pair.column("SELECT x FROM a ORDER BY 1") == list(range(1, 10))
    assert pair.column("SELECT id FROM b ORDER BY 1") == list(range(1, 10))


async def test_a_role_without_replication_rights_loads_in_order_and_leaves_the_schema_as_it_was(
    sample: Sample, stage: Stage
) -> None:
    role = stage.role()
    schema = [
        *CIRCLE,
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$",
        "CREATE TRIGGER plain BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION shout()",
        "CREATE TRIGGER always BEFORE INSERT ON b FOR EACH ROW EXECUTE FUNCTION shout()",
        "ALTER TABLE b ENABLE ALWAYS TRIGGER always",
    ]
    quiet = ["ALTER TABLE a DISABLE TRIGGER USER", "ALTER TABLE b DISABLE TRIGGER USER"]
    copied, pair = await sample(schema, [*quiet, *CIRCLE_FILLED], role=role)
    assert copied == 18
    assert pair.rows("SELECT tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1") == [
        ("always", "A"),
        ("plain", "O"),
    ]
    assert pair.column("SELECT DISTINCT condeferrable FROM pg_constraint WHERE contype = 'f'") == [False]
    assert pair.rows("SELECT count(*) FROM a JOIN b ON b.id = a.b_id") == [(9,)]


async def test_triggers_stay_silent_even_those_that_always_fire(sample: Sample) -> None:
    schema = [
        "CREATE TABLE t (id int)",
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$",
        *(f"CREATE TRIGGER {n} BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION shout()" for n in ("a", "o", "r", "d")),
        "ALTER TABLE t ENABLE ALWAYS TRIGGER a", "ALTER TABLE t ENABLE REPLICA TRIGGER r", "ALTER TABLE t DISABLE TRIGGER d",
    ]  # fmt: skip
    rows = ["ALTER TABLE t DISABLE TRIGGER USER", "INSERT INTO t VALUES (1)"]
    copied, pair = await sample(schema, rows)
    assert copied == 1
    assert pair.column(
        "SELECT tgenabled::text FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname"
    ) == list("ADOR")


VALUES = [
    ("text", r"E'tab\t back\\slash \\N nul'"),
    ("bytea", r"'\x00ff27'"),
    ("double precision", "0.1::float8 + 0.2"),
    ("real", "'1.1'"),
    ("numeric", "'NaN'"),
    ("timestamptz", "'2024-03-31 01:59:59.123456+05:30'"),
    ("date", "'0044-03-15 BC'"),
    ("interval", "'-1 year 2 mons -3 days 04:05:06.789'"),
    ("money", "'1234.56'"),
    ("jsonb", """'{"ä": [1, null, "\\"x"]}'"""),
    ("mood[]", "ARRAY['sad', NULL, 'it''s, \"odd\"']::mood[]"),
    ("mood_pair", "ROW('sad', 1)::mood_pair"),
    ("mood_pair[]", "ARRAY[ROW('sad', 1)::mood_pair]"),
    ("int4range", "'[1,5)'"),
    ("regclass", "'public.kept'::regclass"),
    ("bit varying", "B'101'"),
    ("inet", "'10.0.0.1/8'"),
    ("small", "7"),
    ("text", "NULL"),
]


async def test_every_type_of_value_arrives_as_it_was(sample: Sample, stage: Stage) -> None:
    schema = [
        "CREATE TYPE mood AS ENUM ('sad', 'it''s, \"odd\"')",
        "CREATE TYPE mood_pair AS (m mood, n int)",
        "CREATE DOMAIN small AS int CHECK (VALUE < 10)",
        "CREATE TABLE kept (id int)",
        f"CREATE TABLE t ({', '.join(f'c{n} {type_}' for n, (type_, _) in enumerate(VALUES))})",
    ]
    rows = [f"INSERT INTO t VALUES ({', '.join(value for _, value in VALUES)})"]
    # Both databases' types get their OIDs from one counter of the server, so that they differ as after a restore.
    _, pair = await sample(schema, rows)
    query = f"SELECT {', '.join(f'c{n}::text' for n in range(len(VALUES)))} FROM t"
    assert pair.rows(query) == stage.run(pair.source, query)


async def test_identity_generated_dropped_and_no_columns_are_copied(sample: Sample) -> None:
    schema = [
        "CREATE TABLE t (gone int, id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
        "ALTER TABLE t DROP gone",
        "CREATE TABLE bare ()",
    ]
    rows = ["INSERT INTO t DEFAULT VALUES", "INSERT INTO t DEFAULT VALUES", "DELETE FROM t WHERE id = 1"]
    copied, pair = await sample(schema, [*rows, "INSERT INTO bare SELECT FROM generate_series(1, 3)"])
    assert pair.rows("SELECT id, twice FROM t") == [(2, 4)]
    assert pair.rows("SELECT count(*) FROM bare") == [(3,)]
    assert copied == 4


PARTITIONED = [
    "CREATE TABLE p (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part)",
    "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
    "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2, 3) PARTITION BY LIST (part)",
    "CREATE TABLE p2a PARTITION OF p2 FOR VALUES IN (2)",
    "CREATE TABLE p2b PARTITION OF p2 FOR VALUES IN (3)",
    "CREATE TABLE c (id int, p_id int, p_part int, FOREIGN KEY (p_id, p_part) REFERENCES p)",
]


async def test_partitions_are_sampled_each_and_closed_over_their_parent(sample: Sample) -> None:
    rows = [
        "INSERT INTO p SELECT n, part FROM generate_series(1, 100) n, generate_series(1, 3) part",
        "INSERT INTO c VALUES (1, 77, 3)",
    ]
    wanted = {public("p"): ["id = 50 AND part = 1"], public("p2a"): ["id = 60"]}
    _, pair = await sample(PARTITIONED, rows, rows_per_table=3, wanted=wanted)
    found = pair.rows("SELECT part, id FROM p ORDER BY 1, 2")
    assert found == [(1, 1), (1, 50), (2, 1), (2, 60), (3, 1), (3, 77)]


async def test_inherited_rows_are_copied_once_and_into_the_table_that_holds_them(sample: Sample) -> None:
    schema = ["CREATE TABLE t (id int)", "CREATE TABLE c (more int) INHERITS (t)"]
    copied, pair = await sample(schema, ["INSERT INTO t VALUES (1)", "INSERT INTO c VALUES (2, 3)"])
    assert copied == 2
    assert (pair.column("SELECT id FROM ONLY t"), pair.rows("SELECT id, more FROM c")) == ([1], [(2, 3)])


async def test_the_sample_stays_within_its_bytes_and_a_row_without_room_for_its_parents_is_left_out(
    sample: Sample,
) -> None:
    rows = [
        "INSERT INTO customer SELECT n, repeat(md5(n::text), 100) FROM generate_series(1, 50) n",
        "INSERT INTO invoice SELECT n, n FROM generate_series(1, 50) n",
        "VACUUM ANALYZE",
    ]
    copied, pair = await sample(CUSTOMERS, rows, most_bytes=10_000)
    assert pair.rows("SELECT count(*), sum(length(name)) FROM customer") == [(3, 9600)]
    assert pair.rows("SELECT count(*) FROM invoice") == [(3,)]
    assert copied == 6
    assert pair.rows(
        "SELECT count(*) FROM invoice i LEFT JOIN customer c ON c.id = i.customer_id WHERE c.id IS NULL"
    ) == [(0,)]


async def test_one_huge_row_does_not_keep_the_small_ones_out(sample: Sample) -> None:
    rows = [
        "INSERT INTO t VALUES (1, repeat('x', 3000000))",
        "INSERT INTO t SELECT n, 'small' FROM generate_series(2, 9) n",
    ]
    _, pair = await sample(["CREATE TABLE t (id int PRIMARY KEY, v text)"], rows, most_bytes=1000)
    assert pair.column("SELECT id FROM t ORDER BY 1") == list(range(2, 10))


async def test_the_version_table_is_copied_whole_whatever_the_bounds(sample: Sample) -> None:
    schema = ["CREATE SCHEMA s", "CREATE TABLE s.stamps (version_num varchar(32) PRIMARY KEY)"]
    rows = ["INSERT INTO s.stamps SELECT 'r' || n FROM generate_series(1, 5) n"]
    copied, pair = await sample(
        schema,
        rows,
        rows_per_table=1,
        most_bytes=0,
        in_scratch=["INSERT INTO s.stamps VALUES ('r1'), ('old')"],
    )
    assert copied == 5
    assert pair.column("SELECT version_num FROM s.stamps ORDER BY 1") == ["r1", "r2", "r3", "r4", "r5"]


async def test_sequences_stand_where_those_of_the_source_stand(sample: Sample) -> None:
    schema = ["CREATE TABLE t (id serial)", 'CREATE SEQUENCE "odd %.""s"', "CREATE SEQUENCE fresh START 5"]
    rows = ["INSERT INTO t SELECT FROM generate_series(1, 41)", """SELECT setval('"odd %.""s"', 7, false)"""]
    _, pair = await sample(schema, rows, rows_per_table=1)
    assert pair.rows("SELECT nextval('t_id_seq'), nextval('\"odd %.\"\"s\"'), nextval('fresh')") == [
        (42, 7, 5)
    ]


async def test_names_may_hold_quotes_dots_percent_signs_and_any_letter(sample: Sample) -> None:
    name = TableName('a."b', 'tä.%s{}$1"')
    schema = [
        'CREATE SCHEMA "a.""b"',
        f'CREATE TABLE {name.sql()} ("k%"" {{0}}" int PRIMARY KEY REFERENCES {name.sql()})',
    ]
    _, pair = await sample(
        schema,
        [f"INSERT INTO {name.sql()} VALUES (1), (2)"],
        rows_per_table=0,
        wanted={name: ['"k%"" {0}" = 2']},
    )
    assert pair.column(f"SELECT * FROM {name.sql()}") == [2]


async def test_schemas_of_rollbackd_and_tables_that_scratch_lacks_are_left_out(sample: Sample) -> None:
    schema = [
        "CREATE SCHEMA rollbackd_archive",
        "CREATE TABLE rollbackd_archive.a (id int)",
        "CREATE TABLE t (id int)",
    ]
    rows = [
        "CREATE TABLE late (id int PRIMARY KEY)", "INSERT INTO late VALUES (1)", "ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES late",
        "INSERT INTO rollbackd_archive.a VALUES (1)", "INSERT INTO t VALUES (1)",
    ]  # fmt: skip
    copied, pair = await sample(schema, rows)
    assert copied == 1
    assert pair.column("SELECT id FROM t") == [1]


async def test_a_table_that_the_role_may_not_read_is_left_out_with_the_rows_that_need_it(
    sample: Sample, stage: Stage
) -> None:
    reader = stage.role()
    rows = [
        "ALTER TABLE invoice ALTER customer_id DROP NOT NULL",
        "INSERT INTO customer VALUES (1)",
        "INSERT INTO invoice VALUES (1, 1)",
        f"GRANT SELECT ON invoice TO {reader.name}",
    ]
    copied, _ = await sample(CUSTOMERS, rows, source_role=reader)
    assert copied == 0


async def test_a_failure_leaves_scratch_as_it_was(sample: Sample, stage: Stage) -> None:
    schema = ["CREATE TABLE a (id int)", "CREATE TABLE t (id int)"]
    scratch_rows = ["ALTER TABLE t ADD CHECK (id < 0)"]
    with pytest.raises(asyncpg.CheckViolationError):
        await sample(
            schema, ["INSERT INTO a VALUES (1)", "INSERT INTO t VALUES (1)"], in_scratch=scratch_rows
        )
    scratch = stage._made[-1]
    assert stage.run(scratch, "SELECT count(*) FROM a") == [(0,)]


class Watched:
    """A connection that is looked at by another one after each query, from outside."""

    def __init__(self, connection: asyncpg.Connection, watching: asyncpg.Connection) -> None:
        self._connection = connection
        self._watching = watching
        self.most_locked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, *arguments: Any, **more: Any) -> Any:
        rows = await self._connection.fetch(*arguments, **more)
        query = (
            "SELECT count(DISTINCT l.relation) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " WHERE l.pid = $1 AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
        )
        locked = await self._watching.fetchval(query, self._connection.get_server_pid())
        self.most_locked = max(self.most_locked, locked)
        return rows


async def test_no_more_than_one_table_of_the_source_is_locked_at_a_time(stage: Stage) -> None:
    schema = [f"CREATE TABLE t{n} (id int PRIMARY KEY)" for n in range(30)]
    source, scratch = stage.database(*schema, "INSERT INTO t1 VALUES (1)"), stage.database(*schema)
    secret = stage.superuser.secret
    connections = [await connect(Place.of(stage.url(name), secret), 10) for name in (source, source, scratch)]
    watched = Watched(connections[0], connections[1])
    copied = await copy_sample(watched, connections[2], rows_per_table=1, most_bytes=MEGABYTE, wanted={})
    assert (copied, watched.most_locked) == (1, 1)
    for connection in connections:
        await connection.close()


async def test_a_table_that_is_locked_is_left_out_and_holds_nobody_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "LOCK_TIMEOUT_S", 0.1)
    source, scratch = stage.database(*CUSTOMERS, *FILLED), stage.database(*CUSTOMERS)
    secret = stage.superuser.secret
    connections = [await connect(Place.of(stage.url(name), secret), 10) for name in (source, source, scratch)]
    async with connections[1].transaction():
        await connections[1].execute("LOCK TABLE invoice IN ACCESS EXCLUSIVE MODE")
        assert (
            await copy_sample(
                connections[0], connections[2], rows_per_table=5, most_bytes=MEGABYTE, wanted={}
            )
            == 5
        )
    for connection in connections:
        await connection.close()


async def test_rows_keep_their_links_when_the_source_is_written_meanwhile(stage: Stage) -> None:
    source, scratch = stage.database(*CUSTOMERS, *FILLED), stage.database(*CUSTOMERS)
    secret = stage.superuser.secret
    reading, writing = [await connect(Place.of(stage.url(name), secret), 10) for name in (source, scratch)]

    class Disturbed(Watched):
        async def fetch(self, *arguments: Any, **more: Any) -> Any:
            rows = await self._connection.fetch(*arguments, **more)
            if "rollbackd_size" in arguments[0]:
                stage.run(source, "DELETE FROM invoice", "DELETE FROM customer", "VACUUM customer")
            return rows

    await copy_sample(Disturbed(reading, reading), writing, rows_per_table=5, most_bytes=MEGABYTE, wanted={})
    found = "SELECT count(*) FROM invoice JOIN customer c ON c.id = customer_id"
    assert stage.run(scratch, found) == [(5,)]
    for connection in (reading, writing):
        await connection.close()


async def test_a_table_that_is_rewritten_meanwhile_ends_in_an_error_and_an_empty_scratch(
    stage: Stage,
) -> None:
    source, scratch = stage.database(*CUSTOMERS, *FILLED), stage.database(*CUSTOMERS)
    secret = stage.superuser.secret
    reading, writing = [await connect(Place.of(stage.url(name), secret), 10) for name in (source, scratch)]

    class Disturbed(Watched):
        async def fetch(self, *arguments: Any, **more: Any) -> Any:
            if "pg_trigger" in arguments[0]:  # the rows are chosen, and none is copied yet
                stage.run(source, "SET lock_timeout = '5s'; TRUNCATE invoice")
            return await self._connection.fetch(*arguments, **more)

    with pytest.raises(TransientError, match=r"public\.invoice was rewritten"):
        await copy_sample(
            reading, Disturbed(writing, reading), rows_per_table=5, most_bytes=MEGABYTE, wanted={}
        )
    assert stage.run(scratch, "SELECT count(*) FROM customer") == [(0,)]
    for connection in (reading, writing):
        await connection.close()
