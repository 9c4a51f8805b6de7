"""Figures of the queue that operators watch, read in one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tusd_py.database.statements import LIVE, NO_DELIVERY
from tusd_py.ports import EndpointStats, QueueStats

if TYPE_CHECKING:
    from tusd_py.database.pool import Database
    from tusd_py.protocol.upload import StagingId

# Settled uploads, which are most of a large table, are not counted.
FIGURES: Final = f"""
WITH away AS (
    SELECT blocked, extract(epoch FROM now() - since)::float8 AS seconds FROM store_outages
     WHERE staging_id = $1 AND ended_at IS NULL
)
SELECT (SELECT coalesce(jsonb_object_agg(state, n), '{{}}')
          FROM (SELECT state, count(*) AS n FROM uploads
                 WHERE state IN ('created', 'uploading', 'completed', 'transferring', 'transfer_failed', 'removing')
                 GROUP BY state) AS counted) AS uploads,
       (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
          FROM uploads WHERE state IN ('created', 'uploading')) AS oldest_unfinished,
       (SELECT coalesce(jsonb_object_agg(state, n), '{{}}')
          FROM (SELECT CASE WHEN state <> 'running' AND away.blocked THEN 'blocked' ELSE state END AS state,
                       count(*) AS n
                  FROM jobs LEFT JOIN away ON true
                 WHERE (staging_id = $1 OR staging_id IS NULL) AND state IN {LIVE} AND kind <> 'eager'
                   AND {NO_DELIVERY}
                 GROUP BY 1) AS counted) AS jobs,
       (SELECT coalesce(extract(epoch FROM now() - min(due_at)), 0)::float8
          FROM jobs
         WHERE (staging_id = $1 OR staging_id IS NULL) AND state IN ('queued', 'retry_wait')
           AND kind <> 'eager' AND {NO_DELIVERY} AND due_at <= now()
       ) AS oldest_due_job,
       coalesce((SELECT seconds FROM away WHERE NOT blocked), 0) AS store_away,
       coalesce((SELECT seconds FROM away WHERE blocked), 0) AS store_blocked
"""  # noqa: S608 -- only a constant is inserted
# The first event that waits is looked up by its number: one look into an index for each upload that waits.
ENDPOINT_FIGURES: Final = f"""
SELECT endpoint.name, endpoint.paused_at IS NOT NULL AS paused, count(jobs.id) AS waiting,
       coalesce(extract(epoch FROM now() - min(events.created_at)), 0)::float8 AS oldest_seconds,
       (SELECT count(*) FROM dead_letters WHERE dead_letters.endpoint = endpoint.name) AS dead_letters
  FROM webhook_endpoints endpoint
  LEFT JOIN jobs ON jobs.endpoint = endpoint.name AND jobs.kind = 'deliver' AND jobs.state IN {LIVE}
  LEFT JOIN events ON events.upload_id = jobs.upload_id AND events.sequence = jobs.next_sequence
 GROUP BY endpoint.name ORDER BY endpoint.name
"""  # noqa: S608
PING: Final = "SELECT 1"


async def read_stats(database: Database, staging_id: StagingId | None) -> QueueStats:
    """Read the figures; jobs are those beside one staging directory, and those that any worker may do."""
    row = await database.read(FIGURES, staging_id)
    assert row is not None  # a SELECT without FROM always answers one row
    return QueueStats(
        row["uploads"],
        row["oldest_unfinished"],
        row["jobs"],
        row["oldest_due_job"],
        row["store_away"],
        row["store_blocked"],
        tuple(EndpointStats(**each) for each in await database.fetch(ENDPOINT_FIGURES)),
    )


async def ping(database: Database) -> None:
    """Return if the database answers. Raises `DatabaseUnavailable`."""
    await database.read(PING)
