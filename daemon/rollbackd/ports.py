"""What the workflow needs of the world, as protocols. Adapters fulfil them; tests may put small fakes in their place."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from rollbackd.core.archives import ArchiveEntry, ArchiveItem
from rollbackd.core.checks import Finding
from rollbackd.core.evidence import Measurement, Quality, Signal
from rollbackd.core.gates import Pause
from rollbackd.core.investigation import Activity, Investigation, Point
from rollbackd.core.reading import ReadRevision
from rollbackd.core.records import (
    Approval,
    BackupRecord,
    Delivery,
    Deployment,
    DocumentedHeads,
    Incident,
    LogLine,
    QueuedEvent,
    Run,
    StateDocument,
    StepRecord,
    StoredDecision,
    TableCount,
    Token,
)
from rollbackd.core.rehearsal import Depth, Rehearsal, Way
from rollbackd.core.restoring.reports import RestoreReport
from rollbackd.core.revisions import Revision
from rollbackd.core.risks import Risks
from rollbackd.core.run import Passage, RunState
from rollbackd.core.schema import Schema, TableName
from rollbackd.core.verification import Verified
from rollbackd.settings import Metric, Probe


class Clock(Protocol):
    """Time and identity, so that neither is taken out of the air."""

    def now(self) -> datetime:
        """The aware UTC time."""

    def new_id(self, prefix: str) -> str:
        """A new id that sorts by time, such as `run-20261122T221503-9f3c21`."""


class AcceptedDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a delivery: recorded just now, or seen before under `id`; `conflict` when the body differs."""

    id: str
    is_new: bool
    conflict: bool
    ignored_because: str


class Store(Protocol):
    """The durable record. Every method that changes something has committed to disk when it returns.

    Raises:
        StoreUnavailableError: from any method, when the store is full, locked or closed.
    """

    async def accept(self, delivery: Delivery) -> AcceptedDelivery: ...
    async def next_events(self, limit: int) -> list[QueuedEvent]: ...
    async def settle_events(self, outcomes: Mapping[int, str], at: datetime) -> None: ...
    async def recent_deliveries(self, limit: int) -> list[dict[str, object]]: ...

    async def save_deployment(self, deployment: Deployment) -> None: ...
    async def deployment(self, deployment_id: str) -> Deployment | None: ...
    async def watched_deployments(self) -> list[Deployment]: ...
    async def deployments(self, target: str | None, limit: int) -> list[Deployment]: ...

    async def save_signal(self, service: str, environment: str, signal: Signal) -> None: ...
    async def signals(self, service: str, environment: str, since: datetime) -> list[Signal]: ...
    async def firing_elsewhere(self, service: str, environment: str) -> dict[str, list[str]]: ...
    async def save_measurements(self, deployment: str, measurements: list[Measurement]) -> None: ...
    async def measurements(
        self, deployment: str, limit: int, until: datetime | None = None
    ) -> list[Measurement]: ...

    async def save_document(self, document: StateDocument) -> None: ...
    async def document(self, document_id: str) -> StateDocument | None: ...
    async def latest_document(self, target: str, before: datetime | None = None) -> StateDocument | None: ...
    async def latest_heads(self, target: str) -> DocumentedHeads | None: ...

    async def save_decision(self, decision: StoredDecision) -> None: ...
    async def decision(self, decision_id: str) -> StoredDecision | None: ...
    async def decisions(
        self,
        target: str | None,
        limit: int,
        deployment: str | None = None,
        *,
        since: datetime | None = None,
    ) -> list[StoredDecision]: ...

    async def save_investigation(self, investigation: Investigation) -> None: ...
    async def investigation(self, decision_id: str) -> Investigation | None: ...
    async def investigations(self, deployment: str) -> list[Investigation]: ...

    async def add_run(self, run: Run) -> None:
        """Record a new run; raises RefusedError when its database has an unfinished one."""

    async def move_run(
        self,
        run_id: str,
        before: RunState,
        after: RunState,
        at: datetime,
        *,
        statement: str = "",
        fence: int | None = None,
    ) -> Run:
        """Take the run from one state to the next, or raise RefusedError when it isn't in `before` (or was fenced)."""

    async def take_lease(self, run_id: str) -> int: ...
    async def run(self, run_id: str) -> Run | None: ...
    async def runs(
        self,
        target: str | None,
        limit: int,
        deployment: str | None = None,
        *,
        states: tuple[RunState, ...] = (),
        since: datetime | None = None,
    ) -> list[Run]: ...
    async def newest_runs(self) -> list[Run]: ...
    async def unfinished_runs(self) -> list[Run]: ...
    async def passages(self, run_id: str) -> list[Passage]: ...
    async def set_writes_stopped(self, run_id: str, who: str) -> None: ...
    async def journal(self, record: StepRecord, fence: int) -> None: ...
    async def journal_of(self, run_id: str) -> list[StepRecord]: ...
    async def log(self, lines: list[LogLine]) -> None: ...
    async def log_of(self, run_id: str) -> list[LogLine]: ...
    async def last_log_line(self, run_id: str) -> LogLine | None: ...

    async def save_backup(self, backup: BackupRecord) -> None: ...
    async def backups(self, target: str | None, limit: int) -> list[BackupRecord]: ...
    async def save_incident(self, incident: Incident) -> None: ...
    async def incident(self, incident_id: str) -> Incident | None: ...
    async def open_incident(self, target: str) -> Incident | None: ...
    async def save_approval(self, approval: Approval) -> None: ...
    async def approvals(self, run_id: str) -> list[Approval]: ...
    async def save_pause(self, pause: Pause) -> None: ...
    async def lift_pause(self, target: str) -> bool: ...
    async def pauses(self) -> list[Pause]: ...
    async def save_token(self, token: Token) -> None: ...
    async def tokens(self) -> list[Token]: ...

    async def add_totals(self, amounts: Mapping[str, float]) -> None: ...
    async def totals(self) -> dict[str, float]: ...
    async def prune(self, deliveries_before: datetime, measurements_before: datetime) -> dict[str, int]: ...


class DatabaseIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which database this is, whatever name it is reached by."""

    system_identifier: str
    database: str
    oid: int
    server_version: int


class DatabaseReader(Protocol):
    """Reads one guarded database on its primary. Nothing here changes it.

    Raises:
        TransientError: when it can't be reached.
        PermanentError: when it answers, but not to this role.
    """

    async def identity(self) -> DatabaseIdentity: ...
    async def heads(self) -> tuple[str, ...]: ...
    async def schema(self) -> Schema: ...
    async def counts(
        self, budget_s: float, most_tables: int, tables: tuple[str, ...] = ()
    ) -> tuple[TableCount, ...]: ...
    async def resolve_tables(self, tables: tuple[str, ...], search_path: tuple[str, ...]) -> tuple[str, ...]:
        """The tables behind these names as `schema.table`: partitions, and tables that a delete cascades to, included."""

    async def wait_for_migration_lock(self, timeout_s: float) -> bool:
        """Whether no session migrates any more: waits for the advisory lock that a migrating session holds."""

    async def findings_before(self) -> tuple[Finding, ...]: ...
    async def findings_after(
        self,
        lossy_tables: tuple[str, ...],
        counts_before: tuple[TableCount, ...],
        renamed: Mapping[str, str] = ...,
    ) -> tuple[Finding, ...]: ...
    async def checksums(self, tables: tuple[str, ...]) -> dict[str, str]:
        """A checksum of each table's keys; empty for a table that isn't there."""

    async def risks(self, rehearsal: Rehearsal, budget_s: float) -> Risks:
        """What a rehearsed way back would cost today's rows, and what would break it."""

    async def not_owned(self, role: str, tables: tuple[TableName, ...]) -> dict[TableName, str]:
        """Those of these tables that this role may not alter or drop, and who owns them."""

    async def publications_of_all_tables(self) -> tuple[str, ...]:
        """Publications that take in every table, ours as well."""

    async def table_sizes(self) -> dict[TableName, int]:
        """Bytes of every table with its indexes and large values; a partitioned table's are its partitions'."""

    async def keys(self, tables: tuple[TableName, ...]) -> dict[TableName, tuple[str, ...]]:
        """The columns by which a row is known (the primary key); tables without one are left out."""

    async def sessions(self, application: str, before: datetime) -> tuple[str, ...]:
        """Clients other than rollbackd that were connected before then and still are, in words."""

    async def activity(self) -> Activity:
        """Slow statements, waiting locks and long transactions, their literals left out; what can't be seen is named."""

    async def own_checks(self) -> tuple[Finding, ...]: ...
    async def rights(self) -> tuple[Finding, ...]: ...
    async def close(self) -> None: ...


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker says of the scripts and its interpreter."""

    revisions: tuple[Revision, ...]
    scripts_sha256: str
    python: str
    alembic: str
    sqlalchemy: str


class MigrationEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """What env.py showed when it was run without migrating anything."""

    heads: tuple[str, ...]
    version_table: str
    version_table_schema: str
    transaction_per_migration: bool
    commits_each_statement: bool
    search_path: tuple[str, ...]
    driver: str
    role: str = ""


class DowngradeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker says it did. Never believed: the database is asked afterwards."""

    statements: int
    marker: bool
    seconds: float
    kept: tuple[dict[str, object], ...] = ()


LogSink = Callable[[str], Awaitable[None]]


class MigrationWorker(Protocol):
    """Alembic in the target's own interpreter.

    Raises:
        RefusedError: for what the user must mend (no alembic there, env.py raises, input() asked).
        TransientError: for a lock not had in time.
        PermanentError: for a downgrade that failed.
    """

    async def describe(self) -> Described: ...
    async def read(self, revisions: tuple[str, ...]) -> dict[str, ReadRevision]: ...
    async def environment(self) -> MigrationEnvironment: ...
    async def downgrade(  # noqa: PLR0913 - what makes a downgrade this one, each by its name
        self,
        revisions: tuple[str, ...],
        from_heads: tuple[str, ...],
        to_heads: tuple[str, ...],
        *,
        run: str,
        identity: DatabaseIdentity,
        scripts_sha256: str,
        archive: tuple[ArchiveItem, ...],
        timeout_s: float,
        on_log: LogSink,
    ) -> DowngradeResult:
        """Take off these revisions, if the scripts are the planned ones; archive first, in the same transaction."""

    async def stamp(
        self,
        revisions: tuple[str, ...],
        from_heads: tuple[str, ...],
        to_heads: tuple[str, ...],
        *,
        run: str,
        identity: DatabaseIdentity,
    ) -> None:
        """Move the stamp down over these revisions and run none: for a schema that is there already."""

    async def prestart(self) -> None: ...
    def use_scripts(self, scripts_sha256: str) -> None: ...
    async def keep_scripts(self) -> str: ...
    async def close(self) -> None: ...


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a long act has come; `total` is 0 where nobody knows."""

    done: float
    total: float
    unit: str


ProgressSink = Callable[[Progress], Awaitable[None]]
OnRestored = Callable[["RestoredCopy"], Awaitable[None]]


class Backups(Protocol):
    """Takes, proves and removes backups of one database."""

    async def take(
        self, run: str, purpose: str, *, timeout_s: float, on_progress: ProgressSink
    ) -> BackupRecord: ...
    async def prove(
        self,
        backup: BackupRecord,
        *,
        level: int,
        timeout_s: float,
        on_progress: ProgressSink,
        on_restored: OnRestored | None = None,
    ) -> BackupRecord:
        """Prove it to this level; `on_restored` is called with the restored copy, if one is restored."""

    async def is_whole(self, backup: BackupRecord, *, anew: bool = True) -> bool: ...
    async def find(self, run: str, purpose: str) -> BackupRecord | None: ...
    async def prune(self, backups: list[BackupRecord]) -> list[BackupRecord]: ...
    async def readiness(self) -> tuple[Finding, ...]: ...
    async def sweep(self) -> list[str]: ...
    def reachable_level(self) -> int: ...
    def restore_commands(self, backup: BackupRecord) -> list[str]: ...


class RestoredCopy(Protocol):
    """A restored backup in scratch, as the adapter that made it knows it; opaque to everybody else."""

    def text(self) -> str: ...


class Archives(Protocol):
    """The archives inside one guarded database: copied ahead, finished, brought back, pruned."""

    async def entries(self, run: str | None = None) -> tuple[ArchiveEntry, ...]: ...
    async def copy_ahead(
        self, run: str, items: tuple[ArchiveItem, ...], on_progress: ProgressSink
    ) -> tuple[ArchiveItem, ...]: ...
    async def discard(self, run: str) -> None: ...
    async def adopt(self, run: str, copy: RestoredCopy) -> int:
        """Take over the archives of a copy as those of `run`; returns the rows."""

    async def finish(self, run: str) -> None: ...
    async def restore(self, run: str, *, dry_run: bool) -> RestoreReport: ...
    async def restore_script(self, run: str) -> str: ...
    async def prune(self, before: datetime) -> tuple[ArchiveEntry, ...]: ...


class Rehearsals(Protocol):
    """Runs the real scripts on copies of one guarded database. What couldn't be rehearsed says why, and isn't raised."""

    async def rehearse(
        self,
        way: Way,
        *,
        depth: Depth,
        fingerprint: str,
        wanted: Mapping[TableName, Sequence[str]] | None = None,
    ) -> Rehearsal:
        """Run it on a copy; `fingerprint` is the guarded schema's, `wanted` are conditions of rows that a sample needs."""

    async def rehearse_on(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        """Run it on a copy that somebody else has just restored: proof and rehearsal in one act."""

    async def replay(self, copy: RestoredCopy, way: Way) -> Rehearsal:
        """Run an upgrade again on a restored backup, and keep in the copy's archive all that it takes away.

        Raises:
            RollbackdError: when it can't be run again.
        """

    async def taken(self, copy: RestoredCopy) -> dict[str, int]:
        """Rows and values that a replay kept in the copy's archive, by table: deleted, dropped, or overwritten."""

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
        """Put these revisions on a copy, take each off and put it on again; raises RollbackdError where that can't be."""

    async def prepare(self, fingerprint: str, heads: tuple[str, ...], kept_scripts: str = "") -> None:
        """Have what costs time ready; raises RollbackdError where that can't be."""

    async def size_bytes(self) -> int: ...
    async def close(self) -> None: ...


class Application(Protocol):
    """The services that use a database: stopped, started and looked at by declared commands."""

    @property
    def can_stop(self) -> bool: ...
    @property
    def can_start(self) -> bool: ...
    async def is_stopped(self) -> bool: ...
    async def stop(self) -> None: ...
    async def runs(self, version: str) -> bool: ...
    async def start(self, version: str) -> None: ...
    async def readiness(self) -> tuple[Finding, ...]: ...


class Prober(Protocol):
    """Takes one reading of one probe. Never raises: an error is a reading of quality error."""

    async def measure(self, probe: Probe, at: datetime) -> Measurement: ...


class MetricReading(msgspec.Struct, frozen=True, kw_only=True):
    """One number as of one moment; `value` is None where there is none."""

    quality: Quality
    value: float | None = None
    detail: str = ""


class MetricReader(Protocol):
    """Asks the Prometheus of a target's metrics."""

    async def read(self, metric: Metric, query: str, at: datetime) -> MetricReading:
        """One number as of `at`. Never raises: an error is a reading of quality error."""

    async def series(self, query: str, since: datetime, until: datetime, step_s: float) -> tuple[Point, ...]:
        """The values of a query at each step.

        Raises:
            RollbackdError: where it can't be had.
        """

    async def finding(self, metric: Metric, query: str, at: datetime) -> Finding: ...
    async def close(self) -> None: ...


class Announcer(Protocol):
    """Tells people. Never raises: an announcement that can't be made is logged and counted."""

    async def announce(self, event: str, fields: dict[str, object]) -> None: ...
