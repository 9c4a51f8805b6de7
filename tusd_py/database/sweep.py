"""What cleanup asks of the database. Each statement works on a bounded batch and is safe to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.rows import UPLOAD_COLUMNS, upload_from_row
from tusd_py.database.statements import IN_RECEIVING
from tusd_py.ports import SweepRepository
from tusd_py.protocol.upload import Event, Upload, UploadId, sources

if TYPE_CHECKING:
    from tusd_py.database.pool import Database
    from tusd_py.database.wakeups import Wakeups

# A part that a final still needs stays, however overdue it is.
_NOT_NEEDED: Final = """
NOT EXISTS (SELECT 1 FROM upload_parts link JOIN uploads final ON final.id = link.final_id
             WHERE link.part_id = uploads.id
               AND final.state IN ('created', 'uploading', 'completed', 'transferring', 'transfer_failed'))
"""
_OVERDUE: Final = f"""
node = $1 AND NOT hold AND expires_at <= now() AND {_NOT_NEEDED}
AND (state IN {IN_RECEIVING} OR (state = 'completed' AND concat = 'partial'))
"""
OVERDUE: Final = f"""
SELECT {UPLOAD_COLUMNS} FROM uploads WHERE {_OVERDUE} ORDER BY created_at LIMIT $2
"""  # noqa: S608 -- only constants of this package are inserted, here and below
EXPIRE: Final = f"""
WITH moved AS (
    UPDATE uploads SET state = 'expired', updated_at = now()
     WHERE id = $2 AND state = ANY ($3::text[]) AND {_OVERDUE}
    RETURNING id, node
)
INSERT INTO jobs (upload_id, kind, node) SELECT id, 'remove', node FROM moved ON CONFLICT DO NOTHING
RETURNING upload_id
"""  # noqa: S608

PURGEABLE: Final = """
SELECT id FROM uploads
 WHERE node = $1 AND state = 'stored' AND local_present AND remote_present
   AND stored_at <= now() - make_interval(secs => $2)
 ORDER BY stored_at LIMIT $3
"""
PURGED: Final = """
UPDATE uploads SET local_present = false WHERE id = ANY ($1::uuid[]) AND state = 'stored' AND remote_present
"""

REQUEUE_FAILED: Final = """
INSERT INTO jobs (upload_id, kind, node)
SELECT id, 'transfer', node FROM uploads
 WHERE node = $1 AND state = 'transfer_failed' AND updated_at <= now() - make_interval(secs => $2)
   AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id
                      AND jobs.state IN ('queued', 'running', 'retry_wait'))
 LIMIT $3
ON CONFLICT DO NOTHING
"""
# Nothing is ever without its job, since both are one statement; should it happen all the same, this heals it.
ADOPT_JOBLESS: Final = """
INSERT INTO jobs (upload_id, kind, node)
SELECT id, CASE state WHEN 'removing' THEN 'remove' ELSE 'transfer' END, node FROM uploads
 WHERE node = $1 AND state IN ('completed', 'transferring', 'removing') AND concat IS DISTINCT FROM 'partial'
   AND updated_at <= now() - interval '1 minute'
   AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id
                      AND jobs.state IN ('queued', 'running', 'retry_wait'))
 LIMIT $2
ON CONFLICT DO NOTHING
"""
RELEASE_PARTS: Final = """
DELETE FROM upload_parts USING uploads final
 WHERE final.id = upload_parts.final_id AND final.node = $1
   AND (final.state IN ('expired', 'removed', 'rejected') OR (final.state = 'stored' AND NOT final.local_present))
"""
PURGE_ROWS: Final = """
DELETE FROM uploads WHERE id IN (
    SELECT id FROM uploads
     WHERE node = $1 AND state IN ('expired', 'removed', 'rejected')
       AND updated_at <= now() - make_interval(secs => $2) AND NOT local_present
       AND NOT EXISTS (SELECT 1 FROM upload_parts WHERE part_id = uploads.id)
       AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.upload_id = uploads.id
                          AND jobs.state IN ('queued', 'running', 'retry_wait'))
     LIMIT $3 FOR UPDATE SKIP LOCKED)
"""
PURGE_EVENTS: Final = """
DELETE FROM events WHERE id IN (
    SELECT id FROM events WHERE created_at <= now() - make_interval(secs => $1) LIMIT $2)
"""
WITH_FILES: Final = """
SELECT id FROM uploads WHERE id = ANY ($1::uuid[]) AND local_present
"""


class PostgresSweep(SweepRepository):
    """The cleanup queries of one node."""

    def __init__(self, database: Database, wakeups: Wakeups, *, node: str) -> None:
        self._database = database
        self._wakeups = wakeups
        self._node = node

    async def overdue(self, limit: int) -> list[Upload]:
        return [upload_from_row(row) for row in await self._database.fetch(OVERDUE, self._node, limit)]

    async def expire(self, upload_id: UploadId) -> bool:
        allowed = [*sources(Event.EXPIRE)]
        moved = await self._database.fetchrow(EXPIRE, self._node, upload_id, allowed)
        if moved is not None:
            self._wakeups.ring(self._node)
        return moved is not None

    async def purgeable(self, older_than_seconds: float, limit: int) -> list[UploadId]:
        rows = await self._database.fetch(PURGEABLE, self._node, float(older_than_seconds), limit)
        return [row["id"] for row in rows]

    async def purged(self, upload_ids: Sequence[UploadId]) -> None:
        await self._database.execute(PURGED, upload_ids)

    async def requeue_failed(self, older_than_seconds: float, limit: int) -> int:
        return await self._database.execute(REQUEUE_FAILED, self._node, float(older_than_seconds), limit)

    async def adopt_jobless(self, limit: int) -> int:
        return await self._database.execute(ADOPT_JOBLESS, self._node, limit)

    async def release_parts(self) -> int:
        return await self._database.execute(RELEASE_PARTS, self._node)

    async def purge_rows(self, older_than_seconds: float, limit: int) -> int:
        return await self._database.execute(PURGE_ROWS, self._node, float(older_than_seconds), limit)

    async def purge_events(self, older_than_seconds: float, limit: int) -> int:
        return await self._database.execute(PURGE_EVENTS, float(older_than_seconds), limit)

    async def with_files(self, upload_ids: Sequence[UUID]) -> set[UUID]:
        return {row["id"] for row in await self._database.fetch(WITH_FILES, upload_ids)}
