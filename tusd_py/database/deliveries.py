"""Deliveries of events in PostgreSQL: to whom, from which event on, and what became of it.

There is at most one live job per upload and endpoint. The statement that records an event inserts it, or
raises `until_sequence` of the one that is there (`statements.record_events`). Its holder sends the events
from `next_sequence` on, in their order. So a slow endpoint delays no other, and an event that cannot be
delivered holds up only the later ones of its own upload at that endpoint.

No event is left behind: a job ends by `finish`, which deletes its row only if `until_sequence` is no further
than what was sent. A statement that raises it locks the same row. Whichever comes second sees the other one:
`finish` finds the greater number, or the event finds no live job and inserts one. (A look for further rows in
`events` would not do: after waiting for a lock, PostgreSQL reads the locked row again, but no other one.)

An event is recorded while its upload is locked, and its job is locked after that. Hence no statement here
locks an upload, and none waits for a second job while it holds one: two could wait for each other otherwise.
Leases are not renewed; each step that is recorded extends the lease by what the next one may take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tusd_py.database.events import EVENT_COLUMNS, event_from_row
from tusd_py.database.statements import LIVE
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database
    from tusd_py.ports.events import EndpointRecord, RecordedEvent

MAX_ERROR_CHARACTERS: Final = 2000
FORGET_ENDPOINT_AFTER: Final = "24 hours"
"""How long the deliveries of an endpoint are kept that is in no configuration any more."""

_MINE: Final = "jobs.id = $1 AND jobs.attempt = $2 AND jobs.worker = $3 AND jobs.state = 'running'"
"""The fence: whoever has lost the lease changes nothing."""

SYNCHRONISE: Final = """
WITH configured AS (
    INSERT INTO webhook_endpoints (name, kinds, profiles)
    SELECT name, kinds, profiles
      FROM jsonb_to_recordset($1::jsonb) AS endpoint (name text, kinds text[], profiles text[])
     ORDER BY name
    ON CONFLICT (name) DO UPDATE
       SET kinds = excluded.kinds, profiles = excluded.profiles, removed_at = NULL
     WHERE (webhook_endpoints.kinds, webhook_endpoints.profiles) IS DISTINCT FROM (excluded.kinds, excluded.profiles)
        OR webhook_endpoints.removed_at IS NOT NULL
)
UPDATE webhook_endpoints SET removed_at = now()
 WHERE removed_at IS NULL AND name <> ALL (SELECT name FROM jsonb_to_recordset($1::jsonb) AS endpoint (name text))
"""
FORGET_ENDPOINTS: Final = f"""
WITH forgotten AS (
    DELETE FROM webhook_endpoints WHERE removed_at <= now() - interval '{FORGET_ENDPOINT_AFTER}' RETURNING name
)
DELETE FROM jobs USING forgotten WHERE jobs.kind = 'deliver' AND jobs.endpoint = forgotten.name
"""  # noqa: S608 -- only constants of this package are inserted, here and below
CLAIM: Final = f"""
WITH due AS (
    SELECT id FROM jobs
     WHERE kind = 'deliver' AND endpoint = $1 AND state IN {LIVE} AND due_at <= now()
       AND EXISTS (SELECT FROM webhook_endpoints WHERE name = $1 AND paused_at IS NULL)
     ORDER BY due_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE jobs SET state = 'running', worker = $3, attempt = attempt + 1, started_at = now(),
                due_at = now() + make_interval(secs => $4)
  FROM due WHERE jobs.id = due.id
RETURNING jobs.id, jobs.upload_id, jobs.attempt, jobs.failures, jobs.next_sequence, jobs.until_sequence
"""  # noqa: S608
EVENTS: Final = f"""
SELECT {EVENT_COLUMNS} FROM events
 WHERE upload_id = $1 AND sequence BETWEEN $2 AND $3 AND kind = ANY ($4::text[])
 ORDER BY sequence LIMIT $5
"""  # noqa: S608
ADVANCE: Final = f"""
UPDATE jobs SET next_sequence = $4, failures = 0, last_error = NULL, error_code = NULL,
                due_at = now() + make_interval(secs => $5)
 WHERE {_MINE}
"""  # noqa: S608
FINISH: Final = f"""
DELETE FROM jobs WHERE {_MINE} AND until_sequence < $4
"""  # noqa: S608
UNTIL: Final = f"SELECT until_sequence FROM jobs WHERE {_MINE}"  # noqa: S608
RETRY: Final = f"""
UPDATE jobs SET state = 'retry_wait', failures = failures + 1, next_sequence = $4, last_error = $5,
                due_at = now() + make_interval(secs => $6)
 WHERE {_MINE}
"""  # noqa: S608
RELEASE: Final = f"UPDATE jobs SET state = 'queued', next_sequence = $4, due_at = now() WHERE {_MINE}"  # noqa: S608
_LOST: Final = """
kind = 'deliver' AND endpoint = $1 AND state = 'running' AND worker = ANY ($2::text[]) AND id <> ALL ($3::bigint[])
"""
# Where a connection was cut, its transaction may hold the lock for another moment.
RELEASE_LOST: Final = f"""
WITH lost AS (
    SELECT id FROM jobs WHERE {_LOST} FOR NO KEY UPDATE SKIP LOCKED
), released AS (
    UPDATE jobs SET state = 'queued', due_at = now() FROM lost WHERE jobs.id = lost.id RETURNING jobs.id
)
SELECT count(*) AS locked FROM jobs WHERE {_LOST} AND id NOT IN (SELECT id FROM released)
"""  # noqa: S608
BURY: Final = f"""
WITH mine AS (
    UPDATE jobs SET next_sequence = $4, failures = 0, last_error = NULL,
                    due_at = now() + make_interval(secs => $7)
     WHERE {_MINE} RETURNING endpoint
)
INSERT INTO dead_letters (endpoint, event_id, upload_id, sequence, kind, error)
SELECT mine.endpoint, events.event_id, events.upload_id, events.sequence, events.kind, $6
  FROM mine JOIN events ON events.event_id = $5
ON CONFLICT (endpoint, event_id) DO UPDATE SET error = excluded.error, died_at = now()
"""  # noqa: S608
PAUSE: Final = "UPDATE webhook_endpoints SET paused_at = now(), error = $2 WHERE name = $1 AND paused_at IS NULL"
RESUME: Final = """
UPDATE webhook_endpoints SET paused_at = NULL, error = NULL WHERE name = $1 AND paused_at IS NOT NULL
"""
# One worker sends progress at a time, and goes on doing so as long as there is any.
TAKE_TURN: Final = """
UPDATE webhook_endpoints SET progress_worker = $2, progress_until = now() + make_interval(secs => $3)
 WHERE name = $1 AND removed_at IS NULL AND paused_at IS NULL
   AND (progress_worker = $2 OR progress_until IS NULL OR progress_until <= now())
"""
NEXT_DUE: Final = f"""
SELECT extract(epoch FROM min(due_at) - now())::float8 AS seconds FROM jobs
 WHERE kind = 'deliver' AND endpoint = $1 AND state IN {LIVE}
   AND EXISTS (SELECT FROM webhook_endpoints WHERE name = $1 AND paused_at IS NULL)
"""  # noqa: S608


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A claimed job: the events of one upload for one endpoint, from `next_sequence` to `until_sequence`."""

    id: int
    attempt: int
    failures: int
    """Tries of its first event that have failed."""
    upload_id: UploadId
    endpoint: str
    next_sequence: int
    until_sequence: int


class DeliveryQueue:
    """The deliveries of one worker process."""

    def __init__(self, database: Database, *, worker: str) -> None:
        self._database = database
        self._worker = worker

    async def synchronise(self, endpoints: Sequence[EndpointRecord]) -> None:
        """Record the endpoints that are configured. A new one is told of what happens from now on."""
        records = [
            {"name": each.name, "kinds": sorted(each.kinds), "profiles": sorted(each.profiles)} for each in endpoints
        ]
        await self._database.execute(SYNCHRONISE, records)

    async def claim(self, endpoint: str, limit: int, *, lease_seconds: float) -> list[Delivery]:
        """Claim due deliveries of an endpoint, the longest due first; none while it is paused."""
        rows = await self._database.fetch(CLAIM, endpoint, limit, self._worker, lease_seconds)
        return [
            Delivery(
                id=row["id"],
                attempt=row["attempt"],
                failures=row["failures"],
                upload_id=UploadId(row["upload_id"]),
                endpoint=endpoint,
                next_sequence=row["next_sequence"],
                until_sequence=row["until_sequence"],
            )
            for row in rows
        ]

    async def events(
        self, delivery: Delivery, kinds: frozenset[str], *, start: int, until: int, limit: int
    ) -> list[RecordedEvent]:
        """Return the next events of a delivery, from sequence `start` to `until`."""
        rows = await self._database.fetch(EVENTS, delivery.upload_id, start, until, sorted(kinds), limit)
        return [event_from_row(row) for row in rows]

    async def advance(self, delivery: Delivery, next_sequence: int, *, lease_seconds: float) -> bool:
        """Record that everything before `next_sequence` is delivered. Return False if the lease is lost."""
        return await self._execute(ADVANCE, delivery, next_sequence, lease_seconds)

    async def finish(self, delivery: Delivery, next_sequence: int) -> int | None:
        """End a delivery of which everything before `next_sequence` is sent.

        Return the sequence of the last event if there are more by now: then it goes on. None: it is over, or
        the lease is lost.
        """
        if await self._execute(FINISH, delivery, next_sequence):
            return None
        row = await self._database.fetchrow(UNTIL, delivery.id, delivery.attempt, self._worker)
        return None if row is None else row["until_sequence"]

    async def retry(self, delivery: Delivery, next_sequence: int, error: str, *, delay_seconds: float) -> bool:
        """Try again later, from `next_sequence` on. Return False if the lease is lost."""
        return await self._execute(RETRY, delivery, next_sequence, error[:MAX_ERROR_CHARACTERS], delay_seconds)

    async def release(self, delivery: Delivery, next_sequence: int) -> None:
        """Give a delivery back that is not to be continued here."""
        await self._execute(RELEASE, delivery, next_sequence)

    async def bury(
        self, delivery: Delivery, event: RecordedEvent, next_sequence: int, error: str, *, lease_seconds: float
    ) -> bool:
        """Put an event on the list of dead letters and go on behind it. Return False if the lease is lost."""
        return await self._execute(BURY, delivery, next_sequence, event.id, error[:MAX_ERROR_CHARACTERS], lease_seconds)

    async def _execute(self, statement: str, delivery: Delivery, *arguments: object) -> bool:
        touched = await self._database.execute(statement, delivery.id, delivery.attempt, self._worker, *arguments)
        return touched > 0

    async def release_lost(self, endpoint: str, dead_workers: Sequence[str], *, held: Sequence[int]) -> bool:
        """Release the deliveries of workers whose processes have ended, and ours but those that we hold.

        Return False if one of them is locked at this moment: then it is to be done again. Nothing of this
        endpoint may be claimed by this worker at the same time.
        """
        rows = await self._database.fetch(RELEASE_LOST, endpoint, [self._worker, *dead_workers], list(held))
        return bool(rows[0]["locked"] == 0)

    async def next_due_seconds(self, endpoint: str) -> float | None:
        """Return in how many seconds the next delivery is due, None if there is none or the endpoint is paused."""
        row = await self._database.fetchrow(NEXT_DUE, endpoint)
        return None if row is None else row["seconds"]

    async def take_turn(self, endpoint: str, *, seconds: float) -> bool:
        """Return whether this worker is the one that tells an endpoint of progress, for so long from now on."""
        return await self._database.execute(TAKE_TURN, endpoint, self._worker, seconds) > 0

    async def pause(self, endpoint: str, error: str) -> bool:
        """Deliver nothing more to an endpoint until somebody resumes it. Return False if it was paused already."""
        return await self._database.execute(PAUSE, endpoint, error[:MAX_ERROR_CHARACTERS]) > 0

    async def resume(self, endpoint: str) -> bool:
        """Deliver to a paused endpoint again. Return False if it was not paused."""
        return await self._database.execute(RESUME, endpoint) > 0
