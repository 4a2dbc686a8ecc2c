"""Putting a run's report together out of the store."""

from collections.abc import Callable, Mapping

import msgspec

from rollbackd.core.archives import SCHEMA, ArchiveEntry
from rollbackd.core.assess import heads_text
from rollbackd.core.checks import Finding
from rollbackd.core.course import StepCourse, course_of
from rollbackd.core.evidence import Measurement, Signal
from rollbackd.core.matrix import Action
from rollbackd.core.planning.plan import Plan, WayBack
from rollbackd.core.planning.steps import RecoverLost
from rollbackd.core.records import (
    BackupRecord,
    Deployment,
    LogLine,
    Run,
    StepRecord,
    StoredDecision,
    TableCount,
)
from rollbackd.core.report import (
    NextStep,
    Report,
    ReportArchive,
    ReportBackup,
    ReportRehearsal,
    ReportRevision,
    ReportStep,
)
from rollbackd.core.run import RunState, StepPhase
from rollbackd.core.timeline import Evidence, timeline_of
from rollbackd.errors import NotFoundError, RollbackdError
from rollbackd.ports import Clock, Store
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.recovering import GATE_BACKUP, lost_label

LOG_LINES = 500
MEASUREMENTS = 500
SIGNALS = 100
# What a browser is to let the page do (Content-Security-Policy), wherever it is served.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
)
DrawPage = Callable[[Report], str]
NOBODY_STOPPED = "nothing had to be stopped"


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """What a report says that the store alone knows: cheap enough to be looked at every second."""

    steps: tuple[ReportStep, ...]
    backups: tuple[BackupRecord, ...]
    rehearsal: ReportRehearsal


class Reporting:
    """Writes reports. Works on a store that is open for reading only."""

    def __init__(
        self, store: Store, clock: Clock, guarded: Mapping[str, Guarded], draw_page: DrawPage
    ) -> None:
        self._draw_page = draw_page
        self._store = store
        self._clock = clock
        self._guarded = guarded

    async def report(self, run_id: str) -> Report:
        """The report of one run as it stands now.

        Raises:
            NotFoundError: when there is no such run.
        """
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}; 'rollbackd history' lists them")
        guarded = self._guarded.get(run.target)
        journal = await self._store.journal_of(run_id)
        decision = await self._store.decision(run.decision) if run.decision else None
        approvals = await self._store.approvals(run_id)
        log = await self._store.log_of(run_id)
        backups = await self._backups(run, journal)
        archives, script, unreadable = await self._archives(run, guarded)
        deployment = await self._store.deployment(run.deployment) if run.deployment else None
        price = deployment.price if deployment is not None else None
        timeline = timeline_of(
            Evidence(
                run=run,
                journal=tuple(journal),
                approvals=tuple(approvals),
                deployment=deployment,
                decision=decision,
                signals=await self._signals(deployment, guarded),
                measurements=await self._measurements(run, deployment),
            )
        )
        return Report(
            run=run.id,
            target=run.target,
            service=guarded.settings.service if guarded else "",
            environment=guarded.settings.environment if guarded else "",
            status=str(run.state),
            statement=run.statement,
            written_at=self._clock.now(),
            date=run.started_at or run.created_at,
            reason=run.reason,
            executed_by=f"{run.requested_by} ({run.trigger})",
            approved_by=tuple(a.actor for a in approvals if a.granted),
            writes_stopped_by=run.writes_stopped_by or ("" if run.plan.stops_writes else NOBODY_STOPPED),
            incident=run.incident,
            method=str(run.plan.way_back),
            from_heads=run.plan.from_heads,
            to_heads=run.plan.to_heads,
            release_from=run.plan.release_from,
            release_to=run.plan.release_to,
            revisions=tuple(
                ReportRevision(
                    id=r.id,
                    title=r.title,
                    effects=tuple(e.text() for e in r.effects),
                    statements=r.statements,
                    unread=r.unread,
                    verdict=str(r.verdict),
                    why=r.why,
                )
                for r in run.plan.revisions
            ),
            counts_before=_counts(journal, last=False),
            counts_after=_counts(journal, last=True),
            backups=tuple(_report_backup(backup, guarded) for backup in backups),
            steps=tuple(_report_step(step) for step in course_of(run.plan, journal)),
            log=_statements(log),
            findings=_findings(journal),
            loses=run.plan.loses,
            rehearsal=_rehearsal(run.plan),
            archives=archives,
            archives_unreadable=unreadable,
            restore_script=script,
            price=price.text() if price is not None else "",
            decision=_decision(decision),
            next_steps=_next_steps(run, decision, _done_kinds(run, journal)),
            timeline=timeline,
            investigations=tuple(await self._store.investigations(run.deployment)) if run.deployment else (),
        )

    async def page(self, run_id: str) -> str:
        """The report as one HTML page; raises as `report` does."""
        return self._draw_page(await self.report(run_id))

    async def outline(self, run: Run) -> Outline:
        """How far the run has come, what was proved, and what its rehearsal said."""
        journal = await self._store.journal_of(run.id)
        return Outline(
            steps=tuple(_report_step(step) for step in course_of(run.plan, journal)),
            backups=tuple(await self._backups(run, journal)),
            rehearsal=_rehearsal(run.plan),
        )

    async def _signals(self, deployment: Deployment | None, guarded: Guarded | None) -> tuple[Signal, ...]:
        if deployment is None or guarded is None:
            return ()
        settings = guarded.settings
        found = await self._store.signals(settings.service, settings.environment, deployment.started_at)
        return tuple(sorted(found, key=lambda signal: signal.started_at)[:SIGNALS])

    async def _measurements(self, run: Run, deployment: Deployment | None) -> tuple[Measurement, ...]:
        """Those until the run was over: later ones are of another release."""
        if deployment is None:
            return ()
        return tuple(await self._store.measurements(deployment.id, MEASUREMENTS, run.finished_at))

    async def _archives(
        self, run: Run, guarded: Guarded | None
    ) -> tuple[tuple[ReportArchive, ...], str, str]:
        """What the guarded database keeps of this run, the SQL that brings it back, and why neither could be read."""
        recovers = any(isinstance(step, RecoverLost) for step in run.plan.steps)
        if guarded is None or not (run.plan.archive or recovers):
            return (), "", ""
        entries: tuple[ArchiveEntry, ...] = ()
        scripts: list[str] = []
        try:
            for label in (run.id, lost_label(run.id)):
                found_here = await guarded.archives.entries(label)
                if found_here:
                    scripts.append(await guarded.archives.restore_script(label))
                entries += found_here
            script = "\n".join(scripts)
        except RollbackdError as error:
            return (), "", str(error)
        found = tuple(
            ReportArchive(
                kind=str(entry.kind),
                table=entry.table.text(),
                column=entry.column,
                place=f"{SCHEMA}.{entry.archive}",
                rows=entry.rows,
                revision=entry.revision,
                restored_at=entry.restored_at,
            )
            for entry in entries
        )
        return found, script, ""

    async def _backups(self, run: Run, journal: list[StepRecord]) -> list[BackupRecord]:
        named = {str(r.evidence["backup"]) for r in journal if "backup" in r.evidence}
        known = await self._store.backups(run.target, 1000)
        ours = [b for b in known if b.id in named or b.run == run.id]
        # What the upgrade itself destroyed is in no backup of this run: only in one that was taken before it.
        before = [
            b
            for b in known
            if b.purpose == GATE_BACKUP
            and set(b.heads) == set(run.plan.to_heads)
            and b.created_at < run.created_at
        ]
        ours += [b for b in before[:1] if b not in ours]
        return sorted(ours, key=lambda b: b.created_at)


def _rehearsal(plan: Plan) -> ReportRehearsal:
    """The plan's rehearsal in a sentence."""
    rehearsed = plan.rehearsed
    if rehearsed.passed:
        rows = {"schema": "a copy of the schema", "sample": f"a copy with {rehearsed.rows:,} sampled rows"}
        text = f"Rehearsed on {rows.get(rehearsed.depth, 'a copy with every row')} in {rehearsed.seconds:.1f} s: it passed."
    elif rehearsed.failure:
        text = f"It failed when it was rehearsed: {rehearsed.failure}"
    else:
        text = f"Not rehearsed: {rehearsed.unknown or 'nothing asked for it'}"
    return ReportRehearsal(
        depth=rehearsed.depth, passed=rehearsed.passed, text=text, difference=rehearsed.difference
    )


def _statements(log: list[LogLine]) -> tuple[str, ...]:
    """What the migrations ran: from the first downgrade on, without what Alembic looked up before and our probes' words."""
    texts = [line.text for line in log if not line.text.startswith("-- probes")]
    first = next((i for i, text in enumerate(texts) if text.startswith("-- downgrade")), len(texts))
    return tuple(texts[first:][:LOG_LINES])


def _report_backup(backup: BackupRecord, guarded: Guarded | None) -> ReportBackup:
    return ReportBackup(
        id=backup.id,
        purpose=backup.purpose,
        location=backup.location,
        level=backup.level,
        size_bytes=backup.size_bytes,
        rows=sum(count.rows for count in backup.counts),
        commands=tuple(guarded.backups.restore_commands(backup)) if guarded else (),
    )


def _report_step(course: StepCourse) -> ReportStep:
    return ReportStep(
        number=course.number,
        text=course.text,
        kind=course.kind,
        outcome=course.stands.replace("_", " "),
        began_at=course.began_at,
        ended_at=course.ended_at,
        attempts=course.attempts,
        note=course.note,
    )


def _counts(journal: list[StepRecord], *, last: bool) -> tuple[TableCount, ...]:
    counted = [r for r in journal if "counts" in r.evidence]
    if not counted or (last and len(counted) < 2):
        return ()
    return msgspec.convert(counted[-1 if last else 0].evidence["counts"], tuple[TableCount, ...])


def _findings(journal: list[StepRecord]) -> tuple[Finding, ...]:
    """The latest word of every check, in the order in which they were first made."""
    found: dict[tuple[int, str], Finding] = {}
    for record in journal:
        for finding in msgspec.convert(record.evidence.get("findings", []), list[Finding]):
            found[record.step, finding.check] = finding
    return tuple(found.values())


def _decision(stored: StoredDecision | None) -> dict[str, str]:
    if stored is None:
        return {}
    decision = stored.decision
    aside = {"set aside": "; ".join(decision.set_aside)} if decision.set_aside else {}
    return {"row": decision.row, "why": decision.why, **decision.reasons, **aside}


def _done_kinds(run: Run, journal: list[StepRecord]) -> set[str]:
    """The kinds of which every planned step was done: what may be ticked."""
    last = {record.step: record.phase for record in journal}
    kinds = {step.kind for step in run.plan.steps}
    undone = {step.kind for n, step in enumerate(run.plan.steps) if last.get(n) is not StepPhase.DONE}
    return kinds - undone


def _next_steps(run: Run, stored: StoredDecision | None, done: set[str]) -> tuple[NextStep, ...]:
    steps: list[NextStep] = []
    succeeded = run.state is RunState.SUCCEEDED
    if run.plan.way_back in (WayBack.STOP_WRITES, WayBack.RELEASE_FIRST):
        steps.append(
            NextStep(text=f"Bring the database to {heads_text(run.plan.to_heads)}", done="downgrade" in done)
        )
    if run.plan.way_back is WayBack.REDEPLOY_ONLY:
        steps.append(
            NextStep(text="Nothing to downgrade: the database is where the old release left it", done=True)
        )
    if run.plan.way_back is WayBack.LEAVE_SCHEMA:
        steps.append(NextStep(text="Nothing to downgrade: the old release works on this schema", done=True))
    if run.plan.release_to:
        started = "start_application" in done
        by_hand = "" if started or any(s.kind == "start_application" for s in run.plan.steps) else " by hand"
        steps.append(NextStep(text=f"Put release {run.plan.release_to} back{by_hand}", done=started))
    if run.state is RunState.HELD:
        steps.append(NextStep(text=f"Settle the hold: {run.statement}", done=False))
        steps.append(
            NextStep(text=f"Then: rollbackd resume {run.id}, or rollbackd abandon {run.id}", done=False)
        )
    if run.state is RunState.AWAITING_APPROVAL:
        steps.append(NextStep(text=f"Approve or deny: rollbackd approve {run.id}", done=False))
    if run.state is RunState.FAILED:
        steps.append(NextStep(text=f"Mend what stopped it: {run.statement}", done=False))
    if stored is not None:
        steps += [NextStep(text=text, done=False) for text in stored.decision.next_steps]
        if (
            stored.decision.action in (Action.ROLL_BACK, Action.ROLL_BACK_WITH_DEPLOYMENT)
            and not stored.decision.next_steps
        ):
            steps.append(NextStep(text="Fix the migration and deploy again", done=False))
    elif run.plan.revisions:
        steps.append(NextStep(text="Fix the migration and deploy again", done=False))
    if run.plan.loses and succeeded:
        steps.append(
            NextStep(
                text=f"Once the fixed migration is in, bring back what the downgrade took away: rollbackd restore {run.id}",
                done=False,
            )
        )
    if run.incident:
        steps.append(NextStep(text=f"Close incident {run.incident}", done=False))
    return tuple(steps)
