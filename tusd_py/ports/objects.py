"""What travels between staging, the worker and a store: descriptions of objects, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Segment:
    """One staged file holding `length` bytes of an upload. Segments are read in order."""

    path: Path
    length: int


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What a store is asked to hold.

    `key` is rendered once when the transfer is queued and never changes; `crc64nvme` is the
    CRC-64/NVME of the whole object as it came from the client's socket, None if unknown.
    """

    upload_id: str
    key: str
    length: int
    crc64nvme: int | None
    content_type: str
    filename: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the upload's profile says of its object, by the names of S3: it goes before the store's own."""
    digests: frozenset[str] = frozenset()
    """What to compute during the transfer, of `sha256` and `md5`."""
    content_encoding: str | None = None
    content_language: str | None = None


@dataclass(frozen=True, slots=True)
class Digests:
    """Hashes of a whole object; None is one that is not known."""

    sha256: bytes | None = None
    md5: bytes | None = None


NO_DIGESTS: Final = Digests()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store says of an object that it holds."""

    key: str
    length: int
    etag: str | None = None
    version_id: str | None = None
    crc64nvme: int | None = None
    upload_id: str | None = None
    """Our own id as recorded with the object, where the store keeps metadata."""
    digests: Digests = NO_DIGESTS
    """What `put` was asked for; none also where an earlier try's object has lost its staged bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectIdentity:
    """What identifies an upload's object among whatever may lie under its key."""

    upload_id: str
    key: str
    length: int
    crc64nvme: int | None = None
    etag: str | None = None
    """As the store returned it when the object was stored; so is `version_id`. None: not recorded."""
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of a multipart upload that the store has acknowledged."""

    number: int
    length: int
    etag: str
    crc64nvme: int | None = None


@dataclass(frozen=True, slots=True)
class DownloadHeaders:
    """What a download says of its bytes, wherever it is served from."""

    content_type: str
    content_disposition: str
    content_encoding: str | None = None
    content_language: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the headers by their names; what is not known is left out."""
        headers = {
            "Content-Type": self.content_type,
            "Content-Disposition": self.content_disposition,
            "Content-Encoding": self.content_encoding,
            "Content-Language": self.content_language,
        }
        return {name: value for name, value in headers.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A stored object is a file that this process can open."""

    path: Path
    tag: str
    """Changes whenever the file's bytes do."""


@dataclass(frozen=True, slots=True)
class PresignedUrl:
    """A stored object is served by the store itself, at a URL that expires."""

    url: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as a listing shows it."""

    key: str
    length: int
    modified_at: float
    """Seconds since the epoch, by the store's clock."""
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class UnfinishedObject:
    """What may still become an object: an unfinished multipart upload, an incomplete file."""

    key: str
    id: str
    """What `ObjectStore.abort` takes."""
    begun_at: float
    """Seconds since the epoch; of an incomplete file, when it last grew."""
