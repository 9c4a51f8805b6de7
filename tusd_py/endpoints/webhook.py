"""A webhook: events are sent by POST, signed as Standard Webhooks describes it."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Final

import aiohttp

from tusd_py.endpoints.addresses import PublicResolver, refuse_private_literal
from tusd_py.ports.events import DeliveryFailed, Endpoint, Message
from tusd_py.webhooks.signatures import sign

GONE: Final = 410
SUCCESS: Final = range(200, 300)
MAX_RETRY_AFTER_SECONDS: Final = 3600.0
USER_AGENT: Final = "tusd_py"


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """What an endpoint has said."""

    status: int
    retry_after: str | None


class WebhookEndpoint(Endpoint):
    """One `[[webhooks]]`."""

    def __init__(  # noqa: PLR0913 -- what is configured of an endpoint
        self,
        url: str,
        *,
        secrets: Sequence[str],
        timeout_seconds: float,
        concurrency: int,
        allow_private: bool,
        hook_name: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`hook_name`: name the hook in a header, as tusd does."""
        self._url = url
        self._secrets = secrets
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._concurrency = concurrency
        self._allow_private = allow_private
        self._hook_name = hook_name
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    async def send(self, message: Message) -> None:
        reply = await self.post(message)
        if reply.status not in SUCCESS:
            raise DeliveryFailed(
                f"the endpoint replied {reply.status}",
                retry_after_seconds=self._seconds(reply.retry_after),
                gone=reply.status == GONE,
            )

    async def post(self, message: Message) -> EndpointReply:
        """Send a message and return the reply, whatever its status. Raises `DeliveryFailed` if there is none."""
        if not self._allow_private:
            refuse_private_literal(self._url)
        headers = {"Content-Type": message.content_type, "User-Agent": USER_AGENT}
        if self._hook_name:
            headers["Hook-Name"] = message.name
        # Signed anew for each try, since receivers refuse old messages.
        headers |= sign(self._secrets, message.id, int(self._clock()), message.body)
        try:
            # A redirect could lead anywhere, and is answered as any other status that is no success.
            async with self._opened().post(
                self._url, data=message.body, headers=headers, allow_redirects=False
            ) as response:
                return EndpointReply(response.status, response.headers.get("Retry-After"))
        except TimeoutError as error:
            raise DeliveryFailed("the endpoint did not reply in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DeliveryFailed(f"the endpoint cannot be reached: {error!r}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._concurrency, resolver=None if self._allow_private else PublicResolver()
            )
            # No proxy of the environment is used: events go where they are configured to.
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), timeout=self._timeout
            )
        return self._session

    def _seconds(self, retry_after: str | None) -> float | None:
        """Return the seconds of a Retry-After, which has a number or a date (RFC 9110 §10.2.3)."""
        if retry_after is None:
            return None
        if retry_after.isascii() and retry_after.isdecimal():
            return min(float(retry_after), MAX_RETRY_AFTER_SECONDS)
        try:
            moment = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - self._clock()
        return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
