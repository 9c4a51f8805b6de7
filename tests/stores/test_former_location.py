"""A bucket whose location was changed: what lies at the old one is linked to and removed there."""

from __future__ import annotations

from dataclasses import replace

from tests.support.blocking_client import fetch
from tests.support.destinations import PART, S3Destination
from tests.support.fixtures import OpenStore
from tests.support.workers import reaches, working
from tests.support.world import World
from tusd_py.config.place import Place
from tusd_py.configured_stores import Stores
from tusd_py.database.places import PlaceRecords
from tusd_py.ports import DownloadHeaders, PresignedUrl
from tusd_py.protocol.upload import State

CONTENT = b"0123456789"


async def test_what_lies_at_the_former_location_is_linked_to_and_removed_there(
    world: World, s3: S3Destination, open_store: OpenStore
) -> None:
    """Small, and in parts; and what was not stored before the change goes to the new location."""
    record = PlaceRecords(world.database)
    later = replace(s3, prefix=f"{s3.prefix}/later")
    old, new = (Place("s3", bucket=s3.account.bucket, prefix=each.prefix) for each in (s3, later))
    first, second = await open_store(s3), await open_store(later)
    uploads = [await world.received(CONTENT), await world.received(CONTENT * (PART // 10 + 1))]
    async with working(world, stores=Stores(record, old, first)):
        for upload in uploads:
            await reaches(world, upload, State.STORED, deadline=30)
    fresh = await world.received(CONTENT)
    stores = Stores(record, new, second, {old: first})

    holding = await stores.at((await world.find(uploads[0])).place_id)
    headers = DownloadHeaders("text/plain", "attachment")
    link = await holding.locate(uploads[0].object_key, headers, method="GET", expires_seconds=60)
    assert isinstance(link, PresignedUrl)
    assert fetch(link.url).body == CONTENT
    for upload in uploads:
        await world.uploads.remove(upload.id)
    async with working(world, stores=stores):
        await reaches(world, fresh, State.STORED, deadline=30)
        for upload in uploads:
            await reaches(world, upload, State.REMOVED, deadline=30)

    assert later.keys() == [fresh.object_key]
    assert [s3.read(upload.object_key) for upload in uploads] == [None, None]
    assert s3.unfinished() == []
