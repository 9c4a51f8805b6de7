"""The store that is a bucket in S3, or in something that speaks its protocol.

This module is the port; every rule has a module of its own beside it:

    object_transfer  is the object there, is it ours, one PUT or parts, and is it what was sent?
    multipart        parts that a killed worker's successor continues with
    part_plan        how many parts of which size
    parameters       headers, metadata, tags and checksums that are sent along with an object
    source           staged bytes as the body of a request
    capabilities     what the store understands, found out by trying
    client           the calls, by botocore; set up in `client_config`, their results in `responses`
    errors           which failures are worth a retry, which block everybody, which are final
    removal          versions, conditions, Object Lock
    listing          objects and unfinished multipart uploads, page by page
    permissions      what `check-config --connect` tries
    cdn              links by a domain of one's own
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import PermanentStoreError, StagingDamaged, StorageError
from tusd_py.ports import (
    CheckResult,
    DownloadHeaders,
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
from tusd_py.stores.ranges import nonempty, require_length
from tusd_py.stores.rate_limit import Bandwidth
from tusd_py.stores.s3 import listing
from tusd_py.stores.s3.capabilities import Capabilities, CapabilityDetector
from tusd_py.stores.s3.cdn import CdnUrls
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.errors import UNSUPPORTED, code_of
from tusd_py.stores.s3.object_transfer import ObjectTransfer
from tusd_py.stores.s3.parameters import object_parameters
from tusd_py.stores.s3.permissions import PermissionCheck
from tusd_py.stores.s3.removal import abort_strays, remove_object
from tusd_py.stores.s3.source import Source

PROBE_NAME: Final = ".tusd-py-probe"
_READ_THREADS: Final = 8
"""They mostly wait for the disk; eight keep a fast one busy and hold 8 MiB."""


class S3Store(ObjectStore, PartStore):
    """Objects in one bucket."""

    name = "s3"
    keeps_ids = True

    def __init__(
        self, config: S3StoreConfig, *, bandwidth: Bandwidth | None = None, page_size: int = listing.PAGE_SIZE
    ) -> None:
        self._config = config
        self._bandwidth = bandwidth
        self._page_size = page_size
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
        transfer = self._transfer(spec, segments, transfer_state, digests=spec.digests)
        try:
            require_length(spec, segments)
            return await transfer.put()
        except (PermanentStoreError, StagingDamaged):
            await transfer.abandon()
            raise

    async def put_parts(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> int:
        # Without digests: what is hashed now would be forgotten until the end.
        transfer = self._transfer(spec, segments, transfer_state, digests=frozenset())
        return await transfer.put_parts(sum(segment.length for segment in segments))

    def _transfer(
        self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState, *, digests: frozenset[str]
    ) -> ObjectTransfer:
        pieces = nonempty(segments)
        limiter = self._bandwidth.limiter() if self._bandwidth else None
        source = Source(pieces, self._executor, ObjectDigest(pieces, self._executor, digests), limiter)
        key = self._prefix + spec.key
        return ObjectTransfer(self._bucket, self._detector, self._config, key, spec, source, transfer_state)

    async def stat(self, key: str) -> StoredObject | None:
        head = await self._bucket.head(self._prefix + key)
        return head.stored(key) if head else None

    async def remove(self, identity: ObjectIdentity) -> bool:
        key = self._prefix + identity.key
        # First what could still become an object, then the object.
        await abort_strays(self._bucket, key)
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
        await abort_strays(self._bucket, key)

    async def check(self) -> AsyncGenerator[CheckResult]:
        with tempfile.TemporaryDirectory(prefix="tusd-py-check-") as directory:
            check = PermissionCheck(self._bucket, self._config, self._prefix, self._executor, Path(directory))
            async with contextlib.aclosing(check.run()) as results:
                async for result in results:
                    yield result

    async def locate(
        self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int
    ) -> PresignedUrl:
        if self._cdn is not None:
            return PresignedUrl(self._cdn.sign(self._prefix + key, headers, expires_seconds=expires_seconds))
        # All of them: some stores forget the type of an object, and none knows the disposition.
        parameters = {f"Response{name.replace('-', '')}": value for name, value in headers.as_dict().items()}
        return PresignedUrl(await self._bucket.presign(method, self._prefix + key, parameters, expires_seconds))

    def list_objects(self) -> AsyncIterator[ListedObject]:
        return listing.objects(self._bucket, self._prefix, self._page_size)

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        return listing.multiparts(self._bucket, self._prefix, self._page_size)
