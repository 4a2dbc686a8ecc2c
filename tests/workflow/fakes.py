"""Small fakes at the ports: one world of plain values, and for each port a few lines that read or change it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec

from rollbackd.core.checks import Finding
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.core.reading import ReadRevision
from rollbackd.core.records import BackupRecord, TableCount
from rollbackd.core.revisions import Revision
from rollbackd.core.schema import Schema
from rollbackd.ports import (
    DatabaseIdentity,
    Described,
    DowngradeResult,
    LogSink,
    MigrationEnvironment,
    ProgressSink,
)
from rollbackd.settings import Probe

OLD, NEW = "2026.11.2", "2026.11.3"


@dataclass
class World:
    """What is out there: revision `b` adds the table b to what revision `a` made."""

    heads: tuple[str, ...] = ("a",)
    tables: set[str] = field(default_factory=lambda: {"a"})
    running: str = NEW
    healthy: bool | None = True
    scripts: str = "scripts-1"
    statements: tuple[str, ...] = ("DROP TABLE b",)
    calls: list[str] = field(default_factory=list)
    # What the next downgrades do; one after another, each instead of what it should do.
    mishaps: list[Callable[[], None]] = field(default_factory=list)
    database_fault: Exception | None = None
    start_fault: Exception | None = None
    backups: list[BackupRecord] = field(default_factory=list)
    backup_fault: Exception | None = None

    def upgrade(self) -> None:
        self.heads, self.tables = ("b",), {"a", "b"}

    def downgrade(self) -> None:
        self.heads, self.tables = ("a",), {"a"}


@dataclass
class FakeClock:
    at: datetime = datetime(2026, 11, 22, 10, tzinfo=UTC)
    made: int = 0
    # How far it goes on whenever it is looked at.
    step_s: float = 0.000001

    def now(self) -> datetime:
        self.at += timedelta(seconds=self.step_s)
        return self.at

    def new_id(self, prefix: str) -> str:
        self.made += 1
        return f"{prefix}-{self.made}"

    def advance(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@dataclass
class FakeDatabase:
    world: World

    async def identity(self) -> DatabaseIdentity:
        return DatabaseIdentity(system_identifier="1", database="shop", oid=1, server_version=160000)

    async def heads(self) -> tuple[str, ...]:
        if self.world.database_fault is not None:
            raise self.world.database_fault
        return self.world.heads

    async def schema(self) -> Schema:
        await self.heads()
        return Schema({f"table {name}": "..." for name in self.world.tables})

    async def counts(
        self, budget_s: float, most_tables: int, tables: tuple[str, ...] = ()
    ) -> tuple[TableCount, ...]:
        return tuple(TableCount(table=name, rows=3, exact=True) for name in sorted(self.world.tables))

    async def resolve_tables(self, tables: tuple[str, ...], search_path: tuple[str, ...]) -> tuple[str, ...]:
        return tables

    async def wait_for_migration_lock(self, timeout_s: float) -> bool:
        return True

    async def findings_before(self) -> tuple[Finding, ...]:
        return ()

    async def findings_after(
        self, lossy: tuple[str, ...], before: tuple[TableCount, ...]
    ) -> tuple[Finding, ...]:
        return ()

    async def own_checks(self) -> tuple[Finding, ...]:
        return ()

    async def rights(self) -> tuple[Finding, ...]:
        return ()

    async def close(self) -> None:
        self.world.calls.append("close database")


@dataclass
class FakeWorker:
    world: World

    async def describe(self) -> Described:
        revisions = (Revision(id="a", title="add a"), Revision(id="b", down=("a",), title="add b"))
        return Described(
            revisions=revisions, scripts_sha256=self.world.scripts, python="3", alembic="1", sqlalchemy="2"
        )

    async def read(self, revisions: tuple[str, ...]) -> dict[str, ReadRevision]:
        return {r: ReadRevision(id=r, statements=self.world.statements) for r in revisions}

    async def environment(self) -> MigrationEnvironment:
        return MigrationEnvironment(
            heads=self.world.heads, version_table="alembic_version", version_table_schema="",
            transaction_per_migration=False, commits_each_statement=False, search_path=("public",), driver="psycopg",
        )  # fmt: skip

    async def downgrade(
        self, revisions: tuple[str, ...], from_heads: tuple[str, ...], to_heads: tuple[str, ...], *, run: str,
        identity: DatabaseIdentity, scripts_sha256: str, preserved: Mapping[str, int], timeout_s: float, on_log: LogSink,
    ) -> DowngradeResult:  # fmt: skip
        self.world.calls.append("downgrade")
        await on_log("-- downgrade b")
        if self.world.mishaps:
            self.world.mishaps.pop(0)()
        else:
            self.world.downgrade()
        return DowngradeResult(statements=1, marker=True, seconds=0.1)

    async def prestart(self) -> None: ...

    def use_scripts(self, scripts_sha256: str) -> None: ...

    async def keep_scripts(self) -> str:
        return self.world.scripts

    async def close(self) -> None:
        self.world.calls.append("close worker")


@dataclass
class FakeBackups:
    world: World
    clock: FakeClock

    async def take(
        self, run: str, purpose: str, *, tables: tuple[str, ...], timeout_s: float, on_progress: ProgressSink
    ) -> BackupRecord:
        self.world.calls.append(f"take {purpose}")
        if self.world.backup_fault is not None:
            raise self.world.backup_fault
        taken = BackupRecord(
            id=self.clock.new_id("backup"), target="shop", run=run, purpose=purpose, created_at=self.clock.now(),
            location="/b", level=0, size_bytes=10, heads=self.world.heads, counts=(), tables=tables,
        )  # fmt: skip
        self.world.backups.append(taken)
        return taken

    async def prove(
        self, backup: BackupRecord, *, level: int, timeout_s: float, on_progress: ProgressSink
    ) -> BackupRecord:
        proved = msgspec.structs.replace(backup, level=level)
        self.world.backups = [proved if b.id == backup.id else b for b in self.world.backups]
        return proved

    async def is_whole(self, backup: BackupRecord) -> bool:
        return any(b.id == backup.id for b in self.world.backups)

    async def find(self, run: str, purpose: str) -> BackupRecord | None:
        return next((b for b in self.world.backups if (b.run, b.purpose) == (run, purpose)), None)

    async def prune(self, backups: list[BackupRecord]) -> list[BackupRecord]:
        return []

    async def readiness(self) -> tuple[Finding, ...]:
        return ()

    async def sweep(self) -> list[str]:
        return []

    def reachable_level(self) -> int:
        return 4

    def restore_commands(self, backup: BackupRecord) -> list[str]:
        return [f"pg_restore {backup.location}"]


@dataclass
class FakeApplication:
    world: World
    can_stop: bool = True
    can_start: bool = True

    async def is_stopped(self) -> bool:
        return self.world.running == ""

    async def stop(self) -> None:
        self.world.calls.append("stop")
        self.world.running = ""

    async def runs(self, version: str) -> bool:
        return self.world.running == version

    async def start(self, version: str) -> None:
        self.world.calls.append(f"start {version}")
        if self.world.start_fault is not None:
            raise self.world.start_fault
        self.world.running = version

    async def readiness(self) -> tuple[Finding, ...]:
        return ()


@dataclass
class FakeProber:
    world: World

    async def measure(self, probe: Probe, at: datetime) -> Measurement:
        quality = Quality.ERROR if self.world.healthy is None else Quality.OK
        return Measurement(
            probe=probe.name, at=at, quality=quality, healthy=self.world.healthy, detail="a reading"
        )


@dataclass
class FakeAnnouncer:
    announced: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def announce(self, event: str, fields: dict[str, object]) -> None:
        self.announced.append((event, fields))
