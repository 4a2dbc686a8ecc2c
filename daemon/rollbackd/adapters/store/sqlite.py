"""The port `Store` on SQLite: every method a short piece of SQL, the one writer behind those that change something."""

import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import sqlalchemy
from sqlalchemy import delete, func, insert, select, true, tuple_, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.pool import QueuePool, StaticPool

from rollbackd.adapters.store import tables as t
from rollbackd.adapters.store.names import DATABASE
from rollbackd.adapters.store.schema import bring_up_to_date
from rollbackd.adapters.store.writer import OnCommit, Writer
from rollbackd.core.events import Event
from rollbackd.core.evidence import Measurement, Signal
from rollbackd.core.gates import Pause
from rollbackd.core.investigation import Investigation
from rollbackd.core.records import (
    Approval,
    BackupRecord,
    Delivery,
    Deployment,
    DocumentedHeads,
    Incident,
    LogLine,
    QueuedEvent,
    Run,
    StateDocument,
    StepRecord,
    StoredDecision,
    Token,
)
from rollbackd.core.run import FINISHED, Passage, RunState, StepPhase, check_passage
from rollbackd.errors import NotFoundError, RefusedError, StoreUnavailableError
from rollbackd.ports import AcceptedDelivery

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class SqliteStore:
    """Fulfils `ports.Store`. Open it with `open_writing` (one process at a time) or `open_reading`."""

    def __init__(
        self, reading: Engine, writer: Writer | None, lock: int, writing: Engine | None, store_id: str
    ) -> None:
        self._reading = reading
        self._writer = writer
        self._lock = lock
        self._writing = writing
        self._readers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="store-reader")
        self._closed = False
        self.store_id = store_id

    @classmethod
    async def open_writing(
        cls, directory: Path, *, most_waiting: int = 10_000, on_commit: OnCommit | None = None
    ) -> "SqliteStore":
        """Open for reading and writing, under the store's lock.

        Args:
            most_waiting: how many records may wait to be written.
            on_commit: told after each commit how many seconds it took, and how many of its records failed.

        Raises:
            RefusedError: when another process has it open for writing, or a newer rollbackd wrote it.
            StoreUnavailableError: when the folder can't be written.
        """
        try:
            os.makedirs(directory, exist_ok=True, mode=0o700)  # noqa: PTH103 - one call, not worth a thread
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreUnavailableError(
                f"the store's folder {directory} can't be written: {error.strerror}"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise RefusedError(
                f"another rollbackd has the store {directory} open; ask it through its socket"
            ) from None
        path = directory / DATABASE
        try:
            writing = _writing_engine(path)
            await asyncio.to_thread(bring_up_to_date, writing)
            store_id = await asyncio.to_thread(_store_id, writing)
            os.chmod(path, 0o600)  # noqa: PTH101 - one call, not worth a thread
        except (sqlite3.Error, sqlalchemy.exc.DatabaseError) as error:
            os.close(lock)
            reason = getattr(error, "orig", None) or error
            raise StoreUnavailableError(f"the store {path} can't be opened: {reason}") from None
        except BaseException:
            os.close(lock)
            raise
        return cls(_reading_engine(path), Writer(writing, most_waiting, on_commit), lock, writing, store_id)

    @classmethod
    async def open_reading(cls, directory: Path) -> "SqliteStore":
        """Open read-only, beside whoever writes.

        Raises:
            NotFoundError: when there is no store yet.
        """
        path = directory / DATABASE
        if not path.is_file():
            raise NotFoundError(f"there is no store in {directory} yet: start 'rollbackd serve' once")
        reading = _reading_engine(path)
        return cls(reading, None, -1, None, await asyncio.to_thread(_known_store_id, reading))

    async def close(self) -> None:
        """Commit what waits and let go of the lock."""
        self._closed = True
        if self._writer is not None:
            await self._writer.close()
        self._readers.shutdown()
        self._reading.dispose()
        if self._writing is not None:
            self._writing.dispose()
        if self._lock >= 0:
            os.close(self._lock)

    def waiting(self) -> int:
        """How many records wait to be committed."""
        return self._writer.waiting() if self._writer is not None else 0

    def allow_waiting(self, most: int) -> None:
        """From now on, refuse what comes while this many records wait."""
        if self._writer is not None:
            self._writer.most_waiting = most

    async def answers(self) -> None:
        """Read something, and have the writer commit nothing: returns once both have been done.

        Raises:
            StoreUnavailableError: when it answered, and can't be written.
        """
        await self.pauses()
        await self._write(lambda _: None)

    # -- deliveries and events -----------------------------------------------------------------------------------------

    async def accept(self, delivery: Delivery) -> AcceptedDelivery:
        """Record a delivery and its events in one commit, unless it was recorded before."""
        if self._writer is None:
            raise StoreUnavailableError("the store is open for reading only")
        accepted: AcceptedDelivery = await self._writer.do_together(_accept_all, delivery)
        return accepted

    async def next_events(self, limit: int) -> list[QueuedEvent]:
        """The oldest events that nothing was done about yet."""
        rows = await self._rows(sqlalchemy.text(_WAITING_EVENTS).bindparams(most=limit))
        return _waiting_events(rows[0][0])

    async def pending_events(self) -> tuple[int, datetime | None]:
        """How many events nothing was done about yet, and when the oldest was received."""
        query = select(func.count(), func.min(t.event.c.received_at)).where(t.event.c.settled_at.is_(None))
        count, oldest = (await self._rows(query))[0]
        return int(count), _time(oldest) if oldest is not None else None

    async def settle_events(self, outcomes: Mapping[int, str], at: datetime) -> None:
        """Note what was done about events: sequence number to outcome."""
        if not outcomes:
            return
        settled = at.timestamp()
        alike: dict[str, list[int]] = {}
        for seq, outcome in outcomes.items():
            alike.setdefault(outcome, []).append(seq)

        def work(connection: Connection) -> None:
            for outcome, seqs in alike.items():
                statement = update(t.event).where(t.event.c.seq.in_(seqs))
                connection.execute(statement.values(settled_at=settled, outcome=outcome))

        await self._write(work)

    async def recent_deliveries(self, limit: int) -> list[dict[str, object]]:
        """The newest deliveries with what became of them: why it did, or did not, trigger."""
        outcome = select(func.group_concat(t.event.c.outcome, "; ")).where(
            t.event.c.delivery == t.delivery.c.id
        )
        query = (
            select(
                t.delivery.c.id,
                t.delivery.c.hook,
                t.delivery.c.received_at,
                t.delivery.c.ignored_because,
                outcome.scalar_subquery(),
            )
            .order_by(t.delivery.c.seq.desc())
            .limit(limit)
        )
        return [
            {
                "id": r[0],
                "hook": r[1],
                "received_at": _time(r[2]),
                "ignored_because": r[3],
                "outcome": r[4] or "",
            }
            for r in await self._rows(query)
        ]

    # -- deployments and evidence --------------------------------------------------------------------------------------

    async def save_deployment(self, deployment: Deployment) -> None:
        """Add or replace."""
        ended = deployment.ended_at.timestamp() if deployment.ended_at else None
        await self._upsert(
            t.deployment,
            id=deployment.id,
            target=deployment.target,
            started_at=deployment.started_at.timestamp(),
            ended_at=ended,
            body=_encode(deployment),
        )

    async def deployment(self, deployment_id: str) -> Deployment | None:
        """One, by id."""
        return await self._one(
            select(t.deployment.c.body).where(t.deployment.c.id == deployment_id), Deployment
        )

    async def watched_deployments(self) -> list[Deployment]:
        """Those that haven't ended."""
        return await self._many(
            select(t.deployment.c.body)
            .where(t.deployment.c.ended_at.is_(None))
            .order_by(t.deployment.c.started_at),
            Deployment,
        )

    async def deployments(self, target: str | None, limit: int) -> list[Deployment]:
        """The newest first."""
        query = select(t.deployment.c.body).order_by(t.deployment.c.started_at.desc()).limit(limit)
        return await self._many(
            query if target is None else query.where(t.deployment.c.target == target), Deployment
        )

    async def save_signal(self, service: str, environment: str, signal: Signal) -> None:
        """Add, or replace what was known of the same signal."""
        await self._upsert(
            t.signal,
            service=service,
            environment=environment,
            source=signal.source,
            key=signal.key,
            name=signal.name,
            resolved_at=signal.resolved_at.timestamp() if signal.resolved_at else None,
            body=_encode(signal),
        )

    async def signals(self, service: str, environment: str, since: datetime) -> list[Signal]:
        """Signals of a service that fire, or fired until after `since`."""
        query = (
            select(t.signal.c.body)
            .where(t.signal.c.service == service, t.signal.c.environment == environment)
            .where(t.signal.c.resolved_at.is_(None) | (t.signal.c.resolved_at >= since.timestamp()))
        )
        return await self._many(query, Signal)

    async def firing_elsewhere(self, service: str, environment: str) -> dict[str, list[str]]:
        """Signals that fire in this environment for other services: name to services."""
        query = select(t.signal.c.name, t.signal.c.service).where(
            t.signal.c.environment == environment,
            t.signal.c.service != service,
            t.signal.c.resolved_at.is_(None),
        )
        found: dict[str, list[str]] = {}
        for name, other in await self._rows(query):
            found.setdefault(name, []).append(other)
        return found

    async def save_measurements(self, deployment: str, measurements: list[Measurement]) -> None:
        """Add these readings."""
        rows = [{"deployment": deployment, "at": m.at.timestamp(), "body": _encode(m)} for m in measurements]
        if rows:
            await self._execute(insert(t.measurement), rows)

    async def measurements(
        self, deployment: str, limit: int, until: datetime | None = None
    ) -> list[Measurement]:
        """The newest `limit` readings, or of those until then; oldest first."""
        query = (
            select(t.measurement.c.body)
            .where(t.measurement.c.deployment == deployment)
            .where(t.measurement.c.at <= until.timestamp() if until is not None else true())
            .order_by(t.measurement.c.seq.desc())
            .limit(limit)
        )
        return list(reversed(await self._many(query, Measurement)))

    async def save_document(self, document: StateDocument) -> None:
        """Add a documented state."""
        await self._upsert(
            t.document,
            id=document.id,
            target=document.target,
            taken_at=document.taken_at.timestamp(),
            rehearsed=int(document.rehearsed),
            body=_encode(document),
        )

    async def document(self, document_id: str) -> StateDocument | None:
        """One, by id."""
        return await self._one(select(t.document.c.body).where(t.document.c.id == document_id), StateDocument)

    async def latest_document(self, target: str, before: datetime | None = None) -> StateDocument | None:
        """The newest that was seen of a target, taken no later than `before`."""
        query = select(t.document.c.body).where(t.document.c.target == target, t.document.c.rehearsed == 0)
        if before is not None:
            query = query.where(t.document.c.taken_at <= before.timestamp())
        return await self._one(query.order_by(t.document.c.taken_at.desc()).limit(1), StateDocument)

    async def latest_heads(self, target: str) -> DocumentedHeads | None:
        """The heads of the newest state that was seen, and when."""
        query = (
            select(t.document.c.body)
            .where(t.document.c.target == target, t.document.c.rehearsed == 0)
            .order_by(t.document.c.taken_at.desc())
            .limit(1)
        )
        return await self._one(query, DocumentedHeads)

    async def save_decision(self, decision: StoredDecision) -> None:
        """Add a decision, or note what came of it."""
        await self._upsert(
            t.decision,
            id=decision.id,
            target=decision.target,
            deployment=decision.deployment,
            at=decision.at.timestamp(),
            body=_encode(decision),
        )

    async def decision(self, decision_id: str) -> StoredDecision | None:
        """One, by id."""
        return await self._one(
            select(t.decision.c.body).where(t.decision.c.id == decision_id), StoredDecision
        )

    async def decisions(
        self,
        target: str | None,
        limit: int,
        deployment: str | None = None,
        *,
        since: datetime | None = None,
    ) -> list[StoredDecision]:
        """The newest first."""
        query = select(t.decision.c.body).order_by(t.decision.c.at.desc()).limit(limit)
        if since is not None:
            query = query.where(t.decision.c.at >= since.timestamp())
        if target is not None:
            query = query.where(t.decision.c.target == target)
        if deployment is not None:
            query = query.where(t.decision.c.deployment == deployment)
        return await self._many(query, StoredDecision)

    async def save_investigation(self, investigation: Investigation) -> None:
        """Add what was collected for a decision, or replace it."""
        await self._upsert(
            t.investigation,
            decision=investigation.decision,
            deployment=investigation.deployment,
            at=investigation.at.timestamp(),
            body=_encode(investigation),
        )

    async def investigation(self, decision_id: str) -> Investigation | None:
        """What was collected for a decision."""
        query = select(t.investigation.c.body).where(t.investigation.c.decision == decision_id)
        return await self._one(query, Investigation)

    async def investigations(self, deployment: str) -> list[Investigation]:
        """Those of a deployment, the oldest first."""
        query = select(t.investigation.c.body).where(t.investigation.c.deployment == deployment)
        return await self._many(query.order_by(t.investigation.c.at), Investigation)

    # -- runs ----------------------------------------------------------------------------------------------------------

    async def add_run(self, run: Run) -> None:
        """Record a new run; the unique index refuses a second unfinished one on the same database."""

        def work(connection: Connection) -> None:
            try:
                connection.execute(insert(t.run).values(**_run_row(run)))
            except IntegrityError:
                other = connection.execute(
                    select(t.run.c.id, t.run.c.state).where(
                        t.run.c.database_key == run.database_key, t.run.c.is_finished == 0
                    )
                ).first()
                at = f"{other[0]}, which is {other[1]}" if other else "another run"
                raise RefusedError(
                    f"this database has an unfinished run already: {at}; settle it first"
                ) from None

        await self._write(work)

    async def move_run(
        self,
        run_id: str,
        before: RunState,
        after: RunState,
        at: datetime,
        *,
        statement: str = "",
        fence: int | None = None,
    ) -> Run:
        """Take the run from `before` to `after`; the passage is recorded in the same commit."""
        check_passage(before, after)

        def work(connection: Connection) -> Run:
            run = _load_run(connection, run_id)
            if run.state is not before:
                raise RefusedError(f"{run_id} is {run.state}, not {before}")
            if fence is not None and run.fence != fence:
                raise RefusedError(f"{run_id} was taken over by another engine")
            changed = msgspec.structs.replace(
                run,
                state=after,
                statement=statement if after is RunState.SUCCEEDED else statement or run.statement,
                started_at=run.started_at or (at if after is RunState.RUNNING else None),
                finished_at=at if after in FINISHED else None,
            )
            connection.execute(update(t.run).where(t.run.c.id == run_id).values(**_run_row(changed)))
            connection.execute(
                insert(t.transition).values(
                    run=run_id, before=before, after=after, at=at.timestamp(), statement=statement
                )
            )
            return changed

        return await self._write(work)

    async def take_lease(self, run_id: str) -> int:
        """Raise the run's fence: whoever worked on it until now can't write any more. Returns the new fence."""

        def work(connection: Connection) -> int:
            run = _load_run(connection, run_id)
            if run.state is not RunState.RUNNING:
                raise RefusedError(f"{run_id} is {run.state}, so there is nothing to execute")
            changed = msgspec.structs.replace(run, fence=run.fence + 1)
            connection.execute(update(t.run).where(t.run.c.id == run_id).values(**_run_row(changed)))
            return changed.fence

        return await self._write(work)

    async def set_writes_stopped(self, run_id: str, who: str) -> None:
        """Note who said that nothing writes to the database during this run."""

        def work(connection: Connection) -> None:
            changed = msgspec.structs.replace(_load_run(connection, run_id), writes_stopped_by=who)
            connection.execute(update(t.run).where(t.run.c.id == run_id).values(**_run_row(changed)))

        await self._write(work)

    async def run(self, run_id: str) -> Run | None:
        """One, by id."""
        return await self._one(select(t.run.c.body).where(t.run.c.id == run_id), Run)

    async def runs(
        self,
        target: str | None,
        limit: int,
        deployment: str | None = None,
        *,
        states: tuple[RunState, ...] = (),
        since: datetime | None = None,
    ) -> list[Run]:
        """The newest first; with `states` those in one of them."""
        query = select(t.run.c.body).order_by(t.run.c.created_at.desc()).limit(limit)
        if target is not None:
            query = query.where(t.run.c.target == target)
        if deployment is not None:
            query = query.where(t.run.c.deployment == deployment)
        if states:
            query = query.where(t.run.c.state.in_(states))
        if since is not None:
            query = query.where(t.run.c.created_at >= since.timestamp())
        return await self._many(query, Run)

    async def newest_runs(self) -> list[Run]:
        """The newest of each target."""
        newest = select(t.run.c.target, func.max(t.run.c.created_at)).group_by(t.run.c.target)
        query = select(t.run.c.body).where(tuple_(t.run.c.target, t.run.c.created_at).in_(newest))
        return await self._many(query, Run)

    async def unfinished_runs(self) -> list[Run]:
        """Those that aren't finished, oldest first."""
        return await self._many(
            select(t.run.c.body).where(t.run.c.is_finished == 0).order_by(t.run.c.created_at), Run
        )

    async def passages(self, run_id: str) -> list[Passage]:
        """The states that a run came into, oldest first."""
        query = select(t.transition.c.after, t.transition.c.at).where(t.transition.c.run == run_id)
        rows = await self._rows(query.order_by(t.transition.c.seq))
        return [Passage(after=RunState(after), at=_time(at)) for after, at in rows]

    async def unfinished_since(self) -> list[tuple[str, str, datetime]]:
        """Of each run that isn't finished: its target, its state, and since when it is in it."""
        latest = func.coalesce(func.max(t.transition.c.at), t.run.c.created_at)
        query = (
            select(t.run.c.target, t.run.c.state, latest)
            .select_from(t.run.outerjoin(t.transition, t.transition.c.run == t.run.c.id))
            .where(t.run.c.is_finished == 0)
            .group_by(t.run.c.id)
        )
        return [(target, state, _time(at)) for target, state, at in await self._rows(query)]

    async def journal(self, record: StepRecord, fence: int) -> None:
        """Add a line to a run's journal; refused when somebody else holds the run by now."""

        def work(connection: Connection) -> None:
            run = _load_run(connection, record.run)
            if run.fence != fence:
                raise RefusedError(f"{record.run} was taken over by another engine")
            connection.execute(
                insert(t.journal).values(
                    run=record.run,
                    step=record.step,
                    attempt=record.attempt,
                    phase=record.phase,
                    fence=fence,
                    at=record.at.timestamp(),
                    evidence=_encode(record.evidence),
                )
            )

        await self._write(work)

    async def journal_of(self, run_id: str) -> list[StepRecord]:
        """The journal, oldest line first."""
        j = t.journal.c
        query = select(j.step, j.attempt, j.phase, j.at, j.evidence).where(j.run == run_id).order_by(j.seq)
        return [
            StepRecord(
                run=run_id,
                step=r[0],
                attempt=r[1],
                phase=StepPhase(r[2]),
                at=_time(r[3]),
                evidence=_decode(r[4], dict[str, object]),
            )
            for r in await self._rows(query)
        ]

    async def log(self, lines: list[LogLine]) -> None:
        """Add lines to runs' execution logs."""
        rows = [
            {"run": line.run, "step": line.step, "at": line.at.timestamp(), "text": line.text}
            for line in lines
        ]
        if rows:
            await self._execute(insert(t.log), rows)

    async def log_of(self, run_id: str) -> list[LogLine]:
        """The execution log, oldest line first."""
        query = (
            select(t.log.c.step, t.log.c.at, t.log.c.text).where(t.log.c.run == run_id).order_by(t.log.c.seq)
        )
        return [LogLine(run=run_id, step=r[0], at=_time(r[1]), text=r[2]) for r in await self._rows(query)]

    async def last_log_line(self, run_id: str) -> LogLine | None:
        """The newest line of a run's execution log."""
        query = (
            select(t.log.c.step, t.log.c.at, t.log.c.text)
            .where(t.log.c.run == run_id)
            .order_by(t.log.c.seq.desc())
            .limit(1)
        )
        found = [LogLine(run=run_id, step=r[0], at=_time(r[1]), text=r[2]) for r in await self._rows(query)]
        return found[0] if found else None

    # -- backups, incidents, approvals, pauses, tokens -----------------------------------------------------------------

    async def save_backup(self, backup: BackupRecord) -> None:
        """Add or replace."""
        created = backup.created_at.timestamp()
        await self._upsert(
            t.backup, id=backup.id, target=backup.target, created_at=created, body=_encode(backup)
        )

    async def backups(self, target: str | None, limit: int) -> list[BackupRecord]:
        """The newest first."""
        query = select(t.backup.c.body).order_by(t.backup.c.created_at.desc()).limit(limit)
        return await self._many(
            query if target is None else query.where(t.backup.c.target == target), BackupRecord
        )

    async def save_incident(self, incident: Incident) -> None:
        """Add or replace."""
        closed = incident.closed_at.timestamp() if incident.closed_at else None
        await self._upsert(
            t.incident,
            id=incident.id,
            target=incident.target,
            opened_at=incident.opened_at.timestamp(),
            closed_at=closed,
            body=_encode(incident),
        )

    async def incident(self, incident_id: str) -> Incident | None:
        """One, by id."""
        return await self._one(select(t.incident.c.body).where(t.incident.c.id == incident_id), Incident)

    async def open_incident(self, target: str) -> Incident | None:
        """The newest open one of a target."""
        query = (
            select(t.incident.c.body)
            .where(t.incident.c.target == target, t.incident.c.closed_at.is_(None))
            .order_by(t.incident.c.opened_at.desc())
            .limit(1)
        )
        return await self._one(query, Incident)

    async def save_approval(self, approval: Approval) -> None:
        """Add somebody's word; a person has one word on a run, and the last one counts."""
        await self._upsert(t.approval, run=approval.run, actor=approval.actor, body=_encode(approval))

    async def approvals(self, run_id: str) -> list[Approval]:
        """Everybody's word on a run."""
        return await self._many(select(t.approval.c.body).where(t.approval.c.run == run_id), Approval)

    async def save_pause(self, pause: Pause) -> None:
        """Stop automation for a target, or for all with target `*`."""
        await self._upsert(t.pause, target=pause.target, body=_encode(pause))

    async def lift_pause(self, target: str) -> bool:
        """Let automation go on; False when nothing was paused."""
        removed = await self._write(
            lambda c: c.execute(delete(t.pause).where(t.pause.c.target == target)).rowcount
        )
        return bool(removed)

    async def pauses(self) -> list[Pause]:
        """All that were set and not lifted, over or not."""
        return await self._many(select(t.pause.c.body), Pause)

    async def save_token(self, token: Token) -> None:
        """Add or replace."""
        await self._upsert(t.token, name=token.name, body=_encode(token))

    async def tokens(self) -> list[Token]:
        """All, revoked ones too."""
        return await self._many(select(t.token.c.body).order_by(t.token.c.name), Token)

    # -- totals and upkeep ---------------------------------------------------------------------------------------------

    async def add_totals(self, amounts: Mapping[str, float]) -> None:
        """Add to the totals that metrics start from after a restart."""

        def work(connection: Connection) -> None:
            for key, amount in amounts.items():
                statement = upsert(t.total).values(key=key, value=amount)
                statement = statement.on_conflict_do_update(
                    index_elements=["key"], set_={"value": t.total.c.value + amount}
                )
                connection.execute(statement)

        await self._write(work)

    async def totals(self) -> dict[str, float]:
        """All totals."""
        return {key: value for key, value in await self._rows(select(t.total.c.key, t.total.c.value))}  # noqa: C416 - rows

    async def prune(self, deliveries_before: datetime, measurements_before: datetime) -> dict[str, int]:
        """Remove settled deliveries and measurements that are older; return how many of each."""

        def work(connection: Connection) -> dict[str, int]:
            waiting = select(t.event.c.delivery).where(t.event.c.settled_at.is_(None))
            old = select(t.delivery.c.id).where(
                t.delivery.c.received_at < deliveries_before.timestamp(), t.delivery.c.id.not_in(waiting)
            )
            connection.execute(delete(t.event).where(t.event.c.delivery.in_(old)))
            deliveries = connection.execute(delete(t.delivery).where(t.delivery.c.id.in_(old))).rowcount
            measurements = connection.execute(
                delete(t.measurement).where(t.measurement.c.at < measurements_before.timestamp())
            ).rowcount
            return {"deliveries": deliveries, "measurements": measurements}

        return await self._write(work)

    # -- how -----------------------------------------------------------------------------------------------------------

    async def _write(self, work: Callable[[Connection], T]) -> T:
        if self._writer is None:
            raise StoreUnavailableError("the store is open for reading only")
        result: T = await self._writer.do(work)
        return result

    async def _execute(
        self, statement: sqlalchemy.Executable, rows: list[dict[str, object]] | None = None
    ) -> None:
        if rows is not None and not rows:
            return

        def work(connection: Connection) -> None:
            connection.execute(statement, rows)

        await self._write(work)

    async def _upsert(self, table: sqlalchemy.Table, **values: object) -> None:
        statement = upsert(table).values(**values)
        keys = [column.name for column in table.primary_key]
        statement = statement.on_conflict_do_update(
            index_elements=keys, set_={name: value for name, value in values.items() if name not in keys}
        )
        await self._execute(statement)

    async def _rows(self, query: sqlalchemy.Executable) -> list[Any]:
        def read() -> list[Any]:
            with self._reading.connect() as connection:
                return list(connection.execute(query).all())

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except (DatabaseError, sqlite3.Error) as error:
            reason = getattr(error, "orig", None) or error
            raise StoreUnavailableError(f"the store can't be read: {reason}") from None
        except RuntimeError:
            if not self._closed:
                raise
            raise StoreUnavailableError("the store is closed") from None

    async def _many(self, query: sqlalchemy.Select[Any], kind: type[T]) -> list[T]:
        return [_decode(row[0], kind) for row in await self._rows(query)]

    async def _one(self, query: sqlalchemy.Select[Any], kind: type[T]) -> T | None:
        found = await self._many(query, kind)
        return found[0] if found else None


# As one value, because each row that is fetched lets go of the interpreter's lock once; see _accept_all.
_WAITING_EVENTS = (
    "SELECT coalesce('[' || group_concat(json_object('seq', seq, 'delivery', delivery, 'hook', hook, 'received_at',"
    " received_at, 'event', json(CAST(body AS TEXT)))) || ']', '[]') FROM"
    " (SELECT * FROM event WHERE settled_at IS NULL ORDER BY seq LIMIT :most)"
)
_KNOWN_DELIVERY = "SELECT id, body_sha256, ignored_because, seq FROM delivery WHERE hook = ? AND identity = ?"
EVENTS_AT_ONCE = 1_000


def _accept_all(connection: Connection, deliveries: list[Delivery]) -> list[AcceptedDelivery]:
    """The busiest path there is: everything that waits goes in with two statements, on the driver's own connection.

    Each statement lets go of the interpreter's lock once; one for each row would have the threads trade it thousands of
    times a second.
    """
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    rows = [
        (
            d.id,
            d.hook,
            d.identity,
            d.body_sha256,
            _encode(d.headers).decode(),
            d.body,
            d.received_at.timestamp(),
            d.ignored_because,
        )
        for d in deliveries
    ]
    statement = _insert_many(
        "delivery (id, hook, identity, body_sha256, headers, body, received_at, ignored_because)",
        8,
        len(rows),
    )
    (last,) = driver.execute("SELECT coalesce(max(seq), 0) FROM delivery").fetchone()
    inserted = driver.execute(
        f"{statement} ON CONFLICT (hook, identity) DO NOTHING", list(itertools.chain.from_iterable(rows))
    ).rowcount
    if inserted == len(deliveries):
        accepted = [_accepted(d.id, d.ignored_because, is_new=True) for d in deliveries]
    else:
        answered: set[str] = set()
        accepted = [_look_up(driver, d, last, answered) for d in deliveries]
    events = [
        (d.id, d.hook, d.received_at.timestamp(), _encode(event))
        for d, answer in zip(deliveries, accepted, strict=True)
        if answer.is_new
        for event in d.events
    ]
    for start in range(0, len(events), EVENTS_AT_ONCE):
        some = events[start : start + EVENTS_AT_ONCE]
        statement = _insert_many("event (delivery, hook, received_at, body)", 4, len(some))
        driver.execute(statement, list(itertools.chain.from_iterable(some)))
    return accepted


class _WaitingEvent(msgspec.Struct, frozen=True):
    seq: int
    delivery: str
    hook: str
    received_at: float
    event: Event


_waiting_decoder = msgspec.json.Decoder(list[_WaitingEvent])


def _waiting_events(document: str) -> list[QueuedEvent]:
    """The queue's events out of the one JSON value that they were read as."""
    return [
        QueuedEvent(
            seq=w.seq, delivery=w.delivery, hook=w.hook, received_at=_time(w.received_at), event=w.event
        )
        for w in _waiting_decoder.decode(document)
    ]


def _look_up(
    driver: sqlite3.Connection, delivery: Delivery, last: int, answered: set[str]
) -> AcceptedDelivery:
    """Told by its place behind `last`, not by its id: a caller that tries again may well bring the same id."""
    known_id, sha256, ignored, seq = driver.execute(
        _KNOWN_DELIVERY, (delivery.hook, delivery.identity)
    ).fetchone()
    if seq > last and known_id not in answered:
        answered.add(known_id)
        return _accepted(known_id, ignored, is_new=True)
    return _accepted(known_id, ignored, is_new=False, conflict=sha256 != delivery.body_sha256)


def _accepted(
    delivery_id: str, ignored_because: str, *, is_new: bool, conflict: bool = False
) -> AcceptedDelivery:
    return AcceptedDelivery(id=delivery_id, is_new=is_new, conflict=conflict, ignored_because=ignored_because)


@functools.lru_cache(maxsize=256)
def _insert_many(into: str, columns: int, rows: int) -> str:
    """An INSERT with so many rows of parameters."""
    values = f"({', '.join('?' * columns)})"
    return f"INSERT INTO {into} VALUES {', '.join([values] * rows)}"  # noqa: S608 - names from here, values as parameters


def _run_row(run: Run) -> dict[str, object]:
    return {
        "id": run.id,
        "target": run.target,
        "database_key": run.database_key,
        "deployment": run.deployment,
        "state": run.state,
        "is_finished": int(run.state in FINISHED),
        "fence": run.fence,
        "created_at": run.created_at.timestamp(),
        "body": _encode(run),
    }


def _load_run(connection: Connection, run_id: str) -> Run:
    row = connection.execute(select(t.run.c.body).where(t.run.c.id == run_id)).first()
    if row is None:
        raise NotFoundError(f"there is no run {run_id}")
    return _decode(row[0], Run)


def _decode(data: bytes, kind: type[T]) -> T:
    return msgspec.json.decode(data, type=kind)


def _time(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _writing_engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    return sqlalchemy.create_engine(
        "sqlite://", creator=connect, poolclass=StaticPool, isolation_level="AUTOCOMMIT"
    )


def _reading_engine(path: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, timeout=5
        )
        connection.execute("PRAGMA query_only = ON")
        return connection

    return sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=2)


def _known_store_id(engine: Engine) -> str:
    with engine.connect() as connection:
        found: str = connection.execute(
            select(t.meta.c.value).where(t.meta.c.name == "store_id")
        ).scalar_one()
        return found


def _store_id(engine: Engine) -> str:
    with engine.connect() as connection, contextlib.suppress(IntegrityError):
        connection.execute(insert(t.meta).values(name="store_id", value=os.urandom(8).hex()))
    return _known_store_id(engine)
