"""A small tus client that remembers every byte the server has acknowledged to it.

It behaves as the popular clients do: after any failure it asks HEAD and goes on from there. What
those clients would take for the loss of the upload (any answer to HEAD but 200 and 423) is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.support.http_client import TUS, Connection, Fields, Response, exchange, patch_head
from tests.support.process import POLL_SECONDS, DeadlineExceeded

CONNECT_SECONDS = 5
SILENCE_SECONDS = 15
PIECE_BYTES = 32 * 1024
RETRIED = frozenset({409, 423, 503})


@dataclass
class ClientUpload:
    """One upload as its client knows it."""

    content: bytes
    rng: random.Random
    path: str = ""
    id: str = ""
    connection: Connection | None = None
    acknowledged: int = 0
    """The largest offset that any answer has named."""
    resumed: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def sha256(self) -> str:
        """What must arrive."""
        return hashlib.sha256(self.content).hexdigest()


class ResumingClient:
    """Uploads over a connection for each upload; `on_acknowledged` is told of every newly acknowledged byte.

    A chunk is sent only while `may_send` is set, and at most `most_at_once` requests are under way.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        most_at_once: int = 1000,
        on_acknowledged: Callable[[int], None] = lambda _n: None,
        may_send: asyncio.Event | None = None,
    ) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._path = parts.path
        self._turns = asyncio.Semaphore(most_at_once)
        self._on_acknowledged = on_acknowledged
        self._may_send = may_send
        self._opened: list[Connection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        for connection in self._opened:
            connection.abort()
        await asyncio.sleep(0)

    async def create(self, upload: ClientUpload) -> None:
        """Create the upload at the server."""
        headers = [TUS, ("Upload-Length", str(len(upload.content))), ("Content-Length", "0")]
        response = await exchange(*self._address, "POST", self._path, headers)
        assert response.status == 201, response
        upload.path = urlsplit(response.headers["location"]).path
        upload.id = response.headers["upload-id"]

    async def run(self, upload: ClientUpload, *, deadline: float) -> None:
        """Send everything, whatever happens to the server meanwhile."""
        offset = 0
        try:
            async with asyncio.timeout(deadline):
                while offset < len(upload.content):
                    reached = await self._append(upload, offset)
                    offset = await self._resume(upload) if reached is None else reached
        except TimeoutError:
            raise DeadlineExceeded(
                f"{upload.id} came to {offset} of {len(upload.content)}; {upload.statuses}"
            ) from None

    async def head(self, upload: ClientUpload) -> int | None:
        """Ask for the offset; None while the server cannot tell."""
        response = await self._request(upload, "HEAD", [TUS])
        if response is None or response.status == 423:
            return None
        assert response.status == 200, f"HEAD answered {response.status}: clients would start from byte 0"
        return response.offset

    async def _append(self, upload: ClientUpload, offset: int) -> int | None:
        """Send one chunk of a random size; return the new offset, None if it went wrong."""
        if self._may_send is not None:
            await self._may_send.wait()
        room = len(upload.content) - offset
        size = min(room, upload.rng.randint(1, 1 + room))
        headers = patch_head(offset, ("Content-Length", str(size)))
        response = await self._request(upload, "PATCH", headers, upload.content[offset : offset + size])
        if response is None or response.status in RETRIED:
            return None
        assert response.status == 204, response
        reached = response.offset
        assert reached == offset + size, f"{size} bytes at {offset} brought the offset to {reached}"
        self._acknowledge(upload, reached)
        return reached

    async def _request(self, upload: ClientUpload, method: str, headers: Fields, body: bytes = b"") -> Response | None:
        """Send a request on the upload's connection; None: that connection has failed, the next is a new one."""
        connection, upload.connection = upload.connection, None
        async with self._turns:
            try:
                if connection is None:
                    connection = await self._open()
                await connection.send_head(method, upload.path, headers)
                # An early refusal closes the connection; the answer is there to be read.
                with contextlib.suppress(ConnectionError):
                    for start in range(0, len(body), PIECE_BYTES):
                        await connection.send(body[start : start + PIECE_BYTES])
                response = await connection.response(method, seconds=SILENCE_SECONDS)
            except (ConnectionError, TimeoutError):
                if connection is not None:
                    connection.abort()
                return None
        upload.statuses[response.status] += 1
        if response.headers.get("connection", "").lower() == "close":
            connection.abort()
        else:
            upload.connection = connection
        return response

    async def _open(self) -> Connection:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await Connection.open(*self._address)
        self._opened.append(connection)
        return connection

    async def _resume(self, upload: ClientUpload) -> int:
        """Ask HEAD until it answers: no acknowledged byte may be missing, and none invented."""
        upload.resumed += 1
        while (offset := await self.head(upload)) is None:
            await asyncio.sleep(POLL_SECONDS)
        assert offset >= upload.acknowledged, f"{upload.id}: {upload.acknowledged} was acknowledged, now {offset}"
        assert offset <= len(upload.content)
        self._acknowledge(upload, offset)
        return offset

    def _acknowledge(self, upload: ClientUpload, offset: int) -> None:
        gained, upload.acknowledged = offset - upload.acknowledged, max(offset, upload.acknowledged)
        self._on_acknowledged(max(0, gained))
