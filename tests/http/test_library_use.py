"""The server as a part of somebody else's aiohttp application."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.http.support import eventually, hosted
from tests.support.event_stream import EventStream
from tests.support.fixtures import MakeConfig
from tests.support.http_client import OFFSET_TYPE
from tusd_py import create_app, runner_options
from tusd_py.errors import ConfigError
from tusd_py.http.context import CONTEXT


async def test_uploads_below_the_prefix_are_stored_by_the_worker_inside(make_config: MakeConfig) -> None:
    async with hosted(make_config(), "/media") as client:
        created = await client.request(
            "POST", "/media/files/", {"Upload-Length": "5", "Content-Type": OFFSET_TYPE}, b"hello"
        )
        location, upload_id = created.headers["location"], created.headers["upload-id"]
        shown: dict[str, Any] = {"state": "created"}
        async with asyncio.timeout(20):
            while shown["state"] != "stored":
                await asyncio.sleep(0.02)
                shown = (await client.request("GET", f"/media/api/v1/uploads/{upload_id}")).json()
        download, page = await client.request("GET", location), await client.request("GET", "/")

    assert download.body == b"hello"
    assert page.body == b"the host's own page"
    assert "tus-resumable" not in page.headers
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


async def test_events_below_the_prefix_have_its_links_and_end_when_the_host_shuts_down(make_config: MakeConfig) -> None:
    async with hosted(make_config(), "/media", run_worker=False) as client:
        created = await client.request("POST", "/media/files/", {"Upload-Length": "5"})
        target = f"/media/api/v1/uploads/{created.headers['upload-id']}"
        stream = await EventStream.open(client.host, client.port, f"{target}/events")
        told = await stream.until("upload.created")
    async with stream:
        assert await stream.ended()

    assert told.upload["links"]["self"] == target


async def test_a_host_that_shuts_down_does_not_wait_for_those_who_wait(make_config: MakeConfig) -> None:
    mounted: list[web.Application] = []
    async with hosted(make_config(), "/media", mounted=mounted, run_worker=False) as client:
        created = await client.request("POST", "/media/files/", {"Upload-Length": "5"})
        target = f"/media/api/v1/uploads/{created.headers['upload-id']}?wait=60"
        waiter = asyncio.create_task(client.request("GET", target))
        await eventually(lambda: mounted[0][CONTEXT].changes.waiting == 1)
    async with asyncio.timeout(20):
        assert (await waiter).json()["state"] == "created"
