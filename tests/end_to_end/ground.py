"""What the whole thing stands on in these tests: a real server, a real Alembic project, a service, and the daemon."""

import base64
import contextlib
import copy
import hashlib
import hmac
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import psycopg

from rollbackd.demo.postgres import EmbeddedPostgres

HERE = Path(__file__).resolve().parent
DAEMON = HERE.parent.parent / "daemon"
PATIENCE_S = 60.0
POLL_S = 0.05
OLD, NEW = "1.0", "2.0"
SIGNING_KEY = b"a key of thirty-two bytes, or so"

ENV_PY = """
import os

from alembic import context
from sqlalchemy import create_engine, pool

connectable = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
with connectable.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


def wait_until(happened: Callable[[], Any], what: str | Callable[[], object]) -> Any:
    """Poll until it is true; returns what it was. `what` is waited for, or tells what is there instead."""
    until = time.monotonic() + PATIENCE_S
    while not (found := happened()):
        assert time.monotonic() < until, (
            f"not within {PATIENCE_S:g} s: {what if isinstance(what, str) else what()}"
        )
        time.sleep(POLL_S)
    return found


class Project:
    """An Alembic project on disk; its env.py takes the database from DATABASE_URL."""

    def __init__(self, folder: Path, python: str = sys.executable, driver: str = "psycopg") -> None:
        self.folder = folder
        self.python = python
        self.driver = driver
        self.last: str | None = None
        (folder / "migrations" / "versions").mkdir(parents=True)
        ini = "[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = os\n"
        (folder / "alembic.ini").write_text(ini)
        self.env_py(ENV_PY)

    def env_py(self, text: str) -> None:
        (self.folder / "migrations" / "env.py").write_text(dedent(text))

    def revision(
        self, name: str, upgrade: str, downgrade: str, *, down: str | tuple[str, ...] | None = None
    ) -> None:
        """Write a revision on top of the last one, or of `down`."""
        below = self.last if down is None else down
        (self.folder / "migrations" / "versions" / f"{name}.py").write_text(
            f'"""{name.replace("_", " ")}"""\nfrom alembic import op\nimport sqlalchemy as sa\n\n'
            f"revision = {name!r}\ndown_revision = {below!r}\n\n\n"
            f"def upgrade():\n{indent(dedent(upgrade), '    ')}\n\n\n"
            f"def downgrade():\n{indent(dedent(downgrade), '    ')}\n"
        )
        self.last = name

    def alembic(self, url: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the project's own Alembic, as a CD system does."""
        done = subprocess.run(
            [self.python, "-m", "alembic", *argv],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done


class Health:
    """Answers for services: GET /FOLDER is 200 while a version runs there that isn't listed in FOLDER/broken."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                folder = Path(self.path)
                with contextlib.suppress(OSError):
                    version = (folder / "running").read_text()
                    broken = (folder / "broken").read_text() if (folder / "broken").exists() else ""
                    self.send_response(503 if version == broken else 200)
                    self.end_headers()
                    return
                self.send_response(502)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def url(self, folder: Path) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}{folder}"


class Ground:
    """One guarded database with its project, its service and its daemon."""

    def __init__(
        self, folder: Path, server: EmbeddedPostgres, project: Project, health: Health, database: str
    ) -> None:
        self.folder = folder
        self.server = server
        self.project = project
        self.database = database
        self.service = folder / "service"
        self.service.mkdir()
        self.log = folder / "daemon.log"
        self.config = folder / "rollbackd.toml"
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.roles: list[str] = []
        # Sections beside the target, such as `prometheus` and more hooks.
        self.sections: dict[str, Any] = {}
        self.secret("password", server.password)
        self.secret("signing-key", "whsec_" + base64.b64encode(SIGNING_KEY).decode())
        control = [sys.executable, "-I", "-S", str(HERE / "service.py"), str(self.service)]
        self.target: dict[str, Any] = {
            "name": "shop",
            "service": "shop",
            "environment": "staging",
            "database": {
                "url": self.place(),
                "password": f"file:{folder}/password",
                "binaries": str(server.bin_directory),
            },
            "migrations": {
                "directory": str(project.folder),
                "python": [project.python],
                "url": "environment:DATABASE_URL",
                "driver": project.driver,
            },
            "scratch": {"same_server": True},
            "backup": {"directory": str(folder / "backups")},
            "policy": {
                "mode": "automatic",
                "confirm_for": "300ms",
                "start_grace": "20s",
                "bake_time": "60s",
                "watch_after_rollback": "500ms",
            },
            "deployment": {
                "stop": {"command": [*control, "stop"], "done_when": [*control, "is-stopped"]},
                "start": {
                    "command": [*control, "start", "{version}"],
                    "done_when": [*control, "is-running", "{version}"],
                },
            },
            "probes": [
                {
                    "name": "health",
                    "url": health.url(self.service),
                    "interval": "200ms",
                    "failures": 3,
                    "successes": 3,
                }
            ],
        }
        self.configure()
        self.runs_version(NEW)

    # -- setting it up -------------------------------------------------------------------------------------------------

    def place(self, user: str = "") -> str:
        """The database's URL without a password, as the configuration wants it."""
        return (
            f"postgresql://{user or self.server.user}@{self.server.host}:{self.server.port}/{self.database}"
        )

    def configure(self, **sections: Any) -> None:
        """Write the configuration; sections of the target are merged into what is there, other values replaced."""
        for name, section in sections.items():
            if isinstance(section, dict):
                self.target.setdefault(name, {}).update(section)
            else:
                self.target[name] = section
        target = copy.deepcopy(self.target)
        settings = {
            "server": {"listen": "127.0.0.1:0"},
            "store": {"directory": str(self.folder / "store")},
            "logging": {"format": "json"},
            **self.sections,
            "hooks": {
                "rollbackd": {"secrets": [f"file:{self.folder}/signing-key"]},
                **self.sections.get("hooks", {}),
            },
        }
        text = "".join(f"{name} = {toml(section)}\n" for name, section in settings.items())
        self.config.write_text(f"{text}targets = [{toml(target)}]\n")

    def secret(self, name: str, text: str) -> str:
        """A file with a secret: the reference to it."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return f"file:{path}"

    def role(self, attributes: str, *grants: str) -> tuple[str, str]:
        """A login role: its name and the reference to its password."""
        name = f"role_{uuid.uuid4().hex[:8]}"
        self.query(f"CREATE ROLE {name} LOGIN PASSWORD 'pw-{name}' {attributes}")
        self.roles.append(name)
        for grant in grants:
            self.query(grant.format(role=name))
        return name, self.secret(name, f"pw-{name}")

    def runs_version(self, version: str) -> None:
        """The service runs this version, as if somebody had deployed it."""
        (self.service / "running").write_text(version)

    # -- looking -------------------------------------------------------------------------------------------------------

    def query(self, statement: str, database: str = "") -> list[tuple[Any, ...]]:
        url = self.server.url(database or self.database)
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def heads(self, table: str = "alembic_version") -> list[str]:
        return [row[0] for row in self.query(f"SELECT version_num FROM {table} ORDER BY 1")]

    def rows(self, table: str, columns: str = "*") -> list[tuple[Any, ...]]:
        return self.query(f"SELECT {columns} FROM {table} ORDER BY 1")

    def running(self) -> str:
        """The version that the service runs; empty when it is stopped."""
        path = self.service / "running"
        return path.read_text() if path.exists() else ""

    def commands(self) -> list[str]:
        """Every stop and start of the service, in order."""
        path = self.service / "commands"
        return path.read_text().splitlines() if path.exists() else []

    def world(self) -> dict[str, Any]:
        """Everything that a refusal must leave as it was: schema, rows, revision, service."""
        columns = self.query(
            "SELECT table_schema, table_name, column_name, data_type, is_nullable FROM information_schema.columns"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2, ordinal_position"
        )
        tables = sorted({f'"{schema}"."{table}"' for schema, table, *_ in columns})
        indexes = self.query("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
        rows = {t: self.query(f"SELECT t::text FROM {t} t ORDER BY 1") for t in tables}
        return {
            "columns": columns,
            "indexes": indexes,
            "rows": rows,
            "running": self.running(),
            "commands": self.commands(),
        }

    def scratch_databases(self) -> list[str]:
        """Scratch databases on the server; tests of one process take turns, so all of them are this ground's."""
        return [
            row[0] for row in self.query("SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd%'")
        ]

    def backups(self, purpose: str = "") -> list[Path]:
        """Complete backups on disk, oldest first, of one purpose where it is named."""
        manifests = (self.folder / "backups" / "shop").glob("[!.]*/manifest.json")
        found = [(json.loads(m.read_text()), m.parent) for m in manifests]
        known = sorted((m["created_at"], place) for m, place in found if purpose in ("", m["purpose"]))
        return [place for _, place in known]

    def leftovers(self) -> list[str]:
        """What unfinished backups and proofs leave behind, on disk and on the server."""
        folder = self.folder / "backups" / "shop"
        hidden = [*folder.glob(".*"), *folder.glob("*/.*")]
        return [*map(str, hidden), *self.scratch_databases()]

    # -- the command line ----------------------------------------------------------------------------------------------

    def rollbackd(self, *argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "rollbackd", "--config", str(self.config), *argv],
            env=environment(),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    # -- the daemon ----------------------------------------------------------------------------------------------------

    def start(
        self,
        point: dict[str, Any] | None = None,
        *,
        more_environment: dict[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ) -> subprocess.Popen[bytes]:
        """Start the daemon, or with a point the one that kills itself there; returns when it answers, or has died."""
        argv = [*launcher, sys.executable, "-m", "rollbackd", "--config", str(self.config), "serve"]
        if point is not None:
            argv = [sys.executable, str(HERE / "killable_daemon.py"), str(self.config), json.dumps(point)]
        with self.log.open("ab") as log:
            env = {**environment(), **(more_environment or {})}
            daemon = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=log)
        self.daemons.append(daemon)
        wait_until(lambda: daemon.poll() is not None or self._answers(), "the daemon answers")
        return daemon

    def stop(self) -> None:
        """End what was started here, whatever state it is in."""
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
                try:
                    daemon.wait(30)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
        self.daemons.clear()

    def clean(self) -> None:
        """Remove from the server what a failing test leaves for the next one to trip over."""
        for name in self.scratch_databases():
            self.query(f'DROP DATABASE "{name}" WITH (FORCE)')
        for name in self.roles:
            self.query(f"DROP OWNED BY {name} CASCADE")
            self.query(f"DROP ROLE {name}")

    def words(self) -> str:
        """What the daemon logged last."""
        return self.log.read_text()[-4000:] if self.log.exists() else "nothing"

    def _answers(self) -> bool:
        try:
            return self.ask("GET", "/livez")[0] == 200
        except OSError:
            return False

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str = ""
    ) -> tuple[int, Any]:
        """Ask the daemon through its Unix socket, or by TCP with a token; the status and the document."""
        connection: http.client.HTTPConnection
        headers = {"Content-Type": "application/json"}
        if token:
            connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=PATIENCE_S)
            headers["Authorization"] = f"Bearer {token}"
        else:
            connection = UnixConnection(self.folder / "store" / "rollbackd.sock")
        return self._request(connection, method, path, json.dumps(body or {}).encode(), headers)

    def send(self, kind: str, **fields: Any) -> int:
        """Post a native event, signed as Standard Webhooks; the answer's status."""
        event = {"kind": kind, "service": "shop", "environment": self.target["environment"], **fields}
        body = json.dumps(event).encode()
        message, timestamp = f"msg_{secrets.token_hex(8)}", str(int(time.time()))
        signed = f"{message}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.digest(SIGNING_KEY, signed, hashlib.sha256)).decode()
        headers = {
            "webhook-id": message,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{signature}",
            "Content-Type": "application/json",
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=PATIENCE_S)
        return self._request(connection, "POST", "/hooks/rollbackd", body, headers)[0]

    def port(self) -> int:
        """Where the newest daemon listens."""
        started = [line for line in self.log.read_text().splitlines() if '"daemon_started"' in line]
        return int(json.loads(started[-1])["port"])

    def _request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: dict[str, str],
    ) -> tuple[int, Any]:
        with contextlib.closing(connection):
            connection.request(method, path, body if method == "POST" else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json and text else text

    # -- runs ----------------------------------------------------------------------------------------------------------

    def ask_rollback(self, to: str, **more: str) -> tuple[int, Any]:
        """POST /api/v1/rollbacks, for the release before."""
        body = {"target": "shop", "to": to, "reason": "checkout is down", "release": OLD, **more}
        return self.ask("POST", "/api/v1/rollbacks", body)

    def run(self) -> dict[str, Any]:
        """The newest run with its plan and journal; empty when there is none."""
        runs = self.ask("GET", "/api/v1/runs?limit=1")[1]
        return dict(self.ask("GET", f"/api/v1/runs/{runs[0]['id']}")[1]) if runs else {}

    def ended_run(self) -> dict[str, Any]:
        """The newest run, once it needs nobody or somebody else."""

        def ended() -> dict[str, Any]:
            run = self.run()
            return run if run and run["state"] not in ("planned", "running") else {}

        try:
            return dict(wait_until(ended, "the run ends"))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.words()}") from None

    def deploy(self, to_revision: str = "head", version: str = NEW) -> None:
        """Deploy as a CD system does: pass the gate, migrate, start, and say so."""
        said = {"version": version, "previous_version": OLD, "deployment": f"ci-{version}"}
        gate = self.rollbackd(
            "gate",
            "shop",
            "--version",
            version,
            "--previous-version",
            OLD,
            "--deployment",
            f"ci-{version}",
            "--json",
        )
        assert gate.returncode == 0, gate.stderr + gate.stdout
        assert json.loads(gate.stdout)["backup"]["level"] == 4
        assert self.send("migration.started", **said) == 202
        self.project.alembic(self.url(), "upgrade", to_revision)
        assert self.send("migration.applied", **said) == 202
        self.runs_version(version)
        assert self.send("deploy.succeeded", **said) == 202

    def url(self) -> str:
        """The database's URL as the project's env.py takes it; holds the password."""
        return self.server.url(self.database, driver=self.project.driver)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the daemon's Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("rollbackd", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def new_database(server: EmbeddedPostgres, template: str = "template0") -> Iterator[str]:
    """A database of its own, gone afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield name
    finally:
        with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def environment() -> dict[str, str]:
    """The environment of a command of ours: this checkout, and nothing that a test run may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLBACKD", "PYTEST"))}
    return {**kept, "PYTHONPATH": str(DAEMON)}


def toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return json.dumps(value)
