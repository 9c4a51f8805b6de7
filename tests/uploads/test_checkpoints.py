"""What is recorded of a body while it arrives: by bytes, by time, and when the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.http.support import eventually
from tests.support.scripted_body import ScriptedBody, Silence
from tests.uploads.support import BLOCK, MIB, RETRIES, MakeNode, Node, checksum_of
from tusd_py.errors import BodyTooSlow, DatabaseUnavailable
from tusd_py.protocol.upload import State, Upload


class Looks:
    """Looks at the row while a body is read."""

    def __init__(self, node: Node, upload: Upload, body: ScriptedBody) -> None:
        self._node, self._upload, self._body = node, upload, body

    def recorded(self, offset: int) -> Callable[[], Awaitable[None]]:
        """Return a step that waits until the row is said to have this offset, and looks whether it has."""

        async def look() -> None:
            await eventually(lambda: self._body.acknowledged[-1:] == [offset], seconds=30)
            assert await self._node.offset(self._upload) == offset

        return look

    def still(self, offset: int) -> Callable[[], Awaitable[None]]:
        """Return a step that finds the row as it was."""

        async def look() -> None:
            assert await self._node.offset(self._upload) == offset

        return look


async def scripted(node: Node, length: int | None) -> tuple[Upload, ScriptedBody, Looks]:
    """Return an upload, a body without steps, and looks at the upload for the steps."""
    upload, body = await node.world.create(length=length), node.body()
    return upload, body, Looks(node, upload, body)


async def test_the_offset_is_recorded_whenever_enough_bytes_have_come(node: Node) -> None:
    """CORE-20"""
    upload, body, row = await scripted(node, 3 * MIB)
    body.steps += [
        b"a" * (MIB - 1), row.still(0), b"a", row.recorded(MIB),
        b"b" * (MIB - 1), row.still(MIB), b"b", row.recorded(2 * MIB),
        b"c" * 10,
    ]  # fmt: skip

    after = await node.append(upload, body=body)

    assert after.offset == await node.offset(upload) == 2 * MIB + 10
    assert body.acknowledged == [MIB, 2 * MIB]
    assert node.staged(upload) == b"a" * MIB + b"b" * MIB + b"c" * 10


async def test_the_offset_is_recorded_whenever_enough_time_has_passed(make_node: MakeNode) -> None:
    """CORE-20"""
    node = make_node(staging={"checkpoint_seconds": 5})
    upload, body, row = await scripted(node, 100)
    body.steps += [
        b"one", Silence(4.5), row.still(0), Silence(0.5), row.recorded(3),
        b"four", Silence(4.5), row.still(3), Silence(0.5), row.recorded(7),
    ]  # fmt: skip

    await node.append(upload, body=body)

    assert body.acknowledged == [3, 7]
    assert await node.offset(upload) == 7


async def test_bytes_that_are_still_being_written_are_recorded_when_it_is_time(make_node: MakeNode) -> None:
    """CORE-20"""
    node = make_node(staging={"checkpoint_seconds": 5})
    upload, body, row = await scripted(node, MIB)
    # A whole block is handed to the disk at once; nothing is gathered after it.
    body.steps += [b"a" * BLOCK, Silence(5), row.recorded(BLOCK), Silence(60)]

    await node.append(upload, body=body)

    assert body.acknowledged == [BLOCK]


async def test_bytes_that_come_when_a_record_is_due_are_in_it(make_node: MakeNode) -> None:
    """CORE-20"""
    node = make_node(staging={"checkpoint_seconds": 5})
    upload, body, row = await scripted(node, 100)

    async def stall() -> None:
        node.clock.advance(6)

    body.steps += [b"a", stall, b"b", row.recorded(2)]
    await node.append(upload, body=body)

    assert body.acknowledged == [2]


async def test_without_a_byte_that_is_not_recorded_no_read_ends_early(make_node: MakeNode) -> None:
    node = make_node(staging={"checkpoint_seconds": 5})
    upload, body, row = await scripted(node, 100)
    body.steps += [Silence(3), b"a", row.still(0), Silence(2), row.recorded(1)]

    await node.append(upload, body=body)

    # The first wait has no end; the second ends when the record is due. Then everything is recorded.
    assert body.waits[:2] == [None, 2.0]
    assert body.acknowledged == [1]


async def test_a_body_with_a_checksum_is_recorded_only_as_a_whole(make_node: MakeNode) -> None:
    """CSUM-07"""
    node = make_node(staging={"checkpoint_seconds": 5})
    upload, body, row = await scripted(node, 3 * MIB)
    content = b"a" * (2 * MIB)
    body.steps += [content, Silence(60), row.still(0), b"b", row.still(0)]

    after = await node.append(upload, body=body, checksum=checksum_of(content + b"b"))

    assert after.offset == await node.offset(upload) == 2 * MIB + 1
    assert (body.acknowledged, set(body.waits)) == ([], {None})


@pytest.mark.parametrize(("received", "too_slow"), [(2999, True), (3000, False)])
async def test_the_rate_is_judged_at_the_end_of_the_window(make_node: MakeNode, received: int, too_slow: bool) -> None:
    """CORE-21"""
    node = make_node(limits={"min_rate": 100}, staging={"checkpoint_seconds": 30})
    upload = await node.world.create(length=10_000)
    body = node.body(Silence(29), b"x" * received, Silence(1), b"y" * 10, Silence(29), b"z")

    if too_slow:
        failed = await node.failing(upload, body=body)
        assert isinstance(failed.error, BodyTooSlow)
        assert failed.upload is not None
        assert failed.upload.offset == await node.offset(upload) == received
        assert node.clock.now == 1030
    else:
        # The next window has another 30 seconds, of which one is left.
        assert (await node.append(upload, body=body)).offset == received + 11


async def test_a_record_that_does_not_reach_the_database_is_made_with_the_next(node: Node) -> None:
    """CORE-20"""
    upload, body, row = await scripted(node, 3 * MIB)
    node.uploads.away_for = 1

    async def tried() -> None:
        await eventually(lambda: node.uploads.advances == 1, seconds=30)

    body.steps += [b"a" * MIB, tried, row.still(0), b"b" * MIB, row.recorded(2 * MIB), b"c"]
    after = await node.append(upload, body=body)

    assert after.offset == await node.offset(upload) == 2 * MIB + 1
    assert body.acknowledged == [2 * MIB]
    assert node.uploads.advances == 3


@pytest.mark.parametrize("away_for", [1, RETRIES])
async def test_at_the_end_a_database_that_is_away_is_tried_again(node: Node, away_for: int) -> None:
    """CORE-20"""
    upload = await node.world.create(length=5)
    node.uploads.away_for = away_for

    after = await node.append(upload, b"hello")

    assert (after.state, after.offset) == (State.COMPLETED, 5)
    assert await node.world.state(upload) is State.COMPLETED
    assert node.uploads.advances == away_for + 1


async def test_after_the_last_try_nobody_says_how_far_the_upload_has_come(node: Node) -> None:
    """GEN-16 LOCK-08"""
    upload = await node.world.create(length=10)
    node.uploads.away_for = RETRIES + 1

    failed = await node.failing(upload, b"LOST")

    assert isinstance(failed.error, DatabaseUnavailable)
    assert failed.upload is None
    assert node.uploads.advances == RETRIES + 1
    assert (await node.offset(upload), node.staged(upload)) == (0, b"LOST")

    # The next one cuts them off, and keeps the writer of before from recording them late.
    after = await node.append(upload, b"new")
    assert (after.offset, after.writer, node.staged(upload)) == (3, upload.writer + 1, b"new")


async def test_who_is_cancelled_while_it_records_has_recorded(node: Node) -> None:
    """LOCK-09"""
    upload = await node.world.create(length=10)
    node.uploads.may_record.clear()
    appending = asyncio.create_task(node.append(upload, b"hello"))
    await node.uploads.recording.wait()

    appending.cancel()
    await asyncio.sleep(0)
    assert node.service.locks.held(upload.id)
    node.uploads.may_record.set()

    with pytest.raises(asyncio.CancelledError):
        await appending
    assert await node.offset(upload) == 5
    assert not node.service.locks.held(upload.id)
    assert node.disk.probe(upload.id) == 5
