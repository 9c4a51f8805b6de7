"""A blocking client by hand: it stalls amid a body, and sees exactly how a connection ends."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.ports import LOOPBACK
from tests.support.process import wait_until

TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {"Content-Type": "application/offset+octet-stream"}
TCP_CLOSE = 7  # the first byte of Linux's struct tcp_info is the state


@dataclass(frozen=True)
class Response:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def offset(self) -> int:
        """Its `Upload-Offset`."""
        return int(self.headers["upload-offset"])


class RawConnection:
    """One TCP connection to a server on the loopback address."""

    def __init__(self, port: int, timeout: float = 10) -> None:
        self.port = port
        self._socket = socket.create_connection((LOOPBACK, port), timeout=timeout)
        self._received = b""

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
        """Send a request without its body."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {LOOPBACK}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in {**TUS, **headers}.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def request(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
        """Send a whole request and return what came back."""
        length = {"Content-Length": str(len(body))} if body or method in {"POST", "PATCH"} else {}
        self.send_head(method, target, {**(headers or {}), **length})
        self._socket.sendall(body)
        return self.read_response(head_only=method == "HEAD")

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

    def read_response(self, *, head_only: bool = False) -> Response:
        """Read one answer.

        Raises:
            ConnectionError: the connection ended instead.
        """
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, self._received = self._received.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _colon, value in fields}
        length = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return Response(int(first.split(" ")[1]), headers, body)

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
        """Close it."""
        self._socket.close()

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._received += data

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
    """Send one request on a connection of its own."""
    with RawConnection(port) as connection:
        return connection.request(method, target, headers, body)


def create(port: int, length: int, *, target: str = "/files/") -> Response:
    """Create an upload; its URL path is the `location` header of the answer."""
    created = request(port, "POST", target, {"Upload-Length": str(length)})
    assert created.status == 201, created
    return created
