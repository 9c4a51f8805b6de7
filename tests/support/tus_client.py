"""A small tus client that remembers every byte the server has acknowledged to it.

It behaves as the popular clients do: after any failure it asks HEAD and goes on from there. What
those clients would take for the loss of the upload (any answer to HEAD but 200 and 423) is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import urljoin

import aiohttp

from tests.support.process import POLL_SECONDS, DeadlineExceeded

PIECE_BYTES = 32 * 1024
HEADERS = {"Tus-Resumable": "1.0.0"}
RETRIED = frozenset({409, 423, 503})


@dataclass
class ClientUpload:
    """One upload as its client knows it."""

    content: bytes
    rng: random.Random
    url: str = ""
    id: str = ""
    acknowledged: int = 0
    """The largest offset that any answer has named."""
    resumed: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def sha256(self) -> str:
        """What must arrive."""
        return hashlib.sha256(self.content).hexdigest()


class TusClient:
    """Uploads through one aiohttp session; `on_acknowledged` is told of every newly acknowledged byte.

    A chunk is sent only while `may_send` is set.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: str,
        *,
        on_acknowledged: Callable[[int], None] = lambda _n: None,
        may_send: asyncio.Event | None = None,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._on_acknowledged = on_acknowledged
        self._may_send = may_send

    async def create(self, upload: ClientUpload) -> None:
        """Create the upload at the server."""
        headers = {**HEADERS, "Upload-Length": str(len(upload.content))}
        async with self._session.post(self._endpoint, headers=headers) as response:
            assert response.status == 201, f"POST answered {response.status}: {await response.text()}"
            upload.url = urljoin(self._endpoint, response.headers["Location"])
            upload.id = response.headers["Upload-Id"]

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
        try:
            async with self._session.head(upload.url, headers=HEADERS) as response:
                upload.statuses[response.status] += 1
                if response.status == 423:
                    return None
                assert response.status == 200, f"HEAD answered {response.status}: clients would start from byte 0"
                return int(response.headers["Upload-Offset"])
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return None

    async def _append(self, upload: ClientUpload, offset: int) -> int | None:
        """Send one chunk of a random size; return the new offset, None if it went wrong."""
        if self._may_send is not None:
            await self._may_send.wait()
        room = len(upload.content) - offset
        size = min(room, upload.rng.randint(1, 1 + room))
        headers = {
            **HEADERS,
            "Upload-Offset": str(offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(size),
        }
        body = _pieces(upload.content, offset, offset + size)
        try:
            async with self._session.patch(upload.url, headers=headers, data=body) as response:
                upload.statuses[response.status] += 1
                if response.status in RETRIED:
                    return None
                text = await response.text()
                assert response.status == 204, f"PATCH answered {response.status}: {text}"
                reached = int(response.headers["Upload-Offset"])
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return None
        assert reached == offset + size, f"{size} bytes at {offset} brought the offset to {reached}"
        self._acknowledge(upload, reached)
        return reached

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


async def _pieces(content: bytes, start: int, end: int) -> AsyncIterator[bytes]:
    for position in range(start, end, PIECE_BYTES):
        yield content[position : min(end, position + PIECE_BYTES)]
