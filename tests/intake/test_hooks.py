"""Hook files: proved when they are loaded, and never stumbling over what a sender sends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.intake.house import BEARER, House

from rollbackd.core.events import EventKind
from rollbackd.errors import ConfigurationError, DeliveryRefusedError
from rollbackd.intake.hooks import Hook, Interpretation, load_hook, parse_body
from rollbackd.resources import resource

T = TypeVar("T")
SHIPPED = ("github", "alertmanager", "rollbackd")
HOOKS = {name: load_hook(name, resource("hooks", f"{name}.toml")) for name in SHIPPED}

HOOK = """
version = 1
description = "a sender"
[authentication]
scheme = "bearer"
[[events]]
kind = { expression = "body.state", table = { up = "deploy.succeeded", down = "deploy.failed" }, otherwise = "ignore" }
[events.map]
service = "body.app"
environment = "body.env"
[[fixtures]]
body = "up.json"
[[fixtures.expect]]
kind = "deploy.succeeded"
service = "shop"
"""
PAYLOAD = {"state": "up", "app": "shop", "env": "staging"}


def meaning_or_refusal(look: Callable[[], T]) -> T | DeliveryRefusedError:
    """What comes of it; any other error is a fault of ours and fails the test."""
    try:
        return look()
    except DeliveryRefusedError as refused:
        return refused


def load(folder: Path, text: str = HOOK, payload: object = PAYLOAD) -> Hook:
    (folder / "up.json").write_text(json.dumps(payload))
    (folder / "hook.toml").write_text(text)
    return load_hook("own", folder / "hook.toml")


def test_a_hook_that_its_fixture_proves_is_loaded(tmp_path: Path) -> None:
    found = load(tmp_path).interpret({}, {"state": "down", "app": "shop", "env": "live"})
    assert [event.kind for event in found.events] == [EventKind.DEPLOY_FAILED]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('service = "shop"\n', 'service = "shop2"\n', "service is 'shop', expected is 'shop2'"),
        ('service = "shop"\n', 'servce = "shop"\n', "servce is '', expected is 'shop'"),
        ('[[fixtures.expect]]\nkind = "deploy.succeeded"\nservice = "shop"', "", "proves nothing"),
        ('[[fixtures.expect]]\nkind = "deploy.succeeded"\nservice = "shop"', 'ignored = "x"', "means 1 events, expected are 0"),
        ('body = "up.json"', 'body = "gone.json"', "fixture gone.json: can't be read"),
        ('body = "up.json"', 'body = "../up.json"', "lies outside"),
        ('body = "up.json"', 'body = "/etc/passwd"', "lies outside"),
        ('service = "body.app"', 'servce = "body.app"', "events[0].map.servce: an event has no such field; did you mean 'service'?"),
        ('service = "body.app"', 'service = "body.ap"', "is refused: $: Object missing required field `service`"),
        ('service = "body.app"', 'service = ""', "events[0].map.service: an expression is needed"),
        ('service = "body.app"', 'service = "body."', "hook.toml"),
        ('service = "body.app"', 'service = "upper(body.app)"', "there is no function upper"),
        ('service = "body.app"', 'service = "length(body.gone)"', "is refused: length(body.gone)"),
        ('down = "deploy.failed"', 'down = "deploy.faild"', "'deploy.faild' is none of"),
        ('kind = { expression = "body.state"', 'kind = { expression = ""', "'kind' with an expression is needed"),
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = 1\nmalformed = 500", "malformed"),
        ("version = 1", "version = 1\ncolour = 1", "unknown field `colour`"),
        ('scheme = "bearer"', 'scheme = "none"', "none"),
        ('scheme = "bearer"', 'scheme = "hmac"\nheader = "X"\nalgorithm = "sha1"', "sha1"),
        ("[authentication]", '[delivery]\nid = "headers.id"\nid_is_signed = true\n[authentication]', "only webhook-id is"),
        ("[authentication]", '[[ignore]]\nwhen = ""\nbecause = "x"\n[authentication]', "an empty one would ignore everything"),
        ("[authentication]", "[authentication", "hook.toml"),
    ],
)  # fmt: skip
def test_a_hook_that_is_wrong_anywhere_is_refused_and_says_where(
    tmp_path: Path, old: str, new: str, fault: str
) -> None:
    assert HOOK.count(old) == 1
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, HOOK.replace(old, new))
    assert all(problem.startswith("hooks.own: ") for problem in refused.value.problems)
    assert fault in str(refused.value)


def test_a_hook_without_a_fixture_proves_nothing_and_is_refused(tmp_path: Path) -> None:
    without = HOOK.partition("[[fixtures]]")[0].replace("version = 1", "version = 1\nfixtures = []")
    with pytest.raises(ConfigurationError, match="has no fixture"):
        load(tmp_path, without)


@pytest.mark.parametrize("payload", [[], {"state": "up", "state2": None}, {**PAYLOAD, "env": 5}])
def test_a_fixture_that_is_no_such_payload_refuses_the_hook(tmp_path: Path, payload: object) -> None:
    with pytest.raises(ConfigurationError, match=r"fixture up\.json"):
        load(tmp_path, payload=payload)


@pytest.mark.parametrize(
    "expression",
    [
        "length(body.gone)", "split(body.app, '')", "split(body.app)", "parse_json(body.deep).a.b", "to_number(body.app)",
        "ceil(to_number(body.infinite))", "body.list[5].x", "sort_by(body.list, &x)", "body.list[?a > b]", "lower(body.list)",
        "keys(body)[0]", "join(',', body.list)", "max_by(body.list, &x)", "body.app.x.y", "sum(body.list)", "avg(body.empty)",
    ],
)  # fmt: skip
def test_an_expression_that_stumbles_over_a_payload_is_the_senders_fault(
    tmp_path: Path, expression: str
) -> None:
    body = {**PAYLOAD, "list": [1, "a", {"x": None}], "empty": [], "infinite": "inf", "deep": "[" * 5_000}
    text = HOOK.replace(
        'environment = "body.env"',
        f'environment = "body.env"\n[[events]]\nwhen = "body.x"\nkind = "body.kind"\n[events.map]\nservice = "body.app"\nenvironment = "body.env"\nreason = """{expression}"""',
    )
    text = text.replace(
        "[[events]]\nkind = { expression", '[[events]]\nwhen = "!(body.x)"\nkind = { expression'
    )
    hook = load(tmp_path, text)
    found = meaning_or_refusal(lambda: hook.interpret({}, {**body, "x": 1, "kind": "deploy.failed"}))
    assert isinstance(found, Interpretation) or (found.status, found.reason) == (400, "malformed")


def test_a_native_event_may_be_wrapped_in_a_cloud_event() -> None:
    event = {"kind": "deploy.failed", "service": "shop", "environment": "staging"}
    plain = HOOKS["rollbackd"].interpret({}, event)
    assert HOOKS["rollbackd"].interpret({}, {"specversion": "1.0", "id": "1", "data": event}) == plain


def test_an_alert_of_an_old_sender_takes_the_groups_status_and_is_told_from_its_neighbour_by_its_labels() -> (
    None
):
    labels = {"alertname": "Slow", "service": "shop", "env": "live", "category": "performance"}
    alerts = [{"labels": {**labels, "instance": name}, "startsAt": "2026-11-22T10:00:00Z"} for name in "ab"]
    found = HOOKS["alertmanager"].interpret({}, {"version": "4", "status": "resolved", "alerts": alerts})
    assert [event.kind for event in found.events] == [EventKind.SIGNAL_RESOLVED] * 2
    assert len({event.key for event in found.events}) == 2


def test_goes_zero_time_means_not_said() -> None:
    alert = {
        "status": "resolved", "fingerprint": "f", "startsAt": "2026-11-22T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
        "labels": {"alertname": "Slow", "service": "shop", "env": "live"},
    }  # fmt: skip
    found = HOOKS["alertmanager"].interpret({}, {"version": "4", "alerts": [alert]})
    assert found.events[0].occurred_at is None


def test_an_alert_without_a_service_does_not_keep_its_neighbours_from_counting() -> None:
    good = {"status": "firing", "labels": {"alertname": "A", "service": "shop", "env": "live"}}
    found = HOOKS["alertmanager"].interpret(
        {}, {"version": "4", "alerts": [{"status": "firing", "labels": {}}, good]}
    )
    assert len(found.events) == 1
    assert "$.alerts[0]" in found.ignored_because


def test_more_alerts_than_anybody_sends_are_refused() -> None:
    with pytest.raises(DeliveryRefusedError) as refused:
        HOOKS["alertmanager"].interpret({}, {"version": "4", "alerts": [{}] * 1_001})
    assert refused.value.status == 413


@pytest.mark.parametrize("alerts", [None, {}, "x", 5])
def test_alerts_that_are_no_list_are_refused_with_their_path(alerts: object) -> None:
    with pytest.raises(DeliveryRefusedError, match=r"\$\.alerts: a list is expected"):
        HOOKS["alertmanager"].interpret({}, {"version": "4", "alerts": alerts})


WORDS = st.sampled_from(
    [
        "4", "1.0", "created", "success", "failure", "firing", "resolved", "deploy.started", "signal.firing", "0001-01-01T00:00:00Z",
        "2026-11-22T10:00:00", "9999-12-31T23:59:59-05:00", "critical", "page", "[[[", "",
    ]
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
NAMES = st.sampled_from(
    [
        "version", "alerts", "status", "labels", "alertname", "service", "environment", "severity", "category", "startsAt", "endsAt",
        "fingerprint", "action", "deployment", "deployment_status", "payload", "id", "sha", "state", "repository", "name", "created_at",
        "specversion", "data", "kind", "occurred_at", "zen", "description", "url", "annotations",
    ]
)  # fmt: skip
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=8),
    max_leaves=40,
)
EVENTS = st.sampled_from(["ping", "deployment", "deployment_status", "workflow_run", ""])


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=400, deadline=None)
@given(document=DOCUMENTS, event=EVENTS)
def test_whatever_json_comes_a_hook_gives_a_meaning_or_refuses_it_as_the_senders_fault(
    name: str, document: Any, event: str
) -> None:
    found = meaning_or_refusal(
        lambda: HOOKS[name].interpret({"x-github-event": event} if event else {}, document)
    )
    if isinstance(found, DeliveryRefusedError):
        assert (found.status, found.reason) in ((400, "malformed"), (413, "too_large"))
    else:
        assert found.events or found.ignored_because


@settings(max_examples=300, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | DOCUMENTS.map(lambda d: json.dumps(d).encode())
)
def test_whatever_bytes_come_they_are_strict_json_or_refused(body: bytes) -> None:
    found = meaning_or_refusal(lambda: parse_body(body))
    if isinstance(found, DeliveryRefusedError):
        assert found.status == 400
    else:
        json.dumps(found, ensure_ascii=False).encode()


# -- what comes of it -----------------------------------------------------------------------------------------------------


async def test_an_event_that_no_target_guards_is_recorded_with_that_outcome(house: House) -> None:
    await house.rig.start()
    status = {
        "action": "created", "repository": {"name": "storefront"}, "deployment": {"id": 1, "sha": "7d1c", "environment": "production"},
        "deployment_status": {"state": "success", "environment": "production-eu", "created_at": "2026-11-22T10:00:00Z"},
    }  # fmt: skip
    assert (await house.github(status, "deployment_status")).status == 202
    alert = {"status": "firing", "labels": {"alertname": "A", "job": "nodes", "env": "live"}}
    body = json.dumps({"version": "4", "alerts": [alert]}).encode()
    assert (await house.post("alertmanager", body, {"Authorization": f"Bearer {BEARER}"})).status == 202

    async def outcomes() -> list[str]:
        _, document, _ = await house.api("GET", "/deliveries", house.tokens["reader"])
        found = [d["outcome"] for d in document["items"]]
        return found if all(found) else []

    assert await house.rig.until(outcomes) == [
        "no target guards nodes in live",
        "no target guards storefront in production-eu",
    ]
