"""Events in PostgreSQL, for those who read them: live streams, commands, deliveries.

They are recorded by the statements that make the facts; see `statements.record_events`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.ports.events import RecordedEvent
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database, Row

EVENT_COLUMNS: Final = "event_id, upload_id, kind, sequence, created_at, payload, snapshot"

OF_UPLOADS: Final = f"""
SELECT {EVENT_COLUMNS} FROM unnest($1::uuid[], $2::bigint[]) AS wanted (wanted_id, after)
 CROSS JOIN LATERAL (
    SELECT * FROM events WHERE upload_id = wanted.wanted_id AND sequence > wanted.after ORDER BY sequence LIMIT $3
 ) AS found ORDER BY upload_id, sequence
"""  # noqa: S608 -- only constants of this module are inserted, here and below
# Nothing of a transaction that is still running, nor of one that began after it: what is committed late would
# come before what has been read already, and would be skipped.
AFTER: Final = f"""
SELECT xid::text AS xid, id, {EVENT_COLUMNS} FROM events
 WHERE (xid, id) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
   AND ($3::text IS NULL OR owner = $3)
 ORDER BY events.xid, id LIMIT $4
"""  # noqa: S608
LATE: Final = "SELECT id FROM events WHERE (xid, id) > ($1::text::xid8, $2) ORDER BY xid, id LIMIT 1"
NEWEST: Final = """
SELECT xid::text AS xid, id FROM events WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
 ORDER BY events.xid DESC, id DESC LIMIT 1
"""
POSITION: Final = "SELECT xid::text AS xid, id FROM events WHERE event_id = $1"
LATEST: Final = f"""
SELECT {EVENT_COLUMNS} FROM events
 WHERE ($1::uuid IS NULL OR upload_id = $1) AND ($2::text IS NULL OR kind = $2)
 ORDER BY id DESC LIMIT $3
"""  # noqa: S608
BY_IDS: Final = f"SELECT {EVENT_COLUMNS} FROM events WHERE event_id = ANY ($1::uuid[]) ORDER BY id"  # noqa: S608
DATABASE_ID: Final = "SELECT id FROM database_identity"
SEQUENCE: Final = "SELECT sequence FROM events WHERE event_id = $1 AND upload_id = $2"


@dataclass(frozen=True, slots=True, order=True)
class EventPosition:
    """A place in the order of all events: that of their transactions, and within one of their insertion."""

    xid: int
    id: int


BEGINNING: Final = EventPosition(0, 0)


class EventRecords:
    """Reads events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_upload(self, upload_id: UploadId, *, after: int = 0, limit: int = 100) -> list[RecordedEvent]:
        """Return the events of an upload that follow the sequence `after`, oldest first."""
        return await self.of_uploads({upload_id: after}, limit=limit)

    async def of_uploads(self, after: Mapping[UploadId, int], *, limit: int = 100) -> list[RecordedEvent]:
        """Return the events of uploads that follow a sequence of each, oldest first, and up to `limit` of each."""
        rows = await self._database.fetch(OF_UPLOADS, list(after), list(after.values()), limit)
        return [event_from_row(row) for row in rows]

    async def after(
        self, position: EventPosition, *, owner: str | None = None, limit: int = 100
    ) -> list[tuple[EventPosition, RecordedEvent]]:
        """Return the events that follow a position, of one owner or of all (None), each with its own position."""
        rows = await self._database.fetch(AFTER, str(position.xid), position.id, owner, limit)
        return [(_position(row), event_from_row(row)) for row in rows]

    async def late(self, position: EventPosition) -> bool:
        """Return whether there are events after a position, even if `after` does not return them yet."""
        return await self._database.fetchrow(LATE, str(position.xid), position.id) is not None

    async def newest(self) -> EventPosition:
        """Return the position behind everything that has happened."""
        row = await self._database.fetchrow(NEWEST)
        return BEGINNING if row is None else _position(row)

    async def latest(
        self, *, upload_id: UploadId | None = None, kind: EventKind | None = None, limit: int = 100
    ) -> list[RecordedEvent]:
        """Return the latest events, of one upload and kind or of all (None), oldest first."""
        rows = await self._database.fetch(LATEST, upload_id, kind, limit)
        return [event_from_row(row) for row in reversed(rows)]

    async def by_ids(self, event_ids: Sequence[UUID]) -> list[RecordedEvent]:
        """Return those of these events that are kept, oldest first."""
        return [event_from_row(row) for row in await self._database.fetch(BY_IDS, list(event_ids))]

    async def database_id(self) -> UUID:
        """Return the id of this database, the same for as long as it exists."""
        row = await self._database.read(DATABASE_ID)
        assert row is not None  # the migration has inserted it
        found: UUID = row["id"]
        return found

    async def position(self, event_id: UUID) -> EventPosition | None:
        """Return the position of an event, None if it is not kept any more."""
        row = await self._database.fetchrow(POSITION, event_id)
        return None if row is None else _position(row)

    async def sequence(self, upload_id: UploadId, event_id: UUID) -> int | None:
        """Return the sequence of an event of this upload, None if it is not kept any more."""
        row = await self._database.fetchrow(SEQUENCE, event_id, upload_id)
        return None if row is None else row["sequence"]


def _position(row: Row) -> EventPosition:
    return EventPosition(int(row["xid"]), row["id"])


def event_from_row(row: Row) -> RecordedEvent:
    """Build an event from a row with `EVENT_COLUMNS`."""
    return RecordedEvent(
        id=row["event_id"],
        upload_id=UploadId(row["upload_id"]),
        kind=EventKind(row["kind"]),
        sequence=row["sequence"],
        created_at=row["created_at"],
        payload=row["payload"],
        snapshot=row["snapshot"],
    )
