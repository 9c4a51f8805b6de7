"""An S3 that takes nothing more of a body: the HTTP client has no timeout for that, so we have."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator

import pytest

from tests.stores.test_object_store import spec_of
from tests.support.destinations import PART, MemoryTransferState, S3Account, S3Destination, identity_of
from tests.support.fixtures import Content, OpenStore, Stage
from tests.support.ports import LOOPBACK
from tusd_py.errors import TransientStoreError
from tusd_py.stores.rate_limit import Bandwidth, RateLimiter

PATIENCE = {"max_attempts": 1, "connect_timeout": "500ms", "read_timeout": "500ms"}
DEADLINE = 20
"""Seconds; without the timeout under test it would be for ever."""


class Reluctant:
    """A server that says nothing to a HEAD but 404, and to a PUT `reply`, and reads no body."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply
        self.puts = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"PUT"):
                self.puts += 1
                writer.write(self.reply)
                assert isinstance(writer.transport, asyncio.Transport)
                writer.transport.pause_reading()
                return
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@pytest.fixture(params=[b"HTTP/1.1 100 Continue\r\n\r\n", b""], ids=["after-100", "before-100"])
async def reluctant(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Reluctant]]:
    server = Reluctant(request.param)
    listener = socket.create_server((LOOPBACK, 0))
    # Small, so that the body does not vanish in the kernel's buffers as if it had been read.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    running = await asyncio.start_server(server.serve, sock=listener, limit=4096)
    yield f"http://{LOOPBACK}:{listener.getsockname()[1]}", server
    server.close()
    running.close()


@pytest.fixture
def moto(moto_server: S3Account) -> S3Destination:
    return S3Destination(moto_server, moto_server.shared_client, "stalls")


async def test_a_server_that_stops_reading_ends_the_try(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content, reluctant: tuple[str, Reluctant]
) -> None:
    url, server = reluctant
    data = content(PART)
    store = await open_store(moto, endpoint_url=url, multipart_threshold=3 * PART, client=PATIENCE)

    async with asyncio.timeout(DEADLINE):
        with pytest.raises(TransientStoreError):
            await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert server.puts == 1


class SlowLimiter(RateLimiter):
    """A line on which every block takes its time, though the server takes all that comes."""

    block_bytes = PART // 4

    async def acquire(self, count: int) -> None:
        await asyncio.sleep(1.5)


class SlowLine(Bandwidth):
    def limiter(self) -> RateLimiter:
        return SlowLimiter(self)


async def test_our_own_slowness_is_not_the_servers(
    moto: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(PART)
    store = await open_store(moto, client=PATIENCE | {"read_timeout": "1s"}, bandwidth=SlowLine(2**20))
    started = time.monotonic()

    await store.put(spec_of(data, "slow"), stage(data), MemoryTransferState())

    assert time.monotonic() - started > 4 * 1.5
    assert moto.read("slow") == data
    await store.remove(identity_of(data, "slow"))
