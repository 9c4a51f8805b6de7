"""The HTTP/1.1 client of the tests: what is sent is what a test wrote, and responses are read as they came.

A `Connection` is under the test's control byte by byte, a `TusClient` speaks tus over connections of its own.
`tests/support/blocking_client.py` has the same for tests that do not run in an event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BLOCK_BYTES = 64 * 1024
OFFSET_TYPE = "application/offset+octet-stream"
TUS = ("Tus-Resumable", "1.0.0")

Fields = list[tuple[str, str]]
Headers = Mapping[str, str | None]
"""Sent together with a client's own headers, or in their place; None: one of those is left out."""


class ConnectionLost(ConnectionError):
    """The server closed the connection before a whole response."""


# --- messages --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Response:
    """One response. Header names are lower case; repeated ones are joined by a comma."""

    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    """Statuses of interim responses (1xx) that came before."""

    @property
    def offset(self) -> int:
        return int(self.headers["upload-offset"])

    def json(self) -> Any:
        return json.loads(self.body)


def encode_head(method: str, target: str, headers: Iterable[tuple[str, str]], *, host: str = "localhost") -> bytes:
    """Return a request without its body. A `Host` among the headers stands in place of `host`."""
    fields = list(headers)
    if "host" not in _names(fields):
        fields.insert(0, ("Host", host))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def framed(headers: Iterable[tuple[str, str]], body: bytes) -> Fields:
    """Return the headers with a Content-Length, if there is a body and nothing says where it ends."""
    fields = list(headers)
    if body and not {"content-length", "transfer-encoding"} & _names(fields):
        fields.append(("Content-Length", str(len(body))))
    return fields


def patch_head(offset: int, *extra: tuple[str, str]) -> Fields:
    """Return the headers of a PATCH, without what frames its body."""
    return [TUS, ("Upload-Offset", str(offset)), ("Content-Type", OFFSET_TYPE), *extra]


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def chunked(*pieces: bytes, trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Return a whole chunked body."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in trailers).encode()
    return b"".join(map(chunk, pieces)) + b"0\r\n" + fields + b"\r\n"


def _names(fields: Fields) -> set[str]:
    return {name.lower() for name, _ in fields}


class ResponseParser:
    """Cuts the bytes of a connection into responses; it does no input itself."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take what was received; nothing means that the server has closed."""
        self._data += data
        self._ended = self._ended or not data

    def next(self, method: str = "GET") -> Response | None:
        """Return the next response to a request of this method, interim ones too; None: it is not complete.

        Raises:
            ConnectionLost: and never will be.
        """
        end = self._data.find(b"\r\n\r\n")
        if end >= 0:
            response = _parse_head(bytes(self._data[:end]))
            if (body_end := self._read_body(response, method, end + 4)) is not None:
                del self._data[:body_end]
                return response
        if self._ended:
            raise ConnectionLost(bytes(self._data))
        return None

    def rest(self) -> bytes:
        """Take what was received and not read."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def _read_body(self, response: Response, method: str, start: int) -> int | None:
        """Read the body that begins there, and return where it ends; None: it is not complete."""
        if method == "HEAD" or response.status < 200 or response.status in {204, 304}:
            return start
        if response.headers.get("transfer-encoding") == "chunked":
            return self._read_chunks(response, start)
        if "content-length" in response.headers:
            end = start + int(response.headers["content-length"])
            if len(self._data) < end:
                return None
        elif self._ended:
            end = len(self._data)
        else:
            return None
        response.body = bytes(self._data[start:end])
        return end

    def _read_chunks(self, response: Response, start: int) -> int | None:
        pieces: list[bytes] = []
        while (line_end := self._data.find(b"\r\n", start)) >= 0:
            size = int(self._data[start:line_end].split(b";")[0], 16)
            data_start, start = line_end + 2, line_end + 2 + size + 2
            if len(self._data) < start:
                return None
            if not size:
                response.body = b"".join(pieces)
                return start
            pieces.append(bytes(self._data[data_start : start - 2]))
        return None


def _parse_head(head: bytes) -> Response:
    start, *lines = head.decode("latin-1").split("\r\n")
    _, status, *reason = start.split(" ", 2)
    response = Response(int(status), "".join(reason))
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        before = [response.headers[key]] if key in response.headers else []
        response.headers[key] = ",".join([*before, value.strip()])
    return response


# --- connections -----------------------------------------------------------------------------------


class Connection:
    """One connection, under the test's control byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = ResponseParser()

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        return cls(*await asyncio.open_connection(host, port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_head(self, method: str, path: str, headers: Iterable[tuple[str, str]]) -> None:
        await self.send(encode_head(method, path, headers))

    async def request(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> Response:
        """Send a request and read its response; the connection stays as the server leaves it."""
        await self.send_head(method, path, framed(headers, body))
        if body:
            await self.send(body)
        return await self.response(method)

    async def response(self, method: str = "GET", *, seconds: float = 20) -> Response:
        """Read the next final response. Raises `ConnectionLost` if the server closes before its end."""
        async with asyncio.timeout(seconds):
            interim: list[int] = []
            while (response := await self._read(method)).status < 200:
                interim.append(response.status)
            response.interim = interim
            return response

    async def interim(self, *, seconds: float = 20) -> int:
        """Read one interim response and return its status."""
        return (await self.interim_response(seconds=seconds)).status

    async def interim_response(self, *, seconds: float = 20) -> Response:
        """Read one interim response."""
        async with asyncio.timeout(seconds):
            return await self._read("HEAD")

    async def _read(self, method: str) -> Response:
        while (response := self._parser.next(method)) is None:
            data = b""  # a reset ends the responses just as a FIN does
            with contextlib.suppress(ConnectionError):
                data = await self.reader.read(BLOCK_BYTES)
            self._parser.feed(data)
        return response

    async def closed(self, *, seconds: float = 20) -> bytes:
        """Wait until the server closes; return what it sent before that."""
        try:
            async with asyncio.timeout(seconds):
                return self._parser.rest() + await self.reader.read()
        except ConnectionError:
            return b""

    def abort(self) -> None:
        """Reset the connection (RST)."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


async def exchange(
    host: str, port: int, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes = b""
) -> Response:
    """Send one request with `Connection: close` and read its response."""
    connection = await Connection.open(host, port)
    try:
        await connection.send_head(method, path, [*framed(headers, body), ("Connection", "close")])
        if body:
            # An early refusal closes the connection; the answer is there to be read.
            with contextlib.suppress(ConnectionError):
                await connection.send(body)
        return await connection.response(method)
    finally:
        await connection.close()


# --- tus -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TusClient:
    """The requests of tus, each on a connection of its own."""

    host: str
    port: int
    base: str = "/files"
    headers: dict[str, str] = field(default_factory=lambda: dict([TUS]))
    """Sent with every request."""
    connections: list[Connection] = field(default_factory=list)
    """Opened by `connect` for a test."""

    async def connect(self) -> Connection:
        """Open a connection; it is closed after the test."""
        connection = await Connection.open(self.host, self.port)
        self.connections.append(connection)
        return connection

    async def request(
        self, method: str, path: str, headers: Headers | Fields | None = None, body: bytes = b""
    ) -> Response:
        """Send one request, with the client's headers unless a list is given, which is sent as it is."""
        return await exchange(self.host, self.port, method, path, self._merged(headers), body)

    def _merged(self, headers: Headers | Fields | None) -> Fields:
        if isinstance(headers, list):
            return headers
        merged = {**self.headers, **(headers or {})}
        return [(name, value) for name, value in merged.items() if value is not None]

    async def create(self, length: int | None = None, headers: Headers | None = None, body: bytes = b"") -> str:
        """Create an upload and return its path."""
        extra = {"Upload-Length": str(length)} if length is not None else {}
        response = await self.request("POST", f"{self.base}/", {**extra, **(headers or {})}, body)
        assert response.status == 201, response
        return response.headers["location"]

    async def patch(self, path: str, offset: int, body: bytes, headers: Headers | None = None) -> Response:
        own = {"Upload-Offset": str(offset), "Content-Type": OFFSET_TYPE}
        return await self.request("PATCH", path, {**own, **(headers or {})}, body)

    async def patch_chunked(self, path: str, offset: int, *pieces: bytes, headers: Headers | None = None) -> Response:
        """PATCH a body without Content-Length."""
        own = {"Transfer-Encoding": "chunked"}
        return await self.patch(path, offset, chunked(*pieces), {**own, **(headers or {})})

    async def head(self, path: str, headers: Headers | None = None) -> Response:
        return await self.request("HEAD", path, headers)

    async def offset(self, path: str) -> int:
        """Ask for the offset, which must be there."""
        response = await self.head(path)
        assert response.status == 200, response
        return response.offset
