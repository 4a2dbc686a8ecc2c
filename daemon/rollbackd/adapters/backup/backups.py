"""The port `Backups` for one target: pg_dump tied to a counted snapshot, or a reference to somebody else's backup."""

import asyncio
import errno
import json
import os
import shlex
import shutil
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import msgspec

from rollbackd.adapters.backup import files, pg_tools
from rollbackd.adapters.backup.scratch import may_create_scratch, scratch_database, sweep_scratch
from rollbackd.adapters.commands import run_command
from rollbackd.adapters.postgres.connection import Place, connect
from rollbackd.adapters.postgres.reader import count_tables
from rollbackd.adapters.postgres.stamp import read_heads, version_table_sql
from rollbackd.core import wording
from rollbackd.core.checks import Finding, Outcome
from rollbackd.core.records import BackupRecord, TableCount
from rollbackd.errors import PermanentError, RollbackdError, TransientError
from rollbackd.ports import Clock, OnRestored, Progress, ProgressSink
from rollbackd.settings import Target

WHOLE = "database.dump"
LOCK_WAIT_MS = 5_000
YIELD_AFTER_S = 2.0
L3 = 3
T = TypeVar("T")
RESTORE_JOBS = "2"


class TargetBackups:
    """Fulfils `ports.Backups`. Remembers which files it read in full, and what they looked like then."""

    def __init__(self, target: Target, store_id: str, clock: Clock) -> None:
        self._target = target
        self._settings = target.backup
        self._store_id = store_id
        self._clock = clock
        database = target.database
        self._place = Place.of(
            database.url, database.backup_password or database.password, user=database.backup_user
        )
        self._read_in_full: dict[Path, files.Stamp] = {}
        self._root = Path(self._settings.directory) / target.name if self._settings.directory else None

    def reachable_level(self) -> int:
        """The highest proof level that this configuration can reach; a reference's level is its own word."""
        if self._settings.command:
            return 5
        if self._root is None:
            return 0
        return 4 if self._target.scratch.url or self._target.scratch.same_server else 2

    async def take(
        self, run: str, purpose: str, *, timeout_s: float, on_progress: ProgressSink
    ) -> BackupRecord:
        """Take a backup of the whole database."""
        if self._settings.command:
            return await self._reference(run, purpose, timeout_s)
        if self._root is None:
            raise PermanentError("no folder for backups is configured: set 'backup.directory'")
        backup_id = self._clock.new_id("backup")
        final = self._root / backup_id
        partial = self._root / f"{files.PARTIAL}{backup_id}"
        try:
            partial.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise PermanentError(
                f"the backup folder {partial.parent} can't be written: {error.strerror}"
            ) from None
        try:
            # Held from here on, so that a sweep doesn't take a dump that still counts for a leftover.
            with pg_tools.hold(partial) as lock:
                manifest = await self._dump(backup_id, run, purpose, partial, lock, timeout_s, on_progress)
                (partial / ".lock").unlink()
                await asyncio.to_thread(files.complete, partial, final, manifest)
        except asyncpg.InsufficientPrivilegeError as error:
            raise PermanentError(
                f"the role {self._place.user} can't read everything ({error}): a backup needs pg_read_all_data, and"
                " BYPASSRLS where row security is on"
            ) from None
        except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError) as error:
            raise TransientError(f"the connection to {self._place.text()} was lost: {error}") from None
        except asyncpg.PostgresError as error:
            raise PermanentError(f"the backup of {self._place.text()} failed: {error}") from None
        except OSError as error:
            raise _disk_fault(f"the backup can't be written to {partial}", error) from None
        finally:
            if partial.exists() and not pg_tools.is_in_use(partial):
                shutil.rmtree(partial, ignore_errors=True)
        record = files.record_of(final)
        if record is None:
            raise PermanentError(f"the backup {final} vanished right after it was written")
        return record

    async def _dump(
        self,
        backup_id: str,
        run: str,
        purpose: str,
        partial: Path,
        lock: int,
        timeout_s: float,
        on_progress: ProgressSink,
    ) -> files.Manifest:
        pg_dump = pg_tools.find_tool("pg_dump", self._target.database.binaries)
        major, tool = await pg_tools.tool_version(pg_dump)
        application = f"rollbackd {backup_id}"
        connection = await connect(
            self._place,
            self._target.database.connect_timeout,
            {"row_security": "off", "application_name": application},
        )
        watch = _Waiters(self._place, application, self._target.database.connect_timeout)
        try:
            server_version = int(
                await connection.fetchval("SELECT current_setting('server_version_num')::int")
            )
            if major < server_version // 10_000:
                raise PermanentError(
                    f"pg_dump is of version {major}, older than the server's {server_version // 10_000}:"
                    " set 'database.binaries' to the folder of a newer one"
                )
            size = float(await connection.fetchval("SELECT pg_database_size(current_database())"))
            # The holder only reads and stays open until the dump is done: its snapshot is the dump's.
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
                heads = await read_heads(connection, version_table_sql(self._target.migrations))
                counts = await watch.while_yielding(self._count(connection))

                async def tick() -> None:
                    written = files.written(partial)
                    await on_progress(Progress(done=float(written), total=size, unit="bytes"))
                    await watch.yield_to_waiters()

                argv = [
                    str(pg_dump),
                    "--format=custom",
                    f"--compress={self._compression(major)}",
                    "--no-password",
                    f"--lock-wait-timeout={LOCK_WAIT_MS}",
                    f"--snapshot={snapshot}",
                    f"--dbname={self._place.database}",
                    f"--file={partial / WHOLE}",
                ]
                await pg_tools.run_tool(argv, self._place, partial, timeout_s, tick, application, lock=lock)
        finally:
            await watch.close()
            await connection.close(timeout=5)
        entry = await asyncio.to_thread(files.describe_file, partial / WHOLE)
        return files.Manifest(
            id=backup_id,
            target=self._target.name,
            run=run,
            purpose=purpose,
            created_at=self._clock.now(),
            tool=tool,
            server_version=server_version,
            heads=heads,
            counts=counts,
            files=(entry,),
        )

    async def prove(
        self,
        backup: BackupRecord,
        *,
        level: int,
        timeout_s: float,
        on_progress: ProgressSink,
        on_restored: OnRestored | None = None,
    ) -> BackupRecord:
        """Prove a backup: L2 by reading it in full, L4 by restoring it and counting; then lend the copy out."""
        if backup.location.startswith("reference:"):
            if backup.level < level:
                raise PermanentError(
                    f"the backup {backup.location} is of L{backup.level} by its own word; L{level} is asked for"
                )
            return backup
        folder = Path(backup.location)
        if backup.level >= level and on_restored is None:
            await self._require_whole(backup)
            return backup
        pg_restore = pg_tools.find_tool("pg_restore", self._target.database.binaries)
        # Every byte is read for its digest while the restore reads it too.
        whole = asyncio.create_task(self._require_whole(backup))
        try:
            return await self._prove(
                backup, folder, pg_restore, whole, level, timeout_s, on_progress, on_restored
            )
        finally:
            whole.cancel()
            await asyncio.wait({whole})

    async def _require_whole(self, backup: BackupRecord) -> None:
        if not await self.is_whole(backup):
            raise PermanentError(
                f"the backup {backup.location} isn't whole any more: a file is missing or was changed"
            )

    async def _prove(  # noqa: PLR0913, PLR0917 - what prove() was given, and what it has begun
        self,
        backup: BackupRecord,
        folder: Path,
        pg_restore: Path,
        whole: asyncio.Task[None],
        level: int,
        timeout_s: float,
        on_progress: ProgressSink,
        on_restored: OnRestored | None,
    ) -> BackupRecord:
        work = folder / ".proof"
        shutil.rmtree(work, ignore_errors=True)
        try:
            work.mkdir(mode=0o700)
            with pg_tools.hold(work) as lock:
                if level > 2:
                    try:
                        await self._restore_and_count(
                            backup, folder, pg_restore, work, lock, timeout_s, on_progress, on_restored
                        )
                    except PermanentError:
                        # What isn't whole says so itself, and not by what a restore makes of it.
                        await whole
                        raise
                    await whole
                    proved, text = (
                        4,
                        "restored into scratch; heads and the rows of every table equal its own snapshot's",
                    )
                else:
                    await whole
                    for dump in files.dumps(folder):
                        argv = [str(pg_restore), "--file=/dev/null", str(dump)]
                        await pg_tools.run_tool(argv, self._place, work, timeout_s, lock=lock)
                    proved, text = 2, "read in full"
        except OSError as error:
            raise _disk_fault(f"the backup {backup.id} can't be proved in {folder}", error) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
        estimates = [count.table for count in backup.counts if not count.exact]
        if proved > L3 and estimates:
            proved, text = (
                L3,
                f"restored into scratch; {len(estimates)} tables weren't counted exactly when it was taken",
            )
        proof = files.Proof(level=proved, at=self._clock.now(), text=text)
        try:
            await asyncio.to_thread(files.write_durably, folder / files.PROOF, msgspec.json.encode(proof))
        except OSError as error:
            raise _disk_fault(f"the proof of the backup can't be written to {folder}", error) from None
        if proved < min(level, 4):
            raise PermanentError(
                f"the backup {backup.id} is proved to L{proved} and no further: {len(estimates)} tables, such as {estimates[0]},"
                " weren't counted within 'backup.count_budget' when it was taken"
            )
        return msgspec.structs.replace(backup, level=proved)

    async def _restore_and_count(  # noqa: PLR0913, PLR0917 - what prove() was given, and where it goes
        self,
        backup: BackupRecord,
        folder: Path,
        pg_restore: Path,
        work: Path,
        lock: int,
        timeout_s: float,
        on_progress: ProgressSink,
        on_restored: OnRestored | None,
    ) -> None:
        total = float(sum(count.rows for count in backup.counts))
        async with scratch_database(self._target, self._store_id) as place:
            common = [
                str(pg_restore),
                "--no-owner",
                "--no-privileges",
                "--exit-on-error",
                "--no-password",
                f"--dbname={place.database}",
            ]
            argv = [*common, f"--jobs={RESTORE_JOBS}", str(folder / WHOLE)]
            await pg_tools.run_tool(argv, place, work, timeout_s, lock=lock)
            connection = await connect(place, self._target.database.connect_timeout)
            try:
                names = tuple(count.table for count in backup.counts)
                restored = {
                    c.table: c for c in await count_tables(connection, timeout_s, len(names) + 1, names)
                }
                heads = await read_heads(connection, version_table_sql(self._target.migrations))
            finally:
                await connection.close(timeout=5)
            rows = sum(count.rows for count in restored.values())
            await on_progress(Progress(done=float(rows), total=total, unit="rows"))
            _require_equal(backup, heads, restored, timeout_s)
            if on_restored is not None:
                await on_restored(place)

    async def is_whole(self, backup: BackupRecord, *, anew: bool = True) -> bool:
        """Whether its files are there as the manifest says; a reference is believed.

        Not `anew`, files that were read in full by this process and weren't touched since aren't read again.
        """
        if backup.location.startswith("reference:"):
            return True
        folder = Path(backup.location)
        stamp = await asyncio.to_thread(files.stamp, folder)
        if not anew and stamp is not None and self._read_in_full.get(folder) == stamp:
            return True
        whole = await asyncio.to_thread(files.is_whole, folder)
        if whole and stamp is not None:
            self._read_in_full[folder] = stamp
        else:
            self._read_in_full.pop(folder, None)
        return whole

    async def find(self, run: str, purpose: str) -> BackupRecord | None:
        """The newest complete backup of this run and purpose that lies on disk, if there is one."""
        found = [record for record in self._on_disk() if record.run == run and record.purpose == purpose]
        return max(found, key=lambda record: record.created_at, default=None)

    def _on_disk(self) -> list[BackupRecord]:
        if self._root is None or not self._root.is_dir():
            return []
        folders = sorted(p for p in self._root.iterdir() if p.is_dir() and not p.name.startswith("."))
        return [record for folder in folders if (record := files.record_of(folder)) is not None]

    async def prune(self, backups: list[BackupRecord]) -> list[BackupRecord]:
        """Remove what the retention no longer keeps; return what was removed."""
        newest = sorted(
            (b for b in backups if b.removed_at is None), key=lambda b: b.created_at, reverse=True
        )
        kept = {b.id for b in newest[: self._settings.keep_at_least]}
        now = self._clock.now()
        removed = []
        for backup in newest:
            horizon = now - timedelta(seconds=self._settings.keep)
            if backup.id in kept or backup.created_at >= horizon or backup.location.startswith("reference:"):
                continue
            # Only what lies in our own folder is ours to remove, whatever the record says.
            if self._root is None or not await asyncio.to_thread(
                files.remove, Path(backup.location), self._root
            ):
                continue
            removed.append(msgspec.structs.replace(backup, removed_at=now))
        return removed

    async def sweep(self) -> list[str]:
        """Remove what a crash left: partial dumps that nobody works on, scratch databases of this store."""
        swept: list[str] = []
        if self._root is not None and self._root.is_dir():
            for partial in self._root.glob(f"{files.PARTIAL}*"):
                if not pg_tools.is_in_use(partial):
                    shutil.rmtree(partial, ignore_errors=True)
                    swept.append(partial.name)
            for work in self._root.glob("*/.proof"):
                if not pg_tools.is_in_use(work):
                    shutil.rmtree(work, ignore_errors=True)
        if self._target.scratch.url or self._target.scratch.same_server:
            swept += await sweep_scratch(self._target, self._store_id)
        return swept

    async def readiness(self) -> tuple[Finding, ...]:
        """What check-config and the look before a run say of backups."""
        return tuple(await asyncio.gather(self._tools(), self._disk(), self._scratch(), self._role()))

    def restore_commands(self, backup: BackupRecord) -> list[str]:
        """The commands that bring data back out of this backup, into a database beside the guarded one."""
        if backup.location.startswith("reference:"):
            return [f"# restore {backup.location.removeprefix('reference:')} with the tool that made it"]
        side = f"{self._place.database}_restored"
        at = [f"--host={self._place.host}", f"--port={self._place.port}", f"--username={self._place.user}"]
        into = ["pg_restore", *at, f"--dbname={side}", "--exit-on-error"]
        commands = [["createdb", *at, side], [*into, "--no-owner", f"{backup.location}/{WHOLE}"]]
        return [shlex.join(command) for command in commands]

    async def _tools(self) -> Finding:
        if self._settings.command:
            found = shutil.which(self._settings.command[0])
            outcome = Outcome.PASSED if found else Outcome.FAILED
            return Finding(
                check="backup.tools", outcome=outcome, text=f"by reference: {self._settings.command[0]}"
            )
        try:
            pg_dump = pg_tools.find_tool("pg_dump", self._target.database.binaries)
            pg_tools.find_tool("pg_restore", self._target.database.binaries)
            major, line = await pg_tools.tool_version(pg_dump)
            connection = await connect(self._place, self._target.database.connect_timeout)
            try:
                server = (
                    int(await connection.fetchval("SELECT current_setting('server_version_num')::int"))
                    // 10_000
                )
            finally:
                await connection.close(timeout=5)
        except (RollbackdError, OSError) as error:
            return Finding(check="backup.tools", outcome=Outcome.FAILED, text=str(error))
        if major < server:
            text = f"pg_dump is of version {major}, older than the server's {server}: set 'database.binaries'"
            return Finding(check="backup.tools", outcome=Outcome.FAILED, text=text)
        return Finding(check="backup.tools", outcome=Outcome.PASSED, text=f"{line}, server {server}")

    async def _disk(self) -> Finding:
        check = "backup.disk"
        if self._root is None:
            if self._settings.command:
                return Finding(check=check, outcome=Outcome.PASSED, text="backups lie elsewhere")
            return Finding(
                check=check, outcome=Outcome.FAILED, text="no way to take a backup: set 'backup.directory'"
            )
        existing = files.nearest(self._root)
        if not os.access(existing, os.W_OK):
            return Finding(
                check=check,
                outcome=Outcome.FAILED,
                text=f"{self._root} can't be made or written by this user: {existing} forbids it",
            )
        free = shutil.disk_usage(existing).free
        try:
            connection = await connect(self._place, self._target.database.connect_timeout)
            try:
                size = int(await connection.fetchval("SELECT pg_database_size(current_database())"))
            finally:
                await connection.close(timeout=5)
        except RollbackdError as error:
            return Finding(check=check, outcome=Outcome.UNKNOWN, text=str(error))
        text = f"{wording.size(free)} free at {existing}, the database takes {wording.size(size)}"
        # A dump is mostly smaller than its database, never much larger.
        if free > size:
            return Finding(check=check, outcome=Outcome.PASSED, text=text)
        advice = "free some space or set 'backup.directory' elsewhere"
        return Finding(check=check, outcome=Outcome.FAILED, text=f"{text}: {advice}")

    async def _scratch(self) -> Finding:
        check = "backup.scratch"
        if self._settings.command:
            return Finding(
                check=check, outcome=Outcome.PASSED, text="a referenced backup is proved by its own tool"
            )
        try:
            reason = await may_create_scratch(self._target)
        except RollbackdError as error:
            return Finding(check=check, outcome=Outcome.FAILED, text=f"scratch: {error}")
        if reason:
            outcome = Outcome.FAILED if self._target.policy.backup_level > 2 else Outcome.WARNED
            return Finding(check=check, outcome=outcome, text=reason)
        return Finding(check=check, outcome=Outcome.PASSED, text="scratch databases may be created")

    async def _role(self) -> Finding:
        check = "backup.role"
        if self._settings.command:
            return Finding(check=check, outcome=Outcome.PASSED, text="not used")
        try:
            connection = await connect(self._place, self._target.database.connect_timeout)
        except RollbackdError as error:
            return Finding(check=check, outcome=Outcome.FAILED, text=str(error))
        try:
            hidden = await connection.fetch(
                "SELECT format('%I.%I', n.nspname, c.relname), row_security_active(c.oid) FROM pg_class c"
                " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
                " AND n.nspname !~ '^(pg_|information_schema$)'"
                " AND (row_security_active(c.oid) OR NOT has_table_privilege(c.oid, 'SELECT')) ORDER BY 1 LIMIT 6"
            )
        finally:
            await connection.close(timeout=5)
        if hidden:
            names = ", ".join(row[0] for row in hidden)
            text = f"rows of {names} are hidden from {self._place.user}: grant pg_read_all_data, and BYPASSRLS where row security is on"
            return Finding(check=check, outcome=Outcome.FAILED, text=text)
        return Finding(check=check, outcome=Outcome.PASSED, text=f"{self._place.user} may read every table")

    async def _reference(self, run: str, purpose: str, timeout_s: float) -> BackupRecord:
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": os.environ.get("HOME", "/"),
            "ROLLBACKD_TARGET": self._target.name,
            "ROLLBACKD_RUN": run,
        }
        ended = await run_command(self._settings.command, timeout_s, environment)
        if ended.code != 0:
            raise PermanentError(
                f"{self._settings.command[0]} ended with exit code {ended.code}: {ended.last_words()}"
            )
        try:
            answer: dict[str, Any] = json.loads(ended.stdout)
            reference, level = str(answer["reference"]), int(answer["level"])
            size = int(answer.get("size_bytes", 0))
            if not reference or not 0 <= level <= 5:
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PermanentError(
                f'{self._settings.command[0]} must print {{"reference": "...", "level": 0-5}} as JSON, and didn\'t'
            ) from None
        connection = await connect(self._place, self._target.database.connect_timeout)
        try:
            heads = await read_heads(connection, version_table_sql(self._target.migrations))
        finally:
            await connection.close(timeout=5)
        return BackupRecord(
            id=self._clock.new_id("backup"),
            target=self._target.name,
            run=run,
            purpose=purpose,
            created_at=self._clock.now(),
            location=f"reference:{reference}",
            level=level,
            size_bytes=size,
            heads=heads,
            counts=(),
            tool=self._settings.command[0],
        )

    async def _count(self, connection: asyncpg.Connection) -> tuple[TableCount, ...]:
        return await count_tables(connection, self._settings.count_budget, 100_000)

    def _compression(self, major: int) -> str:
        # Before 16, --compress takes a number alone.
        return self._settings.compression if major >= 16 else self._settings.compression.rpartition(":")[2]


class _Waiters:
    """Looks whether anybody waits for the dump's locks; a dump yields rather than queue a deploy behind itself."""

    def __init__(self, place: Place, application: str, timeout_s: float) -> None:
        self._place = place
        self._application = application
        self._timeout_s = timeout_s
        self._connection: asyncpg.Connection | None = None
        self._since = 0.0

    async def yield_to_waiters(self) -> None:
        if self._connection is None:
            self._connection = await connect(self._place, self._timeout_s)
        # pg_locks, because pg_stat_activity hides from an ordinary role what other roles' sessions wait for.
        waiting = await self._connection.fetchval(
            "SELECT string_agg(DISTINCT w.pid::text, ', ') FROM pg_locks w WHERE NOT w.granted AND EXISTS"
            " (SELECT 1 FROM unnest(pg_blocking_pids(w.pid)) b JOIN pg_stat_activity d ON d.pid = b"
            " WHERE d.application_name = $1)",
            self._application,
        )
        now = asyncio.get_running_loop().time()
        if not waiting:
            self._since = 0.0
        elif not self._since:
            self._since = now
        elif now - self._since > YIELD_AFTER_S:
            raise TransientError(f"the dump made way: sessions {waiting} waited for its locks")

    async def while_yielding(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this work, and stop it where somebody waits for it."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.25)
                if not task.done():
                    await self.yield_to_waiters()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=5)
        return await task

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close(timeout=5)


def _disk_fault(what: str, error: OSError) -> PermanentError:
    advice = "; free some space or set 'backup.directory' elsewhere" if error.errno == errno.ENOSPC else ""
    return PermanentError(f"{what}: {error.strerror or error}{advice}")


def _require_equal(
    backup: BackupRecord, heads: tuple[str, ...], restored: dict[str, TableCount], timeout_s: float
) -> None:
    """The restored copy must be what was counted in the backup's own snapshot."""
    if heads != backup.heads:
        raise PermanentError(
            f"the backup {backup.id} was taken at {', '.join(backup.heads) or 'base'}, and the restored copy stands at"
            f" {', '.join(heads) or 'base'}"
        )
    for expected in backup.counts:
        found = restored.get(expected.table)
        if found is not None and not found.exact:
            raise TransientError(
                f"the restored copy of {expected.table} couldn't be counted within {timeout_s:g} s"
            )
        if found is None or (expected.exact and found.rows != expected.rows):
            raise PermanentError(
                f"the backup {backup.id} is short: {expected.table} held {expected.rows} rows in the snapshot, the restored"
                f" copy has {found.rows if found else 'no such table'}"
            )
