"""The queue in PostgreSQL: claim jobs, keep their leases, give leases back.

Every write is fenced by (worker, attempt): a worker that lost its lease changes nothing any more.
All times are the database's, never a worker's. A statement that touches several jobs locks them in the
order of their ids, and jobs before uploads, so that no two statements can wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tusd_py.database.job_results import KEPT_ATTEMPTS, JobResults
from tusd_py.database.pool import Statement
from tusd_py.database.rows import upload_from_row
from tusd_py.database.statements import (
    IN_RECEIVING,
    LIVE,
    NO_DELIVERY,
    STORE_THERE,
    our_jobs,
    record_attempt,
    record_events,
    upload_columns,
)
from tusd_py.ports import LARGE_BYTES, Job, JobKind, StagingIdentity
from tusd_py.protocol.upload import Event, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database

RELEASE_SECONDS: Final = 1.0
"""What is left of a lease that is released: requests that are on their way to the store end meanwhile."""
MOST_FROM_ANYWHERE: Final = 8
"""How many jobs that any worker may do one claim takes beside its own."""
LOSSES_IN_A_ROW: Final = 3
"""After so many lost attempts a job is not released any more: it may be what kills its workers."""

# While an eager job is leased, jobs that would end its multipart upload wait.
_FREE: Final = """
kind NOT IN ('eager', 'deliver', 'finish') AND NOT EXISTS (
    SELECT 1 FROM jobs eager WHERE eager.upload_id = jobs.upload_id AND eager.kind = 'eager'
                               AND eager.state = 'running' AND eager.due_at > now())
"""
_DUE: Final = f"""
SELECT id, state, worker, attempt, started_at FROM jobs
 WHERE staging_id = :staging_id AND state IN {LIVE} AND due_at <= now() AND {_FREE} AND {STORE_THERE}
"""  # noqa: S608 -- only constants of this package are inserted, here and below
# Removals of uploads that are staged nowhere: any worker may do them.
_DUE_ANYWHERE: Final = f"""
SELECT id, state, worker, attempt, started_at FROM jobs
 WHERE staging_id IS NULL AND state IN {LIVE} AND due_at <= now() AND {_FREE} AND {STORE_THERE}
 ORDER BY due_at LIMIT least(:limit, {MOST_FROM_ANYWHERE}) FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608
# Finished uploads come first. An eager job is due if it has a part to send, or if its upload is not being
# received any more: then it is closed. An upload that has all its bytes and waits for the client to
# declare it complete is neither.
_DUE_EAGER: Final = f"""
SELECT jobs.id, jobs.state, jobs.worker, jobs.attempt, jobs.started_at
  FROM jobs JOIN uploads ON uploads.id = jobs.upload_id
 WHERE jobs.staging_id = :staging_id AND jobs.kind = 'eager' AND jobs.state IN {LIVE} AND jobs.due_at <= now()
   AND {STORE_THERE}
   AND (uploads.upload_offset >= jobs.min_offset AND uploads.upload_offset < uploads.upload_length
        OR uploads.state NOT IN {IN_RECEIVING})
 ORDER BY jobs.due_at LIMIT greatest(0, least(:eager_limit, :large_limit - (SELECT count(*) FROM large)))
   FOR NO KEY UPDATE OF jobs SKIP LOCKED
"""  # noqa: S608
# They need no store, and are claimed during an outage as well.
_DUE_FINISH: Final = f"""
SELECT id, state, worker, attempt, started_at FROM jobs
 WHERE staging_id = :staging_id AND kind = 'finish' AND state IN {LIVE} AND due_at <= now()
 ORDER BY due_at LIMIT :finish_limit FOR NO KEY UPDATE SKIP LOCKED
"""  # noqa: S608
# The job stays `running` until it is claimed again, because its worker may not have stopped yet. A removal
# that was requested meanwhile waits no longer than the released lease.
_RELEASED: Final = """
released AS (
    UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => :seconds)) FROM given WHERE jobs.id = given.id
    RETURNING jobs.upload_id, jobs.cancel_requested
), removals AS (
    UPDATE jobs SET due_at = least(due_at, now() + make_interval(secs => :seconds))
      FROM released WHERE released.cancel_requested AND jobs.upload_id = released.upload_id
                      AND jobs.kind = 'remove' AND jobs.state = 'queued'
)
SELECT id FROM given
"""


class JobQueue(JobResults):
    """The queue of one worker beside one staging directory. Nothing is claimed during an outage of the store.

    A claim is a lease. Whoever holds one stops working on the job before it ends, and acknowledges
    with one of the methods of `JobResults` that it has stopped.
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
        super().__init__(database, worker=worker, notifier=notifier)
        self._directory = directory
        self._lease_seconds = lease_seconds

    CLAIM: Final = Statement(
        f"""
        WITH small AS (
            {_DUE} AND length <= :large_bytes ORDER BY due_at LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
        ), anywhere AS (
            {_DUE_ANYWHERE}
        ), large AS (
            {_DUE} AND length > :large_bytes ORDER BY due_at LIMIT :large_limit FOR NO KEY UPDATE SKIP LOCKED
        ), eager AS (
            {_DUE_EAGER}
        ), finish AS (
            {_DUE_FINISH}
        ), due AS (
            SELECT * FROM small UNION ALL SELECT * FROM anywhere
             UNION ALL SELECT * FROM large UNION ALL SELECT * FROM eager
             UNION ALL SELECT * FROM finish
        ), lost AS (
            {record_attempt("'lost'", "due WHERE state = 'running'", worker="worker")}
        ), forgotten AS (
            DELETE FROM job_attempts USING due
             WHERE due.state = 'running' AND job_id = due.id AND job_attempts.attempt <= due.attempt - {KEPT_ATTEMPTS}
        ), claimed AS (
            UPDATE jobs SET state = 'running', worker = :worker, attempt = jobs.attempt + 1, started_at = now(),
                            due_at = now() + make_interval(secs => :lease_seconds)
              FROM due WHERE jobs.id = due.id
            RETURNING jobs.id, jobs.upload_id, jobs.kind, jobs.attempt, jobs.failures, jobs.started_at, jobs.min_offset,
                      due.state = 'running' AS lost
        ), moved AS (
            UPDATE uploads SET state = 'transferring', updated_at = now(),
                               event_sequence = uploads.event_sequence + (former.state <> 'transferring')::int
              FROM claimed JOIN uploads former ON former.id = claimed.upload_id
             WHERE uploads.id = former.id AND claimed.kind = 'transfer'
               AND uploads.state = ANY (:transfer_states::text[])
            RETURNING {upload_columns("uploads")}, uploads.event_sequence, former.state AS former_state
        ), {record_events("moved WHERE former_state <> 'transferring'", "'upload.transferring'")}
        SELECT claimed.id AS job_id, claimed.kind, claimed.attempt, claimed.failures, claimed.started_at,
               claimed.min_offset, claimed.lost,
               claimed.kind = 'remove' AND EXISTS (SELECT 1 FROM jobs past WHERE past.upload_id = upload.id
                   AND past.kind IN ('transfer', 'eager') AND past.attempt > 0) AS sent,
               upload.multipart_id, {upload_columns("upload")},
               CASE claimed.kind WHEN 'transfer' THEN moved.id IS NOT NULL
                                 WHEN 'eager' THEN upload.state IN {IN_RECEIVING}
                                 WHEN 'finish' THEN upload.finishing AND upload.state IN {IN_RECEIVING}
                                 ELSE upload.state IN ('removing', 'expired') END AS runnable
          FROM claimed JOIN uploads upload ON upload.id = claimed.upload_id
          LEFT JOIN moved ON moved.id = claimed.upload_id
        """  # noqa: S608
    )

    async def claim(self, limit: int, *, large: int | None = None, eager: int = 0, finish: int = 0) -> list[Job]:
        """Claim due jobs of this staging directory: up to `limit` small ones and up to `large` large ones.

        A few of those that any worker may do come on top. Without `large`, its limit is `limit` as well.
        Slots for large uploads that finished ones do not need, up to `eager` of them, go to uploads
        that are still being received. `finish` is the limit of finish jobs.
        """
        rows = await self._database.fetch(
            *self.CLAIM(
                staging_id=self._directory.id,
                worker=self._worker,
                lease_seconds=self._lease_seconds,
                limit=limit,
                large_limit=limit if large is None else large,
                large_bytes=LARGE_BYTES,
                eager_limit=eager,
                finish_limit=finish,
                transfer_states=sources(Event.TRANSFER),
            )
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

    NEXT_DUE: Final = Statement(
        f"""
        SELECT extract(epoch FROM least(
            (SELECT min(due_at) FROM jobs
              WHERE staging_id = :staging_id AND state IN {LIVE} AND (:large OR length <= :large_bytes)
                AND kind NOT IN ('eager', 'finish') AND {NO_DELIVERY} AND {STORE_THERE}),
            (SELECT min(due_at) FROM jobs
              WHERE staging_id IS NULL AND state IN {LIVE} AND {NO_DELIVERY} AND {STORE_THERE}),
            (SELECT min(due_at) FROM jobs
              WHERE :finish AND staging_id = :staging_id AND state IN {LIVE} AND kind = 'finish')
        ) - now())::float8 AS seconds
        """  # noqa: S608
    )

    async def next_due_seconds(self, *, large: bool = True, finish: bool = True) -> float | None:
        """Return how long until the next job may be claimed, None if there is none or the store is away.

        Without `large`, large ones do not count; without `finish`, finish jobs.
        """
        statement = self.NEXT_DUE(staging_id=self._directory.id, large=large, large_bytes=LARGE_BYTES, finish=finish)
        row = await self._database.read(*statement)
        return None if row is None else row["seconds"]

    RENEW: Final = Statement(
        f"""
        WITH mine AS ({our_jobs()})
        UPDATE jobs SET due_at = now() + make_interval(secs => :lease_seconds) FROM mine WHERE jobs.id = mine.id
        RETURNING jobs.id
        """  # noqa: S608
    )

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        """Extend the leases; return the ids that are still ours and may go on."""
        rows = await self._database.fetch(*self.RENEW(**self._fences(jobs), lease_seconds=self._lease_seconds))
        return {row["id"] for row in rows}

    RELEASE: Final = Statement(
        f"""
        WITH given AS (
            SELECT jobs.id
              FROM jobs JOIN unnest(:job_ids::bigint[], :attempts::int[]) AS held (id, attempt) USING (id, attempt)
             WHERE jobs.worker = :worker AND jobs.state = 'running'
             ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
        ), {_RELEASED}
        """  # noqa: S608
    )

    async def release(self, jobs: Sequence[Job]) -> None:
        """Let the leases run out in a moment, for somebody else to go on. Counts as no failure."""
        await self._database.execute(*self.RELEASE(**self._fences(jobs), seconds=RELEASE_SECONDS))

    # The jobs of workers that are known to be dead, and those that this worker claimed without ever receiving
    # the answer.
    RELEASE_LOST: Final = Statement(
        f"""
        WITH given AS (
            SELECT id FROM jobs
             WHERE (staging_id = :staging_id OR staging_id IS NULL) AND worker = ANY (:workers::text[])
               AND state = 'running' AND {NO_DELIVERY}
               AND id <> ALL (:held::bigint[]) AND due_at > now() + make_interval(secs => :seconds)
               AND (SELECT count(*) FROM job_attempts past WHERE past.job_id = jobs.id AND past.outcome = 'lost'
                        AND past.attempt >= jobs.attempt - {LOSSES_IN_A_ROW}) < {LOSSES_IN_A_ROW}
             ORDER BY id FOR NO KEY UPDATE
        ), {_RELEASED}
        """  # noqa: S608
    )

    async def release_lost(self, dead_workers: Sequence[str], *, held: Sequence[int]) -> int:
        """Do as `release` with all that these workers hold, and this one without knowing it; return how many.

        Only for workers whose process has ended. `held` are the jobs that this worker does know of. A job that
        was lost several times in a row keeps its lease: it may be what kills its workers.
        """
        statement = self.RELEASE_LOST(
            staging_id=self._directory.id, workers=[self._worker, *dead_workers], held=held, seconds=RELEASE_SECONDS
        )
        return len(await self._database.fetch(*statement))

    SENDING_PARTS: Final = Statement(
        """
        SELECT EXISTS (SELECT 1 FROM jobs WHERE upload_id = :upload_id AND kind = 'eager' AND state = 'running'
                                            AND due_at > now())
            AS sending
        """
    )

    async def sending_parts(self, job: Job) -> bool:
        """Return whether a worker holds a lease on the eager job of the same upload."""
        row = await self._database.read(*self.SENDING_PARTS(upload_id=job.upload.id))
        return row is not None and bool(row["sending"])
