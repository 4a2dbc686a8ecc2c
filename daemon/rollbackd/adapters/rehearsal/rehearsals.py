"""The port `Rehearsals` for one target: a copy in scratch, the real scripts run on it, and what the catalog says."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncpg
import msgspec

from rollbackd.adapters.backup.scratch import mark, scratch_database
from rollbackd.adapters.postgres.catalog import read_schema
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.rehearsal.copies import Copies
from rollbackd.adapters.rehearsal.verifying import Verifier, verify_on
from rollbackd.adapters.worker.alembic import AlembicWorker, ScratchPlace
from rollbackd.core.archives import ENTRIES, SCHEMA, ArchiveKind
from rollbackd.core.observing import archive_items, rehearsed_revisions
from rollbackd.core.reading import ReadRevision
from rollbackd.core.rehearsal import Depth, Rehearsal, Way
from rollbackd.core.schema import Schema, TableName, compare_schemas, quoted
from rollbackd.core.verification import Verified
from rollbackd.errors import PermanentError, RefusedError, RollbackdError
from rollbackd.ports import RestoredCopy
from rollbackd.settings import Target

MADE_UP_ROWS = 3
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
                    found = await self._run(place, way, depth, owners=owners)
            except RollbackdError as error:
                found = _unknown(depth, way, str(error))
                rows = 0
        return msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3), rows=rows)

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
        connection: asyncpg.Connection = await connect(copy, self._target.database.connect_timeout)
        try:
            if await connection.fetchval("SELECT to_regclass($1)", ENTRIES.sql()) is None:
                return found
            for kind, schema, name, archive, rows in await connection.fetch(
                f"SELECT kind, table_schema, table_name, archive, row_count FROM {ENTRIES.sql()}"  # noqa: S608 - ours
            ):
                table = TableName(schema, name).text()
                if kind == ArchiveKind.ROWS:
                    place = TableName(SCHEMA, archive).sql()
                    rows = await connection.fetchval(_TAKEN_ROWS.format(place=place))  # noqa: PLW2901
                found[table] = found.get(table, 0) + int(rows)
        finally:
            await connection.close(timeout=5)
        return found

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
        async with (
            self._turn,
            self._copies.copy(depth, fingerprint, heads, timeout_s, {}) as (place, _, _),
        ):
            worker = self._worker_at(place, kept_scripts)
            verifier = Verifier(self._target, worker, place, dict(titles), made_up_rows=MADE_UP_ROWS)
            await verifier.make_up_rows()
            verified, _ = await verify_on(verifier, list(reads))
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
            archive=archive_items(watched, ran),
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
        migrations = self._target.migrations
        name = quoted(migrations.version_table)
        if migrations.version_table_schema:
            name = f"{quoted(migrations.version_table_schema)}.{name}"
        connection: asyncpg.Connection = await connect(place, self._target.database.connect_timeout)
        try:
            schema = await read_schema(connection)
            if await connection.fetchval("SELECT to_regclass($1)", name) is None:
                return schema, ()
            rows = await connection.fetch(f"SELECT version_num FROM {name} ORDER BY 1")  # noqa: S608 - quoted
            return schema, tuple(row[0] for row in rows)
        finally:
            await connection.close(timeout=5)


def _unknown(depth: Depth, way: Way, why: str) -> Rehearsal:
    return Rehearsal(depth=depth, from_heads=way.from_heads, to_heads=way.to_heads, unknown=why)
