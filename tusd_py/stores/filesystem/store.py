"""The destination on a disk: one file per object, its key being its path below the root.

A staged file on the same file system is linked, which costs the same whatever its size and reads
nothing, unless digests are configured. Anything else is copied beside its place, verified on the way,
synced and given its name. Nothing is reported as stored before the directory that names it is synced, and a
file that is not ours is never replaced.

How it is divided: this module is the port, and keeps every blocking call off the event loop. `objects`
says what is done with one object, `copy` copies in steps, `tree` has the directories, and `listing` reads
them in the order of keys.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from tusd_py.directory_check import check_directory
from tusd_py.errors import StorageError
from tusd_py.ports import (
    BatchStore,
    CheckResult,
    Digests,
    DownloadHeaders,
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
from tusd_py.stores.filesystem import listing
from tusd_py.stores.filesystem.copy import STEP_BYTES, FileCopy
from tusd_py.stores.filesystem.objects import FileObjects, Throttle, publish_once
from tusd_py.stores.filesystem.tree import FileTree, sync_path, translated
from tusd_py.stores.ranges import nonempty
from tusd_py.stores.rate_limit import Bandwidth, RateLimiter

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_LISTED_AT_ONCE: Final = 500
_THREADS: Final = 4


class FilesystemStore(ObjectStore, MeasuredStore, BatchStore):
    """Objects as files below `root`.

    `sync_linked` is for staging that acknowledges from the page cache: a linked file is then synced
    before it counts as stored; otherwise its bytes are known to be on the disk already. `bandwidth`
    limits copies; a link moves no bytes. Without `make_root` the root must be there when it is opened. A copy
    records its progress after each `copy_step` bytes, and a listing holds `page_size` names of a directory.
    """

    name = "filesystem"
    keeps_ids = False

    def __init__(  # noqa: PLR0913 -- settings, each by name
        self,
        root: Path,
        *,
        sync_linked: bool = False,
        bandwidth: Bandwidth | None = None,
        make_root: bool = True,
        copy_step: int = STEP_BYTES,
        page_size: int = listing.PAGE_SIZE,
    ) -> None:
        self._tree = FileTree(root)
        self._make_root = make_root
        self._copy_step = copy_step
        self._page_size = page_size
        self._bandwidth = bandwidth
        self._objects = FileObjects(self._tree, sync_linked=sync_linked)
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="filesystem-store")

    async def open(self) -> None:
        await self._run(self._tree.open if self._make_root else self._tree.probe)

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)

    async def room(self) -> Room:
        return await self._run(self._tree.room)

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        digests = await self._run(self._objects.put_linked, spec, segments)
        if digests is None:
            digests = await self._put_copied(spec, segments, transfer_state)
        return await self._run(self._objects.stored, spec, digests)

    async def put_batch(
        self, items: Sequence[tuple[ObjectSpec, Sequence[Segment]]]
    ) -> list[StoredObject | StorageError]:
        return await self._run(self._objects.put_batch, items, self._throttle())

    async def stat(self, key: str) -> StoredObject | None:
        return await self._run(self._objects.stat, key)

    async def remove(self, identity: ObjectIdentity) -> bool:
        return await self._run(self._objects.remove, identity)

    async def abort(self, key: str, multipart_id: str) -> None:
        """Remove an incomplete file; every try has one of its own."""
        await self._run(self._objects.abort, key, multipart_id)

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
        return await self._run(self._objects.locate, key)

    def local_path(self, key: str) -> Path:
        """Return the object's path. Never leaves the root, whatever the key."""
        return self._tree.path(key)

    def list_objects(self) -> AsyncIterator[ListedObject]:
        return self._in_pages(listing.objects(self._tree.root, self._page_size))

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        return self._in_pages(listing.incomplete(self._tree.root, self._page_size))

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
                await self._run(publish_once, copy.publish, self._tree.path(spec.key), spec, segments)
                await self._run(sync_path, self._tree.path(spec.key).parent)
        finally:
            # Also after a cancellation; it waits for the step that is then still running.
            await self._run(copy.discard)
        return copy.digests

    async def _step(self, copy: FileCopy, spec: ObjectSpec, limiter: RateLimiter | None) -> bool:
        if limiter is None:
            return await self._run(copy.step, self._copy_step)
        await limiter.acquire(min(limiter.block_bytes, spec.length - copy.copied))
        return await self._run(copy.step, limiter.block_bytes)

    def _throttle(self) -> Throttle:
        """Return what a thread of the batch calls before each copy."""
        if self._bandwidth is None:
            return _unlimited
        limiter, loop = self._bandwidth.limiter(), asyncio.get_running_loop()

        def wait(count: int) -> None:
            asyncio.run_coroutine_threadsafe(limiter.acquire(count), loop).result()

        return wait


def _unlimited(count: int) -> None:
    """Wait for nothing."""


def _next_page(found: Iterator[T]) -> list[T]:
    with translated(""):
        return list(itertools.islice(found, _LISTED_AT_ONCE))
