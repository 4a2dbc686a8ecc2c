"""The wheel is complete: installed into an empty environment it runs from any folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("hooks", "config", "grafana", "systemd")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing of this checkout or of this interpreter's environment in sight."""
    ours = ("PYTHON", "VIRTUAL_ENV", "ROLLBACKD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def shipped_files(folder: Path) -> set[str]:
    """The files under a folder, without what Python and its tools leave behind."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("rollbackd-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an empty environment into which the wheel was installed with what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    # This environment's pip installs into the other one: making one there takes longer than all the rest.
    install = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install")
    run(*install, "--quiet", "--no-compile", "--constraint", ROOT / "requirements.lock", wheel, cwd=folder)
    return folder / "bin"


def test_the_command_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """`rollbackd --version` says the version, and a command's help can be read."""
    script = "from importlib.metadata import version; print(version('rollbackd'))"
    version = run(installed / "python", "-c", script, cwd=tmp_path).strip()

    assert version in run(installed / "rollbackd", "--version", cwd=tmp_path)
    assert "Usage" in run(installed / "rollbackd", "check-config", "--help", cwd=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_ships_beside_the_code_is_found_in_the_wheel(kind: str, installed: Path, tmp_path: Path) -> None:
    """Each of the four folders is found in the installed package, with every file that the checkout has, but the scripts that
    write some of them.
    """
    script = f"from rollbackd.resources import resource; print(resource({kind!r}))"
    found = Path(run(installed / "python", "-c", script, cwd=tmp_path).strip())

    assert found.is_relative_to(installed.parent)
    assert shipped_files(found) == {name for name in shipped_files(ROOT / kind) if not name.endswith(".py")}
    assert shipped_files(found), f"{kind} is empty"


def test_the_wheel_claims_no_name_but_its_own(wheel: Path) -> None:
    """Nothing lands beside the package: a top-level `daemon` or `tests` would collide with somebody else's."""
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}

    version = wheel.name.split("-")[1]
    assert top == {"rollbackd", f"rollbackd-{version}.dist-info"}
