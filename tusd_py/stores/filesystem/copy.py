"""Copying staged segments into one new file, verified on the way and visible only when whole.

The bytes are read into memory although the kernel could copy them by itself: they have to be
compared with the checksum from the client's socket, and that needs the same read.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tusd_py import crc64
from tusd_py.errors import StagingDamaged
from tusd_py.ports import Digests, ObjectSpec, Segment
from tusd_py.stores.digests import digests_of, new_hashes
from tusd_py.stores.filesystem.exclusive_name import give_name
from tusd_py.stores.filesystem.tree import TEMPORARY_SUFFIX, FileTree
from tusd_py.stores.ranges import READ_BYTES, RangeReader

_INCOMPLETE: Final = re.compile(r"[0-9a-f]{16}")
STEP_BYTES: Final = 64 * 2**20
"""Copied by one call of `step`: between two, progress is recorded and a cancellation takes effect."""


def discard_leftovers(path: Path) -> None:
    """Remove what a killed copy to this path left behind."""
    shutil.rmtree(_temporary_directory(path), ignore_errors=True)


def discard_incomplete(path: Path, name: str) -> None:
    """Remove one incomplete file of a copy to this path; a missing one is fine."""
    if _INCOMPLETE.fullmatch(name):
        directory = _temporary_directory(path)
        (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another copy is under way there, or it is gone
            directory.rmdir()


def _temporary_directory(path: Path) -> Path:
    # A directory of a known name holds the incomplete file, so that leftovers are found without
    # listing a directory of a hundred thousand objects. The file's own name is random: a worker
    # that lost its lease fails to rename what its successor removed, and harms nothing.
    return path.with_name(path.name + TEMPORARY_SUFFIX)


class FileCopy:
    """One copy: `begin`, `step` until it returns True, `publish`; then `discard` in any case.

    All methods block. They may be called from different threads, one after the other; `discard`
    waits for a `step` that is still running.
    """

    def __init__(self, tree: FileTree, path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> None:
        self._tree = tree
        self._path = path
        self._spec = spec
        self._reader = RangeReader(segments, 0, spec.length)
        self._incomplete = _temporary_directory(path) / secrets.token_hex(8)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._crc = crc64.EMPTY
        self._hashes = new_hashes(spec.digests)
        self.copied = 0

    def begin(self) -> None:
        """Make the file, after removing those of earlier tries."""
        with self._lock:
            discard_leftovers(self._path)
            self._tree.forget(self._path)
            self._tree.make_parents(self._path)
            self._incomplete.parent.mkdir(mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._incomplete, flags, 0o600)

    def step(self, most_bytes: int) -> bool:
        """Copy the next `most_bytes`, or what is left; return whether all is copied and matches its checksum.

        Raises:
            StagingDamaged: a file is missing or short, or the bytes are not those of the client.
        """
        with self._lock:
            if self._descriptor is None:  # discarded by a caller that was cancelled
                return True
            end = min(self.copied + most_bytes, self._spec.length)
            buffer = memoryview(bytearray(min(READ_BYTES, end - self.copied)))
            while self.copied < end:
                room = buffer[: end - self.copied]
                chunk = room[: self._reader.read_into(room, self.copied)]
                self._crc = crc64.update(chunk, self._crc)
                for running in self._hashes.values():
                    running.update(chunk)
                _write_all(self._descriptor, chunk, self.copied)
                self.copied += len(chunk)
        if self.copied < self._spec.length:
            return False
        if self._spec.crc64nvme not in {None, self._crc}:
            raise StagingDamaged(key=self._spec.key, expected=self._spec.crc64nvme, found=self._crc)
        return True

    @property
    def digests(self) -> Digests:
        """The digests that the spec asks for, of what was copied."""
        return digests_of(self._hashes)

    def publish(self) -> None:
        """Give the file its name. The caller syncs the directory above.

        Raises:
            FileExistsError: the name was taken meanwhile; nothing was changed.
        """
        with self._lock:
            if self._descriptor is not None:
                os.fsync(self._descriptor)
                give_name(self._incomplete, self._path)

    def discard(self) -> None:
        """Close, and remove what was not published."""
        with self._lock:
            self._reader.close()
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                with contextlib.suppress(OSError):
                    self._incomplete.unlink(missing_ok=True)
                    self._incomplete.parent.rmdir()


def copy_at_once(tree: FileTree, path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> Digests:
    """Copy and publish in one call and return the digests; the caller syncs the directory above.

    Raises:
        FileExistsError: see `FileCopy.publish`.
    """
    copy = FileCopy(tree, path, spec, segments)
    try:
        copy.begin()
        while not copy.step(STEP_BYTES):
            pass
        copy.publish()
    finally:
        copy.discard()
    return copy.digests


def _write_all(descriptor: int, chunk: memoryview, offset: int) -> None:
    while chunk:
        written = os.pwrite(descriptor, chunk, offset)
        chunk, offset = chunk[written:], offset + written
