"""Uploads whose files cleanup could not open or remove: counted, logged and skipped for an hour.

Otherwise a few such files, first in every batch, would keep cleanup from all others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import StorageError
from tusd_py.protocol.upload import UploadId

if TYPE_CHECKING:
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)

POSTPONE_SECONDS: Final = 3600.0
MOST: Final = 100_000
"""How many are remembered. Any beyond that are tried again in the next pass."""


class Postponed:
    """The uploads that one step of cleanup skips for now."""

    def __init__(
        self,
        step: str,
        metrics: Metrics,
        seconds: float = POSTPONE_SECONDS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = step
        self._seconds = seconds
        self._failures = metrics.cleanup_failures.labels(step)
        self._clock = clock
        self._until: dict[UploadId, float] = {}

    def add(self, failed: Mapping[UploadId, StorageError]) -> None:
        """Count and log these failures, and skip the uploads for a while."""
        if not failed:
            return
        until = self._clock() + self._seconds
        self._until |= dict.fromkeys(list(failed)[: MOST - len(self._until)], until)
        self._failures.inc(len(failed))
        first, error = next(iter(failed.items()))
        log.error(
            "cleanup_failed",
            step=self._step,
            count=len(failed),
            first=str(first),
            reason=str(error),
            again_in_seconds=self._seconds,
        )

    def current(self) -> set[UploadId]:
        """Return the uploads to skip now."""
        now = self._clock()
        self._until = {upload_id: until for upload_id, until in self._until.items() if until > now}
        return set(self._until)
