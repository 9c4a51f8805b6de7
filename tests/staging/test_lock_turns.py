"""Who holds an upload, and who is next."""

from __future__ import annotations

import asyncio
from typing import NoReturn
from uuid import uuid4

import pytest

from tusd_py.errors import UploadLocked
from tusd_py.locks import LocalLocks
from tusd_py.protocol.upload import UploadId

pytestmark = pytest.mark.unit

UPLOAD = UploadId(uuid4())


def nothing() -> None:
    pass


async def turns(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_a_free_upload_is_had_at_once() -> None:
    """LOCK-01"""
    locks = LocalLocks(timeout_seconds=1)

    async with locks.hold(UPLOAD, nothing) as contended:
        assert not contended
        assert locks.held(UPLOAD)

    assert not locks.held(UPLOAD)


async def test_a_newcomer_stops_the_holder_and_goes_on_after_it() -> None:
    """LOCK-01 LOCK-02"""
    locks = LocalLocks(timeout_seconds=5)
    stop = asyncio.Event()
    order: list[object] = []

    async def holder() -> None:
        async with locks.hold(UPLOAD, stop.set):
            await stop.wait()
            order.append("holder")

    async def newcomer() -> None:
        async with locks.hold(UPLOAD, nothing) as contended:
            order.append(contended)

    first = asyncio.create_task(holder())
    await turns()
    await asyncio.gather(first, newcomer())

    assert order == ["holder", True]
    assert not locks._entries


async def test_the_oldest_waiter_is_next_and_is_told_that_others_wait() -> None:
    """LOCK-02"""
    locks = LocalLocks(timeout_seconds=5)
    order: list[int] = []
    notified: list[int] = []

    async def newcomer(number: int) -> None:
        async with locks.hold(UPLOAD, lambda: notified.append(number)):
            order.append(number)
            await turns()

    async with locks.hold(UPLOAD, nothing):
        waiting = [asyncio.create_task(newcomer(number)) for number in range(3)]
        await turns()
    await asyncio.gather(*waiting)

    assert order == [0, 1, 2]
    assert notified == [0, 1]


async def test_a_waiter_gives_up_after_its_time_and_leaves_no_trace() -> None:
    """LOCK-04"""
    locks = LocalLocks(timeout_seconds=0.01)

    async with locks.hold(UPLOAD, nothing):
        with pytest.raises(UploadLocked):
            async with locks.hold(UPLOAD, nothing):
                pass
        assert not locks._entries[UPLOAD].waiters

    assert not locks._entries


@pytest.mark.parametrize("late", [False, True])
async def test_a_waiter_that_is_cancelled_passes_its_turn_on(late: bool) -> None:
    """LOCK-02"""
    locks = LocalLocks(timeout_seconds=5)

    async def newcomer() -> bool:
        async with locks.hold(UPLOAD, nothing):
            return True

    holding = locks.hold(UPLOAD, nothing)
    await holding.__aenter__()
    cancelled, next_one = asyncio.create_task(newcomer()), asyncio.create_task(newcomer())
    await turns()
    if late:
        # Its turn has come, but it has not heard of it yet.
        await holding.__aexit__(None, None, None)
        cancelled.cancel()
    else:
        cancelled.cancel()
        await turns()
        await holding.__aexit__(None, None, None)

    assert await next_one
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert not locks._entries


async def test_a_holder_that_fails_to_stop_blocks_nobody_for_ever() -> None:
    """LOCK-02"""
    locks = LocalLocks(timeout_seconds=5)

    def broken() -> NoReturn:
        raise RuntimeError

    async with locks.hold(UPLOAD, broken):
        with pytest.raises(RuntimeError):
            async with locks.hold(UPLOAD, nothing):
                pass
        assert not locks._entries[UPLOAD].waiters


async def test_another_process_may_ask() -> None:
    """LOCK-02"""
    asked: list[str] = []
    notified: list[int] = []

    async def ask(upload_id: str) -> None:
        asked.append(upload_id)

    locks = LocalLocks(timeout_seconds=5, ask_others=ask)

    locks.asked(UPLOAD)
    async with locks.hold(UPLOAD, lambda: notified.append(1)):
        locks.asked(UPLOAD)
    await locks.ask_others(UPLOAD)

    assert notified == [1]
    assert asked == [str(UPLOAD)]
