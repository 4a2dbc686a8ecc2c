"""The types of columns, read from the catalog: domains looked through, down to the shapes that values are made for."""

from collections.abc import Mapping
from typing import Any

import asyncpg
import msgspec

from rollbackd.core.made_up import Kind

_TYPES = """
SELECT t.oid::bigint AS oid, t.typname AS name, t.typtype::text AS type, t.typcategory::text AS category,
       t.typelem::bigint AS element, t.typlen AS length, t.typbasetype::bigint AS base, format_type(t.typbasetype, t.typtypmod) AS base_sql, t.typtypmod AS modifier,
       t.typnotnull AS not_null, t.typdelim::text AS delimiter,
       (SELECT r.rngsubtype::bigint FROM pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS range_of,
       ARRAY(SELECT e.enumlabel::text FROM pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
       ARRAY(SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
              WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY k.conname) AS checks,
       ARRAY(SELECT a.atttypid::bigint FROM pg_attribute a
              WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS attributes,
       ARRAY(SELECT a.atttypmod FROM pg_attribute a
              WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS modifiers
  FROM pg_type t WHERE t.oid = ANY($1::bigint[]::oid[])
"""


class KnownType(msgspec.Struct, frozen=True, kw_only=True):
    """A type, domains looked through: the shape behind them, their checks, their NOT NULL, what they are based on."""

    kind: Kind
    checks: tuple[str, ...] = ()
    not_null: bool = False
    base_sql: str = ""


async def read_types(connection: asyncpg.Connection, wanted: set[int]) -> dict[int, Any]:
    """The rows of these types and of all that they are made of, by OID."""
    known: dict[int, Any] = {}
    while missing := sorted(wanted - known.keys()):
        for row in await connection.fetch(_TYPES, missing):
            known[row["oid"]] = row
            parts = (row["element"], row["base"], row["range_of"], *row["attributes"])
            wanted = wanted | {oid for oid in parts if oid}
        wanted &= wanted - (set(missing) - known.keys())
    return known


def known_type(types: Mapping[int, Any], oid: int, modifier: int) -> KnownType:
    """A type whose rows, and those of its parts, have been read; one that is not among them has the shape `unknown`."""
    row = types.get(oid)
    if row is None:
        return KnownType(kind=Kind(name="unknown"))
    match row["type"]:
        case "d":
            base = known_type(types, row["base"], row["modifier"])
            return KnownType(
                kind=base.kind,
                checks=(*base.checks, *row["checks"]),
                not_null=base.not_null or row["not_null"],
                base_sql=base.base_sql or row["base_sql"],
            )
        case "e":
            return KnownType(kind=Kind(name="enum", labels=tuple(row["labels"])))
        case "c":
            parts = zip(row["attributes"], row["modifiers"], strict=True)
            return KnownType(
                kind=Kind(name="composite", parts=tuple(known_type(types, o, m).kind for o, m in parts))
            )
        case "r" | "m":
            name = "range" if row["type"] == "r" else "multirange"
            return KnownType(kind=Kind(name=name, parts=(known_type(types, row["range_of"], -1).kind,)))
    if row["category"] == "A" and row["element"] and row["length"] == -1:
        element = known_type(types, row["element"], modifier).kind
        delimiter = types[row["element"]]["delimiter"] if row["element"] in types else ","
        return KnownType(kind=Kind(name="array", parts=(element,), delimiter=delimiter))
    return KnownType(kind=_limited(row["name"], modifier))


def _limited(name: str, modifier: int) -> Kind:
    if modifier >= 0 and name in ("varchar", "bpchar"):
        return Kind(name=name, limit=modifier - 4)
    if modifier >= 0 and name in ("bit", "varbit", "vector", "halfvec"):
        return Kind(name=name, limit=modifier)
    if modifier >= 0 and name == "numeric":
        packed = modifier - 4
        return Kind(name=name, limit=packed >> 16 & 0xFFFF, scale=((packed & 0x7FF) ^ 1024) - 1024)
    return Kind(name=name)
