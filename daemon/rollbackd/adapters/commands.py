"""Running declared commands: an argument list, never a shell; a deadline; the whole process group ended with it."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from rollbackd.adapters.secrets import without_secrets
from rollbackd.core.checks import Finding, Outcome
from rollbackd.errors import PermanentError, TransientError
from rollbackd.settings import Command, DeploymentCommands

MOST_OUTPUT = 65_536
LOOK_AGAIN_S = 0.5
EXIT_POLL_S = 0.05
LAST_WORDS_S = 0.3


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended; output is cut to its first 64 KiB."""

    code: int
    stdout: str
    stderr: str

    def last_words(self) -> str:
        """The last line it wrote, stderr first."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return without_secrets(lines[-1])[:300] if lines else "it wrote nothing"


async def run_command(argv: tuple[str, ...], timeout_s: float, environment: Mapping[str, str]) -> Ended:
    """Run a command to its end.

    Raises:
        PermanentError: when it can't be started.
        TransientError: when it takes longer than `timeout_s` seconds; it and what it started are killed then.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise PermanentError(f"the command {argv[0]} can't be started: {error.strerror}") from None
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = _Output(process.stdout), _Output(process.stderr)
    try:
        async with asyncio.timeout(timeout_s):
            # Not process.wait(): some Pythons let it wait for everybody who inherited the pipes.
            while process.returncode is None:
                await asyncio.wait({stdout.task, stderr.task}, timeout=EXIT_POLL_S)
                if stdout.task.done() and stderr.task.done():
                    await process.wait()
    except TimeoutError:
        await _kill(process)
        raise TransientError(
            f"the command {argv[0]} took longer than {timeout_s:g} s and was ended"
        ) from None
    except asyncio.CancelledError:
        await _kill(process)
        raise
    await asyncio.wait({stdout.task, stderr.task}, timeout=LAST_WORDS_S)
    return Ended(code=process.returncode, stdout=stdout.text(), stderr=stderr.text())


class _Output:
    """What comes out of a command. An application that it left running keeps the pipe, and would die if we closed it
    or stand still if we didn't read; so reading goes on, and what comes after the end is dropped."""

    _reading: ClassVar[set[asyncio.Task[None]]] = set()

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._kept = b""
        self.task = asyncio.create_task(self._read(stream))
        self._reading.add(self.task)
        self.task.add_done_callback(self._reading.discard)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while chunk := await stream.read(MOST_OUTPUT):
            if len(self._kept) < MOST_OUTPUT:
                self._kept = (self._kept + chunk)[:MOST_OUTPUT]

    def text(self) -> str:
        return self._kept.decode(errors="replace")


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


class CommandApplication:
    """Fulfils `ports.Application` with a target's declared commands."""

    def __init__(self, commands: DeploymentCommands) -> None:
        self._commands = commands
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
        self._environment = {**kept, **commands.environment}

    @property
    def can_stop(self) -> bool:
        """Whether a stop command is declared."""
        return self._commands.stop is not None

    @property
    def can_start(self) -> bool:
        """Whether a start command is declared."""
        return self._commands.start is not None

    async def is_stopped(self) -> bool:
        """Whether the stop command's effect is there."""
        return await self._holds(self._commands.stop, "")

    async def stop(self) -> None:
        """Stop the application; the caller looks afterwards."""
        await self._run(self._commands.stop, "")

    async def runs(self, version: str) -> bool:
        """Whether this release runs."""
        return await self._holds(self._commands.start, version)

    async def start(self, version: str) -> None:
        """Start this release; the caller looks afterwards."""
        await self._run(self._commands.start, version)

    async def readiness(self) -> tuple[Finding, ...]:
        """Whether the declared programs are there."""
        findings = []
        for name, command in (("stop", self._commands.stop), ("start", self._commands.start)):
            check = f"deployment.{name}"
            if command is None:
                text = f"no {name} command is declared: a person has to see to it in every run"
                findings.append(Finding(check=check, outcome=Outcome.WARNED, text=text))
                continue
            missing = [
                argv[0]
                for argv in (command.command, command.done_when)
                if shutil.which(argv[0], path=self._environment.get("PATH")) is None
            ]
            if missing:
                text = f"{', '.join(missing)} isn't an executable here"
                findings.append(Finding(check=check, outcome=Outcome.FAILED, text=text))
            else:
                findings.append(Finding(check=check, outcome=Outcome.PASSED, text=" ".join(command.command)))
        return tuple(findings)

    async def _holds(self, command: Command | None, version: str) -> bool:
        if command is None:
            return False
        ended = await run_command(_filled(command.done_when, version), command.timeout, self._environment)
        return ended.code == 0

    async def _run(self, command: Command | None, version: str) -> None:
        """Run it, and wait until its effect is there: many a command returns before it is done."""
        if command is None:
            raise PermanentError("no command is declared for this")
        until = asyncio.get_running_loop().time() + command.timeout
        ended = await run_command(_filled(command.command, version), command.timeout, self._environment)
        if ended.code != 0:
            raise TransientError(
                f"{command.command[0]} ended with exit code {ended.code}: {ended.last_words()}"
            )
        while not await self._holds(command, version):
            if asyncio.get_running_loop().time() >= until:
                raise TransientError(
                    f"{command.command[0]} ended well, and its effect wasn't there after {command.timeout:g} s"
                )
            await asyncio.sleep(LOOK_AGAIN_S)


def _filled(argv: tuple[str, ...], version: str) -> tuple[str, ...]:
    """The arguments with the release's name, which came from outside: it must not pass for an option or a path upwards."""
    if version.startswith("-") or ".." in version or any(ord(c) < 32 for c in version):
        raise PermanentError(f"{version!r} can't be the name of a release")
    return tuple(argument.replace("{version}", version) for argument in argv)
