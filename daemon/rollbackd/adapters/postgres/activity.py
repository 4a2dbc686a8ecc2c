"""What a guarded database is busy with: slow statements, locks that are waited for and who holds them, long transactions.

Each question is asked in a transaction of its own with a short timeout: this is asked when the database is in trouble.
"""

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from rollbackd.core.investigation import Activity, OpenTransaction, Statement, WaitingSession
from rollbackd.core.normalising import normalise
from rollbackd.core.schema import quoted

TIMEOUT_MS = 3_000
MOST_STATEMENTS = 10
MOST_SESSIONS = 20
# A transaction that is open for so long keeps locks and dead rows longer than a web request's does.
LONG_TRANSACTION_S = 10.0
HIDDEN = "<insufficient privilege>"
STATEMENTS, SESSIONS = "pg_stat_statements", "pg_stat_activity"
T = TypeVar("T")


async def read_activity(connection: asyncpg.Connection) -> Activity:
    """All of it; what can't be seen is named in `missing`, and raises nothing but what ends the connection."""
    missing: list[str] = []
    source = STATEMENTS
    statements = await _try(connection, "slow statements", _collected, missing)
    if statements is None:
        source, statements = SESSIONS, await _try(connection, "running statements", _running, missing)
    waiting = await _try(connection, "locks that are waited for", _waiting, missing)
    transactions = await _try(connection, "long transactions", _transactions, missing)
    hidden = await _try(connection, "what other roles do", _hidden, missing)
    if hidden:
        missing.append(
            f"{hidden} sessions of other roles hide what they do from this role: grant it pg_read_all_stats"
        )
    return Activity(
        source=source,
        statements=statements or (),
        waiting=waiting or (),
        transactions=transactions or (),
        missing=tuple(missing),
    )


async def _try(
    connection: asyncpg.Connection,
    what: str,
    ask: Callable[[asyncpg.Connection], Awaitable[T]],
    missing: list[str],
) -> T | None:
    try:
        async with connection.transaction(readonly=True):
            await connection.execute(f"SET LOCAL statement_timeout = {TIMEOUT_MS}")
            return await ask(connection)
    except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError):
        raise
    except asyncpg.PostgresError as error:
        missing.append(f"{what}: {error}")
        return None


async def _collected(connection: asyncpg.Connection) -> tuple[Statement, ...] | None:
    """The slowest on average of pg_stat_statements; None where it isn't installed in this database."""
    schema = await connection.fetchval(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = $1",
        STATEMENTS,
    )
    if schema is None:
        return None
    # Named so since version 1.8, of PostgreSQL 13.
    version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = $1", STATEMENTS)
    exec_ = "exec_" if tuple(int(n) for n in re.findall(r"\d+", version)) >= (1, 8) else ""
    rows = await connection.fetch(
        f"SELECT query, calls, mean_{exec_}time, total_{exec_}time FROM {quoted(schema)}.pg_stat_statements"
        " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query <> $1"
        f" ORDER BY mean_{exec_}time DESC LIMIT {MOST_STATEMENTS}",
        HIDDEN,
    )
    # Normalised already, but only where planning saw the constants: utility statements keep theirs.
    return tuple(
        Statement(sql=normalise(r[0]), calls=r[1], mean_s=r[2] / 1000, total_s=r[3] / 1000) for r in rows
    )


async def _running(connection: asyncpg.Connection) -> tuple[Statement, ...]:
    rows = await connection.fetch(
        "SELECT query, extract(epoch FROM clock_timestamp() - query_start)::float8 AS seconds FROM pg_stat_activity"
        f" WHERE {_OTHER_CLIENTS} AND state = 'active' AND query <> $1 ORDER BY query_start LIMIT {MOST_STATEMENTS}",
        HIDDEN,
    )
    return tuple(Statement(sql=normalise(r[0]), calls=0, mean_s=r[1], total_s=r[1]) for r in rows)


async def _waiting(connection: asyncpg.Connection) -> tuple[WaitingSession, ...]:
    rows = await connection.fetch(_WAITING)
    return tuple(
        WaitingSession(
            pid=r["pid"],
            waits_s=max(0.0, r["waits"]),
            wants=r["wants"],
            sql=normalise(r["query"]),
            holder_pid=r["holder_pid"],
            holder=r["holder"],
            holder_sql=normalise(r["holder_query"]),
        )
        for r in rows
    )


async def _transactions(connection: asyncpg.Connection) -> tuple[OpenTransaction, ...]:
    rows = await connection.fetch(
        f"SELECT pid, {_WHO.format('a')} AS who, coalesce(state, 'unknown'),"
        " extract(epoch FROM clock_timestamp() - xact_start)::float8, coalesce(query, '')"
        f" FROM pg_stat_activity a WHERE {_OTHER_CLIENTS} AND xact_start < clock_timestamp() - make_interval(secs => $1)"
        f" ORDER BY xact_start LIMIT {MOST_SESSIONS}",
        LONG_TRANSACTION_S,
    )
    return tuple(
        OpenTransaction(pid=r[0], who=r[1], state=r[2], open_s=r[3], sql=normalise(r[4])) for r in rows
    )


async def _hidden(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = $1", HIDDEN
    )
    return found


_OTHER_CLIENTS = (
    "datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    " AND application_name <> 'rollbackd'"
)
_WHO = "concat_ws(' as ', nullif({0}.application_name, ''), {0}.usename::text)"

# pg_blocking_pids takes the lock manager's own locks, so that only sessions that wait for a lock are asked for theirs.
# A prepared transaction blocks as pid 0, and is no session.
_WAITING = f"""
SELECT w.pid, coalesce(w.query, '') AS query,
       extract(epoch FROM clock_timestamp() - w.query_start)::float8 AS waits,
       coalesce(l.mode || ' on ' || coalesce(l.relation::regclass::text, l.locktype), 'a lock') AS wants,
       h.pid AS holder_pid,
       CASE WHEN h.pid = 0 THEN 'a prepared transaction' ELSE concat_ws(', ', nullif({_WHO.format("b")}, ''), b.state) END
           AS holder,
       coalesce(b.query, '') AS holder_query
  FROM (SELECT * FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock') AS w
 CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS h(pid)
  LEFT JOIN pg_stat_activity b ON b.pid = h.pid AND h.pid <> 0
  LEFT JOIN LATERAL (SELECT mode, relation, locktype FROM pg_locks WHERE pid = w.pid AND NOT granted LIMIT 1) AS l ON true
 ORDER BY w.query_start, h.pid
 LIMIT {MOST_SESSIONS}
"""
