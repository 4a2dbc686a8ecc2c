"""The command line as people and CD systems meet it: help, exit codes, JSON, prompts, and what each command does."""

import getpass
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.end_to_end.conftest import MakeGround
from tests.end_to_end.ground import NEW, OLD, Ground, Project, environment, wait_until

pytestmark = pytest.mark.timeout(180)

# Every command and the options that its help names.
COMMANDS: dict[str, tuple[str, ...]] = {
    "serve": (),
    "check-config": ("--offline", "--json"),
    "reload": ("--json",),
    "tokens create": ("--role", "--json"),
    "tokens revoke": ("--json",),
    "tokens list": ("--json",),
    "demo": ("--scenario", "--all", "--json"),
    "status": ("--watch", "--json"),
    "history": ("--limit", "--state", "--since", "--json"),
    "explain": ("--json",),
    "report": ("--format", "--output"),
    "plan": ("--to", "--release", "--sql", "--json"),
    "rehearse": ("--to", "--depth", "--json"),
    "rollback": ("--to", "--reason", "--incident", "--release", "--yes", "--sql", "--no-wait", "--json"),
    "approve": ("--reason", "--plan", "--json"),
    "deny": ("--reason", "--json"),
    "resume": ("--stamp", "--json"),
    "abandon": ("--reason", "--json"),
    "gate": ("--version", "--previous-version", "--deployment", "--to-revision", "--json"),
    "pause": ("--reason", "--for", "--json"),
    "unpause": ("--json",),
    "restore": ("--dry-run", "--sql", "--lost", "--yes", "--json"),
    "archives list": ("--run", "--json"),
    "archives prune": ("--json",),
    "backups list": ("--json",),
    "backups verify": ("--level", "--json"),
    "backups prune": ("--json",),
    "completion": (),
    "verify-migrations": (
        "--directory",
        "--ini",
        "--python",
        "--url",
        "--version-table",
        "--version-table-schema",
        "--scratch",
        "--scratch-password",
        "--from",
        "--rows",
        "--baseline",
        "--write-baseline",
        "--allow",
        "--forbid-loss",
        "--format",
    ),
}
ME = f"local:{getpass.getuser()}"
ROLLBACK = ("rollback", "shop", "--to", "customers", "--reason", "checkout is down", "--release", OLD)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said of its failure: one line, and never a traceback."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("rollbackd: ")
    return line.removeprefix("rollbackd: ")


# -- help and usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_and_takes(command: str) -> None:
    """A sentence, and each option with its meaning or its name alone; no configuration is needed for that."""
    from click.testing import CliRunner

    from rollbackd.cli.main import commands

    shown = CliRunner().invoke(commands, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert f"{command} [OPTIONS]" in shown.output
    options = shown.output.partition("\nOptions:\n")[2].partition("\n\n")[0]
    named = [w for line in options.splitlines() for w in line.split()[:1] if w.startswith("--")]
    assert tuple(named) == COMMANDS[command]
    assert shown.output.partition("\n\n")[2].strip().partition(".")[0].strip()


def test_the_list_of_commands_above_is_whole() -> None:
    """A command that is added has its help tried too."""
    from click import Group

    from rollbackd.cli.main import COMMANDS as THERE
    from rollbackd.cli.main import commands

    found = set()
    for name in THERE:
        command = commands.get_command(None, name)  # type: ignore[arg-type]
        found |= {f"{name} {sub}" for sub in command.commands} if isinstance(command, Group) else {name}
    assert found == set(COMMANDS)


def test_the_configuration_may_be_named_by_the_environment(shop: Ground) -> None:
    """As the help says: $ROLLBACKD_CONFIG, where --config isn't given."""
    done = subprocess.run(
        [sys.executable, "-m", "rollbackd", "check-config", "--offline"],
        env={**environment(), "ROLLBACKD_CONFIG": str(shop.config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert f"{shop.config}: 1 target, " in done.stdout


# -- exit codes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ("rollback", "shop"),
        ("no-such-command",),
        ("history", "--limit", "0"),
        ("pause", "--reason", "why", "--for", "soon"),
        ("history", "--since", "soon"),
        ("history", "--since", "2026-11-22T10:00"),
        ("report", "run-1", "--format", "pdf"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(shop: Ground, argv: tuple[str, ...]) -> None:
    """And says what was wrong, on stderr."""
    done = shop.rollbackd(*argv)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_a_bad_configuration_exits_with_78_and_names_every_problem(shop: Ground) -> None:
    """Each with its path and what would be right, in one go."""
    shop.configure(
        database={"url": "mysql://root@localhost/shop"}, policy={"backup_level": 9, "mod": "automatic"}
    )
    done = shop.rollbackd("check-config", "--offline")
    assert done.returncode == 78
    assert "targets[0].policy" in done.stderr
    assert "mod" in done.stderr
    shop.target["policy"].pop("mod")
    shop.configure()
    done = shop.rollbackd("serve")
    assert done.returncode == 78
    assert "targets[0].database.url: mysql isn't supported" in done.stderr
    assert "targets[0].policy.backup_level: from 0 to 5" in done.stderr


def test_a_store_whose_socket_nobody_could_open_is_a_bad_configuration(shop: Ground) -> None:
    """A Unix socket's path is short: that is told before anything is started."""
    text = shop.config.read_text()
    shop.config.write_text(text.replace(f"{shop.folder}/store", f"{shop.folder}/{'long' * 30}"))
    done = shop.rollbackd("serve")
    assert done.returncode == 78
    assert last_line(done).startswith("store.directory: ")
    assert "take a shorter folder" in done.stderr


def test_a_held_run_exits_with_3_and_can_be_resumed_or_abandoned(shop: Ground) -> None:
    """A check of the owner's own fails after the downgrade; the report of the run says so."""
    shop.configure(checks=[{"name": "never", "sql": "SELECT name FROM customers LIMIT 1"}])
    done = shop.rollbackd(*ROLLBACK, "--yes", "--json")
    assert done.returncode == 3
    run = json.loads(done.stdout)
    assert run["state"] == "held"
    assert "own:never: 1 rows, and there should be none" in run["statement"]
    assert shop.heads() == ["customers"]

    assert shop.rollbackd("resume", run["id"]).returncode == 3
    assert "own:never" in shop.rollbackd("report", run["id"]).stdout
    abandoned = shop.rollbackd("abandon", run["id"], "--reason", "by hand", "--json")
    assert abandoned.returncode == 0
    assert json.loads(abandoned.stdout)["state"] == "abandoned"
    assert shop.rows("downgrades", "attempt") == [(1,), (2,)]


def test_an_approval_is_awaited_with_4_and_denied_or_given(shop: Ground) -> None:
    """`local` can't approve what `local` asked for; denying is everybody's."""
    shop.configure(policy={"approval_required": True})
    asked = shop.rollbackd(*ROLLBACK, "--yes", "--json")
    assert asked.returncode == 4
    run = json.loads(asked.stdout)
    assert run["state"] == "awaiting_approval"
    own = shop.rollbackd("approve", run["id"])
    assert own.returncode == 1
    assert "somebody else has to approve it" in last_line(own)
    denied = shop.rollbackd("deny", run["id"], "--reason", "not now", "--json")
    assert denied.returncode == 0
    assert json.loads(denied.stdout)["statement"] == f"denied by {ME}: not now"
    assert shop.heads() == ["visits"]

    shop.start()
    token = shop.rollbackd("tokens", "create", "ci", "--role", "operate").stdout.strip()
    body = {"target": "shop", "to": "customers", "reason": "why", "release": OLD}
    run = shop.ask("POST", "/api/v1/rollbacks", body, token=token)[1]
    approved = shop.rollbackd("approve", run["id"], "--plan", run["plan_sha256"])
    assert approved.returncode == 0, approved.stderr
    assert shop.heads() == ["customers"]


@pytest.mark.parametrize(
    "argv", [("plan", "nobody"), ("status", "nobody"), ("report", "run-0"), ("explain", "x")]
)
def test_what_isnt_there_exits_with_1_and_names_it(shop: Ground, argv: tuple[str, str]) -> None:
    """A target, a run, a decision."""
    assert shop.rollbackd("pause", "--reason", "so that there is a store").returncode == 0
    done = shop.rollbackd(*argv)
    assert done.returncode == 1
    assert argv[1] in last_line(done)


# -- rolling back ------------------------------------------------------------------------------------------------------


def test_a_plan_and_a_dry_run_change_nothing_and_their_sql_is_the_downgrade(shop: Ground) -> None:
    """The statements of `--sql`, run by hand, lead to the very schema that is wanted."""
    before = shop.world()
    dry = shop.rollbackd(*ROLLBACK, "--sql")
    planned = shop.rollbackd("plan", "shop", "--to", "customers", "--release", OLD, "--sql")
    assert dry.returncode == planned.returncode == 0
    assert dry.stdout == planned.stdout
    assert shop.world() == before
    assert shop.rollbackd("history", "--json").stdout.strip() == "[]"

    shop.query(dry.stdout)
    assert {(table, column) for _, table, column, *_ in shop.world()["columns"]} == {
        ("alembic_version", "version_num"),
        ("customers", "id"),
        ("customers", "name"),
        ("downgrades", "attempt"),
        ("downgrades", "revision"),
    }


def test_without_a_daemon_a_rollback_is_done_here_and_followed(shop: Ground) -> None:
    """With --yes nothing is asked; each step is shown, and the last line names the report."""
    customers = shop.rows("customers", "id, name")
    done = shop.rollbackd(*ROLLBACK, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["done", "back", "up", "the", "whole", "database"] in [line[2:8] for line in lines]
    assert lines[-1][:3] == ["report:", "rollbackd", "report"]
    report = shop.rollbackd("report", lines[-1][-1]).stdout
    assert "Rolled back and validated: shop, visits → customers" in report
    assert shop.rows("customers") == customers
    assert shop.running() == OLD


def test_two_never_work_on_one_store(shop: Ground) -> None:
    """A command that can't find the daemon's socket finds its lock: nothing is done beside it."""
    shop.start()
    (shop.folder / "store" / "rollbackd.sock").unlink()
    before = shop.world()
    done = shop.rollbackd(*ROLLBACK, "--yes")
    assert done.returncode == 1
    assert str(shop.folder / "store") in last_line(done)
    assert shop.world() == before


@pytest.mark.parametrize(
    ("answers", "code", "found"),
    [
        ("y\ny\nshop\n", 0, "succeeded"),
        ("y\nn\n", 1, "nothing was done"),
        ("y\ny\nshopp\n", 1, "the name doesn't fit; nothing was done"),
        ("", 1, "nobody answered, so nothing was done"),
    ],
    ids=["all answered", "a point isn't met", "another target's name", "nobody answers"],
)
def test_the_checklist_is_answered_point_by_point(shop: Ground, answers: str, code: int, found: str) -> None:
    """Without --yes: who was told, what is destroyed, the target's name; anything else stops with nothing done."""
    done = shop.rollbackd(*ROLLBACK, stdin=answers)
    assert done.returncode == code, done.stderr
    assert "Have you told the people who use it?" in done.stdout
    assert found in done.stdout + done.stderr
    assert shop.heads() == (["customers"] if code == 0 else ["visits"])
    assert shop.running() == (OLD if code == 0 else NEW)


def test_through_the_daemon_a_rollback_is_followed_too(shop: Ground) -> None:
    """The daemon does it; the command shows its steps and exits with its outcome."""
    shop.start()
    done = shop.rollbackd(*ROLLBACK, "--yes")
    assert done.returncode == 0, done.stderr
    assert "done    start 1.0" in done.stdout
    assert shop.heads() == ["customers"]
    quick = shop.rollbackd(*ROLLBACK, "--yes", "--no-wait")
    assert quick.returncode == 1
    assert "the database is at customers already" in last_line(quick)


# -- bringing back -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rolled_back(shop: Ground) -> tuple[Ground, str, dict[str, Any]]:
    """The shop after a rollback, the run's id, and the rows as they were before it."""
    before = {"customers": shop.rows("customers", "id, name, nickname"), "visits": shop.rows("visits")}
    done = shop.rollbackd(*ROLLBACK, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    return shop, json.loads(done.stdout)["id"], before


def fix(shop: Ground) -> None:
    """The fixed migration is in: the same columns and tables, without their rows."""
    shop.query("ALTER TABLE customers ADD COLUMN nickname text")
    shop.query("CREATE TABLE visits (id int PRIMARY KEY, page text)")


def test_what_a_rollback_took_away_is_listed_and_brought_back_once_the_fixed_migration_is_in(
    rolled_back: tuple[Ground, str, dict[str, Any]],
) -> None:
    """First nothing is there that could take it; then a dry run changes nothing, and a second restore finds nothing."""
    shop, run, before = rolled_back
    listed = json.loads(shop.rollbackd("archives", "list", "shop", "--json").stdout)
    assert sorted((a["kind"], a["table"], a["column"], a["rows"]) for a in listed) == [
        ("column", "public.customers", "nickname", 40_000),
        ("table", "public.visits", "", 20_000),
    ]
    assert run in shop.rollbackd("archives", "list", "shop", "--run", run).stdout
    assert json.loads(shop.rollbackd("archives", "list", "shop", "--run", "x", "--json").stdout) == []
    early = json.loads(shop.rollbackd("restore", run, "--dry-run", "--json").stdout)
    assert early["restored"] == 0
    assert all(entry["reasons"] for entry in early["entries"])

    fix(shop)
    world = shop.world()
    dry = shop.rollbackd("restore", run, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "60,000 rows and values would be brought back, 0 left" in dry.stdout
    assert shop.world() == world

    # Somebody has written since: that is newer, and stays.
    shop.query("UPDATE customers SET nickname = 'Ace' WHERE id = 1")
    shop.query("INSERT INTO visits VALUES (1, 'a newer page')")
    done = shop.rollbackd("restore", run, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    brought = json.loads(done.stdout)
    assert (brought["dry_run"], brought["restored"], brought["left"]) == (False, 59_998, 2)
    customers = [(1, before["customers"][0][1], "Ace"), *before["customers"][1:]]
    assert shop.rows("customers", "id, name, nickname") == customers
    assert shop.rows("visits") == [(1, "a newer page"), *before["visits"][1:]]

    world = shop.world()["rows"]
    again = shop.rollbackd("restore", run, "--yes", "--json")
    assert json.loads(again.stdout)["restored"] == 0
    for table in ('"public"."customers"', '"public"."visits"'):
        assert shop.world()["rows"][table] == world[table]
    report = shop.rollbackd("report", run).stdout
    assert f"rollbackd restore {run}" in report
    assert "not yet" not in report


def test_bringing_back_asks_first_and_goes_through_the_daemon_where_one_runs(
    rolled_back: tuple[Ground, str, dict[str, Any]],
) -> None:
    """Without --yes it says what it would do, and does it only when somebody says so."""
    shop, run, before = rolled_back
    fix(shop)
    world = shop.world()
    for answer, said in (("n\n", "nothing was done"), ("", "nobody answered, so nothing was done")):
        refused = shop.rollbackd("restore", run, stdin=answer)
        assert refused.returncode == 1
        assert "60,000 rows and values would be brought back" in refused.stdout
        assert "Bring back 60,000 rows and values?" in refused.stderr
        assert f"rollbackd: {said}" in refused.stderr
    assert shop.world() == world
    shop.start()
    done = shop.rollbackd("restore", run, stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert "60,000 rows and values brought back" in done.stdout
    assert shop.rows("visits") == before["visits"]
    assert "nothing is left to bring back" in shop.rollbackd("restore", run, stdin="y\n").stdout
    assert "0 dropped" in shop.rollbackd("archives", "prune").stdout


def test_the_sql_of_a_restore_run_by_hand_brings_back_the_same(
    rolled_back: tuple[Ground, str, dict[str, Any]],
) -> None:
    """For whoever would rather use psql; printing it changes nothing."""
    shop, run, before = rolled_back
    fix(shop)
    world = shop.world()
    printed = shop.rollbackd("restore", run, "--sql")
    assert printed.returncode == 0, printed.stderr
    assert shop.world() == world
    shop.query(printed.stdout)
    assert shop.rows("customers", "id, name, nickname") == before["customers"]
    assert shop.rows("visits") == before["visits"]


def test_old_archives_are_dropped_and_said(rolled_back: tuple[Ground, str, dict[str, Any]]) -> None:
    """After `archive.keep`; the last one takes the schema along."""
    shop, run, _ = rolled_back
    assert "0 dropped" in shop.rollbackd("archives", "prune").stdout
    shop.query("UPDATE rollbackd_archive.entries SET made_at = now() - interval '2 years'")
    pruned = shop.rollbackd("archives", "prune")
    assert pruned.returncode == 0, pruned.stderr
    assert "2 dropped" in pruned.stdout
    assert "(20000 rows of public.visits)" in pruned.stdout
    assert shop.query("SELECT to_regnamespace('rollbackd_archive')") == [(None,)]
    gone = shop.rollbackd("restore", run, "--yes")
    assert gone.returncode == 1
    assert f"the run {run} keeps nothing" in last_line(gone)


def test_a_lost_stamp_is_moved_on_a_persons_word_alone(make_ground: MakeGround, tmp_path: Path) -> None:
    """A downgrade whose stamp didn't move: held and told; `resume` changes nothing, `resume --stamp` settles it."""
    project = Project(tmp_path / "project")
    project.revision("first", "op.create_table('t', sa.Column('id', sa.Integer))", "op.drop_table('t')")
    project.revision("second", "op.add_column('t', sa.Column('c', sa.Text))", "op.drop_column('t', 'c')")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "head")
    # On the guarded database alone, and while the switch is on, the version row keeps what it says.
    ground.query("CREATE TABLE switch (is_on boolean)")
    ground.query("INSERT INTO switch VALUES (true)")
    ground.query(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF current_database() = '{ground.database}' AND (SELECT is_on FROM switch) THEN RETURN old; END IF;"
        " RETURN new; END $$"
    )
    ground.query("CREATE TRIGGER keep BEFORE UPDATE ON alembic_version FOR EACH ROW EXECUTE FUNCTION keep()")
    argv = ("rollback", "shop", "--to", "first", "--reason", "why", "--release", OLD, "--yes", "--json")
    done = ground.rollbackd(*argv)
    assert done.returncode == 3, done.stderr
    run = json.loads(done.stdout)
    assert "the stamp is lost, the changes are not" in run["statement"]
    assert f"'rollbackd resume {run['id']} --stamp'" in run["statement"]
    assert (ground.heads(), ground.running()) == (["second"], "")

    assert ground.rollbackd("resume", run["id"]).returncode == 3
    assert ground.heads() == ["second"]
    # Not over a schema that isn't exactly the rehearsed one.
    ground.query("CREATE TABLE somebodys (id int)")
    refused = ground.rollbackd("resume", run["id"], "--stamp")
    assert refused.returncode == 1
    assert last_line(refused).startswith("the stamp isn't moved")
    ground.query("DROP TABLE somebodys")
    ground.query("UPDATE switch SET is_on = false")
    settled = ground.rollbackd("resume", run["id"], "--stamp", "--json")
    assert settled.returncode == 0, json.loads(settled.stdout)["statement"]
    assert json.loads(settled.stdout)["state"] == "succeeded"
    assert (ground.heads(), ground.running()) == (["first"], OLD)


# -- looking back ------------------------------------------------------------------------------------------------------


def test_what_happened_can_be_read_from_the_store(make_ground: MakeGround, tmp_path: Path) -> None:
    """After an automatic rollback: status, history, explain, report, backups, as text and as JSON, daemon or not."""
    project = Project(tmp_path / "project")
    project.revision("first", "op.create_table('t', sa.Column('id', sa.Integer))", "op.drop_table('t')")
    project.revision("second", "op.add_column('t', sa.Column('c', sa.Text))", "op.drop_column('t', 'c')")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    ground.start()
    (ground.service / "broken").write_text(NEW)
    ground.deploy()
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]

    def read(*argv: str) -> Any:
        done = ground.rollbackd(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout) if "json" in argv[-1] else done.stdout

    for _ in ("beside the daemon", "without it"):
        (status,) = read("status", "--json")
        assert (status["name"], status["run"]["id"]) == ("shop", run["id"])
        assert {step["stands"] for step in status["course"]} == {"done"}
        assert run["id"] in read("status")

        history = read("history", "shop", "--json")
        assert {run["id"], run["decision"]} <= {row["id"] for row in history}
        assert run["id"] in read("history")
        (alone,) = read("history", "--state", "succeeded", "--since", "1h", "--json")
        assert (alone["id"], alone["from_heads"], alone["to_heads"]) == (run["id"], ["second"], ["first"])
        assert read("history", "--since", "2100-01-01T00:00Z", "--json") == []

        explained = read("explain", run["id"], "--json")
        assert explained["decision"]["row"] == "application-fails-after-good-migration"
        assert explained["inputs"]["heads_before"] == ["first"]
        assert explained["turns"]["application"]["action"] == "keep"
        assert explained["gate_way"]["single"] == []
        text = read("explain", run["decision"])
        assert text.startswith(f"roll_back_with_deployment: run {run['id']}\n")
        assert "row 6 of 16, application-fails-after-good-migration: The migration went well" in text
        assert "keep, if healthy" in text
        assert "no gate is in the way" in text
        assert all(
            f"gate {gate}" in text for gate in ("backup", "rehearsal", "lock", "data_loss", "approval")
        )

        report = read("report", run["id"], "--format", "json")
        assert report["status"] == "succeeded"
        assert run["id"] in read("report", run["id"])
        backups = read("backups", "list", "--json")
        assert {b["purpose"] for b in backups} == {"gate", "rollback"}
        ground.stop()
    verified = ground.rollbackd("backups", "verify", backups[0]["id"])
    assert verified.returncode == 0, verified.stderr
    written = tmp_path / "report.md"
    assert ground.rollbackd("report", run["id"], "--output", str(written)).returncode == 0
    assert run["id"] in written.read_text()


def test_check_config_tries_everything_and_prints_json(shop: Ground) -> None:
    """Database, roles, interpreter, tools and commands, each by name; a program that is missing fails it."""
    done = shop.rollbackd("check-config", "--json")
    assert done.returncode == 0, done.stdout
    checks = {finding["check"]: finding["outcome"] for finding in json.loads(done.stdout)["shop"]}
    assert {"database", "migrations", "backup.tools", "backup.disk", "deployment.stop"} <= set(checks)
    assert set(checks.values()) <= {"passed", "warned"}

    shop.target["deployment"]["stop"]["command"] = ["/nowhere/stop"]
    shop.configure()
    done = shop.rollbackd("check-config")
    assert done.returncode == 1
    assert "/nowhere/stop isn't an executable here" in done.stdout


# -- tokens, pauses, signals -------------------------------------------------------------------------------------------


def test_a_token_works_until_it_is_revoked_and_for_its_roles_alone(shop: Ground) -> None:
    """Made without a daemon, revoked through it; its secret is printed once and never again."""
    token = shop.rollbackd("tokens", "create", "reader", "--role", "read").stdout.strip()
    shop.start()
    assert shop.ask("GET", "/api/v1/targets", token=token)[0] == 200
    assert shop.ask("POST", "/api/v1/pause", {"reason": "why"}, token=token)[0] == 403
    listed = shop.rollbackd("tokens", "list", "--json").stdout
    assert json.loads(listed)[0]["roles"] == ["read"]
    assert token not in listed

    assert shop.rollbackd("tokens", "revoke", "reader").returncode == 0
    assert shop.ask("GET", "/api/v1/targets", token=token)[0] == 401
    again = shop.rollbackd("tokens", "revoke", "reader")
    assert again.returncode == 1
    assert "there is no token reader" in last_line(again)


def test_a_pause_stops_automation_and_not_people(make_ground: MakeGround, tmp_path: Path) -> None:
    """While paused a bad deploy is recorded and left; a person rolls it back all the same."""
    ground = paused_with_a_bad_deploy(make_ground, tmp_path)
    assert f"UTC by {ME}: maintenance" in ground.rollbackd("status").stdout
    assert ground.ask("GET", "/api/v1/runs")[1] == []
    done = ground.rollbackd("rollback", "shop", "--to", "first", "--reason", "checkout is down", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ground.heads() == ["first"]
    assert ground.running() == OLD


def test_an_unpause_lets_automation_go_on(make_ground: MakeGround, tmp_path: Path) -> None:
    """The deploy that was left alone is decided on anew."""
    ground = paused_with_a_bad_deploy(make_ground, tmp_path)
    assert "automation goes on" in ground.rollbackd("unpause").stdout
    run = ground.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert ground.heads() == ["first"]
    assert "nothing was paused" in ground.rollbackd("unpause").stdout


def paused_with_a_bad_deploy(make_ground: MakeGround, folder: Path) -> Ground:
    project = Project(folder / "project")
    project.revision("first", "op.create_table('t', sa.Column('id', sa.Integer))", "op.drop_table('t')")
    project.revision("second", "op.add_column('t', sa.Column('c', sa.Text))", "op.drop_column('t', 'c')")
    ground = make_ground(project)
    project.alembic(ground.url(), "upgrade", "first")
    ground.runs_version(OLD)
    ground.start()
    assert ground.rollbackd("pause", "--reason", "maintenance", "--for", "2h").returncode == 0
    (ground.service / "broken").write_text(NEW)
    ground.deploy()

    def refused() -> bool:
        decisions = ground.ask("GET", "/api/v1/decisions")[1]
        return any("paused automation" in d["outcome"] for d in decisions)

    wait_until(refused, ground.words)
    assert ground.heads() == ["second"]
    return ground


def test_sigterm_lets_a_step_finish_and_the_next_start_goes_on(shop: Ground) -> None:
    """The step under way is finished, the next isn't begun, the daemon ends with 0; then the run goes on from there."""
    shop.configure(deployment={"environment": {"MOMENT_S": "2"}})
    daemon = shop.start()
    shop.ask_rollback("customers")
    wait_until(lambda: shop.commands() == ["stop"], shop.words)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    assert shop.running() == ""
    (status,) = json.loads(shop.rollbackd("status", "--json").stdout)
    assert status["run"]["state"] == "running"
    stands = [step["stands"] for step in status["course"]]
    assert stands == ["done"] * 4 + ["not_begun"] * 5

    shop.configure(deployment={"environment": {}})
    shop.start()
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert shop.commands() == ["stop", f"start {OLD}"]
    assert shop.rows("downgrades", "attempt, revision") == [(1, "visits"), (2, "nickname")]


def test_ctrl_c_lets_a_step_finish_and_a_daemon_goes_on(shop: Ground) -> None:
    """A rollback without a daemon that is interrupted: nothing is cut in the midst, and it says who goes on."""
    shop.configure(deployment={"environment": {"MOMENT_S": "5"}})
    command = [sys.executable, "-m", "rollbackd", "--config", str(shop.config), *ROLLBACK, "--yes"]
    here = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: shop.commands() == ["stop"], "the service is being stopped")
    here.send_signal(signal.SIGINT)
    said = here.communicate(timeout=60)[1]
    assert here.returncode == 130
    assert "'rollbackd serve' goes on with run-" in said
    (status,) = json.loads(shop.rollbackd("status", "--json").stdout)
    assert [step["stands"] for step in status["course"]] == ["done"] * 4 + ["not_begun"] * 5

    shop.start()
    run = shop.ended_run()
    assert run["state"] == "succeeded", run["statement"]
    assert shop.commands() == ["stop", f"start {OLD}"]
