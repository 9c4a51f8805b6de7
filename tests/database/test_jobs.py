"""The contract of `JobQueue` and its transfer state: claims, leases, fences, retries, history."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from tests.support.world import THERE, World, stored
from tusd_py.database.job_results import KEPT_ATTEMPTS
from tusd_py.errors import TransferCancelled, TransientStoreError
from tusd_py.ports import LARGE_BYTES, Digests, Job, PartRecord
from tusd_py.protocol.upload import Concat, State, UploadId

ERROR = TransientStoreError("The store is away.", reason="refused")


async def claimed(world: World, **changes: object) -> Job:
    await world.completed(**changes)
    (job,) = await world.jobs().claim(1)
    return job


async def taken_over(world: World) -> tuple[Job, Job]:
    """A job whose worker fell silent, and the same job in the hands of the next one."""
    late = await claimed(world)
    await world.end_leases()
    (job,) = await world.jobs("worker-2").claim(1)
    return late, job


async def overdue(world: World) -> bool:
    seconds = await world.jobs().next_due_seconds()
    return seconds is not None and seconds <= 0


# --- claim -----------------------------------------------------------------------------------------


async def test_a_claim_moves_the_upload_and_counts_the_attempt(world: World) -> None:
    upload = await world.completed()

    (job,) = await world.jobs().claim(10)

    assert (job.kind, job.attempt, job.failures, job.runnable) == ("transfer", 1, 0, True)
    assert job.upload.id == upload.id
    assert job.multipart_id is None
    assert await world.state(upload) is State.TRANSFERRING
    assert await world.jobs_of(upload, "state, worker") == [("running", "worker-1")]
    assert await world.jobs().claim(10) == []


async def test_many_workers_get_each_job_once(world: World) -> None:
    uploads = [await world.completed() for _ in range(60)]

    claims = await asyncio.gather(*(world.jobs(f"worker-{number}").claim(7) for number in range(12)))

    counted = Counter(job.upload.id for jobs in claims for job in jobs)
    assert counted == {upload.id: 1 for upload in uploads}
    assert max(len(jobs) for jobs in claims) == 7


async def test_what_is_due_longest_comes_first(world: World) -> None:
    uploads = [await world.completed() for _ in range(3)]

    order = [(await world.jobs().claim(1))[0].upload.id for _ in range(3)]

    assert order == [upload.id for upload in uploads]


async def test_a_worker_claims_for_its_own_directory_only(world: World) -> None:
    here, there = await world.completed(), await world.completed(staging_id=THERE)

    assert [job.upload.id for job in await world.jobs().claim(10)] == [here.id]
    assert [job.upload.id for job in await world.jobs("w", staging_id=THERE).claim(10)] == [there.id]


async def test_large_uploads_are_counted_apart(world: World) -> None:
    large = [await world.completed(length=LARGE_BYTES + 1) for _ in range(3)]
    small = [await world.completed(length=LARGE_BYTES) for _ in range(3)]
    queue = world.jobs()

    first = {job.upload.id for job in await queue.claim(2, large=1)}
    none_large = {job.upload.id for job in await queue.claim(5, large=0)}

    assert first == {large[0].id, small[0].id, small[1].id}
    assert none_large == {small[2].id}
    assert await queue.next_due_seconds(large=False) is not None  # the leases of what runs
    assert await overdue(world)
    assert {job.upload.id for job in await queue.claim(5)} == {upload.id for upload in large[1:]}


async def test_a_job_whose_upload_has_moved_on_is_not_runnable(world: World) -> None:
    upload = await world.completed()
    await world.force_state(upload, State.STORED)

    (job,) = await world.jobs().claim(1)
    await world.jobs().discard(job)

    assert not job.runnable
    assert await world.state(upload) is State.STORED
    assert await world.jobs_of(upload) == [("transfer", "cancelled")]


async def test_a_failed_transfer_that_is_queued_again_may_run(world: World) -> None:
    job = await claimed(world)
    await world.jobs().fail(job, ERROR, code="ERR")
    await world.transfers.request(job.upload.id)

    (again,) = await world.jobs().claim(1)

    assert again.runnable
    assert again.upload.id == job.upload.id


async def test_the_claim_tells_the_multipart_upload_that_was_begun(world: World) -> None:
    job = await claimed(world)
    await world.jobs().transfer_state(job).record_multipart("m-1")
    await world.end_leases()

    (again,) = await world.jobs("worker-2").claim(1)

    assert again.multipart_id == "m-1"


# --- leases ----------------------------------------------------------------------------------------


async def test_a_silent_workers_job_goes_to_the_next_and_uses_up_no_retry(world: World) -> None:
    late, job = await taken_over(world)

    assert (job.id, job.attempt, job.failures, job.runnable) == (late.id, 2, 0, True)
    assert await world.attempts_of(job.upload) == [("transfer", 1, "lost")]


async def test_a_lease_holds_as_long_as_it_is_renewed(world: World) -> None:
    job = await claimed(world)
    await world.sql("UPDATE jobs SET due_at = now() + interval '1 millisecond'")

    assert await world.jobs().renew([job]) == {job.id}

    seconds = await world.value("SELECT extract(epoch FROM due_at - now())::float8 FROM jobs")
    assert 25 < seconds <= 30
    assert await world.jobs("worker-2").claim(1) == []


async def test_the_jobs_of_a_dead_worker_are_released_and_nobody_elses(world: World) -> None:
    dead, alive, own, held = [
        (await world.completed(), await world.jobs(name).claim(1)) for name in ("dead", "alive", "own", "own")
    ]
    elsewhere = await world.completed(staging_id=THERE)
    await world.jobs("dead", staging_id=THERE).claim(1)

    released = await world.jobs("own").release_lost(["dead", "long dead"], held=[job.id for job in held[1]])

    assert released == 2
    assert dict(await leases_that_end_soon(world)) == {
        dead[0].id: True, alive[0].id: False, own[0].id: True, held[0].id: False, elsewhere.id: False,
    }  # fmt: skip
    await world.end_leases()
    (again, *_) = await world.jobs("next").claim(1)
    assert (again.lost, again.attempt, again.failures) == (True, 2, 0)


async def leases_that_end_soon(world: World) -> list[tuple[UploadId, bool]]:
    rows = await world.sql("SELECT upload_id, due_at < now() + interval '5 seconds' AS soon FROM jobs")
    return [(row["upload_id"], row["soon"]) for row in rows]


async def test_a_removal_that_waits_for_a_dead_worker_is_released_with_it(world: World) -> None:
    upload = await world.completed()
    await world.jobs("dead").claim(1)
    await world.uploads.remove(upload.id, force=True)

    await world.jobs("own").release_lost(["dead"], held=[])

    assert [soon for _, soon in await leases_that_end_soon(world)] == [True, True]


async def test_a_job_that_goes_on_killing_its_workers_waits_for_its_lease(world: World) -> None:
    await world.completed()
    released, attempts = [], []
    for number in range(5):
        (job,) = await world.jobs(f"dead-{number}").claim(1)
        attempts.append(job.attempt)
        released.append(await world.jobs("own").release_lost([f"dead-{number}"], held=[]))
        await world.end_leases()

    assert attempts == [1, 2, 3, 4, 5]
    assert released == [1, 1, 1, 0, 0]


async def test_only_the_holder_renews(world: World) -> None:
    late, job = await taken_over(world)

    assert await world.jobs().renew([late]) == set()
    assert await world.jobs("worker-2").renew([late]) == set()
    assert await world.jobs("worker-2").renew([job]) == {job.id}


async def test_a_late_worker_changes_nothing(world: World) -> None:
    late, job = await taken_over(world)
    queue = world.jobs()
    transfer_state = queue.transfer_state(late)

    assert await queue.finish_transfers([(late, stored(late.upload))]) == set()
    assert not await queue.retry(late, ERROR, code="ERR", delay_seconds=0)
    assert not await queue.fail(late, ERROR, code="ERR")
    await queue.discard(late)
    await queue.release([late])
    await queue.finish_removals([late])
    for call in (
        transfer_state.multipart_id(), transfer_state.record_multipart("m"), transfer_state.parts(),
        transfer_state.progress(1),
        transfer_state.record_part(PartRecord(1, 5, "etag")),
    ):  # fmt: skip
        with pytest.raises(TransferCancelled):
            await call

    assert await world.state(job.upload) is State.TRANSFERRING
    assert await world.jobs_of(job.upload, "state, worker, attempt") == [("running", "worker-2", 2)]
    assert await world.jobs("worker-2").renew([job]) == {job.id}
    assert await world.sql("SELECT 1 FROM transfer_parts") == []


async def test_the_same_worker_by_name_is_fenced_by_its_attempt(world: World) -> None:
    """In a container every process is number 1, before and after a restart."""
    late = await claimed(world)
    await world.end_leases()
    (job,) = await world.jobs().claim(1)

    assert await world.jobs().finish_transfers([(late, stored(late.upload))]) == set()
    assert await world.jobs().finish_transfers([(job, stored(job.upload))]) == {job.id}


async def test_a_lease_that_is_let_go_ends_in_a_moment_and_counts_as_no_failure(world: World) -> None:
    job = await claimed(world)
    before = await world.value("SELECT now()")

    await world.jobs().release([job])

    assert await world.value("SELECT due_at > $1 AND due_at <= now() + interval '1 second' FROM jobs", before)
    await world.end_leases()
    (again,) = await world.jobs("worker-2").claim(1)
    assert (again.attempt, again.failures) == (2, 0)


async def test_a_lease_that_is_let_go_is_not_made_longer(world: World) -> None:
    job = await claimed(world)
    await world.end_leases()

    await world.jobs().release([job])

    assert await overdue(world)


async def test_the_clock_of_a_worker_plays_no_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    true_time = time.time
    for skew in (-86400, 86400):
        monkeypatch.setattr(time, "time", lambda skew=skew: true_time() + skew)
        job = await claimed(world)
        assert await world.jobs("worker-2").claim(1) == []
        assert await world.jobs().renew([job]) == {job.id}
        assert 25 < await world.value("SELECT extract(epoch FROM due_at - now())::float8 FROM jobs") <= 30
        assert await world.jobs().finish_transfers([(job, stored(job.upload))]) == {job.id}
        await world.sql("DELETE FROM jobs")


async def test_leases_are_renewed_while_others_are_recorded(world: World) -> None:
    """Each locks its jobs in the same order, so that they never wait for each other in a circle."""
    for _ in range(40):
        await world.completed()
    queue = world.jobs()
    jobs = await queue.claim(40)

    async def renew() -> None:
        for _ in range(10):
            await queue.renew(jobs)
            await queue.renew(jobs[::-1])

    async def finish(some: list[Job]) -> set[int]:
        return await queue.finish_transfers([(job, stored(job.upload)) for job in some])

    recorded, *_ = await asyncio.gather(finish(jobs[:30][::-1]), renew(), renew(), finish(jobs[10:]))

    assert await world.value("SELECT count(*) FROM uploads WHERE state = 'stored'") == 40
    assert recorded <= {job.id for job in jobs}


# --- outcomes --------------------------------------------------------------------------------------


async def test_a_stored_upload_is_recorded_with_job_history_and_event(world: World) -> None:
    job = await claimed(world)
    transfer_state = world.jobs().transfer_state(job)
    await transfer_state.record_multipart("m-1")
    await transfer_state.record_part(PartRecord(1, 10, "etag"))

    outcome = stored(job.upload, etag="e-1", version_id="v-1", digests=Digests(b"s" * 32, b"m" * 16))
    done = await world.jobs().finish_transfers([(job, outcome)])

    assert done == {job.id}
    upload = await world.find(job.upload)
    assert (upload.state, upload.remote_present, upload.local_present) == (State.STORED, True, True)
    assert (upload.etag, upload.error) == ("e-1", None)
    assert (upload.sha256, upload.md5) == (b"s" * 32, b"m" * 16)
    assert upload.stored_at is not None
    assert await world.jobs_of(upload, "state, bytes_done") == [("succeeded", 10)]
    assert await world.attempts_of(upload) == [("transfer", 1, "succeeded")]
    assert await world.events_of(upload) == [
        "upload.created",
        "upload.completed",
        "upload.transferring",
        "upload.stored",
    ]
    assert await world.sql("SELECT 1 FROM transfer_parts") == []
    assert await world.value("SELECT multipart_id FROM uploads") is None


async def test_many_are_recorded_at_once_and_only_ours(world: World) -> None:
    late, _ = await taken_over(world)
    for _ in range(5):
        await world.completed()
    jobs = await world.jobs().claim(5)

    done = await world.jobs().finish_transfers([(job, stored(job.upload)) for job in [*jobs, late]])

    assert done == {job.id for job in jobs}


async def test_a_record_counts_once(world: World) -> None:
    job = await claimed(world)
    queue = world.jobs()

    first = await queue.finish_transfers([(job, stored(job.upload))])
    second = await queue.finish_transfers([(job, stored(job.upload))])

    assert (first, second) == ({job.id}, set())
    assert await world.events_of(job.upload) == [
        "upload.created",
        "upload.completed",
        "upload.transferring",
        "upload.stored",
    ]


async def test_a_retry_waits_and_counts(world: World) -> None:
    job = await claimed(world)

    assert await world.jobs().retry(job, ERROR, code="ERR_STORE_UNAVAILABLE", delay_seconds=60)

    assert await world.jobs().claim(1) == []
    seconds = await world.jobs().next_due_seconds()
    assert seconds is not None
    assert 55 < seconds <= 60
    assert await world.state(job.upload) is State.TRANSFERRING
    assert await world.jobs_of(job.upload, "state, failures, last_error, error_code") == [
        ("retry_wait", 1, "The store is away.", "ERR_STORE_UNAVAILABLE")
    ]
    assert await world.value("SELECT error FROM job_attempts") == (
        "TransientStoreError: The store is away. (reason='refused')"
    )
    await world.end_leases()
    (again,) = await world.jobs().claim(1)
    assert (again.attempt, again.failures) == (2, 1)


async def test_a_job_given_up_fails_its_upload_and_keeps_its_bytes(world: World) -> None:
    job = await claimed(world)

    assert await world.jobs().fail(job, ERROR, code="ERR_STORE_UNAVAILABLE")

    upload = await world.find(job.upload)
    assert (upload.state, upload.local_present, upload.error) == (State.TRANSFER_FAILED, True, "The store is away.")
    assert await world.jobs_of(upload) == [("transfer", "failed")]
    assert await world.attempts_of(upload) == [("transfer", 1, "failed")]
    assert await world.events_of(upload) == [
        "upload.created",
        "upload.completed",
        "upload.transferring",
        "upload.transfer_failed",
    ]
    assert await world.jobs().next_due_seconds() is None


async def test_a_bug_is_told_to_nobody_but_operators(world: World) -> None:
    job = await claimed(world)

    await world.jobs().retry(job, RuntimeError("/etc/secret"), code="ERR_INTERNAL", delay_seconds=1)

    assert await world.value("SELECT last_error FROM jobs") == "The server could not do this."
    assert await world.value("SELECT error FROM job_attempts") == "RuntimeError: /etc/secret"


async def test_a_removal_leaves_a_tombstone(world: World) -> None:
    upload = await world.completed()
    await world.uploads.remove(upload.id)
    (job,) = await world.jobs().claim(1)

    await world.jobs().finish_removals([job])

    found = await world.find(upload)
    assert (found.state, found.local_present, found.remote_present) == (State.REMOVED, False, False)
    assert await world.jobs_of(upload) == [("transfer", "cancelled"), ("remove", "succeeded")]
    assert await world.events_of(upload) == [
        "upload.created",
        "upload.completed",
        "upload.terminated",
        "upload.removed",
    ]


async def test_what_expired_stays_expired_once_its_bytes_are_gone(world: World) -> None:
    upload = await world.create()
    await world.run_out_of_time(upload)
    await world.cleanup.expire(upload.id)
    (job,) = await world.jobs().claim(1)

    assert job.runnable
    await world.jobs().finish_removals([job])

    assert await world.state(upload) is State.EXPIRED
    assert not (await world.find(upload)).local_present


async def test_the_history_of_a_job_that_never_ends_is_bounded(world: World) -> None:
    job = await claimed(world)
    await world.sql("UPDATE jobs SET attempt = 500")
    await world.sql(
        "INSERT INTO job_attempts (job_id, attempt, worker, outcome, started_at)"
        " SELECT $1, n, 'w', 'retry', now() FROM generate_series(1, 499) AS n", job.id
    )  # fmt: skip

    await world.end_leases()
    (job,) = await world.jobs().claim(1)
    after_a_loss = await world.value("SELECT count(*) FROM job_attempts")
    await world.jobs().retry(job, ERROR, code="ERR", delay_seconds=0)

    assert after_a_loss == KEPT_ATTEMPTS
    assert await world.value("SELECT count(*) FROM job_attempts") == KEPT_ATTEMPTS
    assert await world.value("SELECT max(attempt) FROM job_attempts") == 501


# --- the transfer state ------------------------------------------------------------------------------------


async def test_the_ledger_remembers_for_the_next_worker(world: World) -> None:
    job = await claimed(world)
    transfer_state = world.jobs().transfer_state(job)
    parts = [PartRecord(2, 5, "b", 2**64 - 1), PartRecord(1, 5, "a", None)]

    await transfer_state.record_multipart("m-1")
    for part in parts:
        await transfer_state.record_part(part)
    await world.end_leases()
    (again,) = await world.jobs("worker-2").claim(1)
    successor = world.jobs("worker-2").transfer_state(again)

    assert await successor.multipart_id() == "m-1"
    assert await successor.parts() == [parts[1], parts[0]]


async def test_an_empty_ledger_says_so(world: World) -> None:
    transfer_state = world.jobs().transfer_state(await claimed(world))

    assert await transfer_state.multipart_id() is None
    assert await transfer_state.parts() == []


async def test_a_part_that_is_recorded_again_replaces_itself(world: World) -> None:
    transfer_state = world.jobs().transfer_state(await claimed(world))
    await transfer_state.record_part(PartRecord(1, 5, "old"))

    await transfer_state.record_part(PartRecord(1, 6, "new"))

    assert await transfer_state.parts() == [PartRecord(1, 6, "new")]


@pytest.mark.parametrize("multipart_id", [None, "m-2"])
async def test_another_multipart_upload_makes_its_parts_meaningless(world: World, multipart_id: str | None) -> None:
    transfer_state = world.jobs().transfer_state(await claimed(world))
    await transfer_state.record_multipart("m-1")
    await transfer_state.record_part(PartRecord(1, 5, "etag"))

    await transfer_state.record_multipart(multipart_id)

    assert await transfer_state.multipart_id() == multipart_id
    assert await transfer_state.parts() == []


async def test_progress_is_throttled_but_for_the_last_byte(world: World) -> None:
    transfer_state = world.jobs().transfer_state(await claimed(world, length=10))

    await transfer_state.progress(3)
    await transfer_state.progress(6)
    throttled = await world.value("SELECT bytes_done FROM jobs")
    await transfer_state.progress(10)

    assert throttled == 3
    assert await world.value("SELECT bytes_done FROM jobs") == 10


async def test_a_worker_that_was_told_to_stop_hears_of_it_before_the_object_is_published(world: World) -> None:
    """Stores ask with the last byte, however short a time ago they asked before."""
    job = await claimed(world, length=10)
    transfer_state = world.jobs().transfer_state(job)
    await transfer_state.progress(3)
    await world.uploads.remove(job.upload.id, force=True)

    with pytest.raises(TransferCancelled):
        await transfer_state.progress(10)


async def test_a_record_waits_for_a_claim_that_is_being_made(world: World) -> None:
    """Otherwise the late worker's multipart upload would take the place of its successor's."""
    job = await claimed(world)
    transfer_state = world.jobs().transfer_state(job)

    async with world.database.transaction() as connection:
        await connection.execute("UPDATE jobs SET attempt = attempt + 1, worker = 'worker-2'")
        late = asyncio.create_task(transfer_state.record_multipart("late"))
        await world_waits_for_a_lock(world)
        await connection.execute("UPDATE uploads SET multipart_id = 'successor'")

    with pytest.raises(TransferCancelled):
        await late
    assert await world.value("SELECT multipart_id FROM uploads") == "successor"


async def world_waits_for_a_lock(world: World) -> None:
    async with asyncio.timeout(30):
        while not await world.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)


# --- when to look again ----------------------------------------------------------------------------


async def test_nothing_is_due_where_there_is_nothing(world: World) -> None:
    assert await world.jobs().next_due_seconds() is None
    await world.completed(staging_id=THERE)
    await world.completed(concat=Concat.PARTIAL)
    assert await world.jobs().next_due_seconds() is None


async def test_what_runs_is_due_when_its_lease_ends(world: World) -> None:
    job = await claimed(world)

    seconds = await world.jobs().next_due_seconds()

    assert seconds is not None
    assert 25 < seconds <= 30
    await world.jobs().finish_transfers([(job, stored(job.upload))])
    assert await world.jobs().next_due_seconds() is None
