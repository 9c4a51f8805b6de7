"""The contract of `ObjectStore`, on every destination: exactly the bytes, once, whatever happens.

One suite for the file system, moto, rclone and ministack. What one of them cannot do stands in the
table of `destinations.py` and is asserted here to be so.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.blocking_client import fetch
from tests.support.destinations import (
    PART,
    RCLONE,
    Calls,
    Crash,
    Destination,
    FilesystemDestination,
    MemoryTransferState,
    S3Account,
    S3Destination,
    cancelled_at,
    identity_of,
)
from tests.support.fixtures import Content, OpenStore, Stage
from tests.support.ports import free_port, is_listening
from tests.support.s3_servers import ACCESS_KEY, SECRET_KEY, rclone_s3
from tusd_py import crc64
from tusd_py.errors import (
    PermanentStoreError,
    StagingDamaged,
    StagingMissing,
    StorageError,
    StoreBlocked,
    TransferCancelled,
    TransientStoreError,
)
from tusd_py.ports import DownloadHeaders, LocalFile, ObjectSpec, ObjectStore, PresignedUrl, Segment
from tusd_py.stores.s3.client import Bucket
from tusd_py.stores.s3.source import RangeBody
from tusd_py.stores.s3.store import PROBE_NAME

KEY = "2026/11/20/0b5a3b0e-5f0e-4d6b-9d5f-0d6c7f6f7a10"
TWO_PARTS = PART + 1
THREE_PARTS = 2 * PART + 1
SLOW = {"moto", "ministack"}
"""They compute CRC64NVME in Python, at a second per part."""


def spec_of(content: bytes, key: str = KEY, **changes: Any) -> ObjectSpec:
    """The spec of an object with this content."""
    settings: dict[str, Any] = {"crc64nvme": crc64.update(content), "content_type": "image/png"}
    return ObjectSpec(upload_id=key.rsplit("/", 1)[-1], key=key, length=len(content), **(settings | changes))


def assert_only(destination: Destination, key: str, content: bytes) -> None:
    """Exactly this object is there, and nothing half-made."""
    assert destination.read(key) == content
    assert destination.keys() == [key]
    assert destination.unfinished() == []


def assert_nothing(destination: Destination) -> None:
    """Neither an object nor anything half-made is there."""
    assert destination.keys() == []
    assert destination.unfinished() == []


# --- storing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 1000, PART, TWO_PARTS], ids=["empty", "1", "1000", "threshold", "parts"])
async def test_an_upload_becomes_one_equal_object(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    store = await open_store(destination)
    data = content(length)

    stored = await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert (stored.key, stored.length) == (KEY, length)
    assert_only(destination, KEY, data)
    assert await store.stat(KEY) == stored


@pytest.mark.parametrize(
    "cuts",
    [[0, 3, 3, 10], [0, 3 * 2**20, 3 * 2**20 + 1, PART + 7, THREE_PARTS]],
    ids=["single", "parts"],
)
async def test_segments_are_joined_in_order(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, cuts: list[int]
) -> None:
    store = await open_store(destination)
    data = content(cuts[-1])
    segments = stage(*(data[a:b] for a, b in itertools.pairwise(cuts)))

    await store.put(spec_of(data), segments, MemoryTransferState())

    assert_only(destination, KEY, data)


async def test_an_empty_upload_needs_no_staged_file(destination: Destination, open_store: OpenStore) -> None:
    store = await open_store(destination)

    await store.put(spec_of(b""), [], MemoryTransferState())

    assert_only(destination, KEY, b"")


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_bytes_without_a_known_checksum_are_stored_too(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    store = await open_store(destination)
    data = content(length)

    await store.put(spec_of(data, crc64nvme=None), stage(data), MemoryTransferState())

    assert_only(destination, KEY, data)


async def test_what_lies_behind_the_recorded_length_is_not_stored(
    destination: Destination, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(destination)
    [segment] = stage(b"uploaded bytes and a torn tail")

    await store.put(spec_of(b"uploaded bytes"), [Segment(segment.path, 14)], MemoryTransferState())

    assert_only(destination, KEY, b"uploaded bytes")


async def test_many_uploads_at_once(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(destination)
    uploads = {f"2026/11/{number:02}": content(number * 1000) for number in range(20)}

    await asyncio.gather(
        *(store.put(spec_of(data, key), stage(data), MemoryTransferState()) for key, data in uploads.items())
    )

    assert destination.keys() == sorted(uploads)
    assert {key: destination.read(key) for key in uploads} == uploads


@pytest.mark.parametrize("length", [1000, THREE_PARTS])
async def test_progress_reaches_the_length(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    store = await open_store(s3)
    transfer_state = MemoryTransferState()
    data = content(length)

    await store.put(spec_of(data), stage(data), transfer_state)

    assert transfer_state.bytes_done == (length if length > PART else 0)


async def test_an_object_carries_type_id_and_original_name(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(s3)

    for key, length in (("small", 10), ("large", TWO_PARTS)):
        data = content(length)
        spec = spec_of(data, key, filename="Überweisung 日本.png", metadata={"purpose": "Maß"})
        await store.put(spec, stage(data), MemoryTransferState())

        head = s3.head(key)
        assert s3.abilities.keeps_metadata
        assert head["ContentType"] == "image/png"
        assert head["CacheControl"] == "private, max-age=86400"
        assert {name.lower(): value for name, value in head["Metadata"].items()} == {
            "tusd-upload-id": key,
            "tusd-filename": urllib.parse.quote("Überweisung 日本.png"),
            "purpose": "Ma%C3%9F",
        }


# --- again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1000, TWO_PARTS])
async def test_a_second_put_sends_nothing(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls, length: int
) -> None:
    data = content(length)
    segments = stage(data)
    transfer_state = MemoryTransferState()
    first = await (await open_store(destination)).put(spec_of(data), segments, transfer_state)
    sent = (calls.puts, len(calls.parts))

    again = await (await open_store(destination)).put(spec_of(data), segments, transfer_state.successor())

    assert again == first
    assert (calls.puts, len(calls.parts)) == sent
    assert_only(destination, KEY, data)


async def test_a_stored_upload_needs_no_staged_file_any_more(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(destination)
    data = content(1000)
    [segment] = stage(data)
    await store.put(spec_of(data), [segment], MemoryTransferState())
    segment.path.unlink()

    await store.put(spec_of(data), [segment], MemoryTransferState())

    assert_only(destination, KEY, data)


@pytest.mark.parametrize("before", [True, False], ids=["before-it-counts", "after-it-counts"])
async def test_a_worker_may_be_killed_at_any_call(
    destination: Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    calls: Calls,
    before: bool,
) -> None:
    data = content(TWO_PARTS if destination.name in SLOW else THREE_PARTS)
    segments = stage(data[:1000], data[1000:])
    part_count = -(-len(data) // PART) if destination.abilities.multipart else 0
    changes = {"part_concurrency": 1} if isinstance(destination, S3Destination) else {}
    step, crashed, transfer_state = 0, True, MemoryTransferState()
    while crashed:
        step += 1
        key = f"killed/{step:02}"
        calls.parts.clear()
        transfer_state = MemoryTransferState(stop_at=step, before=before)
        try:
            await (await open_store(destination, **changes)).put(spec_of(data, key), segments, transfer_state)
            crashed = False
        except Crash:
            successor = await open_store(destination, **changes)
            await successor.put(spec_of(data, key), segments, transfer_state.successor())

        assert destination.read(key) == data, f"killed at call {step}: {transfer_state.calls}"
        assert destination.unfinished() == [], f"killed at call {step}: {transfer_state.calls}"
        # Whatever the store acknowledged is recognised, recorded or not, and not sent again.
        assert sorted(calls.parts) == list(range(1, part_count + 1))
        await (await open_store(destination)).remove(identity_of(data, key))

    # Every recording was passed: the id, each part with its progress, and the fence before the end.
    assert step - 1 == len(transfer_state.calls) >= (2 * part_count + 3 if part_count else 1)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_transfer_may_be_cancelled_at_any_call(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, concurrency: int
) -> None:
    data = content(TWO_PARTS if destination.name in SLOW else THREE_PARTS)
    segments = stage(data[:1000], data[1000:])
    changes = {"part_concurrency": concurrency} if isinstance(destination, S3Destination) else {}
    store = await open_store(destination, **changes)
    step = 0
    while True:
        step += 1
        transfer_state = cancelled_at(step)
        try:
            await store.put(spec_of(data), segments, transfer_state)
        except TransferCancelled:
            assert destination.keys() == [], f"cancelled at call {step}: {transfer_state.calls}"
            if transfer_state.recorded_id:
                await store.abort(KEY, transfer_state.recorded_id)
            assert destination.unfinished() == []
        else:
            break

    assert_only(destination, KEY, data)


async def test_a_worker_killed_in_the_middle_of_a_body_is_succeeded(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(THREE_PARTS)
    segments = stage(data[:1000], data[1000:])
    transfer_state = MemoryTransferState()
    task = asyncio.create_task((await open_store(destination)).put(spec_of(data), segments, transfer_state))
    async with asyncio.timeout(30):
        while not {"record_multipart", "record_part", "progress"}.intersection(transfer_state.calls):
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()

    await (await open_store(destination)).put(spec_of(data), segments, transfer_state.successor())

    assert_only(destination, KEY, data)


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_a_lost_reply_to_the_last_call_is_made_up_for(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    data = content(length)
    segments = stage(data)
    transfer_state = MemoryTransferState()
    lose_reply(monkeypatch, TransientStoreError("The connection was lost."))
    with pytest.raises(TransientStoreError, match="lost"):
        await (await open_store(s3)).put(spec_of(data), segments, transfer_state)
    monkeypatch.undo()

    stored = await (await open_store(s3)).put(spec_of(data), segments, transfer_state.successor())

    assert stored.length == length
    assert calls.puts + len(calls.parts) == (1 if length == 1000 else 2)
    assert_only(s3, KEY, data)


@pytest.mark.parametrize(
    ("length", "code"),
    [(TWO_PARTS, "NoSuchUpload"), (TWO_PARTS, "PreconditionFailed"), (9, "PreconditionFailed")],
)
async def test_a_repeated_call_that_finds_its_own_work_done_is_success(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    code: str,
) -> None:
    # The driver repeats a call whose reply was lost, and gets this for the second one.
    data = content(length)
    kind = TransientStoreError if code == "NoSuchUpload" else PermanentStoreError
    lose_reply(monkeypatch, kind(code=code))

    stored = await (await open_store(s3)).put(spec_of(data), stage(data), MemoryTransferState())

    assert stored.length == length
    assert_only(s3, KEY, data)


def lose_reply(monkeypatch: pytest.MonkeyPatch, error: StorageError) -> None:
    """Let PutObject and CompleteMultipartUpload succeed, and say something else."""
    for name in ("put", "complete_multipart"):
        original = getattr(Bucket, name)

        async def lost(*args: Any, original: Any = original) -> None:
            await original(*args)
            raise error

        monkeypatch.setattr(Bucket, name, lost)


@pytest.mark.parametrize("length", [1_000_000, TWO_PARTS])
async def test_a_body_cut_in_the_middle_is_repeated_whole(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    original = RangeBody.__aiter__
    cut: list[RangeBody] = []

    async def cut_once(body: RangeBody) -> Any:
        async for block in original(body):
            yield block
            if body not in cut:
                cut.append(body)
                raise ConnectionResetError

    monkeypatch.setattr(RangeBody, "__aiter__", cut_once)
    data = content(length)
    store = await open_store(s3, client={"max_attempts": 2})

    await store.put(spec_of(data), stage(data[:7], data[7:]), MemoryTransferState())

    assert len(cut) == (1 if length < PART else 2)
    assert_only(s3, KEY, data)


async def test_other_part_sizes_than_before_begin_anew(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(THREE_PARTS)
    segments = stage(data)
    transfer_state = MemoryTransferState(stop_at=6)
    with pytest.raises(Crash):
        await (await open_store(s3, part_concurrency=1)).put(spec_of(data), segments, transfer_state)
    assert transfer_state.recorded_parts

    larger = await open_store(s3, part_size=6 * 2**20)
    await larger.put(spec_of(data), segments, transfer_state.successor())

    assert_only(s3, KEY, data)


async def test_an_upload_begun_in_parts_may_end_as_one_put(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(TWO_PARTS)
    segments = stage(data)
    transfer_state = MemoryTransferState(stop_at=5)
    with pytest.raises(Crash):
        await (await open_store(s3)).put(spec_of(data), segments, transfer_state)

    successor = transfer_state.successor()
    await (await open_store(s3, multipart_threshold=6 * 2**20)).put(spec_of(data), segments, successor)

    assert successor.recorded_id is None
    assert_only(s3, KEY, data)


async def test_a_multipart_upload_that_vanished_is_begun_anew(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(TWO_PARTS)
    segments = stage(data)
    transfer_state = MemoryTransferState(stop_at=5)
    store = await open_store(s3)
    with pytest.raises(Crash):
        await store.put(spec_of(data), segments, transfer_state)
    assert transfer_state.recorded_id is not None
    await store.abort(KEY, transfer_state.recorded_id)

    await store.put(spec_of(data), segments, transfer_state.successor())

    assert_only(s3, KEY, data)


async def test_a_part_that_the_store_lost_is_sent_again(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls
) -> None:
    data = content(TWO_PARTS)
    segments = stage(data)
    transfer_state = MemoryTransferState(stop_at=2, before=False)
    with pytest.raises(Crash):
        await (await open_store(s3)).put(spec_of(data), segments, transfer_state)
    record = MemoryTransferState(recorded_id=transfer_state.recorded_id)
    store = await open_store(s3)
    first = await store.put(spec_of(data, "other"), segments, noted := MemoryTransferState())
    record.recorded_parts = dict(noted.recorded_parts)  # acknowledged once, but not in this upload
    calls.parts.clear()

    await store.put(spec_of(data), segments, record)

    assert first.length == len(data)
    assert sorted(calls.parts) == [1, 2]
    assert s3.read(KEY) == data


# --- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
@pytest.mark.parametrize("harm", ["bit flip", "truncated", "missing", "short of segments"])
async def test_damaged_staging_is_never_stored(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, length: int, harm: str
) -> None:
    store = await open_store(destination)
    data = content(length)
    segments = stage(data[:10], data[10:])
    path = segments[1].path
    if harm == "bit flip":
        path.write_bytes(data[10:-1] + bytes([data[-1] ^ 1]))
    elif harm == "truncated":
        path.write_bytes(data[10:-1])
    elif harm == "missing":
        path.unlink()
    else:
        del segments[1]
    transfer_state = MemoryTransferState()

    with pytest.raises(StagingDamaged) as refusal:
        await store.put(spec_of(data), segments, transfer_state)

    assert isinstance(refusal.value, StagingMissing) == (harm == "missing")
    assert transfer_state.recorded_id is None
    assert_nothing(destination)


async def test_a_bit_flip_in_a_file_that_is_only_linked_goes_unnoticed(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(destination)
    data = content(1000)
    put = store.put(spec_of(data), stage(bytes([data[0] ^ 1]) + data[1:]), MemoryTransferState())

    if destination.abilities.reads_what_it_stores:
        with pytest.raises(StagingDamaged):
            await put
    else:
        # A link costs the same for a terabyte, since it reads nothing: the file itself moves in.
        await put
        assert destination.keys() == [KEY]


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_bytes_that_changed_on_their_way_are_noticed(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    # A store gets CRC64NVME and MD5 until it has shown which one it verifies. moto verifies neither,
    # but tells the checksum of what was sent in parts, which the look afterwards compares.
    store = await open_store(s3)
    data = content(length)
    refuses = s3.abilities.verifies_crc64nvme or s3.abilities.verifies_md5
    flip_sent_bytes(monkeypatch)
    put = store.put(spec_of(data), stage(data), transfer_state := MemoryTransferState())

    if not refuses and length == 1000:
        await put
        assert s3.read(KEY) != data
        return
    with pytest.raises(TransientStoreError) as refusal:
        await put
    monkeypatch.undo()
    assert refusal.value.context.get("code") == ("BadDigest" if refuses else None)

    await store.put(spec_of(data), stage(data), transfer_state.successor())
    assert_only(s3, KEY, data)


def flip_sent_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage every body between its checksum and the socket."""
    original = RangeBody.__aiter__

    async def damaged(body: RangeBody) -> Any:
        async for block in original(body):
            copy = bytearray(block)
            copy[-1] ^= 1
            yield copy

    monkeypatch.setattr(RangeBody, "__aiter__", damaged)


@pytest.mark.parametrize("setting", ["crc64nvme", "sha256", "md5", "none"])
async def test_every_checksum_setting_stores_small_and_large(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, setting: str
) -> None:
    data = content(TWO_PARTS)
    transfer_state = MemoryTransferState(stop_at=5)
    for key, length in (("small", 10), ("large", TWO_PARTS)):
        store = await open_store(s3, checksum=setting)
        await store.put(spec_of(data[:length], key), stage(data[:length]), MemoryTransferState())
        assert s3.read(key) == data[:length]
    segments = stage(data)
    with pytest.raises(Crash):
        await (await open_store(s3, checksum=setting)).put(spec_of(data), segments, transfer_state)

    await (await open_store(s3, checksum=setting)).put(spec_of(data), segments, transfer_state.successor())

    assert s3.read(KEY) == data
    assert s3.unfinished() == []


async def test_the_checksum_of_the_whole_object_is_handed_over(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    data = content(TWO_PARTS)

    stored = await (await open_store(s3)).put(spec_of(data), stage(data), MemoryTransferState())

    assert stored.crc64nvme == (crc64.update(data) if s3.abilities.tells_crc64nvme else None)


async def test_a_wrong_checksum_of_the_whole_object(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only AWS verifies it; none of the servers here does, which is why the parts are verified too.
    monkeypatch.setattr("tusd_py.stores.s3.multipart.MultipartTransfer._verify", pretend_another_crc)
    data = content(TWO_PARTS)

    put = (await open_store(s3)).put(spec_of(data, crc64nvme=None), stage(data), MemoryTransferState())

    assert not s3.abilities.full_object_checksum
    await put
    assert s3.read(KEY) == data


def pretend_another_crc(transfer: Any) -> None:
    """Stand in for `_verify`, with a checksum that is not the object's."""
    transfer._crc = 1


async def test_a_wrong_checksum_answered_by_the_store_is_no_success(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Bucket.head

    async def shorter(bucket: Bucket, key: str) -> Any:
        head = await original(bucket, key)
        return head and replace(head, length=head.length - 1)

    monkeypatch.setattr(Bucket, "head", shorter)

    with pytest.raises(TransientStoreError):
        await (await open_store(s3)).put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())


# --- somebody else's -------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
@pytest.mark.parametrize("foreign", ["other length", "same length"])
async def test_a_foreign_object_is_left_alone(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, length: int, foreign: str
) -> None:
    store = await open_store(destination)
    data = content(length)
    theirs = b"theirs" if foreign == "other length" else bytes(length)
    destination.write(KEY, theirs)

    with pytest.raises(PermanentStoreError):
        await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert_only(destination, KEY, theirs)


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_a_foreign_object_that_appears_meanwhile(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    store = await open_store(s3)
    data = content(length)
    s3.write(KEY, b"theirs")
    hide_first_head(monkeypatch)
    transfer_state = MemoryTransferState()
    put = store.put(spec_of(data), stage(data), transfer_state)

    if s3.abilities.honours_if_none_match:
        with pytest.raises(PermanentStoreError):
            await put
        assert_only(s3, KEY, b"theirs")
        assert transfer_state.recorded_id is None
    else:
        # rclone ignores If-None-Match: only the look beforehand protects a foreign object there.
        await put
        assert_only(s3, KEY, data)


def hide_first_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the store see nothing the first time it looks."""
    original = Bucket.head
    hidden: list[str] = []

    async def head(bucket: Bucket, key: str) -> Any:
        if not hidden:
            hidden.append(key)
            return None
        return await original(bucket, key)

    monkeypatch.setattr(Bucket, "head", head)


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_a_foreign_object_is_replaced_by_wish(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    store = await open_store(s3, file_overwrite=True)
    data = content(length)
    s3.write(KEY, b"theirs")

    await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert_only(s3, KEY, data)


async def test_a_damaged_object_of_our_own_is_repaired(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(s3)
    await store.put(spec_of(b"too short"), stage(b"too short"), MemoryTransferState())
    data = content(1000)

    await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert_only(s3, KEY, data)


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_a_foreign_object_that_takes_the_place_of_a_damaged_one_of_ours(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
) -> None:
    store = await open_store(s3)
    await store.put(spec_of(b"too short"), stage(b"too short"), MemoryTransferState())
    data = content(length)
    after_first_head(monkeypatch, lambda: s3.write(KEY, b"theirs"))
    put = store.put(spec_of(data), stage(data), MemoryTransferState())

    # moto heeds If-Match with a PUT, and not where parts are completed.
    if s3.abilities.honours_if_match and not (s3.name == "moto" and length == TWO_PARTS):
        with pytest.raises(PermanentStoreError):
            await put
        assert_only(s3, KEY, b"theirs")
    else:
        await put
        assert_only(s3, KEY, data)


def after_first_head(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Let something happen right after the store has looked for the first time."""
    original = Bucket.head
    acted: list[bool] = []

    async def head(bucket: Bucket, *args: Any, **changes: Any) -> Any:
        found = await original(bucket, *args, **changes)
        if not acted:
            acted.append(True)
            await asyncio.to_thread(act)
        return found

    monkeypatch.setattr(Bucket, "head", head)


@pytest.mark.parametrize("refusal", ["occupied", "denied", "staging lost"])
async def test_a_refused_transfer_leaves_nothing_unfinished(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    refusal: str,
) -> None:
    data = content(THREE_PARTS)
    segments = stage(data)
    transfer_state = MemoryTransferState(stop_at=6)
    with pytest.raises(Crash):  # some parts are there already
        await (await open_store(s3, part_concurrency=1)).put(spec_of(data), segments, transfer_state)
    if refusal == "occupied":
        s3.write(KEY, b"theirs")
    elif refusal == "denied":
        monkeypatch.setattr(Bucket, "upload_part", denied)
    else:
        segments[0].path.write_bytes(data[:-1])
    successor = transfer_state.successor()

    with pytest.raises((PermanentStoreError, StagingDamaged)):
        await (await open_store(s3)).put(spec_of(data), segments, successor)

    assert successor.recorded_id is None
    assert s3.unfinished() == []
    assert s3.keys() == ([KEY] if refusal == "occupied" else [])


async def denied(*args: Any) -> None:
    """Refuse, as a store does that allows everything else."""
    raise PermanentStoreError(code="AccessDenied")


async def test_what_a_refused_transfer_cannot_give_back_stays_recorded(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(TWO_PARTS)
    monkeypatch.setattr(Bucket, "upload_part", denied)
    monkeypatch.setattr(Bucket, "abort_multipart", denied)
    transfer_state = MemoryTransferState()

    with pytest.raises(PermanentStoreError):
        await (await open_store(s3)).put(spec_of(data), stage(data), transfer_state)

    assert [transfer_state.recorded_id] == s3.unfinished()
    monkeypatch.undo()
    await (await open_store(s3)).put(spec_of(data), stage(data), transfer_state.successor())
    assert_only(s3, KEY, data)


async def test_equal_bytes_without_an_id_are_taken_for_ours(
    destination: Destination, open_store: OpenStore, stage: Stage, content: Content, calls: Calls
) -> None:
    # As rclone shows our own objects once it was restarted: without metadata.
    store = await open_store(destination)
    data = content(1000)
    destination.write(KEY, data)

    await store.put(spec_of(data), stage(data), MemoryTransferState())

    assert calls.puts == 0
    assert_only(destination, KEY, data)


# --- what cannot work ------------------------------------------------------------------------------


async def test_a_wrong_secret(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    store = await open_store(s3, secret_key="wrong")

    await assert_refused_or_stored(s3, store, stage, refused=s3.abilities.checks_secret)


async def test_an_unknown_access_key(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    store = await open_store(s3, access_key="nobody")

    await assert_refused_or_stored(s3, store, stage, refused=s3.abilities.checks_key_id)


async def assert_refused_or_stored(s3: S3Destination, store: ObjectStore, stage: Stage, *, refused: bool) -> None:
    """Either everything is refused for good, or the server accepts any credentials."""
    put = store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    if not refused:
        await put
        await store.probe()
        return
    with pytest.raises(PermanentStoreError):
        await put
    with pytest.raises(PermanentStoreError):
        await store.probe()
    assert_nothing(s3)


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_no_such_bucket(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content, length: int
) -> None:
    store = await open_store(s3, bucket="no-such-bucket")

    with pytest.raises(PermanentStoreError) as refusal:
        await store.put(spec_of(content(length)), stage(content(length)), MemoryTransferState())

    assert refusal.value.context["code"] == "NoSuchBucket"
    with pytest.raises(PermanentStoreError):
        await store.probe()


async def test_a_store_that_is_away_is_a_matter_of_time(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    store = await open_store(s3, endpoint_url=f"http://127.0.0.1:{free_port()}")

    for attempt in (
        store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState()),
        store.stat(KEY),
        store.probe(),
    ):
        with pytest.raises(TransientStoreError):
            await attempt


async def test_a_directory_that_is_gone_is_a_matter_of_time(
    tmp_path: Path, open_store: OpenStore, stage: Stage
) -> None:
    destination = FilesystemDestination(tmp_path / "store")
    store = await open_store(destination)
    destination.root.rmdir()  # as when the disk is not mounted: nothing is to be written beside it

    put = store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    remove = store.remove(identity_of(b"abc", KEY))
    for attempt in (put, store.stat(KEY), remove, store.probe(), store.probe(writing=True)):
        with pytest.raises(TransientStoreError):
            await attempt
    assert not destination.root.exists()


@pytest.mark.parametrize("writing", [False, True])
async def test_a_reachable_store_passes_the_probe(
    destination: Destination, open_store: OpenStore, *, writing: bool
) -> None:
    await (await open_store(destination)).probe(writing=writing)

    assert_nothing(destination)


async def test_a_probe_removes_what_a_killed_one_has_left(s3: S3Destination, open_store: OpenStore) -> None:
    key = f"{s3.prefix}/{PROBE_NAME}"
    s3.client.create_multipart_upload(Bucket=s3.account.bucket, Key=key)

    await (await open_store(s3)).probe(writing=True)

    assert_nothing(s3)


async def test_a_probe_names_the_reason_of_a_refusal(s3: S3Destination, open_store: OpenStore) -> None:
    store = await open_store(s3, bucket="no-such-bucket")

    with pytest.raises(StoreBlocked) as refusal:
        await store.probe(writing=True)

    assert refusal.value.context["code"] == "NoSuchBucket"


# --- removing --------------------------------------------------------------------------------------


async def test_a_removed_object_is_gone_and_may_be_removed_again(
    destination: Destination, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(destination)
    await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())

    assert await store.remove(identity_of(b"abc", KEY))
    assert await store.remove(identity_of(b"abc", KEY))

    assert await store.stat(KEY) is None
    assert_nothing(destination)


async def test_what_a_dying_worker_began_and_could_not_record_goes_with_the_object(
    s3: S3Destination, open_store: OpenStore
) -> None:
    store = await open_store(s3)
    s3.client.create_multipart_upload(Bucket=s3.account.bucket, Key=f"{s3.prefix}/{KEY}")

    assert await store.remove(identity_of(b"abc", KEY))

    assert_nothing(s3)


async def test_a_neighbour_stays_when_an_object_is_removed(
    destination: Destination, open_store: OpenStore, stage: Stage
) -> None:
    store = await open_store(destination)
    for key in ("2026/11/1", "2026/11/10"):
        await store.put(spec_of(b"abc", key), stage(b"abc"), MemoryTransferState())

    await store.remove(identity_of(b"abc", "2026/11/1"))

    assert_only(destination, "2026/11/10", b"abc")


async def test_an_unfinished_transfer_is_aborted_once_or_twice(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    store = await open_store(s3)
    data = content(TWO_PARTS)
    transfer_state = MemoryTransferState(stop_at=5)
    with pytest.raises(Crash):
        await store.put(spec_of(data), stage(data), transfer_state)
    assert s3.unfinished()
    assert transfer_state.recorded_id is not None

    await store.abort(KEY, transfer_state.recorded_id)
    await store.abort(KEY, transfer_state.recorded_id)

    assert_nothing(s3)


async def test_strays_of_other_keys_are_not_touched(
    s3: S3Destination, open_store: OpenStore, stage: Stage, content: Content
) -> None:
    client, bucket = s3.client, s3.account.bucket
    theirs = client.create_multipart_upload(Bucket=bucket, Key=f"{s3.prefix}/{KEY}-longer")["UploadId"]
    ours = client.create_multipart_upload(Bucket=bucket, Key=f"{s3.prefix}/{KEY}")["UploadId"]
    assert sorted(s3.unfinished()) == sorted([theirs, ours])
    data = content(TWO_PARTS)

    await (await open_store(s3)).put(spec_of(data), stage(data), MemoryTransferState())

    assert s3.unfinished() == [theirs]


# --- servers that know less ------------------------------------------------------------------------


@pytest.mark.parametrize("refused", ["IfNoneMatch", "ChecksumCRC64NVME", "both"])
@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_a_header_that_the_server_refuses_is_left_out_from_then_on(
    s3: S3Destination,
    open_store: OpenStore,
    stage: Stage,
    content: Content,
    monkeypatch: pytest.MonkeyPatch,
    length: int,
    refused: str,
) -> None:
    names = {"IfNoneMatch", "ChecksumCRC64NVME", "ChecksumAlgorithm"}
    if refused == "IfNoneMatch":
        names = {"IfNoneMatch"}
    elif refused == "ChecksumCRC64NVME":
        names.remove("IfNoneMatch")
    refusals = refuse_parameters(monkeypatch, names)
    store = await open_store(s3)
    data = content(length)

    await store.put(spec_of(data), stage(data), MemoryTransferState())
    first = len(refusals)
    await store.put(spec_of(data, "other"), stage(data), MemoryTransferState())

    assert s3.read(KEY) == s3.read("other") == data
    assert first >= 1
    assert len(refusals) == first


def refuse_parameters(monkeypatch: pytest.MonkeyPatch, names: set[str]) -> list[str]:
    """Make the server refuse these, as those do that implement less; return the list of refusals."""
    refusals: list[str] = []
    for method in ("put", "create_multipart", "upload_part", "complete_multipart"):
        original = getattr(Bucket, method)

        async def refuse(*args: Any, original: Any = original) -> Any:
            if names & args[-1].keys():
                refusals.append(original.__name__)
                raise PermanentStoreError(code="NotImplemented")
            return await original(*args)

        monkeypatch.setattr(Bucket, method, refuse)
    return refusals


@pytest.mark.parametrize("length", [1000, TWO_PARTS])
async def test_rclone_forgets_metadata_and_parts_when_it_is_restarted(
    tmp_path: Path, open_store: OpenStore, stage: Stage, content: Content, calls: Calls, length: int
) -> None:
    data = content(length)
    with rclone_s3(tmp_path) as server:
        account = S3Account("rclone", server.endpoint_url, server.bucket, ACCESS_KEY, SECRET_KEY, RCLONE)
        s3 = S3Destination(account, account.client(), "restarted")
        unfinished = MemoryTransferState(stop_at=5)
        store = await open_store(s3)
        await store.put(spec_of(data), stage(data), MemoryTransferState())
        if length > PART:
            with pytest.raises(Crash):
                await store.put(spec_of(data, "other"), stage(data), unfinished)
        server.child.stop()
        server.child.start()
        await asyncio.to_thread(server.child.wait_ready, lambda: is_listening(server.port), deadline=30, what="up")
        sent = calls.puts + len(calls.parts)

        again = await (await open_store(s3)).put(spec_of(data), stage(data), MemoryTransferState())
        assert again.upload_id is None  # forgotten, and the object recognised by its MD5
        assert calls.puts + len(calls.parts) == sent

        await (await open_store(s3)).put(spec_of(data, "other"), stage(data), unfinished.successor())
        assert s3.read("other") == data
        assert s3.unfinished() == []


@pytest.mark.parametrize("size", [3, PART + 3])
async def test_an_object_says_how_its_bytes_are_coded(
    s3: S3Destination, open_store: OpenStore, stage: Stage, size: int
) -> None:
    data = b"x" * size
    spec = spec_of(data, content_encoding="gzip", content_language="de, en")

    await (await open_store(s3)).put(spec, stage(data), MemoryTransferState())

    stored_headers = s3.head(KEY)
    assert (stored_headers.get("ContentEncoding"), stored_headers.get("ContentLanguage")) == ("gzip", "de, en")


# --- handing out -----------------------------------------------------------------------------------


async def presigned(
    s3: S3Destination, open_store: OpenStore, stage: Stage, seconds: int = 60, method: str = "GET"
) -> str:
    """A link to an object of three bytes, with headers of its own."""
    store = await open_store(s3)
    await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())
    located = await store.locate(
        KEY,
        DownloadHeaders(
            "text/plain; charset=utf-8", "attachment; filename=\"x.txt\"; filename*=UTF-8''%C3%A4.txt", "gzip", "de, en"
        ),
        method=method,
        expires_seconds=seconds,
    )
    assert isinstance(located, PresignedUrl)
    return located.url


async def test_a_link_serves_the_object_with_its_headers(
    s3: S3Destination, open_store: OpenStore, stage: Stage
) -> None:
    url = await presigned(s3, open_store, stage)

    answer = await asyncio.to_thread(fetch, url)

    assert (answer.status, answer.body) == (200, b"abc")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == "attachment; filename=\"x.txt\"; filename*=UTF-8''%C3%A4.txt"
    assert (answer.headers["content-encoding"], answer.headers["content-language"]) == ("gzip", "de, en")
    assert "X-Amz-Signature" in url
    assert "X-Amz-Expires=60" in url


async def test_a_link_for_head_answers_head(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    url = await presigned(s3, open_store, stage, method="HEAD")

    answer = await asyncio.to_thread(fetch, url, "HEAD")

    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "3", b"")
    assert "X-Amz-Signature" in url


async def test_a_link_is_for_one_method(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    for_get = await presigned(s3, open_store, stage)
    for_head = await presigned(s3, open_store, stage, method="HEAD")

    headed = await asyncio.to_thread(fetch, for_get, "HEAD")
    got = await asyncio.to_thread(fetch, for_head, "GET")

    refused = 403 if s3.abilities.checks_links else 200
    assert (headed.status, got.status) == (refused, refused)


async def test_a_link_expires(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    url = await presigned(s3, open_store, stage, seconds=1)
    deadline = time.monotonic() + (10 if s3.abilities.expires_links else 2)

    status = 200
    while status == 200 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        status = (await asyncio.to_thread(fetch, url)).status

    assert (status in {400, 403}) == s3.abilities.expires_links


async def test_a_link_opens_no_other_object(s3: S3Destination, open_store: OpenStore, stage: Stage) -> None:
    url = await presigned(s3, open_store, stage)
    store = await open_store(s3)
    await store.put(spec_of(b"secret", "other"), stage(b"secret"), MemoryTransferState())

    answer = await asyncio.to_thread(fetch, url.replace(KEY, "other"))

    assert (answer.status == 403) == s3.abilities.checks_links


async def test_a_link_names_the_public_endpoint(s3: S3Destination, open_store: OpenStore) -> None:
    store = await open_store(s3, public_endpoint_url="https://files.example.com")

    located = await store.locate(KEY, DownloadHeaders("a/b", "inline"), expires_seconds=5)

    assert isinstance(located, PresignedUrl)
    assert located.url.startswith(f"https://files.example.com/{s3.account.bucket}/{s3.prefix}/{KEY}?")


async def test_a_store_offers_links_or_files(destination: Destination, open_store: OpenStore, stage: Stage) -> None:
    store = await open_store(destination)
    await store.put(spec_of(b"abc"), stage(b"abc"), MemoryTransferState())

    located = await store.locate(KEY, DownloadHeaders("a/b", "inline"), expires_seconds=60)

    assert isinstance(located, LocalFile if destination.name == "filesystem" else PresignedUrl)
