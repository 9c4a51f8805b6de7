"""The contracts between the layers: every Protocol that a service or the worker is handed.

Adapters subclass these explicitly, so that the class line lists their capabilities and the type
checker reports a missing method where the adapter is built. Nothing here imports an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable
from uuid import UUID

from tusd_py.policy import Principal
from tusd_py.protocol.upload import Concat, State, TokenHash, Upload, UploadId

if TYPE_CHECKING:
    from tusd_py.errors import StorageError
    from tusd_py.protocol.checksum import Hasher
    from tusd_py.protocol.concat import Joined


# --- what travels between staging, the worker and the stores ---------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """One staged file holding `length` bytes of an upload. Segments are read in order."""

    path: Path
    length: int


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What a store is asked to hold.

    `key` is rendered once when the transfer is queued and never changes; `crc64nvme` is the
    CRC-64/NVME of the whole object as it came from the client's socket, None if unknown.
    """

    upload_id: str
    key: str
    length: int
    crc64nvme: int | None
    content_type: str
    filename: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object that it holds."""

    key: str
    length: int
    etag: str | None = None
    version_id: str | None = None
    crc64nvme: int | None = None
    upload_id: str | None = None
    """Our own id as recorded with the object, where the store keeps metadata."""


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of a multipart upload that the store has acknowledged."""

    number: int
    length: int
    etag: str
    crc64nvme: int | None = None


class TransferLedger(Protocol):
    """The durable memory of one transfer: what a killed worker's successor continues from.

    Every method raises `TransferCancelled` (a `StorageError`) once the transfer was cancelled or
    its lease was lost, so that a late worker stops before it changes anything.
    """

    async def multipart_id(self) -> str | None:
        """Answer the multipart upload id recorded for this transfer, None if there is none."""

    async def record_multipart(self, multipart_id: str | None) -> None:
        """Record the multipart id (None: forget it, and every part) before a part is sent."""

    async def parts(self) -> Sequence[PartRecord]:
        """Answer the parts recorded so far, in order of their number."""

    async def record_part(self, part: PartRecord) -> None:
        """Record a part that the store has acknowledged."""

    async def progress(self, bytes_done: int) -> None:
        """Say how many bytes the store holds; throttled, so it may be called for every part."""


@runtime_checkable
class ObjectStore(Protocol):
    """A destination for finished uploads."""

    name: str

    async def open(self) -> None:
        """Acquire clients and check the cheap preconditions. Called once per process."""

    async def close(self) -> None:
        """Release everything `open` acquired."""

    async def put(
        self, spec: ObjectSpec, segments: Sequence[Segment], ledger: TransferLedger
    ) -> StoredObject:
        """Make the object hold exactly the bytes of `segments`, whatever was there of an earlier try.

        Idempotent: a second call after success, or after a crash at any moment, ends with the same
        single object. When this returns the object is durable and its length and, where the store
        can tell, its checksum were compared.

        Raises:
            TransientStoreError: a retry may help.
            PermanentStoreError: a retry cannot help (no such bucket, access denied, too large).
            StagingDamaged: a staged file is missing, short, or does not match `spec.crc64nvme`.
        """

    async def stat(self, key: str) -> StoredObject | None:
        """Answer what the store holds under `key`, None if nothing."""

    async def remove(self, key: str) -> None:
        """Remove the object; nothing there is success."""

    async def abort(self, key: str, multipart_id: str) -> None:
        """Drop an unfinished multipart upload; nothing there is success."""

    async def probe(self) -> None:
        """Show that the store can be reached. Raises `TransientStoreError` or `PermanentStoreError`."""


@runtime_checkable
class Presigner(Protocol):
    """A store whose objects a client fetches by itself through a short-lived URL."""

    async def presign(
        self, key: str, *, content_type: str, content_disposition: str, expires_seconds: int
    ) -> str:
        """Answer a URL that serves the object with these headers until it expires."""


@runtime_checkable
class LocalObjects(Protocol):
    """A store whose objects are files that this process can open."""

    def local_path(self, key: str) -> Path:
        """Answer the object's path. Never leaves the store's root, whatever the key."""


@runtime_checkable
class BatchStore(Protocol):
    """A store that takes many small objects at once for less than one by one."""

    async def put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]]
    ) -> list[StoredObject | StorageError]:
        """Store every object as `put` does and answer one result per item, in their order.

        An item's failure is its result and leaves the others alone. There is no ledger: an object
        small enough for a batch is sent again rather than continued.
        """


# --- the record of uploads -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpload:
    """A row to be. `offset` bytes are already durable in staging."""

    id: UploadId
    token_hash: TokenHash
    owner: str | None
    node: str
    length: int | None
    offset: int = 0
    crc64nvme: int | None = 0
    metadata: str | None = None
    filename: str | None = None
    content_type: str | None = None
    concat: Concat | None = None
    concat_header: str | None = None
    object_key: str
    expires_after_seconds: float = 0
    """0: never."""

    @property
    def state(self) -> State:
        """The state this row starts in."""
        if self.length is not None and self.length == self.offset and self.crc64nvme is not None:
            return State.COMPLETED
        return State.UPLOADING if self.offset else State.CREATED

    def joined(self, joined: Joined) -> NewUpload:
        """Answer the row of a final upload made of parts."""
        offset = joined.length if joined.complete and joined.length is not None else 0
        return replace(self, length=joined.length, offset=offset, crc64nvme=joined.crc64nvme)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferView:
    """What people may know of the latest transfer of an upload."""

    state: str
    attempts: int
    failures: int
    bytes_done: int
    next_attempt_at: datetime | None
    last_error: str | None
    error_code: str | None


class UploadRepository(Protocol):
    """The truth about uploads. Every method raises `DatabaseUnavailable` when it cannot be reached."""

    async def create(self, new: NewUpload) -> Upload:
        """Insert a row; a complete one comes with its transfer job and event."""

    async def create_final(self, new: NewUpload, parts: Sequence[TokenHash], *, allow_unfinished: bool) -> Upload:
        """Insert a final upload over its parts, complete if they are. Raises `InvalidConcat` and kin."""

    async def find_by_token(self, token_hash: TokenHash) -> Upload | None:
        """Answer the upload behind a tus URL, whatever its state."""

    async def find(self, upload_id: UploadId) -> Upload | None:
        """Answer an upload by its public id, whatever its state."""

    async def newest(self, owner: str | None, *, before: object, limit: int, hide: Sequence[State]) -> list[Upload]:
        """Answer the newest uploads of an owner (None: everybody's) created before a moment."""

    async def parts(self, final_id: UploadId) -> list[Upload]:
        """Answer the parts of a final upload in order."""

    async def advance(
        self,
        upload: Upload,
        new_offset: int,
        crc64nvme: int | None,
        *,
        expires_after_seconds: float,
        length: int | None = None,
    ) -> Upload:
        """Record that bytes [upload.offset, new_offset) are durable. Call only after a sync.

        `length` is recorded with it where the upload has none. Reaching the length completes the
        upload and queues its transfer in the same statement.

        Raises:
            OffsetConflict: another writer moved the upload; nothing was changed.
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
            UploadNotFound, UploadHeld, PartInUse, TransferInProgress: nothing was changed.
        """

    async def requeue(self, upload_id: UploadId) -> Upload:
        """Try a failed transfer again, with all its retries. Once more while it waits or runs is fine.

        Raises:
            UploadNotFound: there is none, or it is gone.
            InvalidTransition: there is no failed transfer to repeat.
        """

    async def transfer_view(self, upload_id: UploadId) -> TransferView | None:
        """Answer how the latest transfer stands, None if there is none."""


# --- staging and locks -----------------------------------------------------------------------------


class StagingFile(Protocol):
    """A staged file opened for its only writer. Methods run in threads; none may overlap another."""

    size: int
    """Bytes in the file when it was opened."""

    async def truncate(self, length: int) -> None:
        """Cut what lies beyond `length`. Raises `StagingDamaged` if there is less."""

    async def write(
        self,
        chunks: Sequence[bytes | memoryview],
        offset: int,
        crc64nvme: int,
        *,
        sync: bool = False,
        hasher: Hasher | None = None,
    ) -> int:
        """Write the chunks at `offset`, feed them to `hasher`, and answer the running checksum.

        With `sync` everything written so far survives a power cut (fdatasync) when this returns.

        Raises:
            StagingFull, StorageError: some of the chunks may have been written.
        """

    async def feed(self, hasher: Hasher, start: int, stop: int) -> None:
        """Read bytes [start, stop) back into `hasher`."""

    async def close(self) -> None:
        """Let go of the file and of its lock."""


class Staging(Protocol):
    """The disk that receives the bytes."""

    def new_id(self) -> UploadId:
        """Answer a fresh public id, random but for what lets files of the same moment lie together."""

    async def store_small(self, upload_id: UploadId, chunks: Sequence[bytes | memoryview]) -> int:
        """Create a file that holds exactly `chunks`, durable, and answer their checksum."""

    async def open(self, upload_id: UploadId, *, create: bool) -> StagingFile | None:
        """Open for writing and take the file's lock; None while another process holds it.

        Raises:
            StagingMissing: there is no such file, and it is not to be created.
        """

    def probe(self, upload_id: UploadId) -> int | None:
        """Answer the file's size, 0 if there is none, None while another process writes to it.

        Quick: two system calls, no thread.
        """

    def path(self, upload_id: UploadId) -> Path:
        """Answer where the file is."""

    async def remove(self, upload_ids: Sequence[UploadId]) -> None:
        """Remove files; missing ones are fine."""

    def check_space(self, wanted: int) -> None:
        """Raise `StagingFull` if `wanted` bytes would not leave the reserve untouched."""


OnContended = Callable[[], None]
"""Called when a newer request wants what is held: stop, store, let go."""


class UploadLocks(Protocol):
    """At most one request at a time per upload; the newest asks the holder to stop."""

    def hold(self, upload_id: UploadId, on_contended: OnContended) -> AbstractAsyncContextManager[bool]:
        """Hold an upload; the value tells whether somebody else held it just before.

        Raises:
            UploadLocked: it was not let go in time.
        """

    def held(self, upload_id: UploadId) -> bool:
        """Tell whether a request of this process holds the upload."""

    async def ask_others(self, upload_id: UploadId) -> None:
        """Ask other processes to let go. Never fails: it is a hint."""


class Body(Protocol):
    """The body of a request."""

    length: int | None
    """Bytes announced, None for a chunked body."""

    async def accept(self) -> None:
        """Say that the body is wanted: `100 Continue`, if the client waits for it."""

    async def read(self, wait_seconds: float | None = None) -> bytes | None:
        """Answer what has arrived, at least one byte; `b""` at the end; None after `wait_seconds`.

        Raises:
            BodyError: the body ended without its end. What had arrived was answered before.
        """

    def trailer(self, name: str) -> str | None:
        """Answer a trailer field. Only after the end of the body."""

    def interrupt(self, error: Exception) -> None:
        """Make the current or next `read` raise `error`, after it has answered what had arrived."""


# --- the queue -------------------------------------------------------------------------------------

LARGE_BYTES: Final = 16 * 2**20
"""Jobs that move more are large: they take long, so a worker claims only what it can run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A claimed job. `attempt` fences: whoever claims the job next has a higher one."""

    id: int
    kind: str
    attempt: int
    failures: int
    started_at: datetime
    upload: Upload
    multipart_id: str | None
    runnable: bool
    """False: the upload has moved on, and nothing is left to do."""


class JobQueue(Protocol):
    """Work that must happen, however often a process dies.

    A claim is a lease. Whoever holds one stops working on the job before it ends, and acknowledges
    with one of `finish_…`, `retry`, `fail` or `discard` that it has stopped.
    """

    async def claim(self, limit: int, *, large: int | None = None) -> list[Job]:
        """Take over due jobs of this node: up to `limit`, and beside them up to `large` large ones.

        None: as many large ones as others.
        """

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        """Extend the leases; answer the ids that are still ours and may go on."""

    async def release(self, jobs: Sequence[Job]) -> None:
        """Let the leases run out in a moment, for somebody else to go on. Counts as no failure."""

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        """Record objects as stored; answer the ids for which the upload really moved."""

    async def finish_removals(self, jobs: Sequence[Job]) -> None:
        """Record that nothing is left of these uploads."""

    async def retry(self, job: Job, error: Exception, *, code: str, delay_seconds: float) -> bool:
        """Put the job back for later; answer whether it still was ours and not cancelled."""

    async def fail(self, job: Job, error: Exception, *, code: str) -> bool:
        """Give the job up; a transfer's upload becomes `transfer_failed`. Answers as `retry` does."""

    async def discard(self, job: Job) -> None:
        """Close a job that has nothing left to do, or was cancelled: a removal may go on at once."""

    async def next_due_seconds(self, *, large: bool = True) -> float | None:
        """Answer how long until the next job may be claimed, None if there is none.

        Without `large`, large ones do not count.
        """

    def ledger(self, job: Job) -> TransferLedger:
        """Answer the durable memory of a transfer, fenced by the job's attempt."""


# --- who is asking ---------------------------------------------------------------------------------


class Authenticator(Protocol):
    """Tells who is asking. Quick enough for the event loop: it never waits for the network."""

    def authenticate(self, authorization_header: str | None) -> Principal:
        """Answer who sent this `Authorization` (None: the request has none).

        Raises:
            Unauthenticated: a credential is missing, malformed, forged or out of date.
        """


class SweepRepository(Protocol):
    """What cleanup asks of the record. Batches are bounded; everything may be repeated."""

    async def overdue(self, limit: int, *, skip: Sequence[UploadId] = ()) -> list[Upload]:
        """Answer uploads of this node whose time is up and that nothing needs any more."""

    async def expire(self, upload_id: UploadId) -> bool:
        """Expire an upload if it is still overdue, and queue the removal of its bytes."""

    async def purgeable(self, older_than_seconds: float, limit: int) -> list[UploadId]:
        """Answer stored uploads whose staged copy may go."""

    async def purged(self, upload_ids: Sequence[UploadId]) -> None:
        """Record that the staged copies of stored uploads are gone."""

    async def requeue_failed(self, older_than_seconds: float, limit: int) -> int:
        """Queue failed transfers again; answer how many."""

    async def adopt_jobless(self, limit: int) -> int:
        """Queue whatever waits for a job and has none; answer how many."""

    async def release_parts(self, limit: int) -> int:
        """Forget the parts of finals that no longer read them; answer how many links.

        A part that would never expire by itself gets a time to do so.
        """

    async def purge_rows(self, older_than_seconds: float, limit: int) -> int:
        """Delete the rows of uploads long gone; answer how many."""

    async def purge_events(self, older_than_seconds: float, limit: int) -> int:
        """Delete old events; answer how many."""

    async def with_files(self, upload_ids: Sequence[UUID]) -> set[UUID]:
        """Answer which of these uploads have a staging file."""


class StagingFiles(Protocol):
    """Staging as cleanup sees it."""

    async def open(self, upload_id: UploadId, *, create: bool) -> StagingFile | None:
        """See `Staging.open`."""

    async def remove(self, upload_ids: Sequence[UploadId]) -> None:
        """See `Staging.remove`."""

    def files(self) -> Iterator[tuple[str, float]]:
        """Answer name and modification time of every file. Blocks: run it in a thread."""
