"""The shell completes commands, targets and ids, quickly and without a word of its own; tried in the shells themselves."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.adapters.test_store import run
from tests.conftest import RequireProgram

from rollbackd.adapters.store.sqlite import SqliteStore
from rollbackd.core.run import RunState

DAEMON = Path(__file__).resolve().parents[2] / "daemon"
PATIENCE_S = 30.0
READY = "ready-for-you"


@pytest.fixture
async def place(tmp_path: Path) -> Path:
    """A configuration with two targets, and a store with a run that is held and one that awaits approval."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "rollbackd"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={DAEMON} exec {sys.executable} -m rollbackd "$@"\n')
    program.chmod(0o755)
    config = tmp_path / "rollbackd.toml"
    config.write_text(
        'store = { directory = "store" }\n'
        'targets = [{ name = "shop", environment = "production" }, { name = "billing" }]\n'
    )
    store = await SqliteStore.open_writing(tmp_path / "store")
    await store.add_run(run("run-held", key="a", state=RunState.HELD))
    await store.add_run(run("run-waiting", key="b", state=RunState.AWAITING_APPROVAL))
    await store.close()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROLLBACKD")}
    return {
        **kept,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "HOME": str(place),
        "TERM": "dumb",
        "ROLLBACKD_CONFIG": str(place / "rollbackd.toml"),
    }


def completed(place: Path, *words: str, config: str = "") -> list[str]:
    """What bash's script would be told for the last of these words."""
    done = subprocess.run(
        [place / "bin" / "rollbackd"],
        env={
            **environment(place),
            **({"ROLLBACKD_CONFIG": config} if config else {}),
            "COMP_WORDS": " ".join(("rollbackd", *words)),
            "COMP_CWORD": str(len(words)),
            "_ROLLBACKD_COMPLETE": "bash_complete",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_targets_and_ids_are_completed_each_where_it_fits(place: Path) -> None:
    """A run to approve is one that waits, one to resume is one that is held."""
    assert completed(place, "app") == ["approve"]
    assert completed(place, "status", "") == ["shop", "billing"]
    assert completed(place, "status", "sh") == ["shop"]
    assert completed(place, "approve", "run-") == ["run-waiting"]
    assert completed(place, "resume", "") == ["run-held"]
    assert set(completed(place, "report", "run-")) == {"run-held", "run-waiting"}
    assert completed(place, "history", "--sin") == ["--since"]
    assert completed(place, "--config", "nowhere.toml", "status", "") == []


@pytest.mark.parametrize("text", [None, "targets = [", "targets = [{ environment = 1 }]", 'store = "x"'])
def test_what_cannot_be_read_completes_nothing_and_says_nothing(place: Path, text: str | None) -> None:
    """No configuration, a broken one, one without names, one whose store is no folder."""
    config = place / "other.toml"
    if text is not None:
        config.write_text(text)
    for words in (("status", ""), ("report", ""), ("backups", "verify", ""), ("tokens", "revoke", "")):
        assert completed(place, *words, config=str(config)) == []


def test_completing_loads_neither_the_store_nor_the_http_client(place: Path) -> None:
    """A shell waits at every keystroke, and those two take most of a second."""
    code = (
        "import sys; from rollbackd.cli.main import commands; import click\n"
        "commands.get_command(click.Context(commands), 'status'); from rollbackd.cli import completing\n"
        "sys.exit(bool({'sqlalchemy', 'aiohttp', 'asyncpg'} & set(sys.modules)))"
    )
    env = {**environment(place), "PYTHONPATH": str(DAEMON)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, timeout=PATIENCE_S, check=False).returncode == 0
    )


def typed(argv: list[str], env: dict[str, str], setup: str, keys: str, wanted: str) -> str:
    """Type into an interactive shell in a pseudo-terminal until what is wanted appears; what was seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, env)
    seen = ""
    try:
        for text, until in ((f"{setup}\necho {READY[:-1]}''{READY[-1]}\n", READY), (keys, wanted)):
            os.write(terminal, text.encode())
            begin, end = len(seen), time.monotonic() + PATIENCE_S
            while until not in seen[begin:]:
                assert time.monotonic() < end, f"{until} doesn't come: {seen}"
                if select.select([terminal], [], [], 0.1)[0]:
                    seen += os.read(terminal, 65536).decode(errors="replace")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return seen


SHELLS: dict[str, tuple[list[str], str]] = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(rollbackd completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(rollbackd completion zsh)"'),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_a_target_in_the_shell_itself(
    place: Path, shell: str, require_program: RequireProgram
) -> None:
    """As the README says to set it up."""
    require_program(shell)
    argv, setup = SHELLS[shell]
    typed(argv, environment(place), setup, "rollbackd status bi\t", "billing")


def test_fish_completes_with_what_tells_the_names_apart(place: Path, require_program: RequireProgram) -> None:
    """Its own command for that shows each name with its description."""
    require_program("fish")
    script = (
        'rollbackd completion fish | source; complete -C "rollbackd status "; complete -C "rollbackd resume "'
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    # Fish sorts them itself.
    assert sorted(done.stdout.splitlines()) == ["billing", "run-held\tshop held", "shop\tproduction"]
