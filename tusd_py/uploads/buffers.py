"""What a body holds in memory on its way to the disk: blocks, their size, and the rate they come at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from tusd_py.errors import BodyTooSlow

if TYPE_CHECKING:
    from tusd_py.config import StagingConfig

PAGE_BYTES: Final = 4096
MIN_BLOCK_BYTES: Final = 64 * 1024
MANY_CHUNKS: Final = 512
RATE_WINDOW_SECONDS: Final = 30.0


class BufferBudget:
    """Bounds what all bodies of a process hold in memory, by smaller blocks when there are many.

    A body holds at most one block being gathered and one being written. Nobody waits for memory, so
    a slow client cannot starve a fast one.
    """

    def __init__(self, config: StagingConfig) -> None:
        self._config = config
        self._active = 0

    def __enter__(self) -> Self:
        self._active += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._active -= 1

    @property
    def block_bytes(self) -> int:
        """How much to gather before it is written."""
        share = self._config.buffer_budget // (2 * max(1, self._active))
        return max(MIN_BLOCK_BYTES, min(self._config.block_size, share))


class Block:
    """The chunks that one write will take, in order.

    Crumbs are joined: a chunk of one byte takes fifty bytes of memory, and a client may send a whole
    body of them.
    """

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.size = 0
        self._joined = 0

    def append(self, chunk: bytes) -> None:
        """Add a chunk at the end."""
        self.chunks.append(chunk)
        self.size += len(chunk)
        if len(self.chunks) - self._joined >= MANY_CHUNKS:
            self.chunks[self._joined :] = [b"".join(self.chunks[self._joined :])]
            self._joined += 1

    def cut(self, start: int) -> list[bytes | memoryview]:
        """Take what is gathered for offset `start`, up to a page border: whole pages are cheapest to write."""
        chunks, size = self.chunks, self.size
        self.chunks, self.size, self._joined = [], 0, 0
        rest = (start + size) % PAGE_BYTES
        if chunks and rest < len(chunks[-1]) and size > MIN_BLOCK_BYTES:
            last = memoryview(chunks.pop())
            border = len(last) - rest
            chunks.append(last[:border])
            if rest:
                self.chunks.append(last[border:])
                self.size = rest
        return chunks


class RateGuard:
    """Demands a minimum rate over whole windows, so that a short stall is nobody's fault.

    A window is made of the time in which we waited for the client: a slow disk is not its fault.
    """

    def __init__(self, min_rate: int, window_seconds: float = RATE_WINDOW_SECONDS) -> None:
        self._min_rate = min_rate
        self._window_seconds = window_seconds
        self._waited = 0.0
        self._bytes = 0

    def count(self, size: int, waited_seconds: float) -> None:
        """Count received bytes. Raises `BodyTooSlow` at the end of a window that had too few."""
        if not self._min_rate:
            return
        self._bytes += size
        self._waited += waited_seconds
        if self._waited >= self._window_seconds:
            if self._bytes < self._min_rate * self._waited:
                raise BodyTooSlow
            self._waited, self._bytes = 0.0, 0
