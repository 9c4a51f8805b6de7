"""Pieces of SQL that several statements share: an upload's columns, enqueueing a job, completing an upload."""

from __future__ import annotations

from typing import Final

from tusd_py.ports import JobKind, queue

UPLOAD_COLUMNS: Final = (
    "id, owner, staging_id, state, upload_length, upload_offset, metadata, filename, content_type, concat, "
    "concat_header, crc64nvme, object_key, local_present, remote_present, hold, created_at, updated_at, "
    "expires_at, completed_at, committed_at, stored_at, etag, version_id, sha256, md5, error, profile, trigger, "
    "protocol, repr_digest, content_encoding, content_language, writer, place_id, missing_at, finishing"
)
RECORDED_COLUMNS: Final = f"{UPLOAD_COLUMNS}, event_sequence"
"""What a change returns from which an event is recorded."""
IN_RECEIVING: Final = "('created', 'uploading')"
LIVE: Final = str(tuple(state.value for state in queue.LIVE))
"""States of a job that is not over, for `IN`."""
NO_DELIVERY: Final = "jobs.kind <> 'deliver'"
"""Of jobs that belong to an upload's own course. A delivery may outlast it, and nothing waits for one."""
STORE_THERE: Final = (
    "NOT EXISTS (SELECT FROM store_outages WHERE store_outages.staging_id = :staging_id AND ended_at IS NULL)"
)
"""No outage lasts beside the staging directory that is an argument of the statement."""
NEEDING_PARTIALS: Final = "('created', 'uploading', 'completed', 'transferring', 'transfer_failed')"
"""States of a final upload that still reads its parts. A stored one reads the store instead."""

WANTS_TRANSFER: Final = """
(state = 'transferring'
 OR (state = 'completed' AND concat IS DISTINCT FROM 'partial'
     AND (trigger = 'complete' OR (trigger = 'commit' AND committed_at IS NOT NULL))))
"""
"""Of an upload that is to have a live transfer job."""
FINISHING: Final = f"(finishing AND state IN {IN_RECEIVING})"
"""Of an upload that is to have a live finish job."""


def upload_columns(alias: str) -> str:
    """Return the columns of an upload under a table alias."""
    return ", ".join(f"{alias}.{column}" for column in UPLOAD_COLUMNS.split(", "))


def expires(seconds: str) -> str:
    """Return the moment that lies `seconds` (an SQL expression) ahead, NULL for 0."""
    return f"CASE WHEN {seconds} > 0 THEN now() + make_interval(secs => {seconds}) END"


def enqueue(kind: JobKind | str, source: str, *, due_at: str = "now()") -> str:
    """Return the statement that enqueues a job for each row of `source`, which is what follows FROM.

    Every job comes from here, most of them as part of the statement that makes them necessary: no crash
    can come between the two. Its rows have the columns of `uploads`; for a removal, `staging_id` may be NULL.
    `kind` may be an SQL expression. An upload that has a live job of the kind keeps that one.

    The statement is for `Notifier.run`, which wakes the workers: those beside `staging_id`, where `wake_workers`.
    """
    match kind:
        case JobKind.REMOVE | JobKind.FINISH:
            name, length = f"'{kind}'", "0"
        case JobKind():
            name, length = f"'{kind}'", "upload_length"
        case _:
            name, length = kind, f"CASE {kind} WHEN '{JobKind.REMOVE}' THEN 0 ELSE upload_length END"
    return f"""
    INSERT INTO jobs (upload_id, kind, staging_id, length, due_at)
    SELECT id, {name}, staging_id, {length}, {due_at} FROM {source}
    ON CONFLICT DO NOTHING
    RETURNING id, upload_id, staging_id, true AS wake_workers
"""  # noqa: S608 -- only constants of this package are inserted, here and below


def record_events(source: str, kind: str, *, sequence: str = "event_sequence", payload: str = "'{}'::jsonb") -> str:
    """Return the common table expressions that record an event for each row of `source`, and enqueue its deliveries.

    Every event comes from here, as part of the statement that makes the fact. `source` is what follows FROM; it
    begins with the name of what has returned `RECORDED_COLUMNS` of uploads that this statement has changed, and
    whose `event_sequence` it has raised. `kind`, `sequence` and `payload` are SQL expressions.

    The upload is locked, so the events of one upload are numbered in the order of their transactions, without
    gaps. The job of a delivery is locked after the upload; see `deliveries` for what follows from that.
    """
    # Without what a client has sent as Upload-Concat: it names tokens.
    name = source.split(maxsplit=1)[0]
    return f"""
recorded AS (
    INSERT INTO events (upload_id, kind, sequence, payload, snapshot, owner, profile)
    SELECT id, {kind}, {sequence}, {payload}, to_jsonb({name}) - 'concat_header', owner, profile FROM {source}
    RETURNING upload_id, kind, sequence, profile
), deliveries AS (
    INSERT INTO jobs (upload_id, kind, endpoint, next_sequence, until_sequence)
    SELECT recorded.upload_id, 'deliver', endpoint.name, min(recorded.sequence), max(recorded.sequence)
      FROM recorded JOIN webhook_endpoints endpoint
        ON recorded.kind = ANY (endpoint.kinds) AND endpoint.removed_at IS NULL
       AND (endpoint.profiles = '{{}}' OR recorded.profile = ANY (endpoint.profiles))
     GROUP BY recorded.upload_id, endpoint.name
     ORDER BY recorded.upload_id, endpoint.name
    ON CONFLICT (upload_id, endpoint) WHERE state IN {LIVE} AND kind = 'deliver'
    DO UPDATE SET until_sequence = greatest(jobs.until_sequence, excluded.until_sequence)
)
"""  # noqa: S608


NEXT_EVENT: Final = "event_sequence = uploads.event_sequence + 1"


def our_jobs() -> str:
    """Return the statement that locks those of a worker's jobs that are still its own, and returns their ids."""
    return """
SELECT jobs.id FROM jobs JOIN unnest(:job_ids::bigint[], :attempts::int[]) AS held (id, attempt) USING (id, attempt)
 WHERE jobs.worker = :worker AND jobs.state = 'running' AND NOT jobs.cancel_requested
 ORDER BY jobs.id FOR NO KEY UPDATE OF jobs
"""


def record_attempt(
    outcome: str, source: str, *, worker: str = ":worker", code: str = "NULL", error: str = "NULL"
) -> str:
    """Return the statement that records how the latest attempt of each job in `source` ended."""
    return f"""
    INSERT INTO job_attempts (job_id, attempt, worker, outcome, error_code, error, started_at)
    SELECT id, attempt, {worker}, {outcome}, {code}, {error}, started_at FROM {source}
    ON CONFLICT DO NOTHING
    RETURNING job_id AS id
"""  # noqa: S608


_COMPLETED: Final = "changed WHERE state = 'completed' AND concat IS DISTINCT FROM 'partial' AND trigger = 'complete'"
COMPLETED_KIND: Final = "CASE WHEN concat = 'partial' THEN 'upload.part_completed' ELSE 'upload.completed' END"
TRANSFER_COMPLETED: Final = f"queued AS ({enqueue(JobKind.TRANSFER, _COMPLETED)})"
# Part of the statement that records the last byte.
FOLLOW_COMPLETION: Final = f"""
{TRANSFER_COMPLETED}, {record_events("changed WHERE state = 'completed'", COMPLETED_KIND)}
"""


def enqueue_finish(due_at: str) -> str:
    """Return the common table expression that enqueues the finish job of what has all its bytes and is not complete.

    It is due when whoever has sent the last byte, and asks the application itself, must have an answer. None is
    there yet, so none is locked after the upload.
    """
    return f"asked AS ({enqueue(JobKind.FINISH, 'changed WHERE finishing', due_at=due_at)})"


# Part of the statement that records a checkpoint. It never touches a job that is there: its holder
# locks it before the upload, and this statement holds the upload. That job may be due now, as a new one is.
ENQUEUE_EAGER: Final = f"""
sendable AS (
    SELECT * FROM changed
     WHERE state = 'uploading' AND upload_length > :eager_above::bigint AND concat IS NULL AND trigger = 'complete'
       AND NOT finishing
), eager AS ({enqueue(JobKind.EAGER, "sendable")})
"""  # noqa: S608

# A final that is stored says that it is in staging as well only as long as each of its parts is.
DISOWN_LOCAL: Final = """
disowned AS (
    UPDATE uploads SET local_present = false
      FROM moved JOIN upload_parts link ON link.part_id = moved.id
     WHERE uploads.id = link.final_id AND uploads.state = 'stored' AND uploads.local_present
)
"""

REMOVED_WHERE: Final = "(SELECT id, CASE WHEN local_present THEN staging_id END AS staging_id FROM moved) AS removal"
"""What is removed, with the directory that this needs: NULL if nothing is staged, and then any worker may do it."""

KEPT_JOBS: Final = 10
# An upload that is queued again and again keeps its latest jobs; their history goes with the others.
FORGET_OLD_JOBS: Final = f"""
forgotten AS (
    DELETE FROM jobs USING (
        SELECT id, row_number() OVER (PARTITION BY upload_id ORDER BY id DESC) AS age FROM jobs
         WHERE upload_id IN (SELECT upload_id FROM queued) AND state NOT IN {LIVE}
    ) AS old
     WHERE jobs.id = old.id AND old.age > {KEPT_JOBS}
)
"""  # noqa: S608 -- only constants of this module are inserted, here and below
