"""What is done with one object of the filesystem store, or with a batch of them. Everything here blocks.

The rules that make a repetition safe, whatever a killed worker left:

- An object is in its place, or it is not: it gets its name, by `link`, when all of its bytes are there.
- What has the name already is compared before anything is done: the same file, or the same checksum, is a
  try that succeeded; anything else is foreign and stays.
- A name counts once its directory is synced; a batch syncs each directory once.
- A removal compares as well, and syncs, or a power cut could bring the name back, and nothing would remove it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tusd_py.errors import (
    PermanentStoreError,
    StagingDamaged,
    StagingMissing,
    StorageError,
    StoredObjectMissing,
    TransientStoreError,
)
from tusd_py.ports import NO_DIGESTS, Digests, LocalFile, ObjectIdentity, ObjectSpec, Segment, StoredObject
from tusd_py.stores.digests import digests_of, new_hashes
from tusd_py.stores.filesystem.copy import copy_at_once, discard_incomplete, discard_leftovers
from tusd_py.stores.filesystem.tree import FileTree, sync_path, translated
from tusd_py.stores.ranges import checksum_range, nonempty, require_length

T = TypeVar("T")
Throttle = Callable[[int], None]
"""Called with a number of bytes before they are copied; waits as long as a limited rate demands."""

_TRIES: Final = 3
"""Of linking into a directory that another process may prune at the same moment."""

_NOT_LINKABLE: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Another disk, a file of another user, a file system without links: all of them can be copied."""


class FileObjects:
    """The objects below a root, one file each."""

    def __init__(self, tree: FileTree, *, sync_linked: bool) -> None:
        self._tree = tree
        self._sync_linked = sync_linked

    def put_linked(self, spec: ObjectSpec, segments: Sequence[Segment]) -> Digests | None:
        """Store without copying and return the digests; None where that cannot be done."""
        with translated(spec.key):
            path = self._tree.path(spec.key)
            digests = self._find_or_link(path, spec, segments)
            if digests is not None:
                sync_path(path.parent)
            return digests

    def put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]], throttle: Throttle
    ) -> list[StoredObject | StorageError]:
        """Store many, each as `put` would; `throttle` is called before each copy."""
        results: list[StoredObject | StorageError] = []
        unsynced: dict[Path, list[int]] = {}
        for index, (spec, segments) in enumerate(items):
            try:
                directory, digests = self._put_unsynced(spec, segments, throttle)
            except StorageError as error:
                results.append(error)
            else:
                unsynced.setdefault(directory, []).append(index)
                results.append(self.stored(spec, digests))
        # One sync names all new objects of a directory: it is what dominates small uploads.
        for directory, indexes in unsynced.items():
            try:
                with translated(str(directory)):
                    sync_path(directory)
            except StorageError as error:
                for index in indexes:
                    results[index] = error
        return results

    def _put_unsynced(self, spec: ObjectSpec, segments: Sequence[Segment], throttle: Throttle) -> tuple[Path, Digests]:
        """Store, and return which directory is to be synced."""
        with translated(spec.key):
            path = self._tree.path(spec.key)
            digests = self._find_or_link(path, spec, segments)
            if digests is None:
                throttle(spec.length)
                copy = partial(copy_at_once, self._tree, path, spec, nonempty(segments))
                # None: another worker's copy of the same upload was there first.
                digests = publish_once(copy, path, spec, segments) or _digests(Segment(path, spec.length), spec)
            return path.parent, digests

    def _find_or_link(self, path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> Digests | None:
        """Return the digests of an object that an earlier try has put there, or that is linked now; None: copy it."""
        require_length(spec, segments)
        pieces = nonempty(segments)
        for _ in range(_TRIES):
            if _holds(path, spec, pieces):
                discard_leftovers(path)
                digests = _digests(Segment(path, spec.length), spec)
                break
            try:
                linked = self._link(path, spec, pieces[0]) if len(pieces) == 1 else None
                if linked is None:
                    return None
                digests = linked
                break
            except FileExistsError:
                continue  # by another worker, or a foreign one: checked by the next turn
            except FileNotFoundError:
                self._tree.forget(path)  # pruned by another process meanwhile
        else:
            raise TransientStoreError("The store's directory does not stay.", key=spec.key)
        if self._sync_linked:
            sync_path(path)
        return digests

    def _link(self, path: Path, spec: ObjectSpec, segment: Segment) -> Digests | None:
        try:
            staged = segment.path.stat()
        except FileNotFoundError as error:
            raise StagingMissing(path=str(segment.path)) from error
        if staged.st_size < segment.length:
            raise StagingDamaged(path=str(segment.path), ends_at=staged.st_size)
        # What will have to be copied is read for its digests then, not before.
        if staged.st_size > segment.length or (spec.digests and staged.st_dev != self._tree.device()):
            return None
        digests = _digests(segment, spec)
        self._tree.make_parents(path)
        try:
            path.hardlink_to(segment.path)
        except OSError as error:
            if error.errno in _NOT_LINKABLE:
                return None
            raise
        return digests

    def stored(self, spec: ObjectSpec, digests: Digests) -> StoredObject:
        """Return what is to be recorded of an object that is in its place."""
        with translated(spec.key):
            return StoredObject(spec.key, spec.length, _etag(self._tree.path(spec.key).stat()), digests=digests)

    def stat(self, key: str) -> StoredObject | None:
        """See `ObjectStore.stat`."""
        with translated(key):
            try:
                found = self._tree.path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                self._tree.probe()  # on a disk that is not mounted nothing is missing
                return None
        return StoredObject(key, found.st_size, _etag(found)) if stat.S_ISREG(found.st_mode) else None

    def locate(self, key: str) -> LocalFile:
        """See `ObjectStore.locate`."""
        path = self._tree.path(key)
        try:
            return LocalFile(path, _etag(path.stat()))
        except (FileNotFoundError, NotADirectoryError) as error:
            self._tree.probe()  # on a disk that is not mounted nothing is missing
            raise StoredObjectMissing(key=key) from error

    def abort(self, key: str, name: str) -> None:
        """Remove one incomplete file, and the directories that are empty then."""
        path = self._tree.path(key)
        with translated(key):
            discard_incomplete(path, name)
            self._tree.prune(path)

    def remove(self, identity: ObjectIdentity) -> bool:
        """See `ObjectStore.remove`."""
        path = self._tree.path(identity.key)
        with translated(identity.key):
            discard_leftovers(path)
            try:
                ours = _belongs_to(path, identity)
                if ours:
                    path.unlink()
                    # The name must not come back with a power cut: nothing would remove it then.
                    sync_path(path.parent)
            except (FileNotFoundError, NotADirectoryError):
                self._tree.probe()  # on a disk that is not mounted nothing is gone
                ours = True
            self._tree.prune(path)
        return ours


def _digests(piece: Segment, spec: ObjectSpec) -> Digests:
    """Return the digests that `spec` asks for. Reading the file for them, compare its checksum as well."""
    if not spec.digests:
        return NO_DIGESTS
    hashes = new_hashes(spec.digests)
    crc = checksum_range([piece], 0, spec.length, hashes=tuple(hashes.values())).crc64nvme
    if spec.crc64nvme not in {None, crc}:
        raise StagingDamaged(key=spec.key, expected=spec.crc64nvme, found=crc)
    return digests_of(hashes)


def publish_once(publish: Callable[[], T], path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> T | None:
    """Return what `publish` returns, None if the object got its name meanwhile.

    Raises:
        PermanentStoreError: something else has taken its place meanwhile.
    """
    try:
        return publish()
    except FileExistsError:
        if _holds(path, spec, nonempty(segments)):
            return None
        raise  # and gone again: for the next try


def _holds(path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> bool:
    """Return whether the file holds this very object already.

    Raises:
        PermanentStoreError: there is something else in its place.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != spec.length:
        raise PermanentStoreError("Something else has this key.", key=spec.key, length=found.st_size)
    if len(segments) == 1 and _is_same_file(found, segments[0].path):
        return True
    expected = spec.crc64nvme
    if expected is None:
        expected = checksum_range(segments, 0, spec.length).crc64nvme
    if checksum_range([Segment(path, spec.length)], 0, spec.length).crc64nvme != expected:
        raise PermanentStoreError("Something else has this key.", key=spec.key, length=found.st_size)
    return True


def _belongs_to(path: Path, identity: ObjectIdentity) -> bool:
    """Return whether the file is the upload's: by its time of writing, else by its bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != identity.length:
        return False
    if _etag(found) == identity.etag:
        return True
    crc = checksum_range([Segment(path, identity.length)], 0, identity.length).crc64nvme
    # Reading may take long, and the file may have been replaced meanwhile.
    return crc == identity.crc64nvme and _etag(path.lstat()) == _etag(found)


def _etag(facts: os.stat_result) -> str:
    """Return a text that changes with a file's bytes, and stays when it is moved or copied with its times."""
    return f"{facts.st_mtime_ns:x}-{facts.st_size:x}"


def _is_same_file(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, path.stat())
    except FileNotFoundError:
        return False
