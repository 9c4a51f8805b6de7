"""The staged bytes of one object as S3 is sent them: bodies of requests, and their checksums."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from tusd_py.errors import StagingDamaged, TransientStoreError
from tusd_py.ports import Segment
from tusd_py.stores.digests import ObjectDigest
from tusd_py.stores.ranges import RangeChecksums, RangeReader
from tusd_py.stores.rate_limit import RateLimiter

_BLOCK_BYTES: Final = 2**18
"""What goes to the socket at once: about what a send buffer takes."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of an object come from, and the threads that read them."""

    segments: Sequence[Segment]
    executor: Executor
    digest: ObjectDigest
    """Every read of the staged bytes goes through it."""
    limiter: RateLimiter | None = None
    """Its share of a limited line; None: as fast as it goes."""

    async def checksums(self, start: int, length: int, *, md5: bool, sha256: bool) -> RangeChecksums:
        """Read a range in a thread and return its checksums."""
        return await self.digest.checksums(start, length, md5=md5, sha256=sha256)

    def body(self, start: int, length: int) -> RangeBody:
        """Return a range as the body of a request; the caller closes it."""
        return RangeBody(self.segments, start, length, self.executor, self.limiter)


class RangeBody:
    """A range of the segments as the body of an HTTP request.

    It is what botocore asks of a file (`read`, `seek`, `tell`, `len`) and, being iterable, what
    aiohttp sends without its own thread hop per 64 KiB. It is deliberately no `io.IOBase`, which
    aiohttp would read that other way. Every iteration starts where `seek` left it, so a retried
    request sends the same bytes even while an abandoned iteration still reads. With a `limiter` every
    block waits for its turn on a line of limited speed.

    `failure` keeps what went wrong with the staged bytes, since the HTTP client reports any error
    of a body as a lost connection.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        start: int,
        length: int,
        executor: Executor,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._reader = RangeReader(segments, start, length)
        self._executor = executor
        self._limiter = limiter
        self._position = 0
        self._stall: asyncio.Timeout | None = None
        self._stall_seconds = 0.0
        self.failure: StagingDamaged | TransientStoreError | None = None

    @contextlib.asynccontextmanager
    async def sending(self, stall_seconds: float) -> AsyncIterator[None]:
        """Bound how long the receiver may take nothing of the body. Raises TimeoutError.

        aiohttp has no such bound: its read timeout begins once a body is sent, so a server that stops
        reading, or never says `100 Continue`, would keep a request forever.
        """
        self._stall_seconds = stall_seconds
        try:
            async with asyncio.timeout(stall_seconds) as self._stall:
                yield
        finally:
            self._stall = None

    def _expect_progress(self, within_seconds: float | None) -> None:
        if self._stall is not None and not self._stall.expired():
            moment = None if within_seconds is None else asyncio.get_running_loop().time() + within_seconds
            self._stall.reschedule(moment)

    def __len__(self) -> int:
        return self._reader.length

    def tell(self) -> int:
        """Return the position inside the range."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position inside the range, as files do."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self)}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or all that are left. Blocks; for signing and small bodies only."""
        left = max(0, len(self) - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        chunks = []
        while wanted:
            chunk = self._read_block(self._position, wanted)
            chunks.append(chunk)
            self._position += len(chunk)
            wanted -= len(chunk)
        return b"".join(chunks)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        offset = self._position
        loop = asyncio.get_running_loop()
        size = self._limiter.block_bytes if self._limiter else _BLOCK_BYTES
        while offset < len(self):
            self._expect_progress(None)  # reading is not the receiver's delay
            # The bytes were read a moment ago for their checksum and are in the page cache, so most
            # reads need no thread; whatever would wait for the disk goes to one.
            block = self._read_cached(offset, size)
            if not block:
                block = await loop.run_in_executor(self._executor, self._read_block, offset, size)
            offset += len(block)
            if self._limiter:
                await self._limiter.acquire(len(block))
            self._expect_progress(self._stall_seconds)
            yield block
        self._expect_progress(None)

    def _read_cached(self, offset: int, size: int) -> memoryview | None:
        try:
            return self._read_block(offset, size, os.RWF_NOWAIT)
        except BlockingIOError:
            return None

    def _read_block(self, offset: int, size: int, flags: int = 0) -> memoryview:
        # A view rather than bytes: aiohttp cuts what it is given, which copies anything else.
        buffer = memoryview(bytearray(min(size, len(self) - offset)))
        try:
            return buffer[: self._reader.read_into(buffer, offset, flags)]
        except (StagingDamaged, TransientStoreError) as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Close the file that is open."""
        self._reader.close()
