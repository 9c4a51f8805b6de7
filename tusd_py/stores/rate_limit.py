"""A limit on the bytes per second that one worker process sends, shared fairly by its uploads.

A sender acquires each block before it sends it. The next block is due when the one before would
have left a line of that speed, and the uploads that wait take turns: one with sixteen parts under
way gets no more than one with a single body. Between two blocks there is a timer, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

MIN_BLOCK_BYTES: Final = 4 * 2**10
MAX_BLOCK_BYTES: Final = 2**18
_BLOCKS_PER_SECOND: Final = 100
"""Small blocks for a slow line: a connection that waits for its turn must not look dead to S3."""
BURST_SECONDS: Final = 0.05
"""What may be made up for: a loop that was busy when the timer was due is no reason to be slower."""


class Bandwidth:
    """One line of `bytes_per_second`. For one event loop."""

    def __init__(self, bytes_per_second: int) -> None:
        self._rate = bytes_per_second
        self.block_bytes = min(max(bytes_per_second // _BLOCKS_PER_SECOND, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES)
        """How much to acquire in one call."""
        self._free_at = float("-inf")
        self._waiting: deque[RateLimiter] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def limiter(self) -> RateLimiter:
        """Return the share of one upload."""
        return RateLimiter(self)

    def enqueue(self, limiter: RateLimiter) -> None:
        """Queue a limiter for its turn; it is queued once, however much it asks for."""
        if limiter not in self._waiting:
            self._waiting.append(limiter)
        if self._timer is None:
            self._serve()

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        if now >= self._free_at:
            limiter = self._waiting.popleft()
            granted = limiter.grant()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + granted / self._rate
            if limiter.wants_more:
                self._waiting.append(limiter)
        if self._waiting:
            # Also when the line is free already: a sender that was just served asks again before this runs,
            # and does not lose its turn to one that asked for more in advance.
            self._timer = loop.call_at(self._free_at, self._serve)


class RateLimiter:
    """The bytes of one upload, whatever number of parts they go out in."""

    def __init__(self, line: Bandwidth) -> None:
        self._line = line
        self._asked: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def block_bytes(self) -> int:
        """How much to acquire in one call."""
        return self._line.block_bytes

    @property
    def wants_more(self) -> bool:
        """True while a sender waits."""
        return bool(self._asked)

    async def acquire(self, count: int) -> None:
        """Wait until `count` bytes may go out."""
        allowed = asyncio.get_running_loop().create_future()
        self._asked.append((count, allowed))
        self._line.enqueue(self)
        await allowed

    def grant(self) -> int:
        """Release the first waiting sender and return how many bytes it sends; 0 if none waits."""
        while self._asked:
            count, allowed = self._asked.popleft()
            if not allowed.done():  # by a cancellation
                allowed.set_result(None)
                return count
        return 0
