"""Tells an outage of the store from the failure of one upload, and waits for the store's return.

An error counts as an outage only if a probe fails as well. From then on no job of the node is claimed:
one probe runs instead of all of them, by whichever worker of the node takes its turn first. What is
known stands in the database, so a worker that is restarted goes on waiting, and asks at once whether
its new configuration has cured the cause.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog

from tusd_py.errors import DatabaseUnavailable, PermanentStoreError, StorageError, StoreBlocked, TransientStoreError
from tusd_py.ports import Outage

if TYPE_CHECKING:
    from tusd_py.database.outages import StoreOutages
    from tusd_py.ports import Job, ObjectStore

log = structlog.get_logger(__name__)

PROBE_SECONDS: Final = 5.0
"""How long a probe may take. A store that does not answer for so long is away."""
FIRST_INTERVAL_SECONDS: Final = 1.0
LONGEST_INTERVAL_SECONDS: Final = 5.0
"""From the beginning of one probe to that of the next: after the first, and after many."""
DATABASE_PAUSE_SECONDS: Final = 1.0
SHORTEST_PAUSE_SECONDS: Final = 0.05


class OutageDetector:
    """The view that one worker process has of the store."""

    def __init__(self, outages: StoreOutages, store: ObjectStore, *, poll_seconds: float) -> None:
        """`poll_seconds` is how often to look whether another worker has found the store away."""
        self._outages = outages
        self._store = store
        self._poll_seconds = poll_seconds
        self._turn = asyncio.Lock()
        self._reached_at = float("-inf")
        self._declared = asyncio.Event()
        self._started = False

    async def explains(self, job: Job, *, failed_at: float) -> bool:
        """Return whether an outage is to blame for an error of `job` at `failed_at` (the loop's clock)."""
        # Of many jobs that fail together the first one probes, and the others take its result.
        async with self._turn:
            if await self._outages.overlaps(job):
                return True
            if self._reached_at >= failed_at:
                return False
            error = await self._probe()
            if error is not None:
                await self._declare(error, probe_in_seconds=FIRST_INTERVAL_SECONDS)
            return error is not None

    async def wait_for_return(self) -> None:
        """Return once an outage is over, probing in turn with the node's other workers until then."""
        while True:
            self._declared.clear()
            try:
                wait = await self._look()
            except DatabaseUnavailable:
                wait = DATABASE_PAUSE_SECONDS
            if wait is None:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(SHORTEST_PAUSE_SECONDS, wait)):
                    await self._declared.wait()

    async def _look(self) -> float | None:
        """Probe if it is our turn; return how long to wait before the next look, None after a return."""
        turn = await self._outages.take_probe(for_seconds=PROBE_SECONDS, at_once=not self._started)
        self._started = True
        if turn is None:
            return self._poll_seconds
        if not turn.taken:
            return turn.due_seconds
        began = asyncio.get_running_loop().time()
        error = await self._probe()
        if error is None:
            seconds = await self._outages.end()
            if seconds is not None:
                log.info("store_back", away_seconds=round(seconds, 1))
            return None
        interval = min(LONGEST_INTERVAL_SECONDS, FIRST_INTERVAL_SECONDS * turn.number)
        wait = max(0.0, began + interval - asyncio.get_running_loop().time())
        await self._declare(error, probe_in_seconds=wait)
        return wait

    async def _probe(self) -> StorageError | None:
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._store.probe(writing=True)
        except TimeoutError:
            return TransientStoreError(reason=f"no answer within {PROBE_SECONDS:g} s")
        except StorageError as error:
            return error
        except Exception as error:
            # Whatever it is, a worker that ended with it would only be started again to meet it again.
            log.exception("probe_bug")
            return TransientStoreError(reason=repr(error))
        self._reached_at = began
        return None

    async def _declare(self, error: StorageError, *, probe_in_seconds: float) -> None:
        outage = _outage_of(error)
        is_new = await self._outages.declare(outage, probe_in_seconds=probe_in_seconds)
        self._declared.set()
        if is_new and outage.blocked:
            log.error("store_blocked", code=error.context.get("code"), reason=str(error), hint=outage.sentence)
        elif is_new:
            log.warning("store_away", reason=str(error), hint=outage.sentence)


def _outage_of(error: StorageError) -> Outage:
    fact = error.context.get("code") or error.context.get("errno")
    detail = f" ({fact})" if isinstance(fact, str) else ""
    if isinstance(error, PermanentStoreError):
        sentence = f"The store refuses this server{detail}; transfers continue once that is corrected."
        return Outage(blocked=True, code=StoreBlocked.code, sentence=sentence)
    sentence = f"The store is not reachable{detail}; transfers continue once it is."
    return Outage(blocked=False, code=TransientStoreError.code, sentence=sentence)
