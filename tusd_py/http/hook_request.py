"""The request as hooks are told of it, in the form that tusd gives it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tusd_py.http.context import METHOD
from tusd_py.http.hosts import peer_address
from tusd_py.http.middleware import client_of
from tusd_py.logging import redact
from tusd_py.ports.hooks import HookRequest
from tusd_py.protocol import fields

if TYPE_CHECKING:
    from aiohttp import web

    from tusd_py.http.context import HttpContext

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
CREDENTIALS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
_SHOWN: Final = 6
"""Letters of a token: enough to tell two apart, nothing to use."""


def hook_request(context: HttpContext, request: web.Request) -> HookRequest:
    """Return what hooks are told of a request. No token of an upload is in it; the client's credentials are."""
    headers: dict[str, list[str]] = {}
    for name, value in request.headers.items():
        headers.setdefault(canonical_name(name), []).append(_without_tokens(context, name, _text(value)))
    return HookRequest(
        method=request.get(METHOD, request.method),
        uri=redact(_text(request.raw_path)),
        remote_addr=_remote_address(context, request),
        headers=headers,
    )


def canonical_name(name: str) -> str:
    """Return a field's name as Go writes it (CanonicalHeaderKey), on which handlers written for tusd rely."""
    if not _FIELD_NAME.fullmatch(name):
        return name
    return "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))


def _text(value: str) -> str:
    # What is no UTF-8 arrives as lone surrogates, which no JSON can have.
    return value if value.isascii() else value.encode(errors="surrogateescape").decode(errors="replace")


def _without_tokens(context: HttpContext, name: str, value: str) -> str:
    if name.lower() == fields.UPLOAD_CONCAT.lower():
        return redact(value)
    if name.lower() in CREDENTIALS:
        return value
    # Of proxies that pass on the address as they got it, and of pages that stand below it.
    marker = context.config.server.base_path
    return _token_in_url(marker).sub(_shortened, value) if marker in value else value


@lru_cache(16)
def _token_in_url(base_path: str) -> re.Pattern[str]:
    letter, rest = "[A-Za-z0-9_%-]", fields.MIN_TOKEN_LENGTH - _SHOWN
    return re.compile(rf"({re.escape(base_path)}/{letter}{{{_SHOWN}}}){letter}{{{rest},}}")


def _shortened(match: re.Match[str]) -> str:
    return f"{match[1]}…"


def _remote_address(context: HttpContext, request: web.Request) -> str:
    """Return the client's address and port; 0 where a proxy told the address, and empty on a unix socket."""
    client = client_of(context, request)
    if client is None:
        return ""
    transport = request.transport
    peer = None if transport is None else transport.get_extra_info("peername")
    port = peer[1] if isinstance(peer, tuple) and peer_address(peer[0]) == client else 0
    return f"[{client}]:{port}" if ":" in client else f"{client}:{port}"
