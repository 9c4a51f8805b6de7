"""The record of uploads, and what cleanup asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

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
    from tusd_py.protocol.concat import Joined, Room


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


class UploadRepository(Protocol):
    """The truth about uploads. Every method raises `DatabaseUnavailable` when it cannot be reached."""

    async def create(self, new: NewUpload) -> Upload:
        """Insert a row; a complete one comes with its transfer job and event."""

    async def create_final(
        self,
        new: NewUpload,
        parts: Sequence[TokenHash],
        *,
        allow_unfinished: bool,
        allow_repeated: bool = False,
        room: Room | None = None,
    ) -> Upload:
        """Insert a final upload over its parts, complete if they are.

        With `room` it must fit into that beside all finals that are not stored yet.

        Raises:
            InvalidConcat, PartialNotFinished, UploadTooLarge, StoreFull: nothing is created.
        """

    async def find_by_token(self, token_hash: TokenHash) -> Upload | None:
        """Return the upload behind a tus URL, whatever its state."""

    async def find(self, upload_id: UploadId) -> Upload | None:
        """Return an upload by its public id, whatever its state."""

    async def newest(
        self,
        owner: str | None,
        *,
        after: ListPosition | None,
        limit: int,
        hide: Sequence[State],
        state: State | None = None,
    ) -> list[Upload]:
        """Return the newest uploads of an owner (None: everybody's) that follow a position.

        With a `state` only those in it, else all but those in a state to `hide`.
        """

    async def parts(self, final_id: UploadId) -> list[Upload]:
        """Return the parts of a final upload in order."""

    async def advance(  # noqa: PLR0913 -- each is one fact of the row, and most are keywords
        self,
        upload: Upload,
        new_offset: int,
        crc64nvme: int | None,
        *,
        expires_after_seconds: float,
        length: int | None = None,
        completes: bool = True,
    ) -> Upload:
        """Record that bytes [upload.offset, new_offset) are durable. Call only after a sync.

        `length` is recorded with it where the upload has none. Reaching the length completes the
        upload and queues its transfer in the same statement, unless `completes` is false.

        Raises:
            OffsetConflict: another writer moved the upload, or became its writer; nothing was changed.
        """

    async def become_writer(self, upload_id: UploadId) -> Upload | None:
        """Fence out all earlier writers and return the upload with the offset that is then final for them.

        None: it does not receive bytes any more. To be called by whoever holds the file and is about to cut it.
        """

    async def declare_length(self, upload: Upload, length: int) -> Upload:
        """Fix the length of an upload created without one. Raises `LengthConflict`."""

    async def record_damage(self, upload_id: UploadId, reason: str) -> None:
        """Note that the staged bytes of an unfinished upload are damaged."""

    async def remove(self, upload_id: UploadId, *, force: bool = False) -> Upload:
        """Make the upload gone for everybody and queue the removal of its bytes.

        With `force` a transfer under way is cancelled; the removal then waits until its worker has
        acknowledged that, or its lease has ended.

        Raises:
            UploadNotFound, UploadHeld, PartialInUse, TransferInProgress: nothing was changed.
        """

    async def commit(self, upload_id: UploadId) -> Upload:
        """Record that the application keeps a complete upload; queue its transfer if it waited for that.

        Once more is fine and changes nothing.

        Raises:
            UploadNotFound: there is none, or it is gone.
            NotReady: bytes are still missing.
            InvalidTransition: it is a partial upload.
        """

    async def request_transfer(self, upload_id: UploadId) -> TransferOrder:
        """Queue the transfer of a complete upload, or try a failed one again, with all its retries.

        One that waits or runs is answered as it is; so is the last one of a stored upload.

        Raises:
            UploadNotFound, NotReady, InvalidTransition: as `commit` does.
        """

    async def sent_bytes(self, upload_id: UploadId) -> int:
        """Return how many bytes the store has acknowledged of an upload whose transfer is not over."""

    async def transfer_view(self, upload_id: UploadId) -> TransferView | None:
        """Return how the latest transfer stands, None if there is none."""

    async def attempts(self, upload_id: UploadId, limit: int) -> list[AttemptView]:
        """Return the latest attempts of an upload's jobs, newest first."""
