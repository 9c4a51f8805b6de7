"""The jobs themselves: move an upload to the store, remove what is left of one.

Each has two halves. The effect may run twice and counts once: the object's key is fixed, and the
store looks before it sends. The record is fenced: only the owner of the lease may say `stored`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from tusd_py.errors import StorageError, StoreNotConfigured, TransferCancelled, TusdError
from tusd_py.ports import (
    NO_DIGESTS,
    Job,
    JobKind,
    ObjectIdentity,
    ObjectSpec,
    Segment,
    StoredObject,
)
from tusd_py.protocol.upload import GONE, RECEIVING, Concat, Trigger, Upload
from tusd_py.worker.cleanup import remove_staged_copies
from tusd_py.worker.metered import MeteredTransferState

if TYPE_CHECKING:
    from tusd_py.database.cleanup import CleanupRecords
    from tusd_py.database.jobs import JobQueue
    from tusd_py.metrics import Metrics
    from tusd_py.places import Stores
    from tusd_py.ports import ObjectStore, Staging, UploadRepository

log = structlog.get_logger(__name__)

EAGER_LOOK_SECONDS: Final = 0.1
EAGER_BYTES: Final = 256 * 1024 * 1024
"""What one claim sends at most of an upload that is still being received."""
SMALL_BYTES: Final = 1024 * 1024
"""Uploads up to this size are stored many at a time, where the store can."""
DEFAULT_TYPE: Final = "application/octet-stream"


class Transfers:
    """Performs the jobs of one worker."""

    def __init__(  # noqa: PLR0913 -- its collaborators, all keywords
        self,
        *,
        jobs: JobQueue,
        uploads: UploadRepository,
        cleanup: CleanupRecords,
        staging: Staging,
        stores: Stores,
        metrics: Metrics,
        purge_at_once: bool,
        object_parameters: Mapping[str, Mapping[str, Any]] | None = None,
        digests: frozenset[str] = frozenset(),
    ) -> None:
        """`object_parameters` are those of each profile."""
        self._jobs = jobs
        self._uploads = uploads
        self._cleanup = cleanup
        self._staging = staging
        self._stores = stores
        self._store = stores.current
        self._metrics = metrics
        self._purge_at_once = purge_at_once
        self._object_parameters = object_parameters or {}
        self._digests = digests

    # --- effects: to be stopped before the lease ends ----------------------------------------------

    def batchable(self, job: Job) -> bool:
        """Return whether a job may be done together with others."""
        return (
            job.kind is JobKind.TRANSFER
            and self._stores.batches is not None
            and job.upload.concat is None
            and job.upload.offset <= SMALL_BYTES
            and job.upload.place_id == self._stores.registered_id
        )

    async def transfer(self, job: Job) -> StoredObject:
        """Bring one upload into the store. Raises whatever the store raises."""
        upload = job.upload
        await self._until_alone(job)
        await self._go_to_current_place(job)
        segments = await self._segments(upload)
        log.info("transfer_started", upload_id=str(upload.id), attempt=job.attempt, length=upload.length)
        transfer_state = self._transfer_state(job)
        stored = await self._store.put(self._spec(upload), segments, transfer_state)
        transfer_state.reached(stored.length)
        if self._digests and stored.digests == NO_DIGESTS:
            log.warning("digests_unknown", upload_id=str(upload.id), reason="its staged copy is gone")
        return stored

    async def send_parts(self, job: Job) -> int:
        """Send what is durable of an upload that is still being received.

        Returns how many bytes must be durable before there is more to do. One call sends a bounded
        amount, so that one upload does not keep the others waiting. Raises whatever the store raises.
        """
        if self._stores.parts is None:
            # The store was another one when the job was made: it rests until the upload is complete.
            return job.upload.length or job.min_offset
        upload = await self._uploads.find(job.upload.id)
        if upload is None or upload.state not in RECEIVING:
            return job.min_offset
        await self._go_to_current_place(job)
        durable = min(upload.offset, job.min_offset + EAGER_BYTES)
        segment = Segment(self._staging.path(upload.id), durable)
        min_offset = await self._stores.parts.put_parts(self._spec(upload), [segment], self._transfer_state(job))
        log.debug("sent_bytes", upload_id=str(upload.id), durable=durable, min_offset=min_offset)
        return min_offset

    async def _go_to_current_place(self, job: Job) -> None:
        """Leave the place that was configured when the upload was made, or begun to be sent, if it is another now."""
        current, upload = await self._stores.current_id(), job.upload
        if upload.place_id == current:
            return
        try:
            store = await self._stores.at(upload.place_id)
            if job.multipart_id is not None:
                await store.abort(upload.object_key, job.multipart_id)
            if store is not self._store:  # its objects were not moved to the current one
                await self._remove_object(store, upload, upload)
        except StorageError as error:
            # The upload does not wait for a store that is not used any more.
            log.warning("left_in_former_place", upload_id=str(upload.id), key=upload.object_key, reason=str(error))
        if not await self._jobs.move(job, current):
            raise TransferCancelled(upload_id=str(upload.id))

    async def _until_alone(self, job: Job) -> None:
        """Wait for the end of a job `eager` that was claimed in the same moment as this one.

        Neither claim saw the other then. Both look once more afterwards, here and in `send_parts`, so
        that one of them sees the other; else they would abort each other's multipart upload.
        """
        # Polled, for the other worker may be another process.
        while self._stores.parts is not None and await self._jobs.sending_parts(job):  # noqa: ASYNC110
            await asyncio.sleep(EAGER_LOOK_SECONDS)

    def _transfer_state(self, job: Job) -> MeteredTransferState:
        return MeteredTransferState(self._jobs.transfer_state(job), self._metrics.transferred_bytes.inc)

    async def transfer_batch(self, jobs: Sequence[Job]) -> list[StoredObject | StorageError]:
        """Bring many small uploads into the store at once; return a result for each."""
        assert self._stores.batches is not None  # `batchable` said so
        results = await self._stores.batches.put_batch(
            [(self._spec(job.upload), [self._staged(job.upload)]) for job in jobs]
        )
        self._metrics.transferred_bytes.inc(sum(one.length for one in results if isinstance(one, StoredObject)))
        return results

    async def remove(self, job: Job) -> None:
        """Remove every trace of an upload that is gone: staged bytes, multipart upload, object."""
        upload = job.upload
        await self._until_alone(job)
        # The staged bytes first: without them nobody can make the object anew behind our back.
        await self._staging.remove([upload.id])
        store = await self._store_of(job)
        if store is None:
            return
        if job.multipart_id is not None:
            await store.abort(upload.object_key, job.multipart_id)
        # A worker that died while it sent early may have begun what nobody could record.
        sent_bytes = self._stores.takes_parts(store) and upload.offset > SMALL_BYTES
        if upload.concat is not Concat.PARTIAL and (upload.remote_present or upload.completed_at or sent_bytes):
            await self._remove_object(store, upload, upload)

    async def _store_of(self, job: Job) -> ObjectStore | None:
        """Return the store that may hold something of an upload, None if none can.

        Raises:
            StoreNotConfigured: it is not configured any more, so that nothing can be removed there.
        """
        upload = job.upload
        try:
            return await self._stores.at(upload.place_id)
        except StoreNotConfigured:
            if upload.remote_present or job.sent or job.multipart_id is not None:
                raise
            return None

    async def _remove_object(self, store: ObjectStore, upload: Upload, known: Upload | StoredObject) -> None:
        identity = ObjectIdentity(
            upload_id=str(upload.id),
            key=upload.object_key,
            length=upload.offset if upload.length is None else upload.length,
            crc64nvme=upload.crc64nvme,
            etag=known.etag,
            version_id=known.version_id,
        )
        if not await store.remove(identity):
            log.warning("foreign_object_kept", upload_id=str(upload.id), key=upload.object_key)

    # --- records: fenced, so that a late one changes nothing ---------------------------------------

    async def record_stored(self, done: Sequence[tuple[Job, StoredObject]]) -> None:
        """Record what is stored, then let go of the staged copies: never the other way round."""
        recorded = await self._jobs.finish_transfers(done)
        for job, stored in done:
            if job.id in recorded:
                self._count(job, stored)
        if self._purge_at_once:
            await self._purge([job.upload for job, _ in done if job.id in recorded])
        for job, stored in done:
            if job.id not in recorded:
                await self._undo(job, stored)

    async def record_removed(self, job: Job) -> None:
        """Record that nothing is left of an upload."""
        await self._jobs.finish_removals([job])
        log.info("upload_removed", upload_id=str(job.upload.id))

    async def _purge(self, uploads: Sequence[Upload]) -> None:
        if not uploads:
            return
        try:
            # A final has no file: its bytes are its parts', which have a life of their own.
            _, failed = await remove_staged_copies(self._staging, self._cleanup, [upload.id for upload in uploads])
            for error in failed.values():
                raise error
        except TusdError as error:
            # They are stored all the same. The cleanup finds what stays behind, here or in a crash.
            log.warning("staged_copies_kept", count=len(uploads), first=str(uploads[0].id), reason=str(error))

    async def _undo(self, job: Job, stored: StoredObject) -> None:
        """The job is not ours any more. If the upload is gone too, take back what was just made."""
        current = await self._uploads.find(job.upload.id)
        if current is None or current.state in GONE:
            await self._remove_object(self._store, job.upload, stored)
            log.info("transfer_undone", upload_id=str(job.upload.id))
        else:
            log.warning("transfer_lease_lost", upload_id=str(job.upload.id), attempt=job.attempt)
        await self.discard(job)

    async def discard(self, job: Job, *, settle_seconds: float = 0) -> None:
        """Close a job that has nothing left to do, or was cancelled; see `JobQueue.discard`."""
        if await self._jobs.discard(job, settle_seconds=settle_seconds) and job.kind is JobKind.TRANSFER:
            self._metrics.transfers.labels("cancelled").inc()

    def count_lost(self, jobs: Sequence[Job]) -> None:
        """Count the attempts that these claims have ended, since their workers fell silent."""
        self._metrics.transfers.labels("lost").inc(sum(job.lost and job.kind is JobKind.TRANSFER for job in jobs))

    def _count(self, job: Job, stored: StoredObject) -> None:
        upload = job.upload
        self._metrics.transfers.labels("succeeded").inc()
        # An upload that had to wait for somebody says nothing about how quick the worker is.
        if upload.completed_at is not None and upload.trigger is Trigger.COMPLETE:
            waited = (datetime.now(UTC) - upload.completed_at).total_seconds()
            self._metrics.store_seconds.observe(max(0.0, waited))
        log.info("transfer_succeeded", upload_id=str(upload.id), key=stored.key, length=stored.length)

    def _staged(self, upload: Upload) -> Segment:
        return Segment(self._staging.path(upload.id), upload.offset)

    async def _segments(self, upload: Upload) -> list[Segment]:
        if upload.concat is not Concat.FINAL:
            return [self._staged(upload)]
        parts = await self._uploads.parts(upload.id)
        assert not any(part.state in RECEIVING for part in parts)  # a final completes with its last part
        return [self._staged(part) for part in parts]

    def _spec(self, upload: Upload) -> ObjectSpec:
        return ObjectSpec(
            upload_id=str(upload.id),
            key=upload.object_key,
            length=upload.offset if upload.length is None else upload.length,
            crc64nvme=upload.crc64nvme if upload.complete else None,
            content_type=upload.content_type or DEFAULT_TYPE,
            content_encoding=upload.content_encoding,
            content_language=upload.content_language,
            filename=upload.filename,
            parameters=self._object_parameters.get(upload.profile, {}),
            digests=self._digests,
        )
