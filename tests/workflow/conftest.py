"""A rig for each test, with waits that don't wait."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tenacity import wait_none
from tests.workflow.rig import Rig, a_target, open_store

from rollbackd.settings import Target
from rollbackd.workflow import engine, watching

MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(engine, "wait_exponential_jitter", lambda **_: wait_none())


@pytest.fixture
async def make_rig(tmp_path: Path) -> AsyncIterator[MakeRig]:
    made: list[Rig] = []

    async def make(*targets: Target, running: bool = True) -> Rig:
        rig = Rig(await open_store(tmp_path), targets or (a_target(),))
        made.append(rig)
        if running:
            await rig.start()
        return rig

    yield make
    for rig in made:
        await rig.stop()
        await rig.store.close()


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    return await make_rig()
