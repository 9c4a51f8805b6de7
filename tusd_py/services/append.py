"""The byte loop: lock, open at the offset, receive and write overlapped, sync, then advance.

The order is law: bytes are durable before the row says so, and the row says so before the client
hears of it. However a body ends, what arrived is kept, except under a checksum, where a chunk counts
wholly or not at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import (
    BodyError,
    BodyTooSlow,
    ChecksumMismatch,
    DatabaseUnavailable,
    IncompleteChunk,
    OffsetConflict,
    StagingDamaged,
    StorageError,
    TakenOver,
    TusdError,
    UploadLocked,
    UploadNotFound,
)
from tusd_py.protocol.checksum import parse_checksum
from tusd_py.protocol.fields import UPLOAD_CHECKSUM
from tusd_py.protocol.upload import GONE, RECEIVING, AppendPlan, Upload, plan_append

if TYPE_CHECKING:
    from tusd_py.ports import Body, Staging, StagingFile, UploadLocks, UploadRepository
    from tusd_py.protocol.commands import Append

log = structlog.get_logger(__name__)

Reload = Callable[[], Awaitable[Upload]]
"""Reads the row again and checks again that it may be used."""

PAGE_BYTES: Final = 4096
MIN_BLOCK_BYTES: Final = 64 * 1024
LOCK_POLL_SECONDS: Final = 0.01
"""Between two looks at another process's flock, which has been told to stop and lets go in moments."""
ASK_AGAIN_SECONDS: Final = 1.0
RATE_WINDOW_SECONDS: Final = 30.0
ADVANCE_RETRY_SECONDS: Final = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class AppendSettings:
    """What the loop needs to know of the configuration."""

    max_size: int | None
    block_size: int
    buffer_budget: int
    checkpoint_bytes: int
    checkpoint_seconds: float
    lock_timeout_seconds: float
    expires_after_seconds: float
    min_rate: int


class BufferBudget:
    """Bounds what all bodies of a process hold in memory, by smaller blocks when there are many.

    A body holds at most one block being gathered and one being written. Nobody waits for memory, so
    a slow client cannot starve a fast one.
    """

    def __init__(self, settings: AppendSettings) -> None:
        self._settings = settings
        self._active = 0

    def __enter__(self) -> BufferBudget:
        self._active += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._active -= 1

    @property
    def block_bytes(self) -> int:
        """How much to gather before it is written."""
        share = self._settings.buffer_budget // (2 * max(1, self._active))
        return max(MIN_BLOCK_BYTES, min(self._settings.block_size, share))


class Appender:
    """Appends bodies to uploads."""

    def __init__(
        self, uploads: UploadRepository, staging: Staging, locks: UploadLocks, settings: AppendSettings
    ) -> None:
        self._uploads = uploads
        self._staging = staging
        self._locks = locks
        self._settings = settings
        self._budget = BufferBudget(settings)

    async def append(self, upload: Upload, append: Append, body: Body, reload: Reload) -> Upload:
        """Append the body and answer the upload as it is then recorded.

        Raises:
            ProtocolError: refused before a byte was read, or overlong, or a wrong checksum.
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
                error.upload = error.upload or upload
                raise

    async def _append_held(self, upload: Upload, append: Append, body: Body, reload: Reload) -> Upload:
        plan = plan_append(upload, append, max_size=self._settings.max_size)
        if upload.state not in RECEIVING:
            return await self._nothing_left(upload, plan, body)
        if append.content_length == 0 and append.checksum is None and not self._changes_length(upload, append):
            return upload
        file = await self.open_exclusively(upload)
        try:
            if file.size != upload.offset:
                # A torn tail of a crash, or another process moved the upload since our look.
                upload = await reload()
                plan = plan_append(upload, append, max_size=self._settings.max_size)
                if upload.state not in RECEIVING:
                    return await self._nothing_left(upload, plan, body)
            await self._truncate(file, upload)
            if self._changes_length(upload, append) and append.length != upload.offset:
                # Before the body, which may never end. A length that is reached already completes the
                # upload, and is recorded together with that.
                upload = await self._uploads.declare_length(upload, append.length or 0)
            await body.accept()
            with self._budget:
                reception = Reception(self._uploads, file, upload, plan, append, body, self._budget, self._settings)
                return await reception.run()
        finally:
            await file.close()

    @staticmethod
    def _changes_length(upload: Upload, append: Append) -> bool:
        return append.length is not None and append.length != upload.length

    async def _nothing_left(self, upload: Upload, plan: AppendPlan, body: Body) -> Upload:
        # A client that lost the reply to its last byte sends an empty body and must see success.
        if body.length is None and await body.read():
            raise plan.overlong
        return upload

    async def open_exclusively(self, upload: Upload) -> StagingFile:
        """Open the staging file once no other process writes to it.

        Raises:
            UploadLocked: the other process did not let go in time.
            StagingMissing: bytes were acknowledged, and the file is not there.
        """
        deadline = time.monotonic() + self._settings.lock_timeout_seconds
        ask_at = 0.0
        while True:
            try:
                file = await self._staging.open(upload.id, create=upload.offset == 0)
            except StagingDamaged as error:
                await self._report_damage(upload, error)
                raise
            if file is not None:
                return file
            now = time.monotonic()
            if now > deadline:
                raise UploadLocked(upload_id=str(upload.id))
            if now >= ask_at:
                await self._locks.ask_others(upload.id)
                ask_at = now + ASK_AGAIN_SECONDS
            await asyncio.sleep(LOCK_POLL_SECONDS)

    async def _truncate(self, file: StagingFile, upload: Upload) -> None:
        try:
            await file.truncate(upload.offset)
        except StagingDamaged as error:
            await self._report_damage(upload, error)
            raise

    async def _report_damage(self, upload: Upload, error: StagingDamaged) -> None:
        log.error("staging_damaged", upload_id=str(upload.id), offset=upload.offset, reason=str(error))
        await self._uploads.record_damage(upload.id, str(error))


class Reception:
    """One body on its way to the disk."""

    def __init__(  # noqa: PLR0913, PLR0917 -- the collaborators of one loop
        self,
        uploads: UploadRepository,
        file: StagingFile,
        upload: Upload,
        plan: AppendPlan,
        append: Append,
        body: Body,
        budget: BufferBudget,
        settings: AppendSettings,
    ) -> None:
        self._uploads = uploads
        self._file = file
        self._upload = upload
        self._plan = plan
        self._append = append
        self._body = body
        self._budget = budget
        self._settings = settings
        self._checksum = append.checksum
        self._hasher = append.checksum.hasher() if append.checksum else None
        self._length = upload.length if upload.length is not None else append.length
        self._whole = append.checksum is not None or append.checksum_in_trailer
        """All or nothing: no checkpoint before the whole body is verified."""
        self._chunks: list[bytes | memoryview] = []
        self._gathered = 0
        self._written = upload.offset
        self._crc = upload.crc64nvme or 0
        self._writing: asyncio.Future[None] | None = None
        self._checkpoint_at_bytes = upload.offset + settings.checkpoint_bytes
        self._checkpoint_at = time.monotonic() + settings.checkpoint_seconds
        self._rate = RateGuard(settings.min_rate)

    async def run(self) -> Upload:
        """Receive until the body ends, then make durable what counts."""
        ending: BaseException | None = None
        try:
            await self._receive()
        except (TusdError, asyncio.CancelledError) as error:
            ending = error
        # Shielded: neither a disconnect nor a shutdown may come between the bytes and their record.
        settling = asyncio.ensure_future(self._settle(ending))
        try:
            upload = await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait([settling])
            raise
        if ending is not None:
            if isinstance(ending, TusdError):
                ending.upload = upload
            raise ending
        return upload

    async def _receive(self) -> None:
        while True:
            chunk = await self._body.read(self._seconds_to_checkpoint())
            if chunk is None:
                await self._start_writing(checkpoint=True)
                continue
            self._rate.count(len(chunk))
            if not chunk or await self._ends_with(chunk):
                return
            self._take(chunk)
            await self._write_if_due()

    def _take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._gathered += len(chunk)

    async def _write_if_due(self) -> None:
        end = self._written + self._gathered
        if not self._whole and (end >= self._checkpoint_at_bytes or time.monotonic() >= self._checkpoint_at):
            await self._start_writing(checkpoint=True)
        elif self._gathered >= self._budget.block_bytes:
            await self._start_writing(checkpoint=False)

    def _seconds_to_checkpoint(self) -> float | None:
        dirty = self._gathered or self._written > self._upload.offset
        if self._whole or not dirty:
            return None
        return max(0.001, self._checkpoint_at - time.monotonic())

    async def _ends_with(self, chunk: bytes) -> bool:
        """Hold back the read that reaches the limit of a chunked body until its end is seen.

        So an overlong body never completes an upload. Raises the plan's `overlong`.
        """
        if self._append.content_length is not None:
            return False
        received = self._written + self._gathered + len(chunk) - self._plan.start
        if received < self._plan.max_bytes:
            return False
        if received > self._plan.max_bytes:
            raise self._plan.overlong
        try:
            beyond = await self._body.read()
        except BodyError:
            self._take(chunk)
            raise
        if beyond:
            raise self._plan.overlong
        self._take(chunk)
        return True

    async def _start_writing(self, *, checkpoint: bool) -> None:
        """Hand what is gathered to a writer thread, once the block before is written."""
        await self._finish_writing()
        chunks = self._cut()
        if checkpoint:
            self._checkpoint_at_bytes = self._written + self._gathered + self._settings.checkpoint_bytes
            self._checkpoint_at = time.monotonic() + self._settings.checkpoint_seconds
        self._writing = asyncio.ensure_future(self._write(chunks, checkpoint=checkpoint))

    def _cut(self) -> list[bytes | memoryview]:
        """Take what is gathered, up to a page border: whole pages are the cheapest to write."""
        chunks, self._chunks = self._chunks, []
        rest = (self._written + self._gathered) % PAGE_BYTES
        if chunks and rest < len(chunks[-1]) and self._gathered > MIN_BLOCK_BYTES:
            last = memoryview(chunks.pop())
            border = len(last) - rest
            chunks.append(last[:border])
            if rest:
                self._chunks.append(last[border:])
        else:
            rest = 0
        self._gathered = rest
        return chunks

    async def _write(self, chunks: list[bytes | memoryview], *, checkpoint: bool) -> None:
        self._crc = await self._file.write(chunks, self._written, self._crc, sync=checkpoint, hasher=self._hasher)
        self._written += sum(map(len, chunks))
        if not checkpoint:
            return
        try:
            await self._advance()
        except DatabaseUnavailable as error:
            # Going on costs nothing: the next checkpoint records these bytes as well.
            log.warning("checkpoint_postponed", upload_id=str(self._upload.id), reason=str(error))

    async def _finish_writing(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing

    async def _advance(self) -> None:
        if self._written == self._upload.offset and self._written != self._length:
            return
        self._upload = await self._uploads.advance(
            self._upload,
            self._written,
            self._crc,
            length=self._length,
            expires_after_seconds=self._settings.expires_after_seconds,
        )

    async def _record(self) -> None:
        """Sync and advance for good, waiting a while for a database that is away."""
        self._crc = await self._file.write(self._chunks, self._written, self._crc, sync=True, hasher=self._hasher)
        self._written += self._gathered
        self._chunks, self._gathered = [], 0
        for delay in (*ADVANCE_RETRY_SECONDS, None):
            try:
                await self._advance()
            except DatabaseUnavailable:
                # The bytes are on the disk: a database that is back in a moment costs nobody anything.
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            except OffsetConflict:
                # A try whose answer got lost may have been recorded; then nothing is left to do.
                current = await self._uploads.find(self._upload.id)
                if current is None or current.offset != self._written or current.state in GONE:
                    raise
                self._upload = current
                return
            else:
                return

    async def _settle(self, ending: BaseException | None) -> Upload:
        if isinstance(ending, StorageError):
            return await self._keep_written()
        try:
            if self._whole:
                await self._settle_whole(ending)
            else:
                await self._settle_rest()
        except (StorageError, OffsetConflict, UploadNotFound) as error:
            if isinstance(error, StorageError):
                error.upload = await self._keep_written()
            raise
        return self._upload

    async def _settle_rest(self) -> None:
        await self._finish_writing()
        if self._gathered or self._written > self._upload.offset or self._written == self._length:
            await self._record()

    async def _settle_whole(self, ending: BaseException | None) -> None:
        verified = False
        try:
            await self._finish_writing()
            if ending is None:
                chunks, self._chunks, self._gathered = self._chunks, [], 0
                await self._write(chunks, checkpoint=False)
                await self._verify()
                verified = True
        finally:
            if not verified:
                await self._discard()
        if verified:
            await self._record()

    async def _verify(self) -> None:
        checksum, hasher = self._checksum, self._hasher
        if self._append.checksum_in_trailer:
            value = self._body.trailer(UPLOAD_CHECKSUM)
            if value is None:
                raise IncompleteChunk("The announced Upload-Checksum trailer did not arrive; the body was discarded.")
            checksum = parse_checksum(value)
            # Only now is the algorithm known: what was written is read once more.
            hasher = checksum.hasher()
            await self._file.feed(hasher, self._plan.start, self._written)
        if checksum is not None and hasher is not None and hasher.digest() != checksum.digest:
            raise ChecksumMismatch

    async def _discard(self) -> None:
        self._file.size = max(self._file.size, self._written)
        await self._file.truncate(self._upload.offset)

    async def _keep_written(self) -> Upload:
        """After a failed write: keep the blocks before it, and leave the rest to the next open."""
        self._chunks, self._gathered = [], 0
        if not self._whole and self._written > self._upload.offset:
            try:
                await self._record()
            except TusdError as error:
                log.warning("written_bytes_not_recorded", upload_id=str(self._upload.id), reason=str(error))
        return self._upload


class RateGuard:
    """Demands a minimum rate over whole windows, so that a short stall is nobody's fault."""

    def __init__(self, min_rate: int) -> None:
        self._wanted = min_rate * RATE_WINDOW_SECONDS
        self._since = time.monotonic()
        self._bytes = 0

    def count(self, size: int) -> None:
        """Count received bytes. Raises `BodyTooSlow` at the end of a window that had too few."""
        if not self._wanted:
            return
        self._bytes += size
        now = time.monotonic()
        if now - self._since >= RATE_WINDOW_SECONDS:
            if self._bytes < self._wanted:
                raise BodyTooSlow
            self._since, self._bytes = now, 0

