"""What S3 responds, in types of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from tusd_py import crc64

UPLOAD_ID_KEY: Final = "tusd-upload-id"
"""The metadata under which an object carries our own id."""
_FULL_OBJECT: Final = "FULL_OBJECT"
_CRC64NVME: Final = "CRC64NVME"


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
