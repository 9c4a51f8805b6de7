"""Reading staged bytes: any range of the segments of an upload, as if they were one file.

Files are opened for a range and closed with it, one at a time, so a thousand segments cost one file
descriptor. Reads are positioned, hence nothing here shares a file position between threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from tusd_py import crc64
from tusd_py.errors import StagingDamaged, StagingMissing, TransientStoreError
from tusd_py.ports import ObjectSpec, Segment
from tusd_py.stores.rate_limit import RateLimiter

STEP_BYTES: Final = 2**20
"""What a thread reads at once: large enough that the hop and the system call do not matter."""
_BLOCK_BYTES: Final = 2**18
"""What goes to the socket at once: about what a send buffer takes."""


def nonempty(segments: Sequence[Segment]) -> list[Segment]:
    """Return the segments that hold anything; the file of an empty one need not exist."""
    return [segment for segment in segments if segment.length]


def require_length(spec: ObjectSpec, segments: Sequence[Segment]) -> None:
    """Check that the segments are as long together as the object they make up.

    Raises:
        StagingDamaged: they are not.
    """
    staged = sum(segment.length for segment in segments)
    if staged != spec.length:
        raise StagingDamaged(key=spec.key, expected=spec.length, staged=staged)


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes [start, start + length) of one staged file."""

    path: Path
    start: int
    length: int


def file_ranges(segments: Sequence[Segment], start: int, length: int) -> Iterator[FileRange]:
    """Yield the ranges of files that make up bytes [start, start + length) of the whole.

    Raises:
        StagingDamaged: the segments end before that.
    """
    begins = 0
    for segment in segments:
        ends = begins + segment.length
        if length and start < ends:
            taken = min(length, ends - start)
            yield FileRange(segment.path, start - begins, taken)
            start, length = start + taken, length - taken
        begins = ends
    if length:
        raise StagingDamaged(staged=begins, missing=length)


def open_staged(path: Path) -> int:
    """Open a staged file for reading and return its descriptor.

    Raises:
        StagingMissing: there is no such file.
        TransientStoreError: it cannot be opened right now.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StagingMissing(path=str(path)) from error
    except OSError as error:
        raise TransientStoreError("A staged file cannot be read.", path=str(path)) from error


def _ended_early(path: Path, position: int) -> StagingDamaged:
    return StagingDamaged(path=str(path), ends_at=position)


class RangeReader:
    """Positioned reads from a range of the segments; `read_at` may be called from any thread."""

    def __init__(self, segments: Sequence[Segment], start: int, length: int) -> None:
        self._ranges = list(file_ranges(segments, start, length))
        self.length = length
        self._lock = threading.Lock()
        self._open: tuple[Path, int] | None = None
        self._closed = False

    def read_into(self, buffer: memoryview, offset: int, flags: int = 0) -> int:
        """Fill the buffer from `offset` bytes into the range on and return how much was read.

        Reads at most to the end of the current file; 0 means the end of the range. `flags` are those
        of preadv2.

        Raises:
            StagingDamaged: a file is missing or shorter than it was recorded to be.
            BlockingIOError: with RWF_NOWAIT, if the bytes are not in the page cache.
        """
        for piece in self._ranges:
            if offset < piece.length:
                return self._read_piece(piece, buffer[: piece.length - offset], offset, flags)
            offset -= piece.length
        return 0

    def _read_piece(self, piece: FileRange, buffer: memoryview, offset: int, flags: int) -> int:
        position = piece.start + offset
        with self._lock:
            if self._closed:  # an abandoned read in a thread must not open the file anew
                raise ValueError("read from a closed range")
            descriptor = self._descriptor(piece.path)
            try:
                count = os.preadv(descriptor, [buffer], position, flags)
            except OSError as error:
                # RWF_NOWAIT was refused, which is no failure: the caller reads again without it.
                if error.errno in {errno.EAGAIN, errno.EOPNOTSUPP} and flags:
                    raise BlockingIOError from error
                raise TransientStoreError("A staged file cannot be read.", path=str(piece.path)) from error
        if not count:
            raise _ended_early(piece.path, position)
        return count

    def _descriptor(self, path: Path) -> int:
        if self._open and self._open[0] == path:
            return self._open[1]
        self._release()
        descriptor = open_staged(path)
        self._open = (path, descriptor)
        return descriptor

    def _release(self) -> None:
        if self._open:
            os.close(self._open[1])
            self._open = None

    def close(self) -> None:
        """Close the file that is open, once a read that is under way in a thread has ended."""
        with self._lock:
            self._closed = True
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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


@dataclass(frozen=True, slots=True)
class RangeChecksums:
    """The checksums of a range: the CRC-64/NVME always, the others where they were asked for."""

    length: int
    crc64nvme: int
    md5: bytes | None = None
    sha256: bytes | None = None


class HashProgress(Protocol):
    """Whatever takes every byte of a read: a hash of hashlib."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""


def checksum_range(  # noqa: PLR0913 -- one read, and all that is wanted of it
    segments: Sequence[Segment],
    start: int,
    length: int,
    *,
    md5: bool = False,
    sha256: bool = False,
    hashes: Sequence[HashProgress] = (),
) -> RangeChecksums:
    """Read a range once and return its checksums. Blocks: call it in a thread; holds 1 MiB.

    The bytes update `hashes` as well.

    Raises:
        StagingDamaged: a file is missing or shorter than it was recorded to be.
    """
    crc = crc64.EMPTY
    md5_hash = hashlib.md5(usedforsecurity=False) if md5 else None
    sha256_hash = hashlib.sha256() if sha256 else None
    buffer = memoryview(bytearray(min(STEP_BYTES, length)))
    offset = 0
    with RangeReader(segments, start, length) as reader:
        while offset < length:
            chunk = buffer[: reader.read_into(buffer, offset)]
            crc = crc64.update(chunk, crc)
            for running in (md5_hash, sha256_hash, *hashes):
                if running is not None:
                    running.update(chunk)
            offset += len(chunk)
    return RangeChecksums(
        length,
        crc,
        None if md5_hash is None else md5_hash.digest(),
        None if sha256_hash is None else sha256_hash.digest(),
    )
