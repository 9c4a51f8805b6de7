"""Sending the beginning of an object while its end does not exist yet: what S3 must do for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stores.test_object_store import KEY, assert_nothing, assert_only, spec_of
from tests.support.destinations import PART, Calls, Crash, MemoryTransferState, S3Destination, identity_of, put_parts
from tests.support.fixtures import Content, OpenStore, Stage
from tusd_py.errors import StagingDamaged
from tusd_py.ports import PartStore, Segment
from tusd_py.stores.filesystem import FilesystemStore

LENGTH = 2 * PART + 1


def beginning(segments: list[Segment], length: int) -> list[Segment]:
    """The first bytes of a staged file, as if no others had come yet."""
    return [Segment(segments[0].path, length)]


async def test_parts_go_eager_and_the_rest_follows(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls
) -> None:
    data = content(LENGTH)
    segments = stage(data)
    spec, early = spec_of(data), spec_of(data, crc64nvme=None)
    transfer_state = MemoryTransferState()
    store = await open_store(s3)
    assert isinstance(store, PartStore)

    assert await put_parts(store, early, beginning(segments, PART - 1), transfer_state) == PART
    assert calls.parts == []
    assert_nothing(s3)  # no multipart upload for an upload that may never have a whole part

    assert await put_parts(store, early, beginning(segments, PART + 7), transfer_state) == 2 * PART
    assert calls.parts == [1]
    assert s3.keys() == []

    # Another process, and nothing new: nothing is sent.
    second = transfer_state.successor()
    assert await put_parts(await open_store(s3), early, beginning(segments, PART + 8), second) == 2 * PART
    assert calls.parts == [1]

    assert await put_parts(store, early, beginning(segments, 2 * PART), second) == LENGTH
    assert calls.parts == [1, 2]

    await (await open_store(s3)).put(spec, segments, second.successor())

    assert calls.parts == [1, 2, 3]
    assert_only(s3, KEY, data)


@pytest.mark.parametrize("length", [1000, PART])
async def test_what_fits_into_one_request_waits_for_its_end(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls, length: int
) -> None:
    data = content(length)

    wanted = await put_parts(
        await open_store(s3), spec_of(data, crc64nvme=None), beginning(stage(data), length - 1), MemoryTransferState()
    )

    assert wanted == length
    assert (calls.puts, calls.parts) == (0, [])
    assert_nothing(s3)


@pytest.mark.parametrize("before", [True, False], ids=["before-it-counts", "after-it-counts"])
async def test_a_worker_may_be_killed_at_any_call_eager(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls, before: bool
) -> None:
    data = content(PART + 1)
    segments = stage(data)
    step, crashed = 0, True
    while crashed:
        step += 1
        key = f"ahead/{step:02}"
        calls.parts.clear()
        transfer_state = MemoryTransferState(stop_at=step, before=before)
        store = await open_store(s3)
        try:
            await put_parts(store, spec_of(data, key, crc64nvme=None), beginning(segments, PART), transfer_state)
            crashed = False
        except Crash:
            pass
        assert s3.keys() == []

        await (await open_store(s3)).put(spec_of(data, key), segments, transfer_state.successor())

        assert s3.read(key) == data, f"killed at call {step}: {transfer_state.calls}"
        assert s3.unfinished() == [], f"killed at call {step}: {transfer_state.calls}"
        assert sorted(calls.parts) == [1, 2]
        await store.remove(identity_of(data, key))

    assert step > 3


async def test_what_was_sent_eager_of_damaged_bytes_does_not_become_an_object(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(PART + 1)
    segments = stage(b"X" + data[1:])
    transfer_state = MemoryTransferState()
    store = await open_store(s3)
    await put_parts(store, spec_of(data, crc64nvme=None), beginning(segments, PART), transfer_state)

    with pytest.raises(StagingDamaged):
        await store.put(spec_of(data), segments, transfer_state)

    assert_nothing(s3)
    assert transfer_state.recorded_id is None


async def test_a_missing_file_is_told(s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content) -> None:
    segments = stage(content(PART))
    segments[0].path.unlink()

    with pytest.raises(StagingDamaged):
        await put_parts(await open_store(s3), spec_of(content(PART + 1)), segments, MemoryTransferState())


def test_a_folder_takes_nothing_eager(tmp_path: Any) -> None:
    assert not isinstance(FilesystemStore(tmp_path), PartStore)
