"""The walk of a PATCH up to its first byte: lock, plan, open at the offset, cut a torn tail."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import structlog

from tusd_py.errors import (
    DatabaseUnavailable,
    LengthExceeded,
    OffsetMismatch,
    StagingDamaged,
    TakenOver,
    TusdError,
    UploadGone,
    UploadNotFound,
    WholeChecksumMismatch,
)
from tusd_py.protocol.upload import RECEIVING, AppendPlan, Upload, plan_append
from tusd_py.uploads.body_writer import UNCERTAIN, BodyWriter
from tusd_py.uploads.buffers import AppendSettings, BufferBudget
from tusd_py.uploads.waiting import Reload, settled, wait_for_file_lock

if TYPE_CHECKING:
    from tusd_py.ports import Body, Staging, StagingFile, UploadLocks, UploadRepository
    from tusd_py.protocol.commands import Append

log = structlog.get_logger(__name__)


class Appender:
    """Appends bodies to uploads."""

    def __init__(
        self, uploads: UploadRepository, staging: Staging, locks: UploadLocks, settings: AppendSettings
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._locks = locks
        self._settings = settings
        self.budget = BufferBudget(settings)

    async def append(self, upload: Upload, append: Append, body: Body, reload: Reload) -> Upload:
        """Append the body and return the upload as it is then recorded.

        Raises:
            ProtocolError: refused before a byte was read, or too_large, or a wrong checksum.
            UploadLocked: another request did not let go in time.
            BodyError: the body was cut short; what arrived is kept and `error.upload` tells where.
            StorageError, DatabaseUnavailable: what was acknowledged before is kept.
        """
        async with self._locks.hold(upload.id, partial(body.interrupt, TakenOver())) as contended:
            if contended:
                upload = await reload()
            try:
                return await self._append_held(upload, append, body, reload)
            except TusdError as error:
                if not isinstance(error, UNCERTAIN):
                    error.upload = error.upload or upload
                if upload.state in RECEIVING and _is_fatal(error, append):
                    await self._uploads.remove(upload.id)
                raise

    async def _append_held(self, upload: Upload, append: Append, body: Body, reload: Reload) -> Upload:
        try:
            plan = self._plan(upload, append)
        except OffsetMismatch:
            # The client is told the true offset, so whoever may still be moving it is ended first.
            upload = await self._settled(upload, reload)
            plan = self._plan(upload, append)
        if upload.state not in RECEIVING:
            return await self._nothing_left(upload, plan, body)
        nothing_to_record = plan.length == upload.length and not append.completes
        if append.content_length == 0 and append.checksum is None and nothing_to_record:
            return upload
        file = await self._open(upload, reload)
        try:
            return await self._append_to(file, upload, append, body, reload)
        except (UploadNotFound, UploadGone):
            if upload.offset == 0:
                # Removed while we were waiting: the file may be one that our opening made anew.
                await self._staging.remove([upload.id])
            raise
        finally:
            await file.close()

    async def _append_to(self, file: StagingFile, upload: Upload, append: Append, body: Body, reload: Reload) -> Upload:
        if file.size != upload.offset:
            # Another process moved the upload since our look, or there is a torn tail of a crash.
            upload = await reload()
        if file.size > upload.offset and upload.state in RECEIVING:
            # An UPDATE of whoever wrote the tail may still wait inside the database. It comes before this
            # one, and tells a greater offset, or finds no row any more.
            upload = await self._uploads.become_writer(upload.id) or await reload()
        plan = self._plan(upload, append)
        if upload.state not in RECEIVING:
            return await self._nothing_left(upload, plan, body)
        await self._truncate(file, upload)
        if plan.length is not None and plan.length not in {upload.length, upload.offset}:
            # Before the body, which may never end. A length that is reached already is recorded
            # together with what follows from that.
            upload = await self._uploads.declare_length(upload, plan.length)
        await body.accept()
        with self.budget:
            body_writer = BodyWriter(self._uploads, file, upload, plan, append, body, self.budget, self._settings)
            return await body_writer.run()

    def _plan(self, upload: Upload, append: Append) -> AppendPlan:
        try:
            return plan_append(upload, append, max_size=self._settings.max_size)
        except TusdError as error:
            error.upload = upload
            raise

    async def _settled(self, upload: Upload, reload: Reload) -> Upload:
        """Return the upload once no other process moves it."""
        try:
            return await settled(
                self._staging, self._locks, upload, reload, timeout_seconds=self._settings.lock_timeout_seconds
            )
        except StagingDamaged as error:
            await self._report_damage(upload, error)
            raise

    async def _nothing_left(self, upload: Upload, plan: AppendPlan, body: Body) -> Upload:
        # A client that lost the reply to its last byte sends an empty body and must see success.
        if body.length is None:
            await body.accept()
            if await body.read():
                raise plan.too_large
        return upload

    async def _open(self, upload: Upload, reload: Reload) -> StagingFile:
        """Open the staging file once no other process writes to it.

        Raises:
            UploadLocked: the other process did not let go in time.
            StagingMissing: bytes were acknowledged, and the file is not there.
        """

        async def attempt() -> StagingFile | None:
            try:
                return await self._staging.open(upload.id, create=upload.offset == 0)
            except StagingDamaged as error:
                await self._report_damage(await reload(), error)
                raise

        return await wait_for_file_lock(
            self._locks, upload.id, attempt, timeout_seconds=self._settings.lock_timeout_seconds
        )

    async def _truncate(self, file: StagingFile, upload: Upload) -> None:
        try:
            await file.truncate(upload.offset)
        except StagingDamaged as error:
            await self._report_damage(upload, error)
            raise

    async def _report_damage(self, upload: Upload, error: StagingDamaged) -> None:
        log.error("staging_damaged", upload_id=str(upload.id), offset=upload.offset, reason=str(error))
        with contextlib.suppress(DatabaseUnavailable):
            # The owner reads it: no path.
            await self._uploads.record_damage(upload.id, error.detail)


def _is_fatal(error: TusdError, append: Append) -> bool:
    """Return whether nothing can become of the upload any more."""
    overrun = isinstance(error, LengthExceeded) and append.fail_on_overrun
    return overrun or isinstance(error, WholeChecksumMismatch)
