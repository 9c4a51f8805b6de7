"""Transfers as the API shows and requests them: commit an upload, request a transfer, read its attempts.

The queue's statements lock a job before its upload. These lock the upload alone: they read without a
lock whether it has a live job, and insert one only if it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tusd_py.database.pool import Statement
from tusd_py.database.rows import upload_from_row
from tusd_py.database.statements import (
    FORGET_OLD_JOBS,
    LIVE,
    NEXT_EVENT,
    NO_DELIVERY,
    RECORDED_COLUMNS,
    enqueue,
    record_events,
)
from tusd_py.database.termination import LOCK_UPLOAD
from tusd_py.errors import InvalidTransition, NotReady, UploadNotFound
from tusd_py.ports import AttemptView, JobKind, JobState, TransferOrder, TransferView
from tusd_py.ports.queue import WAITING
from tusd_py.protocol.upload import GONE, RECEIVING, Concat, State, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Connection, Database, Row

_AWAITED: Final = f"""
changed WHERE state = 'completed' AND trigger = 'commit'
          AND NOT EXISTS (SELECT 1 FROM jobs WHERE upload_id = :upload_id AND kind = 'transfer'
                                               AND jobs.state IN {LIVE})
"""  # noqa: S608 -- only constants of this package are inserted, here and below


_SENT: Final = "SELECT coalesce(sum(part_length), 0)::bigint AS sent FROM transfer_parts WHERE upload_id = :upload_id"


class TransferRequests:
    """What people and applications ask of transfers. Every method raises `DatabaseUnavailable`."""

    def __init__(self, database: Database, notifier: Notifier) -> None:
        self._database = database
        self._notifier = notifier

    COMMIT: Final = Statement(
        f"""
        WITH changed AS (
            UPDATE uploads SET committed_at = now(), updated_at = now(), {NEXT_EVENT} WHERE id = :upload_id
            RETURNING {RECORDED_COLUMNS}
        ), queued AS ({enqueue(JobKind.TRANSFER, _AWAITED)}), {record_events("changed", "'upload.committed'")}
        SELECT changed.*, EXISTS (SELECT FROM queued) AS wake_workers FROM changed
        """  # noqa: S608
    )

    async def commit(self, upload_id: UploadId) -> Upload:
        """Record that the application keeps a complete upload; queue its transfer if it waited for that.

        Once more is fine and changes nothing.

        Raises:
            UploadNotFound: there is none, or it is gone.
            NotReady: bytes are still missing.
            InvalidTransition: it is a partial upload.
        """
        async with self._notifier.transaction() as transaction:
            upload = await _lock_whole(transaction.connection, upload_id)
            if upload.committed_at is None:
                (row,) = await transaction.run(*self.COMMIT(upload_id=upload_id))  # it is locked
                upload = upload_from_row(row)
        self._notifier.notify_changed(upload.id)
        return upload

    LATEST_TRANSFER: Final = Statement(
        f"""
        SELECT id, state IN {LIVE} AS live FROM jobs
         WHERE upload_id = :upload_id AND kind = 'transfer' ORDER BY id DESC LIMIT 1
        """  # noqa: S608
    )

    # The upload keeps its state and its error until a worker claims the new job.
    QUEUE_TRANSFER: Final = Statement(
        f"""
        WITH queued AS ({enqueue(JobKind.TRANSFER, "uploads WHERE id = :upload_id")}), {FORGET_OLD_JOBS}
        SELECT id, staging_id, wake_workers FROM queued
        """  # noqa: S608
    )

    async def request(self, upload_id: UploadId) -> TransferOrder:
        """Queue the transfer of a complete upload, or try a failed one again, with all its retries.

        One that waits or runs is returned as it is; so is the last one of a stored upload.

        Raises:
            UploadNotFound, NotReady, InvalidTransition: as `commit` does.
        """
        async with self._notifier.transaction() as transaction:
            upload = await _lock_whole(transaction.connection, upload_id)
            latest = await transaction.connection.fetchrow(*self.LATEST_TRANSFER(upload_id=upload_id))
            if upload.state is State.STORED or (latest is not None and latest["live"]):
                return TransferOrder(upload=upload, transfer_id=None if latest is None else latest["id"])
            queued = await transaction.run(*self.QUEUE_TRANSFER(upload_id=upload_id))
        self._notifier.notify_changed(upload_id)
        return TransferOrder(upload=upload, transfer_id=queued[0]["id"] if queued else None, queued=True)

    SENT: Final = Statement(_SENT)

    async def sent_bytes(self, upload_id: UploadId) -> int:
        """Return how many bytes the store has acknowledged of an upload whose transfer is not over."""
        row = await self._database.read(*self.SENT(upload_id=upload_id))
        return 0 if row is None else int(row["sent"])

    # During an outage a waiting job has no due time: the outage says why it waits and whether it is blocked.
    # So no job needs to be written to when an outage begins or ends.
    # `bytes_done` counts recorded parts as well: an eager transfer may have sent some before this one began.
    TRANSFER_VIEW: Final = Statement(
        f"""
        SELECT job.id, job.attempt, job.failures, CASE WHEN outage.blocked THEN 'blocked' ELSE job.state END AS state,
               CASE WHEN outage.staging_id IS NULL THEN job.due_at END AS due_at,
               coalesce(outage.error, job.last_error) AS last_error,
               coalesce(outage.error_code, job.error_code) AS error_code,
               greatest(job.bytes_done, ({_SENT})) AS bytes_done
          FROM jobs job LEFT JOIN store_outages outage
               ON outage.staging_id = job.staging_id AND outage.ended_at IS NULL
               AND job.state IN ('queued', 'retry_wait')
         WHERE job.upload_id = :upload_id AND job.kind = 'transfer' ORDER BY job.id DESC LIMIT 1
        """  # noqa: S608
    )

    async def latest(self, upload_id: UploadId) -> TransferView | None:
        """Return how the latest transfer stands, None if there is none."""
        row = await self._database.read(*self.TRANSFER_VIEW(upload_id=upload_id))
        return None if row is None else _transfer_view(row)

    ATTEMPTS: Final = Statement(
        f"""
        SELECT job.id, job.kind, past.attempt, past.worker, past.outcome, past.error_code, past.error,
               past.started_at, past.finished_at
          FROM jobs job JOIN job_attempts past ON past.job_id = job.id
         WHERE job.upload_id = :upload_id
         UNION ALL
        SELECT id, kind, attempt, worker, NULL, NULL, NULL, started_at, NULL FROM jobs
         WHERE upload_id = :upload_id AND state = 'running' AND {NO_DELIVERY}
         ORDER BY 1 DESC, 3 DESC LIMIT :limit
        """  # noqa: S608
    )

    async def attempts(self, upload_id: UploadId, limit: int) -> list[AttemptView]:
        """Return the latest attempts of an upload's jobs, newest first."""
        return [
            _attempt_view(row) for row in await self._database.fetch(*self.ATTEMPTS(upload_id=upload_id, limit=limit))
        ]


async def _lock_whole(connection: Connection, upload_id: UploadId) -> Upload:
    """Lock an upload that is complete."""
    row = await connection.fetchrow(LOCK_UPLOAD, upload_id)
    upload = upload_from_row(row) if row is not None else None
    if upload is None or upload.state in GONE:
        raise UploadNotFound
    if upload.state in RECEIVING:
        raise NotReady
    if upload.concat is Concat.PARTIAL:
        raise InvalidTransition("A partial upload is stored with the final one that is made of it.")
    return upload


def _transfer_view(row: Row) -> TransferView:
    return TransferView(
        id=row["id"],
        state=JobState(row["state"]),
        attempts=row["attempt"],
        failures=row["failures"],
        bytes_done=row["bytes_done"],
        next_attempt_at=row["due_at"] if row["state"] in WAITING else None,
        last_error=row["last_error"],
        error_code=row["error_code"],
    )


def _attempt_view(row: Row) -> AttemptView:
    return AttemptView(
        job_id=row["id"],
        kind=JobKind(row["kind"]),
        number=row["attempt"],
        worker=row["worker"],
        outcome=row["outcome"],
        error_code=row["error_code"],
        error=row["error"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )
