"""What each page shows, gathered from the store."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from markupsafe import Markup

from rollbackd.console.rendering import render
from rollbackd.core.evidence import Measurement, Source
from rollbackd.core.gates import Pause
from rollbackd.core.investigation import investigation_lines
from rollbackd.core.readings import reading_text
from rollbackd.core.records import Deployment, Run
from rollbackd.errors import NotFoundError
from rollbackd.ports import Clock, Store
from rollbackd.settings import Target
from rollbackd.workflow.callers import Caller, Role
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.operations import EVERYTHING, Operations
from rollbackd.workflow.reporting import Reporting

LISTED = 50
READINGS = 40
MEASUREMENTS = 400
LAST_STATEMENTS = 12
MOST_SIGNALS = 100


class Looking(msgspec.Struct, frozen=True, kw_only=True):
    """Who looks, and what the forms on these pages must bring along."""

    caller: Caller
    form_key: str


class TargetRow(msgspec.Struct, frozen=True):
    """One line of the overview."""

    settings: Target
    watched: Deployment | None
    run: Run | None


class ProbeRow(msgspec.Struct, frozen=True, kw_only=True):
    """The readings of one probe or metric: the newest in words, the last ones as a strip of dots, newest first."""

    name: str
    state: str
    detail: str
    at: datetime | None
    strip: Markup


class Pages:
    """Each method is one page as HTML; those of things that aren't there raise NotFoundError."""

    def __init__(
        self,
        guarded: Mapping[str, Guarded],
        store: Store,
        operations: Operations,
        reporting: Reporting,
        clock: Clock,
    ) -> None:
        self._guarded = guarded
        self._store = store
        self._operations = operations
        self._reporting = reporting
        self._clock = clock

    def _settings_of(self, target: str) -> Target | None:
        guarded = self._guarded.get(target)
        return guarded.settings if guarded is not None else None

    async def overview(self, looking: Looking) -> str:
        """Every target, and what waits for a person."""
        watched = {d.target: d for d in await self._store.watched_deployments()}
        newest = {run.target: run for run in await self._store.newest_runs()}
        waiting = [
            r for r in await self._store.unfinished_runs() if str(r.state) in ("awaiting_approval", "held")
        ]
        rows = [
            TargetRow(one.settings, watched.get(one.name), newest.get(one.name))
            for one in self._guarded.values()
        ]
        return self._page(
            "overview.html", looking, targets=rows, waiting=waiting, pauses=await self._pauses()
        )

    async def target(self, looking: Looking, name: str) -> str:
        """One target with its history."""
        target = self._settings_of(name)
        if target is None:
            raise NotFoundError(f"there is no target {name}")
        pauses = {pause.target: pause for pause in await self._pauses()}
        backups = [b for b in await self._store.backups(name, 10) if b.removed_at is None]
        return self._page(
            "target.html",
            looking,
            target=target,
            pause=pauses.get(name) or pauses.get(EVERYTHING),
            backup=backups[0] if backups else None,
            deployments=await self._store.deployments(name, LISTED),
            runs=await self._store.runs(name, LISTED),
            decisions=await self._store.decisions(name, LISTED),
        )

    async def runs(self, looking: Looking) -> str:
        """The newest runs of all targets."""
        found = await self._store.runs(None, LISTED)
        return self._page("list.html", looking, heading="Runs", most=LISTED, runs=found, decisions=None)

    async def decisions(self, looking: Looking) -> str:
        """The newest decisions of all targets."""
        found = await self._store.decisions(None, LISTED)
        return self._page("list.html", looking, heading="Decisions", most=LISTED, runs=None, decisions=found)

    async def deliveries(self, looking: Looking) -> str:
        """The newest deliveries: why nothing was triggered."""
        return self._page(
            "deliveries.html", looking, deliveries=await self._store.recent_deliveries(LISTED * 2)
        )

    async def decision(self, looking: Looking, decision_id: str) -> str:
        """One decision: facts, reasons, gates."""
        found = await self._store.decision(decision_id)
        if found is None:
            raise NotFoundError(f"there is no decision {decision_id}")
        facts = msgspec.to_builtins(found.decision.facts)
        investigation = await self._store.investigation(decision_id)
        lines = investigation_lines(investigation) if investigation is not None else []
        return self._page("decision.html", looking, one=found, facts=facts, investigation=lines)

    async def deployment(self, looking: Looking, deployment_id: str) -> str:
        """One deployment: its price, its evidence, what was decided."""
        found = await self._store.deployment(deployment_id)
        if found is None:
            raise NotFoundError(f"there is no deployment {deployment_id}")
        target = self._settings_of(found.target)
        signals = (
            await self._store.signals(target.service, target.environment, found.started_at) if target else []
        )
        return self._page(
            "deployment.html",
            looking,
            one=found,
            probes=self._probes(target, await self._store.measurements(deployment_id, MEASUREMENTS)),
            signals=sorted(signals, key=lambda signal: signal.started_at, reverse=True)[:MOST_SIGNALS],
            more_signals=max(len(signals) - MOST_SIGNALS, 0),
            decisions=await self._store.decisions(None, LISTED, deployment_id),
            runs=await self._store.runs(None, LISTED, deployment_id),
        )

    async def run(self, looking: Looking, run_id: str) -> str:
        """One run: its steps, its plan, and the forms for a person's word."""
        run = await self._store.run(run_id)
        if run is None:
            raise NotFoundError(f"there is no run {run_id}")
        outline = await self._reporting.outline(run)
        log = await self._store.log_of(run_id)
        return self._page(
            "run.html",
            looking,
            run=run,
            steps=outline.steps,
            backups=outline.backups,
            rehearsal=outline.rehearsal.text,
            progress=self._operations.progress(run_id),
            log=[line.text for line in log[-LAST_STATEMENTS:]],
        )

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _page(self, template: str, looking: Looking, **shown: Any) -> str:
        caller = looking.caller
        return render(
            template,
            now=self._clock.now(),
            caller=caller,
            form_key=looking.form_key,
            may_operate=caller.may(Role.OPERATE),
            may_approve=caller.may(Role.APPROVE),
            **shown,
        )

    async def _pauses(self) -> list[Pause]:
        now = self._clock.now()
        return [pause for pause in await self._store.pauses() if pause.holds(now)]

    def _probes(self, target: Target | None, measurements: list[Measurement]) -> list[ProbeRow]:
        names = [probe.name for probe in target.probes] if target else []
        names += [metric.name for metric in target.metrics] if target else []
        names += [name for name in dict.fromkeys(m.name for m in measurements) if name not in names]
        return [_probe_row(name, [m for m in measurements if m.name == name]) for name in names]


def _probe_row(name: str, readings: list[Measurement]) -> ProbeRow:
    newest = readings[-1] if readings else None
    return ProbeRow(
        name=name,
        state=_reading_state(newest) if newest else "no data",
        detail=_said(newest) if newest else "",
        at=newest.at if newest else None,
        strip=_strip([m.is_good for m in reversed(readings[-READINGS:])]),
    )


def _reading_state(reading: Measurement) -> str:
    words = {True: "healthy", False: "failing", None: "no data"}
    return words[reading.healthy] if reading.level is None else str(reading.level)


def _said(reading: Measurement) -> str:
    return reading.detail if reading.source is Source.PROBE else reading_text(reading)


def _strip(healthy: list[bool | None]) -> Markup:
    """A dot for each reading; in words for who can't see it."""
    dots = Markup("").join(
        Markup('<circle class="{}" cx="{}" cy="7" r="4"/>').format(
            {True: "good", False: "bad", None: "none"}[one], 6 + 11 * n
        )
        for n, one in enumerate(healthy)
    )
    bad, nothing = healthy.count(False), healthy.count(None)
    said = f"of the last {len(healthy)} readings {bad} were bad, {nothing} said nothing"
    return Markup(
        '<svg class="strip" viewBox="0 0 {} 14" preserveAspectRatio="xMinYMid" role="img" aria-label="{}">{}</svg>'
    ).format(11 * READINGS, said, dots)
