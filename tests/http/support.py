"""What the tests of this folder share: framing, waiting, looking inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

OFFSET_TYPE = "application/offset+octet-stream"
TUS = ("Tus-Resumable", "1.0.0")
ZIP_OF_NOTHING = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def patch_head(offset: int, *extra: tuple[str, str]) -> list[tuple[str, str]]:
    """The headers of a PATCH, without what frames its body."""
    return [TUS, ("Upload-Offset", str(offset)), ("Content-Type", OFFSET_TYPE), *extra]


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def chunked(*pieces: bytes, trailers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A whole chunked body."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in trailers).encode()
    return b"".join(map(chunk, pieces)) + b"0\r\n" + fields + b"\r\n"


async def eventually(check: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `check()` is true; fail if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)
