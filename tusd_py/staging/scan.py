"""Staging for reconcile: what lies there, how large it is, and the removal of what is not needed.

No symbolic link is ever followed, and only regular files of a name and in a directory that
`StagingArea` gives them are taken for ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import math
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Final

from tusd_py.ports import StagedFile
from tusd_py.protocol.upload import UploadId
from tusd_py.staging.identity import ID_FILE
from tusd_py.staging.locked_file import translated_errors
from tusd_py.staging.locking import locked_files
from tusd_py.staging.unclaimed import SHARD, UNCLAIMED, parse_id, set_aside, take_back, unclaimed_files, unclaimed_path

_NOT_LISTED: Final = frozenset({"lost+found", ID_FILE, UNCLAIMED})
"""What a file system keeps at its top, and what is ours there."""


class DirectoryScan:
    """One staging directory as it is on disk. It is neither made nor prepared."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def pages(self, limit: int) -> Iterator[list[StagedFile]]:
        """Return everything in the staging directory. Blocks: run each step in a thread."""
        return _in_pages(self._entries(), limit)

    def _entries(self) -> Iterator[StagedFile]:
        with os.scandir(self._directory) as top:
            for entry in top:
                if SHARD.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    with os.scandir(entry.path) as shard:
                        yield from filter(None, (_staged(file, entry.name) for file in shard))
                elif entry.name not in _NOT_LISTED and (found := _staged(entry, None)) is not None:
                    yield found

    def sizes(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, int]:
        """Return the sizes of the files that are there. Blocks."""
        found = {}
        with translated_errors():
            for upload_id in upload_ids:
                with contextlib.suppress(FileNotFoundError):
                    facts = os.lstat(self._path(upload_id))
                    if stat.S_ISREG(facts.st_mode):
                        found[upload_id] = facts.st_size
        return found

    def locked(self, upload_ids: Sequence[UploadId]) -> AbstractAsyncContextManager[list[UploadId]]:
        """Hold the locks of files; see `Staging.locked`."""
        return locked_files({upload_id: self._path(upload_id) for upload_id in upload_ids})

    def unclaimed(self, limit: int) -> Iterator[list[StagedFile]]:
        """Yield pages of what was set aside. Blocks: run each step in a thread."""
        return _in_pages(unclaimed_files(self._directory), limit)

    async def remove_unwanted(
        self, upload_id: UploadId, *, unchanged_since: float, unwanted: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Remove a file under its own lock, if it is old enough and `unwanted` says so then.

        Returns False, and changes nothing, if it is in use, has changed since, or is wanted.
        """
        path = self._path(upload_id)
        return await self._under_lock(path, unchanged_since, unwanted, lambda: Path(path).unlink(missing_ok=True))

    async def set_aside_unwanted(
        self, upload_id: UploadId, *, unchanged_since: float, unwanted: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Move a file to `unclaimed/`, on the same conditions as `remove_unwanted` removes one."""
        path = self._path(upload_id)
        move = partial(set_aside, self._directory, upload_id, Path(path))
        return await self._under_lock(path, unchanged_since, unwanted, move)

    async def take_back(self, upload_id: UploadId, *, wanted: Callable[[], Awaitable[bool]]) -> bool:
        """Move a file that was set aside back to its place, under its own lock, if `wanted` says so then.

        Raises:
            StorageError: its place is taken.
        """
        source = str(unclaimed_path(self._directory, upload_id))
        move = partial(take_back, self._directory, upload_id, Path(self._path(upload_id)))
        return await self._under_lock(source, math.inf, wanted, move)

    @staticmethod
    async def _under_lock(
        path: str, unchanged_since: float, agreed: Callable[[], Awaitable[bool]], act: Callable[[], None]
    ) -> bool:
        fd = await asyncio.to_thread(_lock_old, path, unchanged_since)
        if fd is None:
            return False
        try:
            # Asked while the file is locked: a writer that comes now waits for us.
            if not await agreed():
                return False
            with translated_errors():
                await asyncio.to_thread(act)
            return True
        finally:
            os.close(fd)

    def _path(self, upload_id: UploadId) -> str:
        name = str(upload_id)
        # No Path: it interns every name, in a table that grows with their number.
        return f"{self._directory}/{name[-2:]}/{name}"


def _in_pages(entries: Iterator[StagedFile], limit: int) -> Iterator[list[StagedFile]]:
    while True:
        with translated_errors():
            page = list(itertools.islice(entries, limit))
        if not page:
            return
        yield page


def _staged(entry: os.DirEntry[str], shard: str | None) -> StagedFile | None:
    try:
        facts = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # removed since it was listed
    name = entry.name if shard is None else f"{shard}/{entry.name}"
    ours = shard is not None and stat.S_ISREG(facts.st_mode) and entry.name.endswith(shard)
    return StagedFile(name, parse_id(entry.name) if ours else None, facts.st_size, facts.st_mtime)


def _lock_old(path: str, unchanged_since: float) -> int | None:
    """Open and lock a regular file; None if that cannot be, or it is younger than it should be."""
    with translated_errors():
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None  # gone, a link, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            facts = os.fstat(fd)
        except BlockingIOError:
            os.close(fd)
            return None
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink == 0 or facts.st_mtime > unchanged_since:
            os.close(fd)
            return None
        return fd
