"""A look at the staging directory from outside, and removing a file that nobody wants."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tusd_py.errors import StagingMissing
from tusd_py.protocol.upload import UploadId
from tusd_py.staging import DirectoryScan

pytestmark = pytest.mark.unit

SHARDS = ("00", "7f", "ff")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "staging"
    for shard in SHARDS:
        (directory / shard).mkdir(parents=True)
    return directory


def place(directory: Path, shard: str = "7f") -> tuple[UploadId, Path]:
    upload_id = UploadId(uuid.UUID(f"{str(uuid.uuid4())[:-2]}{shard}"))
    return upload_id, directory / shard / str(upload_id)


def answer(value: bool) -> Callable[[], Awaitable[bool]]:
    async def unwanted() -> bool:
        return value

    return unwanted


async def never() -> bool:
    raise AssertionError("nobody may ask for this file")


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_every_entry_is_seen_once_in_pages(directory: Path, limit: int) -> None:
    placed = {}
    for number, shard in enumerate(SHARDS):
        upload_id, path = place(directory, shard)
        path.write_bytes(b"x" * number)
        os.utime(path, (1000 + number, 1000 + number))
        placed[upload_id] = number

    pages = list(DirectoryScan(directory).pages(limit))

    assert all(0 < len(page) <= limit for page in pages)
    seen = {file.upload_id: (file.size, file.modified_at) for page in pages for file in page}
    assert seen == {upload_id: (number, 1000.0 + number) for upload_id, number in placed.items()}


def test_only_regular_files_of_our_names_in_their_places_are_ours(directory: Path) -> None:
    ours, path = place(directory)
    path.write_bytes(b"ours")
    _, link = place(directory)
    link.symlink_to(path)
    _, pipe = place(directory)
    os.mkfifo(pipe)
    _, nested = place(directory)
    nested.mkdir()
    misplaced, _ = place(directory, "00")
    (directory / "ff" / str(misplaced)).write_bytes(b"")
    (directory / "7f" / str(ours).upper()).write_bytes(b"")
    (directory / "7f" / str(ours).replace("-", "")).write_bytes(b"")
    (directory / "stray").write_bytes(b"")
    (directory / "lost+found").mkdir()

    files = [file for page in DirectoryScan(directory).pages(100) for file in page]

    assert [file.upload_id for file in files if file.upload_id] == [ours]
    assert sorted(file.name for file in files if not file.upload_id) == sorted(
        [f"7f/{link.name}", f"7f/{pipe.name}", f"7f/{nested.name}", f"ff/{misplaced}", f"7f/{str(ours).upper()}",
         f"7f/{str(ours).replace('-', '')}", "stray"]
    )  # fmt: skip


def test_sizes_are_those_of_regular_files_that_are_there(directory: Path) -> None:
    ours, path = place(directory)
    path.write_bytes(b"ours")
    linked, link = place(directory)
    link.symlink_to(path)
    missing, _ = place(directory)

    assert DirectoryScan(directory).sizes([ours, linked, missing]) == {ours: 4}


def test_a_directory_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(StagingMissing):
        list(DirectoryScan(tmp_path / "unmounted").pages(10))


async def test_an_old_file_that_is_unwanted_goes(directory: Path) -> None:
    upload_id, path = place(directory)
    path.write_bytes(b"old")
    os.utime(path, (1000, 1000))
    scan = DirectoryScan(directory)

    assert not await scan.remove_unwanted(upload_id, unchanged_since=1000, unwanted=answer(False))
    assert path.exists()
    assert await scan.remove_unwanted(upload_id, unchanged_since=1000, unwanted=answer(True))
    assert not path.exists()
    assert not await scan.remove_unwanted(upload_id, unchanged_since=1000, unwanted=never)


async def test_a_file_that_changed_since_it_was_seen_stays(directory: Path) -> None:
    upload_id, path = place(directory)
    path.write_bytes(b"old")
    os.utime(path, (1001, 1001))

    assert not await DirectoryScan(directory).remove_unwanted(upload_id, unchanged_since=1000, unwanted=never)
    assert path.exists()


async def test_a_file_that_somebody_holds_stays_and_is_held_while_it_is_asked_for(directory: Path) -> None:
    upload_id, path = place(directory)
    path.write_bytes(b"held")
    scan = DirectoryScan(directory)
    with path.open("rb+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert not await scan.remove_unwanted(upload_id, unchanged_since=time.time() + 9, unwanted=never)

    async def is_locked() -> bool:
        with path.open("rb+") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False

    assert not await scan.remove_unwanted(upload_id, unchanged_since=time.time() + 9, unwanted=is_locked)
    with path.open("rb+") as later:
        fcntl.flock(later, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go again


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_what_took_the_place_of_a_file_is_neither_followed_nor_removed(directory: Path, kind: str) -> None:
    upload_id, path = place(directory)
    precious = directory.parent / "precious"
    precious.write_bytes(b"precious")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    assert not await DirectoryScan(directory).remove_unwanted(
        upload_id, unchanged_since=time.time() + 9, unwanted=never
    )
    assert os.path.lexists(path)
    assert precious.read_bytes() == b"precious"
