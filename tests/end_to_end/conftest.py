"""One server for each test process, one small shop project, and for each test a database and a daemon of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.end_to_end.ground import Ground, Health, Project, new_database

from rollbackd.demo.postgres import EmbeddedPostgres

MakeGround = Callable[..., Ground]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as running:
        yield running


@pytest.fixture(scope="session")
def newer_server() -> Iterator[EmbeddedPostgres]:
    """A server two major versions ahead of `server` and its tools."""
    with EmbeddedPostgres.start(major=18) as running:
        yield running


@pytest.fixture(scope="session")
def health() -> Iterator[Health]:
    answering = Health()
    thread = threading.Thread(target=answering.server.serve_forever, args=(0.05,))
    thread.start()
    yield answering
    answering.server.shutdown()
    thread.join()
    answering.server.server_close()


@pytest.fixture(scope="session")
def shop_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """`customers` first; then `nickname` in it, then `visits`. Each downgrade that is run notes it in `downgrades`.

    A transaction that is undone takes its note with it, but not its step in the sequence `attempts`.
    """
    project = Project(tmp_path_factory.mktemp("shop"))
    project.revision(
        "customers",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 40000) n\")\n"
        "op.execute('CREATE TABLE downgrades (revision text NOT NULL, attempt int NOT NULL)')\n"
        "op.execute('CREATE SEQUENCE attempts')",
        "op.drop_table('customers')",
    )
    note = "op.execute(\"INSERT INTO downgrades VALUES ('{}', nextval('attempts'))\")\n"
    project.revision(
        "nickname",
        "op.add_column('customers', sa.Column('nickname', sa.Text))\n"
        "op.execute(\"UPDATE customers SET nickname = 'nick ' || id\")",
        note.format("nickname") + "op.drop_column('customers', 'nickname')",
    )
    project.revision(
        "visits",
        "op.execute('CREATE TABLE visits (id int PRIMARY KEY, page text)')\n"
        "op.execute(\"INSERT INTO visits SELECT n, 'page ' || n FROM generate_series(1, 20000) n\")",
        note.format("visits") + "op.drop_table('visits')",
    )
    return project


@pytest.fixture(scope="session")
def shop_template(server: EmbeddedPostgres, shop_project: Project) -> Iterator[str]:
    """A database at the shop's head, to be copied."""
    with new_database(server) as name:
        shop_project.alembic(server.url(name, driver="psycopg"), "upgrade", "head")
        yield name


@pytest.fixture
def make_ground(server: EmbeddedPostgres, health: Health, tmp_path: Path) -> Iterator[MakeGround]:
    """Makes one ground for a project, on an empty database or on a copy of `template`."""
    with ExitStack() as ends:

        def make(project: Project, template: str = "template0", on: EmbeddedPostgres | None = None) -> Ground:
            database = ends.enter_context(new_database(on or server, template))
            ground = Ground(tmp_path, on or server, project, health, database)
            ends.callback(ground.clean)
            ends.callback(ground.stop)
            return ground

        yield make


@pytest.fixture
def shop(make_ground: MakeGround, shop_project: Project, shop_template: str) -> Ground:
    """The shop at its head, with 40,000 customers and 20,000 visits, release 2.0 running; release 1.0 came before."""
    return make_ground(shop_project, shop_template)
