"""Remove every trace of an upload that is gone: staged bytes, multipart upload, object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from tusd_py.errors import StoreNotConfigured
from tusd_py.ports import Job
from tusd_py.protocol.upload import Concat
from tusd_py.worker.context import JobContext, JobHandler, remove_object
from tusd_py.worker.transfer import SMALL_BYTES

if TYPE_CHECKING:
    from tusd_py.ports import ObjectStore

log = structlog.get_logger(__name__)


class Removal(JobHandler[None]):
    """The removal of one upload."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    async def run(self, job: Job) -> None:
        context, upload = self._context, job.upload
        await context.wait_for_eager_job(job)
        # The staged bytes first: without them nobody can make the object anew behind our back.
        await context.staging.remove([upload.id])
        store = await self._store_of(job)
        if store is None:
            return
        if job.multipart_id is not None:
            await store.abort(upload.object_key, job.multipart_id)
        # A worker that died while it sent early may have begun what nobody could record.
        sent_bytes = context.stores.takes_parts(store) and upload.offset > SMALL_BYTES
        if upload.concat is not Concat.PARTIAL and (upload.remote_present or upload.completed_at or sent_bytes):
            await remove_object(store, upload, upload)

    async def record(self, job: Job, result: None) -> None:
        await self._context.jobs.finish_removals([job])
        log.info("upload_removed", upload_id=str(job.upload.id))

    async def _store_of(self, job: Job) -> ObjectStore | None:
        """Return the store that may hold something of an upload, None if none can.

        Raises:
            StoreNotConfigured: it is not configured any more, so that nothing can be removed there.
        """
        upload = job.upload
        try:
            return await self._context.stores.at(upload.place_id)
        except StoreNotConfigured:
            if upload.remote_present or job.sent or job.multipart_id is not None:
                raise
            return None
