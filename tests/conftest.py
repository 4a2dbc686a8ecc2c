"""What every test may lean on."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

RequireProgram = Callable[..., Path]


def find_program(name: str, *alternatives: str) -> Path:
    """Return where a program is; without it the test is skipped, or fails where nothing may be skipped (CI)."""
    names = (name, *alternatives)
    for candidate in names:
        if found := shutil.which(candidate):
            return Path(found)
    missing = f"needs {' or '.join(names)}, which is not on PATH"
    if os.environ.get("ROLLBACKD_REQUIRE_ALL") == "1":
        pytest.fail(f"{missing}; ROLLBACKD_REQUIRE_ALL=1 lets nothing be skipped")
    pytest.skip(missing)


@pytest.fixture(scope="session")
def require_program() -> RequireProgram:
    """`require_program("alertmanager", "prometheus-alertmanager")` is the path of the first that is installed."""
    return find_program


def pytest_configure() -> None:
    """A shell that runs us in the background has SIGINT ignored, and so would be by all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stop where pytest-xdist doesn't group any more: each process would make anew what the tests share."""
    if not getattr(config.option, "loadgroup", False):
        return
    for item in items:
        if any(item.iter_markers("xdist_group")) and "@" not in item.nodeid.rpartition("]")[2]:
            raise pytest.UsageError(
                f"pytest-xdist doesn't group {item.nodeid}: do its version and pytest's fit?"
            )
