"""Around every request: an id, who is asking, one log line, metrics, errors to replies, the headers all share."""

from __future__ import annotations

import http
import random
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from tusd_py.authorization import ANONYMOUS, Principal
from tusd_py.errors import (
    CLIENT_GONE,
    BodyTimedOut,
    BodyTooSlow,
    ClientDisconnected,
    HostNotAllowed,
    MethodNotAllowed,
    OriginNotAllowed,
    ProtocolError,
    ServerDraining,
    TusdError,
    UploadNotFound,
)
from tusd_py.http.connection import SERVER_NAME
from tusd_py.http.context import (
    BYTES_IN,
    CLOSE,
    CONTEXT,
    DESCRIPTION,
    KIND,
    METHOD,
    PROBLEM,
    PUBLIC,
    REQUEST_ID,
    UPLOAD_ID,
    HttpContext,
)
from tusd_py.http.hosts import ExternalBase, client_address, external_base, normal_authority, peer_address
from tusd_py.http.responses import dialect_of, error_response, problem_response
from tusd_py.logging import redact
from tusd_py.metrics import METHODS, OTHER, Metrics
from tusd_py.protocol import fields

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

log = structlog.get_logger(__name__)

AUTHORIZATION: Final = "Authorization"
LEFT: Final = (ClientDisconnected, BodyTimedOut, BodyTooSlow)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class InternalError(TusdError):
    """An exception that no code of ours expects."""

    sentence = "Something went wrong in the server; the log knows what."


@web.middleware
async def request_scope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Run the handler; whatever it raises leaves as a reply, and one line tells of it."""
    context = request.app[CONTEXT]
    started = time.perf_counter()
    request_id = _request_id(request)
    request[REQUEST_ID] = request_id
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    error: TusdError | None = None
    try:
        refuse_early(context, request)
        response = await handler(request)
    except TusdError as refused:
        error = refused
        response = _render(context, request, refused)
    except web.HTTPException as refused:
        error = _named(refused)
        response = _render(context, request, error)
    except ConnectionError as lost:
        # The client went away while it was being answered, which is no news.
        error = ClientDisconnected(cause=str(lost))
        response = _render(context, request, error)
    except Exception as problem:
        log.exception("request_failed", method=request.method, path=redact(request.path))
        error = InternalError(cause=repr(problem))
        response = _render(context, request, error)
    _finish(request, response)
    seconds = time.perf_counter() - started
    status = CLIENT_GONE if isinstance(error, LEFT) else response.status
    _count_request(context.metrics, request, status, seconds)
    if context.config.logging.requests:
        _log_request(context, request, status, error, seconds)
    return response


def refuse_early(context: HttpContext, request: web.Request) -> None:
    """Refuse what needs no handler: foreign hosts and origins, and everything new while the server drains."""
    if context.hosts is not None and any(map(context.hosts.refuses, _named_hosts(context, request))):
        raise HostNotAllowed
    if request.method == "OPTIONS":
        return
    origin = request.headers.get("Origin")
    if origin is not None and context.cors.refuses(origin) and not _same_origin(context, request, origin):
        raise OriginNotAllowed
    if context.draining:
        raise ServerDraining("The server is shutting down; try again.")


def principal_of(request: web.Request) -> Principal:
    """Return who is asking.

    Raises:
        Unauthenticated: a credential is needed and is not there, or is not accepted.
        ProtocolError: there are several, and a proxy may have looked at another one than we would.
    """
    try:
        credential = fields.single(request.headers, AUTHORIZATION)
    except ValueError as error:
        raise ProtocolError(f"{error}.") from error
    authenticator = request.app[CONTEXT].authenticator
    return ANONYMOUS if authenticator is None else authenticator.authenticate(credential)


def external_base_of(context: HttpContext, request: web.Request) -> ExternalBase | None:
    """Return how the client reached us, None if nobody trustworthy says so."""
    if context.trusted is None:
        return None
    host = request.headers.get("Host", "")
    return external_base(request.headers, request.remote, request.scheme, host, context.trusted)


def client_of(context: HttpContext, request: web.Request) -> str | None:
    """Return the address of the client, None for one on a unix socket."""
    if context.trusted is None:
        return peer_address(request.remote)
    return client_address(request.headers, request.remote, context.trusted)


def _named_hosts(context: HttpContext, request: web.Request) -> list[str]:
    """Return what the request calls the server: in Host, and in what a trusted proxy says of it."""
    named = request.headers.getall("Host", [])
    external = external_base_of(context, request)
    return [*named, external.host] if external is not None else [*named]


def _same_origin(context: HttpContext, request: web.Request, origin: str) -> bool:
    """Return whether a page of `origin` was served by us, whose requests name it as well.

    A proxy may have put another Host in the place of the one that the browser knows.
    """
    try:
        scheme, authority = urlsplit(origin)[:2]
    except ValueError:
        return False
    own = [*_named_hosts(context, request), urlsplit(context.config.server.public_url or "").netloc]
    return bool(authority) and authority.lower() in {normal_authority(host.lower(), scheme) for host in own}


def _render(context: HttpContext, request: web.Request, error: TusdError) -> web.Response:
    if request.get(PROBLEM):
        return problem_response(error)
    return error_response(request, error, request.get(METHOD, request.method), context.features)


def _named(refused: web.HTTPException) -> TusdError:
    if isinstance(refused, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(sorted(refused.allowed_methods))
    if isinstance(refused, web.HTTPNotFound):
        return UploadNotFound("There is nothing here.")
    raise refused


def _finish(request: web.Request, response: web.StreamResponse) -> None:
    if request.headers.get("Transfer-Encoding") is not None:
        # The C parser hands the trailers of a chunked request to the next request on the connection
        # as its first headers; a connection that is closed has no next request.
        response.force_close()
    if request.get(CLOSE) and request.transport is not None:
        request.transport.close()


def _request_id(request: web.Request) -> str:
    given = request.headers.get("X-Request-ID")
    return given if given and _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def _count_request(metrics: Metrics, request: web.Request, status: int, seconds: float) -> None:
    # Whatever a client calls its method, the labels stay the known ones.
    method = request.method if request.method in METHODS else OTHER
    metrics.requests[method, status].inc()
    timer = metrics.request_seconds.get((method, request.get(KIND, OTHER))) or metrics.request_seconds[method, OTHER]
    timer.observe(seconds)


def _log_request(
    context: HttpContext, request: web.Request, status: int, error: TusdError | None, seconds: float
) -> None:
    # A host's application may log without our processors.
    facts = {
        "method": request.method,
        "path": redact(request.path),
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "client": client_of(context, request),
    }
    if (upload_id := request.get(UPLOAD_ID)) is not None:
        facts["upload_id"] = str(upload_id)
    if (received := request.get(BYTES_IN)) is not None:
        facts["bytes_in"] = received
    if error is None:
        log.info("request", **facts)
        return
    facts |= {"code": error.code, "reason": redact(str(error))}
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request", **facts)
    else:
        log.info("request", **facts)


def _resource_policy(context: HttpContext, request: web.Request) -> str:
    """Return the sites whose pages may embed a response without asking, for example as an image.

    The links of a website and those in its mails belong to one site, on several hosts. Without
    authentication a page of a neighbouring host would see what was meant for one browser.
    """
    if context.config.auth.mode == "none":
        return "same-origin"
    return "cross-origin" if request.get(PUBLIC) else "same-site"


async def shared_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every response carries, whoever made it; runs before the headers are sent."""
    context = request.app[CONTEXT]
    headers = response.headers
    if not request.get(PROBLEM):
        headers.update(dialect_of(request).version_headers)
    if response.status < http.HTTPStatus.BAD_REQUEST and (description := request.get(DESCRIPTION)) is not None:
        headers.update(description)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Server"] = SERVER_NAME
    headers["Cross-Origin-Resource-Policy"] = _resource_policy(context, request)
    if fields.CACHE_CONTROL not in headers:
        headers[fields.CACHE_CONTROL] = "no-store"
    if (request_id := request.get(REQUEST_ID)) is not None:
        headers["X-Request-ID"] = request_id
    origin = request.headers.get("Origin")
    if origin is not None and request.method != "OPTIONS":
        headers.update(context.cors.response_headers(origin))
