"""A database's rows as plain values, and what of them is gone."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from rollbackd.core.schema import TableName

Snapshot = dict[str, list[str]]
# A value's text, its type now and the one it had: the text that it has as the latter.
Recast = Callable[[str | None, str, str], str | None]


@dataclass(frozen=True)
class ColumnType:
    """A type as it's written, and what it consists of: a type of the same name may be another one."""

    name: str
    labels: tuple[str, ...]
    attributes: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """The rows of all tables; by (table, column) the types, and which of them are generated."""

    rows: Snapshot
    types: dict[tuple[str, str], ColumnType]
    generated: frozenset[tuple[str, str]]


def snapshot(url: str) -> Snapshot:
    """Every row of every table as JSON of column to the value's SQL text, sorted; of partitions, but not of their parents.

    Left out are the version tables and what is ours.
    """
    found: Snapshot = {}
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT n.nspname::text, c.relname::text, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema$|rollbackd)'"
            " AND c.relname NOT IN ('alembic_version', 'moves') GROUP BY 1, 2"
        ).fetchall()
        for schema, name, columns in tables:
            table = TableName(schema, name)
            values = ", ".join(TableName("t", column).sql() + "::text" for column in columns)
            rows = connection.execute(f"SELECT {values} FROM ONLY {table.sql()} t").fetchall()
            found[table.text()] = sorted(
                json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows
            )
    return found


def read_contents(url: str) -> Contents:
    """Every row, and the columns' types."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT n.nspname::text, c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',"
            " (SELECT array_agg(enumlabel::text ORDER BY 1) FROM pg_enum WHERE enumtypid = a.atttypid),"
            " (SELECT array_agg(b.attname::text ORDER BY 1) FROM pg_attribute b JOIN pg_type t ON t.typrelid = b.attrelid"
            "   WHERE t.oid = a.atttypid AND b.attnum > 0 AND NOT b.attisdropped)"
            " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND n.nspname !~ '^(pg_|information_schema$)'"
        ).fetchall()
    columns = {(TableName(schema, table).text(), column): rest for schema, table, column, *rest in found}
    return Contents(
        rows=snapshot(url),
        types={
            name: ColumnType(kind, tuple(labels or ()), tuple(attributes or ()))
            for name, (kind, _, labels, attributes) in columns.items()
        },
        generated=frozenset(name for name, (_, generated, *_) in columns.items() if generated),
    )


def lost_between(
    before: Contents, after: Contents, moved: Mapping[str, str], recast: Recast
) -> dict[str, int]:
    """What of `before` is not in `after`, by the names of `before`.

    A table that is gone loses its rows, a column its values; a column of another type the values that the old type can't be
    given back from the new one; and a table the rows that aren't there as they were in the columns that remained. Generated
    values follow from others.
    """
    lost: Counter[str] = Counter()
    for table, texts in before.rows.items():
        new_table = moved.get(table, table)
        if new_table not in after.rows:
            lost[table] = len(texts)
            continue
        old_rows = [json.loads(text) for text in texts]
        new_rows = [json.loads(text) for text in after.rows[new_table]]
        remained, retyped = [], []
        for column in (column for of, column in before.types if of == table):
            new = moved.get(f"{table}.{column}", column)
            if (new_table, new) not in after.types:
                if (table, column) not in before.generated:
                    lost[f"{table}.{column}"] = sum(row[column] is not None for row in old_rows)
            elif after.types[new_table, new] == before.types[table, column]:
                remained.append((column, new))
            else:
                retyped.append((column, new))

        for column, new in retyped:
            types = after.types[new_table, new].name, before.types[table, column].name
            for row in new_rows:
                row[new] = recast(row[new], *types)

        def missing(
            columns: list[tuple[str, str]], old_rows: Any = old_rows, new_rows: Any = new_rows
        ) -> int:
            old = Counter(tuple(row[column] for column, _ in columns) for row in old_rows)
            return (old - Counter(tuple(row[new] for _, new in columns) for row in new_rows)).total()

        lost[table] = missing(remained)
        for pair in retyped:
            lost[f"{table}.{pair[0]}"] = missing([*remained, pair]) - lost[table]
    return {name: number for name, number in lost.items() if number}
