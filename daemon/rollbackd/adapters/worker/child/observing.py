"""What a migration does to a database, as seen on its own connection: the catalog before and after each revision, and
after each statement the locks that it holds and the rows that it wrote.

Objects are named by oid, and columns by their number: both outlive a renaming.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    Structure = dict[str, dict[str, Any]]

# No percent sign and no colon with a word behind it may stand here: drivers would take them for parameters.
_USER_SCHEMA = "n.nspname !~ '^(pg_|information_schema$|rollbackd)'"
_OWN = (
    _USER_SCHEMA + " AND NOT EXISTS (SELECT 1 FROM pg_depend x WHERE x.classid = CAST('pg_class' AS regclass)"
    " AND x.objid = c.oid AND x.deptype = 'e')"
)
_QUERIES = {
    "relations": f"""
        SELECT CAST(c.oid AS bigint) AS oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind,
               CAST(c.relfilenode AS bigint) AS file,
               ARRAY(SELECT CAST(i.inhparent AS bigint) FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parents
          FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {_OWN}""",
    "columns": f"""
        SELECT CAST(a.attrelid AS bigint) AS relation, a.attnum AS number, a.attname AS name,
               format_type(a.atttypid, a.atttypmod) AS type, CAST(a.atttypid AS bigint) AS type_oid,
               a.attnotnull AS not_null, a.atthasdef AS has_default, a.attidentity AS identity, a.attgenerated AS generated
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f') AND {_OWN}""",
    "constraints": f"""
        SELECT CAST(k.oid AS bigint) AS oid, CAST(k.conrelid AS bigint) AS relation, k.contype AS kind, k.conname AS name,
               k.conkey AS columns, CAST(k.confrelid AS bigint) AS other, k.confkey AS other_columns,
               k.confdeltype AS on_delete, k.confupdtype AS on_update, k.convalidated AS validated,
               pg_get_constraintdef(k.oid) AS definition, k.conparentid <> 0 AS inherited
          FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE k.contype IN ('p', 'u', 'f', 'c', 'x') AND {_OWN}""",
    "indexes": f"""
        SELECT CAST(i.indexrelid AS bigint) AS oid, CAST(i.indrelid AS bigint) AS relation, ic.relname AS name,
               string_to_array(CAST(i.indkey AS text), ' ') AS columns, i.indisprimary AS is_primary,
               pg_get_expr(i.indpred, i.indrelid) AS predicate, i.indexprs IS NOT NULL AS has_expressions,
               pg_get_indexdef(i.indexrelid) AS definition
          FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          JOIN pg_class ic ON ic.oid = i.indexrelid
         WHERE i.indisunique AND i.indislive AND {_OWN}""",
    "labels": f"""
        SELECT CAST(e.enumtypid AS bigint) AS type_oid, json_agg(e.enumlabel ORDER BY e.enumsortorder) AS labels
          FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN pg_namespace n ON n.oid = t.typnamespace
         WHERE {_USER_SCHEMA} GROUP BY e.enumtypid""",
    "composites": f"""
        SELECT CAST(c.reltype AS bigint) AS type_oid,
               json_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum) AS attributes
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind = 'c' AND {_OWN} GROUP BY c.reltype""",
}  # fmt: skip
_KEYS = {
    "relations": ("oid",),
    "columns": ("relation", "number"),
    "constraints": ("oid",),
    "indexes": ("oid",),
    "labels": ("type_oid",),
    "composites": ("type_oid",),
}
_HELD = """
    SELECT CAST(l.relation AS bigint), l.mode, pg_stat_get_xact_tuples_inserted(l.relation),
           pg_stat_get_xact_tuples_updated(l.relation), pg_stat_get_xact_tuples_deleted(l.relation)
      FROM pg_locks l WHERE l.pid = pg_backend_pid() AND l.locktype = 'relation' AND l.relation >= 16384
       AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())"""
_TRANSACTION = (
    "SELECT virtualtransaction FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'virtualxid'"
)


def read_structure(connection: Connection) -> Structure:
    """The user's relations, columns, constraints, unique indexes and enum labels, by class and key."""
    found: Structure = {}
    for name, query in _QUERIES.items():
        text = connection.exec_driver_sql(
            f"SELECT CAST(coalesce(json_agg(q), '[]') AS text) FROM ({query}) q"
        ).scalar()
        found[name] = {"/".join(str(row[key]) for key in _KEYS[name]): row for row in json.loads(str(text))}
    return found


def changes(before: Structure, after: Structure) -> dict[str, dict[str, Any]]:
    """What differs, by class and key; None stands for what is gone."""
    found: dict[str, dict[str, Any]] = {}
    for name, old in before.items():
        new = after[name]
        differing = {key: row for key, row in new.items() if old.get(key) != row}
        differing.update({key: None for key in old if key not in new})
        found[name] = differing
    return found


class Observer:
    """Sees what each revision does, on whatever connections env.py runs it, one after another (a schema for each tenant).

    It asks on the very connection, between the statements.
    """

    def __init__(self) -> None:
        self._connection: Connection = None  # type: ignore[assignment]  # attach() comes before any look
        self._looking = False
        self._began = 0.0
        self._held: dict[int, tuple[set[str], int, int, int]] = {}
        self._structure: Structure = {}
        self.first: Structure = {}
        self.steps: list[dict[str, Any]] = []
        self.statement = ""

    def attach(self, connection: Connection) -> None:
        """Watch this connection from now on."""
        from sqlalchemy import event

        if connection is self._connection:
            return
        self._connection = connection
        event.listen(connection, "before_cursor_execute", self._before)
        event.listen(connection, "after_cursor_execute", self._after)

    def begin(self, revision: str) -> None:
        """Right before a revision's own statements."""
        self._looking = True
        if not self.first:
            self.first = self._structure = read_structure(self._connection)
        transaction = self._connection.exec_driver_sql(_TRANSACTION).scalar()
        self._held = self._read_held(self._connection)
        self._looking = False
        self.steps.append(
            {
                "id": revision,
                "began": time.monotonic(),
                "seconds": 0.0,
                "statements": [],
                "changes": None,
                "transaction": transaction,
            }
        )

    def end(self) -> None:
        """Right after them, in the same transaction where they left it open."""
        self._looking = True
        step = self.steps[-1]
        step["seconds"] = round(time.monotonic() - step.pop("began"), 6)
        structure = read_structure(self._connection)
        step["changes"] = changes(self._structure, structure)
        self._structure = structure
        step["transactional"] = (
            step.pop("transaction") == self._connection.exec_driver_sql(_TRANSACTION).scalar()
        )
        self._looking = False

    def _before(self, conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not self._looking:
            self.statement = " ".join(statement.split())[:4000]
            self._began = time.monotonic()

    def _after(self, conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if self._looking or not self.steps or self.steps[-1]["changes"] is not None:
            return
        seconds = time.monotonic() - self._began
        rows = getattr(cursor, "rowcount", -1)
        self._looking = True
        try:
            held = self._read_held(conn)
        finally:
            self._looking = False
        touched = []
        for relation, (modes, inserted, updated, deleted) in held.items():
            old_modes, old_inserted, old_updated, old_deleted = self._held.get(relation, (set(), 0, 0, 0))
            wrote = (inserted - old_inserted, updated - old_updated, deleted - old_deleted)
            # A new transaction begins its counting anew.
            wrote = wrote if min(wrote) >= 0 else (inserted, updated, deleted)
            if modes - old_modes or any(wrote):
                touched.append(
                    {
                        "relation": relation,
                        "modes": sorted(modes - old_modes),
                        "inserted": wrote[0],
                        "updated": wrote[1],
                        "deleted": wrote[2],
                    }
                )
        self._held = held
        self.steps[-1]["statements"].append(
            {"sql": self.statement, "seconds": round(seconds, 6), "rows": rows, "touched": touched}
        )

    @staticmethod
    def _read_held(connection: Any) -> dict[int, tuple[set[str], int, int, int]]:
        # Below SQLAlchemy's own events: this is called from within one.
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_HELD)
            found: dict[int, tuple[set[str], int, int, int]] = {}
            for relation, mode, inserted, updated, deleted in cursor.fetchall():
                modes = found.setdefault(relation, (set(), inserted or 0, updated or 0, deleted or 0))[0]
                modes.add(mode)
        finally:
            cursor.close()
        return found
