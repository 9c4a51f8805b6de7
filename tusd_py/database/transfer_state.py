"""What one transfer has sent so far. It can be read and written only while the job is ours.

The fence locks the job's row for the length of a statement. Reading it would not do: between the read
and the write another worker may claim the job, and the late write would overwrite that worker's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.database.pool import Statement
from tusd_py.database.rows import signed, unsigned
from tusd_py.errors import TransferCancelled
from tusd_py.ports import Job, PartRecord, TransferState

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

PROGRESS_SECONDS: Final = 1.0
"""Progress is for people: one write a second is enough."""

FENCE: Final = "id = :job_id AND attempt = :attempt AND worker = :worker AND state = 'running' AND NOT cancel_requested"
_OURS: Final = f"ours AS (SELECT upload_id FROM jobs WHERE {FENCE} FOR SHARE)"  # noqa: S608 -- only constants, here and below


class PostgresTransferState(TransferState):
    """The durable memory of one claimed transfer."""

    def __init__(self, database: Database, job: Job, worker: str) -> None:
        self._database = database
        self._job = job
        self._fence = {"job_id": job.id, "attempt": job.attempt, "worker": worker}
        self._next_progress = 0.0

    READ_MULTIPART: Final = Statement(
        f"""
        SELECT multipart_id FROM uploads WHERE id = (SELECT upload_id FROM jobs WHERE {FENCE})
        """  # noqa: S608
    )

    async def multipart_id(self) -> str | None:
        row = await self._database.fetchrow(*self.READ_MULTIPART(**self._fence))
        self._ours(row)
        value: str | None = row["multipart_id"] if row is not None else None
        return value

    # Parts belong to one multipart upload: with a new id, or none, the old parts are useless.
    RECORD_MULTIPART: Final = Statement(
        f"""
        WITH {_OURS}, forgotten AS (
            DELETE FROM transfer_parts USING ours WHERE transfer_parts.upload_id = ours.upload_id
        )
        UPDATE uploads SET multipart_id = :multipart_id FROM ours WHERE uploads.id = ours.upload_id
        """  # noqa: S608
    )

    async def record_multipart(self, multipart_id: str | None) -> None:
        self._ours(await self._database.execute(*self.RECORD_MULTIPART(**self._fence, multipart_id=multipart_id)))

    # One row without a part where there is none: no row at all says that the job is not ours.
    READ_PARTS: Final = Statement(
        f"""
        SELECT part_number, part_length, etag, crc64nvme
          FROM (SELECT upload_id FROM jobs WHERE {FENCE}) AS ours LEFT JOIN transfer_parts USING (upload_id)
         ORDER BY part_number
        """  # noqa: S608
    )

    async def parts(self) -> Sequence[PartRecord]:
        rows = await self._database.fetch(*self.READ_PARTS(**self._fence))
        self._ours(rows)
        return [
            PartRecord(row["part_number"], row["part_length"], row["etag"], unsigned(row["crc64nvme"]))
            for row in rows
            if row["part_number"] is not None
        ]

    RECORD_PART: Final = Statement(
        f"""
        WITH {_OURS}
        INSERT INTO transfer_parts (upload_id, part_number, part_length, etag, crc64nvme)
        SELECT upload_id, :number, :length, :etag, :crc64nvme FROM ours
        ON CONFLICT (upload_id, part_number)
        DO UPDATE SET part_length = excluded.part_length, etag = excluded.etag, crc64nvme = excluded.crc64nvme
        """  # noqa: S608
    )

    async def record_part(self, part: PartRecord) -> None:
        statement = self.RECORD_PART(
            **self._fence, number=part.number, length=part.length, etag=part.etag, crc64nvme=signed(part.crc64nvme)
        )
        self._ours(await self._database.execute(*statement))

    PROGRESS: Final = Statement(f"UPDATE jobs SET bytes_done = :bytes_done WHERE {FENCE}")  # noqa: S608

    async def progress(self, bytes_done: int) -> None:
        # Never skipped for the last byte: it is how a store checks the fence before it publishes an object.
        if time.monotonic() >= self._next_progress or bytes_done >= self._job.upload.offset:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            self._ours(await self._database.execute(*self.PROGRESS(**self._fence, bytes_done=bytes_done)))

    def _ours(self, touched: object) -> None:
        if not touched:
            raise TransferCancelled(upload_id=str(self._job.upload.id))
