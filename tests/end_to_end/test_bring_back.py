"""Bringing back what a downgrade archived, once the fixed migration is in: by command, by API, and by the report's script."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import OLD, Ground, Health, Project, new_database

from rollbackd.demo.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("bring-back")]

Rows = list[tuple[Any, ...]]
# 10 nicknames, 20 visits, 10 deleted customers.
ALL = 40


@dataclass(frozen=True)
class RolledBack:
    """A database after a rollback, to be copied, with the store that knows the run; and the rows from before it."""

    run: str
    database: str
    store: Path
    project: Project
    customers: Rows
    visits: Rows


@pytest.fixture(scope="module")
def rolled_back(
    server: EmbeddedPostgres, health: Health, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RolledBack]:
    """Fifty customers, ten of them with a nickname, and twenty visits; `more` is taken off, which deletes ten customers too."""
    project = Project(tmp_path_factory.mktemp("more"))
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 50) n\")",
        "op.drop_table('customers')",
    )
    project.revision(
        "more",
        "op.add_column('customers', sa.Column('nickname', sa.Text))\n"
        "op.execute('CREATE TABLE visits (id int PRIMARY KEY, customer int REFERENCES customers, page text)')",
        "op.drop_table('visits')\n"
        "op.drop_column('customers', 'nickname')\n"
        "op.execute('DELETE FROM customers WHERE id > 40')",
    )
    folder = tmp_path_factory.mktemp("rolled_back")
    with new_database(server) as database:
        ground = Ground(folder, server, project, health, database)
        project.alembic(ground.url(), "upgrade", "head")
        ground.query("UPDATE customers SET nickname = 'nick ' || id WHERE id <= 10")
        ground.query("INSERT INTO visits SELECT n, n + 30, 'page ' || n FROM generate_series(1, 20) n")
        customers, visits = ground.rows("customers", "id, name, nickname"), ground.rows("visits")
        done = ground.rollbackd(
            *("rollback", "shop", "--to", "first", "--reason", "why", "--release", OLD, "--yes", "--json")
        )
        assert done.returncode == 0, done.stderr
        run = json.loads(done.stdout)["id"]
        assert ground.query("SELECT count(*) FROM customers") == [(40,)]
        yield RolledBack(run, database, folder / "store", project, customers, visits)


@pytest.fixture
def after(make_ground: MakeGround, rolled_back: RolledBack) -> Callable[..., Ground]:
    """A copy of it; with `fixed` the migration is in again."""

    def make(*, fixed: bool = True) -> Ground:
        ground = make_ground(rolled_back.project, rolled_back.database)
        shutil.copytree(rolled_back.store, ground.folder / "store", ignore=shutil.ignore_patterns("*.sock"))
        if fixed:
            rolled_back.project.alembic(ground.url(), "upgrade", "head")
        return ground

    return make


def tables(ground: Ground) -> tuple[Rows, Rows]:
    return ground.rows("customers", "id, name, nickname"), ground.rows("visits")


def newer(ground: Ground) -> None:
    """What people wrote since the fixed migration is in."""
    ground.query("UPDATE customers SET nickname = 'newer' WHERE id = 1")
    ground.query("INSERT INTO customers VALUES (45, 'another one')")
    ground.query("INSERT INTO visits VALUES (1, 1, 'another page'), (100, 1, 'new page')")


def expected(rolled_back: RolledBack) -> tuple[Rows, Rows]:
    """Everything from before, but where something newer stands."""
    customers = {row[0]: row for row in rolled_back.customers}
    customers[1] = (1, "customer 1", "newer")
    customers[45] = (45, "another one", None)
    visits = {row[0]: row for row in rolled_back.visits}
    visits[1] = (1, 1, "another page")
    visits[100] = (100, 1, "new page")
    return sorted(customers.values()), sorted(visits.values())


def test_everything_comes_back_nothing_newer_is_overwritten_and_twice_does_nothing_more(
    after: Callable[..., Ground], rolled_back: RolledBack
) -> None:
    """A dry run says what it would do and does nothing; then the same happens, once."""
    ground = after()
    newer(ground)
    before = tables(ground)
    dry = ground.rollbackd("restore", rolled_back.run, "--dry-run", "--json")
    assert (dry.returncode, dry.stderr) == (0, "")
    said = json.loads(dry.stdout)
    assert (said["dry_run"], said["restored"]) == (True, ALL - 3)
    assert tables(ground) == before

    unanswered = ground.rollbackd("restore", rolled_back.run, stdin="")
    assert unanswered.returncode != 0
    assert tables(ground) == before

    done = ground.rollbackd("restore", rolled_back.run, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"{ALL - 3} rows and values brought back, ")
    assert tables(ground) == expected(rolled_back)

    again = ground.rollbackd("restore", rolled_back.run, "--yes", "--json")
    assert json.loads(again.stdout)["restored"] == 0
    assert tables(ground) == expected(rolled_back)
    asked = ground.rollbackd("restore", rolled_back.run)
    assert (asked.returncode, asked.stdout.splitlines()[-1]) == (
        0,
        "nothing can be brought back as things stand: the reasons are above",
    )


def test_the_reports_script_does_the_same_with_psql(
    after: Callable[..., Ground], rolled_back: RolledBack, tmp_path: Path
) -> None:
    """Without rollbackd: the script out of the report, and the statements of --sql, run by hand; each may be run twice."""
    ground = after()
    newer(ground)
    report = ground.rollbackd("report", rolled_back.run, "--format", "json")
    script = tmp_path / "restore.sql"
    script.write_text(json.loads(report.stdout)["restore_script"])
    assert script.read_text().strip()[:400] in ground.rollbackd("report", rolled_back.run).stdout
    for _ in range(2):
        run_script(ground, script)
        assert tables(ground) == expected(rolled_back)


def test_the_statements_alone_do_the_same_too(after: Callable[..., Ground], rolled_back: RolledBack) -> None:
    """`--sql` prints them and runs nothing."""
    ground = after()
    newer(ground)
    before = tables(ground)
    printed = ground.rollbackd("restore", rolled_back.run, "--sql")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert tables(ground) == before
    statements = printed.stdout.splitlines()
    assert (statements[1], statements[-1]) == ("BEGIN;", "COMMIT;"), "all of it or nothing"
    ground.query(printed.stdout)
    assert tables(ground) == expected(rolled_back)
    # It says itself that it was brought back.
    assert ground.query("SELECT bool_and(restored_at IS NOT NULL) FROM rollbackd_archive.entries") == [
        (True,)
    ]


def run_script(ground: Ground, script: Path) -> None:
    psql = ground.server.bin_directory / "psql"
    if not psql.exists():
        ground.query(script.read_text())
        return
    place = ["-h", ground.server.host, "-p", str(ground.server.port), "-U", ground.server.user]
    subprocess.run(
        [psql, "-X", "-v", "ON_ERROR_STOP=1", *place, "-d", ground.database, "-f", script],
        env={"PGPASSWORD": ground.server.password},
        check=True,
        capture_output=True,
    )


def test_before_the_fixed_migration_is_in_it_says_so_and_brings_nothing_back(
    after: Callable[..., Ground], rolled_back: RolledBack
) -> None:
    """Each archive names what it waits for; nothing is lost by asking too early."""
    ground = after(fixed=False)
    left = ground.rows("customers")
    done = ground.rollbackd("restore", rolled_back.run, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    first, *entries = done.stdout.splitlines()
    assert first == f"0 rows and values brought back, {ALL} left, 0 without a row to go to"
    assert len(entries) == 3
    assert all(line.endswith(": apply the fixed migration first") for line in entries)
    assert "public.customers has no column nickname" in done.stdout
    assert "the table public.visits isn't there" in done.stdout
    assert ground.rows("customers") == left

    rolled_back.project.alembic(ground.url(), "upgrade", "head")
    done = ground.rollbackd("restore", rolled_back.run, "--yes")
    assert done.stdout.startswith(f"{ALL} rows and values brought back")
    assert tables(ground) == (rolled_back.customers, rolled_back.visits)


def test_by_the_api_whoever_may_operate_restores_and_whoever_may_read_doesnt(
    after: Callable[..., Ground], rolled_back: RolledBack
) -> None:
    """403 and nothing done; a dry run is no exception; then it is done, counted, and listed as brought back."""
    ground = after()
    ground.start()
    reader = ground.rollbackd("tokens", "create", "reader", "--role", "read").stdout.strip()
    operator = ground.rollbackd("tokens", "create", "operator", "--role", "operate").stdout.strip()
    path = f"/api/v1/runs/{rolled_back.run}/restore"
    empty = tables(ground)
    for body in ({}, {"dry_run": True}):
        status, answer = ground.ask("POST", path, body, token=reader)
        assert (status, answer["error"]) == (403, "reader lacks the role operate")
    assert tables(ground) == empty
    status, archives = ground.ask("GET", "/api/v1/targets/shop/archives", token=reader)
    assert status == 200
    assert {(a["kind"], a["table"], a["rows"]) for a in archives} == {
        ("column", "public.customers", 10),
        ("table", "public.visits", 20),
        ("rows", "public.customers", 10),
    }
    assert {a["restored_at"] for a in archives} == {None}

    status, planned = ground.ask("POST", path, {"dry_run": True}, token=operator)
    assert (status, planned["restored"]) == (200, ALL)
    assert tables(ground) == empty
    status, done = ground.ask("POST", path, {}, token=operator)
    assert (status, done["restored"], done["left"]) == (200, ALL, 0)
    assert tables(ground) == (rolled_back.customers, rolled_back.visits)
    archives = ground.ask("GET", "/api/v1/targets/shop/archives")[1]
    assert None not in {a["restored_at"] for a in archives}
    metrics = ground.ask("GET", "/metrics")[1]
    assert f'rollbackd_rows_restored_total{{environment="staging",target="shop"}} {ALL}.0' in metrics

    assert ground.ask("POST", path, {"forced": True}, token=operator)[0] == 400
    status, answer = ground.ask("POST", "/api/v1/runs/run-0/restore", {}, token=operator)
    assert (status, answer["error"]) == (404, "there is no run run-0; 'rollbackd history' lists them")


def test_archives_are_listed_and_pruned_when_their_time_is_over(
    after: Callable[..., Ground], rolled_back: RolledBack
) -> None:
    """By `archive.keep`; what is pruned can't be brought back, and nothing of ours stays in the database."""
    ground = after()
    listed = ground.rollbackd("archives", "list", "shop")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.count(rolled_back.run) == 3
    assert "public.customers.nickname" in listed.stdout
    assert listed.stdout.count("not yet") == 3
    assert ground.rollbackd("archives", "list", "shop", "--run", "another", "--json").stdout.strip() == "[]"
    assert ground.rollbackd("archives", "prune").stdout == "0 dropped\n"
    assert ground.rollbackd("archives", "list", "nobody").returncode == 1

    ground.configure(archive={"keep": "1s"})
    time.sleep(1)
    pruned = ground.rollbackd("archives", "prune")
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert pruned.stdout.splitlines()[0] == "3 dropped"
    assert "20 rows of public.visits" in pruned.stdout
    assert ground.query("SELECT 1 FROM pg_namespace WHERE nspname = 'rollbackd'") == []
    gone = ground.rollbackd("restore", rolled_back.run, "--yes")
    assert gone.returncode == 1
    assert f"the run {rolled_back.run} keeps nothing" in gone.stderr


def test_a_run_that_isnt_there_or_isnt_over_brings_nothing_back(
    make_ground: MakeGround, rolled_back: RolledBack
) -> None:
    """Unknown: 1 and its name. Waiting for an approval: it is to be settled first."""
    ground = make_ground(rolled_back.project, rolled_back.database)
    rolled_back.project.alembic(ground.url(), "upgrade", "head")
    ground.configure(policy={"approval_required": True})
    unknown = ground.rollbackd("restore", "run-0", "--yes")
    assert unknown.returncode == 1
    assert "run-0" in unknown.stderr
    asked = ground.rollbackd(
        *("rollback", "shop", "--to", "first", "--reason", "why", "--release", OLD, "--yes", "--json")
    )
    assert asked.returncode == 4, asked.stderr
    run = json.loads(asked.stdout)["id"]
    for argv in (("--dry-run",), ("--yes",), ("--sql",)):
        refused = ground.rollbackd("restore", run, *argv)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"{run} is awaiting_approval: settle it before anything is brought back" in refused.stderr
