"""Outages of the store as recorded for each staging directory: shared by its workers, and outliving them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tusd_py.ports import Job, Outage, Probe, StagingIdentity

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database
    from tusd_py.protocol.upload import StagingId

# Returns a row only for news, also if two workers declare an outage at the same moment.
DECLARE: Final = """
INSERT INTO store_outages AS known (staging_id, blocked, error_code, error, probe_at)
VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
ON CONFLICT (staging_id) DO UPDATE
   SET blocked = excluded.blocked, error_code = excluded.error_code, error = excluded.error,
       since = CASE WHEN known.ended_at IS NULL THEN known.since ELSE now() END,
       probes = CASE WHEN known.ended_at IS NULL THEN known.probes ELSE 0 END,
       probe_at = excluded.probe_at, ended_at = NULL
 WHERE known.ended_at IS NOT NULL OR known.blocked <> excluded.blocked
    OR (excluded.blocked AND known.error <> excluded.error)
RETURNING staging_id
"""
OVERLAPS: Final = """
SELECT EXISTS (SELECT FROM store_outages WHERE staging_id = $1 AND (ended_at IS NULL OR ended_at >= $2)) AS overlaps
"""
TAKE_PROBE: Final = """
WITH taken AS (
    UPDATE store_outages SET probe_at = now() + make_interval(secs => $2), probes = probes + 1
     WHERE staging_id = $1 AND ended_at IS NULL AND (probe_at <= now() OR $3)
    RETURNING probes
)
SELECT probes, true AS taken, 0::float8 AS due_seconds FROM taken
 UNION ALL
SELECT probes, false, greatest(0, extract(epoch FROM probe_at - now()))::float8 FROM store_outages
 WHERE staging_id = $1 AND ended_at IS NULL AND NOT EXISTS (SELECT FROM taken)
"""
POSTPONE_PROBE: Final = """
UPDATE store_outages SET probe_at = now() + make_interval(secs => $2) WHERE staging_id = $1 AND ended_at IS NULL
"""
# Jobs that wait for a retry become due as well: the beginning of the outage may be what they failed of.
END: Final = """
WITH over AS (
    UPDATE store_outages SET ended_at = now() WHERE staging_id = $1 AND ended_at IS NULL RETURNING staging_id, since
), waiting AS (
    SELECT jobs.id FROM jobs, over
     WHERE (jobs.staging_id = over.staging_id OR jobs.staging_id IS NULL)
       AND jobs.state = 'retry_wait' AND jobs.due_at > now()
     ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED
), due AS (
    UPDATE jobs SET due_at = now() FROM waiting WHERE jobs.id = waiting.id
)
SELECT extract(epoch FROM now() - since)::float8 AS seconds, staging_id, true AS wake_workers FROM over
"""
CURRENT: Final = "SELECT blocked, error_code, error FROM store_outages WHERE staging_id = $1 AND ended_at IS NULL"


class StoreOutages:
    """The outages that the workers beside one staging directory know of and share."""

    def __init__(self, database: Database, notifier: Notifier, *, directory: StagingIdentity) -> None:
        self._database = database
        self._notifier = notifier
        self._directory = directory

    async def declare(self, outage: Outage, *, probe_in_seconds: float) -> bool:
        """Record that a probe failed and when the next one is due; return whether this is news."""
        facts = (outage.blocked, outage.code, outage.sentence, float(probe_in_seconds))
        if await self._database.fetchrow(DECLARE, self._directory.id, *facts) is not None:
            return True
        await self._database.execute(POSTPONE_PROBE, self._directory.id, float(probe_in_seconds))
        return False

    async def overlaps(self, job: Job) -> bool:
        """Return whether an outage lasts, or lasted during this attempt of the job."""
        row = await self._database.read(OVERLAPS, self._directory.id, job.started_at)
        return row is not None and bool(row["overlaps"])

    async def take_probe(self, *, for_seconds: float, at_once: bool = False) -> Probe | None:
        """Take the next probe if it is due, or `at_once`, for so long; return None without an outage."""
        row = await self._database.fetchrow(TAKE_PROBE, self._directory.id, float(for_seconds), at_once)
        return None if row is None else Probe(row["probes"], taken=row["taken"], due_seconds=row["due_seconds"])

    async def end(self) -> float | None:
        """Record the end of the outage and make all waiting jobs due; return how many seconds it lasted.

        Return None if another worker has recorded it.
        """
        rows = await self._notifier.run(END, self._directory.id)
        return rows[0]["seconds"] if rows else None


async def read_outage(database: Database, staging_id: StagingId | None) -> Outage | None:
    """Return the current outage of a staging directory's store, None if there is none."""
    row = await database.read(CURRENT, staging_id)
    return None if row is None else Outage(blocked=row["blocked"], code=row["error_code"], sentence=row["error"])
