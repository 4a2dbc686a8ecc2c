"""What a rehearsal showed: the real downgrade, run on a scratch copy, as observed from the catalog."""

from enum import StrEnum
from typing import Literal

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.schema import Schema, SchemaDifference, TableName


class Depth(StrEnum):
    """What the scratch copy holds: the schema and the version table, a referentially closed sample, or everything."""

    SCHEMA = "schema"
    SAMPLE = "sample"
    FULL = "full"


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Which revisions are run, in this order, from where to where.

    `kept_scripts` is the digest of a kept release's scripts (empty: the live ones); `archive` is what the worker keeps
    before each revision, as it will in earnest. Without `observe` they are only run: for getting somewhere quickly.
    """

    direction: Literal["down", "up"] = "down"
    revisions: tuple[str, ...]
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    kept_scripts: str = ""
    archive: tuple[ArchiveItem, ...] = ()
    observe: bool = True


class GoneColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table that outlives it. `today` and `today_column` name it where the way back begins.

    `required` where an insert has to name it: NOT NULL, and nothing fills it in.
    """

    table: TableName
    column: str
    today: TableName | None
    today_column: str
    generated: bool = False
    required: bool = False


class ChangedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column whose type changed; `keeps_values` where every value of the old type is one of the new.

    `using` is the expression of an ALTER … USING where it could be read, `labels` are those of the old enum type that the
    new type lacks.
    """

    table: TableName
    column: str
    old_type: str
    new_type: str
    keeps_values: bool
    today: TableName | None
    today_column: str
    using: str = ""
    labels: tuple[str, ...] = ()


class GoneTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that was dropped; None in `today` when the way back itself had made it."""

    table: TableName
    today: TableName | None


class NewRule(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint that rows must pass from then on: not_null, unique, foreign_key or check.

    Columns are today's names; a rule about a column that isn't there today has an empty name in its place. For a
    foreign key `other` and `other_columns` are what it points to, `definition` is PostgreSQL's own.
    """

    kind: str
    name: str
    table: TableName
    today: TableName | None
    columns: tuple[str, ...]
    definition: str
    other: TableName | None = None
    other_columns: tuple[str, ...] = ()
    nulls_not_distinct: bool = False
    predicate: str = ""


class WrittenTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that a step wrote rows of, or would where there were any; numbers are those of the copy.

    `may_lose` where it is more than inserting: rows can be changed or removed, if by a foreign key's action.
    """

    table: TableName
    today: TableName | None
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    may_lose: bool = True


class TakenRows(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a table that one revision's statements removed or changed, or values of a column that its new type changed;
    as its own archive kept them. `column` is empty for rows.
    """

    revision: str
    table: TableName
    rows: int
    column: str = ""


class TakenLock(msgspec.Struct, frozen=True, kw_only=True):
    """The strongest lock that a step took on a relation that was there before it."""

    table: TableName
    mode: str


class RanStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement as it was executed; the tables are those whose locks it took first, or that it names."""

    sql: str
    seconds: float
    reads: tuple[TableName, ...] = ()
    writes: tuple[TableName, ...] = ()
    rows: int = -1


class RehearsedRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One revision's downgrade (or upgrade) on the copy.

    `gone_constraints` and `gone_unique_indexes` are those of tables that are there afterwards, on columns of which at least
    one is there as well.
    """

    id: str
    seconds: float
    statements: tuple[RanStatement, ...] = ()
    gone_tables: tuple[GoneTable, ...] = ()
    gone_columns: tuple[GoneColumn, ...] = ()
    changed_columns: tuple[ChangedColumn, ...] = ()
    new_rules: tuple[NewRule, ...] = ()
    written: tuple[WrittenTable, ...] = ()
    read: tuple[TableName, ...] = ()
    locks: tuple[TakenLock, ...] = ()
    rewritten: tuple[TableName, ...] = ()
    gone_views: tuple[TableName, ...] = ()
    gone_unique_indexes: tuple[str, ...] = ()
    gone_constraints: tuple[str, ...] = ()
    transactional: bool = True

    def joined(self, again: "RehearsedRevision") -> "RehearsedRevision":
        """The same revision, run once more elsewhere, as one."""
        both = {
            name: tuple(dict.fromkeys((*getattr(self, name), *getattr(again, name))))
            for name in self.__struct_fields__
            if isinstance(getattr(self, name), tuple)
        }
        return msgspec.structs.replace(
            self,
            **both,
            seconds=self.seconds + again.seconds,
            transactional=self.transactional and again.transactional,
        )

    @property
    def uses_rows(self) -> bool:
        """Whether what it does may depend on rows, so that an empty copy proves little."""
        return bool(self.written or self.read)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What failed and why; `sqlstate` where the database said so, `statement` where one was being executed."""

    revision: str
    reason: str
    sqlstate: str = ""
    statement: str = ""


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """One rehearsal. With `failure` it stopped there; with `unknown` it couldn't be made, and why.

    `expected` is the schema that it led to, with owners and grants where the copy had them (`keeps_owners`). `archive` is
    what has to be kept before each revision, as what went and changed was seen; `kept` is what was, where the way said so.
    `taken` is exactly what its statements did to rows, where a copy with every row could tell; None where none could.
    `renamed` are tables with another name afterwards: today's and that one.
    """

    depth: Depth
    from_heads: tuple[str, ...]
    to_heads: tuple[str, ...]
    heads: tuple[str, ...] = ()
    revisions: tuple[RehearsedRevision, ...] = ()
    difference: SchemaDifference = SchemaDifference()
    expected: Schema = Schema({})
    failure: Failure | None = None
    unknown: str = ""
    seconds: float = 0.0
    rows: int = 0
    keeps_owners: bool = False
    archive: tuple[ArchiveItem, ...] = ()
    kept: tuple[dict[str, object], ...] = ()
    taken: tuple[TakenRows, ...] | None = None
    renamed: tuple[tuple[TableName, TableName], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it reached the heads that were wanted."""
        return not self.failure and not self.unknown and set(self.heads) == set(self.to_heads)
