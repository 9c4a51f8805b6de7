"""SHA-256 and MD5 of what is stored, on every destination and whoever sent which part of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.stores.test_object_store import (
    KEY,
    THREE_PARTS,
    TWO_PARTS,
    assert_nothing,
    spec_of,
)
from tests.support.destinations import (
    Calls,
    Crash,
    Destination,
    FilesystemDestination,
    MemoryTransferState,
    S3Destination,
    put_parts,
)
from tests.support.fixtures import Content, OpenStore, Stage
from tusd_py.errors import StagingDamaged
from tusd_py.ports import NO_DIGESTS, BatchStore, Digests, Segment, StoredObject
from tusd_py.stores import digests
from tusd_py.stores.filesystem import objects as file_objects
from tusd_py.stores.ranges import RangeReader, checksum_range

BOTH = frozenset({"sha256", "md5"})


def digests_of(data: bytes) -> Digests:
    return Digests(hashlib.sha256(data).digest(), hashlib.md5(data, usedforsecurity=False).digest())


@pytest.fixture
def other_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the filesystem store copy as it does across disks."""
    monkeypatch.setattr("tusd_py.stores.filesystem.tree.FileTree.device", lambda _: -1)

    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all reads for checksums."""
    lengths: list[int] = []

    def counted(segments: Any, start: int, length: int, **options: Any) -> Any:
        lengths.append(length)
        return checksum_range(segments, start, length, **options)

    monkeypatch.setattr(digests, "checksum_range", counted)
    monkeypatch.setattr(file_objects, "checksum_range", counted)
    return lengths


@pytest.mark.parametrize("length", [0, 1000, TWO_PARTS], ids=["empty", "1000", "parts"])
async def test_the_digests_are_those_of_the_object(
    destination: Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    read_bytes: list[int],
    length: int,
) -> None:
    store = await open_store(destination)
    data = content(length)

    stored = await store.put(spec_of(data, digests=BOTH), stage(data), MemoryTransferState())

    assert stored.digests == digests_of(data)
    assert destination.read(KEY) == data
    assert sum(read_bytes) == length  # no second read for them


@pytest.mark.parametrize("wanted", [set(), {"sha256"}, {"md5"}], ids=["none", "sha256", "md5"])
async def test_only_what_is_wanted_is_computed(
    destination: Destination, open_store: OpenStore, stage: Stage, wanted: set[str]
) -> None:
    spec = spec_of(b"abc", digests=frozenset(wanted))

    stored = await (await open_store(destination)).put(spec, stage(b"abc"), MemoryTransferState())

    assert (stored.digests.sha256 is not None, stored.digests.md5 is not None) == ("sha256" in wanted, "md5" in wanted)


async def test_a_concatenation_has_the_digests_of_the_whole(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(TWO_PARTS)
    segments = stage(data[:7], b"", data[7:3_000_000], data[3_000_000:])

    stored = await (await open_store(destination)).put(spec_of(data, digests=BOTH), segments, MemoryTransferState())

    assert stored.digests == digests_of(data)


@pytest.mark.usefixtures("other_disk")
async def test_a_copy_is_hashed_while_it_is_made(
    tmp_path: Path, open_store: OpenStore, stage: Stage, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = FilesystemDestination(tmp_path / "store")
    data = content(TWO_PARTS)
    taken: list[int] = []
    original = RangeReader.read_into

    def counted(self: RangeReader, buffer: memoryview, offset: int, flags: int = 0) -> int:
        taken.append(count := original(self, buffer, offset, flags))
        return count

    monkeypatch.setattr(RangeReader, "read_into", counted)

    stored = await (await open_store(destination)).put(spec_of(data, digests=BOTH), stage(data), MemoryTransferState())

    assert stored.digests == digests_of(data)
    assert sum(taken) == len(data)


async def test_a_second_worker_knows_the_digests_of_what_the_first_has_sent(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls, read_bytes: list[int]
) -> None:
    data = content(THREE_PARTS)
    segments = stage(data[:10], data[10:])
    # Killed between the record of the first part and that of the second.
    transfer_state = MemoryTransferState(stop_at=5)
    with pytest.raises(Crash):
        await (await open_store(s3, part_concurrency=1)).put(spec_of(data, digests=BOTH), segments, transfer_state)
    assert len(transfer_state.recorded_parts) == 1
    calls.parts.clear()
    read_bytes.clear()

    stored = await (await open_store(s3)).put(spec_of(data, digests=BOTH), segments, transfer_state.successor())

    assert stored.digests == digests_of(data)
    assert 1 not in calls.parts
    assert sum(read_bytes) == len(data)
    assert s3.read(KEY) == data


async def test_what_was_sent_eager_is_read_for_its_digest_in_the_end(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, read_bytes: list[int]
) -> None:
    data = content(TWO_PARTS)
    (staged,) = stage(data)
    store, transfer_state = await open_store(s3), MemoryTransferState()
    early = spec_of(data, digests=BOTH, crc64nvme=None)
    await put_parts(store, early, [Segment(staged.path, len(data) - 1)], transfer_state)
    assert len(transfer_state.recorded_parts) == 1
    read_bytes.clear()

    stored = await store.put(spec_of(data, digests=BOTH), [staged], transfer_state.successor())

    assert stored.digests == digests_of(data)
    assert sum(read_bytes) == len(data)


async def test_an_object_of_an_earlier_try_gets_its_digests(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(destination)
    data = content(1000)
    segments = stage(data)
    await store.put(spec_of(data), segments, MemoryTransferState())

    again = await store.put(spec_of(data, digests=BOTH), segments, MemoryTransferState())

    assert again.digests == digests_of(data)


@pytest.mark.parametrize("harm", ["missing", "changed"])
async def test_digests_that_nobody_can_compute_any_more_are_none(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, harm: str
) -> None:
    # The object is in the store, and that counts more than a digest that is not there.
    store = await open_store(s3)
    data = content(1000)
    segments = stage(data)
    await store.put(spec_of(data), segments, MemoryTransferState())
    if harm == "missing":
        segments[0].path.unlink()
    else:
        segments[0].path.write_bytes(bytes(1000))

    again = await store.put(spec_of(data, digests=BOTH), segments, MemoryTransferState())

    assert again.digests == NO_DIGESTS
    assert s3.read(KEY) == data


@pytest.mark.parametrize("batch", [False, True])
async def test_a_link_that_is_read_for_its_digest_is_verified(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, *, batch: bool
) -> None:
    store = await open_store(destination)
    data = content(1000)
    segments = stage(bytes([data[0] ^ 1]) + data[1:])
    spec = spec_of(data, digests=BOTH)

    if batch and isinstance(store, BatchStore):
        (refusal,) = await store.put_batch([(spec, segments)])
        assert isinstance(refusal, StagingDamaged)
    else:
        with pytest.raises(StagingDamaged):
            await store.put(spec, segments, MemoryTransferState())

    assert_nothing(destination)


async def test_a_batch_has_digests_as_well(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(destination)
    if not isinstance(store, BatchStore):
        assert destination.name != "filesystem"
        return
    pieces = [content(length) for length in (0, 1, 1000)]

    results = await store.put_batch(
        [(spec_of(data, f"batch/{len(data)}", digests=BOTH), stage(data)) for data in pieces]
    )

    digests = [result.digests for result in results if isinstance(result, StoredObject)]
    assert digests == [digests_of(data) for data in pieces]
