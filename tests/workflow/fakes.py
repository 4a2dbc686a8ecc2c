"""Small fakes at the ports: one world of plain values, and for each port a few lines that read or change it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from rollbackd.core.archives import ArchiveEntry, ArchiveItem, ArchiveKind, KeptDefinition
from rollbackd.core.checks import Finding
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.core.investigation import Activity, Point, Statement
from rollbackd.core.reading import ReadRevision
from rollbackd.core.records import BackupRecord, TableCount
from rollbackd.core.rehearsal import Depth, GoneTable, RanStatement, Rehearsal, RehearsedRevision, Way
from rollbackd.core.restoring.reports import RestoredEntry, RestoreReport
from rollbackd.core.revisions import Revision
from rollbackd.core.risks import RiskKind, Risks, RowsAtRisk
from rollbackd.core.schema import Schema, SchemaDifference, TableName
from rollbackd.core.verification import Verified
from rollbackd.errors import TransientError
from rollbackd.ports import (
    DatabaseIdentity,
    Described,
    DowngradeResult,
    LogSink,
    MetricReading,
    MigrationEnvironment,
    OnRestored,
    ProgressSink,
    RestoredCopy,
)
from rollbackd.settings import Metric, Probe

OLD, NEW = "2026.11.2", "2026.11.3"
B = TableName("public", "b")
BEGAN = datetime(2026, 11, 22, 10, tzinfo=UTC)
KEPT = ArchiveItem(revision="b", kind=ArchiveKind.TABLE, table=B, key=("id",))


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
    # Rows of the table b, and what is otherwise than a rehearsal that passes: failure, unknown, heads, difference.
    rows: int = 3
    shown: dict[str, Any] = field(default_factory=dict)
    rehearsed: list[tuple[Depth, Way]] = field(default_factory=list)
    # Sessions of the replaced release; bytes by table; what is archived, by run, and what was brought back.
    sessions: tuple[str, ...] = ()
    sizes: dict[TableName, int] = field(default_factory=dict)
    archived: dict[str, tuple[ArchiveItem, ...]] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    archive_fault: Exception | None = None
    # What a Prometheus answers, now and for moments before anything began; None is no data.
    number: float | None = 1.0
    number_before: float | None = 1.0
    metrics_fault: str = ""
    asked: list[tuple[str, datetime]] = field(default_factory=list)
    # What trying the pending migrations and replaying the upgrade would find.
    verified: tuple[Verified, ...] = ()
    taken: dict[str, int] = field(default_factory=dict)

    def upgrade(self) -> None:
        self.heads, self.tables = ("b",), {"a", "b"}

    def downgrade(self) -> None:
        self.heads, self.tables = ("a",), {"a"}


@dataclass
class FakeClock:
    at: datetime = BEGAN
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
        return tuple(name if "." in name else f"public.{name}" for name in tables)

    async def wait_for_migration_lock(self, timeout_s: float) -> bool:
        return True

    async def findings_before(self) -> tuple[Finding, ...]:
        return ()

    async def findings_after(
        self, lossy: tuple[str, ...], before: tuple[TableCount, ...], renamed: object = None
    ) -> tuple[Finding, ...]:
        return ()

    async def risks(self, rehearsal: Rehearsal, budget_s: float) -> Risks:
        lost = RowsAtRisk(revision="b", kind=RiskKind.DROPPED_TABLE, table=B, rows=self.world.rows)
        return Risks(at_risk=(lost,))

    async def publications_of_all_tables(self) -> tuple[str, ...]:
        return ()

    async def not_owned(self, role: str, tables: tuple[TableName, ...]) -> dict[TableName, str]:
        return {}

    async def checksums(self, tables: tuple[str, ...]) -> dict[str, str]:
        return dict.fromkeys(tables, "")

    async def table_sizes(self) -> dict[TableName, int]:
        return self.world.sizes

    async def keys(self, tables: tuple[TableName, ...]) -> dict[TableName, tuple[str, ...]]:
        return dict.fromkeys(tables, ("id",))

    async def sessions(self, application: str, before: datetime) -> tuple[str, ...]:
        return self.world.sessions

    async def activity(self) -> Activity:
        if self.world.database_fault is not None:
            raise self.world.database_fault
        return Activity(
            source="pg_stat_activity", statements=(Statement(sql="SELECT ?", calls=0, mean_s=4, total_s=4),)
        )

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
        identity: DatabaseIdentity, scripts_sha256: str, archive: tuple[ArchiveItem, ...], timeout_s: float, on_log: LogSink,
    ) -> DowngradeResult:  # fmt: skip
        self.world.calls.append("downgrade")
        await on_log("-- downgrade b")
        if self.world.mishaps:
            self.world.mishaps.pop(0)()
        else:
            self.world.downgrade()
        # In the same transaction: neither without the other.
        if archive and "b" not in self.world.tables:
            self.world.archived[run] = archive
        return DowngradeResult(statements=1, marker=True, seconds=0.1)

    async def stamp(
        self, revisions: tuple[str, ...], from_heads: tuple[str, ...], to_heads: tuple[str, ...], *, run: str,
        identity: DatabaseIdentity,
    ) -> None:  # fmt: skip
        self.world.calls.append("stamp")
        self.world.heads = to_heads

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
        self, run: str, purpose: str, *, timeout_s: float, on_progress: ProgressSink
    ) -> BackupRecord:
        self.world.calls.append(f"take {purpose}")
        if self.world.backup_fault is not None:
            raise self.world.backup_fault
        taken = BackupRecord(
            id=self.clock.new_id("backup"), target="shop", run=run, purpose=purpose, created_at=self.clock.now(),
            location="/b", level=0, size_bytes=10, heads=self.world.heads, counts=(),
        )  # fmt: skip
        self.world.backups.append(taken)
        return taken

    async def prove(
        self, backup: BackupRecord, *, level: int, timeout_s: float, on_progress: ProgressSink,
        on_restored: OnRestored | None = None,
    ) -> BackupRecord:  # fmt: skip
        if on_restored is not None:
            await on_restored(FakeCopy())
        proved = msgspec.structs.replace(backup, level=level)
        self.world.backups = [proved if b.id == backup.id else b for b in self.world.backups]
        return proved

    async def is_whole(self, backup: BackupRecord, *, anew: bool = True) -> bool:
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


class FakeCopy:
    def text(self) -> str:
        return "a copy"


@dataclass
class FakeRehearsals:
    """The downgrade of `b` drops the table b, unless the world says that something else was shown."""

    world: World

    async def rehearse(
        self, way: Way, *, depth: Depth, fingerprint: str, wanted: Mapping[TableName, Sequence[str]] | None = None
    ) -> Rehearsal:  # fmt: skip
        self.world.rehearsed.append((depth, way))
        revision = RehearsedRevision(
            id="b", seconds=0.1, gone_tables=(GoneTable(table=B, today=B),),
            statements=tuple(RanStatement(sql=s, seconds=0.1) for s in self.world.statements),
        )  # fmt: skip
        usual: dict[str, Any] = {
            "depth": depth, "from_heads": way.from_heads, "to_heads": way.to_heads, "heads": way.to_heads,
            "revisions": (revision,), "difference": SchemaDifference(removed=("table b",)),
            "expected": Schema({"table a": "..."}), "seconds": 0.1, "archive": (KEPT,),
        }  # fmt: skip
        return Rehearsal(**(usual | self.world.shown))

    async def rehearse_on(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        return await self.rehearse(way, depth=Depth.FULL, fingerprint="")

    async def replay(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        return await self.rehearse(way, depth=Depth.FULL, fingerprint="")

    async def taken(self, copy: RestoredCopy) -> dict[str, int]:
        return self.world.taken

    async def verify(self, *of: object, **options: object) -> tuple[Verified, ...]:
        return self.world.verified

    async def prepare(self, fingerprint: str, heads: tuple[str, ...], kept_scripts: str = "") -> None: ...

    async def size_bytes(self) -> int:
        return 10

    async def close(self) -> None: ...


@dataclass
class FakeArchives:
    world: World

    async def entries(self, run: str | None = None) -> tuple[ArchiveEntry, ...]:
        if self.world.archive_fault is not None:
            raise self.world.archive_fault
        return tuple(
            ArchiveEntry(
                id=1, run=of, revision=item.revision, kind=item.kind, table=item.table, column=item.column, key=item.key,
                archive="a1", rows=self.world.rows, definition=KeptDefinition(columns=()), made_at=BEGAN,
                restored_at=BEGAN if of in self.world.restored else None,
            )
            for of, items in self.world.archived.items() if run in (None, of) for item in items
        )  # fmt: skip

    async def copy_ahead(
        self, run: str, items: tuple[ArchiveItem, ...], on_progress: ProgressSink
    ) -> tuple[ArchiveItem, ...]:
        self.world.calls.append("copy ahead")
        return tuple(msgspec.structs.replace(item, copied=True) for item in items)

    async def discard(self, run: str) -> None:
        self.world.calls.append("discard")

    async def adopt(self, run: str, copy: RestoredCopy) -> int:
        self.world.archived[run] = (KEPT,)
        return self.world.rows

    async def finish(self, run: str) -> None:
        self.world.calls.append("finish")

    async def restore(self, run: str, *, dry_run: bool) -> RestoreReport:
        entries = [
            RestoredEntry(
                id=e.id, kind=e.kind, table=e.table, column=e.column, archive=e.archive, archived=e.rows, restored=e.rows
            )
            for e in await self.entries(run)
        ]  # fmt: skip
        if not dry_run:
            self.world.restored.append(run)
        return RestoreReport(run=run, dry_run=dry_run, entries=tuple(entries), statements=("INSERT ...",))

    async def restore_script(self, run: str) -> str:
        return "INSERT INTO b SELECT ...;"

    async def prune(self, before: datetime) -> tuple[ArchiveEntry, ...]:
        gone = tuple(entry for entry in await self.entries() if entry.made_at < before)
        for entry in gone:
            del self.world.archived[entry.run]
        return gone


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
            name=probe.name, at=at, quality=quality, healthy=self.world.healthy, detail="a reading"
        )


@dataclass
class FakeMetrics:
    world: World

    async def read(self, metric: Metric, query: str, at: datetime) -> MetricReading:
        self.world.asked.append((query, at))
        if self.world.metrics_fault:
            return MetricReading(quality=Quality.ERROR, detail=self.world.metrics_fault)
        value = self.world.number_before if at < BEGAN else self.world.number
        if value is None:
            return MetricReading(quality=Quality.NO_DATA, detail="the result is empty")
        return MetricReading(quality=Quality.OK, value=value)

    async def series(self, query: str, since: datetime, until: datetime, step_s: float) -> tuple[Point, ...]:
        if self.world.metrics_fault:
            raise TransientError(self.world.metrics_fault)
        return (Point(since, self.world.number_before or 0.0), Point(until, self.world.number or 0.0))

    async def finding(self, metric: Metric, query: str, at: datetime) -> Finding:
        raise NotImplementedError

    async def close(self) -> None: ...


@dataclass
class FakeAnnouncer:
    announced: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    async def announce(self, event: str, fields: dict[str, object]) -> None:
        self.announced.append((event, fields))
