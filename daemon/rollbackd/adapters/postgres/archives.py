"""The archives in a guarded database: copying ahead of a downgrade, finishing after it, bringing back, pruning."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from rollbackd.adapters.postgres.adopting import adopt_archives
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.worker.child import archiving
from rollbackd.adapters.worker.child.marks import LOCK_KEY
from rollbackd.core.archives import (
    ENTRIES,
    ROW,
    SCHEMA,
    SETUP,
    ArchiveEntry,
    ArchiveItem,
    ArchiveKind,
    KeptDefinition,
)
from rollbackd.core.restoring.names import as_called_now
from rollbackd.core.restoring.planning import mark_restored, plan_restore
from rollbackd.core.restoring.present import PresentTable
from rollbackd.core.restoring.reports import RestoreReport, report
from rollbackd.core.restoring.script import restore_script
from rollbackd.core.restoring.sql import TEXT_SETTINGS
from rollbackd.core.restoring.steps import RestorePlan, RestoreStep
from rollbackd.core.schema import TableName, quoted
from rollbackd.errors import PermanentError, RefusedError, TransientError
from rollbackd.ports import Progress, ProgressSink, RestoredCopy
from rollbackd.settings import Target

# Short, as whoever waits for a lock on a table makes everybody else wait behind it.
LOCK_TIMEOUT = "3s"
# How long that is tried again for what must not stay.
DISCARD_FOR_S = 30.0
BATCH_ROWS = 20_000

Catalog = dict[str, Any]


class PostgresArchives:
    """What is archived in one guarded database. Every call opens a connection of its own."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._place = Place.of(target.database.url, target.database.password)

    async def entries(self, run: str | None = None) -> tuple[ArchiveEntry, ...]:
        """What is kept, of one run or of all, in the order in which it was kept."""
        async with self._connected() as connection:
            return await read_entries(connection, run)

    async def restore(self, run: str, *, dry_run: bool) -> RestoreReport:
        """Bring back what the run archived, in one transaction; a dry run undoes it, and says what it would do.

        Raises:
            RefusedError: when the run archived nothing here, or when the rows as they are now refuse it.
            TransientError: when a migration is under way, or a lock can't be had.
        """
        async with self._connected() as connection:
            transaction = connection.transaction()
            await transaction.start()
            path = await connection.fetchval("SELECT current_setting('search_path')")
            await _settle(connection)
            if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", LOCK_KEY):
                raise TransientError(f"{self._place.text()} is being migrated: restore when that is over")
            entries, plan = await self._plan(connection, run)
            # Our own statements name everything in full; the application's triggers look where they always do.
            await connection.execute("SELECT set_config('search_path', $1, true)", f"pg_catalog, {path}")
            counted: list[tuple[RestoreStep, int]] = []
            for step in plan.steps:
                if dry_run and not step.repeatable:
                    continue
                try:
                    number = await connection.fetchval(step.sql)
                except (
                    asyncpg.IntegrityConstraintViolationError,
                    asyncpg.DataError,
                    asyncpg.RaiseError,
                ) as error:
                    raise RefusedError(
                        f"{step.says} The database refuses: {error}; nothing was changed. The archive stays as it is:"
                        " see to those rows, or take the script and change it"
                    ) from None
                counted.append((step, number or 0))
            if dry_run:
                await transaction.rollback()
            else:
                marked = mark_restored(plan, entries)
                if marked:
                    await connection.execute(marked)
                await transaction.commit()
        done = report(run, entries, plan, counted, dry_run=dry_run)
        return msgspec.structs.replace(done, script=restore_script(run, entries, plan))

    async def restore_script(self, run: str) -> str:
        """The same statements as a script for `psql -f`."""
        async with self._connected() as connection, connection.transaction(readonly=True):
            await _settle(connection)
            entries, plan = await self._plan(connection, run)
        return restore_script(run, entries, plan)

    async def copy_ahead(
        self, run: str, items: tuple[ArchiveItem, ...], on_progress: ProgressSink
    ) -> tuple[ArchiveItem, ...]:
        """Copy before the downgrade, without a lock that blocks, and log what is written from then on.

        What has no key, and rows that only a statement will choose, can't be copied ahead and come back unchanged.
        `on_progress` is told the rows that are copied; their total is the server's estimate.
        """
        async with self._connected() as connection:
            tables = {item.table: await self._table(connection, item.table) for item in items}
            known = {(i.kind, i.column, t["oid"]) for i in items if (t := tables[i.table]) is not None}
            # A partition is copied with the table above it.
            ahead = {
                item: table
                for item in items
                if (table := tables[item.table]) is not None
                and item.key
                and item.kind is not ArchiveKind.ROWS
                and not any((item.kind, item.column, oid) in known for oid in table["above"])
            }
            total = await connection.fetchval(
                "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0) FROM unnest($1::bigint[]) o(oid)"
                " CROSS JOIN pg_partition_tree(o.oid::regclass) p JOIN pg_class c ON c.oid = p.relid AND p.isleaf",
                [table["oid"] for table in ahead.values()],
            )
            copied = 0
            for item, table in ahead.items():
                async for rows in self._copy(connection, run, item, table):
                    copied += rows
                    await on_progress(Progress(done=copied, total=max(float(total), copied), unit="rows"))
            return tuple(
                msgspec.structs.replace(item, copied=True) if item in ahead else item for item in items
            )

    async def discard(self, run: str) -> None:
        """Drop what was begun for a run that came to nothing, its triggers first; what it did keep stays."""
        async with self._connected() as connection:
            if not await _is_there(connection):
                return
            mark = archiving.mark(run)
            functions = await connection.fetch(
                "SELECT p.proname FROM pg_proc p WHERE p.pronamespace = to_regnamespace($1)"
                " AND obj_description(p.oid, 'pg_proc') = $2 ORDER BY 1",
                SCHEMA,
                mark,
            )
            for (name,) in functions:
                # From here on its triggers do nothing, whoever holds their tables.
                await connection.execute(
                    f"CREATE OR REPLACE FUNCTION {_archived(name)}() RETURNS trigger LANGUAGE plpgsql"
                    " AS 'BEGIN RETURN NULL; END'"
                )
            for (name,) in functions:
                await _drop_function(connection, name)
            async with connection.transaction():
                await _settle(connection)
                tables = await connection.fetch(
                    "SELECT c.relname FROM pg_class c WHERE c.relnamespace = to_regnamespace($1) AND c.relkind = 'r'"
                    f" AND obj_description(c.oid, 'pg_class') = $2 AND c.relname NOT IN (SELECT archive FROM {ENTRIES.sql()})"
                    " ORDER BY 1",
                    SCHEMA,
                    mark,
                )
                for (name,) in tables:
                    await connection.execute(f"DROP TABLE {_archived(name)}")
                for entry in await read_entries(connection, run):
                    if entry.rows:
                        continue
                    rows = await connection.fetchval(f"SELECT count(*) FROM {_archived(entry.archive)}")
                    if rows:
                        await connection.execute(
                            f"UPDATE {ENTRIES.sql()} SET row_count = $1 WHERE id = $2", rows, entry.id
                        )
                    else:
                        await _drop(connection, entry)
                await _drop_when_empty(connection)

    async def finish(self, run: str) -> None:
        """Give the run's archives their primary keys, which would have cost time under the downgrade's locks."""
        async with self._connected() as connection:
            for entry in await read_entries(connection, run):
                if await connection.fetchval(
                    "SELECT EXISTS (SELECT 1 FROM pg_index WHERE indrelid = $1::text::regclass AND indisprimary)",
                    _archived(entry.archive),
                ):
                    continue
                key = entry.key if entry.kind is not ArchiveKind.ROWS and entry.key else (ROW,)
                columns = ", ".join(quoted(name) for name in key)
                try:
                    await connection.execute(
                        f"ALTER TABLE {_archived(entry.archive)} ADD PRIMARY KEY ({columns})"
                    )
                except asyncpg.IntegrityConstraintViolationError as error:
                    raise PermanentError(
                        f"the archive {SCHEMA}.{entry.archive} can't be keyed by {', '.join(key)}: {error}; what it keeps is"
                        " complete, but bringing it back may put a value into more than one row"
                    ) from None

    async def adopt(self, run: str, copy: RestoredCopy) -> int:
        """Take over the archives of a restored copy as those of `run`; returns the rows."""
        assert isinstance(copy, Place), "only our own backups hand over a copy"
        source = await connect(copy, float(self._target.database.connect_timeout))
        try:
            entries = await read_entries(source, None)
            async with self._connected() as connection:
                return await adopt_archives(source, connection, run, entries)
        finally:
            await source.close(timeout=5)

    async def prune(self, before: datetime) -> tuple[ArchiveEntry, ...]:
        """Drop the archives that were made before; those that were dropped."""
        async with self._connected() as connection, connection.transaction():
            await _settle(connection)
            old = tuple(entry for entry in await read_entries(connection, None) if entry.made_at < before)
            for entry in old:
                await _drop(connection, entry)
            if old:
                await _drop_when_empty(connection)
            return old

    # -- pieces ---------------------------------------------------------------------------------------------------------

    async def _plan(
        self, connection: asyncpg.Connection, run: str
    ) -> tuple[tuple[ArchiveEntry, ...], RestorePlan]:
        entries = await read_entries(connection, run)
        if not entries:
            raise RefusedError(
                f"the run {run} keeps nothing in {self._place.text()}: 'rollbackd archives list TARGET' lists what is kept"
            )
        present: dict[TableName, PresentTable] = {}
        names = {
            name for entry in entries for name in (entry.table, entry.definition.today) if name is not None
        }
        for table in names:
            found = await connection.fetchval(archiving.describe_table(table.schema, table.name))
            if found is not None:
                present[table] = msgspec.json.decode(found, type=PresentTable)
        entries = tuple(as_called_now(entry, present) for entry in entries)
        version = int(await connection.fetchval("SELECT current_setting('server_version_num')::int"))
        return entries, plan_restore(entries, present, version)

    async def _table(self, connection: asyncpg.Connection, table: TableName) -> Catalog | None:
        async with connection.transaction():
            await _settle(connection)
            found = await connection.fetchval(archiving.describe_table(table.schema, table.name))
        return None if found is None else dict(msgspec.json.decode(found))

    async def _copy(
        self, connection: asyncpg.Connection, run: str, item: ArchiveItem, table: Catalog
    ) -> AsyncIterator[int]:
        """Log changes from now on, then copy; gives the rows of each batch."""
        plain = dict(msgspec.to_builtins(item))
        archive = archiving.archive_name(run, plain)
        log = archiving.log_name(archive)
        async with connection.transaction():
            await _settle(connection)
            await _set_up(connection, table)
            # What an earlier try left.
            await connection.execute(f"DROP FUNCTION IF EXISTS {_archived(log)}() CASCADE")
            await connection.execute(f"DROP TABLE IF EXISTS {_archived(log)}, {_archived(archive)}")
            empty = archiving.copy_query(plain, table, where="false")
            await connection.execute(f"CREATE TABLE {_archived(archive)} AS {empty}")
            for statement in archiving.watch_changes(plain, table, archive, run):
                await connection.execute(statement)
            await _give(connection, run, table, archive, log)
        async for rows in self._batches(connection, plain, table, archive):
            yield rows
        # The changes will be looked up by it.
        columns = ", ".join(quoted(name) for name in item.key)
        await connection.execute(f"ALTER TABLE {_archived(archive)} ADD PRIMARY KEY ({columns})")
        await connection.execute(f"ANALYZE {_archived(archive)}")

    async def _batches(
        self, connection: asyncpg.Connection, item: Catalog, table: Catalog, archive: str
    ) -> AsyncIterator[int]:
        """Copy in the order of the key, a short statement at a time: no snapshot and no lock is held for long."""
        into = f"INSERT INTO {_archived(archive)}"
        by_name = {column["name"]: column for column in table["columns"]}
        keys = [by_name[name] for name in item["key"]]
        if any(column["as_text"] or column["own_collation"] for column in keys):
            # The archive doesn't sort such a key as the table does.
            async with connection.transaction():
                await _settle(connection)
                status = await connection.execute(f"{into} {archiving.copy_query(item, table)}")
            yield int(status.split()[-1])
            return
        names = [quoted(column["name"]) for column in keys]
        order = ", ".join(f"t.{name}" for name in names)
        last: list[str] = []
        while True:
            values = ", ".join(
                f"{archiving.literal(value)}::{column['type']}"
                for value, column in zip(last, keys, strict=False)
            )
            where = f"({order}) > ({values})" if last else ""
            batch = (
                f"{into} {archiving.copy_query(item, table, where=where)} ORDER BY {order} LIMIT {BATCH_ROWS}"
            )
            async with connection.transaction():
                await _settle(connection)
                row = await connection.fetchrow(
                    f"WITH batch AS ({batch} RETURNING {', '.join(names)})"
                    f" SELECT count(*) OVER (), {', '.join(f'concat({name})' for name in names)} FROM batch"
                    f" ORDER BY {', '.join(f'{name} DESC' for name in names)} LIMIT 1"
                )
            if row is None:
                return
            count, *last = row
            yield int(count)
            if count < BATCH_ROWS:
                return

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await connect(self._place, float(self._target.database.connect_timeout))
        try:
            yield connection
        except (
            asyncpg.LockNotAvailableError,
            asyncpg.DeadlockDetectedError,
            asyncpg.SerializationError,
            asyncpg.QueryCanceledError,
        ) as error:
            raise TransientError(
                f"the archives in {self._place.text()} couldn't be worked on, because others hold what is needed: {error};"
                " try again"
            ) from None
        except asyncpg.InsufficientPrivilegeError as error:
            raise PermanentError(
                f"{self._place.user} may not work on the archives in {self._place.text()}: {error}; make it a member of"
                " the role that owns the tables"
            ) from None
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError) as error:
            raise TransientError(
                f"the connection to {self._place.text()} was lost: {error}; try again"
            ) from None
        except asyncpg.PostgresError as error:
            raise PermanentError(
                f"the archives in {self._place.text()} couldn't be worked on: {error}"
            ) from None
        finally:
            # What is still open is undone by the server; nobody waits for a server that doesn't answer.
            connection.terminate()


def _archived(name: str) -> str:
    return TableName(SCHEMA, name).sql()


async def _settle(connection: asyncpg.Connection) -> None:
    """Fix, until the transaction's end, what texts and names depend on."""
    settings = {**TEXT_SETTINGS, "lock_timeout": LOCK_TIMEOUT}
    for name, value in settings.items():
        await connection.execute("SELECT set_config($1, $2, true)", name, value)


async def _is_there(connection: asyncpg.Connection) -> bool:
    return await connection.fetchval("SELECT to_regclass($1)", ENTRIES.sql()) is not None


async def read_entries(connection: asyncpg.Connection, run: str | None = None) -> tuple[ArchiveEntry, ...]:
    """What is kept in this database, of one run or of all; nothing where nothing ever was."""
    if not await _is_there(connection):
        return ()
    rows = await connection.fetch(
        "SELECT id, run, revision, kind, table_schema, table_name, column_name, key_columns, archive, row_count,"
        f" definition::text, made_at, restored_at FROM {ENTRIES.sql()} WHERE $1::text IS NULL OR run = $1 ORDER BY id",
        run,
    )
    return tuple(
        ArchiveEntry(
            id=row["id"],
            run=row["run"],
            revision=row["revision"],
            kind=ArchiveKind(row["kind"]),
            table=TableName(row["table_schema"], row["table_name"]),
            column=row["column_name"],
            key=tuple(row["key_columns"]),
            archive=row["archive"],
            rows=row["row_count"],
            definition=msgspec.json.decode(row["definition"], type=KeptDefinition),
            made_at=row["made_at"],
            restored_at=row["restored_at"],
        )
        for row in rows
    )


async def _set_up(connection: asyncpg.Connection, table: Catalog) -> None:
    if await _is_there(connection):
        return
    made = await connection.fetchval("SELECT to_regnamespace($1) IS NULL", SCHEMA)
    for statement in SETUP:
        await connection.execute(statement)
    await connection.execute(f"REVOKE ALL ON {ENTRIES.sql()} FROM PUBLIC")
    if made and await connection.fetchval(archiving.may_give(table)):
        owner = quoted(table["owner"])
        await connection.execute(f"ALTER SCHEMA {SCHEMA} OWNER TO {owner}")
        await connection.execute(f"ALTER TABLE {ENTRIES.sql()} OWNER TO {owner}")


async def _give(connection: asyncpg.Connection, run: str, table: Catalog, archive: str, log: str) -> None:
    """Hand a copy and its log to the table's owner, as whom the downgrade will go on with them."""
    for name in (archive, log):
        await connection.execute(f"REVOKE ALL ON {_archived(name)} FROM PUBLIC")
        if await connection.fetchval("SELECT EXISTS (SELECT 1 FROM pg_publication WHERE puballtables)"):
            await connection.execute(f"ALTER TABLE {_archived(name)} REPLICA IDENTITY FULL")
    await connection.execute(
        f"COMMENT ON TABLE {_archived(archive)} IS {archiving.literal(archiving.mark(run))}"
    )
    owner = quoted(table["owner"])
    if await connection.fetchval(archiving.lacks_room(table)):
        await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {owner}")
    if await connection.fetchval(archiving.may_own(table)):
        await connection.execute(f"ALTER TABLE {_archived(archive)} OWNER TO {owner}")
        await connection.execute(f"ALTER TABLE {_archived(log)} OWNER TO {owner}")
        await connection.execute(f"ALTER FUNCTION {_archived(log)}() OWNER TO {owner}")


async def _drop_function(connection: asyncpg.Connection, name: str) -> None:
    """Its triggers go with it, wherever their tables are by now. Who kept a downgrade out of a table may hold it still."""
    until = time.monotonic() + DISCARD_FOR_S
    while True:
        try:
            async with connection.transaction():
                await _settle(connection)
                await connection.execute(f"DROP FUNCTION IF EXISTS {_archived(name)}() CASCADE")
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if time.monotonic() >= until:
                raise
            await asyncio.sleep(1)
        else:
            return


async def _drop(connection: asyncpg.Connection, entry: ArchiveEntry) -> None:
    await connection.execute(f"DROP TABLE IF EXISTS {_archived(entry.archive)}")
    await connection.execute(f"DELETE FROM {ENTRIES.sql()} WHERE id = $1", entry.id)


async def _drop_when_empty(connection: asyncpg.Connection) -> None:
    """Nothing of ours stays in a database that keeps nothing."""
    if await connection.fetchval(archiving.nothing_is_kept()):
        for statement in archiving.TEAR_DOWN:
            await connection.execute(statement)
