"""The small parts of the byte loop."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.config import StagingConfig
from tusd_py.errors import BodyTooSlow
from tusd_py.uploads.body_writer import finished
from tusd_py.uploads.buffers import (
    MANY_CHUNKS,
    MIN_BLOCK_BYTES,
    RATE_WINDOW_SECONDS,
    Block,
    BufferBudget,
    RateGuard,
)
from tusd_py.uploads.service import UNANNOUNCED_SECONDS, unannounced_seconds

pytestmark = pytest.mark.unit

MIB = 2**20


@pytest.mark.parametrize(("bodies", "block"), [(0, MIB), (1, MIB), (8, MIB), (16, MIB // 2), (10_000, MIN_BLOCK_BYTES)])
def test_many_bodies_mean_small_blocks(bodies: int, block: int) -> None:
    budget = BufferBudget(StagingConfig(block_size=MIB, buffer_budget=16 * MIB))
    for _ in range(bodies):
        budget.__enter__()

    assert budget.block_bytes == block


@given(st.lists(st.binary(min_size=1, max_size=5000), max_size=60), st.integers(0, 2**20))
def test_a_block_is_cut_at_a_page_and_loses_nothing(pieces: list[bytes], start: int) -> None:
    block = Block()
    for piece in pieces:
        block.append(piece)

    cut = b"".join(block.cut(start))
    rest = b"".join(block.chunks)

    assert cut + rest == b"".join(pieces)
    assert len(rest) == block.size
    assert not rest or (start + len(cut)) % 4096 == 0


def test_crumbs_are_joined() -> None:
    """CORE-24"""
    block = Block()
    for number in range(MANY_CHUNKS * 3 + 5):
        block.append(bytes([number % 256]))

    assert len(block.chunks) < MANY_CHUNKS
    assert b"".join(block.chunks) == bytes(number % 256 for number in range(MANY_CHUNKS * 3 + 5))
    assert block.size == MANY_CHUNKS * 3 + 5


def test_without_a_minimum_any_rate_will_do() -> None:
    guard = RateGuard(0)

    guard.count(0, 1e9)


def test_too_few_bytes_in_a_whole_window_are_too_slow() -> None:
    """CORE-21"""
    guard = RateGuard(100)
    guard.count(1, RATE_WINDOW_SECONDS - 1)

    with pytest.raises(BodyTooSlow):
        guard.count(1, 1)


def test_a_window_with_enough_bytes_is_followed_by_a_new_one() -> None:
    guard = RateGuard(100)
    guard.count(int(100 * RATE_WINDOW_SECONDS), RATE_WINDOW_SECONDS)
    guard.count(0, RATE_WINDOW_SECONDS - 1)

    with pytest.raises(BodyTooSlow):
        guard.count(0, 1)


def test_time_that_the_disk_took_is_not_the_clients() -> None:
    guard = RateGuard(100)

    for _ in range(10_000):
        guard.count(1, 0.0)


@pytest.mark.parametrize(("after", "seconds"), [(0.0, 0.0), (60.0, 60.0), (1e6, UNANNOUNCED_SECONDS)])
def test_nobody_waits_long_for_an_upload_without_a_url(after: float, seconds: float) -> None:
    """CWU-03"""
    assert unannounced_seconds(after) == seconds


async def test_work_is_finished_even_if_nobody_waits_for_it_any_more() -> None:
    """LOCK-09"""
    go_on, done = asyncio.Event(), []

    async def work() -> None:
        await go_on.wait()
        done.append(1)

    waiting = asyncio.create_task(finished(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [1]


async def test_finished_work_answers_or_raises() -> None:
    async def answer() -> int:
        return 5

    async def fail() -> NoReturn:
        raise KeyError

    assert await finished(answer()) == 5
    with pytest.raises(KeyError):
        await finished(fail())
