"""Follows one direction of an HTTP/1.1 connection: which bytes are heads, and which are body."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

UNTIL_CLOSED = 2**62


class HttpMeter:
    """Follows one direction of an HTTP/1.1 connection: heads, and how many body bytes pass.

    `on_head(first_line, headers)` answers the length of the body that follows; None: chunked.
    """

    def __init__(self, *, on_head: Callable[[str, dict[str, str]], int | None], on_body: Callable[[int], None]) -> None:
        self._on_head = on_head
        self._on_body = on_body
        self._line = b""  # the head, chunk size line or trailer being gathered
        self._left = 0  # body bytes to come, of this chunk if chunked
        self._state: Literal["head", "body", "size", "data", "data-end", "trailer"] = "head"

    @property
    def in_body(self) -> bool:
        """True while body bytes are still to come."""
        return self._state != "head"

    def passing(self, data: bytes, allowance: int | None) -> int:
        """Return how many bytes of `data` to take so that at most `allowance` body bytes are among them.

        Heads and chunk framing are not counted, so a body is met only at its beginning: the answer
        ends at the head that is met first, and the caller asks again for the rest.
        """
        if allowance is None:
            return len(data)
        if self._state in {"body", "data"}:
            return min(len(data), self._left, allowance)
        return self._framing(data)

    def _framing(self, data: bytes) -> int:
        """Return the length of what belongs to the head or framing line at the start of `data`."""
        end = b"\r\n\r\n" if self._state == "head" else b"\r\n"
        known = len(self._line)
        found = (self._line + data).find(end)
        return len(data) if found < 0 else max(1, found + len(end) - known)

    def feed(self, data: bytes) -> None:
        """Account for bytes that passed."""
        while data:
            if self._state in {"body", "data"}:
                taken = min(len(data), self._left)
                self._left -= taken
                self._on_body(taken)
                if not self._left:
                    self._state = "head" if self._state == "body" else "data-end"
            else:
                taken = self._framing(data)
                self._line += data[:taken]
                self._line_done()
            data = data[taken:]

    def _line_done(self) -> None:
        end = b"\r\n\r\n" if self._state == "head" else b"\r\n"
        if not self._line.endswith(end):
            return
        line, self._line = self._line[: -len(end)], b""
        if self._state == "head":
            self._head(line.decode("latin-1"))
        elif self._state == "size":
            self._left = int(line.split(b";")[0], 16)
            self._state = "data" if self._left else "trailer"
        elif self._state == "data-end":
            self._state = "size"
        elif not line:  # the empty line after the trailers
            self._state = "head"

    def _head(self, text: str) -> None:
        first, *lines = text.split("\r\n")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _colon, value in fields}
        length = self._on_head(first, headers)
        if length is None:
            self._state = "size"
        elif length > 0:
            self._state, self._left = "body", length


def body_length(headers: dict[str, str], *, default: int = 0) -> int | None:
    """Return the length of the body that a head announces; None: chunked."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return None
    return int(headers.get("content-length", default))
