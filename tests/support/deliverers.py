"""The runner of deliveries for tests: the real one, impatient, with real endpoints."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson

from tests.support.receivers import SECRET
from tests.support.world import World
from tusd_py.config import Config
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.endpoints.webhook import WebhookEndpoint
from tusd_py.metrics import Metrics
from tusd_py.ports.events import Message, RecordedEvent
from tusd_py.protocol.events import RECORDED
from tusd_py.uploads.cloud_events import CONTENT_TYPE, cloud_event
from tusd_py.worker.deliveries import DeliveryRunner, Subscription

STOPS_IN = 20.0
CONFIG = Config(data_dir=Path("/data"))


async def render(event: RecordedEvent) -> Message:
    body = orjson.dumps(cloud_event(event, CONFIG, place=None, source="urn:test"))
    return Message(id=str(event.id), name=event.kind.value, body=body, content_type=CONTENT_TYPE)


def subscribe(url: str, name: str = "app", *, allow_private: bool = True, **changes: Any) -> Subscription:
    """Return a subscription to everything that is probed again at once."""
    timeout, concurrency = changes.get("timeout_seconds", 10.0), changes.get("concurrency", 4)
    values: dict[str, Any] = {
        "name": name,
        "kinds": RECORDED,
        "profiles": frozenset(),
        "endpoint": WebhookEndpoint(
            url, secrets=[SECRET], timeout_seconds=timeout, concurrency=concurrency, allow_private=allow_private
        ),
        "render": render,
        "concurrency": concurrency,
        "timeout_seconds": timeout,
        "probe_seconds": (0.01, 0.01),
    }
    return Subscription(**values | changes)


@contextlib.asynccontextmanager
async def delivering(
    world: World,
    *subscriptions: Subscription,
    queue: DeliveryQueue | None = None,
    metrics: Metrics | None = None,
    **options: Any,
) -> AsyncIterator[DeliveryRunner]:
    """Deliver until the block ends, then stop as a worker does."""
    defaults: dict[str, Any] = {
        "poll_seconds": 0.02,
        "shutdown_timeout": 10.0,
        "retry_seconds": (0.01, 0.02),
        "database_pause_seconds": 0.01,
    }
    runner = DeliveryRunner(
        queue or DeliveryQueue(world.database, worker="deliverer"),
        subscriptions,
        metrics or Metrics(),
        **defaults | options,
    )
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await asyncio.wait_for(task, STOPS_IN)


async def configured(world: World, *subscriptions: Subscription) -> None:
    """Record endpoints before anything happens that they are to be told of."""
    runner = DeliveryRunner(
        DeliveryQueue(world.database, worker="nobody"), subscriptions, Metrics(), poll_seconds=1, shutdown_timeout=1
    )
    await runner.synchronise()
