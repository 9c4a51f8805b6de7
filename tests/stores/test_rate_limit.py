"""A line of limited speed: how long bytes take on it, and who gets how much of it."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.stores.test_filesystem_store import QuietTransferState, fail, spec_of
from tusd_py.ports import Segment
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.stores.rate_limit import BURST_SECONDS, Bandwidth, RateLimiter

MIB = 2**20
MOST_SECONDS = 20


async def send(limiter: RateLimiter, count: int, sent: dict[str, int] | None = None, name: str = "") -> None:
    """Send so many bytes in blocks, as a body does."""
    while count:
        block = min(limiter.block_bytes, count)
        await limiter.acquire(block)
        count -= block
        if sent is not None:
            sent[name] = sent.get(name, 0) + block


async def test_bytes_take_the_time_that_the_limit_gives_them() -> None:
    line = Bandwidth(MIB)
    started = time.monotonic()

    async with asyncio.timeout(MOST_SECONDS):
        await asyncio.gather(*(send(line.limiter(), MIB // 4) for _ in range(4)))

    assert time.monotonic() - started >= 0.8


async def test_an_upload_with_many_parts_gets_no_more_than_one_with_a_single_body() -> None:
    line = Bandwidth(MIB)
    greedy, modest = line.limiter(), line.limiter()
    sent: dict[str, int] = {}
    parts = [asyncio.create_task(send(greedy, MIB, sent, "greedy")) for _ in range(8)]

    async with asyncio.timeout(MOST_SECONDS):
        await send(modest, MIB // 4, sent, "modest")
        ahead = sent["greedy"]
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)

    # Whoever comes first finds the line free for a moment.
    assert abs(ahead - sent["modest"]) <= MIB * BURST_SECONDS + 2 * line.block_bytes


async def test_whoever_is_cancelled_holds_nobody_up() -> None:
    line = Bandwidth(64 * 2**10)
    limiter = line.limiter()
    gone = [asyncio.create_task(limiter.acquire(64 * 2**10)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in gone[1:]:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    started = time.monotonic()

    async with asyncio.timeout(MOST_SECONDS):
        await limiter.acquire(1)

    # Behind the first one's second, but not behind the 49 that have gone.
    assert 0.7 <= time.monotonic() - started < 10


async def test_waiting_costs_a_timer_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Bandwidth(2**20)
    rounds = 0
    serve = Bandwidth._serve

    def counted(self: Bandwidth) -> None:
        nonlocal rounds
        rounds += 1
        serve(self)

    monkeypatch.setattr(Bandwidth, "_serve", counted)

    async with asyncio.timeout(MOST_SECONDS):
        await asyncio.gather(*(send(line.limiter(), MIB // 16) for _ in range(8)))

    assert rounds <= MIB // 2 // line.block_bytes * 2


@pytest.mark.parametrize("batch", [False, True])
async def test_copies_keep_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, batch: bool) -> None:
    fail(monkeypatch, Path, "hardlink_to", errno.EXDEV)
    store = FilesystemStore(tmp_path / "store", bandwidth=Bandwidth(MIB))
    await store.open()
    content = os.urandom(MIB // 2)
    items: list[tuple[Any, list[Segment]]] = []
    for number in range(2):
        path = tmp_path / str(number)
        path.write_bytes(content)
        items.append((spec_of(content, f"key/{number}"), [Segment(path, len(content))]))
    transfer_state = QuietTransferState()
    started = time.monotonic()

    async with asyncio.timeout(MOST_SECONDS):
        if batch:
            await store.put_batch([*items, items[0]])
        else:
            await asyncio.gather(*(store.put(spec, segments, transfer_state) for spec, segments in items))

    # A batch asks before each copy, so the last one is on its way when the line is still busy.
    assert time.monotonic() - started >= (0.4 if batch else 0.8)
    assert all(store.local_path(spec.key).read_bytes() == content for spec, _ in items)
    assert batch or len(transfer_state.reported) > 20
    await store.close()


async def test_a_link_moves_no_bytes_and_waits_for_nothing(tmp_path: Path) -> None:
    store = FilesystemStore(tmp_path / "store", bandwidth=Bandwidth(64 * 2**10))
    await store.open()
    content = bytes(2 * MIB)
    (tmp_path / "staged").write_bytes(content)

    async with asyncio.timeout(20):  # 32 s if it were copied
        await store.put(spec_of(content), [Segment(tmp_path / "staged", len(content))], QuietTransferState())

    await store.close()
