"""The benchmark's HTTP client: just enough HTTP/1.1 and tus, and as little work as possible for each request.

Requests are rendered once and sent as they are. The bodies of big uploads are one small buffer, sent over and
over: cheaper than `sendfile` for both ends (0.32 against 0.55 s of client CPU per GiB). Sockets do not block,
so that one thread can drive many (`loop.py`); `exchange` is for a single request that may be waited for.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from units import KIB, MIB

BODY: Final = memoryview(os.urandom(MIB))
"""What the bodies of big uploads are made of. Small enough to stay in a CPU's cache."""
CONNECT_SECONDS: Final = 10.0
OCTETS: Final = "Content-Type: application/offset+octet-stream"


class ServerClosedError(Exception):
    """The server closed the connection before it had answered."""


class UnexpectedAnswerError(Exception):
    """The server answered something else than what the request says it must."""


class Answer(NamedTuple):
    """One response: its head up to the last field's line break, the same in lower case, and its body."""

    head: bytes
    lowered: bytes
    body: bytes

    @property
    def status_line(self) -> str:
        return self.head.split(b"\r", 1)[0].decode("latin-1")

    def header(self, name: bytes) -> str:
        """Return a header field by its name in lower case; an empty string if there is none."""
        at = self.lowered.find(b"\r\n" + name + b":")
        if at < 0:
            return ""
        start = at + len(name) + 3
        return self.head[start : self.head.index(b"\r", start)].decode("latin-1").strip()


@dataclass(frozen=True, slots=True)
class Request:
    """One request, rendered: `head` is sent as it is, then `body_bytes` bytes of BODY, repeated."""

    head: bytes
    status: bytes
    expect: bytes = b""
    body_bytes: int = 0

    def is_answered_by(self, answer: Answer) -> bool:
        """Return whether this is the right answer: the status, and the field that matters."""
        return answer.lowered[9:12] == self.status and self.expect in answer.lowered


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The URL at which uploads are created; renders the requests of tus 1.0.0."""

    address: tuple[str, int]
    path: str

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        parts = urlsplit(url)
        return cls((parts.hostname or "127.0.0.1", parts.port or 80), parts.path)

    def create(self, length: int, body: bytes = b"") -> Request:
        """Return a creation, with the upload's first bytes if there are any."""
        fields = [f"Upload-Length: {length}", f"Content-Length: {len(body)}"]
        if body:
            fields.append(OCTETS)
        expect = b"upload-offset: %d\r" % len(body) if body else b"location:"
        return Request(self._render("POST", self.path, *fields) + body, b"201", expect)

    def append(self, path: str, size: int) -> Request:
        """Return a PATCH that sends a whole upload."""
        head = self._render("PATCH", path, "Upload-Offset: 0", OCTETS, f"Content-Length: {size}")
        return Request(head, b"204", b"upload-offset: %d\r" % size, size)

    def status(self, path: str, offset: int) -> Request:
        """Return a HEAD that must be answered with this offset."""
        return Request(self._render("HEAD", path), b"200", b"upload-offset: %d\r" % offset)

    def terminate(self, path: str) -> Request:
        return Request(self._render("DELETE", path), b"204")

    def get(self, path: str) -> Request:
        return Request(self._render("GET", path), b"200")

    def _render(self, method: str, path: str, *fields: str) -> bytes:
        host, port = self.address
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", "Tus-Resumable: 1.0.0", *fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Connection:
    """A keep-alive connection with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.socket = connect(address)
        self.request: Request | None = None
        self.started = 0.0
        self._unsent = memoryview(b"")
        self._unsent_body_bytes = 0
        self._received = b""

    def reconnect(self) -> None:
        """Replace a socket that the server has closed, or that is of no more use."""
        self.socket.close()
        self.socket = connect(self._address)
        self._received = b""

    def begin(self, request: Request) -> None:
        """Take on a request; `send` sends it."""
        self.request = request
        self._unsent = memoryview(request.head)
        self._unsent_body_bytes = request.body_bytes
        self._received = b""
        self.started = time.perf_counter()

    def send(self) -> bool:
        """Send as much as the socket takes; return whether the whole request has gone."""
        try:
            while self._unsent:
                more = socket.MSG_MORE if self._unsent_body_bytes else 0
                self._unsent = self._unsent[self.socket.send(self._unsent, more) :]
            while self._unsent_body_bytes:
                self._unsent_body_bytes -= self.socket.send(self._next_of_body())
        except BlockingIOError:
            return False
        except ConnectionError:  # The answer, or its absence, is what counts: receive() will see it.
            self._unsent, self._unsent_body_bytes = memoryview(b""), 0
        return True

    @property
    def is_sending(self) -> bool:
        """Return whether a part of the request has not gone yet."""
        return bool(self._unsent or self._unsent_body_bytes)

    def receive(self) -> Answer | None:
        """Return the answer once all of it is here.

        Raises:
            ServerClosedError: the connection ended first.
        """
        assert self.request is not None
        try:
            data = self.socket.recv(64 * KIB)
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise ServerClosedError from error
        if not data:
            raise ServerClosedError
        self._received += data
        return parse_answer(self._received, is_head=self.request.head.startswith(b"HEAD "))

    def _next_of_body(self) -> memoryview:
        assert self.request is not None
        at = (self.request.body_bytes - self._unsent_body_bytes) % len(BODY)
        return BODY[at : at + self._unsent_body_bytes]


def connect(address: tuple[str, int]) -> socket.socket:
    """Open a socket that does not block from here on."""
    opened = socket.create_connection(address, timeout=CONNECT_SECONDS)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.settimeout(0)
    return opened


def parse_answer(received: bytes, *, is_head: bool) -> Answer | None:
    """Return the response in these bytes; None as long as it is not complete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[: end + 2]
    lowered = head.lower()
    length = 0 if is_head else content_length(lowered)
    body = received[end + 4 : end + 4 + length]
    return Answer(head, lowered, body) if len(body) == length else None


def content_length(lowered: bytes) -> int:
    """Return how long the body of a response is, by its head in lower case."""
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0 or lowered[9:12] == b"204":
        return 0
    return int(lowered[at + 17 : lowered.index(b"\r", at + 17)])


def exchange(address: tuple[str, int], request: Request, body: Iterable[bytes] = (), *, seconds: float) -> Answer:
    """Send one request on a connection of its own, with these bytes as its body, and wait for the answer.

    Raises:
        UnexpectedAnswerError: the answer is not the right one.
    """
    connection = Connection(address)
    with connection.socket as opened:
        opened.settimeout(seconds)
        connection.begin(request)
        opened.sendall(request.head)
        for piece in body:
            opened.sendall(piece)
        while (answer := connection.receive()) is None:
            pass
    if not request.is_answered_by(answer):
        raise UnexpectedAnswerError(answer.status_line)
    return answer
