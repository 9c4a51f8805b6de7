"""The database for reconcile: uploads in pages by key, and changes that repeat what they rely on.

Each change is one statement whose conditions are the state and the offset that were read; it returns False
where they do not hold any more. `updated_at` moves only with the state, so that a mark does not make an
upload count as young in the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from tusd_py.database.pool import Statement
from tusd_py.database.rows import unsigned
from tusd_py.database.statements import (
    FINISHING,
    LIVE,
    NEXT_EVENT,
    NO_DELIVERY,
    RECORDED_COLUMNS,
    WANTS_TRANSFER,
    enqueue,
    record_events,
)
from tusd_py.ports import JobKind, StagedPartial, StagingIdentity, UploadRecord
from tusd_py.protocol.upload import Concat, Event, State, UploadId, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database, Row

# An eager job waits for as long as its upload is being received, and no worker runs it then.
_BUSY: Final = f"""
EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id AND jobs.state IN {LIVE} AND {NO_DELIVERY}
                             AND (jobs.kind <> 'eager' OR jobs.state = 'running'))
"""  # noqa: S608 -- only constants of this package are inserted, here and below
# An expired upload keeps its `local_present` until the removal job has recorded that nothing is left.
_WAITS_FOR: Final = f"""
CASE WHEN state = 'removing' OR (state = 'expired' AND local_present) THEN 'remove'
     WHEN {FINISHING} THEN 'finish'
     WHEN {WANTS_TRANSFER} THEN 'transfer' END
"""
_FACTS: Final = f"""
SELECT id, staging_id, state, concat, upload_length, upload_offset, crc64nvme, object_key, multipart_id, etag,
       version_id, place_id, local_present, remote_present, missing_at IS NOT NULL AS missing, {_BUSY} AS busy,
       CASE WHEN NOT {_BUSY} THEN {_WAITS_FOR} END AS jobless,
       extract(epoch FROM now() - updated_at)::float8 AS age,
       coalesce(extract(epoch FROM now() - stored_at), 0)::float8 AS stored_age
  FROM uploads
"""  # noqa: S608
_SEGMENTS: Final = """
SELECT part.id, part.upload_offset FROM upload_parts link JOIN uploads part ON part.id = link.part_id
 WHERE link.final_id = :id AND part.state = 'completed' AND part.local_present ORDER BY link.position
"""

_UNCHANGED: Final = "id = :id AND state = :state AND upload_offset = :offset"


class ReconcileRecords:
    """The database as it is compared with one staging directory. Every method raises `DatabaseUnavailable`."""

    def __init__(self, database: Database, notifier: Notifier, *, directory: StagingIdentity) -> None:
        self._database = database
        self._notifier = notifier
        self._directory = directory

    PAGE: Final = Statement(
        f"""
        {_FACTS} WHERE object_key > :after AND place_id = ANY (:places::integer[]) ORDER BY object_key LIMIT :limit
        """
    )

    async def page(self, places: Sequence[int], after: str, limit: int) -> list[UploadRecord]:
        """Return uploads in some places, of all staging directories, by object key after one.

        The order is that of the key's code points.
        """
        return [_record(row) for row in await self._database.fetch(*self.PAGE(after=after, limit=limit, places=places))]

    BY_ID: Final = Statement(f"{_FACTS} WHERE id = ANY (:upload_ids::uuid[])")

    async def by_id(self, upload_ids: Sequence[UUID]) -> list[UploadRecord]:
        """Return those uploads that exist."""
        return [_record(row) for row in await self._database.fetch(*self.BY_ID(upload_ids=upload_ids))]

    BY_KEY: Final = Statement(
        f"{_FACTS} WHERE object_key = ANY (:keys::text[]) AND place_id = ANY (:places::integer[])"
    )

    async def by_key(self, places: Sequence[int], keys: Sequence[str]) -> list[UploadRecord]:
        """Return the uploads of these object keys in some places."""
        return [_record(row) for row in await self._database.fetch(*self.BY_KEY(keys=keys, places=places))]

    NEWEST_STORED: Final = Statement(
        """
        SELECT object_key FROM uploads
         WHERE staging_id = :staging_id AND state = 'stored' AND place_id = ANY (:places::integer[])
         ORDER BY created_at DESC LIMIT :limit
        """
    )

    async def newest_stored(self, places: Sequence[int], limit: int) -> list[str]:
        """Return the object keys of the newest uploads of this staging directory that are stored in some places."""
        statement = self.NEWEST_STORED(staging_id=self._directory.id, places=places, limit=limit)
        return [row["object_key"] for row in await self._database.fetch(*statement)]

    STORED_ELSEWHERE: Final = Statement(
        """
        SELECT place_id, count(*) AS uploads FROM uploads
         WHERE staging_id = :staging_id AND state = 'stored' AND place_id <> ALL (:places::integer[]) GROUP BY place_id
        """
    )

    async def stored_elsewhere(self, places: Sequence[int]) -> dict[int, int]:
        """Return how many uploads of this staging directory are stored in places that are none of these, by place."""
        statement = self.STORED_ELSEWHERE(staging_id=self._directory.id, places=places)
        return {row["place_id"]: row["uploads"] for row in await self._database.fetch(*statement)}

    KNOWS_DIRECTORY: Final = Statement("SELECT EXISTS (SELECT 1 FROM uploads WHERE staging_id = :staging_id) AS known")

    async def knows_directory(self) -> bool:
        """Return whether there is any upload of this staging directory."""
        row = await self._database.read(*self.KNOWS_DIRECTORY(staging_id=self._directory.id))
        return row is not None and bool(row["known"])

    SEGMENTS: Final = Statement(_SEGMENTS)

    async def segments(self, upload_id: UploadId) -> list[StagedPartial]:
        """Return the partial uploads of a final one in order, as far as their bytes are kept."""
        rows = await self._database.fetch(*self.SEGMENTS(id=upload_id))
        return [StagedPartial(row["id"], row["upload_offset"]) for row in rows]

    QUEUE_JOB: Final = Statement(
        enqueue(_WAITS_FOR, f"uploads WHERE {_UNCHANGED} AND NOT {_BUSY} AND {_WAITS_FOR} = :kind")
    )

    async def queue_job(self, row: UploadRecord) -> bool:
        """Queue the job that an upload waits for, if it still does and still has none."""
        queued = await self._notifier.run(*self.QUEUE_JOB(**_conditions(row), kind=row.jobless))
        if queued:
            self._notifier.notify_changed(row.id)
        return bool(queued)

    # Against cleanup, which removes a partial upload once no final needs it: each sees what the other has locked first.
    LOCK_SEGMENTS: Final = Statement(
        """
        SELECT FROM upload_parts link JOIN uploads part ON part.id = link.part_id
         WHERE link.final_id = :id ORDER BY part.id FOR NO KEY UPDATE
        """
    )

    # By way of `transfer_failed`, from which every transfer may be tried again, and which is served from staging.
    REQUEUE_LOST: Final = Statement(
        f"""
        WITH moved AS (
            UPDATE uploads SET state = 'transfer_failed', remote_present = false, local_present = true, etag = NULL,
                               version_id = NULL, stored_at = NULL, missing_at = NULL, error = :reason,
                               updated_at = now(), {NEXT_EVENT}
             WHERE {_UNCHANGED} AND state = ANY (:states::text[]) AND NOT {_BUSY}
               AND (concat IS DISTINCT FROM 'final' OR upload_length = (
                    SELECT coalesce(sum(segment.upload_offset), 0) FROM ({_SEGMENTS}) AS segment))
            RETURNING {RECORDED_COLUMNS}
        ), queued AS ({enqueue(JobKind.TRANSFER, "moved")}), {record_events("moved", "'upload.object_missing'")}
        SELECT staging_id, EXISTS (SELECT FROM queued) AS wake_workers FROM moved
        """  # noqa: S608
    )

    async def requeue_lost(self, row: UploadRecord, reason: str) -> bool:
        """Record that an upload is not stored any more, and queue its transfer. Its staged bytes are complete.

        The caller holds the lock of its staged file. A final upload has none: the statement itself checks
        its partial uploads.
        """
        statement = self.REQUEUE_LOST(**_conditions(row), reason=reason, states=sources(Event.LOSE))
        async with self._notifier.transaction() as transaction:
            await transaction.connection.execute(*self.LOCK_SEGMENTS(id=row.id))
            moved = await transaction.run(*statement)
        if moved:
            self._notifier.notify_changed(row.id)
        return bool(moved)

    # The reason for which a transfer failed stays, here and below.
    MARK_MISSING: Final = Statement(
        f"""
        WITH marked AS (
            UPDATE uploads SET missing_at = now(), {NEXT_EVENT},
                               error = CASE WHEN state = 'transfer_failed' THEN coalesce(error, :reason)
                                            ELSE :reason END
             WHERE {_UNCHANGED} AND missing_at IS NULL
            RETURNING {RECORDED_COLUMNS}
        ), {record_events("marked", "'upload.bytes_missing'", payload="jsonb_build_object('reason', :reason::text)")}
        SELECT id FROM marked
        """  # noqa: S608
    )

    async def mark_missing(self, row: UploadRecord, reason: str) -> bool:
        """Record that bytes of an upload are missing, and since when; nothing else is changed."""
        marked = await self._database.fetch(*self.MARK_MISSING(**_conditions(row), reason=reason))
        if marked:
            self._notifier.notify_changed(row.id)
        return bool(marked)

    CLEAR_MISSING: Final = Statement(
        f"""
        UPDATE uploads SET missing_at = NULL, error = CASE WHEN state = 'transfer_failed' THEN error END
         WHERE {_UNCHANGED} AND missing_at IS NOT NULL
        """  # noqa: S608
    )

    async def clear_missing(self, row: UploadRecord) -> bool:
        """Record that nothing is missing any more."""
        return await self._database.execute(*self.CLEAR_MISSING(**_conditions(row))) > 0

    FORGET_COPY: Final = Statement(
        f"""
        UPDATE uploads SET local_present = false
         WHERE {_UNCHANGED} AND state = 'stored' AND remote_present AND local_present
        """  # noqa: S608
    )

    async def forget_copy(self, row: UploadRecord) -> bool:
        """Record that a stored upload has no staged copy."""
        return await self._database.execute(*self.FORGET_COPY(**_conditions(row))) > 0


def _conditions(row: UploadRecord) -> dict[str, Any]:
    return {"id": row.id, "state": row.state.value, "offset": row.offset}


def _record(row: Row) -> UploadRecord:
    return UploadRecord(
        id=row["id"],
        staging_id=row["staging_id"],
        state=State(row["state"]),
        concat=Concat(row["concat"]) if row["concat"] else None,
        length=row["upload_length"],
        offset=row["upload_offset"],
        crc64nvme=unsigned(row["crc64nvme"]),
        object_key=row["object_key"],
        multipart_id=row["multipart_id"],
        etag=row["etag"],
        version_id=row["version_id"],
        place_id=row["place_id"],
        local_present=row["local_present"],
        remote_present=row["remote_present"],
        missing=row["missing"],
        busy=row["busy"],
        jobless=row["jobless"],
        age_seconds=row["age"],
        stored_seconds=row["stored_age"],
    )
