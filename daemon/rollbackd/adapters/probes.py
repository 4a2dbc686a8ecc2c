"""HTTP probes: one reading at a time. A refused connection is a reading (the application is down); a probe that we
couldn't make (a bad name, a certificate that can't be checked) is quality error and says nothing about health."""

from datetime import datetime

import aiohttp

from rollbackd.adapters.connecting import why_unreachable
from rollbackd.core.evidence import Measurement, Quality
from rollbackd.settings import Probe

MOST_TEXT_BYTES = 65_536


class HttpProber:
    """Fulfils `ports.Prober`. Redirects aren't followed: a probe asks exactly the address it was given."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def measure(self, probe: Probe, at: datetime) -> Measurement:
        """Ask once and say what came back."""
        if self._session is None:
            # A connection of its own for each reading: a kept one would hide that nothing listens any more.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), trust_env=False
            )

        def reading(
            quality: Quality, healthy: bool | None, detail: str, value: float | None = None
        ) -> Measurement:
            return Measurement(
                name=probe.name, at=at, quality=quality, healthy=healthy, detail=detail, value=value
            )

        try:
            timeout = aiohttp.ClientTimeout(total=float(probe.timeout))
            async with self._session.get(probe.url, timeout=timeout, allow_redirects=False) as response:
                text = (await _read(response.content)).decode(errors="replace") if probe.expect_text else ""
        except aiohttp.ClientConnectorDNSError as error:
            return reading(Quality.ERROR, None, f"its name can't be resolved: {error}")
        except aiohttp.ClientConnectorCertificateError as error:
            return reading(Quality.ERROR, None, f"its certificate can't be checked: {error}")
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            return reading(Quality.ERROR, None, "its URL is not one of HTTP")
        except TimeoutError:
            return reading(Quality.OK, False, f"no answer within {probe.timeout:g} s")
        except aiohttp.ClientError as error:
            return reading(Quality.OK, False, f"no answer: {why_unreachable(error)}")
        status = float(response.status)
        if response.status not in probe.expect_status:
            return reading(Quality.OK, False, f"answered {response.status}", status)
        if probe.expect_text and probe.expect_text not in text:
            return reading(
                Quality.OK, False, f"answered {response.status} without {probe.expect_text!r}", status
            )
        return reading(Quality.OK, True, f"answered {response.status}", status)

    async def close(self) -> None:
        """Close the client."""
        if self._session is not None:
            await self._session.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    """The page up to its end or the limit: one read gives no more than what has come so far."""
    found = b""
    while len(found) < MOST_TEXT_BYTES and (chunk := await content.read(MOST_TEXT_BYTES - len(found))):
        found += chunk
    return found
