"""What a way back will do, said before it is taken: for each revision, and which of the three ways fits.

Out of what was read, rehearsed and counted. The better evidence wins: a rehearsal with every row over a count, a count over
a reading.
"""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from rollbackd.core.assess import heads_text
from rollbackd.core.reading import DESTROYS, EffectKind, ReadRevision, irreversible, read_effects
from rollbackd.core.rehearsal import Depth, Rehearsal, RehearsedRevision
from rollbackd.core.risks import OWNERSHIP, Risks


class Verdict(StrEnum):
    """What taking one revision off will do, best first."""

    REVERSIBLE = "reversible"
    LOSES_DATA = "reversible_with_loss"
    UNKNOWN = "unknown"
    WILL_FAIL = "will_fail"
    IRREVERSIBLE = "irreversible"


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict and the sentences behind it."""

    verdict: Verdict
    why: tuple[str, ...] = ()


def judge_revisions(
    revisions: tuple[str, ...],
    read: Mapping[str, ReadRevision],
    rehearsal: Rehearsal | None,
    risks: Risks,
) -> dict[str, Judged]:
    """The verdict on each revision of a path, in its order.

    Args:
        revisions: the path, first to last.
        read: what was read of each downgrade without running it.
        rehearsal: the best that was made; None where none was.
        risks: what was counted on the database itself.
    """
    found: dict[str, Judged] = {}
    stopped = ""
    for revision in revisions:
        judged = _judge(read[revision], rehearsal, risks.of(revision), stopped)
        found[revision] = judged
        if judged.verdict in (Verdict.IRREVERSIBLE, Verdict.WILL_FAIL) and not stopped:
            stopped = revision
    return found


def _judge(read: ReadRevision, rehearsal: Rehearsal | None, risks: Risks, stopped: str) -> Judged:
    if reason := irreversible(read):
        return Judged(verdict=Verdict.IRREVERSIBLE, why=(reason,))
    if stopped:
        return Judged(verdict=Verdict.UNKNOWN, why=(f"it comes after {stopped}, which can't be taken off",))
    if rehearsal is None or rehearsal.unknown:
        return _by_reading(read, rehearsal)
    if rehearsal.failure is not None and rehearsal.failure.revision == read.id:
        return Judged(verdict=Verdict.WILL_FAIL, why=(rehearsal.failure.reason,))
    ran = _revision_of(rehearsal, read.id)
    if ran is None:
        return Judged(verdict=Verdict.UNKNOWN, why=("the rehearsal didn't reach it",))
    if rehearsal.failure is None and not rehearsal.passed:
        # The stamp is one for the whole path: every revision of it is in doubt.
        why = (
            f"Alembic reports success, and the version table says {heads_text(rehearsal.heads)} instead of"
            f" {heads_text(rehearsal.to_heads)}: the stamp is lost, most likely because the migration commits by itself"
        )
        return Judged(verdict=Verdict.WILL_FAIL, why=(why,))
    forbidden = [o for o in risks.obstacles if o.rule == OWNERSHIP]
    if forbidden:
        return Judged(verdict=Verdict.WILL_FAIL, why=tuple(o.text() for o in forbidden))
    if rehearsal.depth is not Depth.FULL:
        certain = [o for o in risks.obstacles if o.rows > 0 and o.certain]
        if certain:
            return Judged(verdict=Verdict.WILL_FAIL, why=tuple(o.text() for o in certain))
        doubts = [o for o in risks.obstacles if o.rows != 0 and rehearsal.depth is Depth.SCHEMA]
        if doubts:
            return Judged(verdict=Verdict.UNKNOWN, why=tuple(o.text() for o in doubts))
        if rehearsal.depth is Depth.SCHEMA and ran.uses_rows:
            tables = ", ".join(sorted({w.table.text() for w in ran.written} | {t.text() for t in ran.read}))
            why = f"it reads or writes rows of {tables}, and was rehearsed without any"
            return Judged(verdict=Verdict.UNKNOWN, why=(why,))
    lost = risks.lost()
    if any(risk.rows < 0 for risk in lost):
        return Judged(verdict=Verdict.UNKNOWN, why=tuple(risk.text() for risk in lost))
    if lost:
        return Judged(verdict=Verdict.LOSES_DATA, why=tuple(risk.text() for risk in lost))
    return Judged(verdict=Verdict.REVERSIBLE)


def _by_reading(read: ReadRevision, rehearsal: Rehearsal | None) -> Judged:
    """Without a rehearsal a reading says what is lost, and never that nothing can go wrong."""
    because = f"it couldn't be rehearsed: {rehearsal.unknown}" if rehearsal else "it wasn't rehearsed"
    effects = read_effects(read)
    lost = [
        effect.text() for effect in effects if effect.kind in DESTROYS or effect.kind is EffectKind.UNREAD
    ]
    return Judged(verdict=Verdict.UNKNOWN, why=(because, *dict.fromkeys(lost)))


def _revision_of(rehearsal: Rehearsal, revision: str) -> RehearsedRevision | None:
    return next((r for r in rehearsal.revisions if r.id == revision), None)


class OldRelease(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the old release works on the present schema: False with the reasons against, None where nobody knows."""

    works: bool | None
    why: tuple[str, ...] = ()


# What the old release must find as it was; a column that it doesn't know is told apart below.
_NEEDED = (
    "table",
    "column",
    "view",
    "materialized view",
    "function",
    "type",
    "sequence",
    "foreign table",
    "schema",
)
_RULES = ("trigger", "policy", "rule")


def judge_old_release(rehearsal: Rehearsal | None) -> OldRelease:
    """Read off the rehearsed difference: whatever the downgrade only takes away, the old release can live with.

    What it adds or changes is something that the old release lacks now; a rule that it takes away is one that the old
    release's writes may break; rows that it rewrites are rows that the old release may not read.
    """
    if rehearsal is None or not rehearsal.passed:
        return OldRelease(works=None, why=("the way back wasn't rehearsed to its end",))
    difference = rehearsal.difference
    against = [f"it lacks {name}" for name in difference.added if name.startswith(_NEEDED)]
    against += [f"{name} isn't as it knows it" for name in difference.changed if name.startswith(_NEEDED)]
    gone_tables = {f"{t.table.text()}." for r in rehearsal.revisions for t in r.gone_tables}
    against += [
        f"its writes may break {name}"
        for name in difference.removed
        if name.startswith(_RULES) and not any(f" {table}" in name for table in gone_tables)
    ]
    against += [
        f"its inserts leave {column.table.text()}.{column.column} empty, which is NOT NULL without a default"
        for revision in rehearsal.revisions
        for column in revision.gone_columns
        if column.required
    ]
    written = sorted({w.table.text() for r in rehearsal.revisions for w in r.written if w.may_lose})
    against += [f"rows of {table} are rewritten on the way back" for table in written]
    constraints = sorted({name for r in rehearsal.revisions for name in r.gone_constraints})
    against += [f"its writes may break constraint {name}" for name in constraints]
    unique = sorted({name for r in rehearsal.revisions for name in r.gone_unique_indexes})
    against += [f"its writes may break the unique index {name}" for name in unique]
    return OldRelease(works=not against, why=tuple(dict.fromkeys(against)))
