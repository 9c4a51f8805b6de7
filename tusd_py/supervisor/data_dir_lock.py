"""One server per data directory, and what a server that was killed left running.

`serve.lock` is held by the supervisor with flock(2), which the kernel frees when it dies, and lists the
processes of the server, each with its unique name. A killed supervisor's children end by themselves, but
they may need a while for what they have in hand, and until then they keep the ports.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import structlog

from tusd_py.errors import ConfigError
from tusd_py.process_identity import ProcessIdentity, end

log = structlog.get_logger(__name__)

NAME: Final = "serve.lock"
MAX_BYTES: Final = 65536
POLL_SECONDS: Final = 0.01
FORK_SECONDS: Final = 2.0
"""A child that was just forked holds the lock of its dead parent until it notices."""
LEFT_OVER_SECONDS: Final = 4.0
"""A left-over process that was told to end gets this long before it is killed: no acknowledged byte depends on it."""


class DataDirLock:
    """The right to be the server of a data directory."""

    dead_names: tuple[str, ...]
    """The names of the last owner's processes, none of which is alive any more."""

    def __init__(self, data_dir: Path, *, left_over_seconds: float = LEFT_OVER_SECONDS) -> None:
        """Prepare the lock. Nothing is touched before `take`."""
        self.dead_names = ()
        self._left_over_seconds = left_over_seconds
        self._path = data_dir / NAME
        self._fd = -1

    def take(self) -> bool:
        """Take the lock, and end what a dead owner left; return False if a live server holds it.

        Raises:
            ConfigError: the lock file or the left-over processes belong to another user.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError([f"data_dir: {self._path}: {error.strerror}"]) from error
        if not _lock(fd):
            os.close(fd)
            return False
        self._fd = fd
        recorded = _recorded(fd)
        _end_left_over([process for process, _ in recorded if process.alive], self._left_over_seconds)
        self.dead_names = tuple(name for _, name in recorded if name)
        return True

    def record(self, children: Iterable[tuple[int, str]]) -> None:
        """Write down which processes the server has, by pid and name; does nothing without the lock."""
        if self._fd >= 0:
            processes = [(ProcessIdentity.of(pid), name) for pid, name in ((os.getpid(), ""), *children)]
            content = "".join(f"{process} {name}\n" for process, name in processes if process is not None).encode()
            os.pwrite(self._fd, content, 0)
            os.ftruncate(self._fd, len(content))

    def close(self) -> None:
        """Close the file. The lock is free once no process has it open any more, a forked one neither."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _end_left_over(left: Sequence[ProcessIdentity], patience_seconds: float) -> None:
    if not left:
        return
    pids = [process.pid for process in left]
    log.warning("children_left_over", pids=pids, reason="their server was killed; waiting for their end")
    try:
        end(left, signal.SIGTERM, patience_seconds)
    except OSError as error:
        text = f"processes {pids} of a server that was killed cannot be ended ({error})"
        raise ConfigError([f"data_dir: {text}: end them first"]) from error


def _lock(fd: int) -> bool:
    """Take the lock, unless a server that is alive holds it."""
    deadline = time.monotonic() + FORK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = next((process for process, _ in _recorded(fd)), None)
            if (owner is not None and owner.alive) or time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True


def _recorded(fd: int) -> list[tuple[ProcessIdentity, str]]:
    """Return what the last owner wrote, itself first: each process with its name."""
    found = []
    for line in os.pread(fd, MAX_BYTES, 0).decode(errors="replace").splitlines():
        pid, _, rest = line.partition(" ")
        start, _, name = rest.partition(" ")
        if (process := ProcessIdentity.parse(f"{pid} {start}")) is not None:
            found.append((process, name))
    return found
