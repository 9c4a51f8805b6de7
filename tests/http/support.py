"""What the tests of this folder share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

ZIP_OF_NOTHING = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00"


async def eventually(check: Callable[[], object], seconds: float = 10) -> None:
    """Wait until `check()` is true; fail if it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)
