"""Taking over the archives of a scratch copy: what a migration took away there, into the guarded database's own archive."""

import hashlib
import tempfile

import asyncpg
import msgspec

from rollbackd.core.archives import ENTRIES, SCHEMA, SETUP, ArchiveEntry
from rollbackd.core.schema import TableName, quoted


async def adopt_archives(
    source: asyncpg.Connection, target: asyncpg.Connection, run: str, entries: tuple[ArchiveEntry, ...]
) -> int:
    """Copy these archives and their entries as those of `run`, all of them or none; returns the rows.

    What `run` has already is replaced, so that it may be done again.
    """
    rows = 0
    async with target.transaction():
        for statement in SETUP:
            await target.execute(statement)
        for archive in await target.fetch(
            f"DELETE FROM {ENTRIES.sql()} WHERE run = $1 RETURNING archive", run
        ):
            await target.execute(f"DROP TABLE IF EXISTS {TableName(SCHEMA, archive[0]).sql()}")
        for entry in entries:
            rows += await _adopt(source, target, run, entry)
    return rows


async def _adopt(
    source: asyncpg.Connection, target: asyncpg.Connection, run: str, entry: ArchiveEntry
) -> int:
    name = f"lost_{hashlib.sha256(f'{run}/{entry.id}/{entry.archive}'.encode()).hexdigest()[:24]}"
    there, here = TableName(SCHEMA, entry.archive), TableName(SCHEMA, name)
    columns = await source.fetch(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0"
        " AND NOT attisdropped ORDER BY attnum",
        there.sql(),
    )
    # An archive has PostgreSQL's own types alone, so that they are the same here.
    listed = ", ".join(f"{quoted(column)} {kind}" for column, kind in columns)
    await target.execute(f"CREATE TABLE {here.sql()} ({listed})")
    await target.execute(f"REVOKE ALL ON {here.sql()} FROM PUBLIC")
    # Through a file: a table may be larger than memory.
    with tempfile.TemporaryFile(prefix="rollbackd-adopt-") as file:
        await source.copy_from_query(f"SELECT * FROM {there.sql()}", output=file, format="binary")
        file.seek(0)
        await target.copy_to_table(name, schema_name=SCHEMA, source=file, format="binary")
    await target.execute(
        f"INSERT INTO {ENTRIES.sql()} (run, revision, kind, table_schema, table_name, column_name, key_columns, archive,"
        " row_count, definition) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb)",
        run,
        entry.revision,
        str(entry.kind),
        entry.table.schema,
        entry.table.name,
        entry.column,
        list(entry.key),
        name,
        entry.rows,
        msgspec.json.encode(entry.definition).decode(),
    )
    return entry.rows
