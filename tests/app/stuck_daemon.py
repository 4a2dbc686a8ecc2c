"""The daemon, with one part of it getting stuck: `stuck_daemon.py CONFIG PART`, with everything that waits made quick.

A part is `nothing`, or sticks once a delivery was answered: `loop` (all of it stands still), `pipeline` (waits for ever inside
an event), `house`, `store` (its writer).
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.app import daemon, systemd
from rollbackd.workflow import pipeline
from rollbackd.workflow.pipeline import Pipeline
from rollbackd.workflow.runs import Runs

stuck = False


def hear(name: str, _: dict[str, object]) -> None:
    global stuck  # noqa: PLW0603 - a switch of this process
    if name == "delivery_answered":
        stuck = True
        if sys.argv[2] == "loop":
            time.sleep(3600)


def stick(owner: type, name: str) -> None:
    works = getattr(owner, name)

    async def sticking(*given: Any, **named: Any) -> Any:
        if stuck:
            await asyncio.sleep(3600)
        return await works(*given, **named)

    setattr(owner, name, sticking)


def main() -> None:
    pipeline.UPKEEP_EVERY_S = pipeline.SLACK_S = 0.3
    daemon.KEEP_HOUSE_EVERY_S = daemon.HOUSE_SLACK_S = 0.3
    systemd.EXTEND_EVERY_S = 0.2
    match sys.argv[2]:
        case "pipeline":
            stick(Pipeline, "_take")
        case "house":
            stick(Runs, "expire")
        case "store":
            stick(SqliteStore, "_write")
    asyncio.run(daemon.serve(Path(sys.argv[1]), listener=hear))


if __name__ == "__main__":
    main()
