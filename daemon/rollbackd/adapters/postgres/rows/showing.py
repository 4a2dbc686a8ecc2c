"""What the rows of a table show of what its columns may hold, and what they don't show yet."""

import enum

import asyncpg
import msgspec

from rollbackd.adapters.postgres.rows.tables import Table, literal
from rollbackd.core.made_up import Kind, is_small
from rollbackd.core.schema import quoted


class Show(enum.StrEnum):
    """What a column's rows should show between them."""

    VALUE = "value"
    NULL = "null"
    LABEL = "label"
    WIDE = "wide"
    SHARED = "shared"


class Shown(msgspec.Struct, frozen=True):
    """One such thing, and the aggregate that is above zero where it is shown."""

    column: str
    what: Show
    aggregate: str
    label: str = ""


class Account(msgspec.Struct):
    """A table's numbers while it is being filled."""

    rows: int = 0
    added: int = 0
    lacking: tuple[Shown, ...] = ()
    reasons: tuple[str, ...] = ()


async def survey(connection: asyncpg.Connection, table: Table, account: Account, wanted: int) -> None:
    """Count the rows, and see what they don't show; `wanted` is how many there should be.

    Raises:
        asyncpg.PostgresError: when they can't be read.
    """
    shown = _to_show(table, wanted)
    aggregates = ", ".join(each.aggregate for each in shown)
    row = await connection.fetchrow(f"SELECT count(*), ARRAY[{aggregates}]::bigint[] FROM {table.source()}")
    account.rows = row[0]
    account.lacking = tuple(each for each, count in zip(shown, row[1], strict=True) if not count)


def _to_show(table: Table, rows: int) -> list[Shown]:
    """The reasons why a downgrade fails over rows: each is something that the schema allows and the older one may not."""
    bound = {name for check in table.checks for name in check.columns}
    bound |= {name for key in table.keys for name in key.columns}
    found = []
    for column in table.free():
        name, sql = column.name, quoted(column.name)
        found.append(Shown(name, Show.VALUE, f"count({sql})"))
        if column.nullable:
            found.append(Shown(name, Show.NULL, f"count(*) - count({sql})"))
        for label in _labels(column.kind, rows):
            same = f"{sql}::text = {literal(label)}"
            found.append(Shown(name, Show.LABEL, f"count(*) FILTER (WHERE {same})", label))
        beyond = _beyond(column.kind, sql)
        if beyond and name not in bound and not column.known.base_sql:
            found.append(Shown(name, Show.WIDE, f"count(*) FILTER (WHERE {beyond})"))
        if column.place is None and not is_small(column.kind):
            found.append(Shown(name, Show.SHARED, f"count({sql}) - count(DISTINCT {sql}::text)"))
    return found


def _labels(kind: Kind, rows: int) -> tuple[str, ...]:
    if kind.name == "bool":
        return ("true", "false")
    if len(kind.labels) <= rows:
        return kind.labels
    return tuple(dict.fromkeys((kind.labels[0], kind.labels[-1])))


def _beyond(kind: Kind, sql: str) -> str:
    """The condition that a value fills its type; empty where that has no meaning."""
    match kind.name:
        case "int4":
            return f"{sql} NOT BETWEEN -32768 AND 32767"
        case "int8":
            return f"{sql} NOT BETWEEN -2147483648 AND 2147483647"
        case "varchar" | "bpchar" if kind.limit is not None:
            return f"length({sql}) >= {kind.limit}"
        case "text" | "varchar":
            return f"length({sql}) > 255"
        case "numeric" if kind.limit is not None:
            return f"abs({sql}) >= 10::numeric ^ {kind.limit - kind.scale - 1}"
    return ""
