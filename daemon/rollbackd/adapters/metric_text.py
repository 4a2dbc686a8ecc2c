"""The text that Prometheus scrapes, in the two formats that there are, written out by Prometheus's own client."""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from rollbackd.adapters.metric_families import Family


@dataclass(frozen=True)
class Form:
    """One of the formats, and what stands at its end. OpenMetrics alone has exemplars."""

    media: str
    version: str
    encode: Callable[[Collector], bytes]
    end: bytes

    @property
    def content_type(self) -> str:
        """For the answer's head."""
        return f"{self.media}; version={self.version}; charset=utf-8"

    def write(self, collector: Collector) -> bytes:
        """A collector's families, without the end."""
        return self.encode(collector).removesuffix(self.end)


PLAIN = Form("text/plain", "0.0.4", generate_latest, b"")
OPENMETRICS = Form("application/openmetrics-text", "1.0.0", openmetrics.generate_latest, b"# EOF\n")


class MetricText:
    """Writes families out. One that hasn't changed since isn't written again: targets at rest cost next to nothing."""

    def __init__(self, families: Iterable[Family[Any]], others: Iterable[Collector]) -> None:
        self._families = tuple(families)
        self._others = tuple(others)
        self._written: dict[str, tuple[int, Form, bytes]] = {}

    def write(self, accept: str) -> tuple[bytes, str]:
        """Everything in the format that an Accept header asks for, and its content type."""
        form = form_for(accept)
        parts = [self._write(family, form) for family in self._families]
        return b"".join([*parts, *(form.write(one) for one in self._others), form.end]), form.content_type

    def _write(self, family: Family[Any], form: Form) -> bytes:
        # Read before writing: what changes meanwhile is written the next time.
        changes = family.changes
        known = self._written.get(family.name)
        if known is not None and known[:2] == (changes, form):
            return known[2]
        text = form.write(family)
        self._written[family.name] = (changes, form, text)
        return text


def form_for(accept: str) -> Form:
    """OpenMetrics for whoever wants it at least as much as the plain format (RFC 9110, section 12.5.1)."""
    wanted: dict[str, float] = {}
    for choice in accept.split(","):
        media, *parameters = (part.strip().lower() for part in choice.split(";"))
        quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        with contextlib.suppress(ValueError):
            wanted[media] = max(wanted.get(media, 0.0), float(quality))
    openly = wanted.get(OPENMETRICS.media, 0.0)
    return OPENMETRICS if openly > 0 and openly >= wanted.get(PLAIN.media, 0.0) else PLAIN
