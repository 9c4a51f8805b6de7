"""What `tusd-py events` reads and changes, in a real database."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.database.test_deliveries import EVERYTHING, LEASE, claim_one, configure, endpoint, queue_of
from tests.support.world import World
from tusd_py.database import replay
from tusd_py.database.endpoints import read_endpoints
from tusd_py.database.events import EventRecords
from tusd_py.database.replay import Replays
from tusd_py.protocol.events import EventKind


async def test_latest_events_are_the_last_ones_in_their_order(world: World) -> None:
    events = EventRecords(world.database)
    first, second = await world.completed(), await world.completed()

    assert [each.kind.value for each in await events.latest(limit=3)] == [
        "upload.completed", "upload.created", "upload.completed",
    ]  # fmt: skip
    of_first = await events.latest(upload_id=first.id)
    assert [(each.upload_id, each.sequence) for each in of_first] == [(first.id, 1), (first.id, 2)]
    completed = await events.latest(kind=EventKind.COMPLETED)
    assert [each.upload_id for each in completed] == [first.id, second.id]
    assert await events.latest(upload_id=second.id, kind=EventKind.REMOVED) == []
    assert await events.by_ids([completed[1].id, uuid.uuid4(), of_first[0].id]) == [of_first[0], completed[1]]


async def test_endpoint_is_told_only_of_what_it_wants(world: World) -> None:
    await configure(world, endpoint("a", frozenset({EventKind.COMPLETED})), endpoint("b", EVERYTHING, "videos"))
    upload = await world.completed()
    created, completed = await EventRecords(world.database).of_upload(upload.id)
    replays, both = Replays(world.database), [created.id, completed.id]

    assert await replays.wanted("a", both) == {completed.id}
    assert await replays.wanted("b", both) == set()
    assert await replays.wanted("nobody", both) == set()


async def test_what_waits_for_its_next_try_is_hurried(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "BATCH", 2)
    queue = await configure(world, endpoint("app"), endpoint("other"))
    replays = Replays(world.database)
    assert await replays.hurry("app") is None
    uploads = {(await world.create()).id for _ in range(5)}
    for name in ("app", "other"):
        for delivery in await queue.claim(name, 10, lease_seconds=LEASE):
            assert await queue.retry(delivery, 1, "the endpoint replied 500", delay_seconds=3600)
    assert await queue.claim("app", 10, lease_seconds=LEASE) == []

    assert await replays.hurry("app") in uploads
    hurried = await queue.claim("app", 10, lease_seconds=LEASE)
    assert {(each.upload_id, each.failures) for each in hurried} == {(upload_id, 0) for upload_id in uploads}
    assert await queue.claim("other", 10, lease_seconds=LEASE) == []


async def test_hurry_waits_for_nobody_and_leaves_what_is_being_delivered(world: World) -> None:
    queue = await configure(world)
    await world.create()
    held = await claim_one(queue)

    # It is in the hands of a worker: nothing to hurry, but not everything is told either.
    assert await Replays(world.database).hurry("app") == held.upload_id
    assert await queue_of(world, "worker-2").claim("app", 10, lease_seconds=LEASE) == []
    assert await queue.retry(held, 1, "the endpoint replied 500", delay_seconds=3600)
    async with world.database.transaction() as connection, asyncio.timeout(30):
        await connection.execute("SELECT FROM jobs WHERE id = $1 FOR UPDATE", held.id)
        assert await Replays(world.database).hurry("app") == held.upload_id


async def test_endpoints_are_shown_with_what_they_have_not_taken(world: World) -> None:
    queue = await configure(world, endpoint("a", frozenset({EventKind.COMPLETED}), "videos"), endpoint("b"))
    await world.completed()
    await world.create()
    assert await queue.pause("b", "the endpoint replied 410")
    await world.sql("UPDATE events SET created_at = now() - interval '1 hour'")
    await world.sql("UPDATE webhook_endpoints SET removed_at = now() WHERE name = 'a'")

    a, b = await read_endpoints(world.database)
    assert (a.name, a.kinds, a.profiles, a.waiting, a.oldest_seconds) == ("a", ["upload.completed"], ["videos"], 0, 0)
    assert (a.removed_at is None, a.paused_at) == (False, None)
    assert (b.name, b.error, b.waiting, b.dead_letters) == ("b", "the endpoint replied 410", 2, 0)
    assert (b.removed_at, b.paused_at is None) == (None, False)
    assert 3600 <= b.oldest_seconds < 7200


async def test_dead_letter_that_is_not_wanted_any_more_stays_on_the_list(world: World) -> None:
    queue, replays = await configure(world), Replays(world.database)
    upload = await world.completed()
    delivery = await claim_one(queue)
    for event in await queue.events(delivery, EVERYTHING, start=1, until=2, limit=10):
        assert await queue.bury(delivery, event, event.sequence + 1, "500", lease_seconds=LEASE)
    assert await queue.finish(delivery, 3) is None

    await configure(world, endpoint("app", frozenset({EventKind.STORED})))
    assert await replays.replay("app", dead=True) == set()
    assert len(await replays.dead("app")) == 2
    await configure(world, endpoint("app", frozenset({EventKind.COMPLETED})))
    assert await replays.replay("app", dead=True) == {upload.id}
    assert [each.kind for each in await replays.dead("app")] == [EventKind.CREATED]
