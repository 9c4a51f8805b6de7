"""Shows which rights the configured keys have in the bucket, on a throw-away key under our prefix.

Each call that transfers, downloads and removals make is made once. What is denied is named by the
IAM action that allows it; whatever else goes wrong would go wrong again, so the rest is left out.
Nothing stays behind, unless it is the right to remove that is missing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Final

import structlog

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import ObjectLocked, PermanentStoreError, StorageError
from tusd_py.ports import CheckResult, ObjectSpec, Outcome, Segment
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.errors import DENIED, UNSUPPORTED, code_of
from tusd_py.stores.s3.listing import multiparts_of, versions_of
from tusd_py.stores.s3.parameters import object_parameters
from tusd_py.stores.s3.removal import delete_exactly
from tusd_py.stores.s3.responses import Head
from tusd_py.stores.s3.source import RangeBody

log = structlog.get_logger(__name__)

CLEANUP_SECONDS: Final = 5.0
_CONTENT: Final = b"Written and removed by tusd-py check-config --connect.\n"
_CHECKSUM: Final = {"ContentMD5": base64.b64encode(hashlib.md5(_CONTENT).digest()).decode("ascii")}  # noqa: S324
_NO_UPLOAD: Final = "tusd-py-check"
BUCKET_ACTIONS: Final = frozenset({"s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListBucketVersions"})
"""Rights on the bucket itself; the others are on its objects."""

Step = tuple[str, str, Callable[[], Awaitable[None]]]


class PermissionCheck:
    """One check of a bucket; use it once."""

    def __init__(self, bucket: Bucket, config: S3StoreConfig, prefix: str, executor: Executor, directory: Path) -> None:
        self._bucket = bucket
        self._config = config
        self._prefix = prefix
        self._executor = executor
        self._file = directory / "sample"
        self._name = f"tusd-py-check-{secrets.token_hex(8)}"
        self._key = prefix + self._name
        self._object_exists = False
        self._head: Head | None = None
        self._multipart_id: str | None = None

    async def run(self) -> AsyncGenerator[CheckResult]:
        """Try one right after the other."""
        await asyncio.to_thread(self._file.write_bytes, _CONTENT)
        reason = ""
        try:
            for action, what, call in self._steps():
                if reason:
                    yield CheckResult(f"{action} ({what})", Outcome.SKIPPED)
                    continue
                result, goes_on = await self._try(action, what, call)
                yield result
                reason = "" if goes_on else result.detail
        finally:
            left = await self._clean_up()
            if left:  # logged as well: after a cancellation no result is read
                log.warning("check_left_behind", what=left)
        if left:
            yield CheckResult("clean up", Outcome.FAILED, left)

    def _steps(self) -> Iterator[Step]:
        yield "s3:ListBucket", "list", self._list
        yield "s3:ListBucketMultipartUploads", "list unfinished uploads", self._list_unfinished
        yield "s3:PutObject", "put", self._put
        yield "s3:GetObject", "head and get", self._get
        yield "s3:PutObject", "multipart", self._begin
        yield "s3:ListMultipartUploadParts", "list parts", self._list_parts
        yield "s3:AbortMultipartUpload", "abort", self._abort
        if self._head is None or self._head.version_id is None:
            yield "s3:DeleteObject", "delete", self._delete
        else:
            yield "s3:ListBucketVersions", "list versions", self._list_versions
            yield "s3:GetObjectVersion", "head a version", self._get_version
            yield "s3:DeleteObjectVersion", "delete a version", self._delete

    async def _try(self, action: str, what: str, call: Callable[[], Awaitable[None]]) -> tuple[CheckResult, bool]:
        subject = f"{action} ({what})"
        try:
            await call()
        except StorageError as error:
            if call == self._list_unfinished and code_of(error) in UNSUPPORTED:
                # Then nothing finds what a killed worker began and could not record.
                return CheckResult(subject, detail="not known to this store; a lifecycle rule must abort strays"), True
            if isinstance(error, ObjectLocked):
                self._object_exists = False  # not to be tried again: it stays until the lock ends
                return CheckResult(subject, detail="allowed, but object lock keeps the sample"), True
            if code_of(error) in DENIED:
                return CheckResult(subject, Outcome.FAILED, self._remedy(action)), True
            return CheckResult(subject, Outcome.FAILED, _reason(error)), False
        return CheckResult(subject), True

    def _remedy(self, action: str) -> str:
        actions = [action]
        if action == "s3:PutObject":
            actions += [name for name, needed in self._needed_with_put().items() if needed]
        resource = self._config.bucket if action in BUCKET_ACTIONS else f"{self._config.bucket}/{self._prefix}*"
        return f"denied: allow {', '.join(actions)} on arn:aws:s3:::{resource}"

    def _needed_with_put(self) -> Mapping[str, bool]:
        kms = self._config.sse == "aws:kms"
        return {
            "s3:PutObjectTagging": bool(self._config.object_parameters.tagging),
            "s3:PutObjectAcl": bool(self._config.acl),
            "kms:GenerateDataKey": kms,
            "kms:Decrypt": kms,
        }

    # --- the calls -----------------------------------------------------------------------------

    async def _list(self) -> None:
        # Without it the response for a missing key is 403, not 404, and no transfer can begin.
        await self._bucket.list_any(self._prefix)

    async def _list_unfinished(self) -> None:
        async for _ in multiparts_of(self._bucket, self._key):
            pass

    async def _put(self) -> None:
        with contextlib.closing(self._body()) as body:
            self._object_exists = True  # whatever happens to the reply
            try:
                # A bucket with object lock takes nothing without a checksum.
                await self._bucket.put(self._key, body, {**self._parameters(), **_CHECKSUM})
            except PermanentStoreError:
                self._object_exists = False
                raise

    async def _get(self) -> None:
        self._head = await self._bucket.head(self._key)
        content = await self._bucket.get(self._key)
        if content not in {None, _CONTENT}:
            raise PermanentStoreError("The store returns something else than it was sent.", key=self._key)

    async def _begin(self) -> None:
        upload = await self._bucket.create_multipart(self._key, self._parameters())
        self._multipart_id = upload.multipart_id
        with contextlib.closing(self._body()) as body:
            await self._bucket.upload_part(self._key, upload.multipart_id, 1, body, _CHECKSUM)

    async def _list_parts(self) -> None:
        await self._bucket.list_parts(self._key, self._multipart_id or _NO_UPLOAD)

    async def _abort(self) -> None:
        await self._bucket.abort_multipart(self._key, self._multipart_id or _NO_UPLOAD)
        self._multipart_id = None

    async def _list_versions(self) -> None:
        async for _ in versions_of(self._bucket, self._key):
            pass

    async def _get_version(self) -> None:
        await self._bucket.head(self._key, self._head.version_id if self._head else None)

    async def _delete(self) -> None:
        if self._head is None or self._head.version_id is None:
            await self._bucket.delete(self._key)
        else:
            await delete_exactly(self._bucket, self._key, self._head, {"VersionId": self._head.version_id})
        self._object_exists = False

    def _body(self) -> RangeBody:
        return RangeBody([Segment(self._file, len(_CONTENT))], 0, len(_CONTENT), self._executor)

    def _parameters(self) -> dict[str, Any]:
        return object_parameters(self._config, ObjectSpec(self._name, self._name, len(_CONTENT), None, "text/plain"))

    async def _clean_up(self) -> str:
        """Remove what is still there, also after a cancellation; return what could not be removed."""
        left = []
        for there, call in ((self._multipart_id, self._abort), (self._object_exists, self._delete)):
            if there:
                try:
                    async with asyncio.timeout(CLEANUP_SECONDS):
                        await call()
                except (StorageError, TimeoutError):
                    left.append("an unfinished upload" if there is self._multipart_id else "an object")
        return f"{' and '.join(left)} may be left at {self._key}" if left else ""


def _reason(error: StorageError) -> str:
    facts = [str(error.context[name]) for name in ("code", "reason") if error.context.get(name)]
    return ": ".join(facts) or error.detail
