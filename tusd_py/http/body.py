"""A request's body as the services read it: every way it can end gets a name.

Bytes that have arrived are answered before the error that ends the body, so that nothing received is
thrown away, whatever happened to the connection.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tusd_py.errors import BodyTimedOut, ClientDisconnected
from tusd_py.ports import Body
from tusd_py.protocol.tus_v1 import content_length

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestBody(Body):
    """The body of one aiohttp request."""

    def __init__(self, request: web.Request, *, idle_timeout_seconds: float) -> None:
        self.length = content_length(request.headers)
        self.received = 0
        self.trailers: Mapping[str, str] = {}
        self._request = request
        self._content = request.content
        self._idle_timeout_seconds = idle_timeout_seconds
        self._last_byte = time.monotonic()
        self._interruption: Exception | None = None
        self._reading: asyncio.Timeout | None = None

    async def accept(self) -> None:
        request = self._request
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
            await self._send_continue(request)
        self._last_byte = time.monotonic()

    @staticmethod
    async def _send_continue(request: web.Request) -> None:
        # Here and not in aiohttp's expect handler, which runs before anything is checked: a refusal
        # then costs the client no byte of the body.
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(CONTINUE)

    async def read(self, wait_seconds: float | None = None) -> bytes | None:
        if self._interruption is not None:
            return self._rest(self._interruption)
        idle_until = self._last_byte + self._idle_timeout_seconds
        now = time.monotonic()
        until = idle_until if wait_seconds is None else min(idle_until, now + wait_seconds)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + until - now) as self._reading:
                chunk = await self._content.readany()
        except TimeoutError:
            if self._interruption is not None:
                return self._rest(self._interruption)
            if time.monotonic() < idle_until:
                return None
            return self._rest(BodyTimedOut(idle_seconds=self._idle_timeout_seconds))
        except (ConnectionError, HttpProcessingError, web.RequestPayloadError) as error:
            return self._rest(ClientDisconnected(cause=f"{type(error).__name__}: {error}"))
        finally:
            self._reading = None
        self.received += len(chunk)
        self._last_byte = time.monotonic()
        return chunk

    def _rest(self, ending: Exception) -> bytes:
        """Answer what is buffered, once; then raise the ending."""
        self._interruption = ending
        # read_nowait() refuses once the connection is lost, though the bytes are there.
        rest: bytes = self._content._read_nowait(-1)  # noqa: SLF001
        if not rest:
            raise ending
        self.received += len(rest)
        return rest

    def trailer(self, name: str) -> str | None:
        return self.trailers.get(name.lower())

    def interrupt(self, error: Exception) -> None:
        if self._interruption is None:
            self._interruption = error
            if self._reading is not None:
                self._reading.reschedule(asyncio.get_running_loop().time())
