"""The worker's loop: claim, keep the lease, perform, and decide what an error means.

NOTIFY wakes it, a poll is the net beneath. All helpers live in one TaskGroup: if one dies, the
process dies loudly and the supervisor starts another; the leases see to the rest.

A lease is kept from both ends. The database gives a job to somebody else once it has run out; here
the work on it is cancelled some time before that, by a clock that was started before the lease was
asked for. So whatever takes the job next, a removal above all, does not meet a late worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from tusd_py.ports import LARGE_BYTES, JobKind

if TYPE_CHECKING:
    from tusd_py.database.jobs import JobQueue
    from tusd_py.metrics import Metrics
    from tusd_py.ports import Job
    from tusd_py.worker.outages import OutageDetector
    from tusd_py.worker.transfer import Transfers

log = structlog.get_logger(__name__)

CLAIM_BATCH: Final = 64
PACE_SECONDS: Final = 0.05
JITTER: Final = 0.1
DATABASE_PAUSE_SECONDS: Final = 1.0
RETRY_EVENTS: Final = {
    JobKind.TRANSFER: "transfer_retry",
    JobKind.EAGER: "eager_retry",
    JobKind.REMOVE: "removal_retry",
}
BUSY_PAUSE_SECONDS: Final = 0.05
"""When a due job is in somebody else's hands at this very moment."""
RENEWALS_PER_LEASE: Final = 3
SETTLE_SECONDS: Final = 1.0
"""For requests on their way to the store whose work was stopped in the middle."""
LEASE_SHARE: Final = 0.9
"""What the worker uses of a lease. The rest is for requests on their way to the store."""


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
        """Return the wait after so many failures: exponential, capped, with jitter.

        The jitter keeps a thousand uploads that failed together from coming back together.
        """
        plain = self.retry_delay_seconds
        for _ in range(failures - 1):
            if plain >= self.retry_max_delay_seconds:
                break
            plain *= self.retry_backoff
        return min(plain, self.retry_max_delay_seconds) * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


@dataclass(slots=True, eq=False)
class Work:
    """Jobs that are performed together, by one task."""

    jobs: Sequence[Job]
    until: float
    """When the effects must have ended, by the clock of the event loop."""
    task: asyncio.Task[None] = field(init=False)
    timer: asyncio.TimerHandle = field(init=False)
    leased: bool = True
    """False once only records are left to be made: those are fenced and need no lease."""
    told_to_stop: bool = False
    taken_away: bool = False
    """The database said so: cancelled, or somebody else's by now."""

    @property
    def large(self) -> bool:
        """Return whether this takes one of the places for large uploads."""
        return self.eager or (self.jobs[0].kind is JobKind.TRANSFER and self.jobs[0].upload.offset > LARGE_BYTES)

    @property
    def eager(self) -> bool:
        """Return whether its upload is still being received."""
        return self.jobs[0].kind is JobKind.EAGER


Perform = Callable[[Work], Awaitable[None]]


class Runner:
    """Runs the jobs of one worker process until it is told to stop."""

    def __init__(
        self,
        jobs: JobQueue,
        transfers: Transfers,
        outages: OutageDetector,
        settings: WorkerSettings,
        metrics: Metrics,
    ) -> None:
        self._jobs = jobs
        self._dead_workers: Sequence[str] = ()
        # True as long as a job may be leased to us, or to the dead, that nobody works on.
        self._lost_track = False
        self._unsettled: list[tuple[Job, Exception, float]] = []
        self._transfers = transfers
        self._outages = outages
        self._settings = settings
        self._metrics = metrics
        self._wake = asyncio.Event()
        self._stopping = False
        self._slots = asyncio.Semaphore(settings.concurrency)
        # One place is kept for uploads that take a moment, so that they need not wait for hours.
        self._large_slots = max(1, settings.concurrency - 1)
        # Others are kept for finished uploads: nobody waits yet for those that are still coming.
        self._eager_slots = max(1, self._large_slots // 2)
        self._works: set[Work] = set()
        self._performers: Mapping[JobKind, Perform] = {
            JobKind.TRANSFER: self._single,
            JobKind.EAGER: self._eager,
            JobKind.REMOVE: self._removal,
        }

    def take_over(self, dead_workers: Sequence[str]) -> None:
        """Release the jobs of workers whose processes have ended; to be said before `run`."""
        self._dead_workers = dead_workers
        self._lost_track = bool(dead_workers)

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
            outages = group.create_task(self._follow_outages(), name="worker-outages")
            await self._loop(group)
            outages.cancel()
            await self._finish()
            heartbeat.cancel()

    # --- claiming ----------------------------------------------------------------------------------

    async def _loop(self, group: asyncio.TaskGroup) -> None:
        while not self._stopping:
            # Cleared before the query: a notification in between is not lost but seen next time.
            self._wake.clear()
            try:
                await self._catch_up()
                wait = await self._claim(group)
            except DatabaseUnavailable as error:
                log.warning("claim_failed", reason=str(error))
                # The claim may have come through, and only its answer not.
                self._lost_track = True
                wait = DATABASE_PAUSE_SECONDS
            if wait > 0:
                # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()

    async def _follow_outages(self) -> None:
        while True:
            await self._outages.wait_for_return()
            self._wake.set()

    async def _catch_up(self) -> None:
        """Release what no worker works on any more, rather than wait for the end of its lease.

        Left behind by workers that died, or by us while the database was away.
        """
        unsettled, self._unsettled = self._unsettled, []
        for job, error, failed_at in unsettled:
            await self._settle(job, error, failed_at)
        if self._lost_track:
            held = [job.id for work in self._works for job in work.jobs]
            held += [job.id for job, _, _ in self._unsettled]
            released = await self._jobs.release_lost(self._dead_workers, held=held)
            self._lost_track = False
            if released:
                log.warning("lost_jobs_released", jobs=released, dead_workers=list(self._dead_workers))

    async def _claim(self, group: asyncio.TaskGroup) -> float:
        """Claim what there is room for and return how long to wait before the next look.

        Nothing is claimed to lie in wait here while another worker has nothing to do. Only small
        uploads are taken in advance, many at once.
        """
        large_room = self._large_slots - sum(work.large for work in self._works)
        room = self._settings.concurrency + CLAIM_BATCH - sum(len(work.jobs) for work in self._works if not work.large)
        if room <= 0:
            # The end of any work wakes the loop.
            return self._settings.poll_seconds
        until = self._lease_end()
        eager_room = self._eager_slots - sum(work.eager for work in self._works)
        jobs = await self._jobs.claim(min(room, CLAIM_BATCH), large=large_room, eager=eager_room)
        if jobs:
            await self._start_all(group, jobs, until)
            if len(jobs) < CLAIM_BATCH:
                # Where much is small and arrives all the time, one claim for many costs half of many for one.
                await asyncio.sleep(PACE_SECONDS)
            return 0
        due = await self._jobs.next_due_seconds(large=large_room > 0)
        return self._settings.poll_seconds if due is None else min(self._settings.poll_seconds, self._pause(due))

    @staticmethod
    def _pause(due_seconds: float) -> float:
        return max(BUSY_PAUSE_SECONDS, due_seconds)

    def _lease_end(self) -> float:
        """Return until when a lease may be used that is asked for now."""
        return asyncio.get_running_loop().time() + self._settings.lease_seconds * LEASE_SHARE

    async def _start_all(self, group: asyncio.TaskGroup, jobs: Sequence[Job], until: float) -> None:
        self._transfers.count_lost(jobs)
        runnable = [job for job in jobs if job.runnable]
        batch = [job for job in runnable if self._transfers.batchable(job)]
        if batch:
            self._start(group, Work(batch, until), self._batch)
        for job in runnable:
            if job not in batch:
                self._start(group, Work([job], until), self._performers[job.kind])
        for job in jobs:
            if not job.runnable:
                await self._transfers.discard(job)

    def _start(self, group: asyncio.TaskGroup, work: Work, perform: Perform) -> None:
        first = work.jobs[0]
        work.timer = asyncio.get_running_loop().call_at(work.until, self._look_at_lease, work)
        work.task = group.create_task(self._perform(work, perform), name=f"{first.kind}-{first.id}")
        self._works.add(work)

    # --- performing --------------------------------------------------------------------------------

    async def _perform(self, work: Work, perform: Perform) -> None:
        try:
            await perform(work)
        except asyncio.CancelledError:
            await (self._acknowledge(work.jobs) if work.taken_away else self._release(work.jobs))
            if not work.told_to_stop:
                raise
        except Exception as error:  # noqa: BLE001 -- the worker outlives every job; `_settle` logs it
            failed_at = asyncio.get_running_loop().time()
            for job in work.jobs:
                await self._settle(job, error, failed_at)
        finally:
            work.timer.cancel()
            self._works.discard(work)
            self._wake.set()

    async def _single(self, work: Work) -> None:
        (job,) = work.jobs
        async with self._slots:
            stored = await self._transfers.transfer(job)
        work.leased = False
        await self._transfers.record_stored([(job, stored)])

    async def _eager(self, work: Work) -> None:
        (job,) = work.jobs
        async with self._slots:
            min_offset = await self._transfers.send_parts(job)
        work.leased = False
        if not await self._jobs.defer(job, until_bytes=min_offset):
            await self._jobs.discard(job)

    async def _batch(self, work: Work) -> None:
        results = await self._transfers.transfer_batch(work.jobs)
        ended_at = asyncio.get_running_loop().time()
        work.leased = False
        outcomes = list(zip(work.jobs, results, strict=True))
        done = [(job, result) for job, result in outcomes if not isinstance(result, StorageError)]
        if done:
            await self._transfers.record_stored(done)
        for job, result in outcomes:
            if isinstance(result, StorageError):
                await self._settle(job, result, ended_at)

    async def _removal(self, work: Work) -> None:
        (job,) = work.jobs
        await self._transfers.remove(job)
        work.leased = False
        await self._transfers.record_removed(job)

    # --- outcomes ----------------------------------------------------------------------------------

    async def _settle(self, job: Job, error: Exception, failed_at: float) -> None:
        """Decide what an error means for the job: again later, never again, or not ours any more."""
        try:
            if isinstance(error, TransferCancelled):
                log.info("transfer_cancelled", upload_id=str(job.upload.id))
                await self._transfers.discard(job)
            elif isinstance(error, DatabaseUnavailable):
                # Not the store's fault, so it uses up no retry.
                log.warning("job_interrupted", job=job.id, upload_id=str(job.upload.id), reason=str(error))
                await self._jobs.release([job])
            elif not await self._record_failure(job, error, failed_at):
                # Somebody else's by now, which makes this a no-op, or cancelled: whoever waits for our
                # end need not wait any longer.
                await self._transfers.discard(job)
        except DatabaseUnavailable as away:
            log.warning("job_outcome_not_recorded", job=job.id, reason=str(away))
            self._unsettled.append((job, error, failed_at))

    async def _record_failure(self, job: Job, error: Exception, failed_at: float) -> bool:
        of_store = TransientStoreError | PermanentStoreError
        if isinstance(error, of_store) and await self._outages.explains(job, failed_at=failed_at):
            return await self._postpone(job, error)
        if not isinstance(error, TusdError):
            log.error("job_bug", job=job.id, kind=job.kind, upload_id=str(job.upload.id), exc_info=error)
        code = error.code if isinstance(error, TusdError) else TusdError.code
        # What is not known to be permanent is tried again. A removal is tried for ever, and so is
        # sending early: it fails nobody, and what must end in a failure is the transfer that follows.
        permanent = isinstance(error, TusdError) and not error.retryable
        exhausted = job.failures >= self._settings.max_retries
        if job.kind is JobKind.TRANSFER and (permanent or exhausted):
            return await self._give_up(job, error, code)
        return await self._try_again(job, error, code)

    async def _postpone(self, job: Job, error: StorageError) -> bool:
        """Put the job back without a failure: it goes on with all others when the store is back."""
        ours = await self._jobs.postpone(job, error, code=error.code)
        if ours:
            if job.kind is JobKind.TRANSFER:
                self._metrics.transfers.labels("postponed").inc()
            upload_id = str(job.upload.id)
            log.info("job_postponed", kind=job.kind, upload_id=upload_id, attempt=job.attempt, reason=str(error))
        return ours

    async def _give_up(self, job: Job, error: Exception, code: str) -> bool:
        ours = await self._jobs.fail(job, error, code=code)
        if ours:
            self._metrics.transfers.labels("failed").inc()
            log.error("transfer_failed", upload_id=str(job.upload.id), attempt=job.attempt, reason=str(error))
        return ours

    async def _try_again(self, job: Job, error: Exception, code: str) -> bool:
        told = error.retry_after_seconds if isinstance(error, TusdError) else None
        delay = self._settings.delay(job.failures + 1) if told is None else told
        ours = await self._jobs.retry(job, error, code=code, delay_seconds=delay)
        if ours:
            event = RETRY_EVENTS[job.kind]
            if job.kind is JobKind.TRANSFER:
                self._metrics.transfers.labels("retry").inc()
            log.warning(
                event,
                upload_id=str(job.upload.id),
                attempt=job.attempt,
                delay_seconds=round(delay, 1),
                reason=str(error),
            )
        return ours

    async def _acknowledge(self, jobs: Sequence[Job]) -> None:
        """Say that the work has stopped, for a removal that waits for that; a no-op for what was lost."""
        try:
            for job in jobs:
                await self._transfers.discard(job, settle_seconds=SETTLE_SECONDS)
        except DatabaseUnavailable as away:
            log.warning("end_not_acknowledged", jobs=[job.id for job in jobs], reason=str(away))
            self._settle_later(jobs, TransferCancelled())

    async def _release(self, jobs: Sequence[Job]) -> None:
        try:
            await self._jobs.release(jobs)
        except DatabaseUnavailable as away:
            log.warning("lease_not_released", jobs=[job.id for job in jobs], reason=str(away))
            self._settle_later(jobs, away)

    def _settle_later(self, jobs: Sequence[Job], error: Exception) -> None:
        failed_at = asyncio.get_running_loop().time()
        self._unsettled += [(job, error, failed_at) for job in jobs]

    # --- leases ------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.lease_seconds / RENEWALS_PER_LEASE)
            works = [work for work in self._works if work.leased]
            if not works:
                continue
            until = self._lease_end()
            try:
                ours = await self._jobs.renew([job for work in works for job in work.jobs])
            except DatabaseUnavailable as error:
                log.warning("lease_not_renewed", reason=str(error))
                continue
            for work in works:
                if all(job.id in ours for job in work.jobs):
                    work.until = until
                else:
                    work.taken_away = True
                    self._tell_to_stop(work, "lease_lost")

    def _look_at_lease(self, work: Work) -> None:
        """Stop a work whose lease was not renewed in time; look again later if it was."""
        loop = asyncio.get_running_loop()
        if loop.time() >= work.until:
            self._tell_to_stop(work, "lease_ran_out")
        else:
            work.timer = loop.call_at(work.until, self._look_at_lease, work)

    def _tell_to_stop(self, work: Work, reason: str) -> None:
        # What has come to its records meanwhile is not held up: they know themselves what they may.
        if work.leased and not work.told_to_stop:
            log.warning(reason, jobs=[job.id for job in work.jobs], first=str(work.jobs[0].upload.id))
            work.told_to_stop = True
            work.task.cancel()

    async def _finish(self) -> None:
        """Wait for what runs, and stop what takes too long: its leases are let go."""
        tasks = {work.task for work in self._works}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._settings.shutdown_seconds)
            for work in self._works:
                work.told_to_stop = True
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
