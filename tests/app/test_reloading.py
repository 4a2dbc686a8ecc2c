"""A new configuration in a running daemon: all of it or nothing, at once, and no delivery lost."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.app.test_configuration import DAEMON, GOOD
from tests.app.test_daemon import PATIENCE_S, Daemon

OTHER_KEY = b"o" * 32
SECOND_TARGET = GOOD[GOOD.index("[[targets]]") :].replace('"shop"', '"stock"')


class Reloadable:
    """A daemon and its configuration, which changes."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(folder).wait()
        self.config = self.daemon.config
        self.text = self.config.read_text()

    def change(self, *pairs: tuple[str, str], more: str = "") -> None:
        """Write the first configuration with these changes."""
        text = self.text
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        self.config.write_text(text + more)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.daemon.lines() if line["event"] == name]

    def hang_up(self, ends_as: str = "configuration_reloaded") -> dict[str, Any]:
        """SIGHUP; the event with which the reload ended."""
        known = len(self.events(ends_as))
        self.daemon.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + PATIENCE_S
        while len(self.events(ends_as)) == known:
            assert time.monotonic() < until, self.daemon.log.read_text()
            time.sleep(0.02)
        return self.events(ends_as)[-1]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rollbackd", "--config", str(self.config), *arguments],
            env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def knock(self, hook: str, token: str = "", body: bytes = b"{}") -> int:
        """POST to a hook with a bearer token; the status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.daemon.port}/hooks/{hook}", body, {"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Reloadable]:
    reloadable = Reloadable(tmp_path)
    yield reloadable
    if reloadable.daemon.process.poll() is None:
        reloadable.daemon.process.kill()
        reloadable.daemon.process.wait()


def test_hooks_come_and_go_and_a_key_is_rotated_in_place(running: Reloadable, tmp_path: Path) -> None:
    assert running.knock("alertmanager") == 404
    (tmp_path / "token").touch(mode=0o600)
    (tmp_path / "token").write_text("a token of alertmanager")
    running.change(more=f'[hooks.alertmanager]\nsecrets = ["file:{tmp_path}/token"]\n')
    assert running.hang_up()["changed"] == ["hooks.alertmanager"]
    assert running.knock("alertmanager") == 401
    assert running.knock("alertmanager", "a token of alertmanager") == 204

    (tmp_path / "token").write_text("another token of it")
    assert running.hang_up()["changed"] == ["hooks.alertmanager"]
    assert running.knock("alertmanager", "a token of alertmanager") == 401
    assert running.knock("alertmanager", "another token of it") == 204

    running.change()
    assert running.hang_up()["changed"] == ["hooks.alertmanager"]
    assert running.knock("alertmanager", "another token of it") == 404
    assert running.daemon.post("still here") == 202


def test_a_wrong_configuration_changes_nothing_and_every_problem_is_logged_by_its_path(
    running: Reloadable, tmp_path: Path
) -> None:
    running.change(
        ('format = "json"', 'format = "json"\nlevel = "error"\nlevl = 1'),
        ("[targets.backup]", '[[targets.probes]]\nname = "p"\nurl = "ftp://x"\n[targets.backup]'),
    )
    refused = running.hang_up("configuration_refused")
    found = {line["path"]: line for line in running.events("configuration_problem")}
    assert set(found) == {"logging.levl", "targets[0].probes[0].url"}
    assert found["logging.levl"]["problem"].startswith("unknown key; did you mean 'level'?")
    assert {line["level"] for line in found.values()} == {"error"}
    assert {line["reload"] for line in found.values()} == {refused["reload"]}
    assert running.daemon.post("one") == 202

    # Said again when it is asked again, and to whoever asks by the command.
    running.hang_up("configuration_refused")
    assert len(running.events("configuration_problem")) == 4
    done = running.command("reload")
    assert done.returncode == 78
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == list(found)

    running.change(('format = "json"', 'format = "json"\nlevel = "error"'))
    done = running.command("reload")
    assert (done.returncode, done.stdout) == (0, "in force: logging\n"), done.stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('listen = "127.0.0.1:0"', 'listen = "127.0.0.1:1"'), "server.listen: is 127.0.0.1:0, and can't become 127.0.0.1:1"),
        (('directory = "store"', 'directory = "other"'), "store.directory: is "),
    ],
)  # fmt: skip
def test_what_needs_a_restart_is_refused_with_all_that_came_with_it(
    running: Reloadable, change: tuple[str, str], problem: str
) -> None:
    running.change(change, more=SECOND_TARGET)
    running.hang_up("configuration_refused")
    [said] = running.events("configuration_problem")
    sentence = f"{said['path']}: {said['problem']}"
    assert sentence.startswith(problem)
    assert "while rollbackd runs: restart it, or put the old value back" in sentence
    assert running.events("target_added") == []


def test_a_folder_that_the_command_cannot_find_its_daemon_by_is_named(running: Reloadable) -> None:
    running.change(('directory = "store"', 'directory = "other"'))
    done = running.command("reload")
    assert done.returncode == 1
    assert "other/rollbackd.sock" in done.stderr
    assert "at the old folder: restart it" in done.stderr


def test_a_file_that_is_no_toml_is_refused_by_both_and_the_daemon_goes_on(running: Reloadable) -> None:
    running.config.write_text("= 1")
    running.hang_up("configuration_refused")
    done = running.command("reload")
    assert done.returncode == 78
    assert "is no TOML" in done.stderr
    assert running.daemon.post("one") == 202


def test_targets_come_and_go_with_their_metrics(running: Reloadable) -> None:
    series = 'rollbackd_deployments_watched{environment="staging",target="stock"} 0.0'
    assert series not in running.daemon.get("/metrics")[1]
    running.change(more=SECOND_TARGET)
    done = running.command("reload", "--json")
    assert json.loads(done.stdout) == {"changed": ["targets.stock"], "waiting": {}}
    assert series in running.daemon.get("/metrics")[1]
    until = time.monotonic() + PATIENCE_S
    while not any(line["target"] == "stock" for line in running.events("documenting_failed")):
        assert time.monotonic() < until, "the new target isn't documented"
        time.sleep(0.05)
    running.change()
    assert running.hang_up()["changed"] == ["targets.stock"]
    assert series not in running.daemon.get("/metrics")[1]
    assert running.command("reload").stdout == "nothing has changed\n"


def test_limits_logging_and_matrix_take_effect(running: Reloadable, tmp_path: Path) -> None:
    shipped = (DAEMON.parent / "config" / "decision-matrix.toml").read_text()
    (tmp_path / "matrix.toml").write_text(shipped.replace('name = "minor-bug', 'name = "small-bug'))
    with_matrix = ("[server]", 'matrix = "matrix.toml"\n[server]\nmax_body_bytes = 50')
    running.change(with_matrix, ('format = "json"', 'format = "json"\nlevel = "debug"'))
    assert running.hang_up()["changed"] == ["server", "logging", "matrix"]
    assert running.knock("rollbackd", body=b"x" * 50) == 401
    assert running.knock("rollbackd", body=b"x" * 51) == 413

    (tmp_path / "matrix.toml").write_text("rows = []")
    running.hang_up("configuration_refused")
    assert running.knock("rollbackd", body=b"x" * 51) == 413

    running.change(('format = "json"', 'format = "console"'))
    running.daemon.process.send_signal(signal.SIGHUP)
    until = time.monotonic() + PATIENCE_S
    while "[info     ] configuration_reloaded" not in running.daemon.log.read_text():
        assert time.monotonic() < until, running.daemon.log.read_text()
        time.sleep(0.02)
    assert running.knock("rollbackd", body=b"x" * 51) == 401


def test_no_delivery_is_lost_while_the_configuration_changes(running: Reloadable, tmp_path: Path) -> None:
    (tmp_path / "other-key").touch(mode=0o600)
    (tmp_path / "other-key").write_text("whsec_" + base64.b64encode(OTHER_KEY).decode())
    answers: list[int] = []
    stopping = threading.Event()

    def send() -> None:
        while not stopping.is_set():
            answers.append(running.daemon.post(f"event-{len(answers)}"))

    sending = threading.Thread(target=send)
    sending.start()
    try:
        for turn in range(6):
            key = (
                f'"file:{tmp_path}/key", "file:{tmp_path}/other-key"'
                if turn % 2
                else f'"file:{tmp_path}/key"'
            )
            running.change(
                (f'"file:{tmp_path}/key"', key), ("[server]", f"[server]\nmax_connections = {100 + turn}"),
                more=SECOND_TARGET if turn % 2 else "",
            )  # fmt: skip
            running.hang_up()
            enough, until = len(answers) + 5, time.monotonic() + PATIENCE_S
            while len(answers) < enough:
                assert time.monotonic() < until, "nothing is answered any more"
                time.sleep(0.01)
    finally:
        stopping.set()
        sending.join()
    assert set(answers) == {202}
    counted = f'rollbackd_deliveries_total{{hook="rollbackd",outcome="accepted"}} {float(len(answers))}'
    assert counted in running.daemon.get("/metrics")[1]
    assert running.daemon.stop() == 0


def test_a_reload_without_a_daemon_says_so(tmp_path: Path) -> None:
    (tmp_path / "rollbackd.toml").write_text(GOOD)
    done = subprocess.run(
        [sys.executable, "-m", "rollbackd", "--config", str(tmp_path / "rollbackd.toml"), "reload"],
        env={**os.environ, "PYTHONPATH": str(DAEMON)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no daemon answers at" in done.stderr


def test_each_delivery_is_one_line_that_says_what_came_of_it(running: Reloadable) -> None:
    assert [running.daemon.post("one"), running.daemon.post("one"), running.knock("rollbackd")] == [
        202,
        200,
        401,
    ]
    [new, again] = running.events("delivery_answered")
    assert (new["hook"], new["outcome"], new["events"], new["reason"]) == ("rollbackd", "accepted", 1, "")
    assert (again["outcome"], again["delivery"]) == ("duplicate", new["delivery"])
    [refused] = running.events("delivery_refused")
    assert (refused["hook"], refused["outcome"], refused["reason"]) == (
        "rollbackd",
        "refused",
        "no_signature",
    )
    assert all(0 < line["seconds"] < 60 for line in (new, again, refused))
