"""The upload routes: one short coroutine per verb, parse -> service -> reply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tusd_py.authorization import Action, Principal, authorize
from tusd_py.errors import BodyError, MethodNotAllowed, TooManyConnections, UploadNotFound
from tusd_py.http.context import BYTES_IN, CONTEXT, DESCRIPTION, KIND, METHOD, RECORDED, UPLOAD_ID, HttpContext
from tusd_py.http.download_routes import download
from tusd_py.http.hook_request import hook_request
from tusd_py.http.informational import InformationalResponses
from tusd_py.http.middleware import client_of, external_base_of, principal_of
from tusd_py.http.request_body import FEW_BODIES, RequestBody
from tusd_py.http.responses import dialect_of, to_response, told_by_hook
from tusd_py.http.trailers import keeps_trailers
from tusd_py.protocol.features import CREATION_METHODS
from tusd_py.protocol.negotiation import effective_method, read_append, render_options
from tusd_py.uploads.append import AppendFailed, append_body
from tusd_py.uploads.creation import begin_upload, create_upload, receive_first_body

if TYPE_CHECKING:
    from tusd_py.protocol.features import Features

_KINDS: Final = {"HEAD": "status", "PATCH": "append", "DELETE": "terminate", "GET": "download"}


async def creation_url(request: web.Request) -> web.StreamResponse:
    """Serve the URL at which uploads are created."""
    context = request.app[CONTEXT]
    method = _method(request)
    if method == "OPTIONS":
        return options(request)
    dialect_of(request).check_request(method, request.headers)
    if method != "POST" or request.method != "POST":
        raise MethodNotAllowed(CREATION_METHODS)
    request[KIND] = "create"
    return await create(context, request)


async def upload_url(request: web.Request) -> web.StreamResponse:
    """Serve the URL of one upload."""
    context = request.app[CONTEXT]
    method = _method(request)
    if method == "OPTIONS":
        return options(request)
    dialect_of(request).check_request(method, request.headers)
    if method not in context.features.upload_methods:
        raise MethodNotAllowed(context.features.upload_methods)
    request[KIND] = _KINDS[method]
    token = request.match_info["token"]
    principal = principal_of(request)
    match method:
        case "HEAD":
            return await status(context, request, principal, token)
        case "PATCH":
            return await append(context, request, principal, token)
        case "DELETE":
            return await terminate(context, request, principal, token)
        case _:
            return await retrieve(context, request, principal, token)


async def unknown_url(request: web.Request) -> web.StreamResponse:
    """Return preflights for any path below the creation URL, and 404 to the rest."""
    if request.method == "OPTIONS":
        return options(request)
    dialect_of(request).check_request(request.method, request.headers)
    raise UploadNotFound


def options(request: web.Request) -> web.Response:
    """Return what the server offers, and a browser's preflight with it. Needs no credential."""
    context = request.app[CONTEXT]
    response = to_response(render_options(_features(context, request)))
    headers = request.headers
    response.headers.update(
        context.cors.preflight(
            headers.get("Origin"),
            headers.get("Access-Control-Request-Method"),
            headers.get("Access-Control-Request-Headers"),
        )
    )
    return response


async def create(context: HttpContext, request: web.Request) -> web.Response:
    """POST: create an upload, with its first bytes where they came along."""
    principal = principal_of(request)
    authorize(principal, Action.CREATE, None, context.uploads.rules)
    dialect = dialect_of(request)
    locate = partial(location, context, request)
    command = dialect.parse_create(request.headers, _features(context, request))
    asking = hook_request(context, request) if context.tells_of_requests else None
    with _receiving(context, request) as body:
        interim = body.interim = _interim(context, request, locate)
        if interim is None or not command.has_body:
            created = await create_upload(context.uploads, principal, command, body, asking)
        else:
            created = await begin_upload(context.uploads, principal, command, body, asking)
            interim.announce(created)
            created = await receive_first_body(context.uploads, created, command, body, asking)
    request[UPLOAD_ID] = created.upload.id
    context.metrics.uploads_created.inc()
    if created.completed:
        context.metrics.uploads_completed.inc()
    response = to_response(dialect.render_created(created.upload, locate(created.token), context.features))
    return told_by_hook(response, created.response)


async def status(context: HttpContext, request: web.Request, principal: Principal, token: str) -> web.Response:
    """HEAD: the offset, the length, the metadata as sent."""
    upload = await context.uploads.status(principal, token)
    request[UPLOAD_ID] = upload.id
    return to_response(dialect_of(request).render_status(upload, context.features))


async def retrieve(context: HttpContext, request: web.Request, principal: Principal, token: str) -> web.StreamResponse:
    """GET: the bytes, or what the dialect says of an upload that is not complete."""
    upload = await context.uploads.get_by_token(principal, token, Action.DOWNLOAD)
    dialect = dialect_of(request)
    if (unfinished := dialect.render_unfinished(upload, context.features)) is not None:
        return to_response(unfinished)
    request[DESCRIPTION] = dialect.representation_headers(upload, context.features)
    return await download(request, upload)


async def append(context: HttpContext, request: web.Request, principal: Principal, token: str) -> web.Response:
    """PATCH: append the body at its offset."""
    dialect = dialect_of(request)
    command = read_append(dialect, request.headers, _features(context, request))
    asking = hook_request(context, request) if context.uploads.hooks is not None else None
    with _receiving(context, request) as body:
        body.interim = _interim(context, request, partial(location, context, request))
        appended = await append_body(context.uploads, principal, token, command, body, asking)
    request[UPLOAD_ID] = appended.upload.id
    if appended.completed:
        context.metrics.uploads_completed.inc()
    response = to_response(dialect.render_appended(appended.upload, context.features))
    return told_by_hook(response, appended.response)


async def terminate(context: HttpContext, request: web.Request, principal: Principal, token: str) -> web.Response:
    """DELETE: the upload is gone for everybody; its bytes follow."""
    dialect = dialect_of(request)
    asking = hook_request(context, request) if context.tells_of_requests else None
    told = await context.uploads.terminate(principal, token, dialect.protocol, asking)
    context.metrics.uploads_terminated.inc()
    return told_by_hook(to_response(dialect.render_terminated()), told)


def location(context: HttpContext, request: web.Request, token: str) -> str:
    """Return the new upload's URL: a path, which no proxy can break, unless told how we are reached."""
    path = f"{request.rel_url.raw_path.rstrip('/')}/{token}"
    if context.config.server.public_url is not None:
        return f"{context.config.server.public_url}{path}"
    base = external_base_of(context, request)
    return base.url(path) if base is not None else path


def _method(request: web.Request) -> str:
    method = effective_method(request.method, request.headers)
    request[METHOD] = method
    return method


def _features(context: HttpContext, request: web.Request) -> Features:
    """Return what is offered to this connection: in a host's application there are no trailers."""
    if "checksum-trailer" in context.features.extensions and not keeps_trailers(request):
        return context.features.without("checksum-trailer")
    return context.features


def _interim(context: HttpContext, request: web.Request, locate: Callable[[str], str]) -> InformationalResponses | None:
    """Return what tells a client of its upload before the final response; None where it may be told nothing.

    Off unless configured: a proxy may take a 104 for the final response, and nginx does.
    """
    wanted = context.config.rufh.interim_104 and dialect_of(request).supports_interim and request.version >= (1, 1)
    return InformationalResponses(context, request, locate) if wanted else None


@contextlib.contextmanager
def _receiving(context: HttpContext, request: web.Request) -> Iterator[RequestBody]:
    """Register the body, so that a drain can end it, and count what it brought."""
    body = RequestBody(
        request,
        idle_timeout_seconds=context.config.limits.idle_timeout,
        wide=len(context.bodies) < FEW_BODIES,
    )
    client = _count_client(context, request)
    context.bodies.add(body)
    context.metrics.bodies_open.inc()
    try:
        yield body
    except AppendFailed as failed:
        if failed.upload is not None:
            request[RECORDED] = failed.upload
        if isinstance(failed.error, BodyError):
            context.metrics.bodies_ended.labels(failed.error.code).inc()
            request[UPLOAD_ID] = None if failed.upload is None else failed.upload.id
        raise failed.error from failed.error.__cause__
    except BodyError as error:
        context.metrics.bodies_ended.labels(error.code).inc()
        raise
    finally:
        context.metrics.bodies_open.dec()
        context.bodies.discard(body)
        if client is not None:
            context.clients[client] -= 1
            if not context.clients[client]:
                del context.clients[client]
        if body.received:
            request[BYTES_IN] = body.received
            context.metrics.bytes_received.inc(body.received)


def _count_client(context: HttpContext, request: web.Request) -> str | None:
    limit = context.config.limits.max_connections_per_client
    if not limit:
        return None
    client = client_of(context, request) or "unix"
    if context.clients.get(client, 0) >= limit:
        raise TooManyConnections
    context.clients[client] = context.clients.get(client, 0) + 1
    return client
