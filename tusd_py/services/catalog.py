"""Uploads by their public id: seeing them, one or many."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tusd_py.policy import Intent, Principal
from tusd_py.protocol.upload import RECEIVING, State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.ports import TransferView, UploadRepository
    from tusd_py.services.access import Access

HIDDEN_IN_LISTS: Final = (State.EXPIRED, State.REMOVING, State.REMOVED)


class Catalog:
    """What people and applications ask of uploads. Knows no HTTP, no SQL and no adapter."""

    def __init__(self, uploads: UploadRepository, access: Access) -> None:
        self._uploads = uploads
        self._access = access

    @property
    def has_public_uploads(self) -> bool:
        """Tell whether some uploads may be downloaded by everybody."""
        return self._access.rules.serves_nobody_in_particular

    async def view(self, principal: Principal, upload_id: UploadId, intent: Intent) -> Upload:
        """Answer an upload for somebody who may see it; see `Access.view`."""
        return await self._access.view(principal, upload_id, intent)

    async def newest(self, principal: Principal, *, before: datetime | None, limit: int) -> Sequence[Upload]:
        """Answer the newest uploads that `principal` may see."""
        owner = principal.subject
        if not principal.anonymous:
            self._access.permit(principal, Intent.LIST, owner)
        return await self._uploads.newest(owner, before=before, limit=limit, hide=HIDDEN_IN_LISTS)

    async def transfer_view(self, upload: Upload) -> TransferView | None:
        """Answer how the transfer of an upload stands."""
        return None if upload.state in RECEIVING else await self._uploads.transfer_view(upload.id)
