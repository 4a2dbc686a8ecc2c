"""The API: what people and CD systems ask and read. GET never changes anything; everything needs a role."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from rollbackd.core.events import Event, EventKind
from rollbackd.core.planning.steps import step_text
from rollbackd.core.rehearsal import Depth
from rollbackd.core.report import to_markdown
from rollbackd.errors import (
    ConfigurationError,
    NotFoundError,
    RollbackdError,
    UsageError,
)
from rollbackd.intake.connections import LIMITS, read_body
from rollbackd.intake.deliveries import RETRY_AFTER_S
from rollbackd.intake.hooks import located, parse_body
from rollbackd.intake.identity import identify
from rollbackd.ports import Clock, Store
from rollbackd.workflow.bringing_back import describe_archive, describe_restore
from rollbackd.workflow.callers import (
    Caller,
    Role,
    Sessions,
    UnidentifiedError,
    create_token,
    revoke_token,
    status_of,
)
from rollbackd.workflow.guarded import Guarded
from rollbackd.workflow.operations import EVERYTHING, Operations, Watches
from rollbackd.workflow.overview import Overview, describe_decision, describe_deployment
from rollbackd.workflow.rehearsing import describe_rehearsal
from rollbackd.workflow.reporting import PAGE_POLICY, Reporting
from rollbackd.workflow.runs import describe_run

MOST_LISTED = 500
LONGEST_PAUSE_S = 366 * 86400.0
T = TypeVar("T")
Answer = Callable[[web.Request, Caller], Awaitable[Any]]
# Brings the configuration on disk into force; says what changed, and raises every problem.
Reload = Callable[[], Awaitable[Any]]


class RollbackAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/rollbacks."""

    target: str
    to: str
    reason: str
    incident: str = ""
    release: str = ""
    plan_sha256: str = ""


class PlanAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/targets/{name}/plan."""

    to: str = "-1"
    release: str = ""


class RehearsalAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/targets/{name}/rehearse; without `depth` as the configuration says."""

    to: str = "-1"
    depth: Depth | None = None


class WordGiven(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/runs/{id}/approve, deny or abandon."""

    reason: str = ""
    plan_sha256: str = ""


class ResumeAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/runs/{id}/resume; `stamp` moves a stamp that was lost first."""

    stamp: bool = False


class RestoreAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/runs/{id}/restore; `lost` is what the migration itself had taken away."""

    dry_run: bool = False
    lost: bool = False


class PauseAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/pause and unpause; `for_s` in seconds, none until it is lifted."""

    target: str = EVERYTHING
    reason: str = ""
    for_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_PAUSE_S)] | None = None


class GateAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/targets/{name}/gate: the deploy that is about to start."""

    version: str = ""
    previous_version: str = ""
    deployment: str = ""
    to_revision: str = ""


class TokenAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /api/v1/tokens."""

    name: str
    roles: tuple[str, ...]


class Api:
    """The routes under /api/v1."""

    def __init__(  # noqa: PLR0913, PLR0917 - wired in one place, each part a neighbour
        self,
        guarded: Mapping[str, Guarded],
        store: Store,
        operations: Operations,
        reporting: Reporting,
        watches: Watches,
        clock: Clock,
        sessions: Sessions,
        reload: Reload,
    ) -> None:
        self._sessions = sessions
        self._clock = clock
        self._guarded = guarded
        self._reload = reload
        self._store = store
        self._operations = operations
        self._reporting = reporting
        self._overview = Overview(
            lambda: [one.settings for one in guarded.values()], store, clock, operations.progress
        )
        self._watches = watches

    def routes(self) -> list[web.RouteDef]:
        """Method, path, role and answer of everything there is."""
        v1 = "/api/v1"
        return [
            web.get(f"{v1}/targets", self._guard(Role.READ, self.targets)),
            web.get(f"{v1}/deployments", self._guard(Role.READ, self.deployments)),
            web.get(f"{v1}/deployments/{{id}}", self._guard(Role.READ, self.deployment)),
            web.get(f"{v1}/decisions", self._guard(Role.READ, self.decisions)),
            web.get(f"{v1}/deliveries", self._guard(Role.READ, self.deliveries)),
            web.get(f"{v1}/runs", self._guard(Role.READ, self.runs)),
            web.get(f"{v1}/runs/{{id}}", self._guard(Role.READ, self.run)),
            web.get(f"{v1}/runs/{{id}}/report", self._guard(Role.READ, self.report)),
            web.post(f"{v1}/targets/{{name}}/plan", self._guard(Role.READ, self.plan)),
            web.post(f"{v1}/targets/{{name}}/rehearse", self._guard(Role.OPERATE, self.rehearse)),
            web.post(f"{v1}/targets/{{name}}/gate", self._guard(Role.OPERATE, self.gate)),
            web.post(f"{v1}/rollbacks", self._guard(Role.OPERATE, self.roll_back)),
            web.post(f"{v1}/runs/{{id}}/approve", self._guard(Role.APPROVE, self.approve)),
            web.post(f"{v1}/runs/{{id}}/deny", self._guard(Role.APPROVE, self.deny)),
            web.post(f"{v1}/runs/{{id}}/resume", self._guard(Role.OPERATE, self.resume)),
            web.post(f"{v1}/runs/{{id}}/abandon", self._guard(Role.OPERATE, self.abandon)),
            web.post(f"{v1}/pause", self._guard(Role.OPERATE, self.pause)),
            web.post(f"{v1}/unpause", self._guard(Role.OPERATE, self.unpause)),
            web.post(f"{v1}/runs/{{id}}/restore", self._guard(Role.OPERATE, self.restore)),
            web.get(f"{v1}/targets/{{name}}/archives", self._guard(Role.READ, self.archives)),
            web.post(f"{v1}/backups/prune", self._guard(Role.OPERATE, self.prune_backups)),
            web.post(f"{v1}/archives/prune", self._guard(Role.OPERATE, self.prune_archives)),
            web.post(f"{v1}/reload", self._guard(Role.OPERATE, self.reload)),
            web.post(f"{v1}/tokens", self._guard(Role.OPERATE, self.create_token)),
            web.post(f"{v1}/tokens/{{name}}/revoke", self._guard(Role.OPERATE, self.revoke_token)),
        ]

    def _guard(self, role: Role, answer: Answer) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                caller = await identify(request, self._store, self._sessions)
                if not caller.may(role):
                    raise UnidentifiedError(403, f"{caller.name} lacks the role {role}")
                found = await answer(request, caller)
            except RollbackdError as error:
                return error_response(error)
            if isinstance(found, web.StreamResponse):
                return found
            return web.Response(
                body=msgspec.json.encode(found),
                content_type="application/json",
                headers={"Cache-Control": "no-store"},
            )

        return guarded

    # -- reading -------------------------------------------------------------------------------------------------------

    async def targets(self, request: web.Request, caller: Caller) -> Any:
        """Every target (or `?target=`): where it stands, what is watched on it, its newest run with its steps."""
        return await self._overview.targets(request.query.get("target"))

    async def deployments(self, request: web.Request, caller: Caller) -> Any:
        """The newest deployments."""
        found = await self._store.deployments(request.query.get("target"), _limit(request))
        return [describe_deployment(deployment) for deployment in found]

    async def deployment(self, request: web.Request, caller: Caller) -> Any:
        """One deployment with its newest readings, its decisions, and what was investigated."""
        deployment_id = request.match_info["id"]
        found = await self._store.deployment(deployment_id)
        if found is None:
            raise NotFoundError(f"there is no deployment {deployment_id}")
        decisions = await self._store.decisions(None, MOST_LISTED, deployment_id)
        return {
            **describe_deployment(found),
            "measurements": msgspec.to_builtins(await self._store.measurements(deployment_id, MOST_LISTED)),
            "decisions": [describe_decision(decision) for decision in decisions],
            "investigations": msgspec.to_builtins(await self._store.investigations(deployment_id)),
        }

    async def decisions(self, request: web.Request, caller: Caller) -> Any:
        """The newest decisions, with facts, reasons, gates and outcome."""
        found = await self._store.decisions(
            request.query.get("target"), _limit(request), request.query.get("deployment")
        )
        return [describe_decision(decision) for decision in found]

    async def deliveries(self, request: web.Request, caller: Caller) -> Any:
        """The newest deliveries and what became of each."""
        return await self._store.recent_deliveries(_limit(request))

    async def runs(self, request: web.Request, caller: Caller) -> Any:
        """The newest runs."""
        found = await self._store.runs(request.query.get("target"), _limit(request))
        return [describe_run(run) for run in found]

    async def run(self, request: web.Request, caller: Caller) -> Any:
        """One run with its plan, its journal, its steps and its progress."""
        return await self._overview.run(request.match_info["id"])

    async def report(self, request: web.Request, caller: Caller) -> Any:
        """The report, as a page, Markdown or JSON."""
        accepted = request.headers.get("Accept", "")
        usual = "html" if "text/html" in accepted else "json" if "json" in accepted else "md"
        wanted = request.query.get("format", usual)
        if wanted == "html":
            page = await self._reporting.page(request.match_info["id"])
            headers = {
                "Content-Security-Policy": PAGE_POLICY,
                "X-Content-Type-Options": "nosniff",
                "Cache-Control": "no-store",
            }
            return web.Response(text=page, content_type="text/html", charset="utf-8", headers=headers)
        report = await self._reporting.report(request.match_info["id"])
        if wanted == "json":
            return msgspec.to_builtins(report)
        if wanted != "md":
            raise UsageError(f"no report is written as {wanted!r}; there are html, md and json")
        return web.Response(text=to_markdown(report), content_type="text/markdown")

    # -- asking --------------------------------------------------------------------------------------------------------

    async def plan(self, request: web.Request, caller: Caller) -> Any:
        """Plan; POST because it has a body, though it changes nothing."""
        asked = await _body(request, PlanAsked)
        plan, gates = await self._operations.plan(
            request.match_info["name"], to=asked.to, release=asked.release
        )
        return {
            "plan": msgspec.to_builtins(plan),
            "plan_sha256": plan.sha256(),
            "gates": msgspec.to_builtins(gates),
            "step_texts": [step_text(step) for step in plan.steps],
        }

    async def rehearse(self, request: web.Request, caller: Caller) -> Any:
        """Rehearse a way back on scratch, and say everything that was seen."""
        asked = await _body(request, RehearsalAsked)
        found = await self._operations.rehearse(request.match_info["name"], to=asked.to, depth=asked.depth)
        return describe_rehearsal(found)

    async def gate(self, request: web.Request, caller: Caller) -> Any:
        """May this deploy start?"""
        asked = await _body(request, GateAsked)
        name = request.match_info["name"]
        guarded = self._guarded.get(name)
        event = Event(
            kind=EventKind.DEPLOY_STARTED,
            service=guarded.settings.service if guarded else "",
            environment=guarded.settings.environment if guarded else "",
            version=asked.version,
            previous_version=asked.previous_version,
            deployment=asked.deployment,
            to_revision=asked.to_revision,
        )
        return msgspec.to_builtins(await self._operations.gate(name, event, self._watches))

    async def roll_back(self, request: web.Request, caller: Caller) -> Any:
        """Ask for a rollback."""
        asked = await _body(request, RollbackAsked)
        run = await self._operations.roll_back(
            asked.target,
            to=asked.to,
            reason=asked.reason,
            requested_by=caller.name,
            incident=asked.incident,
            release=asked.release,
            plan_sha256=asked.plan_sha256,
        )
        return describe_run(run)

    async def approve(self, request: web.Request, caller: Caller) -> Any:
        """Say yes."""
        word = await _body(request, WordGiven)
        run_id = request.match_info["id"]
        return describe_run(
            await self._operations.approve(
                run_id, caller.name, plan_sha256=word.plan_sha256, reason=word.reason
            )
        )

    async def deny(self, request: web.Request, caller: Caller) -> Any:
        """Say no."""
        word = await _body(request, WordGiven)
        return describe_run(
            await self._operations.deny(request.match_info["id"], caller.name, reason=word.reason)
        )

    async def resume(self, request: web.Request, caller: Caller) -> Any:
        """Go on with a held run."""
        asked = await _body(request, ResumeAsked)
        run = await self._operations.resume(request.match_info["id"], caller.name, stamp=asked.stamp)
        return describe_run(run)

    async def abandon(self, request: web.Request, caller: Caller) -> Any:
        """Let a held run go."""
        word = await _body(request, WordGiven)
        return describe_run(
            await self._operations.abandon(request.match_info["id"], caller.name, reason=word.reason)
        )

    async def pause(self, request: web.Request, caller: Caller) -> Any:
        """Stop automation."""
        asked = await _body(request, PauseAsked)
        pause = await self._operations.pause(asked.target, caller.name, asked.reason, asked.for_s)
        return msgspec.to_builtins(pause)

    async def unpause(self, request: web.Request, caller: Caller) -> Any:
        """Let automation go on."""
        asked = await _body(request, PauseAsked)
        return {"lifted": await self._operations.unpause(asked.target, caller.name)}

    async def prune_backups(self, request: web.Request, caller: Caller) -> Any:
        """Remove what the retention no longer keeps."""
        return {"removed": [backup.id for backup in await self._operations.prune_backups()]}

    async def restore(self, request: web.Request, caller: Caller) -> Any:
        """Bring back what a run archived."""
        asked = await _body(request, RestoreAsked)
        report = await self._operations.restore(
            request.match_info["id"], caller.name, dry_run=asked.dry_run, lost=asked.lost
        )
        return describe_restore(report)

    async def archives(self, request: web.Request, caller: Caller) -> Any:
        """What a target's archives hold."""
        found = await self._operations.archives(request.match_info["name"], request.query.get("run", ""))
        return [describe_archive(entry) for entry in found]

    async def prune_archives(self, request: web.Request, caller: Caller) -> Any:
        """Drop what the retention no longer keeps."""
        dropped = await self._operations.prune_archives()
        return {name: [describe_archive(entry) for entry in gone] for name, gone in dropped.items()}

    async def reload(self, request: web.Request, caller: Caller) -> Any:
        """Read the configuration anew; local people alone may, who can write it too."""
        _require_local(caller, "the configuration is reloaded")
        return msgspec.to_builtins(await self._reload())

    async def create_token(self, request: web.Request, caller: Caller) -> Any:
        """Make a token; local people alone may, so that a token can't make another."""
        _require_local(caller, "tokens are made and revoked")
        asked = await _body(request, TokenAsked)
        return {"token": await create_token(self._store, asked.name, asked.roles, self._clock.now())}

    async def revoke_token(self, request: web.Request, caller: Caller) -> Any:
        """Revoke a token; local people alone may."""
        _require_local(caller, "tokens are made and revoked")
        await revoke_token(self._store, request.match_info["name"], self._clock.now())
        return {"revoked": request.match_info["name"]}


def _require_local(caller: Caller, what: str) -> None:
    if not caller.is_local:
        raise UnidentifiedError(403, f"{what} on the daemon's own machine alone")


def error_response(error: RollbackdError) -> web.Response:
    """An error as an HTTP answer; what status follows the class."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    document: dict[str, object] = {
        "error": str(error),
        "class": type(error).__name__,
        "exit_code": error.exit_code,
    }
    if isinstance(error, ConfigurationError):
        document["problems"] = error.problems
    return web.json_response(document, status=status, headers=headers)


async def _body(request: web.Request, kind: type[T]) -> T:
    raw = await read_body(request, request.app[LIMITS].max_body_bytes)
    try:
        return msgspec.convert(parse_body(raw) if raw else {}, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"the body isn't as expected: {located(str(error), '$')}") from None


def _limit(request: web.Request) -> int:
    text = request.query.get("limit", "50")
    if len(text) > 4 or not text.isdecimal() or not 1 <= int(text) <= MOST_LISTED:
        raise UsageError(f"limit must be a number from 1 to {MOST_LISTED}")
    return int(text)
