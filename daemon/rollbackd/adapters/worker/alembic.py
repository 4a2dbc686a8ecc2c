"""The migration worker's port, for one target: keeps a child ready, asks it, keeps each release's scripts."""

import asyncio
import base64
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import structlog
from sqlalchemy.engine import URL, make_url

from rollbackd.adapters.postgres.connection import Place
from rollbackd.adapters.secrets import read_secret
from rollbackd.adapters.worker.process import MessageSink, WorkerProcess
from rollbackd.core.archives import ArchiveItem
from rollbackd.core.observing import Watched
from rollbackd.core.reading import ReadRevision
from rollbackd.core.rehearsal import Way
from rollbackd.errors import RefusedError, TransientError
from rollbackd.ports import DatabaseIdentity, Described, DowngradeResult, LogSink, MigrationEnvironment
from rollbackd.settings import Target

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "DOCKER_HOST", "VIRTUAL_ENV")
LOCK_WAIT_S = 10.0
DATABASE_URL = re.compile(r"postgres(?:ql)?(\+\w+)?://")
PLACEHOLDER = "withheld-from-rehearsals"
log = structlog.get_logger()


class ScratchPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The one database that a rehearsing worker may reach, and the comment by which it is known to be scratch."""

    place: Place
    mark: str

    def builtins(self) -> dict[str, object]:
        """As the child takes it; holds the scratch password."""
        place = self.place
        return {
            "host": place.host,
            "port": place.port,
            "database": place.database,
            "user": place.user,
            "password": read_secret(place.password) if place.password is not None else "",
            "options": dict(place.options),
            "mark": self.mark,
        }


class AlembicWorker:
    """Fulfils `ports.MigrationWorker` for one target. A started child is thrown away when the scripts change.

    With `scratch` its children hold credentials for that database alone, and reach nothing else.
    """

    def __init__(self, target: Target, kept_scripts: Path, scratch: ScratchPlace | None = None) -> None:
        self._target = target
        self._scratch = scratch
        self._settings = target.migrations
        self._kept = kept_scripts
        self._ending: set[asyncio.Task[None]] = set()
        self._ready: WorkerProcess | None = None
        self._described: Described | None = None
        self._versions: Mapping[str, str] = {}
        self._loaded_from = ("", "")
        self._script_location = ""
        self._stale = False
        self._turn = asyncio.Lock()

    def use_scripts(self, scripts_sha256: str) -> None:
        """Read the scripts from a kept release (empty: from the live folder) from now on.

        Raises:
            RefusedError: when that release's scripts aren't kept.
        """
        location = str(self._kept / scripts_sha256) if scripts_sha256 else ""
        if location and not Path(location).is_dir():
            raise RefusedError(f"the scripts {scripts_sha256[:12]} aren't kept")
        if location != self._script_location:
            self._script_location = location
            self._described = None

    def move_to(self, scratch: ScratchPlace) -> None:
        """Rehearse in this database from now on; a waiting child that was told another one's URL is thrown away."""
        names = [
            *self._settings.environment.values(),
            *map(read_secret, self._settings.secret_environment.values()),
        ]
        if self._settings.url != "own" or any(DATABASE_URL.match(name) for name in names):
            # "option" as well: env.py may read the option and connect by itself.
            self._stale = self._stale or self._scratch != scratch
        self._scratch = scratch

    async def prestart(self) -> None:
        """Have a child with everything imported and every script loaded, waiting."""
        async with self._turn:
            await self._child()

    async def describe(self) -> Described:
        """The revision graph; remembered until the scripts change."""
        async with self._turn:
            child = await self._child()
            if self._described is None:
                answer = await self._ask(child, "describe")
                self._described = msgspec.convert({**self._versions, **answer}, Described)
            return self._described

    async def read(self, revisions: tuple[str, ...]) -> dict[str, ReadRevision]:
        """Read and render these revisions' downgrades, without a database."""
        async with self._turn:
            answer = await self._ask(await self._child(), "read", revisions=list(revisions))
        found = msgspec.convert(answer["revisions"], list[ReadRevision])
        return {read.id: read for read in found}

    async def environment(self) -> MigrationEnvironment:
        """Run env.py without migrating anything."""
        async with self._turn:
            answer = await self._ask(await self._child(), "environment")
        return msgspec.convert(answer, MigrationEnvironment)

    async def downgrade(  # noqa: PLR0913 - what makes a downgrade this one, each by its name
        self,
        revisions: tuple[str, ...],
        from_heads: tuple[str, ...],
        to_heads: tuple[str, ...],
        *,
        run: str,
        identity: DatabaseIdentity,
        scripts_sha256: str,
        archive: tuple[ArchiveItem, ...],
        timeout_s: float,
        on_log: LogSink,
    ) -> DowngradeResult:
        """Take off these revisions, streaming each statement to `on_log`."""

        async def on_message(message: dict[str, Any]) -> None:
            if message["type"] == "statement":
                await on_log(message["text"])
            elif message["type"] == "revision":
                await on_log(f"-- downgrade {message['revision']}")

        answer = await self._migrate(
            "downgrade",
            timeout_s,
            on_message,
            revisions=list(revisions),
            from_heads=list(from_heads),
            to_heads=list(to_heads),
            run=run,
            identity=msgspec.to_builtins(identity),
            scripts_sha256=scripts_sha256,
            archive=msgspec.to_builtins(archive),
            lock_timeout_s=self._settings.lock_timeout,
            statement_timeout_s=self._settings.statement_timeout,
            lock_wait_s=LOCK_WAIT_S,
        )
        return msgspec.convert(answer, DowngradeResult)

    async def stamp(
        self,
        revisions: tuple[str, ...],
        from_heads: tuple[str, ...],
        to_heads: tuple[str, ...],
        *,
        run: str,
        identity: DatabaseIdentity,
    ) -> None:
        """Move the stamp down over these revisions and run none of them."""
        await self._migrate(
            "stamp",
            self._settings.start_timeout,
            None,
            revisions=list(revisions),
            from_heads=list(from_heads),
            to_heads=list(to_heads),
            run=run,
            identity=msgspec.to_builtins(identity),
            lock_wait_s=LOCK_WAIT_S,
        )

    async def rehearse(self, way: Way, *, timeout_s: float) -> Watched:
        """Run it in the scratch database, and say what was seen.

        The child stays, with its scripts loaded, for the next rehearsal.
        """
        assert self._scratch is not None, "only a worker that was made for scratch rehearses"
        async with self._turn:
            child = await self._child()
            try:
                answer = await child.ask(
                    "rehearse",
                    timeout_s,
                    scratch=self._scratch.builtins(),
                    direction=way.direction,
                    revisions=list(way.revisions),
                    from_heads=list(way.from_heads),
                    to_heads=list(way.to_heads),
                    archive=msgspec.to_builtins(way.archive),
                    observe=way.observe,
                    lock_timeout_s=self._settings.lock_timeout,
                    statement_timeout_s=self._settings.statement_timeout,
                )
            finally:
                if not child.is_alive and self._ready is child:
                    self._ready = None
        return msgspec.convert(answer, Watched)

    async def _migrate(
        self, do: str, timeout_s: float, on_message: MessageSink | None, **request: Any
    ) -> Any:
        """Ask a child that is thrown away afterwards."""
        async with self._turn:
            # From here on the child is this request's alone; whoever asks meanwhile gets another.
            child = await self._child()
            self._ready = None
        ended_well = False
        try:
            answer = await child.ask(do, timeout_s, on_message=on_message, **request)
            ended_well = True
        finally:
            # An env.py may keep its connection in a pool, and with it the migration lock: both end with the child.
            # Whoever looks at the database next waits for the lock, so nobody has to wait for the interpreter's end.
            ending = asyncio.create_task(child.close())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            if not ended_well:
                await ending
        return answer

    async def keep_scripts(self) -> str:
        """Keep the scripts under their digest; return it. Nothing is written twice."""
        async with self._turn:
            answer = await self._ask(await self._child(), "export")
        digest = str(answer["scripts_sha256"])
        await asyncio.to_thread(keep, self._kept, digest, answer["files"])
        return digest

    async def close(self) -> None:
        """End the waiting child, if there is one."""
        child, self._ready = self._ready, None
        if child is not None:
            await child.close()
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    async def _ask(self, child: WorkerProcess, do: str, **request: Any) -> Any:
        try:
            return await child.ask(do, self._settings.start_timeout, **request)
        finally:
            if not child.is_alive and self._ready is child:
                self._ready = None

    async def _child(self) -> WorkerProcess:
        child = self._ready
        if child is not None and child.is_alive:
            try:
                answer = await child.ask("is_current", self._settings.start_timeout)
            except (TransientError, RefusedError):
                answer = {"current": False}
            if answer["current"] and self._loaded_from == self._place() and not self._stale:
                return child
            reason = "it was told of another scratch database" if self._stale else "its scripts changed"
            log.info("worker_replaced", target=self._target.name, reason=reason)
        await self.close()
        return await self._start()

    async def _start(self) -> WorkerProcess:
        settings = self._settings
        environment = self._environment()
        options: dict[str, str] = {}
        if settings.url != "own":
            url = (
                env_py_url(self._target)
                if self._scratch is None
                else scratch_url(self._target, self._scratch)
            )
            if settings.url == "option":
                options["sqlalchemy.url"] = url
            else:
                environment[settings.url.removeprefix("environment:")] = url
        child = await WorkerProcess.start(settings.python, environment)
        try:
            self._versions = await child.ask(
                "load",
                settings.start_timeout,
                directory=settings.directory,
                ini=settings.ini,
                section=settings.section,
                options=options,
                x=list(settings.x),
                script_location=self._script_location,
                scratch=self._scratch.builtins() if self._scratch is not None else None,
            )
            if self._script_location:
                described = await child.ask("describe", settings.start_timeout)
                if described["scripts_sha256"] != Path(self._script_location).name:
                    raise RefusedError(
                        f"the scripts kept in {self._script_location} were changed since; they aren't used"
                    )
        except BaseException:
            await child.kill()
            raise
        self._loaded_from = self._place()
        self._described = None
        self._stale = False
        self._ready = child
        return child

    def _place(self) -> tuple[str, str]:
        # The live folder is often a symbolic link that a deploy moves.
        return (os.path.realpath(self._settings.directory), self._script_location)

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        if self._scratch is not None:
            return {**kept, **self._scratch_environment(self._scratch)}
        secret = {name: read_secret(ref) for name, ref in self._settings.secret_environment.items()}
        return {**kept, **self._settings.environment, **secret}

    def _scratch_environment(self, scratch: ScratchPlace) -> dict[str, str]:
        """The target's environment with scratch in place of the guarded database, and no other secret.

        A secret that isn't about a database has a placeholder, unless the configuration says that rehearsals need it.
        """
        url = scratch_url(self._target, scratch)
        password = read_secret(scratch.place.password) if scratch.place.password is not None else ""
        own = (
            read_secret(self._target.database.password) if self._target.database.password is not None else ""
        )
        found = {
            name: password if own and value == own else value
            for name, value in self._settings.environment.items()
        }
        for name, reference in self._settings.secret_environment.items():
            secret = read_secret(reference)
            if DATABASE_URL.match(secret):
                found[name] = secret
            elif secret == own:
                found[name] = password
            else:
                found[name] = secret if name in self._target.scratch.pass_secrets else PLACEHOLDER
        for name, value in found.items():
            if given := DATABASE_URL.match(value):
                driver = given[1] or ""
                found[name] = make_url(url).set(drivername=f"postgresql{driver}").render_as_string(False)
        return found


def prune_kept(kept: Path, in_use: set[str], most: int) -> list[str]:
    """Remove the kept scripts beyond the newest `most`, but none of those in use; returns their digests."""
    if not kept.is_dir():
        return []
    folders = [p for p in kept.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]
    newest = sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)
    removed = [folder for folder in newest[most:] if folder.name not in in_use]
    for folder in removed:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in removed]


def keep(kept: Path, digest: str, scripts: Mapping[str, str]) -> None:
    """Write these scripts (name to base64) to the folder named after their digest: all of them, on disk, or none."""
    folder = kept / digest
    if folder.is_dir():
        return
    kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = Path(tempfile.mkdtemp(prefix=f".partial-{digest[:12]}-", dir=kept))
    try:
        for name, content in scripts.items():
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts:
                raise RefusedError(f"the worker sent a script outside its folder: {name}")
            path = partial / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.write(base64.b64decode(content))
                file.flush()
                os.fsync(file.fileno())
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise somebody else kept the same at the same time
                raise
        descriptor = os.open(kept, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def scratch_url(target: Target, scratch: ScratchPlace) -> str:
    """The URL of the scratch database as env.py takes it; holds the scratch password."""
    place = scratch.place
    url = URL.create(
        f"postgresql+{target.migrations.driver}",
        username=place.user,
        password=read_secret(place.password) if place.password is not None else None,
        host=None if place.host.startswith("/") else place.host,
        port=place.port,
        database=place.database,
        query={"host": place.host} if place.host.startswith("/") else {},
    )
    return url.render_as_string(hide_password=False)


def env_py_url(target: Target) -> str:
    """The URL that env.py is given where it doesn't know its database by itself; holds the password."""
    url: URL = make_url(target.database.url).set(drivername=f"postgresql+{target.migrations.driver}")
    if target.database.password is not None:
        url = url.set(password=read_secret(target.database.password))
    return url.render_as_string(hide_password=False)
