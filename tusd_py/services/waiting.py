"""Waiting for another process to let go of an upload's file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from tusd_py.errors import UploadLocked

if TYPE_CHECKING:
    from tusd_py.ports import UploadLocks
    from tusd_py.protocol.upload import UploadId

_T = TypeVar("_T")

LOCK_POLL_SECONDS: Final = 0.01
"""Between two looks at another process's flock, which has been told to stop and lets go in moments."""
ASK_AGAIN_SECONDS: Final = 1.0


async def until_free(
    locks: UploadLocks, upload_id: UploadId, attempt: Callable[[], Awaitable[_T | None]], *, timeout_seconds: float
) -> _T:
    """Try until `attempt` answers something; as long as it answers None, ask the holder to stop.

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
