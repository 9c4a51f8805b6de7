"""What comparing the record with the staging disk and the store asks of the three.

Everything is read in pages, so that memory does not grow with the number of uploads. Every change
says again, in the same step, what it relies on: it returns False where that does not hold any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from tusd_py.protocol.upload import Concat, StagingId, State, UploadId


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """What the record says of an upload, as far as its bytes are concerned. Ages in seconds."""

    id: UploadId
    staging_id: StagingId
    state: State
    concat: Concat | None
    length: int | None
    offset: int
    crc64nvme: int | None
    object_key: str
    multipart_id: str | None
    etag: str | None
    version_id: str | None
    place_id: int
    local_present: bool
    remote_present: bool
    missing: bool
    """An earlier run has recorded that bytes are missing."""
    busy: bool
    """It has a job that is not over."""
    jobless: str | None
    """The kind of the job that it waits for and does not have."""
    age_seconds: float
    """Since its last change."""
    stored_seconds: float


@dataclass(frozen=True, slots=True)
class StagedFile:
    """An entry of the staging directory."""

    name: str
    upload_id: UploadId | None
    """None: no regular file of a name and in a place that this server gives."""
    size: int
    modified_at: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class StagedPart:
    """A staged file that belongs to an upload: its own, or that of one of its parts."""

    upload_id: UploadId
    length: int


class ReconcileRepository(Protocol):
    """The record as it is compared. Every method raises `DatabaseUnavailable`."""

    async def page(self, places: Sequence[int], after: str, limit: int) -> list[UploadRecord]:
        """Return uploads in some places, of all staging directories, by object key after one.

        The order is that of the key's code points.
        """

    async def by_id(self, upload_ids: Sequence[UUID]) -> list[UploadRecord]:
        """Return those uploads that exist."""

    async def by_key(self, places: Sequence[int], keys: Sequence[str]) -> list[UploadRecord]:
        """Return the uploads of these object keys in some places."""

    async def newest_stored(self, places: Sequence[int], limit: int) -> list[str]:
        """Return the object keys of the newest uploads of this staging directory that are stored in some places."""

    async def stored_elsewhere(self, places: Sequence[int]) -> dict[int, int]:
        """Return how many uploads of this staging directory are stored in places that are none of these, by place."""

    async def knows_directory(self) -> bool:
        """Return whether there is any upload of this staging directory."""

    async def segments(self, upload_id: UploadId) -> list[StagedPart]:
        """Return the parts of a final upload in order, as far as their bytes are kept."""

    async def queue_job(self, row: UploadRecord) -> bool:
        """Queue the job that an upload waits for, if it still does and still has none."""

    async def requeue_lost(self, row: UploadRecord, reason: str) -> bool:
        """Take back that an upload is stored, and queue its transfer. Its staged bytes are whole.

        The caller holds the lock of its staged file. The parts of a final upload, whose files have no
        part in this, are asked for by the statement itself.
        """

    async def mark_missing(self, row: UploadRecord, reason: str) -> bool:
        """Record that bytes of an upload are missing, and since when; nothing else is changed."""

    async def clear_missing(self, row: UploadRecord) -> bool:
        """Record that nothing is missing any more."""

    async def forget_copy(self, row: UploadRecord) -> bool:
        """Record that a stored upload has no staged copy."""


class StagingScan(Protocol):
    """The staging disk as it is compared."""

    def pages(self, limit: int) -> Iterator[list[StagedFile]]:
        """Return everything in the staging directory. Blocks: run each step in a thread."""

    def sizes(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, int]:
        """Return the sizes of the files that are there. Blocks."""

    def locked(self, upload_ids: Sequence[UploadId]) -> AbstractAsyncContextManager[list[UploadId]]:
        """Hold the locks of files; see `Staging.locked`."""

    async def remove_unwanted(
        self, upload_id: UploadId, *, unchanged_since: float, unwanted: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Remove a file under its own lock, if it is old enough and `unwanted` says so then.

        Returns False, and changes nothing, if somebody uses it, it has changed since, or it is wanted.
        """

    async def set_aside_unwanted(
        self, upload_id: UploadId, *, unchanged_since: float, unwanted: Callable[[], Awaitable[bool]]
    ) -> bool:
        """Move a file to `unclaimed/`, on the same conditions as `remove_unwanted` removes one."""

    def unclaimed(self, limit: int) -> Iterator[list[StagedFile]]:
        """Yield pages of what was set aside. Blocks: run each step in a thread."""

    async def take_back(self, upload_id: UploadId, *, wanted: Callable[[], Awaitable[bool]]) -> bool:
        """Move a file that was set aside back to its place, under its own lock, if `wanted` says so then.

        Raises:
            StorageError: its place is taken.
        """
