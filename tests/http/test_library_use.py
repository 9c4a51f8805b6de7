"""The server as a part of somebody else's aiohttp application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.http.support import eventually
from tests.support.fixtures import MakeConfig
from tusd_py import create_app, runner_options
from tusd_py.config import Config
from tusd_py.errors import ConfigError
from tusd_py.http.context import CONTEXT

TUS = {"Tus-Resumable": "1.0.0"}


@contextlib.asynccontextmanager
async def hosted(
    config: Config, prefix: str, *, mounted: list[web.Application] | None = None, **options: bool
) -> AsyncIterator[str]:
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
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_uploads_below_the_prefix_are_stored_by_the_worker_inside(make_config: MakeConfig) -> None:
    async with hosted(make_config(), "/media") as origin, aiohttp.ClientSession(headers=TUS) as client:
        headers = {"Upload-Length": "5", "Content-Type": "application/offset+octet-stream"}
        async with client.post(f"{origin}/media/files/", data=b"hello", headers=headers) as created:
            location, upload_id = created.headers["Location"], created.headers["Upload-Id"]
        async with asyncio.timeout(20):
            while True:
                async with client.get(f"{origin}/media/api/v1/uploads/{upload_id}") as seen:
                    if (shown := await seen.json())["state"] == "stored":
                        break
                await asyncio.sleep(0.02)
        async with client.get(f"{origin}{location}") as download, client.get(f"{origin}/") as page:
            assert await download.read() == b"hello"
            assert await page.text() == "the host's own page"
            assert "Tus-Resumable" not in page.headers

    assert location.startswith("/media/files/")
    assert shown["download_url"] == f"/media/download/{upload_id}"
    assert shown["links"]["self"] == f"/media/api/v1/uploads/{upload_id}"


async def test_two_mounted_servers_keep_apart(make_config: MakeConfig, tmp_path: Path) -> None:
    app = web.Application()
    for name in ("one", "two"):
        config = make_config(data_dir=tmp_path / name, server={"node": name})
        app.add_subapp(f"/{name}", create_app(config))
    runner = web.AppRunner(app, **runner_options(make_config()))

    await runner.setup()
    await runner.cleanup()

    assert (tmp_path / "one" / "staging").is_dir()
    assert (tmp_path / "two" / "staging").is_dir()


def test_an_application_without_a_database_is_refused(make_config: MakeConfig) -> None:
    from tusd_py.config import load_config

    with pytest.raises(ConfigError) as refusal:
        create_app(load_config())

    assert "database.dsn" in refusal.value.problems[0]


async def test_a_host_that_shuts_down_does_not_wait_for_those_who_wait(make_config: MakeConfig) -> None:
    mounted: list[web.Application] = []
    async with aiohttp.ClientSession(headers=TUS) as client:

        async def wait_for(target: str) -> str:
            async with client.get(target) as response:
                return str((await response.json())["state"])

        async with hosted(make_config(), "/media", mounted=mounted, run_worker=False) as origin:
            async with client.post(f"{origin}/media/files/", headers={"Upload-Length": "5"}) as created:
                target = f"{origin}/media/api/v1/uploads/{created.headers['Upload-Id']}?wait=60"
            waiter = asyncio.create_task(wait_for(target))
            await eventually(lambda: mounted[0][CONTEXT].changes.waiting == 1)
        async with asyncio.timeout(20):
            assert await waiter == "created"
