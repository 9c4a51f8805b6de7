"""How an upload stands, and waiting for that to change."""

from __future__ import annotations

import asyncio

import pytest

from tests.http.support import eventually
from tests.support.world import stored
from tests.uploads.support import MakeNode, Node
from tusd_py.authorization import ANONYMOUS
from tusd_py.errors import UploadNotFound
from tusd_py.protocol.upload import State, Upload
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.waiting import UploadStatus, look_at_upload

LONG = 3600.0


async def waiting(node: Node, upload: Upload, seconds: float = LONG) -> asyncio.Task[UploadStatus]:
    """Begin to wait, and return once the upload was looked at."""
    looks = node.uploads.finds
    task = asyncio.create_task(look_at_upload(node.service, ANONYMOUS, upload.id, wait_seconds=seconds))
    # Once to see who may, and once with the changes in place.
    await eventually(lambda: node.uploads.finds >= looks + 2, seconds=30)
    return task


async def test_without_a_wait_the_upload_is_told_as_it_is(node: Node) -> None:
    upload = await node.world.received()

    seen = await look_at_upload(node.service, ANONYMOUS, upload.id)

    assert (seen.upload.state, seen.settled) == (State.COMPLETED, False)
    assert seen.transfer is not None
    assert (seen.transfer.attempts, seen.transfer.over) == (0, False)
    assert node.service.changes.waiting == 0


async def test_a_change_wakes_who_waits_and_a_mere_notification_does_not(node: Node) -> None:
    upload = await node.world.create(length=5)
    other = await node.world.create(length=5)
    task = await waiting(node, upload)
    looks = node.uploads.finds

    node.service.changes.changed(f"{other.id},{upload.id}")
    await eventually(lambda: node.uploads.finds == looks + 1, seconds=30)
    assert not task.done()
    await node.append(upload, b"hello")
    node.service.changes.changed(str(upload.id))

    assert (await task).upload.state is State.COMPLETED
    assert node.service.changes.waiting == 0


async def test_a_change_that_nobody_tells_is_seen_at_the_next_look(make_node: MakeNode) -> None:
    node = make_node(look_seconds=0.01)
    upload = await node.world.create(length=5)
    task = await waiting(node, upload)
    looks = node.uploads.finds

    # It looks again and again, and goes on as long as nothing has changed.
    await eventually(lambda: node.uploads.finds >= looks + 3, seconds=30)
    assert not task.done()
    await node.append(upload, b"hello")

    assert (await task).upload.state is State.COMPLETED


async def test_the_wait_ends_with_its_time(node: Node) -> None:
    upload = await node.world.create(length=5)

    seen = await look_at_upload(node.service, ANONYMOUS, upload.id, wait_seconds=0.01)

    assert seen.upload.state is State.CREATED


async def test_nobody_waits_for_what_does_not_change_by_itself(node: Node) -> None:
    upload = await node.world.received()
    (job,) = await node.world.jobs().claim(1)
    await node.world.jobs().finish_transfers([(job, stored(job.upload))])
    removed = await node.world.force_state(await node.world.create(), State.REMOVED)

    for each, state in ((upload, State.STORED), (removed, State.REMOVED)):
        seen = await look_at_upload(node.service, ANONYMOUS, each.id, wait_seconds=LONG)
        assert (seen.upload.state, seen.settled) == (state, True)


async def test_who_is_told_that_nobody_listens_waits_no_longer(node: Node) -> None:
    upload = await node.world.create(length=5)

    seen = await look_at_upload(node.service, ANONYMOUS, upload.id, wait_seconds=LONG, wanted=lambda: False)

    assert seen.upload.state is State.CREATED


@pytest.mark.parametrize("before", [True, False])
async def test_when_the_process_ends_nobody_waits(node: Node, before: bool) -> None:
    upload = await node.world.create(length=5)
    service: UploadService = node.service
    if before:
        service.changes.close()
        task = asyncio.create_task(look_at_upload(service, ANONYMOUS, upload.id, wait_seconds=LONG))
    else:
        task = await waiting(node, upload)
        service.changes.close()

    assert (await task).upload.state is State.CREATED


async def test_an_upload_that_is_forgotten_meanwhile_is_not_found(node: Node) -> None:
    upload = await node.world.create(length=5)
    task = await waiting(node, upload)

    await node.world.sql("DELETE FROM uploads WHERE id = $1", upload.id)
    node.service.changes.changed(str(upload.id))

    with pytest.raises(UploadNotFound):
        await task
