"""One body on its way to the disk: receive and write overlapped, sync, then advance.

The order is law: bytes are durable before the row says so, and the row says so before the client
hears of it. However a body ends, what arrived is kept, except under a checksum, where a chunk counts
wholly or not at all.

Three positions follow each other through the file:

    row <= synced <= written <= received

- `received` grows with each read. The bytes gather in a block, which is handed to a thread when it is large
  enough; while the thread writes it, the next block gathers. At most one block is being written.
- `written` moves when the thread is done. What comes after it in the file is unknown until then.
- `synced` moves at a checkpoint, by bytes or by time, and at the end of the body.
- the row's offset follows at once (`_advance`), by a compare-and-set from the value it had. A database that is
  away at a checkpoint costs nothing: the next one records these bytes as well. At the end it is waited for.

After a write that failed, `synced` may still be brought up to `written` by a first sync. After a sync that
failed nothing newer than `synced` counts (docs/adr/0015), and the row is never moved beyond it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog

from tusd_py.errors import (
    DatabaseUnavailable,
    LengthConflict,
    OffsetConflict,
    StorageError,
    TusdError,
    UploadNotFound,
)
from tusd_py.protocol.checksum import DigestSet
from tusd_py.protocol.upload import GONE, Append, AppendPlan, Upload
from tusd_py.uploads.buffers import Block, RateGuard
from tusd_py.uploads.verification import verify_body, verify_upload

if TYPE_CHECKING:
    from tusd_py.ports import Body, StagingFile
    from tusd_py.uploads.service import UploadService

log = structlog.get_logger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a body."""

    upload: Upload | None
    """The upload as it is now recorded; None if that cannot be known."""
    error: BaseException | None = None
    """Why the body, or its record, is not whole."""

    def result(self) -> Upload:
        """Return the upload, or raise what went wrong."""
        if self.error is not None:
            raise self.error
        return cast("Upload", self.upload)


class BodyWriter:
    """One body on its way to the disk."""

    def __init__(  # noqa: PLR0913, PLR0917 -- what it works with, and what it is about
        self, service: UploadService, file: StagingFile, upload: Upload, plan: AppendPlan, append: Append, body: Body
    ) -> None:
        config, timing = service.config, service.timing
        self._uploads = service.uploads
        self._file = file
        self._upload = upload
        self._plan = plan
        self._append = append
        self._body = body
        self._budget = service.budget
        self._config = config.staging
        self._clock = timing.clock
        self._retry_seconds = timing.advance_retry_seconds
        self._hasher = append.checksum.hasher() if append.checksum else None
        self._length = plan.length
        self._wanted: DigestSet | None = None
        self._may_complete = append.completes is not False and upload.repr_digest is None
        self._all_or_nothing = append.checksum is not None or append.checksum_in_trailer
        """No checkpoint before the whole body is verified."""
        self._unknown_length = append.content_length is None
        self._block = Block()
        self._received = upload.offset
        """Up to where bytes have come: those gathered, and those being written, included."""
        self._written = upload.offset
        self._crc = upload.crc64nvme or 0
        self._synced = (self._written, self._crc)
        """Up to where the bytes are durable, and their checksum."""
        self._writing: asyncio.Future[None] | None = None
        self._lifetime = service.expires_after_seconds
        self._expires_after_seconds = service.unannounced_seconds if append.url_sent_only_on_success else self._lifetime
        self._checkpoint_at_bytes = upload.offset + self._config.checkpoint_bytes
        self._checkpoint_at = self._clock() + self._config.checkpoint_seconds
        self._rate = RateGuard(config.limits.min_rate, timing.rate_window_seconds)

    @property
    def progress(self) -> tuple[Upload, int]:
        """The upload as it was recorded last, and the offset behind all that has arrived."""
        return self._upload, self._written + self._block.size

    async def run(self) -> Received:
        """Receive until the body ends, then make durable what counts.

        Raises:
            asyncio.CancelledError: while the record was written, which was finished nevertheless.
        """
        ending: BaseException | None = None
        try:
            await self._receive()
        except BaseException as error:  # noqa: BLE001 -- returned below, once the bytes are safe
            ending = error
        else:
            self._expires_after_seconds = self._lifetime
        return await finished(self._settle(ending))

    async def _receive(self) -> None:
        while True:
            asked_at = self._clock()
            chunk = await self._body.read(self._seconds_to_checkpoint())
            waited = self._clock() - asked_at
            if chunk is None:
                await self._finish_writing()
                # Unless the checkpoint that was under way has recorded all of it.
                if self._received > self._upload.offset:
                    await self._start_writing(checkpoint=True)
                self._rate.count(0, waited)
                continue
            if not chunk or (self._unknown_length and await self._ends_with(chunk)):
                return
            self._gather(chunk)
            self._rate.count(len(chunk), waited)
            checkpoint = not self._all_or_nothing and self._checkpoint_is_due(asked_at + waited)
            if checkpoint or self._block.size >= self._budget.block_bytes:
                await self._start_writing(checkpoint=checkpoint)

    def _gather(self, chunk: bytes) -> None:
        self._block.append(chunk)
        self._received += len(chunk)

    def _checkpoint_is_due(self, now: float) -> bool:
        return now >= self._checkpoint_at or self._received >= self._checkpoint_at_bytes

    def _seconds_to_checkpoint(self) -> float | None:
        if self._all_or_nothing or self._received == self._upload.offset:
            return None
        return max(0.001, self._checkpoint_at - self._clock())

    async def _ends_with(self, chunk: bytes) -> bool:
        """Hold back the read that reaches the limit of a chunked body until its end is seen.

        So a body that is too long never completes an upload. Raises the plan's `too_large`.
        """
        received = self._received + len(chunk) - self._plan.start
        if received < self._plan.max_bytes:
            return False
        if received > self._plan.max_bytes:
            raise self._plan.too_large
        try:
            beyond = await self._body.read()
        except BaseException:
            # However the body ended, nothing came after these bytes.
            self._gather(chunk)
            raise
        if beyond:
            raise self._plan.too_large
        self._gather(chunk)
        return True

    async def _start_writing(self, *, checkpoint: bool) -> None:
        """Hand what is gathered to a writer thread, once the block before is written."""
        await self._finish_writing()
        chunks = self._block.cut(self._written)
        if checkpoint:
            self._checkpoint_at_bytes = self._received + self._config.checkpoint_bytes
            self._checkpoint_at = self._clock() + self._config.checkpoint_seconds
        self._writing = asyncio.ensure_future(self._write(chunks, checkpoint=checkpoint))

    async def _write(self, chunks: list[bytes | memoryview], *, checkpoint: bool) -> None:
        self._crc = await self._file.write(chunks, self._written, self._crc, sync=checkpoint, hasher=self._hasher)
        self._written += sum(map(len, chunks))
        if not checkpoint:
            return
        self._synced = (self._written, self._crc)
        try:
            await self._advance()
        except DatabaseUnavailable as error:
            # Going on costs nothing: the next checkpoint records these bytes as well.
            log.warning("checkpoint_postponed", upload_id=str(self._upload.id), reason=str(error))
        else:
            self._body.acknowledge(self._upload)

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
            mine = current.writer == self._upload.writer
            if not (mine and self._upload.offset < current.offset <= self._written):
                raise
            self._upload = current
            if current.receiving:
                await self._advance_once()

    async def _advance_once(self) -> None:
        if self._written == self._upload.offset != self._length and not self._append.url_sent_only_on_success:
            return
        self._upload = await self._uploads.advance(
            self._upload,
            self._written,
            self._crc,
            length=self._length,
            completes=self._may_complete,
            expires_after_seconds=self._expires_after_seconds,
        )

    async def _record(self) -> None:
        """Write and sync what is left, then advance for good."""
        chunks, size = self._block.chunks, self._block.size
        self._crc = await self._file.write(chunks, self._written, self._crc, sync=True, hasher=self._hasher)
        self._written += size
        self._synced = (self._written, self._crc)
        self._block = Block()
        await self._finalise()

    async def _finalise(self) -> None:
        """Record the offset up to which everything is durable, waiting a while for a database that is away."""
        await self._verify_upload()
        for delay in (*self._retry_seconds, None):
            try:
                await self._advance()
            except DatabaseUnavailable:
                # The bytes are on the disk: a database that is back in a moment costs nobody anything.
                if delay is None:
                    raise
                await asyncio.sleep(delay)
            else:
                return

    async def _settle(self, ending: BaseException | None) -> Received:
        """Make durable what counts."""
        if isinstance(ending, StorageError):
            return Received(await self._keep_durable(), ending)
        try:
            if self._all_or_nothing:
                await self._settle_as_a_whole(ending)
            else:
                await self._settle_what_arrived(ending)
        except StorageError as error:
            return Received(await self._keep_durable(), error)
        except TusdError as error:
            return Received(None, error)
        if ending is not None:
            return Received(self._upload, ending)
        if self._append.completes and self._upload.receiving:
            short = LengthConflict("The content was said to be the last and does not reach the length of the upload.")
            return Received(self._upload, short)
        return Received(self._upload if self._wanted is None else replace(self._upload, repr_digest=self._wanted))

    async def _settle_what_arrived(self, ending: BaseException | None) -> None:
        await self._finish_writing()
        if not self._upload.receiving:
            # The last byte was due for a checkpoint, which has completed the upload.
            return
        if ending is None:
            self._learn_length(self._written + self._block.size)
        arrived = self._block.size or self._written > self._upload.offset
        # A body without a byte may complete an upload, or end the time in which nobody knew its URL.
        if arrived or self._written == self._length or self._append.url_sent_only_on_success:
            await self._record()

    def _learn_length(self, end: int) -> None:
        """Take the end of a body for the length, where the client called it the last and knew no length."""
        if self._append.completes and self._length is None:
            self._length = end

    async def _settle_as_a_whole(self, ending: BaseException | None) -> None:
        verified = False
        try:
            await self._finish_writing()
            if ending is None:
                chunks, self._block = self._block.chunks, Block()
                await self._write(chunks, checkpoint=False)
                await verify_body(self._append, self._body, self._hasher, self._file, self._plan.start, self._written)
                self._learn_length(self._written)
                verified = True
        finally:
            if not verified:
                await self._discard()
        if verified:
            await self._record()

    async def _verify_upload(self) -> None:
        """Compare all bytes, once they are here, with what was promised, and take the digest that is wanted."""
        if self._append.completes is False or self._written != self._length:
            return
        if self._upload.repr_digest is not None or self._append.want_repr_digest is not None:
            self._wanted = await verify_upload(self._upload, self._append, self._file, self._written)
            self._may_complete = True

    async def _discard(self) -> None:
        self._file.size = max(self._file.size, self._written)
        await self._file.truncate(self._upload.offset)

    async def _keep_durable(self) -> Upload | None:
        """After a failed write or sync: keep what is durable, and leave the rest to the next open.

        A first sync may still make the blocks before a failed write durable. After a sync that failed the
        file refuses another one, and only what the last good one covered counts.
        """
        self._block = Block()
        try:
            if not self._all_or_nothing and self._written > self._synced[0]:
                with contextlib.suppress(StorageError):
                    await self._file.write([], self._written, self._crc, sync=True)
                    self._synced = (self._written, self._crc)
            self._written, self._crc = self._synced
            if not self._all_or_nothing and self._written > self._upload.offset:
                await self._finalise()
        except TusdError as error:
            log.warning("written_bytes_not_recorded", upload_id=str(self._upload.id), reason=str(error))
            return None
        return self._upload


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
