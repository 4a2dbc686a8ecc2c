"""Installs the sample shop, as a CD system would have, and fills its database."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

BASE_RELEASE = "2026.11.2"
"""The release that every story starts from; its one Alembic head is `BASE_REVISION`."""

BASE_REVISION = "archive_products"

_SHOP = Path(__file__).parent / "shop"


def release_names() -> tuple[str, ...]:
    """The versions of all releases that come with the shop, oldest first."""
    return tuple(sorted(path.parent.name for path in _SHOP.glob("releases/*/release.toml")))


def lay_out(
    root: Path, *, database_url: str, port: int, python: Path, releases: Sequence[str] | None = None
) -> None:
    """Make `root` a shop: releases/, `current`, shop.env.json and shopctl.py.

    `database_url` is a postgresql:// URL; `port` the web process's, on 127.0.0.1; `python` an interpreter with aiohttp,
    asyncpg, alembic and psycopg. Without `releases` all are laid out; the base release always is. Raises
    FileExistsError where a shop already is, and LookupError for a release that doesn't exist.
    """
    wanted = dict.fromkeys([BASE_RELEASE, *(release_names() if releases is None else releases)])
    unknown = wanted.keys() - set(release_names())
    if unknown:
        raise LookupError(
            f"the shop has no release {', '.join(sorted(unknown))}; it has {', '.join(release_names())}"
        )
    (root / "releases").mkdir(parents=True)
    for name in wanted:
        _lay_out_release(root / "releases" / name, _SHOP / "releases" / name)
    shutil.copyfile(_SHOP / "shopctl.py", root / "shopctl.py")
    # Not resolved: a virtualenv's python is a link, and what it links to doesn't know the virtualenv's packages.
    settings = {"database_url": database_url, "port": port, "python": str(python.absolute())}
    secret = os.open(root / "shop.env.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(secret, "w", encoding="utf-8") as file:
        json.dump(settings, file, indent=2)
    (root / "current").symlink_to(Path("releases") / BASE_RELEASE)


def _lay_out_release(directory: Path, overlay: Path) -> None:
    """The base's files, then those of the overlay on top, its revisions among the base's."""
    skip = shutil.ignore_patterns("__pycache__", "versions")
    shutil.copytree(_SHOP / "base", directory, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(overlay, directory, ignore=skip, dirs_exist_ok=True)
    shutil.copyfile(_SHOP / "web.py", directory / "web.py")
    for script in (overlay / "versions").glob("*.py"):
        shutil.copyfile(script, directory / "migrations" / "versions" / script.name)


def fill(database_url: str, *, rows: int = 50_000, seed: int = 7) -> None:
    """Fill the empty tables of the base release with at least `rows` rows in all; the same `seed`, the same rows.

    Some customers share an e-mail address and some orders have no lines and cost nothing: the failing releases fail on
    those. Raises psycopg.errors.UniqueViolation on tables that aren't empty, and then changes nothing.
    """
    url = re.sub(r"^postgresql\+\w+:", "postgresql:", database_url)
    sizes = {
        "customers": -(-rows // 10) + 2,
        "products": -(-rows // 100) + 1,
        "orders": -(-rows * 3 // 10) + 1,
        "reviews": -(-rows // 20) + 1,
    }
    values = {name: sql.Literal(value) for name, value in {**sizes, "seed": seed}.items()}
    with psycopg.connect(url) as connection:
        for statement in _FILL:
            connection.execute(sql.SQL(statement).format(**values))
        for table in ("customers", "products", "orders", "reviews"):
            connection.execute(
                sql.SQL("SELECT setval(pg_get_serial_sequence({}, 'id'), (SELECT max(id) FROM {}))").format(
                    sql.Literal(table), sql.Identifier(table)
                )
            )
        connection.execute("ANALYZE")


# pick(n, salt, choices): a number from 0 to choices - 1 that only looks random, so that the rows are always the same.
_FILL = (
    """
    CREATE FUNCTION pg_temp.pick(n bigint, salt bigint, choices bigint) RETURNS bigint LANGUAGE sql IMMUTABLE
    RETURN ((n * 7919 + salt * 15485863 + {seed} * 104729) % 1000003) % choices
    """,
    """
    INSERT INTO customers (id, email, name, created_at)
    SELECT n, format('customer%s@example.org', n - (n % 40 = 2)::int), format('Customer %s', n),
           timestamptz '2026-03-01 08:00:00+00' + n * interval '1 minute'
      FROM generate_series(1, {customers}) AS n
    """,
    """
    INSERT INTO products (id, sku, title, price_cents, archived_at)
    SELECT n, format('SKU-%s', lpad(n::text, 6, '0')), format('Product %s', n), 100 + pg_temp.pick(n, 1, 20000),
           CASE WHEN pg_temp.pick(n, 2, 20) = 0 THEN timestamptz '2026-10-01 00:00:00+00' END
      FROM generate_series(1, {products}) AS n
    """,
    """
    CREATE TEMPORARY TABLE new_lines ON COMMIT DROP AS
    SELECT n AS order_id, line::smallint AS line_number, products.id AS product_id,
           (1 + pg_temp.pick(n, 4 + line, 5))::int AS quantity, products.price_cents
      FROM generate_series(1, {orders}) AS n CROSS JOIN generate_series(1, 2) AS line
      JOIN products ON products.id = 1 + pg_temp.pick(n, 6 + line, {products})
     WHERE n % 50 <> 1
    """,
    """
    INSERT INTO orders (id, customer_id, placed_at, status, total_cents)
    SELECT n, 1 + pg_temp.pick(n, 9, {customers}),
           timestamptz '2026-11-20 12:00:00+00' - ({orders} - n) * interval '3 minutes',
           (ARRAY['placed', 'paid', 'shipped', 'shipped', 'cancelled'])[1 + pg_temp.pick(n, 10, 5)]::order_status,
           coalesce(total, 0)
      FROM generate_series(1, {orders}) AS n
      LEFT JOIN (SELECT order_id, sum(quantity * price_cents) AS total FROM new_lines GROUP BY 1) AS totals
        ON totals.order_id = n
     ORDER BY n
    """,
    "INSERT INTO order_lines SELECT * FROM new_lines ORDER BY order_id, line_number",
    """
    INSERT INTO reviews (id, product_id, customer_id, stars, body, state)
    SELECT n, 1 + pg_temp.pick(n, 11, {products}), 1 + pg_temp.pick(n, 12, {customers}), 1 + pg_temp.pick(n, 13, 5),
           CASE WHEN pg_temp.pick(n, 14, 3) > 0 THEN format('Review %s', n) END,
           (ARRAY['waiting', 'shown', 'shown', 'rejected'])[1 + pg_temp.pick(n, 15, 4)]::review_state
      FROM generate_series(1, {reviews}) AS n
    """,
    """
    INSERT INTO stock (product_id, on_hand, counted_at)
    SELECT id, pg_temp.pick(id, 16, 500), timestamptz '2026-11-20 06:00:00+00' FROM products
    """,
)
