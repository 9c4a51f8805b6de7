"""What clients do with an upload that there is: ask, append, terminate.

Each use-case authorises first, before a byte of a body is read and before anything is locked.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.authorization import Action, Principal
from tusd_py.errors import (
    DatabaseUnavailable,
    EmptyPatchLimit,
    LengthExceeded,
    OffsetConflict,
    StagingDamaged,
    TakenOver,
    TusdError,
    UploadGone,
    UploadLocked,
    UploadNotFound,
    WholeChecksumMismatch,
)
from tusd_py.protocol.upload import (
    RECEIVING,
    Append,
    AppendPlan,
    Concat,
    Upload,
    UploadId,
    UploadProtocol,
    check_append,
    check_termination,
    plan_append,
)
from tusd_py.uploads.access import Access, UploadSettings
from tusd_py.uploads.body_writer import BodyWriter, Received
from tusd_py.uploads.buffers import BufferBudget

if TYPE_CHECKING:
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.locks import LocalLocks
    from tusd_py.ports import Body, Staging, StagingFile

log = structlog.get_logger(__name__)

MAX_COUNTED_UPLOADS: Final = 10_000
UNCERTAIN: Final = (DatabaseUnavailable, OffsetConflict, StagingDamaged, UploadGone, UploadLocked, UploadNotFound)
"""After these nobody knows the offset at which the client may go on: it is not told any."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The upload as an append left it, and whether it was the one that completed it."""

    upload: Upload
    completed: bool


class UploadService:
    """What clients do with an upload that there is. Knows no HTTP, no SQL and no adapter."""

    def __init__(
        self,
        uploads: PostgresUploads,
        staging: Staging,
        locks: LocalLocks,
        access: Access,
        settings: UploadSettings,
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._locks = locks
        self._settings = settings
        self._access = access
        self.budget = BufferBudget(settings.append)
        self._empty_patches: dict[UploadId, int] = {}

    def permit(self, principal: Principal, action: Action, owner: str | None = None) -> None:
        """Raise unless `principal` may do this; see `authorization.authorize`."""
        self._access.permit(principal, action, owner)

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
        """Return the upload as recorded while no other process writes to it.

        Bytes are in the file before the row says so, and another process may move the upload at any moment. So
        a row that is read before and after the look at the file, and is the same, tells what the file should have.

        Raises:
            UploadLocked: another process did not let go in time.
            StagingDamaged: acknowledged bytes are not in staging any more.
        """
        while upload.state in RECEIVING:
            size = await self._size_when_free(upload.id)
            if size == upload.offset:
                return upload
            before, upload = upload, await self._access.reload(upload.id)
            if upload.offset == before.offset and upload.state in RECEIVING:
                if size < upload.offset:
                    raise StagingDamaged(upload_id=str(upload.id), expected=upload.offset)
                return upload
        return upload

    async def _size_when_free(self, upload_id: UploadId) -> int:
        """Return the size of the staged file once no other process writes to it. Raises `UploadLocked`."""

        async def attempt() -> int | None:
            return self._staging.probe(upload_id)

        return await self._locks.wait_for_file_lock(upload_id, attempt)

    async def append(self, principal: Principal, token: str, command: Append, body: Body) -> Appended:
        """Append the body of a PATCH.

        Raises:
            see `status` and `receive`.
        """
        upload = await self.load(principal, token, Action.WRITE)
        self._demand_bytes(upload)
        after = await self.receive(upload, command, body)
        completed = after.complete and not upload.complete
        if completed:
            log.info("upload_completed", upload_id=str(after.id), length=after.length)
        self._limit_empty_patches(after, moved=after.offset != command.offset)
        return Appended(after, completed)

    async def receive(self, upload: Upload, append: Append, body: Body) -> Upload:
        """Append a body and return the upload as it is then recorded.

        The steps and their order are those of docs/architecture.md. Until `body.accept()` a refusal costs
        the client no byte; from there on whatever arrived is kept, or discarded as a whole under a checksum.

        Raises:
            ProtocolError: refused before a byte was read, or too large, or a wrong checksum.
            StagingFull, UploadTooLarge: there is no room for it.
            UploadLocked: another request did not let go in time.
            BodyError: the body was cut short; what arrived is kept.
            StorageError, DatabaseUnavailable: what was acknowledged before is kept.
                Every `error.upload` is the upload with its true offset, None if that is not known.
        """
        received, file_may_be_new = Received(None), False
        async with contextlib.AsyncExitStack() as held:
            try:
                check_append(upload, append)
                self._check_space(upload, append)
                if await held.enter_async_context(self._locks.hold(upload.id, lambda: body.interrupt(TakenOver()))):
                    upload = await self._access.reload(upload.id)
                if append.offset != upload.offset:
                    # The client is told the true offset, so whoever may still be moving it is ended first.
                    upload = await self._settled(upload)
                plan = plan_append(upload, append, max_size=self._settings.append.max_size)
                if upload.state not in RECEIVING or plan.changes_nothing(upload, append):
                    return await self._expect_no_byte(upload, plan, body)
                file = await self._open(upload)
                held.push_async_callback(file.close)
                file_may_be_new = upload.offset == 0
                if file.size != upload.offset:
                    upload = await self._reread(upload, file)
                    plan = plan_append(upload, append, max_size=self._settings.append.max_size)
                    if upload.state not in RECEIVING:
                        return await self._expect_no_byte(upload, plan, body)
                    await file.truncate(upload.offset)
                if plan.length is not None and plan.length not in {upload.length, upload.offset}:
                    # Before the body, which may never end. A length that is reached already is recorded
                    # together with what follows from that.
                    upload = await self._uploads.declare_length(upload, plan.length)
                await body.accept()
                with self.budget:
                    received = await BodyWriter(
                        self._uploads, file, upload, plan, append, body, self.budget, self._settings.append
                    ).run()
                return received.result()
            except TusdError as error:
                error.upload = received.upload or (None if isinstance(error, UNCERTAIN) else upload)
                if file_may_be_new and isinstance(error, UploadNotFound | UploadGone):
                    # Removed while we were waiting: the file may be one that our opening made anew.
                    await self._staging.remove([upload.id])
                if isinstance(error, StagingDamaged) and received.error is None:
                    await self._report_damage(upload, error)
                await self._remove_if_hopeless(upload, append, error)
                raise

    def _check_space(self, upload: Upload, append: Append) -> None:
        wanted = append.content_length or 0
        if upload.length is None and append.length is not None:
            wanted = max(wanted, append.length - upload.offset)
        if wanted:
            self._staging.check_space(wanted)

    async def _remove_if_hopeless(self, upload: Upload, append: Append, error: TusdError) -> None:
        """Give up an upload of which nothing can become any more."""
        overrun = isinstance(error, LengthExceeded) and append.fail_on_overrun
        if upload.state in RECEIVING and (overrun or isinstance(error, WholeChecksumMismatch)):
            await self._uploads.remove(upload.id)

    @staticmethod
    async def _expect_no_byte(upload: Upload, plan: AppendPlan, body: Body) -> Upload:
        # A client that lost the reply to its last byte sends an empty body and must see success.
        if body.length is None:
            await body.accept()
            if await body.read():
                raise plan.too_large
        return upload

    async def _open(self, upload: Upload) -> StagingFile:
        """Open the staging file once no other process writes to it.

        Raises:
            UploadLocked: the other process did not let go in time.
            StagingMissing: bytes were acknowledged, and the file is not there.
        """

        async def attempt() -> StagingFile | None:
            return await self._staging.open(upload.id, create=upload.offset == 0)

        try:
            return await self._locks.wait_for_file_lock(upload.id, attempt)
        except StagingDamaged:
            # Unless the upload was removed meanwhile, and its file with it.
            await self._access.reload(upload.id)
            raise

    async def _reread(self, upload: Upload, file: StagingFile) -> Upload:
        """Return the row of a file that does not agree with it, once more.

        Another process moved the upload since our look, or there is a torn tail of a crash.
        """
        upload = await self._access.reload(upload.id)
        if file.size > upload.offset and upload.state in RECEIVING:
            # An UPDATE of whoever wrote the tail may still wait inside the database. It comes before this
            # one, and tells a greater offset, or finds no row any more.
            upload = await self._uploads.become_writer(upload.id) or await self._access.reload(upload.id)
        return upload

    async def _report_damage(self, upload: Upload, error: StagingDamaged) -> None:
        log.error("staging_damaged", upload_id=str(upload.id), offset=upload.offset, reason=str(error))
        with contextlib.suppress(DatabaseUnavailable):
            # The owner reads it: no path.
            await self._uploads.record_damage(upload.id, error.detail)

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

    async def terminate(self, principal: Principal, token: str, protocol: UploadProtocol | None) -> None:
        """Make an upload gone for everybody; its bytes are removed in the background.

        `protocol` is the one that the request says it is written in.

        A request that still writes to it is ended first and cannot bring it back.

        Raises:
            UploadNotFound, UploadGone, AccessError, UploadHeld, PartialInUse, TransferInProgress, WrongNode.
            UnsupportedVersion: see `check_termination`.
        """
        upload = await self.load(principal, token, Action.TERMINATE)
        check_termination(upload, protocol)
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
                await self._size_when_free(upload.id)
                await self._uploads.remove(upload.id, force=force)
        log.info("upload_terminated", upload_id=str(upload.id), state=upload.state.value, force=force)

    def _demand_bytes(self, upload: Upload) -> None:
        """Raise `WrongNode` if this node would have to touch staged bytes that it does not have."""
        # A final upload that waits for its parts has no bytes of its own.
        if upload.state in RECEIVING and upload.concat is not Concat.FINAL:
            self._staging.identity.require(upload)

    # --- read --------------------------------------------------------------------------------------

    async def load(self, principal: Principal, token: str, action: Action) -> Upload:
        """Return the upload behind a tus URL, for somebody who may use it so; see `Access.load`."""
        return await self._access.load(principal, token, action)

    async def refresh(self, upload_id: UploadId) -> Upload:
        """Return the upload as it stands now, for somebody who was permitted already."""
        return await self._access.reload(upload_id)


def _no_body() -> None:
    """Nothing to stop: requests without a body are over in a moment."""
