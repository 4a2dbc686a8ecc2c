"""The real server on loopback with the shipped hooks and a real SQLite store, and the senders' own ways of signing."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import ClientResponse, ClientSession
from tests.workflow.rig import Rig

from rollbackd.adapters.metrics import Metrics
from rollbackd.adapters.store.sqlite import DATABASE, SqliteStore
from rollbackd.console.pages import Pages
from rollbackd.console.routes import Console
from rollbackd.intake.api import Api
from rollbackd.intake.authentication import prepare_secret
from rollbackd.intake.connections import Deadlines, read_body
from rollbackd.intake.deliveries import Deliveries
from rollbackd.intake.hooks import load_hook
from rollbackd.intake.identity import identify
from rollbackd.intake.server import HttpServer
from rollbackd.resources import resource
from rollbackd.settings import Server, Settings
from rollbackd.workflow.callers import Sessions, create_token

MOST_BYTES = 20_000
KEY, RETIRED = (
    "whsec_" + base64.b64encode(b"k" * 32).decode(),
    "whsec_" + base64.b64encode(b"r" * 32).decode(),
)
ROTATED = "whsec_" + base64.b64encode(b"n" * 32).decode()
GITHUB, BEARER = "github-secret-value", "alertmanager-secret-value"
HURRIED = Deadlines(head_s=0.4, body_s=0.4, keepalive_s=0.4, answer_s=0.4, lingering_s=0.2)
EVENT = {
    "kind": "deploy.started", "service": "shop", "environment": "staging", "version": "2026.11.3", "deployment": "4711",
}  # fmt: skip


@dataclass
class House:
    rig: Rig
    server: HttpServer
    console: Console
    metrics: Metrics
    session: ClientSession
    folder: Path
    local: ClientSession
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    @property
    def store(self) -> SqliteStore:
        return self.rig.store

    def now_s(self) -> int:
        return int(self.rig.clock.now().timestamp())

    # -- sending -------------------------------------------------------------------------------------------------------

    def signed(
        self, body: bytes, *, delivery: str = "msg_1", key: str = KEY, age_s: int = 0, timestamp: str = ""
    ) -> dict[str, str]:
        at = timestamp or str(self.now_s() - age_s)
        secret = base64.b64decode(key.removeprefix("whsec_"))
        text = b".".join((delivery.encode(), at.encode(), body))
        signature = base64.b64encode(hmac.new(secret, text, "sha256").digest()).decode()
        return {"webhook-id": delivery, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}

    async def post(
        self, hook: str, body: bytes, headers: dict[str, str] | list[tuple[str, str]]
    ) -> ClientResponse:
        answer = await self.session.post(f"{self.url}/hooks/{hook}", data=body, headers=headers)
        await answer.read()
        return answer

    async def native(self, document: object = None, **signing: Any) -> ClientResponse:
        body = json.dumps(EVENT if document is None else document).encode()
        return await self.post("rollbackd", body, self.signed(body, **signing))

    async def github(
        self, document: object, event: str = "deployment", *, delivery: str = "guid-1"
    ) -> ClientResponse:
        body = json.dumps(document).encode()
        return await self.post("github", body, github_headers(body, event, delivery))

    async def raw(self, *parts: bytes, pause_s: float = 0.0, wait_s: float = 5.0, path: str = "") -> bytes:
        """Send bytes as they are, part by part; everything that came back until the server closed or went quiet."""
        reader, writer = await (
            asyncio.open_unix_connection(path)
            if path
            else asyncio.open_connection("127.0.0.1", self.server.port)
        )
        found = b""
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)
            async with asyncio.timeout(wait_s):
                while piece := await reader.read(65_536):
                    found += piece
        except TimeoutError:
            found += b"<still open>"
        except ConnectionError:
            found += b"<reset>"
        finally:
            writer.close()
        return found

    # -- looking -------------------------------------------------------------------------------------------------------

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.folder / "store" / DATABASE) as connection:
            return connection.execute(query).fetchall()

    def count(self, table: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM {table}")[0][0])

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """Every row of every table: what a GET must leave as it is."""
        tables = [r[0] for r in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: sorted(self.rows(f"SELECT * FROM {name}"), key=repr) for name in tables}

    def counted(self, metric: str, **labels: str) -> float:
        text = self.metrics.text()[0].decode()
        for line in text.splitlines():
            found = re.fullmatch(rf"{metric}\{{(.*)\}} (\S+)", line)
            if found and all(f'{name}="{value}"' in found[1] for name, value in labels.items()):
                return float(found[2])
        return 0.0

    def series(self) -> set[str]:
        text = self.metrics.text()[0].decode()
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    async def api(
        self, method: str, path: str, token: str = "", body: object = None
    ) -> tuple[int, dict[str, Any], str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.request(
            method, f"{self.url}/api/v1{path}", json=body, headers=headers
        ) as answer:
            text = await answer.text()
            document = json.loads(text) if text and answer.content_type == "application/json" else {}
            return answer.status, document if isinstance(document, dict) else {"items": document}, text


def github_headers(body: bytes, event: str, delivery: str = "guid-1", secret: str = GITHUB) -> dict[str, str]:
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Event": event, "X-GitHub-Delivery": delivery,
    }  # fmt: skip


async def build(rig: Rig, folder: Path, deadlines: Deadlines, **server: Any) -> House:
    hooks = {
        name: load_hook(name, resource("hooks", f"{name}.toml"))
        for name in ("rollbackd", "github", "alertmanager")
    }
    secrets = {"rollbackd": (ROTATED, KEY), "github": (GITHUB,), "alertmanager": (BEARER,)}
    loaded = {
        name: (hook, tuple(prepare_secret(hook.file.authentication, s) for s in secrets[name]))
        for name, hook in hooks.items()
    }
    settings = Settings(
        targets=rig.targets,
        server=msgspec.convert({"listen": "127.0.0.1:0", "max_body_bytes": MOST_BYTES, **server}, Server),
    )
    metrics = Metrics(rig.targets, tuple(hooks), {})
    rig.happenings.listen(metrics.listen)
    deliveries = Deliveries(loaded, rig.store, rig.clock, rig.happenings, rig.pipeline.wake)
    sessions = Sessions(rig.store, rig.clock)

    async def reload() -> dict[str, object]:
        return {"changed": [], "waiting": {}}

    api = Api(
        rig.guarded, rig.store, rig.operations, rig.reporting, rig.pipeline, rig.clock, sessions, reload
    )
    console = Console(
        Pages(rig.guarded, rig.store, rig.operations, rig.reporting, rig.clock),
        rig.operations,
        rig.reporting,
        sessions,
        lambda request: identify(request, rig.store, sessions),
        read_body,
    )

    async def ready() -> list[str]:
        return []

    async def exposition(accept: str) -> tuple[bytes, str]:
        return metrics.text(accept)

    socket_path = folder / "store" / "rollbackd.sock"
    listening = HttpServer(
        settings.server,
        deliveries,
        [*api.routes(), *console.routes()],
        exposition,
        ready,
        socket_path,
        deadlines,
    )
    await listening.start()
    house = House(
        rig=rig, server=listening, console=console, metrics=metrics, folder=folder,
        session=ClientSession(auto_decompress=False),
        local=ClientSession(connector=aiohttp.UnixConnector(str(socket_path))),
    )  # fmt: skip
    for name, roles in (("reader", ("read",)), ("operator", ("operate",)), ("approver", ("approve",))):
        house.tokens[name] = await create_token(rig.store, name, roles, rig.clock.now())
    return house
