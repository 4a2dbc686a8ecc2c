"""Today's tables that a way back concerns, and the foreign keys among them, read from the catalog."""

from collections.abc import Mapping
from typing import NamedTuple

from rollbackd.adapters.postgres.risks.asking import Asking
from rollbackd.core.rehearsal import ChangedColumn, GoneColumn, GoneTable, NewRule, Rehearsal
from rollbackd.core.schema import TableName, quoted


class Column(NamedTuple):
    """A column as it is today; `type` and `category` as in the catalog, `format_type` and `typcategory`."""

    type: str
    category: str
    generated: bool


class Table(NamedTuple):
    """A table as it is today; `above` are the partitioned tables that it is a part of."""

    name: TableName
    oid: int
    kind: str
    pages: int
    key: tuple[str, ...]
    above: frozenset[TableName]
    triggers: bool
    columns: dict[str, Column]

    def rows(self, alias: str = "counted", renamed: Mapping[str, str] | None = None) -> str:
        """`FROM …`, under an alias; `renamed` are names to add for some columns (name to add: today's)."""
        # ONLY: tables that inherit are listed for themselves. A partitioned table has no rows but its partitions'.
        place = f"{'' if self.kind == 'p' else 'ONLY '}{self.name.sql()}"
        if not renamed:
            return f"FROM {place} AS {quoted(alias)}"
        more = ", ".join(f"{quoted(now)} AS {quoted(name)}" for name, now in renamed.items())
        return f"FROM (SELECT *, {more} FROM {place}) AS {quoted(alias)}"


class Reference(NamedTuple):
    """A foreign key from `child` to `parent`, with what it does when a parent goes (`c` cascades, …)."""

    child: TableName
    parent: TableName
    on_delete: str
    on_update: str
    parent_columns: frozenset[str]
    child_columns: tuple[str, ...]


class Catalog(NamedTuple):
    """What was read, or the problem that kept it from being read; `server_version` as 160004 for 16.4."""

    tables: dict[TableName, Table]
    references: tuple[Reference, ...]
    server_version: int
    problem: str = ""

    def missing(self, table: TableName) -> str:
        """Why a table isn't among them."""
        return self.problem or f"{table.text()} isn't there any more"


_TABLES = """
SELECT n.nspname, c.relname, c.oid, c.relkind::text,
       coalesce((SELECT sum(greatest(l.relpages, 0)) FROM pg_partition_tree(c.oid) p JOIN pg_class l ON l.oid = p.relid),
                c.relpages)::bigint,
       ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k(n, i)
               JOIN pg_attribute a ON a.attnum = k.n
              WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid ORDER BY k.i),
       ARRAY(SELECT an.nspname::text FROM pg_partition_ancestors(c.oid) p(o) JOIN pg_class ac ON ac.oid = p.o
               JOIN pg_namespace an ON an.oid = ac.relnamespace WHERE p.o <> c.oid ORDER BY p.o),
       ARRAY(SELECT ac.relname::text FROM pg_partition_ancestors(c.oid) p(o) JOIN pg_class ac ON ac.oid = p.o
              WHERE p.o <> c.oid ORDER BY p.o),
       EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'f', 'm')
   AND (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))
"""
_COLUMNS = """
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), t.typcategory::text, a.attgenerated <> ''
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
"""
_REFERENCES = """
SELECT cn.nspname, c.relname, pn.nspname, p.relname, k.confdeltype::text, k.confupdtype::text,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.confrelid AND a.attnum = ANY(k.confkey)),
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey))
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_class p ON p.oid = k.confrelid JOIN pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND k.conparentid = 0
"""


async def read_catalog(asking: Asking, rehearsal: Rehearsal) -> Catalog:
    """Everything that is known about the tables in question, read at once.

    Raises:
        UnknownError: when it can't be read.
    """
    wanted, written = _concerned(rehearsal)
    version = int((await asking.catalog_rows("SELECT current_setting('server_version_num')::int"))[0][0])
    references: tuple[Reference, ...] = ()
    if written:
        references = tuple(
            Reference(TableName(r[0], r[1]), TableName(r[2], r[3]), r[4], r[5], frozenset(r[6]), tuple(r[7]))
            for r in await asking.catalog_rows(_REFERENCES)
        )
        wanted |= {reference.child for reference in references}
    return Catalog(await _read_tables(asking, wanted | written), references, version)


def _concerned(rehearsal: Rehearsal) -> tuple[set[TableName], set[TableName]]:
    """The tables that change, or that a rule is about; and those that are written."""
    wanted: set[TableName] = set()
    written: set[TableName] = set()
    for revision in rehearsal.revisions:
        every: list[GoneTable | GoneColumn | ChangedColumn | NewRule] = [
            *revision.gone_tables,
            *revision.gone_columns,
            *revision.changed_columns,
            *revision.new_rules,
        ]
        wanted |= {item.today for item in every if item.today is not None}
        wanted |= {rule.other for rule in revision.new_rules if rule.other is not None}
        written |= {item.today for item in revision.written if item.today is not None}
    return wanted, written


async def _read_tables(asking: Asking, wanted: set[TableName]) -> dict[TableName, Table]:
    names = sorted(wanted)
    found = await asking.catalog_rows(_TABLES, [t.schema for t in names], [t.name for t in names])
    columns: dict[int, dict[str, Column]] = {row[2]: {} for row in found}
    for oid, name, type_, category, generated in await asking.catalog_rows(_COLUMNS, list(columns)):
        columns[oid][name] = Column(type_, category, generated)
    tables = {}
    for schema, name, oid, kind, pages, key, above_schemas, above, triggers in found:
        table = TableName(schema, name)
        parents = frozenset(TableName(*pair) for pair in zip(above_schemas, above, strict=True))
        tables[table] = Table(table, oid, kind, pages, tuple(key), parents, triggers, columns[oid])
    return tables
