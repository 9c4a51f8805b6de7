"""The upload, its states, the moves between them, and what a PATCH may do. Pure.

Everything that decides whether a state may change lives here; SQL and the documentation's diagram
take their lists from `TRANSITIONS`, so that picture, database and code cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, NewType
from uuid import UUID

from tusd_py.errors import (
    AppendTooLarge,
    FinalImmutable,
    LengthConflict,
    LengthExceeded,
    OffsetMismatch,
    ProtocolError,
    ProtocolMismatch,
    UnsupportedVersion,
    UploadCompleted,
    UploadFinishing,
    UploadTooLarge,
)
from tusd_py.protocol.checksum import Checksum, DigestSet
from tusd_py.protocol.fields import MAX_INTEGER

UploadId = NewType("UploadId", UUID)
"""Public and stable: downloads, API, logs, events."""
StagingId = NewType("StagingId", UUID)
"""The id of a staging directory, kept in it and in the database."""
TokenHash = NewType("TokenHash", bytes)
"""SHA-256 of the token in the tus URL. The token itself is a write capability and is not kept."""

FIRST_PLACE: Final = 1
"""The place of everything that was stored before places were recorded."""
DEFAULT_PROFILE: Final = "default"
"""The profile of everybody whose token names none."""


class State(StrEnum):
    """The states of an upload."""

    CREATED = "created"
    UPLOADING = "uploading"
    COMPLETED = "completed"
    TRANSFERRING = "transferring"
    STORED = "stored"
    TRANSFER_FAILED = "transfer_failed"
    REJECTED = "rejected"
    """Its content was refused. Nothing refuses any yet: checks of the content, such as a scan for viruses, will."""
    EXPIRED = "expired"
    REMOVING = "removing"
    REMOVED = "removed"


class Event(StrEnum):
    """The events that move an upload from one state to the next."""

    APPEND = "append"
    COMPLETE = "complete"
    REJECT = "reject"
    """Of the checks of the content to come; see `State.REJECTED`."""
    TRANSFER = "transfer"
    STORE = "store"
    GIVE_UP = "give_up"
    LOSE = "lose"
    EXPIRE = "expire"
    REMOVE = "remove"
    REMOVED = "removed"


TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    State.CREATED: {
        Event.APPEND: State.UPLOADING,
        Event.COMPLETE: State.COMPLETED,
        Event.EXPIRE: State.EXPIRED,
        Event.REMOVE: State.REMOVING,
    },
    State.UPLOADING: {
        Event.APPEND: State.UPLOADING,
        Event.COMPLETE: State.COMPLETED,
        Event.EXPIRE: State.EXPIRED,
        Event.REMOVE: State.REMOVING,
    },
    State.COMPLETED: {
        Event.TRANSFER: State.TRANSFERRING,
        Event.REJECT: State.REJECTED,
        Event.EXPIRE: State.EXPIRED,
        Event.REMOVE: State.REMOVING,
    },
    State.TRANSFERRING: {
        Event.TRANSFER: State.TRANSFERRING,
        Event.STORE: State.STORED,
        Event.GIVE_UP: State.TRANSFER_FAILED,
        Event.REJECT: State.REJECTED,
        Event.REMOVE: State.REMOVING,
    },
    State.TRANSFER_FAILED: {Event.TRANSFER: State.TRANSFERRING, Event.REMOVE: State.REMOVING},
    # The object is gone behind our back, and the staged copy is still there to be sent again.
    State.STORED: {Event.LOSE: State.TRANSFER_FAILED, Event.REMOVE: State.REMOVING},
    State.REJECTED: {Event.REMOVE: State.REMOVING},
    State.EXPIRED: {},
    State.REMOVING: {Event.REMOVED: State.REMOVED},
    State.REMOVED: {},
}

GONE: Final = frozenset({State.EXPIRED, State.REMOVING, State.REMOVED, State.REJECTED})
"""States in which the upload is no longer there for anybody."""
RECEIVING: Final = frozenset({State.CREATED, State.UPLOADING})
"""States in which bytes are still missing."""


def sources(event: Event) -> list[str]:
    """Return the states from which `event` may happen, for `state = ANY(…)` in SQL."""
    return [state.value for state, moves in TRANSITIONS.items() if event in moves]


class Concat(StrEnum):
    """The role of an upload in a concatenation."""

    PARTIAL = "partial"
    FINAL = "final"


class UploadProtocol(StrEnum):
    """The protocol an upload was created in; bytes are appended to it in no other."""

    TUS = "tus"
    RUFH = "rufh"


class Trigger(StrEnum):
    """The event that begins the transfer of an upload. Fixed at its creation, whatever is configured later."""

    COMPLETE = "complete"
    COMMIT = "commit"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload as recorded. `offset` counts bytes that are durable in staging."""

    id: UploadId
    owner: str | None
    staging_id: StagingId
    """The staging directory that receives its bytes and keeps them until they are stored."""
    state: State
    length: int | None
    offset: int
    metadata: str | None
    filename: str | None
    content_type: str | None
    concat: Concat | None
    concat_header: str | None
    crc64nvme: int | None
    object_key: str
    local_present: bool
    remote_present: bool
    hold: bool
    """It must not expire and cannot be removed. Nothing sets it yet: operators will, by the API."""
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    completed_at: datetime | None = None
    stored_at: datetime | None = None
    etag: str | None = None
    version_id: str | None = None
    place_id: int = FIRST_PLACE
    """Which of the stores that are or were configured holds its object, or is to hold it."""
    missing_at: datetime | None = None
    """Since when it is known that bytes are missing which should be there."""
    sha256: bytes | None = None
    md5: bytes | None = None
    error: str | None = None
    protocol: UploadProtocol = UploadProtocol.TUS
    repr_digest: DigestSet | None = None
    """What all bytes together must have, where the client promised that."""
    profile: str = DEFAULT_PROFILE
    trigger: Trigger = Trigger.COMPLETE
    committed_at: datetime | None = None
    writer: int = 0
    """Raised by whoever is about to cut the staged bytes: earlier writers then move the offset no more."""
    content_encoding: str | None = None
    content_language: str | None = None
    finishing: bool = False
    """Every byte is durable, and the application has not yet said that it may be complete."""

    @property
    def complete(self) -> bool:
        """Return whether every byte has been received."""
        return self.length is not None and self.offset == self.length and self.state not in RECEIVING

    @property
    def receiving(self) -> bool:
        """Return whether it is not complete and may still become so by bytes, or by a word of its client."""
        return self.state in RECEIVING and not self.finishing

    @property
    def pending_final(self) -> bool:
        """Return whether this is a final upload that still waits for its partial uploads."""
        return self.concat is Concat.FINAL and self.state in RECEIVING

    def gone(self, now: datetime) -> bool:
        """Return whether nobody may use the upload any more, reaped or merely overdue."""
        overdue = self.expires_at is not None and self.expires_at <= now and not self.finishing
        return overdue or self.state in GONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """A PATCH, free of any dialect's header names: append its body at an offset."""

    offset: int
    content_length: int | None
    """Bytes of the body, None for a chunked one."""
    length: int | None = None
    """Declares the length of an upload created without one."""
    checksum: Checksum | DigestSet | None = None
    checksum_in_trailer: bool = False
    completes: bool | None = None
    """True: the upload is complete after this body. False: more follows. None: the length decides."""
    max_body_bytes: int | None = None
    """Most bytes of this one body."""
    want_repr_digest: str | None = None
    """Algorithm of a digest of all bytes, which the client wants to be told once they are here."""
    fail_on_overrun: bool = False
    """An upload that is sent more than its length is given up."""
    protocol: UploadProtocol = UploadProtocol.TUS
    """The protocol that the request was written in."""
    header_error: ProtocolError | None = None
    """A malformed header: it counts only once the upload is found, before its offset is looked at."""
    deferred_error: ProtocolError | None = None
    """A malformed header of an extension: it counts only once the offset is known to be right."""
    url_sent_only_on_success: bool = False
    """The client learns the URL from the answer: what is cut short, nobody will ever resume."""


@dataclass(frozen=True, slots=True)
class AppendPlan:
    """The bytes that one PATCH may write."""

    start: int
    max_bytes: int
    length: int | None
    """The upload's length, where the row or this request tells it."""
    too_large: type[LengthExceeded | UploadTooLarge]
    """The error for a body that runs past `max_bytes`."""

    def bounded(self, append: Append) -> AppendPlan:
        """Return the same with what the body itself may and must be."""
        plan = self
        if append.max_body_bytes is not None and append.max_body_bytes < plan.max_bytes:
            plan = replace(plan, max_bytes=append.max_body_bytes, too_large=AppendTooLarge)
        if append.content_length is None:
            return plan
        if append.content_length > plan.max_bytes:
            raise plan.too_large
        if not append.completes:
            return plan
        end = plan.start + append.content_length
        if plan.length is not None and plan.length != end:
            raise LengthConflict("The last bytes do not reach the length of the upload.")
        return replace(plan, length=end)

    def changes_nothing(self, upload: Upload, append: Append) -> bool:
        """Return whether there is no byte to write and nothing to record."""
        empty = append.content_length == 0 and append.checksum is None
        return empty and self.length == upload.length and not append.completes


def check_length(upload: Upload, declared: int | None, *, max_size: int | None) -> int | None:
    """Return the length that holds once a PATCH declared one (tus 1.0.0 §creation-defer-length).

    Raises:
        LengthConflict: the length is known and another, or smaller than what has been received.
        UploadTooLarge: more than this server accepts.
    """
    if declared is None or declared == upload.length:
        return upload.length
    if upload.length is not None:
        raise LengthConflict
    if declared < upload.offset:
        raise LengthConflict("Upload-Length is smaller than what has been received already.")
    if max_size is not None and declared > max_size:
        raise UploadTooLarge
    return declared


def check_append(upload: Upload, append: Append) -> None:
    """Refuse what no offset could make right. To be asked before a request that writes is told to stop.

    Raises:
        FinalImmutable: PATCH on a final upload (tus 1.0.0 §concatenation).
        ProtocolMismatch: another protocol created the upload, and only that one knows when it is complete.
        ProtocolError: the header_error of the request.
        UploadFinishing: every byte is here, and whether it is complete is not known yet.
    """
    if upload.concat is Concat.FINAL:
        raise FinalImmutable
    if upload.protocol is not append.protocol:
        raise ProtocolMismatch
    if append.header_error is not None:
        raise append.header_error
    if upload.finishing:
        raise UploadFinishing


def check_termination(upload: Upload, protocol: UploadProtocol | None) -> None:
    """Demand of clients that say so (tus) that they do. `protocol` is None where the request names none.

    Raises:
        UnsupportedVersion: the upload belongs to tus, and the request does not say that it speaks it.
    """
    if protocol is None and upload.protocol is UploadProtocol.TUS:
        raise UnsupportedVersion


def plan_append(upload: Upload, append: Append, *, max_size: int | None) -> AppendPlan:
    """Decide, before a byte is read, how much of a body may be written.

    Raises:
        FinalImmutable, ProtocolMismatch, ProtocolError, UploadFinishing: see `check_append`.
        OffsetMismatch: the client is not at our offset (tus 1.0.0 §PATCH).
        LengthConflict, UploadTooLarge: see `check_length`.
        LengthExceeded: Content-Length runs past the length; UploadTooLarge if that is not known yet.
        UploadCompleted: more is to come, says the request, and nothing may.
        ProtocolError: the deferred_error of the request, which comes last.
    """
    check_append(upload, append)
    if append.offset != upload.offset:
        raise OffsetMismatch(current=upload.offset, received=append.offset)
    length = check_length(upload, append.length, max_size=max_size)
    limit = length if length is not None else (max_size if max_size is not None else MAX_INTEGER)
    plan = AppendPlan(
        start=upload.offset,
        max_bytes=limit - upload.offset,
        length=length,
        too_large=UploadTooLarge if length is None else LengthExceeded,
    ).bounded(append)
    if append.completes is False and upload.state not in RECEIVING:
        raise UploadCompleted
    if append.deferred_error is not None:
        raise append.deferred_error
    return plan
