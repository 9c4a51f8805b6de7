"""Who waits for which upload to change, and who is to be woken by a notification."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

LOOK_SECONDS: Final = 5.0
"""Between two looks at an upload that somebody waits for, should a notification get lost."""


class ChangeNotifier:
    """Those who wait within one process. Holds nothing but memory: no connection, no task."""

    def __init__(self, *, max_waiting: int = 10_000, look_seconds: float = LOOK_SECONDS) -> None:
        """Whoever comes on top of `max_waiting` is answered at once."""
        self.look_seconds = look_seconds
        self._max_waiting = max_waiting
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._count = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._count

    @property
    def full(self) -> bool:
        """Return whether nobody can wait any more."""
        return self._closed or self._count >= self._max_waiting

    @property
    def closed(self) -> bool:
        """Return whether all waiting is over."""
        return self._closed

    @contextlib.contextmanager
    def subscribe(self, upload_id: object) -> Iterator[asyncio.Event]:
        """Return an event that is set whenever the upload may have changed."""
        event = asyncio.Event()
        events = self._waiting.setdefault(str(upload_id), set())
        events.add(event)
        self._count += 1
        try:
            yield event
        finally:
            self._count -= 1
            events.discard(event)
            if not events and self._waiting.get(str(upload_id)) is events:
                del self._waiting[str(upload_id)]

    def changed(self, payload: str) -> None:
        """Wake who waits for one of these uploads, their ids separated by commas; all if there is none."""
        if not self._waiting:
            return
        for upload_id in payload.split(",") if payload else list(self._waiting):
            for event in self._waiting.get(upload_id, ()):
                event.set()

    def close(self) -> None:
        """End all waiting, now and later."""
        self._closed = True
        self.changed("")
