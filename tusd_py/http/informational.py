"""Informational responses: where an upload is and how much of it is durable, told while it is being sent.

aiohttp knows no interim response but its own 100, so these are written to the connection by hand.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from tusd_py.http.responses import dialect_of

if TYPE_CHECKING:
    from aiohttp import web

    from tusd_py.http.context import HttpContext
    from tusd_py.protocol.dialect import Reply
    from tusd_py.protocol.upload import Upload
    from tusd_py.uploads.creation import Created

REASON: Final = "Upload Resumption Supported"


class InformationalResponses:
    """The interim responses of one request."""

    def __init__(self, context: HttpContext, request: web.Request, locate: Callable[[str], str]) -> None:
        self._context = context
        self._request = request
        self._dialect = dialect_of(request)
        self._locate = locate
        self._location: str | None = None
        """Told with every response of a creation and with none of an append."""
        self._told_at = -math.inf

    def announce(self, created: Created) -> None:
        """Send the URL of a new upload."""
        self._location = self._locate(created.token)
        self._send(created.upload)

    def progress(self, upload: Upload) -> None:
        """Send how much is durable, now and then."""
        now = time.monotonic()
        if now - self._told_at >= self._context.progress_seconds:
            self._told_at = now
            self._send(upload)

    def _send(self, upload: Upload) -> None:
        transport = self._request.transport
        reply = self._dialect.render_interim(upload, self._location, self._context.features)
        if reply is not None and transport is not None and not transport.is_closing():
            transport.write(_to_bytes(reply))


def _to_bytes(reply: Reply) -> bytes:
    fields = [f"{name}: {value}" for name, value in reply.headers.items()]
    return "\r\n".join([f"HTTP/1.1 {reply.status} {REASON}", *fields, "", ""]).encode("latin-1")
