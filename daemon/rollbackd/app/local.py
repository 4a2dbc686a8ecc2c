"""What the command line works with: a running daemon through its socket, or the parts themselves under the store's lock.

Store, HTTP client and composition take half a second to load. Each function loads what it uses, so that help and the
shell's completion don't wait for them.
"""

import json
import os
import pwd
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from rollbackd.adapters.connecting import why_unreachable
from rollbackd.errors import (
    AwaitingApprovalError,
    ConfigurationError,
    HeldError,
    NotFoundError,
    RefusedError,
    RollbackdError,
    StoreUnavailableError,
    TransientError,
    UsageError,
)
from rollbackd.settings import Store
from rollbackd.workflow.callers import Role

if TYPE_CHECKING:
    from rollbackd.adapters.store.sqlite import SqliteStore
    from rollbackd.app.composition import Parts
    from rollbackd.app.configuration import Configuration
    from rollbackd.workflow.guarded import Guarded
    from rollbackd.workflow.happenings import Listener
    from rollbackd.workflow.reporting import Reporting

ROLES = tuple(role.value for role in Role)
CLASSES: dict[str, type[RollbackdError]] = {
    c.__name__: c
    for c in (
        RefusedError,
        NotFoundError,
        UsageError,
        TransientError,
        StoreUnavailableError,
        AwaitingApprovalError,
        HeldError,
    )
}


def me() -> str:
    """Who asks, as the record names them."""
    # Not getpass: that believes the environment, and this name stands for a person.
    return f"local:{pwd.getpwuid(os.getuid()).pw_name}"


class DaemonClient:
    """Asks the running daemon: through its Unix socket, or at an address with a token."""

    def __init__(self, path: Path | None, *, url: str = "http://rollbackd", token: str = "") -> None:
        self._path = path
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def is_remote(self) -> bool:
        """Whether it is reached at an address, so that its store isn't here."""
        return self._path is None

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float = 60.0
    ) -> Any:
        """One request; an error answer is raised as the class it was.

        Raises:
            TransientError: when no daemon answers.
        """
        import aiohttp

        connector = (
            aiohttp.UnixConnector(str(self._path)) if self._path is not None else aiohttp.TCPConnector()
        )
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, f"{self._url}{path}", json=body, headers=self._headers) as answer,
            ):
                text = await answer.text()
                if answer.status >= 400:
                    raise _error(text, answer.status)
                return json.loads(text) if answer.content_type == "application/json" else text
        except TimeoutError:
            raise TransientError(f"the daemon didn't answer within {timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise TransientError(
                f"no daemon answers at {self._path or self._url}: {why_unreachable(error)}"
            ) from None

    async def is_there(self) -> bool:
        """Whether a daemon answers."""
        try:
            await self.ask("GET", "/livez", timeout_s=3)
        except RollbackdError:
            return False
        return True


def _error(text: str, status: int) -> RollbackdError:
    try:
        document = json.loads(text)
        if document["class"] == ConfigurationError.__name__:
            return ConfigurationError(document["problems"])
        return CLASSES.get(document["class"], RefusedError)(document["error"])
    except (ValueError, KeyError, TypeError):
        return RefusedError(f"the daemon answered {status}: {text[:200]}")


def daemon_client(configuration: "Configuration") -> DaemonClient:
    """The client of this configuration's daemon."""
    from rollbackd.app.composition import socket_path

    return DaemonClient(socket_path(configuration))


def named_daemon(path: Path) -> DaemonClient:
    """The daemon to ask, whether it answers or not: the one that $ROLLBACKD_URL and $ROLLBACKD_TOKEN name, else this machine's.

    A person who isn't on the daemon's machine, or has to be somebody else there, has a token of their own.

    Raises:
        UsageError: when there is a token and no address for it.
    """
    from rollbackd.app.configuration import load_configuration

    url, token = os.environ.get("ROLLBACKD_URL", ""), os.environ.get("ROLLBACKD_TOKEN", "")
    if token and not url:
        raise UsageError(
            "ROLLBACKD_TOKEN is set and ROLLBACKD_URL isn't: the token needs the daemon's address"
        )
    if token:
        return DaemonClient(None, url=url.rstrip("/"), token=token)
    return daemon_client(load_configuration(path))


async def running_daemon(path: Path) -> DaemonClient | None:
    """The daemon to ask, as `named_daemon` finds it; None when it is this machine's and doesn't run."""
    client = named_daemon(path)
    return client if client.is_remote or await client.is_there() else None


async def reload_daemon(path: Path) -> dict[str, Any]:
    """Have this machine's daemon read its configuration anew; what changed, and which targets change later and why.

    Raises:
        ConfigurationError: with every problem; the daemon goes on with what it had.
        RefusedError: when no daemon answers.
    """
    from rollbackd.app.configuration import load_configuration

    socket = _socket_named_in(path)
    client = DaemonClient(socket)
    if not await client.is_there():
        # Whatever is wrong with the file is the better answer.
        load_configuration(path)
        raise RefusedError(
            f"no daemon answers at {socket}, so there is nothing to reload: 'rollbackd serve' reads the configuration when it"
            " starts. A daemon whose 'store.directory' was changed since is still at the old folder: restart it"
        )
    answer: dict[str, Any] = await client.ask("POST", "/api/v1/reload")
    return answer


def _socket_named_in(path: Path) -> Path:
    """Where the daemon of a configuration file listens, whatever else is wrong with the file."""
    from rollbackd.app.configuration import SOCKET_NAME

    try:
        directory = str(tomllib.loads(path.read_text(encoding="utf-8"))["store"]["directory"])
    except (OSError, ValueError, KeyError, TypeError):
        directory = Store().directory
    return path.parent / directory / SOCKET_NAME


@asynccontextmanager
async def guarding(configuration: "Configuration", store_id: str = "") -> "AsyncIterator[dict[str, Guarded]]":
    """The targets with their ports and no store: enough to look at them, beside a running daemon or without."""
    from rollbackd.adapters.probes import HttpProber
    from rollbackd.app.composition import guard_all

    _log_faults_alone(configuration)
    prober = HttpProber()
    guarded = guard_all(configuration, prober, store_id)
    try:
        yield guarded
    finally:
        for one in guarded.values():
            await one.close()
        await prober.close()


async def make_token(path: Path, name: str, roles: tuple[str, ...]) -> str:
    """Make an API token, through the daemon where one runs."""
    from rollbackd.app.configuration import load_configuration
    from rollbackd.workflow.callers import create_token

    configuration = load_configuration(path)
    client = daemon_client(configuration)
    if await client.is_there():
        answer = await client.ask("POST", "/api/v1/tokens", {"name": name, "roles": list(roles)})
        return str(answer["token"])
    async with working(path) as parts:
        return await create_token(parts.store, name, roles, parts.clock.now())


async def drop_token(path: Path, name: str) -> None:
    """Revoke an API token, through the daemon where one runs."""
    from rollbackd.app.configuration import load_configuration
    from rollbackd.workflow.callers import revoke_token

    configuration = load_configuration(path)
    client = daemon_client(configuration)
    if await client.is_there():
        await client.ask("POST", f"/api/v1/tokens/{quote(name, safe='')}/revoke")
        return
    async with working(path) as parts:
        await revoke_token(parts.store, name, parts.clock.now())


@asynccontextmanager
async def reading(path: Path) -> "AsyncIterator[tuple[Configuration, SqliteStore, Reporting]]":
    """The store, read-only, beside whoever writes."""
    from rollbackd.adapters.store.sqlite import SqliteStore
    from rollbackd.app.composition import compose, store_directory
    from rollbackd.app.configuration import load_configuration
    from rollbackd.workflow.happenings import Happenings

    configuration = load_configuration(path)
    _log_faults_alone(configuration)
    store = await SqliteStore.open_reading(store_directory(configuration))
    try:
        parts = compose(configuration, store, Happenings())
        yield configuration, store, parts.reporting
    finally:
        await store.close()


@asynccontextmanager
async def working(path: Path, listener: "Listener | None" = None) -> "AsyncIterator[Parts]":
    """The parts themselves, when no daemon runs; under the store's lock.

    Raises:
        RefusedError: when a daemon (or another command) holds the store.
    """
    from rollbackd.adapters.store.sqlite import SqliteStore
    from rollbackd.app.composition import compose, store_directory
    from rollbackd.app.configuration import load_configuration
    from rollbackd.workflow.happenings import Happenings

    configuration = load_configuration(path)
    _log_faults_alone(configuration)
    store = await SqliteStore.open_writing(store_directory(configuration))
    happenings = Happenings()
    if listener is not None:
        happenings.listen(listener)
    parts = compose(configuration, store, happenings)
    try:
        yield parts
    finally:
        await parts.engine.stop()
        await parts.close()


def _log_faults_alone(configuration: "Configuration") -> None:
    """A command shows what happens by itself, and its standard output belongs to whoever reads it."""
    from rollbackd.app.logs import set_up_logs

    set_up_logs(msgspec.structs.replace(configuration.settings.logging, level="warning"))
