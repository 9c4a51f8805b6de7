"""One request at a time per upload, and the newest one wins.

Inside a process a registry hands an upload on; across processes the `flock` on its staging file
does, which the kernel frees when its holder dies. A holder is told to stop at once. In the same process
its successor is woken by the release; the kernel wakes nobody, so a lock of another process is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from tusd_py.errors import UploadLocked

if TYPE_CHECKING:
    from tusd_py.protocol.upload import UploadId

_T = TypeVar("_T")

FILE_LOCK_POLL_SECONDS: Final = 0.01
"""Between two looks at another process's flock, which has been told to stop and lets go in moments."""
ASK_AGAIN_SECONDS: Final = 1.0

OnContended = Callable[[], None]
"""Called when a newer request wants what is held: stop, store, let go."""

AskOthers = Callable[[str], Awaitable[None]]
"""Tells the other processes of the node that an upload is wanted."""


@dataclass(slots=True)
class _Entry:
    """Who holds an upload, and who waits for it, oldest first."""

    on_contended: OnContended
    waiters: deque[tuple[asyncio.Future[None], OnContended]] = field(default_factory=deque)


class LocalLocks:
    """The registry of one process, with a way to reach the others."""

    def __init__(self, *, timeout_seconds: float, ask_others: AskOthers | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._ask_others = ask_others
        self._entries: dict[UploadId, _Entry] = {}

    @contextlib.asynccontextmanager
    async def hold(self, upload_id: UploadId, on_contended: OnContended) -> AsyncIterator[bool]:
        """Hold an upload; the value tells whether somebody else held it just before.

        Raises:
            UploadLocked: it was not let go in time.
        """
        contended = upload_id in self._entries
        if contended:
            await self._wait(upload_id, on_contended)
        else:
            self._entries[upload_id] = _Entry(on_contended)
        try:
            yield contended
        finally:
            self._release(upload_id)

    def held(self, upload_id: UploadId) -> bool:
        """Return whether a request of this process holds the upload."""
        return upload_id in self._entries

    async def wait_for_file_lock(self, upload_id: UploadId, attempt: Callable[[], Awaitable[_T | None]]) -> _T:
        """Try until `attempt` returns something; as long as it returns None, ask other processes to let go.

        Raises:
            UploadLocked: the other process did not let go in time.
        """
        deadline = time.monotonic() + self._timeout_seconds
        ask_at = 0.0
        while (found := await attempt()) is None:
            now = time.monotonic()
            if now > deadline:
                raise UploadLocked(upload_id=str(upload_id))
            if now >= ask_at:
                await self.ask_others(upload_id)
                ask_at = now + ASK_AGAIN_SECONDS
            await asyncio.sleep(FILE_LOCK_POLL_SECONDS)
        return found

    async def ask_others(self, upload_id: UploadId) -> None:
        """Ask other processes to let go. Never fails: it is a hint."""
        if self._ask_others is not None:
            await self._ask_others(str(upload_id))

    def asked(self, upload_id: UploadId) -> None:
        """Another process wants the upload: tell the holder here, if there is one, to stop."""
        if entry := self._entries.get(upload_id):
            entry.on_contended()

    async def _wait(self, upload_id: UploadId, on_contended: OnContended) -> None:
        entry = self._entries[upload_id]
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiters.append((turn, on_contended))
        try:
            entry.on_contended()
            async with asyncio.timeout(self._timeout_seconds):
                await turn
        except TimeoutError:
            self._withdraw(upload_id, turn)
            raise UploadLocked(upload_id=str(upload_id)) from None
        except BaseException:
            self._withdraw(upload_id, turn)
            raise
        if entry.waiters:
            # Somebody newer waits behind us already: we store nothing more and hand it on.
            on_contended()

    def _withdraw(self, upload_id: UploadId, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            # The turn came in the same moment in which we gave up: pass it on.
            self._release(upload_id)
            return
        if entry := self._entries.get(upload_id):
            entry.waiters = deque(waiter for waiter in entry.waiters if waiter[0] is not turn)

    def _release(self, upload_id: UploadId) -> None:
        entry = self._entries[upload_id]
        while entry.waiters:
            turn, on_contended = entry.waiters.popleft()
            if not turn.done():
                entry.on_contended = on_contended
                turn.set_result(None)
                return
        del self._entries[upload_id]
