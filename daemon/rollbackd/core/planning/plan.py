"""The plan as data: stored before its first step is taken, shown to whoever approves it, and exactly what runs."""

import hashlib
from enum import StrEnum

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.planning.steps import Downgrade, Step, StopApplication
from rollbackd.core.reading import Effect
from rollbackd.core.rehearsal import TakenLock
from rollbackd.core.risks import Obstacle, RowsAtRisk
from rollbackd.core.schema import TableName
from rollbackd.core.verdicts import OldRelease, Verdict


class WayBack(StrEnum):
    """How the way back is done.

    `leave_schema`: the old release runs on the present schema, the database is left alone. `release_first`: the same, then
    the new release is drained and the downgrade follows. `stop_writes`: the downgrade inside a declared stop.
    `redeploy_only`: no revision had moved. `hold`: only a person can settle it.
    """

    LEAVE_SCHEMA = "leave_schema"
    RELEASE_FIRST = "release_first"
    STOP_WRITES = "stop_writes"
    REDEPLOY_ONLY = "redeploy_only"
    HOLD = "hold"


# The ways that a plan chooses among, the gentlest first.
WAYS = (WayBack.LEAVE_SCHEMA, WayBack.RELEASE_FIRST, WayBack.STOP_WRITES)


class PlannedRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One revision that the plan takes off: what it is, what its downgrade would run, and what that will do.

    `statements` are those that the rehearsal executed, or else those that could be rendered. `unread` says what couldn't be
    read; without a rehearsal, what is lost isn't fully known then. `seconds` is the rehearsal's (-1: none).
    """

    id: str
    title: str
    statements: tuple[str, ...]
    unread: str
    effects: tuple[Effect, ...]
    stands_alone: str
    source_sha256: str
    verdict: Verdict = Verdict.UNKNOWN
    why: tuple[str, ...] = ()
    at_risk: tuple[RowsAtRisk, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    locks: tuple[TakenLock, ...] = ()
    rewritten: tuple[TableName, ...] = ()
    reads: tuple[TableName, ...] = ()
    writes: tuple[TableName, ...] = ()
    seconds: float = -1.0


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan keeps of its rehearsal. `depth` is empty where none was made, and `unknown` says why."""

    depth: str = ""
    passed: bool = False
    unknown: str = ""
    failure: str = ""
    seconds: float = 0.0
    rows: int = 0
    difference: tuple[str, ...] = ()
    expected_document: str = ""
    keeps_owners: bool = False


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What the way back will take, in seconds: all of it, and how long locks keep others out. -1 where nobody knows."""

    total_s: float = -1.0
    lock_s: float = -1.0
    archive_s: float = 0.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that will happen and everything that speaks against it.

    `blockers` are faults that no approval lifts; `warnings` are for the person who reads the plan. `way_why` says why it is
    this way back. `archive` is what is kept before each revision; `fingerprint` is the schema's that all this was found on.
    """

    target: str
    way_back: WayBack
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    revisions: tuple[PlannedRevision, ...]
    loses: tuple[str, ...]
    lossy_tables: tuple[str, ...]
    blockers: tuple[str, ...]
    warnings: tuple[str, ...]
    release_from: str
    release_to: str
    scripts_sha256: str
    steps: tuple[Step, ...]
    way_why: tuple[str, ...] = ()
    archive: tuple[ArchiveItem, ...] = ()
    rehearsed: Rehearsed = Rehearsed()
    old_release: OldRelease = OldRelease(works=None)
    estimate: Estimate = Estimate()
    fingerprint: str = ""
    renamed: dict[str, str] = {}

    @property
    def verdict(self) -> Verdict:
        """The worst of its revisions'; a plan without any changes nothing that couldn't be taken back."""
        order = list(Verdict)
        return max((r.verdict for r in self.revisions), key=order.index, default=Verdict.REVERSIBLE)

    @property
    def rows_lost(self) -> int:
        """Rows and values that it takes away, as far as they were counted."""
        return sum(max(risk.rows, 0) for r in self.revisions for risk in r.at_risk)

    @property
    def downgrades(self) -> bool:
        """Whether the plan changes the database."""
        return any(isinstance(step, Downgrade) for step in self.steps)

    @property
    def stops_writes(self) -> bool:
        """Whether the plan itself stops the application."""
        return any(isinstance(step, StopApplication) for step in self.steps)

    def sha256(self) -> str:
        """What an approval is bound to: what will be done, and not how many rows there are this minute or how fast it is."""
        timeless = msgspec.structs.replace(
            self,
            revisions=tuple(_without_numbers(revision) for revision in self.revisions),
            loses=(),
            rehearsed=Rehearsed(depth=self.rehearsed.depth, passed=self.rehearsed.passed),
            estimate=Estimate(),
            warnings=(),
        )
        # As it is after a round trip through the store, where seconds given as whole numbers come back as floats.
        stored = msgspec.convert(msgspec.to_builtins(timeless), Plan)
        return hashlib.sha256(msgspec.json.encode(stored, order="deterministic")).hexdigest()


def _without_numbers(revision: PlannedRevision) -> PlannedRevision:
    return msgspec.structs.replace(revision, why=(), at_risk=(), obstacles=(), seconds=0.0)
