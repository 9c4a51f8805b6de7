"""Structured Fields (RFC 9651): what the dialect reads and writes of them.

A field that is not well-formed is ignored as a whole, so every reader here returns None for it. The
parser knows all types, for parameters and unknown members may be of any. It is our own because the
protocol imports nothing but the standard library.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Final

from tusd_py.protocol.fields import Headers

Bare = bool | int | float | str | bytes
"""A bare item. Tokens, display strings and dates come as the text they stand in: nothing here reads them."""

_INTEGER: Final = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_DECIMAL: Final = re.compile(r"-?[0-9]{1,12}\.[0-9]{1,3}(?![0-9.])")
_STRING: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_TOKEN: Final = re.compile(r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*")
_BYTES: Final = re.compile(r":([A-Za-z0-9+/=]*):")
_BOOLEAN: Final = re.compile(r"\?([01])")
_DATE: Final = re.compile(r"@-?[0-9]{1,15}(?![0-9.])")
_DISPLAY: Final = re.compile(r'%"(?:[ !#$&-~]|%[0-9a-f]{2})*"')
_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
_SPACES: Final = re.compile(r" *")
_COMMA: Final = re.compile(r"[ \t]*,[ \t]*")
_END: Final = re.compile(r"[ \t]*\Z")


class _Malformed(Exception):
    """The field is to be ignored."""


def integer(headers: Headers, name: str) -> int | None:
    """Return the field's non-negative Integer, None if it is absent, malformed or anything else."""
    value = _item(headers, name)
    return value if type(value) is int and value >= 0 else None


def boolean(headers: Headers, name: str) -> bool | None:
    """Return the field's Boolean, None if it is absent, malformed or anything else."""
    value = _item(headers, name)
    return value if isinstance(value, bool) else None


def byte_sequences(headers: Headers, name: str) -> dict[str, bytes]:
    """Return the members of the field's Dictionary that are Byte Sequences; none if it is malformed."""
    return {key: value for key, value in _members(headers, name).items() if isinstance(value, bytes)}


def weights(headers: Headers, name: str) -> dict[str, int]:
    """Return the members of the field's Dictionary that are Integers; none if it is malformed."""
    return {key: value for key, value in _members(headers, name).items() if type(value) is int}


def render_boolean(value: bool) -> str:  # noqa: FBT001 -- it is what is rendered
    """Write a Boolean."""
    return "?1" if value else "?0"


def render_byte_sequences(members: Mapping[str, bytes]) -> str:
    """Write a Dictionary of Byte Sequences."""
    return ", ".join(f"{key}=:{base64.b64encode(value).decode()}:" for key, value in members.items())


def render_integers(members: Mapping[str, int]) -> str:
    """Write a Dictionary of Integers."""
    return ", ".join(f"{key}={value}" for key, value in members.items())


def _members(headers: Headers, name: str) -> dict[str, Bare | None]:
    text = _joined(headers, name)
    if text is None:
        return {}
    try:
        return _Reader(text).dictionary()
    except _Malformed:
        return {}


def _item(headers: Headers, name: str) -> Bare | None:
    text = _joined(headers, name)
    if text is None:
        return None
    try:
        return _Reader(text).item_alone()
    except _Malformed:
        return None


def _joined(headers: Headers, name: str) -> str | None:
    # Several lines are one list (RFC 9651 §4.2), which an item then is not.
    lines = headers.getall(name, [])
    return ", ".join(lines) if lines else None


class _Reader:
    """Reads one field value from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = len(text) - len(text.lstrip(" "))

    def item_alone(self) -> Bare:
        item = self._item()
        self._take(_END)
        return item

    def dictionary(self) -> dict[str, Bare | None]:
        """Return the members; an inner list, which nothing here reads, comes as None."""
        members: dict[str, Bare | None] = {}
        while True:
            key = self._take(_KEY)
            members[key] = self._member()
            if self._match(_END):
                return members
            self._take(_COMMA)

    def _member(self) -> Bare | None:
        if not self._skip("="):
            self._parameters()
            return True
        if not self._skip("("):
            return self._item()
        while not (self._skip(_SPACES) and self._skip(")")):
            self._item()
            if not self._text.startswith((" ", ")"), self._at):
                raise _Malformed
        self._parameters()
        return None

    def _item(self) -> Bare:
        bare = self._bare()
        self._parameters()
        return bare

    def _parameters(self) -> None:
        while self._skip(";"):
            self._skip(_SPACES)
            self._take(_KEY)
            if self._skip("="):
                self._bare()

    def _bare(self) -> Bare:
        if found := self._match(_BOOLEAN):
            return found[1] == "1"
        if found := self._match(_INTEGER):
            return int(found[0])
        if found := self._match(_DECIMAL):
            return float(found[0])
        if found := self._match(_BYTES):
            return _decode(found[1])
        if found := self._match(_STRING):
            return found[1]
        for pattern in (_TOKEN, _DATE, _DISPLAY):
            if found := self._match(pattern):
                return found[0]
        raise _Malformed

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = self._match(pattern)
        if found is None:
            raise _Malformed
        return found[0]

    def _skip(self, what: str | re.Pattern[str]) -> bool:
        if isinstance(what, re.Pattern):
            return self._match(what) is not None
        if not self._text.startswith(what, self._at):
            return False
        self._at += len(what)
        return True


def _decode(encoded: str) -> bytes:
    # Missing padding is tolerated, as RFC 9651 §4.2.7 advises.
    bare = encoded.rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _Malformed from error
