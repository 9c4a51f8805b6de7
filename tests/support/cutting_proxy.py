"""A TCP proxy that cuts, stalls and loses replies at a given byte, and counts what it forwarded.

It understands just enough HTTP/1.1 to know requests from bodies, so that tests can say "cut after
70 MB of body" and "how many bytes travelled in all". It runs an event loop in a thread of its own:
tests may block on a client meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from tests.support.http_meter import UNTIL_CLOSED, HttpMeter, body_length
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until

BUFFER_BYTES = 256 * 1024
CUT_FLUSH_SECONDS = 2.0
_NO_LINGER = struct.pack("ii", 1, 0)  # close() then sends RST and drops what is queued

How = Literal["rst", "fin"]


@dataclass
class Request:
    """One request as the proxy saw it; `body_bytes` counts what was forwarded of its body."""

    method: str
    target: str
    headers: dict[str, str]
    body_bytes: int = 0
    status: int | None = None
    response_headers: dict[str, str] = field(default_factory=dict)

    @property
    def offset(self) -> int | None:
        """The `Upload-Offset` that the client sent."""
        value = self.headers.get("upload-offset")
        return None if value is None else int(value)


@dataclass(frozen=True)
class Cut:
    """Break both connections once so many body bytes were forwarded, over all requests."""

    after_bytes: int
    how: How = "rst"


@dataclass(frozen=True)
class Stall:
    """Forward so many body bytes and swallow the others; the connections stay open."""

    after_bytes: int


@dataclass(frozen=True)
class DropReply:
    """Forward a request of this method whole, then break the connection instead of the answer."""

    method: str = "PATCH"
    how: How = "rst"


@dataclass(frozen=True)
class Answer:
    """Forward a request of this method whole, then answer with this status instead of the server."""

    method: str
    status: int


Fault = Cut | Stall | DropReply | Answer


class CuttingProxy:
    """Listens on a free port (`port`, `url`) and forwards to `upstream`.

    Faults are taken in the order given, each strikes once; afterwards everything passes. Byte counts
    start when the fault before it has struck.
    """

    def __init__(self, upstream_port: int, *faults: Fault) -> None:
        self.upstream_port = upstream_port
        self.faults: deque[Fault] = deque(faults)
        self.struck: list[Fault] = []
        self.requests: list[Request] = []
        self.connections = 0
        self.body_bytes = 0
        """All body bytes that were forwarded to the server."""
        self.errors: list[Exception] = []
        self.port = 0
        self._counted_from = 0
        self._loop = asyncio.new_event_loop()
        self._pairs: set[_Pair] = set()
        self._thread = threading.Thread(target=self._run, name="cutting-proxy", daemon=True)
        self._started = threading.Event()
        self._stopping = asyncio.Event()

    @property
    def origin(self) -> str:
        """The proxy's origin."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Where uploads are created, through the proxy."""
        return f"{self.origin}/files/"

    def of(self, method: str) -> list[Request]:
        """Return the requests of one method so far."""
        return [request for request in list(self.requests) if request.method == method]

    def wait_struck(self, count: int = 1, *, deadline: float = 20) -> None:
        """Wait until so many faults have struck."""
        wait_until(lambda: len(self.struck) >= count, deadline=deadline, what=f"{count} faults have struck")

    def release(self) -> None:
        """Break every open connection, stalled ones too."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for pair in list(self._pairs):
            pair.abort("rst")

    # --- what the connections ask ---

    def allowance(self) -> int | None:
        """Return how many body bytes may still pass before the present fault strikes; None means all."""
        if self.faults and isinstance(fault := self.faults[0], Cut | Stall):
            return max(0, fault.after_bytes - (self.body_bytes - self._counted_from))
        return None

    def strike(self) -> Fault:
        """Take the present fault away: it strikes now."""
        fault = self.faults.popleft()
        self._counted_from = self.body_bytes
        self.struck.append(fault)
        return fault

    # --- the thread ---

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, LOOPBACK, 0, limit=BUFFER_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        self._abort_all()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream = await asyncio.open_connection(LOOPBACK, self.upstream_port, limit=BUFFER_BYTES)
        except OSError:
            _close(writer, "rst")  # as a refused connection looks through a proxy that accepts first
            return
        pair = _Pair(self, (reader, writer), upstream)
        self._pairs.add(pair)
        try:
            await pair.run()
        except asyncio.CancelledError:
            return  # the test has ended; streams would report the cancellation of their callback
        except Exception as error:  # noqa: BLE001 - handed to the test, in __exit__
            self.errors.append(error)
        finally:
            self._pairs.discard(pair)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(5), "the proxy did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        if self.errors and error is None:
            raise ExceptionGroup("the cutting proxy failed", self.errors)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Pair:
    """One client connection and its connection to the server."""

    def __init__(self, proxy: CuttingProxy, client: Streams, upstream: Streams) -> None:
        self._proxy = proxy
        self._client_reader, self._client_writer = client
        self._upstream_reader, self._upstream_writer = upstream
        self._open: deque[Request] = deque()  # requests without an answer yet, in order
        self._requests = HttpMeter(on_head=self._request_head, on_body=self._request_body)
        self._responses = HttpMeter(on_head=self._response_head, on_body=lambda _count: None)
        self._current: Request | None = None
        for writer in (self._client_writer, self._upstream_writer):
            writer.transport.set_write_buffer_limits(high=0)  # drain() means: the kernel has it
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    async def run(self) -> None:
        tasks = {asyncio.create_task(self._to_server()), asyncio.create_task(self._to_client())}
        try:
            done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            self.abort("fin")

    def abort(self, how: How) -> None:
        _close(self._client_writer, how)
        _close(self._upstream_writer, how)

    async def _to_server(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._client_reader.read(BUFFER_BYTES):
                if not await self._forward(data):
                    return
            return  # the client has closed, and so do we towards the server
        self.abort("rst")

    async def _forward(self, data: bytes) -> bool:
        """Send the data on, up to the byte at which the fault strikes; return whether to go on."""
        while data:
            passing = self._requests.passing(data, self._proxy.allowance())
            self._requests.feed(data[:passing])
            self._upstream_writer.write(data[:passing])
            await self._upstream_writer.drain()
            if self._proxy.allowance() == 0 and self._requests.in_body:
                await self._strike()
                return False
            data = data[passing:]
        return True

    async def _strike(self) -> None:
        fault = self._proxy.strike()
        if isinstance(fault, Stall):
            while await self._client_reader.read(BUFFER_BYTES):  # swallowed, until the client gives up
                pass
            return
        assert isinstance(fault, Cut)
        await self._flushed()
        self.abort(fault.how)

    async def _flushed(self) -> None:
        """Wait until the server's kernel has acknowledged all we sent, or it does not read."""
        sock = self._upstream_writer.get_extra_info("socket")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CUT_FLUSH_SECONDS):
                while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]:
                    await asyncio.sleep(0.001)

    async def _to_client(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await self._upstream_reader.read(BUFFER_BYTES):
                if self._loses_reply():
                    fault = self._proxy.strike()
                    if isinstance(fault, Answer):
                        await self._answer(fault.status)
                        return
                    assert isinstance(fault, DropReply)
                    self.abort(fault.how)
                    return
                self._responses.feed(data)
                self._client_writer.write(data)
                await self._client_writer.drain()
        self.abort("fin")

    def _loses_reply(self) -> bool:
        fault = self._proxy.faults[0] if self._proxy.faults else None
        return isinstance(fault, DropReply | Answer) and bool(self._open) and self._open[0].method == fault.method

    async def _answer(self, status: int) -> None:
        self._open.popleft().status = status
        head = f"HTTP/1.1 {status} Injected\r\nContent-Length: 0\r\nTus-Resumable: 1.0.0\r\nConnection: close\r\n\r\n"
        self._client_writer.write(head.encode())
        await self._client_writer.drain()

    def _request_head(self, first: str, headers: dict[str, str]) -> int | None:
        method, target, _version = first.split(" ", 2)
        self._current = Request(method, target, headers)
        self._open.append(self._current)
        self._proxy.requests.append(self._current)
        return body_length(headers)

    def _request_body(self, count: int) -> None:
        assert self._current is not None
        self._current.body_bytes += count
        self._proxy.body_bytes += count

    def _response_head(self, first: str, headers: dict[str, str]) -> int | None:
        status = int(first.split(" ", 2)[1])
        if status < 200 or not self._open:
            return 0
        request = self._open.popleft()
        request.status, request.response_headers = status, headers
        return 0 if request.method == "HEAD" or status in {204, 304} else body_length(headers, default=UNTIL_CLOSED)


def _close(writer: asyncio.StreamWriter, how: How) -> None:
    if writer.transport.is_closing():
        return
    if how == "rst":
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()
    else:
        writer.close()
