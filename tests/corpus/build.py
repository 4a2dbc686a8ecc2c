"""Building a case: its folder, its database, and looks at what the database holds. Plain Alembic alone moves it."""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import alembic.command
import alembic.config
import asyncpg
from tests.corpus.case import Case, Revision
from tests.corpus.environments import ENVIRONMENTS, Environment
from tests.corpus.rows import Contents, Snapshot, lost_between, read_contents, snapshot
from tests.corpus.stage import Role, Stage

from rollbackd.adapters.postgres.catalog import read_schema
from rollbackd.core.schema import Schema, TableName
from rollbackd.settings import Migrations, Target

# Nothing here may wait long: a case that would is stopped by the server.
IMPATIENT = "-c lock_timeout=5000 -c statement_timeout={statement_timeout_ms}"
CHILD_TIMEOUT_S = 60
VERSION_TABLE = re.compile(r"\.(alembic_version|moves)(_pkc)?\b")


@dataclass(frozen=True)
class Said:
    """What plain Alembic answered: whether it claims success, and all that it printed or raised."""

    claims_success: bool
    text: str


@dataclass
class BuiltCase:
    """A case that stands: its folder, its database, and what was there at some heads while it was built."""

    case: Case
    stage: Stage
    folder: Path
    database: str
    role: Role
    schemas: dict[tuple[str, ...], Schema] = field(default_factory=dict)

    @property
    def environment(self) -> Environment:
        return ENVIRONMENTS[self.case.env]

    def fill(self, text: str) -> str:
        """Replace the tokens."""
        server = self.stage.server
        driver = self._raw_settings().get("driver", "psycopg")
        values = {
            "@URL@": self.url(driver),
            "@LIBPQ@": self.url(None),
            "@HOST@": server.host,
            "@PORT@": str(server.port),
            "@USER@": self.role.name,
            "@PASSWORD@": self.role.password,
            "@DATABASE@": self.database,
        }
        for token, value in values.items():
            text = text.replace(token, value)
        return text

    def url(self, driver: str | None) -> str:
        """The address as the role that migrates, with its password."""
        return self.stage.server.url(
            self.database, driver=driver, user=self.role.name, password=self.role.password
        )

    def settings(self) -> dict[str, Any]:
        """What `rollbackd.settings.Migrations` takes besides `python`, tokens replaced."""

        def filled(value: Any) -> Any:
            if isinstance(value, str):
                return self.fill(value)
            if isinstance(value, Mapping):
                return {name: filled(inner) for name, inner in value.items()}
            return tuple(filled(inner) for inner in value) if isinstance(value, tuple) else value

        return {
            "directory": str(self.folder),
            **{name: filled(value) for name, value in self._raw_settings().items()},
        }

    def alembic(self, *arguments: str) -> Said:
        """Run plain Alembic: `alembic("downgrade", "-1")`."""
        if not self.environment.own_process:
            return self._alembic_here(*arguments)
        options = [word for x in self.settings().get("x", ()) for word in ("-x", x)]
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", self._ini(), "-n", self._section(), *options, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], **self._variables()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHILD_TIMEOUT_S,
            check=False,
        )
        return Said(done.returncode == 0, done.stdout + done.stderr)

    def downgrade(self) -> Said:
        """What a person without rollbackd would type for `to`."""
        for to in self.case.typed or (self.case.to,):
            said = self.alembic("downgrade", to)
            if not said.claims_success:
                break
        return said

    def upgrade(self, *heads: str) -> Said:
        """Bring it up to these heads."""
        for head in heads:
            said = self.alembic("upgrade", head)
            if not said.claims_success:
                break
        return said

    def heads(self) -> tuple[str, ...]:
        """The rows of the version table, sorted; none where there is no table."""
        settings = self.settings()
        table = TableName(
            settings.get("version_table_schema") or "public", settings.get("version_table", "alembic_version")
        ).sql()
        if self.stage.run(self.database, f"SELECT to_regclass('{table}') IS NULL")[0][0]:
            return ()
        return tuple(
            row[0] for row in self.stage.run(self.database, f"SELECT version_num FROM {table} ORDER BY 1")
        )

    def snapshot(self) -> Snapshot:
        """Every row of every table."""
        return snapshot(self.stage.server.url(self.database))

    def contents(self) -> Contents:
        """Every row, and the columns' types: what `lost_between` compares."""
        return read_contents(self.stage.server.url(self.database))

    def recast(self, value: str | None, new_type: str, old_type: str) -> str | None:
        """A value's text of the new type, as the old type has it."""
        literal = "NULL" if value is None else "'" + value.replace("'", "''") + "'"
        found: str | None = self.stage.run(
            self.database, f"SELECT ({literal}::{new_type})::{old_type}::text"
        )[0][0]
        return found

    def target(self, **sections: Any) -> Target:
        """The target as rollbackd is configured for it, whose worker runs in this interpreter."""
        migrations = Migrations(python=(sys.executable,), **self.settings())
        return self.stage.target(self.database, self.role, migrations, **sections)

    def lost(self, before: Contents) -> dict[str, int]:
        """What was there `before` and isn't now."""
        return lost_between(before, self.contents(), self.case.expect.moved, self.recast)

    def schema(self) -> Schema:
        """Every object of the catalog but the version table."""

        async def read() -> Schema:
            connection = await asyncpg.connect(self.stage.server.url(self.database))
            try:
                return await read_schema(connection)
            finally:
                await connection.close()

        objects = asyncio.run(read()).objects
        return Schema({name: text for name, text in objects.items() if not VERSION_TABLE.search(name)})

    def has(self, name: str) -> bool:
        """Whether `table` or `table.column` is there, in any schema."""
        table, _, column = name.partition(".")
        return bool(
            self.stage.run(
                self.database,
                "SELECT 1 FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped"
                f" WHERE c.relname = '{table}' AND '{column}' IN ('', a.attname) AND c.relkind IN ('r', 'p', 'v', 'm')"
                " LIMIT 1",
            )
        )

    def write(self, revision: Revision, down: tuple[str, ...]) -> None:
        """Write one script."""
        text = (
            f'"""{revision.id}"""\n\nimport sqlalchemy as sa\nfrom alembic import op\n{dedent(revision.head)}\n'
            f"revision = {revision.id!r}\ndown_revision = {_reference(down)}\n"
            f"branch_labels = {revision.branch_labels or None!r}\ndepends_on = {revision.depends_on or None!r}\n"
        )
        for name, body in (("upgrade", revision.upgrade), ("downgrade", revision.downgrade)):
            if body is not None:
                text += f"\n\ndef {name}():\n{indent(dedent(body).strip(), '    ')}\n"
        (self.folder / "migrations" / "versions" / f"{revision.id}_.py").write_text(self.fill(text))

    def write_scripts(self, over: tuple[Revision, ...] = ()) -> None:
        """Write all scripts, those of `over` in place of the ones with their id."""
        instead = {revision.id: revision for revision in over}
        before: tuple[str, ...] = ()
        for revision in self.case.revisions:
            written = instead.get(revision.id, revision)
            self.write(written, before if written.down is None else written.down)
            before = (revision.id,)

    def write_project(self) -> None:
        """Write the folder anew."""
        (self.folder / "migrations" / "versions").mkdir(parents=True, exist_ok=True)
        settings = self.settings()
        address = self.fill(self.environment.address).replace("%", "%%")
        files = {
            settings.get("ini", "alembic.ini"): f"[{settings.get('section', 'alembic')}]\n"
            "script_location = %(here)s/migrations\nprepend_sys_path = %(here)s\npath_separator = os\n"
            f"sqlalchemy.url = {address}\n",
            "migrations/env.py": self.environment.env_py,
            **self.environment.files,
            **self.case.files,
        }
        for path, text in files.items():
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(self.fill(text))
        self.write_scripts()

    def _raw_settings(self) -> dict[str, Any]:
        return {**self.environment.settings, **self.case.settings}

    def _ini(self) -> str:
        return str(self.folder / self.settings().get("ini", "alembic.ini"))

    def _section(self) -> str:
        return str(self.settings().get("section", "alembic"))

    def _variables(self) -> dict[str, str]:
        settings = self.settings()
        timeout_ms = int(settings.get("statement_timeout", 20) * 1000)
        variables = {
            "PGOPTIONS": IMPATIENT.format(statement_timeout_ms=timeout_ms),
            **settings.get("environment", {}),
        }
        way = settings.get("url", "own")
        if way.startswith("environment:"):
            variables[way.removeprefix("environment:")] = self.fill("@URL@")
        return variables

    def _alembic_here(self, command: str, to: str) -> Said:
        config = alembic.config.Config(self._ini(), ini_section=self._section())
        if self._raw_settings().get("url") == "option":
            config.set_main_option("sqlalchemy.url", self.fill("@URL@").replace("%", "%%"))
        with _environment_variables(self._variables()):
            try:
                getattr(alembic.command, command)(config, to)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a script raises is what it says
                return Said(False, f"{type(error).__name__}: {error}")
        return Said(True, "")


def build(case: Case, stage: Stage, folder: Path) -> BuiltCase:
    """Write the project and make its database: prepared, upgraded to `at`, with its rows.

    On the way it stops once at the heads that the case shall come back to, and remembers their schema.
    """
    role = stage.role() if case.ordinary_role else stage.superuser
    database = stage.database(owner=role.name if case.ordinary_role else "")
    built = BuiltCase(case, stage, folder, database, role)
    built.write_project()
    stage.run(database, *(built.fill(statement) for statement in case.prepare))
    known = {revision.id for revision in case.revisions}
    if known.issuperset(case.expect.heads_after):
        _must(built.upgrade(*case.expect.heads_after) if case.expect.heads_after else Said(True, ""), case)
        built.schemas[case.expect.heads_after] = built.schema()
    _must(built.upgrade(*case.at.split(",")), case)
    stage.run(database, *case.rows)
    if case.afterwards:
        built.write_scripts(case.afterwards)
    return built


def _reference(revisions: tuple[str, ...]) -> str:
    return repr(revisions[0]) if len(revisions) == 1 else repr(revisions or None)


def _must(said: Said, case: Case) -> None:
    if not said.claims_success:
        raise AssertionError(f"{case.name} can't be built: {said.text}")


@contextlib.contextmanager
def _environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
