"""The HTTP server: routes, listeners, a stop that lets answers finish."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from aiohttp import web

from rollbackd import __version__
from rollbackd.errors import RefusedError
from rollbackd.intake.connections import DEADLINES, LIMITS, Connections, Deadlines, Limits
from rollbackd.intake.deliveries import Deliveries
from rollbackd.settings import Server

PATIENT = Deadlines()
# What openapi.json names; all else are pages for people.
FOR_PROGRAMS = ("/api/", "/hooks/", "/livez", "/readyz", "/metrics", "/openapi.json")
# From the Accept header to the metrics in the format that it asks for, and their content type.
MetricsText = Callable[[str], Awaitable[tuple[bytes, str]]]
Ready = Callable[[], Awaitable[list[str]]]


class HttpServer:
    """Listens on TCP for everybody with a signature or a token, and on a Unix socket for local people."""

    def __init__(
        self,
        settings: Server,
        deliveries: Deliveries,
        routes: Sequence[web.RouteDef],
        metrics_text: MetricsText,
        ready: Ready,
        socket_path: Path,
        deadlines: Deadlines = PATIENT,
    ) -> None:
        self._settings = settings
        self._socket_path = socket_path
        self._metrics_text = metrics_text
        self._ready = ready
        self._deadlines = deadlines
        self.limits = Limits(settings.max_body_bytes, settings.max_connections)
        app = web.Application()
        app[DEADLINES] = deadlines
        app[LIMITS] = self.limits
        app.router.add_post("/hooks/{name}", deliveries.receive)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_routes(routes)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=deadlines.keepalive_s,
            lingering_time=deadlines.lingering_s,
            shutdown_timeout=10.0,
            # A body with a Content-Encoding is refused; what follows the refusal must not be inflated either.
            auto_decompress=False,
        )
        self._servers: list[asyncio.Server] = []
        self._routes = [
            (r.method, r.resource.canonical) for r in app.router.routes() if r.resource is not None
        ]
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            RefusedError: when the address or the socket can't be had.
        """
        await self._runner.setup()
        connections = Connections(self._runner, self.limits, self._deadlines)
        # Counted apart, so that a flood from outside doesn't lock out local people.
        local_connections = Connections(self._runner, self.limits, self._deadlines)
        host, _, port = self._settings.listen.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            tcp = await loop.create_server(connections, host.strip("[]"), int(port), backlog=512)
        except OSError as error:
            raise RefusedError(f"can't listen on {self._settings.listen}: {error.strerror}") from None
        self._servers.append(tcp)
        self.port = tcp.sockets[0].getsockname()[1]
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()
        try:
            local = await loop.create_unix_server(local_connections, str(self._socket_path))
        except OSError as error:
            raise RefusedError(f"can't listen on the socket {self._socket_path}: {error}") from None
        self._socket_path.chmod(0o600)
        self._servers.append(local)

    async def stop(self) -> None:
        """Take no more, finish what is being answered."""
        for server in self._servers:
            server.close()
        await self._runner.cleanup()
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()

    async def _livez(self, request: web.Request) -> web.Response:
        return web.json_response({"alive": True, "version": __version__})

    async def _readyz(self, request: web.Request) -> web.Response:
        problems = await self._ready()
        return web.json_response(
            {"ready": not problems, "problems": problems}, status=503 if problems else 200
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        body, content_type = await self._metrics_text(request.headers.get("Accept", ""))
        response = web.Response(body=body, headers={"Content-Type": content_type, "Vary": "Accept"})
        response.enable_compression()  # as the Accept-Encoding allows: a thousand targets are megabytes
        return response

    async def _openapi(self, request: web.Request) -> web.Response:
        paths: dict[str, dict[str, object]] = {}
        for method, path in self._routes:
            if method in ("GET", "POST") and path.startswith(FOR_PROGRAMS):
                answers = {"200": {"description": "see the README's table of answers"}}
                paths.setdefault(path, {})[method.lower()] = {"responses": answers}
        document = {
            "openapi": "3.1.0",
            "info": {"title": "rollbackd", "version": __version__},
            "paths": paths,
        }
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")
