"""Made-up rows on a real server: what every table gets, what the rows show, what is said where none can be had."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.rows.filling import Filled, fill_tables
from rollbackd.core.schema import TableName

pytestmark = [pytest.mark.xdist_group("adapters-rows"), pytest.mark.timeout(60)]

Fill = Callable[..., Awaitable[dict[str, Filled]]]


class House:
    """One database, filled as often as a test likes."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def run(self, *statements: str) -> None:
        for statement in statements:
            await self.connection.execute(statement)

    async def fill(self, *statements: str, rows: int = 3, skip: tuple[str, ...] = ()) -> dict[str, Filled]:
        await self.run(*statements)
        named = frozenset(TableName("public", name) for name in skip)
        return {f.table.text(): f for f in await fill_tables(self.connection, rows=rows, skip=named)}

    async def column(self, table: str, expression: str) -> list[Any]:
        return [row[0] for row in await self.connection.fetch(f"SELECT {expression} FROM {table}")]


@pytest.fixture
async def house(stage: Any) -> AsyncIterator[House]:
    place = Place.of(stage.url(stage.database()), stage.superuser.secret)
    connection = await connect(place, 10)
    yield House(connection)
    await connection.close()


def fine(filled: dict[str, Filled], rows: int = 3) -> bool:
    return all(not f.reason and f.rows >= rows for f in filled.values())


async def test_every_user_table_is_filled_and_ours_the_systems_and_skipped_ones_are_not(house: House) -> None:
    filled = await house.fill(
        "CREATE SCHEMA rollbackd_scratch",
        "CREATE TABLE rollbackd_scratch.marker (id int)",
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)",
        'CREATE SCHEMA "O""dd"',
        'CREATE TABLE "O""dd"."we.ird ""T" ("a ""b" int PRIMARY KEY, "n" text)',
        "CREATE TABLE nothing ()",
        skip=("alembic_version",),
    )
    assert sorted(filled) == ['"O""dd"."we.ird ""T"', "public.nothing"]
    assert fine(filled), filled
    assert await house.column("alembic_version", "*") == []
    assert await house.column("rollbackd_scratch.marker", "*") == []


TYPES = """
smallint|integer|bigint|numeric|numeric(6,2)|numeric(2,4)|numeric(3,-2)|real|double precision|boolean|text|varchar|varchar(1)
varchar(7)|char(3)|bpchar|"char"|name|bytea|date|time|timetz|timestamp|timestamptz|timestamp(0)|interval|uuid|json|jsonb|inet
cidr|macaddr|macaddr8|bit|bit(5)|varbit|varbit(9)|money|int4range|int8range|numrange|daterange|tsrange|tstzrange
int4multirange|datemultirange|tstzmultirange|point|line|lseg|box|path|polygon|circle|tsvector|tsquery|pg_lsn|oid|jsonpath
integer[]|text[]|varchar(4)[]|numeric(5,2)[]|timestamptz[]|box[]|mood|mood[]|positive|address|address[]|jsonb[]
""".replace("\n", "|").strip("|").split("|")  # fmt: skip


async def test_columns_of_every_type_are_null_in_one_row_and_have_a_value_in_another(house: House) -> None:
    columns = ", ".join(f"c{n} {type_}" for n, type_ in enumerate(TYPES))
    filled = await house.fill(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0 AND VALUE % 7 = 0)",
        "CREATE TYPE address AS (street text, number int, moods mood[])",
        f"CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, {columns})",
    )
    assert fine(filled), filled
    for n, type_ in enumerate(TYPES):
        empty = await house.column("t", f"c{n} IS NULL")
        assert set(empty) == {True, False}, type_


async def test_not_null_columns_of_every_type_are_filled_as_well_and_so_are_unique_ones(house: House) -> None:
    columns = ", ".join(f"c{n} {type_} NOT NULL" for n, type_ in enumerate(TYPES))
    no_order = ("json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "box[]", "boolean", "bit",
                "mood", "jsonpath")  # fmt: skip
    unique = [f"CREATE UNIQUE INDEX ON t (c{n})" for n, t in enumerate(TYPES) if t not in no_order]
    filled = await house.fill(
        "CREATE TYPE mood AS ENUM ('sad', 'glad')",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0 AND VALUE < 100)",
        "CREATE TYPE address AS (street text, number int, moods mood[])",
        f"CREATE TABLE t ({columns})",
        *unique,
    )
    assert fine(filled), filled
    assert len(unique) > 50


async def test_values_are_in_the_way_of_narrowing(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (v varchar(40) NOT NULL, c char(5), x text, i int, b bigint NOT NULL, n numeric(8,3), at timestamptz)"
    )
    assert fine(filled), filled
    assert max(await house.column("t", "length(v)")) == 40
    assert max(await house.column("t WHERE c IS NOT NULL", "length(c)")) == 5
    assert max(await house.column("t WHERE x IS NOT NULL", "length(x)")) > 255
    assert max(await house.column("t WHERE i IS NOT NULL", "i")) > 2**15
    assert max(await house.column("t", "b")) > 2**31
    assert "99999.999" in await house.column("t", "n::text")
    assert any(not text.isascii() for text in await house.column("t", "v"))
    assert "00:00:00" not in await house.column("t WHERE at IS NOT NULL", "at::time::text")


async def test_two_rows_share_the_value_of_a_column_that_is_in_no_unique_index(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (id serial PRIMARY KEY, email text NOT NULL, at date, nick text DEFAULT 'x')"
    )
    assert fine(filled), filled
    for name in ("email", "at", "nick"):
        values = await house.column(f"t WHERE {name} IS NOT NULL", f"{name}::text")
        assert len(set(values)) < len(values), name


async def test_each_column_of_a_composite_unique_constraint_repeats_itself_though_the_rows_differ(
    house: House,
) -> None:
    filled = await house.fill(
        "CREATE TABLE tenant (id int PRIMARY KEY)",
        "CREATE TABLE person (tenant int NOT NULL REFERENCES tenant, email text NOT NULL, UNIQUE (tenant, email))",
    )
    assert fine(filled), filled
    for name in ("tenant", "email"):
        values = await house.column("person", name)
        assert len(set(values)) < len(values), name


async def test_every_label_of_an_enum_is_used_or_the_first_and_the_last(house: House) -> None:
    filled = await house.fill(
        "CREATE TYPE three AS ENUM ('a', 'b', 'c')",
        "CREATE TYPE many AS ENUM ('one', 'two', 'three', 'four', 'five')",
        "CREATE TABLE t (x three NOT NULL, y three, z many NOT NULL, w many, d three NOT NULL DEFAULT 'b', f bool)",
    )
    assert fine(filled), filled
    assert set(await house.column("t", "x::text")) == {"a", "b", "c"}
    assert set(await house.column("t", "y::text")) == {"a", "b", "c", None}
    assert set(await house.column("t", "d::text")) == {"a", "b", "c"}
    assert {"one", "five"} <= set(await house.column("t", "z::text"))
    assert {"one", "five", None} <= set(await house.column("t", "w::text"))
    assert set(await house.column("t", "f")) == {True, False, None}


async def test_defaults_are_used_for_a_part_of_the_rows(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (a text NOT NULL DEFAULT 'standard', b text DEFAULT 'standard')"
    )
    assert fine(filled), filled
    for name in ("a", "b"):
        values = await house.column("t", name)
        assert "standard" in values
        assert set(values) - {"standard", None}, name


async def test_identity_sequences_and_generated_columns_are_left_to_the_server(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s bigserial, d int GENERATED BY DEFAULT AS IDENTITY,"
        " price numeric(6,2) NOT NULL, gross numeric GENERATED ALWAYS AS (price * 1.19) STORED)"
    )
    assert fine(filled), filled
    rows = filled["public.t"].rows
    for name in ("id", "s", "d"):
        assert sorted(await house.column("t", name)) == list(range(1, rows + 1))
    await house.run("INSERT INTO t (price) VALUES (1)")  # the application goes on from there


async def test_children_refer_to_parents_whatever_their_names(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE z (a int, b text, PRIMARY KEY (a, b))",
        "CREATE TABLE m (id serial PRIMARY KEY, a int, b text, FOREIGN KEY (a, b) REFERENCES z MATCH FULL)",
        "CREATE TABLE a (m int NOT NULL REFERENCES m, a int NOT NULL, b text, FOREIGN KEY (a, b) REFERENCES z)",
        "CREATE TABLE one_to_one (id int PRIMARY KEY REFERENCES m)",
        "CREATE TABLE with_sequence (id serial PRIMARY KEY REFERENCES z2)".replace("z2", "m"),
        "CREATE TABLE tags (m int REFERENCES m, o int REFERENCES one_to_one, PRIMARY KEY (m, o))",
    )
    assert fine(filled), filled
    assert set(await house.column("m", "a IS NULL")) == {True, False}
    assert set(await house.column("a", "b IS NULL")) == {True, False}


async def test_foreign_keys_that_share_a_column_agree(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE tenant (id serial PRIMARY KEY)",
        "CREATE TABLE person (tenant int REFERENCES tenant, id serial, PRIMARY KEY (tenant, id))",
        "CREATE TABLE team (tenant int REFERENCES tenant, id serial, PRIMARY KEY (tenant, id))",
        "CREATE TABLE member (tenant int NOT NULL, person int NOT NULL, team int, FOREIGN KEY (tenant, person) REFERENCES"
        " person, FOREIGN KEY (tenant, team) REFERENCES team)",
    )
    assert fine(filled), filled
    assert set(await house.column("member", "team IS NULL")) == {True, False}


async def test_circles_of_foreign_keys_are_closed(house: House) -> None:
    filled = await house.fill(
        # Through NULL, closed afterwards.
        "CREATE TABLE a (id serial PRIMARY KEY, b int)",
        "CREATE TABLE b (id serial PRIMARY KEY, a int NOT NULL REFERENCES a)",
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b",
        # Never NULL, but deferrable.
        "CREATE TABLE c (id serial PRIMARY KEY, d text NOT NULL)",
        "CREATE TABLE d (id text PRIMARY KEY, c int NOT NULL REFERENCES c DEFERRABLE)",
        "ALTER TABLE c ADD FOREIGN KEY (d) REFERENCES d DEFERRABLE",
        # A tree, and a tree whose root is its own parent.
        "CREATE TABLE tree (id serial PRIMARY KEY, parent int REFERENCES tree)",
        "CREATE TABLE own (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int NOT NULL REFERENCES own)",
        "CREATE TABLE downstream (c int NOT NULL REFERENCES c)",
    )
    assert fine(filled), filled
    assert set(await house.column("a", "b IS NULL")) == {True, False}
    assert set(await house.column("tree", "parent IS NULL")) == {True, False}


async def test_a_circle_that_no_single_insert_can_close_is_reported_and_so_is_what_hangs_on_it(
    house: House,
) -> None:
    filled = await house.fill(
        "CREATE TABLE a (id serial PRIMARY KEY, b int NOT NULL)",
        "CREATE TABLE b (id serial PRIMARY KEY, a int NOT NULL REFERENCES a)",
        "ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b",
        "CREATE TABLE child (a int NOT NULL REFERENCES a)",
        "CREATE TABLE other (id int)",
    )
    assert filled["public.a"].reason == "there is nothing to refer to in public.b"
    assert filled["public.child"].reason == "there is nothing to refer to in public.a"
    assert (filled["public.a"].rows, filled["public.b"].rows, filled["public.other"].reason) == (0, 0, "")


CHECKED = [
    "state text NOT NULL CHECK (state IN ('new', 'paid', 'it''s sent'))",
    "state varchar(9) CHECK (state = ANY (ARRAY['new', 'paid']))",
    "age int NOT NULL CHECK (age BETWEEN 18 AND 20)",
    "share numeric(3,2) NOT NULL CHECK (share > 0 AND share < 0.02)",
    "code text NOT NULL CHECK (length(code) = 7)",
    "code char(3) NOT NULL CHECK (code = upper(code) AND code ~ '^[A-Z]{3}$')",
    "code text NOT NULL UNIQUE CHECK (code ~ '^(inv|ord)-[0-9]{4,}$')",
    "mail text NOT NULL CHECK (mail LIKE '%_@_%.de')",
    "mail text NOT NULL CHECK (mail ~* '^[a-z0-9._%+-]+@[a-z0-9.-]+\\.[a-z]{2,}$' AND mail = lower(mail))",
    "low int NOT NULL, high int NOT NULL, CHECK (low < high), CHECK (high < 1000)",
    "a date NOT NULL, b date, CHECK (b > a)",
    "a int, b text, c date, CHECK (num_nonnulls(a, b, c) = 1)",
    "kind text NOT NULL CHECK (kind IN ('card', 'cash')), card text, CHECK ((kind = 'card') = (card IS NOT NULL))",
    "at date NOT NULL CHECK (at >= '2031-01-01' AND at < '2031-01-02')",
    "tags text[] NOT NULL CHECK (cardinality(tags) = 4)",
    "doc jsonb NOT NULL CHECK (jsonb_typeof(doc) = 'array')",
    "doc jsonb NOT NULL CHECK (doc ? 'name' AND doc ? 'size')",
    "n int NOT NULL CHECK (n % 5 = 0 AND n > 7)",
    "span int4range NOT NULL CHECK (NOT isempty(span) AND upper(span) < 50)",
    "slug citext NOT NULL CHECK (slug = 'x')".replace("citext", "name"),
]


@pytest.mark.parametrize("columns", CHECKED)
async def test_checks_are_satisfied(house: House, columns: str) -> None:
    filled = await house.fill(f"CREATE TABLE t ({columns})")
    assert fine(filled), filled


async def test_all_of_a_checks_values_are_used(house: House) -> None:
    assert fine(await house.fill("CREATE TABLE t (" + CHECKED[0] + ")"))
    assert set(await house.column("t", "state")) == {"new", "paid", "it's sent"}


async def test_a_check_between_two_foreign_keys_is_satisfied(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE p (id serial PRIMARY KEY)",
        "CREATE TABLE friends (a int NOT NULL REFERENCES p, b int NOT NULL REFERENCES p, CHECK (a < b))",
        "CREATE TABLE owned (p int REFERENCES p, f text, CHECK ((p IS NULL) <> (f IS NULL)))",
    )
    assert fine(filled), filled
    assert set(await house.column("owned", "p IS NULL")) == {True, False}


async def test_a_check_that_nothing_passes_is_reported_by_its_name(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (n text NOT NULL CONSTRAINT secret CHECK (md5(n) = 'f00'))",
        "CREATE FUNCTION no(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'never %', $1; END $$",
        "CREATE TABLE raising (n int NOT NULL CHECK (no(n)))",
        "CREATE TABLE fine (n int)",
    )
    assert filled["public.t"].reason == "nothing that was made up passes secret"
    assert filled["public.raising"].reason.startswith("never ")
    assert filled["public.fine"].rows >= 3


async def test_domains_with_their_checks_and_not_null(house: House) -> None:
    filled = await house.fill(
        "CREATE DOMAIN plz AS varchar(5) NOT NULL CHECK (VALUE ~ '^[0-9]{5}$')",
        "CREATE DOMAIN narrow AS plz CHECK (VALUE < '5')",
        "CREATE TABLE t (a plz, b narrow PRIMARY KEY, c plz[])",
    )
    assert fine(filled), filled
    assert all(len(text) == 5 and text < "5" for text in await house.column("t", "b"))


async def test_an_extensions_type_is_filled_where_a_value_can_be_guessed_and_its_own_tables_are_let_be(
    house: House,
) -> None:
    filled = await house.fill(
        "CREATE EXTENSION vector",
        "CREATE TABLE of_extension (id int)",
        "ALTER EXTENSION vector ADD TABLE of_extension",
        "CREATE TABLE t (a vector(700) NOT NULL, b vector, c halfvec(3), d sparsevec)",
    )
    assert list(filled) == ["public.t"]
    assert fine(filled), filled
    assert set(await house.column("t", "c IS NULL")) == {True, False}


async def test_an_unknown_type_is_left_null_or_reported(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (a pg_snapshot, b int, x xml)",  # nor can every server read XML
        "CREATE TABLE needs (a pg_snapshot NOT NULL)",
        "CREATE TABLE has_default (a pg_snapshot NOT NULL DEFAULT pg_current_snapshot())",
    )
    assert filled["public.t"].rows >= 3
    assert filled["public.t"].reason == filled["public.has_default"].reason == ""
    assert filled["public.needs"].reason == "no value is known for a pg_snapshot"


@pytest.mark.parametrize(
    "partitions",
    [
        ["BY RANGE (at)", "FOR VALUES FROM ('2031-01-01') TO ('2031-02-01')", "FOR VALUES FROM ('2040-01-01') TO ('2041-01-01')"],
        ["BY LIST (kind)", "FOR VALUES IN ('x')", "FOR VALUES IN ('y', 'z')"],
        ["BY HASH (n)", "FOR VALUES WITH (MODULUS 2, REMAINDER 0)", "FOR VALUES WITH (MODULUS 2, REMAINDER 1)"],
        ["BY RANGE (lower(kind))", "FOR VALUES FROM ('m') TO ('q')"],
        ["BY RANGE (n, at)", "FOR VALUES FROM (10, MINVALUE) TO (20, MAXVALUE)"],
        ["BY RANGE (at)", "FOR VALUES FROM ('2031-01-01') TO ('2031-02-01')", "DEFAULT"],
    ],
)  # fmt: skip
async def test_partitioned_tables_get_rows_that_some_partition_takes(
    house: House, partitions: list[str]
) -> None:
    filled = await house.fill(
        f"CREATE TABLE t (at date NOT NULL, kind text NOT NULL, n int NOT NULL) PARTITION {partitions[0]}",
        *(f"CREATE TABLE t{n} PARTITION OF t {bound}" for n, bound in enumerate(partitions[1:])),
    )
    assert list(filled) == ["public.t"]
    assert fine(filled), filled
    assert len(await house.column("t", "n")) >= 3


async def test_a_partitioned_table_without_partitions_is_reported(house: House) -> None:
    filled = await house.fill("CREATE TABLE t (n int) PARTITION BY LIST (n)")
    assert "no partition" in filled["public.t"].reason
    assert filled["public.t"].rows == filled["public.t"].added == 0


async def test_an_inheriting_table_has_rows_of_its_own(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE base (n int NOT NULL, extra text)", "CREATE TABLE sub (m int) INHERITS (base)"
    )
    assert fine(filled), filled
    await house.run("ALTER TABLE base ADD COLUMN late text")
    await house.fill()
    for only in ("ONLY base", "sub"):
        assert set(await house.column(only, "late IS NULL")) == {True, False}


async def test_unique_indexes_partial_over_expressions_and_exclusions_are_kept(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE t (email text NOT NULL, state text NOT NULL CHECK (state IN ('open', 'done')), during tstzrange NOT NULL,"
        " EXCLUDE USING gist (during WITH &&))",
        "CREATE UNIQUE INDEX ON t (lower(email))",
        "CREATE UNIQUE INDEX ON t ((state)) WHERE state = 'open'",
        "CREATE TABLE nulls (a int, b int, UNIQUE NULLS NOT DISTINCT (a))",
    )
    assert fine(filled), filled


async def test_a_table_for_one_row_gets_one_and_says_why(house: House) -> None:
    filled = await house.fill("CREATE TABLE settings (id int PRIMARY KEY CHECK (id = 1), title text)")
    assert (filled["public.settings"].rows, filled["public.settings"].added) == (1, 1)
    assert "settings_pkey" in filled["public.settings"].reason


RAISES = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$"


@pytest.mark.parametrize(
    ("body", "trigger", "said"),
    [
        ("RAISE 'closed on sundays';", "BEFORE INSERT ON t FOR EACH ROW", "closed on sundays"),
        ("RETURN NULL;", "BEFORE INSERT ON t FOR EACH ROW", "the insert left no row"),
        ("PERFORM 1/0; RETURN NEW;", "AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW", "division by zero"),
        ("PERFORM pg_sleep(20); RETURN NEW;", "BEFORE INSERT ON t FOR EACH ROW", "statement timeout"),
    ],
)  # fmt: skip
async def test_a_trigger_that_refuses_is_reported_and_the_rest_is_filled(
    house: House, body: str, trigger: str, said: str
) -> None:
    constraint = "CONSTRAINT " if "DEFERRABLE" in trigger else ""
    start = time.monotonic()
    filled = await house.fill(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "CREATE TABLE u (id int PRIMARY KEY, t int REFERENCES t)",
        RAISES.format(body),
        f"CREATE {constraint}TRIGGER refuses {trigger} EXECUTE FUNCTION refuse()",
        "SET statement_timeout = '1s'",
    )
    assert said in filled["public.t"].reason
    assert time.monotonic() - start < 4  # one timeout is enough to know
    assert (filled["public.t"].rows, filled["public.t"].added) == (0, 0)
    assert filled["public.u"].rows >= 3
    assert filled["public.u"].reason == ""


async def test_rules_that_take_the_rows_away_are_reported(house: House) -> None:
    filled = await house.fill(
        "CREATE TABLE other (id int)",
        "CREATE TABLE nothing (id int)",
        "CREATE RULE r AS ON INSERT TO nothing DO INSTEAD NOTHING",
        "CREATE TABLE moved (id int)",
        "CREATE RULE r AS ON INSERT TO moved DO INSTEAD INSERT INTO other VALUES (NEW.id)",
    )
    assert "a rule took it" in filled["public.nothing"].reason.replace("a trigger or ", "")
    assert filled["public.moved"].rows == filled["public.moved"].added == 0
    assert "a rule" in filled["public.moved"].reason
    assert filled["public.other"].rows >= 3


async def test_a_lost_connection_is_no_reason_but_an_error(house: House) -> None:
    await house.run(
        "CREATE TABLE t (id int)",
        RAISES.format("PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW;"),
        "CREATE TRIGGER refuses BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
        await house.fill()


async def test_row_security_is_reported(stage: Any, house: House) -> None:
    role = stage.role()
    await house.run(
        "CREATE TABLE t (id int)",
        "CREATE TABLE u (id int)",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        f"GRANT ALL ON t, u TO {role.name}",
    )
    database = await house.connection.fetchval("SELECT current_database()")
    connection = await connect(Place.of(stage.url(database, role), role.secret), 10)
    try:
        t, u = await fill_tables(connection)
    finally:
        await connection.close()
    assert "row-level security" in t.reason
    assert u.rows >= 3


async def test_existing_rows_are_kept_and_only_what_is_missing_is_added(house: House) -> None:
    await house.run(
        "CREATE TABLE t (id int PRIMARY KEY, n text NOT NULL)", "INSERT INTO t VALUES (1, 'kept'), (0, 'too')"
    )
    filled = await house.fill()
    assert {"kept", "too"} <= set(await house.column("t", "n"))
    assert filled["public.t"].added == filled["public.t"].rows - 2
    assert fine(filled)


async def test_a_second_filling_adds_and_changes_nothing(house: House) -> None:
    await house.fill(
        "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd')",
        "CREATE TABLE p (id serial PRIMARY KEY, parent int REFERENCES p, m mood, x text DEFAULT 'x', s text UNIQUE)",
        "CREATE TABLE c (p int UNIQUE REFERENCES p, n int CHECK (n IS NOT NULL), b bool CHECK (b), k numeric CHECK (k = 1))",
    )
    before = [await house.column(t, f"{t}::text || xmin") for t in ("p", "c")]
    filled = await house.fill()
    assert {f.added for f in filled.values()} == {0}
    assert [await house.column(t, f"{t}::text || xmin") for t in ("p", "c")] == before


async def test_filling_twice_from_scratch_makes_the_same_rows(stage: Any, house: House) -> None:
    schema = (
        "CREATE TABLE p (id serial PRIMARY KEY, a text, b uuid, c timestamptz, d jsonb, e int CHECK (e > 3))",
        "CREATE TABLE c (p int NOT NULL REFERENCES p, n numeric(4,1), UNIQUE (p, n))",
    )
    await house.fill(*schema)
    other = House(await connect(Place.of(stage.url(stage.database()), stage.superuser.secret), 10))
    await other.fill(*schema)
    for table in ("p", "c"):
        rows = await house.column(table, f"{table}::text")
        assert rows == await other.column(table, f"{table}::text")
        assert len(rows) >= 3
    await other.connection.close()


async def test_columns_added_since_get_values_in_some_of_the_rows(house: House) -> None:
    await house.fill(
        "CREATE TABLE p (id serial PRIMARY KEY)",
        "CREATE TABLE t (id serial PRIMARY KEY, since date NOT NULL)",
    )
    before = sorted(await house.column("t", "id || since::text"))
    filled = await house.fill(
        "ALTER TABLE t ADD COLUMN nick varchar(5) UNIQUE, ADD COLUMN p int REFERENCES p, ADD COLUMN until date,"
        " ADD CHECK (until > since), ADD COLUMN n int CHECK (n BETWEEN 5 AND 9)"
    )
    assert fine(filled), filled
    assert sorted(await house.column(f"t WHERE id <= {len(before)}", "id || since::text")) == before
    for name in ("nick", "p", "n", "until"):
        # In rows that were there: those are what a migration would meet.
        old = await house.column(f"t WHERE id <= {len(before)}", f"{name} IS NULL")
        assert set(old) == {True, False}, name


async def test_what_a_revision_allows_anew_is_shown_by_a_further_row(house: House) -> None:
    await house.fill(
        "CREATE TYPE mood AS ENUM ('a', 'b')",
        "CREATE TABLE t (name varchar(10) NOT NULL UNIQUE, amount int NOT NULL, m mood NOT NULL)",
    )
    filled = await house.fill(
        "ALTER TABLE t ALTER name DROP NOT NULL, ALTER name TYPE varchar(20), ALTER amount TYPE bigint",
        "ALTER TABLE t DROP CONSTRAINT t_name_key",
        "ALTER TYPE mood ADD VALUE 'c'",
    )
    assert fine(filled), filled
    assert 0 < filled["public.t"].added <= 4
    names = await house.column("t", "name")
    assert None in names
    assert len(set(names)) < len(names) - names.count(None) + 1
    assert max(len(name or "") for name in names) == 20
    assert max(await house.column("t", "amount")) > 2**31
    assert "c" in await house.column("t", "m::text")


@pytest.mark.parametrize("rows", [1, 2, 7])
async def test_the_number_of_rows_is_the_callers(house: House, rows: int) -> None:
    filled = await house.fill(
        "CREATE TABLE t (id int PRIMARY KEY, a text NOT NULL, b bit(2) UNIQUE NOT NULL)",
        "CREATE TABLE u (id int PRIMARY KEY, n numeric(2) NOT NULL UNIQUE)",
        rows=rows,
    )
    assert filled["public.u"].rows >= rows
    assert (filled["public.t"].rows >= rows) == (rows <= 4)
    assert bool(filled["public.t"].reason) == (rows > 4)


async def test_sixty_tables_take_a_moment(house: House) -> None:
    await house.run(
        "CREATE TABLE t0 (id serial PRIMARY KEY, name text)",
        *(
            f"CREATE TABLE t{n} (id serial PRIMARY KEY, parent int NOT NULL REFERENCES t{n - 1}, name varchar(30) UNIQUE, at"
            f" timestamptz DEFAULT now(), amount numeric(9,2) NOT NULL CHECK (amount >= 0), state text CHECK (state IN ('a', 'b')))"
            for n in range(1, 60)
        ),
    )
    start = time.monotonic()
    filled = await house.fill()
    first = time.monotonic() - start
    again = await house.fill()
    second = time.monotonic() - start - first
    print(f"first {first:.2f} s, second {second:.2f} s")
    assert len(filled) == 60
    assert fine(filled), filled
    assert {f.added for f in again.values()} == {0}
    assert first < 8
    assert second < 4
