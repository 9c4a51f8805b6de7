"""The upload that is stored with an event, as the change left it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from tusd_py.protocol.checksum import DigestSet
from tusd_py.protocol.upload import (
    DEFAULT_PROFILE,
    FIRST_PLACE,
    Concat,
    StagingId,
    State,
    Trigger,
    Upload,
    UploadId,
    UploadProtocol,
)

_BYTEA: Final = "\\x"
"""What PostgreSQL begins a `bytea` with in text."""


def upload_from_snapshot(snapshot: Mapping[str, Any]) -> Upload:
    """Return the upload in a snapshot: the row as `to_jsonb` writes it, without `concat_header`.

    A snapshot of an earlier release may lack columns that came later.
    """
    column = snapshot.get
    promised = column("repr_digest")
    return Upload(
        id=UploadId(UUID(snapshot["id"])),
        owner=column("owner"),
        staging_id=StagingId(UUID(snapshot["staging_id"])),
        state=State(snapshot["state"]),
        length=column("upload_length"),
        offset=snapshot["upload_offset"],
        metadata=column("metadata"),
        filename=column("filename"),
        content_type=column("content_type"),
        content_encoding=column("content_encoding"),
        content_language=column("content_language"),
        writer=column("writer") or 0,
        concat=Concat(snapshot["concat"]) if column("concat") else None,
        concat_header=None,
        crc64nvme=None if column("crc64nvme") is None else snapshot["crc64nvme"] % (1 << 64),
        object_key=snapshot["object_key"],
        local_present=snapshot["local_present"],
        remote_present=snapshot["remote_present"],
        hold=snapshot["hold"],
        created_at=datetime.fromisoformat(snapshot["created_at"]),
        updated_at=datetime.fromisoformat(snapshot["updated_at"]),
        expires_at=_time(column("expires_at")),
        completed_at=_time(column("completed_at")),
        committed_at=_time(column("committed_at")),
        stored_at=_time(column("stored_at")),
        etag=column("etag"),
        version_id=column("version_id"),
        place_id=column("place_id") or FIRST_PLACE,
        missing_at=_time(column("missing_at")),
        sha256=_bytes(column("sha256")),
        md5=_bytes(column("md5")),
        error=column("error"),
        protocol=UploadProtocol(column("protocol") or UploadProtocol.TUS),
        repr_digest=DigestSet.from_text(promised) if promised is not None else None,
        profile=column("profile") or DEFAULT_PROFILE,
        trigger=Trigger(column("trigger") or Trigger.COMPLETE),
        finishing=bool(column("finishing")),
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text.removeprefix(_BYTEA))
