"""What the shell completes: targets out of the configuration, ids out of the store. Read as they lie there, without checks."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollbackd.adapters.store import names
from rollbackd.settings import Store

MOST = 50
Named = tuple[str, str]


def target_names(configuration: Path, prefix: str) -> list[Named]:
    """The configured targets whose name begins so, each with its environment."""
    return [
        (str(target["name"]), str(target.get("environment", "")))
        for target in _read(configuration).get("targets", [])
        if str(target["name"]).startswith(prefix)
    ]


def run_names(configuration: Path, prefix: str, states: Sequence[str] = ()) -> list[Named]:
    """The newest runs whose id begins so, each with its target and state."""
    return names.run_names(_store(configuration), prefix, states, MOST)


def run_and_decision_names(configuration: Path, prefix: str) -> list[Named]:
    """The newest runs and decisions whose id begins so."""
    place = _store(configuration)
    return [*names.run_names(place, prefix, (), MOST), *names.decision_names(place, prefix, MOST)]


def backup_names(configuration: Path, prefix: str) -> list[Named]:
    """The newest backups whose id begins so, each with its target."""
    return names.backup_names(_store(configuration), prefix, MOST)


def token_names(configuration: Path, prefix: str) -> list[Named]:
    """The API tokens whose name begins so."""
    return names.token_names(_store(configuration), prefix, MOST)


def _read(configuration: Path) -> dict[str, Any]:
    with configuration.open("rb") as file:
        return tomllib.load(file)


def _store(configuration: Path) -> Path:
    directory: str = _read(configuration).get("store", {}).get("directory", Store().directory)
    return configuration.parent / directory
