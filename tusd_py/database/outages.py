"""Outages of the store as recorded for each staging directory: shared by its workers, and outliving them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tusd_py.database.pool import Statement
from tusd_py.ports import Job, Outage, Probe, StagingIdentity

if TYPE_CHECKING:
    from tusd_py.database.notifier import Notifier
    from tusd_py.database.pool import Database
    from tusd_py.protocol.upload import StagingId


class StoreOutages:
    """The outages that the workers beside one staging directory know of and share."""

    def __init__(self, database: Database, notifier: Notifier, *, directory: StagingIdentity) -> None:
        self._database = database
        self._notifier = notifier
        self._directory = directory

    # Returns a row only for news, also if two workers declare an outage at the same moment.
    DECLARE: Final = Statement(
        """
        INSERT INTO store_outages AS known (staging_id, blocked, error_code, error, probe_at)
        VALUES (:staging_id, :blocked, :code, :sentence, now() + make_interval(secs => :probe_in))
        ON CONFLICT (staging_id) DO UPDATE
           SET blocked = excluded.blocked, error_code = excluded.error_code, error = excluded.error,
               since = CASE WHEN known.ended_at IS NULL THEN known.since ELSE now() END,
               probes = CASE WHEN known.ended_at IS NULL THEN known.probes ELSE 0 END,
               probe_at = excluded.probe_at, ended_at = NULL
         WHERE known.ended_at IS NOT NULL OR known.blocked <> excluded.blocked
            OR (excluded.blocked AND known.error <> excluded.error)
        RETURNING staging_id
        """
    )

    POSTPONE_PROBE: Final = Statement(
        """
        UPDATE store_outages SET probe_at = now() + make_interval(secs => :probe_in)
         WHERE staging_id = :staging_id AND ended_at IS NULL
        """
    )

    async def declare(self, outage: Outage, *, probe_in_seconds: float) -> bool:
        """Record that a probe failed and when the next one is due; return whether this is news."""
        due = {"staging_id": self._directory.id, "probe_in": float(probe_in_seconds)}
        statement = self.DECLARE(**due, blocked=outage.blocked, code=outage.code, sentence=outage.sentence)
        if await self._database.fetchrow(*statement) is not None:
            return True
        await self._database.execute(*self.POSTPONE_PROBE(**due))
        return False

    OVERLAPS: Final = Statement(
        """
        SELECT EXISTS (SELECT FROM store_outages WHERE staging_id = :staging_id
                       AND (ended_at IS NULL OR ended_at >= :started_at)) AS overlaps
        """
    )

    async def overlaps(self, job: Job) -> bool:
        """Return whether an outage lasts, or lasted during this attempt of the job."""
        row = await self._database.read(*self.OVERLAPS(staging_id=self._directory.id, started_at=job.started_at))
        return row is not None and bool(row["overlaps"])

    TAKE_PROBE: Final = Statement(
        """
        WITH taken AS (
            UPDATE store_outages SET probe_at = now() + make_interval(secs => :for_seconds), probes = probes + 1
             WHERE staging_id = :staging_id AND ended_at IS NULL AND (probe_at <= now() OR :at_once)
            RETURNING probes
        )
        SELECT probes, true AS taken, 0::float8 AS due_seconds FROM taken
         UNION ALL
        SELECT probes, false, greatest(0, extract(epoch FROM probe_at - now()))::float8 FROM store_outages
         WHERE staging_id = :staging_id AND ended_at IS NULL AND NOT EXISTS (SELECT FROM taken)
        """
    )

    async def take_probe(self, *, for_seconds: float, at_once: bool = False) -> Probe | None:
        """Take the next probe if it is due, or `at_once`, for so long; return None without an outage."""
        statement = self.TAKE_PROBE(staging_id=self._directory.id, for_seconds=float(for_seconds), at_once=at_once)
        row = await self._database.fetchrow(*statement)
        return None if row is None else Probe(row["probes"], taken=row["taken"], due_seconds=row["due_seconds"])

    # Jobs that wait for a retry become due as well: the beginning of the outage may be what they failed of.
    END: Final = Statement(
        """
        WITH over AS (
            UPDATE store_outages SET ended_at = now() WHERE staging_id = :staging_id AND ended_at IS NULL
            RETURNING staging_id, since
        ), waiting AS (
            SELECT jobs.id FROM jobs, over
             WHERE (jobs.staging_id = over.staging_id OR jobs.staging_id IS NULL)
               AND jobs.state = 'retry_wait' AND jobs.due_at > now() AND jobs.kind <> 'deliver'
             ORDER BY jobs.id FOR NO KEY UPDATE OF jobs SKIP LOCKED
        ), due AS (
            UPDATE jobs SET due_at = now() FROM waiting WHERE jobs.id = waiting.id
        )
        SELECT extract(epoch FROM now() - since)::float8 AS seconds, staging_id, true AS wake_workers FROM over
        """
    )

    async def end(self) -> float | None:
        """Record the end of the outage and make all waiting jobs due; return how many seconds it lasted.

        Return None if another worker has recorded it.
        """
        rows = await self._notifier.run(*self.END(staging_id=self._directory.id))
        return rows[0]["seconds"] if rows else None


CURRENT: Final = "SELECT blocked, error_code, error FROM store_outages WHERE staging_id = $1 AND ended_at IS NULL"


async def read_outage(database: Database, staging_id: StagingId | None) -> Outage | None:
    """Return the current outage of a staging directory's store, None if there is none."""
    row = await database.read(CURRENT, staging_id)
    return None if row is None else Outage(blocked=row["blocked"], code=row["error_code"], sentence=row["error"])
