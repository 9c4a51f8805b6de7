"""What every kind of job works with: the queue, the record, staging and the stores, and how they see an upload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import structlog

from tusd_py.errors import StorageError, TransferCancelled
from tusd_py.ports import Job, JobKind, ObjectIdentity, ObjectSpec, Segment, StoredObject
from tusd_py.worker.metered import MeteredTransferState

if TYPE_CHECKING:
    from tusd_py.configured_stores import Stores
    from tusd_py.database.cleanup import CleanupRecords
    from tusd_py.database.jobs import JobQueue
    from tusd_py.database.uploads import PostgresUploads
    from tusd_py.metrics import Metrics
    from tusd_py.ports import ObjectStore, Staging
    from tusd_py.protocol.upload import Upload
    from tusd_py.uploads.hooks import BlockingHooks

log = structlog.get_logger(__name__)

EAGER_POLL_SECONDS: Final = 0.1
DEFAULT_TYPE: Final = "application/octet-stream"

Result = TypeVar("Result")


class JobHandler(Protocol[Result]):
    """One kind of job, in two halves."""

    async def run(self, job: Job) -> Result:
        """Do the work. It needs the lease, may be cancelled, and may happen twice.

        Raises whatever the store raises.
        """

    async def record(self, job: Job, result: Result) -> None:
        """Record what was done. Fenced, so that it needs no lease: a late one changes nothing."""


# No repr: a traceback that shows local variables would print every collaborator.
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class JobContext:
    """The collaborators of the jobs of one worker."""

    jobs: JobQueue
    uploads: PostgresUploads
    cleanup: CleanupRecords
    staging: Staging
    stores: Stores
    metrics: Metrics
    purge_at_once: bool
    """Staged copies are removed as soon as their uploads are stored, rather than by the cleanup."""
    object_parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those of each profile."""
    digests: frozenset[str] = frozenset()
    hooks: BlockingHooks | None = None
    """Who is asked before an upload is complete; None: nobody."""

    @property
    def store(self) -> ObjectStore:
        """The store that is configured now."""
        return self.stores.current

    def transfer_state(self, job: Job) -> MeteredTransferState:
        """Return the durable memory of a transfer, which counts the bytes on their way as well."""
        return MeteredTransferState(self.jobs.transfer_state(job), self.metrics.transferred_bytes.inc)

    def staged(self, upload: Upload) -> Segment:
        """Return the bytes of one staged file."""
        return Segment(self.staging.path(upload.id), upload.offset)

    def object_spec(self, upload: Upload) -> ObjectSpec:
        """Return the object that an upload is to become."""
        return ObjectSpec(
            upload_id=str(upload.id),
            key=upload.object_key,
            length=upload.offset if upload.length is None else upload.length,
            crc64nvme=upload.crc64nvme if upload.complete else None,
            content_type=upload.content_type or DEFAULT_TYPE,
            content_encoding=upload.content_encoding,
            content_language=upload.content_language,
            filename=upload.filename,
            parameters=self.object_parameters.get(upload.profile, {}),
            digests=self.digests,
        )

    async def wait_for_eager_job(self, job: Job) -> None:
        """Wait for the end of an eager job that was claimed in the same moment as this one.

        Neither claim saw the other then. Both look once more afterwards, here and in `EagerTransfer`, so
        that one of them sees the other; else they would abort each other's multipart upload.
        """
        # Polled, for the other worker may be another process.
        while self.stores.parts is not None and await self.jobs.sending_parts(job):  # noqa: ASYNC110
            await asyncio.sleep(EAGER_POLL_SECONDS)

    async def move_to_current_place(self, job: Job) -> None:
        """Take an upload out of the place that it was to be stored in, if another one is configured now.

        Raises:
            TransferCancelled: the job is not ours any more.
        """
        current, upload = await self.stores.current_id(), job.upload
        if upload.place_id == current:
            return
        try:
            store = await self.stores.at(upload.place_id)
            if job.multipart_id is not None:
                await store.abort(upload.object_key, job.multipart_id)
            if store is not self.store:  # its objects were not moved to the current one
                await remove_object(store, upload, upload)
        except StorageError as error:
            # The upload does not wait for a store that is not used any more.
            log.warning("left_in_former_place", upload_id=str(upload.id), key=upload.object_key, reason=str(error))
        if not await self.jobs.move(job, current):
            raise TransferCancelled(upload_id=str(upload.id))

    async def discard(self, job: Job, *, settle_seconds: float = 0) -> None:
        """Close a job that has nothing left to do, or was cancelled; see `JobQueue.discard`."""
        if await self.jobs.discard(job, settle_seconds=settle_seconds):
            self.count(job, "cancelled")

    def count(self, job: Job, outcome: str) -> None:
        """Count how an attempt of a transfer ended. Other jobs are not counted."""
        if job.kind is JobKind.TRANSFER:
            self.metrics.transfers.labels(outcome).inc()


async def remove_object(store: ObjectStore, upload: Upload, known: Upload | StoredObject) -> None:
    """Remove an upload's object, and nobody else's; `known` says which version it is."""
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
