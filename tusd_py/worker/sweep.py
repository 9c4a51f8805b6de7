"""Cleanup: expire what is overdue, let go of staged copies, drop what nobody needs any more.

A pass does bounded batches until nothing is left; a failure in one step is logged and does not keep
the others from running. `transfer_failed` and uploads on hold are never touched.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from tusd_py.errors import StagingMissing, TusdError
from tusd_py.protocol.upload import RECEIVING, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.metrics import Metrics
    from tusd_py.ports import Staging, StagingFiles, SweepRepository

log = structlog.get_logger(__name__)

BATCH: Final = 500
LOCKED_AT_ONCE: Final = 100
"""Each is an open file, and a process may have no more than 1024 of them by default."""


@dataclass(frozen=True, slots=True)
class SweepSettings:
    """What cleanup needs to know of the configuration. Times in seconds."""

    interval_seconds: float
    delete_local: bool
    delete_local_after_seconds: float
    requeue_failed_after_seconds: float
    tombstones_after_seconds: float
    orphans_after_seconds: float
    events_after_seconds: float


class Sweep:
    """The periodic cleanup of one node."""

    def __init__(
        self, records: SweepRepository, staging: StagingFiles, settings: SweepSettings, metrics: Metrics
    ) -> None:
        self._records = records
        self._staging = staging
        self._settings = settings
        self._metrics = metrics

    async def run(self) -> None:
        """Make a pass now and then, for ever."""
        while True:
            await self.once()
            await asyncio.sleep(self._settings.interval_seconds)

    async def once(self) -> dict[str, int]:
        """Make one pass and answer what each step dealt with."""
        settings, records = self._settings, self._records
        steps: dict[str, Callable[[], Awaitable[int]]] = {
            "expired": self.expire,
            "local_purged": self.purge_local,
            "requeued": self._requeue_failed,
            "adopted": lambda: _until_done(lambda: records.adopt_jobless(BATCH)),
            "parts_released": lambda: _until_done(lambda: records.release_parts(BATCH)),
            "rows_purged": lambda: _until_done(lambda: records.purge_rows(settings.tombstones_after_seconds, BATCH)),
            "events_purged": lambda: _until_done(lambda: records.purge_events(settings.events_after_seconds, BATCH)),
            "orphans_removed": self.remove_orphans,
        }
        done: dict[str, int] = {}
        for name, step in steps.items():
            try:
                done[name] = await step()
            except TusdError as error:
                log.warning("sweep_step_failed", step=name, reason=str(error))
        dealt_with = {name: count for name, count in done.items() if count}
        for name, count in dealt_with.items():
            self._metrics.swept.labels(name).inc(count)
        if dealt_with:
            log.info("swept", **dealt_with)
        return done

    async def expire(self) -> int:
        """Expire overdue uploads, except those that are receiving bytes at this moment."""
        count = 0
        busy: list[UploadId] = []
        while uploads := await self._records.overdue(BATCH, skip=busy):
            for upload in uploads:
                if await self._expire_one(upload):
                    count += 1
                else:
                    busy.append(upload.id)
        return count

    async def _expire_one(self, upload: Upload) -> bool:
        if upload.state not in RECEIVING:
            return await self._records.expire(upload.id)
        # Under the file's lock: an append that began before the time was up may finish.
        try:
            file = await self._staging.open(upload.id, create=False)
        except StagingMissing:
            return await self._records.expire(upload.id)
        if file is None:
            return False
        try:
            return await self._records.expire(upload.id)
        finally:
            await file.close()

    async def purge_local(self) -> int:
        """Remove staged copies of stored uploads; the record follows the removal."""
        if not self._settings.delete_local:
            return 0
        return await _until_done(self._purge_batch)

    async def _purge_batch(self) -> int:
        upload_ids = await self._records.purgeable(self._settings.delete_local_after_seconds, BATCH)
        return await remove_staged_copies(self._staging, self._records, upload_ids)

    async def _requeue_failed(self) -> int:
        after = self._settings.requeue_failed_after_seconds
        return await _until_done(lambda: self._records.requeue_failed(after, BATCH)) if after else 0

    async def remove_orphans(self) -> int:
        """Remove old staging files that no upload claims: what a crash between file and row left."""
        count = 0
        files = self._old_files(time.time() - self._settings.orphans_after_seconds)
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(files, BATCH))):
            kept = await self._records.with_files(batch)
            count += await self._remove_unclaimed([UploadId(each) for each in batch if each not in kept])
        return count

    async def _remove_unclaimed(self, upload_ids: Sequence[UploadId]) -> int:
        count = 0
        for start in range(0, len(upload_ids), LOCKED_AT_ONCE):
            # Asked again under the lock: `reconcile --repair` may have taken one up a moment ago.
            async with self._staging.locked(upload_ids[start : start + LOCKED_AT_ONCE]) as unused:
                kept = await self._records.with_files(unused)
                orphans = [each for each in unused if each not in kept]
                await self._staging.remove(orphans)
            if orphans:
                log.warning("orphans_removed", count=len(orphans), first=str(orphans[0]))
            count += len(orphans)
        return count

    def _old_files(self, before: float) -> Iterator[UUID]:
        foreign = 0
        for name, modified in self._staging.files():
            if modified >= before:
                continue
            if (upload_id := _parse_id(name)) is not None:
                yield upload_id
            else:
                foreign += 1
        if foreign:
            # Names that this server never gives are not for it to remove.
            log.warning("foreign_staging_files", count=foreign)


async def remove_staged_copies(
    staging: Staging | StagingFiles, records: SweepRepository, upload_ids: Sequence[UploadId]
) -> int:
    """Remove the staged copies of those uploads that are still stored, record it, and return how many.

    Under the files' locks: `reconcile --repair` may have queued one of them again a moment ago, and then
    its staged copy is the only one.

    Raises:
        StorageError: a file could not be removed; what is recorded is true all the same.
    """
    count = 0
    for start in range(0, len(upload_ids), LOCKED_AT_ONCE):
        async with staging.locked(upload_ids[start : start + LOCKED_AT_ONCE]) as unused:
            purgeable = await records.still_purgeable(unused)
            await staging.remove(purgeable)
            await records.purged(purgeable)
        count += len(purgeable)
    return count


def _parse_id(name: str) -> UUID | None:
    try:
        upload_id = UUID(name)
    except ValueError:
        return None
    return upload_id if str(upload_id) == name else None


async def _until_done(step: Callable[[], Awaitable[int]]) -> int:
    """Repeat a step of bounded size until it finds less than it could have dealt with."""
    total = 0
    while True:
        count = await step()
        total += count
        if count < BATCH:
            return total
