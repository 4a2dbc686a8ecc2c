"""One worker child: started, asked, ended. JSON lines over its original stdin and stdout."""

import asyncio
import contextlib
import functools
import json
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from rollbackd.adapters.secrets import without_secrets
from rollbackd.errors import PermanentError, RefusedError, RollbackdError, TransientError

# The child's modules are the first line it reads, so that `python` may be a command that runs in a container. They import
# each other as siblings of one package, which exists in that interpreter's memory alone.
BOOTSTRAP = """
import importlib.abc, importlib.machinery, json, os, sys
requests = os.fdopen(os.dup(0), 'rb')
sources = json.loads(requests.readline())
class Handed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name in sources:
            return importlib.machinery.ModuleSpec(name, self, is_package='.' not in name)
    def exec_module(self, module):
        name = module.__name__
        exec(compile(sources[name], '<' + name + '>', 'exec'), module.__dict__)
sys.meta_path.insert(0, Handed())
from rollbackd_worker.worker import main
main(requests)
"""
PACKAGE = "rollbackd_worker"
LONGEST_LINE = 128 * 1024 * 1024
KINDS: dict[str, type[RollbackdError]] = {
    "refused": RefusedError,
    "transient": TransientError,
    "permanent": PermanentError,
}
MessageSink = Callable[[dict[str, Any]], Awaitable[None]]


@functools.cache
def child_modules() -> str:
    """The child's modules by name, as one line of JSON."""
    folder = Path(__file__).with_name("child")
    sources = {f"{PACKAGE}.{path.stem}": path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    return json.dumps({PACKAGE: sources.pop(f"{PACKAGE}.__init__"), **sources})


class WorkerProcess:
    """A child in a session of its own, so that it and whatever it starts can be ended together."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        self._process = process
        self._name = name
        self._requests = 0
        self._stderr: deque[str] = deque(maxlen=40)
        self._stderr_task = asyncio.create_task(self._drain_stderr())
        self._busy = asyncio.Lock()

    @classmethod
    async def start(cls, python: tuple[str, ...], environment: Mapping[str, str]) -> "WorkerProcess":
        """Start the interpreter and hand it the worker's source.

        Raises:
            RefusedError: when the command can't be executed.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *python,
                "-c",
                BOOTSTRAP,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                start_new_session=True,
                limit=LONGEST_LINE,
            )
        except OSError as error:
            raise RefusedError(
                f"the interpreter {python[0]} can't be started ({error.strerror}): 'migrations.python' (or --python) must name the one"
                " that runs the target's migrations"
            ) from None
        worker = cls(process, python[0])
        try:
            await worker._write(child_modules())
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.returncode is None

    async def ask(
        self, do: str, timeout_s: float, on_message: MessageSink | None = None, **request: Any
    ) -> Any:
        """Send one request and wait for its answer.

        Raises:
            RefusedError, TransientError, PermanentError: as the child says; TransientError when it takes longer than
                `timeout_s` seconds (the child is killed then) or dies.
        """
        async with self._busy:
            self._requests += 1
            number = self._requests
            try:
                async with asyncio.timeout(timeout_s) as deadline:
                    await self._write(json.dumps({"id": number, "do": do, **request}))
                    message = await self._answer(number, on_message)
            except BaseException as error:
                # Whatever stops us from listening, nobody would hear what it does from here on.
                await self.kill()
                if isinstance(error, TimeoutError) and deadline.expired():
                    raise TransientError(
                        f"the migration worker took longer than {timeout_s:g} s for '{do}' and was ended"
                    ) from None
                raise
        if message["type"] == "error":
            raise KINDS[message["kind"]](without_secrets(message["message"]))
        return message["answer"]

    async def _answer(self, number: int, on_message: MessageSink | None) -> dict[str, Any]:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
                message = json.loads(line) if line else None
            except ValueError:
                raise self._not_the_worker() from None
            if message is None:
                await self._last_words()
                raise self._death()
            if not isinstance(message, dict) or "type" not in message:
                raise self._not_the_worker()
            if message.get("id") == number:
                return message
            if on_message is not None:
                await on_message(message)

    def _not_the_worker(self) -> RollbackdError:
        return RefusedError(
            f"'{self._name}' doesn't answer as the migration worker: 'migrations.python' must name a Python interpreter, or"
            " a command that ends in one and writes nothing of its own to stdout"
        )

    async def _last_words(self) -> None:
        await self._process.wait()
        # Something that it started may hold its stderr open; its own words are there by then.
        await asyncio.wait([self._stderr_task], timeout=1)

    def _death(self) -> RollbackdError:
        code = self._process.returncode
        last = without_secrets(self._stderr[-1]) if self._stderr else "nothing on its stderr"
        if code is not None and code < 0:
            return TransientError(f"the migration worker was killed by signal {-code}; last words: {last}")
        return RefusedError(
            f"'{self._name}' ended with exit code {code} before it answered; last words: {last}"
        )

    async def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            await self._last_words()
            raise self._death() from None

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):
            async for line in self._process.stderr:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._stderr.append(text[:500])

    async def close(self) -> None:
        """Let it end by itself, for a second; then kill it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(1):
                await self._process.wait()
        except TimeoutError:
            await self.kill()
        await self._finish()

    async def kill(self) -> None:
        """End it and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._finish()

    async def _finish(self) -> None:
        self._stderr_task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._stderr_task
