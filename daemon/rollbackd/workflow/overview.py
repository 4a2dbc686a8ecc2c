"""What people watch: every target with its deployment, run and price, and one run with each of its steps.

Works on a store that is open for reading only; how far the step under way has come is known to the engine that takes it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rollbackd.core.course import StepCourse, course_of
from rollbackd.core.evidence import Measurement, Source
from rollbackd.core.gates import Pause
from rollbackd.core.planning.steps import step_text
from rollbackd.core.readings import reading_text
from rollbackd.core.records import Deployment, Run, StoredDecision
from rollbackd.core.run import UNFINISHED, RunState
from rollbackd.errors import NotFoundError
from rollbackd.ports import Clock, Progress, Store
from rollbackd.settings import Target
from rollbackd.workflow.operations import EVERYTHING
from rollbackd.workflow.runs import describe_run

MEASUREMENTS_LOOKED_AT = 50


def nobody_knows(_: str) -> None:
    """The progress of any run, where no engine is at hand."""


class Overview:
    """Gathers what is shown, as plain values; `targets` are those configured now, `progress` is that of a run's step under way, as the engine knows it."""

    def __init__(
        self,
        targets: Callable[[], Sequence[Target]],
        store: Store,
        clock: Clock,
        progress: Callable[[str], Progress | None],
    ) -> None:
        self._targets = targets
        self._store = store
        self._clock = clock
        self._progress = progress

    async def targets(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every target (or the one named): where it stands, what is watched, what runs, what waits.

        Raises:
            NotFoundError: when none is named so.
        """
        watched = {d.target: d for d in await self._store.watched_deployments()}
        now = self._clock.now()
        pauses = {p.target: p for p in await self._store.pauses() if p.holds(now)}
        newest = {run.target: run for run in await self._store.newest_runs()}
        targets = [t for t in self._targets() if name in (None, t.name)]
        if name is not None and not targets:
            configured = ", ".join(t.name for t in self._targets()) or "none"
            raise NotFoundError(f"there is no target {name}; configured are {configured}")
        return [
            await self._target(
                t, watched.get(t.name), newest.get(t.name), pauses.get(t.name) or pauses.get(EVERYTHING)
            )
            for t in targets
        ]

    async def run(self, run_id: str) -> dict[str, Any]:
        """One run with its plan, its journal, its steps and its progress.

        Raises:
            NotFoundError: when there is no such run.
        """
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}; 'rollbackd history' lists them")
        return {
            **describe_run(run),
            "plan": msgspec.to_builtins(run.plan),
            "step_texts": [step_text(step) for step in run.plan.steps],
            "journal": msgspec.to_builtins(await self._store.journal_of(run_id)),
            **await self._course(run),
        }

    async def _target(
        self, target: Target, deployment: Deployment | None, run: Run | None, pause: Pause | None
    ) -> dict[str, Any]:
        documented = await self._store.latest_heads(target.name)
        nothing: dict[str, Any] = {"course": [], "last_line": None, "progress": None}
        return {
            "name": target.name,
            "service": target.service,
            "environment": target.environment,
            "mode": str(target.mode),
            "heads": list(documented.heads) if documented else None,
            "documented_at": documented.taken_at.isoformat() if documented else None,
            "watching": describe_deployment(deployment) if deployment else None,
            "price_text": deployment.price.text() if deployment and deployment.price else "",
            "bake_time_s": float(target.policy.bake_time),
            "probes": await self._probes(deployment) if deployment else [],
            "decision": await self._decision(deployment) if deployment else None,
            "paused": msgspec.to_builtins(pause) if pause else None,
            "run": describe_run(run) if run else None,
            **(await self._course(run) if run else nothing),
        }

    async def _course(self, run: Run) -> dict[str, Any]:
        """Where a run's steps stand, the last line of its log, and the progress of the step under way."""
        journal = await self._store.journal_of(run.id)
        line = await self._store.last_log_line(run.id) if run.state in UNFINISHED else None
        progress = self._progress(run.id) if run.state is RunState.RUNNING else None
        return {
            "course": [self._describe_step(step) for step in course_of(run.plan, journal)],
            "last_line": msgspec.to_builtins(line) if line else None,
            "progress": msgspec.to_builtins(progress) if progress else None,
        }

    def _describe_step(self, step: StepCourse) -> dict[str, Any]:
        now = self._clock.now()
        found: dict[str, Any] = msgspec.to_builtins(step)
        return {
            **found,
            "took_s": round(step.took_s(now), 3),
            "waited_s": round(step.waited_s(now), 3),
        }

    async def _probes(self, deployment: Deployment) -> list[dict[str, Any]]:
        """The newest reading of each probe and metric, with what it says in words."""
        newest: dict[str, Measurement] = {}
        for reading in await self._store.measurements(deployment.id, MEASUREMENTS_LOOKED_AT):
            newest[reading.name] = reading
        return [describe_reading(newest[name]) for name in sorted(newest)]

    async def _decision(self, deployment: Deployment) -> dict[str, Any] | None:
        """The newest decision about a watched deployment, without its inputs."""
        found = await self._store.decisions(deployment.target, 1, deployment.id)
        return describe_decision(found[0]) if found else None


def describe_reading(reading: Measurement) -> dict[str, Any]:
    """A reading for people and machines; `is_good` is null where it says nothing."""
    said = reading.detail if reading.source is Source.PROBE else reading_text(reading)
    return {**msgspec.to_builtins(reading), "is_good": reading.is_good, "said": said or str(reading.quality)}


def describe_deployment(deployment: Deployment) -> dict[str, Any]:
    """A deployment for people and machines."""
    found: dict[str, Any] = msgspec.to_builtins(deployment)
    found["price_text"] = deployment.price.text() if deployment.price is not None else ""
    return found


def describe_decision(stored: StoredDecision) -> dict[str, Any]:
    """A decision for people and machines, without its inputs."""
    return {
        "id": stored.id,
        "target": stored.target,
        "deployment": stored.deployment,
        "at": stored.at.isoformat(),
        "outcome": stored.outcome,
        "run": stored.run,
        "decision": msgspec.to_builtins(stored.decision),
    }
