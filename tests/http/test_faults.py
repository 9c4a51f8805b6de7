"""What goes wrong around the server: the database, the disk, the file, the handler itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, ConnectionLost, chunk, patch_head
from tusd_py.errors import DatabaseUnavailable, OffsetConflict, StagingFull, StorageError
from tusd_py.protocol.upload import UploadId
from tusd_py.uploads.service import Timing

BODY = {"Content-Type": OFFSET_TYPE}
MIB = 2**20


# --- the database ----------------------------------------------------------------------------------


class DatabaseProxy:
    """Stands between the server and PostgreSQL, and takes the latter away."""

    def __init__(self, dsn: str) -> None:
        self.parts = urlsplit(dsn)
        self.host = parse_qs(self.parts.query).get("host", [self.parts.hostname or "localhost"])[0]
        self.upstream = int(parse_qs(self.parts.query).get("port", [self.parts.port or 5432])[0])
        self.away = False
        self.frozen = asyncio.Event()
        self.frozen.set()
        self.writers: set[asyncio.StreamWriter] = set()
        self.tasks: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        user = f"{self.parts.username or 'postgres'}" + (f":{self.parts.password}" if self.parts.password else "")
        self.dsn = f"postgresql://{user}@127.0.0.1:{port}{self.parts.path}?sslmode=disable"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.add(writer)
        with contextlib.suppress(OSError):
            if not self.away:
                if self.host.startswith("/"):
                    path = f"{self.host}/.s.PGSQL.{self.upstream}"
                    up_reader, up_writer = await asyncio.open_unix_connection(path)
                else:
                    up_reader, up_writer = await asyncio.open_connection(self.host, self.upstream)
                self.writers.add(up_writer)
                await asyncio.gather(self._pump(reader, up_writer), self._pump(up_reader, writer))
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self.frozen.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def take_away(self) -> None:
        self.away = True
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def bring_back(self) -> None:
        self.away = False

    async def stop(self) -> None:
        self.frozen.set()
        self.take_away()
        self.server.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[DatabaseProxy]:
    proxy = DatabaseProxy(dsn)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
def timing() -> Timing:
    """The times of a server; those in earnest unless a test says otherwise."""
    return Timing()


@pytest.fixture
async def served_through(serve: Serve, database: DatabaseProxy, timing: Timing) -> Served:
    quick = {"dsn": database.dsn, "connect_timeout": 0.5, "command_timeout": 1}
    return await serve(timing=timing, database=quick, operations={"enabled": False})


async def test_without_its_database_a_head_is_locked_and_the_rest_unavailable(
    served_through: Served, database: DatabaseProxy
) -> None:
    """CORE-12"""
    served = served_through
    path = await served.create(5, BODY, b"he")
    database.take_away()

    head = await served.head(path)
    others = [
        await served.request("POST", "/files/", {"Upload-Length": "5"}),
        await served.request("POST", "/files/", BODY | {"Upload-Length": "5"}, b"hello"),
        await served.patch(path, 2, b"llo"),
        await served.request("DELETE", path),
        await served.request("GET", path),
        await served.request("GET", "/api/v1/uploads"),
    ]

    assert (head.status, head.headers["retry-after"]) == (423, "1")
    assert "upload-offset" not in head.headers
    assert [response.status for response in others] == [503] * 6
    assert (await served.request("OPTIONS", path)).status == 200
    database.bring_back()
    assert await served.offset(path) == 2
    assert (await served.patch(path, 2, b"llo")).status == 204
    assert await served.staged(path) == b"hello"


async def test_a_database_that_hangs_is_not_waited_for_without_end(
    served_through: Served, database: DatabaseProxy
) -> None:
    """CORE-12"""
    served = served_through
    path = await served.create(5, BODY, b"he")
    database.frozen.clear()

    assert (await served.head(path)).status == 423

    database.frozen.set()
    database.take_away()
    database.bring_back()
    assert await served.offset(path) == 2


async def test_a_database_that_goes_away_during_a_body_costs_nobody_anything(
    served_through: Served, database: DatabaseProxy
) -> None:
    """CORE-20"""
    served = served_through
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))
    database.take_away()

    await connection.send(b"world")
    await eventually(lambda: any(body.received == 10 for body in served.bodies))
    database.bring_back()

    assert (await connection.response()).status == 204
    assert (await served.upload(path)).complete
    assert await served.staged(path) == b"helloworld"


@pytest.mark.parametrize("timing", [Timing(advance_retry_seconds=(0.05, 0.1))])
async def test_a_database_that_stays_away_leaves_the_bytes_to_be_sent_again(
    served_through: Served, database: DatabaseProxy
) -> None:
    """GEN-16"""
    served = served_through
    path = await served.create(10, BODY, b"he")
    connection = await served.begin(path, 2, b"llo", ("Content-Length", "8"))
    database.take_away()

    await connection.send(b"world")
    refused = await connection.response()

    assert refused.status == 503
    assert "upload-offset" not in refused.headers
    database.bring_back()
    assert await served.offset(path) == 2
    assert (await served.patch(path, 2, b"lloworld")).status == 204
    assert await served.staged(path) == b"helloworld"


async def test_an_advance_whose_answer_got_lost_is_not_made_twice(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-22 LOCK-08"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))
    advance, recorded = served.core.uploads.advance, []

    async def lossy(*arguments: Any, **keywords: Any) -> Any:
        upload = await advance(*arguments, **keywords)
        recorded.append(upload.state)
        raise DatabaseUnavailable

    monkeypatch.setattr(served.core.uploads, "advance", lossy)
    await connection.send(b"world")

    assert (await connection.response()).status == 204
    upload = await served.upload(path)
    assert upload.complete
    assert recorded == ["completed"]
    assert await served.count("events", upload, "upload.completed") == 1
    assert await served.count("jobs", upload, "transfer") == 1


async def test_a_checkpoint_whose_answer_got_lost_does_not_end_the_body(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-20 LOCK-08"""
    served = await serve(staging={"checkpoint_bytes": MIB})
    path = await served.create(4 * MIB)
    advance = served.core.uploads.advance
    lost: list[int] = []

    async def lossy(*arguments: Any, **keywords: Any) -> Any:
        upload = await advance(*arguments, **keywords)
        if not lost:
            lost.append(upload.offset)
            raise DatabaseUnavailable
        return upload

    monkeypatch.setattr(served.core.uploads, "advance", lossy)

    done = await served.patch(path, 0, b"x" * 4 * MIB)

    assert (done.status, done.headers["upload-offset"]) == (204, str(4 * MIB))
    assert 0 < lost[0] < 4 * MIB


async def test_a_checkpoint_may_fall_on_the_last_byte(serve: Serve) -> None:
    """CORE-13 CORE-19"""
    served = await serve(staging={"checkpoint_bytes": MIB})
    path = await served.create(MIB)

    done = await served.patch(path, 0, b"x" * MIB)

    assert (done.status, done.headers["upload-offset"]) == (204, str(MIB))
    upload = await served.upload(path)
    assert upload.complete
    assert await served.count("jobs", upload, "transfer") == 1


async def test_a_row_that_somebody_else_moved_tells_no_offset(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """GEN-16 LOCK-08"""
    served = await serve()
    path = await served.create(5)

    async def moved(*_arguments: Any, **_keywords: Any) -> NoReturn:
        raise OffsetConflict

    monkeypatch.setattr(served.core.uploads, "advance", moved)

    refused = await served.patch(path, 0, b"hello")

    assert (refused.status, "upload-offset" in refused.headers) == (423, False)


# --- the disk --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system of 4 MiB, or, where none may be mounted, files of at most 3 MiB."""
    directory.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=750", "tmpfs", str(directory)], capture_output=True
    )
    if mounted.returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=["disk", "files"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") if request.param == "disk" else small_files():
        yield tmp_path / "small"


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
async def test_a_full_disk_keeps_what_was_acknowledged(
    serve: Serve, full: Path, framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GEN-16"""
    served = await serve(staging={"directory": str(full), "checkpoint_bytes": MIB})
    monkeypatch.setattr(served.core.staging, "check_space", lambda _: None)
    path = await served.create(8 * MIB)
    assert (await served.patch(path, 0, b"a" * MIB)).status == 204
    connection = await served.connect()
    extra = ("Content-Length", str(7 * MIB)) if framing == "Content-Length" else (framing, "chunked")
    await connection.send_head("PATCH", path, patch_head(MIB, extra))
    for _ in range(7):
        with contextlib.suppress(ConnectionError):
            await connection.send(b"b" * MIB if framing == "Content-Length" else chunk(b"b" * MIB))

    refused = await connection.response()

    offset = await served.offset(path)
    assert (refused.status, refused.headers["upload-offset"]) == (507, str(offset))
    assert MIB <= offset <= 4 * MIB
    staged = await served.staged(path)
    assert staged[:offset] == (b"a" * MIB + b"b" * 7 * MIB)[:offset]
    if framing == "Content-Length":
        other = await served.create(5, BODY, b"") if offset < 4 * MIB else path
        assert (await served.request("DELETE", other)).status == 204


async def test_an_upload_goes_on_once_there_is_space_again(serve: Serve, tmp_path: Path) -> None:
    directory = tmp_path / "small"
    with small_files():
        served = await serve(staging={"directory": str(directory)})
        path = await served.create(5 * MIB)
        refused = await served.patch(path, 0, b"x" * 5 * MIB)
        offset = await served.offset(path)

    assert (refused.status, refused.headers["upload-offset"]) == (507, str(offset))
    assert (await served.patch(path, offset, b"x" * (5 * MIB - offset))).status == 204
    assert await served.staged(path) == b"x" * 5 * MIB


async def test_a_full_disk_during_creation_leaves_nothing(
    serve: Serve, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWU-05"""
    served = await serve(staging={"directory": str(full), "block_size": "8MiB", "buffer_budget": "64MiB"})
    monkeypatch.setattr(served.core.staging, "check_space", lambda _: None)

    small = await served.request("POST", "/files/", BODY | {"Upload-Length": str(6 * MIB)}, b"x" * 6 * MIB)
    large = await served.request("POST", "/files/", BODY | {"Upload-Length": str(9 * MIB)}, b"x" * 9 * MIB)

    assert [small.status, large.status] == [507, 507]
    async with served.working():
        await eventually(lambda: not list(served.core.staging.files()))
        if rows := await served.core.database.fetch("SELECT token_hash FROM uploads"):
            await removed(served, len(rows))
    assert await served.core.database.fetch("SELECT id FROM uploads WHERE state <> 'removed'") == []


async def removed(served: Served, count: int) -> None:
    """Wait until so many uploads are removed."""
    async with asyncio.timeout(30):
        while len(await served.core.database.fetch("SELECT id FROM uploads WHERE state = 'removed'")) < count:
            await asyncio.sleep(0.01)


async def test_a_checksummed_body_that_does_not_fit_is_discarded(
    serve: Serve, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CSUM-07"""
    served = await serve(staging={"directory": str(full)})
    monkeypatch.setattr(served.core.staging, "check_space", lambda _: None)
    path = await served.create(8 * MIB, BODY, b"he")

    refused = await served.patch(path, 2, b"x" * 6 * MIB, {"Upload-Checksum": "crc32 AAAAAA=="})

    assert (refused.status, refused.headers["upload-offset"]) == (507, "2")
    assert await served.offset(path) == 2


async def test_space_is_checked_before_the_body(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """CORE-28"""
    path = await served.create(5)

    def full(wanted: int) -> NoReturn:
        raise StagingFull

    monkeypatch.setattr(served.core.staging, "check_space", full)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", "5"), ("Expect", "100-continue")))

    response = await connection.response()

    assert (response.status, response.interim, response.headers["upload-offset"]) == (507, [], "0")


# --- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["short", "missing"])
async def test_acknowledged_bytes_that_are_lost_are_reported_and_never_made_up(served: Served, damage: str) -> None:
    """LOCK-08"""
    path = await served.create(10, BODY, b"hello")
    upload = await served.upload(path)
    file = served.core.staging.path(upload.id)
    os.truncate(file, 3) if damage == "short" else file.unlink()

    head = await served.head(path)
    patch = await served.patch(path, 5, b"world")

    assert [head.status, patch.status] == [500, 500]
    for response in (head, patch):
        assert "upload-offset" not in response.headers
    assert patch.body.startswith(b"ERR_STAGING_")
    assert (await served.upload(path)).error in {
        "The staged bytes of this upload are damaged.", "The staged bytes of this upload are missing.",
    }  # fmt: skip
    assert (await served.upload(path)).offset == 5
    assert not file.exists() or file.stat().st_size == 3
    assert (await served.request("DELETE", path)).status == 204


async def test_a_torn_tail_is_cut_off_before_anything_is_appended(served: Served) -> None:
    """LOCK-08 CSUM-09"""
    path = await served.create(10, BODY, b"hello")
    file = served.core.staging.path((await served.upload(path)).id)
    with file.open("ab") as opened:
        opened.write(b"WORLDANDMORE")

    assert (await served.patch(path, 5, b"wor")).status == 204

    assert await served.staged(path) == b"hellowor"


async def test_the_writer_is_raised_before_a_tail_is_cut_and_not_otherwise(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-08"""
    path = await served.create(20, BODY, b"hello")
    database, statements = served.core.database, []

    def counted(name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(database, name)

        async def run(sql: str, *arguments: object) -> Any:
            if "pg_notify" not in sql:  # is sent a moment later, by nobody's request
                statements.append(sql.split(maxsplit=1)[0])
            return await method(sql, *arguments)

        return run

    for name in ("fetchrow", "fetch", "execute"):
        monkeypatch.setattr(database, name, counted(name))

    assert (await served.patch(path, 5, b"world")).status == 204
    agreeing = statements.copy()
    with served.core.staging.path((await served.upload(path)).id).open("ab") as opened:
        opened.write(b"TAIL")
    statements.clear()
    assert (await served.patch(path, 10, b"again")).status == 204

    assert agreeing == ["SELECT", "WITH"]
    assert statements == ["SELECT", "SELECT", "UPDATE", "WITH"]
    assert (await served.upload(path)).writer == 1
    assert await served.staged(path) == b"helloworldagain"


async def test_a_tail_whose_offset_is_recorded_at_the_last_moment_is_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-08"""
    path = await served.create(20, BODY, b"hello")
    upload = await served.upload(path)
    with served.core.staging.path(upload.id).open("ab") as opened:
        opened.write(b"world")
    become_writer = served.core.uploads.become_writer

    async def late(upload_id: UploadId) -> Any:
        # The statement of a process that died was committed while this one waited for the row.
        await served.core.uploads.advance(upload, 10, upload.crc64nvme, expires_after_seconds=0)
        return await become_writer(upload_id)

    monkeypatch.setattr(served.core.uploads, "become_writer", late)
    refused = await served.patch(path, 5, b"WORLD")

    assert (refused.status, refused.headers["upload-offset"]) == (409, "10")
    assert await served.staged(path) == b"helloworld"


async def test_a_disk_that_fails_is_told_with_the_true_offset(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """GEN-16"""
    path = await served.create(10, BODY, b"hello")

    def broken(*_: Any) -> NoReturn:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(served.core.staging._writer, "write", broken)
    refused = await served.patch(path, 5, b"world")
    monkeypatch.undo()

    assert (refused.status, refused.headers["upload-offset"]) == (500, "5")
    assert b"Input/output" not in refused.body
    assert (await served.patch(path, 5, b"world")).status == 204


@pytest.fixture
def failing_sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the n-th fdatasync from now on fail, and no other."""
    real = os.fdatasync

    def fail_at(number: int) -> None:
        calls = itertools.count(1)

        def sync(fd: int) -> None:
            if next(calls) == number:
                raise OSError(5, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fdatasync", sync)

    return fail_at


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
@pytest.mark.parametrize("failing", [1, 2, 3])
async def test_after_a_failed_sync_only_what_the_last_good_one_covered_counts(
    serve: Serve, failing_sync: Callable[[int], None], framing: str, failing: int
) -> None:
    """GEN-16 CORE-20"""
    served = await serve(staging={"checkpoint_bytes": MIB})
    content = os.urandom(3 * MIB)
    path = await served.create(4 * MIB, BODY, b"")
    assert (await served.patch(path, 0, content[: MIB // 2])).status == 204
    failing_sync(failing)

    # A whole body: checkpoints come first, and the third sync is the last one.
    append = served.patch_chunked if framing == "Transfer-Encoding" else served.patch
    refused = await append(path, MIB // 2, content[MIB // 2 :])

    offset = int(refused.headers["upload-offset"])
    assert (refused.status, refused.body.split(b":")[0]) == (500, b"ERR_STORAGE")
    assert offset == (await served.upload(path)).offset == await served.offset(path)
    assert offset < 3 * MIB
    assert (offset > MIB // 2) == (failing > 1)
    assert served.core.metrics.registry.get_sample_value("tusd_py_sync_failures_total") == 1
    assert (await served.patch(path, offset, content[offset:])).status == 204
    assert await served.staged(path) == content


async def test_a_failed_sync_leaves_a_tail_that_the_next_open_cuts(
    served: Served, failing_sync: Callable[[int], None]
) -> None:
    """GEN-16 LOCK-08"""
    path = await served.create(10, BODY, b"hello")
    failing_sync(1)

    assert (await served.patch(path, 5, b"LOST")).status == 500
    assert await served.staged(path) == b"helloLOST"
    assert await served.offset(path) == 5
    assert (await served.patch(path, 5, b"wor")).status == 204

    assert await served.staged(path) == b"hellowor"


async def test_what_a_good_sync_covered_is_recorded_though_a_later_one_failed(
    serve: Serve, failing_sync: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-20 GEN-16"""
    served = await serve(staging={"checkpoint_bytes": MIB, "checkpoint_seconds": 60})
    path = await served.create(4 * MIB)
    advance, refusals = served.core.uploads.advance, [DatabaseUnavailable()]

    async def away_once(*arguments: Any, **keywords: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await advance(*arguments, **keywords)

    monkeypatch.setattr(served.core.uploads, "advance", away_once)
    failing_sync(2)

    refused = await served.patch(path, 0, b"x" * 4 * MIB)

    assert refused.status == 500
    assert MIB <= int(refused.headers["upload-offset"]) == await served.offset(path) < 4 * MIB


async def test_a_checksummed_body_whose_sync_failed_counts_for_nothing(
    served: Served, failing_sync: Callable[[int], None]
) -> None:
    """CSUM-07 GEN-16"""
    path = await served.create(10, BODY, b"he")
    failing_sync(1)

    refused = await served.patch(path, 2, b"llo", {"Upload-Checksum": "sha1 FetSFarWc0hhpaW7mXI5j96puNA="})

    assert (refused.status, refused.headers["upload-offset"]) == (500, "2")
    assert await served.offset(path) == 2


async def test_a_creation_whose_sync_failed_creates_nothing(
    served: Served, failing_sync: Callable[[int], None]
) -> None:
    """CWU-05 GEN-16"""
    failing_sync(1)

    refused = await served.request("POST", "/files/", BODY | {"Upload-Length": "5"}, b"hello")

    assert (refused.status, "location" in refused.headers) == (500, False)
    assert await served.core.database.fetch("SELECT id FROM uploads") == []
    assert list(served.core.staging.files()) == []


# --- the handler -----------------------------------------------------------------------------------


async def test_a_cancelled_handler_keeps_its_bytes(serve: Serve) -> None:
    """CORE-20 LOCK-09"""
    served = await serve(staging={"block_size": 65536})
    path = await served.create(10 * MIB)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", str(10 * MIB))))
    data = os.urandom(5 * MIB)
    await connection.send(data)
    await eventually(lambda: any(body.received == len(data) for body in served.bodies))

    served.cancel_handlers()
    await eventually(lambda: not served.bodies)
    await eventually(lambda: not served.web.uploads.locks._entries)

    assert await served.offset(path) == len(data)
    assert await served.staged(path) == data


async def test_a_handler_that_is_cancelled_while_a_block_is_written_leaves_no_hole(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-20"""
    served = await serve(staging={"block_size": 65536, "write_path": "page-cache"})
    path = await served.create(10 * MIB)
    go_on, writer = asyncio.Event(), served.core.staging._writer
    write, loop = writer.write, asyncio.get_running_loop()

    def slow(*arguments: Any) -> Any:
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        write(*arguments)

    monkeypatch.setattr(writer, "write", slow)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, ("Content-Length", str(10 * MIB))))
    data = os.urandom(300_000)
    # The first block is being written, and the second waits for it.
    for end in (100_000, 200_000, 300_000):
        await connection.send(data[end - 100_000 : end])
        await served.until_received(min(end, 200_000))
    served.cancel_handlers()
    for _ in range(5):
        await asyncio.sleep(0)
    go_on.set()
    await eventually(lambda: not served.bodies)

    offset = await served.offset(path)
    assert offset >= 65536
    assert await served.staged(path) == data[:offset]


async def test_a_handler_that_is_cancelled_while_it_opens_the_file_lets_it_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOCK-08"""
    path = await served.create(10, BODY, b"hello")
    go_on, loop = asyncio.Event(), asyncio.get_running_loop()
    area, opening = served.core.staging, asyncio.Event()
    open_file = area._open

    def slow(*arguments: Any, **keywords: Any) -> Any:
        opened = open_file(*arguments, **keywords)
        loop.call_soon_threadsafe(opening.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(10)
        return opened

    monkeypatch.setattr(area, "_open", slow)
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(5, ("Content-Length", "5")))
    await opening.wait()
    served.cancel_handlers()
    await eventually(lambda: not served.bodies)
    go_on.set()
    monkeypatch.undo()

    assert (await served.patch(path, 5, b"world")).status == 204


async def test_an_unforeseen_failure_is_an_answer_and_tells_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """GEN-12 CORE-01 CORE-12 AIO-10"""
    served = await serve(cors={"allow_origins": ["https://app.example"]})
    path = await served.create(5)

    async def broken(*_: Any, **__: Any) -> NoReturn:
        raise KeyError("secret detail")

    monkeypatch.setattr(served.core.uploads, "find_by_token", broken)
    patch = await served.patch(path, 0, b"hello", {"Origin": "https://app.example"})
    head = await served.head(path)

    assert (patch.status, patch.body) == (
        500,
        b"ERR_INTERNAL: Something went wrong in the server; the log knows what.\n",
    )
    assert patch.headers["tus-resumable"] == "1.0.0"
    assert patch.headers["access-control-allow-origin"] == "https://app.example"
    assert head.status == 423
    assert "secret detail" in "".join(capfd.readouterr())


async def test_an_unforeseen_failure_in_the_byte_loop_keeps_the_bytes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CORE-20"""
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Content-Length", "10"))
    body = next(iter(served.bodies))

    monkeypatch.setattr(body, "_rest", lambda _: 1 / 0)
    connection.abort()
    await eventually(lambda: not served.bodies)

    assert await served.offset(path) == 5


@pytest.mark.parametrize("error", [DatabaseUnavailable, StorageError])
async def test_a_head_never_fails_for_a_passing_reason(
    served: Served, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """CORE-12"""
    path = await served.create(5)

    async def failing(*_: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(served.core.uploads, "find_by_token", failing)

    assert (await served.head(path)).status == 423


async def test_malformed_http_is_refused_without_a_traceback(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """AIO-09 GEN-12"""
    for data in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PATCH /files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"PATCH /files/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PATCH /files/x HTTP/1.1\r\nBad Header : x\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ]:
        connection = await served.connect()
        await connection.send(data + b"\r\n\r\n")
        assert (await connection.response()).status in {400, 404, 412}

    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


async def test_a_malformed_chunk_ends_the_body_and_keeps_what_came_before(serve: Serve) -> None:
    """CORE-21 CORE-20"""
    served = await serve(limits={"idle_timeout": 0.3})
    path = await served.create(10)
    connection = await served.begin(path, 0, b"hello", ("Transfer-Encoding", "chunked"))

    await connection.send(b"nonsense\r\n")
    with pytest.raises(ConnectionLost):
        await connection.response()

    assert await served.offset(path) == 5


async def test_a_client_of_http_1_0_is_served(served: Served) -> None:
    """AIO-03"""
    connection = await served.connect()
    await connection.send(
        b"POST /files/ HTTP/1.0\r\nTus-Resumable: 1.0.0\r\nUpload-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )

    created = await connection.response()
    again = await served.request("HEAD", created.headers["location"], [TUS])

    assert (created.status, created.interim, again.status) == (201, [], 200)
