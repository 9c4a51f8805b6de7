"""How a block of bytes reaches the disk. Everything here blocks and runs in writer threads.

Three paths, in the order `auto` prefers them (figures in `bench/README.md`):

- `dontcache`: `pwritev2` with `RWF_DONTCACHE` (Linux 6.14 and later) leaves no page cache behind, so
  that durable writing costs no more than volatile writing.
- `direct`: `O_DIRECT` from an aligned buffer that belongs to the thread. What is not aligned, a
  block's head and tail, goes through the page cache.
- `page-cache`: plain `pwritev`, right everywhere.

A path that a file system refuses falls back to the next one, once, for the rest of the process.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import structlog

log = structlog.get_logger(__name__)

RWF_DONTCACHE: Final = 0x80
"""Linux uapi `RWF_DONTCACHE`; Python's os module does not name it yet."""
IOV_MAX: Final = 1024
ALIGNMENT: Final = 4096
DIRECT_BUFFER_BYTES: Final = 512 * 1024
REFUSED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

WritePath = Literal["auto", "page-cache", "direct", "dontcache"]
Chunks = Sequence[bytes | memoryview]


class Writer(Protocol):
    """Writes whole blocks at a position."""

    @property
    def name(self) -> str:
        """The path that is taken, as the configuration names it."""

    def write(self, fd: int, path: str, chunks: Chunks, offset: int) -> None:
        """Write every byte of `chunks` at `offset`. Raises OSError, ENOSPC among them."""


def make_writer(write_path: WritePath) -> Writer:
    """Return the writer for a setting; `auto` finds out by trying."""
    match write_path:
        case "page-cache":
            return PageCacheWriter()
        case "direct":
            return FallbackWriter("direct", DirectWriter(), PageCacheWriter())
        case "dontcache":
            return FallbackWriter("dontcache", DontCacheWriter(), PageCacheWriter())
        case "auto":
            direct = FallbackWriter("direct", DirectWriter(), PageCacheWriter())
            return FallbackWriter("dontcache", DontCacheWriter(), direct)


class PageCacheWriter(Writer):
    """`pwritev` into the page cache."""

    name = "page-cache"

    def write(self, fd: int, path: str, chunks: Chunks, offset: int) -> None:
        write_all(fd, chunks, offset, 0)


class DontCacheWriter(Writer):
    """`pwritev2` with `RWF_DONTCACHE`: written through the page cache and dropped from it."""

    name = "dontcache"

    def write(self, fd: int, path: str, chunks: Chunks, offset: int) -> None:
        write_all(fd, chunks, offset, RWF_DONTCACHE)


class DirectWriter(Writer):
    """`O_DIRECT` for whole pages, the page cache for what is left over.

    The bytes are copied once, into an aligned buffer that belongs to the thread. A block that does not
    begin on a page goes through the page cache; the next one then does begin on one.
    """

    name = "direct"

    def __init__(self) -> None:
        self._local = threading.local()

    def write(self, fd: int, path: str, chunks: Chunks, offset: int) -> None:
        if offset % ALIGNMENT or sum(map(len, chunks)) < ALIGNMENT:
            write_all(fd, chunks, offset, 0)
            return
        direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            rest, offset = self._write_pages(direct, chunks, offset)
        finally:
            os.close(direct)
        if rest:
            write_all(fd, [rest], offset, 0)

    def _write_pages(self, direct: int, chunks: Chunks, offset: int) -> tuple[bytes, int]:
        """Write all whole pages; return what is left over and where it belongs."""
        buffer, filled = self._buffer(), 0
        with memoryview(buffer) as aligned:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    taken = min(len(view), DIRECT_BUFFER_BYTES - filled)
                    aligned[filled : filled + taken] = view[:taken]
                    view, filled = view[taken:], filled + taken
                    if filled == DIRECT_BUFFER_BYTES:
                        write_all(direct, [aligned], offset, 0)
                        offset, filled = offset + filled, 0
            pages = filled // ALIGNMENT * ALIGNMENT
            if pages:
                with aligned[:pages] as block:
                    write_all(direct, [block], offset, 0)
            return bytes(aligned[pages:filled]), offset + pages

    def _buffer(self) -> mmap.mmap:
        buffer: mmap.mmap | None = getattr(self._local, "buffer", None)
        if buffer is None:
            # Anonymous mappings begin on a page: aligned memory without a C extension.
            buffer = self._local.buffer = mmap.mmap(-1, DIRECT_BUFFER_BYTES)
        return buffer


class FallbackWriter(Writer):
    """A writer until the file system refuses it, then another one."""

    def __init__(self, name: str, preferred: Writer, fallback: Writer) -> None:
        self._name = name
        self._preferred: Writer | None = preferred
        self._fallback = fallback

    @property
    def name(self) -> str:
        """That of whichever writes now: known after the first write."""
        return (self._preferred or self._fallback).name

    def write(self, fd: int, path: str, chunks: Chunks, offset: int) -> None:
        if (preferred := self._preferred) is not None:
            try:
                preferred.write(fd, path, chunks, offset)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                log.info("write_path_unsupported", write_path=self._name, reason=os.strerror(error.errno or 0))
                self._preferred = None
            else:
                return
        self._fallback.write(fd, path, chunks, offset)


def write_all(fd: int, chunks: Chunks, offset: int, flags: int) -> None:
    """Write until nothing is left: a short count comes before ENOSPC, and IOV_MAX bounds one call."""
    pending = list(chunks)
    while pending:
        written = os.pwritev(fd, pending[:IOV_MAX], offset, flags)
        offset += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if pending and written:
            pending[0] = memoryview(pending[0])[written:]
