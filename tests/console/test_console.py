"""The console's rules: who sees what, which forms count, what may lead where; and that looking changes nothing."""

import asyncio
import re
from collections.abc import AsyncIterator
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import pytest
from tests.intake.conftest import MakeHouse
from tests.intake.house import HURRIED, House

from rollbackd.console.routes import MOST_LIVE_OF_ONE, PART
from rollbackd.core.run import RunState
from rollbackd.workflow.callers import (
    MOST_SESSIONS,
    SESSION_COOKIE,
    create_token,
    is_local_host,
    revoke_token,
    sent_from_elsewhere,
)

FORMS = (
    "/runs/none/approve",
    "/runs/none/deny",
    "/runs/none/resume",
    "/runs/none/abandon",
    "/pause",
    "/unpause",
)
FORM = "application/x-www-form-urlencoded"
PAGES = ("/", "/runs", "/decisions", "/deliveries", "/targets/shop", "/live")


class Visitor:
    """A browser without a script."""

    def __init__(self, house: House, session: aiohttp.ClientSession, url: str = "") -> None:
        self.house = house
        self._session = session
        self._url = url or house.url
        self.cookie = ""

    async def go(self, method: str, path: str, form: Any = None, **headers: str) -> tuple[int, str, Any]:
        sent = {"Cookie": f"{SESSION_COOKIE}={self.cookie}"} if self.cookie else {}
        async with self._session.request(
            method, self._url + path, data=form, headers={**sent, **headers}, allow_redirects=False
        ) as answer:
            if path == "/live" and answer.status == 200:
                return 200, "", answer.headers
            if "Set-Cookie" in answer.headers:
                self.cookie = SimpleCookie(answer.headers["Set-Cookie"])[SESSION_COOKIE].value
            return answer.status, await answer.text(), answer.headers

    async def sign_in(self, name: str) -> Any:
        status, _, headers = await self.go(
            "POST", "/login", {"token": self.house.tokens[name], "next": "/runs"}
        )
        assert (status, headers["Location"]) == (303, "/runs")
        return headers

    async def form_key(self) -> str:
        found = re.search(r'name="form_key" value="(\w+)"', (await self.go("GET", "/"))[1])
        assert found
        return found[1]


@pytest.fixture
async def visitor(house: House) -> Visitor:
    return Visitor(house, house.session)


async def test_without_a_session_every_page_leads_to_the_sign_in_and_says_nothing(visitor: Visitor) -> None:
    for path in PAGES[:-1]:
        status, text, headers = await visitor.go("GET", path)
        assert (status, text) == (303, "")
        assert headers["Location"].startswith("/login?next=%2F")
    assert (await visitor.go("GET", "/live"))[0] == 401
    for path in FORMS:
        assert (await visitor.go("POST", path, {"reason": "x"}))[0] == 401
    assert (await visitor.go("POST", "/login", {"token": "rbd_made_up"}))[0] == 401


async def test_a_session_is_no_token_is_out_of_a_scripts_reach_and_ends_with_its_token(
    visitor: Visitor,
) -> None:
    headers = await visitor.sign_in("reader")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(headers["Set-Cookie"].split("; "))
    assert visitor.house.tokens["reader"] not in visitor.cookie
    for path in PAGES:
        status, _, headers = await visitor.go("GET", path)
        assert status == 200, path
        assert headers["Cache-Control"] == "no-store"
    assert (await visitor.go("GET", "/api/v1/targets"))[0] == 200, (
        "reading is enough of the API for a browser"
    )
    assert (await visitor.go("POST", "/api/v1/targets/shop/plan"))[0] == 401, (
        "what it can be made to send isn't"
    )
    await revoke_token(visitor.house.store, "reader", visitor.house.rig.clock.now())
    assert (await visitor.go("GET", "/"))[0] == 303


async def test_a_session_ends_by_itself_and_by_signing_out(visitor: Visitor) -> None:
    await visitor.sign_in("reader")
    kept = visitor.cookie
    await visitor.go("POST", "/logout", {})
    visitor.cookie = kept
    assert (await visitor.go("GET", "/"))[0] == 303
    await visitor.sign_in("reader")
    visitor.house.rig.clock.advance(12 * 3600 + 1)
    assert (await visitor.go("GET", "/"))[0] == 303


async def test_a_form_counts_only_from_a_page_of_ours_and_with_the_role(visitor: Visitor) -> None:
    """Without its key, with another's, from another site, or by somebody who may only read: nothing happens."""
    house = visitor.house
    reader, approver = Visitor(house, house.session), Visitor(house, house.session)
    await visitor.sign_in("operator")
    await reader.sign_in("reader")
    await approver.sign_in("approver")
    before = house.everything()
    key = await visitor.form_key()
    asked = {"target": "*", "reason": "x"}
    assert (await visitor.go("POST", "/pause", asked))[0] == 403
    assert (await visitor.go("POST", "/pause", {**asked, "form_key": await reader.form_key()}))[0] == 403
    whole = {**asked, "form_key": key}
    for headers in (
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
    ):  # fmt: skip
        assert (await visitor.go("POST", "/pause", whole, **headers))[0] == 403
    for one, path in ((reader, "/pause"), (approver, "/unpause"), (visitor, "/runs/none/approve")):
        status, text, _ = await one.go("POST", path, {**asked, "form_key": await one.form_key()})
        assert (status, "lacks the role" in text) == (403, True)
    assert (await visitor.go("POST", "/pause", {**whole, "reason": "x" * 9000}))[0] == 413
    assert house.everything() == before
    status, _, headers = await visitor.go("POST", "/pause", whole, Origin=house.url)
    assert (status, headers["Location"]) == (303, "/")
    (pause,) = await house.store.pauses()
    assert (pause.who, pause.why) == ("operator", "x")


async def test_looking_changes_nothing_and_what_isnt_there_is_said(visitor: Visitor) -> None:
    await visitor.sign_in("operator")
    before = visitor.house.everything()
    for path in PAGES:
        await visitor.go("GET", path)
    for path in ("/runs/none", "/runs/none/report", "/decisions/none", "/deployments/none", "/targets/none"):
        status, text, _ = await visitor.go("GET", path)
        assert status == 404
        assert "there is no " in text
    assert visitor.house.everything() == before


async def test_what_others_wrote_is_never_markup_and_no_foreign_script_would_run(visitor: Visitor) -> None:
    house, evil = visitor.house, "<script>alert('x')</script>"
    await house.rig.start()
    await house.native(
        {
            "kind": "deploy.started",
            "service": "shop",
            "environment": "staging",
            "deployment": evil,
            "version": evil,
        }
    )
    deployment = await house.rig.until(house.rig.watched)
    await house.native(
        {"kind": "signal.firing", "service": "shop", "environment": "staging", "name": evil, "category": "bug", "reason": evil},
        delivery="msg_2",
    )  # fmt: skip
    await house.rig.until(lambda: house.count("signal"))
    await visitor.sign_in("reader")
    for path in ("/", f"/deployments/{deployment.id}", "/targets/shop"):
        _, text, headers = await visitor.go("GET", path)
        assert "&lt;script&gt;" in text
        assert "<script>" not in text
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (None, {}, 415),
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, 415),
        (b"token=\xff", {"Content-Type": FORM}, 401),
        (b"token=x", {"Content-Type": f"{FORM}; charset=none"}, 401),
        (b"token=x", {"Content-Type": FORM, "Content-Encoding": "gzip"}, 415),
        (b"token=x", {"Content-Type": FORM, "Origin": "http://["}, 403),
        (b"token=" + b"x" * 9000, {"Content-Type": FORM}, 413),
    ],
)
async def test_whatever_a_stranger_sends_to_the_sign_in_gets_an_answer(
    visitor: Visitor, body: Any, headers: dict[str, str], status: int
) -> None:
    assert (await visitor.go("POST", "/login", body, **headers))[0] == status


async def test_a_form_is_bounded_though_it_doesnt_say_its_length_and_whoever_sends_none_is_cut(
    make_house: MakeHouse,
) -> None:
    house = await make_house(HURRIED)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 1000

    stranger = Visitor(house, house.session)
    assert (await stranger.go("POST", "/login", pieces(), **{"Content-Type": FORM}))[0] == 413
    head = f"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 50\r\n\r\ntok"
    assert b"<still open>" not in await house.raw(head.encode())


async def test_a_form_from_a_page_whose_address_is_nonsense_is_refused_and_no_fault(visitor: Visitor) -> None:
    await visitor.sign_in("operator")
    assert (await visitor.go("POST", "/pause", {"form_key": "ü"}, Referer="http://["))[0] == 403


async def test_no_other_site_signs_anybody_out(visitor: Visitor) -> None:
    await visitor.sign_in("reader")
    kept = visitor.cookie
    status, _, headers = await visitor.go("POST", "/logout", {}, Origin="https://evil.example")
    assert (status, "Set-Cookie" in headers) == (403, False)
    visitor.cookie = kept
    assert (await visitor.go("GET", "/"))[0] == 200


async def test_signing_in_again_ends_the_browsers_session_before(visitor: Visitor) -> None:
    await visitor.sign_in("reader")
    before = visitor.cookie
    await visitor.sign_in("operator")
    visitor.cookie = before
    assert (await visitor.go("GET", "/"))[0] == 303


async def test_who_signs_in_often_signs_out_himself_alone(visitor: Visitor) -> None:
    house = visitor.house
    first, other = Visitor(house, house.session), Visitor(house, house.session)
    await other.sign_in("operator")
    await first.sign_in("reader")
    for _ in range(MOST_SESSIONS):
        await Visitor(house, house.session).sign_in("reader")
    assert (await first.go("GET", "/"))[0] == 303
    assert (await other.go("GET", "/"))[0] == 200


async def test_one_viewer_leaves_live_pages_for_the_others(house: House) -> None:
    greedy, other = Visitor(house, house.session), Visitor(house, house.session)
    await greedy.sign_in("reader")
    await other.sign_in("operator")
    headers = {"Cookie": f"{SESSION_COOKIE}={greedy.cookie}"}
    open_pages = [
        await house.session.get(f"{house.url}/live", headers=headers) for _ in range(MOST_LIVE_OF_ONE)
    ]
    try:
        assert (await greedy.go("GET", "/live"))[0] == 503
        assert (await other.go("GET", "/live"))[0] == 200
    finally:
        for answer in open_pages:
            answer.close()

    async def welcome() -> bool:
        return bool((await greedy.go("GET", "/live"))[0] == 200)

    await house.rig.until(welcome)
    assert (await greedy.go("HEAD", "/live"))[0] == 405, "it would hold a stream open that says nothing"


@pytest.mark.parametrize(
    ("headers", "elsewhere"),
    [
        ({}, False),
        ({"Origin": "http://here:1"}, False),
        ({"Origin": "http://there"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://["}, True),
        # A proxy that puts its own name into Host: what the browser says of the site counts.
        ({"Origin": "https://console.example", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Origin": "http://here:1", "Sec-Fetch-Site": "same-site"}, True),
    ],
)
def test_where_a_form_was_sent_from(headers: dict[str, str], elsewhere: bool) -> None:
    assert sent_from_elsewhere(headers, "here:1") is elsewhere


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost:8765", True), ("LocalHost", True), ("[::1]", True), ("[::1]:8765", True), ("rollbackd", True),
     ("evil.example", False), ("localhost.evil.example:80", False), ("[", False), ("", False)],
)  # fmt: skip
def test_which_names_are_this_machines(host: str, local: bool) -> None:
    assert is_local_host(host) is local


@pytest.mark.parametrize(
    "onward", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:x", "/a\nb"]
)
async def test_signing_in_leads_to_a_page_of_ours_alone(visitor: Visitor, onward: str) -> None:
    status, _, headers = await visitor.go(
        "POST", "/login", {"token": visitor.house.tokens["reader"], "next": onward}
    )
    assert (status, headers["Location"]) == (303, "/")


async def test_the_socket_shows_the_console_to_its_user_and_to_no_other_sites_name(house: House) -> None:
    """As through `ssh -L`: a page elsewhere whose name was pointed at this machine must not look in."""
    local = Visitor(house, house.local, "http://rollbackd")
    assert (await local.go("GET", "/"))[0] == 200
    assert (await local.go("GET", "/", Host="localhost:8765"))[0] == 200
    assert (await local.go("GET", "/", Host="evil.example:8765"))[0] == 403
    key = await local.form_key()
    assert (
        await local.go("POST", "/pause", {"target": "*", "reason": "x", "form_key": key}, Host="evil.example")
    )[0] == 403
    assert (await local.go("POST", "/pause", {"target": "*", "reason": "x"}))[0] == 403
    assert (await local.go("POST", "/pause", {"target": "*", "reason": "x", "form_key": key}))[0] == 303


async def test_no_page_of_another_site_makes_a_browser_use_the_api_through_the_socket(house: House) -> None:
    """A form can send text that happens to be JSON, to a port that `ssh -L` leads to the socket."""
    before = house.everything()
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
    ):
        async with house.local.post(
            "http://rollbackd/api/v1/pause", data=b'{"reason": "x"}', headers=headers
        ) as answer:
            assert answer.status == 403
    assert house.everything() == before


async def test_a_live_page_sends_itself_again_when_it_changed_and_ends_with_the_server(house: House) -> None:
    visitor = Visitor(house, house.session)
    await visitor.sign_in("reader")
    headers = {"Cookie": f"{SESSION_COOKIE}={visitor.cookie}"}
    async with house.session.get(f"{house.url}/live", headers=headers) as answer:
        assert answer.content_type == "text/event-stream"
        assert b"event: parts" in await answer.content.readuntil(b"\n\n")
        async with house.local.post(
            "http://rollbackd/api/v1/pause", json={"reason": "a freeze <now>"}
        ) as paused:
            assert paused.status == 200
        async with asyncio.timeout(10):
            assert b"a freeze &lt;now&gt;" in await answer.content.readuntil(b"\n\n")
        house.console.close()
        async with asyncio.timeout(10):
            assert await answer.content.read() == b"", "it ends; the page says so, and asks again"


async def test_an_approval_is_bound_to_the_plan_that_the_page_showed(make_house: MakeHouse) -> None:
    house = await make_house(policy={"approval_required": True})
    run = await waiting_run(house)
    visitor = Visitor(house, house.session)
    await visitor.sign_in("approver")
    _, text, _ = await visitor.go("GET", f"/runs/{run}")
    shown = re.findall(r'name="(form_key|plan_sha256)" value="(\w+)"', text)
    form = dict(shown)
    status, text, _ = await visitor.go("POST", f"/runs/{run}/approve", {**form, "plan_sha256": "0" * 64})
    assert (status, "plan" in text) == (409, True)
    assert (await visitor.go("POST", f"/runs/{run}/approve", {"form_key": form["form_key"]}))[0] == 409
    assert (await house.store.run(run)).state is RunState.AWAITING_APPROVAL  # type: ignore[union-attr]
    assert (await visitor.go("POST", f"/runs/{run}/approve", form))[0] == 303
    assert (await house.store.approvals(run))[0].actor == "approver"


async def test_who_asked_for_a_run_is_told_that_somebody_else_approves(make_house: MakeHouse) -> None:
    house = await make_house(policy={"approval_required": True})
    both = await create_token(house.store, "both", ("operate", "approve"), house.rig.clock.now())
    house.tokens["operator"] = both
    run = await waiting_run(house)
    for name, offered in (("operator", False), ("approver", True)):
        visitor = Visitor(house, house.session)
        await visitor.sign_in(name)
        _, text, _ = await visitor.go("GET", f"/runs/{run}")
        assert (">Approve<" in text, "somebody else has to approve" in text) == (offered, not offered)
        assert ">Deny<" in text


async def test_the_plan_on_a_run_s_page_is_live_as_its_proof_comes_later(make_house: MakeHouse) -> None:
    house = await make_house(policy={"approval_required": True})
    run = await waiting_run(house)
    visitor = Visitor(house, house.session)
    await visitor.sign_in("reader")
    _, text, _ = await visitor.go("GET", f"/runs/{run}")
    parts = dict(PART.findall(text))
    assert "no backup yet" in parts["plan"]
    assert all(f'data-part="{name}"' in part for name, part in parts.items())


async def waiting_run(house: House) -> str:
    await house.rig.start()
    status, document, text = await house.api(
        "POST", "/rollbacks", house.tokens["operator"], {"target": "shop", "to": "-1", "reason": "<i>bad</i>", "release": "1"}
    )  # fmt: skip
    assert status == 200, text
    assert document["state"] == "awaiting_approval"
    return str(document["id"])
