"""Reading a downgrade before it runs: which tables and columns its statements destroy or rewrite.

A reading, and said to be one: SQL that the migration builds out of what it finds in the database can't be read. Where
statements can't be rendered, the calls in the source are read instead. What SQL means is in `statements`.
"""

from enum import StrEnum

import msgspec

from rollbackd.core.statements import EffectKind, read_statement

__all__ = [
    "DESTROYS",
    "DowngradeBody",
    "Effect",
    "EffectKind",
    "ReadRevision",
    "SourceCall",
    "irreversible",
    "read_effects",
]


class DowngradeBody(StrEnum):
    """What a revision's downgrade() is, as read from its source."""

    WRITTEN = "written"
    EMPTY = "empty"
    RAISES = "raises"
    MISSING = "missing"
    ASKS = "asks"


DESTROYS = frozenset(
    {
        EffectKind.DROP_TABLE,
        EffectKind.DROP_COLUMN,
        EffectKind.CHANGE_TYPE,
        EffectKind.DELETE,
        EffectKind.UPDATE,
        EffectKind.TRUNCATE,
    }
)


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One effect of one revision.

    `table` is `schema.table` or `table`, each part as the catalog has it (unquoted, and folded where the statement
    doesn't quote it).
    """

    revision: str
    kind: EffectKind
    table: str = ""
    column: str = ""
    detail: str = ""

    def text(self) -> str:
        """The effect in a few words."""
        place = f"{self.table}.{self.column}" if self.column else self.table
        words = {
            EffectKind.DROP_TABLE: f"every row of {place}",
            EffectKind.DROP_COLUMN: f"the values of {place}",
            EffectKind.CHANGE_TYPE: f"values of {place} that its old type can't hold",
            EffectKind.DELETE: f"rows deleted from {place}",
            EffectKind.UPDATE: f"values overwritten in {place}",
            EffectKind.TRUNCATE: f"every row of {place}",
            EffectKind.UNREAD: f"unknown ({self.detail})",
        }
        return words[self.kind]


class SourceCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call in the source of downgrade(), such as drop_column with the literals it was given."""

    name: str
    table: str = ""
    column: str = ""


class ReadRevision(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker read of one revision without running it on a database.

    `failed` says why its statements couldn't be rendered, `stands_alone` why it can't share a transaction. `path` (from the
    migrations folder) and `line` are where its downgrade() stands.
    """

    id: str
    statements: tuple[str, ...] = ()
    failed: str = ""
    calls: tuple[SourceCall, ...] = ()
    downgrade: DowngradeBody = DowngradeBody.WRITTEN
    upgrade_is_empty: bool = False
    stands_alone: str = ""
    source_sha256: str = ""
    path: str = ""
    line: int = 1


def read_effects(read: ReadRevision) -> tuple[Effect, ...]:
    """The effects of one revision's downgrade, in order, each once."""
    found: list[Effect] = []
    if read.failed:
        found += [effect for call in read.calls for effect in _from_call(read.id, call)]
        found.append(Effect(revision=read.id, kind=EffectKind.UNREAD, detail=read.failed))
    else:
        for statement in read.statements:
            found += [
                Effect(revision=read.id, kind=kind, table=table, column=column, detail=detail)
                for kind, table, column, detail in read_statement(statement)
            ]
    return tuple(dict.fromkeys(found))


def irreversible(read: ReadRevision) -> str:
    """Why this revision can't be taken off, in a sentence; empty where it can."""
    revision, body = read.id, read.downgrade
    if body is DowngradeBody.RAISES:
        return f"{revision} is declared irreversible: its downgrade() raises; fix forward, or restore the backup by hand"
    if body is DowngradeBody.ASKS:
        return f"{revision} asks a question (input()), so it can't run unattended; write a downgrade() that doesn't"
    if body is DowngradeBody.MISSING:
        return f"{revision} has no downgrade(); write one and put it in the migrations folder, or fix forward"
    if body is DowngradeBody.EMPTY and not read.upgrade_is_empty:
        return (
            f"{revision} is silently irreversible: its upgrade() does something and its downgrade() nothing, so the stamp"
            " would move and the schema would not; write the downgrade(), or fix forward"
        )
    return ""


def _from_call(revision: str, call: SourceCall) -> list[Effect]:
    kinds = {"drop_table": EffectKind.DROP_TABLE, "drop_column": EffectKind.DROP_COLUMN}
    kind = kinds.get(call.name)
    return [Effect(revision=revision, kind=kind, table=call.table, column=call.column)] if kind else []
