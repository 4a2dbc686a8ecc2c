"""Whole rows that are kept and aren't there: which they are, and the SQL that tells and inserts them."""

import msgspec

from rollbackd.core.archives import NEW_VALUE, OLD_VALUE, ROW, ArchiveEntry, KeptColumn, KeptConstraint
from rollbackd.core.restoring.archived import archive_of, fit_conditions, typed, writable_columns
from rollbackd.core.restoring.lives import lives_of
from rollbackd.core.restoring.present import PresentColumn, PresentTable
from rollbackd.core.restoring.sql import equal, field_of, identity_of, round_trip
from rollbackd.core.schema import quoted


class KeptRows(msgspec.Struct, frozen=True, kw_only=True):
    """Whole rows of an archive: a query of them, with a column for each that can be written, typed as it is now.

    `unfit` counts those that the present types wouldn't give back as they were; the query leaves them out.
    """

    query: str
    columns: tuple[PresentColumn, ...]
    unfit: str = ""

    @classmethod
    def whole(cls, entry: ArchiveEntry, table: PresentTable, version: int) -> "KeptRows":
        """The rows of a dropped table."""
        pairs = writable_columns(entry, table)
        values = [f"{typed(kept, now)} AS {quoted(now.name)}" for kept, now in pairs]
        takes = [condition for kept, now in pairs for condition in fit_conditions(kept, now, version)]
        return cls._of(entry, pairs, values, takes, f"{archive_of(entry)} a")

    @classmethod
    def deleted(cls, entry: ArchiveEntry, table: PresentTable, version: int) -> "KeptRows":
        """Rows as they were before the first statement that touched them, where one removed them in the end."""
        pairs = writable_columns(entry, table)
        fields = [(kept, now, field_of(f"a.{OLD_VALUE}", now.name)) for kept, now in pairs]
        values = [f"{field}::{now.type} AS {quoted(now.name)}" for _, now, field in fields]
        takes = [round_trip(field, now.type, version) for kept, now, field in fields if kept.type != now.type]
        # Of several rows that had the same key one after the other the first is the one that was there before.
        key = ", ".join(field_of(f"l.{OLD_VALUE}", name) for name in entry.key)
        first = f"SELECT DISTINCT ON ({key}) l.*" if key else "SELECT l.*"
        order = f" ORDER BY {key}, l.{ROW}" if key else ""
        rows = f"({first} FROM {lives_of(entry)} l WHERE l.{NEW_VALUE} IS NULL{order}) a"
        return cls._of(entry, pairs, values, takes, rows)

    @classmethod
    def _of(
        cls,
        entry: ArchiveEntry,
        pairs: list[tuple[KeptColumn, PresentColumn]],
        values: list[str],
        takes: list[str],
        rows: str,
    ) -> "KeptRows":
        order = [] if entry.key else [f"a.{ROW}"]
        condition = " AND ".join(takes) or "true"
        return cls(
            query=f"SELECT {', '.join([*values, *order])} FROM {rows} WHERE {condition}",
            columns=tuple(now for _, now in pairs),
            unfit=f"SELECT count(*) FROM {rows} WHERE NOT ({condition})" if takes else "",
        )

    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]

    def equal(self, name: str, left: str, right: str) -> str:
        """A comparison of two values of a column."""
        return next(equal(left, right, column) for column in self.columns if column.name == name)


class MissingRows(msgspec.Struct, frozen=True, kw_only=True):
    """The kept rows of an entry that aren't in its table: `source` is what `absent` picks them from, each as `a`."""

    entry: ArchiveEntry
    table: PresentTable
    kept: KeptRows

    @property
    def source(self) -> str:
        """The kept rows; without a key each is numbered among those that are alike, and has how many are there."""
        if self.entry.key:
            return f"({self.kept.query}) a"
        own, present = identity_of("a", self.kept.names()), identity_of("t", self.kept.names())
        return (
            f"(SELECT a.*, {own} AS rollbackd_id, row_number() OVER (PARTITION BY {own} ORDER BY a.{ROW})"
            f" AS rollbackd_n FROM ({self.kept.query}) a) a LEFT JOIN (SELECT {present} AS rollbackd_id,"
            f" count(*) AS rollbackd_n FROM {self.table.rows()} t GROUP BY 1) p ON p.rollbackd_id = a.rollbackd_id"
        )

    @property
    def absent(self) -> str:
        """The condition by which a row isn't there."""
        if self.entry.key:
            return f"NOT EXISTS (SELECT 1 FROM {self.table.rows()} t WHERE {self.same_key('t', 'a')})"
        return "a.rollbackd_n > coalesce(p.rollbackd_n, 0)"

    def same_key(self, left: str, right: str) -> str:
        """Two rows of the table are the same one."""
        return " AND ".join(
            self.kept.equal(name, f"{left}.{quoted(name)}", f"{right}.{quoted(name)}")
            for name in self.entry.key
        )

    def parents(self) -> list[KeptConstraint]:
        """The foreign keys that the kept rows have values for."""
        return [key for key in self.table.parents() if set(key.columns) <= set(self.kept.names())]

    def points(self, key: KeptConstraint, alias: str) -> str:
        """A row has a value for the key."""
        return " AND ".join(f"{alias}.{quoted(name)} IS NOT NULL" for name in key.columns)

    def parent(self, key: KeptConstraint, alias: str) -> str:
        """A row's parent is `p`."""
        pairs = zip(key.columns, key.other_columns, strict=True)
        return " AND ".join(self.kept.equal(n, f"p.{quoted(o)}", f"{alias}.{quoted(n)}") for n, o in pairs)

    def parent_is_there(self, key: KeptConstraint, alias: str) -> str:
        """A row's parent is in its table now."""
        assert key.other is not None, "a foreign key points to a table"
        return f"EXISTS (SELECT 1 FROM {key.other.sql()} p WHERE {self.parent(key, alias)})"

    def insert(self, source: str, where: str) -> str:
        """The statement that inserts them, or those of a source that has the same columns."""
        columns = ", ".join(quoted(name) for name in self.kept.names())
        values = ", ".join(f"a.{quoted(name)}" for name in self.kept.names())
        overriding = " OVERRIDING SYSTEM VALUE" if any(c.identity for c in self.table.columns) else ""
        conflict = "" if self.table.defers_uniqueness() else " ON CONFLICT DO NOTHING"
        return (
            f"INSERT INTO {self.table.table.sql()} ({columns}){overriding} SELECT {values} FROM {source}"
            f" WHERE {where}{conflict} RETURNING 1"
        )
