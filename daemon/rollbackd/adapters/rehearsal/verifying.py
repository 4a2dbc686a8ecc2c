"""Revisions put on, taken off and put on again in one scratch database, with rows made up for every table in between."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import asyncpg

from rollbackd.adapters.backup.scratch import mark, scratch_database
from rollbackd.adapters.postgres.catalog import read_schema
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.rows.filling import fill_tables
from rollbackd.adapters.postgres.stamp import read_heads, version_table_sql
from rollbackd.adapters.worker.alembic import AlembicWorker, ScratchPlace
from rollbackd.core.assess import heads_text
from rollbackd.core.observing import Watched, rehearsed_revisions
from rollbackd.core.reading import ReadRevision, irreversible
from rollbackd.core.rehearsal import Way
from rollbackd.core.revisions import RevisionGraph
from rollbackd.core.schema import Schema, TableName, compare_schemas, quoted
from rollbackd.core.verification import Fault, Found, Verification, Verified, changed_rows, drift, lost_data
from rollbackd.errors import PermanentError
from rollbackd.settings import Target

# Rows of a table that are compared before and after; a table that holds more is compared by its first.
COMPARED_ROWS = 2_000
Told = Callable[[Verified], None]


class CannotGoOnError(Exception):
    """The database stands neither before nor after this revision; `verified` is what was found of it."""

    def __init__(self, verified: Verified) -> None:
        super().__init__(verified.revision)
        self.verified = verified


class CannotStandError(Exception):
    """What stands below a revision couldn't be put on again; says why."""


class Verifier:
    """Verifies revisions one after another in one scratch database, wherever that stands."""

    def __init__(
        self,
        target: Target,
        worker: AlembicWorker,
        place: Place,
        titles: dict[str, str],
        *,
        made_up_rows: int,
    ) -> None:
        self._target = target
        self._worker = worker
        self._place = place
        self._titles = titles
        self._made_up_rows = made_up_rows
        self.has_made_up_rows = False
        migrations = target.migrations
        self._version = TableName(migrations.version_table_schema or "public", migrations.version_table)
        self._version_sql = version_table_sql(migrations)

    async def make_up_rows(self) -> int:
        """See to it that every table holds rows; how many were made up for that."""
        async with self._looking() as connection:
            filled = await fill_tables(connection, rows=self._made_up_rows, skip=frozenset({self._version}))
        added = sum(table.added for table in filled)
        self.has_made_up_rows = self.has_made_up_rows or added > 0
        return added

    async def put_on(self, revisions: tuple[str, ...], *, observe: bool = False) -> Watched:
        """Put these revisions on, in this order; a failure is in the answer."""
        heads = await self.heads()
        way = Way(
            direction="up", revisions=revisions, from_heads=heads, to_heads=revisions[-1:], observe=observe
        )
        return await self._worker.rehearse(way, timeout_s=self._target.rehearsal.timeout)

    async def stand_on(self, revisions: tuple[str, ...]) -> None:
        """Put on what was verified already.

        Raises:
            CannotStandError: when that fails.
        """
        if not revisions:
            return
        failed = (await self.put_on(revisions)).failure
        if failed is not None:
            raise CannotStandError(f"{failed.revision} can't be put on again: {failed.reason}")

    async def verify(self, read: ReadRevision, *, over_rows: bool = True) -> Verified:
        """Up, rows, down, up again: what was found. Without `over_rows` the upgrade meets no rows made up for it.

        Raises:
            CannotGoOnError: when it isn't on in the end.
        """
        began = time.monotonic()
        if over_rows:
            await self.make_up_rows()
        async with self._looking() as connection:
            before, heads_before = await self._look(connection)
            rows_before = await self._rows(connection)
        found: list[Found] = []
        up = await self.put_on((read.id,))
        if up.failure is not None:
            found.append(Found(fault=Fault.UPGRADE_FAILS, text=f"can't be put on: {up.failure.reason}"))
            raise CannotGoOnError(self._verified(read, found, began, 0))
        async with self._looking() as connection:
            upgraded, heads_up = await self._look(connection)
        if read.id not in heads_up:
            text = (
                f"can't be put on: Alembic reports success, and the version table says {heads_text(heads_up)}"
            )
            found.append(Found(fault=Fault.UPGRADE_FAILS, text=text))
            raise CannotGoOnError(self._verified(read, found, began, 0))
        made_up = await self.make_up_rows()
        if reason := irreversible(read):
            found.append(Found(fault=Fault.IRREVERSIBLE, text=reason))
            return self._verified(read, found, began, made_up)
        way = Way(revisions=(read.id,), from_heads=heads_up, to_heads=heads_before)
        down = await self._worker.rehearse(way, timeout_s=self._target.rehearsal.timeout)
        async with self._looking() as connection:
            after, heads_after = await self._look(connection)
            rows_after = await self._rows(connection)
        if down.failure is not None:
            found.append(
                Found(fault=Fault.DOWNGRADE_FAILS, text=f"can't be taken off: {down.failure.reason}")
            )
            whole = set(heads_after) == set(heads_up) and compare_schemas(upgraded, after).is_empty()
            if not whole:
                raise CannotGoOnError(self._verified(read, found, began, made_up))
            return self._verified(read, found, began, made_up)
        if set(heads_after) != set(heads_before):
            text = f"reports success, and the version table says {heads_text(heads_after)} instead of {heads_text(heads_before)}"
            found.append(Found(fault=Fault.STAMP_LOST, text=text))
            raise CannotGoOnError(self._verified(read, found, began, made_up))
        # Where a table's columns differ, that is drift; its rows' texts say nothing.
        same = [
            table
            for table, (columns, _) in rows_before.items()
            if rows_after.get(table, ((), ()))[0] == columns
        ]
        kept = changed_rows({t: rows_before[t][1] for t in same}, {t: rows_after[t][1] for t in same})
        # Without rows made up before, those that are there get values made up into their empty columns in between.
        seen = (drift(compare_schemas(before, after)), kept if over_rows else None)
        found += [one for one in seen if one is not None]
        taken_off = rehearsed_revisions(down)
        found += [lost for one in taken_off if (lost := lost_data(one)) is not None]
        statements = tuple(ran.sql for one in taken_off for ran in one.statements)
        again = await self.put_on((read.id,))
        if again.failure is not None:
            text = f"can't be put on again after its downgrade: {again.failure.reason}"
            found.append(Found(fault=Fault.REAPPLY_FAILS, text=text))
            raise CannotGoOnError(self._verified(read, found, began, made_up, statements))
        return self._verified(read, found, began, made_up, statements)

    def _verified(
        self,
        read: ReadRevision,
        found: list[Found],
        began: float,
        rows: int,
        statements: tuple[str, ...] = (),
    ) -> Verified:
        return Verified(
            revision=read.id,
            title=self._titles.get(read.id, ""),
            path=read.path,
            line=read.line,
            found=tuple(found),
            seconds=round(time.monotonic() - began, 3),
            rows=rows,
            statements=statements,
        )

    async def heads(self) -> tuple[str, ...]:
        """The stamp of the scratch database."""
        async with self._looking() as connection:
            return await read_heads(connection, self._version_sql)

    @asynccontextmanager
    async def _looking(self) -> AsyncIterator[asyncpg.Connection]:
        # What a migration left open may hold locks.
        settings = {"lock_timeout": "10s"}
        connection = await connect(self._place, self._target.database.connect_timeout, settings)
        try:
            yield connection
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise PermanentError(f"the copy {self._place.text()} can't be looked at: {error}") from None
        finally:
            await connection.close(timeout=5)

    async def _look(self, connection: asyncpg.Connection) -> tuple[Schema, tuple[str, ...]]:
        """The schema without the version table, which comes with the first upgrade and stays; and the stamp."""
        schema = await read_schema(connection)
        name = self._version.text()
        kept = {key: value for key, value in schema.objects.items() if name not in key}
        return Schema(objects=kept), await read_heads(connection, self._version_sql)

    async def _rows(
        self, connection: asyncpg.Connection
    ) -> dict[TableName, tuple[tuple[str, ...], tuple[str, ...]]]:
        """Each table's columns by name, so that a column's place doesn't matter, and every row's text in that order."""
        tables = await connection.fetch(
            "SELECT n.nspname, c.relname, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            " AND NOT a.attisdropped WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$|rollbackd)' GROUP BY 1, 2"
        )
        found: dict[TableName, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for schema, name, columns in tables:
            table = TableName(schema, name)
            if table == self._version:
                continue
            listed = ", ".join(quoted(column) for column in columns)
            query = f"SELECT ROW({listed})::text FROM {table.sql()} ORDER BY 1 LIMIT {COMPARED_ROWS}"  # noqa: S608 - quoted
            found[table] = (tuple(columns), tuple(row[0] for row in await connection.fetch(query)))
        return found


# Gives a database where these revisions are on and the next one isn't; no rows are made up in it yet.
Stand = Callable[[tuple[str, ...]], AbstractAsyncContextManager[Verifier]]


async def verify_each(
    reads: list[ReadRevision], stand: Stand, told: Told | None = None
) -> tuple[list[Verified], str]:
    """Verify these revisions in their order, and go on in another database where one leaves its own half done.

    Made-up rows are meant to be in the way of downgrades. Where they are in the way of an upgrade, which real rows may
    well pass (a column becomes NOT NULL or unique), it is put on without them, and verified from there.

    Returns:
        What was found, and why it ended before the last one (empty where it didn't).
    """
    verified: list[Verified] = []
    over_rows = True
    while len(verified) < len(reads):
        at = len(verified)
        try:
            async with stand(tuple(read.id for read in reads[:at])) as verifier:
                for read in reads[at:]:
                    is_on = True
                    try:
                        one = await verifier.verify(read, over_rows=over_rows)
                    except CannotGoOnError as error:
                        one, is_on = error.verified, False
                    fails = Fault.UPGRADE_FAILS in one.faults()
                    if fails and verifier.has_made_up_rows:
                        over_rows = False
                        break
                    over_rows = True
                    verified.append(one)
                    if told is not None:
                        told(one)
                    if fails:
                        return verified, f"{read.id} can't be put on, so nothing above it can be verified"
                    if not is_on:
                        break
        except CannotStandError as error:
            return verified, str(error)
    return verified, ""


async def verify_from_base(
    target: Target,
    kept: Path,
    store_id: str,
    *,
    start: tuple[str, ...] = (),
    made_up_rows: int = 3,
    told: Told | None = None,
) -> Verification:
    """Verify every revision above `start` (all, where that is empty), on empty scratch databases.

    Raises:
        RefusedError: when there are no scripts, or `start` names none.
        PermanentError, TransientError: when scratch can't be had.
    """
    began = time.monotonic()
    worker: AlembicWorker | None = None
    try:
        async with scratch_database(target, store_id) as place:
            worker = AlembicWorker(target, kept, ScratchPlace(place=place, mark=mark(store_id)))
            graph = RevisionGraph((await worker.describe()).revisions)
            below = graph.order_up((), start) if start else ()
            order = graph.order_up(graph.heads_of(frozenset(below)))
            read = await worker.read(order) if order else {}
        titles = {revision: graph[revision].title for revision in graph.ids()}

        @asynccontextmanager
        async def stand(done: tuple[str, ...]) -> AsyncIterator[Verifier]:
            async with scratch_database(target, store_id) as place:
                worker.move_to(ScratchPlace(place=place, mark=mark(store_id)))
                verifier = Verifier(target, worker, place, titles, made_up_rows=made_up_rows)
                await verifier.stand_on((*below, *done))
                yield verifier

        verified, stopped = await verify_each([read[revision] for revision in order], stand, told)
    finally:
        if worker is not None:
            await worker.close()
    return Verification(verified=tuple(verified), stopped=stopped, seconds=round(time.monotonic() - began, 3))
