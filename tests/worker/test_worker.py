"""The worker on a real queue, a real disk and a store of files: what it does, and what it never does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest

from tests.support.workers import (
    SOON,
    Failing,
    Gated,
    InParts,
    OneByOne,
    is_true,
    reaches,
    settings,
    working,
)
from tests.support.world import DAY, World, stored
from tusd_py.app import Work, run_work
from tusd_py.config import CleanupConfig
from tusd_py.config.sections import DatabaseConfig
from tusd_py.database.deliveries import DeliveryQueue
from tusd_py.database.jobs import JobQueue
from tusd_py.database.notifier import JOBS_CHANNEL
from tusd_py.database.pool import Notifications
from tusd_py.errors import (
    DatabaseUnavailable,
    ObjectLocked,
    PermanentStoreError,
    StorageError,
    TransferInProgress,
    TransientStoreError,
)
from tusd_py.metrics import Metrics
from tusd_py.ports import LARGE_BYTES, Job, ObjectIdentity, ObjectSpec, Segment, StoredObject, TransferState
from tusd_py.protocol.upload import State, Upload, UploadId
from tusd_py.worker.cleanup import Cleanup
from tusd_py.worker.context import JobContext
from tusd_py.worker.deliveries import DeliveryRunner
from tusd_py.worker.outages import OutageDetector
from tusd_py.worker.outcomes import retry_delay
from tusd_py.worker.progress import ProgressSender
from tusd_py.worker.runner import JobRunner

MIB = 2**20


# --- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, MIB, MIB + 1], ids=["empty", "small", "largest small", "larger"])
async def test_an_upload_reaches_the_store_and_leaves_staging(world: World, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    upload = await world.received(content[:size])

    async with working(world):
        await reaches(world, upload, State.STORED)
        await is_true(lambda: not world.staged(upload), "the staged copy is gone")

    assert world.object(upload) == content[:size]
    found = await world.find(upload)
    assert (found.remote_present, found.local_present) == (True, False)
    assert await world.events_of(upload) == [
        "upload.created",
        "upload.completed",
        "upload.transferring",
        "upload.stored",
    ]


async def test_a_staged_copy_is_kept_where_it_is_to_be_kept(world: World) -> None:
    upload = await world.received()

    async with working(world, purge=False):
        await reaches(world, upload, State.STORED)

    assert world.staged(upload)
    assert (await world.find(upload)).local_present


async def test_the_store_is_told_what_a_profile_wants_of_its_objects(world: World) -> None:
    class Attentive(OneByOne):
        async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
            parameters_of[spec.upload_id] = spec.parameters

    parameters_of: dict[str, Mapping[str, Any]] = {}
    parameters = {"photos": {"StorageClass": "GLACIER_IR"}, "default": {"CacheControl": "no-store"}}
    uploads = {name: await world.received(profile=name) for name in ("photos", "default", "configured no more")}

    async with working(world, Attentive(world.store), object_parameters=parameters):
        for upload in uploads.values():
            await reaches(world, upload, State.STORED)

    assert {name: parameters_of[str(upload.id)] for name, upload in uploads.items()} == parameters | {
        "configured no more": {}
    }


async def test_several_workers_store_each_upload_once(world: World) -> None:
    uploads = [await world.received(b"%d" % number) for number in range(30)]
    stores = [OneByOne(world.store) for _ in range(3)]

    first, second, third = (working(world, store, name=str(number)) for number, store in enumerate(stores))
    async with first, second, third:
        for upload in uploads:
            await reaches(world, upload, State.STORED)

    counted = Counter(upload_id for store in stores for upload_id in store.puts)
    assert counted == {str(upload.id): 1 for upload in uploads}
    assert all(attempts == [("transfer", 1, "succeeded")] for attempts in [await world.attempts_of(u) for u in uploads])


async def test_the_end_of_an_upload_wakes_the_worker(world: World) -> None:
    notifications = Notifications(world.dsn, DatabaseConfig())
    poll_seconds = 60
    async with working(world, poll_interval=poll_seconds) as runner:
        listening = asyncio.Event()
        notifications.subscribe(JOBS_CHANNEL, lambda node: runner.wake() if node else listening.set())
        await notifications.open()
        await listening.wait()
        for _ in range(5):
            upload = await world.received()
            await reaches(world, upload, State.STORED, deadline=poll_seconds / 2)
        await notifications.close()


async def test_without_a_notification_polling_finds_the_job(world: World) -> None:
    async with working(world, poll_interval=0.05):
        upload = await world.received()
        await reaches(world, upload, State.STORED)


# --- failures --------------------------------------------------------------------------------------


async def test_a_transient_error_is_tried_again(world: World) -> None:
    upload = await world.received()
    store = Failing(world.store, TransientStoreError(), TransientStoreError())

    async with working(world, store):
        await reaches(world, upload, State.STORED)

    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["retry", "retry", "succeeded"]


async def test_after_the_last_retry_the_upload_has_failed_and_is_kept(world: World) -> None:
    upload = await world.received()
    store = Failing(world.store, *(TransientStoreError("Away.", code=f"E{number}") for number in range(9)))

    async with working(world, store, max_retries=2):
        failed = await reaches(world, upload, State.TRANSFER_FAILED)

    assert len(store.puts) == 3
    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["retry", "retry", "failed"]
    assert failed.error == "Away. (E2)"
    assert world.staged(upload)


async def test_a_permanent_error_is_not_tried_again(world: World) -> None:
    upload = await world.received()
    store = Failing(world.store, PermanentStoreError())

    async with working(world, store):
        await reaches(world, upload, State.TRANSFER_FAILED)

    assert len(store.puts) == 1
    assert world.staged(upload)


async def test_a_staged_file_that_is_missing_fails_the_transfer(world: World) -> None:
    single, batched = await world.received(b"x" * (MIB + 1)), await world.received()
    for upload in (single, batched):
        world.staging.path(upload.id).unlink()

    async with working(world):
        await reaches(world, single, State.TRANSFER_FAILED)
        await reaches(world, batched, State.TRANSFER_FAILED)


async def test_one_failure_leaves_the_others_of_its_batch_alone(world: World) -> None:
    uploads = [await world.received(b"%d" % number) for number in range(5)]
    world.staging.path(uploads[2].id).unlink()

    async with working(world):
        for upload in uploads:
            await reaches(world, upload, State.TRANSFER_FAILED if upload is uploads[2] else State.STORED)


async def test_a_bug_is_tried_again_and_does_not_end_the_worker(world: World) -> None:
    upload = await world.received()

    async with working(world, Failing(world.store, KeyError("bug"))):
        await reaches(world, upload, State.STORED)

    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["retry", "succeeded"]


async def test_lost_workers_use_up_no_retry(world: World) -> None:
    upload = await world.received()
    for _ in range(5):
        await world.jobs("killed").claim(1)
        await world.end_leases()
    store = Failing(world.store, TransientStoreError(), TransientStoreError())

    async with working(world, store, max_retries=2):
        await reaches(world, upload, State.STORED)

    outcomes = [outcome for _, _, outcome in await world.attempts_of(upload)]
    assert outcomes == ["lost"] * 5 + ["retry", "retry", "succeeded"]


async def test_a_failed_transfer_is_repeated_by_hand(world: World) -> None:
    upload = await world.received()
    store = Failing(world.store, PermanentStoreError())

    async with working(world, store):
        await reaches(world, upload, State.TRANSFER_FAILED)
        await world.transfers.request(upload.id)
        found = await reaches(world, upload, State.STORED)

    assert found.error is None


def test_waits_grow_up_to_a_bound_and_are_never_all_the_same() -> None:
    chosen = settings(retry_delay=60.0, retry_backoff=2.0, retry_max_delay=3600.0)

    for failures, plain in [(1, 60), (2, 120), (3, 240), (6, 1920), (7, 3600), (1000, 3600)]:
        waits = [retry_delay(chosen, failures) for _ in range(50)]
        assert all(0.9 * plain <= wait <= 1.1 * plain for wait in waits)
        assert len(set(waits)) > 1


def test_a_factor_of_one_waits_the_same_each_time() -> None:
    chosen = settings(retry_delay=60.0, retry_backoff=1.0, retry_max_delay=3600.0)

    assert 54 <= retry_delay(chosen, 100) <= 66


# --- stopping --------------------------------------------------------------------------------------


async def test_stopping_lets_what_runs_come_to_its_end_and_begins_nothing(world: World) -> None:
    upload = await world.received()
    store = Gated(world.store)

    async with working(world, store) as runner:
        await store.reached.wait()
        runner.stop()
        later = await world.received()
        store.gate.set()

    assert await world.state(upload) is State.STORED
    assert await world.jobs_of(later) == [("transfer", "queued")]


async def test_what_takes_too_long_to_stop_is_left_to_the_next_worker_at_once(world: World) -> None:
    upload = await world.received()
    stuck = Gated(world.store)
    async with working(world, stuck, shutdown_timeout=0.01):
        await stuck.reached.wait()

    assert stuck.cancelled == 1
    async with working(world, name="worker-2"):
        await reaches(world, upload, State.STORED, deadline=15)  # half a lease
    assert [outcome for _, _, outcome in await world.attempts_of(upload)] == ["lost", "succeeded"]


async def test_a_helper_that_dies_takes_the_worker_with_it(world: World) -> None:
    class Broken(JobQueue):
        async def renew(self, jobs: Sequence[Job]) -> set[int]:
            raise RuntimeError("bug in a helper")

    await world.received()
    jobs = Broken(world.database, directory=world.staging.identity, worker="worker-1", lease_seconds=0.3)
    store = Gated(world.store)

    with pytest.raises(ExceptionGroup) as died:
        async with working(world, store, jobs=jobs, lease=0.3):
            await is_true(lambda: store.cancelled, "what ran was cancelled")

    assert died.group_contains(RuntimeError, match="bug in a helper")


async def test_a_sweep_that_dies_takes_the_worker_with_it(world: World) -> None:
    class Broken(Cleanup):
        async def once(self) -> dict[str, int]:
            raise RuntimeError("bug in the cleanup")

    metrics = Metrics()
    context = JobContext(
        jobs=world.jobs(), uploads=world.uploads, cleanup=world.cleanup, staging=world.staging, stores=world.stores(),
        metrics=metrics, purge_at_once=True,
    )  # fmt: skip
    config = settings()
    cleanup = Broken(world.cleanup, world.staging, CleanupConfig(), config, metrics)
    detector = OutageDetector(world.outages(), world.store, poll_seconds=60)
    runner = JobRunner(context, detector, config, shutdown_timeout=10)

    with pytest.raises(RuntimeError, match="bug in the cleanup"):
        work = Work(runner, cleanup, *no_events(world, metrics))
        await asyncio.wait_for(run_work(work, asyncio.Event()), SOON)


def no_events(world: World, metrics: Metrics) -> tuple[DeliveryRunner, ProgressSender]:
    queue = DeliveryQueue(world.database, worker="worker-1")
    deliveries = DeliveryRunner(queue, [], metrics, poll_seconds=60, shutdown_timeout=10)
    return deliveries, ProgressSender(queue, world.uploads, [])


# --- a database that is away -----------------------------------------------------------------------


class Flaky(JobQueue):
    """A queue whose database is away for a while, before or after it did what it was asked."""

    def __init__(self, world: World, *, lease_seconds: float = 30.0) -> None:
        directory = world.staging.identity
        super().__init__(world.database, directory=directory, worker="worker-1", lease_seconds=lease_seconds)
        self.away: set[str] = set()
        self.lost_replies: set[str] = set()
        self.refused = 0

    def _ask(self, what: str) -> None:
        if what in self.away:
            self.refused += 1
            raise DatabaseUnavailable

    async def claim(self, limit: int, *, large: int | None = None, eager: int = 0, finish: int = 0) -> list[Job]:
        self._ask("claim")
        return await super().claim(limit, large=large)

    async def renew(self, jobs: Sequence[Job]) -> set[int]:
        self._ask("renew")
        return await super().renew(jobs)

    async def finish_transfers(self, done: Sequence[tuple[Job, StoredObject]]) -> set[int]:
        self._ask("finish")
        recorded = await super().finish_transfers(done)
        if "finish" in self.lost_replies:
            self.lost_replies.remove("finish")
            raise DatabaseUnavailable
        return recorded


async def test_without_its_database_the_worker_waits(world: World) -> None:
    upload = await world.received()
    jobs = Flaky(world)
    jobs.away = {"claim"}

    async with working(world, jobs=jobs):
        await is_true(lambda: jobs.refused > 2, "the worker has asked more than once")
        jobs.away = set()
        await reaches(world, upload, State.STORED)


async def test_what_could_not_be_recorded_keeps_its_bytes_and_is_done_again(world: World) -> None:
    upload = await world.received()
    jobs = Flaky(world)
    jobs.away = {"finish"}

    async with working(world, jobs=jobs):
        await is_true(lambda: jobs.refused, "the record was refused")
        assert world.staged(upload)
        assert await world.state(upload) is State.TRANSFERRING
        jobs.away = set()
        await reaches(world, upload, State.STORED)

    assert [outcome for _, _, outcome in await world.attempts_of(upload)][-1] == "succeeded"
    assert await world.jobs_of(upload, "failures") == [(0,)]


async def test_a_record_whose_reply_was_lost_counts(world: World) -> None:
    upload = await world.received()
    jobs = Flaky(world)
    jobs.lost_replies = {"finish"}

    async with working(world, jobs=jobs):
        await reaches(world, upload, State.STORED)
        await is_true(lambda: not jobs.lost_replies, "the reply was lost")

    assert await world.attempts_of(upload) == [("transfer", 1, "succeeded")]
    assert await world.jobs().next_due_seconds() is None


# --- leases ----------------------------------------------------------------------------------------


async def test_a_long_transfer_keeps_its_lease(world: World) -> None:
    upload = await world.received()
    store, other = Gated(world.store), OneByOne(world.store)

    renewed: datetime

    async def renewed_twice() -> bool:
        nonlocal renewed
        before, renewed = renewed, await world.value("SELECT due_at FROM jobs")
        return renewed > before

    async with working(world, store, lease=0.6):
        await store.reached.wait()  # before the other one begins, which else might be first
        async with working(world, other, name="worker-2"):
            renewed = await world.value("SELECT due_at FROM jobs")
            await is_true(renewed_twice, "the lease was renewed")
            await is_true(renewed_twice, "the lease was renewed again")
            await is_true(renewed_twice, "and again, beyond its first end")
            store.gate.set()
            await reaches(world, upload, State.STORED)

    assert other.puts == []
    assert store.cancelled == 0


async def test_a_worker_that_lost_its_lease_stops_and_the_next_one_stores_the_upload(world: World) -> None:
    upload = await world.received()
    store = Gated(world.store)

    async with working(world, store, lease=0.6):
        await store.reached.wait()
        await world.end_leases()
        (job,) = await world.jobs("worker-2").claim(1)
        await is_true(lambda: store.cancelled, "the late worker was stopped")
        assert await world.jobs("worker-2").finish_transfers([(job, stored(upload))]) == {job.id}

    assert await world.attempts_of(upload) == [("transfer", 1, "lost"), ("transfer", 2, "succeeded")]


async def test_a_worker_that_cannot_renew_stops_before_its_lease_ends(world: World) -> None:
    """So that whoever comes after it, a removal above all, never meets it."""
    await world.received()
    lease = 5.0
    left_when_stopped = []

    class Watched(Gated):
        async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
            try:
                await super().before(spec, transfer_state)
            except asyncio.CancelledError:
                left_when_stopped.append(
                    await world.value("SELECT extract(epoch FROM due_at - now())::float8 FROM jobs")
                )
                raise

    jobs = Flaky(world, lease_seconds=lease)
    jobs.away = {"renew"}
    store = Watched(world.store)

    async with working(world, store, jobs=jobs, lease=lease):
        await is_true(lambda: left_when_stopped, "the worker has stopped by itself")
        jobs.away = {"claim", "renew"}

    assert 0 < left_when_stopped[0] < lease / 2


async def test_a_worker_takes_no_more_large_uploads_than_it_can_run(world: World) -> None:
    uploads = [await world.completed(length=LARGE_BYTES + 1) for _ in range(6)]
    first, second = Gated(world.store), Gated(world.store)

    async with working(world, first, name="a", concurrency=3, shutdown_timeout=0.01):
        await is_true(lambda: len(first.puts) == 2, "the first worker is full")
        small = await world.received()
        async with working(world, second, name="b", concurrency=3, shutdown_timeout=0.01):
            await is_true(lambda: len(second.puts) >= 2, "the second worker found some as well")
        await is_true(lambda: str(small.id) in first.puts + second.puts, "a small one need not wait")

        waiting = await world.value("SELECT count(*) FROM jobs WHERE state = 'queued'")

    assert waiting == len(uploads) - 4


# --- letting go of the staged copy -----------------------------------------------------------------


async def test_a_copy_that_cannot_be_removed_does_not_fail_the_transfer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await world.received()

    async def refuse(upload_ids: Sequence[UploadId]) -> dict[UploadId, StorageError]:
        return {upload_id: StorageError("The disk is read-only.") for upload_id in upload_ids}

    monkeypatch.setattr(world.staging, "try_remove", refuse)
    async with working(world):
        await reaches(world, upload, State.STORED)
    monkeypatch.undo()

    assert await world.attempts_of(upload) == [("transfer", 1, "succeeded")]
    assert world.staged(upload)
    assert (await world.find(upload)).local_present
    assert await world.cleanup.purgeable(0, 10) == [upload.id]


# --- removing --------------------------------------------------------------------------------------


async def test_a_stored_upload_is_removed_from_the_store_and_from_staging(world: World) -> None:
    upload = await world.received()
    async with working(world, purge=False):
        await reaches(world, upload, State.STORED)
        await world.uploads.remove(upload.id)
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None
    assert not world.staged(upload)


@pytest.mark.parametrize("state", [State.CREATED, State.UPLOADING, State.COMPLETED, State.TRANSFER_FAILED])
async def test_an_upload_that_never_reached_the_store_is_removed(world: World, state: State) -> None:
    upload = await world.force_state(await world.received(), state)
    await world.uploads.remove(upload.id)

    async with working(world):
        await reaches(world, upload, State.REMOVED)

    assert not world.staged(upload)


async def test_an_upload_without_any_file_is_removed(world: World) -> None:
    upload = await world.create()
    await world.uploads.remove(upload.id)

    async with working(world):
        await reaches(world, upload, State.REMOVED)


async def test_a_multipart_upload_that_was_begun_is_aborted(world: World) -> None:
    upload = await world.received()
    (job,) = await world.jobs().claim(1)
    await world.jobs().transfer_state(job).record_multipart("m-1")
    await world.end_leases()
    await world.uploads.remove(upload.id)
    store = OneByOne(world.store)

    async with working(world, store):
        await reaches(world, upload, State.REMOVED)

    assert store.aborted == [(upload.object_key, "m-1")]
    assert await world.sql("SELECT 1 FROM transfer_parts") == []


@pytest.mark.parametrize("error", [TransientStoreError(), PermanentStoreError(), KeyError("bug")])
async def test_a_removal_is_tried_until_it_succeeds(world: World, error: Exception) -> None:
    class Refusing(OneByOne):
        refusals = 5

        async def remove(self, identity: ObjectIdentity) -> bool:
            if self.refusals:
                self.refusals -= 1
                raise error
            return await super().remove(identity)

    upload = await world.received()
    await world.uploads.remove(upload.id)

    async with working(world, Refusing(world.store), max_retries=1):
        # Five tracebacks with all their variables take seconds on a busy machine.
        await reaches(world, upload, State.REMOVED, deadline=5 * SOON)

    outcomes = [outcome for kind, _, outcome in await world.attempts_of(upload) if kind == "remove"]
    assert outcomes == ["retry"] * 5 + ["succeeded"]


async def test_a_locked_object_keeps_its_upload_removing_and_is_tried_every_day(world: World) -> None:
    class Locking(OneByOne):
        locked = True

        async def remove(self, identity: ObjectIdentity) -> bool:
            if self.locked:
                raise ObjectLocked(code="object_locked", until="2030-01-01")
            return await super().remove(identity)

    async def reason() -> str | None:
        return (await world.find(upload)).error

    upload = await world.received()
    store = Locking(world.store)
    async with working(world, store) as runner:
        await reaches(world, upload, State.STORED)
        await world.uploads.remove(upload.id)
        runner.wake()
        await is_true(reason, "it says why")

        found = await world.find(upload)
        assert found.state is State.REMOVING
        assert found.error == f"{ObjectLocked().detail} (object_locked)"
        ((state, code, wait),) = await world.sql(
            "SELECT state, error_code, extract(epoch FROM due_at - now())::float8 FROM jobs WHERE kind = 'remove'"
        )
        assert (state, code) == ("retry_wait", "ERR_OBJECT_LOCKED")
        assert DAY - 600 < wait <= DAY
        store.locked = False
        await world.end_leases()
        runner.wake()
        await reaches(world, upload, State.REMOVED)
    assert await reason() is None
    assert world.object(upload) is None


async def test_a_foreign_file_under_the_key_outlives_the_upload(world: World) -> None:
    """Removed before it was stored, and afterwards."""
    before, after = await world.received(), await world.received()
    (job,) = [job for job in await world.jobs().claim(2) if job.upload.id == after.id]
    await world.jobs().finish_transfers([(job, stored(after))])
    await world.end_leases()
    for upload in (before, after):
        path = world.store.local_path(upload.object_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not theirs")
        await world.uploads.remove(upload.id)

    async with working(world):
        for upload in (before, after):
            await reaches(world, upload, State.REMOVED)

    assert [world.object(upload) for upload in (before, after)] == [b"not theirs", b"not theirs"]


# --- removing while it is being moved --------------------------------------------------------------


async def test_an_upload_on_its_way_is_not_removed_and_a_moment_later_it_is(world: World) -> None:
    upload = await world.received()
    store = Gated(world.store)

    async with working(world, store):
        await store.reached.wait()
        with pytest.raises(TransferInProgress):
            await world.uploads.remove(upload.id)
        store.gate.set()
        await reaches(world, upload, State.STORED)
        await world.uploads.remove(upload.id)
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None


async def test_by_force_the_worker_stops_at_its_next_look_at_the_transfer_state(world: World) -> None:
    upload = await world.received()
    store = Gated(world.store)
    store.records_progress = True

    async with working(world, store):
        await store.reached.wait()
        await world.uploads.remove(upload.id, force=True)
        assert await world.state(upload) is State.REMOVING
        store.gate.set()
        # Its lease would have lasted half a minute: the worker said that it had stopped.
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None
    assert not world.staged(upload)
    assert [outcome for kind, _, outcome in await world.attempts_of(upload) if kind == "transfer"] == ["cancelled"]


async def test_by_force_a_worker_that_hangs_is_stopped_by_its_heartbeat(world: World) -> None:
    upload = await world.received()
    store = Gated(world.store)

    async with working(world, store, lease=3.0):
        await store.reached.wait()
        await world.uploads.remove(upload.id, force=True)
        await reaches(world, upload, State.REMOVED)

    assert store.cancelled == 1
    # Had the removal waited for the end of the lease, the attempt would be a lost one.
    assert [outcome for kind, _, outcome in await world.attempts_of(upload) if kind == "transfer"] == ["cancelled"]
    assert world.object(upload) is None


@pytest.mark.parametrize("made", [False, True], ids=["about to make the object", "made the object"])
async def test_by_force_an_object_that_is_made_all_the_same_is_taken_back(world: World, made: bool) -> None:
    upload = await world.received()
    store = Gated(world.store, made=made)

    async with working(world, store):
        await store.reached.wait()
        await world.uploads.remove(upload.id, force=True)
        store.gate.set()
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None
    assert not world.staged(upload)


async def test_by_force_an_error_ends_the_transfer_for_good(world: World) -> None:
    class LateFailure(Gated):
        async def before(self, spec: ObjectSpec, transfer_state: TransferState) -> None:
            await super().before(spec, transfer_state)
            raise TransientStoreError

    upload = await world.received()
    store = LateFailure(world.store)

    async with working(world, store):
        await store.reached.wait()
        await world.uploads.remove(upload.id, force=True)
        store.gate.set()
        await reaches(world, upload, State.REMOVED)

    assert len(store.puts) == 1


async def test_by_force_the_removal_waits_for_a_worker_that_says_nothing(world: World) -> None:
    upload = await world.received()
    (job,) = await world.jobs("silent").claim(1)
    await world.uploads.remove(upload.id, force=True)

    async with working(world, name="worker-2") as runner:
        other = await world.received()
        await reaches(world, other, State.STORED)  # the worker has looked for work meanwhile
        assert await world.state(upload) is State.REMOVING
        # The silent worker makes the object after all, within its lease, and dies.
        await world.store.put(*put_arguments(world, job))
        await world.end_leases()
        runner.wake()
        await reaches(world, upload, State.REMOVED)

    assert world.object(upload) is None


async def test_a_worker_that_comes_back_after_everything_is_over_takes_its_object_back(world: World) -> None:
    """Stopped for longer than its lease, and its timers with it: what it makes then does not stay."""

    class Frozen(Gated):
        async def put(self, spec: ObjectSpec, segments: object, transfer_state: TransferState) -> StoredObject:
            self.puts.append(spec.upload_id)
            await self._wait(spec, transfer_state)
            path = self.inner.local_path(spec.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"0123456789")
            self.late = path.read_bytes()
            return StoredObject(spec.key, spec.length)

    upload = await world.received()
    store = Frozen(world.store)

    async with working(world, store, name="frozen"):
        await store.reached.wait()
        await world.end_leases()
        await world.uploads.remove(upload.id)
        async with working(world, name="worker-2"):
            await reaches(world, upload, State.REMOVED)
        await world.cleanup.purge_rows(0, 10)
        assert await world.uploads.find(upload.id) is None
        store.gate.set()
        await is_true(lambda: getattr(store, "late", None) == b"0123456789", "the object was made")
        await is_true(lambda: world.object(upload) is None, "and taken back")


async def test_once_the_staged_bytes_are_gone_nobody_makes_the_object_anew(world: World) -> None:
    """The removal takes the staged bytes first, then the object: a late link has nothing to link."""
    order = []

    class Ordered(OneByOne):
        async def remove(self, identity: ObjectIdentity) -> bool:
            order.append((world.staged(upload), world.object(upload) is not None))
            return await super().remove(identity)

    upload = await world.received()
    (job,) = await world.jobs("killed").claim(1)
    await world.store.put(*put_arguments(world, job))
    await world.end_leases()
    await world.uploads.remove(upload.id)

    async with working(world, Ordered(world.store)):
        await reaches(world, upload, State.REMOVED)

    assert order == [(False, True)]
    with pytest.raises(StorageError):
        await world.store.put(*put_arguments(world, job))
    assert world.object(upload) is None


def put_arguments(world: World, job: Job) -> tuple[ObjectSpec, list[Segment], TransferState]:
    """What a worker hands its store for a job."""
    upload = job.upload
    spec = ObjectSpec(str(upload.id), upload.object_key, upload.offset, upload.crc64nvme, "text/plain")
    return spec, [Segment(world.staging.path(upload.id), upload.offset)], world.jobs().transfer_state(job)


# --- finals ----------------------------------------------------------------------------------------


async def test_a_final_is_stored_whole_and_its_parts_stay(world: World) -> None:
    parts = [await world.part(content) for content in (b"hello ", b"world")]
    final = await world.final(parts)

    async with working(world):
        await reaches(world, final, State.STORED)
        await is_true(lambda: local_is(world, final, present=False), "the final has let go of its parts")

    assert world.object(final) == b"hello world"
    assert all(world.staged(part) for part in parts)
    assert [(await world.find(part)).local_present for part in parts] == [True, True]


async def local_is(world: World, upload: Upload, *, present: bool) -> bool:
    return (await world.find(upload)).local_present is present


async def test_two_finals_share_their_parts(world: World) -> None:
    parts = [await world.part(content) for content in (b"ab", b"cd")]
    first, second = await world.final(parts), await world.final(parts[::-1])

    async with working(world):
        await reaches(world, first, State.STORED)
        await reaches(world, second, State.STORED)
        await world.uploads.remove(first.id)
        await reaches(world, first, State.REMOVED)

    assert world.object(first) is None
    assert world.object(second) == b"cdab"
    assert all(world.staged(part) for part in parts)


async def test_a_final_that_failed_is_tried_again_with_its_parts(world: World) -> None:
    final = await world.final([await world.part(b"ab"), await world.part(b"cd")])

    async with working(world, Failing(world.store, PermanentStoreError())):
        await reaches(world, final, State.TRANSFER_FAILED)
        await world.transfers.request(final.id)
        await reaches(world, final, State.STORED)

    assert world.object(final) == b"abcd"


# --- going on where another stopped ----------------------------------------------------------------


async def test_a_successor_sends_only_the_parts_that_are_missing(world: World) -> None:
    class FailingInTheMiddle(InParts):
        async def recorded(self, number: int) -> None:
            if number == 2:
                raise TransientStoreError

    upload = await world.received(b"0123456789abcdef")

    async with working(world, FailingInTheMiddle(world.store)):
        await is_true(lambda: sent(world, upload) == "1 2 ", "two parts are sent")
    async with working(world, InParts(world.store), name="worker-2"):
        await reaches(world, upload, State.STORED)

    assert sent(world, upload) == "1 2 3 4 "
    assert world.object(upload) == b"0123456789abcdef"


def sent(world: World, upload: Upload) -> str:
    path = world.store.local_path("parts") / str(upload.id) / "sent"
    return path.read_text() if path.exists() else ""


def test_soon_is_less_than_a_lease() -> None:
    """Else a test that shows that nobody waits for a lease would show nothing."""
    assert settings().lease > 3 * SOON
