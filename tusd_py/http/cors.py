"""Decide which headers let a browser page from another origin use the server. Pure.

The lists come from two tables here and the configuration; nobody else names a CORS header.
"""

from __future__ import annotations

import re
from typing import Final

from tusd_py.config import CorsConfig

METHODS: Final = ("POST", "GET", "HEAD", "PATCH", "DELETE", "OPTIONS")

REQUEST_HEADERS: Final = (
    "Authorization", "Content-Type", "Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata",
    "Upload-Defer-Length", "Upload-Concat", "Upload-Checksum", "X-HTTP-Method-Override", "X-Requested-With",
    "X-Request-ID", "Last-Event-ID", "Upload-Complete", "Upload-Incomplete", "Upload-Draft-Interop-Version",
    "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Digest", "Repr-Digest", "Want-Repr-Digest",
)  # fmt: skip
"""What a page may send."""

RESPONSE_HEADERS: Final = (
    "Location", "Upload-Id", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Defer-Length",
    "Upload-Concat", "Upload-Expires", "Upload-Complete", "Upload-Incomplete", "Upload-Limit",
    "Upload-Draft-Interop-Version", "Tus-Version", "Tus-Resumable", "Tus-Extension", "Tus-Max-Size",
    "Tus-Checksum-Algorithm", "Repr-Digest", "Retry-After", "X-Request-ID", "Content-Disposition",
    "Content-Range", "Accept-Ranges", "ETag",
)  # fmt: skip
"""What a page may read: the protocol's headers, and those a download is continued by."""

MAX_ORIGIN_LENGTH: Final = 512
MAX_REFLECTED_LENGTH: Final = 4096
"""A longer list of wanted headers is answered with our own instead of being repeated."""

_VISIBLE: Final = re.compile(r"[!-~]+")
_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_WILDCARD: Final = "[A-Za-z0-9-]+(?:[.][A-Za-z0-9-]+)*"
"""What a * in an origin stands for: labels of a host or a port, never the end of a host."""


class CorsPolicy:
    """The decision for every origin, prepared once from the configuration."""

    def __init__(self, config: CorsConfig) -> None:
        self._enabled = config.enabled
        self._everybody = "*" in config.allow_origins
        self._exact = frozenset(origin.lower() for origin in config.allow_origins if "*" not in origin)
        self._patterns = tuple(_pattern(origin) for origin in config.allow_origins if "*" in origin)
        credentials = {"Access-Control-Allow-Credentials": "true"} if config.allow_credentials else {}
        # The origin is repeated even where all are welcome, so every answer differs by it.
        common = {"Vary": "Origin", **credentials}
        self._actual = common | {
            "Access-Control-Expose-Headers": _list(RESPONSE_HEADERS, config.expose_headers),
        }
        self._preflight = common | {
            "Access-Control-Allow-Methods": ", ".join(METHODS),
            "Access-Control-Allow-Headers": _list(REQUEST_HEADERS, config.allow_headers),
            "Access-Control-Max-Age": str(int(config.max_age)),
        }

    def refuses(self, origin: str | None) -> bool:
        """Return whether a request from this origin must be answered with 403. Preflights never are."""
        return self._enabled and origin is not None and not self._allows(origin)

    def response_headers(self, origin: str | None) -> dict[str, str]:
        """Return what every response but a preflight's carries, errors included."""
        return self._for_origin(origin, self._actual)

    def preflight(
        self, origin: str | None, requested_method: str | None, requested_headers: str | None
    ) -> dict[str, str]:
        """Return the headers for OPTIONS; without a requested method it is no preflight.

        The requested headers are repeated, so that an application's own need no configuration.
        """
        if requested_method is None:
            return self.response_headers(origin)
        headers = self._for_origin(origin, self._preflight)
        if "Access-Control-Allow-Headers" in headers and _may_be_repeated(requested_headers):
            headers["Access-Control-Allow-Headers"] = requested_headers or ""
        return headers

    def _for_origin(self, origin: str | None, headers: dict[str, str]) -> dict[str, str]:
        if not self._enabled or origin is None:
            return {}
        if not self._allows(origin):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, **headers}

    def _allows(self, origin: str) -> bool:
        if len(origin) > MAX_ORIGIN_LENGTH or not _VISIBLE.fullmatch(origin):
            return False
        if self._everybody or (lowered := origin.lower()) in self._exact:
            return True
        return any(pattern.fullmatch(lowered) for pattern in self._patterns)


def _pattern(origin: str) -> re.Pattern[str]:
    return re.compile(_WILDCARD.join(re.escape(part) for part in origin.lower().split("*")))


def _list(names: tuple[str, ...], configured: list[str]) -> str:
    known = {name.lower() for name in names}
    return ", ".join([*names, *(name for name in configured if name.lower() not in known)])


def _may_be_repeated(names: str | None) -> bool:
    return names is not None and len(names) <= MAX_REFLECTED_LENGTH and bool(_NAMES.fullmatch(names))
