"""Archives: tables inside the guarded database that keep what a downgrade takes away, so that it can be brought back.

Everything lies in one schema. `entries` says what is kept, one row each, in the order in which it was kept; bringing
back goes through them backwards.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

from rollbackd.core.schema import TableName

SCHEMA = "rollbackd_archive"
ENTRIES = TableName(SCHEMA, "entries")
# The columns of an archive's own, beside those of the table it keeps.
ROW = "rollbackd_row"
OLD_VALUE = "rollbackd_old"
NEW_VALUE = "rollbackd_new"
# What must be there before something is kept; each may be run again. `definition` is a KeptDefinition as JSON.
SETUP = (
    f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}",
    f"""\
CREATE TABLE IF NOT EXISTS {SCHEMA}.entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text NOT NULL,
    revision text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('table', 'column', 'narrowed', 'rows')),
    table_schema text NOT NULL,
    table_name text NOT NULL,
    column_name text NOT NULL DEFAULT '',
    key_columns text[] NOT NULL DEFAULT '{{}}',
    archive text NOT NULL UNIQUE,
    row_count bigint NOT NULL,
    definition jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    restored_at timestamptz
)""",
)


class ArchiveKind(StrEnum):
    """What of a table is kept.

    `table`: every row of a dropped table, a column for each column of it.
    `column`: the non-null values of a dropped column, beside the key columns.
    `narrowed`: values that a change of type altered: the key columns, `rollbackd_old` and `rollbackd_new`, both as text.
    `rows`: rows that a statement removed or changed: `rollbackd_old` and, for a changed one, `rollbackd_new`, each a jsonb
    object of column name to the value's text (or null).
    """

    TABLE = "table"
    COLUMN = "column"
    NARROWED = "narrowed"
    ROWS = "rows"


class ArchiveItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a downgrade has to keep before it runs a revision, named as it is when that revision begins.

    `key` identifies a row afterwards; where the table has none that outlives the revision it is empty, and every
    remaining column is kept beside the value, and `rollbackd_row` numbers the archive. `today` is the table's name where
    the way back begins, which is the name it has again once everything is upgraded; `renamed` are those of its columns
    that have another one there: the name here, and that one. `copied` says that the daemon copied it ahead, so that only
    what was written since is left to do.
    """

    revision: str
    kind: ArchiveKind
    table: TableName
    column: str = ""
    new_type: str = ""
    today: TableName | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    key: tuple[str, ...] = ()
    copied: bool = False


class KeptColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column as it was: everything that its re-creation or its values' return may need.

    `type` is PostgreSQL's own full name for it. `as_text` where the archive holds the value's text, because its type is
    not PostgreSQL's own and might be dropped. `generated` is the expression of a generated column, `identity` is
    `always` or `by default`.
    """

    name: str
    type: str
    as_text: bool = False
    not_null: bool = False
    default: str = ""
    identity: str = ""
    generated: str = ""
    collation: str = ""
    comment: str = ""
    grants: tuple[str, ...] = ()


class KeptConstraint(msgspec.Struct, frozen=True, kw_only=True):
    """A constraint as it was; `kind` is primary_key, unique, foreign_key, check or exclude."""

    name: str
    kind: str
    definition: str
    columns: tuple[str, ...] = ()
    other: TableName | None = None
    other_columns: tuple[str, ...] = ()


class KeptSequence(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that a kept column owned, and the last value that it gave (0: none yet)."""

    sequence: TableName
    column: str
    last_value: int
    increment: int = 1


class KeptPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition of a kept table, at whatever depth: its bound, and how it is itself partitioned."""

    table: TableName
    bound: str
    partition_key: str = ""


class KeptDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """The table, or the part of it that is kept, as it was when it was kept.

    Of one column's archive: the columns that the archive has from the table, the kept one last, and what names it. `today`
    and `renamed` are the table's and its columns' names where the way back began, as an ArchiveItem has them.
    """

    columns: tuple[KeptColumn, ...]
    constraints: tuple[KeptConstraint, ...] = ()
    indexes: tuple[str, ...] = ()
    sequences: tuple[KeptSequence, ...] = ()
    owner: str = ""
    grants: tuple[str, ...] = ()
    comment: str = ""
    today: TableName | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    partition_of: str = ""
    partition_key: str = ""
    partitions: tuple[KeptPartition, ...] = ()


class ArchiveEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `rollbackd_archive.entries`: what is kept, of which run, step and revision, and where.

    `archive` is the name of the table in the schema `rollbackd_archive` that holds it.
    """

    id: int
    run: str
    revision: str
    kind: ArchiveKind
    table: TableName
    column: str
    key: tuple[str, ...]
    archive: str
    rows: int
    definition: KeptDefinition
    made_at: datetime
    restored_at: datetime | None = None
