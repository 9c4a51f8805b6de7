"""Repairs, one finding at a time. Whatever a repair relies on is checked again right before it.

Nothing here deletes the last copy of anything: a staged file that no upload has is set aside, and one goes
when its object was seen a moment ago; an object goes when its upload is gone for good.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tusd_py.ports import ObjectIdentity
from tusd_py.protocol.upload import GONE, Concat, State
from tusd_py.reconcile.compare import wants_back
from tusd_py.reconcile.findings import Finding, Kind, Repair, Result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tusd_py.database.reconcile import ReconcileRecords
    from tusd_py.ports import ObjectStore, UploadRecord
    from tusd_py.reconcile.compare import Scope
    from tusd_py.staging import DirectoryScan

REASONS: Final = {
    Kind.OBJECT_MISSING: "The stored file is missing.",
    Kind.OBJECT_DIFFERS: "The stored file is not the one that was uploaded.",
    Kind.STAGED_MISSING: "The staged bytes of this upload are missing.",
    Kind.STAGED_SHORT: "The staged bytes of this upload are damaged.",
}
"""What the upload's owner may read."""


class Repairs:
    """Repairs what one run finds."""

    def __init__(self, records: ReconcileRecords, staging: DirectoryScan, store: ObjectStore, scope: Scope) -> None:
        self._records = records
        self._staging = staging
        self._store = store
        self._scope = scope

    async def apply(self, finding: Finding, *, now: float) -> Result:
        """Repair a finding that was confirmed a moment ago.

        Raises:
            StorageError: the disk or the store refused.
        """
        done = await self._apply(finding, now=now)
        if not done:
            return Result.CHANGED
        return Result.MARKED if finding.repair is Repair.MARK else Result.REPAIRED

    async def _apply(self, finding: Finding, *, now: float) -> bool:
        if finding.repair in {Repair.REMOVE_FILE, Repair.SET_ASIDE}:
            return await self._remove_file(finding, now=now)
        if finding.repair is Repair.TAKE_BACK:
            return await self._take_back(finding)
        row = finding.row
        assert row is not None  # every other repair is of an upload
        if finding.repair is Repair.ABORT:
            return await self._abort(finding, row)
        if finding.repair in {Repair.REQUEUE, Repair.MARK}:
            return await self._record_damage(finding, row)
        act: Callable[[UploadRecord], Awaitable[bool]] = {
            Repair.QUEUE_JOB: self._records.queue_job,
            Repair.CLEAR_MARK: self._records.clear_missing,
            Repair.FORGET_COPY: self._records.forget_copy,
            Repair.REMOVE_OBJECT: self._remove_object,
        }[finding.repair]
        return await act(row)

    async def _record_damage(self, finding: Finding, row: UploadRecord) -> bool:
        reason = REASONS[finding.kind]
        if finding.repair is Repair.REQUEUE:
            return await self._requeue(row, reason)
        return await self._records.mark_missing(row, reason)

    async def _requeue(self, row: UploadRecord, reason: str) -> bool:
        # Under the file's lock, and with its size read again: cleanup may be about to remove it, and the
        # object that it goes by is gone.
        async with self._staging.locked([row.id]) as unused:
            sizes = await asyncio.to_thread(self._staging.sizes, unused)
            staged = row.concat is Concat.FINAL or row.offset == 0 or sizes.get(row.id, -1) >= row.offset
            return bool(unused) and staged and await self._records.requeue_lost(row, reason)

    async def _remove_file(self, finding: Finding, *, now: float) -> bool:
        upload_id, row = finding.file_id, finding.row
        assert upload_id is not None  # only our own files are removed

        async def unwanted() -> bool:
            current = next(iter(await self._records.by_id([upload_id])), None)
            if row is None or current is None:
                return row is None and current is None
            return _same(row, current) and not current.busy and await self.has_no_use(current)

        act = self._staging.remove_unwanted if row is not None else self._staging.set_aside_unwanted
        removed = await act(upload_id, unchanged_since=now - self._scope.margin_seconds, unwanted=unwanted)
        if removed and row is not None and row.local_present:
            await self._records.forget_copy(row)
        return removed

    async def _take_back(self, finding: Finding) -> bool:
        upload_id = finding.file_id
        assert upload_id is not None  # only our own files go back

        async def wanted() -> bool:
            current = next(iter(await self._records.by_id([upload_id])), None)
            return current is not None and wants_back(current, self._scope) and current.offset <= (finding.size or 0)

        return await self._staging.take_back(upload_id, wanted=wanted)

    async def has_no_use(self, row: UploadRecord) -> bool:
        """Return whether an upload can do without its staged copy: by its object, not by its record."""
        if row.state in GONE:
            return True
        if row.place_id not in self._scope.places:
            return False  # its store is not configured, and cannot be asked
        found = await self._store.stat(row.object_key)
        return found is not None and found.length == row.length and found.upload_id in {None, str(row.id)}

    async def _remove_object(self, row: UploadRecord) -> bool:
        # Gone is final, and without a job no worker can make the object again.
        current = await self._current(row)
        if current is None or current.state not in GONE - {State.REMOVING} or current.busy:
            return False
        return await self._store.remove(
            ObjectIdentity(
                upload_id=str(row.id),
                key=row.object_key,
                length=row.offset if row.length is None else row.length,
                crc64nvme=row.crc64nvme,
                etag=row.etag,
                version_id=row.version_id,
            )
        )

    async def _abort(self, finding: Finding, row: UploadRecord) -> bool:
        current = await self._current(row)
        if current is None or current.busy or current.multipart_id == finding.unfinished_id:
            return False
        assert finding.unfinished_id is not None  # what is to be aborted has one
        await self._store.abort(row.object_key, finding.unfinished_id)
        return True

    async def _current(self, row: UploadRecord) -> UploadRecord | None:
        return next(iter(await self._records.by_id([row.id])), None)


def _same(before: UploadRecord, now: UploadRecord) -> bool:
    return (before.state, before.offset, before.local_present) == (now.state, now.offset, now.local_present)
