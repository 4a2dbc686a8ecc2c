"""The run engine: takes the lease, and for each remaining step observes, commits the intent, performs, observes again
and commits the outcome with its evidence. A restart does the very same with the stored plan and the journal."""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from rollbackd.core.assess import heads_text
from rollbackd.core.planning.steps import Downgrade, Step, StopApplication, step_text
from rollbackd.core.records import LogLine, Run, StepRecord
from rollbackd.core.run import Next, Observation, RunState, StepPhase, next_for_step
from rollbackd.core.standing import Standing
from rollbackd.errors import (
    HeldError,
    NotFoundError,
    RefusedError,
    RollbackdError,
    StoreUnavailableError,
    TransientError,
)
from rollbackd.ports import Clock, Progress, Store
from rollbackd.workflow import steps
from rollbackd.workflow.happenings import Happenings
from rollbackd.workflow.targets import Targets
from rollbackd.workflow.timing import time_spent

RETRY_FIRST_S = 0.5
RETRY_LONGEST_S = 20.0
LOG_LINES_AT_ONCE = 200
# Where a database stands after a downgrade that can't be looked at.
UNKNOWN = "unknown"
log = structlog.get_logger()


class StoppedError(Exception):
    """The engine was asked to stop; the run stays running and is resumed by the next start."""


class FencedError(Exception):
    """Another engine took the run over."""


@dataclass(frozen=True)
class Lease:
    """A run and the fence with which this engine may write to it."""

    run: Run
    fence: int


class Engine:
    """Executes runs, one task each. Never two on one database: the store's unique index sees to that."""

    def __init__(self, store: Store, clock: Clock, guarded: Targets, happenings: Happenings) -> None:
        self._store = store
        self._clock = clock
        self._guarded = guarded
        self._happenings = happenings
        self._tasks: dict[str, asyncio.Task[Run]] = {}
        self._stopping = asyncio.Event()
        self.progress: dict[str, Progress] = {}
        # Log lines on their way to the store, by run.
        self._lines: dict[str, set[asyncio.Task[None]]] = {}

    def start(self, run: Run) -> asyncio.Task[Run]:
        """Execute a running run in the background; once, however often it is asked for."""
        task = self._tasks.get(run.id)
        if task is None or task.done():
            task = asyncio.create_task(self._execute(run.id), name=run.id)
            self._tasks[run.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(run.id, None))
        return task

    async def recover(self) -> list[Run]:
        """Resume every run that was running when the last process ended."""
        unfinished = await self._store.unfinished_runs()
        running = [
            run
            for run in unfinished
            if run.state is RunState.RUNNING and run.target in self._guarded and not self.executes(run.id)
        ]
        for run in running:
            self._happenings.tell("run_resumed", run=run.id, target=run.target, after="restart")
            self.start(run)
        return running

    def executes(self, run_id: str) -> bool:
        """Whether this engine is at work on a run."""
        return run_id in self._tasks

    async def stop(self) -> None:
        """Stop at the next boundary between steps; a step that is under way is finished, one that only reads is cut."""
        self._stopping.set()
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # -- one run -------------------------------------------------------------------------------------------------------

    async def _execute(self, run_id: str) -> Run:
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}")
        if run.target not in self._guarded:
            log.error("run_without_target", run=run_id, target=run.target)
            return run
        with self._guarded.using(run.target):
            return await self._execute_leased(run)

    async def _execute_leased(self, run: Run) -> Run:
        run_id = run.id
        try:
            # Whoever asked may have looked a while ago: the store refuses what isn't running.
            fence = await self._store.take_lease(run_id)
        except RefusedError as error:
            log.info("run_not_executed", run=run_id, reason=str(error))
            return await self._store.run(run_id) or run
        lease = Lease(run, fence)
        try:
            return await self._take_steps(lease)
        except StoppedError:
            self._happenings.tell("run_interrupted", run=run.id, target=run.target)
            return run
        except FencedError as error:
            log.warning("run_taken_over", run=run.id, target=run.target, error=str(error))
            return run
        except StoreUnavailableError as error:
            # Without the journal nothing may be done; the run is taken up again once the store can be written.
            log.error("run_stopped", run=run.id, error=str(error))
            return run
        except Exception as error:
            # A fault of ours: stand still and say so, rather than try again and again.
            log.error("run_faulted", run=run.id, target=run.target, exc_info=True)
            statement = (
                f"rollbackd met a fault of its own ({type(error).__name__}: {error}) and does nothing more; its log has the"
                " details. Look where the database stands, then resume or abandon"
            )
            return await self._finish(lease, RunState.HELD, statement)
        finally:
            self.progress.pop(run_id, None)

    async def _take_steps(self, lease: Lease) -> Run:
        run = lease.run
        await self._distrust_the_stop(lease)
        for number, step in enumerate(run.plan.steps):
            if self._stopping.is_set():
                raise StoppedError
            context = self._context(lease, number)
            try:
                await self._take(step, context, lease)
            except HeldError as error:
                return await self._hold(lease, number, step, error)
            except StoreUnavailableError:
                # Not the step's fault. Without the journal nothing may be taken back either.
                raise
            except RollbackdError as error:
                return await self._fail(lease, number, step, error)
        return await self._finish(lease, RunState.SUCCEEDED, "")

    async def move_stamp(self, run: Run, actor: str) -> None:
        """Move the stamp that the run's downgrade lost, where the schema says that everything else is done.

        Raises:
            RefusedError: when the schema isn't the one that the rehearsal led to.
        """
        with self._guarded.using(run.target):
            await self._move_stamp(run, actor)

    async def _move_stamp(self, run: Run, actor: str) -> None:
        # A held run is nobody's: its last fence still writes.
        lease = Lease(run, run.fence)
        for number, step in enumerate(run.plan.steps):
            records = [r for r in await self._store.journal_of(run.id) if r.step == number]
            if isinstance(step, Downgrade) and records and records[-1].phase is not StepPhase.DONE:
                evidence = await steps.move_stamp(step, self._context(lease, number))
                await self._record(
                    lease,
                    step,
                    number,
                    records[-1].attempt,
                    StepPhase.INTENT,
                    {**evidence, "stamped_by": actor},
                )
                return
        raise RefusedError(f"no downgrade of {run.id} was begun and left, so no stamp can be lost")

    async def _distrust_the_stop(self, lease: Lease) -> None:
        """Nobody watched since the run was interrupted: what was stopped may have run, and written, in between.

        So before a downgrade was begun, stopping is looked at anew.
        """
        run = lease.run
        journal = await self._store.journal_of(run.id)
        begun = {r.step for r in journal}
        if any(isinstance(run.plan.steps[number], Downgrade) for number in begun):
            return
        for number in sorted(begun):
            step = run.plan.steps[number]
            last = [r for r in journal if r.step == number][-1]
            if isinstance(step, StopApplication) and last.phase is StepPhase.DONE:
                await self._record(
                    lease, step, number, 0, StepPhase.UNDONE, {"because": "the run was interrupted"}
                )

    async def _take(self, step: Step, context: steps.StepContext, lease: Lease) -> None:
        records = [r for r in await context.journal() if r.step == context.number]
        last = records[-1].phase if records else None
        if last is StepPhase.DONE:
            return
        attempts_before = max((r.attempt for r in records), default=0)
        began = asyncio.get_running_loop().time()
        seen = await self._look(step, context)
        todo = next_for_step(_begun(records), seen.observation)
        if todo is Next.HOLD:
            raise HeldError(
                seen.statement or "what this step did before the restart can't be seen", seen.evidence
            )
        if todo is Next.RECORD_DONE:
            await self._record(
                lease, step, context.number, attempts_before, StepPhase.DONE, {**seen.evidence, "found": True}
            )
        else:
            await self._perform_with_retries(step, context, lease, attempts_before, began)

    async def _perform_with_retries(
        self, step: Step, context: steps.StepContext, lease: Lease, attempts_before: int, began: float
    ) -> None:
        number = context.number
        # The one place that retries: a transient fault, with the world looked at before each new attempt.
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(step.attempts),
            wait=wait_exponential_jitter(multiplier=RETRY_FIRST_S, max=RETRY_LONGEST_S),
            retry=retry_if_exception_type(TransientError),
            reraise=True,
        ):
            with attempt:
                tried = attempts_before + attempt.retry_state.attempt_number
                if attempt.retry_state.attempt_number > 1:
                    again = await self._look(step, context)
                    if again.observation is Observation.DONE:
                        await self._record(lease, step, number, tried, StepPhase.DONE, again.evidence)
                        return
                    if again.observation is Observation.UNKNOWABLE:
                        raise HeldError(again.statement, again.evidence)
                intent = await steps.prepare_intent(step, context)
                await self._record(lease, step, number, tried, StepPhase.INTENT, intent)
                try:
                    evidence = await self._perform(step, context)
                except (RollbackdError, TimeoutError) as error:
                    await self._record_failure(lease, step, number, tried, error)
                    raise
                seconds = round(asyncio.get_running_loop().time() - began, 6)
                await self._record(
                    lease, step, number, tried, StepPhase.DONE, {**evidence, "seconds": seconds}
                )

    async def _perform(self, step: Step, context: steps.StepContext) -> steps.Evidence:
        """Perform once within the step's time, and believe only what is seen afterwards."""
        try:
            async with asyncio.timeout(step.timeout_s):
                evidence = await self._until_stopped(step, context)
        except TimeoutError:
            raise TransientError(f"the step took longer than its {step.timeout_s:g} s") from None
        if steps.only_reads(step):
            return evidence
        seen = await self._look(step, context)
        if seen.observation is Observation.UNKNOWABLE:
            raise HeldError(seen.statement, seen.evidence)
        if seen.observation is Observation.NOT_DONE and not evidence.get("reused"):
            raise TransientError(
                f"the step reported success, and the world doesn't show it: {step_text(step)}"
            )
        return {**evidence, **seen.evidence}

    async def _until_stopped(self, step: Step, context: steps.StepContext) -> steps.Evidence:
        """A step that only reads is cut when the engine stops; every other one is waited for."""
        if not steps.only_reads(step):
            return await steps.perform(step, context)
        performing = asyncio.create_task(steps.perform(step, context))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({performing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not performing.done():
                raise StoppedError
            return performing.result()
        finally:
            for task in (performing, stopping):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, RollbackdError):
                    await task

    async def _look(self, step: Step, context: steps.StepContext) -> steps.Observed:
        """Observe, with patience: a database that can't be reached for a moment proves nothing."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(5),
            wait=wait_exponential_jitter(multiplier=RETRY_FIRST_S, max=RETRY_LONGEST_S),
            retry=retry_if_exception_type(TransientError),
            reraise=True,
        ):
            with attempt:
                return await steps.observe(step, context)
        raise AssertionError("tenacity either returns or raises")

    # -- ends ----------------------------------------------------------------------------------------------------------

    async def _hold(self, lease: Lease, number: int, step: Step, error: HeldError) -> Run:
        await self._record(
            lease, step, number, 0, StepPhase.HELD, {"statement": error.statement, **error.evidence}
        )
        return await self._finish(lease, RunState.HELD, error.statement)

    async def _fail(self, lease: Lease, number: int, step: Step, error: RollbackdError) -> Run:
        """Nothing was changed: take back what can be; something was: only a person can say how to go on."""
        await self._require_lease(lease)
        reason = f"{step_text(step)}: {error}"
        done = await self._done_before(lease.run, number)
        seen = None
        if isinstance(step, Downgrade):
            seen = await self._look_safely(step, self._context(lease, number))
        if any(isinstance(earlier, Downgrade) for earlier in done.values()):
            stands = ""
            if isinstance(step, Downgrade):
                stands = ". " + (
                    "Where the database stands can't be read"
                    if seen is None
                    else seen.statement
                    or f"It stands at {heads_text(step.from_heads)}, whole: see to the cause, then 'rollbackd resume', or"
                    " 'rollbackd abandon'"
                )
            return await self._hold(
                lease,
                number,
                step,
                HeldError(
                    f"the database was downgraded, and then {reason}{stands}", seen.evidence if seen else {}
                ),
            )
        if isinstance(step, Downgrade) and (seen is None or seen.observation is not Observation.NOT_DONE):
            said = seen.statement if seen is not None else "where the database stands can't be read"
            evidence = seen.evidence if seen is not None else {}
            return await self._hold(lease, number, step, HeldError(f"{reason}. {said}", evidence))
        if isinstance(step, Downgrade):
            self._tell_standing(lease.run, str(Standing.FROM))
        not_taken_back = ""
        for earlier_number, earlier in reversed(done.items()):
            if not steps.can_be_undone(earlier):
                continue
            # On record first: after a crash in between, the step is looked at again and not taken for done.
            await self._record(lease, earlier, earlier_number, 0, StepPhase.UNDONE, {"because": reason})
            try:
                taken_back = await steps.undo(earlier, self._context(lease, earlier_number))
            except RollbackdError as failure:
                # The others are taken back all the same.
                not_taken_back = not_taken_back or (
                    f"{reason}. The database is unchanged, but taking back '{step_text(earlier)}' failed: {failure}"
                )
                continue
            await self._record(lease, earlier, earlier_number, 0, StepPhase.UNDONE, taken_back)
        if not_taken_back:
            return await self._hold(lease, number, step, HeldError(not_taken_back))
        return await self._finish(lease, RunState.FAILED, f"{reason}. The database is unchanged")

    async def _require_lease(self, lease: Lease) -> None:
        """Nothing is taken back by an engine that was fenced: whoever has the run now is at work on the same things."""
        now = await self._store.run(lease.run.id)
        if now is None or now.fence != lease.fence:
            raise FencedError(f"{lease.run.id} was taken over by another engine")

    async def _done_before(self, run: Run, number: int) -> dict[int, Step]:
        """Earlier steps that were done, and the present one if it was at least begun."""
        begun = {
            r.step
            for r in await self._store.journal_of(run.id)
            if r.phase in (StepPhase.DONE, StepPhase.INTENT)
        }
        done = {n: run.plan.steps[n] for n in sorted(begun) if n < number}
        if number in begun and not isinstance(run.plan.steps[number], Downgrade):
            done[number] = run.plan.steps[number]
        return done

    async def _look_safely(self, step: Step, context: steps.StepContext) -> steps.Observed | None:
        try:
            return await self._look(step, context)
        except RollbackdError:
            return None

    async def _finish(self, lease: Lease, state: RunState, statement: str) -> Run:
        run = lease.run
        try:
            moved = await self._store.move_run(
                run.id, RunState.RUNNING, state, self._clock.now(), statement=statement, fence=lease.fence
            )
        except RefusedError as error:
            raise FencedError(str(error)) from None
        seconds = (self._clock.now() - (moved.started_at or moved.created_at)).total_seconds()
        self._happenings.tell(
            "run_ended",
            run=run.id,
            target=run.target,
            environment=self._guarded[run.target].settings.environment,
            state=str(state),
            trigger=run.trigger,
            statement=statement,
            seconds=seconds,
            spent=await time_spent(self._store, run.id),
            way_back=str(run.plan.way_back),
        )
        return moved

    # -- records -------------------------------------------------------------------------------------------------------

    def _context(self, lease: Lease, number: int) -> steps.StepContext:
        run = lease.run

        async def keep(line: LogLine) -> None:
            try:
                await self._store.log([line])
            except StoreUnavailableError as error:
                # A line that isn't kept must not stop a migration halfway; the journal decides whether to go on.
                log.warning("log_line_lost", run=run.id, error=str(error), text=line.text)

        async def write(text: str) -> None:
            self._happenings.tell("statement_executed", run=run.id, target=run.target, text=text)
            # The migration doesn't wait for a commit of ours between its statements; the step's end does.
            line = LogLine(run=run.id, step=number, at=self._clock.now(), text=text)
            lines = self._lines.setdefault(run.id, set())
            keeping = asyncio.create_task(keep(line))
            lines.add(keeping)
            keeping.add_done_callback(lines.discard)

        async def progressed(progress: Progress) -> None:
            self.progress[run.id] = progress
            self._happenings.tell(
                "step_progressed",
                run=run.id,
                target=run.target,
                kind=run.plan.steps[number].kind,
                done=progress.done,
                total=progress.total,
                unit=progress.unit,
            )

        return steps.StepContext(
            run=run,
            number=number,
            guarded=self._guarded[run.target],
            store=self._store,
            clock=self._clock,
            log=write,
            progress=progressed,
        )

    async def _record(
        self, lease: Lease, step: Step, number: int, attempt: int, phase: StepPhase, evidence: steps.Evidence
    ) -> None:
        run = lease.run
        record = StepRecord(
            run=run.id, step=number, attempt=attempt, phase=phase, at=self._clock.now(), evidence=evidence
        )
        if lines := self._lines.pop(run.id, None):
            await asyncio.wait(lines)
        try:
            await self._store.journal(record, lease.fence)
        except RefusedError as error:
            raise FencedError(str(error)) from None
        self._happenings.tell(
            "step_recorded",
            run=run.id,
            target=run.target,
            environment=self._guarded[run.target].settings.environment,
            step=number,
            kind=step.kind,
            phase=str(phase),
            attempt=attempt,
            seconds=evidence.get("seconds", 0.0),
            findings=steps.findings_of(evidence),
        )
        if isinstance(step, Downgrade) and phase in (StepPhase.DONE, StepPhase.HELD):
            self._tell_standing(run, str(evidence.get("standing", UNKNOWN)))
        if phase is StepPhase.DONE:
            self.progress.pop(run.id, None)

    def _tell_standing(self, run: Run, standing: str) -> None:
        self._happenings.tell("downgrade_settled", run=run.id, target=run.target, standing=standing)

    async def _record_failure(
        self, lease: Lease, step: Step, number: int, attempt: int, error: RollbackdError | TimeoutError
    ) -> None:
        evidence: steps.Evidence = {"error": str(error), "class": type(error).__name__}
        if isinstance(error, HeldError):
            evidence.update(error.evidence)
        await self._record(lease, step, number, attempt, StepPhase.FAILED, evidence)


def _begun(records: list[StepRecord]) -> StepPhase | None:
    """Whether an intent is on record: a step that failed or was held may have done something all the same."""
    return StepPhase.INTENT if any(r.phase is StepPhase.INTENT for r in records) else None
