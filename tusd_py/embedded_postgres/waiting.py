"""Timeouts of the embedded server, and polling that logs what it waits for if that takes long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import structlog

log = structlog.get_logger(__name__)

POLL_SECONDS: Final = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long each wait may take."""

    start_seconds: float = 120
    """Covers initdb on a slow disk, and the replay of `max_wal_size` after a crash."""
    foreign_server_seconds: float = 5
    """For a server that was started by hand to end."""
    left_over_seconds: float = 3
    """For the server of a dead owner: enough on a busy machine. A kill costs no more than SIGQUIT does: a replay."""
    quit_seconds: float = 8
    """Longer than the 5 s after which a postmaster that got SIGQUIT kills its children."""
    log_after_seconds: float = 1
    """What takes longer is logged."""


class Wait:
    """One wait: `pause` is called in its loop."""

    def __init__(self, what: str, log_after_seconds: float) -> None:
        self._what = what
        self._log_at = time.monotonic() + log_after_seconds
        self._logged = False

    def pause(self, seconds: float = POLL_SECONDS) -> None:
        """Sleep for a moment; once the wait has taken long, log what is waited for."""
        if not self._logged and time.monotonic() > self._log_at:
            self._logged = True
            log.info("embedded_postgres_waiting", reason=self._what)
        time.sleep(seconds)
