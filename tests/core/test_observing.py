"""From what a rehearsing worker saw to what each revision did, by name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rollbackd.core.archives import ArchiveItem, ArchiveKind
from rollbackd.core.observing import (
    LOCK_MODES,
    Attributes,
    Column,
    Constraint,
    Labels,
    Relation,
    Structure,
    StructureChanges,
    Touched,
    UniqueIndex,
    Watched,
    WatchedStatement,
    WatchedStep,
    archive_items,
    rehearsed_revisions,
    renamed_tables,
)
from rollbackd.core.rehearsal import (
    ChangedColumn,
    GoneColumn,
    GoneTable,
    NewRule,
    RehearsedRevision,
    TakenLock,
    WrittenTable,
)
from rollbackd.core.schema import TableName

# The catalog before: three tables, the version table, by their oids.
ORDERS, LINES, LOG, VERSION = 10, 20, 30, 90


def name(text: str) -> TableName:
    return TableName("public", text)


def table(oid: int, text: str, kind: str = "r", parents: tuple[int, ...] = (), file: int = 1) -> Relation:
    return Relation(oid=oid, schema="public", name=text, kind=kind, file=file, parents=parents)


def column(relation: int, number: int, text: str, type_: str = "integer", **changed: Any) -> Column:
    usual: dict[str, Any] = {"type_oid": hash(type_), "not_null": False, "has_default": False}
    return Column(relation=relation, number=number, name=text, type=type_, **(usual | changed))


def primary(oid: int, relation: int, *numbers: int, **changed: Any) -> UniqueIndex:
    usual: dict[str, Any] = {
        "name": f"i{oid}",
        "columns": tuple(str(n) for n in numbers),
        "is_primary": True,
        "has_expressions": False,
        "definition": "CREATE UNIQUE INDEX",
    }
    return UniqueIndex(oid=oid, relation=relation, **(usual | changed))


def constraint(oid: int, relation: int, kind: str, *numbers: int, **changed: Any) -> Constraint:
    usual: dict[str, Any] = {
        "name": f"c{oid}",
        "other": 0,
        "on_delete": " ",
        "on_update": " ",
        "validated": True,
        "definition": "...",
        "inherited": False,
        "columns": numbers,
    }
    return Constraint(oid=oid, relation=relation, kind=kind, **(usual | changed))


def points_to(oid: int, relation: int, other: int, **changed: Any) -> Constraint:
    return constraint(oid, relation, "f", 2, **({"other": other, "other_columns": (1,)} | changed))


def keyed(*things: Any) -> dict[str, dict[str, Any]]:
    """What the worker sends: each kind of thing by its key."""
    found: dict[str, dict[str, Any]] = {
        "relations": {},
        "columns": {},
        "constraints": {},
        "indexes": {},
        "labels": {},
        "composites": {},
    }
    for one in things:
        match one:
            case Relation():
                found["relations"][str(one.oid)] = one
            case Column():
                found["columns"][f"{one.relation}/{one.number}"] = one
            case Constraint():
                found["constraints"][str(one.oid)] = one
            case UniqueIndex():
                found["indexes"][str(one.oid)] = one
            case Labels():
                found["labels"][str(one.type_oid)] = one
            case Attributes():
                found["composites"][str(one.type_oid)] = one
    return found


SHOP = (
    table(ORDERS, "orders"),
    column(ORDERS, 1, "id", not_null=True),
    column(ORDERS, 2, "note", "text"),
    primary(11, ORDERS, 1),
    table(LINES, "lines"),
    column(LINES, 1, "id", not_null=True),
    column(LINES, 2, "order_id"),
    primary(21, LINES, 1),
    table(LOG, "log"),
    column(LOG, 1, "text", "text"),
    table(VERSION, "alembic_version"),
    column(VERSION, 1, "version_num", "text", not_null=True),
)


def ran(sql: str, *touched: Touched, rows: int = -1) -> WatchedStatement:
    return WatchedStatement(sql=sql, seconds=0.1, rows=rows, touched=touched)


def on(relation: int, *modes: str, inserted: int = 0, updated: int = 0, deleted: int = 0) -> Touched:
    return Touched(relation=relation, modes=modes, inserted=inserted, updated=updated, deleted=deleted)


def step(
    *statements: WatchedStatement, id_: str = "r", gone: tuple[Any, ...] = (), now: tuple[Any, ...] = ()
) -> WatchedStep:
    """A step after which `now` is new or as it is, and `gone` isn't there any more."""
    changes = {kind: dict(things) for kind, things in keyed(*now).items()}
    for kind, things in keyed(*gone).items():
        changes[kind] |= dict.fromkeys(things)
    return WatchedStep(
        id=id_, seconds=0.5, statements=statements, changes=StructureChanges(**changes), transactional=True
    )


def watched(*steps: WatchedStep, first: tuple[Any, ...] = SHOP) -> Watched:
    return Watched(
        first=Structure(**keyed(*first)),
        steps=steps,
        failure=None,
        version_table={"name": "alembic_version"},
        seconds=1.0,
    )


def observed(*steps: WatchedStep, first: tuple[Any, ...] = SHOP) -> tuple[RehearsedRevision, ...]:
    return rehearsed_revisions(watched(*steps, first=first))


def one(*steps: WatchedStep, first: tuple[Any, ...] = SHOP) -> RehearsedRevision:
    return observed(*steps, first=first)[-1]


def items(*steps: WatchedStep, first: tuple[Any, ...] = SHOP) -> tuple[ArchiveItem, ...]:
    """Without the names of today, which a test of their own is about."""
    return tuple(changed(item, today=None) for item in archive_items(watched(*steps, first=first)))


def changed(thing: Any, **to: Any) -> Any:
    return msgspec.structs.replace(thing, **to)


NOTE, ORDER_ID = column(ORDERS, 2, "note", "text"), column(LINES, 2, "order_id")


def test_what_is_kept_knows_the_name_that_its_table_has_where_the_way_back_begins() -> None:
    renamed = step(id_="r2", now=(table(ORDERS, "purchases"),))
    dropped = step(id_="r1", gone=(NOTE,))
    (kept,) = archive_items(watched(renamed, dropped))
    assert (kept.table, kept.today) == (name("purchases"), name("orders"))


# -- what goes ------------------------------------------------------------------------------------------------------------


def test_a_step_that_changes_nothing_shows_nothing() -> None:
    assert one(step()) == RehearsedRevision(id="r", seconds=0.5)


def test_what_is_renamed_and_dropped_later_is_named_as_it_was_then_and_as_it_is_today() -> None:
    renamed = step(id_="r2", now=(table(ORDERS, "purchases"), column(ORDERS, 2, "remark", "text")))
    dropped = step(
        id_="r1", gone=(column(ORDERS, 2, "remark", "text"), table(LINES, "lines"), ORDER_ID, *SHOP[5:6])
    )
    first, second = observed(renamed, dropped)
    assert first.gone_tables == first.gone_columns == ()
    assert second.gone_columns == (
        GoneColumn(table=name("purchases"), column="remark", today=name("orders"), today_column="note"),
    )
    assert second.gone_tables == (GoneTable(table=name("lines"), today=name("lines")),)


def test_what_is_kept_knows_the_names_that_its_table_and_columns_have_today() -> None:
    renamed = step(id_="r2", now=(table(ORDERS, "purchases"), column(ORDERS, 2, "remark", "text")))
    dropped = step(id_="r1", gone=(column(ORDERS, 2, "remark", "text"),))
    (kept,) = archive_items(watched(renamed, dropped))
    assert (kept.table, kept.column) == (name("purchases"), "remark")
    assert (kept.today, kept.renamed) == (name("orders"), (("remark", "note"),))


def test_what_the_way_back_itself_had_made_has_no_name_today() -> None:
    made = (table(40, "old_orders"), column(40, 1, "id"))
    first, second = observed(
        step(id_="r2", now=(*made, column(ORDERS, 3, "code"))),
        step(id_="r1", gone=(*made, column(ORDERS, 3, "code"))),
    )
    assert first.gone_tables == ()
    assert second.gone_tables == (GoneTable(table=name("old_orders"), today=None),)
    assert second.gone_columns == (
        GoneColumn(table=name("orders"), column="code", today=name("orders"), today_column=""),
    )


def test_a_table_under_a_name_that_another_had_is_not_taken_for_it() -> None:
    """Copied over and swapped: the oid tells them apart."""
    dropped = one(
        step(id_="r2", now=(table(40, "orders_new"), table(ORDERS, "orders_old"))),
        step(id_="r1", now=(table(40, "orders"),), gone=(table(ORDERS, "orders_old"),)),
    )
    assert dropped.gone_tables == (GoneTable(table=name("orders_old"), today=name("orders")),)


PARTED = (
    table(50, "events", "p"),
    column(50, 1, "id", not_null=True),
    column(50, 2, "note", "text"),
    table(51, "events_1", "r", (50,)),
    column(51, 1, "id", not_null=True),
    column(51, 2, "note", "text"),
)


def test_a_partition_goes_with_its_parent_and_by_itself_only_without_it() -> None:
    both = one(step(gone=(PARTED[0], PARTED[3])), first=PARTED)
    assert both.gone_tables == (GoneTable(table=name("events"), today=name("events")),)
    alone = one(step(gone=(PARTED[3],)), first=PARTED)
    assert alone.gone_tables == (GoneTable(table=name("events_1"), today=name("events_1")),)


def test_a_column_of_a_partitioned_table_is_that_of_the_parent() -> None:
    dropped = one(step(gone=(PARTED[2], PARTED[5])), first=PARTED)
    assert [(c.table, c.column) for c in dropped.gone_columns] == [(name("events"), "note")]
    retyped = one(step(now=tuple(changed(PARTED[i], type="integer") for i in (2, 5))), first=PARTED)
    assert [(c.table, c.column) for c in retyped.changed_columns] == [(name("events"), "note")]


def test_views_are_told_apart_from_tables_and_sequences_of_columns_are_not_theirs() -> None:
    view, kept = table(60, "open_orders", "v"), table(61, "totals", "m")
    seen = one(step(gone=(view, kept, column(60, 1, "id"))), first=(*SHOP, view, kept, column(60, 1, "id")))
    assert seen.gone_views == (name("open_orders"), name("totals"))
    assert seen.gone_tables == seen.gone_columns == ()


@pytest.mark.parametrize(
    ("of", "generated", "required"),
    [
        ({}, False, False),
        ({"not_null": True}, False, True),
        # Something fills it in.
        ({"not_null": True, "has_default": True}, False, False),
        ({"not_null": True, "identity": "a"}, False, False),
        ({"not_null": True, "generated": "s"}, True, False),
    ],
)
def test_a_column_that_goes_is_required_where_an_insert_has_to_name_it(
    of: dict[str, Any], generated: bool, required: bool
) -> None:
    gone = column(ORDERS, 3, "c", **of)
    (found,) = one(step(gone=(gone,)), first=(*SHOP, gone)).gone_columns
    assert (found.generated, found.required) == (generated, required)


def test_a_unique_index_that_goes_is_told_unless_its_table_or_its_constraint_goes_too() -> None:
    plain = primary(12, ORDERS, 2, name="orders_note", is_primary=False)
    backing = primary(13, ORDERS, 2, name="orders_note_key", is_primary=False)
    rule = constraint(14, ORDERS, "u", 2, name="orders_note_key")
    of_lines = primary(22, LINES, 2, name="lines_order", is_primary=False)
    before = (*SHOP, plain, backing, rule, of_lines)
    seen = one(step(gone=(plain, backing, rule, of_lines, table(LINES, "lines"))), first=before)
    assert seen.gone_unique_indexes == ("orders_note",)


# -- what changes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sql", "keeps", "using"),
    [
        ("integer", "bigint", "", True, ""),
        ("bigint", "integer", "", False, ""),
        ("character varying(10)", "text", "", True, ""),
        ("text", "character varying(10)", "", False, ""),
        # An expression of its own may do anything.
        ("integer", "bigint", "ALTER TABLE orders ALTER note TYPE bigint USING note * 2", False, "note * 2"),
        # That of another column is none of ours.
        ("integer", "bigint", "ALTER TABLE orders ALTER id TYPE bigint USING id * 2", True, ""),
        ("integer", "bigint", "ALTER TABLE lines ALTER note TYPE bigint USING note * 2", True, ""),
    ],
)
def test_a_change_of_type_keeps_values_only_where_every_old_one_is_a_new_one(
    old: str, new: str, sql: str, keeps: bool, using: str
) -> None:
    before = (*SHOP[:2], column(ORDERS, 2, "note", old), SHOP[3])
    after = column(ORDERS, 2, "note", new)
    (found,) = one(step(ran(sql), now=(after,)), first=before).changed_columns
    assert found == ChangedColumn(
        table=name("orders"),
        column="note",
        old_type=old,
        new_type=new,
        keeps_values=keeps,
        today=name("orders"),
        today_column="note",
        using=using,
    )


def test_the_labels_that_the_old_enum_lacks_are_named() -> None:
    before = (*SHOP, column(ORDERS, 3, "state", "mood", type_oid=70), Labels(70, ("new", "paid", "sent")))
    after = (column(ORDERS, 3, "state", "mood", type_oid=71), Labels(71, ("new", "sent")))
    (found,) = one(step(now=after), first=before).changed_columns
    # The same name, and another type.
    assert (found.old_type, found.new_type, found.labels) == ("mood", "mood", ("paid",))
    to_text = one(step(now=(column(ORDERS, 3, "state", "text"),)), first=before).changed_columns
    assert to_text[0].labels == ()


def test_a_column_whose_composite_type_has_other_attributes_now_is_changed_under_its_name() -> None:
    pair = column(ORDERS, 3, "place", "pair", type_oid=70)
    before = (*SHOP, pair, Attributes(70, ("x integer", "y integer")))
    (found,) = one(step(now=(Attributes(70, ("x integer",)),)), first=before).changed_columns
    assert (found.table, found.column, found.old_type, found.new_type) == (
        name("orders"),
        "place",
        "pair",
        "pair",
    )
    assert not found.keeps_values
    # A new type is nobody's yet; a column that goes with it is gone, and not changed.
    assert one(step(now=(Attributes(71, ("z integer",)),)), first=before).changed_columns == ()
    gone = one(step(gone=(pair,), now=(Attributes(70, ("x integer",)),)), first=before)
    assert (len(gone.gone_columns), gone.changed_columns) == (1, ())


def test_a_generated_column_changes_no_value_of_its_own() -> None:
    before = column(ORDERS, 3, "twice", generated="s")
    assert one(step(now=(changed(before, type="bigint"),)), first=(*SHOP, before)).changed_columns == ()


def test_a_rewritten_table_has_another_file_and_a_new_one_is_not_rewritten() -> None:
    seen = one(step(now=(table(ORDERS, "orders", file=2), table(40, "new", file=3))))
    assert seen.rewritten == (name("orders"),)


# -- rules that rows have to pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "is_rule"),
    [
        (column(ORDERS, 2, "note", "text", not_null=True), True),
        # A new one that nothing fills in.
        (column(ORDERS, 3, "code", not_null=True), True),
        (column(ORDERS, 3, "code", not_null=True, has_default=True), False),
        (column(ORDERS, 3, "code", not_null=True, identity="d"), False),
        (column(ORDERS, 3, "code", not_null=True, generated="s"), False),
        (column(ORDERS, 3, "code"), False),
        # It was so before.
        (column(ORDERS, 1, "id", "bigint", not_null=True), False),
        # Of a table that has no rows yet.
        (column(40, 1, "id", not_null=True), False),
    ],
)
def test_not_null_is_a_rule_where_rows_are_there_and_nothing_fills_it_in(now: Column, is_rule: bool) -> None:
    rules = one(step(now=(table(40, "new"), now))).new_rules
    today = now.name if now.number < 3 else ""
    expected = NewRule(
        kind="not_null",
        name=now.name,
        table=name("orders"),
        today=name("orders"),
        columns=(today,),
        definition=f"{now.name} NOT NULL",
    )
    assert rules == ((expected,) if is_rule else ())


def test_a_rule_of_a_partitioned_table_is_that_of_the_parent() -> None:
    now = tuple(changed(PARTED[i], not_null=True) for i in (2, 5))
    assert [rule.table for rule in one(step(now=now), first=PARTED).new_rules] == [name("events")]
    inherited = constraint(80, 51, "c", 2, inherited=True)
    assert one(step(now=(inherited,)), first=PARTED).new_rules == ()


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        (constraint(80, ORDERS, "u", 2), "unique"),
        (constraint(80, ORDERS, "p", 2), "unique"),
        (constraint(80, ORDERS, "c", 2), "check"),
        (constraint(80, ORDERS, "x", 2), "exclude"),
        # Rows that are there needn't pass it.
        (constraint(80, ORDERS, "c", 2, validated=False), ""),
        (constraint(80, 40, "c", 1), ""),
    ],
)
def test_a_new_constraint_is_a_rule_for_the_rows_that_are_there(new: Constraint, kind: str) -> None:
    rules = one(step(now=(table(40, "new"), new))).new_rules
    assert [(rule.kind, rule.name, rule.columns) for rule in rules] == (
        [(kind, "c80", ("note",))] if kind else []
    )


def test_a_constraint_that_is_validated_now_is_a_new_rule_and_one_that_was_before_is_none() -> None:
    before = constraint(80, ORDERS, "c", 2, validated=False)
    (rule,) = one(step(now=(changed(before, validated=True),)), first=(*SHOP, before)).new_rules
    assert rule.kind == "check"
    known = constraint(80, ORDERS, "c", 2)
    assert one(step(now=(changed(known, name="renamed"),)), first=(*SHOP, known)).new_rules == ()


def test_a_new_foreign_key_names_what_it_points_to_by_todays_names() -> None:
    renamed = step(id_="r2", now=(table(ORDERS, "purchases"), column(ORDERS, 1, "number", not_null=True)))
    new = points_to(80, LINES, ORDERS, definition="FOREIGN KEY ...")
    rule = one(renamed, step(id_="r1", now=(new,))).new_rules[0]
    assert (rule.kind, rule.table, rule.columns) == ("foreign_key", name("lines"), ("order_id",))
    assert (rule.other, rule.other_columns) == (name("orders"), ("id",))


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({}, [(("note",), "", False)]),
        ({"predicate": "note <> ''"}, [(("note",), "note <> ''", False)]),
        ({"definition": "CREATE UNIQUE INDEX … NULLS NOT DISTINCT"}, [(("note",), "", True)]),
        # What an expression makes equal can't be told from columns.
        ({"has_expressions": True}, []),
        # Told by its constraint already.
        ({"name": "c80"}, [(("note",), "", False)]),
    ],
)
def test_a_new_unique_index_is_a_rule(of: dict[str, Any], expected: list[Any]) -> None:
    index = primary(81, ORDERS, 2, **({"name": "orders_note", "is_primary": False} | of))
    backed = (constraint(80, ORDERS, "u", 2),) if of.get("name") else ()
    rules = one(step(now=(index, *backed))).new_rules
    assert [(rule.columns, rule.predicate, rule.nulls_not_distinct) for rule in rules] == expected
    assert all(rule.kind == "unique" for rule in rules)


# -- rows and locks ---------------------------------------------------------------------------------------------------------


def test_rows_that_were_written_are_told_with_their_numbers_summed_over_the_statements() -> None:
    seen = one(
        step(
            ran("UPDATE orders SET note = ''", on(ORDERS, "RowExclusiveLock", updated=2), rows=2),
            ran("DELETE FROM orders", on(ORDERS, deleted=3), on(LINES, "AccessShareLock")),
            ran("INSERT INTO log SELECT ...", on(LOG, "RowExclusiveLock", inserted=4)),
        )
    )
    assert seen.written == (
        WrittenTable(table=name("log"), today=name("log"), inserted=4, may_lose=False),
        WrittenTable(table=name("orders"), today=name("orders"), updated=2, deleted=3),
    )
    assert seen.read == (name("lines"),)
    assert [(s.sql[:6], s.rows, s.reads, s.writes) for s in seen.statements] == [
        ("UPDATE", 2, (), (name("orders"),)),
        ("DELETE", -1, (name("lines"),), (name("orders"),)),
        ("INSERT", -1, (), (name("log"),)),
    ]


@pytest.mark.parametrize(
    ("statement", "may_lose"),
    [
        # On an empty copy nothing is counted: the lock and the word tell.
        (ran("DELETE FROM log", on(LOG, "RowExclusiveLock")), True),
        (ran("UPDATE log SET text = ''", on(LOG, "RowExclusiveLock")), True),
        (ran("  (WITH x AS (...) DELETE ...)", on(LOG, "RowExclusiveLock")), True),
        (ran("TRUNCATE log", on(LOG, "AccessExclusiveLock")), True),
        (ran("INSERT INTO log VALUES ('x')", on(LOG, "RowExclusiveLock")), False),
        (ran("COPY log FROM stdin", on(LOG, "RowExclusiveLock")), False),
        # An INSERT that may update.
        (ran("INSERT INTO log ... ON CONFLICT DO UPDATE ...", on(LOG, "RowExclusiveLock")), True),
        # A trigger behind an INSERT removed something.
        (ran("INSERT INTO log VALUES ('x')", on(LOG, "RowExclusiveLock", inserted=1, deleted=1)), True),
        # A function writes.
        (ran("SELECT clean()", on(LOG, "RowExclusiveLock")), True),
    ],
)
def test_what_may_lose_rows_is_told_even_where_there_were_none(
    statement: WatchedStatement, may_lose: bool
) -> None:
    (found,) = one(step(statement)).written
    assert (found.table, found.may_lose) == (name("log"), may_lose)


@pytest.mark.parametrize("mode", ["AccessShareLock", "RowShareLock"])
def test_a_weak_lock_is_a_look_and_a_strong_one_on_the_table_itself_is_none(mode: str) -> None:
    seen = one(
        step(
            ran("SELECT ...", on(LOG, mode)), ran("ALTER TABLE orders ...", on(ORDERS, "AccessExclusiveLock"))
        )
    )
    assert (seen.read, seen.written) == ((name("log"),), ())
    assert seen.uses_rows


@pytest.mark.parametrize(
    ("first_key", "second_key", "handed_on"),
    [
        ({"on_delete": "c"}, {"on_delete": "n"}, ["lines", "log"]),
        ({"on_delete": "d"}, {"on_update": "c"}, ["lines", "log"]),
        # The chain ends where a key refuses.
        ({"on_delete": "r"}, {"on_delete": "c"}, []),
        ({"on_delete": "c"}, {"on_delete": "a"}, ["lines"]),
    ],
)
def test_a_foreign_key_hands_a_delete_on(
    first_key: dict[str, str], second_key: dict[str, str], handed_on: list[str]
) -> None:
    before = (*SHOP, points_to(80, LINES, ORDERS, **first_key), points_to(81, LOG, LINES, **second_key))
    seen = one(step(ran("DELETE FROM orders", on(ORDERS, "RowExclusiveLock"))), first=before)
    assert [w.table.name for w in seen.written] == [*handed_on, "orders"]
    assert all(w.may_lose for w in seen.written)


def test_a_foreign_key_hands_nothing_on_of_rows_that_are_only_added_and_goes_round_no_circle() -> None:
    circle = (
        *SHOP,
        points_to(80, LINES, ORDERS, on_delete="c"),
        points_to(81, ORDERS, LINES, on_delete="c"),
        points_to(82, ORDERS, ORDERS, on_delete="c"),
    )
    added = one(step(ran("INSERT INTO orders ...", on(ORDERS, "RowExclusiveLock", inserted=1))), first=circle)
    assert [w.table.name for w in added.written] == ["orders"]
    gone = one(step(ran("DELETE FROM orders", on(ORDERS, "RowExclusiveLock"))), first=circle)
    assert [w.table.name for w in gone.written] == ["lines", "orders"]


def test_of_the_locks_on_a_relation_the_strongest_is_told() -> None:
    seen = one(
        step(
            ran("SELECT", on(ORDERS, "AccessShareLock"), on(LINES, "ShareRowExclusiveLock")),
            ran("ALTER", on(ORDERS, "ShareUpdateExclusiveLock", "AccessExclusiveLock")),
            ran("UPDATE", on(ORDERS, "RowExclusiveLock"), on(40, "AccessExclusiveLock")),
            now=(table(40, "new"),),
        )
    )
    # What is new nobody waits for.
    assert seen.locks == (
        TakenLock(table=name("lines"), mode="ShareRowExclusiveLock"),
        TakenLock(table=name("orders"), mode="AccessExclusiveLock"),
    )


@pytest.mark.parametrize("strongest", LOCK_MODES)
def test_locks_are_in_the_order_of_the_manual(strongest: str) -> None:
    weaker = LOCK_MODES[: LOCK_MODES.index(strongest)]
    seen = one(step(ran("x", on(ORDERS, strongest)), *(ran("y", on(ORDERS, mode)) for mode in weaker)))
    assert [lock.mode for lock in seen.locks] == [strongest]


def test_the_version_table_is_nobodys_business() -> None:
    seen = one(
        step(
            ran("SELECT version_num", on(VERSION, "AccessShareLock")),
            ran("UPDATE alembic_version", on(VERSION, "RowExclusiveLock", updated=1)),
        )
    )
    assert (seen.written, seen.read, seen.locks) == ((), (), ())
    assert not seen.uses_rows


def test_a_version_table_of_another_name_is_left_out_by_that_name() -> None:
    seen = watched(step(ran("UPDATE log", on(LOG, "RowExclusiveLock", updated=1))))
    of_name = msgspec.structs.replace(seen, version_table={"name": "log"})
    assert rehearsed_revisions(of_name)[0].written == ()
    assert rehearsed_revisions(seen)[0].written != ()


# -- the whole way ----------------------------------------------------------------------------------------------------------


def test_a_revision_that_ran_for_each_tenant_is_one_that_did_all_of_it() -> None:
    drop_note = step(ran("ALTER TABLE orders ...", on(ORDERS, "AccessExclusiveLock")), gone=(NOTE,))
    drop_order = step(ran("ALTER TABLE lines ...", on(LINES, "AccessExclusiveLock")), gone=(ORDER_ID,))
    (seen,) = observed(drop_note, msgspec.structs.replace(drop_order, transactional=False))
    assert [c.column for c in seen.gone_columns] == ["note", "order_id"]
    assert [lock.table.name for lock in seen.locks] == ["orders", "lines"]
    assert (seen.seconds, seen.transactional, len(seen.statements)) == (1.0, False, 2)
    assert [i.column for i in items(drop_note, drop_order)] == ["note", "order_id"]


def test_tables_that_have_another_name_in_the_end_are_told() -> None:
    back_again = (
        step(id_="r3", now=(table(LOG, "journal"), table(ORDERS, "purchases"), table(LINES, "rows"))),
        step(id_="r2", now=(table(LOG, "log"), table(40, "new"), table(60, "v", "v"))),
        step(id_="r1", gone=(table(LINES, "rows"),), now=(table(60, "w", "v"), table(40, "newer"))),
    )
    assert renamed_tables(watched(*back_again)) == ((name("orders"), name("purchases")),)


# -- what is archived -------------------------------------------------------------------------------------------------------


def item(kind: ArchiveKind, table_: str, **of: Any) -> ArchiveItem:
    return ArchiveItem(**({"revision": "r", "kind": kind, "table": name(table_), "key": ("id",)} | of))


def test_everything_that_goes_or_changes_is_kept_under_the_name_that_it_has_then() -> None:
    generated = column(LINES, 4, "twice", generated="s")
    before = (*SHOP, column(LINES, 3, "amount", "bigint"), generated)
    found = items(
        step(
            ran("DELETE FROM lines", on(LINES, "RowExclusiveLock")),
            gone=(table(ORDERS, "orders"), ORDER_ID, generated),
            now=(column(LINES, 3, "amount", "integer"), column(LINES, 1, "id", not_null=True)),
        ),
        first=before,
    )
    assert found == (
        item(ArchiveKind.TABLE, "orders"),
        item(ArchiveKind.COLUMN, "lines", column="order_id"),
        item(ArchiveKind.NARROWED, "lines", column="amount", new_type="integer"),
        item(ArchiveKind.ROWS, "lines"),
    )


def test_nothing_is_kept_of_what_keeps_its_values_or_is_only_added_to() -> None:
    wider = step(
        ran("INSERT INTO log ...", on(LOG, "RowExclusiveLock", inserted=1)),
        now=(column(ORDERS, 1, "id", "bigint", not_null=True),),
    )
    assert items(wider) == ()


def test_what_a_later_revision_drops_is_kept_under_the_name_that_the_one_before_gave_it() -> None:
    found = items(
        step(id_="r2", now=(table(ORDERS, "purchases"), column(ORDERS, 1, "number", not_null=True))),
        step(id_="r1", gone=(NOTE,)),
    )
    assert found == (
        item(
            ArchiveKind.COLUMN,
            "purchases",
            revision="r1",
            column="note",
            key=("number",),
            renamed=(("number", "id"),),
        ),
    )


CODE = column(ORDERS, 3, "code", "text", not_null=True)
BY_CODE = primary(12, ORDERS, 3, name="by_code", is_primary=False)


@pytest.mark.parametrize(
    ("more", "gone", "now", "key"),
    [
        # The primary key first, then a unique index over what is never null.
        ((CODE, BY_CODE), (NOTE,), (), ("id",)),
        ((CODE, BY_CODE), (NOTE, SHOP[1]), (), ("code",)),
        # It must outlive the revision, under its name and with its type.
        ((CODE, BY_CODE), (NOTE,), (column(ORDERS, 1, "number", not_null=True),), ("code",)),
        ((CODE, BY_CODE), (NOTE,), (column(ORDERS, 1, "id", "bigint", not_null=True),), ("code",)),
        ((), (NOTE, SHOP[1]), (), ()),
        # What may be null, is partial or an expression names no row.
        ((changed(CODE, not_null=False), BY_CODE), (NOTE, SHOP[1]), (), ()),
        ((CODE, changed(BY_CODE, predicate="code <> ''")), (NOTE, SHOP[1]), (), ()),
        ((CODE, changed(BY_CODE, has_expressions=True)), (NOTE, SHOP[1]), (), ()),
    ],
)  # fmt: skip
def test_a_value_is_kept_beside_a_key_that_outlives_the_revision(
    more: tuple[Any, ...], gone: tuple[Any, ...], now: tuple[Any, ...], key: tuple[str, ...]
) -> None:
    found = items(step(gone=gone, now=now), first=(*SHOP, *more))
    of_note = [i for i in found if (i.kind, i.column) == (ArchiveKind.COLUMN, "note")]
    assert [i.key for i in of_note] == [key]


def test_a_table_that_goes_is_kept_by_the_key_that_goes_with_it() -> None:
    dropped = step(
        ran("DELETE FROM orders", on(ORDERS, "RowExclusiveLock")),
        gone=(table(ORDERS, "orders"), SHOP[1], NOTE, SHOP[3]),
    )
    assert items(dropped) == (item(ArchiveKind.TABLE, "orders"), item(ArchiveKind.ROWS, "orders"))
