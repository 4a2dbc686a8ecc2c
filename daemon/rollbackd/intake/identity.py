"""Who asks: a bearer token with roles, or a local user on the Unix socket."""

import hashlib
import hmac
import pwd
import socket
import struct
from enum import StrEnum

import msgspec
from aiohttp import web

from rollbackd.errors import RollbackdError
from rollbackd.ports import Store


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
    """An identified caller; the name stands in records and reports."""

    name: str
    roles: frozenset[Role]

    def may(self, role: Role) -> bool:
        """Whether the caller has the role; every role may read."""
        return role is Role.READ or role in self.roles


def hash_token(token: str) -> str:
    """What is kept of a token. It is long and random, so one round of SHA-256 is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


async def identify(request: web.Request, store: Store) -> Caller:
    """Say who asks.

    Raises:
        UnidentifiedError: 401 when nobody we know does.
    """
    local = _local_user(request)
    if local:
        return Caller(name=f"local:{local}", roles=frozenset(Role))
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise UnidentifiedError(401, "a token is needed: Authorization: Bearer …; make one with 'rollbackd tokens create'")
    given = hash_token(token.strip())
    found: Caller | None = None
    for known in await store.tokens():
        if hmac.compare_digest(known.sha256, given) and known.revoked_at is None:
            found = Caller(name=known.name, roles=frozenset(Role(r) for r in known.role.split(",")))
    if found is None:
        raise UnidentifiedError(401, "the token isn't known, or was revoked")
    return found


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
