"""What makes staged bytes and the names of their files survive a power cut, and what a failure means.

Linux reports a failed write-back once, to each descriptor that was open before it, and then drops the
pages or calls them clean. A second call on the same descriptor succeeds and proves nothing, and a
descriptor that was opened later may never hear of it. Hence three rules:

- A descriptor whose sync failed is never synced again; see `LockedFile`.
- A directory is opened before a name is made in it, and stays open.
- All that share that descriptor share the failure: it was reported to one of them only.

A name whose sync failed is taken back. Made anew, it is written anew.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from tusd_py.metrics import Metrics

log = structlog.get_logger(__name__)


class NewNames:
    """Names that are about to be made in a directory: to be built before them, and synced after."""

    def __init__(self, directory: _Directory) -> None:
        self._directory = directory
        self._failures = directory.failures

    def sync(self) -> None:
        """Make the names durable. Raises OSError: none of them can be relied on."""
        self._directory.sync(self._failures)


class Syncs:
    """Syncs files and directories of the staging area. Everything here blocks; any thread may call."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._directories: dict[str, _Directory] = {}

    def file(self, fd: int, path: str) -> None:
        """Make what was written through `fd` durable. Raises OSError: `fd` must not be synced again."""
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise self.failure(path, error) from error

    def new_names(self, directory: str) -> NewNames:
        """Return what will sync the names that are made in `directory` from now on."""
        found = self._directories.get(directory)
        if found is None:
            opened = _Directory(directory, self)
            found = self._directories.setdefault(directory, opened)
            if found is not opened:
                opened.close()
        return NewNames(found)

    def failure(self, path: str, error: OSError) -> OSError:
        """Count and log a sync that failed, and return what is to be raised for it.

        Also where the device was full: it had taken the bytes before, and freeing
        some space does not bring them back.
        """
        self._metrics.sync_failures.inc()
        log.error("staging_sync_failed", path=path, reason=str(error))
        return OSError(errno.EIO, f"the sync failed: {error.strerror}", path)

    def close(self) -> None:
        """Close the directories."""
        directories, self._directories = self._directories, {}
        for directory in directories.values():
            directory.close()


class _Directory:
    """An open directory, and how often syncing it has failed."""

    def __init__(self, path: str, syncs: Syncs) -> None:
        # Kept open: each call to the system from a thread competes for the interpreter's lock.
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._path = path
        self._syncs = syncs
        self._lock = threading.Lock()
        self.failures = 0

    def sync(self, failures: int) -> None:
        with self._lock:
            if self.failures != failures:
                raise OSError(errno.EIO, "a sync of this directory has just failed", self._path)
            try:
                os.fsync(self._fd)
            except OSError as error:
                self.failures += 1
                raise self._syncs.failure(self._path, error) from error

    def close(self) -> None:
        os.close(self._fd)
