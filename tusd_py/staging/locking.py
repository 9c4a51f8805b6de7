"""Hold the locks of several staged files, for as long as what the database said must stay true.

The removal of a staged copy and anything that relies on it hold the file's lock while they read the
database and change it, so that the second of them sees what the first has done.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Mapping

import structlog

from tusd_py.errors import StorageError
from tusd_py.protocol.upload import UploadId

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def locked_files(
    paths: Mapping[UploadId, str], failed: dict[UploadId, StorageError] | None = None
) -> AsyncIterator[list[UploadId]]:
    """Lock the files and yield the ids of those that are not in use. A missing file is not in use.

    What cannot be opened, or is a link, is left out as if it were in use, and put into `failed`, or logged.
    """
    locking = asyncio.ensure_future(asyncio.to_thread(_lock_all, paths, failed))
    try:
        held = await asyncio.shield(locking)
    except asyncio.CancelledError:
        # The thread continues without us: what it locks must be released.
        locking.add_done_callback(_release)
        raise
    try:
        yield list(held)
    finally:
        _close(held)


def _lock_all(paths: Mapping[UploadId, str], failed: dict[UploadId, StorageError] | None) -> dict[UploadId, int | None]:
    held: dict[UploadId, int | None] = {}
    for upload_id, path in paths.items():
        try:
            held[upload_id] = _lock(path)
        except FileNotFoundError:
            held[upload_id] = None
        except BlockingIOError:
            continue
        except OSError as error:
            if failed is None:
                log.warning("staged_file_not_lockable", upload_id=str(upload_id), reason=str(error))
            else:
                failed[upload_id] = StorageError(cause=str(error))
    return held


def _lock(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _release(locking: asyncio.Future[dict[UploadId, int | None]]) -> None:
    if not locking.cancelled() and locking.exception() is None:
        _close(locking.result())


def _close(held: Mapping[UploadId, int | None]) -> None:
    for fd in held.values():
        if fd is not None:
            os.close(fd)
