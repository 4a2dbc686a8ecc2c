"""What has to hold from then on: today's rows that a rule of the old schema doesn't admit."""

from typing import NamedTuple

import msgspec

from rollbackd.adapters.postgres.risks.asking import OutOfTimeError, UnknownError
from rollbackd.adapters.postgres.risks.context import Context
from rollbackd.adapters.postgres.risks.counting import Finding
from rollbackd.adapters.postgres.risks.tables import Table
from rollbackd.core.rehearsal import NewRule
from rollbackd.core.risk_queries import checked_expression, key_terms, renamed_columns
from rollbackd.core.risks import Obstacle
from rollbackd.core.schema import quoted

_FILLS = ("default", "identity", "generated", "not null")


class _Broken(NamedTuple):
    """The rows that break a rule: `FROM …`, their condition, and a cheaper query for their number if there is one."""

    rows: str
    where: str
    cheaper: str = ""

    def query(self) -> str:
        """The query for their number."""
        return self.cheaper or f"SELECT count(*) {self.rows} WHERE {self.where}"


async def new_rule(context: Context, number: int, rule: NewRule) -> list[Finding]:
    """The rows that break a rule of the revision at place `number`; `rule.today` must be set."""
    assert rule.today is not None
    absent = "" in rule.columns
    obstacle = Obstacle(
        revision=context.rehearsal.revisions[number].id,
        rule="no_default" if rule.kind == "not_null" and absent else rule.kind,
        name=rule.name,
        table=rule.today,
        columns=tuple(column for column in rule.columns if column),
        certain=not context.is_written(number, rule.today, rule.table, rule.other),
    )
    table = context.catalog.tables.get(rule.today)
    try:
        if table is None:
            raise UnknownError(context.catalog.missing(rule.today))
        if absent and rule.kind != "not_null":
            return [await _rule_on_new_column(context, obstacle, rule, table)]
        return [await _counted(context, obstacle, table, _broken_by(context, rule, table))]
    except UnknownError as problem:
        return [msgspec.structs.replace(obstacle, unknown=str(problem))]


async def _counted(context: Context, obstacle: Obstacle, table: Table, broken: _Broken) -> Obstacle:
    number = int((await context.asking.rows(broken.query()))[0][0])
    sample: tuple[str, ...] = ()
    if number and obstacle.rule != "no_default":
        sample = await context.counting.sample(table, broken.rows, broken.where)
    return msgspec.structs.replace(obstacle, rows=number, sample=sample)


def _broken_by(context: Context, rule: NewRule, table: Table) -> _Broken:
    rows = table.rows(rule.table.name, renamed_columns(rule))
    columns = [quoted(column) for column in rule.columns if column]
    match rule.kind:
        case "not_null":
            absent = "" in rule.columns
            return _Broken(
                rows, "true" if absent else " OR ".join(f"{c} IS NOT DISTINCT FROM NULL" for c in columns)
            )
        case "unique":
            return _repeated(rule, rows, columns)
        case "foreign_key" if rule.other is not None:
            other = context.catalog.tables.get(rule.other)
            if other is None:
                raise UnknownError(f"{rule.other.text()}, which it points to, isn't there today")
            return _orphans(rule, rows, columns, other)
        case "check":
            condition = checked_expression(rule.definition)
            if condition is None:
                raise UnknownError(f"its definition can't be read: {rule.definition}")
            # A row for which the condition is NULL passes.
            return _Broken(rows, f"NOT ({condition})")
    raise UnknownError(f"a rule of the kind {rule.kind} can't be counted")


def _orphans(rule: NewRule, rows: str, columns: list[str], other: Table) -> _Broken:
    alias = quoted(rule.table.name)
    pairs = zip(rule.other_columns, columns, strict=True)
    there = " AND ".join(f"{alias}.{column} IS NOT NULL" for column in columns)
    match_ = " AND ".join(f"pointed_to.{quoted(o)} = {alias}.{c}" for o, c in pairs)
    orphan = f"NOT EXISTS (SELECT {other.rows('pointed_to')} WHERE {match_})"
    broken = f"{there} AND {orphan}"
    if "MATCH FULL" in rule.definition.upper() and len(columns) > 1:
        nulls = f"num_nulls({', '.join(f'{alias}.{c}' for c in columns)})"
        broken = f"({broken}) OR ({nulls} > 0 AND {nulls} < {len(columns)})"
    return _Broken(rows, f"({broken})")


def _repeated(rule: NewRule, rows: str, columns: list[str]) -> _Broken:
    counts_nulls = rule.nulls_not_distinct or "NULLS NOT DISTINCT" in rule.definition.upper()
    conditions = [f"({rule.predicate})"] if rule.predicate else []
    if not counts_nulls:
        conditions += [f"{column} IS NOT NULL" for column in columns]
    where = " AND ".join(conditions) or "true"
    terms = ", ".join(columns)
    groups = f"SELECT {terms} {rows} WHERE {where} GROUP BY {terms} HAVING count(*) > 1"
    names = [f"rollbackd_{number}" for number in range(len(columns))]
    same = " AND ".join(
        f"repeated.{name} IS NOT DISTINCT FROM {column}" if counts_nulls else f"repeated.{name} = {column}"
        for name, column in zip(names, columns, strict=True)
    )
    # Each row of a group is counted: any of them might be the one that is wrong.
    count = (
        f"SELECT coalesce(sum(rollbackd_n), 0)::bigint FROM (SELECT count(*) AS rollbackd_n {rows}"
        f" WHERE {where} GROUP BY {terms} HAVING count(*) > 1) AS repeated"
    )
    return _Broken(
        rows,
        f"{where} AND EXISTS (SELECT FROM ({groups}) AS repeated({', '.join(names)}) WHERE {same})",
        count,
    )


async def _rule_on_new_column(context: Context, obstacle: Obstacle, rule: NewRule, table: Table) -> Obstacle:
    """A rule about something that is no column of today: an expression, or a column that the way back makes."""
    terms = key_terms(rule.definition)
    if rule.kind == "unique" and len(terms) == len(rule.columns):
        values = [
            quoted(column) if column else f"({term})"
            for column, term in zip(rule.columns, terms, strict=True)
        ]
        try:
            return await _counted(
                context, obstacle, table, _repeated(rule, table.rows(rule.table.name), values)
            )
        except OutOfTimeError:
            raise
        except UnknownError:
            pass  # not an expression of today's columns
    # One row can't repeat another one's value, and none breaks no rule at all.
    most = 1 if rule.kind == "unique" else 0
    if len(await context.asking.rows(f"SELECT {table.rows()} LIMIT {most + 1}")) <= most:
        return msgspec.structs.replace(obstacle, rows=0)
    if rule.kind == "foreign_key" and obstacle.certain and _starts_empty(context, rule, terms):
        return msgspec.structs.replace(obstacle, rows=0)
    return msgspec.structs.replace(
        obstacle, certain=False, unknown="it is about a column that isn't there today"
    )


def _starts_empty(context: Context, rule: NewRule, terms: tuple[str, ...]) -> bool:
    """Whether a column that the way back makes holds NULL in every row, which a foreign key lets pass."""
    for column, term in zip(rule.columns, terms, strict=False):
        if column:
            continue
        for table in (rule.table.text(), f"{rule.table.schema}.{quoted(rule.table.name)}"):
            definition = context.rehearsal.expected.objects.get(f"column {table}.{term}")
            if definition is not None and not any(f" {word} " in f" {definition} " for word in _FILLS):
                return "MATCH FULL" not in rule.definition.upper()
    return False
