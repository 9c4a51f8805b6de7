"""The byte loop: lock, open at the offset, receive and write overlapped, sync, then advance.

The order is law: bytes are durable before the row says so, and the row says so before the client
hears of it. However a body ends, what arrived is kept, except under a checksum, where a chunk counts
wholly or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import structlog

from tusd_py.errors import (
    BodyTooSlow,
    ChecksumMismatch,
    DatabaseUnavailable,
    IncompleteChunk,
    OffsetConflict,
    OffsetMismatch,
    StagingDamaged,
    StorageError,
    TakenOver,
    TusdError,
    UploadGone,
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

_T = TypeVar("_T")
Reload = Callable[[], Awaitable[Upload]]
"""Reads the row again and checks again that it may be used."""

PAGE_BYTES: Final = 4096
MIN_BLOCK_BYTES: Final = 64 * 1024
MANY_CHUNKS: Final = 512
LOCK_POLL_SECONDS: Final = 0.01
"""Between two looks at another process's flock, which has been told to stop and lets go in moments."""
ASK_AGAIN_SECONDS: Final = 1.0
RATE_WINDOW_SECONDS: Final = 30.0
ADVANCE_RETRY_SECONDS: Final = (0.05, 0.2, 0.5, 1.0, 2.0, 4.0)
ORPHAN_SECONDS: Final = 3600.0
"""Life of an upload whose URL nobody learned, because the request that made it was cut short."""
UNCERTAIN: Final = (DatabaseUnavailable, StagingDamaged, UploadGone, UploadLocked, UploadNotFound)
"""After these nobody knows the offset at which the client may go on: it is not told any."""


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

    def __enter__(self) -> Self:
        self._active += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._active -= 1

    @property
    def block_bytes(self) -> int:
        """How much to gather before it is written."""
        share = self._settings.buffer_budget // (2 * max(1, self._active))
        return max(MIN_BLOCK_BYTES, min(self._settings.block_size, share))


class Block:
    """The chunks that one write will take, in order.

    Crumbs are joined: a chunk of one byte takes fifty bytes of memory, and a client may send a whole
    body of them.
    """

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.size = 0
        self._joined = 0

    def append(self, chunk: bytes) -> None:
        """Add a chunk at the end."""
        self.chunks.append(chunk)
        self.size += len(chunk)
        if len(self.chunks) - self._joined >= MANY_CHUNKS:
            self.chunks[self._joined :] = [b"".join(self.chunks[self._joined :])]
            self._joined += 1

    def cut(self, start: int) -> list[bytes | memoryview]:
        """Take what is gathered for offset `start`, up to a page border: whole pages are cheapest to write."""
        chunks, size = self.chunks, self.size
        self.chunks, self.size, self._joined = [], 0, 0
        rest = (start + size) % PAGE_BYTES
        if chunks and rest < len(chunks[-1]) and size > MIN_BLOCK_BYTES:
            last = memoryview(chunks.pop())
            border = len(last) - rest
            chunks.append(last[:border])
            if rest:
                self.chunks.append(last[border:])
                self.size = rest
        return chunks


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
                if not isinstance(error, UNCERTAIN):
                    error.upload = error.upload or upload
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
        if append.content_length == 0 and append.checksum is None and not self._changes_length(upload, append):
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
            # A torn tail of a crash, or another process moved the upload since our look.
            upload = await reload()
        plan = self._plan(upload, append)
        if upload.state not in RECEIVING:
            return await self._nothing_left(upload, plan, body)
        await self._truncate(file, upload)
        if self._changes_length(upload, append) and append.length != upload.offset:
            # Before the body, which may never end. A length that is reached already completes the
            # upload, and is recorded together with that.
            upload = await self._uploads.declare_length(upload, append.length or 0)
        await body.accept()
        with self.budget:
            reception = Reception(self._uploads, file, upload, plan, append, body, self.budget, self._settings)
            return await reception.run()

    def _plan(self, upload: Upload, append: Append) -> AppendPlan:
        try:
            return plan_append(upload, append, max_size=self._settings.max_size)
        except TusdError as error:
            error.upload = upload
            raise

    async def _settled(self, upload: Upload, reload: Reload) -> Upload:
        """Answer the upload once no other process moves it."""
        if upload.state not in RECEIVING or self._staging.probe(upload.id) == upload.offset:
            return upload
        file = await self._open(upload, reload)
        await file.close()
        return await reload()

    @staticmethod
    def _changes_length(upload: Upload, append: Append) -> bool:
        return append.length is not None and append.length != upload.length

    async def _nothing_left(self, upload: Upload, plan: AppendPlan, body: Body) -> Upload:
        # A client that lost the reply to its last byte sends an empty body and must see success.
        if body.length is None:
            await body.accept()
            if await body.read():
                raise plan.overlong
        return upload

    async def _open(self, upload: Upload, reload: Reload) -> StagingFile:
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
                await self._report_damage(await reload(), error)
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
        with contextlib.suppress(DatabaseUnavailable):
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
        self._block = Block()
        self._written = upload.offset
        self._crc = upload.crc64nvme or 0
        self._writing: asyncio.Future[None] | None = None
        self._expires_after_seconds = settings.expires_after_seconds
        if append.url_unknown:
            self._expires_after_seconds = orphan_seconds(settings)
        self._checkpoint_at_bytes = upload.offset + settings.checkpoint_bytes
        self._checkpoint_at = time.monotonic() + settings.checkpoint_seconds
        self._rate = RateGuard(settings.min_rate)

    async def run(self) -> Upload:
        """Receive until the body ends, then make durable what counts."""
        ending: BaseException | None = None
        try:
            await self._receive()
        except BaseException as error:  # noqa: BLE001 -- raised again below, once the bytes are safe
            ending = error
        else:
            self._expires_after_seconds = self._settings.expires_after_seconds
        upload = await finished(self._settle(ending))
        if ending is not None:
            if isinstance(ending, TusdError):
                ending.upload = upload
            raise ending
        return self._upload

    async def _receive(self) -> None:
        while True:
            asked_at = time.monotonic()
            chunk = await self._body.read(self._seconds_to_checkpoint())
            waited = time.monotonic() - asked_at
            if chunk is None:
                await self._start_writing(checkpoint=True)
                self._rate.count(0, waited)
                continue
            if not chunk or await self._ends_with(chunk):
                return
            self._block.append(chunk)
            self._rate.count(len(chunk), waited)
            await self._write_if_due()

    async def _write_if_due(self) -> None:
        end = self._written + self._block.size
        if not self._whole and (end >= self._checkpoint_at_bytes or time.monotonic() >= self._checkpoint_at):
            await self._start_writing(checkpoint=True)
        elif self._block.size >= self._budget.block_bytes:
            await self._start_writing(checkpoint=False)

    def _seconds_to_checkpoint(self) -> float | None:
        dirty = self._block.size or self._written > self._upload.offset
        if self._whole or not dirty:
            return None
        return max(0.001, self._checkpoint_at - time.monotonic())

    async def _ends_with(self, chunk: bytes) -> bool:
        """Hold back the read that reaches the limit of a chunked body until its end is seen.

        So an overlong body never completes an upload. Raises the plan's `overlong`.
        """
        if self._append.content_length is not None:
            return False
        received = self._written + self._block.size + len(chunk) - self._plan.start
        if received < self._plan.max_bytes:
            return False
        if received > self._plan.max_bytes:
            raise self._plan.overlong
        try:
            beyond = await self._body.read()
        except BaseException:
            # However the body ended, nothing came after these bytes.
            self._block.append(chunk)
            raise
        if beyond:
            raise self._plan.overlong
        self._block.append(chunk)
        return True

    async def _start_writing(self, *, checkpoint: bool) -> None:
        """Hand what is gathered to a writer thread, once the block before is written."""
        await self._finish_writing()
        chunks = self._block.cut(self._written)
        if checkpoint:
            self._checkpoint_at_bytes = self._written + self._block.size + self._settings.checkpoint_bytes
            self._checkpoint_at = time.monotonic() + self._settings.checkpoint_seconds
        self._writing = asyncio.ensure_future(self._write(chunks, checkpoint=checkpoint))

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
        if (writing := self._writing) is None:
            return
        try:
            # Shielded: a block of unknown fate would leave a hole, and the next one would fill it.
            await asyncio.shield(writing)
        finally:
            if writing.done():
                self._writing = None

    async def _advance(self) -> None:
        """Record what is written.

        Only the holder of the file moves the row. If it has moved all the same, then because an
        earlier try was recorded and its answer got lost; the rest is recorded from there.
        """
        try:
            await self._advance_once()
        except OffsetConflict:
            current = await self._uploads.find(self._upload.id)
            if current is None or current.state in GONE:
                raise UploadNotFound from None
            if not self._upload.offset < current.offset <= self._written:
                raise
            self._upload = current
            if current.state in RECEIVING:
                await self._advance_once()

    async def _advance_once(self) -> None:
        if self._written == self._upload.offset != self._length and not self._append.url_unknown:
            return
        self._upload = await self._uploads.advance(
            self._upload,
            self._written,
            self._crc,
            length=self._length,
            expires_after_seconds=self._expires_after_seconds,
        )

    async def _record(self) -> None:
        """Sync and advance for good, waiting a while for a database that is away."""
        chunks, size = self._block.chunks, self._block.size
        self._crc = await self._file.write(chunks, self._written, self._crc, sync=True, hasher=self._hasher)
        self._written += size
        self._block = Block()
        for delay in (*ADVANCE_RETRY_SECONDS, None):
            try:
                await self._advance()
            except DatabaseUnavailable:
                # The bytes are on the disk: a database that is back in a moment costs nobody anything.
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            else:
                return

    async def _settle(self, ending: BaseException | None) -> Upload | None:
        """Make durable what counts; answer the upload as recorded, None if that cannot be known."""
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
        arrived = self._block.size or self._written > self._upload.offset
        # A body without a byte may complete an upload, or end the time in which nobody knew its URL.
        if arrived or self._written == self._length or self._append.url_unknown:
            await self._record()

    async def _settle_whole(self, ending: BaseException | None) -> None:
        verified = False
        try:
            await self._finish_writing()
            if ending is None:
                chunks, self._block = self._block.chunks, Block()
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

    async def _keep_written(self) -> Upload | None:
        """After a failed write: keep the blocks before it, and leave the rest to the next open."""
        self._block = Block()
        if not self._whole and self._written > self._upload.offset:
            try:
                await self._record()
            except TusdError as error:
                log.warning("written_bytes_not_recorded", upload_id=str(self._upload.id), reason=str(error))
                return None
        return self._upload


class RateGuard:
    """Demands a minimum rate over whole windows, so that a short stall is nobody's fault.

    A window is made of the time in which we waited for the client: a slow disk is not its fault.
    """

    def __init__(self, min_rate: int) -> None:
        self._min_rate = min_rate
        self._waited = 0.0
        self._bytes = 0

    def count(self, size: int, waited_seconds: float) -> None:
        """Count received bytes. Raises `BodyTooSlow` at the end of a window that had too few."""
        if not self._min_rate:
            return
        self._bytes += size
        self._waited += waited_seconds
        if self._waited >= RATE_WINDOW_SECONDS:
            if self._bytes < self._min_rate * self._waited:
                raise BodyTooSlow
            self._waited, self._bytes = 0.0, 0


def orphan_seconds(settings: AppendSettings) -> float:
    """Answer how long an upload may wait whose URL nobody knows; 0, for ever, where nothing expires."""
    return min(ORPHAN_SECONDS, settings.expires_after_seconds)


async def finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end even if the caller is cancelled, and only then let it be cancelled.

    Neither a disconnect nor a shutdown may come between bytes and their record, and no file may be
    closed under a thread that writes to it.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        with contextlib.suppress(Exception):
            # Looked at, so that the loop does not complain of an error nobody heard of.
            task.result()
        raise cancelled
    return task.result()
