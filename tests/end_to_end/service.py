"""A service that is a file: `running`, beside this script's argument, holds the version that runs.

    service.py FOLDER stop | is-stopped | start VERSION | is-running VERSION

Every stop and start is noted in FOLDER/commands. Each takes a moment, so that it can be interrupted.
"""

import os
import sys
import time
from pathlib import Path

MOMENT_S = float(os.environ.get("MOMENT_S", "0.2"))


def main(folder: Path, command: str, version: str = "") -> bool:
    running = folder / "running"
    if command == "is-stopped":
        return not running.exists()
    if command == "is-running":
        return running.exists() and running.read_text() == version
    with (folder / "commands").open("a") as notes:
        notes.write(f"{command} {version}".strip() + "\n")
    time.sleep(MOMENT_S)
    if command == "stop":
        running.unlink(missing_ok=True)
    else:
        draft = running.with_name("running.draft")
        draft.write_text(version)
        draft.replace(running)
    return True


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), *sys.argv[2:]))
