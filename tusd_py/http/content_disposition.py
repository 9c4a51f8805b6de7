"""Content-Disposition and Content-Type of an uploaded file, safe for a browser. Pure.

Name and type come from an untrusted client. Neither may break out of its header, and nothing that can run
script is ever shown under our origin.
"""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

DEFAULT_TYPE: Final = "application/octet-stream"
MAX_NAME_BYTES: Final = 255
MAX_EXTENSION_BYTES: Final = 32
MAX_TYPE_LENGTH: Final = 255

_MEDIA_TYPE: Final = re.compile(
    r"(?P<essence>[a-z0-9][a-z0-9!#$&^_.+-]*/[a-z0-9][a-z0-9!#$&^_.+-]*)[ \t]*(?P<parameters>;.*)?"
)
_CHARSET: Final = re.compile(r""";[ \t]*charset="?(?P<name>[a-z0-9][a-z0-9_.:+-]{0,39})"?[ \t]*(?:;|$)""")
_RUNS_SCRIPT: Final = re.compile(r"html|xml|svg|xsl|(?:java|ecma|j|live|vb)script|flash")
_RUNS_SCRIPT_PREFIXES: Final = ("multipart/", "message/")

_ATTR_CHAR: Final = "!#$&+-.^_`|~"
"""RFC 5987 §3.2.1, beside letters and digits."""

# The invisible characters that turn the direction of text: "exe.gpj" could be shown as "jpg.exe".
_TURNS_TEXT: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NOT_IN_NAMES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})

# Python's own table only: the system's differs from machine to machine. The additions are newer
# than some Python that we support, or written there in an older form.
_TYPES: Final = mimetypes.MimeTypes()
for _extension, _type in {
    ".avif": "image/avif", ".heic": "image/heic", ".webp": "image/webp", ".m4a": "audio/mp4",
    ".oga": "audio/ogg", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".wav": "audio/wav",
    ".weba": "audio/webm", ".md": "text/markdown", ".js": "text/javascript", ".rtf": "application/rtf",
}.items():  # fmt: skip
    _TYPES.add_type(_type, _extension)
_COMPRESSED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


def content_disposition(filename: str | None, *, inline: bool) -> str:
    """Return the value of Content-Disposition (RFC 6266), ASCII only.

    The name loses control characters, path separators and what turns the direction of text, and is
    cut to 255 bytes of UTF-8 before its extension. Where ASCII does not say it all, `filename*` does.
    """
    disposition = "inline" if inline else "attachment"
    if not (name := _clean(filename or "")):
        return disposition
    fallback = "".join(c if " " <= c <= "~" else "_" for c in name).replace('"', '\\"')
    value = f'{disposition}; filename="{fallback}"'
    # Some browsers decode %41 in the plain form, and some do not know \" (RFC 6266 appendix D).
    if name.isascii() and not set(name) & set('%"'):
        return value
    return f"{value}; filename*=UTF-8''{quote(name, safe=_ATTR_CHAR)}"


def safe_content_type(declared: str | None, filename: str | None, inline_types: Collection[str]) -> tuple[str, bool]:
    """Return the Content-Type to serve and whether a browser may show the file.

    Of the parameters only a charset is kept. Whatever `inline_types` says, types that run script
    (HTML, SVG, XML, JavaScript …) are not shown.
    """
    essence, charset = _parse(declared) if declared and declared.strip() else (_guess(filename), "")
    inline = essence in {listed.lower() for listed in inline_types} and not _runs_script(essence)
    return essence + charset, inline


def _parse(declared: str) -> tuple[str, str]:
    text = declared.strip().lower()
    if len(text) > MAX_TYPE_LENGTH or not text.isprintable() or not (match := _MEDIA_TYPE.fullmatch(text)):
        return DEFAULT_TYPE, ""
    charset = _CHARSET.search(match["parameters"] or "")
    return match["essence"], f"; charset={charset['name']}" if charset else ""


def _guess(filename: str | None) -> str:
    # Only the extension: the whole name is read as a URL, and "data:text/html,x" has a type of its own.
    extension = PurePosixPath(_clean(filename or "")).suffix
    guessed, compression = _TYPES.guess_type(f"x{extension}", strict=False)
    if compression:
        return _COMPRESSED.get(compression, DEFAULT_TYPE)
    return guessed or DEFAULT_TYPE


def _runs_script(essence: str) -> bool:
    return essence.startswith(_RUNS_SCRIPT_PREFIXES) or bool(_RUNS_SCRIPT.search(essence))


def _clean(filename: str) -> str:
    kept = (c for c in filename if c not in "/\\" and c not in _TURNS_TEXT)
    name = "".join(c for c in kept if unicodedata.category(c) not in _NOT_IN_NAMES)
    # Windows drops dots and spaces at the end; "." and ".." disappear with them.
    return _shorten(name.strip().rstrip(". "))


def _shorten(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, extension = name.rpartition(".")
    ending = (dot + extension).encode()
    if not stem or len(ending) > MAX_EXTENSION_BYTES:
        stem, ending = name, b""
    # A character cut in half is left out whole.
    return stem.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore").rstrip() + ending.decode()
