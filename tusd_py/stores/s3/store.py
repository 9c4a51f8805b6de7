"""The destination in S3, or in something that speaks its protocol.

An upload has one key, fixed when it is created, and its object carries the upload's id. So a transfer can be
repeated after any crash:

1. HEAD the key. Our own object with the right length and checksum: the transfer has succeeded before, and
   nothing is sent. Our own with other bytes: it is sent again. A foreign object: `PermanentStoreError`.
2. Send it, small ones in one PUT, larger ones in parts (`multipart`), with a checksum that the store
   verifies and, where it knows conditions, on condition that the key is still as HEAD found it.
3. A condition that fails, or a multipart upload that is gone, may be the response to a repetition of a request
   whose first response was lost. So the key is read again before that counts as a failure.
4. HEAD again: length and checksum must be those of the upload. Only then may the staged copy be removed.

What a store understands differs. `capabilities` finds out by trying, `client` makes the calls,
`errors` sorts the failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path
from typing import Final

import structlog

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError, StagingDamaged, StorageError, TransientStoreError
from tusd_py.ports import (
    CheckResult,
    DownloadHeaders,
    ListableStore,
    ListedObject,
    ObjectIdentity,
    ObjectSpec,
    ObjectStore,
    PartStore,
    PresignedUrl,
    Segment,
    StoredObject,
    TransferState,
    UnfinishedObject,
)
from tusd_py.stores.digests import ObjectDigest
from tusd_py.stores.ranges import RangeChecksums, nonempty, require_length
from tusd_py.stores.rate_limit import Bandwidth
from tusd_py.stores.s3 import listing
from tusd_py.stores.s3.capabilities import Capabilities, CapabilityDetector
from tusd_py.stores.s3.cdn import CdnUrls
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.errors import NO_SUCH_UPLOAD, PRECONDITION_FAILED, UNSUPPORTED, code_of
from tusd_py.stores.s3.multipart import MultipartTransfer, Source
from tusd_py.stores.s3.parameters import matches, object_parameters, plain_md5, sum_parameters
from tusd_py.stores.s3.part_plan import PartPlan, plan_parts
from tusd_py.stores.s3.permissions import PermissionCheck
from tusd_py.stores.s3.removal import remove_object
from tusd_py.stores.s3.responses import Head

log = structlog.get_logger(__name__)

PROBE_NAME: Final = ".tusd-py-probe"
_READ_THREADS: Final = 8
"""They mostly wait for the disk; eight keep a fast one busy and hold 8 MiB."""


class _KeyState(Enum):
    """What lies under an upload's key."""

    ABSENT = auto()
    COMPLETE = auto()
    DAMAGED = auto()
    """It carries our id, but not our bytes."""
    FOREIGN = auto()


class S3Store(ObjectStore, PartStore, ListableStore):
    """Objects in one bucket."""

    name = "s3"
    keeps_ids = True

    def __init__(self, config: S3StoreConfig, *, bandwidth: Bandwidth | None = None) -> None:
        self._config = config
        self._bandwidth = bandwidth
        self._prefix = f"{config.location.strip('/')}/" if config.location.strip("/") else ""
        self._bucket = Bucket(config)
        self._cdn = CdnUrls(config) if config.custom_domain else None
        self._detector = CapabilityDetector(Capabilities.at_start(config))
        self._executor = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="s3-store")

    async def open(self) -> None:
        await self._bucket.open()

    async def close(self) -> None:
        await self._bucket.close()
        await asyncio.to_thread(self._executor.shutdown)

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        try:
            require_length(spec, segments)
            return await self._put(spec, segments, transfer_state)
        except (PermanentStoreError, StagingDamaged):
            await self._abort_recorded(spec, transfer_state)
            raise

    async def _put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        key = self._prefix + spec.key
        source = self._source(segments, spec.digests)
        head = await self._bucket.head(key)
        key_state = await self._key_state(head, spec, source)
        if key_state is not _KeyState.COMPLETE or head is None:
            if key_state is _KeyState.FOREIGN and not self._config.file_overwrite:
                raise _key_taken(spec)
            head = await self._send(spec, source, transfer_state, replaces=None if head is None else head.etag)
        else:
            await self._forget_recorded(key, transfer_state)
        digests = await source.digest.finish(spec.length, spec.crc64nvme)
        return replace(_stored(spec.key, head), digests=digests)

    async def put_parts(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> int:
        plan, durable = self._plan(spec), sum(segment.length for segment in segments)
        if plan.whole_bytes(durable):
            # Without digests: what is hashed now would be forgotten until the end.
            transfer = self._multipart(spec, self._source(segments), plan, transfer_state)
            await transfer.eager(object_parameters(self._config, spec), durable)
        return plan.next_whole(durable)

    async def stat(self, key: str) -> StoredObject | None:
        head = await self._bucket.head(self._prefix + key)
        return _stored(key, head) if head else None

    async def remove(self, identity: ObjectIdentity) -> bool:
        key = self._prefix + identity.key
        # First what could still become an object, then the object.
        await self._bucket.abort_strays(key)
        return await remove_object(self._bucket, key, identity)

    async def abort(self, key: str, multipart_id: str) -> None:
        await self._bucket.abort_multipart(self._prefix + key, multipart_id)

    async def probe(self, *, writing: bool = False) -> None:
        if writing:
            # A HEAD is refused without a reason; a listing needs the same right and says why.
            await self._bucket.list_any(self._prefix)
            await self._probe_writing()
        else:
            await self._bucket.probe()

    async def _probe_writing(self) -> None:
        """Begin what never becomes an object: no version and no delete marker stay behind."""
        key = self._prefix + PROBE_NAME
        spec = ObjectSpec(PROBE_NAME, PROBE_NAME, 0, None, "application/octet-stream")
        try:
            upload = await self._bucket.create_multipart(key, object_parameters(self._config, spec))
        except StorageError as error:
            if code_of(error) not in UNSUPPORTED:
                raise
            return  # it responds, and does not know multipart uploads
        with contextlib.suppress(PermanentStoreError):
            await self._bucket.abort_multipart(key, upload.multipart_id)
        # Also those of earlier probes whose reply was lost, or whose worker was killed.
        await self._bucket.abort_strays(key)

    async def check(self) -> AsyncGenerator[CheckResult]:
        with tempfile.TemporaryDirectory(prefix="tusd-py-check-") as directory:
            check = PermissionCheck(self._bucket, self._config, self._prefix, self._executor, Path(directory))
            async with contextlib.aclosing(check.run()) as results:
                async for result in results:
                    yield result

    async def locate(
        self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int
    ) -> PresignedUrl:
        return PresignedUrl(await self.presign(key, headers, method=method, expires_seconds=expires_seconds))

    async def presign(self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int) -> str:
        if self._cdn is not None:
            return self._cdn.sign(self._prefix + key, headers, expires_seconds=expires_seconds)
        # All of them: some stores forget the type of an object, and none knows the disposition.
        parameters = {f"Response{name.replace('-', '')}": value for name, value in headers.named().items()}
        return await self._bucket.presign(method, self._prefix + key, parameters, expires_seconds)

    def list_objects(self) -> AsyncIterator[ListedObject]:
        return listing.objects(self._bucket, self._prefix)

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        return listing.multiparts(self._bucket, self._prefix)

    def _source(self, segments: Sequence[Segment], digests: frozenset[str] = frozenset()) -> Source:
        pieces = nonempty(segments)
        digest = ObjectDigest(pieces, self._executor, digests)
        return Source(pieces, self._executor, digest, self._bandwidth.limiter() if self._bandwidth else None)

    # --- what lies under the key -------------------------------------------------------------------------

    async def _key_state(self, head: Head | None, spec: ObjectSpec, source: Source) -> _KeyState:
        """Return whose object lies under the key, reading the staged bytes only if nothing else decides."""
        if head is None:
            return _KeyState.ABSENT
        if head.upload_id == spec.upload_id:
            return _KeyState.COMPLETE if matches(head, spec) else _KeyState.DAMAGED
        if head.upload_id is not None or head.length != spec.length:
            return _KeyState.FOREIGN
        # No id at all: rclone forgets metadata when it is restarted. Equal bytes are ours all the
        # same; equal lengths alone would be too little to delete the staged copy for.
        if head.crc64nvme is not None and spec.crc64nvme is not None:
            same = head.crc64nvme == spec.crc64nvme
        elif (md5 := plain_md5(head.etag)) is not None:
            same = md5 == (await source.sums(0, spec.length, md5=True, sha256=False)).md5
        else:
            same = False
        return _KeyState.COMPLETE if same else _KeyState.FOREIGN

    async def _confirm(self, spec: ObjectSpec) -> Head:
        """Read back what was just sent; its length and, if the store returns one, its checksum must be ours."""
        head = await self._bucket.head(self._prefix + spec.key)
        if head is None or not matches(head, spec) or head.upload_id not in {None, spec.upload_id}:
            raise TransientStoreError("The store does not hold what was sent.", key=spec.key, found=head)
        return head

    # --- sending -------------------------------------------------------------------------------

    async def _send(
        self, spec: ObjectSpec, source: Source, transfer_state: TransferState, *, replaces: str | None
    ) -> Head:
        key, plan = self._prefix + spec.key, self._plan(spec)
        try:
            if plan.single:
                await self._forget_recorded(key, transfer_state)
                await self._put_at_once(spec, source, replaces=replaces)
            else:
                await self._put_in_parts(spec, source, plan, transfer_state, replaces=replaces)
        except StorageError as error:
            # Both may be the response to a repetition of a request whose first response was lost.
            if code_of(error) not in {PRECONDITION_FAILED, NO_SUCH_UPLOAD}:
                raise
            return await self._resolve_conflict(spec, source, transfer_state, error)
        return await self._confirm(spec)

    async def _resolve_conflict(
        self, spec: ObjectSpec, source: Source, transfer_state: TransferState, error: StorageError
    ) -> Head:
        key = self._prefix + spec.key
        head = await self._bucket.head(key)
        key_state = await self._key_state(head, spec, source)
        if head is not None and key_state is _KeyState.COMPLETE:
            await self._forget_recorded(key, transfer_state)
            return head
        if key_state is _KeyState.FOREIGN and code_of(error) == PRECONDITION_FAILED:
            raise _key_taken(spec) from error
        if code_of(error) == PRECONDITION_FAILED:  # whatever was in the way has gone meanwhile
            raise TransientStoreError(key=spec.key) from error
        raise error

    async def _put_at_once(self, spec: ObjectSpec, source: Source, *, replaces: str | None) -> None:
        features = self._detector.features
        sums = await source.sums(0, spec.length, md5=features.sends_md5, sha256=features.sends_sha256)
        if spec.crc64nvme not in {None, sums.crc64nvme}:
            raise StagingDamaged(key=spec.key, expected=spec.crc64nvme, found=sums.crc64nvme)

        async def send(features: Capabilities) -> bool:
            return await self._put_object(spec, source, sums, features, replaces=replaces)

        returned = await self._detector.with_fallbacks(send)
        if returned or self._detector.features.crc64nvme is not None:
            self._detector.record(verifies_crc64nvme=returned)
            return
        # ministack verifies the checksum of a PUT, but returns it by HEAD only.
        head = await self._bucket.head(self._prefix + spec.key)
        self._detector.record(verifies_crc64nvme=head is not None and head.full_object)

    async def _put_object(
        self, spec: ObjectSpec, source: Source, sums: RangeChecksums, features: Capabilities, *, replaces: str | None
    ) -> bool:
        body = source.body(0, spec.length)
        parameters = {
            **object_parameters(self._config, spec),
            **sum_parameters(sums, crc64nvme=features.sends_crc64nvme),
            **features.precondition_for(replaces),
        }
        try:
            return await self._bucket.put(self._prefix + spec.key, body, parameters)
        finally:
            body.close()

    async def _put_in_parts(
        self, spec: ObjectSpec, source: Source, plan: PartPlan, transfer_state: TransferState, *, replaces: str | None
    ) -> None:
        transfer = self._multipart(spec, source, plan, transfer_state)
        await transfer.run(object_parameters(self._config, spec), replaces=replaces)

    def _plan(self, spec: ObjectSpec) -> PartPlan:
        return plan_parts(
            spec.length,
            threshold=self._config.multipart_threshold,
            part_size=self._config.part_size,
            max_parts=self._config.max_parts,
        )

    def _multipart(
        self, spec: ObjectSpec, source: Source, plan: PartPlan, transfer_state: TransferState
    ) -> MultipartTransfer:
        return MultipartTransfer(
            self._bucket,
            self._detector,
            key=self._prefix + spec.key,
            spec=spec,
            source=source,
            plan=plan,
            transfer_state=transfer_state,
            concurrency=self._config.part_concurrency,
        )

    async def _abort_recorded(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        """Leave nothing unfinished in the bucket of a transfer that was refused for good."""
        try:
            await self._forget_recorded(self._prefix + spec.key, transfer_state)
        except StorageError as error:
            # It stays recorded, for the next try or the removal.
            log.warning("multipart_left_behind", upload_id=spec.upload_id, key=spec.key, reason=str(error))

    async def _forget_recorded(self, key: str, transfer_state: TransferState) -> None:
        """Abort a multipart upload that an earlier try began and that is not needed any more."""
        multipart_id = await transfer_state.multipart_id()
        if multipart_id is not None:
            await self._bucket.abort_multipart(key, multipart_id)
            await transfer_state.record_multipart(None)


def _stored(key: str, head: Head) -> StoredObject:
    return StoredObject(key, head.length, head.etag, head.version_id, head.crc64nvme, head.upload_id)


def _key_taken(spec: ObjectSpec) -> PermanentStoreError:
    return PermanentStoreError("Another object has the upload's key.", key=spec.key)
