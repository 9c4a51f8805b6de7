"""Uploads by their public id: seeing them, waiting for them, committing them, having them transferred."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal
from tusd_py.errors import UploadNotFound
from tusd_py.protocol.upload import GONE, RECEIVING, State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.lists import UploadLists
    from tusd_py.database.transfers import TransferRequests
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.ports import AttemptView, ListPosition, TransferOrder, TransferView
    from tusd_py.uploads.access import Access
    from tusd_py.uploads.changes import ChangeNotifier

log = structlog.get_logger(__name__)

HIDDEN_IN_LISTS: Final = (State.EXPIRED, State.REMOVING, State.REMOVED)
LOOK_SECONDS: Final = 5.0
"""Between two looks at an upload that somebody waits for, should a notification get lost."""
MAX_ATTEMPTS: Final = 1000


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


class Catalog:
    """What people and applications ask of uploads. Knows no HTTP, no SQL and no adapter."""

    def __init__(
        self,
        uploads: PostgresUploads,
        lists: UploadLists,
        transfers: TransferRequests,
        access: Access,
        changes: ChangeNotifier,
    ) -> None:
        self._uploads = uploads
        self._lists = lists
        self._transfers = transfers
        self._access = access
        self._watch = changes

    @property
    def has_public_uploads(self) -> bool:
        """Return whether some uploads may be downloaded by everybody."""
        return self._access.rules.serves_nobody_in_particular

    # --- seeing ------------------------------------------------------------------------------------

    async def view(self, principal: Principal, upload_id: UploadId, action: Action) -> Upload:
        """Return an upload for somebody who may see it; see `Access.view`."""
        return await self._access.view(principal, upload_id, action)

    async def newest(
        self,
        principal: Principal,
        *,
        after: ListPosition | None,
        limit: int,
        state: State | None = None,
        everybody: bool = False,
    ) -> Sequence[Upload]:
        """Return the newest uploads of `principal`, or those of everybody, in one state if it is given.

        `after` is the position of the last one of an earlier page.

        Raises:
            AccessError: he may not see them.
        """
        owner = None if everybody else principal.subject
        if not principal.anonymous:
            self._access.permit(principal, Action.LIST, owner)
        hide = HIDDEN_IN_LISTS if state is None else ()
        return await self._lists.newest(owner, after=after, limit=limit, hide=hide, state=state)

    async def attempts(self, principal: Principal, upload_id: UploadId) -> Sequence[AttemptView]:
        """Return how the upload's jobs went so far, newest first."""
        upload = await self._access.view(principal, upload_id, Action.READ)
        return await self._transfers.attempts(upload.id, MAX_ATTEMPTS)

    def operates(self, principal: Principal) -> bool:
        """Return whether `principal` may see what is for operators."""
        return principal.anonymous or bool({self._access.rules.admin_scope} - {""} & principal.scopes)

    async def look(
        self,
        principal: Principal,
        upload_id: UploadId,
        *,
        wait_seconds: float = 0,
        wanted: Callable[[], bool] = lambda: True,
    ) -> UploadStatus:
        """Return how an upload stands, as soon as that differs from now or the time is over.

        What is stored, failed or gone is answered at once. `wanted` tells whether somebody still
        waits for the answer. No connection to the database is held meanwhile.

        Raises:
            UploadNotFound, AccessError: for this caller there is no such upload.
        """
        upload = await self._access.view(principal, upload_id, Action.READ)
        if not wait_seconds:
            return await self._with_transfer(upload)
        with self._watch.subscribe(upload_id) as changed:
            # Looked at once more with the changes in place: from here on no change is missed.
            first = seen = await self._see(upload_id)
            deadline = asyncio.get_running_loop().time() + wait_seconds
            while seen.mark == first.mark and not seen.settled and wanted() and not self._watch.full:
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, LOOK_SECONDS)):
                        await changed.wait()
                if self._watch.closed:
                    break
                changed.clear()
                seen = await self._see(upload_id)
        return seen

    async def _see(self, upload_id: UploadId) -> UploadStatus:
        upload = await self._uploads.find(upload_id)
        if upload is None:
            raise UploadNotFound
        return await self._with_transfer(upload)

    async def _with_transfer(self, upload: Upload) -> UploadStatus:
        if upload.state in RECEIVING:
            return UploadStatus(upload, None, await self._transfers.sent_bytes(upload.id) if upload.offset else 0)
        return UploadStatus(upload, await self._transfers.latest(upload.id))

    # --- acting ------------------------------------------------------------------------------------

    async def commit(self, principal: Principal, upload_id: UploadId) -> Upload:
        """Record that the application keeps an upload; see `TransferRequests.commit`.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this caller there is no such upload.
            NotReady, InvalidTransition: it cannot be committed.
        """
        upload = await self._access.usable(principal, upload_id, Action.COMMIT)
        committed = await self._transfers.commit(upload.id)
        log.info("upload_committed", upload_id=str(upload.id), again=upload.committed_at is not None)
        return committed

    async def request_transfer(self, principal: Principal, upload_id: UploadId) -> TransferOrder:
        """Have an upload transferred now; see `TransferRequests.request`.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this caller there is no such upload.
            NotReady, InvalidTransition: it cannot be transferred.
        """
        upload = await self._access.usable(principal, upload_id, Action.TRANSFER)
        order = await self._transfers.request(upload.id)
        if order.queued:
            log.info("transfer_requested", upload_id=str(upload.id), transfer_id=order.transfer_id)
        return order
