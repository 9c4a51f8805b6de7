"""Where the bytes of an upload are found, for each place in which they can be."""

from __future__ import annotations

import pytest

from tests.support.world import THERE
from tests.uploads.support import MakeNode, Node
from tusd_py.errors import (
    NotReady,
    StagingMissing,
    StoredObjectMissing,
    StoreNotConfigured,
    TusdError,
    UploadGone,
    UploadNotFound,
    WrongNode,
)
from tusd_py.ports import DownloadHeaders, LocalFile, PresignedUrl, Segment
from tusd_py.protocol.upload import State, Upload
from tusd_py.uploads.locate import StagedFiles, locate_bytes

CONTENT = b"0123456789"
ELSEWHERE = 77
"""A place that no store is configured for."""


async def locate(node: Node, upload: Upload) -> StagedFiles | LocalFile | PresignedUrl:
    return await locate_bytes(
        node.service, await node.world.find(upload), DownloadHeaders("text/plain", "inline"), method="GET"
    )


async def stored(
    node: Node, *, object_is_there: bool = True, copy: bytes | None = None, place_id: int | None = None
) -> Upload:
    """Return a stored upload, with its object or without, and with the staged copy that is given."""
    upload = await node.world.received(CONTENT, place_id=place_id or await node.service.stores.current_id())
    await node.world.sql(
        "UPDATE uploads SET state = 'stored', stored_at = now(), remote_present = true, local_present = $2"
        " WHERE id = $1",
        upload.id, copy is not None,
    )  # fmt: skip
    if object_is_there:
        path = node.world.store.local_path(upload.object_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
    node.disk.path(upload.id).unlink()
    if copy is not None:
        node.disk.path(upload.id).write_bytes(copy)
    return upload


async def test_a_complete_upload_is_in_staging(node: Node) -> None:
    upload = await node.world.received(CONTENT)

    found = await locate(node, upload)

    assert isinstance(found, StagedFiles)
    assert found.segments == (Segment(node.disk.path(upload.id), 10),)


async def test_a_final_upload_is_in_the_files_of_its_partial_ones(node: Node) -> None:
    parts = [await node.world.part(content) for content in (b"one", b"three", b"")]
    final = await node.world.final(parts)

    found = await locate(node, final)

    assert isinstance(found, StagedFiles)
    assert found.segments == tuple(
        Segment(node.disk.path(part.id), length) for part, length in zip(parts, (3, 5, 0), strict=True)
    )


async def test_a_stored_upload_is_in_its_store_even_if_there_is_a_copy(node: Node) -> None:
    upload = await stored(node, copy=CONTENT)

    found = await locate(node, upload)

    assert isinstance(found, LocalFile)
    assert found.path == node.world.store.local_path(upload.object_key)


async def test_what_the_store_has_lost_is_in_a_whole_copy(node: Node) -> None:
    whole = await stored(node, object_is_there=False, copy=CONTENT)
    short = await stored(node, object_is_there=False, copy=CONTENT[:-1])
    none = await stored(node, object_is_there=False)

    assert isinstance(await locate(node, whole), StagedFiles)
    for upload in (short, none):
        with pytest.raises(StoredObjectMissing):
            await locate(node, upload)


async def test_a_loss_on_record_is_believed_as_long_as_there_is_a_copy(node: Node) -> None:
    copied, alone = await stored(node, copy=CONTENT), await stored(node)
    await node.world.sql("UPDATE uploads SET missing_at = now()")

    # The store has both objects: it is asked for the second alone.
    assert isinstance(await locate(node, copied), StagedFiles)
    assert isinstance(await locate(node, alone), LocalFile)


async def test_a_store_that_is_not_configured_needs_a_copy(node: Node) -> None:
    await node.world.sql("INSERT INTO store_places (id, backend) VALUES ($1, 'filesystem')", ELSEWHERE)
    alone = await stored(node, place_id=ELSEWHERE)
    copied = await stored(node, place_id=ELSEWHERE, copy=CONTENT)

    with pytest.raises(StoreNotConfigured):
        await locate(node, alone)
    assert isinstance(await locate(node, copied), StagedFiles)


async def test_a_copy_of_another_node_is_no_copy_here(node: Node) -> None:
    upload = await node.world.received(CONTENT)
    await node.world.sql("UPDATE uploads SET staging_id = $2 WHERE id = $1", upload.id, THERE)

    with pytest.raises(WrongNode):
        await locate(node, upload)


async def test_what_is_not_whole_is_not_ready_and_what_is_not_there_is_missing(node: Node) -> None:
    unfinished, lost = await node.world.create(), await node.world.received(CONTENT)
    await node.world.sql("UPDATE uploads SET local_present = false WHERE id = $1", lost.id)

    with pytest.raises(NotReady):
        await locate(node, unfinished)
    with pytest.raises(StagingMissing):
        await locate(node, lost)


@pytest.mark.parametrize(("status", "error"), [(404, UploadNotFound), (410, UploadGone)])
async def test_what_is_gone_is_nowhere(make_node: MakeNode, status: int, error: type[TusdError]) -> None:
    node = make_node(tus={"gone_status": status})
    removed = await node.world.force_state(await node.world.received(CONTENT), State.REMOVING)
    overdue = await node.world.received(CONTENT)
    await node.world.run_out_of_time(overdue)

    for upload in (removed, overdue):
        with pytest.raises(error):
            await locate(node, upload)
