"""A client of Server-Sent Events, as the HTML standard describes them, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.http_client import encode_head

DEFAULT_LIMIT = 2**16


@dataclass(slots=True)
class Told:
    """One event."""

    event: str = "message"
    id: str | None = None
    """None: it has no field of that name."""
    data: str = ""

    @property
    def document(self) -> Any:
        return json.loads(self.data)

    @property
    def upload(self) -> Any:
        """The upload in a CloudEvent."""
        return self.document["data"]


@dataclass(slots=True)
class EventStream:
    """A stream that is being read."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    comments: int = 0
    retry: int | None = None
    last_event_id: str | None = None
    seen: list[Told] = field(default_factory=list)
    whole: bool = False
    """The response has come to its proper end."""
    _rest: bytes = b""

    @classmethod
    async def open(
        cls, host: str, port: int, target: str, headers: Iterable[tuple[str, str]] = (), *, limit: int = DEFAULT_LIMIT
    ) -> EventStream:
        """Send the request and read the head of the response; of the rest it reads `limit` bytes ahead."""
        connection = socket.socket()
        if limit < DEFAULT_LIMIT:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limit)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
        writer.write(encode_head("GET", target, headers))
        stream = cls(reader, writer)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        stream.status = int(head[0].split()[1])
        stream.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        return stream

    async def body(self) -> bytes:
        """Return the body of a response with a length."""
        return await self.reader.readexactly(int(self.headers.get("content-length", 0)))

    async def next(self, *, seconds: float = 20) -> Told | None:
        """Return the next event, None at the end of the stream."""
        async with asyncio.timeout(seconds):
            while b"\n\n" not in self._rest:
                if not (piece := await self._chunk()):
                    return None
                self._rest += piece
            block, _, self._rest = self._rest.partition(b"\n\n")
            told = self._parse(block.decode())
        if told is None:
            return await self.next(seconds=seconds)
        self.seen.append(told)
        return told

    async def until(self, event: str, *, seconds: float = 20) -> Told:
        """Return the next event of a kind."""
        async with asyncio.timeout(seconds):
            while (told := await self.next(seconds=seconds)) is not None:
                if told.event == event:
                    return told
        raise AssertionError(f"the stream ended before {event}: {self.seen}")

    async def commented(self, count: int, *, seconds: float = 20) -> None:
        """Read until there were so many comments; there must be no event."""
        async with asyncio.timeout(seconds):
            while self.comments < count:
                piece = await self._chunk()
                assert piece, "the stream has ended"
                *blocks, self._rest = (self._rest + piece).split(b"\n\n")
                for block in blocks:
                    assert self._parse(block.decode()) is None, block

    async def ended(self, *, seconds: float = 20) -> bool:
        """Read to the end; return whether it was the proper end of a response."""
        with contextlib.suppress(ConnectionError):
            while await self.next(seconds=seconds) is not None:
                pass
        return self.whole

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        self.writer.transport.abort()

    async def _chunk(self) -> bytes:
        try:
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            data = await self.reader.readexactly(size + 2)
        except asyncio.IncompleteReadError:
            return b""
        self.whole = not size
        return data[:-2]

    def _parse(self, block: str) -> Told | None:
        told, lines = Told(), []
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "":
                    self.comments += 1
                case "retry":
                    self.retry = int(value)
                case "event":
                    told.event = value
                case "id":
                    told.id = self.last_event_id = value
                case "data":
                    lines.append(value)
                case _:
                    raise AssertionError(line)
        told.data = "\n".join(lines)
        return told if lines else None
