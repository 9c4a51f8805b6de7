"""A request's body as the services read it: every way it can end gets a name.

Bytes that have arrived are answered before the error that ends the body, so that nothing received is
thrown away, whatever happened to the connection.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import sys
import termios
import time
from typing import TYPE_CHECKING, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tusd_py.errors import BodyTimedOut, ClientDisconnected
from tusd_py.http.trailers import received_trailers
from tusd_py.ports import Body
from tusd_py.protocol.fields import content_length

if TYPE_CHECKING:
    from tusd_py.http.informational import InformationalResponses
    from tusd_py.protocol.upload import Upload

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
QUIET_SECONDS: Final = 0.003
"""So long without a byte, and the kernel's buffer counts as empty."""
FEW_BODIES: Final = 4
"""So many bodies of a process may have the wide buffer."""
WIDE_BUFFER_BYTES: Final = 512 * 1024
"""Above twice as much that waits, aiohttp reads no more; below it, it goes on."""
LAST_SECONDS: Final = 0.03
"""How long an interrupted body is still read for what comes after the interruption."""
HELD_BACK_BYTES: Final = 256 * 1024
"""What the loop reads at once, and a parser that is to pause may hold back."""


class RequestBody(Body):
    """The body of one aiohttp request."""

    def __init__(self, request: web.Request, *, idle_timeout_seconds: float, wide: bool = False) -> None:
        self.length = content_length(request.headers)
        self.received = 0
        self._request = request
        self._content = request.content
        self._wide = wide
        self._idle_timeout_seconds = idle_timeout_seconds
        self._last_byte = time.monotonic()
        self._interruption: Exception | None = None
        self._salvaged = False
        self._last_until = math.inf
        self._at_this_machine = 0
        self._reading: asyncio.Timeout | None = None
        self.interim: InformationalResponses | None = None

    async def accept(self) -> None:
        request = self._request
        if self._interruption is not None:
            return
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
            await self._send_continue(request)
        if self._wide and self.length != 0:
            # A fast client's connection is then stopped and started less often.
            self._content.set_read_chunk_size(WIDE_BUFFER_BYTES)
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
            return await self._last(self._interruption)
        if self._request.transport is None:
            return self._rest(ClientDisconnected(cause="lost before the body was read"))
        idle_until = self._last_byte + self._idle_timeout_seconds
        now = time.monotonic()
        until = idle_until if wait_seconds is None else min(idle_until, now + wait_seconds)
        try:
            if getattr(self._content, "_buffer", None):
                # What is there is not waited for, and a time-out has its price. (A request without a
                # body has a reader without a buffer.)
                chunk = await self._arrived()
            else:
                async with asyncio.timeout(until - now) as self._reading:
                    chunk = await self._arrived()
        except TimeoutError:
            return await self._silence(idle_until)
        except (ConnectionError, HttpProcessingError, web.RequestPayloadError) as error:
            return self._rest(ClientDisconnected(cause=f"{type(error).__name__}: {error}"))
        finally:
            self._reading = None
        self.received += len(chunk)
        self._last_byte = time.monotonic()
        return chunk

    async def _arrived(self) -> bytes:
        """Return the next bytes, `b""` at the end.

        Where the length is known, one buffer as it came from the socket: `readany()` joins all there
        are, which copies every byte once more and lets a fast client grow them to megabytes.
        """
        if self.length is None:
            return await self._content.readany()
        chunk, _ = await self._content.readchunk()
        return chunk

    async def _silence(self, idle_until: float) -> bytes | None:
        """Handle a read that brought nothing: an interruption, the caller's wait or the client's timeout."""
        if self._interruption is not None:
            return await self._last(self._interruption)
        if time.monotonic() < idle_until:
            return None
        return self._rest(BodyTimedOut(idle_seconds=self._idle_timeout_seconds))

    async def _last(self, ending: Exception) -> bytes:
        """Return what has reached this machine though not yet this process; then raise the ending.

        A newer request and a shutdown come while megabytes may wait in the kernel's buffer. All of them are
        read, however busy this process is or slow the disk; what the client sends after them only for a
        moment: it may send on and on.
        """
        if self._salvaged or (time.monotonic() >= self._last_until and not self._left_in_kernel()):
            return self._rest(ending)
        try:
            chunk = await self._next_in_kernel()
        except (TimeoutError, ConnectionError, HttpProcessingError, web.RequestPayloadError):
            return self._rest(ending)
        if not chunk:
            return self._rest(ending)
        self.received += len(chunk)
        return chunk

    def _left_in_kernel(self) -> bool:
        """Return whether something may wait there that came before the interruption."""
        return self.received < self._at_this_machine and kernel_queue_bytes(self._request.transport) > 0

    async def _next_in_kernel(self) -> bytes:
        """Return the next bytes. Raises TimeoutError once none wait in the kernel and none come."""
        while True:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    return await self._arrived()
            except TimeoutError:
                # A busy loop is late for what is there as well.
                if not kernel_queue_bytes(self._request.transport):
                    raise

    def _rest(self, ending: Exception) -> bytes:
        """Return what is buffered, once; then raise the ending.

        A body that has arrived to its end is whole, whatever happened afterwards.
        """
        self._interruption = ending
        rest = b"" if self._salvaged else self._salvage()
        self._salvaged = True
        if not rest and not self._content.at_eof():
            raise ending
        self.received += len(rest)
        return rest

    def _salvage(self) -> bytes:
        # read_nowait() refuses once the connection is lost, though the bytes are there. Reading makes
        # the parser feed what it held back, hence the loop; nothing new arrives from the socket while
        # it runs, so that a client that goes on sending cannot keep us here.
        pieces: list[bytes] = []
        while not self._content.at_eof() and (piece := self._content._read_nowait(-1)):  # noqa: SLF001
            pieces.append(piece)
        return b"".join(pieces)

    def acknowledge(self, upload: Upload) -> None:
        if self.interim is not None:
            self.interim.progress(upload)

    def trailer(self, name: str) -> str | None:
        return received_trailers(self._request).get(name.lower())

    def interrupt(self, error: Exception) -> None:
        if self._interruption is None:
            self._interruption = error
            self._last_until = time.monotonic() + LAST_SECONDS
            waiting = kernel_queue_bytes(self._request.transport)
            self._at_this_machine = self._content.total_bytes + waiting + HELD_BACK_BYTES
            if self._reading is not None and not self._reading.expired():
                self._reading.reschedule(asyncio.get_running_loop().time())


def kernel_queue_bytes(transport: asyncio.BaseTransport | None) -> int:
    """Return how many bytes a connection has received that nobody has read; 0 once it is closed."""
    if transport is None or transport.is_closing():
        return 0
    count = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder)
