"""Hooks by HTTP: a POST to the one endpoint, which tells the hooks apart by `Hook-Name`."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
import structlog

from tusd_py.errors import HookFailed
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
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(self._backoff_seconds)
            try:
                status, body = await self._post(event)
            except (aiohttp.ClientError, OSError) as error:
                failure = HookFailed(hook=event.kind, cause=repr(error))
            else:
                if status < SERVER_ERROR and status != TOO_MANY_REQUESTS:
                    break
                failure = HookFailed(hook=event.kind, status=status)
            log.warning("hook_attempt_failed", hook=event.kind, attempt=attempt + 1, reason=str(failure))
        else:
            raise failure
        if status not in SUCCESS:
            raise HookFailed(hook=event.kind, status=status)
        return decode_reply(body) if body.strip() else HookReply()

    async def _post(self, event: HookEvent) -> tuple[int, bytes]:
        if self._session is None:
            # Redirects are not followed, and no proxy of the environment is used: hooks go where they are configured.
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=True)
        headers = {"Content-Type": "application/json", "Hook-Name": event.kind.value}
        for name, values in event.request.headers.items():
            if name.lower() in self._forward_headers:
                headers[name] = ", ".join(values)
        async with self._session.post(
            self._url, data=encode_event(event), headers=headers, allow_redirects=False
        ) as response:
            body = await response.content.read(MAX_REPLY_BYTES + 1)
            while len(body) <= MAX_REPLY_BYTES and (more := await response.content.read(MAX_REPLY_BYTES + 1)):
                body += more
            if len(body) > MAX_REPLY_BYTES:
                raise HookFailed(f"The reply is larger than {MAX_REPLY_BYTES} bytes.", hook=event.kind)
            return response.status, body

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
