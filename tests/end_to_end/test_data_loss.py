"""Rows that a migration took away: found by running it again on the backup from before it, and brought back."""

from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("data-loss")]

REVIEWS = 30
MISSING = {"category": "data_loss", "severity": "critical", "name": "reviews_missing", "reason": "gone"}


@pytest.fixture(scope="module")
def reviews_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A shop with 30 reviews; `tidied` deletes ten of them and changes two, and its downgrade gives none back."""
    project = Project(tmp_path_factory.mktemp("reviews"))
    project.revision(
        "reviews",
        "op.execute('CREATE TABLE reviews (id int PRIMARY KEY, stars int NOT NULL, body text)')\n"
        f"op.execute(\"INSERT INTO reviews SELECT n, n % 5, 'review ' || n FROM generate_series(1, {REVIEWS}) n\")",
        "op.drop_table('reviews')",
    )
    project.revision(
        "tidied",
        "op.execute('DELETE FROM reviews WHERE id % 3 = 0')\n"
        "op.execute('UPDATE reviews SET body = NULL WHERE id IN (1, 2)')\n"
        "op.create_index('by_stars', 'reviews', ['stars'])",
        "op.drop_index('by_stars')",
    )
    return project


@pytest.fixture(scope="module")
def harmless_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same shop, and a migration that takes nothing away."""
    project = Project(tmp_path_factory.mktemp("harmless"))
    project.revision(
        "reviews",
        "op.execute('CREATE TABLE reviews (id int PRIMARY KEY, stars int NOT NULL, body text)')\n"
        f"op.execute(\"INSERT INTO reviews SELECT n, n % 5, 'review ' || n FROM generate_series(1, {REVIEWS}) n\")",
        "op.drop_table('reviews')",
    )
    project.revision(
        "index", "op.create_index('by_stars', 'reviews', ['stars'])", "op.drop_index('by_stars')"
    )
    return project


def at_the_old_release(make_ground: MakeGround, project: Project, **sections: Any) -> Ground:
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "reviews")
    ground.runs_version(OLD)
    ground.configure(**sections)
    ground.start()
    return ground


def decision_of(ground: Ground, row: str) -> dict[str, Any]:
    """The decision of this row, once it is made."""

    def made() -> Any:
        decisions = ground.ask("GET", "/api/v1/decisions")[1]
        return next((d for d in decisions if d["decision"]["row"] == row), None)

    found: dict[str, Any] = wait_until(made, ground.words)
    return found


def people_go_on(ground: Ground) -> None:
    """A customer withdraws a review, another one mends hers, a third writes one: none of it is a loss."""
    ground.query("DELETE FROM reviews WHERE id = 29")
    ground.query("UPDATE reviews SET body = 'mended' WHERE id = 2")
    ground.query("INSERT INTO reviews VALUES (100, 5, 'new')")


def expected_reviews() -> list[tuple[Any, ...]]:
    """All as they were before the migration, but for what people did since."""
    rows = {n: (n, n % 5, f"review {n}") for n in range(1, REVIEWS + 1)}
    del rows[29]
    rows[2] = (2, 2, "mended")
    return [*rows.values(), (100, 5, "new")]


def test_what_the_migration_took_comes_back_by_itself_and_what_people_deleted_stays_away(
    make_ground: MakeGround, reviews_project: Project
) -> None:
    """Staging: somebody misses rows; the loss is seen to be the migration's, it goes back, and the rows are back too."""
    ground = at_the_old_release(make_ground, reviews_project)
    ground.deploy()
    people_go_on(ground)
    assert ground.send("signal.firing", **MISSING) == 202
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert ground.rows("reviews") == expected_reviews()
    assert ground.heads() == ["reviews"]
    assert ground.running() == OLD
    decision = decision_of(ground, "data-loss-by-the-migration")
    assert decision["decision"]["action"] == "roll_back_and_restore"
    assert "12 of public.reviews" in decision["decision"]["reasons"]["data"]
    kinds = [step["kind"] for step in run["steps"]]
    assert kinds.index("recover_lost") < kinds.index("stop_application")
    assert kinds.index("downgrade") < kinds.index("bring_back") < kinds.index("start_application")
    report = ground.rollbackd("report", run["id"]).stdout
    assert "reviews" in report
    assert ground.scratch_databases() == []


def test_in_production_lost_rows_lie_in_the_archive_until_a_person_brings_them_back(
    make_ground: MakeGround, reviews_project: Project
) -> None:
    """Approved by another than who asked; the rows come back with `restore RUN --lost`, and a second time does nothing."""
    ground = at_the_old_release(
        make_ground, reviews_project, environment="production", policy={"mode": "automatic"}
    )
    ground.deploy()
    people_go_on(ground)
    assert ground.send("signal.firing", **MISSING) == 202
    run = ground.ended_run()
    assert run["state"] == "awaiting_approval", run["statement"]
    assert ground.rollbackd("approve", run["id"], "--plan", run["plan_sha256"]).returncode == 0
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert "bring_back" not in [step["kind"] for step in run["steps"]]
    left = ground.rows("reviews")
    assert len(left) == 20, "the lost ones lie in the archive"
    assert (1, 1, None) in left

    dry = ground.rollbackd("restore", run["id"], "--lost", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.startswith("11 rows and values would be brought back, 1 left")
    assert ground.rows("reviews") == left
    done = ground.rollbackd("restore", run["id"], "--lost", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("11 rows and values brought back, 1 left")
    assert ground.rows("reviews") == expected_reviews()
    again = ground.rollbackd("restore", run["id"], "--lost", "--yes")
    assert again.stdout.startswith("0 rows and values brought back")
    assert ground.rows("reviews") == expected_reviews()


def test_a_loss_that_isnt_the_migrations_doing_is_for_a_person(
    make_ground: MakeGround, harmless_project: Project
) -> None:
    """Run again on the backup, the migration takes nothing away: nothing is rolled back, and the reason says so."""
    ground = at_the_old_release(make_ground, harmless_project)
    ground.deploy()
    ground.query("DELETE FROM reviews WHERE id <= 10")
    assert ground.send("signal.firing", **MISSING) == 202

    def told() -> Any:
        newest = ground.ask("GET", "/api/v1/decisions")[1][:1]
        return newest and newest[0]["decision"]["facts"]["data"] == "loss_not_by_migration" and newest[0]

    decision = wait_until(told, lambda: ground.ask("GET", "/api/v1/decisions")[1])["decision"]
    assert (decision["row"], decision["action"]) == ("data-loss-reported", "investigate")
    assert decision["reasons"]["data"].endswith(
        "the migration, run again on the backup from before it, takes nothing away"
    )
    assert ground.run() == {}
    assert ground.heads() == ["index"]
    assert ground.running() == NEW


def test_without_a_backup_from_before_nothing_is_rolled_back_and_the_reason_says_why(
    make_ground: MakeGround, reviews_project: Project
) -> None:
    """The deploy passed no gate: what the migration took can't be known, so a person looks."""
    ground = at_the_old_release(make_ground, reviews_project)
    said = {"version": NEW, "previous_version": OLD, "deployment": "ci-1"}
    assert ground.send("deploy.started", **said) == 202
    wait_until(lambda: '"state_documented"' in ground.log.read_text(), ground.words)
    reviews_project.alembic(ground.url(), "upgrade", "head")
    ground.runs_version(NEW)
    assert ground.send("deploy.succeeded", **said) == 202
    assert ground.send("signal.firing", **MISSING) == 202
    decision = decision_of(ground, "data-loss-reported")
    assert decision["decision"]["action"] == "investigate"
    reason = decision["decision"]["reasons"]["data"]
    assert "what the migration takes away isn't known" in reason
    assert ground.run() == {}
    assert ground.heads() == ["tidied"]
