"""HTTP/1.1 as bytes: what is sent is what was written here, and answers are read without a client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class RawResponse:
    """One response. Header names are lower case; repeated ones are joined by a comma."""

    status: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    """Statuses of interim responses (1xx) that came before."""


class ConnectionLost(Exception):
    """The server closed the connection before a whole response."""


class RawConnection:
    """One connection, under the test's control byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> RawConnection:
        return cls(*await asyncio.open_connection(host, port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_head(self, method: str, path: str, headers: Iterable[tuple[str, str]]) -> None:
        fields = list(headers)
        host = [] if any(name.lower() == "host" for name, _ in fields) else ["Host: localhost"]
        lines = [f"{method} {path} HTTP/1.1", *host, *(f"{name}: {value}" for name, value in fields)]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def request(
        self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes = b""
    ) -> RawResponse:
        """Send a request and read its response; the connection stays as the server leaves it."""
        fields = list(headers)
        if body and not {"content-length", "transfer-encoding"} & {name.lower() for name, _ in fields}:
            fields.append(("Content-Length", str(len(body))))
        await self.send_head(method, path, fields)
        if body:
            await self.send(body)
        return await self.response(method)

    async def response(self, method: str = "GET", *, seconds: float = 20) -> RawResponse:
        """Read the next final response. Raises `ConnectionLost` if the server closes before its end."""
        async with asyncio.timeout(seconds):
            interim: list[int] = []
            while True:
                response = await self._read(method)
                if response.status >= 200:
                    response.interim = interim
                    return response
                interim.append(response.status)

    async def interim(self, *, seconds: float = 20) -> int:
        """Read one interim response and return its status."""
        return (await self.interim_response(seconds=seconds)).status

    async def interim_response(self, *, seconds: float = 20) -> RawResponse:
        """Read one interim response."""
        async with asyncio.timeout(seconds):
            return await self._read("HEAD")

    async def _read(self, method: str) -> RawResponse:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ConnectionLost(getattr(error, "partial", b"")) from error
        start, *lines = head.decode("latin-1").split("\r\n")[:-2]
        _, status, reason = start.split(" ", 2)
        response = RawResponse(int(status), reason)
        for line in lines:
            name, _, value = line.partition(":")
            key = name.strip().lower()
            before = [response.headers[key]] if key in response.headers else []
            response.headers[key] = ",".join([*before, value.strip()])
        if method != "HEAD" and response.status >= 200 and response.status not in {204, 304}:
            response.body = await self._body(response)
        return response

    async def _body(self, response: RawResponse) -> bytes:
        try:
            if response.headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                await self.reader.readuntil(b"\r\n")
                return body
            if "content-length" in response.headers:
                return await self.reader.readexactly(int(response.headers["content-length"]))
            return await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ConnectionLost(getattr(error, "partial", b"")) from error

    async def closed(self, *, seconds: float = 20) -> bytes:
        """Wait until the server closes; return what it sent before that."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read()
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
) -> RawResponse:
    """Send one request with `Connection: close` and read its response."""
    connection = await RawConnection.open(host, port)
    fields = list(headers)
    names = {name.lower() for name, _ in fields}
    if body and "content-length" not in names and "transfer-encoding" not in names:
        fields.append(("Content-Length", str(len(body))))
    try:
        await connection.send_head(method, path, [*fields, ("Connection", "close")])
        if body:
            # An early refusal closes the connection; the answer is there to be read.
            with contextlib.suppress(ConnectionError):
                await connection.send(body)
        return await connection.response(method)
    finally:
        await connection.close()
