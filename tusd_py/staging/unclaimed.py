"""Files that no upload knows, set aside in `unclaimed/` within the staging directory before they are removed.

After a restored backup the database knows nothing of what came later; these files are then the only copy.
The time of a file there is when it was set aside.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

from tusd_py.errors import StorageError
from tusd_py.ports import StagedFile
from tusd_py.protocol.upload import UploadId
from tusd_py.staging.locked_file import DIRECTORY_MODE

UNCLAIMED: Final = "unclaimed"
SHARD: Final = re.compile(r"[0-9a-f]{2}")
"""What the directories of staged files are called; nothing else holds any."""


def unclaimed_path(directory: Path, upload_id: UploadId) -> Path:
    """Return where the file of an upload is that was set aside."""
    return directory / UNCLAIMED / str(upload_id)


def unclaimed_files(directory: Path) -> Iterator[StagedFile]:
    """Yield what was set aside. Blocks. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), os.scandir(directory / UNCLAIMED) as entries:
        for entry in entries:
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            ours = parse_id(entry.name) if stat.S_ISREG(facts.st_mode) else None
            yield StagedFile(f"{UNCLAIMED}/{entry.name}", ours, facts.st_size, facts.st_mtime)


def unclaimed_bytes(directory: Path) -> float:
    """Return how much was set aside, 0 where that cannot be read. Blocks."""
    try:
        return float(sum(file.size for file in unclaimed_files(directory)))
    except OSError:
        return 0.0


def set_aside(directory: Path, upload_id: UploadId, path: Path) -> None:
    """Move a staged file to `unclaimed/`, durably. The caller holds its lock. Raises OSError, `StorageError`."""
    target = unclaimed_path(directory, upload_id)
    target.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    # First: should the machine stop in between, the file is merely young, and is set aside later.
    os.utime(path)
    _move(path, target)


def take_back(directory: Path, upload_id: UploadId, path: Path) -> None:
    """Move a file back to its place, durably. The caller holds its lock. Raises OSError, `StorageError`."""
    _move(unclaimed_path(directory, upload_id), path)


def parse_id(name: str) -> UploadId | None:
    """Return the id that a file is named after, None for names that this server never gives."""
    try:
        upload_id = UUID(name)
    except ValueError:
        return None
    return UploadId(upload_id) if str(upload_id) == name else None


def _move(source: Path, target: Path) -> None:
    # A move of a file of this name holds the source's lock, so nothing else makes the target meanwhile.
    if os.path.lexists(target):
        raise StorageError("There is already a file in its place; nothing was moved.", path=str(target))
    parents = [os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for path in (target, source)]
    try:
        source.rename(target)
        for parent in parents:
            os.fsync(parent)
    finally:
        for parent in parents:
            os.close(parent)
