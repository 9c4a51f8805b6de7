"""The aiohttp application: routes, middleware, and what a server of it must be told."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tusd_py.http import api, upload_page
from tusd_py.http.connection import Connection, ConnectionRunner
from tusd_py.http.context import CONTEXT, HttpContext
from tusd_py.http.middleware import request_scope, shared_headers
from tusd_py.http.trailers import TrailerConnection
from tusd_py.http.tus_routes import creation_url, unknown_url, upload_url

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

READ_BUFFER_BYTES: Final = 256 * 1024
MAX_HEADER_FIELD_BYTES: Final = 64 * 1024
"""A longer line is refused by the parser, outside our reach: room for Upload-Metadata and -Concat."""
LINGERING_SECONDS: Final = 2.0
"""Seconds for which a refused body is read and thrown away, so that the client gets to see the refusal."""


class ServerLog(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log, without a traceback for every client that does not speak HTTP.

    For a host's runner: connections of ours say this by themselves.
    """

    def log(self, level: int, msg: object, *args: object, exc_info: Any = None, **kwargs: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            # Not its message: it quotes the request, in which a token may stand.
            log.info("malformed_request", reason=type(exc_info).__name__)
        else:
            super().log(level, msg, *args, exc_info=exc_info, **kwargs)


def build_application(context: HttpContext) -> web.Application:
    """Build the application; it mounts under any path of another one as well."""
    app = web.Application(middlewares=[request_scope])
    app[CONTEXT] = context
    app.on_response_prepare.append(shared_headers)
    app.on_shutdown.append(end_waiting)
    base = context.config.server.base_path
    # No redirect between the two spellings: a 301 turns a POST into a GET.
    for path, handler in (
        (base, creation_url),
        (f"{base}/", creation_url),
        (f"{base}/{{token}}", upload_url),
        (f"{base}/{{token}}/", upload_url),
        (f"{base}/{{tail:.*}}", unknown_url),
    ):
        app.router.add_route("*", path, handler, expect_handler=defer_continue)
    for route in (
        *api.routes(downloads=context.config.downloads.enabled),
        *upload_page.routes(context),
    ):
        kwargs = route.kwargs | {"expect_handler": defer_continue}
        web.RouteDef(route.method, route.path, route.handler, kwargs).register(app.router)
    app.router.add_route("*", "/{tail:.*}", not_found, expect_handler=defer_continue)
    return app


async def end_waiting(app: web.Application) -> None:
    """Return those who wait for an upload: a host that shuts down would wait for them."""
    app[CONTEXT].changes.close()
    app[CONTEXT].live.close()


async def not_found(request: web.Request) -> web.StreamResponse:
    """Return 404, or 405 where another method would have been served.

    A route of ours and not the router's own answer, for the sake of its expect handler.
    """
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource is not request.match_info.route.resource:
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound


async def defer_continue(_: web.Request) -> None:
    """Send no `100 Continue` yet: the body's `accept` does, once the request is known to be good.

    aiohttp's own handler would also answer before our middleware, and fail over what is no text.
    """


def make_runner(app: web.Application, config: Config, *, lingering_seconds: float) -> ConnectionRunner:
    """Build the runner that serves the application."""
    kind = TrailerConnection if config.tus.checksum_trailer else Connection
    options = runner_options(config) | {"lingering_time": lingering_seconds}
    return ConnectionRunner(app, config, app[CONTEXT].metrics, kind=kind, **options)


def runner_options(config: Config) -> dict[str, Any]:
    """Return what `web.AppRunner` must be told; each has a test that fails without it.

    A decompressed body would make offsets lie; an hour of keep-alive would hold sockets for nothing;
    cancelling a handler on disconnect would throw away what had arrived.
    """
    return {
        "auto_decompress": False,
        "read_bufsize": READ_BUFFER_BYTES,
        "max_field_size": MAX_HEADER_FIELD_BYTES,
        "max_line_size": MAX_HEADER_FIELD_BYTES,
        "keepalive_timeout": config.server.keepalive_timeout,
        "lingering_time": LINGERING_SECONDS,
        "handler_cancellation": False,
        "handle_signals": False,
        "access_log": None,
        "logger": ServerLog(logging.getLogger("aiohttp.server"), {}),
        "shutdown_timeout": 2.0,
    }
