"""The worker's loop: claim, keep the lease, perform, and decide what an error means.

NOTIFY wakes it, a poll is the net beneath. All helpers live in one TaskGroup: if one dies, the
process dies loudly and the supervisor starts another; the leases see to the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable, TransferCancelled, TusdError

if TYPE_CHECKING:
    from tusd_py.ports import Job, JobQueue
    from tusd_py.metrics import Metrics
    from tusd_py.worker.transfer import Transfers

log = structlog.get_logger(__name__)

CLAIM_BATCH: Final = 64
JITTER: Final = 0.1
DATABASE_PAUSE_SECONDS: Final = 1.0
RENEWALS_PER_LEASE: Final = 3


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What the loop needs to know of the configuration. Times in seconds."""

    concurrency: int
    lease_seconds: float
    poll_seconds: float
    max_retries: int
    retry_delay_seconds: float
    retry_backoff: float
    retry_max_delay_seconds: float
    shutdown_seconds: float

    def delay(self, failures: int) -> float:
        """Answer the wait after so many failures: exponential, capped, with jitter.

        The jitter keeps a thousand uploads that failed together from coming back together.
        """
        plain = self.retry_delay_seconds
        for _ in range(failures - 1):
            if plain >= self.retry_max_delay_seconds:
                break
            plain *= self.retry_backoff
        return min(plain, self.retry_max_delay_seconds) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


class Runner:
    """Runs the jobs of one worker process until it is told to stop."""

    def __init__(self, jobs: JobQueue, transfers: Transfers, settings: WorkerSettings, metrics: Metrics) -> None:
        self._jobs = jobs
        self._transfers = transfers
        self._settings = settings
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._stopping = False
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._running: dict[int, tuple[Job, asyncio.Task[None]]] = {}

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more and let what runs come to its end."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`. Raises what kills a helper."""
        async with asyncio.TaskGroup() as group:
            heartbeat = group.create_task(self._heartbeat(), name="worker-heartbeat")
            await self._loop(group)
            await self._finish()
            heartbeat.cancel()

    async def _loop(self, group: asyncio.TaskGroup) -> None:
        while not self._stopping:
            # Cleared before the query: a notification in between is not lost but seen next time.
            self._wake.clear()
            try:
                claimed = await self._claim(group)
                wait = self._settings.poll_seconds if not claimed else 0.0
                if not claimed and (due := await self._jobs.next_due_seconds()) is not None:
                    wait = min(wait, max(0.0, due))
            except DatabaseUnavailable as error:
                log.warning("claim_failed", reason=str(error))
                wait = DATABASE_PAUSE_SECONDS
            if wait > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)

    async def _claim(self, group: asyncio.TaskGroup) -> int:
        room = 2 * self._settings.concurrency + CLAIM_BATCH - len(self._running)
        if room <= 0:
            # Full: the end of any job wakes the loop.
            await self._wake.wait()
            return 0
        jobs = await self._jobs.claim(min(room, CLAIM_BATCH))
        batch = [job for job in jobs if self._transfers.batchable(job)]
        removals = [job for job in jobs if job.kind == "remove" and job.runnable]
        if batch:
            self._start(group, batch, partial(self._batch, batch))
        for job in removals:
            self._start(group, [job], partial(self._transfers.remove, [job]))
        for job in jobs:
            if not job.runnable:
                await self._jobs.discard(job)
            elif job not in batch and job not in removals:
                self._start(group, [job], partial(self._single, job))
        return len(jobs)

    def _start(self, group: asyncio.TaskGroup, jobs: Sequence[Job], work: Callable[[], Awaitable[None]]) -> None:
        task = group.create_task(self._perform(jobs, work), name=f"{jobs[0].kind}-{jobs[0].id}")
        for job in jobs:
            self._running[job.id] = (job, task)

    async def _perform(self, jobs: Sequence[Job], work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            # The lease was lost, or the time to stop ran out: whoever claims the job next goes on.
            if not self._lost(jobs) and not self._stopping:
                raise
        except Exception as error:
            for job in jobs:
                await self._settle(job, error)
        finally:
            for job in jobs:
                self._running.pop(job.id, None)
            self._wake.set()

    def _lost(self, jobs: Sequence[Job]) -> bool:
        return any(job.id not in self._running for job in jobs)

    async def _single(self, job: Job) -> None:
        async with self._slots:
            await self._transfers.transfer(job)

    async def _batch(self, jobs: Sequence[Job]) -> None:
        for job, error in await self._transfers.transfer_batch(jobs):
            await self._settle(job, error)

    async def _settle(self, job: Job, error: Exception) -> None:
        """Decide what an error means for the job: again later, never again, or not ours any more."""
        if isinstance(error, TransferCancelled):
            log.info("transfer_cancelled", upload_id=str(job.upload.id))
            return
        if not isinstance(error, TusdError):
            log.error("job_bug", job=job.id, kind=job.kind, upload_id=str(job.upload.id), exc_info=error)
        code = error.code if isinstance(error, TusdError) else "ERR_INTERNAL"
        # What is not known to be permanent is tried again; a removal is tried for ever.
        permanent = isinstance(error, TusdError) and not error.retryable
        exhausted = job.failures >= self._settings.max_retries
        try:
            if job.kind == "transfer" and (permanent or exhausted):
                await self._jobs.fail(job, error, code=code)
                self._metrics.transfers.labels("failed").inc()
                log.error("transfer_failed", upload_id=str(job.upload.id), attempt=job.attempt, reason=str(error))
            else:
                delay = self._settings.delay(job.failures + 1)
                await self._jobs.retry(job, error, code=code, delay_seconds=delay)
                self._metrics.transfers.labels("retry").inc()
                log.warning(
                    "transfer_retry" if job.kind == "transfer" else "removal_retry",
                    upload_id=str(job.upload.id),
                    attempt=job.attempt,
                    delay_seconds=round(delay, 1),
                    reason=str(error),
                )
        except DatabaseUnavailable as away:
            # The lease ends by itself, and the job is claimed again.
            log.warning("job_outcome_not_recorded", job=job.id, reason=str(away))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            running = list(self._running.values())
            if not running:
                continue
            try:
                ours = await self._jobs.renew([job for job, _ in running])
            except DatabaseUnavailable as error:
                log.warning("lease_not_renewed", reason=str(error))
                continue
            for job, task in running:
                if job.id not in ours and self._running.pop(job.id, None) is not None:
                    log.warning("lease_lost", job=job.id, upload_id=str(job.upload.id))
                    task.cancel()

    async def _finish(self) -> None:
        tasks = {task for _, task in self._running.values()}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
