"""Telling people: one JSON document for each announcement, POSTed to the configured address, and a line in the log."""

import json

import aiohttp
import structlog

from rollbackd.adapters.secrets import read_secret
from rollbackd.errors import ConfigurationError
from rollbackd.settings import Notify

log = structlog.get_logger()


class WebhookAnnouncer:
    """Fulfils `ports.Announcer`. Never raises and never waits longer than the configured time."""

    def __init__(self, settings: Notify) -> None:
        # Exchanged by a new configuration; the next announcement goes by it.
        self.settings = settings

    async def announce(self, event: str, fields: dict[str, object]) -> None:
        """Log the announcement, and send it where an address is configured."""
        log.info(event, **fields)
        settings = self.settings
        if settings.url is None:
            return
        try:
            timeout = aiohttp.ClientTimeout(total=float(settings.timeout))
            async with aiohttp.ClientSession(timeout=timeout) as session:
                document = json.dumps({"event": event, **fields}, default=str)
                headers = {"Content-Type": "application/json"}
                async with session.post(read_secret(settings.url), data=document, headers=headers) as answer:
                    answer.raise_for_status()
        except (aiohttp.ClientError, TimeoutError, ConfigurationError, ValueError) as error:
            log.warning("announcement_failed", announcement=event, error=type(error).__name__)
