"""One listener to events: what is still to be sent to it, and when it is given up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from tusd_py.ports.events import RecordedEvent
    from tusd_py.protocol.upload import Upload, UploadId

log = structlog.get_logger(__name__)

PROGRESS_BACKLOG: Final = 50
"""With so much before it a listener hears of no progress."""


@dataclass(eq=False, slots=True)
class LiveEvent:
    """An event on its way to listeners."""

    recorded: RecordedEvent
    rendered: dict[Any, bytes] = field(default_factory=dict)
    """For each kind of listener, what it is sent: rendered once for all of them."""

    @property
    def upload_id(self) -> UploadId:
        return self.recorded.upload_id

    @property
    def owner(self) -> str | None:
        owner: str | None = self.recorded.snapshot.get("owner")
        return owner


@dataclass(eq=False, slots=True)
class LiveProgress:
    """How far an upload is."""

    upload: Upload
    rendered: dict[Any, bytes] = field(default_factory=dict)

    @property
    def upload_id(self) -> UploadId:
        return self.upload.id

    @property
    def owner(self) -> str | None:
        return self.upload.owner


LiveMessage = LiveEvent | LiveProgress


@dataclass(eq=False, slots=True)
class EventListener:
    """Somebody who listens to one upload, or to all of an owner."""

    upload_id: UploadId | None
    """None: to all uploads."""
    owner: str | None
    """Only to uploads of this one; None: of everybody."""
    on_overrun: Callable[[], None]
    """Called when it is ended because it is too slow."""
    backlog: int
    position: Any = 0
    """What it has been given: a sequence, or a position among all events."""
    reset: bool = False
    """The event after which it wanted to go on is not kept any more."""
    joined: bool = False
    ended: bool = False
    _told: deque[LiveMessage] = field(default_factory=deque)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """End it; what it has not taken yet it will not get."""
        if not self.ended:
            self.ended = True
            self._told.clear()
            self._news.set()

    def offer(self, told: LiveMessage, position: Any = None) -> None:
        """Add what is to be told, unless it was told already, or concerns it not. Progress has no position."""
        if self.ended or (self.owner is not None and told.owner != self.owner):
            return
        if position is None:
            if len(self._told) >= PROGRESS_BACKLOG:
                return
        elif position <= self.position:
            return
        elif len(self._told) >= self.backlog:
            log.info("listener_too_slow", backlog=self.backlog)
            self.end()
            self.on_overrun()
            return
        else:
            self.position = position
        self._told.append(told)
        self._news.set()

    async def wait(self, seconds: float) -> None:
        """Wait until there is something, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0, seconds)):
                await self._news.wait()

    def take(self) -> list[LiveMessage]:
        """Return what there is."""
        told = list(self._told)
        self._told.clear()
        if not self.ended:
            self._news.clear()
        return told
