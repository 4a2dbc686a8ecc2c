"""The plan: ordered steps as data, stored before the first is taken, and exactly what runs."""

import hashlib
import re
from enum import StrEnum

import msgspec

from rollbackd.core.assess import heads_text
from rollbackd.core.reading import DESTROYS, Effect, EffectKind, ReadRevision, irreversible, read_effects
from rollbackd.core.revisions import Path, RevisionGraph


class WayBack(StrEnum):
    """How the way back is done."""

    STOP_WRITES = "stop_writes"
    REDEPLOY_ONLY = "redeploy_only"
    HOLD = "hold"


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
    """Prove the backup to the level that the policy asks for."""

    level: int


class StopApplication(StepBase, frozen=True, tag="stop_application"):
    """Stop whatever writes; undone by starting `version` again if nothing was changed afterwards."""

    version: str


class Preserve(StepBase, frozen=True, tag="preserve"):
    """Dump the tables that lose data, now that nothing writes, and prove the dump."""

    tables: tuple[str, ...]


class Downgrade(StepBase, frozen=True, tag="downgrade"):
    """Take off one group of revisions in one transaction (or one that can't be in any)."""

    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    changes_schema: bool
    changes_data: bool = False
    alone_because: str = ""


class ValidateDatabase(StepBase, frozen=True, tag="validate_database"):
    """Check revision, schema and data afterwards."""

    to_heads: tuple[str, ...]


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
    | StopApplication
    | Preserve
    | Downgrade
    | ValidateDatabase
    | StartApplication
    | ValidateApplication
    | Confirm
    | AwaitPerson
)

STEP_KINDS = (
    "validate_before",
    "back_up",
    "prove_backup",
    "stop_application",
    "preserve",
    "downgrade",
    "validate_database",
    "start_application",
    "validate_application",
    "confirm",
    "await_person",
)


class PlannedRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One revision that the plan takes off: what it is and what its downgrade would run.

    `unread` says what of it couldn't be read; where it isn't empty, what is lost isn't fully known.
    """

    id: str
    title: str
    statements: tuple[str, ...]
    unread: str
    effects: tuple[Effect, ...]
    stands_alone: str
    source_sha256: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that will happen and everything that speaks against it.

    `blockers` are faults that no approval lifts; `warnings` are for the person who reads the plan.
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

    @property
    def downgrades(self) -> bool:
        """Whether the plan changes the database."""
        return any(isinstance(step, Downgrade) for step in self.steps)

    @property
    def stops_writes(self) -> bool:
        """Whether the plan itself stops the application."""
        return any(isinstance(step, StopApplication) for step in self.steps)

    def sha256(self) -> str:
        """What an approval is bound to."""
        # As it is after a round trip through the store, where seconds given as whole numbers come back as floats.
        stored = msgspec.convert(msgspec.to_builtins(self), Plan)
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


def plan_downgrade(  # noqa: PLR0913  (each is named where it is called, and the callers stand in the workflow)
    target: str,
    graph: RevisionGraph,
    path: Path,
    read: dict[str, ReadRevision],
    times: PlanTimes,
    *,
    release_from: str,
    release_to: str,
    scripts_sha256: str,
    stops_application: bool,
    starts_application: bool,
    has_probes: bool,
    has_backup: bool,
    one_transaction_each: bool,
    can_preserve: bool = True,
    never_transactional: bool = False,
) -> Plan:
    """Lay out the way back `stop_writes`: everything from the look before to the confirmation after."""
    revisions = tuple(planned_revision(graph, read[revision_id]) for revision_id in path.revisions)
    blockers = [reason for r in path.revisions if (reason := irreversible(read[r]))]
    warnings: list[str] = []
    if stops_application and starts_application and not release_to:
        blockers.append(
            "nobody said which release ran before: give previous_version with the deploy, or --release"
        )
    if stops_application and not starts_application:
        blockers.append(
            "a command stops the application and none starts it: declare 'deployment.start' as well"
        )
    if starts_application and not stops_application and not release_to:
        blockers.append(
            "nobody said which release to start: give previous_version with the deploy, or --release"
        )
    if stops_application and not release_from:
        warnings.append(
            "nobody said which release runs now: if the run fails after the stop, a person has to start it again"
        )
    if not stops_application:
        warnings.append(
            "no command is declared that stops the application: whoever approves says that nothing writes"
        )
    warnings += [
        f"{r.id}: what it does can't be read without running it ({r.unread})" for r in revisions if r.unread
    ]
    warnings += [
        f"{r.id} can't share a transaction ({r.stands_alone}): if it fails midway, a person must settle it"
        for r in revisions
        if r.stands_alone
    ]
    effects = [effect for r in revisions for effect in r.effects]
    lossy = [e for e in effects if e.kind in DESTROYS]
    tables = tuple(dict.fromkeys(e.table for e in lossy if e.table))
    loses = tuple(dict.fromkeys(e.text() for e in lossy)) + tuple(
        f"unknown: {r.id} can't be read without running it" for r in revisions if r.unread
    )
    steps: list[Step] = [ValidateBefore(timeout_s=times.look_s, attempts=2, from_heads=path.from_heads)]
    if has_backup:
        steps += [
            BackUp(timeout_s=times.backup_s, reuse_within_s=times.backup_reuse_s),
            ProveBackup(timeout_s=times.proof_s, level=times.backup_level),
        ]
    if stops_application:
        steps.append(StopApplication(timeout_s=times.command_s, version=release_from))
        if tables and has_backup and can_preserve:
            steps.append(Preserve(timeout_s=times.backup_s, tables=tables))
    if never_transactional:
        revisions = tuple(_standing_alone(revision) for revision in revisions)
    steps += _groups(path, revisions, times, one_transaction_each)
    steps.append(
        ValidateDatabase(timeout_s=times.look_s, attempts=3, past_return=True, to_heads=path.to_heads)
    )
    if starts_application:
        steps.append(
            StartApplication(timeout_s=times.command_s, attempts=2, past_return=True, version=release_to)
        )
    if has_probes and starts_application:
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
    return Plan(
        target=target,
        way_back=WayBack.STOP_WRITES,
        from_heads=path.from_heads,
        to_heads=path.to_heads,
        revisions=revisions,
        loses=loses,
        lossy_tables=tables,
        blockers=tuple(blockers),
        warnings=tuple(warnings),
        release_from=release_from,
        release_to=release_to,
        scripts_sha256=scripts_sha256,
        steps=tuple(steps),
    )


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


def planned_revision(graph: RevisionGraph, read: ReadRevision) -> PlannedRevision:
    """What a plan says of one revision, out of what was read of it."""
    effects = read_effects(read)
    return PlannedRevision(
        id=read.id,
        title=graph[read.id].title,
        statements=read.statements,
        unread="; ".join(dict.fromkeys(e.detail for e in effects if e.kind is EffectKind.UNREAD)),
        effects=effects,
        stands_alone=read.stands_alone,
        source_sha256=read.source_sha256,
    )


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
            return f"prove the backup to L{step.level}"
        case StopApplication():
            return f"stop {step.version or 'the application'}"
        case Preserve():
            return f"keep the rows of {', '.join(step.tables)} in a proved dump, now that nothing writes"
        case Downgrade():
            alone = f" by itself ({step.alone_because})" if step.alone_because else ""
            return f"downgrade {', '.join(step.revisions)}{alone}, to {heads_text(step.to_heads)}"
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
