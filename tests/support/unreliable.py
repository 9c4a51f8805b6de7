"""A database and a disk that do what they should, until a test says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tusd_py.database.uploads import PostgresUploads
from tusd_py.errors import DatabaseUnavailable, StagingFull, StorageError
from tusd_py.ports import NewUpload, StagingFile
from tusd_py.protocol.checksum import Hasher
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.staging import StagingArea


class UnreliableUploads(PostgresUploads):
    """The uploads of a database that can be away."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.advances = 0
        self.away_for = 0
        """How many of the next advances do not reach the database."""
        self.creation_error: Exception | None = None
        self.finds = 0
        self.recording = asyncio.Event()
        """Set once an advance was asked for."""
        self.may_record = asyncio.Event()
        """No advance goes on before this is set."""
        self.may_record.set()

    async def create(self, new: NewUpload) -> Upload:
        if self.creation_error is not None:
            raise self.creation_error
        return await super().create(new)

    async def find(self, upload_id: UploadId) -> Upload | None:
        found = await super().find(upload_id)
        self.finds += 1
        return found

    async def advance(self, *arguments: Any, **keywords: Any) -> Upload:
        self.advances += 1
        self.recording.set()
        await self.may_record.wait()
        if self.away_for:
            self.away_for -= 1
            raise DatabaseUnavailable
        return await super().advance(*arguments, **keywords)


class UnreliableDisk(StagingArea):
    """A staging area whose files can be written and synced only so far."""

    full_at: int | None = None
    """No file can become longer than this."""
    good_syncs: int | None = None
    """How many syncs succeed before all others fail."""

    async def open(self, upload_id: UploadId, *, create: bool) -> StagingFile | None:
        file = await super().open(upload_id, create=create)
        return None if file is None else _UnreliableFile(file.size, file, self)


@dataclass
class _UnreliableFile(StagingFile):
    size: int
    file: StagingFile
    disk: UnreliableDisk

    async def truncate(self, length: int) -> None:
        self.file.size = self.size
        await self.file.truncate(length)
        self.size = self.file.size

    async def write(
        self,
        chunks: Sequence[bytes | memoryview],
        offset: int,
        crc64nvme: int,
        *,
        sync: bool = False,
        hasher: Hasher | None = None,
    ) -> int:
        if self.disk.full_at is not None and offset + sum(map(len, chunks)) > self.disk.full_at:
            raise StagingFull
        crc = await self.file.write(chunks, offset, crc64nvme, sync=sync, hasher=hasher)
        if sync and self.disk.good_syncs is not None:
            if self.disk.good_syncs == 0:
                raise StorageError
            self.disk.good_syncs -= 1
        return crc

    async def update_hasher(self, hasher: Hasher, start: int, stop: int) -> None:
        await self.file.update_hasher(hasher, start, stop)

    async def close(self) -> None:
        await self.file.close()
