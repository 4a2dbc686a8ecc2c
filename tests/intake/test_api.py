"""The API: who may do what, what an odd request gets, and that reading changes nothing."""

import asyncio
import getpass
import hmac
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.intake.conftest import MakeHouse
from tests.intake.house import BEARER, EVENT, GITHUB, KEY, House, build
from tests.workflow.rig import Rig, a_target, open_store

from rollbackd.app.logs import set_up_logs
from rollbackd.core.run import RunState
from rollbackd.errors import RefusedError
from rollbackd.intake import authentication
from rollbackd.settings import Logging
from rollbackd.workflow import callers
from rollbackd.workflow.callers import create_token

READERS = frozenset({"reader", "operator", "approver"})
# Method, path, body, and who may: everybody else gets 403, and without a token 401.
ROUTES: list[tuple[str, str, object, frozenset[str]]] = [
    ("GET", "/targets", None, READERS),
    ("GET", "/deployments", None, READERS),
    ("GET", "/deployments/none", None, READERS),
    ("GET", "/decisions", None, READERS),
    ("GET", "/deliveries", None, READERS),
    ("GET", "/runs", None, READERS),
    ("GET", "/runs/none", None, READERS),
    ("GET", "/runs/none/report", None, READERS),
    ("GET", "/targets/shop/archives", None, READERS),
    ("POST", "/targets/shop/plan", {"to": "-1"}, READERS),
    ("POST", "/targets/shop/rehearse", {"to": "-1"}, frozenset({"operator"})),
    ("POST", "/targets/nosuch/gate", {}, frozenset({"operator"})),
    ("POST", "/rollbacks", {"target": "nosuch", "to": "-1", "reason": "x"}, frozenset({"operator"})),
    ("POST", "/runs/none/approve", {}, frozenset({"approver"})),
    ("POST", "/runs/none/deny", {}, frozenset({"approver"})),
    ("POST", "/runs/none/resume", {}, frozenset({"operator"})),
    ("POST", "/runs/none/abandon", {}, frozenset({"operator"})),
    ("POST", "/runs/none/restore", {"dry_run": True}, frozenset({"operator"})),
    ("POST", "/pause", {"reason": "x"}, frozenset({"operator"})),
    ("POST", "/unpause", {}, frozenset({"operator"})),
    ("POST", "/backups/prune", {}, frozenset({"operator"})),
    ("POST", "/archives/prune", {}, frozenset({"operator"})),
    ("POST", "/reload", {}, frozenset()),
    ("POST", "/tokens", {"name": "made", "roles": ["operate"]}, frozenset()),
    ("POST", "/tokens/reader/revoke", {}, frozenset()),
]


async def test_the_table_of_routes_is_complete(house: House) -> None:
    served = {
        (method, path.removeprefix("/api/v1"))
        for method, path in house.server._routes
        if path.startswith("/api/v1") and method != "HEAD"
    }
    named = {"none": "{id}", "shop": "{name}", "nosuch": "{name}", "reader": "{name}"}
    listed = {
        (method, "/".join(named.get(part, part) for part in path.split("/"))) for method, path, _, _ in ROUTES
    }
    assert listed == served


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"), ROUTES, ids=[f"{method} {path}" for method, path, _, _ in ROUTES]
)
async def test_every_route_asks_for_its_role(
    house: House, method: str, path: str, body: object, allowed: frozenset[str]
) -> None:
    assert (await house.api(method, path, "", body))[0] == 401
    assert (await house.api(method, path, "rbd_made_up", body))[0] == 401
    for name, token in house.tokens.items():
        status, _, text = await house.api(method, path, token, body)
        assert (status not in (401, 403)) == (name in allowed), (name, text)
        assert status < 500, text


async def test_a_refusal_for_want_of_a_role_names_it_and_changes_nothing(house: House) -> None:
    before = house.everything()
    status, document, _ = await house.api("POST", "/pause", house.tokens["reader"], {"reason": "x"})
    assert (status, document["error"]) == (403, "reader lacks the role operate")
    assert house.everything() == before


async def test_a_revoked_token_is_unknown_from_then_on(house: House) -> None:
    token = house.tokens["operator"]
    assert (await house.api("GET", "/targets", token))[0] == 200
    async with house.local.post("http://rollbackd/api/v1/tokens/operator/revoke") as answer:
        assert answer.status == 200
    assert (await house.api("GET", "/targets", token))[0] == 401


async def test_the_local_socket_knows_its_user_from_the_kernel_and_tokens_are_made_there_alone(
    house: House,
) -> None:
    async with house.local.post(
        "http://rollbackd/api/v1/tokens", json={"name": "new", "roles": ["operate"]}
    ) as answer:
        token = (await answer.json())["token"]
    async with house.local.post("http://rollbackd/api/v1/pause", json={"reason": "a fair"}) as answer:
        assert (await answer.json())["who"] == f"local:{getpass.getuser()}"
    status, document, _ = await house.api("POST", "/tokens", token, {"name": "x", "roles": ["approve"]})
    assert status == 403
    assert "own machine" in document["error"]
    assert (house.folder / "store" / "rollbackd.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["local:root", "hook:cd", "rollbackd", "", "a b", "a\nb", "x" * 70, "-x"])
async def test_a_token_cannot_take_the_name_of_somebody_else(house: House, name: str) -> None:
    with pytest.raises(RefusedError):
        await create_token(house.store, name, ("operate",), house.rig.clock.now())


async def test_a_token_whose_name_looks_local_is_not_local(house: House) -> None:
    caller = callers.Caller(name="local:root", roles=frozenset(callers.Role))
    assert not caller.is_local


async def test_only_a_digest_of_a_token_is_kept(house: House) -> None:
    kept = b"".join(row[0] for row in house.rows("SELECT body FROM token"))
    assert all(token.encode() not in kept for token in house.tokens.values())


async def test_reading_changes_nothing(house: House) -> None:
    await house.native()
    await house.rig.start()
    house.rig.world.upgrade()
    run = await house.rig.operations.roll_back("shop", to="-1", reason="bad", requested_by="ann", release="1")
    assert (await house.rig.ended_run()).state is RunState.SUCCEEDED
    await house.rig.stop()
    before = house.everything()
    for method in ("GET", "HEAD"):
        for path in (
            "targets",
            "deployments",
            "decisions",
            "deliveries",
            "runs",
            f"runs/{run.id}",
            f"runs/{run.id}/report",
            "targets/shop/archives",
            f"targets/shop/archives?run={run.id}",
        ):
            assert (await house.api(method, f"/{path}", house.tokens["reader"]))[0] == 200, path
        for path in ("livez", "readyz", "metrics", "openapi.json"):
            async with house.session.request(method, f"{house.url}/{path}") as answer:
                assert answer.status == 200
    assert house.everything() == before


async def test_what_a_run_archived_is_brought_back_by_whoever_operates_and_named_in_the_answer(
    house: House,
) -> None:
    await house.rig.start()
    house.rig.world.upgrade()
    run = await house.rig.operations.roll_back("shop", to="-1", reason="bad", requested_by="ann", release="1")
    await house.rig.ended_run()
    token, path = house.tokens["operator"], f"/runs/{run.id}/restore"
    status, tried, _ = await house.api("POST", path, token, {"dry_run": True})
    assert (status, tried["dry_run"], tried["restored"]) == (200, True, 3)
    assert tried["entries"][0]["text"] == "public.b (table): 3 of 3 restored"
    assert tried["statements"]
    assert house.rig.world.restored == []
    # Without a word about it, it is done.
    status, done, _ = await house.api("POST", path, token)
    assert (status, done["dry_run"], house.rig.world.restored) == (200, False, [run.id])
    status, document, _ = await house.api("GET", f"/targets/shop/archives?run={run.id}", token)
    (kept,) = document["items"]
    assert (kept["place"], kept["rows"], bool(kept["restored_at"])) == ("rollbackd_archive.a1", 3, True)
    status, document, _ = await house.api("GET", "/targets/shop/archives?run=other", token)
    assert document["items"] == []
    status, document, _ = await house.api("POST", "/runs/nosuch/restore", token)
    assert (status, document["error"]) == (404, "there is no run nosuch; 'rollbackd history' lists them")


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        ("/pause", {"reason": "x", "colour": "red"}, "unknown field `colour`"),
        ("/pause", {"reason": "x", "for_s": 0}, "$.for_s: Expected `float` > 0"),
        ("/pause", {"reason": "x", "for_s": -1}, "$.for_s: Expected `float` > 0"),
        ("/pause", {"reason": "x", "for_s": 1e300}, "$.for_s: Expected `float` <="),
        ("/pause", {"reason": 5}, "$.reason: Expected `str`, got `int`"),
        ("/pause", ["reason"], "$: Expected `object`, got `array`"),
        ("/rollbacks", {"target": "shop"}, "required field `to`"),
        ("/runs/none/restore", {"dry_run": "no"}, "$.dry_run: Expected `bool`, got `str`"),
        ("/runs/none/restore", {"dryrun": True}, "unknown field `dryrun`"),
        ("/runs/none/resume", {"stamp": 1}, "$.stamp: Expected `bool`, got `int`"),
        ("/targets/shop/rehearse", {"depth": "deep"}, "Invalid enum value 'deep'"),
        ("/targets/shop/gate", {"version": None}, "$.version: Expected `str`, got `null`"),
    ],
)
async def test_a_body_of_the_wrong_shape_is_refused_with_the_path(
    house: House, path: str, body: object, fault: str
) -> None:
    before = house.everything()
    status, document, _ = await house.api("POST", path, house.tokens["operator"], body)
    assert status == 400
    assert fault in document["error"]
    assert house.everything() == before


@pytest.mark.parametrize(
    "body",
    [
        b'{"reason": "x", "for_s": NaN}', b'{"reason": "x", "for_s": 1e999}', b'{"reason": "a", "reason": "b"}', b"{",
        b"[" * 9_000, b'{"reason": "\\ud800"}', b"\xff", b'{"reason": ' + b"9" * 5_000 + b"}",
    ],
)  # fmt: skip
async def test_a_body_that_is_no_strict_json_is_refused(house: House, body: bytes) -> None:
    headers = {"Authorization": f"Bearer {house.tokens['operator']}"}
    async with house.session.post(f"{house.url}/api/v1/pause", data=body, headers=headers) as answer:
        assert answer.status == 400, await answer.text()
    assert house.count("pause") == 0


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nosuch", "/runs/%00", "/runs/%2e%2e%2fetc", "/runs/%ff", "/runs/'; DROP TABLE run; --", "/runs/" + "x" * 5_000,
        "/runs/nosuch/report",
    ],
)  # fmt: skip
async def test_an_unknown_run_is_404(house: House, path: str) -> None:
    status, _, text = await house.api("GET", path, house.tokens["reader"])
    assert status == 404, text


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "", "1e2", "9" * 5_000, "٣٣٣٣٣"])
async def test_a_limit_out_of_bounds_is_refused(house: House, limit: str) -> None:
    status, document, _ = await house.api("GET", f"/runs?limit={limit}", house.tokens["reader"])
    assert (status, document["error"]) == (400, "limit must be a number from 1 to 500")


@pytest.mark.parametrize("to", ["x; rm -rf /", "--sql", "-0", "-99", "nosuch", "a@b", ",", "\n", "b"])
async def test_a_revision_that_is_none_is_refused_in_a_sentence_and_never_reaches_the_worker(
    house: House, to: str
) -> None:
    house.rig.world.upgrade()
    body = {"target": "shop", "to": to, "reason": "x"}
    status, document, _ = await house.api("POST", "/rollbacks", house.tokens["operator"], body)
    assert status == 409
    assert document["error"]
    assert house.count("run") == 0
    assert "downgrade" not in house.rig.world.calls


async def test_who_asked_cannot_approve_and_an_approval_is_for_the_plan_that_was_seen(
    tmp_path: Path, make_house: MakeHouse
) -> None:
    rig = Rig(await open_store(tmp_path), (a_target(approval_required=True),))
    rig.world.upgrade()
    from rollbackd.intake.connections import Deadlines

    house = await build(rig, tmp_path, Deadlines())
    try:
        both = await create_token(rig.store, "both", ("operate", "approve"), rig.clock.now())
        body = {"target": "shop", "to": "-1", "reason": "it is bad", "release": "1"}
        status, run, _ = await house.api("POST", "/rollbacks", both, body)
        assert (status, run["state"]) == (200, "awaiting_approval")
        approve = f"/runs/{run['id']}/approve"
        status, document, _ = await house.api("POST", approve, both, {})
        assert status == 409
        assert "somebody else has to approve" in document["error"]
        status, document, _ = await house.api(
            "POST", approve, house.tokens["approver"], {"plan_sha256": "0" * 64}
        )
        assert status == 409
        assert "another plan" in document["error"]
        rig.clock.advance(5 * 3600)
        status, document, _ = await house.api("POST", approve, house.tokens["approver"], {})
        assert status == 409
        assert "ended at" in document["error"]
        known = await rig.store.run(run["id"])
        assert known is not None
        assert known.state is RunState.EXPIRED
        assert house.count("approval") == 0
    finally:
        await house.session.close()
        await house.local.close()
        await house.server.stop()
        await rig.stop()
        await rig.store.close()


async def test_no_cookie_identifies_anybody_so_a_browser_cannot_be_made_to_ask(house: House) -> None:
    headers = {"Cookie": f"token={house.tokens['operator']}", "Origin": "https://evil.example"}
    async with house.session.post(
        f"{house.url}/api/v1/pause", json={"reason": "x"}, headers=headers
    ) as answer:
        assert answer.status == 401
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Set-Cookie" not in answer.headers


async def test_every_secret_is_compared_in_constant_time(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[object, object]] = []
    real = hmac.compare_digest

    def counting(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return real(a, b)

    for module in (authentication, callers):
        monkeypatch.setattr(module.hmac, "compare_digest", counting)
    await house.native()
    assert len(compared) == 2, "all configured keys, even after one that fits"
    compared.clear()
    await house.post("alertmanager", b"{}", {"Authorization": "Bearer x"})
    await house.github({}, "ping")
    await house.api("GET", "/targets", "rbd_unknown")
    assert len(compared) == 2 + len(house.tokens)
    assert all(len(a) == len(b) for a, b in compared)  # type: ignore[arg-type]


async def test_an_unknown_token_takes_as_long_as_one_that_was_revoked(house: House) -> None:
    async with house.local.post("http://rollbackd/api/v1/tokens/operator/revoke"):
        pass
    taken: dict[str, list[float]] = {"rbd_unknown": [], house.tokens["operator"]: []}
    for _ in range(60):
        for token, times in taken.items():
            began = time.perf_counter()
            await house.api("GET", "/targets", token)
            times.append(time.perf_counter() - began)
    one, other = (statistics.median(times) for times in taken.values())
    assert max(one, other) < 3 * min(one, other), "both go through every known token"


@pytest.mark.parametrize("form", ["json", "console"])
async def test_no_secret_and_no_forged_line_reaches_the_log(
    house: House, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configured, handlers = structlog.get_config(), list(logging.root.handlers)
    try:
        set_up_logs(Logging(format=form, level="debug"))  # type: ignore[arg-type]
        structlog.configure(**{**structlog.get_config(), "cache_logger_on_first_use": False})
        forged = "x\n2026-11-22 [info] run_ended state=succeeded\x1b[2J"
        body = json.dumps(
            {**EVENT, "version": forged, "reason": f"postgresql://u:{GITHUB}@h/db password={GITHUB}"}
        ).encode()
        await house.post("rollbackd", body, house.signed(body))
        await house.post("github", body, {"X-Hub-Signature-256": f"sha256={GITHUB}"})
        await house.post("alertmanager", b"{", {"Authorization": f"Bearer {BEARER}"})
        await house.api("POST", "/pause", house.tokens["operator"], {"reason": forged})
        await house.api("POST", f"/runs/{house.tokens['reader']}/approve", house.tokens["approver"], {})
        await house.rig.start()
        await house.rig.until(lambda: "event_settled" in [name for name, _ in house.rig.told])
        structlog.get_logger().warning(
            "met", error=f"can't connect: postgresql://u:p@{GITHUB}@h/db", nested={"a": [f"Bearer {BEARER}"]}
        )
        await asyncio.sleep(0.1)
    finally:
        structlog.configure(**configured)
        logging.root.handlers[:] = handlers
    logged = capsys.readouterr().err
    assert "automation_paused" in logged
    assert "\x1b[2J" not in logged
    assert not [line for line in logged.splitlines() if line.startswith("2026-11-22 [info] run_ended")]
    for secret in (GITHUB, BEARER, KEY, KEY.removeprefix("whsec_"), *house.tokens.values()):
        assert secret not in logged
