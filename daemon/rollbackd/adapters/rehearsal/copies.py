"""Copies of the guarded database in scratch: the schema alone (kept warm as a template), a sample, or everything."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg

from rollbackd.adapters.backup import pg_tools
from rollbackd.adapters.backup.scratch import scratch_database, scratch_server
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.sampling import copy_sample
from rollbackd.adapters.postgres.stamp import version_table_sql, write_heads
from rollbackd.core.archives import SCHEMA as ARCHIVE_SCHEMA
from rollbackd.core.rehearsal import Depth
from rollbackd.core.schema import TableName
from rollbackd.errors import PermanentError
from rollbackd.settings import Target

WHOLE = "copy.dump"
# What a schema-only copy may wait for a lock of the guarded database.
LOCK_WAIT_MS = 2_000
RESTORE_JOBS = 2


class Copies:
    """Makes copies of one guarded database. The schema's copy is kept, and cloned for each rehearsal."""

    def __init__(self, target: Target, store_id: str) -> None:
        self._target = target
        self._store_id = store_id
        database = target.database
        self._source = Place.of(
            database.url, database.backup_password or database.password, user=database.backup_user
        )
        self._warm: tuple[str, Place, bool] | None = None
        self._held: AsyncExitStack | None = None
        self._clone = f"c{hashlib.sha256(target.name.encode()).hexdigest()[:11]}"

    async def close(self) -> None:
        """Drop the copy that is kept."""
        held, self._held, self._warm = self._held, None, None
        if held is not None:
            await held.aclose()

    async def warm(self, fingerprint: str, heads: tuple[str, ...], timeout_s: float) -> tuple[Place, bool]:
        """The kept copy of the schema; made anew when the guarded schema has another fingerprint or stamp.

        Returns:
            Where it is, and whether it has the owners and grants of the original.
        """
        key = "\0".join((fingerprint, *heads))
        if self._warm is not None and self._warm[0] == key:
            return self._warm[1], self._warm[2]
        await self.close()
        stack = AsyncExitStack()
        try:
            place = await stack.enter_async_context(scratch_database(self._target, self._store_id))
            owners = await self._restore(place, ["--schema-only"], timeout_s)
            await self._write_heads(place, heads)
        except BaseException:
            await stack.aclose()
            raise
        self._held, self._warm = stack, (key, place, owners)
        return place, owners

    @asynccontextmanager
    async def copy(
        self,
        depth: Depth,
        fingerprint: str,
        heads: tuple[str, ...],
        timeout_s: float,
        wanted: Mapping[TableName, Sequence[str]],
    ) -> AsyncIterator[tuple[Place, bool, int]]:
        """A copy of this depth, dropped at the end: where it is, whether it has owners, how many rows were copied.

        Raises:
            PermanentError: when it can't be made (an extension that scratch lacks, no rights).
            TransientError: when something wasn't reached or took too long.
        """
        if depth is Depth.FULL:
            async with scratch_database(self._target, self._store_id) as place:
                owners = await self._restore(place, [], timeout_s)
                yield place, owners, -1
            return
        template, owners = await self.warm(fingerprint, heads, timeout_s)
        # Always under the same name: a worker that was told an address once keeps it.
        async with scratch_database(self._target, self._store_id, template.database, self._clone) as place:
            rows = await self._sample(place, wanted) if depth is Depth.SAMPLE else 0
            yield place, owners, rows

    async def _sample(self, place: Place, wanted: Mapping[TableName, Sequence[str]]) -> int:
        timeout_s = self._target.database.connect_timeout
        settings = self._target.rehearsal
        source = await connect(self._source, timeout_s, {"row_security": "off"})
        try:
            scratch = await connect(place, timeout_s)
            try:
                return await copy_sample(
                    source,
                    scratch,
                    rows_per_table=settings.sample_rows,
                    most_bytes=settings.sample_bytes,
                    wanted=wanted,
                )
            finally:
                await scratch.close(timeout=5)
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise PermanentError(f"a sample of {self._source.text()} couldn't be copied: {error}") from None
        finally:
            await source.close(timeout=5)

    async def _restore(self, place: Place, options: list[str], timeout_s: float) -> bool:
        """Dump with these options and restore; whether owners and grants came along."""
        binaries = self._target.database.binaries
        pg_dump = pg_tools.find_tool("pg_dump", binaries)
        pg_restore = pg_tools.find_tool("pg_restore", binaries)
        owners = await self._roles_are_there(place)
        without = [] if owners else ["--no-owner", "--no-privileges"]
        with tempfile.TemporaryDirectory(prefix="rollbackd-rehearsal-") as name:
            folder = Path(name)
            with pg_tools.hold(folder) as lock:
                dump = [
                    str(pg_dump),
                    "--format=custom",
                    "--compress=0",
                    "--no-password",
                    f"--lock-wait-timeout={LOCK_WAIT_MS}",
                    f"--exclude-schema={ARCHIVE_SCHEMA}",
                    "--no-publications",
                    "--no-subscriptions",
                    f"--dbname={self._source.database}",
                    f"--file={folder / WHOLE}",
                    *options,
                ]
                await pg_tools.run_tool(dump, self._source, folder, timeout_s, lock=lock)
                listed = folder / "list"
                await self._write_list(pg_restore, folder / WHOLE, listed)
                restore = [
                    str(pg_restore),
                    "--exit-on-error",
                    "--no-password",
                    f"--jobs={RESTORE_JOBS}" if not options else "--single-transaction",
                    f"--use-list={listed}",
                    f"--dbname={place.database}",
                    *without,
                    str(folder / WHOLE),
                ]
                try:
                    await pg_tools.run_tool(restore, place, folder, timeout_s, lock=lock)
                except PermanentError as error:
                    raise PermanentError(f"scratch can't take a copy: {error}") from None
        return owners

    @staticmethod
    async def _write_list(pg_restore: Path, dump: Path, to: Path) -> None:
        """What to restore: everything but what only a superuser may make and no rehearsal needs."""
        process = await asyncio.create_subprocess_exec(
            str(pg_restore),
            "--list",
            str(dump),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        listed = (await process.communicate())[0].decode()
        dropped = re.compile(r"^\d+; \d+ \d+ (?:COMMENT - EXTENSION|EVENT TRIGGER)\b")
        kept = [line for line in listed.splitlines() if not dropped.match(line)]
        await asyncio.to_thread(to.write_text, "\n".join(kept) + "\n", encoding="utf-8")

    async def _roles_are_there(self, place: Place) -> bool:
        """Whether the copy can have the owners and grants of the original: the roles are there, and the role may."""
        timeout_s = self._target.database.connect_timeout
        source = await connect(self._source, timeout_s)
        try:
            rows = await source.fetch(_ROLES)
        finally:
            await source.close(timeout=5)
        scratch = await connect(place, timeout_s)
        try:
            missing = await scratch.fetchval(
                "SELECT count(*) FROM unnest($1::text[]) named(role) WHERE NOT EXISTS (SELECT 1 FROM pg_roles r"
                " WHERE r.rolname = named.role AND pg_has_role(r.oid, 'MEMBER'))",
                [row[0] for row in rows],
            )
        finally:
            await scratch.close(timeout=5)
        return not missing

    async def _write_heads(self, place: Place, heads: tuple[str, ...]) -> None:
        """The stamp, which a schema-only dump leaves out."""
        connection = await connect(place, self._target.database.connect_timeout)
        try:
            await write_heads(connection, version_table_sql(self._target.migrations), heads)
        except asyncpg.PostgresError as error:
            raise PermanentError(f"the stamp can't be written to the copy: {error}") from None
        finally:
            await connection.close(timeout=5)

    async def size_bytes(self) -> int:
        """How large the guarded database is."""
        connection = await connect(self._source, self._target.database.connect_timeout)
        try:
            return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
        finally:
            await connection.close(timeout=5)

    def server(self) -> Place:
        """Where scratch databases are made."""
        return scratch_server(self._target)


# Owners and grantees of what a dump holds.
_ROLES = """
SELECT DISTINCT r.rolname::text FROM pg_roles r WHERE r.oid IN (
    SELECT relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname !~ '^(pg_|information_schema$)'
    UNION SELECT proowner FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname !~ '^(pg_|information_schema$)'
    UNION SELECT typowner FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname !~ '^(pg_|information_schema$)'
    UNION SELECT nspowner FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'
    UNION SELECT (aclexplode(relacl)).grantee FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^(pg_|information_schema$)'
    UNION SELECT (aclexplode(nspacl)).grantee FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$)'
    UNION SELECT (aclexplode(attacl)).grantee FROM pg_attribute WHERE attacl IS NOT NULL
    UNION SELECT (aclexplode(proacl)).grantee FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname !~ '^(pg_|information_schema$)'
    UNION SELECT (aclexplode(defaclacl)).grantee FROM pg_default_acl UNION SELECT defaclrole FROM pg_default_acl
    UNION SELECT unnest(polroles) FROM pg_policy
)
"""
