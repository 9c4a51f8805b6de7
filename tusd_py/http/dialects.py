"""The dialect of a request, chosen at the door, and the interim response that one of them knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tusd_py.http.keys import DIALECT, WEB, Web
from tusd_py.protocol import dialects

if TYPE_CHECKING:
    from aiohttp import web

    from tusd_py.protocol.dialect import Dialect, Reply
    from tusd_py.services.creation import Announce, Created

INTERIM_REASON: Final = "Upload Resumption Supported"


def dialect_of(request: web.Request) -> Dialect:
    """Answer the dialect of a request."""
    dialect = request.get(DIALECT)
    if dialect is None:
        dialect = request[DIALECT] = dialects.choose(request.headers, request.app[WEB].features)
    return dialect


def announcer(context: Web, request: web.Request, locate: Callable[[str], str]) -> Announce | None:
    """Answer what tells the client of its upload before its bytes are read; None if nothing may.

    Off unless configured: a proxy may take the 104 for the final response, and nginx does.
    """
    dialect = dialect_of(request)
    if not context.config.rufh.interim_104 or not dialect.announces or request.version < (1, 1):
        return None

    def announce(created: Created) -> None:
        transport = request.transport
        if transport is not None and not transport.is_closing():
            reply = dialect.render_interim(created.upload, locate(created.token), context.features)
            transport.write(_interim_bytes(reply))

    return announce


def _interim_bytes(reply: Reply) -> bytes:
    # aiohttp has no way to send an interim response but for its own 100.
    fields = [f"{name}: {value}" for name, value in reply.headers.items()]
    lines = [f"HTTP/1.1 {reply.status} {INTERIM_REASON}", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
