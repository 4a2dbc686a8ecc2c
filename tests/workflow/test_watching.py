"""A watch that fails: it goes on, and says when it is over."""

from typing import Any

import pytest
import structlog
from tests.workflow.conftest import MakeRig

from rollbackd.errors import PermanentError


async def test_a_watch_that_failed_goes_on_and_says_that_it_recovered(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await make_rig(running=False)
    consider, looks = rig.deciding.consider, 0

    async def failing(*given: Any) -> bool:
        nonlocal looks
        looks += 1
        if looks in (2, 3):
            raise PermanentError("the world is upside down") if looks == 2 else ZeroDivisionError
        return await consider(*given)

    monkeypatch.setattr(rig.deciding, "consider", failing)
    with structlog.testing.capture_logs() as lines:
        await rig.start()
        await rig.deploy(migrates=False)
        await rig.until(lambda: looks > 5)
    said = [line for line in lines if str(line["event"]).startswith("watch_")]
    assert [(line["event"], line["log_level"]) for line in said] == [
        ("watch_failed", "warning"), ("watch_faulted", "error"), ("watch_recovered", "info"),
    ]  # fmt: skip
    assert said[2]["failures"] == 2
