"""What each revision's statements do to rows, in their order."""

import re

from rollbackd.core.rehearsal import ChangedColumn, GoneColumn, NewRule, Rehearsal, WrittenTable
from rollbackd.core.risk_queries import RowWrite, read_writes
from rollbackd.core.risks import RiskKind
from rollbackd.core.schema import TableName

_INSERTS = re.compile(r"\b(?:INSERT|COPY|MERGE)\b", re.IGNORECASE)


class Timelines:
    """The timelines of one rehearsal's revisions, each read when it is first asked for."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self._timelines: dict[int, list[RowWrite]] = {}

    def of(self, number: int) -> list[RowWrite]:
        """What a revision does to rows, in order; an INSERT is a write that sets nothing, an unread one may set all."""
        if number not in self._timelines:
            revision = self._rehearsal.revisions[number]
            every: list[WrittenTable | GoneColumn | ChangedColumn | NewRule] = [
                *revision.written,
                *revision.gone_columns,
                *revision.changed_columns,
                *revision.new_rules,
            ]
            names = {item.table: item.today for item in every if item.today is not None}
            found: list[RowWrite] = []
            locked: set[TableName] = set()
            for statement in revision.statements:
                read = read_writes(statement, names)
                locked.update(statement.writes)
                if read is None:
                    # It may also write what an earlier statement had locked before it.
                    why = f"“{_shortened(statement.sql)}” can't be read"
                    found += [RowWrite(RiskKind.UPDATED, t, None, unread=why) for t in sorted(locked)]
                elif read:
                    found += read
                elif _INSERTS.search(statement.sql):
                    found += [RowWrite(RiskKind.UPDATED, t, inserts=True) for t in statement.writes]
            self._timelines[number] = found
        return self._timelines[number]

    def writes(self, number: int, written: WrittenTable) -> tuple[list[tuple[int, RowWrite]], str]:
        """What a revision overwrites or deletes in a table, with the place in its timeline; and what can't be read."""
        own = [(p, w) for p, w in enumerate(self.of(number)) if w.table == written.table]
        unread = [write.unread for _, write in own if write.unread]
        return [(p, w) for p, w in own if not w.unread and not w.inserts], unread[0] if unread else ""

    def is_inserted_only(self, number: int, written: WrittenTable) -> bool:
        """Whether all that is known to happen to the table's rows is that new ones come."""
        if written.updated or written.deleted:
            return False
        return bool(written.inserted) or any(
            write.inserts for write in self.of(number) if write.table == written.table
        )


def _shortened(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= 60 else line[:59] + "…"
