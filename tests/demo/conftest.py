"""One embedded server for the whole session, and a fresh database on it for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import psycopg
import pytest

from rollbackd.demo.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def embedded_postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as server:
        yield server


@pytest.fixture
def new_database(embedded_postgres: EmbeddedPostgres) -> Iterator[Callable[..., str]]:
    """Makes databases, as copies of `template` where one is given; they are dropped after the test."""
    made: list[str] = []

    def make(template: str = "template1") -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(embedded_postgres.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return name

    yield make
    with psycopg.connect(embedded_postgres.url("postgres"), autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
