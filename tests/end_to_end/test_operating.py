"""Operating the daemon: reloads while a run or a watch is under way, stops that cut nothing, secrets that stay secret."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from tests.app.service_manager import ServiceManager
from tests.conftest import RequireProgram
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, wait_until

from rollbackd.resources import resource

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.xdist_group("operating")]
SLEEP_S = 2
CONFINED = Path(__file__).with_name("confined.py")
FAILURES = ("scripts_not_kept", "no_way_back", "way_back_faulted", "documenting_failed", "library_logged")


def events(ground: Ground, *names: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in ground.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in names]


def reload(ground: Ground) -> dict[str, Any]:
    done = ground.rollbackd("reload", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# -- reload --------------------------------------------------------------------------------------------------------------


def test_a_run_under_way_ends_as_it_began_and_the_next_one_takes_the_new_configuration(shop: Ground) -> None:
    shop.configure(deployment={"environment": {"MOMENT_S": "2"}})
    start_command = shop.target["deployment"]["start"]
    daemon = shop.start()
    shop.ask_rollback("nickname")
    wait_until(lambda: shop.commands() == ["stop"], shop.words)
    # The new one couldn't start the application, nor find the backup again.
    shop.configure(
        deployment={"start": {"command": ["/bin/false"], "done_when": ["/bin/false"]}, "environment": {}},
        backup={"directory": str(shop.folder / "other-backups")},
    )
    answer = reload(shop)
    assert answer["changed"] == ["targets.shop"]
    assert "until what is under way on it is done" in answer["waiting"]["shop"]
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert shop.commands() == ["stop", f"start {OLD}"]
    wait_until(lambda: events(shop, "target_changed"), shop.words)
    order = [line["event"] for line in events(shop, "run_ended", "target_changed")]
    assert order == ["run_ended", "target_changed"]
    assert reload(shop) == {"changed": [], "waiting": {}}

    shop.configure(policy={"cool_down": "0s"})
    assert reload(shop) == {"changed": ["targets.shop"], "waiting": {}}
    shop.runs_version(NEW)
    shop.ask_rollback("customers")
    run = shop.ended_run()
    assert (shop.folder / "other-backups" / "shop").is_dir()
    assert run["state"] == "held"
    # What holds it is mended in the configuration, and the run goes on with that; nothing was restarted.
    shop.configure(deployment={"start": start_command})
    assert reload(shop)["waiting"] == {}
    assert shop.rollbackd("resume", run["id"]).returncode == 0
    wait_until(lambda: shop.run()["state"] == "succeeded", shop.words)
    assert shop.heads() == ["customers"]
    assert daemon.poll() is None


def test_a_watched_deployment_is_judged_by_the_new_policy(make_ground: MakeGround, tmp_path: Path) -> None:
    ground = make_ground(two_revisions(tmp_path / "project"))
    ground.project.alembic(ground.url(), "upgrade", "first")
    ground.configure(policy={"mode": "shadow"})
    ground.runs_version(OLD)
    ground.start()
    (ground.service / "broken").write_text(NEW)
    ground.deploy()

    def shadowed() -> bool:
        return any("shadow" in d["outcome"] for d in ground.ask("GET", "/api/v1/decisions")[1])

    wait_until(shadowed, ground.words)
    ground.configure(policy={"mode": "automatic"})
    reload(ground)
    run = ground.ended_run()
    assert (run["state"], run["trigger"]) == ("succeeded", "automatic"), run["statement"]
    assert ground.heads() == ["first"]
    assert len(events(ground, "deployment_started")) == 1


# -- stopping ------------------------------------------------------------------------------------------------------------


def two_revisions(folder: Path, downgrade: str = "") -> Project:
    project = Project(folder)
    project.revision("first", "op.execute('CREATE TABLE a (id int PRIMARY KEY)')", "op.drop_table('a')")
    project.revision(
        "second", "op.execute('CREATE TABLE b (id int PRIMARY KEY)')", f"{downgrade}\nop.drop_table('b')"
    )
    return project


def slow_pg_dump(ground: Ground) -> Path:
    """The server's tools, with a pg_dump that takes its time over a backup and leaves `dumping` meanwhile."""
    tools = ground.folder / "tools"
    tools.mkdir()
    real = ground.server.bin_directory
    (tools / "pg_restore").symlink_to(real / "pg_restore")
    (tools / "pg_dump").write_text(
        dedent(f"""\
        #!/bin/sh
        case "$*" in *--snapshot*) touch {ground.folder}/dumping; sleep {SLEEP_S};; esac
        exec {real}/pg_dump "$@"
        """)
    )
    (tools / "pg_dump").chmod(0o755)
    return tools


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    listening = ServiceManager(tmp_path)
    yield listening
    listening.close()


@pytest.mark.parametrize("step", ["back_up", "downgrade"])
def test_a_stop_never_cuts_a_dump_or_a_downgrade_and_asks_systemd_for_the_time(
    make_ground: MakeGround, manager: ServiceManager, tmp_path: Path, step: str
) -> None:
    sleeps = f"op.execute('SELECT pg_sleep({SLEEP_S})')" if step == "downgrade" else ""
    ground = make_ground(two_revisions(tmp_path / "project", sleeps))
    ground.project.alembic(ground.url(), "upgrade", "head")
    if step == "back_up":
        ground.configure(database={"binaries": str(slow_pg_dump(ground))})
    daemon = ground.start(more_environment=manager.environment)
    ground.ask_rollback("first")
    sleeping = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{ground.database}' AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
    wait_until(
        lambda: (ground.folder / "dumping").exists() if step == "back_up" else ground.query(sleeping),
        ground.words,
    )
    daemon.send_signal(signal.SIGTERM)
    manager.hear_until("STOPPING=1")
    told = manager.hear_until("EXTEND_TIMEOUT_USEC=")
    assert "STATUS=stopping: the step that is under way is finished first" in told
    assert daemon.wait(60) == 0

    assert ground.leftovers() == []
    assert ground.heads() == (["first"] if step == "downgrade" else ["second"])
    assert len(ground.backups("rollback")) == 1
    shutil.rmtree(ground.folder / "tools", ignore_errors=True)
    if step == "back_up":
        ground.configure(database={"binaries": str(ground.server.bin_directory)})
    ground.start()
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    journal = [(run["plan"]["steps"][r["step"]]["kind"], r["phase"]) for r in run["journal"]]
    assert [entry for entry in journal if entry[0] == step] == [(step, "intent"), (step, "done")]
    assert len(ground.backups("rollback")) == 1


# -- the unit's system calls ---------------------------------------------------------------------------------------------


def test_a_gate_and_a_run_need_no_system_call_that_the_unit_forbids(
    make_ground: MakeGround, tmp_path: Path, require_program: RequireProgram
) -> None:
    """Gate, dump, proof, rehearsal, migration worker, commands: all of it under the unit's filters."""
    require_program("systemd-analyze")
    ground = make_ground(two_revisions(tmp_path / "project"))
    ground.project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    unit = resource("systemd", "rollbackd.service")
    daemon = ground.start(launcher=(sys.executable, str(CONFINED), str(unit)))
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    ground.deploy()
    assert ground.ask_rollback("first")[0] == 200
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert ground.heads() == ["first"]
    assert ground.running() == OLD
    assert events(ground, *FAILURES) == []


# -- secrets -------------------------------------------------------------------------------------------------------------

PLANTED = "planted"


def test_a_secret_never_reaches_log_answers_or_store(shop: Ground) -> None:
    """A wrong password, a worker that shouts its key, an address that is a secret, tokens and signatures that are wrong."""
    secret = {name: shop.secret(name, f"{PLANTED}/{name} of it") for name in ("wrong", "shouted")}
    address = shop.secret("address", f"http://127.0.0.1:1/{PLANTED}?key={PLANTED}")
    shop.start()
    shop.configure(
        migrations={
            "python": ["/bin/sh", "-c", 'echo "broke with $KEY and postgresql://u:$KEY@h/db" >&2; exit 3', "sh"],
            "secret_environment": {"KEY": secret["shouted"]},
        }
    )  # fmt: skip
    shop.config.write_text(f"notify = {{ url = {json.dumps(address)} }}\n" + shop.config.read_text())
    reload(shop)
    said = [shop.rollbackd("gate", "shop", "--version", NEW, "--deployment", "1")]
    assert "broke with ***" in said[0].stdout + said[0].stderr
    wait_until(lambda: events(shop, "scripts_not_kept"), shop.words)

    shop.configure(database={"password": secret["wrong"]})
    shop.config.write_text(f"notify = {{ url = {json.dumps(address)} }}\n" + shop.config.read_text())
    reload(shop)
    wait_until(lambda: events(shop, "heads_unreadable", "documenting_failed"), shop.words)
    said += [shop.rollbackd(*command) for command in (("check-config",), ("plan", "shop"), ("status",))]
    assert "password authentication failed" in said[1].stdout
    for path in ("/api/v1/targets", f"/api/v1/runs/{PLANTED}-run"):
        assert shop.ask("GET", path, token=f"rbd_{PLANTED}")[0] == 401
    assert shop.ask("POST", f"/hooks/{PLANTED}?key={PLANTED}", token=PLANTED)[0] == 404
    assert shop.ask("POST", "/hooks/rollbackd", {"kind": PLANTED}, token=PLANTED)[0] == 401
    shop.stop()

    assert PLANTED not in shop.log.read_text()
    assert PLANTED not in "".join(done.stdout + done.stderr for done in said)
    kept = b"".join(path.read_bytes() for path in (shop.folder / "store").glob("rollbackd.sqlite*"))
    assert PLANTED.encode() not in kept
    assert "Traceback" not in shop.log.read_text()


def test_a_database_that_is_away_is_said_once_and_not_at_each_look(shop: Ground) -> None:
    shop.configure(policy={"bake_time": "60s"})
    shop.start()
    shop.send("deploy.started", version=NEW, previous_version=OLD, deployment="1")
    wait_until(lambda: events(shop, "state_documented"), shop.words)
    shop.query(f"ALTER DATABASE {shop.database} ALLOW_CONNECTIONS false", "postgres")
    shop.query(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{shop.database}'",
        "postgres",
    )
    wait_until(lambda: events(shop, "heads_unreadable"), shop.words)
    looks = len(events(shop, "heads_unreadable"))
    # Several looks later nothing was added.
    wait_until(lambda: measurements(shop) > 30, shop.words)
    said = events(shop, "heads_unreadable")
    assert len(said) <= looks + 1, said
    assert all("exception" not in line for line in said)
    shop.query(f"ALTER DATABASE {shop.database} ALLOW_CONNECTIONS true", "postgres")


def measurements(ground: Ground) -> int:
    text = str(ground.ask("GET", "/metrics")[1])
    found = [line for line in text.splitlines() if line.startswith("rollbackd_evidence_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in found)
