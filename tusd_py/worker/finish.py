"""Ask the application about an upload that has all its bytes, and complete it.

The request that brought the last byte asks first. This job is for what that could not bring to its end: the process
died, the hook failed, or nobody sends a request about the upload, as with a final one whose partial uploads came last.
"""

from __future__ import annotations

from typing import Final

import structlog

from tusd_py.ports import Job
from tusd_py.ports.hooks import HookRequest
from tusd_py.protocol.events import HookKind
from tusd_py.uploads.finishing import describe_finishing
from tusd_py.worker.context import JobContext, JobHandler

log = structlog.get_logger(__name__)

NO_REQUEST: Final = HookRequest(method="", uri="", remote_addr="", headers={})
"""No client asks here."""


class Finish(JobHandler[None]):
    """The completion of one upload."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    async def run(self, job: Job) -> None:
        context = self._context
        # Hooks that were switched off meanwhile keep nothing from its end.
        if context.hooks is not None and context.hooks.wants(HookKind.PRE_FINISH):
            upload = await describe_finishing(context.uploads, context.staging, job.upload)
            # What the client should be told comes too late for it.
            await context.hooks.ask(HookKind.PRE_FINISH, upload, NO_REQUEST)

    async def record(self, job: Job, result: None) -> None:
        completed = await self._context.uploads.complete(job.upload.id)
        if completed is None:
            # Somebody else has done it, or removed the upload.
            await self._context.discard(job)
            return
        self._context.metrics.uploads_completed.inc()
        log.info("upload_completed", upload_id=str(completed.id), length=completed.length)
