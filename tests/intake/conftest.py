"""A house for each test: the server, its store and its keys."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.intake.house import House, build
from tests.workflow.rig import Rig, a_target, open_store

from rollbackd.intake.connections import Deadlines

MakeHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def make_house(tmp_path: Path) -> AsyncIterator[MakeHouse]:
    made: list[House] = []

    async def make(
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - frozen
        policy: dict[str, Any] | None = None,
        **server: object,
    ) -> House:
        rig = Rig(await open_store(tmp_path), (a_target(**policy or {}),))
        house = await build(rig, tmp_path, deadlines, **server)
        made.append(house)
        return house

    yield make
    for house in made:
        await house.session.close()
        await house.local.close()
        await house.server.stop()
        await house.rig.stop()
        await house.store.close()


@pytest.fixture
async def house(make_house: MakeHouse) -> House:
    return await make_house()
