"""What people and CD systems ask for by hand: plan, roll back, approve, deny, resume, abandon, pause, the deploy gate."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import msgspec

from rollbackd.core.archives import ArchiveEntry
from rollbackd.core.assess import heads_text
from rollbackd.core.events import Event
from rollbackd.core.gates import GateFinding, Pause
from rollbackd.core.planning.plan import Plan
from rollbackd.core.records import BackupRecord, Deployment, Run
from rollbackd.core.rehearsal import Depth
from rollbackd.core.restoring.reports import RestoreReport
from rollbackd.core.run import UNFINISHED
from rollbackd.core.verification import FAILING, Fault, Verified
from rollbackd.errors import NotFoundError, RefusedError, RollbackdError, TransientError
from rollbackd.ports import Clock, Progress, Store
from rollbackd.workflow import permitting
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.planning import Planner
from rollbackd.workflow.recovering import GATE_BACKUP, lost_label
from rollbackd.workflow.rehearsing import Rehearsed
from rollbackd.workflow.retention import prune_archives, prune_backups
from rollbackd.workflow.runs import AUTOMATIC, MANUAL, Runs
from rollbackd.workflow.steps import backup_evidence
from rollbackd.workflow.targets import Targets

EVERYTHING = "*"
ROLLED_BACK = "rolled_back"


class Watches(Protocol):
    """The part of the pipeline that the gate needs."""

    async def find_or_begin(self, event: Event, guarded: Guarded) -> Deployment: ...
    async def prepared(self, deployment_id: str) -> None: ...


class GateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """May this deploy start? With `go` the state is documented and the backup proved.

    `verdict` is go, warn (go, and read the reasons) or stop. `migrations` are the revisions that are about to go on, each
    tried on a copy: up, down, up again.
    """

    go: bool
    reasons: tuple[str, ...]
    deployment: str = ""
    heads: tuple[str, ...] = ()
    backup: dict[str, object] = {}
    verdict: str = "stop"
    migrations: tuple[Verified, ...] = ()


class PendingMigrations(msgspec.Struct, frozen=True, kw_only=True):
    """What trying the revisions that are about to go on found, and whether the policy stops the deploy for it."""

    migrations: tuple[Verified, ...] = ()
    reasons: tuple[str, ...] = ()
    stops: bool = False


class Operations:
    """Each method is one thing that can be asked for; the command line and the API call the same ones."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        guarded: Targets,
        planners: Mapping[str, Planner],
        runs: Runs,
        happenings: Happenings,
    ) -> None:
        self._store = store
        self._clock = clock
        self._guarded = guarded
        self._planners = planners
        self._runs = runs
        self._happenings = happenings
        self._gates: dict[str, asyncio.Lock] = {}

    async def plan(self, target: str, *, to: str, release: str = "") -> tuple[Plan, tuple[GateFinding, ...]]:
        """Plan without doing anything, and say what the gates would answer to a person."""
        with self._using(target) as guarded:
            plan = await self._plan(guarded, to, release, fresh=True)
            gates = await permitting.judge(
                plan, guarded, self._store, self._clock, by_person=True, incident=""
            )
            return plan, gates

    async def roll_back(  # noqa: PLR0913 - what is asked for, each by its name
        self,
        target: str,
        *,
        to: str,
        reason: str,
        requested_by: str,
        incident: str = "",
        release: str = "",
        plan_sha256: str = "",
        by_person: bool = True,
    ) -> Run:
        """Ask for a rollback. With `plan_sha256` it must come out as the very plan that was shown.

        What isn't asked for `by_person` passes the gates of automation: mode, pause, once, cool-down, breaker.
        """
        with self._using(target) as guarded:
            if not reason.strip():
                raise RefusedError("a reason is needed: it stands in the report")
            plan = await self._plan(guarded, to, release)
            if plan_sha256 and plan.sha256() != plan_sha256:
                raise RefusedError("the plan has changed since it was shown: look at it again")
            given = await self._runs.incident_for(guarded, incident, reason, requested_by)
            gates = await permitting.judge(
                plan, guarded, self._store, self._clock, by_person=by_person, incident=given
            )
            deployment = await self._last_deployment(guarded)
            return await self._runs.ask_for(
                plan,
                gates,
                trigger=MANUAL if by_person else AUTOMATIC,
                requested_by=requested_by,
                reason=reason,
                incident=given,
                deployment=deployment.id if deployment is not None else "",
            )

    def progress(self, run: str) -> Progress | None:
        """How far the step under way has come, where it says so."""
        return self._runs.progress(run)

    async def approve(self, run: str, actor: str, *, plan_sha256: str = "", reason: str = "") -> Run:
        """Say yes to a run that awaits approval."""
        return await self._runs.approve(run, actor, plan_sha256=plan_sha256, reason=reason)

    async def deny(self, run: str, actor: str, *, reason: str = "") -> Run:
        """Say no to a run that awaits approval."""
        return await self._runs.deny(run, actor, reason=reason)

    async def resume(self, run: str, actor: str, *, stamp: bool = False) -> Run:
        """Go on with a held run; with `stamp`, move a stamp that was lost first."""
        return await self._runs.resume(run, actor, stamp=stamp)

    async def abandon(self, run: str, actor: str, *, reason: str = "") -> Run:
        """Let a held run go."""
        return await self._runs.abandon(run, actor, reason=reason)

    async def pause(self, target: str, who: str, why: str, for_s: float | None) -> Pause:
        """Stop all automation of a target, or of all with `*`."""
        if target != EVERYTHING:
            self._require(target)
        if not why.strip():
            raise RefusedError("a reason is needed: people will ask why nothing happened")
        now = self._clock.now()
        until = now + timedelta(seconds=for_s) if for_s else None
        pause = Pause(target=target, who=who, why=why, since=now, until=until)
        await self._store.save_pause(pause)
        self._happenings.tell("automation_paused", target=target, who=who, why=why)
        return pause

    async def unpause(self, target: str, who: str) -> bool:
        """Let automation go on; False when nothing was paused."""
        lifted = await self._store.lift_pause(target)
        if lifted:
            self._happenings.tell("automation_unpaused", target=target, who=who)
        return lifted

    async def restore(self, run_id: str, actor: str, *, dry_run: bool, lost: bool = False) -> RestoreReport:
        """Bring back what a run archived; with `lost`, what the migration itself had taken away and the run recovered.

        With `dry_run` only say what that would do.
        """
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}; 'rollbackd history' lists them")
        if run.state in UNFINISHED:
            raise RefusedError(f"{run_id} is {run.state}: settle it before anything is brought back")
        with self._using(run.target) as guarded:
            if not await guarded.database.wait_for_migration_lock(5):
                raise TransientError(
                    f"a session migrates {run.target} right now: bring the data back when it is done"
                )
            label = lost_label(run_id) if lost else run_id
            report = await guarded.archives.restore(label, dry_run=dry_run)
            if not dry_run:
                self._happenings.tell(
                    "data_restored",
                    run=run_id,
                    target=run.target,
                    environment=guarded.settings.environment,
                    actor=actor,
                    restored=report.restored,
                    left=sum(entry.left for entry in report.entries),
                )
            return report

    async def archives(self, target: str, run: str = "") -> tuple[ArchiveEntry, ...]:
        """What a target's archives hold."""
        with self._using(target) as guarded:
            return await guarded.archives.entries(run or None)

    async def prune_archives(self) -> dict[str, tuple[ArchiveEntry, ...]]:
        """Drop the archives that the targets' retention no longer keeps; what was dropped, by target."""
        return await prune_archives(self._store, self._clock, self._guarded)

    async def prune_backups(self) -> list[BackupRecord]:
        """Remove what the retention no longer keeps."""
        removed = await prune_backups(self._store, self._guarded)
        self._happenings.tell("backups_pruned", removed=len(removed))
        return removed

    async def gate(self, target: str, event: Event, watches: Watches) -> GateAnswer:
        """May this deploy start? Waits until the state is documented and, where a backup is configured, proved.

        A second call for the same target waits for the first, and uses its backup if it is young enough.
        """
        with self._using(target) as guarded:
            answer = await self._judge_deploy(guarded, event, watches)
        self._happenings.tell(
            "gate_answered",
            target=target,
            deployment=answer.deployment,
            verdict=answer.verdict,
            reasons=list(answer.reasons),
        )
        return answer

    async def _judge_deploy(self, guarded: Guarded, event: Event, watches: Watches) -> GateAnswer:
        lock = self._gates.setdefault(guarded.name, asyncio.Lock())
        async with lock:
            unfinished = [
                r for r in await self._store.unfinished_runs() if r.database_key == guarded.database_key
            ]
            if unfinished:
                reason = f"{unfinished[0].id} is {unfinished[0].state} on this database: settle it first"
                return GateAnswer(go=False, reasons=(reason,))
            try:
                deployment = await watches.find_or_begin(event, guarded)
                await watches.prepared(deployment.id)
                # What can't be reached says so itself, here.
                environment = await guarded.worker.environment()
                heads = await guarded.database.heads()
                if set(environment.heads) != set(heads):
                    raise RefusedError(
                        f"env.py sees the database at {heads_text(environment.heads)}, rollbackd at {heads_text(heads)}:"
                        " they don't look at the same version table; see 'migrations.url'"
                    )
                documented = await self._store.deployment(deployment.id)
                if documented is None or documented.heads_before is None:
                    return GateAnswer(
                        go=False, reasons=("the state before the deploy couldn't be documented",)
                    )
                pending = await self._verify_pending(guarded)
                reasons = pending.reasons
                if pending.stops:
                    return GateAnswer(
                        go=False,
                        reasons=reasons,
                        deployment=deployment.id,
                        heads=documented.heads_before,
                        migrations=pending.migrations,
                    )
                backup = await self._gate_backup(guarded) if guarded.settings.backs_up else None
            except RollbackdError as error:
                return GateAnswer(go=False, reasons=(str(error),))
            if backup is None:
                reasons += ("no backup is configured for this target",)
            return GateAnswer(
                go=True,
                verdict="warn" if reasons else "go",
                migrations=pending.migrations,
                reasons=reasons,
                deployment=deployment.id,
                heads=documented.heads_before,
                backup=backup_evidence(backup) if backup is not None else {},
            )

    async def _verify_pending(self, guarded: Guarded) -> PendingMigrations:
        """What the policy says of the revisions that are about to go on; what couldn't be tried isn't known to be safe."""
        policy = guarded.settings.policy.unsafe_migrations
        if policy == "go":
            return PendingMigrations()
        try:
            verified = await self._planners[guarded.name].verify_pending()
        except RollbackdError as error:
            reason = f"the pending migrations couldn't be tried: {error}"
            return PendingMigrations(reasons=(reason,), stops=policy == "stop")
        faults = [
            f"{one.revision}: {found.text}"
            for one in verified
            for found in one.found
            if found.fault in FAILING
        ]
        if verified and Fault.UPGRADE_FAILS in verified[-1].faults():
            faults.append("what comes after it couldn't be tried")
        return PendingMigrations(
            migrations=verified, reasons=tuple(faults), stops=bool(faults) and policy == "stop"
        )

    async def rehearse(self, target: str, *, to: str, depth: Depth | None = None) -> Rehearsed:
        """Rehearse the way down anew; the guarded database isn't touched."""
        with self._using(target) as guarded:
            deployment = await self._last_deployment(guarded)
            kept = deployment.scripts_sha256 if deployment is not None else ""
            return await self._planners[target].rehearse(to, kept_scripts=kept, depth=depth)

    async def _gate_backup(self, guarded: Guarded) -> BackupRecord:
        horizon = self._clock.now() - timedelta(seconds=guarded.settings.backup.reuse_within)
        level = guarded.settings.policy.backup_level
        for known in await self._store.backups(guarded.name, 5):
            usable = known.removed_at is None and known.level >= level
            if usable and known.created_at >= horizon and await guarded.backups.is_whole(known):
                return known
        backup = guarded.settings.backup
        try:
            taken = await guarded.backups.take(
                "", GATE_BACKUP, timeout_s=backup.dump_timeout, on_progress=self._telling(guarded, "back_up")
            )
            proved = await guarded.backups.prove(
                taken, level=level, timeout_s=backup.proof_timeout, on_progress=self._telling(guarded, "prove_backup")
            )  # fmt: skip
            await self._store.save_backup(proved)
        finally:
            self._happenings.tell("backup_ended", target=guarded.name)
        self._happenings.tell(
            "backup_proved",
            target=guarded.name,
            environment=guarded.settings.environment,
            backup=proved.id,
            level=proved.level,
            size_bytes=proved.size_bytes,
        )
        return proved

    def _telling(self, guarded: Guarded, kind: str) -> Callable[[Progress], Awaitable[None]]:
        """Tells how far a backup is that belongs to no run, under the name of a run's step."""

        async def progressed(progress: Progress) -> None:
            self._happenings.tell(
                "backup_progressed",
                target=guarded.name,
                kind=kind,
                done=progress.done,
                total=progress.total,
            )

        return progressed

    async def _plan(self, guarded: Guarded, to: str, release: str, *, fresh: bool = False) -> Plan:
        deployment = await self._last_deployment(guarded)
        release_to, release_from, kept = release, "", ""
        if deployment is not None and deployment.outcome == ROLLED_BACK:
            # What runs is the release that was put back; which one came before it, nobody said.
            release_from, kept = deployment.previous_version, deployment.scripts_sha256
        elif deployment is not None:
            release_to = release or deployment.previous_version
            release_from, kept = deployment.version, deployment.scripts_sha256
        return await self._planners[guarded.name].downgrade(
            to, release_from=release_from, release_to=release_to, kept_scripts=kept, fresh=fresh
        )

    async def _last_deployment(self, guarded: Guarded) -> Deployment | None:
        known = await self._store.deployments(guarded.name, 1)
        return known[0] if known else None

    @contextmanager
    def _using(self, target: str) -> Iterator[Guarded]:
        """The target, which stays as it is until what was asked for is done."""
        self._require(target)
        with self._guarded.using(target) as guarded:
            yield guarded

    def _require(self, target: str) -> None:
        if target not in self._guarded:
            raise NotFoundError(
                f"there is no target {target}; configured are {', '.join(self._guarded) or 'none'}"
            )
