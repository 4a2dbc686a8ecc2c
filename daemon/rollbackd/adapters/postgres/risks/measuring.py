"""Measuring a way back: the questions that its rehearsal raises, asked of the smallest tables first."""

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple, TypeVar

import asyncpg

from rollbackd.adapters.postgres.risks.asking import Asking, UnknownError
from rollbackd.adapters.postgres.risks.casts import changed_column
from rollbackd.adapters.postgres.risks.context import Context
from rollbackd.adapters.postgres.risks.counting import Counting, Finding
from rollbackd.adapters.postgres.risks.gone import gone_column, gone_table
from rollbackd.adapters.postgres.risks.rules import new_rule
from rollbackd.adapters.postgres.risks.tables import Catalog, read_catalog
from rollbackd.adapters.postgres.risks.writes import Writes
from rollbackd.core.rehearsal import ChangedColumn, GoneColumn, GoneTable, NewRule, Rehearsal
from rollbackd.core.risk_queries import looks_at_rows
from rollbackd.core.risks import Obstacle, Risks, RowsAtRisk
from rollbackd.core.schema import TableName

_Item = TypeVar("_Item", GoneTable, GoneColumn, ChangedColumn, NewRule)


async def measure_risks(
    connection: asyncpg.Connection, rehearsal: Rehearsal, *, budget_s: float, samples: int = 3
) -> Risks:
    """Count what the way back would destroy, change or stumble over, the smallest tables first.

    Whatever `budget_s` seconds don't suffice for is the planner's estimate, or unknown where it is about a rule. Only a
    lost connection is an error.
    """
    started = time.monotonic()
    asking = Asking(connection, started + budget_s)
    try:
        catalog = await read_catalog(asking, rehearsal)
    except UnknownError as problem:
        catalog = Catalog({}, (), 0, str(problem))
    questions = _questions(Context(rehearsal, catalog, asking, Counting(asking, samples)))
    answers: dict[int, list[Finding]] = {}
    for number, question in sorted(enumerate(questions), key=lambda q: (q[1].pages, q[0])):
        answers[number] = await question.ask()
    found = [answer for number in range(len(questions)) for answer in answers[number]]
    return Risks(
        at_risk=tuple(a for a in found if isinstance(a, RowsAtRisk)),
        obstacles=tuple(a for a in found if isinstance(a, Obstacle) and a.rows != 0),
        seconds=time.monotonic() - started,
    )


class _Question(NamedTuple):
    pages: int
    ask: Callable[[], Awaitable[list[Finding]]]


def _questions(context: Context) -> list[_Question]:
    """All questions, in the order of the way back."""
    found: list[_Question] = []
    catalog, writes = context.catalog, Writes(context)
    for number, revision in enumerate(context.rehearsal.revisions):
        gone = {table.today for table in revision.gone_tables}
        found += [
            _question(catalog, table.today, partial(gone_table, context, revision, table))
            for table in _without_parts(catalog, revision.gone_tables, lambda t: "")
        ]
        found += [
            _question(catalog, column.today, partial(gone_column, context, revision, column))
            for column in _without_parts(catalog, revision.gone_columns, lambda c: c.today_column)
            if column.today_column and not _is_covered(catalog, column.today, gone)
        ]
        found += [
            _question(catalog, changed.today, partial(changed_column, context, number, changed))
            for changed in _without_parts(catalog, revision.changed_columns, lambda c: c.today_column)
            if changed.today_column and not changed.keeps_values
        ]
        found += [
            _question(catalog, written.today, partial(writes.written, number, written))
            for written in revision.written
            if written.today is not None
        ]
        found += [
            _question(catalog, rule.today, partial(new_rule, context, number, rule))
            for rule in _without_parts(
                catalog, revision.new_rules, lambda r: (r.kind, r.columns, r.definition)
            )
            if looks_at_rows(rule.definition)
        ]
    return found


def _question(
    catalog: Catalog, today: TableName | None, ask: Callable[[], Awaitable[list[Finding]]]
) -> _Question:
    table = catalog.tables.get(today) if today else None
    return _Question(table.pages if table else 0, ask)


def _without_parts(
    catalog: Catalog, items: tuple[_Item, ...], what: Callable[[_Item], object]
) -> list[_Item]:
    """Those that concern a table of today, without partitions whose parent is listed for the same."""
    listed = {(item.today, what(item)) for item in items}
    found = []
    for item in items:
        table = catalog.tables.get(item.today) if item.today else None
        above = table.above if table else frozenset()
        if item.today is not None and not any((parent, what(item)) in listed for parent in above):
            found.append(item)
    return found


def _is_covered(catalog: Catalog, today: TableName | None, gone: set[TableName | None]) -> bool:
    table = catalog.tables.get(today) if today else None
    return today in gone or bool(table and table.above & gone)
