"""Deliveries by real HTTP from a real database: at least once, in order, whoever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tracemalloc
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.databases import run_sql
from tests.support.deliverers import configured, delivering, render, subscribe
from tests.support.receivers import Receiver, receiving
from tests.support.workers import SOON, is_true
from tests.support.world import HERE, World, stored
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.database.replay import Replays
from tusd_py.database.stats import read_stats
from tusd_py.errors import DatabaseUnavailable
from tusd_py.metrics import Metrics
from tusd_py.ports.events import DeliveryFailed, Endpoint, Message, RecordedEvent
from tusd_py.protocol.events import EventKind
from tusd_py.protocol.upload import Upload
from tusd_py.webhooks import WebhookEvent
from tusd_py.worker.deliveries import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS

ROOT = Path(__file__).resolve().parents[2]
LIFE = ["created", "completed", "transferring", "stored", "terminated"]


async def live(world: World) -> Upload:
    """Lead an upload through its life: five events."""
    upload = await world.create()
    await world.advance(upload, 10)
    for job in await world.jobs().claim(10):
        await world.jobs().finish_transfers([(job, stored(job.upload))])
    await world.uploads.remove(upload.id)
    return upload


async def waiting(world: World) -> int:
    count: int = await world.value("SELECT count(*) FROM jobs WHERE kind = 'deliver'")
    return count


async def nothing_waits(world: World) -> None:
    async def empty() -> bool:
        try:
            return await waiting(world) == 0
        except DatabaseUnavailable:
            return False  # tests take it away

    await is_true(empty, "everything is delivered")


def in_order_once(receiver: Receiver, *uploads: Upload) -> None:
    for upload in uploads:
        assert receiver.sequences(upload.id) == [1, 2, 3, 4, 5]
        assert receiver.kinds(upload.id) == LIFE


# --- order and independence ------------------------------------------------------------------------


async def test_events_of_each_upload_arrive_once_and_in_their_order(world: World) -> None:
    metrics = Metrics()
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        uploads = [await live(world) for _ in range(20)]
        async with delivering(world, subscription, metrics=metrics):
            await nothing_waits(world)
    in_order_once(receiver, *uploads)
    assert set(receiver.times().values()) == {1}
    count = metrics.registry.get_sample_value
    assert count("tusd_py_deliveries_total", {"endpoint": "app", "outcome": "delivered"}) == 100
    assert count("tusd_py_deliveries_total", {"endpoint": "app", "outcome": "failed"}) == 0
    assert count("tusd_py_delivery_seconds_count", {"endpoint": "app"}) == 100


async def test_events_that_come_while_others_are_sent_are_not_left_behind(world: World) -> None:
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        async with delivering(world, subscription):
            uploads = await asyncio.gather(*(live_alone(world) for _ in range(20)))
            await nothing_waits(world)
    for upload in uploads:
        assert receiver.sequences(upload.id) == [1, 2, 3]


async def live_alone(world: World) -> Upload:
    upload = await world.create()
    await world.advance(upload, 10)
    await world.transfers.commit(upload.id)
    return upload


async def test_only_the_kinds_of_an_endpoint_are_sent(world: World) -> None:
    async with receiving() as receiver:
        subscription = subscribe(receiver.url, kinds=frozenset({EventKind.CREATED, EventKind.STORED}))
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription):
            await nothing_waits(world)
    assert receiver.sequences(upload.id) == [1, 4]


async def test_endpoint_that_does_not_reply_delays_no_other(world: World) -> None:
    hold = asyncio.Event()

    async def hang(_: WebhookEvent) -> web.Response:
        await hold.wait()
        return web.Response()

    async with receiving(hang) as slow, receiving() as quick:
        to_slow = subscribe(slow.url, "slow", concurrency=2, timeout_seconds=60.0)
        to_quick = subscribe(quick.url, "quick")
        await configured(world, to_slow, to_quick)
        async with delivering(world, to_slow, to_quick):
            uploads = [await live(world) for _ in range(10)]
            await is_true(lambda: len(quick.taken) == 50, "the quick one has everything")
            assert slow.tried == []
            assert len(to_slow.running) == 2
            hold.set()
            await nothing_waits(world)
    in_order_once(quick, *uploads)
    in_order_once(slow, *uploads)


async def test_upload_whose_event_is_refused_delays_no_other_upload(world: World) -> None:
    refused = ""

    async def reply(event: WebhookEvent) -> web.Response:
        return web.Response(status=500 if event.subject == refused else 204)

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        bad, good = await live(world), [await live(world) for _ in range(5)]
        refused = str(bad.id)
        async with delivering(world, subscription):
            await is_true(lambda: len(receiver.taken) == 25, "all others arrive")
            assert {each.sequence for each in receiver.tried if each.upload_id == refused} == {1}
            refused = ""
            await nothing_waits(world)
    in_order_once(receiver, bad, *good)


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 400, 404, 429, 500, 503])
async def test_whatever_is_no_success_is_tried_again_under_the_same_id(world: World, status: int) -> None:
    replies = iter([status, status, 204])

    async def reply(_: WebhookEvent) -> web.Response:
        return web.Response(status=next(replies), headers={"Location": "/elsewhere"})

    metrics = Metrics()
    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        await world.create()
        async with delivering(world, subscription, metrics=metrics):
            await nothing_waits(world)
    assert [each.status for each in receiver.tried] == [status, status, 204]
    assert len({each.id for each in receiver.tried}) == 1
    labels = {"endpoint": "app", "outcome": "failed"}
    assert metrics.registry.get_sample_value("tusd_py_deliveries_total", labels) == 2


async def due_in(world: World) -> float:
    """Seconds until the one delivery that waits is tried again."""
    seconds: float = await world.value(
        "SELECT extract(epoch FROM due_at - now())::float8 FROM jobs WHERE kind = 'deliver' AND state = 'retry_wait'"
    )
    return seconds


async def failed_times(world: World) -> int:
    count: int = await world.value("SELECT coalesce(max(failures), 0) FROM jobs WHERE kind = 'deliver'")
    return count


async def test_retries_come_later_each_time_up_to_an_hour(world: World) -> None:
    async def reply(_: WebhookEvent) -> web.Response:
        return web.Response(status=500)

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        await world.create()
        async with delivering(world, subscription, retry_seconds=(MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)):
            for failures in range(1, 16):

                async def failed(failures: int = failures) -> bool:
                    return await failed_times(world) == failures

                await is_true(failed, f"{failures} failures are recorded")
                expected = min(3600.0, 2.0 ** (failures - 1))
                assert expected * 0.8 - SOON <= await due_in(world) <= expected
                await world.sql("UPDATE jobs SET due_at = now() WHERE state = 'retry_wait'")


@pytest.mark.parametrize(("value", "seconds"), [("1800", 1800.0), ("999999", 3600.0)])
async def test_retry_after_is_respected_up_to_an_hour(world: World, value: str, seconds: float) -> None:
    async def reply(_: WebhookEvent) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": value})

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        await world.create()
        async with delivering(world, subscription):

            async def failed() -> bool:
                return await failed_times(world) == 1

            await is_true(failed, "it was tried")
            assert seconds - 60 <= await due_in(world) <= seconds
    assert len(receiver.tried) == 1


async def test_endpoint_that_is_gone_is_paused_and_goes_on_once_resumed(world: World) -> None:
    gone = True

    async def reply(event: WebhookEvent) -> web.Response:
        return web.Response(status=410 if gone and event.type.endswith("completed") else 204)

    queue = DeliveryQueue(world.database, worker="deliverer")
    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription, queue=queue):

            async def paused() -> bool:
                (app,) = (await read_stats(world.database, HERE)).endpoints
                return app.paused and app.waiting == 1 and not subscription.running

            await is_true(paused, "the endpoint is paused")
            assert receiver.kinds(upload.id) == ["created"]
            tries = len(receiver.tried)
            later = await live(world)
            await asyncio.gather(*(queue.claim("app", 1, lease_seconds=1) for _ in range(3)))
            assert len(receiver.tried) == tries
            gone = False
            assert await queue.resume("app")
            await nothing_waits(world)
    in_order_once(receiver, upload, later)


async def test_private_address_is_refused_where_it_is_not_allowed(world: World) -> None:
    async with receiving() as receiver:
        by_name = receiver.url.replace("127.0.0.1", "localhost")
        subscriptions = [
            subscribe(receiver.url, "by address", allow_private=False),
            subscribe(by_name, "by name", allow_private=False),
        ]
        await configured(world, *subscriptions)
        await world.create()
        async with delivering(world, *subscriptions, retry_seconds=(60.0, 60.0)):

            async def both() -> bool:
                rows = await world.sql("SELECT last_error FROM jobs WHERE kind = 'deliver' AND failures = 1")
                return len(rows) == 2 and all("allow_private" in row["last_error"] for row in rows)

            await is_true(both, "both were refused, and say why")
    assert receiver.tried == []


async def test_event_that_cannot_be_rendered_fails_like_any_other(world: World) -> None:
    async def broken(event: Any) -> Message:
        if event.kind is EventKind.COMPLETED:
            raise RuntimeError("a defect")
        return await render(event)

    async with receiving() as receiver:
        subscription = subscribe(receiver.url, render=broken)
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription, give_up_after=timedelta(0)):
            await nothing_waits(world)
        (dead,) = await Replays(world.database).dead()
    assert receiver.sequences(upload.id) == [1, 3, 4, 5]
    assert (dead.sequence, dead.kind) == (2, EventKind.COMPLETED)
    assert "a defect" in dead.error


# --- long outages ----------------------------------------------------------------------------------


async def test_event_is_given_up_three_days_after_it_happened_and_the_next_one_is_tried(world: World) -> None:
    now = datetime.now(UTC)
    refusing = {2, 3}

    async def reply(event: WebhookEvent) -> web.Response:
        return web.Response(status=500 if int(event.sequence or 0) in refusing else 204)

    metrics = Metrics()
    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription, clock=lambda: now, metrics=metrics):
            now += timedelta(days=3) - timedelta(minutes=1)
            await is_true(lambda: len(receiver.tried) > 10, "it is tried again and again")
            assert receiver.sequences(upload.id) == [1]
            assert await Replays(world.database).dead() == []
            now += timedelta(minutes=2)
            await nothing_waits(world)
        dead = await Replays(world.database).dead("app")
        (app,) = (await read_stats(world.database, HERE)).endpoints
    assert receiver.sequences(upload.id) == [1, 4, 5]
    assert sorted((letter.sequence, letter.error) for letter in dead) == [
        (2, "the endpoint replied 500"),
        (3, "the endpoint replied 500"),
    ]
    assert (app.dead_letters, app.waiting) == (2, 0)
    labels = {"endpoint": "app", "outcome": "dead"}
    assert metrics.registry.get_sample_value("tusd_py_deliveries_total", labels) == 2
    refusing.clear()
    await Replays(world.database).replay("app", dead=True)
    async with receiving() as again:
        subscription = subscribe(again.url)
        async with delivering(world, subscription):
            await nothing_waits(world)
    assert again.sequences(upload.id) == [2, 3]
    assert await Replays(world.database).dead("app") == []


async def test_after_a_day_without_the_endpoint_everything_arrives_once_and_in_order(world: World) -> None:
    up, now = False, datetime.now(UTC)

    async def reply(_: WebhookEvent) -> web.Response:
        return web.Response(status=204 if up else 503)

    async def tried() -> bool:
        due = "SELECT count(*) FROM jobs WHERE kind = 'deliver' AND (state = 'running' OR due_at <= now())"
        return bool(await world.value(due) == 0)

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        uploads = []
        retry_seconds = (MIN_RETRY_SECONDS, MAX_RETRY_SECONDS)
        async with delivering(world, subscription, clock=lambda: now, retry_seconds=retry_seconds):
            for hour in range(24):
                if hour % 4 == 0:
                    uploads.append(await live(world))
                await is_true(tried, "whatever is due was tried")
                now += timedelta(hours=1)
                await world.sql("UPDATE jobs SET due_at = due_at - interval '1 hour' WHERE kind = 'deliver'")
            in_vain = len(receiver.tried)
            assert receiver.taken == []
            assert subscription.down
            up = True
            await world.sql("UPDATE jobs SET due_at = now() WHERE kind = 'deliver' AND state <> 'running'")
            await nothing_waits(world)
            assert not subscription.down
    in_order_once(receiver, *uploads)
    assert set(receiver.times().values()) == {1}
    # At most one try of each upload in each hour: the first event of each is what is asked about.
    assert 24 <= in_vain <= 24 * len(uploads)
    assert {each.sequence for each in receiver.tried[:in_vain]} == {1}


async def test_endpoint_that_is_down_is_asked_by_one_delivery_at_a_time(world: World) -> None:
    at_once, most, tries = 0, 0, 0

    class Down(Endpoint):
        async def send(self, message: Message) -> None:
            nonlocal at_once, most, tries
            at_once += 1
            tries += 1
            if tries > 8:
                most = max(most, at_once)
            try:
                await asyncio.sleep(0)
                raise DeliveryFailed("down")
            finally:
                at_once -= 1

        async def close(self) -> None:
            pass

    subscription = subscribe("http://127.0.0.1:9/", endpoint=Down(), concurrency=8)
    await configured(world, subscription)
    for _ in range(10):
        await world.create()
    async with delivering(world, subscription):
        await is_true(lambda: tries > 20, "it is asked again and again")
    assert most == 1


# --- processes that end ----------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["advance", "finish"])
async def test_delivery_of_a_killed_worker_is_sent_again_under_the_same_id(world: World, point: str) -> None:
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        upload = await live(world)
        program = [sys.executable, "-m", "tests.worker.killed_deliverer"]
        command = [*program, world.dsn, str(world.root), receiver.url, point]
        killed = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=subprocess.PIPE)
        _, errors = await asyncio.wait_for(killed.communicate(), 60)
        assert killed.returncode == -signal.SIGKILL, errors.decode()
        sent = receiver.sequences(upload.id)
        assert sent == ([1] if point == "advance" else [1, 2, 3, 4, 5])
        async with delivering(world, subscription, dead_workers=["killed"], poll_seconds=60):
            await nothing_waits(world)
    assert receiver.sequences(upload.id) == [*sent, *range(sent[-1], 6)]
    assert len(receiver.times()) == 5
    assert max(receiver.times().values()) == 2


async def test_stop_lets_what_is_sent_arrive_and_releases_the_rest(world: World) -> None:
    hold, reached = asyncio.Event(), asyncio.Event()

    async def reply(_: WebhookEvent) -> web.Response:
        reached.set()
        await hold.wait()
        return web.Response()

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription) as runner:
            await reached.wait()
            runner.stop()
            hold.set()
        assert receiver.sequences(upload.id) == [1]
        (row,) = await world.sql("SELECT state, next_sequence, due_at <= now() AS due FROM jobs WHERE kind = 'deliver'")
        assert (row["state"], row["next_sequence"], row["due"]) == ("queued", 2, True)
        async with delivering(world, subscribe(receiver.url)):
            await nothing_waits(world)
    in_order_once(receiver, upload)


async def test_stop_ends_what_takes_too_long_and_releases_it(world: World) -> None:
    hold, reached = asyncio.Event(), asyncio.Event()

    async def reply(event: WebhookEvent) -> web.Response:
        if event.type.endswith("completed") and not hold.is_set():
            reached.set()
            await hold.wait()
        return web.Response()

    async with receiving(reply) as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        upload = await live(world)
        async with delivering(world, subscription, shutdown_timeout=0.05):
            await reached.wait()
        (row,) = await world.sql("SELECT state, next_sequence FROM jobs WHERE kind = 'deliver'")
        assert (row["state"], row["next_sequence"]) == ("queued", 2)
        hold.set()
        async with delivering(world, subscribe(receiver.url)):
            await nothing_waits(world)
    assert list(dict.fromkeys(receiver.sequences(upload.id))) == [1, 2, 3, 4, 5]


# --- the database ----------------------------------------------------------------------------------


class Away(DeliveryQueue):
    """A queue whose database is away for one call, before or after it did what it was asked."""

    def __init__(self, world: World, method: str, *, before: bool) -> None:
        super().__init__(world.database, worker="deliverer")
        self.failed = False

        async def once(*arguments: Any, **options: Any) -> Any:
            if self.failed:
                return await works(*arguments, **options)
            self.failed = True
            if not before:
                await works(*arguments, **options)
            raise DatabaseUnavailable(cause="test")

        works = getattr(self, method)
        setattr(self, method, once)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("method", ["synchronise", "claim", "events", "advance", "finish", "next_due_seconds"])
async def test_nothing_is_lost_nor_late_when_the_database_is_away_for_a_moment(
    world: World, method: str, before: bool
) -> None:
    queue = Away(world, method, before=before)
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        uploads = [await live(world) for _ in range(3)]
        async with delivering(world, subscription, queue=queue):
            # Well before the end of the leases.
            await nothing_waits(world)
            await is_true(lambda: queue.failed, "the database was away")
    for upload in uploads:
        assert sorted(set(receiver.sequences(upload.id))) == [1, 2, 3, 4, 5]
        assert receiver.sequences(upload.id) == sorted(receiver.sequences(upload.id))
    assert sum(receiver.times().values()) <= 15 + 5


async def test_connections_that_are_cut_cost_no_event(world: World) -> None:
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        uploads = [await live(world) for _ in range(20)]
        async with delivering(world, subscription):
            await is_true(lambda: len(receiver.tried) > 10, "it has begun")
            await run_sql(
                world.dsn,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            await nothing_waits(world)
    for upload in uploads:
        assert sorted(set(receiver.sequences(upload.id))) == [1, 2, 3, 4, 5]
        assert receiver.kinds(upload.id) == LIFE


async def test_replay_while_it_is_delivered_is_sent_again_from_there(world: World) -> None:
    async with receiving() as receiver:
        subscription = subscribe(receiver.url)
        await configured(world, subscription)
        uploads = [await live(world) for _ in range(5)]
        replays = Replays(world.database)
        async with delivering(world, subscription):
            await is_true(lambda: len(receiver.tried) > 3, "it has begun")
            again = await replays.replay("app", since=datetime.now(UTC) - timedelta(hours=1))
            assert again == {upload.id for upload in uploads}
            await nothing_waits(world)
    for upload in uploads:
        assert receiver.kinds(upload.id) == LIFE
        assert receiver.sequences(upload.id)[-5:] == [1, 2, 3, 4, 5]


# --- many ------------------------------------------------------------------------------------------

MANY = 10_000
MANY_UPLOADS = """
INSERT INTO events (upload_id, kind, sequence, snapshot, profile)
SELECT CASE WHEN n <= $2 THEN gen_random_uuid() ELSE $3::uuid END, kind,
       CASE WHEN n <= $2 THEN 1 ELSE n - $2 END, snapshot, profile
  FROM events, generate_series(1, $4) AS n WHERE upload_id = $1
"""
THEIR_DELIVERIES = """
INSERT INTO jobs (upload_id, kind, endpoint, next_sequence, until_sequence)
SELECT upload_id, 'deliver', 'app', 1, max(sequence) FROM events GROUP BY upload_id
"""


@contextlib.asynccontextmanager
async def remote_receiver() -> AsyncIterator[tuple[str, list[tuple[str, str, int]]]]:
    """Run a receiver in a process of its own. Yield its URL, and a list that has what it took once it is ended."""
    taken: list[tuple[str, str, int]] = []
    command = [sys.executable, "-m", "tests.worker.remote_receiver"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip(), taken
        output, _ = await asyncio.wait_for(process.communicate(b""), 60)
        taken += [(event_id, upload_id, sequence) for event_id, upload_id, sequence in json.loads(output)]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_ten_thousand_events_need_no_more_memory_than_a_few(world: World) -> None:
    count, peaks = 0, dict[int, int]()

    async def counted(event: RecordedEvent) -> Message:
        nonlocal count
        count += 1
        if count in {MANY // 5, MANY}:
            peaks[count] = tracemalloc.get_traced_memory()[1]
        return await render(event)

    upload = await world.create()
    # Half of them of as many uploads, and half of a single one.
    arguments = (upload.id, MANY // 2, "aaaaaaaa-0000-4000-8000-000000000001", MANY)
    await world.sql(MANY_UPLOADS, *arguments)
    await world.sql("DELETE FROM events WHERE upload_id = $1", upload.id)
    async with remote_receiver() as (url, taken):
        subscription = subscribe(url, render=counted, concurrency=8)
        await configured(world, subscription)
        await world.sql(THEIR_DELIVERIES)
        tracemalloc.start()
        try:
            async with delivering(world, subscription):
                async with asyncio.timeout(240):
                    while await waiting(world) > 0:
                        await asyncio.sleep(1)
        finally:
            tracemalloc.stop()
    assert count == len(taken) == len({event_id for event_id, _, _ in taken}) == MANY
    sequences = defaultdict[str, list[int]](list)
    for _, upload_id, sequence in taken:
        sequences[upload_id].append(sequence)
    assert all(each == [*range(1, len(each) + 1)] for each in sequences.values())
    assert peaks[MANY] - peaks[MANY // 5] < 2 * 2**20
    assert peaks[MANY] < 16 * 2**20
