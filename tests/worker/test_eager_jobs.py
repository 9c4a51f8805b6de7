"""Sending ahead: jobs that run while their upload is still being received, and give way to everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.support.workers import SOON, InParts, is_true, reaches, working
from tests.support.world import HERE, World, open_world
from tusd_py import crc64
from tusd_py.config.place import Place
from tusd_py.configured_stores import Stores
from tusd_py.database.places import PlaceRecords
from tusd_py.database.stats import read_stats
from tusd_py.errors import PermanentStoreError, TransientStoreError
from tusd_py.metrics import Metrics
from tusd_py.ports import Job, ObjectSpec, PartRecord, PartStore, Segment, TransferState
from tusd_py.protocol.upload import Concat, State, Trigger, Upload, UploadProtocol
from tusd_py.stores.filesystem import FilesystemStore
from tusd_py.worker.context import JobContext
from tusd_py.worker.eager import EagerTransfer
from tusd_py.worker.removal import Removal
from tusd_py.worker.transfer import Transfer

CONTENT = b"0123456789abcdef"
PART = len(CONTENT) // InParts.PARTS


class EagerStore(InParts, PartStore):
    """Sends whole parts ahead, after whatever `error` says; waits at `gate` where there is one."""

    def __init__(self, inner: FilesystemStore, *, error: Exception | None = None, gated: bool = False) -> None:
        super().__init__(inner)
        self.error = error
        self.calls: list[int] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        if not gated:
            self.gate.set()

    async def put_parts(self, spec: ObjectSpec, segments: Sequence[Segment], transfer_state: TransferState) -> int:
        durable = sum(segment.length for segment in segments)
        self.calls.append(durable)
        if self.error is not None:
            raise self.error
        directory = self.inner.local_path("parts") / spec.upload_id
        directory.mkdir(parents=True, exist_ok=True)
        if await transfer_state.multipart_id() is None:
            await transfer_state.record_multipart(f"multipart of {spec.upload_id}")
        self.reached.set()
        await self.gate.wait()
        done = {part.number for part in await transfer_state.parts()}
        content = segments[0].path.read_bytes()
        for number in range(1, durable // PART + 1):
            if number not in done:
                piece = content[(number - 1) * PART : number * PART]
                (directory / str(number)).write_bytes(piece)
                with (directory / "sent").open("a") as log:
                    log.write(f"{number} ")
                await transfer_state.record_part(PartRecord(number, PART, f"etag-{number}"))
        return min(spec.length, (durable // PART + 1) * PART)

    def sent_of(self, upload: Upload) -> str:
        """The numbers of the parts sent so far, in order."""
        path = self.inner.local_path("parts") / str(upload.id) / "sent"
        return path.read_text() if path.exists() else ""


@pytest.fixture
async def world(shared_dsn: str, tmp_path: Path) -> AsyncIterator[World]:
    """A node that sends everything ahead that is longer than a part."""
    async with open_world(shared_dsn, tmp_path, eager_above=PART) as opened:
        yield opened


async def receive(world: World, upload: Upload, end: int, *, completes: bool = True) -> Upload:
    """Receive the bytes up to `end`, as a checkpoint of a long PATCH does."""
    path = world.staging.path(upload.id)
    path.write_bytes(CONTENT[:end])
    return await world.uploads.advance(
        upload,
        end,
        crc64.update(CONTENT[:end]),
        expires_after_seconds=3600,
        length=upload.length,
        completes=completes,
    )


def has_sent(store: EagerStore, upload: Upload, parts: str) -> bool:
    return store.sent_of(upload) == parts


async def test_parts_are_sent_once_each_while_the_upload_goes_on(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store)
    async with working(world, store):
        for end, sent in ((PART, "1 "), (2 * PART + 1, "1 2 "), (3 * PART, "1 2 3 ")):
            upload = await receive(world, upload, end)
            await is_true(partial(has_sent, store, upload, sent), f"parts {sent}are sent")
        assert await world.state(upload) is State.UPLOADING
        assert world.object(upload) is None

        upload = await receive(world, upload, len(CONTENT))
        await reaches(world, upload, State.STORED)

    assert world.object(upload) == CONTENT
    assert store.sent_of(upload) == "1 2 3 4 "
    assert not world.staged(upload)
    assert [outcome for kind, _, outcome in await world.attempts_of(upload) if kind == "transfer"] == ["succeeded"]
    assert await world.sql("SELECT 1 FROM transfer_parts") == []


async def test_what_was_sent_eager_to_a_former_store_is_sent_to_the_new_one(world: World, tmp_path: Path) -> None:
    """The new one takes no parts: what waited for them rests until the upload is complete."""
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store)
    async with working(world, store):
        upload = await receive(world, upload, PART)
        await is_true(lambda: store.sent_of(upload) == "1 ", "a part was sent")
    newer = FilesystemStore(tmp_path / "newer")
    await newer.open()
    old = Place("filesystem", directory=str(world.root / "store"))
    stores = Stores(PlaceRecords(world.database), Place("s3", bucket="new"), newer, {old: store})

    async with working(world, stores=stores):
        upload = await receive(world, upload, 2 * PART)
        await is_true(lambda: is_deferred_to_the_end(world, upload), "the job is deferred")
        upload = await receive(world, upload, len(CONTENT))
        await reaches(world, upload, State.STORED)

    assert newer.local_path(upload.object_key).read_bytes() == CONTENT
    assert [key for key, _ in store.aborted] == [upload.object_key]
    assert store.sent_of(upload) == "1 "
    assert [outcome for _, _, outcome in await world.attempts_of(upload)].count("retry") == 0
    await newer.close()


async def is_deferred_to_the_end(world: World, upload: Upload) -> bool:
    """Return whether the upload's eager job waits for its last byte."""
    return await world.jobs_of(upload, "kind, state, min_offset") == [("eager", "queued", len(CONTENT))]


async def test_nothing_is_claimed_before_another_part_is_whole(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store)
    async with working(world, store):
        upload = await receive(world, upload, PART)
        await is_true(lambda: store.sent_of(upload) == "1 ", "the first part is sent")
        await is_true(lambda: is_deferred(world, upload, 2 * PART), "the job is deferred")
        upload = await receive(world, upload, 2 * PART - 1)
        # Another upload's transfer shows that the worker has looked again.
        await reaches(world, await world.received(b"0123"), State.STORED)
        assert store.calls == [PART]

        upload = await receive(world, upload, 2 * PART)
        await is_true(lambda: store.sent_of(upload) == "1 2 ", "the second part is sent")


async def test_all_bytes_of_an_upload_that_waits_for_a_last_word_are_nothing_to_send_eager(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600, protocol=UploadProtocol.RUFH)
    store = EagerStore(world.store)
    async with working(world, store):
        upload = await receive(world, upload, 3 * PART)
        await is_true(lambda: is_deferred(world, upload, len(CONTENT)), "the job is deferred")
        upload = await receive(world, upload, len(CONTENT), completes=False)
        for content in (b"0123", b"4567"):
            await reaches(world, await world.received(content), State.STORED)
        assert store.calls == [3 * PART]

        await receive(world, upload, len(CONTENT))
        await reaches(world, upload, State.STORED)

    assert world.object(upload) == CONTENT


async def is_deferred(world: World, upload: Upload, min_offset: int) -> bool:
    """Return whether the eager job waits for so many bytes."""
    return ("eager", "queued", min_offset) in await world.jobs_of(upload, "kind, state, min_offset")


@pytest.mark.parametrize(
    "changes",
    [{"length": PART}, {"length": None}, {"concat": Concat.PARTIAL}],
    ids=["too-short", "of-unknown-length", "a-partial-upload"],
)
async def test_who_is_not_sent_eager(world: World, changes: dict[str, object]) -> None:
    upload = await world.create(**({"length": len(CONTENT), "expires_after_seconds": 3600} | changes))

    await receive(world, upload, PART - 1)

    assert await world.jobs_of(upload) == []


async def test_no_store_that_cannot_gets_such_a_job(shared_dsn: str, tmp_path: Path) -> None:
    async with open_world(shared_dsn, tmp_path, eager_above=None) as world:
        upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)

        await receive(world, upload, PART)

        assert await world.jobs_of(upload) == []


@pytest.mark.parametrize("error", [TransientStoreError(), PermanentStoreError(), OSError("a bug")])
async def test_a_store_that_fails_costs_the_upload_nothing(world: World, error: Exception) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store, error=error)
    async with working(world, store, max_retries=0):
        upload = await receive(world, upload, PART)
        await is_true(lambda: len(store.calls) > 3, "it was tried again and again")
        found = await world.find(upload)
        assert (found.state, found.error) == (State.UPLOADING, None)

        upload = await receive(world, upload, len(CONTENT))
        # The store answers the transfer, whatever it said before.
        await reaches(world, upload, State.STORED)

    assert world.object(upload) == CONTENT
    assert ("transfer", 1, "succeeded") in await world.attempts_of(upload)


async def test_the_transfer_waits_for_what_is_on_its_way(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store, gated=True)
    async with working(world, store):
        upload = await receive(world, upload, 3 * PART)
        await store.reached.wait()
        upload = await receive(world, upload, len(CONTENT))
        await reaches(world, await world.received(b"0123"), State.STORED)
        assert await world.state(upload) is State.COMPLETED

        store.gate.set()
        await reaches(world, upload, State.STORED)

    assert store.sent_of(upload) == "1 2 3 4 "
    assert world.object(upload) == CONTENT


async def test_a_worker_that_died_eager_is_succeeded(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    upload = await receive(world, upload, PART)
    (job,) = await world.jobs("dead").claim(10, eager=1)
    assert job.kind == "eager"
    upload = await receive(world, upload, len(CONTENT))
    assert await world.jobs("other").claim(10) == []

    await world.end_leases()
    store = EagerStore(world.store)
    async with working(world, store, name="worker-2"):
        await reaches(world, upload, State.STORED)

        async def over() -> bool:
            return ("eager", "succeeded") in await world.jobs_of(upload)

        await is_true(over, "the eager job is closed")

    assert ("eager", 1, "lost") in await world.attempts_of(upload)
    assert await world.jobs().next_due_seconds() is None


async def test_removing_an_upload_stops_what_is_sent_eager_of_it(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store, gated=True)
    async with working(world, store):
        upload = await receive(world, upload, 2 * PART)
        await store.reached.wait()

        await world.uploads.remove(upload.id)
        assert await world.jobs("other").claim(10) == []
        store.gate.set()
        await reaches(world, upload, State.REMOVED)

    assert store.aborted == [(upload.object_key, f"multipart of {upload.id}")]
    assert store.sent_of(upload) == ""
    assert not world.staged(upload)
    assert await world.sql("SELECT 1 FROM transfer_parts") == []


async def test_a_resting_job_ends_with_its_upload(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store)
    async with working(world, store):
        upload = await receive(world, upload, PART)
        await is_true(lambda: is_deferred(world, upload, 2 * PART), "the job is deferred")

        await world.uploads.remove(upload.id)
        assert ("eager", "cancelled") in await world.jobs_of(upload)
        await reaches(world, upload, State.REMOVED)

    assert store.aborted == [(upload.object_key, f"multipart of {upload.id}")]


async def test_an_abandoned_upload_aborts_what_was_sent(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    store = EagerStore(world.store)
    async with working(world, store):
        upload = await receive(world, upload, PART)
        await is_true(lambda: is_deferred(world, upload, 2 * PART), "the job is deferred")
        await world.run_out_of_time(upload)
        assert await world.cleanup.expire(upload.id)
        await is_true(lambda: bool(store.aborted), "the multipart upload is aborted")

        async def closed() -> bool:
            states = {state for _, state in await world.jobs_of(upload)}
            return states <= {"cancelled", "succeeded"}

        await is_true(closed, "no job is left")

    assert not world.staged(upload)


async def test_finished_uploads_come_before_unfinished_ones(world: World) -> None:
    first = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    await receive(world, first, PART)
    finished = await world.completed(length=2**30)

    claimed = await world.jobs().claim(10, large=1, eager=1)

    assert [job.upload.id for job in claimed] == [finished.id]
    (ahead,) = await world.jobs().claim(10, large=1, eager=1)
    assert ahead.upload.id == first.id
    assert await world.jobs("other").claim(10, large=5, eager=0) == []


async def test_what_waits_for_bytes_is_no_backlog(world: World) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    await receive(world, upload, PART)

    figures = await read_stats(world.database, HERE)

    assert (figures.jobs, figures.oldest_due_job_seconds) == ({}, 0)
    assert await world.jobs().next_due_seconds() is None


@pytest.mark.parametrize("trigger", [Trigger.COMMIT, Trigger.MANUAL])
async def test_what_waits_to_be_asked_for_is_not_sent_eager(world: World, trigger: Trigger) -> None:
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600, trigger=trigger)
    await receive(world, upload, PART)

    assert await world.jobs_of(upload) == []


async def test_checkpoints_and_records_do_not_block_each_other(world: World) -> None:
    """The transfer state locks the job before the upload; a checkpoint holds the upload."""
    upload = await world.create(length=2**30, expires_after_seconds=3600)
    upload = await receive(world, upload, PART)
    (job,) = await world.jobs().claim(10, eager=1)
    transfer_state = world.jobs().transfer_state(job)

    async def record() -> None:
        for number in range(1, 60):
            await transfer_state.record_multipart(f"multipart {number}")
            await transfer_state.record_part(PartRecord(number, PART, "etag"))
            await transfer_state.progress(number)

    async def checkpoint() -> None:
        moved = upload
        for offset in range(PART + 1, PART + 120):
            moved = await world.advance(moved, offset)

    async with asyncio.timeout(SOON):
        await asyncio.gather(record(), checkpoint())

    assert (await world.find(upload)).offset == PART + 119


async def test_a_checkpoint_wakes_the_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rung: list[str] = []
    monkeypatch.setattr(world.notifier, "notify_workers", rung.append)
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)

    upload = await receive(world, upload, PART)
    await receive(world, await world.create(length=PART), PART - 1)

    assert rung == [HERE]


# --- two claims in one moment ----------------------------------------------------------------------

SET_STATE = "UPDATE jobs SET state = $2 WHERE upload_id = $1 AND kind = 'eager'"


def context_of(world: World, store: EagerStore, worker: str) -> JobContext:
    """What one worker does with its claims, without its loop."""
    return JobContext(
        jobs=world.jobs(worker),
        uploads=world.uploads,
        cleanup=world.cleanup,
        staging=world.staging,
        stores=world.stores(store),
        metrics=Metrics(),
        purge_at_once=True,
    )


async def claimed_at_once(world: World, store: EagerStore, kind: str) -> tuple[Upload, Job, Job]:
    """An upload of which one worker has claimed the eager job and another one the job that ends it.

    Claims in two transactions do not see each other; here the one is hidden from the other by hand.
    """
    upload = await world.create(length=len(CONTENT), expires_after_seconds=3600)
    upload = await receive(world, upload, PART)
    (ahead,) = await world.jobs("first").claim(10, eager=1)
    if kind == "transfer":
        upload = await receive(world, upload, len(CONTENT))
    else:
        await world.run_out_of_time(upload)
        assert await world.cleanup.expire(upload.id)
    await world.sql(SET_STATE, upload.id, "succeeded")
    (other,) = await world.jobs("second").claim(10)
    await world.sql(SET_STATE, upload.id, "running")
    assert (ahead.kind, other.kind) == ("eager", kind)
    return upload, ahead, other


@pytest.mark.parametrize("kind", ["transfer", "remove"])
async def test_who_ends_an_upload_waits_for_a_claim_that_it_could_not_see(world: World, kind: str) -> None:
    store = EagerStore(world.store)
    upload, ahead, other = await claimed_at_once(world, store, kind)
    second = context_of(world, store, "second")
    ending = asyncio.create_task((Transfer(second) if kind == "transfer" else Removal(second)).run(other))
    done, _ = await asyncio.wait([ending], timeout=0.3)
    assert not done
    assert (world.object(upload), store.aborted, world.staged(upload)) == (None, [], True)

    assert await world.jobs("first").defer(ahead, until_bytes=2 * PART)

    async with asyncio.timeout(SOON):
        await ending
    assert world.object(upload) == (CONTENT if kind == "transfer" else None)
    assert world.staged(upload) == (kind == "transfer")


async def test_who_sends_eager_looks_whether_the_upload_has_ended_meanwhile(world: World) -> None:
    store = EagerStore(world.store)
    _, ahead, _ = await claimed_at_once(world, store, "transfer")

    await EagerTransfer(context_of(world, store, "first")).run(ahead)

    assert store.calls == []
