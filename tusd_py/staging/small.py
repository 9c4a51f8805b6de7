"""Small files, many at a time: one thread call creates, writes and syncs whatever waits.

A small upload is seven calls to the system. Made from a thread of its own, each of them releases the
interpreter's lock and competes for it again, which costs more than the work. So a few *workers* take turns:
while one is at the disk, others' files gather, and the next one takes them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.errors import StorageError
from tusd_py.staging.locked_file import FILE_MODE
from tusd_py.staging.syncs import NewNames, Syncs
from tusd_py.staging.writers import write_all

WORKERS: Final = 2
BATCH: Final = 16

Chunks = Sequence[bytes | memoryview]


@dataclass(slots=True)
class SmallFile:
    """A file to be: exactly these bytes, at a path where nothing is yet."""

    path: str
    chunks: Chunks
    fd: int = -1
    error: OSError | None = None

    @property
    def directory(self) -> str:
        """The directory that it lies in."""
        return self.path.rpartition("/")[0]


StoreBatch = Callable[[list[SmallFile]], Awaitable[None]]


class SmallFiles:
    """Gathers the small files of a process."""

    def __init__(self, store_batch: StoreBatch, *, workers: int = WORKERS) -> None:
        """`store_batch` runs `store_files` in a thread."""
        self._store_batch = store_batch
        self._workers = workers
        self._waiting: deque[tuple[SmallFile, asyncio.Future[None]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def store(self, path: str, chunks: Chunks) -> None:
        """Return when the file is there, and durable where that is asked for.

        Raises:
            OSError: it is not there at all.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((SmallFile(path, chunks), done))
        if len(self._running) < self._workers:
            self._running.add(asyncio.create_task(self._worker(), name="staging-small-files"))
        await done

    async def _worker(self) -> None:
        try:
            while self._waiting:
                await self._store_next()
        finally:
            # Here and not in a callback of the task, which runs later: a file that came before it would wait
            # for a worker that has ended.
            self._running -= {asyncio.current_task()}

    async def _store_next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            await self._store_batch([file for file, _ in batch])
        except BaseException as error:
            # Not a file's own error. No caller may wait for what does not come.
            for _, done in batch:
                _fail(done, error)
            if not isinstance(error, Exception):
                raise
        else:
            for file, done in batch:
                _settle(file, done)


def _fail(done: asyncio.Future[None], error: BaseException) -> None:
    if not done.done():
        failure = StorageError(cause=repr(error))
        failure.__cause__ = error
        done.set_exception(failure)


def _settle(file: SmallFile, done: asyncio.Future[None]) -> None:
    if done.done():
        return
    if file.error is not None:
        done.set_exception(file.error)
    else:
        done.set_result(None)


def store_files(files: Sequence[SmallFile], *, syncs: Syncs | None) -> None:
    """Create and write the files, and sync them with `syncs`. Blocks.

    What went wrong with one stands in its `error`, and it is not there afterwards. All are written
    before the first is synced, so that one commit of the file system's journal serves as many as possible.
    """
    names: dict[str, NewNames] = {}
    for file in files:
        if syncs is not None and file.directory not in names:
            _attempt(file, lambda file: names.setdefault(file.directory, syncs.new_names(file.directory)))
        _attempt(file, _create)
    if syncs is not None:
        if len(files) > 1:
            for file in files:
                _attempt(file, _start_writeback)
        for file in files:
            _attempt(file, lambda file: syncs.file(file.fd, file.path))
        _sync_names(files, names)
    for file in files:
        _finish(file)


def _attempt(file: SmallFile, step: Callable[[SmallFile], object]) -> None:
    if file.error is None:
        try:
            step(file)
        except OSError as error:
            file.error = error


def _create(file: SmallFile) -> None:
    # Through the page cache, whatever the write path: the transfer reads it in a moment.
    file.fd = os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    write_all(file.fd, file.chunks, 0, 0)


def _start_writeback(file: SmallFile) -> None:
    # Linux begins to write what it is advised to drop, and allocates its blocks now: one commit of the
    # journal then serves the whole batch, instead of one for each file. Twice as fast on ext4.
    os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_names(files: Sequence[SmallFile], names: Mapping[str, NewNames]) -> None:
    for directory, new in names.items():
        inside = [file for file in files if file.error is None and file.directory == directory]
        try:
            if inside:
                new.sync()
        except OSError as error:
            for file in inside:
                file.error = error


def _finish(file: SmallFile) -> None:
    if file.fd >= 0:
        os.close(file.fd)
        if file.error is not None:
            with contextlib.suppress(OSError):
                Path(file.path).unlink()
