"""Events in PostgreSQL, for those who read them: live streams, commands, deliveries.

They are recorded by the statements that make the facts; see `statements.record_events`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from tusd_py.ports.events import RecordedEvent
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.database.pool import Database, Row

EVENT_COLUMNS: Final = "event_id, upload_id, kind, sequence, created_at, payload, snapshot"

OF_UPLOAD: Final = f"""
SELECT {EVENT_COLUMNS} FROM events WHERE upload_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
"""  # noqa: S608 -- only constants of this module are inserted, here and below
# Nothing of a transaction that is still running, nor of one that began after it: what is committed late would
# come before what has been read already, and would be skipped.
AFTER: Final = f"""
SELECT xid::text AS xid, id, {EVENT_COLUMNS} FROM events
 WHERE (xid, id) > ($1::text::xid8, $2) AND xid < pg_snapshot_xmin(pg_current_snapshot())
   AND ($3::text IS NULL OR owner = $3)
 ORDER BY xid, id LIMIT $4
"""  # noqa: S608
NEWEST: Final = """
SELECT xid::text AS xid, id FROM events WHERE xid < pg_snapshot_xmin(pg_current_snapshot())
 ORDER BY xid DESC, id DESC LIMIT 1
"""
POSITION: Final = "SELECT xid::text AS xid, id FROM events WHERE event_id = $1"
DATABASE_ID: Final = "SELECT id FROM database_identity"
SEQUENCE: Final = "SELECT sequence FROM events WHERE event_id = $1 AND upload_id = $2"


@dataclass(frozen=True, slots=True)
class EventPosition:
    """A place in the order of all events: that of their transactions, and within one of their insertion."""

    xid: str
    id: int


BEGINNING: Final = EventPosition("0", 0)


class EventRecords:
    """Reads events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_upload(self, upload_id: UploadId, *, after: int = 0, limit: int = 100) -> list[RecordedEvent]:
        """Return the events of an upload that follow the sequence `after`, oldest first."""
        return [event_from_row(row) for row in await self._database.fetch(OF_UPLOAD, upload_id, after, limit)]

    async def after(
        self, position: EventPosition, *, owner: str | None = None, limit: int = 100
    ) -> tuple[list[RecordedEvent], EventPosition]:
        """Return the events that follow a position, of one owner or of all (None), and the position behind them."""
        rows = await self._database.fetch(AFTER, position.xid, position.id, owner, limit)
        last = EventPosition(rows[-1]["xid"], rows[-1]["id"]) if rows else position
        return [event_from_row(row) for row in rows], last

    async def newest(self) -> EventPosition:
        """Return the position behind everything that has happened."""
        row = await self._database.fetchrow(NEWEST)
        return BEGINNING if row is None else EventPosition(row["xid"], row["id"])

    async def database_id(self) -> UUID:
        """Return the id of this database, the same for as long as it exists."""
        row = await self._database.read(DATABASE_ID)
        assert row is not None  # the migration has inserted it
        found: UUID = row["id"]
        return found

    async def position(self, event_id: UUID) -> EventPosition | None:
        """Return the position of an event, None if it is not kept any more."""
        row = await self._database.fetchrow(POSITION, event_id)
        return None if row is None else EventPosition(row["xid"], row["id"])

    async def sequence(self, upload_id: UploadId, event_id: UUID) -> int | None:
        """Return the sequence of an event of this upload, None if it is not kept any more."""
        row = await self._database.fetchrow(SEQUENCE, event_id, upload_id)
        return None if row is None else row["sequence"]


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
