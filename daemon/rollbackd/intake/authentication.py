"""Authenticating a delivery on its raw bytes. A closed list of schemes; every comparison takes constant time."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

import msgspec

from rollbackd.errors import DeliveryRefusedError

TOLERANCE_S = 300


class Hmac(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="scheme", tag="hmac"
):
    """HMAC-SHA256 of the raw body in a header, after a fixed prefix, in hex."""

    header: str
    prefix: str = ""
    algorithm: Literal["sha256"] = "sha256"


class StandardWebhooks(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="scheme",
    tag="standard_webhooks",
):
    """Standard Webhooks 1.0.0, scheme v1: `id.timestamp.body` signed with a `whsec_` key; any listed signature counts.

    Source: the Standard Webhooks specification, "Verifying webhook authenticity".
    """


class Bearer(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="scheme", tag="bearer"
):
    """A token in the Authorization header."""


Scheme = Hmac | StandardWebhooks | Bearer


def authenticate(
    scheme: Scheme, secrets: tuple[bytes, ...], headers: Mapping[str, str], body: bytes, now_s: float
) -> None:
    """Let an authentic delivery pass.

    Args:
        secrets: keys as `prepare_secret` made them; any of them may match, so that keys can be rotated.
        headers: the request's, looked up case-insensitively by the caller's mapping.
        now_s: the time in seconds since the epoch.

    Raises:
        DeliveryRefusedError: 401 with a closed reason; never says more than a stranger may know.
    """
    match scheme:
        case Hmac():
            given = headers.get(scheme.header, "")
            if not given:
                raise _unauthentic("no_signature", f"the header {scheme.header} is missing")
            text = given.removeprefix(scheme.prefix)
            if scheme.prefix and text == given:
                raise _unauthentic(
                    "malformed_signature", f"{scheme.header} must begin with {scheme.prefix!r}"
                )
            expected = [_sign(secret, body).hex().encode() for secret in secrets]
            if not _any_equal(expected, [_bytes(text)]):
                raise _unauthentic("wrong_signature", "the signature doesn't fit the body")
        case StandardWebhooks():
            _standard_webhooks(secrets, headers, body, now_s)
        case Bearer():
            given = headers.get("Authorization", "")
            kind, _, token = given.partition(" ")
            if kind.lower() != "bearer" or not token:
                raise _unauthentic("no_token", "a bearer token is expected in the Authorization header")
            # Digests are compared, so that not even a token's length shows.
            expected = [hashlib.sha256(secret).digest() for secret in secrets]
            if not _any_equal(expected, [hashlib.sha256(_bytes(token.strip())).digest()]):
                raise _unauthentic("wrong_token", "the token isn't known")


def prepare_secret(scheme: Scheme, secret: str) -> bytes:
    """The key behind a configured secret; raises ValueError when it can't be one for this scheme."""
    if not isinstance(scheme, StandardWebhooks):
        return secret.encode()
    if not secret.startswith("whsec_"):
        raise ValueError("a Standard Webhooks secret begins with whsec_ and goes on in base64")
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("what follows whsec_ isn't base64") from None
    if not 24 <= len(key) <= 64:
        raise ValueError(f"a Standard Webhooks secret holds 24 to 64 bytes; this one holds {len(key)}")
    return key


def _standard_webhooks(
    secrets: tuple[bytes, ...], headers: Mapping[str, str], body: bytes, now_s: float
) -> None:
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    signatures = headers.get("webhook-signature", "")
    if not (message_id and timestamp and signatures):
        raise _unauthentic("no_signature", "webhook-id, webhook-timestamp and webhook-signature are expected")
    if not (timestamp.isascii() and timestamp.isdecimal()) or len(timestamp) > 12:
        raise _unauthentic("malformed_timestamp", "webhook-timestamp must be whole seconds since the epoch")
    age_s = now_s - int(timestamp)
    if age_s > TOLERANCE_S:
        raise _unauthentic(
            "stale_timestamp", f"signed more than {TOLERANCE_S} s ago; check the sender's clock"
        )
    if age_s < -TOLERANCE_S:
        raise _unauthentic(
            "future_timestamp", f"signed more than {TOLERANCE_S} s ahead of now; check the sender's clock"
        )
    signed = b".".join((_bytes(message_id), timestamp.encode(), body))
    given: list[bytes] = []
    for entry in signatures.split(" "):
        version, _, value = entry.partition(",")
        if version == "v1":
            try:
                given.append(base64.b64decode(value, validate=True))
            except (binascii.Error, ValueError):
                continue
    if not _any_equal([_sign(secret, signed) for secret in secrets], given):
        raise _unauthentic("wrong_signature", "no v1 signature fits id, timestamp and body")


def _bytes(text: str) -> bytes:
    """A header's bytes as they came; aiohttp decodes what isn't UTF-8 to lone surrogates."""
    return text.encode("utf-8", "surrogateescape")


def _sign(key: bytes, message: bytes) -> bytes:
    # hmac.digest() gives up the interpreter's lock whatever the size, and under load waits long to have it back.
    return hmac.new(key, message, "sha256").digest()


def _any_equal(expected: list[bytes], given: list[bytes]) -> bool:
    """Compares all with all, whatever is found."""
    found = False
    for one in expected:
        for other in given:
            found |= hmac.compare_digest(one, other)
    return found


def _unauthentic(reason: str, message: str) -> DeliveryRefusedError:
    return DeliveryRefusedError(401, reason, message)
