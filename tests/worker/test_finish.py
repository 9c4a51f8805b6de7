"""The end of uploads that the application is asked about: the record, and the worker that asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.workers import is_true, make_cleanup, reaches, settings, working
from tests.support.world import DAY, World, new_upload
from tusd_py.config.sections.hooks import HooksConfig
from tusd_py.database.reconcile import ReconcileRecords
from tusd_py.database.uploads import PostgresUploads
from tusd_py.errors import DatabaseUnavailable, HookFailed, HookInvalid, NotReady, OffsetConflict, PartialNotFinished
from tusd_py.metrics import Metrics
from tusd_py.ports import JobKind
from tusd_py.ports.hooks import HookEvent, HookReply, Hooks
from tusd_py.protocol.events import HookKind
from tusd_py.protocol.upload import Concat, State, Upload
from tusd_py.uploads.hooks import BlockingHooks
from tusd_py.worker.outcomes import JITTER, finish_retries, retry_delay
from tusd_py.worker.runner import FINISHES_AT_ONCE

LATER = 3600.0
"""So long the request that brought the last byte has to ask."""


class Application(Hooks):
    """Answers as the test wants, one reply or error after the other; then it agrees."""

    def __init__(self, *answers: HookReply | Exception, before: Callable[[], Any] | None = None) -> None:
        self.asked: list[HookEvent] = []
        self._answers = list(answers)
        self._before = before

    async def ask(self, event: HookEvent) -> HookReply:
        self.asked.append(event)
        if self._before is not None:
            await self._before()
        answer = self._answers.pop(0) if self._answers else HookReply()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass


def asking(application: Hooks, *, events: Sequence[HookKind] = (HookKind.PRE_FINISH,), **config: Any) -> BlockingHooks:
    return BlockingHooks(application, HooksConfig(http="http://127.0.0.1:9/", events=list(events), **config), Metrics())


@pytest.fixture
def asked(world: World) -> World:
    """A world in which no upload completes before the application was asked."""
    return replace(
        world, uploads=PostgresUploads(world.database, world.notifier, max_size=10**6, finish_after_seconds=LATER)
    )


async def finish_job(world: World, upload: Upload) -> tuple[Any, ...]:
    (job,) = await world.jobs_of(upload, "kind, state, due_at > now() + interval '55 minutes' AS later")
    return job


async def make_due(world: World) -> None:
    await world.sql("UPDATE jobs SET due_at = now() WHERE kind = 'finish'")


# --- the record ------------------------------------------------------------------------------------


async def test_the_last_byte_makes_an_upload_finishing(asked: World) -> None:
    upload = await asked.create(length=10, expires_after_seconds=DAY)
    part = await asked.advance(upload, 4, expires_after_seconds=DAY)
    last = await asked.advance(part, 10, expires_after_seconds=DAY)

    assert not part.finishing
    assert (last.finishing, last.state, last.offset, last.complete) == (True, State.UPLOADING, 10, False)
    assert last.expires_at is None, "it would be lost while nobody answers"
    assert await finish_job(asked, upload) == ("finish", "queued", True)
    assert await asked.events_of(upload) == ["upload.created"]


@pytest.mark.parametrize("length", [0, 10])
async def test_an_upload_that_comes_whole_is_finishing(asked: World, length: int) -> None:
    upload = await asked.completed(length=length, expires_after_seconds=DAY)

    assert (upload.finishing, upload.complete, upload.expires_at) == (True, False, None)
    assert upload.state is (State.UPLOADING if length else State.CREATED)
    assert await finish_job(asked, upload) == ("finish", "queued", True)
    assert await asked.events_of(upload) == ["upload.created"]


async def test_what_the_client_does_not_call_complete_is_not_finishing(asked: World) -> None:
    upload = await asked.create(length=10)
    upload = await asked.advance(upload, 10, completes=False)

    assert not upload.finishing
    assert await asked.jobs_of(upload) == []


async def test_a_finishing_upload_takes_no_byte(asked: World) -> None:
    upload = await asked.completed()

    with pytest.raises(OffsetConflict):
        await asked.advance(upload, 10)
    with pytest.raises(NotReady):
        await asked.transfers.commit(upload.id)
    with pytest.raises(NotReady):
        await asked.transfers.request(upload.id)


async def test_completing_is_one_change(asked: World) -> None:
    upload = await asked.completed()

    completed = await asked.uploads.complete(upload.id)

    assert completed is not None
    assert (completed.state, completed.finishing, completed.complete) == (State.COMPLETED, False, True)
    assert completed.completed_at is not None
    assert await asked.jobs_of(upload) == [("finish", "succeeded"), ("transfer", "queued")]
    assert await asked.events_of(upload) == ["upload.created", "upload.completed"]


async def test_completing_twice_at_once_counts_once(asked: World) -> None:
    upload = await asked.completed()

    results = await asyncio.gather(*(asked.uploads.complete(upload.id) for _ in range(8)))

    assert len([each for each in results if each is not None]) == 1
    assert await asked.events_of(upload) == ["upload.created", "upload.completed"]
    assert await asked.jobs_of(upload) == [("finish", "succeeded"), ("transfer", "queued")]


async def test_completing_what_a_worker_asks_about_ends_its_job(asked: World) -> None:
    upload = await asked.completed()
    await make_due(asked)
    (job,) = await asked.jobs().claim(1, finish=1)
    assert (job.kind, job.runnable, job.upload.finishing) == (JobKind.FINISH, True, True)

    assert await asked.uploads.complete(upload.id) is not None

    assert await asked.jobs().renew([job]) == set()
    assert await asked.attempts_of(upload) == [("finish", 1, "succeeded")]


async def test_removing_ends_the_finish_job(asked: World) -> None:
    upload = await asked.completed()

    await asked.uploads.remove(upload.id)

    assert await asked.uploads.complete(upload.id) is None
    assert await asked.jobs_of(upload) == [("finish", "cancelled"), ("remove", "queued")]
    assert await asked.events_of(upload) == ["upload.created", "upload.terminated"]


async def test_a_removed_upload_is_not_completed_by_the_worker_that_asks(asked: World) -> None:
    upload = await asked.received()
    await make_due(asked)

    async def remove() -> None:
        await asked.uploads.remove(upload.id)

    async with working(asked, hooks=asking(Application(before=remove))):
        await reaches(asked, upload, State.REMOVED)

    assert "upload.completed" not in await asked.events_of(upload)
    assert (await asked.jobs_of(upload))[0] == ("finish", "cancelled")


async def test_a_finishing_upload_does_not_expire(asked: World) -> None:
    whole, part = await asked.completed(), await asked.part(b"abc", expires_after_seconds=DAY)
    assert part.expires_at is not None
    await asked.run_out_of_time(whole, part)

    assert await asked.cleanup.overdue(10) == []
    assert not await asked.cleanup.expire(part.id)
    found = await asked.find(part)
    assert found.expires_at is not None
    assert not found.gone(found.expires_at)


async def test_a_partial_upload_may_be_used_after_a_long_wait_as_long_as_ever(asked: World) -> None:
    part = await asked.part(b"abc", expires_after_seconds=DAY)
    await asked.sql(
        "UPDATE uploads SET expires_at = expires_at - interval '3 days', updated_at = updated_at - interval '3 days'"
    )

    completed = await asked.uploads.complete(part.id)

    assert completed is not None
    assert completed.expires_at is not None
    assert (completed.expires_at - completed.updated_at).total_seconds() == DAY
    assert await asked.events_of(part) == ["upload.created", "upload.part_completed"]


async def test_a_final_waits_for_its_partial_uploads_to_be_complete(asked: World) -> None:
    first, second = await asked.part(b"abc"), await asked.part(b"de")
    final = await asked.final([first, second])
    await asked.uploads.complete(first.id)
    assert (await asked.find(final)).finishing is False

    await asked.uploads.complete(second.id)

    found = await asked.find(final)
    assert (found.finishing, found.offset, found.length) == (True, 5, 5)
    assert await finish_job(asked, final) == ("finish", "queued", False)
    assert await asked.uploads.complete(final.id) is not None
    assert await asked.events_of(final) == ["upload.created", "upload.completed"]


async def test_a_final_over_complete_partials_is_finishing_from_the_start(asked: World) -> None:
    parts = [await asked.part(b"abc"), await asked.part(b"de")]
    for part in parts:
        await asked.uploads.complete(part.id)

    final = await asked.final(parts)

    assert (final.finishing, final.offset, final.complete) == (True, 5, False)
    assert await finish_job(asked, final) == ("finish", "queued", True)


async def test_a_final_over_finishing_partials_is_refused_where_it_must_not_wait(asked: World) -> None:
    part = await asked.part(b"abc")

    with pytest.raises(PartialNotFinished):
        new = new_upload(concat=Concat.FINAL, length=None)
        await asked.uploads.create_final(new, [asked.tokens[part.id]], allow_unfinished=False)


async def test_a_lost_finish_job_is_queued_again(asked: World) -> None:
    upload = await asked.completed()
    await asked.sql("DELETE FROM jobs")
    await asked.sql("UPDATE uploads SET updated_at = now() - interval '1 hour'")

    assert await asked.cleanup.requeue_orphaned(10) == 1

    assert await asked.jobs_of(upload) == [("finish", "queued")]
    assert await asked.cleanup.requeue_orphaned(10) == 0


async def test_reconciliation_queues_a_lost_finish_job(asked: World) -> None:
    upload = await asked.completed()
    await asked.sql("DELETE FROM jobs")
    records = ReconcileRecords(asked.database, asked.notifier, directory=asked.staging.identity)
    (row,) = await records.by_id([upload.id])
    assert (row.jobless, row.busy) == ("finish", False)

    assert await records.queue_job(row)

    assert await asked.jobs_of(upload) == [("finish", "queued")]
    (row,) = await records.by_id([upload.id])
    assert (row.jobless, row.busy) == (None, True)


async def test_finish_jobs_are_claimed_while_the_store_is_away(asked: World) -> None:
    upload, other = await asked.completed(), await asked.completed()
    await asked.uploads.complete(other.id)
    await make_due(asked)
    await asked.sql(
        "INSERT INTO store_outages (staging_id, since, probe_at, probes, blocked, error, error_code)"
        " VALUES ($1, now(), now() + interval '1 hour', 1, false, 'away', 'away')",
        upload.staging_id,
    )

    assert (await asked.jobs().next_due_seconds() or 0) <= 0
    assert await asked.jobs().next_due_seconds(finish=False) is None
    assert [job.upload.id for job in await asked.jobs().claim(10, finish=10)] == [upload.id]


# --- the worker ------------------------------------------------------------------------------------


async def test_a_worker_asks_and_completes(asked: World) -> None:
    upload = await asked.received(b"0123456789", metadata="filename YS50eHQ=")
    application = Application()
    await make_due(asked)

    async with working(asked, hooks=asking(application)):
        await reaches(asked, upload, State.STORED)

    (event,) = application.asked
    assert (event.kind, event.upload.id, event.upload.size, event.upload.offset) == (
        HookKind.PRE_FINISH, str(upload.id), 10, 10,
    )  # fmt: skip
    assert event.upload.metadata == {"filename": "a.txt"}
    assert event.upload.storage == {"Type": "filestore", "Path": str(asked.staging.path(upload.id))}
    assert event.request.method == ""
    assert await asked.events_of(upload) == [
        "upload.created", "upload.completed", "upload.transferring", "upload.stored",
    ]  # fmt: skip
    assert asked.object(upload) == b"0123456789"


async def test_a_final_is_asked_about_with_its_partial_uploads(asked: World) -> None:
    parts = [await asked.part(b"abc"), await asked.part(b"de")]
    final = await asked.final(parts)
    application = Application()
    await make_due(asked)

    async with working(asked, hooks=asking(application)):
        await reaches(asked, final, State.STORED)

    assert asked.object(final) == b"abcde"
    by_id = {event.upload.id: event.upload for event in application.asked}
    assert len(application.asked) == 3
    assert by_id[str(final.id)].partial_uploads == [str(part.id) for part in parts]
    assert by_id[str(final.id)].is_final
    assert by_id[str(parts[0].id)].is_partial


async def test_a_failing_hook_is_asked_until_it_answers(asked: World) -> None:
    """More often than a transfer is tried, and also after replies that are nonsense."""
    upload = await asked.received()
    failures = [HookFailed(status=500), HookInvalid("The reply is not JSON.")] * 4
    application = Application(*failures)
    await make_due(asked)

    async with working(asked, hooks=asking(application), max_retries=1):
        await reaches(asked, upload, State.STORED)

    assert len(application.asked) == len(failures) + 1
    assert (await asked.events_of(upload)).count("upload.completed") == 1
    outcomes = [outcome for kind, _, outcome in await asked.attempts_of(upload) if kind == "finish"]
    assert outcomes == ["retry"] * len(failures) + ["succeeded"]


def test_the_application_is_asked_again_soon_however_patient_transfers_are() -> None:
    retries = finish_retries(settings(retry_delay=3000.0, retry_backoff=2.0, retry_max_delay=3600.0))
    waits = [retry_delay(retries, failures) for failures in range(1, 20)]

    assert 1 - JITTER <= waits[0] <= 1 + JITTER
    assert waits[1] > waits[0]
    assert all(60 * (1 - JITTER) <= wait <= 60 * (1 + JITTER) for wait in waits[7:])


async def test_an_answer_in_spite_of_a_failure_counts_where_that_is_allowed(asked: World) -> None:
    upload = await asked.received()
    application = Application(HookFailed(status=500))
    await make_due(asked)

    async with working(asked, hooks=asking(application, on_error="allow")):
        await reaches(asked, upload, State.STORED)

    assert len(application.asked) == 1


async def test_hooks_that_were_switched_off_are_not_waited_for(asked: World) -> None:
    without, other = await asked.received(), await asked.received()
    await make_due(asked)
    application = Application()

    async with working(asked):
        await reaches(asked, without, State.STORED)
        await reaches(asked, other, State.STORED)
    late = await asked.received()
    await make_due(asked)
    async with working(asked, hooks=asking(application, events=[HookKind.PRE_CREATE])):
        await reaches(asked, late, State.STORED)

    assert application.asked == []


async def test_a_database_that_is_away_after_the_answer_has_the_hook_asked_again(
    asked: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await asked.received()
    application = Application()
    complete, away = asked.uploads.complete, [True]

    async def interrupted(upload_id: Any) -> Upload | None:
        if away:
            away.pop()
            raise DatabaseUnavailable
        return await complete(upload_id)

    monkeypatch.setattr(asked.uploads, "complete", interrupted)
    await make_due(asked)
    async with working(asked, hooks=asking(application)):
        await reaches(asked, upload, State.STORED)

    assert len(application.asked) == 2
    assert (await asked.events_of(upload)).count("upload.completed") == 1


async def test_slow_answers_stop_no_transfer(asked: World) -> None:
    waiting = [await asked.received() for _ in range(FINISHES_AT_ONCE + 4)]
    answered = asyncio.Event()
    application = Application(before=answered.wait)
    await make_due(asked)

    async with working(asked, hooks=asking(application), concurrency=1):
        await is_true(lambda: len(application.asked) == FINISHES_AT_ONCE, "as many are asked about as may be")
        ready = await asked.received()
        await asked.uploads.complete(ready.id)
        await reaches(asked, ready, State.STORED)
        assert len(application.asked) == FINISHES_AT_ONCE
        answered.set()
        for upload in waiting:
            await reaches(asked, upload, State.STORED)


async def test_cleanup_leaves_a_finishing_upload_alone(asked: World) -> None:
    upload = await asked.received()
    await asked.sql("UPDATE uploads SET created_at = now() - interval '1 year', updated_at = now() - interval '1 year'")

    await make_cleanup(asked).once()

    assert (await asked.find(upload)).finishing
    assert asked.staged(upload)
    assert await asked.jobs_of(upload) == [("finish", "queued")]
