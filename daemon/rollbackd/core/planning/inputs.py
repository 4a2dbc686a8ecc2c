"""What a plan is made from: what was found of the path, what the configuration allows, and the times it gives."""

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.planning.plan import WayBack
from rollbackd.core.reading import ReadRevision
from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.risks import Risks
from rollbackd.core.schema import TableName
from rollbackd.core.verdicts import OldRelease


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a path before it is taken.

    `archive` are the rehearsal's items, or those that a reading suggests; `lossy_tables` are the tables that these are
    about, and those that go with them (partitions, tables that a delete cascades to). `sizes` are bytes by table as of today.
    """

    read: dict[str, ReadRevision]
    rehearsal: Rehearsal | None = None
    risks: Risks = Risks()
    archive: tuple[ArchiveItem, ...] = ()
    lossy_tables: tuple[str, ...] = ()
    publications: tuple[str, ...] = ()
    old_release: OldRelease = OldRelease(works=None)
    sizes: dict[TableName, int] = {}
    fingerprint: str = ""
    scripts_sha256: str = ""
    expected_document: str = ""
    one_transaction_each: bool = False
    never_transactional: bool = False


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What a target's configuration lets a plan do, and what it prefers.

    `ways` are those allowed, the preferred one first. `lock_budget_s` is how long others may be kept out; what takes longer
    to archive is copied ahead. `tolerates_stamp` where the old release's start-up takes a stamp that it doesn't know.
    """

    stops_application: bool = False
    starts_application: bool = False
    has_probes: bool = False
    has_backup: bool = False
    can_rehearse_on_backup: bool = False
    ways: tuple[WayBack, ...] = (WayBack.STOP_WRITES,)
    tolerates_stamp: bool = False
    lock_budget_s: float = 5.0
    application: str = ""


class PlanTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and choices that the target's configuration gives a plan; all times in seconds."""

    look_s: float
    backup_s: float
    proof_s: float
    command_s: float
    downgrade_s: float
    lock_attempts: int
    application_s: float
    confirm_s: float
    backup_reuse_s: float
    backup_level: int
