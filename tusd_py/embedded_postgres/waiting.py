"""Polling that logs what it waits for once it takes longer than a second."""

from __future__ import annotations

import time
from typing import Final

import structlog

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.003
SAY_AFTER_SECONDS: Final = 1.0


class Wait:
    """One wait: `pause` is called in its loop."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said_at = time.monotonic() + SAY_AFTER_SECONDS
        self._said = False

    def pause(self, seconds: float = POLL_SECONDS) -> None:
        """Sleep for a moment; the first time after a second, log what is waited for."""
        if not self._said and time.monotonic() > self._said_at:
            self._said = True
            log.info("embedded_postgres_waiting", reason=self._what)
        time.sleep(seconds)
