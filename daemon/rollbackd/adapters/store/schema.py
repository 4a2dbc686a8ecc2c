"""Bringing the store's own schema up to date, with Alembic, before anything else touches it."""

from pathlib import Path

import sqlalchemy
from sqlalchemy.engine import Connection, Engine

from rollbackd.errors import RefusedError

# Checked by a test against the scripts; it spares every start from importing Alembic.
HEAD = "0001"


def bring_up_to_date(engine: Engine) -> None:
    """Upgrade the store to HEAD.

    Raises:
        RefusedError: when a newer rollbackd wrote this store.
    """
    with engine.connect() as connection:
        current = _current(connection)
        if current == HEAD:
            return
        if current is not None and current > HEAD:
            raise RefusedError(
                f"the store is of schema {current}, and this rollbackd knows {HEAD}: run the newer rollbackd that wrote it"
            )
        # Alembic costs a quarter of a second to import; a store that is up to date does without.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def _current(connection: Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found
