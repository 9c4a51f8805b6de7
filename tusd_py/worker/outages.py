"""Distinguish an outage of the store from the failure of one upload, and wait for the end of an outage.

An error counts as an outage only if a probe fails as well. From then on no job of the node is claimed,
and its workers take turns with one probe. The outage is recorded in the database, so that a worker that
is restarted goes on waiting; it probes at once, for its new configuration may have cured the cause.
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
"""The time limit of a probe. A store that does not answer within it is away."""
FIRST_INTERVAL_SECONDS: Final = 1.0
LONGEST_INTERVAL_SECONDS: Final = 5.0
"""From the start of one probe to the start of the next; it grows from the first to the longest."""
DATABASE_PAUSE_SECONDS: Final = 1.0
SHORTEST_PAUSE_SECONDS: Final = 0.05


class OutageDetector:
    """Detects outages of the store for one worker process, and waits for their end."""

    def __init__(
        self,
        outages: StoreOutages,
        store: ObjectStore,
        *,
        poll_seconds: float,
        probe_seconds: float = PROBE_SECONDS,
    ) -> None:
        """`poll_seconds` is how often to check whether another worker has declared an outage."""
        self._outages = outages
        self._store = store
        self._poll_seconds = poll_seconds
        self._probe_seconds = probe_seconds
        self._turn = asyncio.Lock()
        self._reached_at = float("-inf")
        self._declared = asyncio.Event()
        self._started = False

    async def explains(self, job: Job, *, failed_at: float) -> bool:
        """Return whether an outage explains an error of `job` at `failed_at` (the loop's clock)."""
        # Of many jobs that fail together the first one probes, and the others use its result.
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
        """Return when an outage ends. Until then, take turns in probing with the node's other workers."""
        while True:
            self._declared.clear()
            try:
                wait = await self._probe_in_turn()
            except DatabaseUnavailable:
                wait = DATABASE_PAUSE_SECONDS
            if wait is None:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(SHORTEST_PAUSE_SECONDS, wait)):
                    await self._declared.wait()

    async def _probe_in_turn(self) -> float | None:
        """Probe if it is our turn; return the seconds to wait before the next call, None if the store is back."""
        turn = await self._outages.take_probe(for_seconds=self._probe_seconds, at_once=not self._started)
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
            async with asyncio.timeout(self._probe_seconds):
                await self._store.probe(writing=True)
        except TimeoutError:
            return TransientStoreError(reason=f"no answer within {self._probe_seconds:g} s")
        except StorageError as error:
            return error
        except Exception as error:
            # A worker that ended here would be restarted and run into the same bug.
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
