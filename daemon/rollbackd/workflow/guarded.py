"""A target together with the ports that reach it."""

from dataclasses import dataclass

from rollbackd.core.gates import GatePolicy
from rollbackd.core.plan import PlanTimes
from rollbackd.ports import Application, Backups, DatabaseReader, MigrationWorker, Prober
from rollbackd.settings import Target

LOOK_S = 120.0


@dataclass(frozen=True)
class Guarded:
    """One target under guard. `database_key` is the same for all targets on one database."""

    settings: Target
    database_key: str
    database: DatabaseReader
    worker: MigrationWorker
    backups: Backups
    application: Application
    prober: Prober

    @property
    def name(self) -> str:
        """The target's name."""
        return self.settings.name

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
        )
