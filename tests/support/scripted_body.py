"""A body that comes as a test says, on a clock that only the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tusd_py.ports import Body
from tusd_py.protocol.upload import Upload


@dataclass
class FakeClock:
    """A clock that stands still until it is moved."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Silence:
    """Nothing arrives for so long."""

    seconds: float


class Endless:
    """Nothing arrives any more, until the body is interrupted."""


ENDLESS = Endless()

Step = bytes | Silence | Endless | Exception | Callable[[], Awaitable[object]]
"""What arrives, what does not, how the body breaks off, or what the test does before the body goes on."""


@dataclass
class ScriptedBody(Body):
    """A body of given steps, which ends after the last one."""

    steps: list[Step]
    clock: FakeClock
    length: int | None = None
    trailers: Mapping[str, str] = field(default_factory=dict)
    accepted: bool = False
    acknowledged: list[int] = field(default_factory=list)
    """The offsets that were said to be durable while the body was read."""
    waits: list[float | None] = field(default_factory=list)
    """How long each read was ready to wait."""

    def __post_init__(self) -> None:
        self._interruption: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def accept(self) -> None:
        self.accepted = True

    async def read(self, wait_seconds: float | None = None) -> bytes | None:
        self.waits.append(wait_seconds)
        while self.steps and not self._interruption.done():
            step = self.steps.pop(0)
            if isinstance(step, bytes):
                return step
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Endless):
                break
            if not isinstance(step, Silence):
                await step()
                continue
            silent = step.seconds if wait_seconds is None else min(step.seconds, wait_seconds)
            self.clock.advance(silent)
            if wait_seconds is not None:
                if wait_seconds <= step.seconds:
                    self.steps.insert(0, Silence(step.seconds - silent))
                    return None
                wait_seconds -= silent
        else:
            if not self._interruption.done():
                return b""
        return await self._interruption

    def acknowledge(self, upload: Upload) -> None:
        self.acknowledged.append(upload.offset)

    def trailer(self, name: str) -> str | None:
        return self.trailers.get(name)

    def interrupt(self, error: Exception) -> None:
        if not self._interruption.done():
            self._interruption.set_exception(error)
