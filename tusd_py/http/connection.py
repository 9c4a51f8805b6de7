"""One connection, before and after what aiohttp makes of it: time for a request's head, plain refusals.

This leans on aiohttp's inside: how a runner builds its server, a server its connections, and where a
connection keeps the requests that it has parsed. Tests on real sockets notice if that changes.
"""

from __future__ import annotations

import asyncio
import http
from typing import TYPE_CHECKING, Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tusd_py.errors import ProtocolError, TusdError

if TYPE_CHECKING:
    from tusd_py.config import Config
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

SERVER_NAME: Final = "tusd_py"
_TOO_SLOW: Final = (
    f"HTTP/1.1 408 Request Timeout\r\nServer: {SERVER_NAME}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
).encode()


class Connection(web.RequestHandler):
    """A connection whose requests must begin in time.

    The time for a head runs from the connection's first moment, and for each further request from its
    first byte; between two requests the keep-alive's time holds. How slowly the bytes drip does not matter.
    """

    __slots__ = ("_head_begun", "_head_timer", "_header_timeout", "_metrics")

    def __init__(self, manager: ConnectionServer, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self._header_timeout = manager.header_timeout
        self._metrics = manager.metrics
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_begun = False
        super().__init__(manager, loop=loop, **options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        parsed = self._request_count
        super().data_received(data)
        if self._request_count != parsed:
            self._stop_timer()
        elif data and self._awaits_request():
            self._head_begun = True
            if self._head_timer is None:
                self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _awaits_request(self) -> bool:
        # Bytes of the first request may be here before the task that waits for it.
        return not self._request_count or (self._waiter is not None and not self._waiter.done())

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self._header_timeout, self._give_up)

    def _stop_timer(self) -> None:
        self._head_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.transport is not None and self._head_begun:
            self._metrics.header_timeouts.inc()
            peer = self.peername
            log.info("header_timed_out", client=peer[0] if isinstance(peer, tuple) else None)
            self.transport.write(_TOO_SLOW)
        # Browsers open connections ahead of need: one on which nothing came is closed without a word.
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what never reached the application.

        aiohttp's own would name it, and quote the line that it could not read, in which a token may stand.
        """
        del message
        if isinstance(exc, HttpProcessingError):
            log.info("malformed_request", reason=type(exc).__name__, client=request.remote)
        else:
            log.error("request_failed_outside", status=status, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun already")
        bad = status < http.HTTPStatus.INTERNAL_SERVER_ERROR
        error = ProtocolError("The request is not valid HTTP.") if bad else TusdError()
        response = web.Response(
            status=status,
            text=f"{error.code}: {error.detail}\n",
            headers={"Server": SERVER_NAME, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
        )
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """Builds such connections."""

    def __init__(self, plain: web.Server, kind: type[Connection], header_timeout: float, metrics: Metrics) -> None:
        super().__init__(
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,  # noqa: SLF001
        )
        self._kind = kind
        self.header_timeout = header_timeout
        self.metrics = metrics

    def __call__(self) -> web.RequestHandler:
        return self._kind(self, loop=self._loop, **self._kwargs)

    @property
    def connection_count(self) -> int:
        """The number of open connections."""
        return len(self._connections)


class ConnectionRunner(web.AppRunner):
    """Runs an application on such a server."""

    __slots__ = ("_header_timeout", "_kind", "_metrics")

    def __init__(
        self,
        app: web.Application,
        config: Config,
        metrics: Metrics,
        *,
        kind: type[Connection] = Connection,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self._kind = kind
        self._header_timeout = config.server.header_timeout
        self._metrics = metrics

    async def _make_server(self) -> web.Server:
        return ConnectionServer(await super()._make_server(), self._kind, self._header_timeout, self._metrics)

    @property
    def connection_server(self) -> ConnectionServer:
        """The server that makes the connections; there is one once the runner is set up."""
        assert isinstance(self.server, ConnectionServer)
        return self.server
