"""One embedded server for the session; each case gets a database and a folder of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.corpus.build import BuiltCase, build
from tests.corpus.case import Case
from tests.corpus.stage import Stage

from rollbackd.demo.postgres import EmbeddedPostgres

BuildCase = Callable[[Case], BuiltCase]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start() as running:
        yield running


@pytest.fixture
def stage(server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "stage"
    folder.mkdir()
    made = Stage(server, folder)
    yield made
    made.clean()


@pytest.fixture
def build_case(stage: Stage, tmp_path: Path) -> BuildCase:
    """Builds a case's project and database; both are gone after the test."""
    return lambda case: build(case, stage, tmp_path / "project")
