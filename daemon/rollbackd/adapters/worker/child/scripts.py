"""Loading the target's scripts, and reading them without running a downgrade."""

from __future__ import annotations

import argparse
import ast
import base64
import hashlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .faults import AsksQuestion, Refused, TouchesTheWorld, first_line, where_in_user_code
from .isolation import Isolation, OnlyScratch
from .source import (
    asks_for_mode,
    body_of,
    is_comment,
    is_inside,
    literal_calls,
    reachable_from,
    reason_to_stand_alone,
)

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory

    from .channel import Channel

    Answer = dict[str, Any]

MOST_SCRIPT_BYTES = 64 * 1024 * 1024
# What is kept of a script folder: scripts, and the data that migrations read beside them.
KEPT_ENDINGS = (
    ".py",
    ".mako",
    ".sql",
    ".psql",
    ".json",
    ".csv",
    ".tsv",
    ".txt",
    ".yaml",
    ".yml",
    ".toml",
    ".xml",
)
# In kept scripts: where version folders that lay outside the script folder went, in the order of the ini file.
LOCATIONS_FILE = "rollbackd-version-locations.json"


class Scripts:
    """One Alembic environment's scripts: loaded, described, read, exported."""

    config: Config
    script: ScriptDirectory

    def __init__(self, channel: Channel) -> None:
        self.isolation = Isolation()
        self.only_scratch: OnlyScratch | None = None
        self.channel = channel
        self.ini = ""
        self.files: dict[str, tuple[int, int]] = {}

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(
        self,
        directory: str,
        ini: str,
        section: str,
        options: dict[str, str],
        x: list[str],
        script_location: str = "",
        scratch: dict[str, Any] | None = None,
    ) -> Answer:
        """Load the scripts; everything that costs time happens here, before it is needed.

        With `scratch` the worker is one for rehearsals: from here on no connection leads anywhere else.
        """
        # `python -c` puts the current folder first; a project's own folder named alembic must not hide the package.
        sys.path[:] = [path for path in sys.path if path]
        sys.dont_write_bytecode = True
        try:
            import alembic
            import sqlalchemy
            from alembic.config import Config
            from alembic.script import ScriptDirectory
        except ImportError as error:
            raise Refused(
                f"the interpreter {sys.executable} can't import {error.name}: 'migrations.python' (or --python) must name the one that"
                " runs the target's migrations"
            ) from None
        if scratch is not None:
            self.only_scratch = OnlyScratch(scratch)
            self.only_scratch.begin()
        try:
            os.chdir(directory)
        except OSError as error:
            raise Refused(f"the migrations folder {directory} can't be entered: {error.strerror}") from None
        sys.path.append(os.getcwd())
        self.ini = os.path.abspath(ini)
        if not os.path.isfile(self.ini):
            raise Refused(
                f"{os.path.join(directory, ini)} isn't there: 'migrations.ini' names Alembic's ini file"
            )
        try:
            self.config = Config(ini, ini_section=section, cmd_opts=argparse.Namespace(x=list(x)))
            for name, value in options.items():
                self.config.set_main_option(name, value.replace("%", "%%"))
            if script_location:
                self.config.set_main_option("script_location", script_location.replace("%", "%%"))
            self.script = ScriptDirectory.from_config(self.config)
            # User code may change the current folder; nothing here may depend on it.
            self.script.dir = os.path.abspath(self.script.dir)
            locations = os.path.join(script_location, LOCATIONS_FILE)
            if script_location and os.path.isfile(locations):
                with open(locations, "rb") as file:
                    kept = json.loads(file.read())
                self.script.version_locations = [os.path.join(script_location, place) for place in kept]
            elif self.script.version_locations:
                self.script.version_locations = [
                    os.path.abspath(str(place)) for place in self.script._version_locations
                ]
                self.script.__dict__.pop("_version_locations", None)
            # Walking the map imports every script; an error in any of them shows now.
            tuple(self.script.revision_map._revision_map)
        except (Exception, SystemExit) as error:
            place = where_in_user_code(error)
            raise Refused(
                f"the migration scripts can't be loaded: {type(error).__name__}: {first_line(error)}"
                + (f" (at {place})" if place else "")
            ) from error
        self.files = self._stat_files()
        return {
            "python": f"{sys.executable} {sys.version.split()[0]}",
            "alembic": alembic.__version__,
            "sqlalchemy": sqlalchemy.__version__,
        }

    def is_current(self) -> Answer:
        """Whether no script changed since it was loaded."""
        try:
            return {"current": self._stat_files() == self.files}
        except OSError:
            return {"current": False}

    def _outside(self) -> list[str]:
        """The version folders that lie outside the script folder."""
        return [place for place in self._places() if not is_inside(place, self.script.dir)]

    def _places(self) -> list[str]:
        return [os.path.abspath(str(place)) for place in self.script._version_locations or ()]

    def _script_files(self) -> list[tuple[str, str]]:
        """Every file as (name that it is kept under, path), sorted; each file once."""
        return [(name, path) for name, path, _ in self._listed()]

    def _stat_files(self) -> dict[str, tuple[int, int]]:
        state = os.stat(self.ini)
        found = {self.ini: (state.st_mtime_ns, state.st_size)}
        found.update({path: (state.st_mtime_ns, state.st_size) for _, path, state in self._listed()})
        return found

    def _listed(self) -> list[tuple[str, str, os.stat_result]]:
        """Every file as name, path and state, sorted by name; a history may have thousands, and is looked at often."""
        folders = [("", self.script.dir)]
        folders += [(f".version-locations/{i}", place) for i, place in enumerate(self._outside())]
        found: dict[str, tuple[str, str, os.stat_result]] = {}
        for prefix, folder in folders:
            waiting = [(prefix, folder)]
            while waiting:
                below, place = waiting.pop()
                with os.scandir(place) as entries:
                    for entry in entries:
                        name = f"{below}/{entry.name}" if below else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            hidden = entry.name.startswith(".") and bool(prefix)
                            if entry.name != "__pycache__" and not hidden:
                                waiting.append((name, entry.path))
                        elif (
                            entry.name.endswith(KEPT_ENDINGS)
                            and entry.name != LOCATIONS_FILE
                            and entry.is_file()
                        ):
                            found[name] = (name, entry.path, entry.stat())
        return [found[name] for name in sorted(found)]

    # -- reading ---------------------------------------------------------------------------------------------------

    def describe(self) -> Answer:
        """The revision graph and the digest of the scripts."""
        revisions = [
            {
                "id": revision.revision,
                "down": list(revision._versioned_down_revisions),
                "depends_on": sorted(set(revision._normalized_resolved_dependencies)),
                "branch_labels": sorted(revision._orig_branch_labels),
                "title": revision.doc.strip(),
            }
            for revision in self.script.walk_revisions()
        ]
        return {"revisions": revisions, "scripts_sha256": self.digest()}

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, path in self._script_files():
            with open(path, "rb") as file:
                content = file.read()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    def export(self) -> Answer:
        """The scripts themselves, so that a downgrade works when the release that holds them is gone."""
        files, total = {}, 0
        for name, path in self._script_files():
            with open(path, "rb") as file:
                content = file.read()
            total += len(content)
            if total > MOST_SCRIPT_BYTES:
                raise Refused(f"the scripts are larger than {MOST_SCRIPT_BYTES} bytes, so they aren't kept")
            files[name] = base64.b64encode(content).decode()
        outside = self._outside()
        if self.script.version_locations:
            kept = [
                f".version-locations/{outside.index(place)}"
                if place in outside
                else os.path.relpath(place, self.script.dir)
                for place in self._places()
            ]
            files[LOCATIONS_FILE] = base64.b64encode(json.dumps(kept).encode()).decode()
        return {"files": files, "scripts_sha256": self.digest()}

    def read(self, revisions: list[str]) -> Answer:
        """Read and render each revision's downgrade without a database."""
        return {"revisions": [self._read_one(self.revision(r)) for r in revisions]}

    def revision(self, revision_id: str) -> Script:
        from alembic.util import CommandError

        try:
            found = self.script.get_revision(revision_id)
        except CommandError as error:
            raise Refused(f"revision {revision_id} has no script here: {first_line(error)}") from None
        if found.revision != revision_id:
            raise Refused(f"revision {revision_id} has no script here")
        return found

    def _read_one(self, revision: Script) -> Answer:
        with open(revision.path, "rb") as file:
            source = file.read()
        functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        downgrade, upgrade = functions.get("downgrade"), functions.get("upgrade")
        body = body_of(downgrade, functions)
        reachable = [node for f in reachable_from("downgrade", functions) for node in ast.walk(f)]
        answer: Answer = {
            "id": revision.revision,
            "downgrade": body,
            "upgrade_is_empty": upgrade is None or body_of(upgrade, functions) == "empty",
            "stands_alone": reason_to_stand_alone(reachable),
            "source_sha256": hashlib.sha256(source).hexdigest(),
            "calls": literal_calls(reachable),
            "statements": [],
            "failed": "",
            "path": os.path.relpath(revision.path, os.path.dirname(self.ini)),
            "line": downgrade.lineno if downgrade is not None else 1,
        }
        if body == "written" and asks_for_mode(reachable):
            answer["failed"] = "it does something else when it is only rendered (is_offline_mode, as_sql)"
        elif body == "written":
            try:
                with self.isolation:
                    answer["statements"] = self._render(revision)
            except (Exception, AsksQuestion, TouchesTheWorld, SystemExit) as error:  # noqa: BLE001 - user code
                answer["failed"] = f"{type(error).__name__}: {first_line(error)}"
        return answer

    def _render(self, revision: Script) -> list[str]:
        from alembic.operations import Operations
        from alembic.runtime.environment import EnvironmentContext

        statements: list[str] = []
        environment = EnvironmentContext(self.config, self.script, as_sql=True)
        with environment:
            environment.configure(dialect_name="postgresql", output_buffer=io.StringIO())
            context = environment.get_context()
            # One statement at a time, and not a text that has to be cut into statements again.
            context.impl.static_output = lambda text: statements.append(text.strip().rstrip(";"))  # type: ignore[method-assign]
            with Operations.context(context):
                revision.module.downgrade()
        return [s for s in statements if not is_comment(s)]
