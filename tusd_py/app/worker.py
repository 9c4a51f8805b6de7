"""The worker, wired, and how it runs inside a process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tusd_py.app.core import Core, add_hooks
from tusd_py.app.endpoints import make_progress_targets, make_subscriptions
from tusd_py.app.records import Records
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.database.jobs import JobQueue
from tusd_py.database.notifier import JOBS_CHANNEL, PROGRESS_CHANNEL, UPLOADS_CHANNEL
from tusd_py.database.outages import StoreOutages
from tusd_py.process_identity import unique_name
from tusd_py.worker.cleanup import Cleanup
from tusd_py.worker.context import JobContext
from tusd_py.worker.deliveries import DeliveryRunner
from tusd_py.worker.outages import OutageDetector
from tusd_py.worker.progress import ProgressSender
from tusd_py.worker.runner import JobRunner


@dataclass(slots=True)
class Work:
    """The worker's side, wired."""

    runner: JobRunner
    cleanup: Cleanup
    deliveries: DeliveryRunner
    progress: ProgressSender


def make_work(core: Core, *, worker: str = "", dead_workers: Sequence[str] = ()) -> Work:
    """Wire the worker; its name is made up if none is given. `dead_workers`: see `JobRunner.take_over`."""
    config = core.config
    transfer = config.transfer
    worker = worker or unique_name()
    add_hooks(core)
    jobs = JobQueue(
        core.database,
        directory=core.identity,
        worker=worker,
        lease_seconds=transfer.lease,
        notifier=core.notifier,
    )
    cleanup = make_cleanup_records(core)
    context = JobContext(
        jobs=jobs,
        uploads=core.uploads,
        cleanup=cleanup,
        staging=core.staging,
        stores=core.stores,
        metrics=core.metrics,
        digests=config.integrity.digests,
        hooks=core.hooks,
        purge_at_once=transfer.delete_local and transfer.delete_local_after == 0,
        object_parameters={
            name: profile.object_parameters.s3_parameters() for name, profile in config.profiles.items()
        },
    )
    outages = StoreOutages(core.database, core.notifier, directory=core.identity)
    detector = OutageDetector(outages, core.stores.current, poll_seconds=transfer.poll_interval)
    runner = JobRunner(context, detector, transfer, shutdown_timeout=config.server.shutdown_timeout)
    runner.take_over(dead_workers)

    def on_notification(payload: str) -> None:
        if payload in {"", str(core.identity.id)}:
            runner.wake()

    core.notifications.subscribe(JOBS_CHANNEL, on_notification)
    return Work(
        runner,
        Cleanup(cleanup, core.staging, config.cleanup, transfer, core.metrics),
        make_deliveries(core, worker=worker, dead_workers=dead_workers),
        make_progress(core, worker=worker),
    )


def make_deliveries(core: Core, *, worker: str, dead_workers: Sequence[str]) -> DeliveryRunner:
    """Wire what tells endpoints of events."""
    subscriptions = make_subscriptions(core)
    deliveries = DeliveryRunner(
        DeliveryQueue(core.database, worker=worker),
        subscriptions,
        core.metrics,
        poll_seconds=core.config.transfer.poll_interval,
        shutdown_timeout=core.config.server.shutdown_timeout,
        dead_workers=dead_workers,
    )
    if subscriptions:
        core.notifications.subscribe(UPLOADS_CHANNEL, lambda _: deliveries.wake())
    return deliveries


def make_progress(core: Core, *, worker: str) -> ProgressSender:
    """Wire what tells endpoints how far uploads are."""
    targets = make_progress_targets(core)
    progress = ProgressSender(DeliveryQueue(core.database, worker=worker), core.uploads, targets)
    if targets:
        core.notifications.subscribe(PROGRESS_CHANNEL, progress.hear)
    return progress


def make_cleanup_records(records: Records) -> CleanupRecords:
    """Wire the statements of cleanup."""
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
    delivering = asyncio.create_task(work.deliveries.run(), name="worker-deliveries")
    telling = asyncio.create_task(work.progress.run(), name="worker-progress")
    stopping = asyncio.create_task(stop.wait(), name="worker-stop")
    tasks = (cleaning, running, delivering, telling, stopping)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        work.runner.stop()
        work.deliveries.stop()
        work.progress.stop()
        await running
        await delivering
        for task in done:
            # A task that failed takes the worker with it, loudly.
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
