"""The plan: ordered steps as data, stored before the first is taken, and exactly what runs."""

import hashlib
import re
from enum import StrEnum

import msgspec

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.assess import heads_text
from rollbackd.core.reading import DESTROYS, Effect, EffectKind, ReadRevision, read_effects
from rollbackd.core.rehearsal import Depth, Rehearsal, RehearsedRevision, TakenLock
from rollbackd.core.revisions import Path, RevisionGraph
from rollbackd.core.risks import Obstacle, Risks, RowsAtRisk
from rollbackd.core.schema import TableName
from rollbackd.core.verdicts import Judged, OldRelease, Verdict, judge_revisions


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


class StepBase(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every step declares.

    `timeout_s` bounds one attempt, `attempts` counts the first one too; a step that is `past_return` changes the
    database, so that failing there is for a person to settle.
    """

    timeout_s: float
    attempts: int = 1
    past_return: bool = False

    @property
    def kind(self) -> str:
        """The kind, as the journal, metrics and pages name it."""
        return str(self.__struct_config__.tag)


class ValidateBefore(StepBase, frozen=True, tag="validate_before"):
    """Look again, right before anything is done, that the database is where the plan thinks it is."""

    from_heads: tuple[str, ...]


class BackUp(StepBase, frozen=True, tag="back_up"):
    """Take a backup of the whole database, or take over a proved one that is younger than `reuse_within_s`."""

    reuse_within_s: float


class ProveBackup(StepBase, frozen=True, tag="prove_backup"):
    """Prove the backup to the level that the policy asks for; with `rehearses` take the plan's revisions off on the
    restored copy as well: proof and last rehearsal in one act, on the rows of this very minute.
    """

    level: int
    rehearses: bool = False


class StopApplication(StepBase, frozen=True, tag="stop_application"):
    """Stop whatever writes; undone by starting `version` again if nothing was changed afterwards."""

    version: str


class CopyAhead(StepBase, frozen=True, tag="copy_ahead"):
    """Copy what takes longer than a lock may last into the archive now, and log what changes from here on."""

    items: tuple[ArchiveItem, ...]


class Drain(StepBase, frozen=True, tag="drain"):
    """Wait until the sessions of the release that was replaced are gone; `application` narrows whose they are."""

    application: str


class Downgrade(StepBase, frozen=True, tag="downgrade"):
    """Archive and take off one group of revisions in one transaction (or one that can't be in any)."""

    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    changes_schema: bool
    changes_data: bool = False
    alone_because: str = ""


class ValidateDatabase(StepBase, frozen=True, tag="validate_database"):
    """Check revision, schema and data afterwards."""

    to_heads: tuple[str, ...]


class RecoverLost(StepBase, frozen=True, tag="recover_lost"):
    """Run the migration again on the backup from before it, and take what it takes away into the target's archive."""

    backup: str
    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]


class BringBack(StepBase, frozen=True, tag="bring_back"):
    """Bring what was recovered back into its tables, and overwrite nothing newer."""


class StartApplication(StepBase, frozen=True, tag="start_application"):
    """Put the old release back."""

    version: str


class ValidateApplication(StepBase, frozen=True, tag="validate_application"):
    """Wait until every probe is healthy."""


class Confirm(StepBase, frozen=True, tag="confirm"):
    """Watch the version table for a while: nothing may upgrade again behind us."""

    heads: tuple[str, ...]
    for_s: float


class AwaitPerson(StepBase, frozen=True, tag="await_person"):
    """Stop at once and say where the database stands; done when it is at `from_heads` or `to_heads` whole."""

    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    statement: str


Step = (
    ValidateBefore
    | BackUp
    | ProveBackup
    | RecoverLost
    | CopyAhead
    | StopApplication
    | Drain
    | Downgrade
    | ValidateDatabase
    | BringBack
    | StartApplication
    | ValidateApplication
    | Confirm
    | AwaitPerson
)

STEP_KINDS = (
    "validate_before",
    "back_up",
    "prove_backup",
    "recover_lost",
    "copy_ahead",
    "stop_application",
    "drain",
    "downgrade",
    "validate_database",
    "bring_back",
    "start_application",
    "validate_application",
    "confirm",
    "await_person",
)


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


def plan_downgrade(  # noqa: PLR0913  (each is named where it is called, and the callers stand in the workflow)
    target: str,
    graph: RevisionGraph,
    path: Path,
    findings: Findings,
    means: Means,
    times: PlanTimes,
    *,
    release_from: str,
    release_to: str,
) -> Plan:
    """Lay out the way back: which of the three it is, and everything from the look before to the confirmation after."""
    judged = judge_revisions(path.revisions, findings.read, findings.rehearsal, findings.risks)
    revisions = tuple(
        planned_revision(graph, findings.read[r], judged[r], findings.rehearsal, findings.risks)
        for r in path.revisions
    )
    if findings.never_transactional:
        revisions = tuple(_standing_alone(revision) for revision in revisions)
    chosen, way_why = choose_way(means, findings.old_release)
    way = chosen or WayBack.STOP_WRITES
    blockers, warnings = _objections(revisions, way, means, findings, release_from, release_to)
    if chosen is None:
        allowed = ", ".join(means.ways) or "none"
        blockers.append(
            f"the policy allows {allowed} alone ('policy.ways_back'), and that doesn't fit: {'; '.join(way_why)}"
        )
    loses = tuple(dict.fromkeys(_losses(revisions, findings)))
    ahead = () if way is WayBack.LEAVE_SCHEMA else _copied_ahead(findings, means)
    estimate = _estimate(revisions, findings, ahead, times)
    groups = _as_rehearsed(_groups(path, revisions, times, findings.one_transaction_each), findings.rehearsal)
    if way is WayBack.LEAVE_SCHEMA:
        steps = _steps_leaving_schema(path, means, times, release_to)
        loses, groups, estimate = (), [], Estimate(total_s=times.confirm_s, lock_s=0.0)
    else:
        steps = _steps(path, way, means, times, groups, ahead, release_from, release_to)
    rehearsal = findings.rehearsal
    return Plan(
        target=target,
        way_back=way,
        from_heads=path.from_heads,
        to_heads=path.from_heads if way is WayBack.LEAVE_SCHEMA else path.to_heads,
        revisions=revisions if way is not WayBack.LEAVE_SCHEMA else (),
        loses=loses,
        lossy_tables=findings.lossy_tables if groups else (),
        blockers=tuple(blockers),
        warnings=tuple(warnings),
        release_from=release_from,
        release_to=release_to,
        scripts_sha256=findings.scripts_sha256,
        steps=tuple(steps),
        way_why=way_why,
        archive=findings.archive if groups else (),
        rehearsed=_rehearsed(rehearsal, findings.expected_document),
        old_release=findings.old_release,
        estimate=estimate,
        fingerprint=findings.fingerprint,
        renamed={
            f"{old.schema}.{old.name}": f"{new.schema}.{new.name}"
            for old, new in (rehearsal.renamed if rehearsal is not None else ())
        },
    )


def _as_rehearsed(groups: list[Downgrade], rehearsal: Rehearsal | None) -> list[Downgrade]:
    """The groups with what the rehearsal knows better than a reading: whether the catalog is another one afterwards."""
    if rehearsal is None or not rehearsal.passed:
        return groups
    differs = not rehearsal.difference.is_empty()
    return [
        msgspec.structs.replace(g, changes_schema=differs and (len(groups) == 1 or g.changes_schema))
        for g in groups
    ]


def choose_way(means: Means, old_release: OldRelease) -> tuple[WayBack | None, tuple[str, ...]]:
    """The first of the allowed ways that fits what was rehearsed (None: none does), and why those before it don't."""
    why: list[str] = []
    for way in means.ways:
        if way is WayBack.STOP_WRITES:
            return way, tuple(why)
        if not old_release.works:
            reasons = "; ".join(old_release.why[:3]) or "nobody knows"
            why.append(f"not {way}: the old release may not work on this schema ({reasons})")
        elif not means.starts_application:
            why.append(f"not {way}: no command is declared that puts the old release back")
        elif not means.tolerates_stamp:
            why.append(
                f"not {way}: the old release may not start over a stamp that it doesn't know; if it does, say so with"
                " 'deployment.tolerates_unknown_stamp'"
            )
        else:
            return way, (*why, "the old release works on the present schema, as rehearsed")
    return None, tuple(why)


def _objections(
    revisions: tuple[PlannedRevision, ...],
    way: WayBack,
    means: Means,
    findings: Findings,
    release_from: str,
    release_to: str,
) -> tuple[list[str], list[str]]:
    """Blockers and warnings."""
    blockers = _release_faults(way, means, release_to)
    warnings: list[str] = []
    if way is WayBack.LEAVE_SCHEMA:
        return blockers, warnings
    for revision in revisions:
        if revision.verdict is Verdict.IRREVERSIBLE:
            blockers += revision.why
        elif revision.verdict is Verdict.WILL_FAIL:
            blockers.append(f"{revision.id} will fail: {'; '.join(revision.why)}")
        elif revision.verdict is Verdict.UNKNOWN:
            warnings.append(f"{revision.id}: what it does isn't fully known: {'; '.join(revision.why)}")
    if way is WayBack.STOP_WRITES:
        if means.stops_application and not release_from:
            warnings.append(
                "nobody said which release runs now: if the run fails after the stop, a person has to start it again"
            )
        if not means.stops_application:
            warnings.append(
                "no command is declared that stops the application: whoever approves says that nothing writes"
            )
    warnings += [
        f"{r.id} can't share a transaction ({r.stands_alone}): if it fails midway, a person must settle it"
        for r in revisions
        if r.stands_alone
    ]
    unkeyed = sorted(
        {i.table.text() for i in findings.archive if not i.key and i.kind is not ArchiveKind.TABLE}
    )
    if unkeyed:
        warnings.append(
            f"{', '.join(unkeyed)}: no key by which a row is known again; what is archived is matched by all other values"
        )
    if findings.archive and findings.publications:
        warnings.append(
            f"{', '.join(findings.publications)} publishes every table, archives included: a subscriber without the schema"
            " rollbackd_archive stops at the first archived row; pause its subscription, or make the schema there"
        )
    return blockers, warnings


def _release_faults(way: WayBack, means: Means, release_to: str) -> list[str]:
    faults: list[str] = []
    if means.stops_application and not means.starts_application:
        faults.append(
            "a command stops the application and none starts it: declare 'deployment.start' as well"
        )
    if means.starts_application and not release_to:
        before = "which release ran before" if means.stops_application else "which release to start"
        faults.append(f"nobody said {before}: give previous_version with the deploy, or --release")
    return faults if way is not WayBack.LEAVE_SCHEMA or not release_to else []


def _losses(revisions: tuple[PlannedRevision, ...], findings: Findings) -> list[str]:
    """What is lost, in words: as counted where it was rehearsed, else as read."""
    found: list[str] = []
    rehearsed = findings.rehearsal is not None and findings.rehearsal.passed
    for revision in revisions:
        if rehearsed:
            found += [risk.text() for risk in revision.at_risk if risk.rows != 0]
            if revision.verdict is Verdict.UNKNOWN:
                found += [f"unknown: {why}" for why in revision.why]
        else:
            found += [effect.text() for effect in revision.effects if effect.kind in DESTROYS]
            if revision.unread:
                found.append(f"unknown: {revision.id} can't be read without running it")
    return found


# What a server copies into an archive under the lock, in bytes a second: a modest disk's.
ARCHIVE_BYTES_A_SECOND = 100_000_000


def _archive_seconds(item: ArchiveItem, sizes: dict[TableName, int]) -> float:
    share = 1.0 if item.kind in (ArchiveKind.TABLE, ArchiveKind.ROWS) else 0.5
    return sizes.get(item.table, 0) * share / ARCHIVE_BYTES_A_SECOND


def _copied_ahead(findings: Findings, means: Means) -> tuple[ArchiveItem, ...]:
    """What would keep the lock longer than the budget, and can be copied before: tables and columns with a key.

    Only of the first revision: what a later one meets isn't there yet under that name.
    """
    first = next(iter(findings.read), "")
    return tuple(
        item
        for item in findings.archive
        if item.kind in (ArchiveKind.TABLE, ArchiveKind.COLUMN)
        and item.key
        and item.revision == first
        and _archive_seconds(item, findings.sizes) > means.lock_budget_s
    )


def _estimate(
    revisions: tuple[PlannedRevision, ...],
    findings: Findings,
    ahead: tuple[ArchiveItem, ...],
    times: PlanTimes,
) -> Estimate:
    """From the rehearsal's own times where it had every row; else from the sizes of what is rewritten and archived."""
    rehearsal = findings.rehearsal
    if rehearsal is None or not rehearsal.passed:
        return Estimate()
    under_lock = [item for item in findings.archive if item not in ahead]
    archive_s = sum(_archive_seconds(item, findings.sizes) for item in under_lock)
    run_s = sum(max(revision.seconds, 0.0) for revision in revisions)
    if rehearsal.depth is not Depth.FULL:
        rewritten = {table for revision in revisions for table in revision.rewritten}
        run_s += sum(findings.sizes.get(table, 0) for table in rewritten) / ARCHIVE_BYTES_A_SECOND
    whole = sum(findings.sizes.values()) / ARCHIVE_BYTES_A_SECOND
    return Estimate(
        total_s=round(run_s + archive_s + whole * 3 + times.confirm_s, 3),
        lock_s=round(run_s + archive_s, 3),
        archive_s=round(archive_s, 3),
    )


def _rehearsed(rehearsal: Rehearsal | None, expected_document: str) -> Rehearsed:
    if rehearsal is None:
        return Rehearsed(unknown="no rehearsal was made")
    failure = rehearsal.failure
    return Rehearsed(
        depth=str(rehearsal.depth),
        passed=rehearsal.passed,
        unknown=rehearsal.unknown,
        failure=f"{failure.revision}: {failure.reason}" if failure is not None else "",
        seconds=rehearsal.seconds,
        rows=rehearsal.rows,
        difference=tuple(rehearsal.difference.lines()),
        expected_document=expected_document,
        keeps_owners=rehearsal.keeps_owners,
    )


def _steps(  # noqa: PLR0913, PLR0917 - what a run is made of
    path: Path,
    way: WayBack,
    means: Means,
    times: PlanTimes,
    groups: list[Downgrade],
    ahead: tuple[ArchiveItem, ...],
    release_from: str,
    release_to: str,
) -> list[Step]:
    steps: list[Step] = [ValidateBefore(timeout_s=times.look_s, attempts=2, from_heads=path.from_heads)]
    if means.has_backup:
        steps += [
            BackUp(timeout_s=times.backup_s, reuse_within_s=times.backup_reuse_s),
            ProveBackup(
                timeout_s=times.proof_s, level=times.backup_level, rehearses=means.can_rehearse_on_backup
            ),
        ]
    if ahead:
        steps.append(CopyAhead(timeout_s=times.backup_s, items=ahead))
    if way is WayBack.RELEASE_FIRST:
        steps.append(StartApplication(timeout_s=times.command_s, attempts=2, version=release_to))
        steps.append(Drain(timeout_s=times.application_s, application=means.application))
    elif means.stops_application:
        steps.append(StopApplication(timeout_s=times.command_s, version=release_from))
    steps += groups
    steps.append(
        ValidateDatabase(timeout_s=times.look_s, attempts=3, past_return=True, to_heads=path.to_heads)
    )
    if means.starts_application and way is WayBack.STOP_WRITES:
        steps.append(
            StartApplication(timeout_s=times.command_s, attempts=2, past_return=True, version=release_to)
        )
    if means.has_probes and means.starts_application:
        steps.append(ValidateApplication(timeout_s=times.application_s, past_return=True))
    if times.confirm_s:
        steps.append(
            Confirm(
                timeout_s=times.confirm_s + times.look_s,
                attempts=3,
                past_return=True,
                heads=path.to_heads,
                for_s=times.confirm_s,
            )
        )
    return steps


def _steps_leaving_schema(path: Path, means: Means, times: PlanTimes, release_to: str) -> list[Step]:
    steps: list[Step] = [
        ValidateBefore(timeout_s=times.look_s, attempts=2, from_heads=path.from_heads),
        StartApplication(timeout_s=times.command_s, attempts=2, version=release_to),
    ]
    if means.has_probes:
        steps.append(ValidateApplication(timeout_s=times.application_s))
    if times.confirm_s:
        steps.append(
            Confirm(timeout_s=times.confirm_s + times.look_s, heads=path.from_heads, for_s=times.confirm_s)
        )
    return steps


def with_recovery(plan: Plan, recovery: RecoverLost, *, brings_back: bool, times: PlanTimes) -> Plan:
    """The plan that also recovers what the migration took away; with `brings_back` it puts it into its tables as well."""
    steps: list[Step] = []
    recovered = False
    for step in plan.steps:
        if not recovered and not isinstance(step, (ValidateBefore, BackUp, ProveBackup)):
            # Before anything is stopped: it takes as long as a restore does.
            steps.append(recovery)
            recovered = True
        steps.append(step)
        if isinstance(step, ValidateDatabase) and brings_back:
            steps.append(BringBack(timeout_s=times.backup_s, attempts=2, past_return=True))
    return msgspec.structs.replace(plan, steps=tuple(steps))


def plan_redeploy(
    target: str,
    heads: tuple[str, ...],
    times: PlanTimes,
    *,
    release_from: str,
    release_to: str,
    starts_application: bool,
    has_probes: bool,
) -> Plan:
    """Lay out `redeploy_only`: the database stays as it is, the old release is put back."""
    blockers = []
    if not starts_application:
        blockers.append(
            "no command is declared that starts a release: put the old release back by your CD system"
        )
    elif not release_to:
        blockers.append("nobody said which release ran before: give previous_version with the deploy")
    steps: list[Step] = [ValidateBefore(timeout_s=times.look_s, attempts=2, from_heads=heads)]
    if starts_application:
        steps.append(StartApplication(timeout_s=times.command_s, attempts=2, version=release_to))
        if has_probes:
            steps.append(ValidateApplication(timeout_s=times.application_s))
    if times.confirm_s:
        steps.append(Confirm(timeout_s=times.confirm_s + times.look_s, heads=heads, for_s=times.confirm_s))
    return Plan(
        target=target,
        way_back=WayBack.REDEPLOY_ONLY,
        from_heads=heads,
        to_heads=heads,
        revisions=(),
        loses=(),
        lossy_tables=(),
        blockers=tuple(blockers),
        warnings=(),
        release_from=release_from,
        release_to=release_to,
        scripts_sha256="",
        steps=tuple(steps),
    )


def plan_hold(
    target: str,
    from_heads: tuple[str, ...],
    to_heads: tuple[str, ...],
    revisions: tuple[PlannedRevision, ...],
    statement: str,
    times: PlanTimes,
    scripts_sha256: str,
) -> Plan:
    """Lay out standing still: one step that only a person can bring about."""
    return Plan(
        target=target,
        way_back=WayBack.HOLD,
        from_heads=from_heads,
        to_heads=to_heads,
        revisions=revisions,
        loses=(),
        lossy_tables=(),
        blockers=(),
        warnings=(),
        release_from="",
        release_to="",
        scripts_sha256=scripts_sha256,
        steps=(
            AwaitPerson(
                timeout_s=times.look_s, from_heads=from_heads, to_heads=to_heads, statement=statement
            ),
        ),
    )


def planned_revision(
    graph: RevisionGraph,
    read: ReadRevision,
    judged: Judged | None = None,
    rehearsal: Rehearsal | None = None,
    risks: Risks = Risks(),  # noqa: B008 - frozen
) -> PlannedRevision:
    """What a plan says of one revision, out of what was read, rehearsed and counted of it."""
    effects = read_effects(read)
    ran: RehearsedRevision | None = None
    if rehearsal is not None:
        ran = next((r for r in rehearsal.revisions if r.id == read.id), None)
    own = risks.of(read.id)
    stands_alone = read.stands_alone
    if ran is not None and not ran.transactional and not stands_alone:
        stands_alone = "it ended its transaction when it was rehearsed"
    return PlannedRevision(
        id=read.id,
        title=graph[read.id].title,
        statements=tuple(s.sql for s in ran.statements) if ran is not None else read.statements,
        unread="; ".join(dict.fromkeys(e.detail for e in effects if e.kind is EffectKind.UNREAD)),
        effects=effects,
        stands_alone=stands_alone,
        source_sha256=read.source_sha256,
        verdict=judged.verdict if judged is not None else Verdict.UNKNOWN,
        why=judged.why if judged is not None else (),
        at_risk=own.at_risk,
        obstacles=own.obstacles,
        locks=ran.locks if ran is not None else (),
        rewritten=ran.rewritten if ran is not None else (),
        reads=ran.read if ran is not None else (),
        writes=tuple(w.table for w in ran.written) if ran is not None else (),
        seconds=ran.seconds if ran is not None else -1.0,
    )


def _without_numbers(revision: PlannedRevision) -> PlannedRevision:
    return msgspec.structs.replace(revision, why=(), at_risk=(), obstacles=(), seconds=0.0)


def _groups(
    path: Path, revisions: tuple[PlannedRevision, ...], times: PlanTimes, one_transaction_each: bool
) -> list[Downgrade]:
    """Neighbours that can share a transaction go together, all or none, unless env.py commits after each."""
    groups: list[Downgrade] = []
    waiting: list[int] = []
    before = path.from_heads

    def close(alone: str = "") -> None:
        nonlocal before, waiting
        if not waiting:
            return
        members = [revisions[i] for i in waiting]
        after = path.heads_after[waiting[-1]]
        groups.append(
            Downgrade(
                timeout_s=times.downgrade_s,
                attempts=1 if alone else times.lock_attempts,
                past_return=True,
                revisions=tuple(m.id for m in members),
                from_heads=before,
                to_heads=after,
                changes_schema=any(_changes_schema(m) for m in members),
                changes_data=any(_changes_data(m) for m in members),
                alone_because=alone,
            )
        )
        before, waiting = after, []

    for index, revision in enumerate(revisions):
        if revision.stands_alone:
            close()
            waiting = [index]
            close(revision.stands_alone)
        else:
            waiting.append(index)
            if one_transaction_each:
                close()
    close()
    return groups


# Changes that a statement surely makes and that the fingerprint surely shows.
_CHANGES = re.compile(
    r"(?:CREATE|DROP)\s+(?:UNLOGGED\s+)?(?:TABLE|(?:UNIQUE\s+)?INDEX|TYPE|(?:MATERIALIZED\s+)?VIEW|SEQUENCE|SCHEMA)\s"
    r"|ALTER\s+TABLE\s.*?\s(?:ADD|DROP|RENAME)\s",
    re.IGNORECASE | re.DOTALL,
)
_PERHAPS = re.compile(r"\bIF\s+(?:NOT\s+)?EXISTS\b", re.IGNORECASE)


def _standing_alone(revision: PlannedRevision) -> PlannedRevision:
    return msgspec.structs.replace(
        revision, stands_alone=revision.stands_alone or "env.py's connection commits each statement"
    )


def _changes_data(revision: PlannedRevision) -> bool:
    """Whether it may change rows without changing the catalog."""
    kinds = {EffectKind.UPDATE, EffectKind.DELETE, EffectKind.TRUNCATE, EffectKind.UNREAD}
    if revision.writes:
        return True
    inserts = any(statement.lstrip()[:6].upper() == "INSERT" for statement in revision.statements)
    return bool(revision.unread) or inserts or any(effect.kind in kinds for effect in revision.effects)


def _changes_schema(revision: PlannedRevision) -> bool:
    """Whether its statements surely change the catalog; what is unread or conditional promises nothing."""
    return not revision.unread and any(
        _CHANGES.match(statement.strip()) and not _PERHAPS.search(statement)
        for statement in revision.statements
    )


def step_text(step: Step) -> str:
    """One step in one line, for plans, trees and reports."""
    match step:
        case ValidateBefore():
            return f"check that the database is at {heads_text(step.from_heads)} and that everything needed is there"
        case BackUp():
            return "back up the whole database"
        case ProveBackup():
            also = ", and rehearse the downgrade on the restored copy" if step.rehearses else ""
            return f"prove the backup to L{step.level}{also}"
        case StopApplication():
            return f"stop {step.version or 'the application'}"
        case RecoverLost():
            return f"recover what the migration took away, from {step.backup}"
        case BringBack():
            return "bring back what the migration took away"
        case CopyAhead():
            tables = ", ".join(sorted({item.table.text() for item in step.items}))
            return f"copy {tables} into the archive ahead of the lock"
        case Drain():
            return "wait until the sessions of the replaced release are gone"
        case Downgrade():
            alone = f" by itself ({step.alone_because})" if step.alone_because else ""
            return (
                f"archive, and downgrade {', '.join(step.revisions)}{alone}, to {heads_text(step.to_heads)}"
            )
        case ValidateDatabase():
            return "check revision, schema and data"
        case StartApplication():
            return f"start {step.version or 'the old release'}"
        case ValidateApplication():
            return "wait until every probe is healthy"
        case Confirm():
            return f"watch the version table for {step.for_s:g} s"
        case AwaitPerson():
            return "wait for a person"
