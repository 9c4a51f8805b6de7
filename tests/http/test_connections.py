"""Connections before there is a request on them: how many, for how long, and what is no HTTP at all."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.http.served import Serve, Served
from tests.http.support import eventually
from tests.support.http_client import TUS, Connection, ConnectionLost

HEAD = b"HEAD /files/x HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\n"
SLOW: dict[str, Any] = {"server": {"header_timeout": 0.5, "keepalive_timeout": 60}}


async def drip(connection: Connection, seconds: float) -> None:
    """Send a header byte by byte for ever, as fast as it takes to seem alive."""
    end = time.monotonic() + seconds
    await connection.send(HEAD + b"X-Slow: ")
    while time.monotonic() < end and not connection.reader.at_eof():
        try:
            await connection.send(b"x")
        except ConnectionError:
            return
        await asyncio.sleep(0.05)


async def test_headers_that_drip_are_not_waited_for(serve: Serve) -> None:
    """AIO-04"""
    served = await serve(**SLOW)
    connection = await served.connect()

    dripping = asyncio.create_task(drip(connection, 30))
    answer = await connection.response("GET", seconds=25)

    assert answer.status == 408
    assert await connection.closed() == b""
    await dripping
    assert served.web.metrics.header_timeouts._value.get() == 1
    assert served.server._runner.connection_server.connection_count == 0


async def test_the_headers_of_a_second_request_are_not_waited_for_either(serve: Serve) -> None:
    """AIO-04"""
    served = await serve(**SLOW)
    connection = await served.connect()
    assert (await connection.request("HEAD", "/files/x", [TUS])).status == 404

    # Longer than the headers may take: between requests the keep-alive's time holds.
    await asyncio.sleep(1)
    assert (await connection.request("HEAD", "/files/x", [TUS])).status == 404
    dripping = asyncio.create_task(drip(connection, 30))

    assert (await connection.response("GET", seconds=25)).status == 408
    await dripping


async def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(serve: Serve) -> None:
    """AIO-04"""
    served = await serve(**SLOW)
    connection = await served.connect()

    assert await connection.closed(seconds=25) == b""
    assert served.web.metrics.header_timeouts._value.get() == 0


async def test_a_body_may_take_longer_than_the_headers(serve: Serve) -> None:
    """CORE-21"""
    served = await serve(**SLOW)
    path = await served.create(20)
    connection = await served.begin(path, 0, b"x", ("Content-Length", "20"))

    for _ in range(19):
        await connection.send(b"x")
        await asyncio.sleep(0.06)

    assert (await connection.response("PATCH")).headers["upload-offset"] == "20"


async def test_whoever_comes_when_it_is_full_waits_and_is_served(serve: Serve) -> None:
    """DEF-06"""
    served = await serve(limits={"max_connections": 2}, server={"keepalive_timeout": 60})
    first, second = await served.connect(), await served.connect()
    for connection in (first, second):
        assert (await connection.request("HEAD", "/files/x", [TUS])).status == 404

    third = await served.connect()
    await third.send(HEAD + b"\r\n")
    with pytest.raises(TimeoutError):
        await third.response("HEAD", seconds=0.5)
    assert (await first.request("HEAD", "/files/x", [TUS])).status == 404
    assert served.server._runner.connection_server.connection_count == 2
    second.abort()

    assert (await third.response("HEAD")).status == 404


async def test_a_server_that_is_full_still_stops(serve: Serve) -> None:
    served = await serve(limits={"max_connections": 1})
    first, second = await served.connect(), await served.connect()
    assert (await first.request("HEAD", "/files/x", [TUS])).status == 404
    await eventually(lambda: served.server._listeners[0]._pause is not None)

    await served.stop(abort=False)

    with pytest.raises((ConnectionLost, ConnectionError)):
        await second.request("HEAD", "/files/x", [TUS])


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"FROB /files/very-secret-token HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PATCH /files/very-secret-token HTTP/1.1\r\nBad Header : x\r\n\r\n",
        b"PATCH /files/very-secret-token HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /files/very-secret-token?" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /files/x HTTP/1.1\r\nX-Long: very-secret-token" + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /files/x HTTP/1.1\r\n" + b"X-Many: very-secret-token\r\n" * 200 + b"\r\n",
    ],
)
async def test_what_is_no_http_is_answered_in_our_own_words(
    served: Served, capfd: pytest.CaptureFixture[str], data: bytes
) -> None:
    """AIO-09 GEN-12"""
    connection = await served.connect()
    await connection.send(data)
    answer = await connection.response()

    assert answer.status == 400
    assert answer.body == b"ERR_BAD_REQUEST: The request is not valid HTTP.\n"
    assert answer.headers["server"] == "tusd_py"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    logged = "".join(capfd.readouterr())
    assert not [word for word in ("python", "aiohttp") if word in str(answer).lower()]
    assert "very-secret" not in logged + str(answer)
    assert "malformed_request" in logged
