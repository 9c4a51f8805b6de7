"""Hooks by HTTP: a POST to the one endpoint, which tells the hooks apart by `Hook-Name`."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import structlog

from tusd_py.errors import HookFailed, HookInvalid
from tusd_py.hooks.messages import MAX_REPLY_BYTES, decode_reply, encode_event
from tusd_py.ports.hooks import HookEvent, HookReply, Hooks

log = structlog.get_logger(__name__)

TOO_MANY_REQUESTS: Final = 429
SERVER_ERROR: Final = 500
SUCCESS: Final = range(200, 300)
NEVER_FORWARDED: Final = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
"""Header fields that describe the client's own request and would break the hook's."""


class HttpHooks(Hooks):
    """Asks an HTTP endpoint; what a request that failed may be sent again for, is tried again."""

    def __init__(
        self, url: str, *, retries: int, backoff_seconds: float, forward_headers: frozenset[str] = frozenset()
    ) -> None:
        """`forward_headers`, in lower case, are sent on with the request, as far as the client sent them."""
        self._url = url
        self._retries = retries
        self._backoff_seconds = backoff_seconds
        self._forward_headers = forward_headers - NEVER_FORWARDED
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, event: HookEvent) -> HookReply:
        tries_left = self._retries
        while True:
            try:
                status, body = await self._post(event)
            except (aiohttp.ClientError, OSError) as error:
                failure = HookFailed(hook=event.kind, cause=repr(error))
            else:
                if status in SUCCESS:
                    return decode_reply(body) if body.strip() else HookReply()
                failure = HookFailed(hook=event.kind, status=status)
                if status < SERVER_ERROR and status != TOO_MANY_REQUESTS:
                    raise failure
            if not tries_left:
                raise failure
            log.warning("hook_retried", hook=event.kind, tries_left=tries_left, reason=str(failure))
            tries_left -= 1
            await asyncio.sleep(self._backoff_seconds)

    async def _post(self, event: HookEvent) -> tuple[int, bytes]:
        if self._session is None:
            # No proxy of the environment is used and no redirect followed: hooks go where they are configured to.
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        headers = {"Content-Type": "application/json", "Hook-Name": event.kind.value}
        for name, values in event.request.headers.items():
            if name.lower() in self._forward_headers:
                headers[name] = ", ".join(values)
        async with self._session.post(
            self._url, data=encode_event(event), headers=headers, allow_redirects=False
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    raise HookInvalid(f"The reply is larger than {MAX_REPLY_BYTES} bytes.", hook=event.kind)
            return response.status, bytes(body)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
