"""An HTTP proxy in front of an S3 server that does to single requests what networks and stores do.

It understands enough of S3 to tell the operations apart and to count what really happened behind it:
how often each key was made by a PUT or by CompleteMultipartUpload, and which parts were accepted.
The Host header passes as it is, for it is signed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import unquote

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.ports import LOOPBACK

Kind = Literal["503", "500", "reset", "stall", "truncated", "lost-reply", "skew"]
KINDS: Final[tuple[Kind, ...]] = ("503", "500", "reset", "stall", "truncated", "lost-reply", "skew")
HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "upgrade"})
FORWARD_BYTES: Final = 64 * 1024
START_SECONDS: Final = 5
SKEW: Final = timedelta(hours=1)
ERROR_BODY: Final = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
ERRORS: Final[dict[Kind, tuple[int, str]]] = {
    "503": (503, "SlowDown"),
    "500": (500, "InternalError"),
    "skew": (403, "RequestTimeTooSkewed"),
}


def operation_of(method: str, url: URL) -> str:
    """Return the name of the S3 operation of a request."""
    query, below_bucket = url.query, url.path.strip("/").count("/") > 0
    if method == "PUT":
        return "UploadPart" if "partNumber" in query else "PutObject"
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
    if method == "DELETE":
        return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
    if method == "HEAD":
        return "HeadObject" if below_bucket else "HeadBucket"
    if "uploadId" in query:
        return "ListParts"
    return "ListMultipartUploads" if "uploads" in query else ("GetObject" if below_bucket else "ListObjects")


Choose = Callable[[str], Kind | None]
"""Decides for a request, by its operation, what happens to it."""


@dataclass
class S3FaultProxy:
    """Listens on a free port (`origin`) and forwards to a server's origin, but for the faults.

    `choose` is called once for each request, in the proxy's thread.
    """

    upstream: str
    choose: Choose
    port: int = 0
    struck: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    """How often the server made an object of a key, whatever the client heard of it."""
    accepted_parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often the server accepted a part, by upload id and number."""

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._released = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="s3-fault-proxy", daemon=True)

    @property
    def origin(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(START_SECONDS), "the proxy did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{tail:.*}", self._handle, expect_handler=_no_continue_yet)
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.1, lingering_time=1)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, 0)
        await site.start()
        self.port = runner.addresses[0][1]
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as self._client:
            self._started.set()
            await self._stopping.wait()
            self._released.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        url = URL(f"{self.upstream}{request.raw_path}", encoded=True)
        operation = operation_of(request.method, url)
        self.seen[operation] += 1
        kind = self.choose(operation)
        if kind is not None:
            self.struck[operation, kind] += 1
        if kind in ERRORS:
            return _refusal(request, *ERRORS[kind])
        await _continue(request)
        if kind == "stall":
            # Longer than any client of the tests waits, unless the test ends before.
            await self._released.wait()
            return _drop(request)
        if kind == "reset":
            await request.content.read(FORWARD_BYTES)
            return _drop(request)
        try:
            return await self._forward(request, url, operation, kind)
        except (aiohttp.ClientError, ConnectionError):
            return _drop(request)  # one side is gone, and the other shall notice

    async def _forward(self, request: web.Request, url: URL, operation: str, kind: Kind | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        body = _pieces(request) if request.can_read_body else None
        async with self._client.request(
            request.method, url, headers=headers, data=body, skip_auto_headers=("User-Agent", "Content-Type")
        ) as answer:
            content = await answer.read()
            self._count(operation, url, answer.status)
            if kind == "lost-reply":
                return _drop(request)
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            if request.method != "HEAD":
                response.content_length = len(content)
            await response.prepare(request)
            if kind == "truncated":
                await response.write(content[: len(content) // 2])
                return _drop(request)
            await response.write(content)
            await response.write_eof()
            return response

    def _count(self, operation: str, url: URL, status: int) -> None:
        if status >= 300:
            return
        if operation in {"PutObject", "CompleteMultipartUpload"}:
            self.made[unquote(url.path)] += 1
        elif operation == "UploadPart":
            self.accepted_parts[url.query["uploadId"], url.query["partNumber"]] += 1


async def _no_continue_yet(_: web.Request) -> None:
    """Leave the 100 to `_continue`: a refusal comes before the body."""


async def _continue(request: web.Request) -> None:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_chunked(FORWARD_BYTES):
        yield piece


def _refusal(request: web.Request, status: int, code: str) -> web.Response:
    headers = {}
    if code == "RequestTimeTooSkewed":
        headers["Date"] = format_datetime(datetime.now(UTC) + SKEW, usegmt=True)
    # A HEAD is answered without a body, hence without a code.
    text = "" if request.method == "HEAD" else ERROR_BODY.format(code=code)
    response = web.Response(status=status, text=text, content_type="application/xml", headers=headers)
    response.force_close()
    return response


def _drop(request: web.Request) -> web.Response:
    """Break the connection; whatever is returned then reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
