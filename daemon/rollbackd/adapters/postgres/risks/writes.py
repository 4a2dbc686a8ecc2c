"""What is written: the rows that the way back's statements overwrite or delete, themselves or by foreign keys."""

import msgspec

from rollbackd.adapters.postgres.risks.asking import OutOfTimeError
from rollbackd.adapters.postgres.risks.cascades import handed_on
from rollbackd.adapters.postgres.risks.context import Context
from rollbackd.adapters.postgres.risks.counting import Finding, unknown
from rollbackd.adapters.postgres.risks.tables import Table
from rollbackd.adapters.postgres.risks.timelines import Timelines
from rollbackd.core.rehearsal import Depth, WrittenTable
from rollbackd.core.risk_queries import RowWrite
from rollbackd.core.risks import RiskKind, RowsAtRisk
from rollbackd.core.schema import TableName


class Writes:
    """Answers for written tables; the timelines are read once for all of them."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._timelines = Timelines(context.rehearsal)

    async def written(self, number: int, written: WrittenTable) -> list[Finding]:
        """The rows of one table that the revision at place `number` overwrites or deletes; `written.today` must be set."""
        assert written.today is not None
        revision = self._context.rehearsal.revisions[number]
        found: list[Finding] = []
        if self._context.rehearsal.depth is Depth.FULL:
            for kind, rows in ((RiskKind.UPDATED, written.updated), (RiskKind.DELETED, written.deleted)):
                if rows:
                    found.append(RowsAtRisk(revision=revision.id, kind=kind, table=written.today, rows=rows))
            return found
        table = self._context.catalog.tables.get(written.today)
        if table is None:
            risk = RowsAtRisk(revision=revision.id, kind=RiskKind.DELETED, table=written.today)
            return [unknown(risk, self._context.catalog.missing(written.today))]
        writes, unread = self._timelines.writes(number, written)
        if not writes and not unread and self._is_reached(number, written.today):
            return []  # the table whose rows refer to it, or are referred to, brings the answer along
        if not writes and not unread and not self._timelines.is_inserted_only(number, written):
            unread = "no statement names it, so a trigger or a function does it"
        if unread:
            kind = RiskKind.UPDATED if written.updated and not written.deleted else RiskKind.DELETED
            found.append(unknown(RowsAtRisk(revision=revision.id, kind=kind, table=written.today), unread))
        for kind in (RiskKind.UPDATED, RiskKind.DELETED):
            of_kind = [(place, write) for place, write in writes if write.kind is kind]
            if of_kind:
                risk = RowsAtRisk(revision=revision.id, kind=kind, table=written.today)
                counted = await self._count_writes(risk, table, number, of_kind)
                found += await self._carried_on(counted, [write for _, write in of_kind])
        return found

    async def _count_writes(
        self, risk: RowsAtRisk, table: Table, number: int, writes: list[tuple[int, RowWrite]]
    ) -> RowsAtRisk:
        """Add up what one table's statements match; several may match the same row, so their sum is a bound."""
        earlier = [write for revision in range(number) for write in self._timelines.of(revision)]
        parts: list[RowsAtRisk] = []
        for place, write in writes:
            before = earlier + self._timelines.of(number)[:place]
            if self._sets_new_columns_only(write, table):
                parts.append(msgspec.structs.replace(risk, rows=0))
                continue
            itself = (
                handed_on(self._context.catalog, risk.table, write).get(risk.table) is risk.kind
                and not write.truncates
            )
            if write.uncounted or itself or any(_may_move(old, write) for old in before):
                return await self._bound(risk, table)
            rows = write.rows
            if write.joined:
                # A row that is joined with several others is written once.
                rows = f"FROM (SELECT DISTINCT {write.alias}.tableoid, {write.alias}.ctid {rows}) AS matched"
            part = await self._context.counting.count(risk, rows, prefix=write.prefix)
            if part.rows < 0 and part.unknown != str(OutOfTimeError()):
                return await self._bound(risk, table)
            if part.rows > 0:
                sample = await self._context.counting.sample(
                    table, write.rows, "", alias=write.alias, prefix=write.prefix
                )
                part = msgspec.structs.replace(part, sample=sample)
            parts.append(part)
        for part in parts:
            if part.rows < 0 or len(parts) == 1:
                return part
        return msgspec.structs.replace(
            risk,
            rows=sum(part.rows for part in parts),
            exact=all(part.exact for part in parts),
            at_most=sum(part.rows > 0 for part in parts) > 1,
            sample=tuple(dict.fromkeys(key for part in parts for key in part.sample))[
                : self._context.counting.samples
            ],
        )

    async def _bound(self, risk: RowsAtRisk, table: Table) -> RowsAtRisk:
        counted = await self._context.counting.count(risk, table.rows())
        return msgspec.structs.replace(counted, at_most=counted.rows > 0)

    def _sets_new_columns_only(self, write: RowWrite, table: Table) -> bool:
        """Whether an UPDATE fills only columns that aren't there today, so that no value of today is overwritten."""
        if write.kind is not RiskKind.UPDATED or not write.assigned or table.triggers:
            return False
        # A column of another name may be one of today's that was renamed on the way.
        renames = any(
            "rename" in statement.sql.lower()
            for revision in self._context.rehearsal.revisions
            for statement in revision.statements
        )
        return not renames and not write.assigned & table.columns.keys()

    def _is_reached(self, number: int, today: TableName) -> bool:
        """Whether foreign keys hand another table's write on to this one."""
        return any(
            today in handed_on(self._context.catalog, written.today, write)
            for written in self._context.rehearsal.revisions[number].written
            if written.today is not None and written.today != today
            for _, write in self._timelines.writes(number, written)[0]
        )

    async def _carried_on(self, counted: RowsAtRisk, writes: list[RowWrite]) -> list[Finding]:
        """What was counted, and the bounds for tables whose rows go or change because a foreign key says so."""
        found: list[Finding] = [counted]
        if counted.rows == 0:
            return found
        reached: dict[TableName, RiskKind] = {}
        emptied = all(write.truncates for write in writes)
        for write in writes:
            for table, kind in handed_on(self._context.catalog, counted.table, write).items():
                if reached.get(table) is not RiskKind.DELETED:
                    reached[table] = kind
        for name, kind in sorted(reached.items()):
            if (name, kind) == (counted.table, counted.kind):
                continue
            risk = RowsAtRisk(revision=counted.revision, kind=kind, table=name)
            child = self._context.catalog.tables.get(name)
            if child is None:
                found.append(unknown(risk, self._context.catalog.missing(name)))
                continue
            part = await self._context.counting.count(risk, child.rows())
            if part.rows:
                found.append(msgspec.structs.replace(part, at_most=part.rows > 0 and not emptied))
        return found


def _may_move(earlier: RowWrite, write: RowWrite) -> bool:
    """Whether an earlier statement may change which rows of today a later one matches."""
    if earlier.table != write.table and earlier.table not in write.others:
        return False
    if earlier.table in write.others:
        return True
    if earlier.kind is RiskKind.DELETED:
        return False  # rows that are gone can only be fewer
    return earlier.assigned is None or bool(earlier.assigned & write.mentioned)
