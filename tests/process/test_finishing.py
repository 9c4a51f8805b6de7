"""kill -9 between every two steps of a completion that the application is asked about."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web

from tests.process.test_late_update import row_locked, until_waiting
from tests.support.files import download, random_file, seeded
from tests.support.node import run_node
from tests.support.ports import LOOPBACK
from tests.support.process import eventually
from tests.support.resuming_client import ClientUpload, ResumingClient
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

LENGTH = 256 * 1024
DEADLINE = 90.0
STEPS = ("before the row", "while it is asked", "after its reply", "after the completion")


class Whole(random.Random):
    """Sends everything that is left at once."""

    def randint(self, a: int, b: int) -> int:
        return b


@dataclass
class Application:
    """A hook server that counts, blocks and fails as a test wants."""

    asked: list[str] = field(default_factory=list)
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    failures: list[int | bytes] = field(default_factory=list)
    """Statuses, and bodies of a 200, with which it replies at first."""
    url: str = ""

    async def hook(self, request: web.Request) -> web.Response:
        document = await request.json()
        assert (document["Type"], request.headers["Hook-Name"]) == ("pre-finish", "pre-finish")
        upload = document["Event"]["Upload"]
        assert upload["Offset"] == upload["Size"]
        self.asked.append(upload["ID"])
        if self.failures:
            failure = self.failures.pop(0)
            return web.Response(status=failure) if isinstance(failure, int) else web.Response(body=failure)
        await self.answers.wait()
        return web.json_response({"HTTPResponse": {"Header": {"X-Asked": "yes"}}})

    async def until_asked(self, times: int) -> None:
        async def asked() -> bool:
            return len(self.asked) >= times

        await eventually(asked, deadline=DEADLINE, what=f"the application is asked {times} times")

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hooks", self.hook)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, LOOPBACK, port)
        await site.start()
        self.url = f"http://{LOOPBACK}:{runner.addresses[0][1]}/hooks"
        try:
            yield
        finally:
            await runner.cleanup()


@pytest.fixture
async def app() -> AsyncIterator[Application]:
    application = Application()
    async with application.serving():
        yield application


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Server], Awaitable[ResumingClient]]]:
    """Return clients that resume; their connections are closed after the test."""
    async with contextlib.AsyncExitStack() as stack:
        yield lambda server: stack.enter_async_context(ResumingClient(server.url))


def configured(dsn: str, url: str, processes: int = 1) -> dict[str, Any]:
    return {
        "database": {"dsn": dsn, "command_timeout": "50s"},
        "server": {"processes": processes},
        "hooks": {"http": url, "events": ["pre-finish"], "timeout": "5s", "retries": 0},
        "transfer": {"poll_interval": "1s", "retry_delay": "1s"},
    }


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


async def until_completed(database: asyncpg.Connection, upload_id: str) -> None:
    async def completed() -> bool:
        return bool(await database.fetchval("SELECT completed_at FROM uploads WHERE id = $1::uuid", upload_id))

    await eventually(completed, deadline=DEADLINE, what="the upload is complete")


async def completed_once(server: Server, database: asyncpg.Connection, app: Application, upload: ClientUpload) -> None:
    await asyncio.to_thread(server.wait_for_state, upload.id, "stored", deadline=DEADLINE)
    assert upload.id in app.asked
    events = await database.fetch("SELECT kind FROM events WHERE upload_id = $1::uuid ORDER BY sequence", upload.id)
    assert [row["kind"] for row in events] == [
        "upload.created", "upload.completed", "upload.transferring", "upload.stored",
    ]  # fmt: skip
    jobs = await database.fetch(
        "SELECT kind, state FROM jobs WHERE upload_id = $1::uuid AND kind IN ('finish', 'transfer') ORDER BY id",
        upload.id,
    )
    assert [tuple(row) for row in jobs] == [("finish", "succeeded"), ("transfer", "succeeded")]
    got = await asyncio.to_thread(download, f"{server.origin}/download/{upload.id}")
    assert (got.length, got.sha256) == (LENGTH, upload.sha256)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("victim", "step", "processes"),
    [("http", step, 1) for step in STEPS]
    + [("http", "while it is asked", 2)]
    + [("worker", step, 1) for step in STEPS[1:]],
)
async def test_whoever_dies_amid_a_completion_it_happens_once(
    start_server: StartServer,
    dsn: str,
    database: asyncpg.Connection,
    app: Application,
    connect: Callable[[Server], Awaitable[ResumingClient]],
    victim: str,
    step: str,
    processes: int,
) -> None:
    server = start_server(configured(dsn, app.url, processes))
    upload = ClientUpload(seeded("finishing").randbytes(LENGTH), Whole())
    client = await connect(server)
    await client.create(upload)
    first = 1
    if victim == "worker":
        app.failures, first = [500], 2  # the request gets no answer, so a worker asks

    def strike() -> tuple[int, ...]:
        pids = server.ready.http_pids if victim == "http" else server.ready.worker_pids
        kill(pids)
        return pids

    if step == "before the row":
        app.answers.set()
        async with row_locked(database, upload.id):
            sending = asyncio.create_task(client.run(upload, deadline=DEADLINE))
            await until_waiting(database, 1)
            killed = strike()
    else:
        sending = asyncio.create_task(client.run(upload, deadline=DEADLINE))
        await app.until_asked(first)
        match step:
            case "while it is asked":
                killed = strike()
                app.answers.set()
            case "after its reply":
                async with row_locked(database, upload.id):
                    app.answers.set()
                    await until_waiting(database, 1)
                    killed = strike()
            case _:
                app.answers.set()
                await until_completed(database, upload.id)
                killed = strike()
    await asyncio.to_thread(server.wait_replaced, *killed)
    await sending

    assert upload.acknowledged == LENGTH
    await completed_once(server, database, app, upload)
    if step in {"while it is asked", "after its reply"}:
        assert len(app.asked) > first, "nobody has asked again"


@pytest.mark.timeout(180)
async def test_an_application_that_is_away_slow_and_confused_is_asked_until_it_answers(
    start_server: StartServer,
    dsn: str,
    database: asyncpg.Connection,
    connect: Callable[[Server], Awaitable[ResumingClient]],
) -> None:
    app = Application(failures=[b"no JSON", 500])
    with socket.create_server((LOOPBACK, 0)) as unused:
        port = unused.getsockname()[1]
    server = start_server(configured(dsn, f"http://{LOOPBACK}:{port}/hooks"))
    upload = ClientUpload(seeded("away").randbytes(LENGTH), Whole())
    client = await connect(server)
    await client.create(upload)
    sending = asyncio.create_task(client.run(upload, deadline=DEADLINE))

    async def refused() -> bool:
        return upload.statuses[503] > 0 and upload.statuses[423] > 0

    await eventually(refused, deadline=DEADLINE, what="the client is told that the upload is busy")
    async with app.serving(port):
        await app.until_asked(3)  # and no answer to the third before its time is over
        await app.until_asked(4)
        app.answers.set()
        await sending
        await completed_once(server, database, app, upload)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"client": 5},
        {"parallelUploads": 2},
        {"client": 5, "protocol": "ietf-draft-05"},
    ],
    ids=["tus-js-4", "tus-js-5", "parallel", "ietf-draft-05"],
)
def test_the_published_client_finishes_after_a_hook_that_fails(
    start_server: StartServer, dsn: str, tmp_path: Path, way: dict[str, Any]
) -> None:
    """It sees success when the upload is complete and never before, though every byte is there."""
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    program = hooks / "pre-finish"
    program.write_text('#!/bin/sh\necho "$TUS_ID" >> asked\n[ "$(wc -l < asked)" -gt 1 ]\n')  # the first time it fails
    program.chmod(0o755)
    source = tmp_path / "source.bin"
    sha256 = random_file(source, LENGTH, seeded("finishing"))
    config = configured(dsn, "") | {"hooks": {"file": str(hooks), "events": ["pre-finish"], "timeout": "5s"}}
    server = start_server(config)
    options = {"endpoint": server.url, "file": str(source), "metadata": {"filename": "a.bin"}} | way

    result = run_node("upload.mjs", options, log=tmp_path / "node.log")

    assert result["ok"], result
    statuses = {request["status"] for request in result["requests"]}
    assert statuses & {423, 503}, "the client has noticed nothing"
    asked = (hooks / "asked").read_text().split()
    assert result["uploadId"] in asked
    assert len(asked) > len(set(asked)), "nobody has asked again"
    server.wait_for_state(result["uploadId"], "stored", deadline=DEADLINE)
    assert download(f"{server.origin}/download/{result['uploadId']}").sha256 == sha256
