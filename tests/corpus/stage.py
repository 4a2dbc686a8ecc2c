"""The server that a case plays on: databases and roles, gone after the test."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from rollbackd.demo.postgres import EmbeddedPostgres
from rollbackd.settings import Backup, Database, Migrations, Scratch, SecretReference, Target


@dataclass(frozen=True)
class Role:
    """A login role with a password, and the file that the password lies in."""

    name: str
    password: str
    secret: SecretReference


class Stage:
    """Makes databases, roles and targets on one server."""

    def __init__(self, server: EmbeddedPostgres, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._made: list[str] = []
        self._roles: list[str] = []
        self.superuser = Role(server.user, server.password, self._secret("superuser", server.password))

    def run(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each in its own transaction; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with psycopg.connect(self.server.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def database(self, owner: str = "") -> str:
        """A new database, of that owner."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run("postgres", f"CREATE DATABASE {name}" + (f" OWNER {owner}" if owner else ""))
        self._made.append(name)
        return name

    def role(self) -> Role:
        """A new role that may log in and is nothing more."""
        name, password = f"role_{uuid.uuid4().hex[:8]}", f"pw-{uuid.uuid4().hex}"
        self.run("postgres", f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        self._roles.append(name)
        return Role(name, password, self._secret(name, password))

    def target(self, database: str, role: Role, migrations: Migrations, **sections: Any) -> Target:
        """The target as it's configured: its scratch on the same server, its backups in the stage's folder."""
        url = f"postgresql://{role.name}@{self.server.host}:{self.server.port}/{database}"
        settings: dict[str, Any] = {
            "database": Database(url=url, password=role.secret, binaries=str(self.server.bin_directory)),
            "scratch": Scratch(same_server=True),
            "backup": Backup(directory=str(self.folder / "backups")),
            **sections,
        }
        return Target(name="shop", service="shop", environment="staging", migrations=migrations, **settings)

    def clean(self) -> None:
        """Drop what was made."""
        for name in self._made:
            self.run("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for name in self._roles:
            self.run("postgres", f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")

    def _secret(self, name: str, password: str) -> SecretReference:
        place = self.folder / name
        place.write_text(password)
        place.chmod(0o600)
        return SecretReference(f"file:{place}")
