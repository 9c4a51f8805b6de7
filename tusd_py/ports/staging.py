"""The disk that receives the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tusd_py.errors import StorageError
from tusd_py.protocol.upload import StagingId, UploadId

if TYPE_CHECKING:
    from tusd_py.protocol.checksum import Hasher


class StagingIdentity:
    """Which staging directory is this process's: found out at the start, when directory and database agree on it."""

    id: StagingId
    """There is none before that."""

    def __init__(self, staging_id: StagingId | None = None) -> None:
        if staging_id is not None:
            self.id = staging_id


@dataclass(frozen=True, slots=True)
class StagedFile:
    """An entry of the staging directory."""

    name: str
    upload_id: UploadId | None
    """None: no regular file of a name and in a place that this server gives."""
    size: int
    modified_at: float
    """Seconds since the epoch."""


class StagingFile(Protocol):
    """A staged file opened for its only writer. Methods run in threads; none may overlap another."""

    size: int
    """Bytes in the file when it was opened."""

    async def truncate(self, length: int) -> None:
        """Cut what lies beyond `length`. Raises `StagingDamaged` if there is less."""

    async def write(
        self,
        chunks: Sequence[bytes | memoryview],
        offset: int,
        crc64nvme: int,
        *,
        sync: bool = False,
        hasher: Hasher | None = None,
    ) -> int:
        """Write the chunks at `offset`, update `hasher` with them, and return the running checksum.

        With `sync` everything written so far survives a power cut (fdatasync) when this returns. If that
        fails, nothing counts that was written since the last sync, and every later one fails as well.

        Raises:
            StagingFull, StorageError: some of the chunks may have been written.
        """

    async def update_hasher(self, hasher: Hasher, start: int, stop: int) -> None:
        """Update `hasher` with bytes [start, stop) of the file."""

    async def close(self) -> None:
        """Close the file, which releases its lock."""


class Staging(Protocol):
    """The disk that receives the bytes."""

    identity: StagingIdentity
    """Which directory this is."""

    def new_id(self) -> UploadId:
        """Return a fresh public id, random but for what lets files of the same moment lie together."""

    async def store_small(self, upload_id: UploadId, chunks: Sequence[bytes | memoryview]) -> int:
        """Create a file that holds exactly `chunks`, durable, and return their checksum."""

    async def open(self, upload_id: UploadId, *, create: bool) -> StagingFile | None:
        """Open for writing and take the file's lock; None while another process holds it.

        Raises:
            StagingMissing: there is no such file, and it is not to be created.
        """

    def probe(self, upload_id: UploadId) -> int | None:
        """Return the file's size, 0 if there is none, None while another process writes to it.

        Quick: four system calls, no thread.
        """

    def path(self, upload_id: UploadId) -> Path:
        """Return where the file is."""

    def locked(
        self, upload_ids: Sequence[UploadId], failed: dict[UploadId, StorageError] | None = None
    ) -> AbstractAsyncContextManager[list[UploadId]]:
        """Hold the locks of files, and yield the ids of those that are not in use. A missing file is not in use.

        To remove a staged copy because of what the database says, or to rely on one, read the database and
        change it while holding this: then of two that do, the second sees what the first has done.
        Each file that is locked is open: pass some hundreds of them at most. One that cannot be opened is put
        into `failed`, or logged.
        """

    async def remove(self, upload_ids: Sequence[UploadId]) -> None:
        """Remove files; missing ones are fine. Raises `StorageError` for the first that could not be removed."""

    async def try_remove(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        """Remove files; return those that could not be removed, and why. Missing ones are fine."""

    def check_space(self, wanted: int) -> None:
        """Check that `wanted` more bytes leave the reserve untouched.

        Raises:
            UploadTooLarge: they do not fit on the disk even if it is empty.
            StagingFull: they do not fit now, and may once others have gone.
        """

    # --- for cleanup ---------------------------------------------------------------------------------

    async def set_aside(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        """Move files that the caller has locked to `unclaimed/`; return those that could not be moved."""

    def unclaimed(self) -> Iterator[StagedFile]:
        """Yield what was set aside; its time is when that was. Blocks: run it in a thread."""

    async def remove_unclaimed(self, upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        """Remove files that were set aside; return those that could not be removed."""

    async def require_identity(self) -> None:
        """Raise `StagingMismatch` if another directory is in the place of ours by now, as after an unmount."""

    def files(self) -> Iterator[tuple[str, float]]:
        """Return name and modification time of every file. Blocks: run it in a thread."""
