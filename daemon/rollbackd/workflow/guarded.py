"""A target together with the ports that reach it."""

from dataclasses import dataclass

from rollbackd.core.gates import GatePolicy
from rollbackd.core.planning.inputs import Means, PlanTimes
from rollbackd.core.planning.plan import WayBack
from rollbackd.ports import (
    Application,
    Archives,
    Backups,
    DatabaseReader,
    MetricReader,
    MigrationWorker,
    Prober,
    Rehearsals,
)
from rollbackd.settings import Target

LOOK_S = 120.0


@dataclass(frozen=True)
class Guarded:
    """One target under guard. `database_key` is the same for all targets on one database; without a Prometheus there is
    nobody to ask about `metrics`.
    """

    settings: Target
    database_key: str
    database: DatabaseReader
    worker: MigrationWorker
    backups: Backups
    rehearsals: Rehearsals
    archives: Archives
    application: Application
    prober: Prober
    metrics: MetricReader | None = None

    @property
    def name(self) -> str:
        """The target's name."""
        return self.settings.name

    async def close(self) -> None:
        """Close what holds connections, children or copies; whoever asks again opens them anew."""
        await self.worker.close()
        await self.rehearsals.close()
        await self.database.close()
        if self.metrics is not None:
            await self.metrics.close()

    def plan_times(self) -> PlanTimes:
        """The bounds that this target's configuration gives a plan."""
        settings = self.settings
        commands = [c for c in (settings.deployment.stop, settings.deployment.start) if c is not None]
        slowest_probe = max((p.successes * p.interval + p.timeout for p in settings.probes), default=0.0)
        # One statement may take its whole timeout; a group of revisions may have many.
        downgrade_s = settings.migrations.statement_timeout * 4 + settings.migrations.start_timeout
        return PlanTimes(
            look_s=LOOK_S,
            backup_s=settings.backup.dump_timeout,
            proof_s=settings.backup.proof_timeout,
            command_s=max((c.timeout for c in commands), default=0.0) * 2 + 5,
            downgrade_s=downgrade_s,
            lock_attempts=settings.migrations.lock_attempts,
            application_s=settings.policy.start_grace + slowest_probe,
            confirm_s=settings.policy.watch_after_rollback,
            backup_reuse_s=settings.backup.reuse_within,
            backup_level=settings.policy.backup_level,
        )

    @property
    def can_rehearse(self) -> bool:
        """Whether there is a scratch server, and the configuration wants rehearsals."""
        scratch = self.settings.scratch
        return bool(scratch.url or scratch.same_server) and self.settings.rehearsal.depth != "none"

    def means(self, *, wants_downgrade: bool) -> Means:
        """What the configuration lets a plan do. Who wants the downgrade itself isn't served by leaving the schema."""
        settings = self.settings
        ways = [WayBack(way) for way in settings.policy.ways_back]
        restores = bool(settings.backup.directory) and settings.policy.backup_level >= 4
        return Means(
            stops_application=self.application.can_stop,
            starts_application=self.application.can_start,
            has_probes=bool(settings.probes),
            has_backup=settings.backs_up,
            can_rehearse_on_backup=self.can_rehearse
            and restores
            and settings.rehearsal.depth in ("auto", "full"),
            ways=tuple(way for way in ways if not (wants_downgrade and way is WayBack.LEAVE_SCHEMA)),
            tolerates_stamp=settings.deployment.tolerates_unknown_stamp,
            lock_budget_s=settings.archive.lock_budget,
            application=settings.deployment.application_name,
        )

    def gate_policy(self) -> GatePolicy:
        """The part of the policy that gates read."""
        policy = self.settings.policy
        return GatePolicy(
            mode=self.settings.mode,
            approval_required=self.settings.approval_required,
            incident_required=self.settings.incident_required,
            data_loss=policy.data_loss,
            backup_level=policy.backup_level,
            cool_down_s=policy.cool_down,
            max_rollbacks_a_day=policy.max_rollbacks_a_day,
            lock_budget_s=self.settings.archive.lock_budget,
        )
