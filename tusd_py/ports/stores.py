"""Destinations, and what travels between staging, the worker and them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from tusd_py.ports.checks import Checkable

if TYPE_CHECKING:
    from tusd_py.errors import StorageError
    from tusd_py.protocol.concat import Room


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
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the upload's profile says of its object, by the names of S3: it goes before the store's own."""
    digests: frozenset[str] = frozenset()
    """What to compute during the transfer, of `sha256` and `md5`."""
    content_encoding: str | None = None
    content_language: str | None = None


@dataclass(frozen=True, slots=True)
class Digests:
    """Hashes of a whole object; None is one that is not known."""

    sha256: bytes | None = None
    md5: bytes | None = None


NO_DIGESTS: Final = Digests()


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
    digests: Digests = NO_DIGESTS
    """What `put` was asked for; none also where an earlier try's object has lost its staged bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectIdentity:
    """What identifies an upload's object among whatever may lie under its key."""

    upload_id: str
    key: str
    length: int
    crc64nvme: int | None = None
    etag: str | None = None
    """As the store returned it when the object was stored; so is `version_id`. None: not recorded."""
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of a multipart upload that the store has acknowledged."""

    number: int
    length: int
    etag: str
    crc64nvme: int | None = None


class TransferState(Protocol):
    """What is recorded of one transfer, for a killed worker's successor to continue from.

    Every method raises `TransferCancelled` (a `StorageError`) once the transfer was cancelled or
    its lease was lost, so that a late worker stops before it changes anything.
    """

    async def multipart_id(self) -> str | None:
        """Return the multipart upload id recorded for this transfer, None if there is none."""

    async def record_multipart(self, multipart_id: str | None) -> None:
        """Record the multipart id (None: forget it, and every part) before a part is sent."""

    async def parts(self) -> Sequence[PartRecord]:
        """Return the parts recorded so far, in order of their number."""

    async def record_part(self, part: PartRecord) -> None:
        """Record a part that the store has acknowledged."""

    async def progress(self, bytes_done: int) -> None:
        """Record how many bytes the store holds; throttled, so it may be called for every part."""


@dataclass(frozen=True, slots=True)
class DownloadHeaders:
    """What a download says of its bytes, wherever it is served from."""

    content_type: str
    content_disposition: str
    content_encoding: str | None = None
    content_language: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the headers by their names; what is not known is left out."""
        headers = {
            "Content-Type": self.content_type,
            "Content-Disposition": self.content_disposition,
            "Content-Encoding": self.content_encoding,
            "Content-Language": self.content_language,
        }
        return {name: value for name, value in headers.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A stored object is a file that this process can open."""

    path: Path
    tag: str
    """Changes whenever the file's bytes do."""


@dataclass(frozen=True, slots=True)
class PresignedUrl:
    """A stored object is served by the store itself, at a URL that expires."""

    url: str


@runtime_checkable
class ObjectStore(Checkable, Protocol):
    """A destination for finished uploads. What only some can do has ports of its own; `places.Stores` asks once."""

    name: str

    async def open(self) -> None:
        """Acquire clients and check the cheap preconditions. Called once per process."""

    async def close(self) -> None:
        """Release everything `open` acquired."""

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        """Make the object hold exactly the bytes of `segments`, whatever was there of an earlier try.

        Idempotent: a second call after success, or after a crash at any moment, ends with the same
        single object. When this returns the object is durable and its length and, where the store
        returns one, its checksum were compared.

        Raises:
            TransientStoreError: a retry may help.
            PermanentStoreError: a retry cannot help (no such bucket, access denied, too large).
            StagingDamaged: a staged file is missing, short, or does not match `spec.crc64nvme`.
        """

    async def stat(self, key: str) -> StoredObject | None:
        """Return what the store holds under `key`, None if nothing."""

    async def locate(
        self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int
    ) -> LocalFile | PresignedUrl:
        """Return where the object can be read.

        A URL is for requests of one `method`, GET or HEAD, which is part of what is signed; it makes the store
        send `headers`.

        Raises:
            StoredObjectMissing: the store has no such object. One that presigns does not check.
        """

    async def remove(self, identity: ObjectIdentity) -> bool:
        """Remove the upload's object, with every version of it; nothing there is success.

        An object is the upload's if it carries the upload's id, or none and the upload's bytes. Anything
        else is left alone, and False returned.

        Raises:
            ObjectLocked: the store keeps it under a lock (S3 Object Lock).
        """

    async def abort(self, key: str, multipart_id: str) -> None:
        """Drop an unfinished multipart upload; nothing there is success."""

    async def probe(self, *, writing: bool = False) -> None:
        """Show that the store can be reached and, if `writing`, that it would take an object.

        Nothing stays behind.

        Raises:
            TransientStoreError: it cannot be reached.
            PermanentStoreError: it refuses; an operator has to correct bucket, credentials or permissions.
        """


@runtime_checkable
class MeasuredStore(Protocol):
    """A store that can become full, and knows how much it can take."""

    async def room(self) -> Room:
        """Return how much it can take. Raises `TransientStoreError` if that cannot be known."""


@runtime_checkable
class PartStore(Protocol):
    """A store that takes the beginning of an object before its end exists."""

    async def put_parts(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> int:
        """Send what is whole of an object whose first bytes are `segments`, all of them durable.

        A later `put` with the same spec and transfer_state continues behind it. Nothing becomes visible in
        the store. Returns how many bytes must be there before another call can send more; that is
        `spec.length` where the rest is for `put`.

        Raises: as `put`.
        """


@runtime_checkable
class BatchStore(Protocol):
    """A store that stores many small objects in one call faster than one by one."""

    async def put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]]
    ) -> list[StoredObject | StorageError]:
        """Store every object as `put` does and return one result per item, in their order.

        An item's failure is its result and leaves the others alone. No transfer state is kept: an object
        small enough for a batch is sent again rather than continued.
        """


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a listing shows it."""

    key: str
    length: int
    modified_at: float
    """Seconds since the epoch, by the store's clock."""
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class UnfinishedObject:
    """What may still become an object: an unfinished multipart upload, an incomplete file."""

    key: str
    id: str
    """What `ObjectStore.abort` takes."""
    begun_at: float
    """Seconds since the epoch; of an incomplete file, when it last grew."""


@runtime_checkable
class ListableStore(Protocol):
    """A store that can list what it holds. Listings are read in pages and never held in memory.

    Only what lies below the store's own prefix is listed, and keys are without it. Foreign objects are
    listed as well: a listing does not show whose they are.
    """

    keeps_ids: bool
    """Whether an object carries the id of its upload, so that `stat` proves whose it is."""

    def list_objects(self) -> AsyncIterator[ListedObject]:
        """Yield all objects, in the order of their keys' code points where the store keeps to it."""

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        """Yield everything that is unfinished, in any order."""
