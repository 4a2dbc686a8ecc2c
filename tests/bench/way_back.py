"""Planning and rehearsing the way back, beside the downgrade itself: for long histories, and for many tables."""

import time

from figures import compared, figure
from ground import ALEMBIC, Ground, Project, Wired

from rollbackd.core.rehearsal import Depth, Way

# Revisions and tables; one of them grows at a time.
SIZES = ((10, 10), (1_000, 10), (5_000, 10), (10, 1_000))
AIM_S = 1.0


async def way_back(rounds: int) -> None:
    """Planning and rehearsing where everything is warm, and one rehearsal where nothing is."""
    async with Ground.stand() as ground:
        for revisions, tables in SIZES:
            await _at_size(ground, revisions, tables, rounds)


async def _at_size(ground: Ground, revisions: int, tables: int, rounds: int) -> None:
    project = ground.project(_history(revisions))
    pristine = ground.database(*_tables(tables), "ANALYZE", head=project.head)
    guarded = ground.clone(pristine)
    project.knows(ground.postgres.url(guarded, driver="psycopg"))
    way = Way(revisions=(project.head,), from_heads=(project.head,), to_heads=(project.revisions[-2],))
    # Alembic leaves compiled scripts behind; who comes first would pay for all.
    await _bare(ground, project, pristine)
    plans, rehearsed, told, bare = [], [], [], []
    async with (
        ground.wired(guarded, project, url="own") as wired,
        ground.wired(guarded, project) as wired_and_told,
    ):
        cold = await _rehearse(wired, way)
        await _rehearse(wired_and_told, way)
        await _plan(wired, way)
        for _ in range(rounds):
            plans.append(await _plan(wired, way))
            rehearsed.append(await _rehearse(wired, way))
            told.append(await _rehearse(wired_and_told, way))
            bare.append(await _bare(ground, project, pristine))
    size = f"{revisions} revisions, {tables} tables"
    figure(f"schema rehearsal, cold, {size}", [cold], "s")
    compared(f"schema rehearsal, warm, {size}", rehearsed, "s", ALEMBIC, bare, aim_s=AIM_S)
    # Told the copy's url, the child has to be started anew for each copy.
    compared(f"schema rehearsal, url by environment, {size}", told, "s", ALEMBIC, bare, aim_s=AIM_S)
    compared(f"plan, warm, {size}", plans, "s", ALEMBIC, bare, aim_s=AIM_S)
    ground.drop(guarded)
    ground.drop(pristine)


async def _plan(wired: Wired, way: Way) -> float:
    """Plan anew with the last rehearsal at hand; the first plan makes it."""
    began = time.monotonic()
    plan = await wired.planner.downgrade(way.to_heads, release_from="v2", release_to="v1", fresh=True)
    took = time.monotonic() - began
    if not plan.rehearsed.passed:
        raise RuntimeError(f"the plan isn't rehearsed: {plan.rehearsed}")
    return took


async def _rehearse(wired: Wired, way: Way) -> float:
    rehearsals = wired.guarded.rehearsals
    fingerprint = (await wired.guarded.database.schema()).fingerprint()
    began = time.monotonic()
    found = await rehearsals.rehearse(way, depth=Depth.SCHEMA, fingerprint=fingerprint)
    took = time.monotonic() - began
    if not found.passed:
        raise RuntimeError(f"the rehearsal didn't pass: {found.unknown} {found.failure}")
    return took


async def _bare(ground: Ground, project: Project, pristine: str) -> float:
    clone = ground.clone(pristine)
    took = await ground.alembic(project, clone, "downgrade", "-1")
    ground.drop(clone)
    return took


def _history(revisions: int) -> list[tuple[str, str, str]]:
    """Revisions that add a column each; the database has that of the last one alone."""
    up, back = "ALTER TABLE t0 ADD COLUMN extra text", "ALTER TABLE t0 DROP COLUMN extra"
    return [(f"r{number:05}", up, back) for number in range(revisions)]


def _tables(tables: int) -> list[str]:
    """Tables as an application has them: key, constraints, an index, a reference, a few rows."""
    made = [
        f"CREATE TABLE t{n} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL,"
        f" state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'done')), amount numeric(12, 2),"
        f" made_at timestamptz NOT NULL DEFAULT now(), other bigint REFERENCES t{max(n - 1, 0)})"
        for n in range(tables)
    ]
    made += [f"CREATE INDEX ON t{n} (name, state)" for n in range(tables)]
    made += [f"INSERT INTO t{n} (name) SELECT 'n' || g FROM generate_series(1, 20) g" for n in range(tables)]
    return [*made, "ALTER TABLE t0 ADD COLUMN extra text", "UPDATE t0 SET extra = name"]
