"""SQL for counting what a way back costs: statements turned into the rows they would write, casts into the values refused.

Whatever can't be read says so; nothing is guessed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from rollbackd.core.rehearsal import NewRule, RanStatement
from rollbackd.core.risks import RiskKind
from rollbackd.core.schema import TableName, quoted
from rollbackd.core.statements import HARMLESS_FUNCTIONS, EffectKind, read_statement

if TYPE_CHECKING:
    from sqlglot import exp

_KINDS = {
    EffectKind.UPDATE: RiskKind.UPDATED,
    EffectKind.DELETE: RiskKind.DELETED,
    EffectKind.TRUNCATE: RiskKind.DELETED,
}
_INTEGERS = {
    "smallint": 15, "int2": 15, "integer": 31, "int": 31, "int4": 31, "bigint": 63, "int8": 63,
}  # fmt: skip
_TYPE = re.compile(
    r"(?P<name>[a-z][a-z0-9_ ]*?)\s*(?:\(\s*(?P<first>\d+)\s*(?:,\s*(?P<second>-?\d+)\s*)?\))?(?P<array>(?:\[\])*)",
    re.IGNORECASE,
)
_CHECK = re.compile(
    r"CHECK\s*\((?P<rule>.*)\)(?P<marks>(?: NO INHERIT| NOT VALID| NOT ENFORCED)*)", re.DOTALL
)
_PIECES = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(\$\w*\$).*?\1|[^'"$]+|.""", re.DOTALL)


class RowWrite(NamedTuple):
    """One UPDATE, DELETE or TRUNCATE of a table, by the name that the table has when the statement is run.

    `rows` is `FROM … WHERE …` with today's names and `alias` the table's in there; empty where it can't be said, which
    `uncounted` explains. `assigned` are the columns that are set, None where they can't be told; `mentioned` those that
    the statement reads, `others` the other tables. `empties` what refers to the table, too: TRUNCATE … CASCADE. Two
    kinds stand for what isn't one of the three: it only `inserts`, or it is `unread`, and why.
    """

    kind: RiskKind
    table: TableName
    assigned: frozenset[str] | None = frozenset()
    rows: str = ""
    alias: str = ""
    prefix: str = ""
    uncounted: str = ""
    mentioned: frozenset[str] = frozenset()
    others: frozenset[TableName] = frozenset()
    joined: bool = False
    truncates: bool = False
    empties: bool = False
    inserts: bool = False
    unread: str = ""


def literal(text: str) -> str:
    """Text as an SQL string, whatever `standard_conforming_strings` says."""
    escaped = text.replace("'", "''")
    return "E'" + escaped.replace("\\", "\\\\") + "'" if "\\" in text else f"'{escaped}'"


def read_writes(statement: RanStatement, today: Mapping[TableName, TableName]) -> tuple[RowWrite, ...] | None:
    """What a statement does to rows; None where it can't be read, empty where no row is overwritten or deleted.

    `today` gives the present name of tables that the way back renamed before.
    """
    # sqlglot costs a fifth of a second to import, and only planning reads SQL.
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    text = _single_percent(statement.sql)
    try:
        trees = [tree for tree in sqlglot.parse(text, dialect="postgres") if tree is not None]
    except (errors.SqlglotError, RecursionError):
        trees = []
    if len(trees) == 1 and isinstance(trees[0], exp.Update | exp.Delete | exp.TruncateTable):
        found = _read_plain(trees[0], statement, today)
        if found is not None:
            return found
    writes: list[RowWrite] = []
    for effect in read_statement(text):
        if effect.kind is EffectKind.UNREAD:
            return None
        if effect.kind in _KINDS:
            schema, _, name = effect.table.rpartition(".")
            table = _resolve(schema, name, statement, today)
            if table is None:
                return None
            columns = frozenset([effect.column]) if effect.column else None
            writes.append(
                RowWrite(_KINDS[effect.kind], table, columns, uncounted="it isn't one plain statement")
            )
    return tuple(writes)


def _read_plain(
    tree: "exp.Expression", statement: RanStatement, today: Mapping[TableName, TableName]
) -> tuple[RowWrite, ...] | None:
    from sqlglot import exp  # noqa: PLC0415

    if isinstance(tree, exp.TruncateTable):
        tables = [_table_name(table, statement, today) for table in tree.expressions]
        if any(table is None for table in tables):
            return None
        empties = tree.args.get("option") == "CASCADE"
        return tuple(
            RowWrite(
                RiskKind.DELETED,
                table,
                rows=f"FROM {'ONLY ' if node.args.get('only') else ''}{today.get(table, table).sql()} AS emptied",
                alias="emptied",
                truncates=True,
                empties=empties,
            )
            for table, node in zip(tables, tree.expressions, strict=True)
            if table is not None
        )
    target = _table_name(tree.this, statement, today)
    if target is None:
        return None
    kind = RiskKind.UPDATED if isinstance(tree, exp.Update) else RiskKind.DELETED
    assigned = _assigned(tree.expressions) if isinstance(tree, exp.Update) else frozenset()
    problem = _why_uncountable(tree)
    others: set[TableName] = set()
    if not problem:
        problem = _name_as_today(tree, statement, today, others)
    if problem:
        return (RowWrite(kind, target, assigned, uncounted=problem),)
    beside = tree.args.get("from_") or tree.args.get("from")
    sources = [tree.this] + ([beside.this] if beside else []) + list(tree.args.get("using") or [])
    where = tree.args.get("where")
    with_ = tree.args.get("with_") or tree.args.get("with")
    set_targets = {id(eq.this) for eq in tree.expressions} if isinstance(tree, exp.Update) else set()
    return (
        RowWrite(
            kind,
            target,
            assigned,
            rows=f"FROM {', '.join(s.sql(dialect='postgres') for s in sources)}"
            + (f" {where.sql(dialect='postgres')}" if where else ""),
            alias=quoted(tree.this.alias),
            prefix=f"{with_.sql(dialect='postgres')} " if with_ else "",
            mentioned=frozenset(
                _folded(c.this) for c in tree.find_all(exp.Column) if id(c) not in set_targets
            ),
            others=frozenset(others - {target}),
            joined=len(sources) > 1,
        ),
    )


def _why_uncountable(tree: "exp.Expression") -> str:
    from sqlglot import exp  # noqa: PLC0415

    if tree.find(exp.Placeholder, exp.Parameter, exp.SessionParameter):
        return "its values were sent beside it"
    if any(node is not tree for node in tree.find_all(exp.Insert, exp.Update, exp.Delete, exp.Merge)):
        return "it writes more than one table"
    for call in tree.find_all(exp.Anonymous):
        ours = isinstance(call.parent, exp.Dot) and call.parent.this.name.lower() != "pg_catalog"
        if ours or call.name.lower() not in HARMLESS_FUNCTIONS:
            return f"it calls {call.name}()"
    for text in tree.find_all(exp.Literal):
        # A driver that formats values in halves the signs, another one doesn't; a pattern matches the same either way.
        if text.is_string and "%%" in text.name and not isinstance(text.parent, exp.Like | exp.ILike):
            return "it holds %%, which drivers read differently"
    return ""


def _name_as_today(
    tree: "exp.Expression",
    statement: RanStatement,
    today: Mapping[TableName, TableName],
    seen: set[TableName],
) -> str:
    """Put today's full names in place of the statement's, keeping its own as aliases; why it can't be done, if so."""
    from sqlglot import exp  # noqa: PLC0415

    ctes = {_folded(cte.args["alias"].this) for cte in tree.find_all(exp.CTE) if cte.args.get("alias")}
    for node in list(tree.find_all(exp.Table)):
        if not isinstance(node.this, exp.Identifier):
            continue  # a function that returns rows
        if node is not tree.this and not node.args.get("db") and _folded(node.this) in ctes:
            continue
        table = _table_name(node, statement, today)
        if table is None:
            return f"{node.name} may be one of several tables"
        seen.add(table)
        now = today.get(table, table)
        if not node.alias:
            node.set("alias", exp.TableAlias(this=exp.Identifier(this=table.name, quoted=True)))
        else:
            alias = node.args["alias"].this
            node.args["alias"].set("this", exp.Identifier(this=_folded(alias), quoted=True))
        node.set("this", exp.Identifier(this=now.name, quoted=True))
        node.set("db", exp.Identifier(this=now.schema, quoted=True))
    return ""


def _table_name(
    node: object, statement: RanStatement, today: Mapping[TableName, TableName]
) -> TableName | None:
    from sqlglot import exp  # noqa: PLC0415

    if not isinstance(node, exp.Table) or not isinstance(node.this, exp.Identifier):
        return None
    schema = _folded(node.args["db"]) if node.args.get("db") else ""
    return _resolve(schema, _folded(node.this), statement, today)


def _resolve(
    schema: str, name: str, statement: RanStatement, today: Mapping[TableName, TableName]
) -> TableName | None:
    if schema:
        return TableName(schema, name)
    for known in ((*statement.writes, *statement.reads), today):
        fits = {table for table in known if table.name == name}
        if fits:
            return fits.pop() if len(fits) == 1 else None
    return None


def _assigned(assignments: Iterable["exp.Expression"]) -> frozenset[str] | None:
    from sqlglot import exp  # noqa: PLC0415

    columns: set[str] = set()
    for assignment in assignments:
        target = assignment.this if isinstance(assignment, exp.EQ) else None
        for part in target.expressions if isinstance(target, exp.Tuple) else [target]:
            if not isinstance(part, exp.Column) or part.args.get("table"):
                return None
            columns.add(_folded(part.this))
    return frozenset(columns)


def _folded(identifier: object) -> str:
    from sqlglot import exp  # noqa: PLC0415

    if not isinstance(identifier, exp.Identifier):
        return str(getattr(identifier, "name", ""))
    return identifier.name if identifier.args.get("quoted") else identifier.name.lower()


def _single_percent(sql: str) -> str:
    """Drivers that format values in want % doubled, and there is no operator %%; strings are left as they are."""
    return "".join(m[0] if m[0][0] in "'\"$" else m[0].replace("%%", "%") for m in _PIECES.finditer(sql))


def cast_chain(using: str) -> tuple[str, tuple[str, ...]]:
    """An expression's casts taken off: what is cast, and to which types, the first one first."""
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    try:
        node = sqlglot.parse_one(using, dialect="postgres")
    except (errors.SqlglotError, RecursionError):
        return using, ()
    types: list[str] = []
    while True:
        while isinstance(node, exp.Paren):
            node = node.this
        if not isinstance(node, exp.Cast) or isinstance(node, exp.TryCast):
            break
        types.append(node.to.sql(dialect="postgres"))
        node = node.this
    return (node.sql(dialect="postgres"), tuple(reversed(types))) if types else (using, ())


def refused_when(  # a line for each way in which PostgreSQL's casts refuse
    value: str, category: str, source: str, target: str, *, assigned: bool, checks_input: bool
) -> str:
    """When PostgreSQL refuses to make `target` of a value, as a condition that never fails itself; empty where unknown.

    `category` is the source type's in pg_type. An assignment refuses what is too long, an explicit cast cuts it.
    `checks_input` where the server has pg_input_is_valid.
    """
    read = _TYPE.fullmatch(target)
    name = " ".join(read["name"].lower().split()) if read else ""
    first = int(read["first"]) if read and read["first"] else None
    input_refuses = f"NOT pg_input_is_valid(({value})::text, {literal(target)})" if checks_input else ""
    if read and read["array"]:
        return input_refuses if assigned and source.startswith(("text", "character varying")) else ""
    if name in ("character varying", "varchar", "character", "char", "bpchar") and first is not None:
        if not assigned:
            return ""
        return f"(char_length(({value})::text) > {first} AND rtrim(substr(({value})::text, {first + 1}), ' ') <> '')"
    if name in ("text", "character varying", "varchar", "bpchar"):
        return ""
    if name in ("bit", "bit varying", "varbit") and category == "V":
        size = 1 if first is None and name == "bit" else first
        return (
            f"length({value}) {'<>' if name == 'bit' else '>'} {size}"
            if assigned and size is not None
            else ""
        )
    if category == "N" and source != "money":
        if name in _INTEGERS:
            top = 2 ** _INTEGERS[name]
            return f"round(({value})::numeric) NOT BETWEEN {-top} AND {top - 1}"
        if name in ("numeric", "decimal") and first is not None and read:
            scale = int(read["second"] or 0)
            return (
                f"(({value})::numeric <> 'NaN'"
                f" AND abs(round(({value})::numeric, {scale})) >= 10::numeric ^ ({first - scale}))"
            )
        return input_refuses if name in ("real", "float4") and source == "double precision" else ""
    return input_refuses if category == "S" else ""


def checked_expression(definition: str) -> str | None:
    """The condition of a CHECK as pg_get_constraintdef has it."""
    read = _CHECK.fullmatch(definition.strip())
    return read["rule"] if read else None


def looks_at_rows(definition: str) -> bool:
    """Whether rows that are there have to pass: not where the rule is NOT VALID or NOT ENFORCED."""
    return not definition.rstrip().upper().endswith(("NOT VALID", "NOT ENFORCED"))


def key_terms(definition: str) -> tuple[str, ...]:
    """The terms of the first list in brackets of a constraint's or an index's definition, as they stand there."""
    terms: list[str] = []
    term, depth = "", 0
    for piece in re.findall(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|.""", definition, re.DOTALL):
        if piece == ")":
            depth -= 1
            if depth == 0:
                break
        if depth == 1 and piece == ",":
            terms.append(term.strip())
            term = ""
        elif depth >= 1:
            term += piece
        if piece == "(":
            depth += 1
    return (*terms, term.strip()) if term.strip() else tuple(terms)


def column_name(term: str) -> str:
    """The column that a term is, unquoted; empty for an expression."""
    if len(term) > 1 and term[0] == term[-1] == '"':
        return term[1:-1].replace('""', '"')
    return term if re.fullmatch(r"[^\W\d][\w$]*", term) else ""


def renamed_columns(rule: NewRule) -> dict[str, str]:
    """The names in a rule's definition that today's table has otherwise: definition's name to today's."""
    if rule.kind == "check":
        names = _columns_of(checked_expression(rule.definition) or "")
    else:
        names = [column_name(term) for term in key_terms(rule.definition)]
        if len(names) == len(rule.columns):
            return {
                old: new for old, new in zip(names, rule.columns, strict=True) if old and new and old != new
            }
        return {}
    old = [name for name in names if name not in rule.columns]
    new = [name for name in rule.columns if name and name not in names]
    return dict(zip(old, new, strict=True)) if len(old) == len(new) else {}


def _columns_of(expression: str) -> list[str]:
    """The columns of an expression, in the order in which it names them."""
    import sqlglot  # noqa: PLC0415
    from sqlglot import errors, exp  # noqa: PLC0415

    try:
        tree = sqlglot.parse_one(expression, dialect="postgres")
    except (errors.SqlglotError, RecursionError):
        return []
    return list(dict.fromkeys(_folded(c.this) for c in tree.find_all(exp.Column, bfs=False)))
