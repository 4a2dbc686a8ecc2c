"""Whether a target is ready: what check-config says of its database, roles, interpreter, tools, commands and metrics."""

import asyncio
from datetime import datetime

from rollbackd.core.assess import heads_text
from rollbackd.core.checks import Finding, Outcome
from rollbackd.errors import RollbackdError
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.measuring import query_of


async def check_readiness(guarded: Guarded, now: datetime) -> tuple[Finding, ...]:
    """Everything that a run would need of this target, checked now; nothing is changed."""
    findings: list[Finding] = []
    try:
        identity = await guarded.database.identity()
        text = f"PostgreSQL {identity.server_version // 10_000}, database {identity.database}"
        findings.append(Finding(check="database", outcome=Outcome.PASSED, text=text))
        findings += await guarded.database.rights()
    except RollbackdError as error:
        findings.append(Finding(check="database", outcome=Outcome.FAILED, text=str(error)))
    findings += await _check_worker(guarded)
    findings += await guarded.backups.readiness() if guarded.settings.backs_up else ()
    findings += await guarded.application.readiness()
    findings += await _check_metrics(guarded, now)
    return tuple(findings)


async def _check_metrics(guarded: Guarded, now: datetime) -> list[Finding]:
    """Each metric's query, asked as of now; no deployment is known, so that its versions are empty."""
    reader, target = guarded.metrics, guarded.settings
    if reader is None:
        return []
    asked = (reader.finding(metric, query_of(metric, target, None), now) for metric in target.metrics)
    return list(await asyncio.gather(*asked))


async def _check_worker(guarded: Guarded) -> list[Finding]:
    try:
        described = await guarded.worker.describe()
        environment = await guarded.worker.environment()
    except RollbackdError as error:
        return [Finding(check="migrations", outcome=Outcome.FAILED, text=str(error))]
    finally:
        await guarded.worker.close()
    text = (
        f"{len(described.revisions)} revisions, Alembic {described.alembic}, SQLAlchemy {described.sqlalchemy},"
        f" {environment.driver}, {described.python}"
    )
    heads = await guarded.database.heads()
    configured = guarded.settings.migrations.version_table
    if environment.version_table == configured and set(environment.heads) != set(heads):
        text = (
            f"env.py sees the database at {heads_text(environment.heads)}, rollbackd at {heads_text(heads)}: they don't look"
            " at the same version table; see 'migrations.url' and 'migrations.version_table'"
        )
        return [Finding(check="migrations", outcome=Outcome.FAILED, text=text)]
    known = {revision.id for revision in described.revisions}
    unknown = [head for head in environment.heads if head not in known]
    findings = [Finding(check="migrations", outcome=Outcome.PASSED, text=text)]
    if unknown:
        text = f"the database is at {', '.join(unknown)}, which no script here knows"
        findings.append(Finding(check="stamp", outcome=Outcome.FAILED, text=text))
    if environment.version_table != configured:
        text = f"env.py uses the version table {environment.version_table}: set 'migrations.version_table' (now {configured})"
        findings.append(Finding(check="version_table_name", outcome=Outcome.FAILED, text=text))
    return findings
