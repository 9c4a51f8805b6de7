"""Bring complete uploads into the store: one by one, or many small ones at once.

Storing may happen twice and counts once: the object's key is fixed, and the store looks before it
sends. The record is fenced: only the owner of the lease may say `stored`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from tusd_py.errors import StorageError, TusdError
from tusd_py.ports import NO_DIGESTS, Job, JobKind, Segment, StoredObject
from tusd_py.protocol.upload import GONE, RECEIVING, Concat, Trigger, Upload
from tusd_py.worker.cleanup import remove_staged_copies
from tusd_py.worker.context import JobContext, JobHandler, remove_object

log = structlog.get_logger(__name__)

IN_USE_RETRY_SECONDS: Final = (0.05, 0.2, 1.0)
"""The request that sent the last byte may hold its file's lock for a moment longer than a quick transfer takes."""

SMALL_BYTES: Final = 1024 * 1024
"""Uploads up to this size are stored many at a time, where the store can."""


class Transfer(JobHandler[StoredObject]):
    """The transfer of one upload."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    async def run(self, job: Job) -> StoredObject:
        context, upload = self._context, job.upload
        await context.wait_for_eager_job(job)
        await context.move_to_current_place(job)
        segments = await self._segments(upload)
        log.info("transfer_started", upload_id=str(upload.id), attempt=job.attempt, length=upload.length)
        transfer_state = context.transfer_state(job)
        stored = await context.store.put(context.object_spec(upload), segments, transfer_state)
        transfer_state.reached(stored.length)
        if context.digests and stored.digests == NO_DIGESTS:
            log.warning("digests_unknown", upload_id=str(upload.id), reason="its staged copy is gone")
        return stored

    async def record(self, job: Job, result: StoredObject) -> None:
        await record_stored(self._context, [(job, result)])

    async def _segments(self, upload: Upload) -> list[Segment]:
        if upload.concat is not Concat.FINAL:
            return [self._context.staged(upload)]
        partials = await self._context.uploads.partials(upload.id)
        assert not any(partial.state in RECEIVING for partial in partials)  # a final completes with the last of them
        return [self._context.staged(partial) for partial in partials]


class TransferBatch:
    """The transfers of many small uploads, where the store takes them together."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def takes(self, job: Job) -> bool:
        """Return whether a job may be done together with others."""
        return (
            job.kind is JobKind.TRANSFER
            and self._context.stores.batches is not None
            and job.upload.concat is None
            and job.upload.offset <= SMALL_BYTES
            and job.upload.place_id == self._context.stores.registered_id
        )

    async def run(self, jobs: Sequence[Job]) -> list[StoredObject | StorageError]:
        """Bring the uploads into the store; return a result for each."""
        context = self._context
        assert context.stores.batches is not None  # `takes` said so
        objects = [(context.object_spec(job.upload), [context.staged(job.upload)]) for job in jobs]
        results = await context.stores.batches.put_batch(objects)
        stored_bytes = sum(result.length for result in results if isinstance(result, StoredObject))
        context.metrics.transferred_bytes.inc(stored_bytes)
        return results

    async def record(self, done: Sequence[tuple[Job, StoredObject]]) -> None:
        """Record what is stored."""
        await record_stored(self._context, done)


async def record_stored(context: JobContext, done: Sequence[tuple[Job, StoredObject]]) -> None:
    """Record what is stored, then remove the staged copies: never the other way round."""
    recorded = await context.jobs.finish_transfers(done)
    for job, stored in done:
        if job.id in recorded:
            _count_stored(context, job, stored)
    if context.purge_at_once:
        await _remove_staged(context, [job.upload for job, _ in done if job.id in recorded])
    for job, stored in done:
        if job.id not in recorded:
            await _undo(context, job, stored)


def _count_stored(context: JobContext, job: Job, stored: StoredObject) -> None:
    upload = job.upload
    context.count(job, "succeeded")
    # An upload that had to wait for somebody says nothing about how quick the worker is.
    if upload.completed_at is not None and upload.trigger is Trigger.COMPLETE:
        waited = (datetime.now(UTC) - upload.completed_at).total_seconds()
        context.metrics.store_seconds.observe(max(0.0, waited))
    log.info("transfer_succeeded", upload_id=str(upload.id), key=stored.key, length=stored.length)


async def _remove_staged(context: JobContext, uploads: Sequence[Upload]) -> None:
    if not uploads:
        return
    try:
        # A final has no file: its bytes are its parts', which have a life of their own.
        left = [upload.id for upload in uploads]
        for delay in (*IN_USE_RETRY_SECONDS, None):
            removed, failed = await remove_staged_copies(context.staging, context.cleanup, left)
            for error in failed.values():
                raise error
            left = [each for each in left if each not in removed]
            if not left or delay is None:
                return
            await asyncio.sleep(delay)
    except TusdError as error:
        # They are stored all the same. Cleanup finds what stays behind, here or in a crash.
        log.warning("staged_copies_kept", count=len(uploads), first=str(uploads[0].id), reason=str(error))


async def _undo(context: JobContext, job: Job, stored: StoredObject) -> None:
    """Deal with an object that was made for a job that is not ours any more: remove it if its upload is gone."""
    current = await context.uploads.find(job.upload.id)
    if current is None or current.state in GONE:
        await remove_object(context.store, job.upload, stored)
        log.info("transfer_undone", upload_id=str(job.upload.id))
    else:
        log.warning("transfer_lease_lost", upload_id=str(job.upload.id), attempt=job.attempt)
    await context.discard(job)
