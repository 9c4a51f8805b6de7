"""A disk that fails in the middle of a body: what counts, and what is told."""

from __future__ import annotations

from tests.http.support import eventually
from tests.uploads.support import BLOCK, MIB, RETRIES, MakeNode, Node, checksum_of
from tusd_py.errors import StagingFull, StorageError


async def test_the_blocks_before_a_write_that_fails_count(node: Node) -> None:
    """GEN-16 CORE-20"""
    upload = await node.world.create(length=MIB)
    blocks = [bytes([number]) * BLOCK for number in range(8)]
    node.disk.full_at = 3 * BLOCK + 1

    failed = await node.failing(upload, *blocks)

    assert isinstance(failed.error, StagingFull)
    assert failed.upload is not None
    assert failed.upload.offset == await node.offset(upload) == 3 * BLOCK
    node.disk.full_at = None
    after = await node.append(failed.upload, *blocks[3:])
    assert (after.offset, node.staged(upload)) == (8 * BLOCK, b"".join(blocks))


async def test_after_a_sync_that_fails_only_what_the_last_good_one_covered_counts(make_node: MakeNode) -> None:
    """GEN-16 CORE-20 LOCK-08"""
    node = make_node(staging={"block_size": MIB})
    upload = await node.world.create(length=4 * MIB)
    node.disk.good_syncs = 1
    body = node.body(
        b"a" * MIB, lambda: eventually(lambda: body.acknowledged == [MIB], seconds=30), b"b" * MIB, b"c" * MIB
    )

    failed = await node.failing(upload, body=body)

    assert type(failed.error) is StorageError
    assert failed.upload is not None
    assert failed.upload.offset == await node.offset(upload) == MIB
    assert body.acknowledged == [MIB]
    # What nobody was told of is cut off by the next, before it writes.
    assert len(node.staged(upload)) > MIB
    node.disk.good_syncs = None
    after = await node.append(failed.upload, b"d")
    assert (after.offset, after.writer) == (MIB + 1, upload.writer + 1)
    assert node.staged(upload) == b"a" * MIB + b"d"


async def test_of_a_body_that_was_still_to_be_compared_nothing_counts(node: Node) -> None:
    """CSUM-07"""
    upload = await node.append(await node.world.create(length=MIB), b"kept")
    content = b"x" * 4 * BLOCK
    node.disk.full_at = 2 * BLOCK + 4

    failed = await node.failing(
        upload, *(content[start : start + BLOCK] for start in range(0, len(content), BLOCK)),
        checksum=checksum_of(content),
    )  # fmt: skip

    assert isinstance(failed.error, StagingFull)
    assert failed.upload is not None
    assert failed.upload.offset == await node.offset(upload) == 4
    node.disk.full_at = None
    assert (await node.append(failed.upload, content, checksum=checksum_of(content))).offset == 4 + len(content)
    assert node.staged(upload) == b"kept" + content


async def test_a_disk_that_fails_when_all_has_come_tells_what_was_recorded(node: Node) -> None:
    """GEN-16"""
    upload = await node.append(await node.world.create(length=10), b"hello")
    node.disk.good_syncs = 0

    failed = await node.failing(upload, b"world")

    assert failed.upload is not None
    assert failed.upload.offset == await node.offset(upload) == 5
    assert not (await node.world.find(upload)).complete


async def test_where_disk_and_database_fail_nobody_says_how_far_the_upload_has_come(node: Node) -> None:
    """GEN-16 LOCK-08"""
    upload = await node.world.create(length=MIB)
    node.disk.full_at = BLOCK
    node.uploads.away_for = RETRIES + 1

    failed = await node.failing(upload, b"a" * BLOCK, b"b" * BLOCK)

    # The disk is what the client is told of; whether the first block is recorded, nobody knows.
    assert isinstance(failed.error, StagingFull)
    assert failed.upload is None
    assert await node.offset(upload) == 0
    node.disk.full_at = None
    assert (await node.append(upload, b"new")).offset == 3
    assert node.staged(upload) == b"new"
