"""Reading a guarded database: where it stands, its schema, its rows, what is wrong with it."""

import asyncio
import time
from typing import Any

import psycopg
import pytest

from rollbackd.adapters.worker.child.marks import LOCK_KEY
from rollbackd.core.checks import Outcome
from rollbackd.core.records import TableCount
from rollbackd.core.schema import TableName, compare_schemas
from rollbackd.errors import PermanentError, TransientError
from rollbackd.settings import Check, Counting, Database, Duration, Migrations, SecretReference

pytestmark = [pytest.mark.xdist_group("adapters-worker"), pytest.mark.timeout(60)]

LONG = "ü" * 31 + "x"  # 63 bytes
ODD = 'we"ird Ta.ble'


async def test_the_identity_is_the_same_for_each_role_and_differs_between_databases(
    stage: Any, make_reader: Any
) -> None:
    one, other, role = stage.database(), stage.database(), stage.role()
    identity = await make_reader(one).identity()
    assert identity == await make_reader(one, role).identity()
    assert (identity.database, identity.server_version // 10_000) == (one, 16)
    another = await make_reader(other).identity()
    assert another.system_identifier == identity.system_identifier
    assert another.oid != identity.oid


async def test_the_heads_are_the_rows_of_the_version_table_and_none_where_there_is_none(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database()
    reader = make_reader(database)
    assert await reader.heads() == ()
    stage.run(
        database,
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('b'), ('a')",
    )
    assert await reader.heads() == ("a", "b")
    stage.run(
        database,
        'CREATE SCHEMA "Own"',
        'CREATE TABLE "Own"."Stamps" (version_num text)',
        'INSERT INTO "Own"."Stamps" VALUES (\'c\')',
    )
    own = make_reader(
        database,
        migrations=Migrations(
            directory="/", python=("x",), version_table="Stamps", version_table_schema="Own"
        ),
    )
    assert await own.heads() == ("c",)


async def test_the_fingerprint_is_the_same_after_down_and_up_and_whatever_the_rows(
    project: Any, make_reader: Any, make_worker: Any, stage: Any
) -> None:
    reader = make_reader(project.database)
    before = await reader.schema()
    stage.run(
        project.database,
        "INSERT INTO customer SELECT i, 'n' FROM generate_series(1, 500) i",
        "ANALYZE",
        "COMMENT ON TABLE alembic_version IS 'rollbackd: x'",
    )
    assert (await reader.schema()).fingerprint() == before.fingerprint()

    async def on_log(text: str) -> None: ...

    identity = await reader.identity()
    worker = make_worker(project)
    await worker.downgrade(
        ("r3", "r2", "r1"),
        ("r3",),
        (),
        run="run-1",
        identity=identity,
        scripts_sha256=(await worker.describe()).scripts_sha256,
        archive=(),
        timeout_s=20,
        on_log=on_log,
    )
    assert "table public.customer" in compare_schemas(before, await reader.schema()).removed
    project.upgrade(project.database)
    assert (await reader.schema()).fingerprint() == before.fingerprint()


GROUND = (
    "CREATE TYPE mood AS ENUM ('sad', 'ok')", "CREATE TABLE t (id serial PRIMARY KEY, a int, b text, m mood, CHECK (a > 0))",
    "CREATE TABLE p (id int) PARTITION BY RANGE (id)", "CREATE TYPE pair AS (x int, y int)",
    "CREATE VIEW v AS SELECT a FROM t", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION tf() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'", "CREATE SEQUENCE s",
    "CREATE INDEX i ON t (a)", "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION tf()",
    "CREATE POLICY y ON t USING (a > 1)", "CREATE DOMAIN d AS int CHECK (value > 0)",
    "CREATE TABLE child (t int REFERENCES t)", "CREATE MATERIALIZED VIEW mv AS SELECT 1 AS one",
)  # fmt: skip
CHANGES = [
    ("ALTER TABLE t ALTER a TYPE bigint USING a", "column public.t.a", "DROP VIEW v; DROP POLICY y ON t"),
    ("ALTER TABLE t ALTER a SET DEFAULT 7", "column public.t.a", ""),
    ("ALTER TABLE t ALTER a SET NOT NULL", "column public.t.a", ""),
    ("ALTER TABLE t DROP CONSTRAINT t_a_check", "constraint public.t.t_a_check", ""),
    ("ALTER TABLE child DROP CONSTRAINT child_t_fkey, ADD CONSTRAINT child_t_fkey FOREIGN KEY (t) REFERENCES t ON DELETE CASCADE", "constraint public.child.child_t_fkey", ""),
    ("DROP INDEX i; CREATE INDEX i ON t (a) WHERE a > 3", "index public.i", ""),
    ("ALTER TYPE mood ADD VALUE 'happy'", "type public.mood", ""),
    ("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", "type public.mood", ""),
    ("ALTER TYPE pair ADD ATTRIBUTE z int", "column public.pair.z", ""),
    ("ALTER SEQUENCE s INCREMENT 5", "sequence public.s", ""),
    ("CREATE OR REPLACE VIEW v AS SELECT a + 1 AS a FROM t", "view public.v", ""),
    ("CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'", "function public.f()", ""),
    ("ALTER TABLE t DISABLE TRIGGER g", "trigger public.t.g", ""),
    ("ALTER POLICY y ON t USING (a > 2)", "policy public.t.y", ""),
    ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "table public.t", ""),
    ("GRANT SELECT ON t TO PUBLIC", "grants on table public.t", ""),
    ("GRANT UPDATE (b) ON t TO PUBLIC", "grants on column public.t.b", ""),
    ("REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC", "grants on function public.f()", ""),
    ("GRANT USAGE ON SEQUENCE s TO PUBLIC", "grants on sequence public.s", ""),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", "grants on schema public", ""),
    ("ALTER DOMAIN d ADD CHECK (value < 9)", "type public.d", ""),
    ("ALTER TABLE t REPLICA IDENTITY FULL", "table public.t", ""),
    ("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING", "rule public.t.r", ""),
    ("CREATE STATISTICS st ON a, b FROM t", "statistics public.st", ""),
    ("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (1) TO (9)", "table public.p1", ""),
    ("CREATE SCHEMA more", "schema more", ""),
    ("GRANT SELECT ON v TO PUBLIC", "grants on view public.v", ""),
    ("REVOKE USAGE ON TYPE mood FROM PUBLIC", "grants on type public.mood", ""),
    ("ALTER TABLE t OWNER TO pg_monitor", "owner of table public.t", ""),
    ("ALTER VIEW v OWNER TO pg_monitor", "owner of view public.v", ""),
    ("ALTER MATERIALIZED VIEW mv OWNER TO pg_monitor", "owner of materialized view public.mv", ""),
    ("ALTER SEQUENCE s OWNER TO pg_monitor", "owner of sequence public.s", ""),
    ("ALTER TYPE mood OWNER TO pg_monitor", "owner of type public.mood", ""),
    ("ALTER FUNCTION f() OWNER TO pg_monitor", "owner of function public.f()", ""),
    ("ALTER SCHEMA public OWNER TO pg_monitor", "owner of schema public", ""),
    ("COMMENT ON TABLE t IS 'hi'", "comment on table public.t", ""),
    ("COMMENT ON COLUMN t.b IS 'hi'", "comment on column public.t.b", ""),
    ("COMMENT ON VIEW v IS 'hi'", "comment on view public.v", ""),
]  # fmt: skip


async def test_every_kind_of_change_shows_in_the_difference_under_its_name(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database(*GROUND)
    reader = make_reader(database)
    silent = []
    before = await reader.schema()
    for change, name, first in CHANGES:
        copy = f"{database}_c"
        await reader.close()
        stage.run(
            "postgres",
            f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)",
            f"CREATE DATABASE {copy} TEMPLATE {database}",
        )
        stage.run(copy, *[s for s in (first, change) if s])
        changed_reader = make_reader(copy)
        difference = compare_schemas(before, await changed_reader.schema())
        await changed_reader.close()
        if name not in (*difference.added, *difference.removed, *difference.changed):
            silent.append((change, difference.lines()))
    stage.run("postgres", f"DROP DATABASE {database}_c WITH (FORCE)")
    assert not silent


async def test_owner_and_grants_are_objects_of_their_own_that_a_copy_is_compared_without(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database(*GROUND)
    reader = make_reader(database)
    before = await reader.schema()
    stage.run(
        database,
        "ALTER TABLE t OWNER TO pg_monitor",
        "GRANT SELECT (b), INSERT ON t TO PUBLIC",
        "GRANT SELECT ON v TO PUBLIC",
        "ALTER TYPE mood OWNER TO pg_monitor",
        "REVOKE EXECUTE ON FUNCTION f() FROM PUBLIC",
        "GRANT ALL ON SEQUENCE s TO PUBLIC",
        "ALTER SCHEMA public OWNER TO pg_monitor",
    )
    after = await reader.schema()
    assert all(
        line[2:].startswith(("owner of ", "grants on ")) for line in compare_schemas(before, after).lines()
    )
    assert before.without_owners() == after.without_owners()


@pytest.mark.parametrize(
    ("comment", "shown"),
    [
        # What rollbackd itself leaves on the version table is none; what somebody wrote beside it is.
        ("rollbackd: run-1 took off b", None),
        ("ours\nrollbackd: run-1 took off b", "ours"),
        ("rollbackd: run-1 took off b\nours, too", "ours, too"),
        ("ours", "ours"),
    ],
)
async def test_a_comment_is_shown_without_what_rollbackd_left_in_it(
    stage: Any, make_reader: Any, comment: str, shown: str | None
) -> None:
    database = stage.database("CREATE TABLE alembic_version (version_num text)")
    stage.run(database, f"COMMENT ON TABLE alembic_version IS '{comment}'")
    objects = (await make_reader(database).schema()).objects
    assert objects.get("comment on table public.alembic_version") == shown


async def test_what_rollbackd_keeps_in_the_database_is_no_part_of_its_schema(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database("CREATE TABLE t (id int PRIMARY KEY)")
    reader = make_reader(database)
    before = await reader.schema()
    stage.run(
        database,
        "CREATE SCHEMA rollbackd_archive",
        "CREATE TABLE rollbackd_archive.entries (id int)",
        "CREATE FUNCTION rollbackd_archive.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'",
        "CREATE TRIGGER rollbackd_keeps AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION rollbackd_archive.f()",
    )
    assert compare_schemas(before, await reader.schema()).lines() == []
    assert (await reader.schema()).fingerprint() == before.fingerprint()
    assert list(await reader.table_sizes()) == [TableName("public", "t")]


# -- what a plan asks -------------------------------------------------------------------------------------------------------


async def test_the_size_of_a_table_is_with_its_indexes_and_large_values_and_that_of_a_parted_one_its_parts(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database(
        f'CREATE TABLE "{ODD.replace(chr(34), chr(34) * 2)}" (id int PRIMARY KEY, v text)',
        "CREATE TABLE p (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (500) PARTITION BY RANGE (id)",
        "CREATE TABLE p1a PARTITION OF p1 FOR VALUES FROM (0) TO (500)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (500) TO (9000)",
        "INSERT INTO p SELECT generate_series(0, 8999)",
        "CREATE VIEW v AS SELECT 1",
    )
    sizes = await make_reader(database).table_sizes()
    query = "SELECT pg_total_relation_size('{}')"
    wanted = {name: stage.run(database, query.format(name))[0][0] for name in ("p1a", "p2")}
    assert sizes[TableName("public", "p2")] == wanted["p2"] > 0
    assert sizes[TableName("public", "p1")] == wanted["p1a"]
    assert sizes[TableName("public", "p")] == wanted["p1a"] + wanted["p2"]
    assert sizes[TableName("public", ODD)] >= 8192
    assert TableName("public", "v") not in sizes


async def test_the_key_of_a_table_is_its_primary_key_in_its_own_order(stage: Any, make_reader: Any) -> None:
    database = stage.database(
        "CREATE TABLE t (a int, b int, c int, PRIMARY KEY (c, a))",
        "CREATE TABLE u (a int UNIQUE)",
        'CREATE SCHEMA "S.x"',
        'CREATE TABLE "S.x".t ("I d" int PRIMARY KEY)',
    )
    t, u, odd = TableName("public", "t"), TableName("public", "u"), TableName("S.x", "t")
    found = await make_reader(database).keys((t, u, odd, TableName("public", "none")))
    assert found == {t: ("c", "a"), odd: ("I d",)}


async def test_sessions_are_those_of_the_application_from_before_and_never_ours(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database()
    reader = make_reader(database)

    def connect(name: str) -> psycopg.Connection[Any]:
        return psycopg.connect(stage.server.url(database), application_name=name)

    def now() -> Any:
        return stage.run(database, "SELECT clock_timestamp()")[0][0]

    began = now()
    with connect("shop-web") as web, connect("rollbackd worker"), connect("billing"):
        between = now()
        with connect("shop-job"):
            (found,) = await reader.sessions("shop", between)
            assert found.startswith(f"pid {web.info.backend_pid} (")
            assert ", shop-web), since " in found
            assert len(await reader.sessions("shop", now())) == 2
            # Without a name it is everybody, but for us.
            assert [s.split(", ")[1][:-1] for s in await reader.sessions("", between)] == [
                "shop-web",
                "billing",
            ]
            # A name is a beginning and no pattern.
            assert await reader.sessions("sho%", now()) == ()
            assert await reader.sessions("shop", began) == ()
    stage.run(database, "SELECT pg_sleep(0.2)")
    assert await reader.sessions("", now()) == ()


async def test_a_grant_that_was_taken_back_leaves_no_difference(stage: Any, make_reader: Any) -> None:
    database = stage.database(*GROUND)
    reader = make_reader(database)
    before = await reader.schema()
    stage.run(
        database,
        "GRANT SELECT ON t TO PUBLIC",
        "REVOKE SELECT ON t FROM PUBLIC",
        "GRANT USAGE ON SEQUENCE s TO PUBLIC",
        "REVOKE USAGE ON SEQUENCE s FROM PUBLIC",
    )
    assert compare_schemas(before, await reader.schema()).lines() == []


async def test_rows_are_counted_exactly_within_the_budget_whatever_a_table_is_called(
    stage: Any, make_reader: Any
) -> None:
    quoted = ODD.replace('"', '""')
    database = stage.database(
        f'CREATE TABLE "{quoted}" (i int)', f'INSERT INTO "{quoted}" VALUES (1), (2)', f'CREATE TABLE "{LONG}" (i int)',
        "CREATE TABLE alembic_version (version_num text)", "CREATE TABLE p (i int) PARTITION BY LIST (i)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)", "INSERT INTO p VALUES (1)", "CREATE VIEW v AS SELECT 1",
    )  # fmt: skip
    counts = {c.table: (c.rows, c.exact) for c in await make_reader(database).counts(5, 100)}
    assert counts == {f"public.{ODD}": (2, True), f"public.{LONG}": (0, True), "public.p1": (1, True)}


async def test_what_does_not_fit_the_budget_is_an_estimate_and_the_connection_stays_good(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database("CREATE TABLE a (i int)", "CREATE TABLE b AS SELECT generate_series(1, 2000) i", "ANALYZE b",
        "CREATE TABLE big AS SELECT generate_series(1, 3000000) i", "ANALYZE big")  # fmt: skip
    reader = make_reader(database)
    few = {c.table: (c.rows, c.exact) for c in await reader.counts(20, 2)}
    assert (few["public.a"], few["public.b"], few["public.big"][1]) == ((0, True), (2000, True), False)
    assert few["public.big"][0] == pytest.approx(3_000_000, rel=0.1)
    began = time.monotonic()
    short = {c.table: c.exact for c in await reader.counts(0.03, 100)}
    assert time.monotonic() - began < 1
    assert short["public.big"] is False
    assert [c.table for c in await reader.counts(20, 100, ("public.b",))] == ["public.b"]


async def test_a_database_that_is_down_is_transient_and_a_wrong_password_permanent(
    stage: Any, make_reader: Any
) -> None:
    role = stage.role()
    down = make_reader("x", database=Database(url="postgresql://nobody@127.0.0.1:1/x"))
    with pytest.raises(TransientError, match=r"x at 127\.0\.0\.1:1 can't be reached") as refused:
        await down.heads()
    assert "\n" not in str(refused.value)
    (stage.folder / "wrong").write_text("not-the-password")
    (stage.folder / "wrong").chmod(0o600)
    wrong = make_reader(
        "x",
        database=Database(
            url=stage.url("postgres", role), password=SecretReference(f"file:{stage.folder}/wrong")
        ),
    )
    with pytest.raises(PermanentError, match=role.name) as denied:
        await wrong.heads()
    assert "not-the-password" not in str(denied.value)
    with pytest.raises(PermanentError, match="no_such_database"):
        await make_reader("no_such_database").heads()


async def test_a_lost_connection_is_transient_and_the_next_call_connects_again(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database()
    reader = make_reader(database)
    await reader.heads()
    stage.run(
        "postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    )
    with pytest.raises(TransientError):
        await reader.heads()
    assert await reader.heads() == ()


async def test_nothing_can_be_written_through_the_reader(stage: Any, make_reader: Any) -> None:
    database = stage.database("CREATE TABLE t (i int)")
    reader = make_reader(database, checks=(Check(name="sly", sql="INSERT INTO t VALUES (1) RETURNING i"),))
    (finding,) = await reader.own_checks()
    assert (finding.outcome, "read-only" in finding.text) == (Outcome.UNKNOWN, True)
    assert stage.run(database, "SELECT count(*) FROM t") == [(0,)]


async def test_waiting_for_the_migration_lock_ends_when_its_holder_does(stage: Any, make_reader: Any) -> None:
    database, elsewhere = stage.database(), stage.database()
    reader = make_reader(database)
    with psycopg.connect(stage.server.url(database), autocommit=True) as holder:
        holder.execute(f"SELECT pg_advisory_lock({LOCK_KEY})")
        assert not await reader.wait_for_migration_lock(0.3)
        assert await make_reader(elsewhere).wait_for_migration_lock(0)
        waiting = asyncio.create_task(reader.wait_for_migration_lock(10))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        holder.execute(f"SELECT pg_advisory_unlock({LOCK_KEY})")
        assert await asyncio.wait_for(waiting, 2)
        # And it doesn't keep the lock itself.
        assert holder.execute(f"SELECT pg_try_advisory_lock({LOCK_KEY})").fetchone() == (True,)


async def findings_after(
    reader: Any, lossy: tuple[str, ...] = (), before: tuple[TableCount, ...] = ()
) -> dict[str, Any]:
    return {finding.check: finding for finding in await reader.findings_after(lossy, before)}


async def test_orphans_behind_an_unvalidated_foreign_key_are_found(stage: Any, make_reader: Any) -> None:
    database = stage.database(
        'CREATE TABLE "Par" ("Id" int, k int, PRIMARY KEY ("Id", k))', 'CREATE TABLE c (a int, b int)', "INSERT INTO c VALUES (1, 1), (1, NULL)",
        'ALTER TABLE c ADD CONSTRAINT fk FOREIGN KEY (a, b) REFERENCES "Par" NOT VALID',
    )  # fmt: skip
    reader = make_reader(database)
    finding = (await findings_after(reader))["orphans"]
    # Such a key says itself that old rows may break it.
    assert finding.outcome is Outcome.WARNED
    assert finding.details == ('public.c.fk: 1 rows point to nothing in public."Par"; the key is NOT VALID',)
    stage.run(database, 'INSERT INTO "Par" VALUES (1, 1)')
    assert (await findings_after(reader))["orphans"].outcome is Outcome.PASSED


async def test_orphans_behind_a_validated_foreign_key_are_a_failure(stage: Any, make_reader: Any) -> None:
    database = stage.database(
        "CREATE TABLE p (id int PRIMARY KEY)", "CREATE TABLE c (a int REFERENCES p)",
        "ALTER TABLE c DISABLE TRIGGER ALL", "INSERT INTO c VALUES (1)",
    )  # fmt: skip
    finding = (await findings_after(make_reader(database)))["orphans"]
    assert finding.outcome is Outcome.FAILED
    assert finding.details == ("public.c.c_a_fkey: 1 rows point to nothing in public.p",)


async def test_an_invalid_index_is_found(stage: Any, make_reader: Any) -> None:
    database = stage.database("CREATE TABLE t (i int)", "INSERT INTO t VALUES (1), (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        stage.run(database, "CREATE UNIQUE INDEX CONCURRENTLY bad ON t (i)")
    finding = (await findings_after(make_reader(database)))["invalid_indexes"]
    assert (finding.outcome, finding.details) == (Outcome.FAILED, ("bad",))


async def test_a_sequence_behind_its_column_is_found_and_one_that_counts_down_is_not(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database(
        "CREATE TABLE t (id serial)", "INSERT INTO t DEFAULT VALUES", "CREATE TABLE d (id int GENERATED ALWAYS AS IDENTITY (INCREMENT -1))",
        "INSERT INTO d DEFAULT VALUES", "INSERT INTO d DEFAULT VALUES",
    )  # fmt: skip
    reader = make_reader(database)
    assert (await findings_after(reader))["sequences"].outcome is Outcome.PASSED
    stage.run(database, "INSERT INTO t VALUES (5)")
    finding = (await findings_after(reader))["sequences"]
    assert finding.outcome is Outcome.FAILED
    assert "public.t_id_seq stands at 1, public.t.id goes up to 5" in finding.details[0]


async def test_rows_lost_without_a_plan_fail_and_planned_losses_are_noted(
    stage: Any, make_reader: Any
) -> None:
    database = stage.database("CREATE TABLE a (i int)", "CREATE TABLE b (i int)", "INSERT INTO b VALUES (1)")
    before = tuple(TableCount(table=f"public.{t}", rows=2, exact=True) for t in ("a", "b", "gone"))
    reader = make_reader(database, counting=Counting(budget=Duration(5)))
    failed = (await findings_after(reader, ("b",), before))["row_counts"]
    assert failed.outcome is Outcome.FAILED
    assert failed.details == (
        "public.a: 2 rows before, 0 now",
        "public.gone: 2 rows before, and the table is gone",
    )
    passed = (await findings_after(reader, ("a", "b", "gone"), before))["row_counts"]
    assert (passed.outcome, len(passed.details)) == (Outcome.PASSED, 3)
    estimates = tuple(TableCount(table=c.table, rows=c.rows, exact=False) for c in before)
    assert (await findings_after(reader, (), estimates))["row_counts"].outcome is Outcome.UNKNOWN


async def test_before_a_downgrade_hidden_rows_long_and_prepared_transactions_are_named(
    stage: Any, make_reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = stage.role()
    database = stage.database(
        "CREATE TABLE t (i int)",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON t TO {role.name}",
    )
    reader = make_reader(database, role)
    monkeypatch.setattr("rollbackd.adapters.postgres.reader.LONG_TRANSACTION_S", 0.2)
    with psycopg.connect(stage.url(database, role), password=role.password) as other:
        other.execute("SELECT 1")
        await asyncio.sleep(0.4)
        with psycopg.connect(stage.server.url(database), autocommit=True) as preparing:
            preparing.execute("BEGIN")
            preparing.execute("CREATE TABLE prepared (i int)")
            preparing.execute(f"PREPARE TRANSACTION '{database}'")
        found = {f.check: f for f in await reader.findings_before()}
        stage.run(database, f"ROLLBACK PREPARED '{database}'")
    assert (found["row_security"].outcome, found["row_security"].details) == (Outcome.FAILED, ("public.t",))
    assert found["long_transactions"].outcome is Outcome.WARNED
    assert found["prepared_transactions"].details == (database,)
    assert {f.outcome for f in await make_reader(database).findings_before()} == {Outcome.PASSED}


async def test_sessions_that_hide_what_they_do_make_long_transactions_unknown(
    stage: Any, make_reader: Any
) -> None:
    role, database = stage.role(), stage.database()
    with psycopg.connect(stage.server.url(database)) as other:
        other.execute("SELECT 1")
        found = {f.check: f for f in await make_reader(database, role).findings_before()}
    assert found["long_transactions"].outcome is Outcome.UNKNOWN
    assert "pg_read_all_stats" in found["long_transactions"].text


async def test_own_checks_pass_on_no_row_fail_on_rows_and_are_unknown_when_they_break(
    stage: Any, make_reader: Any
) -> None:
    checks = (
        Check(name="none", sql="SELECT 1 WHERE false"), Check(name="some", sql="SELECT 7 AS seven"),
        Check(name="broken", sql="SELECT * FROM nowhere"), Check(name="slow", sql="SELECT pg_sleep(5)", timeout=Duration(0.2)),
        Check(name="last", sql="SELECT 1 WHERE false"),
    )  # fmt: skip
    found = await make_reader(stage.database(), checks=checks).own_checks()
    assert [f.outcome.value for f in found] == [
        o.value for o in (Outcome.PASSED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.UNKNOWN, Outcome.PASSED)
    ]
    assert "'seven': 7" in found[1].details[0]


async def test_the_rights_name_a_version_table_that_belongs_to_somebody_else(
    stage: Any, make_reader: Any
) -> None:
    role = stage.role()
    database = stage.database("CREATE TABLE alembic_version (version_num text)", "CREATE TABLE t (i int)")
    found = {f.check: f for f in await make_reader(database, role).rights()}
    assert found["version_table"].outcome is Outcome.FAILED
    assert "postgres" in found["version_table"].text
    assert found["ownership"].outcome is Outcome.WARNED
    assert found["direct_connection"].outcome is Outcome.PASSED
    stage.run(database, f"ALTER TABLE alembic_version OWNER TO {role.name}")
    assert {f.check: f.outcome for f in await make_reader(database, role).rights()}[
        "version_table"
    ] is Outcome.PASSED


async def test_names_are_resolved_as_the_migration_will_with_partitions_and_cascades(
    stage: Any, make_reader: Any
) -> None:
    """What a downgrade destroys may have another name, more parts and more victims than its statement says."""
    database = stage.database(
        "CREATE SCHEMA app",
        "CREATE TABLE app.orders (id int PRIMARY KEY)",
        "CREATE TABLE public.orders (id int)",
        "CREATE TABLE public.lines (id int, orders int REFERENCES app.orders ON DELETE CASCADE)",
        "CREATE TABLE public.ev (id int) PARTITION BY RANGE (id)",
        "CREATE TABLE public.ev_1 PARTITION OF public.ev FOR VALUES FROM (0) TO (9)",
    )
    reader = make_reader(database)
    assert await reader.resolve_tables(("orders",), ("app", "public")) == ("app.orders", "public.lines")
    assert await reader.resolve_tables(("orders",), ("public",)) == ("public.orders",)
    assert await reader.resolve_tables(("public.ev",), ()) == ("public.ev_1",)
    assert await reader.resolve_tables(("nowhere",), ("public",)) == ("nowhere",)
