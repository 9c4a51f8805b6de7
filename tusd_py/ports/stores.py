"""What a store can do. Every store is an `ObjectStore`; what only some can do is a port of its own.

A store subclasses the ports of what it can do, so the line of its class says what that is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

from tusd_py.errors import StorageError
from tusd_py.ports.checks import Checkable
from tusd_py.ports.objects import (
    DownloadHeaders,
    ListedObject,
    LocalFile,
    ObjectIdentity,
    ObjectSpec,
    PartRecord,
    PresignedUrl,
    Segment,
    StoredObject,
    UnfinishedObject,
)
from tusd_py.protocol.concat import Room


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


@runtime_checkable
class ObjectStore(Checkable, Protocol):
    """A destination for finished uploads. For what only some can do, `configured_stores.Stores` asks once."""

    name: str
    keeps_ids: bool
    """True if an object carries the id of its upload, so that `stat` proves whose it is."""

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

    def list_objects(self) -> AsyncIterator[ListedObject]:
        """Yield all objects, in the order of their keys' code points where the store keeps to it.

        Listings are read in pages and never held in memory. Only what lies below the store's own prefix is
        listed, and keys are without it. Foreign objects are listed as well: a listing does not show whose they are.
        """

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        """Yield everything that is unfinished, in any order; see `list_objects`."""


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
