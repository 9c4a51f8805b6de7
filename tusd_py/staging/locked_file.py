"""A staging file that one process writes to, and OSError translated into the errors of staging."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from tusd_py import crc64
from tusd_py.errors import StagingDamaged, StagingFull, StagingMissing, StorageError
from tusd_py.ports import StagingFile

if TYPE_CHECKING:
    from tusd_py.protocol.checksum import Hasher
    from tusd_py.staging.syncs import Syncs
    from tusd_py.staging.writers import Writer

_P = ParamSpec("_P")
_T = TypeVar("_T")

FILE_MODE: Final = 0o640
DIRECTORY_MODE: Final = 0o750
READ_BYTES: Final = 1024 * 1024
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise an OSError as one of the errors of staging."""
    try:
        yield
    except OSError as error:
        raise translated(error) from error


def translated(error: OSError) -> StorageError:
    """Return the error of staging that an OSError is."""
    if isinstance(error, FileNotFoundError):
        return StagingMissing(path=error.filename)
    if error.errno in _FULL:
        return StagingFull(cause=str(error))
    return StorageError(cause=str(error))


class LockedFile(StagingFile):
    """A staging file that this process alone writes to; the kernel frees it if the process dies."""

    def __init__(  # noqa: PLR0913 -- what a file is, and what serves it
        self,
        path: str,
        fd: int,
        size: int,
        *,
        writer: Writer,
        syncs: Syncs | None,
        run: RunInThread,
    ) -> None:
        self.size = size
        self._path = path
        self._fd = fd
        self._writer = writer
        self._syncs = syncs
        self._sync_failed = False
        self._run = run
        self._calling: asyncio.Future[Any] | None = None

    async def truncate(self, length: int) -> None:
        if self.size < length:
            # Filling the hole with zeros would make up bytes that the client did not send.
            raise StagingDamaged(path=self._path, size=self.size, expected=length)
        if self.size > length:
            await self._call(os.ftruncate, self._fd, length)
            self.size = length

    async def write(
        self,
        chunks: Sequence[bytes | memoryview],
        offset: int,
        crc64nvme: int,
        *,
        sync: bool = False,
        hasher: Hasher | None = None,
    ) -> int:
        return await self._call(self._write, chunks, offset, crc64nvme, sync=sync, hasher=hasher)

    def _write(
        self, chunks: Sequence[bytes | memoryview], offset: int, crc64nvme: int, *, sync: bool, hasher: Hasher | None
    ) -> int:
        if chunks:
            self._writer.write(self._fd, self._path, chunks, offset)
        if sync and self._syncs is not None:
            self._sync(self._syncs)
        if hasher is not None:
            for chunk in chunks:
                hasher.update(chunk)
        return checksum(chunks, crc64nvme)

    def _sync(self, syncs: Syncs) -> None:
        if self._sync_failed:
            raise OSError(errno.EIO, "a sync of this file has failed before", self._path)
        # Until it succeeds: a second call could succeed although the bytes are lost; see `syncs`.
        self._sync_failed = True
        syncs.file(self._fd, self._path)
        self._sync_failed = False

    async def update_hasher(self, hasher: Hasher, start: int, stop: int) -> None:
        await self._call(self._update_hasher, hasher, start, stop)

    def _update_hasher(self, hasher: Hasher, start: int, stop: int) -> None:
        while start < stop:
            data = os.pread(self._fd, min(READ_BYTES, stop - start), start)
            if not data:
                raise StagingDamaged(path=self._path, size=start, expected=stop)
            hasher.update(data)
            start += len(data)

    async def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if self._calling is None or self._calling.done():
            # Closing does not wait for the disk: everything that must be durable was synced.
            os.close(fd)
        else:
            # A cancelled caller leaves its thread running: until it ends, the descriptor's number must not
            # become another file's.
            self._calling.add_done_callback(lambda _: os.close(fd))

    async def _call(self, call: Callable[_P, _T], /, *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        def translating() -> _T:
            with translated_errors():
                return call(*arguments, **keywords)

        calling = self._calling = asyncio.ensure_future(self._run(translating))
        return await asyncio.shield(calling)


class RunInThread(Protocol):
    """Runs a blocking call in a writer thread."""

    async def __call__(self, call: Callable[_P, _T], /, *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        """Return what the call returns."""


def checksum(chunks: Sequence[bytes | memoryview], running: int) -> int:
    """Return the checksum of what came before, `running`, and the chunks."""
    for chunk in chunks:
        running = crc64.update(chunk, running)
    return running


def open_locked(path: str) -> tuple[int, int] | None:
    """Open and lock a file; return its descriptor and size, None while another holds it."""
    return _locked(os.open(path, os.O_RDWR | os.O_CLOEXEC), path)


def create_locked(path: str, syncs: Syncs | None) -> tuple[int, int] | None:
    """Make and lock a file whose name is durable, and return as `open_locked` does.

    None as well while another makes it.
    """
    names = None if syncs is None else syncs.new_names(path.rpartition("/")[0])
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    except FileExistsError:
        return None
    try:
        created = _locked(fd, path)
    except FileNotFoundError:
        # Between the two calls another process took it for a leftover.
        return None
    if created is not None and names is not None:
        try:
            names.sync()
        except OSError:
            with contextlib.suppress(OSError):
                Path(path).unlink()
            os.close(fd)
            raise
    return created


def _locked(fd: int, path: str) -> tuple[int, int] | None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        facts = os.fstat(fd)
        if facts.st_nlink == 0:
            # Removed between open and lock: what is locked has no name any more.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd, facts.st_size
