"""The calls we make to one bucket: aiobotocore behind it, our own types and errors in front.

There is no policy here: what is sent when, and what a response means, is decided by the callers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

from aiobotocore.session import AioSession

from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import StorageError, StoreBlocked, TransientStoreError
from tusd_py.ports import PartRecord
from tusd_py.stores.s3.client_config import client_config
from tusd_py.stores.s3.errors import NO_SUCH_UPLOAD, NOT_FOUND, code_of, translated
from tusd_py.stores.s3.responses import Head, ListedPart, MultipartInfo, parse_crc, parse_multipart_checksum
from tusd_py.stores.s3.source import RangeBody

Parameters = Mapping[str, Any]

_PRESIGNED: Final = {"GET": "get_object", "HEAD": "head_object"}


class Bucket:
    """One bucket. `open` before use; every method raises Transient- or PermanentStoreError."""

    def __init__(self, config: S3StoreConfig) -> None:
        self._config = config
        self._stall_seconds = config.client.connect_timeout + config.client.read_timeout
        self._stack = AsyncExitStack()
        self._client: Any = None
        self._presigner: Any = None

    async def open(self) -> None:
        """Make the clients. Nothing is sent, so that a store that is down does not stop a start."""
        endpoint, public = self._config.endpoint_url, self._config.public_endpoint_url
        async with AsyncExitStack() as stack:
            with translated("open"):
                session = AioSession(profile=self._config.profile)
                self._client = await self._enter_client(stack, session, endpoint)
                # The host is signed: a URL for browsers needs the name by which they reach the store.
                signed = self._config.querystring_auth
                own = public is not None or not signed
                self._presigner = (
                    await self._enter_client(stack, session, public or endpoint, signed=signed) if own else self._client
                )
            self._stack = stack.pop_all()

    async def _enter_client(
        self, stack: AsyncExitStack, session: AioSession, endpoint: str | None, *, signed: bool = True
    ) -> Any:
        config = self._config
        return await stack.enter_async_context(
            session.create_client(
                "s3",
                region_name=config.region,
                endpoint_url=endpoint,
                aws_access_key_id=config.access_key and config.access_key.get_secret_value(),
                aws_secret_access_key=config.secret_key and config.secret_key.get_secret_value(),
                aws_session_token=config.session_token and config.session_token.get_secret_value(),
                verify=config.verify_tls if isinstance(config.verify_tls, bool) else str(config.verify_tls),
                config=client_config(config, endpoint, signed=signed),
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._stack.aclose()

    async def probe(self) -> None:
        """Ask for the bucket."""
        try:
            with translated("HeadBucket"):
                await self._client.head_bucket(Bucket=self._config.bucket)
        except StorageError as error:
            if code_of(error) in NOT_FOUND:  # a HEAD has no body that could name the code
                raise StoreBlocked(**error.context | {"code": "NoSuchBucket"}) from error
            raise

    async def head(self, key: str, version_id: str | None = None) -> Head | None:
        """Return what lies under the key, or a version of it, None if nothing."""
        parameters = {} if self._config.checksum == "none" else {"ChecksumMode": "ENABLED"}
        if version_id is not None:
            parameters["VersionId"] = version_id
        try:
            with translated("HeadObject", key=key):
                response = await self._client.head_object(Bucket=self._config.bucket, Key=key, **parameters)
        except StorageError as error:
            if code_of(error) in NOT_FOUND:
                return None
            raise
        return Head.parse(response)

    async def list_any(self, prefix: str) -> None:
        """Ask for one key below a prefix; what there is does not matter."""
        with translated("ListObjectsV2"):
            await self._client.list_objects_v2(Bucket=self._config.bucket, Prefix=prefix, MaxKeys=1)

    async def get(self, key: str) -> bytes | None:
        """Return the bytes of a small object, None if there is none."""
        try:
            with translated("GetObject", key=key):
                response = await self._client.get_object(Bucket=self._config.bucket, Key=key)
                async with response["Body"] as body:
                    content: bytes = await body.read()
        except StorageError as error:
            if code_of(error) in NOT_FOUND:
                return None
            raise
        return content

    async def put(self, key: str, body: RangeBody, parameters: Parameters) -> bool:
        """Send an object in one request; return whether the server returned our checksum."""
        # An empty body goes as bytes: botocore would announce "Expect: 100-continue" for a file.
        sent = body if len(body) else b""
        with _body_failures(body), translated("PutObject", key=key):
            async with body.sending(self._stall_seconds):
                response = await self._client.put_object(Bucket=self._config.bucket, Key=key, Body=sent, **parameters)
        return parse_crc(response) is not None

    async def create_multipart(self, key: str, parameters: Parameters) -> MultipartInfo:
        """Begin a multipart upload."""
        with translated("CreateMultipartUpload", key=key):
            response = await self._client.create_multipart_upload(Bucket=self._config.bucket, Key=key, **parameters)
        return MultipartInfo(response["UploadId"], *parse_multipart_checksum(response))

    async def upload_part(
        self, key: str, multipart_id: str, number: int, body: RangeBody, parameters: Parameters
    ) -> tuple[str, bool]:
        """Send a part; return its ETag and whether the server returned our checksum."""
        with _body_failures(body), translated("UploadPart", key=key, part=number):
            async with body.sending(self._stall_seconds):
                response = await self._client.upload_part(
                    Bucket=self._config.bucket,
                    Key=key,
                    UploadId=multipart_id,
                    PartNumber=number,
                    Body=body,
                    **parameters,
                )
        return response["ETag"], parse_crc(response) is not None

    async def list_parts(self, key: str, multipart_id: str) -> MultipartInfo | None:
        """Return a multipart upload with all its parts, None if there is no such upload."""
        parts: dict[int, ListedPart] = {}
        response: Mapping[str, Any] = {}
        more = True
        while more:
            try:
                with translated("ListParts", key=key):
                    response = await self._client.list_parts(
                        Bucket=self._config.bucket,
                        Key=key,
                        UploadId=multipart_id,
                        PartNumberMarker=max(parts, default=0),
                    )
            except StorageError as error:
                if code_of(error) == NO_SUCH_UPLOAD:
                    return None
                raise
            # The marker comes from the parts: rclone's NextPartNumberMarker skips some of them.
            page = {part["PartNumber"]: ListedPart.parse(part) for part in response.get("Parts", ())}
            more = bool(response.get("IsTruncated")) and not page.keys() <= parts.keys()
            parts |= page
        begun, full_object = parse_multipart_checksum(response)
        # moto and ministack do not repeat here what the upload was begun with; the parts may show it.
        begun = begun or any(part.crc64nvme is not None for part in parts.values())
        return MultipartInfo(multipart_id, begun, full_object, parts)

    async def complete_multipart(
        self,
        key: str,
        multipart_id: str,
        parts: Sequence[tuple[PartRecord, Mapping[str, str]]],
        parameters: Parameters,
    ) -> None:
        """Make one object of the parts, each given with its checksums as S3 names them."""
        listed = [{"PartNumber": part.number, "ETag": part.etag, **checksums} for part, checksums in parts]
        with translated("CompleteMultipartUpload", key=key):
            await self._client.complete_multipart_upload(
                Bucket=self._config.bucket,
                Key=key,
                UploadId=multipart_id,
                MultipartUpload={"Parts": listed},
                **parameters,
            )

    async def abort_multipart(self, key: str, multipart_id: str) -> None:
        """Drop a multipart upload; nothing there is success."""
        try:
            with translated("AbortMultipartUpload", key=key):
                await self._client.abort_multipart_upload(Bucket=self._config.bucket, Key=key, UploadId=multipart_id)
        except StorageError as error:
            if code_of(error) != NO_SUCH_UPLOAD:
                raise

    async def multiparts_page(self, prefix: str, parameters: Parameters) -> Mapping[str, Any]:
        """Return a page of the unfinished multipart uploads below a prefix, as S3 names things."""
        try:
            with translated("ListMultipartUploads", key=prefix):
                response: Mapping[str, Any] = await self._client.list_multipart_uploads(
                    Bucket=self._config.bucket, Prefix=prefix, **parameters
                )
        except StorageError as error:
            if code_of(error) == NO_SUCH_UPLOAD:  # so rclone says that the bucket has none
                return {}
            raise
        return response

    async def objects_page(self, prefix: str, parameters: Parameters) -> Mapping[str, Any]:
        """Return a page of the objects below a prefix, as S3 names things."""
        with translated("ListObjectsV2", key=prefix):
            response: Mapping[str, Any] = await self._client.list_objects_v2(
                Bucket=self._config.bucket, Prefix=prefix, **parameters
            )
        return response

    async def versions_page(self, prefix: str, parameters: Parameters) -> Mapping[str, Any]:
        """Return a page of the versions of the objects below a prefix, as S3 names things."""
        with translated("ListObjectVersions", key=prefix):
            response: Mapping[str, Any] = await self._client.list_object_versions(
                Bucket=self._config.bucket, Prefix=prefix, **parameters
            )
        return response

    async def delete(self, key: str, parameters: Parameters | None = None) -> None:
        """Remove an object, or the version of `VersionId`; nothing there is success."""
        try:
            with translated("DeleteObject", key=key):
                await self._client.delete_object(Bucket=self._config.bucket, Key=key, **(parameters or {}))
        except StorageError as error:
            if code_of(error) not in NOT_FOUND:
                raise

    async def presign(self, method: str, key: str, parameters: Parameters, expires_seconds: int) -> str:
        """Return a URL for GET or HEAD, signed with the parameters unless links are not to be signed.

        Sends nothing, and takes about 0.1 ms.
        """
        if not self._config.querystring_auth:
            parameters = {}  # S3 refuses to change a response for an anonymous request
        with translated("presign", key=key):
            url: str = await self._presigner.generate_presigned_url(
                _PRESIGNED[method],
                Params={"Bucket": self._config.bucket, "Key": key, **parameters},
                ExpiresIn=expires_seconds,
            )
        return url


@contextlib.contextmanager
def _body_failures(body: RangeBody) -> Iterator[None]:
    """Raise what went wrong with the staged bytes instead of the lost connection it looks like."""
    try:
        yield
    except TransientStoreError as error:
        if body.failure:
            raise body.failure from error
        raise
