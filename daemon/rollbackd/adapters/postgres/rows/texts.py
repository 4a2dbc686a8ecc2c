"""The texts that a type takes, found out by casting: a server may lack XML, a domain or an extension has its own mind."""

from collections.abc import Iterable, Mapping, Sequence

import asyncpg

from rollbackd.adapters.postgres.rows.session import raise_if_lost
from rollbackd.adapters.postgres.rows.tables import Column, Table
from rollbackd.core.made_up import Literals, candidates, guesses, literals_of, made_up


async def limited_texts(
    connection: asyncpg.Connection, tables: Iterable[Table]
) -> dict[str, tuple[str, ...]]:
    """By type (as SQL): the only texts that it takes. Types that take whatever is made up for them aren't there."""
    limited: dict[str, tuple[str, ...]] = {}
    columns = {c.type_sql: c for t in tables if t.wanted for c in t.free()}
    plain: dict[str, list[str]] = {}
    for type_sql, column in sorted(columns.items()):
        texts = [text for n in range(3) if (text := made_up(column.kind, n)) is not None]
        if column.known.checks:
            limited[type_sql] = await _passing(connection, column)
        elif texts:
            plain[type_sql] = texts
        else:
            limited[type_sql] = await _taken(connection, type_sql, guesses())
    if not await _casts(connection, plain):
        for type_sql, texts in plain.items():
            if not await _casts(connection, {type_sql: texts}):
                limited[type_sql] = await _taken(
                    connection, type_sql, candidates(columns[type_sql].kind, Literals())
                )
    return limited


async def _passing(connection: asyncpg.Connection, column: Column) -> tuple[str, ...]:
    """The candidates that a domain's checks let through."""
    texts = candidates(column.kind, literals_of(*column.known.checks))
    conditions = " AND ".join(
        f"({check.removeprefix('CHECK ').removesuffix(' NOT VALID')}) IS NOT FALSE"
        for check in column.known.checks
    )
    # VALUE isn't a reserved word: in a query it is the column of that name.
    query = (
        f"SELECT s.n FROM (SELECT u.n, CAST(u.c AS {column.known.base_sql}) AS value"
        f" FROM unnest($1::text[]) WITH ORDINALITY AS u(c, n)) s WHERE {conditions} ORDER BY 1"
    )
    try:
        async with connection.transaction():
            return tuple(texts[row[0] - 1] for row in await connection.fetch(query, list(texts)))
    except asyncpg.PostgresError as error:
        raise_if_lost(connection, error)
        return await _taken(connection, column.type_sql, texts[:40])


async def _taken(connection: asyncpg.Connection, type_sql: str, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple([text for text in texts if await _casts(connection, {type_sql: [text]})])


async def _casts(connection: asyncpg.Connection, texts: Mapping[str, Sequence[str]]) -> bool:
    """Whether each type takes each of its texts."""
    pairs = [(type_sql, text) for type_sql, some in texts.items() for text in some]
    if not pairs:
        return True
    casts = " OR ".join(f"CAST(${n}::text AS {type_sql}) IS NULL" for n, (type_sql, _) in enumerate(pairs, 1))
    try:
        async with connection.transaction():
            await connection.fetchval(f"SELECT {casts}", *(text for _, text in pairs))
    except asyncpg.PostgresError as error:
        raise_if_lost(connection, error)
        return False
    return True
