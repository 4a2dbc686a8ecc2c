"""Attacks on the door: what a stranger, a forger, a repeater or a flooder gets. None of them leaves an event behind."""

import asyncio
import gzip
import json
import logging

import pytest
from tests.intake.conftest import MakeHouse
from tests.intake.house import (
    BEARER,
    EVENT,
    HURRIED,
    KEY,
    MOST_BYTES,
    RETIRED,
    ROTATED,
    House,
    github_headers,
)

from rollbackd.core.records import Delivery
from rollbackd.errors import StoreUnavailableError
from rollbackd.intake.connections import Deadlines

BODY = json.dumps(EVENT).encode()
DEPLOYMENT = {
    "action": "created",
    "deployment": {"id": 7, "sha": "7d1c", "environment": "staging", "payload": {}, "created_at": "2026-11-22T10:00:00Z"},
    "deployment_status": {"state": "success", "environment": "staging", "created_at": "2026-11-22T10:00:00Z"},
    "repository": {"name": "shop"},
}  # fmt: skip
CREATED = {k: v for k, v in DEPLOYMENT.items() if k != "deployment_status"}


def assert_nothing_recorded(house: House) -> None:
    assert (house.count("delivery"), house.count("event")) == (0, 0)


# -- who is it? -----------------------------------------------------------------------------------------------------------


async def test_a_signed_event_is_recorded_before_it_is_answered(house: House) -> None:
    answer = await house.native()
    assert answer.status == 202
    assert house.rows("SELECT id FROM delivery") == [((await answer.json())["id"],)]
    assert house.count("event") == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"webhook-signature": ""}, "no_signature"),
        ({"webhook-id": ""}, "no_signature"),
        ({"webhook-timestamp": ""}, "no_signature"),
        ({"webhook-signature": "v1,AAAA"}, "wrong_signature"),
        ({"webhook-signature": "v1,not base64 ÿ v1 ,, v2,x v1,"}, "wrong_signature"),
        ({"webhook-signature": "v1a,AAAA"}, "wrong_signature"),
        ({"webhook-id": "msg_2"}, "wrong_signature"),
        ({"webhook-timestamp": "soon"}, "malformed_timestamp"),
        ({"webhook-timestamp": "-1"}, "malformed_timestamp"),
        ({"webhook-timestamp": "9" * 400}, "malformed_timestamp"),
        ({"webhook-timestamp": "1"}, "stale_timestamp"),
        ({"webhook-timestamp": "99999999999"}, "future_timestamp"),
    ],
)
async def test_a_signature_that_does_not_fit_is_refused_with_401_and_counted_by_its_reason(
    house: House, changed: dict[str, str], reason: str
) -> None:
    answer = await house.post("rollbackd", BODY, {**house.signed(BODY), **changed})
    assert answer.status == 401
    assert (await answer.json())["reason"] == reason
    assert house.counted("rollbackd_deliveries_refused_total", hook="rollbackd", reason=reason) == 1
    assert_nothing_recorded(house)


@pytest.mark.parametrize(("age_s", "status"), [(299, 202), (302, 401), (-299, 202), (-302, 401)])
async def test_a_signed_timestamp_counts_for_five_minutes_either_way(
    house: House, age_s: int, status: int
) -> None:
    assert (await house.native(age_s=age_s)).status == status


@pytest.mark.parametrize(("key", "status"), [(KEY, 202), (ROTATED, 202), (RETIRED, 401)])
async def test_while_keys_are_rotated_each_of_them_counts_and_a_retired_one_no_more(
    house: House, key: str, status: int
) -> None:
    assert (await house.native(key=key)).status == status


async def test_one_fitting_signature_among_malformed_ones_is_enough(house: House) -> None:
    headers = house.signed(BODY)
    headers["webhook-signature"] = f"v2,x v1,%% {headers['webhook-signature']} v1,AAAA"
    assert (await house.post("rollbackd", BODY, headers)).status == 202


async def test_the_signature_of_another_serialisation_of_the_same_document_does_not_count(
    house: House,
) -> None:
    headers = house.signed(BODY)
    assert (await house.post("rollbackd", json.dumps(EVENT, indent=1).encode(), headers)).status == 401
    assert_nothing_recorded(house)


@pytest.mark.parametrize("hook", ["rollbackd", "github", "alertmanager"])
async def test_a_body_that_is_no_text_is_authenticated_as_the_bytes_it_is_and_then_refused(
    house: House, hook: str
) -> None:
    body = b'{"kind": "\xff\xfe"}'
    headers = {
        "rollbackd": house.signed(body),
        "github": github_headers(body, "deployment"),
        "alertmanager": {"Authorization": f"Bearer {BEARER}"},
    }[hook]
    answer = await house.post(hook, body, headers)
    assert answer.status == 400
    assert "not UTF-8" in (await answer.json())["error"]


async def test_githubs_sha1_header_is_no_signature_even_when_it_fits(house: House) -> None:
    headers = github_headers(BODY, "deployment")
    headers["X-Hub-Signature"] = "sha1=" + "0" * 40
    del headers["X-Hub-Signature-256"]
    answer = await house.post("github", BODY, headers)
    assert (answer.status, (await answer.json())["reason"]) == (401, "no_signature")


@pytest.mark.parametrize(
    "signature", ["0" * 64, "sha1=" + "0" * 40, "SHA256=", "sha256=", "sha256=" + "0" * 64, "sha256=é"]
)
async def test_a_malformed_github_signature_is_refused(house: House, signature: str) -> None:
    headers = {**github_headers(BODY, "deployment"), "X-Hub-Signature-256": signature}
    assert (await house.post("github", BODY, headers)).status == 401


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Basic abc", f"Bearer {BEARER}x", "Bearer \u00e9", f"Token {BEARER}"],
)
async def test_a_wrong_bearer_token_is_refused(house: House, authorization: str) -> None:
    answer = await house.post("alertmanager", b"{}", {"Authorization": authorization})
    assert answer.status == 401
    assert_nothing_recorded(house)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /hooks/alertmanager HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n",
        b"POST /hooks/github HTTP/1.1\r\nHost: a\r\nX-Hub-Signature-256: sha256=\xff\r\n",
        b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nwebhook-id: \xff\r\nwebhook-timestamp: 1\r\nwebhook-signature: v1,\xff\r\n",
        b"GET /api/v1/targets HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\xfe\r\n",
    ],
)
async def test_header_bytes_that_are_no_text_are_a_wrong_key_and_not_a_fault_of_ours(
    house: House, head: bytes
) -> None:
    answer = await house.raw(head + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 401")


async def test_a_user_agent_that_is_no_text_does_not_stop_an_authentic_delivery(house: House) -> None:
    lines = [f"{k}: {v}" for k, v in house.signed(BODY).items()]
    head = "POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + "\r\n".join(lines)
    answer = await house.raw(
        head.encode() + b"\r\nUser-Agent: \xff\xfe\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    )
    assert answer.startswith(b"HTTP/1.1 202")


# -- the same again -------------------------------------------------------------------------------------------------------


async def test_the_same_delivery_again_gets_200_and_the_first_id_and_no_second_event(house: House) -> None:
    first, again = await house.native(), await house.native(age_s=-1)
    assert (first.status, again.status) == (202, 200)
    assert (await first.json())["id"] == (await again.json())["id"]
    assert (house.count("delivery"), house.count("event")) == (1, 1)


async def test_a_thousand_repeats_at_once_leave_one_row_and_one_event(house: House) -> None:
    turns = asyncio.Semaphore(100)

    async def once() -> int:
        async with turns:
            return (await house.native()).status

    statuses = await asyncio.gather(*(once() for _ in range(1_000)))
    assert sorted(set(statuses)) == [200, 202]
    assert statuses.count(202) == 1
    assert (house.count("delivery"), house.count("event")) == (1, 1)


async def test_a_signed_id_with_another_body_is_a_conflict_and_changes_nothing(house: House) -> None:
    await house.native()
    before = house.everything()
    answer = await house.native({**EVENT, "version": "6.6.6"})
    assert (answer.status, (await answer.json())["reason"]) == (409, "conflict")
    assert house.everything() == before


async def test_a_second_webhook_id_behind_the_signed_one_does_not_make_a_repeat_new(house: House) -> None:
    await house.native()
    headers = [*house.signed(BODY).items(), ("webhook-id", "msg_forged")]
    answer = await house.post("rollbackd", BODY, headers)
    assert answer.status == 200
    assert (house.count("delivery"), house.count("event")) == (1, 1)


async def test_a_github_body_under_another_unsigned_id_was_seen_before(house: House) -> None:
    assert (await house.github(CREATED)).status == 202
    assert (await house.github(CREATED, delivery="guid-2")).status == 200
    assert house.count("event") == 1


async def test_a_github_body_sent_again_as_another_event_means_nothing_new(house: House) -> None:
    assert (await house.github(DEPLOYMENT, "deployment_status")).status == 202
    await house.github(DEPLOYMENT, "deployment", delivery="guid-2")
    await house.github(DEPLOYMENT, "ping", delivery="guid-3")
    assert house.count("delivery") == 1
    assert house.count("event") == 1


async def test_a_deployment_cannot_be_hidden_by_sending_it_as_a_ping_first(house: House) -> None:
    answer = await house.github(CREATED, "ping")
    assert house.rows("SELECT ignored_because FROM delivery") != [("a ping",)]
    assert answer.status == 204


# -- what is it? ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "because"),
    [
        ({"zen": "Ship small.", "hook_id": 1, "repository": {"name": "shop"}}, "a ping"),
        ({**CREATED, "action": "deleted"}, "body.action is 'deleted', which means nothing here"),
        ({**CREATED, "action": "x\ny" * 400}, "body.action is 'x\\ny"),
        ({**CREATED, "action": [[1]]}, "body.action is list, which means nothing here"),
    ],
)
async def test_what_means_nothing_here_gets_204_and_is_recorded_with_the_reason(
    house: House, document: dict[str, object], because: str
) -> None:
    answer = await house.github(document, "ping" if "zen" in document else "deployment")
    assert answer.status == 204
    [(reason,)] = house.rows("SELECT ignored_because FROM delivery")
    assert reason.startswith(because)
    assert len(reason) <= 500
    assert house.count("event") == 0


async def test_an_event_that_no_hook_maps_is_recorded_with_that_reason(house: House) -> None:
    assert (await house.github({"action": "completed"}, "workflow_run")).status == 204
    assert house.rows("SELECT ignored_because FROM delivery") == [("nothing in the hook file maps it",)]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "$: not JSON"),
        (b"{", "$: not JSON"),
        (b"kind=deploy.started", "$: not JSON"),
        (b"[]", "$: Expected `object`, got `array`"),
        (b'"text"', "$: Expected `object`"),
        (b"null", "$: Expected `object`"),
        (b'{"kind": NaN}', "NaN is no JSON number"),
        (b'{"kind": -Infinity}', "-Infinity is no JSON number"),
        (b'{"kind": 1, "kind": 2}', "the key 'kind' stands twice"),
        (b'{"labels": {"a": "1", "a": "2"}}', "the key 'a' stands twice"),
        (b"[" * 5_000 + b"]" * 5_000, "nested too deep"),
        (b"[" * 300 + b"]" * 300, "nested deeper than 64"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "nested deeper than 64"),
        (b"[" + b"9" * 5_000 + b"]", "$: not JSON"),
        (b'{"kind": "deploy.started", "reason": "\\ud800"}', "half a character"),
        (b"\xef\xbb\xbf{}", "$: not JSON"),
        (json.dumps({**EVENT, "kind": "deploy.exploded"}).encode(), "$.kind: Invalid enum value"),
        (json.dumps({**EVENT, "servce": "shop"}).encode(), "unknown field `servce`"),
        (json.dumps({**EVENT, "version": 3}).encode(), "$.version: Expected `str`, got `int`"),
        (json.dumps({**EVENT, "labels": {"a": 1}}).encode(), "$.labels[...]: Expected `str`"),
        (json.dumps({**EVENT, "occurred_at": "yesterday"}).encode(), "$.occurred_at: Invalid RFC3339"),
        (json.dumps({**EVENT, "occurred_at": "2026-11-22T10:00:00"}).encode(), "$.occurred_at: 2026-11-22T10:00:00 has no time zone"),
        (json.dumps({**EVENT, "committed_at": "2026-11-22T10:00:00"}).encode(), "$.committed_at: 2026-11-22T10:00:00 has no time zone"),
        (json.dumps({"kind": "deploy.started", "service": "shop"}).encode(), "required field `environment`"),
        (json.dumps({**EVENT, "version": "", "deployment": ""}).encode(), "$.version: deploy.started can't do without version or deployment"),
        (json.dumps({"specversion": "1.0", "data": None}).encode(), "$.data: Expected `object`, got `null`"),
        (json.dumps({"specversion": "1.0", "data": {**EVENT, "version": 3}}).encode(), "$.data.version: Expected `str`"),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_meant_so_gets_400_with_the_path_of_the_fault(
    house: House, body: bytes, fault: str
) -> None:
    answer = await house.post("rollbackd", body, house.signed(body))
    assert answer.status == 400
    assert fault in (await answer.json())["error"]
    assert_nothing_recorded(house)


@pytest.mark.parametrize(
    "document",
    [
        {**CREATED, "deployment": {**CREATED["deployment"], "id": 1e400}},  # type: ignore[dict-item]
        {**CREATED, "deployment": {**CREATED["deployment"], "environment": 5}},  # type: ignore[dict-item]
        {"action": "created"},
        {"action": "created", "deployment": [], "repository": "x"},
    ],
)
async def test_a_github_payload_of_an_odd_shape_is_the_senders_fault_and_never_ours(
    house: House, document: object
) -> None:
    body = json.dumps(document).replace("Infinity", "1e400").encode()
    answer = await house.post("github", body, github_headers(body, "deployment"))
    assert answer.status in (202, 400)


async def test_a_fault_in_a_mapped_payload_names_the_expression_that_read_it(house: House) -> None:
    answer = await house.github({**CREATED, "repository": {"name": 5}})
    assert answer.status == 400
    assert "it is read from body.repository.name" in (await answer.json())["error"]


# -- how much, how fast? --------------------------------------------------------------------------------------------------


async def test_a_body_as_large_as_allowed_is_taken_and_one_byte_more_is_not(house: House) -> None:
    for size, status in ((MOST_BYTES, 202), (MOST_BYTES + 1, 413)):
        text = json.dumps({**EVENT, "reason": ""})
        body = json.dumps({**EVENT, "reason": "x" * (size - len(text))}).encode()
        answer = await house.post("rollbackd", body, house.signed(body, delivery=f"msg_{size}"))
        assert answer.status == status


async def test_a_length_that_is_too_large_is_refused_without_waiting_for_the_body(house: House) -> None:
    head = b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n"
    answer = await house.raw(head, wait_s=4)
    assert answer.startswith(b"HTTP/1.1 413")
    assert not answer.endswith(b"<still open>")


async def test_a_chunked_body_is_cut_where_it_grows_too_large(house: House) -> None:
    head = b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await house.raw(head, *[b"1000\r\n" + b"x" * 0x1000 + b"\r\n"] * 8, wait_s=4)
    assert answer.startswith(b"HTTP/1.1 413")
    assert_nothing_recorded(house)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
async def test_a_compressed_body_is_refused_and_never_inflated(house: House, encoding: str) -> None:
    bomb = gzip.compress(b"0" * 5_000_000)
    headers = {**house.signed(bomb), "Content-Encoding": encoding}
    answer = await house.post("rollbackd", bomb, headers)
    assert (answer.status, (await answer.json())["reason"]) == (415, "encoded")
    assert_nothing_recorded(house)


async def test_a_request_with_both_a_length_and_chunks_is_refused(house: House) -> None:
    smuggled = b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    head = b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await house.raw(head + smuggled, wait_s=3)
    assert answer.startswith(b"HTTP/1.0 400")
    assert b"rollbackd_" not in answer


@pytest.mark.parametrize(
    "head",
    [
        b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nX-Large: " + b"x" * 70_000 + b"\r\n\r\n",
        b"POST /hooks/" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxx",
        b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nx\r\n",
        b"\x16\x03\x01\x02\x00 this is TLS",
    ],
)
async def test_what_is_no_http_gets_400_and_the_connection_is_closed(house: House, head: bytes) -> None:
    answer = await house.raw(head, wait_s=4)
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"<reset>"))
    assert not answer.endswith(b"<still open>")
    assert (await house.native()).status == 202


async def test_a_client_that_sends_nothing_or_half_a_head_is_cut(make_house: MakeHouse) -> None:
    house = await make_house(HURRIED)
    for head in (b"", b"POST /hooks/rollbackd HTTP/1.1\r\nHost: a\r\nX-"):
        assert await house.raw(head, wait_s=4) in (b"", b"<reset>")


async def test_a_head_that_drips_byte_by_byte_is_cut_all_the_same(make_house: MakeHouse) -> None:
    house = await make_house(HURRIED)
    drops = [bytes([byte]) for byte in b"POST /hooks/rollbackd HTTP/1.1\r\nX-Slow: yes\r\n"]
    assert await house.raw(*drops, pause_s=0.05, wait_s=1) in (b"", b"<reset>")


async def test_half_a_head_after_an_answered_request_is_cut_as_well(make_house: MakeHouse) -> None:
    house = await make_house(HURRIED)
    answer = await house.raw(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /li", wait_s=4)
    assert answer.startswith(b"HTTP/1.1 200")
    assert not answer.endswith(b"<still open>")


@pytest.mark.parametrize("path", ["/hooks/rollbackd", "/api/v1/pause"])
async def test_a_slow_body_is_cut(make_house: MakeHouse, path: str) -> None:
    house = await make_house(HURRIED)
    token = house.tokens["operator"]
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n"
    answer = await house.raw(head.encode(), *[b"x"] * 12, pause_s=0.1, wait_s=1)
    assert not answer.endswith(b"<still open>")
    assert_nothing_recorded(house)


async def test_a_client_that_does_not_take_its_answers_is_cut(make_house: MakeHouse) -> None:
    house = await make_house(HURRIED)
    _reader, writer = await asyncio.open_connection("127.0.0.1", house.server.port, limit=1_024)

    async def ask_and_never_read() -> None:
        while True:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 50)
            await writer.drain()
            await asyncio.sleep(0.01)

    try:
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                await ask_and_never_read()
    finally:
        writer.close()
    assert (await house.native()).status == 202


async def test_a_flood_of_connections_is_bounded_and_leaves_the_local_socket_free(
    make_house: MakeHouse,
) -> None:
    house = await make_house(Deadlines(), max_connections=5)
    held = [await asyncio.open_connection("127.0.0.1", house.server.port) for _ in range(5)]
    try:
        await asyncio.sleep(0.1)
        assert await house.raw(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", wait_s=3) in (b"", b"<reset>")
        async with house.local.get("http://rollbackd/livez") as answer:
            assert answer.status == 200
    finally:
        for _, writer in held:
            writer.close()
    await asyncio.sleep(0.1)
    assert (await house.native()).status == 202


# -- the store ------------------------------------------------------------------------------------------------------------


async def test_a_store_that_fails_means_503_with_retry_after_and_nothing_recorded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = house.store.accept

    async def full(delivery: Delivery) -> None:
        raise StoreUnavailableError("the store can't be written: database or disk is full")

    monkeypatch.setattr(house.store, "accept", full)
    answer = await house.native()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert_nothing_recorded(house)
    monkeypatch.setattr(house.store, "accept", accept)
    assert (await house.native()).status == 202


async def test_too_many_waiting_means_503_and_what_was_accepted_is_on_disk(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert house.store._writer is not None
    monkeypatch.setattr(house.store._writer, "most_waiting", 3)
    statuses = [
        answer.status
        for answer in await asyncio.gather(*(house.native(delivery=f"msg_{i}") for i in range(60)))
    ]
    assert set(statuses) == {202, 503}
    assert house.count("delivery") == statuses.count(202)


# -- names, methods, metrics, logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nosuch", "github.toml", "..%2fconfig", "%00", "x" * 300, "github%0a", "é"])
async def test_an_unknown_hook_is_404_and_makes_no_metric_of_its_own(house: House, name: str) -> None:
    before = house.series()
    answer = await house.raw(
        f"POST /hooks/{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    )
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.0 400"))
    assert house.series() == before
    assert_nothing_recorded(house)


async def test_no_request_however_odd_makes_a_new_metric_series(house: House) -> None:
    before = house.series()
    await house.native()
    await house.native({**EVENT, "service": "made-up", "labels": {"x": "y"}}, delivery="msg_2")
    await house.native({"kind": "nonsense"}, delivery="msg_3")
    await house.github({"zen": "x"}, "ping")
    await house.post("github", b"{}", {"X-GitHub-Event": "made-up"})
    await house.api("GET", "/runs/nosuch", house.tokens["reader"])
    await house.raw(
        b"POST /hooks/github HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", wait_s=1
    )
    assert house.series() == before


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_a_hook_takes_post_alone(house: House, method: str) -> None:
    async with house.session.request(
        method, f"{house.url}/hooks/rollbackd", data=BODY, headers=house.signed(BODY)
    ) as answer:
        assert answer.status == 405
    assert_nothing_recorded(house)


async def test_no_secret_is_kept_with_a_delivery(house: House) -> None:
    await house.native()
    await house.post(
        "alertmanager", b'{"version": "3"}', {"Authorization": f"Bearer {BEARER}", "Cookie": "session=1"}
    )
    await house.github(CREATED)
    kept = " ".join(
        row[0] if isinstance(row[0], str) else row[0].decode()
        for row in house.rows("SELECT headers FROM delivery")
    )
    assert "msg_1" in kept
    for secret in (BEARER, "v1,", "sha256=", "session"):
        assert secret not in kept


async def test_the_http_library_logs_nothing_that_a_stranger_sent(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await house.post("rollbackd", BODY, {})
        await house.native({"kind": "nonsense"}, delivery="msg_3")
        await house.raw(b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer \x00 key\r\n\r\n", wait_s=2)
        await house.raw(b"nonsense", b"\r\n\r\n", wait_s=2)
    assert caplog.records == []
