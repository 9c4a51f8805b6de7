"""Deliveries of events in a real database: who is told of what, in which order, and that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg
import pytest

from tests.support.databases import run_sql
from tests.support.workers import is_true
from tests.support.world import HERE, World, new_upload, stored
from tusd_py.database.deliveries import Delivery, DeliveryQueue
from tusd_py.database.events import BEGINNING, EventRecords
from tusd_py.database.jobs import JobQueue
from tusd_py.database.notifier import UPLOADS_CHANNEL
from tusd_py.database.replay import Replays
from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports import Job, StagingIdentity
from tusd_py.ports.events import EndpointRecord
from tusd_py.protocol.events import RECORDED, EventKind, kinds_matching
from tusd_py.protocol.upload import Trigger, Upload

EVERYTHING = frozenset(RECORDED)
LEASE = 30.0


def queue_of(world: World, worker: str = "worker-1") -> DeliveryQueue:
    return DeliveryQueue(world.database, worker=worker)


def endpoint(name: str = "app", kinds: frozenset[EventKind] = EVERYTHING, *profiles: str) -> EndpointRecord:
    return EndpointRecord(name=name, kinds=kinds, profiles=frozenset(profiles))


async def configure(world: World, *endpoints: EndpointRecord) -> DeliveryQueue:
    queue = queue_of(world)
    await queue.synchronise(endpoints or [endpoint()])
    return queue


async def claim_one(queue: DeliveryQueue, name: str = "app") -> Delivery:
    (delivery,) = await queue.claim(name, 10, lease_seconds=LEASE)
    return delivery


async def kinds_of(queue: DeliveryQueue, delivery: Delivery) -> list[str]:
    events = await queue.events(
        delivery, EVERYTHING, start=delivery.next_sequence, until=delivery.until_sequence, limit=100
    )
    assert [event.sequence for event in events] == list(range(delivery.next_sequence, delivery.until_sequence + 1))
    return [event.kind.value for event in events]


async def deliveries_of(world: World, upload: Upload) -> list[tuple[Any, ...]]:
    rows = await world.sql(
        "SELECT endpoint, next_sequence, until_sequence FROM jobs WHERE upload_id = $1 AND kind = 'deliver'"
        " ORDER BY endpoint",
        upload.id,
    )
    return [tuple(row) for row in rows]


async def store(world: World, upload: Upload) -> None:
    (job,) = await world.jobs().claim(1)
    assert job.upload.id == upload.id
    await world.jobs().finish_transfers([(job, stored(upload))])


# --- who is told of what ---------------------------------------------------------------------------


async def test_without_an_endpoint_nothing_is_enqueued(world: World) -> None:
    upload = await world.completed()
    assert await world.events_of(upload) == ["upload.created", "upload.completed"]
    assert await deliveries_of(world, upload) == []


async def test_each_endpoint_gets_one_job_for_all_events_of_an_upload(world: World) -> None:
    only_stored = endpoint("b", frozenset({EventKind.STORED}))
    await configure(world, endpoint("a"), only_stored)
    upload = await world.create()
    assert await deliveries_of(world, upload) == [("a", 1, 1)]
    await world.advance(upload, 10)
    assert await deliveries_of(world, upload) == [("a", 1, 2)]
    await store(world, upload)
    assert await deliveries_of(world, upload) == [("a", 1, 4), ("b", 4, 4)]


async def test_endpoint_of_a_profile_is_told_of_its_uploads_only(world: World) -> None:
    await configure(world, endpoint("a", EVERYTHING, "videos", "music"))
    assert await deliveries_of(world, await world.create()) == []
    assert await deliveries_of(world, await world.create(profile="videos")) == [("a", 1, 1)]


async def test_new_endpoint_is_told_of_nothing_older(world: World) -> None:
    upload = await world.create()
    queue = await configure(world)
    assert await queue.claim("app", 10, lease_seconds=LEASE) == []
    await world.advance(upload, 10)
    delivery = await claim_one(queue)
    assert await kinds_of(queue, delivery) == ["upload.completed"]


async def test_endpoint_that_is_configured_no_more_is_forgotten_after_a_day(world: World) -> None:
    queue = await configure(world, endpoint("old"), endpoint("new"))
    upload = await world.create()
    await queue.synchronise([endpoint("new")])
    other = await world.create()
    assert await deliveries_of(world, other) == [("new", 1, 1)]
    assert await world.cleanup.forget_endpoints() == 0
    # It comes back in time and goes on where it was.
    await queue.synchronise([endpoint("new"), endpoint("old")])
    assert await claim_one(queue, "old") is not None
    await queue.synchronise([endpoint("new")])
    await world.sql("UPDATE webhook_endpoints SET removed_at = removed_at - interval '1 day' WHERE name = 'old'")
    await world.cleanup.forget_endpoints()
    assert await deliveries_of(world, upload) == [("new", 1, 1)]
    assert await world.value("SELECT count(*) FROM webhook_endpoints") == 1


async def test_configuration_is_recorded_by_many_processes_at_once(world: World) -> None:
    endpoints = [endpoint(name) for name in "abcdef"]
    for _ in range(5):
        await asyncio.gather(
            *(queue_of(world).synchronise(endpoints if number % 2 else endpoints[::-1]) for number in range(20))
        )
    assert await world.value("SELECT count(*) FROM webhook_endpoints WHERE removed_at IS NULL") == 6


# --- the events ------------------------------------------------------------------------------------


async def test_event_holds_the_upload_as_it_was_then(world: World) -> None:
    queue = await configure(world)
    upload = await world.create(metadata="filename YQ==")
    await world.advance(upload, 10)
    await world.uploads.remove(upload.id)
    delivery = await claim_one(queue)
    events = await queue.events(delivery, EVERYTHING, start=1, until=9, limit=100)
    assert [(event.kind.value, event.sequence, event.snapshot["state"]) for event in events] == [
        ("upload.created", 1, "created"),
        ("upload.completed", 2, "completed"),
        ("upload.terminated", 3, "removing"),
    ]
    assert [event.snapshot["upload_offset"] for event in events] == [0, 10, 10]
    assert all(event.snapshot["metadata"] == "filename YQ==" for event in events)
    assert all("token" not in name for event in events for name in event.snapshot)
    assert len({event.id for event in events}) == 3


async def test_events_of_an_upload_are_numbered_without_gaps_whoever_records_them(world: World) -> None:
    uploads = [await world.create() for _ in range(10)]

    async def live(upload: Upload) -> None:
        await world.advance(upload, 10)
        await asyncio.gather(*(world.transfers.commit(upload.id) for _ in range(5)))
        try:
            await world.uploads.remove(upload.id)
        except DatabaseUnavailable:
            await world.uploads.remove(upload.id)

    await asyncio.gather(*(live(upload) for upload in uploads))
    for upload in uploads:
        rows = await world.sql("SELECT sequence, kind FROM events WHERE upload_id = $1 ORDER BY sequence", upload.id)
        assert [row["sequence"] for row in rows] == [1, 2, 3, 4]
        assert [row["kind"] for row in rows][2:] == ["upload.committed", "upload.terminated"]


async def test_claim_that_goes_on_with_a_transfer_records_nothing(world: World) -> None:
    upload = await world.completed()
    await world.jobs("a").claim(1)
    await world.end_leases()
    await world.jobs("b").claim(1)
    assert (await world.events_of(upload)).count("upload.transferring") == 1


# --- one delivery ----------------------------------------------------------------------------------


async def test_delivery_is_claimed_once_and_ends(world: World) -> None:
    queue = await configure(world)
    upload = await world.completed()
    delivery = await claim_one(queue)
    assert await queue_of(world, "worker-2").claim("app", 10, lease_seconds=LEASE) == []
    assert await kinds_of(queue, delivery) == ["upload.created", "upload.completed"]
    assert await queue.advance(delivery, 2, lease_seconds=LEASE)
    assert await queue.finish(delivery, 3) is None
    assert await deliveries_of(world, upload) == []
    assert await queue.next_due_seconds("app") is None


async def test_delivery_goes_on_with_what_happened_meanwhile(world: World) -> None:
    queue = await configure(world)
    upload = await world.create()
    delivery = await claim_one(queue)
    await world.advance(upload, 10)
    assert await queue.finish(delivery, 2) == 2
    assert await queue.finish(delivery, 3) is None


@pytest.mark.parametrize("commits_first", ["event", "end"])
async def test_event_that_is_committed_while_its_delivery_ends_is_not_left_behind(
    world: World, commits_first: str
) -> None:
    queue = await configure(world)
    upload = await world.completed(trigger=Trigger.COMMIT)
    delivery = await claim_one(queue)
    if commits_first == "event":
        # The event holds the job; the end of the delivery waits for it and sees it.
        async with world.database.transaction() as connection:
            await connection.execute("UPDATE jobs SET until_sequence = 3 WHERE kind = 'deliver'")
            ending = asyncio.create_task(queue.finish(delivery, 3))
            await _waits_for_a_lock(world)
        assert await ending == 3
        assert await deliveries_of(world, upload) == [("app", 1, 3)]
    else:
        # The end holds the job; the event waits for it and enqueues another one.
        async with world.database.transaction() as connection:
            await connection.execute("DELETE FROM jobs WHERE kind = 'deliver'")
            committing = asyncio.create_task(world.transfers.commit(upload.id))
            await _waits_for_a_lock(world)
        await committing
        assert await deliveries_of(world, upload) == [("app", 3, 3)]


async def _waits_for_a_lock(world: World) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(30):
        while not await world.value(waiting):
            await asyncio.sleep(0.01)


async def test_no_event_is_left_behind_however_deliveries_and_changes_meet(world: World) -> None:
    queue = await configure(world)
    uploads = [await world.completed(trigger="commit") for _ in range(20)]
    seen: dict[Any, list[int]] = {upload.id: [] for upload in uploads}
    over = asyncio.Event()

    async def deliver(worker: DeliveryQueue) -> None:
        while not over.is_set() or await worker.next_due_seconds("app") is not None:
            for delivery in await worker.claim("app", 5, lease_seconds=LEASE):
                until: int | None = delivery.until_sequence
                start = delivery.next_sequence
                while until is not None:
                    events = await worker.events(delivery, EVERYTHING, start=start, until=until, limit=100)
                    seen[delivery.upload_id] += [event.sequence for event in events]
                    start, until = until + 1, await worker.finish(delivery, until + 1)
            await asyncio.sleep(0)

    async def change(upload: Upload) -> None:
        await world.transfers.commit(upload.id)
        await world.uploads.remove(upload.id)

    workers = [asyncio.create_task(deliver(queue_of(world, f"worker-{number}"))) for number in range(3)]
    await asyncio.gather(*(change(upload) for upload in uploads))
    over.set()
    async with asyncio.timeout(50):
        await asyncio.gather(*workers)
    assert list(seen.values()) == [[1, 2, 3, 4]] * len(uploads)
    assert await queue.claim("app", 100, lease_seconds=LEASE) == []


async def test_delivery_that_failed_waits_and_keeps_its_place(world: World) -> None:
    queue = await configure(world)
    upload = await world.completed()
    delivery = await claim_one(queue)
    assert await queue.retry(delivery, 2, "no", delay_seconds=100)
    assert await queue.claim("app", 10, lease_seconds=LEASE) == []
    assert 90 < (await queue.next_due_seconds("app") or 0) <= 100
    await world.sql("UPDATE jobs SET due_at = now() WHERE kind = 'deliver'")
    again = await claim_one(queue)
    assert (again.next_sequence, again.failures) == (2, 1)
    assert await deliveries_of(world, upload) == [("app", 2, 2)]


async def test_lost_lease_changes_nothing(world: World) -> None:
    queue = await configure(world)
    await world.completed()
    delivery = await claim_one(queue)
    await world.end_leases()
    (taken,) = await queue_of(world, "worker-2").claim("app", 10, lease_seconds=LEASE)
    assert not await queue.advance(delivery, 3, lease_seconds=LEASE)
    assert not await queue.retry(delivery, 2, "late", delay_seconds=0)
    assert await queue.finish(delivery, 3) is None
    assert taken.next_sequence == 1
    assert await queue_of(world, "worker-2").advance(taken, 2, lease_seconds=LEASE)


async def test_deliveries_of_a_dead_worker_are_claimed_at_once(world: World) -> None:
    queue = await configure(world)
    await world.create()
    await claim_one(queue)
    other = queue_of(world, "worker-2")
    assert await other.claim("app", 10, lease_seconds=LEASE) == []
    assert await other.release_lost("app", ["worker-9"], held=[])
    assert await other.release_lost("other", ["worker-1"], held=[])
    assert await other.claim("app", 10, lease_seconds=LEASE) == []
    async with world.database.transaction() as connection:
        await connection.execute("SELECT FROM jobs FOR UPDATE")
        assert not await other.release_lost("app", ["worker-1", "worker-9"], held=[])
    assert await other.release_lost("app", ["worker-1", "worker-9"], held=[])
    assert await claim_one(other) is not None


async def test_deliveries_that_nobody_works_on_are_released_by_their_own_worker(world: World) -> None:
    queue = await configure(world)
    held, forgotten = await world.create(), await world.create()
    claimed = {each.upload_id: each for each in await queue.claim("app", 10, lease_seconds=LEASE)}
    assert await queue.release_lost("app", [], held=[claimed[held.id].id])
    assert (await claim_one(queue)).upload_id == forgotten.id


async def test_released_delivery_is_due_at_once(world: World) -> None:
    queue = await configure(world)
    await world.completed()
    await queue.release(await claim_one(queue), 2)
    assert (await claim_one(queue)).next_sequence == 2


async def test_paused_endpoint_is_not_delivered_to_until_it_is_resumed(world: World) -> None:
    queue = await configure(world)
    await world.create()
    assert await queue.pause("app", "410")
    assert not await queue.pause("app", "410")
    await world.create()
    assert await queue.claim("app", 10, lease_seconds=LEASE) == []
    assert await queue.next_due_seconds("app") is None
    await queue.synchronise([endpoint()])
    assert await queue.claim("app", 10, lease_seconds=LEASE) == []
    assert await queue.resume("app")
    assert len(await queue.claim("app", 10, lease_seconds=LEASE)) == 2


async def test_deliveries_are_no_work_of_the_other_queue(world: World) -> None:
    await configure(world)
    upload = await world.create()
    assert await world.jobs().claim(10) == []
    assert await world.jobs().next_due_seconds() is None
    assert await world.jobs("worker-1").release_lost([], held=[]) == 0
    assert await deliveries_of(world, upload) == [("app", 1, 1)]


# --- what is given up, and what is sent again --------------------------------------------------------


async def test_dead_letter_is_listed_and_the_next_event_goes_on(world: World) -> None:
    queue, replays = await configure(world), Replays(world.database)
    upload = await world.completed()
    delivery = await claim_one(queue)
    first, second = await queue.events(delivery, EVERYTHING, start=1, until=2, limit=10)
    assert await queue.bury(delivery, first, 2, "500", lease_seconds=LEASE)
    (dead,) = await replays.dead()
    assert (dead.endpoint, dead.event_id, dead.upload_id, dead.error) == ("app", first.id, upload.id, "500")
    assert await replays.dead("other") == []
    assert await queue.finish(delivery, second.sequence + 1) is None

    assert await replays.replay("app", dead=True) == {upload.id}
    assert await replays.dead() == []
    assert await deliveries_of(world, upload) == [("app", 1, 1)]


async def test_replay_fences_out_whoever_delivers_at_that_moment(world: World) -> None:
    queue, replays = await configure(world), Replays(world.database)
    upload = await world.completed()
    delivery = await claim_one(queue)
    assert await queue.advance(delivery, 2, lease_seconds=LEASE)
    (event, _) = await queue.events(delivery, EVERYTHING, start=1, until=2, limit=10)
    assert await replays.replay("app", events=[event.id]) == {upload.id}
    assert await queue.finish(delivery, 3) is None
    assert await deliveries_of(world, upload) == [("app", 1, 2)]
    assert await kinds_of(queue, await claim_one(queue)) == ["upload.created", "upload.completed"]


async def test_replay_since_a_time_sends_what_the_endpoint_wants(world: World) -> None:
    await configure(world, endpoint("a", frozenset({EventKind.COMPLETED})), endpoint("b", EVERYTHING, "videos"))
    upload = await world.completed()
    await world.sql("DELETE FROM jobs WHERE kind = 'deliver'")
    replays = Replays(world.database)
    since = await world.value("SELECT now() - interval '1 minute'")
    assert await replays.replay("a", since=since) == {upload.id}
    assert await replays.replay("b", since=since) == set()
    assert await replays.replay("nobody", since=since) == set()
    assert await deliveries_of(world, upload) == [("a", 2, 2)]
    assert await replays.replay("a", since=await world.value("SELECT now() + interval '1 minute'")) == set()


async def test_events_and_dead_letters_outlive_their_upload(world: World) -> None:
    queue, replays = await configure(world), Replays(world.database)
    upload = await world.create()
    delivery = await claim_one(queue)
    (event,) = await queue.events(delivery, EVERYTHING, start=1, until=1, limit=10)
    await world.force_state(upload, (await world.find(upload)).state)
    await world.sql(
        "UPDATE uploads SET state = 'removed', gone_at = now() - interval '1 day', local_present = false WHERE id = $1",
        upload.id,
    )
    assert await world.cleanup.purge_rows(0, 10) == 1
    assert await world.uploads.find(upload.id) is None
    assert await world.cleanup.purge_events(0, 10) == 0
    assert await queue.bury(delivery, event, 2, "500", lease_seconds=LEASE)
    assert await queue.finish(delivery, 2) is None
    assert await world.cleanup.purge_events(0, 10) == 0
    assert len(await replays.dead()) == 1
    assert await world.cleanup.purge_dead_letters(0, 10) == 1
    assert await world.cleanup.purge_events(0, 10) == 1


# --- reading -----------------------------------------------------------------------------------------


async def test_stream_of_all_events_skips_nothing_that_is_committed_late(world: World) -> None:
    records = EventRecords(world.database)
    async with world.database.transaction() as connection:
        await connection.execute(
            "INSERT INTO events (upload_id, kind, sequence, snapshot, profile)"
            " VALUES (gen_random_uuid(), 'upload.created', 1, '{}', 'default')"
        )
        early = await world.create()
        assert await records.after(BEGINNING) == []
        assert await records.late(BEGINNING)
    events = await records.after(BEGINNING)
    assert len(events) == 2
    assert early.id in {event.upload_id for _, event in events}
    last, _ = events[-1]
    assert await records.after(last) == []
    assert not await records.late(last)
    assert await records.newest() == last


async def test_stream_is_read_in_pages_by_owner_and_from_an_event_on(world: World) -> None:
    records = EventRecords(world.database)
    mine = [await world.create(owner="alice") for _ in range(3)]
    await world.create(owner="bob")
    (_, first), (position, second) = await records.after(BEGINNING, owner="alice", limit=2)
    assert [first.upload_id, second.upload_id] == [upload.id for upload in mine[:2]]
    assert await records.position(second.id) == position
    rest = await records.after(position, owner="alice", limit=2)
    assert [event.upload_id for _, event in rest] == [mine[2].id]
    assert len(await records.after(BEGINNING)) == 4
    assert await records.sequence(mine[0].id, first.id) == 1
    assert await records.sequence(mine[1].id, first.id) is None


async def test_events_of_one_upload_are_read_after_a_sequence(world: World) -> None:
    upload = await world.completed()
    events = await EventRecords(world.database).of_upload(upload.id, after=1)
    assert [event.kind for event in events] == [EventKind.COMPLETED]


def test_pattern_matches_recorded_events_and_progress_only_by_name() -> None:
    assert set(kinds_matching(["upload.*"])) == RECORDED
    assert EventKind.PROGRESS in kinds_matching(["upload.progress", "upload.stored"])
    assert kinds_matching(["upload.s*"]) == [EventKind.STORED]
    assert kinds_matching(["stored", "session.*"]) == []


async def test_database_refuses_a_delivery_without_an_endpoint(world: World) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await run_sql(world.dsn, "INSERT INTO jobs (upload_id, kind) VALUES (gen_random_uuid(), 'deliver')")


async def test_stream_of_all_events_is_in_the_order_of_transactions_as_numbers(world: World) -> None:
    """As texts, 100 comes before 99."""
    records = EventRecords(world.database)
    await world.database.execute(
        "INSERT INTO events (upload_id, kind, sequence, snapshot, profile, xid)"
        " SELECT gen_random_uuid(), 'upload.created', xid, '{}', 'default', xid::text::xid8"
        " FROM unnest('{100, 9, 99}'::bigint[]) AS xid"
    )
    events = await records.after(BEGINNING)
    assert [event.sequence for _, event in events] == [9, 99, 100]
    assert await records.newest() == events[-1][0]


# --- whoever records an event says so ----------------------------------------------------------------


async def test_every_event_is_followed_by_a_notification_of_its_upload(world: World) -> None:
    told: list[str] = []
    connection = await asyncpg.connect(world.dsn)
    await connection.add_listener(UPLOADS_CHANNEL, lambda *arguments: told.extend(str(arguments[3]).split(",")))

    async def follows(kind: str, upload: Upload, act: Awaitable[object]) -> None:
        await world.notifier.close()
        told.clear()
        await act
        await world.notifier.close()
        await connection.execute("SELECT 1")
        await is_true(lambda: str(upload.id) in told, f"{kind} is told of")
        assert (await world.events_of(upload))[-1] == f"upload.{kind}"

    new = new_upload()
    jobs = JobQueue(
        world.database,
        directory=StagingIdentity(HERE),
        worker="worker-1",
        lease_seconds=LEASE,
        notifier=world.notifier,
    )
    try:
        creation = await world.uploads.create(new)
        await world.notifier.close()
        await is_true(lambda: str(new.id) in told, "created is told of")
        await follows("completed", creation, world.advance(creation, 10))
        await follows("transferring", creation, jobs.claim(1))
        (job,) = await reclaimed(world, jobs)
        await follows("transfer_failed", creation, jobs.fail(job, RuntimeError("no"), code="E"))
        await world.transfers.request(creation.id)
        (job,) = await jobs.claim(1)
        await follows("stored", creation, jobs.finish_transfers([(job, stored(job.upload))]))
        await follows("terminated", creation, world.uploads.remove(creation.id))
        (job,) = await jobs.claim(1)
        await follows("removed", creation, jobs.finish_removals([job]))

        part = await world.part(b"ab")
        final = await world.final([part])
        await world.notifier.close()
        await is_true(lambda: str(final.id) in told, "the creation of a final upload is told of")
        waiting = await world.completed(trigger="commit")
        await follows("committed", waiting, world.transfers.commit(waiting.id))
        overdue = await world.create()
        await world.run_out_of_time(overdue)
        await follows("expired", overdue, world.cleanup.expire(overdue.id))
    finally:
        await connection.close()


async def reclaimed(world: World, jobs: JobQueue) -> list[Job]:
    await world.end_leases()
    return await jobs.claim(1)
