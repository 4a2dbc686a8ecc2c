"""The tables as they are now: what of their columns, keys and sequences bringing back has to know."""

import re

import msgspec

from rollbackd.core.archives import KeptConstraint, KeptSequence
from rollbackd.core.schema import TableName


class PresentColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column as it is now; `filled` is the value that rows got which were there before it.

    Values of a type that isn't PostgreSQL's own (`as_text`) are compared as text: no other operator is sure to be found.
    """

    name: str
    type: str
    as_text: bool = False
    default: str = ""
    identity: str = ""
    generated: str = ""
    filled: str | None = None


class UniquePart(msgspec.Struct, frozen=True, kw_only=True):
    """What a unique index compares: an expression, and the column's name where it is nothing but a column."""

    sql: str
    column: str = ""


class PresentUnique(msgspec.Struct, frozen=True, kw_only=True):
    """A unique index as it is now; `columns` are all that it needs of a row, for its condition (`where`) too."""

    parts: tuple[UniquePart, ...]
    columns: tuple[str, ...]
    where: str = ""
    nulls_equal: bool = False


class PresentTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table as it is now; `kind` is `p` for a partitioned one and `r` for any other."""

    schema: str
    name: str
    kind: str
    columns: tuple[PresentColumn, ...]
    constraints: tuple[KeptConstraint, ...] = ()
    sequences: tuple[KeptSequence, ...] = ()
    uniques: tuple[PresentUnique, ...] = ()

    @property
    def table(self) -> TableName:
        """Its name."""
        return TableName(self.schema, self.name)

    def column(self, name: str) -> PresentColumn | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)

    def parents(self) -> tuple[KeptConstraint, ...]:
        """Its foreign keys."""
        return tuple(c for c in self.constraints if c.kind == "foreign_key" and c.other is not None)

    def defers_uniqueness(self) -> bool:
        """Whether something unique is only checked later, which ON CONFLICT doesn't take."""
        kinds = ("primary_key", "unique", "exclude")
        return any(
            c.kind in kinds and re.search(r"(?<!NOT )DEFERRABLE", c.definition) for c in self.constraints
        )

    def rows(self) -> str:
        """Its own rows, as FROM and UPDATE take them: heirs' rows are kept as their own table's."""
        return self.table.sql() if self.kind == "p" else f"ONLY {self.table.sql()}"
