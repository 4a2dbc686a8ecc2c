"""The sample shop: real Alembic runs, a real database, a real web process."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.demo.shop_layout import BASE_RELEASE, BASE_REVISION, fill, lay_out, release_names

TABLES = ("customers", "products", "orders", "order_lines", "reviews", "stock")


@dataclass
class InstalledShop:
    """One laid-out shop on a database of its own."""

    root: Path
    url: str
    port: int
    pg_dump: Path

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.root / "shopctl.py"), "--root", str(self.root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def alembic(self, release: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.root / "releases" / release,
            env={**os.environ, "SHOP_DATABASE_URL": self.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def query(self, statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement.encode()).fetchall()

    def stamps(self) -> set[object]:
        return {row[0] for row in self.query("SELECT version_num FROM alembic_version")}

    def catalog(self) -> str:
        """The schema without the version table, which `downgrade base` leaves, and without the dump's random keys."""
        dumped = subprocess.run(
            [self.pg_dump, "--schema-only", "--exclude-table=alembic_version", self.url],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return re.sub(r"^\\(un)?restrict .*\n", "", dumped, flags=re.MULTILINE)

    def counts(self) -> dict[str, object]:
        return {table: self.query(f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}

    def request(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            is_json = response.getheader("Content-Type", "").startswith("application/json")
            return response.status, json.loads(text) if is_json else text
        finally:
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def filled_template(
    embedded_postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A database at the base release with a few thousand rows, to be copied."""
    name = "shop_template"
    with psycopg.connect(embedded_postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    root = tmp_path_factory.mktemp("template") / "shop"
    lay_out(root, database_url=embedded_postgres.url(name), port=1, python=Path(sys.executable), releases=[])
    shop = InstalledShop(root, embedded_postgres.url(name), 1, embedded_postgres.bin_directory / "pg_dump")
    migrated = shop.ctl("migrate", BASE_RELEASE)
    assert migrated.returncode == 0, migrated.stderr
    fill(shop.url, rows=3_000)
    yield name
    with psycopg.connect(embedded_postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def install(
    embedded_postgres: EmbeddedPostgres, new_database: Callable[..., str], tmp_path: Path
) -> Iterator[Callable[[str], InstalledShop]]:
    """Lays a shop out on a copy of the template database; its web process is stopped afterwards."""
    installed: list[InstalledShop] = []

    def make(template: str) -> InstalledShop:
        url = embedded_postgres.url(new_database(template))
        port = free_port()
        root = tmp_path / "shop"
        lay_out(root, database_url=url, port=port, python=Path(sys.executable))
        installed.append(InstalledShop(root, url, port, embedded_postgres.bin_directory / "pg_dump"))
        return installed[-1]

    yield make
    for shop in installed:
        assert shop.ctl("stop").returncode == 0


@pytest.fixture
def shop(install: Callable[[str], InstalledShop], filled_template: str) -> InstalledShop:
    """A shop at the base release with rows."""
    return install(filled_template)


def test_the_layout_is_complete(shop: InstalledShop) -> None:
    """Each release directory stands alone; the settings with the password are for their owner only."""
    assert {path.name for path in (shop.root / "releases").iterdir()} == set(release_names())
    for release in (shop.root / "releases").iterdir():
        for name in (
            "alembic.ini",
            "migrations/env.py",
            "migrations/script.py.mako",
            "web.py",
            "release.toml",
        ):
            assert (release / name).is_file()
        heads = shop.alembic(release.name, "heads")
        assert heads.returncode == 0, heads.stderr
        assert len(heads.stdout.split("\n")) == 2, f"{release.name} has one head"
    assert (shop.root / "shop.env.json").stat().st_mode & 0o777 == 0o600
    assert (shop.root / "current").readlink() == Path(f"releases/{BASE_RELEASE}")


def test_a_shop_is_not_laid_over_another(shop: InstalledShop) -> None:
    """An existing shop is refused, a release that doesn't exist too."""
    with pytest.raises(FileExistsError):
        lay_out(shop.root, database_url=shop.url, port=1, python=Path(sys.executable))
    with pytest.raises(LookupError, match=r"no release 1\.0; it has 2026\.11\.2"):
        lay_out(shop.root / "x", database_url=shop.url, port=1, python=Path(sys.executable), releases=["1.0"])
    assert not (shop.root / "x").exists()


def test_every_revision_of_the_base_has_a_right_way_back(install: Callable[[str], InstalledShop]) -> None:
    """Up, down to nothing, up: the same catalog; and each single step down and up again gives the same too."""
    shop = install("template1")
    empty = shop.catalog()
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
    full = shop.catalog()
    assert "CREATE TYPE public.order_status" in full
    assert shop.stamps() == {BASE_REVISION}
    assert shop.alembic(BASE_RELEASE, "downgrade", "base").returncode == 0
    assert shop.catalog() == empty
    for target in ("fill_order_totals", "create_orders", "create_reviews", "create_stock"):
        assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
        down = shop.alembic(BASE_RELEASE, "downgrade", target)
        assert down.returncode == 0, down.stderr
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
    assert shop.catalog() == full


def test_the_base_also_migrates_back_and_forth_with_rows(shop: InstalledShop) -> None:
    """The data migration fills the very totals that it dropped."""
    totals = "SELECT id, total_cents FROM orders ORDER BY id"
    before = shop.query(totals)
    full = shop.catalog()
    assert shop.alembic(BASE_RELEASE, "downgrade", "index_orders").returncode == 0
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
    assert shop.query(totals) == before
    assert shop.catalog() == full


@pytest.mark.parametrize(
    ("release", "revision"),
    [("2026.11.3", "add_priority"), ("2026.11.4", "add_loyalty"), ("2026.11.6", "add_subtitle")],
)
def test_a_good_migration_goes_up_and_down(shop: InstalledShop, release: str, revision: str) -> None:
    """The releases with sound migrations: catalog and rows come back as they were."""
    catalog, counts = shop.catalog(), shop.counts()
    migrated = shop.ctl("migrate", release)
    assert migrated.returncode == 0, migrated.stderr
    assert (shop.root / "current").readlink() == Path(f"releases/{release}")
    assert shop.stamps() == {revision}
    upgraded = shop.catalog()
    assert upgraded != catalog
    assert shop.alembic(release, "downgrade", BASE_REVISION).returncode == 0
    assert (shop.catalog(), shop.counts(), shop.stamps()) == (catalog, counts, {BASE_REVISION})
    assert shop.alembic(release, "upgrade", "head").returncode == 0
    assert shop.catalog() == upgraded


def test_a_release_without_migrations_moves_nothing(shop: InstalledShop) -> None:
    """2026.11.5: its migrate is a success that changes nothing."""
    catalog = shop.catalog()
    assert shop.ctl("migrate", "2026.11.5").returncode == 0
    assert (shop.catalog(), shop.stamps()) == (catalog, {BASE_REVISION})


def test_the_clean_failure_leaves_the_old_state(shop: InstalledShop) -> None:
    """2026.12.0-clean fails on duplicates; the one transaction undoes the column it had added."""
    catalog, counts = shop.catalog(), shop.counts()
    failed = shop.ctl("migrate", "2026.12.0-clean")
    assert failed.returncode == 1
    assert "uq_customers_email" in failed.stderr
    assert (shop.catalog(), shop.counts(), shop.stamps()) == (catalog, counts, {BASE_REVISION})
    assert (shop.root / "current").readlink() == Path("releases/2026.12.0-clean")


def test_the_midway_failure_leaves_the_first_revision_committed(shop: InstalledShop) -> None:
    """2026.12.1-midway: stamped at the first revision, with all that it made; and the way back is right."""
    catalog = shop.catalog()
    failed = shop.ctl("migrate", "2026.12.1-midway")
    assert failed.returncode == 1
    assert "NotNullViolation" in failed.stderr
    assert shop.stamps() == {"add_delivery_window"}
    assert shop.query("SELECT count(*) FROM delivery_windows") == [(2,)]
    nullable = "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'orders'::regclass AND attname = 'delivery_window'"
    assert shop.query(nullable) == [(False,)]
    assert shop.alembic("2026.12.1-midway", "downgrade", BASE_REVISION).returncode == 0
    assert shop.catalog() == catalog


def test_the_failure_inside_leaves_an_index_and_the_old_stamp(shop: InstalledShop) -> None:
    """2026.12.2-inside: neither old nor new; dropping the index is what leads back."""
    catalog = shop.catalog()
    failed = shop.ctl("migrate", "2026.12.2-inside")
    assert failed.returncode == 1
    assert "ck_orders_total_positive" in failed.stderr
    assert shop.stamps() == {BASE_REVISION}
    left = set(shop.catalog().splitlines()) - set(catalog.splitlines())
    assert {line for line in left if not line.startswith("--")} == {
        "CREATE INDEX ix_orders_status_placed_at ON public.orders USING btree (status, placed_at);"
    }
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_orders_status_placed_at'::regclass"
    assert shop.query(valid) == [(True,)]
    with psycopg.connect(shop.url, autocommit=True) as connection:
        connection.execute("DROP INDEX ix_orders_status_placed_at")
    assert shop.catalog() == catalog


def test_the_failing_migrations_are_sound_on_better_data(install: Callable[[str], InstalledShop]) -> None:
    """On empty tables all of them go up and down: it is the data that they fail on."""
    shop = install("template1")
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
    catalog = shop.catalog()
    for release in ("2026.12.0-clean", "2026.12.1-midway", "2026.12.2-inside"):
        up = shop.alembic(release, "upgrade", "head")
        assert up.returncode == 0, up.stderr
        down = shop.alembic(release, "downgrade", BASE_REVISION)
        assert down.returncode == 0, down.stderr
        assert shop.catalog() == catalog


@pytest.mark.parametrize("release", release_names())
def test_the_migrations_can_be_written_as_sql(shop: InstalledShop, release: str) -> None:
    """Alembic's offline mode works in every release."""
    written = shop.alembic(release, "upgrade", "head", "--sql")
    assert written.returncode == 0, written.stderr
    assert "CREATE TABLE customers" in written.stdout


def test_fill_is_deterministic_and_leaves_sequences_right(
    install: Callable[[str], InstalledShop], embedded_postgres: EmbeddedPostgres
) -> None:
    """At least the rows asked for; the same seed gives the same rows, another one others; new rows get new ids."""
    shop = install("template1")
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0

    def refill(seed: int) -> list[tuple[object, ...]]:
        with psycopg.connect(shop.url) as connection:
            connection.execute("TRUNCATE customers, products, orders, order_lines, reviews, stock")
        fill(shop.url.replace("postgresql:", "postgresql+asyncpg:"), rows=1_000, seed=seed)
        return [
            row
            for table in TABLES
            for row in shop.query(f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {table} AS t")
        ]

    first = refill(7)
    assert sum(int(str(count)) for count in shop.counts().values()) >= 1_000
    assert refill(7) == first
    assert refill(8) != first
    for table, columns in (
        ("customers", "(email, name) VALUES ('a', 'b')"),
        ("orders", "(customer_id) VALUES (1)"),
    ):
        with psycopg.connect(shop.url) as connection:
            highest = connection.execute(f"SELECT max(id) FROM {table}").fetchone()
            new = connection.execute(f"INSERT INTO {table} {columns} RETURNING id").fetchone()
        assert highest is not None
        assert new == (highest[0] + 1,)
    with pytest.raises(psycopg.errors.UniqueViolation):
        fill(shop.url, rows=1_000)


@pytest.mark.parametrize("rows", [1, 10, 333])
def test_even_a_small_fill_has_what_the_releases_fail_on(
    install: Callable[[str], InstalledShop], rows: int
) -> None:
    """However few rows: two customers with one address, and an order that cost nothing."""
    shop = install("template1")
    assert shop.alembic(BASE_RELEASE, "upgrade", "head").returncode == 0
    fill(shop.url, rows=rows)
    assert sum(int(str(count)) for count in shop.counts().values()) >= rows
    assert shop.query("SELECT count(*) > count(DISTINCT email) FROM customers") == [(True,)]
    assert shop.query("SELECT count(*) > 0 FROM orders WHERE total_cents = 0") == [(True,)]


def test_the_web_process_starts_serves_and_stops(shop: InstalledShop) -> None:
    """Started detached and found by its pid; it lists and takes orders; stopped, nothing of it is left."""
    assert shop.ctl("is-stopped").returncode == 0
    assert shop.ctl("is-running", BASE_RELEASE).returncode == 1
    started = shop.ctl("start", BASE_RELEASE)
    assert started.returncode == 0, started.stderr
    process = int((shop.root / "web.pid").read_text())
    assert os.getsid(process) == process
    assert shop.ctl("is-running", BASE_RELEASE).returncode == 0
    assert shop.ctl("is-running", "2026.11.3").returncode == 1
    assert shop.ctl("is-stopped").returncode == 1
    assert shop.ctl("start", BASE_RELEASE).returncode == 0, "a second start finds it running"
    assert int((shop.root / "web.pid").read_text()) == process

    assert shop.request("GET", "/health") == (200, {"version": BASE_RELEASE, "healthy": True})
    assert shop.request("GET", "/version") == (200, {"version": BASE_RELEASE})
    status, placed = shop.request("POST", "/orders", {"customer_id": 3, "product_id": 2, "quantity": 2})
    assert status == 201
    assert isinstance(placed, dict)
    status, listed = shop.request("GET", "/orders")
    assert status == 200
    assert isinstance(listed, list)
    assert len(listed) == 10
    assert listed[0]["id"] == placed["id"]
    assert listed[0]["customer"] == "Customer 3"
    assert "priority" not in listed[0]
    assert shop.query(
        "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ) == [(f"shop {BASE_RELEASE}",)]

    assert shop.ctl("stop").returncode == 0
    assert not Path(f"/proc/{process}/cmdline").exists() or not Path(f"/proc/{process}/cmdline").read_bytes()
    assert not (shop.root / "web.pid").exists()
    assert shop.ctl("is-stopped").returncode == 0
    assert shop.ctl("stop").returncode == 0


def test_a_killed_web_process_is_seen_and_can_be_replaced(shop: InstalledShop) -> None:
    """A stale pid file fools nobody, not even when its number belongs to another process now."""
    assert shop.ctl("start", BASE_RELEASE).returncode == 0
    process = int((shop.root / "web.pid").read_text())
    os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while shop.ctl("is-stopped").returncode != 0:
        assert time.monotonic() < deadline
    (shop.root / "web.pid").write_text(str(os.getpid()))
    assert shop.ctl("is-running", BASE_RELEASE).returncode == 1
    assert shop.ctl("stop").returncode == 0
    assert shop.ctl("start", BASE_RELEASE).returncode == 0


def test_starting_another_release_replaces_the_one_that_runs(shop: InstalledShop) -> None:
    """One web process at a time; the new one answers with its own version."""
    assert shop.ctl("start", BASE_RELEASE).returncode == 0
    assert shop.ctl("start", "2026.11.5").returncode == 0
    assert shop.request("GET", "/version") == (200, {"version": "2026.11.5"})
    assert shop.ctl("is-running", BASE_RELEASE).returncode == 1


def test_a_start_that_cannot_work_is_reported(shop: InstalledShop) -> None:
    """With the port taken by somebody else start fails, and is-stopped doesn't call that stopped."""
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", shop.port))
        occupant.listen()
        failed = shop.ctl("start", BASE_RELEASE)
        assert failed.returncode == 1
        assert "web.log" in failed.stderr
        assert shop.ctl("is-stopped").returncode == 1
    unknown = shop.ctl("start", "1.0")
    assert unknown.returncode == 2
    assert "no release 1.0" in unknown.stderr


def test_the_release_with_errors_fails_every_second_listing(shop: InstalledShop) -> None:
    """2026.11.3: about half of the listings are 500s while /health stays 200; it writes what only its schema holds."""
    assert shop.ctl("migrate", "2026.11.3").returncode == 0
    assert shop.ctl("start", "2026.11.3").returncode == 0
    assert shop.request("POST", "/orders", {"priority": 5})[0] == 201
    answers = [shop.request("GET", "/orders") for _ in range(10)]
    assert sorted(status for status, _ in answers) == [200] * 5 + [500] * 5
    listed = next(body for status, body in answers if status == 200)
    assert isinstance(listed, list)
    assert listed[0]["priority"] == 5
    assert shop.query("SELECT count(*) FROM order_notes") == [(1,)]
    assert shop.request("GET", "/health")[0] == 200


def test_the_web_process_shows_how_long_its_requests_took(shop: InstalledShop) -> None:
    """A Prometheus histogram by route and status; a path that nobody serves doesn't become a label."""
    migrated = shop.ctl("migrate", "2026.11.3")
    assert migrated.returncode == 0, migrated.stderr
    shop.ctl("start", "2026.11.3")
    statuses = [shop.request("GET", "/orders")[0] for _ in range(4)]
    assert shop.request("GET", "/nobody/serves/this")[0] == 404
    status, text = shop.request("GET", "/metrics")
    assert status == 200
    (histogram,) = text_string_to_metric_families(str(text))
    samples = {
        (
            s.name.removeprefix("shop_request_duration_seconds_"),
            s.labels["path"],
            s.labels["status"],
            s.labels.get("le"),
        ): s
        for s in histogram.samples
    }
    for answered in ("200", "500"):
        assert samples["count", "/orders", answered, None].value == statuses.count(int(answered)) == 2
        assert samples["bucket", "/orders", answered, "+Inf"].value == 2
        assert samples["sum", "/orders", answered, None].value > 0
    assert samples["count", "none", "404", None].labels["version"] == "2026.11.3"
    assert not any("nobody" in path for _, path, _, _ in samples)


def test_new_code_on_the_old_schema_really_fails(shop: InstalledShop) -> None:
    """2026.11.3 without its migration: every listing and every order fails on the missing column."""
    assert shop.ctl("start", "2026.11.3").returncode == 0
    assert {shop.request("GET", "/orders")[0] for _ in range(4)} == {500}
    assert shop.request("POST", "/orders", {})[0] == 500
    assert "column orders.priority does not exist" in (shop.root / "web.log").read_text()


@pytest.mark.parametrize("release", ["2026.11.4", "2026.11.5"])
def test_the_crashing_releases_start_and_are_never_well(shop: InstalledShop, release: str) -> None:
    """Migration and start succeed; /health says 503."""
    assert shop.ctl("migrate", release).returncode == 0
    assert shop.ctl("start", release).returncode == 0
    assert shop.request("GET", "/health") == (503, {"version": release, "healthy": False})
    assert shop.request("POST", "/orders", {})[0] == 201
    if release == "2026.11.4":
        assert shop.query("SELECT count(*) FROM loyalty_events") == [(1,)]


def test_the_healthy_release_is_well(shop: InstalledShop) -> None:
    """2026.11.6: all is well; only a column's comment is misspelt."""
    assert shop.ctl("migrate", "2026.11.6").returncode == 0
    assert shop.ctl("start", "2026.11.6").returncode == 0
    assert shop.request("GET", "/health")[0] == 200
    status, listed = shop.request("GET", "/orders")
    assert status == 200
    assert isinstance(listed, list)
    assert "subtitle" in listed[0]


def test_the_old_release_runs_on_the_new_schema(shop: InstalledShop) -> None:
    """The base's reads and writes pass on what 2026.11.3 made: leaving the schema is a way back."""
    assert shop.ctl("migrate", "2026.11.3").returncode == 0
    assert shop.ctl("start", BASE_RELEASE).returncode == 0
    assert shop.request("POST", "/orders", {})[0] == 201
    assert shop.request("GET", "/orders")[0] == 200


def test_without_its_database_the_shop_is_not_well(
    shop: InstalledShop, embedded_postgres: EmbeddedPostgres
) -> None:
    """/health looks at the database, and the process outlives its absence."""
    settings = json.loads((shop.root / "shop.env.json").read_text())
    settings["database_url"] = embedded_postgres.url("no_such_database")
    (shop.root / "shop.env.json").write_text(json.dumps(settings))
    assert shop.ctl("start", BASE_RELEASE).returncode == 0
    assert shop.request("GET", "/health") == (503, {"version": BASE_RELEASE, "healthy": False})
