"""Deliver events to their endpoints: each endpoint by a loop of its own, each upload's events in order.

A slow endpoint has only its own slots, and one that is down is asked by one delivery at a time, at growing
intervals. NOTIFY wakes the loops, and a poll is the safety net.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable
from tusd_py.ports.events import DeliveryFailed, EndpointRecord

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
MIN_PROBE_SECONDS: Final = 1.0
MAX_PROBE_SECONDS: Final = 60.0
DATABASE_PAUSE_SECONDS: Final = 1.0
BUSY_PAUSE_SECONDS: Final = 0.05
"""The shortest wait: a due job may be locked by another worker's claim at this very moment."""


@dataclass(slots=True, eq=False)
class Subscription:
    """An endpoint, what it wants to be told, and how it has fared."""

    name: str
    kinds: frozenset[EventKind]
    profiles: frozenset[str]
    """Empty: the uploads of all profiles."""
    endpoint: Endpoint
    render: Callable[[RecordedEvent], Awaitable[Message]]
    concurrency: int
    timeout_seconds: float
    probe_seconds: tuple[float, float] = (MIN_PROBE_SECONDS, MAX_PROBE_SECONDS)
    """The shortest and the longest pause between two tries while the endpoint is down."""
    failures: int = 0
    """In a row, of whatever upload."""
    probes: int = 0
    """How often it was asked in vain since it was last left alone."""
    probe_at: float = 0.0
    """When an endpoint that is down is asked next, by the clock of the event loop."""
    lost_track: bool = False
    """A delivery may be leased to us, or to the dead, that nobody works on."""
    running: dict[tuple[int, int], asyncio.Task[None]] = field(default_factory=dict)
    """By the ids of their jobs, and the attempt: a replay takes a job away and enqueues it again."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lease_seconds(self) -> float:
        """How long one try may take, with something left for the record of it."""
        return self.timeout_seconds + LEASE_MARGIN_SECONDS

    @property
    def down(self) -> bool:
        """Return whether the last deliveries have all failed."""
        return self.failures >= FAILURES_UNTIL_DOWN

    @property
    def held(self) -> list[int]:
        """The ids of the jobs that run here."""
        return [job_id for job_id, _ in self.running]

    def failed(self, started: float, now: float) -> None:
        """Note that a try has failed. Those that were under way together count as one probe."""
        self.failures += 1
        if started >= self.probe_at:
            shortest, longest = self.probe_seconds
            self.probe_at = now + min(longest, shortest * 2.0 ** min(self.probes, 30))
            self.probes += 1

    def succeeded(self) -> None:
        self.failures = self.probes = 0
        self.probe_at = 0.0


@dataclass(slots=True)
class Course:
    """How far a delivery has come."""

    delivery: Delivery
    position: int
    """Every event before this one is dealt with."""
    until: int
    """The last event there is, as far as we know."""
    failures: int
    """Of the event at `position`."""


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
        dead_workers: Sequence[str] = (),
        give_up_after: timedelta = GIVE_UP_AFTER,
        retry_seconds: tuple[float, float] = (MIN_RETRY_SECONDS, MAX_RETRY_SECONDS),
        database_pause_seconds: float = DATABASE_PAUSE_SECONDS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`dead_workers` are those whose processes have ended: what they had begun goes on here."""
        self._queue = queue
        self._subscriptions = subscriptions
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._shutdown_timeout = shutdown_timeout
        self._dead_workers = dead_workers
        self._give_up_after = give_up_after
        self._retry_seconds = retry_seconds
        self._database_pause_seconds = database_pause_seconds
        self._clock = clock
        self._known = False
        self._stopping = asyncio.Event()
        for subscription in subscriptions:
            subscription.lost_track = bool(dead_workers)
            metrics.add_endpoint(subscription.name)

    def wake(self) -> None:
        """Look for deliveries now."""
        for subscription in self._subscriptions:
            subscription.wake.set()

    def stop(self) -> None:
        """Claim nothing more and let what is being sent come to its end."""
        self._stopping.set()
        self.wake()

    async def synchronise(self) -> None:
        """Record which endpoints there are, if the database can be reached: `run` tries again otherwise."""
        endpoints = [
            EndpointRecord(name=each.name, kinds=each.kinds, profiles=each.profiles) for each in self._subscriptions
        ]
        try:
            await self._queue.synchronise(endpoints)
        except DatabaseUnavailable as error:
            log.warning("endpoints_not_recorded", reason=str(error))
            return
        self._known = True

    async def run(self) -> None:
        """Deliver until `stop`."""
        try:
            while not self._known and not self._stopping.is_set():
                await self.synchronise()
                if not self._known:
                    await self._wait(self._stopping, self._database_pause_seconds)
            async with asyncio.TaskGroup() as group:
                for subscription in self._subscriptions:
                    group.create_task(self._serve(subscription), name=f"deliveries-{subscription.name}")
                await self._stopping.wait()
        finally:
            for subscription in self._subscriptions:
                await subscription.endpoint.close()

    # --- one endpoint ------------------------------------------------------------------------------

    async def _serve(self, subscription: Subscription) -> None:
        try:
            while not self._stopping.is_set():
                # Cleared before the query: a notification in between is not lost but seen next time.
                subscription.wake.clear()
                try:
                    pause = await self._claim(subscription)
                except DatabaseUnavailable as error:
                    log.warning("delivery_claim_failed", endpoint=subscription.name, reason=str(error))
                    # The claim may have come through, and only its answer not.
                    subscription.lost_track = True
                    pause = self._database_pause_seconds
                if pause > 0:
                    await self._wait(subscription.wake, pause)
        finally:
            await self._finish(subscription)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    async def _claim(self, subscription: Subscription) -> float:
        """Start the deliveries that there is room for; return how many seconds to wait before the next look."""
        if subscription.lost_track:
            # Before the query: a delivery that is lost during it is not forgotten.
            subscription.lost_track = False
            if not await self._queue.release_lost(subscription.name, self._dead_workers, held=subscription.held):
                subscription.lost_track = True
                return self._database_pause_seconds
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
            subscription.running[delivery.id, delivery.attempt] = task
        if deliveries:
            return 0
        due = await self._queue.next_due_seconds(subscription.name)
        return self._poll_seconds if due is None else min(self._poll_seconds, max(BUSY_PAUSE_SECONDS, due))

    async def _finish(self, subscription: Subscription) -> None:
        running = set(subscription.running.values())
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=self._shutdown_timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    # --- one upload at one endpoint ----------------------------------------------------------------

    async def _run(self, subscription: Subscription, delivery: Delivery) -> None:
        course = Course(delivery, delivery.next_sequence, delivery.until_sequence, delivery.failures)
        left_behind = False
        try:
            await self._deliver(subscription, course)
        except asyncio.CancelledError:
            await self._queue.release(delivery, course.position)
            raise
        except DatabaseUnavailable as error:
            # What was sent is sent once more.
            log.warning("delivery_not_recorded", endpoint=subscription.name, reason=str(error))
            await self._wait(self._stopping, self._database_pause_seconds)
            left_behind = True
        except Exception:
            # Once its lease has ended, it is tried again.
            log.exception("delivery_failed_unexpectedly", endpoint=subscription.name)
        finally:
            del subscription.running[delivery.id, delivery.attempt]
            # Only now: what is released is what nobody holds.
            subscription.lost_track |= left_behind
            subscription.wake.set()

    async def _deliver(self, subscription: Subscription, course: Course) -> None:
        """Send the events of one upload in their order, until there are no more or one of them fails."""
        delivery = course.delivery
        while True:
            events = await self._queue.events(
                delivery, subscription.kinds, start=course.position, until=course.until, limit=EVENTS_AT_ONCE
            )
            for event in events:
                if self._stopping.is_set():
                    await self._queue.release(delivery, course.position)
                    return
                if not await self._deliver_one(subscription, course, event):
                    return
            if len(events) == EVENTS_AT_ONCE and course.position <= course.until:
                continue
            # Whatever else there was before `until` is not kept any more.
            last = await self._queue.finish(delivery, course.until + 1)
            if last is None:
                return
            course.position, course.until = course.until + 1, last

    async def _deliver_one(self, subscription: Subscription, course: Course, event: RecordedEvent) -> bool:
        """Send an event and record what became of it. Return whether the next one follows now."""
        delivery, error = course.delivery, await self._send(subscription, event)
        if error is not None and error.gone:
            if await self._queue.pause(subscription.name, str(error)):
                log.error("endpoint_paused", endpoint=subscription.name, reason=str(error))
            await self._queue.release(delivery, event.sequence)
            return False
        if error is not None and self._clock() - event.created_at < self._give_up_after:
            delay = self._delay(course.failures, error)
            await self._queue.retry(delivery, event.sequence, str(error), delay_seconds=delay)
            return False
        course.position, course.failures = event.sequence + 1, 0
        if error is not None:
            return await self._bury(subscription, delivery, event, str(error))
        if event.sequence >= course.until:
            return True  # the last one is recorded together with the end
        return await self._queue.advance(delivery, course.position, lease_seconds=subscription.lease_seconds)

    async def _send(self, subscription: Subscription, event: RecordedEvent) -> DeliveryFailed | None:
        """Send one event; return what went wrong."""
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            await subscription.endpoint.send(await subscription.render(event))
        except DatabaseUnavailable:
            raise
        except DeliveryFailed as failure:
            error = failure
        except Exception as failure:
            # A defect of ours must not stop the endpoint, nor try again without a pause.
            log.exception("delivery_failed_unexpectedly", endpoint=subscription.name, event_id=str(event.id))
            error = DeliveryFailed(f"it cannot be sent: {failure!r}")
        else:
            subscription.succeeded()
            self._metrics.deliveries.labels(subscription.name, "delivered").inc()
            self._metrics.delivery_seconds.labels(subscription.name).observe(clock() - started)
            return None
        subscription.failed(started, clock())
        self._metrics.deliveries.labels(subscription.name, "failed").inc()
        log.warning("delivery_failed", endpoint=subscription.name, reason=str(error), **_facts(event))
        return error

    def _delay(self, failures: int, error: DeliveryFailed) -> float:
        """Return when a failed delivery is tried again: later each time, and not all at the same moment."""
        shortest, longest = self._retry_seconds
        if error.retry_after_seconds is not None:
            return max(shortest, error.retry_after_seconds)
        return min(longest, shortest * 2.0 ** min(failures, 30)) * random.uniform(0.8, 1.0)  # noqa: S311

    async def _bury(self, subscription: Subscription, delivery: Delivery, event: RecordedEvent, reason: str) -> bool:
        self._metrics.deliveries.labels(subscription.name, "dead").inc()
        log.error("event_not_delivered", endpoint=subscription.name, reason=reason, **_facts(event))
        return await self._queue.bury(
            delivery, event, event.sequence + 1, reason, lease_seconds=subscription.lease_seconds
        )


def _facts(event: RecordedEvent) -> dict[str, str]:
    return {"event_id": str(event.id), "upload_id": str(event.upload_id), "kind": event.kind.value}
