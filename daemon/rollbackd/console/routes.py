"""The console's routes: who may see a page, forms that another site can't send, and pages that keep themselves up to date."""

import asyncio
import hmac
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import web

from rollbackd.console.pages import Looking, Pages
from rollbackd.console.rendering import render, static_file
from rollbackd.errors import (
    DeliveryRefusedError,
    RefusedError,
    RollbackdError,
)
from rollbackd.workflow.callers import (
    SESSION_COOKIE,
    Caller,
    Role,
    Sessions,
    UnidentifiedError,
    sent_from_elsewhere,
    status_of,
)
from rollbackd.workflow.operations import Operations
from rollbackd.workflow.reporting import PAGE_POLICY, Reporting

# How often a live page is looked at, how often all of them together; how often its viewer's token; and how many may be
# open, of one viewer and of all.
LOOK_EVERY_S = 1.0
LOOKS_A_SECOND = 20
IDENTIFY_EVERY_S = 10.0
MOST_LIVE_OF_ONE = 20
MOST_LIVE = 100
# Of a page that keeps itself up to date; nothing that others wrote can look like it.
PART = re.compile(r"<!-- part (\w+) -->(.*?)<!-- end \1 -->", re.DOTALL)
LONGEST_FORM_BYTES = 8 * 1024
FORM_TYPE = "application/x-www-form-urlencoded"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:;"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}

Identify = Callable[[web.Request], Awaitable[Caller]]
ReadBody = Callable[[web.Request, int], Awaitable[bytes]]
Page = Callable[[web.Request, Looking], Awaitable[str]]
Act = Callable[[web.Request, Caller, dict[str, str]], Awaitable[str]]


class Console:
    """The pages under `/`. Reading needs a token's session or the socket, acting its role and a form of ours."""

    def __init__(
        self,
        pages: Pages,
        operations: Operations,
        reporting: Reporting,
        sessions: Sessions,
        identify: Identify,
        read_body: ReadBody,
    ) -> None:
        self._pages = pages
        self._operations = operations
        self._reporting = reporting
        self._sessions = sessions
        self._identify = identify
        self._read_body = read_body
        self._live: Counter[str] = Counter()
        self._closing = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        """Method, path and answer of every page and form."""
        pages = self._pages
        return [
            web.get("/console/console.css", _file("console.css", "text/css")),
            web.get("/console/live.js", _file("live.js", "text/javascript")),
            web.get("/login", self._show_login),
            web.post("/login", self._sign_in),
            web.post("/logout", self._sign_out),
            web.get("/", self._shown(lambda _, looking: pages.overview(looking))),
            web.get("/runs", self._shown(lambda _, looking: pages.runs(looking))),
            web.get("/decisions", self._shown(lambda _, looking: pages.decisions(looking))),
            web.get("/deliveries", self._shown(lambda _, looking: pages.deliveries(looking))),
            web.get("/targets/{id}", self._shown(lambda r, looking: pages.target(looking, _id(r)))),
            web.get("/decisions/{id}", self._shown(lambda r, looking: pages.decision(looking, _id(r)))),
            web.get("/deployments/{id}", self._shown(lambda r, looking: pages.deployment(looking, _id(r)))),
            web.get("/runs/{id}", self._shown(lambda r, looking: pages.run(looking, _id(r)))),
            web.get("/runs/{id}/report", self._report),
            _stream_at("/live", self._kept_fresh(lambda _, looking: pages.overview(looking))),
            _stream_at("/runs/{id}/live", self._kept_fresh(lambda r, looking: pages.run(looking, _id(r)))),
            _stream_at(
                "/deployments/{id}/live",
                self._kept_fresh(lambda r, looking: pages.deployment(looking, _id(r))),
            ),
            web.post("/runs/{id}/approve", self._acted(Role.APPROVE, self._approve)),
            web.post("/runs/{id}/deny", self._acted(Role.APPROVE, self._deny)),
            web.post("/runs/{id}/resume", self._acted(Role.OPERATE, self._resume)),
            web.post("/runs/{id}/abandon", self._acted(Role.OPERATE, self._abandon)),
            web.post("/pause", self._acted(Role.OPERATE, self._pause)),
            web.post("/unpause", self._acted(Role.OPERATE, self._unpause)),
        ]

    def close(self) -> None:
        """End the live pages, so that a stop needn't wait for their viewers."""
        self._closing.set()

    # -- signing in ----------------------------------------------------------------------------------------------------

    async def _show_login(self, request: web.Request) -> web.Response:
        return _page(_login(request.query.get("next", "/")))

    async def _sign_in(self, request: web.Request) -> web.Response:
        try:
            _require_ours(request)
            form = await self._form(request)
            onward = _inside(form.get("next", "/"))
            secret = await self._sessions.begin(form.get("token", "").strip())
        except RollbackdError as error:
            return _failed(error, back="/login")
        if secret is None:
            return _page(_login(onward, "The token isn't known, or was revoked."), 401)
        self._sessions.end(request.cookies.get(SESSION_COOKIE, ""))
        answer = _see(onward)
        secure = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
        answer.set_cookie(SESSION_COOKIE, secret, path="/", httponly=True, samesite="Strict", secure=secure)
        return answer

    async def _sign_out(self, request: web.Request) -> web.Response:
        try:
            _require_ours(request)
        except RollbackdError as error:
            return _failed(error)
        self._sessions.end(request.cookies.get(SESSION_COOKIE, ""))
        answer = _see("/login")
        answer.del_cookie(SESSION_COOKIE, path="/")
        return answer

    async def _looking(self, request: web.Request) -> Looking:
        """Who looks; raises UnidentifiedError as `identify` does."""
        session = request.cookies.get(SESSION_COOKIE, "")
        signed_in = await self._sessions.caller(session) if session else None
        caller = signed_in or await self._identify(request)
        return Looking(caller=caller, form_key=self._sessions.form_key(session if signed_in else caller.name))

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _shown(self, page: Page) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def shown(request: web.Request) -> web.StreamResponse:
            try:
                looking = await self._looking(request)
            except UnidentifiedError as error:
                if error.status == 401:
                    return _see(f"/login?next={quote(request.path_qs, safe='')}")
                return _page(_error("Refused", str(error), "/"), error.status)
            except RollbackdError as error:
                return _failed(error)
            try:
                return _page(await page(request, looking))
            except RollbackdError as error:
                return _failed(error, looking)

        return shown

    async def _report(self, request: web.Request) -> web.StreamResponse:
        async def page(request: web.Request, looking: Looking) -> str:
            return await self._reporting.page(_id(request))

        answer = await self._shown(page)(request)
        if answer.status == 200:
            answer.headers["Content-Security-Policy"] = PAGE_POLICY
        return answer

    # -- live pages ----------------------------------------------------------------------------------------------------

    def _kept_fresh(self, page: Page) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """The page's parts as server-sent events: all at first, then whichever has changed."""

        async def fresh(request: web.Request) -> web.StreamResponse:
            try:
                looking = await self._looking(request)
            except RollbackdError as error:
                return web.Response(status=getattr(error, "status", 503), text=str(error))
            viewer = looking.caller.name
            too_many = self._live[viewer] >= MOST_LIVE_OF_ONE or self._live.total() >= MOST_LIVE
            if too_many or self._closing.is_set():
                return web.Response(
                    status=503, text="too many live pages are open", headers={"Retry-After": "30"}
                )
            answer = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
            self._live[viewer] += 1
            try:
                await answer.prepare(request)
                await self._stream(request, answer, page, looking)
            except ConnectionResetError:
                pass  # the viewer left
            finally:
                self._live[viewer] -= 1
                self._live += Counter()  # drops whoever has none left
            return answer

        return fresh

    async def _stream(
        self, request: web.Request, answer: web.StreamResponse, page: Page, looking: Looking
    ) -> None:
        shown: dict[str, str] = {}
        loop = asyncio.get_running_loop()
        identify_at = loop.time() + IDENTIFY_EVERY_S
        # A viewer that left has no transport any more.
        while request.transport is not None and not self._closing.is_set():
            if loop.time() >= identify_at:
                identify_at = loop.time() + IDENTIFY_EVERY_S
                try:
                    looking = await self._looking(request)
                except RollbackdError:
                    break
                # How a viewer that went without a word is found.
                await answer.write(b": still here\n\n")
            try:
                parts = dict(PART.findall(await page(request, looking)))
            except RollbackdError:
                break
            changed = "\n".join(text for name, text in parts.items() if shown.get(name) != text)
            if changed:
                shown = parts
                lines = "".join(f"data: {line}\n" for line in changed.splitlines())
                await answer.write(f"event: parts\n{lines}\n".encode())
            try:
                async with asyncio.timeout(max(LOOK_EVERY_S, self._live.total() / LOOKS_A_SECOND)):
                    await self._closing.wait()
            except TimeoutError:
                pass

    # -- acting --------------------------------------------------------------------------------------------------------

    def _acted(self, role: Role, act: Act) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def acted(request: web.Request) -> web.StreamResponse:
            looking: Looking | None = None
            try:
                looking = await self._looking(request)
                _require_ours(request)
                form = await self._form(request)
                if not hmac.compare_digest(form.get("form_key", "").encode(), looking.form_key.encode()):
                    raise UnidentifiedError(403, "the form is too old: load the page again")
                if not looking.caller.may(role):
                    raise UnidentifiedError(403, f"{looking.caller.name} lacks the role {role}")
                return _see(await act(request, looking.caller, form))
            except RollbackdError as error:
                return _failed(error, looking, back=_back(request))

        return acted

    async def _form(self, request: web.Request) -> dict[str, str]:
        if request.content_type != FORM_TYPE:
            raise DeliveryRefusedError(415, "malformed", f"a form is sent as {FORM_TYPE}")
        body = await self._read_body(request, LONGEST_FORM_BYTES)
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))

    async def _approve(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        plan = form.get("plan_sha256", "")
        if not plan:
            raise RefusedError("an approval from here is bound to the plan that was shown")
        run = await self._operations.approve(
            _id(request), caller.name, plan_sha256=plan, reason=form.get("reason", "")
        )
        return f"/runs/{run.id}"

    async def _deny(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        run = await self._operations.deny(_id(request), caller.name, reason=form.get("reason", ""))
        return f"/runs/{run.id}"

    async def _resume(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        return f"/runs/{(await self._operations.resume(_id(request), caller.name)).id}"

    async def _abandon(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        run = await self._operations.abandon(_id(request), caller.name, reason=form.get("reason", ""))
        return f"/runs/{run.id}"

    async def _pause(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        await self._operations.pause(form.get("target", ""), caller.name, form.get("reason", ""), None)
        return "/"

    async def _unpause(self, request: web.Request, caller: Caller, form: dict[str, str]) -> str:
        await self._operations.unpause(form.get("target", ""), caller.name)
        return "/"


def _id(request: web.Request) -> str:
    return request.match_info["id"]


def _inside(path: str) -> str:
    """A path of ours; whatever leads elsewhere is the first page."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_ours else "/"


def _back(request: web.Request) -> str:
    """The page that a form was on."""
    try:
        return _inside(urlsplit(request.headers.get("Referer", "/")).path)
    except ValueError:
        return "/"


def _require_ours(request: web.Request) -> None:
    """Refuse a form that wasn't sent by a page of ours. Browsers say so themselves."""
    if sent_from_elsewhere(request.headers, request.host):
        raise UnidentifiedError(403, "the form was sent by a page of another site")


def _stream_at(path: str, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.RouteDef:
    """A stream; HEAD would hold one open that says nothing."""
    return web.get(path, answer, allow_head=False)


def _login(onward: str, problem: str = "") -> str:
    return render("login.html", caller=None, form_key="", next=_inside(onward), problem=problem)


def _error(heading: str, problem: str, back: str, looking: Looking | None = None) -> str:
    return render(
        "error.html",
        caller=looking.caller if looking else None,
        form_key=looking.form_key if looking else "",
        heading=heading,
        problem=problem,
        back=back,
    )


def _failed(error: RollbackdError, looking: Looking | None = None, back: str = "/") -> web.Response:
    status = status_of(error)
    heading = {404: "Not found", 503: "Not now"}.get(status, "Refused")
    return _page(_error(heading, str(error), back, looking), status)


def _page(html: str, status: int = 200) -> web.Response:
    headers = {**HEADERS, "Content-Security-Policy": POLICY}
    return web.Response(text=html, status=status, content_type="text/html", charset="utf-8", headers=headers)


def _see(path: str) -> web.Response:
    return web.Response(status=303, headers={**HEADERS, "Location": path})


def _file(name: str, content_type: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def served(request: web.Request) -> web.Response:
        headers = {"Cache-Control": "max-age=300", "X-Content-Type-Options": "nosniff"}
        return web.Response(
            text=static_file(name), content_type=content_type, charset="utf-8", headers=headers
        )

    return served
