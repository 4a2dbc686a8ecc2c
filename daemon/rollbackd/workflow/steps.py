"""What each kind of step does: how it is observed, performed and, for one of them, undone.

A step that only reads is observed as not done and simply made again. Every other one can tell from the world alone
whether it happened, however its performer died.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from rollbackd.core.archives import SCHEMA, ArchiveItem
from rollbackd.core.assess import heads_text
from rollbackd.core.checks import Finding, Outcome
from rollbackd.core.evidence import Measurement, ProbeRule, ProbeState, judge_probe
from rollbackd.core.planning.steps import (
    AwaitPerson,
    BackUp,
    BringBack,
    Confirm,
    CopyAhead,
    Downgrade,
    Drain,
    ProveBackup,
    RecoverLost,
    StartApplication,
    Step,
    StopApplication,
    ValidateApplication,
    ValidateBefore,
    ValidateDatabase,
)
from rollbackd.core.records import BackupRecord, Run, StateDocument, StepRecord
from rollbackd.core.rehearsal import Rehearsal, Way
from rollbackd.core.run import Observation, StepPhase
from rollbackd.core.schema import Schema, compare_schemas
from rollbackd.core.standing import Standing, where_it_stands
from rollbackd.errors import HeldError, PermanentError, RefusedError, TransientError
from rollbackd.ports import Clock, LogSink, ProgressSink, RestoredCopy, Store
from rollbackd.workflow.documenting import document_state
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.recovering import lost_label, recover

ROLLBACK_BACKUP = "rollback"
# Marks the findings of checks that are made again after the downgrade.
BEFORE = "before:"
Evidence = dict[str, object]
# Made again by whoever takes the run up, and cut when the engine stops: what only reads, what is undone when it is cut (a
# restore is one transaction), and a copy ahead, which is thrown away.
READING = (ValidateBefore, CopyAhead, ValidateDatabase, BringBack, ValidateApplication, Confirm, Drain)


@dataclass(frozen=True)
class StepContext:
    """Everything a step may need."""

    run: Run
    number: int
    guarded: Guarded
    store: Store
    clock: Clock
    log: LogSink
    progress: ProgressSink

    async def journal(self) -> list[StepRecord]:
        """The run's journal so far."""
        return await self.store.journal_of(self.run.id)


@dataclass(frozen=True)
class Observed:
    """What a look at the world says, and what it saw."""

    observation: Observation
    evidence: Evidence
    statement: str = ""


def only_reads(step: Step) -> bool:
    """Whether the world doesn't show that it happened, so that it is simply made again."""
    return isinstance(step, READING) or (isinstance(step, ProveBackup) and step.rehearses)


async def observe(step: Step, context: StepContext) -> Observed:
    """Look whether the step's effect is there."""
    match step:
        case BackUp():
            return await _observe_backup(context)
        case ProveBackup():
            return await _observe_proof(step, context)
        case StopApplication():
            return _seen(await context.guarded.application.is_stopped())
        case StartApplication():
            return _seen(await context.guarded.application.runs(step.version))
        case Drain():
            return await _observe_drained(step, context)
        case RecoverLost():
            return _seen(bool(await context.guarded.archives.entries(lost_label(context.run.id))))
        case Downgrade():
            return await _observe_downgrade(step, context)
        case AwaitPerson():
            return await _observe_person(step, context)
    return _seen(False)


async def perform(step: Step, context: StepContext) -> Evidence:
    """Bring the step's effect about; return the evidence.

    Raises:
        TransientError: trying again may help.
        PermanentError, RefusedError: it won't.
        HeldError: a person is needed.
    """
    match step:
        case ValidateBefore():
            return await _validate_before(step, context)
        case BackUp():
            return await _back_up(step, context)
        case ProveBackup():
            return await _prove(step, context)
        case StopApplication():
            await context.guarded.application.stop()
            return {"stopped": step.version}
        case RecoverLost():
            return await _recover_lost(step, context)
        case BringBack():
            return await _bring_back(context)
        case CopyAhead():
            return await _copy_ahead(step, context)
        case Drain():
            return await _drain(step, context)
        case Downgrade():
            return await _downgrade(step, context)
        case ValidateDatabase():
            return await _validate_database(step, context)
        case StartApplication():
            await context.guarded.application.start(step.version)
            return {"started": step.version}
        case ValidateApplication():
            return await _validate_application(step, context)
        case Confirm():
            return await _confirm(step, context)
        case AwaitPerson():
            raise HeldError(step.statement)


async def prepare_intent(step: Step, context: StepContext) -> Evidence:
    """What must be on record before a step is performed: for a downgrade, the schema right before it."""
    if not isinstance(step, Downgrade):
        return {}
    # What the application itself removed until it was stopped is no loss of ours: the counts from here on matter.
    counts = context.run.plan.stops_writes
    document = await document_state(context.guarded, context.store, context.clock, count=counts)
    evidence: Evidence = {"before_document": document.id, "counted": counts}
    watched = tuple(
        table
        for table in context.guarded.settings.policy.checksums
        if table not in context.run.plan.lossy_tables
    )
    # While something writes, keys come and go rightly.
    if watched and counts:
        evidence["checksums"] = await context.guarded.database.checksums(watched)
    return evidence


def can_be_undone(step: Step) -> bool:
    """Whether a step is taken back after a later one failed with nothing changed."""
    return isinstance(step, (StopApplication, CopyAhead))


async def undo(step: Step, context: StepContext) -> Evidence:
    """Take a step back: what was stopped is started again, what was copied ahead is thrown away.

    Raises:
        PermanentError: when it can't be, or isn't there afterwards.
    """
    if isinstance(step, CopyAhead):
        await context.guarded.archives.discard(context.run.id)
        return {"discarded": [item.table.text() for item in step.items]}
    assert isinstance(step, StopApplication), "nothing else can be undone"
    application = context.guarded.application
    if not application.can_start:
        raise PermanentError("the application was stopped, and no command is declared that starts it")
    if not step.version:
        raise PermanentError("the application was stopped, and nobody said which release of it ran")
    await application.start(step.version)
    if not await application.runs(step.version):
        raise PermanentError(f"{step.version} was started again and doesn't run")
    return {"started_again": step.version}


def backup_evidence(backup: BackupRecord) -> Evidence:
    """What a journal says of a backup."""
    return {
        "backup": backup.id,
        "location": backup.location,
        "level": backup.level,
        "size_bytes": backup.size_bytes,
        "rows": sum(count.rows for count in backup.counts),
    }


def findings_of(evidence: Evidence) -> dict[str, str]:
    """How each check that is on record here came out."""
    found = msgspec.convert(evidence.get("findings", ()), tuple[Finding, ...])
    return {finding.check: str(finding.outcome) for finding in found}


def findings_evidence(findings: tuple[Finding, ...]) -> Evidence:
    """What a journal says of checks."""
    return {"findings": msgspec.to_builtins(findings)}


def _seen(is_done: bool, evidence: Evidence | None = None) -> Observed:
    return Observed(Observation.DONE if is_done else Observation.NOT_DONE, evidence or {})


# -- before --------------------------------------------------------------------------------------------------------------


async def _validate_before(step: ValidateBefore, context: StepContext) -> Evidence:
    guarded, plan = context.guarded, context.run.plan
    heads = await guarded.database.heads()
    if set(heads) != set(step.from_heads):
        raise RefusedError(
            f"the database is at {heads_text(heads)}, the plan begins at {heads_text(step.from_heads)}: plan anew"
        )
    looks: list[Awaitable[tuple[Finding, ...]]] = []
    if plan.downgrades:
        await _load_planned_scripts(context)
        if not await guarded.database.wait_for_migration_lock(5):
            raise TransientError("another session migrates this database right now")
    if guarded.application.can_start:
        looks.append(guarded.application.readiness())
    if plan.downgrades:
        looks.append(guarded.database.findings_before())
        looks.append(_faults_before(guarded))
        if guarded.settings.backs_up:
            looks.append(guarded.backups.readiness())
    document, found = await asyncio.gather(
        document_state(guarded, context.store, context.clock), asyncio.gather(*looks)
    )
    findings = [finding for one in found for finding in one]
    if plan.downgrades and plan.fingerprint and document.fingerprint != plan.fingerprint:
        raise RefusedError("the schema has changed since the way back was planned and rehearsed: plan anew")
    failed = [finding for finding in findings if finding.outcome is Outcome.FAILED]
    if failed:
        raise RefusedError("; ".join(f"{finding.check}: {finding.text}" for finding in failed))
    return {
        "document": document.id,
        "heads": list(heads),
        "counts": msgspec.to_builtins(document.counts),
        **findings_evidence(tuple(findings)),
    }


async def _faults_before(guarded: Guarded) -> tuple[Finding, ...]:
    """What the checks of the data find already: named as warnings, and set aside when it is found again afterwards."""
    return tuple(
        msgspec.structs.replace(finding, check=f"{BEFORE}{finding.check}", outcome=Outcome.WARNED)
        for finding in await guarded.database.findings_after((), ())
        if finding.outcome is Outcome.FAILED
    )


# -- backup and preservation ----------------------------------------------------------------------------------------------


async def _back_up(step: BackUp, context: StepContext) -> Evidence:
    backups = context.guarded.backups
    horizon = context.clock.now() - timedelta(seconds=step.reuse_within_s)
    for known in await context.store.backups(context.guarded.name, 20):
        usable = known.removed_at is None and known.created_at >= horizon
        if step.reuse_within_s and usable and known.level >= 4 and await backups.is_whole(known):
            return {**backup_evidence(known), "reused": True}
    backup = await backups.take(
        context.run.id, ROLLBACK_BACKUP, timeout_s=step.timeout_s, on_progress=context.progress
    )
    await context.store.save_backup(backup)
    return backup_evidence(backup)


async def _observe_backup(context: StepContext) -> Observed:
    backup = await _backup_of(context)
    if backup is None:
        return _seen(False)
    await context.store.save_backup(backup)
    return _seen(await context.guarded.backups.is_whole(backup), backup_evidence(backup))


async def _observe_proof(step: ProveBackup, context: StepContext) -> Observed:
    """A proof with a rehearsal was made when the journal says so; a backup that was taken over was rehearsed by the plan."""
    backup = await _backup_of(context)
    evidence = backup_evidence(backup) if backup else {}
    proved = backup is not None and backup.level >= step.level
    taken_over = any(record.evidence.get("reused") for record in await context.journal())
    return _seen(proved and (taken_over or not step.rehearses), evidence)


async def _prove(step: ProveBackup, context: StepContext) -> Evidence:
    backup = await _backup_of(context)
    if backup is None:
        raise PermanentError("the backup of this run isn't there any more")
    rehearsed: list[Rehearsal] = []

    async def rehearse(copy: RestoredCopy) -> None:
        plan = context.run.plan
        way = Way(
            revisions=tuple(revision.id for revision in plan.revisions),
            from_heads=plan.from_heads,
            to_heads=plan.to_heads,
            kept_scripts=await _kept_scripts(context),
            archive=plan.archive,
        )
        rehearsed.append(await context.guarded.rehearsals.rehearse_on(copy, way))

    proved = await context.guarded.backups.prove(
        backup,
        level=step.level,
        timeout_s=step.timeout_s,
        on_progress=context.progress,
        on_restored=rehearse if step.rehearses else None,
    )
    await context.store.save_backup(proved)
    if proved.level < step.level:
        raise PermanentError(f"the backup reached L{proved.level}; the policy asks for L{step.level}")
    return {**backup_evidence(proved), **_last_rehearsal(rehearsed, context)}


def _last_rehearsal(rehearsed: list[Rehearsal], context: StepContext) -> Evidence:
    """What the downgrade did on the rows of this minute. What fails there would fail in earnest.

    Raises:
        RefusedError: when it failed; what couldn't be rehearsed at all was known when the plan was approved.
    """
    if not rehearsed:
        return {}
    last = rehearsed[0]
    if last.failure is not None:
        raise RefusedError(
            f"on the restored backup the downgrade of {last.failure.revision} fails: {last.failure.reason}. Nothing was"
            " changed; plan anew, and see what is in the way"
        )
    if not last.unknown and not last.passed:
        raise RefusedError(
            f"on the restored backup the downgrade ends at {heads_text(last.heads)} instead of"
            f" {heads_text(last.to_heads)}: nothing was changed"
        )
    if last.unknown and context.run.plan.rehearsed.passed:
        raise TransientError(f"the downgrade couldn't be rehearsed on the restored backup: {last.unknown}")
    return {"rehearsed": {"passed": last.passed, "unknown": last.unknown, "seconds": last.seconds}}


async def _backup_of(context: StepContext) -> BackupRecord | None:
    """The backup that this run's journal names, or that lies on disk for it."""
    names = [str(r.evidence["backup"]) for r in await context.journal() if "backup" in r.evidence]
    on_disk = await context.guarded.backups.find(context.run.id, ROLLBACK_BACKUP)
    if on_disk is not None:
        return on_disk
    known = {b.id: b for b in await context.store.backups(context.guarded.name, 100)}
    if names:
        return known.get(names[0])
    # By reference nothing lies on disk: the record was saved right after the command had answered.
    return next((b for b in known.values() if b.run == context.run.id and b.purpose == ROLLBACK_BACKUP), None)


# -- before the downgrade ---------------------------------------------------------------------------------------------------


async def _recover_lost(step: RecoverLost, context: StepContext) -> Evidence:
    await _load_planned_scripts(context)
    kept = await _kept_scripts(context)
    taken = await recover(
        context.guarded, context.store, step, kept_scripts=kept, label=lost_label(context.run.id)
    )
    if not any(taken.values()):
        raise RefusedError(
            "the migration, run again on the backup from before it, takes nothing away: there is nothing to bring back"
        )
    return {"taken_by_migration": taken}


async def _bring_back(context: StepContext) -> Evidence:
    report = await context.guarded.archives.restore(lost_label(context.run.id), dry_run=False)
    return {
        "restored": report.restored,
        "left": sum(entry.left for entry in report.entries),
        "entries": [entry.text() for entry in report.entries],
    }


async def _kept_scripts(context: StepContext) -> str:
    """Which scripts a rehearsal has to read to run the planned ones; empty for the live ones."""
    planned = context.run.plan.scripts_sha256
    live = (await context.guarded.worker.describe()).scripts_sha256 == planned
    return "" if live else planned


async def _copy_ahead(step: CopyAhead, context: StepContext) -> Evidence:
    """Made anew by whoever takes the run up: a copy whose maker died is thrown away, and so is its log of changes."""
    archives = context.guarded.archives
    await archives.discard(context.run.id)
    async with asyncio.timeout(step.timeout_s):
        copied = await archives.copy_ahead(context.run.id, step.items, context.progress)
    return {"copied": msgspec.to_builtins(copied)}


async def _copied(context: StepContext) -> tuple[ArchiveItem, ...]:
    """What was copied ahead, as the journal says, unless that was thrown away since."""
    found: tuple[ArchiveItem, ...] = ()
    for record in await context.journal():
        if "copied" in record.evidence and record.phase is StepPhase.DONE:
            found = msgspec.convert(record.evidence["copied"], tuple[ArchiveItem, ...])
    return found


async def _observe_drained(step: Drain, context: StepContext) -> Observed:
    left = await _undrained(step, context)
    return _seen(not left, {"sessions": list(left)})


async def _undrained(step: Drain, context: StepContext) -> tuple[str, ...]:
    """Sessions from before the old release was put back."""
    begun = [
        record.at
        for record in await context.journal()
        if record.phase is StepPhase.INTENT
        and isinstance(context.run.plan.steps[record.step], StartApplication)
    ]
    since = begun[0] if begun else context.run.created_at
    return await context.guarded.database.sessions(step.application, since)


async def _drain(step: Drain, context: StepContext) -> Evidence:
    # Before the engine cuts the step: only from here can it be said whose sessions they are.
    until = context.clock.now() + timedelta(seconds=max(step.timeout_s - 2, step.timeout_s / 2))
    while left := await _undrained(step, context):
        if context.clock.now() >= until:
            raise RefusedError(
                f"{len(left)} sessions of the replaced release are still there ({'; '.join(left[:3])}): nothing was"
                " downgraded. End what holds them, then ask for a rollback anew"
            )
        await asyncio.sleep(0.5)
    return {"sessions": []}


# -- downgrade ------------------------------------------------------------------------------------------------------------


async def _downgrade(step: Downgrade, context: StepContext) -> Evidence:
    guarded = context.guarded
    await _require_whole_backup(context)
    await _load_planned_scripts(context)
    await _require_stopped(context)
    result = await guarded.worker.downgrade(
        step.revisions,
        step.from_heads,
        step.to_heads,
        run=context.run.id,
        identity=await guarded.database.identity(),
        scripts_sha256=context.run.plan.scripts_sha256,
        archive=await _archive_of(step, context),
        timeout_s=step.timeout_s,
        on_log=context.log,
    )
    return {"worker": msgspec.to_builtins(result)}


async def _archive_of(step: Downgrade, context: StepContext) -> tuple[ArchiveItem, ...]:
    """What is kept before this step's revisions; what was copied ahead is only brought up to date under the lock."""
    copied = await _copied(context)
    ahead = {(item.revision, item.kind, item.table, item.column) for item in copied if item.copied}
    return tuple(
        msgspec.structs.replace(item, copied=(item.revision, item.kind, item.table, item.column) in ahead)
        for item in context.run.plan.archive
        if item.revision in step.revisions
    )


async def _load_planned_scripts(context: StepContext) -> None:
    """Have the worker read the very scripts that the plan was made from: live ones, or kept ones where those changed."""
    worker, planned = context.guarded.worker, context.run.plan.scripts_sha256
    worker.use_scripts("")
    try:
        if (await worker.describe()).scripts_sha256 == planned:
            return
    except RefusedError:
        # The live folder may be gone or broken by now; what was kept of it is what counts.
        pass
    try:
        worker.use_scripts(planned)
    except RefusedError:
        raise RefusedError(
            "the migration scripts changed since the plan was made, and the planned ones weren't kept: plan anew"
        ) from None
    if (await worker.describe()).scripts_sha256 != planned:
        raise RefusedError("the kept migration scripts aren't those of the plan: plan anew")


async def _require_stopped(context: StepContext) -> None:
    """New code is never left running on missing columns: what the plan stopped must still be stopped."""
    if context.run.plan.stops_writes and not await context.guarded.application.is_stopped():
        raise RefusedError(
            "the application runs again: hold whatever starts it by itself, then ask for a rollback anew"
        )


async def _require_whole_backup(context: StepContext) -> None:
    """No downgrade without the backup: its files are read once more right before."""
    if not any(isinstance(step, BackUp) for step in context.run.plan.steps):
        return
    backup = await _backup_of(context)
    # Read in full when it was proved; inside the application's stop that isn't done again for files that nobody touched.
    if backup is None or not await context.guarded.backups.is_whole(backup, anew=False):
        raise RefusedError(
            "the backup isn't whole any more: nothing was downgraded; look at the backup folder"
        )


async def _observe_downgrade(step: Downgrade, context: StepContext) -> Observed:
    """FROM, TO or NEITHER, once no session migrates any more."""
    guarded = context.guarded
    if not await guarded.database.wait_for_migration_lock(step.timeout_s):
        statement = (
            f"a session still migrates the database, after {step.timeout_s:g} s; look at pg_stat_activity"
        )
        return Observed(Observation.UNKNOWABLE, {}, statement)
    intents = [
        record
        for record in await context.journal()
        if record.step == context.number
        and record.phase is StepPhase.INTENT
        and "before_document" in record.evidence
    ]
    heads = await guarded.database.heads()
    if not intents:
        # Nothing was begun. The database must be at FROM; its schema is documented with the intent.
        if set(heads) == set(step.from_heads):
            return _seen(False)
        return _unknowable(
            f"the database is at {heads_text(heads)}; this step was to begin at {heads_text(step.from_heads)}",
            heads,
        )
    before = await context.store.document(str(intents[-1].evidence["before_document"]))
    schema = await guarded.database.schema()
    difference = compare_schemas(before.schema, schema) if before is not None else None
    found = where_it_stands(
        heads, step.from_heads, step.to_heads, difference, expects_change=step.changes_schema
    )
    evidence: Evidence = {
        "heads": list(heads),
        "standing": found.standing,
        "fingerprint": schema.fingerprint(),
    }
    if difference is not None:
        evidence["schema_difference"] = difference.lines()
    if found.standing is Standing.TO:
        return Observed(Observation.DONE, evidence)
    if found.standing is Standing.FROM and not (step.alone_because and step.changes_data):
        return Observed(Observation.NOT_DONE, evidence)
    said = found.statement
    if await stamp_is_lost(step, context, heads, schema):
        return Observed(
            Observation.UNKNOWABLE,
            {**evidence, "stamp_is_lost": True},
            f"the stamp is still {heads_text(heads)}, and the schema is exactly the one that the rehearsal of"
            f" {heads_text(step.to_heads)} led to: the stamp is lost, the changes are not. Nothing will be tried again. If you"
            f" agree, 'rollbackd resume {context.run.id} --stamp' moves the stamp alone, guarded by the same comparison;"
            " or settle it by hand, then 'rollbackd resume', or 'rollbackd abandon'",
        )
    between = _intermediate(step, context, heads)
    if between:
        said = (
            f"the version table says {heads_text(heads)}: of {', '.join(step.revisions)}, {', '.join(between)} came off and"
            f" the rest didn't. To go on from here, abandon this run and ask for a rollback to {heads_text(step.to_heads)} anew"
        )
    if found.standing is Standing.FROM:
        said = (
            f"the stamp and the schema are still those of {heads_text(step.from_heads)}, but the downgrade changes rows and"
            f" couldn't do so in one transaction ({step.alone_because}): whether it did can't be seen"
        )
    return Observed(Observation.UNKNOWABLE, evidence, _neither_statement(said, context))


async def stamp_is_lost(
    step: Downgrade, context: StepContext, heads: tuple[str, ...], schema: Schema
) -> bool:
    """Whether the changes of the last downgrade are all there, as rehearsed, and the stamp alone didn't move."""
    plan = context.run.plan
    if set(heads) != set(step.from_heads) or set(step.to_heads) != set(plan.to_heads):
        return False
    expected = await context.store.document(plan.rehearsed.expected_document)
    if expected is None:
        return False
    found = schema if plan.rehearsed.keeps_owners else schema.without_owners()
    before = await _documented_before(step, context)
    unchanged = before is not None and compare_schemas(before.schema, schema).is_empty()
    return not unchanged and compare_schemas(expected.schema, found).is_empty()


async def move_stamp(step: Downgrade, context: StepContext) -> Evidence:
    """Move the stamp alone, for a downgrade whose changes are all there.

    Raises:
        RefusedError: when the schema isn't exactly the one that the rehearsal led to.
    """
    guarded = context.guarded
    heads = await guarded.database.heads()
    if not await stamp_is_lost(step, context, heads, await guarded.database.schema()):
        raise RefusedError(
            f"the stamp isn't moved: the database is at {heads_text(heads)}, and its schema isn't exactly the one that the"
            f" rehearsal of {heads_text(step.to_heads)} led to"
        )
    await _load_planned_scripts(context)
    await guarded.worker.stamp(
        step.revisions,
        step.from_heads,
        step.to_heads,
        run=context.run.id,
        identity=await guarded.database.identity(),
    )
    return {"stamped": list(step.to_heads)}


async def _documented_before(step: Downgrade, context: StepContext) -> StateDocument | None:
    for record in reversed(await context.journal()):
        if record.step == context.number and "before_document" in record.evidence:
            return await context.store.document(str(record.evidence["before_document"]))
    return None


def _intermediate(step: Downgrade, context: StepContext, heads: tuple[str, ...]) -> tuple[str, ...]:
    """The revisions of the step that are off already, where the stamp lies on one between; empty where it doesn't."""
    if len(step.revisions) < 2 or len(heads) != 1 or heads[0] not in step.revisions:
        return ()
    position = step.revisions.index(heads[0])
    return step.revisions[:position] if position else ()


def _unknowable(statement: str, heads: tuple[str, ...]) -> Observed:
    return Observed(Observation.UNKNOWABLE, {"heads": list(heads)}, statement)


def _neither_statement(found: str, context: StepContext) -> str:
    return (
        f"{found}. Nothing will be tried again. Look at 'rollbackd report {context.run.id}' for the statements that ran and"
        " the backup; bring the database to one side by hand, then 'rollbackd resume', or 'rollbackd abandon'"
    )


async def _observe_person(step: AwaitPerson, context: StepContext) -> Observed:
    guarded = context.guarded
    heads = await guarded.database.heads()
    if step.to_heads and set(heads) == set(step.to_heads):
        return Observed(Observation.DONE, {"heads": list(heads), "standing": Standing.TO})
    deployment = await context.store.deployment(context.run.deployment)
    before = await context.store.document(deployment.before_document) if deployment is not None else None
    if set(heads) == set(step.from_heads) and before is not None:
        difference = compare_schemas(before.schema, await guarded.database.schema())
        if difference.is_empty():
            return Observed(Observation.DONE, {"heads": list(heads), "standing": Standing.FROM})
        still = f"the stamp is {heads_text(heads)}, and the schema still differs: {difference.summary()}"
        return Observed(
            Observation.UNKNOWABLE, {"schema_difference": difference.lines()}, f"{step.statement} ({still})"
        )
    return Observed(Observation.UNKNOWABLE, {"heads": list(heads)}, step.statement)


# -- afterwards -----------------------------------------------------------------------------------------------------------


async def _validate_database(step: ValidateDatabase, context: StepContext) -> Evidence:
    guarded = context.guarded
    await guarded.archives.finish(context.run.id)
    heads = await guarded.database.heads()
    before = await _document_before(context)
    schema = await guarded.database.schema()
    findings = [
        Finding(
            check="revision",
            outcome=Outcome.PASSED if set(heads) == set(step.to_heads) else Outcome.FAILED,
            text=f"the version table says {heads_text(heads)}; planned was {heads_text(step.to_heads)}",
        ),
        *await _rehearsed_finding(schema, context),
        await _schema_finding(schema, step.to_heads, context),
        await _archive_finding(context),
        *await _data_findings(before, context),
        *await guarded.database.own_checks(),
    ]
    after = await document_state(guarded, context.store, context.clock)
    evidence = {
        "document": after.id,
        "counts": msgspec.to_builtins(after.counts),
        **findings_evidence(tuple(findings)),
    }
    failed = [finding for finding in findings if finding.outcome is Outcome.FAILED]
    if failed:
        text = "; ".join(f"{finding.check}: {finding.text}" for finding in failed)
        raise HeldError(f"the downgrade was done, and what is there now doesn't pass: {text}", evidence)
    return evidence


async def _data_findings(before: StateDocument | None, context: StepContext) -> tuple[Finding, ...]:
    """The checks of the data; a fault that was there before the downgrade isn't its doing, and no reason to hold."""
    known: dict[str, set[str]] = {}
    for record in await context.journal():
        if record.step == 0 and record.phase is StepPhase.DONE:
            for old in msgspec.convert(record.evidence.get("findings", ()), tuple[Finding, ...]):
                known[old.check] = {_subject(detail) for detail in old.details}
    counts = before.counts if before else ()
    plan = context.run.plan
    found = (
        *await context.guarded.database.findings_after(plan.lossy_tables, counts, plan.renamed),
        *await _checksum_findings(context),
    )
    return tuple(
        msgspec.structs.replace(
            finding, outcome=Outcome.WARNED, text=f"{finding.text}, as before the downgrade"
        )
        if finding.outcome is Outcome.FAILED
        and finding.details
        and {_subject(detail) for detail in finding.details} <= known.get(f"{BEFORE}{finding.check}", set())
        else finding
        for finding in found
    )


async def _checksum_findings(context: StepContext) -> tuple[Finding, ...]:
    """Tables whose keys the policy wants compared: outside the plan nothing may come or go inside the stop."""
    before: dict[str, str] = {}
    for record in await context.journal():
        before = before or msgspec.convert(record.evidence.get("checksums", {}), dict[str, str])
    if not before:
        return ()
    now = await context.guarded.database.checksums(tuple(before))
    different = tuple(table for table in before if now[table] != before[table])
    if different:
        text = f"{len(different)} tables outside the plan have other keys than right before the downgrade"
        return (Finding(check="checksums", outcome=Outcome.FAILED, text=text, details=different),)
    text = f"{len(before)} tables have the keys that they had right before the downgrade"
    return (Finding(check="checksums", outcome=Outcome.PASSED, text=text),)


def _subject(detail: str) -> str:
    """What a detail is about: a sequence that stands still while its table grows is the same fault."""
    return detail.partition(" stands at ")[0]


async def _document_before(context: StepContext) -> StateDocument | None:
    """The state right before the first downgrade, counted once nothing wrote any more; else that of the look before."""
    journal = await context.journal()
    for record in journal:
        if record.evidence.get("counted"):
            return await context.store.document(str(record.evidence["before_document"]))
    for record in journal:
        if "counts" in record.evidence and record.step == 0 and record.phase is StepPhase.DONE:
            return await context.store.document(str(record.evidence["document"]))
    return None


async def _rehearsed_finding(schema: Schema, context: StepContext) -> tuple[Finding, ...]:
    """What is expected is what the rehearsal led to; anything else is a failure."""
    rehearsed = context.run.plan.rehearsed
    expected = await context.store.document(rehearsed.expected_document)
    if expected is None:
        return ()
    found = schema if rehearsed.keeps_owners else schema.without_owners()
    difference = compare_schemas(expected.schema, found)
    if difference.is_empty():
        text = "equal to the one that the rehearsal led to"
        return (Finding(check="rehearsed_schema", outcome=Outcome.PASSED, text=text),)
    text = f"differs from the one that the rehearsal led to: {difference.summary()}"
    details = tuple(difference.lines()[:50])
    return (Finding(check="rehearsed_schema", outcome=Outcome.FAILED, text=text, details=details),)


async def _archive_finding(context: StepContext) -> Finding:
    """What was kept, as the archive itself says."""
    entries = await context.guarded.archives.entries(context.run.id)
    if not context.run.plan.archive:
        return Finding(check="archive", outcome=Outcome.PASSED, text="nothing had to be kept")
    rows = sum(entry.rows for entry in entries)
    lines = tuple(
        f"{entry.kind} {entry.table.text()}{f'.{entry.column}' if entry.column else ''}: {entry.rows:,} in {SCHEMA}.{entry.archive}"
        for entry in entries
    )
    text = (
        f"{rows:,} rows and values are kept, in {len(entries)} archives"
        if entries
        else "there was nothing to keep"
    )
    return Finding(check="archive", outcome=Outcome.PASSED, text=text, details=lines)


async def _schema_finding(schema: Schema, to_heads: tuple[str, ...], context: StepContext) -> Finding:
    """Compare with the schema that was documented when the database last stood there; drift is a warning, and named."""
    deployment = await context.store.deployment(context.run.deployment) if context.run.deployment else None
    documented = await context.store.document(deployment.before_document) if deployment is not None else None
    if documented is None or set(documented.heads) != set(to_heads):
        text = f"no schema is documented for {heads_text(to_heads)}, so there is nothing to compare with"
        return Finding(check="schema", outcome=Outcome.UNKNOWN, text=text)
    difference = compare_schemas(documented.schema, schema)
    if difference.is_empty():
        return Finding(
            check="schema",
            outcome=Outcome.PASSED,
            text=f"equal to the one documented at {documented.taken_at:%F %T} UTC",
        )
    text = f"differs from the one documented at {documented.taken_at:%F %T} UTC: {difference.summary()}"
    return Finding(check="schema", outcome=Outcome.WARNED, text=text, details=tuple(difference.lines()[:50]))


async def _validate_application(step: ValidateApplication, context: StepContext) -> Evidence:
    """Ask every probe until each has its streak of good answers; the step's timeout bounds it."""
    guarded, clock = context.guarded, context.clock
    probes = guarded.settings.probes
    readings: dict[str, list[Measurement]] = {probe.name: [] for probe in probes}
    while True:
        for probe in probes:
            readings[probe.name].append(await guarded.prober.measure(probe, clock.now()))
        states = {}
        for probe in probes:
            rule = ProbeRule(
                name=probe.name, failures=probe.failures, successes=probe.successes, stale_after_s=3600
            )
            states[probe.name] = judge_probe(rule, readings[probe.name], clock.now())
        if all(state is ProbeState.HEALTHY for state in states.values()):
            findings = tuple(
                Finding(check=f"probe:{name}", outcome=Outcome.PASSED, text=readings[name][-1].detail)
                for name in readings
            )
            return findings_evidence(findings)
        last = ", ".join(f"{name} {r[-1].detail}" for name, r in readings.items())
        await context.log(f"-- probes: {last}")
        await asyncio.sleep(min(1.0, *(float(probe.interval) for probe in probes)))


async def _confirm(step: Confirm, context: StepContext) -> Evidence:
    until = context.clock.now() + timedelta(seconds=step.for_s)
    looks = 0
    while True:
        heads = await context.guarded.database.heads()
        looks += 1
        if set(heads) != set(step.heads):
            raise HeldError(
                f"something migrated behind us: the version table says {heads_text(heads)}, it was at"
                f" {heads_text(step.heads)}; hold whatever migrates by itself, then abandon this run and ask for a rollback anew"
            )
        if context.clock.now() >= until:
            return {"heads": list(heads), "looks": looks}
        await asyncio.sleep(min(1.0, step.for_s))
