"""The HTTP client of tests/support/http_client.py without an event loop.

A `BlockingConnection` stalls amid a body, and sees exactly how a connection ends.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urljoin, urlsplit

import psutil

from tests.support import http_client
from tests.support.http_client import BLOCK_BYTES, OFFSET_TYPE, Response, ResponseParser, encode_head
from tests.support.ports import LOOPBACK
from tests.support.process import wait_until

TUS = dict([http_client.TUS])
OCTETS = {"Content-Type": OFFSET_TYPE}
TCP_CLOSE = 7  # the first byte of Linux's struct tcp_info is the state
MOST_REDIRECTS = 5


class BlockingConnection:
    """One TCP connection, to a server on the loopback address unless it is told another."""

    def __init__(self, port: int, timeout: float = 10, *, host: str = LOOPBACK) -> None:
        self.port = port
        self._host = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout=timeout)
        self._parser = ResponseParser()

    def send(self, data: bytes, *, deadline: float = 10) -> None:
        """Send, and wait until the server's process has read it all: not one byte is on its way.

        Raises:
            ConnectionError: the connection ended before.
        """
        self._socket.sendall(data)
        wait_until(self._was_read, deadline=deadline, what="the bytes were read")

    def send_until_answered(self, most: int) -> int:
        """Send zeros as fast as they are taken, up to `most`, until an answer comes; return how many."""
        block, sent = bytes(64 * 1024), 0
        while sent < most and not select.select([self._socket], [], [], 0)[0]:
            _, writable, _ = select.select([self._socket], [self._socket], [], 10)
            if writable:
                sent += self._socket.send(block[: most - sent])
        return sent

    def send_head(self, method: str, target: str, headers: dict[str, str]) -> None:
        """Send a tus request without its body."""
        self.send(encode_head(method, target, {**TUS, **headers}.items(), host=self._host))

    def request(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
        """Send a whole tus request and return its response."""
        return self.exchange(method, target, {**TUS, **(headers or {})}, body)

    def exchange(self, method: str, target: str, headers: dict[str, str], body: bytes = b"") -> Response:
        """Send a whole request with these headers and no others, and return its response."""
        length = {"Content-Length": str(len(body))} if body or method in {"POST", "PATCH"} else {}
        self._socket.sendall(encode_head(method, target, {**headers, **length}.items(), host=self._host))
        self._socket.sendall(body)
        return self.read_response(method)

    def begin_patch(self, target: str, *, offset: int, length: int) -> None:
        """Begin a PATCH of `length` bytes and wait until the server asks for them.

        `100 Continue` is sent only once the upload is locked for this request, so afterwards the
        caller knows for sure that it is the holder.
        """
        patch = {
            **OCTETS,
            "Upload-Offset": str(offset),
            "Content-Length": str(length),
            "Expect": "100-continue",
        }
        self.send_head("PATCH", target, patch)
        interim = self.read_response()
        assert interim.status == 100, f"100 Continue was expected, not {interim}"

    def read_response(self, method: str = "GET") -> Response:
        """Read the next response to a request of this method, interim ones too.

        Raises:
            ConnectionError: the connection ended instead.
        """
        while (response := self._parser.next(method)) is None:
            self._parser.feed(self._socket.recv(BLOCK_BYTES))
        return response

    def read_to_end(self, deadline: float) -> list[Response]:
        """Return what the server still says before it ends the connection.

        Raises:
            TimeoutError: it has not ended the connection in time.
        """
        end = time.monotonic() + deadline
        responses: list[Response] = []
        try:
            while True:
                self._socket.settimeout(max(0.001, end - time.monotonic()))
                responses.append(self.read_response())
        except ConnectionError:
            return responses

    def owner(self, pids: tuple[int, ...], *, deadline: float = 5) -> int:
        """Return which of the processes has accepted this connection."""
        local = self._socket.getsockname()[1]

        def accepted_by() -> int | None:
            for pid in pids:
                for connection in psutil.Process(pid).net_connections("tcp4"):
                    if connection.raddr and connection.raddr.port == local and connection.laddr.port == self.port:
                        return pid
            return None

        return wait_until(accepted_by, deadline=deadline, what=f"one of {pids} has accepted the connection")

    def close(self) -> None:
        self._socket.close()

    def _was_read(self) -> bool:
        if self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE:
            raise ConnectionResetError("the connection ended before the bytes were read")
        unsent = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
        return unsent == 0 and self._unread_at_the_server() == 0

    def _unread_at_the_server(self) -> int | None:
        """Return the receive queue of the other end, a socket of this machine; None if there is none."""
        local_port = self._socket.getsockname()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _number, local, remote, _state, queues, *_rest = line.split()
            if int(local[-4:], 16) == self.port and int(remote[-4:], 16) == local_port:
                return int(queues.split(":")[1], 16)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def request(port: int, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
    """Send one tus request on a connection of its own."""
    with BlockingConnection(port) as connection:
        return connection.request(method, target, headers, body)


def create(port: int, length: int, *, target: str = "/files/") -> Response:
    """Create an upload; its URL path is the `location` header of the response."""
    created = request(port, "POST", target, {"Upload-Length": str(length)})
    assert created.status == 201, created
    return created


def fetch(
    url: str,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    *,
    timeout: float = 30,
    redirects: int = MOST_REDIRECTS,
) -> Response:
    """Send one request to a URL, with these headers and no others, and return its response, whatever its status.

    Redirects of GET and HEAD are followed, up to so many.
    """
    parts = urlsplit(url)
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    with BlockingConnection(parts.port or 80, timeout, host=parts.hostname or LOOPBACK) as connection:
        response = connection.exchange(method, target, {**(headers or {}), "Connection": "close"}, body)
    if redirects and method in {"GET", "HEAD"} and "location" in response.headers and 300 <= response.status < 400:
        return fetch(
            urljoin(url, response.headers["location"]), method, headers, timeout=timeout, redirects=redirects - 1
        )
    return response


def get(url: str) -> tuple[int, bytes]:
    """Return status and body of a URL, after all redirects."""
    response = fetch(url)
    return response.status, response.body


def upload_whole(url: str, body: bytes) -> tuple[str, str]:
    """Upload in one POST; return the tus URL's path and the public id."""
    response = fetch(url, "POST", {**TUS, **OCTETS, "Upload-Length": str(len(body))}, body)
    assert response.status == 201, response
    return response.headers["location"], response.headers["upload-id"]
