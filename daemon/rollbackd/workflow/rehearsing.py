"""Rehearsing a way back as deep as it needs to be: everything where that is small, else the schema, and a sample of rows
where the schema alone can't tell.
"""

import msgspec
import structlog

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.reading import EffectKind, ReadRevision, read_effects
from rollbackd.core.rehearsal import Depth, NewRule, Rehearsal, Way
from rollbackd.core.risks import Risks, with_taken
from rollbackd.core.schema import TableName, quoted
from rollbackd.errors import RollbackdError
from rollbackd.workflow.guarded import Guarded

log = structlog.get_logger()


class Rehearsed(msgspec.Struct, frozen=True):
    """The deepest rehearsal that was made (None: none), and what it would cost today's rows."""

    rehearsal: Rehearsal | None
    risks: Risks


async def rehearse(
    guarded: Guarded, way: Way, fingerprint: str, wanted_depth: Depth | None = None
) -> Rehearsed:
    """Rehearse it, and count on the guarded database what it would cost. Never raises for what can't be rehearsed."""
    if not guarded.can_rehearse:
        return Rehearsed(None, Risks())
    settings, rehearsals = guarded.settings.rehearsal, guarded.rehearsals
    if wanted_depth is not None:
        settings = msgspec.structs.replace(settings, depth=wanted_depth.value)
    if settings.depth == "auto":
        try:
            depth = Depth.FULL if await rehearsals.size_bytes() <= settings.full_up_to else Depth.SCHEMA
        except RollbackdError as error:
            return Rehearsed(_unknown(way, Depth.SCHEMA, str(error)), Risks())
    else:
        # A sample means most where it holds the rows that are in the way, and the schema's rehearsal says which.
        depth = Depth.FULL if settings.depth == "full" else Depth.SCHEMA
    rehearsal = await rehearsals.rehearse(way, depth=depth, fingerprint=fingerprint)
    risks = await count_risks(guarded, rehearsal)
    wants_rows = settings.depth == "sample" or (
        settings.depth == "auto" and rehearsal.passed and _needs_rows(rehearsal, risks)
    )
    if depth is Depth.SCHEMA and wants_rows and not rehearsal.unknown:
        wanted = _in_the_way(rehearsal)
        sampled = await rehearsals.rehearse(way, depth=Depth.SAMPLE, fingerprint=fingerprint, wanted=wanted)
        if not sampled.unknown:
            rehearsal = sampled
    return Rehearsed(rehearsal, risks)


def read_items(
    read: dict[str, ReadRevision],
    names: dict[str, tuple[TableName, ...]],
    keys: dict[TableName, tuple[str, ...]],
) -> tuple[ArchiveItem, ...]:
    """What to archive where nothing could be rehearsed: as far as the statements could be read.

    Args:
        read: what was read of each revision, in the order of the path.
        names: the tables behind each name that was read.
        keys: each table's primary key.
    """
    kinds = {
        EffectKind.DROP_TABLE: ArchiveKind.TABLE,
        EffectKind.DROP_COLUMN: ArchiveKind.COLUMN,
        EffectKind.CHANGE_TYPE: ArchiveKind.NARROWED,
        EffectKind.DELETE: ArchiveKind.ROWS,
        EffectKind.UPDATE: ArchiveKind.ROWS,
        EffectKind.TRUNCATE: ArchiveKind.ROWS,
    }
    found: list[ArchiveItem] = []
    for revision in read.values():
        for effect in read_effects(revision):
            kind = kinds.get(effect.kind)
            for table in names.get(effect.table, ()) if kind is not None else ():
                assert kind is not None, "only then there are names"
                key = keys.get(table, ())
                column = effect.column if kind in (ArchiveKind.COLUMN, ArchiveKind.NARROWED) else ""
                # A key that goes with the column is none.
                key = () if column in key else key
                found.append(
                    ArchiveItem(revision=revision.id, kind=kind, table=table, column=column, key=key)
                )
    return tuple(dict.fromkeys(found))


async def count_risks(guarded: Guarded, rehearsal: Rehearsal) -> Risks:
    """What it would cost today's rows; nothing where that can't be counted, and the log says why."""
    if rehearsal.unknown:
        return Risks()
    try:
        risks = await guarded.database.risks(rehearsal, guarded.settings.counting.budget)
    except RollbackdError as error:
        log.warning("risks_not_counted", target=guarded.name, error=str(error))
        return Risks()
    return with_taken(risks, rehearsal)


def _needs_rows(rehearsal: Rehearsal, risks: Risks) -> bool:
    return any(r.uses_rows for r in rehearsal.revisions) or any(o.rows != 0 for o in risks.obstacles)


def _in_the_way(rehearsal: Rehearsal) -> dict[TableName, list[str]]:
    """Conditions of the rows that a new rule of the old schema may not admit: a sample has to hold some of them."""
    found: dict[TableName, list[str]] = {}
    for revision in rehearsal.revisions:
        for rule in revision.new_rules:
            if rule.today is not None and (condition := _breaks(rule, rule.today)):
                found.setdefault(rule.today, []).append(condition)
    return found


def _breaks(rule: NewRule, table: TableName) -> str:
    columns = [quoted(column) for column in rule.columns if column]
    if not columns or len(columns) != len(rule.columns):
        return ""
    if rule.kind == "not_null":
        return f"{columns[0]} IS NULL"
    listed = ", ".join(columns)
    if rule.kind == "unique":
        return f"({listed}) IN (SELECT {listed} FROM {table.sql()} GROUP BY {listed} HAVING count(*) > 1)"  # noqa: S608 - quoted
    return ""


def _unknown(way: Way, depth: Depth, why: str) -> Rehearsal:
    return Rehearsal(depth=depth, from_heads=way.from_heads, to_heads=way.to_heads, unknown=why)


def describe_rehearsal(found: Rehearsed) -> dict[str, object]:
    """A rehearsal for people and machines: everything but the whole schema that it led to."""
    rehearsal = found.rehearsal
    if rehearsal is None:
        return {"passed": False, "unknown": "nothing to rehearse on"}
    document: dict[str, object] = msgspec.to_builtins(rehearsal)
    document.pop("expected")
    document["passed"] = rehearsal.passed
    document["difference"] = rehearsal.difference.lines()
    document["at_risk"] = [risk.text() for risk in found.risks.at_risk if risk.rows]
    document["obstacles"] = [obstacle.text() for obstacle in found.risks.obstacles if obstacle.rows]
    return document
