"""Keeping user code away from the world: from all of it while a downgrade is only read, and from all but the scratch
database while one is rehearsed.
"""

from __future__ import annotations

import importlib
import socket
import sys
import threading
from typing import Any, Callable

from .faults import Refused, TouchesTheWorld

PROCESSES = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.forkpty")
# What of a connection's parameters says where it goes and as whom; the rest (options, timeouts) is the user's.
WHERE = frozenset(
    [
        "host",
        "hostaddr",
        "port",
        "dbname",
        "database",
        "user",
        "password",
        "passfile",
        "dsn",
        "conninfo",
        "service",
        "ssl",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslpassword",
        "sslrootcert",
        "sslcrl",
        "unix_sock",
    ]
)


class Patches:
    """Attributes that are replaced for a while."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, attribute: str, by: Callable[[Callable[..., Any]], Any]) -> None:
        """Put `by(original)` in the attribute's place, where the owner itself has one."""
        if attribute in vars(owner):
            self._originals.append((owner, attribute, vars(owner)[attribute]))
            setattr(owner, attribute, by(getattr(owner, attribute)))

    def undo(self) -> None:
        for owner, attribute, original in reversed(self._originals):
            setattr(owner, attribute, original)
        self._originals.clear()


def loaded(name: str) -> Any:
    """The module, loaded now, so that user code can't load it unpatched; None where it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class Isolation:
    """While a downgrade is only rendered, it must reach nothing: no connection, no process, whatever opens it."""

    FORBIDDEN = ("socket.connect", *PROCESSES)

    def __init__(self) -> None:
        self._on = False
        self._patches = Patches()
        sys.addaudithook(self._audit)

    def __enter__(self) -> None:
        import sqlalchemy
        from sqlalchemy import event

        event.listen(sqlalchemy.engine.Engine, "do_connect", self._refuse)
        # libpq connects below Python, where no audit event tells of it.
        for driver in ("psycopg", "psycopg2"):
            module = loaded(driver)
            for owner in (module, getattr(module, "Connection", None)):
                if owner is not None:
                    self._patches.replace(owner, "connect", lambda _: self._refuse)
        self._patches.replace(loaded("_posixsubprocess"), "fork_exec", lambda _: self._refuse)
        self._on = True

    def __exit__(self, *_: Any) -> None:
        import sqlalchemy
        from sqlalchemy import event

        self._on = False
        self._patches.undo()
        event.remove(sqlalchemy.engine.Engine, "do_connect", self._refuse)

    def _audit(self, name: str, _: Any) -> None:
        if self._on and name in self.FORBIDDEN:
            self._refuse()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TouchesTheWorld("it opens a connection or a process of its own")


class OnlyScratch:
    """For the whole life of a rehearsing worker: every connection leads to the scratch database, or isn't made.

    `place` has host, port, database, user, password, options (ssl parameters by libpq's names) and mark, the comment by
    which the database is known. `reached_out` says what was refused, as user code may go on as if nothing had been.
    """

    def __init__(self, place: dict[str, Any]) -> None:
        self.reached_out = ""
        self._on = False
        self._moves = 0
        self._place: dict[str, Any] = {}
        self._addresses: set[Any] = set()
        self.move(place)

    def move(self, place: dict[str, Any]) -> None:
        """Let this be the scratch database from now on."""
        host, port = str(place["host"]), int(place["port"])
        if (host, port) != (self._place.get("host"), self._place.get("port")):
            was_on, self._on = self._on, False
            if host.startswith("/"):
                self._addresses = {f"{host}/.s.PGSQL.{port}"}
            else:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                self._addresses = {(str(address[4][0]), port) for address in found}
            self._on = was_on
        self._moves += 1
        self._place = place

    def begin(self) -> None:
        """From here on, before any user code is loaded."""
        import sqlalchemy
        from sqlalchemy import event

        event.listen(sqlalchemy.engine.Engine, "do_connect", self._redirect)
        # An application's engine outlives one run of env.py, and its pool the scratch database of that run.
        event.listen(sqlalchemy.pool.Pool, "connect", self._note)
        event.listen(sqlalchemy.pool.Pool, "checkout", self._require_current)
        patches = Patches()
        psycopg, psycopg2, asyncpg = loaded("psycopg"), loaded("psycopg2"), loaded("asyncpg")
        if psycopg is not None:
            read = importlib.import_module("psycopg.conninfo").conninfo_to_dict
            for owner in (psycopg, psycopg.Connection, psycopg.AsyncConnection):
                patches.replace(owner, "connect", self._checking(read))
        if psycopg2 is not None:
            read = importlib.import_module("psycopg2.extensions").parse_dsn
            patches.replace(
                psycopg2, "connect", self._checking(lambda dsn="", **more: {**read(dsn or ""), **more})
            )
        if asyncpg is not None:
            for owner in (asyncpg, asyncpg.connection):
                patches.replace(owner, "connect", self._checking(self._read_asyncpg))
            patches.replace(asyncpg, "create_pool", self._checking(self._read_asyncpg))
        pg8000 = loaded("pg8000.core")
        if pg8000 is not None:
            patches.replace(pg8000.CoreConnection, "__init__", self._checking(lambda _="", **more: more))
        # By it multiprocessing starts its processes, of which no audit event tells.
        patches.replace(loaded("_posixsubprocess"), "fork_exec", self._checking_processes)
        sys.addaudithook(self._audit)
        self._on = True

    def require_mark(self, connection: Any) -> None:
        """Raise unless this connection shows the scratch mark."""
        found = connection.exec_driver_sql(
            "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        ).one()
        if tuple(found) != (self._place["database"], self._place["mark"]):
            raise Refused(
                f"env.py connects to {found[0]}, which isn't the scratch database of this rehearsal: nothing was run"
            )

    def _refuse(self, what: str) -> Any:
        # What is refused to a thread that goes its own way (telemetry, mostly) is no part of the migration.
        if threading.current_thread() is threading.main_thread():
            self.reached_out = self.reached_out or what
        raise TouchesTheWorld(what)

    def _redirect(self, dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]) -> Any:
        if dialect.name != "postgresql":
            self._refuse(f"it connects to {dialect.name} besides PostgreSQL")
        if "async_creator_fn" in parameters:
            self._refuse("it opens its connections by a function of its own (async_creator_fn)")
        arguments.clear()
        for name in WHERE.intersection(parameters):
            del parameters[name]
        place = self._place
        by_libpq = dialect.driver.startswith("psycopg")
        parameters.update(host=place["host"], port=int(place["port"]), user=place["user"])
        parameters["dbname" if by_libpq else "database"] = place["database"]
        if place["password"]:
            parameters["password"] = place["password"]
        if by_libpq:
            parameters.update(place["options"])
        elif "sslmode" in place["options"] and dialect.driver == "asyncpg":
            parameters["ssl"] = place["options"]["sslmode"]
        # Opened here, or a listener that comes after this one could lead it elsewhere, or log in as somebody else.
        return dialect.connect(*arguments, **parameters)

    def _note(self, _: Any, record: Any) -> None:
        record.info["rollbackd"] = self._moves

    def _require_current(self, _: Any, record: Any, __: Any) -> None:
        from sqlalchemy.exc import DisconnectionError

        # The same name may be another database by now. The pool answers it with a new connection.
        if record.info.get("rollbackd") != self._moves:
            raise DisconnectionError("that was the scratch database of an earlier rehearsal")

    def _checking_processes(self, original: Callable[..., Any]) -> Any:
        def start(*arguments: Any, **more: Any) -> Any:
            return (
                original(*arguments, **more)
                if not self._on
                else self._refuse("it starts a process of its own")
            )

        return start

    def _checking(self, read: Callable[..., dict[str, Any]]) -> Callable[[Callable[..., Any]], Any]:
        """A driver's connect(), called only when what it is given leads to the scratch database."""

        def patch(original: Callable[..., Any]) -> Any:
            def connect(*arguments: Any, **parameters: Any) -> Any:
                given = [argument for argument in arguments if isinstance(argument, str)]
                asked = {name: value for name, value in parameters.items() if name in WHERE}
                try:
                    where = read(*given[:1], **asked)
                except Exception as error:  # noqa: BLE001 - whatever it can't read it can't vouch for
                    return self._refuse(f"it connects to what can't be read ({type(error).__name__})")
                database = where.get("dbname") or where.get("database") or "its default"
                host, port = where.get("host") or "its default host", where.get("port") or 5432
                asked_for = (str(host), str(port), database)
                if asked_for != tuple(str(self._place[name]) for name in ("host", "port", "database")) or (
                    "hostaddr" in where
                ):
                    return self._refuse(f"it opens a connection of its own, to {database} at {host}:{port}")
                return original(*arguments, **parameters)

            return connect

        return patch

    @staticmethod
    def _read_asyncpg(dsn: str = "", **parameters: Any) -> dict[str, Any]:
        from sqlalchemy.engine import make_url

        named = parameters.pop("dsn", None) or dsn
        if not named:
            return parameters
        url = make_url(named)
        read = {"database": url.database, "host": url.host or url.query.get("host"), "port": url.port}
        return {**read, **{name: value for name, value in parameters.items() if value is not None}}

    def _audit(self, name: str, arguments: Any) -> None:
        if not self._on:
            return
        if name in PROCESSES:
            self._refuse("it starts a process of its own")
        if name == "socket.connect":
            address = arguments[1]
            met = address if isinstance(address, str) else tuple(address[:2])
            if met not in self._addresses:
                self._refuse(f"it connects to {met if isinstance(met, str) else ':'.join(map(str, met))}")
