"""The queue in PostgreSQL: claim, renew, finish, retry, fail. Each statement above its method.

Every write is fenced by (worker, attempt): a worker that lost its lease changes nothing any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.database.rows import signed, unsigned, upload_columns, upload_from_row
from tusd_py.errors import TransferCancelled
from tusd_py.ports import Job, JobQueue, PartRecord, StoredObject, TransferLedger
from tusd_py.protocol.upload import Event, sources

if TYPE_CHECKING:
    from uuid import UUID

    from tusd_py.database.pool import Database

PROGRESS_SECONDS: Final = 1.0
"""Progress is for people: one write a second is enough."""
MAX_ERROR_CHARACTERS: Final = 2000

CLAIM: Final = f"""
WITH due AS (
    SELECT id, state, worker, attempt, started_at FROM jobs
     WHERE node = $1 AND state IN ('queued', 'running', 'retry_wait') AND due_at <= now()
     ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), lost AS (
    INSERT INTO job_attempts (job_id, attempt, worker, outcome, started_at)
    SELECT id, attempt, worker, 'lost', started_at FROM due WHERE state = 'running'
    ON CONFLICT DO NOTHING
), claimed AS (
    UPDATE jobs SET state = 'running', worker = $3, attempt = jobs.attempt + 1, started_at = now(),
                    due_at = now() + make_interval(secs => $4)
      FROM due WHERE jobs.id = due.id
    RETURNING jobs.id, jobs.upload_id, jobs.kind, jobs.attempt, jobs.failures, jobs.started_at
), moved AS (
    UPDATE uploads SET state = 'transferring', updated_at = now()
      FROM claimed WHERE uploads.id = claimed.upload_id AND claimed.kind = 'transfer'
                     AND uploads.state = ANY ($5::text[])
    RETURNING uploads.id
)
SELECT claimed.id AS job_id, claimed.kind, claimed.attempt, claimed.failures, claimed.started_at,
       upload.multipart_id, {upload_columns("upload")},
       CASE claimed.kind WHEN 'transfer' THEN moved.id IS NOT NULL
                         ELSE upload.state IN ('removing', 'expired') END AS runnable
  FROM claimed JOIN uploads upload ON upload.id = claimed.upload_id
  LEFT JOIN moved ON moved.id = claimed.upload_id
"""  # noqa: S608 -- only constants of this package are inserted, here and below

RENEW: Final = """
UPDATE jobs SET due_at = now() + make_interval(secs => $4)
  FROM unnest($1::bigint[], $2::int[]) AS mine (id, attempt)
 WHERE jobs.id = mine.id AND jobs.attempt = mine.attempt AND jobs.worker = $3 AND jobs.state = 'running'
RETURNING jobs.id
"""

FINISH_TRANSFERS: Final = """
WITH done AS (
    UPDATE jobs SET state = 'succeeded', finished_at = now(), bytes_done = mine.length,
                    last_error = NULL, error_code = NULL
      FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::bigint[])
           AS mine (id, attempt, etag, version_id, length)
     WHERE jobs.id = mine.id AND jobs.attempt = mine.attempt AND jobs.worker = $6 AND jobs.state = 'running'
    RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at, mine.etag, mine.version_id
), stored AS (
    UPDATE uploads SET state = 'stored', remote_present = true, stored_at = now(), updated_at = now(),
                       etag = done.etag, version_id = done.version_id, multipart_id = NULL, error = NULL
      FROM done WHERE uploads.id = done.upload_id AND uploads.state = ANY ($7::text[])
    RETURNING uploads.id, uploads.object_key
), history AS (
    INSERT INTO job_attempts (job_id, attempt, worker, outcome, started_at)
    SELECT id, attempt, $6, 'succeeded', started_at FROM done
), forgotten AS (
    DELETE FROM transfer_parts USING stored WHERE transfer_parts.upload_id = stored.id
), told AS (
    INSERT INTO events (upload_id, kind, payload)
    SELECT id, 'upload.stored', jsonb_build_object('key', object_key) FROM stored
)
SELECT done.id FROM done JOIN stored ON stored.id = done.upload_id
"""

FINISH_REMOVALS: Final = """
WITH done AS (
    UPDATE jobs SET state = 'succeeded', finished_at = now()
      FROM unnest($1::bigint[], $2::int[]) AS mine (id, attempt)
     WHERE jobs.id = mine.id AND jobs.attempt = mine.attempt AND jobs.worker = $3 AND jobs.state = 'running'
    RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at
), history AS (
    INSERT INTO job_attempts (job_id, attempt, worker, outcome, started_at)
    SELECT id, attempt, $3, 'succeeded', started_at FROM done
), removed AS (
    UPDATE uploads SET state = CASE WHEN state = 'removing' THEN 'removed' ELSE state END,
                       local_present = false, remote_present = false, multipart_id = NULL, updated_at = now()
      FROM done WHERE uploads.id = done.upload_id AND uploads.state IN ('removing', 'expired')
    RETURNING uploads.id, uploads.state
), unlinked AS (
    DELETE FROM upload_parts USING removed WHERE upload_parts.final_id = removed.id
)
INSERT INTO events (upload_id, kind) SELECT id, 'upload.' || state FROM removed
"""

RETRY: Final = """
WITH again AS (
    UPDATE jobs SET state = 'retry_wait', failures = failures + 1, last_error = $5, error_code = $6,
                    due_at = now() + make_interval(secs => $4)
     WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running'
    RETURNING id, attempt, started_at
)
INSERT INTO job_attempts (job_id, attempt, worker, outcome, error_code, error, started_at)
SELECT id, attempt, $3, 'retry', $6, $5, started_at FROM again
"""

FAIL: Final = """
WITH failed AS (
    UPDATE jobs SET state = 'failed', failures = failures + 1, finished_at = now(), last_error = $4, error_code = $5
     WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running'
    RETURNING id, upload_id, kind, attempt, started_at
), history AS (
    INSERT INTO job_attempts (job_id, attempt, worker, outcome, error_code, error, started_at)
    SELECT id, attempt, $3, 'failed', $5, $4, started_at FROM failed
), moved AS (
    UPDATE uploads SET state = 'transfer_failed', error = $4, updated_at = now()
      FROM failed WHERE uploads.id = failed.upload_id AND failed.kind = 'transfer'
                    AND uploads.state = ANY ($6::text[])
    RETURNING uploads.id
)
INSERT INTO events (upload_id, kind, payload)
SELECT id, 'upload.transfer_failed', jsonb_build_object('code', $5::text) FROM moved
"""

DISCARD: Final = """
UPDATE jobs SET state = 'cancelled', finished_at = now()
 WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running'
"""

NEXT_DUE: Final = """
SELECT extract(epoch FROM min(due_at) - now())::float8 AS seconds FROM jobs
 WHERE node = $1 AND state IN ('queued', 'running', 'retry_wait')
"""

_OURS: Final = """
EXISTS (SELECT 1 FROM jobs WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running')
"""
RECORD_MULTIPART: Final = f"UPDATE uploads SET multipart_id = $5 WHERE id = $4 AND {_OURS}"  # noqa: S608
FORGET_PARTS: Final = "DELETE FROM transfer_parts WHERE upload_id = $1"
READ_MULTIPART: Final = f"SELECT multipart_id FROM uploads WHERE id = $4 AND {_OURS}"  # noqa: S608
READ_PARTS: Final = """
SELECT part_number, part_length, etag, crc64nvme FROM transfer_parts WHERE upload_id = $1 ORDER BY part_number
"""
RECORD_PART: Final = f"""
INSERT INTO transfer_parts (upload_id, part_number, part_length, etag, crc64nvme)
SELECT $4, $5, $6, $7, $8 WHERE {_OURS}
ON CONFLICT (upload_id, part_number)
DO UPDATE SET part_length = excluded.part_length, etag = excluded.etag, crc64nvme = excluded.crc64nvme
"""  # noqa: S608
PROGRESS: Final = """
UPDATE jobs SET bytes_done = $4 WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running'
"""


class PostgresJobs(JobQueue):
    """The queue of one worker on one node."""

    def __init__(self, database: Database, *, node: str, worker: str, lease_seconds: float) -> None:
        self._database = database
        self._node = node
        self._worker = worker
        self._lease_seconds = lease_seconds

    async def claim(self, limit: int) -> list[Job]:
        rows = await self._database.fetch(
            CLAIM, self._node, limit, self._worker, self._lease_seconds, sources(Event.TRANSFER)
        )
        return [
            Job(
                id=row["job_id"],
                kind=row["kind"],
                attempt=row["attempt"],
                failures=row["failures"],
                started_at=row["started_at"],
                upload=upload_from_row(row),
                multipart_id=row["multipart_id"],
                runnable=row["runnable"],
            )
            for row in rows
        ]

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        rows = await self._database.fetch(RENEW, *_fences(jobs), self._worker, self._lease_seconds)
        return {row["id"] for row in rows}

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        rows = await self._database.fetch(
            FINISH_TRANSFERS,
            *_fences([job for job, _ in done]),
            [stored.etag for _, stored in done],
            [stored.version_id for _, stored in done],
            [stored.length for _, stored in done],
            self._worker,
            sources(Event.STORE),
        )
        return {row["id"] for row in rows}

    async def finish_removals(self, jobs: Sequence[Job]) -> None:
        await self._database.execute(FINISH_REMOVALS, *_fences(jobs), self._worker)

    async def retry(self, job: Job, error: Exception, *, code: str, delay_seconds: float) -> None:
        await self._database.execute(RETRY, job.id, job.attempt, self._worker, delay_seconds, _text(error), code)

    async def fail(self, job: Job, error: Exception, *, code: str) -> None:
        await self._database.execute(
            FAIL, job.id, job.attempt, self._worker, _text(error), code, sources(Event.GIVE_UP)
        )

    async def discard(self, job: Job) -> None:
        await self._database.execute(DISCARD, job.id, job.attempt, self._worker)

    async def next_due_seconds(self) -> float | None:
        row = await self._database.read(NEXT_DUE, self._node)
        return None if row is None else row["seconds"]

    def ledger(self, job: Job) -> TransferLedger:
        return PostgresLedger(self._database, job, self._worker)


class PostgresLedger(TransferLedger):
    """What one transfer has sent so far, readable and writable only while the job is ours."""

    def __init__(self, database: Database, job: Job, worker: str) -> None:
        self._database = database
        self._job = job
        self._fence = (job.id, job.attempt, worker)
        self._next_progress = 0.0

    async def multipart_id(self) -> str | None:
        row = await self._database.fetchrow(READ_MULTIPART, *self._fence, self._upload_id)
        if row is None:
            raise TransferCancelled(upload_id=str(self._upload_id))
        value: str | None = row["multipart_id"]
        return value

    async def record_multipart(self, multipart_id: str | None) -> None:
        self._ours(await self._database.execute(RECORD_MULTIPART, *self._fence, self._upload_id, multipart_id))
        # Parts belong to one multipart upload: a new id, or none, makes the old ones meaningless.
        await self._database.execute(FORGET_PARTS, self._upload_id)

    async def parts(self) -> Sequence[PartRecord]:
        rows = await self._database.fetch(READ_PARTS, self._upload_id)
        return [
            PartRecord(row["part_number"], row["part_length"], row["etag"], unsigned(row["crc64nvme"])) for row in rows
        ]

    async def record_part(self, part: PartRecord) -> None:
        self._ours(
            await self._database.execute(
                RECORD_PART, *self._fence, self._upload_id, part.number, part.length, part.etag, signed(part.crc64nvme)
            )
        )

    async def progress(self, bytes_done: int) -> None:
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            self._ours(await self._database.execute(PROGRESS, *self._fence, bytes_done))

    @property
    def _upload_id(self) -> UUID:
        return self._job.upload.id

    def _ours(self, touched: int) -> None:
        if touched == 0:
            raise TransferCancelled(upload_id=str(self._upload_id))


def _fences(jobs: Sequence[Job]) -> tuple[list[int], list[int]]:
    return [job.id for job in jobs], [job.attempt for job in jobs]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]

