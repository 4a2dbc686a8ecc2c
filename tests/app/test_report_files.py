"""Reports on disk: what is there last is what was true last."""

import asyncio
from pathlib import Path

from tests.console.test_report_page import a_report
from tests.workflow.rig import Rig, a_target, open_store

from rollbackd.app.report_files import ReportFiles
from rollbackd.core.report import Report
from rollbackd.workflow.reporting import Reporting


class SlowAtFirst(Reporting):
    """What the store says takes its time when it is asked first, as it may on a busy machine."""

    state, asked = "held", 0

    async def report(self, run_id: str) -> Report:
        found, self.asked = a_report("ünïcode ✓", status=self.state), self.asked + 1
        if self.asked == 1:
            self.state = "abandoned"
            await asyncio.sleep(0.3)
        return found


async def test_a_later_word_on_a_run_isnt_overwritten_by_an_earlier_one(tmp_path: Path) -> None:
    rig = Rig(await open_store(tmp_path), (a_target(),))
    reporting = SlowAtFirst(rig.store, rig.clock, {}, lambda report: report.status)
    files = ReportFiles(reporting, tmp_path / "reports")
    files.listen("run_moved", {"run": "r", "after": "held"})
    files.listen("run_moved", {"run": "r", "after": "abandoned"})
    await files.finish()
    await rig.store.close()
    assert (tmp_path / "reports" / "r.html").read_text() == "abandoned"
    assert "ünïcode" in (tmp_path / "reports" / "r.md").read_text(encoding="utf-8")
