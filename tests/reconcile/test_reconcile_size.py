"""Reconciling a few thousand uploads: in pages, and in memory that does not grow with their number."""

from __future__ import annotations

import gc
import tracemalloc
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.reconciling import reconciler
from tests.support.world import HERE, World
from tusd_py.reconcile.findings import Kind
from tusd_py.stores.filesystem import FilesystemStore

BATCH = 50
FEW, MANY = 300, 3000
FRAMES = 10
OURS = tracemalloc.Filter(True, "*/tusd_py/*", all_frames=True)
"""What was allocated for us; other tests' servers may run in threads of this process."""
INSERT = f"""
INSERT INTO uploads (id, token_hash, staging_id, state, upload_length, upload_offset, object_key, local_present,
                     remote_present, stored_at, updated_at)
SELECT id, sha256(id::text::bytea), '{HERE}'::uuid, 'stored', 3, 3, 'uploads/' || id, n % 2 = 0, true,
       now() - interval '2 hours', now() - interval '2 hours'
  FROM unnest($1::uuid[]) WITH ORDINALITY AS made (id, n)
"""


async def fill(world: World, count: int) -> list[uuid.UUID]:
    """Stored uploads; every second one has a staged copy as well."""
    ids = [uuid.uuid4() for _ in range(count)]
    await world.sql(INSERT, ids)
    directory = world.root / "store" / "uploads"
    directory.mkdir(exist_ok=True)
    for number, upload_id in enumerate(ids, start=1):
        (directory / str(upload_id)).write_bytes(b"abc")
        if number % 2 == 0:
            name = str(upload_id)
            (world.root / "staging" / name[-2:] / name).write_bytes(b"abc")
    return ids


class Pages:
    """How much was asked for at once."""

    def __init__(self, one: Any) -> None:
        self.largest = 0
        self.count = 0
        self.held = 0
        for owner, name in (
            (one._records, "page"), (one._records, "by_id"), (one._records, "by_key"), (one._staging, "sizes"),
        ):  # fmt: skip
            self._watch(owner, name)

    def _watch(self, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*arguments: Any) -> Any:
            size = arguments[-1] if name == "page" else len(arguments[0])
            self.largest = max(self.largest, size)
            self.count += 1
            if tracemalloc.is_tracing() and self.count % 10 == 0:
                ours = tracemalloc.take_snapshot().filter_traces([OURS])
                self.held = max(self.held, sum(trace.size for trace in ours.traces))
            return original(*arguments)

        setattr(owner, name, watched)


@pytest.fixture
async def store(world: World) -> AsyncIterator[FilesystemStore]:
    """The store of the world, listed in small pages."""
    store = FilesystemStore(world.root / "store", page_size=BATCH)
    yield store
    await store.close()


async def looked_at(world: World, store: FilesystemStore) -> tuple[Any, Pages]:
    """A run: its report, and the most that it held at any tenth of its questions."""
    one = reconciler(world, store, batch=BATCH, delete_local=False)
    pages = Pages(one)
    gc.collect()
    tracemalloc.start(FRAMES)
    try:
        async for _ in one.run(repair=False):
            pass
    finally:
        tracemalloc.stop()
    return one.report, pages


async def test_memory_does_not_grow_with_the_number_of_uploads(world: World, store: FilesystemStore) -> None:
    await fill(world, FEW)
    report, few = await looked_at(world, store)
    assert (report.uploads, report.objects, report.files, report.left) == (FEW, FEW, FEW // 2, 0)

    await fill(world, MANY - FEW)
    report, many = await looked_at(world, store)

    assert (report.uploads, report.objects, report.files, report.left) == (MANY, MANY, MANY // 2, 0)
    assert many.largest <= BATCH
    assert many.count >= 3 * MANY // BATCH // 2
    # Ten times as many; of their ids alone a list would be 200 bytes for each.
    assert 0 < many.held < few.held + 50 * (MANY - FEW)


async def test_one_of_thousands_is_found(world: World, store: FilesystemStore) -> None:
    ids = await fill(world, 1000)
    (world.root / "store" / "uploads" / str(ids[500])).unlink()
    name = str(ids[1])
    (world.root / "staging" / name[-2:] / name).unlink()

    one = reconciler(world, store, batch=BATCH, delete_local=False)
    found = [(outcome.finding.kind, outcome.finding.subject) async for outcome in one.run(repair=False)]

    assert sorted(found) == [(Kind.COPY_NOT_THERE, str(ids[1])), (Kind.OBJECT_MISSING, str(ids[500]))]


async def test_a_listing_out_of_order_costs_looks_and_makes_no_finding(
    world: World, store: FilesystemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some stores say that they sort and do not."""
    await fill(world, 120)
    one = reconciler(world, store, batch=BATCH, delete_local=False)
    listing = one._store.list_objects

    async def reversed_listing() -> AsyncIterator[Any]:
        for entry in reversed([entry async for entry in listing()]):
            yield entry

    monkeypatch.setattr(one._store, "list_objects", reversed_listing)

    assert [outcome async for outcome in one.run(repair=False)] == []
    assert (one.report.uploads, one.report.objects) == (120, 120)
