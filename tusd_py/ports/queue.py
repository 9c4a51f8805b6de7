"""The queue of the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from tusd_py.ports.stores import StoredObject, TransferState
from tusd_py.protocol.upload import Upload

LARGE_BYTES: Final = 16 * 2**20
"""Jobs that move more are large: they take long, so a worker claims only what it can run at once."""


class JobKind(StrEnum):
    """What a job does; the column `jobs.kind`."""

    TRANSFER = "transfer"
    """Bring a complete upload into the store."""
    EAGER = "eager"
    """Send parts of an upload that is still being received."""
    REMOVE = "remove"
    """Remove the bytes of an upload that is gone."""


class JobState(StrEnum):
    """How a job stands; the column `jobs.state`."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRY_WAIT = "retry_wait"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    """Never in the database: shown of a job that waits while the store refuses the server."""


LIVE: Final = (JobState.QUEUED, JobState.RUNNING, JobState.RETRY_WAIT)
"""States of a job that is not over; the partial indexes of `jobs` say the same."""
WAITING: Final = (JobState.QUEUED, JobState.RETRY_WAIT)
"""States of a live job that nobody works on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A claimed job. `attempt` fences: whoever claims the job next has a higher one."""

    id: int
    kind: JobKind
    attempt: int
    failures: int
    started_at: datetime
    upload: Upload
    multipart_id: str | None
    runnable: bool
    """False: the upload has moved on, and nothing is left to do."""
    min_offset: int = 0
    """Of a job `eager`: so many bytes had to be durable for this claim."""
    sent: bool = True
    """Of a removal: a worker may have begun to bring the upload into its store."""
    lost: bool = False
    """Its worker fell silent, and this claim took it away from him."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Why no job of a node can do anything in the store."""

    blocked: bool
    """The store is there and refuses: somebody has to correct bucket, credentials or permissions."""
    code: str
    sentence: str
    """For owners of uploads: no path and no address."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The next probe during an outage. `number` counts them."""

    number: int
    taken: bool
    """The caller is to make it now; otherwise it is due, or somebody else's, for `due_seconds`."""
    due_seconds: float


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What operators watch: counts by state, ages in seconds. States without any are left out."""

    uploads: Mapping[str, int]
    """Of those that have somewhere to go, or failed to get there."""
    oldest_unfinished_seconds: float
    jobs: Mapping[str, int]
    oldest_due_job_seconds: float
    """Since when a job could have been claimed that nobody has claimed."""
    store_away_seconds: float = 0
    """How long this node's store has not been reachable; 0 if it is, or if it refuses."""
    store_blocked_seconds: float = 0
    """How long the store has refused this node; 0 if it does not."""


class JobQueue(Protocol):
    """Work that must happen, however often a process dies. Nothing is claimed during an outage.

    A claim is a lease. Whoever holds one stops working on the job before it ends, and acknowledges
    with one of `finish_…`, `retry`, `fail` or `discard` that it has stopped.
    """

    async def claim(self, limit: int, *, large: int | None = None, eager: int = 0) -> list[Job]:
        """Take over due jobs of this staging directory: up to `limit`, and beside them up to `large` large ones.

        And a few of those that any worker may do.

        None: as many large ones as others. What finished uploads leave of the places for large ones,
        up to `eager` of them, goes to uploads that are still being received.
        """

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        """Extend the leases; return the ids that are still ours and may go on."""

    async def release(self, jobs: Sequence[Job]) -> None:
        """Let the leases run out in a moment, for somebody else to go on. Counts as no failure."""

    async def release_lost(self, dead_workers: Sequence[str], *, held: Sequence[int]) -> int:
        """Do as `release` with all that these workers hold, and this one without knowing it; return how many.

        Only for workers whose process has ended. `held` are the jobs that this worker does know of. A job that
        was lost several times in a row keeps its lease: it may be what kills its workers.
        """

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        """Record objects as stored; return the ids for which the upload really moved."""

    async def finish_removals(self, jobs: Sequence[Job]) -> None:
        """Record that nothing is left of these uploads."""

    async def retry(self, job: Job, error: Exception, *, code: str, delay_seconds: float) -> bool:
        """Put the job back for later; return whether it still was ours and not cancelled."""

    async def postpone(self, job: Job, error: Exception, *, code: str) -> bool:
        """Put the job back until the store has returned. Counts as no failure; returns as `retry` does."""

    async def fail(self, job: Job, error: Exception, *, code: str) -> bool:
        """Give the job up; a transfer's upload becomes `transfer_failed`. Returns as `retry` does."""

    async def move(self, job: Job, place_id: int) -> bool:
        """Record in which place a transfer goes on, from its beginning. Returns whether the job still was ours."""

    async def sending_parts(self, job: Job) -> bool:
        """Return whether a worker holds a lease on the job `eager` of the same upload."""

    async def defer(self, job: Job, *, until_bytes: int) -> bool:
        """Let a job `eager` lie until `until_bytes` bytes are durable. Returns as `retry` does."""

    async def discard(self, job: Job, *, settle_seconds: float = 0) -> bool:
        """Close a job that has nothing left to do, or was cancelled: a removal may go on.

        It does so after `settle_seconds`, for what was under way. Returns whether the job was still ours.
        """

    async def next_due_seconds(self, *, large: bool = True) -> float | None:
        """Return how long until the next job may be claimed, None if there is none or the store is away.

        Without `large`, large ones do not count.
        """

    def transfer_state(self, job: Job) -> TransferState:
        """Return the durable memory of a transfer, fenced by the job's attempt."""


class OutageRecord(Protocol):
    """What the workers of a node know of outages of the store, and share."""

    async def declare(self, outage: Outage, *, probe_in_seconds: float) -> bool:
        """Record that a probe failed and when the next one is due; return whether this is news."""

    async def overlaps(self, job: Job) -> bool:
        """Return whether an outage lasts, or lasted during this attempt of the job."""

    async def take_probe(self, *, for_seconds: float, at_once: bool = False) -> Probe | None:
        """Take the next probe if it is due, or `at_once`, for so long; return None without an outage."""

    async def end(self) -> float | None:
        """Record the store's return and make all waiting jobs due; return how long it was away.

        None: somebody else did.
        """
