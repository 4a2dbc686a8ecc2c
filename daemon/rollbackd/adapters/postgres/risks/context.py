"""What the questions about one way back have in common."""

from typing import NamedTuple

from rollbackd.adapters.postgres.risks.asking import Asking
from rollbackd.adapters.postgres.risks.counting import Counting
from rollbackd.adapters.postgres.risks.tables import Catalog
from rollbackd.core.rehearsal import Rehearsal
from rollbackd.core.schema import TableName


class Context(NamedTuple):
    """One rehearsal, the tables of today that it is about, and the means to ask about them."""

    rehearsal: Rehearsal
    catalog: Catalog
    asking: Asking
    counting: Counting

    def is_written(self, number: int, *tables: TableName | None) -> bool:
        """Whether the way back writes one of these tables before it comes to the end of this revision."""
        names = {name for name in tables if name is not None}
        return any(
            written.table in names or written.today in names
            for revision in self.rehearsal.revisions[: number + 1]
            for written in revision.written
        )
