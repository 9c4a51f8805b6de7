"""Deliver events to their endpoints: each endpoint by a loop of its own, each upload's events in order.

A slow endpoint has only its own slots, and one that is down is asked by one delivery at a time, at growing
intervals. NOTIFY wakes the loops, and a poll is the safety net.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports.events import DeliveryFailed

if TYPE_CHECKING:
    from tusd_py.database.deliveries import Delivery, DeliveryQueue
    from tusd_py.metrics import Metrics
    from tusd_py.ports.events import Endpoint, Message, RecordedEvent
    from tusd_py.protocol.events import EventKind

log = structlog.get_logger(__name__)

GIVE_UP_AFTER: Final = timedelta(days=3)
"""Since the event: whoever is away over a weekend misses nothing."""
EVENTS_AT_ONCE: Final = 16
"""How many events of one upload are held in memory."""
LEASE_MARGIN_SECONDS: Final = 30.0
MIN_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 3600.0
FAILURES_UNTIL_DOWN: Final = 3
"""After so many failures in a row an endpoint counts as down: one delivery at a time asks it."""
MAX_PROBE_SECONDS: Final = 60.0
DATABASE_PAUSE_SECONDS: Final = 1.0


@dataclass(slots=True, eq=False)
class Subscription:
    """An endpoint, what it wants to be told, and how it has fared."""

    name: str
    kinds: frozenset[EventKind]
    endpoint: Endpoint
    render: Callable[[RecordedEvent], Message | None]
    """None: its format has no such event."""
    concurrency: int
    timeout_seconds: float
    failures: int = 0
    """In a row, of whatever upload."""
    probe_at: float = 0.0
    """When an endpoint that is down is asked next, by the clock of the event loop."""
    running: set[asyncio.Task[None]] = field(default_factory=set)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lease_seconds(self) -> float:
        """How long one try may take, with something left for the record of it."""
        return self.timeout_seconds + LEASE_MARGIN_SECONDS

    @property
    def down(self) -> bool:
        """Whether the last deliveries have all failed."""
        return self.failures >= FAILURES_UNTIL_DOWN


class DeliveryRunner:
    """Delivers events until it is told to stop."""

    def __init__(  # noqa: PLR0913 -- the collaborators, and the times that tests shorten
        self,
        queue: DeliveryQueue,
        subscriptions: Sequence[Subscription],
        metrics: Metrics,
        *,
        poll_seconds: float,
        shutdown_timeout: float,
        give_up_after: timedelta = GIVE_UP_AFTER,
        retry_seconds: tuple[float, float] = (MIN_RETRY_SECONDS, MAX_RETRY_SECONDS),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._queue = queue
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._shutdown_timeout = shutdown_timeout
        self._give_up_after = give_up_after
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._stopping = False
        for subscription in subscriptions:
            metrics.add_endpoint(subscription.name)

    def wake(self) -> None:
        """Look for deliveries now."""
        for subscription in self._subscriptions:
            subscription.wake.set()

    def stop(self) -> None:
        """Claim nothing more and let what is being sent come to its end."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Deliver until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                for subscription in self._subscriptions:
                    group.create_task(self._serve(subscription), name=f"deliveries-{subscription.name}")
        finally:
            for subscription in self._subscriptions:
                await subscription.endpoint.close()

    # --- one endpoint ------------------------------------------------------------------------------

    async def _serve(self, subscription: Subscription) -> None:
        while not self._stopping:
            # Cleared before the query: a notification in between is not lost but seen next time.
            subscription.wake.clear()
            try:
                wait = await self._claim(subscription)
            except DatabaseUnavailable as error:
                log.warning("delivery_claim_failed", endpoint=subscription.name, reason=str(error))
                wait = DATABASE_PAUSE_SECONDS
            if wait > 0:
                # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await subscription.wake.wait()
        await self._finish(subscription)

    async def _claim(self, subscription: Subscription) -> float:
        """Start the deliveries that there is room for; return how many seconds to wait before the next look."""
        room = (1 if subscription.down else subscription.concurrency) - len(subscription.running)
        if room <= 0:
            # The end of any delivery wakes the loop.
            return self._poll_seconds
        now = asyncio.get_running_loop().time()
        if subscription.down and now < subscription.probe_at:
            return subscription.probe_at - now
        deliveries = await self._queue.claim(subscription.name, room, lease_seconds=subscription.lease_seconds)
        for delivery in deliveries:
            task = asyncio.create_task(self._run(subscription, delivery), name=f"delivery-{delivery.id}")
            subscription.running.add(task)
        if deliveries:
            return 0
        due = await self._queue.next_due_seconds(subscription.name)
        return self._poll_seconds if due is None else min(self._poll_seconds, max(0.01, due))

    async def _finish(self, subscription: Subscription) -> None:
        if not subscription.running:
            return
        _, late = await asyncio.wait(subscription.running, timeout=self._shutdown_timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    # --- one upload at one endpoint ----------------------------------------------------------------

    async def _run(self, subscription: Subscription, delivery: Delivery) -> None:
        try:
            await self._deliver(subscription, delivery)
        except DatabaseUnavailable as error:
            # What was sent is sent once more when the lease has ended.
            log.warning("delivery_not_recorded", endpoint=subscription.name, reason=str(error))
        except Exception:
            log.exception("delivery_failed_unexpectedly", endpoint=subscription.name, upload_id=str(delivery.upload_id))
        finally:
            task = asyncio.current_task()
            assert task is not None  # this is a task's coroutine
            subscription.running.discard(task)
            subscription.wake.set()

    async def _deliver(self, subscription: Subscription, delivery: Delivery) -> None:
        """Send the events of one upload in their order, until there are no more or one of them fails."""
        position, until = delivery.next_sequence, delivery.until_sequence
        failures = delivery.failures
        while True:
            events = await self._queue.events(
                delivery, subscription.kinds, start=position, until=until, limit=EVENTS_AT_ONCE
            )
            for event in events:
                error = await self._send(subscription, delivery, event, position)
                if error is None:
                    position = event.sequence + 1
                elif error.gone:
                    await self._pause(subscription, str(error))
                    await self._queue.release(delivery, event.sequence)
                    return
                elif self._clock() - event.created_at < self._give_up_after:
                    delay = self._delay(failures, error)
                    await self._queue.retry(delivery, event.sequence, str(error), delay_seconds=delay)
                    return
                else:
                    position = event.sequence + 1
                    if not await self._bury(subscription, delivery, event, str(error)):
                        return
                failures = 0
                # The last one is recorded together with the end.
                if event.sequence < until and not await self._queue.advance(
                    delivery, position, lease_seconds=subscription.lease_seconds
                ):
                    return
            if len(events) == EVENTS_AT_ONCE and position <= until:
                continue
            # Whatever else there was before `until` is not kept any more.
            last = await self._queue.finish(delivery, until + 1)
            if last is None:
                return
            position, until = until + 1, last

    async def _send(
        self, subscription: Subscription, delivery: Delivery, event: RecordedEvent, position: int
    ) -> DeliveryFailed | None:
        """Send one event; return what went wrong."""
        message = subscription.render(event)
        if message is None:
            return None
        started = asyncio.get_running_loop().time()
        try:
            await subscription.endpoint.send(message)
        except DeliveryFailed as error:
            subscription.failures += 1
            pause = min(MAX_PROBE_SECONDS, 0.5 * 2 ** min(subscription.failures, 10))
            subscription.probe_at = asyncio.get_running_loop().time() + pause
            log.warning(
                "delivery_failed",
                endpoint=subscription.name,
                event_id=str(event.id),
                upload_id=str(event.upload_id),
                kind=event.kind,
                reason=str(error),
            )
            self._metrics.deliveries.labels(subscription.name, "failed").inc()
            return error
        except asyncio.CancelledError:
            await self._queue.release(delivery, position)
            raise
        subscription.failures = 0
        self._metrics.deliveries.labels(subscription.name, "delivered").inc()
        self._metrics.delivery_seconds.labels(subscription.name).observe(asyncio.get_running_loop().time() - started)
        return None

    def _delay(self, failures: int, error: DeliveryFailed) -> float:
        """Return when a failed delivery is tried again: later each time, and not all at the same moment."""
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        shortest, longest = self._retry_seconds
        return min(longest, shortest * 2.0 ** min(failures, 30)) * random.uniform(0.8, 1.2)  # noqa: S311

    async def _pause(self, subscription: Subscription, reason: str) -> None:
        if await self._queue.pause(subscription.name, reason):
            log.error("endpoint_paused", endpoint=subscription.name, reason=reason)

    async def _bury(self, subscription: Subscription, delivery: Delivery, event: RecordedEvent, reason: str) -> bool:
        log.error(
            "event_not_delivered",
            endpoint=subscription.name,
            event_id=str(event.id),
            upload_id=str(event.upload_id),
            kind=event.kind,
            reason=reason,
        )
        self._metrics.deliveries.labels(subscription.name, "dead").inc()
        return await self._queue.bury(
            delivery, event, event.sequence + 1, reason, lease_seconds=subscription.lease_seconds
        )
