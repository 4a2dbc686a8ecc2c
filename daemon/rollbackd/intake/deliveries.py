"""POST /hooks/{name}: authenticate, parse, interpret, record, and only then answer."""

import hashlib
import time
from collections.abc import Callable, Mapping

from aiohttp import web

from rollbackd.core.records import Delivery
from rollbackd.errors import DeliveryRefusedError, StoreUnavailableError
from rollbackd.intake.authentication import authenticate
from rollbackd.intake.connections import LIMITS, read_body
from rollbackd.intake.hooks import Hook, Interpretation, parse_body
from rollbackd.ports import Clock, Store
from rollbackd.workflow.happenings import Happenings

# What of a request's head is kept: enough to see what was sent, nothing that authenticates.
KEPT_HEADERS = (
    "content-type",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "x-github-delivery",
    "x-github-event",
)
RETRY_AFTER_S = 5
MOST_REASON = 500


class Deliveries:
    """Receives what hooks authenticate."""

    def __init__(
        self,
        hooks: Mapping[str, tuple[Hook, tuple[bytes, ...]]],
        store: Store,
        clock: Clock,
        happenings: Happenings,
        wake: Callable[[], None],
    ) -> None:
        # Exchanged by a new configuration; what is being answered goes on with the hook that it began with.
        self.hooks = hooks
        self._store = store
        self._clock = clock
        self._happenings = happenings
        self._wake = wake

    async def receive(self, request: web.Request) -> web.Response:
        """Answer one delivery."""
        name, began = request.match_info["name"], time.perf_counter()
        known = self.hooks.get(name)
        if known is None:
            unknown = DeliveryRefusedError(404, "unknown_hook", "no such hook is configured")
            return self._refuse("unknown", unknown, began)
        hook, secrets = known
        try:
            body = await read_body(request, request.app[LIMITS].max_body_bytes)
            authenticate(
                hook.file.authentication, secrets, request.headers, body, self._clock.now().timestamp()
            )
            headers = _first_of_each(request.headers)
            meaning = hook.interpret(headers, parse_body(body))
            return await self._record(hook, headers, body, meaning, began)
        except DeliveryRefusedError as error:
            return self._refuse(name, error, began)
        except StoreUnavailableError as error:
            refused = DeliveryRefusedError(503, "store_unavailable", f"not recorded, send it again: {error}")
            return self._refuse(name, refused, began)

    async def _record(
        self, hook: Hook, headers: dict[str, str], body: bytes, meaning: Interpretation, began: float
    ) -> web.Response:
        digest = hashlib.sha256(body).hexdigest()
        delivery = Delivery(
            id=self._clock.new_id("delivery"),
            hook=hook.name,
            identity=_printable(hook.identity(headers, digest)),
            body_sha256=digest,
            headers={key: _printable(headers[key][:200]) for key in KEPT_HEADERS if key in headers},
            body=body,
            received_at=self._clock.now(),
            events=meaning.events,
            ignored_because=meaning.ignored_because[:MOST_REASON],
        )
        accepted = await self._store.accept(delivery)
        if accepted.conflict:
            raise DeliveryRefusedError(409, "conflict", f"{accepted.id} had this id and another body")
        outcome = "duplicate" if not accepted.is_new else "accepted" if meaning.events else "ignored"
        self._happenings.tell(
            "delivery_answered",
            hook=hook.name,
            outcome=outcome,
            reason=delivery.ignored_because,
            delivery=accepted.id,
            events=len(meaning.events),
            seconds=_since(began),
        )
        if meaning.events and accepted.is_new:
            self._wake()
        if not meaning.events:
            return web.Response(status=204, headers={"X-Rollbackd-Delivery": accepted.id})
        # Built by hand: an id of ours needs no escaping, and this is the busiest answer there is.
        text = '{"id":"' + accepted.id + '","events":' + str(len(meaning.events)) + "}"
        return web.Response(
            status=202 if accepted.is_new else 200, text=text, content_type="application/json"
        )

    def _refuse(self, hook: str, error: DeliveryRefusedError, began: float) -> web.Response:
        self._happenings.tell(
            "delivery_refused",
            hook=hook,
            outcome="refused",
            reason=error.reason,
            status=error.status,
            seconds=_since(began),
        )
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status == 503 else None
        return web.json_response(
            {"error": str(error), "reason": error.reason}, status=error.status, headers=headers
        )


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 6)


def _first_of_each(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by their names in small letters. The first of several counts, as it does where they are authenticated:
    else a signed delivery could be sent again with a second id behind the one that was signed."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        found.setdefault(name.lower(), value)
    return found


def _printable(text: str) -> str:
    """Header bytes that aren't UTF-8 come as lone surrogates, which nothing can store."""
    return (
        text
        if text.isascii()
        else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
