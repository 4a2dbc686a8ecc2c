"""Structured logs: console on a terminal, JSON otherwise; no secret in either, and nothing said over and over."""

import logging
import re
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import aiohttp
import asyncpg
import structlog

from rollbackd.adapters.secrets import without_secrets
from rollbackd.errors import RollbackdError
from rollbackd.settings import Logging

_SECRET_IN_TEXT = re.compile(
    r"(?P<before>\b(?:pg)?passw(?:or)?d\s*[=:]\s*|\bbearer\s+)(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)"
    r"|\bwhsec_[A-Za-z0-9+/=_-]+|\brbd_[A-Za-z0-9_-]{20,}",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_KEY = re.compile(r"password|secret|token|authorization", re.IGNORECASE)
# Fields whose values are names and words of our own; there may be many lines of these a second.
_OURS = frozenset({"timestamp", "level", "event", "hook", "outcome", "delivery", "target", "environment"})
# What the world outside does to us: a sentence says it. A traceback through our own code would not say more.
_OUTSIDE = (RollbackdError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, aiohttp.ClientError)
_ADDRESS = re.compile(r"\b0x[0-9a-f]+")
REPEAT_EVERY_S = 600.0
MOST_REMEMBERED = 1_000
Event = MutableMapping[str, Any]


def set_up_logs(settings: Logging) -> None:
    """Configure structlog; everything goes to stderr, one line an event. May be called again, with other settings."""
    on_terminal = sys.stderr.isatty()
    as_console = settings.format == "console" or (settings.format == "auto" and on_terminal)
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=on_terminal)
        if as_console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            in_a_sentence,
            structlog.processors.format_exc_info,
            redact,
            Repetitions(time.monotonic),
            *([one_line] if as_console else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # Else a logger that was used once would keep the form and the level of that time.
        cache_logger_on_first_use=False,
    )

    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
    logging.root.addHandler(_LibraryHandler(logging.WARNING))


class _LibraryHandler(logging.Handler):
    """What libraries log (a fault in a request, a task that nobody awaited) in the same form as our own."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log it as an event of ours."""
        told = (
            structlog.get_logger().error
            if record.levelno >= logging.ERROR
            else structlog.get_logger().warning
        )
        told(
            "library_logged", library=record.name, text=record.getMessage(), exc_info=record.exc_info or False
        )


class Repetitions:
    """Drops a warning or an error that says exactly what was said before; after a while it is said again, with `repeated`.

    So what fails at each look is told when it begins, when it changes, and every ten minutes.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # When it was said, and how often it was dropped since.
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, _: Any, method: str, event: Event) -> Event:
        """Pass an event on, or drop it."""
        if method not in ("warning", "error"):
            return event
        said = sorted((key, value) for key, value in event.items() if key != "timestamp")
        key, now = _ADDRESS.sub("0x", repr(said)), self._monotonic()
        at, dropped = self._said.pop(key, (float("-inf"), 0))
        if now - at < REPEAT_EVERY_S:
            self._said[key] = (at, dropped + 1)
            raise structlog.DropEvent
        self._said[key] = (now, 0)
        if len(self._said) > MOST_REMEMBERED:
            del self._said[next(iter(self._said))]
        if dropped:
            event["repeated"] = dropped
        return event


def in_a_sentence(_: Any, __: str, event: Event) -> Event:
    """No traceback for a fault of the world outside: what it is, and what it says."""
    given = event.get("exc_info")
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if isinstance(error, _OUTSIDE):
        del event["exc_info"]
        event["error"] = f"{type(error).__name__}: {error}"
    return event


def one_line(_: Any, __: str, event: Event) -> Event:
    """On a console, nothing from outside may begin a line of its own or move the cursor; JSON escapes by itself."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    return event


def redact(_: Any, __: str, event: Event) -> Event:
    """Blank out what looks like a secret, by key and in text, and every secret that was read, wherever it stands."""
    for key, value in event.items():
        if key not in _OURS:
            event[key] = "***" if _SECRET_KEY.search(key) else _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_IN_TEXT.sub(lambda found: f"{found['before'] or ''}***", without_secrets(value))
    if isinstance(value, dict):
        return {
            k: "***" if isinstance(k, str) and _SECRET_KEY.search(k) else _redacted(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    if isinstance(value, BaseException):
        return _redacted(str(value))
    return value
