"""Rehearsals on a real PostgreSQL: the real downgrade on a copy, and nothing on the target."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from rollbackd.adapters.rehearsal.rehearsals import TargetRehearsals
from rollbackd.core.rehearsal import Depth, Rehearsal, Way
from rollbackd.core.schema import TableName

pytestmark = [pytest.mark.xdist_group("adapters-rehearsal"), pytest.mark.timeout(90)]


@pytest.fixture
async def rehearse(stage: Any, make_reader: Any, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Rehearses a project's way; one set of rehearsals for each project, closed after the test."""
    made: list[TargetRehearsals] = []

    async def run(
        project: Any,
        revisions: str = "r3",
        to: str = "r2",
        depth: Depth = Depth.SCHEMA,
        direction: Any = "down",
        frm: str = "",
        settings: dict[str, Any] | None = None,
        **more: Any,
    ) -> Rehearsal:
        target = stage.target(project.database, migrations=project.migrations(**more), **(settings or {}))
        rehearsals = TargetRehearsals(target, tmp_path / "kept", "store1")
        made.append(rehearsals)
        reader = make_reader(project.database)
        way = Way(
            direction=direction,
            revisions=tuple(revisions.split()),
            from_heads=tuple(frm.split()) or await reader.heads(),
            to_heads=tuple(to.split()),
        )
        return await rehearsals.rehearse(
            way, depth=depth, fingerprint=(await reader.schema()).fingerprint()
        )

    yield run
    for rehearsals in made:
        await rehearsals.close()


async def test_a_rehearsal_shows_what_each_revision_takes_away_and_changes_nothing_on_the_target(
    project: Any, rehearse: Any, stage: Any
) -> None:
    stage.run(project.database, "INSERT INTO customer VALUES (1, 'Ann', 'ann@example.org')")
    found = await rehearse(project, "r3 r2", "r1", Depth.FULL)
    assert found.failure is None
    assert found.unknown == ""
    assert found.passed
    assert [r.id for r in found.revisions] == ["r3", "r2"]
    invoice, customer = TableName("public", "invoice"), TableName("public", "customer")
    assert [t.table for t in found.revisions[0].gone_tables] == [invoice]
    assert [(c.table, c.column, c.today_column) for c in found.revisions[1].gone_columns] == [
        (customer, "email", "email")
    ]
    assert found.revisions[1].locks[0].mode == "AccessExclusiveLock"
    assert [i.kind for i in found.archive] == ["table", "column"]
    assert found.archive[1].key == ("id",)
    assert "- table public.invoice" in found.difference.lines()
    assert project.heads() == ["r3"]
    assert project.columns("customer") == ["email", "id", "name"]
    left = stage.run("postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'rollbackd_scratch%'")
    assert left == []


async def test_a_schema_rehearsal_runs_on_a_copy_without_rows(project: Any, rehearse: Any, stage: Any) -> None:
    stage.run(project.database, "INSERT INTO customer VALUES (1, 'Ann', NULL)")
    found = await rehearse(project)
    assert found.passed
    assert found.rows == 0
    assert found.keeps_owners
