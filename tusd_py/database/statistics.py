"""Figures that operators watch, read in one statement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

FIGURES: Final = """
SELECT (SELECT count(*) FROM uploads WHERE state IN ('created', 'uploading')) AS unfinished,
       (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
          FROM uploads WHERE state IN ('created', 'uploading')) AS oldest_unfinished,
       (SELECT count(*) FROM uploads WHERE state = 'transfer_failed') AS failed,
       (SELECT count(*) FROM jobs
         WHERE node = $1 AND state IN ('queued', 'running', 'retry_wait') AND kind <> 'ahead') AS jobs,
       (SELECT coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8
          FROM jobs
         WHERE node = $1 AND state IN ('queued', 'running', 'retry_wait') AND kind <> 'ahead') AS oldest_job
"""
PING: Final = "SELECT 1"


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts, and ages in seconds."""

    unfinished_uploads: int
    oldest_unfinished_seconds: float
    failed_uploads: int
    waiting_jobs: int
    oldest_job_seconds: float


async def read_figures(database: Database, node: str) -> Figures:
    """Read the figures; jobs are those of `node`."""
    row = await database.read(FIGURES, node)
    assert row is not None  # a SELECT without FROM always answers one row
    return Figures(row["unfinished"], row["oldest_unfinished"], row["failed"], row["jobs"], row["oldest_job"])


async def ping(database: Database) -> None:
    """Return if the database answers. Raises `DatabaseUnavailable`."""
    await database.read(PING)
