"""Events once more: those that were given up, and those that an endpoint has lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.database.statements import LIVE
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database

BATCH: Final = 500
DEAD: Final = """
SELECT endpoint, event_id, upload_id, sequence, kind, error, died_at FROM dead_letters
 WHERE $1::text IS NULL OR endpoint = $1 ORDER BY died_at DESC, event_id LIMIT $2
"""
# What the endpoint is not told of any more would be taken from the list and never be sent.
_STILL_WANTED: Final = "kind = ANY ((SELECT kinds FROM webhook_endpoints WHERE name = $1)::text[])"
DEAD_UPLOADS: Final = f"""
SELECT upload_id, min(sequence) AS first, max(sequence) AS last FROM dead_letters
 WHERE endpoint = $1 AND {_STILL_WANTED} GROUP BY upload_id ORDER BY upload_id
"""  # noqa: S608 -- only constants of this package are inserted, here and below
WANTED_BY_ENDPOINT: Final = """
events.kind = ANY (endpoint.kinds) AND (endpoint.profiles = '{}' OR events.profile = ANY (endpoint.profiles))
"""
CHOSEN_UPLOADS: Final = f"""
SELECT upload_id, min(sequence) AS first, max(sequence) AS last FROM events, webhook_endpoints endpoint
 WHERE endpoint.name = $1 AND {WANTED_BY_ENDPOINT}
   AND (events.event_id = ANY ($2::uuid[]) OR events.created_at >= $3)
 GROUP BY upload_id ORDER BY upload_id
"""  # noqa: S608
WANTED: Final = f"""
SELECT events.event_id FROM events, webhook_endpoints endpoint
 WHERE events.event_id = ANY ($2::uuid[]) AND endpoint.name = $1 AND {WANTED_BY_ENDPOINT}
"""  # noqa: S608
# Whoever is delivering at this moment is fenced out by the attempt, or would move the position forward again.
REPLAY: Final = f"""
WITH revived AS (
    DELETE FROM dead_letters
     WHERE endpoint = $1 AND upload_id = $2 AND sequence BETWEEN $3 AND $4 AND {_STILL_WANTED}
)
INSERT INTO jobs (upload_id, kind, endpoint, next_sequence, until_sequence) VALUES ($2, 'deliver', $1, $3, $4)
ON CONFLICT (upload_id, endpoint) WHERE state IN {LIVE} AND kind = 'deliver' DO UPDATE
   SET next_sequence = least(jobs.next_sequence, excluded.next_sequence),
       until_sequence = greatest(jobs.until_sequence, excluded.until_sequence),
       state = 'queued', worker = NULL, attempt = jobs.attempt + 1, failures = 0, due_at = now()
"""  # noqa: S608
# Those that somebody holds are being tried at this moment anyway: nobody is waited for.
HURRY: Final = """
WITH waiting AS (
    SELECT id FROM jobs
     WHERE kind = 'deliver' AND endpoint = $1 AND state = 'retry_wait'
     ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET state = 'queued', failures = 0, due_at = now() FROM waiting WHERE jobs.id = waiting.id
RETURNING jobs.upload_id
"""
SOME_WAITING: Final = f"""
SELECT upload_id FROM jobs WHERE kind = 'deliver' AND endpoint = $1 AND state IN {LIVE} ORDER BY due_at LIMIT 1
"""  # noqa: S608
FORGET_DEAD_LETTERS: Final = """
WITH old AS MATERIALIZED (
    SELECT endpoint, event_id FROM dead_letters WHERE died_at <= now() - make_interval(secs => $1)
     ORDER BY died_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
DELETE FROM dead_letters USING old
 WHERE dead_letters.endpoint = old.endpoint AND dead_letters.event_id = old.event_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """An event that an endpoint did not take in time."""

    endpoint: str
    event_id: UUID
    upload_id: UploadId
    sequence: int
    kind: EventKind
    error: str
    """What went wrong the last time."""
    died_at: datetime


class Replays:
    """Looks at dead letters, and has events delivered again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def dead(self, endpoint: str | None = None, *, limit: int = 100) -> list[DeadLetter]:
        """Return the dead letters of an endpoint or of all, newest first."""
        rows = await self._database.fetch(DEAD, endpoint, limit)
        return [
            DeadLetter(
                endpoint=row["endpoint"],
                event_id=row["event_id"],
                upload_id=UploadId(row["upload_id"]),
                sequence=row["sequence"],
                kind=EventKind(row["kind"]),
                error=row["error"],
                died_at=row["died_at"],
            )
            for row in rows
        ]

    async def replay(
        self, endpoint: str, *, events: Sequence[UUID] = (), since: datetime | None = None, dead: bool = False
    ) -> set[UploadId]:
        """Deliver events again: these, those since a time, or all dead letters; return of which uploads.

        Of each upload all events from the first of them to the last are sent, so that their order is kept.
        """
        chosen = await self._database.fetch(CHOSEN_UPLOADS, endpoint, list(events), since)
        if dead:
            chosen += await self._database.fetch(DEAD_UPLOADS, endpoint)
        for row in chosen:
            # One statement each: it locks one job and waits for nothing else.
            await self._database.execute(REPLAY, endpoint, row["upload_id"], row["first"], row["last"])
        return {UploadId(row["upload_id"]) for row in chosen}

    async def wanted(self, endpoint: str, events: Sequence[UUID]) -> set[UUID]:
        """Return those of these events that the endpoint is told of."""
        return {row["event_id"] for row in await self._database.fetch(WANTED, endpoint, list(events))}

    async def hurry(self, endpoint: str) -> UploadId | None:
        """Let what waits for its next try be tried now; return an upload of which the endpoint is to be told.

        None: it has been told of everything.
        """
        hurried: set[UploadId] = set()
        # Until only those come that have failed once more since.
        while batch := {row["upload_id"] for row in await self._database.fetch(HURRY, endpoint, BATCH)} - hurried:
            hurried |= batch
        row = await self._database.fetchrow(SOME_WAITING, endpoint)
        return None if row is None else UploadId(row["upload_id"])
