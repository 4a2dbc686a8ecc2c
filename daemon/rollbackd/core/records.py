"""What the store keeps, as frozen values. Times are aware UTC."""

from datetime import datetime

import msgspec

from rollbackd.core.assess import DeployWord
from rollbackd.core.checks import Finding
from rollbackd.core.decision import Decision
from rollbackd.core.events import Event
from rollbackd.core.planning.plan import Plan
from rollbackd.core.price import Price
from rollbackd.core.run import RunState, StepPhase
from rollbackd.core.schema import Schema


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One authenticated HTTP request as it came, with what it was taken to mean.

    `identity` is what makes it the same delivery again; `body_sha256` tells the same from a forged repeat.
    """

    id: str
    hook: str
    identity: str
    body_sha256: str
    headers: dict[str, str]
    body: bytes
    received_at: datetime
    events: tuple[Event, ...] = ()
    ignored_because: str = ""


class QueuedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that waits to be acted on; `seq` orders them all."""

    seq: int
    delivery: str
    hook: str
    received_at: datetime
    event: Event


class TableCount(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one table; an estimate is the planner's and labelled so everywhere."""

    table: str
    rows: int
    exact: bool


class StateDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a database at one moment: revision, schema, counts. With `rehearsed` it is a copy's, as a rehearsal
    left it: what is expected of the database, and never what was seen there.
    """

    id: str
    target: str
    taken_at: datetime
    heads: tuple[str, ...]
    fingerprint: str
    counts: tuple[TableCount, ...]
    schema: Schema
    rehearsed: bool = False


class DocumentedHeads(msgspec.Struct, frozen=True, kw_only=True):
    """Of a `StateDocument` what every look at a target needs; the schema may weigh a megabyte."""

    heads: tuple[str, ...]
    taken_at: datetime


class Investigating(msgspec.Struct, frozen=True, kw_only=True):
    """That a deployment is investigated because it became slow: by which decision, since when, and until when."""

    decision: str
    since: datetime
    until: datetime


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """One deploy of a release to one target, watched from its start to the end of its bake time.

    `image` is the digest of the release's image where the CD system named it (label `image`); `price` is the last known
    price of going back. `committed_at` is when its oldest change was committed, as far as the CD system says; `failing_since`
    is since when the matrix has found something wrong with it; `investigating` is there from when it became slow until it no
    longer is, or the deployment ended.
    """

    id: str
    target: str
    service: str = ""
    sender_id: str
    version: str
    previous_version: str
    started_at: datetime
    succeeded_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str = "watching"
    deploy: DeployWord = DeployWord.STARTED
    migration: DeployWord = DeployWord.NOTHING
    migration_reason: str = ""
    heads_before: tuple[str, ...] | None = None
    heads_expected: tuple[str, ...] = ()
    before_document: str = ""
    url: str = ""
    incident: str = ""
    scripts_sha256: str = ""
    image: str = ""
    price: Price | None = None
    committed_at: datetime | None = None
    failing_since: datetime | None = None
    investigating: Investigating | None = None


class StoredDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision with its time, its inputs and what came of it."""

    id: str
    target: str
    deployment: str
    at: datetime
    decision: Decision
    inputs_json: bytes
    outcome: str
    run: str = ""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a plan. With `approval_reasons` it waits for a person before it may run."""

    id: str
    target: str
    database_key: str
    deployment: str
    decision: str
    plan: Plan
    plan_sha256: str
    state: RunState
    trigger: str
    requested_by: str
    reason: str
    incident: str
    created_at: datetime
    fence: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    statement: str = ""
    expires_at: datetime | None = None
    writes_stopped_by: str = ""
    approval_reasons: tuple[str, ...] = ()


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's journal; `evidence` is plain JSON."""

    run: str
    step: int
    attempt: int
    phase: StepPhase
    at: datetime
    evidence: dict[str, object] = {}


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's execution log, such as a statement that ran."""

    run: str
    step: int
    at: datetime
    text: str


class BackupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A backup, or a reference to somebody else's. `level` is 0 to 5, see the design's proof levels."""

    id: str
    target: str
    run: str
    purpose: str
    created_at: datetime
    location: str
    level: int
    size_bytes: int
    heads: tuple[str, ...]
    counts: tuple[TableCount, ...]
    tool: str = ""
    removed_at: datetime | None = None


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """An incident record: somebody's (`reference`), or opened by rollbackd."""

    id: str
    target: str
    opened_at: datetime
    opened_by: str
    reference: str
    reason: str
    closed_at: datetime | None = None


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's word on a plan; bound to the plan's digest."""

    run: str
    actor: str
    plan_sha256: str
    granted: bool
    at: datetime
    reason: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An API token; only its SHA-256 is kept."""

    name: str
    role: str
    sha256: str
    created_at: datetime
    revoked_at: datetime | None = None


class RunFindings(msgspec.Struct, frozen=True, kw_only=True):
    """The checks of one step of a run."""

    step: int
    findings: tuple[Finding, ...]
