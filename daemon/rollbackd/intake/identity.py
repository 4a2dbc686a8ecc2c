"""Who asks, as a request says: a bearer token, a browser's session, or a local user on the Unix socket."""

import pwd
import socket
import struct

from aiohttp import web

from rollbackd.ports import Store
from rollbackd.workflow.callers import (
    SESSION_COOKIE,
    Caller,
    Role,
    Sessions,
    UnidentifiedError,
    holder_of,
    is_local_host,
    sent_from_elsewhere,
)


async def identify(request: web.Request, store: Store, sessions: Sessions) -> Caller:
    """Say who asks.

    A browser sends its session with whatever another site makes it send: it is enough for reading alone.

    Raises:
        UnidentifiedError: 401 when nobody we know does; 403 where another site leads a browser to the local socket.
    """
    local = _local_user(request)
    if local:
        elsewhere = request.method != "GET" and sent_from_elsewhere(request.headers, request.host)
        if elsewhere or not is_local_host(request.host):
            raise UnidentifiedError(
                403, "the socket answers this machine's own users, and no other site's pages"
            )
        return Caller(name=f"local:{local}", roles=frozenset(Role), is_local=True)
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        found = await holder_of(store, token.strip())
        if found is None:
            raise UnidentifiedError(401, "the token isn't known, or was revoked")
        return found
    if request.method == "GET" and (session := request.cookies.get(SESSION_COOKIE)):
        signed_in = await sessions.caller(session)
        if signed_in is not None:
            return signed_in
    raise UnidentifiedError(
        401, "a token is needed: Authorization: Bearer …; make one with 'rollbackd tokens create'"
    )


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
