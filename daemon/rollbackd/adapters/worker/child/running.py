"""Running the target's env.py: to look, or to take revisions off under our guard."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

from .archiving import Archiving
from .faults import Refused, TouchesTheWorld, Transient, describe_error, redact, sqlstate
from .marks import LOCK_KEY, MARKER, START_IDENTITY, STARTED
from .observing import Observer
from .scripts import Scripts

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy.engine import Connection

    from .channel import Channel

    Answer = dict[str, Any]
    Guard = Callable[[Connection, dict[str, Any]], None]


class Worker(Scripts):
    """Answers requests about one Alembic environment."""

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
                role=role(context),
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
        archive: list[dict[str, Any]],
        lock_timeout_s: float,
        statement_timeout_s: float,
        lock_wait_s: float,
    ) -> Answer:
        """Take off these revisions on the connection that env.py opens, and archive first what they destroy."""
        began = time.monotonic()
        counted = {"statements": 0, "marker": False}
        kept: list[dict[str, Any]] = []
        archivings: list[Archiving] = []
        if not self.is_current()["current"] or self.digest() != scripts_sha256:
            raise Refused(
                "the migration scripts changed since the plan was made: nothing was changed; plan anew"
            )

        def guard(connection: Connection, options: dict[str, Any]) -> None:
            self._require_identity(connection, identity)
            settings = session_settings(run, lock_timeout_s, statement_timeout_s)
            if identity["server_version"] >= 140000:
                # Without it a backend works on for a client that is dead.
                settings["client_connection_check_interval"] = "1000"
            set_all(connection, settings)
            self._take_lock(connection, lock_wait_s)

        def first_met(connection: Connection, options: dict[str, Any]) -> None:
            listen_to_statements(connection, self.channel, counted, archivings)

        def marked(connection: Connection, options: dict[str, Any]) -> None:
            apply = options.get("on_version_apply") or ()
            own = tuple(apply) if isinstance(apply, (list, tuple, set)) else (apply,)
            options["on_version_apply"] = (*own, self._mark(connection, run, counted))

        def around(context: MigrationContext, revision: str, original: Callable[..., Any]) -> Any:
            def archived(**options: Any) -> None:
                assert context.connection is not None, "a downgrade runs on a connection"
                archiving = Archiving(context.connection, run, archive)
                archivings.append(archiving)
                locks = not commits_each_statement(context)
                archiving.before(revision, locks)
                original(**options)
                kept.extend(archiving.after(revision))

            return archived if any(item["revision"] == revision for item in archive) else original

        self._migrate(
            "down",
            revisions,
            from_heads,
            to_heads,
            guards=(guard, marked),
            first_met=first_met,
            around=around,
        )
        return {
            "statements": counted["statements"],
            "marker": counted["marker"],
            "seconds": round(time.monotonic() - began, 6),
            "kept": kept,
        }

    def rehearse(  # noqa: PLR0913, PLR0917 - a request, its fields by name
        self,
        scratch: dict[str, Any],
        direction: str,
        revisions: list[str],
        from_heads: list[str],
        to_heads: list[str],
        archive: list[dict[str, Any]],
        observe: bool,
        lock_timeout_s: float,
        statement_timeout_s: float,
    ) -> Answer:
        """Take these revisions off (or put them on, `direction` up) in the scratch database, and say what was seen.

        What fails in the scripts is part of the answer, and so is what they were kept from; what keeps a rehearsal from
        being begun is an error.
        """
        only_scratch = self.only_scratch
        if only_scratch is None:
            raise Refused("this worker wasn't started for rehearsals")
        only_scratch.move(scratch)
        only_scratch.reached_out = ""
        began = time.monotonic()
        observer = Observer()
        kept: list[dict[str, Any]] = []
        failure: dict[str, str] | None = None
        running: list[str] = []
        table: dict[str, str] = {}

        def guard(connection: Connection, options: dict[str, Any]) -> None:
            only_scratch.require_mark(connection)
            set_all(connection, session_settings("rehearsal", lock_timeout_s, statement_timeout_s))

        def around(context: MigrationContext, revision: str, original: Callable[..., Any]) -> Any:
            def plainly(**options: Any) -> None:
                running.append(revision)
                original(**options)

            def observed(**options: Any) -> None:
                assert context.connection is not None, "a migration runs on a connection"
                table.update(name=context.version_table, schema=context.version_table_schema or "")
                observer.attach(context.connection)
                running.append(revision)
                archiving = Archiving(context.connection, "rehearsal", archive) if archive else None
                if archiving is not None:
                    archiving.before(revision, not commits_each_statement(context))
                observer.begin(revision)
                original(**options)
                observer.end()
                if archiving is not None:
                    kept.extend(archiving.after(revision))

            return observed if observe else plainly

        try:
            self._migrate(direction, revisions, from_heads, to_heads, guards=(guard,), around=around)
        except BaseException as error:  # user code may raise anything, SystemExit included
            if not running or isinstance(error, KeyboardInterrupt):
                raise
            failure = {
                "revision": running[-1],
                "reason": redact(describe_error(error)[1]),
                "sqlstate": sqlstate(error),
                "statement": redact(observer.statement),
            }
            if isinstance(error, TouchesTheWorld):
                only_scratch.reached_out = failure["reason"]
        return {
            "first": observer.first,
            "steps": [step for step in observer.steps if step["changes"] is not None],
            "failure": failure,
            "reached_out": redact(only_scratch.reached_out),
            "version_table": table,
            "kept": kept,
            "seconds": round(time.monotonic() - began, 6),
        }

    def stamp(
        self,
        revisions: list[str],
        from_heads: list[str],
        to_heads: list[str],
        run: str,
        identity: dict[str, Any],
        lock_wait_s: float,
    ) -> Answer:
        """Move the stamp down over these revisions and run none of them: for a schema that is there already."""
        counted = {"statements": 0, "marker": False}

        def guard(connection: Connection, options: dict[str, Any]) -> None:
            self._require_identity(connection, identity)
            set_all(connection, session_settings(run, 5, 60))
            self._take_lock(connection, lock_wait_s)

        def marked(connection: Connection, options: dict[str, Any]) -> None:
            apply = options.get("on_version_apply") or ()
            own = tuple(apply) if isinstance(apply, (list, tuple, set)) else (apply,)
            options["on_version_apply"] = (*own, self._mark(connection, run, counted))

        def around(context: MigrationContext, revision: str, original: Callable[..., Any]) -> Any:
            def nothing(**options: Any) -> None:
                """The stamp moves; the revision isn't run."""

            return nothing

        self._migrate("down", revisions, from_heads, to_heads, guards=(guard, marked), around=around)
        return {"marker": counted["marker"]}

    def _migrate(
        self,
        direction: str,
        revisions: list[str],
        from_heads: list[str],
        to_heads: list[str],
        *,
        guards: Sequence[Guard],
        around: Callable[[MigrationContext, str, Callable[..., Any]], Any],
        first_met: Guard | None = None,
    ) -> None:
        """Run the revisions' own functions through env.py, each wrapped by `around`, on a connection that `guards` let pass."""
        from alembic.runtime.migration import MigrationStep

        scripts = [self.revision(revision_id) for revision_id in revisions]
        guarded: list[Connection] = []
        ran: list[bool] = []

        def steps(heads: Sequence[str], context: MigrationContext) -> Iterator[Any]:
            if not any(context.connection is connection for connection in guarded):
                raise Refused("env.py migrates on a connection that it didn't configure: nothing was changed")
            if set(heads) != set(from_heads):
                raise Refused(
                    f"the version table says {', '.join(sorted(heads)) or 'base'}, the plan begins at"
                    f" {', '.join(sorted(from_heads)) or 'base'}: nothing was changed"
                )
            ran.append(True)
            for script in scripts:
                self.channel.send(type="revision", revision=script.revision)
                if direction == "down":
                    step = MigrationStep.downgrade_from_script(self.script.revision_map, script)
                else:
                    step = MigrationStep.upgrade_from_script(self.script.revision_map, script)
                step.migration_fn = around(context, script.revision, step.migration_fn)
                yield step

        def met(connection: Connection, options: dict[str, Any]) -> None:
            was_in_transaction = connection.in_transaction()
            self._require_postgresql(connection, options)
            for guard in guards:
                guard(connection, options)
            # Connections of SQLAlchemy 1.4 have no commit(), and no transaction of their own to end.
            commit = getattr(connection, "commit", None)
            if commit is not None and not was_in_transaction:
                commit()
            if not any(connection is known for known in guarded):
                guarded.append(connection)
                if first_met is not None:
                    first_met(connection, options)

        self._run_env(steps, met, destination=",".join(to_heads), mutates=direction == "up")
        if not ran:
            raise Refused("env.py never called context.run_migrations(), so nothing was migrated")

    def _run_env(
        self,
        steps: Callable[..., Iterable[Any]],
        guard: Callable[[Connection, dict[str, Any]], None],
        destination: str = "",
        mutates: bool = False,
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
            dont_mutate=not mutates,
        )
        original = environment.configure

        def configure(connection: Connection | None = None, *args: Any, **kw: Any) -> None:
            if connection is not None:
                guard(connection, kw)
            original(connection, *args, **kw)

        # What env.py calls is EnvironmentContext.configure of this very context: Alembic has no hook for its connection.
        environment.configure = configure  # type: ignore[method-assign]
        with environment:
            self.script.run_env()

    def _require_postgresql(self, connection: Connection, options: dict[str, Any]) -> None:
        if connection.dialect.name != "postgresql":
            raise Refused(f"env.py connects to {connection.dialect.name}; only PostgreSQL is supported")

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


def session_settings(who: str, lock_timeout_s: float, statement_timeout_s: float) -> dict[str, str]:
    """What every migrating session of ours has set, whatever its role or its user code set before."""
    return {
        "application_name": f"rollbackd {who}"[:63],
        "lock_timeout": f"{int(lock_timeout_s * 1000)}",
        "statement_timeout": f"{int(statement_timeout_s * 1000)}",
        "row_security": "off",
    }


def set_all(connection: Connection, settings: dict[str, str]) -> None:
    """Set these for the session."""
    for name, value in settings.items():
        connection.exec_driver_sql("SET {} = '{}'".format(name, value.replace("'", "''")))


def commits_each_statement(context: MigrationContext) -> bool:
    """Whether nothing can be undone: no transactional DDL, or a connection in autocommit."""
    if not context.impl.transactional_ddl:
        return True
    connection = context.connection
    if connection is None:
        return False
    if str(connection.get_isolation_level()).upper() == "AUTOCOMMIT":
        return True
    # A driver can be in autocommit without SQLAlchemy knowing: then each statement has a time of its own.
    moments = {connection.exec_driver_sql("SELECT transaction_timestamp()").scalar() for _ in range(2)}
    return len(moments) > 1


def role(context: MigrationContext) -> str:
    """As whom env.py's connection migrates."""
    if context.connection is None:
        return ""
    return str(context.connection.exec_driver_sql("SELECT current_user").scalar())


def search_path(context: MigrationContext) -> list[str]:
    """The schemas in which env.py's connection looks for an unqualified name."""
    if context.connection is None:
        return []
    found = context.connection.exec_driver_sql("SELECT unnest(current_schemas(false))::text").scalars()
    return [str(name) for name in found]


def listen_to_statements(
    connection: Connection, channel: Channel, counted: dict[str, Any], archivings: list[Archiving]
) -> None:
    """Stream each statement to the parent as it is executed; what archives are made with is ours, and left out."""
    from sqlalchemy import event

    @event.listens_for(connection, "before_cursor_execute")
    def executed(
        conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        if any(archiving.working for archiving in archivings):
            return
        counted["statements"] += 1
        channel.send(type="statement", text=" ".join(statement.split())[:4000])
