"""An archive in SQL: its columns under the names in force, and its values as the present columns have them."""

from collections.abc import Iterable

from rollbackd.core.archives import NEW_VALUE, OLD_VALUE, ROW, SCHEMA, ArchiveEntry, ArchiveKind, KeptColumn
from rollbackd.core.restoring.present import PresentColumn, PresentTable
from rollbackd.core.restoring.sql import array_of, equal, field_of, literal, round_trip, text_of
from rollbackd.core.schema import TableName, quoted


def archive_of(entry: ArchiveEntry) -> str:
    """The archive as FROM takes it, its columns under the names in force."""
    archive = TableName(SCHEMA, entry.archive).sql()
    names = {new: old for old, new in entry.definition.renamed}
    if not names:
        return archive
    if entry.kind is ArchiveKind.ROWS:
        pairs = ", ".join(f"({literal(old)}, {literal(new)})" for new, old in names.items())

        def renamed(document: str) -> str:
            return (
                f"(SELECT jsonb_object_agg(coalesce(n.new, d.key), d.value) FROM jsonb_each({document}) d"
                f" LEFT JOIN (VALUES {pairs}) n(old, new) ON n.old = d.key) AS {document}"
            )

        return f"(SELECT {ROW}, {renamed(OLD_VALUE)}, {renamed(NEW_VALUE)} FROM {archive})"
    narrowed = entry.kind is ArchiveKind.NARROWED
    own = [ROW] if not entry.key else []
    own += [OLD_VALUE, NEW_VALUE] if narrowed else []
    kept = [c.name for c in entry.definition.columns if not (narrowed and c.name == entry.column)]
    columns = [f"{quoted(names.get(name, name))} AS {quoted(name)}" for name in kept]
    return f"(SELECT {', '.join([*own, *columns])} FROM {archive})"


def writable_columns(entry: ArchiveEntry, table: PresentTable) -> list[tuple[KeptColumn, PresentColumn]]:
    """The columns of the archive and of the table that can be written."""
    pairs = ((kept, table.column(kept.name)) for kept in entry.definition.columns)
    return [(kept, now) for kept, now in pairs if now is not None and not now.generated]


def telling_columns(entry: ArchiveEntry, table: PresentTable) -> list[KeptColumn]:
    """The columns that tell a row where no key does; one that is generated may follow from the value itself."""
    return [kept for kept, _ in writable_columns(entry, table) if kept.name != entry.column]


def match_by_key(entry: ArchiveEntry, table: PresentTable) -> str:
    """The archive's key is the row's, compared as what the table has, so that its index serves."""
    kept = {column.name: column for column in entry.definition.columns}
    parts = []
    for name in entry.key:
        now = table.column(name)
        assert now is not None, "the plan holds no entry whose key isn't there"
        own = archived_text(kept[name]) if now.as_text else typed(kept[name], now)
        parts.append(equal(f"t.{quoted(name)}", own, now))
    return " AND ".join(parts)


def typed(kept: KeptColumn, now: PresentColumn) -> str:
    """A column of the archive's row `a`, as a value of the present type."""
    value = f"a.{quoted(kept.name)}"
    if not kept.as_text and kept.type == now.type:
        return value
    return f"({archived_text(kept)})::{now.type}"


def archived_text(kept: KeptColumn) -> str:
    """A column of the archive's row `a`, as text."""
    value = f"a.{quoted(kept.name)}"
    return value if kept.as_text else text_of(value)


def fit_conditions(kept: KeptColumn, now: PresentColumn, version: int) -> list[str]:
    """The condition that the present type gives a value back as it was, if there is any: the same type always does."""
    return [] if kept.type == now.type else [round_trip(archived_text(kept), now.type, version)]


def fields_of(document: str, columns: Iterable[PresentColumn]) -> str:
    """Values of a row that was kept as a document, as the array of texts that the present types write."""
    return array_of(text_of(f"({field_of(document, c.name)})::{c.type}") for c in columns)
