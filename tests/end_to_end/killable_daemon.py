"""The daemon, killing itself with SIGKILL at one point of a run: `killable_daemon.py CONFIG POINT`.

A point is a JSON object: `moment` with, where it needs one, `kind` (of a step), `text` and `delay_s`. With `alone` false
everything that the daemon started dies with it, as when the machine does.

    planned      the run is on record, and nothing more
    running      the run was let go, and no step taken
    intent       the step's intent is on record; with `delay_s`, so long after that: in the midst of it
    statement    a statement that holds `text` is being executed, for `delay_s`
    unrecorded   the step was performed, and its outcome isn't on record
    done         the step's outcome is on record, and nothing more was begun
"""

import asyncio
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.app.daemon import serve
from rollbackd.core.records import Run, StepRecord


def die(alone: bool) -> None:
    for task in () if alone else Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            os.killpg(int(child), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Executioner:
    """Hears everything that happens, and ends the process at its point."""

    def __init__(
        self, moment: str, kind: str = "", text: str = "", delay_s: float = 0.0, alone: bool = True
    ) -> None:
        self.moment = moment
        self.kind = kind
        self.text = text
        self.delay_s = delay_s
        self.alone = alone

    def listen(self, name: str, fields: dict[str, object]) -> None:
        if self._is_reached(name, fields):
            if not self.delay_s:
                die(self.alone)
            # A thread of its own: the event loop may be at work at that very time.
            threading.Timer(self.delay_s, die, (self.alone,)).start()

    def _is_reached(self, name: str, fields: dict[str, object]) -> bool:
        match self.moment:
            case "planned":
                return name == "run_planned"
            case "running":
                return name == "run_moved" and fields["after"] == "running"
            case "statement":
                return name == "statement_executed" and self.text in str(fields["text"])
        return name == "step_recorded" and (fields["kind"], fields["phase"]) == (self.kind, self.moment)

    def watch(self, store_class: type[SqliteStore]) -> None:
        """`unrecorded` lies right before the outcome is written, which nobody is told of beforehand."""
        journal = store_class.journal
        kinds: dict[str, list[str]] = {}

        async def watched(store: SqliteStore, record: StepRecord, fence: int) -> Any:
            if record.run not in kinds:
                run = await store.run(record.run)
                assert isinstance(run, Run)
                kinds[record.run] = [step.kind for step in run.plan.steps]
            if record.phase == "done" and kinds[record.run][record.step] == self.kind:
                die(self.alone)
            return await journal(store, record, fence)

        if self.moment == "unrecorded":
            store_class.journal = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    executioner = Executioner(**json.loads(sys.argv[2]))
    executioner.watch(SqliteStore)
    asyncio.run(serve(Path(sys.argv[1]), listener=executioner.listen))
