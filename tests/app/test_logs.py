"""Logs: no secret in them, and one line an event whatever comes from outside."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog

from rollbackd.adapters import secrets
from rollbackd.app import logs
from rollbackd.app.logs import Repetitions, set_up_logs
from rollbackd.errors import TransientError
from rollbackd.settings import Logging, SecretReference


@pytest.fixture
def _restored() -> Iterator[None]:
    configured, handlers = structlog.get_config(), list(logging.root.handlers)
    yield
    structlog.configure(**configured)
    logging.root.handlers[:] = handlers


def logged(capsys: pytest.CaptureFixture[str], form: str, **fields: Any) -> str:
    set_up_logs(Logging(format=form))  # type: ignore[arg-type]
    structlog.get_logger().info("met", **fields)
    return capsys.readouterr().err


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "fields",
    [
        {"password": "hunter2"}, {"api_token": "hunter2"}, {"Authorization": "hunter2"}, {"url": "postgresql://u:hunter2@h/db"},
        {"error": "postgresql://u:hun@ter2@h/db: refused"}, {"error": "postgresql://u:a/hunter2@h/db"},
        {"error": "connection to host=h password=hunter2 failed"}, {"error": "PGPASSWORD='hunter2 x' pg_dump"},
        {"error": "sent Authorization: Bearer hunter2"}, {"fields": {"password": "hunter2", "a": ["postgresql://u:hunter2@h/db"]}},
        {"key": "whsec_hunter2hunter2"}, {"text": "rbd_hunter2hunter2hunter2hunter2"},
    ],
)  # fmt: skip
def test_what_is_secret_is_blanked_out_wherever_it_stands(
    capsys: pytest.CaptureFixture[str], form: str, fields: dict[str, Any]
) -> None:
    text = logged(capsys, form, **fields)
    assert "met" in text
    assert "hunter2" not in text
    assert "ter2@" not in text


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("form", ["json", "console"])
def test_an_event_is_one_line_and_moves_no_cursor(capsys: pytest.CaptureFixture[str], form: str) -> None:
    text = logged(capsys, form, reason="a\nb\r\x1b[2J\x07\u2028c", plain="5 ms, 3 rows: fine")
    assert len(text.splitlines()) == 1
    assert "\x1b[2J" not in text
    assert "5 ms, 3 rows: fine" in text


@pytest.mark.usefixtures("_restored")
def test_a_fault_in_a_library_is_logged_in_our_form_with_no_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logs(Logging(format="json"))
    try:
        raise RuntimeError("postgresql://u:hunter2@h/db")
    except RuntimeError:
        logging.getLogger("aiohttp.server").exception("Error handling request from %s", "a\nb")
    [line] = capsys.readouterr().err.splitlines()
    document = json.loads(line)
    assert (document["event"], document["library"]) == ("library_logged", "aiohttp.server")
    assert "RuntimeError" in document["exception"]
    assert "hunter2" not in line


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[str]:
    """A secret that was read once, as a configured one is, and that looks like nothing in particular."""
    known = set(secrets._known)
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("correct/horse battery")
    yield secrets.read_secret(SecretReference(f"file:{tmp_path}/password"))
    secrets._known.clear()
    secrets._known.update(known)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "fields",
    [
        {"error": "no entry for correct/horse battery in it"}, {"error": "postgresql://u:correct%2Fhorse%20battery@h/db"},
        {"error": "?key=correct%2Fhorse+battery"}, {"evidence": {"words": ["said correct/horse battery"]}},
        {"error": RuntimeError("correct/horse battery")}, {"words": "'correct/horse battery'"},
    ],
)  # fmt: skip
def test_a_secret_that_was_read_is_blanked_out_whatever_it_looks_like(
    capsys: pytest.CaptureFixture[str], planted: str, form: str, fields: dict[str, Any]
) -> None:
    text = logged(capsys, form, **fields)
    assert "***" in text
    assert not re.search("correct|horse|battery", text)


@pytest.mark.usefixtures("_restored")
def test_a_secret_in_a_traceback_is_blanked_out(capsys: pytest.CaptureFixture[str], planted: str) -> None:
    set_up_logs(Logging(format="json"))
    try:
        raise KeyError(planted)
    except KeyError:
        structlog.get_logger().error("faulted", exc_info=True)
    text = capsys.readouterr().err
    assert "KeyError" in json.loads(text)["exception"]
    assert "horse" not in text


def test_a_short_secret_is_blanked_out_as_a_word_and_not_in_the_midst_of_others(tmp_path: Path) -> None:
    known = set(secrets._known)
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text("shop")
    secrets.read_secret(SecretReference(f"file:{tmp_path}/password"))
    try:
        assert (
            secrets.without_secrets("shop: 'shop' of shopkeepers, workshop")
            == "***: '***' of shopkeepers, workshop"
        )
    finally:
        secrets._known.clear()
        secrets._known.update(known)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"), TimeoutError("too slow"), asyncpg.PostgresError("no"),
        aiohttp.ClientError("reset"), TransientError("the database can't be reached"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_fault_of_the_world_outside_is_a_sentence_and_one_of_ours_a_traceback(
    capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    set_up_logs(Logging(format="json"))
    for raised in (error, ZeroDivisionError("ours")):
        try:
            raise raised
        except Exception:  # noqa: BLE001 - whatever it is, as where faults are logged
            structlog.get_logger().error("faulted", exc_info=True)
    outside, ours = map(json.loads, capsys.readouterr().err.splitlines())
    assert "exception" not in outside
    assert outside["error"].startswith(f"{type(error).__name__}: ")
    assert "Traceback" in ours["exception"]


@pytest.mark.usefixtures("_restored")
def test_what_fails_at_each_look_is_said_once_then_when_it_changes_and_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logs(Logging(format="json"))
    now = [0.0]
    processors = structlog.get_config()["processors"]
    [repetitions] = [p for p in processors if isinstance(p, Repetitions)]
    repetitions._monotonic = lambda: now[0]
    log = structlog.get_logger()
    for look in range(1200):
        now[0] = float(look)
        log.warning("watch_failed", deployment="d", error="no" if look < 900 else "not now")
        log.warning("watch_failed", deployment="e", error="no")
        log.info("looked", deployment="d")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    said = [line for line in lines if line["event"] == "watch_failed"]
    assert [(line["deployment"], line["error"], line.get("repeated")) for line in said] == [
        ("d", "no", None), ("e", "no", None), ("d", "no", 599), ("e", "no", 599), ("d", "not now", None),
    ]  # fmt: skip
    assert len(lines) - len(said) == 1200


@pytest.mark.usefixtures("_restored")
def test_what_was_said_is_forgotten_when_too_much_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_REMEMBERED", 2)
    set_up_logs(Logging(format="json"))
    for number in (1, 2, 3, 3, 1):
        structlog.get_logger().error("faulted", number=number)
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 1]


@pytest.mark.usefixtures("_restored")
def test_logs_may_be_set_up_anew_and_loggers_that_were_used_follow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = structlog.get_logger()
    for form, level in (("json", "info"), ("console", "warning"), ("json", "debug")):
        set_up_logs(Logging(format=form, level=level))  # type: ignore[arg-type]
        log.debug("whispered")
        log.warning("said", form=form, level_now=level)
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert (json.loads(first)["form"], json.loads(third)["event"], json.loads(fourth)["level_now"]) == (
        "json",
        "whispered",
        "debug",
    )
    assert "level_now=warning" in second
