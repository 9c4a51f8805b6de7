"""Transfers in the database: when a transfer is queued, who may ask for one, how it is seen."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from tests.support.world import World, stored
from tusd_py.errors import InvalidTransition, NotReady, PermanentStoreError, UploadNotFound
from tusd_py.protocol.upload import State, Trigger, Upload, UploadId


async def fail_transfer(world: World, upload: Upload) -> None:
    queue = world.jobs()
    (job,) = await queue.claim(1)
    assert job.upload.id == upload.id
    assert await queue.fail(job, PermanentStoreError(code="AccessDenied"), code="ERR_STORE_REFUSED")


# --- what begins a transfer ------------------------------------------------------------------------

QUEUED = [("transfer", "queued")]


@pytest.mark.parametrize("trigger", Trigger)
async def test_the_last_byte_queues_a_transfer_if_that_is_the_trigger(world: World, trigger: Trigger) -> None:
    """The last byte comes with the creation, later, with a final upload or with the last part of one."""
    at_once = await world.completed(trigger=trigger)
    later = await world.advance(await world.create(trigger=trigger), 10)
    part, open_part = await world.part(b"abc", trigger=trigger), await world.part(trigger=trigger)
    final = await world.final([part], trigger=trigger)
    waiting = await world.final([part, open_part], trigger=trigger)
    await world.advance(open_part, 10)

    for upload in (at_once, later, final, waiting):
        found = await world.find(upload)
        assert (found.state, found.trigger, found.committed_at) == (State.COMPLETED, trigger, None)
        assert await world.jobs_of(upload) == (QUEUED if trigger is Trigger.COMPLETE else [])
        assert await world.events_of(upload) == ["upload.created", "upload.completed"]
    assert await world.jobs_of(part) == await world.jobs_of(open_part) == []


@pytest.mark.parametrize("trigger", Trigger)
async def test_a_commit_is_recorded_once_and_queues_what_waited_for_it(world: World, trigger: Trigger) -> None:
    upload = await world.completed(trigger=trigger)

    first = await world.transfers.commit(upload.id)
    again = await asyncio.gather(*(world.transfers.commit(upload.id) for _ in range(3)))

    assert first.committed_at is not None
    assert {other.committed_at for other in again} == {first.committed_at}
    assert await world.jobs_of(upload) == ([] if trigger is Trigger.MANUAL else QUEUED)
    assert (await world.events_of(upload)).count("upload.committed") == 1


async def test_of_many_commits_at_once_one_counts(world: World) -> None:
    upload = await world.completed(trigger=Trigger.COMMIT)

    answers = await asyncio.gather(*(world.transfers.commit(upload.id) for _ in range(8)))

    assert len({answer.committed_at for answer in answers}) == 1
    assert await world.jobs_of(upload) == QUEUED


async def test_a_commit_changes_no_transfer_that_was_asked_for_before(world: World) -> None:
    upload = await world.completed(trigger=Trigger.COMMIT)
    order = await world.transfers.request(upload.id)

    await world.transfers.commit(upload.id)
    (job,) = await world.jobs().claim(9)
    await world.jobs().finish_transfers([(job, stored(upload))])
    committed = await world.transfers.commit(upload.id)

    assert job.id == order.transfer_id
    assert committed.committed_at is not None
    assert await world.jobs_of(upload) == [("transfer", "succeeded")]


@pytest.mark.parametrize("act", ["commit", "request"])
async def test_only_what_is_whole_can_be_committed_or_transferred(world: World, act: str) -> None:
    gone = await world.completed()
    await world.uploads.remove(gone.id)
    created = await world.create(trigger=Trigger.COMMIT)
    refused = {
        created.id: NotReady,
        (await world.advance(await world.create(), 3)).id: NotReady,
        (await world.part(b"abc")).id: InvalidTransition,
        gone.id: UploadNotFound,
        UploadId(uuid.uuid4()): UploadNotFound,
    }

    for upload_id, problem in refused.items():
        with pytest.raises(problem):
            await getattr(world.transfers, act)(upload_id)
    assert (await world.find(created)).committed_at is None


@pytest.mark.parametrize("trigger", [Trigger.COMMIT, Trigger.MANUAL])
async def test_a_transfer_is_queued_once_however_many_ask_for_it(world: World, trigger: Trigger) -> None:
    upload = await world.completed(trigger=trigger)

    orders = await asyncio.gather(*(world.transfers.request(upload.id) for _ in range(8)))

    assert len({order.transfer_id for order in orders}) == 1
    assert [order.queued for order in orders].count(True) == 1
    assert await world.jobs_of(upload) == QUEUED


async def test_commits_requests_and_claims_do_not_wait_for_each_other(world: World) -> None:
    uploads = [await world.completed(trigger=Trigger.COMMIT) for _ in range(20)]

    async def claim() -> int:
        return len(await world.jobs().claim(20))

    async with asyncio.timeout(10):
        await asyncio.gather(
            *(world.transfers.request(upload.id) for upload in uploads),
            *(claim() for _ in range(5)),
            *(world.transfers.commit(upload.id) for upload in uploads),
            *(claim() for _ in range(5)),
        )

    for upload in uploads:
        assert len(await world.jobs_of(upload)) == 1
        assert (await world.find(upload)).committed_at is not None


# --- try again -------------------------------------------------------------------------------------


async def test_a_failed_transfer_is_tried_again_with_all_its_retries(world: World) -> None:
    upload = await world.completed()
    await fail_transfer(world, upload)

    again = await world.transfers.request(upload.id)

    assert (again.upload.state, again.queued) == (State.TRANSFER_FAILED, True)
    columns = "state, attempt, failures, length"
    assert await world.jobs_of(upload, columns) == [("failed", 1, 1, 10), ("queued", 0, 0, 10)]
    (job,) = await world.jobs().claim(1)
    assert (job.attempt, job.failures, job.runnable) == (1, 0, True)
    assert await world.state(upload) is State.TRANSFERRING


async def test_asking_again_while_it_waits_or_runs_changes_nothing(world: World) -> None:
    upload = await world.completed()
    await fail_transfer(world, upload)

    await asyncio.gather(*(world.transfers.request(upload.id) for _ in range(3)))
    await world.jobs().claim(1)
    await world.transfers.request(upload.id)

    assert await world.jobs_of(upload) == [("transfer", "failed"), ("transfer", "running")]


async def test_what_is_stored_is_not_sent_again(world: World) -> None:
    upload = await world.completed()
    (job,) = await world.jobs().claim(1)
    await world.jobs().finish_transfers([(job, stored(upload))])

    order = await world.transfers.request(upload.id)

    assert (order.transfer_id, order.queued, order.upload.state) == (job.id, False, State.STORED)
    assert await world.jobs_of(upload) == [("transfer", "succeeded")]


async def test_what_is_gone_is_not_tried_again(world: World) -> None:
    upload = await world.completed()
    await fail_transfer(world, upload)
    await world.uploads.remove(upload.id)

    for upload_id in (upload.id, UploadId(uuid.uuid4())):
        with pytest.raises(UploadNotFound):
            await world.transfers.request(upload_id)


async def test_old_jobs_are_forgotten_however_often_it_is_tried(world: World) -> None:
    upload = await world.completed()
    for _ in range(15):
        await fail_transfer(world, upload)
        await world.transfers.request(upload.id)

    states = [state for (state,) in await world.jobs_of(upload, "state")]
    assert states == ["failed"] * 10 + ["queued"]
    assert len(await world.attempts_of(upload)) == 10


# --- how a transfer stands -------------------------------------------------------------------------


async def test_people_see_how_the_latest_transfer_stands(world: World) -> None:
    upload = await world.completed()
    queue = world.jobs()
    assert await world.transfers.latest((await world.create()).id) is None

    waiting = await world.transfers.latest(upload.id)
    (job,) = await queue.claim(1)
    await queue.transfer_state(job).progress(6)
    running = await world.transfers.latest(upload.id)
    error = PermanentStoreError(code="AccessDenied", key="secret/path")
    await queue.retry(job, error, code="ERR_STORE_REFUSED", delay_seconds=60)
    failed_once = await world.transfers.latest(upload.id)

    assert waiting is not None
    assert running is not None
    assert failed_once is not None
    assert (waiting.state, waiting.attempts, waiting.next_attempt_at is None) == ("queued", 0, False)
    assert (running.state, running.attempts, running.bytes_done, running.next_attempt_at) == ("running", 1, 6, None)
    assert (failed_once.state, failed_once.failures, failed_once.error_code) == ("retry_wait", 1, "ERR_STORE_REFUSED")
    assert failed_once.next_attempt_at is not None
    assert failed_once.last_error == "The store refused, and a retry cannot help. (AccessDenied)"


async def test_what_people_see_names_no_path_and_operators_see_all(world: World) -> None:
    upload = await world.completed()
    queue = world.jobs()
    (job,) = await queue.claim(1)

    await queue.fail(job, PermanentStoreError(path="/srv/data", reason="nul\0"), code="ERR_STORE_REFUSED")

    view = await world.transfers.latest(upload.id)
    assert view is not None
    assert "/srv" not in f"{view.last_error}{(await world.find(upload)).error}"
    assert "/srv/data" in await world.value("SELECT error FROM job_attempts")


async def test_every_attempt_is_remembered_newest_first(world: World) -> None:
    upload = await world.completed()
    queue = world.jobs()
    (job,) = await queue.claim(1)
    await queue.retry(job, PermanentStoreError(path="/srv"), code="ERR_STORE_REFUSED", delay_seconds=0)
    await queue.claim(1)
    await world.end_leases()
    await queue.claim(1)

    running, lost, failed = await world.transfers.attempts(upload.id, 10)

    assert [(past.number, past.outcome) for past in (running, lost, failed)] == [(3, None), (2, "lost"), (1, "retry")]
    assert (failed.kind, failed.job_id, failed.error_code) == ("transfer", job.id, "ERR_STORE_REFUSED")
    assert "/srv" in (failed.error or "")
    assert failed.finished_at is not None
    assert running.finished_at is None
    assert await world.transfers.attempts(upload.id, 1) == [running]
