"""What a guarded database is busy with, on real servers: waiting locks, long transactions, slow statements."""

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from tests.adapters.conftest import Stage
from tests.conftest import RequireProgram
from tests.prometheus import free_port

from rollbackd.adapters.postgres import activity
from rollbackd.adapters.postgres.reader import PostgresReader
from rollbackd.core.investigation import Activity
from rollbackd.settings import Database, Migrations, Target

pytestmark = [pytest.mark.xdist_group("adapters-worker"), pytest.mark.timeout(120)]

MakeReader = Callable[..., PostgresReader]


class Background:
    """A session that runs one statement, in a thread of its own, in the end undone."""

    def __init__(self, url: str, statement: str) -> None:
        self.connection = psycopg.connect(url, application_name="shop 2.0")
        self.thread = threading.Thread(target=self._run, args=(statement,))
        self.thread.start()

    def _run(self, statement: str) -> None:
        with contextlib.suppress(psycopg.Error):
            self.connection.execute(statement.encode())

    def end(self) -> None:
        self.connection.cancel()
        self.thread.join()
        self.connection.close()


async def test_who_waits_for_a_lock_and_who_holds_it_and_since_when_without_their_literals(
    stage: Stage, make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "LONG_TRANSACTION_S", 0.05)
    database = stage.database("CREATE TABLE orders (id int, note text)")
    url, reader = stage.server.url(database), make_reader(database)
    with psycopg.connect(url, application_name="console") as holder:
        holder_pid = holder.info.backend_pid
        holder.execute("INSERT INTO orders VALUES (42, 'a secret of theirs')")
        holder.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        waits = Background(url, "SELECT count(*) FROM orders WHERE note = 'another secret' AND id > 7")
        try:
            found = Activity()
            while not (found.waiting and found.transactions):
                await asyncio.sleep(0.05)
                found = await reader.activity()
        finally:
            waits.end()
    (waiting,) = found.waiting
    assert waiting.sql == "SELECT count(*) FROM orders WHERE note = ? AND id > ?"
    assert waiting.wants == "AccessShareLock on orders"
    assert (waiting.holder_pid, waiting.holder_sql) == (
        holder_pid,
        "LOCK TABLE orders IN ACCESS EXCLUSIVE MODE",
    )
    assert waiting.holder == f"console as {stage.server.user}, idle in transaction"
    assert waiting.waits_s >= 0
    oldest = found.transactions[0]
    assert (oldest.pid, oldest.state) == (holder_pid, "idle in transaction")
    assert oldest.open_s > 0.05
    # No pg_stat_statements here: what runs now is shown, and said to be that.
    assert found.source == "pg_stat_activity"
    assert [(s.sql, s.calls) for s in found.statements] == [(waiting.sql, 0)]
    assert found.missing == ()
    assert "secret" not in repr(found)
    assert " 7" not in repr(found.statements)


async def test_a_role_that_may_not_see_others_says_how_many_hide_something(
    stage: Stage, make_reader: MakeReader
) -> None:
    database = stage.database()
    with psycopg.connect(stage.server.url(database)) as other:
        other.execute("SELECT 'a secret'")
        found = await make_reader(database, stage.role()).activity()
    hidden = "1 sessions of other roles hide what they do from this role: grant it pg_read_all_stats"
    assert found.missing == (hidden,)
    assert (found.statements, found.transactions) == ((), ())


async def test_a_quiet_database_has_nothing_to_show(stage: Stage, make_reader: MakeReader) -> None:
    assert await make_reader(stage.database()).activity() == Activity(source="pg_stat_activity")


# -- pg_stat_statements -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def debians(require_program: RequireProgram) -> Iterator[int]:
    """The port of Debian's own server on 127.0.0.1, which has pg_stat_statements; whoever connects there is trusted."""
    places = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), reverse=True)
    programs = require_program(*places, "postgres").resolve().parent
    # The server refuses root, and must reach its folder whoever runs the tests.
    folder, port = Path(tempfile.mkdtemp(prefix="rollbackd-test-")), free_port()
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    shutil.chown(folder, user)
    made = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run(made, user=user if os.geteuid() == 0 else None, cwd="/", check=True, capture_output=True)
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    argv = [programs / "postgres", "-D", folder / "data", "-c", "shared_preload_libraries=pg_stat_statements"]
    for name, value in settings.items():
        argv += ["-c", f"{name}={value}"]
    server = subprocess.Popen(
        argv,
        user=user if os.geteuid() == 0 else None,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres").close()
                break
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        yield port
    finally:
        server.send_signal(2)
        server.wait(30)
        shutil.rmtree(folder)


async def test_the_slowest_of_pg_stat_statements_come_first_and_without_literals(debians: int) -> None:
    url = f"postgresql://postgres@127.0.0.1:{debians}/postgres"
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("CREATE SCHEMA stats")
        session.execute("CREATE EXTENSION pg_stat_statements SCHEMA stats")
        for _ in range(2):
            session.execute("SELECT pg_sleep(0.2), 'a secret'")
        session.execute("ALTER ROLE CURRENT_USER SET search_path = 'a secret place'")
    target = Target(
        name="shop", service="shop", environment="staging", database=Database(url=url),
        migrations=Migrations(directory="/m", python=("python",)),
    )  # fmt: skip
    reader = PostgresReader(target)
    found = await reader.activity()
    await reader.close()
    assert (found.source, found.missing) == ("pg_stat_statements", ())
    slowest = found.statements[0]
    assert (slowest.sql, slowest.calls) == ("SELECT pg_sleep($1), $2", 2)
    assert 0.2 <= slowest.mean_s <= slowest.total_s
    means = [statement.mean_s for statement in found.statements]
    assert means == sorted(means, reverse=True)
    assert any(s.sql == "ALTER ROLE CURRENT_USER SET search_path = ?" for s in found.statements)
    assert "secret" not in repr(found)
