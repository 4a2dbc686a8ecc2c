"""The catalog as one line of definition for each object: what a fingerprint digests and a difference compares.

Objects of extensions, of the system and of rollbackd itself are left out; so are names that only a dump or a
re-creation would change, such as OIDs and column positions.
"""

from weakref import WeakKeyDictionary

import asyncpg

from rollbackd.core.schema import Schema

_USER_SCHEMA = "n.nspname !~ '^(pg_|information_schema$|rollbackd)'"
_NOT_OF_EXTENSION = (
    "NOT EXISTS (SELECT 1 FROM pg_depend x WHERE x.classid = '{catalog}'::regclass AND x.objid = {oid}"
    " AND x.deptype = 'e')"
)


def _own(catalog: str, oid: str) -> str:
    return f"{_USER_SCHEMA} AND {_NOT_OF_EXTENSION.format(catalog=catalog, oid=oid)}"


def _acl(column: str, kind: str, owner: str) -> str:
    """Grants, sorted; what nobody ever granted or revoked is written out, as it is after a GRANT and its REVOKE."""
    return f"(SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(coalesce({column}, acldefault('{kind}', {owner}))) a)"


def _owner_and_grants(
    kind: str, name: str, catalog: str, owner: str, acl: str, acl_kind: str, where: str
) -> str:
    """Owner and grants as objects of their own: a copy on another server has neither, and is compared without them."""
    return f"""
    SELECT 'owner of ' || {kind} || ' ' || {name}, {owner}::regrole::text FROM {catalog} WHERE {where}
    UNION ALL
    SELECT 'grants on ' || {kind} || ' ' || {name}, {_acl(acl, acl_kind, owner)} FROM {catalog} WHERE {where}
    """


_RELATION_KIND = (
    "CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'"
    " WHEN 'c' THEN 'composite type' WHEN 'S' THEN 'sequence' ELSE 'table' END"
)
_RELATION = "format('%I.%I', n.nspname, c.relname)"
_FROM_CLASS = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
_FUNCTION = "format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))"
# Ours alone among the triggers: what keeps rows while a downgrade runs.
_NOT_OURS = "g.tgname !~ '^rollbackd_'"

_QUERIES = (
    # Tables, views and the like: kind, persistence, row security.
    f"""
    SELECT {_RELATION_KIND} || ' ' || {_RELATION},
           concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.reloptions,
                     (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = c.oid),
                     'rls', c.relrowsecurity, c.relforcerowsecurity,
                     'partition', pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid),
                     CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END)
      FROM {_FROM_CLASS}
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND {_own("pg_class", "c.oid")}
    """,
    _owner_and_grants(
        _RELATION_KIND, _RELATION, _FROM_CLASS, "c.relowner", "c.relacl", "r",
        f"c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {_own('pg_class', 'c.oid')}",
    ),
    f"""
    SELECT 'column ' || format('%I.%I.%I', n.nspname, c.relname, a.attname),
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
                     'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || nullif(a.attidentity::text, ''),
                     'generated ' || nullif(a.attgenerated::text, ''),
                     'collate ' || nullif(a.attcollation, t.typcollation)::regcollation::text)
      FROM pg_attribute a JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = a.attrelid", 1)}
      JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
     WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'm', 'v', 'c') AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'grants on column ' || format('%I.%I.%I', n.nspname, c.relname, a.attname),
           (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(a.attacl) x)
      FROM pg_attribute a JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = a.attrelid", 1)}
     WHERE a.attacl IS NOT NULL AND NOT a.attisdropped AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'constraint ' || format('%I.%I.%I', n.nspname, c.relname, k.conname), pg_get_constraintdef(k.oid)
      FROM pg_constraint k JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = k.conrelid", 1)}
     WHERE k.contype <> 'n' AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'index ' || {_RELATION},
           pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
      FROM pg_index i JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = i.indexrelid", 1)}
     WHERE {_own("pg_class", "i.indrelid")}
    """,
    f"""
    SELECT 'sequence ' || {_RELATION},
           concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle)
      FROM pg_sequence s JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = s.seqrelid", 1)}
     WHERE {_own("pg_class", "c.oid")}
    """,
    _owner_and_grants(
        "'sequence'", _RELATION, _FROM_CLASS, "c.relowner", "c.relacl", "s",
        f"c.relkind = 'S' AND {_own('pg_class', 'c.oid')}",
    ),
    f"""
    SELECT 'type ' || format('%I.%I', n.nspname, t.typname),
           concat_ws(' ', t.typtype, (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum e
                                       WHERE e.enumtypid = t.oid),
                     CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, t.typdefault,
                     (SELECT string_agg(pg_get_constraintdef(k.oid), ',' ORDER BY k.conname) FROM pg_constraint k
                       WHERE k.contypid = t.oid))
      FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.typtype IN ('e', 'd', 'r') AND {_own("pg_type", "t.oid")}
    """,
    _owner_and_grants(
        "'type'", "format('%I.%I', n.nspname, t.typname)", "pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace",
        "t.typowner", "t.typacl", "T", f"t.typtype IN ('e', 'd', 'r') AND {_own('pg_type', 't.oid')}",
    ),
    f"""
    SELECT 'function ' || {_FUNCTION}, CASE WHEN p.prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE {_own("pg_proc", "p.oid")}
    """,
    _owner_and_grants(
        "'function'", _FUNCTION, "pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace",
        "p.proowner", "p.proacl", "f", _own("pg_proc", "p.oid"),
    ),
    f"""
    SELECT 'trigger ' || format('%I.%I.%I', n.nspname, c.relname, g.tgname),
           pg_get_triggerdef(g.oid) || ' ' || g.tgenabled::text
      FROM pg_trigger g JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = g.tgrelid", 1)}
     WHERE NOT g.tgisinternal AND {_NOT_OURS} AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'policy ' || format('%I.%I.%I', n.nspname, c.relname, p.polname),
           concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[]::text, pg_get_expr(p.polqual, p.polrelid),
                     pg_get_expr(p.polwithcheck, p.polrelid))
      FROM pg_policy p JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = p.polrelid", 1)}
     WHERE {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'rule ' || format('%I.%I.%I', n.nspname, c.relname, r.rulename), pg_get_ruledef(r.oid)
      FROM pg_rewrite r JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = r.ev_class", 1)}
     WHERE r.rulename <> '_RETURN' AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'statistics ' || format('%I.%I', n.nspname, s.stxname), pg_get_statisticsobjdef(s.oid)
      FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE {_USER_SCHEMA}
    """,
    f"SELECT 'schema ' || quote_ident(n.nspname), '' FROM pg_namespace n WHERE {_USER_SCHEMA}",
    _owner_and_grants(
        "'schema'", "quote_ident(n.nspname)", "pg_namespace n", "n.nspowner", "n.nspacl", "n", _USER_SCHEMA
    ),
    # Comments, without what rollbackd itself leaves in that of the version table.
    f"""
    SELECT 'comment on ' || CASE WHEN d.objsubid = 0 THEN {_RELATION_KIND} ELSE 'column' END || ' ' || {_RELATION}
           || coalesce('.' || quote_ident(a.attname), ''), q.text
      FROM pg_description d JOIN {_FROM_CLASS.replace("pg_class c", "pg_class c ON c.oid = d.objoid", 1)}
      LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.objsubid AND d.objsubid > 0,
      LATERAL (SELECT btrim(regexp_replace(d.description, '(^|\n)rollbackd:[^\n]*', '', 'g'), E'\n') AS text) q
     WHERE d.classoid = 'pg_class'::regclass AND q.text <> '' AND {_own("pg_class", "c.oid")}
    """,
)  # fmt: skip


async def read_schema(connection: asyncpg.Connection) -> Schema:
    """Read every user object in one consistent look.

    An empty search_path makes PostgreSQL qualify every name, whatever the role's own path is.
    """
    objects: dict[str, str] = {}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("SET LOCAL search_path = ''")
        for statement in await _prepared(connection):
            for name, definition in await statement.fetch():
                objects[name] = definition or ""
    return Schema(objects=objects)


# Planning these queries takes longer than they do, so that a connection that is kept keeps them as well.
_PREPARED: WeakKeyDictionary[object, list[asyncpg.prepared_stmt.PreparedStatement]] = WeakKeyDictionary()


async def _prepared(connection: asyncpg.Connection) -> list[asyncpg.prepared_stmt.PreparedStatement]:
    known = _PREPARED.get(connection)
    if known is None:
        known = [await connection.prepare(query) for query in _QUERIES]
        _PREPARED[connection] = known
    return known
