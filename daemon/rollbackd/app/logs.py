"""Structured logs: console on a terminal, JSON otherwise, no secret in either."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from rollbackd.settings import Logging

_PASSWORD_IN_URL = re.compile(r"(://[^:/@\s]*):[^@\s]*@")
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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blank out what looks like a secret, by key and inside URLs."""
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = "***"
        elif isinstance(value, str) and "://" in value:
            event[key] = _PASSWORD_IN_URL.sub(r"\1:***@", value)
    return event
