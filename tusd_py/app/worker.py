"""The worker, wired, and how it runs inside a process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tusd_py.app.core import Core, Records
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.jobs import JobQueue
from tusd_py.database.notifier import JOBS_CHANNEL
from tusd_py.database.outages import StoreOutages
from tusd_py.process_identity import unique_name
from tusd_py.worker.cleanup import Cleanup, CleanupSettings
from tusd_py.worker.outages import OutageDetector
from tusd_py.worker.runner import Runner, WorkerSettings
from tusd_py.worker.transfer import Transfers


@dataclass(slots=True)
class Work:
    """The worker's side, wired."""

    runner: Runner
    cleanup: Cleanup


def make_work(core: Core, *, worker: str = "", dead_workers: Sequence[str] = ()) -> Work:
    """Wire the worker; its name is made up if none is given. `dead_workers`: see `Runner.take_over`."""
    config = core.config
    transfer = config.transfer
    jobs = JobQueue(
        core.database,
        directory=core.identity,
        worker=worker or unique_name(),
        lease_seconds=transfer.lease,
        notifier=core.notifier,
    )
    cleanup = make_cleanup_records(core)
    transfers = Transfers(
        jobs=jobs,
        uploads=core.uploads,
        cleanup=cleanup,
        staging=core.staging,
        stores=core.stores,
        metrics=core.metrics,
        digests=config.integrity.digests,
        purge_at_once=transfer.delete_local and transfer.delete_local_after == 0,
        object_parameters={name: profile.object_parameters.named() for name, profile in config.profiles.items()},
    )
    settings = WorkerSettings(
        concurrency=transfer.concurrency,
        lease_seconds=transfer.lease,
        poll_seconds=transfer.poll_interval,
        max_retries=transfer.max_retries,
        retry_delay_seconds=transfer.retry_delay,
        retry_backoff=transfer.retry_backoff,
        retry_max_delay_seconds=transfer.retry_max_delay,
        shutdown_seconds=config.server.shutdown_timeout,
    )
    outages = StoreOutages(core.database, core.notifier, directory=core.identity)
    detector = OutageDetector(outages, core.stores.current, poll_seconds=transfer.poll_interval)
    runner = Runner(jobs, transfers, detector, settings, core.metrics)
    runner.take_over(dead_workers)

    def rung(payload: str) -> None:
        if payload in {"", str(core.identity.id)}:
            runner.wake()

    core.notifications.subscribe(JOBS_CHANNEL, rung)
    cleanup_settings = CleanupSettings(
        interval_seconds=config.cleanup.interval,
        delete_local=transfer.delete_local,
        delete_local_after_seconds=transfer.delete_local_after,
        requeue_failed_after_seconds=transfer.requeue_failed_after,
        deleted_retention_seconds=config.cleanup.deleted_retention,
        orphans_after_seconds=config.cleanup.orphans_after,
        unclaimed_after_seconds=config.cleanup.unclaimed_after,
        events_after_seconds=config.cleanup.events_after,
    )
    return Work(runner, Cleanup(cleanup, core.staging, cleanup_settings, core.metrics))


def make_cleanup_records(records: Records) -> CleanupRecords:
    """Wire what cleanup asks of the record."""
    config = records.config
    return CleanupRecords(
        records.database,
        records.notifier,
        directory=records.identity,
        uncommitted_after_seconds=config.cleanup.uncommitted_after,
    )


async def run_work(work: Work, stop: asyncio.Event) -> None:
    """Run the worker until `stop` is set."""
    cleaning = asyncio.create_task(work.cleanup.run(), name="worker-cleanup")
    running = asyncio.create_task(work.runner.run(), name="worker-runner")
    stopping = asyncio.create_task(stop.wait(), name="worker-stop")
    try:
        done, _ = await asyncio.wait({cleaning, running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        work.runner.stop()
        await running
        for task in done:
            # A helper that died takes the worker with it, loudly.
            task.result()
    finally:
        for task in (cleaning, stopping, running):
            task.cancel()
        await asyncio.gather(cleaning, stopping, running, return_exceptions=True)
