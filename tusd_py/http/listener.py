"""Accept connections, no more than there may be, and say so when that fails.

asyncio and uvloop could do it, but neither can be told how many connections are enough, and when the
process has no file descriptor left, uvloop closes newcomers without a word.
"""

from __future__ import annotations

import asyncio
import math
import socket
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from tusd_py.http.connection import ConnectionServer
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

BACKLOG: Final = 1024
ACCEPTS_AT_ONCE: Final = 64
"""Others get their turn after so many."""
PAUSE_SECONDS: Final = 1.0
FULL_POLL_SECONDS: Final = 0.1
FULL_LOG_SECONDS: Final = 60.0


class Listener:
    """Accepts on one socket. Whoever comes while there is no room waits in the kernel's queue."""

    def __init__(
        self, listening: socket.socket, server: ConnectionServer, metrics: Metrics, *, max_connections: int
    ) -> None:
        self._listening = listening
        self._server = server
        self._metrics = metrics
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._said_full_at = -math.inf

    def start(self) -> None:
        """Begin to accept."""
        self._listening.listen(BACKLOG)
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def stop(self) -> None:
        """Accept no more, and close the socket."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if self._server.connection_count + len(self._opening) >= self._max_connections:
                self._pause_for(FULL_POLL_SECONDS)
                return
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Most of all EMFILE: the connection stays in the queue, and the loop would spin.
                self._metrics.accept_failures.inc()
                log.error(  # noqa: TRY400 -- its traceback says nothing
                    "accept_failed",
                    reason=error.strerror,
                    open_connections=self._server.connection_count,
                    retry_in_seconds=PAUSE_SECONDS,
                )
                self._pause_for(PAUSE_SECONDS)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._server, connection)
        except OSError as error:
            # It was gone before it was looked at.
            connection.close()
            log.debug("connection_not_opened", reason=str(error))

    def _pause_for(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening.fileno())
        self._pause = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._server.connection_count < self._max_connections:
            self._pause = None
            self._loop.add_reader(self._listening.fileno(), self._accept)
            return
        if self._loop.time() - self._said_full_at > FULL_LOG_SECONDS:
            self._said_full_at = self._loop.time()
            log.warning("connections_full", max_connections=self._max_connections)
        self._pause = self._loop.call_later(FULL_POLL_SECONDS, self._resume)
