"""Making a plan: the worker says what is in the scripts, scratch what they do, the database what that costs; the core lays
it out.
"""

import asyncio
from collections.abc import Mapping

import msgspec

from rollbackd.core.archives import ArchiveItem
from rollbackd.core.assess import heads_text
from rollbackd.core.planning.inputs import Findings
from rollbackd.core.planning.laying_out import plan_downgrade, plan_hold, plan_redeploy
from rollbackd.core.planning.plan import Plan, PlannedRevision
from rollbackd.core.planning.revisions import planned_revision
from rollbackd.core.reading import ReadRevision, irreversible, read_effects
from rollbackd.core.records import StateDocument
from rollbackd.core.rehearsal import Depth, Rehearsal, Way
from rollbackd.core.revisions import Path, RevisionGraph
from rollbackd.core.risks import OWNERSHIP, Obstacle, Risks
from rollbackd.core.schema import TableName
from rollbackd.core.verdicts import judge_old_release
from rollbackd.core.verification import Verified
from rollbackd.errors import RefusedError
from rollbackd.ports import Clock, Described, MigrationEnvironment, Store
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.rehearsing import Rehearsed, count_risks, read_items, rehearse


class Planner:
    """Plans for one target; the last plan is kept, so that the way back is ready before it is needed."""

    def __init__(self, guarded: Guarded, store: Store, clock: Clock) -> None:
        self._guarded = guarded
        self._store = store
        self._clock = clock
        self._ready: tuple[tuple[object, ...], Plan] | None = None
        self._rehearsed: tuple[tuple[object, ...], Rehearsed] | None = None
        # What the downgrades of revisions executed that the gate tried, and of which scripts these are.
        self._tried: tuple[str, dict[str, tuple[str, ...]]] = ("", {})
        self._turn = asyncio.Lock()

    async def graph(self, kept_scripts: str = "") -> tuple[RevisionGraph, Described, tuple[str, ...]]:
        """The revision graph that knows the database's heads, and these heads.

        Where the live scripts lack a head, the kept ones of the deployed release are used.
        """
        graph, described, heads, _ = await self._graph(kept_scripts)
        return graph, described, heads

    async def _graph(self, kept_scripts: str) -> tuple[RevisionGraph, Described, tuple[str, ...], str]:
        """As `graph`, and the digest of the kept scripts that are used (empty: the live ones)."""
        worker = self._guarded.worker
        heads = await self._guarded.database.heads()
        worker.use_scripts("")
        described = await worker.describe()
        graph = RevisionGraph(described.revisions)
        if kept_scripts and any(head not in graph for head in heads):
            worker.use_scripts(kept_scripts)
            described = await worker.describe()
            return RevisionGraph(described.revisions), described, heads, kept_scripts
        return graph, described, heads, ""

    async def downgrade(
        self,
        to: str | tuple[str, ...],
        *,
        release_from: str,
        release_to: str,
        kept_scripts: str = "",
        wants_downgrade: bool = True,
        fresh: bool = False,
    ) -> Plan:
        """Plan the way down to these heads (or to what a person typed). Touches nothing.

        Args:
            wants_downgrade: False where the deploy shall be undone, and the schema may as well stay.
            fresh: count and rehearse on the schema as it is now, however young the plan is that is ready.

        Raises:
            RefusedError: when there is no such way, in one sentence with what to do.
        """
        async with self._turn:
            graph, described, heads, kept = await self._graph(kept_scripts)
            wanted = graph.resolve(to, heads) if isinstance(to, str) else to
            key = (heads, wanted, described.scripts_sha256, release_from, release_to, wants_downgrade)
            if not fresh and self._ready is not None and self._ready[0] == key:
                return self._ready[1]
            path = graph.path_down(heads, wanted)
            environment = await self._guarded.worker.environment()
            if environment.heads != heads:
                raise RefusedError(
                    f"env.py sees the database at {heads_text(environment.heads)}, rollbackd at {heads_text(heads)}: they"
                    " don't look at the same version table; see 'migrations.version_table' and 'migrations.url'"
                )
            read = await self._guarded.worker.read(path.revisions)
            found = await self._find(path, read, environment, described.scripts_sha256, kept)
            plan = plan_downgrade(
                self._guarded.name,
                graph,
                path,
                found,
                self._guarded.means(wants_downgrade=wants_downgrade),
                self._guarded.plan_times(),
                release_from=release_from,
                release_to=release_to,
            )
            self._ready = (key, plan)
            return plan

    async def rehearse(self, to: str, *, kept_scripts: str = "", depth: Depth | None = None) -> Rehearsed:
        """Rehearse the way down anew, to this depth or as deep as the configuration says.

        Raises:
            RefusedError: when there is no such way, or nothing to rehearse it on.
        """
        if not self._guarded.can_rehearse:
            raise RefusedError(
                f"{self._guarded.name} has nothing to rehearse on: set 'scratch.url', or allow the guarded server with"
                " 'scratch.same_server = true'; and 'rehearsal.depth' must not be none"
            )
        async with self._turn:
            graph, _, heads, kept = await self._graph(kept_scripts)
            path = graph.path_down(heads, graph.resolve(to, heads))
            way = Way(
                revisions=path.revisions,
                from_heads=path.from_heads,
                to_heads=path.to_heads,
                kept_scripts=kept,
            )
            fingerprint = (await self._guarded.database.schema()).fingerprint()
            return await rehearse(self._guarded, way, fingerprint, depth)

    async def verify_pending(self) -> tuple[Verified, ...]:
        """Put every revision that the scripts have and the database lacks on a copy, take it off, and put it on again."""
        async with self._turn:
            graph, described, heads, kept = await self._graph("")
            pending = graph.order_up(heads) if all(head in graph for head in heads) else ()
            if not pending:
                return ()
            if not self._guarded.can_rehearse:
                raise RefusedError("there is nothing to rehearse on: see 'scratch' and 'rehearsal.depth'")
            rehearsals = self._guarded.rehearsals
            settings = self._guarded.settings.rehearsal
            small = (
                settings.depth in ("auto", "full") and await rehearsals.size_bytes() <= settings.full_up_to
            )
            depth = Depth.FULL if small or settings.depth == "full" else Depth.SAMPLE
            titles = {revision: graph[revision].title for revision in pending}
            read = await self._guarded.worker.read(pending)
            fingerprint = (await self._guarded.database.schema()).fingerprint()
            reads = tuple(read[revision] for revision in pending)
            verified = await rehearsals.verify(
                reads, titles, depth=depth, fingerprint=fingerprint, heads=heads, kept_scripts=kept
            )
            self._tried = (described.scripts_sha256, {v.revision: v.statements for v in verified})
            return verified

    async def _find(
        self,
        path: Path,
        read: dict[str, ReadRevision],
        environment: MigrationEnvironment,
        scripts_sha256: str,
        kept: str,
    ) -> Findings:
        """Everything that is known of this path: read, rehearsed and counted."""
        database = self._guarded.database
        schema = await database.schema()
        fingerprint = schema.fingerprint()
        rehearsal: Rehearsal | None = None
        risks = Risks()
        if not any(irreversible(read[r]) for r in path.revisions):
            way = Way(
                revisions=path.revisions,
                from_heads=path.from_heads,
                to_heads=path.to_heads,
                kept_scripts=kept,
            )
            result = await self._rehearse(way, fingerprint, scripts_sha256)
            rehearsal, risks = result.rehearsal, result.risks
            if rehearsal is not None:
                risks = await self._with_ownership(result.risks, rehearsal, environment.role)
        passed = rehearsal is not None and rehearsal.passed
        archive = (
            rehearsal.archive
            if rehearsal is not None and passed
            else await self._read_items(read, environment)
        )
        return Findings(
            read={r: read[r] for r in path.revisions},
            rehearsal=rehearsal,
            risks=risks,
            archive=archive,
            lossy_tables=await self._lossy_tables(
                archive, dict(rehearsal.renamed) if rehearsal is not None else {}
            ),
            publications=await database.publications_of_all_tables() if archive else (),
            old_release=judge_old_release(rehearsal),
            sizes=await database.table_sizes(),
            fingerprint=fingerprint,
            scripts_sha256=scripts_sha256,
            expected_document=await self._keep_expected(rehearsal),
            one_transaction_each=environment.transaction_per_migration,
            never_transactional=environment.commits_each_statement,
        )

    async def _rehearse(self, way: Way, fingerprint: str, scripts_sha256: str) -> Rehearsed:
        """A rehearsal of the same scripts on the same schema is as good as a new one, but for the rows' numbers."""
        key = (way, fingerprint, scripts_sha256)
        known = self._rehearsed
        if known is not None and known[0] == key and known[1].rehearsal is not None:
            risks = await count_risks(self._guarded, known[1].rehearsal)
            # Rows that came since and are in the way make a rehearsal old.
            if {o.name for o in risks.obstacles if o.rows} <= {
                o.name for o in known[1].risks.obstacles if o.rows
            }:
                return Rehearsed(known[1].rehearsal, risks)
        found = await rehearse(self._guarded, way, fingerprint)
        passed = found.rehearsal is not None and found.rehearsal.passed
        self._rehearsed = (key, found) if passed else None
        return found

    async def _lossy_tables(
        self, archive: tuple[ArchiveItem, ...], renamed: Mapping[TableName, TableName]
    ) -> tuple[str, ...]:
        """The tables that lose something, and those that go with them.

        Under each name that the way back gives them: rows are counted under that of the beginning and that of the end.
        """
        tables = {item.table for item in archive} | {item.today for item in archive if item.today is not None}
        tables |= {renamed[table] for table in tables if table in renamed}
        named = tuple(sorted({f"{table.schema}.{table.name}" for table in tables}))
        # With a dot in a name it can't be told from a schema: then it stands for itself alone.
        plain = tuple(name for name in named if name.count(".") == 1)
        resolved = await self._guarded.database.resolve_tables(plain, ()) if plain else ()
        return tuple(sorted({*named, *resolved}))

    async def _with_ownership(self, risks: Risks, rehearsal: Rehearsal, role: str) -> Risks:
        """What the role that migrates may not touch on the guarded database, though it may in scratch."""
        if not role:
            return risks
        altered = {
            table: revision.id
            for revision in rehearsal.revisions
            for statement in revision.statements
            if statement.sql.lstrip()[:5].upper().strip() in ("ALTER", "DROP")
            for table in statement.writes
        }
        owners = await self._guarded.database.not_owned(role, tuple(altered))
        forbidden = tuple(
            Obstacle(revision=altered[table], rule=OWNERSHIP, name=owner, table=table, rows=1)
            for table, owner in owners.items()
        )
        return msgspec.structs.replace(risks, obstacles=(*risks.obstacles, *forbidden))

    async def _read_items(
        self, read: Mapping[str, ReadRevision], environment: MigrationEnvironment
    ) -> tuple[ArchiveItem, ...]:
        database = self._guarded.database
        named = {
            effect.table for revision in read.values() for effect in read_effects(revision) if effect.table
        }
        names: dict[str, tuple[TableName, ...]] = {}
        for name in sorted(named):
            found = await database.resolve_tables((name,), environment.search_path)
            names[name] = tuple(TableName(*table.split(".", 1)) for table in found if "." in table)
        tables = tuple(sorted({table for found in names.values() for table in found}))
        return read_items(dict(read), names, await database.keys(tables))

    async def _keep_expected(self, rehearsal: Rehearsal | None) -> str:
        """Keep the schema that the rehearsal led to; its id."""
        if rehearsal is None or not rehearsal.passed:
            return ""
        fingerprint = rehearsal.expected.fingerprint()
        document = StateDocument(
            id=f"rehearsed-{fingerprint[:32]}",
            target=self._guarded.name,
            taken_at=self._clock.now(),
            heads=rehearsal.to_heads,
            fingerprint=fingerprint,
            counts=(),
            schema=rehearsal.expected,
            rehearsed=True,
        )
        await self._store.save_document(document)
        return document.id

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
        """Plan to stand still, with the statements of the downgrades that a person may need.

        They are those that ran on a copy where the gate tried the revision, and else what could be rendered: the database
        as it is now is no place to rehearse them on.
        """
        graph, described, _ = await self.graph(kept_scripts)
        ahead = [r for r in graph.ids() if r not in graph.closure(from_heads)]
        failed = tuple(r for r in ahead if set(graph[r].parents) <= graph.closure(from_heads))
        read = await self._guarded.worker.read(failed)
        scripts, tried = self._tried
        ran = tried if scripts == described.scripts_sha256 else {}
        planned: dict[str, PlannedRevision] = {r: planned_revision(graph, read[r]) for r in failed}
        revisions = tuple(
            msgspec.structs.replace(one, statements=ran[r], unread="") if ran.get(r) else one
            for r, one in planned.items()
        )
        return plan_hold(
            self._guarded.name,
            from_heads,
            failed,
            revisions,
            statement,
            self._guarded.plan_times(),
            described.scripts_sha256,
        )
