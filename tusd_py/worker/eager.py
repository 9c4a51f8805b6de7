"""Send parts of a large upload to the store before its last byte has come."""

from __future__ import annotations

from typing import Final

import structlog

from tusd_py.ports import Job, Segment
from tusd_py.protocol.upload import RECEIVING
from tusd_py.worker.context import JobContext, JobHandler

log = structlog.get_logger(__name__)

MOST_BYTES: Final = 256 * 1024 * 1024
"""What one claim sends at most, so that one upload does not keep the others waiting."""


class EagerTransfer(JobHandler[int]):
    """Sends what is durable of an upload that is still being received.

    Its result is how many bytes must be durable before there is more to send.
    """

    def __init__(self, context: JobContext) -> None:
        self._context = context

    async def run(self, job: Job) -> int:
        context = self._context
        if context.stores.parts is None:
            # The store was another one when the job was made: it rests until the upload is complete.
            return job.upload.length or job.min_offset
        upload = await context.uploads.find(job.upload.id)
        if upload is None or upload.state not in RECEIVING:
            return job.min_offset
        await context.move_to_current_place(job)
        durable = min(upload.offset, job.min_offset + MOST_BYTES)
        segment = Segment(context.staging.path(upload.id), durable)
        min_offset = await context.stores.parts.put_parts(
            context.object_spec(upload), [segment], context.transfer_state(job)
        )
        log.debug("sent_bytes", upload_id=str(upload.id), durable=durable, min_offset=min_offset)
        return min_offset

    async def record(self, job: Job, result: int) -> None:
        if not await self._context.jobs.defer(job, until_bytes=result):
            await self._context.discard(job)
