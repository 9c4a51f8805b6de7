"""Who owns a data directory: whoever holds its lock file, which the kernel frees when that process dies.

The file tells the next owner what it needs to know:

    line 1   the private socket directory, empty if the socket is in the data directory
    line 2   pid and start of the server that the owner started

Written in place, for the lock belongs to the file. The next owner ends the server of a dead one by the
second line, and by nothing else: one that somebody started by hand is not recorded here.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tusd_py.process_identity import ProcessIdentity

MAX_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """The content of the lock file."""

    socket_dir: Path | None = None
    server: ProcessIdentity | None = None


class OwnerLock:
    """The right to start a server on a data directory."""

    def __init__(self, path: Path) -> None:
        """Prepare the lock. Nothing is touched before `take`."""
        self.path = path
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def take(self) -> bool:
        """Take the lock if it is free; return whether this process has it."""
        if self.held:
            return True
        # Not inherited over exec: the server must not hold the lock that tells whether its owner lives.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def read(self) -> OwnerRecord:
        """Return what the last owner wrote; a file that is empty or damaged says nothing."""
        lines = os.fsdecode(os.pread(self._fd, MAX_BYTES, 0)).split("\n")
        socket_dir = Path(lines[0]) if lines[0] else None
        return OwnerRecord(socket_dir, ProcessIdentity.parse(lines[1]) if len(lines) > 1 else None)

    def write(self, record: OwnerRecord) -> None:
        """Replace what the last owner wrote."""
        content = os.fsencode(f"{record.socket_dir or ''}\n{record.server or ''}\n")
        os.pwrite(self._fd, content, 0)
        os.ftruncate(self._fd, len(content))

    def close(self) -> None:
        """Close the file. The lock is free once no process has it open any more, a forked one neither."""
        if self.held:
            os.close(self._fd)
            self._fd = -1
