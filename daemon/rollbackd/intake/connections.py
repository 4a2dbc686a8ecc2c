"""Connections: bounded in number, and cut when they keep us waiting. aiohttp has no such deadlines of its own."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

HEADER_DEADLINE_S = 15.0
BODY_DEADLINE_S = 15.0
KEEPALIVE_S = 15.0


class Connections:
    """Makes a protocol for each connection, and counts them."""

    def __init__(self, runner: web.AppRunner, most: int) -> None:
        server = runner.server
        assert server is not None, "the runner is set up first"
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._most = most
        self.open = 0

    def __call__(self) -> "ImpatientHandler":
        return ImpatientHandler(self, self._server, self._loop, self._server._kwargs)

    def opened(self) -> bool:
        """Count one more; False when there are too many."""
        self.open += 1
        return self.open <= self._most

    def closed(self) -> None:
        """Count one less."""
        self.open -= 1


class ImpatientHandler(RequestHandler):
    """A connection that must send its first request's head in time. Later ones are bounded by the keep-alive."""

    __slots__ = ("_connections", "_deadline")

    def __init__(
        self, connections: Connections, server: Any, loop: asyncio.AbstractEventLoop, options: dict[str, Any]
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._connections = connections
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse one too many; start the clock for the others."""
        super().connection_made(transport)
        if not self._connections.opened():
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        self._deadline = self._loop.call_later(HEADER_DEADLINE_S, self._cut)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        self._connections.closed()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().connection_lost(exc)

    def _cut(self) -> None:
        self._deadline = None
        nothing_came = self._request_count == 0 and self._current_request is None and not self._messages
        if nothing_came and self.transport is not None:
            self.transport.abort()
