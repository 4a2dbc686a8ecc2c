"""The stage: an embedded PostgreSQL, a shop for each scenario, the daemon as its own process, and a CD system's hands."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.demo.shop_layout import BASE_RELEASE, fill, lay_out
from rollbackd.errors import RefusedError

TEMPLATE = "shop_template"
DAEMON_START_S = 20.0
COMMAND_S = 60.0
LONGEST_TEMPORARY_FOLDER = 60
ORDERS_WITHOUT_CUSTOMERS = (
    "SELECT o.id FROM orders o WHERE NOT EXISTS (SELECT 1 FROM customers c WHERE c.id = o.customer_id)"
)
Rows = dict[str, list[str]]


@dataclass(frozen=True)
class Shop:
    """One scenario's shop: its own database, folder, port and target."""

    name: str
    environment: str
    root: Path
    port: int
    database: str


@dataclass
class Stage:
    """Everything a scenario acts on."""

    folder: Path
    postgres: EmbeddedPostgres
    shops: dict[str, Shop] = field(default_factory=dict)
    daemon: asyncio.subprocess.Process | None = None
    port: int = 0
    signing_key: bytes = b""
    alert_token: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    session: aiohttp.ClientSession | None = None

    # -- setting up and clearing away ----------------------------------------------------------------------------------

    @classmethod
    async def set_up(cls, scenarios: dict[str, str]) -> "Stage":
        """Start PostgreSQL, make a template shop with 50,000 rows, and a shop for each scenario (name to environment)."""
        # The daemon's Unix socket lies in it, and a socket's path is short.
        is_long = len(tempfile.gettempdir()) > LONGEST_TEMPORARY_FOLDER
        folder = Path(tempfile.mkdtemp(prefix="rollbackd-demo-", dir="/tmp" if is_long else None))  # noqa: S108 - made private
        postgres = await asyncio.to_thread(EmbeddedPostgres.start)
        stage = cls(folder=folder, postgres=postgres)
        try:
            await stage._make_template()
            for name, environment in scenarios.items():
                await stage._make_shop(name, environment)
            await stage._start_daemon()
        except BaseException:
            await stage.clear_away()
            raise
        return stage

    async def clear_away(self) -> None:
        """End everything that was started, and remove the folder."""
        if self.session is not None:
            await self.session.close()
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.terminate()
            try:
                await asyncio.wait_for(self.daemon.wait(), 30)
            except TimeoutError:
                self.daemon.kill()
                await self.daemon.wait()
        for shop in self.shops.values():
            with contextlib.suppress(RefusedError):
                await self.shopctl(shop, "stop")
        await asyncio.to_thread(self.postgres.stop)
        shutil.rmtree(self.folder, ignore_errors=True)

    async def keep(self, source: Path, name: str) -> Path:
        """Keep a file beyond the demo, in a folder of its own."""
        kept = Path(tempfile.gettempdir()) / f"rollbackd-report-{os.getuid()}"
        kept.mkdir(mode=0o700, exist_ok=True)
        return Path(shutil.copyfile(source, kept / name))

    async def _make_template(self) -> None:
        await self.administer(f'CREATE DATABASE "{TEMPLATE}"')
        root = self.folder / "template"
        await self._lay_out(root, TEMPLATE, 0)
        shop = Shop(name="template", environment="none", root=root, port=0, database=TEMPLATE)
        if await self.shopctl(shop, "migrate", BASE_RELEASE) != 0:
            raise RefusedError("the sample shop couldn't be migrated")
        await asyncio.to_thread(fill, self.postgres.url(TEMPLATE))

    async def _make_shop(self, name: str, environment: str) -> None:
        database = f"shop_{name.replace('-', '_')}"
        await self.administer(f'CREATE DATABASE "{database}" TEMPLATE "{TEMPLATE}"')
        shop = Shop(
            name=name, environment=environment, root=self.folder / name, port=_free_port(), database=database
        )
        await self._lay_out(shop.root, database, shop.port)
        self.shops[name] = shop

    async def _lay_out(self, root: Path, database: str, port: int) -> None:
        url = self.postgres.url(database)
        await asyncio.to_thread(lay_out, root, database_url=url, port=port, python=Path(sys.executable))

    async def _start_daemon(self) -> None:
        self.signing_key = secrets.token_bytes(32)
        self.alert_token = secrets.token_urlsafe(24)
        config = self.folder / "rollbackd.toml"
        _write_secret(self.folder / "signing-key", "whsec_" + base64.b64encode(self.signing_key).decode())
        _write_secret(self.folder / "alert-token", self.alert_token)
        _write_secret(self.folder / "database-password", self.postgres.password)
        config.write_text(self._configuration(), encoding="utf-8")
        for name, role in (("cd", "operate"), ("alice", "operate"), ("bob", "approve")):
            self.tokens[name] = (await self.rollbackd("tokens", "create", name, "--role", role)).strip()
        with (self.folder / "daemon.log").open("wb") as log:
            self.daemon = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "rollbackd",
                "--config",
                str(config),
                "serve",
                stderr=log,
                stdin=asyncio.subprocess.DEVNULL,
            )
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=COMMAND_S))
        until = time.monotonic() + DAEMON_START_S
        while self.port == 0:
            for line in (self.folder / "daemon.log").read_text(encoding="utf-8").splitlines():
                if '"daemon_started"' in line:
                    self.port = json.loads(line)["port"]
            if self.daemon.returncode is not None or time.monotonic() > until:
                words = (self.folder / "daemon.log").read_text(encoding="utf-8")[-2000:]
                raise RefusedError(f"the daemon didn't start:\n{words}")
            await asyncio.sleep(0.05)

    def _configuration(self) -> str:
        header = f"""
[server]
listen = "127.0.0.1:0"
[store]
directory = "{self.folder}/store"
[logging]
format = "json"
level = "info"
[hooks.rollbackd]
secrets = ["file:{self.folder}/signing-key"]
[hooks.alertmanager]
secrets = ["file:{self.folder}/alert-token"]
"""
        return header + "".join(self._target(shop) for shop in self.shops.values())

    def _target(self, shop: Shop) -> str:
        python = json.dumps(sys.executable)
        control = f'"{sys.executable}", "{shop.root}/shopctl.py", "--root", "{shop.root}"'
        mode = "approval" if shop.environment == "production" else "automatic"
        url = f"postgresql://{self.postgres.user}@{self.postgres.host}:{self.postgres.port}/{shop.database}"
        return f"""
[[targets]]
name = "{shop.name}"
service = "shop-{shop.name}"
environment = "{shop.environment}"
[targets.database]
url = "{url}"
password = "file:{self.folder}/database-password"
binaries = "{self.postgres.bin_directory}"
[targets.migrations]
directory = "{shop.root}/current"
python = [{python}]
url = "environment:SHOP_DATABASE_URL"
[targets.scratch]
same_server = true
[targets.backup]
directory = "{self.folder}/backups"
[targets.policy]
mode = "{mode}"
confirm_for = "1s"
start_grace = "10s"
bake_time = "20s"
watch_after_rollback = "1s"
[[targets.probes]]
name = "health"
url = "http://127.0.0.1:{shop.port}/health"
interval = "300ms"
timeout = "2s"
failures = 3
successes = 2
[targets.deployment]
stop = {{ command = [{control}, "stop"], done_when = [{control}, "is-stopped"] }}
start = {{ command = [{control}, "start", "{{version}}"], done_when = [{control}, "is-running", "{{version}}"] }}
[[targets.checks]]
name = "orders-have-customers"
sql = "{ORDERS_WITHOUT_CUSTOMERS}"
"""

    # -- the CD system's hands -----------------------------------------------------------------------------------------

    async def shopctl(self, shop: Shop, *argv: str) -> int:
        """Run the shop's control program; returns its exit code."""
        command = (sys.executable, str(shop.root / "shopctl.py"), "--root", str(shop.root), *argv)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await asyncio.wait_for(process.wait(), COMMAND_S)

    async def rollbackd(self, *argv: str, expect: int = 0) -> str:
        """Run a command of ours; raises when it exits otherwise than expected."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rollbackd",
            "--config",
            str(self.folder / "rollbackd.toml"),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_S)
        if process.returncode != expect:
            raise RefusedError(
                f"rollbackd {' '.join(argv)} exited with {process.returncode}: {err.decode().strip()}"
            )
        return out.decode()

    async def send(self, shop: Shop, kind: str, **fields: Any) -> int:
        """Post a native event, signed as Standard Webhooks; returns the answer's status."""
        event = {"kind": kind, "service": f"shop-{shop.name}", "environment": shop.environment, **fields}
        body = json.dumps(event).encode()
        message_id, timestamp = f"msg_{secrets.token_hex(8)}", str(int(time.time()))
        signed = f"{message_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.digest(self.signing_key, signed, hashlib.sha256)).decode()
        headers = {
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
            "Content-Type": "application/json",
        }
        return await self._post("/hooks/rollbackd", body, headers)

    async def send_alert(self, shop: Shop, name: str, severity: str, summary: str) -> int:
        """Post an alert as Alertmanager does."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{int(time.time() * 1000) % 1000:03d}Z"
        labels = {
            "alertname": name,
            "service": f"shop-{shop.name}",
            "environment": shop.environment,
            "severity": severity,
        }
        alert = {
            "status": "firing",
            "labels": labels,
            "annotations": {"summary": summary},
            "startsAt": now,
            "endsAt": "0001-01-01T00:00:00Z",
            "fingerprint": hashlib.sha256(f"{shop.name}{name}".encode()).hexdigest()[:16],
        }
        body = json.dumps(
            {"version": "4", "status": "firing", "receiver": "rollbackd", "alerts": [alert]}
        ).encode()
        headers = {"Authorization": f"Bearer {self.alert_token}", "Content-Type": "application/json"}
        return await self._post("/hooks/alertmanager", body, headers)

    async def _post(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        assert self.session is not None
        async with self.session.post(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers=headers
        ) as answer:
            return answer.status

    async def api(
        self, method: str, path: str, *, who: str = "cd", body: dict[str, Any] | None = None
    ) -> Any:
        """Ask the API with somebody's token."""
        assert self.session is not None
        headers = {"Authorization": f"Bearer {self.tokens[who]}", "Accept": "application/json"}
        async with self.session.request(
            method, f"http://127.0.0.1:{self.port}{path}", json=body, headers=headers
        ) as answer:
            document = await answer.json()
            if answer.status >= 400:
                raise RefusedError(f"{path} answered {answer.status}: {document.get('error')}")
            return document

    async def order(self, shop: Shop, count: int) -> int:
        """Place orders in the shop, as its customers do; returns how many were taken."""
        assert self.session is not None
        taken = 0
        for _ in range(count):
            async with self.session.post(f"http://127.0.0.1:{shop.port}/orders", json={}) as answer:
                taken += answer.status in (200, 201)
        return taken

    async def get(self, shop: Shop, path: str) -> int:
        """Status of a page of the shop; 0 when nothing answers."""
        assert self.session is not None
        try:
            async with self.session.get(f"http://127.0.0.1:{shop.port}{path}") as answer:
                return answer.status
        except aiohttp.ClientError:
            return 0

    # -- looking at the database ---------------------------------------------------------------------------------------

    async def administer(self, statement: str) -> None:
        """Run a statement on the server's own database."""
        await self.execute("postgres", statement)

    async def execute(self, database: str, statement: str) -> None:
        """Run a statement."""
        connection = await asyncpg.connect(self.postgres.url(database))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def columns(self, database: str) -> dict[str, list[str]]:
        """Every table's columns, by name."""
        rows = await self._fetch(
            database,
            "SELECT table_name, array_agg(column_name::text ORDER BY column_name) FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name)"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND table_name <> 'alembic_version' GROUP BY 1",
        )
        return {row[0]: list(row[1]) for row in rows}

    async def rows(self, database: str, columns: dict[str, list[str]]) -> Rows:
        """Every row of these tables, as text, sorted: what "row by row" is compared by."""
        found: Rows = {}
        for table, names in columns.items():
            listed = ", ".join(f'"{name}"' for name in names)
            query = f'SELECT ROW({listed})::text FROM "{table}" ORDER BY 1'  # noqa: S608 - the catalog's own names
            rows = await self._fetch(database, query)
            found[table] = [row[0] for row in rows]
        return found

    async def heads(self, database: str) -> list[str]:
        """The version table's rows."""
        return [
            row[0]
            for row in await self._fetch(database, "SELECT version_num FROM alembic_version ORDER BY 1")
        ]

    async def _fetch(self, database: str, query: str) -> list[Any]:
        connection = await asyncpg.connect(self.postgres.url(database))
        try:
            return list(await connection.fetch(query))
        finally:
            await connection.close()

    async def run_tool(self, argv: list[str]) -> int:
        """Run one of PostgreSQL's own programs as a person would, with the password in a file."""
        passfile = self.folder / "pgpass"
        _write_secret(passfile, f"*:*:*:*:{self.postgres.password}")
        bin_directory = self.postgres.bin_directory
        environment = {
            **os.environ,
            "PATH": f"{bin_directory}:{os.environ.get('PATH', '')}",
            "PGPASSFILE": str(passfile),
        }
        if argv[0] == "createdb":
            await self.administer(f'CREATE DATABASE "{argv[-1]}" TEMPLATE template0')
            return 0
        process = await asyncio.create_subprocess_exec(
            *argv, env=environment, stdin=asyncio.subprocess.DEVNULL
        )
        return await asyncio.wait_for(process.wait(), COMMAND_S)

    def processes_left(self) -> list[int]:
        """Pids that still have this stage's folder on their command line; none should, after clearing away."""
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                        left.append(int(entry.name))
        return left


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
