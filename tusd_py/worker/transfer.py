"""The jobs themselves: move an upload to the store, remove what is left of one.

Every effect is idempotent and every record fenced, so a job may run twice and counts once: the
object's key is fixed, the store looks before it sends, and only the owner of the lease may say
`stored`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import StorageError
from tusd_py.ports import BatchStore, Job, ObjectSpec, Segment, StoredObject
from tusd_py.protocol.upload import GONE, RECEIVING, Concat, Upload

if TYPE_CHECKING:
    from tusd_py.ports import JobQueue, ObjectStore, Staging, SweepRepository, UploadRepository
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

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
        sweep: SweepRepository,
        staging: Staging,
        store: ObjectStore,
        metrics: Metrics,
        purge_at_once: bool,
    ) -> None:
        self._jobs = jobs
        self._uploads = uploads
        self._sweep = sweep
        self._staging = staging
        self._store = store
        self._metrics = metrics
        self._purge_at_once = purge_at_once

    def batchable(self, job: Job) -> bool:
        """Tell whether a job may be done together with others."""
        return (
            job.kind == "transfer"
            and job.runnable
            and isinstance(self._store, BatchStore)
            and job.upload.concat is None
            and job.upload.offset <= SMALL_BYTES
        )

    async def transfer(self, job: Job) -> None:
        """Move one upload. Raises whatever the store raises; the runner decides what that means."""
        upload = job.upload
        segments = await self._segments(upload)
        log.info("transfer_started", upload_id=str(upload.id), attempt=job.attempt, length=upload.length)
        stored = await self._store.put(_spec(upload), segments, self._jobs.ledger(job))
        await self._finish([(job, stored)])

    async def transfer_batch(self, jobs: Sequence[Job]) -> list[tuple[Job, Exception]]:
        """Move many small uploads at once; answer those that failed, with their errors."""
        assert isinstance(self._store, BatchStore)  # `batchable` said so
        items = [(_spec(job.upload), [self._staged(job.upload)]) for job in jobs]
        results = await self._store.put_batch(items)
        done, failed = [], []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, StorageError):
                failed.append((job, result))
            else:
                done.append((job, result))
        if done:
            await self._finish(done)
        return [*failed]

    async def remove(self, jobs: Sequence[Job]) -> None:
        """Remove every trace of uploads that are gone: object, multipart upload, staged bytes."""
        for job in jobs:
            upload = job.upload
            if job.multipart_id is not None:
                await self._store.abort(upload.object_key, job.multipart_id)
            if upload.concat is not Concat.PARTIAL and (upload.remote_present or upload.completed_at is not None):
                await self._store.remove(upload.object_key)
        await self._staging.remove([job.upload.id for job in jobs])
        await self._jobs.finish_removals(jobs)

    async def _finish(self, done: Sequence[tuple[Job, StoredObject]]) -> None:
        """Record what is stored, then let go of the staged copies: never the other way round."""
        recorded = await self._jobs.finish_transfers(done)
        stored_jobs = []
        for job, stored in done:
            if job.id in recorded:
                stored_jobs.append(job)
                self._count(job, stored)
            else:
                await self._undo(job)
        if self._purge_at_once and stored_jobs:
            # A copy that stays behind in a crash here is found by the sweep.
            single = [job.upload.id for job in stored_jobs if job.upload.concat is None]
            await self._staging.remove(single)
            await self._sweep.purged([job.upload.id for job in stored_jobs])

    async def _undo(self, job: Job) -> None:
        """The job is not ours any more. If the upload is gone too, take back what was just made."""
        current = await self._uploads.find(job.upload.id)
        if current is None or current.state in GONE:
            await self._store.remove(job.upload.object_key)
            log.info("transfer_undone", upload_id=str(job.upload.id))
        else:
            log.warning("transfer_lease_lost", upload_id=str(job.upload.id), attempt=job.attempt)

    def _count(self, job: Job, stored: StoredObject) -> None:
        upload = job.upload
        self._metrics.transfers.labels("succeeded").inc()
        self._metrics.transferred_bytes.inc(stored.length)
        if upload.completed_at is not None:
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


def _spec(upload: Upload) -> ObjectSpec:
    return ObjectSpec(
        upload_id=str(upload.id),
        key=upload.object_key,
        length=upload.offset,
        crc64nvme=upload.crc64nvme,
        content_type=upload.content_type or DEFAULT_TYPE,
        filename=upload.filename,
    )


