"""What can be done with an upload: create, ask, append, terminate.

Each use-case authorises first, before a byte of a body is read and before anything is locked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal
from tusd_py.errors import EmptyPatchLimit, TusdError
from tusd_py.protocol.commands import Append, Create
from tusd_py.protocol.upload import RECEIVING, Concat, Upload, UploadId
from tusd_py.uploads.access import Access, UploadSettings
from tusd_py.uploads.append import Appender
from tusd_py.uploads.creation import Announce, Created, Creator
from tusd_py.uploads.waiting import settled, size_when_free

if TYPE_CHECKING:
    from tusd_py.places import Stores
    from tusd_py.ports import Body, Staging, UploadLocks, UploadRepository

log = structlog.get_logger(__name__)

MAX_COUNTED_UPLOADS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Appended:
    """The upload as an append left it, and whether it was the one that completed it."""

    upload: Upload
    completed: bool


class UploadService:
    """The use-cases. Knows no HTTP, no SQL and no adapter."""

    def __init__(  # noqa: PLR0913 -- its collaborators
        self,
        uploads: UploadRepository,
        staging: Staging,
        locks: UploadLocks,
        access: Access,
        *,
        stores: Stores,
        settings: UploadSettings,
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._locks = locks
        self._settings = settings
        self._access = access
        self._stores = stores
        self._appender = Appender(uploads, staging, locks, settings.append)
        self._creator = Creator(uploads, staging, self._appender, self._access, stores=stores, settings=settings)
        self._empty_patches: dict[UploadId, int] = {}

    def permit(self, principal: Principal, action: Action, owner: str | None = None) -> None:
        """Raise unless `principal` may do this; see `authorization.authorize`."""
        self._access.permit(principal, action, owner)

    async def create(
        self, principal: Principal, command: Create, body: Body, announce: Announce | None = None
    ) -> Created:
        """Create an upload, with the bytes that came along; see `Creator.create`."""
        return await self._creator.create(principal, command, body, announce)

    # --- ask, append, terminate ------------------------------------------------------------------

    async def status(self, principal: Principal, token: str) -> Upload:
        """Return the upload with its true offset: a request that still writes is ended first.

        Raises:
            UploadNotFound, UploadGone, AccessError: for this client there is no such upload.
            UploadLocked: the writer did not let go in time.
            StagingDamaged: acknowledged bytes are not in staging any more.
            WrongNode: its bytes are in another staging directory; nothing was opened or changed.
        """
        upload = await self.load(principal, token, Action.HEAD)
        if upload.state not in RECEIVING or upload.concat is Concat.FINAL:
            return upload
        self._demand_bytes(upload)
        if self._locks.held(upload.id):
            async with self._locks.hold(upload.id, _no_body):
                return await self._settled(await self._access.reload(upload.id))
        return await self._settled(upload)

    async def _settled(self, upload: Upload) -> Upload:
        return await settled(
            self._staging,
            self._locks,
            upload,
            partial(self._access.reload, upload.id),
            timeout_seconds=self._settings.append.lock_timeout_seconds,
        )

    async def append(self, principal: Principal, token: str, parse: Callable[[Upload], Append], body: Body) -> Appended:
        """Append a body. `parse` runs after the upload was found, as the order of checks demands.

        Raises:
            see `status` and `Appender.append`; `error.upload` tells where the upload stands.
        """
        upload = await self.load(principal, token, Action.WRITE)
        self._demand_bytes(upload)
        if upload.concat is Concat.FINAL:
            append = Append(offset=upload.offset, content_length=0)
        else:
            append = self._parse(parse, upload)
        self._check_space(upload, append)
        after = await self._appender.append(upload, append, body, partial(self._access.reload, upload.id))
        completed = after.complete and not upload.complete
        if completed:
            log.info("upload_completed", upload_id=str(after.id), length=after.length)
        self._limit_empty_patches(after, moved=after.offset != append.offset)
        return Appended(after, completed)

    @staticmethod
    def _parse(parse: Callable[[Upload], Append], upload: Upload) -> Append:
        try:
            return parse(upload)
        except TusdError as error:
            error.upload = upload
            raise

    def _check_space(self, upload: Upload, append: Append) -> None:
        wanted = append.content_length or 0
        if upload.length is None and append.length is not None:
            wanted = max(wanted, append.length - upload.offset)
        if not wanted:
            return
        try:
            self._staging.check_space(wanted)
        except TusdError as error:
            error.upload = upload
            raise

    def _limit_empty_patches(self, upload: Upload, *, moved: bool) -> None:
        """Stop clients that ask for ever without sending anything, which released ones do.

        Counted by what arrived and not by Content-Length, which a chunked body lacks.
        """
        count = self._empty_patches.pop(upload.id, 0) + 1
        if moved:
            return
        # Kept when it refuses as well: only bytes begin the count anew.
        self._empty_patches[upload.id] = count
        if len(self._empty_patches) > MAX_COUNTED_UPLOADS:
            del self._empty_patches[next(iter(self._empty_patches))]
        if count > self._settings.max_empty_patches:
            error = EmptyPatchLimit()
            error.upload = upload
            raise error

    async def terminate(self, principal: Principal, token: str, check_upload: Callable[[Upload], None]) -> None:
        """Make an upload gone for everybody; its bytes are removed in the background.

        `check_upload` may refuse once the upload was found.

        A request that still writes to it is ended first and cannot bring it back.

        Raises:
            UploadNotFound, UploadGone, AccessError, UploadHeld, PartInUse, TransferInProgress, WrongNode.
        """
        upload = await self.load(principal, token, Action.TERMINATE)
        check_upload(upload)
        await self._terminate(upload)

    async def remove(self, principal: Principal, upload_id: UploadId, *, force: bool = False) -> None:
        """Terminate an upload by its public id; with `force` a transfer under way is stopped.

        Raises: as `terminate` does; with force no TransferInProgress.
        """
        action = Action.FORCE if force else Action.REMOVE
        await self._terminate(await self._access.usable(principal, upload_id, action), force=force)

    async def _terminate(self, upload: Upload, *, force: bool = False) -> None:
        if upload.state not in RECEIVING:
            await self._uploads.remove(upload.id, force=force)
        else:
            self._demand_bytes(upload)
            async with self._locks.hold(upload.id, _no_body):
                timeout = self._settings.append.lock_timeout_seconds
                await size_when_free(self._staging, self._locks, upload.id, timeout_seconds=timeout)
                await self._uploads.remove(upload.id, force=force)
        log.info("upload_terminated", upload_id=str(upload.id), state=upload.state.value, force=force)

    def _demand_bytes(self, upload: Upload) -> None:
        """Raise `WrongNode` if this node would have to touch staged bytes that it does not have."""
        # A final upload that waits for its parts has no bytes of its own.
        if upload.state in RECEIVING and upload.concat is not Concat.FINAL:
            self._staging.identity.demand(upload)

    # --- read --------------------------------------------------------------------------------------

    async def load(self, principal: Principal, token: str, action: Action) -> Upload:
        """Return the upload behind a tus URL, for somebody who may use it so; see `Access.load`."""
        return await self._access.load(principal, token, action)

    async def refresh(self, upload_id: UploadId) -> Upload:
        """Return the upload as it stands now, for somebody who was permitted already."""
        return await self._access.reload(upload_id)


def _no_body() -> None:
    """Nothing to stop: requests without a body are over in a moment."""
