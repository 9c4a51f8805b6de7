"""Events as CloudEvents 1.0 in structured JSON (cloudevents.io), for webhooks and live streams."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from tusd_py.protocol.events import TEST_TYPE, TYPE_PREFIX, EventKind
from tusd_py.protocol.upload import State
from tusd_py.uploads.snapshot import upload_from_snapshot
from tusd_py.uploads.view import upload_view

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.config.place import Place
    from tusd_py.ports.events import RecordedEvent
    from tusd_py.protocol.upload import Upload

CONTENT_TYPE: Final = "application/cloudevents+json"
SEQUENCE_DIGITS: Final = 20
NO_UPLOAD: Final = UUID(int=0)


def event_source(config: Config, database_id: UUID) -> str:
    """Return whose events these are: the public URL of the server, or else the name of its database."""
    return config.server.public_url or f"urn:tusd_py:{database_id}"


def cloud_event(
    event: RecordedEvent, config: Config, *, place: Place | None, source: str, prefix: str = ""
) -> dict[str, Any]:
    """Return an event with the upload as the API shows it. `place` and `prefix` are those of `upload_view`."""
    data = upload_view(upload_from_snapshot(event.snapshot), config, place=place, prefix=prefix)
    if (code := event.payload.get("code")) is not None:
        data["error_code"] = code
    return {
        "specversion": "1.0",
        "id": str(event.id),
        "source": source,
        "type": f"{TYPE_PREFIX}{event.kind.value}",
        "subject": str(event.upload_id),
        "time": event.created_at,
        # Compared as text (the sequence extension of CloudEvents).
        "sequence": str(event.sequence).zfill(SEQUENCE_DIGITS),
        "datacontenttype": "application/json",
        "data": data,
    }


def progress_event(upload: Upload, config: Config, *, source: str, prefix: str = "") -> dict[str, Any]:
    """Return how far an upload is. It was not recorded: its id is made of what it says, and it has no sequence."""
    return {
        "specversion": "1.0",
        "id": f"{upload.id}:{upload.offset}",
        "source": source,
        "type": f"{TYPE_PREFIX}{EventKind.PROGRESS.value}",
        "subject": str(upload.id),
        "time": upload.updated_at,
        "datacontenttype": "application/json",
        "data": upload_view(upload, config, place=None, prefix=prefix),
    }


def make_test_event(event_id: UUID, time: datetime, *, source: str) -> dict[str, Any]:
    """Return an event that only shows that it arrives: of no upload, with the nil UUID as its id."""
    return {
        "specversion": "1.0",
        "id": str(event_id),
        "source": source,
        "type": TEST_TYPE,
        "subject": str(NO_UPLOAD),
        "time": time,
        "datacontenttype": "application/json",
        "data": {"id": str(NO_UPLOAD), "state": State.CREATED.value},
    }
