"""Logs: no secret in them, and one line an event whatever comes from outside."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from rollbackd.app.logs import set_up_logs
from rollbackd.settings import Logging


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
