"""Reading staged bytes: any range of the segments of an upload, as if they were one file.

The bytes of an upload are one staged file, or in a concatenation those of its partial uploads in order. What a
store is sent, an object or a part of it, begins and ends anywhere in them. So every read is of a range:

- `file_ranges` maps it to pieces of files. An empty segment has no file.
- `RangeReader` reads it. Files are opened for a range and closed with it, one at a time, so a thousand segments
  cost one file descriptor. Reads are positioned, so threads share no file position.
- `checksum_range` reads it once and returns every checksum that is needed of it.

These bytes were acknowledged to the client. So a file that is missing or too short is damage (`StagingDamaged`),
which is never filled or skipped. Any other error of a read is transient: the disk may recover.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

from tusd_py import crc64
from tusd_py.errors import StagingDamaged, StagingMissing, TransientStoreError
from tusd_py.ports import ObjectSpec, Segment

READ_BYTES: Final = 2**20
"""What a thread reads at once: large enough that switching threads and the system call do not matter."""


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


def _open_staged(path: Path) -> int:
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
            if self._closed:  # an abandoned read in a thread must not open the file again
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
        descriptor = _open_staged(path)
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


def checksum_range(  # noqa: PLR0913 -- one read, and everything that is computed from it
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
    buffer = memoryview(bytearray(min(READ_BYTES, length)))
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
