"""Cleanup: expire what is overdue, remove staged copies and unclaimed files, delete old rows.

A pass works in bounded batches until nothing is left. A step that fails is logged and does not keep
the others from running, and neither does a file that cannot be opened or removed. Failed transfers and
uploads on hold are never removed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from tusd_py.errors import StagingMismatch, StagingMissing, StorageError, TusdError
from tusd_py.protocol.upload import RECEIVING, Upload, UploadId
from tusd_py.worker.postponed import POSTPONE_SECONDS, Postponed

if TYPE_CHECKING:
    from tusd_py.config import CleanupConfig, TransferConfig
    from tusd_py.database.cleanup import CleanupRecords
    from tusd_py.metrics import Metrics
    from tusd_py.ports import Staging

log = structlog.get_logger(__name__)

BATCH: Final = 500
LOCKED_AT_ONCE: Final = 100
"""Each is an open file, and a process may have no more than 1024 of those by default."""


class Cleanup:
    """The periodic cleanup beside one staging directory."""

    def __init__(  # noqa: PLR0913 -- its collaborators
        self,
        records: CleanupRecords,
        staging: Staging,
        config: CleanupConfig,
        transfer: TransferConfig,
        metrics: Metrics,
        *,
        batch: int = BATCH,
        postpone_seconds: float = POSTPONE_SECONDS,
    ) -> None:
        self._records = records
        self._batch = batch
        self._staging = staging
        self._config = config
        self._transfer = transfer
        self._metrics = metrics
        self._not_expired = Postponed("expired", metrics, postpone_seconds)
        self._not_purged = Postponed("local_purged", metrics, postpone_seconds)
        self._gone_not_removed = Postponed("gone_copies_removed", metrics, postpone_seconds)
        self._not_set_aside = Postponed("files_set_aside", metrics, postpone_seconds)
        self._not_removed = Postponed("unclaimed_removed", metrics, postpone_seconds)

    async def run(self) -> None:
        """Make a pass every `interval` seconds, forever."""
        while True:
            await self.once()
            await asyncio.sleep(self._config.interval)

    async def once(self) -> dict[str, int]:
        """Make one pass; return how many rows or files each step dealt with."""
        config, records = self._config, self._records
        if not await self._directory_is_known():
            return {}
        steps: dict[str, Callable[[], Awaitable[int]]] = {
            "expired": self.expire,
            "local_purged": self.purge_local,
            "gone_copies_removed": self.remove_gone_copies,
            "requeued": self._requeue_failed,
            "jobs_requeued": lambda: self._until_done(lambda: records.requeue_orphaned(self._batch)),
            "parts_released": lambda: self._until_done(lambda: records.release_parts(self._batch)),
            "rows_purged": lambda: self._until_done(lambda: records.purge_rows(config.deleted_retention, self._batch)),
            "endpoints_forgotten": records.forget_endpoints,
            "dead_letters_purged": lambda: self._until_done(
                lambda: records.purge_dead_letters(config.dead_letters_after, self._batch)
            ),
            "events_purged": lambda: self._until_done(lambda: records.purge_events(config.events_after, self._batch)),
            "files_set_aside": self.set_orphans_aside,
            "unclaimed_removed": self.remove_unclaimed,
        }
        done: dict[str, int] = {}
        for name, step in steps.items():
            try:
                done[name] = await step()
            except TusdError as error:
                log.warning("cleanup_step_failed", step=name, reason=str(error))
        dealt_with = {name: count for name, count in done.items() if count}
        for name, count in dealt_with.items():
            self._metrics.cleaned.labels(name).inc(count)
        if dealt_with:
            log.info("cleanup", **dealt_with)
        return done

    async def _directory_is_known(self) -> bool:
        """Return whether the database still knows the staging directory. If not, nothing is removed."""
        try:
            await self._require_identity()
        except StagingMismatch as error:
            log.error("cleanup_refused", reason=str(error))  # noqa: TRY400 -- the sentence says it all
            return False
        except TusdError as error:
            log.warning("cleanup_postponed", reason=str(error))
            return False
        return True

    async def _require_identity(self) -> None:
        await self._staging.require_identity()
        if not await self._records.knows_directory():
            raise StagingMismatch("The database does not know the staging directory any more. Nothing is removed.")

    async def expire(self) -> int:
        """Expire overdue uploads, except those that are receiving bytes at this moment."""
        count = 0
        skip = self._not_expired.current()
        while uploads := await self._records.overdue(self._batch, skip=list(skip)):
            for upload in uploads:
                try:
                    expired = await self._expire_one(upload)
                except StorageError as error:
                    self._not_expired.add({upload.id: error})
                    expired = False
                if expired:
                    count += 1
                else:
                    skip.add(upload.id)
        return count

    async def _expire_one(self, upload: Upload) -> bool:
        if upload.state not in RECEIVING:
            return await self._records.expire(upload.id)
        # Under the file's lock, so that an append that began in time may finish.
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
        if not self._transfer.delete_local:
            return 0
        after, count = self._transfer.delete_local_after, 0
        skip = self._not_purged.current()
        while upload_ids := await self._records.purgeable(after, self._batch, skip=list(skip)):
            removed, failed = await remove_staged_copies(self._staging, self._records, upload_ids)
            self._not_purged.add(failed)
            # Files that are locked by somebody else are skipped as well: the next pass finds them again.
            skip |= set(upload_ids) - set(removed)
            count += len(removed)
        return count

    async def remove_gone_copies(self) -> int:
        """Remove the staged copies of uploads whose removal waits for the store's return."""
        count = 0
        skip = self._gone_not_removed.current()
        while upload_ids := await self._records.gone_copies(self._batch, skip=list(skip)):
            failed = await self._staging.try_remove(upload_ids)
            self._gone_not_removed.add(failed)
            removed = [each for each in upload_ids if each not in failed]
            await self._records.gone_copies_removed(removed)
            skip |= failed.keys()
            count += len(removed)
        return count

    async def _requeue_failed(self) -> int:
        after = self._transfer.requeue_failed_after
        return await self._until_done(lambda: self._records.requeue_failed(after, self._batch)) if after else 0

    async def set_orphans_aside(self) -> int:
        """Set aside old staging files that belong to no upload.

        A crash between file and row leaves some. They are not removed yet, because a database that was
        restored from a backup does not know any file that came later.
        """
        count = 0
        skip = self._not_set_aside.current()
        files = self._old_files(time.time() - self._config.orphans_after)
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(files, self._batch))):
            kept = await self._records.with_files(batch)
            count += await self._set_aside([UploadId(each) for each in batch if each not in kept | skip])
        return count

    async def _set_aside(self, upload_ids: Sequence[UploadId]) -> int:
        count = 0
        for start in range(0, len(upload_ids), LOCKED_AT_ONCE):
            # Asked again under the lock: `reconcile --repair` may have restored one a moment ago.
            failed: dict[UploadId, StorageError] = {}
            async with self._staging.locked(upload_ids[start : start + LOCKED_AT_ONCE], failed) as unused:
                kept = await self._records.with_files(unused)
                orphans = [each for each in unused if each not in kept]
                failed |= await self._staging.set_aside(orphans)
            self._not_set_aside.add(failed)
            if moved := [each for each in orphans if each not in failed]:
                log.warning("files_set_aside", count=len(moved), first=str(moved[0]))
            count += len(moved)
        return count

    async def remove_unclaimed(self) -> int:
        """Remove files that were set aside long ago and still belong to no upload."""
        count = 0
        skip = self._not_removed.current()
        before = time.time() - self._config.unclaimed_after
        files = (file.upload_id for file in self._staging.unclaimed() if file.modified_at < before)
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(filter(None, files), self._batch))):
            await self._require_identity()
            kept = await self._records.with_files(batch)
            unclaimed = [each for each in batch if each not in kept | skip]
            failed = await self._staging.remove_unclaimed(unclaimed)
            self._not_removed.add(failed)
            if removed := [each for each in unclaimed if each not in failed]:
                log.warning("unclaimed_removed", count=len(removed), first=str(removed[0]))
            count += len(removed)
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
            # This server never creates such names, so it does not remove them.
            log.warning("foreign_staging_files", count=foreign)

    async def _until_done(self, step: Callable[[], Awaitable[int]]) -> int:
        """Repeat a step of bounded size until it finds less than it could have dealt with."""
        total = 0
        while True:
            count = await step()
            total += count
            if count < self._batch:
                return total


async def remove_staged_copies(
    staging: Staging, records: CleanupRecords, upload_ids: Sequence[UploadId]
) -> tuple[list[UploadId], dict[UploadId, StorageError]]:
    """Remove the staged copies of those uploads that are still stored, and record it.

    Return those that were removed, and the errors of those that could not be. Files that are locked by
    somebody else are in neither.

    The files are locked meanwhile: `reconcile --repair` may have queued one of them again a moment ago, and
    then its staged copy is the only one.
    """
    removed, failed = list[UploadId](), dict[UploadId, StorageError]()
    for start in range(0, len(upload_ids), LOCKED_AT_ONCE):
        async with staging.locked(upload_ids[start : start + LOCKED_AT_ONCE], failed) as unused:
            purgeable = await records.still_purgeable(unused)
            failed |= await staging.try_remove(purgeable)
            done = [each for each in purgeable if each not in failed]
            await records.purged(done)
        removed += done
    return removed, failed


def _parse_id(name: str) -> UUID | None:
    try:
        upload_id = UUID(name)
    except ValueError:
        return None
    return upload_id if str(upload_id) == name else None
