"""Staging files of one directory: where they are, who may write, how much space is left.

A file's name is the upload's id and nothing a client sent. Directories are made at start and never
removed, so that creating a file is one system call and one directory sync.

What the files of an upload rely on, and where it is kept:

- One writer among all processes: a `flock`, which the kernel frees when the process dies (`locked_file`).
- An acknowledged byte survives a power cut: a sync comes before the offset is recorded, and one that failed
  is never repeated on the same descriptor (`syncs`).
- The file may be longer than the offset, never shorter: the writer cuts a torn tail when it opens the file,
  and fails on one that is too short.
- Nobody removes what another relies on: cleanup, reconcile and the worker hold the file's lock while they
  read the database and change it (`locking`).
- A small upload that comes in one request is created, written and synced together with others (`small`).

Everything that blocks runs in this class's own threads, except `probe`, `check_space` and `new_id`, which are
quicker than the hop to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar
from uuid import UUID

import structlog

from tusd_py.errors import StagingFull, StorageError, UploadTooLarge
from tusd_py.ports import StagedFile, Staging, StagingFile, StagingIdentity
from tusd_py.protocol.upload import UploadId
from tusd_py.staging.identity import require_id
from tusd_py.staging.locked_file import (
    DIRECTORY_MODE,
    LockedFile,
    checksum,
    create_locked,
    open_locked,
    translated,
    translated_errors,
)
from tusd_py.staging.locking import locked_files
from tusd_py.staging.small import SmallFile, SmallFiles, store_files
from tusd_py.staging.syncs import Syncs
from tusd_py.staging.unclaimed import SHARD, set_aside, unclaimed_files, unclaimed_path
from tusd_py.staging.writers import make_writer

if TYPE_CHECKING:
    from tusd_py.config import StagingConfig
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")

SHARDS_PER_SECOND: Final = 50
SPACE_CACHE_SECONDS: Final = 0.5


class StagingArea(Staging):
    """The staging directory, with the threads that write to it."""

    def __init__(
        self, directory: Path, config: StagingConfig, metrics: Metrics, identity: StagingIdentity | None = None
    ) -> None:
        self.identity = identity or StagingIdentity()
        self._directory = directory
        self._syncs = Syncs(metrics) if config.durability == "fsync" else None
        self._reserve = config.reserve
        self._writer = make_writer(config.write_path)
        self._threads = ThreadPoolExecutor(config.write_threads, thread_name_prefix="staging")
        self._small = SmallFiles(self._store_batch)
        self._free_bytes = 0
        self._size_bytes = 0
        self._space_until = 0.0

    def prepare(self) -> None:
        """Create the directories. Blocks; called once at start. Raises `StorageError`."""
        with translated_errors():
            self._directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            names = None if self._syncs is None else self._syncs.new_names(str(self._directory))
            made = [path for shard in range(256) if _make_directory(path := self._directory / f"{shard:02x}")]
            if names is None:
                return
            try:
                names.sync()
            except OSError:
                for path in made:
                    with contextlib.suppress(OSError):
                        path.rmdir()
                raise

    async def close(self) -> None:
        """Wait for writes that are under way."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._syncs is not None:
            self._syncs.close()

    def new_id(self) -> UploadId:
        # Files of the same moment share a directory, so that one sync of it serves them all.
        random = bytearray(os.urandom(16))
        random[-1] = int(time.monotonic() * SHARDS_PER_SECOND) & 0xFF
        return UploadId(UUID(bytes=bytes(random), version=4))

    def path(self, upload_id: UploadId) -> Path:
        return Path(self._name(upload_id))

    def _name(self, upload_id: UploadId) -> str:
        name = str(upload_id)
        # Any id has its place, whether or not `new_id` chose it.
        return f"{self._directory}/{name[-2:]}/{name}"

    async def store_small(self, upload_id: UploadId, chunks: Sequence[bytes | memoryview]) -> int:
        with translated_errors():
            await self._small.store(self._name(upload_id), chunks)
        return checksum(chunks, 0)

    async def _store_batch(self, files: list[SmallFile]) -> None:
        await self._run(store_files, files, syncs=self._syncs)

    async def open(self, upload_id: UploadId, *, create: bool) -> StagingFile | None:
        path = self._name(upload_id)
        opening = asyncio.ensure_future(self._run(self._open, path, create=create))
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # The thread continues without us: what it opens, and locks, must be released.
            opening.add_done_callback(_close_unwanted)
            raise
        if opened is None:
            return None
        return LockedFile(path, *opened, writer=self._writer, syncs=self._syncs, run=self._run)

    def _open(self, path: str, *, create: bool) -> tuple[int, int] | None:
        with translated_errors():
            try:
                opened = open_locked(path)
            except FileNotFoundError:
                if not create:
                    raise
                return create_locked(path, self._syncs)
            if opened is None or opened[1] or not create or self._syncs is None:
                return opened
            # An empty file holds nothing, and the sync of its name may have failed.
            try:
                Path(path).unlink(missing_ok=True)
            finally:
                os.close(opened[0])
            return create_locked(path, self._syncs)

    def probe(self, upload_id: UploadId) -> int | None:
        try:
            fd = os.open(self._name(upload_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise translated(error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            facts = os.fstat(fd)
        except BlockingIOError:
            return None
        except OSError as error:
            raise translated(error) from error
        finally:
            os.close(fd)
        # Without a link it was removed between open and lock.
        return facts.st_size if facts.st_nlink else 0

    def locked(
        self, upload_ids: Sequence[UploadId], failed: dict[UploadId, StorageError] | None = None
    ) -> AbstractAsyncContextManager[list[UploadId]]:
        return locked_files({upload_id: self._name(upload_id) for upload_id in upload_ids}, failed)

    async def remove(self, upload_ids: Sequence[UploadId]) -> None:
        for error in (await self.try_remove(upload_ids)).values():
            raise error

    async def try_remove(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        return await self._run(_each, lambda upload_id: self.path(upload_id).unlink(missing_ok=True), upload_ids)

    async def set_aside(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        def move(upload_id: UploadId) -> None:
            with contextlib.suppress(FileNotFoundError):
                set_aside(self._directory, upload_id, self.path(upload_id))

        return await self._run(_each, move, upload_ids)

    def unclaimed(self) -> Iterator[StagedFile]:
        with translated_errors():
            yield from unclaimed_files(self._directory)

    async def remove_unclaimed(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        def unlink(upload_id: UploadId) -> None:
            unclaimed_path(self._directory, upload_id).unlink(missing_ok=True)

        return await self._run(_each, unlink, upload_ids)

    async def require_identity(self) -> None:
        await self._run(require_id, self._directory, self.identity.id)

    def check_space(self, wanted: int) -> None:
        now = time.monotonic()
        if now > self._space_until:
            with translated_errors():
                facts = os.statvfs(self._directory)
            self._free_bytes = facts.f_bavail * facts.f_frsize
            self._size_bytes = facts.f_blocks * facts.f_frsize
            self._space_until = now + SPACE_CACHE_SECONDS
        if wanted and wanted > self._size_bytes - self._reserve:
            raise UploadTooLarge("The upload is larger than this server's disk.", wanted=wanted, size=self._size_bytes)
        if self._free_bytes - wanted < self._reserve:
            raise StagingFull(free_bytes=self._free_bytes, wanted=wanted, reserve=self._reserve)

    def files(self) -> Iterator[tuple[str, float]]:
        """Yield the name and modification time of every file. Blocks: run it in a thread."""
        with translated_errors():
            shards = [shard.path for shard in os.scandir(self._directory) if SHARD.fullmatch(shard.name)]
        for shard in shards:
            try:
                for entry in os.scandir(shard):
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.name, entry.stat(follow_symlinks=False).st_mtime
            except OSError as error:
                # One that cannot be read must not hide the others.
                log.warning("staging_shard_not_readable", path=shard, reason=str(error))

    async def _run(self, call: Callable[_P, _T], /, *arguments: _P.args, **keywords: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, *arguments, **keywords))


def _each(act: Callable[[UploadId], None], upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
    """Do something to the file of each upload, and return what went wrong."""
    failed: dict[UploadId, StorageError] = {}
    for upload_id in upload_ids:
        try:
            with translated_errors():
                act(upload_id)
        except StorageError as error:
            failed[upload_id] = error
    return failed


def _close_unwanted(opening: asyncio.Future[tuple[int, int] | None]) -> None:
    if not opening.cancelled() and opening.exception() is None and (opened := opening.result()) is not None:
        os.close(opened[0])


def _make_directory(path: Path) -> bool:
    """Return whether the directory was not there before."""
    try:
        path.mkdir(mode=DIRECTORY_MODE)
    except FileExistsError:
        return False
    return True
