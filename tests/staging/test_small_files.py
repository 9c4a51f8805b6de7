"""Small files gathered into batches: no file waits for a worker that does not come."""

from __future__ import annotations

import asyncio

import pytest

from tusd_py.errors import StorageError
from tusd_py.staging.small import SmallFile, SmallFiles

SECONDS = 20


class Disk:
    """Stores batches at once, or once it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.arrivals: asyncio.Queue[None] = asyncio.Queue()
        self.broken_for = ""
        self.free = asyncio.Event()
        self.free.set()

    async def store(self, files: list[SmallFile]) -> None:
        self.batches.append([file.path for file in files])
        self.arrivals.put_nowait(None)
        await self.free.wait()
        if any(file.path == self.broken_for for file in files):
            raise RuntimeError("no more threads")


async def test_a_file_that_comes_as_a_worker_ends_is_stored() -> None:
    """Its caller runs between the end of the last batch and whatever follows the end of the worker's task."""
    disk = Disk()
    small = SmallFiles(disk.store, workers=1)

    async with asyncio.timeout(SECONDS):
        for name in "abc":
            await small.store(name, [b"content"])

    assert disk.batches == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize("workers", [1, 2])
async def test_files_that_come_while_all_workers_are_at_the_disk_are_stored_together(workers: int) -> None:
    disk = Disk()
    disk.free.clear()
    small = SmallFiles(disk.store, workers=workers)
    storing = []
    for name in ["first", "second"][:workers]:
        storing.append(asyncio.create_task(small.store(name, [b"content"])))
        await asyncio.wait_for(disk.arrivals.get(), SECONDS)

    storing += [asyncio.create_task(small.store(name, [b"content"])) for name in "abc"]
    await asyncio.sleep(0)
    disk.free.set()

    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*storing)
    assert disk.batches[workers:] == [["a", "b", "c"]]


async def test_files_behind_a_batch_that_failed_are_stored() -> None:
    """An error that is no file's own is told to the batch; those that wait have nothing to do with it."""
    disk = Disk()
    disk.free.clear()
    disk.broken_for = "failing"
    small = SmallFiles(disk.store, workers=1)
    failing = asyncio.create_task(small.store("failing", [b"content"]))
    await asyncio.wait_for(disk.arrivals.get(), SECONDS)
    waiting = asyncio.create_task(small.store("waiting", [b"content"]))
    await asyncio.sleep(0)
    disk.free.set()

    async with asyncio.timeout(SECONDS):
        with pytest.raises(StorageError, match="no more threads"):
            await failing
        await waiting
    assert disk.batches == [["failing"], ["waiting"]]
