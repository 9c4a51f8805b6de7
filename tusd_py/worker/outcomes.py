"""What the end of a job that did not succeed means: again later, never again, or not ours any more.

An error of the store is the store's outage if the detector says so, and then uses up no retry. What is
not known to be permanent is tried again. What cannot be recorded while the database is away is recorded
once it is back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import (
    DatabaseUnavailable,
    PermanentStoreError,
    StorageError,
    TransferCancelled,
    TransientStoreError,
    TusdError,
)
from tusd_py.ports import Job, JobKind

if TYPE_CHECKING:
    from tusd_py.config import TransferConfig
    from tusd_py.worker.context import JobContext
    from tusd_py.worker.outages import OutageDetector

log = structlog.get_logger(__name__)

JITTER: Final = 0.1
SETTLE_SECONDS: Final = 1.0
"""For requests on their way to the store whose work was stopped in the middle."""
RETRY_EVENTS: Final = {
    JobKind.TRANSFER: "transfer_retry",
    JobKind.EAGER: "eager_retry",
    JobKind.REMOVE: "removal_retry",
    JobKind.FINISH: "finish_retry",
}
FINISH_RETRY_SECONDS: Final = 1.0
FINISH_RETRY_MAX_SECONDS: Final = 60.0
"""First and longest wait before the application is asked again: a client waits for the answer, and it costs little."""


def retry_delay(config: TransferConfig, failures: int) -> float:
    """Return the seconds to wait after so many failures: exponential, capped, with jitter.

    The jitter keeps a thousand uploads that failed together from coming back together.
    """
    plain = float(config.retry_delay)
    for _ in range(failures - 1):
        if plain >= config.retry_max_delay:
            break
        plain *= config.retry_backoff
    return min(plain, config.retry_max_delay) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


def finish_retries(config: TransferConfig) -> TransferConfig:
    """Return the configuration with the waits of a finish job, which are never longer than a transfer's."""
    return config.model_copy(
        update={
            "retry_delay": min(config.retry_delay, FINISH_RETRY_SECONDS),
            "retry_max_delay": min(config.retry_max_delay, FINISH_RETRY_MAX_SECONDS),
        }
    )


class JobOutcomes:
    """Records how the jobs of one worker ended, apart from those that succeeded."""

    def __init__(self, context: JobContext, outages: OutageDetector, config: TransferConfig) -> None:
        self._context = context
        self._jobs = context.jobs
        self._outages = outages
        self._config = config
        self._of_finish = finish_retries(config)
        self._unrecorded: list[tuple[Job, Exception, float]] = []

    @property
    def unrecorded(self) -> Sequence[Job]:
        """The jobs whose end could not be recorded yet: they are still leased to this worker."""
        return [job for job, _, _ in self._unrecorded]

    async def catch_up(self) -> None:
        """Record what could not be recorded while the database was away."""
        unrecorded, self._unrecorded = self._unrecorded, []
        for job, error, failed_at in unrecorded:
            await self.failed(job, error, failed_at)

    async def failed(self, job: Job, error: Exception, failed_at: float) -> None:
        """Decide what an error at `failed_at`, by the loop's clock, means for the job."""
        try:
            if isinstance(error, TransferCancelled):
                log.info("transfer_cancelled", upload_id=str(job.upload.id))
                await self._context.discard(job)
            elif isinstance(error, DatabaseUnavailable):
                # Not the store's fault, so it uses up no retry.
                log.warning("job_interrupted", job=job.id, upload_id=str(job.upload.id), reason=str(error))
                await self._jobs.release([job])
            elif not await self._record_failure(job, error, failed_at):
                # Somebody else's by now, which makes this a no-op, or cancelled: whoever waits for our
                # end need not wait any longer.
                await self._context.discard(job)
        except DatabaseUnavailable as away:
            log.warning("job_outcome_not_recorded", job=job.id, reason=str(away))
            self._unrecorded.append((job, error, failed_at))

    async def stopped(self, jobs: Sequence[Job]) -> None:
        """Record that work on jobs that were taken away has stopped. A removal may be waiting for that."""
        try:
            for job in jobs:
                await self._context.discard(job, settle_seconds=SETTLE_SECONDS)
        except DatabaseUnavailable as away:
            log.warning("end_not_acknowledged", jobs=[job.id for job in jobs], reason=str(away))
            self._record_later(jobs, TransferCancelled())

    async def interrupted(self, jobs: Sequence[Job]) -> None:
        """Release jobs that this worker cannot bring to their end."""
        try:
            await self._jobs.release(jobs)
        except DatabaseUnavailable as away:
            log.warning("lease_not_released", jobs=[job.id for job in jobs], reason=str(away))
            self._record_later(jobs, away)

    def _record_later(self, jobs: Sequence[Job], error: Exception) -> None:
        failed_at = asyncio.get_running_loop().time()
        self._unrecorded += [(job, error, failed_at) for job in jobs]

    async def _record_failure(self, job: Job, error: Exception, failed_at: float) -> bool:
        """Record an error of the job; return whether the job still was ours."""
        of_store = TransientStoreError | PermanentStoreError
        if isinstance(error, of_store) and await self._outages.explains(job, failed_at=failed_at):
            return await self._postpone(job, error)
        if not isinstance(error, TusdError):
            log.error("job_bug", job=job.id, kind=job.kind, upload_id=str(job.upload.id), exc_info=error)
        code = error.code if isinstance(error, TusdError) else TusdError.code
        # A removal is tried forever, and so is an eager transfer: it fails nobody, and what must end in
        # a failure is the transfer that follows. The application is asked until it has answered.
        permanent = isinstance(error, TusdError) and not error.retryable
        exhausted = job.failures >= self._config.max_retries
        if job.kind is JobKind.TRANSFER and (permanent or exhausted):
            return await self._give_up(job, error, code)
        return await self._try_again(job, error, code)

    async def _postpone(self, job: Job, error: StorageError) -> bool:
        """Put the job back without a failure: it goes on with all others when the store is back."""
        ours = await self._jobs.postpone(job, error, code=error.code)
        if ours:
            self._context.count(job, "postponed")
            upload_id = str(job.upload.id)
            log.info("job_postponed", kind=job.kind, upload_id=upload_id, attempt=job.attempt, reason=str(error))
        return ours

    async def _give_up(self, job: Job, error: Exception, code: str) -> bool:
        ours = await self._jobs.fail(job, error, code=code)
        if ours:
            self._context.count(job, "failed")
            log.error("transfer_failed", upload_id=str(job.upload.id), attempt=job.attempt, reason=str(error))
        return ours

    async def _try_again(self, job: Job, error: Exception, code: str) -> bool:
        retry_after = error.retry_after_seconds if isinstance(error, TusdError) else None
        config = self._of_finish if job.kind is JobKind.FINISH else self._config
        delay = retry_delay(config, job.failures + 1) if retry_after is None else retry_after
        ours = await self._jobs.retry(job, error, code=code, delay_seconds=delay)
        if ours:
            self._context.count(job, "retry")
            log.warning(
                RETRY_EVENTS[job.kind],
                upload_id=str(job.upload.id),
                attempt=job.attempt,
                delay_seconds=round(delay, 1),
                reason=str(error),
            )
        return ours
