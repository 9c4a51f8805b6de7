"""The id of a staging directory: a small file in it, which says to which database the directory belongs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from tusd_py.errors import StagingMismatch, StagingMissing
from tusd_py.protocol.upload import StagingId
from tusd_py.staging.locked_file import DIRECTORY_MODE, FILE_MODE, translated_errors

ID_FILE: Final = "directory-id"
"""A plain name, so that a copy of the directory by `*` includes it."""


def read_id(directory: Path) -> StagingId | None:
    """Return the directory's id, None if it has none yet. Blocks.

    Raises:
        StagingMismatch: the file that holds it is damaged.
    """
    path = directory / ID_FILE
    try:
        with translated_errors():
            text = path.read_text(encoding="ascii", errors="replace").strip()
    except StagingMissing:
        return None
    try:
        return StagingId(UUID(text))
    except ValueError:
        raise StagingMismatch(f'{path} does not hold an id. Run "tusd-py staging adopt" to write it anew.') from None


def require_id(directory: Path, staging_id: StagingId) -> None:
    """Raise `StagingMismatch` unless the directory has this id still: a disk may have been unmounted. Blocks."""
    if (found := read_id(directory)) != staging_id:
        raise StagingMismatch(
            f"The staging directory {directory} has the id {found} now, and had {staging_id}: another directory "
            "is in its place. Nothing is removed."
        )


def write_id(directory: Path, staging_id: StagingId, *, replace: bool = False) -> bool:
    """Give the directory an id, durably, and return whether it has that one now. Blocks.

    Of several servers that start at the same moment one writes: without `replace` an existing id stays.
    """
    path, temporary = directory / ID_FILE, directory / f"{ID_FILE}.{uuid4().hex}"
    with translated_errors():
        directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        # Opened before a name is made in it: see `syncs.py`.
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _write(temporary, f"{staging_id}\n".encode())
            if replace:
                temporary.replace(path)
            else:
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(temporary)
            os.fsync(directory_fd)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(directory_fd)
    return read_id(directory) == staging_id


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        os.write(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
