"""Archive instead of delete, and bring it back: on a real server, through the child's own code and the daemon's."""

import asyncio
import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import psycopg
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollbackd.adapters.postgres.archives import PostgresArchives
from rollbackd.adapters.worker.child import archiving
from rollbackd.adapters.worker.child.archiving import Archiving
from rollbackd.adapters.worker.child.faults import Refused
from rollbackd.adapters.worker.child.marks import LOCK_KEY
from rollbackd.core import archives as core_archives
from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.restoring.reports import ALREADY_THERE, RestoreReport
from rollbackd.core.restoring.sql import TEXT_SETTINGS
from rollbackd.core.restoring.values import is_constant
from rollbackd.core.schema import TableName
from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.errors import PermanentError, RefusedError, TransientError
from rollbackd.ports import Progress

RUN = "run-0001"


class Shelf:
    """One database, the child's archiving on it, and the daemon's side."""

    def __init__(self, stage: Any, *statements: str) -> None:
        self.stage = stage
        self.database = stage.database(*statements)
        self.archives = PostgresArchives(stage.target(self.database))
        self.engine = sqlalchemy.create_engine(
            stage.server.url(self.database, driver="psycopg"), poolclass=sqlalchemy.NullPool
        )

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self.stage.run(self.database, *statements)
        return rows

    def rows(self, table: str) -> list[str]:
        """Each row as PostgreSQL writes it, sorted: the same bytes or not the same rows."""
        with psycopg.connect(self.stage.server.url(self.database)) as connection:
            for name in ("DateStyle", "IntervalStyle", "TimeZone", "extra_float_digits", "lc_monetary"):
                connection.execute(f"SET {name} = '{TEXT_SETTINGS[name]}'")
            return [
                row[0]
                for row in connection.execute(f'SELECT t::text FROM {table} t ORDER BY t::text COLLATE "C"')
            ]

    def archive(
        self, items: list[ArchiveItem], *statements: str, run: str = RUN, locks: bool = True, level: str = ""
    ) -> list[dict[str, Any]]:
        """One downgrade: what was kept, after the statements ran between `before` and `after`."""
        plain = [msgspec.to_builtins(item) for item in items]
        revisions = list(dict.fromkeys(item.revision for item in items))
        kept = []
        with self.engine.connect() as connection:
            if level or not locks:
                connection.execution_options(isolation_level=level or "AUTOCOMMIT")
            work = Archiving(connection, run, plain)
            for revision in revisions:
                work.before(revision, locks)
                for statement in statements:
                    connection.exec_driver_sql(statement.replace("%", "%%"))
                kept += work.after(revision)
            connection.commit()
        return kept

    async def restore(self, run: str = RUN, *, dry_run: bool = False) -> RestoreReport:
        return await self.archives.restore(run, dry_run=dry_run)

    def script(self, text: str) -> str:
        """Run a script as a person would."""
        server: EmbeddedPostgres = self.stage.server
        done = subprocess.run(
            [
                str(server.bin_directory / "psql"),
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-f",
                "-",
                server.url(self.database),
            ],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def schema_is_there(self) -> bool:
        return bool(self.sql("SELECT to_regnamespace('rollbackd_archive') IS NOT NULL")[0][0])

    def traces(self) -> list[str]:
        """Triggers and functions of ours."""
        return [
            row[0]
            for row in self.sql(
                "SELECT tgname::text FROM pg_trigger WHERE tgname ~ '^rollbackd' UNION ALL"
                " SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace('rollbackd_archive')"
            )
        ]


@pytest.fixture
def shelf(stage: Any) -> Iterator[Callable[..., Shelf]]:
    made: list[Shelf] = []

    def make(*statements: str) -> Shelf:
        made.append(Shelf(stage, *statements))
        return made[-1]

    yield make
    for one in made:
        one.engine.dispose()


def item(kind: str, table: str, column: str = "", key: tuple[str, ...] = (), **more: Any) -> ArchiveItem:
    schema = more.pop("schema", "public")
    return ArchiveItem(
        revision=more.pop("revision", "r1"),
        kind=ArchiveKind(kind),
        table=TableName(schema, table),
        column=column,
        key=key,
        **more,
    )


def outcome(report: RestoreReport, table: str, kind: str = "") -> Any:
    found = [e for e in report.entries if e.table.name == table and kind in ("", e.kind)]
    assert len(found) == 1
    return found[0]


def test_what_the_child_sets_up_is_what_the_core_describes() -> None:
    assert archiving.SETUP == core_archives.SETUP
    assert {k: v for k, v in TEXT_SETTINGS.items() if k != "row_security"} == archiving.TEXT_SETTINGS


# -- whole tables -------------------------------------------------------------------------------------------------------

ODD = 'Ta"b.l%e ü' + "x" * 50  # 61 bytes
TYPES_DDL = (
    "CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'happy, \"very\"')",
    "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    "CREATE TYPE pair AS (a int, b text, c timestamptz)",
)


async def test_a_dropped_table_comes_back_byte_for_byte_whatever_its_types(
    shelf: Callable[..., Shelf],
) -> None:
    create = (
        "CREATE TABLE everything (id int PRIMARY KEY, n numeric, f float8, r real, t timestamptz, j json, jb jsonb, b bytea,"
        " m mood, d positive, p pair, ms mood[], ps pair[], i int[], iv interval, c char(5), mo money, ra int4range,"
        " g int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    it = shelf(
        *TYPES_DDL,
        create,
        "INSERT INTO everything (id, n, f, r, t, j, jb, b, m, d, p, ms, ps, i, iv, c, mo, ra) VALUES"
        " (1, 'NaN', 0.1, 'Infinity', '2024-02-29 23:59:59.123456+05:30', '{\"b\": 1,   \"a\": [1,2 ], \"b\": 2}', '{\"b\": 1}',"
        " '\\x00ff25', 'it''s ok', 7, ROW(1, 'a,\"b\"', '2024-01-01'), '{sad,\"happy, \\\"very\\\"\"}', ARRAY[ROW(NULL, '', NULL)::pair],"
        " '[2:3]={1,NULL}', '1 year -2 days 03:04:05.678', 'ab', '-1234.50', '[1,5)'),"
        " (2, 1e-20, '-0', 1.1754944e-38, 'infinity', 'null', 'null', '', NULL, NULL, ROW(NULL, NULL, NULL), '{}', NULL,"
        " '{{1,2},{3,4}}', '-1 day', '', '0', 'empty'),"
        " (3, 12345678901234567890.1234567890, 1e308, 0, '4713-01-01 BC', '  [1]  ', '[1.10]', NULL, 'sad', 1, NULL, NULL, NULL,"
        " NULL, NULL, NULL, NULL, NULL)",
    )
    before = it.rows("everything")
    kept = it.archive(
        [item("table", "everything", key=("id",))],
        "SET TimeZone = 'Asia/Kolkata'",
        "DROP TABLE everything",
        "DROP TYPE pair, mood CASCADE",
        "DROP DOMAIN positive",
    )
    assert [(k["kind"], k["rows"]) for k in kept] == [("table", 3)]
    it.sql(*TYPES_DDL, create)
    report = await it.restore()
    assert outcome(report, "everything").restored == 3
    assert it.rows("everything") == before


async def test_an_archive_stops_no_downgrade_from_dropping_types_and_collations(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        *TYPES_DDL,
        'CREATE COLLATION german FROM "C"',
        "CREATE TABLE t (id int PRIMARY KEY, name text COLLATE german, m mood, ps pair[])",
        "INSERT INTO t VALUES (1, 'ä', 'sad', ARRAY[ROW(1, 'x', NULL)::pair])",
    )
    kept = it.archive(
        [
            item("table", "t", key=("id",)),
            item("column", "t", "name", ("id",)),
            item("narrowed", "t", "name"),
            item("rows", "t"),
        ],
        "UPDATE t SET name = 'o'",
        "ALTER TABLE t ALTER name TYPE varchar(1) COLLATE german",
        "DROP TABLE t",
        "DROP TYPE mood, pair",
        "DROP COLLATION german",
    )
    assert [(k["kind"], k["rows"]) for k in kept] == [
        ("table", 1),
        ("column", 1),
        ("narrowed", 1),
        ("rows", 1),
    ]


async def test_names_with_quotes_unicode_percent_signs_and_63_bytes_survive(
    shelf: Callable[..., Shelf],
) -> None:
    quoted = '"' + ODD.replace('"', '""') + '"'
    column = '"c%s ""ö\\ :x $1"'
    create = f'CREATE TABLE "S %".{quoted} ("Key %" text PRIMARY KEY, {column} text)'
    it = shelf(
        'CREATE SCHEMA "S %"', create, f"INSERT INTO \"S %\".{quoted} VALUES ('100%', '%s'), ('\\', 'ü')"
    )
    name = 'c%s "ö\\ :x $1'
    before = it.rows(f'"S %".{quoted}')
    kept = it.archive(
        [
            item("rows", ODD, key=("Key %",), schema="S %"),
            item("table", ODD, key=("Key %",), schema="S %"),
            item("column", ODD, name, ("Key %",), schema="S %"),
        ],
        f'DELETE FROM "S %".{quoted} WHERE "Key %" = \'100%\'',
        f'DROP TABLE "S %".{quoted}',
    )
    assert [k["rows"] for k in kept] == [1, 2, 2]
    assert all(len(k["archive"].encode()) <= 63 for k in kept)
    assert len({k["archive"] for k in kept}) == 3
    it.sql(create)
    await it.archives.finish(RUN)
    assert (await it.restore()).restored == 2
    assert it.rows(f'"S %".{quoted}') == before


async def test_rows_without_a_key_come_back_as_often_as_they_were_there(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (a int, j json)",
        "INSERT INTO t VALUES (1, '{}'), (1, '{}'), (NULL, NULL), (NULL, NULL), (2, '1')",
    )
    before = it.rows("t")
    it.archive([item("table", "t")], "DROP TABLE t")
    it.sql("CREATE TABLE t (a int, j json)", "INSERT INTO t VALUES (1, '{}'), (3, '3')")
    await it.archives.finish(RUN)
    assert (await it.restore()).restored == 4
    assert it.rows("t") == sorted([*before, "(3,3)"])
    assert (await it.restore()).restored == 0
    assert it.rows("t") == sorted([*before, "(3,3)"])


async def test_a_partitioned_table_is_kept_through_its_parent_and_once(shelf: Callable[..., Shelf]) -> None:
    create = (
        "CREATE TABLE p (id int, at date, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (id)",
        "CREATE TABLE p2a PARTITION OF p2 FOR VALUES IN (2)",
    )
    it = shelf(*create, "INSERT INTO p VALUES (1, '2024-05-05', 'a'), (2, '2025-05-05', 'b')")
    before = it.rows("p")
    key = ("id", "at")
    tables = [item("table", name, key=key) for name in ("p", "p1", "p2", "p2a")]
    kept = it.archive(tables, "DROP TABLE p")
    assert [(k["table"]["name"], k["rows"]) for k in kept] == [("p", 2)]
    definition = (await it.archives.entries())[0].definition
    assert definition.partition_key == "RANGE (at)"
    assert [(p.table.name, p.bound) for p in definition.partitions] == [
        ("p1", "FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')"),
        ("p2", "FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')"),
        ("p2a", "FOR VALUES IN (2)"),
    ]
    it.sql(*create)
    assert (await it.restore()).restored == 2
    assert it.rows("p") == before


async def test_rows_of_heirs_are_left_to_the_heirs(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE a (id int)",
        "CREATE TABLE b () INHERITS (a)",
        "INSERT INTO a VALUES (1)",
        "INSERT INTO b VALUES (2)",
    )
    kept = it.archive([item("table", "a"), item("table", "b")], "DROP TABLE b, a")
    assert [(k["table"]["name"], k["rows"]) for k in kept] == [("a", 1), ("b", 1)]
    it.sql("CREATE TABLE a (id int)", "CREATE TABLE b () INHERITS (a)")
    await it.restore()
    assert it.rows("a") == ["(1)", "(2)"]
    assert it.rows("b") == ["(2)"]


RENAMED = (("no", "id"), ("a", "b"), ("b", "a"), ("mail", "email"))


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "without a key"])
async def test_what_is_called_otherwise_again_finds_its_place_whatever_was_kept(
    shelf: Callable[..., Shelf], keyed: bool
) -> None:
    """The key is renamed, and two columns have changed names with one another since the archive was made."""
    it = shelf(
        f"CREATE TABLE person (no int {'PRIMARY KEY' if keyed else ''}, a text, b text, age bigint, mail text)",
        "INSERT INTO person VALUES (1, 'ay', 'bee', 1030, 'x@y'), (2, 'eh', NULL, 7, NULL), (3, 'oh', 'be', 2040, 'z@y')",
    )
    before = it.rows("person")
    names = {"today": TableName("public", "people"), "renamed": RENAMED, "key": ("no",) if keyed else ()}
    it.archive([item("rows", "person", **names)], "UPDATE person SET a = upper(a), b = NULL WHERE no < 3")
    it.archive([item("rows", "person", revision="r0", **names)], "DELETE FROM person WHERE no = 3")
    it.archive(
        [item("narrowed", "person", "age", **names)], "ALTER TABLE person ALTER age TYPE int USING age % 1000"
    )
    it.archive([item("column", "person", "mail", **names)], "ALTER TABLE person DROP mail")
    await it.archives.finish(RUN)
    # Back on: under the names of then at first, so that what is asked for in between is said.
    it.sql("ALTER TABLE person ADD mail text")
    assert {e.missing + e.left for e in (await it.restore(dry_run=True)).entries} == {0}
    it.sql(
        "ALTER TABLE person RENAME no TO id",
        "ALTER TABLE person RENAME a TO c",
        "ALTER TABLE person RENAME b TO a",
        "ALTER TABLE person RENAME c TO b",
        "ALTER TABLE person RENAME mail TO email",
        "ALTER TABLE person ALTER age TYPE bigint",
        "ALTER TABLE person RENAME TO people",
        # What has the older names by now is something else.
        "CREATE TABLE person (no int, a text, b text, age bigint, mail text)",
        "ALTER TABLE people ADD mail text",
    )
    script = await it.archives.restore_script(RUN)

    report = await it.restore()

    assert {e.table.name for e in report.entries} == {"people"}
    assert {e.column for e in report.entries} == {"", "age", "email"}
    it.sql("ALTER TABLE people DROP mail")
    assert it.rows("people") == before
    assert it.rows("person") == []
    assert (await it.restore()).restored == 0
    if keyed:
        it.sql("UPDATE people SET email = NULL WHERE id = 1")
        it.script(script)
        assert it.rows("people") == before


async def test_a_script_that_was_written_too_early_says_so(shelf: Callable[..., Shelf]) -> None:
    """That of the report at the end of a run, for instance: the tables are there with the fixed migration alone."""
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    early = await it.archives.restore_script(RUN)
    it.sql("CREATE TABLE t (id int PRIMARY KEY)")
    in_time = await it.archives.restore_script(RUN)
    assert ("INSERT" in early, "INSERT" in in_time) == (False, True)
    advice = f"'rollbackd report {RUN}' write this script anew"
    assert (advice in early, advice in in_time) == (True, False)


async def test_a_column_that_stands_between_its_names_is_found_by_the_one_that_it_has(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, a text, b text)", "INSERT INTO t VALUES (1, 'x', 'y')")
    renamed = (("a", "a2"), ("b", "b2"))
    before = it.rows("t")
    it.archive([item("table", "t", key=("id",), renamed=renamed)], "DROP TABLE t")
    it.sql("CREATE TABLE t (id int PRIMARY KEY, a2 text, b text)")
    assert (await it.restore()).restored == 1
    assert it.rows("t") == before
    it.sql("DELETE FROM t", "ALTER TABLE t RENAME b TO c")
    assert outcome(await it.restore(), "t").reasons == (
        "public.t has no column b: apply the fixed migration first",
    )


async def test_parents_come_before_children_and_a_row_whose_parent_is_missing_is_left_and_named(
    shelf: Callable[..., Shelf],
) -> None:
    create = (
        "CREATE TABLE customer (id int PRIMARY KEY, boss int REFERENCES customer)",
        "CREATE TABLE invoice (id int PRIMARY KEY, customer int REFERENCES customer)",
        "CREATE TABLE line (id int PRIMARY KEY, invoice int REFERENCES invoice)",
    )
    it = shelf(
        *create,
        "INSERT INTO customer VALUES (1, 2), (2, NULL), (3, 3)",
        "INSERT INTO invoice VALUES (1, 1), (2, 3), (3, NULL)",
        "INSERT INTO line VALUES (1, 1), (2, 2)",
    )
    before = {table: it.rows(table) for table in ("customer", "invoice", "line")}
    # In the order in which a downgrade drops them, so that going backwards alone would already do; and the other way round.
    for order in (("line", "invoice", "customer"), ("customer", "invoice", "line")):
        run = f"run-{order[0]}"
        it.archive(
            [item("table", table, key=("id",)) for table in order],
            "DROP TABLE line, invoice, customer",
            run=run,
        )
        it.sql(*create)
        assert (await it.restore(run)).restored == 8
        assert {table: it.rows(table) for table in before} == before
    it.archive([item("table", "line", key=("id",))], "DROP TABLE line", run="run-left")
    it.sql(create[2], "DELETE FROM invoice WHERE id = 2")
    left = outcome(await it.restore("run-left"), "line")
    assert (left.restored, left.left) == (1, 1)
    assert "public.invoice" in left.reasons[0]


async def test_identities_and_sequences_go_on_where_they_were_and_never_backwards(
    shelf: Callable[..., Shelf],
) -> None:
    create = "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, s serial)"
    it = shelf(
        create, "INSERT INTO t DEFAULT VALUES", "INSERT INTO t DEFAULT VALUES", "DELETE FROM t WHERE id = 2"
    )
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    it.sql(create)
    await it.restore(dry_run=True)
    assert it.sql("SELECT last_value, is_called FROM t_id_seq") == [(1, False)]
    await it.restore()
    assert it.rows("t") == ["(1,1)"]
    assert it.sql("INSERT INTO t DEFAULT VALUES RETURNING id, s") == [(3, 3)]
    it.sql("SELECT setval('t_id_seq', 100)")
    await it.restore()
    assert it.sql("SELECT last_value FROM t_id_seq") == [(100,)]


async def test_newer_rows_are_never_overwritten_and_the_report_says_so(shelf: Callable[..., Shelf]) -> None:
    create = "CREATE TABLE t (id int PRIMARY KEY, code text UNIQUE, v text)"
    it = shelf(create, "INSERT INTO t VALUES (1, 'a', 'old'), (2, 'b', 'old'), (3, 'c', 'old')")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    it.sql(create, "INSERT INTO t VALUES (1, 'a', 'new'), (20, 'b', 'new')")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (1, 2)
    assert "newer values" in " ".join(found.reasons)
    assert "unique" in " ".join(found.reasons)
    assert it.rows("t") == ["(1,a,new)", "(20,b,new)", "(3,c,old)"]


async def test_a_table_that_is_not_there_waits_for_the_fixed_migration(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'x')")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (0, 1)
    assert "apply the fixed migration first" in found.reasons[0]
    assert (await it.archives.entries())[0].restored_at is None
    it.sql("CREATE TABLE t (id int PRIMARY KEY)")
    assert "no column v" in outcome(await it.restore(), "t").reasons[0]
    it.sql("ALTER TABLE t ADD v text")
    assert (await it.restore()).restored == 1
    assert (await it.archives.entries())[0].restored_at is not None


async def test_a_value_that_the_present_type_would_cut_is_left(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'short'), (2, 'much too long')",
    )
    it.archive(
        [item("table", "t", key=("id",)), item("rows", "t", key=("id",))], "DELETE FROM t", "DROP TABLE t"
    )
    it.sql("CREATE TABLE t (id int PRIMARY KEY, v varchar(5))")
    report = await it.restore()
    assert report.restored == 1
    assert it.rows("t") == ["(1,short)"]
    assert "present types" in " ".join(outcome(report, "t", "table").reasons)


async def test_a_large_value_comes_back_whole(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t SELECT 1, string_agg(md5(g::text), '') FROM generate_series(1, 655360) g",
    )
    digest = it.sql("SELECT length(v), md5(v) FROM t")
    assert digest[0][0] > 20_000_000
    it.archive(
        [item("table", "t", key=("id",)), item("rows", "t", key=("id",))],
        "UPDATE t SET v = ''",
        "DROP TABLE t",
    )
    it.sql("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, '')")
    assert outcome(await it.restore(), "t", "rows").restored == 1
    assert it.sql("SELECT length(v), md5(v) FROM t") == digest


# -- columns ------------------------------------------------------------------------------------------------------------


async def test_a_dropped_column_comes_back_where_the_row_is_and_nothing_newer(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (a int, b text, v int, PRIMARY KEY (a, b))",
        "INSERT INTO t SELECT g, 'x', g * 10 FROM generate_series(1, 5) g",
        "INSERT INTO t VALUES (6, 'x', NULL)",
    )
    kept = it.archive([item("column", "t", "v", ("a", "b"))], "ALTER TABLE t DROP v")
    assert [(k["column"], k["rows"]) for k in kept] == [("v", 5)]
    it.sql(
        "ALTER TABLE t ADD v int DEFAULT 0",
        "UPDATE t SET v = 7 WHERE a = 1",
        "DELETE FROM t WHERE a = 2",
        "UPDATE t SET v = NULL WHERE a = 3",
    )
    await it.archives.finish(RUN)
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left, found.missing) == (3, 1, 1)
    assert any("newer value" in reason for reason in found.reasons)
    assert it.rows("t") == ["(1,x,7)", "(3,x,30)", "(4,x,40)", "(5,x,50)", "(6,x,0)"]
    again = outcome(await it.restore(), "t")
    assert (again.restored, again.left, again.missing) == (0, 1, 1)


async def test_a_value_that_the_fixed_migration_itself_filled_in_is_no_newer_value(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)",
        "INSERT INTO t VALUES (1, '2001-01-01'), (2, '2002-02-02')",
    )
    before = it.rows("t")
    it.archive([item("column", "t", "at", ("id",))], "ALTER TABLE t DROP at")
    it.sql(
        "ALTER TABLE t ADD at timestamptz NOT NULL DEFAULT now()", "INSERT INTO t VALUES (3, '2003-03-03')"
    )
    assert (await it.restore()).restored == 2
    assert it.rows("t")[:2] == before


async def test_a_column_of_a_table_without_a_key_comes_back_to_rows_that_are_the_same_otherwise(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (a int, j json, v text)",
        "INSERT INTO t VALUES (1, '{}', 'x'), (1, '{}', 'x'), (1, '{}', NULL), (2, NULL, 'y'), (3, '3', 'z')",
    )
    before = it.rows("t")
    it.archive([item("column", "t", "v")], "ALTER TABLE t DROP v")
    it.sql("ALTER TABLE t ADD v text")
    assert (await it.restore()).restored == 4
    assert it.rows("t") == before
    again = outcome(await it.restore(), "t")
    assert (again.restored, again.reasons) == (0, (ALREADY_THERE,))
    assert it.rows("t") == before
    it.sql("DELETE FROM t WHERE a = 3")
    assert outcome(await it.restore(), "t").missing == 1


async def test_of_a_changed_type_only_what_really_changed_is_kept_and_comes_back(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, price numeric(10,2), name text)",
        "INSERT INTO t VALUES (1, 1.50, 'short'), (2, 2.00, 'much longer'), (3, 3.99, 'also very long'), (4, NULL, NULL)",
    )
    before = it.rows("t")
    kept = it.archive(
        [item("narrowed", "t", "price", ("id",)), item("narrowed", "t", "name", ("id",))],
        "ALTER TABLE t RENAME TO other",
        "ALTER TABLE other RENAME id TO key",
        "ALTER TABLE other RENAME name TO title",
        "ALTER TABLE other ALTER price TYPE numeric(9,1), ALTER title TYPE varchar(5) USING left(title, 5)",
        "ALTER TABLE other RENAME title TO name",
        "ALTER TABLE other RENAME key TO id",
        "ALTER TABLE other RENAME TO t",
    )
    # 2.00 and 2.0 are different texts, and are kept: nothing that changed is left out.
    assert [(k["column"], k["rows"]) for k in kept] == [("price", 3), ("name", 2)]
    it.sql(
        "ALTER TABLE t ALTER price TYPE numeric(10,2), ALTER name TYPE text",
        "UPDATE t SET name = 'newer' WHERE id = 3",
    )
    await it.archives.finish(RUN)
    report = await it.restore()
    by_column = {e.column: (e.restored, e.left) for e in report.entries}
    assert by_column == {"price": (1, 0), "name": (1, 1)}  # 1.5 becomes 1.50 by itself
    assert it.rows("t") == sorted([*before[:2], "(3,3.99,newer)", before[3]])
    assert (await it.restore()).restored == 0


async def test_a_narrowed_column_without_a_key_comes_back_where_the_row_can_be_told(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (a int, v numeric)", "INSERT INTO t VALUES (1, 1.5), (2, 2), (3, 3.5), (3, 3.6)"
    )
    kept = it.archive([item("narrowed", "t", "v")], "ALTER TABLE t ALTER v TYPE int")
    assert [k["rows"] for k in kept] == [3]
    it.sql("ALTER TABLE t ALTER v TYPE numeric")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.missing) == (1, 2)
    assert it.rows("t") == ["(1,1.5)", "(2,2)", "(3,4)", "(3,4)"]


async def test_a_narrowing_that_changes_nothing_keeps_nothing(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'abc')")
    assert it.archive([item("narrowed", "t", "v", ("id",))], "ALTER TABLE t ALTER v TYPE varchar(10)") == []
    assert not it.schema_is_there()


async def test_old_values_that_the_present_type_does_not_take_are_left(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'eleven'), (2, '12.50')"
    )
    it.archive([item("narrowed", "t", "v", ("id",))], "ALTER TABLE t ALTER v TYPE int USING length(v)")
    it.sql("ALTER TABLE t ALTER v TYPE numeric")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (1, 1)
    assert it.rows("t") == ["(1,6)", "(2,12.50)"]


# -- rows ---------------------------------------------------------------------------------------------------------------


async def test_rows_that_statements_change_remove_or_empty_come_back(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text, w int)",
        "INSERT INTO t SELECT g, 'v' || g, g FROM generate_series(1, 6) g",
        "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE)",
        "INSERT INTO child SELECT g, g FROM generate_series(1, 6) g",
        "CREATE TABLE u (a int, v text)",
        "INSERT INTO u VALUES (1, 'x'), (1, 'x'), (2, NULL)",
    )
    before = {table: it.rows(table) for table in ("t", "child", "u")}
    kept = it.archive(
        [item("rows", "t", key=("id",)), item("rows", "child", key=("id",)), item("rows", "u")],
        "UPDATE t SET v = 'changed' WHERE id <= 2",
        "UPDATE t SET v = 'again' WHERE id = 2",
        "UPDATE t SET v = v",
        "UPDATE t SET w = 0 WHERE id = 3",
        "DELETE FROM t WHERE id IN (2, 4)",
        "TRUNCATE u",
    )
    assert [(k["table"]["name"], k["rows"]) for k in kept] == [("t", 6), ("child", 2), ("u", 3)]
    assert it.traces() == []
    dry = await it.restore(dry_run=True)
    assert it.rows("t") != before["t"]
    report = await it.restore()
    assert [e.restored for e in report.entries] == [e.restored for e in dry.entries]
    assert {table: it.rows(table) for table in before} == before
    again = await it.restore()
    assert again.restored == 0
    assert outcome(again, "t").reasons == (ALREADY_THERE,)
    assert {table: it.rows(table) for table in before} == before


async def test_a_changed_column_that_was_written_again_keeps_its_newer_value(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text)",
        "INSERT INTO t VALUES (1, 'a1', 'b1'), (2, 'a2', 'b2'), (3, 'a3', 'b3')",
    )
    it.archive([item("rows", "t", key=("id",))], "UPDATE t SET a = 'x', b = 'y'")
    it.sql("UPDATE t SET a = 'newer' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left, found.missing) == (2, 1, 1)
    assert it.rows("t") == ["(1,newer,b1)", "(3,a3,b3)"]


async def test_a_deleted_row_that_is_there_again_is_left(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, a text)", "INSERT INTO t VALUES (1, 'old'), (2, 'old')")
    it.archive([item("rows", "t", key=("id",))], "DELETE FROM t")
    it.sql("INSERT INTO t VALUES (1, 'new')")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (1, 1)
    assert it.rows("t") == ["(1,new)", "(2,old)"]


async def test_rows_are_kept_though_the_revision_renames_drops_and_retypes_what_they_lie_in(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b int, c text)",
        "INSERT INTO t VALUES (1, 'a', 1, 'c'), (2, 'b', 2, 'd'), (3, 'c', 3, 'e')",
    )
    before = it.rows("t")
    kept = it.archive(
        [item("column", "t", "c", ("id",)), item("rows", "t", key=("id",))],
        "DELETE FROM t WHERE id = 3",
        "ALTER TABLE t RENAME TO other",
        "ALTER TABLE other RENAME a TO z",
        "ALTER TABLE other DROP c",
        "ALTER TABLE other ADD made_on_the_way int",
        "UPDATE other SET made_on_the_way = 1",
        "ALTER TABLE other ALTER b TYPE bigint",
        "UPDATE other SET z = 'changed' WHERE id = 1",
        "DELETE FROM other WHERE id = 2",
        "DROP TABLE other",
    )
    assert [(k["kind"], k["rows"]) for k in kept] == [("column", 3), ("rows", 3)]
    it.sql(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b int, c text)",
        "INSERT INTO t VALUES (1, 'changed', 1, NULL)",
    )
    await it.restore()
    assert it.rows("t") == before


async def test_triggers_that_are_switched_off_for_the_application_still_keep_rows(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    kept = it.archive(
        [item("rows", "t", key=("id",))], "SET session_replication_role = replica", "DELETE FROM t"
    )
    assert [k["rows"] for k in kept] == [1]


def test_triggers_that_are_switched_off_by_the_migration_itself_undo_the_step(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    with pytest.raises(Refused, match="switches the triggers of"):
        it.archive(
            [item("rows", "t", key=("id",))],
            "ALTER TABLE t DISABLE TRIGGER USER",
            "DELETE FROM t",
            "ALTER TABLE t ENABLE TRIGGER USER",
        )
    assert it.rows("t") == ["(1)"]
    assert not it.schema_is_there()


async def test_rows_of_partitions_are_kept_wherever_they_are_emptied(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 (v text, id int NOT NULL)",
        "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
        "INSERT INTO p VALUES (1, 'a'), (2, 'b'), (11, 'c'), (12, 'd'), (13, 'e')",
    )
    before = it.rows("p")
    kept = it.archive(
        [item("rows", "p", key=("id",))],
        "UPDATE p SET v = 'x' WHERE id = 11",
        "DELETE FROM p2 WHERE id = 12",
        "TRUNCATE p1",
        "TRUNCATE p",
    )
    assert [k["rows"] for k in kept] == [6]
    assert it.traces() == []
    await it.restore()
    assert it.rows("p") == before


async def test_more_columns_than_a_function_takes_arguments_are_kept(shelf: Callable[..., Shelf]) -> None:
    columns = ", ".join(f"c{n} text DEFAULT '{n}'" for n in range(150))
    it = shelf(f"CREATE TABLE wide (id int PRIMARY KEY, {columns})", "INSERT INTO wide (id) VALUES (1)")
    before = it.rows("wide")
    it.archive(
        [item("rows", "wide", key=("id",)), item("column", "wide", "c0", ("id",))],
        "UPDATE wide SET c149 = NULL",
        "ALTER TABLE wide DROP c0",
    )
    it.sql("ALTER TABLE wide ADD c0 text")
    await it.restore()
    assert it.sql("SELECT c149, c0 FROM wide") == [("149", "0")]
    assert len(before) == 1


# -- circles ------------------------------------------------------------------------------------------------------------

TEAMS = (
    "CREATE TABLE person (id int PRIMARY KEY, name text, team int, boss int REFERENCES person)",
    "CREATE TABLE team (id int PRIMARY KEY, name text, lead int REFERENCES person)",
    "ALTER TABLE person ADD CONSTRAINT person_team FOREIGN KEY (team) REFERENCES team",
)
TEAM_ITEMS = [item("table", "team", key=("id",)), item("table", "person", key=("id",))]
DROP_TEAMS = "DROP TABLE team, person"


async def test_tables_that_point_to_one_another_come_back_and_no_row_is_touched_twice(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        *TEAMS,
        "INSERT INTO person VALUES (1, 'a', NULL, 2), (2, 'b', NULL, 2), (3, 'c', NULL, 1), (4, 'd', NULL, NULL)",
        "INSERT INTO team VALUES (1, 'x', 2), (2, 'y', 3), (3, 'z', NULL)",
        "UPDATE person SET team = id % 3 + 1 WHERE id < 4",
    )
    before = {table: it.rows(table) for table in ("person", "team")}
    it.archive(TEAM_ITEMS, DROP_TEAMS)
    it.sql(
        *TEAMS,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'touched'; END $$",
        "CREATE TRIGGER touched BEFORE UPDATE ON person FOR EACH ROW EXECUTE FUNCTION refuse()",
        "CREATE TRIGGER touched BEFORE UPDATE ON team FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    dry = await it.restore(dry_run=True)
    assert it.rows("person") == []
    report = await it.restore()
    for said in (dry, report):
        assert (outcome(said, "person").restored, outcome(said, "team").restored) == (4, 3)
        assert [e.left for e in said.entries] == [0, 0]
    assert {table: it.rows(table) for table in before} == before
    again = await it.restore()
    assert again.restored == 0
    assert [e.reasons for e in again.entries] == [(ALREADY_THERE,), (ALREADY_THERE,)]


@pytest.mark.parametrize("more", ["", "DEFERRABLE", "DEFERRABLE INITIALLY DEFERRED"])
async def test_a_circle_of_keys_that_take_no_null_comes_back_whether_deferrable_or_not(
    shelf: Callable[..., Shelf], more: str
) -> None:
    create = (
        "CREATE TABLE a (id int PRIMARY KEY, b int NOT NULL)",
        "CREATE TABLE b (id int PRIMARY KEY, c int NOT NULL)",
        "CREATE TABLE c (id int PRIMARY KEY, a int NOT NULL, self int NOT NULL REFERENCES c)",
    )
    keys = tuple(
        f"ALTER TABLE {child} ADD FOREIGN KEY ({parent}) REFERENCES {parent} {more}"
        for child, parent in ("ab", "bc", "ca")
    )
    it = shelf(
        *create,
        "INSERT INTO a VALUES (1, 1), (2, 2)",
        "INSERT INTO b VALUES (1, 2), (2, 1)",
        "INSERT INTO c VALUES (1, 1, 2), (2, 2, 1)",
        *keys,
    )
    before = {table: it.rows(table) for table in "abc"}
    it.archive([item("table", t, key=("id",)) for t in "abc"], "DROP TABLE a, b, c")
    it.sql(*create, *keys)
    assert (await it.restore(dry_run=True)).restored == 6
    assert (await it.restore()).restored == 6
    assert {table: it.rows(table) for table in before} == before


async def test_in_a_circle_whoever_lacks_a_parent_is_left_with_all_that_point_to_it(
    shelf: Callable[..., Shelf],
) -> None:
    city = "CREATE TABLE city (id int PRIMARY KEY)"
    create = (TEAMS[0].replace("team int", "team int, city int REFERENCES city"), *TEAMS[1:])
    it = shelf(
        city,
        *create,
        "INSERT INTO city VALUES (1), (2)",
        # 1 lives in the city that will be gone; 2 and 3 hang below 1, directly and through team 1; 4 and 5 don't.
        "INSERT INTO person VALUES (1, 'a', NULL, 2, NULL), (2, 'b', NULL, 1, 1), (3, 'c', NULL, 1, NULL),"
        " (4, 'd', NULL, 1, 5), (5, 'e', NULL, NULL, 4)",
        "INSERT INTO team VALUES (1, 'x', 2), (2, 'y', 4)",
        "UPDATE person SET team = CASE WHEN id = 3 THEN 1 ELSE 2 END WHERE id <> 1",
    )
    before = {table: it.rows(table) for table in ("person", "team")}
    it.archive(TEAM_ITEMS, DROP_TEAMS)
    it.sql("DELETE FROM city WHERE id = 2", *create)
    for restored in (3, 0):
        report = await it.restore()
        assert report.restored == restored
        person, team = outcome(report, "person"), outcome(report, "team")
        assert (person.left, team.left) == (3, 1)
        assert (
            "3 left: the row of public.city, public.person, public.team that they point to isn't there"
            in person.reasons
        )
        assert "1 left: the row of public.person that they point to isn't there" in team.reasons
    it.sql("INSERT INTO city VALUES (2)")
    assert (await it.restore()).restored == 4
    assert {table: it.rows(table) for table in before} == before


@pytest.mark.parametrize(
    "unique",
    [
        "CREATE UNIQUE INDEX ON person (name)",
        "CREATE UNIQUE INDEX ON person (lower(name)) WHERE id < 100",
        "ALTER TABLE person ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED",
    ],
)
async def test_in_a_circle_a_row_whose_unique_value_is_taken_is_left_and_refuses_nothing(
    shelf: Callable[..., Shelf], unique: str
) -> None:
    it = shelf(
        *TEAMS,
        "INSERT INTO person VALUES (1, 'a', NULL, NULL), (2, 'b', NULL, NULL), (3, 'c', NULL, 1)",
        "INSERT INTO team VALUES (1, 'x', 1), (2, 'y', 2)",
        "UPDATE person SET team = id WHERE id < 3",
    )
    it.archive(TEAM_ITEMS, DROP_TEAMS)
    it.sql(*TEAMS, unique, "INSERT INTO person VALUES (7, 'a', NULL, NULL)")
    report = await it.restore()
    person, team = outcome(report, "person"), outcome(report, "team")
    assert (person.restored, person.left, team.restored, team.left) == (1, 2, 1, 1)
    assert "must be unique" in " ".join(person.reasons)
    assert "public.person" in " ".join(team.reasons)
    assert it.rows("person") == ["(2,b,2,)", "(7,a,,)"]
    assert it.rows("team") == ["(2,y,2)"]


async def test_in_a_circle_newer_rows_stay_and_serve_as_parents(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        *TEAMS,
        "INSERT INTO person VALUES (1, 'a', NULL, NULL), (2, 'b', NULL, 1)",
        "INSERT INTO team VALUES (1, 'x', 2)",
        "UPDATE person SET team = 1",
    )
    it.archive(TEAM_ITEMS, DROP_TEAMS)
    it.sql(*TEAMS, "INSERT INTO person VALUES (1, 'newer', NULL, NULL)")
    report = await it.restore()
    person = outcome(report, "person")
    assert (person.restored, person.left, outcome(report, "team").restored) == (1, 1, 1)
    assert person.reasons == ("1 left: the row is there with newer values",)
    assert it.rows("person") == ["(1,newer,,)", "(2,b,1,1)"]


async def test_a_circle_comes_back_from_removed_rows_and_dropped_tables_alike_and_by_script(
    shelf: Callable[..., Shelf],
) -> None:
    fill = (
        "INSERT INTO person VALUES (1, 'a', NULL, 2), (2, 'b', NULL, NULL), (3, 'c', NULL, 3), (4, 'd', NULL, 3)",
        "INSERT INTO team VALUES (1, 'x', 1), (2, 'y', 3), (3, 'z', 4)",
        "UPDATE person SET team = id % 3 + 1",
    )
    items = [
        item("rows", "person", key=("id",)),
        item("rows", "team"),
        item("table", "person", key=("id",)),
        item("table", "team"),
    ]
    for by_script in (False, True):
        it = shelf(*TEAMS, *fill)
        before = {table: it.rows(table) for table in ("person", "team")}
        it.archive(
            items[:2],
            "UPDATE person SET team = NULL WHERE id IN (3, 4)",
            "UPDATE person SET boss = NULL WHERE boss = 3",
            "UPDATE team SET lead = NULL WHERE lead = 3",
            "DELETE FROM person WHERE id = 3",
            "DELETE FROM team WHERE id = 1",
        )
        it.archive(items[2:], DROP_TEAMS)
        it.sql(*TEAMS)
        if by_script:
            text = await it.archives.restore_script(RUN)
            it.script(text)
            it.script(text)
        else:
            await it.restore()
            assert (await it.restore()).restored == 0
        assert {table: it.rows(table) for table in before} == before


async def test_a_chain_within_a_table_without_a_key_of_its_own_comes_back(
    shelf: Callable[..., Shelf],
) -> None:
    create = "CREATE TABLE t (a int UNIQUE, b int REFERENCES t (a), c int REFERENCES t (a))"
    it = shelf(create, "INSERT INTO t VALUES (1, 2, NULL), (2, 3, 1), (3, NULL, 4), (4, 4, 4), (NULL, 1, 1)")
    it.sql("INSERT INTO t VALUES (NULL, 1, 1), (5, 6, NULL), (6, NULL, NULL), (7, 5, NULL)")
    before = it.rows("t")
    it.archive([item("table", "t")], "DROP TABLE t")
    it.sql(create, "ALTER TABLE t ADD CHECK (a <> 0)", "INSERT INTO t VALUES (NULL, NULL, NULL)")
    assert (await it.restore()).restored == 9
    assert it.rows("t") == sorted([*before, "(,,)"])
    assert (await it.restore()).restored == 0


async def test_a_table_whose_uniqueness_is_deferred_comes_back_beside_newer_rows(
    shelf: Callable[..., Shelf],
) -> None:
    create = "CREATE TABLE t (id int PRIMARY KEY, place int UNIQUE DEFERRABLE)"
    it = shelf(create, "INSERT INTO t VALUES (1, 10), (2, 20), (3, NULL)")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    it.sql(create, "INSERT INTO t VALUES (4, 10)")
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (2, 1)
    assert "must be unique" in found.reasons[0]
    assert it.rows("t") == ["(2,20)", "(3,)", "(4,10)"]


async def test_of_a_changed_row_only_the_pointer_whose_parent_is_missing_is_left(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        *TEAMS,
        "INSERT INTO team VALUES (1, 'x', NULL)",
        "INSERT INTO person VALUES (1, 'a', 1, 2), (2, 'b', NULL, NULL)",
    )
    before = it.rows("person")
    it.archive(
        [item("rows", "person", key=("id",))], "UPDATE person SET team = NULL, boss = NULL, name = 'x'"
    )
    it.sql("DELETE FROM team")
    found = outcome(await it.restore(), "person")
    assert (found.restored, found.left) == (2, 1)
    assert it.rows("person") == ["(1,a,,2)", "(2,b,,)"]
    it.sql("INSERT INTO team VALUES (1, 'x', NULL)")
    assert (await it.restore()).restored == 1
    assert it.rows("person") == before


async def test_children_of_a_partitioned_table_find_their_parent_in_whichever_partition(
    shelf: Callable[..., Shelf],
) -> None:
    create = (
        "CREATE TABLE p (id int PRIMARY KEY, best int) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
        "CREATE TABLE child (id int PRIMARY KEY, p int NOT NULL REFERENCES p)",
        "CREATE TABLE leaf (id int PRIMARY KEY, p int REFERENCES p)",
        "ALTER TABLE p ADD FOREIGN KEY (best) REFERENCES child",
    )
    it = shelf(
        *create,
        "INSERT INTO p VALUES (1), (11)",
        "INSERT INTO child VALUES (1, 1), (2, 11)",
        "INSERT INTO leaf VALUES (1, 11), (2, 1)",
        "UPDATE p SET best = 2 WHERE id = 1",
    )
    before = {table: it.rows(table) for table in ("p", "child", "leaf")}
    it.archive([item("table", t, key=("id",)) for t in before], "DROP TABLE leaf, p, child")
    it.sql(*create)
    assert (await it.restore()).restored == 6
    assert {table: it.rows(table) for table in before} == before


# -- rows that move, and keys that change -------------------------------------------------------------------------------

PARTITIONED = (
    "CREATE TABLE p (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
    "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE p2 (v text, at int NOT NULL, id int NOT NULL)",
    "ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)",
    "CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (40) PARTITION BY RANGE (at)",
    "CREATE TABLE p3a PARTITION OF p3 FOR VALUES FROM (20) TO (30)",
    "CREATE TABLE p3b PARTITION OF p3 FOR VALUES FROM (30) TO (40)",
    "INSERT INTO p VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 11, 'c'), (4, 21, 'd'), (5, 22, 'e')",
)


@pytest.mark.parametrize("key", [("id", "at"), ()])
async def test_a_row_that_an_update_moves_to_another_partition_is_changed_and_not_doubled(
    shelf: Callable[..., Shelf], key: tuple[str, ...]
) -> None:
    it = shelf(*PARTITIONED)
    before = it.rows("p")
    kept = it.archive(
        [item("rows", "p", key=key)],
        "UPDATE p SET at = at + 10, v = v || '!' WHERE id IN (1, 2, 3)",  # each to the next partition
        "UPDATE p3 SET at = at + 10 WHERE id = 5",  # between those below one that is a partition itself
        "UPDATE p SET at = at + 10 WHERE id = 2",  # moved once more
        "UPDATE p SET v = 'x' WHERE id = 4",  # stays
        "WITH gone AS (DELETE FROM p WHERE id = 1 RETURNING *) INSERT INTO p SELECT 9, 9, 'made' FROM gone",
    )
    assert [k["rows"] for k in kept] == [7]
    assert it.traces() == []
    it.sql("DELETE FROM p WHERE id = 9")
    assert it.rows("p") != before
    await it.restore()
    assert it.rows("p") == before
    assert (await it.restore()).restored == 0
    assert it.rows("p") == before


async def test_a_moved_row_that_was_written_since_keeps_what_is_newer(shelf: Callable[..., Shelf]) -> None:
    it = shelf(*PARTITIONED)
    it.archive([item("rows", "p", key=("id", "at"))], "UPDATE p SET at = at + 10, v = 'moved' WHERE id <= 2")
    it.sql("UPDATE p SET v = 'newer' WHERE id = 1", "DELETE FROM p WHERE id = 2")
    found = outcome(await it.restore(), "p")
    assert (found.restored, found.left, found.missing) == (1, 1, 1)
    assert it.rows("p")[:2] == ["(1,1,newer)", "(3,11,c)"]
    assert len(it.rows("p")) == 4


async def test_rows_that_a_trigger_keeps_out_of_their_new_partition_or_moves_itself_are_told_apart(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        *PARTITIONED,
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.v = 'b' THEN RETURN NULL; END IF;"
        " IF NEW.v = 'a' THEN UPDATE p SET at = at + 10 WHERE id IN (3, 4); END IF; RETURN NEW; END $$",
        "CREATE TRIGGER meddle BEFORE INSERT ON p2 FOR EACH ROW EXECUTE FUNCTION meddle()",
    )
    before = it.rows("p")
    it.archive(
        [item("rows", "p", key=("id", "at"))],
        "SET session_replication_role = origin",
        "UPDATE p SET at = at + 10 WHERE id IN (2)",
        "UPDATE p SET at = at + 10 WHERE id IN (1)",
    )
    assert it.rows("p") == ["(1,11,a)", "(3,21,c)", "(4,31,d)", "(5,22,e)"]
    it.sql("DROP TRIGGER meddle ON p2")
    assert (await it.restore()).restored == 4
    assert it.rows("p") == before


async def test_what_is_deleted_and_inserted_elsewhere_is_no_moved_row(shelf: Callable[..., Shelf]) -> None:
    it = shelf(*PARTITIONED)
    before = it.rows("p")
    it.archive(
        [item("rows", "p", key=("id", "at"))],
        "DO $$ BEGIN UPDATE p SET v = v; DELETE FROM p WHERE id = 1; INSERT INTO p VALUES (8, 15, 'new');"
        " UPDATE p SET at = 25 WHERE id = 2; INSERT INTO p VALUES (9, 5, 'new'); END $$",
    )
    await it.restore()
    assert it.rows("p") == sorted([*before, "(8,15,new)", "(9,5,new)"])


async def test_rows_move_though_columns_were_renamed_and_each_statement_commits(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(*PARTITIONED)
    before = it.rows("p")
    kept = it.archive(
        [item("rows", "p", key=("id", "at"))],
        "ALTER TABLE p RENAME v TO w",
        "UPDATE p SET at = at + 10, w = 'moved' WHERE id = 1",
        "ALTER TABLE p RENAME w TO v",
        "UPDATE p SET at = at + 10 WHERE id = 1",
        locks=False,
    )
    assert [k["rows"] for k in kept] == [2]
    assert it.traces() == []
    await it.restore()
    assert it.rows("p") == before


@pytest.mark.parametrize("key", [("id",), ()])
async def test_what_is_changed_several_times_comes_back_at_once(
    shelf: Callable[..., Shelf], key: tuple[str, ...]
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (10, 'x')",
    )
    before = it.rows("t")
    it.archive(
        [item("rows", "t", key=key)],
        "UPDATE t SET id = 20, v = 'a2' WHERE id = 1",
        "UPDATE t SET id = 30 WHERE id = 20",
        "UPDATE t SET v = 'a3' WHERE id = 30",
        "UPDATE t SET id = 20 WHERE id = 2",  # takes the number that another had meanwhile
        "UPDATE t SET id = 40 WHERE id = 3",
        "UPDATE t SET v = 'gone' WHERE id = 40",
        "DELETE FROM t WHERE id = 40",
        "UPDATE t SET v = 'y' WHERE id = 10",
        "UPDATE t SET v = 'x' WHERE id = 10",
    )
    await it.restore()
    assert it.rows("t") == before
    assert (await it.restore()).restored == 0
    assert it.rows("t") == before


async def test_numbers_that_one_statement_shifts_or_swaps_are_not_taken_for_one_row(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text)",
        "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (8, 'h'), (9, 'i')",
    )
    before = it.rows("t")
    it.archive(
        [item("rows", "t", key=("id",))],
        "UPDATE t SET id = id + 1 WHERE id < 4",
        "UPDATE t SET v = v || '!'",
        "UPDATE t SET id = 17 - id WHERE id > 7",
        "UPDATE t SET id = id + 1 WHERE id < 5",
    )
    assert it.rows("t") == ["(3,a!)", "(4,b!)", "(5,c!)", "(8,i!)", "(9,h!)"]
    assert (await it.restore()).restored == 5
    assert it.rows("t") == before


async def test_rows_that_are_alike_and_changed_and_removed_without_a_key_come_back_as_often(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (a int, v text)", "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (1, 'y'), (2, 'x')"
    )
    before = it.rows("t")
    it.archive(
        [item("rows", "t")],
        "UPDATE t SET v = 'z'",
        "DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 1 LIMIT 1)",
        "UPDATE t SET a = 5 WHERE a = 1",
        "UPDATE t SET v = 'w' WHERE a = 2",
        "DELETE FROM t WHERE a = 2",
    )
    assert it.rows("t") == ["(5,z)", "(5,z)"]
    await it.restore()
    assert it.rows("t") == before


async def test_rows_without_a_key_that_change_while_a_column_goes_come_back_with_it(
    shelf: Callable[..., Shelf],
) -> None:
    """The column tells the rows by their values of before the change: those return first, while it is empty yet."""
    it = shelf(
        "CREATE TABLE t (a int, v text, w int)",
        "INSERT INTO t VALUES (1, 'x', 1), (2, 'y', 2), (2, 'y', 3), (3, 'z', NULL)",
    )
    before = it.rows("t")
    it.archive(
        [item("column", "t", "w"), item("rows", "t")],
        "UPDATE t SET v = 'x' WHERE a = 2",
        "ALTER TABLE t DROP w",
    )
    it.sql("ALTER TABLE t ADD w int")
    report = await it.restore()
    assert [entry.missing for entry in report.entries] == [0, 0]
    assert it.rows("t") == before


async def test_what_a_trigger_removes_while_values_return_is_inserted_again(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE visit (id int PRIMARY KEY)",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO visit VALUES (1), (2)",
        "INSERT INTO t VALUES (1, 'a')",
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM visit; RETURN NULL; END'",
        "CREATE TRIGGER forgets AFTER UPDATE ON t EXECUTE FUNCTION forget()",
    )
    before = it.rows("t"), it.rows("visit")
    it.archive([item("rows", "t", key=("id",)), item("rows", "visit", key=("id",))], "UPDATE t SET v = 'b'")
    assert it.rows("visit") == []
    report = await it.restore()
    assert (outcome(report, "t").restored, outcome(report, "visit").restored) == (1, 2)
    assert (it.rows("t"), it.rows("visit")) == before


async def test_a_row_that_is_removed_and_made_anew_with_its_key_is_changed(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a')")
    before = it.rows("t")
    it.archive(
        [item("rows", "t", key=("id",))],
        "DELETE FROM t",
        "INSERT INTO t VALUES (1, 'b')",
        "UPDATE t SET v = 'c'",
    )
    found = outcome(await it.restore(), "t")
    assert (found.restored, found.left) == (1, 0)
    assert it.rows("t") == before


async def test_an_archive_that_does_not_say_which_statement_it_was_still_comes_back(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    before = it.rows("t")
    kept = it.archive(
        [item("rows", "t", key=("id",))],
        "UPDATE t SET v = 'x'",
        "UPDATE t SET v = 'y', id = id + 10",
        "UPDATE t SET v = 'z'",
        "DELETE FROM t WHERE id = 12",
    )
    it.sql(f"UPDATE rollbackd_archive.{kept[0]['archive']} SET rollbackd_new = rollbackd_new - ''")
    await it.restore()
    await it.restore()
    assert it.rows("t")[0] == before[0]


async def test_what_waits_for_columns_says_for_which(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text, c text)",
        "CREATE TABLE u (id int PRIMARY KEY, a text, b text, c text)",
        "INSERT INTO t VALUES (1, 'a', 'b', 'c')",
        "INSERT INTO u VALUES (1, 'a', 'b', 'c'), (2, 'a', 'b', 'c')",
    )
    it.archive(
        [item("table", "t", key=("id",)), item("rows", "u", key=("id",))],
        "DELETE FROM u WHERE id = 1",
        "UPDATE u SET a = 'x'",
        "DROP TABLE t",
        "ALTER TABLE u DROP b, DROP c",
    )
    it.sql("CREATE TABLE t (id int PRIMARY KEY, b text)")
    report = await it.restore()
    assert outcome(report, "t").reasons == ("public.t has no columns a, c: apply the fixed migration first",)
    assert outcome(report, "u").reasons == ("public.u has no columns b, c: apply the fixed migration first",)
    assert [(e.restored, e.left) for e in report.entries] == [(0, 2), (0, 1)]
    it.sql("ALTER TABLE t ADD a text, ADD c text", "ALTER TABLE u ADD b text")
    report = await it.restore()
    assert outcome(report, "u").reasons == ("public.u has no column c: apply the fixed migration first",)
    assert outcome(report, "t").restored == 1


# -- nothing, locks and rights ------------------------------------------------------------------------------------------


async def test_nothing_to_keep_leaves_nothing_behind(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE empty (id int PRIMARY KEY, v text)",
        "CREATE TABLE full_of_nulls (id int PRIMARY KEY, v text)",
        "INSERT INTO full_of_nulls VALUES (1, NULL)",
    )
    kept = it.archive(
        [
            item("table", "empty", key=("id",)),
            item("column", "full_of_nulls", "v", ("id",)),
            item("rows", "full_of_nulls", key=("id",)),
        ],
        "DROP TABLE empty",
        "ALTER TABLE full_of_nulls DROP v",
    )
    assert kept == []
    assert not it.schema_is_there()
    assert it.traces() == []
    assert await it.archives.entries() == ()
    with pytest.raises(RefusedError, match="keeps nothing"):
        await it.restore()


async def test_only_what_was_kept_is_listed_beside_what_was_empty(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "INSERT INTO b VALUES (1)",
    )
    it.archive(
        [item("table", "a", key=("id",)), item("rows", "b"), item("table", "b", key=("id",))],
        "DROP TABLE a, b",
    )
    entries = await it.archives.entries(RUN)
    assert [(e.table.name, e.kind, e.rows, e.key) for e in entries] == [("b", "table", 1, ("id",))]
    assert it.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'rollbackd_archive'") == [(2,)]


async def test_no_write_slips_between_copy_and_drop(shelf: Callable[..., Shelf]) -> None:
    """A writer that already holds a lock is waited for, and its row is kept; one that comes later finds no table."""
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    with psycopg.connect(it.stage.server.url(it.database)) as writer:
        writer.execute("INSERT INTO t VALUES (2)")
        downgrade = asyncio.create_task(
            asyncio.to_thread(it.archive, [item("table", "t", key=("id",))], "DROP TABLE t")
        )
        for _ in range(200):
            if it.sql("SELECT 1 FROM pg_locks WHERE relation = 't'::regclass AND NOT granted"):
                break
            await asyncio.sleep(0.02)
        assert not downgrade.done()
        writer.commit()
        kept = await downgrade
    assert kept[0]["rows"] == 2


def test_a_snapshot_that_is_older_than_the_lock_is_refused(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    with pytest.raises(Refused, match="repeatable read"):
        it.archive([item("table", "t", key=("id",))], "DROP TABLE t", level="REPEATABLE READ")
    assert it.rows("t") == ["(1)"]


def test_what_is_not_there_any_more_is_refused_before_anything_changes(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)")
    for wanted in (item("table", "gone"), item("column", "t", "gone"), item("table", "t", key=("gone",))):
        with pytest.raises(Refused, match="plan anew"):
            it.archive([wanted])


async def test_what_cannot_be_undone_is_kept_and_watched_in_this_session_alone(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')"
    )
    plain = [
        msgspec.to_builtins(i) for i in (item("rows", "t", key=("id",)), item("column", "t", "v", ("id",)))
    ]
    with it.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        work = Archiving(connection, RUN, plain)
        work.before("r1", False)
        it.sql("DELETE FROM t WHERE id = 1")  # the application's own, meanwhile
        connection.exec_driver_sql("DELETE FROM t WHERE id = 2")
        connection.exec_driver_sql("ALTER TABLE t DROP v")
        kept = work.after("r1")
    assert [(k["kind"], k["rows"]) for k in kept] == [("rows", 1), ("column", 3)]
    assert it.traces() == []
    # Tried again after a crash: the column is gone, and kept already.
    again = it.archive([item("column", "t", "v", ("id",))], locks=False)
    assert again == []
    it.sql("ALTER TABLE t ADD v text")
    await it.restore()
    assert it.rows("t") == ["(2,b)", "(3,c)"]


async def test_the_session_is_left_as_it_was(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    for locks in (True, False):
        with it.engine.connect() as connection:
            if not locks:
                connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql("SET search_path = public, pg_temp")
            connection.exec_driver_sql("SET DateStyle = 'SQL, DMY'")
            work = Archiving(
                connection, f"run-{locks}", [msgspec.to_builtins(item("table", "t", key=("id",)))]
            )
            work.before("r1", locks)
            assert connection.exec_driver_sql("SHOW search_path").scalar() == "public, pg_temp"
            work.after("r1")
            connection.commit()
            assert connection.exec_driver_sql("SHOW search_path").scalar() == "public, pg_temp"
            assert connection.exec_driver_sql("SHOW DateStyle").scalar() == "SQL, DMY"


async def test_archives_belong_to_the_owner_of_the_table_and_nobody_else_reads_them(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf()
    owner, other = it.stage.role(), it.stage.role()
    it.sql(
        f"CREATE SCHEMA app AUTHORIZATION {owner.name}",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {owner.name} GRANT SELECT ON TABLES TO PUBLIC",
        "CREATE TABLE app.t (id int PRIMARY KEY)",
        f"ALTER TABLE app.t OWNER TO {owner.name}",
        "INSERT INTO app.t VALUES (1)",
    )
    it.archive(
        [item("table", "t", key=("id",), schema="app"), item("rows", "t", key=("id",), schema="app")],
        "DELETE FROM app.t",
        "DROP TABLE app.t",
    )
    owners = it.sql("SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'rollbackd_archive'")
    assert owners == [(owner.name,)]
    may = it.sql(
        "SELECT DISTINCT has_table_privilege('" + other.name + "', c.oid, 'SELECT') FROM pg_class c"
        " WHERE c.relnamespace = 'rollbackd_archive'::regnamespace AND c.relkind = 'r'"
    )
    assert may == [(False,)]


async def test_rows_are_kept_whoever_writes_them(shelf: Callable[..., Shelf]) -> None:
    """A downgrade may go on under another role, which has no rights in the archive's schema."""
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    role = it.stage.role()
    it.sql(f"GRANT SELECT, DELETE ON t TO {role.name}")
    kept = it.archive(
        [item("rows", "t", key=("id",))], f"SET ROLE {role.name}", "DELETE FROM t", "RESET ROLE"
    )
    assert [k["rows"] for k in kept] == [1]


async def test_everything_published_still_lets_archives_be_changed(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE PUBLICATION everything FOR ALL TABLES",
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'long'), (2, 'x')",
    )
    kept = it.archive(
        [
            item("table", "t", key=("id",)),
            item("column", "t", "v", ("id",)),
            item("narrowed", "t", "v", ("id",)),
            item("rows", "t"),
        ],
        "UPDATE t SET v = 'other' WHERE id = 1",
        "ALTER TABLE t ALTER v TYPE varchar(1) USING left(v, 1)",
    )
    assert len(kept) == 4
    for one in kept:
        it.sql(f"DELETE FROM rollbackd_archive.{one['archive']}")


async def test_row_security_hides_nothing_from_an_archive(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1), (2)")
    owner = it.stage.role()
    it.sql(
        f"ALTER TABLE t OWNER TO {owner.name}",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE t FORCE ROW LEVEL SECURITY",
        "CREATE POLICY own ON t USING (id = 1)",
        f"GRANT CREATE ON DATABASE {it.database} TO {owner.name}",
    )
    with pytest.raises(sqlalchemy.exc.DBAPIError, match="row-level security"):
        before_as(it, owner)
    it.sql("ALTER TABLE t NO FORCE ROW LEVEL SECURITY")
    before_as(it, owner)


def before_as(it: Shelf, role: Any) -> None:
    """As the worker does it: by that role, with row_security off."""
    url = it.stage.server.url(it.database, driver="psycopg", user=role.name, password=role.password)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SET row_security = off")
        work = Archiving(connection, RUN, [msgspec.to_builtins(item("table", "t", key=("id",)))])
        work.before("r1", True)
        assert [kept["rows"] for kept in work.after("r1")] == [2]


# -- the report's definition and script ---------------------------------------------------------------------------------


async def test_the_definition_holds_what_its_recreation_needs(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE parent (id int PRIMARY KEY)",
        "CREATE TABLE t (id serial PRIMARY KEY, p int NOT NULL DEFAULT 3 REFERENCES parent (id), v varchar(10) COLLATE \"C\" UNIQUE CHECK (v <> ''),"
        " g int GENERATED ALWAYS AS (p + 1) STORED, i int GENERATED BY DEFAULT AS IDENTITY)",
        "CREATE INDEX t_lower ON t (lower(v)) WHERE p > 0",
        "COMMENT ON TABLE t IS 'the table'",
        "COMMENT ON COLUMN t.v IS 'the value'",
        "GRANT SELECT ON t TO PUBLIC",
        "GRANT UPDATE (v) ON t TO PUBLIC",
        "INSERT INTO parent VALUES (3)",
        "INSERT INTO t (v) VALUES ('a')",
    )
    it.archive([item("table", "t", key=("id",)), item("column", "t", "v", ("id",))], "DROP TABLE t")
    table, column = (entry.definition for entry in await it.archives.entries())
    columns = {c.name: c for c in table.columns}
    assert columns["p"].default == "3"
    assert columns["p"].not_null
    assert columns["g"].generated == "(p + 1)"
    assert columns["i"].identity == "by default"
    assert (columns["v"].type, columns["v"].collation, columns["v"].comment) == (
        "character varying(10)",
        'pg_catalog."C"',
        "the value",
    )
    assert columns["v"].grants == ("GRANT UPDATE (v) ON public.t TO PUBLIC",)
    assert {c.kind for c in table.constraints} == {"primary_key", "foreign_key", "unique", "check"}
    foreign = next(c for c in table.constraints if c.kind == "foreign_key")
    assert (foreign.columns, foreign.other, foreign.other_columns) == (
        ("p",),
        TableName("public", "parent"),
        ("id",),
    )
    assert len(table.indexes) == 1
    assert "GRANT SELECT ON public.t TO PUBLIC" in table.grants
    assert table.comment == "the table"
    assert {(s.column, s.last_value) for s in table.sequences} == {("id", 1), ("i", 1)}
    assert [c.name for c in column.columns] == ["id", "v"]
    assert {c.kind for c in column.constraints} == {"unique", "check"}


async def test_the_script_does_what_the_command_does(shelf: Callable[..., Shelf]) -> None:
    statements = (
        *TYPES_DDL,
        "CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood)",
        "CREATE TABLE child (id int PRIMARY KEY, p int REFERENCES parent, v text)",
        "CREATE TABLE u (a text, b text)",
    )
    fill = (
        "INSERT INTO parent (m) VALUES ('sad'), (NULL), ('it''s ok')",
        "INSERT INTO child VALUES (1, 1, ':x \\ \"%s'), (2, 2, 'b'), (3, NULL, 'c')",
        "INSERT INTO u VALUES ('x', 'y'), ('x', 'y'), ('z', NULL)",
    )
    items = [
        item("rows", "child", key=("id",)),
        item("rows", "u"),
        item("column", "parent", "m", ("id",)),
        item("table", "parent", key=("id",)),
        item("narrowed", "u", "a"),
    ]
    downgrade = (
        "UPDATE child SET v = 'changed' WHERE id = 1",
        "DELETE FROM child WHERE id = 2",
        "UPDATE u SET b = 'q' WHERE a = 'z'",
        "ALTER TABLE parent DROP m",
        "TRUNCATE child",
        "DROP TABLE parent CASCADE",
    )
    again = (
        "CREATE TABLE parent (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood)",
        "ALTER TABLE child ADD FOREIGN KEY (p) REFERENCES parent",
    )
    both = []
    for by_script in (False, True):
        it = shelf(*statements, *fill)
        before = {table: it.rows(table) for table in ("parent", "child", "u")}
        it.archive(items, *downgrade)
        it.sql(*again)
        if by_script:
            text = await it.archives.restore_script(RUN)
            assert "-- Insert the rows of public.parent" in text
            it.script(text)
            it.script(text)
        else:
            await it.restore()
        both.append({table: it.rows(table) for table in before})
        assert both[-1] == before
        assert all(e.restored_at for e in await it.archives.entries())
    assert both[0] == both[1]


async def test_a_dry_run_changes_nothing_and_says_what_would_come_back(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id serial PRIMARY KEY, v text)", "INSERT INTO t (v) VALUES ('a'), ('b')")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    it.sql("CREATE TABLE t (id serial PRIMARY KEY, v text)")
    report = await it.restore(dry_run=True)
    assert (report.restored, report.dry_run) == (2, True)
    assert report.statements
    assert it.rows("t") == []
    assert (await it.archives.entries())[0].restored_at is None


async def test_what_the_database_refuses_is_said_and_nothing_is_changed(shelf: Callable[..., Shelf]) -> None:
    it = shelf(
        "CREATE TABLE a (id int PRIMARY KEY)",
        "CREATE TABLE b (id int PRIMARY KEY)",
        "INSERT INTO a VALUES (1)",
        "INSERT INTO b VALUES (1)",
    )
    it.archive([item("table", "a", key=("id",)), item("table", "b", key=("id",))], "DROP TABLE a, b")
    it.sql("CREATE TABLE a (id int PRIMARY KEY CHECK (id > 5))", "CREATE TABLE b (id int PRIMARY KEY)")
    with pytest.raises(RefusedError, match="check constraint"):
        await it.restore()
    assert it.rows("b") == []


async def test_nothing_is_restored_while_a_migration_is_under_way(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    it.archive([item("table", "t", key=("id",))], "DROP TABLE t")
    with psycopg.connect(it.stage.server.url(it.database)) as other:
        other.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        with pytest.raises(TransientError, match="migrated"):
            await it.restore()


@pytest.mark.parametrize(
    ("default", "constant"),
    [
        ("0", True),
        ("'a(b)'::text", True),
        ("'it''s now()'::character varying(10)", True),
        ("'-1'::integer", True),
        ("(- 1.5)", True),
        ("'{}'::jsonb", True),
        ("ARRAY['a'::text]", True),
        ("now()", False),
        ("CURRENT_TIMESTAMP", False),
        ("nextval('s'::regclass)", False),
        ("(random() * 10)", False),
        ("", False),
    ],
)
def test_a_default_is_constant_only_when_no_function_has_a_say(default: str, constant: bool) -> None:
    assert is_constant(default) is constant


# -- ahead, discarded, pruned -------------------------------------------------------------------------------------------


async def nobody(progress: Progress) -> None:
    """Nobody looks."""


async def test_what_is_copied_ahead_is_merged_with_what_was_written_since(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (a int, b text, v text, n numeric, PRIMARY KEY (a, b))",
        "INSERT INTO t SELECT g, 'x', 'v' || g, g + 0.5 FROM generate_series(1, 50000) g",
        "CREATE TABLE nokey (v text)",
        "INSERT INTO nokey VALUES ('x')",
    )
    wanted = (
        item("table", "t", key=("a", "b")),
        item("column", "t", "v", ("a", "b")),
        item("narrowed", "t", "n", ("a", "b")),
        item("table", "nokey"),
        item("rows", "t", key=("a", "b")),
    )
    seen: list[Progress] = []

    async def note(progress: Progress) -> None:
        seen.append(progress)

    stop = asyncio.Event()

    def write() -> None:
        number = 100_000
        with psycopg.connect(it.stage.server.url(it.database), autocommit=True) as connection:
            while not stop.is_set():
                number += 1
                connection.execute(f"INSERT INTO t VALUES ({number}, 'new', 'n', 1)")
                connection.execute(f"UPDATE t SET v = 'w', n = 7 WHERE a = {number % 50_000}")
                connection.execute(f"DELETE FROM t WHERE a = {(number * 7) % 50_000}")
                connection.execute(f"UPDATE t SET b = 'moved' WHERE a = {(number * 3) % 50_000}")

    writer = asyncio.create_task(asyncio.to_thread(write))
    copied = await it.archives.copy_ahead(RUN, wanted, note)
    await asyncio.sleep(0.3)
    stop.set()
    await writer
    assert [i.copied for i in copied] == [True, True, True, False, False]
    assert len(seen) > 6
    assert all(before.done <= after.done <= after.total for before, after in itertools.pairwise(seen))
    it.sql("UPDATE t SET v = NULL WHERE a = 5")
    before = it.rows("t")
    values = it.sql("SELECT count(*) FROM t WHERE v IS NOT NULL")[0][0]
    kept = it.archive(list(copied), "ALTER TABLE t ALTER n TYPE int", "DROP TABLE t, nokey")
    assert {(k["kind"], k["table"]["name"]): k["rows"] for k in kept} == {
        ("table", "t"): len(before),
        ("column", "t"): values,
        ("narrowed", "t"): len(before),  # nothing to compare with any more
        ("table", "nokey"): 1,
    }
    assert it.traces() == []
    await it.archives.finish(RUN)
    await it.archives.finish(RUN)
    it.sql(
        "CREATE TABLE t (a int, b text, v text, n numeric, PRIMARY KEY (a, b))", "CREATE TABLE nokey (v text)"
    )
    assert outcome(await it.restore(), "nokey").restored == 1
    assert it.rows("t") == before


async def test_what_a_member_of_the_owner_copied_ahead_is_carried_on_by_the_owner(
    shelf: Callable[..., Shelf],
) -> None:
    """Two roles without other rights: rollbackd's, and the one that env.py migrates as."""
    it = shelf()
    owner, daemon, application = it.stage.role(), it.stage.role(), it.stage.role()
    it.sql(
        f"GRANT {owner.name} TO {daemon.name}",
        f"GRANT CREATE ON DATABASE {it.database} TO {daemon.name}",
        f"CREATE SCHEMA app AUTHORIZATION {owner.name}",
        "CREATE TABLE app.t (id int PRIMARY KEY, v text)",
        "INSERT INTO app.t VALUES (1, 'a'), (2, 'b')",
        f"ALTER TABLE app.t OWNER TO {owner.name}",
        f"GRANT USAGE ON SCHEMA app TO {application.name}",
        f"GRANT ALL ON app.t TO {application.name}",
    )
    archives = PostgresArchives(it.stage.target(it.database, daemon))
    wanted = (item("table", "t", key=("id",), schema="app"), item("rows", "t", key=("id",), schema="app"))
    copied = await archives.copy_ahead(RUN, wanted, nobody)
    # The application has no rights in the archive's schema, and its writes are logged nevertheless.
    url = it.stage.server.url(it.database, user=application.name, password=application.password)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE app.t SET v = 'c' WHERE id = 2")
    url = it.stage.server.url(it.database, driver="psycopg", user=owner.name, password=owner.password)
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as migrating:
        work = Archiving(migrating, RUN, [msgspec.to_builtins(i) for i in copied])
        work.before("r1", True)
        migrating.exec_driver_sql("DELETE FROM app.t WHERE id = 1")
        migrating.exec_driver_sql("DROP TABLE app.t")
        assert [kept["rows"] for kept in work.after("r1")] == [2, 1]
        migrating.commit()
    await archives.finish(RUN)
    await archives.discard(RUN)
    it.sql("CREATE TABLE app.t (id int PRIMARY KEY, v text)", f"ALTER TABLE app.t OWNER TO {owner.name}")
    assert (await archives.restore(RUN, dry_run=False)).restored == 2
    assert it.rows("app.t") == ["(1,a)", "(2,c)"]
    assert len(await archives.prune(datetime.now(UTC) + timedelta(days=1))) == 2
    assert not it.schema_is_there()
    with pytest.raises(PermanentError, match="may not work on the archives"):
        await PostgresArchives(it.stage.target(it.database, application)).copy_ahead(
            RUN, (item("table", "t", key=("id",), schema="app"),), nobody
        )


async def test_a_table_that_was_emptied_since_it_was_copied_ahead_is_kept_as_it_is_now(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        *TYPES_DDL,
        "CREATE TABLE t (id int PRIMARY KEY, m mood)",
        "INSERT INTO t SELECT g, 'sad' FROM generate_series(1, 10) g",
        "CREATE TABLE by_mood (m mood PRIMARY KEY, v int)",
        "INSERT INTO by_mood VALUES ('sad', 1), ('it''s ok', 2)",
    )
    copied = await it.archives.copy_ahead(
        RUN, (item("table", "t", key=("id",)), item("table", "by_mood", key=("m",))), nobody
    )
    assert all(i.copied for i in copied)
    it.sql("TRUNCATE t", "INSERT INTO t VALUES (77, NULL)", "UPDATE by_mood SET v = 3 WHERE m = 'sad'")
    kept = it.archive(list(copied), "DROP TABLE t, by_mood", "DROP TYPE mood")
    assert [k["rows"] for k in kept] == [1, 2]
    assert it.sql(f"SELECT * FROM rollbackd_archive.{kept[0]['archive']}") == [(77, None)]
    assert sorted(it.sql(f"SELECT * FROM rollbackd_archive.{kept[1]['archive']}")) == [
        ("it's ok", 2),
        ("sad", 3),
    ]


async def test_a_copy_that_was_discarded_is_refused_and_leaves_no_trace(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    copied = await it.archives.copy_ahead(RUN, (item("table", "t", key=("id",)),), nobody)
    assert it.traces()
    await it.archives.discard(RUN)
    await it.archives.discard(RUN)
    assert it.traces() == []
    assert not it.schema_is_there()
    with pytest.raises(Refused, match="copied ahead"):
        it.archive(list(copied), "DROP TABLE t")
    assert it.rows("t") == ["(1)"]


async def test_discarding_takes_left_over_triggers_away_and_no_archive(shelf: Callable[..., Shelf]) -> None:
    """A step that can't be undone died between before and after."""
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY, v text)",
        "INSERT INTO t VALUES (1, 'a')",
        "CREATE TABLE u (id int)",
        "INSERT INTO u VALUES (1)",
    )
    plain = [
        msgspec.to_builtins(i)
        for i in (item("rows", "t", key=("id",)), item("column", "t", "v", ("id",)), item("rows", "u"))
    ]
    with it.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        Archiving(connection, RUN, plain).before("r1", False)
        connection.exec_driver_sql("DELETE FROM t")
    assert it.traces()
    await it.archives.discard("another-run")
    assert it.traces()
    await it.archives.discard(RUN)
    assert it.traces() == []
    assert [(e.table.name, e.kind, e.rows) for e in await it.archives.entries()] == [
        ("t", "rows", 1),
        ("t", "column", 1),
    ]
    await it.restore()
    assert it.rows("t") == ["(1,a)"]


async def test_a_copy_ahead_waits_only_shortly_for_its_lock(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    with psycopg.connect(it.stage.server.url(it.database)) as other:
        other.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TransientError, match="try again"):
            await it.archives.copy_ahead(RUN, (item("table", "t", key=("id",)),), nobody)
    assert not it.schema_is_there()


async def test_old_archives_are_pruned_and_the_last_one_takes_the_schema_along(
    shelf: Callable[..., Shelf],
) -> None:
    it = shelf(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        "CREATE TABLE u (id int PRIMARY KEY)",
        "INSERT INTO u VALUES (1)",
    )
    it.archive([item("table", "t", key=("id",))], run="run-old")
    it.archive([item("table", "u", key=("id",))], run="run-new")
    it.sql("UPDATE rollbackd_archive.entries SET made_at = now() - interval '40 days' WHERE run = 'run-old'")
    gone = await it.archives.prune(datetime.now(UTC) - timedelta(days=30))
    assert [e.run for e in gone] == ["run-old"]
    assert [e.run for e in await it.archives.entries()] == ["run-new"]
    assert it.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'rollbackd_archive'") == [(2,)]
    await it.archives.prune(datetime.now(UTC) + timedelta(days=1))
    assert not it.schema_is_there()
    assert await it.archives.prune(datetime.now(UTC)) == ()


async def test_every_archive_gets_a_primary_key_after_the_downgrade(shelf: Callable[..., Shelf]) -> None:
    it = shelf("CREATE TABLE t (id int PRIMARY KEY, v text, n numeric)", "INSERT INTO t VALUES (1, 'a', 1.5)")
    items = [
        item("table", "t", key=("id",)),
        item("table", "t", revision="r0"),
        item("column", "t", "v"),
        item("narrowed", "t", "n", ("id",)),
        item("rows", "t"),
    ]
    it.archive(
        sorted(items, key=lambda i: i.revision), "ALTER TABLE t ALTER n TYPE int", "UPDATE t SET v = v || 'b'"
    )
    await it.archives.finish(RUN)
    lacking = it.sql(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'rollbackd_archive'::regnamespace AND c.relkind = 'r'"
        " AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
    )
    assert lacking == []


# -- whatever the table -------------------------------------------------------------------------------------------------

VALUES = {
    "int": ["0", "-2147483648"],
    "numeric": ["NaN", "1.500", "-0.0000001"],
    "numeric(8,2)": ["1.50", "-999999.99"],
    "float8": ["-0", "NaN", "0.1", "1e-300", "Infinity"],
    "real": ["0.1", "1e-40"],
    "text": ["", "NULL", 'it\'s \\ %s "x"', "ü\n\t"],
    "varchar(6)": ["", "a b  "],
    "char(4)": ["", "ab"],
    "bool": ["t", "f"],
    "timestamptz": ["2024-02-29 12:00:00.000001+03", "-infinity", "0044-03-15 BC"],
    "timestamp": ["2024-02-29 12:00:00"],
    "interval": ["1 mon -1 day 00:00:00.5", "-1 year"],
    "json": ['{"b":1,  "a":1, "b":2}', " null "],
    "jsonb": ["null", '{"a": 1.10}'],
    "bytea": ["\\x", "\\x0025ff"],
    "uuid": ["00000000-0000-0000-0000-000000000001"],
    "int[]": ["{}", "{1,NULL}", "[0:1]={1,2}", "{{1},{2}}"],
    "text[]": ['{"",NULL,"NULL","a,b\\\\c"}'],
    "mood": ["sad", "it's ok"],
    "positive": ["1", "77"],
    "pair": ["(,,)", '(1,"a""b,c","2024-01-01 00:00:00+00")'],
    "mood[]": ["{sad,NULL}"],
    "pair[]": ['{"(1,x,)",NULL}'],
    "inet": ["10.0.0.1", "10.0.0.0/8"],
    "point": ["(0.1,-0)"],
    "int4range": ["empty", "[1,)"],
    "money": ["$1,234.50"],
    "bit(3)": ["101"],
    "tsvector": ["'a':1 'b'"],
    "name": ["x"],
    '"char"': ["a", ""],
    "oid": ["4294967295"],
}
KEYS = {"none": (), "id": ("id",), "two": ("id", "Other %")}
ACTIONS = (
    "drop_table",
    "drop_column",
    "update",
    "delete",
    "truncate",
    "update_then_delete",
    "to_text_and_cut",
)


@st.composite
def table_cases(draw: st.DrawFn) -> dict[str, Any]:
    types = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    value = [st.one_of(st.none(), st.sampled_from(VALUES[name])) for name in types]
    rows = draw(st.lists(st.tuples(*value), min_size=0, max_size=6))
    repeated = draw(st.booleans())
    return {
        "types": types,
        "rows": rows + rows[:2] if repeated else rows,
        "key": draw(st.sampled_from(sorted(KEYS))),
        "action": draw(st.sampled_from(ACTIONS)),
    }


def _sql_text(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=table_cases())
def test_whatever_the_table_its_rows_come_back_byte_for_byte(stage: Any, case: dict[str, Any]) -> None:
    it = getattr(stage, "shelf_of_properties", None)
    if it is None:
        it = stage.shelf_of_properties = Shelf(stage, *TYPES_DDL)
    key = KEYS[case["key"]]
    columns = [f'"c{n} %" {name}' for n, name in enumerate(case["types"])]
    last = f"c{len(columns) - 1} %"
    keys = ["id int NOT NULL", '"Other %" text NOT NULL'][: len(key)]
    primary = [f"PRIMARY KEY ({', '.join(chr(34) + name + chr(34) for name in key)})"] if key else []
    create = f"CREATE TABLE thing ({', '.join([*keys, *columns, *primary])})"
    rows = [
        ", ".join([*([str(n), f"'k{n % 2}'"][: len(key)]), *(_sql_text(v) for v in row)])
        for n, row in enumerate(case["rows"])
    ]
    it.sql(
        "DROP TABLE IF EXISTS thing",
        "DROP SCHEMA IF EXISTS rollbackd_archive CASCADE",
        create,
        *(f"INSERT INTO thing VALUES ({row})" for row in rows),
    )
    before = it.rows("thing")
    action = case["action"]
    name = f'"{last}"'
    again: tuple[str, ...] = ()
    if action == "drop_table":
        it.archive([item("table", "thing", key=key)], "DROP TABLE thing")
        again = (create,)
    elif action == "drop_column":
        it.archive([item("column", "thing", last, key)], f"ALTER TABLE thing DROP {name}")
        again = (f'ALTER TABLE thing ADD "{last}" {case["types"][-1]}',)
    elif action == "update":
        it.archive([item("rows", "thing", key=key)], f"UPDATE thing SET {name} = NULL")
    elif action == "delete":
        it.archive([item("rows", "thing", key=key)], "DELETE FROM thing")
    elif action == "truncate":
        it.archive([item("rows", "thing", key=key)], "TRUNCATE thing")
    elif action == "update_then_delete":
        it.archive([item("rows", "thing", key=key)], f"UPDATE thing SET {name} = NULL", "DELETE FROM thing")
    else:
        # Nothing comes back by itself from a text that was cut to nothing.
        it.archive(
            [item("narrowed", "thing", last, key)], f"ALTER TABLE thing ALTER {name} TYPE text USING NULL"
        )
        again = (f'ALTER TABLE thing ALTER "{last}" TYPE {case["types"][-1]} USING NULL',)
    it.sql(*again)
    if it.schema_is_there():
        asyncio.run(it.archives.finish(RUN))
        report = asyncio.run(it.restore())
        if any(entry.missing for entry in report.entries):
            # Without a key, rows that nothing else tells apart are left, and counted.
            assert action == "to_text_and_cut"
            assert not key
            return
        assert asyncio.run(it.restore()).restored == 0
    assert it.rows("thing") == before


@st.composite
def webs(draw: st.DrawFn) -> dict[str, Any]:
    """Rows of two tables that point to themselves, to one another, and to a place, of which one will be gone."""
    sizes = {"a": draw(st.integers(0, 5)), "b": draw(st.integers(0, 5))}

    def pointer(to: str) -> st.SearchStrategy[int | None]:
        return st.sampled_from([None, *range(sizes[to])])

    def rows(own: str, other: str) -> list[tuple[int | None, int | None, int]]:
        one = st.tuples(pointer(own), pointer(other), st.sampled_from([1, 1, 1, 2]))
        return draw(st.lists(one, min_size=sizes[own], max_size=sizes[own]))

    rare = st.sampled_from(["", "", "", "there", "taken"])
    return {
        "a": rows("a", "b"),
        "b": rows("b", "a"),
        "since": {name: draw(st.lists(rare, min_size=size, max_size=size)) for name, size in sizes.items()},
        "action": draw(st.sampled_from(["drop", "delete", "both"])),
        "key": draw(st.sampled_from([("id",), ("id", "u")])),
        "more": draw(st.sampled_from(["", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED"])),
    }


def _pointers(case: dict[str, Any], name: str, number: int) -> list[tuple[tuple[str, int | None], bool]]:
    """What a row points to by its two keys, and whether the downgrade had it let go before the row went."""
    loosened = case["action"] == "both" and number <= 1
    targets = zip((name, "b" if name == "a" else "a"), case[name][number], strict=False)
    return [((table, to), loosened and to is not None and to > 1) for table, to in targets]


def _wanted(case: dict[str, Any], places: set[int]) -> set[tuple[str, str]]:
    """The rows that are to stand there: what is newer, and what comes back with all that it needs."""
    since = case["since"]
    there = {(name, number) for name in "ab" for number, how in enumerate(since[name]) if how == "there"}
    back = {(name, number) for name in "ab" for number, how in enumerate(since[name]) if how == ""}
    back = {(name, number) for name, number in back if case[name][number][2] in places}
    while lost := {
        (name, number)
        for name, number in back
        for target, loosened in _pointers(case, name, number)
        if not loosened and target[1] is not None and target not in there | back
    }:
        back -= lost
    rows = {
        (name, f"({n + 100},{n},,,1)") for name in "ab" for n, how in enumerate(since[name]) if how == "taken"
    }
    for name, number in there | back:
        texts = [
            str(target[1]) if target in there | back and (loosened or (name, number) in back) else ""
            for target, loosened in _pointers(case, name, number)
        ]
        place = 1 if (name, number) in there else case[name][number][2]
        rows.add((name, f"({number},{number},{','.join(texts)},{place})"))
    return rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=webs())
def test_whatever_points_to_whatever_all_comes_back_that_can(stage: Any, case: dict[str, Any]) -> None:
    it = getattr(stage, "shelf_of_properties", None)
    if it is None:
        it = stage.shelf_of_properties = Shelf(stage)
    create = [
        f"CREATE TABLE {name} (id int PRIMARY KEY, u text UNIQUE, own int REFERENCES {name}{case['more']}, other int,"
        " place int NOT NULL REFERENCES place)"
        for name in "ab"
    ]
    create += [
        f"ALTER TABLE {name} ADD FOREIGN KEY (other) REFERENCES {other}{case['more']}"
        for name, other in ("ab", "ba")
    ]
    values = {
        name: [
            f"({number}, '{number}', {'NULL' if own is None else own}, {'NULL' if other is None else other}, {place})"
            for number, (own, other, place) in enumerate(case[name])
        ]
        for name in "ab"
    }
    filled = [
        f"{name}_done AS (INSERT INTO {name} VALUES {', '.join(rows)})"
        for name, rows in values.items()
        if rows
    ]
    it.sql(
        "DROP TABLE IF EXISTS a, b, place CASCADE",
        "DROP SCHEMA IF EXISTS rollbackd_archive CASCADE",
        "CREATE TABLE place (id int PRIMARY KEY)",
        "INSERT INTO place VALUES (1), (2)",
        *create,
        f"WITH {', '.join([*filled, 'nothing AS (SELECT 1)'])} SELECT 1",
    )

    def now() -> set[tuple[str, str]]:
        return set(it.sql("SELECT 'a', a::text FROM a UNION ALL SELECT 'b', b::text FROM b"))

    kinds = {"drop": ["table"], "delete": ["rows"], "both": ["rows", "table"]}[case["action"]]
    chosen = " WHERE id > 1" if "table" in kinds else ""
    # Those that point to a removed row lose their pointers first, and get them back in the end.
    loosen = [
        f"UPDATE {name} SET {column} = NULL WHERE {column} > 1 AND id <= 1"
        for name in "ab"
        for column in ("own", "other")
    ]
    statements = {
        "rows": [*(loosen if chosen else []), f"WITH gone AS (DELETE FROM a{chosen}) DELETE FROM b{chosen}"],
        "table": ["DROP TABLE a, b"],
    }
    for kind in kinds:
        it.archive([item(kind, name, key=case["key"]) for name in "ab"], *statements[kind])
    newer = [
        f"INSERT INTO {name} VALUES ({number if how == 'there' else number + 100}, '{number}', NULL, NULL, 1)"
        for name in "ab"
        for number, how in enumerate(case["since"][name])
        if how
    ]
    it.sql(*(create if "table" in kinds else []), "DELETE FROM place WHERE id = 2", *newer)
    if not it.schema_is_there():
        return
    for places in ({1}, {1, 2}):
        if 2 in places:
            it.sql("INSERT INTO place VALUES (2)")
        dry = asyncio.run(it.restore(dry_run=True))
        report = asyncio.run(it.restore())
        assert [e.restored for e in dry.entries] == [e.restored for e in report.entries]
        assert now() == _wanted(case, places)
        assert asyncio.run(it.restore()).restored == 0
        assert now() == _wanted(case, places)
