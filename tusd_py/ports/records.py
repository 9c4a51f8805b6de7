"""What the database takes and returns of an upload beside the upload itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tusd_py.ports.queue import JobKind, JobState
from tusd_py.protocol.upload import (
    DEFAULT_PROFILE,
    FIRST_PLACE,
    Concat,
    StagingId,
    State,
    TokenHash,
    Trigger,
    Upload,
    UploadId,
    UploadProtocol,
)

if TYPE_CHECKING:
    from tusd_py.protocol.checksum import DigestSet
    from tusd_py.protocol.concat import Joined


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpload:
    """A row to be. `offset` bytes are already durable in staging."""

    id: UploadId
    token_hash: TokenHash
    owner: str | None
    staging_id: StagingId
    length: int | None
    offset: int = 0
    crc64nvme: int | None = 0
    metadata: str | None = None
    filename: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    content_language: str | None = None
    concat: Concat | None = None
    concat_header: str | None = None
    repr_digest: DigestSet | None = None
    protocol: UploadProtocol = UploadProtocol.TUS
    completes: bool = True
    """Reaching the length completes it."""
    object_key: str
    place_id: int = FIRST_PLACE
    profile: str = DEFAULT_PROFILE
    trigger: Trigger = Trigger.COMPLETE
    expires_after_seconds: float = 0
    """0: never."""
    request: Mapping[str, Any] | None = None
    """What the event keeps of the client's request; see `uploads.kept_requests`."""

    @property
    def state(self) -> State:
        """The state this row starts in."""
        reached = self.length is not None and self.length == self.offset
        if reached and self.completes and self.crc64nvme is not None:
            return State.COMPLETED
        return State.UPLOADING if self.offset else State.CREATED

    def joined(self, joined: Joined) -> NewUpload:
        """Return the row of a final upload made of parts."""
        offset = joined.length if joined.complete and joined.length is not None else 0
        return replace(self, length=joined.length, offset=offset, crc64nvme=joined.crc64nvme)


@dataclass(frozen=True, slots=True)
class ListPosition:
    """The place of an upload in a list that begins with the newest. No two uploads share one."""

    created_at: datetime
    id: UploadId


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferView:
    """What people may know of the latest transfer of an upload."""

    id: int
    state: JobState
    attempts: int
    failures: int
    bytes_done: int
    next_attempt_at: datetime | None
    last_error: str | None
    error_code: str | None

    @property
    def over(self) -> bool:
        """Return whether it will not be tried again by itself."""
        return self.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOrder:
    """The answer to somebody who wants an upload transferred."""

    upload: Upload
    """As it was found."""
    transfer_id: int | None
    """None for an upload that is stored and whose jobs are forgotten."""
    queued: bool = False
    """It was queued only now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """One claim of a job, and how it ended. `worker` and `error` are for operators."""

    job_id: int
    kind: JobKind
    number: int
    worker: str | None
    outcome: str | None
    """None while it runs."""
    error_code: str | None
    error: str | None
    started_at: datetime
    finished_at: datetime | None
