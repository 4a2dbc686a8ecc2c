"""Connections: bounded in number, and cut when they keep us waiting. aiohttp has no such deadlines of its own."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from rollbackd.errors import DeliveryRefusedError


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long a client may keep us waiting, in seconds: with a request's head, its body, between two requests, and
    with taking an answer. What is sent after an answer was given (a body that is too large) is read for `lingering_s`,
    so that the answer arrives."""

    head_s: float = 15.0
    body_s: float = 15.0
    keepalive_s: float = 15.0
    answer_s: float = 15.0
    lingering_s: float = 2.0


@dataclass
class Limits:
    """How much is taken at once. A new configuration changes them while everything goes on."""

    max_body_bytes: int
    max_connections: int


DEADLINES = web.AppKey("deadlines", Deadlines)
LIMITS = web.AppKey("limits", Limits)


async def read_body(request: web.Request, most_bytes: int) -> bytes:
    """The body as it came, within its size and its time.

    Raises:
        DeliveryRefusedError: 413, 415, 408 (and the connection is cut) or 400.
    """
    length = request.content_length
    if length is not None and length > most_bytes:
        raise DeliveryRefusedError(413, "too_large", f"{length} bytes; at most {most_bytes} are taken")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise DeliveryRefusedError(415, "encoded", "send the body as it is, without a Content-Encoding")
    body_s = request.app[DEADLINES].body_s
    try:
        if request.content.is_eof():
            # It came together with its head, as most do: nothing to wait for.
            return await _read(request, most_bytes)
        async with asyncio.timeout(body_s):
            return await _read(request, most_bytes)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise DeliveryRefusedError(408, "slow", f"the body didn't come within {body_s:g} s") from None
    except web.RequestPayloadError:
        raise DeliveryRefusedError(400, "malformed", "$: the body isn't framed as HTTP says") from None


async def _read(request: web.Request, most_bytes: int) -> bytes:
    # Not request.read(): its limit is fixed when the server starts.
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > most_bytes:
            raise DeliveryRefusedError(413, "too_large", f"at most {most_bytes} bytes are taken")
    return bytes(body)


class Connections:
    """Makes a protocol for each connection of one listener, and counts them."""

    def __init__(self, runner: web.AppRunner, limits: Limits, deadlines: Deadlines) -> None:
        server = runner.server
        assert server is not None, "the runner is set up first"
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._limits = limits
        self.deadlines = deadlines
        self.open = 0

    def __call__(self) -> "ImpatientHandler":
        return ImpatientHandler(self, self._server, self._loop, self._server._kwargs)

    def opened(self) -> bool:
        """Count one more; False when there are too many."""
        self.open += 1
        return self.open <= self._limits.max_connections

    def closed(self) -> None:
        """Count one less."""
        self.open -= 1


class ImpatientHandler(RequestHandler):
    """A connection that must send its first request's head in time, and take its answers in time.

    Later heads are bounded by the keep-alive.
    """

    __slots__ = ("_answering", "_connections", "_deadline")

    def __init__(
        self, connections: Connections, server: Any, loop: asyncio.AbstractEventLoop, options: dict[str, Any]
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._answering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse one too many; start the clock for the others."""
        super().connection_made(transport)
        if not self._connections.opened():
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        self._deadline = self._loop.call_later(self._connections.deadlines.head_s, self._cut)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clocks."""
        self._connections.closed()
        for clock in (self._deadline, self._answering):
            if clock is not None:
                clock.cancel()
        self._deadline = self._answering = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client takes its answer slower than we write it: start the clock."""
        super().pause_writing()
        self._answering = self._loop.call_later(self._connections.deadlines.answer_s, self._abort)

    def resume_writing(self) -> None:
        """It took what waited: stop the clock."""
        super().resume_writing()
        if self._answering is not None:
            self._answering.cancel()
            self._answering = None

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Not what is no HTTP: a stranger would fill the log with tracebacks that quote him. He gets his 400."""
        if not isinstance(kw.get("exc_info"), HttpProcessingError):
            super().log_exception(*args, **kw)

    def _cut(self) -> None:
        self._deadline = None
        if self._request_count == 0 and self._current_request is None and not self._messages:
            self._abort()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
