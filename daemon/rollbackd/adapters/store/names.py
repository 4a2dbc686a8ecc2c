"""Names in the store for the shell's completion: read with sqlite3 alone, as a shell waits for every keystroke."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

DATABASE = "rollbackd.sqlite"
# What a busy store may make the shell wait.
PATIENCE_S = 0.5
Named = tuple[str, str]


def run_names(directory: Path, prefix: str, states: Sequence[str], most: int) -> list[Named]:
    """The newest runs whose id begins so, in one of these states (or in any), each with what tells it from the others."""
    # The number of marks follows from how many states there are; each value is a parameter.
    chosen = f" AND state IN ({', '.join('?' * len(states))})" if states else ""
    query = f"SELECT id, target || ' ' || state FROM run WHERE substr(id, 1, ?) = ?{chosen}"  # noqa: S608 - marks alone
    return _names(directory, f"{query} ORDER BY created_at DESC LIMIT ?", [prefix, *states], most)


def decision_names(directory: Path, prefix: str, most: int) -> list[Named]:
    """The newest decisions whose id begins so, each with its target."""
    query = "SELECT id, target FROM decision WHERE substr(id, 1, ?) = ? ORDER BY at DESC LIMIT ?"
    return _names(directory, query, [prefix], most)


def backup_names(directory: Path, prefix: str, most: int) -> list[Named]:
    """The newest backups whose id begins so, each with its target."""
    query = "SELECT id, target FROM backup WHERE substr(id, 1, ?) = ? ORDER BY created_at DESC LIMIT ?"
    return _names(directory, query, [prefix], most)


def token_names(directory: Path, prefix: str, most: int) -> list[Named]:
    """The tokens whose name begins so."""
    query = "SELECT name, '' FROM token WHERE substr(name, 1, ?) = ? ORDER BY name LIMIT ?"
    return _names(directory, query, [prefix], most)


def _names(directory: Path, query: str, values: list[str], most: int) -> list[Named]:
    place = f"file:{quote(str(directory / DATABASE))}?mode=ro"
    with closing(sqlite3.connect(place, uri=True, timeout=PATIENCE_S)) as connection:
        return connection.execute(query, (len(values[0]), *values, most)).fetchall()
