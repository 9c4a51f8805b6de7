"""Request trailers, which aiohttp's parsers read and throw away.

The connection remembers the last raw bytes it received, and once a chunked body has ended its
trailers are read out of them. It is in use only where `tus.checksum_trailer` is on. A request that is
pipelined behind the body hides the trailers: they count as not received, which refuses the body.

No trailer reaches the next request of a connection: after a chunked one the connection is closed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from tusd_py.http.connection import Connection

TAIL_BYTES: Final = 16 * 1024
"""More than this is not looked at; trailers are a line or two."""

_LAST_CHUNK: Final = re.compile(
    rb"\r\n0+(?:[ \t]*;[^\r\n]*)?\r\n(?P<fields>(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n)*)\r\n\Z"
)
"""The end of a chunked body (RFC 9112 §7.1). Data that looks like it cannot pass for it: the true last
chunk would have to stand among the fake one's fields, and a chunk size is no field."""


class TrailerConnection(Connection):
    """A connection that remembers the last bytes it received."""

    __slots__ = ("_tail",)

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._tail = b""
        super().__init__(*arguments, **keywords)

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL_BYTES:] if len(data) < TAIL_BYTES else data[-TAIL_BYTES:]
        super().data_received(data)

    def trailers(self) -> Mapping[str, str]:
        """Return the trailers of the chunked body that has just ended, by name in lower case."""
        match = _LAST_CHUNK.search(self._tail)
        return _parse(match["fields"]) if match else {}


def _parse(lines: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        key = name.lower()
        # Sent twice, it says two things; joined, it is what no single value can be.
        found[key] = f"{found[key]},{value.strip()}" if key in found else value.strip()
    return found


def keeps_trailers(request: web.Request) -> bool:
    """Return whether the server that runs the application remembers trailers; a host's own does not."""
    return isinstance(request.protocol, TrailerConnection)


def received_trailers(request: web.Request) -> Mapping[str, str]:
    """Return the trailers of a request whose body has ended; none on a server that does not keep them."""
    protocol = request.protocol
    return protocol.trailers() if isinstance(protocol, TrailerConnection) else {}
