"""Our real runner on a real socket, in this process; requests go out as raw bytes or by aiohttp."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tests.support.raw_http import RawConnection, RawResponse, exchange
from tusd_py.app import Core, Work, make_core, make_web, make_work, running
from tusd_py.config import Config
from tusd_py.http.application import build_application
from tusd_py.http.keys import Web
from tusd_py.http.server import HttpServer
from tusd_py.metrics import Metrics


@dataclass(slots=True)
class Served:
    """A running server and what is inside of it."""

    config: Config
    core: Core
    web: Web
    server: HttpServer
    work: Work
    host: str
    port: int
    headers: dict[str, str] = field(default_factory=lambda: {"Tus-Resumable": "1.0.0"})

    @property
    def base(self) -> str:
        return self.config.server.base_path

    async def request(self, method: str, path: str, headers: dict | list | None = None, body: bytes = b"") -> RawResponse:
        """Send one request on a connection of its own, with Tus-Resumable unless it is given (None: left out)."""
        return await exchange(self.host, self.port, method, path, self._merged(headers), body)

    def _merged(self, headers: dict | list | None) -> list[tuple[str, str]]:
        if isinstance(headers, list):
            return headers
        merged = self.headers | (headers or {})
        return [(name, value) for name, value in merged.items() if value is not None]

    async def create(self, length: int | None = None, headers: dict | None = None, body: bytes = b"") -> str:
        """Create an upload and answer its path."""
        extra = {"Upload-Length": str(length)} if length is not None else {}
        response = await self.request("POST", f"{self.base}/", extra | (headers or {}), body)
        assert response.status == 201, response
        return response.headers["location"]

    async def patch(self, path: str, offset: int, body: bytes, headers: dict | None = None) -> RawResponse:
        own = {"Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"}
        return await self.request("PATCH", path, own | (headers or {}), body)

    async def head(self, path: str, headers: dict | None = None) -> RawResponse:
        return await self.request("HEAD", path, headers)

    async def connect(self) -> RawConnection:
        return await RawConnection.open(self.host, self.port)


@contextlib.asynccontextmanager
async def serving(config: Config) -> AsyncIterator[Served]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.setblocking(False)
    core = make_core(config, Metrics())
    web = make_web(core)
    work = make_work(core)
    async with running(core):
        server = HttpServer(build_application(web), config)
        await server.start([listening])
        host, port = listening.getsockname()
        try:
            yield Served(config, core, web, server, work, host, port)
        finally:
            await server.drain()


@pytest.fixture
async def serve(make_config) -> AsyncIterator[Callable[..., Awaitable[Served]]]:
    """Start servers with a configuration; they are stopped after the test. No worker runs by itself."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**sections) -> Served:
            return await stack.enter_async_context(serving(make_config(**sections)))

        yield start


@pytest.fixture
async def served(serve) -> Served:
    """A server with the defaults."""
    return await serve()
