"""One HTTP process: listen, serve, drain."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from tusd_py.errors import ServerDraining
from tusd_py.http.application import LINGERING_SECONDS, make_runner
from tusd_py.http.context import CONTEXT
from tusd_py.http.listener import Listener

if TYPE_CHECKING:
    from tusd_py.config import Config

log = structlog.get_logger(__name__)

DRAIN_POLL_SECONDS: Final = 0.02


class HttpServer:
    """Serves an application on sockets that somebody else bound."""

    def __init__(self, app: web.Application, config: Config, *, lingering_seconds: float = LINGERING_SECONDS) -> None:
        self._app = app
        self._config = config
        self._runner = make_runner(app, config, lingering_seconds=lingering_seconds)
        self._listeners: list[Listener] = []

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept connections."""
        await self._runner.setup()
        for listening in sockets:
            listener = Listener(
                listening,
                self._runner.connection_server,
                self._app[CONTEXT].metrics,
                max_connections=self._config.limits.max_connections,
            )
            listener.start()
            self._listeners.append(listener)

    async def drain(self) -> None:
        """Stop accepting, end the bodies, keep their bytes, answer, then close.

        aiohttp's own clean-up starves running bodies: it marks connections as closing first, and
        then waits for bytes that it no longer reads. So the bodies are ended before it runs.
        """
        context = self._app[CONTEXT]
        context.draining = True
        for listener in self._listeners:
            listener.stop()
        deadline = time.monotonic() + self._config.server.shutdown_timeout
        log.info("draining", bodies=len(context.bodies))
        for body in list(context.bodies):
            body.interrupt(ServerDraining())
        context.changes.close()
        context.live.close()
        while context.bodies and time.monotonic() < deadline:  # noqa: ASYNC110 -- no signal tells of the last one
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if context.bodies:
            log.warning("drain_timed_out", bodies=len(context.bodies))
        await self._runner.cleanup()
