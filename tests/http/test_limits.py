"""Limits count bytes, not promises."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from pathlib import Path

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import OFFSET_TYPE, TUS, ConnectionLost, chunk, chunked, patch_head
from tusd_py.http.application import READ_BUFFER_BYTES
from tusd_py.http.request_body import FEW_BODIES, WIDE_BUFFER_BYTES
from tusd_py.uploads.service import Timing

BODY = {"Content-Type": OFFSET_TYPE}
DEFER = {"Upload-Defer-Length": "1"}


async def test_the_maximum_counts_bytes_and_not_headers(serve: Serve) -> None:
    """DEF-06 CORE-06 AIO-08"""
    served = await serve(limits={"max_size": 1_000_000})
    path = await served.create(None, DEFER)

    streamed = await served.patch_chunked(path, 0, *[b"x" * 100_000] * 11)

    assert streamed.status == 413
    assert await served.offset(path) <= 1_000_000
    assert len(await served.staged(path)) <= 1_000_000


async def test_no_limit_of_the_library_bounds_a_body(served: Served) -> None:
    """AIO-08"""
    path = await served.create(3_000_000)

    assert (await served.patch(path, 0, b"x" * 3_000_000)).status == 204


@pytest.mark.parametrize(("size", "status"), [(100, 201), (101, 400)])
async def test_metadata_is_bounded(serve: Serve, size: int, status: int) -> None:
    """CRE-08"""
    served = await serve(limits={"max_metadata": 100})

    response = await served.request("POST", "/files/", {"Upload-Length": "1", "Upload-Metadata": "a" * size})

    assert response.status == status


async def test_a_body_below_the_minimum_rate_is_let_go_and_kept(serve: Serve) -> None:
    """CORE-21"""
    served = await serve(timing=Timing(rate_window_seconds=0.3), limits={"min_rate": 1000})
    path = await served.create(1000)
    connection = await served.begin(path, 0, b"x", ("Content-Length", "1000"))

    async def drip() -> None:
        while not connection.reader.at_eof():
            await connection.send(b"x")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    with pytest.raises(ConnectionLost):
        await connection.response()
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)

    offset = await served.offset(path)
    assert 1 < offset < 1000
    assert await served.staged(path) == b"x" * offset


async def test_the_last_byte_of_a_slow_body_counts(serve: Serve) -> None:
    """CORE-21 CORE-25"""
    served = await serve(timing=Timing(rate_window_seconds=0.2), limits={"min_rate": 1000})
    path = await served.create(5)
    connection = await served.begin(path, 0, b"hello", ("Transfer-Encoding", "chunked"))
    await asyncio.sleep(0.3)

    await connection.send(chunked())

    assert (await connection.response()).status == 204


async def test_a_quick_body_is_quick_enough(serve: Serve) -> None:
    """CORE-25"""
    served = await serve(timing=Timing(rate_window_seconds=0.000001), limits={"min_rate": 1})
    path = await served.create(3_000_000)

    assert (await served.patch(path, 0, b"x" * 3_000_000)).status == 204


async def test_one_client_has_only_so_many_bodies(serve: Serve) -> None:
    served = await serve(limits={"max_connections_per_client": 2})
    paths = [await served.create(10) for _ in range(3)]
    open_ones = [await served.begin(path, 0, b"he", ("Content-Length", "10")) for path in paths[:2]]

    refused = await served.patch(paths[2], 0, b"hello")
    head = await served.head(paths[2])

    assert (refused.status, refused.headers["retry-after"]) == (423, "1")
    assert head.status == 200
    open_ones[0].abort()
    await eventually(lambda: len(served.bodies) == 1)
    assert (await served.patch(paths[2], 0, b"hello")).status == 204
    open_ones[1].abort()
    await eventually(lambda: not served.web.clients)


async def test_clients_are_told_apart_by_what_a_trusted_proxy_says(serve: Serve) -> None:
    """CRE-07"""
    served = await serve(limits={"max_connections_per_client": 1}, server={"trusted_proxies": ["127.0.0.1"]})
    first, second = await served.create(10), await served.create(10)
    await served.begin(first, 0, b"he", ("Content-Length", "10"), ("X-Forwarded-For", "192.0.2.1"))

    same = await served.patch(second, 0, b"x", {"X-Forwarded-For": "192.0.2.1"})
    other = await served.patch(second, 0, b"x", {"X-Forwarded-For": "192.0.2.2"})

    assert [same.status, other.status] == [423, 204]


async def test_space_that_is_kept_free_is_not_given_away(serve: Serve, tmp_path: Path) -> None:
    served = await serve(staging={"reserve": disk_bytes(tmp_path) - 10})

    refused = await served.request("POST", "/files/", {"Upload-Length": "5"})

    assert (refused.status, refused.headers["retry-after"]) == (507, "1")


def disk_bytes(directory: Path) -> int:
    """Size of the file system."""
    facts = os.statvfs(directory)
    return facts.f_blocks * facts.f_frsize


async def test_a_length_that_the_disk_could_never_hold_is_too_large(served: Served, tmp_path: Path) -> None:
    most = disk_bytes(tmp_path) - served.config.staging.reserve
    deferred = await served.create(headers={"Upload-Defer-Length": "1"})
    partial = {"Content-Type": "application/partial-upload", "Tus-Resumable": None}

    created = await served.request("POST", "/files/", {"Upload-Length": str(most + 1)})
    may_fit_later = await served.request("POST", "/files/", {"Upload-Length": str(most)})
    declared = await served.patch(deferred, 0, b"", {"Upload-Length": str(most + 1)})
    said_complete = {"Tus-Resumable": None, "Upload-Complete": "?0", "Upload-Length": str(most + 1)}
    in_the_other_dialect = await served.request("POST", "/files/", said_complete | partial)

    assert (created.status, "location" in created.headers, "retry-after" in created.headers) == (413, False, False)
    assert created.body.startswith(b"ERR_MAX_SIZE_EXCEEDED")
    assert may_fit_later.status == 507
    assert (declared.status, declared.headers["upload-offset"]) == (413, "0")
    assert (await served.head(deferred)).headers["upload-defer-length"] == "1"
    assert in_the_other_dialect.status == 413
    assert in_the_other_dialect.headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize(("beyond", "status"), [(1, 413), (0, 507)])
async def test_a_body_for_an_unknown_length_is_measured_against_the_disk(
    served: Served, tmp_path: Path, beyond: int, status: int
) -> None:
    """CORE-28"""
    most = disk_bytes(tmp_path) - served.config.staging.reserve
    path = await served.create(headers={"Upload-Defer-Length": "1"})
    announced = ("Content-Length", str(most + beyond))
    connection = await served.connect()
    await connection.send_head("PATCH", path, patch_head(0, announced, ("Expect", "100-continue")))

    response = await connection.response()

    assert (response.status, response.interim, response.headers["upload-offset"]) == (status, [], "0")


@pytest.mark.parametrize("framing", ["Content-Length", "Transfer-Encoding"])
async def test_no_body_is_buffered(serve: Serve, framing: str) -> None:
    served = await serve(staging={"write_path": "page-cache"})
    size = 96 * 2**20
    path = await served.create(size)
    connection = await served.connect()
    tracemalloc.start()
    try:
        extra = ("Content-Length", str(size)) if framing == "Content-Length" else (framing, "chunked")
        await connection.send_head("PATCH", path, patch_head(0, extra))
        piece = b"x" * 2**20
        for _ in range(size // len(piece)):
            await connection.send(piece if framing == "Content-Length" else chunk(piece))
        if framing == "Transfer-Encoding":
            await connection.send(chunked())
        response = await connection.response()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert response.status == 204
    # The client of this test, which runs in the same process, holds a piece or two of it.
    assert peak < 16 * 2**20


async def test_many_bodies_share_the_budget(serve: Serve) -> None:
    served = await serve(staging={"buffer_budget": "1MiB", "block_size": "1MiB"})
    budget = served.web.uploads.budget
    path = [await served.create(2_000_000) for _ in range(5)]

    bodies = [await served.begin(one, 0, b"x" * 10, ("Content-Length", "2000000")) for one in path]

    assert budget.block_bytes == 2**20 // 10
    for connection in bodies:
        connection.abort()
    await eventually(lambda: not served.bodies)
    assert budget.block_bytes == 2**19


async def test_only_a_few_bodies_have_the_wide_buffer(serve: Serve) -> None:
    served = await serve()
    paths = [await served.create(2_000_000) for _ in range(FEW_BODIES + 2)]

    bodies = [await served.begin(path, 0, b"x" * 10, ("Content-Length", "2000000")) for path in paths]

    limits = sorted(body._content.get_read_buffer_limits() for body in served.bodies)
    narrow, wide = (READ_BUFFER_BYTES, 2 * READ_BUFFER_BYTES), (WIDE_BUFFER_BYTES, 2 * WIDE_BUFFER_BYTES)
    assert limits == [narrow] * 2 + [wide] * FEW_BODIES
    for connection in bodies:
        connection.abort()
    await eventually(lambda: not served.bodies)


async def test_a_small_post_holds_its_share_of_the_budget(serve: Serve) -> None:
    served = await serve(staging={"buffer_budget": "1MiB", "block_size": "1MiB"})
    connection = await served.connect()
    await connection.send_head(
        "POST", "/files/", [TUS, ("Upload-Length", "10"), ("Content-Length", "10"), *BODY.items()]
    )
    await eventually(lambda: served.web.uploads.budget._active == 1)

    connection.abort()
    await eventually(lambda: served.web.uploads.budget._active == 0)
