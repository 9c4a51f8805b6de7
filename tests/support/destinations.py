"""The destinations that the contract of `ObjectStore` is tried on, and what each can do.

The table of abilities is itself tested: where a destination cannot do something, the suite asserts
that it really does not, so a server that learns it makes a test fail and the table is corrected.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import botocore.config
import botocore.session
import pytest

from tusd_py import crc64
from tusd_py.config.sections import S3StoreConfig
from tusd_py.errors import TransferCancelled
from tusd_py.ports import ObjectIdentity, ObjectSpec, ObjectStore, PartRecord, PartStore, Segment, TransferState
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.stores.rate_limit import Bandwidth
from tusd_py.stores.s3 import S3Store
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.listing import PAGE_SIZE

MIB = 2**20
PART = 5 * MIB
"""S3's smallest part, to keep the test data small; also the threshold of the stores tested here."""

REGION = "us-east-1"


# --- what they can do ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Abilities:
    """What a destination can do. The defaults are what S3 at AWS does."""

    multipart: bool = True
    """Large objects are sent in parts that a successor can go on with."""
    reads_what_it_stores: bool = True
    """Staged bytes are verified on their way; a link on the same disk reads none of them."""
    keeps_metadata: bool = True
    verifies_crc64nvme: bool = True
    """A body that does not match x-amz-checksum-crc64nvme is refused."""
    verifies_md5: bool = True
    full_object_checksum: bool = True
    """CompleteMultipartUpload verifies the CRC64NVME of the whole object."""
    tells_crc64nvme: bool = True
    """HeadObject returns the CRC64NVME of an object that was sent in parts."""
    honours_if_none_match: bool = True
    honours_if_match: bool = True
    """On what replaces an object, and on what removes one."""
    tells_begin: bool = True
    """ListMultipartUploads says when each was begun."""
    checks_key_id: bool = True
    checks_secret: bool = True
    expires_links: bool = True
    checks_links: bool = True


FILESYSTEM = Abilities(
    multipart=False,
    reads_what_it_stores=False,
    keeps_metadata=False,
    verifies_crc64nvme=False,
    verifies_md5=False,
    full_object_checksum=False,
    tells_crc64nvme=False,
    honours_if_none_match=False,
    honours_if_match=False,
    checks_key_id=False,
    checks_secret=False,
    expires_links=False,
    checks_links=False,
)
MOTO = Abilities(
    verifies_crc64nvme=False,
    verifies_md5=False,
    # It computes the checksum by itself and tells it, but compares it with nothing it was told.
    full_object_checksum=False,
    # It says of all of them that they were begun in 2010.
    tells_begin=False,
    checks_key_id=False,
    checks_secret=False,
    expires_links=False,
    checks_links=False,
)
RCLONE = Abilities(
    verifies_crc64nvme=False,
    full_object_checksum=False,
    tells_crc64nvme=False,
    honours_if_none_match=False,
    honours_if_match=False,
)
MINISTACK = Abilities(
    # It turns FULL_OBJECT into COMPOSITE, and says so when the multipart upload is begun.
    full_object_checksum=False,
    tells_crc64nvme=False,
    checks_secret=False,
)


# --- what the suite asks of them -------------------------------------------------------------------


class Destination(Protocol):
    """A destination seen from outside: the store under test, and a look behind its back."""

    @property
    def name(self) -> str:
        """The name of the server."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    def store(self, **changes: Any) -> ObjectStore:
        """Return a store that is not open yet, as a new process would make it, with changed settings."""

    def read(self, key: str) -> bytes | None:
        """Return the object's bytes, None if there is no object."""

    def write(self, key: str, content: bytes) -> None:
        """Put an object there that is not ours."""

    def keys(self) -> list[str]:
        """Return the keys of all objects of this test."""

    def unfinished(self) -> list[str]:
        """Return whatever a put left behind that is no object."""


@dataclass(frozen=True)
class FilesystemDestination:
    """A directory."""

    root: Path
    name: str = "filesystem"
    abilities: Abilities = FILESYSTEM

    def store(self, **changes: Any) -> ObjectStore:
        return FilesystemStore(self.root, **changes)

    def read(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.exists() else None

    def write(self, key: str, content: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def keys(self) -> list[str]:
        return sorted(name for name in self._files() if ".tmp" not in name)

    def unfinished(self) -> list[str]:
        return sorted(name for name in self._files() if ".tmp" in name)

    def _files(self) -> list[str]:
        return [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]


@dataclass(frozen=True)
class S3Account:
    """A running S3 server with one bucket."""

    name: str
    endpoint_url: str
    bucket: str
    access_key: str
    secret_key: str
    abilities: Abilities

    @functools.cached_property
    def shared_client(self) -> Any:
        """The client of all tests that do not restart the server."""
        return self.client()

    def client(self) -> Any:
        """Return a plain botocore client, without anything of ours in it."""
        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=botocore.config.Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


@dataclass(frozen=True)
class S3Destination:
    """A prefix of a bucket, one per test."""

    account: S3Account
    client: Any
    prefix: str

    @property
    def name(self) -> str:
        return self.account.name

    @property
    def abilities(self) -> Abilities:
        return self.account.abilities

    def store(self, *, page_size: int = PAGE_SIZE, bandwidth: Bandwidth | None = None, **changes: Any) -> S3Store:
        return S3Store(self.config(**changes), bandwidth=bandwidth, page_size=page_size)

    def config(self, **changes: Any) -> S3StoreConfig:
        """Return the configuration of a store here, with changes."""
        settings: dict[str, Any] = {
            "bucket": self.account.bucket,
            "endpoint_url": self.account.endpoint_url,
            "region": REGION,
            "access_key": self.account.access_key,
            "secret_key": self.account.secret_key,
            "location": self.prefix,
            "multipart_threshold": PART,
            "part_size": PART,
            "client": {"max_attempts": 1, "connect_timeout": 5, "read_timeout": 30},
        }
        return S3StoreConfig(**(settings | changes))

    def read(self, key: str) -> bytes | None:
        try:
            answer = self.client.get_object(Bucket=self.account.bucket, Key=f"{self.prefix}/{key}")
        except self.client.exceptions.NoSuchKey:
            return None
        content: bytes = answer["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.account.bucket, Key=f"{self.prefix}/{key}", Body=content)

    def head(self, key: str) -> Any:
        """Return what HeadObject says."""
        return self.client.head_object(Bucket=self.account.bucket, Key=f"{self.prefix}/{key}", ChecksumMode="ENABLED")

    def keys(self) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.account.bucket, Prefix=f"{self.prefix}/")
        return [entry["Key"].removeprefix(f"{self.prefix}/") for entry in answer.get("Contents", ())]

    def unfinished(self) -> list[str]:
        try:
            answer = self.client.list_multipart_uploads(Bucket=self.account.bucket, Prefix=f"{self.prefix}/")
        except self.client.exceptions.NoSuchUpload:  # so rclone says that the bucket has none
            return []
        return [entry["UploadId"] for entry in answer.get("Uploads", ())]


def identity_of(content: bytes, key: str, **changes: Any) -> ObjectIdentity:
    """Return the identity of an upload's object with this content, stored under a key that ends in its id."""
    settings: dict[str, Any] = {"upload_id": key.rsplit("/", 1)[-1], "crc64nvme": crc64.update(content)}
    return ObjectIdentity(key=key, length=len(content), **(settings | changes))


# --- what is sent ----------------------------------------------------------------------------------


class Calls:
    """Counts the bodies that are sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.puts = 0
        self.parts: list[int] = []
        put, upload_part = Bucket.put, Bucket.upload_part

        async def counted_put(bucket: Bucket, *args: Any) -> Any:
            self.puts += 1
            return await put(bucket, *args)

        async def counted_part(bucket: Bucket, key: str, multipart_id: str, number: int, *args: Any) -> Any:
            self.parts.append(number)
            return await upload_part(bucket, key, multipart_id, number, *args)

        monkeypatch.setattr(Bucket, "put", counted_put)
        monkeypatch.setattr(Bucket, "upload_part", counted_part)


# --- the worker's memory ---------------------------------------------------------------------------


class Crash(BaseException):
    """The worker was killed. Not an Exception: nothing in the stores may clean up after it."""


async def put_parts(
    store: ObjectStore, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState
) -> int:
    """Call the store's own `put_parts`, which it must have."""
    assert isinstance(store, PartStore)
    return await store.put_parts(spec, segments, transfer_state)


@dataclass
class MemoryTransferState(TransferState):
    """A transfer state that survives its worker; it can be told to end it at the n-th call.

    `stop_at` counts calls from 1; `before` decides whether that call still takes effect.
    """

    stop_at: int | None = None
    before: bool = True
    stop_with: type[BaseException] = Crash
    recorded_id: str | None = None
    recorded_parts: dict[int, PartRecord] = field(default_factory=dict)
    bytes_done: int = 0
    calls: list[str] = field(default_factory=list)

    def successor(self) -> MemoryTransferState:
        """Return what the next worker finds."""
        return MemoryTransferState(recorded_id=self.recorded_id, recorded_parts=dict(self.recorded_parts))

    def _call(self, name: str) -> bool:
        """Count a call; return whether it takes effect and then ends everything."""
        self.calls.append(name)
        # Once ended, always ended: what still runs of a cancelled transfer must not get through.
        if self.stop_at is None or len(self.calls) < self.stop_at:
            return False
        if self.before or len(self.calls) > self.stop_at:
            raise self.stop_with
        return True

    async def multipart_id(self) -> str | None:
        if self._call("multipart_id"):
            raise self.stop_with
        return self.recorded_id

    async def record_multipart(self, multipart_id: str | None) -> None:
        stop = self._call("record_multipart")
        self.recorded_id = multipart_id
        self.recorded_parts.clear()
        if stop:
            raise self.stop_with

    async def parts(self) -> Sequence[PartRecord]:
        if self._call("parts"):
            raise self.stop_with
        return [part for _, part in sorted(self.recorded_parts.items())]

    async def record_part(self, part: PartRecord) -> None:
        stop = self._call("record_part")
        self.recorded_parts[part.number] = part
        if stop:
            raise self.stop_with

    async def progress(self, bytes_done: int) -> None:
        stop = self._call("progress")
        self.bytes_done = bytes_done
        if stop:
            raise self.stop_with


def cancelled_at(call: int) -> MemoryTransferState:
    """Return the transfer state of a transfer that is cancelled when it makes this call."""
    return MemoryTransferState(stop_at=call, stop_with=TransferCancelled)
