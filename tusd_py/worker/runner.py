"""The worker's loop: claim jobs, run each under its lease, and pass on how it ended.

What a job does is in the module of its kind; what its failure means, in `outcomes`. NOTIFY wakes the
loop, and a poll is the safety net. All helpers live in one TaskGroup: if one dies, the process dies
loudly and the supervisor starts another; the leases see to the rest.

A lease is kept from both ends. The database gives a job to somebody else once it has run out; here
the work on it is cancelled some time before that, by a clock that was started before the lease was
asked for. So whatever takes the job next, a removal above all, does not meet a late worker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

from tusd_py.errors import DatabaseUnavailable, StorageError
from tusd_py.ports import LARGE_BYTES, Job, JobKind
from tusd_py.worker.context import JobContext, JobHandler
from tusd_py.worker.eager import EagerTransfer
from tusd_py.worker.finish import Finish
from tusd_py.worker.outcomes import JobOutcomes
from tusd_py.worker.removal import Removal
from tusd_py.worker.transfer import Transfer, TransferBatch

if TYPE_CHECKING:
    from tusd_py.config import TransferConfig
    from tusd_py.worker.outages import OutageDetector

log = structlog.get_logger(__name__)

CLAIM_BATCH: Final = 64
PACE_SECONDS: Final = 0.05
"""Between two claims that found work. One claim for many small uploads costs half of many claims for one."""
FINISHES_AT_ONCE: Final = 16
"""How many uploads the application is asked about at once. They take no slot: a slow answer stops no transfer."""
WITHOUT_SLOT: Final = frozenset({JobKind.REMOVE, JobKind.FINISH})
"""They move no bytes."""
DATABASE_PAUSE_SECONDS: Final = 1.0
BUSY_PAUSE_SECONDS: Final = 0.05
"""The shortest wait: a due job may be locked by another worker's claim at this very moment."""
RENEWALS_PER_LEASE: Final = 3
LEASE_SHARE: Final = 0.9
"""How much of a lease the worker uses. The rest is for requests on their way to the store."""


@dataclass(slots=True, eq=False)
class RunningJobs:
    """Jobs that one task runs: a single one, or a batch of small transfers."""

    jobs: Sequence[Job]
    until: float
    """When the work must have ended, by the clock of the event loop."""
    task: asyncio.Task[None] = field(init=False)
    timer: asyncio.TimerHandle = field(init=False)
    leased: bool = True
    """False once only the outcome is left to be recorded: that is fenced and needs no lease."""
    asked_to_stop: bool = False
    taken_away: bool = False
    """The database said so: cancelled, or somebody else's by now."""

    @property
    def large(self) -> bool:
        """Return whether this takes one of the slots for large uploads."""
        return self.eager or (self.jobs[0].kind is JobKind.TRANSFER and self.jobs[0].upload.offset > LARGE_BYTES)

    @property
    def eager(self) -> bool:
        """Return whether its upload is still being received."""
        return self.jobs[0].kind is JobKind.EAGER

    @property
    def finish(self) -> bool:
        """Return whether this asks the application."""
        return self.jobs[0].kind is JobKind.FINISH


Perform = Callable[[RunningJobs], Awaitable[None]]


class JobRunner:
    """Runs the jobs of one worker process until it is told to stop."""

    def __init__(
        self,
        context: JobContext,
        outages: OutageDetector,
        config: TransferConfig,
        *,
        shutdown_timeout: float,
        database_pause_seconds: float = DATABASE_PAUSE_SECONDS,
    ) -> None:
        """`shutdown_timeout` is how many seconds running jobs have to end once the worker is told to stop."""
        self._context = context
        self._jobs = context.jobs
        self._outages = outages
        self._config = config
        self._shutdown_timeout = shutdown_timeout
        self._database_pause_seconds = database_pause_seconds
        self._outcomes = JobOutcomes(context, outages, config)
        self._batch = TransferBatch(context)
        self._handlers: Mapping[JobKind, JobHandler[Any]] = {
            JobKind.TRANSFER: Transfer(context),
            JobKind.EAGER: EagerTransfer(context),
            JobKind.REMOVE: Removal(context),
            JobKind.FINISH: Finish(context),
        }
        self._dead_workers: Sequence[str] = ()
        # True as long as a job may be leased to us, or to the dead, that nobody works on.
        self._lost_track = False
        self._wake = asyncio.Event()
        self._stopping = False
        self._slots = asyncio.Semaphore(config.concurrency)
        # One slot is kept for small uploads, so that they need not wait for hours.
        self._large_slots = max(1, config.concurrency - 1)
        # Others are kept for finished uploads: nobody waits yet for those that are still coming.
        self._eager_slots = max(1, self._large_slots // 2)
        self._works: set[RunningJobs] = set()

    def take_over(self, dead_workers: Sequence[str]) -> None:
        """Release the jobs of workers whose processes have ended. To be called before `run`."""
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
                wait = self._database_pause_seconds
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
        """Record or release what was left behind, by dead workers or by us while the database was away.

        Otherwise its jobs would wait for the end of their leases.
        """
        await self._outcomes.catch_up()
        if self._lost_track:
            held = [job.id for work in self._works for job in work.jobs]
            held += [job.id for job in self._outcomes.unrecorded]
            released = await self._jobs.release_lost(self._dead_workers, held=held)
            self._lost_track = False
            if released:
                log.warning("lost_jobs_released", jobs=released, dead_workers=list(self._dead_workers))

    async def _claim(self, group: asyncio.TaskGroup) -> float:
        """Claim what there is room for; return how many seconds to wait before the next claim.

        Nothing is claimed that would wait here while another worker is idle. Only small uploads are
        claimed in advance, many at once.
        """
        large_room = self._large_slots - sum(work.large for work in self._works)
        claimed = sum(len(work.jobs) for work in self._works if not work.large and not work.finish)
        room = self._config.concurrency + CLAIM_BATCH - claimed
        if room <= 0:
            # The end of any work wakes the loop.
            return self._config.poll_interval
        until = self._lease_end()
        eager_room = self._eager_slots - sum(work.eager for work in self._works)
        finish_room = FINISHES_AT_ONCE - sum(work.finish for work in self._works)
        jobs = await self._jobs.claim(min(room, CLAIM_BATCH), large=large_room, eager=eager_room, finish=finish_room)
        if jobs:
            await self._start_all(group, jobs, until)
            if len(jobs) < CLAIM_BATCH:
                await asyncio.sleep(PACE_SECONDS)
            return 0
        due = await self._jobs.next_due_seconds(large=large_room > 0, finish=finish_room > 0)
        poll = self._config.poll_interval
        return poll if due is None else min(poll, max(BUSY_PAUSE_SECONDS, due))

    def _lease_end(self) -> float:
        """Return when work must end, by the loop's clock, under a lease that is asked for now."""
        return asyncio.get_running_loop().time() + self._config.lease * LEASE_SHARE

    async def _start_all(self, group: asyncio.TaskGroup, jobs: Sequence[Job], until: float) -> None:
        for job in jobs:
            if job.lost:
                self._context.count(job, "lost")
        runnable = [job for job in jobs if job.runnable]
        batch = [job for job in runnable if self._batch.takes(job)]
        if batch:
            self._start(group, RunningJobs(batch, until), self._run_batch)
        for job in runnable:
            if job not in batch:
                self._start(group, RunningJobs([job], until), self._run_one)
        for job in jobs:
            if not job.runnable:
                await self._context.discard(job)

    def _start(self, group: asyncio.TaskGroup, work: RunningJobs, perform: Perform) -> None:
        first = work.jobs[0]
        work.timer = asyncio.get_running_loop().call_at(work.until, self._check_lease, work)
        work.task = group.create_task(self._perform(work, perform), name=f"{first.kind}-{first.id}")
        self._works.add(work)

    # --- performing --------------------------------------------------------------------------------

    async def _perform(self, work: RunningJobs, perform: Perform) -> None:
        try:
            await perform(work)
        except asyncio.CancelledError:
            if work.taken_away:
                await self._outcomes.stopped(work.jobs)
            else:
                await self._outcomes.interrupted(work.jobs)
            if not work.asked_to_stop:
                raise
        except Exception as error:  # noqa: BLE001 -- the worker outlives every job; `failed` logs it
            failed_at = asyncio.get_running_loop().time()
            for job in work.jobs:
                await self._outcomes.failed(job, error, failed_at)
        finally:
            work.timer.cancel()
            self._works.discard(work)
            self._wake.set()

    async def _run_one(self, work: RunningJobs) -> None:
        (job,) = work.jobs
        handler = self._handlers[job.kind]
        async with contextlib.nullcontext() if job.kind in WITHOUT_SLOT else self._slots:
            result = await handler.run(job)
        work.leased = False
        await handler.record(job, result)

    async def _run_batch(self, work: RunningJobs) -> None:
        results = await self._batch.run(work.jobs)
        ended_at = asyncio.get_running_loop().time()
        work.leased = False
        outcomes = list(zip(work.jobs, results, strict=True))
        done = [(job, result) for job, result in outcomes if not isinstance(result, StorageError)]
        if done:
            await self._batch.record(done)
        for job, result in outcomes:
            if isinstance(result, StorageError):
                await self._outcomes.failed(job, result, ended_at)

    # --- leases ------------------------------------------------------------------------------------

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(self._config.lease / RENEWALS_PER_LEASE)
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
                    self._ask_to_stop(work, "lease_lost")

    def _check_lease(self, work: RunningJobs) -> None:
        """Stop work whose lease was not renewed in time; look again later if it was."""
        loop = asyncio.get_running_loop()
        if loop.time() >= work.until:
            self._ask_to_stop(work, "lease_ran_out")
        else:
            work.timer = loop.call_at(work.until, self._check_lease, work)

    def _ask_to_stop(self, work: RunningJobs, reason: str) -> None:
        # Work that is already recording its outcome goes on: its statements are fenced.
        if work.leased and not work.asked_to_stop:
            log.warning(reason, jobs=[job.id for job in work.jobs], first=str(work.jobs[0].upload.id))
            work.asked_to_stop = True
            work.task.cancel()

    async def _finish(self) -> None:
        """Wait for what runs, and stop what takes too long: its leases are released."""
        tasks = {work.task for work in self._works}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._shutdown_timeout)
            for work in self._works:
                work.asked_to_stop = True
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
