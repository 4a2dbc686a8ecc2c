"""The port `Rehearsals` for one target: a copy in scratch, the real scripts run on it, and what the catalog says."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec

from rollbackd.adapters.backup.scratch import mark, scratch_database
from rollbackd.adapters.postgres.archives import read_entries
from rollbackd.adapters.postgres.catalog import read_schema
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.stamp import read_heads, version_table_sql
from rollbackd.adapters.rehearsal.copies import Copies
from rollbackd.adapters.rehearsal.verifying import Verifier, verify_each
from rollbackd.adapters.worker.alembic import AlembicWorker, ScratchPlace
from rollbackd.core.archives import SCHEMA, ArchiveEntry, ArchiveKind
from rollbackd.core.observing import archive_items, rehearsed_revisions, renamed_tables
from rollbackd.core.reading import ReadRevision
from rollbackd.core.rehearsal import Depth, Rehearsal, TakenRows, Way
from rollbackd.core.schema import Schema, TableName, compare_schemas
from rollbackd.core.verification import Verified
from rollbackd.errors import PermanentError, RefusedError, RollbackdError
from rollbackd.ports import RestoredCopy
from rollbackd.settings import Target

MADE_UP_ROWS = 3
LOOK_LOCK_WAIT = "10s"
_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND application_name <> 'rollbackd' AND backend_type = 'client backend' AND pg_has_role(usesysid, 'MEMBER')"
)
# Of rows that a statement deleted or changed: those that are gone, or have lost a value.
_TAKEN_ROWS = (
    "SELECT count(*) FROM {place} k WHERE k.rollbackd_new IS NULL OR EXISTS (SELECT 1 FROM jsonb_each_text(k.rollbackd_old) o"
    " WHERE o.value IS NOT NULL AND o.value IS DISTINCT FROM k.rollbackd_new ->> o.key)"
)


class TargetRehearsals:
    """Fulfils `ports.Rehearsals`. Rehearsals of one target take turns; the child stays, with its scripts loaded."""

    def __init__(self, target: Target, kept_scripts: Path, store_id: str) -> None:
        self._target = target
        self._kept = kept_scripts
        self._store_id = store_id
        self._copies = Copies(target, store_id)
        self._worker: AlembicWorker | None = None
        self._scripts = ""
        self._turn = asyncio.Lock()

    async def rehearse(
        self,
        way: Way,
        *,
        depth: Depth,
        fingerprint: str,
        wanted: Mapping[TableName, Sequence[str]] | None = None,
    ) -> Rehearsal:
        """Run it on a copy of this depth."""
        timeout_s = self._target.rehearsal.timeout
        began = time.monotonic()
        async with self._turn:
            try:
                async with self._copies.copy(
                    depth, fingerprint, way.from_heads, timeout_s, wanted or {}
                ) as copied:
                    place, owners, rows = copied
                    if depth is Depth.FULL:
                        found = await self._run_with_every_row(place, way, owners=owners)
                    else:
                        found = await self._run(place, way, depth, owners=owners)
            except RollbackdError as error:
                found = _unknown(depth, way, str(error))
                rows = 0
        return msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3), rows=rows)

    async def _run_with_every_row(self, place: Place, way: Way, *, owners: bool) -> Rehearsal:
        """Where its statements work on rows, once more with the archive, which tells exactly which rows those are.

        The first time on a clone; the second is a rehearsal of the archive as well.
        """
        async with scratch_database(self._target, self._store_id, place.database) as clone:
            seen = await self._run(clone, way, Depth.FULL, owners=owners)
        works_on_rows = any(
            any(w.may_lose for w in r.written) or any(not c.keeps_values for c in r.changed_columns)
            for r in seen.revisions
        )
        if not seen.passed or not works_on_rows:
            return seen
        again = await self._run(
            place, msgspec.structs.replace(way, archive=seen.archive), Depth.FULL, owners=owners
        )
        if not again.passed:
            return again
        taken = tuple(
            TakenRows(revision=entry.revision, table=entry.table, rows=entry.rows, column=entry.column)
            for entry in await self._archived(place)
            if entry.kind in (ArchiveKind.ROWS, ArchiveKind.NARROWED)
        )
        return msgspec.structs.replace(seen, taken=taken, seconds=again.seconds)

    async def rehearse_on(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        """Run it on a copy that somebody else has just restored: proof and rehearsal in one act."""
        assert isinstance(copy, Place), "only our own backups hand over a copy"
        began = time.monotonic()
        async with self._turn:
            try:
                found = await self._run(copy, way, Depth.FULL, owners=False)
            except RollbackdError as error:
                found = _unknown(Depth.FULL, way, str(error))
        return msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3), rows=-1)

    async def replay(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        """Run an upgrade again on a restored backup, and keep in the copy's archive all that it takes away."""
        assert isinstance(copy, Place), "only our own backups hand over a copy"
        async with self._turn:
            # First on a clone, to see what it takes away; then on the copy itself, which keeps that.
            async with scratch_database(self._target, self._store_id, copy.database) as clone:
                seen = await self._run(clone, way, Depth.FULL, owners=False)
            if seen.failure is not None:
                raise PermanentError(
                    f"the migration can't be run again on the backup: {seen.failure.revision}: {seen.failure.reason}"
                )
            keeping = msgspec.structs.replace(way, archive=seen.archive)
            return await self._run(copy, keeping, Depth.FULL, owners=False)

    async def taken(self, copy: RestoredCopy) -> dict[str, int]:
        """What a replay kept, by table; a changed row counts where a value that was there is another one now."""
        assert isinstance(copy, Place), "only our own backups hand over a copy"
        found: dict[str, int] = {}
        entries = await self._archived(copy)
        connection: asyncpg.Connection = await connect(copy, self._target.database.connect_timeout)
        try:
            for entry in entries:
                rows = entry.rows
                if entry.kind is ArchiveKind.ROWS:
                    place = TableName(SCHEMA, entry.archive).sql()
                    rows = int(await connection.fetchval(_TAKEN_ROWS.format(place=place)))
                found[entry.table.text()] = found.get(entry.table.text(), 0) + rows
        finally:
            await connection.close(timeout=5)
        return found

    async def _archived(self, place: Place) -> tuple[ArchiveEntry, ...]:
        """What the archive of a copy holds."""
        connection: asyncpg.Connection = await connect(place, self._target.database.connect_timeout)
        try:
            return await read_entries(connection)
        finally:
            await connection.close(timeout=5)

    async def verify(
        self,
        reads: tuple[ReadRevision, ...],
        titles: Mapping[str, str],
        *,
        depth: Depth,
        fingerprint: str,
        heads: tuple[str, ...],
        kept_scripts: str = "",
    ) -> tuple[Verified, ...]:
        """Put these revisions on a copy, take each off and put it on again."""
        timeout_s = self._target.rehearsal.timeout

        @asynccontextmanager
        async def stand(done: tuple[str, ...]) -> AsyncIterator[Verifier]:
            async with self._copies.copy(depth, fingerprint, heads, timeout_s, {}) as (place, _, _):
                worker = self._worker_at(place, kept_scripts)
                verifier = Verifier(self._target, worker, place, dict(titles), made_up_rows=MADE_UP_ROWS)
                await verifier.stand_on(done)
                yield verifier

        async with self._turn:
            verified, _ = await verify_each(list(reads), stand)
        return tuple(verified)

    async def prepare(self, fingerprint: str, heads: tuple[str, ...], kept_scripts: str = "") -> None:
        """Have the schema's copy and a loaded child waiting, so that the next rehearsal is quick."""
        async with self._turn:
            place, _ = await self._copies.warm(fingerprint, heads, self._target.rehearsal.timeout)
            await self._worker_at(place, kept_scripts).prestart()

    async def size_bytes(self) -> int:
        """How large the guarded database is."""
        return await self._copies.size_bytes()

    async def close(self) -> None:
        """End the child and drop the copy that is kept."""
        async with self._turn:
            if self._worker is not None:
                await self._worker.close()
                self._worker = None
            await self._copies.close()

    async def _run(self, place: Place, way: Way, depth: Depth, *, owners: bool) -> Rehearsal:
        before, _ = await self._look(place)
        worker = self._worker_at(place, way.kept_scripts)
        watched = await worker.rehearse(way, timeout_s=self._target.rehearsal.timeout)
        if watched.reached_out:
            # In earnest nothing keeps it from that, so that it failed or passed without it says little.
            raise RefusedError(watched.reached_out)
        after, heads = await self._look(place)
        if not owners:
            before, after = before.without_owners(), after.without_owners()
        ran = rehearsed_revisions(watched)
        return Rehearsal(
            depth=depth,
            from_heads=way.from_heads,
            to_heads=way.to_heads,
            heads=heads,
            revisions=ran,
            difference=compare_schemas(before, after),
            expected=after,
            failure=watched.failure,
            keeps_owners=owners,
            archive=archive_items(watched),
            renamed=renamed_tables(watched),
            kept=watched.kept,
        )

    def _worker_at(self, place: Place, kept_scripts: str) -> AlembicWorker:
        scratch = ScratchPlace(place=place, mark=mark(self._store_id))
        if self._worker is None:
            self._worker = AlembicWorker(self._target, self._kept, scratch)
        self._worker.move_to(scratch)
        self._worker.use_scripts(kept_scripts)
        return self._worker

    async def _look(self, place: Place) -> tuple[Schema, tuple[str, ...]]:
        """The schema and the stamp of a copy."""
        settings = {"lock_timeout": LOOK_LOCK_WAIT}
        connection: asyncpg.Connection = await connect(place, self._target.database.connect_timeout, settings)
        try:
            # What the migration left open may hold locks, and nobody needs it any more. Our own sessions are somebody's.
            await connection.execute(_END_OTHERS)
            schema = await read_schema(connection)
            return schema, await read_heads(connection, version_table_sql(self._target.migrations))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise PermanentError(f"the copy {place.text()} can't be looked at: {error}") from None
        finally:
            await connection.close(timeout=5)


def _unknown(depth: Depth, way: Way, why: str) -> Rehearsal:
    return Rehearsal(depth=depth, from_heads=way.from_heads, to_heads=way.to_heads, unknown=why)
