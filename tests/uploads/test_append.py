"""The walk of a PATCH: who may write, where a body ends, and what is compared."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest

from tests.http.support import eventually
from tests.support.scripted_body import ENDLESS, Step
from tests.uploads.support import BLOCK, MakeNode, Node, checksum_of, digest_of
from tusd_py.authorization import ANONYMOUS
from tusd_py.errors import (
    BodyError,
    ChecksumMismatch,
    ClientDisconnected,
    EmptyPatchLimit,
    IncompleteChunk,
    InvalidChecksum,
    InvalidContentType,
    LengthConflict,
    LengthExceeded,
    OffsetMismatch,
    ProtocolMismatch,
    TakenOver,
    UploadNotFound,
    UploadTooLarge,
    WholeChecksumMismatch,
)
from tusd_py.protocol.create import Create
from tusd_py.protocol.fields import UPLOAD_CHECKSUM
from tusd_py.protocol.upload import Append, State, Upload, UploadProtocol
from tusd_py.uploads.append import AppendFailed, append_body
from tusd_py.uploads.creation import create_upload

DRAFT = UploadProtocol.RUFH


# --- who may write -----------------------------------------------------------------------------------


async def test_a_newcomer_goes_on_where_the_one_before_was_stopped(node: Node) -> None:
    """LOCK-02 LOCK-05"""
    upload = await node.world.create(length=10)
    first_body = node.body(b"hello", ENDLESS)
    first = asyncio.create_task(node.failing(upload, body=first_body))
    await eventually(lambda: len(first_body.waits) == 2, seconds=30)

    after = await node.append(replace(upload, offset=5), b"world")

    stopped = await first
    assert isinstance(stopped.error, TakenOver)
    assert stopped.upload is not None
    assert (stopped.upload.offset, stopped.upload.state) == (5, State.UPLOADING)
    assert (after.offset, after.state) == (10, State.COMPLETED)
    assert node.staged(upload) == b"helloworld"


async def test_a_newcomer_finds_nothing_of_a_body_that_was_still_to_be_compared(node: Node) -> None:
    """CSUM-07 LOCK-02"""
    upload = await node.world.create(length=BLOCK + 2)
    first_body = node.body(b"x" * (BLOCK + 1), ENDLESS)
    first = asyncio.create_task(node.failing(upload, body=first_body, checksum=checksum_of(b"x" * (BLOCK + 2))))
    await eventually(lambda: len(first_body.waits) == 2, seconds=30)

    after = await node.append(upload, b"ours")

    assert isinstance((await first).error, TakenOver)
    assert (after.offset, node.staged(upload)) == (4, b"ours")


async def test_what_is_wrong_at_any_offset_stops_nobody(node: Node) -> None:
    """GEN-05 LOCK-02"""
    upload = await node.world.create(length=10)
    first_body = node.body(b"hello", ENDLESS)
    first = asyncio.create_task(node.failing(upload, body=first_body))
    await eventually(lambda: len(first_body.waits) == 2, seconds=30)

    malformed = await node.failing(upload, b"-", header_error=InvalidContentType())
    foreign = await node.failing(upload, b"-", protocol=DRAFT)

    assert isinstance(malformed.error, InvalidContentType)
    assert isinstance(foreign.error, ProtocolMismatch)
    assert not first.done()
    first_body.interrupt(ClientDisconnected())
    assert isinstance((await first).error, ClientDisconnected)
    assert await node.offset(upload) == 5


async def test_a_refusal_leaves_the_body_unread(node: Node) -> None:
    """CORE-14 CORE-28"""
    upload = await node.world.create(length=10)
    body = node.body(b"hello")

    refused = await node.failing(upload, body=body, offset=3)

    assert isinstance(refused.error, OffsetMismatch)
    assert refused.upload is not None
    assert (refused.upload.offset, body.accepted, body.waits) == (0, False, [])
    assert not node.world.staged(upload)


async def test_a_body_for_an_upload_that_is_removed_meanwhile_leaves_no_file(node: Node) -> None:
    """TERM-05"""
    upload = await node.world.create(length=10)

    async def remove() -> None:
        await node.world.uploads.remove(upload.id)

    failed = await node.failing(upload, b"hello", remove)

    assert isinstance(failed.error, UploadNotFound)
    assert failed.upload is None
    assert not node.world.staged(upload)


async def test_empty_bodies_are_counted_until_a_byte_comes(make_node: MakeNode) -> None:
    """CORE-23"""
    node = make_node(limits={"max_empty_patches": 2})
    created = await create_upload(node.service, ANONYMOUS, Create(length=10), node.body())

    async def patch(offset: int, content: bytes = b"") -> None:
        command = Append(offset=offset, content_length=len(content))
        body = node.body(*([content] if content else []), length=len(content))
        await append_body(node.service, ANONYMOUS, created.token, command, body)

    await patch(0)
    await patch(0)
    await patch(0, b"hello")
    assert node.service.empty_patches == {}
    await patch(5)
    await patch(5)
    for _ in range(2):
        with pytest.raises(AppendFailed) as refused:
            await patch(5)
        assert isinstance(refused.value.error, EmptyPatchLimit)
    await patch(5, b"world")

    assert (await node.world.find(created.upload)).complete


# --- where a body ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "error", "offset"),
    [
        ([], None, 10),
        ([b"!"], LengthExceeded, 7),
        ([ClientDisconnected()], ClientDisconnected, 10),
    ],
    ids=["ends", "goes on", "breaks off"],
)
async def test_the_read_that_reaches_the_length_counts_once_nothing_follows(
    node: Node, ending: list[Step], error: type[Exception] | None, offset: int
) -> None:
    """CORE-18 CORE-19"""
    upload = await node.world.create(length=10)
    steps: list[Step] = [b"1234567", b"890", *ending]

    if error is None:
        await node.append(upload, *steps)
    else:
        assert isinstance((await node.failing(upload, *steps)).error, error)

    found = await node.world.find(upload)
    assert (found.offset, found.complete) == (offset, offset == 10)
    assert node.staged(upload) == b"1234567890"[:offset]


async def test_a_read_beyond_the_length_counts_for_nothing(node: Node) -> None:
    """CORE-18 CORE-19"""
    upload = await node.world.create(length=10)

    failed = await node.failing(upload, b"1234567", b"890!")

    assert isinstance(failed.error, LengthExceeded)
    assert (await node.offset(upload), node.staged(upload)) == (7, b"1234567")


async def test_bytes_that_are_still_being_written_count_towards_the_length(node: Node) -> None:
    """CORE-18"""
    upload = await node.world.create(length=2 * BLOCK)

    # The first block is on its way to the disk while the second is read.
    failed = await node.failing(upload, b"a" * BLOCK, b"b" * (BLOCK + 1))

    assert isinstance(failed.error, LengthExceeded)
    found = await node.world.find(upload)
    assert (found.offset, found.state) == (BLOCK, State.UPLOADING)
    assert node.staged(upload) == b"a" * BLOCK


async def test_bytes_that_are_still_being_written_count_towards_the_largest_size(make_node: MakeNode) -> None:
    """DEF-06"""
    node = make_node(limits={"max_size": 2 * BLOCK})
    upload = await node.world.create(length=None)

    failed = await node.failing(upload, b"a" * BLOCK, b"b" * (BLOCK + 1))

    assert isinstance(failed.error, UploadTooLarge)
    assert (await node.offset(upload), node.staged(upload)) == (BLOCK, b"a" * BLOCK)


async def test_an_upload_that_is_sent_too_much_is_given_up_where_that_was_asked(node: Node) -> None:
    upload = await node.world.create(length=10, protocol=DRAFT)

    failed = await node.failing(upload, b"1234567890!", fail_on_overrun=True)

    assert isinstance(failed.error, LengthExceeded)
    assert await node.world.state(upload) is State.REMOVING


async def test_an_empty_body_completes_an_upload_whose_bytes_are_all_there(node: Node) -> None:
    """DEF-05"""
    upload = await node.append(await node.world.create(length=None), b"hello")
    assert (upload.length, upload.state) == (None, State.UPLOADING)

    after = await node.append(upload, b"", content_length=0, length=5)

    assert (after.length, after.offset, after.state) == (5, 5, State.COMPLETED)
    assert await node.world.jobs_of(upload) == [("transfer", "queued")]


async def test_an_empty_last_body_makes_the_offset_the_length(node: Node) -> None:
    upload = await node.world.create(length=None, protocol=DRAFT)
    upload = await node.append(upload, b"hello", completes=False)

    after = await node.append(upload, b"", completes=True)

    assert (after.length, after.state) == (5, State.COMPLETED)


async def test_a_body_that_is_not_the_last_completes_nothing(node: Node) -> None:
    upload = await node.world.create(length=5, protocol=DRAFT)

    upload = await node.append(upload, b"hello", completes=False)
    assert (upload.offset, upload.state) == (5, State.UPLOADING)

    assert (await node.append(upload, b"", completes=True)).state is State.COMPLETED


async def test_a_last_body_that_falls_short_is_kept(node: Node) -> None:
    upload = await node.world.create(length=10, protocol=DRAFT)

    failed = await node.failing(upload, b"hello", completes=True)

    assert isinstance(failed.error, LengthConflict)
    assert failed.upload is not None
    assert failed.upload.offset == await node.offset(upload) == 5


@pytest.mark.parametrize(
    ("facts", "during"),
    [
        ({"length": 5}, 5),
        ({"completes": True, "content_length": 5, "protocol": DRAFT}, 5),
        ({"completes": True, "protocol": DRAFT}, None),
    ],
    ids=["declared", "last and announced", "last and chunked"],
)
async def test_a_length_is_recorded_as_soon_as_it_is_known(
    node: Node, facts: dict[str, Any], during: int | None
) -> None:
    """DEF-03"""
    upload = await node.world.create(length=None, protocol=facts.get("protocol", UploadProtocol.TUS))
    seen: list[int | None] = []

    async def look() -> None:
        seen.append((await node.world.find(upload)).length)

    after = await node.append(upload, b"he", look, b"llo", **facts)

    assert seen == [during]
    assert (after.length, after.state) == (5, State.COMPLETED)


async def test_a_last_chunked_body_that_breaks_off_tells_no_length(node: Node) -> None:
    upload = await node.world.create(length=None, protocol=DRAFT)

    failed = await node.failing(upload, b"hello", ClientDisconnected(), completes=True)

    assert isinstance(failed.error, BodyError)
    found = await node.world.find(upload)
    assert (found.length, found.offset, found.state) == (None, 5, State.UPLOADING)


# --- what is compared --------------------------------------------------------------------------------


async def test_of_a_body_with_a_wrong_checksum_nothing_stays_in_the_file(node: Node) -> None:
    """CSUM-04"""
    upload = await node.append(await node.world.create(length=10 * BLOCK), b"kept")
    blocks = [bytes([number]) * BLOCK for number in range(4)]

    failed = await node.failing(upload, *blocks, checksum=checksum_of(b"else"))

    assert isinstance(failed.error, ChecksumMismatch)
    assert (await node.offset(upload), node.staged(upload)) == (4, b"kept")
    # The running checksum begins again where the offset is.
    after = await node.append(upload, *blocks, checksum=checksum_of(b"".join(blocks)))
    assert after.crc64nvme == (await node.world.received(b"kept" + b"".join(blocks))).crc64nvme


@pytest.mark.parametrize(
    ("trailer", "error"),
    [
        ("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=", None),
        ("sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", ChecksumMismatch),
        ("rot13 uryyb", InvalidChecksum),
        (None, IncompleteChunk),
    ],
)
async def test_a_body_whose_trailer_does_not_fit_is_discarded(
    node: Node, trailer: str | None, error: type[Exception] | None
) -> None:
    """TRL-02 TRL-04"""
    upload = await node.world.create(length=10)
    body = node.body(b"hel", b"lo", trailers={} if trailer is None else {UPLOAD_CHECKSUM: trailer})

    if error is None:
        await node.append(upload, body=body, checksum_in_trailer=True)
    else:
        assert isinstance((await node.failing(upload, body=body, checksum_in_trailer=True)).error, error)

    kept = b"" if error else b"hello"
    assert (await node.offset(upload), node.staged(upload)) == (len(kept), kept)


async def promised(node: Node, content: bytes) -> Upload:
    """Return an upload of ten bytes that are to be these."""
    return await node.world.create(length=10, protocol=DRAFT, repr_digest=digest_of(content))


async def test_all_bytes_are_compared_before_the_upload_is_complete(node: Node) -> None:
    upload = await node.append(await promised(node, b"helloworld"), b"hello", completes=False)

    after = await node.append(upload, b"world", completes=True, want_repr_digest="md5")

    assert (after.state, after.offset) == (State.COMPLETED, 10)
    assert after.repr_digest is not None
    assert after.repr_digest.digest == hashlib.md5(b"helloworld", usedforsecurity=False).digest()


async def test_an_upload_whose_bytes_are_others_than_promised_is_given_up(node: Node) -> None:
    upload = await node.append(await promised(node, b"something!"), b"hello", completes=False)

    failed = await node.failing(upload, b"world", completes=True)

    assert isinstance(failed.error, WholeChecksumMismatch)
    assert await node.world.state(upload) is State.REMOVING
    assert await node.world.jobs_of(upload) == [("remove", "queued")]
