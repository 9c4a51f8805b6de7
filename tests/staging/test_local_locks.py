"""The contract of `LocalLocks`: one request at a time per upload, and the newest one wins."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest

from tusd_py.errors import UploadLocked
from tusd_py.locks import LocalLocks
from tusd_py.protocol.upload import UploadId

pytestmark = pytest.mark.unit

ONE, OTHER = UploadId(uuid.UUID(int=1)), UploadId(uuid.UUID(int=2))
Make = Callable[..., LocalLocks]


@pytest.fixture(params=[LocalLocks])
def make(request: pytest.FixtureRequest) -> Make:
    """Locks with a patience of five seconds, unless told otherwise."""

    def make_one(**settings: object) -> LocalLocks:
        locks: LocalLocks = request.param(**({"timeout_seconds": 5} | settings))
        return locks

    return make_one


class Request:
    """A request that holds an upload until it is told to stop, or finishes by itself."""

    def __init__(self, locks: LocalLocks, upload_id: UploadId = ONE, *, stubborn: bool = False) -> None:
        self.asked = 0
        self.contended: bool | None = None
        self.holding = asyncio.Event()
        self._end = asyncio.Event()
        self._stubborn = stubborn
        self.task = asyncio.create_task(self._run(locks, upload_id))

    async def _run(self, locks: LocalLocks, upload_id: UploadId) -> None:
        async with locks.hold(upload_id, self._stop) as contended:
            self.contended = contended
            self.holding.set()
            await self._end.wait()

    def _stop(self) -> None:
        self.asked += 1
        if not self._stubborn:
            self._end.set()

    async def finish(self) -> None:
        self._end.set()
        await self.task


async def test_nobody_is_asked_for_what_nobody_holds(make: Make) -> None:
    locks = make()

    async with locks.hold(ONE, pytest.fail) as contended:
        assert contended is False
        assert locks.held(ONE)
        assert not locks.held(OTHER)

    assert not locks.held(ONE)


async def test_different_uploads_do_not_meet(make: Make) -> None:
    locks = make()

    async with locks.hold(ONE, pytest.fail), locks.hold(OTHER, pytest.fail) as contended:
        assert contended is False


async def test_a_newer_request_stops_the_holder_and_knows_that_it_did(make: Make) -> None:
    locks = make()
    first = Request(locks)
    await first.holding.wait()

    second = Request(locks)
    await second.holding.wait()

    assert first.task.done()
    assert (first.asked, first.contended) == (1, False)
    assert second.contended is True
    await second.finish()


async def test_two_never_hold_the_same_upload(make: Make) -> None:
    locks = make()
    inside = most = 0

    async def visit() -> None:
        nonlocal inside, most
        stop = asyncio.Event()
        async with locks.hold(ONE, stop.set):
            inside += 1
            most = max(most, inside)
            for _ in range(3):
                await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(visit() for _ in range(50)))

    assert most == 1
    assert not locks.held(ONE)


async def test_whoever_waits_comes_to_its_turn_in_order(make: Make) -> None:
    locks = make()
    first = Request(locks, stubborn=True)
    await first.holding.wait()
    order: list[int] = []

    async def visit(number: int) -> None:
        async with locks.hold(ONE, lambda: None):
            order.append(number)

    visits = []
    for number in range(5):
        visits.append(asyncio.create_task(visit(number)))
        await asyncio.sleep(0)
    await first.finish()
    await asyncio.gather(*visits)

    assert order == [0, 1, 2, 3, 4]


async def test_who_gets_its_turn_while_others_wait_is_asked_at_once(make: Make) -> None:
    locks = make()
    first = Request(locks, stubborn=True)
    await first.holding.wait()
    second = Request(locks)
    await asyncio.sleep(0)
    third = Request(locks)
    await asyncio.sleep(0)

    await first.finish()
    await third.holding.wait()

    assert second.asked >= 1
    assert second.task.done()
    await third.finish()


async def test_a_holder_that_does_not_let_go_in_time_keeps_the_upload(make: Make) -> None:
    locks = make(timeout_seconds=0.02)
    stubborn = Request(locks, stubborn=True)
    await stubborn.holding.wait()

    with pytest.raises(UploadLocked):
        async with locks.hold(ONE, lambda: None):
            pytest.fail("held by two")

    assert stubborn.asked == 1
    assert locks.held(ONE)
    await stubborn.finish()
    assert not locks.held(ONE)


async def test_a_request_that_gives_up_waiting_leaves_no_trace(make: Make) -> None:
    locks = make()
    holder = Request(locks, stubborn=True)
    await holder.holding.wait()
    waiting = Request(locks)
    await asyncio.sleep(0)

    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)
    await holder.finish()

    assert not locks.held(ONE)
    async with locks.hold(ONE, pytest.fail) as contended:
        assert contended is False


async def test_a_turn_that_comes_in_the_moment_of_giving_up_is_passed_on(make: Make) -> None:
    locks = make()
    holder = Request(locks, stubborn=True)
    await holder.holding.wait()
    leaving = Request(locks)
    await asyncio.sleep(0)
    staying = Request(locks)
    await asyncio.sleep(0)

    holder._end.set()
    while not holder.task.done():
        await asyncio.sleep(0)
    leaving.task.cancel()
    await asyncio.gather(leaving.task, return_exceptions=True)

    await asyncio.wait_for(staying.holding.wait(), 5)
    await staying.finish()
    assert not locks.held(ONE)


async def test_an_error_lets_go(make: Make) -> None:
    locks = make()

    with pytest.raises(KeyError):
        async with locks.hold(ONE, lambda: None):
            raise KeyError

    assert not locks.held(ONE)


async def test_other_processes_are_asked_by_the_way_that_was_given(make: Make) -> None:
    asked: list[str] = []

    async def ask(upload_id: str) -> None:
        asked.append(upload_id)

    await make(ask_others=ask).ask_others(ONE)
    await make().ask_others(ONE)  # a single process has nobody to ask

    assert asked == [str(ONE)]
