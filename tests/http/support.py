"""What the tests of this folder share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import jwt
from aiohttp import web

from tests.support.http_client import TusClient
from tusd_py import create_app, runner_options
from tusd_py.config import Config

SECRET = "a secret of thirty-two bytes, or so"

ZIP_OF_NOTHING = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"


async def eventually(check: Callable[[], object], seconds: float = 30) -> None:
    """Wait until `check()` is true; fail if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)


def bearer(subject: str = "ann", *, expires_in: float = 3600, key: str = SECRET, **claims: object) -> dict[str, str]:
    token = jwt.encode({"sub": subject, "exp": int(time.time() + expires_in)} | claims, key, algorithm="HS256")
    return {"Authorization": f"Bearer {token}"}


@contextlib.asynccontextmanager
async def hosted(
    config: Config, prefix: str, *, mounted: list[web.Application] | None = None, **options: bool
) -> AsyncIterator[TusClient]:
    """Mount the server in another application, below a prefix."""
    app = web.Application()

    async def own(_: web.Request) -> web.Response:
        return web.Response(text="the host's own page")

    app.router.add_get("/", own)
    app.add_subapp(prefix, below := create_app(config, **options))
    if mounted is not None:
        mounted.append(below)
    runner = web.AppRunner(app, **runner_options(config))
    await runner.setup()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    host, port = listening.getsockname()
    try:
        yield TusClient(host, port, f"{prefix}/files")
    finally:
        await runner.cleanup()
