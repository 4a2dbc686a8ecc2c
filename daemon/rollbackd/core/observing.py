"""From what a rehearsing worker saw (catalog rows by oid, locks, written rows) to what each revision did, by name.

An oid and a column's number outlive a renaming, so that everything can be named as it is when its revision begins, and
as it is today, where the way back begins.
"""

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.column_types import keeps_values
from rollbackd.core.rehearsal import (
    ChangedColumn,
    Failure,
    GoneColumn,
    GoneTable,
    NewRule,
    RanStatement,
    RehearsedRevision,
    TakenLock,
    WrittenTable,
)
from rollbackd.core.schema import TableName
from rollbackd.core.statements import read_using

# The locks of PostgreSQL's manual, table 13.2, weakest first.
LOCK_MODES = (
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
)
TABLES = ("r", "p")
VIEWS = ("v", "m")
V = TypeVar("V")
_STRENGTH = {mode: strength for strength, mode in enumerate(LOCK_MODES)}
_RULES = {"u": "unique", "p": "unique", "f": "foreign_key", "c": "check", "x": "exclude"}
# What a foreign key does to the referring rows when the row that they refer to goes or changes.
_HANDS_ON = ("c", "n", "d")


class Relation(msgspec.Struct, frozen=True):
    """A table (r), partitioned table (p), view (v), materialised view (m) or foreign table (f)."""

    oid: int
    schema: str
    name: str
    kind: str
    file: int
    parents: tuple[int, ...] = ()

    def named(self) -> TableName:
        """Its name."""
        return TableName(self.schema, self.name)


class Column(msgspec.Struct, frozen=True):
    """A column by its relation's oid and its number."""

    relation: int
    number: int
    name: str
    type: str
    type_oid: int
    not_null: bool
    has_default: bool
    identity: str = ""
    generated: str = ""


class Constraint(msgspec.Struct, frozen=True):
    """A constraint; `kind`, `on_delete` and `on_update` are pg_constraint's letters."""

    oid: int
    relation: int
    kind: str
    name: str
    other: int
    on_delete: str
    on_update: str
    validated: bool
    definition: str
    inherited: bool
    columns: tuple[int, ...] | None = None
    other_columns: tuple[int, ...] | None = None


class UniqueIndex(msgspec.Struct, frozen=True):
    """A unique index; a column number of 0 stands for an expression."""

    oid: int
    relation: int
    name: str
    columns: tuple[str, ...]
    is_primary: bool
    has_expressions: bool
    definition: str
    predicate: str | None = None


class Labels(msgspec.Struct, frozen=True):
    """An enum type's labels, in order."""

    type_oid: int
    labels: tuple[str, ...]


class Attributes(msgspec.Struct, frozen=True):
    """A composite type's attributes, each as its name and type."""

    type_oid: int
    attributes: tuple[str, ...]


class Structure(msgspec.Struct, frozen=True):
    """The catalog at one moment, by key."""

    relations: dict[str, Relation] = {}
    columns: dict[str, Column] = {}
    constraints: dict[str, Constraint] = {}
    indexes: dict[str, UniqueIndex] = {}
    labels: dict[str, Labels] = {}
    composites: dict[str, Attributes] = {}

    def relation(self, oid: int) -> Relation | None:
        """The relation of this oid."""
        return self.relations.get(str(oid))

    def column(self, relation: int, number: int) -> Column | None:
        """The column of this number."""
        return self.columns.get(f"{relation}/{number}")

    def columns_of(self, relation: int) -> list[Column]:
        """A relation's columns in their order."""
        found = [column for column in self.columns.values() if column.relation == relation]
        return sorted(found, key=lambda column: column.number)


class StructureChanges(msgspec.Struct, frozen=True):
    """What differs from the moment before; None stands for what is gone."""

    relations: dict[str, Relation | None] = {}
    columns: dict[str, Column | None] = {}
    constraints: dict[str, Constraint | None] = {}
    indexes: dict[str, UniqueIndex | None] = {}
    labels: dict[str, Labels | None] = {}
    composites: dict[str, Attributes | None] = {}

    def apply(self, before: Structure) -> Structure:
        """The catalog afterwards."""
        return Structure(
            **{
                name: _applied(getattr(before, name), getattr(self, name))
                for name in Structure.__struct_fields__
            }
        )


class Touched(msgspec.Struct, frozen=True):
    """A relation on which a statement took a new lock, or whose rows it wrote."""

    relation: int
    modes: tuple[str, ...]
    inserted: int
    updated: int
    deleted: int


class WatchedStatement(msgspec.Struct, frozen=True):
    """A statement as it was executed."""

    sql: str
    seconds: float
    rows: int
    touched: tuple[Touched, ...]


class WatchedStep(msgspec.Struct, frozen=True):
    """One revision that was run to its end."""

    id: str
    seconds: float
    statements: tuple[WatchedStatement, ...]
    changes: StructureChanges
    transactional: bool


class Watched(msgspec.Struct, frozen=True):
    """The rehearsing worker's answer. With `reached_out` the scripts were kept from something that they do in earnest."""

    first: Structure
    steps: tuple[WatchedStep, ...]
    failure: Failure | None
    version_table: dict[str, str]
    seconds: float
    kept: tuple[dict[str, object], ...] = ()
    reached_out: str = ""


def rehearsed_revisions(watched: Watched) -> tuple[RehearsedRevision, ...]:
    """What each revision did, in the order in which they ran; one that ran several times (for each tenant) is one."""
    found: dict[str, RehearsedRevision] = {}
    for step, _, _ in _steps(watched):
        ran = step.revision()
        known = found.get(ran.id)
        found[ran.id] = ran if known is None else known.joined(ran)
    return tuple(found.values())


def renamed_tables(watched: Watched) -> tuple[tuple[TableName, TableName], ...]:
    """Tables that have another name (or schema) in the end: the first name and the last."""
    last = watched.first
    for _, _, after in _steps(watched):
        last = after
    return tuple(
        (relation.named(), now.named())
        for key, relation in watched.first.relations.items()
        if relation.kind in TABLES
        and (now := last.relations.get(key)) is not None
        and now.named() != relation.named()
    )


def archive_items(watched: Watched) -> tuple[ArchiveItem, ...]:
    """What has to be kept before each revision runs, with the key that outlives it and the names of today."""
    items: list[ArchiveItem] = []
    for step, before, after in _steps(watched):
        revision = step.revision()
        keys = _Keys(before, after)
        gone = {table.table for table in revision.gone_tables}
        found = [
            ArchiveItem(
                revision=revision.id,
                kind=ArchiveKind.TABLE,
                table=t.table,
                today=t.today,
                key=keys.of(t.table, outlives=False),
            )
            for t in revision.gone_tables
        ]
        found += [
            ArchiveItem(
                revision=revision.id,
                kind=ArchiveKind.COLUMN,
                table=c.table,
                today=c.today,
                column=c.column,
                key=keys.of(c.table, outlives=True),
            )
            for c in revision.gone_columns
            if not c.generated
        ]
        found += [
            ArchiveItem(
                revision=revision.id,
                kind=ArchiveKind.NARROWED,
                table=c.table,
                today=c.today,
                column=c.column,
                new_type=c.new_type,
                key=keys.of(c.table, outlives=True),
            )
            for c in revision.changed_columns
            if not c.keeps_values
        ]
        found += [
            ArchiveItem(
                revision=revision.id,
                kind=ArchiveKind.ROWS,
                table=w.table,
                today=w.today,
                key=keys.of(w.table, outlives=w.table not in gone),
            )
            for w in revision.written
            if w.may_lose
        ]
        if found:
            renamed = _renamed_columns(watched.first, before)
            items += [
                msgspec.structs.replace(item, renamed=tuple(sorted(renamed.get(item.table, ()))))
                for item in found
            ]
    return tuple(dict.fromkeys(items))


def _renamed_columns(today: Structure, before: Structure) -> dict[TableName, list[tuple[str, str]]]:
    """By table, as it is called before the step, the columns that are called otherwise where the way back begins."""
    renamed: dict[TableName, list[tuple[str, str]]] = {}
    for key, column in before.columns.items():
        now = today.columns.get(key)
        if now is None or now is column or now.name == column.name:
            continue
        relation = before.relation(column.relation)
        if relation is not None:
            renamed.setdefault(relation.named(), []).append((column.name, now.name))
    return renamed


def _steps(watched: Watched) -> Iterator[tuple["_Step", Structure, Structure]]:
    """Each step with the catalog before and after it."""
    version_table = watched.version_table.get("name", "alembic_version")
    before = watched.first
    for step in watched.steps:
        after = step.changes.apply(before)
        yield _Step(step, watched.first, before, after, version_table), before, after
        before = after


def _applied(before: dict[str, V], differing: dict[str, V | None]) -> dict[str, V]:
    kept = {key: row for key, row in before.items() if key not in differing}
    return {**kept, **{key: row for key, row in differing.items() if row is not None}}


class _Keys:
    """The key by which a table's rows are known: its primary key, else a unique index over columns that are never null."""

    def __init__(self, before: Structure, after: Structure) -> None:
        self._before = before
        self._after = after
        self._oids = {relation.named(): relation.oid for relation in before.relations.values()}

    def of(self, table: TableName, *, outlives: bool) -> tuple[str, ...]:
        """Column names as they are before; empty where there is no such key (that outlives the revision)."""
        oid = self._oids.get(table, 0)
        candidates = [
            index
            for index in self._before.indexes.values()
            if index.relation == oid and not index.has_expressions and not index.predicate
        ]
        for index in sorted(candidates, key=lambda i: (not i.is_primary, i.name)):
            columns = [self._before.column(oid, int(number)) for number in index.columns]
            if any(column is None or not column.not_null for column in columns):
                continue
            there = [self._after.column(oid, int(number)) for number in index.columns]
            same = all(
                new is not None and old is not None and new.name == old.name and new.type == old.type
                for old, new in zip(columns, there, strict=True)
            )
            if same or not outlives:
                return tuple(column.name for column in columns if column is not None)
        return ()


class _Step:
    """One step between two moments."""

    def __init__(
        self, step: WatchedStep, today: Structure, before: Structure, after: Structure, version_table: str
    ) -> None:
        self._step = step
        self._today = today
        self._before = before
        self._after = after
        self._version_table = version_table

    def revision(self) -> RehearsedRevision:
        written, read = self._written_and_read()
        return RehearsedRevision(
            id=self._step.id,
            seconds=self._step.seconds,
            statements=tuple(self._statement(statement) for statement in self._step.statements),
            gone_tables=self._gone_tables(),
            gone_columns=self._gone_columns(),
            changed_columns=self._changed_columns(),
            new_rules=self._new_rules(),
            written=written,
            read=read,
            locks=self._locks(),
            rewritten=self._rewritten(),
            gone_views=tuple(sorted(r.named() for r in self._gone() if r.kind in VIEWS)),
            gone_unique_indexes=self._gone_unique_indexes(),
            gone_constraints=self._gone_constraints(),
            transactional=self._step.transactional,
        )

    def _gone_unique_indexes(self) -> tuple[str, ...]:
        """A constraint's index goes with its constraint."""
        constraints = {c.name for c in self._before.constraints.values()}
        return tuple(
            sorted(
                index.name
                for key, now in self._step.changes.indexes.items()
                if now is None
                and (index := self._before.indexes.get(key)) is not None
                and index.name not in constraints
                and self._concerns_what_stays(index.relation, tuple(int(n) for n in index.columns))
            )
        )

    def _gone_constraints(self) -> tuple[str, ...]:
        found = []
        for key, now in self._step.changes.constraints.items():
            gone = self._before.constraints.get(key)
            relation = self._before.relation(gone.relation) if gone is not None else None
            if now is not None or gone is None or relation is None or gone.inherited:
                continue
            if self._concerns_what_stays(gone.relation, gone.columns or (0,)):
                found.append(f"{relation.named().text()}.{gone.name}")
        return tuple(sorted(found))

    def _concerns_what_stays(self, relation: int, columns: tuple[int, ...]) -> bool:
        """Whether the table outlives the step, with a column of these (0: an expression's)."""
        stays = any(n == 0 or self._after.column(relation, n) is not None for n in columns)
        return stays and self._after.relation(relation) is not None

    def _gone(self) -> list[Relation]:
        return [
            before
            for key, now in self._step.changes.relations.items()
            if now is None and (before := self._before.relations.get(key)) is not None
        ]

    def _today_name(self, oid: int) -> TableName | None:
        relation = self._today.relation(oid)
        return relation.named() if relation is not None else None

    def _today_column(self, oid: int, number: int) -> str:
        column = self._today.column(oid, number)
        return column.name if column is not None else ""

    def _gone_tables(self) -> tuple[GoneTable, ...]:
        gone = {relation.oid: relation for relation in self._gone() if relation.kind in TABLES}
        # A partition that goes with its parent is part of it.
        return tuple(
            sorted(
                (
                    GoneTable(table=relation.named(), today=self._today_name(relation.oid))
                    for relation in gone.values()
                    if not any(parent in gone for parent in relation.parents)
                ),
                key=lambda table: table.table,
            )
        )

    def _differing_columns(self) -> list[tuple[Relation, Column, Column | None]]:
        """Columns of tables that are there before and after, as they were and as they are; of parents alone."""
        found = []
        for key, now in self._step.changes.columns.items():
            old = self._before.columns.get(key)
            if old is None:
                continue
            relation = self._before.relation(old.relation)
            if relation is None or relation.kind not in TABLES or self._after.relation(relation.oid) is None:
                continue
            if any(self._goes_with(parent, old, now) for parent in relation.parents):
                continue
            found.append((relation, old, now))
        return sorted(found, key=lambda entry: (entry[0].named(), entry[1].number))

    def _goes_with(self, parent: int, old: Column, now: Column | None) -> bool:
        """Whether the parent's column of this name differs in the same way."""
        for column in self._before.columns_of(parent):
            if column.name == old.name:
                after = self._after.column(parent, column.number)
                return (after is None) == (now is None) and self._after.relation(parent) is not None
        return False

    def _gone_columns(self) -> tuple[GoneColumn, ...]:
        return tuple(
            GoneColumn(
                table=relation.named(),
                column=old.name,
                today=self._today_name(relation.oid),
                today_column=self._today_column(relation.oid, old.number),
                generated=bool(old.generated),
                required=old.not_null and not (old.has_default or old.identity or old.generated),
            )
            for relation, old, now in self._differing_columns()
            if now is None
        )

    def _changed_columns(self) -> tuple[ChangedColumn, ...]:
        found = []
        for relation, old, now in self._differing_columns():
            if now is None or (old.type == now.type and old.type_oid == now.type_oid) or old.generated:
                continue
            new_labels = self._labels(self._after, now.type_oid)
            missing = tuple(
                label for label in self._labels(self._before, old.type_oid) if label not in new_labels
            )
            using = next(
                (
                    expression
                    for statement in self._step.statements
                    if (expression := read_using(statement.sql, relation.name, old.name))
                ),
                "",
            )
            found.append(
                ChangedColumn(
                    table=relation.named(),
                    column=old.name,
                    old_type=old.type,
                    new_type=now.type,
                    keeps_values=not using and keeps_values(old.type, now.type),
                    today=self._today_name(relation.oid),
                    today_column=self._today_column(relation.oid, old.number),
                    using=using,
                    labels=missing if new_labels else (),
                )
            )
        return (*found, *self._recomposed())

    def _recomposed(self) -> list[ChangedColumn]:
        """Columns whose composite type has other attributes now, under the same name."""
        differing = {
            attributes.type_oid
            for key, attributes in self._step.changes.composites.items()
            if attributes is not None and key in self._before.composites
        }
        return [
            ChangedColumn(
                table=relation.named(),
                column=column.name,
                old_type=column.type,
                new_type=column.type,
                keeps_values=False,
                today=self._today_name(relation.oid),
                today_column=self._today_column(relation.oid, column.number),
            )
            for column in self._before.columns.values()
            if column.type_oid in differing
            and (relation := self._before.relation(column.relation)) is not None
            and relation.kind in TABLES
            and self._after.column(column.relation, column.number) is not None
        ]

    @staticmethod
    def _labels(structure: Structure, type_oid: int) -> tuple[str, ...]:
        found = structure.labels.get(str(type_oid))
        return found.labels if found is not None else ()

    def _new_rules(self) -> tuple[NewRule, ...]:
        """Rules that rows which were there before the step must pass from now on."""
        found: list[NewRule] = []
        for key, constraint in self._step.changes.constraints.items():
            if constraint is None or constraint.inherited:
                continue
            old = self._before.constraints.get(key)
            is_new = old is None or (constraint.validated and not old.validated)
            if is_new and constraint.validated and (rule := self._rule(constraint)) is not None:
                found.append(rule)
        backing = {rule.name for rule in found}
        for key, index in self._step.changes.indexes.items():
            if index is None or key in self._before.indexes or index.name in backing:
                continue
            if (rule := self._index_rule(index)) is not None:
                found.append(rule)
        for key, column in self._step.changes.columns.items():
            before = self._before.columns.get(key)
            if column is not None and column.not_null and (before is None or not before.not_null):
                found += self._not_null_rule(column)
        return tuple(sorted(found, key=lambda rule: (rule.table, rule.kind, rule.name, rule.columns)))

    def _there_before(self, oid: int) -> Relation | None:
        return self._after.relation(oid) if self._before.relation(oid) is not None else None

    def _rule(self, constraint: Constraint) -> NewRule | None:
        relation = self._there_before(constraint.relation)
        if relation is None:
            return None
        other = self._today_name(constraint.other) if constraint.other else None
        return NewRule(
            kind=_RULES[constraint.kind],
            name=constraint.name,
            table=relation.named(),
            today=self._today_name(relation.oid),
            columns=tuple(self._today_column(relation.oid, n) for n in constraint.columns or ()),
            definition=constraint.definition,
            other=other,
            other_columns=tuple(
                self._today_column(constraint.other, n) for n in constraint.other_columns or ()
            ),
            nulls_not_distinct="NULLS NOT DISTINCT" in constraint.definition,
        )

    def _index_rule(self, index: UniqueIndex) -> NewRule | None:
        relation = self._there_before(index.relation)
        if relation is None or index.has_expressions:
            return None
        return NewRule(
            kind="unique",
            name=index.name,
            table=relation.named(),
            today=self._today_name(relation.oid),
            columns=tuple(self._today_column(relation.oid, int(n)) for n in index.columns),
            definition=index.definition,
            nulls_not_distinct="NULLS NOT DISTINCT" in index.definition,
            predicate=index.predicate or "",
        )

    def _not_null_rule(self, column: Column) -> list[NewRule]:
        relation = self._there_before(column.relation)
        if relation is None or relation.kind not in TABLES:
            return []
        is_new = self._before.column(column.relation, column.number) is None
        if is_new and (column.has_default or column.identity or column.generated):
            return []
        if any(self._after.relation(parent) is not None for parent in relation.parents):
            return []
        return [
            NewRule(
                kind="not_null",
                name=column.name,
                table=relation.named(),
                today=self._today_name(relation.oid),
                columns=(self._today_column(relation.oid, column.number),),
                definition=f"{column.name} NOT NULL",
            )
        ]

    def _written_and_read(self) -> tuple[tuple[WrittenTable, ...], tuple[TableName, ...]]:
        written: dict[int, list[int]] = {}
        loses: set[int] = set()
        read: set[int] = set()
        for statement in self._step.statements:
            # TRUNCATE takes the strongest lock and counts no row; an INSERT alone takes nothing away.
            word = statement.sql.lstrip("( ").split(" ", 1)[0].upper()
            for touched in statement.touched:
                wrote = touched.inserted or touched.updated or touched.deleted
                if wrote or "RowExclusiveLock" in touched.modes or word == "TRUNCATE":
                    amounts = written.setdefault(touched.relation, [0, 0, 0])
                    for position, amount in enumerate((touched.inserted, touched.updated, touched.deleted)):
                        amounts[position] += amount
                    only_inserts = word == "INSERT" and "CONFLICT" not in statement.sql.upper()
                    if touched.updated or touched.deleted or not (only_inserts or word == "COPY"):
                        loses.add(touched.relation)
                elif set(touched.modes) & {"AccessShareLock", "RowShareLock"}:
                    read.add(touched.relation)
        for oid in self._handed_on(loses):
            written.setdefault(oid, [0, 0, 0])
            loses.add(oid)
        found = []
        for oid, (inserted, updated, deleted) in written.items():
            relation = self._before.relation(oid)
            if relation is None or relation.kind not in TABLES or relation.name == self._version_table:
                continue
            found.append(
                WrittenTable(
                    table=relation.named(),
                    today=self._today_name(oid),
                    inserted=inserted,
                    updated=updated,
                    deleted=deleted,
                    may_lose=oid in loses,
                )
            )
        names = [
            relation.named()
            for oid in read - written.keys()
            if (relation := self._before.relation(oid)) is not None and relation.name != self._version_table
        ]
        return tuple(sorted(found, key=lambda table: table.table)), tuple(sorted(names))

    def _handed_on(self, tables: set[int]) -> set[int]:
        """Tables that a foreign key hands a delete or an update on to."""
        found: set[int] = set()
        waiting = list(tables)
        while waiting:
            current = waiting.pop()
            for constraint in self._before.constraints.values():
                hands_on = constraint.on_delete in _HANDS_ON or constraint.on_update in _HANDS_ON
                refers = constraint.kind == "f" and constraint.other == current and hands_on
                if refers and constraint.relation not in found | tables:
                    found.add(constraint.relation)
                    waiting.append(constraint.relation)
        return found

    def _locks(self) -> tuple[TakenLock, ...]:
        strongest: dict[int, str] = {}
        for statement in self._step.statements:
            for touched in statement.touched:
                for mode in touched.modes:
                    known = strongest.get(touched.relation)
                    if mode in _STRENGTH and (known is None or _STRENGTH[mode] > _STRENGTH[known]):
                        strongest[touched.relation] = mode
        found = [
            TakenLock(table=relation.named(), mode=mode)
            for oid, mode in strongest.items()
            if (relation := self._before.relation(oid)) is not None and relation.name != self._version_table
        ]
        return tuple(sorted(found, key=lambda lock: lock.table))

    def _rewritten(self) -> tuple[TableName, ...]:
        found = []
        for key, now in self._step.changes.relations.items():
            old = self._before.relations.get(key)
            if now is not None and old is not None and old.file != now.file and now.kind in ("r", "m"):
                found.append(old.named())
        return tuple(sorted(found))

    def _statement(self, statement: WatchedStatement) -> RanStatement:
        writes: set[TableName] = set()
        reads: set[TableName] = set()
        for touched in statement.touched:
            relation = self._before.relation(touched.relation) or self._after.relation(touched.relation)
            if relation is None:
                continue
            strong = any(_STRENGTH.get(mode, 0) >= _STRENGTH["RowExclusiveLock"] for mode in touched.modes)
            wrote = touched.inserted or touched.updated or touched.deleted
            (writes if strong or wrote else reads).add(relation.named())
        return RanStatement(
            sql=statement.sql,
            seconds=statement.seconds,
            reads=tuple(sorted(reads)),
            writes=tuple(sorted(writes)),
            rows=statement.rows,
        )
