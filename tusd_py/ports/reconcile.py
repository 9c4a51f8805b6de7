"""An upload as reconcile compares it: what the database says of its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.protocol.upload import Concat, StagingId, State, UploadId


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRecord:
    """What the database says of an upload, as far as its bytes are concerned. Ages in seconds."""

    id: UploadId
    staging_id: StagingId
    state: State
    concat: Concat | None
    length: int | None
    offset: int
    crc64nvme: int | None
    object_key: str
    multipart_id: str | None
    etag: str | None
    version_id: str | None
    place_id: int
    local_present: bool
    remote_present: bool
    missing: bool
    """An earlier run has recorded that bytes are missing."""
    busy: bool
    """It has a job that has not ended."""
    jobless: str | None
    """The kind of the job that it waits for and does not have."""
    age_seconds: float
    """Since its last change."""
    stored_seconds: float


@dataclass(frozen=True, slots=True)
class StagedPartial:
    """A partial upload of a concatenation, whose bytes are kept in staging."""

    upload_id: UploadId
    length: int
