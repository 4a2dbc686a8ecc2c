"""What foreign keys hand a write on to: the tables whose rows go or change along with others."""

from rollbackd.adapters.postgres.risks.tables import Catalog, Reference
from rollbackd.core.risk_queries import RowWrite
from rollbackd.core.risks import RiskKind
from rollbackd.core.schema import TableName


def handed_on(catalog: Catalog, start: TableName, write: RowWrite) -> dict[TableName, RiskKind]:
    """The tables that foreign keys hand a write on to, and what happens to their rows."""
    found: dict[TableName, RiskKind] = {}
    waiting = [(start, write.kind, write.assigned)]
    while waiting:
        parent, kind, assigned = waiting.pop()
        table = catalog.tables.get(parent)
        names = {parent, *(table.above if table else ())}
        for reference in catalog.references:
            if reference.parent not in names:
                continue
            touched = _touched(reference, kind, assigned, write)
            if touched is None or found.get(reference.child) in (touched, RiskKind.DELETED):
                continue
            found[reference.child] = touched
            waiting.append((reference.child, touched, frozenset(reference.child_columns)))
    return found


def _touched(
    reference: Reference, kind: RiskKind, assigned: frozenset[str] | None, write: RowWrite
) -> RiskKind | None:
    """What happens to the rows that refer to a written one."""
    if write.truncates:
        return RiskKind.DELETED if write.empties else None
    if kind is RiskKind.DELETED:
        return {"c": RiskKind.DELETED, "n": RiskKind.UPDATED, "d": RiskKind.UPDATED}.get(reference.on_delete)
    moves = assigned is None or bool(assigned & reference.parent_columns)
    return RiskKind.UPDATED if moves and reference.on_update in ("c", "n", "d") else None
