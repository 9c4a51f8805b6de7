"""Our real runner on a real socket, in this process; requests go out as raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from aiohttp.web_protocol import RequestHandler

from tests.http.support import eventually
from tests.support.http_client import Connection, TusClient, chunk, patch_head
from tusd_py.app import Core, Work, make_core, make_http_context, make_work, run_work, running
from tusd_py.config import Config
from tusd_py.http.application import build_application
from tusd_py.http.context import HttpContext
from tusd_py.http.request_body import RequestBody
from tusd_py.http.server import HttpServer
from tusd_py.metrics import Metrics
from tusd_py.protocol.upload import Upload
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.uploads.changes import ChangeNotifier
from tusd_py.uploads.live_events import ListenerLimits
from tusd_py.uploads.service import Timing, hash_token


@dataclass(slots=True, kw_only=True)
class Served(TusClient):
    """A running server, its client, and what is inside of it."""

    config: Config
    core: Core
    web: HttpContext
    server: HttpServer
    work: Work
    stopped: bool = False
    worker: asyncio.Task[None] | None = None
    worker_stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, path: str, offset: int, body: bytes, *headers: tuple[str, str]) -> Connection:
        """Begin a PATCH on a connection of its own and wait until `body` has arrived in the server."""
        bodies = self.bodies
        connection = await self.connect()
        await connection.send_head("PATCH", path, patch_head(offset, *headers))
        await connection.send(body if ("Transfer-Encoding", "chunked") not in headers else chunk(body))
        await eventually(lambda: any(new.received >= len(body) for new in self.bodies - bodies))
        return connection

    @property
    def bodies(self) -> set[RequestBody]:
        """The bodies that are being received."""
        return {body for body in self.web.bodies if isinstance(body, RequestBody)}

    async def until_received(self, count: int) -> None:
        """Wait until so much of a body has arrived."""
        await eventually(lambda: any(body.received >= count for body in self.bodies))

    @property
    def connections_open(self) -> list[RequestHandler]:
        """The server's ends of its connections."""
        assert self.server._runner.server is not None
        return self.server._runner.server.connections

    def cancel_handlers(self) -> None:
        """Cancel the handlers of all requests, as aiohttp does when it gives up a connection."""
        for connection in self.connections_open:
            assert connection._task_handler is not None
            connection._task_handler.cancel()

    def stored_file(self, upload: Upload) -> Path:
        """Return where the filesystem store keeps an upload."""
        assert isinstance(self.core.stores.current, FilesystemStore)
        return self.core.stores.current.local_path(upload.object_key)

    async def expires_at(self, path: str) -> datetime:
        """Return when the upload expires, which it must."""
        expires_at = (await self.upload(path)).expires_at
        assert expires_at is not None
        return expires_at

    async def upload(self, path: str) -> Upload:
        """Return the row behind a tus URL."""
        found = await self.core.uploads.find_by_token(hash_token(path.rstrip("/").rpartition("/")[2]))
        assert found is not None
        return found

    async def staged(self, path: str) -> bytes:
        """Return what is in the staging file."""
        return self.core.staging.path((await self.upload(path)).id).read_bytes()

    async def count(self, table: str, upload: Upload, kind: str) -> int:
        """Count the jobs or events of an upload."""
        (row,) = await self.core.database.fetch(
            f"SELECT count(*) AS n FROM {table} WHERE upload_id = $1 AND kind = $2", upload.id, kind
        )
        return int(row["n"])

    async def stop(self, *, abort: bool = True) -> None:
        """Stop the server, once; its clients are gone before that, unless they are told to stay."""
        for connection in self.connections if abort else ():
            connection.abort()
        if not self.stopped:
            self.stopped = True
            self.worker_stop.set()
            if self.worker is not None:
                await self.worker
            await self.server.drain()

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have the worker run, from here to the end of the test."""
        if self.worker is None:
            self.worker = asyncio.create_task(run_work(self.work, self.worker_stop))
        yield

    async def until_state(self, path: str, state: str) -> Upload:
        """Wait until the upload is in a state."""
        deadline = time.monotonic() + 10
        while (upload := await self.upload(path)).state != state:
            assert time.monotonic() < deadline, upload
            await asyncio.sleep(0.01)
        return upload


class Serve(Protocol):
    """Starts a server with these sections of the configuration; `context` are fields of the HttpContext."""

    async def __call__(
        self,
        *,
        context: Mapping[str, Any] | None = None,
        changes: ChangeNotifier | None = None,
        timing: Timing | None = None,
        listeners: ListenerLimits | None = None,
        **sections: object,
    ) -> Served: ...


@contextlib.asynccontextmanager
async def serving(
    config: Config,
    *,
    changes: ChangeNotifier | None = None,
    timing: Timing | None = None,
    listeners: ListenerLimits | None = None,
    **context: Any,
) -> AsyncIterator[Served]:
    """Serve with a configuration; `context` are fields of the HttpContext that are to be others."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.setblocking(False)
    core = make_core(config, Metrics())
    web = make_http_context(core, changes=changes, timing=timing, listeners=listeners)
    web = dataclasses.replace(web, **context)
    work = make_work(core)
    async with running(core):
        # A refused body is not read for as long as in earnest.
        server = HttpServer(build_application(web), config, lingering_seconds=0.2)
        await server.start([listening])
        host, port = listening.getsockname()
        served = Served(
            host, port, config.server.base_path, config=config, core=core, web=web, server=server, work=work
        )
        try:
            yield served
        finally:
            await served.stop()
