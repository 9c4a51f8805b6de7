"""Waiting for another process to let go of an upload's file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tusd_py.errors import StagingDamaged, UploadLocked
from tusd_py.protocol.upload import RECEIVING, Upload

if TYPE_CHECKING:
    from tusd_py.ports import Staging, UploadLocks
    from tusd_py.protocol.upload import UploadId

_T = TypeVar("_T")

Reload = Callable[[], Awaitable[Upload]]
"""Reads the row again and checks again that it may be used."""

LOCK_POLL_SECONDS: Final = 0.01
"""Between two looks at another process's flock, which has been told to stop and lets go in moments."""
ASK_AGAIN_SECONDS: Final = 1.0


async def wait_for_file_lock(
    locks: UploadLocks, upload_id: UploadId, attempt: Callable[[], Awaitable[_T | None]], *, timeout_seconds: float
) -> _T:
    """Try until `attempt` returns something; as long as it returns None, ask the holder to stop.

    Raises:
        UploadLocked: it did not let go in time.
    """
    deadline = time.monotonic() + timeout_seconds
    ask_at = 0.0
    while (found := await attempt()) is None:
        now = time.monotonic()
        if now > deadline:
            raise UploadLocked(upload_id=str(upload_id))
        if now >= ask_at:
            await locks.ask_others(upload_id)
            ask_at = now + ASK_AGAIN_SECONDS
        await asyncio.sleep(LOCK_POLL_SECONDS)
    return found


async def size_when_free(staging: Staging, locks: UploadLocks, upload_id: UploadId, *, timeout_seconds: float) -> int:
    """Return the size of the staged file once no other process writes to it. Raises as `wait_for_file_lock` does."""

    async def attempt() -> int | None:
        return staging.probe(upload_id)

    return await wait_for_file_lock(locks, upload_id, attempt, timeout_seconds=timeout_seconds)


async def settled(
    staging: Staging, locks: UploadLocks, upload: Upload, reload: Reload, *, timeout_seconds: float
) -> Upload:
    """Return the upload as recorded while no other process writes to it.

    Bytes are in the file before the row says so, and another process may move the upload at any moment. So
    a row that is read before and after the look at the file, and is the same, tells what the file should have.

    Raises:
        UploadLocked: another process did not let go in time.
        StagingDamaged: acknowledged bytes are not in staging any more.
    """
    while upload.state in RECEIVING:
        size = await size_when_free(staging, locks, upload.id, timeout_seconds=timeout_seconds)
        if size == upload.offset:
            return upload
        before, upload = upload, await reload()
        if upload.offset == before.offset and upload.state in RECEIVING:
            if size < upload.offset:
                raise StagingDamaged(upload_id=str(upload.id), expected=upload.offset)
            return upload
    return upload
