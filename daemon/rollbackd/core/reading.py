"""Reading a downgrade before it runs: which tables and columns its statements destroy or rewrite.

A reading, and said to be one: SQL that the migration builds out of what it finds in the database can't be read. Where
statements can't be rendered, the calls in the source are read instead.
"""

from enum import StrEnum

import msgspec


class DowngradeBody(StrEnum):
    """What a revision's downgrade() is, as read from its source."""

    WRITTEN = "written"
    EMPTY = "empty"
    RAISES = "raises"
    MISSING = "missing"
    ASKS = "asks"


class EffectKind(StrEnum):
    """What a statement does to rows or values."""

    DROP_TABLE = "drop_table"
    DROP_COLUMN = "drop_column"
    CHANGE_TYPE = "change_type"
    DELETE = "delete"
    UPDATE = "update"
    TRUNCATE = "truncate"
    UNREAD = "unread"


DESTROYS = frozenset(
    {EffectKind.DROP_TABLE, EffectKind.DROP_COLUMN, EffectKind.CHANGE_TYPE, EffectKind.DELETE, EffectKind.UPDATE, EffectKind.TRUNCATE}
)


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One effect of one revision. `table` is `schema.table` or `table` as the statement names it."""

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

    `failed` says why its statements couldn't be rendered, `stands_alone` why it can't share a transaction.
    """

    id: str
    statements: tuple[str, ...] = ()
    failed: str = ""
    calls: tuple[SourceCall, ...] = ()
    downgrade: DowngradeBody = DowngradeBody.WRITTEN
    upgrade_is_empty: bool = False
    stands_alone: str = ""
    source_sha256: str = ""


def read_effects(read: ReadRevision) -> tuple[Effect, ...]:
    """The effects of one revision's downgrade, in order, each once."""
    found: list[Effect] = []
    if read.failed:
        found += [effect for call in read.calls for effect in _from_call(read.id, call)]
        found.append(Effect(revision=read.id, kind=EffectKind.UNREAD, detail=read.failed))
    else:
        for statement in read.statements:
            found += _from_statement(read.id, statement)
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


def _from_statement(revision: str, statement: str) -> list[Effect]:
    # sqlglot costs a fifth of a second to import, and only planning reads SQL.
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    try:
        parsed = [tree for tree in sqlglot.parse(statement, dialect="postgres") if tree is not None]
    except errors.SqlglotError:
        return [Effect(revision=revision, kind=EffectKind.UNREAD, detail=_shorten(statement))]
    found: list[Effect] = []

    def add(kind: EffectKind, table: str = "", column: str = "", detail: str = "") -> None:
        found.append(Effect(revision=revision, kind=kind, table=table, column=column, detail=detail))

    for tree in parsed:
        if isinstance(tree, exp.Command):
            if not _harmless(statement):
                add(EffectKind.UNREAD, detail=_shorten(statement))
            continue
        if isinstance(tree, exp.Drop):
            if tree.args.get("kind") in ("TABLE", "MATERIALIZED VIEW"):
                add(EffectKind.DROP_TABLE, _table_name(tree.find(exp.Table)))
            elif tree.args.get("kind") == "SCHEMA":
                add(EffectKind.UNREAD, detail=_shorten(statement))
        elif isinstance(tree, exp.Alter):
            table = _table_name(tree.find(exp.Table))
            for action in tree.args.get("actions") or []:
                if isinstance(action, exp.Drop) and action.args.get("kind") == "COLUMN":
                    add(EffectKind.DROP_COLUMN, table, action.this.name)
                elif isinstance(action, exp.AlterColumn) and action.args.get("dtype") is not None:
                    add(EffectKind.CHANGE_TYPE, table, action.this.name)
        elif isinstance(tree, exp.TruncateTable):
            for truncated in tree.expressions:
                add(EffectKind.TRUNCATE, _table_name(truncated))
        for delete in tree.find_all(exp.Delete):
            add(EffectKind.DELETE, _table_name(delete.this))
        for update in tree.find_all(exp.Update):
            changed = [e.this.name for e in update.expressions if isinstance(e, exp.EQ)]
            for column in changed or [""]:
                add(EffectKind.UPDATE, _table_name(update.this), column)
    return found


def _harmless(statement: str) -> bool:
    """Statements that sqlglot passes through unparsed and that hold no rows."""
    words = statement.strip().upper().split()
    if words[:1] in (["COMMENT"], ["GRANT"], ["REVOKE"], ["SET"], ["ANALYZE"], ["REINDEX"], ["LOCK"]):
        return True
    if words[:1] in (["ALTER"], ["DROP"], ["CREATE"]):
        kept = {"TYPE", "SEQUENCE", "VIEW", "FUNCTION", "TRIGGER", "INDEX", "POLICY", "RULE", "DOMAIN", "EXTENSION"}
        if words[1] in kept:
            return words[1] not in ("EXTENSION",)
        return words[1] == "TABLE" and "DROP CONSTRAINT" in statement.upper() and "DROP COLUMN" not in statement.upper()
    return False


def _table_name(table: object) -> str:
    parts = [getattr(table, name, "") for name in ("db", "name")]
    return ".".join(part for part in parts if part)


def _shorten(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 80 else line[:77] + "..."
