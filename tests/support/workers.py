"""Workers and stores for the tests: the real ones, with a hand on them at the moments that matter."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from tests.support.process import eventually
from tests.support.world import World
from tusd_py.config import CleanupConfig, TransferConfig
from tusd_py.configured_stores import Stores
from tusd_py.database.cleanup import CleanupRecords
from tusd_py.database.jobs import JobQueue
from tusd_py.metrics import Metrics
from tusd_py.ports import (
    CheckResult,
    DownloadHeaders,
    ListedObject,
    LocalFile,
    ObjectIdentity,
    ObjectSpec,
    ObjectStore,
    PartRecord,
    Segment,
    StoredObject,
    TransferState,
    UnfinishedObject,
)
from tusd_py.protocol.upload import State, Upload
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.uploads.hooks import BlockingHooks
from tusd_py.worker.cleanup import BATCH, Cleanup
from tusd_py.worker.context import JobContext
from tusd_py.worker.outages import PROBE_SECONDS, OutageDetector
from tusd_py.worker.postponed import POSTPONE_SECONDS
from tusd_py.worker.runner import JobRunner

SOON = 8.0
"""Seconds in which whatever is expected has long happened, even on a busy machine."""
OF_TRANSFER = {"delete_local", "delete_local_after", "requeue_failed_after"}
"""Settings of cleanup that stand in the section `transfer`."""


def settings(**changes: Any) -> TransferConfig:
    """Return a patient lease and impatient retries. Polling is quick, so that no test waits for it."""
    values: dict[str, Any] = {
        "concurrency": 4,
        "lease": 30.0,
        "poll_interval": 0.02,
        "max_retries": 2,
        "retry_delay": 0.01,
        "retry_backoff": 1.0,
        "retry_max_delay": 0.01,
    }
    # Not validated: tests have shorter leases than an operator may configure.
    return TransferConfig.model_construct(**(values | changes))


def make_cleanup(
    world: World,
    *,
    records: CleanupRecords | None = None,
    metrics: Metrics | None = None,
    batch: int = BATCH,
    postpone_seconds: float = POSTPONE_SECONDS,
    **changes: Any,
) -> Cleanup:
    """Cleanup that removes staged copies at once and everything else after an hour; a month for what is unclaimed."""
    values: dict[str, Any] = {
        "deleted_retention": 3600.0,
        "orphans_after": 3600.0,
        "events_after": 3600.0,
    } | changes
    transfer = TransferConfig.model_construct(**{name: values.pop(name) for name in changes if name in OF_TRANSFER})
    config = CleanupConfig.model_construct(**values)
    return Cleanup(
        records or world.cleanup,
        world.staging,
        config,
        transfer,
        metrics or Metrics(),
        batch=batch,
        postpone_seconds=postpone_seconds,
    )


@contextlib.asynccontextmanager
async def working(
    world: World,
    store: ObjectStore | None = None,
    *,
    name: str = "worker-1",
    jobs: JobQueue | None = None,
    stores: Stores | None = None,
    purge: bool = True,
    digests: frozenset[str] = frozenset(),
    object_parameters: Mapping[str, Mapping[str, str]] | None = None,
    hooks: BlockingHooks | None = None,
    dead_workers: Sequence[str] = (),
    shutdown_timeout: float = 10.0,
    probe_seconds: float = PROBE_SECONDS,
    **changes: Any,
) -> AsyncIterator[JobRunner]:
    """Run a worker until the block ends; it must end in good order."""
    chosen = settings(**changes)
    queue = jobs if jobs is not None else world.jobs(name, lease=chosen.lease)
    metrics = Metrics()
    stores = world.stores(store) if stores is None else stores
    await stores.current_id()
    context = JobContext(
        jobs=queue,
        uploads=world.uploads,
        cleanup=world.cleanup,
        staging=world.staging,
        stores=stores,
        metrics=metrics,
        purge_at_once=purge,
        digests=digests,
        object_parameters=object_parameters or {},
        hooks=hooks,
    )
    detector = OutageDetector(
        world.outages(), stores.current, poll_seconds=chosen.poll_interval, probe_seconds=probe_seconds
    )
    runner = JobRunner(context, detector, chosen, shutdown_timeout=shutdown_timeout, database_pause_seconds=0.02)
    runner.take_over(dead_workers)
    task = asyncio.create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop()
        await asyncio.wait_for(task, SOON)


async def reaches(world: World, upload: Upload, state: State, *, deadline: float = SOON) -> Upload:
    """Wait until an upload has come to a state."""

    async def there() -> Upload | None:
        found = await world.find(upload)
        return found if found.state is state else None

    return await eventually(there, deadline=deadline, what=f"{upload.id} is {state}")


async def is_true(condition: Callable[[], Awaitable[Any] | Any], what: str) -> None:
    """Wait until a condition holds."""

    async def holds() -> Any:
        value = condition()
        return await value if isinstance(value, Awaitable) else value

    await eventually(holds, deadline=SOON, what=what)


class OneByOne(ObjectStore):
    """The filesystem store without its batches. Tests override `before` and `after`."""

    name = "one by one"
    keeps_ids = FilesystemStore.keeps_ids

    def __init__(self, inner: FilesystemStore) -> None:
        self.inner = inner
        self.puts: list[str] = []
        self.cancelled = 0
        self.aborted: list[tuple[str, str]] = []

    async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        """Do what the test wants before the object is made."""

    async def after(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        """Do what the test wants once it is there."""

    async def open(self) -> None:
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        self.puts.append(spec.upload_id)
        try:
            await self.before(spec, transfer_state)
            stored = await self.inner.put(spec, segments, transfer_state)
            await self.after(spec, transfer_state)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return stored

    async def stat(self, key: str) -> StoredObject | None:
        return await self.inner.stat(key)

    async def locate(
        self, key: str, headers: DownloadHeaders, *, method: str = "GET", expires_seconds: int
    ) -> LocalFile:
        return await self.inner.locate(key, headers, method=method, expires_seconds=expires_seconds)

    def check(self) -> AsyncGenerator[CheckResult]:
        return self.inner.check()

    async def remove(self, identity: ObjectIdentity) -> bool:
        return await self.inner.remove(identity)

    async def abort(self, key: str, multipart_id: str) -> None:
        self.aborted.append((key, multipart_id))

    async def probe(self, *, writing: bool = False) -> None:
        await self.inner.probe(writing=writing)

    def list_objects(self) -> AsyncIterator[ListedObject]:
        return self.inner.list_objects()

    def list_unfinished(self) -> AsyncIterator[UnfinishedObject]:
        return self.inner.list_unfinished()


class Gated(OneByOne):
    """Waits before or after the object is made, until the test opens the gate."""

    def __init__(self, inner: FilesystemStore, *, made: bool = False) -> None:
        super().__init__(inner)
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.records_progress = False
        self._made = made

    async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        if not self._made:
            await self._wait(spec, transfer_state)

    async def after(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        if self._made:
            await self._wait(spec, transfer_state)

    async def _wait(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        self.reached.set()
        await self.gate.wait()
        if self.records_progress:
            await transfer_state.progress(spec.length)


class Failing(OneByOne):
    """Fails with the given errors, one per put, and then no more."""

    def __init__(self, inner: FilesystemStore, *errors: Exception) -> None:
        super().__init__(inner)
        self.errors = list(errors)

    async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
        if self.errors:
            raise self.errors.pop(0)


class InParts(OneByOne):
    """Sends four parts and remembers in the transfer state what it has sent, as an S3 store does."""

    PARTS = 4

    async def put(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> StoredObject:
        content = b"".join(segment.path.read_bytes()[: segment.length] for segment in segments)
        size = -(-len(content) // self.PARTS)
        directory = self.inner.local_path("parts") / spec.upload_id
        if await transfer_state.multipart_id() is None:
            await transfer_state.record_multipart(f"multipart of {spec.upload_id}")
        done = {part.number for part in await transfer_state.parts()}
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(1, self.PARTS + 1):
            if number not in done:
                piece = content[(number - 1) * size : number * size]
                (directory / str(number)).write_bytes(piece)
                with (directory / "sent").open("a") as log:
                    log.write(f"{number} ")
                await self.sent(number)
                await transfer_state.record_part(PartRecord(number, len(piece), f"etag-{number}"))
                await self.recorded(number)
        await transfer_state.progress(spec.length)
        path = self.inner.local_path(spec.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join((directory / str(number)).read_bytes() for number in range(1, self.PARTS + 1)))
        await self.after(spec, transfer_state)
        return StoredObject(spec.key, spec.length)

    async def sent(self, number: int) -> None:
        """Do what the test wants between a part and its record."""

    async def recorded(self, number: int) -> None:
        """Do what the test wants after its record."""
