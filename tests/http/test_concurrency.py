"""Two requests and one upload: the newest wins, and no byte is mixed or lost."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import termios
from typing import Any, NoReturn

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, Connection, ConnectionLost, chunk, patch_head
from tusd_py.errors import TakenOver
from tusd_py.http import request_body
from tusd_py.http.request_body import RequestBody, kernel_queue_bytes
from tusd_py.protocol.upload import Upload, UploadId
from tusd_py.staging.locked_file import LockedFile

BIG = 8 * 2**20
CHUNKED = ("Transfer-Encoding", "chunked")


def locked(served: Served, upload: Upload) -> int:
    """Hold the staging file as another process would."""
    fd = os.open(served.core.staging.path(upload.id), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def unsent(connection: Connection) -> int:
    """Return how many bytes the client's loop has not handed to the kernel."""
    return connection.writer.transport.get_write_buffer_size()


def unacknowledged(connection: Connection) -> int:
    """Return how many bytes the client's kernel has not seen acknowledged by the server's."""
    count = fcntl.ioctl(connection.writer.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(count, sys.byteorder)


async def until_it_reads_no_more(body: RequestBody) -> None:
    """Wait until nobody reads a body whose bytes come faster than they can be written."""
    transport, before = body._request.transport, -1
    assert isinstance(transport, asyncio.Transport)

    def stands_still() -> bool:
        nonlocal before
        before, last = body.received, before
        return body.received == last > 0 and not transport.is_reading()

    await eventually(stands_still)


@pytest.mark.parametrize("framing", [("Content-Length", str(BIG)), CHUNKED])
async def test_a_head_takes_over_and_tells_what_arrived(served: Served, framing: tuple[str, str]) -> None:
    """LOCK-01 LOCK-02 LOCK-03 LOCK-05"""
    path = await served.create(BIG)
    connection = await served.begin(path, 0, b"x" * 300_000, framing)

    # Answered at all: whoever does not let go within `staging.lock_timeout` costs the newcomer a 423.
    offset = await served.offset(path)

    assert offset == 300_000
    with pytest.raises(ConnectionLost):
        await connection.response()
    assert (await served.patch(path, offset, b"y" * (BIG - offset))).status == 204
    assert await served.staged(path) == b"x" * 300_000 + b"y" * (BIG - 300_000)


async def test_a_patch_takes_over_with_the_true_offset(served: Served) -> None:
    """LOCK-02 LOCK-05"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    mistaken = await served.patch(path, 0, b"HELLOWORLD")
    with pytest.raises(ConnectionLost):
        await connection.response()
    done = await served.patch(path, 5, b"world")

    assert (mistaken.status, mistaken.headers["upload-offset"]) == (409, "5")
    assert done.status == 204
    assert await served.staged(path) == b"helloworld"


async def test_a_patch_at_the_right_offset_goes_on_from_an_append_that_has_brought_nothing(served: Served) -> None:
    """LOCK-02 LOCK-06"""
    path = await served.create(5)
    silent = await served.begin(path, 0, b"", ("Content-Length", "5"))
    await eventually(lambda: served.web.uploads.locks._entries)

    assert (await served.patch(path, 0, b"hello")).status == 204
    with pytest.raises(ConnectionLost):
        await silent.response()


async def test_taking_over_from_a_client_that_never_stops_sending_takes_a_moment(served: Served) -> None:
    """LOCK-02"""
    path = await served.create(None, {"Upload-Defer-Length": "1"})
    connection = await served.begin(path, 0, b"x", CHUNKED)

    async def flood() -> NoReturn:
        while True:
            await connection.send(chunk(b"x" * 2**20))

    flooding = asyncio.create_task(flood())
    body = next(iter(served.bodies))
    await eventually(lambda: body.received > 20 * 2**20)
    # Not a 423, which comes after `staging.lock_timeout`.
    offset = await served.offset(path)
    await asyncio.gather(flooding, return_exceptions=True)

    assert offset > 20 * 2**20
    assert (await served.upload(path)).offset == offset


async def test_a_delete_takes_over(served: Served) -> None:
    """LOCK-02 TERM-05"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    assert (await served.request("DELETE", path)).status == 204
    with pytest.raises(ConnectionLost):
        await connection.response()


async def test_a_body_that_had_arrived_whole_is_answered_in_spite_of_a_newcomer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-03"""
    path = await served.create(5)
    advance = served.core.uploads.advance
    asking = []

    async def slow(*arguments: Any, **keywords: Any) -> Any:
        asking.append(asyncio.create_task(served.head(path)))
        await eventually(lambda: any(entry.waiters for entry in served.web.uploads.locks._entries.values()))
        return await advance(*arguments, **keywords)

    monkeypatch.setattr(served.core.uploads, "advance", slow)
    done = await served.patch(path, 0, b"hello")

    assert done.status == 204
    assert (await asking[0]).headers["upload-offset"] == "5"


async def test_two_appends_at_one_offset_store_one_of_them(served: Served) -> None:
    """LOCK-06"""
    for size in (1000, 3_000_000):
        path = await served.create(size)
        bodies = [bytes([65 + number]) * size for number in range(4)]

        async def send(body: bytes, path: str = path) -> int:
            try:
                return (await served.patch(path, 0, body)).status
            except ConnectionLost:
                return 0

        statuses = await asyncio.gather(*map(send, bodies))

        offset = await served.offset(path)
        staged = await served.staged(path)
        assert set(statuses) <= {0, 204, 409}
        assert len(staged) == offset
        assert len(set(staged)) <= 1
        assert statuses.count(204) == (1 if offset == size else 0)
        if offset < size:
            kept = staged[:1] or b"Z"
            assert (await served.patch(path, offset, kept * (size - offset))).status == 204


async def test_of_many_newcomers_each_gets_its_turn(served: Served) -> None:
    """LOCK-02 LOCK-05"""
    path = await served.create(100)
    await served.begin(path, 0, b"hello", ("Content-Length", "100"))

    offsets = await asyncio.gather(*(served.offset(path) for _ in range(20)))

    assert offsets == [5] * 20
    assert served.web.uploads.locks._entries == {}


async def test_a_newcomer_that_goes_away_leaves_the_queue(served: Served) -> None:
    """LOCK-02"""
    path = await served.create(100)
    locks = served.web.uploads.locks
    upload_id = (await served.upload(path)).id
    stopped = asyncio.Event()
    async with locks.hold(upload_id, stopped.set):
        waiting = asyncio.create_task(locks.hold(upload_id, lambda: None).__aenter__())
        await stopped.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        behind = asyncio.create_task(served.offset(path))
        await eventually(lambda: locks._entries[upload_id].waiters)

    assert await behind == 0
    assert locks._entries == {}


@pytest.mark.parametrize("method", ["HEAD", "PATCH", "DELETE"])
async def test_what_cannot_be_had_in_time_is_locked(serve: Serve, method: str) -> None:
    """LOCK-04 CORE-12 GEN-16"""
    served = await serve(staging={"lock_timeout": 0.3})
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    fd = locked(served, await served.upload(path))

    refused = await served.request(
        method, path, patch_head(2) if method == "PATCH" else {}, b"llo" * (method == "PATCH")
    )

    assert (refused.status, refused.headers["retry-after"]) == (423, "1")
    assert "upload-offset" not in refused.headers
    os.close(fd)
    assert await served.offset(path) == 2


@pytest.mark.parametrize("method", ["HEAD", "PATCH"])
async def test_a_holder_of_this_process_that_does_not_let_go_locks_as_well(serve: Serve, method: str) -> None:
    """LOCK-04 CORE-12"""
    served = await serve(staging={"lock_timeout": 0.3})
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    async with served.web.uploads.locks.hold((await served.upload(path)).id, lambda: None):
        refused = await served.request(
            method, path, patch_head(2) if method == "PATCH" else {}, b"llo" * (method == "PATCH")
        )

    assert (refused.status, refused.headers["retry-after"]) == (423, "1")
    assert "upload-offset" not in refused.headers


async def test_another_process_is_asked_and_its_offset_is_believed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-01 LOCK-02 LOCK-05"""
    path = await served.create(10, {"Content-Type": OFFSET_TYPE}, b"he")
    upload = await served.upload(path)
    asked = []

    async def other_process_stops(upload_id: str) -> None:
        # It stores what it has, moves the row and lets the file go.
        asked.append(upload_id)
        if len(asked) == 1:
            os.pwrite(fd, b"llo", 2)
            await served.core.database.execute("UPDATE uploads SET upload_offset = 5")
            os.close(fd)

    monkeypatch.setattr(served.web.uploads.locks, "_ask_others", other_process_stops)
    for expected, request in [(409, served.patch(path, 2, b"LLO")), (409, served.patch(path, 0, b"X"))]:
        await served.core.database.execute("UPDATE uploads SET upload_offset = 2")
        fd = locked(served, upload)
        asked.clear()
        response = await request
        assert (response.status, response.headers["upload-offset"]) == (expected, "5")
        assert asked == [str(upload.id)]

    assert await served.staged(path) == b"hello"


@pytest.mark.parametrize("let_go", [True, False])
async def test_a_head_that_meets_one_writer_after_the_other_waits_for_them_and_never_fails(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, let_go: bool
) -> None:
    """LOCK-01 LOCK-04 CORE-12"""
    served = await serve(staging={"lock_timeout": 5 if let_go else 0.3})
    path = await served.create(10, {"Content-Type": OFFSET_TYPE}, b"he")
    upload = await served.upload(path)
    writers = []

    def begin() -> None:
        writers.append(locked(served, upload))

    async def other_process_stops(_: str) -> None:
        # Each stores one more byte; after the fourth nobody comes any more.
        if len(writers) < 4 or let_go:
            os.pwrite(writers[-1], b"x", 1 + len(writers))
            await served.core.database.execute("UPDATE uploads SET upload_offset = upload_offset + 1")
            os.close(writers[-1])

    find = served.core.uploads.find

    async def find_and_begin(upload_id: UploadId) -> Upload | None:
        # Between the look at the row and the one at the file the next writer has it.
        found = await find(upload_id)
        if len(writers) < 4:
            begin()
        return found

    monkeypatch.setattr(served.web.uploads.locks, "_ask_others", other_process_stops)
    monkeypatch.setattr(served.core.uploads, "find", find_and_begin)
    begin()

    response = await served.head(path)

    assert len(writers) == 4
    if let_go:
        assert (response.status, response.headers["upload-offset"]) == (200, "6")
    else:
        os.close(writers[-1])
        assert (response.status, response.headers["retry-after"]) == (423, "1")
        assert "upload-offset" not in response.headers


async def test_a_head_of_an_upload_that_is_stored_and_cleaned_up_meanwhile_finds_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-01 CORE-12"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    probe, find = served.core.staging.probe, served.core.uploads.find

    def too_late(upload_id: UploadId) -> Any:
        served.core.staging.path(upload_id).unlink(missing_ok=True)
        return probe(upload_id)

    async def stored_meanwhile(upload_id: UploadId) -> Upload | None:
        await served.core.database.execute("UPDATE uploads SET upload_offset = 5, state = 'completed'")
        return await find(upload_id)

    monkeypatch.setattr(served.core.staging, "probe", too_late)
    monkeypatch.setattr(served.core.uploads, "find", stored_meanwhile)

    assert await served.offset(path) == 5


async def test_looking_at_a_file_hinders_nobody_who_looks_as_well(served: Served) -> None:
    """LOCK-01"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"he")
    fd = os.open(served.core.staging.path((await served.upload(path)).id), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_SH)

    assert await served.offset(path) == 2

    os.close(fd)


async def test_downloads_take_no_lock(served: Served) -> None:
    """LOCK-07"""
    path = await served.create(5, {"Content-Type": OFFSET_TYPE}, b"hello")
    fd = locked(served, await served.upload(path))

    got = await served.request("GET", path)

    assert (got.status, got.body) == (200, b"hello")
    os.close(fd)


async def test_a_torn_tail_of_a_crash_is_cut_off(served: Served) -> None:
    """LOCK-08"""
    path = await served.create(10, {"Content-Type": OFFSET_TYPE}, b"hello")
    with served.core.staging.path((await served.upload(path)).id).open("ab") as file:
        file.write(b"garbage of a writer that was killed")

    assert await served.offset(path) == 5
    assert (await served.patch(path, 5, b"wo")).status == 204
    assert await served.staged(path) == b"hellowo"


async def test_a_writer_that_lost_its_place_changes_nothing(served: Served) -> None:
    """LOCK-08"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))
    await served.core.database.execute("UPDATE uploads SET upload_offset = 7")

    await connection.send(b"world")
    response = await connection.response()

    assert response.status in {423, 204}
    if response.status == 204:
        # 7 lies among what this writer has written: its own earlier try may have been recorded so.
        assert await served.staged(path) == b"helloworld"


async def test_a_drain_keeps_what_arrived_and_says_so(served: Served) -> None:
    """LOCK-09 AIO-16 CORE-12"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))
    idle = await served.connect()
    assert (await idle.request("HEAD", path, [TUS])).status in {200, 423}
    again = await served.begin(path, 5, b"wo", ("Content-Length", "5"))

    draining = asyncio.create_task(served.stop(abort=False))
    answer = await again.response()
    await draining

    assert (answer.status, answer.headers["upload-offset"], answer.headers["connection"]) == (503, "7", "close")
    with pytest.raises(ConnectionLost):
        await connection.response()
    assert (await served.upload(path)).offset == 7


async def test_a_head_during_a_drain_is_locked_and_closes(served: Served) -> None:
    """LOCK-09 CORE-12"""
    path = await served.create(10)
    served.web.draining = True

    head = await served.head(path)
    connection = await served.connect()
    patch = await connection.request("PATCH", path, patch_head(0), b"hello")

    assert (head.status, head.headers["connection"], head.headers["retry-after"]) == (423, "close", "1")
    assert (patch.status, patch.headers["connection"]) == (503, "close")
    assert "upload-offset" not in head.headers
    served.web.draining = False
    assert await served.offset(path) == 0


async def test_an_interruption_at_the_moment_of_a_checkpoint_is_no_error(serve: Serve) -> None:
    """LOCK-02"""
    served = await serve(staging={"checkpoint_seconds": 0.05})
    path = await served.create(100)
    connection = await served.begin(path, 0, b"hello", CHUNKED)
    body = next(iter(served.bodies))
    await eventually(lambda: body._reading is not None)
    reading = body._reading
    assert reading is not None

    reading.reschedule(asyncio.get_running_loop().time())
    await asyncio.sleep(0)
    body.interrupt(TakenOver())
    await connection.send(chunk(b"!"))

    with pytest.raises(ConnectionLost):
        await connection.response()
    assert await served.offset(path) in {5, 6}


async def test_what_waits_in_the_kernels_buffer_is_kept_on_a_take_over(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that reached the machine were received, whether or not the process has time to read them."""
    disk = asyncio.Event()
    write = LockedFile.write

    async def write_late(self: LockedFile, *arguments: Any, **options: Any) -> int:
        await disk.wait()
        return await write(self, *arguments, **options)

    monkeypatch.setattr(LockedFile, "write", write_late)
    monkeypatch.setattr(request_body, "LAST_SECONDS", 0)
    served = await serve(staging={"block_size": 65536})
    path = await served.create(BIG)
    connection = await served.begin(path, 0, b"", ("Content-Length", str(BIG)))
    connection.writer.write(bytes(BIG))
    (body,) = served.bodies
    await until_it_reads_no_more(body)
    arrived = BIG - unsent(connection) - unacknowledged(connection)
    assert kernel_queue_bytes(body._request.transport)

    head = asyncio.create_task(served.head(path))
    await eventually(lambda: body._interruption is not None)
    disk.set()

    assert int((await head).headers["upload-offset"]) >= arrived
    await connection.closed()


async def test_nobody_waits_for_what_may_yet_come_once_the_moment_is_over(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends a little all the time holds up no newcomer."""
    monkeypatch.setattr(request_body, "LAST_SECONDS", 0)
    monkeypatch.setattr(request_body, "QUIET_SECONDS", 3600)
    path = await served.create(10)
    await served.begin(path, 0, b"hello", ("Content-Length", "10"))

    assert await served.offset(path) == 5


async def test_what_comes_for_a_moment_after_an_interruption_is_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "LAST_SECONDS", 20)
    monkeypatch.setattr(request_body, "QUIET_SECONDS", 0.5)
    sent = 9 * 2**20
    path = await served.create(2 * sent)
    connection = await served.begin(path, 0, b"", ("Content-Length", str(2 * sent)))
    await connection.send(bytes(sent))

    kept = int((await served.head(path)).headers["upload-offset"])

    # What the loop's own end of the connection had not handed to the kernel is not at the server.
    assert kept == sent - unsent(connection)
    await connection.closed()
