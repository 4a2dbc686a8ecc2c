"""What one SQL statement destroys or rewrites, as far as it can be read.

The rule: a statement is understood, or it is known to be harmless, or it is `unread`. Nothing passes in silence.
"""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sqlglot import exp


class EffectKind(StrEnum):
    """What a statement does to rows or values."""

    DROP_TABLE = "drop_table"
    DROP_COLUMN = "drop_column"
    CHANGE_TYPE = "change_type"
    DELETE = "delete"
    UPDATE = "update"
    TRUNCATE = "truncate"
    UNREAD = "unread"


class StatementEffect(NamedTuple):
    """One effect; `detail` is the statement itself where it couldn't be read."""

    kind: EffectKind
    table: str = ""
    column: str = ""
    detail: str = ""


# Functions that sqlglot has no class for and that change no row. Any other may do anything (a function of the user's
# own, lo_unlink, dblink), so a statement that calls it is unread.
HARMLESS_FUNCTIONS = frozenset(
    [
        "setval",
        "nextval",
        "currval",
        "lastval",
        "pg_get_serial_sequence",
        "current_setting",
        "version",
        "to_regclass",
        "obj_description",
        "col_description",
        "format_type",
        "quote_ident",
        "quote_literal",
        "quote_nullable",
        "pg_advisory_lock",
        "pg_advisory_unlock",
        "pg_advisory_xact_lock",
        "pg_try_advisory_lock",
        "pg_try_advisory_xact_lock",
        "pg_sleep",
        "uuid_generate_v1",
        "uuid_generate_v4",
        "gen_random_bytes",
        "clock_timestamp",
        "statement_timestamp",
        "timeofday",
        "age",
        "jsonb_build_object",
        "json_build_object",
        "jsonb_build_array",
        "json_build_array",
        "jsonb_set",
        "jsonb_insert",
        "jsonb_agg",
        "json_agg",
        "jsonb_strip_nulls",
        "json_strip_nulls",
        "jsonb_array_elements",
        "json_array_elements",
        "jsonb_array_elements_text",
        "json_array_elements_text",
        "jsonb_array_length",
        "json_array_length",
        "jsonb_each",
        "jsonb_each_text",
        "jsonb_typeof",
        "json_typeof",
        "to_jsonb",
        "to_json",
        "row_to_json",
        "jsonb_extract_path",
        "jsonb_extract_path_text",
        "jsonb_populate_record",
        "jsonb_to_record",
        "array_to_json",
        "array_append",
        "array_prepend",
        "array_cat",
        "array_remove",
        "array_replace",
        "array_position",
        "array_upper",
        "array_lower",
        "array_dims",
        "cardinality",
        "unnest",
        "string_to_array",
        "array_to_string",
        "num_nulls",
        "num_nonnulls",
        "regexp_matches",
        "regexp_match",
        "regexp_split_to_table",
        "regexp_split_to_array",
        "btrim",
        "ltrim",
        "rtrim",
        "to_tsvector",
        "to_tsquery",
        "plainto_tsquery",
        "setweight",
        "make_date",
        "make_interval",
        "make_timestamp",
        "make_timestamptz",
        "to_number",
        "justify_days",
        "numrange",
        "int4range",
        "int8range",
        "daterange",
        "tsrange",
        "tstzrange",
        "lower_inc",
        "upper_inc",
        "isempty",
    ]
)

# Dropping one of these takes no row along unless CASCADE is said; with CASCADE it may take columns and tables.
_HOLDS_NO_ROWS = frozenset(
    [
        "INDEX",
        "VIEW",
        "SEQUENCE",
        "FUNCTION",
        "PROCEDURE",
        "ROUTINE",
        "AGGREGATE",
        "TRIGGER",
        "TYPE",
        "DOMAIN",
        "POLICY",
        "RULE",
        "SCHEMA",
        "COLLATION",
        "STATISTICS",
        "CAST",
        "OPERATOR",
        "PUBLICATION",
    ]
)
# What hangs on these are foreign keys, defaults and the like, so that even CASCADE takes no row.
_CASCADES_WITHOUT_ROWS = frozenset({"INDEX", "SEQUENCE", "TRIGGER", "POLICY", "RULE"})
_CREATES = _HOLDS_NO_ROWS - {"RULE"} | {"EXTENSION", "TABLE"}

_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_TABLE = rf"{_NAME}(?:\.{_NAME})?"
# Statements that sqlglot passes through unparsed, each matched whole: a list of actions with a comma in it never is.
_HARMLESS_TEXT = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        r"(?:GRANT|REVOKE|REINDEX|LOCK|ANALYZE|VACUUM|SHOW)\b.*",
        r"COMMENT\s+ON\s.*",
        r"RESET\b(?!\s*(?:search_path|ALL)\b).*",
        r"SET\b(?!\s*(?:(?:LOCAL|SESSION)\s+)?(?:search_path|SCHEMA)\b).*",
        r"ALTER\s+TYPE\s+\S+\s+(?:ADD\s+VALUE|RENAME|OWNER\s+TO|SET\s+SCHEMA)\b.*",
        r"ALTER\s+(?:SEQUENCE|FUNCTION|PROCEDURE|ROUTINE|AGGREGATE|TRIGGER|POLICY|INDEX|VIEW|DOMAIN|PUBLICATION)\b.*",
        r"ALTER\s+DEFAULT\s+PRIVILEGES\b.*",
        rf"ALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?{_TABLE}\s+(?:"
        rf"OWNER\s+TO\s+{_NAME}|SET\s+SCHEMA\s+{_NAME}|VALIDATE\s+CONSTRAINT\s+{_NAME}|CLUSTER\s+ON\s+{_NAME}"
        rf"|RENAME\s+CONSTRAINT\s+{_NAME}\s+TO\s+{_NAME}|(?:ENABLE|DISABLE|FORCE|NO\s+FORCE|REPLICA\s+IDENTITY)\s[^,;]+"
        rf"|ADD\s+(?:CONSTRAINT\s+{_NAME}\s+)?(?:CHECK|UNIQUE|PRIMARY\s+KEY|FOREIGN\s+KEY|EXCLUDE)\b[^,;]+"
        rf"|ALTER\s+(?:COLUMN\s+)?{_NAME}\s+(?:DROP\s+EXPRESSION|DROP\s+IDENTITY|ADD\s+GENERATED|SET\s+GENERATED|RESTART"
        r"|SET\s+STATISTICS|SET\s+STORAGE|SET\s+COMPRESSION)\b[^,;]*|ATTACH\s+PARTITION\b[^;]*"
        r")\s*",
        rf"CREATE\s+(?:OR\s+REPLACE\s+)?(?:CONSTRAINT\s+|UNIQUE\s+)?(?:{'|'.join(sorted(_CREATES - {'TABLE'}))})\b.*",
    )
)
_DROP = re.compile(r"DROP\s+(\w+)\b(.*)", re.IGNORECASE | re.DOTALL)
_CREATE_TABLE = re.compile(
    r"CREATE\s+(?:(?:GLOBAL|LOCAL|TEMP|TEMPORARY|UNLOGGED)\s+)*TABLE\b(.*)", re.IGNORECASE | re.DOTALL
)


def read_statement(statement: str) -> tuple[StatementEffect, ...]:
    """The effects of a string of one or more statements, in order."""
    # sqlglot costs a fifth of a second to import, and only planning reads SQL.
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    unread = StatementEffect(EffectKind.UNREAD, detail=_shorten(statement))
    try:
        trees = sqlglot.parse(statement, dialect="postgres")
    except (errors.SqlglotError, RecursionError):
        text = statement.strip().rstrip(";")
        # With a semicolon in it there may be a second statement behind the harmless first one.
        return () if ";" not in text and _is_harmless_text(text) else (unread,)
    found: list[StatementEffect] = []
    for tree in trees:
        if tree is not None:
            found += _read_tree(tree, unread) if isinstance(tree, exp.Expression) else [unread]
    return tuple(found)


def read_using(statement: str, table: str, column: str) -> str:
    """The USING expression of an ALTER COLUMN … TYPE on this column, as SQL; empty where there is none to be read."""
    if "using" not in statement.lower():
        return ""
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    try:
        trees = sqlglot.parse(statement, dialect="postgres")
    except (errors.SqlglotError, RecursionError):
        return ""
    for tree in trees:
        if (
            not isinstance(tree, exp.Alter)
            or not isinstance(tree.this, exp.Table)
            or _name(tree.this.this) != table
        ):
            continue
        for action in tree.args.get("actions") or []:
            using = action.args.get("using") if isinstance(action, exp.AlterColumn) else None
            if using is not None and _name(action.this) == column:
                return str(using.sql(dialect="postgres"))
    return ""


def _read_tree(tree: "exp.Expression", unread: StatementEffect) -> list[StatementEffect]:
    from sqlglot import exp  # noqa: PLC0415

    match tree:
        case exp.Command():
            text = tree.args.get("expression") or ""
            rest = text.name if isinstance(text, exp.Expression) else str(text)
            return [] if _is_harmless_text(f"{tree.name} {rest}") else [unread]
        case exp.Drop():
            return _read_drop(tree, unread)
        case exp.Alter():
            return _read_alter(tree, unread)
        case exp.TruncateTable():
            found = [_on(EffectKind.TRUNCATE, table, unread) for table in tree.expressions]
            # CASCADE empties whatever refers to them.
            return [*found, unread] if tree.args.get("option") == "CASCADE" else found
        case exp.Set():
            return [unread] if _moves_search_path(tree) else []
        case exp.Comment() | exp.Grant() | exp.Revoke() | exp.Analyze() | exp.Transaction() | exp.Commit():
            return []
        case exp.Create():
            return _read_create(tree, unread)
        case exp.Query() | exp.Values() | exp.Insert() | exp.Update() | exp.Delete() | exp.Merge():
            return _read_rows(tree, unread)
    return [unread]


def _read_drop(drop: "exp.Drop", unread: StatementEffect) -> list[StatementEffect]:
    kind, cascades = str(drop.args.get("kind")), bool(drop.args.get("cascade"))
    if kind == "TABLE":
        found = [_on(EffectKind.DROP_TABLE, table, unread) for table in _targets(drop)]
        # Tables that inherit from it go with it, and nobody reads here which those are.
        return [*found, unread] if cascades or not found else found
    # A materialized view may hold rows whose sources are gone, and no dump of tables keeps them.
    if kind not in _HOLDS_NO_ROWS or drop.args.get("materialized"):
        return [unread]
    return [unread] if cascades and kind not in _CASCADES_WITHOUT_ROWS else []


def _read_alter(alter: "exp.Alter", unread: StatementEffect) -> list[StatementEffect]:
    from sqlglot import exp  # noqa: PLC0415

    if alter.args.get("kind") in ("INDEX", "VIEW", "SEQUENCE"):
        return []
    actions = alter.args.get("actions") or []
    if alter.args.get("kind") != "TABLE" or not actions:
        return [unread]
    found: list[StatementEffect] = []
    for action in actions:
        match action:
            case exp.Drop() if action.args.get("kind") == "COLUMN":
                found += [
                    _on(EffectKind.DROP_COLUMN, alter.this, unread, _name(column))
                    for column in _targets(action)
                ] or [unread]
            case exp.Drop() if action.args.get("kind") == "CONSTRAINT":
                pass
            case exp.AlterColumn() if action.args.get("dtype") is not None:
                found.append(_on(EffectKind.CHANGE_TYPE, alter.this, unread, _name(action.this)))
            case (
                exp.AlterColumn()
                | exp.ColumnDef()
                | exp.AddConstraint()
                | exp.AlterRename()
                | exp.RenameColumn()
            ):
                pass
            case exp.AlterSet() if str(action.args.get("option") or "").upper() != "UNLOGGED":
                pass
            case _:
                found.append(unread)
    return found


def _read_create(create: "exp.Create", unread: StatementEffect) -> list[StatementEffect]:
    from sqlglot import exp  # noqa: PLC0415

    if create.find(exp.MaterializedProperty) or (
        create.args.get("kind") == "TABLE" and not create.args.get("replace")
    ):
        # Filled at once by its query, so that the query's functions are called.
        query = create.args.get("expression")
        return _read_rows(query, unread) if isinstance(query, exp.Expression) else []
    return [] if create.args.get("kind") in _CREATES - {"TABLE"} else [unread]


def _read_rows(tree: "exp.Expression", unread: StatementEffect) -> list[StatementEffect]:
    """What a statement that reads or writes rows does to them, its CTEs included."""
    from sqlglot import exp  # noqa: PLC0415

    found: list[StatementEffect] = []
    for node in tree.find_all(exp.Delete, exp.Update, exp.OnConflict, exp.Merge):
        match node:
            case exp.Delete():
                found.append(_on(EffectKind.DELETE, node.this, unread))
            case exp.Update() if isinstance(node.parent, exp.When):
                target = node.find_ancestor(exp.Merge)
                found += _updates(target.this if target else None, node.expressions, unread)
            case exp.Update():
                found += _updates(node.this, node.expressions, unread)
            case exp.OnConflict() if node.expressions:
                insert = node.find_ancestor(exp.Insert)
                found += _updates(insert.this if insert else None, node.expressions, unread)
            case exp.Merge():
                if any(w.args["then"].name.upper() == "DELETE" for w in node.find_all(exp.When)):
                    found.append(_on(EffectKind.DELETE, node.this, unread))
    if any(not _is_harmless_call(call) for call in tree.find_all(exp.Anonymous)):
        found.append(unread)
    return found


def _updates(
    table: object, assignments: list["exp.Expression"], unread: StatementEffect
) -> list[StatementEffect]:
    from sqlglot import exp  # noqa: PLC0415

    columns: list[str] = []
    for assignment in assignments:
        target = assignment.this if isinstance(assignment, exp.EQ) else None
        if isinstance(target, exp.Tuple):
            columns += [_name(part) for part in target.expressions]
        elif isinstance(target, exp.Bracket):
            columns.append(_name(target.this))
        elif isinstance(target, exp.Column) and target.args.get("table"):
            columns.append(_folded(target.args["table"]))  # a field of a composite column
        else:
            columns.append(_name(target))
    return [_on(EffectKind.UPDATE, table, unread, column) for column in columns or [""]]


def _is_harmless_call(call: "exp.Anonymous") -> bool:
    from sqlglot import exp  # noqa: PLC0415

    name = call.name.lower()
    if isinstance(call.parent, exp.Dot) and call.parent.this.name.lower() != "pg_catalog":
        return False
    if name == "set_config":
        return bool(call.expressions) and call.expressions[0].name.lower() not in ("", "search_path")
    return name in HARMLESS_FUNCTIONS


def _moves_search_path(setting: "exp.Set") -> bool:
    """Whether names mean something else from here on; the tables named later couldn't be told then."""
    from sqlglot import exp  # noqa: PLC0415

    return any(column.name.lower() == "search_path" for column in setting.find_all(exp.Column))


def _is_harmless_text(text: str) -> bool:
    """Whether a statement that isn't parsed surely destroys nothing."""
    line = text.strip()
    if dropping := _DROP.fullmatch(line):
        kind, rest = dropping[1].upper(), dropping[2].upper()
        return kind in _HOLDS_NO_ROWS and ("CASCADE" not in rest or kind in _CASCADES_WITHOUT_ROWS)
    if creating := _CREATE_TABLE.fullmatch(line):
        return re.search(r"\b(AS|EXECUTE)\b", creating[1], re.IGNORECASE) is None
    return any(pattern.fullmatch(line) for pattern in _HARMLESS_TEXT)


def _targets(drop: "exp.Drop") -> list["exp.Expression"]:
    """What a DROP names: a list since sqlglot 30, one before."""
    several = drop.args.get("tables")
    return list(several) if several else [drop.this] if drop.this else []


def _on(kind: EffectKind, table: object, unread: StatementEffect, column: str = "") -> StatementEffect:
    """The effect on a table; a table that isn't a plain name, or one with a dot in it, makes the statement unread."""
    from sqlglot import exp  # noqa: PLC0415

    named = table.this if isinstance(table, exp.Schema) else table
    if not isinstance(named, exp.Table) or not isinstance(named.this, exp.Identifier):
        return unread
    parts = [_folded(part) for part in (named.args.get("db"), named.this) if part]
    if any("." in part for part in parts):
        return unread
    return StatementEffect(kind, ".".join(parts), column)


def _name(node: object) -> str:
    from sqlglot import exp  # noqa: PLC0415

    if isinstance(node, exp.Column):
        return _folded(node.this)
    return _folded(node) if isinstance(node, exp.Identifier) else ""


def _folded(identifier: object) -> str:
    """A name as the catalog has it: unquoted ones are folded to lower case."""
    from sqlglot import exp  # noqa: PLC0415

    if not isinstance(identifier, exp.Identifier):
        return str(getattr(identifier, "name", ""))
    return identifier.name if identifier.args.get("quoted") else identifier.name.lower()


def _shorten(statement: str) -> str:
    line = " ".join(statement.split())
    return line if len(line) <= 80 else line[:77] + "..."
