"""How an upload stands, and waiting for that to change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tusd_py.authorization import Action, Principal
from tusd_py.errors import UploadNotFound
from tusd_py.protocol.upload import GONE, RECEIVING, State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.ports import TransferView
    from tusd_py.uploads.service import UploadService


@dataclass(frozen=True, slots=True)
class UploadStatus:
    """An upload, and how its latest transfer stands (None: it has none)."""

    upload: Upload
    transfer: TransferView | None
    sent_bytes: int = 0
    """Bytes that the store holds of an upload that is still being received."""

    @property
    def mark(self) -> tuple[object, ...]:
        """What somebody who waits wants to see change."""
        upload, transfer = self.upload, self.transfer
        told = () if transfer is None else (transfer.id, transfer.state, transfer.attempts, transfer.failures)
        return upload.state, upload.committed_at, *told

    @property
    def settled(self) -> bool:
        """Return whether nothing more happens to it by itself."""
        if self.upload.state is State.TRANSFER_FAILED:
            return self.transfer is None or self.transfer.over
        return self.upload.state is State.STORED or self.upload.state in GONE - {State.REMOVING}


async def look_at_upload(
    service: UploadService,
    principal: Principal,
    upload_id: UploadId,
    *,
    wait_seconds: float = 0,
    wanted: Callable[[], bool] = lambda: True,
) -> UploadStatus:
    """Return how an upload stands, as soon as that differs from now or the time is over.

    What is stored, failed or gone is returned at once. `wanted` says whether somebody still waits for it. No
    connection to the database is held meanwhile.

    Raises:
        UploadNotFound, AccessError: for this caller there is no such upload.
    """
    upload = await service.get_by_id(principal, upload_id, Action.READ, gone_too=True)
    if not wait_seconds:
        return await _with_transfer(service, upload)
    changes = service.changes
    with changes.subscribe(upload_id) as changed:
        # Looked at once more with the changes in place: from here on none is missed.
        first = seen = await _see(service, upload_id)
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while seen.mark == first.mark and not seen.settled and wanted() and not changes.full:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, changes.look_seconds)):
                    await changed.wait()
            if changes.closed:
                break
            changed.clear()
            seen = await _see(service, upload_id)
    return seen


async def _see(service: UploadService, upload_id: UploadId) -> UploadStatus:
    upload = await service.uploads.find(upload_id)
    if upload is None:
        raise UploadNotFound
    return await _with_transfer(service, upload)


async def _with_transfer(service: UploadService, upload: Upload) -> UploadStatus:
    if upload.state in RECEIVING:
        return UploadStatus(upload, None, await service.transfers.sent_bytes(upload.id) if upload.offset else 0)
    return UploadStatus(upload, await service.transfers.latest(upload.id))
