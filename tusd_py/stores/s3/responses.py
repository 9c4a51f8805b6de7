"""What S3 responds, in types of our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tusd_py import crc64
from tusd_py.ports import ObjectIdentity, ObjectSpec, StoredObject

UPLOAD_ID_KEY: Final = "tusd-upload-id"
"""The metadata under which an object carries our own id."""
_FULL_OBJECT: Final = "FULL_OBJECT"
_CRC64NVME: Final = "CRC64NVME"
_PLAIN_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True, slots=True)
class Head:
    """What HeadObject says. `crc64nvme` is that of the whole object, never a composite."""

    length: int
    etag: str
    version_id: str | None
    upload_id: str | None
    crc64nvme: int | None
    full_object: bool
    """The server says itself that the checksum covers the whole object: it knows what that is."""
    locked: str | None = None
    """Until when, or why, the server refuses to remove it (S3 Object Lock), where it says so."""

    @classmethod
    def parse(cls, response: Mapping[str, Any]) -> Head:
        """Build it from the response of HeadObject."""
        composite = response.get("ChecksumType") not in {None, _FULL_OBJECT}
        return cls(
            length=response["ContentLength"],
            etag=response.get("ETag", ""),
            version_id=response.get("VersionId"),
            upload_id=response.get("Metadata", {}).get(UPLOAD_ID_KEY),
            crc64nvme=None if composite else parse_crc(response),
            full_object=response.get("ChecksumType") == _FULL_OBJECT,
            locked=_lock(response),
        )

    @property
    def md5(self) -> bytes | None:
        """The MD5 in the ETag, if it has the form of one."""
        return plain_md5(self.etag)

    def matches(self, spec: ObjectSpec) -> bool:
        """Return whether length and, where both are known, checksum are those of `spec`."""
        known = None not in {self.crc64nvme, spec.crc64nvme}
        return self.length == spec.length and (not known or self.crc64nvme == spec.crc64nvme)

    def belongs_to(self, identity: ObjectIdentity) -> bool:
        """Return whether the object is the upload's: it carries its id, or no id and its bytes."""
        if self.upload_id is not None or self.length != identity.length:
            return self.upload_id == identity.upload_id
        if self.etag and identity.etag and self.etag.strip('"') == identity.etag.strip('"'):
            return True
        return self.crc64nvme is not None and self.crc64nvme == identity.crc64nvme

    def stored(self, key: str) -> StoredObject:
        """Return it as the port does, under its key without our prefix."""
        return StoredObject(key, self.length, self.etag, self.version_id, self.crc64nvme, self.upload_id)


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part as ListParts shows it."""

    length: int
    etag: str
    crc64nvme: int | None
    sha256: str | None

    @classmethod
    def parse(cls, part: Mapping[str, Any]) -> ListedPart:
        """Build it from an entry of the response."""
        return cls(part["Size"], part["ETag"], parse_crc(part), part.get("ChecksumSHA256"))

    @property
    def md5(self) -> bytes | None:
        """The MD5 in the ETag, if it has the form of one."""
        return plain_md5(self.etag)


@dataclass(frozen=True, slots=True)
class MultipartInfo:
    """A multipart upload as the server describes it, and the parts that it has."""

    multipart_id: str
    crc64nvme: bool
    """It was begun with CRC64NVME, so its parts may carry that checksum."""
    full_object: bool
    """It accepts the checksum of the whole object at the end."""
    parts: Mapping[int, ListedPart] = field(default_factory=dict)


def _lock(response: Mapping[str, Any]) -> str | None:
    if response.get("ObjectLockLegalHoldStatus") == "ON":
        return "legal hold"
    until: datetime | None = response.get("ObjectLockRetainUntilDate")
    return until.isoformat() if response.get("ObjectLockMode") and until else None


def parse_multipart_checksum(response: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return `crc64nvme` and `full_object` of `MultipartInfo`."""
    begun = response.get("ChecksumAlgorithm") == _CRC64NVME
    return begun, begun and response.get("ChecksumType") == _FULL_OBJECT


def parse_crc(response: Mapping[str, Any]) -> int | None:
    """Return the CRC-64/NVME in a response, None if there is none of the whole."""
    try:
        return crc64.from_base64(response["ChecksumCRC64NVME"])
    except (KeyError, ValueError):  # absent, or a composite such as "…-3"
        return None


def plain_md5(etag: str) -> bytes | None:
    """Return the MD5 in an ETag that has the form of one, None for a multipart object's."""
    match = _PLAIN_MD5.fullmatch(etag)
    return bytes.fromhex(match[1]) if match else None
