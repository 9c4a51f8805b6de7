"""A worker killed at every step of its walk: the next one ends it, and nothing is lost or left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.process import Child
from tests.support.workers import InParts, is_true, make_cleanup, reaches, working
from tests.support.world import World
from tests.worker.killed_worker import POINTS
from tusd_py.errors import TransferInProgress
from tusd_py.protocol.upload import State

ROOT = Path(__file__).resolve().parents[2]
CONTENT = b"0123456789abcdef"
SENT = {
    POINTS[0]: "1 1 2 3 4 ",  # a part that is not recorded is sent again by a store that cannot ask
    POINTS[1]: "1 2 2 3 4 ",
    POINTS[2]: "1 2 3 4 ",
    POINTS[3]: "1 2 3 4 ",
    POINTS[4]: "1 2 3 4 ",
    POINTS[5]: "1 2 3 4 ",
}


def command(world: World, point: str, how: str) -> list[str]:
    return [sys.executable, "-m", "tests.worker.killed_worker", world.dsn, str(world.root), point, how]


def run_until_killed(world: World, point: str) -> None:
    ended = subprocess.run(command(world, point, "SIGKILL"), cwd=ROOT, timeout=30, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


@pytest.mark.parametrize("point", POINTS)
async def test_the_next_worker_ends_what_a_killed_one_began(world: World, point: str) -> None:
    upload = await world.received(CONTENT)
    run_until_killed(world, point)
    if point in POINTS[:4]:
        assert await world.state(upload) is State.TRANSFERRING
        assert world.staged(upload)

    await world.end_leases()
    async with working(world, InParts(world.store), name="worker-2"):
        await reaches(world, upload, State.STORED)
    await make_cleanup(world).once()

    found = await world.find(upload)
    assert (found.local_present, found.remote_present) == (False, True)
    assert not world.staged(upload)
    assert world.object(upload) == CONTENT
    assert (world.store.local_path("parts") / str(upload.id) / "sent").read_text() == SENT[point]
    assert await world.events_of(upload) == [
        "upload.created",
        "upload.completed",
        "upload.transferring",
        "upload.stored",
    ]
    assert [outcome for _, _, outcome in await world.attempts_of(upload)].count("succeeded") == 1
    assert await world.jobs().next_due_seconds() is None


@pytest.mark.parametrize("point", POINTS[:4])
async def test_an_upload_that_a_killed_worker_left_behind_is_removed(world: World, point: str) -> None:
    upload = await world.received(CONTENT)
    run_until_killed(world, point)

    await world.end_leases()
    await world.uploads.remove(upload.id)
    store = InParts(world.store)
    async with working(world, store, name="worker-2"):
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None
    assert not world.staged(upload)
    assert store.puts == []
    assert store.aborted == [(upload.object_key, f"multipart of {upload.id}")]
    assert await world.sql("SELECT 1 FROM transfer_parts") == []


@pytest.mark.parametrize("point", POINTS[:4])
async def test_a_frozen_worker_that_is_thawed_cannot_bring_a_removed_upload_back(
    world: World, tmp_path: Path, point: str
) -> None:
    upload = await world.received(CONTENT)
    with Child(command(world, point, "SIGSTOP"), log=tmp_path / "frozen.log", cwd=ROOT) as frozen:
        process = psutil.Process(frozen.pid)
        await is_true(lambda: process.status() == psutil.STATUS_STOPPED, "the worker has stopped")
        with pytest.raises(TransferInProgress):
            await world.uploads.remove(upload.id)
        await world.uploads.remove(upload.id, force=True)
        await world.end_leases()
        async with working(world, InParts(world.store), name="worker-2"):
            await reaches(world, upload, State.REMOVED)
        assert not world.staged(upload)

        frozen.signal(signal.SIGCONT)

        assert frozen.wait(20) == 0, frozen.log_text()
    assert world.object(upload) is None
    assert not world.staged(upload)
    assert await world.state(upload) is State.REMOVED
    assert await world.sql("SELECT 1 FROM transfer_parts") == []
    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "succeeded")]
