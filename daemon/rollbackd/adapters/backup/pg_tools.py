"""PostgreSQL's own pg_dump and pg_restore, run so that no password is ever in argv, environment or log."""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from rollbackd.adapters.postgres.connection import Place
from rollbackd.adapters.secrets import read_secret, without_secrets
from rollbackd.errors import PermanentError, TransientError

# The tools have one exit code for every failure; these words of libpq and the server (LC_ALL=C) tell what may pass.
TRANSIENT_WORDS = (
    "canceling statement due to statement timeout",
    "canceling statement due to lock timeout",
    "could not connect",
    "Connection refused",
    "the database system is",
    "server closed the connection",
    "terminating connection",
    "too many clients",
)


def find_tool(name: str, binaries: str) -> Path:
    """Where a tool is.

    Raises:
        PermanentError: when it isn't in `binaries` (or, where that is empty, on the PATH).
    """
    found = shutil.which(name, path=binaries or None)
    if found is None:
        place = f"in {binaries}" if binaries else "on the PATH"
        raise PermanentError(
            f"{name} isn't {place}: install PostgreSQL's client programs, or set 'database.binaries'"
        )
    return Path(found)


async def tool_version(tool: Path) -> tuple[int, str]:
    """Major version and the whole version line."""
    process = await asyncio.create_subprocess_exec(
        str(tool), "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    line = (await process.communicate())[0].decode().strip()
    found = re.search(r"(\d+)(?:\.\d+)*", line)
    if process.returncode != 0 or found is None:
        raise PermanentError(f"{tool} --version doesn't say its version: {line or 'it failed'}")
    return int(found[1]), line


async def run_tool(
    argv: list[str],
    place: Place,
    folder: Path,
    timeout_s: float,
    on_tick: Callable[[], Awaitable[None]] | None = None,
    application_name: str = "rollbackd",
    *,
    lock: int,
) -> None:
    """Run one tool to its end; its exit code 0, seen by us, is the only success.

    The folder's lock (see `hold`) is inherited by the child: as long as any of its processes lives, it is held, so that
    a successor can tell an orphan from a leftover.

    Raises:
        PermanentError: when it fails, with its own last words.
        TransientError: when it takes longer than `timeout_s` seconds, waited for a lock in vain or lost the server. In
            each case it and what it started are ended.
    """
    passfile = folder / ".pgpass"
    process: asyncio.subprocess.Process | None = None
    try:
        write_passfile(passfile, place)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": os.environ.get("PATH", ""),
                "LC_ALL": "C",
                "PGAPPNAME": application_name,
                **place.libpq_environment(str(passfile)),
            },
            start_new_session=True,
            pass_fds=(lock,),
        )
        async with asyncio.timeout(timeout_s):
            assert process.stderr is not None
            words = asyncio.create_task(process.stderr.read())
            ended = asyncio.create_task(process.wait())
            while not ended.done():
                await asyncio.wait({ended}, timeout=0.25)
                if on_tick is not None:
                    await on_tick()
            text = without_secrets((await words).decode(errors="replace").strip())
        if process.returncode != 0:
            kind = TransientError if any(words in text for words in TRANSIENT_WORDS) else PermanentError
            raise kind(_explain(Path(argv[0]).name, process.returncode or 0, text))
    except TimeoutError:
        raise TransientError(f"{Path(argv[0]).name} took longer than {timeout_s:g} s and was ended") from None
    finally:
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        passfile.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[int]:
    """Hold a folder's lock from before the first byte until the work is done; yields its descriptor for `run_tool`."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)


def is_in_use(folder: Path) -> bool:
    """Whether a process of ours, or an orphan of a killed daemon, still works in this folder."""
    try:
        lock = os.open(folder / ".lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def write_passfile(path: Path, place: Place) -> None:
    """A passfile that only we can read."""
    password = read_secret(place.password) if place.password is not None else ""
    fields = [
        part.replace("\\", "\\\\").replace(":", "\\:")
        for part in ("*", "*", "*", place.user or "*", password)
    ]
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(":".join(fields) + "\n")


def _explain(tool: str, code: int, text: str) -> str:
    if code < 0:
        return f"{tool} was killed by signal {-code}"
    lines = [
        line for line in text.splitlines() if "error" in line.lower() or "fatal" in line.lower()
    ] or text.splitlines()
    words = (lines[0] if lines else "it said nothing")[:400]
    if "No space left on device" in text:
        return f"{tool} failed because the disk is full: free some space or set 'backup.directory' elsewhere ({words})"
    if "server version mismatch" in text:
        return f"{tool} is older than the server: set 'database.binaries' to a newer one ({text.splitlines()[-1][:200]})"
    return f"{tool} ended with exit code {code}: {words}"
