"""Header names and the grammar of their values, both ways. Stdlib only, no I/O.

tus 1.0.0 leaves little room in its number fields: a value is decimal digits and nothing else, once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final, Protocol, overload

TUS_VERSION: Final = "1.0.0"
OFFSET_MEDIA_TYPE: Final = "application/offset+octet-stream"
PARTIAL_MEDIA_TYPE: Final = "application/partial-upload"
MAX_INTEGER: Final = 2**63 - 1
"""Largest length and offset: what PostgreSQL's bigint holds."""

ACCEPT_PATCH: Final = "Accept-Patch"
CACHE_CONTROL: Final = "Cache-Control"
CONTENT_DIGEST: Final = "Content-Digest"
CONTENT_DISPOSITION: Final = "Content-Disposition"
CONTENT_ENCODING: Final = "Content-Encoding"
CONTENT_LANGUAGE: Final = "Content-Language"
CONTENT_LENGTH: Final = "Content-Length"
CONTENT_TYPE: Final = "Content-Type"
LOCATION: Final = "Location"
METHOD_OVERRIDE: Final = "X-HTTP-Method-Override"
REPR_DIGEST: Final = "Repr-Digest"
RETRY_AFTER: Final = "Retry-After"
TRAILER: Final = "Trailer"
TUS_CHECKSUM_ALGORITHM: Final = "Tus-Checksum-Algorithm"
TUS_EXTENSION: Final = "Tus-Extension"
TUS_MAX_SIZE: Final = "Tus-Max-Size"
TUS_RESUMABLE: Final = "Tus-Resumable"
TUS_VERSION_HEADER: Final = "Tus-Version"
UPLOAD_CHECKSUM: Final = "Upload-Checksum"
UPLOAD_COMPLETE: Final = "Upload-Complete"
UPLOAD_CONCAT: Final = "Upload-Concat"
UPLOAD_DEFER_LENGTH: Final = "Upload-Defer-Length"
UPLOAD_DRAFT_INTEROP_VERSION: Final = "Upload-Draft-Interop-Version"
UPLOAD_EXPIRES: Final = "Upload-Expires"
UPLOAD_ID: Final = "Upload-Id"
UPLOAD_INCOMPLETE: Final = "Upload-Incomplete"
UPLOAD_LENGTH: Final = "Upload-Length"
UPLOAD_LIMIT: Final = "Upload-Limit"
UPLOAD_METADATA: Final = "Upload-Metadata"
UPLOAD_OFFSET: Final = "Upload-Offset"
WANT_REPR_DIGEST: Final = "Want-Repr-Digest"

_INTEGER: Final = re.compile(r"[0-9]{1,19}")
_UNPRINTABLE: Final = re.compile(r"[^\t -~]")
MIN_TOKEN_LENGTH: Final = 22
"""Of base64url: 132 bits."""
_PUBLIC_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN: Final = re.compile(rf"[A-Za-z0-9_-]{{{MIN_TOKEN_LENGTH},64}}")


class Headers(Protocol):
    """Request headers, looked up without regard to case; a field may have several lines."""

    @overload
    def get(self, key: str, /) -> str | None: ...
    @overload
    def get(self, key: str, /, default: str) -> str: ...

    def getall(self, key: str, default: list[str], /) -> list[str]:
        """Return every line of the field."""


def single(headers: Headers, name: str) -> str | None:
    """Return the field's only line, None if absent.

    Raises:
        ValueError: the field stands there more than once.
    """
    lines: Sequence[str] = headers.getall(name, [])
    if len(lines) > 1:
        raise ValueError(f"{name} must be sent once")
    return lines[0] if lines else None


def parse_integer(value: str | None) -> int | None:
    """Return a non-negative integer of at most 2^63-1, None where the value is anything else."""
    if value is None or not _INTEGER.fullmatch(value):
        return None
    number = int(value)
    return number if number <= MAX_INTEGER else None


def content_length(headers: Headers) -> int | None:
    """Return the bytes of the body, None for a chunked one (RFC 9112 §6.3)."""
    if headers.get("Transfer-Encoding") is not None:
        return None
    return parse_integer(headers.get(CONTENT_LENGTH)) or 0


def is_printable(value: str) -> bool:
    """Return whether a value is printable ASCII, spaces and tabs: what may be repeated in a header."""
    return not _UNPRINTABLE.search(value)


def media_type(value: str | None) -> str:
    """Return the type of a Content-Type without its parameters, in lower case (RFC 9110 §8.3.1)."""
    return (value or "").split(";", 1)[0].strip().lower()


def is_upload_token(value: str) -> bool:
    """Return whether a path segment has the form of the tokens that this server hands out.

    A public id is none, though of the same letters: logs may show it.
    """
    return _TOKEN.fullmatch(value) is not None and not is_public_id(value)


def is_public_id(value: str) -> bool:
    """Return whether a text is a UUID in its canonical form, as the public ids of uploads are."""
    return _PUBLIC_ID.fullmatch(value) is not None


def http_date(moment: datetime) -> str:
    """Render a moment as IMF-fixdate (RFC 9110 §5.6.7), whatever the locale."""
    return format_datetime(moment.astimezone(UTC), usegmt=True)
