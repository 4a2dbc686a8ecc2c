"""What the CD system calls to deploy the shop.

    shopctl.py --root DIR stop | is-stopped | start VERSION | is-running VERSION | migrate VERSION

`start` replaces the release that runs, if one does. Exit 0: done, or yes; 1: failed, or no; 2: wrong usage; `migrate`
gives Alembic's own exit code. DIR holds releases/VERSION/, `current` (a link to the release whose migration scripts
are live) and shop.env.json (database_url, port, python).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.05


@dataclass(frozen=True)
class Shop:
    """One installed shop."""

    root: Path
    database_url: str
    port: int
    python: str

    @classmethod
    def at(cls, root: Path) -> Shop:
        settings = json.loads((root / "shop.env.json").read_text(encoding="utf-8"))
        return cls(root, settings["database_url"], settings["port"], settings["python"])

    @property
    def pid_file(self) -> Path:
        return self.root / "web.pid"

    def release(self, version: str) -> Path:
        return self.root / "releases" / version

    def stop(self) -> int:
        process = self.running_process()
        if process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.kill(process, number)
                except ProcessLookupError:
                    break
                if wait_until(lambda: self.running_process() is None, STOP_TIMEOUT_S):
                    break
            else:
                return fail(f"process {process} didn't end")
        self.pid_file.unlink(missing_ok=True)
        return 0

    def is_stopped(self) -> int:
        return 0 if self.running_process() is None and not self.port_is_open() else 1

    def start(self, version: str) -> int:
        if self.is_running(version) == 0:
            return 0
        stopped = self.stop()
        if stopped != 0:
            return stopped
        with (self.root / "web.log").open("ab") as log:
            web = subprocess.Popen(
                [self.python, str(self.release(version) / "web.py")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.release(version),
                env={**self.environment(), "SHOP_RELEASE": str(self.release(version))},
                start_new_session=True,  # it outlives us, and whoever called us
            )
        replace_text(self.pid_file, f"{web.pid}\n")
        wait_until(lambda: web.poll() is not None or self.is_running(version) == 0, START_TIMEOUT_S)
        if web.poll() is None and self.is_running(version) == 0:
            return 0
        how = (
            f"ended with {web.returncode}"
            if web.poll() is not None
            else f"didn't answer in {START_TIMEOUT_S:.0f} s"
        )
        if web.poll() is None:
            web.kill()
            web.wait()
        self.pid_file.unlink(missing_ok=True)
        return fail(f"{version} {how}; see {self.root / 'web.log'}")

    def is_running(self, version: str) -> int:
        return 0 if self.running_process() is not None and self.answered_version() == version else 1

    def migrate(self, version: str) -> int:
        replace_link(self.root / "current", Path("releases") / version)
        alembic = [self.python, "-m", "alembic", "-c", "alembic.ini", "upgrade", "head"]
        return subprocess.run(
            alembic, cwd=self.release(version), env=self.environment(), check=False
        ).returncode

    def environment(self) -> dict[str, str]:
        return {**os.environ, "SHOP_DATABASE_URL": self.database_url, "SHOP_PORT": str(self.port)}

    def running_process(self) -> int | None:
        """The web process, or None; a pid that now belongs to somebody else isn't ours."""
        try:
            process = int(self.pid_file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None
        return process if str(self.root / "releases") in command_line(process) else None

    def answered_version(self) -> str | None:
        """What whoever listens on our port calls its version, or None."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/version")
            answer = json.loads(connection.getresponse().read())
            return str(answer["version"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None
        finally:
            connection.close()

    def port_is_open(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(2)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def command_line(process: int) -> str:
    """The command line of a live process; empty where there is none, and for one that ended but wasn't waited for."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    listing = ["ps", "-o", "command=", "-p", str(process)]
    return subprocess.run(listing, capture_output=True, text=True, check=False).stdout


def replace_text(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def replace_link(path: Path, target: Path) -> None:
    """Point the link elsewhere in one step: a reader sees the old release or the new one, never none."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.symlink_to(target)
    draft.replace(path)


def wait_until(happened: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not happened():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def fail(message: str) -> int:
    print(f"shopctl: {message}", file=sys.stderr)
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Deploys the shop.")
    parser.add_argument("--root", type=Path, required=True, help="the shop's directory")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stop", help="end the web process")
    commands.add_parser("is-stopped", help="exit 0 when no web process runs")
    for name, meaning in (
        ("start", "start that release's web process"),
        ("is-running", "exit 0 when that release's web process answers"),
        ("migrate", "make that release's migration scripts the live ones and upgrade the database"),
    ):
        commands.add_parser(name, help=meaning).add_argument("version", metavar="VERSION")
    arguments = parser.parse_args()

    shop = Shop.at(arguments.root.resolve())
    if arguments.command == "stop":
        return shop.stop()
    if arguments.command == "is-stopped":
        return shop.is_stopped()
    if not (shop.release(arguments.version) / "release.toml").is_file():
        parser.error(f"no release {arguments.version} in {shop.root / 'releases'}")
    if arguments.command == "start":
        return shop.start(arguments.version)
    if arguments.command == "is-running":
        return shop.is_running(arguments.version)
    return shop.migrate(arguments.version)


if __name__ == "__main__":
    sys.exit(main())
