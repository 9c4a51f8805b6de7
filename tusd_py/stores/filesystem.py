"""The destination on a disk: one file per object, its key being its path below the root.

A staged file on the same file system is linked, which costs the same whatever its size and reads
nothing, unless digests are wanted. Anything else is copied beside its place, verified on the way,
synced and given its name. Nothing is reported as stored before the directory that names it is synced, and a
file that is not ours is never replaced.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from tusd_py.directory_check import check_directory
from tusd_py.errors import (
    PermanentStoreError,
    StagingDamaged,
    StagingMissing,
    StorageError,
    StoredObjectMissing,
    TransientStoreError,
)
from tusd_py.ports import (
    NO_DIGESTS,
    BatchStore,
    CheckResult,
    Digests,
    DownloadHeaders,
    ListableStore,
    ListedObject,
    LocalFile,
    MeasuredStore,
    ObjectIdentity,
    ObjectSpec,
    ObjectStore,
    Segment,
    StoredObject,
    TransferState,
    UnfinishedObject,
)
from tusd_py.protocol.concat import Room
from tusd_py.stores import file_listing
from tusd_py.stores.digests import digests_of, new_hashes
from tusd_py.stores.file_copy import FileCopy, copy_at_once, discard_half_made, discard_leftovers
from tusd_py.stores.file_tree import FileTree, sync_path, translated
from tusd_py.stores.ranges import checksum_range, nonempty, require_length
from tusd_py.stores.rate_limit import Bandwidth, RateLimiter

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LISTED_AT_ONCE: Final = 500
_TRIES: Final = 3
"""Of linking into a directory that another process may prune at the same moment."""

Pace = Callable[[int], None]

_NOT_LINKABLE: Final = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Another disk, a file of another user, a file system without links: all of them can be copied."""


class FilesystemStore(ObjectStore, MeasuredStore, BatchStore, ListableStore):
    """Objects as files below `root`.

    `sync_linked` is for staging that acknowledges from the page cache: a linked file is then synced
    before it counts as stored; otherwise its bytes are known to be on the disk already. `bandwidth`
    limits copies; a link moves no bytes. Without `make_root` the root must be there when it is opened.
    """

    name = "filesystem"
    keeps_ids = False

    def __init__(
        self,
        root: Path,
        *,
        sync_linked: bool = False,
        bandwidth: Bandwidth | None = None,
        threads: int = 4,
        make_root: bool = True,
    ) -> None:
        self._tree = FileTree(root)
        self._make_root = make_root
        self._bandwidth = bandwidth
        self._sync_linked = sync_linked
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="filesystem-store")

    async def open(self) -> None:
        await self._run(self._tree.open if self._make_root else self._tree.probe)

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    async def room(self) -> Room:
        return await self._run(self._tree.room)

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        digests = await self._run(self._put_linked, spec, segments)
        if digests is None:
            digests = await self._put_copied(spec, segments, transfer_state)
        return await self._run(self._stored, spec, digests)

    async def put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]]
    ) -> list[StoredObject | StorageError]:
        return await self._run(self._put_batch, items, self._pace())

    async def stat(self, key: str) -> StoredObject | None:
        return await self._run(self._stat, key)

    async def remove(self, identity: ObjectIdentity) -> bool:
        return await self._run(self._remove, identity)

    async def abort(self, key: str, multipart_id: str) -> None:
        """Remove a half-made file; every try has one of its own."""
        await self._run(self._abort, key, multipart_id)

    async def probe(self, *, writing: bool = False) -> None:
        await self._run(self._tree.probe)
        if writing:
            await self._run(self._tree.probe_writing)

    async def check(self) -> AsyncGenerator[CheckResult]:
        for result in await self._run(lambda: list(check_directory("store", self._tree.root))):
            yield result

    async def locate(
        self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int
    ) -> LocalFile:
        return await self._run(self._locate, key)

    def local_path(self, key: str) -> Path:
        """Return the object's path. Never leaves the root, whatever the key."""
        return self._tree.path(key)

    def list_objects(self) -> AsyncIterator[ListedObject]:
        return self._in_pages(file_listing.objects(self._tree.root))

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        return self._in_pages(file_listing.incomplete(self._tree.root))

    async def _in_pages(self, found: Iterator[T]) -> AsyncIterator[T]:
        await self._run(self._tree.probe)
        while page := await self._run(_next_page, found):
            for each in page:
                yield each

    async def _run(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def _put_copied(
        self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState
    ) -> Digests:
        copy = FileCopy(self._tree, self._tree.path(spec.key), spec, nonempty(segments))
        limiter = self._bandwidth.limiter() if self._bandwidth else None
        try:
            with translated(spec.key):
                await self._run(copy.begin)
                while not await self._step(copy, spec, limiter):
                    await transfer_state.progress(copy.copied)
                # Also a fence: a worker that lost its transfer stops before anything is visible.
                await transfer_state.progress(copy.copied)
                await self._run(_publish, copy.publish, self._tree.path(spec.key), spec, segments)
                await self._run(sync_path, self._tree.path(spec.key).parent)
        finally:
            # Also after a cancellation; it waits for the step that is then still running.
            await self._run(copy.discard)
        return copy.digests

    async def _step(self, copy: FileCopy, spec: ObjectSpec, limiter: RateLimiter | None) -> bool:
        if limiter is None:
            return await self._run(copy.step)
        await limiter.acquire(min(limiter.block_bytes, spec.length - copy.copied))
        return await self._run(copy.step, limiter.block_bytes)

    def _pace(self) -> Pace:
        """Return what a thread calls before it copies so many bytes."""
        if self._bandwidth is None:
            return _unlimited
        limiter, loop = self._bandwidth.limiter(), asyncio.get_running_loop()

        def wait(count: int) -> None:
            asyncio.run_coroutine_threadsafe(limiter.acquire(count), loop).result()

        return wait

    # --- from here on in threads ---------------------------------------------------------------

    def _put_linked(self, spec: ObjectSpec, segments: Sequence[Segment]) -> Digests | None:
        """Store without copying and return the digests; None where that cannot be done."""
        with translated(spec.key):
            path = self._tree.path(spec.key)
            digests = self._in_place(path, spec, segments)
            if digests is not None:
                sync_path(path.parent)
            return digests

    def _put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]], pace: Pace
    ) -> list[StoredObject | StorageError]:
        results: list[StoredObject | StorageError] = []
        unsynced: dict[Path, list[int]] = {}
        for index, (spec, segments) in enumerate(items):
            try:
                directory, digests = self._put_unsynced(spec, segments, pace)
            except StorageError as error:
                results.append(error)
            else:
                unsynced.setdefault(directory, []).append(index)
                results.append(self._stored(spec, digests))
        # One sync names all new objects of a directory: it is what dominates small uploads.
        for directory, indexes in unsynced.items():
            try:
                with translated(str(directory)):
                    sync_path(directory)
            except StorageError as error:
                for index in indexes:
                    results[index] = error
        return results

    def _put_unsynced(self, spec: ObjectSpec, segments: Sequence[Segment], pace: Pace) -> tuple[Path, Digests]:
        """Store, and return which directory is to be synced."""
        with translated(spec.key):
            path = self._tree.path(spec.key)
            digests = self._in_place(path, spec, segments)
            if digests is None:
                pace(spec.length)
                copy = partial(copy_at_once, self._tree, path, spec, nonempty(segments))
                # None: another worker's copy of the same upload was there first.
                digests = _publish(copy, path, spec, segments) or _digests(Segment(path, spec.length), spec)
            return path.parent, digests

    def _in_place(self, path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> Digests | None:
        """Return the digests of an object in its place, linked there now or by an earlier try."""
        require_length(spec, segments)
        pieces = nonempty(segments)
        for _ in range(_TRIES):
            if _is_there(path, spec, pieces):
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
                continue  # by another worker, or not ours: the next look tells
            except FileNotFoundError:
                self._tree.forget(path)  # pruned under our hands
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

    def _stored(self, spec: ObjectSpec, digests: Digests) -> StoredObject:
        with translated(spec.key):
            return StoredObject(spec.key, spec.length, _tag(self._tree.path(spec.key).stat()), digests=digests)

    def _stat(self, key: str) -> StoredObject | None:
        with translated(key):
            try:
                found = self._tree.path(key).stat()
            except (FileNotFoundError, NotADirectoryError):
                self._tree.probe()  # on a disk that is not mounted nothing is missing
                return None
        return StoredObject(key, found.st_size, _tag(found)) if stat.S_ISREG(found.st_mode) else None

    def _locate(self, key: str) -> LocalFile:
        path = self._tree.path(key)
        try:
            return LocalFile(path, _tag(path.stat()))
        except (FileNotFoundError, NotADirectoryError) as error:
            self._tree.probe()  # on a disk that is not mounted nothing is missing
            raise StoredObjectMissing(key=key) from error

    def _abort(self, key: str, name: str) -> None:
        path = self._tree.path(key)
        with translated(key):
            discard_half_made(path, name)
            self._tree.prune(path)

    def _remove(self, identity: ObjectIdentity) -> bool:
        path = self._tree.path(identity.key)
        with translated(identity.key):
            discard_leftovers(path)
            try:
                ours = _is_of(path, identity)
                if ours:
                    path.unlink()
                    # The name must not come back with a power cut: nobody would look for it again.
                    sync_path(path.parent)
            except (FileNotFoundError, NotADirectoryError):
                self._tree.probe()  # on a disk that is not mounted nothing is gone
                ours = True
            self._tree.prune(path)
        return ours


def _digests(piece: Segment, spec: ObjectSpec) -> Digests:
    """Read one file for the digests that are wanted; being read, it is compared as well."""
    if not spec.digests:
        return NO_DIGESTS
    hashes = new_hashes(spec.digests)
    crc = checksum_range([piece], 0, spec.length, fed=tuple(hashes.values())).crc64nvme
    if spec.crc64nvme not in {None, crc}:
        raise StagingDamaged(key=spec.key, expected=spec.crc64nvme, found=crc)
    return digests_of(hashes)


def _publish(publish: Callable[[], T], path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> T | None:
    """Return what `publish` returns, None if this very object is in its place already.

    Raises:
        PermanentStoreError: something else has taken its place since the first look.
    """
    try:
        return publish()
    except FileExistsError:
        if _is_there(path, spec, nonempty(segments)):
            return None
        raise  # and gone again: the next try looks anew


def _unlimited(count: int) -> None:
    """Wait for nothing."""


def _next_page(found: Iterator[T]) -> list[T]:
    with translated(""):
        return list(itertools.islice(found, _LISTED_AT_ONCE))


def _is_there(path: Path, spec: ObjectSpec, segments: Sequence[Segment]) -> bool:
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


def _is_of(path: Path, identity: ObjectIdentity) -> bool:
    """Return whether the file is the upload's: by its time of writing, else by its bytes.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != identity.length:
        return False
    if _tag(found) == identity.etag:
        return True
    crc = checksum_range([Segment(path, identity.length)], 0, identity.length).crc64nvme
    # Reading may take long, and somebody may have replaced it meanwhile.
    return crc == identity.crc64nvme and _tag(path.lstat()) == _tag(found)


def _tag(facts: os.stat_result) -> str:
    """Return what changes with a file's bytes, and stays when it is moved or copied with its times."""
    return f"{facts.st_mtime_ns:x}-{facts.st_size:x}"


def _is_same_file(found: os.stat_result, path: Path) -> bool:
    try:
        return os.path.samestat(found, path.stat())
    except FileNotFoundError:
        return False
