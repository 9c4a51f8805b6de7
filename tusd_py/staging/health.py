"""The health of the staging disk, as a part of a node's readiness: it has room, and keeps what it is given."""

from __future__ import annotations

import shutil
from pathlib import Path

from tusd_py.directory_check import check_directory
from tusd_py.errors import StagingFull, StorageError
from tusd_py.ports import Outcome
from tusd_py.staging.locked_file import translated_errors


class StagingHealth:
    """The state of the staging disk, for readiness."""

    def __init__(self, directory: Path, *, reserve: int) -> None:
        self._directory = directory
        self._reserve = reserve
        self._trusted_at: float | None = None

    def check(self, sync_failures: float) -> None:
        """Raise unless uploads can be received. Blocks.

        `sync_failures` counts those of all processes. After each further one, and once at the start, the
        disk is trusted only when a new file could be written and synced.

        Raises:
            StagingFull: the reserve is used up.
            StorageError: the disk cannot be used.
        """
        with translated_errors():
            free = shutil.disk_usage(self._directory).free
        if free < self._reserve:
            raise StagingFull(free_bytes=free, reserve=self._reserve)
        if sync_failures == self._trusted_at:
            return
        for result in check_directory("staging", self._directory):
            if result.outcome is Outcome.FAILED:
                raise StorageError(f"The staging disk does not keep a new file: {result.subject}: {result.detail}")
        self._trusted_at = sync_failures
