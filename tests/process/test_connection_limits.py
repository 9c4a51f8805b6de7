"""Connections of the real server when there is no room for more of them."""

from __future__ import annotations

import contextlib
import resource
import socket
import time

import psutil
import pytest

from tests.support.blocking_client import create, fetch, request
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until
from tests.support.server import Server, StartServer

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]


def flood(server: Server, count: int) -> list[socket.socket]:
    """Open connections and send nothing."""
    return [socket.create_connection((LOOPBACK, server.port), timeout=20) for _ in range(count)]


@pytest.mark.parametrize("event_loop", ["uvloop", "asyncio"])
def test_running_out_of_file_descriptors_is_told_and_passes(event_loop: str, start_server: StartServer) -> None:
    server = start_server({"server": {"event_loop": event_loop, "header_timeout": 60}})
    target = create(server.port, 10).headers["location"]
    process = psutil.Process(server.ready.http_pids[0])
    _, hard = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 20, hard))

    with contextlib.ExitStack() as opened:
        for connection in flood(server, 60):
            opened.enter_context(connection)
        wait_until(lambda: "accept_failed" in server.log_text(), deadline=30, what="the failure is logged")
        assert "Too many open files" in server.log_text()
        assert server.log_text().count("accept_failed") < 60
    wait_until(
        lambda: server.metrics()["tusd_py_accept_failures_total"] >= 1, deadline=30, what="the failure is counted"
    )

    assert request(server.port, "HEAD", target).status == 200
    assert server.ready.http_pids[0] == process.pid


def test_connections_that_say_nothing_make_room_for_those_who_do(start_server: StartServer) -> None:
    server = start_server({"server": {"header_timeout": 2}, "limits": {"max_connections": 20}})

    with contextlib.ExitStack() as opened:
        for number, connection in enumerate(flood(server, 60)):
            opened.enter_context(connection)
            if number % 2:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        assert fetch(f"{server.origin}/api/v1/uploads", timeout=60).status == 200
        # Three rounds of twenty are in front of it, each of which is given two seconds.
        assert time.monotonic() - began < 50
    assert "connections_full" in server.log_text()
    assert server.metrics()["tusd_py_header_timeouts_total"] >= 1


def test_the_operations_listener_does_not_say_what_it_is_made_of(start_server: StartServer) -> None:
    server = start_server()
    for data in (b"FROB / HTTP/1.1\r\n\r\n", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
        with socket.create_connection((LOOPBACK, server.operations_port), timeout=20) as connection:
            connection.sendall(data)
            received = b""
            while block := connection.recv(65536):
                received += block
        head = received.split(b"\r\n\r\n")[0]
        assert b"Server: tusd_py\r\n" in head + b"\r\n"
        assert b"aiohttp" not in head
