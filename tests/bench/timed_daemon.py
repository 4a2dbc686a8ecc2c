"""The real daemon, with a listener that notes on the machine's monotonic clock when things happened."""

import asyncio
import json
import sys
import time
from pathlib import Path

from rollbackd.app.daemon import serve


def main() -> None:
    """Run it: configuration, file for the times."""
    with Path(sys.argv[2]).open("a", buffering=1) as times:

        def note(name: str) -> None:
            times.write(json.dumps({"name": name, "at": time.monotonic()}) + "\n")

        def listen(name: str, fields: dict[str, object]) -> None:
            if name == "step_recorded" and fields["phase"] in ("intent", "done"):
                note(f"{fields['kind']}_{fields['phase']}")
            elif name == "statement_executed" and str(fields["text"]).startswith("DROP"):
                note("first_statement")
            elif name in (
                "decision_made",
                "run_ended",
                "state_documented",
                "way_back_priced",
                "deployment_started",
                "deployment_ended",
            ):
                note(name)

        asyncio.run(serve(Path(sys.argv[1]), listener=listen, on_ready=lambda port: print(port, flush=True)))


main()
