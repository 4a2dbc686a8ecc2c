"""Scratch databases: of our own making, marked as ours, and gone when the proof is done."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec

from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.errors import PermanentError
from rollbackd.settings import Target

PREFIX = "rollbackd_scratch_"
# What this process works on right now: a sweep that comes later must leave it alone.
IN_USE: set[str] = set()


def scratch_server(target: Target) -> Place:
    """Where scratch databases are made.

    Raises:
        PermanentError: when no server is configured and the guarded one isn't allowed.
    """
    scratch, database = target.scratch, target.database
    if scratch.url:
        return Place.of(scratch.url, scratch.password)
    if scratch.same_server:
        return Place.of(database.url, database.password)
    raise PermanentError(
        "no scratch server is configured, so no backup can be proved: set 'scratch.url', or allow the guarded server with"
        " 'scratch.same_server = true'"
    )


def mark(store_id: str) -> str:
    """The comment that makes a database ours."""
    return f"rollbackd scratch of {store_id}: may be dropped"


@asynccontextmanager
async def scratch_database(
    target: Target, store_id: str, template: str = "template0", name: str = ""
) -> AsyncIterator[Place]:
    """A marked database, empty or a copy of `template`, dropped at the end whatever happens.

    With `name` it is called that, and whatever was called that before is dropped; whoever gives it takes turns.

    Raises:
        PermanentError: when the role may not create databases.
    """
    server = scratch_server(target)
    # The store is part of the name, because whoever is killed right after CREATE DATABASE hasn't marked it yet.
    name = f"{PREFIX}{store_id}_{name or secrets.token_hex(6)}"
    admin = await connect(server, target.database.connect_timeout)
    IN_USE.add(name)
    try:
        try:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            await admin.execute(
                f'CREATE DATABASE "{name}" TEMPLATE "{template}"{_strategy(target, admin, template)}'
            )
        except asyncpg.InsufficientPrivilegeError:
            raise PermanentError(
                f"the role {server.user} may not create scratch databases at {server.host}:{server.port}:"
                f" ALTER ROLE {server.user} CREATEDB, or give another role in 'scratch'"
            ) from None
        try:
            await admin.execute(f"COMMENT ON DATABASE \"{name}\" IS '{mark(store_id)}'")
            yield msgspec.structs.replace(server, database=name)
        finally:
            await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        IN_USE.discard(name)
        await admin.close(timeout=5)


def _strategy(target: Target, admin: asyncpg.Connection, template: str) -> str:
    """Copying files is three times as fast for a thousand tables, and costs the server two checkpoints: that is only done
    to a server that is there for scratch alone.
    """
    is_copy = template != "template0"
    return (
        " STRATEGY file_copy"
        if is_copy and target.scratch.url and admin.get_server_version().major >= 15
        else ""
    )


async def may_create_scratch(target: Target) -> str:
    """Empty if the configured role may create scratch databases; otherwise the reason why not."""
    try:
        server = scratch_server(target)
    except PermanentError as error:
        return str(error)
    connection = await connect(server, target.database.connect_timeout)
    try:
        allowed = await connection.fetchval(
            "SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user"
        )
    finally:
        await connection.close(timeout=5)
    if allowed:
        return ""
    return f"the role {server.user} may not create databases: ALTER ROLE {server.user} CREATEDB, or give another role in 'scratch'"


async def sweep_scratch(target: Target, store_id: str) -> list[str]:
    """Drop what a crash left: databases of this store, by mark or, where no mark came to be, by name. Returns their names."""
    server = scratch_server(target)
    connection = await connect(server, target.database.connect_timeout)
    try:
        rows = await connection.fetch(
            "SELECT datname FROM (SELECT datname, shobj_description(oid, 'pg_database') AS mark FROM pg_database) d"
            " WHERE starts_with(datname, $1) AND (mark = $2 OR mark IS NULL AND starts_with(datname, $3))",
            PREFIX,
            mark(store_id),
            f"{PREFIX}{store_id}_",
        )
        left = [row[0] for row in rows if row[0] not in IN_USE]
        for name in left:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close(timeout=5)
    return left
