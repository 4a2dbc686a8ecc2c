"""What changes its type: the values that another type would change or refuse, the labels that an older enum lacks."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from rollbackd.adapters.postgres.risks.asking import (
    DoesNotFitError,
    OutOfTimeError,
    RefusedError,
    UnknownError,
)
from rollbackd.adapters.postgres.risks.context import Context
from rollbackd.adapters.postgres.risks.counting import Finding, both_unknown
from rollbackd.adapters.postgres.risks.tables import Column, Table
from rollbackd.core.rehearsal import ChangedColumn
from rollbackd.core.risk_queries import cast_chain, literal, refused_when
from rollbackd.core.risks import Obstacle, RiskKind, RowsAtRisk
from rollbackd.core.schema import quoted

MOST_TRIES = 2_000
"""How often a cast that fails somewhere is tried on a part of the table, to find the rows that fail."""
_PG_INPUT_IS_VALID = 160_000  # the first server version that has pg_input_is_valid()


class _Change(NamedTuple):
    """A column that changes its type, as it is today, and the two answers that are to be completed."""

    changed: ChangedColumn
    table: Table
    column: Column
    risk: RowsAtRisk
    obstacle: Obstacle

    @property
    def name(self) -> str:
        """Today's name, quoted."""
        return quoted(self.changed.today_column)

    @property
    def there(self) -> str:
        """The condition that a row has a value."""
        return f"{self.name} IS DISTINCT FROM NULL"

    @property
    def renamed(self) -> dict[str, str]:
        """The name that the cast uses, to today's; empty where they are the same."""
        changed = self.changed
        return {changed.column: changed.today_column} if changed.column != changed.today_column else {}


class _Cast(NamedTuple):
    """A cast in SQL: the new value, the condition that it is refused, and the rows that have one."""

    value: str
    refused: str
    rows: str
    """`FROM …`"""
    there: str

    def changes(self, differs: str) -> str:
        """The condition that a row's value is refused or becomes another, as the comparison `differs` says."""
        # CASE, so that no value is cast that would make the query fail.
        return f"CASE WHEN {self.refused} THEN true ELSE {differs} END"

    def counts(self, differs: str) -> str:
        """The query for how many are refused, and how many of all change; a further condition may follow it."""
        return (
            f"SELECT count(*) FILTER (WHERE {self.refused}), count(*) FILTER (WHERE {self.changes(differs)})"
            f" {self.rows} WHERE {self.there}"
        )


async def changed_column(context: Context, number: int, changed: ChangedColumn) -> list[Finding]:
    """The values that the revision at place `number` changes, and those that make it fail; `changed.today` must be set."""
    assert changed.today is not None
    revision = context.rehearsal.revisions[number]
    risk = RowsAtRisk(
        revision=revision.id, kind=RiskKind.NARROWED, table=changed.today, column=changed.today_column
    )
    obstacle = Obstacle(
        revision=revision.id,
        rule="enum_label" if changed.labels else "cast",
        name=changed.new_type,
        table=changed.today,
        columns=(changed.today_column,),
        certain=not context.is_written(number, changed.today, changed.table),
    )
    table = context.catalog.tables.get(changed.today)
    column = table.columns.get(changed.today_column) if table else None
    if table is None or column is None:
        return both_unknown(risk, obstacle, context.catalog.missing(changed.today))
    change = _Change(changed, table, column, risk, obstacle)
    try:
        return await (_lost_labels if changed.labels else _narrowed)(context, change)
    except OutOfTimeError as problem:
        return [
            await context.counting.estimate(risk, f"{table.rows()} WHERE {change.there}", at_most=True),
            msgspec.structs.replace(obstacle, unknown=str(problem)),
        ]
    except UnknownError as problem:
        return both_unknown(risk, obstacle, str(problem))


# Labels.


async def _lost_labels(context: Context, change: _Change) -> list[Finding]:
    changed, table, name = change.changed, change.table, change.name
    labels = f"ARRAY[{', '.join(literal(label) for label in changed.labels)}]::text[]"
    is_array = change.column.category == "A"
    uses = f"{name}::text[] && {labels}" if is_array else f"{name}::text = ANY({labels})"
    rows = int((await context.asking.rows(f"SELECT count(*) {table.rows()} WHERE {uses}"))[0][0])
    sample = await context.counting.sample(table, table.rows(), uses) if rows else ()
    inner, chain = cast_chain(changed.using) if changed.using else (name, ())
    plain = _is_name(inner, changed) and bool(chain or not changed.using)
    return [
        msgspec.structs.replace(change.risk, rows=rows, sample=sample),
        # An expression that isn't just a cast may give those rows another label.
        msgspec.structs.replace(
            change.obstacle, rows=rows, sample=sample, certain=change.obstacle.certain and plain
        ),
    ]


def _is_name(expression: str, changed: ChangedColumn) -> bool:
    plain = expression.rpartition(".")[2].strip('"')
    return plain in (changed.column, changed.today_column)


# Values.


async def _narrowed(context: Context, change: _Change) -> list[Finding]:
    cast = await _cast(context, change)
    type_, name = change.column.type, change.name
    comparisons = (
        f"({cast.value})::{type_} IS DISTINCT FROM {name}",
        f"({cast.value})::{type_}::text IS DISTINCT FROM {name}::text",
        f"({cast.value})::text IS DISTINCT FROM {name}::text",
    )
    for differs in comparisons:
        try:
            refused, changed = (await context.asking.rows(cast.counts(differs)))[0]
        except DoesNotFitError:
            if differs is comparisons[-1]:
                raise
            continue
        except RefusedError as problem:
            if await _converts(context, cast):
                continue  # it is only the way back to the present type that fails
            return await _search(context, change, cast, cast.counts(comparisons[-1]), str(problem))
        return [
            msgspec.structs.replace(
                change.risk,
                rows=changed,
                sample=await _sample(context, change, cast, cast.changes(differs)) if changed else (),
            ),
            msgspec.structs.replace(
                change.obstacle,
                rows=refused,
                sample=await _sample(context, change, cast, cast.refused) if refused else (),
            ),
        ]
    raise AssertionError("the last comparison either counts or raises")


async def _sample(context: Context, change: _Change, cast: _Cast, where: str) -> tuple[str, ...]:
    return await context.counting.sample(change.table, cast.rows, f"{cast.there} AND {where}")


async def _cast(context: Context, change: _Change) -> _Cast:
    """The cast that the way back does: a chain of explicit ones from its USING, then the assignment to the new type."""
    changed = change.changed
    rows = change.table.rows(changed.table.name, change.renamed)
    inner, chain = cast_chain(changed.using) if changed.using else (change.name, ())
    refusals: list[str] = []
    value = inner
    for number, type_ in enumerate((*chain, changed.new_type)):
        column = change.column if value == change.name else None
        refusals.append(await _refusal(context, value, rows, type_, column, assigned=number == len(chain)))
        value = f"CAST(({value}) AS {type_})"
    # As an assignment it refuses what this explicit cast would cut; those values have been sorted out before.
    refused = "".join(f" WHEN {r} THEN true" for r in refusals if r)
    return _Cast(value, f"CASE{refused} ELSE false END" if refused else "false", rows, change.there)


async def _refusal(
    context: Context, value: str, rows: str, target: str, column: Column | None, *, assigned: bool
) -> str:
    """The condition that a cast refuses a value, empty for never; `column` is what the value is, if it is just that."""
    if column is not None:
        category, source = column.category, column.type
    else:
        oid = await context.asking.type_of(f"SELECT {value} {rows}")
        category, source = (
            await context.asking.rows(
                "SELECT typcategory::text, format_type(oid, NULL) FROM pg_type WHERE oid = $1", oid
            )
        )[0]
    checks_input = context.catalog.server_version >= _PG_INPUT_IS_VALID
    return refused_when(value, category, source, target, assigned=assigned, checks_input=checks_input)


async def _converts(context: Context, cast: _Cast) -> bool:
    """Whether the cast itself goes through for every value that isn't known to be refused."""
    made = f"count(CASE WHEN {cast.refused} THEN NULL ELSE ({cast.value}) END)"
    try:
        await context.asking.rows(f"SELECT {made} {cast.rows} WHERE {cast.there}")
    except RefusedError:
        return False
    return True


# Values that nothing but the cast itself tells.


async def _search(context: Context, change: _Change, cast: _Cast, counts: str, problem: str) -> list[Finding]:
    """Find the values that fail by trying parts of the table, halved until they are single rows."""
    table, rows, there = change.table, cast.rows, cast.there
    at_least = f"at least one value is refused: {problem}"
    if change.renamed or table.kind != "r":
        return both_unknown(change.risk, change.obstacle, at_least)
    size = "SELECT pg_relation_size($1::oid) / current_setting('block_size')::bigint"
    blocks = (await context.asking.rows(size, table.oid))[0][0]
    refused: list[str] = []
    counted = [0, 0]
    # A part is a range of blocks or, as text, one row.
    parts: list[tuple[int, int] | str] = [(0, int(blocks))]
    for tries in range(MOST_TRIES + 1):
        if not parts:
            break
        if tries == MOST_TRIES:
            at_least = f"at least {len(refused) or 'one'} of its values are refused: {problem}"
            return both_unknown(change.risk, change.obstacle, at_least)
        part = parts.pop()
        where = f"ctid = '{part}'" if isinstance(part, str) else _in_blocks(*part)
        try:
            row = (await context.asking.rows(f"{counts} AND {where}"))[0]
            counted = [counted[0] + row[0], counted[1] + row[1]]
        except RefusedError:
            if isinstance(part, str):
                refused.append(part)
            elif part[1] - part[0] > 1:
                middle = (part[0] + part[1]) // 2
                parts += [(middle, part[1]), (part[0], middle)]
            else:
                found = await context.asking.rows(f"SELECT ctid::text {rows} WHERE {there} AND {where}")
                parts += [row[0] for row in found]
    sample = await context.counting.sample(table, rows, f"ctid = ANY({literal(_array(refused))}::tid[])")
    return [
        msgspec.structs.replace(change.risk, rows=len(refused) + counted[1], sample=sample),
        msgspec.structs.replace(change.obstacle, rows=len(refused) + counted[0], sample=sample),
    ]


def _in_blocks(first: int, end: int) -> str:
    return f"ctid >= '({first},0)' AND ctid < '({end},0)'"


def _array(texts: Iterable[str]) -> str:
    return "{" + ",".join(f'"{text}"' for text in texts) + "}"
