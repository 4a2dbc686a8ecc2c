"""A planned revision: what a plan says of it, and whether its downgrade changes schema or data."""

import re

import msgspec

from rollbackd.core.planning.plan import PlannedRevision
from rollbackd.core.reading import EffectKind, ReadRevision, read_effects
from rollbackd.core.rehearsal import Rehearsal, RehearsedRevision
from rollbackd.core.revisions import RevisionGraph
from rollbackd.core.risks import Risks
from rollbackd.core.verdicts import Judged, Verdict


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


def standing_alone(revision: PlannedRevision) -> PlannedRevision:
    """The revision where nothing can share a transaction with it, as each statement is committed by itself."""
    return msgspec.structs.replace(
        revision, stands_alone=revision.stands_alone or "env.py's connection commits each statement"
    )


def changes_data(revision: PlannedRevision) -> bool:
    """Whether it may change rows without changing the catalog."""
    kinds = {EffectKind.UPDATE, EffectKind.DELETE, EffectKind.TRUNCATE, EffectKind.UNREAD}
    if revision.writes:
        return True
    inserts = any(statement.lstrip()[:6].upper() == "INSERT" for statement in revision.statements)
    return bool(revision.unread) or inserts or any(effect.kind in kinds for effect in revision.effects)


# Changes that a statement surely makes and that the fingerprint surely shows.
_CHANGES = re.compile(
    r"(?:CREATE|DROP)\s+(?:UNLOGGED\s+)?(?:TABLE|(?:UNIQUE\s+)?INDEX|TYPE|(?:MATERIALIZED\s+)?VIEW|SEQUENCE|SCHEMA)\s"
    r"|ALTER\s+TABLE\s.*?\s(?:ADD|DROP|RENAME)\s",
    re.IGNORECASE | re.DOTALL,
)
_PERHAPS = re.compile(r"\bIF\s+(?:NOT\s+)?EXISTS\b", re.IGNORECASE)


def changes_schema(revision: PlannedRevision) -> bool:
    """Whether its statements surely change the catalog; what is unread or conditional promises nothing."""
    return not revision.unread and any(
        _CHANGES.match(statement.strip()) and not _PERHAPS.search(statement)
        for statement in revision.statements
    )
