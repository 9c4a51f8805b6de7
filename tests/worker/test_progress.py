"""Progress to an endpoint: the latest of each upload, by one worker, and dropped when it goes slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import orjson

from tests.support.deliverers import CONFIG, STOPS_IN
from tests.support.workers import is_true
from tests.support.world import World
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.ports.events import DeliveryFailed, Endpoint, EndpointRecord, Message
from tusd_py.protocol.upload import State, Upload
from tusd_py.uploads.cloud_events import CONTENT_TYPE, progress_event
from tusd_py.worker.progress import MAX_WAITING, ProgressSender, ProgressTarget


class Remembering(Endpoint):
    """Keeps what it is sent; fails, or waits for `go_on`, if it is told to."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.failing = False
        self.tries = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def send(self, message: Message) -> None:
        self.tries += 1
        await self.go_on.wait()
        if self.failing:
            raise DeliveryFailed("down")
        self.sent.append(json.loads(message.body))

    async def close(self) -> None:
        pass

    def has(self, count: int) -> bool:
        return len(self.sent) == count

    def told(self) -> list[tuple[str, int]]:
        return [(each["subject"], each["data"]["offset"]) for each in self.sent]


async def render(upload: Upload) -> Message:
    document = progress_event(upload, CONFIG, source="urn:test")
    return Message(id=document["id"], name=document["type"], body=orjson.dumps(document), content_type=CONTENT_TYPE)


def target(endpoint: Endpoint, name: str = "app", *profiles: str) -> ProgressTarget:
    return ProgressTarget(name=name, profiles=frozenset(profiles), endpoint=endpoint, render=render)


@contextlib.asynccontextmanager
async def sending(world: World, *targets: ProgressTarget, worker: str = "worker-1") -> AsyncIterator[ProgressSender]:
    queue = DeliveryQueue(world.database, worker=worker)
    names = {each.name for each in targets}
    await queue.synchronise([EndpointRecord(name=name, kinds=frozenset(), profiles=frozenset()) for name in names])
    sender = ProgressSender(queue, world.uploads, targets, failed_pause_seconds=0.01)
    task = asyncio.create_task(sender.run())
    try:
        yield sender
    finally:
        sender.stop()
        await asyncio.wait_for(task, STOPS_IN)


async def test_what_is_heard_of_is_sent(world: World) -> None:
    one, other = await world.create(), await world.create(length=None)
    endpoint = Remembering()
    async with sending(world, target(endpoint)) as sender:
        sender.hear("")
        sender.hear(f"{one.id}:5:10,{other.id}:7:")
        await is_true(lambda: len(endpoint.sent) == 2, "both are told of")
    assert endpoint.told() == [(str(one.id), 5), (str(other.id), 7)]
    assert [each["type"] for each in endpoint.sent] == ["tusd_py.upload.progress"] * 2
    assert [(each["data"]["state"], each["data"]["length"]) for each in endpoint.sent] == [
        ("uploading", 10),
        ("uploading", None),
    ]
    assert "sequence" not in endpoint.sent[0]


async def test_slow_endpoint_is_told_the_latest_only_and_delays_no_other(world: World) -> None:
    upload = await world.create()
    slow, quick = Remembering(), Remembering()
    slow.go_on.clear()
    async with sending(world, target(slow, "slow"), target(quick, "quick")) as sender:
        for offset in range(1, 9):
            sender.hear(f"{upload.id}:{offset}:10")
            await is_true(partial(quick.has, offset), "the quick one is told")
        slow.go_on.set()
        await is_true(lambda: len(slow.sent) == 2, "the slow one is told")
    assert [offset for _, offset in quick.told()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [offset for _, offset in slow.told()] == [1, 8]


async def test_no_more_than_so_many_uploads_wait(world: World) -> None:
    waiting = target(Remembering())
    sender = ProgressSender(DeliveryQueue(world.database, worker="w"), world.uploads, [waiting])
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(MAX_WAITING + 5)]
    sender.hear(",".join(f"{each}:1:10" for each in ids))
    assert [str(each) for each in waiting.waiting] == ids[5:]


async def test_progress_is_dropped_while_an_endpoint_fails(world: World) -> None:
    upload = await world.create()
    endpoint = Remembering()
    endpoint.failing = True
    async with sending(world, target(endpoint)) as sender:
        sender.hear(f"{upload.id}:1:10")
        await is_true(lambda: endpoint.tries == 1, "it was tried")
        endpoint.failing = False

        def again() -> bool:
            sender.hear(f"{upload.id}:6:10")
            return bool(endpoint.sent)

        await is_true(again, "it is told again")
    assert {offset for _, offset in endpoint.told()} == {6}


async def test_complete_and_foreign_uploads_are_left_out(world: World) -> None:
    complete = await world.completed()
    foreign, wanted = await world.create(profile="music"), await world.create(profile="videos")
    endpoint = Remembering()
    async with sending(world, target(endpoint, "app", "videos")) as sender:
        unknown = "00000000-0000-4000-8000-000000000000"
        sender.hear(",".join(f"{each}:1:10" for each in (complete.id, foreign.id, unknown, wanted.id)))
        await is_true(lambda: endpoint.sent, "the one that is wanted is told of")
    assert endpoint.told() == [(str(wanted.id), 1)]
    assert await world.state(complete) is State.COMPLETED


async def test_one_worker_of_several_sends(world: World) -> None:
    upload = await world.create()
    endpoint = Remembering()
    first, second = target(endpoint), target(endpoint)
    async with sending(world, first) as sender, sending(world, second, worker="worker-2") as other:
        sender.hear(f"{upload.id}:1:10")
        await is_true(lambda: len(endpoint.sent) == 1, "the first one sends")
        other.hear(f"{upload.id}:1:10")
        await is_true(lambda: not second.waiting and not second.wake.is_set(), "the second one drops it")
        sender.hear(f"{upload.id}:2:10")
        await is_true(lambda: len(endpoint.sent) == 2, "the first one sends on")
        await world.sql("UPDATE webhook_endpoints SET progress_until = now()")

        def told() -> bool:
            other.hear(f"{upload.id}:3:10")
            return len(endpoint.sent) > 2

        await is_true(told, "the second one takes over")
    assert [offset for _, offset in endpoint.told()][:3] == [1, 2, 3]
