"""An UPDATE outlives the process that sent it, inside PostgreSQL, and must not come between row and file."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.blocking_client import OCTETS, BlockingConnection, create, request
from tests.support.files import download, seeded
from tests.support.http_client import Response
from tests.support.process import eventually
from tests.support.server import Server, StartServer

pytestmark = pytest.mark.acceptance

MIB = 2**20
LENGTH = 4 * MIB
DEADLINE = 60
WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND application_name = 'tusd_py' AND wait_event_type = 'Lock'
"""


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def row_locked(database: asyncpg.Connection, upload_id: str) -> AsyncIterator[None]:
    """Hold the row of an upload, so that every UPDATE of it waits."""
    async with database.transaction():
        await database.execute("SELECT 1 FROM uploads WHERE id = $1::uuid FOR UPDATE", upload_id)
        yield


async def until_waiting(database: asyncpg.Connection, count: int) -> None:
    async def waiting() -> bool:
        # Within a transaction the view shows what it showed at first, unless it is told to look again.
        await database.execute("SELECT pg_stat_clear_snapshot()")
        return bool(await database.fetchval(WAITING) >= count)

    await eventually(waiting, deadline=DEADLINE, what=f"{count} statements wait for the row")


def begin_patch(server: Server, target: str, offset: int, body: bytes) -> BlockingConnection:
    connection = BlockingConnection(server.port, timeout=DEADLINE)
    connection.begin_patch(target, offset=offset, length=len(body))
    connection.send(body)
    return connection


def head(server: Server, target: str) -> Response:
    return request(server.port, "HEAD", target)


def patch(server: Server, target: str, offset: int, body: bytes) -> Response:
    return request(server.port, "PATCH", target, {**OCTETS, "Upload-Offset": str(offset)}, body)


@pytest.mark.parametrize("concat", [None, "partial"])
async def test_an_update_that_outlives_its_process_cannot_wedge_the_upload(
    start_server: StartServer, dsn: str, database: asyncpg.Connection, concat: str | None
) -> None:
    server = start_server({"database": {"dsn": dsn, "command_timeout": "50s"}})
    content = seeded("late-update").randbytes(LENGTH)
    headers = {"Upload-Length": str(LENGTH)} | ({"Upload-Concat": concat} if concat else {})
    created = request(server.port, "POST", "/files/", headers)
    target, upload_id = created.headers["location"], created.headers["upload-id"]
    assert patch(server, target, 0, content[:MIB]).offset == MIB

    async with row_locked(database, upload_id):
        with begin_patch(server, target, MIB, content[MIB : 3 * MIB]):
            await until_waiting(database, 1)
            http_pids = server.ready.http_pids
            server.kill_supervisor()
            for pid in http_pids:
                # Told to end by the kernel, it would wait for its statement.
                os.kill(pid, signal.SIGKILL)
            server.wait_gone(DEADLINE)
        server.restart()
        assert head(server, target).offset == MIB
        # Half of what the dead process had written: were the file cut for it, bytes would be missing in the end.
        continued = asyncio.create_task(asyncio.to_thread(patch, server, target, MIB, content[MIB : 3 * MIB // 2]))
        await until_waiting(database, 2)
    answer = await continued

    assert answer.status in {204, 409, 423}
    found = head(server, target)
    assert found.status == 200
    assert patch(server, target, found.offset, content[found.offset :]).offset == LENGTH
    if concat is None:
        server.wait_for_state(upload_id, "stored", deadline=DEADLINE)
    else:
        final = request(server.port, "POST", "/files/", {"Upload-Concat": f"final;{target}"})
        upload_id = final.headers["upload-id"]
    got = await asyncio.to_thread(download, f"{server.origin}/download/{upload_id}")
    assert (got.length, got.sha256) == (LENGTH, hashlib.sha256(content).hexdigest())


async def test_an_update_that_outlives_its_answer_cannot_wedge_the_upload(
    start_server: StartServer, dsn: str, database: asyncpg.Connection
) -> None:
    """As when the connection to the database breaks: the process lives, and its statement as well."""
    server = start_server({"database": {"dsn": dsn, "command_timeout": "50s"}})
    content = seeded("late-update").randbytes(LENGTH)
    created = create(server.port, LENGTH)
    target, upload_id = created.headers["location"], created.headers["upload-id"]
    assert patch(server, target, 0, content[:MIB]).offset == MIB
    staged = server.staging / upload_id[-2:] / upload_id

    # What the process had sent before, from a connection of its own that nobody listens to any more.
    other = await asyncpg.connect(dsn)
    async with row_locked(database, upload_id):
        staged.write_bytes(content[: 3 * MIB])
        late = asyncio.create_task(
            other.execute(
                "UPDATE uploads SET upload_offset = $2 WHERE id = $1::uuid AND upload_offset = $3 AND writer = 0",
                upload_id, 3 * MIB, MIB,
            )
        )  # fmt: skip
        continued = asyncio.create_task(asyncio.to_thread(patch, server, target, MIB, content[MIB : 2 * MIB]))
        await until_waiting(database, 1)
    await late
    await other.close()

    assert (await continued).status in {204, 409, 423}
    found = head(server, target)
    row = await database.fetchrow("SELECT upload_offset, writer FROM uploads WHERE id = $1::uuid", upload_id)
    assert found.offset == row["upload_offset"]
    assert staged.stat().st_size >= found.offset
    assert staged.read_bytes()[: found.offset] == content[: found.offset]
