"""Structured logs: console on a terminal, JSON otherwise, no secret in either."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from rollbackd.settings import Logging

# Up to the last @ of the word: a password may hold one itself.
_PASSWORD_IN_URL = re.compile(r"(://[^:/@\s]*):\S*@")
_SECRET_IN_TEXT = re.compile(
    r"(?P<before>\b(?:pg)?passw(?:or)?d\s*[=:]\s*|\bbearer\s+)(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)"
    r"|\bwhsec_[A-Za-z0-9+/=_-]+|\brbd_[A-Za-z0-9_-]{20,}",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_KEY = re.compile(r"password|secret|token|authorization", re.IGNORECASE)


def set_up_logs(settings: Logging) -> None:
    """Configure structlog; everything goes to stderr, one line an event."""
    as_console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer() if as_console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            *([one_line] if as_console else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
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


def one_line(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """On a console, nothing from outside may begin a line of its own or move the cursor; JSON escapes by itself."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda found: repr(found[0])[1:-1], value)
    return event


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank out what looks like a secret, by key and inside URLs."""
    for key, value in event.items():
        event[key] = "***" if _SECRET_KEY.search(key) else _without_secrets(value)
    return event


def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        if "://" in value:
            value = _PASSWORD_IN_URL.sub(r"\1:***@", value)
        return _SECRET_IN_TEXT.sub(lambda found: f"{found['before'] or ''}***", value)
    if isinstance(value, dict):
        return {
            k: "***" if isinstance(k, str) and _SECRET_KEY.search(k) else _without_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in value]
    return value
