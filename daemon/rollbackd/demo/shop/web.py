"""The shop's web process.

Environment: SHOP_DATABASE_URL, SHOP_PORT, SHOP_RELEASE (the release's directory). Ends cleanly at SIGTERM.
What it reads and writes beyond the base schema follows from the release, so that a new release fails on an old schema
as a real one would.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import web

HEALTH_TIMEOUT_S = 2.0
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SHUTDOWN_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Release:
    """What release.toml says."""

    version: str
    fault: str
    reads: dict[str, str]
    writes: dict[str, Any]
    adds: dict[str, str]

    @classmethod
    def from_directory(cls, directory: Path) -> Release:
        text = tomllib.loads((directory / "release.toml").read_text(encoding="utf-8"))
        orders = text.get("orders", {})
        return cls(
            version=text["version"],
            fault=text["fault"],
            reads=orders.get("reads", {}),
            writes=orders.get("writes", {}),
            adds=orders.get("adds", {}),
        )

    def listing(self) -> str:
        """The SQL of the ten latest orders."""
        extra = "".join(f', {expression} AS "{name}"' for name, expression in self.reads.items())
        return f"""
            SELECT orders.id, orders.placed_at, orders.status::text, orders.total_cents,
                   customers.name AS customer, first_product.title AS product{extra}
              FROM orders
              JOIN customers ON customers.id = orders.customer_id
              LEFT JOIN LATERAL (
                   SELECT products.* FROM order_lines JOIN products ON products.id = order_lines.product_id
                    WHERE order_lines.order_id = orders.id ORDER BY line_number LIMIT 1
                   ) AS first_product ON true
             ORDER BY orders.placed_at DESC, orders.id DESC
             LIMIT 10"""

    def insertion(self) -> str:
        """The SQL of a new order: customer, total in cents, then the columns that only this release writes."""
        columns = ", ".join(["customer_id", "total_cents", *self.writes])
        places = ", ".join(f"${number}" for number in range(1, 3 + len(self.writes)))
        return f"INSERT INTO orders ({columns}) VALUES ({places}) RETURNING id"


@dataclass
class Durations:
    """How long requests took, as a Prometheus histogram by route and status."""

    counts: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    sums: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, path: str, status: int, seconds: float) -> None:
        key = (path, status)
        counts = self.counts.setdefault(key, [0] * (len(BUCKETS_S) + 1))
        for number, bound in enumerate((*BUCKETS_S, float("inf"))):
            counts[number] += seconds <= bound
        self.sums[key] = self.sums.get(key, 0.0) + seconds

    def text(self, version: str) -> str:
        name = "shop_request_duration_seconds"
        lines = [f"# HELP {name} How long requests took.", f"# TYPE {name} histogram"]
        for (path, status), counts in self.counts.items():
            labels = f'path="{path}",status="{status}",version="{version}"'
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=True):
                lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {count}')
            lines.append(f"{name}_sum{{{labels}}} {self.sums[path, status]}")
            lines.append(f"{name}_count{{{labels}}} {counts[-1]}")
        return "\n".join(lines) + "\n"


@dataclass
class Shop:
    """One process: a release and its connections."""

    release: Release
    database: asyncpg.Pool
    durations: Durations = field(default_factory=Durations)
    visits: Iterator[int] = field(default_factory=itertools.count)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SHOP = web.AppKey("shop", Shop)
routes = web.RouteTableDef()


@routes.get("/health")
async def health(request: web.Request) -> web.Response:
    shop = request.app[SHOP]
    healthy = shop.release.fault != "crash"
    try:
        async with shop.database.acquire(timeout=HEALTH_TIMEOUT_S) as connection:
            await connection.fetchval("SELECT 1", timeout=HEALTH_TIMEOUT_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        healthy = False
    answer = {"version": shop.release.version, "healthy": healthy}
    return web.json_response(answer, status=200 if healthy else 503)


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    shop = request.app[SHOP]
    return web.Response(
        text=shop.durations.text(shop.release.version), headers={"Content-Type": "text/plain; version=0.0.4"}
    )


@web.middleware
async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Take the time of each request by the route that it matched, so that nobody's path becomes a label."""
    began, status = time.monotonic(), 500
    try:
        response = await handler(request)
        status = response.status
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "none"
        request.app[SHOP].durations.add(path, status, time.monotonic() - began)


@routes.get("/version")
async def version(request: web.Request) -> web.Response:
    return web.json_response({"version": request.app[SHOP].release.version})


@routes.get("/orders")
async def list_orders(request: web.Request) -> web.Response:
    shop = request.app[SHOP]
    if shop.release.fault == "errors" and next(shop.visits) % 2 == 0:
        raise RuntimeError("the price of an order without lines can't be divided by its number of lines")
    rows = await shop.database.fetch(shop.release.listing())
    return web.json_response([dict(row) for row in rows], dumps=to_json)


@routes.post("/orders")
async def place_order(request: web.Request) -> web.Response:
    """Write one order with one line; all fields are optional: customer_id, product_id, quantity, and the release's own."""
    shop = request.app[SHOP]
    wish = await request.json() if request.can_read_body else {}
    quantity = int(wish.get("quantity", 1))
    own = [wish.get(column, value) for column, value in shop.release.writes.items()]
    async with shop.database.acquire() as connection, connection.transaction():
        product = await connection.fetchrow(
            "SELECT id, price_cents FROM products WHERE id = $1", int(wish.get("product_id", 1))
        )
        if product is None:
            raise web.HTTPNotFound(text="no such product")
        order = await connection.fetchval(
            shop.release.insertion(), int(wish.get("customer_id", 1)), quantity * product["price_cents"], *own
        )
        await connection.execute(
            "INSERT INTO order_lines (order_id, line_number, product_id, quantity, price_cents) VALUES ($1, 1, $2, $3, $4)",
            order,
            product["id"],
            quantity,
            product["price_cents"],
        )
        for statement in shop.release.adds.values():
            await connection.execute(statement, order)
    return web.json_response({"id": order}, status=201)


def to_json(value: object) -> str:
    return json.dumps(value, default=str)  # times


async def connect(app: web.Application) -> AsyncIterator[None]:
    release = Release.from_directory(Path(os.environ["SHOP_RELEASE"]))
    url = re.sub(r"^postgresql\+\w+:", "postgresql:", os.environ["SHOP_DATABASE_URL"])
    # No connection is opened before it is needed: the shop starts, and says that it is not well, without its database.
    pool = asyncpg.create_pool(
        url, min_size=0, max_size=4, server_settings={"application_name": f"shop {release.version}"}
    )
    async with pool:
        app[SHOP] = Shop(release, pool)
        yield


def main() -> None:
    app = web.Application(middlewares=[measure])
    app.add_routes(routes)
    app.cleanup_ctx.append(connect)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(os.environ["SHOP_PORT"]),
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        access_log=None,
        print=None,
    )


if __name__ == "__main__":
    main()
