"""Laying out: everything from the look before to the confirmation after, for each way back."""

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.planning.estimating import copied_ahead, estimate_times
from rollbackd.core.planning.grouping import as_rehearsed, group_revisions
from rollbackd.core.planning.inputs import Findings, Means, PlanTimes
from rollbackd.core.planning.plan import Estimate, Plan, PlannedRevision, Rehearsed, WayBack
from rollbackd.core.planning.revisions import planned_revision, standing_alone
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
from rollbackd.core.planning.weighing import choose_way, objections, what_is_lost
from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.revisions import Path, RevisionGraph
from rollbackd.core.verdicts import judge_revisions


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
        revisions = tuple(standing_alone(revision) for revision in revisions)
    chosen, way_why = choose_way(means, findings.old_release)
    way = chosen or WayBack.STOP_WRITES
    blockers, warnings = objections(revisions, way, means, findings, release_from, release_to)
    if chosen is None:
        allowed = ", ".join(means.ways) or "none"
        blockers.append(
            f"the policy allows {allowed} alone ('policy.ways_back'), and that doesn't fit: {'; '.join(way_why)}"
        )
    loses = tuple(dict.fromkeys(what_is_lost(revisions, findings)))
    ahead = () if way is WayBack.LEAVE_SCHEMA else copied_ahead(findings, means)
    estimate = estimate_times(revisions, findings, ahead)
    groups = as_rehearsed(
        group_revisions(path, revisions, times, findings.one_transaction_each), findings.rehearsal
    )
    if way is WayBack.LEAVE_SCHEMA:
        steps = _steps_leaving_schema(path, means, times, release_to)
        loses, groups, estimate = (), [], Estimate(total_s=0.0, lock_s=0.0)
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
