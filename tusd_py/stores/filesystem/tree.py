"""The directories of the filesystem store: where a key lies, and that its name survives a power cut.

Two rules live here: no key leads out of the root, and the root itself is created at the start only,
so that a disk that is not mounted is noticed, and nothing is written below its empty mount point.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tusd_py.errors import PermanentStoreError, TransientStoreError
from tusd_py.protocol.concat import Room

TEMPORARY_SUFFIX: Final = ".tmp"
_NAME_MAX_BYTES: Final = 255
_SAMPLE: Final = bytes(64 * 1024)
_MOST_REMEMBERED: Final = 10_000
_TRIES: Final = 5
"""Of making a directory that `prune` may remove at the same moment."""

_REFUSED: Final = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG,
    errno.ELOOP,
}  # fmt: skip


@contextlib.contextmanager
def translated(key: str) -> Iterator[None]:
    """Raise an OSError of the store as `PermanentStoreError` or `TransientStoreError`."""
    try:
        yield
    except OSError as error:
        # A full disk is transient: what is staged stays, and some day there is room again.
        kind = PermanentStoreError if error.errno in _REFUSED else TransientStoreError
        raise kind(key=key, errno=errno.errorcode.get(error.errno or 0, "?"), reason=str(error)) from error


def sync_path(path: Path) -> None:
    """Make a file's bytes, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileTree:
    """The directories below `root`. All methods block; all may run in several threads."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow a link that moves
        self._durable: set[Path] = set()

    def device(self) -> int:
        """Return the number of the disk that the root is on."""
        return self.root.stat().st_dev

    def open(self) -> None:
        """Make the root, accessible to its owner only, and check that it can be used."""
        with translated(""):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.probe()

    def probe(self) -> None:
        """Raise unless the root is there and can be written."""
        if not self.root.is_dir():
            raise TransientStoreError("The store's directory is missing.", root=str(self.root))
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise PermanentStoreError("The store's directory cannot be written.", root=str(self.root))

    def room(self) -> Room:
        """Return how much the disk can take."""
        with translated(""):
            facts = os.statvfs(self.root)
        return Room(facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize)

    def probe_writing(self) -> None:
        """Raise unless the disk takes bytes, by a file that has no name or loses it immediately."""
        with translated(""), tempfile.TemporaryFile(dir=self.root, buffering=0) as file:
            file.write(_SAMPLE)
            os.fsync(file.fileno())

    def path(self, key: str) -> Path:
        """Return where the object of this key lies, which is always below the root.

        Raises:
            PermanentStoreError: the key cannot be a path below the root.
        """
        names = key.split("/")
        if not all(_is_usable(name) for name in names):
            raise PermanentStoreError("The store cannot hold this key.", key=key)
        return self.root.joinpath(*names)

    def make_parents(self, path: Path) -> None:
        """Make the directories above `path` so that they survive a power cut."""
        if path.parent in self._durable:
            return
        for attempt in range(_TRIES):
            try:
                self._make_directories(path.parent)
            except FileNotFoundError:
                if attempt == _TRIES - 1:
                    raise
            else:
                break
        if len(self._durable) >= _MOST_REMEMBERED:
            self._durable.clear()
        self._durable.add(path.parent)

    def _make_directories(self, directory: Path) -> None:
        below_root = directory.relative_to(self.root).parts
        current = self.root
        for name in below_root:
            above, current = current, current / name
            with contextlib.suppress(FileExistsError):
                current.mkdir(mode=0o700)
            # Also where it existed: the process that made it may have been killed before this.
            sync_path(above)

    def forget(self, path: Path) -> None:
        """Check the directories above `path` again: another process removed one."""
        self._durable.discard(path.parent)

    def prune(self, path: Path) -> None:
        """Remove the directories above `path` that are empty, but never the root."""
        for directory in path.parents:
            if directory == self.root:
                return
            self._durable.discard(directory)
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError:  # not empty, which is the usual end
                return


def _is_usable(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    # Room is left for the suffix, and names that end with it are ours: see FileCopy.
    fits = 0 < len(encoded) <= _NAME_MAX_BYTES - len(TEMPORARY_SUFFIX)
    return fits and b"\0" not in encoded and name not in {".", ".."} and not name.endswith(TEMPORARY_SUFFIX)
