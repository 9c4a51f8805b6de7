"""Send `upload.progress` to the endpoints that name it, without a promise that it arrives.

Nothing of it is recorded, retried or kept. What has not been sent is replaced by what is newer; a slow endpoint misses
what came in between, and one that fails is left alone for a while. All workers hear of progress by NOTIFY, and one of
them at a time sends it to an endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports.events import DeliveryFailed
from tusd_py.protocol.upload import RECEIVING, State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.deliveries import DeliveryQueue
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports.events import Endpoint, Message

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 200
"""Uploads whose progress waits for one endpoint. Of more, the oldest is dropped."""
FAILED_PAUSE_SECONDS: Final = 10.0
TURN_SECONDS: Final = 10.0
"""For how long a worker that has sent progress to an endpoint is the one that does."""


@dataclass(slots=True, eq=False)
class ProgressTarget:
    """An endpoint that wants to know of progress."""

    name: str
    profiles: frozenset[str]
    """Empty: the uploads of all profiles."""
    endpoint: Endpoint
    render: Callable[[Upload], Awaitable[Message]]
    waiting: dict[UploadId, tuple[int, int | None]] = field(default_factory=dict)
    """Offset and length, the latest of each upload."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class ProgressSender:
    """Sends progress until it is told to stop."""

    def __init__(
        self,
        queue: DeliveryQueue,
        uploads: PostgresUploads,
        targets: Sequence[ProgressTarget],
        *,
        failed_pause_seconds: float = FAILED_PAUSE_SECONDS,
    ) -> None:
        self._queue = queue
        self._uploads = uploads
        self._targets = targets
        self._failed_pause_seconds = failed_pause_seconds
        self._stopping = asyncio.Event()

    def hear(self, payload: str) -> None:
        """Take what a process says of uploads: the id, the offset and the length of each (`Notifier`)."""
        for each in filter(None, payload.split(",")):
            upload_id, offset, length = each.split(":")
            for target in self._targets:
                # Behind the others, as the newest.
                target.waiting.pop(key := UploadId(UUID(upload_id)), None)
                target.waiting[key] = int(offset), int(length) if length else None
                if len(target.waiting) > MAX_WAITING:
                    del target.waiting[next(iter(target.waiting))]
                target.wake.set()

    def stop(self) -> None:
        """End, whatever waits."""
        self._stopping.set()

    async def run(self) -> None:
        """Send until `stop`."""
        tasks = [asyncio.create_task(self._serve(each), name=f"progress-{each.name}") for each in self._targets]
        stopping = asyncio.create_task(self._stopping.wait(), name="progress-stop")
        try:
            await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            for target in self._targets:
                await target.endpoint.close()

    async def _serve(self, target: ProgressTarget) -> None:
        while True:
            await target.wake.wait()
            target.wake.clear()
            try:
                if await self._queue.take_turn(target.name, seconds=TURN_SECONDS):
                    await self._send_waiting(target)
                else:
                    target.waiting.clear()
            except (DeliveryFailed, DatabaseUnavailable) as error:
                log.info("progress_not_sent", endpoint=target.name, reason=str(error))
                await asyncio.sleep(self._failed_pause_seconds)
            except Exception:
                log.exception("progress_failed_unexpectedly", endpoint=target.name)
                await asyncio.sleep(self._failed_pause_seconds)
            else:
                continue
            target.waiting.clear()

    async def _send_waiting(self, target: ProgressTarget) -> None:
        while target.waiting:
            upload_id, (offset, length) = next(iter(target.waiting.items()))
            del target.waiting[upload_id]
            upload = await self._uploads.find(upload_id)
            # What is complete meanwhile is told of by an event.
            if upload is None or upload.state not in RECEIVING:
                continue
            if target.profiles and upload.profile not in target.profiles:
                continue
            moved = replace(upload, state=State.UPLOADING, offset=offset, length=length, updated_at=datetime.now(UTC))
            await target.endpoint.send(await target.render(moved))
