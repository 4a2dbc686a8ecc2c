"""Who asks: holders of a token with roles, local people, and browsers in which a holder has signed in."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from rollbackd.core.records import Token
from rollbackd.errors import (
    ConfigurationError,
    DeliveryRefusedError,
    HeldError,
    NotFoundError,
    RefusedError,
    RollbackdError,
    StoreUnavailableError,
    TransientError,
    UsageError,
)
from rollbackd.ports import Clock, Store
from rollbackd.workflow.runs import OURSELVES

# Without a colon: 'local:ann' and 'hook:cd' are names of people on this machine and of hooks.
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
SESSION_COOKIE = "rollbackd_session"
SESSION_FOR = timedelta(hours=12)
MOST_SESSIONS = 20  # of one token; whoever holds one must not sign others out
# What the socket may be called: `rollbackd` by our own commands, the others by a browser through `ssh -L`.
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "rollbackd"})


class Role(StrEnum):
    """What a caller may do. `operate` and `approve` may both read; neither includes the other."""

    READ = "read"
    OPERATE = "operate"
    APPROVE = "approve"


class UnidentifiedError(RollbackdError):
    """Nobody we know, or somebody who may not do this; `status` is the HTTP answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """An identified caller; the name stands in records and reports.

    `is_local` is a user of this machine, on the socket that only the daemon's own user can open.
    """

    name: str
    roles: frozenset[Role]
    is_local: bool = False

    def may(self, role: Role) -> bool:
        """Whether the caller has the role; every role may read."""
        return role is Role.READ or role in self.roles


def hash_token(token: str) -> str:
    """What is kept of a token. It is long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def status_of(error: RollbackdError) -> int:
    """The HTTP status that says an error of this class; a fault that nobody names is the server's."""
    statuses: tuple[tuple[type[RollbackdError], int], ...] = (
        (NotFoundError, 404),
        (UsageError, 400),
        (RefusedError, 409),
        (HeldError, 409),
        (ConfigurationError, 409),
        (StoreUnavailableError, 503),
        (TransientError, 503),
    )
    if isinstance(error, UnidentifiedError | DeliveryRefusedError):
        return error.status
    return next((status for kind, status in statuses if isinstance(error, kind)), 500)


def is_local_host(host: str) -> bool:
    """Whether a Host header names this machine, and not a site whose name was pointed at it."""
    try:
        return urlsplit(f"//{host}").hostname in LOCAL_HOSTS
    except ValueError:
        return False


def sent_from_elsewhere(headers: Mapping[str, str], host: str) -> bool:
    """Whether a browser says that a page of another site sent this; whoever isn't a browser says nothing.

    Sec-Fetch-Site has the last word: a proxy may have changed the Host that an Origin is compared with.
    """
    site, origin = headers.get("Sec-Fetch-Site", ""), headers.get("Origin", "")
    if site:
        return site not in ("same-origin", "none")
    try:
        return bool(origin) and urlsplit(origin).netloc != host
    except ValueError:
        return True


async def holder_of(store: Store, token: str) -> Caller | None:
    """The holder of a token; None where it isn't known or was revoked."""
    return await _holder(store, hash_token(token))


async def _holder(store: Store, sha256: str) -> Caller | None:
    found: Caller | None = None
    for known in await store.tokens():
        if hmac.compare_digest(known.sha256, sha256) and known.revoked_at is None:
            found = Caller(name=known.name, roles=frozenset(Role(r) for r in known.role.split(",")))
    return found


class _Session(msgspec.Struct, frozen=True):
    token_sha256: str
    ends_at: datetime


class Sessions:
    """Browsers in which somebody has signed in with a token. They are forgotten at a restart.

    What a browser holds isn't the token; whoever revokes the token ends its sessions.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._open: dict[str, _Session] = {}
        self._key = secrets.token_bytes(32)

    async def begin(self, token: str) -> str | None:
        """A secret for the browser that gave this token; None where nobody holds it."""
        if await holder_of(self._store, token) is None:
            return None
        now, sha256 = self._clock.now(), hash_token(token)
        self._open = {key: one for key, one in self._open.items() if one.ends_at > now}
        own = [key for key, one in self._open.items() if one.token_sha256 == sha256]
        if len(own) >= MOST_SESSIONS:
            del self._open[own[0]]
        secret = secrets.token_urlsafe(32)
        self._open[hash_token(secret)] = _Session(sha256, now + SESSION_FOR)
        return secret

    async def caller(self, secret: str) -> Caller | None:
        """Who signed in there; None when nobody did, or it is too long ago."""
        session = self._open.get(hash_token(secret))
        if session is None or session.ends_at <= self._clock.now():
            return None
        return await _holder(self._store, session.token_sha256)

    def end(self, secret: str) -> None:
        """Sign out."""
        self._open.pop(hash_token(secret), None)

    def form_key(self, secret: str) -> str:
        """What a form of that browser's pages must bring along, so that another site's can't pass for it."""
        return hmac.new(self._key, secret.encode("utf-8", "surrogateescape"), "sha256").hexdigest()


async def create_token(store: Store, name: str, roles: tuple[str, ...], now: datetime) -> str:
    """Make a token and return it, once: only its digest is kept.

    Raises:
        RefusedError: when the name is taken or a role isn't one.
    """
    known_roles = [role.value for role in Role]
    if not name or not roles or any(role not in known_roles for role in roles):
        raise RefusedError(f"a token needs a name and roles out of {', '.join(known_roles)}")
    if not TOKEN_NAME.fullmatch(name) or name == OURSELVES:
        raise RefusedError(
            "a token's name stands for its holder in reports and approvals: letters, digits, '-', '_' and '.', and not"
            f" {OURSELVES}, which is ourselves"
        )
    if any(known.name == name and known.revoked_at is None for known in await store.tokens()):
        raise RefusedError(f"there is a token {name} already: revoke it first, or take another name")
    token = f"rbd_{secrets.token_urlsafe(32)}"
    kept = Token(name=name, role=",".join(sorted(set(roles))), sha256=hash_token(token), created_at=now)
    await store.save_token(kept)
    return token


async def revoke_token(store: Store, name: str, now: datetime) -> None:
    """Revoke a token; from then on it is unknown.

    Raises:
        NotFoundError: when there is none of that name.
    """
    known = next((t for t in await store.tokens() if t.name == name and t.revoked_at is None), None)
    if known is None:
        raise NotFoundError(f"there is no token {name}")
    await store.save_token(msgspec.structs.replace(known, revoked_at=now))
