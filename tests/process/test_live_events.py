"""Live events of the real server: across processes, across interruptions, behind proxies, and what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.support.event_stream import EventStream, Told
from tests.support.files import seeded
from tests.support.http_client import TusClient
from tests.support.ports import LOOPBACK
from tests.support.process import eventually
from tests.support.proxies import PROXIES
from tests.support.server import Server, StartServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

ALL = "/api/v1/events"
MIB = 2**20
UPLOADS = 20
LISTENERS = 500
WAIT_SECONDS = 60
LIFE = ["created", "completed", "transferring", "stored"]

Pair = tuple[Server, Server]


@pytest.fixture
def nodes(start_server: StartServer, dsn: str, tmp_path: Path) -> Callable[[], Pair]:
    """Start two servers that share a database and a store."""

    def start() -> Pair:
        config = {
            "database": {"dsn": dsn},
            "storage": {"filesystem": {"directory": str(tmp_path / "store")}},
            "events": {"progress_interval": 0.05},
        }
        return start_server(config), start_server(config)

    return start


async def listen(server: Server, target: str = ALL, last_event_id: str | None = None) -> EventStream:
    headers = [("Last-Event-ID", last_event_id)] if last_event_id else []
    return await EventStream.open(LOOPBACK, server.port, target, headers)


def kind_of(told: Told) -> str:
    return told.event.removeprefix("upload.")


async def send(server: Server, pieces: int = 3) -> str:
    """Send an upload in pieces; return its public id."""
    client = TusClient(LOOPBACK, server.port)
    created = await client.request("POST", "/files/", {"Upload-Length": str(pieces * 1000)})
    for number in range(pieces):
        sent = await client.patch(created.headers["location"], number * 1000, bytes(1000))
        assert sent.status == 204, sent
    return created.headers["upload-id"]


async def test_listener_of_one_process_hears_what_another_one_receives(nodes: Callable[[], Pair]) -> None:
    here, there = nodes()
    everything = await listen(here)
    created = await TusClient(LOOPBACK, there.port).request("POST", "/files/", {"Upload-Length": "30"})
    upload_id, path = created.headers["upload-id"], created.headers["location"]
    one = await listen(here, f"/api/v1/uploads/{upload_id}/events")
    await one.until("upload.created")
    client = TusClient(LOOPBACK, there.port)

    # The other process hears of the listener in a moment; until then there is no progress.
    async with asyncio.timeout(WAIT_SECONDS):
        offset = 0
        while not any(kind_of(told) == "progress" for told in one.seen):
            assert (await client.patch(path, offset, b"x")).status == 204
            offset += 1
            with contextlib.suppress(TimeoutError):
                await one.next(seconds=1)
    await client.patch(path, offset, bytes(30 - offset))

    for stream in (everything, one):
        async with stream:
            await stream.until("upload.stored", seconds=WAIT_SECONDS)
            assert [kind_of(told) for told in stream.seen if told.id] == LIFE
            assert {told.document["subject"] for told in stream.seen} == {upload_id}


async def test_nothing_is_lost_when_a_listener_is_cut_again_and_again(nodes: Callable[[], Pair], dsn: str) -> None:
    both = nodes()
    rng = seeded("cut streams")
    seen: dict[str, Told] = {}
    stored: set[str] = set()
    cuts = 0
    last_event_id: str | None = None

    async def follow(first: EventStream) -> None:
        nonlocal cuts, last_event_id
        stream = first
        while len(stored) < UPLOADS:
            async with stream:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.uniform(0, 0.2)):
                        while len(stored) < UPLOADS and (told := await stream.next()) is not None:
                            if told.id is None:
                                assert kind_of(told) == "progress"
                                continue
                            seen.setdefault(told.id, told)
                            last_event_id = told.id
                            if kind_of(told) == "stored":
                                stored.add(told.document["subject"])
            cuts += 1
            stream = await listen(rng.choice(both), last_event_id=last_event_id)
        stream.abort()

    first = await listen(both[0])
    # Until it has seen an event, a listener that comes back begins anew: the first one is not cut.
    upload_ids = [await send(both[0])]
    begun = await first.next()
    assert begun is not None
    assert begun.id is not None
    seen[begun.id], last_event_id = begun, begun.id
    async with asyncio.timeout(WAIT_SECONDS):
        following = asyncio.create_task(follow(first))
        limit = asyncio.Semaphore(4)

        async def one(number: int) -> str:
            async with limit:
                while cuts < number // 3:  # so that they are spread over all of its connections
                    await asyncio.sleep(0.01)
                return await send(both[number % 2])

        upload_ids += await asyncio.gather(*(one(number) for number in range(UPLOADS - 1)))
        await following

    order: dict[str, list[str]] = defaultdict(list)
    for told in seen.values():
        order[told.document["subject"]].append(kind_of(told))
    assert {upload_id: order[upload_id] for upload_id in upload_ids} == dict.fromkeys(upload_ids, LIFE)
    assert set(order) == set(upload_ids)
    assert await recorded(dsn) == set(seen)
    assert cuts >= 5


async def recorded(dsn: str) -> set[str]:
    """Return the ids of all events."""
    connection = await asyncpg.connect(dsn)
    try:
        return {str(row["event_id"]) for row in await connection.fetch("SELECT event_id FROM events")}
    finally:
        await connection.close()


@pytest.mark.parametrize("proxy", PROXIES)
async def test_events_pass_the_documented_proxies_at_once(
    proxy: str, start_server: StartServer, tmp_path: Path
) -> None:
    server = start_server()
    with PROXIES[proxy](tmp_path / proxy, server.port) as front:
        host = ("Host", f"{LOOPBACK}:{front.port}")
        async with await EventStream.open(LOOPBACK, front.port, ALL, [host]) as stream:
            assert stream.status == 200
            await send(server)
            for kind in LIFE:
                # Whoever gathers a response sends nothing before it is over, or large.
                await stream.until(f"upload.{kind}")
            assert stream.retry == 2000


async def test_restart_ends_streams_and_their_clients_come_back(start_server: StartServer) -> None:
    server = start_server()
    stream = await listen(server)
    await send(server)
    stored = await stream.until("upload.stored")
    server.terminate()
    async with stream:
        assert await stream.ended()

    server.restart()
    again = await listen(server, last_event_id=stored.id)
    upload_id = await send(server)

    async with again:
        assert (await again.until("upload.created")).document["subject"] == upload_id


async def test_stream_outlives_a_database_that_is_killed(start_server: StartServer) -> None:
    server = start_server()
    everything = await listen(server)
    created = await TusClient(LOOPBACK, server.port).request("POST", "/files/", {"Upload-Length": "30"})
    path, upload_id = created.headers["location"], created.headers["upload-id"]
    one = await listen(server, f"/api/v1/uploads/{upload_id}/events")
    await everything.until("upload.created")
    await one.until("upload.created")
    (before,) = server.postmaster_pids()
    os.kill(before, signal.SIGKILL)

    await eventually(lambda: sent(server, path), deadline=WAIT_SECONDS, what="the database is back")

    assert server.postmaster_pids() != [before]
    for stream in (everything, one):
        async with stream:
            await stream.until("upload.stored", seconds=WAIT_SECONDS)
            assert [kind_of(told) for told in stream.seen if told.id] == LIFE


async def sent(server: Server, path: str) -> bool:
    """Try to send an upload; return whether all of it is there."""
    client = TusClient(LOOPBACK, server.port)
    with contextlib.suppress(OSError):
        if (await client.patch(path, 0, bytes(30))).status == 204:
            return True
        # Its reply may have got lost.
        return (await client.head(path)).headers.get("upload-offset") == "30"
    return False


async def counted(server: Server, listeners: int) -> bool:
    """Return whether so many listen; those that went away a moment ago may still be counted."""
    return server.metrics()["tusd_py_event_listeners"] == listeners


@pytest.mark.slow
async def test_500_listeners_cost_less_than_50_mib_and_each_hears_of_an_event(start_server: StartServer) -> None:
    server = start_server({"server": {"processes": 1}})
    (pid,) = server.ready.http_pids
    client = TusClient(LOOPBACK, server.port)
    created = await client.request("POST", "/files/", {"Upload-Length": "30"})
    one = f"/api/v1/uploads/{created.headers['upload-id']}/events"
    # What every process has once, whoever listens first.
    for target in (ALL, one):
        async with await listen(server, target):
            pass
    before = psutil.Process(pid).memory_info().rss

    streams = [await listen(server, one if number % 2 else ALL) for number in range(LISTENERS)]
    try:
        assert {stream.status for stream in streams} == {200}
        await eventually(lambda: counted(server, LISTENERS), deadline=WAIT_SECONDS, what="they are counted")
        await client.patch(created.headers["location"], 0, bytes(30))
        for stream in streams:
            await stream.until("upload.completed")
        grown = psutil.Process(pid).memory_info().rss - before
    finally:
        for stream in streams:
            stream.abort()

    print(f"{LISTENERS} listeners: {grown / MIB:.1f} MiB")
    assert grown < 50 * MIB
