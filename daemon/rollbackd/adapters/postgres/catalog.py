"""The catalog as one line of definition for each object: what a fingerprint digests and a difference compares.

Objects of extensions, of the system and of rollbackd itself are left out; so are names that only a dump or a
re-creation would change, such as OIDs and column positions.
"""

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


_QUERIES = (
    # Tables, views and the like: kind, persistence, row security, owner, grants.
    f"""
    SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                WHEN 'c' THEN 'composite type' ELSE 'table' END || ' ' || format('%I.%I', n.nspname, c.relname),
           concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.reloptions,
                     (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = c.oid), 'rls', c.relrowsecurity, c.relforcerowsecurity, 'owner',
                     c.relowner::regrole, 'acl', {_acl("c.relacl", "r", "c.relowner")},
                     'partition', pg_get_expr(c.relpartbound, c.oid), pg_get_partkeydef(c.oid),
                     CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END)
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'column ' || format('%I.%I.%I', n.nspname, c.relname, a.attname),
           concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'not null' END,
                     'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || nullif(a.attidentity::text, ''),
                     'generated ' || nullif(a.attgenerated::text, ''),
                     'collate ' || nullif(a.attcollation, t.typcollation)::regcollation::text,
                     'acl ' || (SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(a.attacl) x))
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
     WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'm', 'v', 'c') AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'constraint ' || format('%I.%I.%I', n.nspname, c.relname, k.conname), pg_get_constraintdef(k.oid)
      FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE k.contype <> 'n' AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'index ' || format('%I.%I', n.nspname, c.relname),
           pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
      FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {_own("pg_class", "i.indrelid")}
    """,
    f"""
    SELECT 'sequence ' || format('%I.%I', n.nspname, c.relname),
           concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, 'owner',
                     c.relowner::regrole, 'acl', {_acl("c.relacl", "s", "c.relowner")})
      FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'type ' || format('%I.%I', n.nspname, t.typname),
           concat_ws(' ', t.typtype, 'owner', t.typowner::regrole, (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_enum e
                                       WHERE e.enumtypid = t.oid),
                     CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END, t.typdefault,
                     (SELECT string_agg(pg_get_constraintdef(k.oid), ',' ORDER BY k.conname) FROM pg_constraint k
                       WHERE k.contypid = t.oid))
      FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
     WHERE t.typtype IN ('e', 'd', 'r') AND {_own("pg_type", "t.oid")}
    """,
    f"""
    SELECT 'function ' || format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
           concat_ws(' ', CASE WHEN p.prokind = 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END, 'owner',
                     p.proowner::regrole, 'acl', {_acl("p.proacl", "f", "p.proowner")})
      FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE {_own("pg_proc", "p.oid")}
    """,
    f"""
    SELECT 'trigger ' || format('%I.%I.%I', n.nspname, c.relname, g.tgname),
           pg_get_triggerdef(g.oid) || ' ' || g.tgenabled::text
      FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT g.tgisinternal AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'policy ' || format('%I.%I.%I', n.nspname, c.relname, p.polname),
           concat_ws(' ', p.polcmd, p.polpermissive, p.polroles::regrole[]::text, pg_get_expr(p.polqual, p.polrelid),
                     pg_get_expr(p.polwithcheck, p.polrelid))
      FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'rule ' || format('%I.%I.%I', n.nspname, c.relname, r.rulename), pg_get_ruledef(r.oid)
      FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE r.rulename <> '_RETURN' AND {_own("pg_class", "c.oid")}
    """,
    f"""
    SELECT 'statistics ' || format('%I.%I', n.nspname, s.stxname), pg_get_statisticsobjdef(s.oid)
      FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE {_USER_SCHEMA}
    """,
    f"""
    SELECT 'schema ' || quote_ident(n.nspname),
           concat_ws(' ', n.nspowner::regrole, 'acl', {_acl("n.nspacl", "n", "n.nspowner")})
      FROM pg_namespace n WHERE {_USER_SCHEMA}
    """,
)


async def read_schema(connection: asyncpg.Connection) -> Schema:
    """Read every user object in one consistent look.

    An empty search_path makes PostgreSQL qualify every name, whatever the role's own path is.
    """
    objects: dict[str, str] = {}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute("SET LOCAL search_path = ''")
        for query in _QUERIES:
            for name, definition in await connection.fetch(query):
                objects[name] = definition or ""
    return Schema(objects=objects)
