"""The load generator: one cheap process that speaks just enough HTTP/1.1 to drive a tus server.

One thread, one epoll, non-blocking sockets. The bodies of big uploads are one small buffer sent over and
over (cheaper, for both ends, than `sendfile`: 0.32 against 0.55 s of client CPU per GiB); the small requests
are rendered once and sent as they are.

It is run by `upload.py` and talks to it over pipes, so that creating uploads, measuring and removing
are apart: it prints `ready`, waits for `go`, prints `done` the moment the last answer is in, then one line
of JSON, waits for `clean` (or the end of its input), removes what it created and ends.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final
from urllib.parse import urlsplit

KIB: Final = 1024
MIB: Final = 1024 * KIB
SMALL_BYTES: Final = 10 * KIB
"""Size of a small upload, and of what each upload asked for by HEAD has received."""

BODY: Final = memoryview(os.urandom(MIB))
"""What the bodies of big uploads are made of. Small enough to stay in a CPU's cache."""

UPLOADS_PER_CONNECTION: Final = 4
"""How many uploads a HEAD connection cycles through. None is shared: a HEAD takes the upload's lock."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, rendered: `head` is sent as it is, then `body_bytes` bytes of BODY, repeated."""

    head: bytes
    status: bytes
    expect: bytes = b""
    body_bytes: int = 0


@dataclass(slots=True)
class Tally:
    """What one run of the loop saw."""

    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0

    def fail(self, what: str) -> None:
        """Count an answer that was not the expected one."""
        self.failures[what] = self.failures.get(what, 0) + 1


class ServerClosedError(Exception):
    """The server closed the connection before it had answered."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where the uploads are created."""

    address: tuple[str, int]
    path: str

    @classmethod
    def parse(cls, url: str) -> Server:
        """Take an http:// URL apart."""
        parts = urlsplit(url)
        return cls((parts.hostname or "127.0.0.1", parts.port or 80), parts.path)

    def render(self, method: str, path: str, *fields: str) -> bytes:
        """Render a request head for this server."""
        host, port = self.address
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", "Tus-Resumable: 1.0.0", *fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def create(self, length: int, body: bytes = b"") -> Request:
        """Build a creation, with the upload's first bytes when there are any."""
        fields = [f"Upload-Length: {length}", f"Content-Length: {len(body)}"]
        if body:
            fields.append("Content-Type: application/offset+octet-stream")
        expect = b"upload-offset: %d\r" % len(body) if body else b"location:"
        return Request(self.render("POST", self.path, *fields) + body, b"201", expect)

    def append(self, path: str, size: int) -> Request:
        """Build a PATCH that sends a whole upload."""
        head = self.render(
            "PATCH",
            path,
            "Upload-Offset: 0",
            "Content-Type: application/offset+octet-stream",
            f"Content-Length: {size}",
        )
        return Request(head, b"204", b"upload-offset: %d\r" % size, size)

    def status(self, path: str, offset: int) -> Request:
        """Build a HEAD that must be answered with this offset."""
        return Request(self.render("HEAD", path), b"200", b"upload-offset: %d\r" % offset)

    def terminate(self, path: str) -> Request:
        """Build a DELETE."""
        return Request(self.render("DELETE", path), b"204")


class Connection:
    """A keep-alive connection with at most one request under way."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.socket = self.connect()
        self.request: Request | None = None
        self.started = 0.0
        self.unsent = memoryview(b"")
        self.unsent_body_bytes = 0
        self.received = b""

    def connect(self) -> socket.socket:
        """Open a socket; it does not block from here on."""
        opened = socket.create_connection(self.address, timeout=10)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.settimeout(0)
        return opened

    def reconnect(self) -> None:
        """Replace a socket that the server has closed, or that is of no more use."""
        self.socket.close()
        self.socket = self.connect()
        self.received = b""

    def begin(self, request: Request) -> None:
        """Start a request."""
        self.request = request
        self.unsent = memoryview(request.head)
        self.unsent_body_bytes = request.body_bytes
        self.received = b""
        self.started = time.perf_counter()

    def send(self) -> bool:
        """Send as much as the socket takes; true when the whole request has gone."""
        try:
            while self.unsent:
                more = socket.MSG_MORE if self.unsent_body_bytes else 0
                self.unsent = self.unsent[self.socket.send(self.unsent, more) :]
            while self.unsent_body_bytes:
                self.unsent_body_bytes -= self.socket.send(self.next_of_body())
        except BlockingIOError:
            return False
        except ConnectionError:  # The answer, or its absence, is what counts: receive() will see it.
            self.unsent, self.unsent_body_bytes = memoryview(b""), 0
        return True

    def next_of_body(self) -> memoryview:
        """Return the next bytes of the body."""
        assert self.request is not None
        at = (self.request.body_bytes - self.unsent_body_bytes) % len(BODY)
        return BODY[at : at + self.unsent_body_bytes]

    def receive(self) -> bytes | None:
        """Return the head of the answer, its last line break included, once the whole answer is here.

        Raises:
            ServerClosedError: the connection ended first.
        """
        try:
            data = self.socket.recv(64 * KIB)
        except BlockingIOError:
            return None
        except ConnectionError as error:
            raise ServerClosedError from error
        if not data:
            raise ServerClosedError
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = self.received[: end + 2]
        return head if len(self.received) >= end + 4 + self.answer_bytes(head.lower()) else None

    def answer_bytes(self, head: bytes) -> int:
        """Return how long the answer's body is, by its head in lower case."""
        assert self.request is not None
        at = head.find(b"\r\ncontent-length:")
        if at < 0 or head[9:12] == b"204" or self.request.head.startswith(b"HEAD "):
            return 0
        return int(head[at + 17 : head.index(b"\r", at + 17)])


NextRequest = Callable[[int], Request | None]
"""Hands out the next request of the connection of that index; None when it has no more."""

UploadStatus = Callable[[bytes], None]
"""Takes the head of each answer."""


class Loop:
    """Drives several connections until none has a next request."""

    def __init__(self, server: Server, connections: int) -> None:
        self.connections = [Connection(server.address) for _ in range(connections)]
        self.epoll = select.epoll()
        self.index_of: dict[int, int] = {}
        self.tally = Tally()
        for index in range(connections):
            self.register(index)

    def register(self, index: int) -> None:
        """ChangeNotifier a connection's socket for answers."""
        descriptor = self.connections[index].socket.fileno()
        self.index_of[descriptor] = index
        self.epoll.register(descriptor, select.EPOLLIN)

    def run(self, next_request: NextRequest, seen: UploadStatus = lambda _: None) -> Tally:
        """Send each connection's next request as soon as its last is answered; return what was seen."""
        self.tally = Tally()
        busy = sum(self.start(index, next_request) for index in range(len(self.connections)))
        while busy:
            for descriptor, events in self.epoll.poll(60) or self.give_up():
                index = self.index_of[descriptor]
                if events & ~select.EPOLLOUT:
                    busy -= self.answered(index, seen) and not self.start(index, next_request)
                elif self.connections[index].send():
                    self.epoll.modify(descriptor, select.EPOLLIN)
        return self.tally

    def give_up(self) -> list[tuple[int, int]]:
        """End the run: nothing has moved for a minute."""
        raise TimeoutError("the server has neither read nor answered for 60 s")

    def start(self, index: int, next_request: NextRequest) -> bool:
        """Begin the connection's next request; false when there is none."""
        request = next_request(index)
        if request is None:
            return False
        connection = self.connections[index]
        connection.begin(request)
        if not connection.send():
            self.epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        return True

    def answered(self, index: int, seen: UploadStatus) -> bool:
        """Take in what has arrived; true when the request under way is over, well or badly."""
        connection = self.connections[index]
        try:
            head = connection.receive()
        except ServerClosedError:
            return self.closed(index)
        if head is None or connection.request is None:
            return False
        lowered = head.lower()
        self.check(connection, connection.request, lowered)
        seen(head)
        cut_short = bool(connection.unsent or connection.unsent_body_bytes)
        if cut_short or b"\r\nconnection: close\r" in lowered:
            self.replace(index)
        connection.request = None
        return True

    def closed(self, index: int) -> bool:
        """Take note that the server has closed a connection: a failure only while a request was under way."""
        pending = self.connections[index].request
        self.connections[index].request = None
        if pending is not None:
            self.tally.fail("closed without an answer")
        self.replace(index)
        return pending is not None

    def check(self, connection: Connection, request: Request, head: bytes) -> None:
        """Record the latency of a good answer, or what a bad one was."""
        if head[9:12] == request.status and request.expect in head:
            self.tally.latencies.append(time.perf_counter() - connection.started)
        else:
            self.tally.fail(head.split(b"\r", 1)[0].decode("latin-1"))

    def replace(self, index: int) -> None:
        """Give a connection a fresh socket."""
        old = self.connections[index].socket.fileno()
        self.epoll.unregister(old)
        del self.index_of[old]
        self.connections[index].reconnect()
        self.register(index)
        self.tally.reconnects += 1


class Uploads:
    """The uploads of one case: created before it is measured, removed after it."""

    def __init__(self, server: Server, loop: Loop) -> None:
        self.server = server
        self.loop = loop
        self.paths: list[str] = []

    def create(self, count: int, length: int, body: bytes = b"") -> None:
        """Create so many uploads and keep their paths."""
        request = self.server.create(length, body)
        left = iter([request] * count)
        tally = self.loop.run(lambda _: next(left, None), self.keep)
        if tally.failures or len(self.paths) != count:
            raise RuntimeError(f"creation failed: {tally.failures}")

    def keep(self, head: bytes) -> None:
        """Remember the path in the Location field of an answer."""
        at = head.lower().find(b"\r\nlocation:")
        if at >= 0:
            location = head[at + 11 : head.index(b"\r", at + 11)].decode().strip()
            self.paths.append(urlsplit(location).path)

    def remove(self) -> None:
        """Terminate every upload kept, whatever the server thinks of it."""
        left = iter([self.server.terminate(path) for path in self.paths])
        self.loop.run(lambda _: next(left, None))


@dataclass(frozen=True, slots=True)
class Result:
    """What one case came to."""

    wall_seconds: float
    cpu_seconds: float
    requests: int
    body_bytes: int
    p50_ms: float
    p99_ms: float
    failures: dict[str, int]
    reconnects: int


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed (nearest rank); NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def cpu_seconds() -> float:
    """Return the CPU time this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(loop: Loop, next_request: NextRequest, bytes_per_request: int) -> Result:
    """Run the loop, once `go` has been read from the input, and time it."""
    say("ready")
    sys.stdin.readline()
    cpu, began = cpu_seconds(), time.perf_counter()
    tally = loop.run(next_request)
    wall, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    say("done")
    return Result(
        wall_seconds=wall,
        cpu_seconds=cpu,
        requests=len(tally.latencies),
        body_bytes=len(tally.latencies) * bytes_per_request,
        p50_ms=percentile(tally.latencies, 0.50) * 1000,
        p99_ms=percentile(tally.latencies, 0.99) * 1000,
        failures=tally.failures,
        reconnects=tally.reconnects,
    )


def send_uploads(uploads: Uploads, count: int, size: int) -> Result:
    """Send so many uploads at once, each in one PATCH."""
    uploads.create(count, size)
    left = iter([uploads.server.append(path, size) for path in uploads.paths])
    return measure(uploads.loop, lambda _: next(left, None), size)


def send_small(uploads: Uploads, seconds: float) -> Result:
    """Send one small upload after the other, each in one POST, for so long."""
    request = uploads.server.create(SMALL_BYTES, os.urandom(SMALL_BYTES))
    return measure(uploads.loop, for_a_while(seconds, lambda _: request), SMALL_BYTES)


def ask_offsets(uploads: Uploads, seconds: float) -> Result:
    """Ask for the offset of unfinished uploads, for so long."""
    connections = len(uploads.loop.connections)
    uploads.create(UPLOADS_PER_CONNECTION * connections, MIB, os.urandom(SMALL_BYTES))
    requests = [uploads.server.status(path, SMALL_BYTES) for path in uploads.paths]
    turn = [0] * connections

    def next_head(index: int) -> Request:
        turn[index] = (turn[index] + 1) % UPLOADS_PER_CONNECTION
        return requests[index * UPLOADS_PER_CONNECTION + turn[index]]

    return measure(uploads.loop, for_a_while(seconds, next_head), 0)


def for_a_while(seconds: float, next_request: Callable[[int], Request]) -> NextRequest:
    """Hand out requests until so much time has passed since the first."""
    ends_at: list[float] = []

    def limited(index: int) -> Request | None:
        now = time.perf_counter()
        if not ends_at:
            ends_at.append(now + seconds)
        return next_request(index) if now < ends_at[0] else None

    return limited


def say(line: str) -> None:
    """Tell the parent something, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Drive one case against one server (used by upload.py).")
    parser.add_argument("case", choices=["send", "small", "head"])
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--size", type=int, default=32 * MIB, help="bytes of each upload (send)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (small, head)")
    return parser.parse_args()


def main() -> None:
    """Run one case."""
    arguments = parse_arguments()
    server = Server.parse(arguments.url)
    loop = Loop(server, arguments.connections)
    uploads = Uploads(server, loop)
    if arguments.case == "send":
        result = send_uploads(uploads, arguments.connections, arguments.size)
    elif arguments.case == "small":
        result = send_small(uploads, arguments.seconds)
    else:
        result = ask_offsets(uploads, arguments.seconds)
    say(json.dumps(asdict(result)))
    sys.stdin.readline()
    uploads.remove()


if __name__ == "__main__":
    main()
