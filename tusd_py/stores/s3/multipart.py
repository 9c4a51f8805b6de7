"""One object sent in parts, so that a killed worker's successor continues where it stopped.

Two records say how far a multipart upload has come: our transfer state, in the database, and the store's own
list of parts. Either may know of more than the other, for a worker can be killed between any two calls. So:

1. The multipart id is recorded before a part is sent. What is recorded nowhere can never be aborted; what a
   worker began and did not live to record is found under the upload's key (`abort_strays`).
2. A part is recorded once the store has acknowledged it.
3. On the next try both are compared. A part counts as sent if both know it alike. One that only the store
   has is read from the staged copy and sent again, unless the store's checksum shows that it is the same.
   One that only the record has is sent again.
4. The object is completed when the checksums of all parts combine to that of the upload, which was computed
   as the bytes came from the client. A store that supports it verifies that checksum itself (`FULL_OBJECT`).
5. After a failure what the store holds stays for the next try. It is dropped if it can never become the
   object: staged bytes that are not the client's, parts of another size, parts that the store refuses to
   join, a transfer that was refused for good.

An eager transfer is the same without step 4: what is durable of an upload is sent in whole parts, and the
transfer later finds them sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tusd_py import crc64
from tusd_py.errors import StagingDamaged, StorageError, TransientStoreError
from tusd_py.ports import ObjectSpec, PartRecord, TransferState
from tusd_py.stores.ranges import RangeChecksums
from tusd_py.stores.s3.capabilities import Capabilities, CapabilityDetector
from tusd_py.stores.s3.client import Bucket, Parameters
from tusd_py.stores.s3.errors import UNUSABLE_PARTS, code_of
from tusd_py.stores.s3.parameters import checksum_parameters
from tusd_py.stores.s3.part_plan import Part, PartPlan
from tusd_py.stores.s3.removal import abort_strays
from tusd_py.stores.s3.responses import ListedPart, MultipartInfo
from tusd_py.stores.s3.source import Source


@dataclass(slots=True)
class MultipartTransfer:
    """One try of one object; use it once."""

    bucket: Bucket
    detector: CapabilityDetector
    key: str
    spec: ObjectSpec
    source: Source
    plan: PartPlan
    transfer_state: TransferState
    concurrency: int
    _crc: int = crc64.EMPTY
    _done: dict[int, PartRecord] = field(default_factory=dict)
    _checksums: dict[int, Mapping[str, str]] = field(default_factory=dict)
    """The checksums of done parts as S3 names them, for CompleteMultipartUpload."""

    async def put(self, parameters: Parameters, *, replaces: str | None) -> None:
        """Bring the object into the store, over the one of the ETag `replaces` if there is one.

        Raises:
            StagingDamaged: the staged bytes are not those of the client. Nothing is left behind.
            StorageError: the store refused or is down; what it holds is kept for the next try.
        """
        upload = await self._resume() or await self._begin(parameters)
        try:
            await self._send_missing(upload, self.plan.length)
            self._verify()
        except StagingDamaged:
            await self._discard(upload.multipart_id)
            raise
        # Also a fence: a worker that lost its lease stops before the object becomes visible.
        await self.transfer_state.progress(self.spec.length)
        await self._complete(upload, replaces=replaces)

    async def put_parts(self, parameters: Parameters, durable: int) -> None:
        """Send the parts that end within the first `durable` bytes, and complete nothing.

        Raises:
            StorageError: as `put`; what the store holds is kept.
        """
        upload = await self._resume() or await self._begin(parameters)
        await self._send_missing(upload, durable)

    async def _discard(self, multipart_id: str) -> None:
        """Drop the multipart upload at the store, then in the transfer state."""
        await self.bucket.abort_multipart(self.key, multipart_id)
        await self.transfer_state.record_multipart(None)

    # --- beginning, or continuing ------------------------------------------------------------------------

    async def _resume(self) -> MultipartInfo | None:
        multipart_id = await self.transfer_state.multipart_id()
        if multipart_id is None:
            return None
        recorded = await self.transfer_state.parts()
        upload = await self.bucket.list_parts(self.key, multipart_id)
        if upload is None:
            await self.transfer_state.record_multipart(None)
            return None
        if not self._follows_plan(upload):  # the configured sizes have changed since
            await self._discard(multipart_id)
            return None
        for record in recorded:
            self._recall(record, upload.parts.get(record.number))
        return upload

    def _follows_plan(self, upload: MultipartInfo) -> bool:
        return all(
            1 <= number <= self.plan.count and part.length == self.plan.part(number).length
            for number, part in upload.parts.items()
        )

    def _recall(self, record: PartRecord, listed: ListedPart | None) -> None:
        """Count a recorded part as done if the store still has the very same."""
        sha256 = self.detector.capabilities.sends_sha256
        if (
            listed is None
            or record.crc64nvme is None
            or (listed.etag, listed.length) != (record.etag, record.length)
            or listed.crc64nvme not in {None, record.crc64nvme}
            or (sha256 and listed.sha256 is None)
        ):
            return
        self._done[record.number] = record
        self._checksums[record.number] = _listed_checksums(listed)

    async def _begin(self, parameters: Parameters) -> MultipartInfo:
        await abort_strays(self.bucket, self.key)
        upload = await self.detector.with_fallbacks(
            lambda capabilities: self.bucket.create_multipart(self.key, {**parameters, **_algorithm(capabilities)})
        )
        try:
            await self.transfer_state.record_multipart(upload.multipart_id)
        except StorageError:
            # It is recorded nowhere; there may be no later try that finds it.
            await self.bucket.abort_multipart(self.key, upload.multipart_id)
            raise
        if not upload.crc64nvme:
            self.detector.record(verifies_crc64nvme=False)
        return upload

    # --- parts -------------------------------------------------------------------------------------------

    async def _send_missing(self, upload: MultipartInfo, durable: int) -> None:
        whole = (part for part in self.plan.parts() if part.start + part.length <= durable)
        missing = (part for part in whole if part.number not in self._done)
        count = min(self.concurrency, self.plan.count - len(self._done))

        async def send_next() -> None:
            # Shared by all senders, so that parts go out in order: rclone holds others back.
            for part in missing:
                await self._send(upload, part)

        await _all_or_none([send_next() for _ in range(count)])

    async def _send(self, upload: MultipartInfo, part: Part) -> None:
        capabilities = self.detector.capabilities
        listed = upload.parts.get(part.number)
        # An acknowledged part that was not recorded can be recognised by its MD5, if by nothing else.
        md5 = capabilities.sends_md5 or (listed is not None and listed.crc64nvme is None)
        found = await self.source.checksums(part.start, part.length, md5=md5, sha256=capabilities.sends_sha256)
        if listed is not None and _is_same(listed, found, sha256=capabilities.sends_sha256):
            etag, parameters = listed.etag, _listed_checksums(listed)
        else:
            with_crc = upload.crc64nvme or capabilities.checksum_setting == "crc64nvme"
            parameters = checksum_parameters(found, crc64nvme=with_crc)
            etag = await self._upload(upload, part, parameters)
        record = PartRecord(part.number, part.length, etag, found.crc64nvme)
        await self.transfer_state.record_part(record)
        self._done[part.number] = record
        self._checksums[part.number] = {name: value for name, value in parameters.items() if name != "ContentMD5"}
        await self.transfer_state.progress(sum(done.length for done in self._done.values()))

    async def _upload(self, upload: MultipartInfo, part: Part, parameters: Parameters) -> str:
        body = self.source.body(part.start, part.length)
        try:
            etag, returned = await self.bucket.upload_part(self.key, upload.multipart_id, part.number, body, parameters)
        finally:
            body.close()
        if "ChecksumCRC64NVME" in parameters:
            self.detector.record(verifies_crc64nvme=returned)
        return etag

    def _verify(self) -> None:
        crc = crc64.EMPTY
        for part in self.plan.parts():
            record = self._done[part.number]
            assert record.crc64nvme is not None  # _recall and _send see to that
            crc = crc64.combine(crc, record.crc64nvme, record.length)
        if self.spec.crc64nvme not in {None, crc}:
            raise StagingDamaged(key=self.spec.key, expected=self.spec.crc64nvme, found=crc)
        self._crc = crc

    # --- completing --------------------------------------------------------------------------------------

    async def _complete(self, upload: MultipartInfo, *, replaces: str | None) -> None:
        parts = [(record, self._checksums[number]) for number, record in sorted(self._done.items())]
        whole: dict[str, Any] = {}
        if upload.full_object:
            whole = {
                "ChecksumType": "FULL_OBJECT",
                "ChecksumCRC64NVME": crc64.to_base64(self._crc),
                "MpuObjectSize": self.spec.length,
            }
        try:
            await self.detector.with_fallbacks(
                lambda capabilities: self.bucket.complete_multipart(
                    self.key,
                    upload.multipart_id,
                    parts,
                    {**whole, **capabilities.precondition_for(replaces)},
                )
            )
        except StorageError as error:
            if code_of(error) not in UNUSABLE_PARTS:
                raise
            await self._discard(upload.multipart_id)
            # The code stays, since NoSuchUpload may also mean that an earlier call succeeded.
            raise TransientStoreError("The parts have to be sent again.", **error.context) from error


def _algorithm(capabilities: Capabilities) -> Parameters:
    if capabilities.sends_sha256:
        return {"ChecksumAlgorithm": "SHA256"}
    if capabilities.sends_crc64nvme:
        return {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
    return {}


def _listed_checksums(listed: ListedPart) -> dict[str, str]:
    parameters = {}
    if listed.crc64nvme is not None:
        parameters["ChecksumCRC64NVME"] = crc64.to_base64(listed.crc64nvme)
    if listed.sha256 is not None:
        parameters["ChecksumSHA256"] = listed.sha256
    return parameters


def _is_same(listed: ListedPart, staged: RangeChecksums, *, sha256: bool) -> bool:
    if listed.length != staged.length or (sha256 and listed.sha256 is None):
        return False
    if listed.crc64nvme is not None:
        return listed.crc64nvme == staged.crc64nvme
    return listed.md5 == staged.md5


async def _all_or_none(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at once; the first failure cancels the others and is raised when they have ended."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
