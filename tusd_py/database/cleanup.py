"""The statements of cleanup. Each works on a bounded batch and is safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.deliveries import FORGET_ENDPOINTS
from tusd_py.database.pool import Statement
from tusd_py.database.replay import FORGET_DEAD_LETTERS
from tusd_py.database.rows import upload_from_row
from tusd_py.database.statements import (
    DISOWN_LOCAL,
    FINISHING,
    FORGET_OLD_JOBS,
    IN_RECEIVING,
    LIVE,
    NEEDING_PARTIALS,
    NEXT_EVENT,
    NO_DELIVERY,
    RECORDED_COLUMNS,
    STORE_THERE,
    UPLOAD_COLUMNS,
    WANTS_TRANSFER,
    enqueue,
    record_events,
)
from tusd_py.ports import JobKind, StagingIdentity
from tusd_py.protocol.upload import Event, Upload, UploadId, sources

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database

PART_GRACE_SECONDS: Final = 24 * 3600
"""How long a partial upload that never expires outlives the final one that was made of it."""

# A partial upload that a final one still needs stays, however overdue it is.
_NOT_NEEDED: Final = f"""
NOT EXISTS (SELECT 1 FROM upload_parts link JOIN uploads final ON final.id = link.final_id
             WHERE link.part_id = uploads.id AND final.state IN {NEEDING_PARTIALS})
"""  # noqa: S608 -- only constants of this package are inserted, here and below
_OVERDUE: Final = f"""
staging_id = :staging_id AND NOT hold AND {_NOT_NEEDED}
AND ((state IN {IN_RECEIVING} AND NOT finishing AND expires_at <= now())
     OR (state = 'completed' AND concat = 'partial' AND expires_at <= now())
     OR (state = 'completed' AND concat IS DISTINCT FROM 'partial' AND trigger = 'commit' AND committed_at IS NULL
         AND :uncommitted_after::float8 > 0
         AND completed_at <= now() - make_interval(secs => :uncommitted_after)
         AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id AND jobs.state IN {LIVE}
                                              AND {NO_DELIVERY})))
"""  # noqa: S608
_JOBLESS: Final = f"""
NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id AND jobs.state IN {LIVE} AND {NO_DELIVERY})
"""  # noqa: S608
# Eager jobs do not count: the job that follows one may be queued, and is claimed once the eager one is done.
_UNATTENDED: Final = f"""
NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id AND jobs.state IN {LIVE}
                                 AND jobs.kind NOT IN ('eager', 'deliver'))
"""  # noqa: S608
_FAILED_LONG_AGO: Final = f"""
uploads WHERE staging_id = :staging_id AND state = 'transfer_failed'
          AND updated_at <= now() - make_interval(secs => :older_than) AND {_UNATTENDED}
 LIMIT :limit
"""
_ORPHANED: Final = f"""
uploads WHERE staging_id = :staging_id AND updated_at <= now() - interval '1 minute' AND {_UNATTENDED}
          AND (state = 'removing' OR {FINISHING} OR {WANTS_TRANSFER})
 LIMIT :limit
"""
_ORPHAN_KIND: Final = f"CASE WHEN state = 'removing' THEN 'remove' WHEN {FINISHING} THEN 'finish' ELSE 'transfer' END"


class CleanupRecords:
    """The cleanup queries of one staging directory."""

    def __init__(
        self,
        database: Database,
        notifier: Notifier,
        *,
        directory: StagingIdentity,
        uncommitted_after_seconds: float = 0,
    ) -> None:
        """`uncommitted_after_seconds` is how long a complete upload waits for its commit; 0: forever."""
        self._database = database
        self._notifier = notifier
        self._directory = directory
        self._uncommitted_after_seconds = float(uncommitted_after_seconds)

    OVERDUE: Final = Statement(
        f"""
        SELECT {UPLOAD_COLUMNS} FROM uploads
         WHERE {_OVERDUE} AND id <> ALL (:skip::uuid[])
         ORDER BY created_at LIMIT :limit
        """  # noqa: S608
    )

    async def overdue(self, limit: int, *, skip: Sequence[UploadId] = ()) -> list[Upload]:
        """Return uploads of this staging directory whose time is up and that nothing needs any more."""
        statement = self.OVERDUE(
            staging_id=self._directory.id, uncommitted_after=self._uncommitted_after_seconds, limit=limit, skip=skip
        )
        return [upload_from_row(row) for row in await self._database.fetch(*statement)]

    # Locked first and then read again, to see a final upload that is being made of it at this moment.
    LOCK_OVERDUE: Final = Statement("SELECT FROM uploads WHERE id = :upload_id FOR NO KEY UPDATE")

    EXPIRE: Final = Statement(
        f"""
        WITH moved AS (
            UPDATE uploads SET state = 'expired', gone_at = now(), updated_at = now(), {NEXT_EVENT}
             WHERE id = :upload_id AND state = ANY (:states::text[]) AND {_OVERDUE}
            RETURNING {RECORDED_COLUMNS}
        ), {DISOWN_LOCAL}, {record_events("moved", "'upload.expired'")}
        {enqueue(JobKind.REMOVE, "moved")}
        """  # noqa: S608
    )

    async def expire(self, upload_id: UploadId) -> bool:
        """Expire an upload if it is still overdue, and queue the removal of its bytes."""
        async with self._notifier.transaction() as transaction:
            await transaction.connection.execute(*self.LOCK_OVERDUE(upload_id=upload_id))
            statement = self.EXPIRE(
                staging_id=self._directory.id,
                uncommitted_after=self._uncommitted_after_seconds,
                upload_id=upload_id,
                states=sources(Event.EXPIRE),
            )
            expired = bool(await transaction.run(*statement))
        if expired:
            self._notifier.notify_changed(upload_id)
        return expired

    PURGEABLE: Final = Statement(
        """
        SELECT id FROM uploads
         WHERE staging_id = :staging_id AND state = 'stored' AND local_present AND remote_present
           AND stored_at <= now() - make_interval(secs => :older_than)
           AND id <> ALL (:skip::uuid[])
         ORDER BY stored_at LIMIT :limit
        """
    )

    async def purgeable(
        self, older_than_seconds: float, limit: int, *, skip: Sequence[UploadId] = ()
    ) -> list[UploadId]:
        """Return stored uploads whose staged copy may go."""
        statement = self.PURGEABLE(
            staging_id=self._directory.id, older_than=float(older_than_seconds), limit=limit, skip=skip
        )
        return [row["id"] for row in await self._database.fetch(*statement)]

    STILL_PURGEABLE: Final = Statement(
        """
        SELECT id FROM uploads WHERE id = ANY (:upload_ids::uuid[]) AND state = 'stored' AND remote_present
        """
    )

    async def still_purgeable(self, upload_ids: Sequence[UploadId]) -> list[UploadId]:
        """Return which of them are still stored. To be called while their files are locked."""
        return [row["id"] for row in await self._database.fetch(*self.STILL_PURGEABLE(upload_ids=upload_ids))]

    PURGED: Final = Statement(
        """
        UPDATE uploads SET local_present = false
         WHERE id = ANY (:upload_ids::uuid[]) AND state = 'stored' AND remote_present
        """
    )

    async def purged(self, upload_ids: Sequence[UploadId]) -> None:
        """Record that the staged copies of stored uploads are gone."""
        await self._database.execute(*self.PURGED(upload_ids=upload_ids))

    # During an outage no removal is claimed. Staged copies of gone uploads are removed all the same, or the disk
    # would fill.
    GONE_COPIES: Final = Statement(
        f"""
        SELECT uploads.id FROM jobs JOIN uploads ON uploads.id = jobs.upload_id
         WHERE jobs.staging_id = :staging_id AND jobs.kind = 'remove' AND jobs.state IN ('queued', 'retry_wait')
           AND jobs.due_at <= now() AND uploads.local_present AND uploads.id <> ALL (:skip::uuid[])
           AND NOT ({STORE_THERE})
         ORDER BY jobs.due_at LIMIT :limit
        """  # noqa: S608
    )

    async def gone_copies(self, limit: int, *, skip: Sequence[UploadId] = ()) -> list[UploadId]:
        """Return uploads that are gone and whose removal, their staged copy included, waits for the store."""
        statement = self.GONE_COPIES(staging_id=self._directory.id, limit=limit, skip=skip)
        return [row["id"] for row in await self._database.fetch(*statement)]

    GONE_COPIES_REMOVED: Final = Statement(
        """
        UPDATE uploads SET local_present = false
         WHERE id = ANY (:upload_ids::uuid[]) AND state IN ('removing', 'expired')
        """
    )

    async def gone_copies_removed(self, upload_ids: Sequence[UploadId]) -> None:
        """Record that the staged copies of gone uploads have been removed before the rest of them."""
        await self._database.execute(*self.GONE_COPIES_REMOVED(upload_ids=upload_ids))

    REQUEUE_FAILED: Final = Statement(
        f"""
        WITH queued AS ({enqueue(JobKind.TRANSFER, _FAILED_LONG_AGO)}), {FORGET_OLD_JOBS}
        SELECT upload_id, staging_id, wake_workers FROM queued
        """  # noqa: S608
    )

    async def requeue_failed(self, older_than_seconds: float, limit: int) -> int:
        """Queue failed transfers again; return how many."""
        statement = self.REQUEUE_FAILED(
            staging_id=self._directory.id, older_than=float(older_than_seconds), limit=limit
        )
        rows = await self._notifier.run(*statement)
        self._notifier.notify_changed(*(row["upload_id"] for row in rows))
        return len(rows)

    COUNT_REQUEUED: Final = Statement(
        f"""
        SELECT count(*) AS n FROM uploads
         WHERE staging_id = :staging_id AND state = 'transfer_failed'
           AND EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id AND jobs.kind = 'transfer'
                                            AND jobs.state IN {LIVE})
        """  # noqa: S608
    )

    async def count_requeued(self) -> int:
        """Return how many failed transfers of this node are queued again and not begun."""
        row = await self._database.read(*self.COUNT_REQUEUED(staging_id=self._directory.id))
        return 0 if row is None else int(row["n"])

    # Upload and job change in one statement, so that none is ever without its job; should it happen, this heals it.
    REQUEUE_ORPHANED: Final = Statement(enqueue(_ORPHAN_KIND, _ORPHANED))

    async def requeue_orphaned(self, limit: int) -> int:
        """Enqueue the jobs of uploads that should have one and have none; return how many."""
        statement = self.REQUEUE_ORPHANED(staging_id=self._directory.id, limit=limit)
        return len(await self._notifier.run(*statement))

    RELEASE_PARTS: Final = Statement(
        f"""
        WITH old AS (
            SELECT link.final_id, link.position FROM upload_parts link JOIN uploads final ON final.id = link.final_id
             WHERE final.staging_id = :staging_id
               AND (final.state IN ('expired', 'removed', 'rejected')
                    OR (final.state = 'stored' AND NOT final.local_present))
             LIMIT :limit FOR UPDATE OF link SKIP LOCKED
        ), released AS (
            DELETE FROM upload_parts USING old
             WHERE upload_parts.final_id = old.final_id AND upload_parts.position = old.position
            RETURNING upload_parts.part_id
        ), limited AS (
            UPDATE uploads SET expires_at = now() + make_interval(secs => {PART_GRACE_SECONDS})
             WHERE id IN (SELECT part_id FROM released) AND expires_at IS NULL AND state = 'completed'
        )
        SELECT part_id FROM released
        """  # noqa: S608
    )

    async def release_parts(self, limit: int) -> int:
        """Unlink partial uploads from final ones that no longer read them; return how many links.

        A partial upload that would never expire gets a time to do so.
        """
        return len(await self._database.fetch(*self.RELEASE_PARTS(staging_id=self._directory.id, limit=limit)))

    # A CTE, for as a subquery of IN it might be run more than once, each time with another LIMIT of rows.
    PURGE_ROWS: Final = Statement(
        f"""
        WITH old AS MATERIALIZED (
            SELECT id FROM uploads
             WHERE state IN ('expired', 'removed', 'rejected')
               AND gone_at <= now() - make_interval(secs => :older_than) AND NOT local_present AND {_JOBLESS}
               AND NOT EXISTS (SELECT 1 FROM upload_parts WHERE part_id = uploads.id OR final_id = uploads.id)
             ORDER BY gone_at LIMIT :limit FOR UPDATE SKIP LOCKED
        ), jobless AS (
            DELETE FROM jobs USING old WHERE jobs.upload_id = old.id AND {NO_DELIVERY}
        )
        DELETE FROM uploads USING old WHERE uploads.id = old.id
        """  # noqa: S608
    )

    async def purge_rows(self, older_than_seconds: float, limit: int) -> int:
        """Delete the rows of uploads long gone; return how many."""
        return await self._database.execute(*self.PURGE_ROWS(older_than=float(older_than_seconds), limit=limit))

    # Those stay that somebody has yet to be told of.
    PURGE_EVENTS: Final = Statement(
        f"""
        WITH old AS MATERIALIZED (
            SELECT id FROM events
             WHERE created_at <= now() - make_interval(secs => :older_than)
               AND NOT EXISTS (SELECT FROM dead_letters WHERE dead_letters.upload_id = events.upload_id)
               AND NOT EXISTS (SELECT FROM jobs WHERE jobs.upload_id = events.upload_id AND jobs.kind = 'deliver'
                                                  AND jobs.state IN {LIVE})
             ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED
        )
        DELETE FROM events WHERE id = ANY (ARRAY(SELECT id FROM old))
        """  # noqa: S608
    )

    async def purge_events(self, older_than_seconds: float, limit: int) -> int:
        """Delete old events; return how many."""
        return await self._database.execute(*self.PURGE_EVENTS(older_than=float(older_than_seconds), limit=limit))

    async def purge_dead_letters(self, older_than_seconds: float, limit: int) -> int:
        """Delete old dead letters; return how many."""
        return await self._database.execute(FORGET_DEAD_LETTERS, float(older_than_seconds), limit)

    async def forget_endpoints(self) -> int:
        """Drop the deliveries of endpoints that were removed a day ago; return how many."""
        return await self._database.execute(FORGET_ENDPOINTS)

    WITH_FILES: Final = Statement(
        """
        SELECT id FROM uploads WHERE id = ANY (:upload_ids::uuid[]) AND local_present
        """
    )

    async def with_files(self, upload_ids: Sequence[UUID]) -> set[UUID]:
        """Return which of these uploads have a staging file."""
        return {row["id"] for row in await self._database.fetch(*self.WITH_FILES(upload_ids=upload_ids))}

    KNOWS_DIRECTORY: Final = Statement(
        "SELECT EXISTS (SELECT 1 FROM staging_directories WHERE id = :staging_id) AS known"
    )

    async def knows_directory(self) -> bool:
        """Return whether the database knows this staging directory."""
        row = await self._database.read(*self.KNOWS_DIRECTORY(staging_id=self._directory.id))
        return row is not None and bool(row["known"])
