"""For every case: what the plan says before is what happens when it is run, and what goes comes back."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from tests.corpus.build import BuiltCase
from tests.corpus.case import Case
from tests.corpus.conftest import BuildCase
from tests.corpus.everything import CASES
from tests.corpus.rows import lost_between

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.app.composition import Parts, compose
from rollbackd.app.configuration import Configuration, load_configured_matrix
from rollbackd.core.planning.plan import Plan
from rollbackd.core.records import Run
from rollbackd.core.risks import RiskKind
from rollbackd.core.run import RunState
from rollbackd.errors import RefusedError
from rollbackd.settings import Backup, Policy, Scratch, Settings, Store
from rollbackd.workflow.happenings import Happenings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
WRITTEN_BY_ENV_PY = ("public.visit",)
OF_A_COLUMN = (RiskKind.DROPPED_COLUMN, RiskKind.NARROWED)


@contextmanager
def guarding(built: BuiltCase, folder: Path, runner: asyncio.Runner) -> Iterator[Parts]:
    """The daemon's own parts around this one target; no backup is asked for, as other tests are about those."""
    superuser = built.stage.superuser
    server = built.stage.server
    url = f"postgresql://{superuser.name}@{server.host}:{server.port}"
    target = built.target(
        scratch=Scratch(url=f"{url}/postgres", password=superuser.secret),
        backup=Backup(),
        policy=Policy(backup_level=0, watch_after_rollback=0, confirm_for=0),
    )
    # Copies are made by a role that may read everything.
    database = msgspec.structs.replace(
        target.database, backup_user=superuser.name, backup_password=superuser.secret
    )
    target = msgspec.structs.replace(target, database=database)
    settings = Settings(targets=(target,), store=Store(directory=str(folder)))
    configuration = Configuration(
        settings=settings, matrix=load_configured_matrix(settings, folder), folder=folder
    )
    store = runner.run(SqliteStore.open_writing(folder))

    async def wired() -> Parts:
        return compose(configuration, store, Happenings())

    parts = runner.run(wired())
    try:
        yield parts
    finally:
        runner.run(parts.engine.stop())
        runner.run(parts.close())


async def plan_of(parts: Parts, case: Case) -> Plan:
    plan, _ = await parts.operations.plan("shop", to=case.to)
    return plan


def refusal(runner: asyncio.Runner, parts: Parts, case: Case) -> str:
    """Why there is no plan; or, where one shows what can't be taken off, why it can't be asked for."""
    try:
        return "; ".join(runner.run(plan_of(parts, case)).blockers)
    except RefusedError as error:
        return str(error)


async def run_to_end(parts: Parts, case: Case) -> Run:
    """Ask for the rollback as a person, approve it as another where the gates want that, and wait for its end."""
    run = await parts.operations.roll_back("shop", to=case.to, reason="the corpus", requested_by="ann")
    if run.state is RunState.AWAITING_APPROVAL:
        run = await parts.operations.approve(run.id, "bob")
    return await parts.engine.start(run)


def standing(built: BuiltCase) -> tuple[object, ...]:
    """Stamp, schema and rows; without those that a case's env.py writes by itself whenever it is loaded."""
    contents = built.contents()
    rows = {table: found for table, found in contents.rows.items() if table not in WRITTEN_BY_ENV_PY}
    return built.heads(), built.schema(), rows, contents.types


def with_parents(lost: Mapping[str, int], built: BuiltCase) -> dict[str, int]:
    """What the case says of each partition, as a plan says it: of the partitioned table that goes with them."""
    parents = {
        f"{schema}.{name}": f"{above_schema}.{above}"
        for schema, name, above_schema, above in built.stage.run(
            built.database,
            "SELECT n.nspname, c.relname, pn.nspname, p.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class p ON p.oid = i.inhparent"
            " JOIN pg_namespace pn ON pn.oid = p.relnamespace WHERE p.relkind = 'p'",
        )
    }
    found: dict[str, int] = {}
    whole = {name for name in lost if name in parents}
    for name, rows in lost.items():
        table = next((t for t in parents if name == t or name.startswith(f"{t}.")), "")
        # A partition that goes alone goes under its own name.
        together = table and (name != table or sum(parents[t] == parents[table] for t in whole) > 1)
        called = parents[table] + name.removeprefix(table) if together else name
        found[called] = found.get(called, 0) + rows
    return found


def said_to_be_lost(plan: Plan) -> dict[str, int]:
    """By name, as the case has it: rows by table, values by column."""
    found: dict[str, int] = {}
    for revision in plan.revisions:
        for risk in revision.at_risk:
            if not risk.rows:
                continue
            name = risk.table.text()
            if risk.kind in OF_A_COLUMN:
                name = f"{name}.{risk.column}"
            found[name] = found.get(name, 0) + risk.rows
    return found


@each_case
def test_the_plan_says_before_what_happens_when_it_is_run(
    case: Case, build_case: BuildCase, tmp_path: Path
) -> None:
    """Verdict, reason, loss; then the run, the database afterwards, the way up again, and what is brought back."""
    expect = case.expect
    built = build_case(case)
    before, untouched = built.contents(), standing(built)
    with asyncio.Runner() as runner, guarding(built, tmp_path / "store", runner) as parts:
        if expect.refused:
            assert expect.refused.lower() in refusal(runner, parts, case).lower()
            assert standing(built) == untouched
            return
        plan = runner.run(plan_of(parts, case))
        assert standing(built) == untouched
        said = {revision.id: revision.verdict.value for revision in plan.revisions}
        why = {revision.id: "; ".join(revision.why) for revision in plan.revisions}
        assert {r: said[r] for r in expect.verdict} == dict(expect.verdict), why
        for revision, reason in expect.why.items():
            assert reason.lower() in why[revision].lower()
        assert {r.id for r in plan.revisions if r.stands_alone} == expect.alone
        if plan.rehearsed.passed and not case.concurrent and expect.outcome == "to":
            assert said_to_be_lost(plan) == with_parents(expect.lost, built)
        if expect.outcome != "to" or "unknown" in expect.verdict.values():
            if "will_fail" in expect.verdict.values():
                with pytest.raises(RefusedError):
                    runner.run(run_to_end(parts, case))
                assert standing(built) == untouched
            return
        if case.concurrent:
            built.stage.run(built.database, case.concurrent)
            before = built.contents()

        run = runner.run(run_to_end(parts, case))

        assert run.state is RunState.SUCCEEDED, run.statement
        assert built.heads() == expect.heads_after
        assert [name for name in expect.gone_after if built.has(name)] == []
        assert [name for name in expect.there_after if not built.has(name)] == []
        assert lost_between(before, built.contents(), expect.moved, built.recast).keys() <= expect.lost.keys()
        if expect.upgrade_fails:
            return

        assert built.upgrade(*case.at.split(",")).claims_success
        if not runner.run(parts.operations.archives("shop", run.id)):
            with pytest.raises(RefusedError, match="keeps nothing"):
                runner.run(parts.operations.restore(run.id, "ann", dry_run=False))
            assert not expect.lost
            return
        report = runner.run(parts.operations.restore(run.id, "ann", dry_run=False))

        if expect.restored:
            left = lost_between(before, built.contents(), {}, built.recast)
            assert left == {}, [entry.text() for entry in report.entries]
        again = runner.run(parts.operations.restore(run.id, "ann", dry_run=False))
        assert again.restored == 0
