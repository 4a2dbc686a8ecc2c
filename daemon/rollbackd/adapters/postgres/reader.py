"""The port `DatabaseReader` on asyncpg. One connection is kept while it is in use and closed when nothing is watched."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from types import MappingProxyType

import asyncpg
import msgspec

from rollbackd.adapters.postgres.activity import read_activity
from rollbackd.adapters.postgres.catalog import read_schema
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.risks.measuring import measure_risks
from rollbackd.adapters.postgres.stamp import read_heads, version_table_sql
from rollbackd.adapters.worker.child.marks import LOCK_KEY, START_IDENTITY
from rollbackd.core.checks import Finding, Outcome
from rollbackd.core.investigation import Activity
from rollbackd.core.records import TableCount
from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.risks import Risks
from rollbackd.core.schema import Schema, TableName, quoted
from rollbackd.errors import PermanentError, TransientError
from rollbackd.ports import DatabaseIdentity
from rollbackd.settings import Target

STATEMENT_TIMEOUT_MS = 30_000
LONG_TRANSACTION_S = 60


class PostgresReader:
    """Reads one guarded database. Calls take turns on one connection."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._place = Place.of(target.database.url, target.database.password)
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self._version_table = version_table_sql(target.migrations)

    async def identity(self) -> DatabaseIdentity:
        """Which database this is; refuses a standby."""
        async with self._reading() as connection:
            row = await connection.fetchrow(
                "SELECT pg_is_in_recovery(), current_database(),"
                " (SELECT oid::bigint FROM pg_database WHERE datname = current_database()),"
                " current_setting('server_version_num')::int, has_function_privilege('pg_control_system()', 'EXECUTE')"
            )
            system = await connection.fetchval(
                "SELECT system_identifier::text FROM pg_control_system()" if row[4] else START_IDENTITY
            )
        if row[0]:
            raise PermanentError(f"{self._place.text()} is a standby: 'database.url' must name the primary")
        return DatabaseIdentity(system_identifier=system, database=row[1], oid=row[2], server_version=row[3])

    async def heads(self) -> tuple[str, ...]:
        """The rows of the version table, sorted; empty where the table isn't there yet."""
        async with self._reading() as connection:
            return await read_heads(connection, self._version_table)

    async def schema(self) -> Schema:
        """The catalog of all user schemas."""
        async with self._reading() as connection:
            return await read_schema(connection)

    async def counts(
        self, budget_s: float, most_tables: int, tables: tuple[str, ...] = ()
    ) -> tuple[TableCount, ...]:
        """Rows by table: exact, smallest tables first, until the budget is spent; estimates for the rest.

        Each count is its own short statement, so that no snapshot and no lock is held over many tables.
        """
        async with self._reading() as connection:
            found = await count_tables(connection, budget_s, most_tables, tables)
        # A downgrade changes the version table's rows; that is checked by itself.
        return tuple(c for c in found if c.table.rpartition(".")[2] != self._target.migrations.version_table)

    async def resolve_tables(self, tables: tuple[str, ...], search_path: tuple[str, ...]) -> tuple[str, ...]:
        """The tables behind these names, as `schema.table`, sorted.

        An unqualified name is looked for in `search_path`, as the migration will. A partitioned table stands for its
        partitions; a table whose foreign key hands a delete on is affected as well. A name that nothing has is kept.
        """
        found: set[str] = set()
        async with self._reading() as connection:
            for table in tables:
                schema, _, name = table.rpartition(".")
                schemas = [schema] if schema else list(search_path or ("public",))
                rows = await connection.fetch(_AFFECTED_TABLES, name, schemas)
                found.update(row[0] for row in rows)
                if not rows:
                    found.add(table)
        return tuple(sorted(found))

    async def wait_for_migration_lock(self, timeout_s: float) -> bool:
        """Wait until no session holds the migration lock; False when one still does after `timeout_s` seconds."""
        until = time.monotonic() + timeout_s
        wait_s = 0.01
        while True:
            async with self._reading() as connection:
                # Its transaction is this one statement, so that the lock can't outlive it, whoever is cancelled when.
                if await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK_KEY):
                    return True
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 0.2)

    async def activity(self) -> Activity:
        """Slow statements, locks that are waited for, long transactions."""
        async with self._reading() as connection:
            return await read_activity(connection)

    async def findings_before(self) -> tuple[Finding, ...]:
        """What could stand in the way of a downgrade: hidden rows, long transactions, prepared transactions."""
        async with self._reading() as connection:
            return (
                await _row_security(connection),
                await _long_transactions(connection),
                await _prepared_transactions(connection),
            )

    async def findings_after(
        self,
        lossy_tables: tuple[str, ...],
        counts_before: tuple[TableCount, ...],
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[Finding, ...]:
        """The data checks: counts, orphans, invalid indexes, sequences. `renamed` are tables that have another name now."""
        async with self._reading() as connection:
            counts_before = tuple(
                msgspec.structs.replace(c, table=renamed.get(c.table, c.table)) for c in counts_before
            )
            counted = tuple(c.table for c in counts_before if c.exact)
            after = await count_tables(
                connection, self._target.counting.budget, self._target.counting.most_tables, counted
            )
            return (
                _counts(counts_before, after, lossy_tables),
                await _orphans(connection),
                await _invalid_indexes(connection),
                await _sequences(connection),
            )

    async def checksums(self, tables: tuple[str, ...]) -> dict[str, str]:
        """A checksum of each table's keys (of its whole rows where it has none), whatever their order."""
        found: dict[str, str] = {}
        keys = await self.keys(tuple(TableName(*name.split(".", 1)) for name in tables))
        for name in tables:
            table = TableName(*name.split(".", 1))
            columns = ", ".join(quoted(column) for column in keys.get(table, ()))
            row = f"ROW({columns})::text" if columns else "t::text"
            async with self._reading() as connection:
                try:
                    found[name] = str(
                        await connection.fetchval(
                            f"SELECT count(*) || ':' || coalesce(sum(hashtextextended({row}, 0)::numeric), 0)"
                            f" FROM {table.sql()} t"
                        )
                    )
                except asyncpg.UndefinedTableError:
                    found[name] = ""
        return found

    async def own_checks(self) -> tuple[Finding, ...]:
        """The target's own checks: queries that must return no row."""
        findings = []
        for check in self._target.checks:
            name = f"own:{check.name}"
            async with self._reading() as connection:
                try:
                    async with connection.transaction(readonly=True):
                        rows = await connection.fetch(check.sql, timeout=float(check.timeout))
                except (asyncpg.PostgresError, TimeoutError) as error:
                    findings.append(
                        _finding(
                            name, Outcome.UNKNOWN, f"couldn't be made: {str(error) or 'it took too long'}"
                        )
                    )
                    continue
            if rows:
                details = tuple(str(dict(row)) for row in rows[:5])
                findings.append(
                    _finding(name, Outcome.FAILED, f"{len(rows)} rows, and there should be none", details)
                )
            else:
                findings.append(_finding(name, Outcome.PASSED, "no rows, as it should be"))
        return tuple(findings)

    async def rights(self) -> tuple[Finding, ...]:
        """What the configured role may do, for check-config."""
        async with self._reading() as connection:
            table = await connection.fetchrow(
                "SELECT pg_has_role(c.relowner, 'USAGE'), c.relowner::regrole::text, current_user::text FROM pg_class c"
                " WHERE c.oid = to_regclass($1)",
                self._version_table,
            )
            first = await connection.fetchval("SELECT pg_backend_pid()")
            same_backend = first == await connection.fetchval("SELECT pg_backend_pid()")
            row_security = await _row_security(connection)
            prefixed = await _foreign_owners(connection)
        if table is None:
            owner = _finding("version_table", Outcome.WARNED, f"there is no {self._version_table} yet")
        elif table[0]:
            owner = _finding(
                "version_table", Outcome.PASSED, f"{self._version_table} may be written by {table[2]}"
            )
        else:
            text = f"{self._version_table} belongs to {table[1]}, and {table[2]} isn't a member: downgrades would fail"
            owner = _finding("version_table", Outcome.FAILED, text)
        if same_backend:
            pooled = _finding(
                "direct_connection", Outcome.PASSED, "each statement met the same server process"
            )
        else:
            text = "statements meet different server processes: a pooler in transaction mode; give the direct address"
            pooled = _finding("direct_connection", Outcome.FAILED, text)
        return (owner, prefixed, pooled, row_security)

    async def risks(self, rehearsal: Rehearsal, budget_s: float) -> Risks:
        """What a rehearsed way back would cost today's rows, and what would break it."""
        async with self._reading() as connection:
            return await measure_risks(connection, rehearsal, budget_s=budget_s)

    async def not_owned(self, role: str, tables: tuple[TableName, ...]) -> dict[TableName, str]:
        """Those of these tables that this role may not alter or drop, and who owns them."""
        async with self._reading() as connection:
            rows = await connection.fetch(
                "SELECT n.nspname, c.relname, c.relowner::regrole::text FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')"
                " AND EXISTS (SELECT 1 FROM pg_roles r WHERE r.rolname = $1)"
                " AND NOT pg_has_role($1, c.relowner, 'USAGE') AND n.nspname !~ '^(pg_|information_schema$)'",
                role,
            )
        owners = {TableName(schema, name): owner for schema, name, owner in rows}
        return {table: owners[table] for table in tables if table in owners}

    async def publications_of_all_tables(self) -> tuple[str, ...]:
        """Publications that take in every table, ours as well."""
        async with self._reading() as connection:
            rows = await connection.fetch("SELECT pubname FROM pg_publication WHERE puballtables ORDER BY 1")
        return tuple(row[0] for row in rows)

    async def table_sizes(self) -> dict[TableName, int]:
        """Bytes of every table with its indexes and large values; a partitioned table's are its partitions'."""
        async with self._reading() as connection:
            rows = await connection.fetch(
                "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'p' THEN (SELECT coalesce(sum("
                "   pg_total_relation_size(t.relid)), 0) FROM pg_partition_tree(c.oid) t)::bigint"
                " ELSE pg_total_relation_size(c.oid) END FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'"
            )
        return {TableName(schema, name): int(size or 0) for schema, name, size in rows}

    async def keys(self, tables: tuple[TableName, ...]) -> dict[TableName, tuple[str, ...]]:
        """The columns of each table's primary key; tables without one are left out."""
        async with self._reading() as connection:
            rows = await connection.fetch(
                "SELECT n.nspname, c.relname, (SELECT array_agg(a.attname::text ORDER BY o.i) FROM unnest(k.conkey)"
                "   WITH ORDINALITY o(n, i) JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = o.n)"
                " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE k.contype = 'p'"
            )
        found = {TableName(schema, name): tuple(columns) for schema, name, columns in rows}
        return {table: found[table] for table in tables if table in found}

    async def sessions(self, application: str, before: datetime) -> tuple[str, ...]:
        """Clients other than rollbackd that were connected before then and still are, in words.

        Raises:
            PermanentError: when sessions are hidden from this role, so that nobody can say who is still there.
        """
        async with self._reading() as connection:
            hidden = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type IS NULL"
            )
            if hidden:
                raise PermanentError(
                    f"{hidden} sessions hide from {self._place.user} since when they are there, so that nobody can say whether"
                    " the replaced release is gone: GRANT pg_read_all_stats to it"
                )
            rows = await connection.fetch(
                "SELECT pid, usename, application_name, backend_start FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                " AND application_name !~ '^rollbackd' AND starts_with(application_name, $1) AND backend_start < $2"
                " ORDER BY backend_start",
                application,
                before,
            )
        return tuple(f"pid {r[0]} ({r[1]}, {r[2] or 'no name'}), since {r[3]:%F %T} UTC" for r in rows)

    async def close(self) -> None:
        """Give the connection back."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close(timeout=5)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(
                    self._place,
                    self._target.database.connect_timeout,
                    {"statement_timeout": str(STATEMENT_TIMEOUT_MS), "default_transaction_read_only": "on"},
                )
            try:
                yield self._connection
            except asyncpg.InsufficientPrivilegeError as error:
                raise PermanentError(
                    f"{self._place.text()}: {self._place.user} lacks a right: {error}"
                ) from None
            except asyncpg.QueryCanceledError as error:
                raise TransientError(f"{self._place.text()}: {error}") from None
            except (
                OSError,
                asyncpg.PostgresConnectionError,
                asyncpg.InterfaceError,
                asyncpg.AdminShutdownError,
                asyncpg.CrashShutdownError,
            ) as error:
                self._connection = None
                raise TransientError(f"the connection to {self._place.text()} was lost: {error}") from None
            except asyncpg.PostgresError as error:
                raise PermanentError(f"{self._place.text()}: {error}") from None


_AFFECTED_TABLES = """
WITH RECURSIVE named AS (
    SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relname = $1 AND n.nspname = ANY($2) AND c.relkind IN ('r', 'p')
     ORDER BY array_position($2, n.nspname::text) LIMIT 1
), affected(oid) AS (
    SELECT oid FROM named
    UNION
    SELECT next.oid FROM affected a, LATERAL (
        SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = a.oid
        UNION ALL
        SELECT k.conrelid FROM pg_constraint k
         WHERE k.contype = 'f' AND k.confrelid = a.oid AND k.confdeltype IN ('c', 'n', 'd')
    ) next(oid)
)
SELECT n.nspname || '.' || c.relname FROM affected a JOIN pg_class c ON c.oid = a.oid
  JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'
"""


async def count_tables(
    connection: asyncpg.Connection, budget_s: float, most_tables: int, tables: tuple[str, ...] = ()
) -> tuple[TableCount, ...]:
    """Count on any connection; `tables` restricts to these names (`schema.table`)."""
    rows = await connection.fetch(
        "SELECT n.nspname, c.relname, greatest(c.reltuples, 0)::bigint FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'"
        " AND ($1::text[] IS NULL OR n.nspname || '.' || c.relname = ANY($1)) ORDER BY c.relpages, 1, 2",
        list(tables) or None,
    )
    until = time.monotonic() + budget_s
    counts: list[TableCount] = []
    for schema, table, estimate in rows:
        left_s = until - time.monotonic()
        name = f"{schema}.{table}"
        count: int | None = None
        if left_s > 0 and len(counts) < most_tables:
            try:
                # Of this table alone: one that inherits from it is counted by itself.
                query = f"SELECT count(*) FROM ONLY {quoted(schema)}.{quoted(table)}"
                count = await _count(connection, query, left_s)
            except (TimeoutError, asyncpg.QueryCanceledError):
                count = None
            except asyncpg.UndefinedTableError:
                continue  # dropped since we looked
        exact = count is not None
        counts.append(TableCount(table=name, rows=estimate if count is None else count, exact=exact))
    return tuple(sorted(counts, key=lambda c: c.table))


async def _count(connection: asyncpg.Connection, query: str, timeout_s: float) -> int:
    if not connection.is_in_transaction():
        return int(await connection.fetchval(query, timeout=timeout_s))
    # Rolling a savepoint back gives the table's lock back at once, and keeps the snapshot when a count is cut short.
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        return int(await connection.fetchval(query, timeout=timeout_s))
    finally:
        await savepoint.rollback()


def _finding(check: str, outcome: Outcome, text: str, details: tuple[str, ...] = ()) -> Finding:
    return Finding(check=check, outcome=outcome, text=text, details=details)


async def _row_security(connection: asyncpg.Connection) -> Finding:
    hidden = await connection.fetch(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND row_security_active(c.oid) ORDER BY 1"
    )
    if not hidden:
        return _finding("row_security", Outcome.PASSED, "no row is hidden from this role")
    names = ", ".join(row[0] for row in hidden[:5])
    return _finding(
        "row_security",
        Outcome.FAILED,
        f"row security hides rows of {names} from this role: counts and backups would be short; use a role with BYPASSRLS"
        " or the table's owner",
        tuple(row[0] for row in hidden),
    )


async def _foreign_owners(connection: asyncpg.Connection) -> Finding:
    rows = await connection.fetch(
        "SELECT format('%I.%I belongs to %s', n.nspname, c.relname, c.relowner::regrole) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
        " AND n.nspname !~ '^(pg_|information_schema$)' AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1"
    )
    if rows:
        text = f"{len(rows)} tables belong to somebody else: a downgrade that alters them would fail"
        return _finding("ownership", Outcome.WARNED, text, tuple(row[0] for row in rows[:10]))
    return _finding("ownership", Outcome.PASSED, "every table may be altered by this role")


async def _long_transactions(connection: asyncpg.Connection) -> Finding:
    rows = await connection.fetch(
        "SELECT pid, usename, state, extract(epoch FROM now() - xact_start)::int FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND xact_start < now() - make_interval(secs => $1) ORDER BY xact_start",
        float(LONG_TRANSACTION_S),
    )
    if rows:
        details = tuple(f"pid {r[0]} ({r[1]}) {r[2]}, for {r[3]} s" for r in rows[:10])
        text = f"{len(rows)} transactions are open for more than {LONG_TRANSACTION_S} s and may hold locks"
        return _finding("long_transactions", Outcome.WARNED, text, details)
    hidden = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = '<insufficient privilege>'"
    )
    if hidden:
        text = (
            f"{hidden} sessions of other roles hide what they do from this role: grant it pg_read_all_stats"
        )
        return _finding("long_transactions", Outcome.UNKNOWN, text)
    return _finding(
        "long_transactions", Outcome.PASSED, f"no transaction is open for more than {LONG_TRANSACTION_S} s"
    )


async def _prepared_transactions(connection: asyncpg.Connection) -> Finding:
    rows = await connection.fetch("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
    if rows:
        text = f"{len(rows)} prepared transactions hold their locks until somebody ends them"
        return _finding("prepared_transactions", Outcome.WARNED, text, tuple(r[0] for r in rows[:10]))
    return _finding("prepared_transactions", Outcome.PASSED, "none")


def _counts(before: tuple[TableCount, ...], after: tuple[TableCount, ...], lossy: tuple[str, ...]) -> Finding:
    now = {c.table: c for c in after}
    planned = {name if "." in name else f"public.{name}" for name in lossy}
    lost: list[str] = []
    noted: list[str] = []
    compared = 0
    for old in before:
        new = now.get(old.table)
        if not old.exact or (new is not None and not new.exact):
            continue
        compared += 1
        if new is None:
            if old.table not in planned and old.rows:
                lost.append(f"{old.table}: {old.rows} rows before, and the table is gone")
            elif old.table in planned:
                noted.append(f"{old.table}: dropped, as planned ({old.rows} rows before)")
        elif new.rows < old.rows:
            line = f"{old.table}: {old.rows} rows before, {new.rows} now"
            (noted if old.table in planned else lost).append(line)
    if lost:
        return _finding(
            "row_counts",
            Outcome.FAILED,
            f"{len(lost)} tables hold fewer rows, and no plan said so",
            tuple(lost),
        )
    if not compared:
        return _finding("row_counts", Outcome.UNKNOWN, "nothing was counted exactly before")
    return _finding(
        "row_counts", Outcome.PASSED, f"{compared} tables compared, none lost a row unplanned", tuple(noted)
    )


async def _orphans(connection: asyncpg.Connection) -> Finding:
    keys = await connection.fetch(
        "SELECT k.conname, format('%I.%I', cn.nspname, c.relname), format('%I.%I', pn.nspname, p.relname),"
        " (SELECT array_agg(quote_ident(a.attname) ORDER BY o.i) FROM unnest(k.conkey) WITH ORDINALITY o(n, i)"
        "   JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = o.n),"
        " (SELECT array_agg(quote_ident(a.attname) ORDER BY o.i) FROM unnest(k.confkey) WITH ORDINALITY o(n, i)"
        "   JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = o.n), k.convalidated"
        " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace"
        " JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace"
        " WHERE k.contype = 'f' AND k.conparentid = 0 AND cn.nspname !~ '^(pg_|rollbackd)' ORDER BY 2, 1"
    )
    found: list[str] = []
    unknown: list[str] = []
    tolerated: list[str] = []
    for name, child, parent, child_columns, parent_columns, validated in keys:
        present = " AND ".join(f"c.{column} IS NOT NULL" for column in child_columns)
        match = " AND ".join(f"p.{pc} = c.{cc}" for pc, cc in zip(parent_columns, child_columns, strict=True))
        query = (
            f"SELECT count(*) FROM {child} c WHERE {present}"
            f" AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {match})"
        )
        try:
            orphans = await connection.fetchval(query)
        except asyncpg.QueryCanceledError:
            unknown.append(f"{child}.{name}: took longer than {STATEMENT_TIMEOUT_MS // 1000} s")
            continue
        except asyncpg.InsufficientPrivilegeError as error:
            unknown.append(f"{child}.{name}: {error}")
            continue
        if orphans and not validated:
            tolerated.append(
                f"{child}.{name}: {orphans} rows point to nothing in {parent}; the key is NOT VALID"
            )
        elif orphans:
            found.append(f"{child}.{name}: {orphans} rows point to nothing in {parent}")
    if found:
        return _finding("orphans", Outcome.FAILED, f"{len(found)} foreign keys have orphans", tuple(found))
    if unknown:
        return _finding(
            "orphans",
            Outcome.UNKNOWN,
            f"{len(unknown)} foreign keys couldn't be checked",
            tuple(unknown),
        )
    if tolerated:
        text = f"{len(tolerated)} foreign keys that aren't validated have orphans, as they may"
        return _finding("orphans", Outcome.WARNED, text, tuple(tolerated))
    return _finding("orphans", Outcome.PASSED, f"no orphans in {len(keys)} foreign keys")


async def _invalid_indexes(connection: asyncpg.Connection) -> Finding:
    rows = await connection.fetch(
        "SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND n.nspname !~ '^(pg_|rollbackd)' ORDER BY 1"
    )
    if rows:
        text = f"{len(rows)} indexes are invalid: drop each concurrently and build it again"
        return _finding("invalid_indexes", Outcome.FAILED, text, tuple(r[0] for r in rows))
    return _finding("invalid_indexes", Outcome.PASSED, "none")


async def _sequences(connection: asyncpg.Connection) -> Finding:
    rows = await connection.fetch(
        "SELECT format('%I.%I', sn.nspname, s.relname), format('%I.%I', tn.nspname, t.relname), quote_ident(a.attname)"
        " FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace sn ON sn.oid = s.relnamespace"
        " JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace tn ON tn.oid = t.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid"
        " JOIN pg_sequence q ON q.seqrelid = s.oid AND q.seqincrement > 0"
        " WHERE d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND tn.nspname !~ '^(pg_|rollbackd)' ORDER BY 1"
    )
    behind: list[str] = []
    unknown: list[str] = []
    for sequence, table, column in rows:
        try:
            last, highest = await connection.fetchrow(
                f"SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END,"
                f" (SELECT max({column})::bigint FROM {table}) FROM {sequence}"
            )
        except asyncpg.PostgresError as error:
            unknown.append(f"{sequence}: {error}")
            continue
        if highest is not None and last < highest:
            behind.append(
                f"{sequence} stands at {last}, {table}.{column} goes up to {highest}: the next insert would collide"
            )
    if behind:
        return _finding(
            "sequences", Outcome.FAILED, f"{len(behind)} sequences are behind their columns", tuple(behind)
        )
    if unknown:
        return _finding(
            "sequences", Outcome.UNKNOWN, f"{len(unknown)} sequences couldn't be read", tuple(unknown)
        )
    return _finding("sequences", Outcome.PASSED, f"{len(rows)} sequences are ahead of their columns")
