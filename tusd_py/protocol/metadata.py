"""Upload-Metadata: a comma-separated list of `key[ SP base64]` (tus 1.0.0 §Upload-Metadata)."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from tusd_py.errors import InvalidMetadata
from tusd_py.protocol.fields import is_printable

MAX_NAME_BYTES: Final = 1024
"""255 characters of UTF-16, which some file systems take, may be 765 bytes."""
MAX_TYPE_BYTES: Final = 255
"""RFC 6838 §4.2: 127 characters and a slash and 127 more. Stores refuse headers that are much longer."""

_KEY: Final = re.compile(r"[!-+\--~]+")
"""Printable ASCII without space and comma."""


def parse_metadata(header: str | None, *, max_bytes: int) -> dict[str, bytes]:
    """Return the decoded pairs in the order sent; a key without a value maps to `b""`.

    Tolerated, because real clients send it: an empty header, a key followed by a bare space, spaces
    around commas, missing base64 padding, values that are not UTF-8.

    Raises:
        InvalidMetadata: too long, a control or non-ASCII character, an empty, malformed or repeated
            key, a value that is not base64.
    """
    if header is None or not header.strip(" \t"):
        return {}
    if len(header) > max_bytes:
        raise InvalidMetadata(f"Upload-Metadata is longer than {max_bytes} bytes.")
    if not is_printable(header):
        raise InvalidMetadata("Upload-Metadata has a character that is not printable ASCII.")
    pairs: dict[str, bytes] = {}
    for item in header.split(","):
        key, _, encoded = item.strip(" \t").partition(" ")
        if not _KEY.fullmatch(key):
            raise InvalidMetadata("Upload-Metadata has an empty or malformed key.")
        if key in pairs:
            raise InvalidMetadata(f"Upload-Metadata has the key {key[:64]} twice.")
        pairs[key] = _decode(key, encoded.strip(" "))
    return pairs


def _decode(key: str, encoded: str) -> bytes:
    if not encoded:
        return b""
    padded = encoded.rstrip("=")
    padded += "=" * (-len(padded) % 4)
    try:
        return base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidMetadata(f"The value of {key[:64]} in Upload-Metadata is not base64.") from error


def text_value(pairs: dict[str, bytes], *keys: str) -> str | None:
    """Return the first of these keys that holds non-empty UTF-8 text without control characters.

    Uppy sends the text `null` for fields it does not know; that counts as absent.
    """
    for key in keys:
        try:
            text = pairs.get(key, b"").decode("utf-8").strip()
        except UnicodeDecodeError:
            continue
        if text and text != "null" and text.isprintable():
            return text
    return None


def decoded_metadata(header: str | None) -> dict[str, str | None]:
    """Return the pairs of an accepted header as texts, None for a value that is not UTF-8."""
    pairs = parse_metadata(header, max_bytes=len(header or ""))
    return {key: _text(value) for key, value in pairs.items()}


def _text(value: bytes) -> str | None:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return None


def file_name(pairs: dict[str, bytes]) -> str | None:
    """Return the name of the file. Raises `InvalidMetadata` if it is longer than any file system's."""
    return _bounded(text_value(pairs, "filename", "name"), MAX_NAME_BYTES, "name")


def file_type(pairs: dict[str, bytes]) -> str | None:
    """Return the media type of the file. Raises `InvalidMetadata` if it is longer than one can be."""
    return _bounded(text_value(pairs, "filetype", "type", "content_type"), MAX_TYPE_BYTES, "type")


def _bounded(text: str | None, max_bytes: int, what: str) -> str | None:
    if text is not None and len(text.encode()) > max_bytes:
        raise InvalidMetadata(f"The file's {what} is longer than {max_bytes} bytes.")
    return text
