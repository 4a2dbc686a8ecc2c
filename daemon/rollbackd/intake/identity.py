"""Who asks: a bearer token with roles, or a local user on the Unix socket."""

import hashlib
import hmac
import pwd
import re
import secrets
import socket
import struct
from datetime import datetime
from enum import StrEnum

import msgspec
from aiohttp import web

from rollbackd.core.records import Token
from rollbackd.errors import NotFoundError, RefusedError, RollbackdError
from rollbackd.ports import Store
from rollbackd.workflow.runs import OURSELVES

# Without a colon: 'local:ann' and 'hook:cd' are names of people on this machine and of hooks.
TOKEN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


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


async def identify(request: web.Request, store: Store) -> Caller:
    """Say who asks.

    Raises:
        UnidentifiedError: 401 when nobody we know does.
    """
    local = _local_user(request)
    if local:
        return Caller(name=f"local:{local}", roles=frozenset(Role), is_local=True)
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise UnidentifiedError(
            401, "a token is needed: Authorization: Bearer …; make one with 'rollbackd tokens create'"
        )
    given = hash_token(token.strip())
    found: Caller | None = None
    for known in await store.tokens():
        if hmac.compare_digest(known.sha256, given) and known.revoked_at is None:
            found = Caller(name=known.name, roles=frozenset(Role(r) for r in known.role.split(",")))
    if found is None:
        raise UnidentifiedError(401, "the token isn't known, or was revoked")
    return found


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


def _local_user(request: web.Request) -> str:
    """The user at the other end of a Unix socket, as the kernel says."""
    if request.transport is None:
        return ""
    connection = request.transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return ""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
