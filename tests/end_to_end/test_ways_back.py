"""The three ways back: leave the schema, the old release first, stop what writes; and why a plan takes the one it takes."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("ways-back")]

TOLERANT = {"tolerates_unknown_stamp": True}


@pytest.fixture(scope="module")
def additive_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Customers; then a column that nobody has to fill: the old release doesn't notice it."""
    project = Project(tmp_path_factory.mktemp("additive"))
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 50) n\")",
        "op.drop_table('customers')",
    )
    project.revision(
        "nickname",
        "op.add_column('customers', sa.Column('nickname', sa.Text))",
        "op.drop_column('customers', 'nickname')",
    )
    return project


@pytest.fixture
def with_the_new_release(make_ground: MakeGround, additive_project: Project) -> Callable[..., Ground]:
    """The new release runs on its schema, and the daemon watches nothing yet."""

    def make(**sections: Any) -> Ground:
        ground = make_ground(additive_project)
        additive_project.alembic(ground.url(), "upgrade", "head")
        ground.query("UPDATE customers SET nickname = 'nick ' || id WHERE id <= 10")
        ground.configure(**sections)
        ground.start()
        return ground

    return make


def goes_bad(make_ground: MakeGround, project: Project, **sections: Any) -> Ground:
    """The new release is deployed through the gate and doesn't work; the matrix decides."""
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    ground.configure(**sections)
    ground.start()
    (ground.service / "broken").write_text(NEW)
    ground.deploy()
    return ground


def kinds(run: dict[str, Any]) -> list[str]:
    return [step["kind"] for step in run["steps"]]


def step_under_way(ground: Ground) -> str:
    """The kind of step that the newest run is at."""
    run = ground.run()
    return kinds(run)[run["journal"][-1]["step"]] if run and run["journal"] else ""


# -- leave_schema ----------------------------------------------------------------------------------------------------------


def test_where_the_old_release_works_on_the_schema_it_is_put_back_and_no_table_is_touched(
    make_ground: MakeGround, additive_project: Project
) -> None:
    """The best rollback: nothing is stopped, dumped, archived or downgraded."""
    ground = goes_bad(make_ground, additive_project, deployment=TOLERANT)
    ground.query("UPDATE customers SET nickname = 'kept' WHERE id = 1")
    before = ground.query("SELECT xmin::text, c::text FROM customers c ORDER BY id")
    run = ground.ended_run()
    assert (run["state"], run["way_back"]) == ("succeeded", "leave_schema"), run["statement"]
    assert kinds(run) == ["validate_before", "start_application", "validate_application", "confirm"]
    assert ground.running() == OLD
    assert ground.commands() == [f"start {OLD}"]
    assert ground.heads() == ["nickname"]
    assert ground.query("SELECT xmin::text, c::text FROM customers c ORDER BY id") == before
    assert ground.backups("rollback") == []
    assert ground.query("SELECT 1 FROM pg_namespace WHERE nspname = 'rollbackd'") == []
    assert run["plan"]["way_why"] == ["the old release works on the present schema, as rehearsed"]
    deployment = wait_until(
        lambda: (d := ground.ask("GET", "/api/v1/deployments")[1][0])["ended_at"] and d, ground.words
    )
    assert deployment["outcome"] == "rolled_back"


# -- release_first ---------------------------------------------------------------------------------------------------------


def test_the_old_release_comes_first_and_the_downgrade_waits_for_the_new_ones_sessions(
    with_the_new_release: Callable[..., Ground],
) -> None:
    """Nothing is stopped; a session of the new release holds it up, another application's doesn't."""
    ground = with_the_new_release(deployment={**TOLERANT, "application_name": "shop"})
    url = ground.server.url(ground.database)
    with (
        psycopg.connect(url, application_name="shop-2.0") as busy,
        psycopg.connect(url, application_name="reporting") as other,
    ):
        other.execute("SELECT 1")
        status, asked = ground.ask_rollback("first")
        assert (status, asked["way_back"]) == (200, "release_first")
        wait_until(lambda: step_under_way(ground) == "drain", ground.words)
        # The old release runs, the database waits.
        assert ground.running() == OLD
        assert ground.heads() == ["nickname"]
        assert busy.execute("SELECT nickname FROM customers WHERE id = 1").fetchone() == ("nick 1",)
        busy.rollback()
        assert ground.run()["state"] == "running"
        closed_at = datetime.now(UTC)
        busy.close()
        run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    order = kinds(run)
    assert order.index("start_application") < order.index("drain") < order.index("downgrade")
    assert "stop_application" not in order
    assert ground.commands() == [f"start {OLD}"]
    assert ground.heads() == ["first"]
    assert len(ground.rows("customers")) == 50
    (drained,) = [
        r["at"] for r in run["journal"] if kinds(run)[r["step"]] == "drain" and r["phase"] == "done"
    ]
    assert datetime.fromisoformat(drained) > closed_at


def test_sessions_that_never_go_end_the_run_with_nothing_downgraded(
    with_the_new_release: Callable[..., Ground],
) -> None:
    """It names them, and what to do; the old release runs on, on a schema that it works on."""
    ground = with_the_new_release(deployment=TOLERANT, policy={"start_grace": "1s"})
    with psycopg.connect(ground.server.url(ground.database), application_name="stubborn") as session:
        session.execute("SELECT 1")
        assert ground.ask_rollback("first")[0] == 200
        run = ground.ended_run()
    assert run["state"] == "failed"
    assert "1 sessions of the replaced release are still there" in run["statement"]
    assert "stubborn" in run["statement"]
    assert "The database is unchanged" in run["statement"]
    assert ground.heads() == ["nickname"]
    assert ground.rows("customers", "nickname")[0] == ("nick 1",)
    assert ground.running() == OLD


def test_policy_narrows_the_ways_back(make_ground: MakeGround, additive_project: Project) -> None:
    """Who doesn't want to leave the schema gets the next gentlest way, by the matrix too."""
    ground = goes_bad(
        make_ground,
        additive_project,
        deployment=TOLERANT,
        policy={"ways_back": ["release_first", "stop_writes"]},
    )
    run = ground.ended_run()
    assert (run["state"], run["way_back"]) == ("succeeded", "release_first"), run["statement"]
    assert ground.heads() == ["first"]
    assert ground.commands() == [f"start {OLD}"]


# -- why not ---------------------------------------------------------------------------------------------------------------

TOO_STRICT = {
    "filled": (
        "op.add_column('customers', sa.Column('code', sa.Text, nullable=False, server_default='x'))\n"
        "op.alter_column('customers', 'code', server_default=None)",
        "op.drop_column('customers', 'code')",
        "its inserts leave public.customers.code empty, which is NOT NULL without a default",
    ),
    "unique": (
        "op.create_index('one_name', 'customers', ['name'], unique=True)",
        "op.drop_index('one_name')",
        "its writes may break the unique index",
    ),
    "checked": (
        "op.create_check_constraint('short', 'customers', 'length(name) < 100')",
        "op.drop_constraint('short', 'customers')",
        "its writes may break constraint",
    ),
    "rewritten": (
        "op.execute(\"UPDATE customers SET name = 'Dr. ' || name\")",
        "op.execute('UPDATE customers SET name = substr(name, 5)')",
        "rows of public.customers are rewritten on the way back",
    ),
    "renamed": (
        "op.alter_column('customers', 'name', new_column_name='full_name')",
        "op.alter_column('customers', 'full_name', new_column_name='name')",
        "it lacks column public.customers.name",
    ),
}


def test_a_plan_says_why_the_old_release_doesnt_fit_the_schema(
    make_ground: MakeGround, tmp_path: Path
) -> None:
    """For each kind of change that it can't live with: writes are stopped, and the sentence names the object."""
    project = Project(tmp_path / "project")
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 9) n\")",
        "op.drop_table('customers')",
    )
    for name, (upgrade, downgrade, _) in TOO_STRICT.items():
        project.revision(name, upgrade, downgrade)
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.configure(deployment=TOLERANT)
    ground.start()
    for name, (_, _, why) in TOO_STRICT.items():
        project.alembic(ground.url(), "upgrade", name)
        status, document = ground.ask("POST", "/api/v1/targets/shop/plan", {"to": "-1", "release": OLD})
        assert status == 200, document
        plan = document["plan"]
        assert plan["way_back"] == "stop_writes", name
        (said,) = plan["way_why"]
        assert said.startswith("not release_first: the old release may not work on this schema ("), name
        assert why in said, name
        assert [r["id"] for r in plan["revisions"]] == [name]


def test_a_plan_says_what_a_gentler_way_would_need(
    make_ground: MakeGround, additive_project: Project
) -> None:
    """A word that the old release starts over an unknown stamp; a command that starts it; a policy that wants it."""
    ground = make_ground(additive_project)
    additive_project.alembic(ground.url(), "upgrade", "head")

    def plan() -> tuple[str, list[str]]:
        done = ground.rollbackd("plan", "shop", "--to", "first", "--release", OLD, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["plan"]
        return found["way_back"], found["way_why"]

    way, why = plan()
    assert way == "stop_writes"
    (said,) = why
    assert said.startswith(
        "not release_first: the old release may not start over a stamp that it doesn't know"
    )
    assert "deployment.tolerates_unknown_stamp" in said

    ground.configure(deployment=TOLERANT)
    assert plan() == ("release_first", ["the old release works on the present schema, as rehearsed"])

    ground.configure(policy={"ways_back": ["stop_writes"]})
    assert plan() == ("stop_writes", [])

    ground.configure(policy={"ways_back": ["leave_schema", "release_first", "stop_writes"]})
    del ground.target["deployment"]["stop"], ground.target["deployment"]["start"]
    ground.configure()
    way, why = plan()
    assert way == "stop_writes"
    assert why == ["not release_first: no command is declared that puts the old release back"]
