"""Verifying migrations without a daemon: a configured target's, or those of a folder that nobody has configured yet."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from rollbackd.adapters.rehearsal.verifying import verify_from_base
from rollbackd.app.configuration import load_configuration
from rollbackd.app.logs import set_up_logs
from rollbackd.core.verification import Verification, Verified
from rollbackd.errors import NotFoundError, RefusedError, UsageError
from rollbackd.settings import Database, Logging, Migrations, Scratch, SecretReference, Target

# Scratch databases of a check have their own name, so that a daemon's sweep leaves them alone.
STORE_ID = "verify"


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """Migrations as a CI job has them: a folder, an interpreter, a scratch server."""

    directory: str
    ini: str = "alembic.ini"
    python: tuple[str, ...] = ("python3",)
    x: tuple[str, ...] = ()
    url: str = "own"
    driver: str = "psycopg"
    version_table: str = "alembic_version"
    version_table_schema: str = ""
    scratch: str
    scratch_password: str = ""
    binaries: str = ""


async def verify_migrations(
    what: Folder | tuple[Path, str],
    *,
    start: str,
    made_up_rows: int,
    told: Callable[[Verified], None],
    kept: Path,
) -> Verification:
    """Verify a folder's migrations, or those of the target (configuration file and name).

    Raises:
        RollbackdError: when there is nothing to verify, or no scratch server to do it on.
    """
    # Standard output is the answer's; only what goes wrong is logged, on stderr.
    set_up_logs(Logging(level="warning"))
    target = _folder_target(what) if isinstance(what, Folder) else _configured(*what)
    heads = tuple(part.strip() for part in start.split(",") if part.strip())
    return await verify_from_base(target, kept, STORE_ID, start=heads, made_up_rows=made_up_rows, told=told)


def _configured(config: Path, name: str) -> Target:
    settings = load_configuration(config).settings
    target = settings.target(name)
    if target is None:
        raise NotFoundError(
            f"there is no target {name}; configured are {', '.join(t.name for t in settings.targets) or 'none'}"
        )
    if not (target.scratch.url or target.scratch.same_server):
        raise RefusedError(
            f"{name} has no scratch server: set 'scratch.url', or allow the guarded one with 'scratch.same_server = true'"
        )
    return target


def _folder_target(folder: Folder) -> Target:
    url = folder.scratch
    if not url.startswith(("postgresql://", "postgres://")):
        raise UsageError(
            f"'{url}' is no scratch server: give postgresql://user@host:port/database, or embedded"
        )
    try:
        reference = SecretReference.parse(folder.scratch_password) if folder.scratch_password else None
    except ValueError as error:
        raise UsageError(f"--scratch-password: {error}") from None
    return Target(
        name="migrations",
        service="migrations",
        environment="ci",
        database=Database(url=url, password=reference, binaries=folder.binaries),
        migrations=Migrations(
            directory=str(Path(folder.directory).resolve()),
            ini=folder.ini,
            python=folder.python,
            x=folder.x,
            url=folder.url,
            driver=folder.driver,
            version_table=folder.version_table,
            version_table_schema=folder.version_table_schema,
        ),
        scratch=Scratch(same_server=True),
    )
