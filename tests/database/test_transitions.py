"""The table of moves and what the statements do are one and the same: every event in every state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import pytest

from tests.database.test_statements import statements
from tests.support.world import HERE, World, stored
from tusd_py.database.reconcile import ReconcileRecords
from tusd_py.errors import HookInvalid, PermanentStoreError, StateConflict
from tusd_py.ports import Job, JobKind
from tusd_py.protocol.upload import TRANSITIONS, Concat, Event, State, Upload

WORKER = "worker-1"
Act = Callable[[World, dict[State, Upload]], Awaitable[None]]


async def append(world: World, uploads: dict[State, Upload]) -> None:
    for upload in uploads.values():
        assert upload.length is not None
        with suppress(StateConflict):
            await world.advance(upload, min(upload.offset + 2, upload.length))


async def complete(world: World, uploads: dict[State, Upload]) -> None:
    for upload in uploads.values():
        assert upload.length is not None
        with suppress(StateConflict):
            await world.advance(upload, upload.length)


async def claim(world: World, uploads: dict[State, Upload]) -> None:
    await put_jobs(world, uploads, "transfer", "queued")
    jobs = await world.jobs(WORKER).claim(100)
    assert len(jobs) == len(uploads)
    assert {job.upload.state for job in jobs if job.runnable} == {
        state for state, moves in TRANSITIONS.items() if Event.TRANSFER in moves
    }


async def store(world: World, uploads: dict[State, Upload]) -> None:
    jobs = await running(world, uploads, JobKind.TRANSFER)
    recorded = await world.jobs(WORKER).finish_transfers([(job, stored(job.upload)) for job in jobs])
    assert recorded == {job.id for job in jobs if Event.STORE in TRANSITIONS[job.upload.state]}


async def give_up(world: World, uploads: dict[State, Upload]) -> None:
    for job in await running(world, uploads, JobKind.TRANSFER):
        assert await world.jobs(WORKER).fail(job, PermanentStoreError(), code="ERR_STORE_REFUSED")


async def lose(world: World, uploads: dict[State, Upload]) -> None:
    records = ReconcileRecords(world.database, world.notifier, directory=world.staging.identity)
    for row in await records.by_id([upload.id for upload in uploads.values()]):
        lost = await records.requeue_lost(row, "The stored file is missing.")
        assert lost is (Event.LOSE in TRANSITIONS[row.state])


async def expire(world: World, uploads: dict[State, Upload]) -> None:
    await world.run_out_of_time(*uploads.values())
    due = {upload.id for upload in await world.cleanup.overdue(100)}
    for state, upload in uploads.items():
        expired = await world.cleanup.expire(upload.id)
        assert expired is (upload.id in due) is (Event.EXPIRE in TRANSITIONS[state])


async def remove(world: World, uploads: dict[State, Upload]) -> None:
    for upload in uploads.values():
        with suppress(StateConflict):
            await world.uploads.remove(upload.id)


async def removed(world: World, uploads: dict[State, Upload]) -> None:
    await world.jobs(WORKER).finish_removals(await running(world, uploads, JobKind.REMOVE))


ACTS: dict[Event, Act] = {
    Event.APPEND: append,
    Event.COMPLETE: complete,
    Event.TRANSFER: claim,
    Event.STORE: store,
    Event.GIVE_UP: give_up,
    Event.LOSE: lose,
    Event.EXPIRE: expire,
    Event.REMOVE: remove,
    Event.REMOVED: removed,
}


RECORDED = {
    Event.COMPLETE: "upload.completed",
    Event.TRANSFER: "upload.transferring",
    Event.STORE: "upload.stored",
    Event.GIVE_UP: "upload.transfer_failed",
    Event.LOSE: "upload.object_missing",
    Event.EXPIRE: "upload.expired",
    Event.REMOVE: "upload.terminated",
    Event.REMOVED: "upload.removed",
}
"""What applications are told of a move. They are not told of every checkpoint."""


async def put_jobs(world: World, uploads: dict[State, Upload], kind: str, state: str) -> None:
    await world.sql("DELETE FROM jobs")
    for upload in uploads.values():
        await world.sql(
            "INSERT INTO jobs (upload_id, kind, staging_id, state, worker, attempt, started_at)"
            " VALUES ($1, $2, $3, $4, $5, 1, now())",
            upload.id, kind, HERE, state, WORKER,
        )  # fmt: skip


async def running(world: World, uploads: dict[State, Upload], kind: JobKind) -> list[Job]:
    """A claimed job for each upload, whatever its state."""
    await put_jobs(world, uploads, kind, "running")
    await world.sql("UPDATE jobs SET due_at = now() + interval '1 minute'")
    by_id = {upload.id: upload for upload in uploads.values()}
    return [
        Job(
            id=row["id"], kind=kind, attempt=1, failures=0, started_at=row["started_at"],
            upload=by_id[row["upload_id"]], multipart_id=None, runnable=True,
        )
        for row in await world.sql("SELECT id, upload_id, started_at FROM jobs")
    ]  # fmt: skip


async def one_of_each(world: World, event: Event) -> dict[State, Upload]:
    """An upload in every state; only parts expire once they are complete."""
    concat = Concat.PARTIAL if event is Event.EXPIRE else None
    found = {}
    for state in State:
        upload = await world.create(length=10, concat=concat)
        if state is not State.CREATED:
            upload = await world.advance(upload, 3)
        found[state] = await world.force_state(upload, state)
    await world.sql("DELETE FROM jobs")
    return found


@pytest.mark.parametrize("event", ACTS)
async def test_an_event_moves_exactly_the_states_of_the_table(world: World, event: Event) -> None:
    uploads = await one_of_each(world, event)

    await ACTS[event](world, uploads)

    after = {state: await world.state(upload) for state, upload in uploads.items()}
    assert after == {state: TRANSITIONS[state].get(event, state) for state in State}
    moved = {state for state in State if after[state] is not state}
    if event is Event.REMOVED:
        moved.add(State.EXPIRED)  # its bytes are gone, and it stays expired
    for state, upload in uploads.items():
        rows = await world.sql("SELECT kind, sequence FROM events WHERE upload_id = $1 ORDER BY sequence", upload.id)
        told = [RECORDED[event]] if state in moved and event in RECORDED else []
        assert [(row["kind"], row["sequence"]) for row in rows[1:]] == [(kind, 2) for kind in told], state


def test_every_event_but_one_is_tried_here() -> None:
    """Nothing rejects an upload yet; whoever writes that statement adds its act."""
    assert set(Event) - set(ACTS) == {Event.REJECT}
    assert not [name for name, text in statements().items() if "SET state = 'rejected'" in text]


async def test_a_complete_upload_that_is_no_part_does_not_expire(world: World) -> None:
    upload = await world.completed()
    await world.run_out_of_time(upload)

    assert await world.cleanup.overdue(10) == []
    assert not await world.cleanup.expire(upload.id)
    assert await world.state(upload) is State.COMPLETED


# --- what the schema itself refuses ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("state = 'finished'", asyncpg.CheckViolationError),
        ("upload_offset = -1", asyncpg.CheckViolationError),
        ("upload_offset = 11", asyncpg.CheckViolationError),
        ("upload_length = -1", asyncpg.CheckViolationError),
        ("state = 'completed'", asyncpg.CheckViolationError),
        ("state = 'stored', upload_length = NULL", asyncpg.CheckViolationError),
        ("state = 'expired'", asyncpg.CheckViolationError),
        ("gone_at = now()", asyncpg.CheckViolationError),
        ("concat = 'whole'", asyncpg.CheckViolationError),
        ("token_hash = 'short'", asyncpg.CheckViolationError),
        ("object_key = NULL", asyncpg.NotNullViolationError),
    ],
)
async def test_a_row_that_makes_no_sense_is_refused(world: World, change: str, problem: type[Exception]) -> None:
    upload = await world.create(length=10)

    with pytest.raises(problem):
        await world.sql(f"UPDATE uploads SET {change} WHERE id = $1", upload.id)


async def test_two_uploads_never_share_a_token_or_a_key(world: World) -> None:
    first = await world.create()

    with pytest.raises(HookInvalid, match="ID is taken"):
        await world.create(token_hash=world.tokens[first.id])
    with pytest.raises(HookInvalid, match="Path is taken"):
        await world.create(object_key=first.object_key)


async def test_an_upload_has_one_live_job_of_a_kind(world: World) -> None:
    upload = await world.completed()
    insert = "INSERT INTO jobs (upload_id, kind, state) VALUES ($1, $2, $3)"

    for state in ("queued", "running", "retry_wait"):
        with pytest.raises(asyncpg.UniqueViolationError):
            await world.sql(insert, upload.id, "transfer", state)
    for state in ("succeeded", "failed", "cancelled"):
        await world.sql(insert, upload.id, "transfer", state)
    await world.sql(insert, upload.id, "remove", "queued")


async def test_a_part_cannot_be_deleted_while_a_final_names_it(world: World) -> None:
    part = await world.part(b"abc")
    final = await world.final([part])

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await world.sql("DELETE FROM uploads WHERE id = $1", part.id)
    await world.sql("DELETE FROM uploads WHERE id = $1", final.id)

    assert await world.value("SELECT count(*) FROM upload_parts") == 0


async def test_everything_that_hangs_on_an_upload_goes_with_its_row(world: World) -> None:
    upload = await world.completed()
    queue = world.jobs()
    (job,) = await queue.claim(1)
    await world.sql("INSERT INTO transfer_parts VALUES ($1, 1, 5, 'etag', 7)", upload.id)
    await queue.retry(job, PermanentStoreError(), code="ERR", delay_seconds=1)

    await world.sql(
        "UPDATE uploads SET state = 'removed', gone_at = now() - interval '1 day', local_present = false WHERE id = $1",
        upload.id,
    )
    await world.sql("UPDATE jobs SET state = 'cancelled'")
    assert await world.cleanup.purge_rows(0, 10) == 1

    for table in ("jobs", "job_attempts", "transfer_parts"):
        assert await world.value(f"SELECT count(*) FROM {table}") == 0
