"""Requests to commands, by the rules of one interop version."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from tusd_py.errors import (
    AppendTooLarge,
    InvalidContentType,
    InvalidMetadata,
    InvalidOffset,
    LengthConflict,
    LengthExceeded,
    ProtocolError,
    UploadTooLarge,
)
from tusd_py.protocol import fields
from tusd_py.protocol.create import Create
from tusd_py.protocol.features import Features
from tusd_py.protocol.fields import Headers, content_length, single
from tusd_py.protocol.metadata import parse_metadata
from tusd_py.protocol.rufh import structured
from tusd_py.protocol.rufh.digests import parse_digests, parse_wanted
from tusd_py.protocol.rufh.versions import Version
from tusd_py.protocol.upload import Append, UploadProtocol

_FILENAME: Final = re.compile(
    r""";\s*(?P<coded>filename\*)\s*=\s*UTF-8'[^']*'(?P<value>[^;\s]*)"""
    r"""|;\s*filename\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^;\s"]+))""",
    re.IGNORECASE,
)
_CODING: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LANGUAGE: Final = re.compile(r"[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*")
_MAX_LIST_LENGTH: Final = 100


def parse_create(headers: Headers, features: Features, version: Version) -> Create:
    """Read a POST to the creation URL (draft §Upload Creation).

    Raises:
        ProtocolError: a subclass naming what is wrong; nothing was created.
    """
    completes = parse_complete(headers, version)
    if completes is None:
        raise ProtocolError(f"{complete_field(version)} is missing or malformed.")
    body_length = content_length(headers)
    length = structured.integer(headers, fields.UPLOAD_LENGTH)
    if completes and body_length is not None:
        if length is not None and length != body_length:
            raise LengthConflict("Upload-Length is not the length of the content, which is said to be all.")
        length = body_length
    _check_sizes(length, body_length, features)
    metadata = _metadata(headers)
    return Create(
        protocol=UploadProtocol.RUFH,
        length=length,
        completes=_decides(completes, version),
        max_body_bytes=features.max_append_size,
        metadata=metadata,
        content_encoding=_content_encoding(headers),
        content_language=_content_language(headers),
        pairs=_representation(headers) | parse_metadata(metadata, max_bytes=features.max_metadata),
        has_body=body_length != 0,
        content_length=body_length,
        checksum=parse_digests(headers, fields.CONTENT_DIGEST) if body_length != 0 else None,
        repr_digest=parse_digests(headers, fields.REPR_DIGEST),
        want_repr_digest=parse_wanted(headers, fields.WANT_REPR_DIGEST),
    )


def parse_append(headers: Headers, features: Features, version: Version) -> Append:
    """Read a PATCH (draft §Upload Append).

    Raises:
        InvalidContentType, InvalidOffset, ProtocolError: nothing was changed.
    """
    if version.typed_appends and fields.media_type(headers.get(fields.CONTENT_TYPE)) != fields.PARTIAL_MEDIA_TYPE:
        raise InvalidContentType(f"Content-Type must be {fields.PARTIAL_MEDIA_TYPE}.")
    offset = structured.integer(headers, fields.UPLOAD_OFFSET)
    if offset is None:
        raise InvalidOffset
    completes = parse_complete(headers, version)
    if completes is None:
        if not version.says_incomplete or headers.get(complete_field(version)) is not None:
            raise ProtocolError(f"{complete_field(version)} is missing or malformed.")
        completes = True
    return Append(
        protocol=UploadProtocol.RUFH,
        offset=offset,
        content_length=content_length(headers),
        length=structured.integer(headers, fields.UPLOAD_LENGTH),
        completes=_decides(completes, version),
        max_body_bytes=features.max_append_size,
        checksum=parse_digests(headers, fields.CONTENT_DIGEST),
        want_repr_digest=parse_wanted(headers, fields.WANT_REPR_DIGEST),
        fail_on_overrun=True,
    )


def complete_field(version: Version) -> str:
    """Return the name of the field that tells whether more is to come."""
    return fields.UPLOAD_INCOMPLETE if version.says_incomplete else fields.UPLOAD_COMPLETE


def parse_complete(headers: Headers, version: Version) -> bool | None:
    """Return whether a request carries the last bytes, None where it does not say."""
    value = structured.boolean(headers, complete_field(version))
    return value if value is None or not version.says_incomplete else not value


def _decides(completes: bool, version: Version) -> bool | None:  # noqa: FBT001 -- the value of a field
    return None if version.length_completes and not completes else completes


def _check_sizes(length: int | None, body_length: int | None, features: Features) -> None:
    if features.max_size is not None and max(length or 0, body_length or 0) > features.max_size:
        raise UploadTooLarge
    if body_length is None:
        return
    if length is not None and body_length > length:
        raise LengthExceeded
    if features.max_append_size is not None and body_length > features.max_append_size:
        raise AppendTooLarge


def _metadata(headers: Headers) -> str | None:
    # No field of the draft, but tus-js-client sends it in this dialect too.
    try:
        return single(headers, fields.UPLOAD_METADATA) or None
    except ValueError as problem:
        raise InvalidMetadata(f"{problem}.") from None


def _representation(headers: Headers) -> dict[str, bytes]:
    """Return type and name of the file; what cannot be read is as good as absent."""
    pairs: dict[str, bytes] = {}
    media_type = headers.get(fields.CONTENT_TYPE, "").strip()
    if media_type and fields.media_type(media_type) != fields.PARTIAL_MEDIA_TYPE:
        pairs["filetype"] = media_type.encode("utf-8", "replace")
    if name := _filename(headers.get(fields.CONTENT_DISPOSITION, "")):
        pairs["filename"] = name.encode("utf-8", "replace")
    return pairs


def _content_encoding(headers: Headers) -> str | None:
    """Return the content codings of the bytes, which are stored as they came.

    Raises:
        ProtocolError: no list of them. To store the bytes without it would make them unreadable.
    """
    codings = [coding for coding in _listed(headers, fields.CONTENT_ENCODING) if coding.lower() != "identity"]
    text = ", ".join(codings)
    if len(text) > _MAX_LIST_LENGTH or not all(_CODING.fullmatch(coding) for coding in codings):
        raise ProtocolError("Content-Encoding is not a list of content codings, or too long.")
    return text or None


def _content_language(headers: Headers) -> str | None:
    """Return the languages of the bytes; what cannot be read is as good as absent."""
    tags = _listed(headers, fields.CONTENT_LANGUAGE)
    text = ", ".join(tags)
    well_formed = len(text) <= _MAX_LIST_LENGTH and all(_LANGUAGE.fullmatch(tag) for tag in tags)
    return text or None if well_formed else None


def _listed(headers: Headers, name: str) -> list[str]:
    members = [member.strip() for line in headers.getall(name, []) for member in line.split(",")]
    return [member for member in members if member]


def _filename(disposition: str) -> str | None:
    """Return the file name (RFC 6266 §4.3); the coded form wins."""
    plain = None
    for found in _FILENAME.finditer(disposition):
        if found["coded"]:
            return unquote(found["value"], errors="replace")
        quoted = found["quoted"]
        plain = found["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    return plain
