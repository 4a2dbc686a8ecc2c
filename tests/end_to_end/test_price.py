"""The price of going back, while a deployment is watched: in `status`, the API and the metrics."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("price")]

VISITS, NICKNAMES = 30, 10


def deployment_of(ground: Ground) -> dict[str, Any]:
    found: dict[str, Any] = ground.ask("GET", "/api/v1/deployments")[1][0]
    return found


def priced(ground: Ground, since: str = "") -> dict[str, Any]:
    """The deployment, once it has a price that was made after that one."""

    def there() -> dict[str, Any] | None:
        deployment = deployment_of(ground)
        return deployment if deployment["price"] and deployment["price"]["at"] > since else None

    return dict(wait_until(there, ground.words))


def metrics(ground: Ground) -> dict[str, float]:
    """The way back's metrics: name, and the closed word where there is one, to the value."""
    text = ground.ask("GET", "/metrics")[1]
    found = {}
    for name, labels, value in re.findall(r"^rollbackd_(way_back\w*)\{(.*?)\} (\S+)$", text, re.MULTILINE):
        word = re.search(r'(?:way|verdict)="(\w+)"', labels)
        assert 'environment="staging"' in labels
        assert 'target="shop"' in labels
        found[f"{name} {word[1]}" if word else name] = float(value)
    return found


def at_rest(shown: dict[str, float]) -> bool:
    """No way is ready, and nothing has a price: not even 0."""
    closed_words = {name.split()[0] for name in shown}
    return set(shown.values()) == {0.0} and closed_words == {
        "way_back",
        "way_back_verdict",
        "way_back_blocked",
    }


def test_the_price_grows_with_what_only_the_new_schema_holds_and_ends_with_the_watch(
    make_ground: MakeGround, tmp_path: Path
) -> None:
    """Nothing to lose at first; forty rows later it says so everywhere, with the pace; when it has gone back, nowhere."""
    project = Project(tmp_path / "project")
    project.revision(
        "first",
        "op.execute('CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL)')\n"
        "op.execute(\"INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 50) n\")",
        "op.drop_table('customers')",
    )
    project.revision(
        "more",
        "op.add_column('customers', sa.Column('nickname', sa.Text))\n"
        "op.execute('CREATE TABLE visits (id int PRIMARY KEY, page text)')",
        "op.drop_table('visits')\nop.drop_column('customers', 'nickname')",
    )
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    ground.start()
    assert ground.rollbackd("status").stdout.count("back now") == 0
    assert at_rest(metrics(ground))

    ground.deploy()
    first = priced(ground)
    assert (first["price"]["rows_only_new"], first["price"]["growth"]) == (0, 0.0)
    assert first["price"]["verdict"] == "reversible"
    assert " 0 rows only the new schema holds" in first["price_text"]
    assert "more a minute" not in first["price_text"]

    ground.query(f"INSERT INTO visits SELECT n, 'page ' || n FROM generate_series(1, {VISITS}) n")
    ground.query(f"UPDATE customers SET nickname = 'nick' WHERE id <= {NICKNAMES}")
    # A daemon that was away plans anew at once, and still counts from the first price.
    ground.stop()
    ground.start()
    now = priced(ground, first["price"]["at"])
    price = now["price"]
    assert (price["rows_only_new"], price["first_rows"]) == (VISITS + NICKNAMES, 0)
    assert price["growth"] > 0
    assert (price["verdict"], price["rows_lost"]) == ("reversible_with_loss", 0)
    assert price["rehearsed"] == "full"
    assert price["total_s"] > price["lock_s"] > 0
    assert price["old_release_works"] is True
    text = now["price_text"]
    assert re.fullmatch(
        r"back now: \d+ s, \d+ ms of lock, 0 rows lost, the old release works on this schema;"
        r" 40 rows only the new schema holds, [\d,]+ more a minute(; cheap until \d\d:\d\d UTC)?",
        text,
    )
    (target,) = ground.ask("GET", "/api/v1/targets")[1]
    assert target["watching"]["version"] == NEW
    assert target["watching"]["price_text"] == text
    assert f"  ↩ {text}" in ground.rollbackd("status").stdout.splitlines()
    (status,) = json.loads(ground.rollbackd("status", "--json").stdout)
    assert status["price_text"] == text

    shown = metrics(ground)
    assert shown["way_back_rows_only_new"] == VISITS + NICKNAMES
    assert shown["way_back_growth_per_minute"] == price["growth"]
    assert shown["way_back_lock_seconds"] == price["lock_s"]
    assert shown["way_back_duration_seconds"] == price["total_s"]
    assert shown["way_back_rows_lost"] == 0
    assert [name for name in shown if name.startswith("way_back ") and shown[name]] == [
        "way_back stop_writes"
    ]
    assert [name for name in shown if name.startswith("way_back_verdict") and shown[name]] == [
        "way_back_verdict reversible_with_loss"
    ]

    assert ground.ask_rollback("first")[0] == 200
    assert ground.ended_run()["state"] == "succeeded"
    wait_until(lambda: deployment_of(ground)["ended_at"], ground.words)
    assert deployment_of(ground)["outcome"] == "rolled_back"
    wait_until(lambda: at_rest(metrics(ground)), lambda: metrics(ground))
    assert "back now" not in ground.rollbackd("status").stdout
    (target,) = ground.ask("GET", "/api/v1/targets")[1]
    assert target["watching"] is None
    # What it was in the end stays with the deployment, for whoever reads its history.
    assert deployment_of(ground)["price"]["rows_only_new"] == VISITS + NICKNAMES


def test_where_there_is_no_way_back_the_price_says_so(make_ground: MakeGround, tmp_path: Path) -> None:
    """Unknown times are absent and not 0: nobody takes a missing number for a cheap one."""
    project = Project(tmp_path / "project")
    project.revision("first", "op.execute('CREATE TABLE a (id int)')", "op.drop_table('a')")
    project.revision(
        "final", "op.execute('CREATE TABLE b (id int)')", "raise NotImplementedError('no way back')"
    )
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    ground.start()
    ground.deploy()
    found = priced(ground)
    assert found["price"]["verdict"] == "irreversible"
    assert found["price_text"].startswith("no way back as things stand: final is declared irreversible")
    shown = wait_until(
        lambda: (m := metrics(ground))["way_back_verdict irreversible"] == 1 and m, lambda: metrics(ground)
    )
    assert shown["way_back_blocked"] == 1
    assert not {"way_back_duration_seconds", "way_back_lock_seconds", "way_back_rows_lost"} & set(shown)
    assert "no way back as things stand" in ground.rollbackd("status").stdout
