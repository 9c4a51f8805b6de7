"""What the owner of a data directory leaves in the lock file, for the next owner.

    line 1   the private socket directory, empty if the socket is in the data directory
    line 2   pid and start of the server that the owner started

Written in place, for the lock belongs to the file. The next owner ends the server of a dead one by the
second line, and by nothing else: one that somebody started by hand is not recorded here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tusd_py.process_identity import ProcessIdentity

MAX_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class OwnerRecord:
    """The content of the lock file."""

    socket_dir: Path | None = None
    server: ProcessIdentity | None = None

    @classmethod
    def read(cls, lock_fd: int) -> Self:
        """Return what the last owner wrote; a file that is empty or damaged says nothing."""
        lines = os.fsdecode(os.pread(lock_fd, MAX_BYTES, 0)).split("\n")
        socket_dir = Path(lines[0]) if lines[0] else None
        return cls(socket_dir, ProcessIdentity.parse(lines[1]) if len(lines) > 1 else None)

    def write(self, lock_fd: int) -> None:
        """Replace what is there."""
        content = os.fsencode(f"{self.socket_dir or ''}\n{self.server or ''}\n")
        os.pwrite(lock_fd, content, 0)
        os.ftruncate(lock_fd, len(content))
