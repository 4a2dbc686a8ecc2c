"""What goes: the rows of dropped tables, the values of dropped columns."""

from rollbackd.adapters.postgres.risks.context import Context
from rollbackd.adapters.postgres.risks.counting import Finding, unknown
from rollbackd.core.rehearsal import GoneColumn, GoneTable, RehearsedRevision
from rollbackd.core.risks import RiskKind, RowsAtRisk
from rollbackd.core.schema import quoted


async def gone_table(context: Context, revision: RehearsedRevision, gone: GoneTable) -> list[Finding]:
    """The rows that go with a table; `gone.today` must be set."""
    assert gone.today is not None
    risk = RowsAtRisk(revision=revision.id, kind=RiskKind.DROPPED_TABLE, table=gone.today)
    table = context.catalog.tables.get(gone.today)
    if table is None:
        return [unknown(risk, context.catalog.missing(gone.today))]
    return [await context.counting.count(risk, table.rows())]


async def gone_column(context: Context, revision: RehearsedRevision, gone: GoneColumn) -> list[Finding]:
    """The values that go with a column; `gone.today` must be set."""
    assert gone.today is not None
    risk = RowsAtRisk(
        revision=revision.id, kind=RiskKind.DROPPED_COLUMN, table=gone.today, column=gone.today_column
    )
    table = context.catalog.tables.get(gone.today)
    if table is None:
        return [unknown(risk, context.catalog.missing(gone.today))]
    column = table.columns.get(gone.today_column)
    if column is None:
        return [unknown(risk, f"{gone.today.text()} has no such column any more")]
    if column.generated:
        return []  # made from other columns, and so no loss
    # Not IS NOT NULL, which is false for a row value that has a NULL in it.
    return [
        await context.counting.count(
            risk, table.rows(), f"{quoted(gone.today_column)} IS DISTINCT FROM NULL", table
        )
    ]
