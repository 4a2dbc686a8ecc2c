"""Making a plan: ask the worker for the graph and the statements, the database for its heads, and let the core lay it out."""

import msgspec

from rollbackd.core.assess import heads_text
from rollbackd.core.plan import (
    Plan,
    PlannedRevision,
    Preserve,
    plan_downgrade,
    plan_hold,
    plan_redeploy,
    planned_revision,
)
from rollbackd.core.revisions import RevisionGraph
from rollbackd.errors import RefusedError
from rollbackd.ports import Described
from rollbackd.workflow.guarded import Guarded


class Planner:
    """Plans for one target; the last plan is kept, so that the way back is ready before it is needed."""

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self._ready: tuple[tuple[object, ...], Plan] | None = None

    async def graph(self, kept_scripts: str = "") -> tuple[RevisionGraph, Described, tuple[str, ...]]:
        """The revision graph that knows the database's heads, and these heads.

        Where the live scripts lack a head, the kept ones of the deployed release are used.
        """
        worker = self._guarded.worker
        heads = await self._guarded.database.heads()
        worker.use_scripts("")
        described = await worker.describe()
        graph = RevisionGraph(described.revisions)
        if kept_scripts and any(head not in graph for head in heads):
            worker.use_scripts(kept_scripts)
            described = await worker.describe()
            graph = RevisionGraph(described.revisions)
        return graph, described, heads

    async def downgrade(
        self,
        to: str | tuple[str, ...],
        *,
        release_from: str,
        release_to: str,
        kept_scripts: str = "",
    ) -> Plan:
        """Plan the way down to these heads (or to what a person typed). Touches nothing.

        Raises:
            RefusedError: when there is no such way, in one sentence with what to do.
        """
        graph, described, heads = await self.graph(kept_scripts)
        wanted = graph.resolve(to, heads) if isinstance(to, str) else to
        key = (heads, wanted, described.scripts_sha256, release_from, release_to)
        if self._ready is not None and self._ready[0] == key:
            return self._ready[1]
        path = graph.path_down(heads, wanted)
        environment = await self._guarded.worker.environment()
        if environment.heads != heads:
            raise RefusedError(
                f"env.py sees the database at {heads_text(environment.heads)}, rollbackd at {heads_text(heads)}: they"
                " don't look at the same version table; see 'migrations.version_table' and 'migrations.url'"
            )
        read = await self._guarded.worker.read(path.revisions)
        settings = self._guarded.settings
        application = self._guarded.application
        plan = await self._qualified(
            environment.search_path,
            plan_downgrade(
                self._guarded.name,
                graph,
                path,
                read,
                self._guarded.plan_times(),
                release_from=release_from,
                release_to=release_to,
                scripts_sha256=described.scripts_sha256,
                stops_application=application.can_stop,
                starts_application=application.can_start,
                has_probes=bool(settings.probes),
                has_backup=settings.backs_up,
                can_preserve=bool(settings.backup.directory),
                one_transaction_each=environment.transaction_per_migration,
                never_transactional=environment.commits_each_statement,
            ),
        )
        self._ready = (key, plan)
        return plan

    async def _qualified(self, search_path: tuple[str, ...], plan: Plan) -> Plan:
        """The plan with the tables that lose data as the catalog has them."""
        if not plan.lossy_tables:
            return plan
        tables = await self._guarded.database.resolve_tables(plan.lossy_tables, search_path)
        steps = tuple(
            msgspec.structs.replace(step, tables=tables) if isinstance(step, Preserve) else step
            for step in plan.steps
        )
        return msgspec.structs.replace(plan, lossy_tables=tables, steps=steps)

    async def redeploy(self, *, release_from: str, release_to: str) -> Plan:
        """Plan to put the old release back and leave the database as it is."""
        return plan_redeploy(
            self._guarded.name,
            await self._guarded.database.heads(),
            self._guarded.plan_times(),
            release_from=release_from,
            release_to=release_to,
            starts_application=self._guarded.application.can_start,
            has_probes=bool(self._guarded.settings.probes),
        )

    async def hold(self, from_heads: tuple[str, ...], statement: str, kept_scripts: str = "") -> Plan:
        """Plan to stand still, with the statements of the downgrades that a person may need."""
        graph, described, _ = await self.graph(kept_scripts)
        ahead = [r for r in graph.ids() if r not in graph.closure(from_heads)]
        failed = tuple(r for r in ahead if set(graph[r].parents) <= graph.closure(from_heads))
        read = await self._guarded.worker.read(failed)
        revisions: tuple[PlannedRevision, ...] = tuple(planned_revision(graph, read[r]) for r in failed)
        return plan_hold(
            self._guarded.name,
            from_heads,
            failed,
            revisions,
            statement,
            self._guarded.plan_times(),
            described.scripts_sha256,
        )
