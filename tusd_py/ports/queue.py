"""What the queue of the workers hands out and takes back: jobs, outages of the store, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

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
    FINISH = "finish"
    """Ask the application whether an upload that has all its bytes may be complete, and complete it."""


class JobState(StrEnum):
    """How a job stands; the column `jobs.state`.

    queued -> running: claimed by a worker, under a lease
    running -> running: claimed by another one, because the lease ran out
    running -> retry_wait -> running: it failed, or the store is away
    running -> succeeded | failed | cancelled: it is over
    running -> queued: an eager job waits for further bytes
    queued | retry_wait -> cancelled: its upload is removed
    """

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
    """Of an eager job: how many bytes had to be durable for this claim."""
    sent: bool = True
    """Of a removal: a worker may have begun to bring the upload into its store."""
    lost: bool = False
    """Its worker fell silent, and this claim took the job from it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStats:
    """How the deliveries to an endpoint stand."""

    name: str
    waiting: int
    """Uploads of which it has not been told everything."""
    oldest_seconds: float
    """Age of the oldest event that it has not taken yet, 0 if there is none."""
    dead_letters: int
    paused: bool


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
    endpoints: Sequence[EndpointStats] = ()
    """Of events; also those that are configured no more and not yet forgotten."""
