"""Whatever a history does: what the way back takes away comes back, byte for byte, once everything is upgraded again."""

import asyncio
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.corpus.build import build
from tests.corpus.case import Case, Expected, Revision, sql
from tests.corpus.stage import Stage
from tests.corpus.test_told_before import guarding, run_to_end

from rollbackd.core.run import RunState
from rollbackd.demo.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TYPES = {
    "int": ("7", "-2147483648"),
    "text": ("'grün \"q\" ''s'''", "''"),
    "numeric(12,3)": ("1.500", "'NaN'"),
    "double precision": ("0.1", "'-Infinity'"),
    "timestamptz": ("'2026-11-22 10:00:00.123456+00'", "'infinity'"),
    "jsonb": ("'{\"a\": [1, null]}'", "'null'"),
    "bytea": ("'\\x00ff'", "''"),
    "int[]": ("'{1,NULL,3}'", "'{}'"),
    "boolean": ("true", "false"),
}


@dataclass
class Table:
    """A table as the history has made it so far: its first name stays its key here."""

    name: str
    columns: dict[str, str]


class History:
    """Draws revisions, and keeps the tables as they stand, so that each revision fits."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._numbers = itertools.count(1)
        self.tables = [Table("t0", {"a": "text"})]
        self.revisions = [
            Revision("r1", sql("CREATE TABLE t0 (id int PRIMARY KEY, a text)"), sql("DROP TABLE t0"))
        ]

    def grow(self) -> None:
        """One more revision."""
        number = next(self._numbers)
        table = self._draw(st.sampled_from(self.tables))
        kind = self._draw(
            st.sampled_from(
                [
                    "table",
                    "column",
                    "column",
                    "default",
                    "rename",
                    "rename_column",
                    "replace_column",
                    "update",
                    "delete",
                    "several",
                ]
            )
        )
        up, down = getattr(self, f"_{kind}")(number, table)
        self.revisions.append(Revision(f"r{number + 1}", sql(*up), sql(*down)))

    def _table(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        name, kind = f"t{number}", self._draw(st.sampled_from(sorted(TYPES)))
        keyed = self._draw(st.booleans())
        self.tables.append(Table(name, {"v": kind}))
        key = "int PRIMARY KEY" if keyed else "int"
        reference = (
            f", up int REFERENCES {table.name}" if self._draw(st.booleans()) and table.name == "t0" else ""
        )
        return [f"CREATE TABLE {name} (id {key}, v {kind}{reference})"], [f"DROP TABLE {name}"]

    def _column(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        column, kind = f"c{number}", self._draw(st.sampled_from(sorted(TYPES)))
        table.columns[column] = kind
        return [f"ALTER TABLE {table.name} ADD COLUMN {column} {kind}"], [
            f"ALTER TABLE {table.name} DROP COLUMN {column}"
        ]

    def _default(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        column = f"c{number}"
        table.columns[column] = "int"
        return [f"ALTER TABLE {table.name} ADD COLUMN {column} int NOT NULL DEFAULT 5"], [
            f"ALTER TABLE {table.name} DROP COLUMN {column}"
        ]

    def _rename(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        before, table.name = table.name, f"n{number}"
        return [f"ALTER TABLE {before} RENAME TO {table.name}"], [
            f"ALTER TABLE {table.name} RENAME TO {before}"
        ]

    def _rename_column(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        before, now = self._draw(st.sampled_from(sorted(table.columns))), f"m{number}"
        table.columns[now] = table.columns.pop(before)
        return [f"ALTER TABLE {table.name} RENAME {before} TO {now}"], [
            f"ALTER TABLE {table.name} RENAME {now} TO {before}"
        ]

    def _replace_column(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        """A new column takes the name of one that gets another."""
        (up,), (down,) = self._rename_column(number, table)
        name, kind = up.split()[-3], self._draw(st.sampled_from(sorted(TYPES)))
        table.columns[name] = kind
        return [up, f"ALTER TABLE {table.name} ADD COLUMN {name} {kind}"], [
            f"ALTER TABLE {table.name} DROP COLUMN {name}",
            down,
        ]

    def _update(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        column = self._draw(st.sampled_from(sorted(table.columns)))
        value = TYPES[table.columns[column]][0]
        return ["SELECT 1"], [f"UPDATE {table.name} SET {column} = {value} WHERE id % 2 = 0"]

    def _delete(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        # Of t0 rows may be referred to.
        if table is self.tables[0]:
            return self._column(number, table)
        return ["SELECT 1"], [f"DELETE FROM {table.name} WHERE id % 3 = 0"]

    def _several(self, number: int, table: Table) -> tuple[list[str], list[str]]:
        up, down = self._column(number, table)
        more_up, more_down = self._update(number, table)
        return up + more_up, more_down + down

    def rows(self) -> list[str]:
        """Some rows for each table, NULLs among them."""
        found = []
        for table in self.tables:
            for number in range(1, self._draw(st.integers(0, 4)) + 1):
                values = {"id": str(number)}
                for column, kind in table.columns.items():
                    value = self._draw(st.sampled_from([*TYPES[kind], "NULL"]))
                    values[column] = "DEFAULT" if value == "NULL" and kind == "int" else value
                found.append(
                    f"INSERT INTO {table.name} ({', '.join(values)}) VALUES ({', '.join(values.values())})"
                )
        return found


@st.composite
def histories(draw: st.DrawFn) -> Case:
    history = History(draw)
    for _ in range(draw(st.integers(2, 6))):
        history.grow()
    to = draw(st.integers(1, len(history.revisions) - 1))
    return Case(
        name="random",
        about="Drawn at random.",
        revisions=tuple(history.revisions),
        rows=tuple(history.rows()),
        to=f"r{to}",
        expect=Expected(heads_after=(f"r{to}",)),
    )


def test_what_any_way_back_takes_away_comes_back_byte_for_byte(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Planned, rehearsed, archived, downgraded, upgraded again, restored: every row of before is there."""
    numbers = itertools.count()

    @given(histories())
    @settings(
        max_examples=20,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def holds(case: Case) -> None:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        stage = Stage(server, folder)
        try:
            built = build(case, stage, folder / "project")
            before = built.snapshot()
            with asyncio.Runner() as runner, guarding(built, folder / "store", runner) as parts:
                run = runner.run(run_to_end(parts, case))
                assert run.state is RunState.SUCCEEDED, run.statement
                assert built.heads() == case.expect.heads_after
                assert built.upgrade("heads").claims_success
                if runner.run(parts.operations.archives("shop", run.id)):
                    runner.run(parts.operations.restore(run.id, "ann", dry_run=False))
            assert built.snapshot() == before
        finally:
            stage.clean()
            shutil.rmtree(folder, ignore_errors=True)

    holds()
