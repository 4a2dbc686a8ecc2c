"""The migration worker: runs inside the target's own interpreter, so it needs the standard library, alembic and
sqlalchemy alone. Its source is handed over on standard input; requests and answers are JSON lines.

The user's env.py is never modified. `EnvironmentContext.configure` is wrapped on the instance, and so the very
connection that env.py opens is met, sync or async, whatever driver it uses.
"""

# Paths are strings here: that is what Alembic and the user's code take and give.
# ruff: noqa: PTH100, PTH109, PTH113, PTH116, PTH117, PTH118, PTH119, PTH123

from __future__ import annotations

import argparse
import ast
import base64
import builtins
import hashlib
import importlib
import io
import json
import os
import re
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Iterable, Iterator, Sequence

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import Script, ScriptDirectory
    from sqlalchemy.engine import Connection

    Answer = dict[str, Any]
    Functions = dict[str, ast.FunctionDef]

# Advisory locks belong to one database, so one constant key is one lock for each database. The digits spell "rollback".
LOCK_KEY = 0x726F6C6C6261636B
MARKER = "rollbackd:"
# Who a server is where its administrators let nobody call pg_control_system(): when it started, to the microsecond.
STARTED = "started "
START_IDENTITY = "SELECT 'started ' || extract(epoch FROM pg_postmaster_start_time())::text"
TRANSIENT_STATES = ("55P03", "40P01", "40001", "53300", "57P01", "57P02", "57P03")
MOST_SCRIPT_BYTES = 64 * 1024 * 1024
# What is kept of a script folder: scripts, and the data that migrations read beside them.
KEPT_ENDINGS = (
    ".py",
    ".mako",
    ".sql",
    ".psql",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".yaml",
    ".yml",
    ".toml",
    ".xml",
)
# In kept scripts: where version folders that lay outside the script folder went, in the order of the ini file.
LOCATIONS_FILE = "rollbackd-version-locations.json"


class Refused(Exception):
    """Something that the user must mend first; nothing was changed."""


class Transient(Exception):
    """Something that may pass by itself."""


class AsksQuestion(BaseException):
    """User code called input(). A BaseException, so that a bare `except Exception` in user code can't swallow it."""


class TouchesTheWorld(BaseException):
    """User code tried to reach something while it was only being read. A BaseException, for the same reason."""


class Isolation:
    """While a downgrade is only rendered, it must reach nothing: no connection, no process, whatever opens it."""

    FORBIDDEN = (
        "socket.connect",
        "subprocess.Popen",
        "os.system",
        "os.posix_spawn",
        "os.exec",
        "os.fork",
        "os.forkpty",
    )

    def __init__(self) -> None:
        self._on = False
        self._patched: list[tuple[Any, str, Any]] = []
        sys.addaudithook(self._audit)

    def __enter__(self) -> None:
        import sqlalchemy
        from sqlalchemy import event

        event.listen(sqlalchemy.engine.Engine, "do_connect", self._refuse)
        # libpq connects below Python, where no audit event tells of it.
        for driver in ("psycopg", "psycopg2"):
            try:
                # Loaded now, so that user code can't load it unpatched.
                module: Any = importlib.import_module(driver)
            except ImportError:
                continue
            for owner in (module, getattr(module, "Connection", None)):
                if owner is not None and "connect" in vars(owner):
                    self._patched.append((owner, "connect", vars(owner)["connect"]))
                    owner.connect = self._refuse
        self._on = True

    def __exit__(self, *_: Any) -> None:
        import sqlalchemy
        from sqlalchemy import event

        self._on = False
        for owner, attribute, original in reversed(self._patched):
            setattr(owner, attribute, original)
        self._patched.clear()
        event.remove(sqlalchemy.engine.Engine, "do_connect", self._refuse)

    def _audit(self, name: str, _: Any) -> None:
        if self._on and name in self.FORBIDDEN:
            self._refuse()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TouchesTheWorld("it opens a connection or a process of its own")


class Channel:
    """JSON lines to the parent. A parent that died is ignored: what was begun is finished, and the database tells."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        data = (json.dumps(message, default=str) + "\n").encode()
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BrokenPipeError:
                    return


class Words(io.RawIOBase):
    """What user code prints, on its way to stderr; a parent that died must not fail a migration that prints."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, data: Any) -> int:
        left = bytes(data)
        try:
            while left:
                left = left[os.write(2, left) :]
        except OSError:
            pass
        return len(data)


class Worker:
    """Answers requests about one Alembic environment."""

    config: Config
    script: ScriptDirectory

    def __init__(self, channel: Channel) -> None:
        self.isolation = Isolation()
        self.channel = channel
        self.ini = ""
        self.files: dict[str, tuple[int, int]] = {}

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(
        self,
        directory: str,
        ini: str,
        section: str,
        options: dict[str, str],
        x: list[str],
        script_location: str = "",
    ) -> Answer:
        """Load the scripts; everything that costs time happens here, before it is needed."""
        # `python -c` puts the current folder first; a project's own folder named alembic must not hide the package.
        sys.path[:] = [path for path in sys.path if path]
        sys.dont_write_bytecode = True
        try:
            import alembic
            import sqlalchemy
            from alembic.config import Config
            from alembic.script import ScriptDirectory
        except ImportError as error:
            raise Refused(
                f"the interpreter {sys.executable} can't import {error.name}: 'migrations.python' must name the one that"
                " runs the target's migrations"
            ) from None
        try:
            os.chdir(directory)
        except OSError as error:
            raise Refused(f"the migrations folder {directory} can't be entered: {error.strerror}") from None
        sys.path.append(os.getcwd())
        self.ini = os.path.abspath(ini)
        if not os.path.isfile(self.ini):
            raise Refused(
                f"{os.path.join(directory, ini)} isn't there: 'migrations.ini' names Alembic's ini file"
            )
        try:
            self.config = Config(ini, ini_section=section, cmd_opts=argparse.Namespace(x=list(x)))
            for name, value in options.items():
                self.config.set_main_option(name, value.replace("%", "%%"))
            if script_location:
                self.config.set_main_option("script_location", script_location.replace("%", "%%"))
            self.script = ScriptDirectory.from_config(self.config)
            # User code may change the current folder; nothing here may depend on it.
            self.script.dir = os.path.abspath(self.script.dir)
            locations = os.path.join(script_location, LOCATIONS_FILE)
            if script_location and os.path.isfile(locations):
                with open(locations, "rb") as file:
                    kept = json.loads(file.read())
                self.script.version_locations = [os.path.join(script_location, place) for place in kept]
            elif self.script.version_locations:
                self.script.version_locations = [
                    os.path.abspath(str(place)) for place in self.script._version_locations
                ]
                self.script.__dict__.pop("_version_locations", None)
            # Walking the map imports every script; an error in any of them shows now.
            tuple(self.script.revision_map._revision_map)
        except (Exception, SystemExit) as error:
            place = where_in_user_code(error)
            raise Refused(
                f"the migration scripts can't be loaded: {type(error).__name__}: {first_line(error)}"
                + (f" (at {place})" if place else "")
            ) from error
        self.files = self._stat_files()
        return {
            "python": f"{sys.executable} {sys.version.split()[0]}",
            "alembic": alembic.__version__,
            "sqlalchemy": sqlalchemy.__version__,
        }

    def is_current(self) -> Answer:
        """Whether no script changed since it was loaded."""
        try:
            return {"current": self._stat_files() == self.files}
        except OSError:
            return {"current": False}

    def _outside(self) -> list[str]:
        """The version folders that lie outside the script folder."""
        return [place for place in self._places() if not is_inside(place, self.script.dir)]

    def _places(self) -> list[str]:
        return [os.path.abspath(str(place)) for place in self.script._version_locations or ()]

    def _script_files(self) -> list[tuple[str, str]]:
        """Every file as (name that it is kept under, path), sorted; each file once."""
        folders = [("", self.script.dir)]
        folders += [(f".version-locations/{i}", place) for i, place in enumerate(self._outside())]
        found: dict[str, str] = {}
        for prefix, folder in folders:
            for base, subfolders, names in os.walk(folder):
                subfolders[:] = [
                    s for s in subfolders if s != "__pycache__" and (not s.startswith(".") or not prefix)
                ]
                for name in names:
                    path = os.path.join(base, name)
                    if name.endswith(KEPT_ENDINGS) and name != LOCATIONS_FILE and os.path.isfile(path):
                        found[os.path.join(prefix, os.path.relpath(path, folder))] = path
        return sorted(found.items())

    def _stat_files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in [self.ini, *(path for _, path in self._script_files())]:
            state = os.stat(path)
            found[path] = (state.st_mtime_ns, state.st_size)
        return found

    # -- reading ---------------------------------------------------------------------------------------------------

    def describe(self) -> Answer:
        """The revision graph and the digest of the scripts."""
        revisions = [
            {
                "id": revision.revision,
                "down": list(revision._versioned_down_revisions),
                "depends_on": sorted(set(revision._normalized_resolved_dependencies)),
                "branch_labels": sorted(revision._orig_branch_labels),
                "title": revision.doc.strip(),
            }
            for revision in self.script.walk_revisions()
        ]
        return {"revisions": revisions, "scripts_sha256": self._digest()}

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, path in self._script_files():
            with open(path, "rb") as file:
                content = file.read()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def export(self) -> Answer:
        """The scripts themselves, so that a downgrade works when the release that holds them is gone."""
        files, total = {}, 0
        for name, path in self._script_files():
            with open(path, "rb") as file:
                content = file.read()
            total += len(content)
            if total > MOST_SCRIPT_BYTES:
                raise Refused(f"the scripts are larger than {MOST_SCRIPT_BYTES} bytes, so they aren't kept")
            files[name] = base64.b64encode(content).decode()
        outside = self._outside()
        if self.script.version_locations:
            kept = [
                f".version-locations/{outside.index(place)}"
                if place in outside
                else os.path.relpath(place, self.script.dir)
                for place in self._places()
            ]
            files[LOCATIONS_FILE] = base64.b64encode(json.dumps(kept).encode()).decode()
        return {"files": files, "scripts_sha256": self._digest()}

    def read(self, revisions: list[str]) -> Answer:
        """Read and render each revision's downgrade without a database."""
        return {"revisions": [self._read_one(self._revision(r)) for r in revisions]}

    def _revision(self, revision_id: str) -> Script:
        from alembic.util import CommandError

        try:
            found = self.script.get_revision(revision_id)
        except CommandError as error:
            raise Refused(f"revision {revision_id} has no script here: {first_line(error)}") from None
        if found.revision != revision_id:
            raise Refused(f"revision {revision_id} has no script here")
        return found

    def _read_one(self, revision: Script) -> Answer:
        with open(revision.path, "rb") as file:
            source = file.read()
        functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        downgrade, upgrade = functions.get("downgrade"), functions.get("upgrade")
        body = body_of(downgrade, functions)
        reachable = [node for f in reachable_from("downgrade", functions) for node in ast.walk(f)]
        answer: Answer = {
            "id": revision.revision,
            "downgrade": body,
            "upgrade_is_empty": upgrade is None or body_of(upgrade, functions) == "empty",
            "stands_alone": reason_to_stand_alone(reachable),
            "source_sha256": hashlib.sha256(source).hexdigest(),
            "calls": literal_calls(reachable),
            "statements": [],
            "failed": "",
        }
        if body == "written" and asks_for_mode(reachable):
            answer["failed"] = "it does something else when it is only rendered (is_offline_mode, as_sql)"
        elif body == "written":
            try:
                with self.isolation:
                    answer["statements"] = self._render(revision)
            except (Exception, AsksQuestion, TouchesTheWorld, SystemExit) as error:  # noqa: BLE001 - user code
                answer["failed"] = f"{type(error).__name__}: {first_line(error)}"
        return answer

    def _render(self, revision: Script) -> list[str]:
        from alembic.operations import Operations
        from alembic.runtime.environment import EnvironmentContext

        statements: list[str] = []
        environment = EnvironmentContext(self.config, self.script, as_sql=True)
        with environment:
            environment.configure(dialect_name="postgresql", output_buffer=io.StringIO())
            context = environment.get_context()
            context.impl.static_output = lambda text: statements.append(text.strip().rstrip(";"))  # type: ignore[method-assign]
            with Operations.context(context):
                revision.module.downgrade()
        return [s for s in statements if not is_comment(s)]

    # -- running ---------------------------------------------------------------------------------------------------

    def environment(self) -> Answer:
        """Run env.py without migrating anything, and say what it showed."""
        seen: Answer = {}

        def look(heads: Sequence[str], context: MigrationContext) -> Iterable[Any]:
            seen.update(
                heads=sorted(heads),
                version_table=context.version_table,
                version_table_schema=context.version_table_schema or "",
                transaction_per_migration=bool(context._transaction_per_migration),
                commits_each_statement=commits_each_statement(context),
                search_path=search_path(context),
                driver=context.dialect.driver,
            )
            return ()

        self._run_env(look, self._require_postgresql)
        if not seen:
            raise Refused("env.py never called context.run_migrations(), so it migrates nothing")
        return seen

    def downgrade(  # noqa: PLR0913, PLR0917 - a request, its fields by name
        self,
        revisions: list[str],
        from_heads: list[str],
        to_heads: list[str],
        run: str,
        identity: dict[str, Any],
        scripts_sha256: str,
        preserved: dict[str, int],
        lock_timeout_s: float,
        statement_timeout_s: float,
        lock_wait_s: float,
    ) -> Answer:
        """Take off these revisions on the connection that env.py opens."""
        from alembic.runtime.migration import MigrationStep

        began = time.monotonic()
        counted = {"statements": 0, "marker": False}
        guarded: list[Connection] = []
        ran: list[bool] = []
        scripts = [self._revision(revision_id) for revision_id in revisions]
        if not self.is_current()["current"] or self._digest() != scripts_sha256:
            raise Refused(
                "the migration scripts changed since the plan was made: nothing was changed; plan anew"
            )

        def steps(heads: Sequence[str], context: MigrationContext) -> Iterator[Any]:
            if not any(context.connection is connection for connection in guarded):
                raise Refused("env.py migrates on a connection that it didn't configure: nothing was changed")
            if set(heads) != set(from_heads):
                raise Refused(
                    f"the version table says {', '.join(sorted(heads)) or 'base'}, the plan begins at"
                    f" {', '.join(sorted(from_heads)) or 'base'}: nothing was changed"
                )
            ran.append(True)
            for number, script in enumerate(scripts):
                self.channel.send(type="revision", revision=script.revision)
                step = MigrationStep.downgrade_from_script(self.script.revision_map, script)
                if number == 0 and preserved:
                    # Inside the step's own transaction, so that the locks hold until its end.
                    step.migration_fn = self._after_counting(step.migration_fn, context, preserved)
                yield step

        def guard(connection: Connection, options: dict[str, Any]) -> None:
            was_in_transaction = connection.in_transaction()
            self._require_postgresql(connection, options)
            self._require_identity(connection, identity)
            settings = {
                "application_name": f"rollbackd {run}"[:63],
                "lock_timeout": f"{int(lock_timeout_s * 1000)}",
                "statement_timeout": f"{int(statement_timeout_s * 1000)}",
                "row_security": "off",
            }
            if identity["server_version"] >= 140000:
                # Without it a backend works on for a client that is dead.
                settings["client_connection_check_interval"] = "1000"
            for name, value in settings.items():
                connection.exec_driver_sql("SET {} = '{}'".format(name, value.replace("'", "''")))
            self._take_lock(connection, lock_wait_s)
            # Connections of SQLAlchemy 1.4 have no commit(), and no transaction of their own to end.
            commit = getattr(connection, "commit", None)
            if commit is not None and not was_in_transaction:
                commit()
            if not any(connection is known for known in guarded):
                guarded.append(connection)
                listen_to_statements(connection, self.channel, counted)
            apply = options.get("on_version_apply") or ()
            own = tuple(apply) if isinstance(apply, (list, tuple, set)) else (apply,)
            options["on_version_apply"] = (*own, self._mark(connection, run, counted))

        self._run_env(steps, guard, destination=",".join(to_heads))
        if not ran:
            raise Refused("env.py never called context.run_migrations(), so nothing was downgraded")
        return {
            "statements": counted["statements"],
            "marker": counted["marker"],
            "seconds": round(time.monotonic() - began, 6),
        }

    def _run_env(
        self,
        steps: Callable[..., Iterable[Any]],
        guard: Callable[[Connection, dict[str, Any]], None],
        destination: str = "",
    ) -> None:
        from alembic.runtime.environment import EnvironmentContext

        # dont_mutate: without it Alembic makes a missing version table before anybody can object.
        environment = EnvironmentContext(
            self.config,
            self.script,
            fn=steps,
            as_sql=False,
            destination_rev=destination,
            tag=None,
            dont_mutate=True,
        )
        original = environment.configure

        def configure(connection: Connection | None = None, *args: Any, **kw: Any) -> None:
            if connection is not None:
                guard(connection, kw)
            original(connection, *args, **kw)

        environment.configure = configure  # type: ignore[method-assign]
        with environment:
            self.script.run_env()

    def _require_postgresql(self, connection: Connection, options: dict[str, Any]) -> None:
        if connection.dialect.name != "postgresql":
            raise Refused(f"env.py connects to {connection.dialect.name}; only PostgreSQL is supported")

    def _after_counting(
        self, downgrade: Callable[..., Any], context: MigrationContext, preserved: dict[str, int]
    ) -> Callable[..., Any]:
        def counted_first(**options: Any) -> Any:
            assert context.connection is not None, "a downgrade runs on a connection"
            self._require_rows(context.connection, preserved, locks=not commits_each_statement(context))
            return downgrade(**options)

        return counted_first

    def _require_rows(self, connection: Connection, preserved: dict[str, int], locks: bool) -> None:
        """Nobody may have written since the tables were dumped: they are locked, and then counted."""
        preparer = connection.dialect.identifier_preparer
        for name, rows in sorted(preserved.items()):
            schema, _, table = name.partition(".")
            quoted = f"{preparer.quote(schema)}.{preparer.quote(table)}"
            if locks:
                connection.exec_driver_sql(f"LOCK TABLE {quoted} IN SHARE ROW EXCLUSIVE MODE")
            found = connection.exec_driver_sql(f"SELECT count(*) FROM {quoted}").scalar()  # noqa: S608 - quoted
            if found != rows:
                raise Refused(
                    f"{name} holds {found} rows, and held {rows} when it was dumped: something still writes; nothing was"
                    " changed. Stop whatever it is, then ask for a rollback anew"
                )

    def _require_identity(self, connection: Connection, identity: dict[str, Any]) -> None:
        name, oid, readable = connection.exec_driver_sql(
            "SELECT d.datname, d.oid::bigint, has_function_privilege('pg_control_system()', 'EXECUTE')"
            " FROM pg_database d WHERE d.datname = current_database()"
        ).one()
        expected = identity["system_identifier"]
        if expected.startswith(STARTED):
            query = START_IDENTITY
        elif readable:
            query = "SELECT system_identifier::text FROM pg_control_system()"
        else:
            raise Refused(
                "the role that env.py connects as may not call pg_control_system(), so which server it meets can't be told:"
                " grant EXECUTE on that function to it"
            )
        if (oid, connection.exec_driver_sql(query).scalar()) != (identity["oid"], expected):
            raise Refused(
                f"env.py connects to database {name} of another server or name than the guarded {identity['database']}:"
                " nothing was changed; see 'migrations.url' in the configuration"
            )

    def _take_lock(self, connection: Connection, wait_s: float) -> None:
        until = time.monotonic() + wait_s
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({LOCK_KEY})").scalar():
            if time.monotonic() >= until:
                raise Transient(
                    f"another rollbackd session migrates this database; waited {wait_s:g} s for its lock"
                )
            time.sleep(0.1)

    def _mark(self, connection: Connection, run: str, counted: dict[str, Any]) -> Callable[..., None]:
        """A callback that commits a marker together with the version row: the comment of the version table."""

        def mark(ctx: Any, step: Any, heads: Any, run_args: Any, **kw: Any) -> None:
            import sqlalchemy
            from sqlalchemy.schema import SetTableComment

            version = ctx._version
            found = connection.execute(
                sqlalchemy.text(
                    "SELECT pg_has_role(c.relowner, 'USAGE'), obj_description(c.oid, 'pg_class') FROM pg_class c"
                    " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = :name"
                    " AND n.nspname = coalesce(:schema, current_schema())"
                ),
                {"name": version.name, "schema": version.schema},
            ).first()
            if found is not None and found[0]:
                kept = [line for line in (found[1] or "").splitlines() if not line.startswith(MARKER)]
                comment = "\n".join([*kept, f"{MARKER} {run} took off {', '.join(step.up_revision_ids)}"])
                table = sqlalchemy.Table(
                    version.name, sqlalchemy.MetaData(), schema=version.schema, comment=comment
                )
                connection.execute(SetTableComment(table))
                counted["marker"] = True
            self.channel.send(type="taken_off", revision=", ".join(step.up_revision_ids), heads=sorted(heads))

        return mark


def commits_each_statement(context: MigrationContext) -> bool:
    """Whether nothing can be undone: no transactional DDL, or a connection in autocommit."""
    if not context.impl.transactional_ddl:
        return True
    level = context.connection.get_isolation_level() if context.connection is not None else ""
    return str(level).upper() == "AUTOCOMMIT"


def search_path(context: MigrationContext) -> list[str]:
    """The schemas in which env.py's connection looks for an unqualified name."""
    if context.connection is None:
        return []
    found = context.connection.exec_driver_sql("SELECT unnest(current_schemas(false))::text").scalars()
    return [str(name) for name in found]


def listen_to_statements(connection: Connection, channel: Channel, counted: dict[str, Any]) -> None:
    """Stream each statement to the parent as it is executed."""
    from sqlalchemy import event

    @event.listens_for(connection, "before_cursor_execute")
    def executed(
        conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        counted["statements"] += 1
        channel.send(type="statement", text=" ".join(statement.split())[:4000])


# -- reading source -----------------------------------------------------------------------------------------------------


def reachable_from(name: str, functions: Functions) -> list[ast.FunctionDef]:
    """The function and those of the same file that it calls, each once."""
    found: list[ast.FunctionDef] = []
    waiting = [name]
    while waiting:
        function = functions.get(waiting.pop())
        if function is None or function in found:
            continue
        found.append(function)
        waiting += [
            n.func.id for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
    return found


def body_of(function: ast.FunctionDef | None, functions: Functions) -> str:
    """`missing`, `empty`, `raises`, `asks` or `written`."""
    if function is None:
        return "missing"
    statements = [s for s in function.body if not is_idle(s)]
    if not statements:
        return "empty"
    if isinstance(statements[0], ast.Raise):
        return "raises"
    for reached in reachable_from(function.name, functions):
        for node in ast.walk(reached):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
                return "asks"
    return "written"


def is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), os.path.realpath(folder)]) == os.path.realpath(folder)


def asks_for_mode(nodes: list[ast.AST]) -> bool:
    """Whether the code asks if it is being rendered: then what it renders says nothing of what it runs."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("is_offline_mode", "as_sql") for node in nodes
    )


def is_comment(text: str) -> bool:
    """Whether a rendered text says nothing: Alembic writes its own remarks between the statements."""
    return all(not line.strip() or line.lstrip().startswith("--") for line in text.splitlines())


def is_idle(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Pass):
        return True
    if isinstance(statement, ast.Return):
        return statement.value is None or isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def reason_to_stand_alone(nodes: list[ast.AST]) -> str:
    """Why it can't share a transaction, read from the source; empty where it can."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr == "autocommit_block":
            return "it leaves the transaction with autocommit_block()"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "commit":
            return "it commits by itself"
        if isinstance(node, ast.keyword) and node.arg == "postgresql_concurrently":
            return "it works on an index concurrently"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"\bCONCURRENTLY\b", node.value, re.IGNORECASE):
                return "it works on an index concurrently"
            if re.search(r"(^|;)\s*COMMIT\b", node.value, re.IGNORECASE):
                return "it commits by itself"
    return ""


def literal_calls(nodes: list[ast.AST]) -> list[dict[str, str]]:
    """`op.drop_table("t")`, `op.drop_column("t", "c")` and the like, as far as the arguments are literals."""
    calls = []
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        literals = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        schema = [
            k.value.value for k in node.keywords if k.arg == "schema" and isinstance(k.value, ast.Constant)
        ]
        if node.func.attr in ("drop_table", "drop_column") and literals:
            table = ".".join([*(str(s) for s in schema if s), literals[0]])
            column = literals[1] if node.func.attr == "drop_column" and len(literals) > 1 else ""
            calls.append({"name": node.func.attr, "table": table, "column": column})
    return calls


# -- errors -------------------------------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return redact(text.splitlines()[0])


def redact(text: str) -> str:
    """No password of any URL leaves the worker."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def where_in_user_code(error: BaseException) -> str:
    """The last frame that lies in the user's own files, as `file:line`."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.isabs(f.filename)]
    own = [
        f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(sys.base_prefix)
    ]
    return f"{os.path.basename(own[-1].filename)}:{own[-1].lineno}" if own else ""


def describe_error(error: BaseException) -> tuple[str, str]:
    """The kind and the sentence for what went wrong."""
    if isinstance(error, Refused):
        return "refused", str(error)
    if isinstance(error, Transient):
        return "transient", str(error)
    if isinstance(error, (AsksQuestion, EOFError)):
        place = where_in_user_code(error)
        return "refused", f"the migration asks a question (input() at {place}), so it can't run unattended"
    if isinstance(error, SystemExit):
        return "refused", f"env.py or a migration called sys.exit() at {where_in_user_code(error)}"
    origin: BaseException | None = error
    state = ""
    while origin is not None and not state:
        driver_error = getattr(origin, "orig", None) or origin
        state = getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None) or ""
        origin = origin.__cause__ or origin.__context__
    place = where_in_user_code(error)
    sentence = f"{type(error).__name__}: {first_line(error)}" + (f" (at {place})" if place else "")
    if state in TRANSIENT_STATES or state.startswith("08"):
        return "transient", sentence
    if state:
        return "permanent", f"{sentence} [SQLSTATE {state}]"
    if type(error).__name__ == "OperationalError":
        return "transient", sentence
    return "refused" if place.startswith("env.py") else "permanent", sentence


def main(requests: BinaryIO) -> None:
    protocol_out = os.dup(1)
    channel = Channel(protocol_out)
    # User code gets an empty stdin, and what it prints goes to stderr: neither can touch the protocol.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(Words()), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )

    def asked(prompt: object = "") -> str:
        raise AsksQuestion(str(prompt))

    builtins.input = asked
    worker = Worker(channel)
    for line in requests:
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("do")
        try:
            answer = getattr(worker, name)(**request)
        except BaseException as error:  # user code may raise anything, SystemExit included
            if isinstance(error, KeyboardInterrupt):
                raise
            kind, message = describe_error(error)
            channel.send(type="error", id=number, kind=kind, message=redact(message))
        else:
            channel.send(type="result", id=number, answer=answer)


if __name__ == "rollbackd_worker":
    main(globals()["REQUESTS"])
