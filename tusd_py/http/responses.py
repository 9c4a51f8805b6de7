"""Replies and errors to aiohttp responses: the one place where either becomes bytes."""

from __future__ import annotations

import http
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from tusd_py.errors import (
    BodyTimedOut,
    BodyTooSlow,
    ClientDisconnected,
    HookFailed,
    HookInvalid,
    HookRejection,
    MethodNotAllowed,
    RangeNotSatisfiable,
    ServerDraining,
    StagingDamaged,
    TakenOver,
    TusdError,
    UploadLocked,
)
from tusd_py.http.context import CLOSE, CONTEXT, DIALECT, RECORDED
from tusd_py.protocol import negotiation

if TYPE_CHECKING:
    from tusd_py.ports.hooks import HookResponse
    from tusd_py.protocol.dialect import Dialect, Reply
    from tusd_py.protocol.features import Features

REASONS: Final = {460: "Checksum Mismatch"}
DROPPED: Final = (ClientDisconnected, TakenOver, BodyTimedOut, BodyTooSlow)
"""Endings that close the connection without an answer: any status would be fatal to a client that is
in fact alive, while a closed connection makes it ask for the offset and go on."""
FRAMING: Final = frozenset(
    {"connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Headers that say where a response ends and what becomes of the connection."""
OF_THE_PROTOCOL: Final = ("location", "tus-", "upload-")
SENDING: Final = frozenset({"POST", "PATCH"})


def dialect_of(request: web.Request) -> Dialect:
    """Return the dialect of a request."""
    dialect = request.get(DIALECT)
    if dialect is None:
        dialect = request[DIALECT] = negotiation.choose(request.method, request.headers, request.app[CONTEXT].features)
    return dialect


def to_response(reply: Reply) -> web.Response:
    """Return the response that a reply describes."""
    if reply.body is None:
        return web.Response(status=reply.status, reason=REASONS.get(reply.status), headers=reply.headers)
    return web.Response(
        status=reply.status,
        reason=REASONS.get(reply.status),
        headers=reply.headers,
        text=reply.body,
        content_type=reply.media_type,
        charset="utf-8",
    )


def told_by_hook(response: web.Response, wanted: HookResponse | None, *, refused: bool = False) -> web.Response:
    """Return the response with the status, the body and the headers that a hook wants.

    Never with another framing; and unless the request is refused, the protocol's own headers stay.
    """
    if wanted is None:
        return response
    if wanted.body:
        response.text = wanted.body
        response.content_type = "text/plain"
    if wanted.status_code:
        response.set_status(wanted.status_code, REASONS.get(wanted.status_code))
    for name, value in wanted.headers.items():
        lower = name.lower()
        if lower not in FRAMING and (refused or not lower.startswith(OF_THE_PROTOCOL)):
            response.headers[name] = value
    return response


def error_response(request: web.Request, error: TusdError, method: str, features: Features) -> web.Response:
    """Return an error in the dialect of the request.

    A HEAD never fails for a passing reason: tus-js-client throws the whole upload away on anything
    but 2xx and 423.
    """
    dialect = dialect_of(request)
    if isinstance(error, DROPPED) or (dialect.supports_interim and _unlucky(error, method, request)):
        request[CLOSE] = True
    shown = UploadLocked(cause=error.code) if method == "HEAD" and transient(error) else error
    response = to_response(dialect.render_error(shown, method, features, request.get(RECORDED)))
    if isinstance(shown, HookRejection):
        told_by_hook(response, shown.response, refused=True)
    if isinstance(error, ServerDraining) or request.get(CLOSE):
        response.force_close()
    _tell_length(response, error)
    return response


def transient(error: TusdError) -> bool:
    """Return whether the reason for an error may be gone in a moment."""
    return error.retryable or (error.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR and not _lost(error))


def _unlucky(error: TusdError, method: str, request: web.Request) -> bool:
    # Clients that were told of their upload give up after a 500, and continue after a lost connection.
    if isinstance(error, HookFailed | HookInvalid) and method == "POST" and RECORDED not in request:
        return False  # nothing was created
    return method in SENDING and error.status in {500, 503} and transient(error)


def _lost(error: TusdError) -> bool:
    # Acknowledged bytes that are gone stay gone: the client has to start anew and must be told.
    return isinstance(error, StagingDamaged)


def json_response(payload: Any, *, status: int = 200) -> web.Response:
    """Return JSON."""
    return web.Response(
        body=orjson.dumps(payload, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC),
        status=status,
        content_type="application/json",
    )


def problem_response(error: TusdError) -> web.Response:
    """Return an error of the JSON API (RFC 9457)."""
    status, detail = error.status, error.detail
    if isinstance(error, HookRejection) and error.response is not None:
        status, detail = error.response.status_code or status, error.response.body or detail
    response = web.Response(
        body=orjson.dumps({"title": _title(status), "status": status, "code": error.code, "detail": detail}),
        status=status,
        content_type="application/problem+json",
    )
    if error.retryable:
        response.headers["Retry-After"] = "1"
    if status == http.HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.allow)
    _tell_length(response, error)
    return response


def _tell_length(response: web.Response, error: TusdError) -> None:
    if isinstance(error, RangeNotSatisfiable):
        response.headers["Content-Range"] = f"bytes */{error.total_length}"


def _title(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return REASONS.get(status, "Error")
