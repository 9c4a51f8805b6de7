"""Shared by all resources of the API: methods, who is asking, ids and parameters."""

from __future__ import annotations

import base64
import struct
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final
from uuid import UUID

from aiohttp import web

from tusd_py.errors import BadParameter, InvalidContentType, MethodNotAllowed, UploadNotFound
from tusd_py.http.context import CONTEXT, KIND, PROBLEM
from tusd_py.ports import ListPosition
from tusd_py.protocol.fields import CONTENT_TYPE, media_type
from tusd_py.protocol.upload import Upload, UploadId

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION: Final = struct.Struct(">q16s")


def resource(
    path: str,
    *,
    kind: str = "api",
    query: Mapping[str, Collection[str]] | None = MappingProxyType({}),
    **handlers: Handler,
) -> web.RouteDef:
    """Return the route of a resource with a handler per method; errors are answered as problem+json.

    `kind` is what metrics call its requests. `query` has the parameters that each method knows, where others
    are refused: a misspelt filter would return everything. None: whatever is there is ignored.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        request[PROBLEM] = True
        request[KIND] = kind
        if request.method == "OPTIONS":
            return _preflight(request)
        handler = handlers.get(request.method)
        if handler is None:
            raise MethodNotAllowed(("OPTIONS", *handlers))
        if request.method == "POST" and media_type(request.headers.get(CONTENT_TYPE)) != "application/json":
            # A page of any origin may send other types without asking first (a CORS-simple request).
            raise InvalidContentType("Content-Type must be application/json, even where there is no body.")
        if query is not None:
            _refuse_unknown(request, query.get(request.method, ()))
        return await handler(request)

    return web.route("*", path, answer)


def _refuse_unknown(request: web.Request, known: Collection[str]) -> None:
    unknown = sorted(request.query.keys() - set(known))
    if unknown:
        names = f"known are {', '.join(known)}" if known else "none is known here"
        raise BadParameter(f"The parameter {unknown[0][:64]} is not known; {names}.")


def _preflight(request: web.Request) -> web.Response:
    headers = request.headers
    allowed = request.app[CONTEXT].cors.preflight(
        headers.get("Origin"),
        headers.get("Access-Control-Request-Method"),
        headers.get("Access-Control-Request-Headers"),
    )
    return web.Response(status=200, headers=allowed)


def upload_id_of(request: web.Request) -> UploadId:
    """Return the id in the path. Raises `UploadNotFound`."""
    text = request.match_info["id"]
    try:
        value = UUID(text)
    except ValueError:
        raise UploadNotFound from None
    if str(value) != text:
        # One spelling only: whatever compares ids as text elsewhere must not be fooled.
        raise UploadNotFound
    return UploadId(value)


def whole_number(request: web.Request, name: str, *, default: int, least: int, most: int) -> int:
    """Return a number in the query. Raises `BadParameter`."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise BadParameter(f"{name} is a number from {least} to {most}.")
    return int(text)


def flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    """Return a switch in the query. Raises `BadParameter`."""
    text = request.query.get(name, "1" if default else "0")
    if text not in {"0", "1"}:
        raise BadParameter(f"{name} is 0 or 1.")
    return text == "1"


def prefix_of(request: web.Request) -> str:
    """Return the path under which a host has mounted the application, empty if it is its own host."""
    return request.rel_url.raw_path.partition("/api/")[0]


def list_position(request: web.Request, name: str) -> ListPosition | None:
    """Return the position that `list_position_text` has written, None without one. Raises `BadParameter`."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        microseconds, value = _POSITION.unpack(base64.b64decode(text, altchars=b"-_", validate=True))
        return ListPosition(_EPOCH + timedelta(microseconds=microseconds), UploadId(UUID(bytes=value)))
    except (ValueError, struct.error, OverflowError):
        raise BadParameter(f'{name} is the "next" of an earlier page.') from None


def list_position_text(upload: Upload) -> str:
    """Return the place of an upload in lists, opaque to clients."""
    microseconds = (upload.created_at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_POSITION.pack(microseconds, upload.id.bytes)).decode()
