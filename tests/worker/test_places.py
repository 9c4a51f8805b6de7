"""Where uploads lie: what is stored stays reachable, and removable, whatever is configured later."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.reconciling import reconcile
from tests.support.workers import OneByOne, is_true, reaches, working
from tests.support.world import World
from tusd_py.config.place import Place
from tusd_py.configured_stores import Stores
from tusd_py.database.places import PlaceRecords
from tusd_py.errors import HookInvalid, StoreNotConfigured
from tusd_py.ports import ObjectStore
from tusd_py.protocol.upload import State, Upload
from tusd_py.reconcile.findings import Kind, Result
from tusd_py.stores.filesystem import FilesystemStore

CONTENT = b"0123456789"
OLD = Place("filesystem", directory="old")
NEW = Place("s3", "https://s3.example", "bucket", "prefix")


@pytest.fixture
async def newer(tmp_path: Path) -> AsyncIterator[FilesystemStore]:
    """The store that is configured after a change."""
    store = FilesystemStore(tmp_path / "newer")
    await store.open()
    yield store
    await store.close()


def changed(world: World, current: ObjectStore, *, former: bool = True, moved: bool = False) -> Stores:
    """The stores after a change: the world's store is a former one, or forgotten."""
    old = Place("filesystem", directory=str(world.root / "store"))
    known: dict[Place, ObjectStore] = {old: current if moved else world.store} if former else {}
    return Stores(PlaceRecords(world.database), NEW, current, known)


async def stored_before(world: World, *, purge: bool = True) -> Upload:
    """An upload that was stored in the world's store."""
    upload = await world.received(CONTENT)
    async with working(world, purge=purge):
        await reaches(world, upload, State.STORED)
        await is_true(lambda: not purge or not world.staged(upload), "its staged copy is gone")
    return await world.find(upload)


# --- the record ------------------------------------------------------------------------------------


async def test_uploads_from_before_lie_where_the_first_start_stores(world: World) -> None:
    places = PlaceRecords(world.database)

    ids = await places.register(OLD, [])
    later = await places.register(NEW, [OLD])

    assert ids == {OLD: 1}
    assert later[OLD] == 1
    assert later[NEW] != 1
    assert await places.places() == {place_id: place for place, place_id in later.items()}


async def test_who_changes_the_store_with_the_first_start_names_the_former_one(world: World) -> None:
    ids = await PlaceRecords(world.database).register(NEW, [OLD])

    assert ids[OLD] == 1


async def test_processes_that_start_at_once_agree(world: World) -> None:
    places = PlaceRecords(world.database)

    registered = await asyncio.gather(*(places.register(NEW, [OLD]) for _ in range(8)))

    assert [each == registered[0] for each in registered] == [True] * 8
    assert await world.value("SELECT count(*) FROM store_places") == 2


async def test_a_key_is_unique_in_its_place(world: World) -> None:
    key = f"uploads/{uuid.uuid4()}"
    await world.create(object_key=key, place_id=1)
    await world.create(object_key=key, place_id=2)

    with pytest.raises(HookInvalid, match=r"Storage\.Path is taken"):
        await world.create(object_key=key, place_id=2)


# --- what is stored --------------------------------------------------------------------------------


async def test_a_former_store_is_found_by_the_upload(world: World, newer: FilesystemStore) -> None:
    upload = await stored_before(world)
    stores = changed(world, newer)

    assert await stores.at(upload.place_id) is world.store
    assert await stores.at(await stores.current_id()) is newer
    assert await changed(world, newer, moved=True).at(upload.place_id) is newer
    with pytest.raises(StoreNotConfigured) as refusal:
        await changed(world, newer, former=False).at(upload.place_id)
    assert str(world.root / "store") in str(refusal.value)


async def test_what_lies_in_a_former_store_is_removed_there(world: World, newer: FilesystemStore) -> None:
    upload = await stored_before(world)
    await world.uploads.remove(upload.id)

    async with working(world, stores=changed(world, newer)):
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None


async def test_what_was_moved_is_removed_where_it_is_now(world: World, newer: FilesystemStore, tmp_path: Path) -> None:
    upload = await stored_before(world)
    (tmp_path / "newer").rmdir()
    (tmp_path / "store").rename(tmp_path / "newer")
    await world.uploads.remove(upload.id)

    async with working(world, stores=changed(world, newer, moved=True)):
        await reaches(world, upload, State.REMOVED)

    assert not newer.local_path(upload.object_key).exists()


async def test_a_removal_waits_for_the_store_to_be_configured_again(world: World, newer: FilesystemStore) -> None:
    upload = await stored_before(world)
    await world.uploads.remove(upload.id)

    async def reason() -> str | None:
        return (await world.find(upload)).error

    slowly: dict[str, Any] = {"retry_delay": 3600.0, "retry_max_delay": 3600.0}
    async with working(world, stores=changed(world, newer, former=False), **slowly):
        await is_true(reason, "it says why")
        assert await reason() == StoreNotConfigured().detail
    assert await world.state(upload) is State.REMOVING
    assert world.object(upload) == CONTENT

    # Not in an hour, but with the start of the worker that knows the store.
    async with working(world, stores=changed(world, newer), **slowly):
        await reaches(world, upload, State.REMOVED)
    assert world.object(upload) is None


# --- what is not stored yet ------------------------------------------------------------------------


@pytest.mark.parametrize("former", [True, False])
async def test_what_was_not_stored_before_a_change_goes_to_the_new_store(
    world: World, newer: FilesystemStore, former: bool
) -> None:
    upload = await world.received(CONTENT)
    await world.stores().current_id()
    stores = changed(world, newer, former=former)

    async with working(world, stores=stores):
        found = await reaches(world, upload, State.STORED)

    assert found.place_id == await stores.current_id()
    assert newer.local_path(upload.object_key).read_bytes() == CONTENT
    assert world.object(upload) is None


async def test_what_a_killed_worker_left_in_the_former_store_is_taken_back(
    world: World, newer: FilesystemStore
) -> None:
    """Its multipart upload, and its object that was made and not recorded; somebody else's stays."""
    upload, other = await world.received(CONTENT), await world.received(CONTENT)
    await world.stores().current_id()
    for job in await world.jobs("killed").claim(2):
        await world.jobs("killed").transfer_state(job).record_multipart("m-1")
    for each, content in ((upload, CONTENT), (other, b"not theirs")):
        path = world.store.local_path(each.object_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    await world.end_leases()
    old = OneByOne(world.store)
    stores = Stores(
        PlaceRecords(world.database), NEW, newer, {Place("filesystem", directory=str(world.root / "store")): old}
    )

    async with working(world, stores=stores):
        for each in (upload, other):
            await reaches(world, each, State.STORED)

    assert sorted(old.aborted) == sorted([(upload.object_key, "m-1"), (other.object_key, "m-1")])
    assert (world.object(upload), world.object(other)) == (None, b"not theirs")
    assert newer.local_path(upload.object_key).read_bytes() == CONTENT
    assert await world.value("SELECT count(*) FROM uploads WHERE multipart_id IS NOT NULL") == 0


async def test_a_former_store_that_is_away_keeps_no_upload_from_the_new_one(
    world: World, newer: FilesystemStore
) -> None:
    upload = await world.received(CONTENT)
    await world.stores().current_id()
    (world.root / "store").rmdir()

    async with working(world, stores=changed(world, newer)):
        await reaches(world, upload, State.STORED)

    assert newer.local_path(upload.object_key).read_bytes() == CONTENT


async def test_what_never_came_near_a_store_is_removed_without_it(world: World, newer: FilesystemStore) -> None:
    upload = await world.received(CONTENT)
    await world.stores().current_id()
    await world.uploads.remove(upload.id)

    async with working(world, stores=changed(world, newer, former=False)):
        await reaches(world, upload, State.REMOVED)


# --- comparing -------------------------------------------------------------------------------------


async def test_each_store_is_compared_with_its_own_uploads(world: World, newer: FilesystemStore) -> None:
    kept, lost = await stored_before(world), await stored_before(world)
    world.store.local_path(lost.object_key).unlink()
    stores = changed(world, newer)
    fresh = await world.received(CONTENT)
    async with working(world, stores=stores):
        await reaches(world, fresh, State.STORED)
    here = await stores.current_id()

    of_current = await reconcile(world, newer, places=(here,))
    of_former = await reconcile(world, world.store, places=(kept.place_id,), former=True, repair=True)

    assert of_current.kinds == []
    assert (of_former.kinds, of_former.results) == ([Kind.OBJECT_MISSING], [Result.MARKED])
    assert world.object(kept) == CONTENT


async def test_what_is_stored_in_an_unknown_place_is_no_finding(world: World, newer: FilesystemStore) -> None:
    """What waits in staging is compared all the same."""
    await stored_before(world)
    short = await world.received(CONTENT)
    await world.sql("DELETE FROM jobs WHERE upload_id = $1", short.id)
    await world.force_state(short, State.TRANSFER_FAILED)
    world.staging.path(short.id).write_bytes(CONTENT[:4])

    run = await reconcile(world, newer, places=(99,), unknown_places=(1,))

    assert run.kinds == [Kind.STAGED_SHORT]
