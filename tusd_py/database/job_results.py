"""What the holder of a lease records about its job: how an attempt ended, or where it goes on.

Every write is fenced by (worker, attempt), as those of the queue are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from tusd_py.database.pool import Statement
from tusd_py.database.statements import NEXT_EVENT, our_jobs, record_attempt, record_events, upload_columns
from tusd_py.database.transfer_state import FENCE, PostgresTransferState
from tusd_py.errors import TusdError
from tusd_py.ports import Job, JobKind, StoredObject, TransferState
from tusd_py.protocol.upload import Event, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database

KEPT_ATTEMPTS: Final = 100
"""Per job. A removal is tried forever, and so is a transfer that kills its worker."""
MAX_ERROR_CHARACTERS: Final = 2000


# An outage uses up no retry: its `failures` are 0 instead of 1.
_RETRY_OUTCOME: Final = "CASE :failures::int WHEN 0 THEN 'postponed' ELSE 'retry' END"


class JobResults:
    """How the jobs of one worker end."""

    def __init__(self, database: Database, *, worker: str, notifier: Notifier | None = None) -> None:
        """`notifier` wakes the requests that wait for an upload; without one they notice by polling."""
        self._database = database
        self._worker = worker
        self._notifier = notifier

    FINISH_TRANSFERS: Final = Statement(
        f"""
        WITH mine AS ({our_jobs()}), done AS (
            UPDATE jobs SET state = 'succeeded', finished_at = now(), bytes_done = made.length,
                            last_error = NULL, error_code = NULL
              FROM mine JOIN unnest(:job_ids::bigint[], :etags::text[], :version_ids::text[], :lengths::bigint[],
                                    :sha256s::bytea[], :md5s::bytea[])
                   AS made (id, etag, version_id, length, sha256, md5) USING (id)
             WHERE jobs.id = mine.id
            RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at,
                      made.etag, made.version_id, made.sha256, made.md5
        ), stored AS (
            UPDATE uploads SET state = 'stored', remote_present = true, stored_at = now(), updated_at = now(),
                               etag = done.etag, version_id = done.version_id, sha256 = done.sha256, md5 = done.md5,
                               multipart_id = NULL, error = NULL, {NEXT_EVENT}
              FROM done WHERE uploads.id = done.upload_id AND uploads.state = ANY (:states::text[])
            RETURNING {upload_columns("uploads")}, uploads.event_sequence
        ), history AS (
            {record_attempt("'succeeded'", "done")}
        ), forgotten AS (
            DELETE FROM transfer_parts USING stored WHERE transfer_parts.upload_id = stored.id
        ), {record_events("stored", "'upload.stored'")}
        SELECT done.id FROM done JOIN stored ON stored.id = done.upload_id
        """  # noqa: S608
    )

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        """Record objects as stored; return the ids for which the upload really moved."""
        jobs = [job for job, _ in done]
        statement = self.FINISH_TRANSFERS(
            **self._fences(jobs),
            etags=[stored.etag for _, stored in done],
            version_ids=[stored.version_id for _, stored in done],
            lengths=[stored.length for _, stored in done],
            sha256s=[stored.digests.sha256 for _, stored in done],
            md5s=[stored.digests.md5 for _, stored in done],
            states=sources(Event.STORE),
        )
        return await self._end_attempts(jobs, statement)

    FINISH_REMOVALS: Final = Statement(
        f"""
        WITH mine AS ({our_jobs()}), done AS (
            UPDATE jobs SET state = 'succeeded', finished_at = now(), last_error = NULL, error_code = NULL
              FROM mine WHERE jobs.id = mine.id
            RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.started_at
        ), history AS (
            {record_attempt("'succeeded'", "done")}
        ), removed AS (
            UPDATE uploads SET state = CASE WHEN state = 'removing' THEN 'removed' ELSE state END,
                               error = CASE WHEN state = 'removing' THEN NULL ELSE error END,
                               local_present = false, remote_present = false, multipart_id = NULL,
                               updated_at = now(), {NEXT_EVENT}
              FROM done WHERE uploads.id = done.upload_id AND uploads.state IN ('removing', 'expired')
            RETURNING {upload_columns("uploads")}, uploads.event_sequence
        ), forgotten AS (
            DELETE FROM transfer_parts USING removed WHERE transfer_parts.upload_id = removed.id
        ), {record_events("removed", "'upload.removed'")}
        SELECT id FROM done
        """  # noqa: S608
    )

    async def finish_removals(self, jobs: Sequence[Job]) -> None:
        """Record that nothing is left of these uploads."""
        await self._end_attempts(jobs, self.FINISH_REMOVALS(**self._fences(jobs)))

    RETRY: Final = Statement(
        f"""
        WITH again AS (
            UPDATE jobs SET state = 'retry_wait', failures = failures + :failures::int,
                            last_error = :sentence, error_code = :code,
                            due_at = now() + make_interval(secs => :delay_seconds)
             WHERE {FENCE}
            RETURNING id, upload_id, kind, attempt, started_at
        ), shown AS (
            UPDATE uploads SET error = :sentence FROM again
             WHERE uploads.id = again.upload_id AND again.kind = 'remove' AND uploads.state = 'removing'
        ), forgotten AS (
            DELETE FROM job_attempts USING again
             WHERE job_id = again.id AND job_attempts.attempt <= again.attempt - {KEPT_ATTEMPTS}
        )
        {record_attempt(_RETRY_OUTCOME, "again", code=":code", error=":error")}
        """  # noqa: S608
    )

    async def retry(self, job: Job, error: Exception, *, code: str, delay_seconds: float) -> bool:
        """Put the job back for later; return whether it still was ours and not cancelled."""
        return await self._put_back(job, error, code, delay_seconds=delay_seconds, failures=1)

    async def postpone(self, job: Job, error: Exception, *, code: str) -> bool:
        """Put the job back until the store has returned. Counts as no failure; returns as `retry` does."""
        return await self._put_back(job, error, code, delay_seconds=0, failures=0)

    async def _put_back(self, job: Job, error: Exception, code: str, *, delay_seconds: float, failures: int) -> bool:
        statement = self.RETRY(
            **self._fence(job),
            delay_seconds=float(delay_seconds),
            failures=failures,
            code=code,
            sentence=_sentence(error),
            error=_text(error),
        )
        return bool(await self._end_attempts([job], statement))

    FAIL: Final = Statement(
        f"""
        WITH failed AS (
            UPDATE jobs SET state = 'failed', failures = failures + 1, finished_at = now(),
                            last_error = :sentence, error_code = :code
             WHERE {FENCE}
            RETURNING id, upload_id, kind, attempt, started_at
        ), moved AS (
            UPDATE uploads SET state = 'transfer_failed', error = :sentence, updated_at = now(), {NEXT_EVENT}
              FROM failed WHERE uploads.id = failed.upload_id AND failed.kind = 'transfer'
                            AND uploads.state = ANY (:states::text[])
            RETURNING {upload_columns("uploads")}, uploads.event_sequence
        ), {record_events("moved", "'upload.transfer_failed'", payload="jsonb_build_object('code', :code::text)")}
        {record_attempt("'failed'", "failed", code=":code", error=":error")}
        """  # noqa: S608
    )

    async def fail(self, job: Job, error: Exception, *, code: str) -> bool:
        """Give the job up; a transfer's upload becomes `transfer_failed`. Returns as `retry` does."""
        statement = self.FAIL(
            **self._fence(job),
            code=code,
            sentence=_sentence(error),
            error=_text(error),
            states=sources(Event.GIVE_UP),
        )
        return bool(await self._end_attempts([job], statement))

    # A removal that waits for the end of this lease becomes due: its holder has stopped.
    # An eager job with nothing left to send has succeeded: its upload is not being received any more.
    DISCARD: Final = Statement(
        f"""
        WITH closed AS (
            UPDATE jobs SET finished_at = now(),
                            state = CASE WHEN kind = 'eager' AND NOT cancel_requested THEN 'succeeded'
                                         ELSE 'cancelled' END
             WHERE id = :job_id AND attempt = :attempt AND worker = :worker AND state = 'running'
            RETURNING id, upload_id, kind, attempt, state, started_at
        ), removals AS (
            UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => :settle_seconds))
              FROM closed WHERE closed.kind IN ('transfer', 'eager') AND jobs.upload_id = closed.upload_id
                            AND jobs.kind = 'remove' AND jobs.state = 'queued' AND jobs.due_at > now()
        )
        {record_attempt("state", "closed")}
        """  # noqa: S608
    )

    async def discard(self, job: Job, *, settle_seconds: float = 0) -> bool:
        """Close a job that has nothing left to do, or was cancelled; return whether it was still ours.

        A removal that waits for its end becomes due after `settle_seconds`: what was under way to the
        store has ended by then.
        """
        statement = self.DISCARD(**self._fence(job), settle_seconds=float(settle_seconds))
        return bool(await self._end_attempts([job], statement))

    DEFER: Final = Statement(
        f"""
        UPDATE jobs SET state = 'queued', worker = NULL, min_offset = :until_bytes, failures = 0, due_at = now(),
                        last_error = NULL, error_code = NULL
         WHERE {FENCE}
        """  # noqa: S608
    )

    async def defer(self, job: Job, *, until_bytes: int) -> bool:
        """Put an eager job aside until `until_bytes` bytes are durable. Returns as `retry` does."""
        return await self._database.execute(*self.DEFER(**self._fence(job), until_bytes=until_bytes)) > 0

    # The parts and the multipart upload of the former place are useless in another one.
    MOVE: Final = Statement(
        f"""
        WITH ours AS (SELECT upload_id FROM jobs WHERE {FENCE} FOR SHARE), forgotten AS (
            DELETE FROM transfer_parts USING ours WHERE transfer_parts.upload_id = ours.upload_id
        )
        UPDATE uploads SET place_id = :place_id, multipart_id = NULL FROM ours WHERE uploads.id = ours.upload_id
        """  # noqa: S608
    )

    async def move(self, job: Job, place_id: int) -> bool:
        """Record in which place a transfer goes on, from its beginning. Returns whether the job still was ours."""
        return await self._database.execute(*self.MOVE(**self._fence(job), place_id=place_id)) > 0

    def transfer_state(self, job: Job) -> TransferState:
        """Return the durable memory of a transfer, fenced by the job's attempt."""
        return PostgresTransferState(self._database, job, self._worker)

    async def _end_attempts(self, jobs: Sequence[Job], statement: tuple[Any, ...]) -> set[int]:
        """Run a statement that ends an attempt of these jobs; return the ids of those that were still ours."""
        rows = await self._database.fetch(*statement)
        self._changed(jobs)
        return {row["id"] for row in rows}

    def _changed(self, jobs: Sequence[Job]) -> None:
        # Nobody waits for what an eager job changes.
        changed = [job.upload.id for job in jobs if job.kind is not JobKind.EAGER]
        if changed and self._notifier is not None:
            self._notifier.notify_changed(*changed)

    def _fence(self, job: Job) -> dict[str, Any]:
        return {"job_id": job.id, "attempt": job.attempt, "worker": self._worker}

    def _fences(self, jobs: Sequence[Job]) -> dict[str, Any]:
        return {"job_ids": [job.id for job in jobs], "attempts": [job.attempt for job in jobs], "worker": self._worker}


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
