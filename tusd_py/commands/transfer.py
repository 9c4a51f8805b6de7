"""`tusd-py transfer`: queue one transfer and follow it, or queue failed ones again. A worker does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tusd_py.app import identify, make_cleanup_records, make_core, make_records, make_upload_service, reachable
from tusd_py.authorization import ANONYMOUS
from tusd_py.database.staging_directories import StagingDirectories
from tusd_py.database.stats import read_stats
from tusd_py.metrics import Metrics
from tusd_py.ports import JobState
from tusd_py.protocol.upload import State, UploadId
from tusd_py.uploads.waiting import look_at_upload

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.ports import TransferView
    from tusd_py.uploads.service import UploadService
    from tusd_py.uploads.waiting import UploadStatus

UNCLAIMED_SECONDS: Final = 5.0
"""A transfer that is not claimed for so long suggests that no worker runs."""
BATCH: Final = 500


async def transfer_one(
    config: Config, upload_id: UploadId, *, timeout_seconds: float, say: Callable[[str], None]
) -> bool:
    """Queue the transfer of an upload, report each change, and return whether it was stored.

    A worker does the work; this process only follows it.

    Raises:
        UploadNotFound, NotReady, InvalidTransition, DatabaseUnavailable.
    """
    core = make_core(config, Metrics())
    uploads = make_upload_service(core)
    async with reachable(core):
        await uploads.request_transfer(ANONYMOUS, upload_id)
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        return await _follow(uploads, StagingDirectories(core.database), upload_id, deadline, say)


async def _follow(
    uploads: UploadService,
    directories: StagingDirectories,
    upload_id: UploadId,
    deadline: float,
    say: Callable[[str], None],
) -> bool:
    seen = await look_at_upload(uploads, ANONYMOUS, upload_id)
    say(_describe(seen))
    warned = False
    while not seen.settled:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            say("timed out; the transfer continues in the background")
            return False
        before = seen
        seen = await look_at_upload(uploads, ANONYMOUS, upload_id, wait_seconds=min(left, UNCLAIMED_SECONDS))
        if seen.mark != before.mark:
            say(_describe(seen))
        elif not warned and _is_unclaimed(seen.transfer):
            directory = await directories.find(seen.upload.staging_id)
            say(f"no worker has claimed it; is one running on the node of the staging directory {directory}?")
            warned = True
    return seen.upload.state is State.STORED


def _is_unclaimed(transfer: TransferView | None) -> bool:
    # With an error and without a time for the next attempt, it waits for the store.
    return transfer is not None and transfer.state is JobState.QUEUED and transfer.last_error is None


def _describe(seen: UploadStatus) -> str:
    upload, transfer = seen.upload, seen.transfer
    words = [upload.state.value]
    if transfer is not None:
        words.append(f"transfer {transfer.id} {transfer.state}, attempt {transfer.attempts}")
        if transfer.last_error is not None:
            words.append(transfer.last_error)
        if transfer.state is JobState.RETRY_WAIT and transfer.next_attempt_at is not None:
            words.append(f"next attempt {transfer.next_attempt_at:%H:%M:%S} UTC")
    return ": ".join(words[:2]) + "".join(f"; {word}" for word in words[2:])


async def requeue_failed(config: Config, say: Callable[[str], None]) -> None:
    """Queue every failed transfer of this node again, and report how many there were."""
    records = make_records(config)
    cleanup = make_cleanup_records(records)
    total = 0
    started = time.monotonic()
    async with reachable(records):
        await identify(records)
        waiting = await cleanup.count_requeued()
        # Without those that fail again meanwhile, or this might never end.
        while count := await cleanup.requeue_failed(time.monotonic() - started, BATCH):
            total += count
        figures = await read_stats(records.database, records.identity.id)
    say(f"{total} queued")
    if waiting:
        say(f"{waiting} were queued before and wait for a worker")
    if figures.store_blocked_seconds:
        say("the store refuses this server; they start once that is fixed")
    elif figures.store_away_seconds:
        say("the store is unreachable; they start once it is back")
