"""Reports on disk: each run's page and its Markdown, written once it ends or is held, so that they outlive the daemon."""

import asyncio
import os
from pathlib import Path

import structlog

from rollbackd.core.report import to_markdown
from rollbackd.core.run import FINISHED, RunState
from rollbackd.errors import RollbackdError
from rollbackd.workflow.reporting import Reporting

log = structlog.get_logger()


class ReportFiles:
    """Writes `RUN.html` and `RUN.md` into a folder; a later word on the same run replaces them whole."""

    def __init__(self, reporting: Reporting, folder: Path) -> None:
        self._reporting = reporting
        self._folder = folder
        self._writing: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def listen(self, name: str, fields: dict[str, object]) -> None:
        """Told of a run that ended, was held, or was ended by a person's word: writes its report in a task."""
        over = name == "run_ended" or (
            name == "run_moved" and RunState(str(fields["after"])) in FINISHED | {RunState.HELD}
        )
        if over:
            task = asyncio.create_task(self._write(str(fields["run"])))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def finish(self) -> None:
        """Wait for what is being written."""
        if self._writing:
            await asyncio.wait(self._writing)

    async def _write(self, run: str) -> None:
        try:
            # One after another, so that what is written last is what was read last.
            async with self._turn:
                page = await self._reporting.page(run)
                text = to_markdown(await self._reporting.report(run))
                await asyncio.to_thread(self._replace, {f"{run}.html": page, f"{run}.md": text})
        except (RollbackdError, OSError) as error:
            # The store has everything: `rollbackd report` writes it whenever somebody asks.
            log.warning("report_not_written", run=run, error=str(error))

    def _replace(self, texts: dict[str, str]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in texts.items():
            draft = self._folder / f".{name}.draft"
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            draft.replace(self._folder / name)
