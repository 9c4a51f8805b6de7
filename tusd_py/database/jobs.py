"""The queue in PostgreSQL: claim, renew, finish, retry, fail.

Every write is fenced by (worker, attempt): a worker that lost its lease changes nothing any more.
All times are the database's, never a worker's. A statement that touches several jobs locks them in the
order of their ids, and jobs before uploads, so that no two statements can wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.database.statements import IN_RECEIVING, LIVE, STORE_THERE, record_attempt, upload_columns
from tusd_py.database.transfer_state import FENCE, PostgresTransferState
from tusd_py.database.uploads import upload_from_row
from tusd_py.errors import TusdError
from tusd_py.ports import LARGE_BYTES, Job, JobKind, StagingIdentity, StoredObject, TransferState
from tusd_py.protocol.upload import Event, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database

RELEASE_SECONDS: Final = 1.0
"""What is left of a lease that is released: requests that are on their way to the store end meanwhile."""
KEPT_ATTEMPTS: Final = 100
"""Per job. A removal is tried forever, and so is a transfer that kills its worker."""
FEW: Final = 8
"""How many jobs that any worker may do one claim takes beside its own."""
MAX_ERROR_CHARACTERS: Final = 2000
LOSSES_IN_A_ROW: Final = 3
"""After so many lost attempts a job is not released any more: it may be what kills its workers."""

# While an eager job is leased, jobs that would end its multipart upload wait.
_FREE: Final = """
kind <> 'eager' AND NOT EXISTS (
    SELECT 1 FROM jobs eager WHERE eager.upload_id = jobs.upload_id AND eager.kind = 'eager'
                               AND eager.state = 'running' AND eager.due_at > now())
"""
_DUE: Final = f"""
SELECT id, state, worker, attempt, started_at FROM jobs
 WHERE staging_id = $1 AND state IN {LIVE} AND due_at <= now() AND {_FREE} AND {STORE_THERE}
"""  # noqa: S608 -- only constants of this package are inserted, here and below
# Removals of uploads that are staged nowhere: any worker may do them.
_DUE_ANYWHERE: Final = f"""
SELECT id, state, worker, attempt, started_at FROM jobs
 WHERE staging_id IS NULL AND state IN {LIVE} AND due_at <= now() AND {_FREE} AND {STORE_THERE}
 ORDER BY due_at LIMIT least($2, {FEW}) FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608
# Finished uploads come first. An eager job is due if it has a part to send, or if its upload is not being
# received any more: then it is closed. An upload that has all its bytes and waits for the client to
# declare it complete is neither.
_DUE_EAGER: Final = f"""
SELECT jobs.id, jobs.state, jobs.worker, jobs.attempt, jobs.started_at
  FROM jobs JOIN uploads ON uploads.id = jobs.upload_id
 WHERE jobs.staging_id = $1 AND jobs.kind = 'eager' AND jobs.state IN {LIVE} AND jobs.due_at <= now()
   AND {STORE_THERE}
   AND (uploads.upload_offset >= jobs.min_offset AND uploads.upload_offset < uploads.upload_length
        OR uploads.state NOT IN {IN_RECEIVING})
 ORDER BY jobs.due_at LIMIT greatest(0, least($8, $4 - (SELECT count(*) FROM large)))
   FOR NO KEY UPDATE OF jobs SKIP LOCKED
"""  # noqa: S608
CLAIM: Final = f"""
WITH small AS (
    {_DUE} AND length <= $3 ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
), anywhere AS (
    {_DUE_ANYWHERE}
), large AS (
    {_DUE} AND length > $3 ORDER BY due_at LIMIT $4 FOR NO KEY UPDATE SKIP LOCKED
), eager AS (
    {_DUE_EAGER}
), due AS (
    SELECT * FROM small UNION ALL SELECT * FROM anywhere UNION ALL SELECT * FROM large UNION ALL SELECT * FROM eager
), lost AS (
    {record_attempt("'lost'", "due WHERE state = 'running'", worker="worker")}
), forgotten AS (
    DELETE FROM job_attempts USING due
     WHERE due.state = 'running' AND job_id = due.id AND job_attempts.attempt <= due.attempt - {KEPT_ATTEMPTS}
), claimed AS (
    UPDATE jobs SET state = 'running', worker = $5, attempt = jobs.attempt + 1, started_at = now(),
                    due_at = now() + make_interval(secs => $6)
      FROM due WHERE jobs.id = due.id
    RETURNING jobs.id, jobs.upload_id, jobs.kind, jobs.attempt, jobs.failures, jobs.started_at, jobs.min_offset,
              due.state = 'running' AS lost
), moved AS (
    UPDATE uploads SET state = 'transferring', updated_at = now()
      FROM claimed WHERE uploads.id = claimed.upload_id AND claimed.kind = 'transfer'
                     AND uploads.state = ANY ($7::text[])
    RETURNING uploads.id
)
SELECT claimed.id AS job_id, claimed.kind, claimed.attempt, claimed.failures, claimed.started_at, claimed.min_offset,
       claimed.lost,
       claimed.kind = 'remove' AND EXISTS (SELECT 1 FROM jobs past WHERE past.upload_id = upload.id
           AND past.kind <> 'remove' AND past.attempt > 0) AS sent,
       upload.multipart_id, {upload_columns("upload")},
       CASE claimed.kind WHEN 'transfer' THEN moved.id IS NOT NULL
                         WHEN 'eager' THEN upload.state IN {IN_RECEIVING}
                         ELSE upload.state IN ('removing', 'expired') END AS runnable
  FROM claimed JOIN uploads upload ON upload.id = claimed.upload_id
  LEFT JOIN moved ON moved.id = claimed.upload_id
"""  # noqa: S608

_MINE: Final = """
SELECT jobs.id FROM jobs JOIN unnest($1::bigint[], $2::int[]) AS mine (id, attempt) USING (id, attempt)
 WHERE jobs.worker = $3 AND jobs.state = 'running' AND NOT jobs.cancel_requested
 ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
"""
RENEW: Final = f"""
WITH mine AS ({_MINE})
UPDATE jobs SET due_at = now() + make_interval(secs => $4) FROM mine WHERE jobs.id = mine.id
RETURNING jobs.id
"""  # noqa: S608
# The job stays `running` until it is claimed again, because its worker may not have stopped yet. A removal
# that was requested meanwhile waits no longer than the released lease.
_RELEASED: Final = """
released AS (
    UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => $4)) FROM given WHERE jobs.id = given.id
    RETURNING jobs.upload_id, jobs.cancel_requested
), hastened AS (
    UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => $4))
      FROM released WHERE released.cancel_requested AND jobs.upload_id = released.upload_id
                      AND jobs.kind = 'remove' AND jobs.state = 'queued'
)
SELECT id FROM given
"""
RELEASE: Final = f"""
WITH given AS (
    SELECT jobs.id FROM jobs JOIN unnest($1::bigint[], $2::int[]) AS mine (id, attempt) USING (id, attempt)
     WHERE jobs.worker = $3 AND jobs.state = 'running'
     ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
), {_RELEASED}
"""  # noqa: S608
# The jobs of workers that are known to be dead, and those that this worker claimed without ever receiving
# the answer.
RELEASE_LOST: Final = f"""
WITH given AS (
    SELECT id FROM jobs
     WHERE (staging_id = $1 OR staging_id IS NULL) AND worker = ANY ($2::text[]) AND state = 'running'
       AND id <> ALL ($3::bigint[]) AND due_at > now() + make_interval(secs => $4)
       AND (SELECT count(*) FROM job_attempts past WHERE past.job_id = jobs.id AND past.outcome = 'lost'
                AND past.attempt >= jobs.attempt - {LOSSES_IN_A_ROW}) < {LOSSES_IN_A_ROW}
     ORDER BY id FOR NO KEY UPDATE
), {_RELEASED}
"""  # noqa: S608

FINISH_TRANSFERS: Final = f"""
WITH mine AS ({_MINE}), done AS (
    UPDATE jobs SET state = 'succeeded', finished_at = now(), bytes_done = made.length,
                    last_error = NULL, error_code = NULL
      FROM mine JOIN unnest($1::bigint[], $4::text[], $5::text[], $6::bigint[], $8::bytea[], $9::bytea[])
           AS made (id, etag, version_id, length, sha256, md5) USING (id)
     WHERE jobs.id = mine.id
    RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at,
              made.etag, made.version_id, made.sha256, made.md5
), stored AS (
    UPDATE uploads SET state = 'stored', remote_present = true, stored_at = now(), updated_at = now(),
                       etag = done.etag, version_id = done.version_id, sha256 = done.sha256, md5 = done.md5,
                       multipart_id = NULL, error = NULL
      FROM done WHERE uploads.id = done.upload_id AND uploads.state = ANY ($7::text[])
    RETURNING uploads.id, uploads.object_key
), history AS (
    {record_attempt("'succeeded'", "done")}
), forgotten AS (
    DELETE FROM transfer_parts USING stored WHERE transfer_parts.upload_id = stored.id
), told AS (
    INSERT INTO events (upload_id, kind, payload)
    SELECT id, 'upload.stored', jsonb_build_object('key', object_key) FROM stored
)
SELECT done.id FROM done JOIN stored ON stored.id = done.upload_id
"""  # noqa: S608

FINISH_REMOVALS: Final = f"""
WITH mine AS ({_MINE}), done AS (
    UPDATE jobs SET state = 'succeeded', finished_at = now(), last_error = NULL, error_code = NULL
      FROM mine WHERE jobs.id = mine.id
    RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at
), history AS (
    {record_attempt("'succeeded'", "done")}
), removed AS (
    UPDATE uploads SET state = CASE WHEN state = 'removing' THEN 'removed' ELSE state END,
                       error = CASE WHEN state = 'removing' THEN NULL ELSE error END,
                       local_present = false, remote_present = false, multipart_id = NULL, updated_at = now()
      FROM done WHERE uploads.id = done.upload_id AND uploads.state IN ('removing', 'expired')
    RETURNING uploads.id, uploads.state
), forgotten AS (
    DELETE FROM transfer_parts USING removed WHERE transfer_parts.upload_id = removed.id
)
INSERT INTO events (upload_id, kind) SELECT id, 'upload.' || state FROM removed
"""  # noqa: S608

# $8 is 1 if this counts as a failure of the job, and 0 during an outage.
RETRY: Final = f"""
WITH again AS (
    UPDATE jobs SET state = 'retry_wait', failures = failures + $8::int, last_error = $5, error_code = $6,
                    due_at = now() + make_interval(secs => $4)
     WHERE {FENCE}
    RETURNING id, upload_id, kind, attempt, started_at
), told AS (
    UPDATE uploads SET error = $5 FROM again
     WHERE uploads.id = again.upload_id AND again.kind = 'remove' AND uploads.state = 'removing'
), forgotten AS (
    DELETE FROM job_attempts USING again
     WHERE job_id = again.id AND job_attempts.attempt <= again.attempt - {KEPT_ATTEMPTS}
)
{record_attempt("CASE $8::int WHEN 0 THEN 'postponed' ELSE 'retry' END", "again", code="$6", error="$7")}
"""  # noqa: S608

FAIL: Final = f"""
WITH failed AS (
    UPDATE jobs SET state = 'failed', failures = failures + 1, finished_at = now(), last_error = $4, error_code = $5
     WHERE {FENCE}
    RETURNING id, upload_id, kind, attempt, started_at
), moved AS (
    UPDATE uploads SET state = 'transfer_failed', error = $4, updated_at = now()
      FROM failed WHERE uploads.id = failed.upload_id AND failed.kind = 'transfer'
                    AND uploads.state = ANY ($7::text[])
    RETURNING uploads.id
), told AS (
    INSERT INTO events (upload_id, kind, payload)
    SELECT id, 'upload.transfer_failed', jsonb_build_object('code', $5::text) FROM moved
)
{record_attempt("'failed'", "failed", code="$5", error="$6")}
"""  # noqa: S608

# The parts and the multipart upload of the former place are useless in another one.
MOVE: Final = f"""
WITH ours AS (SELECT upload_id FROM jobs WHERE {FENCE} FOR SHARE), forgotten AS (
    DELETE FROM transfer_parts USING ours WHERE transfer_parts.upload_id = ours.upload_id
)
UPDATE uploads SET place_id = $4, multipart_id = NULL FROM ours WHERE uploads.id = ours.upload_id
"""  # noqa: S608

SENDING_PARTS: Final = """
SELECT EXISTS (SELECT 1 FROM jobs WHERE upload_id = $1 AND kind = 'eager' AND state = 'running' AND due_at > now())
    AS sending
"""
DEFER: Final = f"""
UPDATE jobs SET state = 'queued', worker = NULL, min_offset = $4, failures = 0, due_at = now(),
                last_error = NULL, error_code = NULL
 WHERE {FENCE}
"""  # noqa: S608

# A removal that waits for the end of this lease becomes due: its holder has stopped.
# An eager job with nothing left to send has succeeded: its upload is not being received any more.
DISCARD: Final = f"""
WITH closed AS (
    UPDATE jobs SET state = CASE WHEN kind = 'eager' AND NOT cancel_requested THEN 'succeeded' ELSE 'cancelled' END,
                    finished_at = now()
     WHERE id = $1 AND attempt = $2 AND worker = $3 AND state = 'running'
    RETURNING id, upload_id, kind, attempt, state, started_at
), hastened AS (
    UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => $4))
      FROM closed WHERE closed.kind IN ('transfer', 'eager') AND jobs.upload_id = closed.upload_id
                    AND jobs.kind = 'remove' AND jobs.state = 'queued' AND jobs.due_at > now()
)
{record_attempt("state", "closed")}
"""  # noqa: S608

NEXT_DUE: Final = f"""
SELECT extract(epoch FROM least(
    (SELECT min(due_at) FROM jobs
      WHERE staging_id = $1 AND state IN {LIVE} AND ($2 OR length <= $3) AND kind <> 'eager'),
    (SELECT min(due_at) FROM jobs WHERE staging_id IS NULL AND state IN {LIVE})
) - now())::float8 AS seconds
 WHERE {STORE_THERE}
"""  # noqa: S608


class JobQueue:
    """The queue of one worker beside one staging directory. Nothing is claimed during an outage of the store.

    A claim is a lease. Whoever holds one stops working on the job before it ends, and acknowledges
    with one of `finish_…`, `retry`, `fail` or `discard` that it has stopped.
    """

    def __init__(
        self,
        database: Database,
        *,
        directory: StagingIdentity,
        worker: str,
        lease_seconds: float,
        notifier: Notifier | None = None,
    ) -> None:
        """`notifier` wakes the requests that wait for an upload; without one they notice by polling."""
        self._database = database
        self._directory = directory
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._notifier = notifier

    async def claim(self, limit: int, *, large: int | None = None, eager: int = 0) -> list[Job]:
        """Claim due jobs of this staging directory: up to `limit` small ones and up to `large` large ones.

        A few of those that any worker may do come on top. Without `large`, its limit is `limit` as well.
        Slots for large uploads that finished ones do not need, up to `eager` of them, go to uploads
        that are still being received.
        """
        rows = await self._database.fetch(
            CLAIM,
            self._directory.id,
            limit,
            LARGE_BYTES,
            limit if large is None else large,
            self._worker,
            self._lease_seconds,
            sources(Event.TRANSFER),
            eager,
        )
        jobs = [
            Job(
                id=row["job_id"],
                kind=JobKind(row["kind"]),
                attempt=row["attempt"],
                failures=row["failures"],
                started_at=row["started_at"],
                upload=upload_from_row(row),
                multipart_id=row["multipart_id"],
                runnable=row["runnable"],
                min_offset=row["min_offset"],
                sent=row["sent"],
                lost=row["lost"],
            )
            for row in rows
        ]
        self._changed(jobs)
        return jobs

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        """Extend the leases; return the ids that are still ours and may go on."""
        rows = await self._database.fetch(RENEW, *self._fences(jobs), self._lease_seconds)
        return {row["id"] for row in rows}

    async def release(self, jobs: Sequence[Job]) -> None:
        """Let the leases run out in a moment, for somebody else to go on. Counts as no failure."""
        await self._database.execute(RELEASE, *self._fences(jobs), RELEASE_SECONDS)

    async def release_lost(self, dead_workers: Sequence[str], *, held: Sequence[int]) -> int:
        """Do as `release` with all that these workers hold, and this one without knowing it; return how many.

        Only for workers whose process has ended. `held` are the jobs that this worker does know of. A job that
        was lost several times in a row keeps its lease: it may be what kills its workers.
        """
        workers = [self._worker, *dead_workers]
        return len(await self._database.fetch(RELEASE_LOST, self._directory.id, workers, held, RELEASE_SECONDS))

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        """Record objects as stored; return the ids for which the upload really moved."""
        rows = await self._database.fetch(
            FINISH_TRANSFERS,
            *self._fences([job for job, _ in done]),
            [stored.etag for _, stored in done],
            [stored.version_id for _, stored in done],
            [stored.length for _, stored in done],
            sources(Event.STORE),
            [stored.digests.sha256 for _, stored in done],
            [stored.digests.md5 for _, stored in done],
        )
        self._changed([job for job, _ in done])
        return {row["id"] for row in rows}

    async def finish_removals(self, jobs: Sequence[Job]) -> None:
        """Record that nothing is left of these uploads."""
        await self._database.execute(FINISH_REMOVALS, *self._fences(jobs))
        self._changed(jobs)

    async def retry(self, job: Job, error: Exception, *, code: str, delay_seconds: float) -> bool:
        """Put the job back for later; return whether it still was ours and not cancelled."""
        return await self._put_back(job, error, code, delay_seconds=delay_seconds, failures=1)

    async def postpone(self, job: Job, error: Exception, *, code: str) -> bool:
        """Put the job back until the store has returned. Counts as no failure; returns as `retry` does."""
        return await self._put_back(job, error, code, delay_seconds=0, failures=0)

    async def fail(self, job: Job, error: Exception, *, code: str) -> bool:
        """Give the job up; a transfer's upload becomes `transfer_failed`. Returns as `retry` does."""
        arguments = (_sentence(error), code, _text(error), sources(Event.GIVE_UP))
        ours = await self._database.execute(FAIL, *self._fence(job), *arguments) > 0
        self._changed([job])
        return ours

    async def move(self, job: Job, place_id: int) -> bool:
        """Record in which place a transfer goes on, from its beginning. Returns whether the job still was ours."""
        return await self._database.execute(MOVE, *self._fence(job), place_id) > 0

    async def sending_parts(self, job: Job) -> bool:
        """Return whether a worker holds a lease on the eager job of the same upload."""
        row = await self._database.read(SENDING_PARTS, job.upload.id)
        return row is not None and bool(row["sending"])

    async def defer(self, job: Job, *, until_bytes: int) -> bool:
        """Put an eager job aside until `until_bytes` bytes are durable. Returns as `retry` does."""
        return await self._database.execute(DEFER, *self._fence(job), until_bytes) > 0

    async def discard(self, job: Job, *, settle_seconds: float = 0) -> bool:
        """Close a job that has nothing left to do, or was cancelled; return whether it was still ours.

        A removal that waits for its end becomes due after `settle_seconds`: what was under way to the
        store has ended by then.
        """
        return await self._database.execute(DISCARD, *self._fence(job), float(settle_seconds)) > 0

    async def next_due_seconds(self, *, large: bool = True) -> float | None:
        """Return how long until the next job may be claimed, None if there is none or the store is away.

        Without `large`, large ones do not count.
        """
        row = await self._database.read(NEXT_DUE, self._directory.id, large, LARGE_BYTES)
        return None if row is None else row["seconds"]

    def transfer_state(self, job: Job) -> TransferState:
        """Return the durable memory of a transfer, fenced by the job's attempt."""
        return PostgresTransferState(self._database, job, self._worker)

    async def _put_back(self, job: Job, error: Exception, code: str, *, delay_seconds: float, failures: int) -> bool:
        arguments = (float(delay_seconds), _sentence(error), code, _text(error), failures)
        ours = await self._database.execute(RETRY, *self._fence(job), *arguments) > 0
        self._changed([job])
        return ours

    def _changed(self, jobs: Sequence[Job]) -> None:
        # Nobody waits for what an eager job changes.
        changed = [job.upload.id for job in jobs if job.kind is not JobKind.EAGER]
        if changed and self._notifier is not None:
            self._notifier.notify_changed(*changed)

    def _fence(self, job: Job) -> tuple[int, int, str]:
        return job.id, job.attempt, self._worker

    def _fences(self, jobs: Sequence[Job]) -> tuple[list[int], list[int], str]:
        return [job.id for job in jobs], [job.attempt for job in jobs], self._worker


def _sentence(error: Exception) -> str:
    """Return what the upload's owner may read: no path and no address, but the store's error code."""
    if not isinstance(error, TusdError):
        return TusdError().detail
    fact = error.context.get("code") or error.context.get("errno")
    return f"{error.detail} ({fact})" if isinstance(fact, str) else error.detail


def _text(error: Exception) -> str:
    """Return the whole error, for operators."""
    # PostgreSQL's text cannot hold NUL, and a store's answer may contain one.
    return f"{type(error).__name__}: {error}".replace("\0", "")[:MAX_ERROR_CHARACTERS]
