"""Connecting to PostgreSQL with the configured role, and saying in a sentence why it can't be done."""

from collections.abc import Mapping
from urllib.parse import urlencode

import asyncpg
import msgspec
from sqlalchemy.engine import make_url

from rollbackd.adapters.secrets import read_secret
from rollbackd.errors import PermanentError, TransientError
from rollbackd.settings import SecretReference


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a database is and as whom to go there; the password stays a reference."""

    host: str
    port: int
    database: str
    user: str
    password: SecretReference | None
    options: dict[str, str] = {}

    @classmethod
    def of(cls, url: str, password: SecretReference | None, *, user: str = "", database: str = "") -> "Place":
        """Read a place out of a `postgresql://user@host:port/database` URL."""
        parsed = make_url(url)
        return cls(
            host=parsed.host or str(parsed.query.get("host", "")) or "localhost",
            port=parsed.port or 5432,
            database=database or parsed.database or "postgres",
            user=user or parsed.username or "",
            password=password,
            options={
                k: str(v)
                for k, v in parsed.query.items()
                if k in ("sslmode", "sslrootcert", "sslcert", "sslkey")
            },
        )

    def text(self) -> str:
        """The place as a person reads it."""
        return f"{self.database} at {self.host}:{self.port}"

    def libpq_environment(self, passfile: str) -> dict[str, str]:
        """What PostgreSQL's own tools need to connect; the password is in the passfile alone."""
        ssl = {f"PG{name.upper()}": value for name, value in self.options.items()}
        return {
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSFILE": passfile,
            "PGCONNECT_TIMEOUT": "10",
            **ssl,
        }


async def connect(
    place: Place, timeout_s: float, settings: Mapping[str, str] | None = None
) -> asyncpg.Connection:
    """Open a connection.

    Raises:
        TransientError: when nothing answers in time.
        PermanentError: when the server answers and says no.
    """
    password = read_secret(place.password) if place.password is not None else None
    try:
        return await asyncpg.connect(
            # The only way in for certificates' files; everything else is said below.
            dsn=f"postgresql://?{urlencode(place.options)}" if place.options else None,
            host=place.host,
            port=place.port,
            database=place.database,
            user=place.user or None,
            password=password,
            timeout=timeout_s,
            statement_cache_size=0,
            server_settings={"application_name": "rollbackd", **(settings or {})},
        )
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError) as error:
        reason = str(error) or f"no answer within {timeout_s:g} s"
        raise TransientError(f"the database {place.text()} can't be reached: {reason}") from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise PermanentError(
            f"the database {place.text()} refuses {place.user or 'the connection'}: {error}"
        ) from None
