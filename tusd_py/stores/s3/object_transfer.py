"""Bring one object into the bucket, however often that is tried.

An upload has one key, fixed when it is created, and its object carries the upload's id. So a transfer can be
repeated after any crash:

1. HEAD the key. Our own object with the right length and checksum: the transfer has succeeded before, and
   nothing is sent. Our own with other bytes: it is sent again. A foreign object: `PermanentStoreError`.
2. Send it, small ones in one PUT, larger ones in parts (`multipart`), with a checksum that the store
   verifies and, where it knows conditions, on condition that the key is still as HEAD found it.
3. A condition that fails, or a multipart upload that is gone, may be the response to a repetition of a request
   whose first response was lost. So the key is read again before that counts as a failure.
4. HEAD again: length and checksum must be those of the upload. Only then may the staged copy be removed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

import structlog

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError, StagingDamaged, StorageError, TransientStoreError
from tusd_py.ports import ObjectSpec, StoredObject, TransferState
from tusd_py.stores.ranges import RangeChecksums
from tusd_py.stores.s3.capabilities import Capabilities, CapabilityDetector
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.errors import NO_SUCH_UPLOAD, PRECONDITION_FAILED, code_of
from tusd_py.stores.s3.multipart import MultipartTransfer
from tusd_py.stores.s3.parameters import checksum_parameters, object_parameters
from tusd_py.stores.s3.part_plan import PartPlan, plan_parts
from tusd_py.stores.s3.responses import Head
from tusd_py.stores.s3.source import Source

log = structlog.get_logger(__name__)


class _KeyState(Enum):
    """What lies under an upload's key."""

    ABSENT = auto()
    COMPLETE = auto()
    DAMAGED = auto()
    """It carries our id, but not our bytes."""
    FOREIGN = auto()


@dataclass(frozen=True, slots=True)
class ObjectTransfer:
    """One try of one object; use it once."""

    bucket: Bucket
    detector: CapabilityDetector
    config: S3StoreConfig
    key: str
    """With the store's prefix, unlike that of `spec`."""
    spec: ObjectSpec
    source: Source
    transfer_state: TransferState

    async def put(self) -> StoredObject:
        """Bring the object into the store, unless it is there already.

        Raises:
            StagingDamaged, StorageError: as `ObjectStore.put`.
        """
        head = await self.bucket.head(self.key)
        key_state = await self._key_state(head)
        if key_state is _KeyState.FOREIGN and not self.config.file_overwrite:
            raise _key_taken(self.spec)
        if head is not None and key_state is _KeyState.COMPLETE:
            await self._forget_recorded()
        else:
            head = await self._send(replaces=None if head is None else head.etag)
        digests = await self.source.digest.finish(self.spec.length, self.spec.crc64nvme)
        return replace(head.stored(self.spec.key), digests=digests)

    async def put_parts(self, durable: int) -> int:
        """Send the parts that end within the first `durable` bytes; return how many bytes the next call needs."""
        plan = self._plan()
        if plan.whole_bytes(durable):
            await self._multipart(plan).put_parts(object_parameters(self.config, self.spec), durable)
        return plan.next_whole(durable)

    async def abandon(self) -> None:
        """Leave nothing unfinished in the bucket of a transfer that was refused for good."""
        try:
            await self._forget_recorded()
        except StorageError as error:
            # It stays recorded, for the next try or the removal.
            log.warning("multipart_left_behind", upload_id=self.spec.upload_id, key=self.spec.key, reason=str(error))

    # --- what lies under the key -------------------------------------------------------------------------

    async def _key_state(self, head: Head | None) -> _KeyState:
        """Return whose object lies under the key, reading the staged bytes only if nothing else decides."""
        if head is None:
            return _KeyState.ABSENT
        if head.upload_id == self.spec.upload_id:
            return _KeyState.COMPLETE if head.matches(self.spec) else _KeyState.DAMAGED
        if head.upload_id is not None or head.length != self.spec.length:
            return _KeyState.FOREIGN
        # No id at all: rclone forgets metadata when it is restarted. Equal bytes are ours all the
        # same; equal lengths alone would be too little to delete the staged copy for.
        if head.crc64nvme is not None and self.spec.crc64nvme is not None:
            same = head.crc64nvme == self.spec.crc64nvme
        elif head.md5 is not None:
            same = head.md5 == (await self.source.checksums(0, self.spec.length, md5=True, sha256=False)).md5
        else:
            same = False
        return _KeyState.COMPLETE if same else _KeyState.FOREIGN

    async def _resolve_conflict(self, error: StorageError) -> Head:
        """Return the object if an earlier request, whose response was lost, has made it; raise otherwise."""
        head = await self.bucket.head(self.key)
        key_state = await self._key_state(head)
        if head is not None and key_state is _KeyState.COMPLETE:
            await self._forget_recorded()
            return head
        if key_state is _KeyState.FOREIGN and code_of(error) == PRECONDITION_FAILED:
            raise _key_taken(self.spec) from error
        if code_of(error) == PRECONDITION_FAILED:  # whatever was in the way has gone meanwhile
            raise TransientStoreError(key=self.spec.key) from error
        raise error

    async def _confirm(self) -> Head:
        """Read back what was just sent; its length and, if the store returns one, its checksum must be ours."""
        head = await self.bucket.head(self.key)
        if head is None or not head.matches(self.spec) or head.upload_id not in {None, self.spec.upload_id}:
            raise TransientStoreError("The store does not hold what was sent.", key=self.spec.key, found=head)
        return head

    # --- sending -----------------------------------------------------------------------------------------

    async def _send(self, *, replaces: str | None) -> Head:
        plan = self._plan()
        try:
            if plan.single:
                await self._forget_recorded()
                await self._put_at_once(replaces=replaces)
            else:
                await self._multipart(plan).put(object_parameters(self.config, self.spec), replaces=replaces)
        except StorageError as error:
            # Both may be the response to a repetition of a request whose first response was lost.
            if code_of(error) not in {PRECONDITION_FAILED, NO_SUCH_UPLOAD}:
                raise
            return await self._resolve_conflict(error)
        return await self._confirm()

    async def _put_at_once(self, *, replaces: str | None) -> None:
        known = self.detector.capabilities
        checksums = await self.source.checksums(0, self.spec.length, md5=known.sends_md5, sha256=known.sends_sha256)
        if self.spec.crc64nvme not in {None, checksums.crc64nvme}:
            raise StagingDamaged(key=self.spec.key, expected=self.spec.crc64nvme, found=checksums.crc64nvme)

        async def send(capabilities: Capabilities) -> bool:
            return await self._put_object(checksums, capabilities, replaces=replaces)

        returned = await self.detector.with_fallbacks(send)
        if returned or self.detector.capabilities.crc64nvme is not None:
            self.detector.record(verifies_crc64nvme=returned)
            return
        # ministack verifies the checksum of a PUT, but returns it by HEAD only.
        head = await self.bucket.head(self.key)
        self.detector.record(verifies_crc64nvme=head is not None and head.full_object)

    async def _put_object(self, checksums: RangeChecksums, capabilities: Capabilities, *, replaces: str | None) -> bool:
        body = self.source.body(0, self.spec.length)
        parameters = {
            **object_parameters(self.config, self.spec),
            **checksum_parameters(checksums, crc64nvme=capabilities.sends_crc64nvme),
            **capabilities.precondition_for(replaces),
        }
        try:
            return await self.bucket.put(self.key, body, parameters)
        finally:
            body.close()

    def _plan(self) -> PartPlan:
        return plan_parts(
            self.spec.length,
            threshold=self.config.multipart_threshold,
            part_size=self.config.part_size,
            max_parts=self.config.max_parts,
        )

    def _multipart(self, plan: PartPlan) -> MultipartTransfer:
        return MultipartTransfer(
            self.bucket,
            self.detector,
            key=self.key,
            spec=self.spec,
            source=self.source,
            plan=plan,
            transfer_state=self.transfer_state,
            concurrency=self.config.part_concurrency,
        )

    async def _forget_recorded(self) -> None:
        """Abort a multipart upload that an earlier try began and that is not needed any more."""
        multipart_id = await self.transfer_state.multipart_id()
        if multipart_id is not None:
            await self.bucket.abort_multipart(self.key, multipart_id)
            await self.transfer_state.record_multipart(None)


def _key_taken(spec: ObjectSpec) -> PermanentStoreError:
    return PermanentStoreError("Another object has the upload's key.", key=spec.key)
